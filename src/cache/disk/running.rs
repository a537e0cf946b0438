//! Whether what an earlier run wrote to a cache directory is there, as far as one can know: the file
//! `running` has the boot whose content is in it, from before anything is written until an orderly end.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

/// What is known of the run before this one, and said of this one.
#[derive(Debug)]
pub(super) struct Running {
    dir: PathBuf,
    boot: String,
    /// Whether no power failure came since the last run began.
    pub(super) is_sound: bool,
    /// Whether somebody has looked at what was there if it is not sound.
    is_trusted: AtomicBool,
}

impl Running {
    /// Reads what an earlier run has said in the directory of a cache.
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

    /// Says that this run has begun, unless there is something to look at first: a run that ends
    /// before it came to that leaves what it found as untrusted as it was.
    pub(super) fn begin(&self) -> io::Result<()> {
        if self.is_sound { self.say() } else { Ok(()) }
    }

    /// Says that what a power failure left was looked at.
    pub(super) fn trust(&self) {
        match self.say() {
            Ok(()) => self.is_trusted.store(true, Ordering::Relaxed),
            Err(error) => log::warn!("cannot write {}: {error}", path(&self.dir).display()),
        }
    }

    /// Says that all is on the disk.
    pub(super) fn end(&self) {
        if self.is_trusted.load(Ordering::Relaxed) {
            super::remove(&path(&self.dir));
        }
    }

    /// Durably: a power failure that took the word away would make all that is here look sound.
    fn say(&self) -> io::Result<()> {
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
    fn what_a_power_failure_left_is_not_trusted_before_somebody_has_looked_at_it() {
        let base = tempfile::tempdir().unwrap();
        let open = |boot| Disk::open(base.path(), "key", boot).unwrap();
        assert!(open("boot").is_sound());
        // Killed before it came to look, and ended in order without a look, as a mount that is only
        // for reading does.
        assert!(!open("other boot").is_sound());
        open("other boot").close();
        let disk = open("other boot");
        assert!(!disk.is_sound());
        disk.trust();
        drop(disk);
        assert!(open("other boot").is_sound());
    }
}
