//! Uploads in place that end in the middle: the next upload must tell a partial upload from a
//! change by others.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use scpfs::cache::RecoveryOutcome;
use scpfs::clock::Clock;
use scpfs::clock::ManualClock;
use scpfs::remote::retry::Retry;
use scpfs::sync::Mutex;
use scpfs::vfs::Opened;
use scpfs::vfs::SetAttr;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::Setup;

use crate::faulty::Faulty;

const OLD: &[u8] = b"the old content of the file, which is long";
const NEW: &[u8] = b"what is written here, and saved";

/// How the upload fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The host reports an error.
    Said,
    /// The connection breaks, and the host cannot be reached for a while.
    Lost,
}

/// Makes the next upload fail after it has overwritten the file with this content.
#[derive(Debug)]
struct BreaksOff {
    at: PathBuf,
    end: End,
    leaves: Mutex<Option<Vec<u8>>>,
    is_away: AtomicBool,
}

impl BreaksOff {
    fn breaks(&self, end: End) -> bool {
        if self.end != end {
            return false;
        }
        let Some(leaves) = self.leaves.lock().take() else {
            return false;
        };
        // Written in place, so that the inode stays the same.
        fs::write(&self.at, leaves).unwrap();
        self.is_away.store(end == End::Lost, Ordering::SeqCst);
        true
    }
}

impl crate::faulty::Fate for BreaksOff {
    fn before(&self, _: &'static str) -> bool {
        !self.is_away.load(Ordering::SeqCst)
    }

    fn is_lost(&self, act: &'static str) -> bool {
        act == "upload" && self.breaks(End::Lost)
    }

    fn breaks_off(&self) -> bool {
        self.breaks(End::Said)
    }

    fn answers(&self) -> bool {
        !self.is_away.load(Ordering::SeqCst)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// The file has a second hard link, so that it is uploaded in place.
    Shell,
    ScpOnly,
}

fn mount_of(dialect: Dialect, world: Arc<World>, setup: Setup) -> Mount {
    let clock = Arc::new(ManualClock::new());
    let dyn_clock = Arc::clone(&clock) as Arc<dyn Clock>;
    match dialect {
        Dialect::Shell => {
            let remote = Arc::new(Retry::new(world.shell(dyn_clock)));
            Mount::of(remote, world, clock, setup)
        }
        Dialect::ScpOnly => {
            let remote = Arc::new(Retry::new(world.scp(dyn_clock)));
            Mount::of(remote, world, clock, setup)
        }
    }
}

/// Returns a mount whose first upload has failed in the middle, and the handle that was written to.
fn broken_off(dialect: Dialect, end: End, leaves: &[u8]) -> (Mount, Arc<BreaksOff>, Opened) {
    let world = Arc::new(match dialect {
        Dialect::Shell => World::new(Userland::Gnu),
        Dialect::ScpOnly => World::scp_only("SSH-2.0-OpenSSH_9.2"),
    });
    let at = world.root().join("file");
    fs::write(&at, OLD).unwrap();
    if dialect == Dialect::Shell {
        fs::hard_link(&at, world.root().join("other name")).unwrap();
    }
    let breaks_off = Arc::new(BreaksOff {
        at,
        end,
        leaves: Mutex::new(Some(leaves.to_vec())),
        is_away: AtomicBool::new(false),
    });
    let fate = Arc::clone(&breaks_off);
    let setup = Setup {
        around: Box::new(|remote| Faulty::around(remote, fate)),
        ..Setup::default()
    };
    let mount = mount_of(dialect, world, setup);
    assert_eq!(mount.read("file").unwrap(), OLD);
    // If no version identifies the content, the cache drops it when it is closed.
    let truncates = (dialect, end) == (Dialect::Shell, End::Said);
    let flags = if truncates { libc::O_TRUNC } else { 0 };
    let opened = mount.open("file", libc::O_RDWR | flags).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, NEW).unwrap();
    let ino = mount.find("file").unwrap().ino;
    let size = SetAttr {
        size: Some(NEW.len() as u64),
        ..SetAttr::default()
    };
    mount.vfs.setattr(&CX, ino, Some(opened.fh), &size).unwrap();
    mount.vfs.flush(&CX, opened.fh).unwrap_err();
    (mount, breaks_off, opened)
}

/// Partial uploads: a prefix of the new content; or a prefix followed by the rest of the old
/// content, if the program on the host truncates the file only at the end.
fn parts() -> [Vec<u8>; 5] {
    let and_rest = |n: usize| [&NEW[..n], &OLD[n..]].concat();
    [
        NEW[..10].to_vec(),
        Vec::new(),
        and_rest(1),
        and_rest(20),
        and_rest(NEW.len()),
    ]
}

const KINDS: [(Dialect, End); 4] = [
    (Dialect::Shell, End::Said),
    (Dialect::Shell, End::Lost),
    (Dialect::ScpOnly, End::Said),
    (Dialect::ScpOnly, End::Lost),
];

#[test]
fn an_upload_in_place_that_broke_off_is_repaired_by_the_next() {
    for (dialect, end) in KINDS {
        for leaves in parts() {
            let (mount, breaks_off, opened) = broken_off(dialect, end, &leaves);
            breaks_off.is_away.store(false, Ordering::SeqCst);
            let closed = mount.close(&opened);
            assert!(closed.is_ok(), "{dialect:?} {end:?} {leaves:?}: {closed:?}");
            assert_eq!(fs::read(mount.at("file")).unwrap(), NEW);
            if dialect == Dialect::Shell {
                assert_eq!(fs::read(mount.at("other name")).unwrap(), NEW);
            }
            let content = mount.cache.disk().dir().join("content");
            let kept = fs::read_dir(content).unwrap();
            let kept = kept.filter(|item| {
                let name = item.as_ref().unwrap().file_name();
                name.as_encoded_bytes().starts_with(b"o-")
            });
            assert_eq!(kept.count(), 0, "the old content is kept for nobody");
        }
    }
}

#[test]
fn upload_after_a_partial_upload_in_place_keeps_changes_by_others() {
    let (shorter, as_long) = (b"theirs".to_vec(), vec![b't'; OLD.len()]);
    let appended = [&NEW[..10], &OLD[10..], b", and theirs"].concat();
    let edited = [&NEW[..10], &OLD[10..OLD.len() - 1], b"G"].concat();
    for (dialect, end) in KINDS {
        for theirs in [&shorter, &as_long, &appended, &edited] {
            let leaves = [&NEW[..10], &OLD[10..]].concat();
            let (mount, breaks_off, opened) = broken_off(dialect, end, &leaves);
            fs::write(mount.at("file"), theirs).unwrap();
            breaks_off.is_away.store(false, Ordering::SeqCst);
            let closed = mount.close(&opened).map_err(|error| error.errno());
            assert_eq!(closed, Err(libc::ESTALE), "{dialect:?} {end:?} {theirs:?}");
            assert_eq!(fs::read(mount.at("file")).unwrap(), *theirs);
            assert_eq!(fs::read(mount.at(&mount.beside("file"))).unwrap(), NEW);
        }
    }
}

#[test]
fn an_upload_in_place_that_broke_off_is_repaired_by_the_next_mount() {
    let theirs = vec![b't'; OLD.len()];
    for (dialect, end) in KINDS {
        for leaves in parts() {
            for is_theirs in [false, true] {
                let (mount, _, _) = broken_off(dialect, end, &leaves);
                if is_theirs {
                    fs::write(mount.at("file"), &theirs).unwrap();
                }
                let world = mount.crash();
                let mount = mount_of(dialect, world, Setup::default());
                let what = format!("{dialect:?} {end:?} {leaves:?} {:?}", mount.recovered);
                let [recovered] = &mount.recovered[..] else {
                    panic!("{what}")
                };
                let file = fs::read(mount.at("file")).unwrap();
                if is_theirs {
                    assert!(
                        matches!(recovered.outcome, RecoveryOutcome::ConflictCopy(_)),
                        "{what}"
                    );
                    assert_eq!(file, theirs, "{what}");
                    assert_eq!(fs::read(mount.at(&mount.beside("file"))).unwrap(), NEW);
                } else {
                    assert!(
                        matches!(recovered.outcome, RecoveryOutcome::Uploaded),
                        "{what}"
                    );
                    assert_eq!(file, NEW, "{what}");
                }
            }
        }
    }
}
