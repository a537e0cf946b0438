//! The receiving side: parses what a host's `scp -f` sends, and produces the replies.

#![warn(clippy::indexing_slicing)]

use crate::scp::record::MAX_LINE;
use crate::scp::record::ParseError;
use crate::scp::record::Record;
use crate::stat::Time;

/// The request to the host, which decides what it may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Without `-r`: at most this many files, no directory. Names are ignored.
    Files(u64),
    /// With `-r`: one tree. The name of its root is ignored; every other one must be a valid
    /// [`Name`](crate::path::Name).
    Tree,
}

/// One event of the received stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A file is offered. Answer with [`Sink::accept`] or [`Sink::refuse`] before the next step.
    File {
        mode: u32,
        size: u64,
        name: Vec<u8>,
        times: Option<(Time, Time)>,
    },
    /// A part of the accepted file's content.
    Data(&'a [u8]),
    /// The accepted file is complete. With `Err` its content is invalid, and the error is the
    /// host's text: a read error, or the file shrank while it was sent.
    FileEnd(Result<(), Vec<u8>>),
    /// A directory is offered. Answer with [`Sink::accept`] or [`Sink::refuse`] before the next
    /// step.
    Directory {
        mode: u32,
        name: Vec<u8>,
        times: Option<(Time, Time)>,
    },
    /// The last accepted directory is complete.
    DirectoryEnd,
    /// The host skipped something.
    Warning(Vec<u8>),
    /// The host ended the transfer; nothing follows.
    Fatal(Vec<u8>),
}

/// State machine of the receiving side.
///
/// ```text
///             T                      accept            all bytes
/// Record ---------> Record(times)    File ---> Data ------------> Status ---> Record
///   |  C, D                          refuse
///   +-------> Offer ----------------------------------------------> Record
/// ```
#[derive(Debug)]
pub struct Sink {
    scope: Scope,
    /// Whether `-p` was given, so that each C and D must follow a T.
    with_times: bool,
    state: State,
    times: Option<(Time, Time)>,
    /// The received part of an incomplete line.
    line: Vec<u8>,
    /// How many accepted directories are still open.
    depth: u32,
    files_seen: u64,
    out: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Record,
    /// A file (with its size) or a directory (`None`) waits for `accept` or `refuse`.
    Offer {
        size: Option<u64>,
    },
    Data {
        left: u64,
    },
    Status,
    StatusText,
    Done,
}

impl Sink {
    /// Creates a sink. Its output already contains the first acknowledgement, which starts the
    /// source.
    pub fn new(scope: Scope, with_times: bool) -> Self {
        Self {
            scope,
            with_times,
            state: State::Record,
            times: None,
            line: Vec::new(),
            depth: 0,
            files_seen: 0,
            out: vec![0],
        }
    }

    /// Removes and returns the bytes to send to the host.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Returns whether the next byte starts a record. Only here may output of another protocol
    /// follow.
    pub fn is_between_records(&self) -> bool {
        self.state == State::Record && self.line.is_empty()
    }

    /// Accepts the offered file or directory.
    pub fn accept(&mut self) {
        if let State::Offer { size } = self.state {
            self.out.push(0);
            self.state = match size {
                Some(0) => State::Status,
                Some(left) => State::Data { left },
                None => {
                    self.depth = self.depth.saturating_add(1);
                    State::Record
                }
            };
        }
    }

    /// Refuses the offered file or directory. A source that descends from OpenSSH's skips its
    /// content and continues with the next one.
    pub fn refuse(&mut self) {
        if matches!(self.state, State::Offer { .. }) {
            self.out.extend_from_slice(b"\x01\n");
            self.state = State::Record;
        }
    }

    /// Parses the start of `input`; returns the number of bytes consumed and the event, if any.
    ///
    /// Call it repeatedly until it returns `(0, None)`.
    ///
    /// # Errors
    /// The peer violated the protocol or sent something that was not requested. The sink consumes
    /// nothing afterwards.
    pub fn step<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Option<Event<'a>>), ParseError> {
        let result = self.try_step(input);
        if result.is_err() {
            self.state = State::Done;
        }
        result
    }

    /// Checks that the host's output may end here.
    ///
    /// # Errors
    /// The output ended in the middle of a transfer.
    pub fn end(&self) -> Result<(), ParseError> {
        match self.state {
            State::Done => Ok(()),
            State::Record if self.line.is_empty() && self.depth == 0 => Ok(()),
            _ => Err(ParseError::Truncated),
        }
    }

    fn try_step<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Option<Event<'a>>), ParseError> {
        let Some(&first) = input.first() else {
            return Ok((0, None));
        };
        match self.state {
            State::Offer { .. } | State::Done => Ok((0, None)),
            State::Data { left } => {
                let n = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                let data = input.get(..n).unwrap_or_default();
                let left = left - n as u64;
                self.state = if left == 0 {
                    State::Status
                } else {
                    State::Data { left }
                };
                Ok((n, Some(Event::Data(data))))
            }
            State::Status if first == 0 => {
                self.out.push(0);
                self.state = State::Record;
                Ok((1, Some(Event::FileEnd(Ok(())))))
            }
            State::Status if first == 1 || first == 2 => {
                self.state = State::StatusText;
                self.try_step(input)
            }
            State::Status => Err(ParseError::UnexpectedReply(first)),
            State::StatusText => {
                let (used, line) = self.take_line(input)?;
                let Some(line) = line else {
                    return Ok((used, None));
                };
                self.out.push(0);
                self.state = State::Record;
                let text = line.get(1..).unwrap_or_default().to_vec();
                Ok((used, Some(Event::FileEnd(Err(text)))))
            }
            State::Record => {
                let (used, line) = self.take_line(input)?;
                let Some(line) = line else {
                    return Ok((used, None));
                };
                Ok((used, self.record(Record::parse(&line)?)?))
            }
        }
    }

    /// Collects a line over several inputs; returns the number of bytes consumed, and the line
    /// without its newline once it is complete.
    fn take_line(&mut self, input: &[u8]) -> Result<(usize, Option<Vec<u8>>), ParseError> {
        let end = memchr::memchr(b'\n', input);
        let part = input.get(..end.unwrap_or(input.len())).unwrap_or_default();
        if self.line.len() + part.len() > MAX_LINE {
            return Err(ParseError::LineTooLong);
        }
        self.line.extend_from_slice(part);
        match end {
            None => Ok((input.len(), None)),
            Some(end) => Ok((end + 1, Some(std::mem::take(&mut self.line)))),
        }
    }

    fn record(&mut self, record: Record) -> Result<Option<Event<'static>>, ParseError> {
        Ok(match record {
            Record::Times { mtime, atime } => {
                // OpenSSH 9.2 scp.c source(): one T goes before each C or D, never two.
                if self.times.is_some() {
                    return Err(ParseError::TimesOutOfPlace);
                }
                self.times = Some((mtime, atime));
                self.out.push(0);
                None
            }
            Record::File { mode, size, name } => {
                let times = self.take_times()?;
                self.files_seen += 1;
                match self.scope {
                    Scope::Files(n) if self.files_seen > n => {
                        return Err(ParseError::UnexpectedFile(name));
                    }
                    Scope::Files(_) => {}
                    Scope::Tree => self.check_name(&name)?,
                }
                self.state = State::Offer { size: Some(size) };
                Some(Event::File {
                    mode,
                    size,
                    name,
                    times,
                })
            }
            Record::Directory { mode, name } => {
                let times = self.take_times()?;
                if let Scope::Files(_) = self.scope {
                    return Err(ParseError::UnexpectedDirectory);
                }
                self.check_name(&name)?;
                self.state = State::Offer { size: None };
                Some(Event::Directory { mode, name, times })
            }
            Record::End => {
                self.depth = self.depth.checked_sub(1).ok_or(ParseError::UnexpectedEnd)?;
                if self.times.is_some() {
                    return Err(ParseError::TimesOutOfPlace);
                }
                self.out.push(0);
                Some(Event::DirectoryEnd)
            }
            // An error line gets no reply (OpenSSH 9.2 scp.c run_err()). If the host cannot open a
            // file after it sent its T record, no C record follows that T record.
            Record::Warning(text) => {
                self.times = None;
                Some(Event::Warning(text))
            }
            Record::Fatal(text) => {
                self.state = State::Done;
                Some(Event::Fatal(text))
            }
        })
    }

    fn take_times(&mut self) -> Result<Option<(Time, Time)>, ParseError> {
        let times = self.times.take();
        if times.is_some() == self.with_times {
            Ok(times)
        } else {
            Err(ParseError::TimesOutOfPlace)
        }
    }

    /// Refuses names that are not single path components (CVE-2018-20685, CVE-2019-6111). The name
    /// of the tree's root is ignored, so it is not checked.
    fn check_name(&self, name: &[u8]) -> Result<(), ParseError> {
        if self.depth == 0 || crate::path::Name::new(name).is_ok() {
            Ok(())
        } else {
            Err(ParseError::BadName(name.to_vec()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `input` in pieces of `chunk` bytes; accepts what `accept` says; returns a line per
    /// event, data joined.
    fn drive(
        sink: &mut Sink,
        input: &[u8],
        chunk: usize,
        accept: impl Fn(&Event<'_>) -> bool,
    ) -> Result<Vec<String>, ParseError> {
        let mut seen: Vec<String> = Vec::new();
        let mut pending = Vec::new();
        for piece in input.chunks(chunk) {
            pending.extend_from_slice(piece);
            loop {
                let (used, event) = sink.step(&pending)?;
                let quiet = used == 0 && event.is_none();
                if let Some(event) = event {
                    let text = match &event {
                        Event::Data(data) => format!("data {}", String::from_utf8_lossy(data)),
                        other => format!("{other:?}"),
                    };
                    match seen.last_mut() {
                        Some(last) if last.starts_with("data ") && text.starts_with("data ") => {
                            last.push_str(&text[5..]);
                        }
                        _ => seen.push(text),
                    }
                    let asks = matches!(event, Event::File { .. } | Event::Directory { .. });
                    if asks && accept(&event) {
                        sink.accept();
                    } else if asks {
                        sink.refuse();
                    }
                }
                pending.drain(..used);
                if quiet {
                    break;
                }
            }
        }
        sink.end()?;
        Ok(seen)
    }

    // Captured from `scp -p -f hello.txt` and `scp -r -p -f d` of OpenSSH 9.2.
    const ONE: &[u8] = b"T1700000000 0 1700000001 0\nC0644 6 hello.txt\nhello\n\0";
    const TREE: &[u8] = b"T1 0 2 0\nD0755 0 d\nT1 0 2 0\nD0755 0 sub\nT1 0 2 0\nC0644 2 b\nBB\0\
        T1 0 2 0\nD0755 0 empty\nE\nE\nT1 0 2 0\nC0644 1 a\nA\0E\n";

    #[test]
    fn one_file_is_received_at_every_chunk_size() {
        for chunk in 1..=ONE.len() {
            let mut sink = Sink::new(Scope::Files(1), true);
            let seen = drive(&mut sink, ONE, chunk, |_| true).unwrap();
            assert_eq!(seen.len(), 3, "{seen:?}");
            assert_eq!(seen[1], "data hello\n");
            assert_eq!(seen[2], "FileEnd(Ok(()))");
            assert_eq!(sink.take_output(), [0; 4]);
        }
    }

    #[test]
    fn a_tree_is_received_at_every_chunk_size() {
        for chunk in 1..=TREE.len() {
            let mut sink = Sink::new(Scope::Tree, true);
            let seen = drive(&mut sink, TREE, chunk, |_| true).unwrap();
            assert_eq!(
                seen.iter()
                    .filter(|s| s.starts_with("DirectoryEnd"))
                    .count(),
                3
            );
            assert_eq!(seen.iter().filter(|s| s.starts_with("data")).count(), 2);
            assert_eq!(sink.take_output(), [0; 1 + 5 + 5 + 2 + 3]);
        }
    }

    #[test]
    fn refused_entries_send_no_content() {
        let input = b"T1 0 2 0\nD0755 0 d\nT1 0 2 0\nC0644 2 b\nT1 0 2 0\nD0755 0 s\nE\n";
        let mut sink = Sink::new(Scope::Tree, true);
        let top =
            |event: &Event<'_>| matches!(event, Event::Directory { name, .. } if name == b"d");
        let seen = drive(&mut sink, input, 3, top).unwrap();
        assert_eq!(seen.len(), 4, "{seen:?}");
        assert_eq!(sink.take_output(), b"\0\0\0\0\x01\n\0\x01\n\0");
    }

    #[test]
    fn an_error_line_is_not_answered() {
        let mut sink = Sink::new(Scope::Files(1), true);
        let seen = drive(
            &mut sink,
            b"\x01scp: nope: No such file or directory\n",
            5,
            |_| true,
        )
        .unwrap();
        assert_eq!(seen.len(), 1);
        assert_eq!(sink.take_output(), [0]);
    }

    #[test]
    fn content_of_a_file_that_shrank_is_marked_bad() {
        let mut sink = Sink::new(Scope::Files(1), false);
        let seen = drive(
            &mut sink,
            b"C0644 3 x\n\0\0\0\x01scp: x: Broken pipe\n",
            2,
            |_| true,
        )
        .unwrap();
        assert!(seen.last().unwrap().starts_with("FileEnd(Err("), "{seen:?}");
    }

    #[test]
    fn what_was_not_asked_for_is_refused() {
        let cases: [(&str, Scope, bool, &[u8]); 12] = [
            (
                "a second file",
                Scope::Files(1),
                false,
                b"C0644 0 a\n\0C0644 0 b\n\0",
            ),
            (
                "a directory for a file",
                Scope::Files(1),
                false,
                b"D0755 0 d\n",
            ),
            (
                "a file without times",
                Scope::Files(1),
                true,
                b"C0644 0 a\n",
            ),
            (
                "times unasked",
                Scope::Files(1),
                false,
                b"T1 0 2 0\nC0644 0 a\n",
            ),
            (
                "times twice",
                Scope::Files(1),
                true,
                b"T1 0 2 0\nT1 0 2 0\n",
            ),
            ("an end without a beginning", Scope::Tree, false, b"E\n"),
            (
                "`..` in a tree",
                Scope::Tree,
                false,
                b"D0755 0 d\nC0644 0 ..\n",
            ),
            (
                "an empty name in a tree",
                Scope::Tree,
                false,
                b"D0755 0 d\nC0644 0 \n",
            ),
            (
                "a slash in a tree",
                Scope::Tree,
                false,
                b"D0755 0 d\nC0644 0 a/b\n",
            ),
            ("a bad status byte", Scope::Files(1), false, b"C0644 0 a\nX"),
            ("noise", Scope::Files(1), false, b"Welcome\n"),
            ("an empty line", Scope::Files(1), false, b"\n"),
        ];
        for (what, scope, with_times, input) in cases {
            let mut sink = Sink::new(scope, with_times);
            assert!(drive(&mut sink, input, 4, |_| true).is_err(), "{what}");
        }
    }

    #[test]
    fn a_cut_at_every_byte_is_noticed() {
        for cut in 1..ONE.len() {
            let mut sink = Sink::new(Scope::Files(1), true);
            let result = drive(&mut sink, &ONE[..cut], 7, |_| true);
            // After the T record alone the sink stands between records; it has no file yet.
            let complete = result
                .as_ref()
                .is_ok_and(|s| s.iter().any(|s| s.contains("FileEnd")));
            assert!(!complete, "cut at {cut}: {result:?}");
        }
    }

    #[test]
    fn an_endless_line_is_not_collected() {
        let mut sink = Sink::new(Scope::Files(1), false);
        let line = vec![b'C'; MAX_LINE + 2];
        assert_eq!(sink.step(&line), Err(ParseError::LineTooLong));
        assert_eq!(sink.step(b"C0644 0 a\n"), Ok((0, None)));
    }
}
