//! Uploads: when they happen, where they go, and what follows in the tree.

use std::sync::Arc;

use crate::cache;
use crate::cache::Entry;
use crate::cache::Target;
use crate::cache::UploadTarget;
use crate::path::RemotePath;
use crate::remote;
use crate::remote::Changed;
use crate::remote::Durability;
use crate::remote::Owner;
use crate::remote::Placement;
use crate::remote::TEMP_NAME_LEN;
use crate::vfs::Change;
use crate::vfs::Context;
use crate::vfs::Error;
use crate::vfs::Fh;
use crate::vfs::Ino;
use crate::vfs::Result;
use crate::vfs::Vfs;
use crate::vfs::file::PATH_MAX;
use crate::vfs::handle::FileHandle;
use crate::vfs::inode::Home;
use crate::vfs::inode::Inode;
use crate::vfs::permission;

/// The maximum size of a copy: the size in the FUSE reply has 32 bits.
const MAX_COPY: u64 = u32::MAX as u64;

impl Vfs {
    /// Uploads dirty content. The kernel sends FLUSH for every `close(2)`.
    ///
    /// A handle that only reads uploads nothing, but returns the error of an upload that failed and
    /// has not succeeded since.
    pub fn flush(&self, cx: &Context, fh: Fh) -> Result<()> {
        let handle = self.handles.lock().file(fh)?;
        let is_writer = handle.flags.writes || self.must_create(&handle);
        if !is_writer {
            // The writers have tried to upload it, and the cache retries: a reader need not wait.
            return handle
                .entry
                .failure()
                .map_or(Ok(()), |error| Err(upload_error(error)));
        }
        self.upload_closed(cx, handle.ino, &handle.entry)?;
        Self::check_conflict_epoch(&handle)
    }

    /// Uploads content of a closed handle. With write-back, persists it instead, and uploads it
    /// later.
    pub(super) fn upload_closed(&self, cx: &Context, ino: Ino, entry: &Arc<Entry>) -> Result<()> {
        match self.options.writeback {
            None => self.flush_entry(cx, ino, entry, Durability::Lazy),
            Some(delay) => {
                let target: Arc<dyn UploadTarget> = self.upload_target(ino)?;
                match entry.persist_for_writeback(&target, delay, cx.wait) {
                    // It cannot be persisted on this machine.
                    Err(cache::Error::Local { .. }) => {
                        self.flush_entry(cx, ino, entry, Durability::Lazy)
                    }
                    result => result.map_err(upload_error),
                }
            }
        }
    }

    /// Returns an error if a handle that writes was opened before the content became a conflict
    /// copy: its writes are in the copy, not in the file of that name.
    fn check_conflict_epoch(handle: &FileHandle) -> Result<()> {
        if handle.entry.conflict_epoch() == handle.conflict_epoch || !handle.flags.writes {
            Ok(())
        } else {
            Err(Error::Stale)
        }
    }

    /// Uploads dirty content, and returns when the host has flushed it to its disk.
    pub fn fsync(&self, cx: &Context, fh: Fh) -> Result<()> {
        let handle = self.handles.lock().file(fh)?;
        self.flush_entry(cx, handle.ino, &handle.entry, Durability::Fsync)?;
        Self::check_conflict_epoch(&handle)
    }

    /// Returns when the host has flushed the names of a directory to its disk. Every change of
    /// names was made on the host before its request was answered.
    pub fn fsyncdir(&self, cx: &Context, ino: Ino) -> Result<()> {
        let path = {
            let tree = self.tree.lock();
            Self::check_directory(&tree, ino)?;
            tree.path(ino)
        };
        let Some(path) = path else {
            // It was removed, and has no names.
            return Ok(());
        };
        cx.may_wait()?;
        Ok(self.remote.sync(&path)?)
    }

    /// Returns whether closing a handle must upload a new file, even if the handle only reads: the
    /// host does not have the file, and no upload is waiting.
    pub(super) fn must_create(&self, handle: &FileHandle) -> bool {
        self.is_new(handle.ino) && !handle.entry.is_waiting_upload()
    }

    /// Returns whether the file was created here and never uploaded.
    pub(super) fn is_new(&self, ino: Ino) -> bool {
        let tree = self.tree.lock();
        tree.get(ino).is_some_and(Inode::is_new)
    }

    /// Uploads the content of an inode if it is dirty.
    pub(super) fn flush_inode(&self, cx: &Context, ino: Ino, how: Durability) -> Result<()> {
        let entry = {
            let tree = self.tree.lock();
            tree.get(ino).and_then(|inode| inode.entry.clone())
        };
        match entry {
            None => Ok(()),
            Some(entry) => self.flush_entry(cx, ino, &entry, how),
        }
    }

    /// Uploads a cache entry if it is dirty.
    ///
    /// # Errors
    /// [`Error::Stale`] if the directory of the file is gone: the content stays in the cache
    /// directory.
    pub(super) fn flush_entry(
        &self,
        cx: &Context,
        ino: Ino,
        entry: &Arc<Entry>,
        how: Durability,
    ) -> Result<()> {
        if entry.is_dirty() {
            let tree = self.tree.lock();
            let is_gone = tree.get(ino).is_some_and(|inode| {
                inode.current_or_last_link().is_some() && tree.current_or_last_path(ino).is_none()
            });
            drop(tree);
            if is_gone {
                let kept = entry.local_file().unwrap_or_default();
                log::error!(
                    "cannot upload an open file: its directory was removed or moved on the host; \
                     the content is kept in {}",
                    kept.display()
                );
                return Err(Error::Stale);
            }
        }
        let target: Arc<dyn UploadTarget> = self.upload_target(ino)?;
        entry.upload(&target, how, cx.wait).map_err(upload_error)
    }

    /// Returns the upload target of an inode.
    pub(super) fn upload_target(&self, ino: Ino) -> Result<Arc<InodeUploadTarget>> {
        let vfs = self.arc()?;
        Ok(Arc::new(InodeUploadTarget { vfs, ino }))
    }

    /// Copies a whole file over an empty one by a command on the host, without transferring the
    /// content; returns the number of bytes.
    ///
    /// # Errors
    /// [`Error::NotSupported`] if the range is not the whole file, or if the host does not have the
    /// content: the kernel then copies by reading and writing.
    pub fn copy_file_range(
        &self,
        cx: &Context,
        from: (Fh, u64),
        to: (Fh, u64),
        len: u64,
    ) -> Result<u64> {
        let (source, target) = {
            let handles = self.handles.lock();
            (handles.file(from.0)?, handles.file(to.0)?)
        };
        let (path, size, mtime) = {
            let tree = self.tree.lock();
            let inode = tree.get(source.ino).ok_or(Error::UnknownInode)?;
            let version = source.entry.version().filter(|_| !inode.is_dirty());
            let size = target.entry.local().map(|local| local.size);
            let is_target_empty =
                size.or_else(|| target.entry.version().map(|v| v.size)) == Some(0);
            let is_whole =
                from.1 == 0 && to.1 == 0 && version.is_some_and(|v| v.size <= len.min(MAX_COPY));
            let path = tree.path(source.ino);
            match (path, version) {
                (Some(path), Some(version))
                    if is_whole && is_target_empty && source.ino != target.ino =>
                {
                    (path, version.size, self.clock.wall().truncate_to_micros())
                }
                _ => return Err(Error::NotSupported),
            }
        };
        if size == 0 {
            return Ok(0);
        }
        cx.may_wait()?;
        let upload_target = self.upload_target(target.ino)?;
        let Some(to) = upload_target.target().filter(|to| !to.is_unknown) else {
            return Err(Error::NotSupported);
        };
        let spec = target.entry.copy_spec(size, &to, mtime);
        let to = to.path;
        // Blocked, so that no flush uploads the empty content meanwhile.
        let block = target.entry.block_uploads();
        let changed = match self.remote.copy(&path, &to, &spec) {
            // The conflict is handled when the content is uploaded.
            Err(remote::Error::Conflict { .. }) => return Err(Error::NotSupported),
            result => result?,
        };
        let changed = match changed.stat {
            Some(_) => changed,
            None => Changed {
                stat: Some(self.remote.stat(&to)?),
                ..changed
            },
        };
        if let Some(stat) = changed.stat {
            target.entry.replaced_on_host(stat.version());
        }
        upload_target.uploaded(&changed);
        drop(block);
        Ok(size)
    }
}

/// How an upload changes a file that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlacementPolicy {
    /// Atomic replace; appended bytes are appended in place.
    #[default]
    Auto,
    /// Atomic replace, always.
    Replace,
    /// In place: for files that a program on the host keeps open. Not atomic.
    InPlace,
}

/// Converts the error of an upload for `close(2)`. If the host cannot be reached, `close(2)`
/// returns EIO.
fn upload_error(error: cache::Error) -> Error {
    match &error {
        cache::Error::Remote(cause) if cause.is_connection_loss() => Error::NotUploaded(error),
        _ => Error::Cache(error),
    }
}

/// Where the content of an inode is uploaded to: evaluated when the upload begins.
#[derive(Debug)]
pub(super) struct InodeUploadTarget {
    vfs: Arc<Vfs>,
    ino: Ino,
}

impl UploadTarget for InodeUploadTarget {
    fn prepare(&self) -> remote::Result<()> {
        self.vfs.resolve_renames_of_path(self.ino)
    }

    fn target(&self) -> Option<Target> {
        let vfs = &self.vfs;
        let facts = vfs.remote.facts();
        let tree = vfs.tree.lock();
        let inode = tree.get(self.ino)?;
        let (_, name) = inode.current_or_last_link()?;
        let known = tree.current_or_last_path(self.ino);
        let (parent, _) = inode.current_or_last_link()?;
        let dir = tree.get(*parent).map(|dir| dir.stat);
        let is_elsewhere = matches!(inode.home, Home::OtherLink { .. });
        let is_unknown = known.is_none() || dir.is_none() || is_elsewhere;
        let path = known.unwrap_or_else(|| RemotePath::root().join(name));
        let stat = inode.stat;
        let is_new = inode.is_new();
        let dir = dir.unwrap_or(stat);
        let login = vfs.login_user();
        let may_chown = |uid: u32, gid: u32| {
            facts.uid == 0
                || (uid == facts.uid && (gid == facts.gid || facts.groups.contains(&gid)))
        };
        // The group that a new file in that directory gets on the host.
        let default_gid = if dir.mode & 0o2000 != 0 {
            dir.gid
        } else {
            facts.gid
        };
        let is_default = (stat.uid, stat.gid) == (facts.uid, default_gid);
        let mask = permission::WRITE | permission::EXECUTE;
        let dir_len = vfs.host_path_len(&path.parent().unwrap_or_default());
        let placement = if dir_len + 1 + TEMP_NAME_LEN > PATH_MAX {
            // The path of a temporary file would be too long.
            Placement::Direct
        } else if is_new {
            Placement::Replace
        } else if !permission::permits(&dir, &login, mask) {
            Placement::Direct
        } else if stat.nlink > 1
            || !may_chown(stat.uid, stat.gid)
            || vfs.options.placement == PlacementPolicy::InPlace
        {
            Placement::InPlace
        } else {
            Placement::Replace
        };
        let is_given = placement == Placement::Replace || may_chown(stat.uid, stat.gid);
        let owner = (is_given && !is_default).then_some(Owner {
            uid: stat.uid,
            gid: stat.gid,
        });
        Some(Target {
            path,
            mode: stat.mode,
            sets_mode: inode.is_mode_dirty,
            owner,
            placement,
            is_exclusive: inode.must_be_created,
            may_append: vfs.options.placement != PlacementPolicy::Replace,
            atime: stat.atime,
            is_unknown,
            is_elsewhere,
        })
    }

    fn uploaded(&self, changed: &Changed) {
        let at = self.vfs.clock.tick();
        let mut tree = self.vfs.tree.lock();
        let shown = self.vfs.attr_of(&tree, self.ino).ok();
        let Some(inode) = tree.get_mut(self.ino) else {
            return;
        };
        let link = inode.current_or_last_link().cloned();
        if let Some((parent, name)) = &link
            && inode.links().is_empty()
        {
            // The upload created the file again.
            tree.link(*parent, name, self.ino, at);
            self.vfs.notify(Change::Name(*parent, name.clone()));
        }
        if let Some((parent, name)) = &link {
            // A listing in flight may be from before the upload.
            tree.confirm(*parent, name, at);
        }
        let Some(inode) = tree.get_mut(self.ino) else {
            return;
        };
        inode.is_mode_dirty = false;
        (inode.is_created_exclusively, inode.must_be_created) = (false, false);
        match changed.stat {
            Some(stat) => {
                inode.page_cache_version = Some(stat.version());
                let shown = shown.and_then(|attr| attr.stat.ctime);
                inode.ctime = stat.ctime.zip(shown);
                tree.set_stat(self.ino, stat, at);
            }
            None => {
                inode.page_cache_version = None;
                inode.freshness.invalidate(at);
            }
        }
        drop(tree);
        if let Some((parent, _)) = link {
            self.vfs.update_parent(parent, changed.parent);
        }
    }

    fn uploaded_as_conflict_copy(&self, kept_as: &RemotePath, changed: &Changed) {
        let at = self.vfs.clock.tick();
        let mut tree = self.vfs.tree.lock();
        let Some(name) = kept_as.name() else { return };
        let Some(inode) = tree.get_mut(self.ino) else {
            return;
        };
        inode.is_mode_dirty = false;
        (inode.is_created_exclusively, inode.must_be_created) = (false, false);
        inode.page_cache_version = None;
        inode.ctime = None;
        let Some((parent, old)) = inode.current_or_last_link().cloned() else {
            return;
        };
        // Open handles continue with the conflict copy; the old name belongs to another file. The
        // new name is linked first: an inode without a name might be dropped.
        tree.link(parent, &name, self.ino, at);
        if let Some(dir) = tree.dir_mut(parent) {
            // Others create names in it too.
            dir.created_here_at = None;
        }
        if tree.linked(parent, &old) == Some(self.ino) {
            tree.forget_name(parent, &old, at);
        }
        match changed.stat {
            Some(stat) => tree.set_stat(self.ino, stat, at),
            None => {
                if let Some(inode) = tree.get_mut(self.ino) {
                    inode.freshness.invalidate(at);
                }
            }
        }
        drop(tree);
        self.vfs.update_parent(parent, changed.parent);
        self.vfs.notify(Change::Name(parent, old));
    }
}
