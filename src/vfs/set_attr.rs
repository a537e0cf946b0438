//! Changing attributes: on the host, or together with the next upload of the content.

use std::sync::Arc;

use crate::cache::Entry;
use crate::cache::ReuploadMark;
use crate::cache::UploadTarget as _;
use crate::clock::Tick;
use crate::remote;
use crate::remote::AttrChange;
use crate::remote::NewTime;
use crate::stat::FileKind;
use crate::stat::PERMISSIONS;
use crate::stat::Stat;
use crate::stat::Time;
use crate::vfs::Attr;
use crate::vfs::Context;
use crate::vfs::Error;
use crate::vfs::Fh;
use crate::vfs::Ino;
use crate::vfs::Result;
use crate::vfs::Vfs;
use crate::vfs::freshness::Freshness;
use crate::vfs::inode::Inode;

/// Attributes to be set; ids are those of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<NewTime>,
    pub mtime: Option<NewTime>,
}

/// The permission bits that a change of the owner clears.
const SET_ID_BITS: u32 = 0o6000;

impl Vfs {
    /// Changes attributes. A dirty file keeps those that an upload can set until it is uploaded.
    /// Blocks for the host.
    pub fn setattr(&self, cx: &Context, ino: Ino, fh: Option<Fh>, set: &SetAttr) -> Result<Attr> {
        self.check_writable()?;
        cx.may_wait()?;
        let mut set = *set;
        set.uid = set.uid.map(|uid| self.options.ids.uid_to_host(uid));
        set.gid = set.gid.map(|gid| self.options.ids.gid_to_host(gid));
        if let Some(size) = set.size {
            let cut = self.truncate_open(cx, ino, fh, size);
            let result = cut.and_then(|is_cut| {
                set.size = set.size.filter(|_| !is_cut);
                self.set_attrs(ino, set)
            });
            // Also if it failed: the journal may already say that the content is dirty.
            let uploaded = self.upload_unclosed(cx, ino, fh);
            result.and(uploaded)?;
            return self.attr_of(&self.tree.lock(), ino);
        }
        let Some((entry, mark)) = self.mark_for_reupload(cx, ino, &set)? else {
            let just_created = self.mark_if_just_created(cx, ino, &set)?;
            let result = self.set_attrs(ino, set);
            if let Some(entry) = just_created {
                // Its last writer may have been closed meanwhile.
                let uploaded = self.upload_unclosed(cx, ino, None);
                self.release_entry(ino, &entry);
                uploaded?;
            }
            result?;
            return self.attr_of(&self.tree.lock(), ino);
        };
        let mode = self.tree.lock().get(ino).map(|inode| inode.stat.mode);
        let result = self
            .set_attrs(ino, set)
            .and_then(|()| self.upload_closed(cx, ino, &entry));
        if result.is_err()
            && entry.unmark_for_upload(&mark)
            && let Some(mode) = mode
            && let Some(inode) = self.tree.lock().get_mut(ino)
        {
            inode.stat.mode = mode;
            inode.is_mode_dirty = false;
        }
        self.release_entry(ino, &entry);
        result?;
        let tree = self.tree.lock();
        self.attr_of(&tree, ino)
    }

    /// If the host can change mode and times of a file only by an upload, marks its content for
    /// another upload. The mark is in the journal, so that an upload that fails loses nothing.
    fn mark_for_reupload(
        &self,
        cx: &Context,
        ino: Ino,
        set: &SetAttr,
    ) -> Result<Option<(Arc<Entry>, ReuploadMark)>> {
        let Some(limit) = self.remote.facts().sets_by_upload else {
            return Ok(None);
        };
        let is_for_an_upload = set.size.is_none()
            && (set.uid, set.gid) == (None, None)
            && (set.mode.is_some() || set.atime.is_some() || set.mtime.is_some());
        if !is_for_an_upload {
            return Ok(None);
        }
        let mut tree = self.revalidate_attr(cx, ino)?;
        let inode = tree.get(ino).ok_or(Error::UnknownInode)?;
        let is_small = inode.stat.kind == FileKind::File && inode.stat.size <= limit;
        if !is_small || inode.is_dirty() || inode.links().is_empty() {
            return Ok(None);
        }
        let entry = self.open_entry(&mut tree, ino)?;
        drop(tree);
        let mark = self
            .fetch_if_missing(cx, ino, &entry)
            .and_then(|()| self.with_entry(cx, ino, &entry, || entry.mark_for_upload(cx.wait)));
        match mark {
            Ok(Some(mark)) => Ok(Some((entry, mark))),
            other => {
                self.release_entry(ino, &entry);
                other.map(|_| None)
            }
        }
    }

    /// Marks a file for an upload if it was just created here, and has no content yet: its mode is set
    /// when it is closed, together with its content. Only for more permissions, and for the owner that
    /// it has: anything else must be true on the host when the call returns.
    ///
    /// Returns the entry, with one more handle, if it marked the file.
    fn mark_if_just_created(
        &self,
        cx: &Context,
        ino: Ino,
        set: &SetAttr,
    ) -> Result<Option<Arc<Entry>>> {
        let entry = {
            let mut tree = self.tree.lock();
            let inode = tree.get(ino).ok_or(Error::UnknownInode)?;
            let stat = inode.stat;
            let keeps_owner = set.uid.is_none_or(|uid| uid == stat.uid)
                && set.gid.is_none_or(|gid| gid == stat.gid);
            let gives = set
                .mode
                .is_none_or(|mode| mode & stat.mode & PERMISSIONS == stat.mode);
            let is_for_mode = set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
            let is_wanted = is_for_mode && keeps_owner && gives;
            let is_just_created = inode.is_created_exclusively
                && inode.stat.size == 0
                && !inode.is_dirty()
                && !inode.links().is_empty()
                && self.handles.lock().is_open_for_writing(ino);
            if !is_wanted || !is_just_created || inode.entry.is_none() {
                return Ok(None);
            }
            // As a handle: the last close must not take the entry from the inode meanwhile.
            self.open_entry(&mut tree, ino)?
        };
        let marked = self.with_entry(cx, ino, &entry, || entry.mark_for_upload(cx.wait));
        if let Err(error) = marked {
            self.release_entry(ino, &entry);
            return Err(error);
        }
        Ok(Some(entry))
    }

    fn set_attrs(&self, ino: Ino, set: SetAttr) -> Result<()> {
        // A running upload would restore the attributes that it started with.
        let entry = self.tree.lock().get(ino).and_then(Inode::cloned_entry);
        let block = entry.as_ref().map(Entry::block_uploads);
        let change = self.defer_to_upload(ino, set)?;
        if let Some(entry) = entry.as_ref().filter(|entry| entry.is_dirty())
            && let Some(target) = self.upload_target(ino)?.target()
        {
            entry.journal_attrs(&target);
        }
        if change != AttrChange::default() {
            self.change_on_host(ino, &change)?;
        }
        drop(block);
        Ok(())
    }

    /// Uploads content that was truncated by path, with no handle whose close would upload it.
    fn upload_unclosed(&self, cx: &Context, ino: Ino, fh: Option<Fh>) -> Result<()> {
        if fh.is_some() || self.handles.lock().is_open_for_writing(ino) {
            return Ok(());
        }
        let entry = self.tree.lock().get(ino).and_then(Inode::cloned_entry);
        match entry {
            Some(entry) if entry.is_unclosed() => self.upload_closed(cx, ino, &entry),
            _ => Ok(()),
        }
    }

    /// Truncates the content in the cache; returns false if it is not open for writing.
    fn truncate_open(&self, cx: &Context, ino: Ino, fh: Option<Fh>, size: u64) -> Result<bool> {
        let entry = {
            let tree = self.tree.lock();
            let inode = tree.get(ino).ok_or(Error::UnknownInode)?;
            let Some(entry) = &inode.entry else {
                return Ok(false);
            };
            let is_written = fh.is_some() || inode.is_dirty();
            if !is_written && !self.handles.lock().is_open_for_writing(ino) {
                return Ok(false);
            }
            // As a handle: the last close must not take the entry from the inode meanwhile.
            entry.add_handle();
            Arc::clone(entry)
        };
        let result = self.with_entry(cx, ino, &entry, || match entry.truncate(size, cx.wait) {
            // The content is on the host only (see copy_file_range): truncate it there.
            Err(crate::cache::Error::NotFetched) => Ok(false),
            result => result.map(|()| true),
        });
        self.release_entry(ino, &entry);
        result
    }

    /// Applies attributes that the next upload sets anyway; returns those that the host must be
    /// asked to change now.
    fn defer_to_upload(&self, ino: Ino, set: SetAttr) -> Result<AttrChange> {
        let mut change = AttrChange {
            uid: set.uid,
            gid: set.gid,
            mode: set.mode.map(|mode| mode & PERMISSIONS),
            size: set.size,
            atime: set.atime,
            mtime: set.mtime,
            expect: None,
        };
        let now = self.clock.wall().truncate_to_micros();
        let mut tree = self.tree.lock();
        let login = self.login_user();
        let inode = tree.get_mut(ino).ok_or(Error::UnknownInode)?;
        if !inode.is_dirty() {
            return Ok(change);
        }
        let Some(entry) = inode.entry.clone() else {
            return Ok(change);
        };
        let at = |time: Option<NewTime>| {
            time.map(|time| match time {
                NewTime::Now => now,
                NewTime::At(time) => time,
            })
        };
        if entry.set_times(at(change.atime), at(change.mtime)) {
            (change.atime, change.mtime) = (None, None);
        }
        if (login.uid == 0 || login.uid == inode.stat.uid)
            && let Some(mode) = change.mode.take()
        {
            inode.stat.mode = mode;
            inode.is_mode_dirty = true;
        }
        let is_owner_kept = change.uid.is_none_or(|uid| uid == inode.stat.uid)
            && change.gid.is_none_or(|gid| gid == inode.stat.gid);
        if is_owner_kept && inode.stat.mode & SET_ID_BITS == 0 {
            // The upload changes the ctime, as this would.
            (change.uid, change.gid) = (None, None);
        }
        if entry.is_new() && (change.uid.is_some() || change.gid.is_some()) {
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

    fn change_on_host(&self, ino: Ino, change: &AttrChange) -> Result<()> {
        let (path, old, is_here) = {
            let tree = self.tree.lock();
            let inode = tree.get(ino).ok_or(Error::UnknownInode)?;
            let Some(path) = tree.path(ino) else {
                // Removed while open: the change is visible only here.
                drop(tree);
                return self.set_attr_of_unlinked(ino, change);
            };
            let is_here = inode.entry.is_some() || self.cache.has(&inode.stat.version());
            (path, inode.stat, is_here && !inode.is_dirty())
        };
        // Setting a time would hide that somebody else has changed the file since the content here
        // was fetched: the host compares versions first.
        let hides = change.mtime.is_some() && is_here && old.kind == FileKind::File;
        let expecting = AttrChange {
            expect: hides.then(|| old.version()),
            ..*change
        };
        let (stat, is_changed) = match self.remote.set_attr(&path, &expecting) {
            Err(remote::Error::Conflict { .. }) => (self.remote.set_attr(&path, change)?, true),
            result => (result?, false),
        };
        let at = self.clock.tick();
        let keeps_content = change.size.is_none()
            && !is_changed
            && (old.version().same_content(&stat.version())
                || (change.mtime.is_some() && old.size == stat.size && old.id == stat.id));
        self.apply_own_change(ino, &old, stat, at, keeps_content);
        Ok(())
    }

    /// Applies the attributes that a file has after a request of this mount. `keeps_content` is
    /// whether its content is still the one that the `old` attributes describe.
    pub(super) fn apply_own_change(
        &self,
        ino: Ino,
        old: &Stat,
        stat: Stat,
        at: Tick,
        keeps_content: bool,
    ) {
        let (was, is) = (old.version(), stat.version());
        let entry = self.tree.lock().get(ino).and_then(Inode::cloned_entry);
        let entry = entry.filter(|_| keeps_content);
        // This renames files of the cache, so the tree is not locked.
        let mut change = entry
            .as_ref()
            .map(|entry| entry.begin_version_change(&was, &is));
        if keeps_content && entry.as_ref().is_none_or(|entry| !entry.is_dirty()) {
            self.cache.change_version(&was, &is);
        }
        let mut tree = self.tree.lock();
        // In one step with the attributes: they are always of the version of the content.
        if let Some(change) = &mut change {
            change.apply();
        }
        if let Some(inode) = tree.get_mut(ino) {
            if inode.is_dirty() {
                // Size and times belong to the dirty content, and so does the mode if it was set
                // here.
                let mode = if inode.is_mode_dirty {
                    inode.stat.mode
                } else {
                    stat.mode
                };
                inode.stat = Stat { mode, ..stat };
                inode.freshness = Freshness::Asked(at);
                return;
            }
            if keeps_content && inode.page_cache_version == Some(was) {
                inode.page_cache_version = Some(is);
            }
        }
        tree.set_stat(ino, stat, at);
    }

    fn set_attr_of_unlinked(&self, ino: Ino, change: &AttrChange) -> Result<()> {
        let now: Time = self.clock.wall();
        let mut tree = self.tree.lock();
        let inode = tree.get_mut(ino).ok_or(Error::UnknownInode)?;
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
