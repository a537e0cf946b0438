//! Inodes, their names, and what is known of both: no I/O, no clock, no waiting.
//!
//! An inode exists while the kernel knows it (lookup count), while it is open, while its content
//! is not yet uploaded, and, for a directory, while an inode below it exists. What a listing tells
//! of other files is kept with their names until it is too old.

mod lock;
mod news;
mod unsure;

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::cache::Entry;
use crate::clock::Tick;
use crate::path::Name;
use crate::path::RemotePath;
use crate::remote::Listed;
use crate::stat::FileId;
use crate::stat::Stat;
use crate::vfs::freshness::Freshness;
use crate::vfs::inode::Directory;
use crate::vfs::inode::Home;
use crate::vfs::inode::Ino;
use crate::vfs::inode::Inode;
use crate::vfs::inode::Known;
use crate::vfs::inode::Link;
use crate::vfs::inode::Loss;
use crate::vfs::inode::What;
pub(super) use crate::vfs::tree::lock::TreeGuard;
pub(super) use crate::vfs::tree::lock::TreeLock;
pub(super) use crate::vfs::tree::unsure::Looked;
pub(super) use crate::vfs::tree::unsure::Scope;
pub(super) use crate::vfs::tree::unsure::UnsureRename;

/// Numbers from here on are ours; those below are the host's. Low enough to be exact where a
/// program keeps numbers as doubles.
const FIRST_SYNTHETIC: u64 = 1 << 52;

#[derive(Debug)]
pub(super) struct Tree {
    inodes: HashMap<Ino, Inode>,
    /// Files with several names, by what they are on the host.
    by_id: HashMap<FileId, Ino>,
    next_synthetic: u64,
    n_names: usize,
    /// Names that requests of ours are about to rename or remove, with the number of the request:
    /// what the host says of them meanwhile may be its own doing for us.
    moving: Vec<(u64, Ino, Name)>,
    unsure: VecDeque<UnsureRename>,
    next_unsure: u64,
    /// Content of inodes that were dropped, to be removed when the lock of the tree is released.
    discarded: Vec<Arc<Entry>>,
}

/// More renames of unknown outcome than these are not remembered.
const MAX_UNSURE: usize = 64;

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
            moving: Vec::new(),
            unsure: VecDeque::new(),
            next_unsure: 0,
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

    /// The path of an inode, or the last one that it had.
    pub(super) fn place_path(&self, ino: Ino) -> Option<RemotePath> {
        match self.inodes.get(&ino)?.place() {
            Some((parent, name)) => Some(self.path(*parent)?.join(name)),
            None => self.path(ino),
        }
    }

    /// Whether `ino` is `dir` or lies below it, or did when it had a name.
    pub(super) fn is_below(&self, ino: Ino, dir: Ino) -> bool {
        let mut at = ino;
        loop {
            if at == dir {
                return true;
            }
            match self.inodes.get(&at).and_then(Inode::place) {
                Some((parent, _)) => at = *parent,
                None => return false,
            }
        }
    }

    fn put(&mut self, parent: Ino, name: &Name, known: Known) {
        let Some(dir) = self.dir_mut(parent) else {
            return;
        };
        if dir.names.insert(name.clone(), known).is_none() {
            self.n_names += 1;
        }
    }

    /// Returns the inode of a name that is known to be there, making one if need be; `None` if
    /// too little is known.
    pub(super) fn instantiate(&mut self, parent: Ino, name: &Name) -> Option<Ino> {
        let dir = self.dir_mut(parent)?;
        let known = dir.names.get_mut(name)?;
        let freshness = known.freshness;
        let (stat, target) = match &mut known.what {
            What::Unknown | What::Absent => return None,
            What::Inode(ino) => return Some(*ino),
            What::Listed(listed) => (listed.stat?, listed.target.take()),
        };
        let ino = self.inode_for(stat, freshness);
        if let Some(inode) = self.inodes.get_mut(&ino)
            && target.is_some()
        {
            inode.target = target;
        }
        self.bind_as(parent, name, ino, freshness);
        Some(ino)
    }

    /// Returns the inode of a file of the host: the one that has it under another name, or a new.
    fn inode_for(&mut self, stat: Stat, freshness: Freshness) -> Ino {
        if stat.nlink > 1
            && let Some(&ino) = stat.id.as_ref().and_then(|id| self.by_id.get(id))
            && self
                .inodes
                .get(&ino)
                .is_some_and(|inode| inode.stat.kind == stat.kind)
        {
            if let Freshness::Asked(at) = freshness {
                self.absorb(ino, stat, at);
            }
            return ino;
        }
        self.add(stat, freshness)
    }

    /// Makes an inode. Its number is the host's where that is free.
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

    /// Gives an inode a name, taking it from whatever had it.
    pub(super) fn bind(&mut self, parent: Ino, name: &Name, ino: Ino, at: Tick) {
        self.bind_as(parent, name, ino, Freshness::Asked(at));
    }

    fn bind_as(&mut self, parent: Ino, name: &Name, ino: Ino, freshness: Freshness) {
        let had = self
            .dir_mut(parent)
            .and_then(|dir| dir.names.get(name))
            .and_then(|known| {
                if let What::Inode(old) = known.what {
                    Some(old)
                } else {
                    None
                }
            });
        if had == Some(ino) {
            return;
        }
        if had.is_some() {
            let loss = self.loss(parent, name);
            self.unbind_as(parent, name, freshness, loss);
        }
        let what = What::Inode(ino);
        self.put(parent, name, Known { freshness, what });
        if let Some(dir) = self.dir_mut(parent) {
            dir.n_inodes += 1;
        }
        let link = (parent, name.clone());
        let last = self.inodes.get_mut(&ino).and_then(|it| it.home.add(link));
        if let Some((parent, _)) = last {
            self.unpin(parent);
        }
    }

    /// Says how whatever has a name loses it when somebody else takes it: a file that is needed here
    /// and has no other name stays where it was.
    pub(super) fn loss(&self, parent: Ino, name: &Name) -> Loss {
        let inode = self
            .bound(parent, name)
            .and_then(|ino| self.inodes.get(&ino));
        let is_needed = inode.is_some_and(|inode| inode.is_open() || inode.is_ours());
        if is_needed {
            Loss::TakenAway
        } else {
            Loss::Removed
        }
    }

    /// Lets a directory go that was kept for an inode without a name.
    fn unpin(&mut self, dir: Ino) {
        if let Some(dir) = self.dir_mut(dir) {
            dir.n_inodes = dir.n_inodes.saturating_sub(1);
        }
        self.collect(dir);
    }

    /// Has what the host says of names count for nothing until [`Self::end_move`], and its denial of
    /// what lies below them: a request of ours is about to rename or remove them.
    pub(super) fn begin_move(&mut self, id: u64, names: &[(Ino, &Name)]) {
        let names = names
            .iter()
            .map(|(parent, name)| (id, *parent, (*name).clone()));
        self.moving.extend(names);
    }

    /// See [`Self::begin_move`].
    pub(super) fn end_move(&mut self, id: u64, at: Tick) {
        let ended: Vec<_> = self.moving.extract_if(.., |(it, _, _)| *it == id).collect();
        for (_, parent, name) in ended {
            // A listing meanwhile may have had it, or not yet.
            if self.is_unknown(parent, &name) {
                self.doubt(parent, &name, at);
            }
        }
    }

    /// Whether a request of ours is about to rename or remove a name.
    pub(super) fn is_moving(&self, parent: Ino, name: &Name) -> bool {
        let mut names = self.moving.iter();
        names.any(|(_, dir, moving)| *dir == parent && moving == name)
    }

    /// Whether a directory is below a name that a request of ours is about to rename or remove, or has
    /// that name.
    pub(super) fn is_below_moving(&self, dir: Ino) -> bool {
        let mut roots = self.moving.iter();
        roots.any(|(_, parent, name)| {
            self.bound(*parent, name)
                .is_some_and(|root| self.is_below(dir, root))
        })
    }

    /// Remembers a rename of which nobody knows whether the host did it, until [`Self::settle_rename`].
    /// What the host says of both names counts for nothing until then.
    pub(super) fn note_unsure(&mut self, from: (Ino, &Name), to: (Ino, &Name)) {
        let moved = self.bound(from.0, from.1);
        let paths = [from, to].map(|(dir, name)| Some(self.path(dir)?.join(name)));
        let (Some(moved), [Some(from_path), Some(to_path)]) = (moved, paths) else {
            return;
        };
        let Some(stat) = self.inodes.get(&moved).map(|inode| inode.stat) else {
            return;
        };
        if self.unsure.len() == MAX_UNSURE {
            self.unsure.pop_front();
        }
        let place = |(parent, name): (Ino, &Name)| (parent, name.clone());
        self.next_unsure += 1;
        self.unsure.push_back(UnsureRename {
            id: self.next_unsure,
            moved,
            stat,
            from: place(from),
            to: place(to),
            from_path,
            to_path,
        });
    }

    /// Returns a rename of unknown outcome that decides what is found in `dir`, or what can be done
    /// there: it is of a name in `scope`, or of a directory at or above `dir`.
    pub(super) fn unsure_rename(&self, dir: Ino, scope: Scope<'_>) -> Option<&UnsureRename> {
        let is_of = |(parent, other): &Link| match scope {
            Scope::Directory => *parent == dir,
            Scope::Name(name) => *parent == dir && name == other,
            Scope::Below(name) => {
                let root = self.bound(dir, name);
                (*parent == dir && name == other)
                    || root.is_some_and(|root| self.is_below(*parent, root))
            }
        };
        let mut renames = self.unsure.iter();
        renames.find(|it| is_of(&it.from) || is_of(&it.to) || self.is_below(dir, it.moved))
    }

    /// Returns a rename of unknown outcome that has moved an inode, or a directory above it.
    pub(super) fn unsure_rename_of(&self, ino: Ino) -> Option<&UnsureRename> {
        let mut renames = self.unsure.iter();
        renames.find(|it| self.is_below(ino, it.moved))
    }

    /// Whether a request of ours is about to change a name of this rename, or its path.
    pub(super) fn is_changing(&self, unsure: &UnsureRename) -> bool {
        let mut places = [&unsure.from, &unsure.to].into_iter();
        places.any(|(parent, name)| self.is_moving(*parent, name) || self.is_below_moving(*parent))
    }

    /// Whether a directory may have been moved by a rename of unknown outcome.
    pub(super) fn is_below_unsure(&self, dir: Ino) -> bool {
        let mut renames = self.unsure.iter();
        renames.any(|it| self.is_below(dir, it.moved))
    }

    /// Says whether a rename of unknown outcome was carried out. That is believed only as long as
    /// nothing here has changed either name. The answer counts for nothing if it comes when
    /// the rename is not remembered any more, or while a request of ours changes one of the names.
    ///
    /// A dirty file that had the new name keeps its content, to be uploaded beside: what is in it may
    /// have been written after the program was told that the rename failed.
    pub(super) fn settle_rename(&mut self, unsure: &UnsureRename, has_happened: bool, at: Tick) {
        let remembered = self.unsure.iter().position(|it| it.id == unsure.id);
        let Some(n) = remembered.filter(|_| !self.is_changing(unsure)) else {
            return;
        };
        self.unsure.remove(n);
        let UnsureRename {
            moved,
            from: (from_dir, from_name),
            to: (to_dir, to_name),
            ..
        } = unsure;
        let has_its_id = |inode: &Inode| inode.stat.id == unsure.stat.id;
        // An upload to the old name since then has made another file of it.
        let is_as_it_was = self.bound(*from_dir, from_name) == Some(*moved)
            && self.inodes.get(moved).is_some_and(has_its_id)
            && self.has_path(*from_dir, from_name, &unsure.from_path)
            && self.has_path(*to_dir, to_name, &unsure.to_path)
            && !self.is_below(*to_dir, *moved);
        if has_happened && is_as_it_was {
            let loss = self.loss(*to_dir, to_name);
            self.rename((*from_dir, from_name), (*to_dir, to_name), at, loss);
        }
        self.doubt(*from_dir, from_name, at);
        self.doubt(*to_dir, to_name, at);
    }

    fn has_path(&self, dir: Ino, name: &Name, path: &RemotePath) -> bool {
        self.path(dir).is_some_and(|dir| dir.join(name) == *path)
    }

    /// Whether what the host says of a name may be the doing of a request of ours: `is_there` says
    /// whether it has the name.
    pub(super) fn is_in_doubt(&self, parent: Ino, name: &Name, is_there: bool) -> bool {
        let is_it = |(dir, other): &Link| *dir == parent && other == name;
        let is_unsure = |it: &UnsureRename| is_it(&it.from) || is_it(&it.to);
        self.is_moving(parent, name)
            || self.unsure.iter().any(is_unsure)
            || (!is_there && (self.is_below_moving(parent) || self.is_below_unsure(parent)))
    }

    /// Takes a name away; the inode stays as long as somebody needs it.
    pub(super) fn unbind(&mut self, parent: Ino, name: &Name, at: Tick, loss: Loss) {
        self.unbind_as(parent, name, Freshness::Asked(at), loss);
    }

    fn unbind_as(&mut self, parent: Ino, name: &Name, freshness: Freshness, loss: Loss) {
        let bound = self.bound(parent, name);
        let what = What::Absent;
        self.put(parent, name, Known { freshness, what });
        let Some(ino) = bound else { return };
        let link = (parent, name.clone());
        let mut is_pinned = false;
        if let Some(inode) = self.inodes.get_mut(&ino)
            && inode.home.remove(&link, loss)
        {
            is_pinned = inode.home.last().is_some();
            if let Some(id) = inode.stat.id
                && self.by_id.get(&id) == Some(&ino)
            {
                self.by_id.remove(&id);
            }
        }
        if !is_pinned && let Some(dir) = self.dir_mut(parent) {
            dir.n_inodes -= 1;
        }
        self.collect(ino);
    }

    pub(super) fn forget(&mut self, ino: Ino, n: u64) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.lookups = inode.lookups.saturating_sub(n);
        }
        self.collect(ino);
    }

    /// Drops an inode that nobody needs, and then the directories above it that nobody needs either;
    /// what is known of each stays with its name.
    pub(super) fn collect(&mut self, ino: Ino) {
        // No recursion: directories may lie deeper than a stack reaches.
        let mut left = vec![ino];
        while let Some(ino) = left.pop() {
            let links = self.collect_one(ino);
            left.extend(links.into_iter().map(|(parent, _)| parent));
        }
    }

    /// Returns the names of an inode that was dropped.
    fn collect_one(&mut self, ino: Ino) -> Vec<(Ino, Name)> {
        let Some(inode) = self.inodes.get(&ino) else {
            return Vec::new();
        };
        let is_needed = ino == Ino::ROOT
            || inode.lookups > 0
            || inode.is_open()
            || (inode.is_ours() && inode.home != Home::Unlinked)
            || inode
                .dir
                .as_ref()
                .is_some_and(|dir| dir.n_inodes > 0 || dir.is_listing);
        if is_needed {
            return Vec::new();
        }
        let Some(inode) = self.inodes.remove(&ino) else {
            return Vec::new();
        };
        // Its content is removed without the lock of the tree.
        self.discarded.extend(inode.entry);
        if let Some(id) = inode.stat.id
            && self.by_id.get(&id) == Some(&ino)
        {
            self.by_id.remove(&id);
        }
        self.n_names -= inode.dir.as_ref().map_or(0, |dir| dir.names.len());
        for (parent, name) in inode.home.links() {
            if let Some(dir) = self.dir_mut(*parent) {
                dir.n_inodes -= 1;
                if let Some(known) = dir.names.get_mut(name) {
                    let listed = Listed {
                        kind: inode.stat.kind,
                        stat: Some(inode.stat),
                        target: inode.target.clone(),
                    };
                    known.freshness = known.freshness.and(inode.freshness);
                    known.what = What::Listed(Box::new(listed));
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

    /// Returns the inode that has a name.
    pub(super) fn bound(&self, parent: Ino, name: &Name) -> Option<Ino> {
        match self
            .inodes
            .get(&parent)?
            .dir
            .as_ref()?
            .names
            .get(name)?
            .what
        {
            What::Inode(ino) => Some(ino),
            _ => None,
        }
    }

    /// Forgets all about a name, so that the host is asked when it is next wanted.
    pub(super) fn forget_name(&mut self, parent: Ino, name: &Name, at: Tick) {
        let loss = self.loss(parent, name);
        self.unbind(parent, name, at, loss);
        self.put_unknown(parent, name, at);
    }

    /// Has the host asked for a name when it is next wanted, by itself or with its directory.
    pub(super) fn put_unknown(&mut self, parent: Ino, name: &Name, at: Tick) {
        let (freshness, what) = (Freshness::Stale(at), What::Unknown);
        self.put(parent, name, Known { freshness, what });
    }

    /// Moves a name, taking the new one from whatever had it; `loss` says how that loses it.
    pub(super) fn rename(&mut self, from: (Ino, &Name), to: (Ino, &Name), at: Tick, loss: Loss) {
        let moved = self.dir_mut(from.0).and_then(|dir| {
            let known = dir.names.get_mut(from.1)?;
            Some(std::mem::replace(known, Known::asked(at, What::Absent)))
        });
        self.unbind(to.0, to.1, at, loss);
        match moved.map(|known| known.what) {
            Some(What::Inode(ino)) => {
                if let Some(dir) = self.dir_mut(from.0) {
                    dir.n_inodes -= 1;
                }
                if let Some(inode) = self.inodes.get_mut(&ino) {
                    let link = (from.0, from.1.clone());
                    inode.home.remove(&link, Loss::Removed);
                }
                self.bind(to.0, to.1, ino, at);
                self.confirm_below(ino, at);
                self.collect(from.0);
            }
            _ => self.put_unknown(to.0, to.1, at),
        }
    }

    /// Says that what was asked for before `at` cannot deny the names below a directory: the host was
    /// asked by its old path.
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

    fn take_discarded(&mut self) -> Vec<Arc<Entry>> {
        std::mem::take(&mut self.discarded)
    }

    /// Returns how many inodes there are.
    pub(super) fn len(&self) -> usize {
        self.inodes.len()
    }
}
