//! TTL: how long listings, attributes and contents are used without asking the host.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use scpfs::cache::Wait;
use scpfs::sync::Mutex;
use scpfs::vfs::Change;
use scpfs::vfs::Context;
use scpfs::vfs::Error;
use scpfs::vfs::Ino;
use scpfs::vfs::OpenFlags;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;

#[test]
fn changes_of_others_are_seen_after_the_timeout() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "one").unwrap();
    assert_eq!(mount.read("file").unwrap(), b"one");
    mount.find("later").unwrap_err();
    fs::write(mount.at("file"), "other").unwrap();
    fs::write(mount.at("later"), "x").unwrap();
    fs::create_dir(mount.at("dir")).unwrap();
    mount.age();
    assert_eq!(mount.read("file").unwrap(), b"other");
    assert_eq!(mount.find("file").unwrap().stat.size, 5);
    assert_eq!(mount.names("").unwrap(), ["dir", "file", "later"]);
    fs::remove_file(mount.at("later")).unwrap();
    mount.age();
    assert!(matches!(mount.find("later"), Err(Error::NotFound)));
}

#[test]
fn a_file_that_others_replaced_is_a_new_inode_while_the_old_is_open() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "old").unwrap();
    let old = mount.find("file").unwrap();
    let opened = mount.open("file", libc::O_RDONLY).unwrap();
    fs::write(mount.at("new"), "new content").unwrap();
    fs::rename(mount.at("new"), mount.at("file")).unwrap();
    mount.age();
    assert_eq!(mount.read("file").unwrap(), b"new content");
    assert_ne!(mount.find("file").unwrap().ino, old.ino);
    assert_eq!(mount.vfs.read(&CX, opened.fh, 0, 100).unwrap(), b"old");
    mount.close(&opened).unwrap();
}

#[test]
fn an_unreachable_host_is_not_an_empty_one() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "hello").unwrap();
    mount.read("file").unwrap();
    mount.age();
    mount.world.faults.lock().refuses = true;
    mount.world.faults.lock().cut_after_read = Some(0);
    let error = mount.find("file").unwrap_err();
    assert!(!error.is_not_found(), "{error}");
    assert_ne!(error.errno(), libc::ENOENT);
    assert!(mount.names("").is_err());
    mount.world.faults.lock().refuses = false;
    mount.clock.advance(std::time::Duration::from_secs(60));
    assert_eq!(mount.read("file").unwrap(), b"hello");
    assert_eq!(mount.names("").unwrap(), ["file"]);
}

#[test]
fn calls_that_must_not_wait_are_refused_instead_of_waiting() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "hello").unwrap();
    let hurried = Context {
        wait: Wait::Never,
        ..CX
    };
    let would_wait = |error: Error| assert!(error.would_wait(), "{error}");
    let (_, trips) = mount.counted(|| {
        would_wait(mount.vfs.lookup(&hurried, Ino::ROOT, b"file").unwrap_err());
        would_wait(
            mount
                .vfs
                .mkdir(&hurried, Ino::ROOT, b"d", 0o755)
                .unwrap_err(),
        );
        would_wait(mount.vfs.statfs(&hurried, Ino::ROOT).unwrap_err());
    });
    assert_eq!(trips, 0);
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    assert_eq!(
        mount.vfs.read(&hurried, opened.fh, 0, 10).unwrap(),
        b"hello"
    );
    // The first write flushes the journal to the local disk.
    would_wait(mount.vfs.write(&hurried, opened.fh, 0, b"j").unwrap_err());
    mount.vfs.write(&CX, opened.fh, 0, b"j").unwrap();
    mount.vfs.write(&hurried, opened.fh, 1, b"a").unwrap();
    would_wait(mount.vfs.flush(&hurried, opened.fh).unwrap_err());
    mount.close(&opened).unwrap();
}

#[test]
fn links_that_lead_out_of_the_root_cannot_be_read() {
    let mount = Mount::new();
    fs::create_dir(mount.at("dir")).unwrap();
    symlink("/etc/passwd", mount.at("dir/out")).unwrap();
    symlink("../../etc/passwd", mount.at("dir/up")).unwrap();
    symlink(mount.at("file"), mount.at("dir/in")).unwrap();
    for name in ["dir/out", "dir/up"] {
        let ino = mount.find(name).unwrap().ino;
        assert!(
            matches!(mount.vfs.readlink(&CX, ino), Err(Error::LeadsOutside)),
            "{name}"
        );
    }
    let link = mount.find("dir/in").unwrap();
    assert_eq!(mount.vfs.readlink(&CX, link.ino).unwrap(), b"../file");
    assert_eq!(link.stat.size, 7);
}

#[test]
fn a_link_with_two_names_leads_inside_from_both_or_cannot_be_read() {
    let mount = Mount::new();
    fs::create_dir(mount.at("dir")).unwrap();
    symlink("../file", mount.at("dir/link")).unwrap();
    let deep = mount.find("dir/link").unwrap().ino;
    assert_eq!(mount.vfs.readlink(&CX, deep).unwrap(), b"../file");
    // Seen from the root, the target is outside. The kernel does not tell by which name it reads
    // the link.
    fs::hard_link(mount.at("dir/link"), mount.at("link")).unwrap();
    mount.age();
    let top = mount.find("link").unwrap().ino;
    mount.find("dir/link").unwrap();
    for ino in [top, mount.find("link").unwrap().ino] {
        let result = mount.vfs.readlink(&CX, ino);
        assert!(matches!(result, Err(Error::LeadsOutside)), "{result:?}");
    }
}

#[test]
fn inodes_that_are_forgotten_are_not_kept() {
    let mount = Mount::new();
    for n in 0..100 {
        fs::write(mount.at(&format!("file{n}")), "x").unwrap();
    }
    let inos: Vec<Ino> = (0..100)
        .map(|n| mount.find(&format!("file{n}")).unwrap().ino)
        .collect();
    for ino in &inos {
        mount.vfs.forget(*ino, 1);
    }
    assert!(matches!(
        mount.vfs.getattr(&CX, inos[0]),
        Err(Error::UnknownInode)
    ));
    assert_eq!(format!("{:?}", mount.vfs), "Vfs { inodes: 1, .. }");
    // The attributes of a forgotten inode are still cached.
    assert_eq!(mount.counted(|| mount.find("file7").unwrap()).1, 0);
}

/// The kernel clamps reads to its cached `i_size`, which may be older than the version that is
/// opened.
#[test]
fn open_of_a_newer_version_invalidates_the_attributes_in_the_kernel() {
    let mount = Mount::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    mount
        .vfs
        .set_notify(Box::new(move |change| tell.lock().push(change)));
    fs::write(mount.at("file"), "short").unwrap();
    assert_eq!(mount.read("file").unwrap(), b"short");
    let ino = mount.find("file").unwrap().ino;
    fs::write(mount.at("file"), "longer than before").unwrap();
    mount.age();
    // The listing updates the size here; the kernel still has the old one.
    mount.names("").unwrap();
    let flags = OpenFlags::new(libc::O_RDONLY).unwrap();
    for is_new in [true, false] {
        told.lock().clear();
        let opened = mount.vfs.open(&CX, ino, flags).unwrap();
        assert_eq!(opened.keeps_page_cache, !is_new);
        assert_eq!(told.lock().contains(&Change::Attributes(ino)), is_new);
        let read = mount.vfs.read(&CX, opened.fh, 0, 100).unwrap();
        assert_eq!(read, b"longer than before");
        mount.close(&opened).unwrap();
    }
}

fn of_host(mount: &Mount, name: &str, content: &str) {
    // Written in place, so that the inode stays the same.
    fs::write(mount.at(name), content).unwrap();
    mount.age();
}

#[test]
fn an_open_file_that_changed_on_the_host_shows_size_and_content_of_one_version() {
    let mount = Mount::new();
    of_host(&mount, "file", &"A".repeat(23));
    let opened = mount.open("file", libc::O_RDONLY).unwrap();
    let ino = mount.find("file").unwrap().ino;
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    mount
        .vfs
        .set_notify(Box::new(move |change| tell.lock().push(change)));
    for content in ["b\n", "grown again, and more than before", ""] {
        told.lock().clear();
        of_host(&mount, "file", content);
        // The listing reports the new size before any getattr of the file.
        mount.names("").unwrap();
        let size = mount.vfs.getattr(&CX, ino).unwrap().stat.size;
        let read = mount.vfs.read(&CX, opened.fh, 0, 100).unwrap();
        assert_eq!((size, &*read), (content.len() as u64, content.as_bytes()));
        // The kernel drops its cached pages when size or mtime change, so no notification is sent.
        assert_eq!(*told.lock(), []);
    }
    assert_eq!(
        mount.counted(|| mount.vfs.getattr(&CX, ino).unwrap()).1,
        0,
        "what is known costs nothing"
    );
    mount.close(&opened).unwrap();
}

#[test]
fn an_open_file_whose_newer_version_cannot_be_fetched_stays_the_older_one() {
    let mount = Mount::new();
    of_host(&mount, "file", "older content");
    let opened = mount.open("file", libc::O_RDONLY).unwrap();
    let ino = mount.find("file").unwrap().ino;
    of_host(&mount, "file", "new");
    let older = mount.vfs.getattr(&CX, ino).unwrap();
    mount.names("").unwrap();
    assert_eq!(older.stat.size, 3);
    // The listing is fresh, and the host cannot be reached when the content is to be fetched.
    of_host(&mount, "file", "newest of all");
    mount.names("").unwrap();
    mount.world.faults.lock().refuses = true;
    mount.world.faults.lock().cut_after_read = Some(0);
    for _ in 0..2 {
        let attr = mount.vfs.getattr(&CX, ino).unwrap();
        let read = mount.vfs.read(&CX, opened.fh, 0, 100).unwrap();
        assert_eq!((attr.stat.size, &*read), (3, &b"new"[..]));
        assert_eq!(attr.stat.mtime, older.stat.mtime);
    }
    mount.open("file", libc::O_RDONLY).unwrap_err();
    assert_eq!(mount.vfs.read(&CX, opened.fh, 0, 100).unwrap(), b"new");
    mount.world.faults.lock().refuses = false;
    mount.clock.advance(std::time::Duration::from_secs(60));
    assert_eq!(mount.vfs.getattr(&CX, ino).unwrap().stat.size, 13);
    assert_eq!(
        mount.vfs.read(&CX, opened.fh, 0, 100).unwrap(),
        b"newest of all"
    );
    mount.close(&opened).unwrap();
}

#[test]
fn an_open_file_that_was_written_to_keeps_its_content_when_the_host_changes_it() {
    let mount = Mount::new();
    of_host(&mount, "file", "base");
    let reader = mount.open("file", libc::O_RDONLY).unwrap();
    let writer = mount.open("file", libc::O_RDWR).unwrap();
    let ino = mount.find("file").unwrap().ino;
    of_host(&mount, "file", "of the host");
    // The next write starts from the older version, which is its base version.
    let attr = mount.vfs.getattr(&CX, ino).unwrap();
    let read = mount.vfs.read(&CX, reader.fh, 0, 100).unwrap();
    assert_eq!((attr.stat.size, &*read), (4, &b"base"[..]));
    mount.vfs.write(&CX, writer.fh, 4, b" and ours").unwrap();
    assert!(matches!(
        mount.close(&writer),
        Err(Error::Cache(scpfs::cache::Error::ConflictCopy { .. }))
    ));
    mount.close(&reader).unwrap();
    let ours = fs::read(mount.at(&mount.beside("file"))).unwrap();
    assert_eq!(ours, b"base and ours");
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"of the host");
}

#[test]
fn a_large_open_file_that_changed_is_shown_whole_or_not_at_all() {
    let mount = Mount::new();
    let content = |byte: &str, len: usize| byte.repeat(len);
    of_host(&mount, "file", &content("a", 1 << 20));
    let opened = mount.open("file", libc::O_RDONLY).unwrap();
    let ino = mount.find("file").unwrap().ino;
    of_host(&mount, "file", &content("b", 4 << 20));
    let mut sizes = Vec::new();
    scpfs_testing::wait::wait_until("the newer version is shown", || {
        let size = mount.vfs.getattr(&CX, ino).unwrap().stat.size;
        let at = mount.vfs.read(&CX, opened.fh, (1 << 20) - 1, 2).unwrap();
        let after = mount.vfs.getattr(&CX, ino).unwrap().stat.size;
        if size == after {
            let expected: &[u8] = if size == 1 << 20 { b"a" } else { b"bb" };
            assert_eq!(at, expected, "{size}");
        }
        size == 4 << 20
    });
    sizes.push(mount.find("file").unwrap().stat.size);
    // Meanwhile open() waits for the newest version, and reads by earlier handles return the
    // version that they have.
    of_host(&mount, "file", &content("c", 2 << 20));
    let late = mount.open("file", libc::O_RDONLY).unwrap();
    sizes.push(mount.find("file").unwrap().stat.size);
    assert_eq!(mount.vfs.read(&CX, late.fh, 0, 1).unwrap(), b"c");
    assert_eq!(mount.vfs.read(&CX, opened.fh, 0, 1).unwrap(), b"c");
    assert_eq!(sizes, [4 << 20, 2 << 20]);
    mount.close(&opened).unwrap();
    mount.close(&late).unwrap();
}
