//! Whole files on the local disk: fetched on open, read and written here, uploaded on close.
//!
//! Knows neither inodes nor handles, and not how a host uploads a file. Driven by `vfs`, which
//! holds an [`Entry`] for each file that is open or dirty; everything else is an index of
//! clean content that may be dropped at any time.
//!
//! Lock order: an entry's state, then the index, then the journal. None is held across the network,
//! nor while the layer above is called.
//!
//! Modules:
//! - `entry`: one cached file: opening it, its handles, and waiting for its state to change
//! - `state`: the state machine of a cached file; no I/O
//! - `access`: read, write, truncate, allocate
//! - `fetch`: download into the cache
//! - `refresh`: replace the content of an open file by a newer version
//! - `upload`: upload to the host, and resolving uploads of unknown outcome
//! - `send`: one upload, and the conflict copy if somebody else changed the file
//! - `conflict`: what to do on a conflict, and how a conflict copy is named
//! - `persist`: write dirty content to the local disk, for write-back and at the end of a mount
//! - `upload_queue`: background uploads and retries, with back-off
//! - `upload_block`: block uploads while a rename or removal is in flight
//! - `journaling`: when the journal is written for a file
//! - `journal`: the journal of dirty content, on disk
//! - `recover`: dirty content of an earlier mount
//! - `leftovers`: the same without a connection, for `scpfs recover`
//! - `index`: clean content in LRU order, bounded by bytes
//! - `room`: free space on the host
//! - `sparse`: how sparse a file may become; pure
//! - `disk`: the cache directory: layout, lock, host key, file names
//! - `steps`: named steps at which a test can crash
//! - `report`: what `scpfs status` shows of the cache

mod access;
mod conflict;
mod disk;
mod entry;
mod fetch;
mod index;
mod journal;
mod journaling;
pub mod leftovers;
mod persist;
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
pub use crate::cache::conflict::ConflictPolicy;
pub use crate::cache::disk::Disk;
pub use crate::cache::disk::Error as DiskError;
pub use crate::cache::disk::pin;
pub use crate::cache::entry::Entry;
pub use crate::cache::entry::Local;
pub use crate::cache::entry::Wait;
pub use crate::cache::index::Limits;
pub use crate::cache::journal::record::Id;
pub use crate::cache::journal::record::Phase;
pub use crate::cache::journal::record::Record;
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
use crate::cache::report::Opens;
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
        "the local cache is full: all that could go is gone, and what is open or not yet uploaded stays"
    )]
    Full,
    /// The content was not fetched, or was replaced on the host: [`Entry::open`] brings it.
    #[error("the content is not here")]
    NotFetched,
    /// The content is of an older version, and others read it: [`Entry::refresh`] replaces it.
    #[error("the content is of an older version")]
    StaleContent,
    /// The journal does not know yet that the content will differ from the host's:
    /// [`Entry::open_in_journal`] tells it.
    #[error("the content is not in the journal")]
    NotJournaled,
    /// Somebody else uploaded the file; it was left alone.
    #[error("{path} was changed on the host meanwhile; yours is beside it, as {kept_as}")]
    ConflictCopy {
        path: RemotePath,
        kept_as: RemotePath,
    },
    /// The file would have more holes than this host can be sent.
    #[error("the file would be too sparse to be uploaded to this host")]
    TooSparse,
    /// Nobody knows any more where the content goes; it stays here.
    #[error("{}", upload::NO_PATH)]
    NoPath,
    /// A bug of this program; the log says more.
    #[error("an internal error")]
    Internal,
    /// Nothing was done because it would have had to wait, and was told not to.
    #[error("this would have to wait")]
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
    /// Guards what is known of the clean content on disk.
    index: Mutex<Index>,
    uploads: Uploads,
    /// The last conflicts, for whoever asks.
    conflicts: Mutex<VecDeque<ConflictReport>>,
    /// What earlier runs left and this one could not upload.
    unrecovered: Mutex<Vec<Id>>,
    /// The outcome of each of the others, so far.
    recovered: Mutex<Vec<RecoveredFile>>,
    n_pending: AtomicUsize,
    opens: Opens,
}

impl Cache {
    /// Takes over what an earlier run left on `disk`.
    pub fn new(
        remote: Arc<dyn Remote>,
        disk: Disk,
        limits: Limits,
        conflict_policy: ConflictPolicy,
        clock: Arc<dyn Clock>,
        workers: Workers,
    ) -> Arc<Self> {
        let mut index = Index::new(limits);
        for (version, size) in disk.found() {
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
            uploads,
            conflicts: Mutex::new(VecDeque::new()),
            unrecovered: Mutex::new(Vec::new()),
            recovered: Mutex::new(Vec::new()),
            n_pending: AtomicUsize::new(0),
            opens: Opens::default(),
        })
    }

    /// Returns whether the content of this version is here, so that opening it costs no bytes.
    pub fn has(&self, version: &Version) -> bool {
        self.index.lock().contains(version)
    }

    /// Makes an entry for a file of the host; its content is fetched when it is first needed.
    pub fn entry(self: &Arc<Self>, version: Version) -> Arc<Entry> {
        Entry::of_host(Arc::clone(self), version)
    }

    /// Makes an entry for a file that is not on the host yet: empty, and to be uploaded. If it
    /// `replaces`, the first upload replaces a file that has appeared there meanwhile: `O_TRUNC`.
    pub fn new_entry(self: &Arc<Self>, replaces: bool) -> Result<Arc<Entry>, Error> {
        Entry::of_new_file(Arc::clone(self), replaces)
    }

    /// Notes that a request of ours changed the metadata of a file, and with it the version of its
    /// unchanged content.
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

    /// Makes room for `size` more bytes: evicts what was not used for longest.
    ///
    /// # Errors
    /// [`Error::Full`] if the disk would be left with less than it must keep.
    fn make_room(&self, size: u64) -> Result<(), Error> {
        loop {
            let free = self.disk.free_bytes().map_err(local("look for room"))?;
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
                // Files that are open may take more than the limit; they go when they are closed.
                None => return Ok(()),
            }
        }
    }

    /// Takes clean content that no entry holds any more, and evicts what is above the limit.
    fn keep(&self, version: &Version) {
        let mut index = self.index.lock();
        index.insert(*version, version.size);
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

    /// Returns how many bytes of clean content are kept.
    pub fn bytes(&self) -> u64 {
        self.index.lock().bytes()
    }

    /// Returns the directory of the cache, for messages.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Nothing is uploaded by itself any more.
    pub fn stop(&self) {
        self.uploads.close();
    }

    /// Writes what is kept to the local disk, so that the next run can trust it.
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

/// Where the content of an entry is uploaded to, as the layer above knows it at each moment.
pub trait UploadTarget: Send + Sync + fmt::Debug {
    /// Finds out where the file is, if that is uncertain. Called without locks before an upload begins;
    /// may ask the host.
    ///
    /// # Errors
    /// The host did not tell: nothing can be uploaded.
    fn prepare(&self) -> remote::Result<()>;

    /// Returns path and attributes as they are now; `None` if the file has no name any more, so that
    /// there is nothing to upload.
    fn target(&self) -> Option<Target>;

    /// Notes that the content was uploaded. Called before those who wait for the upload are woken.
    fn uploaded(&self, changed: &remote::Changed);

    /// Notes that the content was uploaded as a conflict copy at `kept_as`.
    fn uploaded_as_conflict_copy(&self, kept_as: &RemotePath, changed: &remote::Changed);
}
