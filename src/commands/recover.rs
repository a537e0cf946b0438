//! `scpfs recover`: shows, saves and discards contents that are on no host, without a connection.

use std::io;
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;

use crate::cache::Id;
use crate::cache::Phase;
use crate::cache::leftovers;
use crate::cache::leftovers::Leftover;
use crate::cache::leftovers::Shelf;
use crate::config;
use crate::config::RecoverWhat;
use crate::control::show;
use crate::exit_code::ExitCode;
use crate::path::Escaped;

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Leftovers(#[from] leftovers::Error),
    #[error("there is no content with the number {0}; `scpfs recover` lists them")]
    Unknown(String),
    #[error("more than one content has a number that begins with {0}")]
    Ambiguous(String),
    #[error("cannot write the answer")]
    Output(#[from] io::Error),
}

/// Does what was asked for; returns the status to exit with.
pub fn run(task: &config::Recover, out: &mut dyn Write) -> Result<ExitCode, Error> {
    let shelves = leftovers::find(&task.base)?;
    match &task.what {
        RecoverWhat::List => list(&shelves, out)?,
        RecoverWhat::Save { dir, ids } => {
            for (_, leftover) in chosen(&shelves, ids)? {
                let path = leftover.save(dir)?;
                writeln!(
                    out,
                    "{} is in {}",
                    leftover.id,
                    Escaped(path.as_os_str().as_bytes())
                )?;
            }
        }
        RecoverWhat::Discard { ids } => {
            // All are looked up before the first is gone.
            for (shelf, leftover) in chosen(&shelves, ids)? {
                shelf.discard(leftover)?;
                writeln!(out, "{} is gone", leftover.id)?;
            }
        }
    }
    Ok(ExitCode::Success)
}

/// The contents with these numbers, or the beginnings of them; all where there are none.
fn chosen<'a>(
    shelves: &'a [Shelf],
    ids: &[String],
) -> Result<Vec<(&'a Shelf, &'a Leftover)>, Error> {
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

fn list(shelves: &[Shelf], out: &mut dyn Write) -> io::Result<()> {
    if shelves.is_empty() {
        return writeln!(out, "nothing is left: every file is on its host");
    }
    for shelf in shelves {
        let note = if shelf.is_in_use {
            " (mounted; `scpfs status` says more)"
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
                None => writeln!(out, "nothing is known of it")?,
                Some(record) => writeln!(
                    out,
                    "{}  {}: {}",
                    show::date(record.since),
                    record.path,
                    what_about(record.phase, &record.why)
                )?,
            }
        }
        if shelf.n_damaged > 0 {
            writeln!(out, "  {} damaged lines of the journal", shelf.n_damaged)?;
        }
    }
    writeln!(
        out,
        "\nThe next mount uploads what it can. `scpfs recover --save DIR` copies contents into a\n\
         directory, `scpfs recover --discard ID` removes one for good."
    )
}

fn what_about(phase: Phase, why: &str) -> String {
    let what = match phase {
        Phase::Open => "being written",
        Phase::Closed | Phase::Synced | Phase::Begun => "to be uploaded",
        Phase::Kept => "kept",
    };
    if why.is_empty() {
        what.to_owned()
    } else {
        format!("{what}, {why}")
    }
}
