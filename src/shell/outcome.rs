//! What an answer means: attributes, or why not; pure.

use crate::path::Excerpt;
use crate::path::MAX_EXCERPT;
use crate::path::RemotePath;
use crate::remote::Changed;
use crate::remote::Error;
use crate::remote::Outcome;
use crate::remote::Owner;
use crate::remote::Reason;
use crate::remote::Result;
use crate::remote::UploadSpec;
use crate::remote::Uploaded;
use crate::shell::answer;
use crate::shell::lane::Answer;
use crate::shell::status;
use crate::stat::Stat;

/// BusyBox says of a name that a directory has taken only that it is one.
pub(super) fn taken(error: Error) -> Error {
    match error {
        Error::Refused {
            act,
            path,
            reason: Reason::IsADirectory,
            text,
        } => Error::Refused {
            act,
            path,
            reason: Reason::Exists,
            text,
        },
        error => error,
    }
}

pub(super) fn owner_text(owner: Option<Owner>) -> String {
    owner.map_or_else(String::new, |Owner { uid, gid }| format!("{uid}:{gid}"))
}

pub(super) fn refused(act: &'static str, path: &RemotePath, reason: Reason, text: &[u8]) -> Error {
    let text = text.iter().copied().take(MAX_EXCERPT).collect();
    Error::Refused {
        act,
        path: path.clone(),
        reason,
        text,
    }
}

pub(super) fn surprise(act: &'static str, body: &[u8]) -> Error {
    Error::UnexpectedReply {
        act,
        detail: format!("`{}`", Excerpt(body)),
    }
}

/// Turns a status into an error.
pub(super) fn check(act: &'static str, path: &RemotePath, answer: &Answer) -> Result<()> {
    let reason = match answer.status {
        0 => return Ok(()),
        status::EXISTS => Reason::Exists,
        // POSIX shells: 126 is not executable, 127 not found.
        126 | 127 => Reason::NoProgram,
        _ => crate::remote::reason_of(&answer.body),
    };
    Err(refused(act, path, reason, &answer.body))
}

pub(super) fn fetch_refused(path: &RemotePath, text: &[u8], answer: &Answer) -> Error {
    let reason = match answer.status {
        127 => Reason::NoProgram,
        _ => crate::remote::reason_of(text),
    };
    refused("fetch", path, reason, text)
}

pub(super) fn one_stat(act: &'static str, body: &[u8]) -> Result<Stat> {
    stats(body, 1)
        .and_then(|stats| stats.first().copied())
        .ok_or_else(|| surprise(act, body))
}

/// The last `n` lines of an answer as attributes; a program may have warned before them.
pub(super) fn stats(body: &[u8], n: usize) -> Option<Vec<Stat>> {
    let stats = answer::stat::parse_stats(body)?;
    (stats.len() == n).then_some(stats)
}

pub(super) fn pair(stats: Option<Vec<Stat>>) -> Changed {
    let mut stats = stats.into_iter().flatten();
    Changed {
        stat: stats.next(),
        parent: stats.next(),
    }
}

/// Returns the outcome that a status means for an upload; `None` if it failed.
pub(super) fn outcome(status: u32) -> Option<Outcome> {
    Some(match status {
        0 | status::TIMES_NOT_SET | status::TEMP_NOT_REMOVED => Outcome::AsPlanned,
        status::MADE_CONFLICT_COPY => Outcome::ConflictCopy,
        status::RECREATED => Outcome::Recreated,
        status::SAME_CONTENT => Outcome::Same,
        _ => return None,
    })
}

/// Returns what an upload that succeeded left. The attributes are those of what was sent; if they are
/// not, somebody else has written to the file since, and they are left out.
pub(super) fn uploaded(outcome: Outcome, plan: &UploadSpec, answer: &Answer) -> Uploaded {
    let Changed { stat, parent } = pair(stats(&answer.body, 2));
    let is_what_was_sent = |stat: &Stat| {
        stat.size == plan.size
            && (plan.mtime.matches_reported(stat.mtime)
                || outcome == Outcome::Same
                || matches!(
                    answer.status,
                    status::TIMES_NOT_SET | status::TEMP_NOT_REMOVED
                ))
    };
    Uploaded {
        stat: stat.filter(is_what_was_sent),
        is_overtaken: stat.is_some_and(|stat| !is_what_was_sent(&stat)),
        parent,
        outcome,
    }
}

/// Returns the error of an upload that failed; `text` is what a program complained of.
pub(super) fn upload_failed(path: &RemotePath, status: u32, text: Vec<u8>) -> Error {
    const ACT: &str = "upload";
    let path = path.clone();
    match status {
        status::CONFLICT => Error::Conflict { act: ACT, path },
        status::PARTIAL => Error::Partial {
            act: ACT,
            path,
            reason: crate::remote::reason_of(&text),
            text,
        },
        status::NO_TEMP => Error::NoTemp { act: ACT, path },
        status::INCOMPLETE => Error::UnexpectedReply {
            act: ACT,
            detail: "a piece of the file is missing".to_owned(),
        },
        status::FILE_REPLACED => Error::UnexpectedReply {
            act: ACT,
            detail: "the name does not lead to what was sent; somebody else may have changed it"
                .to_owned(),
        },
        status => {
            let answer = Answer { status, body: text };
            match check(ACT, &path, &answer) {
                Err(error) => error,
                Ok(()) => surprise(ACT, &answer.body),
            }
        }
    }
}

pub(super) fn parent_only(stats: Option<Vec<Stat>>) -> Changed {
    Changed {
        stat: None,
        parent: pair(stats).stat,
    }
}
