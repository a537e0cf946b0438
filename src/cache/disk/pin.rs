//! The host that a cache directory belongs to: the file `host_key` has its pinned key, and a hash
//! of each mount command line that led to this directory.
//!
//! ```text
//! ssh-ed25519 SHA256:...    the host key, see `HostKey::line`
//! asked HASH                hash of the source as typed; one line for each spelling
//! ```
//!
//! INVARIANT: the file is durable before the journal has its first record. A directory without it
//! is empty, or of an earlier version of scpfs.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::cache::disk::Disk;
use crate::cache::disk::Error;
use crate::cache::disk::MAX_MOUNTS_OF_ROOT;
use crate::cache::disk::check_base;
use crate::cache::disk::dir_name;
use crate::cache::disk::try_lock;
use crate::host_key::HostKey;

/// The most spellings of the source that are kept; the oldest is dropped.
const MAX_ASKED: usize = 16;

/// The host of a mount.
#[derive(Clone, Debug)]
pub struct Host {
    pub key: HostKey,
    /// A hash of the source as typed; one word.
    pub asked: String,
}

#[derive(Debug)]
struct Pin {
    key: HostKey,
    asked: Vec<String>,
}

/// Returns the pinned key for a source as typed, before there is a connection; `None` if none is
/// known.
///
/// Skips directories whose file cannot be read: opening them fails later.
///
/// # Errors
/// Other users can write to `base`.
pub fn expected(base: &Path, asked: &str) -> Result<Option<HostKey>, Error> {
    check_base(base).map_err(|source| Error {
        act: "use",
        path: base.to_owned(),
        source,
    })?;
    let Ok(dirs) = fs::read_dir(base) else {
        return Ok(None);
    };
    let dirs = dirs.flatten();
    let changed_at = |dir: &Path| {
        fs::metadata(path(dir))
            .and_then(|meta| meta.modified())
            .ok()
    };
    let pins = dirs.filter_map(|item| {
        let pin = read(&item.path()).ok().flatten()?;
        let is_it = pin.asked.iter().any(|it| it == asked);
        is_it.then(|| (changed_at(&item.path()), pin.key))
    });
    let newest = pins.max_by_key(|(changed_at, _): &(Option<SystemTime>, HostKey)| *changed_at);
    Ok(newest.map(|(_, key)| key))
}

/// Returns the pinned key of a cache directory; `None` if it has none.
///
/// # Errors
/// The file cannot be read, or is damaged.
pub(crate) fn of(dir: &Path) -> io::Result<Option<HostKey>> {
    Ok(read(dir)?.map(|pin| pin.key))
}

/// Returns the pinned key of a cache directory of this root that belongs to another host than
/// `key`; `None` if there is no such directory.
///
/// # Errors
/// Other users can write to `base`; or the file of a directory cannot be read, or is damaged.
pub fn other_host(base: &Path, name: &str, key: &HostKey) -> io::Result<Option<HostKey>> {
    check_base(base)?;
    for dir in dirs(base, name) {
        if let Some(pinned) = of(&dir)?.filter(|pinned| pinned != key) {
            return Ok(Some(pinned));
        }
    }
    Ok(None)
}

/// Assigns the cache directories of a root to another host, after the user accepted its key: dirty
/// content will be uploaded there, and clean content, which is that of the old host, is removed.
///
/// Skips directories that a mount uses.
///
/// # Errors
/// Other users can write to `base`; or a directory cannot be changed, and still belongs to its
/// host.
pub fn reassign(base: &Path, name: &str, key: &HostKey) -> io::Result<()> {
    check_base(base)?;
    for dir in dirs(base, name) {
        let pin = match read(&dir) {
            Ok(None) => continue,
            Ok(Some(pin)) if pin.key == *key => continue,
            Ok(Some(pin)) => Some(pin),
            Err(error) => {
                log::warn!("{error}");
                None
            }
        };
        let old_key = pin
            .as_ref()
            .map_or_else(|| "(unreadable)".to_owned(), |pin| pin.key.to_string());
        let lock = File::open(dir.join("lock"))?;
        if !try_lock(&lock)? {
            log::warn!(
                "a mount uses {}, which still belongs to the host with the key {old_key}",
                dir.display(),
            );
            continue;
        }
        for item in fs::read_dir(dir.join("content"))? {
            let item = item?;
            if item.file_name().as_encoded_bytes().starts_with(b"c-") {
                fs::remove_file(item.path())?;
            }
        }
        log::warn!(
            "dirty content in {} belonged to the host with the key {old_key}; it will be uploaded \
             to the host with the key {key}",
            dir.display(),
        );
        write(&dir, key, &pin.map_or_else(Vec::new, |pin| pin.asked))?;
    }
    Ok(())
}

fn dirs<'a>(base: &'a Path, name: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    (1..=MAX_MOUNTS_OF_ROOT).map(move |n| base.join(dir_name(name, n)))
}

impl Disk {
    /// Pins the directory to the host of this mount, if it has no key yet.
    ///
    /// # Errors
    /// It belongs to another host; or the file cannot be read, is damaged, or cannot be written.
    pub(super) fn pin(&mut self, host: &Host) -> io::Result<()> {
        let pin = read(self.dir())?;
        self.was_unpinned = pin.is_none();
        let mut asked = match pin {
            Some(pin) if pin.key != host.key => {
                let detail = format!("it belongs to the host with the key {}", pin.key);
                return Err(io::Error::other(detail));
            }
            Some(pin) if pin.asked.contains(&host.asked) => return Ok(()),
            Some(pin) => pin.asked,
            None => Vec::new(),
        };
        asked.push(host.asked.clone());
        let n_more = asked.len().saturating_sub(MAX_ASKED);
        asked.drain(..n_more);
        write(self.dir(), &host.key, &asked)
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("host_key")
}

/// Reads the file of a directory; `None` if it has none.
fn read(dir: &Path) -> io::Result<Option<Pin>> {
    let path = path(dir);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let detail = format!("cannot read {}: {error}", path.display());
            return Err(io::Error::new(error.kind(), detail));
        }
    };
    let mut lines = text.lines();
    let key = lines.next().and_then(HostKey::parse).ok_or_else(|| {
        let detail = format!(
            "{} is damaged: it must have the key of the host that the content in this directory \
             belongs to. Mount with -o accept_host_key=FINGERPRINT of that host",
            path.display()
        );
        io::Error::new(io::ErrorKind::InvalidData, detail)
    })?;
    let asked = lines.filter_map(|line| line.strip_prefix("asked "));
    Ok(Some(Pin {
        key,
        asked: asked.map(str::to_owned).collect(),
    }))
}

/// Replaces the file atomically and durably: a power failure leaves the old file or the new one.
fn write(dir: &Path, key: &HostKey, asked: &[String]) -> io::Result<()> {
    let new = dir.join("host_key.new");
    let mut text = format!("{}\n", key.line());
    for asked in asked {
        text += &format!("asked {asked}\n");
    }
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path(dir))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::disk::clean_name::tests::version;

    fn host(letter: &str) -> Host {
        Host {
            key: HostKey {
                kind: "ssh-ed25519".to_owned(),
                fingerprint: format!("SHA256:{}", letter.repeat(43)),
            },
            asked: format!("asked-of-{letter}"),
        }
    }

    fn open(base: &Path, host: &Host) -> Disk {
        Disk::open_for(base, "key", "boot", host).unwrap()
    }

    #[test]
    fn a_cache_directory_belongs_to_the_first_host() {
        let base = tempfile::tempdir().unwrap();
        let (a, b) = (host("a"), host("b"));
        // A directory without a pinned key.
        drop(Disk::open(base.path(), "key", "boot").unwrap());
        assert_eq!(other_host(base.path(), "key", &a.key).unwrap(), None);
        drop(open(base.path(), &a));
        assert_eq!(other_host(base.path(), "key", &a.key).unwrap(), None);
        assert_eq!(
            other_host(base.path(), "key", &b.key).unwrap(),
            Some(a.key.clone())
        );
        assert_eq!(
            expected(base.path(), &a.asked).unwrap(),
            Some(a.key.clone())
        );
        assert_eq!(expected(base.path(), &b.asked).unwrap(), None);
        assert!(Disk::open_for(base.path(), "key", "boot", &b).is_err());
        let again = Host {
            asked: "other words".to_owned(),
            ..a.clone()
        };
        drop(open(base.path(), &again));
        for asked in [&a.asked, &again.asked] {
            assert_eq!(expected(base.path(), asked).unwrap(), Some(a.key.clone()));
        }
    }

    #[test]
    fn a_directory_of_another_host_is_not_taken_over() {
        let base = tempfile::tempdir().unwrap();
        let (a, b) = (host("a"), host("b"));
        let first = Disk::open(base.path(), "key", "boot").unwrap();
        let second = open(base.path(), &a);
        assert_eq!(second.dir(), base.path().join("key.2"));
        drop((first, second));
        assert_eq!(other_host(base.path(), "key", &b.key).unwrap(), Some(a.key));
        let third = open(base.path(), &b);
        assert_eq!(third.dir(), base.path().join("key"));
        assert!(base.path().join("key.2/journal").exists());
        assert_eq!(of(&base.path().join("key.2")).unwrap(), Some(host("a").key));
    }

    #[test]
    fn an_accepted_host_gets_dirty_content_and_no_clean_content() {
        let base = tempfile::tempdir().unwrap();
        let (a, b) = (host("a"), host("b"));
        let disk = open(base.path(), &a);
        let version = version(None);
        let (private, file) = disk.create_temp().unwrap();
        file.set_len(version.size).unwrap();
        disk.make_clean(&private, &version).unwrap();
        let (dirty, mut file) = disk.create_dirty().unwrap();
        file.write_all(b"pending").unwrap();
        let dirty = disk.private_path(&dirty);
        // A directory in use is skipped.
        reassign(base.path(), "key", &b.key).unwrap();
        assert_eq!(other_host(base.path(), "key", &b.key).unwrap(), Some(a.key));
        drop(disk);
        reassign(base.path(), "key", &b.key).unwrap();
        let disk = open(base.path(), &b);
        assert_eq!(disk.clean_content(), []);
        assert_eq!(fs::read(dirty).unwrap(), b"pending");
    }

    #[test]
    fn a_directory_with_a_damaged_key_is_pinned_to_no_host() {
        let base = tempfile::tempdir().unwrap();
        let (a, b) = (host("a"), host("b"));
        let file = base.path().join("key/host_key");
        for damage in ["", "ssh-ed25519\n"] {
            drop(open(base.path(), &a));
            fs::write(&file, damage).unwrap();
            other_host(base.path(), "key", &b.key).unwrap_err();
            let Err(error) = Disk::open_for(base.path(), "key", "boot", &b) else {
                panic!("it was taken over");
            };
            assert!(format!("{error:?}").contains("damaged"), "{error:?}");
            reassign(base.path(), "key", &a.key).unwrap();
        }
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        other_host(base.path(), "key", &a.key).unwrap_err();
    }

    /// A user who could create a directory beside those of others could choose the host that a
    /// mount expects, and have files of others removed and overwritten through links in it.
    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;

        let base = tempfile::tempdir().unwrap();
        let a = host("a");
        drop(open(base.path(), &a));
        for mode in [0o1777, 0o777] {
            fs::set_permissions(base.path(), fs::Permissions::from_mode(mode)).unwrap();
            expected(base.path(), &a.asked).unwrap_err();
            other_host(base.path(), "key", &a.key).unwrap_err();
            reassign(base.path(), "key", &host("b").key).unwrap_err();
            Disk::open_for(base.path(), "key", "boot", &a).unwrap_err();
            crate::cache::leftovers::find(base.path()).unwrap_err();
        }
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(of(&base.path().join("key")).unwrap(), Some(a.key));
    }
}
