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
    /// Content that was open.
    opened: LruCache<Version, u64>,
    /// Content that was read ahead, and that no program has opened yet; with its place in the order
    /// of insertions.
    unopened: LruCache<Version, u64>,
    /// How many contents were inserted.
    n_inserted: u64,
    /// The size of both, and of the second, in bytes.
    bytes: u64,
    unopened_bytes: u64,
    read_ahead: ReadAheadCounts,
    limits: Limits,
}

/// How many contents were read ahead, and what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadAheadCounts {
    pub files: u64,
    /// In bytes.
    pub bytes: u64,
    /// How many were opened.
    pub used: u64,
    /// How many were evicted, or became stale, before they were opened.
    pub wasted: u64,
}

/// Content that was read ahead is evicted before all other when so many contents were inserted after
/// it: more than a program that walks through a tree has fetched ahead at once.
const PATIENCE: u64 = 1000;

impl Index {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            opened: LruCache::unbounded(),
            unopened: LruCache::unbounded(),
            n_inserted: 0,
            bytes: 0,
            unopened_bytes: 0,
            read_ahead: ReadAheadCounts::default(),
            limits,
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn read_ahead_counts(&self) -> ReadAheadCounts {
        self.read_ahead
    }

    pub(crate) fn contains(&self, version: &Version) -> bool {
        self.opened.contains(version) || self.unopened.contains(version)
    }

    /// Adds content as the most recently used.
    pub(crate) fn insert(&mut self, version: Version, size: u64) {
        self.remove(&version);
        self.n_inserted += 1;
        self.opened.put(version, size);
        self.bytes += size;
    }

    /// Adds content that was read ahead.
    pub(crate) fn insert_unopened(&mut self, version: Version) {
        self.read_ahead.files += 1;
        self.read_ahead.bytes += version.size;
        if self.contains(&version) {
            self.read_ahead.wasted += 1;
            return;
        }
        self.n_inserted += 1;
        self.unopened.put(version, self.n_inserted);
        self.bytes += version.size;
        self.unopened_bytes += version.size;
    }

    /// Removes content that is being opened; returns false if it was not in the index.
    pub(crate) fn take(&mut self, version: &Version) -> bool {
        let was_read_ahead = self.unopened.contains(version);
        let was_there = self.remove(version);
        if was_read_ahead {
            self.read_ahead.used += 1;
            self.read_ahead.wasted -= 1;
        }
        was_there
    }

    /// Removes content that does not exist any more; returns false if it was not in the index.
    pub(crate) fn remove(&mut self, version: &Version) -> bool {
        if let Some(size) = self.opened.pop(version) {
            self.bytes -= size;
            return true;
        }
        let was_there = self.unopened.pop(version).is_some();
        if was_there {
            self.unopened_is_removed(version);
        }
        was_there
    }

    fn unopened_is_removed(&mut self, version: &Version) {
        self.bytes -= version.size;
        self.unopened_bytes -= version.size;
        self.read_ahead.wasted += 1;
    }

    /// Removes the content to evict first: what was read ahead and has not been opened for long, else
    /// the least recently used.
    pub(crate) fn pop_oldest(&mut self) -> Option<Version> {
        let oldest = self.unopened.peek_lru().map(|(_, &inserted)| inserted);
        let is_idle = oldest.is_some_and(|inserted| self.n_inserted - inserted > PATIENCE);
        if !is_idle && let Some((version, size)) = self.opened.pop_lru() {
            self.bytes -= size;
            return Some(version);
        }
        let (version, _) = self.unopened.pop_lru()?;
        self.unopened_is_removed(&version);
        Some(version)
    }

    /// Removes the oldest content that was read ahead and not opened, so that at most `max_bytes` of it
    /// are left.
    pub(crate) fn pop_unopened_above(&mut self, max_bytes: u64) -> Vec<Version> {
        let mut removed = Vec::new();
        while self.unopened_bytes > max_bytes
            && let Some((version, _)) = self.unopened.pop_lru()
        {
            self.unopened_is_removed(&version);
            removed.push(version);
        }
        removed
    }

    /// Removes the least recently used content, so that `size` more bytes do not exceed the limit,
    /// but nothing that was read ahead and not opened.
    pub(crate) fn pop_opened_for(&mut self, size: u64) -> Vec<Version> {
        let mut removed = Vec::new();
        while self.bytes.saturating_add(size) > self.limits.max_bytes
            && let Some((version, size)) = self.opened.pop_lru()
        {
            self.bytes -= size;
            removed.push(version);
        }
        removed
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
    fn content_that_is_not_opened_for_long_is_evicted_first() {
        let mut index = Index::new(Limits {
            max_bytes: 40,
            min_free: 0,
        });
        index.insert(version(1), 10);
        index.insert_unopened(version(2));
        index.insert_unopened(version(3));
        index.insert_unopened(version(4));
        assert!(index.take(&version(3)));
        index.insert(version(3), 10);
        assert_eq!((index.bytes(), index.unopened_bytes), (40, 20));
        // To read ahead evicts nothing that was read ahead before.
        assert_eq!(index.pop_opened_for(10), [version(1)]);
        for _ in 0..=PATIENCE {
            index.insert(version(3), 10);
        }
        assert_eq!(index.pop_oldest(), Some(version(2)));
        assert_eq!(index.pop_oldest(), Some(version(4)));
        assert_eq!(index.pop_oldest(), Some(version(3)));
        assert_eq!((index.bytes(), index.unopened_bytes), (0, 0));
        let counts = ReadAheadCounts {
            files: 3,
            bytes: 30,
            used: 1,
            wasted: 2,
        };
        assert_eq!(index.read_ahead_counts(), counts);
    }

    #[test]
    fn content_that_was_just_read_ahead_outlives_older_content() {
        let mut index = Index::new(Limits {
            max_bytes: 20,
            min_free: 0,
        });
        index.insert(version(1), 10);
        index.insert_unopened(version(2));
        assert_eq!(index.pop_oldest(), Some(version(1)));
        assert_eq!(index.pop_oldest(), Some(version(2)));
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
