//! Listings, parsed while they arrive, so that they need no more memory than their names.

use crate::path::RemotePath;
use crate::remote::Error;
use crate::remote::Result;
use crate::shell::Lent;
use crate::shell::answer;
use crate::shell::answer::ListingError;
use crate::shell::answer::ParsedListing;
use crate::shell::outcome::unexpected_reply;
use crate::shell::resident;
use crate::shell::tools::Userland;
use crate::shell::transfer::request_failed;

const ACT: &str = "list";

/// The maximum number of bytes for each name, with `ls`: its path and three lines of `ls`.
const MAX_LS_BYTES: usize = 640;

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
