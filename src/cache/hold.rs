//! Keeping contents from being uploaded while their paths change.

use std::fmt;
use std::sync::Arc;

use crate::cache::Error;
use crate::cache::entry::Entry;
use crate::cache::state::State;

impl Entry {
    /// Keeps uploads from beginning until the guard is dropped, and waits for one that is under
    /// way: its path is about to change.
    pub fn hold(self: &Arc<Self>) -> Hold {
        let mut state = self.state.lock();
        state.holds += 1;
        while state.is_flushing {
            self.changed.wait(&mut state);
        }
        Hold {
            entry: Arc::clone(self),
        }
    }

    pub(super) fn is_held(state: &State) -> bool {
        state.holds > 0
    }
}

/// See [`Entry::hold`].
pub struct Hold {
    entry: Arc<Entry>,
}

impl Hold {
    /// Removes from the host what uploads of the content left there whose end nobody heard; one that
    /// still goes on fails then.
    ///
    /// # Errors
    /// The host was not reached.
    pub fn withdraw(&self) -> Result<(), Error> {
        self.entry.withdraw()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.entry.state.lock().holds -= 1;
        self.entry.changed.notify_all();
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hold")
    }
}
