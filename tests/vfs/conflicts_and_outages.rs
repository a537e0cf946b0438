//! Conflicts, outages and write-back: no content is lost, and no version of others is overwritten
//! unnoticed.

use std::fs;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use scpfs::cache::ConflictPolicy;
use scpfs::cache::RecoveryOutcome;
use scpfs::remote::Expect;
use scpfs::remote::UploadSpec;
use scpfs::remote::retry::Retry;
use scpfs::sync::Mutex;
use scpfs::vfs::Ino;
use scpfs::vfs::OpenFlags;
use scpfs::vfs::SetAttr;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::Setup;
use scpfs_testing::wait::wait_until;

use crate::faulty::Cut;
use crate::faulty::Faulty;
use crate::faulty::Unheard;

fn fates(mount: &Mount) -> Vec<(String, String)> {
    let fate = |fate: &RecoveryOutcome| match fate {
        RecoveryOutcome::Uploaded => "uploaded".to_owned(),
        RecoveryOutcome::AlreadyOnHost => "was uploaded".to_owned(),
        RecoveryOutcome::Recreated => "recreated".to_owned(),
        RecoveryOutcome::ConflictCopy(path) => format!("beside {path}"),
        RecoveryOutcome::NeedsDecision { why, .. } => format!("kept: {why}"),
        RecoveryOutcome::NextMount { why, .. } => format!("later: {why}"),
    };
    let all = mount.recovered.iter();
    all.map(|one| (one.path.to_string(), fate(&one.outcome)))
        .collect()
}

#[test]
fn write_after_a_conflict_goes_to_the_conflict_copy() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "base").unwrap();
    let first = mount.open("file", libc::O_RDWR).unwrap();
    let second = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, first.fh, 0, b"ours").unwrap();
    fs::write(mount.at("file"), "theirs").unwrap();
    assert_eq!(
        mount.vfs.fsync(&CX, first.fh).unwrap_err().errno(),
        libc::ESTALE
    );
    // Later writes go to the conflict copy, and both writers get ESTALE.
    mount.vfs.write(&CX, second.fh, 4, b", more").unwrap();
    for opened in [&first, &second] {
        assert_eq!(mount.close(opened).unwrap_err().errno(), libc::ESTALE);
    }
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"theirs");
    let beside = mount.beside("file");
    assert_eq!(fs::read(mount.at(&beside)).unwrap(), b"ours, more");
    assert_eq!(mount.read("file").unwrap(), b"theirs");
    // After the last close, the file and its conflict copy are ordinary files.
    mount.write("file", b"new").unwrap();
    mount.write(&beside, b"newer").unwrap();
    assert_eq!(mount.names("").unwrap(), ["file", &beside]);
    assert!(mount.vfs.drain().is_empty());
}

#[test]
fn equal_content_written_by_others_is_no_conflict() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "base").unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"same").unwrap();
    fs::write(mount.at("file"), "same").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(mount.names("").unwrap(), ["file"]);
}

#[test]
fn close_recreates_a_file_that_others_removed() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "base").unwrap();
    fs::write(mount.at("seen"), "base").unwrap();
    // `file` is written to before it is removed, `seen` after the mount has noticed its removal.
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    let seen = mount.open("seen", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
    fs::remove_file(mount.at("file")).unwrap();
    fs::remove_file(mount.at("seen")).unwrap();
    mount.age();
    assert_eq!(
        mount.names("").unwrap(),
        ["file"],
        "ours is not uploaded yet"
    );
    mount.vfs.write(&CX, seen.fh, 0, b"gone").unwrap();
    mount.close(&opened).unwrap();
    mount.close(&seen).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"ours");
    assert_eq!(fs::read(mount.at("seen")).unwrap(), b"gone");
    assert_eq!(mount.read("seen").unwrap(), b"gone");
}

#[test]
fn close_does_not_overwrite_a_file_that_took_the_name() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "base").unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    fs::write(mount.at("other"), "theirs").unwrap();
    fs::rename(mount.at("other"), mount.at("file")).unwrap();
    mount.age();
    assert_eq!(mount.read("file").unwrap(), b"theirs");
    mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
    assert_eq!(mount.close(&opened).unwrap_err().errno(), libc::ESTALE);
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"theirs");
    let beside = mount.beside("file");
    assert_eq!(fs::read(mount.at(&beside)).unwrap(), b"ours");
    assert_eq!(mount.read("file").unwrap(), b"theirs");
}

#[test]
fn conflict_policy_can_be_to_overwrite_or_to_fail() {
    for conflicts in [ConflictPolicy::Overwrite, ConflictPolicy::Fail] {
        let mount = Mount::set_up(Setup {
            conflicts,
            ..Setup::default()
        });
        fs::write(mount.at("file"), "base").unwrap();
        let opened = mount.open("file", libc::O_RDWR).unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
        fs::write(mount.at("file"), "theirs").unwrap();
        let result = mount.close(&opened);
        if conflicts == ConflictPolicy::Overwrite {
            result.unwrap();
            assert_eq!(fs::read(mount.at("file")).unwrap(), b"ours");
        } else {
            assert_eq!(result.unwrap_err().errno(), libc::ESTALE);
            assert_eq!(fs::read(mount.at("file")).unwrap(), b"theirs");
            assert_eq!(mount.read("file").unwrap_err().errno(), libc::ESTALE);
            let opened = mount.open("file", libc::O_RDONLY).unwrap();
            assert_eq!(mount.vfs.read(&CX, opened.fh, 0, 9).unwrap(), b"ours");
        }
        assert_eq!(fs::read_dir(mount.world.root()).unwrap().count(), 1);
    }
}

#[test]
fn close_in_an_outage_uploads_when_the_host_is_back() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "old").unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
    mount.world.cut_off();
    assert_eq!(
        mount.vfs.flush(&CX, opened.fh).unwrap_err().errno(),
        libc::EIO
    );
    assert_eq!(
        mount.vfs.fsync(&CX, opened.fh).unwrap_err().errno(),
        libc::EIO
    );
    assert_eq!(mount.close(&opened).unwrap_err().errno(), libc::EIO);
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"old");
    mount.world.faults.lock().refuses = false;
    // The retry needs no further call: advancing the clock is enough.
    mount.clock.advance(Duration::from_secs(60));
    wait_until("the content is uploaded", || {
        fs::read(mount.at("file")).unwrap() == b"new"
    });
    assert!(mount.vfs.drain().is_empty());
    assert_eq!(mount.read("file").unwrap(), b"new");
}

#[test]
fn upload_of_unknown_outcome_is_no_conflict_later() {
    // The timestamps of the OpenWrt userland have a resolution of one second.
    for userland in [Userland::Gnu, Userland::OpenWrt] {
        uploads_after_a_lost_answer(userland);
    }
}

fn uploads_after_a_lost_answer(userland: Userland) {
    // The host carried out the upload, its answer was lost, and the retry could not reach the host.
    let cut = Arc::new(Cut::default());
    let fate = Arc::clone(&cut);
    let setup = Setup {
        around: Box::new(move |remote| Arc::new(Retry::new(Faulty::new(remote, fate)))),
        ..Setup::default()
    };
    let mount = Mount::on(Arc::new(World::new(userland)), setup);
    mount.clock.advance(Duration::from_micros(123_456));
    fs::write(mount.at("file"), "old").unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
    cut.is_due.store(true, Ordering::SeqCst);
    assert_eq!(
        mount.vfs.flush(&CX, opened.fh).unwrap_err().errno(),
        libc::EIO
    );
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"new");
    mount.vfs.write(&CX, opened.fh, 3, b"er").unwrap();
    cut.is_due.store(false, Ordering::SeqCst);
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"newer");
    assert_eq!(mount.names("").unwrap(), ["file"]);
}

#[test]
fn closed_content_is_uploaded_by_the_next_mount() {
    let mount = Mount::new();
    for name in ["file", "moved", "gone", "theirs"] {
        fs::write(mount.at(name), "old").unwrap();
    }
    mount.age();
    let mut opened = Vec::new();
    for name in ["file", "moved", "gone", "theirs"] {
        let one = mount.open(name, libc::O_RDWR).unwrap();
        mount.vfs.write(&CX, one.fh, 0, b"new").unwrap();
        opened.push(one);
    }
    let (_, born) = mount.create("born", libc::O_WRONLY).unwrap();
    mount.vfs.write(&CX, born.fh, 0, b"new").unwrap();
    opened.push(born);
    mount.rename("moved", "here").unwrap();
    mount.world.cut_off();
    for one in &opened {
        assert_eq!(mount.close(one).unwrap_err().errno(), libc::EIO);
    }
    let world = mount.crash();
    fs::remove_file(world.root().join("gone")).unwrap();
    fs::write(world.root().join("theirs"), "newer").unwrap();
    world.faults.lock().refuses = false;

    // Closed content was flushed to the local disk, so it survives a power failure.
    let mount = Mount::on(
        world,
        Setup {
            boot: "another boot",
            ..Setup::default()
        },
    );
    let mut found = fates(&mount);
    found.sort();
    let beside = mount.beside("theirs");
    let expected = [
        ("born", "uploaded"),
        ("file", "uploaded"),
        ("gone", "recreated"),
        ("here", "uploaded"),
        ("theirs", &format!("beside {beside}")),
    ];
    assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    for name in ["born", "file", "gone", "here", &beside] {
        assert_eq!(fs::read(mount.at(name)).unwrap(), b"new", "{name}");
    }
    assert_eq!(fs::read(mount.at("theirs")).unwrap(), b"newer");
    let mount = Mount::on(mount.crash(), Setup::default());
    assert!(mount.recovered.is_empty());
}

#[test]
fn content_that_was_not_closed_is_kept_and_never_uploaded() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "old and long").unwrap();
    let opened = mount.open("file", libc::O_WRONLY | libc::O_TRUNC).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"half").unwrap();
    let world = mount.crash();
    for _ in 0..2 {
        let mount = Mount::on(Arc::clone(&world), Setup::default());
        let [one] = &mount.recovered[..] else {
            panic!("{:?}", mount.recovered);
        };
        let RecoveryOutcome::NeedsDecision { file, .. } = &one.outcome else {
            panic!("{one}");
        };
        assert_eq!(fs::read(file).unwrap(), b"half");
        assert_eq!(mount.read("file").unwrap(), b"old and long");
        mount.crash();
    }
}

/// `rclone mount` with a write cache loses two of three writes that were flushed with fsync: after
/// `kill -9` it uploads an old copy over them.
#[test]
fn rclone_loses_two_of_three_fsynced_writes_after_kill_9() {
    let mount = Mount::new();
    fs::write(mount.at("log"), "").unwrap();
    let opened = mount.open("log", libc::O_RDWR).unwrap();
    for (n, line) in [b"one\n", b"two\n", b"3rd\n"].into_iter().enumerate() {
        mount.vfs.write(&CX, opened.fh, 4 * n as u64, line).unwrap();
        mount.vfs.fsync(&CX, opened.fh).unwrap();
    }
    let mount = Mount::on(mount.crash(), Setup::default());
    assert!(mount.recovered.is_empty(), "{:?}", mount.recovered);
    assert_eq!(mount.read("log").unwrap(), b"one\ntwo\n3rd\n");
    assert_eq!(fs::read(mount.at("log")).unwrap(), b"one\ntwo\n3rd\n");
}

/// `sshfs` writes through: if the connection breaks after `O_TRUNC` and the first of eight blocks,
/// a file of one block remains.
#[test]
fn sshfs_leaves_a_truncated_file_when_the_link_drops() {
    let mount = Mount::new();
    let old = vec![b'o'; 32 << 10];
    fs::write(mount.at("file"), &old).unwrap();
    let opened = mount.open("file", libc::O_WRONLY | libc::O_TRUNC).unwrap();
    for block in 0..8u64 {
        mount
            .vfs
            .write(&CX, opened.fh, block * 4096, &[b'n'; 4096])
            .unwrap();
        if block == 0 {
            mount.world.cut_off();
        }
    }
    assert_eq!(mount.close(&opened).unwrap_err().errno(), libc::EIO);
    assert_eq!(fs::read(mount.at("file")).unwrap(), old);
    let world = mount.crash();
    world.faults.lock().refuses = false;
    let mount = Mount::on(world, Setup::default());
    assert_eq!(fates(&mount), [("file".to_owned(), "uploaded".to_owned())]);
    assert_eq!(fs::read(mount.at("file")).unwrap(), vec![b'n'; 32 << 10]);
}

#[test]
fn two_mounts_and_a_writer_on_the_host_lose_no_closed_version() {
    let world = Arc::new(World::new(Userland::Gnu));
    for name in ["a", "b"] {
        fs::write(world.root().join(name), "base\n").unwrap();
    }
    let mounts: Vec<Mount> = (0..2)
        .map(|_| Mount::on(Arc::clone(&world), Setup::default()))
        .collect();
    let acknowledged = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (n, mount) in mounts.iter().enumerate() {
            let acknowledged = &acknowledged;
            scope.spawn(move || {
                for round in 0..20 {
                    mount.age();
                    let name = ["a", "b"][round % 2];
                    let opened = mount.open(name, libc::O_RDWR | libc::O_APPEND).unwrap();
                    let line = format!("mount {n} round {round:03}\n");
                    mount.vfs.write(&CX, opened.fh, 0, line.as_bytes()).unwrap();
                    match mount.close(&opened) {
                        Ok(()) => {}
                        // The content is in a conflict copy.
                        Err(error) => assert_eq!(error.errno(), libc::ESTALE, "{error}"),
                    }
                    acknowledged.lock().push(line);
                }
            });
        }
        scope.spawn(|| {
            for round in 0..40 {
                let path = world.root().join(["a", "b"][round % 2]);
                let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
                writeln!(file, "outside round {round:03}").unwrap();
                std::thread::sleep(Duration::from_millis(7));
            }
        });
    });
    let there: Vec<String> = fs::read_dir(world.root())
        .unwrap()
        .map(|item| fs::read_to_string(item.unwrap().path()).unwrap())
        .collect();
    for line in acknowledged.lock().iter() {
        assert!(there.iter().any(|text| text.contains(line)), "lost: {line}");
    }
    for text in &there {
        assert!(text.starts_with("base\n") && text.ends_with('\n'), "{text}");
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        let n_lines = lines.len();
        lines.dedup();
        assert_eq!(lines.len(), n_lines, "no mixture: {text}");
    }
    assert!(there.len() > 2, "there were conflicts");
    for mount in &mounts {
        assert!(mount.vfs.drain().is_empty());
    }
}

#[test]
fn write_fails_if_the_journal_cannot_be_written() {
    #[derive(Debug)]
    struct FullDisk;
    impl scpfs::cache::Steps for FullDisk {
        fn before(&self, step: scpfs::cache::Step) -> std::io::Result<()> {
            match step {
                scpfs::cache::Step::JournalPut => {
                    Err(std::io::Error::from_raw_os_error(libc::ENOSPC))
                }
                _ => Ok(()),
            }
        }
    }
    let mount = Mount::set_up(Setup {
        steps: Arc::new(FullDisk),
        ..Setup::default()
    });
    fs::write(mount.at("file"), "old").unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    let error = mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
    assert_eq!(mount.vfs.read(&CX, opened.fh, 0, 9).unwrap(), b"old");
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"old");
}

#[test]
fn close_with_writeback_fails_while_neither_disk_nor_host_takes_the_content() {
    // Regression: the second close succeeded although the journal recorded the file as still being
    // written.
    #[derive(Debug, Default)]
    struct FailsOnce(AtomicBool);
    impl scpfs::cache::Steps for FailsOnce {
        fn before(&self, step: scpfs::cache::Step) -> std::io::Result<()> {
            let is_due = step == scpfs::cache::Step::FlushContent;
            if is_due && self.0.swap(false, Ordering::SeqCst) {
                return Err(std::io::Error::from_raw_os_error(libc::ENOSPC));
            }
            Ok(())
        }
    }
    let steps = Arc::new(FailsOnce(AtomicBool::new(true)));
    let mount = Mount::set_up(Setup {
        writeback: Some(Duration::from_secs(60)),
        steps,
        ..Setup::default()
    });
    let (_, opened) = mount.create("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"content").unwrap();
    // The host cannot be reached either.
    mount.world.cut_off();
    for _ in 0..2 {
        let failed = mount.vfs.flush(&CX, opened.fh).unwrap_err();
        assert_eq!(failed.errno(), libc::EIO);
    }
    mount.close(&opened).unwrap_err();
    let setup = Setup {
        boot: "another boot",
        ..Setup::default()
    };
    let world = mount.crash();
    world.faults.lock().refuses = false;
    let mount = Mount::on(world, setup);
    assert_eq!(fates(&mount), [("file".to_owned(), "uploaded".to_owned())]);
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"content");
}

#[test]
fn close_with_writeback_does_not_wait_for_the_host_and_fsync_does() {
    let mount = Mount::set_up(Setup {
        writeback: Some(Duration::from_secs(5)),
        ..Setup::default()
    });
    mount.names("").unwrap();
    let (_, trips) = mount.counted(|| {
        for n in 0..20 {
            let flags = libc::O_WRONLY | libc::O_EXCL;
            let (_, opened) = mount.create(&format!("f{n}"), flags).unwrap();
            mount.vfs.write(&CX, opened.fh, 0, b"data").unwrap();
            mount.close(&opened).unwrap();
        }
        // A file that is written again before its upload starts is uploaded once.
        let opened = mount.open("f1", libc::O_RDWR).unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"DATA").unwrap();
        mount.close(&opened).unwrap();
    });
    assert_eq!(trips, 0);
    assert_eq!(fs::read_dir(mount.world.root()).unwrap().count(), 0);
    // A waiting file is renamed, another is removed, and a third is uploaded at once by fsync.
    mount.rename("f2", "renamed").unwrap();
    mount.vfs.unlink(&CX, Ino::ROOT, b"f3").unwrap();
    let opened = mount.open("f4", libc::O_RDWR).unwrap();
    mount.vfs.fsync(&CX, opened.fh).unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("f4")).unwrap(), b"data");
    assert!(!mount.at("f5").exists());
    mount.clock.advance(Duration::from_secs(6));
    wait_until("all files are on the host", || {
        fs::read_dir(mount.world.root()).unwrap().count() == 19
    });
    wait_until("nothing is left to upload", || mount.vfs.drain().is_empty());
    assert_eq!(fs::read(mount.at("f1")).unwrap(), b"DATA");
    assert_eq!(fs::read(mount.at("renamed")).unwrap(), b"data");
    assert!(!mount.at("f3").exists() && !mount.at("f2").exists());
}

#[test]
fn with_writeback_a_crash_loses_nothing_that_was_closed() {
    let setup = || Setup {
        writeback: Some(Duration::from_secs(3600)),
        ..Setup::default()
    };
    let mount = Mount::set_up(setup());
    fs::write(mount.at("old"), "old").unwrap();
    let opened = mount.open("old", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
    mount.close(&opened).unwrap();
    mount.write("born", b"new").unwrap();
    mount.write("removed", b"new").unwrap();
    mount.vfs.unlink(&CX, Ino::ROOT, b"removed").unwrap();
    let ino = mount.find("born").unwrap().ino;
    let set = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    mount.vfs.setattr(&CX, ino, None, &set).unwrap();
    let mount = Mount::on(
        mount.crash(),
        Setup {
            boot: "another boot",
            ..setup()
        },
    );
    let mut found = fates(&mount);
    found.sort();
    let uploaded = |name: &str| (name.to_owned(), "uploaded".to_owned());
    assert_eq!(found, [uploaded("born"), uploaded("old")]);
    for name in ["born", "old"] {
        assert_eq!(fs::read(mount.at(name)).unwrap(), b"new");
    }
    assert!(!mount.at("removed").exists());
}

#[test]
fn offline_shows_what_is_cached_however_old() {
    let mount = Mount::set_up(Setup {
        is_offline_ok: true,
        ..Setup::default()
    });
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("dir/file"), "content").unwrap();
    fs::write(mount.at("dir/never read"), "x").unwrap();
    assert_eq!(mount.read("dir/file").unwrap(), b"content");
    mount.age();
    mount.world.cut_off();
    for _ in 0..2 {
        mount.age();
        assert_eq!(mount.names("dir").unwrap(), ["file", "never read"]);
        assert_eq!(mount.read("dir/file").unwrap(), b"content");
        let missing = mount.find("dir/missing").unwrap_err();
        assert_eq!(missing.errno(), libc::ENOENT, "the listing was whole");
        let error = mount.read("dir/never read").unwrap_err();
        assert_ne!(error.errno(), libc::ENOENT, "{error}");
    }
    fs::write(mount.at("dir/file"), "changed").unwrap();
    mount.world.faults.lock().refuses = false;
    mount.clock.advance(Duration::from_secs(60));
    assert_eq!(mount.read("dir/file").unwrap(), b"changed");
}

#[test]
fn listing_older_than_an_upload_does_not_hide_the_file() {
    /// Delays the answer to a listing until `is_late` is cleared.
    #[derive(Debug)]
    struct Late {
        is_late: AtomicBool,
        is_listed: AtomicBool,
    }
    impl crate::faulty::Fate for Late {
        fn has_listed(&self) {
            self.is_listed.store(true, Ordering::SeqCst);
            wait_until("the listing may arrive", || {
                !self.is_late.load(Ordering::SeqCst)
            });
        }
    }
    let late = Arc::new(Late {
        is_late: AtomicBool::new(false),
        is_listed: AtomicBool::new(false),
    });
    let fate = Arc::clone(&late);
    let mount = Mount::set_up(Setup {
        around: Box::new(|remote| Faulty::around(remote, fate)),
        ..Setup::default()
    });
    mount.names("").unwrap();
    let (attr, opened) = mount.create("file", libc::O_WRONLY).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"first").unwrap();
    mount.age();
    late.is_listed.store(false, Ordering::SeqCst);
    late.is_late.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let lister = scope.spawn(|| mount.names("").unwrap());
        wait_until("it is listed", || late.is_listed.load(Ordering::SeqCst));
        mount.clock.advance(Duration::from_millis(1));
        mount.close(&opened).unwrap();
        late.is_late.store(false, Ordering::SeqCst);
        lister.join().unwrap();
    });
    // The kernel opens the file by its inode number, without a lookup.
    let opened = mount
        .vfs
        .open(
            &CX,
            attr.ino,
            OpenFlags::new(libc::O_WRONLY | libc::O_TRUNC).unwrap(),
        )
        .unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"second").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"second");
}

#[test]
fn open_of_a_removed_file_by_its_inode_fails() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "old").unwrap();
    let attr = mount.find("file").unwrap();
    fs::remove_file(mount.at("file")).unwrap();
    mount.age();
    assert!(mount.names("").unwrap().is_empty());
    for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC] {
        let error = mount
            .vfs
            .open(&CX, attr.ino, OpenFlags::new(flags).unwrap())
            .unwrap_err();
        assert_eq!(error.errno(), libc::ESTALE, "{flags:#x}");
    }
    // An unlinked file that is open stays readable, and can be opened again by its inode number.
    mount.write("file", b"content").unwrap();
    let attr = mount.find("file").unwrap();
    let opened = mount.open("file", libc::O_RDONLY).unwrap();
    mount.vfs.unlink(&CX, Ino::ROOT, b"file").unwrap();
    let again = mount
        .vfs
        .open(&CX, attr.ino, OpenFlags::new(libc::O_RDONLY).unwrap())
        .unwrap();
    assert_eq!(mount.vfs.read(&CX, again.fh, 0, 99).unwrap(), b"content");
    mount.close(&again).unwrap();
    mount.close(&opened).unwrap();
}

#[test]
fn change_of_unknown_outcome_invalidates_the_names() {
    let unheard = Arc::new(Unheard::default());
    let fate = Arc::clone(&unheard);
    let mount = Mount::set_up(Setup {
        around: Box::new(move |remote| Faulty::around(remote, fate)),
        ..Setup::default()
    });
    fs::write(mount.at("file"), "old").unwrap();
    fs::write(mount.at("file.new"), "new").unwrap();
    for name in ["file", "file.new"] {
        mount.read(name).unwrap();
    }
    mount.clock.advance(Duration::from_millis(1));
    unheard.0.store(true, Ordering::SeqCst);
    let error = mount.rename("file.new", "file").unwrap_err();
    assert_eq!(error.errno(), libc::EIO);
    let error = mount.create("born", libc::O_EXCL).unwrap_err();
    assert_eq!(error.errno(), libc::EIO);
    unheard.0.store(false, Ordering::SeqCst);
    // The host carried out both requests.
    let error = mount.create("born", libc::O_EXCL).unwrap_err();
    assert_eq!(error.errno(), libc::EEXIST);
    assert_eq!(mount.read("file").unwrap(), b"new");
    assert!(mount.find("file.new").is_err());
    for name in ["file", "born"] {
        let opened = mount.open(name, libc::O_RDWR).unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"newer").unwrap();
        mount.close(&opened).unwrap();
        assert_eq!(fs::read(mount.at(name)).unwrap(), b"newer");
    }
    assert_eq!(mount.names("").unwrap(), ["born", "file"]);
}

#[test]
fn a_file_that_may_have_been_uploaded_is_removed_on_the_host_as_well() {
    let unheard = Arc::new(Unheard::default());
    let fate = Arc::clone(&unheard);
    let mount = Mount::set_up(Setup {
        around: Box::new(move |remote| Faulty::around(remote, fate)),
        ..Setup::default()
    });
    for (name, is_uploaded) in [("uploaded", true), ("not uploaded", false)] {
        let (_, opened) = mount.create(name, libc::O_WRONLY).unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
        unheard.0.store(true, Ordering::SeqCst);
        mount.close(&opened).unwrap_err();
        unheard.0.store(false, Ordering::SeqCst);
        if !is_uploaded {
            fs::remove_file(mount.at(name)).unwrap();
        }
        mount.vfs.unlink(&CX, Ino::ROOT, name.as_bytes()).unwrap();
        assert!(!mount.at(name).exists());
        assert!(mount.find(name).is_err());
    }
    assert!(mount.vfs.drain().is_empty());
}

#[test]
fn upload_that_replaces_a_file_expects_its_version() {
    // If an upload is to replace any version, a delayed one overwrites a newer upload.
    #[derive(Debug, Default)]
    struct Plans(Mutex<Vec<Expect>>);
    impl crate::faulty::Fate for Plans {
        fn uploads(&self, plan: &UploadSpec) {
            self.0.lock().push(plan.expect);
        }
    }
    let plans = Arc::new(Plans::default());
    let fate = Arc::clone(&plans);
    let mount = Mount::set_up(Setup {
        around: Box::new(|remote| Faulty::around(remote, fate)),
        ..Setup::default()
    });
    fs::write(mount.at("file"), "old").unwrap();
    mount.find("file").unwrap();
    mount.write("file", b"new").unwrap();
    // O_TRUNC replaces a file that others have created meanwhile, and recreates one that they
    // removed.
    for is_there in [true, false] {
        let opened = mount.open("file", libc::O_WRONLY | libc::O_TRUNC).unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"newer").unwrap();
        fs::remove_file(mount.at("file")).unwrap();
        if is_there {
            fs::write(mount.at("file"), "somebody else's").unwrap();
        }
        mount.close(&opened).unwrap();
        assert_eq!(fs::read(mount.at("file")).unwrap(), b"newer");
    }
    let plans = plans.0.lock();
    assert!(
        plans.len() >= 3 && !plans.contains(&Expect::Anything),
        "{plans:?}"
    );
    assert_eq!(mount.names("").unwrap(), ["file"]);
}
