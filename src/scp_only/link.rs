//! A link: one connection on which commands run one after another, each on a channel of its own.
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

/// How much is read at a time.
const READ_SIZE: usize = 256 << 10;

/// A command that should have ended may still print so much before its link is given up.
const MAX_LEFTOVER: usize = 1 << 20;

/// One connection.
#[derive(Debug)]
pub struct Link {
    connection: Box<dyn Connection>,
    is_broken: bool,
    /// Whether a command has run on it: some devices allow one for each connection.
    is_used: bool,
    last_used: Tick,
}

impl Link {
    pub(super) fn open(transport: &dyn Transport) -> std::result::Result<Self, ssh::Error> {
        Ok(Self {
            connection: transport.connect()?,
            is_broken: false,
            is_used: false,
            last_used: Tick::ZERO,
        })
    }

    pub(super) fn banner(&self) -> &str {
        self.connection.banner()
    }
}

impl Pooled for Link {
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
        self.connection.keepalive()
    }

    /// The channel that every command opens is the sign of life.
    fn answers(&mut self) -> bool {
        !self.is_broken
    }

    fn aborter(&self) -> Aborter {
        self.connection.aborter()
    }
}

/// A running command: what it printed and was not used, and the way to its input.
#[derive(Debug)]
pub(super) struct Command {
    // Dropped before the link goes back to its pool.
    channel: Box<dyn Channel>,
    link: Lent<Link>,
    buf: Vec<u8>,
    start: usize,
    scratch: Box<[u8]>,
    has_ended: bool,
    is_deaf: bool,
}

impl Command {
    /// Runs `line` on a link of the pool. Until [`Self::leave`], that link counts as broken.
    ///
    /// # Errors
    /// [`Error::Disconnected`]: the command does not run.
    pub(super) fn start(
        pool: &Pool<Link>,
        purpose: Purpose,
        act: &'static str,
        line: &str,
        timeout: Duration,
    ) -> Result<Self> {
        loop {
            let mut link = pool.lend(purpose, act)?;
            let was_used = std::mem::replace(&mut link.is_used, true);
            link.is_broken = true;
            let started = link.connection.exec(line).and_then(|mut channel| {
                channel.set_timeout(timeout);
                channel.discard_stderr()?;
                Ok(channel)
            });
            match started {
                Ok(channel) => {
                    return Ok(Self {
                        channel,
                        link,
                        buf: Vec::new(),
                        start: 0,
                        scratch: vec![0; READ_SIZE].into_boxed_slice(),
                        has_ended: false,
                        is_deaf: false,
                    });
                }
                // It died while it was idle, or the server allows but one command.
                Err(error) if was_used => log::debug!("a connection takes no command: {error}"),
                Err(source) => return Err(Error::Disconnected { act, source }),
            }
        }
    }

    /// Sends input. Where the command takes none any more, what it printed says why: the next
    /// read tells.
    pub(super) fn send(&mut self, data: &[u8]) -> std::result::Result<(), ssh::Error> {
        if data.is_empty() || self.is_deaf {
            return Ok(());
        }
        match self.channel.write_all(data) {
            Err(error @ ssh::Error::Timeout { .. }) => Err(error),
            Err(error) => {
                log::debug!("a command takes no input: {error}");
                self.is_deaf = true;
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Returns whether the command is known to take no input any more.
    pub(super) fn is_deaf(&self) -> bool {
        self.is_deaf
    }

    /// Returns what was read and not used.
    pub(super) fn unread(&self) -> &[u8] {
        self.buf.get(self.start..).unwrap_or_default()
    }

    /// Marks the first bytes of [`Self::unread`] as used.
    pub(super) fn consume(&mut self, n: usize) {
        self.start += n;
        if self.start >= self.buf.len() {
            self.buf.clear();
            self.start = 0;
        }
    }

    /// Waits for more output and adds it to [`Self::unread`]; false at its end.
    pub(super) fn read_more(&mut self) -> std::result::Result<bool, ssh::Error> {
        if self.has_ended {
            return Ok(false);
        }
        if self.start > 0 {
            self.buf.drain(..self.start);
            self.start = 0;
        }
        let n = self.channel.read(&mut self.scratch)?;
        self.buf
            .extend_from_slice(self.scratch.get(..n).unwrap_or_default());
        self.has_ended = n == 0;
        Ok(n > 0)
    }

    /// Waits for the end of a command that has all it was waiting for, which is no round trip; its
    /// link is fit for the next.
    ///
    /// To close a channel on which output is still to come is allowed, but dropbear 2022.83 dies of
    /// it (common-channel.c:705, a failed assertion).
    pub(super) fn conclude(mut self) {
        let mut n_left = MAX_LEFTOVER;
        while n_left > 0 {
            self.start = self.buf.len();
            match self.read_more() {
                Ok(true) => n_left = n_left.saturating_sub(self.buf.len()),
                Ok(false) => return self.leave(),
                Err(error) => {
                    log::debug!("a command did not end: {error}");
                    return;
                }
            }
        }
    }

    /// Forgets the command, whatever it still does; its link is fit for the next.
    pub(super) fn leave(mut self) {
        self.link.is_broken = false;
    }

    /// Ends the command's input and waits for its end; returns its exit status if that is known.
    pub(super) fn finish(self) -> Option<i32> {
        let Self {
            channel, mut link, ..
        } = self;
        let status = channel.finish().ok()?;
        link.is_broken = false;
        status
    }
}
