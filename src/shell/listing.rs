//! Listings of one directory, parsed while they arrive, so that they need no more memory than their
//! names; and listings of trees, whose length is bounded.

use crate::path::Excerpt;
use crate::path::RemotePath;
use crate::pool::Purpose;
use crate::remote::Error;
use crate::remote::KnownDirectory;
use crate::remote::Result;
use crate::remote::SubListing;
use crate::shell::Lent;
use crate::shell::Shell;
use crate::shell::answer;
use crate::shell::answer::ListingError;
use crate::shell::answer::ParsedListing;
use crate::shell::answer::trees::ParsedTrees;
use crate::shell::answer::trees::Root;
use crate::shell::answer::trees::parse_gnu_trees;
use crate::shell::answer::trees::parse_marked_trees;
use crate::shell::outcome::unexpected_reply;
use crate::shell::quote::Line;
use crate::shell::resident;
use crate::shell::tools::Userland;
use crate::shell::transfer::request_failed;

const ACT: &str = "list";

/// The maximum number of bytes for each name, with `ls`: its path and three lines of `ls`.
const MAX_LS_BYTES: usize = 640;

/// The average number of bytes for a name in the listing of a tree: the record of GNU find, or the
/// path that is printed by any other.
const RECORD_BYTES: usize = 160;
const PATH_BYTES: usize = 80;

/// An answer may be this much longer than what was asked for: a record of `stat` is longer than the
/// path that was counted.
const MAX_OVERHEAD: usize = 8;

/// POSIX xargs: a program that it started has failed with a status from 1 to 125.
const XARGS_FAILED: u32 = 123;

impl Shell {
    /// Implements [`crate::remote::Remote::list_trees`].
    pub(super) fn list_directories(
        &self,
        roots: &[KnownDirectory],
        max_names: usize,
    ) -> Result<Vec<SubListing>> {
        if !self.facts.can_list_trees {
            return Err(Error::Unsupported {
                act: ACT,
                path: RemotePath::root(),
                why: "the host has neither the find of GNU nor stat",
            });
        }
        let is_gnu = self.tools.userland == Userland::Gnu;
        let per_name = if is_gnu { RECORD_BYTES } else { PATH_BYTES };
        let max_bytes = max_names.saturating_mul(per_name);
        let roots: Vec<Root> = roots
            .iter()
            .map(|root| Root {
                path: root.path.clone(),
                absolute: self.absolute(&root.path),
                id: root.id,
            })
            .collect();
        let line = Line::new("list_trees").raw(&max_bytes.to_string());
        let line = roots
            .iter()
            .fold(line, |line, root| line.arg(&root.absolute));
        let request = self.temporaries.begin_request();
        let mut resident = self.pool.lend(Purpose::Metadata, ACT)?;
        let mark = resident.listing_mark().to_vec();
        let max_answer = max_bytes
            .saturating_mul(MAX_OVERHEAD)
            .saturating_add(1 << 20);
        let answer = resident
            .request_long(&line.finish(), max_answer)
            .map_err(|error| request_failed(ACT, error))?;
        drop(resident);
        let parsed = if is_gnu {
            parse_gnu_trees(&answer.body, &mark, &roots)
        } else {
            parse_marked_trees(&answer.body, &mark, &roots)
        };
        let ParsedTrees {
            mut listings,
            error_text,
        } = parsed.ok_or_else(|| unexpected_reply(ACT, &answer.body))?;
        if !error_text.is_empty() {
            log::debug!("listing a tree: {}", Excerpt(&error_text));
        }
        // xargs: some `stat` has failed, because a file is gone. After any other failure, for example
        // if a program was killed, names may be missing.
        let is_only_missing = answer.status == XARGS_FAILED
            && !error_text.trim_ascii().is_empty()
            && answer::first_serious_error(&error_text).is_none();
        if answer.status != 0 && !is_only_missing {
            return Ok(Vec::new());
        }
        for SubListing { path, listing } in &mut listings {
            let hidden = request.hidden_in(path);
            listing.entries.retain(|it| !hidden.contains(&it.name));
        }
        Ok(listings)
    }
}

/// Sends the line that lists `path`, whose absolute path on the host is `top`. Returns the status
/// and the listing.
///
/// # Errors
///
/// `TooManyNames` if there are more than `max_names`.
pub(super) fn list(
    mut resident: Lent,
    line: &[u8],
    userland: Userland,
    path: &RemotePath,
    top: &[u8],
    max_names: usize,
) -> Result<(u32, ParsedListing)> {
    let too_many = || Error::TooManyNames {
        path: path.clone(),
        max_names,
    };
    let mark = resident.listing_mark().to_vec();
    if userland == Userland::Ls {
        let max = max_names.saturating_mul(MAX_LS_BYTES);
        let answer = resident
            .request_long(line, max)
            .map_err(|error| match error {
                resident::Error::TooLong { .. } => too_many(),
                error => request_failed(ACT, error),
            })?;
        drop(resident);
        return match answer::ls::parse_listing_within(&answer.body, &mark, top, max_names) {
            Ok(parsed) => Ok((answer.status, parsed)),
            Err(ListingError::TooManyNames) => Err(too_many()),
            Err(ListingError::Malformed) => Err(unexpected_reply(ACT, &answer.body)),
        };
    }
    let mut parsed = ParsedListing::new(max_names);
    let mut failure = None;
    let mut take = |bytes: &[u8]| {
        let taken = if userland == Userland::Gnu {
            answer::stat::take_gnu_records(bytes, &mut parsed)
        } else {
            answer::stat::take_marked_records(bytes, &mark, top, &mut parsed)
        };
        taken
            .map_err(|why| failure = Some((why, unexpected_reply(ACT, bytes))))
            .ok()
    };
    let answer = resident.request_records(line, &mut take);
    match failure {
        Some((ListingError::TooManyNames, _)) => return Err(too_many()),
        Some((ListingError::Malformed, error)) => return Err(error),
        None => {}
    }
    let answer = answer.map_err(|error| request_failed(ACT, error))?;
    drop(resident);
    let parsed = if userland == Userland::Gnu {
        answer::stat::end_gnu_listing(&answer.body, parsed)
    } else {
        answer::stat::end_marked_listing(&answer.body, &mark, parsed)
    };
    let parsed = parsed.ok_or_else(|| unexpected_reply(ACT, &answer.body))?;
    Ok((answer.status, parsed))
}
