//! Why a host did not do what it was asked.

use std::io;

use crate::path::Excerpt;
use crate::path::RemotePath;
use crate::scp;
use crate::ssh;

/// Why a [`crate::remote::Remote`] failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refused; nothing was changed.
    #[error("cannot {act} {path}: {reason}{}", said(.text))]
    Refused {
        act: &'static str,
        path: RemotePath,
        reason: Reason,
        text: Vec<u8>,
    },
    /// Somebody else changed the file; nothing was changed by us.
    #[error("cannot {act} {path}: it was changed on the host meanwhile")]
    Conflict { act: &'static str, path: RemotePath },
    /// The host gave up after it had begun to write to the file itself, which an upload in place
    /// does: the file is not what it was, nor what it should be. Uploading again repairs it.
    #[error("the host has only part of {path}: {reason}{}", said(.text))]
    Partial {
        act: &'static str,
        path: RemotePath,
        reason: Reason,
        text: Vec<u8>,
    },
    /// No temporary file can be made in the directory of a file that is there; nothing was changed.
    /// The file may still be written directly.
    #[error("cannot {act} {path} beside the file: its directory takes no new names")]
    NoTemp { act: &'static str, path: RemotePath },
    /// This host, or this dialect, has no way to do it; nothing was changed.
    #[error("cannot {act} {path}: {why}")]
    Unsupported {
        act: &'static str,
        path: RemotePath,
        why: &'static str,
    },
    /// A directory has more names than a listing may have; they can still be asked for one by one.
    #[error("cannot list {path}: it has more names than max_names={max_names} allows")]
    TooManyNames { path: RemotePath, max_names: usize },
    /// There is no connection, or it broke before the request was complete; nothing was changed.
    #[error("cannot reach the host to {act}")]
    Disconnected {
        act: &'static str,
        source: ssh::Error,
    },
    /// The connection broke after the request was sent: the host may or may not have done it.
    #[error("lost the host while waiting for it to {act}")]
    OutcomeUnknown {
        act: &'static str,
        source: ssh::Error,
    },
    /// The filesystem is being unmounted.
    #[error("the connections are closed")]
    Closed,
    /// The host sent SCP that is none.
    #[error("cannot {act} {path}")]
    Protocol {
        act: &'static str,
        path: RemotePath,
        source: scp::ParseError,
    },
    /// The host's answer cannot be understood; the connection is given up.
    #[error("cannot understand the host's answer to {act}: {detail}")]
    UnexpectedReply { act: &'static str, detail: String },
    /// The content could not be read or written on this side.
    #[error("cannot {act} {path} because of the local cache")]
    Local {
        act: &'static str,
        path: RemotePath,
        source: io::Error,
    },
}

/// What a host said was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    NotFound,
    Exists,
    AccessDenied,
    NotPermitted,
    NotADirectory,
    IsADirectory,
    NotEmpty,
    TooManyLinks,
    NameTooLong,
    SymlinkLoop,
    ReadOnly,
    NoSpace,
    QuotaExceeded,
    FileTooLarge,
    CrossDevice,
    Busy,
    TextBusy,
    InvalidArgument,
    NotSupported,
    NoSuchDevice,
    InputOutput,
    Stale,
    /// The content of the file changed or shrank while it was sent.
    Changed,
    /// A program is missing on the host.
    NoProgram,
    /// Something that none of the above describes.
    Other,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotFound => "no such file or directory on the host",
            Self::Exists => "it exists already",
            Self::AccessDenied => "permission denied by the host",
            Self::NotPermitted => "operation not permitted by the host",
            Self::NotADirectory => "not a directory",
            Self::IsADirectory => "it is a directory",
            Self::NotEmpty => "the directory is not empty",
            Self::TooManyLinks => "too many links",
            Self::NameTooLong => "the name is too long for the host",
            Self::SymlinkLoop => "too many levels of symbolic links",
            Self::ReadOnly => "the host's filesystem is read-only",
            Self::NoSpace => "no space left on the host",
            Self::QuotaExceeded => "the quota on the host is used up",
            Self::FileTooLarge => "the file is too large for the host",
            Self::CrossDevice => "it lies on another filesystem of the host",
            Self::Busy => "it is busy on the host",
            Self::TextBusy => "it is a running program on the host",
            Self::InvalidArgument => "the host calls it invalid",
            Self::NotSupported => "the host does not support it",
            Self::NoSuchDevice => "no such device on the host",
            Self::InputOutput => "input/output error on the host",
            Self::Stale => "stale file handle on the host",
            Self::Changed => "the file changed on the host while it was read",
            Self::NoProgram => "the host lacks a program for it",
            Self::Other => "the host could not do it",
        })
    }
}

/// The host's own words, if there are any, as the tail of a message.
fn said(text: &[u8]) -> String {
    let text = text.trim_ascii();
    if text.is_empty() {
        String::new()
    } else {
        format!(" (the host says: {})", Excerpt(text))
    }
}

impl Error {
    /// Returns why the host refused, if it did.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused { reason, .. } | Self::Partial { reason, .. } => Some(*reason),
            _ => None,
        }
    }

    /// Returns whether the host was not reached at all, so that trying again cannot do harm.
    pub fn is_before_request(&self) -> bool {
        matches!(self, Self::Disconnected { .. })
    }

    /// Returns whether a host answers that is not to be trusted, by its key.
    pub fn is_host_refused(&self) -> bool {
        matches!(
            self,
            Self::Disconnected {
                source: ssh::Error::HostKey(_),
                ..
            }
        )
    }

    /// Returns whether the host did not answer within a deadline.
    pub fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::Disconnected {
                source: ssh::Error::Timeout { .. },
                ..
            } | Self::OutcomeUnknown {
                source: ssh::Error::Timeout { .. },
                ..
            }
        )
    }

    /// Returns whether the connection failed, before or after the request was sent.
    pub fn is_connection_loss(&self) -> bool {
        matches!(
            self,
            Self::Disconnected { .. } | Self::OutcomeUnknown { .. } | Self::UnexpectedReply { .. }
        )
    }
}
