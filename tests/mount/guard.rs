//! Killed daemons: the guard process unmounts, and `scpfs umount` does if there is no guard
//! process.

use std::fs;
use std::path::Path;

use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;
use scpfs_testing::mounted::is_mounted;
use scpfs_testing::or_skip;

use crate::Mounted;

/// The guard process of a daemon: the only child with the name that a guard process sets for
/// itself.
fn guard_of(mounted: &mut Mounted) -> i32 {
    let daemon = mounted.pid();
    let mut guard = None;
    mounted.wait_until("the guard process runs", |_| {
        guard = find_guard(daemon);
        guard.is_some()
    });
    guard.unwrap()
}

fn find_guard(daemon: i32) -> Option<i32> {
    let parent = daemon.to_string();
    for item in fs::read_dir("/proc").unwrap().flatten() {
        let name = item.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some((command, fields)) = stat(pid)
            && command == "scpfs-guard"
            && fields[1] == parent
        {
            return Some(pid);
        }
    }
    None
}

/// The name of a process, and the fields after it in `/proc/PID/stat`: state, parent, ...
fn stat(pid: i32) -> Option<(String, Vec<String>)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (start, end) = text.rsplit_once(')')?;
    let command = start.split_once('(')?.1.to_owned();
    let fields = end.split_whitespace().map(str::to_owned).collect();
    Some((command, fields))
}

/// Whether a process has ended; a zombie counts as ended.
fn has_ended(pid: i32) -> bool {
    stat(pid).is_none_or(|(_, fields)| fields[0] == "Z")
}

fn socket_of(daemon: i32) -> String {
    format!("/run/scpfs/{daemon}.sock")
}

#[test]
fn a_daemon_that_is_killed_leaves_a_plain_directory() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    fs::write(mounted.here("file"), "content").unwrap();
    // The mount is in use: as a working directory, and by an open file.
    let open = fs::File::open(mounted.here("file")).unwrap();
    let daemon = mounted.pid();
    let guard = guard_of(&mut mounted);
    // The guard process is a session leader, and only a pipe is open in it.
    assert_eq!(stat(guard).unwrap().1[3], guard.to_string());
    let fds = fs::read_dir(format!("/proc/{guard}/fd")).unwrap();
    let open_files: Vec<_> = fds
        .map(|fd| fs::read_link(fd.unwrap().path()).unwrap())
        .filter(|target| target != Path::new("/dev/null"))
        .collect();
    assert_eq!(open_files.len(), 1, "{open_files:?}");
    assert!(Path::new(&socket_of(daemon)).exists());
    mounted.kill();
    mounted.wait_until("the mountpoint is cleared", |mounted| !mounted.is_mounted());
    assert_eq!(fs::read_dir(mounted.here("")).unwrap().count(), 0);
    fs::write(mounted.here("local"), "").unwrap();
    fs::remove_file(mounted.here("local")).unwrap();
    mounted.wait_until("the guard has ended", |_| has_ended(guard));
    assert!(!Path::new(&socket_of(daemon)).exists());
    drop(open);
    mounted.start(&[]);
    assert_eq!(fs::read(mounted.here("file")).unwrap(), b"content");
    // The lock of the killed daemon does not block the next one.
    let caches = fs::read_dir(mounted.aside("home/.cache/scpfs")).unwrap();
    assert_eq!(caches.count(), 1);
}

#[test]
fn guard_ends_with_the_mount_and_survives_signals_to_the_daemon() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    let guard = guard_of(&mut mounted);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(Pid::from_raw(guard).unwrap(), signal).unwrap();
    }
    fs::write(mounted.here("file"), "content").unwrap();
    assert!(!has_ended(guard));
    assert_eq!(mounted.unmount().code(), Some(0));
    // The daemon waits for the guard process up to a deadline, and may end before it.
    mounted.wait_until("the guard has ended", |_| has_ended(guard));
    mounted.start(&[]);
}

#[test]
fn mount_over_a_killed_one_is_left_alone() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    let guard = guard_of(&mut mounted);
    let point = mounted.aside("mnt");
    let run = |program: &str, args: &[&str]| {
        let mut command = std::process::Command::new(program);
        assert!(command.args(args).arg(&point).status().unwrap().success());
    };
    run("mount", &["-t", "tmpfs", "none"]);
    mounted.kill();
    mounted.wait_until("the guard has ended", |_| has_ended(guard));
    fs::write(mounted.here("theirs"), "").unwrap();
    run("umount", &[]);
    let output = mounted
        .control(&["umount", point.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!mounted.is_mounted());
}

#[test]
fn a_mount_whose_parent_was_renamed_is_found_and_ended() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    let (old, new) = (mounted.aside("parent"), mounted.aside("other"));
    fs::create_dir_all(old.join("point")).unwrap();
    let source = format!("h:{}", mounted.there("").display());
    for way in ["umount", "kill"] {
        let mut mount = mounted.command();
        mount.arg(&source).arg(old.join("point"));
        assert!(mount.status().unwrap().success());
        fs::rename(&old, &new).unwrap();
        let point = new.join("point");
        let words = ["status", "--json", point.to_str().unwrap()];
        let output = mounted.control(&words).output().unwrap();
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let status = &document["mounts"][0];
        assert_eq!(status["mountpoint"], point.to_str().unwrap());
        if way == "umount" {
            let words = ["umount", point.to_str().unwrap()];
            assert!(mounted.control(&words).status().unwrap().success());
        } else {
            let daemon = i32::try_from(status["pid"].as_u64().unwrap()).unwrap();
            kill_process(Pid::from_raw(daemon).unwrap(), Signal::KILL).unwrap();
        }
        mounted.wait_until("it is gone", |_| !is_mounted(&point));
        fs::rename(&new, &old).unwrap();
    }
}

#[test]
fn a_dead_mount_without_a_guard_is_cleared_by_umount() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    let guard = guard_of(&mut mounted);
    let socket = socket_of(mounted.pid());
    kill_process(Pid::from_raw(guard).unwrap(), Signal::KILL).unwrap();
    mounted.kill();
    let error = fs::read_dir(mounted.here("")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    let point = mounted.aside("mnt");
    let point = point.to_str().unwrap();
    let output = mounted.control(&["status", point]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(
        said.contains("dead mount") && said.contains("scpfs umount"),
        "{said}"
    );
    let output = mounted.control(&["umount", point]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("was dead"), "{said}");
    assert!(!mounted.is_mounted());
    assert!(!Path::new(&socket).exists(), "the stale socket is left");
    mounted.start(&[]);
}
