//! Open files that change on the host: programs see one version at any time.
//!
//! Until the newer version is fetched, size, times and content remain those of the older one. A
//! file that is open for writing keeps its version until it is opened again: later writes are based
//! on that version.

use std::sync::Arc;

use crate::cache::Entry;
use crate::cache::NewerContent;
use crate::cache::RefreshWait;
use crate::clock::Tick;
use crate::stat::Version;
use crate::vfs::Change;
use crate::vfs::Context;
use crate::vfs::Ino;
use crate::vfs::Result;
use crate::vfs::Vfs;
use crate::vfs::freshness::Freshness;
use crate::vfs::inode::Inode;
use crate::vfs::tree::Tree;

impl Vfs {
    /// Returns the version of the content of an open file if its attributes are of a newer one, and
    /// starts to fetch that.
    pub(super) fn older_version(&self, tree: &Tree, ino: Ino, inode: &Inode) -> Option<Version> {
        let entry = inode.entry.as_ref().filter(|entry| entry.is_open())?;
        let content = entry.content_version()?;
        if content.is_unsized || content.version == inode.stat.version() {
            return None;
        }
        if let Freshness::Asked(at) = inode.freshness
            && !self.handles.lock().is_open_for_writing(ino)
        {
            self.refresh(tree, ino, inode, entry, Some(at));
        }
        Some(content.version)
    }

    /// Returns the cache entry of an open file if its content is clean.
    pub(super) fn open_clean(tree: &Tree, ino: Ino) -> Option<Arc<Entry>> {
        let entry = tree.get(ino)?.entry.as_ref()?;
        entry.content_version()?;
        Some(Arc::clone(entry))
    }

    /// Replaces the content of an open file by the newest version, for another open. Blocks until
    /// it is fetched.
    pub(super) fn refresh_and_wait(
        &self,
        cx: &Context,
        ino: Ino,
        entry: &Arc<Entry>,
    ) -> Result<()> {
        cx.may_wait()?;
        // A running refresh may fetch a version between the two.
        let _older = entry.wait_for_refresh(RefreshWait::Always, cx.wait);
        {
            let tree = self.tree.lock();
            if let Some(inode) = tree.get(ino) {
                self.refresh(&tree, ino, inode, entry, None);
            }
        }
        Ok(entry.wait_for_refresh(RefreshWait::Always, cx.wait)?)
    }

    fn refresh(&self, tree: &Tree, ino: Ino, inode: &Inode, entry: &Arc<Entry>, at: Option<Tick>) {
        // A file without a name no longer changes on the host.
        let (Some(path), Some(vfs)) = (tree.path(ino), self.me.upgrade()) else {
            return;
        };
        let since = self.clock.tick();
        entry.refresh(&path, inode.stat.version(), at, move |newer| {
            vfs.install(ino, newer, since);
        });
    }

    /// Makes a newer version the content of an open file.
    fn install(&self, ino: Ino, mut newer: NewerContent, since: Tick) {
        let invalidates_kernel = !newer.is_awaited;
        if invalidates_kernel {
            // The kernel must revalidate the size before it reads newer content. This also writes
            // back dirty pages of a mapping; the file then keeps the older version.
            self.notify(Change::Content(ino));
        }
        let Some(stat) = newer.install() else {
            return;
        };
        self.tree.lock().apply_stat(ino, stat, since);
        if invalidates_kernel {
            // Pages that were read meanwhile may be of the older version. If a getattr waits for
            // the new attributes, the kernel drops the pages itself when it gets them.
            self.notify(Change::Content(ino));
        }
        if let Some(inode) = self.tree.lock().get_mut(ino) {
            inode.page_cache_version = inode.entry.as_ref().and_then(|entry| entry.version());
        }
    }
}
