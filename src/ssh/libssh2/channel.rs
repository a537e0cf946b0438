//! One command on a connection.

use std::fmt;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use rustix::io::Errno;
use ssh2::BlockDirections;
use ssh2::ErrorCode;
use ssh2::ExtendedData;

use super::Wire;
use crate::clock::Clock as _;
use crate::clock::SystemClock;
use crate::ssh::Channel;
use crate::ssh::Error;

/// The host may send this much ahead. More makes fast networks slower: libssh2 walks through all
/// that waits.
const WINDOW_BYTES: u32 = 4 << 20;
const PACKET_BYTES: u32 = 32_768;

/// A command that is told to end may still print this much before it is given up.
const MAX_LEFTOVER_BYTES: usize = 64 << 20;

/// How long freeing a channel may wait for the host's good-bye.
const FAREWELL: Duration = Duration::from_millis(250);

/// An open channel of libssh2; closes it when dropped.
pub(super) struct OpenChannel {
    wire: Arc<Wire>,
    /// `None` only while this is being dropped.
    channel: Option<ssh2::Channel>,
}

impl OpenChannel {
    pub(super) fn open(wire: Arc<Wire>, timeout: Duration) -> Result<Self, Error> {
        match wire
            .session
            .channel_open("session", WINDOW_BYTES, PACKET_BYTES, None)
        {
            Ok(channel) => Ok(Self {
                wire,
                channel: Some(channel),
            }),
            Err(err) => Err(wire.error("opening a channel", timeout, Some(err))),
        }
    }

    pub(super) fn exec(&self, command: &str) -> Result<(), Error> {
        let mut channel = self.handle();
        channel
            .handle_extended_data(ExtendedData::Merge)
            .and_then(|()| channel.exec(command))
            .map_err(|err| {
                let timeout = Duration::from_millis(self.wire.session.timeout().into());
                self.wire.error("starting a command", timeout, Some(err))
            })
    }

    /// Takes in what has arrived without waiting and without consuming any output.
    pub(super) fn look(&self) -> Result<(), ssh2::Error> {
        match self.handle().wait_eof() {
            Err(err) if is_again(&err) => Ok(()),
            other => other,
        }
    }

    /// Returns another handle for the channel.
    // INVARIANT: a handle is dropped before `self`, so that it never is what frees the channel.
    #[expect(
        clippy::expect_used,
        reason = "only `drop` takes it, and nothing runs after that"
    )]
    fn handle(&self) -> ssh2::Channel {
        self.channel
            .clone()
            .expect("the channel is there until it is dropped")
    }
}

impl Drop for OpenChannel {
    fn drop(&mut self) {
        let session = &self.wire.session;
        let timeout = session.timeout();
        self.wire.set_timeout(FAREWELL);
        {
            // ssh2 frees the channel without locking the session (rust-lang/ssh2-rs #322).
            let guard = session.raw();
            drop(self.channel.take());
            drop(guard);
        }
        session.set_timeout(timeout);
    }
}

impl fmt::Debug for OpenChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenChannel")
            .field("wire", &self.wire)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct Libssh2Channel {
    open: Arc<OpenChannel>,
    timeout: Duration,
}

impl Libssh2Channel {
    pub(super) fn new(open: Arc<OpenChannel>) -> Self {
        let timeout = Duration::from_millis(open.wire.session.timeout().into());
        Self { open, timeout }
    }

    fn error(&self, act: &'static str, err: Option<ssh2::Error>) -> Error {
        self.open.wire.error(act, self.timeout, err)
    }

    /// Writes all of `data`, and stops where the command can take no more.
    ///
    /// A blocking write of libssh2 waits for the window of a command that has ended for as long as
    /// it is told to wait (1.11.2 channel.c `ssh2_channel_write()` looks at the window only), although
    /// the end of the channel has arrived, and the reason before it.
    fn write_without_blocking(&self, data: &[u8]) -> Result<(), Error> {
        const ACT: &str = "sending input";
        let clock = SystemClock::new();
        let mut channel = self.open.handle();
        let mut rest = data;
        let mut progress_at = clock.tick();
        while !rest.is_empty() {
            match channel.write(rest) {
                Ok(n_bytes) => {
                    rest = match rest.get(n_bytes..) {
                        Some(rest) if n_bytes > 0 => rest,
                        _ => return Err(Error::Closed { act: ACT }),
                    };
                    progress_at = clock.tick();
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    // Only between two packets may anything else be done to the session.
                    let is_between_packets = channel.write_window().remaining == 0;
                    if is_between_packets && self.has_ended(&mut channel, ACT)? {
                        return Err(Error::Closed { act: ACT });
                    }
                    let waited = clock.tick().saturating_sub(progress_at);
                    self.wait_for_socket(ACT, self.timeout.saturating_sub(waited))?;
                }
                // The crate's io::Error has lost the code; the session still has it.
                Err(_) => return Err(self.error(ACT, None)),
            }
        }
        Ok(())
    }

    /// Returns whether the command is known to have ended; output of it may still be unread.
    fn has_ended(&self, channel: &mut ssh2::Channel, act: &'static str) -> Result<bool, Error> {
        match channel.wait_eof() {
            Ok(()) => Ok(true),
            Err(err) if is_again(&err) => Ok(false),
            Err(err) => Err(self.error(act, Some(err))),
        }
    }

    /// Waits until the socket is ready for what libssh2 waits for.
    fn wait_for_socket(&self, act: &'static str, limit: Duration) -> Result<(), Error> {
        let timeout = || Error::Timeout {
            act,
            timeout: self.timeout,
        };
        if limit.is_zero() {
            return Err(timeout());
        }
        let wire = &self.open.wire;
        let flags = match wire.session.block_directions() {
            BlockDirections::Outbound => PollFlags::OUT,
            BlockDirections::Both => PollFlags::IN | PollFlags::OUT,
            BlockDirections::Inbound | BlockDirections::None => PollFlags::IN,
        };
        let limit = Timespec::try_from(limit).unwrap_or(Timespec {
            tv_sec: i64::MAX,
            tv_nsec: 0,
        });
        match poll(&mut [PollFd::new(&wire.socket, flags)], Some(&limit)) {
            Ok(0) => Err(timeout()),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(err) => Err(Error::Failed {
                act,
                detail: err.to_string(),
            }),
        }
    }
}

fn is_again(err: &ssh2::Error) -> bool {
    err.code() == ErrorCode::Session(libssh2_sys::LIBSSH2_ERROR_EAGAIN)
}

impl Channel for Libssh2Channel {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        // The crate's io::Error has lost the code; the session still has it.
        self.open
            .handle()
            .read(buf)
            .map_err(|_| self.error("waiting for output", None))
    }

    fn write_all(&mut self, data: &[u8]) -> Result<(), Error> {
        let session = &self.open.wire.session;
        session.set_blocking(false);
        let result = self.write_without_blocking(data);
        session.set_blocking(true);
        result
    }

    fn discard_stderr(&mut self) -> Result<(), Error> {
        self.open
            .handle()
            .handle_extended_data(ExtendedData::Ignore)
            .map_err(|err| self.error("dropping standard error", Some(err)))
    }

    fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
        self.open.wire.set_timeout(timeout);
    }

    fn finish(mut self: Box<Self>) -> Result<Option<i32>, Error> {
        const ACT: &str = "waiting for a command to end";
        let mut channel = self.open.handle();
        match channel.send_eof().map_err(|err| self.error(ACT, Some(err))) {
            // It has ended by itself, or its input has.
            Ok(()) | Err(Error::Closed { .. }) => {}
            Err(err) => return Err(err),
        }
        let mut buf = vec![0; 64 << 10];
        let mut n_leftover = 0;
        loop {
            match self.read(&mut buf)? {
                0 => break,
                n_bytes => n_leftover += n_bytes,
            }
            if n_leftover > MAX_LEFTOVER_BYTES {
                let detail = "it does not stop printing".to_owned();
                return Err(Error::Failed { act: ACT, detail });
            }
        }
        channel
            .wait_close()
            .map_err(|err| self.error(ACT, Some(err)))?;
        let signal = channel
            .exit_signal()
            .map_err(|err| self.error(ACT, Some(err)))?;
        let status = channel
            .exit_status()
            .map_err(|err| self.error(ACT, Some(err)))?;
        // A server that closes the channel in good order but never says how the command ended
        // cannot be told from success: ssh2 does not pass on libssh2_channel_has_exit_status().
        Ok(signal.exit_signal.is_none().then_some(status))
    }
}
