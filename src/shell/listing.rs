//! Listings of one directory, parsed while they arrive, so that they need no more memory than their
//! names; and listings of trees, whose length and time are bounded.

use std::time::Duration;

use crate::path::Excerpt;
use crate::path::RemotePath;
use crate::pool::Purpose;
use crate::remote::Error;
use crate::remote::KnownDirectory;
use crate::remote::Listing;
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
use crate::stat::FileKind;
use crate::stat::Stat;

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

/// How long the listing of a tree may take. `find` may come to a filesystem that does not answer, and
/// that the program would never look at.
const MAX_TIME: Duration = Duration::from_secs(3);

/// POSIX xargs: a program that it started has failed with a status from 1 to 125.
const XARGS_FAILED: u32 = 123;
/// The same of the xargs of FreeBSD, by its manual.
const XARGS_FAILED_BSD: u32 = 1;

impl Shell {
    /// Implements [`crate::remote::Remote::list_trees`].
    pub(super) fn list_directories(
        &self,
        roots: &[KnownDirectory],
        max_names: usize,
    ) -> Result<Vec<SubListing>> {
        if self.tools.userland == Userland::Ls {
            return self.list_each(roots, max_names);
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
            .request_within(&line.finish(), max_answer, MAX_TIME)
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
        let is_only_missing = matches!(answer.status, XARGS_FAILED | XARGS_FAILED_BSD)
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

/// Without `stat`, so many directories are listed by one request, of so many names at most each.
const MAX_DIRECTORIES: usize = 16;
const MAX_SMALL: usize = 500;
const MAX_ANSWER: usize = 1 << 20;

impl Shell {
    /// Lists directories one after the other, with requests that are sent at once; not those below
    /// them. Leaves out large ones.
    fn list_each(&self, roots: &[KnownDirectory], max_names: usize) -> Result<Vec<SubListing>> {
        let roots = &roots[..roots.len().min(MAX_DIRECTORIES)];
        let failed = |error| request_failed(ACT, error);
        let max_small = max_names.min(MAX_SMALL);
        let mut lines = Vec::new();
        for root in roots {
            let line = Line::new(&format!("list_small_directory {max_small}"));
            lines.extend(line.arg(&self.absolute(&root.path)).finish());
        }
        let request = self.temporaries.begin_request();
        let mut resident = self.pool.lend(Purpose::Metadata, ACT)?;
        let mark = resident.listing_mark().to_vec();
        let since = self.pool.tick();
        resident.send(&lines).map_err(failed)?;
        let mut listings = Vec::new();
        for (n, root) in roots.iter().enumerate() {
            let left = MAX_TIME.saturating_sub(self.pool.tick().since(since));
            let is_last = n + 1 == roots.len();
            let answer = resident
                .answer_within(MAX_ANSWER, left, is_last)
                .map_err(failed)?;
            if answer.status != 0 {
                continue;
            }
            let top = self.absolute(&root.path);
            let parsed = answer::ls::parse_listing_within(&answer.body, &mark, &top, max_small);
            let Ok(parsed) = parsed else {
                continue;
            };
            let is_complete = parsed.ambiguous.is_empty()
                && answer::first_serious_error(&parsed.error_text).is_none();
            let is_it = |top: &Stat| top.kind == FileKind::Directory && top.id == Some(root.id);
            if let Some(directory) = parsed.top.filter(is_it)
                && is_complete
            {
                let hidden = request.hidden_in(&root.path);
                let mut entries = parsed.entries;
                entries.retain(|it| !hidden.contains(&it.name));
                listings.push(SubListing {
                    path: root.path.clone(),
                    listing: Listing { directory, entries },
                });
            }
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
