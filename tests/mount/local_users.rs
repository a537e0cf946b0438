//! What other users of this machine can do to a mount of root.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::capability::Capability;
use crate::capability::is_root;
use crate::capability::skip;
use crate::mounted::Mounted;

fn mounts_below(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    let dir = dir.to_str().unwrap();
    let below = points.filter(|point| point.starts_with(dir));
    below.map(str::to_owned).collect()
}

/// Whoever owned a directory on the way to the mountpoint exchanged it while root logged in: the mount
/// went over a directory of his choice, and stayed there dead.
#[test]
fn a_mountpoint_that_is_exchanged_during_the_login_is_not_mounted_elsewhere() {
    if !is_root() {
        return skip(Capability::Root, "root for a mount without fusermount3");
    }
    let Some(mut mounted) = Mounted::new(&[]) else {
        return;
    };
    assert_eq!(mounted.unmount().code(), Some(0));
    let base = fs::canonicalize(mounted.here("..")).unwrap().join("theirs");
    for dir in ["way/point", "victim/point"] {
        fs::create_dir_all(base.join(dir)).unwrap();
    }
    fs::write(base.join("victim/point/file"), "precious").unwrap();
    // The host is this machine, and its user owns the directory on the way.
    let script = base.join("forced");
    let text = format!(
        "#!/bin/sh\ncd '{}' && [ -h way ] || {{ mv way old; ln -s victim way; }}\n\
         exec sh -c \"$SSH_ORIGINAL_COMMAND\"\n",
        base.display(),
    );
    fs::write(&script, text).unwrap();
    for (path, mode) in [(&script, 0o755), (&base, 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let config = mounted.sshd.dir().join("sshd_config");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(config, format!("ForceCommand {}\n{text}", script.display())).unwrap();
    mounted.sshd.restart();
    let output = mounted
        .command()
        .arg(format!("host:{}", mounted.there("").display()))
        .arg(base.join("way/point"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(base.join("way").is_symlink(), "{said}");
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert_eq!(mounts_below(&base), Vec::<String>::new(), "{said}");
    let victim = fs::read(base.join("victim/point/file")).unwrap();
    assert_eq!(victim, b"precious");
}

/// Names of other users' choice moved the cursor of whoever asked about them.
#[test]
fn no_name_of_a_directory_reaches_the_terminal_as_it_is() {
    let Some(mounted) = Mounted::new(&[]) else {
        return;
    };
    for command in ["status", "umount"] {
        let name = mounted.here("a\u{1b}]0;title\u{7}b");
        let output = mounted.control(&[command]).arg(name).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("\\x1b]0;title\\x07b"), "{said}");
    }
}
