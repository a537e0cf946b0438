//! Transport: opens authenticated connections to one host and runs commands on them.
//!
//! Knows nothing of SCP, of shells on the other side, or of files. Driven by `remote`.
//!
//! Modules:
//! - `auth`: authentication: agent, keys, password, keyboard-interactive
//! - `dial`: the TCP connection, ProxyCommand and ProxyJump
//! - `known_hosts`: host keys, certificates, revocation
//! - `libssh2`: connections and channels by libssh2
//! - `prompt`: questions to a person
//! - `resolve`: settings from `ssh -G`, or from the files without it
//! - `settings`: all settings of one connection, resolved
//! - `ssh_config`: the text of `ssh_config(5)` becomes settings; pure

pub mod auth;
mod dial;
pub mod known_hosts;
pub mod libssh2;
pub mod prompt;
pub mod resolve;
pub mod settings;
pub mod ssh_config;

use std::fmt;
use std::io;
use std::time::Duration;

use zeroize::Zeroizing;

/// Makes connections to one host; all of them authenticate the same way.
pub trait Transport: Send + Sync + fmt::Debug {
    /// Opens a new authenticated connection.
    ///
    /// Blocks for at most the connect timeout plus the time a person takes to answer a prompt.
    fn connect(&self) -> Result<Box<dyn Connection>, Error>;
}

/// One authenticated connection, owned by one thread at a time.
pub trait Connection: Send + fmt::Debug {
    /// Runs `command` with the login shell of the host.
    ///
    /// Until [`Channel::discard_stderr`] is called, the channel's output is the command's
    /// standard output and standard error in the order they arrive.
    fn exec(&mut self, command: &str) -> Result<Box<dyn Channel>, Error>;

    /// Returns a handle with which another thread can end the connection at once.
    fn aborter(&self) -> Aborter;

    /// Asks the host whether it is there, without waiting for its answer.
    fn keepalive(&mut self) -> Result<(), Error>;

    /// Returns the server's identification string, for example `SSH-2.0-OpenSSH_9.2p1`.
    fn banner(&self) -> &str;
}

/// The streams of one running command.
///
/// Dropping a channel ends the command's input and forgets it; it never blocks for long.
pub trait Channel: Send + fmt::Debug {
    /// Reads some output; 0 means that the command closed it.
    ///
    /// Fails with [`Error::Timeout`] when nothing arrived for the channel's timeout. After any
    /// error the channel is of no further use.
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error>;

    /// Writes all of `data` to the command's input.
    ///
    /// The timeout counts from the last progress, not from the start.
    fn write_all(&mut self, data: &[u8]) -> Result<(), Error>;

    /// Drops all standard error from now on, so that it can neither mix with output nor fill the
    /// window.
    fn discard_stderr(&mut self) -> Result<(), Error>;

    /// Sets how long a read or write may go without progress.
    fn set_timeout(&mut self, timeout: Duration);

    /// Ends the command's input, drops what it still prints, and waits for its end.
    ///
    /// `None` when the host did not say how the command ended: libssh2 reports status 0 then,
    /// which must not be taken for success.
    fn finish(self: Box<Self>) -> Result<Option<i32>, Error>;
}

/// Ends a connection from another thread; calls that wait on it fail at once.
pub struct Aborter(Box<dyn Fn() + Send + Sync>);

impl Aborter {
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

/// A password, a passphrase, an answer or a private key: wiped from memory when it is dropped.
pub type Secret = Zeroizing<String>;

/// Asks the person at the terminal; an implementation without one refuses.
pub trait Prompt: Send + Sync + fmt::Debug {
    /// Asks for text; with `echo` false it is not shown while typed.
    fn ask(&self, question: &str, echo: bool) -> io::Result<Secret>;

    /// Asks a question whose answer is yes or no.
    fn confirm(&self, question: &str) -> io::Result<bool>;

    /// Shows text that needs no answer.
    fn tell(&self, text: &str);

    /// Returns whether anybody can be asked at all.
    fn is_available(&self) -> bool;
}

/// Why a connection could not be made or did not last.
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
    #[error("cannot agree on an encrypted connection with {host}: {detail}")]
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
