//! Reading and writing the content of an entry.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use crate::cache::Error;
use crate::cache::disk;
use crate::cache::disk::Private;
use crate::cache::entry::Busy;
use crate::cache::entry::Entry;
use crate::cache::entry::Wait;
use crate::cache::local;
use crate::cache::sparse::may_grow_to;
use crate::cache::state::CleanName;
use crate::cache::state::Content;
use crate::cache::state::Fetching;
use crate::cache::state::InJournal;
use crate::cache::state::State;
use crate::cache::state::Work;
use crate::cache::steps::Step;
use crate::remote;
use crate::remote::Expect;
use crate::stat::Time;
use crate::stat::Version;
use crate::sync::MutexGuard;

/// Room for writes is made in steps of this many bytes, so that not every write calls `statvfs`.
const ROOM_STEP: u64 = 16 << 20;

/// A change of dirty content in progress: no upload and no other change begins before it is
/// dropped.
struct Change<'a> {
    _busy: Busy<'a>,
    file: Arc<File>,
    /// The size when the change began, in bytes.
    size: u64,
    journal: InJournal,
}

impl Entry {
    /// Reads up to `len` bytes at `offset`; fewer only at the end of the file. Waits until a
    /// running fetch has these bytes, not until it is complete.
    ///
    /// # Errors
    /// [`Error::NotFetched`] if there is no content, or why the fetch failed.
    pub fn read(&self, offset: u64, len: usize, wait: Wait) -> Result<Vec<u8>, Error> {
        let (file, end) = self.readable(offset, len, wait)?;
        let len = usize::try_from(end.saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(len);
        let mut buf = vec![0; len];
        let mut n = 0;
        while let Some(rest) = buf.get_mut(n..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, offset + n as u64) {
                Ok(0) => break,
                Ok(got) => n += got,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(local("read")(error)),
            }
        }
        buf.truncate(n);
        Ok(buf)
    }

    /// Waits until `len` bytes at `offset` can be read; returns the file and the end of what can be
    /// read.
    fn readable(&self, offset: u64, len: usize, wait: Wait) -> Result<(Arc<File>, u64), Error> {
        let mut state = self.state.lock();
        let (file, end) = loop {
            match state.content() {
                Content::Clean { file, .. } | Content::Dirty { file, .. } => {
                    break (Arc::clone(file), state.size());
                }
                Content::Fetching(Fetching {
                    file,
                    have,
                    total: Some(total),
                    ..
                }) if offset.saturating_add(len as u64).min(*total) <= *have => {
                    let found = (Arc::clone(file), *have);
                    state.fetched_part_is_read();
                    break found;
                }
                Content::Fetching(_) => self.wait(&mut state, wait)?,
                Content::Absent { failure } => return Err(absent(failure.as_ref())),
            }
        };
        if offset.saturating_add(len as u64) < end {
            state.refresh.part_was_read(self.cache.clock.tick());
        }
        Ok((file, end))
    }

    /// Writes `data` at `offset`, or at the end; returns the new size of the file in bytes.
    ///
    /// # Errors
    /// [`Error::NotJournaled`] before the first change, [`Error::NotFetched`] without content; or
    /// those of the local disk, and then the file has its old size but some bytes in it may be
    /// changed.
    pub fn write(&self, offset: Option<u64>, data: &[u8], wait: Wait) -> Result<u64, Error> {
        let len = data.len() as u64;
        let change = self.begin_change(wait)?;
        self.reserve(len)?;
        let offset = offset.unwrap_or(change.size);
        if offset > change.size {
            self.check_holes(&change, offset, 0)?;
        }
        self.state.lock().write_begins(offset);
        let step = self.cache.disk.step(Step::WriteContent);
        let written = step.and_then(|()| change.file.write_all_at(data, offset));
        if let Err(error) = written {
            self.state.lock().is_written(offset, 0, self.now());
            // A partial write may have extended the file: bytes behind its end must read as zeros.
            change.file.set_len(change.size).map_err(local("write"))?;
            return Err(local("write")(error));
        }
        let mut state = self.state.lock();
        state.is_written(offset, len, self.now());
        Ok(state.size())
    }

    /// Sets the length of the file in bytes; new bytes read as zeros.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn truncate(&self, size: u64, wait: Wait) -> Result<(), Error> {
        let mut state = self.state.lock();
        while state.is_busy() {
            self.wait(&mut state, wait)?;
        }
        let is_here = state.is_dirty() || state.is_clean();
        if size == 0 && !is_here {
            let busy = self.begin(&mut state, Work::Changing);
            drop(state);
            let result = self.replace_by_empty();
            drop(busy);
            return result;
        }
        drop(state);
        let change = self.begin_change(wait)?;
        if size > change.size {
            self.check_holes(&change, size, 0)?;
        }
        self.set_len(&change.file, size)?;
        self.state.lock().is_resized(size, self.now());
        Ok(())
    }

    /// Replaces the content by an empty one (`O_TRUNC`); the next upload skips the conflict check.
    ///
    /// `version` is the base version. With `is_in_place`, cached content of it is kept as a base
    /// copy, by which a partial upload is recognized.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn replace(&self, version: Version, is_in_place: bool, wait: Wait) -> Result<(), Error> {
        let mut state = self.state.lock();
        while state.is_busy() {
            self.wait(&mut state, wait)?;
        }
        let dirty = state.dirty().map(|(file, _)| Arc::clone(file));
        if dirty.is_some() && !state.is_open_in_journal() {
            return Err(Error::NotJournaled);
        }
        let busy = self.begin(&mut state, Work::Changing);
        let taken = state.take_clean();
        drop(state);
        if let Some(file) = dirty {
            self.set_len(&file, 0)?;
            self.state.lock().is_resized(0, self.now());
        } else {
            let old = taken.map(|(version, _)| version);
            self.return_to_index(taken);
            self.replace_by_empty()?;
            let mut state = self.state.lock();
            state.set_base(Expect::Version(version));
            let private = state.dirty().map(|(_, private)| private);
            drop(state);
            if is_in_place
                && let Some(private) = private
                && self.cache.index.lock().remove(&version)
            {
                let disk = &self.cache.disk;
                let copy = disk.rename_to_base_copy(private.id, &version).ok();
                let copy = copy.map(|file| (private.id, Arc::new(file)));
                self.state.lock().set_base_copy(copy);
            }
            if let Some(old) = old {
                self.cache.forget(&old);
            }
        }
        self.state.lock().skip_conflict_check();
        drop(busy);
        Ok(())
    }

    /// Fails with [`Error::TooSparse`] if a file of `size` bytes would have more holes than can be
    /// uploaded to this host. `freed` is how many bytes are about to be deallocated.
    fn check_holes(&self, change: &Change<'_>, size: u64, freed: u64) -> Result<(), Error> {
        if change.journal == InJournal::NotNeeded {
            // An unlinked file is never uploaded.
            return Ok(());
        }
        let can_take_holes = self.cache.remote.facts().can_take_holes;
        // In units of 512 bytes, stat(2).
        let blocks = change.file.metadata().map_err(local("write"))?.blocks();
        let allocated = blocks.saturating_mul(512).saturating_sub(freed);
        if may_grow_to(can_take_holes, size, allocated) {
            Ok(())
        } else {
            Err(Error::TooSparse)
        }
    }

    fn set_len(&self, file: &File, size: u64) -> Result<(), Error> {
        let set_len = || {
            self.cache.disk.step(Step::TruncateContent)?;
            file.set_len(size)
        };
        set_len().map_err(local("truncate"))
    }

    /// Replaces the content by a new empty file. A running fetch is discarded.
    fn replace_by_empty(&self) -> Result<(), Error> {
        let disk = &self.cache.disk;
        let journal = self.state.lock().journal();
        let created = match journal {
            InJournal::As(id) => disk.create_dirty_as(id),
            InJournal::No | InJournal::NotNeeded => disk.create_dirty(),
        };
        let (private, file) = created.map_err(local("create a file"))?;
        let old = self.state.lock().is_emptied(file, private, self.now());
        if let Content::Clean { version, name, .. } = old {
            // A fetch ended in this moment.
            self.return_to_index(Some((version, name)));
        }
        Ok(())
    }

    /// Allocates space or punches holes; `mode` is that of `fallocate(2)`.
    ///
    /// # Errors
    /// As [`Self::write`]; also [`Error::Full`].
    pub fn allocate(&self, mode: i32, offset: u64, len: u64, wait: Wait) -> Result<(), Error> {
        let flags = rustix::fs::FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let change = self.begin_change(wait)?;
        if flags.contains(rustix::fs::FallocateFlags::PUNCH_HOLE) {
            self.check_holes(&change, change.size, len)?;
        } else if offset > change.size {
            self.check_holes(&change, offset, 0)?;
        }
        self.cache.make_room(len)?;
        self.state.lock().write_begins(offset);
        let Change { file, .. } = &change;
        rustix::fs::fallocate(&**file, flags, offset, len)
            .map_err(|error| local("allocate")(error.into()))?;
        let size = file.metadata().map_err(local("allocate"))?.len();
        self.state.lock().is_resized(size, self.now());
        Ok(())
    }

    /// Finds data or a hole, as `lseek(2)` does with `SEEK_DATA` and `SEEK_HOLE`.
    ///
    /// # Errors
    /// [`Error::Local`] with `ENXIO` if there is none at or after `offset`.
    pub fn seek(&self, offset: u64, to_data: bool, wait: Wait) -> Result<u64, Error> {
        let mut state = self.state.lock();
        while let Content::Fetching(_) = state.content() {
            self.wait(&mut state, wait)?;
        }
        let (Content::Clean { file, .. } | Content::Dirty { file, .. }) = state.content() else {
            return Err(absent(None));
        };
        let file = Arc::clone(file);
        drop(state);
        let from = if to_data {
            rustix::fs::SeekFrom::Data(offset)
        } else {
            rustix::fs::SeekFrom::Hole(offset)
        };
        rustix::fs::seek(&*file, from).map_err(|error| local("seek")(error.into()))
    }

    /// Waits until the content is complete and no other work is in progress, then makes it dirty.
    fn begin_change(&self, wait: Wait) -> Result<Change<'_>, Error> {
        let state = self.state.lock();
        self.begin_change_of(state, wait)
    }

    fn begin_change_of(
        &self,
        mut state: MutexGuard<'_, State>,
        wait: Wait,
    ) -> Result<Change<'_>, Error> {
        loop {
            if state.is_busy() {
                self.wait(&mut state, wait)?;
                continue;
            }
            match state.content() {
                Content::Fetching(_) => self.wait(&mut state, wait)?,
                Content::Absent { failure } => return Err(absent(failure.as_ref())),
                Content::Dirty { file, .. } => {
                    if !state.is_open_in_journal() {
                        return Err(Error::NotJournaled);
                    }
                    let file = Arc::clone(file);
                    let (size, journal) = (state.size(), state.journal());
                    let busy = self.begin(&mut state, Work::Changing);
                    drop(state);
                    return Ok(Change {
                        _busy: busy,
                        file,
                        size,
                        journal,
                    });
                }
                Content::Clean { version, name, .. } => {
                    let (version, name) = (*version, *name);
                    let journal = state.journal();
                    if journal == InJournal::No {
                        return Err(Error::NotJournaled);
                    }
                    let size = state.size();
                    let busy = self.begin(&mut state, Work::Changing);
                    drop(state);
                    let private = self.make_private(&version, name, journal)?;
                    let file = self.state.lock().becomes_dirty(private);
                    return Ok(Change {
                        _busy: busy,
                        // Clean content does not change during other work.
                        file: file.ok_or(Error::NotFetched)?,
                        size,
                        journal,
                    });
                }
            }
        }
    }

    /// Renames the file of clean content to the name of dirty content.
    fn make_private(
        &self,
        version: &Version,
        name: CleanName,
        journal: InJournal,
    ) -> Result<Private, Error> {
        let disk = &self.cache.disk;
        let private = match journal {
            InJournal::As(id) => Private::dirty(id),
            InJournal::NotNeeded => Private::temporary(disk::new_id().map_err(local("write"))?),
            InJournal::No => return Err(Error::NotJournaled),
        };
        let renamed = match name {
            CleanName::ByVersion => disk.make_dirty(version, private),
            CleanName::Private(old) => disk.rename_private(&old, private),
        };
        renamed.map_err(local("write"))
    }

    /// Makes room on the disk for `len` bytes, and if possible for [`ROOM_STEP`] more.
    fn reserve(&self, len: u64) -> Result<(), Error> {
        if self.state.lock().has_room(len) {
            return Ok(());
        }
        self.cache
            .make_room(len + ROOM_STEP)
            .or_else(|_| self.cache.make_room(len))?;
        self.state.lock().set_room(len + ROOM_STEP);
        Ok(())
    }

    /// Marks unchanged content as dirty, so that it is uploaded again with new attributes. `None`
    /// if it is dirty already.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn mark_for_upload(&self, wait: Wait) -> Result<Option<ReuploadMark>, Error> {
        let state = self.state.lock();
        let was_dirty = state.is_dirty();
        let change = self.begin_change_of(state, wait)?;
        let mut state = self.state.lock();
        let mark = match state.base() {
            Expect::Version(version) if !was_dirty => Some(ReuploadMark {
                version,
                n_changes: state.is_marked_for_upload(),
            }),
            _ => None,
        };
        drop(state);
        drop(change);
        Ok(mark)
    }

    /// Makes marked content clean again, if the host refused the upload and the content was not
    /// changed since; returns whether it did.
    pub fn unmark_for_upload(&self, mark: &ReuploadMark) -> bool {
        let mut state = self.state.lock();
        while state.is_busy() {
            self.changed.wait(&mut state);
        }
        let is_refused = matches!(state.failure(), Some(Error::Remote(error))
            if matches!(**error, remote::Error::Refused { .. } | remote::Error::Unsupported { .. }));
        if !is_refused || !state.is_as_marked(mark.n_changes, mark.version) {
            return false;
        }
        state.forget_failure();
        let busy = self.begin(&mut state, Work::Changing);
        drop(state);
        self.content_is_on_host(mark.version);
        drop(busy);
        true
    }

    fn now(&self) -> Time {
        self.cache.clock.wall().truncate_to_micros()
    }
}

/// See [`Entry::mark_for_upload`].
#[derive(Debug, Clone, Copy)]
pub struct ReuploadMark {
    version: Version,
    n_changes: u64,
}

/// Returns the error of a call that needs content if there is none.
fn absent(failure: Option<&Error>) -> Error {
    failure.cloned().unwrap_or(Error::NotFetched)
}
