//! A host whose key is not that of the host that was mounted.

use std::fs;

use crate::Mounted;
use scpfs_testing::or_skip;
use scpfs_testing::sshd::Options;
use scpfs_testing::sshd::Sshd;

/// Neither checks nor remembers host keys, as is common for routers, virtual machines and tunnels.
const UNCHECKED: &str = "UserKnownHostsFile=/dev/null,StrictHostKeyChecking=no";

fn errno(result: std::io::Result<impl Sized>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn recover(mounted: &Mounted) -> String {
    let output = mounted.control(&["recover"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Tries to mount the same root again; returns the exit status and stderr.
fn try_to_mount(mounted: &Mounted, options: &str) -> (Option<i32>, String) {
    let output = mounted
        .command()
        .arg(format!("host:{}", mounted.there("").display()))
        .arg(mounted.here(""))
        .args(["-o", options])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[test]
fn waiting_upload_goes_to_no_host_with_another_key() {
    // Regression: the other host at the same address got the content, and `recover` reported that
    // nothing was left.
    let options = format!("{UNCHECKED},writeback=600");
    let mut mounted = or_skip!(Mounted::new(&["-o", &options]));
    fs::write(mounted.there("clean"), "of the first host").unwrap();
    fs::read(mounted.here("clean")).unwrap();
    fs::write(mounted.here("file"), "for the first host").unwrap();
    let expected = mounted.sshd.fingerprint("ed25519");
    assert!(mounted.log().contains("trusted on first use"));
    mounted.crash();
    mounted.sshd.become_another_host();
    let offered = mounted.sshd.fingerprint("ed25519");

    let (status, said) = try_to_mount(&mounted, UNCHECKED);
    assert_eq!(status, Some(3), "{said}");
    assert!(
        said.contains(&format!("expected ED25519 {expected}")),
        "{said}"
    );
    assert!(
        said.contains(&format!("offered ED25519 {offered}")),
        "{said}"
    );
    let accept = format!("accept_host_key={offered}");
    assert!(said.contains(&format!("-o {accept}:")), "{said}");
    assert!(
        !mounted.sshd.log().contains("Accepted"),
        "it was logged in to"
    );
    assert!(!mounted.is_mounted());
    assert!(!mounted.there("file").exists());
    let listed = recover(&mounted);
    assert!(listed.contains("file: to be uploaded"), "{listed}");
    assert!(listed.contains(&expected), "{listed}");
    // The option accepts only the key with that fingerprint.
    let (status, said) = try_to_mount(&mounted, &format!("{UNCHECKED},accept_host_key={expected}"));
    assert_eq!(status, Some(3), "{said}");

    mounted.forget_log();
    mounted.start(&["-o", &format!("{UNCHECKED},{accept}")]);
    let there = mounted.there("file");
    mounted.wait_until("the content is uploaded", |_| {
        fs::read(&there).is_ok_and(|data| data == b"for the first host")
    });
    assert_eq!(mounted.unmount().code(), Some(0));
    // From now on, the new key is the pinned key of this mount.
    mounted.start(&["-o", UNCHECKED]);
    assert_eq!(
        fs::read(mounted.here("clean")).unwrap(),
        b"of the first host"
    );
}

#[test]
fn another_path_of_the_root_has_the_same_pinned_key() {
    let mut mounted = or_skip!(Mounted::new(&["-o", UNCHECKED]));
    assert_eq!(mounted.unmount().code(), Some(0));
    mounted.sshd.become_another_host();
    let output = mounted
        .command()
        .arg(format!("host:{}/../host", mounted.there("").display()))
        .arg(mounted.here(""))
        .args(["-o", UNCHECKED])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("is not the one that this mount was made with"),
        "{said}"
    );
}

#[test]
fn pinned_key_type_is_requested_for_every_path_of_the_root() {
    let only_ecdsa = format!("{UNCHECKED},HostKeyAlgorithms=ecdsa-sha2-nistp256");
    let mut mounted = or_skip!(Mounted::new(&["-o", &only_ecdsa]));
    assert_eq!(mounted.unmount().code(), Some(0));
    for words in ["", "/../host"] {
        let mut daemon = mounted
            .command()
            .arg(format!("host:{}{words}", mounted.there("").display()))
            .arg(mounted.here(""))
            .args(["-o", UNCHECKED])
            .spawn()
            .unwrap();
        assert_eq!(daemon.wait().unwrap().code(), Some(0), "{words}");
        let unmounted = mounted
            .control(&["umount", mounted.here("").to_str().unwrap()])
            .output()
            .unwrap();
        assert_eq!(unmounted.status.code(), Some(0), "{unmounted:?}");
    }
}

#[test]
fn a_mount_that_meets_another_host_sends_nothing_and_heals_with_the_first() {
    let options = format!("{UNCHECKED},cache_timeout=0,writeback=600,timeout=10,offline=yes");
    let mut mounted = or_skip!(Mounted::new(&["-o", &options]));
    mounted.put("file", "first");
    assert_eq!(fs::read(mounted.here("file")).unwrap(), b"first");
    fs::write(mounted.here("pending"), "for the first host").unwrap();
    let (first, point) = (mounted.sshd.fingerprint("ed25519"), mounted.here(""));
    let keys = mounted.sshd.become_another_host();
    mounted.wait_until("calls fail", |mounted| {
        errno(fs::metadata(mounted.here("file"))) == Some(libc::EKEYREJECTED)
    });
    assert_eq!(
        errno(fs::read(mounted.here("file"))),
        Some(libc::EKEYREJECTED)
    );
    assert_eq!(errno(fs::read_dir(&point)), Some(libc::EKEYREJECTED));
    assert_eq!(
        errno(fs::create_dir(mounted.here("dir"))),
        Some(libc::EKEYREJECTED)
    );
    let status = mounted
        .control(&["status", point.to_str().unwrap()])
        .output()
        .unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains("connection  refused for"), "{status}");
    assert!(
        status.contains(&format!("expected ED25519 {first}")),
        "{status}"
    );
    let log = mounted.log();
    assert!(log.contains("connection refused: the host key of"), "{log}");
    assert!(
        !mounted.sshd.log().contains("Accepted"),
        "it was logged in to"
    );
    assert!(!mounted.there("pending").exists());
    assert!(!mounted.there("dir").exists());

    mounted.sshd.become_the_first_host(keys);
    mounted.wait_until("the connection works again", |mounted| {
        fs::read(mounted.here("file")).is_ok_and(|content| content == b"first")
    });
    fs::File::open(mounted.here("pending"))
        .unwrap()
        .sync_all()
        .unwrap();
    assert_eq!(
        fs::read(mounted.there("pending")).unwrap(),
        b"for the first host"
    );
}

#[test]
fn hosts_behind_one_address_are_told_apart_by_their_aliases() {
    let options = |alias: &str| format!("{UNCHECKED},HostKeyAlias={alias}");
    let mut mounted = or_skip!(Mounted::new(&["-o", &options("one")]));
    fs::write(mounted.here("file"), "one").unwrap();
    assert_eq!(mounted.unmount().code(), Some(0));
    mounted.sshd.become_another_host();
    mounted.start(&["-o", &options("two")]);
    assert_eq!(fs::read(mounted.here("file")).unwrap(), b"one");
    assert_eq!(mounted.unmount().code(), Some(0));
    let (status, said) = try_to_mount(&mounted, &options("one"));
    assert_eq!(status, Some(3), "{said}");
}

#[test]
fn a_host_behind_a_proxy_command_is_pinned_as_well() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let program = format!(
        "{UNCHECKED},ProxyCommand=ssh -F {} -o UserKnownHostsFile=/dev/null \
         -o StrictHostKeyChecking=no -W %h:%p jump",
        sshd.ssh_config().display()
    );
    let mut mounted = or_skip!(Mounted::on(sshd, &["-o", &program]));
    fs::write(mounted.here("file"), "content").unwrap();
    assert_eq!(mounted.unmount().code(), Some(0));
    mounted.sshd.become_another_host();
    let (status, said) = try_to_mount(&mounted, &program);
    assert_eq!(status, Some(3), "{said}");
}
