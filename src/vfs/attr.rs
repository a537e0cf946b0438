//! Attributes: what is shown, and changing them.

use std::time::Duration;

use crate::cache;
use crate::cache::Whole;
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
use crate::vfs::permission::Who;
use crate::vfs::symlink;
use crate::vfs::symlink::Symlinks;
use crate::vfs::tree::Tree;
use crate::vfs::tree::TreeGuard;

/// Attributes as they are shown on this machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attr {
    /// The kernel's number for the inode.
    pub ino: Ino,
    /// The number that is shown.
    pub shown_ino: u64,
    pub stat: Stat,
    /// How long they may be taken for true.
    pub ttl: Duration,
}

impl Vfs {
    /// Returns the attributes of an inode.
    pub fn getattr(&self, cx: &Context, ino: Ino) -> Result<Attr> {
        let entry = Self::open_clean(&self.tree.lock(), ino);
        let Some(entry) = entry else {
            let tree = self.fresh_attr(cx, ino)?;
            return self.attr_of(&tree, ino);
        };
        let n_switches = entry.n_switches();
        self.take_fetched_stat(ino, &entry);
        let before = self.attr_of(&self.tree.lock(), ino)?;
        // This starts to fetch a newer version.
        self.attr_of(&*self.fresh_attr(cx, ino)?, ino)?;
        // Where it fails otherwise, the older version stays, with its attributes.
        if let Err(error @ cache::Error::WouldWait) =
            entry.wait_for_refresh(Whole::IfSmall, cx.wait)
        {
            return Err(error.into());
        }
        let attr = self.attr_of(&self.tree.lock(), ino)?;
        if entry.n_switches() == n_switches {
            return Ok(attr);
        }
        // The kernel was told meanwhile, and will not take this answer for the size of the file:
        // whoever asked must not see another.
        let ttl = Duration::ZERO;
        Ok(Attr { ttl, ..before })
    }

    /// Makes sure that the attributes of an inode are fresh and returns the tree with them.
    pub(super) fn fresh_attr(&self, cx: &Context, ino: Ino) -> Result<TreeGuard<'_>> {
        let since = self.clock.tick();
        let mut tree = self.tree.lock();
        for _ in 0..MAX_ROUNDS {
            let inode = tree.get(ino).ok_or(Error::UnknownInode)?;
            if self.is_fresh(inode.freshness, since) || inode.is_ours() {
                return Ok(tree);
            }
            let Some((parent, name)) = inode.links().first().cloned() else {
                if ino != Ino::ROOT {
                    // Removed, and open: nothing about it changes any more.
                    return Ok(tree);
                }
                cx.may_wait()?;
                tree = match self.ask_for_root(tree) {
                    Err(error) if self.is_away(&error) => return Ok(self.tree.lock()),
                    result => result?,
                };
                continue;
            };
            cx.may_wait()?;
            tree = match self.ask_for_name(cx, tree, parent, &name, since) {
                Err(error) if self.is_away(&error) => return Ok(self.tree.lock()),
                result => result?,
            };
            let is_bound = tree.get(ino).is_some_and(|inode| !inode.links().is_empty());
            if !is_bound {
                // It vanished from the host; those who have it open keep it.
                return if tree.get(ino).is_some_and(Inode::is_open) {
                    Ok(tree)
                } else {
                    Err(Error::NotFound)
                };
            }
        }
        Err(Error::Changing)
    }

    /// Asks for the attributes of the root: by a listing, which is what is wanted next, where
    /// that is not too much.
    fn ask_for_root<'a>(&'a self, mut tree: TreeGuard<'a>) -> Result<TreeGuard<'a>> {
        if tree.dir_mut(Ino::ROOT).is_some_and(|dir| dir.is_listing) {
            tree.wait(&self.listed);
            return Ok(tree);
        }
        let at = self.clock.tick();
        let path = RemotePath::root();
        if self.should_list(&mut tree, Ino::ROOT, at) {
            drop(tree);
            return self.ask_for_listing(Ino::ROOT, &path, at);
        }
        drop(tree);
        let root = self.remote.stat(&path)?;
        let mut tree = self.tree.lock();
        tree.absorb(Ino::ROOT, root, at);
        Ok(tree)
    }

    /// The number that is shown: the one by which the kernel knows the inode, which is the host's
    /// for all but files that were made here. It stays the same while the file on the host is
    /// replaced by each upload: sqlite, for one, takes a file whose number changes for another.
    pub(super) fn shown_ino(inode: &Inode, ino: Ino) -> u64 {
        match inode.stat.id {
            Some(id) if ino == Ino::ROOT => id.ino,
            _ => ino.0,
        }
    }

    /// Puts together what is shown of an inode.
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
            // It changes once more when the host gets it.
            ttl = Duration::ZERO;
        } else if let Some(version) = self.older_content(tree, ino, inode) {
            // Attributes and content that are shown are of one version at any moment.
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

    /// Returns what a link is shown to say, if the host has told what it says.
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
                // The kernel does not say under which of its names a link is followed: what is
                // shown must stay inside for each of them.
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

    /// Returns what a symlink says, as it is shown on this machine.
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

    /// Checks `access(2)`'s mask for the login user of the host, who does everything there.
    pub fn access(&self, cx: &Context, ino: Ino, mask: u32) -> Result<()> {
        if mask & permission::WRITE != 0 {
            self.check_writable()?;
        }
        let tree = self.fresh_attr(cx, ino)?;
        let stat = tree.get(ino).ok_or(Error::UnknownInode)?.stat;
        if permission::permits(&stat, &self.login(), mask) {
            Ok(())
        } else {
            Err(Error::AccessDenied)
        }
    }

    /// The user who does everything on the host.
    pub(super) fn login(&self) -> Who {
        let facts = self.remote.facts();
        Who {
            uid: facts.uid,
            gid: facts.gid,
            groups: facts.groups.clone(),
        }
    }
}
