//! Attributes: which are reported, and when they are revalidated; symlink targets and access
//! checks.

use std::time::Duration;

use crate::cache;
use crate::cache::RefreshWait;
use crate::path::RemotePath;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::vfs::Context;
use crate::vfs::Error;
use crate::vfs::Ino;
use crate::vfs::MAX_ROUNDS;
use crate::vfs::Result;
use crate::vfs::Vfs;
use crate::vfs::inode::Inode;
use crate::vfs::permission;
use crate::vfs::permission::User;
use crate::vfs::symlink;
use crate::vfs::symlink::Symlinks;
use crate::vfs::tree::Tree;
use crate::vfs::tree::TreeGuard;

/// Attributes as they are reported on this machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attr {
    /// The kernel's number for the inode.
    pub ino: Ino,
    /// The inode number that programs see.
    pub shown_ino: u64,
    pub stat: Stat,
    /// How long the kernel may cache them.
    pub ttl: Duration,
}

impl Vfs {
    /// Returns the attributes of an inode. May block for the host.
    pub fn getattr(&self, cx: &Context, ino: Ino) -> Result<Attr> {
        let entry = Self::open_clean(&self.tree.lock(), ino);
        let Some(entry) = entry else {
            let tree = self.revalidate_attr(cx, ino)?;
            return self.attr_of(&tree, ino);
        };
        let n_replacements = entry.n_replacements();
        self.take_fetched_stat(ino, &entry);
        let before = self.attr_of(&self.tree.lock(), ino)?;
        // This starts to fetch a newer version, if there is one.
        self.attr_of(&*self.revalidate_attr(cx, ino)?, ino)?;
        // If the fetch fails, the older version stays, with its attributes.
        if let Err(error @ cache::Error::WouldWait) =
            entry.wait_for_refresh(RefreshWait::IfSmall, cx.wait)
        {
            return Err(error.into());
        }
        let attr = self.attr_of(&self.tree.lock(), ino)?;
        if entry.n_replacements() == n_replacements {
            return Ok(attr);
        }
        // The attributes were invalidated in the kernel meanwhile, and it does not take this answer
        // as the size of the file. The caller must see the version from when it asked.
        let ttl = Duration::ZERO;
        Ok(Attr { ttl, ..before })
    }

    /// Revalidates the attributes of an inode if they are stale; returns the locked tree.
    pub(super) fn revalidate_attr(&self, cx: &Context, ino: Ino) -> Result<TreeGuard<'_>> {
        let since = self.clock.tick();
        let mut tree = self.tree.lock();
        for _ in 0..MAX_ROUNDS {
            let inode = tree.get(ino).ok_or(Error::UnknownInode)?;
            if self.is_fresh(inode.freshness, since) || inode.is_dirty() {
                return Ok(tree);
            }
            let Some((parent, name)) = inode.links().first().cloned() else {
                if ino != Ino::ROOT {
                    // Removed while open: its attributes do not change any more.
                    return Ok(tree);
                }
                cx.may_wait()?;
                tree = match self.revalidate_root(tree) {
                    Err(error) if self.may_use_stale(&error) => return Ok(self.tree.lock()),
                    result => result?,
                };
                continue;
            };
            cx.may_wait()?;
            tree = match self.revalidate_name(cx, tree, parent, &name, since) {
                Err(error) if self.may_use_stale(&error) => return Ok(self.tree.lock()),
                result => result?,
            };
            let is_bound = tree.get(ino).is_some_and(|inode| !inode.links().is_empty());
            if !is_bound {
                // It was removed on the host. Open handles keep it.
                return if tree.get(ino).is_some_and(Inode::is_open) {
                    Ok(tree)
                } else {
                    Err(Error::NotFound)
                };
            }
        }
        Err(Error::Changing)
    }

    /// Revalidates the attributes of the root. Lists it if that is cheap, because a listing is
    /// usually needed next.
    fn revalidate_root<'a>(&'a self, mut tree: TreeGuard<'a>) -> Result<TreeGuard<'a>> {
        if tree.dir_mut(Ino::ROOT).is_some_and(|dir| dir.is_listing) {
            tree.wait(&self.tree_changed);
            return Ok(tree);
        }
        let at = self.clock.tick();
        let path = RemotePath::root();
        if self.begin_listing_if_cheap(&mut tree, Ino::ROOT, at) {
            drop(tree);
            return self.list_for_lookup(Ino::ROOT, &path, at);
        }
        drop(tree);
        let root = self.remote.stat(&path)?;
        let mut tree = self.tree.lock();
        tree.apply_stat(Ino::ROOT, root, at);
        Ok(tree)
    }

    /// Returns the inode number that programs see: the number that the kernel uses. It is that of
    /// the host, except for files that were created here. It does not change when an upload
    /// replaces the file on the host: sqlite, for example, treats a changed inode number as a
    /// different file.
    pub(super) fn shown_ino(inode: &Inode, ino: Ino) -> u64 {
        match inode.stat.id {
            Some(id) if ino == Ino::ROOT => id.ino,
            _ => ino.0,
        }
    }

    /// Returns the attributes of an inode as they are reported.
    pub(super) fn attr_of(&self, tree: &Tree, ino: Ino) -> Result<Attr> {
        let inode = tree.get(ino).ok_or(Error::UnknownInode)?;
        let mut stat = inode.stat;
        let mut ttl = self.ttl_left(inode.freshness);
        if let Some(entry) = &inode.entry
            && let Some(local) = entry.local()
        {
            stat.size = local.size;
            stat.blocks = local.size.div_ceil(512);
            stat.mtime = local.mtime;
            stat.atime = local.atime.unwrap_or(stat.atime);
            stat.ctime = stat.ctime.map(|ctime| ctime.max(local.ctime));
            // The upload changes the attributes once more.
            ttl = Duration::ZERO;
        } else if let Some(version) = self.older_version(tree, ino, inode) {
            // Attributes and content that programs see are of the same version at any time.
            stat.size = version.size;
            stat.blocks = version.size.div_ceil(512);
            stat.mtime = version.mtime;
            stat.ctime = version.ctime.or(stat.ctime);
            ttl = Duration::ZERO;
        } else if let Some((host, shown)) = inode.ctime
            && stat.ctime == Some(host)
        {
            stat.ctime = Some(shown);
        }
        if inode.links().is_empty() && ino != Ino::ROOT {
            stat.nlink = if stat.kind == FileKind::Directory {
                0
            } else {
                stat.nlink
            };
        }
        if stat.kind == FileKind::Symlink
            && let Ok(Some(target)) = self.shown_target(tree, ino)
        {
            stat.size = target.len() as u64;
        }
        let shown_ino = Self::shown_ino(inode, ino);
        let ids = &self.options.ids;
        stat.uid = ids.uid_to_local(stat.uid);
        stat.gid = ids.gid_to_local(stat.gid);
        stat.mode &= !self.options.umask;
        Ok(Attr {
            ino,
            shown_ino,
            stat,
            ttl,
        })
    }

    /// Returns the target of a symlink as it is reported, or `None` if it is not known yet.
    fn shown_target(&self, tree: &Tree, ino: Ino) -> Result<Option<Vec<u8>>> {
        let Some(target) = tree.get(ino).and_then(|inode| inode.target.as_deref()) else {
            return Ok(None);
        };
        match self.options.symlinks {
            Symlinks::AsIs => Ok(Some(target.to_vec())),
            Symlinks::Contain => {
                let root = &self.remote.facts().root;
                let shown_in = |dir: &RemotePath| {
                    symlink::contain(target, dir, root, &self.options.mountpoint)
                };
                // The kernel does not tell through which of its names a symlink is followed: the
                // reported target must stay inside of the mount for each of them.
                let links = tree.get(ino).map_or(&[][..], Inode::links);
                let mut dirs = links.iter().filter_map(|(parent, _)| tree.path(*parent));
                let shown = shown_in(&dirs.next().unwrap_or_default());
                let is_same = dirs.all(|dir| shown_in(&dir) == shown);
                shown
                    .filter(|_| is_same)
                    .map(Some)
                    .ok_or(Error::LeadsOutside)
            }
        }
    }

    /// Returns the target of a symlink, as it is reported on this machine. May block for the host.
    pub fn readlink(&self, cx: &Context, ino: Ino) -> Result<Vec<u8>> {
        let tree = self.tree.lock();
        let inode = tree.get(ino).ok_or(Error::UnknownInode)?;
        if inode.stat.kind != FileKind::Symlink {
            return Err(Error::InvalidArgument);
        }
        if let Some(target) = self.shown_target(&tree, ino)? {
            return Ok(target);
        }
        cx.may_wait()?;
        let path = tree.path(ino).ok_or(Error::NotFound)?;
        drop(tree);
        let target = self.remote.read_link(&path)?;
        let mut tree = self.tree.lock();
        if let Some(inode) = tree.get_mut(ino) {
            inode.target = Some(target.into());
        }
        self.shown_target(&tree, ino)?.ok_or(Error::UnknownInode)
    }

    /// Checks the mask of `access(2)` for the login user, with whose permissions all requests are
    /// carried out.
    pub fn access(&self, cx: &Context, ino: Ino, mask: u32) -> Result<()> {
        if mask & permission::WRITE != 0 {
            self.check_writable()?;
        }
        let tree = self.revalidate_attr(cx, ino)?;
        let stat = tree.get(ino).ok_or(Error::UnknownInode)?.stat;
        if permission::permits(&stat, &self.login_user(), mask) {
            Ok(())
        } else {
            Err(Error::AccessDenied)
        }
    }

    /// Returns the login user.
    pub(super) fn login_user(&self) -> User {
        let facts = self.remote.facts();
        User {
            uid: facts.uid,
            gid: facts.gid,
            groups: facts.groups.clone(),
        }
    }
}
