//! Content of an earlier mount while the next mount uploads it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use scpfs::cache::FileState;
use scpfs::cache::Wait;
use scpfs::clock::Clock as _;
use scpfs::remote::UploadSpec;
use scpfs::sync::Condvar;
use scpfs::sync::Mutex;
use scpfs::vfs::Context;
use scpfs::vfs::Ino;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::Setup;
use scpfs_testing::wait::wait_until;

use crate::faulty::Fate;
use crate::faulty::Faulty;

/// Blocks uploads until the gate is opened.
#[derive(Debug, Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
    has_waited: AtomicBool,
}

impl Gate {
    fn open(&self) {
        *self.is_open.lock() = true;
        self.opened.notify_all();
    }
}

impl Fate for Gate {
    fn uploads(&self, _: &UploadSpec) {
        let mut is_open = self.is_open.lock();
        while !*is_open {
            self.has_waited.store(true, Ordering::SeqCst);
            self.opened.wait(&mut is_open);
        }
    }
}

/// A world in which a mount was killed after `close()` and before the upload.
fn left() -> Arc<World> {
    let mount = Mount::set_up(Setup {
        writeback: Some(Duration::from_secs(3600)),
        ..Setup::default()
    });
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("dir/old"), "old").unwrap();
    fs::write(mount.at("changed"), "old").unwrap();
    mount.write("changed", b"changed here").unwrap();
    mount.write("dir/old", b"changed in dir").unwrap();
    mount.write("new", b"new here").unwrap();
    mount.crash()
}

/// The next mount, with a gate that blocks its uploads.
fn next(world: Arc<World>) -> (Mount, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let fate = Arc::clone(&gate) as Arc<dyn Fate>;
    let mount = Mount::on(
        world,
        Setup {
            around: Box::new(move |remote| Faulty::around(remote, fate)),
            waits_for_uploads: false,
            ..Setup::default()
        },
    );
    (mount, gate)
}

/// Regression: the next mount did not start before it had uploaded everything, which could be 16
/// TiB of zeros, and printed no message meanwhile.
#[test]
fn content_of_an_earlier_mount_is_shown_while_it_is_uploaded() {
    let (mount, gate) = next(left());
    let names = mount.names("").unwrap();
    assert_eq!(names, ["changed", "dir", "new"]);
    for (path, content) in [
        ("changed", &b"changed here"[..]),
        ("dir/old", b"changed in dir"),
        ("new", b"new here"),
    ] {
        let attr = mount.find(path).unwrap();
        assert_eq!(attr.stat.size, content.len() as u64, "{path}");
        assert_eq!(mount.read(path).unwrap(), content, "{path}");
    }
    wait_until("an upload has begun", || {
        gate.has_waited.load(Ordering::SeqCst)
    });
    let report = mount.vfs.report();
    let paths: Vec<String> = report.iter().map(|file| file.path.to_string()).collect();
    assert_eq!(paths, ["changed", "dir/old", "new"]);
    let is_known = |state| matches!(state, FileState::Uploading | FileState::Pending);
    assert!(report.iter().all(|file| is_known(file.state)), "{report:?}");
    assert_eq!(fs::read(mount.at("changed")).unwrap(), b"old");
    gate.open();
    wait_until("everything is uploaded", || mount.vfs.report().is_empty());
    assert_eq!(fs::read(mount.at("changed")).unwrap(), b"changed here");
    assert_eq!(fs::read(mount.at("dir/old")).unwrap(), b"changed in dir");
    assert_eq!(fs::read(mount.at("new")).unwrap(), b"new here");
    assert_eq!(mount.cache.recovered().len(), 3);
    let mount = Mount::on(mount.crash(), Setup::default());
    assert!(mount.recovered.is_empty());
}

/// A caller that must not block gets `WouldWait`, not `NotFound`.
#[test]
fn lookup_of_content_of_an_earlier_mount_never_finds_the_old_content() {
    let (mount, gate) = next(left());
    let cx = Context {
        wait: Wait::Never,
        ..CX
    };
    for _ in 0..100 {
        match mount.vfs.lookup(&cx, Ino::ROOT, b"new") {
            Ok(found) => assert_eq!(found.attr.unwrap().stat.size, 8),
            Err(error) => assert!(error.would_wait(), "{error}"),
        }
    }
    gate.open();
}

#[test]
fn names_of_content_of_an_earlier_mount_change_as_those_of_any_dirty_file() {
    let (mount, gate) = next(left());
    // In any mount, a rename waits for uploads that are in flight.
    gate.open();
    mount.rename(b"dir", b"moved").unwrap();
    mount.rename(b"changed", b"renamed").unwrap();
    mount.vfs.unlink(&CX, Ino::ROOT, b"new").unwrap();
    assert!(mount.vfs.drain().is_empty());
    assert_eq!(mount.names("").unwrap(), ["moved", "renamed"]);
    assert_eq!(fs::read(mount.at("moved/old")).unwrap(), b"changed in dir");
    assert_eq!(fs::read(mount.at("renamed")).unwrap(), b"changed here");
    assert!(!mount.at("new").exists() && !mount.at("dir").exists());
    let mount = Mount::on(mount.crash(), Setup::default());
    assert!(mount.recovered.is_empty(), "{:?}", mount.recovered);
    assert!(!mount.at("new").exists());
}

#[test]
fn content_of_an_earlier_mount_can_be_written_to_before_it_is_uploaded() {
    let (mount, gate) = next(left());
    gate.open();
    let opened = mount.open("changed", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"CHANGED").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("changed")).unwrap(), b"CHANGED here");
    assert_eq!(mount.read("changed").unwrap(), b"CHANGED here");
    assert!(mount.vfs.drain().is_empty());
    assert_eq!(mount.names("").unwrap(), ["changed", "dir", "new"]);
}

#[test]
fn a_second_crash_before_the_upload_loses_nothing() {
    let mut world = left();
    for _ in 0..2 {
        let (mount, gate) = next(world);
        assert_eq!(mount.read("changed").unwrap(), b"changed here");
        wait_until("an upload has begun", || {
            gate.has_waited.load(Ordering::SeqCst)
        });
        // The upload that waits at the gate then fails, because the connection is closed.
        mount.remote.close();
        gate.open();
        world = mount.crash();
        assert_eq!(fs::read(world.root().join("changed")).unwrap(), b"old");
    }
    // The content also survives a power failure, because it was flushed to the local disk.
    let mount = Mount::on(
        world,
        Setup {
            boot: "another boot",
            ..Setup::default()
        },
    );
    assert_eq!(mount.recovered.len(), 3, "{:?}", mount.recovered);
    assert_eq!(fs::read(mount.at("changed")).unwrap(), b"changed here");
    assert_eq!(fs::read(mount.at("new")).unwrap(), b"new here");
    assert_eq!(fs::read(mount.at("dir/old")).unwrap(), b"changed in dir");
}

#[test]
fn recovered_content_becomes_a_conflict_copy_if_a_directory_has_its_name() {
    let world = left();
    fs::create_dir(world.root().join("new")).unwrap();
    fs::write(world.root().join("changed"), "by others").unwrap();
    let (mount, gate) = next(world);
    assert!(mount.find("new").unwrap().stat.kind == scpfs::stat::FileKind::Directory);
    assert_eq!(mount.read("changed").unwrap(), b"changed here");
    gate.open();
    wait_until("everything is uploaded", || {
        mount.cache.recovered().len() == 3
    });
    let beside = mount.beside("new");
    assert_eq!(fs::read(mount.at(&beside)).unwrap(), b"new here");
    assert_eq!(fs::read(mount.at("changed")).unwrap(), b"by others");
    let beside = mount.beside("changed");
    assert_eq!(fs::read(mount.at(&beside)).unwrap(), b"changed here");
    assert_eq!(mount.read("changed").unwrap(), b"by others");
}

#[test]
fn recovered_content_below_a_removed_directory_is_kept_for_the_next_mount() {
    let world = left();
    fs::remove_dir_all(world.root().join("dir")).unwrap();
    let (mount, gate) = next(world);
    gate.open();
    wait_until("every file is recovered", || {
        mount.cache.recovered().len() == 3
    });
    assert_eq!(mount.names("").unwrap(), ["changed", "new"]);
    let kept = mount.cache.unrecovered();
    let paths: Vec<String> = kept.iter().map(|one| one.path.to_string()).collect();
    assert_eq!(paths, ["dir/old"]);
    let world = mount.crash();
    fs::create_dir(world.root().join("dir")).unwrap();
    let mount = Mount::on(world, Setup::default());
    assert_eq!(fs::read(mount.at("dir/old")).unwrap(), b"changed in dir");
}

/// Counts the steps that flush the journal.
#[derive(Debug, Default)]
struct Syncs(std::sync::atomic::AtomicUsize);

impl scpfs::cache::Steps for Syncs {
    fn before(&self, step: scpfs::cache::Step) -> std::io::Result<()> {
        if step == scpfs::cache::Step::JournalSync {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// Regression: the removal was recorded in memory only, and the next mount after a power failure
/// recreated the file.
#[test]
fn an_unlink_of_a_pending_file_is_durable_in_the_journal() {
    let syncs = Arc::new(Syncs::default());
    let mount = Mount::set_up(Setup {
        writeback: Some(Duration::from_secs(3600)),
        steps: Arc::clone(&syncs) as Arc<dyn scpfs::cache::Steps>,
        ..Setup::default()
    });
    mount.write("file", b"pending").unwrap();
    let before = syncs.0.load(Ordering::SeqCst);
    mount.vfs.unlink(&CX, Ino::ROOT, b"file").unwrap();
    assert_eq!(syncs.0.load(Ordering::SeqCst), before + 1);
}

/// Regression: fsync of a directory returned success without asking the host.
#[test]
fn fsync_of_a_directory_reaches_the_host() {
    let mount = Mount::new();
    fs::create_dir(mount.at("dir")).unwrap();
    let ino = mount.find("dir").unwrap().ino;
    let (result, n_trips) = mount.counted(|| mount.vfs.fsyncdir(&CX, ino));
    result.unwrap();
    assert_eq!(n_trips, 1);
}

/// Regression: on a host whose times are whole seconds, a change of the same size by a program on
/// the host, in the same second as our write, was taken for our upload: our content was dropped
/// without a conflict copy.
#[test]
fn recovery_does_not_take_a_change_in_the_same_second_for_ours() {
    // OpenWrt reports whole seconds; on GNU, the program sets the mtime to a whole second.
    for userland in Userland::here([Userland::OpenWrt, Userland::Gnu]) {
        let setup = || Setup {
            writeback: Some(Duration::from_secs(3600)),
            ..Setup::default()
        };
        let mount = Mount::on(Arc::new(World::new(userland)), setup());
        fs::write(mount.at("file"), "old").unwrap();
        mount.write("file", b"OURS").unwrap();
        let secs = mount.clock.wall().secs;
        fs::write(mount.at("file"), "THEM").unwrap();
        set_mtime(&mount.at("file"), secs);
        let mount = Mount::on(mount.crash(), Setup::default());
        assert_eq!(fs::read(mount.at("file")).unwrap(), b"THEM", "{userland:?}");
        let beside = mount.beside("file");
        assert_eq!(fs::read(mount.at(&beside)).unwrap(), b"OURS");
    }
}

/// Regression: the next mount overwrote a change on a host with whole seconds whose mtime was set
/// back, as `cp -p` does.
#[test]
fn a_change_whose_time_was_set_back_is_kept_by_the_next_mount() {
    if !Userland::OpenWrt.is_here() {
        return;
    }
    for is_renamed in [false, true] {
        let setup = Setup {
            writeback: Some(Duration::from_secs(3600)),
            ..Setup::default()
        };
        let mount = Mount::on(Arc::new(World::new(Userland::OpenWrt)), setup);
        let name = if is_renamed { "moved" } else { "file" };
        fs::write(mount.at("file"), "AAAA").unwrap();
        let secs = 1_600_000_000;
        set_mtime(&mount.at("file"), secs);
        mount.age();
        mount.write("file", b"BBBB").unwrap();
        if is_renamed {
            // The rename changes the ctime of the file on the host; this is no change by others.
            mount.rename("file", "moved").unwrap();
        }
        let is_changed = !is_renamed;
        if is_changed {
            let ctime = || fs::metadata(mount.at(name)).unwrap().ctime();
            let before = ctime();
            wait_until("the change time differs", || {
                fs::write(mount.at(name), "CCCC").unwrap();
                set_mtime(&mount.at(name), secs);
                ctime() != before
            });
        }
        let mount = Mount::on(mount.crash(), Setup::default());
        if is_changed {
            assert_eq!(fs::read(mount.at(name)).unwrap(), b"CCCC");
            let beside = mount.beside(name);
            assert_eq!(fs::read(mount.at(&beside)).unwrap(), b"BBBB");
        } else {
            assert_eq!(fs::read(mount.at(name)).unwrap(), b"BBBB");
            assert_eq!(mount.names("").unwrap(), [name]);
        }
    }
}

fn set_mtime(path: &std::path::Path, secs: i64) {
    let file = fs::File::open(path).unwrap();
    let at = std::time::UNIX_EPOCH + Duration::from_secs(secs.try_into().unwrap());
    file.set_modified(at).unwrap();
}
