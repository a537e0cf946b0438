//! A [`Remote`] around a [`Remote`] that retries after connection failures where that is safe.
//!
//! Idempotent requests are retried whether or not they were sent. Other requests are retried only if they were not
//! sent. An upload of unknown outcome is retried after asking the host whether it succeeded.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::clock::Clock;
use crate::error_chain;
use crate::path::RemotePath;
use crate::remote::Ability;
use crate::remote::AttrChange;
use crate::remote::BatchReceiver;
use crate::remote::Changed;
use crate::remote::Contact;
use crate::remote::Content;
use crate::remote::Durability;
use crate::remote::Error;
use crate::remote::Facts;
use crate::remote::Fetched;
use crate::remote::KnownDirectory;
use crate::remote::KnownFile;
use crate::remote::Listing;
use crate::remote::Owner;
use crate::remote::Reason;
use crate::remote::Receiver;
use crate::remote::Remote;
use crate::remote::RenameHow;
use crate::remote::Renamed;
use crate::remote::Result;
use crate::remote::SubListing;
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

/// The maximum number of attempts, the first included.
const MAX_TRIES: u32 = 3;

/// Pause before the next round of attempts while the host cannot be reached.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub struct Retry<R> {
    inner: R,
    upload_deadline: Option<UploadDeadline>,
}

/// How long uploads are retried while the host cannot be reached.
#[derive(Debug)]
struct UploadDeadline {
    clock: Arc<dyn Clock>,
    limit: Duration,
}

impl<R: Remote> Retry<R> {
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            upload_deadline: None,
        }
    }

    /// Retries uploads for `limit` while the host cannot be reached: a `close()` that blocks is
    /// better than one that fails.
    #[must_use]
    pub fn with_upload_deadline(self, clock: Arc<dyn Clock>, limit: Duration) -> Self {
        let upload_deadline = Some(UploadDeadline { clock, limit });
        Self {
            upload_deadline,
            ..self
        }
    }

    pub fn inner(&self) -> &R {
        &self.inner
    }

    /// Retries `operation` while `may_retry` accepts its error, up to [`MAX_TRIES`] attempts.
    fn retry<T>(
        &self,
        may_retry: impl Fn(&Error) -> bool,
        mut operation: impl FnMut(&R) -> Result<T>,
    ) -> Result<T> {
        let mut n_tries = 1;
        loop {
            match operation(&self.inner) {
                Err(error) if n_tries < MAX_TRIES && may_retry(&error) => {
                    log::debug!("retrying: {}", error_chain::with_causes(&error));
                    n_tries += 1;
                }
                result => return result,
            }
        }
    }

    /// Like [`Self::retry`], with further rounds of attempts until the deadline.
    fn retry_until_deadline<T>(&self, mut operation: impl FnMut(&R) -> Result<T>) -> Result<T> {
        let Some(UploadDeadline { clock, limit }) = &self.upload_deadline else {
            return self.retry(is_retryable, operation);
        };
        let since = clock.tick();
        loop {
            match self.retry(is_retryable, &mut operation) {
                Err(error) if is_retryable(&error) && clock.tick().since(since) < *limit => {
                    thread::sleep(RETRY_PAUSE);
                }
                result => return result,
            }
        }
    }

    fn retry_idempotent<T>(&self, operation: impl FnMut(&R) -> Result<T>) -> Result<T> {
        self.retry(is_retryable, operation)
    }

    fn retry_if_not_sent<T>(&self, operation: impl FnMut(&R) -> Result<T>) -> Result<T> {
        self.retry(
            |error| error.is_before_request() && is_retryable(error),
            operation,
        )
    }
}

/// Returns whether a retry may succeed. A host that did not answer before a deadline has had its
/// time, and a refused host key stays refused.
fn is_retryable(error: &Error) -> bool {
    error.is_connection_loss() && !error.is_timeout() && !error.is_host_key_refused()
}

/// Returns the result of an upload that an earlier attempt completed. Flushes it if the spec asks
/// for that, because the attempt may have failed before its flush.
fn already_uploaded<R: Remote + ?Sized>(
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

/// Turns a refusal into [`Error::Partial`]: an earlier attempt in place has left part of the
/// content.
fn partial_after_refusal(error: Error) -> Error {
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
        self.retry_idempotent(|r| r.stat(path))
    }

    fn list(&self, path: &RemotePath) -> Result<Listing> {
        self.retry_idempotent(|r| r.list(path))
    }

    fn read_link(&self, path: &RemotePath) -> Result<Vec<u8>> {
        self.retry_idempotent(|r| r.read_link(path))
    }

    fn fetch(
        &self,
        path: &RemotePath,
        known: Option<&Version>,
        receiver: &mut dyn Receiver,
    ) -> Result<Fetched> {
        self.retry_idempotent(|r| r.fetch(path, known, receiver))
    }

    fn fetch_many(&self, files: &[KnownFile], receiver: &mut dyn BatchReceiver) -> Result<()> {
        // Not retried: nobody waits for it, and a single fetch replaces it.
        self.inner.fetch_many(files, receiver)
    }

    fn fetch_blocks(
        &self,
        path: &RemotePath,
        first: u64,
        n_blocks: u64,
    ) -> Result<(Stat, Vec<u8>)> {
        self.retry_idempotent(|r| r.fetch_blocks(path, first, n_blocks))
    }

    fn list_trees(&self, roots: &[KnownDirectory], max_names: usize) -> Result<Vec<SubListing>> {
        self.inner.list_trees(roots, max_names)
    }

    fn upload(
        &self,
        path: &RemotePath,
        content: &dyn Content,
        spec: &UploadSpec,
    ) -> Result<Uploaded> {
        let mut is_outcome_unknown = false;
        let mut has_partial = false;
        let mut spec = spec.clone();
        let result = self.retry_until_deadline(|r| {
            let spec = &mut spec;
            if is_outcome_unknown {
                // The earlier attempt may still be in progress on the host, and must not complete
                // after this one. Refusals are ignored: then there is no temporary file that we
                // could remove.
                match r.remove_leftovers(&path.parent().unwrap_or_default(), spec.tag) {
                    Err(error) if error.is_connection_loss() => return Err(error),
                    Ok(()) | Err(_) => {}
                }
                let found = match r.stat(path) {
                    Ok(stat) if partial::is_uploaded(r, path, &stat, content, spec)? => {
                        has_partial = true;
                        return already_uploaded(r, path, stat, spec.durability);
                    }
                    // A partial upload of the earlier attempt may be replaced.
                    Ok(stat) => partial::resolve(r, path, &stat, content, spec, false),
                    Err(error) => Err(error),
                };
                match found {
                    Ok(Found::Part { .. }) => has_partial = true,
                    Err(error) if error.is_connection_loss() => return Err(error),
                    Ok(Found::Foreign | Found::Expected) | Err(_) => {}
                }
            }
            let result = r.upload(path, content, spec);
            if is_outcome_unknown
                && matches!(result, Err(Error::Conflict { .. }))
                && let Ok(stat) = r.stat(path)
                && partial::is_uploaded(r, path, &stat, content, spec)?
            {
                // The earlier attempt completed on the host after its connection broke.
                has_partial = true;
                return already_uploaded(r, path, stat, spec.durability);
            }
            is_outcome_unknown |= matches!(
                result,
                Err(Error::OutcomeUnknown { .. } | Error::UnexpectedReply { .. })
            );
            result
        });
        match result {
            // An earlier attempt may have succeeded: the caller must resolve it.
            Err(Error::Disconnected { source, .. }) if is_outcome_unknown => {
                Err(Error::OutcomeUnknown {
                    act: "upload",
                    source,
                })
            }
            Err(error) if has_partial => Err(partial_after_refusal(error)),
            result => result,
        }
    }

    fn create_new(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed> {
        self.retry_if_not_sent(|r| r.create_new(path, mode, owner))
    }

    fn make_dir(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed> {
        self.retry_if_not_sent(|r| r.make_dir(path, mode, owner))
    }

    fn make_node(
        &self,
        path: &RemotePath,
        kind: FileKind,
        mode: u32,
        device: DeviceNumber,
        owner: Option<Owner>,
    ) -> Result<Changed> {
        self.retry_if_not_sent(|r| r.make_node(path, kind, mode, device, owner))
    }

    fn symlink(&self, path: &RemotePath, target: &[u8], owner: Option<Owner>) -> Result<Changed> {
        self.retry_if_not_sent(|r| r.symlink(path, target, owner))
    }

    fn link(&self, existing: &RemotePath, path: &RemotePath) -> Result<Changed> {
        self.retry_if_not_sent(|r| r.link(existing, path))
    }

    fn remove_file(&self, path: &RemotePath, other: Option<&RemotePath>) -> Result<Changed> {
        self.retry_if_not_sent(|r| r.remove_file(path, other))
    }

    fn remove_dir(&self, path: &RemotePath) -> Result<Changed> {
        self.retry_if_not_sent(|r| r.remove_dir(path))
    }

    fn rename(&self, from: &RemotePath, to: &RemotePath, how: RenameHow) -> Result<Renamed> {
        self.retry_if_not_sent(|r| r.rename(from, to, how))
    }

    fn set_attr(&self, path: &RemotePath, change: &AttrChange) -> Result<Stat> {
        // Idempotent: the same attributes are set again.
        self.retry_idempotent(|r| r.set_attr(path, change))
    }

    fn copy(&self, from: &RemotePath, to: &RemotePath, spec: &UploadSpec) -> Result<Changed> {
        self.retry_if_not_sent(|r| r.copy(from, to, spec))
    }

    fn check_readable(&self, path: &RemotePath) -> Result<()> {
        self.retry_idempotent(|r| r.check_readable(path))
    }

    fn fs_stat(&self, path: &RemotePath) -> Result<FsStat> {
        self.retry_idempotent(|r| r.fs_stat(path))
    }

    fn sync(&self, path: &RemotePath) -> Result<()> {
        self.retry_until_deadline(|r| r.sync(path))
    }

    fn remove_leftovers(&self, dir: &RemotePath, tag: u32) -> Result<()> {
        self.retry_idempotent(|r| r.remove_leftovers(dir, tag))
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
