//! What a mount is to be: resolved, validated, immutable. One part per layer.

use std::path::PathBuf;
use std::time::Duration;

pub use crate::cache::Conflicts;
use crate::ssh::ssh_config::LocalContext;
use crate::ssh::ssh_config::Query;
use crate::vfs::PlacementPolicy;
use crate::vfs::Symlinks;

/// Everything a mount needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The source as typed, for messages and as the name of the filesystem.
    pub source: String,
    pub connection: Connection,
    pub cache: Cache,
    pub files: Files,
    pub mount: Mount,
    pub logging: Logging,
    pub sockets: Sockets,
}

/// Where the control sockets of this user's mounts are.
#[derive(Debug, Clone)]
pub struct Sockets {
    pub uid: u32,
    /// `XDG_RUNTIME_DIR`, if it is set.
    pub runtime_dir: Option<PathBuf>,
    /// Used where there is nothing better.
    pub cache_base: PathBuf,
}

/// Which mounts to look at, and how to print them.
#[derive(Debug, Clone)]
pub struct Status {
    /// `None` for all of this user.
    pub mountpoint: Option<PathBuf>,
    pub as_json: bool,
    pub watches: bool,
    pub sockets: Sockets,
}

/// Which mount to end, and how.
#[derive(Debug, Clone)]
pub struct Umount {
    pub mountpoint: PathBuf,
    /// How long to wait until everything is uploaded.
    pub timeout: Duration,
    /// Whether to unmount what is in use, and where something is not uploaded.
    pub force: bool,
    pub sockets: Sockets,
}

/// Which contents that are on no host to look after, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recover {
    /// The directory in which each mount has a directory of its own.
    pub base: PathBuf,
    pub what: RecoverWhat,
}

/// Contents are named by their numbers, or the beginnings of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoverWhat {
    List,
    /// Copies them into a directory; all where there are no numbers.
    Save {
        dir: PathBuf,
        ids: Vec<String>,
    },
    /// Removes them for good.
    Discard {
        ids: Vec<String>,
    },
}

/// What the guard of a mount has to know.
#[derive(Debug, Clone)]
pub struct Guard {
    /// The mount's and its device's number in `/proc/self/mountinfo`.
    pub mount_id: String,
    pub fusermount: Option<PathBuf>,
    /// The daemon's control socket.
    pub socket: Option<PathBuf>,
}

/// Whom to connect to, and how.
#[derive(Debug, Clone)]
pub struct Connection {
    pub query: Query,
    pub local_context: LocalContext,
    /// The directory on the host as typed; empty for the login directory.
    pub directory: Vec<u8>,
    /// How many connections there may be at once.
    pub max_connections: usize,
    /// How many names a directory may have to be listed; `None` for the default.
    pub max_names: Option<usize>,
    /// How long a wait for the host may go without progress.
    pub timeout: Duration,
    /// Whether the password comes from standard input.
    pub password_stdin: bool,
    pub dialect: Dialect,
    /// The fingerprint of a host key that is accepted although earlier mounts had another.
    pub accept_host_key: Option<String>,
}

/// How to talk with the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// By its shell; by scp alone where there is no shell.
    Auto,
    Shell,
    ScpOnly,
}

#[derive(Debug, Clone)]
pub struct Cache {
    /// The directory in which each mount has a directory of its own.
    pub base: PathBuf,
    /// How many bytes of clean content are kept; `None` for the default.
    pub max_bytes: Option<u64>,
    /// How many bytes of the disk are left alone; `None` for the default.
    pub min_free: Option<u64>,
    /// What happens to content that conflicts with somebody else's.
    pub conflicts: Conflicts,
    /// How long after it is closed a file is uploaded; `None` to have closing wait for that.
    pub writeback: Option<Duration>,
    /// Identifies the boot of this machine.
    pub boot: String,
}

#[derive(Debug, Clone)]
pub struct Files {
    /// How long names, attributes and contents hold before the host is asked again.
    pub ttl: Duration,
    /// Whether what is known, however old, is shown while the host cannot be reached.
    pub is_offline_ok: bool,
    /// How a save changes a file that exists.
    pub placement: PlacementPolicy,
    pub idmap: Idmap,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub umask: u32,
    pub symlinks: Symlinks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idmap {
    /// The login user's files are shown as the local user's.
    User,
    /// Ids are shown as they are.
    None,
}

#[derive(Debug, Clone)]
pub struct Mount {
    pub mountpoint: PathBuf,
    pub fsname: String,
    pub subtype: String,
    pub allow_other: bool,
    pub allow_root: bool,
    pub default_permissions: bool,
    pub is_read_only: bool,
    /// Options of mount(2) by their names: `nosuid`, `nodev`, `noexec`, ...
    pub flags: Vec<&'static str>,
    pub is_foreground: bool,
    /// How long an end may take to upload what is left.
    pub drain_timeout: Duration,
    /// The user who mounts.
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone)]
pub struct Logging {
    /// A filter as `RUST_LOG` has it.
    pub filter: String,
}
