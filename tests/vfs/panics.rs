//! A panic in the middle of an operation must not leave a file or a directory busy.

use std::fs;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use scpfs::remote::UploadSpec;
use scpfs::vfs::Ino;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::Setup;

use crate::faulty::Fate;
use crate::faulty::Faulty;

/// Panics at the next request of each kind that is armed.
#[derive(Debug, Default)]
struct Bugs {
    upload: AtomicBool,
    fetch: AtomicBool,
    listing: AtomicBool,
}

fn panic_once(bug: &AtomicBool) {
    assert!(!bug.swap(false, Ordering::SeqCst), "as a bug would");
}

impl Fate for Bugs {
    fn uploads(&self, _: &UploadSpec) {
        panic_once(&self.upload);
    }

    fn has_fetched(&self) {
        panic_once(&self.fetch);
    }

    fn has_listed(&self) {
        panic_once(&self.listing);
    }
}

fn mount() -> (Mount, Arc<Bugs>) {
    let bugs = Arc::new(Bugs::default());
    let fate = Arc::clone(&bugs);
    let mount = Mount::set_up(Setup {
        around: Box::new(move |remote| Faulty::around(remote, fate)),
        ..Setup::default()
    });
    (mount, bugs)
}

#[test]
fn close_uploads_after_an_upload_that_panicked() {
    let (mount, bugs) = mount();
    fs::write(mount.at("file"), "old").unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
    bugs.upload.store(true, Ordering::SeqCst);
    let flushed = catch_unwind(AssertUnwindSafe(|| mount.vfs.flush(&CX, opened.fh)));
    assert!(flushed.is_err(), "{flushed:?}");
    mount.vfs.write(&CX, opened.fh, 3, b"er").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"newer");
}

#[test]
fn open_fails_when_its_fetch_panics_and_succeeds_later() {
    let (mount, bugs) = mount();
    fs::write(mount.at("file"), "content").unwrap();
    bugs.fetch.store(true, Ordering::SeqCst);
    mount.open("file", libc::O_RDONLY).unwrap_err();
    assert_eq!(mount.read("file").unwrap(), b"content");
}

#[test]
fn readdir_and_lookup_go_on_after_a_listing_that_panicked() {
    let (mount, bugs) = mount();
    fs::write(mount.at("file"), "content").unwrap();
    for lists in [false, true] {
        mount.age();
        bugs.listing.store(true, Ordering::SeqCst);
        let result = catch_unwind(AssertUnwindSafe(|| {
            if lists {
                mount.names("").map(drop)
            } else {
                mount.vfs.lookup(&CX, Ino::ROOT, b"file").map(drop)
            }
        }));
        assert!(result.is_err(), "{result:?}");
        assert_eq!(mount.names("").unwrap(), ["file"]);
        mount.find("file").unwrap();
    }
}
