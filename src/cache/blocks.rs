//! Parts of large files, fetched where they are read.
//!
//! A large file that is opened for reading is not fetched as a whole at once: `tail`, `less +G`, a
//! database browser and a video player read little of it. Blocks are fetched where they are read,
//! more at once the longer a program reads on. A program that reads from the beginning on gets the
//! whole file, which is faster then.
//!
//! Blocks are of one version. They are in a file without a name, are never written to by programs,
//! never uploaded, and never taken for the content of the file: a write fetches the whole file first.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use crate::cache::Entry;
use crate::cache::Error;
use crate::cache::local;
use crate::cache::state::Content;
use crate::cache::state::Fetching;
use crate::clock::Tick;
use crate::path::RemotePath;
use crate::remote::BLOCK;
use crate::remote::Reason;
use crate::stat::Stat;
use crate::stat::Version;

/// Files from this size on are fetched in blocks, in bytes.
pub const LARGE: u64 = 8 << 20;

/// How many blocks are fetched at once: at first, and at most. The window grows by a factor while a
/// program reads on.
const FIRST_WINDOW: u64 = 4;
const MAX_WINDOW: u64 = 64;
const GROWTH: u64 = 4;

/// A program that has read so many bytes from the beginning on gets the whole file: a part of its
/// size, at least and at most. `file` reads up to 7 MiB.
const STREAM_PART: u64 = 128;
const MIN_STREAM: u64 = 1 << 20;
const MAX_STREAM: u64 = 16 << 20;

/// While a file is fetched as a whole, a read waits for it if it is at most this far ahead, in bytes.
const MAX_WAIT: u64 = 4 << 20;

/// Reads that are at most so far apart follow each other, in bytes.
const SLACK: u64 = 512 << 10;

/// The most blocks that are kept of one file.
const MAX_BLOCKS: usize = 4096;

/// The result of [`Entry::read_blocks`].
#[derive(Debug)]
pub enum BlockRead {
    /// The bytes, and the attributes and their time if the host was asked.
    Data(Vec<u8>, Option<(Stat, Tick)>),
    /// The whole file is to be fetched.
    Whole,
}

/// Blocks of one version of a file.
#[derive(Debug)]
pub(super) struct Blocks {
    version: Version,
    file: Arc<File>,
    /// The numbers of the blocks that are in `file`, and of those that are being fetched.
    present: BTreeSet<u64>,
    in_flight: BTreeSet<u64>,
    /// Where a program reads on: the end of the last read, in bytes.
    next: u64,
    /// Where the program began to read on.
    streak_start: u64,
    window: u64,
    /// Whether the file has changed since programs read blocks of it: they must open it again.
    is_changed: bool,
}

/// The next step of a read.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Ready,
    /// Another caller fetches one of the blocks.
    Wait,
    /// Fetch so many blocks, from the first one on.
    Fetch {
        first: u64,
        n_blocks: u64,
    },
    Whole,
}

impl Blocks {
    fn new(version: Version, file: File) -> Self {
        Self {
            version,
            file: Arc::new(file),
            present: BTreeSet::new(),
            in_flight: BTreeSet::new(),
            next: 0,
            streak_start: 0,
            window: FIRST_WINDOW,
            is_changed: false,
        }
    }

    /// Returns whether a program that has read blocks of this version may go on with another one:
    /// only if the file has become longer. A log is appended to; a file that is rewritten in place and
    /// becomes longer is not told from it.
    fn may_become(&self, version: &Version) -> bool {
        let is_same_file = self.version.id.is_some() && self.version.id == version.id;
        self.present.is_empty() || (is_same_file && self.version.size < version.size)
    }

    /// Goes on with another version, without the blocks of this one.
    fn become_version(&mut self, version: Version, file: File) {
        self.version = version;
        self.file = Arc::new(file);
        self.present.clear();
        self.window = FIRST_WINDOW;
    }

    /// Notes a read, for the size of the next window.
    fn note_read(&mut self, offset: u64, end: u64) {
        // The kernel reads ahead in several requests, which may come in any order.
        let is_next = offset <= self.next + SLACK && end + SLACK >= self.next;
        if is_next {
            self.next = self.next.max(end);
        } else {
            (self.streak_start, self.next) = (offset, end);
            self.window = FIRST_WINDOW;
        }
    }

    /// Returns what a read of the bytes from `offset` to `end` needs.
    fn step(&self, offset: u64, end: u64) -> Step {
        let (first, last) = (offset / BLOCK, (end - 1) / BLOCK);
        let missing = (first..=last).find(|block| !self.present.contains(block));
        let Some(missing) = missing else {
            return Step::Ready;
        };
        if (first..=last).any(|block| self.in_flight.contains(&block)) {
            return Step::Wait;
        }
        let stream_after = (self.version.size / STREAM_PART).clamp(MIN_STREAM, MAX_STREAM);
        if self.streak_start == 0 && self.next >= stream_after {
            return Step::Whole;
        }
        let n_blocks = self.version.size.div_ceil(BLOCK);
        let is_free =
            |block: u64| !self.present.contains(&block) && !self.in_flight.contains(&block);
        let mut begin = missing;
        let mut stop = (missing + self.window).max(last + 1).min(n_blocks);
        stop = (begin..stop).find(|&block| !is_free(block)).unwrap_or(stop);
        // Programs that begin at the end go on towards the beginning.
        while stop - begin < self.window && stop == n_blocks && begin > 0 && is_free(begin - 1) {
            begin -= 1;
        }
        Step::Fetch {
            first: begin,
            n_blocks: stop - begin,
        }
    }
}

impl Entry {
    /// Returns whether a read up to `end` should be served by [`Self::read_blocks`]: the content is
    /// not here, or would be here only much later.
    pub fn reads_in_blocks(&self, end: u64) -> bool {
        match self.state.lock().content() {
            Content::Absent { .. } => true,
            Content::Fetching(Fetching { have, total, .. }) => {
                total.is_some_and(|total| total >= LARGE && end.min(total) > have + MAX_WAIT)
            }
            Content::Clean { .. } | Content::Dirty { .. } => false,
        }
    }

    /// Reads from a large file of `version`, and fetches the blocks that are missing. Blocks for the
    /// host.
    ///
    /// # Errors
    /// The file changed while a program was reading it; the host cannot be reached; those of the
    /// local disk.
    pub fn read_blocks(
        &self,
        path: &RemotePath,
        version: Version,
        offset: u64,
        len: usize,
    ) -> Result<BlockRead, Error> {
        let mut told = None;
        let mut blocks = self.blocks.lock();
        loop {
            let now = self.cache.clock.tick();
            let current = match &mut *blocks {
                Some(current) => current,
                none => none.insert(Blocks::new(version, self.new_blocks_file()?)),
            };
            if told.is_none() && !current.version.same_content(&version) {
                if current.may_become(&version) {
                    current.become_version(version, self.new_blocks_file()?);
                } else {
                    current.is_changed = true;
                }
            }
            if current.is_changed {
                return Err(changed());
            }
            let size = current.version.size;
            let end = offset.saturating_add(len as u64).min(size);
            if offset >= end {
                return Ok(BlockRead::Data(Vec::new(), told));
            }
            if told.is_none() {
                current.note_read(offset, end);
            }
            match current.step(offset, end) {
                Step::Ready => {
                    let file = Arc::clone(&current.file);
                    drop(blocks);
                    let mut data = vec![0; usize::try_from(end - offset).unwrap_or(len)];
                    file.read_exact_at(&mut data, offset)
                        .map_err(local("read"))?;
                    return Ok(BlockRead::Data(data, told));
                }
                Step::Wait => self.blocks_changed.wait(&mut blocks),
                Step::Whole => return Ok(BlockRead::Whole),
                Step::Fetch { first, n_blocks } => {
                    current.in_flight.extend(first..first + n_blocks);
                    current.window = (current.window * GROWTH).min(MAX_WINDOW);
                    drop(blocks);
                    self.cache.opens.count_fetch();
                    let guard = InFlight {
                        entry: self,
                        first,
                        n_blocks,
                    };
                    self.cache.make_room(n_blocks * BLOCK)?;
                    let fetched = self.cache.remote.fetch_blocks(path, first, n_blocks);
                    let (stat, data) = fetched?;
                    told = Some((stat, now));
                    self.store_blocks(first, &stat, &data)?;
                    drop(guard);
                    blocks = self.blocks.lock();
                }
            }
        }
    }

    /// Stores blocks that were fetched.
    ///
    /// # Errors
    /// They are of another version than those that programs have read.
    fn store_blocks(&self, first: u64, stat: &Stat, data: &[u8]) -> Result<(), Error> {
        let version = stat.version();
        let mut blocks = self.blocks.lock();
        let Some(current) = &mut *blocks else {
            return Ok(());
        };
        if !current.version.same_content(&version) {
            if !current.may_become(&version) {
                current.is_changed = true;
                return Err(changed());
            }
            current.become_version(version, self.new_blocks_file()?);
        }
        if current.present.len() > MAX_BLOCKS {
            current.file = Arc::new(self.new_blocks_file()?);
            current.present.clear();
        }
        current
            .file
            .write_all_at(data, first * BLOCK)
            .map_err(local("write"))?;
        let n_stored = (data.len() as u64).div_ceil(BLOCK);
        current.present.extend(first..first + n_stored);
        Ok(())
    }

    /// Creates a file that has no name, and ends with its last descriptor.
    fn new_blocks_file(&self) -> Result<File, Error> {
        let (private, file) = self
            .cache
            .disk
            .create_temp()
            .map_err(local("create a file"))?;
        self.cache.disk.remove_private(&private);
        Ok(file)
    }

    /// Drops the blocks of a version that the file does not have any more, for a program that opens it
    /// now, in this version.
    pub fn forget_changed_blocks(&self, version: &Version) {
        let mut blocks = self.blocks.lock();
        if blocks
            .as_ref()
            .is_some_and(|it| it.is_changed || !it.version.same_content(version))
        {
            *blocks = None;
        }
    }

    /// Drops the blocks, when no program has the file open.
    pub(super) fn drop_blocks(&self) {
        *self.blocks.lock() = None;
    }

    /// Returns the version of the blocks that programs have read.
    pub(super) fn blocks_version(&self) -> Option<Version> {
        let blocks = self.blocks.lock();
        let blocks = blocks.as_ref()?;
        (!blocks.present.is_empty()).then_some(blocks.version)
    }
}

/// Marks blocks as being fetched until it is dropped, also after an error or a panic.
struct InFlight<'a> {
    entry: &'a Entry,
    first: u64,
    n_blocks: u64,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Some(blocks) = &mut *self.entry.blocks.lock() {
            for block in self.first..self.first + self.n_blocks {
                blocks.in_flight.remove(&block);
            }
        }
        self.entry.blocks_changed.notify_all();
    }
}

fn changed() -> Error {
    let source = io::Error::other(Reason::Changed.to_string());
    local("read")(source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stat::Time;

    fn blocks(n_blocks: u64) -> Blocks {
        let version = Version {
            size: n_blocks * BLOCK - 100,
            mtime: Time::default(),
            ctime: None,
            id: None,
        };
        Blocks::new(version, tempfile::tempfile().unwrap())
    }

    fn fetch(first: u64, n_blocks: u64) -> Step {
        Step::Fetch { first, n_blocks }
    }

    /// A read of `len` bytes; fetches what it asks for.
    fn read(blocks: &mut Blocks, offset: u64, len: u64) -> Step {
        let end = (offset + len).min(blocks.version.size);
        blocks.note_read(offset, end);
        let step = blocks.step(offset, end);
        if let Step::Fetch { first, n_blocks } = step {
            blocks.present.extend(first..first + n_blocks);
            blocks.window = (blocks.window * GROWTH).min(MAX_WINDOW);
        }
        step
    }

    #[test]
    fn a_read_fetches_the_blocks_behind_it_and_more_while_a_program_reads_on() {
        let mut blocks = blocks(1000);
        let at = 500 * BLOCK;
        assert_eq!(read(&mut blocks, at + 10, 10), fetch(500, 4));
        assert_eq!(read(&mut blocks, at + 20, BLOCK), Step::Ready);
        assert_eq!(read(&mut blocks, at + 3 * BLOCK, 2 * BLOCK), fetch(504, 16));
        assert_eq!(read(&mut blocks, at + 5 * BLOCK, 15 * BLOCK), Step::Ready);
        assert_eq!(read(&mut blocks, at + 20 * BLOCK, BLOCK), fetch(520, 64));
        // A jump begins again.
        assert_eq!(read(&mut blocks, 0, BLOCK), fetch(0, 4));
    }

    #[test]
    fn a_read_at_the_end_fetches_the_blocks_before_it() {
        let mut blocks = blocks(1000);
        let size = blocks.version.size;
        assert_eq!(read(&mut blocks, size - 10, 10), fetch(996, 4));
    }

    #[test]
    fn the_beginning_is_followed_by_the_whole_file_after_a_while() {
        let mut blocks = blocks(1000);
        let mut steps = Vec::new();
        for n in 0..30 {
            steps.push(read(&mut blocks, n * BLOCK, BLOCK));
        }
        steps.retain(|step| *step != Step::Ready);
        assert_eq!(steps[..3], [fetch(0, 4), fetch(4, 16), Step::Whole]);
    }

    #[test]
    fn a_block_in_flight_is_waited_for() {
        let mut blocks = blocks(1000);
        blocks.in_flight.extend(10..14);
        assert_eq!(read(&mut blocks, 11 * BLOCK, 10), Step::Wait);
        assert_eq!(read(&mut blocks, 8 * BLOCK, 10), fetch(8, 2));
    }
}
