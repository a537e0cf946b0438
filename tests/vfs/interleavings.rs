//! Two operations on one file at once. A gate fixes their order: one stops at a step on the local
//! disk, or at an answer of the host, until the other one is done.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc;
use std::time::Duration;

use scpfs::cache::FileState;
use scpfs::cache::Step;
use scpfs::cache::Steps;
use scpfs::cache::Wait;
use scpfs::clock::Clock;
use scpfs::clock::ManualClock;
use scpfs::path::Name;
use scpfs::path::RemotePath;
use scpfs::remote::retry::Retry;
use scpfs::sync::Mutex;
use scpfs::vfs::Context;
use scpfs::vfs::Ino;
use scpfs::vfs::OpenFlags;
use scpfs::vfs::SetAttr;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::Setup;
use scpfs_testing::wait::wait_until;

use crate::faulty::Fate;
use crate::faulty::Faulty;

/// Stops one thread once, at the point for which it is armed.
#[derive(Debug)]
struct Gate<P> {
    armed: Mutex<Option<P>>,
    is_reached: AtomicBool,
    is_open: AtomicBool,
}

impl<P: PartialEq> Gate<P> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            armed: Mutex::new(None),
            is_reached: AtomicBool::new(false),
            is_open: AtomicBool::new(false),
        })
    }

    fn arm(&self, point: P) {
        *self.armed.lock() = Some(point);
    }

    fn wait_until_reached(&self) {
        wait_until("the gate is reached", || self.is_reached.load(SeqCst));
    }

    fn open(&self) {
        self.is_open.store(true, SeqCst);
    }

    fn pass(&self, point: &P) {
        {
            let mut armed = self.armed.lock();
            if armed.as_ref() != Some(point) {
                return;
            }
            *armed = None;
        }
        self.is_reached.store(true, SeqCst);
        wait_until("the gate is opened", || self.is_open.load(SeqCst));
    }
}

impl Steps for Gate<Step> {
    fn before(&self, step: Step) -> io::Result<()> {
        self.pass(&step);
        Ok(())
    }
}

impl Fate for Gate<&'static str> {
    fn has_fetched(&self) {
        self.pass(&"fetch");
    }

    fn after(&self, act: &'static str) -> bool {
        self.pass(&act);
        true
    }
}

struct Gates {
    /// Stops a thread at a step on the local disk.
    disk: Arc<Gate<Step>>,
    /// Stops a thread at an answer of the host.
    host: Arc<Gate<&'static str>>,
}

fn mount() -> (Mount, Gates) {
    mount_with(None)
}

fn mount_with(writeback: Option<Duration>) -> (Mount, Gates) {
    let gates = Gates {
        disk: Gate::new(),
        host: Gate::new(),
    };
    let fate = Arc::clone(&gates.host);
    let mount = Mount::set_up(Setup {
        steps: Arc::clone(&gates.disk) as Arc<dyn Steps>,
        around: Box::new(move |remote| Faulty::around(remote, fate)),
        writeback,
        ..Setup::default()
    });
    (mount, gates)
}

fn resize(size: u64) -> SetAttr {
    SetAttr {
        size: Some(size),
        ..SetAttr::default()
    }
}

/// Regression: the truncation returned success, but its content was attached to no inode and was
/// not uploaded.
#[test]
fn truncate_by_path_is_uploaded_although_the_last_handle_is_closed_meanwhile() {
    for size in [0, 4] {
        let (mount, gates) = mount();
        fs::write(mount.at("file"), "0123456789").unwrap();
        let ino = mount.find("file").unwrap().ino;
        let opened = mount.open("file", libc::O_RDWR).unwrap();
        gates.disk.arm(Step::JournalPut);
        std::thread::scope(|scope| {
            let truncates = scope.spawn(|| mount.vfs.setattr(&CX, ino, None, &resize(size)));
            gates.disk.wait_until_reached();
            mount.close(&opened).unwrap();
            gates.disk.open();
            assert_eq!(truncates.join().unwrap().unwrap().stat.size, size);
        });
        mount.age();
        let expected = &b"0123456789"[..usize::try_from(size).unwrap()];
        assert_eq!(fs::read(mount.at("file")).unwrap(), expected);
        assert_eq!(mount.read("file").unwrap(), expected);
    }
}

/// Regression: the first write failed if its cache file was renamed between two steps of the write.
#[test]
fn the_first_write_succeeds_while_chmod_or_rename_ends() {
    for act in ["change", "rename"] {
        let (mount, gates) = mount();
        fs::write(mount.at("file"), "0123456789").unwrap();
        let ino = mount.find("file").unwrap().ino;
        let opened = mount.open("file", libc::O_RDWR).unwrap();
        gates.host.arm(act);
        std::thread::scope(|scope| {
            let changes = scope.spawn(|| {
                if act == "change" {
                    let mode = SetAttr {
                        mode: Some(0o600),
                        ..SetAttr::default()
                    };
                    return mount.vfs.setattr(&CX, ino, None, &mode).map(drop);
                }
                mount.rename("file", "moved")
            });
            gates.host.wait_until_reached();
            gates.disk.arm(Step::MakeDirty);
            let writes = scope.spawn(|| mount.vfs.write(&CX, opened.fh, 0, b"new"));
            gates.disk.wait_until_reached();
            gates.host.open();
            // The other thread reaches the content, or blocks until the write is done.
            std::thread::sleep(Duration::from_millis(100));
            gates.disk.open();
            writes.join().unwrap().unwrap();
            changes.join().unwrap().unwrap();
        });
        mount.close(&opened).unwrap();
        let name = if act == "change" { "file" } else { "moved" };
        assert_eq!(fs::read(mount.at(name)).unwrap(), b"new3456789");
    }
}

/// Regression: forget removed the content together with the inode, and the next open fetched it
/// again.
#[test]
fn content_stays_in_the_cache_if_forget_comes_before_release() {
    let (mount, _) = mount();
    fs::write(mount.at("file"), "0123456789").unwrap();
    let ino = mount.find("file").unwrap().ino;
    let opened = mount.open("file", libc::O_RDONLY).unwrap();
    mount.vfs.read(&CX, opened.fh, 0, 100).unwrap();
    mount.vfs.forget(ino, 100);
    mount.close(&opened).unwrap();
    assert_eq!(mount.cache.bytes(), 10);
}

/// Regression: content that another handle wrote between two steps of the copy lost its journal
/// record and got the size of the copy.
#[test]
fn content_that_is_written_while_a_copy_on_the_host_ends_is_whole() {
    let (mount, gates) = mount();
    fs::write(mount.at("source"), vec![b's'; 100]).unwrap();
    fs::write(mount.at("target"), "old").unwrap();
    let source = mount.open("source", libc::O_RDONLY).unwrap();
    mount.vfs.read(&CX, source.fh, 0, 100).unwrap();
    let flags = libc::O_RDWR | libc::O_TRUNC;
    let target = mount.open("target", flags).unwrap();
    gates.disk.arm(Step::RemoveContent);
    std::thread::scope(|scope| {
        let (from, to) = ((source.fh, 0), (target.fh, 0));
        let vfs = &mount.vfs;
        let copies = scope.spawn(move || vfs.copy_file_range(&CX, from, to, 100));
        gates.disk.wait_until_reached();
        let opens = scope.spawn(|| {
            let other = mount.open("target", flags).unwrap();
            mount.vfs.write(&CX, other.fh, 0, b"new").unwrap();
            other
        });
        std::thread::sleep(Duration::from_millis(100));
        gates.disk.open();
        assert_eq!(copies.join().unwrap().unwrap(), 100);
        mount.close(&opens.join().unwrap()).unwrap();
    });
    assert_eq!(fs::read(mount.at("target")).unwrap(), b"new");
}

/// Regression: an opener that had asked for the newer version got the older one, which another
/// opener had fetched.
#[test]
fn open_gives_the_version_that_it_was_asked_for() {
    let (mount, _) = mount();
    let path = RemotePath::root().join(&Name::new(b"file").unwrap());
    for round in 0..150 {
        fs::write(mount.at("file"), format!("old {round}")).unwrap();
        let older = mount.remote.stat(&path).unwrap().version();
        let entry = mount.cache.entry(older);
        entry.add_handle();
        entry.open(&path, older, Wait::Allowed).unwrap();
        entry.remove_handle();
        entry.return_if_unused();
        fs::write(mount.at("file"), format!("newer {round}")).unwrap();
        let newer = mount.remote.stat(&path).unwrap().version();
        let entry = mount.cache.entry(older);
        entry.add_handle();
        entry.add_handle();
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            let opens = scope.spawn(|| {
                barrier.wait();
                let result = entry.open(&path, newer, Wait::Allowed);
                (result, entry.version())
            });
            scope.spawn(|| {
                barrier.wait();
                for _ in 0..round % 50 * 100 {
                    std::hint::spin_loop();
                }
                drop(entry.open(&path, older, Wait::Allowed));
            });
            let (result, version) = opens.join().unwrap();
            assert!(result.is_err() || version != Some(older), "round {round}");
        });
        entry.remove_handle();
        entry.remove_handle();
        entry.discard();
        mount.cache.forget(&older);
    }
}

/// Leaves part of the content in the file, and reports the error.
#[derive(Debug)]
struct LeavesPart {
    at: PathBuf,
    is_armed: AtomicBool,
}

impl Fate for LeavesPart {
    fn breaks_off(&self) -> bool {
        let is_armed = self.is_armed.load(SeqCst);
        if is_armed {
            fs::write(&self.at, "what is wr").unwrap();
        }
        is_armed
    }
}

/// Regression: unlink did not ask the host to remove what a failed upload had left under the name.
#[test]
fn unlink_removes_a_partial_upload_of_a_new_file() {
    for is_scp_only in [false, true] {
        let world = Arc::new(match is_scp_only {
            true => World::scp_only("SSH-2.0-OpenSSH_9.2"),
            false => World::new(Userland::Gnu),
        });
        let at = world.root().join("file");
        let fate = Arc::new(LeavesPart {
            at: at.clone(),
            is_armed: true.into(),
        });
        let around = Arc::clone(&fate);
        let setup = Setup {
            around: Box::new(|remote| Faulty::around(remote, around)),
            ..Setup::default()
        };
        let mount = if is_scp_only {
            let clock = Arc::new(ManualClock::new());
            let scp = world.scp(Arc::clone(&clock) as Arc<dyn Clock>);
            Mount::of(Arc::new(Retry::new(scp)), world, clock, setup)
        } else {
            Mount::on(world, setup)
        };
        let (_, opened) = mount.create("file", libc::O_WRONLY).unwrap();
        let data = b"what is written here";
        mount.vfs.write(&CX, opened.fh, 0, data).unwrap();
        mount.close(&opened).unwrap_err();
        assert!(at.exists());
        fate.is_armed.store(false, SeqCst);
        let unlinked = mount.vfs.unlink(&CX, Ino::ROOT, b"file");
        // A scp-only host removes nothing, so unlink must not report success.
        assert_eq!(unlinked.is_ok(), !is_scp_only, "{unlinked:?}");
        assert_eq!(at.exists(), is_scp_only);
    }
}

/// Regression: the fetched content stayed on the disk and was not counted against the size limit of
/// the cache.
#[test]
fn a_fetch_that_ends_while_the_file_is_truncated_leaves_nothing_uncounted() {
    let (mount, gates) = mount();
    fs::write(mount.at("file"), vec![b'x'; 3 << 20]).unwrap();
    let ino = mount.find("file").unwrap().ino;
    let open = |flags| mount.vfs.open(&CX, ino, OpenFlags::new(flags).unwrap());
    gates.host.arm("fetch");
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| open(libc::O_RDONLY));
        gates.host.wait_until_reached();
        gates.disk.arm(Step::CreateContent);
        let truncates = scope.spawn(|| open(libc::O_WRONLY | libc::O_TRUNC));
        gates.disk.wait_until_reached();
        gates.host.open();
        let reader = reads.join().unwrap().unwrap();
        // Time for the fetch to end.
        std::thread::sleep(Duration::from_millis(300));
        gates.disk.open();
        let writer = truncates.join().unwrap().unwrap();
        mount.vfs.write(&CX, writer.fh, 0, b"new").unwrap();
        mount.close(&writer).unwrap();
        mount.close(&reader).unwrap();
    });
    let content = mount.cache.disk().dir().join("content");
    let sizes = fs::read_dir(content).unwrap();
    let bytes: u64 = sizes.map(|it| it.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(bytes, mount.cache.bytes());
}

/// Regression: `scpfs status` listed a file that was being persisted as being uploaded.
#[test]
fn a_file_that_is_persisted_is_not_reported_as_uploading() {
    let (mount, gates) = mount_with(Some(Duration::from_secs(3600)));
    let (_, opened) = mount.create("file", libc::O_WRONLY).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"content").unwrap();
    gates.disk.arm(Step::FlushContent);
    std::thread::scope(|scope| {
        let closes = scope.spawn(|| mount.vfs.flush(&CX, opened.fh));
        gates.disk.wait_until_reached();
        let states: Vec<FileState> = mount.vfs.report().iter().map(|it| it.state).collect();
        assert_eq!(states, [FileState::Writing]);
        gates.disk.open();
        closes.join().unwrap().unwrap();
    });
}

/// Regression: one slow write to the local disk blocked the event loops, and with them the whole
/// mount.
#[test]
fn attributes_are_reported_while_the_local_disk_is_slow() {
    let never = Context {
        wait: Wait::Never,
        ..CX
    };
    for step in [
        Step::WriteContent,
        Step::TruncateContent,
        Step::MakeDirty,
        Step::JournalPut,
        Step::JournalSync,
        Step::FlushContent,
    ] {
        let (mount, gates) = mount_with(Some(Duration::from_secs(3600)));
        fs::write(mount.at("file"), "0123456789").unwrap();
        let ino = mount.find("file").unwrap().ino;
        let opened = mount.open("file", libc::O_RDWR).unwrap();
        gates.disk.arm(step);
        std::thread::scope(|scope| {
            let changes = scope.spawn(|| {
                mount.vfs.write(&CX, opened.fh, 0, b"new")?;
                mount.vfs.setattr(&CX, ino, Some(opened.fh), &resize(4))?;
                mount.vfs.flush(&CX, opened.fh)
            });
            gates.disk.wait_until_reached();
            let (tell, told) = mpsc::channel();
            let vfs = Arc::clone(&mount.vfs);
            scope.spawn(move || tell.send(vfs.getattr(&never, ino).map(|attr| attr.stat.size)));
            let size = told.recv_timeout(Duration::from_secs(20));
            gates.disk.open();
            assert!(matches!(size, Ok(Ok(4 | 10))), "{step:?}: {size:?}");
            changes.join().unwrap().unwrap();
        });
        mount.close(&opened).unwrap();
    }
}

type Hook = Box<dyn FnOnce() + Send>;

/// Runs a hook at the first request that follows a listing.
#[derive(Default)]
struct AfterListing {
    hook: Mutex<Option<Hook>>,
    is_due: AtomicBool,
}

impl std::fmt::Debug for AfterListing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AfterListing")
    }
}

impl Fate for AfterListing {
    fn has_listed(&self) {
        self.is_due.store(true, SeqCst);
    }

    fn answers(&self) -> bool {
        if self.is_due.swap(false, SeqCst) {
            let hook = self.hook.lock().take();
            if let Some(hook) = hook {
                hook();
            }
        }
        true
    }
}

/// Regression: the open failed with EINTR, because the fetch of the newer version was cancelled.
#[test]
fn open_succeeds_if_another_handle_writes_while_the_newer_version_is_fetched() {
    let fate = Arc::new(AfterListing::default());
    let around = Arc::clone(&fate);
    let mount = Mount::set_up(Setup {
        around: Box::new(|remote| Faulty::around(remote, around)),
        ..Setup::default()
    });
    fs::write(mount.at("file"), "old").unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    fs::write(mount.at("file"), "newer").unwrap();
    mount.age();
    let (vfs, fh) = (Arc::clone(&mount.vfs), opened.fh);
    *fate.hook.lock() = Some(Box::new(move || {
        vfs.write(&CX, fh, 0, b"ours").unwrap();
    }));
    let second = mount.open("file", libc::O_RDWR).unwrap();
    assert!(fate.hook.lock().is_none(), "the hook has run");
    assert_eq!(mount.vfs.read(&CX, second.fh, 0, 10).unwrap(), b"ours");
}
