//! The number of round trips of each operation: the table in docs/semantics.md, counted on the
//! channel.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use scpfs::clock::Clock;
use scpfs::clock::ManualClock;
use scpfs::remote::NewTime;
use scpfs::remote::retry::Retry;
use scpfs::shell::probe;
use scpfs::stat::DeviceNumber;
use scpfs::stat::FileKind;
use scpfs::stat::Time;
use scpfs::vfs::Ino;
use scpfs::vfs::OpenFlags;
use scpfs::vfs::SetAttr;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::REPLACE;
use scpfs_testing::vfs_mount::Setup;

fn with_files() -> Mount {
    let mount = Mount::new();
    fs::create_dir(mount.at("dir")).unwrap();
    for n in 0..300 {
        fs::write(mount.at(&format!("dir/{n}")), format!("content {n}")).unwrap();
    }
    fs::write(mount.at("file"), "hello").unwrap();
    mount
}

#[test]
fn a_look_up_in_a_directory_not_yet_listed_costs_one() {
    let mount = with_files();
    mount.find("file").unwrap();
    let (_, trips) = mount.counted(|| mount.find("dir/17").unwrap());
    assert_eq!(trips, 1);
}

#[test]
fn lookup_stat_and_access_of_cached_names_cost_nothing() {
    let mount = with_files();
    let ino = mount.find("dir/17").unwrap().ino;
    let ((), trips) = mount.counted(|| {
        mount.find("dir/18").unwrap();
        mount.find("file").unwrap();
        mount.find("nowhere").unwrap_err();
        mount.find("dir/nowhere").unwrap_err();
        mount.vfs.getattr(&CX, ino).unwrap();
        mount.vfs.access(&CX, ino, 4).unwrap();
    });
    assert_eq!(trips, 0);
}

#[test]
fn a_look_up_in_a_huge_directory_asks_for_one_name() {
    let mount = Mount::new();
    fs::create_dir(mount.at("huge")).unwrap();
    for n in 0..6000 {
        fs::write(mount.at(&format!("huge/a name of some length {n:060}")), "").unwrap();
    }
    mount.find("huge").unwrap();
    let before = mount.world.meter.bytes_read();
    let name = format!("huge/a name of some length {:060}", 77);
    let (_, trips) = mount.counted(|| mount.find(&name).unwrap());
    assert_eq!(trips, 1);
    assert!(
        mount.world.meter.bytes_read() - before < 1000,
        "it was listed"
    );
}

/// The size of the directory does not show that it is large, as on filesystems that report none.
#[test]
fn a_look_up_in_a_directory_of_too_many_names_asks_for_one_name() {
    let world = Arc::new(World::new(Userland::Gnu));
    for n in 0..100 {
        fs::create_dir_all(world.root().join("many")).unwrap();
        fs::write(world.root().join(format!("many/{n}")), "content").unwrap();
    }
    let settings = scpfs::remote::Settings {
        max_names: 50,
        ..world.settings()
    };
    let clock = Arc::new(ManualClock::new());
    let dyn_clock = Arc::clone(&clock) as Arc<dyn Clock>;
    let shell = probe::probe(world.transport(), &settings, dyn_clock).unwrap();
    let mount = Mount::of(Arc::new(Retry::new(shell)), world, clock, Setup::default());
    assert_eq!(mount.read("many/7").unwrap(), b"content");
    let (_, trips) = mount.counted(|| mount.find("many/8").unwrap());
    assert_eq!(trips, 1);
    let (_, trips) = mount.counted(|| mount.find("many/none").unwrap_err());
    assert_eq!(trips, 1);
    mount.write("many/9", b"changed").unwrap();
    assert_eq!(fs::read(mount.at("many/9")).unwrap(), b"changed");
    let error = mount.names("many").unwrap_err();
    assert_eq!(error.errno(), libc::EFBIG);
    assert_eq!(
        error.to_string(),
        "cannot list many: it has more names than max_names=50 allows"
    );
}

#[test]
fn reading_a_directory_with_all_attributes_costs_one() {
    let mount = with_files();
    mount.find("dir").unwrap();
    let (names, trips) = mount.counted(|| mount.names("dir").unwrap());
    assert_eq!((names.len(), trips), (300, 1));
    let (_, trips) = mount.counted(|| {
        for name in &names {
            mount.find(&format!("dir/{name}")).unwrap();
        }
        mount.names("dir").unwrap();
    });
    assert_eq!(trips, 0);
}

#[test]
fn reading_a_small_file_costs_one_then_nothing_then_one_without_bytes() {
    let mount = with_files();
    mount.find("file").unwrap();
    let (data, trips) = mount.counted(|| mount.read("file").unwrap());
    assert_eq!((data, trips), (b"hello".to_vec(), 1));
    let (_, trips) = mount.counted(|| mount.read("file").unwrap());
    assert_eq!(trips, 0);
    mount.age();
    let (data, trips) = mount.counted(|| mount.read("file").unwrap());
    assert_eq!((data, trips), (b"hello".to_vec(), 1));
}

#[test]
fn creating_writing_and_closing_cost_one() {
    let mount = with_files();
    mount.names("").unwrap();
    let ((), trips) = mount.counted(|| {
        let (attr, opened) = mount.create("new", libc::O_WRONLY).unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"hello").unwrap();
        let time = NewTime::At(Time {
            secs: 1_600_000_000,
            nanos: 5000,
        });
        let set = SetAttr {
            mode: Some(0o600),
            atime: Some(time),
            mtime: Some(time),
            ..SetAttr::default()
        };
        mount
            .vfs
            .setattr(&CX, attr.ino, Some(opened.fh), &set)
            .unwrap();
        mount.close(&opened).unwrap();
    });
    assert_eq!(trips, 1);
    let attr = mount.find("new").unwrap();
    assert_eq!(
        (attr.stat.mode, attr.stat.mtime.secs, attr.stat.size),
        (0o600, 1_600_000_000, 5)
    );
    assert_eq!(fs::read(mount.at("new")).unwrap(), b"hello");
}

#[test]
fn creating_exclusively_costs_one_more() {
    let mount = with_files();
    mount.names("").unwrap();
    let ((), trips) = mount.counted(|| {
        let (_, opened) = mount.create("new", libc::O_WRONLY | libc::O_EXCL).unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"hello").unwrap();
        mount.close(&opened).unwrap();
    });
    assert_eq!(trips, 2);
}

/// As `cp -r` and `tar x` do.
#[test]
fn creating_exclusively_in_a_directory_of_this_mount_costs_one() {
    let mount = with_files();
    mount.names("").unwrap();
    let ((), trips) = mount.counted(|| {
        let dir = mount.vfs.mkdir(&CX, Ino::ROOT, b"made", 0o755).unwrap();
        let dir = dir.attr.unwrap().ino;
        let flags = OpenFlags::new(libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY).unwrap();
        for n in 0..10 {
            let name = format!("file{n}");
            assert!(mount.find(&format!("made/{name}")).is_err());
            let created = mount.vfs.create(&CX, dir, name.as_bytes(), 0o644, flags);
            let (_, opened) = created.unwrap();
            mount.vfs.write(&CX, opened.fh, 0, b"hello").unwrap();
            mount.close(&opened).unwrap();
        }
    });
    assert_eq!(trips, 1 + 10);
}

/// As `sed -i` does: a temporary file, its owner and mode, the content, and a rename.
#[test]
fn replacing_a_file_by_a_new_one_costs_three() {
    let mount = with_files();
    let old = mount.find("file").unwrap().stat;
    let ((), trips) = mount.counted(|| {
        let (attr, opened) = mount.create("new", libc::O_RDWR | libc::O_EXCL).unwrap();
        let owner = SetAttr {
            uid: Some(old.uid),
            gid: Some(old.gid),
            ..SetAttr::default()
        };
        let fh = Some(opened.fh);
        mount.vfs.setattr(&CX, attr.ino, fh, &owner).unwrap();
        let mode = SetAttr {
            mode: Some(0o604),
            ..SetAttr::default()
        };
        mount.vfs.setattr(&CX, attr.ino, fh, &mode).unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"changed").unwrap();
        mount.close(&opened).unwrap();
        mount.rename("new", "file").unwrap();
    });
    assert_eq!(trips, 3);
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"changed");
    let meta = fs::metadata(mount.at("file")).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o604);
    assert_eq!((meta.uid(), meta.gid()), (old.uid, old.gid));
}

#[test]
fn overwriting_a_file_costs_one() {
    let mount = with_files();
    mount.names("").unwrap();
    let ((), trips) = mount.counted(|| mount.write("file", b"other").unwrap());
    assert_eq!(trips, 1);
}

#[test]
fn each_change_of_a_name_or_an_attribute_costs_one() {
    let mount = with_files();
    mount.names("").unwrap();
    let vfs = &mount.vfs;
    let root = Ino::ROOT;
    let one = |what: &str, op: &dyn Fn()| assert_eq!(mount.counted(op).1, 1, "{what}");
    let file = mount.find("file").unwrap().ino;
    one("mkdir", &|| {
        vfs.mkdir(&CX, root, b"d", 0o755).unwrap();
    });
    one("rmdir", &|| vfs.rmdir(&CX, root, b"d").unwrap());
    one("symlink", &|| {
        vfs.symlink(&CX, root, b"s", b"file").unwrap();
    });
    one("link", &|| {
        vfs.link(&CX, file, root, b"l").unwrap();
    });
    one("rename", &|| {
        vfs.rename(&CX, (root, b"l"), (root, b"m"), REPLACE)
            .unwrap();
    });
    one("unlink", &|| vfs.unlink(&CX, root, b"m").unwrap());
    let device = DeviceNumber::default();
    one("mknod", &|| {
        vfs.mknod(&CX, root, b"f", FileKind::Fifo, 0o600, device)
            .unwrap();
    });
    let set = |set: SetAttr| {
        vfs.setattr(&CX, file, None, &set).unwrap();
    };
    one("chmod", &|| {
        set(SetAttr {
            mode: Some(0o600),
            ..SetAttr::default()
        });
    });
    one("chown", &|| {
        set(SetAttr {
            uid: Some(0),
            ..SetAttr::default()
        });
    });
    one("truncate", &|| {
        set(SetAttr {
            size: Some(3),
            ..SetAttr::default()
        });
    });
    let now = Some(NewTime::Now);
    one("utimes", &|| {
        set(SetAttr {
            atime: now,
            mtime: now,
            ..SetAttr::default()
        });
    });
    assert_eq!(
        mount.counted(|| mount.names("").unwrap()).1,
        0,
        "all of it is known"
    );
}

#[test]
fn statfs_costs_one_and_then_nothing() {
    let mount = with_files();
    let inside = mount.find("dir/17").unwrap().ino;
    let statfs = |ino| mount.counted(|| mount.vfs.statfs(&CX, ino).unwrap()).1;
    assert_eq!(statfs(Ino::ROOT), 1);
    assert_eq!(statfs(Ino::ROOT), 0);
    assert_eq!(statfs(inside), 0, "of the same filesystem");
    fs::remove_file(mount.at("dir/17")).unwrap();
    mount.clock.advance(Duration::from_secs(11));
    assert_eq!(statfs(inside), 2, "it is gone, and its filesystem is not");
}

#[test]
fn statfs_reports_the_filesystem_of_the_file() {
    let world = Arc::new(World::new(Userland::Gnu));
    let settings = scpfs::remote::Settings {
        directory: b"/".to_vec(),
        ..world.settings()
    };
    let clock = Arc::new(ManualClock::new());
    let dyn_clock = Arc::clone(&clock) as Arc<dyn Clock>;
    let shell = probe::probe(world.transport(), &settings, dyn_clock).unwrap();
    let mount = Mount::of(Arc::new(Retry::new(shell)), world, clock, Setup::default());
    let etc = mount.find("etc").unwrap().ino;
    let proc = mount.find("proc/version").unwrap().ino;
    // A symlink may point to another filesystem.
    let link = mount.find("proc/self").unwrap().ino;
    let statfs = |ino| mount.counted(|| mount.vfs.statfs(&CX, ino).unwrap());
    let (of_root, trips) = statfs(Ino::ROOT);
    assert!(of_root.blocks > 0);
    assert_eq!(trips, 1);
    assert_eq!(statfs(etc), (of_root, 0));
    let (of_proc, trips) = statfs(proc);
    assert_eq!((of_proc.blocks, trips), (0, 1));
    assert_eq!(statfs(link), (of_proc, 0));
    assert_eq!(statfs(Ino::ROOT), (of_root, 0));
}

#[test]
fn fsync_costs_one_and_close_after_it_nothing() {
    let mount = with_files();
    mount.names("").unwrap();
    let (_, opened) = mount.create("new", libc::O_WRONLY).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"hello").unwrap();
    assert_eq!(
        mount.counted(|| mount.vfs.fsync(&CX, opened.fh).unwrap()).1,
        1
    );
    assert_eq!(
        mount.counted(|| mount.vfs.fsync(&CX, opened.fh).unwrap()).1,
        0
    );
    assert_eq!(mount.counted(|| mount.close(&opened).unwrap()).1, 0);
}

#[test]
fn lookup_in_a_new_directory_costs_nothing() {
    let mount = Mount::new();
    mount.names("").unwrap();
    let made = mount.vfs.mkdir(&CX, Ino::ROOT, b"dir", 0o755).unwrap();
    let ino = made.attr.unwrap().ino;
    let (found, trips) = mount.counted(|| mount.vfs.lookup(&CX, ino, b"file").unwrap());
    assert_eq!((found.attr.is_none(), trips), (true, 0));
    fs::write(mount.at("dir/file"), "by somebody else").unwrap();
    mount.age();
    assert_eq!(mount.read("dir/file").unwrap(), b"by somebody else");
}
