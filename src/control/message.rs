//! The messages of the control socket.
//!
//! `scpfs status --json` prints the fields of [`Status`] and of the types in it. docs/status.md
//! promises that fields are never renamed or removed.

use nix::errno::Errno;
use serde::Deserialize;
use serde::Serialize;

use crate::cache::ConflictReport;
use crate::cache::FileReport;
use crate::cache::FileState;
use crate::cache::ReadAheadCounts;
use crate::cache::Record;
use crate::remote::Contact;
use crate::remote::ContactState;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    Status,
    /// Starts a drain, unless one is running, and returns its progress.
    Drain,
    /// Returns the progress of the drain.
    Progress,
    /// Unmounts without draining first, and waits for the end of the mount.
    Unmount {
        /// Unmount lazily if the mount is in use.
        force: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    Status(Box<Status>),
    Progress(DrainProgress),
    /// The mount is unmounted, and the daemon ends.
    Unmounted {
        /// The files that are not uploaded.
        left: Vec<NotUploaded>,
    },
    /// The mount was in use and is unmounted lazily; it ends when its last file is closed.
    Hidden,
    /// The mount is in use and stays mounted.
    InUse,
    Failed {
        message: String,
    },
}

/// The status of one mount.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub source: String,
    pub mountpoint: String,
    pub pid: u32,
    /// The time of the mount in seconds since 1970.
    pub since: i64,
    pub uptime_seconds: u64,
    pub version: String,
    /// `ID/MAJOR:MINOR` as in `/proc/self/mountinfo`; `None` after an unmount, lazy or not.
    pub mount_id: Option<String>,
    /// The detected dialect, userland and system of the host, as one line of text.
    pub host: String,
    pub connection: Connection,
    pub cache: CacheStatus,
    pub files: Vec<FileStatus>,
    /// Conflicts of this mount.
    pub conflicts: Vec<ConflictStatus>,
    /// Files of earlier mounts that are not uploaded.
    pub left: Vec<LeftStatus>,
}

/// A conflict: our content was uploaded as a conflict copy, because another had changed the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictStatus {
    pub path: String,
    pub kept_as: String,
    /// The time of the conflict in seconds since 1970.
    pub at: i64,
}

/// A file of an earlier mount that is not uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftStatus {
    pub id: String,
    pub path: String,
    pub size: u64,
    /// The time of the first write in seconds since 1970.
    pub since: i64,
    pub message: String,
}

impl From<ConflictReport> for ConflictStatus {
    fn from(conflict: ConflictReport) -> Self {
        Self {
            path: conflict.path.to_string(),
            kept_as: conflict.kept_as.to_string(),
            at: conflict.at.secs,
        }
    }
}

impl From<Record> for LeftStatus {
    fn from(record: Record) -> Self {
        Self {
            id: record.id.to_string(),
            path: record.path.to_string(),
            size: record.size,
            since: record.since.secs,
            message: record.why,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// `connected`, `away`, `reconnecting` or `refused`.
    pub state: String,
    /// For how many seconds there has been no connection.
    pub away_seconds: Option<u64>,
    pub lanes_open: usize,
    pub lanes_max: usize,
    pub round_trip_ms: Option<f64>,
    /// Why the host is refused: the expected and the offered host key.
    #[serde(default)]
    pub refusal: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    pub directory: String,
    pub bytes: u64,
    pub limit: u64,
    pub hits: u64,
    pub misses: u64,
    #[serde(default)]
    pub read_ahead: ReadAheadStatus,
}

/// Files that were fetched before a program opened them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReadAheadStatus {
    pub files: u64,
    pub bytes: u64,
    pub used: u64,
    pub wasted: u64,
}

/// A file whose content is not uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStatus {
    pub path: String,
    /// `writing`, `pending`, `uploading`, `failed`, `conflict` or `kept`.
    pub state: String,
    pub size: u64,
    pub sent: u64,
    /// The name of the error, for example `EACCES`.
    pub errno: Option<String>,
    pub message: Option<String>,
    pub tries: u32,
    pub next_try_seconds: Option<u64>,
    pub id: Option<String>,
}

/// The progress of a drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainProgress {
    pub is_draining: bool,
    pub files: Vec<FileStatus>,
    /// The files that it could not upload; empty until it has ended.
    pub left: Vec<NotUploaded>,
}

/// A file that could not be uploaded, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotUploaded {
    pub path: String,
    pub message: String,
}

impl From<ReadAheadCounts> for ReadAheadStatus {
    fn from(counts: ReadAheadCounts) -> Self {
        let ReadAheadCounts {
            files,
            bytes,
            used,
            wasted,
        } = counts;
        Self {
            files,
            bytes,
            used,
            wasted,
        }
    }
}

impl From<Contact> for Connection {
    fn from(contact: Contact) -> Self {
        let (state, away) = match contact.state {
            ContactState::Away { elapsed } | ContactState::Reconnecting { elapsed }
                if contact.refusal.is_some() =>
            {
                ("refused", Some(elapsed))
            }
            ContactState::Connected => ("connected", None),
            ContactState::Away { elapsed } => ("away", Some(elapsed)),
            ContactState::Reconnecting { elapsed } => ("reconnecting", Some(elapsed)),
        };
        Self {
            state: state.to_owned(),
            away_seconds: away.map(|time| time.as_secs()),
            lanes_open: contact.n_open,
            lanes_max: contact.max,
            round_trip_ms: contact.round_trip.map(|time| {
                // u32 holds 71 minutes in microseconds, and f64 any u32 exactly.
                let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
                f64::from(micros) / 1000.0
            }),
            refusal: contact.refusal,
        }
    }
}

impl From<FileReport> for FileStatus {
    fn from(file: FileReport) -> Self {
        let state = match file.state {
            FileState::Writing => "writing",
            FileState::Pending => "pending",
            FileState::Uploading => "uploading",
            FileState::Failed => "failed",
            FileState::Conflict => "conflict",
            FileState::Kept => "kept",
        };
        Self {
            path: file.path.to_string(),
            state: state.to_owned(),
            size: file.size,
            sent: file.sent,
            errno: file
                .errno
                .map(|errno| format!("{:?}", Errno::from_raw(errno))),
            message: file.failure,
            tries: file.tries,
            next_try_seconds: file.next_try.map(|time| time.as_secs()),
            id: file.id,
        }
    }
}
