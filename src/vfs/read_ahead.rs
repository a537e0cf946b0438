//! Reads ahead for programs that walk through a tree: tells [`Walks`] what they do, and carries out
//! what it decides.
//!
//! Content that was read ahead goes into the cache under its version, and is used only by an open
//! that wants this version; attributes are applied as any answer of the host. So it does not matter
//! whether a decision was good, or when its answer comes.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::ReadAheadTarget;
use crate::clock::Tick;
use crate::error_chain;
use crate::path::Name;
use crate::path::RemotePath;
use crate::remote::KnownDirectory;
use crate::remote::KnownFile;
use crate::remote::Listed;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::vfs::Ino;
use crate::vfs::Purpose;
use crate::vfs::Vfs;
use crate::vfs::freshness::Freshness;
use crate::vfs::inode::NameState;
use crate::vfs::permission;
use crate::vfs::tree::Tree;
use crate::vfs::walk::Ahead;
use crate::vfs::walk::Child;
use crate::vfs::walk::ChildKind;
use crate::vfs::walk::Known;
use crate::vfs::walk::MAX_FILE_BYTES;
use crate::vfs::walk::Place;

/// Directories with more names are not read ahead: to sort them takes too long for an event loop.
const MAX_NAMES: usize = 5000;

/// Listings that were made ahead are kept in memory for this time at least, while the kernel does
/// not know the directories.
const MIN_KEPT: Duration = Duration::from_secs(1);

impl Vfs {
    fn reads_ahead(&self) -> bool {
        let facts = self.remote.facts();
        self.options.read_ahead > 0 && (facts.can_fetch_many || facts.can_list_trees)
    }

    fn lists_ahead(&self) -> bool {
        self.options.read_ahead > 0 && self.remote.facts().can_list_trees
    }

    /// Called before an open fetches the content of a file. If its program walks through a tree,
    /// starts to fetch the file together with the next ones.
    pub(super) fn file_is_opened(&self, ino: Ino) {
        if !self.reads_ahead() {
            return;
        }
        let tree = self.tree.lock();
        let Some(place) = tree.get(ino).and_then(|it| it.links().first()).cloned() else {
            return;
        };
        let now = self.clock.tick();
        let known = Knowledge::new(self, &tree, now);
        let ahead = self.walks.lock().opening(&known, &place, now);
        self.list_later(&tree, &ahead, now);
        let Ahead { files, .. } = ahead;
        if files.is_empty() || !self.remote.facts().can_fetch_many {
            return;
        }
        let ahead: Vec<(Place, KnownFile)> = files
            .into_iter()
            .filter_map(|it| Some((it.clone(), self.file_to_fetch(&tree, &it, now)?)))
            .collect();
        if ahead.is_empty() {
            return;
        }
        let own = self
            .file_to_fetch(&tree, &place, now)
            .map(|file| (place, file));
        drop(tree);
        let (places, files) = own.into_iter().chain(ahead).unzip();
        if let Ok(vfs) = self.arc() {
            self.cache
                .read_ahead(files, Arc::new(Batch { vfs, places }));
        }
    }

    /// Lists a directory together with those that its program will want next, if the program walks
    /// through a tree. Returns whether the directory was listed.
    ///
    /// Blocks for the host.
    pub(super) fn list_with_next(&self, dir: Ino, at: Tick, purpose: Purpose) -> bool {
        if !self.lists_ahead() {
            return false;
        }
        let (mut roots, max_names) = {
            let tree = self.tree.lock();
            if !tree.has_room() {
                return false;
            }
            let known = Knowledge::new(self, &tree, at);
            let is_read = purpose == Purpose::Read;
            let mut walks = self.walks.lock();
            let ahead = walks.listing(&known, dir, is_read, at);
            let roots = Self::directories_to_list(&tree, &ahead);
            if roots.is_empty() {
                return false;
            }
            // In the same step, so that no second request is sent beside it.
            walks.lists();
            (roots, ahead.max_names)
        };
        let own = {
            let tree = self.tree.lock();
            let id = tree.get(dir).and_then(|inode| inode.stat.id);
            tree.path(dir).zip(id)
        };
        let Some((path, id)) = own else {
            self.walks.lock().listed(Some(0), at);
            return false;
        };
        roots.insert(0, KnownDirectory { path, id });
        self.list_trees(&roots, max_names, at).contains(&dir)
    }

    /// Starts to list directories on a worker.
    fn list_later(&self, tree: &Tree, ahead: &Ahead, at: Tick) {
        let roots = Self::directories_to_list(tree, ahead);
        if roots.is_empty() || !self.lists_ahead() || !tree.has_room() {
            return;
        }
        // From now on, so that no second request is sent beside it.
        self.walks.lock().lists();
        let max_names = ahead.max_names;
        if let Ok(vfs) = self.arc() {
            self.cache.run(move || {
                vfs.list_trees(&roots, max_names, at);
            });
        }
    }

    /// Lists directories and those below them, and applies the listings. Returns the directories
    /// that were listed.
    fn list_trees(&self, roots: &[KnownDirectory], max_names: usize, at: Tick) -> Vec<Ino> {
        self.walks.lock().lists();
        let mut request = ListingRequest {
            vfs: self,
            n_listed: None,
        };
        match self.remote.list_trees(roots, max_names) {
            Ok(listings) => {
                let mut tree = self.tree.lock();
                let applied = tree.apply_listings(listings, at);
                self.release_listed_ahead(&mut tree, at);
                request.n_listed = Some(applied.len());
                applied
            }
            Err(error) => {
                log::info!("cannot list ahead: {}", error_chain::with_causes(&error));
                Vec::new()
            }
        }
    }

    /// Drops directories that were listed ahead, and that no program has looked at until now.
    pub(super) fn release_listed_ahead(&self, tree: &mut Tree, now: Tick) {
        tree.release_listed_ahead(now, self.options.ttl.max(MIN_KEPT));
    }

    fn directories_to_list(tree: &Tree, ahead: &Ahead) -> Vec<KnownDirectory> {
        let directory = |(dir, name): &Place| {
            let (_, state) = tree.name_state(*dir, name)?;
            let stat = match state {
                NameState::Unknown | NameState::Absent => return None,
                NameState::Listed(listed) => listed.stat?,
                NameState::Inode(ino) => tree.get(*ino)?.stat,
            };
            let path = tree.path(*dir)?.join(name);
            Some(KnownDirectory { path, id: stat.id? })
        };
        ahead.directories.iter().filter_map(directory).collect()
    }

    /// Called when the content of an open file is there.
    pub(super) fn file_was_opened(&self, ino: Ino) {
        if !self.reads_ahead() {
            return;
        }
        let tree = self.tree.lock();
        if let Some((dir, _)) = tree.get(ino).and_then(|it| it.links().first()) {
            self.directory_was_looked_at(&tree, *dir);
        }
    }

    /// Called when a program has read a directory.
    pub(super) fn directory_was_read(&self, tree: &Tree, dir: Ino) {
        if self.reads_ahead() {
            let now = self.clock.tick();
            let known = Knowledge::new(self, tree, now);
            self.walks.lock().was_read(&known, dir, now);
        }
    }

    /// Called after an open in a directory, or after a listing for a lookup.
    pub(super) fn directory_was_looked_at(&self, tree: &Tree, dir: Ino) {
        if self.reads_ahead() {
            let now = self.clock.tick();
            let known = Knowledge::new(self, tree, now);
            self.walks.lock().touch(&known, dir, now);
        }
    }

    /// Returns what to fetch for a name; `None` if it is no file of the host that the login user may
    /// read, if its attributes are not fresh, or if its content is here or in flight.
    fn file_to_fetch(&self, tree: &Tree, (dir, name): &Place, now: Tick) -> Option<KnownFile> {
        let (freshness, state) = tree.name_state(*dir, name)?;
        let stat = match state {
            NameState::Unknown | NameState::Absent => return None,
            NameState::Listed(listed) => listed.stat?,
            NameState::Inode(ino) => {
                let inode = tree.get(*ino)?;
                let entry = inode.entry.as_ref();
                if entry.is_some_and(|it| it.is_dirty() || it.has_content() || it.is_fetching()) {
                    return None;
                }
                inode.stat
            }
        };
        let version = stat.version();
        // Files of /sys have a size and no blocks; to read some of them has effects.
        let is_odd = stat.blocks == 0 && stat.size > 0;
        let is_wanted = stat.kind == FileKind::File
            && !is_odd
            && stat.size <= MAX_FILE_BYTES
            && version.id.is_some()
            && self.is_fresh(freshness, now)
            && permission::permits(&stat, &self.login_user(), permission::READ)
            && !self.cache.has_or_reads_ahead(&version);
        let path = tree.path(*dir)?.join(name);
        is_wanted.then_some(KnownFile { path, version })
    }
}

/// A request for listings ahead. Dropping it ends it, also after a panic.
struct ListingRequest<'a> {
    vfs: &'a Vfs,
    n_listed: Option<usize>,
}

impl Drop for ListingRequest<'_> {
    fn drop(&mut self) {
        let now = self.vfs.clock.tick();
        self.vfs.walks.lock().listed(self.n_listed, now);
    }
}

/// Files that are being fetched ahead.
struct Batch {
    vfs: Arc<Vfs>,
    places: Vec<Place>,
}

impl ReadAheadTarget for Batch {
    fn fetched(&self, index: usize, path: &RemotePath, stat: &Stat, at: Tick) {
        let Some((dir, name)) = self.places.get(index) else {
            return;
        };
        let listed = Listed {
            kind: stat.kind,
            stat: Some(*stat),
            target: None,
        };
        let mut tree = self.vfs.tree.lock();
        // The directory may have been renamed meanwhile.
        if tree.path(*dir).is_some_and(|now| now.join(name) == *path) {
            tree.apply_answer(*dir, name, Some(Box::new(listed)), at);
        }
    }

    fn ended(&self, n_bytes: u64, took: Duration) {
        self.vfs.walks.lock().measured(n_bytes, took);
    }
}

/// The knowledge of the tree at one moment.
struct Knowledge<'a> {
    vfs: &'a Vfs,
    tree: &'a Tree,
    now: Tick,
}

impl<'a> Knowledge<'a> {
    fn new(vfs: &'a Vfs, tree: &'a Tree, now: Tick) -> Self {
        Self { vfs, tree, now }
    }
}

impl Known for Knowledge<'_> {
    fn children(&self, dir: Ino) -> Option<Vec<Child>> {
        if !self.is_listed(dir) {
            return None;
        }
        let directory = self.tree.get(dir)?.dir.as_deref()?;
        let child = |name: Name, state: &NameState| {
            let (shown_ino, stat, ino) = match state {
                NameState::Unknown | NameState::Absent => return None,
                NameState::Inode(ino) => {
                    let inode = self.tree.get(*ino)?;
                    (Vfs::shown_ino(inode, *ino), Some(inode.stat), Some(*ino))
                }
                NameState::Listed(listed) => {
                    let id = listed.stat.and_then(|stat| stat.id);
                    (id.map_or(0, |id| id.ino), listed.stat, None)
                }
            };
            let kind = match stat {
                Some(stat) if stat.kind == FileKind::File => ChildKind::File(stat.size),
                Some(stat) if stat.kind == FileKind::Directory => ChildKind::Directory(ino),
                _ => ChildKind::Other,
            };
            Some(Child {
                name,
                shown_ino,
                kind,
            })
        };
        let names = directory.names.iter();
        Some(
            names
                .filter_map(|(name, dentry)| child(name.clone(), &dentry.state))
                .collect(),
        )
    }

    fn is_listed(&self, dir: Ino) -> bool {
        let directory = self.tree.get(dir).and_then(|inode| inode.dir.as_deref());
        directory.is_some_and(|directory| {
            directory.names.len() <= MAX_NAMES
                && directory
                    .listed_at
                    .is_some_and(|at| self.vfs.is_fresh(Freshness::Asked(at), self.now))
        })
    }

    fn parent(&self, dir: Ino) -> Option<Place> {
        self.tree.get(dir)?.links().first().cloned()
    }
}
