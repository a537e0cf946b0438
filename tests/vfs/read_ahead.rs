//! Read-ahead for programs that walk through a tree: it saves round trips and changes no result.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use scpfs::remote::Receiver;
use scpfs::vfs::Ino;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::Setup;
use scpfs_testing::wait::wait_until;

use crate::faulty::Fate;
use crate::faulty::Faulty;

const READ_AHEAD: u64 = 16 << 20;

fn reading_ahead() -> Setup {
    Setup {
        read_ahead: READ_AHEAD,
        ..Setup::default()
    }
}

/// Creates a tree of 10 directories with 10 files each; returns the paths of the directories.
fn make_tree(world: &World) -> Vec<String> {
    let dirs: Vec<String> = (0..10).map(|n| format!("tree/dir{n}")).collect();
    for dir in &dirs {
        fs::create_dir_all(world.root().join(dir)).unwrap();
        for n in 0..10 {
            let name = format!("{dir}/file{n}");
            fs::write(world.root().join(&name), &name).unwrap();
        }
    }
    dirs
}

/// Lists each directory of the tree and reads each file in it, as `grep -r` and `tar` do.
fn read_tree(mount: &Mount) {
    for dir in mount.names("tree").unwrap() {
        for file in mount.names(&format!("tree/{dir}")).unwrap() {
            let name = format!("tree/{dir}/{file}");
            assert_eq!(mount.read(&name).unwrap(), name.as_bytes());
        }
    }
}

/// Mounts the tree of [`make_tree`] with read-ahead. Returns `None` if this machine does not have
/// the programs of that userland.
fn mount_of(userland: Userland) -> Option<Mount> {
    userland.is_here().then(|| {
        let world = World::new(userland);
        make_tree(&world);
        let mount = Mount::on(Arc::new(world), reading_ahead());
        mount.find("tree").unwrap();
        mount
    })
}

/// Reading 100 files in 10 directories takes 5 round trips on a host with `stat`: a listing of
/// `tree`, one of all its directories, and three batches of files. The limit leaves room for a few
/// more, such as a request for the type of the filesystem.
#[test]
fn a_tree_is_read_in_a_few_round_trips() {
    for userland in [Userland::Gnu, Userland::BusyBox, Userland::Dropbear] {
        let Some(mount) = mount_of(userland) else {
            continue;
        };
        let ((), trips) = mount.counted(|| read_tree(&mount));
        let max = match userland {
            // Without `stat`, trees are listed level by level.
            Userland::Dropbear => 10,
            _ => 8,
        };
        assert!(trips <= max, "{userland:?}: {trips} round trips");
        let report = mount.cache.report();
        assert_eq!(report.read_ahead.files, 100, "{userland:?}: {report:?}");
        assert_eq!(report.read_ahead.used, 100, "{userland:?}: {report:?}");
        let ((), trips) = mount.counted(|| read_tree(&mount));
        assert_eq!(trips, 0, "again");
    }
}

#[test]
fn the_names_of_a_tree_are_listed_in_a_few_round_trips() {
    for userland in [
        Userland::Gnu,
        Userland::BusyBox,
        Userland::Bsd,
        Userland::Bare,
    ] {
        let mount = mount_of(userland).unwrap();
        let (n_names, trips) = mount.counted(|| {
            let dirs = mount.names("tree").unwrap();
            let names = dirs.iter().map(|dir| format!("tree/{dir}"));
            names
                .map(|dir| mount.names(&dir).unwrap().len())
                .sum::<usize>()
        });
        assert_eq!(n_names, 100);
        assert!(trips <= 2, "{userland:?}: {trips} round trips");
    }
}

/// `git status` looks up each path of its index, in the order of the index.
#[test]
fn the_attributes_of_a_tree_take_a_few_round_trips() {
    let mount = mount_of(Userland::Gnu).unwrap();
    let ((), trips) = mount.counted(|| {
        for dir in 0..10 {
            for file in 0..10 {
                mount.find(&format!("tree/dir{dir}/file{file}")).unwrap();
            }
        }
    });
    assert!(trips <= 4, "{trips} round trips");
}

#[test]
fn nothing_is_read_ahead_if_the_option_says_so() {
    let world = World::new(Userland::Gnu);
    make_tree(&world);
    let mount = Mount::on(Arc::new(world), Setup::default());
    let ((), trips) = mount.counted(|| read_tree(&mount));
    assert!(trips >= 110, "{trips} round trips");
    assert_eq!(mount.cache.report().read_ahead.files, 0);
}

#[test]
fn a_file_that_changed_after_it_was_read_ahead_is_read_as_it_is_now() {
    let mount = mount_of(Userland::Gnu).unwrap();
    mount.names("tree").unwrap();
    mount.names("tree/dir0").unwrap();
    mount.read("tree/dir0/file0").unwrap();
    // `file8` is the last file of the first batch: its open returns after the batch has ended.
    mount.read("tree/dir0/file8").unwrap();
    assert!(mount.cache.report().read_ahead.files >= 8);
    fs::write(mount.at("tree/dir0/file4"), "changed").unwrap();
    fs::remove_file(mount.at("tree/dir0/file5")).unwrap();
    mount.age();
    assert_eq!(mount.read("tree/dir0/file4").unwrap(), b"changed");
    mount.read("tree/dir0/file5").unwrap_err();
    assert_eq!(mount.read("tree/dir0/file6").unwrap(), b"tree/dir0/file6");
}

#[test]
fn a_directory_that_changed_after_it_was_listed_ahead_is_seen_as_it_is_now() {
    let mount = mount_of(Userland::Gnu).unwrap();
    mount.names("tree").unwrap();
    mount.names("tree/dir0").unwrap();
    fs::write(mount.at("tree/dir5/new"), "new").unwrap();
    fs::remove_dir_all(mount.at("tree/dir6")).unwrap();
    mount.age();
    assert_eq!(mount.read("tree/dir5/new").unwrap(), b"new");
    mount.find("tree/dir6").unwrap_err();
    assert_eq!(mount.names("tree/dir5").unwrap().len(), 11);
}

/// Listings that were made ahead are older than the changes of this mount, and must not undo them.
#[test]
fn changes_of_this_mount_are_not_undone_by_what_was_read_ahead() {
    let mount = mount_of(Userland::Gnu).unwrap();
    mount.names("tree").unwrap();
    mount.names("tree/dir0").unwrap();
    let dir = mount.find("tree/dir5").unwrap().ino;
    mount.vfs.unlink(&CX, dir, b"file3").unwrap();
    mount.write("tree/dir5/file4", b"written here").unwrap();
    mount.vfs.forget(dir, 1);
    let names = mount.names("tree/dir5").unwrap();
    assert_eq!(names.len(), 9, "{names:?}");
    mount.find("tree/dir5/file3").unwrap_err();
    assert_eq!(mount.read("tree/dir5/file4").unwrap(), b"written here");
    assert_eq!(
        fs::read(mount.at("tree/dir5/file4")).unwrap(),
        b"written here"
    );
}

#[test]
fn a_cache_that_is_smaller_than_the_tree_gives_the_same_contents() {
    let world = World::new(Userland::Gnu);
    fs::create_dir(world.root().join("tree")).unwrap();
    let content = |n: usize| vec![u8::try_from(n).unwrap(); 10_000];
    for n in 0..100 {
        fs::write(world.root().join(format!("tree/file{n:02}")), content(n)).unwrap();
    }
    let mount = Mount::on(
        Arc::new(world),
        Setup {
            max_bytes: 200_000,
            ..reading_ahead()
        },
    );
    for (n, file) in mount.names("tree").unwrap().iter().enumerate() {
        assert_eq!(mount.read(&format!("tree/{file}")).unwrap(), content(n));
        assert!(mount.cache.bytes() <= 200_000, "{}", mount.cache.bytes());
    }
    let report = mount.cache.report();
    assert!(report.read_ahead.used > 50, "{report:?}");
}

/// The connection breaks after different numbers of bytes of the answer to a batch.
#[test]
fn a_connection_that_breaks_during_read_ahead_costs_no_content() {
    for cut_after in [1, 100, 500, 1500, 3000, 4500] {
        let mount = mount_of(Userland::Gnu).unwrap();
        mount.names("tree").unwrap();
        mount.names("tree/dir0").unwrap();
        mount.world.faults.lock().cut_after_read = Some(cut_after);
        for file in 0..10 {
            let name = format!("tree/dir0/file{file}");
            assert_eq!(mount.read(&name).unwrap(), name.as_bytes(), "{cut_after}");
        }
    }
}

#[test]
fn files_that_the_login_user_may_not_read_are_not_read_ahead() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = World::new(Userland::Gnu);
    world.log_in_as(scpfs_testing::vfs_mount::NOBODY);
    make_tree(&world);
    let secret = world.root().join("tree/dir0/file3");
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let closed = world.root().join("tree/dir4");
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mount = Mount::on(Arc::new(world), reading_ahead());
    mount.names("tree").unwrap();
    for dir in 0..10 {
        let dir = format!("tree/dir{dir}");
        match mount.names(&dir) {
            Ok(names) => assert_eq!(names.len(), 10, "{dir}"),
            Err(error) => {
                assert_eq!((&dir[..], error.errno()), ("tree/dir4", libc::EACCES));
                continue;
            }
        }
        for file in 0..10 {
            let name = format!("{dir}/file{file}");
            match mount.read(&name) {
                Ok(content) => assert_eq!(content, name.as_bytes()),
                Err(error) => {
                    assert_eq!(
                        (&name[..], error.errno()),
                        ("tree/dir0/file3", libc::EACCES)
                    );
                }
            }
        }
    }
    assert_eq!(mount.cache.report().read_ahead.wasted, 0);
}

/// Counts requests, lets those for trees fail, and delays the answer to one.
#[derive(Debug, Default)]
struct Requests {
    n_trees: AtomicUsize,
    fails_trees: AtomicBool,
    is_delayed: AtomicBool,
    is_in_flight: AtomicBool,
}

impl Fate for Requests {
    fn fails_trees(&self) -> bool {
        self.n_trees.fetch_add(1, SeqCst);
        self.fails_trees.load(SeqCst)
    }

    fn has_listed_trees(&self) {
        if self.is_delayed.load(SeqCst) {
            self.is_in_flight.store(true, SeqCst);
            wait_until("the answer may arrive", || !self.is_delayed.load(SeqCst));
        }
    }
}

fn with_requests(world: World) -> (Mount, Arc<Requests>) {
    let requests = Arc::new(Requests::default());
    let fate = Arc::clone(&requests);
    let setup = Setup {
        around: Box::new(move |remote| Faulty::around(remote, fate)),
        ..reading_ahead()
    };
    (Mount::on(Arc::new(world), setup), requests)
}

#[test]
fn an_older_listing_of_a_tree_does_not_bring_back_a_removed_name() {
    let world = World::new(Userland::Gnu);
    fs::create_dir_all(world.root().join("tree/a")).unwrap();
    fs::create_dir_all(world.root().join("tree/b/below")).unwrap();
    fs::write(world.root().join("tree/b/below/file"), "content").unwrap();
    let (mount, requests) = with_requests(world);
    mount.names("tree/b").unwrap();
    let below = mount.find("tree/b/below").unwrap().ino;
    mount.clock.advance(Duration::from_secs(4));
    assert_eq!(names_in(&mount, below), 1);
    mount.vfs.lookup(&CX, below, b"file").unwrap();
    // `tree` and `b` become stale, but not `below`.
    mount.clock.advance(Duration::from_millis(1500));
    mount.names("tree").unwrap();
    requests.is_delayed.store(true, SeqCst);
    std::thread::scope(|scope| {
        let walk = scope.spawn(|| mount.names("tree/a").unwrap());
        wait_until("the tree is listed", || requests.is_in_flight.load(SeqCst));
        mount.clock.advance(Duration::from_millis(200));
        mount.vfs.unlink(&CX, below, b"file").unwrap();
        // This listing is newer, and has no entry for the removed name.
        mount.clock.advance(Duration::from_millis(3500));
        assert_eq!(names_in(&mount, below), 0);
        requests.is_delayed.store(false, SeqCst);
        walk.join().unwrap();
    });
    assert_eq!(names_in(&mount, below), 0);
    let found = mount.vfs.lookup(&CX, below, b"file").unwrap();
    assert!(found.attr.is_none(), "the file was removed here");
}

/// Returns how many names a directory has, without `.` and `..`.
fn names_in(mount: &Mount, dir: Ino) -> usize {
    let fh = mount.vfs.opendir(dir).unwrap();
    let mut items = mount.vfs.readdir(&CX, fh, 0).unwrap();
    let mut n_names = 0;
    while items.peek().is_some() {
        items.advance();
        n_names += 1;
    }
    mount.vfs.releasedir(fh);
    n_names - 2
}

/// For example because a filesystem below does not answer.
#[test]
fn a_tree_that_cannot_be_listed_is_asked_for_once() {
    let world = World::new(Userland::Gnu);
    make_tree(&world);
    let (mount, requests) = with_requests(world);
    requests.fails_trees.store(true, SeqCst);
    read_tree(&mount);
    assert_eq!(requests.n_trees.load(SeqCst), 1);
    mount.clock.advance(Duration::from_secs(600));
    requests.fails_trees.store(false, SeqCst);
    read_tree(&mount);
    assert!(requests.n_trees.load(SeqCst) > 1, "later it is tried again");
}

/// The host sends more than the listing announced.
#[test]
fn a_file_that_has_grown_does_not_fill_the_local_disk() {
    let world = World::new(Userland::Gnu);
    fs::create_dir(world.root().join("tree")).unwrap();
    for n in 0..9 {
        fs::write(world.root().join(format!("tree/file{n}")), "text").unwrap();
    }
    let mount = Mount::on(Arc::new(world), reading_ahead());
    mount.names("tree").unwrap();
    fs::write(mount.at("tree/file5"), vec![0; 200 << 20]).unwrap();
    let before = mount.world.meter.bytes_read();
    for n in [0, 1, 2] {
        assert_eq!(mount.read(&format!("tree/file{n}")).unwrap(), b"text");
    }
    let n_bytes = mount.world.meter.bytes_read() - before;
    assert!(n_bytes < 10 << 20, "{n_bytes} bytes");
}

#[test]
fn walks_that_were_given_up_leave_room_for_the_next() {
    let world = World::new(Userland::Gnu);
    for dir in 0..12 {
        fs::create_dir_all(world.root().join(format!("dir{dir:02}"))).unwrap();
        for file in 0..40 {
            let name = format!("dir{dir:02}/file{file:02}");
            fs::write(world.root().join(name), vec![7; 20_000]).unwrap();
        }
    }
    let setup = Setup {
        max_bytes: 4 << 20,
        ..reading_ahead()
    };
    let mount = Mount::on(Arc::new(world), setup);
    let read = |dir: usize, n_files: usize| {
        let dir = format!("dir{dir:02}");
        for file in mount.names(&dir).unwrap().iter().take(n_files) {
            mount.read(&format!("{dir}/{file}")).unwrap();
        }
    };
    for dir in 0..11 {
        read(dir, 3);
        mount.clock.advance(Duration::from_secs(20));
    }
    let before = mount.cache.report().read_ahead;
    read(11, 40);
    let after = mount.cache.report().read_ahead;
    assert!(after.used > before.used + 30, "{before:?} {after:?}");
}

/// Small files are opened while large files are transferred.
#[test]
fn an_open_in_a_walk_does_not_wait_for_large_transfers() {
    let world = World::new(Userland::Gnu);
    make_tree(&world);
    fs::write(world.root().join("large"), vec![1; 100 << 20]).unwrap();
    let mount = Mount::on(Arc::new(world), reading_ahead());
    let large = mount.find("large").unwrap();
    mount.names("tree").unwrap();
    let is_over = AtomicBool::new(false);
    let n_blocked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        // They take all connections but the reserved one.
        let n_transfers = mount.remote.contact().max - 1;
        for _ in 0..n_transfers {
            scope.spawn(|| {
                let mut slow = Slow(&is_over, &n_blocked, false);
                let known = large.stat.version();
                let path = scpfs_testing::samples::path("large");
                mount.remote.fetch(&path, Some(&known), &mut slow).unwrap();
            });
        }
        wait_until("all transfers have begun", || {
            n_blocked.load(SeqCst) == n_transfers
        });
        mount.clock.advance(Duration::from_secs(2));
        for dir in ["tree/dir0", "tree/dir1"] {
            for file in mount.names(dir).unwrap() {
                mount.read(&format!("{dir}/{file}")).unwrap();
            }
        }
        assert!(mount.cache.report().read_ahead.files > 0);
        is_over.store(true, SeqCst);
    });
}

/// Accepts content only when the test is over.
struct Slow<'a>(&'a AtomicBool, &'a AtomicUsize, bool);

impl Receiver for Slow<'_> {
    fn begin(&mut self, _size: u64) -> io::Result<()> {
        Ok(())
    }

    fn data(&mut self, _data: &[u8]) -> io::Result<()> {
        if !std::mem::replace(&mut self.2, true) {
            self.1.fetch_add(1, SeqCst);
        }
        wait_until("the test is over", || self.0.load(SeqCst));
        Ok(())
    }
}

/// The kernel sends no FORGET for a directory that it has not looked up: after the TTL, the mount
/// removes the inodes of directories that were listed ahead and never used.
#[test]
fn directories_that_were_listed_ahead_are_forgotten_in_the_end() {
    let mount = mount_of(Userland::Gnu).unwrap();
    mount.names("tree").unwrap();
    mount.names("tree/dir0").unwrap();
    let before = format!("{:?}", mount.vfs);
    mount.clock.advance(Duration::from_secs(60));
    mount.names("").unwrap();
    let after = format!("{:?}", mount.vfs);
    assert_ne!(before, after, "the nine directories after the first");
    let root = mount.vfs.getattr(&CX, Ino::ROOT).unwrap();
    assert_eq!(root.ino, Ino::ROOT);
}
