//! The configuration of a mount and of each command: resolved, validated, immutable.

use std::path::PathBuf;
use std::time::Duration;

pub use crate::cache::ConflictPolicy;
use crate::ssh::ssh_config::LocalContext;
use crate::ssh::ssh_config::Query;
use crate::vfs::PlacementPolicy;
use crate::vfs::Symlinks;

/// The configuration of a mount; one part per layer.
#[derive(Debug, Clone)]
pub struct Config {
    /// The source as typed, for messages and as the default of `fsname=`.
    pub source: String,
    pub connection: Connection,
    pub cache: Cache,
    pub files: Files,
    pub mount: Mount,
    pub logging: Logging,
    pub sockets: Sockets,
}

/// Determines the directories of this user's control sockets.
#[derive(Debug, Clone)]
pub struct Sockets {
    pub uid: u32,
    /// `XDG_RUNTIME_DIR`, if it is set.
    pub runtime_dir: Option<PathBuf>,
    /// The directory of the caches; used if no other directory is usable.
    pub cache_base: PathBuf,
}

/// The configuration of `scpfs status`.
#[derive(Debug, Clone)]
pub struct Status {
    /// `None` for all mounts of this user.
    pub mountpoint: Option<PathBuf>,
    pub as_json: bool,
    pub watches: bool,
    pub sockets: Sockets,
}

/// The configuration of `scpfs umount`.
#[derive(Debug, Clone)]
pub struct Umount {
    pub mountpoint: PathBuf,
    /// How long to wait for uploads.
    pub timeout: Duration,
    /// Unmount even if the mount is in use or files are not uploaded.
    pub force: bool,
    pub sockets: Sockets,
}

/// The configuration of `scpfs recover`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recover {
    /// The directory of the caches; each mount has a directory of its own in it.
    pub base: PathBuf,
    pub action: RecoverAction,
}

/// The action of `scpfs recover`; `ids` are ids of content or prefixes of ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoverAction {
    List,
    /// Copies content to a directory; all content if `ids` is empty.
    Save {
        dir: PathBuf,
        ids: Vec<String>,
    },
    /// Deletes content.
    Discard {
        ids: Vec<String>,
    },
}

/// The configuration of the guard process of a mount.
#[derive(Debug, Clone)]
pub struct Guard {
    /// `ID/MAJOR:MINOR` of the mount in `/proc/self/mountinfo`.
    pub mount_id: String,
    pub fusermount: Option<PathBuf>,
    /// The daemon's control socket.
    pub socket: Option<PathBuf>,
}

/// How to connect to the host.
#[derive(Debug, Clone)]
pub struct Connection {
    pub query: Query,
    pub local_context: LocalContext,
    /// The directory on the host as typed; empty for the directory in which a login starts.
    pub directory: Vec<u8>,
    /// The maximum number of connections at a time.
    pub max_connections: usize,
    /// The maximum number of names in a listing; `None` for the default.
    pub max_names: Option<usize>,
    /// How long a request waits for the host without progress before it fails.
    pub timeout: Duration,
    /// Read the password from standard input.
    pub password_stdin: bool,
    pub dialect: Dialect,
    /// The fingerprint of a host key to accept even if another key is pinned.
    pub accept_host_key: Option<String>,
}

/// The dialect option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// The shell; SCP alone if the host has no usable shell.
    Auto,
    Shell,
    ScpOnly,
}

#[derive(Debug, Clone)]
pub struct Cache {
    /// The directory of the caches; each mount has a directory of its own in it.
    pub base: PathBuf,
    /// The maximum size of clean content in bytes; `None` for the default.
    pub max_bytes: Option<u64>,
    /// How many bytes of the local disk the cache leaves free; `None` for the default.
    pub min_free: Option<u64>,
    /// How to resolve a conflict.
    pub conflicts: ConflictPolicy,
    /// The delay of the upload after `close()`; `None` if `close()` waits for the upload.
    pub writeback: Option<Duration>,
    /// The kernel's random id of the current boot.
    pub boot_id: String,
}

#[derive(Debug, Clone)]
pub struct Files {
    /// How long names, attributes and content are used before they are revalidated.
    pub ttl: Duration,
    /// Use stale names, attributes and content while the host cannot be reached.
    pub is_offline_ok: bool,
    /// How many bytes of small files are fetched ahead for a program that walks through a tree; 0
    /// to read nothing ahead.
    pub read_ahead: u64,
    /// Fetch only what is read of a large file.
    pub reads_parts: bool,
    /// How an upload changes an existing file.
    pub placement: PlacementPolicy,
    pub idmap: Idmap,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub umask: u32,
    pub symlinks: Symlinks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idmap {
    /// Files of the login user are shown as files of the local user.
    User,
    /// Ids are shown as on the host.
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
    /// How long the end of the mount may take for uploads.
    pub drain_timeout: Duration,
    /// The user who mounts.
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone)]
pub struct Logging {
    /// A filter in the syntax of `RUST_LOG`.
    pub filter: String,
}
