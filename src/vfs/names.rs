//! Creating, removing and renaming names: mkdir, mknod, symlink, link, unlink, rmdir, rename.

use std::sync::Arc;

use crate::cache::Entry;
use crate::clock::Tick;
use crate::path::Name;
use crate::path::RemotePath;
use crate::remote::Changed;
use crate::remote::Durability;
use crate::remote::RenameHow;
use crate::remote::Renamed;
use crate::stat::DeviceNumber;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::vfs::Attr;
use crate::vfs::Change;
use crate::vfs::Context;
use crate::vfs::Error;
use crate::vfs::Found;
use crate::vfs::Ino;
use crate::vfs::Result;
use crate::vfs::Vfs;
use crate::vfs::freshness::Freshness;
use crate::vfs::inode::Inode;
use crate::vfs::inode::Loss;
use crate::vfs::tree::Scope;
use crate::vfs::tree::Tree;

/// The flags of `renameat2(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenameFlags {
    pub no_replace: bool,
    pub exchange: bool,
}

impl Vfs {
    pub fn mkdir(&self, cx: &Context, parent: Ino, name: &[u8], mode: u32) -> Result<Found> {
        self.make(cx, parent, name, |path, owner| {
            self.remote.make_dir(path, mode, owner)
        })
    }

    /// Creates a regular file, a FIFO, a socket or a device.
    pub fn mknod(
        &self,
        cx: &Context,
        parent: Ino,
        name: &[u8],
        kind: FileKind,
        mode: u32,
        device: DeviceNumber,
    ) -> Result<Found> {
        self.make(cx, parent, name, |path, owner| match kind {
            FileKind::File => self.remote.create_new(path, mode, owner),
            kind => self.remote.make_node(path, kind, mode, device, owner),
        })
    }

    pub fn symlink(&self, cx: &Context, parent: Ino, name: &[u8], target: &[u8]) -> Result<Found> {
        let found = self.make(cx, parent, name, |path, owner| {
            self.remote.symlink(path, target, owner)
        })?;
        if let Some(attr) = found.attr
            && let Some(inode) = self.tree.lock().get_mut(attr.ino)
        {
            inode.target = Some(target.into());
        }
        Ok(found)
    }

    /// Returns `result`. If its outcome is unknown, invalidates `names`, here and in the kernel.
    pub(super) fn invalidate_if_unknown<T>(
        &self,
        result: crate::remote::Result<T>,
        names: &[(Ino, &Name)],
    ) -> Result<T> {
        if let Err(error) = &result
            && error.is_connection_loss()
            && !error.is_before_request()
        {
            let at = self.clock.tick();
            let mut tree = self.tree.lock();
            for (parent, name) in names {
                tree.invalidate_name(*parent, name, at);
            }
            drop(tree);
            for (parent, name) in names {
                self.notify(Change::Name(*parent, (*name).clone()));
            }
        }
        Ok(result?)
    }

    /// Sends a request that creates `name` in `parent`, and adds the new inode to the tree.
    fn make(
        &self,
        cx: &Context,
        parent: Ino,
        name: &[u8],
        make: impl FnOnce(&RemotePath, Option<crate::remote::Owner>) -> crate::remote::Result<Changed>,
    ) -> Result<Found> {
        self.check_writable()?;
        cx.may_wait()?;
        let name = Self::name(name)?;
        let (path, owner) = self.prepare_create(cx, parent, &name)?;
        let since = self.clock.tick();
        let changed = self.invalidate_if_unknown(make(&path, owner), &[(parent, &name)])?;
        let stat = self.stat_of_created(parent, &changed, &path)?;
        let at = self.clock.tick();
        let mut tree = self.tree.lock();
        let ino = tree.add(stat, Freshness::Asked(at));
        tree.link(parent, &name, ino, at);
        if let Some(dir) = tree.dir_mut(ino) {
            // It is new, and therefore empty.
            dir.listed_at = Some(since);
            dir.created_here_at = Some(at);
        }
        self.count_lookup(&mut tree, ino)
    }

    /// Increments the lookup count of an inode and returns its attributes.
    fn count_lookup(&self, tree: &mut Tree, ino: Ino) -> Result<Found> {
        if let Some(inode) = tree.get_mut(ino) {
            inode.lookups += 1;
        }
        let attr: Attr = self.attr_of(tree, ino)?;
        Ok(Found {
            attr: Some(attr),
            ttl: self.options.ttl,
        })
    }

    /// Creates a hard link. Dirty content is uploaded first.
    pub fn link(&self, cx: &Context, ino: Ino, parent: Ino, name: &[u8]) -> Result<Found> {
        self.check_writable()?;
        cx.may_wait()?;
        let name = Self::name(name)?;
        drop(self.resolve_renames(cx, self.tree.lock(), parent, Scope::Name(&name))?);
        // The host must have the file to link to it.
        self.flush_inode(cx, ino, Durability::Lazy)?;
        let entry = self.tree.lock().get(ino).and_then(Inode::cloned_entry);
        let block = entry.as_ref().map(Entry::block_uploads);
        let (existing, path, old) = {
            let tree = self.tree.lock();
            Self::check_directory(&tree, parent)?;
            let existing = tree.path(ino).ok_or(Error::NotFound)?;
            let path = self.path_of_new(&tree, parent, &name)?;
            let stat = tree.get(ino).ok_or(Error::UnknownInode)?.stat;
            Self::check_same_device(&tree, &stat, parent)?;
            (existing, path, stat)
        };
        let changed =
            self.invalidate_if_unknown(self.remote.link(&existing, &path), &[(parent, &name)])?;
        let stat = self.stat_of_created(parent, &changed, &path)?;
        let at = self.clock.tick();
        self.apply_own_name_change(ino, &old, stat, at);
        drop(block);
        let mut tree = self.tree.lock();
        tree.link(parent, &name, ino, at);
        self.count_lookup(&mut tree, ino)
    }

    pub fn unlink(&self, cx: &Context, parent: Ino, name: &[u8]) -> Result<()> {
        self.check_writable()?;
        cx.may_wait()?;
        let name = Self::name(name)?;
        self.recover_name(cx, parent, &name)?;
        drop(self.resolve_renames(cx, self.tree.lock(), parent, Scope::Name(&name))?);
        self.upload_for_other_names(cx, parent, &name)?;
        let name_change = self.begin_name_change(&[(parent, &name)], |tree| {
            let ino = tree.instantiate(parent, &name);
            ino.into_iter().collect()
        });
        let (path, ino, other, is_only_local) = {
            let mut tree = self.tree.lock();
            let path = tree.path(parent).ok_or(Error::NotFound)?.join(&name);
            let ino = tree.instantiate(parent, &name);
            let inode = ino.and_then(|ino| tree.get(ino));
            let is_only_local = inode
                .and_then(|inode| inode.entry.as_ref())
                .is_some_and(|entry| entry.is_only_here());
            let other = inode.and_then(|inode| {
                inode
                    .links()
                    .iter()
                    .find(|(p, n)| !(*p == parent && *n == name))
                    .cloned()
            });
            let other = other.and_then(|(p, n)| Some(tree.path(p)?.join(&n)));
            (path, ino, other, is_only_local)
        };
        if !is_only_local {
            name_change.cancel_unknown_uploads()?;
            let result = self.remote.remove_file(&path, other.as_ref());
            let may_be_absent = ino.is_some_and(|ino| self.is_new(ino));
            let changed = match self.invalidate_if_unknown(result, &[(parent, &name)]) {
                Err(error) if may_be_absent && error.is_not_found() => Changed {
                    stat: None,
                    parent: None,
                },
                result => result?,
            };
            self.update_parent(parent, changed.parent);
            if let (Some(ino), Some(stat)) = (ino, changed.stat) {
                let old = self.tree.lock().get(ino).map(|inode| inode.stat);
                if let Some(old) = old {
                    self.apply_own_name_change(ino, &old, stat, self.clock.tick());
                }
            }
        }
        let at = self.clock.tick();
        let mut tree = self.tree.lock();
        let mut abandoned = None;
        let mut unused = None;
        let mut loss = Loss::Removed;
        if let Some(inode) = ino.and_then(|ino| tree.get_mut(ino))
            && inode.links().len() <= 1
        {
            (abandoned, loss) = loss_of_last_name(inode);
            unused = inode.entry.is_none().then(|| inode.stat.version());
            inode.stat.nlink = inode.stat.nlink.saturating_sub(1);
            inode.stat.ctime = inode.stat.ctime.map(|_| self.clock.wall());
        }
        tree.unlink(parent, &name, at, loss);
        drop(tree);
        if let Some(version) = unused {
            self.cache.forget(&version);
        }
        if let Some(entry) = abandoned {
            entry.abandon();
        }
        drop(name_change);
        Ok(())
    }

    /// Uploads dirty content before a name of the file is removed: it must be visible under the
    /// other hard links.
    fn upload_for_other_names(&self, cx: &Context, parent: Ino, name: &Name) -> Result<()> {
        let linked = {
            let mut tree = self.tree.lock();
            let ino = tree.instantiate(parent, name);
            ino.filter(|&ino| tree.get(ino).is_some_and(|inode| inode.stat.nlink > 1))
        };
        linked.map_or(Ok(()), |ino| self.flush_inode(cx, ino, Durability::Lazy))
    }

    pub fn rmdir(&self, cx: &Context, parent: Ino, name: &[u8]) -> Result<()> {
        self.check_writable()?;
        cx.may_wait()?;
        let name = Self::name(name)?;
        let tree = self.resolve_renames(cx, self.tree.lock(), parent, Scope::Name(&name))?;
        let path = tree.path(parent).ok_or(Error::NotFound)?.join(&name);
        drop(tree);
        // Files that the host does not have yet keep a directory from being empty: upload them, so
        // that the host returns ENOTEMPTY.
        self.recover_below(cx, parent, &name)?;
        self.upload_below(cx, parent, &name)?;
        let changed =
            self.invalidate_if_unknown(self.remote.remove_dir(&path), &[(parent, &name)])?;
        self.update_parent(parent, changed.parent);
        let at = self.clock.tick();
        self.tree.lock().unlink(parent, &name, at, Loss::Removed);
        Ok(())
    }

    /// Uploads the dirty files at and below a directory; nothing if the name is not a directory.
    fn upload_below(&self, cx: &Context, parent: Ino, name: &Name) -> Result<()> {
        let dirty = {
            let mut tree = self.tree.lock();
            let Some(dir) = tree.instantiate(parent, name) else {
                return Ok(());
            };
            if tree.get(dir).is_none_or(|inode| inode.dir.is_none()) {
                // A file that is replaced need not be uploaded first.
                return Ok(());
            }
            inodes_below(&tree, dir, |inode| inode.is_dirty())
        };
        for ino in dirty {
            self.flush_inode(cx, ino, Durability::Lazy)?;
        }
        Ok(())
    }

    /// Renames. Open handles keep working, and dirty content is uploaded to the new path.
    ///
    /// # Errors
    /// [`Error::Busy`] if an exchange affects open or dirty files. After a rename of unknown
    /// outcome, the next operation that depends on one of the names asks the host first.
    pub fn rename(
        &self,
        cx: &Context,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        flags: RenameFlags,
    ) -> Result<()> {
        self.check_writable()?;
        cx.may_wait()?;
        let (from_name, to_name) = (Self::name(from.1)?, Self::name(to.1)?);
        let (from, to) = ((from.0, &from_name), (to.0, &to_name));
        let how = match flags {
            RenameFlags {
                no_replace: true,
                exchange: true,
            } => return Err(Error::InvalidArgument),
            RenameFlags {
                no_replace: true, ..
            } => RenameHow::NoReplace,
            RenameFlags { exchange: true, .. } => RenameHow::Exchange,
            RenameFlags { .. } => RenameHow::Replace,
        };
        for (parent, name) in [from, to] {
            self.recover_below(cx, parent, name)?;
            drop(self.resolve_renames(cx, self.tree.lock(), parent, Scope::Below(name))?);
        }
        // The host cannot rename a file that it does not have yet.
        let new = {
            let mut tree = self.tree.lock();
            let names = [Some(from), (how == RenameHow::Exchange).then_some(to)];
            let mut inos: Vec<Ino> = names
                .into_iter()
                .flatten()
                .filter_map(|(parent, name)| tree.instantiate(parent, name))
                .collect();
            inos.retain(|&ino| tree.get(ino).is_some_and(Inode::is_new));
            inos
        };
        for ino in new {
            self.flush_inode(cx, ino, Durability::Lazy)?;
        }
        // A directory with such a file is not empty: the host must refuse to replace it.
        self.upload_below(cx, to.0, to.1)?;
        self.upload_for_other_names(cx, to.0, to.1)?;
        let name_change = self.begin_name_change(&[from, to], |tree| {
            let moved = [
                tree.instantiate(from.0, from.1),
                tree.instantiate(to.0, to.1),
            ];
            let moved = moved.into_iter().flatten();
            moved
                .flat_map(|ino| inodes_below(tree, ino, |inode| inode.entry.is_some()))
                .collect()
        });
        if how == RenameHow::Exchange && name_change.affects_files() {
            // The journal records one new path per file, not an exchange.
            return Err(Error::Busy);
        }
        let (source, target) = {
            let mut tree = self.tree.lock();
            let source = tree.path(from.0).ok_or(Error::NotFound)?.join(from.1);
            let target = self.path_of_new(&tree, to.0, to.1)?;
            if let Some(ino) = tree.instantiate(from.0, from.1)
                && let Some(stat) = tree.get(ino).map(|inode| inode.stat)
            {
                Self::check_same_device(&tree, &stat, to.0)?;
            }
            (source, target)
        };
        name_change.cancel_unknown_uploads()?;
        let dirty = self.dirty_below(&source, &target);
        for (n, (entry, path)) in dirty.iter().enumerate() {
            if let Err(error) = entry.journal_rename(path) {
                for (entry, _) in dirty.iter().take(n) {
                    entry.journal_renamed(false);
                }
                return Err(error.into());
            }
        }
        let result = self.remote.rename(&source, &target, how);
        // If the outcome is unknown, the journal keeps both paths.
        let is_known = !matches!(&result, Err(error) if error.is_connection_loss() && !error.is_before_request());
        for (entry, _) in dirty.iter().filter(|_| is_known) {
            entry.journal_renamed(result.is_ok());
        }
        if !is_known && how != RenameHow::Exchange {
            self.tree.lock().add_unknown_rename(from, to);
        }
        let renamed = self.invalidate_if_unknown(result, &[from, to])?;
        let replaced = self.apply_rename(from, to, how, &renamed);
        if let Some(entry) = replaced {
            entry.abandon();
        }
        drop(name_change);
        Ok(())
    }

    /// Returns the dirty files at and below `source`, each with its path after a rename of `source`
    /// to `target`.
    fn dirty_below(
        &self,
        source: &RemotePath,
        target: &RemotePath,
    ) -> Vec<(Arc<Entry>, RemotePath)> {
        let tree = self.tree.lock();
        let dirty = tree.inodes().filter(|(_, inode)| inode.is_dirty());
        dirty
            .filter_map(|(ino, inode)| {
                let path = tree.current_or_last_path(ino)?;
                Some((inode.cloned_entry()?, path.after_rename(source, target)?))
            })
            .collect()
    }

    /// Applies a rename to the tree. Returns the cache entry of the replaced file if that has no
    /// name left.
    fn apply_rename(
        &self,
        from: (Ino, &Name),
        to: (Ino, &Name),
        how: RenameHow,
        renamed: &Renamed,
    ) -> Option<Arc<Entry>> {
        self.update_parent(from.0, renamed.from_parent);
        self.update_parent(to.0, renamed.to_parent);
        let at = self.clock.tick();
        let mut tree = self.tree.lock();
        if how == RenameHow::Exchange {
            // The next lookup of either asks the host.
            tree.forget_name(from.0, from.1, at);
            tree.forget_name(to.0, to.1, at);
            return None;
        }
        let replaced = tree.instantiate(to.0, to.1);
        let mut abandoned = None;
        let mut loss = Loss::Removed;
        if let Some(inode) = replaced.and_then(|ino| tree.get_mut(ino)) {
            if inode.links().len() <= 1 {
                (abandoned, loss) = loss_of_last_name(inode);
            }
            inode.stat.nlink = inode.stat.nlink.saturating_sub(1);
            inode.stat.ctime = inode.stat.ctime.map(|_| self.clock.wall());
            // Its other hard links, if any, are revalidated.
            inode.freshness.invalidate(at);
        }
        tree.rename(from, to, at, loss);
        let moved = tree.instantiate(to.0, to.1);
        let old = moved.and_then(|ino| tree.get(ino)).map(|inode| inode.stat);
        drop(tree);
        if let (Some(ino), Some(old), Some(stat)) = (moved, old, renamed.stat)
            && old.kind == stat.kind
        {
            self.apply_own_name_change(ino, &old, stat, at);
        }
        abandoned
    }

    /// Applies the attributes that a file has after this mount changed one of its names.
    fn apply_own_name_change(&self, ino: Ino, old: &Stat, stat: Stat, at: Tick) {
        let keeps_content = old.version().same_content(&stat.version());
        self.apply_own_change(ino, old, stat, at, keeps_content);
    }

    /// Returns an error for a rename or link across filesystems: `mv` on the host would copy
    /// instead, and `ln` would fail late.
    fn check_same_device(tree: &Tree, stat: &Stat, dir: Ino) -> Result<()> {
        let dir = tree.get(dir).ok_or(Error::UnknownInode)?;
        match (stat.id, dir.stat.id) {
            (Some(file), Some(dir)) if file.dev != dir.dev => Err(Error::CrossDevice),
            _ => Ok(()),
        }
    }
}

/// Returns how a file loses its last known name through a request of this mount. If `nlink` shows
/// no other hard link, also returns the cache entry to abandon.
fn loss_of_last_name(inode: &Inode) -> (Option<Arc<Entry>>, Loss) {
    if inode.stat.nlink > 1 && inode.dir.is_none() {
        (None, Loss::OtherLink)
    } else {
        (inode.cloned_entry(), Loss::Removed)
    }
}

/// Returns the inodes at and below `dir` for which `wanted` returns true.
fn inodes_below(tree: &Tree, dir: Ino, wanted: impl Fn(&Inode) -> bool) -> Vec<Ino> {
    let wanted = tree.inodes().filter(|(_, inode)| wanted(inode));
    wanted
        .map(|(ino, _)| ino)
        .filter(|&ino| tree.is_below(ino, dir))
        .collect()
}
