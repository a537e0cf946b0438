//! All ways in which a mount can end.

use std::fs;
use std::fs::File;
use std::io::Write as _;
use std::process::Command;

use rustix::process::Signal;
use scpfs_testing::mounted::is_mounted;
use scpfs_testing::mounted::unmount;
use scpfs_testing::or_skip;

use crate::Mounted;

#[test]
fn every_way_to_unmount_ends_the_daemon_in_order() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    for way in ["TERM", "INT", "umount", "fusermount3"] {
        fs::write(mounted.here("file"), way).unwrap();
        match way {
            "TERM" => mounted.signal(Signal::TERM),
            "INT" => mounted.signal(Signal::INT),
            "umount" => unmount(&mounted.here("")),
            _ => {
                let mut command = Command::new("fusermount3");
                assert!(
                    command
                        .arg("-u")
                        .arg(mounted.here(""))
                        .status()
                        .unwrap()
                        .success()
                );
            }
        }
        let status = mounted.wait();
        assert_eq!(status.code(), Some(0), "{way}: {}", mounted.log());
        assert!(!mounted.is_mounted(), "{way}");
        assert_eq!(fs::read_to_string(mounted.there("file")).unwrap(), way);
        mounted.start(&[]);
        assert_eq!(fs::read_to_string(mounted.here("file")).unwrap(), way);
    }
}

#[test]
fn sigterm_uploads_open_dirty_files() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    let mut file = File::create(mounted.here("file")).unwrap();
    file.write_all(b"not closed").unwrap();
    let status = mounted.unmount();
    assert_eq!(status.code(), Some(0), "{}", mounted.log());
    assert!(!mounted.is_mounted());
    assert_eq!(fs::read(mounted.there("file")).unwrap(), b"not closed");
    drop(file);
    mounted.start(&[]);
}

#[test]
fn another_mount_that_took_the_place_is_left_alone() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    let point = mounted.here("");
    unmount(&point);
    let tmpfs = Command::new("mount")
        .args(["-t", "tmpfs", "none"])
        .arg(&point)
        .status()
        .unwrap();
    assert!(tmpfs.success());
    let status = mounted.wait();
    let is_there = is_mounted(&mounted.aside("mnt"));
    Command::new("umount").arg(&point).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(is_there, "somebody else's mount was taken off");
    mounted.start(&[]);
}

#[test]
fn background_mount_is_ready_when_the_command_returns() {
    let mounted = or_skip!(Mounted::new(&[]));
    let point = mounted.aside("point");
    fs::create_dir(&point).unwrap();
    fs::write(mounted.there("file"), "hello").unwrap();
    let source = format!("h:{}", mounted.there("").display());
    let output = mounted.command().arg(source).arg(&point).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(fs::read(point.join("file")).unwrap(), b"hello");
    let line = mount_line(&point);
    assert!(
        line.contains("fuse.scpfs") && line.contains("nosuid,nodev"),
        "{line}"
    );
    unmount(&point);
}

#[test]
fn options_reach_the_mount() {
    let options = "ro,fsname=a\\,b,allow_other,default_permissions,noexec,umask=077,_netdev";
    let mounted = or_skip!(Mounted::new(&["-o", options]));
    let line = mount_line(&mounted.aside("mnt"));
    for word in [
        "ro,",
        "noexec",
        "allow_other",
        "default_permissions",
        " a,b ",
    ] {
        assert!(line.contains(word), "no `{word}` in {line}");
    }
    fs::write(mounted.there("file"), "x").unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(mounted.here("file")).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    let error = fs::write(mounted.here("new"), "x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}

#[test]
fn contents_are_kept_across_mounts_and_two_mounts_do_not_share_them() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    fs::write(mounted.there("file"), vec![b'x'; 100_000]).unwrap();
    fs::read(mounted.here("file")).unwrap();
    mounted.unmount();
    mounted.start(&[]);
    let cache = mounted.aside("home/.cache/scpfs");
    let n_dirs = || fs::read_dir(&cache).unwrap().count();
    assert_eq!(n_dirs(), 1);
    let kept = fs::read_dir(&cache)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path()
        .join("content");
    assert_eq!(fs::read_dir(kept).unwrap().count(), 1);
    let point = mounted.aside("point");
    fs::create_dir(&point).unwrap();
    let source = format!(
        "host:{}",
        mounted
            .there("")
            .display()
            .to_string()
            .trim_end_matches('/')
    );
    assert!(
        mounted
            .command()
            .arg(source)
            .arg(&point)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(fs::read(point.join("file")).unwrap().len(), 100_000);
    assert_eq!(n_dirs(), 2);
    unmount(&point);
}

#[test]
fn no_descriptor_is_left_behind() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    mounted.sh("echo x > file; cat file > /dev/null; ls -la > /dev/null");
    let before = mounted.n_descriptors();
    mounted.sh("for n in $(seq 50); do echo $n > f$n; cat f$n; rm f$n; done > /dev/null");
    // The mount may open more connections for requests that had to wait. RELEASE of the last file
    // follows after close() has returned.
    mounted.wait_until("no more descriptors are open than before", |mounted| {
        mounted.n_descriptors() <= before + 4
    });
}

fn mount_line(point: &std::path::Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let wanted = point.to_str().unwrap();
    mounts
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some(wanted))
        .unwrap()
        .to_owned()
}

/// A container, or a service with private mounts, copies all mounts into its mount namespace.
#[test]
fn daemon_ends_although_another_namespace_has_a_copy_of_the_mount() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    fs::write(mounted.here("file"), "content").unwrap();
    // The copy of each mount of another test is unmounted, so that it does not keep that mount
    // busy.
    let script = r#"
        sed -n 's/^\([^ ]* \)\{4\}\([^ ]*\) .* - fuse\.scpfs .*/\2/p' /proc/self/mountinfo |
            while read -r copy; do [ "$copy" = "$1" ] || umount -l "$copy"; done
        exec sleep 100"#;
    let mut other = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .args(["sh", "-c", script, "sh"])
        .arg(mounted.aside("mnt"))
        .spawn()
        .unwrap();
    // `unshare` copies the mounts at its start; when the shell has become `sleep`, the other copies
    // are unmounted.
    let comm = format!("/proc/{}/comm", other.id());
    mounted.wait_until("the copy is there", |_| {
        fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n")
    });
    let status = mounted.unmount();
    let ended = status.code();
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(ended, Some(0), "{}", mounted.log());
    assert!(mounted.log().contains("still in use"), "{}", mounted.log());
    assert_eq!(fs::read(mounted.there("file")).unwrap(), b"content");
}
