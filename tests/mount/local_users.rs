//! Attacks of other users of this machine on a mount of root.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::Mounted;
use crate::full_disk::Small;
use scpfs_testing::capability::Capability;
use scpfs_testing::capability::is_root;
use scpfs_testing::capability::skip;
use scpfs_testing::or_skip;

fn mounts_below(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    let dir = dir.to_str().unwrap();
    let below = points.filter(|point| point.starts_with(dir));
    below.map(str::to_owned).collect()
}

/// Regression: the owner of a directory above the mountpoint could replace it while root logged in:
/// the mount covered another directory and stayed there without a daemon, or the filesystem at the
/// mountpoint was unmounted.
#[test]
fn a_mountpoint_that_is_exchanged_during_the_login_is_not_mounted_elsewhere() {
    if !is_root() {
        return skip(Capability::Root, "root for a mount without fusermount3");
    }
    let mut mounted = or_skip!(Mounted::new(&[]));
    assert_eq!(mounted.unmount().code(), Some(0));
    let config = mounted.sshd.dir().join("sshd_config");
    let plain = fs::read_to_string(&config).unwrap();
    for exchange in [
        "mv way old; ln -s victim way",
        "mv way/point way/old; mkdir way/point",
        "mv way/point way/old",
        "mv way old; mv victim way",
    ] {
        let small = Small::new("1m");
        let base = fs::canonicalize(small.path()).unwrap();
        for dir in ["way/point", "victim/point"] {
            fs::create_dir_all(base.join(dir)).unwrap();
            fs::set_permissions(base.join(dir), fs::Permissions::from_mode(0o777)).unwrap();
        }
        fs::set_permissions(base.join("way"), fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(base.join("victim/point/file"), "precious").unwrap();
        // The host is this machine, and the login user owns the directory above the mountpoint.
        let script = base.join("forced");
        let text = format!(
            "#!/bin/sh\ncd '{}' && [ -e done ] || {{ {exchange}; : >done; }}\n\
             exec sh -c \"$SSH_ORIGINAL_COMMAND\"\n",
            base.display(),
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let forced = format!("ForceCommand {}\n{plain}", script.display());
        fs::write(&config, forced).unwrap();
        mounted.sshd.restart();
        let before = mounts_below(&base);
        assert_eq!(before.len(), 1, "the small filesystem itself");
        let output = mounted
            .command()
            .arg(format!("host:{}", mounted.there("").display()))
            .arg(base.join("way/point"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(base.join("done").exists(), "{exchange}: {said}");
        assert_eq!(output.status.code(), Some(5), "{exchange}: {said}");
        assert_eq!(mounts_below(&base), before, "{exchange}: {said}");
        let found = ["victim/point/file", "way/point/file"].map(|it| fs::read(base.join(it)));
        let is_there = found.iter().flatten().any(|data| data == b"precious");
        assert!(is_there, "{exchange}: {said}");
    }
}

/// Regression: escape sequences in names that other users chose were printed to the terminal.
#[test]
fn no_name_of_a_directory_reaches_the_terminal_as_it_is() {
    let mounted = or_skip!(Mounted::new(&[]));
    for command in ["status", "umount"] {
        let name = mounted.here("a\u{1b}]0;title\u{7}b");
        let output = mounted.control(&[command]).arg(name).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("\\x1b]0;title\\x07b"), "{said}");
    }
}
