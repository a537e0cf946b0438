//! What the helper functions print, parsed; pure.

#![warn(clippy::indexing_slicing)]

use crate::path::Name;
use crate::remote::ListEntry;
use crate::remote::MAX_NAMES;
use crate::remote::Reason;
use crate::stat::DeviceNumber;
use crate::stat::FileId;
use crate::stat::FileKind;
use crate::stat::FsStat;
use crate::stat::PERMISSIONS;
use crate::stat::Stat;
use crate::stat::Time;
use crate::stat::Version;

/// Statuses of `helpers.sh` that are not those of a program.
pub const CONFLICT: u32 = 201;
pub const EXISTS: u32 = 202;
/// The host has a piece's file open and reads exactly that piece next.
pub const READY: u32 = 203;
/// The file that pieces go into is not there any more, or not as large as they are.
pub const INCOMPLETE: u32 = 204;
/// The target itself was written to when the store failed.
pub const PARTIAL: u32 = 205;
/// The store found another file than it expected; the content is beside it.
pub const KEPT_BESIDE: u32 = 206;
/// The store found no file; it made one.
pub const RECREATED: u32 = 207;
/// The store found another file than it expected, with the same content.
pub const SAME: u32 = 208;
pub const ROOT_MISSING: u32 = 211;
pub const ROOT_NOT_A_DIRECTORY: u32 = 212;
pub const ROOT_DENIED: u32 = 213;

/// What a symlink says is shorter than this, or the kernel does not take it.
pub(super) const MAX_TARGET: usize = 4096;

/// How the tools of a host print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// GNU coreutils and findutils.
    Gnu,
    /// BusyBox with `stat`; toybox prints the same.
    BusyBox,
}

impl Flavour {
    /// Returns the word for it in `helpers.sh`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Gnu => "gnu",
            Self::BusyBox => "busybox",
        }
    }

    pub fn from_word(word: &[u8]) -> Option<Self> {
        match word {
            b"gnu" => Some(Self::Gnu),
            b"busybox" => Some(Self::BusyBox),
            _ => None,
        }
    }

    /// Returns how the host would print `version`, for the comparison on the host. `None` for
    /// a version without an inode, which cannot be compared there.
    pub fn version_text(self, version: &Version) -> Option<String> {
        let FileId { dev, ino } = version.id?;
        let Version { size, mtime, .. } = version;
        let time_text = |time: Time| match self {
            Self::Gnu => epoch_text(time),
            Self::BusyBox => civil_text(time),
        };
        let text = format!("{dev} {ino} {size} {}", time_text(*mtime));
        // Where times are whole seconds, a second writer may leave the same one; then the time
        // of the last change of any kind has to tell as well.
        match version.ctime {
            Some(ctime) if mtime.nanos == 0 && ctime.nanos == 0 => {
                Some(format!("c {text} {}", time_text(ctime)))
            }
            _ => Some(text),
        }
    }
}

/// `@`-less seconds with nine decimals as GNU tools read and print them: -1.5 is one and a half
/// seconds before 1970.
pub fn epoch_text(time: Time) -> String {
    if time.secs < 0 && time.nanos > 0 {
        let (secs, nanos) = (-(time.secs + 1), 1_000_000_000 - time.nanos);
        format!("-{secs}.{nanos:09}")
    } else {
        format!("{}.{:09}", time.secs, time.nanos)
    }
}

/// `2023-11-14 22:13:20.123456789 +0000`, as BusyBox prints a time in UTC.
fn civil_text(time: Time) -> String {
    let (days, secs) = (time.secs.div_euclid(86_400), time.secs.rem_euclid(86_400));
    let (year, month, day) = civil_from_days(days);
    let (h, m, s) = (secs / 3600, secs / 60 % 60, secs % 60);
    format!(
        "{year:04}-{month:02}-{day:02} {h:02}:{m:02}:{s:02}.{:09} +0000",
        time.nanos
    )
}

/// The proleptic Gregorian date of a day counted from 1970-01-01, by eras of 400 years that
/// begin on a 1st of March.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, doe) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, yoe) = (year.div_euclid(400), year.rem_euclid(400));
    let mp = if month > 2 { month - 3 } else { month + 9 };
    let doy = (153 * mp + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

/// Parses the lines that `st` prints. A path that is missing prints none, so the caller must
/// compare counts; `None` if any line is not one.
pub fn parse_stats(body: &[u8]) -> Option<Vec<Stat>> {
    lines(body).map(parse_stat).collect()
}

/// Parses one line of `st`: `%f %s %b %h %u %g %d %i %t %T` and three times.
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

/// Access, modification and change time: as seconds with decimals between spaces, or as civil
/// times between bars.
fn parse_times(text: &str) -> Option<[Time; 3]> {
    let (separator, parse): (char, fn(&str) -> Option<Time>) = if text.contains('|') {
        ('|', parse_civil)
    } else {
        (' ', parse_epoch)
    };
    let mut times = text.split(separator).map(parse);
    let all = [times.next()??, times.next()??, times.next()??];
    times.next().is_none().then_some(all)
}

/// `1700000000.123456789`, or `-1.500000000` for 1.5 s before 1970.
fn parse_epoch(text: &str) -> Option<Time> {
    let (is_negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (secs, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let secs: i64 = digits(secs)?.parse().ok()?;
    let nanos = parse_fraction(fraction)?;
    Some(match (is_negative, nanos) {
        (false, nanos) => Time { secs, nanos },
        (true, 0) => Time {
            secs: -secs,
            nanos: 0,
        },
        (true, nanos) => Time {
            secs: -secs - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

/// `2023-11-14 22:13:20.123456789 +0000`; the zone is always UTC because a lane sets it.
fn parse_civil(text: &str) -> Option<Time> {
    let mut parts = text.split(' ');
    let (date, clock) = (parts.next()?, parts.next()?);
    let mut date = date
        .splitn(3, '-')
        .map(|part| digits(part)?.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock
        .splitn(3, ':')
        .map(|part| digits(part)?.parse::<i64>().ok());
    let (h, m, s) = (clock.next()??, clock.next()??, clock.next()??);
    let is_sane = (0..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && h < 24
        && m < 60
        && s <= 60;
    is_sane.then_some(())?;
    let secs = days_from_civil(year, month, day) * 86_400 + h * 3600 + m * 60 + s;
    Some(Time {
        secs,
        nanos: parse_fraction(fraction)?,
    })
}

/// Decimals of a second: at most nanoseconds count, what follows must be digits.
fn parse_fraction(text: &str) -> Option<u32> {
    let text = digits(text)?;
    let text = text.get(..9).unwrap_or(text);
    let scale = 10u32.checked_pow(9 - u32::try_from(text.len()).ok()?)?;
    Some(text.parse::<u32>().ok()? * scale)
}

fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then_some(text)
}

/// A listing and what the host complained of while it listed.
#[derive(Debug, PartialEq, Eq)]
pub struct ParsedListing {
    /// The directory itself.
    pub top: Option<Stat>,
    pub entries: Vec<ListEntry>,
    pub complaints: Vec<u8>,
}

/// Parses what `l` prints with GNU find: `%y %m %s %b %n %U %G %D %i %A@ %T@ %C@ %d %f\0%l\0`,
/// then complaints.
pub fn parse_gnu_listing(body: &[u8]) -> Option<ParsedListing> {
    let cut = memchr::memrchr(0, body).map_or(0, |end| end + 1);
    let (records, complaints) = body.split_at_checked(cut)?;
    let mut parsed = ParsedListing {
        top: None,
        entries: Vec::new(),
        complaints: complaints.to_vec(),
    };
    let mut parts = records.split(|&b| b == 0);
    loop {
        let record = parts.next()?;
        let Some(target) = parts.next() else {
            return record.is_empty().then_some(parsed);
        };
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
        if depth == 0 {
            parsed.top = Some(stat);
            continue;
        }
        if parsed.entries.len() >= MAX_NAMES {
            return None;
        }
        // findutils 4.9 prints -2.5 for what stat prints as -1.5, and it has no number of a device.
        let is_exact = !matches!(kind, FileKind::CharDevice | FileKind::BlockDevice)
            && ![atime, mtime, ctime]
                .iter()
                .any(|time| time.starts_with('-'));
        parsed.entries.push(ListEntry {
            name: Name::new(name).ok()?,
            kind,
            stat: is_exact.then_some(stat),
            target: (kind == FileKind::Symlink && target.len() < MAX_TARGET).then(|| target.into()),
        });
    }
}

/// Parses what `l` prints with BusyBox: records of `st` with the path at the end, each after
/// GS, the token and a space; complaints after GS, the token and `!`.
pub fn parse_busybox_listing(body: &[u8], token: &[u8], top: &[u8]) -> Option<ParsedListing> {
    let mark = [b"\x1d", token].concat();
    let mut parsed = ParsedListing {
        top: None,
        entries: Vec::new(),
        complaints: Vec::new(),
    };
    let mut starts = memchr::memmem::find_iter(body, &mark).peekable();
    if starts.peek() != Some(&0) {
        return None;
    }
    while let Some(start) = starts.next() {
        let end = starts.peek().copied().unwrap_or(body.len());
        let record = body.get(start + mark.len()..end)?;
        let record = match record.split_first()? {
            (b' ', record) => record,
            (b'!', complaints) if starts.peek().is_none() => {
                parsed.complaints = complaints.to_vec();
                return Some(parsed);
            }
            _ => return None,
        };
        // Ten fields and three times of two spaces each, see `parse_stat`.
        let record = record.strip_suffix(b"\n")?;
        let cut = memchr::memchr_iter(b' ', record).nth(16)?;
        let (stat, path) = record.split_at_checked(cut)?;
        let stat = parse_stat(stat)?;
        let path = path.get(1..)?;
        if path == top {
            parsed.top = Some(stat);
            continue;
        }
        if parsed.entries.len() >= MAX_NAMES {
            return None;
        }
        let name = path.strip_prefix(top)?;
        let name = name.strip_prefix(b"/").unwrap_or(name);
        parsed.entries.push(ListEntry {
            name: Name::new(name).ok()?,
            kind: stat.kind,
            stat: Some(stat),
            target: None,
        });
    }
    None
}

/// Parses what `stat -f -c '%S %b %f %a %c %d %l'` prints.
pub fn parse_fs_stat(body: &[u8]) -> Option<FsStat> {
    let mut fields = lines(body).next()?.split(|&b| b == b' ').map(parse_number);
    let mut next = || fields.next().flatten();
    Some(FsStat {
        block_size: u32::try_from(next()?).ok()?,
        blocks: next()?,
        blocks_free: next()?,
        blocks_available: next()?,
        files: next()?,
        files_free: next()?,
        name_max: u32::try_from(next()?).ok()?,
    })
}

fn parse_number(text: &[u8]) -> Option<u64> {
    digits(std::str::from_utf8(text).ok()?)?.parse().ok()
}

/// A size or an offset: no file is larger than what `off_t` counts, and sums of two of them fit.
fn parse_size(text: &[u8]) -> Option<u64> {
    parse_number(text).filter(|&size| i64::try_from(size).is_ok())
}

/// The lines of an answer, without an empty last one.
pub fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.split(|&b| b == b'\n').filter(|line| !line.is_empty())
}

/// Classifies what a program complained of by the text that `strerror` gave it.
///
/// A shell has no error number to offer; with `LC_ALL=C` the texts of glibc, musl and uClibc
/// differ in few words. Only the end of the last line counts: a file name cannot forge it.
pub fn reason_of(text: &[u8]) -> Reason {
    let Some(line) = lines(text).last() else {
        return Reason::Other;
    };
    let line = line.trim_ascii_end();
    let tail = memchr::memmem::rfind(line, b": ").map_or(line, |at| line.get(at..).unwrap_or(line));
    let has = |needle: &[u8]| memchr::memmem::find(tail, needle).is_some();
    let table: [(&[u8], Reason); 34] = [
        (b"No such file or directory", Reason::NotFound),
        (b"File exists", Reason::Exists),
        (b"cannot overwrite directory", Reason::Exists),
        (b"Permission denied", Reason::AccessDenied),
        (b"ermission denied", Reason::AccessDenied),
        (b"Operation not permitted", Reason::NotPermitted),
        (b"Not a directory", Reason::NotADirectory),
        (b"not a regular file", Reason::IsADirectory),
        (b"Is a directory", Reason::IsADirectory),
        (b"' is a directory", Reason::IsADirectory),
        (b"Directory not empty", Reason::NotEmpty),
        (b"Too many links", Reason::TooManyLinks),
        (b"File name too long", Reason::NameTooLong),
        (b"Filename too long", Reason::NameTooLong),
        (b"name too long", Reason::NameTooLong),
        (b"Too many levels of symbolic links", Reason::SymlinkLoop),
        (b"Symbolic link loop", Reason::SymlinkLoop),
        (b"Read-only file system", Reason::ReadOnly),
        (b"No space left on device", Reason::NoSpace),
        (b"Disk quota exceeded", Reason::QuotaExceeded),
        (b"Quota exceeded", Reason::QuotaExceeded),
        (b"File too large", Reason::FileTooLarge),
        (b"Invalid cross-device link", Reason::CrossDevice),
        (b"Cross-device link", Reason::CrossDevice),
        (b"Device or resource busy", Reason::Busy),
        (b"Resource busy", Reason::Busy),
        (b"Text file busy", Reason::TextBusy),
        (b"Invalid argument", Reason::InvalidArgument),
        (b"to a subdirectory of itself", Reason::InvalidArgument),
        (b"not supported", Reason::NotSupported),
        (b"No such device", Reason::NoSuchDevice),
        (b"Input/output error", Reason::InputOutput),
        (b"Stale file handle", Reason::Stale),
        (b"Broken pipe", Reason::Changed),
    ];
    table
        .iter()
        .find(|(needle, _)| has(needle))
        .map_or(Reason::Other, |&(_, reason)| reason)
}

/// Returns the first complaint that is not about a file that vanished while it was listed.
pub fn serious_complaint(complaints: &[u8]) -> Option<Reason> {
    lines(complaints)
        .map(reason_of)
        .find(|&reason| reason != Reason::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn nonsense_is_not_a_stat() {
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
    fn times_are_printed_as_the_host_prints_them() {
        for (secs, nanos, epoch, civil) in [
            (
                1_700_000_000,
                5,
                "1700000000.000000005",
                "2023-11-14 22:13:20.000000005 +0000",
            ),
            (
                -2,
                500_000_000,
                "-1.500000000",
                "1969-12-31 23:59:58.500000000 +0000",
            ),
            (
                951_782_400,
                0,
                "951782400.000000000",
                "2000-02-29 00:00:00.000000000 +0000",
            ),
        ] {
            let time = Time { secs, nanos };
            assert_eq!(
                (epoch_text(time).as_str(), civil_text(time).as_str()),
                (epoch, civil)
            );
            assert_eq!(
                (parse_epoch(epoch), parse_civil(civil)),
                (Some(time), Some(time))
            );
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
        assert_eq!(parsed.complaints, b"find: 'x': Permission denied");
        let names: Vec<&[u8]> = parsed.entries.iter().map(|e| e.name.as_bytes()).collect();
        assert_eq!(names, [&b"a b\n c"[..], b"\xff", b"null", b"old"]);
        assert_eq!(parsed.entries[0].stat.unwrap().mtime.nanos, 500_000_000);
        assert_eq!(parsed.entries[1].target.as_deref(), Some(&b"a -> b"[..]));
        assert!(parsed.entries[2].stat.is_none() && parsed.entries[3].stat.is_none());
        for cut in 1..body.len() - parsed.complaints.len() {
            // A cut is never taken for a shorter listing without a trace of the cut.
            if let Some(cut) = parse_gnu_listing(&body[..cut]) {
                assert!(!cut.complaints.is_empty() || cut.entries.len() < parsed.entries.len());
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
        let parsed = parse_busybox_listing(&body, b"TOK", b"/r").unwrap();
        assert_eq!(parsed.top.unwrap().kind, FileKind::Directory);
        let names: Vec<&[u8]> = parsed.entries.iter().map(|e| e.name.as_bytes()).collect();
        assert_eq!(names, [&b"a\nb"[..], b"\xff"]);
        assert_eq!(
            parse_busybox_listing(&body[..body.len() - 5], b"TOK", b"/r"),
            None
        );
        assert_eq!(parse_busybox_listing(b"", b"TOK", b"/r"), None);
    }

    #[test]
    fn complaints_are_classified_by_their_end() {
        for (text, reason) in [
            (
                &b"mkdir: cannot create directory 'x': File exists\n"[..],
                Reason::Exists,
            ),
            (
                b"rm: cannot remove 'No such file or directory': Permission denied",
                Reason::AccessDenied,
            ),
            (b"scp: /x: No space left on device", Reason::NoSpace),
            (
                b"rmdir: failed to remove 'd': Directory not empty",
                Reason::NotEmpty,
            ),
            (b"something else", Reason::Other),
            (b"", Reason::Other),
        ] {
            assert_eq!(reason_of(text), reason, "{}", String::from_utf8_lossy(text));
        }
        let vanished = b"find: 'a': No such file or directory\n";
        assert_eq!(serious_complaint(vanished), None);
        let denied = b"find: 'a': No such file or directory\nfind: 'b': Permission denied\n";
        assert_eq!(serious_complaint(denied), Some(Reason::AccessDenied));
    }

    #[test]
    fn numbers_that_no_file_has_are_no_attributes() {
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

    #[test]
    fn a_state_of_the_filesystem_is_parsed() {
        let fs = parse_fs_stat(b"4096 100 50 40 1000 900 255\n").unwrap();
        assert_eq!(
            (fs.block_size, fs.blocks_available, fs.name_max),
            (4096, 40, 255)
        );
        assert_eq!(parse_fs_stat(b"stat: not found\n"), None);
    }
}
