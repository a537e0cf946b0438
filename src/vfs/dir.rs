//! Reading directories.

use std::sync::Arc;

use crate::path::Name;
use crate::stat::FileKind;
use crate::vfs::Attr;
use crate::vfs::Context;
use crate::vfs::Error;
use crate::vfs::Fh;
use crate::vfs::Found;
use crate::vfs::Ino;
use crate::vfs::MAX_ROUNDS;
use crate::vfs::Purpose;
use crate::vfs::Result;
use crate::vfs::Vfs;
use crate::vfs::freshness::Freshness;
use crate::vfs::inode::NameState;
use crate::vfs::tree::Scope;
use crate::vfs::tree::Tree;

/// One name of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirItem {
    pub shown_ino: u64,
    pub kind: FileKind,
    /// May be `.` or `..`.
    pub name: Box<[u8]>,
}

/// How often a directory is listed again if its names change while it is listed.
const MAX_CHANGES: u32 = 3;

/// The names of a directory at one time.
#[derive(Debug)]
pub(super) struct Snapshot {
    items: Vec<DirItem>,
}

impl Vfs {
    pub fn opendir(&self, ino: Ino) -> Result<Fh> {
        let tree = self.tree.lock();
        Self::check_directory(&tree, ino)?;
        Ok(self.handles.lock().add_dir(ino))
    }

    pub fn releasedir(&self, fh: Fh) {
        self.handles.lock().remove_dir(fh);
    }

    /// Returns the names of a directory from position `offset` on. Offset 0 takes a new snapshot,
    /// which may block for the host.
    pub fn readdir(&self, cx: &Context, fh: Fh, offset: u64) -> Result<DirItems> {
        let handle = self.handles.lock().dir(fh)?;
        let snapshot = match handle.snapshot {
            Some(snapshot) if offset > 0 => snapshot,
            _ => {
                let snapshot = Arc::new(self.snapshot(cx, handle.ino)?);
                self.handles.lock().set_snapshot(fh, Arc::clone(&snapshot));
                snapshot
            }
        };
        Ok(DirItems {
            snapshot,
            next: usize::try_from(offset).unwrap_or(usize::MAX),
        })
    }

    fn snapshot(&self, cx: &Context, ino: Ino) -> Result<Snapshot> {
        let since = self.clock.tick();
        self.recover_names(cx, ino, since)?;
        let mut tree = self.tree.lock();
        self.release_listed_ahead(&mut tree, since);
        for round in 0..MAX_ROUNDS {
            tree = match self.resolve_renames(cx, tree, ino, Scope::Directory) {
                Ok(tree) => tree,
                Err(error) if self.may_use_stale(&error) => self.tree.lock(),
                Err(error) => return Err(error),
            };
            // If names change faster than they can be listed, the snapshot may lack one of them.
            let is_complete = round > MAX_CHANGES || !tree.has_unknown_names(ino);
            let dir = tree.dir_mut(ino).ok_or(Error::UnknownInode)?;
            let listed_at = dir.listed_at.filter(|_| is_complete);
            if listed_at.is_some_and(|at| self.is_fresh(Freshness::Asked(at), since)) {
                self.directory_was_read(&tree, ino);
                return Ok(Self::items(&tree, ino));
            }
            if tree
                .get(ino)
                .is_some_and(|inode| inode.links().is_empty() && ino != Ino::ROOT)
            {
                // Removed while open: it is empty.
                return Ok(Snapshot { items: Vec::new() });
            }
            cx.may_wait()?;
            let dir = tree.dir_mut(ino).ok_or(Error::UnknownInode)?;
            if dir.is_listing {
                tree.wait(&self.tree_changed);
                continue;
            }
            let path = tree.path(ino).ok_or(Error::NotFound)?;
            if let Some(dir) = tree.dir_mut(ino) {
                dir.is_listing = true;
            }
            let at = self.clock.tick();
            drop(tree);
            let result = self
                .list(ino, &path, at, Purpose::Read)
                .map_err(Error::from);
            tree = self.tree.lock();
            if let Err(error) = result {
                let was_listed = tree.dir_mut(ino).is_some_and(|dir| dir.listed_at.is_some());
                if was_listed && self.may_use_stale(&error) {
                    return Ok(Self::items(&tree, ino));
                }
                return Err(error);
            }
        }
        Err(Error::Changing)
    }

    fn items(tree: &Tree, ino: Ino) -> Snapshot {
        let shown = |ino: Ino| {
            tree.get(ino)
                .map_or(ino.0, |inode| Self::shown_ino(inode, ino))
        };
        let up = tree
            .get(ino)
            .and_then(|inode| inode.links().first())
            .map_or(ino, |(up, _)| *up);
        let dots = [(&b"."[..], ino), (&b".."[..], up)].map(|(name, ino)| DirItem {
            shown_ino: shown(ino),
            kind: FileKind::Directory,
            name: name.into(),
        });
        let names = tree.get(ino).and_then(|inode| inode.dir.as_deref());
        let named = names
            .into_iter()
            .flat_map(|dir| &dir.names)
            .filter_map(|(name, known)| {
                let (shown_ino, kind) = match &known.state {
                    NameState::Unknown | NameState::Absent => return None,
                    NameState::Inode(ino) => (shown(*ino), tree.get(*ino)?.stat.kind),
                    NameState::Listed(listed) => (
                        listed.stat.and_then(|stat| stat.id).map_or(1, |id| id.ino),
                        listed.kind,
                    ),
                };
                Some(DirItem {
                    shown_ino,
                    kind,
                    name: name.as_bytes().into(),
                })
            });
        let mut named: Vec<DirItem> = named.collect();
        // Programs that take the names in this order are recognized by it, see `walk`.
        named.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Snapshot {
            items: dots.into_iter().chain(named).collect(),
        }
    }

    /// Increments the lookup count of a name that was just read, as READDIRPLUS requires. `None` if
    /// the name is gone or its attributes are not known: the kernel then looks it up itself.
    pub fn lookup_listed(&self, parent: Ino, name: &[u8]) -> Option<(Attr, Found)> {
        let name = Name::new(name).ok()?;
        let mut tree = self.tree.lock();
        let (at, _) = tree.name_state(parent, &name)?;
        let ino = tree.instantiate(parent, &name)?;
        tree.get_mut(ino)?.lookups += 1;
        let attr = self.attr_of(&tree, ino).ok()?;
        Some((
            attr,
            Found {
                attr: Some(attr),
                ttl: self.ttl_left(at),
            },
        ))
    }

    /// Returns the inode that a directory handle belongs to.
    pub fn dir_ino(&self, fh: Fh) -> Result<Ino> {
        Ok(self.handles.lock().dir(fh)?.ino)
    }
}

/// An iterator over a snapshot, from a position on.
#[derive(Debug)]
pub struct DirItems {
    snapshot: Arc<Snapshot>,
    next: usize,
}

impl DirItems {
    /// Returns the next name and the position after it.
    pub fn peek(&self) -> Option<(&DirItem, u64)> {
        let item = self.snapshot.items.get(self.next)?;
        Some((item, self.next as u64 + 1))
    }

    pub fn advance(&mut self) {
        self.next += 1;
    }
}
