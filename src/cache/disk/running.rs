//! Detects power failures: the file `running` has the boot ID of the mount that uses the directory,
//! from before its first write until its orderly end. If it has another boot ID at the next mount,
//! writes that were not flushed may be lost.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

/// Whether the content of a cache directory survived the last mount, and the mark of this one.
#[derive(Debug)]
pub(super) struct Running {
    dir: PathBuf,
    boot: String,
    /// No power failure happened while the last mount ran.
    pub(super) is_sound: bool,
    /// The content is sound, or was checked after a power failure.
    is_trusted: AtomicBool,
}

impl Running {
    /// Reads the mark of the last mount.
    pub(super) fn read(dir: &Path, boot: &str) -> Self {
        let before = fs::read_to_string(path(dir)).ok();
        let is_sound = before.is_none_or(|before| before == boot);
        Self {
            dir: dir.to_owned(),
            boot: boot.to_owned(),
            is_sound,
            is_trusted: AtomicBool::new(is_sound),
        }
    }

    /// Marks this mount as running. If the content has to be checked first, the old mark stays
    /// until [`Self::trust`], so that a mount that ends before the check leaves it for the next
    /// one.
    pub(super) fn begin(&self) -> io::Result<()> {
        if self.is_sound { self.write() } else { Ok(()) }
    }

    /// Marks the content as checked after a power failure.
    pub(super) fn trust(&self) {
        match self.write() {
            Ok(()) => self.is_trusted.store(true, Ordering::Relaxed),
            Err(error) => log::warn!("cannot write {}: {error}", path(&self.dir).display()),
        }
    }

    /// Removes the mark: everything is flushed. Keeps it if the content was not checked.
    pub(super) fn end(&self) {
        if self.is_trusted.load(Ordering::Relaxed) {
            super::remove(&path(&self.dir));
        }
    }

    /// Durable: after a power failure, a missing mark would look like an orderly end.
    fn write(&self) -> io::Result<()> {
        let mut file = File::create(path(&self.dir))?;
        file.write_all(self.boot.as_bytes())?;
        file.sync_all()?;
        File::open(&self.dir)?.sync_all()
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("running")
}

#[cfg(test)]
mod tests {
    use crate::cache::Disk;

    #[test]
    fn content_after_a_power_failure_is_not_trusted_before_it_is_checked() {
        let base = tempfile::tempdir().unwrap();
        let open = |boot| Disk::open(base.path(), "key", boot).unwrap();
        assert!(open("boot").is_sound());
        // One mount is killed before the check, one ends orderly without it, as a read-only mount
        // does.
        assert!(!open("other boot").is_sound());
        open("other boot").close();
        let disk = open("other boot");
        assert!(!disk.is_sound());
        disk.trust();
        drop(disk);
        assert!(open("other boot").is_sound());
    }
}
