//! The cache directory: its layout, its lock, and the names that say what a file holds.
//!
//! ```text
//! lock      held by the mount that uses the directory
//! format    the version of this layout
//! log       what a mount in the background has to say
//! running   the boot whose content is in it, while a mount uses it; gone after an orderly end
//! source    what it is the cache of, for people
//! host_key  the key of the host that all this belongs to, see `pin.rs`
//! journal   what is known of the contents that are not on the host, see `journal.rs`
//! damaged   lines of the journal that made no sense
//! content/  c-DEV-INO-SIZE-MTIME-CTIME   the content of exactly that version
//!           d-NUMBER                     content that is not on the host
//!           o-NUMBER                     what the host had before d-NUMBER, where an upload of that
//!                                        writes into the host's file
//!           t-NUMBER                     a fetch that is not complete, or content without a name
//! ```
//!
//! INVARIANT: a file named `c-...` holds the whole content of the version in its name. It gets
//! that name by a rename when it is complete, and loses it by one before it is first written to.
//! No name here is made from a name of the host.

mod adopt;
mod clean_name;
pub mod pin;
mod private;
mod running;

use std::fmt;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Seek as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::cache::disk::pin::Host;
use crate::cache::disk::private::Kind;
pub(crate) use crate::cache::disk::private::Private;
use crate::cache::disk::running::Running;
use crate::cache::journal::Journal;
use crate::cache::journal::record::Id;
use crate::cache::steps::NoSteps;
use crate::cache::steps::Step;
use crate::cache::steps::Steps;
use crate::owned_path;
use crate::stat::Version;

/// What `format` says. Another number means another layout.
const FORMAT: &str = "scpfs cache 2\n";

/// How many mounts of one root may run side by side, each with a directory of its own.
const MAX_SIDE_BY_SIDE: u32 = 64;

/// Why there is no cache directory.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act} {}", path.display())]
pub struct Error {
    act: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The directory of one mount, locked.
pub struct Disk {
    dir: PathBuf,
    content: PathBuf,
    /// Holds the lock until it is closed.
    _lock: File,
    journal: Journal,
    steps: Arc<dyn Steps>,
    running: Running,
    n_damaged: usize,
    orphans: Vec<PathBuf>,
    /// Whether it belonged to no host before this mount.
    was_unpinned: bool,
}

/// Checks that nobody but this user can make or exchange anything in the directory of all caches:
/// what is in it says to which host contents go.
///
/// # Errors
/// Others can, and what to do; also for root, in the directory of another user.
pub(crate) fn check_base(base: &Path) -> io::Result<()> {
    owned_path::check(base, rustix::process::geteuid().as_raw())
}

impl Disk {
    /// Opens the cache directory `base/key`, or `base/key.2` and so on if other mounts use it.
    ///
    /// `boot` identifies the boot of this machine: after a power failure, content that was never
    /// flushed to the disk may be anything, and is dropped.
    pub fn open(base: &Path, key: &str, boot: &str) -> Result<Self, Error> {
        Self::open_with(base, key, boot, Arc::new(NoSteps))
    }

    /// As [`Self::open`], for a mount of this host: what belongs to another is not taken over.
    ///
    /// # Errors
    /// Also if the directory belongs to another host.
    pub fn open_for(base: &Path, key: &str, boot: &str, host: &Host) -> Result<Self, Error> {
        Self::open_as(base, key, boot, Arc::new(NoSteps), Some(host))
    }

    /// As [`Self::open`], for a test that wants to be told of each step.
    pub fn open_with(
        base: &Path,
        key: &str,
        boot: &str,
        steps: Arc<dyn Steps>,
    ) -> Result<Self, Error> {
        Self::open_as(base, key, boot, steps, None)
    }

    fn open_as(
        base: &Path,
        key: &str,
        boot: &str,
        steps: Arc<dyn Steps>,
        host: Option<&Host>,
    ) -> Result<Self, Error> {
        check_base(base).map_err(|source| Error {
            act: "use",
            path: base.to_owned(),
            source,
        })?;
        for n in 1..=MAX_SIDE_BY_SIDE {
            let dir = base.join(side_by_side(key, n));
            if let Some(mut disk) = Self::open_dir(dir, boot, Arc::clone(&steps))? {
                if let Some(host) = host {
                    disk.pin(host).map_err(|source| Error {
                        act: "use",
                        path: disk.dir.clone(),
                        source,
                    })?;
                }
                for other in (1..=MAX_SIDE_BY_SIDE).filter(|other| *other != n) {
                    let other = base.join(side_by_side(key, other));
                    if other.join("journal").exists() {
                        disk.adopt(&other, boot);
                    }
                }
                return Ok(disk);
            }
        }
        let source = io::Error::other("too many mounts use it already");
        Err(Error {
            act: "lock",
            path: base.join(key),
            source,
        })
    }

    fn open_dir(dir: PathBuf, boot: &str, steps: Arc<dyn Steps>) -> Result<Option<Self>, Error> {
        let content = dir.join("content");
        let wrap = |act: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| Error { act, path, source }
        };
        let uid = rustix::process::geteuid().as_raw();
        let is_ours = |path: &Path| owned_path::check(path, uid).map_err(wrap("use", path));
        is_ours(&dir)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&content)
            .map_err(wrap("create", &content))?;
        // In a shared directory somebody else may have been faster.
        is_ours(&content)?;
        let lock_path = dir.join("lock");
        let lock = private_file(&lock_path, false).map_err(wrap("open", &lock_path))?;
        if is_taken(&lock).map_err(wrap("lock", &lock_path))? {
            return Ok(None);
        }
        let format_path = dir.join("format");
        let format = fs::read_to_string(&format_path).unwrap_or_default();
        let running = Running::read(&dir, boot);
        let is_trusted = running.is_sound && format == FORMAT;
        let journal_path = dir.join("journal");
        let (journal, n_damaged) =
            Journal::open(&dir, Arc::clone(&steps)).map_err(wrap("open", &journal_path))?;
        let mut disk = Self {
            dir,
            content,
            _lock: lock,
            journal,
            steps,
            running,
            n_damaged,
            orphans: Vec::new(),
            was_unpinned: false,
        };
        disk.sweep(is_trusted)
            .map_err(wrap("read", &disk.content))?;
        let running = &disk.running;
        running.begin().map_err(wrap("write", &disk.dir))?;
        fs::write(&format_path, FORMAT).map_err(wrap("write", &format_path))?;
        Ok(Some(disk))
    }

    /// Removes what an earlier run left half done, and what cannot be trusted.
    fn sweep(&mut self, is_trusted: bool) -> io::Result<()> {
        for item in fs::read_dir(&self.content)? {
            let path = item?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if let Some(id) = name.strip_prefix("d-") {
                let record = Id::parse(id).and_then(|id| self.journal.get(id));
                // Made for a file that was never written to.
                let is_empty = fs::metadata(&path).is_ok_and(|meta| meta.len() == 0);
                match record {
                    Some(_) => {}
                    None if is_empty => fs::remove_file(&path)?,
                    None => self.orphans.push(path),
                }
            } else if let Some(id) = name.strip_prefix("o-") {
                if Id::parse(id).is_none_or(|id| self.journal.get(id).is_none()) {
                    fs::remove_file(&path)?;
                }
            } else if name.starts_with("t-") || (name.starts_with("c-") && !is_trusted) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Returns the clean content that is there, the one used longest ago first.
    pub(crate) fn found(&self) -> Vec<(Version, u64)> {
        let Ok(items) = fs::read_dir(&self.content) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for item in items.flatten() {
            let Ok(meta) = item.metadata() else { continue };
            let Some(version) = item.file_name().to_str().and_then(clean_name::parse) else {
                continue;
            };
            // A file whose length is not what its name says is not what its name says.
            if meta.len() == version.size {
                found.push((meta.accessed().ok(), version));
            } else {
                self.remove_clean(&version);
            }
        }
        found.sort_by_key(|(used, _)| *used);
        found
            .into_iter()
            .map(|(_, version)| (version, version.size))
            .collect()
    }

    /// Says what this is the cache of, for whoever looks at it without a connection.
    pub fn set_source(&self, source: &str) {
        let path = self.dir.join("source");
        if let Err(error) = fs::write(&path, format!("{source}\n")) {
            log::warn!("cannot write {}: {error}", path.display());
        }
    }

    /// Returns the journal of what is not on the host.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Returns whether all that was written in earlier runs is there, as far as one can know.
    pub(crate) fn is_sound(&self) -> bool {
        self.running.is_sound
    }

    /// Says that what a power failure left was looked at: what is here from now on can be trusted.
    pub(crate) fn trust(&self) {
        self.running.trust();
    }

    /// Returns whether it belonged to no host before it was opened.
    pub fn was_unpinned(&self) -> bool {
        self.was_unpinned
    }

    /// Returns how many lines of the journal were damaged.
    pub fn n_damaged(&self) -> usize {
        self.n_damaged
    }

    pub(crate) fn step(&self, step: Step) -> io::Result<()> {
        self.steps.before(step)
    }

    /// Returns the files with content that nothing is known of.
    pub fn orphans(&self) -> &[PathBuf] {
        &self.orphans
    }

    /// Returns where a mount in the background keeps its log.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Returns the directory, for messages.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns where the content of a private file is, for messages.
    pub(crate) fn private_path(&self, private: &Private) -> PathBuf {
        self.content.join(private.name())
    }

    /// Makes a file for a fetch.
    pub(crate) fn create_temp(&self) -> io::Result<(Private, File)> {
        self.create(Private::temporary(new_id()?))
    }

    /// Makes a file for content that is not on the host.
    pub(crate) fn create_dirty(&self) -> io::Result<(Private, File)> {
        self.step(Step::CreateContent)?;
        self.create(Private::dirty(new_id()?))
    }

    /// As [`Self::create_dirty`], for content that the journal knows already.
    pub(crate) fn create_dirty_as(&self, id: Id) -> io::Result<(Private, File)> {
        self.step(Step::CreateContent)?;
        self.create(Private::dirty(id))
    }

    fn create(&self, private: Private) -> io::Result<(Private, File)> {
        let file = private_file(&self.private_path(&private), true)?;
        Ok((private, file))
    }

    /// Opens clean content; `None` if it is not there after all.
    pub(crate) fn open_clean(&self, version: &Version) -> Option<File> {
        let path = self.clean_path(version)?;
        let file = private_file(&path, false).ok()?;
        (file.metadata().ok()?.len() == version.size).then_some(file)
    }

    /// Gives a complete private file its clean name, unless another has it already: two entries
    /// must never share a file, or what one writes would get the name of what the other has.
    pub(crate) fn make_clean(&self, private: &Private, version: &Version) -> io::Result<()> {
        let path = self.clean_path(version).ok_or(io::ErrorKind::Unsupported)?;
        self.step(Step::MakeClean)?;
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            self.private_path(private),
            rustix::fs::CWD,
            path,
            flags,
        )?;
        Ok(())
    }

    /// Takes the clean name from content that is about to be written to.
    pub(crate) fn make_dirty(&self, version: &Version, private: Private) -> io::Result<Private> {
        let path = self.clean_path(version).ok_or(io::ErrorKind::Unsupported)?;
        self.step(Step::MakeDirty)?;
        fs::rename(path, self.private_path(&private))?;
        Ok(private)
    }

    /// Gives private content another name: one that outlives a crash when it is about to be
    /// written to, or one that does not when its file has no name any more.
    pub(crate) fn rename_private(&self, old: &Private, new: Private) -> io::Result<Private> {
        if *old != new {
            self.step(match new.kind {
                Kind::Dirty => Step::MakeDirty,
                Kind::Temporary | Kind::Old => Step::MakeTemporary,
            })?;
            fs::rename(self.private_path(old), self.private_path(&new))?;
        }
        Ok(new)
    }

    pub(crate) fn rename_clean(&self, old: &Version, new: &Version) -> io::Result<()> {
        match (self.clean_path(old), self.clean_path(new)) {
            (Some(old), Some(new)) => fs::rename(old, new),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(crate) fn remove_clean(&self, version: &Version) {
        if let Some(path) = self.clean_path(version) {
            remove(&path);
        }
    }

    pub(crate) fn remove_private(&self, private: &Private) {
        if self.step(Step::RemoveContent).is_err() {
            return;
        }
        remove(&self.private_path(private));
    }

    /// Has the disk keep content, its name included.
    pub(crate) fn sync_private(&self, file: &File) -> io::Result<()> {
        self.step(Step::FlushContent)?;
        file.sync_all()?;
        File::open(&self.content)?.sync_all()
    }

    /// Opens content that is not on the host.
    pub(crate) fn open_private(&self, private: &Private) -> io::Result<File> {
        private_file(&self.private_path(private), false)
    }

    /// Keeps a copy of what the host has, which dirty content is about to replace.
    pub(crate) fn keep_old(&self, id: Id, content: &File) -> io::Result<File> {
        let (_, mut old) = self.create(Private::old(id))?;
        // The position of the content's descriptor is nobody else's.
        let mut from = content.try_clone()?;
        from.seek(io::SeekFrom::Start(0))?;
        io::copy(&mut from, &mut old)?;
        Ok(old)
    }

    /// As [`Self::keep_old`], of clean content that nobody has open.
    pub(crate) fn take_old(&self, id: Id, version: &Version) -> io::Result<File> {
        let path = self.clean_path(version).ok_or(io::ErrorKind::Unsupported)?;
        let old = self.private_path(&Private::old(id));
        fs::rename(path, &old)?;
        private_file(&old, false)
    }

    /// Opens what [`Self::keep_old`] kept.
    pub(crate) fn open_old(&self, id: Id) -> Option<File> {
        private_file(&self.private_path(&Private::old(id)), false).ok()
    }

    pub(crate) fn remove_old(&self, id: Id) {
        remove(&self.private_path(&Private::old(id)));
    }

    /// Returns how many bytes the disk has left for us.
    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.content)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Returns how many bytes the disk holds in all.
    pub fn total_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.content)?;
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
    }

    /// Flushes everything, and says that the next run can trust it.
    pub(crate) fn close(&self) {
        let result = File::open(&self.content).and_then(|dir| Ok(rustix::fs::syncfs(&dir)?));
        match result {
            Ok(()) => self.running.end(),
            Err(error) => log::warn!("cannot flush the cache to the disk: {error}"),
        }
    }

    fn clean_path(&self, version: &Version) -> Option<PathBuf> {
        Some(self.content.join(clean_name::write(version)?))
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

/// Takes the lock of a directory; returns whether another mount has it.
fn is_taken(lock: &File) -> io::Result<bool> {
    match lock.try_lock() {
        Ok(()) => Ok(false),
        Err(fs::TryLockError::WouldBlock) => Ok(true),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// The name of the directory of the `n`th mount of a root.
pub(crate) fn side_by_side(key: &str, n: u32) -> String {
    if n == 1 {
        key.to_owned()
    } else {
        format!("{key}.{n}")
    }
}

pub(crate) fn new_id() -> io::Result<Id> {
    getrandom::u64().map(Id).map_err(io::Error::other)
}

fn private_file(path: &Path, is_new: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW);
    if is_new {
        options.create_new(true)
    } else {
        options.create(path.ends_with("lock"))
    };
    options.open(path)
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::warn!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::clean_name::tests::version;
    use super::*;

    /// What is on disk outlives the program that wrote it: a change of layout needs a new number.
    #[test]
    fn the_layout_is_that_of_format_2() {
        assert_eq!(FORMAT, "scpfs cache 2\n");
        assert_eq!(Private::dirty(Id(1)).name(), "d-0000000000000001");
        assert_eq!(Private::temporary(Id(1)).name(), "t-0000000000000001");
    }

    #[test]
    fn a_second_mount_gets_a_directory_of_its_own() {
        let base = tempfile::tempdir().unwrap();
        let first = Disk::open(base.path(), "key", "boot").unwrap();
        let second = Disk::open(base.path(), "key", "boot").unwrap();
        assert_ne!(first.dir(), second.dir());
        drop(first);
        let third = Disk::open(base.path(), "key", "boot").unwrap();
        assert_eq!(third.dir(), base.path().join("key"));
    }

    #[test]
    fn only_complete_content_survives_and_nothing_that_was_not_uploaded_is_lost() {
        let base = tempfile::tempdir().unwrap();
        let version = version(None);
        let dirty = {
            let disk = Disk::open(base.path(), "key", "boot").unwrap();
            let (private, mut file) = disk.create_temp().unwrap();
            file.write_all(b"hello").unwrap();
            disk.make_clean(&private, &version).unwrap();
            disk.create_temp().unwrap().1.write_all(b"half").unwrap();
            // What nobody has written to holds nothing.
            disk.create_dirty().unwrap();
            let (dirty, mut file) = disk.create_dirty().unwrap();
            file.write_all(b"x").unwrap();
            disk.private_path(&dirty)
        };
        // Not closed in order, but in the same boot: what was renamed is whole.
        let disk = Disk::open(base.path(), "key", "boot").unwrap();
        assert_eq!(disk.found(), [(version, 5)]);
        assert_eq!(disk.orphans(), std::slice::from_ref(&dirty));
        assert_eq!(fs::read_dir(&disk.content).unwrap().count(), 2);
        drop(disk);
        // The power failed: clean content may be anything.
        let disk = Disk::open(base.path(), "key", "other boot").unwrap();
        assert_eq!(disk.found(), []);
        assert_eq!(disk.orphans(), [dirty]);
    }

    #[test]
    fn after_an_orderly_end_content_is_trusted_in_another_boot() {
        let base = tempfile::tempdir().unwrap();
        let version = version(None);
        let disk = Disk::open(base.path(), "key", "boot").unwrap();
        let (private, mut file) = disk.create_temp().unwrap();
        file.write_all(b"hello").unwrap();
        disk.make_clean(&private, &version).unwrap();
        disk.close();
        drop(disk);
        let disk = Disk::open(base.path(), "key", "other boot").unwrap();
        assert_eq!(disk.found().len(), 1);
        let private = Private::dirty(Id(7));
        let private = disk.make_dirty(&version, private).unwrap();
        assert!(disk.open_clean(&version).is_none());
        assert_eq!(fs::read(disk.private_path(&private)).unwrap(), b"hello");
    }

    /// Whoever can rename a directory above the cache gets all that is kept in it from then on.
    #[test]
    fn a_cache_below_a_directory_that_others_can_write_to_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let open_to_all = base.path().join("open");
        let inner = open_to_all.join("mine");
        fs::create_dir_all(&inner).unwrap();
        let chmod = |mode| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(&open_to_all, mode).unwrap();
        };
        chmod(0o777);
        let error = Disk::open(&inner, "key", "boot").unwrap_err();
        let text = crate::error_chain::with_causes(&error);
        assert!(text.contains("/open: others can write to it"), "{text}");
        chmod(0o1777);
        Disk::open(&inner, "key", "boot").unwrap();
        // Others could make directories in it that look like those of earlier mounts.
        let error = Disk::open(&open_to_all, "key", "boot").unwrap_err();
        let text = crate::error_chain::with_causes(&error);
        assert!(text.contains("/open: others can write to it"), "{text}");
        // Root alone can make a directory of another user.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        chmod(0o755);
        let theirs = Disk::open(&open_to_all, "key.2", "boot").unwrap();
        let (private, mut file) = theirs.create_dirty().unwrap();
        file.write_all(b"planted").unwrap();
        let record = crate::cache::journal::record::tests::sample(private.id.0);
        let durable = crate::cache::journal::Durable::Yes;
        theirs.journal().put(record, durable).unwrap();
        std::os::unix::fs::chown(theirs.dir(), Some(4242), None).unwrap();
        drop(theirs);
        let disk = Disk::open(&open_to_all, "key", "boot").unwrap();
        assert!(disk.journal().records().is_empty());
        assert!(
            crate::cache::leftovers::find(&open_to_all)
                .unwrap()
                .is_empty()
        );
        std::os::unix::fs::chown(&open_to_all, Some(4242), None).unwrap();
        crate::cache::leftovers::find(&open_to_all).unwrap_err();
    }

    #[test]
    fn content_of_the_wrong_length_is_dropped() {
        let base = tempfile::tempdir().unwrap();
        let disk = Disk::open(base.path(), "key", "boot").unwrap();
        let (private, _) = disk.create_temp().unwrap();
        disk.make_clean(&private, &version(None)).unwrap();
        assert!(disk.open_clean(&version(None)).is_none());
        assert_eq!(disk.found(), []);
        assert_eq!(fs::read_dir(&disk.content).unwrap().count(), 0);
    }
}
