//! Attributes: what is shown, and changing them.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::Claim;
use crate::cache::Entry;
use crate::cache::Whereto as _;
use crate::clock::Tick;
use crate::path::RemotePath;
use crate::remote::AttrChange;
use crate::remote::NewTime;
use crate::stat::FileKind;
use crate::stat::PERMISSIONS;
use crate::stat::Stat;
use crate::stat::Time;
use crate::sync::MutexGuard;
use crate::vfs::Context;
use crate::vfs::Error;
use crate::vfs::Fh;
use crate::vfs::Ino;
use crate::vfs::MAX_ROUNDS;
use crate::vfs::Result;
use crate::vfs::Vfs;
use crate::vfs::inode::Inode;
use crate::vfs::inode::Listed;
use crate::vfs::names::entry_of;
use crate::vfs::permission;
use crate::vfs::permission::Who;
use crate::vfs::symlink;
use crate::vfs::symlink::Symlinks;
use crate::vfs::tree::Tree;

/// What the host said not longer ago is taken for true even where a change would not show later.
const JUST_NOW: Duration = Duration::from_secs(1);

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

/// Attributes to be set, with ids of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<NewTime>,
    pub mtime: Option<NewTime>,
}

impl Vfs {
    /// Returns the attributes of an inode.
    pub fn getattr(&self, cx: &Context, ino: Ino) -> Result<Attr> {
        let tree = self.fresh_attr(cx, ino)?;
        self.attr_of(&tree, ino)
    }

    /// Makes sure that the attributes of an inode are fresh and returns the tree with them.
    pub(super) fn fresh_attr(&self, cx: &Context, ino: Ino) -> Result<MutexGuard<'_, Tree>> {
        let since = self.clock.tick();
        let mut tree = self.tree.lock();
        for _ in 0..MAX_ROUNDS {
            let inode = tree.get(ino).ok_or(Error::Stale)?;
            if self.is_fresh(inode.stat_at, since) || inode.is_ours() {
                return Ok(tree);
            }
            let Some((parent, name)) = inode.links.first().cloned() else {
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
            tree = match self.ask_for_name(tree, parent, &name, since) {
                Err(error) if self.is_away(&error) => return Ok(self.tree.lock()),
                result => result?,
            };
            let is_bound = tree.get(ino).is_some_and(|inode| !inode.links.is_empty());
            if !is_bound {
                // It vanished from the host; those who have it open keep it.
                return if tree.get(ino).is_some_and(Inode::is_open) {
                    Ok(tree)
                } else {
                    Err(Error::NotFound)
                };
            }
        }
        Err(Error::Stale)
    }

    /// Asks for the attributes of the root: by a listing, which is what is wanted next, where
    /// that is not too much.
    fn ask_for_root<'a>(&'a self, mut tree: MutexGuard<'a, Tree>) -> Result<MutexGuard<'a, Tree>> {
        if tree.dir_mut(Ino::ROOT).is_some_and(|dir| dir.is_listing) {
            self.listed.wait(&mut tree);
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
    /// replaced by each store: sqlite, for one, takes a file whose number changes for another.
    pub(super) fn shown_ino(inode: &Inode, ino: Ino) -> u64 {
        match inode.stat.id {
            Some(id) if ino == Ino::ROOT => id.ino,
            _ => ino.0,
        }
    }

    /// Puts together what is shown of an inode.
    pub(super) fn attr_of(&self, tree: &Tree, ino: Ino) -> Result<Attr> {
        let inode = tree.get(ino).ok_or(Error::Stale)?;
        let mut stat = inode.stat;
        let mut ttl = self.ttl_left(inode.stat_at);
        if let Some(open) = &inode.open
            && let Some(local) = open.entry.local()
        {
            stat.size = local.size;
            stat.blocks = local.size.div_ceil(512);
            stat.mtime = local.mtime;
            stat.atime = local.atime.unwrap_or(stat.atime);
            stat.ctime = stat.ctime.map(|ctime| ctime.max(local.ctime));
            // It changes once more when the host gets it.
            ttl = Duration::ZERO;
        } else if let Some((host, shown)) = inode.ctime
            && stat.ctime == Some(host)
        {
            stat.ctime = Some(shown);
        }
        if inode.links.is_empty() && ino != Ino::ROOT {
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
                let links = tree.get(ino).map_or(&[][..], |inode| &inode.links[..]);
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
        let inode = tree.get(ino).ok_or(Error::Stale)?;
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
        self.shown_target(&tree, ino)?.ok_or(Error::Stale)
    }

    /// Checks `access(2)`'s mask for the login user of the host, who does everything there.
    pub fn access(&self, cx: &Context, ino: Ino, mask: u32) -> Result<()> {
        if mask & permission::WRITE != 0 {
            self.check_writable()?;
        }
        let tree = self.fresh_attr(cx, ino)?;
        let stat = tree.get(ino).ok_or(Error::Stale)?.stat;
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

    /// Changes attributes. A file that is not yet stored keeps them until it is.
    pub fn setattr(&self, cx: &Context, ino: Ino, fh: Option<Fh>, set: &SetAttr) -> Result<Attr> {
        self.check_writable()?;
        cx.may_wait()?;
        let mut set = *set;
        set.uid = set.uid.map(|uid| self.options.ids.uid_to_host(uid));
        set.gid = set.gid.map(|gid| self.options.ids.gid_to_host(gid));
        let mut is_cut_here = false;
        if let Some(size) = set.size
            && self.truncate_open(cx, ino, fh, size)?
        {
            set.size = None;
            is_cut_here = true;
        }
        let Some((entry, claim)) = self.claim_for_attrs(cx, ino, &set)? else {
            return self.set_attrs(cx, ino, fh, set, is_cut_here);
        };
        let mode = self.tree.lock().get(ino).map(|inode| inode.stat.mode);
        let result = self
            .set_attrs(cx, ino, fh, set, is_cut_here)
            .and_then(|_| self.store_closed(cx, ino, &entry));
        if result.is_err()
            && entry.unclaim(&claim)
            && let Some(mode) = mode
            && let Some(inode) = self.tree.lock().get_mut(ino)
        {
            inode.stat.mode = mode;
        }
        self.release_entry(ino, &entry);
        result?;
        let tree = self.tree.lock();
        self.attr_of(&tree, ino)
    }

    /// Where mode and times of a file go with its content alone, has that stored again. It is in the
    /// journal then, so that a store that breaks off loses nothing.
    fn claim_for_attrs(
        &self,
        cx: &Context,
        ino: Ino,
        set: &SetAttr,
    ) -> Result<Option<(Arc<Entry>, Claim)>> {
        let Some(limit) = self.remote.facts().sets_by_store else {
            return Ok(None);
        };
        let is_for_a_store = set.size.is_none()
            && (set.uid, set.gid) == (None, None)
            && (set.mode.is_some() || set.atime.is_some() || set.mtime.is_some());
        if !is_for_a_store {
            return Ok(None);
        }
        let mut tree = self.fresh_attr(cx, ino)?;
        let inode = tree.get(ino).ok_or(Error::Stale)?;
        let is_small = inode.stat.kind == FileKind::File && inode.stat.size <= limit;
        if !is_small || inode.is_ours() || inode.links.is_empty() {
            return Ok(None);
        }
        let entry = self.open_entry(&mut tree, ino)?;
        drop(tree);
        entry.retain();
        let claim = self
            .fill(cx, ino, &entry)
            .and_then(|()| self.with_entry(cx, ino, &entry, || entry.claim(cx.wait)));
        match claim {
            Ok(Some(claim)) => Ok(Some((entry, claim))),
            other => {
                self.release_entry(ino, &entry);
                other.map(|_| None)
            }
        }
    }

    fn set_attrs(
        &self,
        cx: &Context,
        ino: Ino,
        fh: Option<Fh>,
        set: SetAttr,
        is_cut_here: bool,
    ) -> Result<Attr> {
        // What a store under way has read of the file, it would put back.
        let entry = self.tree.lock().get(ino).and_then(entry_of);
        let hold = entry.as_ref().map(Entry::hold);
        let change = self.fold(ino, set)?;
        if let Some(entry) = entry.as_ref().filter(|entry| entry.is_dirty())
            && let Some(target) = self.store_place(ino)?.target()
        {
            entry.restate(&target);
        }
        if change != AttrChange::default() {
            self.change_on_host(ino, &change)?;
        }
        drop(hold);
        let is_open = self.handles.lock().is_open_for_writing(ino);
        if is_cut_here
            && fh.is_none()
            && !is_open
            && let Some(entry) = &entry
        {
            // Nobody is going to close it.
            self.store_closed(cx, ino, entry)?;
        }
        let tree = self.tree.lock();
        self.attr_of(&tree, ino)
    }

    /// Cuts the content that is open here; false if it is not open for writing.
    fn truncate_open(&self, cx: &Context, ino: Ino, fh: Option<Fh>, size: u64) -> Result<bool> {
        let entry = {
            let tree = self.tree.lock();
            let inode = tree.get(ino).ok_or(Error::Stale)?;
            let Some(open) = &inode.open else {
                return Ok(false);
            };
            let is_written = fh.is_some() || inode.is_ours();
            if !is_written && !self.handles.lock().is_open_for_writing(ino) {
                return Ok(false);
            }
            Arc::clone(&open.entry)
        };
        self.with_entry(cx, ino, &entry, || match entry.truncate(size, cx.wait) {
            // A copy on the host: it can cut that as well.
            Err(crate::cache::Error::NotHere) => Ok(false),
            result => result.map(|()| true),
        })
    }

    /// Keeps what the next store will say anyway; returns what the host must be told now.
    fn fold(&self, ino: Ino, set: SetAttr) -> Result<AttrChange> {
        let mut change = AttrChange {
            uid: set.uid,
            gid: set.gid,
            mode: set.mode.map(|mode| mode & PERMISSIONS),
            size: set.size,
            atime: set.atime,
            mtime: set.mtime,
        };
        let now = self.clock.wall().to_micros();
        let mut tree = self.tree.lock();
        let login = self.login();
        let inode = tree.get_mut(ino).ok_or(Error::Stale)?;
        if !inode.is_ours() {
            return Ok(change);
        }
        let Some(open) = &inode.open else {
            return Ok(change);
        };
        let at = |time: Option<NewTime>| {
            time.map(|time| match time {
                NewTime::Now => now,
                NewTime::At(time) => time,
            })
        };
        if open.entry.set_times(at(change.atime), at(change.mtime)) {
            (change.atime, change.mtime) = (None, None);
        }
        if login.uid == 0 || login.uid == inode.stat.uid {
            inode.stat.mode = change.mode.take().unwrap_or(inode.stat.mode);
        }
        if open.is_born && (change.uid.is_some() || change.gid.is_some()) {
            let uid = change.uid.unwrap_or(inode.stat.uid);
            let gid = change.gid.unwrap_or(inode.stat.gid);
            let may = login.uid == 0
                || (uid == inode.stat.uid
                    && (gid == inode.stat.gid || gid == login.gid || login.groups.contains(&gid)));
            if !may {
                return Err(Error::NotPermitted);
            }
            (inode.stat.uid, inode.stat.gid) = (uid, gid);
            (change.uid, change.gid) = (None, None);
        }
        Ok(change)
    }

    /// Looks whether the content that is here is still the host's, before its time is set: afterwards
    /// nothing would show what others have written meanwhile.
    fn look_at_content(&self, ino: Ino) -> Result<()> {
        let (parent, name, path) = {
            let tree = self.tree.lock();
            let inode = tree.get(ino).ok_or(Error::Stale)?;
            let is_here = inode.open.is_some() || self.cache.has(&inode.stat.version());
            let age = self.clock.tick().saturating_sub(inode.stat_at);
            if !is_here || inode.is_ours() || age < JUST_NOW {
                return Ok(());
            }
            let Some((parent, name)) = inode.links.first().cloned() else {
                return Ok(());
            };
            let path = tree.path(parent).ok_or(Error::NotFound)?.join(&name);
            (parent, name, path)
        };
        let at = self.clock.tick();
        let stat = self.remote.stat(&path)?;
        let listed = Listed {
            kind: stat.kind,
            stat: Some(stat),
            target: None,
        };
        self.tree.lock().learn(parent, &name, Some(listed), at);
        Ok(())
    }

    fn change_on_host(&self, ino: Ino, change: &AttrChange) -> Result<()> {
        if change.mtime.is_some() {
            self.look_at_content(ino)?;
        }
        let (path, old) = {
            let tree = self.tree.lock();
            let inode = tree.get(ino).ok_or(Error::Stale)?;
            let Some(path) = tree.path(ino) else {
                // Removed and still open: nobody can ever see the difference but the opener.
                drop(tree);
                return self.change_removed(ino, change);
            };
            (path, inode.stat)
        };
        let stat = self.remote.set_attr(&path, change)?;
        let at = self.clock.tick();
        let keeps_content = change.size.is_none()
            && (old.version().same_content(&stat.version())
                || (change.mtime.is_some() && old.size == stat.size && old.id == stat.id));
        self.changed_by_us(ino, &old, stat, at, keeps_content);
        Ok(())
    }

    /// Takes attributes that an operation of ours left a file with, and whether its content is still
    /// that of the old ones.
    pub(super) fn changed_by_us(
        &self,
        ino: Ino,
        old: &Stat,
        stat: Stat,
        at: Tick,
        keeps_content: bool,
    ) {
        let mut tree = self.tree.lock();
        let (was, is) = (old.version(), stat.version());
        if let Some(inode) = tree.get_mut(ino) {
            if let Some(open) = &inode.open {
                if keeps_content {
                    open.entry.revise(&was, &is);
                }
                if open.entry.is_dirty() {
                    // Content, size and times are ours; the rest is the host's.
                    inode.stat = Stat {
                        mode: inode.stat.mode,
                        ..stat
                    };
                    inode.stat_at = at;
                    return;
                }
            }
            if keeps_content && inode.pages_of == Some(was) {
                inode.pages_of = Some(is);
            }
        }
        if keeps_content {
            self.cache.revise(&was, &is);
        }
        tree.set_stat(ino, stat, at);
    }

    fn change_removed(&self, ino: Ino, change: &AttrChange) -> Result<()> {
        let now: Time = self.clock.wall();
        let mut tree = self.tree.lock();
        let inode = tree.get_mut(ino).ok_or(Error::Stale)?;
        let stat = &mut inode.stat;
        stat.mode = change.mode.unwrap_or(stat.mode);
        stat.uid = change.uid.unwrap_or(stat.uid);
        stat.gid = change.gid.unwrap_or(stat.gid);
        for (time, new) in [
            (&mut stat.atime, change.atime),
            (&mut stat.mtime, change.mtime),
        ] {
            match new {
                None => {}
                Some(NewTime::Now) => *time = now,
                Some(NewTime::At(at)) => *time = at,
            }
        }
        stat.ctime = stat.ctime.map(|_| now);
        Ok(())
    }
}
