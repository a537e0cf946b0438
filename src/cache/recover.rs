//! What an earlier run left behind: contents that the host did not get.
//!
//! Each is stored if it is whole and nobody needs to decide anything; the rest stays in the journal,
//! with the reason. Doing it twice does no harm: a content that is on the host already, because the
//! crash came after the store and before the journal was told, is recognised by its size and time,
//! or by the host when it compares the two.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use crate::cache::Cache;
use crate::cache::conflict::Conflicts;
use crate::cache::disk::Private;
use crate::cache::journal::Durable;
use crate::cache::journal::record::Id;
use crate::cache::journal::record::Phase;
use crate::cache::journal::record::Record;
use crate::cache::send::FromFile;
use crate::path::RemotePath;
use crate::remote;
use crate::remote::Durability;
use crate::remote::Expect;
use crate::remote::Outcome;
use crate::remote::Reason;
use crate::remote::StorePlan;
use crate::remote::partial;
use crate::remote::partial::Found;
use crate::stat::Stat;

/// A content that an earlier run left, and what became of it.
#[derive(Debug)]
pub struct Recovered {
    pub id: Id,
    pub path: RemotePath,
    pub fate: Fate,
}

/// What became of a content.
#[derive(Debug)]
pub enum Fate {
    /// It is on the host now.
    Stored,
    /// It was on the host already.
    WasStored,
    /// Somebody had removed the file: it is there again.
    Recreated,
    /// Somebody had changed the file: it is beside it, at this path.
    KeptBeside(RemotePath),
    /// It stays here until somebody looks at it.
    Kept { why: String, file: PathBuf },
    /// It could not be stored now; the next run tries again.
    Later { why: String, file: PathBuf },
}

impl Fate {
    /// Returns whether the content is safe on the host.
    pub fn is_on_host(&self) -> bool {
        !matches!(self, Self::Kept { .. } | Self::Later { .. })
    }
}

impl fmt::Display for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.fate {
            Fate::Stored => write!(f, "{path}: stored"),
            Fate::WasStored => write!(f, "{path}: the host has it already"),
            Fate::Recreated => write!(f, "{path}: stored; it had been removed on the host"),
            Fate::KeptBeside(beside) => write!(
                f,
                "{path}: was changed on the host meanwhile; yours is beside it, as {beside}"
            ),
            Fate::Kept { why, file } => write!(f, "{path}: kept in {}: {why}", file.display()),
            Fate::Later { why, file } => {
                write!(f, "{path}: not stored: {why}; kept in {}", file.display())
            }
        }
    }
}

/// Why a content is not stored when it is found.
const UNFINISHED: &str = "it was still being written when scpfs ended";
const UNSOUND: &str = "the machine went down before it was on the disk; it may not be whole";

impl Cache {
    /// Looks after everything that an earlier run left. To be called before anything else is stored.
    ///
    /// Stops asking the host once it cannot be reached.
    pub fn recover(&self) -> Vec<Recovered> {
        let mut recovered = Vec::new();
        let mut is_away = false;
        for record in self.disk.journal().records() {
            let (id, path) = (record.id, record.path.clone());
            if let Some(fate) = self.recover_one(record, &mut is_away) {
                match &fate {
                    Fate::KeptBeside(kept_as) => self.note_collision(&path, kept_as),
                    fate if !fate.is_on_host() => self.left_by_others.lock().push(id),
                    _ => {}
                }
                recovered.push(Recovered { id, path, fate });
            }
        }
        let records = self.disk.journal().records();
        if !self.disk.is_sound() && records.iter().all(|it| it.phase != Phase::Closed) {
            // What may not be whole is said to be so.
            self.disk.trust();
        }
        recovered
    }

    /// `None` if there is nothing to say.
    fn recover_one(&self, record: Record, is_away: &mut bool) -> Option<Fate> {
        let id = record.id;
        let private = Private::dirty(id);
        let kept_in = self.disk.private_path(&private);
        let file = match self.disk.open_private(&private) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // The crash came before it was first written to, or after it was stored.
                self.finish(id, None);
                return None;
            }
            Err(error) => {
                return Some(Fate::Kept {
                    why: format!("it cannot be read: {error}"),
                    file: kept_in,
                });
            }
        };
        let keep = |record: Record, why: String| {
            let phase = Phase::Kept;
            self.rewrite(
                &file,
                Record {
                    phase,
                    why: why.clone(),
                    ..record
                },
            );
            let file = kept_in.clone();
            Some(Fate::Kept { why, file })
        };
        match record.phase {
            Phase::Kept => {
                let why = record.why;
                return Some(Fate::Kept { why, file: kept_in });
            }
            Phase::Open => return keep(record, UNFINISHED.to_owned()),
            Phase::Closed if !self.disk.is_sound() => {
                if self.has_it(&record) {
                    self.finish(id, Some(private));
                    return Some(Fate::WasStored);
                }
                return keep(record, UNSOUND.to_owned());
            }
            Phase::Closed | Phase::Synced | Phase::Begun => {}
        }
        let len = file.metadata().map_or(u64::MAX, |meta| meta.len());
        if len != record.size {
            let why = format!("it has {len} bytes where there were {}", record.size);
            return keep(record, why);
        }
        let result = if *is_away {
            Err(remote::Error::Closed)
        } else {
            self.store_again(&record, &file)
        };
        match result {
            Ok(fate) => {
                self.finish(id, Some(private));
                Some(fate)
            }
            Err(error) => {
                *is_away |= error.is_connection_loss();
                let why = remote::chain(&error);
                self.rewrite(
                    &file,
                    Record {
                        phase: match record.phase {
                            Phase::Begun => Phase::Begun,
                            _ => Phase::Synced,
                        },
                        why: why.clone(),
                        ..record
                    },
                );
                let file = kept_in;
                Some(match error {
                    remote::Error::Conflict { .. } => Fate::Kept { why, file },
                    _ => Fate::Later { why, file },
                })
            }
        }
    }

    /// Whether the host has the content already.
    fn has_it(&self, record: &Record) -> bool {
        let plan = plan_of(record);
        matches!(self.remote.stat(&record.path), Ok(stat) if plan.is_done(&stat))
    }

    fn is_missing(&self, dir: &RemotePath) -> remote::Result<bool> {
        match self.remote.stat(dir) {
            Ok(_) => Ok(false),
            Err(error) if error.reason() == Some(Reason::NotFound) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn store_again(&self, record: &Record, file: &File) -> remote::Result<Fate> {
        let mut path = record.path.clone();
        let mut plan = plan_of(record);
        for place in [Some(&record.path), record.was.as_ref()]
            .into_iter()
            .flatten()
        {
            // A store that still goes on over there must not end after ours.
            match self
                .remote
                .remove_leftovers(&place.parent().unwrap_or_default(), plan.tag)
            {
                Err(error) if error.is_connection_loss() => return Err(error),
                _ => {}
            }
        }
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
            if plan.is_done(&stat) {
                return Ok(Fate::WasStored);
            }
            found = found.or(Some(stat));
            let is_base =
                matches!(record.base, Expect::Version(base) if base.same_content(&stat.version()));
            if is_base && !is_there {
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
        let old = self.disk.open_old(record.id);
        let content = FromFile::new(file).over(old.as_ref());
        if record.phase == Phase::Begun
            && record.was.is_none()
            && let Some(stat) = &found
        {
            // The upload was begun and may have broken off.
            is_there |=
                partial::settle(&*self.remote, &path, stat, &content, &mut plan)? == Found::Part;
        }
        let replaces = self.conflicts == Conflicts::Overwrite || plan.expect == Expect::Anything;
        if replaces && !is_there {
            // What comes after this look is somebody's newer version.
            plan.expect = found.map_or(Expect::Absent, |stat| Expect::Version(stat.version()));
        }
        let sent = self.send_or_keep_both(&path, &content, &mut plan)?;
        Ok(match sent.stored.outcome {
            Outcome::AsPlanned => Fate::Stored,
            Outcome::Same => Fate::WasStored,
            Outcome::Recreated => Fate::Recreated,
            Outcome::KeptBeside => Fate::KeptBeside(sent.at),
        })
    }

    /// Ends the care for a content.
    fn finish(&self, id: Id, private: Option<Private>) {
        if let Some(private) = private {
            self.disk.remove_private(&private);
            self.disk.remove_old(id);
        }
        if let Err(error) = self.disk.journal().done(id) {
            log::warn!("cannot write the journal: {error}");
        }
    }

    fn rewrite(&self, file: &File, record: Record) {
        let written = self
            .disk
            .sync_private(file)
            .and_then(|()| self.disk.journal().put(record, Durable::Yes));
        if let Err(error) = written {
            log::warn!("cannot write the journal: {error}");
        }
    }
}

/// How the content of an earlier run is to be stored.
fn plan_of(record: &Record) -> StorePlan {
    StorePlan {
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
        keep_as: None,
        tag: record.tag(),
    }
}
