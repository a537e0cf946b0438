//! Large files that are opened for reading: only what is read is fetched, until a program reads on
//! from the beginning.

use std::sync::Arc;

use crate::cache;
use crate::cache::BlockRead;
use crate::cache::Entry;
use crate::clock::Tick;
use crate::path::RemotePath;
use crate::remote::Reason;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::stat::Version;
use crate::vfs::Change;
use crate::vfs::Context;
use crate::vfs::Error;
use crate::vfs::Ino;
use crate::vfs::Result;
use crate::vfs::Vfs;
use crate::vfs::handle::FileHandle;

impl Vfs {
    /// Fetches the first blocks of a large file whose content is not here, in place of the whole
    /// content. Returns false if the whole content is to be fetched.
    ///
    /// # Errors
    /// The host does not let the login user read the file, or cannot be reached.
    pub(super) fn open_part(&self, cx: &Context, ino: Ino, entry: &Arc<Entry>) -> Result<bool> {
        let Some((path, version)) = self.large_file(ino) else {
            return Ok(false);
        };
        if !entry.reads_in_blocks(0) || self.cache.has_or_reads_ahead(&version) {
            return Ok(false);
        }
        cx.may_wait()?;
        entry.forget_changed_blocks(&version);
        let read = entry.read_blocks(&path, version, 0, 1);
        Ok(self.part_was_read(ino, read)?.is_some())
    }

    /// Reads from a large file whose content is not here. `None` if the whole content is to be
    /// fetched, or is here.
    pub(super) fn read_part(
        &self,
        cx: &Context,
        handle: &FileHandle,
        offset: u64,
        len: usize,
    ) -> Result<Option<Vec<u8>>> {
        if !handle
            .entry
            .reads_in_blocks(offset.saturating_add(len as u64))
        {
            return Ok(None);
        }
        let Some((path, version)) = self.large_file(handle.ino) else {
            return Ok(None);
        };
        cx.may_wait()?;
        let read = handle.entry.read_blocks(&path, version, offset, len);
        self.part_was_read(handle.ino, read)
    }

    /// Returns the path and version of a file that is large enough to be fetched in parts.
    fn large_file(&self, ino: Ino) -> Option<(RemotePath, Version)> {
        if !self.options.reads_parts || !self.remote.facts().can_fetch_blocks {
            return None;
        }
        let tree = self.tree.lock();
        let stat = tree.get(ino)?.stat;
        let is_large = stat.kind == FileKind::File && stat.size >= cache::LARGE;
        Some((tree.path(ino).filter(|_| is_large)?, stat.version()))
    }

    /// Applies the attributes that came with blocks, and returns the bytes.
    fn part_was_read(
        &self,
        ino: Ino,
        read: std::result::Result<BlockRead, cache::Error>,
    ) -> Result<Option<Vec<u8>>> {
        match read {
            Ok(BlockRead::Data(data, told)) => {
                if let Some((stat, at)) = told {
                    self.apply_stat_of_part(ino, stat, at);
                }
                Ok(Some(data))
            }
            Ok(BlockRead::Whole) => Ok(None),
            // The host has no dd.
            Err(cache::Error::Remote(error)) if error.reason() == Some(Reason::NoProgram) => {
                Ok(None)
            }
            Err(error) => Err(Error::Cache(error)),
        }
    }

    fn apply_stat_of_part(&self, ino: Ino, stat: Stat, at: Tick) {
        let mut tree = self.tree.lock();
        let old = tree.get(ino).map(|inode| inode.stat.version());
        tree.apply_stat(ino, stat, at);
        drop(tree);
        if old.is_some_and(|old| !old.same_content(&stat.version())) {
            // The kernel has content and size of the older version.
            self.notify(Change::Attributes(ino));
        }
    }
}
