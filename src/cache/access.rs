//! Reading and writing the content of an entry.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use crate::cache::Error;
use crate::cache::disk;
use crate::cache::disk::Private;
use crate::cache::entry::Entry;
use crate::cache::entry::Wait;
use crate::cache::local;
use crate::cache::sparse::may_grow_to;
use crate::cache::state::Content;
use crate::cache::state::Fetching;
use crate::cache::state::Journaled;
use crate::cache::state::Place;
use crate::cache::state::State;
use crate::cache::steps::Step;
use crate::remote;
use crate::remote::Expect;
use crate::stat::Version;
use crate::sync::MutexGuard;

/// Room for writes is made in steps of this many bytes, so that not every write asks the disk.
const ROOM_STEP: u64 = 16 << 20;

impl Entry {
    /// Reads up to `len` bytes at `offset`; fewer only at the end of the file. Waits for a fetch
    /// only until it has come that far.
    pub fn read(&self, offset: u64, len: usize, wait: Wait) -> Result<Vec<u8>, Error> {
        let mut state = self.state.lock();
        let (file, end) = loop {
            match &mut state.content {
                Content::Clean { file, .. } | Content::Dirty { file, .. } => {
                    break (Arc::clone(file), state.size);
                }
                Content::Fetching(Fetching {
                    file,
                    have,
                    total: Some(total),
                    was_read,
                    ..
                }) if offset.saturating_add(len as u64).min(*total) <= *have => {
                    *was_read = true;
                    break (Arc::clone(file), *have);
                }
                Content::Fetching(_) => self.wait(&mut state, wait)?,
                Content::Absent { failure } => return Err(absent(failure.as_ref())),
            }
        };
        let len = usize::try_from(end.saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(len);
        if offset.saturating_add(len as u64) < end {
            state.cut_read_at = Some(self.cache.clock.tick());
        }
        drop(state);
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

    /// Writes `data` at `offset`, or at the end; returns the new size of the file.
    pub fn write(&self, offset: Option<u64>, data: &[u8], wait: Wait) -> Result<u64, Error> {
        let mut state = self.state.lock();
        let file = self.make_dirty(&mut state, wait)?;
        self.reserve(&mut state, data.len() as u64)?;
        let offset = offset.unwrap_or(state.size);
        if offset > state.size {
            self.check_holes(&state, &file, offset, 0)?;
        }
        // Before the first byte: a write that fails may have written some of them.
        state.n_kept = state.n_kept.min(offset);
        let step = self.cache.disk.step(Step::WriteContent);
        if let Err(error) = step.and_then(|()| file.write_all_at(data, offset)) {
            self.touch(&mut state);
            // Part of it may lie behind the end by now, where zeros must be.
            file.set_len(state.size).map_err(local("write"))?;
            return Err(local("write")(error));
        }
        state.room = state.room.saturating_sub(data.len() as u64);
        state.size = state.size.max(offset + data.len() as u64);
        self.touch(&mut state);
        Ok(state.size)
    }

    /// Sets the length of the file; what is new reads as zeros.
    pub fn truncate(&self, size: u64, wait: Wait) -> Result<(), Error> {
        let mut state = self.state.lock();
        while Self::is_busy(&state) {
            self.wait(&mut state, wait)?;
        }
        let needs_content =
            size > 0 || matches!(state.content, Content::Dirty { .. } | Content::Clean { .. });
        if needs_content {
            let file = self.make_dirty(&mut state, wait)?;
            if size > state.size {
                self.check_holes(&state, &file, size, 0)?;
            }
            self.cut(&file, size)?;
            state.n_kept = state.n_kept.min(size);
            state.size = size;
            self.touch(&mut state);
            return Ok(());
        }
        self.empty(&mut state)
    }

    /// Drops the content for an empty one that replaces whatever the host has when it is closed:
    /// `O_TRUNC`. `version` is what the host is known to have; `keeps_old` has that kept where it is
    /// here, because an upload may leave part of it on the host.
    pub fn replace(&self, version: Version, keeps_old: bool, wait: Wait) -> Result<(), Error> {
        let mut state = self.state.lock();
        while Self::is_busy(&state) {
            self.wait(&mut state, wait)?;
        }
        if let Content::Dirty { file, .. } = &state.content {
            Self::check_declared(&state)?;
            self.cut(file, 0)?;
            state.n_kept = 0;
            state.size = 0;
            self.touch(&mut state);
        } else {
            let old = match &state.content {
                Content::Clean { version, .. } => Some(*version),
                _ => None,
            };
            self.put_away(&mut state);
            self.empty(&mut state)?;
            state.base = Expect::Version(version);
            if keeps_old
                && self.cache.index.lock().remove(&version)
                && let Content::Dirty { private, .. } = &state.content
            {
                let (id, disk) = (private.id, &self.cache.disk);
                let kept = disk.take_old(id, &version).ok();
                state.old = kept.map(|file| (id, Arc::new(file)));
            }
            if let Some(old) = old {
                self.cache.forget(&old);
            }
        }
        state.replaces = state.base != Expect::Absent;
        Ok(())
    }

    /// Refuses what would leave more holes in a file of `size` bytes than the host can be sent.
    /// `freed` is how many bytes are about to lose their blocks.
    fn check_holes(&self, state: &State, file: &File, size: u64, freed: u64) -> Result<(), Error> {
        if state.journaled == Journaled::Nameless {
            // It is never uploaded.
            return Ok(());
        }
        let can_take_holes = self.cache.remote.facts().can_take_holes;
        // In units of 512 bytes, stat(2).
        let blocks = file.metadata().map_err(local("write"))?.blocks();
        let allocated = blocks.saturating_mul(512).saturating_sub(freed);
        if may_grow_to(can_take_holes, size, allocated) {
            Ok(())
        } else {
            Err(Error::TooSparse)
        }
    }

    fn cut(&self, file: &File, size: u64) -> Result<(), Error> {
        let cut = || {
            self.cache.disk.step(Step::CutContent)?;
            file.set_len(size)
        };
        cut().map_err(local("truncate"))
    }

    /// Starts over with an empty file. A fetch that is under way finds itself unwanted.
    fn empty(&self, state: &mut State) -> Result<(), Error> {
        let disk = &self.cache.disk;
        let created = match state.journaled {
            Journaled::As(id) => disk.create_dirty_as(id),
            _ => disk.create_dirty(),
        };
        let (private, file) = created.map_err(local("create a file"))?;
        state.content = Content::Dirty {
            file: Arc::new(file),
            private,
        };
        state.n_kept = 0;
        state.size = 0;
        self.touch(state);
        Ok(())
    }

    /// Makes holes or allocates; `mode` is that of `fallocate(2)`.
    pub fn allocate(&self, mode: i32, offset: u64, len: u64, wait: Wait) -> Result<(), Error> {
        let flags = rustix::fs::FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let mut state = self.state.lock();
        let file = self.make_dirty(&mut state, wait)?;
        if flags.contains(rustix::fs::FallocateFlags::PUNCH_HOLE) {
            self.check_holes(&state, &file, state.size, len)?;
        } else if offset > state.size {
            self.check_holes(&state, &file, offset, 0)?;
        }
        self.cache.make_room(len)?;
        state.n_kept = state.n_kept.min(offset);
        rustix::fs::fallocate(&*file, flags, offset, len)
            .map_err(|error| local("allocate")(error.into()))?;
        state.size = file.metadata().map_err(local("allocate"))?.len();
        self.touch(&mut state);
        Ok(())
    }

    /// Finds data or a hole, as `lseek(2)` does with `SEEK_DATA` and `SEEK_HOLE`.
    pub fn seek(&self, offset: u64, to_data: bool, wait: Wait) -> Result<u64, Error> {
        let mut state = self.state.lock();
        while let Content::Fetching(_) = state.content {
            self.wait(&mut state, wait)?;
        }
        let (Content::Clean { file, .. } | Content::Dirty { file, .. }) = &state.content else {
            return Err(absent(None));
        };
        let from = if to_data {
            rustix::fs::SeekFrom::Data(offset)
        } else {
            rustix::fs::SeekFrom::Hole(offset)
        };
        rustix::fs::seek(&**file, from).map_err(|error| local("seek")(error.into()))
    }

    /// Waits until the content is whole and nobody uploads it, then makes it ours to change.
    fn make_dirty(
        &self,
        state: &mut MutexGuard<'_, State>,
        wait: Wait,
    ) -> Result<Arc<File>, Error> {
        loop {
            if Self::is_busy(state) {
                self.wait(state, wait)?;
                continue;
            }
            match &state.content {
                Content::Fetching(_) => self.wait(state, wait)?,
                Content::Absent { failure } => return Err(absent(failure.as_ref())),
                Content::Dirty { file, .. } => {
                    Self::check_declared(state)?;
                    return Ok(Arc::clone(file));
                }
                Content::Clean {
                    version,
                    file,
                    place,
                } => {
                    let disk = &self.cache.disk;
                    let private = match state.journaled {
                        Journaled::As(id) => Private::dirty(id),
                        Journaled::Nameless => {
                            Private::temporary(disk::new_id().map_err(local("write"))?)
                        }
                        Journaled::No | Journaled::Declaring => return Err(Error::NotDeclared),
                    };
                    let file = Arc::clone(file);
                    let private = match place {
                        Place::Named => disk.make_dirty(version, private),
                        Place::Private(old) => disk.rename_private(old, private),
                    };
                    let private = private.map_err(local("write"))?;
                    state.content = Content::Dirty {
                        file: Arc::clone(&file),
                        private,
                    };
                    return Ok(file);
                }
            }
        }
    }

    /// Whether the journal says of dirty content that it is being written.
    fn check_declared(state: &State) -> Result<(), Error> {
        match state.journaled {
            Journaled::Nameless => Ok(()),
            Journaled::As(_) if !state.is_sealed => Ok(()),
            _ => Err(Error::NotDeclared),
        }
    }

    fn reserve(&self, state: &mut State, len: u64) -> Result<(), Error> {
        if state.room < len {
            // Near the end of the disk what is needed will do.
            self.cache
                .make_room(len + ROOM_STEP)
                .or_else(|_| self.cache.make_room(len))?;
            state.room = len + ROOM_STEP;
        }
        Ok(())
    }

    /// Has the content uploaded again although it stays the same, for the sake of what goes with it.
    /// `None` where it is going to be uploaded anyway.
    pub fn claim(&self, wait: Wait) -> Result<Option<Claim>, Error> {
        let mut state = self.state.lock();
        let was_dirty = matches!(state.content, Content::Dirty { .. });
        self.make_dirty(&mut state, wait)?;
        let Expect::Version(version) = state.base else {
            return Ok(None);
        };
        if was_dirty {
            return Ok(None);
        }
        state.is_synced = false;
        state.n_changes += 1;
        Ok(Some(Claim {
            version,
            n_changes: state.n_changes,
        }))
    }

    /// Takes a claim back if the host refused the content before it took any of it, and nobody has
    /// changed it; returns whether that is so.
    pub fn unclaim(&self, claim: &Claim) -> bool {
        let mut state = self.state.lock();
        while Self::is_busy(&state) {
            self.changed.wait(&mut state);
        }
        let is_refused = matches!(&state.failure, Some(Error::Remote(error))
            if matches!(**error, remote::Error::Refused { .. } | remote::Error::Unsupported { .. }));
        let is_as_claimed = state.n_changes == claim.n_changes
            && state.base == Expect::Version(claim.version)
            && state.doubts.is_empty();
        if !is_refused || !is_as_claimed || !matches!(state.content, Content::Dirty { .. }) {
            return false;
        }
        state.failure = None;
        self.settle_at(&mut state, claim.version);
        drop(state);
        self.changed.notify_all();
        true
    }

    fn touch(&self, state: &mut State) {
        state.mtime = self.cache.clock.wall().to_micros();
        state.ctime = state.mtime;
        state.is_synced = false;
        state.is_sealed = false;
        state.n_changes += 1;
        self.changed.notify_all();
    }
}

/// See [`Entry::claim`].
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    version: Version,
    n_changes: u64,
}

/// What a reader gets when there is nothing to read.
fn absent(failure: Option<&Error>) -> Error {
    failure.cloned().unwrap_or(Error::NotHere)
}
