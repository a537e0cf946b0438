//! Open files: opening, reading, writing, closing. `upload` has what closing does for the host.

use std::sync::Arc;

use crate::cache;
use crate::cache::Entry;
use crate::cache::UploadTarget as _;
use crate::cache::Wait;
use crate::path::Name;
use crate::path::RemotePath;
use crate::remote::Changed;
use crate::remote::Owner;
use crate::stat::DeviceNumber;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::vfs::Attr;
use crate::vfs::Change;
use crate::vfs::Context;
use crate::vfs::Error;
use crate::vfs::Fh;
use crate::vfs::Ino;
use crate::vfs::MAX_ROUNDS;
use crate::vfs::OpenFlags;
use crate::vfs::Result;
use crate::vfs::Vfs;
use crate::vfs::freshness::Freshness;
use crate::vfs::handle::FileHandle;
use crate::vfs::inode::Home;
use crate::vfs::inode::Inode;
use crate::vfs::permission;
use crate::vfs::tree::Scope;
use crate::vfs::tree::Tree;
use crate::vfs::tree::TreeGuard;

/// The longest path of Linux, without the NUL at its end.
pub(super) const PATH_MAX: usize = 4095;

/// An open file, and what the kernel is to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    pub fh: Fh,
    /// Whether the pages that the kernel has are those of this content.
    pub keeps_pages: bool,
    /// Whether the kernel is to keep no pages at all, because the size says nothing.
    pub is_unsized: bool,
}

impl Vfs {
    /// Opens a file; fetches its content if this machine has not got the host's version of it.
    pub fn open(&self, cx: &Context, ino: Ino, flags: OpenFlags) -> Result<Opened> {
        if flags.writes || flags.truncates {
            self.check_writable()?;
        }
        let (entry, version) = {
            let mut tree = self.tree.lock();
            let inode = tree.get(ino).ok_or(Error::UnknownInode)?;
            match inode.stat.kind {
                FileKind::File => {}
                FileKind::Directory => return Err(Error::IsADirectory),
                _ => return Err(Error::NotSupported),
            }
            if inode.links().is_empty() && !inode.is_open() {
                // The kernel goes by what it was told before the name was found to be gone: what
                // is written would go nowhere. It looks the name up again, and makes the file.
                return Err(Error::Stale);
            }
            let knows_content = inode.entry.is_some() || self.cache.has(&inode.stat.version());
            // Content that must be fetched anyway comes with fresh attributes.
            if knows_content && !flags.truncates {
                drop(tree);
                tree = self.fresh_attr(cx, ino)?;
            }
            let login = self.login();
            let inode = tree.get(ino).ok_or(Error::UnknownInode)?;
            let version = inode.stat.version();
            let changes = flags.writes || flags.truncates;
            if changes && !permission::permits(&inode.stat, &login, permission::WRITE) {
                return Err(Error::AccessDenied);
            }
            let is_here = inode.entry.is_some() || self.cache.has(&version) || flags.truncates;
            let reads_here = flags.reads && is_here;
            if reads_here && !permission::permits(&inode.stat, &login, permission::READ) {
                tree = self.check_readable(cx, tree, ino)?;
            }
            (self.open_entry(&mut tree, ino)?, version)
        };
        let result = if flags.truncates {
            let target = self.upload_place(ino)?.target();
            let keeps_old = target.is_some_and(|target| entry.is_in_place(&target));
            self.with_entry(cx, ino, &entry, || {
                entry.replace(version, keeps_old, cx.wait)
            })
        } else {
            // The host says with the content that a file cannot be written, whatever its mode.
            self.fill(cx, ino, &entry)
                .and_then(|()| match flags.writes && !entry.may_write() {
                    true => Err(Error::NotPermitted),
                    false => Ok(()),
                })
        };
        if let Err(error) = result {
            self.release_entry(ino, &entry);
            return Err(error);
        }
        if !flags.truncates {
            self.cache.count_open();
        }
        let keeps_pages = self.take_pages(ino, &entry);
        if !keeps_pages && !flags.truncates {
            // The kernel clamps reads to its cached i_size, which may belong to an older version:
            // invalidate its attributes.
            self.notify(Change::Attributes(ino));
        }
        let is_unsized = entry.content_version().is_some_and(|it| it.is_unsized);
        let conflict_epoch = entry.conflict_epoch();
        // Truncating changes the file, whatever else may be done with the descriptor.
        let flags = OpenFlags {
            writes: flags.writes || flags.truncates,
            ..flags
        };
        let handle = FileHandle {
            ino,
            entry,
            flags,
            conflict_epoch,
        };
        let fh = self.handles.lock().add_file(handle);
        Ok(Opened {
            fh,
            keeps_pages: keeps_pages && !flags.truncates,
            is_unsized,
        })
    }

    /// Checks whether a file may be read whose mode bits say no. Where its content is here, nothing
    /// else would ask; ACLs may say yes, which only the host knows. Lets go of the tree while it asks.
    fn check_readable<'a>(
        &'a self,
        cx: &Context,
        tree: TreeGuard<'a>,
        ino: Ino,
    ) -> Result<TreeGuard<'a>> {
        let inode = tree.get(ino).ok_or(Error::UnknownInode)?;
        let is_on_host = !inode.is_new();
        let path = tree.path(ino).filter(|_| is_on_host);
        // Nobody but us has it: what is not ours to read is nobody's to ask.
        let path = path.ok_or(Error::AccessDenied)?;
        cx.may_wait()?;
        drop(tree);
        self.remote.check_readable(&path)?;
        Ok(self.tree.lock())
    }

    /// Returns the entry of an inode, made if need be, with one more handle.
    pub(super) fn open_entry(&self, tree: &mut Tree, ino: Ino) -> Result<Arc<Entry>> {
        let inode = tree.get_mut(ino).ok_or(Error::UnknownInode)?;
        if let Some(entry) = &inode.entry {
            entry.add_handle();
            return Ok(Arc::clone(entry));
        }
        let entry = self.cache.entry(inode.stat.version());
        entry.add_handle();
        inode.entry = Some(Arc::clone(&entry));
        self.hold_if_moving(tree, ino, &entry);
        Ok(entry)
    }

    /// Brings the content of an entry here, or starts to.
    pub(super) fn fill(&self, cx: &Context, ino: Ino, entry: &Arc<Entry>) -> Result<()> {
        let (path, version) = {
            let tree = self.tree.lock();
            let inode = tree.get(ino).ok_or(Error::UnknownInode)?;
            match tree.path(ino) {
                Some(path) => (path, inode.stat.version()),
                // Removed, and open by somebody else: what is here is all there is.
                None => return Ok(()),
            }
        };
        match entry.open(&path, version, cx.wait) {
            Err(cache::Error::Outdated) => self.refresh_and_wait(cx, ino, entry),
            result => {
                result?;
                self.take_fetched_stat(ino, entry);
                Ok(())
            }
        }
    }

    /// Takes the attributes that came with content.
    pub(super) fn take_fetched_stat(&self, ino: Ino, entry: &Entry) {
        let Some((stat, at)) = entry.take_fetched_stat() else {
            return;
        };
        let mut tree = self.tree.lock();
        let is_news = tree
            .get(ino)
            .is_some_and(|inode| inode.stat.version() != stat.version());
        tree.absorb(ino, stat, at);
        drop(tree);
        if is_news {
            // The kernel would cut what is read at the size it was told before.
            self.notify(Change::Attributes(ino));
        }
    }

    /// Whether the kernel's pages are those of this content; they will be from now on.
    fn take_pages(&self, ino: Ino, entry: &Entry) -> bool {
        let mut tree = self.tree.lock();
        let Some(inode) = tree.get_mut(ino) else {
            return false;
        };
        match entry.version() {
            Some(version) => inode.pages_of.replace(version) == Some(version),
            // Our own content: whatever the kernel has, it has from the same writes.
            None => entry.is_dirty() && entry.n_handles() > 1,
        }
    }

    /// Creates a file and opens it. Unless it must be exclusive, the host hears of it when it is
    /// uploaded.
    pub fn create(
        &self,
        cx: &Context,
        parent: Ino,
        name: &[u8],
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        self.check_writable()?;
        let name = Self::name(name)?;
        self.recover_name(cx, parent, &name)?;
        // The kernel may go by what it was told before the file was made anew.
        let existing = {
            let tree = self.tree.lock();
            let bound = tree.bound(parent, &name);
            bound.filter(|&ino| tree.get(ino).is_some_and(Inode::is_ours))
        };
        if let Some(ino) = existing {
            if flags.is_exclusive {
                return Err(Error::Exists);
            }
            let opened = self.open(cx, ino, flags)?;
            let mut tree = self.tree.lock();
            if let Some(inode) = tree.get_mut(ino) {
                inode.lookups += 1;
            }
            return Ok((self.attr_of(&tree, ino)?, opened));
        }
        let (path, owner) = self.place_for_new(cx, parent, &name)?;
        // Whether somebody else was faster shows when it is uploaded, where that is later anyway.
        let asks_first = flags.is_exclusive && self.options.writeback.is_none();
        let (entry, stat) = if asks_first {
            cx.may_wait()?;
            let result = self.remote.create_new(&path, mode, owner);
            let changed = self.heard(result, &[(parent, &name)])?;
            let stat = self.created(parent, &changed, &path)?;
            let entry = self.cache.entry(stat.version());
            // A file that another program has filled already is fetched as any other.
            if stat.size == 0 {
                entry.truncate(0, Wait::Allowed)?;
                // The host has this empty file.
                entry.empty_file_was_created(stat.version());
            }
            (entry, stat)
        } else {
            let entry = self.cache.new_entry(flags.truncates)?;
            (entry, self.stat_of_new(parent, mode, owner)?)
        };
        entry.add_handle();
        let at = self.clock.tick();
        let mut tree = self.tree.lock();
        let ino = tree.add(stat, Freshness::Asked(at));
        tree.bind(parent, &name, ino, at);
        if let Some(inode) = tree.get_mut(ino) {
            inode.lookups += 1;
            inode.entry = Some(Arc::clone(&entry));
        }
        self.hold_if_moving(&tree, ino, &entry);
        let attr = self.attr_of(&tree, ino)?;
        drop(tree);
        let conflict_epoch = entry.conflict_epoch();
        let fh = self.handles.lock().add_file(FileHandle {
            ino,
            entry,
            flags,
            conflict_epoch,
        });
        Ok((
            attr,
            Opened {
                fh,
                keeps_pages: true,
                is_unsized: false,
            },
        ))
    }

    /// The path of a new name and whose it is to be; refuses where the login user may not write.
    pub(super) fn place_for_new(
        &self,
        cx: &Context,
        parent: Ino,
        name: &Name,
    ) -> Result<(RemotePath, Option<Owner>)> {
        let tree = self.settled(cx, self.tree.lock(), parent, Scope::Name(name))?;
        Self::check_directory(&tree, parent)?;
        let dir = tree.get(parent).ok_or(Error::UnknownInode)?;
        let mask = permission::WRITE | permission::EXECUTE;
        if !permission::permits(&dir.stat, &self.login(), mask) {
            return Err(Error::AccessDenied);
        }
        let path = self.path_of_new(&tree, parent, name)?;
        Ok((path, self.owner_for(&tree, cx, parent)))
    }

    /// The path of a name in a directory.
    ///
    /// # Errors
    /// It is longer than the host can take, with the root in front of it.
    pub(super) fn path_of_new(&self, tree: &Tree, parent: Ino, name: &Name) -> Result<RemotePath> {
        let dir = tree.path(parent).ok_or(Error::NotFound)?;
        if self.host_path_len(&dir) + 1 + name.as_bytes().len() > PATH_MAX {
            return Err(Error::NameTooLong);
        }
        Ok(dir.join(name))
    }

    /// How long the path of a directory is on the host.
    pub(super) fn host_path_len(&self, dir: &RemotePath) -> usize {
        self.remote.facts().root.len() + 1 + dir.as_bytes().len()
    }

    /// What a file that the host does not have yet is shown as.
    fn stat_of_new(&self, parent: Ino, mode: u32, owner: Option<Owner>) -> Result<Stat> {
        self.stat_of_new_in(&self.tree.lock(), parent, mode, owner)
    }

    pub(super) fn stat_of_new_in(
        &self,
        tree: &Tree,
        parent: Ino,
        mode: u32,
        owner: Option<Owner>,
    ) -> Result<Stat> {
        let facts = self.remote.facts();
        let now = self.clock.wall().truncate_to_micros();
        let dir = tree.get(parent).ok_or(Error::UnknownInode)?;
        let gid = if dir.stat.mode & 0o2000 != 0 {
            dir.stat.gid
        } else {
            facts.gid
        };
        let owner = owner.unwrap_or(Owner {
            uid: facts.uid,
            gid,
        });
        Ok(Stat {
            kind: FileKind::File,
            mode: mode & crate::stat::PERMISSIONS,
            nlink: 1,
            uid: owner.uid,
            gid: owner.gid,
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: Some(now),
            id: None,
            rdev: DeviceNumber::default(),
        })
    }

    /// Takes what the answer to a creation says of the directory; returns the new file's own
    /// attributes, asked for if need be.
    pub(super) fn created(
        &self,
        parent: Ino,
        changed: &Changed,
        path: &RemotePath,
    ) -> Result<Stat> {
        self.parent_changed(parent, changed.parent);
        match changed.stat {
            Some(stat) => Ok(stat),
            None => Ok(self.remote.stat(path)?),
        }
    }

    /// Takes the new attributes of a directory; if the host did not give them, the old ones are
    /// too old from now on.
    pub(super) fn parent_changed(&self, parent: Ino, stat: Option<Stat>) {
        let at = self.clock.tick();
        let mut tree = self.tree.lock();
        match stat {
            Some(stat)
                if tree
                    .get(parent)
                    .is_some_and(|dir| dir.stat.kind == stat.kind) =>
            {
                tree.set_stat(parent, stat, at);
            }
            _ => {
                if let Some(dir) = tree.get_mut(parent) {
                    dir.freshness.invalidate(at);
                }
            }
        }
    }

    pub fn read(&self, cx: &Context, fh: Fh, offset: u64, len: u32) -> Result<Vec<u8>> {
        let handle = self.handles.lock().file(fh)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.with_content(cx, &handle, |entry| entry.read(offset, len, cx.wait))
    }

    /// Does something with the content of an open file; brings the content first if it is not
    /// here, as after a copy on the host, and has the journal know before the first change.
    fn with_content<T>(
        &self,
        cx: &Context,
        handle: &FileHandle,
        op: impl Fn(&Entry) -> std::result::Result<T, cache::Error>,
    ) -> Result<T> {
        self.with_entry(cx, handle.ino, &handle.entry, || op(&handle.entry))
    }

    pub(super) fn with_entry<T>(
        &self,
        cx: &Context,
        ino: Ino,
        entry: &Arc<Entry>,
        op: impl Fn() -> std::result::Result<T, cache::Error>,
    ) -> Result<T> {
        let mut result = op();
        for _ in 0..MAX_ROUNDS {
            match result {
                Err(cache::Error::NotHere) => self.fill(cx, ino, entry)?,
                Err(cache::Error::NotJournaled) => {
                    let target = self.upload_place(ino)?.target();
                    entry.open_in_journal(target.as_ref(), cx.wait)?;
                }
                result => return Ok(result?),
            }
            result = op();
        }
        Ok(result?)
    }

    /// Writes, and returns how many bytes.
    pub fn write(&self, cx: &Context, fh: Fh, offset: u64, data: &[u8]) -> Result<u32> {
        let handle = self.handles.lock().file(fh)?;
        // The kernel appends at the size it knows; the file may be longer by now.
        let offset = (!handle.flags.appends).then_some(offset);
        self.with_content(cx, &handle, |entry| entry.write(offset, data, cx.wait))?;
        Ok(u32::try_from(data.len()).unwrap_or(u32::MAX))
    }

    /// Closes a handle. What is still not uploaded, because it was written through a mapping after
    /// the last `close(2)`, is uploaded now; nobody is left to be told if that fails.
    pub fn release(&self, cx: &Context, fh: Fh) -> Result<()> {
        let handle = self.handles.lock().file(fh)?;
        if handle.entry.is_dirty() && (handle.flags.writes || self.is_to_be_made(&handle)) {
            cx.may_wait()?;
            // Logged where it failed; the content stays.
            drop(self.upload_closed(cx, handle.ino, &handle.entry));
        }
        if self.handles.lock().remove_file(fh).is_some() {
            self.release_entry(handle.ino, &handle.entry);
        }
        Ok(())
    }

    /// Closes a handle of an entry; the last one ends its content, or gives it back to the cache.
    pub(super) fn release_entry(&self, ino: Ino, entry: &Arc<Entry>) {
        let mut tree = self.tree.lock();
        let is_last = entry.remove_handle() == 0;
        let is_its = |inode: &Inode| {
            let own = inode.entry.as_ref();
            own.is_some_and(|own| Arc::ptr_eq(own, entry))
        };
        let inode = tree.get_mut(ino).filter(|inode| is_last && is_its(inode));
        let is_removed = inode.is_some_and(|inode| {
            let is_removed = inode.home == Home::Unlinked;
            if is_removed {
                inode.entry = None;
            }
            is_removed
        });
        tree.collect(ino);
        drop(tree);
        if is_removed {
            // Nobody can ever see this content again.
            entry.discard();
        }
        if !is_last {
            return;
        }
        entry.return_if_unused();
        let mut tree = self.tree.lock();
        if let Some(inode) = tree.get_mut(ino)
            && is_its(inode)
            && !(inode.is_open() || inode.is_ours() || entry.is_fetching())
        {
            inode.entry = None;
        }
        tree.collect(ino);
    }

    /// Allocates or makes holes, see `fallocate(2)`.
    pub fn fallocate(&self, cx: &Context, fh: Fh, mode: i32, offset: u64, len: u64) -> Result<()> {
        let handle = self.handles.lock().file(fh)?;
        self.with_content(cx, &handle, |entry| {
            entry.allocate(mode, offset, len, cx.wait)
        })
    }

    /// Finds data or a hole, see `lseek(2)`.
    pub fn seek(&self, cx: &Context, fh: Fh, offset: u64, to_data: bool) -> Result<u64> {
        let handle = self.handles.lock().file(fh)?;
        match self.with_content(cx, &handle, |entry| entry.seek(offset, to_data, cx.wait)) {
            Err(Error::Cache(cache::Error::Local { source, .. }))
                if source.raw_os_error() == Some(libc::ENXIO) =>
            {
                Err(Error::NoSuchOffset)
            }
            result => result,
        }
    }
}
