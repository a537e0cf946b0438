//! The exit statuses of the program, as README.md documents them.

use std::process;

/// The exit status of `scpfs` and of its commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCode {
    /// The mount ended with every file uploaded, or serves in the background; the command is done.
    Success = 0,
    /// The command line is wrong, nothing is mounted there, or input or output failed.
    Failure = 1,
    /// The host cannot be reached, or does not answer as an SSH server or a shell does.
    CannotConnect = 2,
    /// The host key is unknown, revoked, or not the one that is expected.
    HostKeyRefused = 3,
    /// The host accepts none of the keys and passwords.
    AuthenticationFailed = 4,
    /// This machine cannot mount, or the mount is in use or does not answer.
    CannotMount = 5,
    /// Some files could not be uploaded; their content is in the cache.
    NotUploaded = 6,
    /// The host, or the directory on it, cannot be mounted.
    HostUnsuitable = 7,
    /// SIGINT, SIGTERM or SIGHUP ended the program before it had mounted.
    Interrupted = 130,
}

impl From<ExitCode> for u8 {
    fn from(code: ExitCode) -> Self {
        code as Self
    }
}

impl From<ExitCode> for process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(u8::from(code))
    }
}
