//! Blocks uploads of a file while a rename or removal of it is in flight.

use std::fmt;
use std::sync::Arc;

use crate::cache::Error;
use crate::cache::entry::Entry;

impl Entry {
    /// Blocks uploads until the returned guard is dropped, because the path is about to change.
    /// Waits for a running upload.
    pub fn block_uploads(self: &Arc<Self>) -> UploadBlock {
        let mut state = self.state.lock();
        state.block_uploads();
        // From here on, dropping this unblocks them.
        let block = UploadBlock {
            entry: Arc::clone(self),
        };
        while state.is_busy() {
            self.changed.wait(&mut state);
        }
        block
    }
}

/// See [`Entry::block_uploads`].
pub struct UploadBlock {
    entry: Arc<Entry>,
}

impl UploadBlock {
    /// Removes the temporary files of uploads of unknown outcome from the host; an upload that
    /// still runs there fails then.
    ///
    /// # Errors
    /// The host was not reached: the rename or removal must not be requested.
    pub fn cancel_unknown_uploads(&self) -> Result<(), Error> {
        self.entry.cancel_unknown_uploads()
    }
}

impl Drop for UploadBlock {
    fn drop(&mut self) {
        self.entry.state.lock().unblock_uploads();
        self.entry.changed.notify_all();
    }
}

impl fmt::Debug for UploadBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UploadBlock")
    }
}
