//! Contents that are fetched before a program opens their files.
//!
//! The layer above decides which files these are. A content is added to the index of clean content
//! under its version, and an open finds it there; nothing else knows that it was read ahead. An
//! open of a file whose content is in flight waits for it.
//!
//! Content that no program has opened for long is evicted before all other content, and never takes
//! more than a part of the cache.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::Cache;
use crate::cache::Error;
use crate::cache::Wait;
use crate::cache::disk::Private;
use crate::clock::Tick;
use crate::error_chain;
use crate::path::RemotePath;
use crate::remote::BatchReceiver;
use crate::remote::KnownFile;
use crate::stat::Stat;
use crate::stat::Version;
use crate::sync::Condvar;
use crate::sync::Mutex;

/// Content that no program has opened may take this part of the cache, and one decision half of it:
/// one in so many bytes.
const MAX_PART: u64 = 4;

/// The layer above, which is told what the host says.
pub trait ReadAheadTarget: Send + Sync {
    /// File number `index` of the request, at `path`, has these attributes, which were requested at
    /// `at`. Its content is in the cache.
    fn fetched(&self, index: usize, path: &RemotePath, stat: &Stat, at: Tick);

    /// The request has ended: `n_bytes` of content arrived in this time.
    fn ended(&self, n_bytes: u64, took: Duration);
}

/// The versions that are being fetched ahead.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    versions: Mutex<HashSet<Version>>,
    /// Notified when a version is not in flight any more.
    changed: Condvar,
}

impl InFlight {
    fn remove(&self, versions: &[Version]) {
        let mut in_flight = self.versions.lock();
        for version in versions {
            in_flight.remove(version);
        }
        drop(in_flight);
        self.changed.notify_all();
    }
}

impl Cache {
    /// Returns whether the content of this version is cached, or is being fetched ahead.
    pub fn has_or_reads_ahead(&self, version: &Version) -> bool {
        // In this order: a content is in the index before it is not in flight any more.
        let is_in_flight = self.in_flight.versions.lock().contains(version);
        is_in_flight || self.has(version)
    }

    /// Returns how many bytes the layer above should fetch ahead at once, at most.
    pub fn max_read_ahead(&self) -> u64 {
        self.index.lock().limits().max_bytes / MAX_PART / 2
    }

    /// Starts to fetch the contents of files on a worker. The files at the end that would take too
    /// much of the cache are left out. An open of one of them waits for it from now on.
    ///
    /// Call [`Self::has_or_reads_ahead`] before, to leave out what is not needed.
    pub fn read_ahead(self: &Arc<Self>, files: Vec<KnownFile>, target: Arc<dyn ReadAheadTarget>) {
        let versions: Vec<Version> = files.iter().map(|file| file.version).collect();
        self.in_flight.versions.lock().extend(&versions);
        let batch = Batch {
            cache: Arc::clone(self),
            versions,
        };
        self.workers.run(move || batch.fetch(files, &*target));
    }

    /// Makes room in the cache for the first files of the list; returns how many these are.
    fn make_room_ahead(&self, files: &[KnownFile]) -> usize {
        let Ok(free) = self.disk.free_bytes() else {
            return 0;
        };
        let mut index = self.index.lock();
        let limits = *index.limits();
        let room = limits.max_bytes / MAX_PART;
        let max_bytes = room.min(free.saturating_sub(limits.min_free) / MAX_PART);
        let mut n_bytes = 0u64;
        let mut n_files = 0;
        for file in files {
            let with_it = n_bytes.saturating_add(file.version.size);
            if with_it > max_bytes {
                break;
            }
            (n_bytes, n_files) = (with_it, n_files + 1);
        }
        // Content of walks that were given up makes room for this one.
        let mut evicted = index.pop_unopened_above(room.saturating_sub(n_bytes));
        evicted.extend(index.pop_opened_for(n_bytes));
        drop(index);
        for version in &evicted {
            self.disk.remove_clean(version);
        }
        n_files
    }

    /// Waits until the content of this version is not being fetched ahead.
    ///
    /// # Errors
    /// [`Error::WouldWait`] if it is, and the caller may not wait.
    pub(super) fn wait_for_read_ahead(&self, version: &Version, wait: Wait) -> Result<(), Error> {
        let mut in_flight = self.in_flight.versions.lock();
        while in_flight.contains(version) {
            if wait == Wait::Never {
                return Err(Error::WouldWait);
            }
            self.in_flight.changed.wait(&mut in_flight);
        }
        Ok(())
    }
}

/// A request in progress. Dropping it ends it, so that no open waits for ever, even after a panic.
struct Batch {
    cache: Arc<Cache>,
    versions: Vec<Version>,
}

impl Batch {
    fn fetch(self, mut files: Vec<KnownFile>, target: &dyn ReadAheadTarget) {
        let n_files = self.cache.make_room_ahead(&files);
        self.cache.in_flight.remove(&self.versions[n_files..]);
        files.truncate(n_files);
        if files.is_empty() {
            return;
        }
        let at = self.cache.clock.tick();
        let mut contents = Contents {
            cache: &self.cache,
            files: &files,
            target,
            at,
            open: Vec::new(),
            n_bytes: 0,
        };
        let result = self.cache.remote.fetch_many(&files, &mut contents);
        let n_bytes = contents.n_bytes;
        drop(contents);
        if let Err(error) = result {
            // An open of one of the files fetches it again, and reports the error.
            log::debug!("cannot read ahead: {}", error_chain::with_causes(&error));
        }
        target.ended(n_bytes, self.cache.clock.tick().since(at));
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.cache.in_flight.remove(&self.versions);
    }
}

/// Writes received contents to files of the cache.
struct Contents<'a> {
    cache: &'a Cache,
    files: &'a [KnownFile],
    target: &'a dyn ReadAheadTarget,
    at: Tick,
    /// Contents that have begun and not ended.
    open: Vec<OpenContent>,
    n_bytes: u64,
}

struct OpenContent {
    index: usize,
    private: Private,
    /// `None` when the next content has begun.
    file: Option<File>,
    size: u64,
}

impl BatchReceiver for Contents<'_> {
    fn begin(&mut self, index: usize, _size: u64) -> io::Result<()> {
        if let Some(last) = self.open.last_mut() {
            // It is complete, and only its end is not told yet.
            last.file = None;
        }
        let (private, file) = self.cache.disk.create_temp()?;
        self.open.push(OpenContent {
            index,
            private,
            file: Some(file),
            size: 0,
        });
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> io::Result<()> {
        let Some(content) = self.open.last_mut() else {
            return Ok(());
        };
        let Some(file) = &content.file else {
            return Ok(());
        };
        file.write_all_at(data, content.size)?;
        content.size += data.len() as u64;
        self.n_bytes += data.len() as u64;
        Ok(())
    }

    fn end(&mut self, index: usize, stat: Option<&Stat>) {
        let Some(position) = self.open.iter().position(|it| it.index == index) else {
            return;
        };
        let content = self.open.swap_remove(position);
        let version = stat.map(Stat::version);
        let is_kept = version.is_some_and(|version| {
            content.size == version.size
                && self
                    .cache
                    .disk
                    .make_clean(&content.private, &version)
                    .is_ok()
        });
        match (stat, version) {
            (Some(stat), Some(version)) if is_kept => {
                self.cache
                    .insert_and_evict(|index| index.insert_unopened(version));
                self.target
                    .fetched(index, &self.files[index].path, stat, self.at);
            }
            _ => self.cache.disk.remove_private(&content.private),
        }
        self.cache.in_flight.remove(&[self.files[index].version]);
    }
}

impl Drop for Contents<'_> {
    fn drop(&mut self) {
        for content in &self.open {
            self.cache.disk.remove_private(&content.private);
        }
    }
}
