//! The journal: the records of dirty content, so that a crash does not lose it.
//!
//! One file with one line per change, see [`record`]; the last line of a number is valid. Lines are
//! only appended, into space that was allocated before, so that records can be ended on a full
//! disk. When the journal is opened, it is rewritten without ended records and damaged lines; the
//! latter are moved to the file `damaged`.
//!
//! Lock order: `flushed`, then `log`. Neither is held across a request to the host.
//!
//! Modules:
//! - `record`: one line of the journal; pure

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

/// Space is allocated in steps of this many bytes: some hundred lines.
const ALLOCATION_STEP: u64 = 64 << 10;

/// A journal of more bytes than this is rewritten if most of its lines are obsolete.
const WORTH_COMPACTING: u64 = 1 << 20;

/// The longest valid line, in bytes: two paths of 4096 bytes with every byte escaped, and the rest.
const MAX_LINE: usize = 32 << 10;

/// A reason is truncated to this many bytes, so that no line gets too long.
const MAX_WHY: usize = 1500;

/// The journal of one cache directory.
pub(crate) struct Journal {
    dir: PathBuf,
    steps: Arc<dyn Steps>,
    log: Mutex<Log>,
    /// How many of the bytes counted by [`Log::n_appended`] are durable. Locked during a flush, so
    /// that callers that come meanwhile find their lines flushed too.
    flushed: Mutex<u64>,
}

struct Log {
    file: Arc<File>,
    /// The offset of the next line.
    end: u64,
    /// The end of the allocated space.
    room: u64,
    /// The size in bytes from which on a rewrite is considered.
    compact_at: u64,
    /// Counts all bytes that were appended; unlike `end`, a rewrite does not reset it.
    n_appended: u64,
    /// The records that are not ended.
    live: HashMap<Id, Record>,
}

/// Whether a change of a record is durable when the call returns, or survives only this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durable {
    No,
    Yes,
}

/// The content of a journal file.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) live: HashMap<Id, Record>,
    /// Lines that could not be parsed.
    pub(crate) damaged: Vec<Vec<u8>>,
}

impl Journal {
    /// Opens the journal of a cache directory, which must be locked.
    ///
    /// Also returns how many lines were damaged; they are moved to the file `damaged`.
    ///
    /// # Errors
    /// The journal cannot be rewritten. One that cannot be read is set aside, and is no error.
    pub(crate) fn open(dir: &Path, steps: Arc<dyn Steps>) -> io::Result<(Self, usize)> {
        let found = match read(dir) {
            Ok(found) => found,
            // It must not prevent mounting.
            Err(error) => {
                let aside = dir.join("journal.unreadable");
                log::error!(
                    "cannot read the journal in {}: {error}; it is renamed to journal.unreadable",
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
        let (file, end) = rewrite(dir, &found.live)?;
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
            flushed: Mutex::new(0),
        };
        Ok((journal, found.damaged.len()))
    }

    /// Adds a record, or replaces the one with the same number.
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
            Durable::Yes => self.flush(upto),
            Durable::No => Ok(()),
        }
    }

    /// Ends a record.
    pub(crate) fn end(&self, id: Id, durable: Durable) -> io::Result<()> {
        if !self.log.lock().live.contains_key(&id) {
            return Ok(());
        }
        self.steps.before(Step::JournalDone)?;
        let upto = self.append(&record::line(&Line::Done(id)), |live| {
            live.remove(&id);
        })?;
        match durable {
            Durable::Yes => self.flush(upto),
            Durable::No => Ok(()),
        }
    }

    pub(crate) fn get(&self, id: Id) -> Option<Record> {
        self.log.lock().live.get(&id).cloned()
    }

    /// Returns the records, the oldest first.
    pub(crate) fn records(&self) -> Vec<Record> {
        let mut records: Vec<Record> = self.log.lock().live.values().cloned().collect();
        records.sort_by_key(|record| (record.since, record.id));
        records
    }

    fn append(&self, line: &[u8], apply: impl FnOnce(&mut HashMap<Id, Record>)) -> io::Result<u64> {
        let mut log = self.log.lock();
        let needed = log.end + line.len() as u64;
        if needed > log.room {
            let room = needed.next_multiple_of(ALLOCATION_STEP);
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
        match rewrite(&self.dir, &log.live) {
            Ok((file, end)) => {
                (log.file, log.end, log.room) = (Arc::new(file), end, end);
                log.compact_at = WORTH_COMPACTING;
                File::open(&self.dir)?.sync_all()
            }
            Err(error) => {
                // The old journal stays valid.
                log::debug!("cannot rewrite the journal: {error}");
                log.compact_at = log.end + ALLOCATION_STEP;
                Ok(())
            }
        }
    }

    /// Makes the first `upto` appended bytes durable.
    fn flush(&self, upto: u64) -> io::Result<()> {
        let mut flushed = self.flushed.lock();
        if *flushed >= upto {
            // The flush of another caller included our line.
            return Ok(());
        }
        let (file, reached) = {
            let log = self.log.lock();
            (Arc::clone(&log.file), log.n_appended)
        };
        self.steps.before(Step::JournalSync)?;
        file.sync_data()?;
        *flushed = reached;
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

/// Reads the journal of a cache directory without changing it. A missing journal counts as empty.
pub(crate) fn read(dir: &Path) -> io::Result<Found> {
    match fs::read(path(dir)) {
        Ok(bytes) => Ok(parse(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::default()),
        Err(error) => Err(error),
    }
}

fn parse(bytes: &[u8]) -> Found {
    let mut found = Found::default();
    // After the last line there are only zeros: allocated space.
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

/// Replaces the journal atomically by one of these records; on an error the old one is unchanged.
/// Does not flush the directory.
fn rewrite(dir: &Path, live: &HashMap<Id, Record>) -> io::Result<(File, u64)> {
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

/// Appends damaged lines to the file `damaged`.
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
        // Not every filesystem supports it: there, appending a line may fail on a full disk.
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
    fn records_that_are_not_ended_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        for id in 1..=3 {
            journal.put(sample(id), Durable::Yes).unwrap();
        }
        journal.end(Id(2), Durable::No).unwrap();
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
    fn damage_loses_only_the_damaged_lines() {
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
        // The last line is truncated.
        bytes.truncate(end - 5);
        fs::write(path(dir.path()), bytes).unwrap();
        let (journal, n_damaged) = open(dir.path());
        assert_eq!((journal.records(), n_damaged), (vec![sample(1)], 2));
        let damaged = fs::read(dir.path().join("damaged")).unwrap();
        assert_eq!(damaged.iter().filter(|&&b| b == b'\n').count(), 2);
        // Lines in `damaged` are not read again.
        drop(journal);
        assert_eq!(open(dir.path()).1, 0);
    }

    #[test]
    fn a_long_reason_is_truncated() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        // Like a path of 4096 bytes, escaped twice.
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
    fn a_journal_that_cannot_be_rewritten_is_appended_to() {
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
        for _ in 0..=ALLOCATION_STEP / 64 {
            journal.put(sample(2), Durable::No).unwrap();
        }
        journal.end(Id(2), Durable::No).unwrap();
        drop(journal);
        let len = fs::metadata(path(dir.path())).unwrap().len();
        assert!(len < WORTH_COMPACTING, "{len}");
        assert_eq!(open(dir.path()).0.records(), [sample(1)]);
    }

    #[test]
    fn a_file_that_is_no_journal_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [&b"something else\n"[..], b"\xff\xfe", b"\0\0\0x"] {
            fs::write(path(dir.path()), bytes).unwrap();
            let (journal, n_damaged) = open(dir.path());
            assert_eq!((journal.records().len(), n_damaged), (0, 1), "{bytes:?}");
        }
    }

    #[test]
    fn a_journal_that_cannot_be_read_does_not_prevent_a_mount() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(path(dir.path())).unwrap();
        let (journal, n_damaged) = open(dir.path());
        assert_eq!((journal.records().len(), n_damaged), (0, 1));
        journal.put(sample(1), Durable::Yes).unwrap();
        assert!(dir.path().join("journal.unreadable").is_dir());
    }

    #[test]
    fn the_journal_is_compacted() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        journal.put(sample(1), Durable::No).unwrap();
        for id in 2..20_000 {
            journal.put(sample(id), Durable::No).unwrap();
            journal.end(Id(id), Durable::No).unwrap();
        }
        journal.put(sample(1), Durable::Yes).unwrap();
        let len = fs::metadata(path(dir.path())).unwrap().len();
        assert!(len < 2 * WORTH_COMPACTING, "{len}");
        drop(journal);
        assert_eq!(open(dir.path()).0.records(), [sample(1)]);
    }

    /// Other versions read what this one wrote to the disk: a change of format needs a new number.
    #[test]
    fn the_format_is_that_of_version_1() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        journal.put(sample(1), Durable::Yes).unwrap();
        journal.end(Id(1), Durable::No).unwrap();
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
