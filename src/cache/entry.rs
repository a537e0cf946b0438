//! One cached file: opening it, its handles, and waiting for its state to change.
//!
//! The state machine is in `state`. This and the modules that extend [`Entry`] (`access`, `fetch`,
//! `refresh`, `upload`, `persist`, `journaling`, `upload_block`) do the I/O between its
//! transitions.
//!
//! INVARIANT: the lock of the state is held across no I/O, so that attributes can be read while a
//! slow disk works. A [`Busy`] guard with its [`Work`] excludes other changes during such I/O.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::cache::Cache;
use crate::cache::Error;
use crate::cache::UploadTarget;
use crate::cache::blocks::Blocks;
use crate::cache::disk::Private;
use crate::cache::journal::Durable;
use crate::cache::journal::record::Record;
use crate::cache::local;
use crate::cache::state::CleanName;
use crate::cache::state::Content;
use crate::cache::state::State;
use crate::cache::state::UnknownUpload;
use crate::cache::state::Work;
use crate::cache::upload::Target;
use crate::clock::Tick;
use crate::path::RemotePath;
use crate::remote::Expect;
use crate::remote::UploadSpec;
use crate::stat::Stat;
use crate::stat::Time;
use crate::stat::Version;
use crate::sync::Condvar;
use crate::sync::Mutex;
use crate::sync::MutexGuard;

/// Opening a file of up to this many bytes waits for the complete fetch, so that `open()` returns
/// its errors. A larger file can be read while it is being fetched.
pub(super) const WHOLE_AT_OPEN: u64 = 1 << 20;

/// Whether a call may wait for the network, or for another call that does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Do nothing and return [`Error::WouldWait`] instead.
    Never,
    Allowed,
}

/// Attributes of dirty content, which the host does not know yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// In bytes.
    pub size: u64,
    pub mtime: Time,
    /// `None` unless it was set here.
    pub atime: Option<Time>,
    /// When content or times were last changed here.
    pub ctime: Time,
}

/// The content of one file, shared by all handles of it.
pub struct Entry {
    pub(super) cache: Arc<Cache>,
    /// Guards the state; held for no longer than a transition takes.
    pub(super) state: Mutex<State>,
    /// Notified when the state changes in a way that a caller may wait for.
    pub(super) changed: Condvar,
    /// Serializes the changes of the journal record. Taken before `state`; held across I/O on the
    /// local disk.
    pub(super) journaling: Mutex<()>,
    /// How many bytes the running upload has sent.
    pub(super) sent: AtomicU64,
    /// Guards the blocks of a large file that is not fetched as a whole; held across I/O on the local
    /// disk, taken alone.
    pub(super) blocks: Mutex<Option<Blocks>>,
    /// Notified when blocks are not in flight any more.
    pub(super) blocks_changed: Condvar,
    n_handles: AtomicU32,
}

impl Entry {
    fn with_state(cache: Arc<Cache>, state: State) -> Arc<Self> {
        Arc::new(Self {
            cache,
            state: Mutex::new(state),
            changed: Condvar::new(),
            journaling: Mutex::new(()),
            sent: AtomicU64::new(0),
            blocks: Mutex::new(None),
            blocks_changed: Condvar::new(),
            n_handles: AtomicU32::new(0),
        })
    }

    /// A file of the host, whose content is fetched when it is first needed.
    pub(super) fn of_host(cache: Arc<Cache>, version: Version) -> Arc<Self> {
        let content = Content::Absent { failure: None };
        let base = Expect::Version(version);
        let state = State::new(content, base, version.size, version.mtime);
        Self::with_state(cache, state)
    }

    /// An empty file that the host does not have yet.
    pub(super) fn of_new_file(
        cache: Arc<Cache>,
        skips_conflict_check: bool,
    ) -> Result<Arc<Self>, Error> {
        let (private, file) = cache.disk.create_dirty().map_err(local("create a file"))?;
        let now = cache.clock.wall().truncate_to_micros();
        let state = State::of_new_file(file, private, skips_conflict_check, now);
        Ok(Self::with_state(cache, state))
    }

    /// Dirty content of an earlier mount.
    pub(super) fn recovered(
        cache: Arc<Cache>,
        record: &Record,
        private: Private,
        file: File,
        unknown_uploads: Vec<UnknownUpload>,
    ) -> Arc<Self> {
        let base_copy = cache.disk.open_base_copy(record.id);
        let state = State::recovered(record, file, private, base_copy, unknown_uploads);
        Self::with_state(cache, state)
    }

    /// Sets what the host has under the name of recovered content: `base` is the base version, and
    /// `is_new` is set if there is no file.
    pub fn found_on_host(&self, base: Option<Expect>, is_new: bool) {
        let mut state = self.state.lock();
        if let Some(base) = base {
            state.set_base(base);
        }
        state.set_new(is_new);
    }

    /// Marks content as closed, and uploads it in the background.
    pub fn close_and_upload_later(self: &Arc<Self>, upload_target: &Arc<dyn UploadTarget>) {
        self.state.lock().set_closed(true);
        self.upload_later(upload_target);
    }

    /// Queues closed content for upload in the background.
    pub fn upload_later(self: &Arc<Self>, upload_target: &Arc<dyn UploadTarget>) {
        self.cache.uploads.add(self, upload_target, Duration::ZERO);
    }
}

/// Handles.
impl Entry {
    /// Counts a handle.
    pub fn add_handle(&self) {
        self.n_handles.fetch_add(1, Ordering::SeqCst);
    }

    /// Counts a handle as closed; returns how many are left. Call [`Self::return_if_unused`] after
    /// the last.
    pub fn remove_handle(&self) -> u32 {
        let before = self.n_handles.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(before > 0, "a handle was closed twice");
        before - 1
    }

    /// Returns how many handles are open.
    pub fn n_handles(&self) -> u32 {
        self.n_handles.load(Ordering::SeqCst)
    }

    pub fn is_open(&self) -> bool {
        self.n_handles() > 0
    }

    /// Gives clean content back to the cache if no handle is open.
    pub fn return_if_unused(&self) {
        if !self.is_open() {
            self.drop_blocks();
        }
        self.return_if_handles(0);
    }

    /// Gives clean content back to the cache if only one handle is open, which is about to be
    /// closed. While it counts, the kernel's FORGET does not drop the content.
    pub fn return_before_last_close(&self) {
        self.return_if_handles(1);
    }

    fn return_if_handles(&self, max_handles: u32) {
        let mut state = self.state.lock();
        if self.n_handles() > max_handles || state.is_busy() || !state.is_clean() {
            return;
        }
        let taken = state.take_clean();
        drop(state);
        self.return_to_index(taken);
    }

    /// Moves clean content that was taken from the state to the index; removes it if its name
    /// encodes no version.
    pub(super) fn return_to_index(&self, taken: Option<(Version, CleanName)>) {
        match taken {
            Some((version, CleanName::ByVersion)) => self.cache.add_to_index(&version),
            Some((_, CleanName::Private(private))) => self.cache.disk.remove_private(&private),
            None => {}
        }
    }
}

/// Opening.
impl Entry {
    /// Makes sure that the content of `version` is cached, or is being fetched.
    ///
    /// Waits for the complete fetch of a file of up to 1 MiB, and for the beginning of a larger one.
    /// Dirty content always counts as the newest.
    ///
    /// # Errors
    /// [`Error::StaleContent`] if other handles are open and their content is of another version;
    /// why the fetch failed; those of the local disk.
    pub fn open(
        self: &Arc<Self>,
        path: &RemotePath,
        version: Version,
        wait: Wait,
    ) -> Result<(), Error> {
        let mut has_asked = false;
        let mut was_looked_for = false;
        let mut state = self.state.lock();
        loop {
            match state.content() {
                Content::Dirty { .. } => return Ok(()),
                Content::Clean { version: here, .. } if *here == version || has_asked => {
                    return Ok(());
                }
                // Other handles read it: it is replaced only when the newer version is complete.
                Content::Clean { .. } if self.n_handles() > 1 => return Err(Error::StaleContent),
                Content::Clean { .. } if state.is_busy() => self.wait(&mut state, wait)?,
                Content::Clean { version: here, .. } => {
                    let old = *here;
                    let taken = state.take_clean();
                    drop(state);
                    self.return_to_index(taken);
                    self.cache.forget(&old);
                    state = self.state.lock();
                }
                Content::Fetching(fetching) => {
                    let is_begun = fetching.total.is_some_and(|total| total > WHOLE_AT_OPEN);
                    let is_wanted = fetching.version == version;
                    if is_begun && (has_asked || is_wanted) {
                        return Ok(());
                    }
                    has_asked |= is_wanted;
                    self.wait(&mut state, wait)?;
                }
                Content::Absent { .. } if state.is_busy() => self.wait(&mut state, wait)?,
                Content::Absent {
                    failure: Some(error),
                } if has_asked => return Err(error.clone()),
                Content::Absent { .. } if !was_looked_for => {
                    drop(state);
                    self.cache.wait_for_read_ahead(&version, wait)?;
                    let file = self.take_from_index(&version);
                    was_looked_for = true;
                    state = self.state.lock();
                    if let Some(file) = file {
                        if state.is_busy() || !matches!(state.content(), Content::Absent { .. }) {
                            // Lost the race against another caller.
                            drop(state);
                            self.cache.add_to_index(&version);
                            state = self.state.lock();
                            continue;
                        }
                        state.found(version, file);
                        return Ok(());
                    }
                }
                Content::Absent { .. } => {
                    if wait == Wait::Never {
                        return Err(Error::WouldWait);
                    }
                    drop(state);
                    // Another caller may have been faster, with another version.
                    has_asked |= self.start_fetch(path, version)?;
                    state = self.state.lock();
                }
            }
        }
    }

    fn take_from_index(&self, version: &Version) -> Option<File> {
        if !self.cache.index.lock().take(version) {
            return None;
        }
        self.cache.disk.open_clean(version)
    }

    /// Waits for the state to change.
    pub(super) fn wait(&self, state: &mut MutexGuard<'_, State>, wait: Wait) -> Result<(), Error> {
        if wait == Wait::Never {
            return Err(Error::WouldWait);
        }
        self.changed.wait(state);
        Ok(())
    }

    /// Begins work that ends when the guard is dropped, however that happens.
    pub(super) fn begin(&self, state: &mut State, work: Work) -> Busy<'_> {
        state.begin(work);
        Busy { entry: self }
    }
}

/// Marks an entry as busy. Dropping it ends the work, also after an early return or a panic, and
/// wakes the callers that wait for it.
#[must_use]
pub(super) struct Busy<'a> {
    entry: &'a Entry,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.entry.state.lock().end_work();
        self.entry.changed.notify_all();
    }
}

/// Queries, and attributes.
impl Entry {
    /// Sets times that are uploaded with the content. Returns false, and changes nothing, if the
    /// content is not dirty, or is being persisted or uploaded.
    pub fn set_times(&self, atime: Option<Time>, mtime: Option<Time>) -> bool {
        let now = self.cache.clock.wall();
        self.state.lock().set_times(atime, mtime, now)
    }

    /// Returns the attributes of dirty content; `None` if it is not dirty.
    pub fn local(&self) -> Option<Local> {
        self.state.lock().local()
    }

    pub fn is_dirty(&self) -> bool {
        self.state.lock().is_dirty()
    }

    /// Returns whether it holds the whole content.
    pub fn has_content(&self) -> bool {
        let state = self.state.lock();
        matches!(
            state.content(),
            Content::Clean { .. } | Content::Dirty { .. }
        )
    }

    /// Returns whether the host has no file yet.
    pub fn is_new(&self) -> bool {
        self.state.lock().is_new()
    }

    /// Returns whether the content is unchanged since the last close, and no upload of it has
    /// failed.
    pub fn is_waiting_upload(&self) -> bool {
        let state = self.state.lock();
        state.is_closed() && state.failure().is_none()
    }

    /// Returns whether dirty content was changed since the last close.
    pub fn is_unclosed(&self) -> bool {
        let state = self.state.lock();
        state.is_dirty() && !state.is_closed()
    }

    /// Marks the uploads of an earlier mount as cancelled: their temporary files were removed.
    pub(super) fn unknown_uploads_are_cancelled(&self) {
        self.state.lock().unknown_uploads_are_cancelled();
    }

    /// Returns the local file of dirty content, for messages.
    pub fn local_file(&self) -> Option<PathBuf> {
        let (_, private) = self.state.lock().dirty()?;
        Some(self.cache.disk.private_path(&private))
    }

    /// Returns whether the login user may write to the file on the host, according to the last
    /// fetch; true if there was none.
    pub fn may_write(&self) -> bool {
        self.state.lock().may_write()
    }

    /// Returns whether a fetch is in progress, so that the next opener should wait for it.
    pub fn is_fetching(&self) -> bool {
        matches!(self.state.lock().content(), Content::Fetching(_))
    }

    /// Returns the version of clean content.
    pub fn version(&self) -> Option<Version> {
        self.state.lock().clean_version()
    }

    /// Takes the attributes from the last fetch, and its time; `None` if they were taken already.
    pub fn take_fetched_stat(&self) -> Option<(Stat, Tick)> {
        self.state.lock().take_fetched_stat()
    }

    /// Begins to replace the version `old` by `new`, after a request of ours changed the metadata of
    /// the file but not its content: renames the file of clean content. Waits for other work on it.
    /// The state changes with [`VersionChange::apply`].
    pub fn begin_version_change(&self, old: &Version, new: &Version) -> VersionChange<'_> {
        let mut state = self.state.lock();
        let name = loop {
            match state.content() {
                Content::Clean { version, name, .. } if version == old && old != new => {
                    if !state.is_busy() {
                        break Some(*name);
                    }
                    self.changed.wait(&mut state);
                }
                _ => break None,
            }
        };
        let busy = name.map(|_| self.begin(&mut state, Work::Changing));
        drop(state);
        if name.is_some() {
            // Older cached content with the new version must not be found instead of this.
            self.cache.forget(new);
        }
        let is_renamed = match name {
            None => false,
            Some(CleanName::Private(_)) => true,
            Some(CleanName::ByVersion) => self.cache.disk.rename_clean(old, new).is_ok(),
        };
        VersionChange {
            entry: self,
            busy,
            old: *old,
            new: *new,
            is_renamed,
            is_base: false,
        }
    }

    /// Makes empty content clean: the host has created the file, as `version`.
    pub fn empty_file_was_created(&self, version: Version) {
        self.content_is_on_host(version);
    }

    /// Makes dirty content clean: the host has it in this version.
    pub(super) fn content_is_on_host(&self, version: Version) {
        let Some((_, private)) = self.state.lock().dirty() else {
            return;
        };
        let name = self.private_name(private);
        self.state.lock().becomes_clean(version, name);
        self.leave_journal();
    }

    /// Renames the file of clean content to a name that encodes no version.
    pub(super) fn private_name(&self, private: Private) -> CleanName {
        let temporary = Private::temporary(private.id);
        let renamed = self.cache.disk.rename_private(&private, temporary);
        CleanName::Private(renamed.unwrap_or(private))
    }

    /// Returns how many conflicts this content had. A handle that was opened before the last of
    /// them refers to the content of the conflict copy, and has not reported the conflict to its
    /// program.
    pub fn conflict_epoch(&self) -> u64 {
        self.state.lock().conflict_epoch()
    }

    /// Returns the upload spec for a copy of `size` bytes that the host makes itself, in place of
    /// the upload of this entry.
    pub fn copy_spec(&self, size: u64, target: &Target, mtime: Time) -> UploadSpec {
        UploadSpec {
            size,
            appends_to: None,
            mtime,
            atime: target.atime,
            ..self.state.lock().upload_spec(target, 0)
        }
    }

    /// Drops the content: a copy on the host replaced the file by `new`, whose content is not
    /// cached.
    pub fn replaced_on_host(&self, new: Version) {
        let mut state = self.state.lock();
        while state.is_busy() {
            self.changed.wait(&mut state);
        }
        let busy = self.begin(&mut state, Work::Changing);
        drop(state);
        self.discard_as(Durable::No);
        self.state.lock().has_version(new);
        drop(busy);
    }

    /// Drops the content: the file is unlinked and has no handle, or its content was replaced.
    pub fn discard(&self) {
        // Durably: after a power failure the next mount would create an unlinked file again.
        self.discard_as(Durable::Yes);
    }

    fn discard_as(&self, durable: Durable) {
        let _journaling = self.journaling.lock();
        // In one step: content that comes afterwards has another record.
        let (content, left) = self.state.lock().discard();
        match content {
            Content::Dirty { private, .. }
            | Content::Clean {
                name: CleanName::Private(private),
                ..
            } => self.cache.disk.remove_private(&private),
            Content::Clean {
                version,
                name: CleanName::ByVersion,
                ..
            } => self.cache.disk.remove_clean(&version),
            Content::Absent { .. } | Content::Fetching(_) => {}
        }
        self.end_record(left, durable);
    }
}

/// See [`Entry::begin_version_change`]. The content does not change before it is dropped.
#[must_use]
pub struct VersionChange<'a> {
    entry: &'a Entry,
    busy: Option<Busy<'a>>,
    old: Version,
    new: Version,
    is_renamed: bool,
    is_base: bool,
}

impl VersionChange<'_> {
    /// Changes the state. Does no I/O, so that the caller can change its own knowledge of the file
    /// in the same step, under its own lock.
    pub fn apply(&mut self) {
        let mut state = self.entry.state.lock();
        self.is_base = self.old != self.new && state.base_changes(&self.old, &self.new);
        if self.is_renamed {
            state.clean_changes(self.new);
        }
    }
}

impl Drop for VersionChange<'_> {
    fn drop(&mut self) {
        drop(self.busy.take());
        if self.is_base {
            self.entry.journal_base();
        }
        // The last handle may have been closed meanwhile.
        self.entry.return_if_unused();
    }
}

impl fmt::Debug for VersionChange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VersionChange")
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        let content = match state.content() {
            Content::Absent { .. } => "absent",
            Content::Fetching(_) => "fetching",
            Content::Clean { .. } => "clean",
            Content::Dirty { .. } => "dirty",
        };
        write!(
            f,
            "Entry({content}, {} bytes, {} handles)",
            state.size(),
            self.n_handles()
        )
    }
}
