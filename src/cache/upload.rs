//! Uploads the content of an entry, and resolves uploads of unknown outcome.

use std::sync::Arc;

use crate::cache::Error;
use crate::cache::UploadTarget;
use crate::cache::conflict::ConflictPolicy;
use crate::cache::disk::Private;
use crate::cache::entry::Entry;
use crate::cache::entry::Wait;
use crate::cache::send::FromFile;
use crate::cache::send::Sent;
use crate::cache::state::CleanName;
use crate::cache::state::NextUpload;
use crate::cache::state::State;
use crate::cache::state::UnknownUpload;
use crate::cache::state::UploadJob;
use crate::cache::state::Work;
use crate::error_chain;
use crate::path::RemotePath;
use crate::remote;
use crate::remote::Changed;
use crate::remote::Durability;
use crate::remote::Expect;
use crate::remote::Outcome;
use crate::remote::Owner;
use crate::remote::Placement;
use crate::remote::Reason;
use crate::remote::UploadSpec;
use crate::remote::Uploaded;
use crate::remote::partial;
use crate::remote::partial::Digest;
use crate::remote::partial::Found;
use crate::stat::Stat;
use crate::stat::Time;
use crate::stat::Version;

/// The path and attributes for an upload, from the layer above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub path: RemotePath,
    /// The permissions of a new file.
    pub mode: u32,
    /// An existing file gets them too, because they were changed locally.
    pub sets_mode: bool,
    /// The owner of a new file.
    pub owner: Option<Owner>,
    pub placement: Placement,
    /// The first upload must create the file (`O_EXCL`).
    pub is_exclusive: bool,
    /// Content that was only appended to may be uploaded by appending to the host's file.
    pub may_append: bool,
    /// Used unless an atime was set on the entry.
    pub atime: Time,
    /// The path on the host is unknown, because the directory was removed or moved there. `path` is
    /// the last known path, for messages.
    pub is_unknown: bool,
    /// The path is unknown because the last known name was removed here, and another hard link
    /// exists.
    pub is_elsewhere: bool,
}

/// Why content without a path is not uploaded.
pub(super) const NO_PATH: &str = "its directory was removed or moved on the host";

impl UploadJob {
    /// Returns the digest of the content, by which it can be recognized on the host even after the
    /// local content has changed; `None` for large content, and if it cannot be read.
    fn digest(&self) -> Option<Digest> {
        let size = self.spec.size;
        let digest = || partial::digest_here(&self.content(), size).ok();
        (size <= MAX_DIGESTED).then(digest).flatten()
    }

    /// Returns the upload of unknown outcome whose content the host has, found by its digest.
    /// Prefers one of the current content.
    fn find_by_digest<'a>(
        &self,
        unknown_uploads: impl Iterator<Item = &'a UnknownUpload>,
        digest_there: impl FnOnce() -> remote::Result<Option<Digest>>,
    ) -> Result<Option<&'a UnknownUpload>, Error> {
        let mut unknown_uploads = unknown_uploads.peekable();
        if unknown_uploads.peek().is_none() {
            return Ok(None);
        }
        let Some(there) = digest_there()? else {
            return Ok(None);
        };
        let is_current = |unknown: &UnknownUpload| unknown.n_changes == self.n_changes;
        let digest = |unknown: &UnknownUpload| match unknown.digest {
            None if unknown.size == self.spec.size => {
                partial::digest_here(&self.content(), self.spec.size).ok()
            }
            digest => digest,
        };
        let matching = unknown_uploads.filter(|unknown| digest(unknown) == Some(there));
        Ok(matching.max_by_key(|unknown| is_current(unknown)))
    }

    fn content(&self) -> FromFile<'_> {
        FromFile::new(&self.file).over(self.base_copy.as_deref())
    }
}

/// The most bytes of content of which a digest is computed after an upload of unknown outcome.
const MAX_DIGESTED: u64 = 256 << 20;

/// How often an upload that replaces any version is retried because the version has changed in
/// between.
const MAX_REPLACE_ATTEMPTS: u32 = 9;

impl Entry {
    /// Uploads dirty content, and waits until it is on the host.
    ///
    /// # Errors
    /// The content is still dirty. The next call retries, and so does the background queue if a
    /// retry may succeed. Except [`Error::ConflictCopy`], which is returned once: the content is on
    /// the host, as a conflict copy, and clean.
    pub fn upload(
        self: &Arc<Self>,
        upload_target: &Arc<dyn UploadTarget>,
        durability: Durability,
        wait: Wait,
    ) -> Result<(), Error> {
        self.upload_if(|_| true, upload_target, durability, wait)
    }

    /// As [`Self::upload`], but does nothing if the content was changed since the last close.
    pub(super) fn upload_closed_content(
        self: &Arc<Self>,
        upload_target: &Arc<dyn UploadTarget>,
    ) -> Result<(), Error> {
        self.upload_if(
            State::is_closed,
            upload_target,
            Durability::Lazy,
            Wait::Allowed,
        )
    }

    fn upload_if(
        self: &Arc<Self>,
        is_due: impl Fn(&State) -> bool,
        upload_target: &Arc<dyn UploadTarget>,
        durability: Durability,
        wait: Wait,
    ) -> Result<(), Error> {
        let mut state = self.state.lock();
        loop {
            if state.is_dirty() && !is_due(&state) {
                return Ok(());
            }
            match state.next_upload(durability) {
                NextUpload::Nothing => return Ok(()),
                NextUpload::Flush => {
                    drop(state);
                    return self.flush_on_host(&**upload_target, wait);
                }
                NextUpload::Wait => self.wait(&mut state, wait)?,
                NextUpload::Upload if wait == Wait::Never => return Err(Error::WouldWait),
                NextUpload::Upload => break,
            }
        }
        let busy = self.begin(&mut state, Work::Uploading);
        drop(state);
        let result = self.upload_now(upload_target, durability);
        drop(busy);
        // The last handle may have been closed during the upload.
        self.return_if_unused();
        result
    }

    /// Uploads dirty content. The caller has begun work, so that the content does not change.
    fn upload_now(
        self: &Arc<Self>,
        upload_target: &Arc<dyn UploadTarget>,
        durability: Durability,
    ) -> Result<(), Error> {
        let prepared = upload_target.prepare().map_err(Error::from);
        let Some(target) = upload_target.target() else {
            // The file is unlinked: its content is removed with its last handle.
            return Ok(());
        };
        if target.is_unknown {
            let result = self.persist_without_path(&target);
            self.state.lock().set_closed(true);
            return result;
        }
        let job = {
            let mut state = self.state.lock();
            state.set_closed(true);
            state.upload_job(&target, durability)
        };
        let Some(job) = job else {
            // The content was dropped with the last handle of an unlinked file.
            return Ok(());
        };
        self.journal_closed(&target);
        if self.is_in_place(&target)
            && let Err(error) = self.journal_partial(&target)
        {
            // After a crash, a partial upload may be taken for a change by another client, and a
            // conflict copy is made.
            log::warn!(
                "cannot write the journal: {}",
                error_chain::with_causes(&error)
            );
        }
        match prepared.and_then(|()| self.send(&job, &target)) {
            Ok(sent) => self.uploaded(&**upload_target, &job, &target, &sent),
            Err(error) => {
                self.upload_failed(upload_target, &job, &target, &error);
                Err(error)
            }
        }
    }

    /// Sends the content, unless an earlier upload of it has succeeded. Falls back to writing in
    /// place if the host cannot make a temporary file.
    fn send(&self, job: &UploadJob, target: &Target) -> Result<Sent, Error> {
        let Target { path, .. } = target;
        let mut spec = job.spec.clone();
        if !job.unknown_uploads.is_empty()
            && let Some((stat, unknown)) = self.resolve_unknown_uploads(job, path, &mut spec)?
        {
            // Changes since that upload may have the same size and mtime.
            if unknown.n_changes == job.n_changes && spec.is_done(&stat) {
                if spec.durability == Durability::Fsync {
                    remote::make_durable(&*self.cache.remote, path)?;
                }
                let uploaded = Uploaded::as_planned(Changed {
                    stat: Some(stat),
                    parent: None,
                });
                return Ok(Sent::new(path, uploaded));
            }
            spec.expect = Expect::Version(stat.version());
            spec.appends_to = None;
        }
        // An append must not fall back to a write in place: until that is complete, the host would
        // have no copy of the old content.
        let is_append = spec.appends_to.is_some();
        let content = job.content().counted(&self.sent);
        let sent = if self.cache.lacks_room(path, &job.file, &spec) {
            Err(no_space(path).into())
        } else {
            self.send_with_policy(job, path, &content, &mut spec)
        };
        let why = match sent {
            Err(Error::Remote(error)) => match &*error {
                remote::Error::NoTemp { .. } => "no file can be created in its directory",
                remote::Error::Refused {
                    reason: Reason::NoSpace | Reason::QuotaExceeded,
                    ..
                } if !is_append && self.cache.fits_in_place(path, &spec) => {
                    "the host has no space for a second copy"
                }
                _ => return Err(Error::Remote(error)),
            },
            result => return result,
        };
        log::warn!("{path} is written in place: {why}");
        // Not atomic: until it is complete, only this machine may have the complete content.
        self.journal_partial(target)?;
        spec.placement = Placement::Direct;
        spec.appends_to = None;
        self.send_with_policy(job, path, &content, &mut spec)
    }

    /// Sends the content, and handles conflicts as the policy and the spec say.
    fn send_with_policy(
        &self,
        job: &UploadJob,
        path: &RemotePath,
        content: &FromFile<'_>,
        spec: &mut UploadSpec,
    ) -> Result<Sent, Error> {
        let replaces_anything =
            job.skips_conflict_check || self.cache.conflict_policy == ConflictPolicy::Overwrite;
        if replaces_anything && spec.expect != Expect::Anything {
            return self.send_replacing_any(path, content, spec);
        }
        Ok(self.cache.send_or_conflict_copy(path, content, spec)?)
    }

    /// Uploads content that replaces any version. It expects a version all the same, and retries
    /// after a conflict: an upload that the host carries out late must not replace a newer version.
    fn send_replacing_any(
        &self,
        path: &RemotePath,
        content: &FromFile<'_>,
        spec: &mut UploadSpec,
    ) -> Result<Sent, Error> {
        for _ in 0..MAX_REPLACE_ATTEMPTS {
            match self.cache.remote.upload(path, content, spec) {
                Ok(uploaded) => return Ok(Sent::new(path, uploaded)),
                Err(remote::Error::Conflict { .. }) => spec.appends_to = None,
                Err(error) => return Err(error.into()),
            }
            spec.expect = match self.cache.remote.stat(path) {
                Ok(stat) => Expect::Version(stat.version()),
                Err(error) if error.reason() == Some(Reason::NotFound) => Expect::Absent,
                Err(error) => return Err(error.into()),
            };
        }
        Ok(self.cache.send_or_conflict_copy(path, content, spec)?)
    }

    /// Removes the temporary files of uploads of unknown outcome. An upload that still runs on the
    /// host then fails, instead of completing after ours; and after a crash the host does not
    /// remove them.
    fn cancel_uploads(&self, unknown_uploads: &[UnknownUpload]) -> Result<(), Error> {
        let mut last = None;
        for UnknownUpload { dir, tag, .. } in unknown_uploads.iter().filter(|it| !it.is_cancelled) {
            if last.replace((dir, tag)) == Some((dir, tag)) {
                continue;
            }
            match self.cache.remote.remove_leftovers(dir, *tag) {
                Err(error) if error.is_connection_loss() => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Resolves the uploads of unknown outcome: returns the host's stat and the upload that
    /// succeeded, or `None` if none did.
    ///
    /// Size and mtime identify an upload; if several match, this returns an older one, so that the
    /// current content is uploaded again. If the host has mtimes of whole seconds, they do not
    /// suffice: the host's content is compared by digest. If the host has a partial upload, `spec`
    /// expects that from then on.
    fn resolve_unknown_uploads<'a>(
        &self,
        job: &'a UploadJob,
        path: &RemotePath,
        spec: &mut UploadSpec,
    ) -> Result<Option<(Stat, &'a UnknownUpload)>, Error> {
        self.cancel_uploads(&job.unknown_uploads)?;
        match self.cache.remote.stat(path) {
            Ok(stat) => {
                let is_match = |it: &&UnknownUpload| {
                    stat.size == it.size && it.mtime.matches_reported(stat.mtime)
                };
                let unknown_uploads = job.unknown_uploads.iter().filter(is_match);
                let (remote, content) = (&*self.cache.remote, job.content());
                let succeeded = if stat.mtime.nanos != 0 {
                    unknown_uploads.max_by_key(|it| it.n_changes != job.n_changes)
                } else {
                    job.find_by_digest(unknown_uploads, || {
                        partial::digest_there(remote, path, &stat)
                    })?
                };
                if succeeded.is_none() {
                    partial::resolve(remote, path, &stat, &content, spec, job.may_be_partial)?;
                }
                Ok(succeeded.map(|unknown| (stat, unknown)))
            }
            Err(error) if error.reason() == Some(Reason::NotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the content clean after a successful upload, and tells the layer above.
    fn uploaded(
        &self,
        upload_target: &dyn UploadTarget,
        job: &UploadJob,
        target: &Target,
        sent: &Sent,
    ) -> Result<(), Error> {
        let Sent { at, uploaded } = sent;
        let changed = self.changed_with_stat(at, job, uploaded);
        let result = match uploaded.outcome {
            Outcome::AsPlanned | Outcome::Same => Ok(()),
            Outcome::Recreated => {
                log::warn!("{at} was removed on the host; the upload has created it again");
                Ok(())
            }
            Outcome::ConflictCopy => Err(Error::ConflictCopy {
                path: target.path.clone(),
                kept_as: at.clone(),
            }),
        };
        match &result {
            Ok(()) => upload_target.uploaded(&changed),
            Err(error) => {
                log::error!("{error}");
                self.cache.record_conflict(&target.path, at);
                upload_target.uploaded_as_conflict_copy(at, &changed);
            }
        }
        let version = changed.stat.map_or(
            // Equals no version of the host: the next open fetches the content, and the next upload
            // finds a conflict.
            Version {
                size: job.spec.size,
                mtime: job.spec.mtime,
                ctime: None,
                id: None,
            },
            |stat| stat.version(),
        );
        let name = self.name_uploaded(job.private, &version, job.spec.size);
        let recovered_as = {
            let mut state = self.state.lock();
            state.uploaded(job, version, name, result.is_err())
        };
        if let Some(id) = recovered_as {
            self.cache.record_uploaded(id, &target.path, sent);
        }
        self.leave_journal();
        result
    }

    /// Records a failed upload: persists the content, and queues a retry if that may succeed.
    fn upload_failed(
        self: &Arc<Self>,
        upload_target: &Arc<dyn UploadTarget>,
        job: &UploadJob,
        target: &Target,
        error: &Error,
    ) {
        let is_partial = matches!(error, Error::Remote(error) if matches!(**error, remote::Error::Partial { .. }));
        let part = is_partial.then(|| self.part_on_host(job, target));
        let is_unknown = matches!(error, Error::Remote(error) if matches!(**error,
            remote::Error::Partial { .. }
            | remote::Error::OutcomeUnknown { .. }
            | remote::Error::UnexpectedReply { .. }
            | remote::Error::Protocol { .. }
            | remote::Error::Local { .. }));
        // Not under the lock of the state: the digest reads the content.
        let unknown = is_unknown.then(|| UnknownUpload {
            dir: target.path.parent().unwrap_or_default(),
            tag: job.spec.tag,
            size: job.spec.size,
            mtime: job.spec.mtime,
            n_changes: job.n_changes,
            digest: job.digest(),
            is_cancelled: false,
        });
        let is_new_error = {
            let mut state = self.state.lock();
            state.upload_failed(error, is_partial, part.flatten(), unknown)
        };
        let local_file = self.cache.disk.private_path(&job.private);
        log::log!(
            if is_new_error {
                log::Level::Error
            } else {
                log::Level::Debug
            },
            "{} is not uploaded on the host: {}; its content is kept in {}",
            target.path,
            error_chain::with_causes(error),
            local_file.display()
        );
        if let Err(error) = self.persist_content(target, &error_chain::with_causes(error)) {
            log::error!(
                "cannot persist {}, which a crash may lose: {}",
                local_file.display(),
                error_chain::with_causes(&error)
            );
        }
        if may_succeed_later(error) {
            self.cache.uploads.retry(self, upload_target);
        }
    }

    /// Returns the version of a partial upload, and how many bytes of it equal our content; `None`
    /// if the host has something else, or cannot be asked.
    fn part_on_host(&self, job: &UploadJob, target: &Target) -> Option<(Expect, u64)> {
        let (remote, path) = (&*self.cache.remote, &target.path);
        let stat = remote.stat(path).ok()?;
        let mut spec = UploadSpec {
            durability: Durability::Lazy,
            ..job.spec.clone()
        };
        match partial::resolve(remote, path, &stat, &job.content(), &mut spec, true) {
            Ok(Found::Part { prefix }) => Some((spec.expect, prefix.unwrap_or(0))),
            _ => None,
        }
    }

    /// Renames the file of uploaded content to its version, if that identifies the content.
    fn name_uploaded(&self, private: Private, version: &Version, size: u64) -> CleanName {
        // On hosts with times of whole seconds, older content may have the same version.
        self.cache.forget(version);
        let is_named =
            version.size == size && self.cache.disk.make_clean(&private, version).is_ok();
        if is_named {
            CleanName::ByVersion
        } else {
            self.private_name(private)
        }
    }

    /// Returns what an upload changed, with the attributes of the file: they cost a request if the
    /// answer to the upload did not include them. A newer version by another client is not taken
    /// for ours.
    fn changed_with_stat(
        &self,
        path: &RemotePath,
        job: &UploadJob,
        uploaded: &Uploaded,
    ) -> Changed {
        let mut changed = uploaded.changed();
        if changed.stat.is_none() && !uploaded.is_overtaken {
            let stat = self.cache.remote.stat(path).ok();
            changed.stat = stat.filter(|stat| {
                let has_mtime = job.spec.mtime.matches_reported(stat.mtime);
                stat.size == job.spec.size && (uploaded.outcome == Outcome::Same || has_mtime)
            });
        }
        changed
    }

    /// Makes the content durable on the host.
    fn flush_on_host(&self, upload_target: &dyn UploadTarget, wait: Wait) -> Result<(), Error> {
        if wait == Wait::Never {
            return Err(Error::WouldWait);
        }
        if let Some(target) = upload_target.target() {
            remote::make_durable(&*self.cache.remote, &target.path)?;
            self.state.lock().is_made_durable_on_host();
        }
        Ok(())
    }

    /// Removes the temporary files of uploads of unknown outcome, before a rename or removal.
    pub(super) fn cancel_unknown_uploads(&self) -> Result<(), Error> {
        let unknown = self.state.lock().unknown_uploads().to_vec();
        self.cancel_uploads(&unknown)
    }

    /// Returns whether the host certainly has nothing of a new file: no upload of it began, or what it
    /// left was removed.
    pub fn is_only_here(&self) -> bool {
        self.state.lock().is_only_here()
    }

    /// Returns the error of the last upload if the content is still dirty.
    pub fn failure(&self) -> Option<Error> {
        self.state.lock().failure().cloned()
    }
}

/// Returns the error of an upload that was not started because the host has no free space.
fn no_space(path: &RemotePath) -> remote::Error {
    remote::Error::Refused {
        act: "upload",
        path: path.clone(),
        reason: Reason::NoSpace,
        text: Vec::new(),
    }
}

/// Returns whether an upload that failed with this error may succeed when it is retried.
pub(super) fn may_succeed_later(error: &Error) -> bool {
    match error {
        Error::Remote(error) => match &**error {
            remote::Error::Conflict { .. }
            | remote::Error::Unsupported { .. }
            | remote::Error::Closed => false,
            remote::Error::Refused { reason, .. } => !matches!(
                reason,
                Reason::IsADirectory | Reason::NameTooLong | Reason::FileTooLarge
            ),
            _ => true,
        },
        Error::Local { .. } => true,
        _ => false,
    }
}
