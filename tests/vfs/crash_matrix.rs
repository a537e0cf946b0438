//! The crash matrix: a program and its host stop after each step of either, and the next mount must
//! find every file with its old or its new content. It uses neither sleeps nor random numbers.
//!
//! The steps of this machine are those of `cache::Step`. The steps of the host are the arrival of a
//! request and the arrival of its answer here. Nothing changes after the step at which everything
//! stops.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use scpfs::cache::RecoveryOutcome;
use scpfs::cache::Step;
use scpfs::cache::Steps;
use scpfs::sync::Mutex;
use scpfs::vfs::Ino;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::Setup;

use crate::faulty::Fate;
use crate::faulty::Faulty;

const OLD: &[u8] = b"the old content";
const MIDDLE: &[u8] = b"half way";
const NEW: &[u8] = b"something new, which is longer";

/// Permits this number of steps, of the local disk and of the host together, and refuses all later
/// ones.
#[derive(Debug)]
struct Stop {
    left: AtomicUsize,
    has_refused: AtomicBool,
    taken: Mutex<Vec<String>>,
}

impl Stop {
    fn after(n: usize) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicUsize::new(n),
            has_refused: AtomicBool::new(false),
            taken: Mutex::new(Vec::new()),
        })
    }

    fn take(&self, step: String) -> bool {
        let left = self
            .left
            .try_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if left.is_ok() {
            self.taken.lock().push(step);
        } else {
            self.has_refused.store(true, Ordering::SeqCst);
        }
        left.is_ok()
    }

    fn has_refused(&self) -> bool {
        self.has_refused.load(Ordering::SeqCst)
    }
}

impl Steps for Stop {
    fn before(&self, step: Step) -> io::Result<()> {
        if self.take(format!("{step:?}")) {
            Ok(())
        } else {
            Err(io::Error::other("stopped"))
        }
    }
}

impl Fate for Stop {
    fn before(&self, act: &'static str) -> bool {
        self.take(format!("host: {act}"))
    }

    fn after(&self, act: &'static str) -> bool {
        self.take(format!("heard: {act}"))
    }

    fn answers(&self) -> bool {
        !self.has_refused()
    }
}

type Ended = Result<(), scpfs::vfs::Error>;

/// The operations of a program; `Ok` if all of them succeeded.
struct Story {
    name: &'static str,
    run: fn(&Mount) -> Ended,
    /// The content of all files before and after the operations.
    before: &'static [(&'static str, &'static [u8])],
    after: &'static [(&'static str, &'static [u8])],
}

fn write(mount: &Mount, fh: scpfs::vfs::Fh, offset: u64, data: &[u8]) -> Ended {
    // Two writes, so that a mount that shows half of the content is detected.
    let (a, b) = data.split_at(data.len() / 2);
    mount.vfs.write(&CX, fh, offset, a)?;
    mount.vfs.write(&CX, fh, offset + a.len() as u64, b)?;
    Ok(())
}

fn close(mount: &Mount, opened: &scpfs::vfs::Opened) -> Ended {
    let result = mount.vfs.flush(&CX, opened.fh);
    drop(mount.vfs.release(&CX, opened.fh));
    result
}

fn change(mount: &Mount, name: &str, flags: i32, offset: u64, data: &[u8]) -> Ended {
    let opened = mount.open(name, flags)?;
    let written = write(mount, opened.fh, offset, data);
    let closed = close(mount, &opened);
    written.and(closed)
}

const STORIES: &[Story] = &[
    Story {
        name: "create",
        run: |mount| {
            let (_, opened) = mount.create("file", libc::O_WRONLY)?;
            let written = write(mount, opened.fh, 0, NEW);
            let closed = close(mount, &opened);
            written.and(closed)
        },
        before: &[],
        after: &[("file", NEW)],
    },
    Story {
        name: "overwrite",
        run: |mount| change(mount, "file", libc::O_RDWR, 0, NEW),
        before: &[("file", OLD)],
        after: &[("file", NEW)],
    },
    Story {
        name: "append",
        run: |mount| {
            change(
                mount,
                "file",
                libc::O_WRONLY | libc::O_APPEND,
                0,
                b", and more",
            )
        },
        before: &[("file", OLD)],
        after: &[("file", b"the old content, and more")],
    },
    Story {
        name: "truncate",
        run: |mount| change(mount, "file", libc::O_WRONLY | libc::O_TRUNC, 0, NEW),
        before: &[("file", OLD)],
        after: &[("file", NEW)],
    },
    Story {
        name: "rename over",
        run: |mount| {
            let (_, opened) = mount.create("temp", libc::O_WRONLY)?;
            let written = write(mount, opened.fh, 0, NEW);
            let closed = close(mount, &opened);
            written.and(closed)?;
            mount.rename("temp", "file")
        },
        before: &[("file", OLD)],
        after: &[("file", NEW)],
    },
    Story {
        name: "rename while it is written",
        run: |mount| {
            let opened = mount.open("file", libc::O_RDWR)?;
            let written = write(mount, opened.fh, 0, NEW);
            let renamed = mount.rename("file", "other");
            let closed = close(mount, &opened);
            written.and(renamed).and(closed)
        },
        before: &[("file", OLD)],
        after: &[("other", NEW)],
    },
    Story {
        name: "fsync in the middle",
        run: |mount| {
            let opened = mount.open("file", libc::O_WRONLY | libc::O_TRUNC)?;
            let written = write(mount, opened.fh, 0, MIDDLE);
            let synced = mount.vfs.fsync(&CX, opened.fh);
            // The program continues whether or not the upload succeeded.
            let more = write(mount, opened.fh, 0, NEW);
            let closed = close(mount, &opened);
            written.and(synced).and(more).and(closed)
        },
        before: &[("file", OLD)],
        after: &[("file", NEW)],
    },
    Story {
        name: "unlink while it is written",
        run: |mount| {
            let opened = mount.open("file", libc::O_RDWR)?;
            let written = write(mount, opened.fh, 0, NEW);
            let unlinked = mount.vfs.unlink(&CX, Ino::ROOT, b"file");
            let closed = close(mount, &opened);
            written.and(unlinked).and(closed)
        },
        before: &[("file", OLD)],
        after: &[],
    },
];

fn on_host(world: &World) -> BTreeMap<String, Vec<u8>> {
    let items = fs::read_dir(world.root()).unwrap().map(Result::unwrap);
    items
        .map(|item| {
            let name = item.file_name().into_string().unwrap();
            (name, fs::read(item.path()).unwrap())
        })
        .collect()
}

/// Runs a story that stops after `n` steps, and then the next mount. Returns whether it was stopped
/// before its end.
fn run(story: &Story, n: usize, boot: &'static str) -> bool {
    run_with(story, n, usize::MAX, boot)
}

/// Like [`run`], but the host stops after it has run `n_programs` programs, and cannot be reached
/// after that.
fn run_with(story: &Story, n: usize, n_programs: usize, boot: &'static str) -> bool {
    let world = Arc::new(World::new(Userland::Gnu));
    let counts = n_programs < usize::MAX;
    if counts {
        world.count_programs();
    }
    for (name, data) in story.before {
        fs::write(world.root().join(name), data).unwrap();
    }
    let stop = Stop::after(usize::MAX);
    let fate = Arc::clone(&stop) as Arc<dyn Fate>;
    let mount = Mount::on(
        Arc::clone(&world),
        Setup {
            steps: Arc::clone(&stop) as Arc<dyn Steps>,
            around: Box::new(move |remote| Faulty::around(remote, fate)),
            ..Setup::default()
        },
    );
    mount.names("").unwrap();
    stop.left.store(n, Ordering::SeqCst);
    stop.taken.lock().clear();
    if counts {
        world.leave_programs(n_programs);
        world.faults.lock().refuses = true;
    }
    let ended = (story.run)(&mount);
    // A story that was stopped counts as failed, even if this process saw its calls succeed.
    let was_stopped = stop.has_refused() || (counts && ended.is_err());
    let taken = stop.taken.lock().join(", ");
    let at = format!(
        "{}, stopped after [{taken}], {n_programs} programs",
        story.name
    );
    mount.crash();
    if counts {
        world.leave_programs(1_000_000);
        world.faults.lock().refuses = false;
    }

    let mount = Mount::on(
        Arc::clone(&world),
        Setup {
            boot,
            ..Setup::default()
        },
    );
    let host = on_host(&world);
    // The host and the journal contain no partial content.
    let whole: BTreeSet<&[u8]> = story
        .before
        .iter()
        .chain(story.after)
        .map(|(_, data)| *data)
        // A file whose removal has an unknown outcome may come back.
        .chain([NEW, MIDDLE])
        .collect();
    for (name, data) in &host {
        assert!(
            whole.contains(data.as_slice()),
            "{at}: {name} has {:?}",
            String::from_utf8_lossy(data)
        );
    }
    let kept: Vec<Vec<u8>> = mount
        .recovered
        .iter()
        .filter_map(|one| match &one.outcome {
            RecoveryOutcome::NeedsDecision { file, .. }
            | RecoveryOutcome::NextMount { file, .. } => Some(fs::read(file).unwrap()),
            _ => None,
        })
        .collect();
    let has = |data: &[u8]| host.values().any(|d| d == data);
    let expected: BTreeMap<String, Vec<u8>> = story
        .after
        .iter()
        .map(|(name, data)| ((*name).to_owned(), data.to_vec()))
        .collect();
    if ended.is_ok() && !was_stopped {
        assert_eq!(host, expected, "{at}: it was acknowledged");
        assert!(kept.is_empty(), "{at}: {:?}", mount.recovered);
    } else {
        // The old content of each file is on the host, or all new contents are.
        for (_, old) in story.before {
            let is_there = has(old) || has(MIDDLE) || story.after.iter().all(|(_, new)| has(new));
            assert!(is_there, "{at}: the old content is lost: {host:?}");
        }
    }
    // The mount shows the files of the host, and new files can be written.
    let mut shown = mount.names("").unwrap();
    shown.sort();
    assert_eq!(shown, host.keys().cloned().collect::<Vec<_>>(), "{at}");
    mount.write("probe", b"works").unwrap();
    assert_eq!(fs::read(mount.at("probe")).unwrap(), b"works");
    was_stopped
}

fn matrix(boot: &'static str) {
    let mut n_runs = 0;
    for story in STORIES {
        for n in 0.. {
            n_runs += 1;
            if !run(story, n, boot) {
                break;
            }
            assert!(n < 100, "{} does not end", story.name);
        }
    }
    assert!(n_runs > 60, "only {n_runs} crashes");
}

#[test]
fn after_a_crash_at_any_step_every_file_is_old_or_new() {
    matrix("boot");
}

#[test]
fn after_the_host_stops_at_any_program_every_file_is_old_or_new() {
    let mut n_runs = 0;
    for story in STORIES {
        for n_programs in 0.. {
            n_runs += 1;
            if !run_with(story, usize::MAX, n_programs, "boot") {
                break;
            }
            assert!(n_programs < 100, "{} does not end", story.name);
        }
    }
    assert!(n_runs > 30, "only {n_runs} ends");
}

#[test]
fn after_a_power_failure_at_any_step_every_file_is_old_or_new() {
    matrix("another boot");
}
