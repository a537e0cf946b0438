//! Parsers of the output of the helper functions; pure.

#![warn(clippy::indexing_slicing)]

pub mod ls;
pub mod mounts;
pub mod stat;
pub mod time;
pub mod trees;

use crate::path::Name;
use crate::remote::ListEntry;
use crate::remote::MAX_BYTES_PER_NAME;
use crate::remote::Reason;
use crate::remote::reason_of;
use crate::stat::FsStat;
use crate::stat::Stat;

/// Symlink targets are shorter than this, in bytes (`PATH_MAX` of Linux includes the final NUL).
pub(super) const MAX_TARGET: usize = 4096;

/// A parsed listing, and the error messages of the programs that made it.
#[derive(Debug, PartialEq, Eq)]
pub struct ParsedListing {
    /// The maximum number of entries.
    max_names: usize,
    /// The total length of names and symlink targets.
    n_bytes: usize,
    has_too_many: bool,
    /// The attributes of the directory itself.
    pub top: Option<Stat>,
    pub entries: Vec<ListEntry>,
    /// Names whose attributes could not be told apart: each needs a request of its own.
    pub ambiguous: Vec<Name>,
    pub error_text: Vec<u8>,
}

/// Why a listing is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListingError {
    /// The answer is malformed.
    Malformed,
    TooManyNames,
}

impl ParsedListing {
    /// Returns an empty listing for at most `max_names` entries.
    pub fn new(max_names: usize) -> Self {
        Self {
            max_names,
            n_bytes: 0,
            has_too_many: false,
            top: None,
            entries: Vec::new(),
            ambiguous: Vec::new(),
            error_text: Vec::new(),
        }
    }

    /// Adds an entry.
    ///
    /// # Errors
    ///
    /// `TooManyNames` if there are too many, or their names are too long in total.
    pub(super) fn push(&mut self, entry: ListEntry) -> Result<(), ListingError> {
        let target = entry.target.as_ref().map_or(0, |target| target.len());
        self.n_bytes += entry.name.as_bytes().len() + target;
        let max_bytes = self.max_names.saturating_mul(MAX_BYTES_PER_NAME);
        self.has_too_many = self.entries.len() >= self.max_names || self.n_bytes > max_bytes;
        if self.has_too_many {
            return Err(ListingError::TooManyNames);
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

/// Parses what `df -Pk` prints, in blocks of 1024 bytes. It has no number of files and no maximum
/// name length.
pub fn parse_df(body: &[u8]) -> Option<FsStat> {
    // The device and the mountpoint may contain spaces.
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
            // BSD prints a negative number when the reserved blocks are in use.
            blocks_available: parse_number(available).unwrap_or(0),
            files: 0,
            files_free: 0,
            name_max: 255,
        })
    })
}

/// Parses a decimal number without a sign.
pub(super) fn parse_number(text: &[u8]) -> Option<u64> {
    digits(std::str::from_utf8(text).ok()?)?.parse().ok()
}

/// Parses a size or an offset. `off_t` limits both, so that the sum of two does not overflow.
pub(super) fn parse_size(text: &[u8]) -> Option<u64> {
    parse_number(text).filter(|&size| i64::try_from(size).is_ok())
}

/// Returns the lines of an answer that are not empty.
pub fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.split(|&b| b == b'\n').filter(|line| !line.is_empty())
}

/// Returns the first error that is not about a file that was removed during the listing.
pub fn first_serious_error(error_text: &[u8]) -> Option<Reason> {
    lines(error_text)
        .map(reason_of)
        .find(|&reason| reason != Reason::NotFound)
}

/// Returns `text` if it consists of decimal digits.
pub(super) fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_file_is_no_serious_error() {
        let vanished = b"find: 'a': No such file or directory\n";
        assert_eq!(first_serious_error(vanished), None);
        let denied = b"find: 'a': No such file or directory\nfind: 'b': Permission denied\n";
        assert_eq!(first_serious_error(denied), Some(Reason::AccessDenied));
    }

    #[test]
    fn fs_stat_and_df_are_parsed() {
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
