//! What the host says of names while a request of ours changes them, or after one whose end nobody
//! heard.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use scpfs::sync::Mutex;
use scpfs::vfs::Ino;
use scpfs::vfs::RenameFlags;
use scpfs::vfs::Vfs;

use crate::faulty::Fate;
use crate::faulty::Faulty;
use crate::world::CX;
use crate::world::Mount;
use crate::world::Setup;
use crate::world::TTL;

type Hook = Box<dyn FnOnce() -> bool + Send>;

/// Does something when the host has renamed or removed and its answer is on its way; the answer is
/// lost if that says so.
#[derive(Default)]
struct InFlight(Mutex<Option<Hook>>);

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InFlight")
    }
}

impl Fate for InFlight {
    fn after(&self, act: &'static str) -> bool {
        let acts = ["rename", "remove"];
        let hook = acts.contains(&act).then(|| self.0.lock().take()).flatten();
        hook.is_none_or(|hook| hook())
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

/// Has the host asked for the root, and for these directories, while the next rename or removal is
/// under way.
fn list_in_flight(mount: &Mount, in_flight: &InFlight, dirs: &[Ino]) {
    let (vfs, clock, dirs) = (
        Arc::clone(&mount.vfs),
        Arc::clone(&mount.clock),
        dirs.to_vec(),
    );
    *in_flight.0.lock() = Some(Box::new(move || {
        clock.advance(TTL + Duration::from_secs(1));
        list(&vfs, Ino::ROOT);
        // Below what is renamed, they wait until that is done.
        std::thread::spawn(move || dirs.iter().for_each(|ino| list(&vfs, *ino)));
        true
    }));
}

fn rename(mount: &Mount, from: &str, to: &str) -> Result<(), scpfs::vfs::Error> {
    let flags = RenameFlags {
        no_replace: false,
        exchange: false,
    };
    let (from, to) = ((Ino::ROOT, from.as_bytes()), (Ino::ROOT, to.as_bytes()));
    mount.vfs.rename(&CX, from, to, flags)
}

/// What was written after the rename went to the old name, which came back.
#[test]
fn an_open_file_keeps_the_name_that_a_listing_meanwhile_does_not_know() {
    for is_replaced in [false, true] {
        let (mount, in_flight) = mount(None);
        fs::write(mount.at("one"), "first,").unwrap();
        if is_replaced {
            fs::write(mount.at("two"), "replaced").unwrap();
        }
        let opened = mount.open("one", libc::O_RDWR).unwrap();
        mount.names("").unwrap();
        list_in_flight(&mount, &in_flight, &[]);
        rename(&mount, "one", "two").unwrap();
        mount.vfs.write(&CX, opened.fh, 6, b"second").unwrap();
        mount.close(&opened).unwrap();
        assert_eq!(fs::read(mount.at("two")).unwrap(), b"first,second");
        assert_eq!(mount.names("").unwrap(), ["two"]);
        assert!(!mount.at("one").exists(), "it came back");
    }
}

/// Content that was closed below a directory that was renamed was never stored.
#[test]
fn what_waits_below_a_directory_is_stored_below_its_new_name() {
    let (mount, in_flight) = mount(Some(Duration::from_secs(3600)));
    fs::create_dir_all(mount.at("dir/sub")).unwrap();
    for name in ["dir/file", "dir/sub/file"] {
        fs::write(mount.at(name), "old").unwrap();
        let opened = mount.open(name, libc::O_WRONLY | libc::O_TRUNC).unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
        mount.close(&opened).unwrap();
    }
    let dirs = ["dir", "dir/sub"].map(|name| mount.find(name).unwrap().ino);
    list_in_flight(&mount, &in_flight, &dirs);
    rename(&mount, "dir", "moved").unwrap();
    let left = mount.vfs.drain();
    assert!(left.is_empty(), "{left:?}");
    for name in ["moved/file", "moved/sub/file"] {
        assert_eq!(fs::read(mount.at(name)).unwrap(), b"new", "{name}");
    }
    assert_eq!(mount.names("").unwrap(), ["moved"]);
}

/// A file that was removed here came back when it was closed.
#[test]
fn a_removed_file_stays_removed_when_a_listing_meanwhile_has_missed_it() {
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

/// Content below a directory whose rename nobody heard the end of was kept and never stored, and the
/// journal forgot where it belongs.
#[test]
fn a_rename_that_nobody_heard_of_is_found_by_its_new_name() {
    for is_killed in [false, true] {
        let (mount, in_flight) = mount(Some(Duration::from_secs(3600)));
        fs::create_dir(mount.at("dir")).unwrap();
        fs::write(mount.at("dir/file"), "old").unwrap();
        let opened = mount
            .open("dir/file", libc::O_WRONLY | libc::O_TRUNC)
            .unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
        mount.close(&opened).unwrap();
        *in_flight.0.lock() = Some(Box::new(|| false));
        rename(&mount, "dir", "moved").unwrap_err();
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

/// A rename whose request was lost moved nothing: the file is where it was.
#[test]
fn a_rename_that_did_not_happen_is_forgotten() {
    let (mount, in_flight) = mount(None);
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("dir/file"), "old").unwrap();
    let opened = mount.open("dir/file", libc::O_RDWR).unwrap();
    let (from, to) = (mount.at("moved"), mount.at("dir"));
    // As if the host had not done it.
    *in_flight.0.lock() = Some(Box::new(move || {
        fs::rename(from, to).unwrap();
        false
    }));
    rename(&mount, "dir", "moved").unwrap_err();
    mount.age();
    assert_eq!(mount.names("").unwrap(), ["dir"]);
    mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("dir/file")).unwrap(), b"new");
    // Others remove it now: nothing is looked for under the new name.
    fs::remove_dir_all(mount.at("dir")).unwrap();
    mount.age();
    assert!(mount.names("").unwrap().is_empty());
}

/// A file that somebody removed on the host while it was open here went into another directory,
/// which had got the number of its own.
#[test]
fn what_was_removed_by_others_goes_to_no_other_directory() {
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
    // The kernel forgets what it does not need.
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
    // Once its directory is there again, it goes there.
    fs::create_dir(mount.at("dir")).unwrap();
    let mount = Mount::on(mount.crash(), Setup::default());
    assert_eq!(fs::read(mount.at("dir/file")).unwrap(), b"new");
}

/// A rename whose end nobody heard, and a later life of both names: the memory of the rename dropped
/// what had been written under the new name since.
#[test]
fn a_rename_of_unknown_outcome_does_not_outlive_what_comes_after_it() {
    for writeback in [None, Some(Duration::from_secs(3600))] {
        let (mount, in_flight) = mount(writeback);
        fs::write(mount.at("one"), "first").unwrap();
        let one = mount.find("one").unwrap().ino;
        *in_flight.0.lock() = Some(Box::new(|| false));
        rename(&mount, "one", "two").unwrap_err();
        // The kernel forgets what it was told to forget.
        mount.vfs.forget(one, 1_000_000);
        mount.age();
        assert_eq!(mount.names("").unwrap(), ["two"]);
        // The old name is used again, and the new one is written to.
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

/// The memory of a rename bound a directory below itself: every later look at it went round for ever.
#[test]
fn a_rename_of_unknown_outcome_makes_no_circle() {
    let (mount, in_flight) = mount(None);
    fs::create_dir_all(mount.at("dir")).unwrap();
    fs::create_dir(mount.at("a")).unwrap();
    let [a, dir] = ["a", "dir"].map(|name| mount.find(name).unwrap().ino);
    *in_flight.0.lock() = Some(Box::new(|| false));
    let flags = RenameFlags {
        no_replace: false,
        exchange: false,
    };
    mount
        .vfs
        .rename(&CX, (Ino::ROOT, b"a"), (dir, b"b"), flags)
        .unwrap_err();
    mount.vfs.forget(a, 1_000_000);
    rename(&mount, "dir", "a").unwrap();
    fs::remove_dir_all(mount.at("a")).unwrap();
    mount.age();
    assert!(mount.names("").unwrap().is_empty());
    list(&mount.vfs, dir);
    mount.find("a/b").unwrap_err();
}

/// A stat of an open file failed while a directory above it was renamed here.
#[test]
fn an_open_file_below_a_directory_that_is_renamed_stays_there() {
    let (mount, in_flight) = mount(None);
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("dir/file"), "content").unwrap();
    let opened = mount.open("dir/file", libc::O_RDONLY).unwrap();
    let ino = mount.find("dir/file").unwrap().ino;
    let (vfs, clock) = (Arc::clone(&mount.vfs), Arc::clone(&mount.clock));
    let seen = Arc::new(Mutex::new(None));
    let (tell, started) = (Arc::clone(&seen), std::sync::mpsc::channel());
    let (sender, receiver) = started;
    *in_flight.0.lock() = Some(Box::new(move || {
        clock.advance(TTL + Duration::from_secs(1));
        std::thread::spawn(move || {
            sender.send(()).unwrap();
            *tell.lock() = Some(vfs.getattr(&CX, ino));
        });
        receiver.recv().unwrap();
        true
    }));
    rename(&mount, "dir", "moved").unwrap();
    crate::world::eventually("somebody has asked", || seen.lock().is_some());
    let attr = seen.lock().take().unwrap();
    assert_eq!(attr.unwrap().stat.size, 7);
    mount.close(&opened).unwrap();
}
