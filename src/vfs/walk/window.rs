//! The files after a place, in the order of a walk.

use std::collections::HashMap;
use std::rc::Rc;

use crate::path::Name;
use crate::vfs::Ino;
use crate::vfs::walk::Child;
use crate::vfs::walk::ChildKind;
use crate::vfs::walk::Known;
use crate::vfs::walk::Place;

/// Larger files are not read ahead, in bytes.
pub(in crate::vfs) const MAX_FILE_BYTES: u64 = 1 << 20;

/// How many directories are named in one request for listings.
pub(super) const MAX_DIRECTORIES: usize = 64;

/// How many names one decision looks at.
const MAX_VISITED: usize = 4096;

/// How far up a directory's ancestors are looked at.
const MAX_DEPTH: usize = 64;

/// The order in which a program takes the names of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Name,
    Inode,
}

pub(super) const ORDERS: [Order; 2] = [Order::Name, Order::Inode];

impl Order {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Name => Self::Inode,
            Self::Inode => Self::Name,
        }
    }

    pub(super) fn sort(self, children: &mut [Child]) {
        match self {
            Self::Name => {
                children.sort_unstable_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
            }
            Self::Inode => children.sort_unstable_by_key(|child| child.shown_ino),
        }
    }
}

/// Collects the files after a place, in the order of a walk.
pub(super) struct Window<'a> {
    known: &'a dyn Known,
    order: Order,
    n_files: usize,
    n_bytes: u64,
    /// Larger files are passed over.
    pub(super) max_file_bytes: u64,
    /// The sorted names of the directories that were looked at.
    children: HashMap<Ino, Option<Rc<[Child]>>>,
    pub(super) files: Vec<(Place, u64)>,
    /// Directories that must be listed before the walk can go on.
    pub(super) directories: Vec<Place>,
    n_visited: usize,
}

impl<'a> Window<'a> {
    pub(super) fn new(known: &'a dyn Known, order: Order, n_files: usize, n_bytes: u64) -> Self {
        Self {
            known,
            order,
            n_files,
            n_bytes,
            max_file_bytes: MAX_FILE_BYTES.min(n_bytes),
            children: HashMap::new(),
            files: Vec::new(),
            directories: Vec::new(),
            n_visited: 0,
        }
    }

    fn sorted(&mut self, dir: Ino) -> Option<Rc<[Child]>> {
        let (known, order) = (self.known, self.order);
        let children = self.children.entry(dir).or_insert_with(|| {
            let mut children = known.children(dir)?;
            order.sort(&mut children);
            Some(children.into())
        });
        children.clone()
    }

    /// Collects files below `root` behind `cursor`; returns the place of the last one.
    pub(super) fn fill(&mut self, root: Ino, cursor: &Place) -> Option<Place> {
        let mut last = None;
        let mut n_bytes = 0;
        let (mut dir, mut after) = (cursor.0, Some(cursor.1.clone()));
        'directory: while let Some(children) = self.sorted(dir) {
            let start = match &after {
                None => 0,
                Some(name) => children.iter().position(|child| child.name == *name)? + 1,
            };
            for (n, child) in children.iter().enumerate().skip(start) {
                self.n_visited += 1;
                if self.n_visited > MAX_VISITED {
                    return last;
                }
                match child.kind {
                    ChildKind::File(size) if size > self.max_file_bytes => {}
                    ChildKind::File(size) => {
                        n_bytes = u64::saturating_add(n_bytes, size);
                        if self.files.len() >= self.n_files || n_bytes > self.n_bytes {
                            return last;
                        }
                        let place = (dir, child.name.clone());
                        self.files.push((place.clone(), size));
                        last = Some(place);
                    }
                    ChildKind::Directory(Some(ino)) if self.sorted(ino).is_some() => {
                        (dir, after) = (ino, None);
                        continue 'directory;
                    }
                    ChildKind::Directory(_) => {
                        let rest = children.iter().skip(n);
                        self.directories = unlisted(self.known, dir, rest);
                        return last;
                    }
                    ChildKind::Other => {}
                }
            }
            if dir == root {
                break;
            }
            let (parent, name) = self.known.parent(dir)?;
            (dir, after) = (parent, Some(name));
        }
        last
    }
}

/// Returns the directories among `children` whose listings are not known.
fn unlisted<'a>(
    known: &dyn Known,
    parent: Ino,
    children: impl Iterator<Item = &'a Child>,
) -> Vec<Place> {
    children
        .filter(|child| match child.kind {
            ChildKind::Directory(Some(ino)) => !known.is_listed(ino),
            ChildKind::Directory(None) => true,
            ChildKind::File(_) | ChildKind::Other => false,
        })
        .take(MAX_DIRECTORIES)
        .map(|child| (parent, child.name.clone()))
        .collect()
}

/// Returns the directories after `name` whose listings are not known.
pub(super) fn unlisted_after(
    known: &dyn Known,
    order: Order,
    parent: Ino,
    name: &Name,
) -> Vec<Place> {
    let Some(mut children) = known.children(parent) else {
        return Vec::new();
    };
    order.sort(&mut children);
    let position = children.iter().position(|child| child.name == *name);
    let start = position.map_or(children.len(), |at| at + 1);
    unlisted(known, parent, children.iter().skip(start))
}

/// Returns the directories above a directory, the nearest first.
pub(super) fn ancestors(known: &dyn Known, dir: Ino) -> impl Iterator<Item = Ino> + '_ {
    let mut at = dir;
    std::iter::from_fn(move || {
        at = known.parent(at)?.0;
        Some(at)
    })
    .take(MAX_DEPTH)
}

pub(super) fn is_below(known: &dyn Known, dir: Ino, root: Ino) -> bool {
    dir == root || ancestors(known, dir).any(|above| above == root)
}
