//! A host of any kind, its abilities, and access to its files as other users of it have.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use scpfs::clock::Clock;
use scpfs::clock::ManualClock;
use scpfs::path::RemotePath;
use scpfs::remote::Error;
use scpfs::remote::Reason;
use scpfs::remote::Remote;
use scpfs::remote::TimePrecision;
use scpfs::remote::retry::Retry;
use scpfs::stat::Time;
use scpfs_testing::ability::has_scp;
use scpfs_testing::ability::has_stat;
use scpfs_testing::local::Meter;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::memory_host::Memory;
use scpfs_testing::samples::odd_names;
use scpfs_testing::samples::path_of;
use scpfs_testing::scp_server::Appliance;
use scpfs_testing::scp_server::Kind;
use tempfile::TempDir;

/// Abilities of a host. Any other operation must be refused with a reason and change nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Can {
    /// Rename, remove, link, truncate and copy; symlinks and nodes.
    pub(crate) everything: bool,
    /// List a directory.
    pub(crate) list: bool,
    /// List names with a newline, and create directories with such names.
    pub(crate) newlines: bool,
    /// Report the attributes of a file with a newline in its name, and send it.
    pub(crate) send_newlines: bool,
    /// Accept names that are not UTF-8.
    pub(crate) any_bytes: bool,
    /// Report fractions of a second in the mtime of uploaded content.
    pub(crate) fractions: bool,
    /// Create sockets.
    pub(crate) sockets: bool,
    /// Report inode numbers, link counts and owners.
    pub(crate) identify: bool,
}

const EVERYTHING: Can = Can {
    everything: true,
    list: true,
    newlines: true,
    send_newlines: true,
    any_bytes: true,
    fractions: true,
    sockets: true,
    identify: true,
};

const SCP: Can = Can {
    everything: false,
    list: true,
    newlines: false,
    send_newlines: true,
    any_bytes: false,
    fractions: false,
    sockets: false,
    identify: false,
};

/// A kind of host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Memory,
    Shell(Userland),
    /// OpenSSH's scp, behind a server that runs no other command.
    ScpOnly,
    /// dropbear's scp, behind a server that runs no other command.
    DropbearOnly,
    /// A server without a shell.
    Appliance(Kind),
}

#[derive(Debug)]
enum Side {
    Memory(Arc<Memory>),
    World(World),
    Directory(TempDir),
}

pub(crate) struct Host {
    pub(crate) remote: Arc<dyn Remote>,
    pub(crate) can: Can,
    /// Other kinds in the suite quote and list in the same way, so that fewer names are enough.
    is_one_of_many: bool,
    side: Side,
}

impl Host {
    /// A host of this kind, or `None` if this machine lacks its programs.
    pub(crate) fn of(which: Which) -> Option<Self> {
        match which {
            Which::Shell(userland) if !userland.is_here() => None,
            Which::DropbearOnly if !Userland::Dropbear.is_here() => None,
            _ => Some(Self::new(which)),
        }
    }

    pub(crate) fn new(which: Which) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new());
        match which {
            Which::Memory => {
                let memory = Arc::new(Memory::new(clock));
                Self {
                    remote: Arc::clone(&memory) as _,
                    can: EVERYTHING,
                    is_one_of_many: false,
                    side: Side::Memory(memory),
                }
            }
            Which::Shell(userland) => {
                let world = World::new(userland);
                let remote = Retry::new(world.shell(clock));
                let facts = remote.facts();
                let can = Can {
                    fractions: has_stat(&remote)
                        && (has_scp(&remote) || facts.time_precision == TimePrecision::Nanos),
                    // No program of a BusyBox without `stat` creates a socket.
                    sockets: has_stat(&remote),
                    ..EVERYTHING
                };
                Self {
                    remote: Arc::new(remote),
                    can,
                    is_one_of_many: !matches!(
                        userland,
                        Userland::Gnu | Userland::BusyBox | Userland::OpenWrt
                    ),
                    side: Side::World(world),
                }
            }
            Which::ScpOnly | Which::DropbearOnly => {
                let world = match which {
                    Which::DropbearOnly => World::dropbear_only(),
                    _ => World::scp_only("SSH-2.0-OpenSSH_9.2"),
                };
                Self {
                    remote: Arc::new(Retry::new(world.scp(clock))),
                    can: Can {
                        send_newlines: which != Which::DropbearOnly,
                        ..SCP
                    },
                    is_one_of_many: false,
                    side: Side::World(world),
                }
            }
            Which::Appliance(kind) => {
                let appliance = Appliance::new(kind);
                let remote = appliance.probe_with(clock).unwrap();
                Self {
                    remote: Arc::new(Retry::new(remote)),
                    can: Can {
                        list: kind == Kind::Skipping,
                        ..SCP
                    },
                    is_one_of_many: false,
                    side: Side::Directory(appliance.dir),
                }
            }
        }
    }

    fn root(&self) -> Option<PathBuf> {
        match &self.side {
            Side::Memory(_) => None,
            Side::World(world) => Some(world.root()),
            Side::Directory(dir) => Some(dir.path().to_owned()),
        }
    }

    fn at(&self, name: &[u8]) -> PathBuf {
        self.root().unwrap().join(OsStr::from_bytes(name))
    }

    /// Writes a file as another user of the host.
    pub(crate) fn put(&self, name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) {
        let name = name.as_ref();
        match &self.side {
            Side::Memory(memory) => memory.put(&path_of(name), data.as_ref()).unwrap(),
            _ => fs::write(self.at(name), data).unwrap(),
        }
    }

    /// Creates a directory as another user of the host.
    pub(crate) fn put_dir(&self, name: &str) {
        match &self.side {
            Side::Memory(memory) => memory.put_dir(&path_of(name.as_bytes())).unwrap(),
            _ => fs::create_dir(self.at(name.as_bytes())).unwrap(),
        }
    }

    /// The content of a file on the host; `None` if there is none.
    pub(crate) fn get(&self, name: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        let name = name.as_ref();
        match &self.side {
            Side::Memory(memory) => memory.get(&path_of(name)),
            _ => fs::read(self.at(name)).ok(),
        }
    }

    /// Removes a file as another user of the host.
    pub(crate) fn discard(&self, name: impl AsRef<[u8]>) {
        let name = name.as_ref();
        match &self.side {
            Side::Memory(memory) => memory.discard(&path_of(name)).unwrap(),
            _ => fs::remove_file(self.at(name)).unwrap(),
        }
    }

    /// The names in a directory of the host; `dir` is empty for the root.
    pub(crate) fn others_see(&self, dir: &str) -> Vec<Vec<u8>> {
        let mut names: Vec<Vec<u8>> = match &self.side {
            Side::Memory(memory) => {
                let dir = if dir.is_empty() {
                    RemotePath::root()
                } else {
                    path_of(dir.as_bytes())
                };
                let names = memory.names(&dir).unwrap();
                names.iter().map(|name| name.as_bytes().to_vec()).collect()
            }
            _ => fs::read_dir(self.at(dir.as_bytes()))
                .unwrap()
                .map(|item| item.unwrap().file_name().as_bytes().to_vec())
                .collect(),
        };
        names.sort();
        names
    }

    /// The names in the root, which must be the same in a listing and on the host.
    pub(crate) fn names(&self) -> Vec<Vec<u8>> {
        let listing = self.remote.list(&RemotePath::root());
        if !self.can.list {
            assert!(is_unsupported(listing));
            return self.others_see("");
        }
        let mut names: Vec<_> = listing
            .unwrap()
            .entries
            .iter()
            .map(|entry| entry.name.as_bytes().to_vec())
            .collect();
        names.sort();
        let mut seen = self.others_see("");
        seen.retain(|name| self.can.newlines || !name.contains(&b'\n'));
        assert_eq!(names, seen);
        names
    }

    /// The mtime that this host reports for uploaded content with this mtime.
    pub(crate) fn told(&self, time: Time) -> Time {
        if self.can.fractions {
            time
        } else {
            Time { nanos: 0, ..time }
        }
    }

    /// The nearest mtime that this host can set on an existing file.
    pub(crate) fn settable(&self, time: Time) -> Time {
        match self.remote.facts().time_precision {
            TimePrecision::Nanos => time,
            TimePrecision::Seconds => Time { nanos: 0, ..time },
        }
    }

    /// Asserts that a request failed for this reason, or as unsupported if the host cannot do it.
    #[track_caller]
    pub(crate) fn refuses<T: std::fmt::Debug>(&self, result: Result<T, Error>, reason: Reason) {
        if self.can.everything {
            assert_eq!(result.unwrap_err().reason(), Some(reason));
        } else {
            assert!(is_unsupported(result));
        }
    }

    /// Returns the result of a request, or `None` if the host refused it as unsupported.
    #[track_caller]
    pub(crate) fn done<T: std::fmt::Debug>(&self, result: Result<T, Error>) -> Option<T> {
        if self.can.everything {
            return Some(result.unwrap());
        }
        assert!(is_unsupported(result));
        None
    }

    /// Runs `op`; returns its result and the number of round trips, if this host counts them.
    pub(crate) fn counted<T>(&self, op: impl FnOnce() -> T) -> (T, Option<u64>) {
        let meter = match &self.side {
            Side::World(world) => Some(&world.meter),
            _ => None,
        };
        let trips = |meter: &Arc<Meter>| meter.trips();
        let before = meter.map(trips);
        let result = op();
        (
            result,
            meter.map(trips).zip(before).map(|(now, then)| now - then),
        )
    }

    /// Names to try: each byte in a name of its own, or fewer names if other kinds test the same
    /// code.
    pub(crate) fn names_to_try(&self) -> Vec<Vec<u8>> {
        let mut names = odd_names();
        if !self.is_one_of_many {
            return names;
        }
        names.retain(|name| name.len() > 1);
        let every_byte: Vec<u8> = (1..=255).filter(|&b| b != b'/').collect();
        names.extend(every_byte.chunks(100).map(<[u8]>::to_vec));
        names.sort();
        names
    }

    /// The most round trips that an upload may take.
    pub(crate) fn max_trips_of_an_upload(&self) -> u64 {
        if self.can.everything { 1 } else { 2 }
    }
}

#[track_caller]
pub(crate) fn is_unsupported<T: std::fmt::Debug>(result: Result<T, Error>) -> bool {
    match result {
        Err(Error::Unsupported { why, .. }) => !why.is_empty(),
        other => panic!("{other:?}"),
    }
}
