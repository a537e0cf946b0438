//! Recovers dirty content of an earlier mount.
//!
//! [`Cache::recover`] reads only the local disk, so that mounting does not wait for the host.
//! Complete content becomes a [`PendingRecovery`], whose entry is dirty like any other: the layer
//! above shows it under its name and uploads it. Incomplete content stays in the journal, with the
//! reason.
//!
//! Recovery is idempotent. After a crash between an upload and the end of its journal record, the
//! content is on the host already: it is recognized by size and mtime, or by the comparison on the
//! host.

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
    /// Content that is not uploaded until the user decides what to do with it.
    pub needs_decision: Vec<RecoveredFile>,
    /// Content that is to be uploaded, or compared with the host's.
    pub pending: Vec<PendingRecovery>,
}

/// Content of an earlier mount whose recovery needs the host.
#[derive(Debug)]
pub struct PendingRecovery {
    pub record: Record,
    /// The content, dirty and closed.
    pub entry: Arc<Entry>,
    /// The content is as it was when it was closed. Otherwise it is not uploaded, and needs the
    /// user's decision unless the host has the complete content.
    pub is_complete: bool,
    /// The temporary files of its uploads were removed from the host.
    uploads_are_cancelled: AtomicBool,
    file: File,
}

impl PendingRecovery {
    /// Returns the paths that the file may have: two if a rename was in flight at the crash.
    pub fn paths(&self) -> impl Iterator<Item = &RemotePath> {
        [Some(&self.record.path), self.record.was.as_ref()]
            .into_iter()
            .flatten()
    }

    /// Returns whether the host's file is the base version.
    pub fn is_base(&self, stat: &Stat) -> bool {
        is_base(&self.record, stat)
    }

    /// Returns whether the host's file has the content already, and the permissions that were set
    /// here, as far as its attributes tell.
    pub fn is_done(&self, stat: &Stat) -> bool {
        spec_of(&self.record).is_done(stat)
    }
}

/// The result of one recovery.
#[derive(Debug, Clone)]
pub struct RecoveredFile {
    pub id: Id,
    pub path: RemotePath,
    pub outcome: RecoveryOutcome,
}

/// The outcome of a recovery.
#[derive(Debug, Clone)]
pub enum RecoveryOutcome {
    /// The content was uploaded.
    Uploaded,
    /// The host had the content already.
    AlreadyOnHost,
    /// The file had been removed on the host; the upload created it again.
    Recreated,
    /// There was a conflict: the content is in a conflict copy with this path.
    ConflictCopy(RemotePath),
    /// The content stays in the local `file` until the user decides what to do with it.
    NeedsDecision { why: String, file: PathBuf },
    /// The upload failed; the next mount retries it.
    NextMount { why: String, file: PathBuf },
}

impl RecoveryOutcome {
    /// Returns whether the content is on the host.
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
            RecoveryOutcome::ConflictCopy(copy) => write!(
                f,
                "{path}: was changed on the host; your version was uploaded as {copy}"
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

/// Why content is not uploaded.
const UNFINISHED: &str = "it was still being written when scpfs ended";
const UNSOUND: &str = "the machine went down before it was on the disk; it may be incomplete";

impl Cache {
    /// Recovers the content in the journal; makes no request to the host. Must be called before
    /// anything is uploaded.
    pub fn recover(self: &Arc<Self>) -> Found {
        let mut found = Found::default();
        for record in self.disk.journal().records() {
            self.recover_one(record, &mut found);
        }
        self.n_pending.store(found.pending.len(), Ordering::Relaxed);
        let records = self.disk.journal().records();
        if !self.disk.is_sound() && records.iter().all(|it| it.phase != Phase::Closed) {
            // No record is in phase `Closed` any more: content that may be incomplete is marked.
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
                // The crash came before the first write, or after the upload.
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

    /// Persists content that is about to be shown and uploaded. Errors are logged.
    pub fn persist_recovered(&self, pending: &PendingRecovery) {
        if pending.record.phase == Phase::Closed {
            let phase = Phase::Persisted;
            let record = pending.record.clone();
            self.rewrite(&pending.file, Record { phase, ..record });
        }
    }

    /// Removes the temporary files of uploads of an earlier mount from the host.
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
            // An upload that still runs on the host then fails, instead of completing after ours.
            match self.remote.remove_leftovers(&dir, record.tag()) {
                Err(error) if error.is_connection_loss() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Uploads content that cannot be shown under its name, because a directory or the like has
    /// that name or its directory does not exist. Of content that may be incomplete, checks whether
    /// the host has it. Blocks until the host has answered.
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
            match self.upload_recovered(record, file) {
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
        } else if self.host_has_content(record)? {
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
            self.record_conflict(&path, kept_as);
        }
        let recovered = RecoveredFile { id, path, outcome };
        self.record_outcome(recovered.clone());
        Ok(recovered)
    }

    /// Records that content of an earlier mount was uploaded through its entry.
    pub(super) fn record_uploaded(&self, id: Id, path: &RemotePath, sent: &Sent) {
        let outcome = match sent.uploaded.outcome {
            Outcome::AsPlanned => RecoveryOutcome::Uploaded,
            Outcome::Same => RecoveryOutcome::AlreadyOnHost,
            Outcome::Recreated => RecoveryOutcome::Recreated,
            Outcome::ConflictCopy => RecoveryOutcome::ConflictCopy(sent.at.clone()),
        };
        let path = path.clone();
        self.record_outcome(RecoveredFile { id, path, outcome });
    }

    fn record_outcome(&self, recovered: RecoveredFile) {
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
            log::info!("all files of earlier mounts are on the host now");
        }
    }

    /// Returns the outcomes of recoveries so far.
    pub fn recovered(&self) -> Vec<RecoveredFile> {
        self.recovered.lock().clone()
    }

    /// Returns whether the host has the content already.
    fn host_has_content(&self, record: &Record) -> remote::Result<bool> {
        match self.remote.stat(&record.path) {
            // The local content may be damaged, so it cannot be compared: only an mtime with a
            // fraction of a second proves that the host's content is that upload.
            Ok(stat) => Ok(spec_of(record).has_content(&stat) && stat.mtime.nanos != 0),
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

    fn upload_recovered(&self, record: &Record, file: &File) -> remote::Result<RecoveryOutcome> {
        let mut path = record.path.clone();
        let mut spec = spec_of(record);
        self.remove_leftovers_of(record)?;
        let mut is_there = false;
        let mut found: Option<Stat> = None;
        for candidate in [Some(&record.path), record.was.as_ref()]
            .into_iter()
            .flatten()
        {
            let stat = match self.remote.stat(candidate) {
                Ok(stat) => stat,
                Err(error) if error.reason() == Some(Reason::NotFound) => continue,
                Err(error) => return Err(error),
            };
            let is_sent =
                partial::is_uploaded(&*self.remote, candidate, &stat, &FromFile::new(file), &spec)?;
            if is_sent && spec.is_done(&stat) {
                match make_durable(&*self.remote, candidate) {
                    Err(error) if is_about_disk(&error) => return Err(error),
                    Err(error) => log::warn!("{candidate}: {}", error_chain::with_causes(&error)),
                    Ok(()) => {}
                }
                return Ok(RecoveryOutcome::AlreadyOnHost);
            }
            found = found.or(Some(stat));
            // The content was uploaded before the crash, but its permissions were not set yet.
            if (is_base(record, &stat) || is_sent) && !is_there {
                (path, is_there) = (candidate.clone(), true);
                // A rename that was in flight changed the ctime.
                spec.expect = Expect::Version(stat.version());
            }
        }
        if found.is_none()
            && let Some(was) = &record.was
            && self.is_missing(&record.path.parent().unwrap_or_default())?
        {
            // The rename of its directory was not carried out.
            path = was.clone();
        }
        let old = self.disk.open_base_copy(record.id);
        let content = FromFile::new(file).over(old.as_ref());
        if record.phase == Phase::MaybePartial
            && record.was.is_none()
            && let Some(stat) = &found
        {
            // The crash may have left a partial upload.
            let left = partial::resolve(&*self.remote, &path, stat, &content, &mut spec, true)?;
            is_there |= matches!(left, partial::Found::Part { .. });
        }
        let replaces =
            self.conflict_policy == ConflictPolicy::Overwrite || spec.expect == Expect::Anything;
        if replaces && !is_there {
            // A version that appears after this check is newer: it must not be replaced.
            spec.expect = found.map_or(Expect::Absent, |stat| Expect::Version(stat.version()));
        }
        let sent = self.send_or_conflict_copy(&path, &content, &mut spec)?;
        Ok(match sent.uploaded.outcome {
            Outcome::AsPlanned => RecoveryOutcome::Uploaded,
            Outcome::Same => RecoveryOutcome::AlreadyOnHost,
            Outcome::Recreated => RecoveryOutcome::Recreated,
            Outcome::ConflictCopy => RecoveryOutcome::ConflictCopy(sent.at),
        })
    }

    /// Ends the record, and removes the local files.
    fn finish(&self, id: Id, private: Option<Private>) {
        if let Some(private) = private {
            self.disk.remove_private(&private);
            self.disk.remove_base_copy(id);
        }
        if let Err(error) = self.disk.journal().end(id, Durable::No) {
            log::warn!("cannot write the journal: {error}");
        }
    }

    /// Persists the content with a new record. Errors are logged.
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

/// Returns whether a flush failed because of the disk, so that a retry may succeed; `false` if the
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

/// Returns whether the host's file is the base version. On hosts with times of whole seconds the
/// ctime must match as well, unless a rename was in flight, which changes it.
fn is_base(record: &Record, stat: &Stat) -> bool {
    let Expect::Version(base) = record.base else {
        return false;
    };
    let here = stat.version();
    let is_coarse = here.mtime.nanos == 0 && here.ctime.is_some_and(|ctime| ctime.nanos == 0);
    let may_change = record.was.is_some() || base.ctime.is_none() || here.ctime.is_none();
    base.same_content(&here) && (!is_coarse || may_change || base.ctime == here.ctime)
}

/// Returns the upload spec for the content of a record.
fn spec_of(record: &Record) -> UploadSpec {
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
        is_exclusive: false,
        tag: record.tag(),
    }
}
