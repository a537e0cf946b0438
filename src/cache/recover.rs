//! What an earlier run left behind: contents that the host did not get.
//!
//! [`Cache::recover`] looks at the local disk alone, so that no mount waits for it. What is whole
//! comes back as an [`PendingRecovery`], whose entry is dirty content like any other: the layer above shows
//! it under its name and has it uploaded. What is not whole stays in the journal, with the reason.
//! Doing it twice does no harm: content that is on the host already, because the crash came after
//! the upload and before the journal was told, is recognised by its size and time, or by the host
//! when it compares the two.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use crate::cache::Cache;
use crate::cache::conflict::ConflictPolicy;
use crate::cache::disk::Private;
use crate::cache::entry::Entry;
use crate::cache::journal::Durable;
use crate::cache::journal::record::Id;
use crate::cache::journal::record::Phase;
use crate::cache::journal::record::Record;
use crate::cache::send::FromFile;
use crate::cache::send::Sent;
use crate::cache::state::UnknownUpload;
use crate::error_chain;
use crate::path::RemotePath;
use crate::remote;
use crate::remote::Durability;
use crate::remote::Expect;
use crate::remote::Outcome;
use crate::remote::Reason;
use crate::remote::UploadSpec;
use crate::remote::make_durable;
use crate::remote::partial;
use crate::stat::Stat;

/// The result of [`Cache::recover`].
#[derive(Debug, Default)]
pub struct Found {
    /// Contents that stay here until a person decides about them.
    pub needs_decision: Vec<RecoveredFile>,
    /// Contents that are to be uploaded, or compared with those of the host.
    pub pending: Vec<PendingRecovery>,
}

/// Content of an earlier run about which the host has to be asked.
#[derive(Debug)]
pub struct PendingRecovery {
    pub record: Record,
    /// The content, dirty and closed.
    pub entry: Arc<Entry>,
    /// Whether the content is as it was when it was closed. If not, it is kept here unless the host
    /// has the whole of it.
    pub is_complete: bool,
    /// Whether uploads of it left nothing on the host.
    uploads_are_cancelled: AtomicBool,
    file: File,
}

impl PendingRecovery {
    /// Returns the paths that the content may belong to: two while a rename was under way.
    pub fn paths(&self) -> impl Iterator<Item = &RemotePath> {
        [Some(&self.record.path), self.record.was.as_ref()]
            .into_iter()
            .flatten()
    }

    /// Returns whether the host's file is the one that the content was made from.
    pub fn is_base(&self, stat: &Stat) -> bool {
        is_base(&self.record, stat)
    }

    /// Returns whether the host's file has the content already, and the permissions that were set
    /// here.
    pub fn is_done(&self, stat: &Stat) -> bool {
        plan_of(&self.record).is_done(stat)
    }
}

/// A content that an earlier run left, and what became of it.
#[derive(Debug, Clone)]
pub struct RecoveredFile {
    pub id: Id,
    pub path: RemotePath,
    pub outcome: RecoveryOutcome,
}

/// What became of a content.
#[derive(Debug, Clone)]
pub enum RecoveryOutcome {
    /// It is on the host now.
    Uploaded,
    /// It was on the host already.
    AlreadyOnHost,
    /// Somebody had removed the file: it is there again.
    Recreated,
    /// Somebody had changed the file: it is beside it, at this path.
    ConflictCopy(RemotePath),
    /// It stays here until somebody looks at it.
    NeedsDecision { why: String, file: PathBuf },
    /// It could not be uploaded now; the next run tries again.
    NextMount { why: String, file: PathBuf },
}

impl RecoveryOutcome {
    /// Returns whether the content is safe on the host.
    pub fn is_on_host(&self) -> bool {
        !matches!(self, Self::NeedsDecision { .. } | Self::NextMount { .. })
    }
}

impl fmt::Display for RecoveredFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.outcome {
            RecoveryOutcome::Uploaded => write!(f, "{path}: uploaded"),
            RecoveryOutcome::AlreadyOnHost => write!(f, "{path}: the host has it already"),
            RecoveryOutcome::Recreated => {
                write!(f, "{path}: uploaded; it had been removed on the host")
            }
            RecoveryOutcome::ConflictCopy(beside) => write!(
                f,
                "{path}: was changed on the host meanwhile; yours is beside it, as {beside}"
            ),
            RecoveryOutcome::NeedsDecision { why, file } => {
                write!(f, "{path}: kept in {}: {why}", file.display())
            }
            RecoveryOutcome::NextMount { why, file } => {
                write!(f, "{path}: not uploaded: {why}; kept in {}", file.display())
            }
        }
    }
}

/// Why a content is not uploaded when it is found.
const UNFINISHED: &str = "it was still being written when scpfs ended";
const UNSOUND: &str = "the machine went down before it was on the disk; it may not be whole";

impl Cache {
    /// Takes over everything that an earlier run left; never asks the host. To be called before
    /// anything else is uploaded.
    pub fn recover(self: &Arc<Self>) -> Found {
        let mut found = Found::default();
        for record in self.disk.journal().records() {
            self.recover_one(record, &mut found);
        }
        self.n_pending.store(found.pending.len(), Ordering::Relaxed);
        let records = self.disk.journal().records();
        if !self.disk.is_sound() && records.iter().all(|it| it.phase != Phase::Closed) {
            // The journal says of each content that may not be whole that it is kept.
            self.disk.trust();
        }
        found
    }

    fn recover_one(self: &Arc<Self>, record: Record, found: &mut Found) {
        let (id, path) = (record.id, record.path.clone());
        let private = Private::dirty(id);
        let keep = |why: String| {
            let file = self.disk.private_path(&private);
            let outcome = RecoveryOutcome::NeedsDecision { why, file };
            self.unrecovered.lock().push(id);
            RecoveredFile { id, path, outcome }
        };
        let opened = self.disk.open_private(&private).and_then(|file| {
            let len = file.metadata()?.len();
            Ok((file.try_clone()?, file, len))
        });
        let (copy, file, len) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // The crash came before it was first written to, or after it was uploaded.
                self.finish(id, None);
                return;
            }
            Err(error) => {
                found
                    .needs_decision
                    .push(keep(format!("it cannot be read: {error}")));
                return;
            }
        };
        let why = match record.phase {
            Phase::NeedsDecision => {
                found.needs_decision.push(keep(record.why));
                return;
            }
            Phase::Open => UNFINISHED.to_owned(),
            Phase::Closed if !self.disk.is_sound() => UNSOUND.to_owned(),
            Phase::Closed | Phase::Persisted | Phase::MaybePartial if len != record.size => {
                format!("it has {len} bytes where there were {}", record.size)
            }
            Phase::Closed | Phase::Persisted | Phase::MaybePartial => String::new(),
        };
        let is_complete = why.is_empty();
        if !is_complete {
            let record = Record {
                phase: Phase::NeedsDecision,
                why: why.clone(),
                ..record.clone()
            };
            self.rewrite(&file, record);
            if why != UNSOUND {
                found.needs_decision.push(keep(why));
                return;
            }
        }
        let unknown_uploads = [Some(&record.path), record.was.as_ref()];
        let unknown_uploads = unknown_uploads
            .into_iter()
            .flatten()
            .map(|path| UnknownUpload {
                dir: path.parent().unwrap_or_default(),
                tag: record.tag(),
                size: record.size,
                mtime: record.mtime,
                n_changes: 0,
                digest: None,
                is_cancelled: false,
            });
        let unknown_uploads = unknown_uploads.collect();
        let entry = Entry::recovered(Arc::clone(self), &record, private, copy, unknown_uploads);
        found.pending.push(PendingRecovery {
            record,
            entry,
            is_complete,
            uploads_are_cancelled: AtomicBool::new(false),
            file,
        });
    }

    /// Makes sure that content which is about to be shown and uploaded survives a power failure.
    pub fn persist_recovered(&self, pending: &PendingRecovery) {
        if pending.record.phase == Phase::Closed {
            let phase = Phase::Persisted;
            let record = pending.record.clone();
            self.rewrite(&pending.file, Record { phase, ..record });
        }
    }

    /// Removes from the host what uploads of an earlier run left there. Waits for the host.
    ///
    /// # Errors
    /// The host was not reached.
    pub fn cancel_earlier_uploads(&self, pending: &PendingRecovery) -> remote::Result<()> {
        if !pending.uploads_are_cancelled.load(Ordering::Relaxed) {
            self.remove_leftovers_of(&pending.record)?;
            pending.entry.unknown_uploads_are_cancelled();
            pending.uploads_are_cancelled.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn remove_leftovers_of(&self, record: &Record) -> remote::Result<()> {
        let paths = [Some(&record.path), record.was.as_ref()];
        for path in paths.into_iter().flatten() {
            let dir = path.parent().unwrap_or_default();
            // An upload that still goes on over there must not end after ours.
            match self.remote.remove_leftovers(&dir, record.tag()) {
                Err(error) if error.is_connection_loss() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Uploads content that cannot be shown under its name, because something else than a file has
    /// that name or because its directory is gone; or finds out whether the host has content that
    /// may not be whole here. Waits for the host.
    ///
    /// # Errors
    /// The host was not reached; nothing has changed.
    pub fn finish_recovery(&self, pending: &PendingRecovery) -> remote::Result<RecoveredFile> {
        let PendingRecovery {
            record,
            file,
            is_complete,
            ..
        } = pending;
        let (id, path) = (record.id, record.path.clone());
        let private = Private::dirty(id);
        let kept_in = self.disk.private_path(&private);
        let outcome = if *is_complete {
            match self.upload_again(record, file) {
                Ok(outcome) => outcome,
                Err(error) if error.is_connection_loss() => return Err(error),
                Err(error) => {
                    let why = error_chain::with_causes(&error);
                    self.rewrite(
                        file,
                        Record {
                            phase: match record.phase {
                                Phase::MaybePartial => Phase::MaybePartial,
                                _ => Phase::Persisted,
                            },
                            why: why.clone(),
                            ..record.clone()
                        },
                    );
                    let file = kept_in;
                    match error {
                        remote::Error::Conflict { .. } => {
                            RecoveryOutcome::NeedsDecision { why, file }
                        }
                        _ => RecoveryOutcome::NextMount { why, file },
                    }
                }
            }
        } else if self.has_it(record)? {
            RecoveryOutcome::AlreadyOnHost
        } else {
            RecoveryOutcome::NeedsDecision {
                why: UNSOUND.to_owned(),
                file: kept_in,
            }
        };
        if outcome.is_on_host() {
            self.finish(id, Some(private));
        } else {
            self.unrecovered.lock().push(id);
        }
        if let RecoveryOutcome::ConflictCopy(kept_as) = &outcome {
            self.note_conflict(&path, kept_as);
        }
        let recovered = RecoveredFile { id, path, outcome };
        self.note_recovered(recovered.clone());
        Ok(recovered)
    }

    /// Notes that content of an earlier mount was uploaded.
    pub(super) fn note_uploaded(&self, id: Id, path: &RemotePath, sent: &Sent) {
        let outcome = match sent.uploaded.outcome {
            Outcome::AsPlanned => RecoveryOutcome::Uploaded,
            Outcome::Same => RecoveryOutcome::AlreadyOnHost,
            Outcome::Recreated => RecoveryOutcome::Recreated,
            Outcome::ConflictCopy => RecoveryOutcome::ConflictCopy(sent.at.clone()),
        };
        let path = path.clone();
        self.note_recovered(RecoveredFile { id, path, outcome });
    }

    fn note_recovered(&self, recovered: RecoveredFile) {
        match recovered.outcome {
            RecoveryOutcome::Uploaded | RecoveryOutcome::AlreadyOnHost => {
                log::debug!("left by an earlier mount: {recovered}");
            }
            _ => log::warn!("left by an earlier mount: {recovered}"),
        }
        let mut recovered_so_far = self.recovered.lock();
        recovered_so_far.push(recovered);
        if recovered_so_far
            .iter()
            .filter(|one| one.outcome.is_on_host())
            .count()
            == self.n_pending.load(Ordering::Relaxed)
        {
            log::info!("all that earlier mounts left is on the host now");
        }
    }

    /// Returns what became of what [`Self::recover`] found, as far as that is known.
    pub fn recovered(&self) -> Vec<RecoveredFile> {
        self.recovered.lock().clone()
    }

    /// Whether the host has the content already.
    fn has_it(&self, record: &Record) -> remote::Result<bool> {
        match self.remote.stat(&record.path) {
            // Nothing here says what the content was: only a time to the microsecond is a receipt.
            Ok(stat) => Ok(plan_of(record).has_content(&stat) && stat.mtime.nanos != 0),
            Err(error) if error.is_connection_loss() => Err(error),
            Err(_) => Ok(false),
        }
    }

    fn is_missing(&self, dir: &RemotePath) -> remote::Result<bool> {
        match self.remote.stat(dir) {
            Ok(_) => Ok(false),
            Err(error) if error.reason() == Some(Reason::NotFound) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn upload_again(&self, record: &Record, file: &File) -> remote::Result<RecoveryOutcome> {
        let mut path = record.path.clone();
        let mut plan = plan_of(record);
        self.remove_leftovers_of(record)?;
        let mut is_there = false;
        let mut found: Option<Stat> = None;
        for place in [Some(&record.path), record.was.as_ref()]
            .into_iter()
            .flatten()
        {
            let stat = match self.remote.stat(place) {
                Ok(stat) => stat,
                Err(error) if error.reason() == Some(Reason::NotFound) => continue,
                Err(error) => return Err(error),
            };
            let is_sent =
                partial::is_uploaded(&*self.remote, place, &stat, &FromFile::new(file), &plan)?;
            if is_sent && plan.is_done(&stat) {
                match make_durable(&*self.remote, place) {
                    Err(error) if is_about_disk(&error) => return Err(error),
                    Err(error) => log::warn!("{place}: {}", error_chain::with_causes(&error)),
                    Ok(()) => {}
                }
                return Ok(RecoveryOutcome::AlreadyOnHost);
            }
            found = found.or(Some(stat));
            // What was sent and does not count lacks its permissions, which were set afterwards.
            if (is_base(record, &stat) || is_sent) && !is_there {
                (path, is_there) = (place.clone(), true);
                // A rename that was under way changed the time of the last change.
                plan.expect = Expect::Version(stat.version());
            }
        }
        if found.is_none()
            && let Some(was) = &record.was
            && self.is_missing(&record.path.parent().unwrap_or_default())?
        {
            // The rename of its directory never happened.
            path = was.clone();
        }
        let old = self.disk.open_base_copy(record.id);
        let content = FromFile::new(file).over(old.as_ref());
        if record.phase == Phase::MaybePartial
            && record.was.is_none()
            && let Some(stat) = &found
        {
            // The upload was begun and may have broken off.
            let left = partial::resolve(&*self.remote, &path, stat, &content, &mut plan, true)?;
            is_there |= matches!(left, partial::Found::Part { .. });
        }
        let replaces =
            self.conflict_policy == ConflictPolicy::Overwrite || plan.expect == Expect::Anything;
        if replaces && !is_there {
            // What comes after this look is somebody's newer version.
            plan.expect = found.map_or(Expect::Absent, |stat| Expect::Version(stat.version()));
        }
        let sent = self.send_or_keep_both(&path, &content, &mut plan)?;
        Ok(match sent.uploaded.outcome {
            Outcome::AsPlanned => RecoveryOutcome::Uploaded,
            Outcome::Same => RecoveryOutcome::AlreadyOnHost,
            Outcome::Recreated => RecoveryOutcome::Recreated,
            Outcome::ConflictCopy => RecoveryOutcome::ConflictCopy(sent.at),
        })
    }

    /// Ends the care for a content.
    fn finish(&self, id: Id, private: Option<Private>) {
        if let Some(private) = private {
            self.disk.remove_private(&private);
            self.disk.remove_base_copy(id);
        }
        if let Err(error) = self.disk.journal().done(id, Durable::No) {
            log::warn!("cannot write the journal: {error}");
        }
    }

    fn rewrite(&self, file: &File, record: Record) {
        let written = self
            .disk
            .flush_private(file)
            .and_then(|()| self.disk.journal().put(record, Durable::Yes));
        if let Err(error) = written {
            log::warn!("cannot write the journal: {error}");
        }
    }
}

/// Whether an error of a flush is one of the disk, so that the next try may succeed; `false` where the
/// login user can never flush this file.
fn is_about_disk(error: &remote::Error) -> bool {
    !matches!(error, remote::Error::Unsupported { .. })
        && !matches!(
            error.reason(),
            Some(
                Reason::AccessDenied
                    | Reason::NotPermitted
                    | Reason::NotSupported
                    | Reason::InvalidArgument
            )
        )
}

/// Whether what the host has is what the content was made from. Where its times are whole seconds,
/// the time of the last change counts as well, unless a rename was under way, which changes it.
fn is_base(record: &Record, stat: &Stat) -> bool {
    let Expect::Version(base) = record.base else {
        return false;
    };
    let here = stat.version();
    let is_coarse = here.mtime.nanos == 0 && here.ctime.is_some_and(|ctime| ctime.nanos == 0);
    let may_change = record.was.is_some() || base.ctime.is_none() || here.ctime.is_none();
    base.same_content(&here) && (!is_coarse || may_change || base.ctime == here.ctime)
}

/// How the content of an earlier run is to be uploaded.
fn plan_of(record: &Record) -> UploadSpec {
    UploadSpec {
        size: record.size,
        appends_to: None,
        mode: record.mode,
        sets_mode: record.sets_mode,
        mtime: record.mtime,
        atime: record.atime.unwrap_or(record.mtime),
        owner: record.owner,
        expect: record.base,
        placement: record.placement,
        durability: Durability::Fsync,
        conflict_name: None,
        tag: record.tag(),
    }
}
