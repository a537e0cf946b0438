//! The records of the protocol, C, D, E and T, and error lines: parse and encode; pure.

#![warn(clippy::indexing_slicing)]

use crate::path::Excerpt;
use crate::path::MAX_EXCERPT;
use crate::stat::PERMISSIONS;
use crate::stat::Time;

/// The longest record line that is accepted, in bytes without its newline.
///
/// OpenSSH's own sink stops at 2,047 bytes. A name has at most 255 bytes on every common
/// filesystem. The path in an error line has at most 4,096 bytes; vis encoding makes up to four of
/// each.
pub const MAX_LINE: usize = 20 * 1024;

/// One record line of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// `Cmmmm size name`: a file, whose content follows once it is accepted.
    File { mode: u32, size: u64, name: Vec<u8> },
    /// `Dmmmm 0 name`: a directory, whose entries follow once it is accepted.
    Directory { mode: u32, name: Vec<u8> },
    /// `E`: the end of a directory's entries.
    End,
    /// `Tmtime usec atime usec`: times of the next file or directory.
    Times { mtime: Time, atime: Time },
    /// `\x01text`: the peer skipped something; the transfer continues.
    Warning(Vec<u8>),
    /// `\x02text`: the peer ends the transfer.
    Fatal(Vec<u8>),
}

/// A violation of the SCP protocol by the peer. Nothing that the peer sends afterwards is used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("expected an SCP record, got `{}`", Excerpt(.0))]
    NotARecord(Vec<u8>),
    #[error("bad SCP record `{}`", Excerpt(.0))]
    Malformed(Vec<u8>),
    #[error("an SCP line is longer than {MAX_LINE} bytes")]
    LineTooLong,
    #[error("the host sent a bad file name `{}`", Excerpt(.0))]
    BadName(Vec<u8>),
    #[error("the host sent a directory where a file was asked for")]
    UnexpectedDirectory,
    #[error("the host sent a file that was not asked for: `{}`", Excerpt(.0))]
    UnexpectedFile(Vec<u8>),
    #[error("the host ended a directory that it had not begun")]
    UnexpectedEnd,
    #[error("the host sent a file without the times that were asked for, or times without a file")]
    TimesOutOfPlace,
    #[error("the host sent a reply that nothing asked for: byte {0:#04x}")]
    UnexpectedReply(u8),
    #[error("the host's output ended in the middle of a transfer")]
    Truncated,
}

impl Record {
    /// Parses one line without its newline. It does not check names, except for NUL bytes.
    ///
    /// OpenSSH 9.2 scp.c `sink()`: a mode has exactly four octal digits, a size is decimal.
    ///
    /// # Errors
    /// The line is not a record, is malformed, or has a NUL byte in its name.
    pub fn parse(line: &[u8]) -> Result<Self, ParseError> {
        let malformed = || ParseError::Malformed(clip(line));
        let (&kind, rest) = line
            .split_first()
            .ok_or_else(|| ParseError::NotARecord(Vec::new()))?;
        match kind {
            1 => Ok(Self::Warning(rest.to_vec())),
            2 => Ok(Self::Fatal(rest.to_vec())),
            b'E' if rest.is_empty() => Ok(Self::End),
            b'T' => parse_times(rest).ok_or_else(malformed),
            b'C' | b'D' => {
                let (mode, size, name) = parse_entry(rest).ok_or_else(malformed)?;
                if name.contains(&0) {
                    return Err(ParseError::BadName(clip(name)));
                }
                let name = name.to_vec();
                Ok(if kind == b'C' {
                    Self::File { mode, size, name }
                } else {
                    Self::Directory { mode, name }
                })
            }
            b'E' => Err(malformed()),
            _ => Err(ParseError::NotARecord(clip(line))),
        }
    }

    /// Appends the record's line to `out`, with its newline.
    ///
    /// A newline in a name or text is replaced by `?`: the peer would parse the bytes behind it as
    /// another record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::File { mode, size, name } => {
                out.extend_from_slice(format!("C{:04o} {size} ", mode & PERMISSIONS).as_bytes());
                push_line(name, out);
            }
            Self::Directory { mode, name } => {
                out.extend_from_slice(format!("D{:04o} 0 ", mode & PERMISSIONS).as_bytes());
                push_line(name, out);
            }
            Self::End => out.extend_from_slice(b"E\n"),
            Self::Times { mtime, atime } => {
                // A T record cannot carry a time before 1970: OpenSSH 9.2 clamps it to 0 as well.
                let field = |time: &Time| {
                    if time.secs < 0 {
                        (0, 0)
                    } else {
                        (time.secs, time.nanos / 1000)
                    }
                };
                let ((ms, mu), (as_, au)) = (field(mtime), field(atime));
                out.extend_from_slice(format!("T{ms} {mu} {as_} {au}\n").as_bytes());
            }
            Self::Warning(text) => {
                out.push(1);
                push_line(text, out);
            }
            Self::Fatal(text) => {
                out.push(2);
                push_line(text, out);
            }
        }
    }
}

fn push_line(text: &[u8], out: &mut Vec<u8>) {
    out.extend(text.iter().map(|&b| if b == b'\n' { b'?' } else { b }));
    out.push(b'\n');
}

/// Parses `mmmm size name`, the part of a line behind its `C` or `D`.
fn parse_entry(rest: &[u8]) -> Option<(u32, u64, &[u8])> {
    let (mode, rest) = rest.split_at_checked(4)?;
    let mode = mode.iter().try_fold(0u32, |acc, &b| {
        (b'0'..=b'7')
            .contains(&b)
            .then(|| acc * 8 + u32::from(b - b'0'))
    })?;
    let rest = rest.strip_prefix(b" ")?;
    let space = memchr::memchr(b' ', rest)?;
    let (size, name) = rest.split_at_checked(space)?;
    let size = parse_decimal(size).filter(|&size| i64::try_from(size).is_ok())?;
    Some((mode, size, name.strip_prefix(b" ")?))
}

fn parse_times(rest: &[u8]) -> Option<Record> {
    let mut fields = rest.split(|&b| b == b' ').map(parse_decimal);
    let mut next = || fields.next().flatten();
    let (ms, mu, as_, au) = (next()?, next()?, next()?, next()?);
    if fields.next().is_some() || mu > 999_999 || au > 999_999 {
        return None;
    }
    let time = |secs: u64, micros: u64| {
        let nanos = u32::try_from(micros * 1000).ok()?;
        Some(Time {
            secs: i64::try_from(secs).ok()?,
            nanos,
        })
    };
    Some(Record::Times {
        mtime: time(ms, mu)?,
        atime: time(as_, au)?,
    })
}

/// Parses a number of digits only: no sign, no space, not empty, no overflow.
fn parse_decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Truncates a line of the peer for an error. One byte more than [`Excerpt`] shows is kept, so that
/// it can mark the line as truncated.
fn clip(line: &[u8]) -> Vec<u8> {
    line.iter().copied().take(MAX_EXCERPT + 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Escaped;

    #[test]
    fn records_of_openssh_are_understood() {
        // Captured from `scp -p -f hello.txt` of OpenSSH 9.2.
        assert_eq!(
            Record::parse(b"T1700000000 0 1700000001 654321"),
            Ok(Record::Times {
                mtime: Time {
                    secs: 1_700_000_000,
                    nanos: 0
                },
                atime: Time {
                    secs: 1_700_000_001,
                    nanos: 654_321_000
                },
            })
        );
        assert_eq!(
            Record::parse(b"C0644 6 hello world.txt"),
            Ok(Record::File {
                mode: 0o644,
                size: 6,
                name: b"hello world.txt".to_vec()
            })
        );
        assert_eq!(
            Record::parse(b"D0755 0 "),
            Ok(Record::Directory {
                mode: 0o755,
                name: Vec::new()
            })
        );
        assert_eq!(Record::parse(b"E"), Ok(Record::End));
        assert_eq!(
            Record::parse(b"\x01scp: nope: No such file or directory"),
            Ok(Record::Warning(
                b"scp: nope: No such file or directory".to_vec()
            ))
        );
    }

    #[test]
    fn what_is_not_a_record_is_refused() {
        for bad in [
            &b""[..],
            b"Welcome",
            b"C644 6 x",
            b"C0844 6 x",
            b"C06444 6 x",
            b"C0644 -1 x",
            b"C0644 +1 x",
            b"C0644 99999999999999999999 x",
            b"C0644 9223372036854775808 x",
            b"C0644 6",
            b"C0644  6 x",
            b"C0644 6x x",
            b"C0644 1 a\0b",
            b"T1 2 3",
            b"T1 2 3 4 5",
            b"T1 1000000 3 4",
            b"T-1 0 3 4",
            b"T 1 0 3 4",
            b"Ex",
            b"c0644 6 x",
        ] {
            assert!(Record::parse(bad).is_err(), "{}", Escaped(bad));
        }
    }

    #[test]
    fn encoding_and_parsing_are_inverse() {
        let time = Time {
            secs: 1_700_000_000,
            nanos: 123_456_000,
        };
        for record in [
            Record::File {
                mode: 0o4755,
                size: i64::MAX as u64,
                name: b"\xff x".to_vec(),
            },
            Record::Directory {
                mode: 0,
                name: b"d".to_vec(),
            },
            Record::End,
            Record::Times {
                mtime: time,
                atime: time,
            },
            Record::Warning(b"w".to_vec()),
            Record::Fatal(b"f".to_vec()),
        ] {
            let mut line = Vec::new();
            record.encode(&mut line);
            assert_eq!(line.pop(), Some(b'\n'));
            assert_eq!(Record::parse(&line), Ok(record));
        }
    }

    #[test]
    fn a_newline_in_a_name_cannot_begin_a_second_record() {
        let mut line = Vec::new();
        Record::File {
            mode: 0o644,
            size: 1,
            name: b"a\nC0644 9 evil".to_vec(),
        }
        .encode(&mut line);
        assert_eq!(line, b"C0644 1 a?C0644 9 evil\n");
    }
}
