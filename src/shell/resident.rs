//! A resident shell: one connection with one channel, on which a POSIX shell reads and executes one
//! line after another. Each request gets one framed answer: one round trip.
//!
//! This module knows nothing of files. After an unexpected reply the resident shell is broken and
//! must be dropped; there is no resynchronization.

use std::ops::DerefMut as _;
use std::time::Duration;

use crate::clock::Clock;
use crate::clock::Tick;
use crate::error_chain;
use crate::path::Excerpt;
use crate::pool;
use crate::pool::OpenError;
use crate::pool::Pooled;
use crate::shell::tools::Helpers;
use crate::ssh;
use crate::ssh::Aborter;
use crate::ssh::Channel;
use crate::ssh::Connection;
use crate::ssh::Transport;
use crate::ssh::output::Output;

/// The first byte of a frame. No record and no reply of SCP begins with it.
pub(crate) const FRAME_START: u8 = 0x1e;

/// The maximum output of a login before the resident shell starts.
const MAX_NOISE: usize = 16 << 20;

/// How much of that output an error message contains.
const KEPT_NOISE: usize = 2048;

/// An answer may be longer than its limit by what one read brings.
const READ_SLACK: usize = 1 << 20;

/// The maximum size of an answer. The attributes of some hundred files, or the error messages of a
/// program, take a tenth of it.
const MAX_ANSWER: usize = 1 << 20;

/// The maximum number of unused bytes of an answer that is parsed while it arrives: error messages
/// from the listing of a large directory of which much was removed.
const MAX_UNUSED: usize = 16 << 20;

/// The maximum size of an answer that is content: of a file whose size is not known before.
pub(crate) const MAX_CONTENT: usize = 512 << 20;

/// A resident shell and its connection. It waits for a request, or is broken.
#[derive(Debug)]
pub struct ResidentShell {
    channel: Box<dyn Channel>,
    connection: Box<dyn Connection>,
    /// Hexadecimal and random, so that no content on the host can forge a frame.
    token: Vec<u8>,
    /// Separates the records of a listing. Unlike the token it is an argument of programs.
    listing_mark: Vec<u8>,
    /// `FRAME_START` and the token.
    frame: Vec<u8>,
    output: Output,
    is_broken: bool,
    /// How long an answer may take without progress.
    timeout: Duration,
    last_used: Tick,
    /// The line by which another resident shell kills this one; empty until its PID is known.
    kill_line: Vec<u8>,
    /// The helper functions to send before the first request; empty afterwards.
    unsent_helpers: Vec<u8>,
    /// The bytes to send before the next request.
    preceding: Vec<u8>,
}

/// The output of a helper function and its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u32,
    pub body: Vec<u8>,
}

/// Why a resident shell could not be started or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Transport(#[from] ssh::Error),
    /// The request was sent; its outcome is unknown.
    #[error("lost the host while waiting for its answer")]
    NoAnswer(#[source] ssh::Error),
    #[error(
        "the host did not start a shell{}; it may allow no commands at all, or only scp",
        quoted(.noise)
    )]
    NoShell { noise: Vec<u8> },
    #[error("unexpected answer of the host: {detail}")]
    UnexpectedReply { detail: String },
    #[error("unexpected answer of the host: it does not end within {max} bytes")]
    TooLong { max: usize },
    #[error("cannot get random numbers: {0}")]
    Random(String),
}

impl From<Error> for OpenError {
    fn from(error: Error) -> Self {
        match error {
            Error::Transport(error) => Self::Ssh(error),
            error => Self::Dialect {
                detail: error_chain::with_causes(&error),
                timeout: match error {
                    Error::NoAnswer(ssh::Error::Timeout { timeout, .. }) => Some(timeout),
                    _ => None,
                },
            },
        }
    }
}

impl pool::Lent<ResidentShell> {
    /// Sends a request as [`ResidentShell::request_long`] does, for an answer that is complete within
    /// `limit`. On an error the resident shell is broken.
    pub(crate) fn request_within(
        &mut self,
        line: &[u8],
        max: usize,
        limit: Duration,
    ) -> Result<Answer, Error> {
        self.send(line)?;
        self.answer_within(max, limit, true)
    }

    /// Reads the next answer, of at most `max` bytes, which must be complete within `limit`. Unless
    /// `is_last`, answers to further requests follow. On an error the resident shell is broken.
    pub(crate) fn answer_within(
        &mut self,
        max: usize,
        limit: Duration,
        is_last: bool,
    ) -> Result<Answer, Error> {
        let usual = self.timeout;
        let limit = limit.min(usual);
        let since = self.tick();
        let mut n_seen = 0;
        while !self.has_frame_after(n_seen) {
            let left = limit.saturating_sub(self.tick().since(since));
            if left.is_zero() {
                let (act, timeout) = ("waiting for the host", limit);
                return Err(Error::NoAnswer(ssh::Error::Timeout { act, timeout }));
            }
            n_seen = self.unread().len();
            if n_seen > max {
                return Err(Error::TooLong { max });
            }
            self.channel.set_timeout(left);
            self.read_more().map_err(Error::NoAnswer)?;
        }
        self.channel.set_timeout(usual);
        let answer = self.read_frame_within(max.saturating_add(READ_SLACK))?;
        if is_last {
            self.expect_end_of_answer()?;
        }
        Ok(answer)
    }

    /// Sends a request as [`ResidentShell::request`] does, and reports the duration of a short
    /// answer to the pool. The first request is not measured, because helper functions go with it.
    pub fn request(&mut self, line: &[u8]) -> Result<Answer, Error> {
        let is_first = !self.unsent_helpers.is_empty();
        let since = self.tick();
        let answer = self.deref_mut().request(line)?;
        let took = self.tick().since(since);
        if !is_first {
            self.note_answer(answer.body.len(), took);
        }
        Ok(answer)
    }
}

fn quoted(noise: &[u8]) -> String {
    let noise = noise.trim_ascii();
    if noise.is_empty() {
        " and said nothing".to_owned()
    } else {
        format!(" but said: {}", Excerpt(noise))
    }
}

impl ResidentShell {
    /// Opens a connection, starts the resident shell and sends it the first part of its helper
    /// functions.
    ///
    /// Blocks for at most `timeout` for each answer of the host.
    ///
    /// # Errors
    ///
    /// `NoShell` if the host executes no commands, otherwise the error of the connection.
    pub fn open(
        transport: &dyn Transport,
        helpers: &Helpers,
        timeout: Duration,
        clock: &dyn Clock,
    ) -> Result<Self, Error> {
        let mut connection = transport.connect()?;
        let token = random_token()?;
        // Other users of the host can read command lines, so the token is not in this one.
        let greeting = random_token()?;
        let mark = [&[FRAME_START][..], &greeting, b"\n"].concat();
        // The mark is written as an escape sequence, so that a login shell that echoes its command
        // does not print it. The login shell may be csh or fish: between the quotes there is no
        // quote, no `!` and no newline.
        let command = format!(
            "exec sh -c 'printf \"\\036{}\\n\"; while IFS= read -r line; do eval \"$line\"; done'",
            String::from_utf8_lossy(&greeting)
        );
        let channel = connection.exec(&command)?;
        let frame = [&[FRAME_START][..], &token].concat();
        let mut resident = Self {
            channel,
            connection,
            token,
            listing_mark: random_token()?,
            frame,
            output: Output::new(),
            is_broken: true,
            timeout,
            last_used: Tick::ZERO,
            kill_line: Vec::new(),
            unsent_helpers: Vec::new(),
            preceding: Vec::new(),
        };
        resident.channel.set_timeout(timeout);
        resident.skip_noise(&mark, timeout, clock)?;
        resident.channel.discard_stderr()?;
        let preamble = resident.preamble(&helpers.at_start);
        let answer = resident.request(&preamble)?;
        let pid = std::str::from_utf8(answer.body.trim_ascii()).ok();
        if let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) {
            let word = String::from_utf8_lossy(&greeting);
            resident.kill_line = format!("kill_shell {pid} {word}; ").into_bytes();
        }
        resident.unsent_helpers = resident.definitions(&helpers.with_first_request, "");
        Ok(resident)
    }

    /// Skips the output of the login, up to the mark. Nothing is sent before, so that a login
    /// script that reads its input gets none of ours. Output does not extend the deadline: all of
    /// it must arrive within `timeout`.
    fn skip_noise(
        &mut self,
        mark: &[u8],
        timeout: Duration,
        clock: &dyn Clock,
    ) -> Result<(), Error> {
        let since = clock.tick();
        let mut n_skipped = 0;
        loop {
            if let Some(at) = memchr::memmem::find(self.unread(), mark) {
                self.consume(at + mark.len());
                return Ok(());
            }
            // A mark may be split between two reads.
            let keep = KEPT_NOISE.max(mark.len());
            let cut = self.unread().len().saturating_sub(keep);
            self.consume(cut);
            n_skipped += cut;
            let no_shell = |resident: &Self| Error::NoShell {
                noise: resident.unread().to_vec(),
            };
            if n_skipped > MAX_NOISE || clock.tick().since(since) > timeout {
                return Err(no_shell(self));
            }
            match self.read_more() {
                Ok(()) => {}
                Err(ssh::Error::Closed { .. }) => return Err(no_shell(self)),
                // Output without a shell (a menu, a prompt) belongs into the error message.
                Err(ssh::Error::Timeout { .. }) if !self.unread().is_empty() => {
                    return Err(no_shell(self));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns the first request: it assigns the variables, defines `helpers` and answers with the
    /// PID.
    fn preamble(&self, helpers: &[u8]) -> Vec<u8> {
        let token = String::from_utf8_lossy(&self.token);
        let mark = String::from_utf8_lossy(&self.listing_mark);
        let variables = format!(
            "token={token}; listing_mark={mark}; newline=$(printf '\\n.'); newline=${{newline%.}}\n"
        );
        let definitions = self.definitions(helpers, "printf '%s\\n' $$; answer 0");
        [variables.into_bytes(), definitions].concat()
    }

    /// Returns `helpers` after a loop that reads them up to the token and executes them at once,
    /// because the resident shell executes single lines. After that it executes `command`.
    fn definitions(&self, helpers: &[u8], command: &str) -> Vec<u8> {
        let start = format!(
            "helpers=; while IFS= read -r line; do case $line in \"$token\") break;; esac; \
             helpers=$helpers$line$newline; done; eval \"$helpers\"; helpers=; {command}\n"
        );
        [start.as_bytes(), helpers, &self.token, b"\n"].concat()
    }

    /// Sends one line, which ends with a newline, and waits for its answer: one round trip.
    ///
    /// # Errors
    ///
    /// `Transport` if the connection broke while the request was sent, `NoAnswer` if it broke later.
    /// On any error the resident shell is broken.
    pub fn request(&mut self, line: &[u8]) -> Result<Answer, Error> {
        self.send(line)?;
        self.read_answer()
    }

    /// Sends bytes. The resident shell counts as broken until the answer is read.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.is_broken = true;
        if self.preceding.is_empty() && self.unsent_helpers.is_empty() {
            self.channel.write_all(bytes)?;
        } else {
            let all = [&self.unsent_helpers, &self.preceding, bytes].concat();
            self.channel.write_all(&all)?;
            self.unsent_helpers = Vec::new();
            self.preceding.clear();
        }
        Ok(())
    }

    /// Reads an answer and its frame, which must be the last.
    pub(crate) fn read_answer(&mut self) -> Result<Answer, Error> {
        let answer = self.read_frame()?;
        self.expect_end_of_answer()?;
        Ok(answer)
    }

    /// Sends a request as [`Self::request`] does, for an answer of at most `max` bytes.
    pub(crate) fn request_long(&mut self, line: &[u8], max: usize) -> Result<Answer, Error> {
        self.send(line)?;
        let answer = self.read_frame_within(max)?;
        self.expect_end_of_answer()?;
        Ok(answer)
    }

    /// Sends a request as [`Self::request`] does, for an answer of any length that is parsed while
    /// it arrives.
    ///
    /// `take` gets the unused bytes and returns how many of them it has used, or `None` to reject
    /// the answer, which breaks the resident shell. The bytes that are unused in the end are the
    /// body of the answer.
    pub(crate) fn request_records(
        &mut self,
        line: &[u8],
        take: &mut dyn FnMut(&[u8]) -> Option<usize>,
    ) -> Result<Answer, Error> {
        self.send(line)?;
        loop {
            let (n_safe, is_whole) = self.before_frame();
            let Some(used) = take(&self.unread()[..n_safe]) else {
                return Err(self.unexpected_reply("it is not what was asked for"));
            };
            self.consume(used);
            if is_whole {
                return self.read_answer();
            }
            if self.unread().len() > MAX_UNUSED {
                return Err(Error::TooLong { max: MAX_UNUSED });
            }
            self.read_more().map_err(Error::NoAnswer)?;
        }
    }

    /// Notes that the last frame of an answer was read: the resident shell waits for a request
    /// again.
    ///
    /// # Errors
    ///
    /// More output has arrived.
    pub(crate) fn expect_end_of_answer(&mut self) -> Result<(), Error> {
        if !self.unread().is_empty() {
            return Err(self.unexpected_reply("something follows it"));
        }
        // A resident shell may live long, and large answers are rare.
        self.output.shrink(MAX_ANSWER);
        self.is_broken = false;
        Ok(())
    }

    /// Reads up to the end of the next frame; more of the answer may follow.
    pub(crate) fn read_frame(&mut self) -> Result<Answer, Error> {
        self.read_frame_within(MAX_ANSWER)
    }

    fn read_frame_within(&mut self, max: usize) -> Result<Answer, Error> {
        let mut searched = 0;
        let at = loop {
            let unread = self.unread();
            if let Some(at) = memchr::memmem::find(&unread[searched..], &self.frame) {
                break searched + at;
            }
            searched = unread.len().saturating_sub(self.frame.len());
            if unread.len() > max {
                return Err(Error::TooLong { max });
            }
            self.read_more().map_err(Error::NoAnswer)?;
        };
        let body = self.unread()[..at].to_vec();
        self.consume(at + self.frame.len());
        // A status has at most three digits.
        let end = loop {
            let tail = self.unread();
            match memchr::memchr(b'\n', tail) {
                Some(end) if end <= 4 => break end,
                None if tail.len() <= 4 => self.read_more().map_err(Error::NoAnswer)?,
                _ => return Err(self.unexpected_reply("bad status")),
            }
        };
        let status = std::str::from_utf8(&self.unread()[..end]).ok();
        let digits = status
            .and_then(|status| status.strip_prefix(' '))
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let Some(status) = digits.and_then(|digits| digits.parse().ok()) else {
            return Err(self.unexpected_reply("bad status"));
        };
        self.consume(end + 1);
        Ok(Answer { status, body })
    }

    /// Returns whether a frame begins in [`Self::unread`], of which the first `n_seen` bytes were looked
    /// at before.
    fn has_frame_after(&self, n_seen: usize) -> bool {
        let begin = n_seen.saturating_sub(self.frame.len());
        let rest = self.unread().get(begin..).unwrap_or_default();
        memchr::memmem::find(rest, &self.frame).is_some()
    }

    /// Returns how many bytes of [`Self::unread`] certainly precede the next frame, and whether
    /// that frame follows them.
    pub(crate) fn before_frame(&self) -> (usize, bool) {
        let unread = self.unread();
        match memchr::memmem::find(unread, &self.frame) {
            Some(at) => (at, true),
            None => (unread.len().saturating_sub(self.frame.len() - 1), false),
        }
    }

    /// Returns the bytes that were read and not used.
    pub(crate) fn unread(&self) -> &[u8] {
        self.output.unread()
    }

    /// Marks the first `n` bytes of [`Self::unread`] as used.
    pub(crate) fn consume(&mut self, n: usize) {
        self.output.consume(n);
    }

    /// Waits for more output and appends it to [`Self::unread`]. Blocks for at most the timeout.
    pub(crate) fn read_more(&mut self) -> Result<(), ssh::Error> {
        match self.output.read_from(&mut *self.channel)? {
            0 => Err(ssh::Error::Closed {
                act: "waiting for the host",
            }),
            _ => Ok(()),
        }
    }

    /// Returns whether the unused output begins with a frame.
    pub(crate) fn is_at_frame(&self) -> bool {
        self.unread().first() == Some(&FRAME_START)
    }

    /// Marks this as broken and returns the error, which quotes the unused output.
    pub(crate) fn unexpected_reply(&mut self, detail: &str) -> Error {
        self.is_broken = true;
        Error::UnexpectedReply {
            detail: format!("{detail}; it goes on with `{}`", Excerpt(self.unread())),
        }
    }

    /// Returns the random word that separates the records of listings.
    pub fn listing_mark(&self) -> &[u8] {
        &self.listing_mark
    }

    /// Returns whether this can only be dropped.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Marks this as broken: it can only be dropped.
    pub(crate) fn set_broken(&mut self) {
        self.is_broken = true;
    }

    /// Returns the identification string of the SSH server.
    pub(crate) fn banner(&self) -> &str {
        self.connection.banner()
    }
}

impl Pooled for ResidentShell {
    fn is_broken(&self) -> bool {
        self.is_broken
    }

    fn last_used(&self) -> Tick {
        self.last_used
    }

    fn set_last_used(&mut self, now: Tick) {
        self.last_used = now;
    }

    fn keepalive(&mut self) -> Result<(), ssh::Error> {
        self.connection.keepalive()
    }

    fn answers(&mut self) -> bool {
        self.request(b"answer 0\n").is_ok()
    }

    fn aborter(&self) -> Aborter {
        self.connection.aborter()
    }

    fn kill_line(&self) -> &[u8] {
        &self.kill_line
    }

    fn send_before_next(&mut self, lines: Vec<u8>) {
        self.preceding = lines;
    }

    fn has_sent_queued(&self) -> bool {
        self.preceding.is_empty()
    }
}

fn random_token() -> Result<Vec<u8>, Error> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| Error::Random(error.to_string()))?;
    Ok(bytes
        .iter()
        .flat_map(|byte| format!("{byte:02x}").into_bytes())
        .collect())
}
