//! Recovery after a daemon was killed, on real mounts, and `scpfs recover`.

use std::fs;
use std::fs::File;
use std::io::Write as _;

use scpfs_testing::or_skip;

use crate::Mounted;
use crate::writer::Writer;

fn recover(mounted: &Mounted, words: &[&str]) -> String {
    let words = [&["recover"], words].concat();
    let output = mounted.control(&words).output().unwrap();
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(text).unwrap()
}

/// Kills the daemon, and waits until the mountpoint is free.
fn kill(mounted: &mut Mounted) {
    mounted.kill();
    mounted.wait_until("nothing is mounted", |mounted| !mounted.is_mounted());
}

#[test]
fn content_being_written_when_the_daemon_is_killed_is_kept() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    fs::write(mounted.here("file"), "the old content").unwrap();
    let writer = Writer::start(&mounted.here("file"), b"THE");
    let while_mounted = recover(&mounted, &[]);
    assert!(while_mounted.contains("being written"), "{while_mounted}");
    kill(&mut mounted);
    assert!(!writer.close().success(), "it hears of it");
    let listed = recover(&mounted, &[]);
    assert!(listed.contains("file: being written"), "{listed}");
    assert!(listed.contains("15 B"), "{listed}");
    mounted.start(&[]);
    assert_eq!(fs::read(mounted.here("file")).unwrap(), b"the old content");
    let log = mounted.log();
    assert!(
        log.contains("it was still being written when scpfs ended"),
        "{log}"
    );
    let listed = recover(&mounted, &["--list"]);
    assert!(
        listed.contains("file: kept, it was still being written"),
        "{listed}"
    );
    let id = listed
        .lines()
        .find_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .unwrap()
        .to_owned();
    let refused = recover(&mounted, &["--discard", &id]);
    assert!(refused.contains("unmount it first"), "{refused}");

    let saved = recover(
        &mounted,
        &["--save", mounted.aside("home").to_str().unwrap()],
    );
    let saved = saved.trim().rsplit_once(" is saved as ").unwrap().1;
    assert_eq!(fs::read(saved).unwrap(), b"THE old content");
    assert_eq!(mounted.unmount().code(), Some(0));
    let gone = recover(&mounted, &["--discard", &id[..6]]);
    assert_eq!(gone, format!("{id} is discarded\n"));
    let empty = recover(&mounted, &[]);
    assert!(empty.contains("nothing is left"), "{empty}");
    mounted.start(&[]);
    let log = mounted.log();
    assert_eq!(log.matches("left by an earlier mount").count(), 1, "{log}");
}

#[test]
fn waiting_uploads_are_uploaded_by_the_mount_after_a_kill() {
    let mut mounted = or_skip!(Mounted::new(&["-o", "writeback=600"]));
    fs::create_dir(mounted.here("dir")).unwrap();
    for n in 0..20 {
        let mut file = File::create(mounted.here(&format!("dir/f{n}"))).unwrap();
        writeln!(file, "content {n}").unwrap();
    }
    assert_eq!(fs::read_dir(mounted.there("dir")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(mounted.here("dir")).unwrap().count(), 20);
    kill(&mut mounted);
    mounted.start(&[]);
    // The mount shows the files at once; the uploads follow.
    assert_eq!(fs::read_dir(mounted.here("dir")).unwrap().count(), 20);
    for n in 0..20 {
        let content = fs::read_to_string(mounted.here(&format!("dir/f{n}"))).unwrap();
        assert_eq!(content, format!("content {n}\n"));
    }
    mounted.wait_until("everything is on the host", |mounted| {
        mounted
            .log()
            .contains("all files of earlier mounts are on the host now")
    });
    for n in 0..20 {
        let content = fs::read_to_string(mounted.there(&format!("dir/f{n}"))).unwrap();
        assert_eq!(content, format!("content {n}\n"));
    }
    let log = mounted.log();
    assert!(log.contains("20 files of earlier mounts"), "{log}");
}

#[test]
fn upload_temporaries_of_a_killed_mount_are_removed_and_no_others() {
    let mut mounted = or_skip!(Mounted::new(&["-o", "writeback=600"]));
    fs::write(mounted.here("file"), "content").unwrap();
    let listed = recover(&mounted, &[]);
    let id = listed
        .lines()
        .find_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .unwrap()
        .to_owned();
    kill(&mut mounted);
    // A temporary file, as a power failure of the host in the middle of the upload leaves it.
    let ours = mounted.there(&format!(".scpfs-{}00c0ffee.tmp", &id[8..]));
    let others = mounted.there(".scpfs-0123456789abcdef.tmp");
    fs::write(&ours, "half").unwrap();
    fs::write(&others, "half").unwrap();
    mounted.start(&[]);
    mounted.wait_until("the upload is done", |mounted| {
        mounted.there("file").exists()
    });
    assert_eq!(fs::read(mounted.there("file")).unwrap(), b"content");
    assert!(!ours.exists());
    assert!(others.exists());
}
