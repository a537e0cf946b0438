//! The sending side: what we send to a host's `scp -t`.

#![warn(clippy::indexing_slicing)]

use std::collections::VecDeque;

use crate::scp::record::MAX_LINE;
use crate::scp::record::ParseError;
use crate::scp::record::Record;
use crate::stat::Time;

/// Whether content may follow its C record at once.
///
/// If a sink refuses a C record it stays in its record loop and reads what follows as records:
/// content would be parsed as protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ahead {
    /// Content waits for the acknowledgement of its C record.
    Never,
    /// Content may go at once. Safe only when the command was `scp -t` without `-r` to one
    /// explicit path that is not a directory: every record that content could forge then names
    /// that same path. Directories cannot be sent in this mode.
    ToOneFile,
}

/// What a reply of the host answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The sink is ready.
    Ready,
    Times,
    /// The C record: the file could be opened.
    File,
    /// The content and its status byte: the file is written.
    Content,
    /// The D record.
    Directory,
    /// The E record.
    End,
}

/// A reply of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Done(Step),
    /// The host could not do this step; the connection stays in step.
    Refused(Step, Vec<u8>),
    /// The host ended the transfer.
    Fatal(Vec<u8>),
}

/// State machine of the sending side: queue records with its methods, send
/// [`Source::take_output`], feed what comes back to [`Source::step`].
///
/// Every record that was queued is answered by exactly one reply, in order; a host that sends
/// more than one for a step (CVE-2020-12062) is caught when nothing is left to be answered.
#[derive(Debug)]
pub struct Source {
    ahead: Ahead,
    awaited: VecDeque<Step>,
    line: Vec<u8>,
    in_line: bool,
    /// Content bytes that are still owed for the last C record.
    owed: u64,
    out: Vec<u8>,
    dead: bool,
}

impl Source {
    pub fn new(ahead: Ahead) -> Self {
        Self {
            ahead,
            awaited: VecDeque::from([Step::Ready]),
            line: Vec::new(),
            in_line: false,
            owed: 0,
            out: Vec::new(),
            dead: false,
        }
    }

    /// Takes the bytes that are to be sent to the host.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Returns how many replies are still to come.
    pub fn n_awaited(&self) -> usize {
        self.awaited.len()
    }

    /// Queues a T record for the next file or directory.
    pub fn times(&mut self, mtime: Time, atime: Time) {
        self.queue(&Record::Times { mtime, atime }, Step::Times);
    }

    /// Queues a C record. Its content follows by [`Source::content`], exactly `size` bytes.
    pub fn file(&mut self, mode: u32, size: u64, name: &[u8]) {
        self.queue(
            &Record::File {
                mode,
                size,
                name: name.to_vec(),
            },
            Step::File,
        );
        self.owed = size;
    }

    /// Returns whether content may be sent now.
    pub fn may_send_content(&self) -> bool {
        self.ahead == Ahead::ToOneFile || self.awaited.is_empty()
    }

    /// Counts `len` bytes of content that the caller is about to send.
    ///
    /// Returns false, and counts nothing, if they are more than the C record announced or come too
    /// early; the caller must not send them then.
    #[must_use]
    pub fn content(&mut self, len: u64) -> bool {
        if !self.may_send_content() || len > self.owed || self.dead {
            return false;
        }
        self.owed -= len;
        true
    }

    /// Queues the status byte after the last byte of content.
    ///
    /// With `Err(text)` the host learns that the content is not good; it must still have got all
    /// the announced bytes, or it would take the text for content.
    pub fn end_file(&mut self, status: Result<(), &[u8]>) {
        match status {
            Ok(()) => self.out.push(0),
            Err(text) => Record::Warning(text.to_vec()).encode(&mut self.out),
        }
        self.awaited.push_back(Step::Content);
    }

    /// Queues a D record; what follows is in it until [`Source::end`]. Nothing in
    /// [`Ahead::ToOneFile`] mode, where a directory must not be sent.
    pub fn directory(&mut self, mode: u32, name: &[u8]) {
        if self.ahead == Ahead::Never {
            self.queue(
                &Record::Directory {
                    mode,
                    name: name.to_vec(),
                },
                Step::Directory,
            );
        }
    }

    /// Queues an E record: ends a directory, or at the top the whole transfer.
    pub fn end(&mut self) {
        self.queue(&Record::End, Step::End);
    }

    fn queue(&mut self, record: &Record, step: Step) {
        record.encode(&mut self.out);
        self.awaited.push_back(step);
    }

    /// Uses up some of `input` and says how much, and which reply it was.
    ///
    /// # Errors
    /// A reply came that nothing asked for, or one of absurd length.
    pub fn step(&mut self, input: &[u8]) -> Result<(usize, Option<Reply>), ParseError> {
        let Some(&first) = input.first() else {
            return Ok((0, None));
        };
        if self.dead {
            return Ok((0, None));
        }
        if !self.in_line {
            let Some(&step) = self.awaited.front() else {
                self.dead = true;
                return Err(ParseError::UnexpectedReply(first));
            };
            if first == 0 {
                self.awaited.pop_front();
                return Ok((1, Some(Reply::Done(step))));
            }
            self.in_line = true;
        }
        let end = memchr::memchr(b'\n', input);
        let part = input.get(..end.unwrap_or(input.len())).unwrap_or_default();
        if self.line.len() + part.len() > MAX_LINE {
            self.dead = true;
            return Err(ParseError::LineTooLong);
        }
        self.line.extend_from_slice(part);
        let Some(end) = end else {
            return Ok((input.len(), None));
        };
        self.in_line = false;
        let line = std::mem::take(&mut self.line);
        let step = self.awaited.pop_front().unwrap_or(Step::Ready);
        let reply = match line.split_first() {
            Some((1, text)) => Reply::Refused(step, text.to_vec()),
            Some((2, text)) => Reply::Fatal(text.to_vec()),
            // OpenSSH 9.2 scp.c response(): any other byte is the first of a fatal message.
            _ => Reply::Fatal(line),
        };
        self.dead = matches!(reply, Reply::Fatal(_));
        Ok((end + 1, Some(reply)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTIME: Time = Time {
        secs: 1_700_000_000,
        nanos: 123_456_000,
    };
    const ATIME: Time = Time {
        secs: 1_700_000_001,
        nanos: 0,
    };

    fn replies(source: &mut Source, input: &[u8], chunk: usize) -> Result<Vec<Reply>, ParseError> {
        let mut seen = Vec::new();
        let mut pending = Vec::new();
        for piece in input.chunks(chunk) {
            pending.extend_from_slice(piece);
            loop {
                let (used, reply) = source.step(&pending)?;
                pending.drain(..used);
                let quiet = used == 0;
                seen.extend(reply);
                if quiet {
                    break;
                }
            }
        }
        Ok(seen)
    }

    #[test]
    fn one_file_ahead_is_one_write() {
        let mut source = Source::new(Ahead::ToOneFile);
        source.times(MTIME, ATIME);
        source.file(0o640, 6, b"x");
        assert!(source.content(6));
        let mut sent = source.take_output();
        sent.extend_from_slice(b"hello\n");
        source.end_file(Ok(()));
        source.end();
        sent.extend(source.take_output());
        assert_eq!(
            sent,
            b"T1700000000 123456 1700000001 0\nC0640 6 x\nhello\n\0E\n"
        );
        for chunk in 1..=5 {
            let mut source = Source::new(Ahead::ToOneFile);
            source.times(MTIME, ATIME);
            source.file(0o640, 0, b"x");
            source.end_file(Ok(()));
            source.end();
            let seen = replies(&mut source, b"\0\0\0\0\0", chunk).unwrap();
            assert_eq!(seen.len(), 5);
            assert_eq!(source.n_awaited(), 0);
        }
    }

    #[test]
    fn content_waits_for_the_acknowledgement_unless_it_may_go_ahead() {
        let mut source = Source::new(Ahead::Never);
        source.file(0o644, 3, b"x");
        assert!(!source.content(3));
        assert_eq!(
            replies(&mut source, b"\0", 1).unwrap(),
            [Reply::Done(Step::Ready)]
        );
        assert!(!source.content(3));
        assert_eq!(
            replies(&mut source, b"\0", 1).unwrap(),
            [Reply::Done(Step::File)]
        );
        assert!(source.content(3));
        assert!(!source.content(1), "more than announced");
    }

    #[test]
    fn a_directory_is_never_sent_ahead() {
        let mut source = Source::new(Ahead::ToOneFile);
        source.directory(0o755, b"d");
        assert!(source.take_output().is_empty());
        assert_eq!(source.n_awaited(), 1);
    }

    #[test]
    fn a_refusal_names_its_step() {
        for chunk in 1..9 {
            let mut source = Source::new(Ahead::Never);
            source.times(MTIME, ATIME);
            source.file(0o644, 3, b"x");
            let seen = replies(&mut source, b"\0\0\x01scp: x: Permission denied\n", chunk).unwrap();
            assert_eq!(
                seen[2],
                Reply::Refused(Step::File, b"scp: x: Permission denied".to_vec())
            );
        }
    }

    #[test]
    fn noise_is_never_taken_for_an_acknowledgement() {
        let mut source = Source::new(Ahead::Never);
        let seen = replies(&mut source, b"Welcome to host\n\0\0", 4).unwrap();
        assert_eq!(seen, [Reply::Fatal(b"Welcome to host".to_vec())]);
        let mut source = Source::new(Ahead::Never);
        assert_eq!(
            replies(&mut source, b"\n", 1).unwrap(),
            [Reply::Fatal(Vec::new())]
        );
    }

    #[test]
    fn a_second_reply_for_one_step_is_an_error() {
        let mut source = Source::new(Ahead::Never);
        source.file(0o644, 0, b"x");
        assert_eq!(
            replies(&mut source, b"\0\x01scp: a\n\x01scp: b\n", 3),
            Err(ParseError::UnexpectedReply(1))
        );
    }
}
