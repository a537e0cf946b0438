//! One cached file: opening it, its handles, and waiting for its state to change.
//!
//! The state machine is in `state`. This and the modules that extend [`Entry`] (`access`, `fetch`,
//! `refresh`, `upload`, `persist`, `journaling`, `upload_block`) do the I/O between its transitions.
//!
//! INVARIANT: the lock of the state is held across no I/O, so that attributes can be read while a
//! slow disk works. What must not change meanwhile is marked as [`Work`], by a [`Busy`] guard.

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
use crate::cache::disk::Private;
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

/// Opening a file of up to this many bytes waits for the whole fetch, so that errors show there; a
/// larger one can be read while it is still being fetched.
pub(super) const WHOLE_AT_OPEN: u64 = 1 << 20;

/// Whether a call may wait for the network, or for another call that does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Fail with [`Error::WouldWait`] instead, having done nothing.
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
    /// Makes a change of the journal's record one step. Taken before `state`; held across I/O on the
    /// local disk.
    pub(super) journaling: Mutex<()>,
    /// How many bytes the running upload has sent.
    pub(super) sent: AtomicU64,
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
        let old = cache.disk.open_old(record.id);
        let state = State::recovered(record, file, private, old, unknown_uploads);
        Self::with_state(cache, state)
    }

    /// Tells recovered content what the host has under its name: `base` is what may be replaced, and
    /// `is_new` is set if there is no file.
    pub fn found_on_host(&self, base: Option<Expect>, is_new: bool) {
        let mut state = self.state.lock();
        if let Some(base) = base {
            state.set_base(base);
        }
        state.set_new(is_new);
    }

    /// Uploads closed content in the background.
    pub fn upload_later(self: &Arc<Self>, target_of: &Arc<dyn UploadTarget>) {
        self.cache.uploads.add(self, target_of, Duration::ZERO);
    }
}

/// Handles.
impl Entry {
    /// Counts a handle.
    pub fn add_handle(&self) {
        self.n_handles.fetch_add(1, Ordering::SeqCst);
    }

    /// Discounts a handle; returns how many are left. Call [`Self::return_if_unused`] after the last.
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
        let mut state = self.state.lock();
        if self.is_open() || state.is_busy() || !state.is_clean() {
            return;
        }
        let taken = state.take_clean();
        drop(state);
        self.return_to_index(taken);
    }

    /// Gives clean content that was taken from the state to the index, or removes it if it could not
    /// be found there.
    pub(super) fn return_to_index(&self, taken: Option<(Version, CleanName)>) {
        match taken {
            Some((version, CleanName::ByVersion)) => self.cache.keep(&version),
            Some((_, CleanName::Private(private))) => self.cache.disk.remove_private(&private),
            None => {}
        }
    }
}

/// Opening.
impl Entry {
    /// Makes sure that the content of `version` is here or on its way.
    ///
    /// Returns once errors of the host are known. Dirty content always counts as the newest.
    ///
    /// # Errors
    /// [`Error::StaleContent`] if other handles are open and their content is of another version.
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
                // Others read it: it must not change under them before the newer one is complete.
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
                    let file = self.take_from_index(&version);
                    was_looked_for = true;
                    state = self.state.lock();
                    if let Some(file) = file {
                        if !matches!(state.content(), Content::Absent { .. }) {
                            // Another caller was faster.
                            drop(state);
                            self.cache.keep(&version);
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
                    self.start_fetch(path, version)?;
                    has_asked = true;
                    state = self.state.lock();
                }
            }
        }
    }

    fn take_from_index(&self, version: &Version) -> Option<File> {
        if !self.cache.index.lock().remove(version) {
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

/// Marks an entry as busy. Dropping it ends the work, also after an early return or a panic, and wakes
/// those who wait for that.
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

/// Questions, and attributes.
impl Entry {
    /// Sets times that are uploaded with the content. Returns false, and does nothing, if there is
    /// nothing to be uploaded.
    pub fn set_times(&self, atime: Option<Time>, mtime: Option<Time>) -> bool {
        let now = self.cache.clock.wall();
        self.state.lock().set_times(atime, mtime, now)
    }

    /// Returns the attributes of dirty content; `None` if the host knows everything.
    pub fn local(&self) -> Option<Local> {
        self.state.lock().local()
    }

    pub fn is_dirty(&self) -> bool {
        self.state.lock().is_dirty()
    }

    /// Returns whether the host has no file yet.
    pub fn is_new(&self) -> bool {
        self.state.lock().is_new()
    }

    /// Returns whether the content was not changed since it was last closed and is uploaded in the
    /// background, without a failure so far.
    pub fn is_waiting_upload(&self) -> bool {
        let state = self.state.lock();
        state.is_closed() && state.failure().is_none()
    }

    /// Returns whether there is content that was changed and not closed since.
    pub fn is_unclosed(&self) -> bool {
        let state = self.state.lock();
        state.is_dirty() && !state.is_closed()
    }

    /// Notes that uploads of an earlier mount left nothing on the host that could still end there.
    pub(super) fn unknown_uploads_are_cancelled(&self) {
        self.state.lock().unknown_uploads_are_cancelled();
    }

    /// Returns the local file of dirty content, for messages.
    pub fn local_file(&self) -> Option<PathBuf> {
        let (_, private) = self.state.lock().dirty()?;
        Some(self.cache.disk.private_path(&private))
    }

    /// Returns whether the host would let the login user write to the file; true where it was not
    /// asked for content.
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

    /// Takes the attributes that came with the content, if there are new ones, and when they came.
    pub fn take_fetched_stat(&self) -> Option<(Stat, Tick)> {
        self.state.lock().take_fetched_stat()
    }

    /// Notes that a request of ours changed the metadata of the file, and with it the version of
    /// unchanged content.
    pub fn change_version(&self, old: &Version, new: &Version) {
        if old == new {
            return;
        }
        let (is_base, name) = {
            let mut state = self.state.lock();
            let name = match state.content() {
                Content::Clean { version, name, .. } if version == old => Some(*name),
                _ => None,
            };
            (state.base_changes(old, new), name)
        };
        if is_base {
            self.journal_base();
        }
        let Some(name) = name else { return };
        // Content that had the new version before must not be found instead of this.
        self.cache.forget(new);
        let is_renamed = match name {
            CleanName::Private(_) => true,
            CleanName::ByVersion => self.cache.disk.rename_clean(old, new).is_ok(),
        };
        let mut state = self.state.lock();
        if is_renamed && state.clean_version() == Some(*old) {
            state.clean_changes(*new);
        }
    }

    /// Notes that the empty content that is here is what the host has as `version`.
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

    /// Names the file of content that is on the host and that no version identifies.
    pub(super) fn private_name(&self, private: Private) -> CleanName {
        let temporary = Private::temporary(private.id);
        let renamed = self.cache.disk.rename_private(&private, temporary);
        CleanName::Private(renamed.unwrap_or(private))
    }

    /// Returns how many conflicts this content had. A handle that was opened before the last of them
    /// belongs to the conflict copy, and its user was not told.
    pub fn conflict_epoch(&self) -> u64 {
        self.state.lock().conflict_epoch()
    }

    /// Returns how a copy on the host, of `size` bytes, replaces what this entry would upload.
    pub fn copy_spec(&self, size: u64, target: &Target, mtime: Time) -> UploadSpec {
        UploadSpec {
            size,
            appends_to: None,
            mtime,
            atime: target.atime,
            ..self.state.lock().upload_spec(target, 0)
        }
    }

    /// Notes that the host replaced the file by `new`, whose content is not here.
    pub fn replaced_on_host(&self, new: Version) {
        self.discard();
        self.state.lock().has_version(new);
        self.changed.notify_all();
    }

    /// Drops the content: the file has no name any more and no handle, or another content.
    pub fn discard(&self) {
        let content = self.state.lock().take_content();
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
        self.leave_journal();
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
