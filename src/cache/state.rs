//! The state machine of one cached file. No I/O and no waiting: each method is one transition, or a
//! query. The caller does the I/O on the disk or on the host before or after it.
//!
//! ```text
//! content    event                          next      and
//! ---------  -----------------------------  --------  ------------------------------------------
//! Absent     found in the index             Clean
//! Absent     a fetch starts                 Fetching
//! Fetching   the fetch is complete          Clean     the attributes that came with it are kept
//! Fetching   the fetch failed or was        Absent    the error is kept for callers that wait
//!            cancelled
//! Clean      recorded in the journal, and   Dirty
//!            then changed
//! Clean      a newer version is complete    Clean
//! Clean      the last handle is closed      Absent    the content goes to the index
//! any        truncated to nothing           Dirty     a running fetch is discarded
//! Dirty      uploaded                       Clean     the journal record goes
//! Dirty      uploaded as a conflict copy    Clean     conflict_epoch grows
//! Dirty      the upload failed              Dirty     failure, unknown_uploads, may_be_partial
//! Dirty      unlinked, last handle closed   Absent
//! ```
//!
//! At most one piece of work that excludes other changes is in progress at a time, see [`Work`].
//!
//! INVARIANT: content becomes Dirty before its first byte is written, and Clean when the host has
//! all of it. Dirty content is never dropped while its file is linked. [`State::check_invariants`]
//! checks what can be checked here.

use std::fs::File;
use std::sync::Arc;

use crate::cache::Error;
use crate::cache::disk::Private;
use crate::cache::entry::Local;
use crate::cache::journal::record::Id;
use crate::cache::journal::record::Phase;
use crate::cache::journal::record::Record;
use crate::cache::journal::record::tag;
use crate::cache::refresh::Refresh;
use crate::cache::upload::Target;
use crate::clock::Tick;
use crate::path::RemotePath;
use crate::remote::Durability;
use crate::remote::Expect;
use crate::remote::UploadSpec;
use crate::remote::partial::Digest;
use crate::stat::Stat;
use crate::stat::Time;
use crate::stat::Version;

/// See the head of this module. Guarded by the lock of its entry.
pub(super) struct State {
    content: Content,
    /// The work in progress. Set by [`Self::begin`], cleared by the guard `Busy` of the entry.
    work: Option<Work>,
    /// Renames and removals in progress, during which no upload may begin.
    n_upload_blocks: u32,

    /// The base version: an upload replaces nothing else, unless it skips the conflict check.
    base: Expect,
    /// Opened with `O_TRUNC`: the first upload replaces whatever is on the host. Cleared
    /// afterwards, so that a retry cannot overwrite a newer version.
    skips_conflict_check: bool,
    /// The length of the prefix that equals that of the base version, in bytes: nothing was written
    /// there.
    unchanged_prefix: u64,
    /// The host has no file under this name yet.
    is_new: bool,
    /// The login user may write to the file on the host, according to the last fetch.
    may_write: bool,

    size: u64,
    mtime: Time,
    /// `None` unless it was set here.
    atime: Option<Time>,
    ctime: Time,
    /// Counts the changes of the content and of what is uploaded with it.
    n_changes: u64,
    /// The content is unchanged since the last close: it may be uploaded in the background.
    is_closed: bool,
    /// Bytes that may be written before the disk is asked for room again.
    room: u64,

    journal: InJournal,
    /// A copy of the base version's content and the number of its file. Made if uploads write in
    /// place.
    base_copy: Option<(Id, Arc<File>)>,
    /// The number of the journal record of an earlier mount, until the content is uploaded.
    recovered_as: Option<Id>,

    /// An upload in place was started and has not succeeded: the host may have a partial upload.
    may_be_partial: bool,
    unknown_uploads: Vec<UnknownUpload>,
    /// Why the last upload failed.
    failure: Option<Error>,
    /// The content is durable on the host: it was flushed there after the last upload.
    is_durable_on_host: bool,
    /// Counts the conflicts, see [`super::Entry::conflict_epoch`].
    conflict_epoch: u64,

    /// The attributes from the last fetch, and its time, until the layer above takes them.
    fetched_stat: Option<(Stat, Tick)>,
    /// The size in the host's attributes is not that of the content, as in `/proc`.
    is_unsized: bool,
    /// The replacement of clean content by a newer version.
    pub(super) refresh: Refresh,
}

/// The content of a cached file.
pub(super) enum Content {
    /// Not on the local disk; `failure` is why the last fetch failed.
    Absent {
        failure: Option<Error>,
    },
    Fetching(Fetching),
    Clean {
        version: Version,
        file: Arc<File>,
        name: CleanName,
    },
    Dirty {
        file: Arc<File>,
        private: Private,
    },
}

/// A fetch in progress.
pub(super) struct Fetching {
    /// The requested version.
    pub(super) version: Version,
    pub(super) file: Arc<File>,
    /// How many bytes were fetched into `file`.
    pub(super) have: u64,
    /// The size of the content, in bytes; `None` until the host has announced it.
    pub(super) total: Option<u64>,
    /// Whether a reader got some of it.
    pub(super) was_read: bool,
}

/// The name of clean content in the cache directory.
#[derive(Debug, Clone, Copy)]
pub(super) enum CleanName {
    /// The name encodes the version: the content can be found again when the entry is gone.
    ByVersion,
    /// The name encodes no version, because the version does not identify the content.
    Private(Private),
}

/// Work that excludes other changes of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// The journal is written before the first change.
    Journaling,
    /// The content is flushed to the local disk.
    Persisting,
    /// The content is uploaded.
    Uploading,
    /// The content is written, truncated or allocated.
    Changing,
}

/// Whether the content has a journal record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InJournal {
    No,
    As(Id),
    /// The file is unlinked: it needs no record.
    NotNeeded,
}

/// An upload of unknown outcome: the content may have reached the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnknownUpload {
    /// The directory of its path.
    pub(super) dir: RemotePath,
    /// Marks its temporary files there.
    pub(super) tag: u32,
    pub(super) size: u64,
    pub(super) mtime: Time,
    /// `State::n_changes` when it began: identifies the content that was sent.
    pub(super) n_changes: u64,
    /// The digest of the content; `None` if it was not computed.
    pub(super) digest: Option<Digest>,
    /// Whether its temporary files were removed.
    pub(super) is_cancelled: bool,
}

/// The parameters of one upload, fixed when it begins. The content does not change while it runs.
pub(super) struct UploadJob {
    pub(super) file: Arc<File>,
    pub(super) private: Private,
    pub(super) spec: UploadSpec,
    pub(super) skips_conflict_check: bool,
    pub(super) unknown_uploads: Vec<UnknownUpload>,
    pub(super) n_changes: u64,
    pub(super) may_be_partial: bool,
    /// See `State::base_copy`.
    pub(super) base_copy: Option<Arc<File>>,
}

/// The result of [`State::next_upload`].
pub(super) enum NextUpload {
    /// The host has the content.
    Nothing,
    /// The host has the content, but it is not durable there.
    Flush,
    /// Other work, or a rename or removal, is in progress: wait for it.
    Wait,
    /// Begin with [`Work::Uploading`].
    Upload,
}

impl State {
    pub(super) fn new(content: Content, base: Expect, size: u64, mtime: Time) -> Self {
        Self {
            content,
            work: None,
            n_upload_blocks: 0,
            base,
            skips_conflict_check: false,
            unchanged_prefix: 0,
            is_new: false,
            may_write: true,
            size,
            mtime,
            atime: None,
            ctime: mtime,
            n_changes: 0,
            is_closed: false,
            room: 0,
            journal: InJournal::No,
            base_copy: None,
            recovered_as: None,
            may_be_partial: false,
            unknown_uploads: Vec::new(),
            failure: None,
            is_durable_on_host: false,
            conflict_epoch: 0,
            fetched_stat: None,
            is_unsized: false,
            refresh: Refresh::default(),
        }
    }

    /// An empty file that the host does not have yet.
    pub(super) fn of_new_file(
        file: File,
        private: Private,
        skips_conflict_check: bool,
        now: Time,
    ) -> Self {
        let file = Arc::new(file);
        let content = Content::Dirty { file, private };
        Self {
            skips_conflict_check,
            is_new: true,
            ..Self::new(content, Expect::Absent, 0, now)
        }
    }

    /// Dirty content of an earlier mount: closed, in the journal, and possibly on the host already.
    pub(super) fn recovered(
        record: &Record,
        file: File,
        private: Private,
        base_copy: Option<File>,
        unknown_uploads: Vec<UnknownUpload>,
    ) -> Self {
        let file = Arc::new(file);
        let content = Content::Dirty { file, private };
        Self {
            atime: record.atime,
            ctime: record.mtime.max(record.since),
            journal: InJournal::As(record.id),
            is_closed: true,
            may_be_partial: record.phase == Phase::MaybePartial,
            base_copy: base_copy.map(|file| (record.id, Arc::new(file))),
            unknown_uploads,
            recovered_as: Some(record.id),
            ..Self::new(content, record.base, record.size, record.mtime)
        }
    }

    /// Panics in debug builds if a transition has broken a rule.
    fn check_invariants(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        match &self.content {
            Content::Dirty { .. } => {
                // INVARIANT: non-empty dirty content has a journal record, unless it is unlinked.
                debug_assert!(
                    self.size == 0 || self.journal != InJournal::No,
                    "dirty content is not in the journal"
                );
            }
            Content::Fetching(fetching) => {
                debug_assert!(
                    fetching.total.is_none_or(|total| fetching.have <= total),
                    "more was fetched than the announced size"
                );
            }
            Content::Absent { .. } | Content::Clean { .. } => {}
        }
        // INVARIANT: content that was never uploaded is not durable on the host.
        debug_assert!(
            !(self.is_new && self.is_durable_on_host),
            "a new file is durable on the host"
        );
    }
}

/// Queries.
impl State {
    pub(super) fn content(&self) -> &Content {
        &self.content
    }

    pub(super) fn is_dirty(&self) -> bool {
        matches!(self.content, Content::Dirty { .. })
    }

    pub(super) fn is_clean(&self) -> bool {
        matches!(self.content, Content::Clean { .. })
    }

    pub(super) fn dirty(&self) -> Option<(&Arc<File>, Private)> {
        match &self.content {
            Content::Dirty { file, private } => Some((file, *private)),
            _ => None,
        }
    }

    pub(super) fn clean_version(&self) -> Option<Version> {
        match &self.content {
            Content::Clean { version, .. } => Some(*version),
            _ => None,
        }
    }

    pub(super) fn work(&self) -> Option<Work> {
        self.work
    }

    pub(super) fn is_busy(&self) -> bool {
        self.work.is_some()
    }

    /// Returns whether persisting or uploading may begin: no other work, rename or removal is in
    /// progress.
    pub(super) fn may_upload(&self) -> bool {
        self.work.is_none() && self.n_upload_blocks == 0
    }

    pub(super) fn base(&self) -> Expect {
        self.base
    }

    pub(super) fn is_new(&self) -> bool {
        self.is_new && self.is_dirty()
    }

    /// Whether the host certainly has nothing of a new file.
    pub(super) fn is_only_here(&self) -> bool {
        self.is_new()
            && self.base == Expect::Absent
            && !self.may_be_partial
            && self.unknown_uploads.is_empty()
    }

    pub(super) fn may_write(&self) -> bool {
        self.may_write
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the attributes of dirty content; `None` if it is not dirty.
    pub(super) fn local(&self) -> Option<Local> {
        self.is_dirty().then_some(Local {
            size: self.size,
            mtime: self.mtime,
            atime: self.atime,
            ctime: self.ctime,
        })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    pub(super) fn journal(&self) -> InJournal {
        self.journal
    }

    /// Returns whether the content may be changed: its record is in phase `Open`, or it needs none.
    pub(super) fn is_open_in_journal(&self) -> bool {
        match self.journal {
            InJournal::NotNeeded => true,
            InJournal::As(_) => !self.is_closed,
            InJournal::No => false,
        }
    }

    pub(super) fn may_be_partial(&self) -> bool {
        self.may_be_partial
    }

    pub(super) fn unknown_uploads(&self) -> &[UnknownUpload] {
        &self.unknown_uploads
    }

    pub(super) fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    pub(super) fn conflict_epoch(&self) -> u64 {
        self.conflict_epoch
    }

    pub(super) fn has_fetched_stat(&self) -> bool {
        self.fetched_stat.is_some()
    }

    pub(super) fn is_unsized(&self) -> bool {
        self.is_unsized
    }

    /// Returns the next step until the content is on the host, or durable there.
    pub(super) fn next_upload(&self, durability: Durability) -> NextUpload {
        if self.is_dirty() {
            return match self.may_upload() {
                true => NextUpload::Upload,
                false => NextUpload::Wait,
            };
        }
        match durability {
            Durability::Fsync if !self.is_durable_on_host => NextUpload::Flush,
            _ => NextUpload::Nothing,
        }
    }

    /// Returns the upload spec for `target`, without a conflict copy and without a flush.
    pub(super) fn upload_spec(&self, target: &Target, tag: u32) -> UploadSpec {
        UploadSpec {
            size: self.size,
            appends_to: self.appends_to(target),
            mode: target.mode,
            sets_mode: target.sets_mode,
            mtime: self.mtime,
            atime: self.atime.unwrap_or(target.atime),
            owner: target.owner,
            expect: self.base,
            placement: target.placement,
            durability: Durability::Lazy,
            conflict_name: None,
            is_exclusive: target.is_exclusive && self.base == Expect::Absent,
            tag,
        }
    }

    /// Returns the size of the base version if the content was only appended to.
    fn appends_to(&self, target: &Target) -> Option<u64> {
        let Expect::Version(base) = self.base else {
            return None;
        };
        let is_longer =
            base.size > 0 && self.unchanged_prefix >= base.size && self.size > base.size;
        (target.may_append && is_longer && !self.skips_conflict_check).then_some(base.size)
    }

    /// Returns the upload of the current content; `None` if it is not dirty.
    pub(super) fn upload_job(&self, target: &Target, durability: Durability) -> Option<UploadJob> {
        let (file, private) = self.dirty()?;
        Some(UploadJob {
            file: Arc::clone(file),
            private,
            spec: UploadSpec {
                durability,
                ..self.upload_spec(target, tag(private.id))
            },
            skips_conflict_check: self.skips_conflict_check,
            unknown_uploads: self.unknown_uploads.clone(),
            n_changes: self.n_changes,
            may_be_partial: self.may_be_partial,
            base_copy: self.base_copy.as_ref().map(|(_, file)| Arc::clone(file)),
        })
    }

    /// Returns the journal record of the current content.
    pub(super) fn record(
        &self,
        id: Id,
        phase: Phase,
        target: &Target,
        since: Time,
        why: &str,
    ) -> Record {
        let spec = self.upload_spec(target, tag(id));
        Record {
            id,
            phase,
            path: target.path.clone(),
            was: None,
            base: spec.expect,
            mode: spec.mode,
            sets_mode: spec.sets_mode,
            owner: spec.owner,
            placement: spec.placement,
            size: spec.size,
            mtime: spec.mtime,
            atime: self.atime,
            since,
            why: why.to_owned(),
        }
    }
}

/// Work and blocks.
impl State {
    /// Begins work. The caller must end it with [`Self::end_work`], see `Busy` of the entry.
    pub(super) fn begin(&mut self, work: Work) {
        debug_assert_eq!(self.work, None, "two pieces of work at once");
        self.work = Some(work);
    }

    pub(super) fn end_work(&mut self) {
        self.work = None;
        self.check_invariants();
    }

    pub(super) fn block_uploads(&mut self) {
        self.n_upload_blocks += 1;
    }

    pub(super) fn unblock_uploads(&mut self) {
        self.n_upload_blocks -= 1;
    }
}

/// Transitions of clean and absent content.
impl State {
    /// The content of `version` was found on the disk.
    pub(super) fn found(&mut self, version: Version, file: File) {
        self.content = Content::Clean {
            version,
            file: Arc::new(file),
            name: CleanName::ByVersion,
        };
        self.has_version(version);
    }

    pub(super) fn fetch_begins(&mut self, version: Version, file: Arc<File>) {
        self.content = Content::Fetching(Fetching {
            version,
            file,
            have: 0,
            total: None,
            was_read: false,
        });
    }

    /// Returns the fetch into `file`; `None` if the content was truncated or replaced since it
    /// began.
    pub(super) fn fetch_into(&mut self, file: &Arc<File>) -> Option<&mut Fetching> {
        match &mut self.content {
            Content::Fetching(fetching) if Arc::ptr_eq(&fetching.file, file) => Some(fetching),
            _ => None,
        }
    }

    /// A reader gets part of the content while it is being fetched.
    pub(super) fn fetched_part_is_read(&mut self) {
        if let Content::Fetching(fetching) = &mut self.content {
            fetching.was_read = true;
        }
    }

    /// The fetch ended without content. `failure` is `None` if it was cancelled because no handle
    /// was open.
    pub(super) fn fetch_ends(&mut self, failure: Option<Error>) {
        self.content = Content::Absent { failure };
    }

    /// A fetch is complete: of the first content, or of a newer version.
    pub(super) fn fetched(&mut self, content: Content, fetched: FetchedContent, now: Tick) {
        let FetchedContent {
            base,
            stat,
            size,
            may_write,
            is_unsized,
        } = fetched;
        self.has_version(base);
        self.may_write = may_write;
        self.size = size;
        self.is_unsized = is_unsized;
        self.fetched_stat = Some((stat, now));
        self.content = content;
        self.check_invariants();
    }

    pub(super) fn take_fetched_stat(&mut self) -> Option<(Stat, Tick)> {
        self.fetched_stat.take()
    }

    /// Takes clean content out of the entry, to be given to the index or removed.
    pub(super) fn take_clean(&mut self) -> Option<(Version, CleanName)> {
        match &self.content {
            Content::Clean { version, name, .. } => {
                let taken = (*version, *name);
                self.content = Content::Absent { failure: None };
                Some(taken)
            }
            _ => None,
        }
    }

    /// Takes the content and its journal record out of the entry, to be removed.
    pub(super) fn discard(&mut self) -> (Content, LeftJournal) {
        let content = std::mem::replace(&mut self.content, Content::Absent { failure: None });
        (content, self.leave_journal())
    }

    /// A request of ours changed the metadata of the file on the host, and with it the version.
    /// Returns whether that was the base version.
    pub(super) fn base_changes(&mut self, old: &Version, new: &Version) -> bool {
        let is_base = self.base == Expect::Version(*old);
        if is_base {
            self.base = Expect::Version(*new);
        }
        is_base
    }

    /// As [`Self::base_changes`], for clean content whose file was renamed to the new version.
    pub(super) fn clean_changes(&mut self, new: Version) {
        if let Content::Clean { version, .. } = &mut self.content {
            *version = new;
        }
    }

    /// Sets the base version to `version`, and the attributes to those of it.
    pub(super) fn has_version(&mut self, version: Version) {
        self.base = Expect::Version(version);
        self.skips_conflict_check = false;
        self.unchanged_prefix = version.size;
        self.is_new = false;
        self.size = version.size;
        self.is_unsized = false;
        self.mtime = version.mtime;
        self.atime = None;
    }

    pub(super) fn set_base(&mut self, base: Expect) {
        self.base = base;
    }

    pub(super) fn set_new(&mut self, is_new: bool) {
        self.is_new = is_new;
    }
}

/// Transitions of dirty content.
impl State {
    /// Clean content is about to be changed; its file was renamed to `private`.
    pub(super) fn becomes_dirty(&mut self, private: Private) -> Option<Arc<File>> {
        let Content::Clean { file, .. } = &self.content else {
            return None;
        };
        let file = Arc::clone(file);
        self.content = Content::Dirty {
            file: Arc::clone(&file),
            private,
        };
        self.check_invariants();
        Some(file)
    }

    /// The content is replaced by an empty file; returns what it was.
    pub(super) fn is_emptied(&mut self, file: File, private: Private, now: Time) -> Content {
        let file = Arc::new(file);
        let old = std::mem::replace(&mut self.content, Content::Dirty { file, private });
        self.is_resized(0, now);
        old
    }

    /// A write at `offset` is about to begin. Called first, because a write that fails may have
    /// written some bytes.
    pub(super) fn write_begins(&mut self, offset: u64) {
        self.unchanged_prefix = self.unchanged_prefix.min(offset);
    }

    /// `len` bytes were written at `offset`, or some of them if `len` is 0.
    pub(super) fn is_written(&mut self, offset: u64, len: u64, now: Time) {
        self.room = self.room.saturating_sub(len);
        if len > 0 {
            self.size = self.size.max(offset + len);
        }
        self.is_changed(now);
    }

    /// The file was truncated or extended to `size` bytes.
    pub(super) fn is_resized(&mut self, size: u64, now: Time) {
        self.unchanged_prefix = self.unchanged_prefix.min(size);
        self.size = size;
        self.is_changed(now);
    }

    /// The next upload skips the conflict check, unless the file is new.
    pub(super) fn skip_conflict_check(&mut self) {
        self.skips_conflict_check = self.base != Expect::Absent;
    }

    fn is_changed(&mut self, now: Time) {
        self.mtime = now;
        self.ctime = now;
        self.is_durable_on_host = false;
        self.is_closed = false;
        self.n_changes += 1;
        self.check_invariants();
    }

    /// Returns whether `len` more bytes may be written without checking the free space of the disk.
    pub(super) fn has_room(&self, len: u64) -> bool {
        self.room >= len
    }

    pub(super) fn set_room(&mut self, room: u64) {
        self.room = room;
    }

    /// Sets times that are uploaded with the content. Returns false, and changes nothing, if the
    /// content is not dirty, or is being persisted or uploaded.
    pub(super) fn set_times(
        &mut self,
        atime: Option<Time>,
        mtime: Option<Time>,
        now: Time,
    ) -> bool {
        let is_in_use = matches!(self.work, Some(Work::Persisting | Work::Uploading));
        if !self.is_dirty() || is_in_use {
            return false;
        }
        self.atime = atime.or(self.atime);
        self.mtime = mtime.unwrap_or(self.mtime);
        self.ctime = now;
        true
    }

    /// The attributes that are uploaded with the content were changed; uploads of unknown outcome
    /// have the old ones. Returns whether the journal record must be rewritten now: otherwise
    /// closing the content does it.
    pub(super) fn attrs_are_changed(&mut self) -> bool {
        if !self.unknown_uploads.is_empty() {
            self.n_changes += 1;
        }
        self.is_closed
    }

    /// Unchanged content is to be uploaded again. Returns the new number of changes.
    pub(super) fn is_marked_for_upload(&mut self) -> u64 {
        self.is_durable_on_host = false;
        self.n_changes += 1;
        self.n_changes
    }

    /// Returns whether content that was marked as change `n_changes` of `version` is unchanged
    /// since, and no upload of it has an unknown outcome.
    pub(super) fn is_as_marked(&self, n_changes: u64, version: Version) -> bool {
        self.is_dirty()
            && self.n_changes == n_changes
            && self.base == Expect::Version(version)
            && self.unknown_uploads.is_empty()
    }

    pub(super) fn forget_failure(&mut self) {
        self.failure = None;
    }

    /// The host has the content in this version; the local file was renamed to `name`.
    pub(super) fn becomes_clean(&mut self, version: Version, name: CleanName) {
        if let Content::Dirty { file, .. } = &self.content {
            let file = Arc::clone(file);
            self.content = Content::Clean {
                version,
                file,
                name,
            };
            self.has_version(version);
        }
    }

    /// The file of dirty content was renamed in the cache directory.
    pub(super) fn set_private(&mut self, new: Private) {
        if let Content::Dirty { private, .. } = &mut self.content {
            *private = new;
        }
    }

    /// Persisting ended. If it succeeded, the content may be uploaded in the background, with the
    /// conflict check.
    pub(super) fn is_persisted(&mut self, is_closed: bool) {
        self.is_closed = is_closed;
        self.skips_conflict_check &= !is_closed;
    }

    /// The content is complete: it may be uploaded in the background, or by the next mount.
    pub(super) fn set_closed(&mut self, is_closed: bool) {
        self.is_closed = is_closed;
    }

    /// An upload succeeded, possibly as a conflict copy. Returns the number of the record if this
    /// was content of an earlier mount.
    pub(super) fn uploaded(
        &mut self,
        job: &UploadJob,
        version: Version,
        name: CleanName,
        is_conflict: bool,
    ) -> Option<Id> {
        self.has_version(version);
        self.size = job.spec.size;
        self.failure = None;
        self.unknown_uploads.clear();
        self.conflict_epoch += u64::from(is_conflict);
        self.is_durable_on_host = job.spec.durability == Durability::Fsync;
        self.content = Content::Clean {
            version,
            file: Arc::clone(&job.file),
            name,
        };
        self.recovered_as.take()
    }

    /// An upload failed. `part` is set for a partial upload: what the host has now, and how many
    /// bytes of it equal ours. `unknown` is set if the outcome is unknown. Returns whether the
    /// error differs from the last one.
    pub(super) fn upload_failed(
        &mut self,
        error: &Error,
        is_partial: bool,
        part: Option<(Expect, u64)>,
        unknown: Option<UnknownUpload>,
    ) -> bool {
        self.may_be_partial |= is_partial;
        match (part, unknown) {
            // The next upload may replace the partial upload, but no later change by another
            // client.
            (Some((part, prefix)), _) => {
                self.base = part;
                self.unchanged_prefix = prefix;
            }
            // The next upload resolves it.
            (None, Some(unknown)) => self.unknown_uploads.push(unknown),
            (None, None) => {}
        }
        self.skips_conflict_check = false;
        let is_new_error =
            self.failure.as_ref().map(ToString::to_string) != Some(error.to_string());
        self.failure = Some(error.clone());
        self.check_invariants();
        is_new_error
    }

    /// An upload in place is about to begin.
    pub(super) fn may_become_partial(&mut self) {
        self.may_be_partial = true;
    }

    pub(super) fn unknown_uploads_are_cancelled(&mut self) {
        for unknown in &mut self.unknown_uploads {
            unknown.is_cancelled = true;
        }
    }

    pub(super) fn is_made_durable_on_host(&mut self) {
        self.is_durable_on_host = true;
    }
}

/// Transitions of the journal.
impl State {
    pub(super) fn set_journal(&mut self, journal: InJournal) {
        self.journal = journal;
    }

    /// The journal record is in phase `Open`.
    pub(super) fn opened_in_journal(&mut self, id: Id, base_copy: Option<(Id, Arc<File>)>) {
        self.journal = InJournal::As(id);
        self.is_closed = false;
        self.base_copy = base_copy.or(self.base_copy.take());
    }

    pub(super) fn set_base_copy(&mut self, base_copy: Option<(Id, Arc<File>)>) {
        self.base_copy = base_copy;
    }

    /// The content needs no journal record any more. Returns the number of the record to be ended,
    /// and that of the base copy to be removed.
    pub(super) fn leave_journal(&mut self) -> LeftJournal {
        self.may_be_partial = false;
        let base_copy = self.base_copy.take().map(|(id, _)| id);
        let record = match self.journal {
            InJournal::As(id) => Some(id),
            InJournal::No | InJournal::NotNeeded => None,
        };
        self.journal = InJournal::No;
        (record, base_copy)
    }
}

/// The journal record that is to be ended, and the copy of the host's content that is to be removed.
pub(super) type LeftJournal = (Option<Id>, Option<Id>);

/// The result of a fetch besides the bytes.
pub(super) struct FetchedContent {
    /// The base version for local changes.
    pub(super) base: Version,
    pub(super) stat: Stat,
    /// Of the content, in bytes.
    pub(super) size: u64,
    /// See `State::may_write`.
    pub(super) may_write: bool,
    /// See `State::is_unsized`.
    pub(super) is_unsized: bool,
}
