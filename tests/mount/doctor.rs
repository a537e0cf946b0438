//! `scpfs doctor`: its report, and its exit status, which is that of a mount.

use std::process::Command;
use std::process::Stdio;

use scpfs_testing::or_skip;
use scpfs_testing::sshd::Options;
use scpfs_testing::sshd::Sshd;

fn doctor(sshd: &Sshd, words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_scpfs"))
        .env("HOME", "/nonexistent")
        .arg("doctor")
        .arg("-F")
        .arg(sshd.ssh_config())
        .args(words)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn doctor_reports_what_a_mount_would_find() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let (status, said) = doctor(&sshd, &["host"]);
    assert_eq!(status, Some(0), "{said}");
    for word in [
        "logged in to 127.0.0.1 port",
        "GNU tools",
        "round trip",
        "upload a file              full",
        "A mount would work.",
    ] {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    let (status, said) = doctor(&sshd, &["host:/no/such/directory"]);
    assert_eq!(status, Some(7), "{said}");
    assert!(said.contains("A mount would fail."), "{said}");
    let (status, said) = doctor(&sshd, &["host", "-o", "Port=1"]);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("Connection refused"), "{said}");
    let keyless = ["host", "-o", "PubkeyAuthentication=no"];
    let (status, said) = doctor(&sshd, &keyless);
    assert_eq!(status, Some(4), "{said}");
    assert!(said.contains("ssh-add -l"), "{said}");
    let (status, said) = doctor(&sshd, &["host", "/mnt"]);
    assert_eq!(status, Some(1), "{said}");
}

#[test]
fn doctor_reports_what_scp_alone_cannot_do() {
    let force = r#"ForceCommand case "$SSH_ORIGINAL_COMMAND" in "scp "*" -f "*|"scp "*" -t "*) eval "exec $SSH_ORIGINAL_COMMAND";; esac; exit 1"#;
    let sshd = or_skip!(Sshd::start(Options::default().line(force)));
    let (status, said) = doctor(&sshd, &["host"]);
    assert_eq!(status, Some(0), "{said}");
    for word in [
        "scp and no shell",
        "rename                     impossible: not part of SCP",
        "upload a file              limited: in place",
        "A mount would work.",
    ] {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
}
