//! The life of one file's content while it is open or not yet uploaded.
//!
//! ```text
//!            open             complete             write
//!   Absent --------> Fetching --------> Clean ---------------> Dirty
//!     ^                 |                 ^  ^                   |
//!     +-----------------+                 |  +-------------------+
//!          failed, cut                    |     uploaded (flush.rs)
//!   new file: Dirty                     stays Dirty where the upload fails
//! ```
//!
//! INVARIANT: content is Dirty from before the first byte of it is written until the host has
//! uploaded it whole; Dirty content is never dropped while its file has a name.

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::cache::Cache;
use crate::cache::Error;
use crate::cache::Whereto;
use crate::cache::disk::Private;
use crate::cache::flush::Target;
use crate::cache::journal::record::Phase;
use crate::cache::journal::record::Record;
use crate::cache::local;
use crate::cache::refresh::Refresh;
use crate::cache::state::Content;
use crate::cache::state::Doubt;
use crate::cache::state::Journaled;
use crate::cache::state::Place;
use crate::cache::state::State;
use crate::clock::Tick;
use crate::path::RemotePath;
use crate::remote::Durability;
use crate::remote::Expect;
use crate::remote::UploadSpec;
use crate::stat::Stat;
use crate::stat::Time;
use crate::stat::Version;
use crate::sync::Condvar;
use crate::sync::Mutex;
use crate::sync::MutexGuard;

/// A file of up to this size is waited for when it is opened, so that errors show there; a
/// larger one can be read while it is still being fetched.
pub(super) const WHOLE_AT_OPEN: u64 = 1 << 20;

/// Whether a call may wait for the network, or for another call that does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Fail with [`Error::WouldWait`] instead, having done nothing.
    Never,
    Allowed,
}

/// What is known here and not yet on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    pub size: u64,
    pub mtime: Time,
    pub atime: Option<Time>,
    /// When content or times were last changed here.
    pub ctime: Time,
}

/// The content of one file, shared by all who have it open.
pub struct Entry {
    pub(super) cache: Arc<Cache>,
    pub(super) state: Mutex<State>,
    /// Told when anything in the state changes that somebody may wait for.
    pub(super) changed: Condvar,
    /// How many bytes the upload that is under way has taken.
    pub(super) sent: AtomicU64,
}

impl Entry {
    fn new(cache: Arc<Cache>, content: Content, base: Expect, size: u64, mtime: Time) -> Arc<Self> {
        Arc::new(Self {
            cache,
            state: Mutex::new(State {
                content,
                base,
                replaces: false,
                n_kept: 0,
                may_write: true,
                size,
                mtime,
                atime: None,
                ctime: mtime,
                opens: 0,
                is_flushing: false,
                journaled: Journaled::No,
                is_sealed: false,
                is_begun: false,
                old: None,
                doubts: Vec::new(),
                n_changes: 0,
                epoch: 0,
                holds: 0,
                is_synced: false,
                failure: None,
                news: None,
                room: 0,
                is_unsized: false,
                refresh: Refresh::NONE,
                n_awaiting: 0,
                n_switches: 0,
                refreshed_at: Tick::ZERO,
                cut_read_at: None,
                left_as: None,
            }),
            changed: Condvar::new(),
            sent: AtomicU64::new(0),
        })
    }

    pub(super) fn of_host(cache: Arc<Cache>, version: Version) -> Arc<Self> {
        let base = Expect::Version(version);
        Self::new(
            cache,
            Content::Absent { failure: None },
            base,
            version.size,
            version.mtime,
        )
    }

    pub(super) fn born(cache: Arc<Cache>, replaces: bool) -> Result<Arc<Self>, Error> {
        let (private, file) = cache.disk.create_dirty().map_err(local("create a file"))?;
        let now = cache.clock.wall().to_micros();
        let content = Content::Dirty {
            file: Arc::new(file),
            private,
        };
        let entry = Self::new(cache, content, Expect::Absent, 0, now);
        entry.state.lock().replaces = replaces;
        Ok(entry)
    }

    /// Makes an entry for content that an earlier run left: closed, in the journal, and possibly on
    /// the host already.
    pub(super) fn left(
        cache: Arc<Cache>,
        record: &Record,
        private: Private,
        file: File,
        doubts: Vec<Doubt>,
    ) -> Arc<Self> {
        let content = Content::Dirty {
            file: Arc::new(file),
            private,
        };
        let entry = Self::new(cache, content, record.base, record.size, record.mtime);
        let mut state = entry.state.lock();
        state.atime = record.atime;
        state.ctime = record.mtime.max(record.since);
        state.journaled = Journaled::As(record.id);
        state.is_sealed = true;
        state.is_begun = record.phase == Phase::Begun;
        let old = entry.cache.disk.open_old(record.id);
        state.old = old.map(|file| (record.id, Arc::new(file)));
        state.doubts = doubts;
        state.left_as = Some(record.id);
        drop(state);
        entry
    }

    /// Says what must be on the host for content that an earlier run left to replace it.
    pub fn rebase(&self, base: Expect) {
        self.state.lock().base = base;
    }

    /// Has content that was closed uploaded in the background.
    pub fn upload(self: &Arc<Self>, whereto: &Arc<dyn Whereto>) {
        self.cache.uploads.add(self, whereto, Duration::ZERO);
    }

    /// Counts a handle.
    pub fn retain(&self) {
        self.state.lock().opens += 1;
    }

    /// Discounts a handle. The last one gives clean content back to the cache.
    pub fn release(&self) {
        let mut state = self.state.lock();
        state.opens = state.opens.saturating_sub(1);
        if state.opens == 0 && !state.is_flushing && matches!(state.content, Content::Clean { .. })
        {
            self.put_away(&mut state);
        }
    }

    pub(super) fn is_wanted(state: &State) -> bool {
        state.opens > 0
    }

    /// Gives clean content to the index, or drops it if it could not be found there.
    pub(super) fn put_away(&self, state: &mut State) {
        let content = std::mem::replace(&mut state.content, Content::Absent { failure: None });
        match content {
            Content::Clean {
                version,
                place: Place::Named,
                ..
            } => self.cache.keep(&version),
            Content::Clean {
                place: Place::Private(private),
                ..
            } => {
                self.cache.disk.remove_private(&private);
            }
            other => state.content = other,
        }
    }

    /// Makes sure that the content of `version` is here or on its way.
    ///
    /// Returns once errors of the host are known. Our own content that is not yet uploaded always
    /// counts as the newest.
    ///
    /// # Errors
    /// [`Error::Outdated`] if others have the file open and what they read is of another version.
    pub fn open(
        self: &Arc<Self>,
        path: &RemotePath,
        version: Version,
        wait: Wait,
    ) -> Result<(), Error> {
        let mut state = self.state.lock();
        let mut has_asked = false;
        loop {
            let has_readers = state.opens > 1;
            match &mut state.content {
                Content::Dirty { .. } => return Ok(()),
                Content::Clean { version: here, .. } if *here == version || has_asked => {
                    return Ok(());
                }
                // Others read it: it must not change under them before the newer one is complete.
                Content::Clean { .. } if has_readers => return Err(Error::Outdated),
                Content::Clean { version: here, .. } => {
                    let old = *here;
                    self.put_away(&mut state);
                    self.cache.forget(&old);
                }
                Content::Fetching(fetching) => {
                    let is_begun = fetching.total.is_some_and(|total| total > WHOLE_AT_OPEN);
                    if is_begun && (has_asked || fetching.version == version) {
                        return Ok(());
                    }
                    has_asked |= fetching.version == version;
                    self.wait(&mut state, wait)?;
                }
                Content::Absent { failure } => {
                    if has_asked && let Some(error) = failure {
                        return Err(error.clone());
                    }
                    if self.take_from_index(&mut state, version) {
                        return Ok(());
                    }
                    if wait == Wait::Never {
                        return Err(Error::WouldWait);
                    }
                    self.start_fetch(&mut state, path, version)?;
                    has_asked = true;
                }
            }
        }
    }

    fn take_from_index(&self, state: &mut State, version: Version) -> bool {
        if !self.cache.index.lock().remove(&version) {
            return false;
        }
        let Some(file) = self.cache.disk.open_clean(&version) else {
            return false;
        };
        state.content = Content::Clean {
            version,
            file: Arc::new(file),
            place: Place::Named,
        };
        state.set_base(version);
        true
    }

    /// Waits for the state to change.
    pub(super) fn wait(&self, state: &mut MutexGuard<'_, State>, wait: Wait) -> Result<(), Error> {
        if wait == Wait::Never {
            return Err(Error::WouldWait);
        }
        self.changed.wait(state);
        Ok(())
    }

    /// Sets times that are to be uploaded with the content. Returns false, having done nothing, if
    /// there is nothing to be uploaded.
    pub fn set_times(&self, atime: Option<Time>, mtime: Option<Time>) -> bool {
        let mut state = self.state.lock();
        if !matches!(state.content, Content::Dirty { .. }) || state.is_flushing {
            return false;
        }
        state.atime = atime.or(state.atime);
        state.mtime = mtime.unwrap_or(state.mtime);
        state.ctime = self.cache.clock.wall();
        true
    }

    /// Returns what the host does not know yet; `None` if it knows everything.
    pub fn local(&self) -> Option<Local> {
        let state = self.state.lock();
        matches!(state.content, Content::Dirty { .. }).then(|| Local {
            size: state.size,
            mtime: state.mtime,
            atime: state.atime,
            ctime: state.ctime,
        })
    }

    pub fn is_dirty(&self) -> bool {
        matches!(self.state.lock().content, Content::Dirty { .. })
    }

    /// Returns whether content is as it was when it was last closed and the cache uploads it by
    /// itself, without a failure so far.
    pub fn is_on_its_way(&self) -> bool {
        let state = self.state.lock();
        state.is_sealed && state.failure.is_none()
    }

    /// Returns whether there is content that was written to and not closed since.
    pub fn is_unclosed(&self) -> bool {
        let state = self.state.lock();
        matches!(state.content, Content::Dirty { .. }) && !state.is_sealed
    }

    /// Says that uploads of an earlier run left nothing on the host that could still end there.
    pub(super) fn has_no_leftovers(&self) {
        for doubt in &mut self.state.lock().doubts {
            doubt.is_withdrawn = true;
        }
    }

    /// Returns where content that is not uploaded yet lies, for messages.
    pub fn kept_in(&self) -> Option<std::path::PathBuf> {
        match &self.state.lock().content {
            Content::Dirty { private, .. } => Some(self.cache.disk.private_path(private)),
            _ => None,
        }
    }

    /// Returns whether the host would let the login user write to the file; true where it was not
    /// asked for content.
    pub fn may_write(&self) -> bool {
        self.state.lock().may_write
    }

    /// Returns whether content is on its way here, so that the next opener should wait for it.
    pub fn is_fetching(&self) -> bool {
        matches!(self.state.lock().content, Content::Fetching(_))
    }

    /// Returns the version of the content if it is the host's.
    pub fn version(&self) -> Option<Version> {
        match &self.state.lock().content {
            Content::Clean { version, .. } => Some(*version),
            _ => None,
        }
    }

    /// Takes the attributes that came with the content, if there are new ones, and when they came.
    pub fn take_news(&self) -> Option<(Stat, Tick)> {
        self.state.lock().news.take()
    }

    /// Says that the file's metadata changed by our own doing while its content stayed.
    pub fn revise(&self, old: &Version, new: &Version) {
        if old == new {
            return;
        }
        let mut state = self.state.lock();
        if state.base == Expect::Version(*old) {
            state.base = Expect::Version(*new);
            self.say_base(&state);
        }
        if let Content::Clean { version, place, .. } = &mut state.content
            && version == old
        {
            // What had the new one before must not be found in the place of this.
            self.cache.forget(new);
            if matches!(place, Place::Private(_)) || self.cache.disk.rename_clean(old, new).is_ok()
            {
                *version = *new;
            }
        }
    }

    /// Says that the empty content that is here is what the host has as `version`.
    pub fn settle_empty(&self, version: Version) {
        let mut state = self.state.lock();
        self.settle_at(&mut state, version);
    }

    /// Dirty content is what the host has in this version.
    pub(super) fn settle_at(&self, state: &mut State, version: Version) {
        if let Content::Dirty { file, private } = &state.content {
            let (file, private) = (Arc::clone(file), *private);
            let place = self.place_of(private);
            state.content = Content::Clean {
                version,
                file,
                place,
            };
            state.set_base(version);
            self.undeclare(state);
        }
    }

    /// The place of content that is on the host and that no name can identify.
    pub(super) fn place_of(&self, private: Private) -> Place {
        let renamed = self
            .cache
            .disk
            .rename_private(&private, Private::temporary(private.id));
        Place::Private(renamed.unwrap_or(private))
    }

    /// Returns how often this content was found to conflict with somebody else's, and was moved
    /// aside. Who has had the file open since before has not been told.
    pub fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    /// Says how a copy on the host replaces what this entry would upload.
    pub fn plan_copy(&self, size: u64, target: &Target, mtime: Time) -> UploadSpec {
        let expect = self.state.lock().base;
        let durability = Durability::Lazy;
        UploadSpec {
            size,
            appends_to: None,
            mode: target.mode,
            sets_mode: target.sets_mode,
            mtime,
            atime: target.atime,
            owner: target.owner,
            expect,
            placement: target.placement,
            durability,
            keep_as: None,
            tag: 0,
        }
    }

    /// Says that the file on the host is of this version now and that what is here is not.
    pub fn became(&self, new: Version) {
        let mut state = self.state.lock();
        self.drop_content(&mut state);
        state.set_base(new);
        self.changed.notify_all();
    }

    /// Drops everything: the file has no name any more and nobody has it open.
    pub fn discard(&self) {
        self.drop_content(&mut self.state.lock());
    }

    fn drop_content(&self, state: &mut State) {
        self.drop_file(state);
        self.undeclare(state);
    }

    fn drop_file(&self, state: &mut State) {
        match std::mem::replace(&mut state.content, Content::Absent { failure: None }) {
            Content::Dirty { private, .. } => self.cache.disk.remove_private(&private),
            Content::Clean {
                version,
                place: Place::Named,
                ..
            } => {
                self.cache.disk.remove_clean(&version);
            }
            Content::Clean {
                place: Place::Private(private),
                ..
            } => {
                self.cache.disk.remove_private(&private);
            }
            Content::Absent { .. } | Content::Fetching(_) => {}
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        let content = match &state.content {
            Content::Absent { .. } => "absent",
            Content::Fetching(_) => "fetching",
            Content::Clean { .. } => "clean",
            Content::Dirty { .. } => "dirty",
        };
        write!(
            f,
            "Entry({content}, {} bytes, {} opens)",
            state.size, state.opens
        )
    }
}
