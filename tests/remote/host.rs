//! A host of any kind, what it can do, and its other side: what others on it see and do.

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
    /// Rename, remove, link, truncate, copy; symlinks and nodes.
    pub(crate) everything: bool,
    /// Show a directory.
    pub(crate) list: bool,
    /// Show names with a newline, and take them in a new directory's name.
    pub(crate) newlines: bool,
    /// Tell of a file with a newline in its name, and send it.
    pub(crate) send_newlines: bool,
    /// Take names that are not UTF-8.
    pub(crate) any_bytes: bool,
    /// Tell the time of a content that was uploaded finer than in seconds.
    pub(crate) fractions: bool,
    /// Make sockets.
    pub(crate) sockets: bool,
    /// Tell inodes, links and owners.
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

/// Which host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Memory,
    Shell(Userland),
    /// scp of OpenSSH behind a server that runs nothing else.
    ScpOnly,
    /// The same with dropbear's.
    DropbearOnly,
    /// A server without any shell behind it.
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
    /// Others quote and list as this one does.
    is_one_of_many: bool,
    side: Side,
}

impl Host {
    /// A host of that kind, where this machine has its programs.
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
                    // Nothing of such a BusyBox makes one.
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

    /// Writes a file as others on the host would.
    pub(crate) fn put(&self, name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) {
        let name = name.as_ref();
        match &self.side {
            Side::Memory(memory) => memory.put(&path_of(name), data.as_ref()).unwrap(),
            _ => fs::write(self.at(name), data).unwrap(),
        }
    }

    /// Makes a directory as others on the host would.
    pub(crate) fn put_dir(&self, name: &str) {
        match &self.side {
            Side::Memory(memory) => memory.put_dir(&path_of(name.as_bytes())).unwrap(),
            _ => fs::create_dir(self.at(name.as_bytes())).unwrap(),
        }
    }

    /// The content of a file as others on the host see it.
    pub(crate) fn get(&self, name: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        let name = name.as_ref();
        match &self.side {
            Side::Memory(memory) => memory.get(&path_of(name)),
            _ => fs::read(self.at(name)).ok(),
        }
    }

    /// Removes a file as others on the host would.
    pub(crate) fn discard(&self, name: impl AsRef<[u8]>) {
        let name = name.as_ref();
        match &self.side {
            Side::Memory(memory) => memory.discard(&path_of(name)).unwrap(),
            _ => fs::remove_file(self.at(name)).unwrap(),
        }
    }

    /// The names in a directory as others on the host see them; the root is empty.
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

    /// The names in the root, which are those that others see.
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

    /// A time as this host will tell it.
    pub(crate) fn told(&self, time: Time) -> Time {
        if self.can.fractions {
            time
        } else {
            Time { nanos: 0, ..time }
        }
    }

    /// A time as this host can set it on a file that is there.
    pub(crate) fn settable(&self, time: Time) -> Time {
        match self.remote.facts().time_precision {
            TimePrecision::Nanos => time,
            TimePrecision::Seconds => Time { nanos: 0, ..time },
        }
    }

    /// Checks that something fails for this reason, or is refused as a whole by a host that
    /// cannot do it.
    #[track_caller]
    pub(crate) fn refuses<T: std::fmt::Debug>(&self, result: Result<T, Error>, reason: Reason) {
        if self.can.everything {
            assert_eq!(result.unwrap_err().reason(), Some(reason));
        } else {
            assert!(is_unsupported(result));
        }
    }

    /// Returns what something gave, or `None` where the host cannot do it and said so.
    #[track_caller]
    pub(crate) fn done<T: std::fmt::Debug>(&self, result: Result<T, Error>) -> Option<T> {
        if self.can.everything {
            return Some(result.unwrap());
        }
        assert!(is_unsupported(result));
        None
    }

    /// How many round trips something took, where they are counted.
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

    /// Names to try: one byte a name, where the others do not stand for this host.
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

    /// How many round trips an upload may take.
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
