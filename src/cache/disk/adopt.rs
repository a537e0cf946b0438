//! Takes over the dirty content that an ended mount of the same root left in another directory.

use std::fs;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::cache::disk::Disk;
use crate::cache::disk::Private;
use crate::cache::disk::pin;
use crate::cache::journal::Durable;
use crate::cache::journal::record::Phase;
use crate::error_chain;

impl Disk {
    /// Moves dirty content and its records from the directory `dir`, unless a mount uses it or it
    /// belongs to another host. Errors are logged: the rest stays for the next mount.
    pub(super) fn adopt(&mut self, dir: &Path, boot: &str) {
        let other = match Self::open_dir(dir.to_owned(), boot, Arc::clone(&self.steps)) {
            Ok(Some(other)) => other,
            // A mount uses it.
            Ok(None) => return,
            Err(error) => {
                log::warn!("{}", error_chain::with_causes(&error));
                return;
            }
        };
        let why = match (pin::of(&self.dir), pin::of(&other.dir)) {
            (Ok(Some(ours)), Ok(Some(theirs))) if ours != theirs => {
                format!("it belongs to the host with the key {theirs}")
            }
            (Err(error), _) | (_, Err(error)) => error.to_string(),
            _ => String::new(),
        };
        if !why.is_empty() {
            log::warn!("{} is not taken over: {why}", other.dir.display());
            return;
        }
        self.n_damaged += other.n_damaged;
        for mut record in other.journal.records() {
            let private = Private::dirty(record.id);
            let is_there = other.private_path(&private).try_exists();
            if let Err(error) = &is_there {
                log::warn!("{} is not taken over: {error}", other.dir.display());
                continue;
            }
            if matches!(is_there, Ok(false)) {
                // It was taken over before, and our record may be newer.
                if let Err(error) = other.journal.end(record.id, Durable::No) {
                    log::warn!("cannot write {}: {error}", other.dir.display());
                }
                continue;
            }
            if record.phase == Phase::Closed && !other.running.is_sound {
                record.phase = Phase::Open;
            }
            let id = record.id;
            let result = self
                .journal
                .put(record, Durable::Yes)
                .and_then(|()| {
                    fs::rename(other.private_path(&private), self.private_path(&private))
                })
                .and_then(|()| {
                    let copy = Private::base_copy(id);
                    match fs::rename(other.private_path(&copy), self.private_path(&copy)) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                        _ => Ok(()),
                    }
                })
                .and_then(|()| File::open(&self.content)?.sync_all())
                .and_then(|()| other.journal.end(id, Durable::No));
            if let Err(error) = result
                && error.kind() != io::ErrorKind::NotFound
            {
                log::warn!(
                    "cannot take over {}: {error}",
                    other.private_path(&private).display()
                );
            }
        }
        self.orphans.extend(other.orphans.iter().cloned());
        if other.orphans.is_empty() && other.journal.records().is_empty() {
            other.trust();
            other.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::cache::journal::record::tests::sample;

    #[test]
    fn the_next_mount_takes_over_what_another_directory_has() {
        let base = tempfile::tempdir().unwrap();
        let open = || Disk::open(base.path(), "key", "boot").unwrap();
        let (first, second) = (open(), open());
        let (private, mut file) = second.create_dirty().unwrap();
        file.write_all(b"left").unwrap();
        let record = sample(private.id.0);
        second.journal().put(record.clone(), Durable::Yes).unwrap();
        drop(first);
        // A directory in use is not taken over.
        let third = open();
        assert!(third.journal().records().is_empty());
        drop((second, third));
        let next = open();
        assert_eq!(next.dir(), base.path().join("key"));
        assert_eq!(next.journal().records(), [record]);
        assert_eq!(fs::read(next.private_path(&private)).unwrap(), b"left");
        drop(next);
        let dirs = crate::cache::leftovers::find(base.path()).unwrap();
        assert_eq!(dirs.len(), 1);
    }

    /// If the disk is full, the other journal keeps the record of content that was taken over; it
    /// must not replace the newer record in our journal.
    #[test]
    fn a_record_that_was_taken_over_before_does_not_replace_the_newer_one() {
        let base = tempfile::tempdir().unwrap();
        let open = || Disk::open(base.path(), "key", "boot").unwrap();
        let (first, second) = (open(), open());
        let (private, mut file) = first.create_dirty().unwrap();
        file.write_all(b"content").unwrap();
        let old = sample(private.id.0);
        let newer = crate::cache::journal::record::Record {
            path: crate::path::RemotePath::root().join(&crate::path::Name::new(b"moved").unwrap()),
            phase: Phase::Open,
            ..old.clone()
        };
        first.journal().put(newer.clone(), Durable::Yes).unwrap();
        second.journal().put(old, Durable::Yes).unwrap();
        drop((first, second));
        let next = open();
        assert_eq!(next.journal().records(), [newer]);
        assert_eq!(fs::read(next.private_path(&private)).unwrap(), b"content");
    }
}
