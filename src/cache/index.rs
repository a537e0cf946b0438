//! What clean content there is, in the order of its last use, bounded by bytes.

use lru::LruCache;

use crate::stat::Version;

/// How much the cache may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many bytes of clean content are kept.
    pub max_bytes: u64,
    /// How many bytes must stay free on the disk.
    pub min_free: u64,
}

/// Clean content that no entry holds. Open and dirty files are not in here, and so cannot be
/// dropped.
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

    /// Adds content as the one used last.
    pub(crate) fn insert(&mut self, version: Version, size: u64) {
        if let Some(old) = self.sizes.put(version, size) {
            self.bytes -= old;
        }
        self.bytes += size;
    }

    /// Takes content out; false if it was not there.
    pub(crate) fn remove(&mut self, version: &Version) -> bool {
        match self.sizes.pop(version) {
            Some(size) => {
                self.bytes -= size;
                true
            }
            None => false,
        }
    }

    /// Takes out what was not used for longest.
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
    fn what_was_not_used_for_longest_goes_first() {
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
