//! Uploads of files that cannot be replaced, or that a program on the host has open.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::Mounted;
use scpfs_testing::capability::Capability;
use scpfs_testing::capability::skip;
use scpfs_testing::or_skip;
use scpfs_testing::sshd::Options;
use scpfs_testing::sshd::Sshd;

/// A file attribute as set by chattr; cleared on drop.
struct Attribute<'a>(&'static str, &'a Path);

impl<'a> Attribute<'a> {
    /// Returns `None` if the filesystem does not support it.
    fn set(letter: &'static str, path: &'a Path) -> Option<Self> {
        let mut chattr = Command::new("chattr");
        let is_set = chattr.arg(format!("+{letter}")).arg(path).status();
        is_set.unwrap().success().then_some(Self(letter, path))
    }
}

impl Drop for Attribute<'_> {
    fn drop(&mut self) {
        let mut chattr = Command::new("chattr");
        let _ended = chattr.arg(format!("-{}", self.0)).arg(self.1).status();
    }
}

/// A bind mount of a file; unmounted on drop.
struct Bound<'a>(&'a Path);

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        let _ended = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Sets the mode of a file for the login user, who is not root.
fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_bind_mounted_file_is_uploaded_in_place() {
    if !rustix::process::geteuid().is_root() {
        return skip(Capability::Root, "root for a bind mount");
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (real, bound) = (dir.path().join("real"), dir.path().join("bound"));
    fs::write(&real, "old").unwrap();
    fs::write(&bound, "").unwrap();
    open_to_all(&real, 0o666);
    open_to_all(dir.path(), 0o777);
    let mut mount = Command::new("mount");
    assert!(
        mount
            .arg("--bind")
            .arg(&real)
            .arg(&bound)
            .status()
            .unwrap()
            .success()
    );
    let _bound = Bound(&bound);
    // Mounted before the server starts, because the server has a mount namespace of its own.
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mounted = or_skip!(Mounted::on(sshd, &[]));
    let point = mounted.also(dir.path(), &[]);
    let ino = fs::metadata(&real).unwrap().ino();
    fs::write(point.join("bound"), "new").unwrap();
    assert_eq!(fs::read(&real).unwrap(), b"new");
    assert_eq!(fs::metadata(&real).unwrap().ino(), ino);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    point.unmount();
}

#[test]
fn files_of_immutable_and_append_only_directories_are_uploaded_in_place() {
    let mounted = or_skip!(Mounted::new(&[]));
    for letter in ["i", "a"] {
        fs::create_dir(mounted.there(letter)).unwrap();
    }
    for letter in ["i", "a"] {
        let dir = mounted.there(letter);
        fs::write(dir.join("file"), "old").unwrap();
        open_to_all(&dir, 0o777);
        open_to_all(&dir.join("file"), 0o666);
        let Some(_attribute) = Attribute::set(letter, &dir) else {
            return skip(Capability::Attributes, "a filesystem with chattr");
        };
        for content in ["first", "second", "third"] {
            fs::write(mounted.here(letter).join("file"), content).unwrap();
            assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), content);
        }
        let left = fs::read_dir(&dir).unwrap().filter_map(|item| {
            let item = item.unwrap();
            (item.file_name() != "file").then(|| item.metadata().unwrap().len())
        });
        // If names can be created but not removed, the first upload leaves an empty temporary file.
        let left: Vec<u64> = left.collect();
        assert!(
            left.iter().all(|size| *size == 0) && left.len() <= 1,
            "{letter}: {left:?}"
        );
        let new = mounted.here(letter).join("new");
        let uploaded = fs::File::create(&new).unwrap().sync_all();
        assert_eq!(uploaded.is_err(), letter == "i", "{uploaded:?}");
        if letter == "i" {
            fs::remove_file(new).unwrap();
        }
    }
}

#[test]
fn an_immutable_file_fails_at_open() {
    let mounted = or_skip!(Mounted::new(&[]));
    mounted.put("file", "content");
    let there = mounted.there("file");
    let Some(attribute) = Attribute::set("i", &there) else {
        return skip(Capability::Attributes, "a filesystem with chattr");
    };
    let open = || {
        fs::OpenOptions::new()
            .append(true)
            .open(mounted.here("file"))
    };
    let error = open().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    assert_eq!(fs::read(mounted.here("file")).unwrap(), b"content");
    drop(attribute);
}

#[test]
fn a_file_that_can_only_be_appended_to_is_appended_to() {
    let mounted = or_skip!(Mounted::new(&[]));
    mounted.put("log", "one\n");
    let log = mounted.there("log");
    let Some(_attribute) = Attribute::set("a", &log) else {
        return skip(Capability::Attributes, "a filesystem with chattr");
    };
    mounted.sh("echo two >>log; echo three >>log");
    assert_eq!(fs::read_to_string(&log).unwrap(), "one\ntwo\nthree\n");
}

/// Regression: `(exec 5>>log; ...) & echo mark >>mount/log` lost everything that the program wrote
/// after the mark.
#[test]
fn append_by_a_program_on_the_host_after_ours_stays() {
    let mounted = or_skip!(Mounted::new(&[]));
    mounted.put("app.log", "");
    mounted.sh(r#"
        exec 5>>"$THERE/app.log"
        for i in 1 2 3; do echo app$i >&5; done
        echo mark >>app.log
        for i in 4 5 6; do echo app$i >&5; done
        test "$(tr '\n' ' ' <"$THERE/app.log")" = 'app1 app2 app3 mark app4 app5 app6 '
        "#);
}

/// Regression: an upload removed extended attributes and ACLs.
#[test]
fn editors_keep_acls_and_extended_attributes() {
    let mounted = or_skip!(Mounted::new(&[]));
    mounted.put("file", "old\n");
    mounted.sh(r#"
        setfattr -n user.tag -v blue "$THERE/file"
        setfacl -m u:33:rw "$THERE/file"
        getfacl -pcn "$THERE/file" >"$ASIDE/before"
        echo new >file
        test "$(cat "$THERE/file")" = new
        test "$(getfattr --only-values -n user.tag "$THERE/file")" = blue
        getfacl -pcn "$THERE/file" | diff - "$ASIDE/before"
        "#);
}
