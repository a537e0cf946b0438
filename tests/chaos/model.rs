//! Records which contents were written and acknowledged, and classifies the contents that are
//! found.
//!
//! Each file has one writer at a time, and each content names its file and version. The model knows
//! all contents that the writers may have produced. Any other content is a mixture.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::DefaultHasher;
use std::hash::Hasher as _;

use scpfs::sync::Mutex;
use scpfs_testing::random::Random;

pub(crate) const N_FILES: usize = 8;

/// A file, or its replacement, which is written under another name and renamed over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    File,
    New,
}

pub(crate) fn name_of(file: usize, slot: Slot) -> String {
    match slot {
        Slot::File => format!("f{file}"),
        Slot::New => format!("f{file}.new"),
    }
}

#[derive(Debug)]
pub(crate) struct Model {
    files: Vec<Mutex<File>>,
}

#[derive(Debug, Default)]
struct File {
    /// Each content that a writer intended, or the part of it that was written, with its version.
    known: HashMap<(usize, u64), u64>,
    last: u64,
    acknowledged: [u64; 2],
    /// The latest version that was written completely, whether or not its close succeeded; 0 after
    /// a later write has begun.
    complete: [u64; 2],
    /// A close has reported that others changed the file.
    is_in_conflict: bool,
}

fn key(content: &[u8]) -> (usize, u64) {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    (content.len(), hasher.finish())
}

impl Model {
    pub(crate) fn new() -> Self {
        let files = (0..N_FILES).map(|_| Mutex::new(File::default())).collect();
        Self { files }
    }

    /// The next version of a file: its number, and a record of at least `len` bytes.
    pub(crate) fn next(&self, file: usize, len: usize) -> (u64, Vec<u8>) {
        let mut state = self.files[file].lock();
        state.last += 1;
        let version = state.last;
        drop(state);
        let mut text = String::with_capacity(len + 100);
        writeln!(text, "file {file} version {version} length {len}").unwrap();
        let mut random = Random::new(version ^ ((file as u64) << 40));
        while text.len() < len {
            write!(text, "{:016x}", random.next_u64()).unwrap();
        }
        let sum = key(text.as_bytes()).1;
        writeln!(text, "\nend of {version}: {sum:x}").unwrap();
        (version, text.into_bytes())
    }

    /// Registers a content as a version of a file.
    pub(crate) fn know(&self, file: usize, version: u64, content: &[u8]) {
        self.files[file].lock().known.insert(key(content), version);
    }

    /// The version that has this content; `None` if it is a mixture.
    pub(crate) fn identify(&self, file: usize, content: &[u8]) -> Option<u64> {
        self.files[file].lock().known.get(&key(content)).copied()
    }

    /// Records that a writer has begun to overwrite the file.
    pub(crate) fn begin(&self, file: usize, slot: Slot) {
        self.files[file].lock().complete[slot as usize] = 0;
    }

    pub(crate) fn complete(&self, file: usize, slot: Slot, version: u64) {
        self.files[file].lock().complete[slot as usize] = version;
    }

    pub(crate) fn acknowledge(&self, file: usize, slot: Slot, version: u64) {
        self.files[file].lock().acknowledged[slot as usize] = version;
    }

    /// Records that the replacement was renamed over the file.
    pub(crate) fn renamed(&self, file: usize, version: u64) {
        let mut state = self.files[file].lock();
        state.acknowledged = [version, 0];
        state.complete = [version, 0];
    }

    /// Forgets the versions of a file; any later content is accepted.
    pub(crate) fn give_up(&self, file: usize, slot: Slot) {
        let mut state = self.files[file].lock();
        state.acknowledged[slot as usize] = 0;
        state.complete[slot as usize] = 0;
    }

    pub(crate) fn conflict(&self, file: usize) {
        self.files[file].lock().is_in_conflict = true;
    }

    /// Whether a version is older than the one that was acknowledged for the file.
    pub(crate) fn is_stale(&self, file: usize, version: u64) -> bool {
        let state = self.files[file].lock();
        version < state.acknowledged[0] && !state.is_in_conflict
    }

    pub(crate) fn acknowledged(&self, file: usize, slot: Slot) -> u64 {
        self.files[file].lock().acknowledged[slot as usize]
    }

    pub(crate) fn completed(&self, file: usize, slot: Slot) -> u64 {
        self.files[file].lock().complete[slot as usize]
    }

    /// Accepts the version that was found as the state of the file from now on.
    pub(crate) fn settle(&self, file: usize, slot: Slot, found: u64) {
        let mut state = self.files[file].lock();
        let acknowledged = &mut state.acknowledged[slot as usize];
        *acknowledged = found.min(*acknowledged);
        state.complete[slot as usize] = 0;
        state.is_in_conflict = false;
    }
}
