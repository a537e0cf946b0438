//! The errors of a [`crate::remote::Remote`].

use std::io;

use crate::path::Excerpt;
use crate::path::RemotePath;
use crate::scp;
use crate::ssh;

/// The reason why a directory of a host cannot be mounted. It is quoted as messages show it.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("there is no directory {} on the host", Excerpt(.0))]
    Missing(Vec<u8>),
    #[error("{} is not a directory on the host; mount the directory it is in", Excerpt(.0))]
    NotADirectory(Vec<u8>),
    #[error("the host does not let this user read the directory {}", Excerpt(.0))]
    Denied(Vec<u8>),
}

/// The reason why a call of [`crate::remote::Remote`] failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refused; nothing was changed.
    #[error("cannot {act} {path}: {reason}{}", host_text(.text))]
    Refused {
        act: &'static str,
        path: RemotePath,
        reason: Reason,
        text: Vec<u8>,
    },
    /// The host's version is not the expected one; nothing was changed.
    #[error("cannot {act} {path}: it was changed on the host meanwhile")]
    Conflict { act: &'static str, path: RemotePath },
    /// An upload in place failed after it began to write: the file has only part of the new
    /// content. Uploading again repairs it.
    #[error("the host has only part of {path}: {reason}{}", host_text(.text))]
    Partial {
        act: &'static str,
        path: RemotePath,
        reason: Reason,
        text: Vec<u8>,
    },
    /// No temporary file can be created in the directory of an existing file; nothing was changed.
    /// The file may still be written in place.
    #[error(
        "cannot {act} {path} through a temporary file: its directory does not accept new names"
    )]
    NoTemp { act: &'static str, path: RemotePath },
    /// This host, or this dialect, does not support the operation; nothing was changed.
    #[error("cannot {act} {path}: {why}")]
    Unsupported {
        act: &'static str,
        path: RemotePath,
        why: &'static str,
    },
    /// A directory has more names than a listing may have. Each of them can still be accessed by
    /// name.
    #[error("cannot list {path}: it has more names than max_names={max_names} allows")]
    TooManyNames { path: RemotePath, max_names: usize },
    /// There is no connection, or it broke before the request was complete; nothing was changed.
    #[error("cannot reach the host to {act}")]
    Disconnected {
        act: &'static str,
        source: ssh::Error,
    },
    /// The connection broke after the request was sent, so that it may or may not have been carried
    /// out.
    #[error("lost the connection while waiting for the host to {act}")]
    OutcomeUnknown {
        act: &'static str,
        source: ssh::Error,
    },
    /// The filesystem is being unmounted.
    #[error("the connections are closed")]
    Closed,
    /// The host broke the SCP protocol.
    #[error("cannot {act} {path}")]
    Protocol {
        act: &'static str,
        path: RemotePath,
        source: scp::ParseError,
    },
    /// The host's answer cannot be parsed; the connection was dropped.
    #[error("cannot understand the host's answer to {act}: {detail}")]
    UnexpectedReply { act: &'static str, detail: String },
    /// The local content could not be read or written.
    #[error("cannot {act} {path}: the local cache failed")]
    Local {
        act: &'static str,
        path: RemotePath,
        source: io::Error,
    },
}

/// The reason that a host gave for an error.
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
    /// The content changed or shrank during the transfer.
    Changed,
    /// A program is missing on the host.
    NoProgram,
    /// None of the above.
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
            Self::InvalidArgument => "the host reports an invalid argument",
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

/// Returns the host's own text as the end of an error message; empty if there is none.
fn host_text(text: &[u8]) -> String {
    let text = text.trim_ascii();
    if text.is_empty() {
        String::new()
    } else {
        format!(" (the host says: {})", Excerpt(text))
    }
}

impl Error {
    /// Returns the reason, if the host refused or an upload ended in the middle.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused { reason, .. } | Self::Partial { reason, .. } => Some(*reason),
            _ => None,
        }
    }

    /// Returns whether the request was not sent, so that a retry is safe.
    pub fn is_before_request(&self) -> bool {
        matches!(self, Self::Disconnected { .. })
    }

    /// Returns whether the host's key was refused.
    pub fn is_host_key_refused(&self) -> bool {
        matches!(
            self,
            Self::Disconnected {
                source: ssh::Error::HostKey(_),
                ..
            }
        )
    }

    /// Returns whether the host did not answer before a deadline.
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
