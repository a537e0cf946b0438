//! What the helper functions print, parsed; pure.

#![warn(clippy::indexing_slicing)]

pub mod ls;
pub mod mounts;
pub mod stat;
pub mod time;

use crate::path::Name;
use crate::remote::ListEntry;
use crate::remote::MAX_BYTES_PER_NAME;
use crate::remote::Reason;
use crate::remote::reason_of;
use crate::stat::FsStat;
use crate::stat::Stat;

/// What a symlink says is shorter than this, or the kernel does not take it.
pub(super) const MAX_TARGET: usize = 4096;

/// A listing and what the host complained of while it listed.
#[derive(Debug, PartialEq, Eq)]
pub struct ParsedListing {
    /// How many entries there may be.
    max_names: usize,
    /// How long their names and what links say are together.
    n_bytes: usize,
    has_too_many: bool,
    /// The directory itself.
    pub top: Option<Stat>,
    pub entries: Vec<ListEntry>,
    /// Names of which nothing else is known: each has to be asked for.
    pub unclear: Vec<Name>,
    pub complaints: Vec<u8>,
}

/// Why a listing is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoListing {
    /// The host's answer makes no sense.
    Nonsense,
    TooManyNames,
}

impl ParsedListing {
    /// A listing without entries, of which there may be so many.
    pub fn new(max_names: usize) -> Self {
        Self {
            max_names,
            n_bytes: 0,
            has_too_many: false,
            top: None,
            entries: Vec::new(),
            unclear: Vec::new(),
            complaints: Vec::new(),
        }
    }

    /// Adds an entry.
    pub(super) fn push(&mut self, entry: ListEntry) -> Result<(), NoListing> {
        let target = entry.target.as_ref().map_or(0, |target| target.len());
        self.n_bytes += entry.name.as_bytes().len() + target;
        let max_bytes = self.max_names.saturating_mul(MAX_BYTES_PER_NAME);
        self.has_too_many = self.entries.len() >= self.max_names || self.n_bytes > max_bytes;
        if self.has_too_many {
            return Err(NoListing::TooManyNames);
        }
        self.entries.push(entry);
        Ok(())
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
    fn what_vanished_while_it_was_listed_is_no_complaint() {
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
