//! What is said over the control socket. The fields of [`Status`] are what `scpfs status --json`
//! prints; `docs/status.md` explains them, and they stay as they are.

use nix::errno::Errno;
use serde::Deserialize;
use serde::Serialize;

use crate::cache::Collision;
use crate::cache::FileReport;
use crate::cache::FileState;
use crate::cache::Record;
use crate::remote::Contact;
use crate::remote::ContactState;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    Status,
    /// Begin to upload everything.
    Drain,
    /// How far is that?
    Progress,
    /// Unmount, without uploading anything first.
    Unmount {
        /// Even if the mount is in use.
        force: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    Status(Box<Status>),
    Progress(Draining),
    /// It is unmounted; the program ends now.
    Unmounted {
        left: Vec<NotStored>,
    },
    /// It is out of sight, and ends with its last user.
    Hidden,
    /// Nothing was done because the mount is in use.
    InUse,
    Failed {
        message: String,
    },
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub source: String,
    pub mountpoint: String,
    pub pid: u32,
    /// When it was mounted, in seconds since 1970.
    pub since: i64,
    pub uptime_seconds: u64,
    pub version: String,
    /// `ID/MAJOR:MINOR` as in `/proc/self/mountinfo`; `None` when it is off or out of sight.
    pub mount_id: Option<String>,
    /// What the host is.
    pub host: String,
    pub connection: Connection,
    pub cache: CacheStatus,
    pub files: Vec<FileStatus>,
    /// Conflicts of this mount.
    pub conflicts: Vec<ConflictStatus>,
    /// What earlier mounts left.
    pub left: Vec<LeftStatus>,
}

/// Content that was uploaded beside a file because somebody else had changed that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictStatus {
    pub path: String,
    pub kept_as: String,
    /// In seconds since 1970.
    pub at: i64,
}

/// Content of an earlier mount that is not on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftStatus {
    pub id: String,
    pub path: String,
    pub size: u64,
    /// When it was first written to, in seconds since 1970.
    pub since: i64,
    pub message: String,
}

impl From<Collision> for ConflictStatus {
    fn from(collision: Collision) -> Self {
        Self {
            path: collision.path.to_string(),
            kept_as: collision.kept_as.to_string(),
            at: collision.at.secs,
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
    /// Since when there is no connection, in seconds.
    pub away_seconds: Option<u64>,
    pub lanes_open: usize,
    pub lanes_max: usize,
    pub round_trip_ms: Option<f64>,
    /// Why the host that answers is refused.
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
}

/// A file whose content the host does not have.
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

/// How far a drain has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    pub is_draining: bool,
    pub files: Vec<FileStatus>,
    /// What it could not upload, once it has ended.
    pub left: Vec<NotStored>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotStored {
    pub path: String,
    pub message: String,
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
                // Microseconds are more than enough.
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
