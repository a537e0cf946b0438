#![cfg(test)]
//! Races between an upload and other users or programs of the host. Wrapped programs of the host
//! fix the order of events: they act between two steps of the upload.
#![expect(
    clippy::disallowed_methods,
    reason = "tests start the programs that they look with"
)]

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::chown;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use scpfs::clock::ManualClock;
use scpfs::path::Name;
use scpfs::remote::AttrChange;
use scpfs::remote::Content;
use scpfs::remote::Durability;
use scpfs::remote::Error;
use scpfs::remote::Expect;
use scpfs::remote::NewTime;
use scpfs::remote::Outcome;
use scpfs::remote::Owner;
use scpfs::remote::Placement;
use scpfs::remote::Reason;
use scpfs::remote::Remote as _;
use scpfs::remote::RenameHow;
use scpfs::remote::Result;
use scpfs::remote::UploadSpec;
use scpfs::remote::Uploaded;
use scpfs::shell::Shell;
use scpfs::stat::DeviceNumber;
use scpfs::stat::FileKind;
use scpfs::stat::Version;
use scpfs_testing::capability::Capability;
use scpfs_testing::capability::skip;
use scpfs_testing::content::bytes;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::samples::MTIME;
use scpfs_testing::samples::path;
use scpfs_testing::samples::reason;
use scpfs_testing::samples::upload_spec;

pub(crate) const USERLANDS: [Userland; 7] = [
    Userland::Gnu,
    Userland::BusyBox,
    Userland::Toybox,
    Userland::OpenWrt,
    Userland::Bare,
    Userland::NoScp,
    Userland::Bsd,
];

/// All programs that an upload may run.
pub(crate) const PROGRAMS: [&str; 17] = [
    "cat", "chmod", "chown", "cmp", "cp", "dd", "flock", "head", "ln", "ls", "mv", "rm", "scp",
    "stat", "sync", "touch", "truncate",
];

/// A shell command that sets `$temp` to the temporary file of an upload.
pub(crate) const TEMP: &str = "for temp in \"$root\"/.scpfs-*.tmp; do :; done";

pub(crate) struct Host {
    pub(crate) world: World,
    pub(crate) shell: Shell,
}

impl Host {
    /// A host whose `programs` run a script before and after their work if the file `now` exists
    /// beside the root; `$root` is the root and `$dir` its parent directory.
    pub(crate) fn new(userland: Userland, programs: &[&str], before: &str, after: &str) -> Self {
        let world = World::new(userland);
        let dir = world.root().parent().unwrap().to_owned();
        let guarded = |script: &str| {
            format!(
                "root='{}' dir='{}'\n[ ! -e \"$dir/now\" ] || {{ {script}\n}} </dev/null >/dev/null 2>&1",
                world.root().display(),
                dir.display()
            )
        };
        let present: Vec<&str> = programs
            .iter()
            .copied()
            .filter(|program| {
                let is_linked = dir.join("bin").join(program).symlink_metadata().is_ok();
                let is_gnu = matches!(userland, Userland::Gnu | Userland::NoScp | Userland::Bsd);
                is_linked || is_gnu && Path::new("/usr/bin").join(program).exists()
            })
            .collect();
        let colon = |script: &str| {
            if script.is_empty() {
                String::from(":")
            } else {
                guarded(script)
            }
        };
        world.around(&present, &colon(before), &colon(after));
        let shell = world.shell(Arc::new(ManualClock::new()));
        Self { world, shell }
    }

    pub(crate) fn each(programs: &[&str], before: &str, after: &str) -> Vec<(Userland, Self)> {
        if !rustix::process::geteuid().is_root() {
            skip(Capability::Root, "root for files of several users");
            return Vec::new();
        }
        Userland::here(USERLANDS)
            .map(|userland| (userland, Self::new(userland, programs, before, after)))
            .collect()
    }

    pub(crate) fn plain() -> Vec<(Userland, Self)> {
        Self::each(&[], "", "")
    }

    /// Enables the scripts.
    pub(crate) fn arm(&self) {
        fs::write(self.beside("now"), "").unwrap();
    }

    pub(crate) fn disarm(&self) {
        drop(fs::remove_file(self.beside("now")));
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.world.root().join(name)
    }

    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.world.root().parent().unwrap().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap()
    }

    pub(crate) fn version(&self, name: &str) -> Version {
        self.shell.stat(&path(name)).unwrap().version()
    }

    /// Uploads over the current version of `file`.
    fn replace(&self, content: &[u8]) -> Result<Uploaded> {
        let plan = self.plan_over(content);
        self.upload(content, &plan)
    }

    pub(crate) fn plan_over(&self, content: &[u8]) -> UploadSpec {
        UploadSpec {
            expect: Expect::Version(self.version("file")),
            sets_mode: false,
            ..upload_spec(content)
        }
    }

    pub(crate) fn upload(&self, content: &[u8], plan: &UploadSpec) -> Result<Uploaded> {
        self.arm();
        let result = self.shell.upload(&path("file"), &bytes(content), plan);
        self.disarm();
        result
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.world.root())
            .unwrap()
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub(crate) fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Regression: a setuid temporary file with the content was `root:root 4755` until its owner was
/// set: every user of the host could become root.
#[test]
fn a_temporary_file_is_private_until_it_belongs_to_its_owner() {
    let look = "for f in \"$root\"/.scpfs-*.tmp \"$root/file\" \"$root/copy\" \"$root/excl\"; do\n\
                [ ! -f \"$f\" ] || /usr/bin/stat -c \"%a %u:%g $program ${f##*/}\" \"$f\" >>\"$dir/log\"\ndone";
    let new_owner = Some(Owner {
        uid: 1000,
        gid: 1000,
    });
    for (userland, host) in Host::each(&PROGRAMS, look, look) {
        let large = vec![7; 17 << 20];
        for (what, content) in [("small", &b"content"[..]), ("in pieces", &large)] {
            let new = UploadSpec {
                mode: 0o4755,
                owner: new_owner,
                expect: Expect::Absent,
                mtime: scpfs::stat::Time {
                    secs: 1_700_000_000,
                    nanos: 0,
                },
                ..upload_spec(content)
            };
            host.upload(content, &new).unwrap();
            let file = host.at("file");
            let meta = fs::metadata(&file).unwrap();
            assert_eq!(
                (meta.mode() & 0o7777, meta.uid(), meta.gid()),
                (0o4755, 1000, 1000),
                "{userland:?} {what}"
            );
            // The new file gets the owner and the permissions of the file that it replaces.
            set_mode(&file, 0o2750);
            let replacement = UploadSpec {
                mode: 0o777,
                ..host.plan_over(content)
            };
            host.upload(content, &replacement).unwrap();
            let meta = fs::metadata(&file).unwrap();
            assert_eq!(
                (meta.mode() & 0o7777, meta.uid(), meta.gid()),
                (0o2750, 1000, 1000),
                "{userland:?} {what}"
            );
            host.arm();
            host.shell.copy(&path("file"), &path("copy"), &new).unwrap();
            host.shell
                .create_new(&path("excl"), 0o4711, new_owner)
                .unwrap();
            host.disarm();
            assert_eq!(mode_of(&host.at("copy")), 0o4755, "{userland:?} {what}");
            assert_eq!(mode_of(&host.at("excl")), 0o4711, "{userland:?} {what}");
            for name in ["file", "copy", "excl"] {
                fs::remove_file(host.at(name)).unwrap();
            }
        }
        let log = fs::read_to_string(host.beside("log")).unwrap();
        assert!(log.lines().count() > 20, "{userland:?}: {log}");
        for line in log.lines() {
            let is_given_away = line.contains(" 1000:1000 ");
            assert!(
                is_given_away || line.starts_with("600 "),
                "{userland:?}: {line}"
            );
        }
    }
}

/// Regression: another user of the host could replace the temporary file by a link, and the target
/// of the link got the content.
#[test]
fn link_that_replaces_a_temporary_file_gets_no_content() {
    for (what, swap) in [
        ("a link", "rm -f \"$temp\"; ln -s \"$dir/victim\" \"$temp\""),
        ("a file", "rm -f \"$temp\"; echo intruder >\"$temp\""),
        ("nothing", "rm -f \"$temp\""),
    ] {
        let script = format!("{TEMP}\n[ ! -e \"$temp\" ] || {{ rm \"$dir/now\"; {swap}; }}");
        for program in ["scp", "dd", "head", "stat", "ls", "chmod", "cp", "mv", "ln"] {
            for (userland, host) in Host::each(&[program], &script, "") {
                for is_new in [true, false] {
                    fs::write(host.beside("victim"), "victim").unwrap();
                    if !is_new {
                        fs::write(host.at("file"), "old").unwrap();
                        set_mode(&host.at("file"), 0o640);
                    }
                    let plan = if is_new {
                        UploadSpec {
                            expect: Expect::Absent,
                            ..upload_spec(b"content")
                        }
                    } else {
                        host.plan_over(b"content")
                    };
                    let result = host.upload(b"content", &plan);
                    let case = format!("{userland:?}: {what} before {program}: {result:?}");
                    assert_eq!(
                        fs::read_to_string(host.beside("victim")).unwrap(),
                        "victim",
                        "{case}"
                    );
                    let file = host.at("file");
                    if let Err(error) = &result {
                        assert!(!matches!(error, Error::Partial { .. }), "{case}");
                    } else {
                        let meta = fs::symlink_metadata(&file).unwrap();
                        assert!(meta.is_file(), "{case}");
                        assert_eq!(host.read("file"), "content", "{case}");
                    }
                    for name in host.names() {
                        fs::remove_file(host.at(&name)).unwrap();
                    }
                }
            }
        }
    }
}

/// Regression: a change right after our rename was taken for ours, and the next upload removed it.
#[test]
fn upload_does_not_take_a_change_right_after_the_rename_for_ours() {
    for change in [
        "printf theirs >>\"$root/file\"",
        "printf theirs! >\"$root/file\"",
        // The same size, with another mtime.
        "printf CONTENT >\"$root/file\"",
    ] {
        let script = format!("rm \"$dir/now\"; {change}");
        let large = vec![b'x'; 17 << 20];
        for (userland, host) in Host::each(&["mv", "ln"], "", &script) {
            for content in [&b"content"[..], &large] {
                fs::write(host.at("file"), "old").unwrap();
                let mut plan = host.plan_over(content);
                plan.mtime.nanos = 0;
                if userland == Userland::Bsd || userland.is_busybox() {
                    // If times have no fractions, a change in the same second cannot be detected.
                    plan.mtime.secs -= 10;
                }
                let uploaded = host.upload(content, &plan).unwrap();
                let case = format!("{userland:?}: {change}");
                assert_eq!(uploaded.outcome, Outcome::AsPlanned, "{case}");
                assert!(
                    uploaded.is_overtaken && uploaded.stat.is_none(),
                    "{case}: {uploaded:?}"
                );
                fs::remove_file(host.at("file")).unwrap();
            }
        }
    }
}

/// Regression: if a program on the host removed the temporary file of a new file before its rename,
/// `close()` returned 0 and the content was lost.
#[test]
fn upload_fails_if_others_remove_its_temporary_file() {
    let script = format!("{TEMP}\nrm -f \"$temp\"");
    for (userland, host) in Host::each(&["mv", "ln"], &script, "") {
        for is_new in [true, false] {
            if !is_new {
                fs::write(host.at("file"), "old").unwrap();
            }
            let plan = if is_new {
                UploadSpec {
                    expect: Expect::Absent,
                    ..upload_spec(b"content")
                }
            } else {
                host.plan_over(b"content")
            };
            let result = host.upload(b"content", &plan);
            assert!(result.is_err(), "{userland:?}: {result:?}");
            assert_eq!(host.at("file").exists(), !is_new, "{userland:?}");
        }
    }
}

/// Regression: the next upload reverted a chmod or chown by others.
#[test]
fn upload_keeps_the_current_mode_and_owner_on_the_host() {
    for (userland, host) in Host::plain() {
        let file = host.at("file");
        fs::write(&file, "old").unwrap();
        set_mode(&file, 0o644);
        let seen = host.plan_over(b"new");
        set_mode(&file, 0o600);
        chown(&file, Some(1234), Some(4321)).unwrap();
        // The conflict check of hosts that report whole seconds compares the ctime as well.
        let seen = if userland == Userland::OpenWrt || userland == Userland::Bare {
            host.plan_over(b"new")
        } else {
            seen
        };
        let seen = UploadSpec {
            mode: 0o644,
            ..seen
        };
        host.upload(b"new", &seen).unwrap();
        let meta = fs::metadata(&file).unwrap();
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.gid()),
            (0o600, 1234, 4321),
            "{userland:?}"
        );
        // Attributes that were changed here take precedence; the others are those of the host.
        let ours = UploadSpec {
            mode: 0o4640,
            sets_mode: true,
            ..host.plan_over(b"newer")
        };
        host.upload(b"newer", &ours).unwrap();
        let meta = fs::metadata(&file).unwrap();
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.gid()),
            (0o4640, 1234, 4321),
            "{userland:?}"
        );
        assert_eq!(host.read("file"), "newer");
    }
}

/// Regression: `fsync()` returned 0 although `sync` on the host failed with EIO.
#[test]
fn an_error_of_the_disk_fails_a_flush() {
    let failing = "#!/bin/dash\necho \"sync: error syncing 'x': Input/output error\" >&2\nexit 1\n";
    let old = "#!/bin/dash\necho \"sync: unrecognized option '--'\" >&2\nexit 1\n";
    let missing = "#!/bin/dash\necho 'sh: sync: not found' >&2\nexit 127\n";
    for (userland, host) in Host::plain() {
        host.world.put("fsync", missing);
        for (script, is_error) in [(failing, true), (old, false), (missing, false)] {
            host.world.put("sync", script);
            for placement in [Placement::Replace, Placement::InPlace] {
                fs::write(host.at("file"), "old").unwrap();
                let plan = UploadSpec {
                    durability: Durability::Fsync,
                    placement,
                    ..host.plan_over(b"new")
                };
                let result = host.upload(b"new", &plan);
                if is_error {
                    assert_eq!(
                        reason(result),
                        Reason::InputOutput,
                        "{userland:?} {placement:?}"
                    );
                } else {
                    result.unwrap();
                }
            }
            let result = host.shell.sync(&path("file"));
            if is_error {
                assert_eq!(reason(result), Reason::InputOutput, "{userland:?}");
            } else {
                result.unwrap();
            }
        }
    }
}

/// Regression: an upload in place followed a symlink that replaced the file: a file of root got the
/// content.
#[test]
fn an_upload_in_place_follows_no_link() {
    let script = "mv -f \"$root/file\" \"$dir/moved\"; ln -s \"$dir/secret\" \"$root/file\"; rm \"$dir/now\"";
    for program in ["scp", "dd", "head", "stat", "ls", "cat", "touch", "flock"] {
        for (userland, host) in Host::each(&[program], script, "") {
            for placement in [Placement::InPlace, Placement::Direct] {
                fs::write(host.beside("secret"), "secret").unwrap();
                fs::write(host.at("file"), "old").unwrap();
                let plan = UploadSpec {
                    placement,
                    ..host.plan_over(b"content")
                };
                let result = host.upload(b"content", &plan);
                let case = format!("{userland:?} {placement:?} {program}: {result:?}");
                assert_eq!(
                    fs::read_to_string(host.beside("secret")).unwrap(),
                    "secret",
                    "{case}"
                );
                let was_run = host.at("file").is_symlink();
                assert_eq!(result.is_err(), was_run, "{case}");
                for name in host.names() {
                    fs::remove_file(host.at(&name)).unwrap();
                }
            }
        }
    }
}

/// Regression: an upload removed extended attributes and ACLs.
#[test]
fn a_replacement_keeps_acls_and_extended_attributes() {
    for userland in [Userland::Gnu, Userland::NoScp] {
        let host = Host::new(userland, &[], "", "");
        let file = host.at("file");
        let name = file.to_str().unwrap();
        fs::write(&file, "old").unwrap();
        run("setfattr", &["-n", "user.tag", "-v", "blue", name]);
        run("setfacl", &["-m", "u:33:rw", name]);
        let before = run("getfacl", &["-pcn", name]);
        host.replace(b"new").unwrap();
        assert_eq!(host.read("file"), "new");
        assert_eq!(run("getfacl", &["-pcn", name]), before);
        let tag = run("getfattr", &["--only-values", "-n", "user.tag", name]);
        assert_eq!(tag, "blue");
    }
}

/// Regression: an upload overrode the default ACL of the directory, so that others could read a
/// file that the ACL does not permit them to read.
#[test]
fn create_in_a_directory_with_a_default_acl_inherits_it() {
    for userland in [Userland::Gnu, Userland::NoScp] {
        let host = Host::new(userland, &[], "", "");
        let root = host.world.root();
        let local = host.beside("local");
        fs::create_dir(&local).unwrap();
        for dir in [&root, &local] {
            let dir = dir.to_str().unwrap();
            run("setfacl", &["-d", "-m", "u:33:rwx,g::rx,o::-", dir]);
        }
        let device = DeviceNumber::default();
        let shell = &host.shell;
        shell.make_dir(&path("dir"), 0o755, None).unwrap();
        shell.create_new(&path("excl"), 0o664, None).unwrap();
        shell
            .make_node(&path("fifo"), FileKind::Fifo, 0o664, device, None)
            .unwrap();
        let new = UploadSpec {
            mode: 0o664,
            expect: Expect::Absent,
            ..upload_spec(b"content")
        };
        host.upload(b"content", &new).unwrap();
        let script = "umask 022; mkdir dir; umask 002; : >excl; : >file; mkfifo fifo";
        let made = Command::new("sh")
            .args(["-c", script])
            .current_dir(&local)
            .status();
        assert!(made.unwrap().success());
        for name in ["dir", "excl", "fifo", "file"] {
            let acl = |dir: &Path| run("getfacl", &["-pcn", dir.join(name).to_str().unwrap()]);
            assert_eq!(acl(&root), acl(&local), "{userland:?} {name}");
        }
        // The permissions to execute are limited by the ACL as well.
        let program = UploadSpec {
            mode: 0o775,
            expect: Expect::Absent,
            ..upload_spec(b"#!/bin/sh\n")
        };
        shell
            .upload(&path("program"), &bytes(b"#!/bin/sh\n"), &program)
            .unwrap();
        assert_eq!(mode_of(&host.at("program")), 0o770, "{userland:?}");
    }
}

/// Regression: an upload replaced the file that a program on the host had open, and its later
/// appends were lost.
#[test]
fn append_goes_to_the_same_inode_on_the_host() {
    use std::io::Write as _;
    for (userland, host) in Host::plain() {
        let file = host.at("file");
        fs::write(&file, "old,").unwrap();
        let ino = fs::metadata(&file).unwrap().ino();
        let mut writer = fs::OpenOptions::new().append(true).open(&file).unwrap();
        let content = b"old,new,";
        let plan = UploadSpec {
            appends_to: Some(4),
            ..host.plan_over(content)
        };
        let uploaded = host.upload(content, &plan).unwrap();
        assert_eq!(uploaded.stat.map(|stat| stat.size), Some(8), "{userland:?}");
        writer.write_all(b"theirs").unwrap();
        assert_eq!(host.read("file"), "old,new,theirs", "{userland:?}");
        assert_eq!(fs::metadata(&file).unwrap().ino(), ino, "{userland:?}");
        assert_eq!(host.names(), ["file"], "{userland:?}");
        // Nothing is appended to another version, and the appended part alone is not taken for the
        // whole content.
        let kept = UploadSpec {
            conflict_name: Some(Name::new(b"kept").unwrap()),
            ..plan
        };
        let result = host.upload(content, &kept);
        assert!(
            matches!(result, Err(Error::Conflict { .. })),
            "{userland:?}: {result:?}"
        );
        assert_eq!(host.read("file"), "old,new,theirs", "{userland:?}");
        assert_eq!(host.names(), ["file"], "{userland:?}");
    }
}

/// Regression: files that can be written but not replaced could not be uploaded: bind-mounted
/// files, and files in a directory with `chattr +i` or `+a`.
#[test]
fn upload_of_a_file_that_cannot_be_replaced_is_in_place() {
    let busy =
        "#!/bin/dash\necho \"mv: cannot move 'a' to 'b': Device or resource busy\" >&2\nexit 1\n";
    let denied =
        "#!/bin/dash\necho \"mv: cannot move 'a' to 'b': Operation not permitted\" >&2\nexit 1\n";
    for (userland, host) in Host::plain() {
        for script in [busy, denied] {
            let file = host.at("file");
            fs::write(&file, "old").unwrap();
            let ino = fs::metadata(&file).unwrap().ino();
            host.world.put("mv", script);
            let uploaded = host.replace(b"new content").unwrap();
            assert_eq!(host.read("file"), "new content", "{userland:?}");
            assert_eq!(fs::metadata(&file).unwrap().ino(), ino);
            assert!(uploaded.stat.is_some(), "{userland:?}");
            assert_eq!(host.names(), ["file"], "{userland:?}");
        }
    }
}

/// Regression: if no name can be removed, each upload left a temporary file of full size.
#[test]
fn temporary_files_do_not_pile_up_where_names_cannot_be_removed() {
    let kept = "#!/bin/dash\necho \"rm: cannot remove 'a': Operation not permitted\" >&2\nexit 1\n";
    let denied =
        "#!/bin/dash\necho \"mv: cannot move 'a' to 'b': Operation not permitted\" >&2\nexit 1\n";
    for (userland, host) in Host::plain() {
        fs::write(host.at("file"), "old").unwrap();
        host.world.put("mv", denied);
        host.world.put("rm", kept);
        for content in [&b"first"[..], b"second", b"third"] {
            host.replace(content).unwrap();
            assert_eq!(host.read("file").as_bytes(), content, "{userland:?}");
        }
        let names = host.names();
        assert_eq!(names.len(), 2, "{userland:?}: {names:?}");
        assert_eq!(
            fs::metadata(host.at(&names[0])).unwrap().len(),
            0,
            "{userland:?}"
        );
    }
}

/// Files in a directory that permits no new names can still be written.
#[test]
fn upload_reports_a_directory_that_takes_no_temporary_file() {
    for (userland, host) in Host::plain() {
        fs::write(host.at("file"), "old").unwrap();
        let plan = host.plan_over(b"new");
        let root = host.world.root();
        let mut chattr = Command::new("chattr");
        if !chattr.arg("+i").arg(&root).status().unwrap().success() {
            return skip(Capability::Attributes, "a filesystem with chattr");
        }
        let result = host.upload(b"new", &plan);
        let direct = UploadSpec {
            placement: Placement::Direct,
            ..plan
        };
        let written = host.upload(b"new", &direct);
        run("chattr", &["-i", root.to_str().unwrap()]);
        assert!(
            matches!(result, Err(Error::NoTemp { .. })),
            "{userland:?}: {result:?}"
        );
        written.unwrap();
        assert_eq!(host.read("file"), "new", "{userland:?}");
        assert_eq!(host.names(), ["file"], "{userland:?}");
    }
}

/// Regression: `RENAME_NOREPLACE` was a check and a rename, so that two racing renames both
/// succeeded.
#[test]
fn rename_noreplace_does_not_replace_a_file_created_meanwhile() {
    let script = "rm \"$dir/now\"; echo theirs >\"$root/to\"";
    for (userland, host) in Host::each(&["mv", "ln"], script, "") {
        fs::write(host.at("from"), "ours").unwrap();
        host.arm();
        let result = host
            .shell
            .rename(&path("from"), &path("to"), RenameHow::NoReplace);
        assert_eq!(reason(result), Reason::Exists, "{userland:?}");
        assert_eq!(host.read("to"), "theirs\n", "{userland:?}");
        assert_eq!(host.read("from"), "ours", "{userland:?}");
    }
}

/// New files and directories have exactly the requested permissions, whatever the umask is.
#[test]
fn new_file_has_exactly_the_requested_permissions() {
    for (userland, host) in Host::plain() {
        for mode in [
            0o644, 0o600, 0o444, 0o755, 0o660, 0o1777, 0o4711, 0o2750, 0o000, 0o200, 0o622,
        ] {
            let new = UploadSpec {
                mode,
                expect: Expect::Absent,
                ..upload_spec(b"content")
            };
            host.upload(b"content", &new).unwrap();
            assert_eq!(mode_of(&host.at("file")), mode, "{userland:?}: a new file");
            fs::remove_file(host.at("file")).unwrap();
            host.shell.create_new(&path("file"), mode, None).unwrap();
            assert_eq!(mode_of(&host.at("file")), mode, "{userland:?}: created");
            fs::remove_file(host.at("file")).unwrap();
            host.shell.make_dir(&path("file"), mode, None).unwrap();
            assert_eq!(mode_of(&host.at("file")), mode, "{userland:?}: a directory");
            fs::remove_dir(host.at("file")).unwrap();
        }
    }
}

/// Regression: utimes hid a change by others within the last second, and the next append removed
/// it.
#[test]
fn times_are_not_set_over_a_version_that_was_not_expected() {
    for (userland, host) in Host::plain() {
        fs::write(host.at("file"), "ours").unwrap();
        let seen = host.version("file");
        let change = AttrChange {
            mode: Some(0o640),
            mtime: Some(NewTime::At(MTIME)),
            expect: Some(seen),
            ..AttrChange::default()
        };
        fs::write(host.at("file"), "theirs").unwrap();
        let result = host.shell.set_attr(&path("file"), &change);
        assert!(
            matches!(result, Err(Error::Conflict { .. })),
            "{userland:?}: {result:?}"
        );
        assert_ne!(
            fs::metadata(host.at("file")).unwrap().mtime(),
            MTIME.secs,
            "{userland:?}"
        );
        let known = AttrChange {
            expect: Some(host.version("file")),
            ..change
        };
        let stat = host.shell.set_attr(&path("file"), &known).unwrap();
        assert_eq!(
            (stat.mode, stat.mtime.secs),
            (0o640, MTIME.secs),
            "{userland:?}"
        );
        fs::remove_file(host.at("file")).unwrap();
        let result = host.shell.set_attr(&path("file"), &known);
        assert_eq!(reason(result), Reason::NotFound, "{userland:?}");
    }
}

/// A hole with data at one offset.
struct Sparse {
    data: &'static [u8],
    at: u64,
}

impl Content for Sparse {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        for (n, byte) in buf.iter_mut().enumerate() {
            let at = (offset + n as u64).checked_sub(self.at);
            let at = at.and_then(|at| usize::try_from(at).ok());
            *byte = at.and_then(|at| self.data.get(at)).copied().unwrap_or(0);
        }
        Ok(buf.len())
    }

    fn data_after(&self, offset: u64, _min_hole: u64, end: u64) -> Range<u64> {
        let data_end = self.at + self.data.len() as u64;
        if offset >= data_end {
            end..end
        } else {
            offset.max(self.at)..data_end
        }
    }
}

/// Regression: a file with one block at its end was sent with all its zeros.
#[test]
fn holes_of_a_file_are_not_sent() {
    const SIZE: u64 = 1 << 40;
    for (userland, host) in Host::plain() {
        if !host.shell.facts().can_take_holes {
            continue;
        }
        for at in [0, SIZE / 2 + 12_345, SIZE - 4] {
            let sparse = Sparse { data: b"data", at };
            let mut plan = UploadSpec {
                size: SIZE,
                expect: Expect::Absent,
                ..upload_spec(b"")
            };
            plan.mtime.nanos = 0;
            let sent = host.world.meter.bytes_written();
            host.shell.upload(&path("file"), &sparse, &plan).unwrap();
            let sent = host.world.meter.bytes_written() - sent;
            // Each further connection receives the helper functions, which count as sent.
            assert!(sent < 100_000, "{userland:?}: {sent}");
            let file = fs::File::open(host.at("file")).unwrap();
            let meta = file.metadata().unwrap();
            assert_eq!(meta.len(), SIZE, "{userland:?}");
            assert!(meta.blocks() < 1000, "{userland:?}: {}", meta.blocks());
            let mut data = [0; 4];
            file.read_exact_at(&mut data, at).unwrap();
            assert_eq!(&data, b"data", "{userland:?}");
            fs::remove_file(host.at("file")).unwrap();
        }
        let nothing = Sparse { data: b"", at: 0 };
        let mut plan = UploadSpec {
            size: SIZE,
            ..upload_spec(b"")
        };
        plan.mtime.nanos = 0;
        host.shell.upload(&path("file"), &nothing, &plan).unwrap();
        assert_eq!(
            fs::metadata(host.at("file")).unwrap().len(),
            SIZE,
            "{userland:?}"
        );
    }
}

/// A symlink that replaced the target is a conflict; the upload does not follow it.
#[test]
fn a_link_that_took_the_name_is_a_conflict_and_not_followed() {
    for (userland, host) in Host::plain() {
        fs::write(host.at("file"), "old").unwrap();
        let plan = host.plan_over(b"new");
        fs::remove_file(host.at("file")).unwrap();
        fs::write(host.beside("victim"), "victim").unwrap();
        symlink(host.beside("victim"), host.at("file")).unwrap();
        for placement in [Placement::Replace, Placement::InPlace, Placement::Direct] {
            let plan = UploadSpec {
                placement,
                ..plan.clone()
            };
            let result = host.upload(b"new", &plan);
            assert!(
                matches!(result, Err(Error::Conflict { .. })),
                "{userland:?}: {result:?}"
            );
        }
        assert_eq!(fs::read_to_string(host.beside("victim")).unwrap(), "victim");
    }
}
