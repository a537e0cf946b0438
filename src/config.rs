//! What a mount is to be: resolved, validated, immutable. One part per layer.

use std::path::PathBuf;
use std::time::Duration;

use crate::transport::ssh_config::Query;
use crate::transport::ssh_config::Surroundings;
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
}

/// Whom to connect to, and how.
#[derive(Debug, Clone)]
pub struct Connection {
    pub query: Query,
    pub surroundings: Surroundings,
    /// The directory on the host as typed; empty for the login directory.
    pub directory: Vec<u8>,
    /// How many connections there may be at once.
    pub max_lanes: usize,
    /// How long a wait for the host may go without progress.
    pub timeout: Duration,
    /// Whether the password comes from standard input.
    pub password_stdin: bool,
    pub dialect: Dialect,
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
    /// Identifies the boot of this machine.
    pub boot: String,
}

#[derive(Debug, Clone)]
pub struct Files {
    /// How long names, attributes and contents hold before the host is asked again.
    pub ttl: Duration,
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
    /// The user who mounts.
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone)]
pub struct Logging {
    /// A filter as `RUST_LOG` has it.
    pub filter: String,
}
