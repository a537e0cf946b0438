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
//!
//! Modules:
//! - `single`: one walk: its window and its position
//! - `window`: the files after a place, in the order of a walk

mod single;
mod window;

use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;

use crate::clock::Tick;
use crate::path::Name;
use crate::vfs::Ino;
use crate::vfs::walk::single::FIRST_BYTES;
use crate::vfs::walk::single::Walk;
use crate::vfs::walk::window::MAX_DIRECTORIES;
pub(super) use crate::vfs::walk::window::MAX_FILE_BYTES;
use crate::vfs::walk::window::ORDERS;
use crate::vfs::walk::window::Order;
use crate::vfs::walk::window::ancestors;
use crate::vfs::walk::window::is_below;
use crate::vfs::walk::window::unlisted_after;

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

/// The names of the tree, as far as they are known and fresh.
pub(super) trait Known {
    /// Returns the names in a directory. `None` if they are not known, or too old, or too many.
    fn children(&self, dir: Ino) -> Option<Vec<Child>>;

    /// Returns whether [`Self::children`] returns names.
    fn is_listed(&self, dir: Ino) -> bool;

    /// Returns the directory above, and the name of `dir` in it. `None` for the root.
    fn parent(&self, dir: Ino) -> Option<Place>;
}

/// A decision: the files and directories to read ahead.
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

/// A window grows by this factor while what was read ahead is used.
const GROWTH: usize = 4;

/// The first and the largest number of names to list ahead.
const FIRST_NAMES: usize = 1000;
const MAX_NAMES: usize = 64_000;

/// A walk ends after so many opens that it did not foresee.
const MAX_MISSES: u32 = 8;

/// Nothing is listed ahead for a while after so many requests in a row that listed nothing, or after
/// one that failed.
const MAX_USELESS: u32 = 3;
const LISTING_PAUSE: Duration = Duration::from_secs(300);

/// After a request for listings that took longer, the next one asks for less.
const MAX_LISTING_TIME: Duration = Duration::from_millis(750);

/// The opens in a directory are not looked at any more after they were no walk so often: to sort its
/// names takes time.
const MAX_FAILURES: u32 = 8;

const MAX_WALKS: usize = 4;
const MAX_TRACKS: usize = 64;
/// How many opens of a directory are remembered.
const MAX_OPENS: usize = 16;

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
    /// How often the opens were no walk.
    n_failures: u32,
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
    /// Whether a request for listings ahead is in flight, and when the next one may be sent.
    is_listing: bool,
    lists_again_at: Option<Tick>,
    /// The measured rate of the link, in bytes per second.
    rate: Option<u64>,
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
            is_listing: false,
            lists_again_at: None,
            rate: None,
        }
    }

    /// A file is about to be opened for reading. Returns what to read ahead, without that file.
    pub(super) fn opening(&mut self, known: &dyn Known, place: &Place, now: Tick) -> Ahead {
        let mut ahead = self.files_after(known, place, now);
        if !self.may_list(now) {
            ahead.directories.clear();
        }
        ahead
    }

    fn files_after(&mut self, known: &dyn Known, place: &Place, now: Tick) -> Ahead {
        self.walks
            .retain(|walk| now.since(walk.last_at) <= MAX_IDLE);
        let limit = self.byte_limit();
        let mut walks = self.walks.iter_mut();
        if let Some(walk) = walks.find(|it| it.ahead.contains_key(place)) {
            return walk.was_opened(known, place, limit, now);
        }
        for walk in &mut self.walks {
            if walk.goes_on_at(known, place) {
                walk.is_at(place, now);
                return walk.ask(known, limit);
            }
        }
        for walk in &mut self.walks {
            walk.n_misses += u32::from(is_below(known, place.0, walk.root));
        }
        self.walks.retain(|walk| walk.n_misses <= MAX_MISSES);
        self.track_open(known, place.0, &place.1, now)
    }

    /// Notes the open of a file that no walk has foreseen, and begins a walk if there is evidence.
    fn track_open(&mut self, known: &dyn Known, dir: Ino, name: &Name, now: Tick) -> Ahead {
        let track = self.tracks.get_or_insert_mut(dir, Track::default);
        if !track.is_recent(now, MAX_GAP) {
            track.opens.clear();
            track.n_failures = 0;
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
        let needed = match (track.is_walked, is_read) {
            (true, true) => 1,
            (false, true) | (true, false) => 2,
            (false, false) => 3,
        };
        if track.opens.len() < needed || track.n_failures >= MAX_FAILURES {
            return Ahead::default();
        }
        track.n_failures += 1;
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
                return self.begin(known, order, cursor, needed == 1, now);
            }
        }
        Ahead::default()
    }

    /// Begins a walk. If it `is_certain`, its window is larger from the beginning.
    fn begin(
        &mut self,
        known: &dyn Known,
        order: Order,
        cursor: Place,
        is_certain: bool,
        now: Tick,
    ) -> Ahead {
        let mut root = cursor.0;
        // A walk of directories goes on above this one.
        while self.tracks.peek(&root).is_some_and(|track| track.is_walked) {
            match known.parent(root) {
                Some((parent, _)) => root = parent,
                None => break,
            }
        }
        // The order was taken for another one before: what was fetched stays.
        let old = self.walks.iter().position(|walk| walk.root == root);
        let ahead = old.map(|n| self.walks.swap_remove(n).ahead);
        if self.walks.len() == MAX_WALKS {
            self.walks.remove(0);
        }
        let limit = self.byte_limit();
        let ahead = ahead.unwrap_or_default();
        let mut walk = Walk::new(root, order, cursor, ahead, limit, now);
        if is_certain {
            walk.grow(limit);
        }
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
        if !self.may_list(now) {
            return Ahead::default();
        }
        let Some(order) = self.step_of_walk(known, dir, is_read, now) else {
            return Ahead::default();
        };
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
        if directories.is_empty() {
            return Ahead::default();
        }
        let is_new = now.since(self.names_at) > MAX_IDLE;
        self.names = if is_new {
            FIRST_NAMES
        } else {
            (self.names * GROWTH).clamp(FIRST_NAMES, MAX_NAMES)
        };
        self.names_at = now;
        let track = self.tracks.get_or_insert_mut(dir, Track::default);
        track.is_walked = true;
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
        track.n_failures = 0;
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

    /// Returns whether directories may be listed ahead now.
    fn may_list(&self, now: Tick) -> bool {
        !self.is_listing && self.lists_again_at.is_none_or(|at| now >= at)
    }

    /// A request for listings ahead is sent.
    pub(super) fn lists(&mut self) {
        self.is_listing = true;
    }

    /// A request for listings ahead has listed so many directories. `None` if it failed: perhaps a
    /// filesystem below does not answer.
    pub(super) fn listed(&mut self, n_directories: Option<usize>, now: Tick) {
        self.is_listing = false;
        match n_directories {
            Some(1..) => {
                self.n_useless = 0;
                if now.since(self.names_at) > MAX_LISTING_TIME {
                    // The link, or the disk of the host, is slow.
                    self.names /= GROWTH * GROWTH;
                }
            }
            Some(0) => self.n_useless += 1,
            None => self.n_useless = MAX_USELESS,
        }
        if self.n_useless >= MAX_USELESS {
            self.n_useless = 0;
            self.lists_again_at = Some(now + LISTING_PAUSE);
        }
    }

    /// Notes how long content that was fetched ahead took to arrive.
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

#[cfg(test)]
mod tests;
