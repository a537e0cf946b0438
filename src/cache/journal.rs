//! The journal: what is here and not yet on the host, so that no crash loses it.
//!
//! One file of one line a change, see [`record`]; the last line of a content holds. Lines are only
//! appended, into room that was allocated before, so that a full disk does not keep anybody from
//! saying what became of a file. When the journal is opened it is written anew, without what is
//! done and without lines that are damaged; those are set aside.
//!
//! Lock order: what is synced, then the log. Neither is held while the host is asked.

pub(super) mod record;

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::cache::journal::record::Id;
use crate::cache::journal::record::Line;
use crate::cache::journal::record::Record;
use crate::cache::steps::Step;
use crate::cache::steps::Steps;
use crate::sync::Mutex;

/// The first line. Another number means another format.
const HEADER: &str = "scpfs journal 1\n";

/// Room is allocated in steps of so many bytes: some hundred lines.
const ROOM: u64 = 64 << 10;

/// A journal of more bytes than this is written anew if most of it is done.
const WORTH_COMPACTING: u64 = 1 << 20;

/// A line longer than this is none of ours: two paths of the longest kind, every byte escaped, and
/// the rest.
const MAX_LINE: usize = 32 << 10;

/// A reason of more bytes than this is cut, so that no line gets too long.
const MAX_WHY: usize = 1500;

/// What is known of contents that are not on the host.
pub(crate) struct Journal {
    dir: PathBuf,
    steps: Arc<dyn Steps>,
    log: Mutex<Log>,
    /// Up to where the log is known to be on the disk. Held while that is extended, so that those
    /// who come meanwhile find it done for them.
    synced: Mutex<u64>,
}

struct Log {
    file: Arc<File>,
    /// Where the next line goes.
    end: u64,
    /// Up to where the disk has room for it.
    room: u64,
    /// From how many bytes on it is worth while to write it anew.
    compact_at: u64,
    /// Counts what was ever appended; unlike `end` it never goes back.
    n_appended: u64,
    live: HashMap<Id, Record>,
}

/// Whether a record must outlive a power failure from now on, or only this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durable {
    No,
    Yes,
}

/// What was read from a journal.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) live: HashMap<Id, Record>,
    /// Lines that make no sense.
    pub(crate) damaged: Vec<Vec<u8>>,
}

impl Journal {
    /// Opens the journal of a cache directory, which must be locked.
    ///
    /// Returns how many lines were damaged; they are in the file `damaged` from now on.
    pub(crate) fn open(dir: &Path, steps: Arc<dyn Steps>) -> io::Result<(Self, usize)> {
        let found = match read(dir) {
            Ok(found) => found,
            // It must not keep anybody from mounting.
            Err(error) => {
                let aside = dir.join("journal.unreadable");
                log::error!(
                    "cannot read the journal in {}: {error}; it is set aside",
                    dir.display()
                );
                fs::rename(path(dir), aside)?;
                Found {
                    damaged: vec![Vec::new()],
                    ..Found::default()
                }
            }
        };
        if !found.damaged.is_empty() {
            set_aside(dir, &found.damaged)?;
        }
        let (file, end) = write_anew(dir, &found.live)?;
        File::open(dir)?.sync_all()?;
        let journal = Self {
            dir: dir.to_owned(),
            steps,
            log: Mutex::new(Log {
                file: Arc::new(file),
                end,
                room: end,
                compact_at: WORTH_COMPACTING,
                n_appended: 0,
                live: found.live,
            }),
            synced: Mutex::new(0),
        };
        Ok((journal, found.damaged.len()))
    }

    /// Says what is known of a content from now on.
    pub(crate) fn put(&self, mut record: Record, durable: Durable) -> io::Result<()> {
        self.steps.before(Step::JournalPut)?;
        while record.why.len() > MAX_WHY {
            record.why.pop();
        }
        let line = record::line(&Line::Dirty(Box::new(record.clone())));
        let upto = self.append(&line, |live| {
            live.insert(record.id, record);
        })?;
        match durable {
            Durable::Yes => self.sync(upto),
            Durable::No => Ok(()),
        }
    }

    /// Says that a content need not be looked after any more.
    pub(crate) fn done(&self, id: Id, durable: Durable) -> io::Result<()> {
        if !self.log.lock().live.contains_key(&id) {
            return Ok(());
        }
        self.steps.before(Step::JournalDone)?;
        let upto = self.append(&record::line(&Line::Done(id)), |live| {
            live.remove(&id);
        })?;
        match durable {
            Durable::Yes => self.sync(upto),
            Durable::No => Ok(()),
        }
    }

    pub(crate) fn get(&self, id: Id) -> Option<Record> {
        self.log.lock().live.get(&id).cloned()
    }

    /// Returns what is known, in the order in which it was first said.
    pub(crate) fn records(&self) -> Vec<Record> {
        let mut records: Vec<Record> = self.log.lock().live.values().cloned().collect();
        records.sort_by_key(|record| (record.since, record.id));
        records
    }

    fn append(&self, line: &[u8], apply: impl FnOnce(&mut HashMap<Id, Record>)) -> io::Result<u64> {
        let mut log = self.log.lock();
        let needed = log.end + line.len() as u64;
        if needed > log.room {
            let room = needed.next_multiple_of(ROOM);
            make_room(&log.file, log.room, room)?;
            log.room = room;
        }
        log.file.write_all_at(line, log.end)?;
        log.end = needed;
        log.n_appended += line.len() as u64;
        apply(&mut log.live);
        let upto = log.n_appended;
        if log.end > log.compact_at && (log.live.len() as u64) < log.end / 4096 {
            self.compact(&mut log)?;
        }
        Ok(upto)
    }

    fn compact(&self, log: &mut Log) -> io::Result<()> {
        match write_anew(&self.dir, &log.live) {
            Ok((file, end)) => {
                (log.file, log.end, log.room) = (Arc::new(file), end, end);
                log.compact_at = WORTH_COMPACTING;
                File::open(&self.dir)?.sync_all()
            }
            Err(error) => {
                // The old one is as good, and longer.
                log::debug!("cannot write the journal anew: {error}");
                log.compact_at = log.end + ROOM;
                Ok(())
            }
        }
    }

    /// Has the disk keep all that was appended up to there.
    fn sync(&self, upto: u64) -> io::Result<()> {
        let mut synced = self.synced.lock();
        if *synced >= upto {
            // Somebody else's sync came after our line.
            return Ok(());
        }
        let (file, reached) = {
            let log = self.log.lock();
            (Arc::clone(&log.file), log.n_appended)
        };
        self.steps.before(Step::JournalSync)?;
        file.sync_data()?;
        *synced = reached;
        Ok(())
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("live", &self.log.lock().live.len())
            .finish_non_exhaustive()
    }
}

/// Reads the journal of a cache directory, without changing anything. No journal is an empty one.
pub(crate) fn read(dir: &Path) -> io::Result<Found> {
    match fs::read(path(dir)) {
        Ok(bytes) => Ok(parse(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::default()),
        Err(error) => Err(error),
    }
}

fn parse(bytes: &[u8]) -> Found {
    let mut found = Found::default();
    // What follows the last line is room.
    let end = memchr::memchr(0, bytes).unwrap_or(bytes.len());
    let (written, room) = bytes.split_at(end);
    if room.iter().any(|&byte| byte != 0) {
        found.damaged.push(room.to_vec());
    }
    let Some(lines) = written.strip_prefix(HEADER.as_bytes()) else {
        if !written.is_empty() {
            found.damaged.push(written.to_vec());
        }
        return found;
    };
    for line in lines.split_inclusive(|&byte| byte == b'\n') {
        let entry = (line.len() <= MAX_LINE)
            .then(|| record::parse(line))
            .flatten();
        match entry {
            Some(Line::Dirty(record)) => {
                found.live.insert(record.id, *record);
            }
            Some(Line::Done(id)) => {
                found.live.remove(&id);
            }
            None => found.damaged.push(line.to_vec()),
        }
    }
    found
}

fn path(dir: &Path) -> PathBuf {
    dir.join("journal")
}

/// Writes a journal of these records and puts it in the place of the old one, which is as it was if
/// that fails. The directory is not flushed to the disk yet.
fn write_anew(dir: &Path, live: &HashMap<Id, Record>) -> io::Result<(File, u64)> {
    let mut bytes = HEADER.as_bytes().to_vec();
    for record in live.values() {
        bytes.extend(record::line(&Line::Dirty(Box::new(record.clone()))));
    }
    let new = dir.join("journal.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&new, path(dir))?;
    Ok((file, bytes.len() as u64))
}

/// Keeps damaged lines for whoever can make sense of them.
fn set_aside(dir: &Path, damaged: &[Vec<u8>]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(dir.join("damaged"))?;
    for line in damaged {
        file.write_all(line)?;
        if !line.ends_with(b"\n") {
            file.write_all(b"\n")?;
        }
    }
    file.sync_all()
}

fn make_room(file: &File, from: u64, to: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), from, to - from) {
        // Not every filesystem can; then a full disk shows when a line is written.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::journal::record::tests::sample;
    use crate::cache::steps::NoSteps;

    fn open(dir: &Path) -> (Journal, usize) {
        Journal::open(dir, Arc::new(NoSteps)).unwrap()
    }

    #[test]
    fn what_is_not_done_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        for id in 1..=3 {
            journal.put(sample(id), Durable::Yes).unwrap();
        }
        journal.done(Id(2), Durable::No).unwrap();
        let newer = Record {
            why: "no space".to_owned(),
            ..sample(3)
        };
        journal.put(newer.clone(), Durable::No).unwrap();
        drop(journal);
        for _ in 0..2 {
            let (journal, n_damaged) = open(dir.path());
            assert_eq!(n_damaged, 0);
            assert_eq!(journal.records(), [sample(1), newer.clone()]);
        }
    }

    #[test]
    fn damage_costs_no_more_than_the_damaged_line() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        for id in 1..=3 {
            journal.put(sample(id), Durable::No).unwrap();
        }
        drop(journal);
        let mut bytes = fs::read(path(dir.path())).unwrap();
        let end = bytes.iter().position(|&b| b == 0).unwrap();
        let second = record::line(&Line::Dirty(Box::new(sample(2))));
        let at = memchr::memmem::find(&bytes, &second).unwrap();
        bytes[at + 30] ^= 1;
        // And the last line is torn.
        bytes.truncate(end - 5);
        fs::write(path(dir.path()), bytes).unwrap();
        let (journal, n_damaged) = open(dir.path());
        assert_eq!((journal.records(), n_damaged), (vec![sample(1)], 2));
        let damaged = fs::read(dir.path().join("damaged")).unwrap();
        assert_eq!(damaged.iter().filter(|&&b| b == b'\n').count(), 2);
        // What was set aside is not read again.
        drop(journal);
        assert_eq!(open(dir.path()).1, 0);
    }

    #[test]
    fn no_reason_is_too_long_for_its_line_to_be_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        // As of a path of the longest kind, quoted, and quoted again.
        let record = Record {
            why: "\u{e4}\\xff".repeat(10_000),
            ..sample(1)
        };
        journal.put(record, Durable::Yes).unwrap();
        drop(journal);
        let (journal, n_damaged) = open(dir.path());
        assert_eq!((journal.records().len(), n_damaged), (1, 0));
    }

    #[test]
    fn a_journal_that_cannot_be_written_anew_is_written_on() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        journal.put(sample(1), Durable::Yes).unwrap();
        fs::create_dir(dir.path().join("journal.new")).unwrap();
        let n_lines =
            3 * WORTH_COMPACTING / record::line(&Line::Dirty(Box::new(sample(2)))).len() as u64;
        for _ in 0..n_lines {
            journal.put(sample(2), Durable::No).unwrap();
        }
        fs::remove_dir(dir.path().join("journal.new")).unwrap();
        for _ in 0..=ROOM / 64 {
            journal.put(sample(2), Durable::No).unwrap();
        }
        journal.done(Id(2), Durable::No).unwrap();
        drop(journal);
        let len = fs::metadata(path(dir.path())).unwrap().len();
        assert!(len < WORTH_COMPACTING, "{len}");
        assert_eq!(open(dir.path()).0.records(), [sample(1)]);
    }

    #[test]
    fn a_journal_that_is_none_is_set_aside_whole() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [&b"something else\n"[..], b"\xff\xfe", b"\0\0\0x"] {
            fs::write(path(dir.path()), bytes).unwrap();
            let (journal, n_damaged) = open(dir.path());
            assert_eq!((journal.records().len(), n_damaged), (0, 1), "{bytes:?}");
        }
    }

    #[test]
    fn a_journal_that_cannot_be_read_is_no_reason_not_to_mount() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(path(dir.path())).unwrap();
        let (journal, n_damaged) = open(dir.path());
        assert_eq!((journal.records().len(), n_damaged), (0, 1));
        journal.put(sample(1), Durable::Yes).unwrap();
        assert!(dir.path().join("journal.unreadable").is_dir());
    }

    #[test]
    fn a_long_life_does_not_make_a_long_journal() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        journal.put(sample(1), Durable::No).unwrap();
        for id in 2..20_000 {
            journal.put(sample(id), Durable::No).unwrap();
            journal.done(Id(id), Durable::No).unwrap();
        }
        journal.put(sample(1), Durable::Yes).unwrap();
        let len = fs::metadata(path(dir.path())).unwrap().len();
        assert!(len < 2 * WORTH_COMPACTING, "{len}");
        drop(journal);
        assert_eq!(open(dir.path()).0.records(), [sample(1)]);
    }

    /// What is on disk outlives the program that wrote it: a change of format needs a new number.
    #[test]
    fn the_format_is_that_of_version_1() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        journal.put(sample(1), Durable::Yes).unwrap();
        journal.done(Id(1), Durable::No).unwrap();
        let bytes = fs::read(path(dir.path())).unwrap();
        let end = bytes.iter().position(|&b| b == 0).unwrap();
        let text = std::str::from_utf8(&bytes[..end]).unwrap();
        assert_eq!(
            text,
            "scpfs journal 1\n\
             999b6ec3 0000000000000001 closed dir/a%0Ab - 3,5.6,7.8,1:2 0640 0:0 replace \
             3 1700000000.5 - 1700000000.0 -\n\
             e1724bef 0000000000000001 done\n"
        );
    }
}
