//! A [`Remote`] around a [`Remote`] that repeats what is safe to repeat when a connection fails.
//!
//! What changes nothing on the host is repeated whatever happened. What changes something is
//! repeated only if the request never left. An upload is repeated in both cases, once the host
//! was asked whether the first try had succeeded after all.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::clock::Clock;
use crate::error_chain;
use crate::path::RemotePath;
use crate::remote::Ability;
use crate::remote::AttrChange;
use crate::remote::Changed;
use crate::remote::Contact;
use crate::remote::Content;
use crate::remote::Durability;
use crate::remote::Error;
use crate::remote::Facts;
use crate::remote::Fetched;
use crate::remote::Listing;
use crate::remote::Owner;
use crate::remote::Reason;
use crate::remote::Receiver;
use crate::remote::Remote;
use crate::remote::RenameHow;
use crate::remote::Renamed;
use crate::remote::Result;
use crate::remote::UploadSpec;
use crate::remote::Uploaded;
use crate::remote::make_durable;
use crate::remote::partial;
use crate::remote::partial::Found;
use crate::stat::DeviceNumber;
use crate::stat::FileKind;
use crate::stat::FsStat;
use crate::stat::Stat;
use crate::stat::Version;

/// How often an operation is tried in all.
const MAX_TRIES: u32 = 3;

/// How long to wait before the host is tried again that could not be reached.
const PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub struct Retry<R> {
    inner: R,
    patience: Option<Patience>,
}

/// How long an upload goes on while the host cannot be reached.
#[derive(Debug)]
struct Patience {
    clock: Arc<dyn Clock>,
    limit: Duration,
}

impl<R: Remote> Retry<R> {
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            patience: None,
        }
    }

    /// Has uploads wait so long for a host that cannot be reached: whoever closes a file would rather
    /// wait than be told that it is not uploaded.
    #[must_use]
    pub fn with_patience(self, clock: Arc<dyn Clock>, limit: Duration) -> Self {
        let patience = Some(Patience { clock, limit });
        Self { patience, ..self }
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
                    log::debug!("trying again: {}", error_chain::with_causes(&error));
                    n_tries += 1;
                }
                result => return result,
            }
        }
    }

    /// As [`Self::repeat`], and goes on as long as there is patience left.
    fn repeat_patiently<T>(&self, mut operation: impl FnMut(&R) -> Result<T>) -> Result<T> {
        let Some(Patience { clock, limit }) = &self.patience else {
            return self.repeat(is_worth_repeating, operation);
        };
        let since = clock.tick();
        loop {
            match self.repeat(is_worth_repeating, &mut operation) {
                Err(error)
                    if is_worth_repeating(&error)
                        && clock.tick().saturating_sub(since) < *limit =>
                {
                    thread::sleep(PAUSE);
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
/// has waited long enough. One with another key will not get the right one.
fn is_worth_repeating(error: &Error) -> bool {
    error.is_connection_loss() && !error.is_timeout() && !error.is_host_refused()
}

/// Says that an earlier try has uploaded the content, with the durability that the plan asks for. The
/// host may have flushed nothing when that try broke off.
fn done_already<R: Remote + ?Sized>(
    remote: &R,
    path: &RemotePath,
    stat: Stat,
    durability: Durability,
) -> Result<Uploaded> {
    if durability == Durability::Fsync {
        make_durable(remote, path)?;
    }
    Ok(Uploaded::as_planned(Changed {
        stat: Some(stat),
        parent: None,
    }))
}

/// Says of a refusal that came after an earlier try had left part of the content in the file itself
/// that the file is not what it was.
fn refused_after_part(error: Error) -> Error {
    match error {
        Error::Refused {
            act,
            path,
            reason,
            text,
        } => Error::Partial {
            act,
            path,
            reason,
            text,
        },
        Error::NoTemp { act, path } => Error::Partial {
            act,
            path,
            reason: Reason::AccessDenied,
            text: Vec::new(),
        },
        error => error,
    }
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

    fn upload(
        &self,
        path: &RemotePath,
        content: &dyn Content,
        plan: &UploadSpec,
    ) -> Result<Uploaded> {
        let mut is_outcome_unknown = false;
        let mut has_part = false;
        let mut plan = plan.clone();
        let result = self.repeat_patiently(|r| {
            let plan = &mut plan;
            if is_outcome_unknown {
                // The first try may still be under way over there; it must not end later. A host
                // that refuses to look for its temporary file has none that could be removed.
                match r.remove_leftovers(&path.parent().unwrap_or_default(), plan.tag) {
                    Err(error) if error.is_connection_loss() => return Err(error),
                    Ok(()) | Err(_) => {}
                }
                let found = match r.stat(path) {
                    Ok(stat) if partial::is_uploaded(r, path, &stat, content, plan)? => {
                        has_part = true;
                        return done_already(r, path, stat, plan.durability);
                    }
                    // What the first try left of a file that it wrote into is ours to replace.
                    Ok(stat) => partial::settle(r, path, &stat, content, plan, false),
                    Err(error) => Err(error),
                };
                match found {
                    Ok(Found::Part { .. }) => has_part = true,
                    Err(error) if error.is_connection_loss() => return Err(error),
                    Ok(Found::Foreign | Found::Expected) | Err(_) => {}
                }
            }
            let result = r.upload(path, content, plan);
            if is_outcome_unknown
                && matches!(result, Err(Error::Conflict { .. }))
                && let Ok(stat) = r.stat(path)
                && partial::is_uploaded(r, path, &stat, content, plan)?
            {
                // The first try went on after its connection was gone, and was the faster one.
                has_part = true;
                return done_already(r, path, stat, plan.durability);
            }
            is_outcome_unknown |= matches!(
                result,
                Err(Error::OutcomeUnknown { .. } | Error::UnexpectedReply { .. })
            );
            result
        });
        match result {
            // An earlier try may have succeeded: whoever comes next must ask.
            Err(Error::Disconnected { source, .. }) if is_outcome_unknown => {
                Err(Error::OutcomeUnknown {
                    act: "upload",
                    source,
                })
            }
            Err(error) if has_part => Err(refused_after_part(error)),
            result => result,
        }
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

    fn copy(&self, from: &RemotePath, to: &RemotePath, plan: &UploadSpec) -> Result<Changed> {
        self.changing(|r| r.copy(from, to, plan))
    }

    fn check_readable(&self, path: &RemotePath) -> Result<()> {
        self.reading(|r| r.check_readable(path))
    }

    fn fs_stat(&self, path: &RemotePath) -> Result<FsStat> {
        self.reading(|r| r.fs_stat(path))
    }

    fn sync(&self, path: &RemotePath) -> Result<()> {
        self.repeat_patiently(|r| r.sync(path))
    }

    fn remove_leftovers(&self, dir: &RemotePath, tag: u32) -> Result<()> {
        self.reading(|r| r.remove_leftovers(dir, tag))
    }

    fn abilities(&self) -> Vec<Ability> {
        self.inner.abilities()
    }

    fn contact(&self) -> Contact {
        self.inner.contact()
    }

    fn close(&self) {
        self.inner.close();
    }
}
