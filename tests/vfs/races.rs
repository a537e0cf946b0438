//! Rare orders of events; none of them may lose or mix contents.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use scpfs::clock::Clock;
use scpfs::clock::ManualClock;
use scpfs::path::Name;
use scpfs::path::RemotePath;
use scpfs::remote::AttrChange;
use scpfs::remote::Content;
use scpfs::remote::Expect;
use scpfs::remote::NewTime;
use scpfs::remote::Remote;
use scpfs::remote::UploadSpec;
use scpfs::stat::Time;
use scpfs::vfs::Ino;
use scpfs::vfs::OpenFlags;
use scpfs::vfs::SetAttr;
use scpfs_testing::capability::is_root;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::memory_host::Memory;
use scpfs_testing::samples::upload_spec;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::NOBODY;
use scpfs_testing::vfs_mount::Setup;
use scpfs_testing::wait::is_true_within;
use scpfs_testing::wait::wait_until;

use crate::faulty::Faulty;

#[test]
fn uploads_within_one_second_leave_the_last_content_in_the_cache() {
    // The timestamps of this host have a resolution of one second, and an upload in place keeps the
    // inode.
    let mount = Mount::on(Arc::new(World::new(Userland::OpenWrt)), Setup::default());
    fs::write(mount.at("file"), "base").unwrap();
    fs::hard_link(mount.at("file"), mount.at("other")).unwrap();
    for data in [&b"one"[..], b"two", b"3rd"] {
        mount.write("file", data).unwrap();
        assert_eq!(fs::read(mount.at("file")).unwrap(), data);
        let read = mount.read("file").unwrap();
        assert_eq!(read, data, "{}", String::from_utf8_lossy(&read));
    }
}

#[test]
fn rename_over_a_hard_link_shows_its_writes_under_the_other_name() {
    for is_written_before in [true, false] {
        let mount = Mount::new();
        fs::create_dir(mount.at("sub")).unwrap();
        fs::write(mount.at("file"), "base").unwrap();
        fs::hard_link(mount.at("file"), mount.at("sub/other")).unwrap();
        fs::write(mount.at("new"), "new").unwrap();
        let opened = mount.open("file", libc::O_RDWR).unwrap();
        let write = || mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
        if is_written_before {
            write();
        }
        mount.rename("new", "file").unwrap();
        if !is_written_before {
            write();
        }
        let closed = mount.close(&opened);
        assert_eq!(fs::read(mount.at("file")).unwrap(), b"new");
        let other = fs::read(mount.at("sub/other")).unwrap();
        if is_written_before {
            closed.unwrap();
            assert_eq!(other, b"ours");
        } else {
            // The mount has not seen the other name.
            assert_eq!(closed.unwrap_err().errno(), libc::ESTALE);
            let mount = Mount::on(mount.crash(), Setup::default());
            assert_eq!(mount.recovered.len(), 1);
        }
    }
}

#[test]
fn chmod_of_a_waiting_upload_survives_a_crash() {
    let setup = || Setup {
        writeback: Some(Duration::from_secs(3600)),
        ..Setup::default()
    };
    let mount = Mount::set_up(setup());
    mount.write("secret", b"content").unwrap();
    let ino = mount.find("secret").unwrap().ino;
    let mtime = Time { secs: 5, nanos: 0 };
    let set = SetAttr {
        mode: Some(0o600),
        mtime: Some(NewTime::At(mtime)),
        ..SetAttr::default()
    };
    mount.vfs.setattr(&CX, ino, None, &set).unwrap();
    let mount = Mount::on(mount.crash(), setup());
    let meta = fs::metadata(mount.at("secret")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
    assert_eq!(std::os::unix::fs::MetadataExt::mtime(&meta), 5);
}

fn set_mode(mount: &Mount, name: &str, mode: u32) {
    fs::set_permissions(mount.at(name), fs::Permissions::from_mode(mode)).unwrap();
    mount.age();
}

#[test]
fn a_file_that_may_not_be_read_is_not_read_from_the_cache() {
    let mount = Mount::of_nobody();
    mount.write("file", b"content").unwrap();
    assert_eq!(mount.read("file").unwrap(), b"content");
    for mode in [0o000, 0o200, 0o044] {
        set_mode(&mount, "file", mode);
        let error = mount.read("file").unwrap_err();
        assert_eq!(error.errno(), libc::EACCES, "{mode:o}: {error}");
    }
    set_mode(&mount, "file", 0o400);
    assert_eq!(mount.read("file").unwrap(), b"content");
    // The same for a mode that is set here, and for a new file that is not on the host yet.
    let ino = mount.find("file").unwrap().ino;
    let none = SetAttr {
        mode: Some(0),
        ..SetAttr::default()
    };
    mount.vfs.setattr(&CX, ino, None, &none).unwrap();
    assert_eq!(mount.read("file").unwrap_err().errno(), libc::EACCES);
    let flags = OpenFlags::new(libc::O_WRONLY | libc::O_CREAT).unwrap();
    let created = mount.vfs.create(&CX, Ino::ROOT, b"new", 0o200, flags);
    let (_, opened) = created.unwrap();
    assert_eq!(mount.read("new").unwrap_err().errno(), libc::EACCES);
    mount.vfs.release(&CX, opened.fh).unwrap();
}

#[test]
fn an_acl_that_lets_the_login_user_read_a_file_counts() {
    if !is_root() {
        return;
    }
    let mount = Mount::of_nobody();
    fs::write(mount.at("file"), "content").unwrap();
    // Linux include/uapi/linux/posix_acl_xattr.h: version 2, then tag, permissions and id of the
    // owner, a user, the group, the mask and the others.
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 6, u32::MAX),
        (0x02, 4, NOBODY),
        (0x04, 0, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in entries {
        acl.extend([tag.to_le_bytes(), bits.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    let flags = rustix::fs::XattrFlags::empty();
    let name = "system.posix_acl_access";
    rustix::fs::setxattr(mount.at("file"), name, &acl, flags).unwrap();
    for _ in 0..2 {
        assert_eq!(mount.read("file").unwrap(), b"content");
        mount.age();
    }
    set_mode(&mount, "file", 0o600);
    assert_eq!(mount.read("file").unwrap_err().errno(), libc::EACCES);
}

#[test]
fn root_reads_a_file_without_read_permission() {
    if !is_root() {
        return;
    }
    let mount = Mount::new();
    mount.write("file", b"content").unwrap();
    set_mode(&mount, "file", 0);
    let read = || mount.read("file").unwrap();
    assert_eq!(read(), b"content");
    assert_eq!(mount.counted(read), (b"content".to_vec(), 0));
}

#[test]
fn open_right_after_a_fetch_was_given_up_fetches_the_file() {
    /// Delays the end of a fetch.
    #[derive(Debug, Default)]
    struct Late {
        is_late: AtomicBool,
        has_ended: AtomicBool,
    }
    impl crate::faulty::Fate for Late {
        fn has_fetched(&self) {
            self.has_ended.store(true, Ordering::SeqCst);
            wait_until("the fetch may end", || !self.is_late.load(Ordering::SeqCst));
        }
    }
    let late = Arc::new(Late::default());
    let fate = Arc::clone(&late);
    let mount = Mount::set_up(Setup {
        around: Box::new(|remote| Faulty::around(remote, fate)),
        ..Setup::default()
    });
    let data: Vec<u8> = (0..4_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(mount.at("file"), &data).unwrap();
    mount.find("file").unwrap();
    mount.world.faults.lock().stops_after_read = Some(4 << 20);
    late.is_late.store(true, Ordering::SeqCst);
    // An open for writing fetches the whole content.
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.read(&CX, opened.fh, 0, 100).unwrap();
    mount.close(&opened).unwrap();
    mount.world.faults.lock().stops_after_read = None;
    wait_until("the fetch has ended", || {
        late.has_ended.load(Ordering::SeqCst)
    });
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| mount.read("file"));
        std::thread::sleep(Duration::from_millis(50));
        late.is_late.store(false, Ordering::SeqCst);
        assert!(reader.join().unwrap().unwrap() == data);
    });
}

#[test]
fn upload_succeeds_although_a_lock_is_held_for_long() {
    // Scripts of which only one instance may run lock a file and hold the lock while they run.
    let mount = Mount::new();
    fs::write(mount.at("file"), "base").unwrap();
    let held = fs::File::open(mount.at("file")).unwrap();
    held.lock().unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"ours");
}

#[test]
fn close_with_writeback_uploads_if_the_local_disk_fails() {
    #[derive(Debug)]
    struct FullDisk;
    impl scpfs::cache::Steps for FullDisk {
        fn before(&self, step: scpfs::cache::Step) -> io::Result<()> {
            if step == scpfs::cache::Step::FlushContent {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            Ok(())
        }
    }
    let mount = Mount::set_up(Setup {
        writeback: Some(Duration::from_secs(60)),
        steps: Arc::new(FullDisk),
        ..Setup::default()
    });
    let (_, opened) = mount.create("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"content").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"content");
}

#[test]
fn retried_upload_does_not_replace_later_changes_by_others() {
    for writeback in [None, Some(Duration::from_secs(5))] {
        let mount = Mount::set_up(Setup {
            writeback,
            ..Setup::default()
        });
        fs::write(mount.at("file"), "old").unwrap();
        let opened = mount.open("file", libc::O_WRONLY | libc::O_TRUNC).unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
        mount.world.cut_off();
        assert_eq!(mount.close(&opened).is_ok(), writeback.is_some());
        fs::write(mount.at("file"), "theirs, which is newer").unwrap();
        mount.world.faults.lock().refuses = false;
        mount.clock.advance(Duration::from_secs(60));
        wait_until("it is uploaded", || mount.vfs.drain().is_empty());
        assert_eq!(
            fs::read(mount.at("file")).unwrap(),
            b"theirs, which is newer"
        );
        assert_eq!(fs::read(mount.at(&mount.beside("file"))).unwrap(), b"ours");
    }
}

#[test]
fn truncate_replaces_a_change_by_others_that_was_seen_before() {
    let mount = Mount::set_up(Setup {
        writeback: Some(Duration::from_secs(5)),
        ..Setup::default()
    });
    mount.write("file", b"first").unwrap();
    for data in [&b"one"[..], b"another"] {
        assert!(mount.vfs.drain().is_empty());
        // A change by others that the mount has seen before it truncates the file.
        fs::write(mount.at("file"), "theirs").unwrap();
        mount.age();
        assert_eq!(mount.find("file").unwrap().stat.size, 6);
        mount.write("file", data).unwrap();
        assert!(mount.vfs.drain().is_empty());
        assert_eq!(fs::read(mount.at("file")).unwrap(), data);
    }
    assert_eq!(mount.names("").unwrap(), ["file"]);
}

#[test]
fn upload_succeeds_after_two_uploads_of_unknown_outcome() {
    /// The first upload is carried out and the second is not; both have an unknown outcome.
    #[derive(Debug, Default)]
    struct TwoUnheard(AtomicUsize);
    impl crate::faulty::Fate for TwoUnheard {
        fn before(&self, act: &'static str) -> bool {
            if act == "upload" {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
            true
        }
        fn after(&self, act: &'static str) -> bool {
            act != "upload" || self.0.load(Ordering::SeqCst) != 1
        }
        fn is_lost(&self, act: &'static str) -> bool {
            act == "upload" && self.0.load(Ordering::SeqCst) == 2
        }
    }
    // The timestamps of this host have a resolution of one second.
    let world = Arc::new(World::new(Userland::OpenWrt));
    let setup = Setup {
        around: Box::new(|remote| Faulty::around(remote, Arc::new(TwoUnheard::default()))),
        ..Setup::default()
    };
    let mount = Mount::on(world, setup);
    fs::write(mount.at("file"), "old").unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"one").unwrap();
    mount.vfs.flush(&CX, opened.fh).unwrap_err();
    mount.vfs.write(&CX, opened.fh, 0, b"two").unwrap();
    mount.vfs.flush(&CX, opened.fh).unwrap_err();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"two");
}

#[test]
fn a_deep_chain_of_directories_is_forgotten_from_its_top() {
    let clock = Arc::new(ManualClock::new());
    let remote = Arc::new(Memory::new(Arc::clone(&clock) as Arc<dyn Clock>));
    let world = Arc::new(World::new(Userland::Gnu));
    let mount = Mount::of(remote, world, clock, Setup::default());
    let mut chain = vec![Ino::ROOT];
    for _ in 0..1900 {
        let found = mount.vfs.mkdir(&CX, chain[chain.len() - 1], b"d", 0o755);
        chain.push(found.unwrap().attr.unwrap().ino);
    }
    // Several threads may receive FORGET; those that serve requests have a small stack.
    let vfs = Arc::clone(&mount.vfs);
    let small = std::thread::Builder::new().stack_size(512 << 10);
    let thread = small.spawn(move || {
        for &ino in &chain[1..] {
            vfs.forget(ino, 1);
        }
    });
    thread.unwrap().join().unwrap();
}

#[test]
fn upload_after_an_unreadable_partial_upload_keeps_changes_by_others() {
    /// While this is set, uploads end in the middle and the host answers no other request.
    #[derive(Debug, Default)]
    struct Half(AtomicBool);
    impl crate::faulty::Fate for Half {
        fn breaks_off(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
        fn answers(&self) -> bool {
            !self.0.load(Ordering::SeqCst)
        }
    }
    let half = Arc::new(Half::default());
    let fate = Arc::clone(&half);
    let mount = Mount::set_up(Setup {
        around: Box::new(|remote| Faulty::around(remote, fate)),
        ..Setup::default()
    });
    fs::write(mount.at("file"), "base").unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
    half.0.store(true, Ordering::SeqCst);
    mount.vfs.flush(&CX, opened.fh).unwrap_err();
    half.0.store(false, Ordering::SeqCst);
    fs::write(mount.at("file"), "theirs").unwrap();
    assert_eq!(mount.close(&opened).unwrap_err().errno(), libc::ESTALE);
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"theirs");
    assert_eq!(fs::read(mount.at(&mount.beside("file"))).unwrap(), b"ours");
}

#[test]
fn open_with_truncate_without_permission_changes_nothing() {
    // The login user of this host is not root.
    let clock = Arc::new(ManualClock::new());
    let host = Arc::new(Memory::new(Arc::clone(&clock) as Arc<dyn Clock>));
    let path = RemotePath::root().join(&Name::new(b"file").unwrap());
    host.put(&path, b"content").unwrap();
    let change = AttrChange {
        mode: Some(0o444),
        ..AttrChange::default()
    };
    host.set_attr(&path, &change).unwrap();
    let world = Arc::new(World::new(Userland::Gnu));
    let remote = Arc::clone(&host) as Arc<dyn Remote>;
    let mount = Mount::of(remote, world, clock, Setup::default());
    let flags = libc::O_RDONLY | libc::O_TRUNC;
    let error = mount.open("file", flags).unwrap_err();
    assert_eq!(error.errno(), libc::EACCES);
    assert_eq!(host.get(&path).unwrap(), b"content");
}

#[test]
fn copy_on_the_host_replaces_no_unseen_version() {
    for flags in [libc::O_WRONLY | libc::O_TRUNC, libc::O_WRONLY] {
        let mount = Mount::new();
        fs::write(mount.at("from"), "content").unwrap();
        fs::write(mount.at("to"), "").unwrap();
        let from = mount.open("from", libc::O_RDONLY).unwrap();
        let to = mount.open("to", flags).unwrap();
        fs::write(mount.at("to"), "theirs").unwrap();
        let copied = mount
            .vfs
            .copy_file_range(&CX, (from.fh, 0), (to.fh, 0), 1 << 20);
        // After EOPNOTSUPP, the kernel copies by reading and writing.
        assert_eq!(copied.unwrap_err().errno(), libc::EOPNOTSUPP);
        assert_eq!(fs::read(mount.at("to")).unwrap(), b"theirs");
        mount.vfs.write(&CX, to.fh, 0, b"content").unwrap();
        let closed = mount.close(&to);
        mount.close(&from).unwrap();
        if flags & libc::O_TRUNC != 0 {
            closed.unwrap();
            assert_eq!(fs::read(mount.at("to")).unwrap(), b"content");
        } else {
            assert_eq!(closed.unwrap_err().errno(), libc::ESTALE);
            assert_eq!(fs::read(mount.at("to")).unwrap(), b"theirs");
        }
    }
}

#[test]
fn a_small_file_does_not_wait_for_large_ones() {
    /// Content whose reads block while the flag is set.
    struct Slow<'a>(&'a AtomicBool);
    impl Content for Slow<'_> {
        fn read_at(&self, buf: &mut [u8], _offset: u64) -> io::Result<usize> {
            wait_until("the upload may go on", || !self.0.load(Ordering::SeqCst));
            Ok(buf.len())
        }
    }
    let mount = Mount::new();
    fs::write(mount.at("small"), "content").unwrap();
    mount.find("small").unwrap();
    let is_halted = AtomicBool::new(true);
    std::thread::scope(|scope| {
        for n in 0..mount.remote.contact().max {
            let (remote, is_halted) = (&mount.remote, &is_halted);
            scope.spawn(move || {
                let path =
                    RemotePath::root().join(&Name::new(format!("large{n}").as_bytes()).unwrap());
                let spec = UploadSpec {
                    size: 1 << 20,
                    expect: Expect::Absent,
                    ..upload_spec(&[])
                };
                remote.upload(&path, &Slow(is_halted), &spec).unwrap();
            });
        }
        let reader = scope.spawn(|| {
            let read = mount.read("small");
            let written = mount.write("other", b"content");
            (read, written, is_halted.load(Ordering::SeqCst))
        });
        is_true_within(Duration::from_secs(2), || reader.is_finished());
        is_halted.store(false, Ordering::SeqCst);
        let (read, written, was_halted) = reader.join().unwrap();
        assert_eq!(read.unwrap(), b"content");
        written.unwrap();
        assert!(was_halted, "it waited");
    });
}

#[test]
fn unlink_of_the_last_name_after_others_removed_one_removes_the_file() {
    let mount = Mount::new();
    fs::write(mount.at("one"), "base").unwrap();
    fs::hard_link(mount.at("one"), mount.at("two")).unwrap();
    let opened = mount.open("one", libc::O_RDWR).unwrap();
    mount.find("two").unwrap();
    fs::remove_file(mount.at("one")).unwrap();
    mount.age();
    assert_eq!(mount.names("").unwrap(), ["two"]);
    mount.vfs.unlink(&CX, Ino::ROOT, b"two").unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
    mount.close(&opened).unwrap();
    assert!(mount.names("").unwrap().is_empty());
    assert_eq!(fs::read_dir(mount.world.root()).unwrap().count(), 0);
}

#[test]
fn utimes_does_not_hide_a_change_by_others() {
    for is_open in [false, true] {
        let mount = Mount::new();
        fs::write(mount.at("file"), "base").unwrap();
        assert_eq!(mount.read("file").unwrap(), b"base");
        let opened = mount.open("file", libc::O_RDWR).unwrap();
        if !is_open {
            mount.close(&opened).unwrap();
        }
        // An in-place change of the same size, with an mtime so old that it is not checked as a
        // recent one.
        mount.clock.advance(Duration::from_secs(2));
        fs::write(mount.at("file"), "them").unwrap();
        let ino = mount.find("file").unwrap().ino;
        let set = SetAttr {
            mtime: Some(NewTime::At(Time { secs: 5, nanos: 7 })),
            ..SetAttr::default()
        };
        mount.vfs.setattr(&CX, ino, None, &set).unwrap();
        if is_open {
            mount.vfs.write(&CX, opened.fh, 0, b"B").unwrap();
            assert_eq!(mount.close(&opened).unwrap_err().errno(), libc::ESTALE);
            assert_eq!(fs::read(mount.at("file")).unwrap(), b"them");
        }
        assert_eq!(mount.read("file").unwrap(), b"them");
    }
}
