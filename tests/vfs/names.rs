//! Names that are created, renamed and removed here.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use scpfs::vfs::Error;
use scpfs::vfs::Ino;
use scpfs::vfs::OpenFlags;
use scpfs::vfs::RenameFlags;
use scpfs::vfs::SetAttr;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;

const ROOT: Ino = Ino::ROOT;

#[test]
fn content_that_is_not_yet_uploaded_goes_to_the_new_name() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "old").unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
    mount.rename("file", "moved").unwrap();
    assert_eq!(fs::read(mount.at("moved")).unwrap(), b"old");
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("moved")).unwrap(), b"new");
    assert!(!mount.at("file").exists());
}

#[test]
fn rename_of_a_file_that_is_not_uploaded_yet_works() {
    let mount = Mount::new();
    let (_, opened) = mount.create("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"one").unwrap();
    mount.rename("file", "moved").unwrap();
    mount.vfs.write(&CX, opened.fh, 3, b" two").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("moved")).unwrap(), b"one two");
    assert_eq!(mount.names("").unwrap(), ["moved"]);
}

#[test]
fn rename_of_a_directory_moves_its_open_files() {
    let mount = Mount::new();
    mount.vfs.mkdir(&CX, ROOT, b"dir", 0o755).unwrap();
    let dir = mount.find("dir").unwrap().ino;
    let flags = OpenFlags::new(libc::O_RDWR).unwrap();
    let (_, opened) = mount.vfs.create(&CX, dir, b"file", 0o644, flags).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"hello").unwrap();
    mount.rename("dir", "other").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("other/file")).unwrap(), b"hello");
    assert_eq!(mount.read("other/file").unwrap(), b"hello");
    assert!(matches!(mount.find("dir"), Err(Error::NotFound)));
}

#[test]
fn rename_over_an_open_file_keeps_it_whole_for_its_readers() {
    let mount = Mount::new();
    fs::write(mount.at("a"), "a").unwrap();
    fs::write(mount.at("b"), "b").unwrap();
    let opened = mount.open("b", libc::O_RDONLY).unwrap();
    mount.rename("a", "b").unwrap();
    assert_eq!(mount.read("b").unwrap(), b"a");
    assert_eq!(mount.vfs.read(&CX, opened.fh, 0, 10).unwrap(), b"b");
    mount.close(&opened).unwrap();
    let no_replace = RenameFlags {
        no_replace: true,
        exchange: false,
    };
    fs::write(mount.at("c"), "c").unwrap();
    mount.age();
    let error = mount
        .vfs
        .rename(&CX, (ROOT, b"b"), (ROOT, b"c"), no_replace)
        .unwrap_err();
    assert_eq!(error.errno(), libc::EEXIST);
}

#[test]
fn a_rename_over_a_file_that_is_not_uploaded_does_not_upload_it_first() {
    // Regression: the rename uploaded the file that it was to replace, and failed with the conflict
    // of that file.
    let mount = Mount::new();
    fs::write(mount.at("a"), "a").unwrap();
    fs::write(mount.at("b"), "b").unwrap();
    let opened = mount.open("b", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
    fs::write(mount.at("b"), "theirs").unwrap();
    let rename = || {
        mount.rename("a", "b").unwrap();
    };
    assert_eq!(mount.counted(rename).1, 1);
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("b")).unwrap(), b"a");
}

#[test]
fn hard_links_are_one_inode_with_one_content() {
    let mount = Mount::new();
    fs::write(mount.at("a"), "hello").unwrap();
    let ino = mount.find("a").unwrap().ino;
    mount.vfs.link(&CX, ino, ROOT, b"b").unwrap();
    assert_eq!(mount.find("b").unwrap().ino, ino);
    assert_eq!(mount.find("b").unwrap().stat.nlink, 2);
    mount.write("b", b"changed").unwrap();
    assert_eq!(mount.read("a").unwrap(), b"changed");
    assert_eq!(fs::read(mount.at("a")).unwrap(), b"changed");
    mount.vfs.unlink(&CX, ROOT, b"a").unwrap();
    assert_eq!(mount.find("b").unwrap().stat.nlink, 1);
    // Two names that the mount finds on the host also share one inode.
    fs::hard_link(mount.at("b"), mount.at("c")).unwrap();
    mount.age();
    assert_eq!(mount.find("c").unwrap().stat.nlink, 2);
    assert_eq!(mount.find("c").unwrap().ino, mount.find("b").unwrap().ino);
}

#[test]
fn errors_of_the_host_are_those_of_a_filesystem() {
    let mount = Mount::new();
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("dir/file"), "x").unwrap();
    let errno = |result: Result<(), Error>| result.unwrap_err().errno();
    let dir = mount.find("dir").unwrap().ino;
    assert_eq!(errno(mount.vfs.rmdir(&CX, ROOT, b"dir")), libc::ENOTEMPTY);
    assert_eq!(errno(mount.vfs.unlink(&CX, ROOT, b"dir")), libc::EISDIR);
    assert_eq!(errno(mount.vfs.unlink(&CX, ROOT, b"nope")), libc::ENOENT);
    assert_eq!(
        errno(mount.vfs.mkdir(&CX, ROOT, b"dir", 0o755).map(drop)),
        libc::EEXIST
    );
    let file = mount.find("dir/file").unwrap().ino;
    assert_eq!(
        errno(mount.vfs.lookup(&CX, file, b"x").map(drop)),
        libc::ENOTDIR
    );
    assert_eq!(errno(mount.vfs.opendir(file).map(drop)), libc::ENOTDIR);
    let long = vec![b'x'; 256];
    assert_eq!(
        errno(mount.vfs.mkdir(&CX, dir, &long, 0o755).map(drop)),
        libc::ENAMETOOLONG
    );
    let flags = OpenFlags::new(libc::O_RDONLY).unwrap();
    assert_eq!(
        errno(mount.vfs.open(&CX, dir, flags).map(drop)),
        libc::EISDIR
    );
}

/// In a directory that this mount has just made, the upload finds it; elsewhere the creation.
#[test]
fn a_name_that_others_create_in_a_new_directory_of_this_mount_is_never_replaced() {
    let mount = Mount::new();
    let dir = mount.vfs.mkdir(&CX, Ino::ROOT, b"made", 0o755).unwrap();
    let dir = dir.attr.unwrap().ino;
    let flags = OpenFlags::new(libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY).unwrap();
    let create = |name: &str| mount.vfs.create(&CX, dir, name.as_bytes(), 0o644, flags);
    let (_, opened) = create("taken").unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
    fs::write(mount.at("made/taken"), "theirs").unwrap();
    mount.close(&opened).unwrap_err();
    assert_eq!(fs::read(mount.at("made/taken")).unwrap(), b"theirs");
    assert_eq!(
        fs::read(mount.at(&mount.beside("made/taken"))).unwrap(),
        b"ours"
    );
    // The listing shows that others fill the directory too: from now on the host is asked.
    mount.age();
    mount.names("made").unwrap();
    fs::write(mount.at("made/second"), "theirs").unwrap();
    let error = create("second").unwrap_err();
    assert_eq!(error.errno(), libc::EEXIST);
    // And so it is after a while.
    let dir = mount.vfs.mkdir(&CX, Ino::ROOT, b"later", 0o755).unwrap();
    let dir = dir.attr.unwrap().ino;
    mount.clock.advance(Duration::from_secs(11));
    fs::write(mount.at("later/lock"), "theirs").unwrap();
    let error = mount
        .vfs
        .create(&CX, dir, b"lock", 0o644, flags)
        .unwrap_err();
    assert_eq!(error.errno(), libc::EEXIST);
}

/// An empty lock has the same content as the one that others hold.
#[test]
fn a_lock_that_others_hold_in_a_new_directory_is_never_taken_for_ours() {
    let mount = Mount::new();
    let dir = mount.vfs.mkdir(&CX, Ino::ROOT, b"made", 0o755).unwrap();
    let dir = dir.attr.unwrap().ino;
    fs::write(mount.at("made/lock"), "").unwrap();
    let flags = OpenFlags::new(libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY).unwrap();
    if let Ok((_, opened)) = mount.vfs.create(&CX, dir, b"lock", 0o644, flags) {
        mount.close(&opened).unwrap_err();
    }
    // Others may have waited for the new name of a directory.
    mount.rename("made", "moved").unwrap();
    fs::write(mount.at("moved/second"), "theirs").unwrap();
    let created = mount.vfs.create(&CX, dir, b"second", 0o644, flags);
    assert_eq!(created.unwrap_err().errno(), libc::EEXIST);
}

/// A mode that takes permissions away must be true when chmod returns.
#[test]
fn chmod_of_a_file_that_was_just_created_is_on_the_host_unless_it_only_adds_permissions() {
    let mount = Mount::new();
    let flags = libc::O_EXCL | libc::O_WRONLY;
    let mode = |mode| SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    };
    let on_host = |name: &str| fs::metadata(mount.at(name)).unwrap().mode() & 0o777;
    let (attr, opened) = mount.create("secret", flags).unwrap();
    let fh = Some(opened.fh);
    mount.vfs.setattr(&CX, attr.ino, fh, &mode(0o600)).unwrap();
    assert_eq!(on_host("secret"), 0o600);
    mount.close(&opened).unwrap();
    let (attr, opened) = mount.create("wider", flags).unwrap();
    let fh = Some(opened.fh);
    mount.vfs.setattr(&CX, attr.ino, fh, &mode(0o755)).unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(on_host("wider"), 0o755);
}
