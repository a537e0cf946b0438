//! Parser of `ls -lnis --full-time`, for hosts without `stat`; pure.
//!
//! `ls` prints `?` for some bytes of names. So the names come from the arguments, or from `find
//! -print0`. `ls` and this parser sort names by bytes, which pairs them with the lines of `ls`.

#![warn(clippy::indexing_slicing)]

use std::collections::HashMap;

use crate::path::Name;
use crate::remote::DEFAULT_MAX_NAMES;
use crate::remote::ListEntry;
use crate::shell::answer::ListingError;
use crate::shell::answer::MAX_TARGET;
use crate::shell::answer::ParsedListing;
use crate::shell::answer::lines;
use crate::shell::answer::mounts::Mount;
use crate::shell::answer::mounts::mount_of;
use crate::shell::answer::mounts::parse_mounts;
use crate::shell::answer::parse_size;
use crate::shell::answer::time::parse_civil;
use crate::stat::DeviceNumber;
use crate::stat::FileId;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::stat::Time;

/// The first byte of the output of `print_stats` with `ls`.
pub(super) const BLOCK_START: &[u8] = b"\x1d";

/// One line of `ls`.
#[derive(Debug, Clone)]
struct Line<'a> {
    /// Without `ctime`, `atime` and the device in `id`. `mtime` is whichever time `ls` printed.
    stat: Stat,
    ino: u64,
    /// The name as `ls` prints it; for a symlink also ` -> ` and its target.
    tail: &'a [u8],
}

/// Parses the output of `print_stats` after [`BLOCK_START`]: the attributes of the paths, in the
/// order of the arguments.
pub(super) fn parse_block(block: &[u8]) -> Option<Vec<Stat>> {
    let (paths, rest) = split_words(block)?;
    let (mounts, rest) = split_words(rest)?;
    let mounts = parse_mounts(&mounts)?;
    let printed: Vec<Line<'_>> = lines(rest).map(parse_line).collect::<Option<_>>()?;
    let n = paths.len();
    if n == 0 || printed.len() != 3 * n {
        return None;
    }
    let (modified, others) = printed.split_at_checked(n)?;
    let (changed, accessed) = others.split_at_checked(n)?;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|&at| paths.get(at));
    let mut stats = vec![None; n];
    for (at, ((line, changed), accessed)) in
        order.iter().zip(modified.iter().zip(changed).zip(accessed))
    {
        let path = paths.get(*at)?;
        let key = |line: &Line<'_>| (line.ino, line.tail.to_vec());
        if !line.has_name(path) || key(changed) != key(line) || key(accessed) != key(line) {
            return None;
        }
        *stats.get_mut(*at)? =
            Some(line.complete(changed.stat.mtime, accessed.stat.mtime, &mounts, path));
    }
    stats.into_iter().collect()
}

/// Parses the output of `list_directory`: the names in the directory `top`, the mounts, the output
/// of `ls` three times, error messages.
pub fn parse_listing(body: &[u8], mark: &[u8], top: &[u8]) -> Option<ParsedListing> {
    parse_listing_within(body, mark, top, DEFAULT_MAX_NAMES).ok()
}

/// Parses a listing as [`parse_listing`] does, of at most `max_names` names.
///
/// # Errors
///
/// `TooManyNames` if there are more, `Malformed` if it is no listing.
pub(crate) fn parse_listing_within(
    body: &[u8],
    mark: &[u8],
    top: &[u8],
    max_names: usize,
) -> Result<ParsedListing, ListingError> {
    let mut parsed = ParsedListing::new(max_names);
    match fill(body, mark, top, &mut parsed) {
        Some(()) => Ok(parsed),
        None if parsed.has_too_many => Err(ListingError::TooManyNames),
        None => Err(ListingError::Malformed),
    }
}

fn fill(body: &[u8], mark: &[u8], top: &[u8], parsed: &mut ParsedListing) -> Option<()> {
    let (paths, rest) = split_words(body)?;
    let (mounts, rest) = split_words(rest)?;
    let mounts = parse_mounts(&mounts)?;
    let mark = [BLOCK_START, mark].concat();
    let mut cuts = memchr::memmem::find_iter(rest, &mark);
    let mut start = 0;
    let mut section = || {
        let end = cuts.next()?;
        let text = rest.get(start..end)?;
        start = end + mark.len();
        let is_entry = |line: &&[u8]| !line.starts_with(b"total ");
        Some(lines(text).filter(is_entry).map(parse_line))
    };
    let modified = section()?.collect::<Option<Vec<Line<'_>>>>()?;
    let (changed, accessed) = (times(section()?)?, times(section()?)?);
    parsed.error_text = rest.get(start..)?.to_vec();

    let inside = [top.strip_suffix(b"/").unwrap_or(top), b"/"].concat();
    let mut names: Vec<&[u8]> = vec![b".", b".."];
    for path in paths {
        names.push(path.strip_prefix(&inside[..])?);
    }
    names.sort_unstable();
    let found = match_lines(&names, &modified);
    for (name, found) in names.into_iter().zip(found) {
        let line = match found {
            Match::Line(line) => line,
            Match::Gone => continue,
            Match::Ambiguous => {
                parsed.ambiguous.push(Name::new(name).ok()?);
                continue;
            }
        };
        let key = (line.ino, line.tail);
        let path = match name {
            b"." => top.to_vec(),
            name => [&inside, name].concat(),
        };
        let times = changed.get(&key).zip(accessed.get(&key));
        let stat =
            times.map(|(&changed, &accessed)| line.complete(changed, accessed, &mounts, &path));
        match name {
            b"." => parsed.top = stat,
            b".." => {}
            name => {
                let target = line.target(name);
                let name = Name::new(name).ok()?;
                let entry = ListEntry::new(name, line.stat.kind, stat, target);
                parsed.push(entry).ok()?;
            }
        }
    }
    Some(())
}

enum Match<'a, 'b> {
    Line(&'a Line<'b>),
    /// The file was removed after `find` had printed its name.
    Gone,
    Ambiguous,
}

/// Finds the line of each name.
fn match_lines<'a, 'b>(names: &[&[u8]], printed: &'a [Line<'b>]) -> Vec<Match<'a, 'b>> {
    let fits = |(name, line): (&&[u8], &Line<'_>)| line.has_name(name);
    if names.len() == printed.len() && names.iter().zip(printed).all(fits) {
        return printed.iter().map(Match::Line).collect();
    }
    // The directory changed between `find` and `ls`. Names that `ls` prints unchanged are looked
    // up; the others are ambiguous.
    let mut by_name: HashMap<&[u8], Option<&Line<'_>>> = HashMap::new();
    for line in printed {
        let mut add = |name| {
            let is_first = !by_name.contains_key(name);
            by_name.insert(name, is_first.then_some(line));
        };
        if line.stat.kind != FileKind::Symlink {
            add(line.tail);
            continue;
        }
        for at in memchr::memmem::find_iter(line.tail, b" -> ") {
            if let Some(name) = line.tail.get(..at) {
                add(name);
            }
        }
    }
    names
        .iter()
        .map(|name| match by_name.get(name) {
            _ if !is_printed_unchanged(name) => Match::Ambiguous,
            Some(Some(line)) => Match::Line(line),
            Some(None) => Match::Ambiguous,
            None => Match::Gone,
        })
        .collect()
}

fn times<'a>(
    printed: impl Iterator<Item = Option<Line<'a>>>,
) -> Option<HashMap<(u64, &'a [u8]), Time>> {
    printed
        .map(|line| line.map(|line| ((line.ino, line.tail), line.stat.mtime)))
        .collect()
}

impl Line<'_> {
    /// Returns whether this can be the line of a file called `name`.
    fn has_name(&self, name: &[u8]) -> bool {
        if self.stat.kind == FileKind::Symlink {
            let start = [&normalized(name)[..], b" -> "].concat();
            normalized(self.tail).starts_with(&start)
        } else {
            self.tail == name || normalized(self.tail) == normalized(name)
        }
    }

    /// Returns the target of a symlink, unless `ls` may have replaced bytes of it or of the name.
    fn target(&self, name: &[u8]) -> Option<Box<[u8]>> {
        let target = self.tail.strip_prefix(name)?.strip_prefix(b" -> ")?;
        let is_exact = self.stat.kind == FileKind::Symlink
            && is_printed_unchanged(name)
            && is_printed_unchanged(target);
        (is_exact && target.len() < MAX_TARGET).then(|| target.into())
    }

    fn complete(&self, changed: Time, accessed: Time, mounts: &[Mount<'_>], path: &[u8]) -> Stat {
        let mount = mount_of(mounts, path);
        Stat {
            atime: accessed,
            ctime: Some(changed),
            id: mount.map(|mount| FileId {
                dev: mount.dev,
                ino: self.ino,
            }),
            ..self.stat
        }
    }
}

/// Splits off the words up to an empty one, each of which ends with NUL. Returns them and the rest.
fn split_words(text: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let mut words = Vec::new();
    let mut rest = text;
    loop {
        let (word, after) = rest.split_at_checked(memchr::memchr(0, rest)?)?;
        rest = after.get(1..)?;
        if word.is_empty() {
            return Some((words, rest));
        }
        words.push(word);
    }
}

/// Returns a form of a name that is equal for all variants of `ls`: some replace bytes that are not
/// ASCII, others characters.
fn normalized(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    for &byte in name {
        match byte {
            b'?' | 0..0x20 | 0x7f.. if out.last() == Some(&b'?') => {}
            b'?' | 0..0x20 | 0x7f.. => out.push(b'?'),
            byte => out.push(byte),
        }
    }
    out
}

/// Returns whether every variant of `ls` prints this name unchanged, and no other name like it.
fn is_printed_unchanged(name: &[u8]) -> bool {
    name.iter().all(|&b| (0x20..0x7f).contains(&b) && b != b'?')
}

/// Parses a line: inode, blocks of 1024 bytes, mode, links, owner, group, size or device, date,
/// time, zone and name.
fn parse_line(line: &[u8]) -> Option<Line<'_>> {
    let mut rest = line;
    let mut word = || {
        let start = rest.iter().position(|&b| b != b' ')?;
        let text = rest.get(start..)?;
        let end = memchr::memchr(b' ', text).unwrap_or(text.len());
        rest = text.get(end..)?;
        std::str::from_utf8(text.get(..end)?).ok()
    };
    let ino: u64 = word()?.parse().ok()?;
    let blocks: u64 = word()?.parse().ok()?;
    let (kind, mode) = parse_mode(word()?)?;
    let nlink = word()?.parse().ok()?;
    let uid = word()?.parse().ok()?;
    let gid = word()?.parse().ok()?;
    let size = word()?;
    let mut stat = Stat {
        kind,
        mode,
        nlink,
        uid,
        gid,
        size: 0,
        blocks: blocks.checked_mul(2)?,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: None,
        id: None,
        rdev: DeviceNumber::default(),
    };
    if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) {
        stat.rdev = DeviceNumber {
            major: size.strip_suffix(',')?.parse().ok()?,
            minor: word()?.parse().ok()?,
        };
    } else {
        stat.size = parse_size(size.as_bytes())?;
    }
    let (date, clock, zone) = (word()?, word()?, word()?);
    if zone != "+0000" {
        return None;
    }
    stat.mtime = parse_civil(&format!("{date} {clock} {zone}"))?;
    Some(Line {
        stat,
        ino,
        tail: rest.strip_prefix(b" ")?,
    })
}

/// Parses `drwxr-sr-t`. A character after the tenth marks an ACL or a security context, and is
/// ignored.
fn parse_mode(text: &str) -> Option<(FileKind, u32)> {
    let (&first, rest) = text.as_bytes().split_first()?;
    let kind = match first {
        b'-' => FileKind::File,
        b'd' => FileKind::Directory,
        b'l' => FileKind::Symlink,
        b'p' => FileKind::Fifo,
        b's' => FileKind::Socket,
        b'c' => FileKind::CharDevice,
        b'b' => FileKind::BlockDevice,
        _ => return None,
    };
    let mut mode = 0;
    for (at, &letter) in rest.get(..9)?.iter().enumerate() {
        let bit = 1 << (8 - at);
        let special = match at {
            2 => 0o4000,
            5 => 0o2000,
            8 => 0o1000,
            _ => 0,
        };
        mode |= match (at % 3, letter) {
            (_, b'-') => 0,
            (0, b'r') | (1, b'w') | (2, b'x') => bit,
            (2, b's' | b't') => bit | special,
            (2, b'S' | b'T') => special,
            _ => return None,
        };
    }
    Some((kind, mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Captured from BusyBox 1.35 `ls -lnids --full-time` with LC_ALL=C TZ=UTC0.
    const FILE: &[u8] =
        b"10043395      8 -rwsr-x--T    1 0        100           12345 2023-11-14 22:13:20 +0000 /r/b?";
    const DEVICE: &[u8] =
        b"10043397      0 crw-r--r--    1 0        0           1,   3 2026-11-22 18:24:27 +0000 nul";

    #[test]
    fn a_line_is_parsed() {
        let line = parse_line(FILE).unwrap();
        assert_eq!((line.ino, line.tail), (10_043_395, &b"/r/b?"[..]));
        let stat = line.stat;
        assert_eq!((stat.kind, stat.mode), (FileKind::File, 0o5750));
        assert_eq!((stat.size, stat.blocks, stat.nlink), (12_345, 16, 1));
        assert_eq!((stat.uid, stat.gid), (0, 100));
        assert_eq!(stat.mtime.secs, 1_700_000_000);
        let line = parse_line(DEVICE).unwrap();
        assert_eq!(line.stat.kind, FileKind::CharDevice);
        assert_eq!(line.stat.rdev, DeviceNumber { major: 1, minor: 3 });
        // toybox and GNU print decimals; a name may begin with spaces.
        let line = b"2 4 drwxr-xr-x 21 0 0 4096 2026-11-22 18:04:32.5 +0000  sp ";
        let line = parse_line(line).unwrap();
        assert_eq!(
            (line.stat.mtime.nanos, line.tail),
            (500_000_000, &b" sp "[..])
        );
        for bad in [
            &b""[..],
            b"ls: /x: No such file or directory",
            b"1 2 -rw-r--r-- 1 0 0 1 2026-11-22 18:24:27 +0530 x",
            b"1 2 ?rw-r--r-- 1 0 0 1 2026-11-22 18:24:27 +0000 x",
            b"1 2 -rw-r--r-- 1 0 0 1 Nov 22 18:24 x",
            b"1 2 -rw-r--r-- 1 0 0 1 2026-11-22 18:24:27 +0000",
        ] {
            assert!(
                parse_line(bad).is_none(),
                "{}",
                String::from_utf8_lossy(bad)
            );
        }
    }

    fn line(ino: u64, mode: &str, second: u32, tail: &str) -> String {
        format!("{ino} 4 {mode} 1 0 0 7 2023-11-14 22:13:{second:02} +0000 {tail}\n")
    }

    #[test]
    fn block_has_the_order_of_its_paths() {
        let lines = |second| {
            line(1, "drwxr-xr-x", second, "/r") + &line(2, "lrwxrwxrwx", second, "/r/?? -> x")
        };
        let block = "/r/\u{fc}\0/r\0\x00254:0 ext4 /\x000:5 tmpfs /r/\\303\\274\0\0".to_owned()
            + &lines(20)
            + &lines(21)
            + &lines(22);
        let stats = parse_block(block.as_bytes()).unwrap();
        let [link, dir] = stats[..] else { panic!() };
        assert_eq!(
            (link.kind, dir.kind),
            (FileKind::Symlink, FileKind::Directory)
        );
        assert_eq!(
            dir.id,
            Some(FileId {
                dev: 254 << 32,
                ino: 1
            })
        );
        assert_eq!(link.id, Some(FileId { dev: 5, ino: 2 }));
        let secs = |time: Time| time.secs - 1_700_000_000;
        assert_eq!(secs(link.mtime), 0);
        assert_eq!((secs(link.ctime.unwrap()), secs(link.atime)), (1, 2));
        for cut in 1..block.len() {
            if let Some(stats) = parse_block(&block.as_bytes()[..cut]) {
                assert_eq!((stats.len(), cut), (2, block.len() - 1));
            }
        }
    }

    fn listing(names: &[&str], printed: &[String]) -> Option<ParsedListing> {
        let mut body = String::new();
        for name in names {
            body += &format!("/r/{name}\0");
        }
        body += "\x008:1 ext4 /\0\0";
        for _ in 0..3 {
            body += "total 8\n";
            body += &line(1, "drwxr-xr-x", 20, ".");
            body += &line(9, "drwxr-xr-x", 20, "..");
            body.extend(printed.iter().map(String::as_str));
            body += "\x1dK";
        }
        parse_listing(body.as_bytes(), b"K", b"/r")
    }

    #[test]
    fn listing_pairs_names_with_lines() {
        let printed = [
            line(2, "-rw-r--r--", 20, "a?b"),
            line(3, "lrwxrwxrwx", 20, "l -> to -> x"),
            line(4, "-rw-r--r--", 20, "?"),
            line(5, "lrwxrwxrwx", 20, "?? -> ?"),
        ];
        let parsed = listing(&["\u{fc}", "l", "a\nb", "\u{e4}"], &printed).unwrap();
        let found: Vec<_> = parsed
            .entries
            .iter()
            .map(|entry| (entry.name.as_bytes(), entry.stat.unwrap().id.unwrap().ino))
            .collect();
        assert_eq!(
            found,
            [
                (&b"a\nb"[..], 2),
                (b"l", 3),
                ("\u{e4}".as_bytes(), 4),
                ("\u{fc}".as_bytes(), 5)
            ]
        );
        assert_eq!(parsed.entries[1].target.as_deref(), Some(&b"to -> x"[..]));
        assert_eq!(parsed.entries[3].target, None);
        assert_eq!(parsed.top.unwrap().id.unwrap().ino, 1);
        assert!(parsed.ambiguous.is_empty());
    }

    #[test]
    fn listing_of_changed_directory_has_no_wrong_attributes() {
        let printed = [
            line(2, "-rw-r--r--", 20, "kept"),
            line(3, "-rw-r--r--", 20, "made"),
            line(4, "-rw-r--r--", 20, "?"),
        ];
        let parsed = listing(&["gone", "kept", "\u{fc}"], &printed).unwrap();
        let names: Vec<_> = parsed.entries.iter().map(|e| e.name.as_bytes()).collect();
        assert_eq!(names, [b"kept"]);
        assert_eq!(parsed.ambiguous, [Name::new("\u{fc}".as_bytes()).unwrap()]);
    }
}
