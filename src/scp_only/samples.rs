//! Hashes of the content of small files that were changed recently.
//!
//! A host with times in whole seconds and no inode numbers hides a change of the same size within
//! one second. Before a recently changed file is replaced, its content is therefore compared too.
//! The content arrives with the attributes, in the same round trip.

use std::io;

use lru::LruCache;
use sha2::Digest as _;
use sha2::Sha256;

use crate::remote::Content;
use crate::remote::Receiver;
use crate::stat::Time;
use crate::stat::Version;

/// The largest file that is compared, in bytes: it fits into the first packets of a connection.
pub(super) const MAX_SIZE: u64 = 64 << 10;

/// Maximum age of an mtime, by the local clock, for which a later change within the same second is
/// possible. Much more than the difference of two clocks without NTP.
const RECENT_SECS: i64 = 600;

/// Maximum number of samples: more files than a user edits at the same time.
const MAX_SAMPLES: usize = 1000;

#[derive(Debug)]
pub(super) struct Samples {
    seen: LruCache<Vec<u8>, Sample>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    size: u64,
    secs: i64,
    hash: Hash,
}

type Hash = [u8; 32];

impl Samples {
    pub(super) fn new() -> Self {
        let most = std::num::NonZeroUsize::new(MAX_SAMPLES).unwrap_or(std::num::NonZeroUsize::MIN);
        Self {
            seen: LruCache::new(most),
        }
    }

    /// Records the hash of a file's content for this version. Removes the sample if the hash is not
    /// known or not needed.
    pub(super) fn note(&mut self, path: &[u8], version: &Version, hash: Option<Hash>, now: Time) {
        let is_recent = version.mtime.secs >= now.secs.saturating_sub(RECENT_SECS);
        match hash {
            Some(hash) if is_recent && version.size <= MAX_SIZE => {
                let sample = Sample {
                    size: version.size,
                    secs: version.mtime.secs,
                    hash,
                };
                self.seen.put(path.to_vec(), sample);
            }
            _ => {
                self.seen.pop(path);
            }
        }
    }

    /// Returns the hash that a file of this version must have, if there is a sample for it.
    pub(super) fn expected_hash(&mut self, path: &[u8], version: &Version) -> Option<Hash> {
        let sample = self.seen.get(path)?;
        (sample.size == version.size && sample.secs == version.mtime.secs).then_some(sample.hash)
    }
}

/// Returns the hash of local content; `None` if it is large or cannot be read.
pub(super) fn hash_of(content: &dyn Content, size: u64) -> Option<Hash> {
    if size > MAX_SIZE {
        return None;
    }
    let mut hash = Sha256::new();
    let mut buf = [0; 8192];
    let mut offset = 0;
    while offset < size {
        let n = content.read_at(&mut buf, offset).ok().filter(|n| *n > 0)?;
        hash.update(buf.get(..n)?);
        offset += n as u64;
    }
    Some(hash.finalize().into())
}

/// Passes content on to a receiver, and hashes it if it is small.
pub(super) struct Hashing<'a> {
    inner: Option<&'a mut dyn Receiver>,
    /// The size that the content must have; content of another size is refused.
    wanted: Option<u64>,
    hash: Sha256,
    size: u64,
    pub(super) has_other_size: bool,
}

impl<'a> Hashing<'a> {
    pub(super) fn wrapping(inner: &'a mut dyn Receiver) -> Self {
        Self {
            inner: Some(inner),
            wanted: None,
            hash: Sha256::new(),
            size: 0,
            has_other_size: false,
        }
    }

    /// Hashes content of this size only, and discards it.
    pub(super) fn of_size(size: u64) -> Self {
        Self {
            inner: None,
            wanted: Some(size),
            hash: Sha256::new(),
            size: 0,
            has_other_size: false,
        }
    }

    pub(super) fn finish(self) -> Option<Hash> {
        (self.size <= MAX_SIZE).then(|| self.hash.finalize().into())
    }
}

impl Receiver for Hashing<'_> {
    fn begin(&mut self, size: u64) -> io::Result<()> {
        self.has_other_size = self.wanted.is_some_and(|wanted| wanted != size);
        if self.has_other_size {
            return Err(io::Error::other("the file has another size"));
        }
        (self.hash, self.size) = (Sha256::new(), size);
        match &mut self.inner {
            Some(inner) => inner.begin(size),
            None => Ok(()),
        }
    }

    fn data(&mut self, data: &[u8]) -> io::Result<()> {
        if self.size <= MAX_SIZE {
            self.hash.update(data);
        }
        match &mut self.inner {
            Some(inner) => inner.data(data),
            None => Ok(()),
        }
    }
}
