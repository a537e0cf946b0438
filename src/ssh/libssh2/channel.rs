//! A channel: one command on a connection.

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

/// The receive window: how many bytes the host may send before we read them. A larger window is
/// slower on fast networks, because libssh2 searches its whole queue of packets.
const WINDOW_BYTES: u32 = 4 << 20;
const PACKET_BYTES: u32 = 32_768;

/// How much output `finish` discards before it fails.
const MAX_DISCARDED_BYTES: usize = 64 << 20;

/// How long freeing a channel may wait for the host to close it.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(250);

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

    /// Processes received packets without blocking and without consuming output. The session must
    /// be non-blocking.
    pub(super) fn process_incoming(&self) -> Result<(), ssh2::Error> {
        match self.handle().wait_eof() {
            Err(err) if is_again(&err) => Ok(()),
            other => other,
        }
    }

    /// Returns another handle for the channel.
    // INVARIANT: each handle is dropped before `self`, so that only `Drop` frees the channel.
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
        self.wire.set_timeout(CLOSE_TIMEOUT);
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

    /// Writes all of `data` with a non-blocking session; fails at once if the command has ended.
    ///
    /// A blocking write of libssh2 would wait for window space until the timeout, even if the end
    /// of the channel has been received (1.11.2 channel.c `ssh2_channel_write()` checks only the
    /// window).
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
                    // Other calls on the session are allowed only between two packets.
                    let is_between_packets = channel.write_window().remaining == 0;
                    if is_between_packets && self.has_ended(&mut channel, ACT)? {
                        return Err(Error::Closed { act: ACT });
                    }
                    let waited = clock.tick().since(progress_at);
                    self.wait_for_socket(ACT, self.timeout.saturating_sub(waited))?;
                }
                // The crate's io::Error does not contain libssh2's error code; the session does.
                Err(_) => return Err(self.error(ACT, None)),
            }
        }
        Ok(())
    }

    /// Returns whether the end of the command's output was received; some output may still be
    /// unread.
    fn has_ended(&self, channel: &mut ssh2::Channel, act: &'static str) -> Result<bool, Error> {
        match channel.wait_eof() {
            Ok(()) => Ok(true),
            Err(err) if is_again(&err) => Ok(false),
            Err(err) => Err(self.error(act, Some(err))),
        }
    }

    /// Waits until the socket is ready for the direction in which libssh2 is blocked.
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
        // The crate's io::Error does not contain libssh2's error code; the session does.
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
            .map_err(|err| self.error("discarding standard error", Some(err)))
    }

    fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
        self.open.wire.set_timeout(timeout);
    }

    fn finish(mut self: Box<Self>) -> Result<Option<i32>, Error> {
        const ACT: &str = "waiting for a command to end";
        let mut channel = self.open.handle();
        match channel.send_eof().map_err(|err| self.error(ACT, Some(err))) {
            // The command has ended, or its input was closed already.
            Ok(()) | Err(Error::Closed { .. }) => {}
            Err(err) => return Err(err),
        }
        let mut buf = vec![0; 64 << 10];
        let mut n_discarded = 0;
        loop {
            match self.read(&mut buf)? {
                0 => break,
                n_bytes => n_discarded += n_bytes,
            }
            if n_discarded > MAX_DISCARDED_BYTES {
                let detail = "its output does not end".to_owned();
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
        // Status 0 may also mean that the server closed the channel without a status: ssh2 does not
        // expose libssh2_channel_has_exit_status().
        Ok(signal.exit_signal.is_none().then_some(status))
    }
}
