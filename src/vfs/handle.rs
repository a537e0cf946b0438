//! The table of open files and directories.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cache::Entry;
use crate::vfs::Error;
use crate::vfs::Ino;
use crate::vfs::OpenFlags;
use crate::vfs::Result;
use crate::vfs::dir::Snapshot;

/// The number of an open file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fh(pub u64);

#[derive(Debug)]
pub(super) struct Handles {
    files: HashMap<Fh, FileHandle>,
    dirs: HashMap<Fh, DirHandle>,
    next: u64,
}

/// An open file. It belongs to an inode, not to a path: it keeps working when the file is renamed
/// or removed.
#[derive(Debug, Clone)]
pub(super) struct FileHandle {
    pub(super) ino: Ino,
    pub(super) entry: Arc<Entry>,
    pub(super) flags: OpenFlags,
    /// The conflict epoch of the entry when it was opened; see [`Entry::conflict_epoch`].
    pub(super) conflict_epoch: u64,
}

#[derive(Debug, Clone)]
pub(super) struct DirHandle {
    pub(super) ino: Ino,
    /// The names when the directory was first read, or last rewound.
    pub(super) snapshot: Option<Arc<Snapshot>>,
}

impl Handles {
    pub(super) fn new() -> Self {
        Self {
            files: HashMap::new(),
            dirs: HashMap::new(),
            next: 1,
        }
    }

    fn number(&mut self) -> Fh {
        self.next += 1;
        Fh(self.next)
    }

    pub(super) fn add_file(&mut self, handle: FileHandle) -> Fh {
        let fh = self.number();
        self.files.insert(fh, handle);
        fh
    }

    pub(super) fn file(&self, fh: Fh) -> Result<FileHandle> {
        self.files.get(&fh).cloned().ok_or(Error::BadHandle)
    }

    pub(super) fn remove_file(&mut self, fh: Fh) -> Option<FileHandle> {
        self.files.remove(&fh)
    }

    pub(super) fn is_open_for_writing(&self, ino: Ino) -> bool {
        self.files
            .values()
            .any(|handle| handle.ino == ino && handle.flags.writes)
    }

    pub(super) fn add_dir(&mut self, ino: Ino) -> Fh {
        let fh = self.number();
        self.dirs.insert(
            fh,
            DirHandle {
                ino,
                snapshot: None,
            },
        );
        fh
    }

    pub(super) fn dir(&self, fh: Fh) -> Result<DirHandle> {
        self.dirs.get(&fh).cloned().ok_or(Error::BadHandle)
    }

    pub(super) fn set_snapshot(&mut self, fh: Fh, snapshot: Arc<Snapshot>) {
        if let Some(dir) = self.dirs.get_mut(&fh) {
            dir.snapshot = Some(snapshot);
        }
    }

    pub(super) fn remove_dir(&mut self, fh: Fh) {
        self.dirs.remove(&fh);
    }
}
