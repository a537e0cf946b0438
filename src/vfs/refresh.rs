//! Open files that change on the host: one version at any moment.
//!
//! As long as the newer version is not here, the file goes on showing the size, the times and the
//! content of the older one. A file that somebody here has open for writing keeps its version
//! until it is opened again: what is written next was made from that.

use std::sync::Arc;

use crate::cache::Entry;
use crate::cache::Newer;
use crate::cache::Whole;
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
    /// Returns the version of the content of an open file if the attributes are of another;
    /// starts to fetch the newer one.
    pub(super) fn older_content(&self, tree: &Tree, ino: Ino, inode: &Inode) -> Option<Version> {
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

    /// Returns the entry of an open file if its content is the host's.
    pub(super) fn open_clean(tree: &Tree, ino: Ino) -> Option<Arc<Entry>> {
        let entry = tree.get(ino)?.entry.as_ref()?;
        entry.content_version()?;
        Some(Arc::clone(entry))
    }

    /// Replaces content that others read by the newest, for somebody who opens the file.
    pub(super) fn refresh_and_wait(
        &self,
        cx: &Context,
        ino: Ino,
        entry: &Arc<Entry>,
    ) -> Result<()> {
        cx.may_wait()?;
        // One that is under way may be of a version between the two.
        let _older = entry.wait_for_refresh(Whole::Always, cx.wait);
        {
            let tree = self.tree.lock();
            if let Some(inode) = tree.get(ino) {
                self.refresh(&tree, ino, inode, entry, None);
            }
        }
        Ok(entry.wait_for_refresh(Whole::Always, cx.wait)?)
    }

    fn refresh(&self, tree: &Tree, ino: Ino, inode: &Inode, entry: &Arc<Entry>, at: Option<Tick>) {
        // A file without a name does not change any more on the host.
        let (Some(path), Some(vfs)) = (tree.path(ino), self.me.upgrade()) else {
            return;
        };
        let since = self.clock.tick();
        entry.refresh(&path, inode.stat.version(), at, move |newer| {
            vfs.install(ino, newer, since);
        });
    }

    /// Shows a newer version of a file that is open.
    fn install(&self, ino: Ino, mut newer: Newer, since: Tick) {
        let is_told = !newer.is_awaited;
        if is_told {
            // The kernel must ask for the size before it reads anything of the newer content. What
            // was written through a mapping comes now, and keeps the older.
            self.notify(Change::Content(ino));
        }
        let Some(stat) = newer.install() else {
            return;
        };
        self.tree.lock().absorb(ino, stat, since);
        if is_told {
            // Pages that were read meanwhile may be of the older version. Where attributes are
            // awaited the kernel drops them itself when it sees the new ones.
            self.notify(Change::Content(ino));
        }
        if let Some(inode) = self.tree.lock().get_mut(ino) {
            inode.pages_of = inode.entry.as_ref().and_then(|entry| entry.version());
        }
    }
}
