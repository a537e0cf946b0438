//! The sending side: produces what is sent to a host's `scp -t`, and parses its replies.

#![warn(clippy::indexing_slicing)]

use std::collections::VecDeque;

use crate::scp::record::MAX_LINE;
use crate::scp::record::ParseError;
use crate::scp::record::Record;
use crate::stat::Time;

/// Whether content may be sent before its C record is acknowledged.
///
/// A sink that refuses a C record stays in its record loop: it would parse the content as records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pipelining {
    /// Content is sent after the acknowledgement of its C record.
    Never,
    /// Content is sent directly behind its C record. Safe only if the command was `scp -t` without
    /// `-r` for one explicit path that is not a directory: a record forged by the content can then
    /// only write to that same path. Directories cannot be sent in this mode.
    ToOneFile,
}

/// The step of a transfer that a reply answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The first reply: the sink is ready.
    Ready,
    /// The T record.
    Times,
    /// The C record; accepted if the host could open the file.
    File,
    /// The content and its status byte; accepted if the host has written the file.
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
    /// The host could not do this step, for the given reason; the transfer can continue.
    Refused(Step, Vec<u8>),
    /// The host ended the transfer, for the given reason.
    Fatal(Vec<u8>),
}

/// State machine of the sending side: queue records with its methods, send the bytes of
/// [`Source::take_output`], pass the host's output to [`Source::step`].
///
/// Each queued record gets exactly one reply, in order. If a host sends more than one for a step
/// (CVE-2020-12062), the surplus is detected when no reply is expected any more.
#[derive(Debug)]
pub struct Source {
    pipelining: Pipelining,
    /// The steps whose replies have not arrived, oldest first.
    awaited: VecDeque<Step>,
    /// The received part of an error line.
    line: Vec<u8>,
    in_line: bool,
    /// Bytes of content that must still be sent for the last C record.
    content_left: u64,
    out: Vec<u8>,
    /// The host ended the transfer or violated the protocol.
    has_ended: bool,
}

impl Source {
    pub fn new(pipelining: Pipelining) -> Self {
        Self {
            pipelining,
            awaited: VecDeque::from([Step::Ready]),
            line: Vec::new(),
            in_line: false,
            content_left: 0,
            out: Vec::new(),
            has_ended: false,
        }
    }

    /// Removes and returns the bytes to send to the host.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Returns how many replies have not arrived yet.
    pub fn n_awaited(&self) -> usize {
        self.awaited.len()
    }

    /// Queues a T record for the next file or directory.
    pub fn times(&mut self, mtime: Time, atime: Time) {
        self.queue(&Record::Times { mtime, atime }, Step::Times);
    }

    /// Queues a C record. Announce its content with [`Source::content`], exactly `size` bytes in
    /// all.
    pub fn file(&mut self, mode: u32, size: u64, name: &[u8]) {
        self.queue(
            &Record::File {
                mode,
                size,
                name: name.to_vec(),
            },
            Step::File,
        );
        self.content_left = size;
    }

    /// Returns whether content may be sent now.
    pub fn may_send_content(&self) -> bool {
        self.pipelining == Pipelining::ToOneFile || self.awaited.is_empty()
    }

    /// Records that the caller is about to send `len` bytes of content.
    ///
    /// Returns false, and records nothing, if the caller must not send them: they exceed the size
    /// in the C record, or the record is not acknowledged yet.
    #[must_use]
    pub fn content(&mut self, len: u64) -> bool {
        if !self.may_send_content() || len > self.content_left || self.has_ended {
            return false;
        }
        self.content_left -= len;
        true
    }

    /// Queues the status byte after the last byte of content.
    ///
    /// `Err(text)` tells the host that the content is invalid. All announced bytes must have been
    /// sent even then; otherwise the host reads the text as content.
    pub fn end_file(&mut self, status: Result<(), &[u8]>) {
        match status {
            Ok(()) => self.out.push(0),
            Err(text) => Record::Warning(text.to_vec()).encode(&mut self.out),
        }
        self.awaited.push_back(Step::Content);
    }

    /// Queues a D record; everything up to the matching [`Source::end`] is inside that directory.
    /// Queues nothing in [`Pipelining::ToOneFile`] mode, in which directories cannot be sent.
    pub fn directory(&mut self, mode: u32, name: &[u8]) {
        if self.pipelining == Pipelining::Never {
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

    /// Parses the start of `input`; returns the number of bytes consumed and the reply, if
    /// complete.
    ///
    /// # Errors
    /// A reply arrived although none was expected, or it is longer than [`MAX_LINE`]. The source
    /// consumes nothing afterwards.
    pub fn step(&mut self, input: &[u8]) -> Result<(usize, Option<Reply>), ParseError> {
        let Some(&first) = input.first() else {
            return Ok((0, None));
        };
        if self.has_ended {
            return Ok((0, None));
        }
        if !self.in_line {
            let Some(&step) = self.awaited.front() else {
                self.has_ended = true;
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
            self.has_ended = true;
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
        self.has_ended = matches!(reply, Reply::Fatal(_));
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
        let mut source = Source::new(Pipelining::ToOneFile);
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
            let mut source = Source::new(Pipelining::ToOneFile);
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
        let mut source = Source::new(Pipelining::Never);
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
        let mut source = Source::new(Pipelining::ToOneFile);
        source.directory(0o755, b"d");
        assert!(source.take_output().is_empty());
        assert_eq!(source.n_awaited(), 1);
    }

    #[test]
    fn a_refusal_names_its_step() {
        for chunk in 1..9 {
            let mut source = Source::new(Pipelining::Never);
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
        let mut source = Source::new(Pipelining::Never);
        let seen = replies(&mut source, b"Welcome to host\n\0\0", 4).unwrap();
        assert_eq!(seen, [Reply::Fatal(b"Welcome to host".to_vec())]);
        let mut source = Source::new(Pipelining::Never);
        assert_eq!(
            replies(&mut source, b"\n", 1).unwrap(),
            [Reply::Fatal(Vec::new())]
        );
    }

    #[test]
    fn a_second_reply_for_one_step_is_an_error() {
        let mut source = Source::new(Pipelining::Never);
        source.file(0o644, 0, b"x");
        assert_eq!(
            replies(&mut source, b"\0\x01scp: a\n\x01scp: b\n", 3),
            Err(ParseError::UnexpectedReply(1))
        );
    }
}
