//! Hosts that stop, and connections that break.

use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use scpfs_testing::or_skip;
use scpfs_testing::wait::wait_until;

use crate::Mounted;

#[test]
fn sixty_four_readers_of_a_stopped_host_do_not_delay_a_cached_stat() {
    let mounted = or_skip!(Mounted::new(&["-o", "cache_timeout=600,timeout=20"]));
    for n in 0..64 {
        fs::write(mounted.there(&format!("file{n}")), "content").unwrap();
    }
    fs::write(mounted.there("known"), "known").unwrap();
    fs::read(mounted.here("known")).unwrap();
    fs::metadata(mounted.here("file0")).unwrap();
    mounted.sshd.freeze_sessions();
    let readers: Vec<_> = (0..64)
        .map(|n| {
            let path = mounted.here(&format!("file{n}"));
            thread::spawn(move || fs::read(path))
        })
        .collect();
    // The attributes are cached, and must be returned while all readers wait for the host.
    let (told, answers) = mpsc::channel();
    let (known, other) = (mounted.here("known"), mounted.here("file63"));
    thread::spawn(move || {
        for _ in 0..100 {
            assert_eq!(fs::metadata(&other).unwrap().len(), 7);
            assert_eq!(fs::read(&known).unwrap(), b"known");
        }
        told.send(()).unwrap();
    });
    let answered = answers.recv_timeout(Duration::from_secs(15));
    assert!(
        readers.iter().any(|reader| !reader.is_finished()),
        "nobody waited"
    );
    mounted.sshd.thaw_sessions();
    assert!(
        answered.is_ok(),
        "what is known was not answered while others waited"
    );
    for reader in readers {
        assert_eq!(reader.join().unwrap().unwrap(), b"content");
    }
}

#[test]
fn no_call_waits_for_ever_and_the_mount_heals() {
    let mut mounted = or_skip!(Mounted::new(&["-o", "timeout=4,cache_timeout=1"]));
    mounted.put("file", "content");
    assert_eq!(fs::read(mounted.here("file")).unwrap(), b"content");
    mounted.sshd.freeze_sessions();
    thread::sleep(Duration::from_millis(1500));
    // All calls return, the later ones possibly over a new connection.
    for result in [
        fs::metadata(mounted.here("file")).map(drop),
        fs::read(mounted.here("other")).map(drop),
        fs::create_dir(mounted.here("dir")),
        fs::read_dir(mounted.here("")).map(drop),
    ] {
        let errno = result.err().and_then(|error| error.raw_os_error());
        let fine = [
            None,
            Some(libc::ENOENT),
            Some(libc::ETIMEDOUT),
            Some(libc::EHOSTUNREACH),
        ];
        assert!(fine.contains(&errno), "{errno:?}");
    }
    mounted.sshd.thaw_sessions();
    mounted.wait_until("the connection works again", |mounted| {
        fs::read(mounted.here("file")).is_ok_and(|data| data == b"content")
    });
    fs::write(mounted.here("file"), "healed").unwrap();
    assert_eq!(fs::read(mounted.there("file")).unwrap(), b"healed");
}

#[test]
fn a_connection_that_breaks_in_a_large_upload_leaves_the_old_file() {
    let mounted = or_skip!(Mounted::new(&["-o", "timeout=6"]));
    mounted.put("file", "old");
    let path = mounted.here("file");
    let writer = thread::spawn(move || fs::write(path, vec![7; 200 << 20]));
    // The temporary file shows that the upload has begun.
    let is_uploading = || fs::read_dir(mounted.there("")).unwrap().count() > 1;
    wait_until("the upload has begun", is_uploading);
    mounted.sshd.freeze_sessions();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(fs::read(mounted.there("file")).unwrap(), b"old");
    mounted.sshd.thaw_sessions();
    // Either the upload was delayed or it failed: the file is complete in both cases.
    drop(writer.join().unwrap());
    let data = fs::read(mounted.there("file")).unwrap();
    assert!(data == b"old" || data == vec![7; 200 << 20]);
}
