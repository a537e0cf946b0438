//! Parsers of the output of `stat`, and of listings by `find` and `stat`; pure.

#![warn(clippy::indexing_slicing)]

use crate::path::Name;
use crate::remote::DEFAULT_MAX_NAMES;
use crate::remote::ListEntry;
use crate::shell::answer::ListingError;
use crate::shell::answer::MAX_TARGET;
use crate::shell::answer::ParsedListing;
use crate::shell::answer::lines;
use crate::shell::answer::ls;
use crate::shell::answer::parse_number;
use crate::shell::answer::parse_size;
use crate::shell::answer::time::parse_epoch;
use crate::shell::answer::time::parse_times;
use crate::stat::DeviceNumber;
use crate::stat::FileId;
use crate::stat::FileKind;
use crate::stat::PERMISSIONS;
use crate::stat::Stat;

/// Parses the output of `print_stats`. A missing path has no line, so the caller must compare
/// counts. `None` if any line is malformed.
pub fn parse_stats(body: &[u8]) -> Option<Vec<Stat>> {
    match body.strip_prefix(ls::BLOCK_START) {
        Some(block) => ls::parse_block(block),
        None => lines(body).map(parse_stat).collect(),
    }
}

/// Parses one line of `print_stats`: `%f %s %b %h %u %g %d %i %t %T` and three times.
pub fn parse_stat(line: &[u8]) -> Option<Stat> {
    let line = std::str::from_utf8(line).ok()?;
    let mut fields = line.splitn(11, ' ');
    let mode = u32::from_str_radix(fields.next()?, 16).ok()?;
    let size = parse_size(fields.next()?.as_bytes())?;
    let mut number = || parse_number(fields.next()?.as_bytes());
    let (blocks, nlink) = (number()?, number()?);
    let (uid, gid, dev, ino) = (number()?, number()?, number()?, number()?);
    let mut hex = || u32::from_str_radix(fields.next()?, 16).ok();
    let rdev = DeviceNumber {
        major: hex()?,
        minor: hex()?,
    };
    let [atime, mtime, ctime] = parse_times(fields.next()?)?;
    Some(Stat {
        kind: FileKind::from_mode(mode)?,
        mode: mode & PERMISSIONS,
        nlink: u32::try_from(nlink).ok()?,
        uid: u32::try_from(uid).ok()?,
        gid: u32::try_from(gid).ok()?,
        size,
        blocks,
        atime,
        mtime,
        ctime: Some(ctime),
        id: Some(FileId { dev, ino }),
        rdev,
    })
}

/// Parses a listing by GNU find: records as `take_gnu_records` parses them, then error messages.
pub fn parse_gnu_listing(body: &[u8]) -> Option<ParsedListing> {
    let mut parsed = ParsedListing::new(DEFAULT_MAX_NAMES);
    let used = take_gnu_records(body, &mut parsed).ok()?;
    end_gnu_listing(body.get(used..)?, parsed)
}

/// Parses the complete records at the beginning of `body`, of a listing by GNU find: `%y %m %s %b
/// %n %U %G %D %i %A@ %T@ %C@ %d %f\0%l\0`. Returns their length in bytes.
pub(crate) fn take_gnu_records(
    body: &[u8],
    parsed: &mut ParsedListing,
) -> Result<usize, ListingError> {
    let mut used = 0;
    let mut ends = memchr::memchr_iter(0, body);
    while let (Some(middle), Some(end)) = (ends.next(), ends.next()) {
        let record = body.get(used..middle).ok_or(ListingError::Malformed)?;
        let target = body.get(middle + 1..end).ok_or(ListingError::Malformed)?;
        let entry = parse_gnu_record(record, target, parsed).ok_or(ListingError::Malformed)?;
        if let Some(entry) = entry {
            parsed.push(entry)?;
        }
        used = end + 1;
    }
    Ok(used)
}

/// Parses the error messages after the records.
pub(crate) fn end_gnu_listing(rest: &[u8], mut parsed: ParsedListing) -> Option<ParsedListing> {
    if rest.contains(&0) {
        return None;
    }
    parsed.error_text = rest.to_vec();
    Some(parsed)
}

/// Parses one record of `take_gnu_records`. The record of the directory itself gives no entry.
fn parse_gnu_record(
    record: &[u8],
    target: &[u8],
    parsed: &mut ParsedListing,
) -> Option<Option<ListEntry>> {
    let record = GnuRecord::parse(record)?;
    if record.depth == 0 {
        parsed.top = Some(record.stat);
        return Some(None);
    }
    record.entry(target).map(Some)
}

/// One record of `take_gnu_records`, without the target of a symlink.
pub(super) struct GnuRecord<'a> {
    pub(super) depth: u64,
    pub(super) stat: Stat,
    name: &'a [u8],
    /// Whether `stat` is what `stat` would print.
    is_exact: bool,
}

impl<'a> GnuRecord<'a> {
    pub(super) fn parse(record: &'a [u8]) -> Option<Self> {
        let mut fields = record.splitn(14, |&b| b == b' ');
        let mut field = || fields.next();
        let kind = match field()? {
            b"f" => FileKind::File,
            b"d" => FileKind::Directory,
            b"l" => FileKind::Symlink,
            b"p" => FileKind::Fifo,
            b"s" => FileKind::Socket,
            b"c" => FileKind::CharDevice,
            b"b" => FileKind::BlockDevice,
            _ => return None,
        };
        let mode = u32::from_str_radix(std::str::from_utf8(field()?).ok()?, 8).ok()?;
        let size = parse_size(field()?)?;
        let mut number = || parse_number(field()?);
        let (blocks, nlink) = (number()?, number()?);
        let (uid, gid, dev, ino) = (number()?, number()?, number()?, number()?);
        let mut text = || std::str::from_utf8(field()?).ok();
        let (atime, mtime, ctime) = (text()?, text()?, text()?);
        let depth = parse_number(field()?)?;
        let name = field()?;
        let stat = Stat {
            kind,
            mode: mode & PERMISSIONS,
            nlink: u32::try_from(nlink).ok()?,
            uid: u32::try_from(uid).ok()?,
            gid: u32::try_from(gid).ok()?,
            size,
            blocks,
            atime: parse_epoch(atime)?,
            mtime: parse_epoch(mtime)?,
            ctime: Some(parse_epoch(ctime)?),
            id: Some(FileId { dev, ino }),
            rdev: DeviceNumber::default(),
        };
        // findutils 4.9 prints -2.5 where stat prints -1.5, and it cannot print device numbers.
        let is_exact = !matches!(kind, FileKind::CharDevice | FileKind::BlockDevice)
            && ![atime, mtime, ctime]
                .iter()
                .any(|time| time.starts_with('-'));
        Some(Self {
            depth,
            stat,
            name,
            is_exact,
        })
    }

    /// Returns the entry of a listing.
    pub(super) fn entry(&self, target: &[u8]) -> Option<ListEntry> {
        let kind = self.stat.kind;
        let is_link = kind == FileKind::Symlink && target.len() < MAX_TARGET;
        Some(ListEntry::new(
            Name::new(self.name).ok()?,
            kind,
            self.is_exact.then_some(self.stat),
            is_link.then(|| target.into()),
        ))
    }
}

/// Parses a listing with BusyBox or BSD: records as `take_marked_records` parses them, then GS,
/// the listing mark, `!` and error messages.
pub fn parse_marked_listing(body: &[u8], listing_mark: &[u8], top: &[u8]) -> Option<ParsedListing> {
    let mut parsed = ParsedListing::new(DEFAULT_MAX_NAMES);
    let used = take_marked_records(body, listing_mark, top, &mut parsed).ok()?;
    end_marked_listing(body.get(used..)?, listing_mark, parsed)
}

pub(super) fn mark_of(listing_mark: &[u8]) -> Vec<u8> {
    [b"\x1d", listing_mark].concat()
}

/// Parses the complete records at the beginning of `body`: each is GS, the listing mark, a space, a
/// line of `print_stats`, a space and the path. Returns their length in bytes.
pub(crate) fn take_marked_records(
    body: &[u8],
    listing_mark: &[u8],
    top: &[u8],
    parsed: &mut ParsedListing,
) -> Result<usize, ListingError> {
    let mark = mark_of(listing_mark);
    let mut used = 0;
    for next in memchr::memmem::find_iter(body, &mark) {
        let record = body.get(used..next).ok_or(ListingError::Malformed)?;
        if next > 0 {
            let record = record.strip_prefix(&mark[..]);
            let record = record.and_then(|record| record.strip_prefix(b" "));
            let entry = record.and_then(|record| parse_marked_record(record, top, parsed));
            if let Some(entry) = entry.ok_or(ListingError::Malformed)? {
                parsed.push(entry)?;
            }
        }
        used = next;
    }
    Ok(used)
}

/// Parses the error messages after the records.
pub(crate) fn end_marked_listing(
    rest: &[u8],
    listing_mark: &[u8],
    mut parsed: ParsedListing,
) -> Option<ParsedListing> {
    let error_text = rest
        .strip_prefix(&mark_of(listing_mark)[..])?
        .strip_prefix(b"!")?;
    parsed.error_text = error_text.to_vec();
    Some(parsed)
}

/// Parses one record of `take_marked_records`. The record of the directory itself gives no entry.
fn parse_marked_record(
    record: &[u8],
    top: &[u8],
    parsed: &mut ParsedListing,
) -> Option<Option<ListEntry>> {
    let (stat, path) = split_marked_record(record)?;
    if path == top {
        parsed.top = Some(stat);
        return Some(None);
    }
    let name = path.strip_prefix(top)?;
    let name = name.strip_prefix(b"/").unwrap_or(name);
    let name = Name::new(name).ok()?;
    Some(Some(ListEntry::new(name, stat.kind, Some(stat), None)))
}

/// Splits a record of `take_marked_records`, without its mark, into attributes and path.
pub(super) fn split_marked_record(record: &[u8]) -> Option<(Stat, &[u8])> {
    // Ten fields and three times, see `parse_stat`: either one word each, or civil times of three
    // words with bars between them. A bar after them belongs to the name.
    let record = record.strip_suffix(b"\n")?;
    let time = memchr::memchr_iter(b' ', record).nth(9)? + 1;
    let first = record.get(time..)?.split(|&b| b == b' ').next()?;
    let is_civil = memchr::memchr(b'-', first).is_some_and(|at| at > 0);
    let cut = memchr::memchr_iter(b' ', record).nth(if is_civil { 16 } else { 12 })?;
    let (stat, path) = record.split_at_checked(cut)?;
    Some((parse_stat(stat)?, path.get(1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stat::Time;

    const GNU: &[u8] =
        b"81a4 6 8 1 1000 100 65024 42 0 0 1700000001.000000000 1700000000.123456789 -1.500000000";

    #[test]
    fn a_line_of_gnu_stat_is_parsed() {
        let stat = parse_stat(GNU).unwrap();
        assert_eq!(
            (stat.kind, stat.mode, stat.size),
            (FileKind::File, 0o644, 6)
        );
        assert_eq!(
            (stat.uid, stat.gid, stat.nlink, stat.blocks),
            (1000, 100, 1, 8)
        );
        assert_eq!(
            stat.id,
            Some(FileId {
                dev: 65024,
                ino: 42
            })
        );
        assert_eq!(
            stat.mtime,
            Time {
                secs: 1_700_000_000,
                nanos: 123_456_789
            }
        );
        assert_eq!(
            stat.ctime,
            Some(Time {
                secs: -2,
                nanos: 500_000_000
            })
        );
    }

    #[test]
    fn a_line_of_busybox_stat_is_parsed() {
        // Captured from BusyBox 1.35 `stat -c '%f %s %b %h %u %g %d %i %t %T %x|%y|%z'`.
        let stat = parse_stat(
            b"21b6 0 0 1 0 0 5 4 1 3 2023-11-14 22:13:20.123456789 +0000|\
              1969-12-31 23:59:58.500000000 +0000|2024-02-29 00:00:00.000000000 +0000",
        )
        .unwrap();
        assert_eq!(stat.kind, FileKind::CharDevice);
        assert_eq!(stat.rdev, DeviceNumber { major: 1, minor: 3 });
        assert_eq!(
            stat.atime,
            Time {
                secs: 1_700_000_000,
                nanos: 123_456_789
            }
        );
        assert_eq!(
            stat.mtime,
            Time {
                secs: -2,
                nanos: 500_000_000
            }
        );
        assert_eq!(
            stat.ctime,
            Some(Time {
                secs: 1_709_164_800,
                nanos: 0
            })
        );
    }

    /// `stat -f '%Xp %z %b %l %u %g %d %i %XHr %XLr %Fa %Fm %Fc'`, by its manual.
    const BSD: &[u8] =
        b"21b6 0 0 1 0 0 1895825407 4 3 2 1700000000.123456789 1700000001.000000000 1.5";

    #[test]
    fn a_line_of_bsd_stat_is_parsed() {
        let stat = parse_stat(BSD).unwrap();
        assert_eq!(stat.kind, FileKind::CharDevice);
        assert_eq!(stat.rdev, DeviceNumber { major: 3, minor: 2 });
        assert_eq!(stat.atime.nanos, 123_456_789);
        assert_eq!(stat.mtime.secs, 1_700_000_001);
        assert_eq!(stat.id.unwrap().dev, 1_895_825_407);
        for (path, name) in [
            ("/r", ""),
            ("/r/a | b 12:3-4", "a | b 12:3-4"),
            ("/r/\n", "\n"),
        ] {
            let body = [b"\x1dTOK ", BSD, b" ", path.as_bytes(), b"\n\x1dTOK!"].concat();
            let parsed = parse_marked_listing(&body, b"TOK", b"/r").unwrap();
            let names: Vec<&[u8]> = parsed.entries.iter().map(|e| e.name.as_bytes()).collect();
            match name {
                "" => assert!(parsed.top.is_some() && names.is_empty()),
                name => assert_eq!(names, [name.as_bytes()]),
            }
        }
    }

    #[test]
    fn malformed_line_is_no_stat() {
        for bad in [
            &b""[..],
            b"stat: cannot statx 'x': No such file or directory",
            b"81a4 6 8 1 1000 100 65024 42 0 0 1 2",
            b"81a4 6 8 1 1000 100 65024 42 0 0 1 2 3 4",
            b"81a4 -6 8 1 1000 100 65024 42 0 0 1 2 3",
            b"ffff 6 8 1 1000 100 65024 42 0 0 1 2 3",
            b"81a4 6 8 1 99999999999 100 65024 42 0 0 1 2 3",
            b"81a4 6 8 1 0 0 1 42 0 0 2023-13-14 22:13:20.1 +0000|x|y",
        ] {
            assert_eq!(parse_stat(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_gnu_listing_keeps_every_byte_of_a_name() {
        let mut body = Vec::new();
        for (head, name, target) in [
            (
                &b"d 755 4096 8 2 0 0 1 2 1.0 2.0 3.0 0"[..],
                &b"top"[..],
                &b""[..],
            ),
            (
                b"f 644 1 8 1 0 0 1 3 1.0 2.5000000000 3.0 1",
                b"a b\n c",
                b"",
            ),
            (b"l 777 1 0 1 0 0 1 4 1.0 2.0 3.0 1", b"\xff", b"a -> b"),
            (b"c 666 0 0 1 0 0 1 5 1.0 2.0 3.0 1", b"null", b""),
            (b"f 644 0 0 1 0 0 1 6 1.0 -2.5000000000 3.0 1", b"old", b""),
        ] {
            body.extend_from_slice(&[head, b" ", name, b"\0", target, b"\0"].concat());
        }
        body.extend_from_slice(b"find: 'x': Permission denied");
        let parsed = parse_gnu_listing(&body).unwrap();
        assert_eq!(parsed.top.unwrap().kind, FileKind::Directory);
        assert_eq!(parsed.error_text, b"find: 'x': Permission denied");
        let names: Vec<&[u8]> = parsed.entries.iter().map(|e| e.name.as_bytes()).collect();
        assert_eq!(names, [&b"a b\n c"[..], b"\xff", b"null", b"old"]);
        assert_eq!(parsed.entries[0].stat.unwrap().mtime.nanos, 500_000_000);
        assert_eq!(parsed.entries[1].target.as_deref(), Some(&b"a -> b"[..]));
        assert!(parsed.entries[2].stat.is_none() && parsed.entries[3].stat.is_none());
        for cut in 1..body.len() - parsed.error_text.len() {
            // A truncated listing must not pass for a complete, shorter one.
            if let Some(cut) = parse_gnu_listing(&body[..cut]) {
                assert!(!cut.error_text.is_empty() || cut.entries.len() < parsed.entries.len());
            }
        }
    }

    #[test]
    fn a_busybox_listing_keeps_every_byte_of_a_name() {
        let times = "2023-11-14 22:13:20.1 +0000|2023-11-14 22:13:20.1 +0000|\
                     2023-11-14 22:13:20.1 +0000";
        let record = |mode: &str, path: &[u8]| {
            let head = format!("\x1dTOK {mode} 1 8 1 0 0 1 2 0 0 {times} ");
            [head.as_bytes(), path, b"\n"].concat()
        };
        let body = [
            record("41ed", b"/r"),
            record("81a4", b"/r/a\nb"),
            record("a1ff", b"/r/\xff"),
            b"\x1dTOK!".to_vec(),
        ]
        .concat();
        let parsed = parse_marked_listing(&body, b"TOK", b"/r").unwrap();
        assert_eq!(parsed.top.unwrap().kind, FileKind::Directory);
        let names: Vec<&[u8]> = parsed.entries.iter().map(|e| e.name.as_bytes()).collect();
        assert_eq!(names, [&b"a\nb"[..], b"\xff"]);
        assert_eq!(
            parse_marked_listing(&body[..body.len() - 5], b"TOK", b"/r"),
            None
        );
        assert_eq!(parse_marked_listing(b"", b"TOK", b"/r"), None);
    }

    #[test]
    fn out_of_range_numbers_are_rejected() {
        let line = |size: &str, links: &str| {
            let line = format!("81a4 {size} 8 {links} 0 0 1 2 0 0 1.0 1.0 1.0");
            parse_stat(line.as_bytes())
        };
        assert!(line("9223372036854775807", "1").is_some());
        for (size, links) in [
            ("9223372036854775808", "1"),
            ("18446744073709551615", "1"),
            ("-1", "1"),
            ("+1", "1"),
            ("", "1"),
            ("1", "+1"),
            ("1", "4294967296"),
        ] {
            assert_eq!(line(size, links), None, "{size} {links}");
        }
    }
}
