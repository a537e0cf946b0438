//! Making sure here of content that the host gets later.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::Error;
use crate::cache::Whereto;
use crate::cache::entry::Entry;
use crate::cache::entry::Wait;
use crate::cache::flush::NO_PLACE;
use crate::cache::flush::Target;
use crate::cache::state::Content;

impl Entry {
    /// Says that the content is whole and may be uploaded later: it is safe here, and the cache will
    /// upload it by itself when `delay` has passed.
    ///
    /// # Errors
    /// It cannot be kept here; or an earlier attempt to upload it failed, and none has succeeded since.
    pub fn seal(
        self: &Arc<Self>,
        whereto: &Arc<dyn Whereto>,
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
        // A rename under way changes where it goes.
        while Self::is_busy(&state) || Self::is_held(&state) {
            self.wait(&mut state, wait)?;
        }
        if !matches!(state.content, Content::Dirty { .. }) {
            return Ok(());
        }
        let failure = state.failure.clone();
        let is_sealed = state.is_sealed;
        // Nobody writes while the disk takes it.
        state.is_flushing = true;
        drop(state);
        let target = whereto.target();
        let result = match &target {
            Some(target) if target.is_unknown => self.lose(target),
            Some(target) if !is_sealed => self.say_synced(target, ""),
            _ => Ok(()),
        };
        let mut state = self.state.lock();
        state.is_flushing = false;
        state.is_sealed = result.is_ok() && target.is_some();
        state.replaces &= !state.is_sealed;
        drop(state);
        self.changed.notify_all();
        result?;
        if target.is_none() {
            return Ok(());
        }
        self.cache.uploads.add(self, whereto, delay);
        failure.map_or(Ok(()), Err)
    }

    /// Makes sure of content here that the host will not get before the end of the mount: the next
    /// one uploads it.
    pub fn keep(&self, whereto: &dyn Whereto, why: &str) -> Result<(), Error> {
        let mut state = self.state.lock();
        while Self::is_busy(&state) || Self::is_held(&state) {
            self.changed.wait(&mut state);
        }
        state.is_flushing = true;
        drop(state);
        let result = match whereto.target() {
            Some(target) if target.is_unknown => self.lose(&target),
            Some(target) => self.say_synced(&target, why),
            None => Ok(()),
        };
        let mut state = self.state.lock();
        (state.is_flushing, state.is_sealed) = (false, result.is_ok());
        drop(state);
        self.changed.notify_all();
        result
    }

    /// Makes sure of content here whose place on the host nobody knows any more.
    pub(super) fn lose(&self, target: &Target) -> Result<(), Error> {
        self.say_synced(target, NO_PLACE)?;
        Err(Error::NoPlace)
    }
}
