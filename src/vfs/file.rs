//! Open files: open, create, read, write, release. `upload` has flush and fsync.

use std::sync::Arc;
use std::time::Duration;

use crate::cache;
use crate::cache::Entry;
use crate::cache::UploadTarget;
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

/// `PATH_MAX` of Linux without the terminating NUL, in bytes.
pub(super) const PATH_MAX: usize = 4095;

/// How long after its creation, or the last creation in it, a directory is taken for one that only
/// this mount fills.
const OWN_DIRECTORY_TTL: Duration = Duration::from_secs(10);

/// An open file, and how the kernel is to cache it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    pub fh: Fh,
    /// Whether the page cache of the kernel holds this version of the content (`FOPEN_KEEP_CACHE`).
    pub keeps_page_cache: bool,
    /// Whether the size is meaningless, as in /proc, so that the kernel must not cache the content
    /// (`FOPEN_DIRECT_IO`).
    pub is_unsized: bool,
}

impl Vfs {
    /// Opens a file. Fetches its content unless the cache has the version of the host. May block
    /// for the host.
    ///
    /// # Errors
    /// [`Error::Stale`] if its name is gone: the kernel looks the name up again.
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
                // The kernel uses a dentry from before the name was removed: what is written would
                // be lost. With ESTALE it looks the name up again.
                return Err(Error::Stale);
            }
            let knows_content = inode.entry.is_some() || self.cache.has(&inode.stat.version());
            // A fetch returns fresh attributes as well.
            if knows_content && !flags.truncates {
                drop(tree);
                tree = self.revalidate_attr(cx, ino)?;
            }
            let login = self.login_user();
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
        let is_walked = flags.reads && !flags.truncates;
        if is_walked
            && (cx.wait == Wait::Allowed || entry.has_content() || self.cache.has(&version))
        {
            // Once for each open: an open that must wait is started again on a worker.
            self.file_is_opened(ino);
        }
        let result = if flags.truncates {
            let target = self.upload_target(ino)?.target();
            let keeps_old = target.is_some_and(|target| entry.is_in_place(&target));
            self.with_entry(cx, ino, &entry, || {
                entry.replace(version, keeps_old, cx.wait)
            })
        } else {
            let is_open_in_part = match flags.writes {
                true => Ok(false),
                false => self.open_part(cx, ino, &entry),
            };
            // The fetch reports whether the file is writable, whatever its mode says.
            is_open_in_part
                .and_then(|is_open| match is_open {
                    true => Ok(()),
                    false => self.fetch_if_missing(cx, ino, &entry),
                })
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
        if is_walked {
            self.file_was_opened(ino);
        }
        let keeps_page_cache = self.take_page_cache(ino, &entry);
        if !keeps_page_cache && !flags.truncates {
            // The kernel clamps reads to its cached i_size, which may belong to an older version:
            // invalidate its attributes.
            self.notify(Change::Attributes(ino));
        }
        let is_unsized = entry.content_version().is_some_and(|it| it.is_unsized);
        let conflict_epoch = entry.conflict_epoch();
        // O_TRUNC changes the file even on a read-only handle.
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
            keeps_page_cache: keeps_page_cache && !flags.truncates,
            is_unsized,
        })
    }

    /// Checks whether the login user may read a file although its mode bits deny it. ACLs may allow
    /// it, which only the host knows. If the content is in the cache, no other request would check
    /// this. Releases the tree while it waits.
    fn check_readable<'a>(
        &'a self,
        cx: &Context,
        tree: TreeGuard<'a>,
        ino: Ino,
    ) -> Result<TreeGuard<'a>> {
        let inode = tree.get(ino).ok_or(Error::UnknownInode)?;
        let is_on_host = !inode.is_new();
        let path = tree.path(ino).filter(|_| is_on_host);
        // The file exists only here, and the mode bits decide.
        let path = path.ok_or(Error::AccessDenied)?;
        cx.may_wait()?;
        drop(tree);
        self.remote.check_readable(&path)?;
        Ok(self.tree.lock())
    }

    /// Returns the cache entry of an inode, with one more handle. Creates the entry if necessary.
    pub(super) fn open_entry(&self, tree: &mut Tree, ino: Ino) -> Result<Arc<Entry>> {
        let inode = tree.get_mut(ino).ok_or(Error::UnknownInode)?;
        if let Some(entry) = &inode.entry {
            entry.add_handle();
            return Ok(Arc::clone(entry));
        }
        let entry = self.cache.entry(inode.stat.version());
        entry.add_handle();
        inode.entry = Some(Arc::clone(&entry));
        self.block_if_in_flight(tree, ino, &entry);
        Ok(entry)
    }

    /// Fetches the content of a cache entry if it is missing or outdated, or starts to fetch it.
    pub(super) fn fetch_if_missing(
        &self,
        cx: &Context,
        ino: Ino,
        entry: &Arc<Entry>,
    ) -> Result<()> {
        let (path, version) = {
            let tree = self.tree.lock();
            let inode = tree.get(ino).ok_or(Error::UnknownInode)?;
            match tree.path(ino) {
                Some(path) => (path, inode.stat.version()),
                // Removed while open: there is nothing left to fetch.
                None => return Ok(()),
            }
        };
        match entry.open(&path, version, cx.wait) {
            Err(cache::Error::StaleContent) => self.refresh_and_wait(cx, ino, entry),
            result => {
                result?;
                self.take_fetched_stat(ino, entry);
                Ok(())
            }
        }
    }

    /// Applies the attributes that came with fetched content.
    pub(super) fn take_fetched_stat(&self, ino: Ino, entry: &Entry) {
        let Some((stat, at)) = entry.take_fetched_stat() else {
            return;
        };
        let mut tree = self.tree.lock();
        let is_news = tree
            .get(ino)
            .is_some_and(|inode| inode.stat.version() != stat.version());
        tree.apply_stat(ino, stat, at);
        drop(tree);
        if is_news {
            // The kernel clamps reads to its cached i_size: invalidate its attributes.
            self.notify(Change::Attributes(ino));
        }
    }

    /// Returns whether the page cache of the kernel holds the content of this entry, and records
    /// that it does from now on.
    fn take_page_cache(&self, ino: Ino, entry: &Entry) -> bool {
        let mut tree = self.tree.lock();
        let Some(inode) = tree.get_mut(ino) else {
            return false;
        };
        match entry.version() {
            Some(version) => inode.page_cache_version.replace(version) == Some(version),
            // Dirty content: the page cache has the same writes if the file was open already.
            None => entry.is_dirty() && entry.n_handles() > 1,
        }
    }

    /// Creates a file and opens it. Without `O_EXCL`, and always with write-back, the host is asked
    /// only when the file is uploaded.
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
        // The kernel may use a dentry from before the file was created again here.
        let existing = {
            let tree = self.tree.lock();
            let bound = tree.linked(parent, &name);
            bound.filter(|&ino| tree.get(ino).is_some_and(Inode::is_dirty))
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
        let (path, owner) = self.prepare_create(cx, parent, &name)?;
        // With write-back, and in a new directory of this mount, a file that was created on the host
        // meanwhile is found by the upload.
        let asks_first = flags.is_exclusive
            && self.options.writeback.is_none()
            && !self.is_own_new_directory(parent);
        let (entry, stat) = if asks_first {
            cx.may_wait()?;
            let result = self.remote.create_new(&path, mode, owner);
            let changed = self.invalidate_if_unknown(result, &[(parent, &name)])?;
            let stat = self.stat_of_created(parent, &changed, &path)?;
            let entry = self.cache.entry(stat.version());
            // If another program has written to it already, its content is fetched as for any file.
            if stat.size == 0 {
                entry.truncate(0, Wait::Allowed)?;
                // The host has this empty file.
                entry.empty_file_was_created(stat.version());
            }
            (entry, stat)
        } else {
            let entry = self
                .cache
                .new_entry(flags.truncates && !flags.is_exclusive)?;
            (entry, self.stat_of_new(parent, mode, owner)?)
        };
        entry.add_handle();
        let at = self.clock.tick();
        let mut tree = self.tree.lock();
        let ino = tree.add(stat, Freshness::Asked(at));
        tree.link(parent, &name, ino, at);
        if let Some(inode) = tree.get_mut(ino) {
            inode.lookups += 1;
            inode.entry = Some(Arc::clone(&entry));
            inode.is_created_exclusively = asks_first;
            inode.must_be_created = flags.is_exclusive && !asks_first;
        }
        if let Some(dir) = tree.dir_mut(parent) {
            dir.created_here_at = dir.created_here_at.map(|_| at);
        }
        self.block_if_in_flight(&tree, ino, &entry);
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
                keeps_page_cache: true,
                is_unsized: false,
            },
        ))
    }

    /// Returns whether this mount has created the directory, and is filling it, so that nobody else is
    /// expected to create names in it.
    fn is_own_new_directory(&self, dir: Ino) -> bool {
        if self.remote.facts().uploads_in_place {
            // Its uploads are not exclusive.
            return false;
        }
        let tree = self.tree.lock();
        let created_at = tree
            .get(dir)
            .and_then(|inode| inode.dir.as_deref()?.created_here_at);
        created_at.is_some_and(|at| self.clock.tick().since(at) < OWN_DIRECTORY_TTL)
    }

    /// Resolves renames that concern a new name, checks that the login user may create it, and
    /// returns its path and the owner it must get.
    pub(super) fn prepare_create(
        &self,
        cx: &Context,
        parent: Ino,
        name: &Name,
    ) -> Result<(RemotePath, Option<Owner>)> {
        let tree = self.resolve_renames(cx, self.tree.lock(), parent, Scope::Name(name))?;
        Self::check_directory(&tree, parent)?;
        let dir = tree.get(parent).ok_or(Error::UnknownInode)?;
        let mask = permission::WRITE | permission::EXECUTE;
        if !permission::permits(&dir.stat, &self.login_user(), mask) {
            return Err(Error::AccessDenied);
        }
        let path = self.path_of_new(&tree, parent, name)?;
        Ok((path, self.owner_of_new(&tree, cx, parent)))
    }

    /// Returns the path of a name in a directory.
    ///
    /// # Errors
    /// [`Error::NameTooLong`] if the path on the host would exceed `PATH_MAX`.
    pub(super) fn path_of_new(&self, tree: &Tree, parent: Ino, name: &Name) -> Result<RemotePath> {
        let dir = tree.path(parent).ok_or(Error::NotFound)?;
        if self.host_path_len(&dir) + 1 + name.as_bytes().len() > PATH_MAX {
            return Err(Error::NameTooLong);
        }
        Ok(dir.join(name))
    }

    /// Returns the length of the path of a directory on the host, in bytes.
    pub(super) fn host_path_len(&self, dir: &RemotePath) -> usize {
        self.remote.facts().root.len() + 1 + dir.as_bytes().len()
    }

    /// Returns the attributes of a file that was created here and is not on the host yet.
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

    /// Applies the attributes of the directory that came with the answer to a creation. Returns the
    /// attributes of the new file, and asks the host for them if the answer lacks them.
    pub(super) fn stat_of_created(
        &self,
        parent: Ino,
        changed: &Changed,
        path: &RemotePath,
    ) -> Result<Stat> {
        self.update_parent(parent, changed.parent);
        match changed.stat {
            Some(stat) => Ok(stat),
            None => Ok(self.remote.stat(path)?),
        }
    }

    /// Applies the new attributes of a directory that was changed; marks the old ones as stale if
    /// the host did not return new ones.
    pub(super) fn update_parent(&self, parent: Ino, stat: Option<Stat>) {
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
        if let Some(data) = self.read_part(cx, &handle, offset, len)? {
            return Ok(data);
        }
        match self.with_content(cx, &handle, |entry| entry.read(offset, len, cx.wait)) {
            // A large file of which only parts were fetched has no path any more.
            Err(Error::Cache(cache::Error::NotFetched)) => Err(Error::Stale),
            result => result,
        }
    }

    /// Applies `op` to the content of an open file; see [`Self::with_entry`].
    fn with_content<T>(
        &self,
        cx: &Context,
        handle: &FileHandle,
        op: impl Fn(&Entry) -> std::result::Result<T, cache::Error>,
    ) -> Result<T> {
        self.with_entry(cx, handle.ino, &handle.entry, || op(&handle.entry))
    }

    /// Applies `op` to a cache entry. If the content is missing, fetches it and tries again. If the
    /// content is about to change and the journal does not say so yet, writes the journal record
    /// and tries again.
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
                Err(cache::Error::NotFetched) => self.fetch_if_missing(cx, ino, entry)?,
                Err(cache::Error::NotJournaled) => {
                    let target = self.upload_target(ino)?.target();
                    entry.open_in_journal(target.as_ref(), cx.wait)?;
                }
                result => return Ok(result?),
            }
            result = op();
        }
        Ok(result?)
    }

    /// Writes at `offset`, or at the end of the file if it is open for appending; returns the
    /// number of bytes.
    pub fn write(&self, cx: &Context, fh: Fh, offset: u64, data: &[u8]) -> Result<u32> {
        let handle = self.handles.lock().file(fh)?;
        // The kernel appends at its cached i_size, which may be older than the content here.
        let offset = (!handle.flags.appends).then_some(offset);
        self.with_content(cx, &handle, |entry| entry.write(offset, data, cx.wait))?;
        Ok(u32::try_from(data.len()).unwrap_or(u32::MAX))
    }

    /// Closes a handle. Content that is still dirty, because it was written through a mapping after
    /// the last `close(2)`, is uploaded now. RELEASE has no reply that could report an error.
    pub fn release(&self, cx: &Context, fh: Fh) -> Result<()> {
        let handle = self.handles.lock().file(fh)?;
        if handle.entry.is_dirty() && (handle.flags.writes || self.must_create(&handle)) {
            cx.may_wait()?;
            // Logged where it failed; the content stays dirty.
            drop(self.upload_closed(cx, handle.ino, &handle.entry));
        }
        if self.handles.lock().remove_file(fh).is_some() {
            let result = self.upload_if_last_writer(&handle);
            // Whatever happens, the handle is closed.
            self.release_entry(handle.ino, &handle.entry);
            return result;
        }
        Ok(())
    }

    /// Uploads content that was changed while its last writer was being closed, for example by
    /// truncate(2), whose caller relied on that writer.
    fn upload_if_last_writer(&self, handle: &FileHandle) -> Result<()> {
        let is_writer = handle.flags.writes && handle.entry.is_unclosed();
        if is_writer && !self.handles.lock().is_open_for_writing(handle.ino) {
            let target: Arc<dyn UploadTarget> = self.upload_target(handle.ino)?;
            handle.entry.close_and_upload_later(&target);
        }
        Ok(())
    }

    /// Closes a handle of a cache entry. The last one discards the content of a removed file, and
    /// returns other clean content to the cache.
    pub(super) fn release_entry(&self, ino: Ino, entry: &Arc<Entry>) {
        entry.return_before_last_close();
        let is_its = |inode: &Inode| {
            let own = inode.entry.as_ref();
            own.is_some_and(|own| Arc::ptr_eq(own, entry))
        };
        let is_removed = {
            let mut tree = self.tree.lock();
            if entry.remove_handle() > 0 {
                return;
            }
            match tree.get_mut(ino).filter(|inode| is_its(inode)) {
                Some(inode) if inode.home == Home::Unlinked => {
                    inode.entry = None;
                    true
                }
                _ => false,
            }
        };
        if is_removed {
            // The file has neither a name nor a handle.
            entry.discard();
        }
        if !entry.is_open()
            && let Some(inode) = self.tree.lock().get_mut(ino)
        {
            inode.is_created_exclusively = false;
        }
        // Two handles may have been closed at once.
        entry.return_if_unused();
        let mut tree = self.tree.lock();
        if let Some(inode) = tree.get_mut(ino)
            && is_its(inode)
            && !(inode.is_open() || inode.is_dirty() || entry.is_fetching())
        {
            inode.entry = None;
        }
        tree.drop_unused(ino);
    }

    /// Allocates space or punches holes; see `fallocate(2)`.
    pub fn fallocate(&self, cx: &Context, fh: Fh, mode: i32, offset: u64, len: u64) -> Result<()> {
        let handle = self.handles.lock().file(fh)?;
        self.with_content(cx, &handle, |entry| {
            entry.allocate(mode, offset, len, cx.wait)
        })
    }

    /// Finds the next data, or the next hole; see `lseek(2)`.
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
