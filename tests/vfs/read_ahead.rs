//! Read-ahead for programs that walk through a tree: it saves round trips and changes no result.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use scpfs::vfs::Ino;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::Setup;

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
            // A host without `stat` cannot list several directories in one request.
            Userland::Dropbear => 22,
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
    for userland in [Userland::Gnu, Userland::BusyBox, Userland::Bsd] {
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
