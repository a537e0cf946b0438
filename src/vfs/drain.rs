//! The end of a mount: uploading what is left.

use std::thread;

use crate::cache::Wait;
use crate::error_chain;
use crate::path::RemotePath;
use crate::remote::Durability;
use crate::sync::Mutex;
use crate::vfs::Context;
use crate::vfs::Error;
use crate::vfs::Ino;
use crate::vfs::Vfs;
use crate::vfs::names::entry_of;

/// More at once would only wait for connections.
const MAX_AT_ONCE: usize = 8;

impl Vfs {
    /// Uploads everything that the host does not have, several files at once; returns what could not
    /// be uploaded. Once the host cannot be reached, the rest is made sure of here.
    pub fn drain(&self) -> Vec<(RemotePath, Error)> {
        let left = self.recover_now();
        let dirty: Vec<Ino> = {
            let tree = self.tree.lock();
            tree.inodes()
                .filter(|(_, inode)| inode.is_ours())
                .map(|(ino, _)| ino)
                .collect()
        };
        let n_threads = dirty.len().min(MAX_AT_ONCE);
        let work = Mutex::new(Work {
            dirty,
            left,
            away: None,
        });
        if n_threads > 0 {
            thread::scope(|scope| {
                for _ in 1..n_threads {
                    let helper = thread::Builder::new().name("scpfs-drain".to_owned());
                    if let Err(error) = helper.spawn_scoped(scope, || self.drain_some(&work)) {
                        log::debug!("no thread to help: {error}");
                    }
                }
                self.drain_some(&work);
            });
        }
        let mut left = work.into_inner().left;
        left.sort_by(|(a, _), (b, _)| a.cmp(b));
        left
    }

    fn drain_some(&self, work: &Mutex<Work>) {
        let cx = Context {
            uid: 0,
            gid: 0,
            wait: Wait::Allowed,
        };
        loop {
            let (ino, away) = {
                let mut work = work.lock();
                let Some(ino) = work.dirty.pop() else { return };
                (ino, work.away.clone())
            };
            let result = match away {
                None => self.flush_inode(&cx, ino, Durability::Lazy),
                Some(error) => {
                    self.persist(ino, &error);
                    Err(error)
                }
            };
            let Err(error) = result else { continue };
            let path = self.tree.lock().place_path(ino).unwrap_or_default();
            let mut work = work.lock();
            if error.is_connection_loss() {
                work.away = Some(error.clone());
            }
            work.left.push((path, error));
        }
    }

    /// Persists content that cannot be uploaded before the mount ends.
    fn persist(&self, ino: Ino, error: &Error) {
        let entry = self.tree.lock().get(ino).and_then(entry_of);
        if let Some(entry) = entry
            && let Ok(place) = self.upload_place(ino)
            && let Err(error) =
                entry.persist_for_next_mount(&*place, &error_chain::with_causes(error))
        {
            log::error!("{}", error_chain::with_causes(&error));
        }
    }
}

/// What the threads of a drain share.
struct Work {
    dirty: Vec<Ino>,
    left: Vec<(RemotePath, Error)>,
    /// Why the host cannot be reached.
    away: Option<Error>,
}
