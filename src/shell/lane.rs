//! A lane: one connection with one channel on which a small POSIX shell loop stays resident; one
//! request, one framed answer, one round trip.
//!
//! A lane knows nothing of files. Where anything surprises it, it is broken and must be dropped;
//! it never tries to get back into step.

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

/// The first byte of a frame. SCP has no record and no reply that begins with it.
pub(crate) const FRAME_START: u8 = 0x1e;

/// How much a login may print before the lane begins.
const MAX_NOISE: usize = 16 << 20;

/// How much of that is kept for an error message.
const KEPT_NOISE: usize = 2048;

/// The largest answer: the attributes of some hundred files, or what a program complained of, take
/// a tenth of that.
const MAX_ANSWER: usize = 1 << 20;

/// How much of an answer that is used while it arrives may wait to be used: what programs complained
/// of while they listed a large directory of which much was removed.
const MAX_UNUSED: usize = 16 << 20;

/// The largest answer that has content in it: that of a file whose size says nothing.
pub(crate) const MAX_CONTENT: usize = 512 << 20;

/// How much is read at a time.
const READ_SIZE: usize = 256 << 10;

/// A lane that stands between two requests, or is broken.
#[derive(Debug)]
pub struct Lane {
    channel: Box<dyn Channel>,
    connection: Box<dyn Connection>,
    /// Hexadecimal, random for this lane: what a host's files hold cannot forge a frame.
    token: Vec<u8>,
    /// Separates the records of a listing; programs of the host have it in their arguments.
    listing_mark: Vec<u8>,
    /// `FRAME_START` and the token.
    frame: Vec<u8>,
    /// Bytes that were read and not yet used begin at `start`.
    buf: Vec<u8>,
    start: usize,
    /// Where a read puts what it got.
    scratch: Box<[u8]>,
    is_broken: bool,
    last_used: Tick,
    /// The line that ends this lane's shell from another lane; empty until the shell has told its
    /// number.
    kill_line: Vec<u8>,
    /// The helper functions that are sent before the first request; empty when they are sent.
    unsent_helpers: Vec<u8>,
    /// The bytes to send before the next line.
    preceding: Vec<u8>,
}

/// What a helper printed, and the status it ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u32,
    pub body: Vec<u8>,
}

/// Why a lane could not be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Transport(#[from] ssh::Error),
    /// The request was sent; whether it was carried out is not known.
    #[error("lost the host while waiting for its answer")]
    NoAnswer(#[source] ssh::Error),
    #[error(
        "the host did not start a shell{}; it may allow no commands at all, or only scp",
        quoted(.noise)
    )]
    NoShell { noise: Vec<u8> },
    #[error("the host's answer makes no sense: {detail}")]
    UnexpectedReply { detail: String },
    #[error("the host's answer makes no sense: it does not end within {max} bytes")]
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

impl pool::Lent<Lane> {
    /// As [`Lane::request`]; has the pool know how long a short answer took.
    pub fn request(&mut self, line: &[u8]) -> Result<Answer, Error> {
        let since = self.tick();
        let answer = self.deref_mut().request(line)?;
        let took = self.tick().saturating_sub(since);
        self.note_answer(answer.body.len(), took);
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

impl Lane {
    /// Opens a connection, waits for the resident shell and gives it its helper functions.
    ///
    /// `helpers` are lines of shell without comments, see `shell::tools`.
    pub fn open(
        transport: &dyn Transport,
        helpers: &Helpers,
        timeout: Duration,
        clock: &dyn Clock,
    ) -> Result<Self, Error> {
        let mut connection = transport.connect()?;
        let token = random_token()?;
        // Everybody on the host can read a command line, so that the token is not in it.
        let greeting = random_token()?;
        let mark = [&[FRAME_START][..], &greeting, b"\n"].concat();
        // The mark is written as an escape, so that a login shell that echoes its command does
        // not print it. The login shell itself may be csh or fish: between the quotes there is
        // neither a quote nor `!` nor a newline.
        let command = format!(
            "exec sh -c 'printf \"\\036{}\\n\"; while IFS= read -r line; do eval \"$line\"; done'",
            String::from_utf8_lossy(&greeting)
        );
        let channel = connection.exec(&command)?;
        let frame = [&[FRAME_START][..], &token].concat();
        let mut lane = Self {
            channel,
            connection,
            token,
            listing_mark: random_token()?,
            frame,
            buf: Vec::new(),
            start: 0,
            scratch: vec![0; READ_SIZE].into_boxed_slice(),
            is_broken: true,
            last_used: Tick::ZERO,
            kill_line: Vec::new(),
            unsent_helpers: Vec::new(),
            preceding: Vec::new(),
        };
        lane.channel.set_timeout(timeout);
        lane.skip_noise(&mark, timeout, clock)?;
        lane.channel.discard_stderr()?;
        let preamble = lane.preamble(&helpers.at_start);
        let answer = lane.request(&preamble)?;
        let pid = std::str::from_utf8(answer.body.trim_ascii()).ok();
        if let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) {
            let word = String::from_utf8_lossy(&greeting);
            lane.kill_line = format!("kill_shell {pid} {word}; ").into_bytes();
        }
        lane.unsent_helpers = lane.definitions(&helpers.with_first_request, "");
        Ok(lane)
    }

    /// Reads what a login prints until the shell's mark. Nothing is sent before that, so that a
    /// login script that reads its input gets nothing of ours. Noise is no progress: it may go on
    /// for `timeout` in all.
    fn skip_noise(
        &mut self,
        mark: &[u8],
        timeout: Duration,
        clock: &dyn Clock,
    ) -> Result<(), Error> {
        let since = clock.tick();
        let mut n_skipped = 0;
        loop {
            if let Some(at) = memchr::memmem::find(&self.buf, mark) {
                self.start = at + mark.len();
                return Ok(());
            }
            // A mark may lie across two reads.
            let keep = KEPT_NOISE.max(mark.len());
            if self.buf.len() > keep {
                let cut = self.buf.len() - keep;
                self.buf.drain(..cut);
                n_skipped += cut;
            }
            let no_shell = |lane: &Self| Error::NoShell {
                noise: lane.buf.clone(),
            };
            if n_skipped > MAX_NOISE || clock.tick().saturating_sub(since) > timeout {
                return Err(no_shell(self));
            }
            match self.read_more() {
                Ok(()) => {}
                Err(ssh::Error::Closed { .. }) => return Err(no_shell(self)),
                // Words without a shell behind them (a menu, a prompt) are worth showing.
                Err(ssh::Error::Timeout { .. }) if !self.buf.is_empty() => {
                    return Err(no_shell(self));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The lines that define the helper functions, read by a loop because the resident loop
    /// takes one line at a time.
    fn preamble(&self, helpers: &[u8]) -> Vec<u8> {
        let token = String::from_utf8_lossy(&self.token);
        let mark = String::from_utf8_lossy(&self.listing_mark);
        let variables = format!(
            "token={token}; listing_mark={mark}; newline=$(printf '\\n.'); newline=${{newline%.}}\n"
        );
        let definitions = self.definitions(helpers, "printf '%s\\n' $$; answer 0");
        [variables.into_bytes(), definitions].concat()
    }

    /// Returns `helpers` behind a loop that reads all of them, up to the token, and runs them at
    /// once; then `command` is run.
    fn definitions(&self, helpers: &[u8], command: &str) -> Vec<u8> {
        let start = format!(
            "helpers=; while IFS= read -r line; do case $line in \"$token\") break;; esac; \
             helpers=$helpers$line$newline; done; eval \"$helpers\"; helpers=; {command}\n"
        );
        [start.as_bytes(), helpers, &self.token, b"\n"].concat()
    }

    /// Sends one line, its newline included, and waits for its answer: one round trip.
    pub fn request(&mut self, line: &[u8]) -> Result<Answer, Error> {
        self.send(line)?;
        self.answer()
    }

    /// Sends bytes. From here until its answer is read, the lane counts as broken.
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

    /// Reads the rest of the answer: all up to and with its frame, behind which is nothing.
    pub(crate) fn answer(&mut self) -> Result<Answer, Error> {
        let answer = self.frame()?;
        self.rest_is_none()?;
        Ok(answer)
    }

    /// As [`Self::request`], for an answer of up to `max` bytes.
    pub(crate) fn request_long(&mut self, line: &[u8], max: usize) -> Result<Answer, Error> {
        self.send(line)?;
        let answer = self.frame_within(max)?;
        self.rest_is_none()?;
        Ok(answer)
    }

    /// As [`Self::request`], for an answer of any length that is used while it arrives.
    ///
    /// `take` is given what is here of it and returns how many bytes it has used; what it leaves
    /// until the end is the answer's body. Where it returns `None` the lane is given up.
    pub(crate) fn request_records(
        &mut self,
        line: &[u8],
        take: &mut dyn FnMut(&[u8]) -> Option<usize>,
    ) -> Result<Answer, Error> {
        self.send(line)?;
        loop {
            let (n_safe, is_whole) = self.before_frame();
            let Some(used) = take(&self.unread()[..n_safe]) else {
                return Err(self.surprise("it is not what was asked for"));
            };
            self.consume(used);
            if is_whole {
                return self.answer();
            }
            if self.unread().len() > MAX_UNUSED {
                return Err(Error::TooLong { max: MAX_UNUSED });
            }
            self.read_more().map_err(Error::NoAnswer)?;
        }
    }

    /// Says that the frame just read was the last: the lane stands between two requests.
    pub(crate) fn rest_is_none(&mut self) -> Result<(), Error> {
        if !self.unread().is_empty() {
            return Err(self.surprise("something follows it"));
        }
        if self.buf.capacity() > MAX_ANSWER {
            // A lane may live long, and such an answer be rare.
            self.buf = Vec::new();
        }
        self.buf.clear();
        self.start = 0;
        self.is_broken = false;
        Ok(())
    }

    /// Reads all up to and with the next frame; more of the answer may follow.
    pub(crate) fn frame(&mut self) -> Result<Answer, Error> {
        self.frame_within(MAX_ANSWER)
    }

    fn frame_within(&mut self, max: usize) -> Result<Answer, Error> {
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
        self.start += at + self.frame.len();
        // A status is at most three digits.
        let end = loop {
            let tail = self.unread();
            match memchr::memchr(b'\n', tail) {
                Some(end) if end <= 4 => break end,
                None if tail.len() <= 4 => self.read_more().map_err(Error::NoAnswer)?,
                _ => return Err(self.surprise("bad status")),
            }
        };
        let status = std::str::from_utf8(&self.unread()[..end]).ok();
        let digits = status
            .and_then(|status| status.strip_prefix(' '))
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let Some(status) = digits.and_then(|digits| digits.parse().ok()) else {
            return Err(self.surprise("bad status"));
        };
        self.start += end + 1;
        Ok(Answer { status, body })
    }

    /// Returns how much of [`Lane::unread`] lies before the next frame for sure, and whether that
    /// frame begins behind it.
    pub(crate) fn before_frame(&self) -> (usize, bool) {
        let unread = self.unread();
        match memchr::memmem::find(unread, &self.frame) {
            Some(at) => (at, true),
            None => (unread.len().saturating_sub(self.frame.len() - 1), false),
        }
    }

    /// Returns what was read and not used.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.buf[self.start..]
    }

    /// Marks the first bytes of [`Lane::unread`] as used.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start += n;
        if self.start == self.buf.len() {
            self.buf.clear();
            self.start = 0;
        }
    }

    /// Waits for more output and adds it to [`Lane::unread`].
    pub(crate) fn read_more(&mut self) -> Result<(), ssh::Error> {
        if self.start > 0 {
            self.buf.drain(..self.start);
            self.start = 0;
        }
        let n = self.channel.read(&mut self.scratch)?;
        self.buf.extend_from_slice(&self.scratch[..n]);
        match n {
            0 => Err(ssh::Error::Closed {
                act: "waiting for the host",
            }),
            _ => Ok(()),
        }
    }

    /// Returns whether the unread output begins with a frame.
    pub(crate) fn is_at_frame(&self) -> bool {
        self.unread().first() == Some(&FRAME_START)
    }

    pub(crate) fn surprise(&mut self, detail: &str) -> Error {
        self.is_broken = true;
        Error::UnexpectedReply {
            detail: format!("{detail}; it goes on with `{}`", Excerpt(self.unread())),
        }
    }

    /// Returns the random word that separates the records of this lane's listings.
    pub fn listing_mark(&self) -> &[u8] {
        &self.listing_mark
    }

    /// Returns whether the lane is out of step and can only be dropped.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Says that the lane can only be dropped.
    pub(crate) fn set_broken(&mut self) {
        self.is_broken = true;
    }

    pub(crate) fn banner(&self) -> &str {
        self.connection.banner()
    }
}

impl Pooled for Lane {
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
