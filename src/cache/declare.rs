//! What the journal is told of an entry, and when.

use std::fs::File;
use std::sync::Arc;

use crate::cache::Error;
use crate::cache::disk;
use crate::cache::disk::Private;
use crate::cache::entry::Entry;
use crate::cache::entry::Wait;
use crate::cache::flush::NO_PLACE;
use crate::cache::flush::Target;
use crate::cache::journal::Durable;
use crate::cache::journal::record::Id;
use crate::cache::journal::record::Phase;
use crate::cache::journal::record::Record;
use crate::cache::local;
use crate::cache::state::Content;
use crate::cache::state::Journaled;
use crate::cache::state::Place;
use crate::cache::state::State;
use crate::path::RemotePath;
use crate::remote;
use crate::remote::Placement;

impl Entry {
    /// Has the journal know that the content is about to be written to, and where it belongs;
    /// `None` if the file has no name. Must come before the first write, and before the first after
    /// it was said to be whole.
    ///
    /// # Errors
    /// The journal could not be written: then nothing must be.
    pub fn declare(&self, target: Option<&Target>, wait: Wait) -> Result<(), Error> {
        if wait == Wait::Never {
            return Err(Error::WouldWait);
        }
        let mut state = self.state.lock();
        loop {
            match state.journaled {
                Journaled::Nameless => return Ok(()),
                Journaled::As(_) if !state.is_sealed => return Ok(()),
                _ if Self::is_busy(&state) => self.wait(&mut state, wait)?,
                _ => break,
            }
        }
        let before = state.journaled;
        let Some(target) = target else {
            state.journaled = Journaled::Nameless;
            return Ok(());
        };
        let id = match (before, &state.content) {
            (Journaled::As(id), _) => id,
            (
                _,
                Content::Dirty { private, .. }
                | Content::Clean {
                    place: Place::Private(private),
                    ..
                },
            ) => private.id,
            _ => disk::new_id().map_err(local("write"))?,
        };
        state.journaled = Journaled::Declaring;
        let record = self.record(&state, id, Phase::Open, target);
        let old = match &state.content {
            Content::Clean { file, .. } if self.is_in_place(target) => Some(Arc::clone(file)),
            _ => None,
        };
        drop(state);
        // Without the lock: whoever only looks at the file need not wait for the disk.
        let result = self.cache.disk.journal().put(record, Durable::Yes);
        let old = old.filter(|_| result.is_ok());
        let old = old.and_then(|file| self.keep_old(id, &file));
        let mut state = self.state.lock();
        state.old = old.or(state.old.take());
        state.journaled = match result {
            Ok(()) => Journaled::As(id),
            Err(_) => before,
        };
        state.is_sealed &= result.is_err();
        drop(state);
        self.changed.notify_all();
        result.map_err(local("write"))
    }

    /// Whether an upload writes into the file that the host has, so that it may leave part of the
    /// content there.
    pub fn is_in_place(&self, target: &Target) -> bool {
        target.placement != Placement::Replace || self.cache.remote.facts().uploads_in_place
    }

    /// Keeps a copy of what the host has. Without one, an upload that breaks off may be taken for
    /// somebody's change: both are kept then.
    fn keep_old(&self, id: Id, content: &File) -> Option<(Id, Arc<File>)> {
        let len = content.metadata().ok()?.len();
        let kept = self.cache.make_room(len).map_err(|error| error.to_string());
        let kept = kept.and_then(|()| {
            let kept = self.cache.disk.keep_old(id, content);
            kept.map_err(|error| error.to_string())
        });
        kept.map(|file| (id, Arc::new(file)))
            .inspect_err(|why| log::debug!("no copy of what the host has: {why}"))
            .ok()
    }

    /// Has the journal know durably that the host may have part of the content from now on.
    pub(super) fn say_begun(&self, target: &Target) -> Result<(), Error> {
        let why = {
            let mut state = self.state.lock();
            state.is_begun = true;
            let failure = state.failure.as_ref();
            failure.map_or_else(String::new, |failure| remote::chain(failure))
        };
        self.say_synced(target, &why)
    }

    /// Whether the journal or the host is being told of the content as it is.
    pub(super) fn is_busy(state: &State) -> bool {
        state.is_flushing || state.journaled == Journaled::Declaring
    }

    fn record(&self, state: &State, id: Id, phase: Phase, target: &Target) -> Record {
        let journal = self.cache.disk.journal();
        let phase = match phase {
            Phase::Synced if state.is_begun => Phase::Begun,
            phase => phase,
        };
        let (phase, why) = match journal.get(id) {
            // The journal knows better where it belongs: the next mount looks there.
            Some(known)
                if target.is_unknown && !target.is_elsewhere && known.phase != Phase::Kept =>
            {
                return Record {
                    phase,
                    size: state.size,
                    mtime: state.mtime,
                    atime: state.atime,
                    why: NO_PLACE.to_owned(),
                    ..known
                };
            }
            // What has no place must not be uploaded at any.
            _ if target.is_unknown => (Phase::Kept, NO_PLACE),
            _ => (phase, ""),
        };
        Record {
            id,
            phase,
            path: target.path.clone(),
            was: None,
            base: state.base,
            mode: target.mode,
            sets_mode: target.sets_mode,
            owner: target.owner,
            placement: target.placement,
            size: state.size,
            mtime: state.mtime,
            atime: state.atime,
            since: journal
                .get(id)
                .map_or_else(|| self.cache.clock.wall(), |record| record.since),
            why: why.to_owned(),
        }
    }

    /// Has the journal know, if it knows of the content at all, that it is whole.
    pub(super) fn say_closed(&self, state: &State, target: &Target) {
        if let Journaled::As(id) = state.journaled {
            // What is on the local disk and was not written to since stays there.
            let known = self.cache.disk.journal().get(id).map(|known| known.phase);
            let phase = match known {
                Some(Phase::Synced | Phase::Begun) => Phase::Synced,
                _ => Phase::Closed,
            };
            let record = self.record(state, id, phase, target);
            if let Err(error) = self.cache.disk.journal().put(record, Durable::No) {
                // It says the content is half written; a later run will keep it, not upload it.
                log::warn!("cannot write the journal: {error}");
            }
        }
    }

    /// Has the local disk keep the content, and the journal know why it is not on the host.
    /// The content must not be written to meanwhile.
    pub(super) fn say_synced(&self, target: &Target, why: &str) -> Result<(), Error> {
        let (file, record) = {
            let mut state = self.state.lock();
            let Content::Dirty { file, private } = &state.content else {
                return Ok(());
            };
            let (file, id) = (Arc::clone(file), private.id);
            if state.journaled == Journaled::No {
                state.journaled = Journaled::As(id);
            }
            let Journaled::As(id) = state.journaled else {
                return Ok(());
            };
            let record = Record {
                why: why.to_owned(),
                ..self.record(&state, id, Phase::Synced, target)
            };
            (file, record)
        };
        let disk = &self.cache.disk;
        disk.sync_private(&file)
            .and_then(|()| disk.journal().put(record, Durable::Yes))
            .map_err(local("write"))
    }

    /// Has the journal forget the content: the host has it, or nobody wants it.
    pub(super) fn undeclare(&self, state: &mut State) {
        self.undeclare_as(state, Durable::No);
    }

    fn undeclare_as(&self, state: &mut State, durable: Durable) {
        state.is_begun = false;
        if let Some((id, _)) = state.old.take() {
            self.cache.disk.remove_old(id);
        }
        if let Journaled::As(id) = state.journaled
            && let Err(error) = self.cache.disk.journal().done(id, durable)
        {
            // The next run finds no content for the record, or the host's the same.
            log::warn!("cannot write the journal: {error}");
        }
        state.journaled = Journaled::No;
    }

    /// Says that the file has no name any more: what is written to it is nobody's business but
    /// that of those who have it open.
    pub fn abandon(&self) {
        let mut state = self.state.lock();
        let disk = &self.cache.disk;
        if let Content::Dirty { private, .. } = &mut state.content
            && let Ok(renamed) = disk.rename_private(private, Private::temporary(private.id))
        {
            *private = renamed;
        }
        // Durably: after a power failure the next mount would make the file again.
        self.undeclare_as(&mut state, Durable::Yes);
        state.journaled = Journaled::Nameless;
    }

    /// Says how content is to be uploaded, after its mode, owner or times were set.
    pub fn restate(&self, target: &Target) {
        let (mtime, atime) = {
            let mut state = self.state.lock();
            if !state.doubts.is_empty() {
                // What may be on the host does not have these attributes.
                state.n_changes += 1;
            }
            if !state.is_sealed {
                // That is said when it is closed.
                return;
            }
            (state.mtime, state.atime)
        };
        let result = self.rewrite(Durable::No, |record| {
            (record.mode, record.owner) = (target.mode, target.owner);
            record.sets_mode = target.sets_mode;
            (record.mtime, record.atime) = (mtime, atime);
        });
        if let Err(error) = result {
            log::warn!("cannot write the journal: {error}");
        }
    }

    /// Says where the content will belong once a rename is done that is about to be asked for.
    ///
    /// # Errors
    /// The journal could not be written: then the rename must not be.
    pub fn moves(&self, to: &RemotePath) -> Result<(), Error> {
        self.rewrite(Durable::Yes, |record| {
            let was = std::mem::replace(&mut record.path, to.clone());
            record.was = Some(was);
        })
    }

    /// Says that the rename is done, or that it was refused.
    pub fn moved(&self, has_moved: bool) {
        let result = self.rewrite(Durable::No, |record| match record.was.take() {
            Some(was) if !has_moved => record.path = was,
            _ => {}
        });
        if let Err(error) = result {
            // Both paths are in it; the next run looks at both.
            log::warn!("cannot write the journal: {error}");
        }
    }

    /// Says what the content is based on, after a rename or another change of ours on the host.
    pub(super) fn say_base(&self, state: &State) {
        let Journaled::As(id) = state.journaled else {
            return;
        };
        let journal = self.cache.disk.journal();
        if let Some(mut record) = journal.get(id) {
            record.base = state.base;
            if let Err(error) = journal.put(record, Durable::No) {
                log::warn!("cannot write the journal: {error}");
            }
        }
    }

    fn rewrite(&self, durable: Durable, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let mut state = self.state.lock();
        while state.journaled == Journaled::Declaring {
            self.changed.wait(&mut state);
        }
        let Journaled::As(id) = state.journaled else {
            return Ok(());
        };
        let journal = self.cache.disk.journal();
        let Some(mut record) = journal.get(id) else {
            return Ok(());
        };
        change(&mut record);
        journal.put(record, durable).map_err(local("write"))
    }
}
