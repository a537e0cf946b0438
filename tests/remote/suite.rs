//! Tests that every host with a shell must pass, beyond those of `contract`.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Barrier;
use std::thread;
use std::thread::ThreadId;
use std::time::Duration;

use scpfs::clock::ManualClock;
use scpfs::path::Name;
use scpfs::path::RemotePath;
use scpfs::remote::AttrChange;
use scpfs::remote::Content;
use scpfs::remote::Durability;
use scpfs::remote::Error;
use scpfs::remote::Expect;
use scpfs::remote::NewTime;
use scpfs::remote::Outcome;
use scpfs::remote::Placement;
use scpfs::remote::Reason;
use scpfs::remote::Receiver;
use scpfs::remote::Remote as _;
use scpfs::remote::RenameHow;
use scpfs::remote::TimePrecision;
use scpfs::remote::UploadSpec;
use scpfs::remote::retry::Retry;
use scpfs::shell::Shell;
use scpfs::stat::DeviceNumber;
use scpfs::stat::FileKind;
use scpfs::stat::Stat;
use scpfs::stat::Time;
use scpfs::sync::Condvar;
use scpfs::sync::Mutex;
use scpfs_testing::ability::has_scp;
use scpfs_testing::ability::has_stat;
use scpfs_testing::content::Buffer;
use scpfs_testing::content::bytes;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::samples::MTIME;
use scpfs_testing::samples::path;
use scpfs_testing::samples::reason;
use scpfs_testing::samples::upload_spec;

/// A host and its `Remote`.
pub(crate) struct Host {
    pub(crate) world: World,
    pub(crate) remote: Retry<Shell>,
}

impl Host {
    /// A host of this kind, or `None` if this machine lacks its programs.
    pub(crate) fn of(userland: Userland) -> Option<Self> {
        userland.is_here().then(|| Self::new(userland))
    }

    pub(crate) fn new(userland: Userland) -> Self {
        let world = World::new(userland);
        let remote = Retry::new(world.shell(Arc::new(ManualClock::new())));
        Self { world, remote }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.world.root().join(name)
    }

    /// Runs `op`; returns its result and the number of round trips.
    fn counted<T>(&self, op: impl FnOnce(&Retry<Shell>) -> T) -> (T, u64) {
        let before = self.world.meter.trips();
        let result = op(&self.remote);
        (result, self.world.meter.trips() - before)
    }

    pub(crate) fn names(&self) -> Vec<Vec<u8>> {
        let listing = self.remote.list(&RemotePath::root()).unwrap();
        let mut names: Vec<_> = listing
            .entries
            .iter()
            .map(|entry| entry.name.as_bytes().to_vec())
            .collect();
        names.sort();
        names
    }

    /// Whether the host reports devices with inode numbers, so that a replaced file is detected.
    pub(crate) fn is_told_inodes(&self) -> bool {
        has_stat(&self.remote)
    }

    /// Whether `touch` can set nanoseconds.
    fn is_gnu(&self) -> bool {
        self.remote.facts().time_precision == TimePrecision::Nanos
    }

    /// The mtime that the host reports for content that was uploaded with this mtime.
    fn told(&self, mtime: Time) -> Time {
        let has_record = has_scp(&self.remote);
        if self.is_gnu() || (has_record && mtime.truncate_to_micros() == mtime) {
            self.seen(mtime)
        } else {
            Time { nanos: 0, ..mtime }
        }
    }

    /// The mtime that the host reports for a file with this mtime on its disk.
    fn seen(&self, mtime: Time) -> Time {
        if !has_stat(&self.remote) {
            Time { nanos: 0, ..mtime }
        } else {
            mtime
        }
    }
}

pub(crate) fn attributes_are_those_of_the_host(host: &Host) {
    fs::write(host.at("file"), "hello").unwrap();
    fs::create_dir(host.at("dir")).unwrap();
    symlink("nowhere", host.at("link")).unwrap();
    for (name, kind) in [("fifo", FileKind::Fifo), ("dev", FileKind::CharDevice)] {
        let device = DeviceNumber { major: 1, minor: 3 };
        let made = host
            .remote
            .make_node(&path(name), kind, 0o620, device, None);
        if kind == FileKind::CharDevice && !rustix::process::geteuid().is_root() {
            assert_eq!(reason(made), Reason::NotPermitted);
            continue;
        }
        let stat = made.unwrap().stat.unwrap();
        assert_eq!((stat.kind, stat.mode), (kind, 0o620));
        if kind == FileKind::CharDevice {
            assert_eq!(stat.rdev, device);
        }
    }
    let device = DeviceNumber::default();
    let socket = |name: &str| {
        host.remote
            .make_node(&path(name), FileKind::Socket, 0o640, device, None)
    };
    let made = socket(
        "socket ' of a long name that is too long for the address of a socket, \
                       which has a hundred and seven bytes for all of its path and no more",
    );
    if !has_stat(&host.remote) {
        // No program of BusyBox creates a socket.
        assert_eq!(reason(made), Reason::NotSupported);
    } else {
        let stat = made.unwrap().stat.unwrap();
        assert_eq!((stat.kind, stat.mode), (FileKind::Socket, 0o640));
    }
    assert_eq!(reason(socket("file")), Reason::Exists);
    let listing = host.remote.list(&RemotePath::root()).unwrap();
    // Listing a directory changes its atime.
    let root = host.remote.stat(&RemotePath::root()).unwrap();
    assert_eq!(
        listing.directory,
        Stat {
            atime: listing.directory.atime,
            ..root
        }
    );
    for entry in &listing.entries {
        let stat = host
            .remote
            .stat(&RemotePath::root().join(&entry.name))
            .unwrap();
        assert_eq!(entry.kind, stat.kind);
        let meta = fs::symlink_metadata(
            host.world
                .root()
                .join(std::ffi::OsStr::from_bytes(entry.name.as_bytes())),
        )
        .unwrap();
        assert_eq!(stat.id.unwrap().ino, meta.ino());
        assert_eq!(
            (stat.uid, stat.gid, stat.nlink),
            (meta.uid(), meta.gid(), u32::try_from(meta.nlink()).unwrap())
        );
        let mtime = Time {
            secs: meta.mtime(),
            nanos: u32::try_from(meta.mtime_nsec()).unwrap(),
        };
        assert_eq!(stat.mtime, host.seen(mtime));
        assert_eq!((stat.size, stat.blocks), (meta.size(), meta.blocks()));
        if let Some(listed) = entry.stat {
            // Reading a symlink changes its atime as well.
            assert_eq!(
                Stat {
                    atime: stat.atime,
                    ..listed
                },
                stat
            );
        }
    }
    assert_eq!(host.remote.read_link(&path("link")).unwrap(), b"nowhere");
    assert_eq!(
        reason(host.remote.read_link(&path("file"))),
        Reason::InvalidArgument
    );
}

fn fetched(host: &Host, name: &str) -> Buffer {
    let stat = host.remote.stat(&path(name)).unwrap();
    let mut buffer = Buffer::default();
    let fetched = host
        .remote
        .fetch(&path(name), Some(&stat.version()), &mut buffer)
        .unwrap();
    assert!(fetched.is_stable);
    assert_eq!(fetched.stat.version(), stat.version());
    buffer
}

pub(crate) fn file_of_proc_is_fetched_although_its_size_is_0(host: &Host) {
    let mut settings = host.world.settings();
    settings.directory = b"/proc/self".to_vec();
    let clock = Arc::new(ManualClock::new());
    let proc = scpfs::shell::probe::probe(host.world.transport(), &settings, clock).unwrap();
    let mut buffer = Buffer::default();
    let fetched = proc.fetch(&path("mounts"), None, &mut buffer).unwrap();
    assert_eq!(fetched.stat.size, 0);
    assert!(!buffer.data.is_empty());
}

pub(crate) fn an_upload_takes_one_round_trip_and_keeps_nanoseconds(host: &Host) {
    for (name, mode, mtime) in [
        ("plain", 0o644, MTIME),
        ("setuid", 0o6755, MTIME),
        ("none", 0, MTIME),
        (
            "exact",
            0o600,
            Time {
                secs: 1_700_000_000,
                nanos: 123_456_789,
            },
        ),
    ] {
        let plan = UploadSpec {
            mode,
            mtime,
            ..upload_spec(b"hello")
        };
        let (changed, trips) =
            host.counted(|remote| remote.upload(&path(name), &bytes(b"hello"), &plan));
        assert_eq!(trips, 1);
        let stat = changed.unwrap().stat.unwrap();
        assert_eq!(stat, host.remote.stat(&path(name)).unwrap());
        assert_eq!((stat.mode, stat.size), (mode, 5));
        assert_eq!(stat.mtime, host.told(mtime), "{name}");
    }
}

pub(crate) fn an_upload_never_shows_half_a_file(host: &Host) {
    fs::write(host.at("file"), "old content").unwrap();
    let old = fs::File::open(host.at("file")).unwrap();
    host.remote
        .upload(&path("file"), &bytes(b"new"), &upload_spec(b"new"))
        .unwrap();
    // A program that has the old file open can still read all of it.
    assert_eq!(io::read_to_string(old).unwrap(), "old content");
    assert_eq!(fs::read(host.at("file")).unwrap(), b"new");
    assert_eq!(host.names(), [b"file"]);
    // Content that ends too early makes the connection unusable, but never gets the final name.
    let plan = UploadSpec {
        size: 10,
        ..upload_spec(b"")
    };
    let result = host.remote.upload(&path("file"), &bytes(b"short"), &plan);
    assert!(matches!(result, Err(Error::Local { .. })), "{result:?}");
    assert_eq!(fs::read(host.at("file")).unwrap(), b"new");
}

pub(crate) fn an_upload_keeps_hard_links_in_place(host: &Host) {
    fs::write(host.at("file"), "old content that is longer").unwrap();
    fs::hard_link(host.at("file"), host.at("other")).unwrap();
    let plan = UploadSpec {
        placement: Placement::InPlace,
        ..upload_spec(b"new")
    };
    let changed = host
        .remote
        .upload(&path("file"), &bytes(b"new"), &plan)
        .unwrap();
    assert_eq!(fs::read(host.at("other")).unwrap(), b"new");
    let stat = changed.stat.unwrap();
    assert_eq!((stat.nlink, stat.mode), (2, 0o640));
    assert_eq!(stat.mtime, host.told(MTIME));
    let plan = UploadSpec {
        placement: Placement::Direct,
        ..plan
    };
    host.remote
        .upload(&path("file"), &bytes(b"now"), &plan)
        .unwrap();
    assert_eq!(fs::read(host.at("other")).unwrap(), b"now");
    // An upload never writes into a directory.
    fs::create_dir(host.at("dir")).unwrap();
    let result = host.remote.upload(&path("dir"), &bytes(b"abc"), &plan);
    assert_eq!(reason(result), Reason::IsADirectory);
    assert_eq!(fs::read_dir(host.at("dir")).unwrap().count(), 0);
    fs::remove_dir(host.at("dir")).unwrap();
    assert_eq!(host.names().len(), 2);
}

/// If a program of the conflict check is killed, the upload fails without a conflict.
pub(crate) fn failed_version_check_is_no_conflict(host: &Host) {
    let aside = tempfile::tempdir().unwrap();
    let (once, always) = (aside.path().join("once"), aside.path().join("always"));
    let script = format!(
        "[ ! -e {0} ] || {{ rm -f {0}; exit 1; }}; [ ! -e {1} ] || exit 1",
        once.display(),
        always.display()
    );
    fs::write(host.at("file"), "old").unwrap();
    let upload = |data: &[u8]| {
        let version = host.remote.stat(&path("file")).unwrap().version();
        for flag in [&once, &always] {
            let is_meant = (flag == &once) == (data == b"new");
            is_meant.then(|| fs::write(flag, "").unwrap());
        }
        let plan = UploadSpec {
            expect: Expect::Version(version),
            conflict_name: Some(Name::new(b"beside").unwrap()),
            ..upload_spec(data)
        };
        host.remote.upload(&path("file"), &bytes(data), &plan)
    };
    host.world.before(&["ls", "stat"], &script);
    let is_there = if !has_scp(&host.remote) {
        // Without scp, only `stat` can confirm that all of the content has arrived.
        let error = upload(b"new").unwrap_err();
        assert!(!matches!(error, Error::Conflict { .. }), "{error}");
        "old"
    } else {
        assert_eq!(upload(b"new").unwrap().outcome, Outcome::AsPlanned);
        "new"
    };
    assert!(!once.exists());
    let error = upload(b"newer").unwrap_err();
    assert!(!matches!(error, Error::Conflict { .. }), "{error}");
    fs::remove_file(&always).unwrap();
    assert_eq!(fs::read_to_string(host.at("file")).unwrap(), is_there);
    assert_eq!(host.names(), [b"file"]);
}

pub(crate) fn upload_conflict_makes_a_conflict_copy_in_the_same_round_trip(host: &Host) {
    let upload = |data: &[u8], expect| {
        let plan = UploadSpec {
            expect,
            conflict_name: Some(Name::new(b"file.ours $(x)\n").unwrap()),
            ..upload_spec(data)
        };
        host.counted(|remote| remote.upload(&path("file"), &bytes(data), &plan))
    };
    fs::write(host.at("file"), "theirs").unwrap();
    let (uploaded, trips) = upload(b"ours", Expect::Absent);
    let uploaded = uploaded.unwrap();
    assert_eq!((uploaded.outcome, trips), (Outcome::ConflictCopy, 1));
    assert_eq!(uploaded.stat.unwrap().size, 4);
    assert!(uploaded.parent.is_some());
    assert_eq!(fs::read(host.at("file")).unwrap(), b"theirs");
    assert_eq!(fs::read(host.at("file.ours $(x)\n")).unwrap(), b"ours");

    // A file with the name of the conflict copy is not replaced either.
    let (result, _) = upload(b"ours again", Expect::Absent);
    assert!(matches!(result, Err(Error::Conflict { .. })), "{result:?}");
    assert_eq!(fs::read(host.at("file.ours $(x)\n")).unwrap(), b"ours");
    fs::remove_file(host.at("file.ours $(x)\n")).unwrap();

    // If others uploaded the same content, there is no conflict.
    let (uploaded, trips) = upload(b"theirs", Expect::Absent);
    let uploaded = uploaded.unwrap();
    assert_eq!(uploaded.outcome, Outcome::Same);
    assert!(trips <= 2, "{trips}");
    let theirs = uploaded.stat.unwrap().version();

    // A file that others removed is created again.
    fs::remove_file(host.at("file")).unwrap();
    let (uploaded, _) = upload(b"ours", Expect::Version(theirs));
    assert_eq!(uploaded.unwrap().outcome, Outcome::Recreated);
    assert_eq!(fs::read(host.at("file")).unwrap(), b"ours");
    assert_eq!(host.names(), [b"file"], "no temporary file is left");
}

/// Two writers within one second, on a host whose mtimes are whole seconds.
pub(crate) fn change_with_an_equal_coarse_mtime_is_a_conflict(host: &Host) {
    let coarse = Time {
        secs: 1_700_000_000,
        nanos: 0,
    };
    let spec = |expect| UploadSpec {
        mtime: coarse,
        expect,
        ..upload_spec(b"ours")
    };
    let upload = |expect| {
        let result = host
            .remote
            .upload(&path("file"), &bytes(b"ours"), &spec(expect));
        result.map(|uploaded| uploaded.stat.unwrap().version())
    };
    let version = upload(Expect::Absent).unwrap();
    // If the ctime has a fraction, a whole-second mtime does not make the version ambiguous.
    let version = upload(Expect::Version(version)).unwrap();
    let ctime = version.ctime.unwrap();
    let seen_coarsely = |secs| scpfs::stat::Version {
        ctime: Some(Time { secs, nanos: 0 }),
        ..version
    };
    fs::write(host.at("file"), b"them").unwrap();
    let file = fs::File::options()
        .write(true)
        .open(host.at("file"))
        .unwrap();
    let mtime = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    file.set_modified(mtime).unwrap();
    // Size, inode and mtime are equal; only the ctime differs.
    let result = upload(Expect::Version(seen_coarsely(ctime.secs - 5)));
    assert!(matches!(result, Err(Error::Conflict { .. })), "{result:?}");
    assert_eq!(fs::read(host.at("file")).unwrap(), b"them");
}

pub(crate) fn leftovers_are_removed_in_one_round_trip_and_directories_never(host: &Host) {
    fs::create_dir(host.at("d")).unwrap();
    for name in [
        ".scpfs-1234abcd00000001.tmp",
        ".scpfs-1234abcdffffffff.tmp",
        ".scpfs-1234abce00000001.tmp",
        ".scpfs-1234abcd00000001.tmp.c",
        ".scpfs-1234abcd.tmp",
        "1234abcd",
    ] {
        fs::write(host.at("d").join(name), "x").unwrap();
    }
    fs::create_dir(host.at("d/.scpfs-1234abcd0000000d.tmp")).unwrap();
    let (result, trips) = host.counted(|r| r.remove_leftovers(&path("d"), 0x1234_abcd));
    result.unwrap();
    assert_eq!(trips, 1);
    let mut left: Vec<_> = fs::read_dir(host.at("d"))
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            ".scpfs-1234abcd.tmp",
            ".scpfs-1234abcd00000001.tmp.c",
            ".scpfs-1234abcd0000000d.tmp",
            ".scpfs-1234abce00000001.tmp",
            "1234abcd"
        ]
    );
}

pub(crate) fn a_large_file_takes_two_round_trips(host: &Host) {
    let data: Vec<u8> = (0u32..2_000_000).flat_map(u32::to_le_bytes).collect();
    let (uploaded, trips) =
        host.counted(|remote| remote.upload(&path("big"), &bytes(&data), &upload_spec(&data)));
    uploaded.unwrap();
    assert_eq!(trips, 2, "content waits for the acknowledgement");
    assert!(fs::read(host.at("big")).unwrap() == data);
    assert!(fetched(host, "big").data == data);
    // The refusal arrives before the content is sent, and creates no file.
    let result = host
        .remote
        .upload(&path("no/big"), &bytes(&data), &upload_spec(&data));
    assert_eq!(reason(result), Reason::NotFound);
}

/// Content in which no two blocks are equal.
fn forty_mib() -> Vec<u8> {
    (0u32..10 << 20).flat_map(u32::to_le_bytes).collect()
}

/// An upload spec that every host whose `dd` counts bytes uploads in pieces: BusyBox without SCP
/// cannot set fractions of a second.
fn in_pieces(host: &Host, data: &[u8]) -> UploadSpec {
    let nanos = if host.is_gnu() { 123_456_789 } else { 0 };
    UploadSpec {
        mtime: Time { nanos, ..MTIME },
        ..upload_spec(data)
    }
}

/// Runs two fetches at the same time, so that two connections are open for content afterwards.
fn open_two_lanes(host: &Host) {
    struct Together<'a>(&'a Barrier);

    impl Receiver for Together<'_> {
        fn begin(&mut self, _size: u64) -> io::Result<()> {
            self.0.wait();
            Ok(())
        }

        fn data(&mut self, _data: &[u8]) -> io::Result<()> {
            Ok(())
        }
    }

    fs::write(host.at("together"), "x").unwrap();
    let version = host.remote.stat(&path("together")).unwrap().version();
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                host.remote
                    .fetch(&path("together"), Some(&version), &mut Together(&barrier))
                    .unwrap();
            });
        }
    });
    fs::remove_file(host.at("together")).unwrap();
    assert!(host.remote.inner().n_connections() >= 2);
}

/// Content whose second read blocks until another thread reads as well.
struct ByTwo<'a> {
    data: &'a [u8],
    readers: Mutex<HashSet<ThreadId>>,
    joined: Condvar,
}

impl Content for ByTwo<'_> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut readers = self.readers.lock();
        if readers.insert(thread::current().id()) {
            self.joined.notify_all();
        } else {
            let patience = Duration::from_secs(20);
            let mut alone = |readers: &mut HashSet<ThreadId>| readers.len() < 2;
            let waited = self
                .joined
                .wait_while_for(&mut readers, &mut alone, patience);
            if waited.timed_out() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        drop(readers);
        bytes(self.data).read_at(buf, offset)
    }
}

pub(crate) fn huge_file_is_uploaded_in_pieces_over_several_connections(host: &Host) {
    if !host.remote.facts().can_take_pieces {
        return;
    }
    let data = &forty_mib()[..(40 << 20) - 1];
    open_two_lanes(host);
    let content = ByTwo {
        data,
        readers: Mutex::default(),
        joined: Condvar::new(),
    };
    let plan = UploadSpec {
        mode: 0o4751,
        atime: Time {
            secs: 1_600_000_000,
            nanos: 0,
        },
        ..in_pieces(host, data)
    };
    let stat = host.remote.upload(&path("huge"), &content, &plan);
    let stat = stat.unwrap().stat.unwrap();
    let again = host.remote.stat(&path("huge")).unwrap();
    // The disk may not have allocated all blocks yet.
    let blocks = stat.blocks;
    assert_eq!(stat, Stat { blocks, ..again });
    assert_eq!((stat.mode, stat.mtime), (plan.mode, plan.mtime));
    assert_eq!(stat.atime, plan.atime);
    assert!(fs::read(host.at("huge")).unwrap() == data);
    assert_eq!(host.names(), [b"huge"]);
    // The connections are still usable, and closing them does not remove the file.
    host.remote.close();
    assert!(host.at("huge").exists());
}

pub(crate) fn a_huge_upload_keeps_hard_links_in_place(host: &Host) {
    let data = forty_mib();
    fs::write(host.at("file"), "old").unwrap();
    fs::hard_link(host.at("file"), host.at("other")).unwrap();
    let plan = UploadSpec {
        placement: Placement::InPlace,
        durability: Durability::Fsync,
        ..in_pieces(host, &data)
    };
    let changed = host.remote.upload(&path("file"), &bytes(&data), &plan);
    let stat = changed.unwrap().stat.unwrap();
    assert_eq!((stat.nlink, stat.mode, stat.mtime), (2, 0o640, plan.mtime));
    assert!(fs::read(host.at("other")).unwrap() == data);
    assert_eq!(host.names(), [&b"file"[..], b"other"]);
}

pub(crate) fn a_huge_upload_that_fails_changes_nothing(host: &Host) {
    let data = forty_mib();
    let plan = in_pieces(host, &data);
    fs::write(host.at("file"), "old").unwrap();
    fs::create_dir(host.at("dir")).unwrap();
    let version = host.remote.stat(&path("file")).unwrap().version();
    fs::write(host.at("file"), "theirs").unwrap();
    for expect in [Expect::Version(version), Expect::Absent] {
        let plan = UploadSpec {
            expect,
            ..plan.clone()
        };
        let result = host.remote.upload(&path("file"), &bytes(&data), &plan);
        assert!(matches!(result, Err(Error::Conflict { .. })), "{result:?}");
    }
    let upload = |name: &str| host.remote.upload(&path(name), &bytes(&data), &plan);
    assert_eq!(reason(upload("dir")), Reason::IsADirectory);
    assert_eq!(reason(upload("nowhere/file")), Reason::NotFound);
    assert_eq!(reason(upload("file/file")), Reason::NotADirectory);
    assert_eq!(fs::read(host.at("file")).unwrap(), b"theirs");
    assert_eq!(fs::read_dir(host.at("dir")).unwrap().count(), 0);
    assert_eq!(
        fs::read_dir(host.world.root()).unwrap().count(),
        2,
        "no temporary file is left"
    );
    // Content that ends too early, on any of the connections.
    let short = bytes(&data[..39 << 20]);
    let result = host.remote.upload(&path("file"), &short, &plan);
    assert!(matches!(result, Err(Error::Local { .. })), "{result:?}");
    assert_eq!(fs::read(host.at("file")).unwrap(), b"theirs");
}

pub(crate) fn a_full_disk_never_runs_the_pieces(host: &Host) {
    let line = format!("\n\ntouch '{}'; answer 0\n", host.at("evil").display());
    let data = line.repeat((20 << 20) / line.len() + 1).into_bytes();
    open_two_lanes(host);
    let plan = in_pieces(host, &data);
    host.remote
        .upload(&path("file"), &bytes(&data), &plan)
        .unwrap();
    assert!(fs::read(host.at("file")).unwrap() == data);
    // Each piece reaches the limit at once, and leaves its content unread.
    host.world.limit_file_size(1 << 20);
    let limited = host.world.shell(Arc::new(ManualClock::new()));
    let result = limited.upload(&path("file"), &bytes(&data), &plan);
    assert_eq!(reason(result), Reason::FileTooLarge);
    limited.close();
    assert!(fs::read(host.at("file")).unwrap() == data);
    assert_eq!(host.names(), [b"file"], "nothing is left, nothing was run");
}

pub(crate) fn a_huge_upload_survives_a_cut(host: &Host) {
    if !host.remote.facts().can_take_pieces {
        return;
    }
    let data = forty_mib();
    let plan = in_pieces(host, &data);
    // An answer that contains only a status has about 40 bytes.
    for cut in [0, 38, 60, 120, 180] {
        fs::write(host.at("file"), "old").unwrap();
        // Opens all connections for content, so that the cut does not hit one that is being opened.
        open_two_lanes(host);
        host.world.faults.lock().cut_after_read = Some(cut);
        let upload = host.remote.inner();
        let error = upload
            .upload(&path("file"), &bytes(&data), &plan)
            .unwrap_err();
        assert!(error.is_connection_loss(), "cut at {cut}: {error}");
        assert_eq!(fs::read(host.at("file")).unwrap(), b"old", "cut at {cut}");
        host.world.faults.lock().cut_after_read = None;
        open_two_lanes(host);
        host.world.faults.lock().cut_after_read = Some(cut);
        let upload = &host.remote;
        upload.upload(&path("file"), &bytes(&data), &plan).unwrap();
        assert!(
            host.world.faults.lock().cut_after_read.is_none(),
            "cut at {cut}"
        );
        assert!(fs::read(host.at("file")).unwrap() == data, "cut at {cut}");
    }
}

pub(crate) fn a_failed_upload_never_runs_its_content(host: &Host) {
    let evil = format!(
        "\n\ntouch {}\ntouch evil\nC0644 0 evil\n\0",
        host.at("evil").display()
    );
    let evil = evil.repeat(100).into_bytes();
    fs::create_dir(host.at("dir")).unwrap();
    for name in ["nowhere/file", "dir"] {
        let result = host
            .remote
            .upload(&path(name), &bytes(&evil), &upload_spec(&evil));
        assert!(result.is_err(), "{name}");
        assert_eq!(host.names(), [b"dir"], "{name}");
        assert_eq!(fs::read_dir(host.at("dir")).unwrap().count(), 0);
    }
    assert!(!host.at("evil").exists());
}

pub(crate) fn creation_takes_one_round_trip_and_follows_no_link(host: &Host) {
    let (made, trips) = host.counted(|remote| remote.create_new(&path("new"), 0o751, None));
    assert_eq!(trips, 1);
    let stat = made.unwrap().stat.unwrap();
    assert_eq!(
        (stat.kind, stat.mode, stat.size),
        (FileKind::File, 0o751, 0)
    );
    assert_eq!(
        reason(host.remote.create_new(&path("new"), 0o600, None)),
        Reason::Exists
    );
    symlink("dangling", host.at("link")).unwrap();
    assert_eq!(
        reason(host.remote.create_new(&path("link"), 0o600, None)),
        Reason::Exists
    );
    assert!(!host.at("dangling").exists());
    assert_eq!(
        reason(host.remote.create_new(&path("no/new"), 0o600, None)),
        Reason::NotFound
    );
}

pub(crate) fn rename_over_a_symlink_does_not_follow_it(host: &Host) {
    fs::create_dir(host.at("dir")).unwrap();
    for target in ["dir", "nowhere", "link"] {
        for what in ["file", "other dir", "other link"] {
            symlink(target, host.at("link")).unwrap();
            match what {
                "file" => fs::write(host.at(what), "x").unwrap(),
                "other dir" => fs::create_dir(host.at(what)).unwrap(),
                _ => symlink("there", host.at(what)).unwrap(),
            }
            let kind = host.remote.stat(&path(what)).unwrap().kind;
            let renamed = host
                .remote
                .rename(&path(what), &path("link"), RenameHow::Replace);
            if what == "other dir" {
                assert_eq!(reason(renamed), Reason::NotADirectory, "over {target}");
                host.remote.remove_dir(&path(what)).unwrap();
            } else {
                let stat = renamed.unwrap().stat.unwrap();
                assert_eq!(stat.kind, kind, "{what} over {target}");
            }
            assert_eq!(host.names(), [&b"dir"[..], b"link"]);
            assert_eq!(fs::read_dir(host.at("dir")).unwrap().count(), 0);
            host.remote.remove_file(&path("link"), None).unwrap();
        }
    }
    // A file cannot replace the directory that contains it.
    fs::write(host.at("dir/file"), "x").unwrap();
    let result = host
        .remote
        .rename(&path("dir/file"), &path("dir"), RenameHow::Replace);
    let refused = reason(result);
    let is_known = [Reason::NotEmpty, Reason::IsADirectory, Reason::Exists];
    assert!(is_known.contains(&refused), "{refused}");
    assert!(host.at("dir/file").exists());
}

pub(crate) fn attributes_are_set_in_one_round_trip(host: &Host) {
    fs::write(host.at("file"), "hello world").unwrap();
    let change = AttrChange {
        mode: Some(0o4711),
        size: Some(5),
        atime: Some(NewTime::At(Time {
            secs: 1_000_000_000,
            nanos: 0,
        })),
        mtime: Some(NewTime::At(MTIME)),
        ..AttrChange::default()
    };
    let (stat, trips) = host.counted(|remote| remote.set_attr(&path("file"), &change));
    assert_eq!(trips, 1);
    let stat = stat.unwrap();
    assert_eq!(
        (stat.mode, stat.size, stat.atime.secs),
        (0o4711, 5, 1_000_000_000)
    );
    let expected = if host.is_gnu() {
        MTIME
    } else {
        Time { nanos: 0, ..MTIME }
    };
    assert_eq!(stat.mtime, expected);
    let longer = AttrChange {
        size: Some(100),
        ..AttrChange::default()
    };
    assert_eq!(
        host.remote.set_attr(&path("file"), &longer).unwrap().size,
        100
    );
    assert_eq!(&fs::read(host.at("file")).unwrap()[..6], b"hello\0");
    let now = AttrChange {
        atime: Some(NewTime::Now),
        mtime: Some(NewTime::Now),
        ..AttrChange::default()
    };
    assert!(
        host.remote
            .set_attr(&path("file"), &now)
            .unwrap()
            .mtime
            .secs
            > 1_750_000_000
    );
    // The setgid bit of a directory is cleared if the requested mode does not contain it.
    fs::create_dir(host.at("dir")).unwrap();
    fs::set_permissions(host.at("dir"), fs::Permissions::from_mode(0o2755)).unwrap();
    let plain = AttrChange {
        mode: Some(0o755),
        ..AttrChange::default()
    };
    assert_eq!(
        host.remote.set_attr(&path("dir"), &plain).unwrap().mode,
        0o755
    );
}

pub(crate) fn times_before_1970_are_kept(host: &Host) {
    fs::write(host.at("file"), "x").unwrap();
    let time = Time {
        secs: -2,
        nanos: 500_000_000,
    };
    let change = AttrChange {
        mtime: Some(NewTime::At(time)),
        ..AttrChange::default()
    };
    if !host.is_gnu() {
        let seconds = Time { nanos: 0, ..time };
        assert_eq!(
            host.remote.set_attr(&path("file"), &change).unwrap().mtime,
            seconds
        );
        return;
    }
    assert_eq!(
        host.remote.set_attr(&path("file"), &change).unwrap().mtime,
        time
    );
    let listing = host.remote.list(&RemotePath::root()).unwrap();
    // GNU `find` prints times before 1970 wrongly, so the listing asks `stat`.
    assert_eq!(listing.entries[0].stat.unwrap().mtime, time);
    let plan = UploadSpec {
        mtime: time,
        ..upload_spec(b"y")
    };
    let uploaded = host
        .remote
        .upload(&path("file"), &bytes(b"y"), &plan)
        .unwrap();
    assert_eq!(uploaded.stat.unwrap().mtime, time);
}

pub(crate) fn a_copy_on_the_host_moves_no_bytes(host: &Host) {
    let data = vec![7; 3_000_000];
    fs::write(host.at("from"), &data).unwrap();
    let before = host.world.meter.bytes_read();
    let (copied, trips) =
        host.counted(|remote| remote.copy(&path("from"), &path("to"), &upload_spec(&data)));
    assert_eq!(trips, 1);
    assert!(host.world.meter.bytes_read() - before < 2000);
    let stat = copied.unwrap().stat.unwrap();
    assert_eq!((stat.size, stat.mode), (3_000_000, 0o640));
    let expected = if host.is_gnu() {
        MTIME
    } else {
        Time { nanos: 0, ..MTIME }
    };
    assert_eq!(stat.mtime, expected);
    assert!(fs::read(host.at("to")).unwrap() == data);
    assert_eq!(
        reason(
            host.remote
                .copy(&path("no"), &path("to"), &upload_spec(&data))
        ),
        Reason::NotFound
    );
    assert_eq!(host.names(), [&b"from"[..], b"to"]);
}

pub(crate) fn every_operation_is_one_round_trip(host: &Host) {
    fs::create_dir(host.at("many")).unwrap();
    for n in 0..500 {
        fs::write(host.at(&format!("many/{n}")), "x").unwrap();
    }
    let root = RemotePath::root();
    let one = |what: &str, trips: u64| assert_eq!(trips, 1, "{what}");
    one("stat", host.counted(|r| r.stat(&path("many")).unwrap()).1);
    one(
        "list",
        host.counted(|r| assert_eq!(r.list(&path("many")).unwrap().entries.len(), 500))
            .1,
    );
    let version = host.remote.stat(&path("many/1")).unwrap().version();
    let fetch = |r: &Retry<Shell>| {
        r.fetch(&path("many/1"), Some(&version), &mut Buffer::default())
            .unwrap();
    };
    one("fetch", host.counted(fetch).1);
    let upload = |r: &Retry<Shell>| {
        r.upload(&path("f"), &bytes(b"x"), &upload_spec(b"x"))
            .unwrap();
    };
    one("upload", host.counted(upload).1);
    one(
        "symlink",
        host.counted(|r| r.symlink(&path("s"), b"t", None).unwrap())
            .1,
    );
    one(
        "read_link",
        host.counted(|r| r.read_link(&path("s")).unwrap()).1,
    );
    one(
        "link",
        host.counted(|r| r.link(&path("f"), &path("g")).unwrap()).1,
    );
    let rename = |r: &Retry<Shell>| {
        r.rename(&path("g"), &path("h"), RenameHow::Replace)
            .unwrap()
    };
    one("rename", host.counted(rename).1);
    one(
        "remove",
        host.counted(|r| r.remove_file(&path("h"), None).unwrap()).1,
    );
    one(
        "make_dir",
        host.counted(|r| r.make_dir(&path("d"), 0o755, None).unwrap())
            .1,
    );
    one(
        "remove_dir",
        host.counted(|r| r.remove_dir(&path("d")).unwrap()).1,
    );
    one(
        "fs_stat",
        host.counted(|r| r.fs_stat(&path("f")).unwrap()).1,
    );
    one(
        "check_readable",
        host.counted(|r| r.check_readable(&path("f")).unwrap()).1,
    );
    one("sync", host.counted(|r| r.sync(&path("f")).unwrap()).1);
    let fsync = UploadSpec {
        durability: Durability::Fsync,
        ..upload_spec(b"x")
    };
    let upload = |r: &Retry<Shell>| {
        r.upload(&path("f"), &bytes(b"x"), &fsync).unwrap();
    };
    one("upload and flush", host.counted(upload).1);
    one(
        "a miss",
        host.counted(|r| assert!(r.stat(&path("nope")).is_err())).1,
    );
    one("list root", host.counted(|r| r.list(&root).unwrap()).1);
}

pub(crate) fn a_cut_connection_is_replaced(host: &Host) {
    fs::write(host.at("file"), vec![1; 100_000]).unwrap();
    for cut in [0, 1, 30, 5_000] {
        host.world.faults.lock().cut_after_read = Some(cut);
        host.remote.stat(&path("file")).unwrap();
        let mut buffer = Buffer::default();
        host.remote.fetch(&path("file"), None, &mut buffer).unwrap();
        assert_eq!(buffer.data, vec![1; 100_000]);
        host.world.faults.lock().cut_after_read = Some(cut);
        let data = vec![2; 100_000];
        host.remote
            .upload(&path("uploaded"), &bytes(&data), &upload_spec(&data))
            .unwrap();
        assert!(fs::read(host.at("uploaded")).unwrap() == data);
        host.world.faults.lock().cut_after_read = None;
    }
    host.world.faults.lock().refuses = true;
    host.world.faults.lock().cut_after_read = Some(0);
    let error = host.remote.stat(&path("file")).unwrap_err();
    assert!(
        error.is_connection_loss() && error.reason().is_none(),
        "{error}"
    );
}

pub(crate) fn a_listing_that_is_cut_is_never_a_shorter_directory(host: &Host) {
    for n in 0..50 {
        fs::write(host.at(&format!("file{n}")), "x").unwrap();
    }
    let whole = host.remote.list(&RemotePath::root()).unwrap().entries.len();
    assert_eq!(whole, 50);
    for cut in (0..3000).step_by(97) {
        host.world.faults.lock().cut_after_read = Some(cut);
        let listing = host.remote.inner().list(&RemotePath::root());
        host.world.faults.lock().cut_after_read = None;
        if let Ok(listing) = listing {
            assert_eq!(listing.entries.len(), 50, "cut at {cut}");
        }
        // The root can still be read: a failed listing does not leave it empty.
        host.remote.stat(&RemotePath::root()).unwrap();
    }
}

pub(crate) fn one_of_several_uploads_of_one_base_version_succeeds(host: &Host) {
    for round in 0..8 {
        let expect = what_is_there(host);
        let barrier = Barrier::new(2);
        let upload = |data: &'static [u8]| {
            let plan = UploadSpec {
                expect,
                ..upload_spec(data)
            };
            barrier.wait();
            host.remote.upload(&path("file"), &bytes(data), &plan)
        };
        let results = thread::scope(|scope| {
            let other = scope.spawn(|| upload(b"theirs"));
            let ours = upload(b"ours");
            [
                (ours, &b"ours"[..]),
                (other.join().unwrap(), &b"theirs"[..]),
            ]
        });
        let mut done = Vec::new();
        for (result, data) in results {
            match result {
                Ok(_) => done.push(data),
                Err(Error::Conflict { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let found = fs::read(host.at("file")).unwrap();
        assert_eq!(done, [found], "round {round}");
        assert_eq!(host.names(), [b"file"]);
        if round % 2 == 1 {
            fs::remove_file(host.at("file")).unwrap();
        }
    }
}

fn what_is_there(host: &Host) -> Expect {
    match host.remote.stat(&path("file")) {
        Ok(stat) => Expect::Version(stat.version()),
        Err(_) => Expect::Absent,
    }
}

pub(crate) fn upload_of_unknown_outcome_that_succeeded_is_not_sent_again(host: &Host) {
    // Longer than everything that is sent to the host on a new connection.
    let data = vec![b'x'; 200_000];
    let upload = |expect| {
        let plan = UploadSpec {
            expect,
            ..upload_spec(&data)
        };
        let meter = &host.world.meter;
        let before = (meter.bytes_written(), meter.bytes_read());
        host.remote
            .upload(&path("file"), &bytes(&data), &plan)
            .unwrap();
        (
            meter.bytes_written() - before.0,
            meter.bytes_read() - before.1,
        )
    };
    for is_new in [true, false] {
        let prepare = || {
            fs::write(host.at("file"), "before").unwrap();
            if is_new {
                fs::remove_file(host.at("file")).unwrap();
            }
            what_is_there(host)
        };
        let (n_written, n_read) = upload(prepare());
        let expect = prepare();
        // The connection breaks in the frame that ends the answer, shortly before its end.
        host.world.faults.lock().cut_after_read = Some(n_read - 10);
        let (n_again, _) = upload(expect);
        assert_eq!(host.world.faults.lock().cut_after_read, None, "it was cut");
        let is_sent_twice = n_again > n_written + data.len() as u64 / 2;
        assert!(!is_sent_twice, "is it new: {is_new}; {n_again}");
        assert_eq!(fs::read(host.at("file")).unwrap(), data);
    }
}
