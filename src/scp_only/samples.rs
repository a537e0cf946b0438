//! The content of small files that were changed a moment ago, as far as it was seen here.
//!
//! A host that tells whole seconds and no inodes hides a change of the same size within one second.
//! Of a file that was changed lately the content itself is compared before it is replaced: it comes
//! with the attributes, in the same round trip.

use std::io;

use lru::LruCache;
use sha2::Digest as _;
use sha2::Sha256;

use crate::remote::Content;
use crate::remote::Receiver;
use crate::stat::Time;
use crate::stat::Version;

/// What fits into the first packets of a connection.
pub(super) const MAX_SIZE: u64 = 64 << 10;

/// A file that is older than this, by this machine's clock, is not changed in the second that it
/// shows. Much more than two clocks of which nobody takes care differ by.
const RECENT_SECS: i64 = 600;

/// As many as somebody may edit at a time.
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

    /// Notes what the content of a file was when it had these attributes, if that is of use.
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

    /// Returns what a file of this version must hold, where its attributes alone do not tell.
    pub(super) fn expected(&mut self, path: &[u8], version: &Version) -> Option<Hash> {
        let sample = self.seen.get(path)?;
        (sample.size == version.size && sample.secs == version.mtime.secs).then_some(sample.hash)
    }
}

/// Returns the hash of content that is to be uploaded; `None` of a large one.
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

/// Passes content on, and notes what it was if it is small.
pub(super) struct Hashing<'a> {
    inner: Option<&'a mut dyn Receiver>,
    /// Content of another size is not taken at all.
    wanted: Option<u64>,
    hash: Sha256,
    size: u64,
    pub(super) is_other: bool,
}

impl<'a> Hashing<'a> {
    pub(super) fn around(inner: &'a mut dyn Receiver) -> Self {
        Self {
            inner: Some(inner),
            wanted: None,
            hash: Sha256::new(),
            size: 0,
            is_other: false,
        }
    }

    /// Takes content of this size only, and keeps nothing of it.
    pub(super) fn of_size(size: u64) -> Self {
        Self {
            inner: None,
            wanted: Some(size),
            hash: Sha256::new(),
            size: 0,
            is_other: false,
        }
    }

    pub(super) fn finish(self) -> Option<Hash> {
        (self.size <= MAX_SIZE).then(|| self.hash.finalize().into())
    }
}

impl Receiver for Hashing<'_> {
    fn begin(&mut self, size: u64) -> io::Result<()> {
        self.is_other = self.wanted.is_some_and(|wanted| wanted != size);
        if self.is_other {
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
