//! Turns an answer into attributes or an error; pure.

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
use crate::shell::resident::Answer;
use crate::shell::status;
use crate::stat::Stat;

/// Changes "is a directory" to "exists": BusyBox reports the former if the new name is that of a
/// directory.
pub(super) fn directory_means_exists(error: Error) -> Error {
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

/// Returns `UID:GID` for the helper functions; empty for no owner.
pub(super) fn owner_text(owner: Option<Owner>) -> String {
    owner.map_or_else(String::new, |Owner { uid, gid }| format!("{uid}:{gid}"))
}

/// Returns the error of a request that the host refused with the error message `text`.
pub(super) fn refused(act: &'static str, path: &RemotePath, reason: Reason, text: &[u8]) -> Error {
    let text = text.iter().copied().take(MAX_EXCERPT).collect();
    Error::Refused {
        act,
        path: path.clone(),
        reason,
        text,
    }
}

/// Returns the error of an answer that breaks the protocol.
pub(super) fn unexpected_reply(act: &'static str, body: &[u8]) -> Error {
    Error::UnexpectedReply {
        act,
        detail: format!("`{}`", Excerpt(body)),
    }
}

/// Returns the error that a status other than 0 means.
pub(super) fn check(act: &'static str, path: &RemotePath, answer: &Answer) -> Result<()> {
    let reason = match answer.status {
        0 => return Ok(()),
        status::EXISTS => Reason::Exists,
        // POSIX shells: 126 means not executable, 127 not found.
        126 | 127 => Reason::NoProgram,
        _ => crate::remote::reason_of(&answer.body),
    };
    Err(refused(act, path, reason, &answer.body))
}

/// Returns the error of a fetch that the host refused.
pub(super) fn fetch_refused(path: &RemotePath, text: &[u8], answer: &Answer) -> Error {
    let reason = match answer.status {
        127 => Reason::NoProgram,
        _ => crate::remote::reason_of(text),
    };
    refused("fetch", path, reason, text)
}

/// Parses an answer as the attributes of one file.
pub(super) fn one_stat(act: &'static str, body: &[u8]) -> Result<Stat> {
    stats(body, 1)
        .and_then(|stats| stats.first().copied())
        .ok_or_else(|| unexpected_reply(act, body))
}

/// Parses an answer as the attributes of exactly `n` files.
pub(super) fn stats(body: &[u8], n: usize) -> Option<Vec<Stat>> {
    let stats = answer::stat::parse_stats(body)?;
    (stats.len() == n).then_some(stats)
}

/// Takes the attributes of a file and of its parent directory, in this order.
pub(super) fn changed(stats: Option<Vec<Stat>>) -> Changed {
    let mut stats = stats.into_iter().flatten();
    Changed {
        stat: stats.next(),
        parent: stats.next(),
    }
}

/// Returns the outcome of a successful upload; `None` for the status of a failed one.
pub(super) fn outcome(status: u32) -> Option<Outcome> {
    Some(match status {
        0 | status::TIMES_NOT_SET | status::TEMP_NOT_REMOVED => Outcome::AsPlanned,
        status::MADE_CONFLICT_COPY => Outcome::ConflictCopy,
        status::RECREATED => Outcome::Recreated,
        status::SAME_CONTENT => Outcome::Same,
        _ => return None,
    })
}

/// Returns the result of a successful upload. If the attributes are not those of the content that
/// was sent, somebody else has written to the file since; then they are left out.
pub(super) fn uploaded(outcome: Outcome, spec: &UploadSpec, answer: &Answer) -> Uploaded {
    let Changed { stat, parent } = changed(stats(&answer.body, 2));
    let is_what_was_sent = |stat: &Stat| {
        stat.size == spec.size
            && (spec.mtime.matches_reported(stat.mtime)
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

/// Returns the error of a failed upload; `text` is the error message of a program.
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
            detail: "the temporary file is gone or incomplete".to_owned(),
        },
        status::FILE_REPLACED => Error::UnexpectedReply {
            act: ACT,
            detail: "somebody else has replaced the file during the upload".to_owned(),
        },
        status => {
            let answer = Answer { status, body: text };
            match check(ACT, &path, &answer) {
                Err(error) => error,
                Ok(()) => unexpected_reply(ACT, &answer.body),
            }
        }
    }
}

/// Takes the attributes of the parent directory.
pub(super) fn only_parent(stats: Option<Vec<Stat>>) -> Changed {
    Changed {
        stat: None,
        parent: changed(stats).stat,
    }
}
