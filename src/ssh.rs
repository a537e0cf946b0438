//! Opens authenticated SSH connections to one host and runs commands on them.
//!
//! Knows nothing of SCP, of the host's shell, or of files. `shell` and `scp_only` use it through
//! `pool`.
//!
//! Modules:
//! - `auth`: authentication: agent, keys, password, keyboard-interactive
//! - `dial`: the TCP connection, ProxyCommand and ProxyJump
//! - `known_hosts`: host keys, certificates, revocation
//! - `libssh2`: implements the traits of this module with libssh2
//! - `output`: a buffer for the output of a command
//! - `prompt`: prompts that never ask, or stop asking when the daemon leaves the terminal
//! - `resolve`: settings from `ssh -G`, or from the files without it
//! - `settings`: all settings of one connection, resolved
//! - `ssh_config`: converts `ssh_config(5)` keywords to settings; pure

pub mod auth;
mod dial;
pub mod known_hosts;
pub mod libssh2;
pub mod output;
pub mod prompt;
pub mod resolve;
pub mod settings;
pub mod ssh_config;

use std::fmt;
use std::io;
use std::time::Duration;

use zeroize::Zeroizing;

/// Opens connections to one host; all of them authenticate the same way.
pub trait Transport: Send + Sync + fmt::Debug {
    /// Opens a new authenticated connection.
    ///
    /// Blocks for the address lookup, the connect, the handshake and the login, each limited by its
    /// timeout, and until the user has answered all prompts.
    ///
    /// # Errors
    /// See [`Error`]. A refused host key or login fails again in the same way when retried.
    fn connect(&self) -> Result<Box<dyn Connection>, Error>;
}

/// One authenticated connection, owned by one thread at a time.
pub trait Connection: Send + fmt::Debug {
    /// Starts `command` with the login user's shell on the host.
    ///
    /// Until [`Channel::discard_stderr`] is called, the channel's output contains standard output
    /// and standard error in the order of arrival.
    ///
    /// # Errors
    /// The host refused the channel or the command, the connection ended, or the timeout elapsed.
    fn exec(&mut self, command: &str) -> Result<Box<dyn Channel>, Error>;

    /// Returns a handle that another thread can use to end the connection at once.
    fn aborter(&self) -> Aborter;

    /// Sends a keepalive message without waiting for a reply.
    ///
    /// # Errors
    /// The connection has ended or failed.
    fn keepalive(&mut self) -> Result<(), Error>;

    /// Returns the server's identification string, for example `SSH-2.0-OpenSSH_9.2p1`.
    fn banner(&self) -> &str;
}

/// The streams of one running command.
///
/// Dropping a channel closes it; that blocks for a fraction of a second at most.
pub trait Channel: Send + fmt::Debug {
    /// Reads some output; returns 0 at its end.
    ///
    /// # Errors
    /// [`Error::Timeout`]: nothing arrived for the channel's timeout. The channel is unusable after
    /// any error.
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error>;

    /// Writes all of `data` to the command's input.
    ///
    /// The channel's timeout starts again with each byte sent.
    ///
    /// # Errors
    /// The command or the connection ended, or nothing could be sent for the timeout. The channel
    /// is unusable afterwards.
    fn write_all(&mut self, data: &[u8]) -> Result<(), Error>;

    /// Discards all standard error from now on: it is not mixed into the output and does not fill
    /// the channel's window.
    ///
    /// # Errors
    /// libssh2 refused the setting.
    fn discard_stderr(&mut self) -> Result<(), Error>;

    /// Sets how long a read or write may wait without progress.
    fn set_timeout(&mut self, timeout: Duration);

    /// Closes the command's input, discards the rest of its output, and returns its exit status.
    ///
    /// Returns `None` if a signal killed the command. If the host reports neither status nor
    /// signal, libssh2 returns status 0: callers must not take 0 alone as proof of success.
    ///
    /// # Errors
    /// The connection ended, the command printed too much, or nothing arrived for the timeout.
    fn finish(self: Box<Self>) -> Result<Option<i32>, Error>;
}

/// Ends a connection from another thread; calls that block on it fail at once.
pub struct Aborter(Box<dyn Fn() + Send + Sync>);

impl Aborter {
    /// Creates a handle that ends its connection by calling `abort`.
    pub fn new(abort: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Box::new(abort))
    }

    /// Ends the connection. Calling it again does nothing.
    pub fn abort(&self) {
        (self.0)();
    }
}

impl fmt::Debug for Aborter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Aborter")
    }
}

/// A password, passphrase, answer or private key; zeroed in memory when dropped.
pub type Secret = Zeroizing<String>;

/// Asks the user. An implementation without a terminal fails every question.
pub trait Prompt: Send + Sync + fmt::Debug {
    /// Asks for text and blocks until it is entered; without `echo` it is hidden while typed.
    ///
    /// # Errors
    /// The user cannot be asked or gave no answer.
    fn ask(&self, question: &str, echo: bool) -> io::Result<Secret>;

    /// Asks a yes-or-no question and blocks until it is answered.
    ///
    /// # Errors
    /// The user cannot be asked or gave no answer.
    fn confirm(&self, question: &str) -> io::Result<bool>;

    /// Shows text to the user, or logs it.
    fn tell(&self, text: &str);

    /// Returns whether the user can be asked.
    fn is_available(&self) -> bool;
}

/// Why a connection could not be opened, or has failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot find the address of {host}; check the name, or add it to ~/.ssh/config")]
    Resolve { host: String, source: io::Error },
    #[error(
        "cannot connect to {host} port {port}; is the host up, and does its SSH server listen there (-p)?"
    )]
    Connect {
        host: String,
        port: u16,
        source: io::Error,
    },
    #[error("the proxy command failed: {command}")]
    Proxy { command: String, source: io::Error },
    #[error("SSH handshake with {host} failed: {detail}")]
    Handshake { host: String, detail: String },
    #[error(transparent)]
    HostKey(#[from] known_hosts::Refusal),
    #[error(transparent)]
    Auth(#[from] auth::Refusal),
    #[error("cannot read the SSH configuration: {detail}")]
    Config { detail: String },
    #[error("no answer for {} s while {act}", timeout.as_secs())]
    Timeout {
        act: &'static str,
        timeout: Duration,
    },
    #[error("the connection ended while {act}")]
    Closed { act: &'static str },
    #[error("the connection failed while {act}: {detail}")]
    Failed { act: &'static str, detail: String },
}
