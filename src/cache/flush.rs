//! Storing the content of an entry on the host.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::cache::Error;
use crate::cache::Whereto;
use crate::cache::disk::Private;
use crate::cache::entry::Content;
use crate::cache::entry::Entry;
use crate::cache::entry::Place;
use crate::cache::entry::Wait;
use crate::path::RemotePath;
use crate::remote;
use crate::remote::Changed;
use crate::remote::Durability;
use crate::remote::Expect;
use crate::remote::Owner;
use crate::remote::Placement;
use crate::remote::StorePlan;
use crate::stat::Time;
use crate::stat::Version;

/// Where content goes, as the layer above sees it when a store begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub path: RemotePath,
    pub mode: u32,
    pub owner: Option<Owner>,
    pub placement: Placement,
    /// Used unless a time was set for the content.
    pub atime: Time,
}

impl Entry {
    /// Stores the content on the host if the host does not have it, and waits for that.
    ///
    /// # Errors
    /// The content is still here and still dirty; the next flush tries again.
    pub fn flush(
        &self,
        whereto: &dyn Whereto,
        durability: Durability,
        wait: Wait,
    ) -> Result<(), Error> {
        let mut state = self.state.lock();
        let (file, private) = loop {
            match &state.content {
                Content::Dirty { file, private } => {
                    if !state.is_flushing && !Self::is_held(&state) {
                        break (Arc::clone(file), private.clone());
                    }
                    self.wait(&mut state, wait)?;
                }
                _ if durability == Durability::Lazy || state.is_synced => return Ok(()),
                _ => {
                    drop(state);
                    return self.sync(whereto, wait);
                }
            }
        };
        if wait == Wait::Never {
            return Err(Error::WouldWait);
        }
        state.is_flushing = true;
        let (size, mtime, atime, base) = (state.size, state.mtime, state.atime, state.base);
        drop(state);

        let Some(target) = whereto.target() else {
            // The file has no name any more: its content ends with its last handle.
            self.state.lock().is_flushing = false;
            self.changed.notify_all();
            return Ok(());
        };
        let plan = StorePlan {
            size,
            mode: target.mode,
            mtime,
            atime: atime.unwrap_or(target.atime),
            owner: target.owner,
            expect: base,
            placement: target.placement,
            durability,
            keep_as: None,
            tag: 0,
        };
        self.sent.store(0, Ordering::Relaxed);
        let content = FromFile {
            file: &file,
            sent: &self.sent,
        };
        let result = self.cache.remote.store(&target.path, &content, &plan);
        let result = result
            .map(|stored| self.complete(&target.path, stored.changed()))
            .map_err(Error::from);

        // Without the lock: the layer above takes its own first, then this one.
        match &result {
            Ok(changed) => whereto.stored(&target.path, Ok(changed)),
            Err(error) => {
                log::error!(
                    "{} is not stored on the host: {}; its content is kept in {}",
                    target.path,
                    remote::chain(error),
                    self.cache.disk.private_path(&private).display()
                );
                whereto.stored(&target.path, Err(error));
            }
        }
        let mut state = self.state.lock();
        state.is_flushing = false;
        match &result {
            Ok(changed) => {
                let version = changed.stat.map_or(
                    Version {
                        size,
                        mtime,
                        ctime: None,
                        id: None,
                    },
                    |stat| stat.version(),
                );
                let place = self.settle(&private, &version, size);
                state.set_base(version);
                state.size = size;
                state.failure = None;
                state.is_synced = durability == Durability::Fsync;
                state.content = Content::Clean {
                    version,
                    file,
                    place,
                };
                if !Self::is_wanted(&state) {
                    self.put_away(&mut state);
                }
            }
            Err(error) => {
                if let Error::Remote(error) = error
                    && matches!(**error, remote::Error::Partial { .. })
                {
                    // What the host has now is our own half: the next store may replace it.
                    state.base = Expect::Anything;
                }
                state.failure = Some(error.clone());
            }
        }
        drop(state);
        self.changed.notify_all();
        result.map(drop)
    }

    /// Gives stored content the name of its version.
    fn settle(&self, private: &Private, version: &Version, size: u64) -> Place {
        let is_named = version.size == size && self.cache.disk.make_clean(private, version).is_ok();
        if is_named {
            Place::Named
        } else {
            Place::Private(private.clone())
        }
    }

    /// Asks for the attributes of a file that was just stored where the answer did not have them.
    fn complete(&self, path: &RemotePath, changed: Changed) -> Changed {
        let stat = changed.stat.or_else(|| self.cache.remote.stat(path).ok());
        Changed { stat, ..changed }
    }

    fn sync(&self, whereto: &dyn Whereto, wait: Wait) -> Result<(), Error> {
        if wait == Wait::Never {
            return Err(Error::WouldWait);
        }
        if let Some(target) = whereto.target() {
            self.cache.remote.sync(&target.path)?;
            self.state.lock().is_synced = true;
        }
        Ok(())
    }

    /// Returns why the last store failed, if it did and the content is still not on the host.
    pub fn failure(&self) -> Option<Error> {
        self.state.lock().failure.clone()
    }
}

/// Content of a file, which is not written to while it is stored.
struct FromFile<'a> {
    file: &'a File,
    /// How much of it was read so far.
    sent: &'a AtomicU64,
}

impl remote::Content for FromFile<'_> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.file.read_at(buf, offset)?;
        if offset == 0 {
            // The first bytes once more: the store is tried again.
            self.sent.store(0, Ordering::Relaxed);
        }
        self.sent.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}
