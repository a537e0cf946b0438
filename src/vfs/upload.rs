//! Uploading: when, where, and what the host makes of it.

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

/// The most that an answer to a copy can say; FUSE gives it 32 bits.
const MAX_COPY: u64 = u32::MAX as u64;

impl Vfs {
    /// Uploads what the host does not have: every `close(2)` comes here first.
    ///
    /// Who only reads uploads nothing that another is still writing, but does hear of content
    /// that could not be uploaded and still cannot be.
    pub fn flush(&self, cx: &Context, fh: Fh) -> Result<()> {
        let handle = self.handles.lock().file(fh)?;
        let is_writer = handle.flags.writes || self.is_to_be_made(&handle);
        if !is_writer {
            // Those who wrote it have tried, and so does the cache: a reader need not wait for that.
            return handle
                .entry
                .failure()
                .map_or(Ok(()), |error| Err(not_uploaded(error)));
        }
        self.upload_closed(cx, handle.ino, &handle.entry)?;
        Self::check_epoch(&handle)
    }

    /// Uploads content that was closed, or makes sure of it here and has it uploaded later.
    pub(super) fn upload_closed(&self, cx: &Context, ino: Ino, entry: &Arc<Entry>) -> Result<()> {
        match self.options.writeback {
            None => self.flush_entry(cx, ino, entry, Durability::Lazy),
            Some(delay) => {
                let place: Arc<dyn UploadTarget> = self.upload_place(ino)?;
                match entry.persist_for_writeback(&place, delay, cx.wait) {
                    // This machine cannot keep it until later.
                    Err(cache::Error::Local { .. }) => {
                        self.flush_entry(cx, ino, entry, Durability::Lazy)
                    }
                    result => result.map_err(not_uploaded),
                }
            }
        }
    }

    /// Whoever had the file open when its content was moved aside has written to that, not to the
    /// file of the name.
    fn check_epoch(handle: &FileHandle) -> Result<()> {
        if handle.entry.conflict_epoch() == handle.conflict_epoch || !handle.flags.writes {
            Ok(())
        } else {
            Err(Error::Stale)
        }
    }

    /// Uploads what the host does not have, and has it flush that to its disk.
    pub fn fsync(&self, cx: &Context, fh: Fh) -> Result<()> {
        let handle = self.handles.lock().file(fh)?;
        self.flush_entry(cx, handle.ino, &handle.entry, Durability::Fsync)?;
        Self::check_epoch(&handle)
    }

    /// Has the host flush the names of a directory to its disk. Every change of them is on the host
    /// before its request is answered.
    pub fn fsyncdir(&self, cx: &Context, ino: Ino) -> Result<()> {
        let path = {
            let tree = self.tree.lock();
            Self::check_directory(&tree, ino)?;
            tree.path(ino)
        };
        let Some(path) = path else {
            // It was removed: there are no names in it.
            return Ok(());
        };
        cx.may_wait()?;
        Ok(self.remote.sync(&path)?)
    }

    /// Whether a handle has to bring a file to the host that was created and not closed since.
    pub(super) fn is_to_be_made(&self, handle: &FileHandle) -> bool {
        self.is_new(handle.ino) && !handle.entry.is_on_its_way()
    }

    /// Whether the host has no file yet: whoever created it uploads it, even if only for reading.
    pub(super) fn is_new(&self, ino: Ino) -> bool {
        let tree = self.tree.lock();
        tree.get(ino).is_some_and(Inode::is_new)
    }

    /// Uploads the content of an inode if it has any that is not uploaded.
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

    pub(super) fn flush_entry(
        &self,
        cx: &Context,
        ino: Ino,
        entry: &Arc<Entry>,
        how: Durability,
    ) -> Result<()> {
        if entry.is_dirty() {
            let tree = self.tree.lock();
            let is_gone = tree
                .get(ino)
                .is_some_and(|inode| inode.place().is_some() && tree.place_path(ino).is_none());
            drop(tree);
            if is_gone {
                let kept = entry.kept_in().unwrap_or_default();
                log::error!(
                    "the directory of a file that is open was removed or moved on the host; what \
                     was written to the file is kept in {}",
                    kept.display()
                );
                return Err(Error::Stale);
            }
        }
        let place: Arc<dyn UploadTarget> = self.upload_place(ino)?;
        entry.upload(&place, how, cx.wait).map_err(not_uploaded)
    }

    pub(super) fn upload_place(&self, ino: Ino) -> Result<Arc<UploadPlace>> {
        let vfs = self.arc()?;
        Ok(Arc::new(UploadPlace { vfs, ino }))
    }

    /// Copies a whole file to another on the host, so that no byte of it travels; returns how
    /// many bytes.
    ///
    /// # Errors
    /// [`Error::NotSupported`] where it is not a whole file, or where the host does not have the
    /// content: then the kernel copies by reading and writing.
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
            let version = source.entry.version().filter(|_| !inode.is_ours());
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
        let place = self.upload_place(target.ino)?;
        let Some(to) = place.target().filter(|to| !to.is_unknown) else {
            return Err(Error::NotSupported);
        };
        let plan = target.entry.copy_spec(size, &to, mtime);
        let to = to.path;
        // Held, so that no flush uploads the empty content meanwhile.
        let hold = target.entry.block_uploads();
        let changed = match self.remote.copy(&path, &to, &plan) {
            // What to do about it is decided where content is uploaded.
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
        place.uploaded(&changed);
        drop(hold);
        Ok(size)
    }
}

/// How a save changes a file that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlacementPolicy {
    /// A new file takes the name; what was only appended is appended to the file that is there.
    #[default]
    Auto,
    /// A new file takes the name, always.
    Replace,
    /// The file that is there gets the content: for those that a program on the host has open, and
    /// not in one step.
    InPlace,
}

/// What `close(2)` says of content that is not on the host. A host that cannot be reached is an
/// input/output error to it, as to any program that closes a file.
fn not_uploaded(error: cache::Error) -> Error {
    match &error {
        cache::Error::Remote(cause) if cause.is_connection_loss() => Error::NotStored(error),
        _ => Error::Cache(error),
    }
}

/// Where the content of an inode goes at the moment at which it is uploaded.
#[derive(Debug)]
pub(super) struct UploadPlace {
    vfs: Arc<Vfs>,
    ino: Ino,
}

impl UploadTarget for UploadPlace {
    fn prepare(&self) -> remote::Result<()> {
        self.vfs.settle_path(self.ino)
    }

    fn target(&self) -> Option<Target> {
        let vfs = &self.vfs;
        let facts = vfs.remote.facts();
        let tree = vfs.tree.lock();
        let inode = tree.get(self.ino)?;
        let (_, name) = inode.place()?;
        let known = tree.place_path(self.ino);
        let (parent, _) = inode.place()?;
        let dir = tree.get(*parent).map(|dir| dir.stat);
        let is_elsewhere = matches!(inode.home, Home::OtherLink { .. });
        let is_unknown = known.is_none() || dir.is_none() || is_elsewhere;
        let path = known.unwrap_or_else(|| RemotePath::root().join(name));
        let stat = inode.stat;
        let is_new = inode.is_new();
        let dir = dir.unwrap_or(stat);
        let login = vfs.login();
        let may_chown = |uid: u32, gid: u32| {
            facts.uid == 0
                || (uid == facts.uid && (gid == facts.gid || facts.groups.contains(&gid)))
        };
        // What a new file in that directory gets by itself.
        let default_gid = if dir.mode & 0o2000 != 0 {
            dir.gid
        } else {
            facts.gid
        };
        let is_default = (stat.uid, stat.gid) == (facts.uid, default_gid);
        let mask = permission::WRITE | permission::EXECUTE;
        let dir_len = vfs.host_path_len(&path.parent().unwrap_or_default());
        let placement = if dir_len + 1 + TEMP_NAME_LEN > PATH_MAX {
            // A temporary name does not fit.
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
            sets_mode: inode.is_mode_ours,
            owner,
            placement,
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
        let place = inode.place().cloned();
        if let Some((parent, name)) = &place
            && inode.links().is_empty()
        {
            // It was made anew.
            tree.bind(*parent, name, self.ino, at);
            self.vfs.notify(Change::Name(*parent, name.clone()));
        }
        if let Some((parent, name)) = &place {
            // A listing that is under way may be from before.
            tree.confirm(*parent, name, at);
        }
        let Some(inode) = tree.get_mut(self.ino) else {
            return;
        };
        inode.is_mode_ours = false;
        match changed.stat {
            Some(stat) => {
                inode.pages_of = Some(stat.version());
                let shown = shown.and_then(|attr| attr.stat.ctime);
                inode.ctime = stat.ctime.zip(shown);
                tree.set_stat(self.ino, stat, at);
            }
            None => {
                inode.pages_of = None;
                inode.freshness.invalidate(at);
            }
        }
        drop(tree);
        if let Some((parent, _)) = place {
            self.vfs.parent_changed(parent, changed.parent);
        }
    }

    fn kept_beside(&self, kept_as: &RemotePath, changed: &Changed) {
        let at = self.vfs.clock.tick();
        let mut tree = self.vfs.tree.lock();
        let Some(name) = kept_as.name() else { return };
        let Some(inode) = tree.get_mut(self.ino) else {
            return;
        };
        inode.is_mode_ours = false;
        inode.pages_of = None;
        inode.ctime = None;
        let Some((parent, old)) = inode.place().cloned() else {
            return;
        };
        // Open handles go on with the conflict copy; the old name belongs to another file. The new
        // name first: an inode without one might be dropped.
        tree.bind(parent, &name, self.ino, at);
        if tree.bound(parent, &old) == Some(self.ino) {
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
        self.vfs.parent_changed(parent, changed.parent);
        self.vfs.notify(Change::Name(parent, old));
    }
}
