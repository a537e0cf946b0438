//! One connection, which runs one command after another, each on its own channel.
//!
//! Nothing here knows SCP.

use std::time::Duration;

use crate::clock::Tick;
use crate::pool::Lent;
use crate::pool::Pool;
use crate::pool::Pooled;
use crate::pool::Purpose;
use crate::remote::Error;
use crate::remote::Result;
use crate::ssh;
use crate::ssh::Aborter;
use crate::ssh::Channel;
use crate::ssh::Connection;
use crate::ssh::Transport;
use crate::ssh::output::Output;

/// Maximum output, in bytes, that is discarded while waiting for a command to end. After that the
/// connection is dropped.
const MAX_LEFTOVER: usize = 1 << 20;

/// One connection of this dialect's pool.
#[derive(Debug)]
pub struct ScpConnection {
    ssh: Box<dyn Connection>,
    is_broken: bool,
    /// Whether a command has run on it. Some devices allow one command per connection.
    is_used: bool,
    last_used: Tick,
}

impl ScpConnection {
    pub(super) fn open(transport: &dyn Transport) -> std::result::Result<Self, ssh::Error> {
        Ok(Self {
            ssh: transport.connect()?,
            is_broken: false,
            is_used: false,
            last_used: Tick::ZERO,
        })
    }

    pub(super) fn banner(&self) -> &str {
        self.ssh.banner()
    }
}

impl Pooled for ScpConnection {
    fn is_broken(&self) -> bool {
        self.is_broken
    }

    fn last_used(&self) -> Tick {
        self.last_used
    }

    fn set_last_used(&mut self, now: Tick) {
        self.last_used = now;
    }

    fn keepalive(&mut self) -> std::result::Result<(), ssh::Error> {
        self.ssh.keepalive()
    }

    /// The channel that the next command opens tests the connection.
    fn answers(&mut self) -> bool {
        !self.is_broken
    }

    fn aborter(&self) -> Aborter {
        self.ssh.aborter()
    }
}

/// A running command: its unread output and its input.
#[derive(Debug)]
pub(super) struct Command {
    // Declared first: the channel must be dropped before the connection returns to its pool.
    channel: Box<dyn Channel>,
    connection: Lent<ScpConnection>,
    output: Output,
    has_ended: bool,
    is_input_closed: bool,
}

impl Command {
    /// Runs `line` on a connection of the pool. Until [`Self::abandon`] that connection counts as
    /// broken.
    ///
    /// # Errors
    /// [`Error::Disconnected`]: the command was not started.
    pub(super) fn start(
        pool: &Pool<ScpConnection>,
        purpose: Purpose,
        act: &'static str,
        line: &str,
        timeout: Duration,
    ) -> Result<Self> {
        loop {
            let mut connection = pool.lend(purpose, act)?;
            let was_used = std::mem::replace(&mut connection.is_used, true);
            connection.is_broken = true;
            let started = connection.ssh.exec(line).and_then(|mut channel| {
                channel.set_timeout(timeout);
                channel.discard_stderr()?;
                Ok(channel)
            });
            match started {
                Ok(channel) => {
                    return Ok(Self {
                        channel,
                        connection,
                        output: Output::new(),
                        has_ended: false,
                        is_input_closed: false,
                    });
                }
                // It was lost while idle, or the server allows only one command per connection.
                Err(error) if was_used => {
                    log::debug!("cannot run a command on a connection: {error}");
                }
                Err(source) => return Err(Error::Disconnected { act, source }),
            }
        }
    }

    /// Sends input. If the command no longer takes any, this succeeds: the output says why, and the
    /// next read returns it.
    pub(super) fn send(&mut self, data: &[u8]) -> std::result::Result<(), ssh::Error> {
        if data.is_empty() || self.is_input_closed {
            return Ok(());
        }
        match self.channel.write_all(data) {
            Err(error @ ssh::Error::Timeout { .. }) => Err(error),
            Err(error) => {
                log::debug!("a command no longer takes input: {error}");
                self.is_input_closed = true;
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Returns whether the command is known to take no more input.
    pub(super) fn is_input_closed(&self) -> bool {
        self.is_input_closed
    }

    /// Returns the output that was read and not consumed.
    pub(super) fn unread(&self) -> &[u8] {
        self.output.unread()
    }

    /// Consumes the first bytes of [`Self::unread`].
    pub(super) fn consume(&mut self, n: usize) {
        self.output.consume(n);
    }

    /// Waits for more output and appends it to [`Self::unread`]; returns false at its end.
    pub(super) fn read_more(&mut self) -> std::result::Result<bool, ssh::Error> {
        if self.has_ended {
            return Ok(false);
        }
        let n = self.output.read_from(&mut *self.channel)?;
        self.has_ended = n == 0;
        Ok(n > 0)
    }

    /// Waits for the end of a command that has received all its input, which takes no round trip;
    /// the connection can be used again.
    ///
    /// Closing the channel before that would be allowed, but dropbear 2022.83 crashes if output is
    /// still to come (common-channel.c:705, a failed assertion).
    pub(super) fn wait_for_end(mut self) {
        let mut n_left = MAX_LEFTOVER;
        while n_left > 0 {
            self.consume(self.unread().len());
            match self.read_more() {
                Ok(true) => n_left = n_left.saturating_sub(self.unread().len()),
                Ok(false) => return self.abandon(),
                Err(error) => {
                    log::debug!("a command did not end: {error}");
                    return;
                }
            }
        }
    }

    /// Closes the channel of a command that may still run; the connection can be used again.
    pub(super) fn abandon(mut self) {
        self.connection.is_broken = false;
    }

    /// Closes the command's input and waits for its end; returns its exit status if it is known.
    pub(super) fn finish(self) -> Option<i32> {
        let Self {
            channel,
            mut connection,
            ..
        } = self;
        let status = channel.finish().ok()?;
        connection.is_broken = false;
        status
    }
}
