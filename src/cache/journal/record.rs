//! One line of the journal; pure.
//!
//! ```text
//! CRC ID PHASE PATH WAS BASE MODE OWNER PLACEMENT SIZE MTIME ATIME SINCE WHY
//! CRC ID done
//! ```
//!
//! CRC is the CRC-32 of the rest of the line. In PATH, WAS and WHY, bytes other than letters,
//! digits, `/`, `.` and `_` are written as `%XX`, so that no word has a space. `-` is an absent
//! value. BASE is `any`, `absent` or `SIZE,MTIME,CTIME,DEV:INO`; a time is `SECONDS.NANOSECONDS`.
//! MODE is octal; `~` before it means that an existing file keeps its own mode. PHASE is `open`,
//! `closed`, `synced` (persisted), `begun` (may be a partial upload) or `kept` (needs a decision).

use crate::path::Name;
use crate::path::RemotePath;
use crate::remote::Expect;
use crate::remote::Owner;
use crate::remote::Placement;
use crate::stat::FileId;
use crate::stat::Time;
use crate::stat::Version;

/// The number of dirty content, random; its record and its file are named after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub u64);

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Id {
    /// Parses the text of `Display`.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        is_hex.then(|| u64::from_str_radix(text, 16).ok().map(Self))?
    }
}

/// How far the content of a record has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A program is writing: the content may be incomplete.
    Open,
    /// The content was complete when it was last closed. It may not survive a power failure.
    Closed,
    /// The content is complete and flushed to the local disk.
    Persisted,
    /// As [`Self::Persisted`], and an upload in place was started: the host may have a partial
    /// upload.
    MaybePartial,
    /// The content is not uploaded until the user decides what to do with it.
    NeedsDecision,
}

/// A journal record: dirty content, and how it is to be uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub id: Id,
    pub phase: Phase,
    pub path: RemotePath,
    /// The old path, while a rename is in flight.
    pub was: Option<RemotePath>,
    pub base: Expect,
    pub mode: u32,
    /// An existing file gets that mode too.
    pub sets_mode: bool,
    pub owner: Option<Owner>,
    pub placement: Placement,
    pub size: u64,
    pub mtime: Time,
    pub atime: Option<Time>,
    /// When the content was first changed.
    pub since: Time,
    /// Why the content is not on the host; empty if no upload has failed.
    pub why: String,
}

impl Record {
    /// Returns the number that marks its temporary files on the host.
    pub fn tag(&self) -> u32 {
        tag(self.id)
    }
}

/// Returns the number that marks the temporary files of content `id` on the host.
pub(crate) fn tag(id: Id) -> u32 {
    let [_, _, _, _, a, b, c, d] = id.0.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// One parsed line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    Dirty(Box<Record>),
    /// The record with this number is ended.
    Done(Id),
}

/// Formats a line, with its newline.
pub(crate) fn line(content: &Line) -> Vec<u8> {
    let text = match content {
        Line::Done(id) => format!("{id} done"),
        Line::Dirty(record) => {
            let Record {
                id,
                phase,
                path,
                was,
                base,
                mode,
                sets_mode,
                owner,
                placement,
                size,
                mtime,
                atime,
                since,
                why,
            } = &**record;
            let keeps = if *sets_mode { "" } else { "~" };
            let phase = match phase {
                Phase::Open => "open",
                Phase::Closed => "closed",
                Phase::Persisted => "synced",
                Phase::MaybePartial => "begun",
                Phase::NeedsDecision => "kept",
            };
            let placement = match placement {
                Placement::Replace => "replace",
                Placement::InPlace => "inplace",
                Placement::Direct => "direct",
            };
            let path = escape(path.as_bytes());
            let was = option(was.as_ref(), |was| escape(was.as_bytes()));
            let base = base_text(base);
            let owner = option(owner.as_ref(), |o| format!("{}:{}", o.uid, o.gid));
            let (mtime, since) = (time_text(*mtime), time_text(*since));
            let atime = option(atime.as_ref(), |time| time_text(*time));
            let why = escape(why.as_bytes());
            format!(
                "{id} {phase} {path} {was} {base} {keeps}{mode:04o} {owner} {placement} {size} {mtime} \
                 {atime} {since} {why}"
            )
        }
    };
    format!("{:08x} {text}\n", crc32fast::hash(text.as_bytes())).into_bytes()
}

/// Parses a line; `None` if it is damaged.
pub(crate) fn parse(line: &[u8]) -> Option<Line> {
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (crc, text) = line.split_once(' ')?;
    if crc != format!("{:08x}", crc32fast::hash(text.as_bytes())) {
        return None;
    }
    let mut words = text.split(' ');
    let mut word = || words.next();
    let id = Id::parse(word()?)?;
    let phase = match word()? {
        "done" => return words.next().is_none().then_some(Line::Done(id)),
        "open" => Phase::Open,
        "closed" => Phase::Closed,
        "synced" => Phase::Persisted,
        "begun" => Phase::MaybePartial,
        "kept" => Phase::NeedsDecision,
        _ => return None,
    };
    let (path_text, was, base, mode) = (word()?, word()?, word()?, word()?);
    let (sets_mode, mode) = match mode.strip_prefix('~') {
        Some(mode) => (false, mode),
        None => (true, mode),
    };
    let record = Record {
        id,
        phase,
        path: path(path_text)?,
        was: parse_option(was, path)?,
        base: parse_base(base)?,
        mode: u32::from_str_radix(mode, 8).ok()?,
        sets_mode,
        owner: parse_option(word()?, |text| {
            let (uid, gid) = text.split_once(':')?;
            Some(Owner {
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
            })
        })?,
        placement: match word()? {
            "replace" => Placement::Replace,
            "inplace" => Placement::InPlace,
            "direct" => Placement::Direct,
            _ => return None,
        },
        size: word()?.parse().ok()?,
        mtime: parse_time(word()?)?,
        atime: parse_option(word()?, parse_time)?,
        since: parse_time(word()?)?,
        why: String::from_utf8(unescape(word()?)?).ok()?,
    };
    words
        .next()
        .is_none()
        .then(|| Line::Dirty(Box::new(record)))
}

fn option<T>(value: Option<&T>, text: impl FnOnce(&T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), text)
}

/// Parses a word that may be absent. `None` is a damaged word; `Some(None)` is an absent value.
#[expect(clippy::option_option, reason = "damage is not absence")]
fn parse_option<T>(word: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    match word {
        "-" => Some(None),
        word => parse(word).map(Some),
    }
}

fn base_text(base: &Expect) -> String {
    match base {
        Expect::Anything => "any".to_owned(),
        Expect::Absent => "absent".to_owned(),
        Expect::Version(version) => {
            let Version {
                size,
                mtime,
                ctime,
                id,
            } = version;
            let mtime = time_text(*mtime);
            let ctime = option(ctime.as_ref(), |time| time_text(*time));
            let id = option(id.as_ref(), |id| format!("{}:{}", id.dev, id.ino));
            format!("{size},{mtime},{ctime},{id}")
        }
    }
}

fn parse_base(word: &str) -> Option<Expect> {
    let text = match word {
        "any" => return Some(Expect::Anything),
        "absent" => return Some(Expect::Absent),
        text => text,
    };
    let mut parts = text.split(',');
    let version = Version {
        size: parts.next()?.parse().ok()?,
        mtime: parse_time(parts.next()?)?,
        ctime: parse_option(parts.next()?, parse_time)?,
        id: parse_option(parts.next()?, |text| {
            let (dev, ino) = text.split_once(':')?;
            Some(FileId {
                dev: dev.parse().ok()?,
                ino: ino.parse().ok()?,
            })
        })?,
    };
    parts.next().is_none().then_some(Expect::Version(version))
}

fn time_text(time: Time) -> String {
    format!("{}.{}", time.secs, time.nanos)
}

fn parse_time(text: &str) -> Option<Time> {
    let (secs, nanos) = text.split_once('.')?;
    let nanos = nanos.parse().ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Time {
        secs: secs.parse().ok()?,
        nanos,
    })
}

fn escape(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".to_owned();
    }
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"/._".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    if text == "-" {
        return Some(Vec::new());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let (hex, tail) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(byte);
        }
    }
    Some(bytes)
}

fn path(text: &str) -> Option<RemotePath> {
    let bytes = unescape(text)?;
    let mut path = RemotePath::root();
    for part in bytes.split(|&b| b == b'/') {
        path = path.join(&Name::new(part).ok()?);
    }
    Some(path)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use scpfs_testing::fuzz;

    use super::*;

    pub(crate) fn sample(id: u64) -> Record {
        Record {
            id: Id(id),
            phase: Phase::Closed,
            path: path("dir/a%0Ab").unwrap(),
            was: None,
            base: Expect::Version(Version {
                size: 3,
                mtime: Time { secs: 5, nanos: 6 },
                ctime: Some(Time { secs: 7, nanos: 8 }),
                id: Some(FileId { dev: 1, ino: 2 }),
            }),
            mode: 0o640,
            sets_mode: true,
            owner: Some(Owner { uid: 0, gid: 0 }),
            placement: Placement::Replace,
            size: 3,
            mtime: Time {
                secs: 1_700_000_000,
                nanos: 5,
            },
            atime: None,
            since: Time {
                secs: 1_700_000_000,
                nanos: 0,
            },
            why: String::new(),
        }
    }

    #[test]
    fn a_changed_byte_is_detected() {
        let line = line(&Line::Dirty(Box::new(sample(1))));
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut damaged = line.clone();
                damaged[at] ^= 1 << bit;
                assert_eq!(parse(&damaged), None, "byte {at}, bit {bit}");
            }
            assert_eq!(parse(&line[..at]), None, "truncated at {at}");
        }
    }

    /// A line that can be parsed is formatted and parsed again to the same record. Each input line
    /// is also tried with a corrected checksum.
    fn check_lines(input: &[u8]) {
        for text in input.split(|&b| b == b'\n') {
            let rest = text.get(9..).unwrap_or_default();
            let crc = format!("{:08x} ", crc32fast::hash(rest));
            let whole = [crc.as_bytes(), rest, b"\n"].concat();
            for candidate in [[text, b"\n"].concat(), whole] {
                if let Some(entry) = parse(&candidate) {
                    assert_eq!(parse(&line(&entry)), Some(entry));
                }
            }
        }
        let found = crate::cache::journal::parse(input);
        assert!(found.damaged.iter().map(Vec::len).sum::<usize>() <= input.len());
    }

    #[test]
    fn fuzz_journal() {
        fuzz::run("journal", check_lines);
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(
            name in proptest::collection::vec(any::<u8>(), 1..300),
            why: String,
            secs: i64,
            nanos in 0u32..1_000_000_000,
            size: u64,
            has in any::<[bool; 5]>(),
        ) {
            let Ok(name) = Name::new(&name) else { return Ok(()) };
            let time = Time { secs, nanos };
            let path = RemotePath::root().join(&name);
            let record = Record {
                was: has[0].then(|| path.join(&name)),
                path,
                base: if has[1] {
                    Expect::Version(Version {
                        size,
                        mtime: time,
                        ctime: has[2].then_some(time),
                        id: has[3].then_some(FileId { dev: size, ino: 1 }),
                    })
                } else if has[2] {
                    Expect::Absent
                } else {
                    Expect::Anything
                },
                owner: has[4].then_some(Owner { uid: 1, gid: 2 }),
                atime: has[3].then_some(time),
                size,
                mtime: time,
                since: time,
                why,
                ..sample(size)
            };
            let entry = Line::Dirty(Box::new(record));
            prop_assert_eq!(parse(&line(&entry)), Some(entry));
        }

        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(parse(&bytes), None);
        }
    }
}
