//! The end of a mount: uploading all dirty content.

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
use crate::vfs::inode::Inode;

/// The maximum number of parallel uploads: more would only wait for connections.
const MAX_AT_ONCE: usize = 8;

impl Vfs {
    /// Uploads all dirty content, several files in parallel; returns the files that could not be
    /// uploaded, each with the error. When the host cannot be reached, persists the rest on the
    /// local disk. Blocks.
    pub fn drain(&self) -> Vec<(RemotePath, Error)> {
        let left = self.recover_now();
        let dirty: Vec<Ino> = {
            let tree = self.tree.lock();
            tree.inodes()
                .filter(|(_, inode)| inode.is_dirty())
                .map(|(ino, _)| ino)
                .collect()
        };
        let n_threads = dirty.len().min(MAX_AT_ONCE);
        let work = Mutex::new(Work {
            dirty,
            left,
            unreachable: None,
        });
        if n_threads > 0 {
            thread::scope(|scope| {
                for _ in 1..n_threads {
                    let builder = thread::Builder::new().name("scpfs-drain".to_owned());
                    if let Err(error) = builder.spawn_scoped(scope, || self.drain_some(&work)) {
                        log::debug!(
                            "drain: cannot start another thread, uploading with fewer: {error}"
                        );
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
            let (ino, unreachable) = {
                let mut work = work.lock();
                let Some(ino) = work.dirty.pop() else { return };
                (ino, work.unreachable.clone())
            };
            let result = match unreachable {
                None => self.flush_inode(&cx, ino, Durability::Lazy),
                Some(error) => {
                    self.persist(ino, &error);
                    Err(error)
                }
            };
            let Err(error) = result else { continue };
            let path = self
                .tree
                .lock()
                .current_or_last_path(ino)
                .unwrap_or_default();
            let mut work = work.lock();
            if error.is_connection_loss() {
                work.unreachable = Some(error.clone());
            }
            work.left.push((path, error));
        }
    }

    /// Persists content that cannot be uploaded before the mount ends.
    fn persist(&self, ino: Ino, error: &Error) {
        let entry = self.tree.lock().get(ino).and_then(Inode::cloned_entry);
        if let Some(entry) = entry
            && let Ok(target) = self.upload_target(ino)
            && let Err(error) =
                entry.persist_for_next_mount(&*target, &error_chain::with_causes(error))
        {
            log::error!("{}", error_chain::with_causes(&error));
        }
    }
}

/// The state that the threads of a drain share.
struct Work {
    dirty: Vec<Ino>,
    left: Vec<(RemotePath, Error)>,
    /// The error with which the host became unreachable.
    unreachable: Option<Error>,
}
