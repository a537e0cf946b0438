//! Dirty content whose file is renamed, removed or replaced: none of it is dropped.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use scpfs::sync::Mutex;
use scpfs::vfs::Ino;
use scpfs::vfs::OpenFlags;
use scpfs::vfs::SetAttr;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::Setup;

use crate::faulty::Fate;
use crate::faulty::Faulty;

/// Whether any file in the mounted directory of the host has exactly this content.
fn is_on_host(mount: &Mount, data: &[u8]) -> bool {
    let mut items = fs::read_dir(mount.world.root()).unwrap();
    items.any(|item| {
        let path = item.unwrap().path();
        path.is_file() && fs::read(path).unwrap() == data
    })
}

type Hook = Box<dyn FnOnce() -> bool + Send>;

/// Hooks that run once during a rename: the first before the host gets it, which refuses it if it
/// returns false; the second after the host has carried it out.
#[derive(Default)]
struct DuringRename(Mutex<Option<Hook>>, Mutex<Option<Hook>>);

impl std::fmt::Debug for DuringRename {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DuringRename")
    }
}

impl Fate for DuringRename {
    fn before(&self, act: &'static str) -> bool {
        let hook = (act == "rename").then(|| self.0.lock().take()).flatten();
        hook.is_none_or(|hook| hook())
    }

    fn after(&self, act: &'static str) -> bool {
        let acts = ["rename", "remove"];
        let hook = acts.contains(&act).then(|| self.1.lock().take()).flatten();
        hook.is_none_or(|hook| hook())
    }
}

fn with_writeback(during: &Arc<DuringRename>) -> Mount {
    let fate = Arc::clone(during);
    Mount::set_up(Setup {
        writeback: Some(Duration::from_secs(60)),
        around: Box::new(move |remote| Faulty::around(remote, fate)),
        ..Setup::default()
    })
}

#[test]
fn conflict_copy_takes_no_name_from_a_file_being_written() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "base").unwrap();
    let one = mount.open("file", libc::O_RDWR).unwrap();
    fs::write(mount.at("other"), "theirs").unwrap();
    fs::rename(mount.at("other"), mount.at("file")).unwrap();
    mount.age();
    let two = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, two.fh, 0, b"second").unwrap();
    mount.vfs.write(&CX, one.fh, 0, b"ours").unwrap();
    assert_eq!(mount.close(&one).unwrap_err().errno(), libc::ESTALE);
    mount.close(&two).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"second");
    assert_eq!(fs::read(mount.at(&mount.beside("file"))).unwrap(), b"ours");
}

#[test]
fn recreated_file_takes_no_name_from_a_new_file() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "base").unwrap();
    let one = mount.open("file", libc::O_RDWR).unwrap();
    fs::remove_file(mount.at("file")).unwrap();
    mount.age();
    assert!(mount.names("").unwrap().is_empty());
    let (_, two) = mount.create("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, two.fh, 0, b"second").unwrap();
    mount.vfs.write(&CX, one.fh, 0, b"ours").unwrap();
    let closed = [mount.close(&one), mount.close(&two)];
    assert!(closed.iter().any(Result::is_err), "one of them is told");
    assert!(is_on_host(&mount, b"ours") && is_on_host(&mount, b"second"));
}

#[test]
fn create_of_an_existing_file_opens_it() {
    // The kernel sends CREATE for an existing file if it has a negative entry for the name.
    let mount = Mount::new();
    let (attr, one) = mount.create("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, one.fh, 0, b"one").unwrap();
    let (again, two) = mount.create("file", libc::O_RDWR).unwrap();
    assert_eq!(attr.ino, again.ino);
    mount.vfs.write(&CX, two.fh, 3, b", two").unwrap();
    mount.close(&one).unwrap();
    mount.close(&two).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"one, two");
}

#[test]
fn write_in_a_removed_directory_survives_the_mount() {
    for writeback in [None, Some(Duration::from_secs(60))] {
        let mount = Mount::set_up(Setup {
            writeback,
            ..Setup::default()
        });
        fs::create_dir(mount.at("dir")).unwrap();
        fs::write(mount.at("dir/below"), "hello").unwrap();
        mount.age();
        let opened = mount.open("dir/below", libc::O_RDWR).unwrap();
        fs::rename(mount.at("dir"), mount.at("away")).unwrap();
        mount.age();
        mount.names("").unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"precious").unwrap();
        assert_eq!(mount.close(&opened).unwrap_err().errno(), libc::ESTALE);
        let mount = Mount::on(mount.crash(), Setup::default());
        let [one] = &mount.recovered[..] else {
            panic!("{:?}", mount.recovered);
        };
        let scpfs::cache::RecoveryOutcome::NeedsDecision { file, .. } = &one.outcome else {
            panic!("{one}");
        };
        assert_eq!(fs::read(file).unwrap(), b"precious");
        assert!(!mount.at("below").exists(), "it goes nowhere else");
    }
}

#[test]
fn open_read_only_with_truncate_truncates_on_the_host() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "base").unwrap();
    let opened = mount.open("file", libc::O_RDONLY | libc::O_TRUNC).unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"");
}

#[test]
fn truncate_by_path_of_a_waiting_upload_is_uploaded() {
    let mount = Mount::set_up(Setup {
        writeback: Some(Duration::from_secs(5)),
        ..Setup::default()
    });
    let (attr, opened) = mount.create("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"precious").unwrap();
    mount.close(&opened).unwrap();
    let set = SetAttr {
        size: Some(4),
        ..SetAttr::default()
    };
    mount.vfs.setattr(&CX, attr.ino, None, &set).unwrap();
    let mount = Mount::on(mount.crash(), Setup::default());
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"prec");
}

#[test]
fn close_during_a_rename_uploads_to_the_new_name() {
    let during = Arc::new(DuringRename::default());
    let mount = with_writeback(&during);
    fs::write(mount.at("file"), "base").unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
    let (vfs, fh) = (Arc::clone(&mount.vfs), opened.fh);
    let (closed, ended) = std::sync::mpsc::channel();
    *during.0.lock() = Some(Box::new(move || {
        // The close blocks until the rename is done.
        std::thread::spawn(move || {
            let result = vfs.flush(&CX, fh);
            closed.send(result.is_ok()).unwrap();
        });
        std::thread::sleep(Duration::from_millis(50));
        true
    }));
    mount.rename(b"file", b"moved").unwrap();
    assert!(ended.recv_timeout(Duration::from_secs(20)).unwrap());
    let mount = Mount::on(mount.crash(), Setup::default());
    assert_eq!(fs::read(mount.at("moved")).unwrap(), b"ours");
    assert!(!mount.at("file").exists());
}

/// Arms `during.1`, which opens `name`, writes to it and closes it after the host has carried out
/// the next rename or removal, before its answer arrives.
fn write_after(
    during: &DuringRename,
    mount: &Mount,
    name: &'static str,
) -> std::sync::mpsc::Receiver<bool> {
    let ino = mount.find(name).unwrap().ino;
    // Fetches the content.
    mount
        .close(&mount.open(name, libc::O_RDONLY).unwrap())
        .unwrap();
    let vfs = Arc::clone(&mount.vfs);
    let (closed, ended) = std::sync::mpsc::channel();
    *during.1.lock() = Some(Box::new(move || {
        let flags = OpenFlags::new(libc::O_RDWR).unwrap();
        let opened = vfs.open(&CX, ino, flags).unwrap();
        vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
        // The upload blocks until the answer has arrived.
        std::thread::spawn(move || {
            let result = vfs.flush(&CX, opened.fh);
            vfs.release(&CX, opened.fh).unwrap_or_default();
            closed.send(result.is_ok()).unwrap();
        });
        std::thread::sleep(Duration::from_millis(50));
        true
    }));
    ended
}

fn without_writeback(during: &Arc<DuringRename>) -> Mount {
    let fate = Arc::clone(during);
    Mount::set_up(Setup {
        around: Box::new(move |remote| Faulty::around(remote, fate)),
        ..Setup::default()
    })
}

#[test]
fn open_during_a_rename_uploads_to_the_new_name() {
    for (from, to, name, there) in [
        ("file", "moved", "file", "moved"),
        ("dir", "moved", "dir/file", "moved/file"),
    ] {
        let during = Arc::new(DuringRename::default());
        let mount = without_writeback(&during);
        fs::create_dir(mount.at("dir")).unwrap();
        fs::write(mount.at(name), "base").unwrap();
        let ended = write_after(&during, &mount, name);
        mount.rename(from.as_bytes(), to.as_bytes()).unwrap();
        assert!(ended.recv_timeout(Duration::from_secs(20)).unwrap());
        assert_eq!(fs::read(mount.at(there)).unwrap(), b"ours");
        assert!(!mount.at(name).exists());
    }
}

#[test]
fn open_during_an_unlink_does_not_bring_the_file_back() {
    let during = Arc::new(DuringRename::default());
    let mount = without_writeback(&during);
    fs::write(mount.at("file"), "base").unwrap();
    let ended = write_after(&during, &mount, "file");
    mount.vfs.unlink(&CX, Ino::ROOT, b"file").unwrap();
    assert!(ended.recv_timeout(Duration::from_secs(20)).unwrap());
    assert_eq!(fs::read_dir(mount.world.root()).unwrap().count(), 0);
}

#[test]
fn rename_that_was_not_carried_out_does_not_block_uploads() {
    let during = Arc::new(DuringRename::default());
    let mount = with_writeback(&during);
    fs::create_dir(mount.at("dir")).unwrap();
    mount.names("").unwrap();
    let dir = mount.find("dir").unwrap().ino;
    let flags = OpenFlags::new(libc::O_RDWR | libc::O_CREAT).unwrap();
    let (_, opened) = mount.vfs.create(&CX, dir, b"new", 0o644, flags).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
    mount.close(&opened).unwrap();
    // Copies the journal as it is if the daemon crashes after the rename is recorded and before it
    // is requested.
    let cache = mount.cache.disk().dir().to_owned();
    let seen = Arc::new(Mutex::new(None));
    let journal = Arc::clone(&seen);
    *during.0.lock() = Some(Box::new(move || {
        let copied = fs::read(cache.join("journal"));
        *journal.lock() = Some(copied);
        false
    }));
    mount.rename(b"dir", b"moved").unwrap_err();
    let at = mount.cache.disk().dir().join("journal");
    let world = mount.crash();
    let journal: io::Result<Vec<u8>> = seen.lock().take().unwrap();
    fs::write(at, journal.unwrap()).unwrap();
    let mount = Mount::on(world, Setup::default());
    assert_eq!(fs::read(mount.at("dir/new")).unwrap(), b"ours");
}

#[test]
fn write_to_a_file_whose_other_name_is_unknown_is_kept() {
    let mount = Mount::new();
    fs::create_dir(mount.at("sub")).unwrap();
    fs::write(mount.at("file"), "base").unwrap();
    fs::hard_link(mount.at("file"), mount.at("sub/other")).unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.unlink(&CX, Ino::ROOT, b"file").unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
    assert_eq!(mount.close(&opened).unwrap_err().errno(), libc::ESTALE);
    let mount = Mount::on(mount.crash(), Setup::default());
    assert_eq!(mount.recovered.len(), 1);
    assert!(!mount.at("file").exists());
    assert_eq!(fs::read(mount.at("sub/other")).unwrap(), b"base");
}
