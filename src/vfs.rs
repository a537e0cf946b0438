//! The filesystem: one method per file operation, without types of the kernel interface.
//!
//! `Vfs` keeps the tables of inodes, names, attributes and open files, and decides when the host
//! must be asked. `remote` sends the requests, `cache` stores content, and `fuse` translates
//! between kernel requests and these methods.
//!
//! Locks, in the order in which they may be taken: `tree`, then `name_changes`, then `handles`,
//! then the state of a cache entry (`cache`). `walks` may be taken under `tree` and takes no other.
//! `unsaved` and `fs` are taken while none of these is held. No lock is held across I/O, neither to the host nor to the local disk: an operation copies
//! what it needs out of the tree, releases it, sends its request, and locks the tree again to apply
//! the answer. Each answer carries the time at which it was requested, so that a late answer never
//! displaces newer knowledge.
//!
//! Modules:
//! - `inode`: inodes, their names, and the dentries of a directory
//! - `tree`: the table of inodes and names; no I/O, no clock, no waiting
//! - `freshness`: fresh, stale or dirty: whether an answer of the host may replace it; pure
//! - `handle`: the table of open files and directories
//! - `attr`: getattr, readlink, access: which attributes are reported
//! - `set_attr`: setattr
//! - `dir`: readdir
//! - `names`: mkdir, mknod, symlink, link, unlink, rmdir, rename
//! - `name_changes`: renames and removals in flight: uploads of affected files block
//! - `file`: open, create, read, write, release
//! - `upload`: flush, fsync, `copy_file_range`: when and where content is uploaded
//! - `read_ahead`: fetch and list what a walk will want next
//! - `refresh`: replace the content of an open file when it changes on the host
//! - `walk`: recognizes programs that walk through a tree; pure
//! - `recovery`: dirty content of an earlier mount: attach it to inodes and upload it
//! - `drain`: upload everything at the end of a mount
//! - `parts`: large files that are not fetched as a whole
//! - `permission`: mode bits; pure
//! - `ids`: uid and gid mapping; pure
//! - `symlink`: containment of symlink targets; pure
//! - `open_flags`: the flags of `open(2)`, checked
//! - `error`: errors, and the one table of errno
//! - `report`: the dirty files that `scpfs status` lists

mod attr;
mod dir;
mod drain;
mod error;
mod file;
mod freshness;
mod handle;
mod ids;
mod inode;
mod name_changes;
mod names;
mod open_flags;
mod parts;
mod permission;
mod read_ahead;
mod recovery;
mod refresh;
mod report;
mod set_attr;
mod symlink;
mod tree;
mod upload;
mod walk;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::Weak;
use std::time::Duration;

pub use crate::vfs::attr::Attr;
pub use crate::vfs::dir::DirItem;
pub use crate::vfs::dir::DirItems;
pub use crate::vfs::error::Error;
pub use crate::vfs::file::Opened;
pub use crate::vfs::handle::Fh;
pub use crate::vfs::ids::Ids;
pub use crate::vfs::ids::Pair;
pub use crate::vfs::inode::Ino;
pub use crate::vfs::names::RenameFlags;
pub use crate::vfs::open_flags::OpenFlags;
pub use crate::vfs::set_attr::SetAttr;
pub use crate::vfs::symlink::Symlinks;
pub use crate::vfs::upload::PlacementPolicy;

use crate::cache;
use crate::cache::Cache;
use crate::cache::Wait;
use crate::clock::Clock;
use crate::clock::Tick;
use crate::error_chain;
use crate::path::Name;
use crate::path::RemotePath;
use crate::remote;
use crate::remote::Listed;
use crate::remote::Owner;
use crate::remote::Reason;
use crate::remote::Remote;
use crate::stat::FileKind;
use crate::stat::FsStat;
use crate::sync::Condvar;
use crate::sync::Mutex;
use crate::vfs::freshness::Freshness;
use crate::vfs::handle::Handles;
use crate::vfs::inode::NameState;
use crate::vfs::name_changes::NameChanges;
use crate::vfs::recovery::UnsavedTable;
use crate::vfs::tree::NameOnHost;
use crate::vfs::tree::Scope;
use crate::vfs::tree::Tree;
use crate::vfs::tree::TreeGuard;
use crate::vfs::tree::TreeLock;
use crate::vfs::tree::UnknownRename;
use crate::vfs::walk::Walks;

pub type Result<T> = std::result::Result<T, Error>;

/// A directory with a larger `st_size` is huge: a lookup in it stats one name instead of listing
/// all. On common filesystems this size means some thousand names.
const HUGE_DIRECTORY: u64 = 128 << 10;

/// The maximum length of a name in bytes. FUSE itself passes names of up to 1024 bytes.
const NAME_MAX: usize = 255;

/// Rounds of asking and re-checking before an operation fails with [`Error::Changing`]. The limit
/// is high because waiting for the listing of another thread is a round as well.
const MAX_ROUNDS: u32 = 50;

/// In a directory with more names, the first lookup of a missing name within the TTL stats that
/// name, and only the second lists the directory again.
const LARGE_DIRECTORY: usize = 1000;

/// TTL of the answers to `statfs`.
const FS_STAT_TTL: Duration = Duration::from_secs(10);

/// The options of a mounted filesystem.
#[derive(Debug, Clone)]
pub struct Options {
    /// TTL of names and attributes.
    pub ttl: Duration,
    pub ids: Ids,
    /// Permission bits that are cleared in every reported mode.
    pub umask: u32,
    pub symlinks: Symlinks,
    /// The absolute path of the mountpoint on this machine. Absolute symlinks to below it are
    /// inside of the mount.
    pub mountpoint: Vec<u8>,
    /// Whether new files belong to the calling user on the host, not to the login user. Set only if
    /// the login user is root and other users may use the mount.
    pub sets_caller_as_owner: bool,
    pub is_read_only: bool,
    /// How an upload changes a file that exists.
    pub placement: PlacementPolicy,
    /// Write-back: the delay between `close(2)` and the upload. `None`: `close(2)` waits for the
    /// upload.
    pub writeback: Option<Duration>,
    /// Whether stale knowledge is used while the host cannot be reached (`offline=yes`).
    pub is_offline_ok: bool,
    /// How many bytes of small files are fetched ahead for a program that walks through a tree. 0
    /// to read nothing ahead.
    pub read_ahead: u64,
    /// Whether only what is read of a large file is fetched.
    pub reads_parts: bool,
}

/// The caller of an operation, and whether the operation may block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    pub uid: u32,
    pub gid: u32,
    pub wait: Wait,
}

impl Context {
    /// Returns an error if the operation must not block. Called before each request to the host.
    fn may_wait(&self) -> Result<()> {
        match self.wait {
            Wait::Allowed => Ok(()),
            Wait::Never => Err(Error::Cache(cache::Error::WouldWait)),
        }
    }
}

/// Why a directory is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// A program reads the directory.
    Read,
    /// A program looks a name up, and the listing answers later lookups as well.
    Lookup,
}

/// The result of a lookup.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// `None` if there is no such file.
    pub attr: Option<Attr>,
    /// How long the kernel may cache this result.
    pub ttl: Duration,
}

/// Something that the kernel has cached and that is not true any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Attributes(Ino),
    /// Attributes and content. Must not be sent while a request for this inode is being answered:
    /// the kernel waits until its page reads are finished.
    Content(Ino),
    /// The dentry of a name in a directory.
    Name(Ino, Name),
}

/// Invalidates something in the kernel. Called while a request is being served, so it must not wait
/// for a lock of the kernel. The exception is [`Change::Content`], which is sent from a worker
/// thread.
pub type Notify = Box<dyn Fn(Change) + Send + Sync>;

/// One mounted directory of a host.
pub struct Vfs {
    remote: Arc<dyn Remote>,
    cache: Arc<Cache>,
    clock: Arc<dyn Clock>,
    options: Options,
    /// Guards inodes, names and attributes.
    tree: TreeLock,
    /// Guards the renames and removals in flight; taken after `tree`.
    name_changes: Mutex<NameChanges>,
    /// Guards the dirty content of an earlier mount that has no inode yet; taken alone.
    unsaved: Mutex<UnsavedTable>,
    /// Notified when a record in `unsaved` was recovered, or could not be.
    recovered: Condvar,
    /// Notified when a listing ends, and when a rename or removal ends. Used with `tree`.
    tree_changed: Condvar,
    /// Guards the table of open files and directories.
    handles: Mutex<Handles>,
    /// Guards the cached answers to `statfs`, by device of the host; taken alone.
    fs: Mutex<HashMap<Option<u64>, (Tick, FsStat)>>,
    /// Guards what is known of programs that walk through the tree; taken after `tree`.
    walks: Mutex<Walks>,
    notify: OnceLock<Notify>,
    me: Weak<Self>,
}

impl fmt::Debug for Vfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vfs")
            .field("inodes", &self.tree.lock().len())
            .finish_non_exhaustive()
    }
}

impl Vfs {
    /// Creates the filesystem. Blocks while the host is asked for its root directory.
    ///
    /// # Errors
    /// The root directory cannot be read, or is not a directory.
    pub fn new(
        remote: Arc<dyn Remote>,
        cache: Arc<Cache>,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Result<Arc<Self>> {
        let at = clock.tick();
        let root = remote.stat(&RemotePath::root())?;
        if root.kind != FileKind::Directory {
            return Err(Error::NotADirectory);
        }
        let read_ahead = options.read_ahead.min(cache.max_read_ahead());
        Ok(Arc::new_cyclic(|me| Self {
            remote,
            cache,
            clock,
            options,
            tree: TreeLock::new(Tree::new(root, at)),
            name_changes: Mutex::new(NameChanges::default()),
            unsaved: Mutex::new(UnsavedTable::default()),
            recovered: Condvar::new(),
            tree_changed: Condvar::new(),
            handles: Mutex::new(Handles::new()),
            fs: Mutex::new(HashMap::new()),
            walks: Mutex::new(Walks::new(read_ahead)),
            notify: OnceLock::new(),
            me: me.clone(),
        }))
    }

    /// Sets the function that invalidates entries of the kernel. Only the first call has an effect.
    pub fn set_notify(&self, notify: Notify) {
        if self.notify.set(notify).is_err() {
            log::debug!("the function that invalidates kernel entries is set already");
        }
    }

    fn notify(&self, change: Change) {
        if let Some(notify) = self.notify.get() {
            notify(change);
        }
    }

    /// Looks a name up in a directory, and increments the lookup count of the inode. Content of an
    /// earlier mount under this name is recovered first.
    ///
    /// # Errors
    /// The host cannot be reached, or the directory is gone. A name that does not exist is not an
    /// error.
    pub fn lookup(&self, cx: &Context, parent: Ino, name: &[u8]) -> Result<Found> {
        let name = Self::name(name)?;
        self.recover_name(cx, parent, &name)?;
        self.lookup_without_recovery(cx, parent, &name, self.clock.tick())
    }

    /// Performs the lookup, but recovers nothing. Answers of the host from `since` on count as
    /// fresh.
    fn lookup_without_recovery(
        &self,
        cx: &Context,
        parent: Ino,
        name: &Name,
        since: Tick,
    ) -> Result<Found> {
        let mut tree = self.tree.lock();
        for _ in 0..MAX_ROUNDS {
            Self::check_directory(&tree, parent)?;
            if let Some((at, state)) = tree.name_state(parent, name)
                && self.is_fresh(at, since)
            {
                let is_known = match state {
                    NameState::Unknown => false,
                    NameState::Absent => {
                        return Ok(Found {
                            attr: None,
                            ttl: self.ttl_left(at),
                        });
                    }
                    NameState::Inode(_) => true,
                    NameState::Listed(listed) => listed.stat.is_some(),
                };
                if is_known && let Some(ino) = tree.instantiate(parent, name) {
                    if let Some(inode) = tree.get_mut(ino) {
                        inode.lookups += 1;
                    }
                    let attr = self.attr_of(&tree, ino)?;
                    return Ok(Found {
                        attr: Some(attr),
                        ttl: self.ttl_left(at),
                    });
                }
            }
            cx.may_wait()?;
            tree = match self.revalidate_name(cx, tree, parent, name, since) {
                Ok(tree) => tree,
                Err(error) if self.may_use_stale(&error) => {
                    return self.lookup_stale(parent, name).ok_or(error);
                }
                Err(error) => return Err(error),
            };
        }
        Err(Error::Changing)
    }

    /// Returns whether the host cannot be reached and stale knowledge may be used instead.
    fn may_use_stale(&self, error: &Error) -> bool {
        self.options.is_offline_ok && error.is_connection_loss() && !error.is_host_key_refused()
    }

    /// Looks a name up without asking the host, however stale the result is.
    fn lookup_stale(&self, parent: Ino, name: &Name) -> Option<Found> {
        let ttl = Duration::ZERO;
        let mut tree = self.tree.lock();
        if let (_, NameState::Absent) = tree.name_state(parent, name)? {
            return Some(Found { attr: None, ttl });
        }
        let ino = tree.instantiate(parent, name)?;
        tree.get_mut(ino)?.lookups += 1;
        let attr = self.attr_of(&tree, ino).ok();
        Some(Found { attr, ttl })
    }

    /// Asks the host about a name. Lists the whole directory if that is cheap, so that later
    /// lookups of other names need no request. Releases the tree while it waits.
    fn revalidate_name<'a>(
        &'a self,
        cx: &Context,
        mut tree: TreeGuard<'a>,
        parent: Ino,
        name: &Name,
        since: Tick,
    ) -> Result<TreeGuard<'a>> {
        tree = self.resolve_renames(cx, tree, parent, Scope::Name(name))?;
        if tree.dir_mut(parent).is_some_and(|dir| dir.is_listing) {
            tree.wait(&self.tree_changed);
            return Ok(tree);
        }
        let Some(path) = tree.path(parent) else {
            return Err(Error::NotFound);
        };
        let at = self.clock.tick();
        // Listings lack the device number of a device file.
        let needs_stat = match tree.name_state(parent, name) {
            Some((Freshness::Asked(at), NameState::Listed(listed))) => {
                at >= since && listed.stat.is_none()
            }
            Some((_, NameState::Inode(ino))) => tree.get(*ino).is_some_and(|inode| {
                matches!(
                    inode.stat.kind,
                    FileKind::CharDevice | FileKind::BlockDevice
                )
            }),
            _ => false,
        };
        if !needs_stat && self.begin_listing_if_cheap(&mut tree, parent, at) {
            drop(tree);
            let tree = self.list_for_lookup(parent, &path, at)?;
            self.directory_was_looked_at(&tree, parent);
            return Ok(tree);
        }
        drop(tree);
        let found = match self.remote.stat(&path.join(name)) {
            Ok(stat) => Some(Box::new(Listed {
                kind: stat.kind,
                stat: Some(stat),
                target: None,
            })),
            Err(error) if error.reason() == Some(Reason::NotFound) => None,
            Err(error) => return Err(error.into()),
        };
        let mut tree = self.tree.lock();
        tree.apply_answer(parent, name, found, at);
        Ok(tree)
    }

    /// Waits for renames and removals in flight that change names of `scope` in `dir`, or the path
    /// of `dir`. Then resolves renames of unknown outcome that concern these names. Until both are
    /// done, the tree would ignore answers about these names. Releases the tree while it waits.
    ///
    /// # Errors
    /// The host cannot be reached, or refuses to tell: the rename stays unresolved, and the next
    /// caller asks again.
    fn resolve_renames<'a>(
        &'a self,
        cx: &Context,
        mut tree: TreeGuard<'a>,
        dir: Ino,
        scope: Scope<'_>,
    ) -> Result<TreeGuard<'a>> {
        loop {
            let is_in_flight = tree.is_below_in_flight(dir)
                || match scope {
                    Scope::Directory => false,
                    Scope::Name(name) | Scope::Below(name) => tree.is_in_flight(dir, name),
                };
            let rename = tree.unknown_rename_in(dir, scope);
            if is_in_flight || rename.is_some_and(|rename| tree.has_name_in_flight(rename)) {
                cx.may_wait()?;
                tree.wait(&self.tree_changed);
                continue;
            }
            let Some(rename) = rename.cloned() else {
                return Ok(tree);
            };
            cx.may_wait()?;
            tree = self.resolve_rename(tree, &rename)?;
        }
    }

    /// Resolves renames of unknown outcome that may have changed the path of an inode.
    ///
    /// # Errors
    /// See [`Self::resolve_renames`].
    fn resolve_renames_of_path(&self, ino: Ino) -> remote::Result<()> {
        let mut tree = self.tree.lock();
        while let Some(rename) = tree.unknown_rename_above(ino) {
            if tree.has_name_in_flight(rename) {
                tree.wait(&self.tree_changed);
                continue;
            }
            let rename = rename.clone();
            tree = self.resolve_rename(tree, &rename)?;
        }
        Ok(())
    }

    /// Asks the host whether a rename of unknown outcome was carried out, and applies the answer.
    /// Releases the tree while it waits.
    fn resolve_rename<'a>(
        &'a self,
        tree: TreeGuard<'a>,
        rename: &UnknownRename,
    ) -> remote::Result<TreeGuard<'a>> {
        drop(tree);
        let at = self.clock.tick();
        let mut refused = None;
        let mut look = |path: &RemotePath| {
            Ok(match self.remote.stat(path) {
                Ok(stat) => NameOnHost::Present(stat),
                Err(error) if error.is_connection_loss() => return Err(error),
                Err(error) => match error.reason() {
                    Some(Reason::NotFound | Reason::NotADirectory) => NameOnHost::Absent,
                    _ => {
                        refused = Some(error);
                        NameOnHost::Refused
                    }
                },
            })
        };
        let to = look(&rename.to_path)?;
        let mut outcome = rename.outcome(&to, None);
        if outcome.is_none() {
            let from = look(&rename.from_path)?;
            outcome = rename.outcome(&to, Some(&from));
        }
        let mut tree = self.tree.lock();
        if outcome.is_none()
            && let Some(error) = refused
        {
            match tree.count_refusal(rename, at) {
                Some(false) => return Err(error),
                Some(true) => log::warn!(
                    "whether {} was renamed to {} cannot be found out: {}",
                    rename.from_path,
                    rename.to_path,
                    error_chain::with_causes(&error)
                ),
                // Another caller has resolved it.
                None => return Ok(tree),
            }
        }
        tree.apply_rename_outcome(rename, outcome.unwrap_or(false), at);
        Ok(tree)
    }

    /// Returns whether a directory may have been moved since the host was asked about `path`.
    fn may_have_moved(tree: &Tree, ino: Ino, path: &RemotePath) -> bool {
        tree.is_below_in_flight(ino)
            || tree.is_below_unknown_rename(ino)
            || tree.path(ino).is_some_and(|now| now != *path)
    }

    /// Lists a directory that is marked as being listed, and locks the tree again. If the directory
    /// cannot be listed, marks it as such: names in it are then looked up one by one.
    fn list_for_lookup(&self, ino: Ino, path: &RemotePath, at: Tick) -> Result<TreeGuard<'_>> {
        match self.list(ino, path, at, Purpose::Lookup) {
            Ok(()) => {}
            // Single names in it can still be looked up.
            Err(error)
                if error.reason() == Some(Reason::AccessDenied)
                    || matches!(
                        error,
                        remote::Error::Unsupported { .. } | remote::Error::TooManyNames { .. }
                    ) =>
            {
                if let Some(dir) = self.tree.lock().dir_mut(ino) {
                    dir.is_unlistable = true;
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(self.tree.lock())
    }

    /// Lists a directory that is marked as being listed, and removes the mark. If the directory was
    /// moved meanwhile, returns no error: the caller asks again by the new path.
    fn list(&self, ino: Ino, path: &RemotePath, at: Tick, purpose: Purpose) -> remote::Result<()> {
        let listing = ListingGuard { vfs: self, ino };
        if self.list_with_next(ino, at, purpose) {
            return Ok(());
        }
        let result = self.remote.list(path);
        let mut tree = self.tree.lock();
        let result = match result {
            Ok(listing) => {
                tree.apply_listing(ino, listing, at);
                Ok(())
            }
            Err(error)
                if error.reason() == Some(Reason::NotFound)
                    && Self::may_have_moved(&tree, ino, path) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        };
        drop(tree);
        drop(listing);
        result
    }

    /// Returns whether a lookup is to list the directory instead of asking for one name; if so,
    /// marks the directory as being listed.
    fn begin_listing_if_cheap(&self, tree: &mut Tree, ino: Ino, now: Tick) -> bool {
        let ttl = self.options.ttl;
        let Some(inode) = tree.get_mut(ino) else {
            return false;
        };
        let is_huge = inode.stat.size > HUGE_DIRECTORY;
        let Some(dir) = inode.dir.as_deref_mut() else {
            return false;
        };
        if is_huge || dir.is_unlistable {
            return false;
        }
        if dir.names.len() > LARGE_DIRECTORY && dir.listed_at.is_some() {
            let is_second = dir.single_lookup_at.is_some_and(|at| now.since(at) < ttl);
            dir.single_lookup_at = Some(now);
            if !is_second {
                return false;
            }
        }
        dir.is_listing = true;
        true
    }

    /// Decrements the lookup count of an inode, as FORGET does.
    pub fn forget(&self, ino: Ino, n_lookups: u64) {
        self.tree.lock().forget(ino, n_lookups);
    }

    /// Returns the size and free space of the filesystem on the host that holds an inode.
    pub fn statfs(&self, cx: &Context, ino: Ino) -> Result<FsStat> {
        let now = self.clock.tick();
        let (device, path) = Self::device_and_path(&self.tree.lock(), ino);
        let is_fresh = |at: Tick| now.since(at) < FS_STAT_TTL;
        if let Some(&(at, fs)) = self.fs.lock().get(&device)
            && is_fresh(at)
        {
            return Ok(fs);
        }
        cx.may_wait()?;
        let fs = match self.remote.fs_stat(&path) {
            // The file was removed on the host. The root exists, and is nearly always on the same
            // filesystem.
            Err(error) if error.reason() == Some(Reason::NotFound) => {
                self.remote.fs_stat(&RemotePath::root())?
            }
            result => result?,
        };
        let mut known = self.fs.lock();
        known.retain(|_, (at, _)| is_fresh(*at));
        known.insert(device, (now, fs));
        Ok(fs)
    }

    /// Returns the device of the host that an inode is on, and a path on that device: the path of
    /// the inode, or of a directory above it if the inode is not on the host, or is a symlink,
    /// which may lead to another device.
    fn device_and_path(tree: &Tree, ino: Ino) -> (Option<u64>, RemotePath) {
        let mut at = ino;
        while let Some(inode) = tree.get(at) {
            let is_there = inode.stat.kind != FileKind::Symlink && inode.stat.id.is_some();
            if let Some(path) = tree.path(at).filter(|_| is_there) {
                return (inode.stat.id.map(|id| id.dev), path);
            }
            match inode.current_or_last_link() {
                Some((parent, _)) if at != Ino::ROOT => at = *parent,
                _ => break,
            }
        }
        let root = tree.get(Ino::ROOT).and_then(|root| root.stat.id);
        (root.map(|id| id.dev), RemotePath::root())
    }

    fn name(bytes: &[u8]) -> Result<Name> {
        if bytes.len() > NAME_MAX {
            return Err(Error::NameTooLong);
        }
        Name::new(bytes).map_err(|_| Error::InvalidArgument)
    }

    fn check_directory(tree: &Tree, ino: Ino) -> Result<()> {
        let inode = tree.get(ino).ok_or(Error::UnknownInode)?;
        if inode.dir.is_some() {
            Ok(())
        } else {
            Err(Error::NotADirectory)
        }
    }

    fn check_writable(&self) -> Result<()> {
        if self.options.is_read_only {
            Err(Error::ReadOnly)
        } else {
            Ok(())
        }
    }

    /// Returns whether the host need not be asked. Answers from `since` on, the start of the
    /// operation, are always fresh: with a TTL of zero one answer is enough for one operation.
    fn is_fresh(&self, freshness: Freshness, since: Tick) -> bool {
        match freshness {
            Freshness::Dirty => true,
            Freshness::Asked(at) => at >= since || self.clock.tick().since(at) < self.options.ttl,
            Freshness::Stale(_) => false,
        }
    }

    fn ttl_left(&self, freshness: Freshness) -> Duration {
        match freshness {
            Freshness::Asked(at) => {
                let age = self.clock.tick().since(at);
                self.options.ttl.saturating_sub(age)
            }
            Freshness::Dirty | Freshness::Stale(_) => Duration::ZERO,
        }
    }

    /// Returns the owner that a new file in `parent` must get; `None` for the login user.
    fn owner_of_new(&self, tree: &Tree, cx: &Context, parent: Ino) -> Option<Owner> {
        let facts = self.remote.facts();
        if !self.options.sets_caller_as_owner || facts.uid != 0 {
            return None;
        }
        let (uid, gid) = (
            self.options.ids.uid_to_host(cx.uid),
            self.options.ids.gid_to_host(cx.gid),
        );
        let setgid = tree.get(parent).filter(|dir| dir.stat.mode & 0o2000 != 0);
        let gid = setgid.map_or(gid, |dir| dir.stat.gid);
        ((uid, gid) != (facts.uid, facts.gid)).then_some(Owner { uid, gid })
    }

    fn arc(&self) -> Result<Arc<Self>> {
        self.me.upgrade().ok_or(Error::Internal)
    }
}

/// Removes the mark that a directory is being listed when it is dropped, even after a panic, and
/// wakes the callers that wait for the listing.
struct ListingGuard<'a> {
    vfs: &'a Vfs,
    ino: Ino,
}

impl Drop for ListingGuard<'_> {
    fn drop(&mut self) {
        let mut tree = self.vfs.tree.lock();
        if let Some(dir) = tree.dir_mut(self.ino) {
            dir.is_listing = false;
        }
        tree.drop_unused(self.ino);
        drop(tree);
        self.vfs.tree_changed.notify_all();
    }
}
