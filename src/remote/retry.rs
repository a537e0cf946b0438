//! A [`Remote`] around a [`Remote`] that repeats what is safe to repeat when a connection fails.
//!
//! What changes nothing on the host is repeated whatever happened. What changes something is
//! repeated only if the request never left. A store is repeated in both cases, once the host
//! was asked whether the first try had succeeded after all.

use crate::path::RemotePath;
use crate::remote::AttrChange;
use crate::remote::Changed;
use crate::remote::Content;
use crate::remote::Error;
use crate::remote::Expect;
use crate::remote::Facts;
use crate::remote::Fetched;
use crate::remote::Listing;
use crate::remote::Owner;
use crate::remote::Receiver;
use crate::remote::Remote;
use crate::remote::RenameHow;
use crate::remote::Renamed;
use crate::remote::Result;
use crate::remote::StorePlan;
use crate::remote::Stored;
use crate::stat::DeviceNumber;
use crate::stat::FileKind;
use crate::stat::FsStat;
use crate::stat::Stat;
use crate::stat::Version;

/// How often an operation is tried in all.
const MAX_TRIES: u32 = 3;

#[derive(Debug)]
pub struct Retry<R> {
    inner: R,
}

impl<R: Remote> Retry<R> {
    pub fn new(inner: R) -> Self {
        Self { inner }
    }

    pub fn inner(&self) -> &R {
        &self.inner
    }

    /// Repeats `operation` as long as `may_repeat` says so of its error.
    fn repeat<T>(
        &self,
        may_repeat: impl Fn(&Error) -> bool,
        mut operation: impl FnMut(&R) -> Result<T>,
    ) -> Result<T> {
        let mut n_tries = 1;
        loop {
            match operation(&self.inner) {
                Err(error) if n_tries < MAX_TRIES && may_repeat(&error) => {
                    log::info!("trying again: {}", crate::remote::chain(&error));
                    n_tries += 1;
                }
                result => return result,
            }
        }
    }

    fn reading<T>(&self, operation: impl FnMut(&R) -> Result<T>) -> Result<T> {
        self.repeat(is_worth_repeating, operation)
    }

    fn changing<T>(&self, operation: impl FnMut(&R) -> Result<T>) -> Result<T> {
        self.repeat(
            |error| error.is_before_request() && is_worth_repeating(error),
            operation,
        )
    }
}

/// A host that did not answer for a whole deadline will not do so in the next: whoever waits
/// has waited long enough.
fn is_worth_repeating(error: &Error) -> bool {
    let is_timeout = matches!(
        error,
        Error::Disconnected {
            source: crate::transport::Error::Timeout { .. },
            ..
        } | Error::OutcomeUnknown {
            source: crate::transport::Error::Timeout { .. },
            ..
        }
    );
    error.is_connection_loss() && !is_timeout
}

/// Whether the file has what `plan` wanted to give it. A store sets the modification time to the
/// microsecond, so size and time together are as good as a receipt. A host that tells neither
/// inodes nor fractions of a second has no better one.
fn is_as_planned(stat: &Stat, plan: &StorePlan) -> bool {
    let is_coarse = stat.id.is_none() && stat.mtime.nanos == 0;
    let is_mtime_as_planned = if is_coarse {
        stat.mtime.secs == plan.mtime.secs
    } else {
        stat.mtime.to_micros() == plan.mtime.to_micros()
    };
    stat.kind == FileKind::File
        && stat.size == plan.size
        && is_mtime_as_planned
        // A tool that keeps size and time makes the old file look like the new one.
        && !matches!(&plan.expect, Expect::Version(old) if old.same_content(&stat.version()))
}

fn done_already(stat: Stat) -> Stored {
    Stored::as_planned(Changed {
        stat: Some(stat),
        parent: None,
    })
}

impl<R: Remote> Remote for Retry<R> {
    fn facts(&self) -> &Facts {
        self.inner.facts()
    }

    fn stat(&self, path: &RemotePath) -> Result<Stat> {
        self.reading(|r| r.stat(path))
    }

    fn list(&self, path: &RemotePath) -> Result<Listing> {
        self.reading(|r| r.list(path))
    }

    fn read_link(&self, path: &RemotePath) -> Result<Vec<u8>> {
        self.reading(|r| r.read_link(path))
    }

    fn fetch(
        &self,
        path: &RemotePath,
        known: Option<&Version>,
        receiver: &mut dyn Receiver,
    ) -> Result<Fetched> {
        self.reading(|r| r.fetch(path, known, receiver))
    }

    fn store(&self, path: &RemotePath, content: &dyn Content, plan: &StorePlan) -> Result<Stored> {
        let mut is_outcome_unknown = false;
        self.repeat(is_worth_repeating, |r| {
            if is_outcome_unknown {
                // The first try may still be under way over there; it must not end later.
                r.remove_leftovers(&path.parent().unwrap_or_default(), plan.tag)?;
                match r.stat(path) {
                    Ok(stat) if is_as_planned(&stat, plan) => {
                        return Ok(done_already(stat));
                    }
                    Err(error) if error.is_connection_loss() => return Err(error),
                    Ok(_) | Err(_) => {}
                }
            }
            let result = r.store(path, content, plan);
            if is_outcome_unknown
                && matches!(result, Err(Error::Conflict { .. }))
                && let Ok(stat) = r.stat(path)
                && is_as_planned(&stat, plan)
            {
                // The first try went on after its connection was gone, and was the faster one.
                return Ok(done_already(stat));
            }
            is_outcome_unknown |= matches!(
                result,
                Err(Error::OutcomeUnknown { .. } | Error::Surprise { .. })
            );
            result
        })
    }

    fn create_new(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed> {
        self.changing(|r| r.create_new(path, mode, owner))
    }

    fn make_dir(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed> {
        self.changing(|r| r.make_dir(path, mode, owner))
    }

    fn make_node(
        &self,
        path: &RemotePath,
        kind: FileKind,
        mode: u32,
        device: DeviceNumber,
        owner: Option<Owner>,
    ) -> Result<Changed> {
        self.changing(|r| r.make_node(path, kind, mode, device, owner))
    }

    fn symlink(&self, path: &RemotePath, target: &[u8], owner: Option<Owner>) -> Result<Changed> {
        self.changing(|r| r.symlink(path, target, owner))
    }

    fn link(&self, existing: &RemotePath, path: &RemotePath) -> Result<Changed> {
        self.changing(|r| r.link(existing, path))
    }

    fn remove_file(&self, path: &RemotePath, other: Option<&RemotePath>) -> Result<Changed> {
        self.changing(|r| r.remove_file(path, other))
    }

    fn remove_dir(&self, path: &RemotePath) -> Result<Changed> {
        self.changing(|r| r.remove_dir(path))
    }

    fn rename(&self, from: &RemotePath, to: &RemotePath, how: RenameHow) -> Result<Renamed> {
        self.changing(|r| r.rename(from, to, how))
    }

    fn set_attr(&self, path: &RemotePath, change: &AttrChange) -> Result<Stat> {
        // Setting attributes twice is the same as once.
        self.reading(|r| r.set_attr(path, change))
    }

    fn copy(&self, from: &RemotePath, to: &RemotePath, plan: &StorePlan) -> Result<Changed> {
        self.changing(|r| r.copy(from, to, plan))
    }

    fn fs_stat(&self) -> Result<FsStat> {
        self.reading(R::fs_stat)
    }

    fn sync(&self, path: &RemotePath) -> Result<()> {
        self.reading(|r| r.sync(path))
    }

    fn remove_leftovers(&self, dir: &RemotePath, tag: u32) -> Result<()> {
        self.reading(|r| r.remove_leftovers(dir, tag))
    }

    fn close(&self) {
        self.inner.close();
    }
}
