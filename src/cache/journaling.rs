//! When the journal is written for a file.
//!
//! | moment | phase | durable |
//! | --- | --- | --- |
//! | before the first change, and before the first after a close | `Open` | yes |
//! | closed, before it is uploaded | `Closed` | no |
//! | persisted, or its upload failed | `Persisted` | yes |
//! | before an upload in place, and after a part of one | `MaybePartial` | yes |
//! | uploaded, or dropped | (no record) | no; yes if it was unlinked |
//!
//! Each change of a record is made under the lock [`Entry::journaling`] and not under that of the
//! state, so that calls for attributes do not wait for the disk.

use std::fs::File;
use std::sync::Arc;

use crate::cache::Error;
use crate::cache::disk;
use crate::cache::disk::Private;
use crate::cache::entry::Entry;
use crate::cache::entry::Wait;
use crate::cache::journal::Durable;
use crate::cache::journal::record::Id;
use crate::cache::journal::record::Phase;
use crate::cache::journal::record::Record;
use crate::cache::local;
use crate::cache::state::CleanName;
use crate::cache::state::Content;
use crate::cache::state::InJournal;
use crate::cache::state::LeftJournal;
use crate::cache::state::State;
use crate::cache::state::Work;
use crate::cache::upload::NO_PATH;
use crate::cache::upload::Target;
use crate::error_chain;
use crate::path::RemotePath;
use crate::remote::Placement;

impl Entry {
    /// Records durably that the content is about to be changed, and where it is to be uploaded.
    /// `target` is `None` if the file is unlinked. Must be called before the first change, and
    /// before the first one after a close.
    ///
    /// # Errors
    /// The journal could not be written: the content must not be changed.
    pub fn open_in_journal(&self, target: Option<&Target>, wait: Wait) -> Result<(), Error> {
        if wait == Wait::Never {
            return Err(Error::WouldWait);
        }
        let mut state = self.state.lock();
        loop {
            if state.is_open_in_journal() {
                return Ok(());
            }
            if !state.is_busy() {
                break;
            }
            self.wait(&mut state, wait)?;
        }
        let Some(target) = target else {
            state.set_journal(InJournal::NotNeeded);
            return Ok(());
        };
        let busy = self.begin(&mut state, Work::Journaling);
        drop(state);
        let result = self.write_open_record(target);
        drop(busy);
        result
    }

    fn write_open_record(&self, target: &Target) -> Result<(), Error> {
        let _journaling = self.journaling.lock();
        let (id, base) = {
            let state = self.state.lock();
            let id = match (state.journal(), state.content()) {
                (InJournal::As(id), _) => Some(id),
                (
                    _,
                    Content::Dirty { private, .. }
                    | Content::Clean {
                        name: CleanName::Private(private),
                        ..
                    },
                ) => Some(private.id),
                _ => None,
            };
            let base = match state.content() {
                Content::Clean { file, .. } if self.is_in_place(target) => Some(Arc::clone(file)),
                _ => None,
            };
            (id, base)
        };
        let id = match id {
            Some(id) => id,
            None => disk::new_id().map_err(local("write"))?,
        };
        let record = self.record(id, Phase::Open, target, "");
        self.cache
            .disk
            .journal()
            .put(record, Durable::Yes)
            .map_err(local("write"))?;
        let base_copy = base.and_then(|file| self.copy_base(id, &file));
        self.state.lock().opened_in_journal(id, base_copy);
        Ok(())
    }

    /// Returns whether an upload writes in place, so that it may leave a partial upload.
    pub fn is_in_place(&self, target: &Target) -> bool {
        target.placement != Placement::Replace || self.cache.remote.facts().uploads_in_place
    }

    /// Copies the content of the base version. Without the copy, a partial upload may be taken for
    /// a change by another client, and a conflict copy is made.
    fn copy_base(&self, id: Id, content: &File) -> Option<(Id, Arc<File>)> {
        let len = content.metadata().ok()?.len();
        let room = self.cache.make_room(len).map_err(|error| error.to_string());
        let copy = room.and_then(|()| {
            let copy = self.cache.disk.create_base_copy(id, content);
            copy.map_err(|error| error.to_string())
        });
        copy.map(|file| (id, Arc::new(file)))
            .inspect_err(|why| log::debug!("cannot copy the base version: {why}"))
            .ok()
    }

    /// Records durably that the host may have a partial upload from now on.
    pub(super) fn journal_partial(&self, target: &Target) -> Result<(), Error> {
        let why = {
            let mut state = self.state.lock();
            state.may_become_partial();
            let failure = state.failure();
            failure.map_or_else(String::new, |failure| error_chain::with_causes(failure))
        };
        self.persist_content(target, &why)
    }

    /// Composes the record of the current content. Locks the state.
    fn record(&self, id: Id, phase: Phase, target: &Target, why: &str) -> Record {
        let known = self.cache.disk.journal().get(id);
        let since = known
            .as_ref()
            .map_or_else(|| self.cache.clock.wall(), |record| record.since);
        let state = self.state.lock();
        let phase = match phase {
            Phase::Persisted if state.may_be_partial() => Phase::MaybePartial,
            phase => phase,
        };
        let compose = |phase, why: &str| state.record(id, phase, target, since, why);
        if !target.is_unknown {
            return compose(phase, why);
        }
        match known {
            // The record has the last path that was known: the next mount looks there.
            Some(known) if !target.is_elsewhere && known.phase != Phase::NeedsDecision => Record {
                path: known.path,
                was: known.was,
                base: known.base,
                mode: known.mode,
                sets_mode: known.sets_mode,
                owner: known.owner,
                placement: known.placement,
                ..compose(phase, NO_PATH)
            },
            // Content without a path cannot be uploaded.
            _ => compose(Phase::NeedsDecision, NO_PATH),
        }
    }

    /// Records that the content is complete, if it has a record.
    pub(super) fn journal_closed(&self, target: &Target) {
        let _journaling = self.journaling.lock();
        let InJournal::As(id) = self.state.lock().journal() else {
            return;
        };
        let journal = self.cache.disk.journal();
        // Content that was persisted and not changed since stays persisted.
        let phase = match journal.get(id).map(|known| known.phase) {
            Some(Phase::Persisted | Phase::MaybePartial) => Phase::Persisted,
            _ => Phase::Closed,
        };
        let record = self.record(id, phase, target, "");
        if let Err(error) = journal.put(record, Durable::No) {
            // The record is still `Open`: the next mount does not upload the content, but asks the
            // user.
            log_unwritten(&error);
        }
    }

    /// Persists dirty content, and records why it is not on the host. The caller must have begun
    /// work, so that the content does not change.
    ///
    /// # Errors
    /// The local disk could not be written.
    pub(super) fn persist_content(&self, target: &Target, why: &str) -> Result<(), Error> {
        let _journaling = self.journaling.lock();
        let (file, id) = {
            let mut state = self.state.lock();
            let Some((file, private)) = state.dirty() else {
                return Ok(());
            };
            let file = Arc::clone(file);
            if state.journal() == InJournal::No {
                state.set_journal(InJournal::As(private.id));
            }
            let InJournal::As(id) = state.journal() else {
                return Ok(());
            };
            (file, id)
        };
        let record = Record {
            why: why.to_owned(),
            ..self.record(id, Phase::Persisted, target, why)
        };
        let disk = &self.cache.disk;
        disk.flush_private(&file)
            .and_then(|()| disk.journal().put(record, Durable::Yes))
            .map_err(local("write"))
    }

    /// Ends the record of the content: it was uploaded, or is dropped.
    pub(super) fn leave_journal(&self) {
        self.leave_journal_as(InJournal::No, Durable::No);
    }

    fn leave_journal_as(&self, journal: InJournal, durable: Durable) {
        let _journaling = self.journaling.lock();
        let (record, base_copy) = {
            let mut state = self.state.lock();
            let left = state.leave_journal();
            state.set_journal(journal);
            left
        };
        self.end_record((record, base_copy), durable);
    }

    /// Ends a record that was taken from the state, and removes the copy of the host's content. The
    /// caller holds `journaling`.
    pub(super) fn end_record(&self, (record, base_copy): LeftJournal, durable: Durable) {
        if let Some(id) = base_copy {
            self.cache.disk.remove_base_copy(id);
        }
        if let Some(id) = record
            && let Err(error) = self.cache.disk.journal().end(id, durable)
        {
            // The next mount finds no file for the record, or the same content on the host.
            log_unwritten(&error);
        }
    }

    /// Ends the record because the file was unlinked: its content is never uploaded, and is removed
    /// with its last handle.
    pub fn abandon(&self) {
        let dirty = self.state.lock().dirty().map(|(_, private)| private);
        if let Some(private) = dirty {
            let disk = &self.cache.disk;
            let renamed = disk.rename_private(&private, Private::temporary(private.id));
            if let Ok(renamed) = renamed {
                self.state.lock().set_private(renamed);
            }
        }
        // Durable: otherwise, after a power failure, the next mount would create the file again.
        self.leave_journal_as(InJournal::NotNeeded, Durable::Yes);
    }

    /// Records the attributes that are uploaded with the content, after mode, owner or times were
    /// set.
    pub fn journal_attrs(&self, target: &Target) {
        let is_closed = self.state.lock().attrs_are_changed();
        if !is_closed {
            // Closing the content records them.
            return;
        }
        let result = self.rewrite(Durable::No, |record, state| {
            let now = state.record(record.id, record.phase, target, record.since, "");
            (record.mode, record.owner) = (now.mode, now.owner);
            record.sets_mode = now.sets_mode;
            (record.mtime, record.atime) = (now.mtime, now.atime);
        });
        if let Err(error) = result {
            log_unwritten(&error);
        }
    }

    /// Records durably the path after a rename that is about to be requested.
    ///
    /// # Errors
    /// The journal could not be written: the rename must not be requested.
    pub fn journal_rename(&self, to: &RemotePath) -> Result<(), Error> {
        self.rewrite(Durable::Yes, |record, _| {
            let was = std::mem::replace(&mut record.path, to.clone());
            record.was = Some(was);
        })
    }

    /// Records that the rename was carried out (`has_moved`) or refused.
    pub fn journal_renamed(&self, has_moved: bool) {
        let result = self.rewrite(Durable::No, |record, _| match record.was.take() {
            Some(was) if !has_moved => record.path = was,
            _ => {}
        });
        if let Err(error) = result {
            // The record has both paths: the next mount looks at both.
            log_unwritten(&error);
        }
    }

    /// Records the base version, after a request of ours changed it on the host.
    pub(super) fn journal_base(&self) {
        let result = self.rewrite(Durable::No, |record, state| record.base = state.base());
        if let Err(error) = result {
            log_unwritten(&error);
        }
    }

    /// Changes the record, if there is one.
    fn rewrite(
        &self,
        durable: Durable,
        change: impl FnOnce(&mut Record, &State),
    ) -> Result<(), Error> {
        let _journaling = self.journaling.lock();
        let InJournal::As(id) = self.state.lock().journal() else {
            return Ok(());
        };
        let journal = self.cache.disk.journal();
        let Some(mut record) = journal.get(id) else {
            return Ok(());
        };
        change(&mut record, &self.state.lock());
        journal.put(record, durable).map_err(local("write"))
    }
}

fn log_unwritten(error: &dyn std::error::Error) {
    log::warn!(
        "cannot write the journal: {}",
        error_chain::with_causes(error)
    );
}
