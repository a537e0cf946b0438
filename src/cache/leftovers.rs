//! Lists, copies and discards the dirty content in all cache directories, without a connection.

use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;

use crate::cache::disk::check_base;
use crate::cache::disk::pin;
use crate::cache::journal;
use crate::cache::journal::record::Id;
use crate::cache::journal::record::Record;
use crate::host_key::HostKey;
use crate::path::Escaped;

/// A cache directory with dirty content or a damaged journal.
#[derive(Debug)]
pub struct CacheDir {
    dir: PathBuf,
    /// The source of the last mount that used it, `user@host:directory`.
    pub source: String,
    /// The pinned key of the host that the content belongs to, if it is known.
    pub host_key: Option<HostKey>,
    /// A mount uses it now.
    pub is_in_use: bool,
    /// How many damaged lines its journal had; they are kept in the file `damaged`.
    pub n_damaged: usize,
    pub leftovers: Vec<Leftover>,
}

/// The dirty content of one file.
#[derive(Debug)]
pub struct Leftover {
    pub id: Id,
    /// Its journal record; `None` if there is none.
    pub record: Option<Record>,
    /// The size of `file`, in bytes.
    pub size: u64,
    /// The path of the local file.
    pub file: PathBuf,
}

/// Why content could not be listed, copied or discarded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a mount uses the cache in {}; unmount it first", .0.display())]
    InUse(PathBuf),
    #[error("cannot {act} {}", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

fn wrap<'a>(act: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error::Io {
        act,
        path: path.to_owned(),
        source,
    }
}

/// Finds the cache directories below `base` that have dirty content or a damaged journal.
///
/// # Errors
/// A directory cannot be read; or other users can write to `base` or own it. This holds for root
/// too, which would follow links and open FIFOs that other users made.
pub fn find(base: &Path) -> Result<Vec<CacheDir>, Error> {
    check_base(base).map_err(wrap("use", base))?;
    let items = match fs::read_dir(base) {
        Ok(items) => items,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrap("read", base)(error)),
    };
    let uid = rustix::process::geteuid().as_raw();
    // Root may have created directories of other users in it.
    let may_be_ours = |dir: &Path| {
        let meta = fs::symlink_metadata(dir);
        meta.is_ok_and(|meta| meta.is_dir() && meta.uid() == uid)
    };
    let mut dirs = Vec::new();
    for item in items {
        let dir = item.map_err(wrap("read", base))?.path();
        if may_be_ours(&dir) && dir.join("content").is_dir() {
            let dir = read(&dir)?;
            if !dir.leftovers.is_empty() || dir.n_damaged > 0 {
                dirs.push(dir);
            }
        }
    }
    dirs.sort_by(|a, b| a.dir.cmp(&b.dir));
    Ok(dirs)
}

fn read(dir: &Path) -> Result<CacheDir, Error> {
    let found = journal::read(dir).map_err(wrap("read", dir))?;
    let content = dir.join("content");
    let mut leftovers = Vec::new();
    for item in fs::read_dir(&content).map_err(wrap("read", &content))? {
        let item = item.map_err(wrap("read", &content))?;
        let name = item.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("d-"));
        let Some(id) = id.and_then(Id::parse) else {
            continue;
        };
        leftovers.push(Leftover {
            id,
            record: found.live.get(&id).cloned(),
            size: item.metadata().map_or(0, |meta| meta.len()),
            file: item.path(),
        });
    }
    leftovers.sort_by_key(|left| (left.record.as_ref().map(|record| record.since), left.id));
    let set_aside = fs::read(dir.join("damaged")).unwrap_or_default();
    let source = fs::read_to_string(dir.join("source")).unwrap_or_default();
    Ok(CacheDir {
        source: match source.trim_end() {
            "" => Escaped(dir.file_name().unwrap_or_default().as_encoded_bytes()).to_string(),
            source => source.to_owned(),
        },
        // A damaged key file does not prevent listing.
        host_key: pin::of(dir).unwrap_or_default(),
        is_in_use: is_locked(dir),
        n_damaged: found.damaged.len() + memchr::memchr_iter(b'\n', &set_aside).count(),
        leftovers,
        dir: dir.to_owned(),
    })
}

fn is_locked(dir: &Path) -> bool {
    File::open(dir.join("lock"))
        .is_ok_and(|lock| matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)))
}

impl Leftover {
    /// Copies the content to a new file in `dir`, named after its number and name; returns the
    /// path.
    ///
    /// # Errors
    /// The content cannot be read, or the file exists or cannot be written.
    pub fn save(&self, dir: &Path) -> Result<PathBuf, Error> {
        let name = self.record.as_ref().and_then(|record| record.path.name());
        let name = match name {
            // The name on the host may have control characters.
            Some(name) => format!("{}-{}", self.id, Escaped(name.as_bytes())),
            None => self.id.to_string(),
        };
        // The number and the escapes make a name longer.
        let cut = (0..=200.min(name.len()))
            .rev()
            .find(|&at| name.is_char_boundary(at));
        let path = dir.join(&name[..cut.unwrap_or(0)]);
        let mut from = File::open(&self.file).map_err(wrap("open", &self.file))?;
        let mut to = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(wrap("create", &path))?;
        io::copy(&mut from, &mut to)
            .and_then(|_| to.sync_all())
            .map_err(wrap("write", &path))?;
        Ok(path)
    }
}

impl CacheDir {
    /// Removes the content permanently.
    ///
    /// # Errors
    /// [`Error::InUse`] while a mount uses the cache; or the file cannot be removed.
    pub fn discard(&self, leftover: &Leftover) -> Result<(), Error> {
        let path = self.dir.join("lock");
        let lock = File::open(&path).map_err(wrap("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(Error::InUse(self.dir.clone())),
            Err(fs::TryLockError::Error(error)) => return Err(wrap("lock", &path)(error)),
        }
        // The next mount ends a record without content.
        fs::remove_file(&leftover.file).map_err(wrap("remove", &leftover.file))?;
        drop(lock);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::cache::Disk;
    use crate::cache::journal::Durable;
    use crate::cache::journal::record::tests::sample;

    #[test]
    fn what_is_left_is_listed_saved_and_discarded() {
        let base = tempfile::tempdir().unwrap();
        let disk = Disk::open(base.path(), "key", "boot").unwrap();
        disk.set_source("me@host:/srv");
        let (known, mut file) = disk.create_dirty().unwrap();
        file.write_all(b"known").unwrap();
        let record = sample(known.id.0);
        disk.journal().put(record.clone(), Durable::Yes).unwrap();
        let (unknown, _) = disk.create_dirty().unwrap();
        disk.create_temp().unwrap();

        let dirs = find(base.path()).unwrap();
        let [cache_dir] = &dirs[..] else {
            panic!("{dirs:?}");
        };
        assert_eq!(cache_dir.source, "me@host:/srv");
        assert!(cache_dir.is_in_use);
        let [a, b] = &cache_dir.leftovers[..] else {
            panic!("{cache_dir:?}");
        };
        let (a, b) = if a.record.is_some() { (a, b) } else { (b, a) };
        assert_eq!((&a.record, a.size), (&Some(record), 5));
        assert_eq!((b.id, b.record.is_none()), (unknown.id, true));
        assert!(matches!(cache_dir.discard(b), Err(Error::InUse(_))));
        drop(disk);

        let saved = a.save(base.path()).unwrap();
        assert_eq!(fs::read(&saved).unwrap(), b"known");
        let name = saved.file_name().unwrap().to_str().unwrap();
        assert_eq!(name, format!("{}-a\\nb", a.id));
        assert!(a.save(base.path()).is_err(), "nothing is replaced");
        cache_dir.discard(a).unwrap();
        cache_dir.discard(b).unwrap();
        assert!(find(base.path()).unwrap().is_empty());
        // The next mount finds nothing either.
        let disk = Disk::open(base.path(), "key", "boot").unwrap();
        assert!(disk.orphans().is_empty());
    }
}
