//! Names that are created, renamed and removed here.

use std::fs;

use scpfs::vfs::Error;
use scpfs::vfs::Ino;
use scpfs::vfs::OpenFlags;
use scpfs::vfs::RenameFlags;
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
