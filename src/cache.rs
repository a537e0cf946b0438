//! Files on the local disk: fetched on open, read and written here, uploaded on close.
//!
//! This module knows no inodes and no host commands. It is driven by `vfs`, which holds an
//! [`Entry`] for each file that is open or dirty. All other content is clean, is listed in an
//! index, and may be evicted at any time.
//!
//! Lock order: an entry's `journaling`, its `state`, the index, the journal. An entry's `blocks`, and
//! the versions that are fetched ahead (`in_flight`), are taken while none of these is held. No lock is held across
//! a request to the host or a call of the layer above.
//!
//! Modules:
//! - `entry`: one cached file: opening it, its handles, and waiting for its state to change
//! - `state`: the state machine of a cached file; no I/O
//! - `access`: read, write, truncate, allocate
//! - `blocks`: parts of large files, fetched where they are read
//! - `fetch`: fetch content into the cache
//! - `read_ahead`: fetch the contents of files before they are opened
//! - `refresh`: replace the content of an open file by a newer version
//! - `upload`: upload to the host, and resolving uploads of unknown outcome
//! - `send`: one upload, and the conflict copy if there is a conflict
//! - `conflict`: what to do on a conflict, and how a conflict copy is named
//! - `persist`: write dirty content to the local disk, for write-back and at the end of a mount
//! - `upload_queue`: background uploads and retries, with back-off
//! - `upload_block`: block uploads while a rename or removal is in flight
//! - `journaling`: when the journal is written for a file
//! - `journal`: the journal of dirty content, on disk
//! - `recover`: dirty content of an earlier mount
//! - `leftovers`: lists, copies and discards such content without a connection, for `scpfs recover`
//! - `index`: clean content in LRU order, bounded by bytes
//! - `room`: free space on the host
//! - `sparse`: limit for holes in a file; pure
//! - `disk`: the cache directory: layout, lock, host key, file names
//! - `steps`: named steps at which a test can crash
//! - `report`: what `scpfs status` shows of the cache

mod access;
mod blocks;
mod conflict;
mod disk;
mod entry;
mod fetch;
mod index;
mod journal;
mod journaling;
pub mod leftovers;
mod persist;
mod read_ahead;
mod recover;
mod refresh;
mod report;
mod room;
mod send;
mod sparse;
mod state;
mod steps;
mod upload;
mod upload_block;
mod upload_queue;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

pub use crate::cache::access::ReuploadMark;
pub use crate::cache::blocks::BlockRead;
pub use crate::cache::blocks::LARGE;
pub use crate::cache::conflict::ConflictPolicy;
pub use crate::cache::disk::Disk;
pub use crate::cache::disk::Error as DiskError;
pub use crate::cache::disk::pin;
pub use crate::cache::entry::Entry;
pub use crate::cache::entry::Local;
pub use crate::cache::entry::VersionChange;
pub use crate::cache::entry::Wait;
pub use crate::cache::index::Limits;
pub use crate::cache::index::ReadAheadCounts;
pub use crate::cache::journal::record::Id;
pub use crate::cache::journal::record::Phase;
pub use crate::cache::journal::record::Record;
pub use crate::cache::read_ahead::ReadAheadTarget;
pub use crate::cache::recover::Found;
pub use crate::cache::recover::PendingRecovery;
pub use crate::cache::recover::RecoveredFile;
pub use crate::cache::recover::RecoveryOutcome;
pub use crate::cache::refresh::ContentVersion;
pub use crate::cache::refresh::NewerContent;
pub use crate::cache::refresh::RefreshWait;
pub use crate::cache::report::CacheReport;
pub use crate::cache::report::ConflictReport;
pub use crate::cache::report::FileReport;
pub use crate::cache::report::FileState;
pub use crate::cache::steps::NoSteps;
pub use crate::cache::steps::Step;
pub use crate::cache::steps::Steps;
pub use crate::cache::upload::Target;
pub use crate::cache::upload_block::UploadBlock;

use crate::cache::index::Index;
use crate::cache::read_ahead::InFlight;
use crate::cache::report::OpenCounters;
use crate::cache::upload_queue::Uploads;
use crate::clock::Clock;
use crate::path::RemotePath;
use crate::remote;
use crate::remote::Remote;
use crate::stat::Version;
use crate::sync::Mutex;
use crate::workers::Workers;

/// Why the cache could not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Shared, because several callers may wait for one fetch or one upload.
    #[error(transparent)]
    Remote(#[from] Arc<remote::Error>),
    #[error("cannot {act} in the local cache")]
    Local {
        act: &'static str,
        source: Arc<io::Error>,
    },
    #[error(
        "the local cache is full, and open and dirty files cannot be evicted; close files or free \
         disk space"
    )]
    Full,
    /// The content is not on the local disk: call [`Entry::open`], which fetches it.
    #[error("the content is not fetched")]
    NotFetched,
    /// The content is stale and other handles read it: call [`Entry::refresh`], which replaces it.
    #[error("the content is stale")]
    StaleContent,
    /// The content has no journal record yet: call [`Entry::open_in_journal`] before the change.
    #[error("the content is not in the journal")]
    NotJournaled,
    /// There was a conflict: the host's file is unchanged, and our content is in a conflict copy.
    #[error("{path} was changed on the host; your version was uploaded as {kept_as}")]
    ConflictCopy {
        path: RemotePath,
        kept_as: RemotePath,
    },
    /// The file would have more holes than can be uploaded to this host, see `sparse`.
    #[error("the file would be too sparse to be uploaded to this host")]
    TooSparse,
    /// The path of the file on the host is unknown; the content stays on the local disk.
    #[error("{}", upload::NO_PATH)]
    NoPath,
    /// A bug in this program; details are in the log.
    #[error("an internal error")]
    Internal,
    /// The call would block, but was made with [`Wait::Never`]. Nothing was done.
    #[error("the operation would block")]
    WouldWait,
}

impl From<remote::Error> for Error {
    fn from(error: remote::Error) -> Self {
        Self::Remote(Arc::new(error))
    }
}

fn local(act: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Local {
        act,
        source: Arc::new(source),
    }
}

/// The cache of one mount.
pub struct Cache {
    remote: Arc<dyn Remote>,
    clock: Arc<dyn Clock>,
    workers: Workers,
    disk: Disk,
    conflict_policy: ConflictPolicy,
    /// Lists the clean content on the local disk that no entry holds.
    index: Mutex<Index>,
    /// The versions that are being fetched ahead; innermost.
    in_flight: InFlight,
    uploads: Uploads,
    /// The last conflicts, for `scpfs status`.
    conflicts: Mutex<VecDeque<ConflictReport>>,
    /// Records of earlier mounts whose content this mount could not upload.
    unrecovered: Mutex<Vec<Id>>,
    /// The outcomes of recoveries so far.
    recovered: Mutex<Vec<RecoveredFile>>,
    /// How many recoveries were pending when the mount started.
    n_pending: AtomicUsize,
    opens: OpenCounters,
}

impl Cache {
    /// Creates the cache; its index lists the clean content that is on `disk`.
    pub fn new(
        remote: Arc<dyn Remote>,
        disk: Disk,
        limits: Limits,
        conflict_policy: ConflictPolicy,
        clock: Arc<dyn Clock>,
        workers: Workers,
    ) -> Arc<Self> {
        let mut index = Index::new(limits);
        for (version, size) in disk.clean_content() {
            index.insert(version, size);
        }
        let uploads = Uploads::new(Arc::clone(&clock), workers.clone());
        Arc::new(Self {
            remote,
            clock,
            workers,
            disk,
            conflict_policy,
            index: Mutex::new(index),
            in_flight: InFlight::default(),
            uploads,
            conflicts: Mutex::new(VecDeque::new()),
            unrecovered: Mutex::new(Vec::new()),
            recovered: Mutex::new(Vec::new()),
            n_pending: AtomicUsize::new(0),
            opens: OpenCounters::default(),
        })
    }

    /// Returns whether the content of this version is cached and no entry holds it.
    pub fn has(&self, version: &Version) -> bool {
        self.index.lock().contains(version)
    }

    /// Creates an entry for a file of the host; the content is fetched when it is first opened.
    pub fn entry(self: &Arc<Self>, version: Version) -> Arc<Entry> {
        Entry::of_host(Arc::clone(self), version)
    }

    /// Creates an entry for a new file: empty, dirty, and not on the host yet. With
    /// `skips_conflict_check` (`O_TRUNC`), the first upload replaces a file that another client has
    /// created in the meantime.
    ///
    /// # Errors
    /// The local disk could not be written.
    pub fn new_entry(self: &Arc<Self>, skips_conflict_check: bool) -> Result<Arc<Entry>, Error> {
        Entry::of_new_file(Arc::clone(self), skips_conflict_check)
    }

    /// Renames clean content from `old` to `new`, after a request of ours changed the metadata of
    /// the file and with it the version, but not the content.
    pub fn change_version(&self, old: &Version, new: &Version) {
        if old == new || !self.index.lock().remove(old) {
            return;
        }
        match self.disk.rename_clean(old, new) {
            Ok(()) => self.index.lock().insert(*new, new.size),
            Err(error) => log::debug!("cannot rename cached content: {error}"),
        }
    }

    /// Removes the clean content of a version that does not exist any more.
    pub fn forget(&self, version: &Version) {
        let was_there = self.index.lock().remove(version);
        if was_there {
            self.disk.remove_clean(version);
        }
    }

    /// Makes room for `size` more bytes: evicts clean content in LRU order.
    ///
    /// # Errors
    /// [`Error::Full`] if less than [`Limits::min_free`] would be left on the disk.
    fn make_room(&self, size: u64) -> Result<(), Error> {
        loop {
            let free = self.disk.free_bytes().map_err(local("find free space"))?;
            let mut index = self.index.lock();
            let is_over = index.bytes().saturating_add(size) > index.limits().max_bytes;
            let is_tight = free < index.limits().min_free.saturating_add(size);
            if !is_over && !is_tight {
                return Ok(());
            }
            let oldest = index.pop_oldest();
            drop(index);
            match oldest {
                Some(version) => self.disk.remove_clean(&version),
                None if is_tight => return Err(Error::Full),
                // Open files may exceed the limit; they are evicted after they are closed.
                None => return Ok(()),
            }
        }
    }

    /// Adds clean content that no entry holds any more to the index, and evicts content above the
    /// limit.
    fn add_to_index(&self, version: &Version) {
        self.insert_and_evict(|index| index.insert(*version, version.size));
    }

    /// Inserts content into the index, and evicts content above the limit.
    fn insert_and_evict(&self, insert: impl FnOnce(&mut Index)) {
        let mut index = self.index.lock();
        insert(&mut index);
        let mut evicted = Vec::new();
        while index.bytes() > index.limits().max_bytes {
            let Some(oldest) = index.pop_oldest() else {
                break;
            };
            evicted.push(oldest);
        }
        drop(index);
        for version in &evicted {
            self.disk.remove_clean(version);
        }
    }

    /// Returns the size of the clean content in the index, in bytes.
    pub fn bytes(&self) -> u64 {
        self.index.lock().bytes()
    }

    /// Runs work of the layer above on a worker.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.workers.run(job);
    }

    /// Returns the cache directory.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Stops background uploads: none is started any more.
    pub fn stop(&self) {
        self.uploads.close();
    }

    /// Stops background uploads and flushes the cache directory, so that the next mount can trust
    /// it.
    pub fn close(&self) {
        self.stop();
        self.disk.close();
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

/// The layer above, which knows the current path of an entry and is told about uploads.
pub trait UploadTarget: Send + Sync + fmt::Debug {
    /// Resolves the path if a rename has an unknown outcome. Called without locks before each
    /// upload; may ask the host.
    ///
    /// # Errors
    /// The path could not be resolved: nothing is uploaded.
    fn prepare(&self) -> remote::Result<()>;

    /// Returns the current path and attributes; `None` if the file is unlinked: it is not uploaded.
    fn target(&self) -> Option<Target>;

    /// Reports that the content was uploaded. Called before the callers that wait for the upload
    /// are woken.
    fn uploaded(&self, changed: &remote::Changed);

    /// Reports that the content was uploaded as a conflict copy at `kept_as`.
    fn uploaded_as_conflict_copy(&self, kept_as: &RemotePath, changed: &remote::Changed);
}
