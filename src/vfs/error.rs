//! Errors of file operations, and the only table that maps them to errno.

#![deny(clippy::wildcard_enum_match_arm)]

use libc::c_int;

use crate::cache;
use crate::remote;
use crate::remote::Reason;

/// Why a file operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Cache(cache::Error),
    #[error("no such file or directory")]
    NotFound,
    #[error("the file exists already")]
    Exists,
    #[error("not a directory")]
    NotADirectory,
    #[error("is a directory")]
    IsADirectory,
    #[error("permission denied")]
    AccessDenied,
    #[error("operation not permitted")]
    NotPermitted,
    /// A symlink that leads out of the mount, with containment.
    #[error("the symlink leads out of the mounted directory")]
    LeadsOutside,
    #[error("the mount is read-only")]
    ReadOnly,
    #[error("invalid argument")]
    InvalidArgument,
    #[error("the name is too long")]
    NameTooLong,
    #[error("the file is in use")]
    Busy,
    #[error("bad file handle")]
    BadHandle,
    #[error("the file is on another filesystem of the host")]
    CrossDevice,
    #[error("not supported")]
    NotSupported,
    /// Content could not be uploaded because the host could not be reached.
    #[error(transparent)]
    NotUploaded(cache::Error),
    #[error("the file was replaced on the host")]
    Stale,
    #[error("the directory changes faster than it can be read")]
    Changing,
    /// The kernel has forgotten the inode, or never knew it.
    #[error("internal error: unknown inode")]
    UnknownInode,
    /// A bug of this program; the log says more.
    #[error("internal error")]
    Internal,
    #[error("no data or hole at or after this offset")]
    NoSuchOffset,
}

impl From<cache::Error> for Error {
    fn from(error: cache::Error) -> Self {
        Self::Cache(error)
    }
}

impl From<remote::Error> for Error {
    fn from(error: remote::Error) -> Self {
        Self::Cache(error.into())
    }
}

impl Error {
    /// Returns whether the operation would have blocked, and therefore did nothing.
    pub fn would_wait(&self) -> bool {
        matches!(self, Self::Cache(cache::Error::WouldWait))
    }

    /// Returns whether the file does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound) || self.reason() == Some(Reason::NotFound)
    }

    /// Returns whether the host could not be reached, or was lost.
    pub fn is_connection_loss(&self) -> bool {
        let (Self::Cache(error) | Self::NotUploaded(error)) = self else {
            return false;
        };
        matches!(error, cache::Error::Remote(error) if error.is_connection_loss())
    }

    /// Returns whether the host key was refused.
    pub fn is_host_key_refused(&self) -> bool {
        let (Self::Cache(error) | Self::NotUploaded(error)) = self else {
            return false;
        };
        matches!(error, cache::Error::Remote(error) if error.is_host_key_refused())
    }

    /// Returns whether the connections were closed for good.
    pub(super) fn is_closed(&self) -> bool {
        let (Self::Cache(error) | Self::NotUploaded(error)) = self else {
            return false;
        };
        matches!(error, cache::Error::Remote(error) if matches!(**error, remote::Error::Closed))
    }

    fn reason(&self) -> Option<Reason> {
        if let Self::Cache(cache::Error::Remote(error)) = self {
            error.reason()
        } else {
            None
        }
    }

    /// Returns the errno that the program gets. `docs/semantics.md` has the same table in words.
    pub fn errno(&self) -> c_int {
        match self {
            Self::Cache(error) => of_cache(error),
            Self::NotUploaded(_) if self.is_host_key_refused() => libc::EKEYREJECTED,
            Self::NotUploaded(_) => libc::EIO,
            Self::NotFound => libc::ENOENT,
            Self::Exists => libc::EEXIST,
            Self::NotADirectory => libc::ENOTDIR,
            Self::IsADirectory => libc::EISDIR,
            Self::AccessDenied => libc::EACCES,
            // sshfs returns the same for symlinks that it contains.
            Self::NotPermitted | Self::LeadsOutside => libc::EPERM,
            Self::ReadOnly => libc::EROFS,
            Self::InvalidArgument => libc::EINVAL,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::Busy => libc::EBUSY,
            Self::BadHandle => libc::EBADF,
            Self::CrossDevice => libc::EXDEV,
            Self::NotSupported => libc::EOPNOTSUPP,
            // On ESTALE the kernel looks the path up again and retries the operation once.
            Self::Stale | Self::Changing | Self::UnknownInode => libc::ESTALE,
            Self::Internal => libc::EIO,
            Self::NoSuchOffset => libc::ENXIO,
        }
    }
}

fn of_cache(error: &cache::Error) -> c_int {
    match error {
        cache::Error::Remote(error) => of_remote(error),
        // An error of the local disk is passed to the program (ENOSPC, EDQUOT, EIO).
        cache::Error::Local { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        cache::Error::Full => libc::ENOSPC,
        // `vfs` fetches missing content and tries again; this is the error if that did not help.
        cache::Error::NotFetched
        | cache::Error::NotJournaled
        | cache::Error::StaleContent
        | cache::Error::Internal => libc::EIO,
        cache::Error::ConflictCopy { .. } | cache::Error::NoPath => libc::ESTALE,
        cache::Error::TooSparse => libc::EFBIG,
        cache::Error::WouldWait => libc::EAGAIN,
    }
}

fn of_remote(error: &remote::Error) -> c_int {
    match error {
        remote::Error::Refused { reason, .. } | remote::Error::Partial { reason, .. } => {
            of_reason(*reason)
        }
        remote::Error::Conflict { .. } => libc::ESTALE,
        remote::Error::NoTemp { .. } => libc::EACCES,
        remote::Error::Unsupported { .. } => libc::EOPNOTSUPP,
        remote::Error::TooManyNames { .. } => libc::EFBIG,
        // Never ENOENT: an unreachable host does not mean that there is no such file.
        remote::Error::Disconnected { .. } if error.is_timeout() => libc::ETIMEDOUT,
        remote::Error::Disconnected { .. } if error.is_host_key_refused() => libc::EKEYREJECTED,
        remote::Error::Disconnected { .. } => libc::EHOSTUNREACH,
        remote::Error::OutcomeUnknown { .. } if error.is_timeout() => libc::ETIMEDOUT,
        remote::Error::OutcomeUnknown { .. } => libc::EIO,
        remote::Error::Closed => libc::ENOTCONN,
        remote::Error::Protocol { .. } | remote::Error::UnexpectedReply { .. } => libc::EIO,
        remote::Error::Local { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
    }
}

fn of_reason(reason: Reason) -> c_int {
    match reason {
        Reason::NotFound => libc::ENOENT,
        Reason::Exists => libc::EEXIST,
        Reason::AccessDenied => libc::EACCES,
        Reason::NotPermitted => libc::EPERM,
        Reason::NotADirectory => libc::ENOTDIR,
        Reason::IsADirectory => libc::EISDIR,
        Reason::NotEmpty => libc::ENOTEMPTY,
        Reason::TooManyLinks => libc::EMLINK,
        Reason::NameTooLong => libc::ENAMETOOLONG,
        Reason::SymlinkLoop => libc::ELOOP,
        Reason::ReadOnly => libc::EROFS,
        Reason::NoSpace => libc::ENOSPC,
        Reason::QuotaExceeded => libc::EDQUOT,
        Reason::FileTooLarge => libc::EFBIG,
        Reason::CrossDevice => libc::EXDEV,
        Reason::Busy => libc::EBUSY,
        Reason::TextBusy => libc::ETXTBSY,
        Reason::InvalidArgument => libc::EINVAL,
        Reason::NotSupported | Reason::NoProgram => libc::EOPNOTSUPP,
        Reason::NoSuchDevice => libc::ENXIO,
        Reason::InputOutput => libc::EIO,
        Reason::Stale => libc::ESTALE,
        // The content would be a mixture of two versions.
        Reason::Changed => libc::EIO,
        Reason::Other => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh;

    #[test]
    fn a_host_with_another_key_is_told_from_one_that_is_away() {
        let refusal = ssh::known_hosts::Refusal::Declined {
            name: "box".to_owned(),
        };
        let error = Error::from(remote::Error::Disconnected {
            act: "stat",
            source: refusal.into(),
        });
        assert_eq!(error.errno(), libc::EKEYREJECTED);
        assert!(error.is_connection_loss() && error.is_host_key_refused());
    }

    #[test]
    fn an_unreachable_host_is_not_an_empty_one() {
        let closed = || ssh::Error::Closed { act: "reading" };
        for error in [
            remote::Error::Disconnected {
                act: "stat",
                source: closed(),
            },
            remote::Error::OutcomeUnknown {
                act: "stat",
                source: closed(),
            },
            remote::Error::Closed,
        ] {
            let error = Error::from(error);
            assert_ne!(error.errno(), libc::ENOENT);
            assert!(!error.is_not_found());
        }
    }
}
