//! Listings: read while they arrive, so that the memory they take is that of their names.

use crate::path::RemotePath;
use crate::remote::Error;
use crate::remote::Result;
use crate::shell::Lent;
use crate::shell::answer;
use crate::shell::answer::NoListing;
use crate::shell::answer::ParsedListing;
use crate::shell::lane;
use crate::shell::outcome::surprise;
use crate::shell::tools::Flavour;
use crate::shell::transfer::lost;

const ACT: &str = "list";

/// How long what `ls` prints, three times, and the path may be for each name.
const MAX_LS_BYTES: usize = 640;

/// Sends the line that lists `path`, which is called `top` on the host, and returns the status and
/// what was listed.
pub(super) fn list(
    mut lane: Lent,
    line: &[u8],
    flavour: Flavour,
    path: &RemotePath,
    top: &[u8],
    max_names: usize,
) -> Result<(u32, ParsedListing)> {
    let too_many = || Error::TooManyNames {
        path: path.clone(),
        max_names,
    };
    let mark = lane.listing_mark().to_vec();
    if flavour == Flavour::Ls {
        let max = max_names.saturating_mul(MAX_LS_BYTES);
        let answer = lane.request_long(line, max).map_err(|error| match error {
            lane::Error::TooLong { .. } => too_many(),
            error => lost(ACT, error),
        })?;
        drop(lane);
        return match answer::ls::parse_listing_within(&answer.body, &mark, top, max_names) {
            Ok(parsed) => Ok((answer.status, parsed)),
            Err(NoListing::TooManyNames) => Err(too_many()),
            Err(NoListing::Nonsense) => Err(surprise(ACT, &answer.body)),
        };
    }
    let mut parsed = ParsedListing::new(max_names);
    let mut failure = None;
    let mut take = |bytes: &[u8]| {
        let taken = if flavour == Flavour::Gnu {
            answer::stat::take_gnu_records(bytes, &mut parsed)
        } else {
            answer::stat::take_marked_records(bytes, &mark, top, &mut parsed)
        };
        taken
            .map_err(|why| failure = Some((why, surprise(ACT, bytes))))
            .ok()
    };
    let answer = lane.request_records(line, &mut take);
    match failure {
        Some((NoListing::TooManyNames, _)) => return Err(too_many()),
        Some((NoListing::Nonsense, error)) => return Err(error),
        None => {}
    }
    let answer = answer.map_err(|error| lost(ACT, error))?;
    drop(lane);
    let parsed = if flavour == Flavour::Gnu {
        answer::stat::end_gnu_listing(&answer.body, parsed)
    } else {
        answer::stat::end_marked_listing(&answer.body, &mark, parsed)
    };
    let parsed = parsed.ok_or_else(|| surprise(ACT, &answer.body))?;
    Ok((answer.status, parsed))
}
