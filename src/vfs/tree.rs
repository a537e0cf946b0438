//! Inodes, their names, and what is known of both: no I/O, no clock, no waiting.
//!
//! An inode exists while the kernel knows it (lookup count), while it is open, while its content is
//! dirty, and, for a directory, while an inode below it exists. The attributes of other files stay
//! with their names until they are too old.
//!
//! Modules:
//! - `answers`: applies answers of the host, unless newer knowledge exists
//! - `lock`: the lock of the tree
//! - `unknown_rename`: renames of unknown outcome; pure

mod answers;
mod lock;
mod unknown_rename;

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::Entry;
use crate::clock::Tick;
use crate::path::Name;
use crate::path::RemotePath;
use crate::remote::Listed;
use crate::remote::SubListing;
use crate::stat::FileId;
use crate::stat::Stat;
use crate::vfs::freshness::Freshness;
use crate::vfs::inode::Dentry;
use crate::vfs::inode::Directory;
use crate::vfs::inode::Home;
use crate::vfs::inode::Ino;
use crate::vfs::inode::Inode;
use crate::vfs::inode::Link;
use crate::vfs::inode::Loss;
use crate::vfs::inode::NameState;
pub(super) use crate::vfs::tree::lock::TreeGuard;
pub(super) use crate::vfs::tree::lock::TreeLock;
pub(super) use crate::vfs::tree::unknown_rename::NameOnHost;
pub(super) use crate::vfs::tree::unknown_rename::Scope;
pub(super) use crate::vfs::tree::unknown_rename::UnknownRename;

/// Inode numbers from here on are assigned here; lower ones are those of the host. Small enough for
/// programs that store inode numbers as doubles.
const FIRST_SYNTHETIC: u64 = 1 << 52;

#[derive(Debug)]
pub(super) struct Tree {
    inodes: HashMap<Ino, Inode>,
    /// Files with several hard links, by device and inode number of the host.
    by_id: HashMap<FileId, Ino>,
    next_synthetic: u64,
    n_names: usize,
    /// The number of names from which on old ones are dropped.
    max_names: usize,
    /// Names that a request in flight renames or removes, with the number of the request. An answer
    /// about such a name may be from before or after that request.
    names_in_flight: Vec<(u64, Ino, Name)>,
    unknown_renames: VecDeque<UnknownRename>,
    next_unknown_rename: u64,
    /// Directories that were listed ahead, and when, oldest first.
    listed_ahead: VecDeque<(Tick, Ino)>,
    /// Cache entries of dropped inodes. Discarded after the lock of the tree is released.
    discarded: Vec<Dropped>,
}

/// The maximum number of renames of unknown outcome; the oldest is forgotten first.
const MAX_UNKNOWN_RENAMES: usize = 64;

/// The cache entry of an inode that was dropped.
#[derive(Debug)]
struct Dropped {
    entry: Arc<Entry>,
    is_unlinked: bool,
}

impl Tree {
    pub(super) fn new(root: Stat, at: Tick) -> Self {
        let mut inode = Inode::new(root, Freshness::Asked(at));
        // The kernel never forgets the root.
        inode.lookups = 1;
        Self {
            inodes: HashMap::from([(Ino::ROOT, inode)]),
            by_id: HashMap::new(),
            next_synthetic: FIRST_SYNTHETIC,
            n_names: 0,
            max_names: answers::MAX_NAMES,
            names_in_flight: Vec::new(),
            unknown_renames: VecDeque::new(),
            next_unknown_rename: 0,
            listed_ahead: VecDeque::new(),
            discarded: Vec::new(),
        }
    }

    pub(super) fn get(&self, ino: Ino) -> Option<&Inode> {
        self.inodes.get(&ino)
    }

    pub(super) fn get_mut(&mut self, ino: Ino) -> Option<&mut Inode> {
        self.inodes.get_mut(&ino)
    }

    pub(super) fn inodes(&self) -> impl Iterator<Item = (Ino, &Inode)> {
        self.inodes.iter().map(|(&ino, inode)| (ino, inode))
    }

    pub(super) fn dir_mut(&mut self, ino: Ino) -> Option<&mut Directory> {
        self.inodes.get_mut(&ino)?.dir.as_deref_mut()
    }

    /// Returns the path of an inode by its first name; `None` if it has none.
    pub(super) fn path(&self, ino: Ino) -> Option<RemotePath> {
        let mut names = Vec::new();
        let mut at = ino;
        while at != Ino::ROOT {
            let (parent, name) = self.inodes.get(&at)?.links().first()?;
            names.push(name);
            at = *parent;
        }
        Some(
            names
                .into_iter()
                .rev()
                .fold(RemotePath::root(), |path, name| path.join(name)),
        )
    }

    /// Returns the path of an inode, or the last path it had.
    pub(super) fn current_or_last_path(&self, ino: Ino) -> Option<RemotePath> {
        match self.inodes.get(&ino)?.current_or_last_link() {
            Some((parent, name)) => Some(self.path(*parent)?.join(name)),
            None => self.path(ino),
        }
    }

    /// Returns whether `ino` is `dir` or is below it, by its current or last path.
    pub(super) fn is_below(&self, ino: Ino, dir: Ino) -> bool {
        let mut at = ino;
        loop {
            if at == dir {
                return true;
            }
            match self.inodes.get(&at).and_then(Inode::current_or_last_link) {
                Some((parent, _)) => at = *parent,
                None => return false,
            }
        }
    }

    fn put(&mut self, parent: Ino, name: &Name, dentry: Dentry) {
        let Some(dir) = self.dir_mut(parent) else {
            return;
        };
        if dir.names.insert(name.clone(), dentry).is_none() {
            self.n_names += 1;
        }
    }

    /// Returns the inode of a name that is known to exist, and creates it if necessary; `None` if
    /// the name does not exist or its attributes are not known.
    pub(super) fn instantiate(&mut self, parent: Ino, name: &Name) -> Option<Ino> {
        let dir = self.dir_mut(parent)?;
        let dentry = dir.names.get_mut(name)?;
        let freshness = dentry.freshness;
        let (stat, target) = match &mut dentry.state {
            NameState::Unknown | NameState::Absent => return None,
            NameState::Inode(ino) => return Some(*ino),
            NameState::Listed(listed) => (listed.stat?, listed.target.take()),
        };
        let ino = self.inode_for(stat, freshness);
        if let Some(inode) = self.inodes.get_mut(&ino)
            && target.is_some()
        {
            inode.target = target;
        }
        self.link_as(parent, name, ino, freshness);
        Some(ino)
    }

    /// Returns the inode for a file of the host: the existing one if it is another hard link of it,
    /// or a new one.
    fn inode_for(&mut self, stat: Stat, freshness: Freshness) -> Ino {
        if stat.nlink > 1
            && let Some(&ino) = stat.id.as_ref().and_then(|id| self.by_id.get(id))
            && self
                .inodes
                .get(&ino)
                .is_some_and(|inode| inode.stat.kind == stat.kind)
        {
            if let Freshness::Asked(at) = freshness {
                self.apply_stat(ino, stat, at);
            }
            return ino;
        }
        self.add(stat, freshness)
    }

    /// Creates an inode. It gets the inode number of the host if that number is free.
    pub(super) fn add(&mut self, stat: Stat, freshness: Freshness) -> Ino {
        let wanted = stat.id.map(|id| Ino(id.ino)).filter(|ino| {
            ino.0 > Ino::ROOT.0 && ino.0 < FIRST_SYNTHETIC && !self.inodes.contains_key(ino)
        });
        let ino = wanted.unwrap_or_else(|| {
            self.next_synthetic += 1;
            Ino(self.next_synthetic)
        });
        self.inodes.insert(ino, Inode::new(stat, freshness));
        self.index_id(ino, &stat);
        ino
    }

    /// Links an inode to a name. An inode that had the name loses it.
    pub(super) fn link(&mut self, parent: Ino, name: &Name, ino: Ino, at: Tick) {
        self.link_as(parent, name, ino, Freshness::Asked(at));
    }

    fn link_as(&mut self, parent: Ino, name: &Name, ino: Ino, freshness: Freshness) {
        let had = self
            .dir_mut(parent)
            .and_then(|dir| dir.names.get(name))
            .and_then(|dentry| {
                if let NameState::Inode(old) = dentry.state {
                    Some(old)
                } else {
                    None
                }
            });
        if had == Some(ino) {
            return;
        }
        if had.is_some() {
            let loss = self.loss_if_replaced(parent, name);
            self.unlink_as(parent, name, freshness, loss);
        }
        let state = NameState::Inode(ino);
        self.put(parent, name, Dentry { freshness, state });
        if let Some(dir) = self.dir_mut(parent) {
            dir.n_inodes += 1;
        }
        let link = (parent, name.clone());
        let last = self.inodes.get_mut(&ino).and_then(|it| it.home.add(link));
        if let Some((parent, _)) = last {
            self.release_dir(parent);
        }
    }

    /// Returns how the inode that has a name loses it if another file takes the name: an inode that
    /// is open or dirty remembers its last path.
    pub(super) fn loss_if_replaced(&self, parent: Ino, name: &Name) -> Loss {
        let inode = self
            .linked(parent, name)
            .and_then(|ino| self.inodes.get(&ino));
        let is_needed = inode.is_some_and(|inode| inode.is_open() || inode.is_dirty());
        if is_needed {
            Loss::TakenAway
        } else {
            Loss::Removed
        }
    }

    /// Releases a directory that was kept because it was the last parent of an inode without a
    /// name.
    fn release_dir(&mut self, dir: Ino) {
        if let Some(dir) = self.dir_mut(dir) {
            dir.n_inodes = dir.n_inodes.saturating_sub(1);
        }
        self.drop_unused(dir);
    }

    /// Marks names as in flight: a request renames or removes them. Until
    /// [`Self::remove_names_in_flight`], answers about these names are ignored, and so are answers
    /// that a name below them does not exist.
    pub(super) fn add_names_in_flight(&mut self, id: u64, names: &[(Ino, &Name)]) {
        let names = names
            .iter()
            .map(|(parent, name)| (id, *parent, (*name).clone()));
        self.names_in_flight.extend(names);
    }

    /// Ends what [`Self::add_names_in_flight`] began.
    pub(super) fn remove_names_in_flight(&mut self, id: u64, at: Tick) {
        let ended: Vec<_> = self
            .names_in_flight
            .extract_if(.., |(it, _, _)| *it == id)
            .collect();
        for (_, parent, name) in ended {
            // A listing from meanwhile may be from before or after the change.
            if self.is_unknown(parent, &name) {
                self.invalidate_name(parent, &name, at);
            }
        }
    }

    /// Returns whether a request in flight renames or removes this name.
    pub(super) fn is_in_flight(&self, parent: Ino, name: &Name) -> bool {
        let mut names = self.names_in_flight.iter();
        names.any(|(_, dir, other)| *dir == parent && other == name)
    }

    /// Returns whether a directory is, or is below, what a request in flight renames or removes.
    pub(super) fn is_below_in_flight(&self, dir: Ino) -> bool {
        let mut roots = self.names_in_flight.iter();
        roots.any(|(_, parent, name)| {
            self.linked(*parent, name)
                .is_some_and(|root| self.is_below(dir, root))
        })
    }

    /// Remembers a rename of unknown outcome until [`Self::apply_rename_outcome`]. Until then,
    /// answers of the host about both names are ignored.
    pub(super) fn add_unknown_rename(&mut self, from: (Ino, &Name), to: (Ino, &Name)) {
        let moved = self.linked(from.0, from.1);
        let paths = [from, to].map(|(dir, name)| Some(self.path(dir)?.join(name)));
        let (Some(moved), [Some(from_path), Some(to_path)]) = (moved, paths) else {
            return;
        };
        let Some(stat) = self.inodes.get(&moved).map(|inode| inode.stat) else {
            return;
        };
        if self.unknown_renames.len() == MAX_UNKNOWN_RENAMES {
            self.unknown_renames.pop_front();
        }
        let link = |(parent, name): (Ino, &Name)| (parent, name.clone());
        self.next_unknown_rename += 1;
        self.unknown_renames.push_back(UnknownRename {
            id: self.next_unknown_rename,
            moved,
            stat,
            from: link(from),
            to: link(to),
            from_path,
            to_path,
            n_refusals: 0,
            refused_at: None,
        });
    }

    /// Returns a rename of unknown outcome that affects the names of `scope` in `dir`: it renamed
    /// one of these names, or `dir` or a directory above it.
    pub(super) fn unknown_rename_in(&self, dir: Ino, scope: Scope<'_>) -> Option<&UnknownRename> {
        let is_of = |(parent, other): &Link| match scope {
            Scope::Directory => *parent == dir,
            Scope::Name(name) => *parent == dir && name == other,
            Scope::Below(name) => {
                let root = self.linked(dir, name);
                (*parent == dir && name == other)
                    || root.is_some_and(|root| self.is_below(*parent, root))
            }
        };
        let mut renames = self.unknown_renames.iter();
        renames.find(|it| is_of(&it.from) || is_of(&it.to) || self.is_below(dir, it.moved))
    }

    /// Returns a rename of unknown outcome of this inode, or of a directory above it.
    pub(super) fn unknown_rename_above(&self, ino: Ino) -> Option<&UnknownRename> {
        let mut renames = self.unknown_renames.iter();
        renames.find(|it| self.is_below(ino, it.moved))
    }

    /// Returns whether a request in flight changes one of the two names, or their paths.
    pub(super) fn has_name_in_flight(&self, rename: &UnknownRename) -> bool {
        let mut names = [&rename.from, &rename.to].into_iter();
        names.any(|(parent, name)| {
            self.is_in_flight(*parent, name) || self.is_below_in_flight(*parent)
        })
    }

    /// Returns whether a rename of unknown outcome may have changed the path of a directory.
    pub(super) fn is_below_unknown_rename(&self, dir: Ino) -> bool {
        let mut renames = self.unknown_renames.iter();
        renames.any(|it| self.is_below(dir, it.moved))
    }

    /// Applies the outcome of a rename, as the host told it. The inode is moved only if both names
    /// and their paths are as they were when the rename was requested. Does nothing if the rename
    /// is not remembered any more, or if a request in flight changes one of the names.
    ///
    /// A dirty file that had the new name keeps its content, which becomes a conflict copy: it may
    /// have been written after the program was told that the rename failed.
    pub(super) fn apply_rename_outcome(
        &mut self,
        rename: &UnknownRename,
        has_happened: bool,
        at: Tick,
    ) {
        let remembered = self
            .unknown_renames
            .iter()
            .position(|it| it.id == rename.id);
        let Some(n) = remembered.filter(|_| !self.has_name_in_flight(rename)) else {
            return;
        };
        self.unknown_renames.remove(n);
        let UnknownRename {
            moved,
            from: (from_dir, from_name),
            to: (to_dir, to_name),
            ..
        } = rename;
        let has_its_id = |inode: &Inode| inode.stat.id == rename.stat.id;
        // An upload to the old name since then has created another file.
        let is_as_it_was = self.linked(*from_dir, from_name) == Some(*moved)
            && self.inodes.get(moved).is_some_and(has_its_id)
            && self.has_path(*from_dir, from_name, &rename.from_path)
            && self.has_path(*to_dir, to_name, &rename.to_path)
            && !self.is_below(*to_dir, *moved);
        if has_happened && is_as_it_was {
            let loss = self.loss_if_replaced(*to_dir, to_name);
            self.rename((*from_dir, from_name), (*to_dir, to_name), at, loss);
        }
        self.invalidate_name(*from_dir, from_name, at);
        self.invalidate_name(*to_dir, to_name, at);
    }

    /// Counts that the host refused at `at` to tell the outcome of a rename; returns whether to give
    /// up. `None` if the rename is not remembered any more.
    pub(super) fn count_refusal(&mut self, rename: &UnknownRename, at: Tick) -> Option<bool> {
        let mut renames = self.unknown_renames.iter_mut();
        let known = renames.find(|it| it.id == rename.id)?;
        Some(known.is_refused_for_good(at))
    }

    fn has_path(&self, dir: Ino, name: &Name, path: &RemotePath) -> bool {
        self.path(dir).is_some_and(|dir| dir.join(name) == *path)
    }

    /// Returns whether an answer about a name must be ignored, because a request in flight or a
    /// rename of unknown outcome may have changed it. `is_there` is whether the host says that the
    /// name exists.
    pub(super) fn must_ignore_answer(&self, parent: Ino, name: &Name, is_there: bool) -> bool {
        let is_it = |(dir, other): &Link| *dir == parent && other == name;
        let is_of_it = |it: &UnknownRename| is_it(&it.from) || is_it(&it.to);
        self.is_in_flight(parent, name)
            || self.unknown_renames.iter().any(is_of_it)
            || (!is_there
                && (self.is_below_in_flight(parent) || self.is_below_unknown_rename(parent)))
    }

    /// Removes a name. The inode stays while it is in use.
    pub(super) fn unlink(&mut self, parent: Ino, name: &Name, at: Tick, loss: Loss) {
        self.unlink_as(parent, name, Freshness::Asked(at), loss);
    }

    fn unlink_as(&mut self, parent: Ino, name: &Name, freshness: Freshness, loss: Loss) {
        let bound = self.linked(parent, name);
        let state = NameState::Absent;
        self.put(parent, name, Dentry { freshness, state });
        let Some(ino) = bound else { return };
        let link = (parent, name.clone());
        let mut is_pinned = false;
        if let Some(inode) = self.inodes.get_mut(&ino)
            && inode.home.remove(&link, loss)
        {
            is_pinned = inode.home.last_link().is_some();
            if let Some(id) = inode.stat.id
                && self.by_id.get(&id) == Some(&ino)
            {
                self.by_id.remove(&id);
            }
        }
        if !is_pinned && let Some(dir) = self.dir_mut(parent) {
            dir.n_inodes -= 1;
        }
        self.drop_unused(ino);
    }

    /// Decrements the lookup count of an inode.
    pub(super) fn forget(&mut self, ino: Ino, n: u64) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.lookups = inode.lookups.saturating_sub(n);
        }
        self.drop_unused(ino);
    }

    /// Drops an inode that is not in use, and then the directories above it that are not in use.
    /// Their attributes stay with their names.
    pub(super) fn drop_unused(&mut self, ino: Ino) {
        // No recursion: a deep directory tree would overflow the stack.
        let mut left = vec![ino];
        while let Some(ino) = left.pop() {
            let links = self.drop_if_unused(ino);
            left.extend(links.into_iter().map(|(parent, _)| parent));
        }
    }

    /// Drops one inode if it is not in use; returns the names it had.
    fn drop_if_unused(&mut self, ino: Ino) -> Vec<(Ino, Name)> {
        let Some(inode) = self.inodes.get(&ino) else {
            return Vec::new();
        };
        let is_needed = ino == Ino::ROOT
            || inode.lookups > 0
            || inode.is_open()
            || (inode.is_dirty() && inode.home != Home::Unlinked)
            || inode
                .dir
                .as_ref()
                .is_some_and(|dir| dir.n_inodes > 0 || dir.is_listing || dir.is_listed_ahead);
        if is_needed {
            return Vec::new();
        }
        let Some(inode) = self.inodes.remove(&ino) else {
            return Vec::new();
        };
        // Its content is deleted after the lock of the tree is released.
        let is_unlinked = inode.home == Home::Unlinked;
        let dropped = inode.entry.map(|entry| Dropped { entry, is_unlinked });
        self.discarded.extend(dropped);
        if let Some(id) = inode.stat.id
            && self.by_id.get(&id) == Some(&ino)
        {
            self.by_id.remove(&id);
        }
        self.n_names -= inode.dir.as_ref().map_or(0, |dir| dir.names.len());
        for (parent, name) in inode.home.links() {
            if let Some(dir) = self.dir_mut(*parent) {
                dir.n_inodes -= 1;
                if let Some(dentry) = dir.names.get_mut(name) {
                    let listed = Listed {
                        kind: inode.stat.kind,
                        stat: Some(inode.stat),
                        target: inode.target.clone(),
                    };
                    dentry.freshness = dentry.freshness.and(inode.freshness);
                    dentry.state = NameState::Listed(Box::new(listed));
                }
            }
        }
        match inode.home {
            Home::Linked(links) => links,
            Home::Unlinked => Vec::new(),
            Home::TakenAway { last } | Home::OtherLink { last } => {
                if let Some(dir) = self.dir_mut(last.0) {
                    dir.n_inodes = dir.n_inodes.saturating_sub(1);
                }
                vec![last]
            }
        }
    }

    /// Returns the inode that is linked to a name.
    pub(super) fn linked(&self, parent: Ino, name: &Name) -> Option<Ino> {
        match self
            .inodes
            .get(&parent)?
            .dir
            .as_ref()?
            .names
            .get(name)?
            .state
        {
            NameState::Inode(ino) => Some(ino),
            _ => None,
        }
    }

    /// Removes a name and marks it as unknown, so that the next lookup asks the host.
    pub(super) fn forget_name(&mut self, parent: Ino, name: &Name, at: Tick) {
        let loss = self.loss_if_replaced(parent, name);
        self.unlink(parent, name, at, loss);
        self.set_unknown(parent, name, at);
    }

    /// Marks a name as unknown: the next lookup asks the host, and a listing does not show that it
    /// is absent.
    pub(super) fn set_unknown(&mut self, parent: Ino, name: &Name, at: Tick) {
        let (freshness, state) = (Freshness::Stale(at), NameState::Unknown);
        self.put(parent, name, Dentry { freshness, state });
    }

    /// Moves a name. An inode that had the new name loses it as `loss` says.
    pub(super) fn rename(&mut self, from: (Ino, &Name), to: (Ino, &Name), at: Tick, loss: Loss) {
        let moved = self.dir_mut(from.0).and_then(|dir| {
            let dentry = dir.names.get_mut(from.1)?;
            Some(std::mem::replace(
                dentry,
                Dentry::asked(at, NameState::Absent),
            ))
        });
        self.unlink(to.0, to.1, at, loss);
        match moved.map(|dentry| dentry.state) {
            Some(NameState::Inode(ino)) => {
                if let Some(dir) = self.dir_mut(from.0) {
                    dir.n_inodes -= 1;
                }
                if let Some(inode) = self.inodes.get_mut(&ino) {
                    let link = (from.0, from.1.clone());
                    inode.home.remove(&link, Loss::Removed);
                }
                self.link(to.0, to.1, ino, at);
                if let Some(dir) = self.dir_mut(ino) {
                    // Others may have waited for the new name.
                    dir.created_here_at = None;
                }
                self.confirm_below(ino, at);
                self.drop_unused(from.0);
            }
            _ => self.set_unknown(to.0, to.1, at),
        }
    }

    /// Marks all names below a directory as confirmed at `at`: answers to earlier requests used the
    /// old path, and cannot show that these names do not exist.
    fn confirm_below(&mut self, dir: Ino, at: Tick) {
        if self
            .inodes
            .get(&dir)
            .is_none_or(|inode| inode.dir.is_none())
        {
            return;
        }
        let links = self.inodes.values().flat_map(|inode| inode.links());
        let links = links
            .filter(|(parent, _)| self.is_below(*parent, dir))
            .cloned();
        for (parent, name) in links.collect::<Vec<_>>() {
            self.confirm(parent, &name, at);
        }
    }

    /// Applies listings of directories that no program has asked for, as of `at`. Those of
    /// directories that are not known, or that are other directories now, are ignored. Returns the
    /// directories.
    pub(super) fn apply_listings(&mut self, listings: Vec<SubListing>, at: Tick) -> Vec<Ino> {
        let mut applied = Vec::new();
        for SubListing { path, listing } in listings {
            let Some(ino) = self.instantiate_path(&path) else {
                continue;
            };
            let is_older = |dir: &Directory| dir.listed_at.is_some_and(|it| it > at);
            let is_it = self.inodes.get(&ino).is_some_and(|inode| {
                inode.dir.as_deref().is_some_and(|dir| !is_older(dir))
                    && inode.stat.id == listing.directory.id
            });
            if !is_it {
                self.drop_unused(ino);
                continue;
            }
            if let Some(dir) = self.dir_mut(ino)
                && !std::mem::replace(&mut dir.is_listed_ahead, true)
            {
                self.listed_ahead.push_back((at, ino));
            }
            self.apply_listing(ino, listing, at);
            applied.push(ino);
        }
        applied
    }

    /// Returns the inode of a path, and creates it and those above it if necessary.
    fn instantiate_path(&mut self, path: &RemotePath) -> Option<Ino> {
        let mut ino = Ino::ROOT;
        for name in path.components() {
            let below = Name::new(name)
                .ok()
                .and_then(|name| self.instantiate(ino, &name));
            let Some(below) = below else {
                self.drop_unused(ino);
                return None;
            };
            ino = below;
        }
        Some(ino)
    }

    /// Lets go of directories that were listed ahead more than `max_age` before `now`: they are
    /// dropped if the kernel does not know them.
    pub(super) fn release_listed_ahead(&mut self, now: Tick, max_age: Duration) {
        while let Some((listed_at, ino)) = self.listed_ahead.front().copied()
            && now.since(listed_at) > max_age
        {
            self.listed_ahead.pop_front();
            if let Some(dir) = self.dir_mut(ino) {
                dir.is_listed_ahead = false;
            }
            self.drop_unused(ino);
        }
    }

    fn take_discarded(&mut self) -> Vec<Dropped> {
        std::mem::take(&mut self.discarded)
    }

    /// Returns whether there is room for names that no program has asked for.
    pub(super) fn has_room(&self) -> bool {
        self.n_names < answers::MAX_NAMES
    }

    /// Returns the number of inodes.
    pub(super) fn len(&self) -> usize {
        self.inodes.len()
    }
}
