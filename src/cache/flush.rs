//! Uploading the content of an entry on the host.

use std::fs::File;
use std::sync::Arc;

use crate::cache::Error;
use crate::cache::Whereto;
use crate::cache::conflict::Conflicts;
use crate::cache::disk::Private;
use crate::cache::entry::Entry;
use crate::cache::entry::Wait;
use crate::cache::journal::record::tag;
use crate::cache::send::FromFile;
use crate::cache::send::Sent;
use crate::cache::state::Content;
use crate::cache::state::Doubt;
use crate::cache::state::Place;
use crate::cache::state::State;
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

/// Why content is kept here whose directory is gone.
pub(super) const NO_PLACE: &str = "its directory was removed or moved on the host";

/// What an upload is to do, as the state was when it began.
struct Job {
    file: Arc<File>,
    private: Private,
    size: u64,
    mtime: Time,
    atime: Option<Time>,
    base: Expect,
    replaces: bool,
    n_kept: u64,
    doubts: Vec<Doubt>,
    n_changes: u64,
    is_begun: bool,
    old: Option<Arc<File>>,
}

impl Job {
    fn plan(&self, target: &Target, durability: Durability) -> UploadSpec {
        UploadSpec {
            size: self.size,
            appends_to: self.appends_to(target),
            mode: target.mode,
            sets_mode: target.sets_mode,
            mtime: self.mtime,
            atime: self.atime.unwrap_or(target.atime),
            owner: target.owner,
            expect: self.base,
            placement: target.placement,
            durability,
            keep_as: None,
            tag: tag(self.private.id),
        }
    }

    /// Returns how many bytes the host has already, if all that is there stays as it is.
    fn appends_to(&self, target: &Target) -> Option<u64> {
        let Expect::Version(base) = self.base else {
            return None;
        };
        let is_longer = base.size > 0 && self.n_kept >= base.size && self.size > base.size;
        (target.may_append && is_longer && !self.replaces).then_some(base.size)
    }

    /// What tells the content from another later, when it may have been changed here.
    fn digest(&self) -> Option<Digest> {
        let is_small = self.size <= MAX_HASHED;
        let digest = || partial::digest_here(&self.content(), self.size).ok();
        is_small.then(digest).flatten()
    }

    /// Returns the doubt whose content the host has, by the digest of that.
    fn proved<'a>(
        &self,
        doubts: impl Iterator<Item = &'a Doubt>,
        digest_there: impl FnOnce() -> remote::Result<Option<Digest>>,
    ) -> Result<Option<&'a Doubt>, Error> {
        let mut doubts = doubts.peekable();
        if doubts.peek().is_none() {
            return Ok(None);
        }
        let Some(there) = digest_there()? else {
            return Ok(None);
        };
        let of_this = |doubt: &Doubt| doubt.n_changes == self.n_changes;
        let digest = |doubt: &Doubt| match doubt.digest {
            None if doubt.size == self.size => {
                partial::digest_here(&self.content(), self.size).ok()
            }
            digest => digest,
        };
        let proved = doubts.filter(|doubt| digest(doubt) == Some(there));
        Ok(proved.max_by_key(|doubt| of_this(doubt)))
    }

    fn content(&self) -> FromFile<'_> {
        FromFile::new(&self.file).over(self.old.as_deref())
    }
}

/// Larger content, in bytes, is not read once more when nobody heard the end of its upload.
const MAX_HASHED: u64 = 256 << 20;

/// How often content that is to replace a file meets another one before that is a conflict after all.
const MAX_REPLACEMENTS: u32 = 9;

impl Entry {
    /// Uploads the content on the host if the host does not have it, and waits for that.
    ///
    /// # Errors
    /// The content is still here and still dirty; the next flush tries again, and so does the cache
    /// by itself where the host was not reached. [`Error::KeptBeside`] is said once: the content is
    /// on the host then.
    pub fn flush(
        self: &Arc<Self>,
        whereto: &Arc<dyn Whereto>,
        durability: Durability,
        wait: Wait,
    ) -> Result<(), Error> {
        self.flush_if(|_| true, whereto, durability, wait)
    }

    /// As [`Self::flush`], of content that is as it was when it was last closed; does nothing to
    /// what is being written.
    pub(super) fn flush_sealed(self: &Arc<Self>, whereto: &Arc<dyn Whereto>) -> Result<(), Error> {
        let is_sealed = |state: &State| state.is_sealed;
        self.flush_if(is_sealed, whereto, Durability::Lazy, Wait::Allowed)
    }

    fn flush_if(
        self: &Arc<Self>,
        is_due: impl Fn(&State) -> bool,
        whereto: &Arc<dyn Whereto>,
        durability: Durability,
        wait: Wait,
    ) -> Result<(), Error> {
        let mut state = self.state.lock();
        let (file, private) = loop {
            match &state.content {
                Content::Dirty { .. } if !is_due(&state) => return Ok(()),
                Content::Dirty { file, private } => {
                    if !Self::is_busy(&state) && !Self::is_held(&state) {
                        break (Arc::clone(file), *private);
                    }
                    self.wait(&mut state, wait)?;
                }
                _ if durability == Durability::Lazy || state.is_synced => return Ok(()),
                _ => {
                    drop(state);
                    return self.sync(&**whereto, wait);
                }
            }
        };
        if wait == Wait::Never {
            return Err(Error::WouldWait);
        }
        state.is_flushing = true;
        let job = Job {
            file,
            private,
            size: state.size,
            mtime: state.mtime,
            atime: state.atime,
            base: state.base,
            replaces: state.replaces,
            n_kept: state.n_kept,
            doubts: state.doubts.clone(),
            n_changes: state.n_changes,
            is_begun: state.is_begun,
            old: state.old.as_ref().map(|(_, file)| Arc::clone(file)),
        };
        drop(state);

        let prepared = whereto.prepare().map_err(Error::from);
        let Some(target) = whereto.target() else {
            // The file has no name any more: its content ends with its last handle.
            self.state.lock().is_flushing = false;
            self.changed.notify_all();
            return Ok(());
        };
        if target.is_unknown {
            let result = self.lose(&target);
            let mut state = self.state.lock();
            (state.is_flushing, state.is_sealed) = (false, true);
            drop(state);
            self.changed.notify_all();
            return result;
        }
        {
            let mut state = self.state.lock();
            state.is_sealed = true;
            self.say_closed(&state, &target);
        }
        if self.is_in_place(&target)
            && let Err(error) = self.say_begun(&target)
        {
            // After a crash, what the host has may be taken for somebody's change: both are kept.
            log::warn!("cannot write the journal: {}", remote::chain(&error));
        }
        let result = prepared.and_then(|()| self.send(&job, &target, durability));
        // Without the lock: the layer above takes its own first, then this one.
        let result = match result {
            Ok(uploaded) => self.uploaded(&**whereto, &job, &target, &uploaded, durability),
            Err(error) => {
                self.not_uploaded(whereto, &job, &target, &error);
                Err(error)
            }
        };
        let mut state = self.state.lock();
        state.is_flushing = false;
        if !Self::is_wanted(&state) && matches!(state.content, Content::Clean { .. }) {
            // Its last handle went before or while it was uploaded.
            self.put_away(&mut state);
        }
        drop(state);
        self.changed.notify_all();
        result
    }

    fn send(&self, job: &Job, target: &Target, durability: Durability) -> Result<Sent, Error> {
        let Target { path, .. } = target;
        let mut plan = job.plan(target, durability);
        if !job.doubts.is_empty()
            && let Some((stat, doubt)) = self.settle_doubts(job, path, &mut plan)?
        {
            // What was changed since may have the same size and time.
            if doubt.n_changes == job.n_changes && plan.is_done(&stat) {
                if durability == Durability::Fsync {
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
        self.say_begun(target)?;
        plan.placement = Placement::Direct;
        plan.appends_to = None;
        self.send_as_planned(job, path, &content, &mut plan)
    }

    fn send_as_planned(
        &self,
        job: &Job,
        path: &RemotePath,
        content: &FromFile<'_>,
        plan: &mut UploadSpec,
    ) -> Result<Sent, Error> {
        let replaces = job.replaces || self.cache.conflicts == Conflicts::Overwrite;
        if replaces && plan.expect != Expect::Anything {
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
    fn clean_up(&self, doubts: &[Doubt]) -> Result<(), Error> {
        let mut last = None;
        for Doubt { dir, tag, .. } in doubts.iter().filter(|it| !it.is_withdrawn) {
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
    fn settle_doubts<'a>(
        &self,
        job: &'a Job,
        path: &RemotePath,
        plan: &mut UploadSpec,
    ) -> Result<Option<(Stat, &'a Doubt)>, Error> {
        self.clean_up(&job.doubts)?;
        match self.cache.remote.stat(path) {
            Ok(stat) => {
                let ours =
                    |it: &&Doubt| stat.size == it.size && it.mtime.may_be_told_as(stat.mtime);
                let doubts = job.doubts.iter().filter(ours);
                let (remote, content) = (&*self.cache.remote, job.content());
                let ours = if stat.mtime.nanos != 0 {
                    doubts.max_by_key(|it| it.n_changes != job.n_changes)
                } else {
                    job.proved(doubts, || partial::digest_there(remote, path, &stat))?
                };
                if ours.is_none() {
                    partial::settle(remote, path, &stat, &content, plan, job.is_begun)?;
                }
                Ok(ours.map(|doubt| (stat, doubt)))
            }
            Err(error) if error.reason() == Some(Reason::NotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn uploaded(
        &self,
        whereto: &dyn Whereto,
        job: &Job,
        target: &Target,
        sent: &Sent,
        durability: Durability,
    ) -> Result<(), Error> {
        let Sent { at, uploaded } = sent;
        let changed = self.complete(at, job, uploaded);
        let result = match uploaded.outcome {
            Outcome::AsPlanned | Outcome::Same => Ok(()),
            Outcome::Recreated => {
                log::warn!("{at} was removed on the host meanwhile; it is there again");
                Ok(())
            }
            Outcome::KeptBeside => Err(Error::KeptBeside {
                path: target.path.clone(),
                kept_as: at.clone(),
            }),
        };
        match &result {
            Ok(()) => whereto.uploaded(at, Ok(&changed)),
            Err(error) => {
                log::error!("{error}");
                self.cache.note_collision(&target.path, at);
                whereto.kept_beside(&target.path, at, &changed);
            }
        }
        let mut state = self.state.lock();
        let version = changed.stat.map_or(
            // Equal to no version of the host: the next open asks, and the next upload finds a
            // conflict.
            Version {
                size: job.size,
                mtime: job.mtime,
                ctime: None,
                id: None,
            },
            |stat| stat.version(),
        );
        let place = self.settle(job.private, &version, job.size);
        state.set_base(version);
        state.size = job.size;
        state.failure = None;
        self.cache.note_uploaded(&mut state, &target.path, sent);
        state.doubts.clear();
        state.epoch += u64::from(result.is_err());
        state.is_synced = durability == Durability::Fsync;
        state.content = Content::Clean {
            version,
            file: Arc::clone(&job.file),
            place,
        };
        self.undeclare(&mut state);
        result
    }

    fn not_uploaded(
        self: &Arc<Self>,
        whereto: &Arc<dyn Whereto>,
        job: &Job,
        target: &Target,
        error: &Error,
    ) {
        let is_partial = matches!(error, Error::Remote(error) if matches!(**error, remote::Error::Partial { .. }));
        let half = is_partial.then(|| {
            let (remote, path) = (&*self.cache.remote, &target.path);
            let stat = remote.stat(path)?;
            let mut plan = job.plan(target, Durability::Lazy);
            let found = partial::settle(remote, path, &stat, &job.content(), &mut plan, true)?;
            Ok::<_, remote::Error>((found, plan.expect))
        });
        let is_doubtful = matches!(error, Error::Remote(error) if matches!(**error,
            remote::Error::Partial { .. }
            | remote::Error::OutcomeUnknown { .. }
            | remote::Error::UnexpectedReply { .. }
            | remote::Error::Protocol { .. }
            | remote::Error::Local { .. }));
        // Without the lock: it may be read.
        let doubt = is_doubtful.then(|| Doubt {
            dir: target.path.parent().unwrap_or_default(),
            tag: tag(job.private.id),
            size: job.size,
            mtime: job.mtime,
            n_changes: job.n_changes,
            digest: job.digest(),
            is_withdrawn: false,
        });
        let is_news = {
            let mut state = self.state.lock();
            state.is_begun |= is_partial;
            match (half, doubt) {
                // What the host has now is part of ours: the next upload may replace it, but not what
                // somebody else makes of it.
                (Some(Ok((Found::Part { prefix }, part))), _) => {
                    state.base = part;
                    state.n_kept = prefix.unwrap_or(0);
                }
                // If nobody could look, the next upload does.
                (_, Some(doubt)) => state.doubts.push(doubt),
                (_, None) => {}
            }
            state.replaces = false;
            let is_news =
                state.failure.as_ref().map(ToString::to_string) != Some(error.to_string());
            state.failure = Some(error.clone());
            is_news
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
            remote::chain(error),
            kept_in.display()
        );
        if let Err(error) = self.say_synced(target, &remote::chain(error)) {
            log::error!(
                "cannot make sure that {} survives a crash: {}",
                kept_in.display(),
                remote::chain(&error)
            );
        }
        whereto.uploaded(&target.path, Err(error));
        if may_pass(error) {
            self.cache.uploads.retry(self, whereto);
        }
    }

    /// Gives uploaded content the name of its version.
    fn settle(&self, private: Private, version: &Version, size: u64) -> Place {
        // Where times are whole seconds, an earlier content may have had the same version.
        self.cache.forget(version);
        let is_named =
            version.size == size && self.cache.disk.make_clean(&private, version).is_ok();
        if is_named {
            Place::Named
        } else {
            self.place_of(private)
        }
    }

    /// Asks for the attributes of a file that was just uploaded where the answer did not have them.
    /// A version that somebody else has made since is not taken for the uploaded one.
    fn complete(&self, path: &RemotePath, job: &Job, uploaded: &Uploaded) -> Changed {
        let mut changed = uploaded.changed();
        if changed.stat.is_none() && !uploaded.is_overtaken {
            let stat = self.cache.remote.stat(path).ok();
            changed.stat = stat.filter(|stat| {
                stat.size == job.size
                    && (uploaded.outcome == Outcome::Same || job.mtime.may_be_told_as(stat.mtime))
            });
        }
        changed
    }

    fn sync(&self, whereto: &dyn Whereto, wait: Wait) -> Result<(), Error> {
        if wait == Wait::Never {
            return Err(Error::WouldWait);
        }
        if let Some(target) = whereto.target() {
            remote::make_durable(&*self.cache.remote, &target.path)?;
            self.state.lock().is_synced = true;
        }
        Ok(())
    }

    /// Takes back the uploads whose end nobody heard, before the file loses its name.
    pub(super) fn withdraw(&self) -> Result<(), Error> {
        let doubts = self.state.lock().doubts.clone();
        self.clean_up(&doubts)
    }

    /// Returns whether an upload may have succeeded whose end nobody heard.
    pub fn may_be_on_host(&self) -> bool {
        !self.state.lock().doubts.is_empty()
    }

    /// Returns why the last upload failed, if it did and the content is still not on the host.
    pub fn failure(&self) -> Option<Error> {
        self.state.lock().failure.clone()
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

/// Whether an upload that failed so may succeed later without anybody doing anything here.
pub(super) fn may_pass(error: &Error) -> bool {
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
