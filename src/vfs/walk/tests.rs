//! Traces of programs, and what is read ahead for each.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashSet;

use super::*;
use crate::clock::Clock as _;
use crate::clock::ManualClock;
use crate::vfs::walk::single::FIRST_FILES;

/// A tree on a host, what is known of it here, and a count of what was requested.
struct Sim {
    children: BTreeMap<Ino, Vec<Child>>,
    parents: BTreeMap<Ino, Place>,
    listed: BTreeSet<Ino>,
    cached: HashSet<Place>,
    walks: Walks,
    clock: ManualClock,
    /// How often the program waited for the host.
    n_waits: u32,
    /// Files that were read ahead, and those of them that were opened.
    n_ahead: usize,
    n_used: usize,
    unopened: HashSet<Place>,
    /// Directories that were listed ahead.
    n_listed_ahead: usize,
}

/// Only the directories whose listings are known.
struct View<'a>(&'a Sim);

impl Known for View<'_> {
    fn children(&self, dir: Ino) -> Option<Vec<Child>> {
        let children = self.0.children.get(&dir)?.clone();
        self.0.listed.contains(&dir).then_some(children)
    }

    fn is_listed(&self, dir: Ino) -> bool {
        self.0.listed.contains(&dir)
    }

    fn parent(&self, dir: Ino) -> Option<Place> {
        self.0.parents.get(&dir).cloned()
    }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

impl Sim {
    fn new() -> Self {
        let mut sim = Self {
            children: BTreeMap::new(),
            parents: BTreeMap::new(),
            listed: BTreeSet::new(),
            cached: HashSet::new(),
            walks: Walks::new(16 << 20),
            clock: ManualClock::new(),
            n_waits: 0,
            n_ahead: 0,
            n_used: 0,
            unopened: HashSet::new(),
            n_listed_ahead: 0,
        };
        sim.children.insert(Ino::ROOT, Vec::new());
        sim
    }

    /// A directory with 10 directories of 10 files each, whose inode numbers go down where the names
    /// go up.
    fn tree() -> Self {
        let mut sim = Self::new();
        for dir in 0..10 {
            let ino = sim.dir(Ino::ROOT, &format!("dir{dir}"));
            for file in 0..10 {
                sim.file(ino, &format!("file{file}"), 4096);
            }
        }
        sim
    }

    fn next_ino(&self) -> u64 {
        10_000 - self.children.values().map(Vec::len).sum::<usize>() as u64
    }

    fn dir(&mut self, parent: Ino, text: &str) -> Ino {
        let ino = Ino(self.next_ino());
        let child = Child {
            name: name(text),
            shown_ino: ino.0,
            kind: ChildKind::Directory(Some(ino)),
        };
        self.children.get_mut(&parent).unwrap().push(child);
        self.children.insert(ino, Vec::new());
        self.parents.insert(ino, (parent, name(text)));
        ino
    }

    fn file(&mut self, parent: Ino, text: &str, size: u64) {
        let child = Child {
            name: name(text),
            shown_ino: self.next_ino(),
            kind: ChildKind::File(size),
        };
        self.children.get_mut(&parent).unwrap().push(child);
    }

    fn apply(&mut self, ahead: Ahead) {
        for place in ahead.files {
            if self.cached.insert(place.clone()) {
                self.n_ahead += 1;
                self.unopened.insert(place);
            }
        }
        let mut left: Vec<Ino> = ahead
            .directories
            .iter()
            .filter_map(|(parent, name)| {
                let children = &self.children[parent];
                let child = children.iter().find(|child| child.name == *name)?;
                match child.kind {
                    ChildKind::Directory(ino) => ino,
                    _ => None,
                }
            })
            .collect();
        let mut n_names = 0;
        while let Some(dir) = left.pop() {
            n_names += self.children[&dir].len();
            if n_names > ahead.max_names {
                break;
            }
            self.n_listed_ahead += usize::from(self.listed.insert(dir));
            left.extend(
                self.children[&dir]
                    .iter()
                    .filter_map(|child| match child.kind {
                        ChildKind::Directory(ino) => ino,
                        _ => None,
                    }),
            );
        }
    }

    fn list(&mut self, dir: Ino, is_read: bool) {
        if !self.listed.contains(&dir) {
            let now = self.clock.tick();
            let mut walks = std::mem::replace(&mut self.walks, Walks::new(0));
            let ahead = walks.listing(&View(self), dir, is_read, now);
            self.walks = walks;
            self.n_waits += 1;
            self.clock.advance(Duration::from_millis(100));
            self.listed.insert(dir);
            self.apply(ahead);
        }
        let now = self.clock.tick();
        let mut walks = std::mem::replace(&mut self.walks, Walks::new(0));
        if is_read {
            walks.was_read(&View(self), dir, now);
        } else {
            walks.touch(&View(self), dir, now);
        }
        self.walks = walks;
    }

    /// A program reads a directory; returns its names in the order of the listing.
    fn read(&mut self, dir: Ino) -> Vec<Child> {
        self.list(dir, true);
        let mut children = self.children[&dir].clone();
        Order::Name.sort(&mut children);
        children
    }

    /// A program looks up a name.
    fn lookup(&mut self, dir: Ino) {
        if !self.listed.contains(&dir) {
            self.list(dir, false);
        }
    }

    fn open(&mut self, dir: Ino, text: &Name) {
        self.lookup(dir);
        let place = (dir, text.clone());
        let now = self.clock.tick();
        let mut walks = std::mem::replace(&mut self.walks, Walks::new(0));
        let ahead = walks.opening(&View(self), &place, now);
        self.walks = walks;
        if self.cached.insert(place.clone()) {
            self.n_waits += 1;
            self.clock.advance(Duration::from_millis(100));
        }
        self.n_used += usize::from(self.unopened.remove(&place));
        self.apply(ahead);
        let now = self.clock.tick();
        let mut walks = std::mem::replace(&mut self.walks, Walks::new(0));
        walks.touch(&View(self), dir, now);
        self.walks = walks;
    }

    /// A program that reads each directory, takes its names in an order, and goes down where it
    /// meets a directory.
    fn walk(&mut self, dir: Ino, order: Order, opens: bool) {
        let mut children = self.read(dir);
        order.sort(&mut children);
        for child in children {
            match child.kind {
                ChildKind::Directory(ino) => self.walk(ino.unwrap(), order, opens),
                ChildKind::File(_) if opens => self.open(dir, &child.name),
                _ => {}
            }
        }
    }

    fn pause(&self, millis: u64) {
        self.clock.advance(Duration::from_millis(millis));
    }

    fn ino(&self, dir: Ino, text: &str) -> Ino {
        let found = self.children[&dir].iter().find(|it| it.name == name(text));
        match found.unwrap().kind {
            ChildKind::Directory(ino) => ino.unwrap(),
            _ => panic!("{text} is no directory"),
        }
    }

    fn assert_nothing_ahead(&self) {
        assert_eq!((self.n_ahead, self.n_listed_ahead), (0, 0));
    }

    /// A walk of all files wastes less than a tenth, and waits at most so often.
    fn assert_walked(&self, max_waits: u32) {
        assert!(self.n_waits <= max_waits, "{} waits", self.n_waits);
        let n_wasted = self.n_ahead - self.n_used;
        assert!(
            n_wasted * 10 < self.n_ahead,
            "{n_wasted} of {}",
            self.n_ahead
        );
    }
}

#[test]
fn cp_and_tar_of_a_tree_wait_a_few_times() {
    for order in ORDERS {
        let mut sim = Sim::tree();
        sim.walk(Ino::ROOT, order, true);
        // The root; the first directory and all others; the first file.
        sim.assert_walked(3);
        assert_eq!(sim.n_used, 99);
    }
}

/// The first file is the first one in both orders, as in directories that were filled by name.
#[test]
fn a_walk_whose_order_is_taken_for_the_other_one_waits_once_more() {
    for order in ORDERS {
        let mut sim = Sim::new();
        for dir in 0..5 {
            let ino = sim.dir(Ino::ROOT, &format!("dir{dir}"));
            for file in ["01", "30", "12", "25", "03", "14", "36", "27", "08", "19"] {
                sim.file(ino, file, 4096);
            }
            sim.children.get_mut(&ino).unwrap()[0].shown_ino -= 100;
        }
        for n in 0..100 {
            let dir = sim.ino(Ino::ROOT, "dir0");
            sim.file(dir, &format!("2{}", n * 37 % 100), 4096);
        }
        sim.walk(Ino::ROOT, order, true);
        sim.assert_walked(5);
    }
}

/// A program that is done with a walk opens other files near by.
#[test]
fn files_after_the_end_of_a_walk_read_nothing_ahead() {
    let mut sim = Sim::tree();
    let aside = sim.dir(Ino::ROOT, ".aside");
    for file in 0..100 {
        sim.file(aside, &format!("file{file:02}"), 100);
    }
    for dir in 1..10 {
        let dir = sim.ino(Ino::ROOT, &format!("dir{dir}"));
        sim.walk(dir, Order::Name, true);
    }
    let n_ahead = sim.n_ahead;
    for file in [70, 11, 42, 93] {
        sim.open(aside, &name(&format!("file{file}")));
    }
    assert_eq!(sim.n_ahead, n_ahead);
}

#[test]
fn find_and_du_of_a_tree_wait_a_few_times() {
    let mut sim = Sim::new();
    for top in 0..20 {
        let dir = sim.dir(Ino::ROOT, &format!("top{top:02}"));
        for below in 0..5 {
            let dir = sim.dir(dir, &format!("below{below}"));
            for file in 0..10 {
                sim.file(dir, &format!("file{file}"), 1);
            }
        }
    }
    sim.walk(Ino::ROOT, Order::Name, false);
    assert!(sim.n_waits <= 4, "{} waits", sim.n_waits);
    assert_eq!(sim.n_ahead, 0);
}

/// Several threads, each of which reads a directory and opens its files.
#[test]
fn rg_which_opens_files_out_of_order_waits_a_few_times() {
    let mut sim = Sim::tree();
    let dirs = sim.read(Ino::ROOT);
    for pair in dirs.chunks(2) {
        let inos: Vec<Ino> = pair
            .iter()
            .map(|child| sim.ino(Ino::ROOT, &String::from_utf8_lossy(child.name.as_bytes())))
            .collect();
        for &ino in &inos {
            sim.read(ino);
        }
        for pair in [[1, 0], [3, 2], [5, 4], [7, 6], [9, 8]] {
            for number in pair {
                for &ino in &inos {
                    sim.open(ino, &name(&format!("file{number}")));
                }
            }
        }
    }
    sim.assert_walked(14);
}

/// git looks up each file of its index, by name, and then opens those whose attributes differ.
#[test]
fn git_status_waits_a_few_times() {
    let mut sim = Sim::tree();
    sim.lookup(Ino::ROOT);
    let dirs: Vec<Ino> = (0..10)
        .map(|n| sim.ino(Ino::ROOT, &format!("dir{n}")))
        .collect();
    for &dir in &dirs {
        sim.lookup(dir);
    }
    assert!(sim.n_waits <= 3, "{} waits for attributes", sim.n_waits);
    for &dir in &dirs {
        for file in 0..10 {
            sim.open(dir, &name(&format!("file{file}")));
        }
    }
    sim.assert_walked(16);
}

/// rsync lists the whole tree first.
#[test]
fn rsync_waits_a_few_times() {
    let mut sim = Sim::tree();
    sim.walk(Ino::ROOT, Order::Name, false);
    for dir in 0..10 {
        let dir = sim.ino(Ino::ROOT, &format!("dir{dir}"));
        for file in 0..10 {
            sim.open(dir, &name(&format!("file{file}")));
        }
    }
    sim.assert_walked(6);
}

#[test]
fn cat_of_all_files_of_a_directory_waits_a_few_times() {
    let mut sim = Sim::tree();
    let dir = sim.ino(Ino::ROOT, "dir3");
    sim.lookup(Ino::ROOT);
    // The shell reads the directory, and starts cat.
    sim.read(dir);
    sim.pause(30);
    for file in 0..10 {
        sim.open(dir, &name(&format!("file{file}")));
    }
    sim.assert_walked(4);
}

/// A walk is interrupted: what was read ahead is bounded by what was used.
#[test]
fn a_window_grows_only_while_it_is_used() {
    let mut sim = Sim::new();
    for file in 0..1000 {
        sim.file(Ino::ROOT, &format!("file{file:03}"), 1000);
    }
    sim.read(Ino::ROOT);
    for file in 0..20 {
        sim.open(Ino::ROOT, &name(&format!("file{file:03}")));
    }
    assert!(sim.n_ahead <= FIRST_FILES * (1 + GROWTH), "{}", sim.n_ahead);
}

#[test]
fn large_files_are_passed_over_and_a_window_is_bounded_in_bytes() {
    let mut sim = Sim::new();
    for file in 0..100 {
        let size = if file % 2 == 0 { 100 << 10 } else { 64 << 20 };
        sim.file(Ino::ROOT, &format!("file{file:02}"), size);
    }
    sim.read(Ino::ROOT);
    sim.open(Ino::ROOT, &name("file00"));
    sim.open(Ino::ROOT, &name("file01"));
    let ahead: Vec<String> = sim
        .unopened
        .iter()
        .map(|(_, name)| name.to_string())
        .collect();
    assert_eq!(ahead.len(), 2, "{ahead:?}");
    assert!(
        ahead
            .iter()
            .all(|name| ["file02", "file04"].contains(&&name[..]))
    );
}

#[test]
fn a_slow_link_bounds_the_window() {
    let mut sim = Sim::new();
    for file in 0..200 {
        sim.file(Ino::ROOT, &format!("file{file:03}"), 50 << 10);
    }
    sim.read(Ino::ROOT);
    sim.walks.measured(1 << 20, Duration::from_secs(4));
    let mut most = 0;
    for file in 0..200 {
        sim.open(Ino::ROOT, &name(&format!("file{file:03}")));
        most = most.max(sim.unopened.len());
    }
    assert!(most <= 8, "{most} files of 50 KiB, at 256 KiB a second");
}

#[test]
fn one_ls_reads_nothing_ahead() {
    let mut sim = Sim::tree();
    sim.read(Ino::ROOT);
    sim.assert_nothing_ahead();
}

#[test]
fn ls_by_hand_reads_nothing_ahead() {
    let mut sim = Sim::tree();
    for dir in ["dir0", "dir1", "dir2"] {
        sim.read(Ino::ROOT);
        sim.pause(800);
        let dir = sim.ino(Ino::ROOT, dir);
        sim.read(dir);
        sim.pause(800);
    }
    sim.assert_nothing_ahead();
}

#[test]
fn the_completion_of_a_shell_reads_nothing_ahead() {
    let mut sim = Sim::tree();
    sim.read(Ino::ROOT);
    sim.pause(600);
    let dir = sim.ino(Ino::ROOT, "dir0");
    sim.read(dir);
    sim.pause(600);
    sim.open(dir, &name("file4"));
    sim.assert_nothing_ahead();
}

/// An editor with plug-ins: it looks for settings in several directories, and lists the one of the
/// file.
#[test]
fn an_editor_reads_nothing_ahead() {
    let mut sim = Sim::tree();
    let dir = sim.ino(Ino::ROOT, "dir4");
    sim.lookup(Ino::ROOT);
    sim.open(dir, &name("file5"));
    sim.read(dir);
    sim.open(dir, &name("file2"));
    sim.pause(2000);
    sim.open(dir, &name("file5"));
    sim.open(dir, &name("file7"));
    sim.assert_nothing_ahead();
}

/// An interpreter that imports: it lists the directories of its path, and opens a few files of
/// each, without an order.
#[test]
fn python_imports_read_nothing_ahead() {
    let mut sim = Sim::new();
    let packages = sim.dir(Ino::ROOT, "packages");
    for package in 0..50 {
        let dir = sim.dir(packages, &format!("package{package:02}"));
        for module in 0..20 {
            sim.file(dir, &format!("module{module:02}.py"), 3000);
        }
    }
    sim.read(Ino::ROOT);
    sim.read(packages);
    for (package, module) in [(17, 4), (3, 11), (42, 1), (9, 9), (30, 5)] {
        let dir = sim.ino(packages, &format!("package{package:02}"));
        sim.read(dir);
        sim.open(dir, &name(&format!("module{module:02}.py")));
        sim.open(dir, &name(&format!("module{:02}.py", module + 4)));
    }
    assert_eq!(sim.n_ahead, 0);
    // The directory of packages is the only one in the root, so that it was its first one.
    assert_eq!(sim.n_listed_ahead, 0);
}

#[test]
fn a_random_reader_reads_nothing_ahead() {
    let mut sim = Sim::new();
    for file in 0..200 {
        sim.file(Ino::ROOT, &format!("file{file:03}"), 1000);
    }
    sim.read(Ino::ROOT);
    // A permutation: 77 and 200 have no common divisor.
    for n in 1..100 {
        sim.open(Ino::ROOT, &name(&format!("file{:03}", n * 77 % 200)));
    }
    sim.assert_nothing_ahead();
}

/// make looks at the times of all files, and compiles some of them.
#[test]
fn make_reads_nothing_ahead() {
    let mut sim = Sim::tree();
    sim.lookup(Ino::ROOT);
    for dir in ["dir7", "dir2"] {
        let dir = sim.ino(Ino::ROOT, dir);
        sim.lookup(dir);
        for file in [8, 1, 4] {
            sim.open(dir, &name(&format!("file{file}")));
            sim.pause(500);
        }
    }
    sim.assert_nothing_ahead();
}
