#![cfg(test)]
//! Keys that may only run scp, by `command=` in `authorized_keys`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use scpfs::clock::SystemClock;
use scpfs::host;
use scpfs::host::Choice;
use scpfs::path::Name;
use scpfs::path::RemotePath;
use scpfs::remote::Error;
use scpfs::remote::Expect;
use scpfs::remote::Remote;
use scpfs::remote::Settings;
use scpfs::remote::UploadSpec;
use scpfs::ssh::Transport;
use scpfs::stat::Time;
use scpfs_testing::content::Buffer;
use scpfs_testing::content::bytes;
use scpfs_testing::or_skip;
use scpfs_testing::samples;
use scpfs_testing::samples::upload_spec;
use scpfs_testing::sshd::Options;
use scpfs_testing::sshd::Sshd;

use crate::script::unattended;

/// A server that runs this script for its key, whatever the client requests; the request is in
/// `$SSH_ORIGINAL_COMMAND`.
fn forced(script: &str) -> Option<Sshd> {
    let sshd = Sshd::start(Options::default())?;
    let wrapper = sshd.dir().join("wrapper");
    fs::write(&wrapper, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let keys = sshd.dir().join("authorized_keys");
    let key = fs::read_to_string(&keys).unwrap();
    fs::write(
        &keys,
        format!("restrict,command=\"{}\" {key}", wrapper.display()),
    )
    .unwrap();
    Some(sshd)
}

fn connect(sshd: &Sshd, timeout: u64) -> Result<Arc<dyn Remote>, host::Error> {
    let transport: Arc<dyn Transport> = Arc::new(unattended(sshd.settings()));
    let settings = Settings {
        max_connections: 4,
        timeout: Duration::from_secs(timeout),
        ..samples::settings("")
    };
    host::connect(
        transport,
        &settings,
        Choice::Auto,
        Arc::new(SystemClock::new()),
    )
}

const SCP_ONLY: &str = "case $SSH_ORIGINAL_COMMAND in 'scp -'*) ;; *) echo no >&2; exit 1;; esac
    eval \"exec $SSH_ORIGINAL_COMMAND\"";

#[test]
fn key_that_allows_only_scp_is_enough() {
    let sshd = or_skip!(forced(SCP_ONLY));
    let remote = connect(&sshd, 20).unwrap();
    let summary = &remote.facts().summary;
    assert!(summary.contains("no shell, with listings"), "{summary}");
    let dir = RemotePath::root().join(&Name::new(b"scp-only it's $(x)").unwrap());
    // An earlier run may have left the directory.
    let on_host = sshd.home().join("scp-only it's $(x)");
    fs::remove_dir_all(&on_host).unwrap_or_default();
    remote.make_dir(&dir, 0o750, None).unwrap();
    // Several uploads at once, over several connections; the large ones take many packets.
    thread::scope(|scope| {
        for n in 0u8..8 {
            let (remote, dir) = (&remote, &dir);
            scope.spawn(move || {
                let path = dir.join(&Name::new(&[b'a' + n]).unwrap());
                let data = vec![n; 1 << (2 * n + 7)];
                let time = Time {
                    secs: 1_700_000_000,
                    nanos: 0,
                };
                let plan = UploadSpec {
                    mtime: time,
                    atime: time,
                    expect: Expect::Absent,
                    ..upload_spec(&data)
                };
                let content = bytes(&data);
                let uploaded = remote.upload(&path, &content, &plan).unwrap();
                let version = uploaded.stat.unwrap().version();
                let mut got = Buffer::default();
                let fetched = remote.fetch(&path, Some(&version), &mut got).unwrap();
                assert!(fetched.is_stable && got.data == data, "{n}");
                let again = remote.upload(&path, &content, &plan);
                assert!(matches!(again, Err(Error::Conflict { .. })), "{again:?}");
            });
        }
    });
    assert_eq!(remote.list(&dir).unwrap().entries.len(), 8);
    assert_eq!(fs::read_dir(&on_host).unwrap().count(), 8);
    remote.close();
    fs::remove_dir_all(&on_host).unwrap();
}

#[test]
fn a_connection_that_died_is_replaced() {
    let sshd = or_skip!(forced(SCP_ONLY));
    let remote = connect(&sshd, 20).unwrap();
    for n in 0..3 {
        remote.stat(&RemotePath::root()).unwrap();
        sshd.kill_sessions();
        let listing = remote.list(&RemotePath::root());
        assert!(listing.is_ok(), "{n}: {listing:?}");
    }
}

#[test]
fn key_that_allows_no_scp_is_refused_with_its_output() {
    for (script, words) in [
        ("echo only rsync here; exit 1", &["only rsync here"][..]),
        ("exec scp -t .", &["can only receive files"]),
        ("echo hello; eval \"$SSH_ORIGINAL_COMMAND\"; exit 1", &[]),
    ] {
        let sshd = or_skip!(forced(script));
        match connect(&sshd, 8) {
            // Output before the start of a shell does not matter.
            Ok(remote) => assert!(words.is_empty(), "{}", remote.facts().summary),
            Err(error) => {
                let text = error.to_string();
                assert!(!words.is_empty(), "{text}");
                for word in words {
                    assert!(text.contains(word), "{text}");
                }
            }
        }
    }
}
