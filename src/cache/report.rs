//! The state of dirty files and of the cache, for `scpfs status`.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::cache::Cache;
use crate::cache::Error;
use crate::cache::entry::Entry;
use crate::cache::index::ReadAheadCounts;
use crate::cache::journal::record::Record;
use crate::cache::state::Work;
use crate::error_chain;
use crate::path::RemotePath;
use crate::remote;
use crate::stat::Time;

/// The state of one file with dirty content, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReport {
    pub path: RemotePath,
    pub state: FileState,
    /// In bytes.
    pub size: u64,
    /// How many bytes the running upload has sent.
    pub sent: u64,
    /// Why the last upload failed.
    pub failure: Option<String>,
    /// The error number that programs get for `failure`.
    pub errno: Option<i32>,
    /// How many uploads from the background queue have failed; 0 if it is not in the queue.
    pub tries: u32,
    /// The time until the next upload from the background queue.
    pub next_try: Option<Duration>,
    /// The name of the local file in the cache directory.
    pub id: Option<String>,
}

/// The state of a file with dirty content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileState {
    /// A program has it open.
    Writing,
    /// It waits for its upload.
    Pending,
    Uploading,
    /// The last upload failed.
    Failed,
    /// There is a conflict, and the policy is to fail.
    Conflict,
    /// Its path on the host is unknown; the content stays on the local disk.
    Kept,
}

/// The cache at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheReport {
    /// Bytes of clean content that is not open.
    pub bytes: u64,
    pub max_bytes: u64,
    /// How many opens needed no fetch.
    pub hits: u64,
    /// How many fetches opens and refreshes have started.
    pub misses: u64,
    pub read_ahead: ReadAheadCounts,
}

/// One conflict whose content was uploaded as a conflict copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConflictReport {
    pub path: RemotePath,
    pub kept_as: RemotePath,
    pub at: Time,
}

/// How many conflicts are kept in memory; the log has all of them.
const MAX_CONFLICTS: usize = 100;

/// Counts opens and fetches.
#[derive(Debug, Default)]
pub(super) struct OpenCounters {
    all: AtomicU64,
    fetches: AtomicU64,
}

impl OpenCounters {
    pub(super) fn count_fetch(&self) {
        self.fetches.fetch_add(1, Ordering::Relaxed);
    }
}

impl Cache {
    /// Counts an open of a file for its content.
    pub fn count_open(&self) {
        self.opens.all.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn record_conflict(&self, path: &RemotePath, kept_as: &RemotePath) {
        let mut conflicts = self.conflicts.lock();
        if conflicts.len() == MAX_CONFLICTS {
            conflicts.pop_front();
        }
        conflicts.push_back(ConflictReport {
            path: path.clone(),
            kept_as: kept_as.clone(),
            at: self.clock.wall(),
        });
    }

    /// Returns the conflicts of this mount, oldest first.
    pub fn conflicts(&self) -> Vec<ConflictReport> {
        self.conflicts.lock().iter().cloned().collect()
    }

    /// Returns the records of earlier mounts whose content is still not on the host.
    pub fn unrecovered(&self) -> Vec<Record> {
        let ids = self.unrecovered.lock().clone();
        let journal = self.disk.journal();
        ids.into_iter().filter_map(|id| journal.get(id)).collect()
    }

    pub fn report(&self) -> CacheReport {
        let misses = self.opens.fetches.load(Ordering::Relaxed);
        let index = self.index.lock();
        CacheReport {
            bytes: index.bytes(),
            max_bytes: index.limits().max_bytes,
            hits: self
                .opens
                .all
                .load(Ordering::Relaxed)
                .saturating_sub(misses),
            misses,
            read_ahead: index.read_ahead_counts(),
        }
    }
}

impl Entry {
    /// Returns the state of dirty content; `None` if it is not dirty. The layer above fills in
    /// `errno`.
    pub fn report(&self, path: RemotePath) -> Option<FileReport> {
        let schedule = self.cache.uploads.schedule_of(self);
        let (tries, next_try) = schedule.map_or((0, None), |(tries, due)| (tries, Some(due)));
        let state = self.state.lock();
        let (_, private) = state.dirty()?;
        let id = self.cache.disk.private_path(&private);
        let id = id.file_name().and_then(|name| name.to_str());
        let is_uploading = state.work() == Some(Work::Uploading);
        let what = match state.failure() {
            _ if is_uploading => FileState::Uploading,
            Some(failure) if is_conflict(failure) => FileState::Conflict,
            Some(_) => FileState::Failed,
            None if self.is_open() => FileState::Writing,
            None => FileState::Pending,
        };
        let sent = if is_uploading {
            self.sent.load(Ordering::Relaxed).min(state.size())
        } else {
            0
        };
        Some(FileReport {
            path,
            state: what,
            size: state.size(),
            sent,
            failure: state.failure().map(|error| error_chain::with_causes(error)),
            errno: None,
            tries,
            next_try,
            id: id.map(str::to_owned),
        })
    }
}

fn is_conflict(error: &Error) -> bool {
    matches!(error, Error::Remote(error) if matches!(**error, remote::Error::Conflict { .. }))
}
