//! What can be said of the content that the host does not have, and of the cache as a whole.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::cache::Cache;
use crate::cache::Error;
use crate::cache::entry::Entry;
use crate::cache::journal::record::Record;
use crate::cache::state::Work;
use crate::error_chain;
use crate::path::RemotePath;
use crate::remote;
use crate::stat::Time;

/// One file whose content the host does not have, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReport {
    pub path: RemotePath,
    pub state: FileState,
    /// In bytes.
    pub size: u64,
    /// How much of it was sent, while it is uploaded.
    pub sent: u64,
    /// Why the last upload failed.
    pub failure: Option<String>,
    /// The error number that programs get for that.
    pub errno: Option<i32>,
    /// How often it was tried to upload it; 0 where that is not counted.
    pub tries: u32,
    /// When it is tried again, if by itself.
    pub next_try: Option<Duration>,
    /// What the cache calls the content.
    pub id: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileState {
    /// Somebody has it open.
    Writing,
    /// It is to be uploaded.
    Pending,
    Uploading,
    Failed,
    /// The host has something else than what was changed here.
    Conflict,
    /// It has no place on the host any more; its content stays here.
    Kept,
}

/// The cache at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheReport {
    /// Bytes of clean content that nobody has open.
    pub bytes: u64,
    pub max_bytes: u64,
    /// How often a file was opened without a fetch, and with one.
    pub hits: u64,
    pub misses: u64,
}

/// Content that was uploaded beside a file because somebody else had changed that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConflictReport {
    pub path: RemotePath,
    pub kept_as: RemotePath,
    pub at: Time,
}

/// How many conflicts are remembered; the log has all.
const MAX_CONFLICTS: usize = 100;

/// How files were opened so far.
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
    /// Counts a file that was opened for its content.
    pub fn count_open(&self) {
        self.opens.all.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_conflict(&self, path: &RemotePath, kept_as: &RemotePath) {
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

    /// Returns the conflicts of this mount, the last of them at the end.
    pub fn conflicts(&self) -> Vec<ConflictReport> {
        self.conflicts.lock().iter().cloned().collect()
    }

    /// Returns what earlier mounts left and what is still here.
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
        }
    }
}

impl Entry {
    /// Describes dirty content; `None` if the host has it. The error number is for the layer above to
    /// fill in.
    pub fn report(&self, path: RemotePath) -> Option<FileReport> {
        let plan = self.cache.uploads.plan_of(self);
        let (tries, next_try) = plan.map_or((0, None), |(tries, due)| (tries, Some(due)));
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
