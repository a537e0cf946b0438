//! What the helper functions print, parsed; pure.

#![warn(clippy::indexing_slicing)]

pub mod ls;
pub mod mounts;
pub mod stat;
pub mod time;

use crate::path::Name;
use crate::remote::ListEntry;
use crate::remote::MAX_NAMES;
use crate::remote::Reason;
use crate::stat::FsStat;
use crate::stat::Stat;

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

/// A listing and what the host complained of while it listed.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct ParsedListing {
    /// The directory itself.
    pub top: Option<Stat>,
    pub entries: Vec<ListEntry>,
    /// Names of which nothing else is known: each has to be asked for.
    pub unclear: Vec<Name>,
    pub complaints: Vec<u8>,
}

impl ParsedListing {
    /// Adds an entry; `None` if there are more than any directory has.
    pub(super) fn push(&mut self, entry: ListEntry) -> Option<()> {
        if self.entries.len() >= MAX_NAMES {
            return None;
        }
        self.entries.push(entry);
        Some(())
    }
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

/// Parses what `df -Pk` prints: blocks of 1024 bytes. It tells nothing of files and names.
pub fn parse_df(body: &[u8]) -> Option<FsStat> {
    // The device and the mountpoint may hold spaces.
    let words: Vec<&[u8]> = lines(body)
        .last()?
        .split(|&b| b == b' ')
        .filter(|word| !word.is_empty())
        .collect();
    words.windows(4).find_map(|window| {
        let &[blocks, used, available, share] = window else {
            return None;
        };
        let (blocks, used) = (parse_number(blocks)?, parse_number(used)?);
        if share != b"-" && !share.ends_with(b"%") {
            return None;
        }
        Some(FsStat {
            block_size: 1024,
            blocks,
            blocks_free: blocks.saturating_sub(used),
            // BSD prints a negative number when the reserve is in use.
            blocks_available: parse_number(available).unwrap_or(0),
            files: 0,
            files_free: 0,
            name_max: 255,
        })
    })
}

pub(super) fn parse_number(text: &[u8]) -> Option<u64> {
    digits(std::str::from_utf8(text).ok()?)?.parse().ok()
}

/// A size or an offset: no file is larger than what `off_t` counts, and sums of two of them fit.
pub(super) fn parse_size(text: &[u8]) -> Option<u64> {
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
    let table: [(&[u8], Reason); 36] = [
        (b"No such file or directory", Reason::NotFound),
        (b"File exists", Reason::Exists),
        (b"cannot overwrite directory", Reason::Exists),
        (b"cannot overwrite non-directory", Reason::NotADirectory),
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
        // What a shell says of a program that SIGXFSZ ended.
        (b"File size limit exceeded", Reason::FileTooLarge),
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

pub(super) fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_state_of_the_filesystem_is_parsed() {
        let fs = parse_fs_stat(b"4096 100 50 40 1000 900 255\n").unwrap();
        assert_eq!(
            (fs.block_size, fs.blocks_available, fs.name_max),
            (4096, 40, 255)
        );
        assert_eq!(parse_fs_stat(b"stat: not found\n"), None);
        let df = |line: &str| {
            let head = "Filesystem 1024-blocks Used Available Capacity Mounted on\n";
            let fs = parse_df([head, line].concat().as_bytes())?;
            Some((
                fs.block_size,
                fs.blocks,
                fs.blocks_free,
                fs.blocks_available,
            ))
        };
        for (line, found) in [
            (
                "/dev/root 264212 24309 70976 26% /\n",
                (264_212, 239_903, 70_976),
            ),
            ("//nas/a b 1 2 100 40 50 45% /mnt/1 2 3 4%\n", (100, 60, 50)),
            ("/dev/ada0p2 100 99 -7 108% /\n", (100, 1, 0)),
            ("overlayfs:/overlay   0 0 0 - /\n", (0, 0, 0)),
        ] {
            let (blocks, free, available) = found;
            assert_eq!(df(line), Some((1024, blocks, free, available)), "{line}");
        }
        assert_eq!(parse_df(b"df: x: No such file or directory\n"), None);
    }
}
