//! Open, read, write and close: when content is in the cache, and when it is on the host.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;

use scpfs::cache::Wait;
use scpfs::remote::NewTime;
use scpfs::stat::Time;
use scpfs::vfs::Context;
use scpfs::vfs::Error;
use scpfs::vfs::Ino;
use scpfs::vfs::SetAttr;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;

#[test]
fn close_returns_after_the_upload() {
    let mount = Mount::new();
    mount.write("file", b"one").unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"one");
    mount.write("file", b"two, longer").unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"two, longer");
    let opened = mount.open("file", libc::O_WRONLY | libc::O_APPEND).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"!").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"two, longer!");
    assert_eq!(mount.names("").unwrap(), ["file"]);
}

#[test]
fn upload_does_not_change_the_attributes_shown() {
    let mount = Mount::new();
    let (attr, opened) = mount.create("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"hello").unwrap();
    let before = mount.vfs.getattr(&CX, attr.ino).unwrap();
    mount.close(&opened).unwrap();
    let after = mount.vfs.getattr(&CX, attr.ino).unwrap();
    assert_eq!(before.shown_ino, after.shown_ino);
    assert_eq!(before.stat.mtime, after.stat.mtime);
    assert_eq!(before.stat.ctime, after.stat.ctime);
    let host = fs::metadata(mount.at("file")).unwrap();
    assert_eq!((host.mtime(), host.size()), (after.stat.mtime.secs, 5));
    // A lookup after forget shows the inode number of the host.
    mount.vfs.forget(attr.ino, 1);
    assert_eq!(mount.find("file").unwrap().shown_ino, host.ino());
}

#[test]
fn content_that_could_not_be_uploaded_stays_and_is_uploaded_later() {
    let mount = Mount::new();
    fs::create_dir(mount.at("dir")).unwrap();
    let dir = mount.find("dir").unwrap().ino;
    let flags = scpfs::vfs::OpenFlags::new(libc::O_WRONLY).unwrap();
    let (_, opened) = mount.vfs.create(&CX, dir, b"file", 0o644, flags).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"precious").unwrap();
    // A program on the host renames the directory.
    fs::rename(mount.at("dir"), mount.at("away")).unwrap();
    assert_eq!(mount.close(&opened).unwrap_err().errno(), libc::ENOENT);
    assert_eq!(mount.vfs.drain().len(), 1);
    mount.age();
    let flags = scpfs::vfs::OpenFlags::new(libc::O_RDONLY).unwrap();
    let ino = mount
        .vfs
        .lookup(&CX, dir, b"file")
        .unwrap()
        .attr
        .unwrap()
        .ino;
    let again = mount.vfs.open(&CX, ino, flags).unwrap();
    assert_eq!(mount.vfs.read(&CX, again.fh, 0, 100).unwrap(), b"precious");
    fs::rename(mount.at("away"), mount.at("dir")).unwrap();
    mount.close(&again).unwrap();
    assert_eq!(fs::read(mount.at("dir/file")).unwrap(), b"precious");
    assert!(mount.vfs.drain().is_empty());
}

#[test]
fn a_change_by_others_is_not_overwritten_unknowingly() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "base").unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
    fs::write(mount.at("file"), "theirs").unwrap();
    assert_eq!(mount.close(&opened).unwrap_err().errno(), libc::ESTALE);
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"theirs");
    let beside = mount.beside("file");
    assert_eq!(fs::read(mount.at(&beside)).unwrap(), b"ours");
    assert_eq!(mount.read("file").unwrap(), b"theirs");
    assert_eq!(mount.read(&beside).unwrap(), b"ours");
    // O_TRUNC replaces the file, as on any filesystem.
    mount.write("file", b"final").unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"final");
}

#[test]
fn a_new_file_does_not_overwrite_one_that_appeared_meanwhile() {
    let mount = Mount::new();
    let (_, opened) = mount.create("file", libc::O_WRONLY).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
    fs::write(mount.at("file"), "theirs").unwrap();
    assert_eq!(mount.close(&opened).unwrap_err().errno(), libc::ESTALE);
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"theirs");
    assert_eq!(fs::read(mount.at(&mount.beside("file"))).unwrap(), b"ours");
}

#[test]
fn times_set_on_an_open_file_do_not_make_its_upload_a_conflict() {
    // Regression: the upload expected the mtime that the file had before utimes().
    let mount = Mount::new();
    fs::write(mount.at("file"), "hello").unwrap();
    let ino = mount.find("file").unwrap().ino;
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    let time = Some(NewTime::At(Time {
        secs: 1_600_000_000,
        nanos: 0,
    }));
    let set = SetAttr {
        mtime: time,
        ..SetAttr::default()
    };
    mount.vfs.setattr(&CX, ino, Some(opened.fh), &set).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"j").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"jello");
}

#[test]
fn write_to_a_file_removed_by_others_is_reported_and_kept() {
    // Regression: close succeeded, and the content was dropped as if the file had been removed
    // here.
    let mount = Mount::new();
    fs::create_dir(mount.at("dir")).unwrap();
    {
        let name = "dir/below";
        fs::write(mount.at(name), "hello").unwrap();
        mount.age();
        let opened = mount.open(name, libc::O_RDWR).unwrap();
        fs::rename(mount.at(name.split('/').next().unwrap()), mount.at("away")).unwrap();
        mount.age();
        mount.names("").unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"precious").unwrap();
        assert_eq!(
            mount.close(&opened).unwrap_err().errno(),
            libc::ESTALE,
            "{name}"
        );
        let kept = fs::read_dir(mount.cache.disk().dir().join("content")).unwrap();
        let kept = kept.map(|item| fs::read(item.unwrap().path()).unwrap());
        assert!(kept.into_iter().any(|data| data == b"precious"), "{name}");
        let away = mount.at("away");
        if away.is_dir() {
            fs::remove_dir_all(away).unwrap();
        } else {
            fs::remove_file(away).unwrap();
        }
    }
    assert_eq!(mount.vfs.drain().len(), 1);
}

#[test]
fn readdir_and_lookup_in_a_directory_moved_by_others_fail_at_once() {
    // Regression: the second listing waited for ever for the first one, which had already failed.
    let mount = Mount::new();
    fs::create_dir_all(mount.at("a/b")).unwrap();
    let inside = mount.find("a/b").unwrap().ino;
    fs::rename(mount.at("a"), mount.at("moved")).unwrap();
    mount.age();
    mount.names("").unwrap();
    for _ in 0..2 {
        let fh = mount.vfs.opendir(inside).unwrap();
        assert!(mount.vfs.readdir(&CX, fh, 0).is_err());
        assert!(mount.vfs.lookup(&CX, inside, b"x").is_err());
        mount.vfs.releasedir(fh);
    }
}

#[test]
fn two_openers_share_one_fetch_and_one_content() {
    let mount = Mount::new();
    fs::write(mount.at("file"), vec![7; 50_000]).unwrap();
    mount.find("file").unwrap();
    let ((), trips) = mount.counted(|| {
        let one = mount.open("file", libc::O_RDWR).unwrap();
        let two = mount.open("file", libc::O_RDONLY).unwrap();
        mount.vfs.write(&CX, one.fh, 0, b"x").unwrap();
        assert_eq!(mount.vfs.read(&CX, two.fh, 0, 2).unwrap(), b"x\x07");
        mount.close(&two).unwrap();
        mount.close(&one).unwrap();
    });
    assert_eq!(
        trips, 2,
        "one fetch, and one upload although both were closed"
    );
}

#[test]
fn a_large_file_can_be_read_while_it_is_still_being_fetched() {
    let mount = Mount::new();
    let data: Vec<u8> = (0..2_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(mount.at("file"), &data).unwrap();
    mount.find("file").unwrap();
    mount.world.faults.lock().stops_after_read = Some(4 << 20);
    let one = mount.open("file", libc::O_RDONLY).unwrap();
    let two = mount.open("file", libc::O_RDONLY).unwrap();
    let start = mount.vfs.read(&CX, one.fh, 0, 1 << 20).unwrap();
    assert!(start == data[..1 << 20]);
    let hurried = Context {
        wait: Wait::Never,
        ..CX
    };
    let later = mount.vfs.read(&hurried, two.fh, 6 << 20, 100);
    assert!(later.unwrap_err().would_wait(), "it has not come so far");
    mount.world.faults.lock().stops_after_read = None;
    let rest = mount.vfs.read(&CX, two.fh, 1 << 20, 8 << 20).unwrap();
    assert!(rest == data[1 << 20..]);
    mount.close(&one).unwrap();
    mount.close(&two).unwrap();
    assert_eq!(
        mount.counted(|| mount.read("file").unwrap()).1,
        0,
        "one fetch"
    );
}

#[test]
fn open_with_truncate_fetches_nothing() {
    let mount = Mount::new();
    fs::write(mount.at("file"), vec![7; 3_000_000]).unwrap();
    mount.find("file").unwrap();
    let before = mount.world.meter.bytes_read();
    mount.write("file", b"short").unwrap();
    assert!(mount.world.meter.bytes_read() - before < 2000);
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"short");
}

#[test]
fn a_removed_file_that_is_open_goes_on_working_and_is_not_uploaded() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "hello").unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.unlink(&CX, Ino::ROOT, b"file").unwrap();
    mount.vfs.write(&CX, opened.fh, 5, b" world").unwrap();
    assert_eq!(
        mount.vfs.read(&CX, opened.fh, 0, 100).unwrap(),
        b"hello world"
    );
    mount.close(&opened).unwrap();
    assert!(!mount.at("file").exists());
    // A file that was never uploaded is not created by its last close either.
    let (_, opened) = mount.create("new", libc::O_WRONLY).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"x").unwrap();
    mount.vfs.unlink(&CX, Ino::ROOT, b"new").unwrap();
    mount.close(&opened).unwrap();
    assert!(!mount.at("new").exists());
    let content = mount.cache.disk().dir().join("content");
    let left: Vec<_> = fs::read_dir(content)
        .unwrap()
        .map(|item| item.unwrap().path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn truncating_a_file_cuts_it_on_the_host_or_in_its_open_content() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "hello world").unwrap();
    let ino = mount.find("file").unwrap().ino;
    let cut = |size| SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    mount.vfs.setattr(&CX, ino, None, &cut(5)).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"hello");
    assert_eq!(mount.read("file").unwrap(), b"hello");
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    let attr = mount
        .vfs
        .setattr(&CX, ino, Some(opened.fh), &cut(7))
        .unwrap();
    assert_eq!(attr.stat.size, 7);
    assert_eq!(
        mount.vfs.read(&CX, opened.fh, 0, 100).unwrap(),
        b"hello\0\0"
    );
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"hello\0\0");
}

#[test]
fn cache_evicts_the_least_recently_used_content() {
    let mount = Mount::with_cache_of(100_000);
    for name in ["a", "b", "c"] {
        fs::write(mount.at(name), vec![b'x'; 40_000]).unwrap();
    }
    for name in ["a", "b", "c"] {
        mount.read(name).unwrap();
    }
    assert_eq!(mount.cache.bytes(), 80_000);
    assert_eq!(mount.counted(|| mount.read("c").unwrap()).1, 0);
    assert_eq!(mount.counted(|| mount.read("a").unwrap()).1, 1);
    // A file that is larger than the cache can still be read.
    fs::write(mount.at("big"), vec![b'y'; 300_000]).unwrap();
    mount.age();
    assert_eq!(mount.read("big").unwrap().len(), 300_000);
    assert!(mount.cache.bytes() <= 100_000);
}

#[test]
fn a_file_that_may_not_be_written_is_refused_when_it_is_opened() {
    let mount = Mount::of_nobody();
    fs::write(mount.at("file"), "x").unwrap();
    fs::set_permissions(mount.at("file"), fs::Permissions::from_mode(0o444)).unwrap();
    assert!(matches!(
        mount.open("file", libc::O_WRONLY),
        Err(Error::AccessDenied)
    ));
}
