//! The index of clean content that no entry holds, in LRU order, bounded by bytes. No I/O.

use lru::LruCache;

use crate::stat::Version;

/// How much disk space the cache may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of clean content.
    pub max_bytes: u64,
    /// How many bytes the cache leaves free on the disk.
    pub min_free: u64,
}

/// The evictable content: clean, and held by no entry. Open and dirty files are pinned: they are
/// not in the index.
#[derive(Debug)]
pub(crate) struct Index {
    sizes: LruCache<Version, u64>,
    bytes: u64,
    limits: Limits,
}

impl Index {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            sizes: LruCache::unbounded(),
            bytes: 0,
            limits,
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn contains(&self, version: &Version) -> bool {
        self.sizes.contains(version)
    }

    /// Adds content as the most recently used.
    pub(crate) fn insert(&mut self, version: Version, size: u64) {
        if let Some(old) = self.sizes.put(version, size) {
            self.bytes -= old;
        }
        self.bytes += size;
    }

    /// Removes content; returns false if it was not in the index.
    pub(crate) fn remove(&mut self, version: &Version) -> bool {
        match self.sizes.pop(version) {
            Some(size) => {
                self.bytes -= size;
                true
            }
            None => false,
        }
    }

    /// Removes the least recently used content.
    pub(crate) fn pop_oldest(&mut self) -> Option<Version> {
        let (version, size) = self.sizes.pop_lru()?;
        self.bytes -= size;
        Some(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stat::FileId;
    use crate::stat::Time;

    fn version(ino: u64) -> Version {
        Version {
            size: 10,
            mtime: Time::default(),
            ctime: None,
            id: Some(FileId { dev: 1, ino }),
        }
    }

    #[test]
    fn the_least_recently_used_content_is_evicted_first() {
        let mut index = Index::new(Limits {
            max_bytes: 100,
            min_free: 0,
        });
        for ino in 1..=3 {
            index.insert(version(ino), 10);
        }
        assert!(index.remove(&version(1)));
        index.insert(version(1), 10);
        assert_eq!(index.bytes(), 30);
        assert_eq!(index.pop_oldest(), Some(version(2)));
        assert_eq!(index.pop_oldest(), Some(version(3)));
        assert_eq!(index.pop_oldest(), Some(version(1)));
        assert_eq!((index.pop_oldest(), index.bytes()), (None, 0));
    }

    #[test]
    fn the_same_content_counts_once() {
        let mut index = Index::new(Limits {
            max_bytes: 100,
            min_free: 0,
        });
        index.insert(version(1), 10);
        index.insert(version(1), 10);
        assert_eq!(index.bytes(), 10);
        assert!(!index.remove(&version(2)));
    }
}
