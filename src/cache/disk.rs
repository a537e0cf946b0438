//! The cache directory: its layout, its lock, and the names of its files.
//!
//! ```text
//! lock      locked by the mount that uses the directory
//! format    the version of this layout
//! log       the log of a mount in the background
//! running   the boot ID of the mount that uses the directory; removed by an orderly unmount
//! source    what is mounted, for people
//! host_key  the key of the host that the content belongs to, see `pin.rs`
//! journal   the records of dirty content, see `journal.rs`
//! damaged   lines of the journal that could not be parsed
//! content/  c-DEV-INO-SIZE-MTIME-CTIME   clean content of exactly that version
//!           d-NUMBER                     dirty content
//!           o-NUMBER                     base copy: the content of the base version of d-NUMBER, if
//!                                        that is uploaded in place
//!           t-NUMBER                     an incomplete fetch, content of an unlinked file, or clean
//!                                        content that no version identifies
//! ```
//!
//! INVARIANT: a file named `c-...` has the complete content of the version in its name. It is
//! renamed to that name when it is complete, and renamed again before it is first written. No name
//! in here contains a name of the host.
//!
//! Modules:
//! - `adopt`: takes over what another mount of the same root left
//! - `clean_name`: names of clean content; pure
//! - `pin`: the host that the directory belongs to
//! - `private`: names of all other content; pure
//! - `running`: whether the directory survived the last mount intact

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

/// The content of the file `format`. Another layout needs another number.
const FORMAT: &str = "scpfs cache 2\n";

/// How many mounts of one root may run at the same time, each with its own directory.
const MAX_MOUNTS_OF_ROOT: u32 = 64;

/// Why a cache directory cannot be used.
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
    /// Locked until it is closed.
    _lock: File,
    journal: Journal,
    steps: Arc<dyn Steps>,
    running: Running,
    n_damaged: usize,
    orphans: Vec<PathBuf>,
    /// The directory had no host key before this mount.
    was_unpinned: bool,
}

/// Checks that no other user can create or replace anything in the directory of all caches, which
/// decides to which host dirty content is uploaded.
///
/// # Errors
/// Another user can, or owns the directory; the error says what to do. This holds for root too.
pub(crate) fn check_base(base: &Path) -> io::Result<()> {
    owned_path::check(base, rustix::process::geteuid().as_raw())
}

impl Disk {
    /// Opens the cache directory `base/key`, or `base/key.2` and so on if other mounts use it, and
    /// takes over what ended mounts left in the others.
    ///
    /// `boot` identifies the boot of this machine: after a power failure, content that was never
    /// flushed to the disk is not trusted.
    ///
    /// # Errors
    /// No directory can be used.
    pub fn open(base: &Path, key: &str, boot: &str) -> Result<Self, Error> {
        Self::open_with(base, key, boot, Arc::new(NoSteps))
    }

    /// As [`Self::open`], for a mount of this host: directories of other hosts are not taken over.
    ///
    /// # Errors
    /// As [`Self::open`]; also if the directory belongs to another host.
    pub fn open_for(base: &Path, key: &str, boot: &str, host: &Host) -> Result<Self, Error> {
        Self::open_as(base, key, boot, Arc::new(NoSteps), Some(host))
    }

    /// As [`Self::open`], for tests: `steps` is called before each step.
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
        for n in 1..=MAX_MOUNTS_OF_ROOT {
            let dir = base.join(dir_name(key, n));
            if let Some(mut disk) = Self::open_dir(dir, boot, Arc::clone(&steps))? {
                if let Some(host) = host {
                    disk.pin(host).map_err(|source| Error {
                        act: "use",
                        path: disk.dir.clone(),
                        source,
                    })?;
                }
                for other in (1..=MAX_MOUNTS_OF_ROOT).filter(|other| *other != n) {
                    let other = base.join(dir_name(key, other));
                    if other.join("journal").exists() {
                        disk.adopt(&other, boot);
                    }
                }
                return Ok(disk);
            }
        }
        let source = io::Error::other("64 mounts use it already");
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
        // In a shared directory, another user may have created it since.
        is_ours(&content)?;
        let lock_path = dir.join("lock");
        let lock = private_file(&lock_path, false).map_err(wrap("open", &lock_path))?;
        if !try_lock(&lock).map_err(wrap("lock", &lock_path))? {
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

    /// Removes incomplete files of an earlier mount, and clean content if it is not trusted.
    fn sweep(&mut self, is_trusted: bool) -> io::Result<()> {
        for item in fs::read_dir(&self.content)? {
            let path = item?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if let Some(id) = name.strip_prefix("d-") {
                let record = Id::parse(id).and_then(|id| self.journal.get(id));
                // Created for a file that was never written.
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

    /// Returns the clean content and its size in bytes, the least recently used first.
    pub(crate) fn clean_content(&self) -> Vec<(Version, u64)> {
        let Ok(items) = fs::read_dir(&self.content) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for item in items.flatten() {
            let Ok(meta) = item.metadata() else { continue };
            let Some(version) = item.file_name().to_str().and_then(clean_name::parse) else {
                continue;
            };
            // A wrong size means a damaged file.
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

    /// Writes what is mounted to the file `source`, for `scpfs recover`.
    pub fn set_source(&self, source: &str) {
        let path = self.dir.join("source");
        if let Err(error) = fs::write(&path, format!("{source}\n")) {
            log::warn!("cannot write {}: {error}", path.display());
        }
    }

    /// Returns the journal of dirty content.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Returns whether no power failure happened since the last mount began, or that mount ended
    /// orderly.
    pub(crate) fn is_sound(&self) -> bool {
        self.running.is_sound
    }

    /// Records that the content was checked after a power failure: it is trusted from now on.
    pub(crate) fn trust(&self) {
        self.running.trust();
    }

    /// Returns whether the directory had no host key before this mount.
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

    /// Returns the files of dirty content without a journal record.
    pub fn orphans(&self) -> &[PathBuf] {
        &self.orphans
    }

    /// Returns the path of the log of a mount in the background.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Returns the directory, for messages.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of a private file.
    pub(crate) fn private_path(&self, private: &Private) -> PathBuf {
        self.content.join(private.name())
    }

    /// Creates a file for a fetch.
    pub(crate) fn create_temp(&self) -> io::Result<(Private, File)> {
        self.create(Private::temporary(new_id()?))
    }

    /// Creates an empty file for dirty content.
    pub(crate) fn create_dirty(&self) -> io::Result<(Private, File)> {
        self.step(Step::CreateContent)?;
        self.create(Private::dirty(new_id()?))
    }

    /// As [`Self::create_dirty`], for content that has a journal record.
    pub(crate) fn create_dirty_as(&self, id: Id) -> io::Result<(Private, File)> {
        self.step(Step::CreateContent)?;
        self.create(Private::dirty(id))
    }

    fn create(&self, private: Private) -> io::Result<(Private, File)> {
        let file = private_file(&self.private_path(&private), true)?;
        Ok((private, file))
    }

    /// Opens clean content; `None` if the file is missing or has the wrong size.
    pub(crate) fn open_clean(&self, version: &Version) -> Option<File> {
        let path = self.clean_path(version)?;
        let file = private_file(&path, false).ok()?;
        (file.metadata().ok()?.len() == version.size).then_some(file)
    }

    /// Renames a complete private file to its clean name.
    ///
    /// # Errors
    /// Also if a file has that name already: two entries must never share a file, because one could
    /// write to it while the other still takes it for clean.
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

    /// Renames clean content to `private`, because it is about to be written.
    pub(crate) fn make_dirty(&self, version: &Version, private: Private) -> io::Result<Private> {
        let path = self.clean_path(version).ok_or(io::ErrorKind::Unsupported)?;
        self.step(Step::MakeDirty)?;
        fs::rename(path, self.private_path(&private))?;
        Ok(private)
    }

    /// Renames private content: to a dirty name before it is written, or to a temporary name, which
    /// the next mount removes, if its file was unlinked.
    pub(crate) fn rename_private(&self, old: &Private, new: Private) -> io::Result<Private> {
        if *old != new {
            self.step(match new.kind {
                Kind::Dirty => Step::MakeDirty,
                Kind::Temporary | Kind::BaseCopy => Step::MakeTemporary,
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

    /// Flushes a private file and its directory entry to the disk.
    pub(crate) fn flush_private(&self, file: &File) -> io::Result<()> {
        self.step(Step::FlushContent)?;
        file.sync_all()?;
        File::open(&self.content)?.sync_all()
    }

    /// Opens a private file.
    pub(crate) fn open_private(&self, private: &Private) -> io::Result<File> {
        private_file(&self.private_path(private), false)
    }

    /// Copies the content of the base version, before dirty content replaces it in place.
    pub(crate) fn create_base_copy(&self, id: Id, content: &File) -> io::Result<File> {
        let (_, mut copy) = self.create(Private::base_copy(id))?;
        // All other reads of this descriptor have explicit offsets.
        let mut from = content.try_clone()?;
        from.seek(io::SeekFrom::Start(0))?;
        io::copy(&mut from, &mut copy)?;
        Ok(copy)
    }

    /// As [`Self::create_base_copy`], by renaming clean content that no entry holds.
    pub(crate) fn rename_to_base_copy(&self, id: Id, version: &Version) -> io::Result<File> {
        let path = self.clean_path(version).ok_or(io::ErrorKind::Unsupported)?;
        let copy = self.private_path(&Private::base_copy(id));
        fs::rename(path, &copy)?;
        private_file(&copy, false)
    }

    /// Opens the base copy of an earlier mount, if there is one.
    pub(crate) fn open_base_copy(&self, id: Id) -> Option<File> {
        private_file(&self.private_path(&Private::base_copy(id)), false).ok()
    }

    pub(crate) fn remove_base_copy(&self, id: Id) {
        remove(&self.private_path(&Private::base_copy(id)));
    }

    /// Returns the free space for this user, in bytes.
    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.content)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Returns the size of the filesystem, in bytes.
    pub fn total_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.content)?;
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
    }

    /// Flushes everything, and records that the next mount can trust it.
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

/// Locks a directory without waiting; returns false if another mount has locked it.
fn try_lock(lock: &File) -> io::Result<bool> {
    match lock.try_lock() {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Returns the name of the directory of the `n`th simultaneous mount of a root.
pub(crate) fn dir_name(key: &str, n: u32) -> String {
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

    /// Other versions read what this one wrote to the disk: a change of layout needs a new number.
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
            // A file that was never written is removed.
            disk.create_dirty().unwrap();
            let (dirty, mut file) = disk.create_dirty().unwrap();
            file.write_all(b"x").unwrap();
            disk.private_path(&dirty)
        };
        // No orderly unmount, but the same boot: renamed files are complete.
        let disk = Disk::open(base.path(), "key", "boot").unwrap();
        assert_eq!(disk.clean_content(), [(version, 5)]);
        assert_eq!(disk.orphans(), std::slice::from_ref(&dirty));
        assert_eq!(fs::read_dir(&disk.content).unwrap().count(), 2);
        drop(disk);
        // After a power failure, clean content is not trusted.
        let disk = Disk::open(base.path(), "key", "other boot").unwrap();
        assert_eq!(disk.clean_content(), []);
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
        assert_eq!(disk.clean_content().len(), 1);
        let private = Private::dirty(Id(7));
        let private = disk.make_dirty(&version, private).unwrap();
        assert!(disk.open_clean(&version).is_none());
        assert_eq!(fs::read(disk.private_path(&private)).unwrap(), b"hello");
    }

    /// A user who can rename a directory above the cache would get everything that is written to
    /// it.
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
        // Other users could create directories in it that look like those of earlier mounts.
        let error = Disk::open(&open_to_all, "key", "boot").unwrap_err();
        let text = crate::error_chain::with_causes(&error);
        assert!(text.contains("/open: others can write to it"), "{text}");
        // Only root can create a directory of another user.
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
        assert_eq!(disk.clean_content(), []);
        assert_eq!(fs::read_dir(&disk.content).unwrap().count(), 0);
    }
}
