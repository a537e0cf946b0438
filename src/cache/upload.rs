//! Uploading the content of an entry on the host.

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

/// Where content goes, as the layer above sees it when an upload begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub path: RemotePath,
    /// The permissions of a new file.
    pub mode: u32,
    /// Whether a file that exists gets them too, because they were changed here.
    pub sets_mode: bool,
    /// The owner of a new file.
    pub owner: Option<Owner>,
    pub placement: Placement,
    /// Whether content that was only appended may be appended to the file that is there.
    pub may_append: bool,
    /// Used unless a time was set for the content.
    pub atime: Time,
    /// Whether nobody knows where it goes any more: its directory is gone. The path is what is left
    /// of it, for people.
    pub is_unknown: bool,
    /// Whether that is because its name was removed here, and it has another that nobody here knows.
    pub is_elsewhere: bool,
}

/// Why content stays here whose directory is gone.
pub(super) const NO_PATH: &str = "its directory was removed or moved on the host";

impl UploadJob {
    /// Returns a digest by which the content can be recognised later, when it may have been changed
    /// here.
    fn digest(&self) -> Option<Digest> {
        let size = self.spec.size;
        let digest = || partial::digest_here(&self.content(), size).ok();
        (size <= MAX_HASHED).then(digest).flatten()
    }

    /// Returns the upload whose content the host has, by the digest of that.
    fn proved<'a>(
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
        let of_this = |doubt: &UnknownUpload| doubt.n_changes == self.n_changes;
        let digest = |doubt: &UnknownUpload| match doubt.digest {
            None if doubt.size == self.spec.size => {
                partial::digest_here(&self.content(), self.spec.size).ok()
            }
            digest => digest,
        };
        let proved = unknown_uploads.filter(|doubt| digest(doubt) == Some(there));
        Ok(proved.max_by_key(|doubt| of_this(doubt)))
    }

    fn content(&self) -> FromFile<'_> {
        FromFile::new(&self.file).over(self.base_copy.as_deref())
    }
}

/// Larger content, in bytes, is not read once more when nobody heard the end of its upload.
const MAX_HASHED: u64 = 256 << 20;

/// How often content that is to replace a file meets another one before that is a conflict after all.
const MAX_REPLACEMENTS: u32 = 9;

impl Entry {
    /// Uploads the content if the host does not have it, and waits for that.
    ///
    /// # Errors
    /// The content is still here and still dirty; the next call tries again, and so does the cache
    /// in the background where a retry may succeed. [`Error::ConflictCopy`] is returned once: the
    /// content is on the host then, in a conflict copy.
    pub fn upload(
        self: &Arc<Self>,
        target_of: &Arc<dyn UploadTarget>,
        durability: Durability,
        wait: Wait,
    ) -> Result<(), Error> {
        self.upload_if(|_| true, target_of, durability, wait)
    }

    /// As [`Self::upload`], of content that was not changed since it was closed; does nothing to
    /// content that is being written.
    pub(super) fn upload_closed_content(
        self: &Arc<Self>,
        target_of: &Arc<dyn UploadTarget>,
    ) -> Result<(), Error> {
        self.upload_if(State::is_closed, target_of, Durability::Lazy, Wait::Allowed)
    }

    fn upload_if(
        self: &Arc<Self>,
        is_due: impl Fn(&State) -> bool,
        target_of: &Arc<dyn UploadTarget>,
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
                    return self.flush_on_host(&**target_of, wait);
                }
                NextUpload::Wait => self.wait(&mut state, wait)?,
                NextUpload::Upload if wait == Wait::Never => return Err(Error::WouldWait),
                NextUpload::Upload => break,
            }
        }
        let busy = self.begin(&mut state, Work::Uploading);
        drop(state);
        let result = self.upload_now(target_of, durability);
        drop(busy);
        // Its last handle may have been closed before the upload ended.
        self.return_if_unused();
        result
    }

    /// Uploads dirty content, which does not change meanwhile.
    fn upload_now(
        self: &Arc<Self>,
        target_of: &Arc<dyn UploadTarget>,
        durability: Durability,
    ) -> Result<(), Error> {
        let prepared = target_of.prepare().map_err(Error::from);
        let Some(target) = target_of.target() else {
            // The file has no name any more: its content ends with its last handle.
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
            // It was dropped meanwhile, with the last handle of a file without a name.
            return Ok(());
        };
        self.journal_closed(&target);
        if self.is_in_place(&target)
            && let Err(error) = self.journal_partial(&target)
        {
            // After a crash, part of our content may be taken for somebody's change: then a conflict
            // copy is made.
            log::warn!(
                "cannot write the journal: {}",
                error_chain::with_causes(&error)
            );
        }
        match prepared.and_then(|()| self.send(&job, &target)) {
            Ok(sent) => self.uploaded(&**target_of, &job, &target, &sent),
            Err(error) => {
                self.not_uploaded(target_of, &job, &target, &error);
                Err(error)
            }
        }
    }

    fn send(&self, job: &UploadJob, target: &Target) -> Result<Sent, Error> {
        let Target { path, .. } = target;
        let mut plan = job.spec.clone();
        if !job.unknown_uploads.is_empty()
            && let Some((stat, doubt)) = self.resolve_unknown_uploads(job, path, &mut plan)?
        {
            // What was changed since may have the same size and time.
            if doubt.n_changes == job.n_changes && plan.is_done(&stat) {
                if plan.durability == Durability::Fsync {
                    remote::make_durable(&*self.cache.remote, path)?;
                }
                let uploaded = Uploaded::as_planned(Changed {
                    stat: Some(stat),
                    parent: None,
                });
                return Ok(Sent::new(path, uploaded));
            }
            plan.expect = Expect::Version(stat.version());
            plan.appends_to = None;
        }
        // The old content of a file that was only appended to is nowhere else on the host: it is
        // not sent again over that which is there.
        let is_append = plan.appends_to.is_some();
        let content = job.content().counted(&self.sent);
        let sent = if self.cache.lacks_room(path, &job.file, &plan) {
            Err(no_space(path).into())
        } else {
            self.send_as_planned(job, path, &content, &mut plan)
        };
        let why = match sent {
            Err(Error::Remote(error)) => match &*error {
                remote::Error::NoTemp { .. } => "its directory takes no new names",
                remote::Error::Refused {
                    reason: Reason::NoSpace | Reason::QuotaExceeded,
                    ..
                } if !is_append && self.cache.fits_in_place(path, &plan) => {
                    "the host has no room for a second copy"
                }
                _ => return Err(Error::Remote(error)),
            },
            result => return result,
        };
        log::warn!("{path} is written in place: {why}");
        // It is not done in one step: from here on only this machine may have the whole content.
        self.journal_partial(target)?;
        plan.placement = Placement::Direct;
        plan.appends_to = None;
        self.send_as_planned(job, path, &content, &mut plan)
    }

    fn send_as_planned(
        &self,
        job: &UploadJob,
        path: &RemotePath,
        content: &FromFile<'_>,
        plan: &mut UploadSpec,
    ) -> Result<Sent, Error> {
        let replaces_anything =
            job.skips_conflict_check || self.cache.conflict_policy == ConflictPolicy::Overwrite;
        if replaces_anything && plan.expect != Expect::Anything {
            return self.replace_there(path, content, plan);
        }
        Ok(self.cache.send_or_keep_both(path, content, plan)?)
    }

    /// Uploads content that replaces whatever is there. It says what that is all the same: an upload
    /// that nobody waits for any more may arrive late, and must not replace what came after it.
    fn replace_there(
        &self,
        path: &RemotePath,
        content: &FromFile<'_>,
        plan: &mut UploadSpec,
    ) -> Result<Sent, Error> {
        for _ in 0..MAX_REPLACEMENTS {
            match self.cache.remote.upload(path, content, plan) {
                Ok(uploaded) => return Ok(Sent::new(path, uploaded)),
                Err(remote::Error::Conflict { .. }) => plan.appends_to = None,
                Err(error) => return Err(error.into()),
            }
            plan.expect = match self.cache.remote.stat(path) {
                Ok(stat) => Expect::Version(stat.version()),
                Err(error) if error.reason() == Some(Reason::NotFound) => Expect::Absent,
                Err(error) => return Err(error.into()),
            };
        }
        Ok(self.cache.send_or_keep_both(path, content, plan)?)
    }

    /// Removes what uploads left whose end nobody heard: where the host itself broke down, nobody over
    /// there does, and one that still goes on must not end later.
    fn clean_up(&self, unknown_uploads: &[UnknownUpload]) -> Result<(), Error> {
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

    /// Asks whether an upload whose end nobody heard succeeded after all; returns what the host has
    /// if it is what we sent. Where times are whole seconds it may be any of several, or somebody
    /// else's: then it is read. Where the host has part of it, that is what the plan expects from
    /// then on.
    fn resolve_unknown_uploads<'a>(
        &self,
        job: &'a UploadJob,
        path: &RemotePath,
        plan: &mut UploadSpec,
    ) -> Result<Option<(Stat, &'a UnknownUpload)>, Error> {
        self.clean_up(&job.unknown_uploads)?;
        match self.cache.remote.stat(path) {
            Ok(stat) => {
                let ours = |it: &&UnknownUpload| {
                    stat.size == it.size && it.mtime.matches_reported(stat.mtime)
                };
                let unknown_uploads = job.unknown_uploads.iter().filter(ours);
                let (remote, content) = (&*self.cache.remote, job.content());
                let ours = if stat.mtime.nanos != 0 {
                    unknown_uploads.max_by_key(|it| it.n_changes != job.n_changes)
                } else {
                    job.proved(unknown_uploads, || {
                        partial::digest_there(remote, path, &stat)
                    })?
                };
                if ours.is_none() {
                    partial::resolve(remote, path, &stat, &content, plan, job.may_be_partial)?;
                }
                Ok(ours.map(|doubt| (stat, doubt)))
            }
            Err(error) if error.reason() == Some(Reason::NotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn uploaded(
        &self,
        target_of: &dyn UploadTarget,
        job: &UploadJob,
        target: &Target,
        sent: &Sent,
    ) -> Result<(), Error> {
        let Sent { at, uploaded } = sent;
        let changed = self.complete(at, job, uploaded);
        let result = match uploaded.outcome {
            Outcome::AsPlanned | Outcome::Same => Ok(()),
            Outcome::Recreated => {
                log::warn!("{at} was removed on the host meanwhile; it is there again");
                Ok(())
            }
            Outcome::ConflictCopy => Err(Error::ConflictCopy {
                path: target.path.clone(),
                kept_as: at.clone(),
            }),
        };
        match &result {
            Ok(()) => target_of.uploaded(&changed),
            Err(error) => {
                log::error!("{error}");
                self.cache.note_conflict(&target.path, at);
                target_of.uploaded_as_conflict_copy(at, &changed);
            }
        }
        let version = changed.stat.map_or(
            // Equal to no version of the host: the next open asks, and the next upload finds a
            // conflict.
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
            self.cache.note_uploaded(id, &target.path, sent);
        }
        self.leave_journal();
        result
    }

    fn not_uploaded(
        self: &Arc<Self>,
        target_of: &Arc<dyn UploadTarget>,
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
        // Without the lock: it may be read.
        let unknown = is_unknown.then(|| UnknownUpload {
            dir: target.path.parent().unwrap_or_default(),
            tag: job.spec.tag,
            size: job.spec.size,
            mtime: job.spec.mtime,
            n_changes: job.n_changes,
            digest: job.digest(),
            is_cancelled: false,
        });
        let is_news = {
            let mut state = self.state.lock();
            state.upload_failed(error, is_partial, part.flatten(), unknown)
        };
        let kept_in = self.cache.disk.private_path(&job.private);
        log::log!(
            if is_news {
                log::Level::Error
            } else {
                log::Level::Debug
            },
            "{} is not uploaded on the host: {}; its content is kept in {}",
            target.path,
            error_chain::with_causes(error),
            kept_in.display()
        );
        if let Err(error) = self.persist_content(target, &error_chain::with_causes(error)) {
            log::error!(
                "cannot make sure that {} survives a crash: {}",
                kept_in.display(),
                error_chain::with_causes(&error)
            );
        }
        if may_succeed_later(error) {
            self.cache.uploads.retry(self, target_of);
        }
    }

    /// Returns what the host has of content whose upload ended in the middle, and how many bytes of that
    /// equal ours; `None` if it is not part of ours, or if the host does not tell.
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

    /// Gives uploaded content the name of its version.
    fn name_uploaded(&self, private: Private, version: &Version, size: u64) -> CleanName {
        // Where times are whole seconds, an earlier content may have had the same version.
        self.cache.forget(version);
        let is_named =
            version.size == size && self.cache.disk.make_clean(&private, version).is_ok();
        if is_named {
            CleanName::ByVersion
        } else {
            self.private_name(private)
        }
    }

    /// Asks for the attributes of a file that was just uploaded where the answer did not have them.
    /// A version that somebody else has made since is not taken for the uploaded one.
    fn complete(&self, path: &RemotePath, job: &UploadJob, uploaded: &Uploaded) -> Changed {
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

    /// Has the host flush content that it has to its disk.
    fn flush_on_host(&self, target_of: &dyn UploadTarget, wait: Wait) -> Result<(), Error> {
        if wait == Wait::Never {
            return Err(Error::WouldWait);
        }
        if let Some(target) = target_of.target() {
            remote::make_durable(&*self.cache.remote, &target.path)?;
            self.state.lock().is_made_durable_on_host();
        }
        Ok(())
    }

    /// Takes back the uploads whose end nobody heard, before the file loses its name.
    pub(super) fn cancel_unknown_uploads(&self) -> Result<(), Error> {
        let unknown = self.state.lock().unknown_uploads().to_vec();
        self.clean_up(&unknown)
    }

    /// Returns whether an upload may have succeeded whose end nobody heard.
    pub fn has_unknown_upload(&self) -> bool {
        !self.state.lock().unknown_uploads().is_empty()
    }

    /// Returns why the last upload failed, if it did and the content is still not on the host.
    pub fn failure(&self) -> Option<Error> {
        self.state.lock().failure().cloned()
    }
}

/// The error of content that was not sent because the host says that it has no room.
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
