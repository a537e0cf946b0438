//! Persists dirty content: flushes it and its journal record to the local disk, to be uploaded
//! later.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::Error;
use crate::cache::UploadTarget;
use crate::cache::entry::Entry;
use crate::cache::entry::Wait;
use crate::cache::state::Work;
use crate::cache::upload::NO_PATH;
use crate::cache::upload::Target;

impl Entry {
    /// Write-back: persists closed content, and uploads it in the background after `delay`.
    ///
    /// # Errors
    /// The content cannot be persisted; or the last upload failed, and its error is returned.
    pub fn persist_for_writeback(
        self: &Arc<Self>,
        upload_target: &Arc<dyn UploadTarget>,
        delay: Duration,
        wait: Wait,
    ) -> Result<(), Error> {
        if !self.is_dirty() {
            return Ok(());
        }
        if wait == Wait::Never {
            return Err(Error::WouldWait);
        }
        let mut state = self.state.lock();
        while !state.may_upload() {
            self.wait(&mut state, wait)?;
        }
        if !state.is_dirty() {
            return Ok(());
        }
        let failure = state.failure().cloned();
        let was_closed = state.is_closed();
        let busy = self.begin(&mut state, Work::Persisting);
        drop(state);
        let target = upload_target.target();
        let result = match &target {
            Some(target) if target.is_unknown => self.persist_without_path(target),
            Some(target) if !was_closed => self.persist_content(target, ""),
            _ => Ok(()),
        };
        let is_closed = result.is_ok() && target.is_some();
        self.state.lock().is_persisted(is_closed);
        drop(busy);
        result?;
        if target.is_none() {
            return Ok(());
        }
        self.cache.uploads.add(self, upload_target, delay);
        failure.map_or(Ok(()), Err)
    }

    /// Persists content that is not uploaded before the mount ends, with the reason `why`; the next
    /// mount uploads it.
    ///
    /// # Errors
    /// The local disk could not be written.
    pub fn persist_for_next_mount(
        &self,
        upload_target: &dyn UploadTarget,
        why: &str,
    ) -> Result<(), Error> {
        let mut state = self.state.lock();
        while !state.may_upload() {
            self.changed.wait(&mut state);
        }
        let busy = self.begin(&mut state, Work::Persisting);
        drop(state);
        let result = match upload_target.target() {
            Some(target) if target.is_unknown => self.persist_without_path(&target),
            Some(target) => self.persist_content(&target, why),
            None => Ok(()),
        };
        self.state.lock().set_closed(result.is_ok());
        drop(busy);
        result
    }

    /// Persists content whose path on the host is unknown; always returns an error, at least
    /// [`Error::NoPath`].
    pub(super) fn persist_without_path(&self, target: &Target) -> Result<(), Error> {
        self.persist_content(target, NO_PATH)?;
        Err(Error::NoPath)
    }
}
