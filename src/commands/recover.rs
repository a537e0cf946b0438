//! `scpfs recover`: lists, saves and discards content that is not uploaded, without a connection.

use std::io;
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;

use crate::cache::Id;
use crate::cache::Phase;
use crate::cache::leftovers;
use crate::cache::leftovers::CacheDir;
use crate::cache::leftovers::Leftover;
use crate::config;
use crate::config::RecoverAction;
use crate::control::show;
use crate::exit_code::ExitCode;
use crate::path::Escaped;

/// Why `recover` failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Leftovers(#[from] leftovers::Error),
    #[error("no content has the id {0}; `scpfs recover` lists the ids")]
    Unknown(String),
    #[error("several ids begin with {0}; give more digits")]
    Ambiguous(String),
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
}

/// Lists, saves or discards content as `task` says.
///
/// # Errors
/// The cache cannot be read or changed, an id is unknown or ambiguous, or the output cannot be
/// written. An unknown id fails before anything is saved or discarded.
pub fn run(task: &config::Recover, out: &mut dyn Write) -> Result<ExitCode, Error> {
    let shelves = leftovers::find(&task.base)?;
    match &task.action {
        RecoverAction::List => list(&shelves, out)?,
        RecoverAction::Save { dir, ids } => {
            for (_, leftover) in chosen(&shelves, ids)? {
                let path = leftover.save(dir)?;
                writeln!(
                    out,
                    "{} is saved as {}",
                    leftover.id,
                    Escaped(path.as_os_str().as_bytes())
                )?;
            }
        }
        RecoverAction::Discard { ids } => {
            // `chosen` has checked all ids before the first content is discarded.
            for (shelf, leftover) in chosen(&shelves, ids)? {
                shelf.discard(leftover)?;
                writeln!(out, "{} is discarded", leftover.id)?;
            }
        }
    }
    Ok(ExitCode::Success)
}

/// Returns the content with these ids or prefixes of ids; all content if `ids` is empty.
///
/// # Errors
/// An id is unknown or ambiguous.
fn chosen<'a>(
    shelves: &'a [CacheDir],
    ids: &[String],
) -> Result<Vec<(&'a CacheDir, &'a Leftover)>, Error> {
    let all = || {
        shelves
            .iter()
            .flat_map(|shelf| shelf.leftovers.iter().map(move |left| (shelf, left)))
    };
    if ids.is_empty() {
        return Ok(all().collect());
    }
    let mut chosen = Vec::new();
    for id in ids {
        let is_it = |given: &Id| given.to_string().starts_with(&id.to_ascii_lowercase());
        let mut found = all().filter(|(_, left)| is_it(&left.id));
        let first = found.next().ok_or_else(|| Error::Unknown(id.clone()))?;
        if found.next().is_some() {
            return Err(Error::Ambiguous(id.clone()));
        }
        chosen.push(first);
    }
    Ok(chosen)
}

fn list(shelves: &[CacheDir], out: &mut dyn Write) -> io::Result<()> {
    if shelves.is_empty() {
        return writeln!(out, "nothing is left: every file is uploaded");
    }
    for shelf in shelves {
        let note = if shelf.is_in_use {
            " (mounted; see `scpfs status`)"
        } else {
            ""
        };
        let key = shelf.host_key.as_ref();
        let key = key.map_or_else(String::new, |key| format!(", host key {key}"));
        writeln!(out, "{}{key}{note}", shelf.source)?;
        for leftover in &shelf.leftovers {
            write!(
                out,
                "  {}  {:>10}  ",
                leftover.id,
                show::size(leftover.size)
            )?;
            match &leftover.record {
                None => writeln!(out, "the journal has no record of it")?,
                Some(record) => writeln!(
                    out,
                    "{}  {}: {}",
                    show::date(record.since),
                    record.path,
                    describe(record.phase, &record.why)
                )?,
            }
        }
        if shelf.n_damaged > 0 {
            writeln!(out, "  {} damaged records of the journal", shelf.n_damaged)?;
        }
    }
    writeln!(
        out,
        "\nThe next mount uploads what it can. `scpfs recover --save DIR` copies the content to a\n\
         directory; `scpfs recover --discard ID` deletes one."
    )
}

fn describe(phase: Phase, why: &str) -> String {
    let state = match phase {
        Phase::Open => "being written",
        Phase::Closed | Phase::Persisted | Phase::MaybePartial => "to be uploaded",
        Phase::NeedsDecision => "kept",
    };
    if why.is_empty() {
        state.to_owned()
    } else {
        format!("{state}, {why}")
    }
}
