//! The filesystem: one method per file operation, without a kernel type in sight.
//!
//! Decides what a name, an attribute and an open file are; `remote` says what the host has,
//! `cache` holds content, `fuse` speaks with the kernel.
//!
//! Lock order: the tree, then the handles, then an entry's state (`cache`), then the index. No
//! lock is held while the host is asked: an operation takes what it needs from the tree, lets go,
//! asks, and takes the tree again to say what it learnt. What is learnt carries the time at which
//! it was asked for, so that a late answer never displaces newer knowledge.
//!
//! Modules:
//! - `inode`: inodes, and what is known of a name
//! - `tree`: the table of inodes and names: no I/O, no clock, no waiting
//! - `freshness`: how old knowledge of the host is; pure
//! - `handle`: the table of open files and directories
//! - `attr`: getattr: what is shown, and how fresh
//! - `set_attr`: setattr
//! - `dir`: readdir
//! - `names`: lookup results, create, mkdir, link, unlink, rename
//! - `moving`: renames and removals in flight
//! - `file`: open, read, write, release
//! - `upload`: flush and fsync: when and where content is uploaded
//! - `refresh`: open files that change on the host
//! - `recovery`: dirty content of an earlier mount, shown while it is uploaded
//! - `drain`: upload everything at the end of a mount
//! - `permission`: mode bits; pure
//! - `ids`: uid and gid mapping; pure
//! - `symlink`: containment of symlink targets; pure
//! - `open_flags`: the flags of `open(2)`, checked
//! - `error`: errors and the one table of errno
//! - `report`: what `scpfs status` shows of dirty files

mod attr;
mod dir;
mod drain;
mod error;
mod file;
mod freshness;
mod handle;
mod ids;
mod inode;
mod moving;
mod names;
mod open_flags;
mod permission;
mod recovery;
mod refresh;
mod report;
mod set_attr;
mod symlink;
mod tree;
mod upload;

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
use crate::vfs::inode::What;
use crate::vfs::moving::Moving;
use crate::vfs::recovery::Table;
use crate::vfs::tree::Looked;
use crate::vfs::tree::Scope;
use crate::vfs::tree::Tree;
use crate::vfs::tree::TreeGuard;
use crate::vfs::tree::TreeLock;
use crate::vfs::tree::UnsureRename;

pub type Result<T> = std::result::Result<T, Error>;

/// A directory of more bytes than this is huge: a look-up in it asks for one name, not for all.
/// Some thousand names on every common filesystem.
const HUGE_DIRECTORY: u64 = 128 << 10;

/// The longest name; the kernel itself lets 1024 bytes pass.
const NAME_MAX: usize = 255;

/// How often the host is asked for one thing before its answers are given up on: they change all
/// the while, or never say what was asked. Many, because waiting for another's answer counts too.
const MAX_ROUNDS: u32 = 50;

/// A directory with more names than this is listed again only for the second look-up that misses.
const LARGE_DIRECTORY: usize = 1000;

/// How long what the host said of its free space holds.
const FS_STAT_TTL: Duration = Duration::from_secs(10);

/// What a mount wants of its filesystem.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long what the host said of names and attributes holds.
    pub ttl: Duration,
    pub ids: Ids,
    /// Bits that are taken from every mode that is shown.
    pub umask: u32,
    pub symlinks: Symlinks,
    /// Where the root is on this machine: absolute links to below it lead inside.
    pub mountpoint: Vec<u8>,
    /// Whether what a local user creates belongs to that user on the host: only where the login
    /// user is root and others may use the mount.
    pub gives_away: bool,
    pub is_read_only: bool,
    /// How a save changes a file that exists.
    pub placement: PlacementPolicy,
    /// How long after `close(2)` content is uploaded; `None` to have `close(2)` wait for that.
    pub writeback: Option<Duration>,
    /// Whether what is known, however old, is good enough while the host cannot be reached.
    pub is_offline_ok: bool,
}

/// Who asks, and whether the answer may take its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    pub uid: u32,
    pub gid: u32,
    pub wait: Wait,
}

impl Context {
    /// Fails if what comes next would have to wait for the host.
    fn may_wait(&self) -> Result<()> {
        match self.wait {
            Wait::Allowed => Ok(()),
            Wait::Never => Err(Error::Cache(cache::Error::WouldWait)),
        }
    }
}

/// What a look-up found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// `None` where there is no such file.
    pub attr: Option<Attr>,
    /// How long the name may be taken for this.
    pub ttl: Duration,
}

/// Something that is not what the kernel was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Attributes(Ino),
    /// Attributes and content. Never told while a request for the inode is being answered: the
    /// kernel waits for the pages that it is reading.
    Content(Ino),
    /// What a name in a directory leads to.
    Name(Ino, Name),
}

/// Tells the kernel. Called while a request is being served: must not wait for the kernel to take a
/// lock. The exception is [`Change::Content`], which is told from a worker.
pub type Notify = Box<dyn Fn(Change) + Send + Sync>;

/// One mounted directory of a host.
pub struct Vfs {
    remote: Arc<dyn Remote>,
    cache: Arc<Cache>,
    clock: Arc<dyn Clock>,
    options: Options,
    /// Guards inodes, names and attributes.
    tree: TreeLock,
    /// Guards what is known of names that are about to change; taken after `tree`.
    moving: Mutex<Moving>,
    /// Guards what an earlier mount left and no inode has yet; taken alone.
    unsaved: Mutex<Table>,
    /// Told when somebody has asked the host about some of that.
    taken_up: Condvar,
    /// Told when a listing that others wait for is there.
    listed: Condvar,
    /// Guards the table of open files and directories.
    handles: Mutex<Handles>,
    /// Guards what is known of free space, by the device of the host.
    fs: Mutex<HashMap<Option<u64>, (Tick, FsStat)>>,
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
    /// Makes the filesystem; asks the host for its root.
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
        Ok(Arc::new_cyclic(|me| Self {
            remote,
            cache,
            clock,
            options,
            tree: TreeLock::new(Tree::new(root, at)),
            moving: Mutex::new(Moving::default()),
            unsaved: Mutex::new(Table::default()),
            taken_up: Condvar::new(),
            listed: Condvar::new(),
            handles: Mutex::new(Handles::new()),
            fs: Mutex::new(HashMap::new()),
            notify: OnceLock::new(),
            me: me.clone(),
        }))
    }

    /// Sets how to tell the kernel of changes. Once.
    pub fn set_notify(&self, notify: Notify) {
        if self.notify.set(notify).is_err() {
            log::debug!("the notifier is set already");
        }
    }

    fn notify(&self, change: Change) {
        if let Some(notify) = self.notify.get() {
            notify(change);
        }
    }

    /// Finds a name in a directory and counts a look-up of what it leads to.
    pub fn lookup(&self, cx: &Context, parent: Ino, name: &[u8]) -> Result<Found> {
        let name = Self::name(name)?;
        self.recover_name(cx, parent, &name)?;
        self.look_up(cx, parent, &name, self.clock.tick())
    }

    /// As [`Self::lookup`], of what the host and the inodes have.
    fn look_up(&self, cx: &Context, parent: Ino, name: &Name, since: Tick) -> Result<Found> {
        let mut tree = self.tree.lock();
        for _ in 0..MAX_ROUNDS {
            Self::check_directory(&tree, parent)?;
            if let Some((at, what)) = tree.known(parent, name)
                && self.is_fresh(at, since)
            {
                let is_known = match what {
                    What::Unknown => false,
                    What::Absent => {
                        return Ok(Found {
                            attr: None,
                            ttl: self.ttl_left(at),
                        });
                    }
                    What::Inode(_) => true,
                    What::Listed(listed) => listed.stat.is_some(),
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
            tree = match self.ask_for_name(cx, tree, parent, name, since) {
                Ok(tree) => tree,
                Err(error) if self.is_away(&error) => {
                    return self.found_before(parent, name).ok_or(error);
                }
                Err(error) => return Err(error),
            };
        }
        Err(Error::Changing)
    }

    /// Whether an error means that the host cannot be reached, and what is known must do.
    fn is_away(&self, error: &Error) -> bool {
        self.options.is_offline_ok && error.is_connection_loss() && !error.is_host_key_refused()
    }

    /// What is known of a name, however old.
    fn found_before(&self, parent: Ino, name: &Name) -> Option<Found> {
        let ttl = Duration::ZERO;
        let mut tree = self.tree.lock();
        if let (_, What::Absent) = tree.known(parent, name)? {
            return Some(Found { attr: None, ttl });
        }
        let ino = tree.instantiate(parent, name)?;
        tree.get_mut(ino)?.lookups += 1;
        let attr = self.attr_of(&tree, ino).ok();
        Some(Found { attr, ttl })
    }

    /// Asks the host about a name: by a listing of its directory where that is not too much, so
    /// that its neighbours are known as well. Lets go of the tree while it asks.
    fn ask_for_name<'a>(
        &'a self,
        cx: &Context,
        mut tree: TreeGuard<'a>,
        parent: Ino,
        name: &Name,
        since: Tick,
    ) -> Result<TreeGuard<'a>> {
        tree = self.settled(cx, tree, parent, Scope::Name(name))?;
        if tree.dir_mut(parent).is_some_and(|dir| dir.is_listing) {
            tree.wait(&self.listed);
            return Ok(tree);
        }
        let Some(path) = tree.path(parent) else {
            return Err(Error::NotFound);
        };
        let at = self.clock.tick();
        // A listing does not say which device a device is.
        let needs_stat = match tree.known(parent, name) {
            Some((Freshness::Asked(at), What::Listed(listed))) => {
                at >= since && listed.stat.is_none()
            }
            Some((_, What::Inode(ino))) => tree.get(*ino).is_some_and(|inode| {
                matches!(
                    inode.stat.kind,
                    FileKind::CharDevice | FileKind::BlockDevice
                )
            }),
            _ => false,
        };
        if !needs_stat && self.should_list(&mut tree, parent, at) {
            drop(tree);
            return self.ask_for_listing(parent, &path, at);
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
        tree.learn(parent, name, found, at);
        Ok(tree)
    }

    /// Waits for requests of ours that change names of `scope` in `dir`, or the path of `dir`; then
    /// asks the host about renames of unknown outcome that concern them. What the host says of these
    /// names meanwhile would count for nothing.
    ///
    /// # Errors
    /// The host cannot be asked, or does not tell: the rename is asked about again later.
    fn settled<'a>(
        &'a self,
        cx: &Context,
        mut tree: TreeGuard<'a>,
        dir: Ino,
        scope: Scope<'_>,
    ) -> Result<TreeGuard<'a>> {
        loop {
            let is_moving = tree.is_below_moving(dir)
                || match scope {
                    Scope::Directory => false,
                    Scope::Name(name) | Scope::Below(name) => tree.is_moving(dir, name),
                };
            let unsure = tree.unsure_rename(dir, scope);
            if is_moving || unsure.is_some_and(|unsure| tree.is_changing(unsure)) {
                cx.may_wait()?;
                tree.wait(&self.listed);
                continue;
            }
            let Some(unsure) = unsure.cloned() else {
                return Ok(tree);
            };
            cx.may_wait()?;
            tree = self.ask_about(tree, &unsure)?;
        }
    }

    /// Asks the host about renames of unknown outcome that may have changed the path of an inode.
    ///
    /// # Errors
    /// See [`Self::settled`].
    fn settle_path(&self, ino: Ino) -> remote::Result<()> {
        let mut tree = self.tree.lock();
        while let Some(unsure) = tree.unsure_rename_of(ino) {
            if tree.is_changing(unsure) {
                tree.wait(&self.listed);
                continue;
            }
            let unsure = unsure.clone();
            tree = self.ask_about(tree, &unsure)?;
        }
        Ok(())
    }

    /// Lets go of the tree while it asks whether a rename was carried out.
    fn ask_about<'a>(
        &'a self,
        tree: TreeGuard<'a>,
        unsure: &UnsureRename,
    ) -> remote::Result<TreeGuard<'a>> {
        drop(tree);
        let at = self.clock.tick();
        let mut refused = None;
        let mut look = |path: &RemotePath| {
            Ok(match self.remote.stat(path) {
                Ok(stat) => Looked::There(stat),
                Err(error) if error.is_connection_loss() => return Err(error),
                Err(error) => match error.reason() {
                    Some(Reason::NotFound | Reason::NotADirectory) => Looked::Absent,
                    _ => {
                        refused = Some(error);
                        Looked::Hidden
                    }
                },
            })
        };
        let to = look(&unsure.to_path)?;
        let mut outcome = unsure.outcome(&to, None);
        if outcome.is_none() {
            let from = look(&unsure.from_path)?;
            outcome = unsure.outcome(&to, Some(&from));
        }
        match (outcome, refused) {
            (None, Some(error)) => Err(error),
            (outcome, _) => {
                let mut tree = self.tree.lock();
                tree.settle_rename(unsure, outcome.unwrap_or(false), at);
                Ok(tree)
            }
        }
    }

    /// Whether a directory may have another path by now than the one by which the host was asked.
    fn was_moved(tree: &Tree, ino: Ino, path: &RemotePath) -> bool {
        tree.is_below_moving(ino)
            || tree.is_below_unsure(ino)
            || tree.path(ino).is_some_and(|now| now != *path)
    }

    /// Lists a directory that is marked as being listed, for a lookup; takes the tree again.
    fn ask_for_listing(&self, ino: Ino, path: &RemotePath, at: Tick) -> Result<TreeGuard<'_>> {
        match self.list(ino, path, at) {
            Ok(()) => {}
            // Names in it may still be found one by one.
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

    /// Lists a directory that is marked as being listed, and removes the mark. A directory that was
    /// moved meanwhile is not an error: the caller asks again, by its new path.
    fn list(&self, ino: Ino, path: &RemotePath, at: Tick) -> remote::Result<()> {
        let listing = BeingListed { vfs: self, ino };
        let result = self.remote.list(path);
        let mut tree = self.tree.lock();
        let result = match result {
            Ok(listing) => {
                tree.learn_listing(ino, listing, at);
                Ok(())
            }
            Err(error)
                if error.reason() == Some(Reason::NotFound)
                    && Self::was_moved(&tree, ino, path) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        };
        drop(tree);
        drop(listing);
        result
    }

    /// Decides between listing a directory and asking for one name; if it is to be listed, says
    /// in the tree that it is.
    fn should_list(&self, tree: &mut Tree, ino: Ino, now: Tick) -> bool {
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
            let is_second = dir.missed_at.is_some_and(|at| now.saturating_sub(at) < ttl);
            dir.missed_at = Some(now);
            if !is_second {
                return false;
            }
        }
        dir.is_listing = true;
        true
    }

    pub fn forget(&self, ino: Ino, n_lookups: u64) {
        self.tree.lock().forget(ino, n_lookups);
    }

    /// Returns the state of the host's filesystem that an inode lies on.
    pub fn statfs(&self, cx: &Context, ino: Ino) -> Result<FsStat> {
        let now = self.clock.tick();
        let (device, path) = Self::place_on_host(&self.tree.lock(), ino);
        let is_fresh = |at: Tick| now.saturating_sub(at) < FS_STAT_TTL;
        if let Some(&(at, fs)) = self.fs.lock().get(&device)
            && is_fresh(at)
        {
            return Ok(fs);
        }
        cx.may_wait()?;
        let fs = match self.remote.fs_stat(&path) {
            // Somebody removed it on the host; the root is there, and nearly always the same.
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

    /// Returns the device of the host that an inode lies on, and a path there: its own, or that of
    /// the directory above it where the host does not have it, or where it is a symlink, which
    /// would lead elsewhere.
    fn place_on_host(tree: &Tree, ino: Ino) -> (Option<u64>, RemotePath) {
        let mut at = ino;
        while let Some(inode) = tree.get(at) {
            let is_there = inode.stat.kind != FileKind::Symlink && inode.stat.id.is_some();
            if let Some(path) = tree.path(at).filter(|_| is_there) {
                return (inode.stat.id.map(|id| id.dev), path);
            }
            match inode.place() {
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

    /// Whether something that the host has told still holds; `since` is when the operation
    /// that wants to know began, so that even with no lifetime at all one answer is enough.
    fn is_fresh(&self, freshness: Freshness, since: Tick) -> bool {
        match freshness {
            Freshness::Ours => true,
            Freshness::Asked(at) => {
                at >= since || self.clock.tick().saturating_sub(at) < self.options.ttl
            }
            Freshness::Stale(_) => false,
        }
    }

    fn ttl_left(&self, freshness: Freshness) -> Duration {
        match freshness {
            Freshness::Asked(at) => {
                let age = self.clock.tick().saturating_sub(at);
                self.options.ttl.saturating_sub(age)
            }
            Freshness::Ours | Freshness::Stale(_) => Duration::ZERO,
        }
    }

    /// Whom a new file in `parent` is to belong to on the host; `None` for the login user.
    fn owner_for(&self, tree: &Tree, cx: &Context, parent: Ino) -> Option<Owner> {
        let facts = self.remote.facts();
        if !self.options.gives_away || facts.uid != 0 {
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

/// Removes the mark that a directory is being listed when it is dropped, however the listing ends, and
/// wakes the callers that wait for it.
struct BeingListed<'a> {
    vfs: &'a Vfs,
    ino: Ino,
}

impl Drop for BeingListed<'_> {
    fn drop(&mut self) {
        let mut tree = self.vfs.tree.lock();
        if let Some(dir) = tree.dir_mut(self.ino) {
            dir.is_listing = false;
        }
        tree.collect(self.ino);
        drop(tree);
        self.vfs.listed.notify_all();
    }
}
