//! Full disks of the host and of the cache.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use scpfs::clock::SystemClock;
use scpfs_testing::capability::is_root;
use scpfs_testing::or_skip;
use scpfs_testing::proxy::Proxy;
use scpfs_testing::sshd::Options;
use scpfs_testing::sshd::Sshd;

use crate::Mounted;

/// A small tmpfs; unmounted on drop.
pub(crate) struct Small(tempfile::TempDir);

impl Small {
    pub(crate) fn new(size: &str) -> Self {
        Self::with_mode(size, "777")
    }

    /// A tmpfs for a cache: only its owner may write to it.
    fn private(size: &str) -> Self {
        Self::with_mode(size, "700")
    }

    fn with_mode(size: &str, mode: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("scpfs-small-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let option = format!("size={size},mode={mode}");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &option, "none"])
            .arg(dir.path());
        assert!(mount.status().unwrap().success());
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ended = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_host_is_enospc_at_close_and_the_old_file_is_untouched() {
    if !is_root() {
        return;
    }
    // Mounted before the server starts, because the server has a mount namespace of its own.
    let small = Small::new("1m");
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mut mounted = or_skip!(Mounted::on(sshd, &[]));
    let point = mounted.also(small.path(), &[]);
    fs::write(point.join("file"), "old content").unwrap();
    for size in [1_200_000, 3_000_000] {
        let script =
            format!("head -c {size} /dev/urandom > $ASIDE/big; cp $ASIDE/big $ASIDE/point/file");
        let output = Command::new("sh")
            .args(["-c", &script])
            .env("ASIDE", mounted.aside(""))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("No space left on device"), "{said}");
        assert_eq!(fs::read(small.path().join("file")).unwrap(), b"old content");
        // The retry in the background creates a temporary file as well.
        mounted.wait_until("no temporary file is left", |_| {
            fs::read_dir(small.path()).unwrap().count() == 1
        });
        // The mount keeps the new content, which is uploaded once it fits.
        assert_eq!(fs::metadata(point.join("file")).unwrap().len(), size);
    }
    fs::write(point.join("file"), "short").unwrap();
    assert_eq!(fs::read(small.path().join("file")).unwrap(), b"short");
    point.unmount();
}

/// Regression: a file of 700 kB on a disk of 1 MB could be neither appended to nor replaced,
/// because a second copy had no room.
#[test]
fn a_file_that_has_no_room_for_a_second_copy_is_uploaded_in_place() {
    if !is_root() {
        return;
    }
    let small = Small::new("1m");
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mounted = or_skip!(Mounted::on(sshd, &[]));
    let point = mounted.also(small.path(), &[]);
    let there = small.path().join("file");
    let mut content = vec![b'x'; 700_000];
    fs::write(&there, &content).unwrap();
    // The login user of the server is not root.
    fs::set_permissions(&there, fs::Permissions::from_mode(0o666)).unwrap();
    let here = point.join("file");
    let mut file = fs::OpenOptions::new().append(true).open(&here).unwrap();
    file.write_all(b"ten bytes.").unwrap();
    file.sync_all().unwrap();
    drop(file);
    content.extend_from_slice(b"ten bytes.");
    assert!(fs::read(&there).unwrap() == content);
    let other = vec![b'y'; 650_000];
    fs::write(&here, &other).unwrap();
    assert!(fs::read(&there).unwrap() == other);
    assert!(fs::read(&here).unwrap() == other);
    // Content that does not fit even in place is refused, and the old content stays.
    let mut file = fs::File::create(&here).unwrap();
    file.write_all(&vec![b'z'; 1_500_000]).unwrap();
    let error = file.sync_all().unwrap_err();
    drop(file);
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(fs::read(&there).unwrap() == other);
    fs::write(&here, "short").unwrap();
    assert_eq!(fs::read(&there).unwrap(), b"short");
    assert_eq!(fs::read_dir(small.path()).unwrap().count(), 1);
    point.unmount();
}

/// Writes and closes a file; returns the errno of `close()`, which waits for the upload, and its
/// duration.
fn upload(path: &Path, size: usize) -> (Option<i32>, Duration) {
    let clock = SystemClock::new();
    let mut file = fs::File::create(path).unwrap();
    file.write_all(&vec![7; size]).unwrap();
    let result = file.sync_all();
    (
        result.err().and_then(|error| error.raw_os_error()),
        clock.elapsed(),
    )
}

#[test]
fn a_large_file_that_does_not_fit_on_the_host_is_enospc_at_once() {
    // Regression: the error was EIO after the whole deadline, because a write waited for the window
    // of a channel whose program had ended.
    if !is_root() {
        return;
    }
    for (free, sizes) in [("8m", [40, 20]), ("32m", [60, 100])] {
        let small = Small::new(free);
        let sshd = or_skip!(Sshd::start(Options::default()));
        let mut mounted = or_skip!(Mounted::on(sshd, &[]));
        let point = mounted.also(small.path(), &["-o", "timeout=60,writeback=600"]);
        fs::write(point.join("file"), "old").unwrap();
        fs::File::open(point.join("file"))
            .unwrap()
            .sync_all()
            .unwrap();
        for size in sizes {
            let (errno, took) = upload(&point.join("file"), size << 20);
            assert_eq!(errno, Some(libc::ENOSPC), "{size} MiB");
            assert!(took < Duration::from_secs(30), "{took:?}");
            assert_eq!(fs::read(small.path().join("file")).unwrap(), b"old");
            mounted.wait_until("no temporary file is left", |_| {
                fs::read_dir(small.path()).unwrap().count() == 1
            });
        }
        assert_eq!(upload(&point.join("file"), 5).0, None);
        assert_eq!(fs::read(small.path().join("file")).unwrap(), [7; 5]);
        point.unmount();
    }
}

#[test]
fn a_large_file_that_the_host_may_not_write_fails_at_once() {
    // The receiving program is killed by the size limit, which looks the same as a full disk.
    if !is_root() {
        return;
    }
    // `ulimit -f` counts blocks of 512 bytes.
    let limited = r#"ForceCommand ulimit -f 20000; eval "$SSH_ORIGINAL_COMMAND""#;
    let sshd = or_skip!(Sshd::start(Options::default().line(limited)));
    let mounted = or_skip!(Mounted::on(sshd, &["-o", "timeout=60"]));
    let (errno, took) = upload(&mounted.here("file"), 40 << 20);
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert_eq!(errno, Some(libc::EFBIG));
    let log = mounted.log();
    let is_lost = log.contains("lost the host") || log.contains("lost the connection");
    assert!(!is_lost, "{log}");
    fs::remove_file(mounted.here("file")).unwrap();
}

#[test]
fn a_full_cache_disk_is_enospc_for_the_writer_and_the_mount_stays_up() {
    if !is_root() {
        return;
    }
    let small = Small::private("4m");
    let cache = format!(
        "cache_dir={},min_free=0,cache_timeout=0",
        small.path().join("cache").display()
    );
    let mounted = or_skip!(Mounted::new(&["-o", &cache]));
    let output = Command::new("dd")
        .args(["if=/dev/zero", "bs=64k", "count=200"])
        .arg(format!("of={}", mounted.here("big").display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("No space left on device"), "{said}");
    fs::remove_file(mounted.here("big")).unwrap();
    fs::write(mounted.here("small"), "fits").unwrap();
    assert_eq!(fs::read(mounted.there("small")).unwrap(), b"fits");
    // Opening a file that does not fit into the cache fails; other files can be opened.
    fs::write(mounted.there("huge"), vec![1; 8 << 20]).unwrap();
    let error = fs::read(mounted.here("huge")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(fs::read(mounted.here("small")).unwrap(), b"fits");
}

#[test]
fn waiting_uploads_survive_a_full_cache_disk() {
    if !is_root() {
        return;
    }
    let small = Small::private("8m");
    let cache = format!(
        "cache_dir={},min_free=0,cache_timeout=1,timeout=2",
        small.path().join("cache").display()
    );
    let args = ["-o", &cache];
    let sshd = or_skip!(Sshd::start(Options::default()));
    let proxy = Proxy::before(&sshd);
    let mut mounted = or_skip!(Mounted::on(sshd, &args));
    // Whole pages: a partial write after the last page then has either all of a page or nothing of
    // it.
    let content = |round: u8, n: u8| vec![round * 16 + n; 122 << 12];
    for round in 0..2 {
        let names = [0, 1, 2].map(|n| (format!("round{round}-{n}"), content(round, n)));
        // Created now: no name can be looked up while the host cannot be reached.
        let files = names.each_ref().map(|(name, content)| {
            let file = fs::File::create(mounted.here(name)).unwrap();
            (file, content)
        });
        let mut big = fs::File::create(mounted.here(&format!("big{round}"))).unwrap();
        proxy.refuse();
        for (mut file, content) in files {
            // The upload at close fails; dropping a `File` ignores the error of close().
            file.write_all(content).unwrap();
        }
        // One more file fills the disk, and then another program takes the last bytes.
        let error = (0..200).find_map(|_| big.write_all(&[0; 64 << 10]).err());
        assert_eq!(error.unwrap().raw_os_error(), Some(libc::ENOSPC));
        let filler = small.path().join("filler");
        let script = format!("cat /dev/zero > {} 2>/dev/null || :", filler.display());
        assert!(
            Command::new("sh")
                .args(["-c", &script])
                .status()
                .unwrap()
                .success()
        );
        let mut options = fs::File::options();
        options.append(true);
        let mut file = options.open(mounted.here(&names[0].0)).unwrap();
        let error = file.write_all(&[0; 100_000]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        drop(file);
        for (name, content) in &names {
            let read = fs::read(mounted.here(name)).unwrap();
            let n_more = read.len().checked_sub(content.len());
            assert!(read == *content, "{name}: {n_more:?} bytes more");
        }
        drop(big);
        if round == 1 {
            mounted.crash();
            fs::remove_file(&filler).unwrap();
            proxy.heal();
            mounted.start(&args);
        }
        proxy.heal();
        for (name, content) in &names {
            mounted.wait_until(name, |mounted| {
                fs::read(mounted.there(name)).is_ok_and(|data| data == *content)
            });
        }
        if round == 0 {
            fs::remove_file(&filler).unwrap();
            fs::remove_file(mounted.here("big0")).unwrap();
        }
    }
    fs::write(mounted.here("after"), "after").unwrap();
    assert_eq!(fs::read(mounted.there("after")).unwrap(), b"after");
}
