//! A server, a network and a mount, and the check after each round.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use scpfs::cache::Phase;
use scpfs::cache::leftovers;
use scpfs::cache::leftovers::CacheDir;

use crate::faults::Fault;
use crate::model::Model;
use crate::model::N_FILES;
use crate::model::Slot;
use crate::model::name_of;
use crate::scene::Scene;
use crate::scene::Way;
use crate::writers::Seen;
use crate::writers::Writers;
use crate::writers::head;
use scpfs_testing::random::Random;
use scpfs_testing::wait::PATIENCE;
use scpfs_testing::wait::is_true_within;

/// A call that takes longer than this counts as a hang. An upload waits for its deadline once for
/// each way in which it can find that the host cannot be reached, and the machine may be busy.
const HANGS: Duration = Duration::from_secs(30);

/// Totals of all rounds.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    n_rounds: u64,
    faults: BTreeMap<Fault, u64>,
    n_acknowledged: u64,
    n_failed: u64,
    n_conflicts: u64,
    n_kept: u64,
    n_orphans: u64,
    slowest: Duration,
    n_losses: u64,
    n_mixtures: u64,
    n_other: u64,
}

impl Totals {
    pub(crate) fn is_good(&self) -> bool {
        self.n_losses + self.n_mixtures + self.n_other == 0
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} rounds", self.n_rounds)?;
        for (fault, n) in &self.faults {
            writeln!(f, "  {n} x {fault:?}")?;
        }
        writeln!(
            f,
            "{} versions acknowledged, {} calls failed, the slowest took {} ms",
            self.n_acknowledged,
            self.n_failed,
            self.slowest.as_millis()
        )?;
        writeln!(
            f,
            "{} conflict copies, {} unfinished contents kept, {} contents nothing is known of",
            self.n_conflicts, self.n_kept, self.n_orphans
        )?;
        write!(
            f,
            "{} losses, {} mixtures, {} other faults of ours",
            self.n_losses, self.n_mixtures, self.n_other
        )
    }
}

/// The latest versions of a name that were found.
#[derive(Debug, Default, Clone)]
struct Found {
    /// On the host, under the name or as a conflict copy.
    host: u64,
    /// Complete in the journal.
    journal: u64,
}

impl Found {
    fn best(&self) -> u64 {
        self.host.max(self.journal)
    }
}

pub(crate) struct World {
    scene: Scene,
    model: Arc<Model>,
    totals: Totals,
    what: String,
    story: Vec<String>,
}

impl World {
    /// `first` is the number of the first round.
    pub(crate) fn new(first: u64) -> Option<Self> {
        Some(Self {
            scene: Scene::new(way_of(first))?,
            model: Arc::new(Model::new()),
            totals: Totals::default(),
            what: String::new(),
            story: Vec::new(),
        })
    }

    pub(crate) fn totals(&self) -> &Totals {
        &self.totals
    }

    pub(crate) fn round(&mut self, seed: u64, n: u64) {
        let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(n));
        let fault = Fault::any(way_of(n), &mut random);
        self.what = format!("seed {seed} round {n} {fault:?}");
        fault.prepare(&mut self.scene);
        let writers = Writers::start(self.scene.mounted.here(""), &self.model, &mut random);
        thread::sleep(Duration::from_millis(20 + random.below(300)));
        fault.strike(&mut self.scene, &mut random);
        let after = random.below(if fault.ends_the_daemon() { 20 } else { 250 });
        thread::sleep(Duration::from_millis(after));
        let seen = writers.finish();
        self.note(fault, seen);
        if fault.ends_the_daemon() {
            self.scene.mounted.wait();
            self.scene.mounted.clear_away();
            self.scene.mount();
            self.scene.mend();
        }
        let next = way_of(n + 1);
        if random.one_in(2) || next != way_of(n) {
            self.remount(next);
        } else {
            self.wait_until_all_is_uploaded();
            self.check(false);
        }
    }

    pub(crate) fn end(&mut self) {
        "at the end".clone_into(&mut self.what);
        self.remount(Way::Wire);
    }

    fn note(&mut self, fault: Fault, seen: Seen) {
        let totals = &mut self.totals;
        totals.n_rounds += 1;
        *totals.faults.entry(fault).or_default() += 1;
        totals.n_acknowledged += seen.n_acknowledged;
        totals.n_failed += seen.n_failed;
        totals.slowest = totals.slowest.max(seen.slowest);
        self.story.push(format!("== {}", self.what));
        self.story.extend(seen.story);
        if seen.slowest > HANGS {
            self.wrong(&format!("HANG: a call took {:?}", seen.slowest));
        }
        for what in seen.wrong {
            self.wrong(&what);
        }
    }

    fn wrong(&mut self, what: &str) {
        let count = match what.split([' ', ':']).next() {
            Some("LOSS") => &mut self.totals.n_losses,
            Some("MIXTURE") => &mut self.totals.n_mixtures,
            _ => &mut self.totals.n_other,
        };
        *count += 1;
        println!("{}: {what}", self.what);
        let file = what
            .split([' ', ':'])
            .find_map(|word| place(word).map(|(file, _)| file));
        let name = file.map_or_else(String::new, |file| name_of(file, Slot::File));
        self.print_story(&name);
    }

    /// Prints the last lines of the writers and of the daemon that contain `word`.
    fn print_story(&self, word: &str) {
        let told = |line: &&str| line.starts_with("==") || line.contains(word);
        let story: Vec<&str> = self.story.iter().map(String::as_str).filter(told).collect();
        for line in &story[story.len().saturating_sub(60)..] {
            println!("    {line}");
        }
        let log = self.scene.mounted.log();
        let lines: Vec<&str> = log.lines().filter(told).collect();
        for line in &lines[lines.len().saturating_sub(60)..] {
            println!("  log: {line}");
        }
    }

    fn shelves(&self) -> Vec<CacheDir> {
        leftovers::find(&self.scene.mounted.aside("home/.cache/scpfs")).unwrap()
    }

    /// Waits until the daemon has uploaded all content that is closed.
    fn wait_until_all_is_uploaded(&mut self) {
        let mut pending = Vec::new();
        let is_uploaded = is_true_within(PATIENCE, || {
            pending = self
                .shelves()
                .into_iter()
                .flat_map(|shelf| shelf.leftovers)
                .filter(|left| {
                    left.record
                        .as_ref()
                        .is_some_and(|r| r.phase != Phase::NeedsDecision)
                })
                .collect();
            pending.is_empty()
        });
        if !is_uploaded {
            self.wrong(&format!(
                "PENDING: it is not uploaded by itself: {pending:?}"
            ));
        }
    }

    /// Unmounts, checks, and mounts again.
    fn remount(&mut self, way: Way) {
        let status = self.scene.mounted.unmount();
        if status.code() != Some(0) {
            self.wrong(&format!("UNMOUNT: {status}"));
        }
        // Waits until no process on the host works for the old mount.
        let mut sessions = Vec::new();
        let have_ended = is_true_within(PATIENCE, || {
            sessions = self.scene.mounted.sshd.session_processes();
            sessions.is_empty()
        });
        if !have_ended {
            self.wrong(&format!("SESSIONS: they do not end: {sessions:?}"));
        }
        self.check(true);
        self.scene.mounted.forget_log();
        self.story.clear();
        self.scene.take(way);
        self.scene.mount();
    }

    /// The names on the host, once they no longer change: the host may still carry out a request
    /// that the client has given up.
    fn names(&self) -> Vec<String> {
        let look = || {
            let items = fs::read_dir(self.scene.mounted.there("")).unwrap();
            let names = items.map(|item| item.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.collect();
            names.sort();
            names
        };
        let mut names = look();
        for _ in 0..100 {
            thread::sleep(Duration::from_millis(100));
            let again = look();
            if again == names {
                break;
            }
            names = again;
        }
        names
    }

    /// Compares the contents on the host and in the journal with the acknowledged versions. If
    /// `tidies` is set, nothing may be mounted, and temporary files and conflict copies are
    /// removed.
    fn check(&mut self, tidies: bool) {
        let mut found: Vec<[Found; 2]> = vec![Default::default(); N_FILES];
        for name in self.names() {
            self.look_at(&name, &mut found, tidies);
        }
        for shelf in self.shelves() {
            self.look_into(&shelf, &mut found, tidies);
        }
        for (file, [old, new]) in found.iter().enumerate() {
            for slot in [Slot::File, Slot::New] {
                // The rename may have succeeded although the version is missing under the new name.
                let here = match slot {
                    Slot::File => old.clone(),
                    Slot::New => Found {
                        host: new.host.max(old.host),
                        journal: new.journal.max(old.journal),
                    },
                };
                let name = name_of(file, slot);
                let acknowledged = self.model.acknowledged(file, slot);
                let complete = self.model.completed(file, slot);
                if here.best() < acknowledged {
                    self.wrong(&format!(
                        "LOSS: {name}: version {acknowledged} was acknowledged; there is {here:?}"
                    ));
                } else if here.best() < complete {
                    self.wrong(&format!(
                        "LOSS of what was not acknowledged: {name}: version {complete} was \
                         written; there is {here:?}"
                    ));
                }
                if tidies || here.best() < acknowledged.max(complete) {
                    self.model.settle(file, slot, here.host);
                }
            }
        }
    }

    /// Checks one file of the host.
    fn look_at(&mut self, name: &str, found: &mut [[Found; 2]], tidies: bool) {
        let path = self.scene.mounted.there(name);
        if name.starts_with(".scpfs-") {
            if tidies {
                let content = head(&fs::read(&path).unwrap_or_default());
                self.wrong(&format!("TEMPORARY: {name}: {content}"));
                fs::remove_file(path).unwrap();
            }
            return;
        }
        let Some((file, slot)) = place(name) else {
            return self.wrong(&format!("NAME: {name}"));
        };
        // A file that was renamed after the directory was read is found under its other name, see
        // `names`.
        let Ok(content) = fs::read(&path) else {
            return;
        };
        match self.model.identify(file, &content) {
            None => self.wrong(&format!("MIXTURE on the host: {name}: {}", head(&content))),
            Some(version) => {
                let host = &mut found[file][slot as usize].host;
                *host = version.max(*host);
            }
        }
        if name.contains(".scpfs-conflict-") && tidies {
            self.totals.n_conflicts += 1;
            println!("{}: conflict copy {name}", self.what);
            self.print_story(&name_of(file, Slot::File));
            fs::remove_file(path).unwrap();
        }
    }

    /// Checks one cache directory.
    fn look_into(&mut self, shelf: &CacheDir, found: &mut [[Found; 2]], tidies: bool) {
        if shelf.n_damaged > 0 {
            self.wrong(&format!("DAMAGE: {shelf:?}"));
        }
        for left in &shelf.leftovers {
            let Some(record) = &left.record else {
                if tidies {
                    self.totals.n_orphans += 1;
                    println!("{}: nothing is known of {left:?}", self.what);
                    shelf.discard(left).unwrap();
                }
                continue;
            };
            let content = fs::read(&left.file).unwrap_or_default();
            let paths = [Some(&record.path), record.was.as_ref()];
            for path in paths.into_iter().flatten() {
                let name = String::from_utf8(path.as_bytes().to_vec()).unwrap();
                let (file, slot) = place(&name).unwrap();
                let version = self.model.identify(file, &content);
                if version.is_none() && !matches!(record.phase, Phase::Open | Phase::NeedsDecision)
                {
                    self.wrong(&format!(
                        "MIXTURE in the journal: {left:?}: {}",
                        head(&content)
                    ));
                }
                let journal = &mut found[file][slot as usize].journal;
                *journal = version.unwrap_or(0).max(*journal);
            }
            if tidies {
                self.totals.n_kept += 1;
                if record.phase != Phase::NeedsDecision {
                    self.wrong(&format!("LEFT after an unmount in order: {left:?}"));
                }
                shelf.discard(left).unwrap();
            }
        }
    }
}

/// Alternates: four rounds with the wire, four with the proxy.
fn way_of(round: u64) -> Way {
    if (round / 4).is_multiple_of(2) {
        Way::Wire
    } else {
        Way::Proxy
    }
}

/// The file and the slot of a name.
fn place(name: &str) -> Option<(usize, Slot)> {
    let name = name.split(".scpfs-conflict-").next()?;
    for file in 0..N_FILES {
        for slot in [Slot::File, Slot::New] {
            if name == name_of(file, slot) {
                return Some((file, slot));
            }
        }
    }
    None
}
