//! Storing the content of an entry on the host.

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
use crate::remote::StorePlan;
use crate::remote::Stored;
use crate::stat::Stat;
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
    /// Whether nobody knows where it goes any more: its directory is gone. The path is what is left
    /// of it, for people.
    pub is_unknown: bool,
}

/// Why content is kept here whose directory is gone.
pub(super) const NO_PLACE: &str = "its directory was removed or moved on the host";

/// What a store is to do, as the state was when it began.
struct Job {
    file: Arc<File>,
    private: Private,
    size: u64,
    mtime: Time,
    atime: Option<Time>,
    base: Expect,
    replaces: bool,
    doubts: Vec<Doubt>,
    n_changes: u64,
}

/// How often content that is to replace a file meets another one before that is a conflict after all.
const MAX_REPLACEMENTS: u32 = 9;

impl Entry {
    /// Stores the content on the host if the host does not have it, and waits for that.
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
            doubts: state.doubts.clone(),
            n_changes: state.n_changes,
        };
        drop(state);

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
        let result = self.send(&job, &target, durability);
        // Without the lock: the layer above takes its own first, then this one.
        let result = match result {
            Ok(stored) => self.stored(&**whereto, &job, &target, &stored, durability),
            Err(error) => {
                self.not_stored(whereto, &job, &target, &error);
                Err(error)
            }
        };
        let mut state = self.state.lock();
        state.is_flushing = false;
        if !Self::is_wanted(&state) && matches!(state.content, Content::Clean { .. }) {
            // Its last handle went before or while it was stored.
            self.put_away(&mut state);
        }
        drop(state);
        self.changed.notify_all();
        result
    }

    fn send(&self, job: &Job, target: &Target, durability: Durability) -> Result<Sent, Error> {
        let Target { path, .. } = target;
        let mut plan = StorePlan {
            size: job.size,
            mode: target.mode,
            mtime: job.mtime,
            atime: job.atime.unwrap_or(target.atime),
            owner: target.owner,
            expect: job.base,
            placement: target.placement,
            durability,
            keep_as: None,
            tag: tag(job.private.id),
        };
        if !job.doubts.is_empty()
            && let Some((stat, doubt)) = self.settle_doubts(job, path)?
        {
            // What was changed since may have the same size and time.
            if doubt.n_changes == job.n_changes && plan.is_done(&stat) {
                let stored = Stored::as_planned(Changed {
                    stat: Some(stat),
                    parent: None,
                });
                return Ok(Sent::new(path, stored));
            }
            plan.expect = Expect::Version(stat.version());
        }
        let content = FromFile::new(&job.file).counted(&self.sent);
        let replaces = job.replaces || self.cache.conflicts == Conflicts::Overwrite;
        if replaces && plan.expect != Expect::Anything {
            return self.replace_there(path, &content, &mut plan);
        }
        Ok(self.cache.send_or_keep_both(path, &content, &mut plan)?)
    }

    /// Stores content that replaces whatever is there. It says what that is all the same: a store
    /// that nobody waits for any more may arrive late, and must not replace what came after it.
    fn replace_there(
        &self,
        path: &RemotePath,
        content: &FromFile<'_>,
        plan: &mut StorePlan,
    ) -> Result<Sent, Error> {
        for _ in 0..MAX_REPLACEMENTS {
            match self.cache.remote.store(path, content, plan) {
                Ok(stored) => return Ok(Sent::new(path, stored)),
                Err(remote::Error::Conflict { .. }) => {}
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

    /// Removes what stores left whose end nobody heard: where the host itself broke down, nobody over
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

    /// Asks whether a store whose end nobody heard succeeded after all; returns what the host has
    /// if it is what we sent. Where times are whole seconds it may be more than one of them: then it
    /// counts as another than what is here now, which is sent again.
    fn settle_doubts<'a>(
        &self,
        job: &'a Job,
        path: &RemotePath,
    ) -> Result<Option<(Stat, &'a Doubt)>, Error> {
        self.clean_up(&job.doubts)?;
        match self.cache.remote.stat(path) {
            Ok(stat) => {
                let ours =
                    |it: &&Doubt| stat.size == it.size && it.mtime.may_be_told_as(stat.mtime);
                let doubts = job.doubts.iter().filter(ours);
                let ours = doubts.max_by_key(|it| it.n_changes != job.n_changes);
                Ok(ours.map(|doubt| (stat, doubt)))
            }
            Err(error) if error.reason() == Some(Reason::NotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn stored(
        &self,
        whereto: &dyn Whereto,
        job: &Job,
        target: &Target,
        sent: &Sent,
        durability: Durability,
    ) -> Result<(), Error> {
        let Sent { at, stored } = sent;
        let changed = self.complete(at, stored.changed());
        let result = match stored.outcome {
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
            Ok(()) => whereto.stored(at, Ok(&changed)),
            Err(error) => {
                log::error!("{error}");
                self.cache.note_collision(&target.path, at);
                whereto.kept_beside(&target.path, at, &changed);
            }
        }
        let mut state = self.state.lock();
        let version = changed.stat.map_or(
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

    fn not_stored(
        self: &Arc<Self>,
        whereto: &Arc<dyn Whereto>,
        job: &Job,
        target: &Target,
        error: &Error,
    ) {
        let is_partial = matches!(error, Error::Remote(error) if matches!(**error, remote::Error::Partial { .. }));
        let half = is_partial.then(|| self.cache.remote.stat(&target.path).ok());
        let is_news = {
            let mut state = self.state.lock();
            if let Error::Remote(error) = error {
                match &**error {
                    // What the host has now is our own half: the next store may replace it, but
                    // not what somebody else makes of it, which it may be if nobody could look.
                    remote::Error::Partial { .. } => {
                        if let Some(half) = half.flatten() {
                            state.base = Expect::Version(half.version());
                        }
                    }
                    remote::Error::OutcomeUnknown { .. } | remote::Error::Surprise { .. } => {
                        state.doubts.push(Doubt {
                            dir: target.path.parent().unwrap_or_default(),
                            tag: tag(job.private.id),
                            size: job.size,
                            mtime: job.mtime,
                            n_changes: job.n_changes,
                            is_withdrawn: false,
                        });
                    }
                    _ => {}
                }
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
            "{} is not stored on the host: {}; its content is kept in {}",
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
        whereto.stored(&target.path, Err(error));
        if may_pass(error) {
            self.cache.uploads.retry(self, whereto);
        }
    }

    /// Gives stored content the name of its version.
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

    /// Takes back the stores whose end nobody heard, before the file loses its name.
    pub(super) fn withdraw(&self) -> Result<(), Error> {
        let doubts = self.state.lock().doubts.clone();
        self.clean_up(&doubts)
    }

    /// Returns whether a store may have succeeded whose end nobody heard.
    pub fn may_be_on_host(&self) -> bool {
        !self.state.lock().doubts.is_empty()
    }

    /// Returns why the last store failed, if it did and the content is still not on the host.
    pub fn failure(&self) -> Option<Error> {
        self.state.lock().failure.clone()
    }
}

/// Whether a store that failed so may succeed later without anybody doing anything here.
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
