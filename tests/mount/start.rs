//! Errors at the start: each has its exit status, and its message says what to do.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use crate::Mounted;
use scpfs_testing::mounted::is_mounted;
use scpfs_testing::or_skip;

/// Runs a command that must fail; returns its exit status and stderr.
fn fails(command: &mut Command) -> (i32, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it did not fail: {said}");
    assert!(said.starts_with("scpfs: "), "{said:?}");
    (output.status.code().unwrap(), said)
}

#[track_caller]
fn expect(command: &mut Command, status: i32, words: &[&str]) {
    let (code, said) = fails(command);
    assert_eq!(code, status, "{said}");
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
}

fn scpfs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scpfs"));
    command
        .env("HOME", "/nonexistent")
        .args(["-F", "/dev/null"]);
    command
}

#[test]
fn wrong_usage_is_explained() {
    expect(&mut scpfs(), 1, &["usage: scpfs"]);
    expect(scpfs().arg("h:"), 1, &["no mountpoint"]);
    expect(scpfs().args(["/a", "/b"]), 1, &["[user@]host:[directory]"]);
    expect(
        scpfs().args(["-oProxyCommand=touch evil", "h:", "/a", "b"]),
        1,
        &["unexpected"],
    );
    expect(
        scpfs().args(["--", "-oProxyCommand=touch evil:", "/tmp"]),
        1,
        &["begin with `-`"],
    );
    expect(
        scpfs().args(["h:", "/tmp", "-o", "allow_othr"]),
        1,
        &["allow_othr", "--help"],
    );
    assert!(!Path::new("evil").exists());
}

#[test]
fn a_mountpoint_that_cannot_be_one_is_named_before_the_host_is_asked() {
    expect(
        scpfs().args(["h.invalid:", "/nonexistent/x"]),
        5,
        &["/nonexistent/x", "mkdir"],
    );
    expect(
        scpfs().args(["h.invalid:", "/etc/passwd"]),
        5,
        &["not a directory"],
    );
}

#[test]
fn a_host_that_cannot_be_reached_is_named() {
    let dir = tempfile::tempdir().unwrap();
    expect(
        scpfs().arg("host.invalid:").arg(dir.path()),
        2,
        &["host.invalid", "check the name"],
    );
    // No process listens on this port.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    expect(
        scpfs()
            .arg("127.0.0.1:")
            .arg(dir.path())
            .args(["-p", &port.to_string()]),
        2,
        &["127.0.0.1", &port.to_string(), "refused"],
    );
    // A server that accepts connections and sends nothing.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port().to_string();
    expect(
        scpfs()
            .arg("127.0.0.1:")
            .arg(dir.path())
            .args(["-p", &port, "-oConnectTimeout=1"]),
        2,
        &["127.0.0.1"],
    );
}

#[test]
fn mount_of_an_unusable_directory_says_why() {
    let mounted = or_skip!(Mounted::new(&[]));
    let point = mounted.aside("point");
    fs::create_dir(&point).unwrap();
    fs::write(mounted.there("file"), "").unwrap();
    let file = mounted.there("file");
    expect(
        mounted.command().arg("h:/no/such").arg(&point),
        7,
        &["/no/such"],
    );
    expect(
        mounted.command().arg("h:no\x1b[2Jsuch").arg(&point),
        7,
        &["\\x1b[2J"],
    );
    let source = format!("h:{}", file.display());
    expect(
        mounted.command().arg(source).arg(&point),
        7,
        &["not a directory"],
    );
    expect(
        mounted.command().arg("h:/root").arg(&point),
        7,
        &["/root", "does not let"],
    );
    expect(
        mounted.command().arg("h:").arg(mounted.here("")),
        5,
        &["mounted on", "already"],
    );
    assert!(!is_mounted(&point));
}

#[test]
fn a_host_key_that_is_not_the_known_one_is_refused() {
    let mounted = or_skip!(Mounted::new(&[]));
    let point = mounted.aside("point");
    fs::create_dir(&point).unwrap();
    let empty = mounted.aside("known_hosts");
    fs::write(&empty, "").unwrap();
    let option = format!("-oUserKnownHostsFile={}", empty.display());
    expect(
        mounted.command().arg(&option).arg("h:").arg(&point),
        3,
        &["accept-new", "SHA256:"],
    );
    let key = fs::read_to_string(mounted.sshd.client_key().with_extension("pub")).unwrap();
    let words: Vec<&str> = key.split_whitespace().collect();
    let port = mounted.sshd.port();
    let line = format!("[127.0.0.1]:{port} {} {}\n", words[0], words[1]);
    fs::write(&empty, line).unwrap();
    expect(
        mounted.command().arg(&option).arg("h:").arg(&point),
        3,
        &[&format!("{}:1", empty.display()), "ssh-keygen -R"],
    );
}

#[test]
fn refused_key_or_password_is_reported() {
    let mounted = or_skip!(Mounted::new(&[]));
    let point = mounted.aside("point");
    fs::create_dir(&point).unwrap();
    let config = fs::read_to_string(mounted.sshd.ssh_config()).unwrap();
    let key = mounted.sshd.client_key().display().to_string();
    let other = mounted.aside("other_config");
    fs::write(&other, config.replace(&key, "/nonexistent")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_scpfs"));
    command.env("HOME", "/nonexistent").arg("-F").arg(&other);
    command.args(["-oIdentityAgent=none", "-oBatchMode=yes"]);
    expect(command.arg("h:").arg(&point), 4, &["ssh-copy-id"]);
}

#[test]
fn a_mount_over_its_own_cache_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for cache in ["cache", "not/there/yet"] {
        let option = format!("-ocache_dir={}", dir.path().join(cache).display());
        let mut command = scpfs();
        expect(
            command.arg("h.invalid:").arg(dir.path()).arg(option),
            5,
            &["below the mountpoint", "cache_dir="],
        );
    }
}

#[test]
fn a_mount_over_the_keys_of_its_host_is_refused() {
    let mounted = or_skip!(Mounted::new(&[]));
    let point = mounted.aside("point");
    fs::create_dir(&point).unwrap();
    let known = point.join("known_hosts");
    fs::copy(mounted.sshd.known_hosts(), &known).unwrap();
    let option = format!("-oUserKnownHostsFile={}", known.display());
    let mut command = mounted.command();
    expect(
        command.arg(&option).arg("h:").arg(&point),
        5,
        &["below the mountpoint", &known.display().to_string()],
    );
}
