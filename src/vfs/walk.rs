//! Recognizes programs that walk through a tree (`cp -r`, `grep -r`, `git status`, `find`), and
//! decides what to read ahead for them; pure.
//!
//! Events come in (a file is opened, a directory is listed), and the files and directories that the
//! program will want next come out. Nothing here asks the host, holds content, or reads a clock.
//!
//! A walk is recognized by its order. Programs take the names of a directory either in the order of
//! a listing, which is sorted by name here, or in the order of inode numbers (cp, rm), and go down
//! into a directory where they meet it. The evidence that is needed depends on what happened before:
//!
//! ```text
//! before the open                                            evidence for a walk of files
//! the directory was read, and so was the one above or        its first file
//!   before it, without a pause: a walk of directories
//! the directory was read                                     its first two files, or n files of
//!                                                            the first 1.5 n
//! nothing                                                    three files one after another
//!
//! before a directory is listed                               evidence for a walk of directories
//! a program read the directory above, without a pause        it is the first one in there
//! the directory before it was listed, without a pause        it is the next one
//! ```
//!
//! One `ls`, an editor, the completion of a shell, and a reader without an order give none.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::time::Duration;

use lru::LruCache;

use crate::clock::Tick;
use crate::path::Name;
use crate::vfs::Ino;

/// A directory and a name in it.
pub(super) type Place = (Ino, Name);

/// A name of a directory, as far as a walk needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Child {
    pub(super) name: Name,
    /// The inode number that programs see.
    pub(super) shown_ino: u64,
    pub(super) kind: ChildKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChildKind {
    /// A regular file of this size, in bytes.
    File(u64),
    /// A directory, and its inode if it has one.
    Directory(Option<Ino>),
    Other,
}

/// What is known of the tree.
pub(super) trait Known {
    /// Returns the names in a directory. `None` if they are not known, or too old, or too many.
    fn children(&self, dir: Ino) -> Option<Vec<Child>>;

    /// Returns whether [`Self::children`] returns names.
    fn is_listed(&self, dir: Ino) -> bool;

    /// Returns the directory above, and the name of `dir` in it. `None` for the root.
    fn parent(&self, dir: Ino) -> Option<Place>;
}

/// What to read ahead.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ahead {
    /// Files to fetch, in the order of the walk.
    pub(super) files: Vec<Place>,
    /// Directories to list, with those below them.
    pub(super) directories: Vec<Place>,
    /// How many names these listings may have in all.
    pub(super) max_names: usize,
}

/// Events of one walk are less than this apart, without the time that the host takes.
const PAUSE: Duration = Duration::from_millis(250);

/// Opens that belong together are less than this apart.
const MAX_GAP: Duration = Duration::from_secs(3);

/// A walk is over when nothing happened for so long.
const MAX_IDLE: Duration = Duration::from_secs(10);

/// The first window of a walk: how much is fetched ahead at once. It grows by a factor while what
/// was fetched is used.
const FIRST_FILES: usize = 8;
const FIRST_BYTES: u64 = 256 << 10;
const MAX_FILES: usize = 512;
const GROWTH: usize = 4;

/// Larger files are not read ahead.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The first and the largest number of names to list ahead.
const FIRST_NAMES: usize = 1000;
const MAX_NAMES: usize = 64_000;

/// How many directories are named in one request for listings.
const MAX_DIRECTORIES: usize = 64;

/// How many names one decision looks at.
const MAX_VISITED: usize = 4096;

/// A walk ends after so many opens that it did not foresee.
const MAX_MISSES: u32 = 8;

/// Nothing is listed ahead any more after so many requests in a row that listed nothing.
const MAX_USELESS: u32 = 3;

const MAX_WALKS: usize = 4;
const MAX_TRACKS: usize = 64;
/// How many opens of a directory are remembered.
const MAX_OPENS: usize = 16;
/// How far up a directory's ancestors are looked at.
const MAX_DEPTH: usize = 64;

/// The order in which a program takes the names of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Name,
    Inode,
}

const ORDERS: [Order; 2] = [Order::Name, Order::Inode];

impl Order {
    fn sort(self, children: &mut [Child]) {
        match self {
            Self::Name => {
                children.sort_unstable_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()))
            }
            Self::Inode => children.sort_unstable_by_key(|child| child.shown_ino),
        }
    }
}

/// The events of one directory.
#[derive(Debug, Default)]
struct Track {
    /// When a program read the directory.
    read_at: Option<Tick>,
    /// The end of the last event in it or below it.
    last_at: Option<Tick>,
    /// Whether it was read in a walk of directories.
    is_walked: bool,
    /// The files that were opened last, without a gap.
    opens: Vec<Name>,
}

impl Track {
    fn is_recent(&self, now: Tick, limit: Duration) -> bool {
        self.last_at.is_some_and(|at| now.since(at) <= limit)
    }
}

/// The walks that are going on.
#[derive(Debug)]
pub(super) struct Walks {
    /// The largest window, in bytes.
    max_bytes: u64,
    tracks: LruCache<Ino, Track>,
    walks: Vec<Walk>,
    /// The number of names for the next listing ahead, and when the last one was decided.
    names: usize,
    names_at: Tick,
    /// How many requests for listings ahead in a row have listed nothing.
    n_useless: u32,
    /// The measured rate of the link, in bytes per second.
    rate: Option<u64>,
}

/// A program that goes through the files of a tree.
#[derive(Debug)]
struct Walk {
    root: Ino,
    order: Order,
    /// The last place that was fetched or opened.
    cursor: Place,
    /// Files that were fetched ahead, and not opened yet.
    ahead: HashMap<Place, u64>,
    n_files: usize,
    n_bytes: u64,
    /// How many files were fetched ahead last.
    n_asked: usize,
    n_misses: u32,
    last_at: Tick,
}

impl Walks {
    /// Fetches at most `max_bytes` ahead for one walk.
    pub(super) fn new(max_bytes: u64) -> Self {
        let n_tracks = NonZeroUsize::new(MAX_TRACKS).unwrap_or(NonZeroUsize::MIN);
        Self {
            max_bytes,
            tracks: LruCache::new(n_tracks),
            walks: Vec::new(),
            names: FIRST_NAMES,
            names_at: Tick::ZERO,
            n_useless: 0,
            rate: None,
        }
    }

    /// A file is about to be opened for reading. Returns what to read ahead, without that file.
    pub(super) fn opening(&mut self, known: &dyn Known, place: &Place, now: Tick) -> Ahead {
        self.walks
            .retain(|walk| now.since(walk.last_at) <= MAX_IDLE);
        let limit = self.byte_limit();
        if let Some(walk) = self
            .walks
            .iter_mut()
            .find(|it| it.ahead.contains_key(place))
        {
            walk.ahead.remove(place);
            (walk.n_misses, walk.last_at) = (0, now);
            if walk.ahead.len() > walk.n_asked / 2 {
                return Ahead::default();
            }
            walk.grow(limit);
            return walk.ask(known, limit);
        }
        let (dir, name) = place;
        let covering = self
            .walks
            .iter()
            .position(|it| is_below(known, *dir, it.root));
        if let Some(n) = covering {
            let walk = &mut self.walks[n];
            walk.n_misses += 1;
            walk.last_at = now;
            if walk.n_misses > MAX_MISSES {
                self.walks.swap_remove(n);
            } else if walk.ahead.is_empty() {
                walk.cursor = place.clone();
                return walk.ask(known, limit);
            }
            return Ahead::default();
        }
        for walk in &mut self.walks {
            if walk.ahead.is_empty() && walk.goes_on_in(known, place) {
                walk.last_at = now;
                return walk.ask(known, limit);
            }
        }
        self.track_open(known, *dir, name, now)
    }

    /// Notes the open of a file outside of all walks, and begins a walk if there is evidence.
    fn track_open(&mut self, known: &dyn Known, dir: Ino, name: &Name, now: Tick) -> Ahead {
        let track = self.tracks.get_or_insert_mut(dir, Track::default);
        if !track.is_recent(now, MAX_GAP) {
            track.opens.clear();
        }
        track.last_at = Some(now);
        if track.opens.contains(name) {
            return Ahead::default();
        }
        if track.opens.len() == MAX_OPENS {
            track.opens.remove(0);
        }
        track.opens.push(name.clone());
        let is_read = track.read_at.is_some_and(|at| now.since(at) <= MAX_GAP);
        let is_walked = track.is_walked && is_read;
        let needed = match (is_walked, is_read) {
            (true, _) => 1,
            (false, true) => 2,
            (false, false) => 3,
        };
        if track.opens.len() < needed {
            return Ahead::default();
        }
        let opens = track.opens.clone();
        let Some(mut children) = known.children(dir) else {
            return Ahead::default();
        };
        children.retain(|child| matches!(child.kind, ChildKind::File(_)));
        for order in ORDERS {
            order.sort(&mut children);
            let position = |name: &Name| children.iter().position(|child| child.name == *name);
            let positions: Option<Vec<usize>> = opens.iter().map(position).collect();
            let Some(positions) = positions else {
                continue;
            };
            let last = positions.iter().max().copied().unwrap_or_default();
            let is_walk = if needed < 3 {
                last < opens.len() + opens.len() / 2
            } else {
                let tail = &positions[positions.len() - 3..];
                tail.windows(2).all(|pair| pair[0] + 1 == pair[1])
            };
            if is_walk {
                let cursor = (dir, children[last].name.clone());
                return self.begin(known, order, cursor, now);
            }
        }
        Ahead::default()
    }

    fn begin(&mut self, known: &dyn Known, order: Order, cursor: Place, now: Tick) -> Ahead {
        let mut root = cursor.0;
        // A walk of directories goes on above this one.
        while self.tracks.peek(&root).is_some_and(|track| track.is_walked) {
            match known.parent(root) {
                Some((parent, _)) => root = parent,
                None => break,
            }
        }
        if self.walks.len() == MAX_WALKS {
            self.walks.remove(0);
        }
        let limit = self.byte_limit();
        let mut walk = Walk {
            root,
            order,
            cursor,
            ahead: HashMap::new(),
            n_files: FIRST_FILES,
            n_bytes: FIRST_BYTES.min(limit),
            n_asked: 0,
            n_misses: 0,
            last_at: now,
        };
        let ahead = walk.ask(known, limit);
        self.walks.push(walk);
        ahead
    }

    /// A directory is about to be listed, because a program reads it (`is_read`) or looks up a name
    /// in it. Returns which directories to list with it.
    pub(super) fn listing(
        &mut self,
        known: &dyn Known,
        dir: Ino,
        is_read: bool,
        now: Tick,
    ) -> Ahead {
        if self.n_useless >= MAX_USELESS {
            return Ahead::default();
        }
        let Some(order) = self.step_of_walk(known, dir, is_read, now) else {
            return Ahead::default();
        };
        let is_new = now.since(self.names_at) > MAX_IDLE;
        self.names = if is_new {
            FIRST_NAMES
        } else {
            (self.names * GROWTH).min(MAX_NAMES)
        };
        self.names_at = now;
        let mut directories = Vec::new();
        let mut above = known.parent(dir);
        while let Some((parent, name)) = above {
            directories.extend(unlisted_after(known, order, parent, &name));
            let is_walked = self.tracks.peek(&parent).is_some_and(|it| it.is_walked);
            above = known.parent(parent).filter(|_| is_walked);
            if directories.len() >= MAX_DIRECTORIES {
                break;
            }
        }
        directories.truncate(MAX_DIRECTORIES);
        Ahead {
            files: Vec::new(),
            directories,
            max_names: self.names,
        }
    }

    /// Returns the order of a walk of directories that comes to `dir` now.
    fn step_of_walk(&self, known: &dyn Known, dir: Ino, is_read: bool, now: Tick) -> Option<Order> {
        let (parent, name) = known.parent(dir)?;
        let mut children = known.children(parent)?;
        children.retain(|child| matches!(child.kind, ChildKind::Directory(_)));
        ORDERS.into_iter().find(|order| {
            order.sort(&mut children);
            let position = children.iter().position(|child| child.name == name);
            let before = position
                .and_then(|at| at.checked_sub(1))
                .map(|at| &children[at]);
            match before.map(|child| child.kind) {
                None => {
                    let track = self.tracks.peek(&parent);
                    is_read
                        && track.is_some_and(|it| it.read_at.is_some() && it.is_recent(now, PAUSE))
                }
                Some(ChildKind::Directory(Some(before))) => {
                    let track = self.tracks.peek(&before);
                    track.is_some_and(|it| it.is_recent(now, PAUSE))
                }
                Some(_) => false,
            }
        })
    }

    /// A program has read a directory; its listing is known now.
    pub(super) fn was_read(&mut self, known: &dyn Known, dir: Ino, now: Tick) {
        let is_walked = self.step_of_walk(known, dir, true, now).is_some();
        let track = self.tracks.get_or_insert_mut(dir, Track::default);
        track.is_walked = is_walked || track.is_walked && track.is_recent(now, PAUSE);
        track.read_at = Some(now);
        track.opens.clear();
        self.touch(known, dir, now);
    }

    /// Something in a directory has ended: an open, or a listing for a lookup.
    pub(super) fn touch(&mut self, known: &dyn Known, dir: Ino, now: Tick) {
        self.tracks.get_or_insert_mut(dir, Track::default).last_at = Some(now);
        for above in ancestors(known, dir) {
            if let Some(track) = self.tracks.peek_mut(&above) {
                track.last_at = Some(now);
            }
        }
    }

    /// A request for listings ahead has listed so many directories.
    pub(super) fn listed(&mut self, n_directories: usize) {
        self.n_useless = if n_directories == 0 {
            self.n_useless + 1
        } else {
            0
        };
    }

    /// What was fetched ahead arrived in this time.
    pub(super) fn measured(&mut self, n_bytes: u64, took: Duration) {
        // The round trip would dominate what a small answer tells.
        if n_bytes >= FIRST_BYTES {
            let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
            self.rate = Some(n_bytes.saturating_mul(1000) / millis);
        }
    }

    /// Returns the largest window in bytes: what the link transfers in about a second.
    fn byte_limit(&self) -> u64 {
        let by_rate = self.rate.map_or(u64::MAX, |rate| rate.max(FIRST_BYTES));
        self.max_bytes.min(by_rate)
    }
}

impl Walk {
    fn grow(&mut self, limit: u64) {
        self.n_files = (self.n_files * GROWTH).min(MAX_FILES);
        self.n_bytes = self.n_bytes.saturating_mul(GROWTH as u64).min(limit);
    }

    /// Returns the files after the cursor that fit into the window, and moves the cursor behind
    /// them.
    fn ask(&mut self, known: &dyn Known, limit: u64) -> Ahead {
        let mut window = Window {
            known,
            order: self.order,
            n_files: self.n_files,
            n_bytes: self.n_bytes.min(limit),
            children: HashMap::new(),
            files: Vec::new(),
            directories: Vec::new(),
            n_visited: 0,
        };
        if let Some(cursor) = window.fill(self.root, &self.cursor) {
            self.cursor = cursor;
        }
        let (files, directories) = (window.files, window.directories);
        self.n_asked = files.len();
        self.ahead.extend(files.iter().cloned());
        Ahead {
            files: files.into_iter().map(|(place, _)| place).collect(),
            directories,
            max_names: FIRST_NAMES,
        }
    }

    /// Returns whether a walk that has come to the end of its directory goes on with this file,
    /// which is the first one of another directory near by. If so, moves the root up to the
    /// directory that contains both.
    fn goes_on_in(&mut self, known: &dyn Known, place: &Place) -> bool {
        /// How far up the common directory may be.
        const NEAR: usize = 3;
        let near: Vec<Ino> = ancestors(known, place.0).take(NEAR).collect();
        let common = ancestors(known, self.root)
            .take(NEAR)
            .find(|it| near.contains(it));
        let Some(common) = common else {
            return false;
        };
        let Some(mut children) = known.children(place.0) else {
            return false;
        };
        children.retain(|child| matches!(child.kind, ChildKind::File(_)));
        self.order.sort(&mut children);
        if children.first().is_none_or(|first| first.name != place.1) {
            return false;
        }
        self.root = common;
        self.cursor = place.clone();
        true
    }
}

/// Collects the files after a place, in the order of a walk.
struct Window<'a> {
    known: &'a dyn Known,
    order: Order,
    n_files: usize,
    n_bytes: u64,
    /// The sorted names of the directories that were looked at.
    children: HashMap<Ino, Option<Rc<[Child]>>>,
    files: Vec<(Place, u64)>,
    /// Directories that must be listed before the walk can go on.
    directories: Vec<Place>,
    n_visited: usize,
}

impl Window<'_> {
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
    fn fill(&mut self, root: Ino, cursor: &Place) -> Option<Place> {
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
                    ChildKind::File(size) if size > MAX_FILE_BYTES.min(self.n_bytes) => {}
                    ChildKind::File(size) => {
                        n_bytes += size;
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
fn unlisted_after(known: &dyn Known, order: Order, parent: Ino, name: &Name) -> Vec<Place> {
    let Some(mut children) = known.children(parent) else {
        return Vec::new();
    };
    order.sort(&mut children);
    let position = children.iter().position(|child| child.name == *name);
    let start = position.map_or(children.len(), |at| at + 1);
    unlisted(known, parent, children.iter().skip(start))
}

/// Returns the directories above a directory, the nearest first.
fn ancestors(known: &dyn Known, dir: Ino) -> impl Iterator<Item = Ino> + '_ {
    let mut at = dir;
    std::iter::from_fn(move || {
        at = known.parent(at)?.0;
        Some(at)
    })
    .take(MAX_DEPTH)
}

fn is_below(known: &dyn Known, dir: Ino, root: Ino) -> bool {
    dir == root || ancestors(known, dir).any(|above| above == root)
}

#[cfg(test)]
mod tests;
