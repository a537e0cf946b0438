//! Listings that race with a rename or a removal of ours, and renames of unknown outcome.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc;
use std::time::Duration;

use scpfs::cache;
use scpfs::cache::Wait;
use scpfs::clock::ManualClock;
use scpfs::sync::Mutex;
use scpfs::vfs::Context;
use scpfs::vfs::Error;
use scpfs::vfs::Ino;
use scpfs::vfs::Opened;
use scpfs::vfs::Vfs;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::REPLACE;
use scpfs_testing::vfs_mount::Setup;
use scpfs_testing::vfs_mount::TTL;

use crate::faulty::Fate;
use crate::faulty::Faulty;

type Hook<T = ()> = Box<dyn FnOnce() -> T + Send>;

/// Runs a hook after the host has carried out a request and before its answer arrives.
#[derive(Default)]
struct InFlight {
    /// Runs at a rename or a removal; the answer is lost if it returns false.
    changed: Mutex<Option<Hook<bool>>>,
    listed: Mutex<Option<Hook>>,
    /// Runs at a request for attributes.
    looked: Mutex<Option<Hook>>,
    is_away: AtomicBool,
}

impl InFlight {
    /// Runs `hook` while the answer to the next rename or removal is in flight; the answer is lost
    /// if `hook` returns false.
    fn at_change(&self, hook: impl FnOnce() -> bool + Send + 'static) {
        *self.changed.lock() = Some(Box::new(hook));
    }

    /// Loses the answer to the next rename or removal: its outcome is unknown.
    fn lose_answer(&self) {
        self.at_change(|| false);
    }

    /// Runs `hook` while the answer to the next listing is in flight.
    fn at_listing(&self, hook: impl FnOnce() + Send + 'static) {
        *self.listed.lock() = Some(Box::new(hook));
    }

    /// Runs `hook` while the answer to the next request for attributes is in flight.
    fn at_look(&self, hook: impl FnOnce() + Send + 'static) {
        *self.looked.lock() = Some(Box::new(hook));
    }
}

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InFlight")
    }
}

impl Fate for InFlight {
    fn after(&self, act: &'static str) -> bool {
        let acts = ["rename", "remove"];
        let hook = acts.contains(&act).then(|| self.changed.lock().take());
        hook.flatten().is_none_or(|hook| hook())
    }

    fn has_listed(&self) {
        let hook = self.listed.lock().take();
        if let Some(hook) = hook {
            hook();
        }
    }

    fn has_looked(&self) {
        let hook = self.looked.lock().take();
        if let Some(hook) = hook {
            hook();
        }
    }

    fn answers(&self) -> bool {
        !self.is_away.load(SeqCst)
    }
}

fn mount(writeback: Option<Duration>) -> (Mount, Arc<InFlight>) {
    let in_flight = Arc::new(InFlight::default());
    let fate = Arc::clone(&in_flight);
    let mount = Mount::set_up(Setup {
        writeback,
        around: Box::new(move |remote| Faulty::around(remote, fate)),
        ..Setup::default()
    });
    (mount, in_flight)
}

fn list(vfs: &Vfs, ino: Ino) {
    let Ok(fh) = vfs.opendir(ino) else { return };
    let _names = vfs.readdir(&CX, fh, 0);
    vfs.releasedir(fh);
}

/// Renames an entry of the root directory, as [`Mount::rename`] does; for hooks, which cannot
/// borrow the [`Mount`].
fn rename(vfs: &Vfs, from: &str, to: &str) -> Result<(), Error> {
    let (from, to) = ((Ino::ROOT, from.as_bytes()), (Ino::ROOT, to.as_bytes()));
    vfs.rename(&CX, from, to, REPLACE)
}

/// Lists the root and these directories while the next rename or removal is in flight.
fn list_in_flight(mount: &Mount, in_flight: &InFlight, dirs: &[Ino]) {
    let (vfs, clock, dirs) = (
        Arc::clone(&mount.vfs),
        Arc::clone(&mount.clock),
        dirs.to_vec(),
    );
    in_flight.at_change(move || {
        clock.advance(TTL + Duration::from_secs(1));
        list(&vfs, Ino::ROOT);
        // Listings below the renamed directory block until the rename is done.
        std::thread::spawn(move || dirs.iter().for_each(|ino| list(&vfs, *ino)));
        true
    });
}

/// Renames on the host and loses the answer: the outcome is unknown.
fn rename_with_unknown_outcome(mount: &Mount, in_flight: &InFlight, from: &str, to: &str) {
    in_flight.lose_answer();
    mount.rename(from, to).unwrap_err();
}

/// Regression: a write after the rename was uploaded to the old name, which reappeared on the host.
#[test]
fn renamed_open_file_keeps_its_new_name_despite_a_concurrent_listing() {
    for is_replaced in [false, true] {
        let (mount, in_flight) = mount(None);
        fs::write(mount.at("one"), "first,").unwrap();
        if is_replaced {
            fs::write(mount.at("two"), "replaced").unwrap();
        }
        let opened = mount.open("one", libc::O_RDWR).unwrap();
        mount.names("").unwrap();
        list_in_flight(&mount, &in_flight, &[]);
        mount.rename("one", "two").unwrap();
        mount.vfs.write(&CX, opened.fh, 6, b"second").unwrap();
        mount.close(&opened).unwrap();
        assert_eq!(fs::read(mount.at("two")).unwrap(), b"first,second");
        assert_eq!(mount.names("").unwrap(), ["two"]);
        assert!(!mount.at("one").exists(), "it came back");
    }
}

/// Regression: content that was closed below a directory was never uploaded after the directory was
/// renamed.
#[test]
fn rename_of_a_directory_moves_its_waiting_uploads() {
    let (mount, in_flight) = mount(Some(Duration::from_secs(3600)));
    fs::create_dir_all(mount.at("dir/sub")).unwrap();
    for name in ["dir/file", "dir/sub/file"] {
        fs::write(mount.at(name), "old").unwrap();
        mount.write(name, b"new").unwrap();
    }
    let dirs = ["dir", "dir/sub"].map(|name| mount.find(name).unwrap().ino);
    list_in_flight(&mount, &in_flight, &dirs);
    mount.rename("dir", "moved").unwrap();
    let left = mount.vfs.drain();
    assert!(left.is_empty(), "{left:?}");
    for name in ["moved/file", "moved/sub/file"] {
        assert_eq!(fs::read(mount.at(name)).unwrap(), b"new", "{name}");
    }
    assert_eq!(mount.names("").unwrap(), ["moved"]);
}

/// Regression: a file that was removed here was recreated by its close.
#[test]
fn removed_file_stays_removed_despite_a_concurrent_listing() {
    let (mount, in_flight) = mount(None);
    fs::write(mount.at("file"), "old").unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    list_in_flight(&mount, &in_flight, &[]);
    mount.vfs.unlink(&CX, Ino::ROOT, b"file").unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
    mount.close(&opened).unwrap();
    assert!(!mount.at("file").exists());
    assert!(mount.names("").unwrap().is_empty());
}

/// Regression: content below a directory whose rename had an unknown outcome was kept and never
/// uploaded, and the journal lost its path.
#[test]
fn rename_of_unknown_outcome_is_found_by_its_new_name() {
    for is_killed in [false, true] {
        let (mount, in_flight) = mount(Some(Duration::from_secs(3600)));
        fs::create_dir(mount.at("dir")).unwrap();
        fs::write(mount.at("dir/file"), "old").unwrap();
        mount.write("dir/file", b"new").unwrap();
        rename_with_unknown_outcome(&mount, &in_flight, "dir", "moved");
        mount.age();
        assert_eq!(mount.names("").unwrap(), ["moved"]);
        let mount = if is_killed {
            Mount::on(mount.crash(), Setup::default())
        } else {
            let left = mount.vfs.drain();
            assert!(left.is_empty(), "{left:?}");
            mount
        };
        assert_eq!(fs::read(mount.at("moved/file")).unwrap(), b"new");
        assert_eq!(mount.read("moved/file").unwrap(), b"new");
        assert_eq!(mount.names("").unwrap(), ["moved"]);
    }
}

/// A rename whose request did not reach the host changed nothing: the file keeps its old path.
#[test]
fn a_rename_that_did_not_happen_is_forgotten() {
    let (mount, in_flight) = mount(None);
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("dir/file"), "old").unwrap();
    let opened = mount.open("dir/file", libc::O_RDWR).unwrap();
    let (from, to) = (mount.at("moved"), mount.at("dir"));
    // The hook moves the directory back, as if the host had not carried out the rename.
    in_flight.at_change(move || {
        fs::rename(from, to).unwrap();
        false
    });
    mount.rename("dir", "moved").unwrap_err();
    mount.age();
    assert_eq!(mount.names("").unwrap(), ["dir"]);
    mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("dir/file")).unwrap(), b"new");
    // If others remove the directory, the mount does not look for it under the new name.
    fs::remove_dir_all(mount.at("dir")).unwrap();
    mount.age();
    assert!(mount.names("").unwrap().is_empty());
}

/// Regression: a file that others removed on the host while it was open here was uploaded to
/// another directory, which had got the inode number of its own.
#[test]
fn file_removed_by_others_is_uploaded_to_no_other_directory() {
    let (mount, _) = mount(Some(Duration::from_secs(3600)));
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("dir/file"), "old").unwrap();
    let opened = mount.open("dir/file", libc::O_RDWR).unwrap();
    let dir = mount.find("dir").unwrap().ino;
    fs::remove_file(mount.at("dir/file")).unwrap();
    mount.age();
    list(&mount.vfs, dir);
    mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
    mount.close(&opened).unwrap();
    // The kernel sends FORGET for the directory.
    mount.vfs.forget(dir, 1_000_000);
    fs::remove_dir(mount.at("dir")).unwrap();
    for n in 0..3 {
        fs::create_dir(mount.at(&format!("other{n}"))).unwrap();
    }
    mount.age();
    for n in 0..3 {
        mount.find(&format!("other{n}")).unwrap();
    }
    let left = mount.vfs.drain();
    assert_eq!(left.len(), 1, "{left:?}");
    for n in 0..3 {
        assert_eq!(mount.names(&format!("other{n}")).unwrap(), [""; 0]);
    }
    // The next mount recreates the file once its directory exists again.
    fs::create_dir(mount.at("dir")).unwrap();
    let mount = Mount::on(mount.crash(), Setup::default());
    assert_eq!(fs::read(mount.at("dir/file")).unwrap(), b"new");
}

/// Regression: after both names of a rename of unknown outcome were used again, resolving the
/// rename dropped the content that was written under the new name since.
#[test]
fn resolving_a_rename_keeps_content_written_since() {
    for writeback in [None, Some(Duration::from_secs(3600))] {
        let (mount, in_flight) = mount(writeback);
        fs::write(mount.at("one"), "first").unwrap();
        let one = mount.find("one").unwrap().ino;
        rename_with_unknown_outcome(&mount, &in_flight, "one", "two");
        // The kernel sends FORGET for the inode after it was invalidated.
        mount.vfs.forget(one, 1_000_000);
        mount.age();
        assert_eq!(mount.names("").unwrap(), ["two"]);
        // A new file gets the old name, and the file with the new name is written to.
        mount.write("one", b"another").unwrap();
        assert!(mount.vfs.drain().is_empty());
        let opened = mount.open("two", libc::O_RDWR).unwrap();
        let written_before = writeback.is_some();
        if written_before {
            mount.vfs.write(&CX, opened.fh, 0, b"precious").unwrap();
            mount.vfs.flush(&CX, opened.fh).unwrap();
        }
        fs::remove_file(mount.at("one")).unwrap();
        mount.age();
        assert_eq!(mount.names("").unwrap(), ["two"]);
        if !written_before {
            mount.vfs.write(&CX, opened.fh, 0, b"precious").unwrap();
        }
        mount.close(&opened).unwrap();
        assert!(mount.vfs.drain().is_empty());
        assert_eq!(fs::read(mount.at("two")).unwrap(), b"precious");
    }
}

/// Regression: the pending rename made a directory its own descendant, and every later lookup in it
/// looped for ever.
#[test]
fn rename_of_unknown_outcome_makes_no_cycle_of_directories() {
    let (mount, in_flight) = mount(None);
    fs::create_dir_all(mount.at("dir")).unwrap();
    fs::create_dir(mount.at("a")).unwrap();
    let [a, dir] = ["a", "dir"].map(|name| mount.find(name).unwrap().ino);
    in_flight.lose_answer();
    mount
        .vfs
        .rename(&CX, (Ino::ROOT, b"a"), (dir, b"b"), REPLACE)
        .unwrap_err();
    mount.vfs.forget(a, 1_000_000);
    mount.rename("dir", "a").unwrap();
    fs::remove_dir_all(mount.at("a")).unwrap();
    mount.age();
    assert!(mount.names("").unwrap().is_empty());
    list(&mount.vfs, dir);
    mount.find("a/b").unwrap_err();
}

/// Regression: stat of an open file failed while a directory above it was renamed here.
#[test]
fn an_open_file_below_a_directory_that_is_renamed_stays_there() {
    let (mount, in_flight) = mount(None);
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("dir/file"), "content").unwrap();
    let opened = mount.open("dir/file", libc::O_RDONLY).unwrap();
    let ino = mount.find("dir/file").unwrap().ino;
    let (vfs, clock) = (Arc::clone(&mount.vfs), Arc::clone(&mount.clock));
    let seen = Arc::new(Mutex::new(None));
    let (tell, started) = (Arc::clone(&seen), mpsc::channel());
    let (sender, receiver) = started;
    in_flight.at_change(move || {
        clock.advance(TTL + Duration::from_secs(1));
        std::thread::spawn(move || {
            sender.send(()).unwrap();
            *tell.lock() = Some(vfs.getattr(&CX, ino));
        });
        receiver.recv().unwrap();
        true
    });
    mount.rename("dir", "moved").unwrap();
    scpfs_testing::wait::wait_until("the host is asked", || seen.lock().is_some());
    let attr = seen.lock().take().unwrap();
    assert_eq!(attr.unwrap().stat.size, 7);
    mount.close(&opened).unwrap();
}

/// Regression: two callers asked the host about the same rename, and the answer of the slower one
/// was applied although the file had been renamed back meanwhile: its content went to the wrong
/// name.
#[test]
fn a_stale_answer_about_a_rename_changes_nothing() {
    let (mount, in_flight) = mount(None);
    fs::write(mount.at("one"), "old").unwrap();
    let opened = mount.open("one", libc::O_RDWR).unwrap();
    rename_with_unknown_outcome(&mount, &in_flight, "one", "two");
    let vfs = Arc::clone(&mount.vfs);
    in_flight.at_look(move || {
        list(&vfs, Ino::ROOT);
        rename(&vfs, "two", "one").unwrap();
    });
    assert_eq!(mount.names("").unwrap(), ["one"]);
    mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("one")).unwrap(), b"new");
    assert!(!mount.at("two").exists());
}

/// A caller that must not block, such as an event loop, gets `WouldWait` instead of asking the
/// host.
#[test]
fn caller_that_must_not_block_does_not_resolve_a_rename() {
    let never = Context {
        wait: Wait::Never,
        ..CX
    };
    let would_wait = move |vfs: &Vfs, ino: Ino| {
        let fh = vfs.opendir(ino).unwrap();
        let result = vfs.readdir(&never, fh, 0);
        matches!(result, Err(Error::Cache(cache::Error::WouldWait)))
    };
    let (mount, in_flight) = mount(None);
    fs::create_dir(mount.at("one")).unwrap();
    let one = mount.find("one").unwrap().ino;
    rename_with_unknown_outcome(&mount, &in_flight, "one", "two");
    in_flight.is_away.store(true, SeqCst);
    assert!(would_wait(&mount.vfs, Ino::ROOT));
    assert!(would_wait(&mount.vfs, one));
    in_flight.is_away.store(false, SeqCst);
    assert_eq!(mount.names("").unwrap(), ["two"]);

    let vfs = Arc::clone(&mount.vfs);
    let (sender, receiver) = mpsc::channel();
    in_flight.at_change(move || {
        std::thread::spawn(move || {
            sender.send(would_wait(&vfs, one)).unwrap();
        });
        let answer = receiver.recv_timeout(Duration::from_secs(20));
        assert_eq!(answer, Ok(true), "it waits for the rename");
        true
    });
    mount.rename("two", "three").unwrap();
}

/// Regression: while the host could not be reached, a rename of unknown outcome made listings of
/// all directories fail.
#[test]
fn a_rename_of_unknown_outcome_concerns_its_own_names_only() {
    let (mount, in_flight) = mount(None);
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("dir/file"), "content").unwrap();
    fs::write(mount.at("one"), "content").unwrap();
    mount.find("one").unwrap();
    assert_eq!(mount.names("dir").unwrap(), ["file"]);
    let dir = mount.find("dir").unwrap().ino;
    rename_with_unknown_outcome(&mount, &in_flight, "one", "two");
    in_flight.is_away.store(true, SeqCst);
    let fh = mount.vfs.opendir(dir).unwrap();
    mount.vfs.readdir(&CX, fh, 0).unwrap();
    mount.names("").unwrap_err();
    in_flight.is_away.store(false, SeqCst);
    assert_eq!(mount.names("").unwrap(), ["dir", "two"]);
}

/// Regression: a listing that was requested before a rename, and arrived while the outcome was
/// unknown, hid the new name for the TTL.
#[test]
fn listing_older_than_a_rename_of_unknown_outcome_hides_no_name() {
    let (mount, in_flight) = mount(None);
    fs::write(mount.at("one"), "content").unwrap();
    mount.find("one").unwrap();
    mount.age();
    let (vfs, clock) = (Arc::clone(&mount.vfs), Arc::clone(&mount.clock));
    in_flight.lose_answer();
    in_flight.at_listing(move || {
        clock.advance(Duration::from_millis(1));
        rename(&vfs, "one", "two").unwrap_err();
    });
    // A lookup of a third name requests the listing.
    mount.find("other").unwrap_err();
    assert_eq!(mount.read("two").unwrap(), b"content");
    mount.find("one").unwrap_err();
    assert_eq!(mount.names("").unwrap(), ["two"]);
}

/// A listing that is requested for a third name is not evidence against the names of the rename.
#[test]
fn listing_after_a_rename_of_unknown_outcome_hides_no_name() {
    let (mount, in_flight) = mount(None);
    fs::write(mount.at("one"), "content").unwrap();
    rename_with_unknown_outcome(&mount, &in_flight, "one", "two");
    mount.find("other").unwrap_err();
    assert_eq!(mount.read("two").unwrap(), b"content");
    mount.find("one").unwrap_err();
}

/// Regression: a directory that was listed while a rename above it was in flight disappeared if the
/// answer to the rename was lost.
#[test]
fn a_directory_below_a_rename_whose_answer_is_lost_is_found() {
    let (mount, in_flight) = mount(None);
    fs::create_dir_all(mount.at("dir/sub")).unwrap();
    fs::write(mount.at("dir/sub/file"), "content").unwrap();
    let sub = mount.find("dir/sub").unwrap().ino;
    mount.age();
    let vfs = Arc::clone(&mount.vfs);
    let (sender, receiver) = mpsc::channel();
    in_flight.at_change(move || {
        std::thread::spawn(move || {
            let fh = vfs.opendir(sub).unwrap();
            let result = vfs.readdir(&CX, fh, 0);
            sender.send(result.map(drop)).unwrap();
        });
        // Time for the listing to block on the rename.
        std::thread::sleep(Duration::from_millis(200));
        false
    });
    mount.rename("dir", "moved").unwrap_err();
    let listed = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(listed.is_ok(), "{listed:?}");
    assert_eq!(mount.names("moved/sub").unwrap(), ["file"]);
}

/// After a rename of unknown outcome replaced a dirty file, its dirty content becomes a conflict
/// copy, and never replaces the renamed file.
#[test]
fn dirty_file_replaced_by_a_rename_of_unknown_outcome_becomes_a_conflict_copy() {
    let (mount, in_flight) = mount(Some(Duration::from_secs(3600)));
    fs::write(mount.at("one"), "moved").unwrap();
    fs::write(mount.at("two"), "replaced").unwrap();
    mount.find("one").unwrap();
    mount.write("two", b"dirty").unwrap();
    rename_with_unknown_outcome(&mount, &in_flight, "one", "two");
    mount.age();
    mount.names("").unwrap();
    let told = mount.vfs.drain();
    assert_eq!(told.len(), 1, "of the conflict: {told:?}");
    assert_eq!(fs::read(mount.at("two")).unwrap(), b"moved");
    let mut all: Vec<Vec<u8>> = mount
        .names("")
        .unwrap()
        .iter()
        .map(|name| fs::read(mount.at(name)).unwrap())
        .collect();
    all.sort();
    assert_eq!(all, [b"dirty".to_vec(), b"moved".to_vec()]);
}

/// A request for a name of such a rename first resolves the rename.
#[test]
fn next_request_for_a_name_resolves_the_rename_of_unknown_outcome() {
    let (mount, in_flight) = mount(None);
    fs::write(mount.at("one"), "old").unwrap();
    let opened = mount.open("one", libc::O_RDWR).unwrap();
    rename_with_unknown_outcome(&mount, &in_flight, "one", "two");
    // The kernel may send the next rename without a lookup.
    in_flight.is_away.store(true, SeqCst);
    mount.rename("two", "three").unwrap_err();
    in_flight.is_away.store(false, SeqCst);
    mount.rename("two", "three").unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(mount.names("").unwrap(), ["three"]);
    assert_eq!(fs::read(mount.at("three")).unwrap(), b"new");
}

/// Regression: content that the host had, but could not flush, was taken for durable, and its cache
/// entry was removed.
#[test]
fn content_is_kept_until_the_host_has_flushed_it() {
    let (mount, in_flight) = mount(Some(Duration::from_secs(3600)));
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("dir/file"), "old").unwrap();
    mount.write("dir/file", b"new").unwrap();
    let mtime = mount.find("dir/file").unwrap().stat.mtime;
    rename_with_unknown_outcome(&mount, &in_flight, "dir", "moved");
    let world = mount.crash();
    // The host has the content, as after an upload of unknown outcome.
    let path = world.root().join("moved/file");
    fs::write(&path, "new").unwrap();
    let secs = Duration::new(u64::try_from(mtime.secs).unwrap(), mtime.nanos);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + secs).unwrap();
    let says =
        |what: &str| format!("#!/bin/dash\necho \"sync: error syncing 'x': {what}\" >&2; exit 1\n");
    for what in [
        "Input/output error",
        "No space left on device",
        "Disk quota exceeded",
    ] {
        world.put("sync", &says(what));
        let mount = Mount::on(Arc::clone(&world), Setup::default());
        let [left] = &mount.recovered[..] else {
            panic!("{what}: {:?}", mount.recovered);
        };
        assert!(
            matches!(left.outcome, cache::RecoveryOutcome::NextMount { .. }),
            "{what}: {left}"
        );
        mount.crash();
    }
    // A retry is useless if the host does not permit the flush.
    world.put("sync", &says("Operation not permitted"));
    let mount = Mount::on(world, Setup::default());
    let [left] = &mount.recovered[..] else {
        panic!("{:?}", mount.recovered);
    };
    assert!(
        matches!(left.outcome, cache::RecoveryOutcome::AlreadyOnHost),
        "{left}"
    );
}

/// Returns an open file whose rename into another directory was carried out without an answer.
fn moved_to_another_directory() -> (Mount, Opened) {
    let (mount, in_flight) = mount(None);
    for dir in ["a", "c"] {
        fs::create_dir(mount.at(dir)).unwrap();
    }
    fs::write(mount.at("a/one"), "old").unwrap();
    let [a, c] = ["a", "c"].map(|name| mount.find(name).unwrap().ino);
    let opened = mount.open("a/one", libc::O_RDWR).unwrap();
    in_flight.lose_answer();
    let renamed = mount.vfs.rename(&CX, (a, b"one"), (c, b"two"), REPLACE);
    renamed.unwrap_err();
    mount.age();
    (mount, opened)
}

/// Regression: the content was uploaded to the old name, which reappeared, unless the new name had
/// been looked up before.
#[test]
fn upload_resolves_the_rename_of_its_file() {
    for renames_above in [false, true] {
        let (mount, opened) = moved_to_another_directory();
        if renames_above {
            mount.rename("a", "b").unwrap();
        }
        mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
        mount.close(&opened).unwrap();
        assert_eq!(fs::read(mount.at("c/two")).unwrap(), b"new");
        let old = if renames_above { "b" } else { "a" };
        assert!(!mount.at(old).join("one").exists());
        assert_eq!(mount.names("c").unwrap(), ["two"]);
    }
}

/// Regression: removing one of two hard links lost the dirty content of the file.
#[test]
fn unlink_uploads_for_the_other_name_although_a_rename_is_of_unknown_outcome() {
    let (mount, in_flight) = mount(Some(Duration::from_secs(3600)));
    fs::write(mount.at("one"), "old").unwrap();
    fs::hard_link(mount.at("one"), mount.at("other")).unwrap();
    mount.find("one").unwrap();
    mount.write("one", b"dirty").unwrap();
    rename_with_unknown_outcome(&mount, &in_flight, "one", "two");
    mount.vfs.unlink(&CX, Ino::ROOT, b"two").unwrap();
    let left = mount.vfs.drain();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(fs::read(mount.at("other")).unwrap(), b"dirty");
    assert_eq!(mount.names("").unwrap(), ["other"]);
}

/// Regression: each refused rename invalidated all listings in flight: a lookup of another name
/// failed after 50 of them, and readdir did not end.
#[test]
fn renames_that_fail_do_not_keep_a_directory_from_being_listed() {
    type Listings = Arc<std::sync::atomic::AtomicU32>;
    fn fail_with_each_listing(mount: &Mount, in_flight: &Arc<InFlight>, listings: &Listings) {
        let (vfs, clock) = (Arc::clone(&mount.vfs), Arc::clone(&mount.clock));
        arm(Arc::clone(in_flight), vfs, clock, Arc::clone(listings));
    }
    fn arm(in_flight: Arc<InFlight>, vfs: Arc<Vfs>, clock: Arc<ManualClock>, listings: Listings) {
        let again = Arc::clone(&in_flight);
        in_flight.at_listing(move || {
            clock.advance(Duration::from_millis(1));
            if listings.fetch_add(1, SeqCst) < 20 {
                rename(&vfs, "absent", "new").unwrap_err();
                arm(again, vfs, clock, listings);
            }
        });
    }
    let (mount, in_flight) = mount(None);
    fs::write(mount.at("file"), "content").unwrap();
    let listings = Listings::default();
    fail_with_each_listing(&mount, &in_flight, &listings);
    mount.find("file").unwrap();
    assert_eq!(listings.load(SeqCst), 1);
    assert_eq!(mount.names("").unwrap(), ["file"]);
    assert!(listings.load(SeqCst) < 10, "{listings:?}");
}

/// Regression: requests below the directory used its old path.
#[test]
fn changes_below_a_directory_resolve_its_rename_first() {
    let (mount, in_flight) = mount(None);
    fs::create_dir_all(mount.at("a/old")).unwrap();
    fs::write(mount.at("a/file"), "content").unwrap();
    let a = mount.find("a").unwrap().ino;
    let file = mount.find("a/file").unwrap().ino;
    rename_with_unknown_outcome(&mount, &in_flight, "a", "b");
    mount.vfs.mkdir(&CX, a, b"new", 0o755).unwrap();
    assert!(mount.at("b/new").is_dir());
    rename_with_unknown_outcome(&mount, &in_flight, "b", "c");
    mount.vfs.rmdir(&CX, a, b"old").unwrap();
    rename_with_unknown_outcome(&mount, &in_flight, "c", "d");
    mount.vfs.link(&CX, file, a, b"link").unwrap();
    assert_eq!(mount.names("d").unwrap(), ["file", "link", "new"]);
}
