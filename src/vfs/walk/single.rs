//! One walk: a program that goes through the files of a tree.

use std::collections::HashMap;

use crate::clock::Tick;
use crate::vfs::Ino;
use crate::vfs::walk::Ahead;
use crate::vfs::walk::FIRST_NAMES;
use crate::vfs::walk::GROWTH;
use crate::vfs::walk::Known;
use crate::vfs::walk::Place;
use crate::vfs::walk::window::Order;
use crate::vfs::walk::window::Window;
use crate::vfs::walk::window::ancestors;
use crate::vfs::walk::window::is_below;

/// The first window of a walk, and the largest in files.
pub(super) const FIRST_FILES: usize = 8;
pub(super) const FIRST_BYTES: u64 = 256 << 10;
const MAX_FILES: usize = 512;

/// A program that goes through the files of a tree.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) root: Ino,
    order: Order,
    /// The last place that was fetched ahead.
    cursor: Place,
    last_opened: Place,
    /// Files that were fetched ahead, and not opened yet.
    pub(super) ahead: HashMap<Place, u64>,
    n_files: usize,
    n_bytes: u64,
    /// How many files were fetched ahead last.
    n_asked: usize,
    /// How many opens in a row it did not foresee.
    pub(super) n_misses: u32,
    pub(super) last_at: Tick,
}

impl Walk {
    /// Begins a walk at `cursor`, the place that was opened last. `ahead` was fetched already.
    pub(super) fn new(
        root: Ino,
        order: Order,
        cursor: Place,
        ahead: HashMap<Place, u64>,
        limit: u64,
        now: Tick,
    ) -> Self {
        Self {
            root,
            order,
            last_opened: cursor.clone(),
            cursor,
            ahead,
            n_files: FIRST_FILES,
            n_bytes: FIRST_BYTES.min(limit),
            n_asked: 0,
            n_misses: 0,
            last_at: now,
        }
    }

    /// Notes that a file that was fetched ahead is opened. Returns what to fetch next, if less than
    /// half of what was fetched is left.
    pub(super) fn was_opened(
        &mut self,
        known: &dyn Known,
        place: &Place,
        limit: u64,
        now: Tick,
    ) -> Ahead {
        self.ahead.remove(place);
        self.is_at(place, now);
        if self.ahead.len() > self.n_asked / 2 {
            return Ahead::default();
        }
        self.grow(limit);
        self.ask(known, limit)
    }

    /// Enlarges the window.
    pub(super) fn grow(&mut self, limit: u64) {
        self.n_files = (self.n_files * GROWTH).min(MAX_FILES);
        self.n_bytes = self.n_bytes.saturating_mul(GROWTH as u64).min(limit);
    }

    /// Returns the files after the cursor that fit into the window, and moves the cursor behind
    /// them.
    pub(super) fn ask(&mut self, known: &dyn Known, limit: u64) -> Ahead {
        let mut window = Window::new(known, self.order, self.n_files, self.n_bytes.min(limit));
        if let Some(cursor) = window.fill(self.root, &self.cursor) {
            self.cursor = cursor;
        }
        let (mut files, directories) = (window.files, window.directories);
        // After a change of the order some were asked for before.
        files.retain(|(place, _)| !self.ahead.contains_key(place) && *place != self.last_opened);
        self.n_asked = files.len();
        self.ahead.extend(files.iter().cloned());
        Ahead {
            files: files.into_iter().map(|(place, _)| place).collect(),
            directories,
            max_names: FIRST_NAMES,
        }
    }

    /// Notes that a file of the walk is opened.
    pub(super) fn is_at(&mut self, place: &Place, now: Tick) {
        (self.n_misses, self.last_at) = (0, now);
        self.last_opened = place.clone();
    }

    /// Returns whether a file that was not fetched ahead is the next one of this walk: because all
    /// that was fetched is open already, or because the program takes the names in the other order.
    /// If so, the walk goes on from there, and its root moves up if that is outside of it.
    pub(super) fn goes_on_at(&mut self, known: &dyn Known, place: &Place) -> bool {
        /// How far up the common directory may be.
        const NEAR: usize = 4;
        /// Programs with several threads skip so many files for a moment.
        const SLACK: usize = 4;
        /// To look for the place takes time: not for a program that goes elsewhere.
        const MAX_TRIES: u32 = 3;
        if self.n_misses >= MAX_TRIES {
            return false;
        }
        let root = if is_below(known, place.0, self.root) {
            Some(self.root)
        } else {
            let near: Vec<Ino> = ancestors(known, place.0).take(NEAR).collect();
            ancestors(known, self.root)
                .take(NEAR)
                .find(|above| near.contains(above))
        };
        let Some(root) = root else {
            return false;
        };
        let is_next = |order: Order, after: &Place, n_files: usize| {
            let mut window = Window::new(known, order, n_files, u64::MAX);
            window.max_file_bytes = u64::MAX;
            window.fill(root, after);
            window.files.iter().any(|(next, _)| next == place)
        };
        let other = self.order.other();
        if self.ahead.is_empty() && is_next(self.order, &self.cursor, SLACK) {
            self.root = root;
            return true;
        }
        if is_next(other, &self.last_opened, 1) {
            (self.root, self.order, self.cursor) = (root, other, place.clone());
            return true;
        }
        false
    }
}
