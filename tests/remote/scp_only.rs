#![cfg(test)]
//! The `scp-only` dialect: kinds of servers, and when the dialect is chosen.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use scpfs::clock::ManualClock;
use scpfs::host;
use scpfs::host::Choice;
use scpfs::path::RemotePath;
use scpfs::remote::AttrChange;
use scpfs::remote::Content;
use scpfs::remote::Error;
use scpfs::remote::Expect;
use scpfs::remote::NewTime;
use scpfs::remote::Outcome;
use scpfs::remote::Reason;
use scpfs::remote::Remote;
use scpfs::remote::Settings;
use scpfs::remote::UploadSpec;
use scpfs::remote::ability::Operation;
use scpfs::remote::retry::Retry;
use scpfs::scp_only;
use scpfs::stat::FileKind;
use scpfs::stat::Time;
use scpfs_testing::ability::can;
use scpfs_testing::content::Buffer;
use scpfs_testing::content::Bytes;
use scpfs_testing::content::bytes;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::samples::MTIME;
use scpfs_testing::samples::path;
use scpfs_testing::samples::reason;
use scpfs_testing::samples::upload_spec;

use crate::host::is_unsupported;

const OPENSSH: &str = "SSH-2.0-OpenSSH_9.2";

pub(crate) fn names(remote: &dyn Remote, dir: &RemotePath) -> Vec<String> {
    let mut names: Vec<_> = remote
        .list(dir)
        .unwrap()
        .entries
        .iter()
        .map(|entry| entry.name.to_string())
        .collect();
    names.sort();
    names
}

pub(crate) fn make_fifo(path: &Path) {
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
}

pub(crate) fn fetch(remote: &dyn Remote, name: &str) -> Vec<u8> {
    let version = remote.stat(&path(name)).unwrap().version();
    let mut buffer = Buffer::default();
    let fetched = remote
        .fetch(&path(name), Some(&version), &mut buffer)
        .unwrap();
    assert!(fetched.is_stable);
    assert_eq!(fetched.stat.version(), version);
    buffer.data
}

#[test]
fn a_directory_of_twenty_thousand_names_takes_few_round_trips() {
    let world = World::scp_only(OPENSSH);
    for n in 0..20_000 {
        fs::write(world.root().join(format!("file {n}")), "content").unwrap();
    }
    let remote = world.scp(Arc::new(ManualClock::new()));
    let before = (world.meter.trips(), world.meter.bytes_read());
    let listing = remote.list(&RemotePath::root()).unwrap();
    assert_eq!(listing.entries.len(), 20_000);
    // The first replies refuse two thousand entries ahead; later ones are sent while names arrive.
    let trips = world.meter.trips() - before.0;
    assert!(trips <= 7, "{trips}");
    // About 50 bytes for each name, and no content.
    assert!(world.meter.bytes_read() - before.1 < 20_000 * 60);
    let before = world.meter.trips();
    for n in 100..200 {
        fs::write(world.root().join(format!("d{n}")), "content").unwrap();
    }
    remote.stat(&path("d100")).unwrap();
    assert_eq!(world.meter.trips() - before, 1);
}

#[test]
fn each_operation_takes_one_round_trip_or_two() {
    let world = World::scp_only(OPENSSH);
    let remote = world.scp(Arc::new(ManualClock::new()));
    fs::create_dir(world.root().join("many")).unwrap();
    for n in 0..500 {
        fs::write(world.root().join(format!("many/{n}")), "x").unwrap();
    }
    let counted = |what: &str, expected: u64, op: &mut dyn FnMut()| {
        let before = world.meter.trips();
        op();
        assert_eq!(world.meter.trips() - before, expected, "{what}");
    };
    counted("stat", 1, &mut || {
        remote.stat(&path("many")).unwrap();
    });
    counted("a miss", 1, &mut || {
        remote.stat(&path("no")).unwrap_err();
    });
    counted("list", 1, &mut || {
        assert_eq!(remote.list(&path("many")).unwrap().entries.len(), 500);
    });
    let version = remote.stat(&path("many/1")).unwrap().version();
    counted("fetch", 1, &mut || {
        let mut buffer = Buffer::default();
        remote
            .fetch(&path("many/1"), Some(&version), &mut buffer)
            .unwrap();
        assert_eq!(buffer.data, b"x");
    });
    for (what, expect) in [
        ("upload of a new file", Expect::Absent),
        ("upload over anything", Expect::Anything),
    ] {
        counted(what, 2, &mut || {
            let plan = UploadSpec {
                expect,
                ..upload_spec(b"x")
            };
            remote.upload(&path("f"), &bytes(b"x"), &plan).unwrap();
        });
    }
    counted("create", 2, &mut || {
        remote.create_new(&path("new"), 0o600, None).unwrap();
    });
    counted("make_dir", 1, &mut || {
        remote.make_dir(&path("d"), 0o750, None).unwrap();
    });
    let mode = AttrChange {
        mode: Some(0o700),
        ..AttrChange::default()
    };
    counted("chmod of a directory", 2, &mut || {
        remote.set_attr(&path("d"), &mode).unwrap();
    });
}

#[test]
fn list_omits_files_that_scp_cannot_send() {
    let world = World::scp_only(OPENSSH);
    let remote = world.scp(Arc::new(ManualClock::new()));
    let at = |name: &str| world.root().join(name);
    fs::write(at("file"), "four").unwrap();
    fs::create_dir(at("dir")).unwrap();
    symlink("file", at("link")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    symlink("loop", at("loop")).unwrap();
    fs::write(at("new\nline"), "").unwrap();
    make_fifo(&at("fifo"));
    assert_eq!(names(&remote, &RemotePath::root()), ["dir", "file", "link"]);
    // scp follows symlinks, so a link has the attributes of its target.
    let stat = remote.stat(&path("link")).unwrap();
    assert_eq!((stat.kind, stat.size), (FileKind::File, 4));
    assert_eq!(reason(remote.stat(&path("dangling"))), Reason::NotFound);
    assert_eq!(reason(remote.stat(&path("fifo"))), Reason::NotSupported);
    assert_eq!(reason(remote.list(&path("file"))), Reason::NotADirectory);
}

#[test]
fn name_with_forged_records_adds_no_entry_to_a_listing() {
    let world = World::scp_only(OPENSSH);
    let remote = world.scp(Arc::new(ManualClock::new()));
    fs::write(world.root().join("file"), "").unwrap();
    // OpenSSH prints names unescaped in its error messages.
    for name in [
        "x\nC0644 9 evil",
        "x\nE\nx",
        "x: No such file or directory\nE\nx",
        "x: No such file or directory\nC0644 9 evil",
        "x: No such file or directory\nT0 0 0 0\nC0644 9 evil\nT0 0 0 0\nC0644 9 x",
    ] {
        symlink("nowhere", world.root().join(name)).unwrap();
        // If the first line of a name shows that more lines follow, the entry is omitted; otherwise
        // the listing fails.
        if name.starts_with("x: ") {
            let result = remote.list(&RemotePath::root());
            assert!(result.is_err(), "{name:?} {result:?}");
        } else {
            assert_eq!(names(&remote, &RemotePath::root()), ["file"], "{name:?}");
        }
        fs::remove_file(world.root().join(name)).unwrap();
    }
    assert_eq!(names(&remote, &RemotePath::root()), ["file"]);
}

#[test]
fn upload_reports_conflicts_before_it_overwrites() {
    let world = World::scp_only(OPENSSH);
    let remote = world.scp(Arc::new(ManualClock::new()));
    let file = world.root().join("file");
    let upload = |data: &[u8], expect| {
        let plan = UploadSpec {
            expect,
            ..upload_spec(data)
        };
        remote.upload(&path("file"), &bytes(data), &plan)
    };
    let uploaded = upload(b"one", Expect::Absent).unwrap();
    assert_eq!(uploaded.outcome, Outcome::AsPlanned);
    let stat = uploaded.stat.unwrap();
    // A later stat reports the same version as the upload.
    assert_eq!(
        remote.stat(&path("file")).unwrap().version(),
        stat.version()
    );
    assert_eq!(
        (stat.mode, stat.size, stat.mtime.secs),
        (0o640, 3, MTIME.secs)
    );
    let meta = fs::metadata(&file).unwrap();
    assert_eq!(
        (meta.mtime_nsec(), meta.mode() & 0o7777),
        (123_456_000, 0o640)
    );
    assert!(matches!(
        upload(b"two", Expect::Absent),
        Err(Error::Conflict { .. })
    ));
    fs::write(&file, "theirs").unwrap();
    assert!(matches!(
        upload(b"two", Expect::Version(stat.version())),
        Err(Error::Conflict { .. })
    ));
    assert_eq!(fs::read(&file).unwrap(), b"theirs");
    fs::remove_file(&file).unwrap();
    assert!(matches!(
        upload(b"two", Expect::Version(stat.version())),
        Err(Error::Conflict { .. })
    ));
    assert!(!file.exists());
}

/// Content that also provides the content that it replaces.
struct Over<'a>(Bytes<'a>, Bytes<'a>, u64);

impl Content for Over<'_> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn old(&self) -> Option<(&dyn Content, u64)> {
        Some((&self.1, self.2))
    }
}

/// Writes `old` to the file `file` and returns the spec of an upload of `new` over it. The connection
/// of that upload breaks when the sink has acknowledged all records except the content.
fn cut_next_upload(world: &World, remote: &dyn Remote, old: &[u8], new: &[u8]) -> UploadSpec {
    fs::write(world.root().join("file"), old).unwrap();
    let version = remote.stat(&path("file")).unwrap().version();
    let look = world.meter.bytes_read();
    remote.stat(&path("file")).unwrap();
    let look = world.meter.bytes_read() - look;
    world.faults.lock().cut_after_read = Some(look + 3);
    UploadSpec {
        expect: Expect::Version(version),
        ..upload_spec(new)
    }
}

#[test]
fn an_upload_that_was_cut_is_repaired_by_the_next() {
    let world = World::scp_only(OPENSSH);
    let remote = Retry::new(world.scp(Arc::new(ManualClock::new())));
    let (old, new) = (vec![1; 3_000_000], vec![2; 2_000_000]);
    let file = world.root().join("file");
    let plan = cut_next_upload(&world, &remote, &old, &new);
    let over = Over(bytes(&new), bytes(&old), old.len() as u64);
    // The file is a partial upload or the expected version, so the retry may replace it.
    remote.upload(&path("file"), &over, &plan).unwrap();
    assert!(fs::read(&file).unwrap() == new);
    fs::write(&file, "theirs").unwrap();
    let result = remote.upload(&path("file"), &over, &plan);
    assert!(matches!(result, Err(Error::Conflict { .. })), "{result:?}");
    assert_eq!(fs::read(&file).unwrap(), b"theirs");
}

/// Regression: an upload after a partial upload overwrote changes by others.
#[test]
fn upload_after_a_partial_upload_keeps_changes_by_others() {
    let world = World::scp_only(OPENSSH);
    let remote = world.scp(Arc::new(ManualClock::new()));
    let (old, new) = (vec![1; 3_000_000], vec![2; 2_000_000]);
    let file = world.root().join("file");
    let plan = cut_next_upload(&world, &remote, &old, &new);
    let error = remote.upload(&path("file"), &bytes(&new), &plan);
    let error = error.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    // A new inode, because the sink of the first upload may still write to the old one.
    fs::write(file.with_extension("theirs"), "theirs").unwrap();
    fs::rename(file.with_extension("theirs"), &file).unwrap();
    let result = remote.upload(&path("file"), &bytes(&new), &plan);
    assert!(matches!(result, Err(Error::Conflict { .. })), "{result:?}");
    assert!(fs::read(&file).unwrap() == b"theirs");
}

#[test]
fn upload_to_the_name_of_a_directory_creates_nothing_in_it() {
    let world = World::scp_only(OPENSSH);
    let remote = world.scp(Arc::new(ManualClock::new()));
    fs::create_dir(world.root().join("dir")).unwrap();
    fs::write(world.root().join("file"), "x").unwrap();
    for size in [10, 2_000_000] {
        let evil = b"C4755 4 evil\nevil\0\n".repeat(size / 10);
        for expect in [Expect::Anything, Expect::Absent] {
            let plan = UploadSpec {
                expect,
                ..upload_spec(&evil)
            };
            let result = remote.upload(&path("dir"), &bytes(&evil), &plan);
            assert_eq!(reason(result), Reason::IsADirectory);
        }
    }
    let make = |name: &str| remote.make_dir(&path(name), 0o755, None);
    assert_eq!(reason(make("dir")), Reason::Exists);
    assert_eq!(reason(make("file")), Reason::Exists);
    assert_eq!(reason(make("file/x")), Reason::NotADirectory);
    assert_eq!(reason(make("no/x")), Reason::NotFound);
    assert_eq!(fs::read_dir(world.root().join("dir")).unwrap().count(), 0);
    assert_eq!(fs::read(world.root().join("file")).unwrap(), b"x");
}

#[test]
fn modes_and_times_are_set_with_the_content_or_not_at_all() {
    let world = World::scp_only(OPENSSH);
    let remote = world.scp(Arc::new(ManualClock::new()));
    let at = |name: &str| world.root().join(name);
    fs::write(at("small"), "small").unwrap();
    fs::write(at("large"), vec![0; 2 << 20]).unwrap();
    fs::create_dir(at("dir")).unwrap();
    let time = Time {
        secs: 1_000_000_000,
        nanos: 0,
    };
    let change = AttrChange {
        mode: Some(0o711),
        mtime: Some(NewTime::At(time)),
        ..AttrChange::default()
    };
    let stat = remote.set_attr(&path("dir"), &change).unwrap();
    assert_eq!((stat.mode, stat.mtime), (0o711, time));
    let meta = fs::metadata(at("dir")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o711, time.secs));
    // Setting only the mode keeps the times.
    let mode = AttrChange {
        mode: Some(0o750),
        ..AttrChange::default()
    };
    assert_eq!(remote.set_attr(&path("dir"), &mode).unwrap().mtime, time);
    assert_eq!(fs::metadata(at("dir")).unwrap().mtime(), time.secs);
    let root = remote.set_attr(&RemotePath::root(), &change);
    assert!(is_unsupported(root));
    // scp sets mode and times of a file only together with its content.
    for name in ["small", "large"] {
        let before = fs::metadata(at(name)).unwrap();
        assert!(is_unsupported(remote.set_attr(&path(name), &change)));
        let after = fs::metadata(at(name)).unwrap();
        assert_eq!(
            (before.mode(), before.mtime()),
            (after.mode(), after.mtime())
        );
    }
    let owner = AttrChange {
        uid: Some(0),
        ..AttrChange::default()
    };
    assert!(is_unsupported(remote.set_attr(&path("small"), &owner)));
    let nothing = AttrChange {
        uid: Some(scp_only::UNKNOWN_ID),
        gid: Some(scp_only::UNKNOWN_ID),
        ..AttrChange::default()
    };
    remote.set_attr(&path("small"), &nothing).unwrap();
}

#[test]
fn missing_root_or_root_that_is_no_directory_is_reported() {
    let world = World::scp_only(OPENSSH);
    fs::write(world.root().join("file"), "").unwrap();
    for (name, word) in [("no", "there is no directory"), ("file", "not a directory")] {
        let mut settings = world.settings();
        settings
            .directory
            .extend_from_slice(format!("/{name}").as_bytes());
        for choice in [Choice::Auto, Choice::ScpOnly] {
            let clock = Arc::new(ManualClock::new());
            let result = host::connect(world.transport(), &settings, choice, clock);
            let text = result.unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
    }
}

#[test]
fn the_shell_is_chosen_where_there_is_one_and_scp_where_there_is_none() {
    let connect = |world: &World, choice| {
        let clock = Arc::new(ManualClock::new());
        host::connect(world.transport(), &world.settings(), choice, clock)
    };
    let has_shell = |world: &World, choice| {
        let remote = connect(world, choice).unwrap();
        can(&*remote, Operation::Rename)
    };
    let shell = World::new(Userland::Gnu);
    assert!(has_shell(&shell, Choice::Auto));
    assert!(!has_shell(&shell, Choice::ScpOnly));
    let scp = World::scp_only(OPENSSH);
    assert!(!has_shell(&scp, Choice::Auto));
    let summary = &connect(&scp, Choice::Auto).unwrap().facts().summary.clone();
    assert!(summary.contains("OpenSSH_9.2"), "{summary}");
    let error = connect(&scp, Choice::Shell).unwrap_err().to_string();
    assert!(error.contains("this account runs scp only"), "{error}");
    // One root is relative to the login directory, the other is `/`.
    for (directory, name) in [(&b""[..], "in login"), (b"/", "etc")] {
        fs::write(scp.root().join("in login"), "").unwrap();
        let settings = Settings {
            directory: directory.to_vec(),
            ..scp.settings()
        };
        let clock = Arc::new(ManualClock::new());
        let remote = host::connect(scp.transport(), &settings, Choice::Auto, clock).unwrap();
        remote.stat(&path(name)).unwrap();
    }
}

#[test]
fn a_cut_at_any_byte_is_never_a_shorter_directory_or_file() {
    let world = World::scp_only(OPENSSH);
    let remote = world.scp(Arc::new(ManualClock::new()));
    for n in 0..20 {
        fs::write(world.root().join(format!("file{n}")), "content").unwrap();
    }
    let whole = world.meter.bytes_read();
    remote.list(&RemotePath::root()).unwrap();
    let whole = world.meter.bytes_read() - whole;
    for cut in 0..=whole {
        world.faults.lock().cut_after_read = Some(cut);
        let listing = remote.list(&RemotePath::root());
        let mut buffer = Buffer::default();
        let fetched = remote.fetch(&path("file1"), None, &mut buffer);
        world.faults.lock().cut_after_read = None;
        match listing {
            Ok(listing) => assert_eq!(listing.entries.len(), 20, "cut at {cut}"),
            Err(error) => assert!(error.is_connection_loss(), "cut at {cut}: {error}"),
        }
        match fetched {
            Ok(_) => assert_eq!(buffer.data, b"content", "cut at {cut}"),
            Err(error) => assert!(error.is_connection_loss(), "cut at {cut}: {error}"),
        }
    }
}

#[test]
fn upload_after_one_whose_answer_was_lost_is_no_conflict() {
    let world = World::scp_only(OPENSSH);
    let remote = Retry::new(world.scp(Arc::new(ManualClock::new())));
    let upload = |data: &[u8], expect| {
        let plan = UploadSpec {
            expect,
            ..upload_spec(data)
        };
        remote.upload(&path("file"), &bytes(data), &plan)
    };
    // Cuts the connection at each byte of the answers to the conflict check and to the upload.
    for cut in 0..80 {
        fs::write(world.root().join("file"), "old content").unwrap();
        let version = remote.stat(&path("file")).unwrap().version();
        world.faults.lock().cut_after_read = Some(cut);
        let uploaded = upload(b"new", Expect::Version(version));
        world.faults.lock().cut_after_read = None;
        uploaded.unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        assert_eq!(fs::read(world.root().join("file")).unwrap(), b"new");
    }
}

/// Two changes of the same size within one second, on a host that reports whole seconds.
#[test]
fn a_change_of_the_same_size_in_the_same_second_is_seen_in_a_small_file() {
    let world = World::scp_only(OPENSSH);
    let remote = world.scp(Arc::new(ManualClock::new()));
    let second = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let write = |data: &str| {
        fs::write(world.root().join("file"), data).unwrap();
        let file = fs::File::options()
            .append(true)
            .open(world.root().join("file"))
            .unwrap();
        file.set_modified(second).unwrap();
    };
    let upload = |data: &[u8], version| {
        let plan = UploadSpec {
            expect: Expect::Version(version),
            ..upload_spec(data)
        };
        let before = world.meter.trips();
        let result = remote.upload(&path("file"), &bytes(data), &plan);
        (result, world.meter.trips() - before)
    };
    write("seen");
    assert_eq!(fetch(&remote, "file"), b"seen");
    let version = remote.stat(&path("file")).unwrap().version();
    write("they");
    let (result, _) = upload(b"ours", version);
    assert!(matches!(result, Err(Error::Conflict { .. })), "{result:?}");
    assert_eq!(fs::read(world.root().join("file")).unwrap(), b"they");
    // Uploaded content can be compared in the same way, without a further round trip.
    assert_eq!(fetch(&remote, "file"), b"they");
    let (uploaded, trips) = upload(b"ours", version);
    let version = uploaded.unwrap().stat.unwrap().version();
    assert_eq!(trips, 2);
    write("them");
    let (result, _) = upload(b"more", version);
    assert!(matches!(result, Err(Error::Conflict { .. })), "{result:?}");
    // If the size differs, the conflict check fetches no content.
    let before = world.meter.bytes_read();
    write(&"x".repeat(1_000_000));
    let (result, _) = upload(b"more", version);
    assert!(matches!(result, Err(Error::Conflict { .. })), "{result:?}");
    assert!(world.meter.bytes_read() - before < 200_000);
}

/// dropbear's scp opens every file that it lists, and blocks on a FIFO.
#[test]
fn lookup_works_in_a_directory_that_scp_cannot_list() {
    if !Userland::Dropbear.is_here() {
        return;
    }
    let world = World::dropbear_only();
    fs::create_dir(world.root().join("dir")).unwrap();
    fs::write(world.root().join("dir/file"), "content").unwrap();
    make_fifo(&world.root().join("dir/fifo"));
    let settings = Settings {
        timeout: Duration::from_secs(4),
        ..world.settings()
    };
    let clock = Arc::new(ManualClock::new());
    let remote = scp_only::probe::probe(world.transport(), &settings, clock).unwrap();
    let error = remote.list(&path("dir")).unwrap_err();
    assert!(error.is_connection_loss(), "{error}");
    assert!(is_unsupported(remote.list(&path("dir"))));
    assert_eq!(remote.stat(&path("dir/file")).unwrap().size, 7);
    assert_eq!(names(&remote, &RemotePath::root()), ["dir"]);
    // Ends the scp process that still waits for the FIFO.
    let options = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    let fifo = world.root().join("dir/fifo");
    let _woken = rustix::fs::open(fifo, options, rustix::fs::Mode::empty());
}

/// Regression: the next upload made a file readable again that others had made private.
#[test]
fn an_upload_leaves_a_file_the_mode_that_others_have_set() {
    for banner in ["SSH-2.0-OpenSSH_9.2", "SSH-2.0-local"] {
        let world = World::scp_only(banner);
        let remote = world.scp(Arc::new(ManualClock::new()));
        let file = world.root().join("file");
        let mode = || fs::metadata(&file).unwrap().mode() & 0o7777;
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let mut plan = UploadSpec {
            expect: Expect::Version(remote.stat(&path("file")).unwrap().version()),
            mode: 0o644,
            sets_mode: false,
            ..upload_spec(b"new")
        };
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        remote.upload(&path("file"), &bytes(b"new"), &plan).unwrap();
        assert_eq!((fs::read(&file).unwrap(), mode()), (b"new".to_vec(), 0o600));
        (plan.sets_mode, plan.mode) = (true, 0o640);
        plan.expect = Expect::Version(remote.stat(&path("file")).unwrap().version());
        remote.upload(&path("file"), &bytes(b"new"), &plan).unwrap();
        assert_eq!(mode(), 0o640, "{banner}");
    }
}
