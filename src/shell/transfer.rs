//! Drives `scp::Sink` and `scp::Source` over a resident shell that runs scp.

use crate::error_chain;
use crate::path::RemotePath;
use crate::remote::Content;
use crate::remote::Error;
use crate::remote::Receiver;
use crate::scp;
use crate::scp::Event;
use crate::scp::Reply;
use crate::scp::ahead::CHUNK;
use crate::scp::ahead::MAX_AHEAD;
use crate::shell::resident;
use crate::shell::resident::Answer;
use crate::shell::resident::ResidentShell;
use crate::ssh;
use crate::stat::Time;

/// The name in the C record. A sink ignores it if its target is one explicit path. A constant, so
/// that no name from the user gets into a record.
const RECORD_NAME: &[u8] = b"scpfs";

/// The result of a fetch.
#[derive(Debug)]
pub(crate) enum Fetch {
    /// All content was received.
    Complete { size: u64, answer: Answer },
    /// The host sent no content, or invalid content; `text` is its error message.
    Refused { text: Vec<u8>, answer: Answer },
}

/// Sends `line`, which runs `scp -p -f` for one file, and receives the file: one round trip,
/// because all acknowledgements are sent ahead.
pub(crate) fn fetch(
    resident: &mut ResidentShell,
    line: &[u8],
    path: &RemotePath,
    receiver: &mut dyn Receiver,
) -> Result<Fetch, Error> {
    const ACT: &str = "fetch";
    let local = |source| Error::Local {
        act: ACT,
        path: path.clone(),
        source,
    };
    // Acknowledges start, T record, C record and content. If the source reads fewer, the shell
    // reads the rest; its `read` drops NUL bytes.
    resident
        .send(&[line, b"\0\0\0\0"].concat())
        .map_err(|e| request_failed(ACT, e))?;
    let mut sink = scp::Sink::new(scp::Scope::Files(1), true);
    let mut size = 0;
    let mut outcome = None;
    while outcome.is_none() {
        if sink.is_between_records() && resident.is_at_frame() {
            outcome = Some(Err(Vec::new()));
            break;
        }
        let step = sink.step(resident.unread());
        let (used, event) = step.map_err(|source| protocol(ACT, path, source))?;
        if used == 0 && event.is_none() {
            resident
                .read_more()
                .map_err(|source| Error::OutcomeUnknown { act: ACT, source })?;
            continue;
        }
        match event {
            Some(Event::File {
                size: announced, ..
            }) => {
                size = announced;
                receiver.begin(size).map_err(local)?;
                sink.accept();
            }
            Some(Event::Data(data)) => receiver.data(data).map_err(local)?,
            Some(Event::FileEnd(end)) => outcome = Some(end),
            Some(Event::Warning(text) | Event::Fatal(text)) => outcome = Some(Err(text)),
            Some(Event::Directory { .. } | Event::DirectoryEnd) | None => {}
        }
        resident.consume(used);
    }
    let answer = resident.read_answer().map_err(|e| request_failed(ACT, e))?;
    Ok(match outcome {
        Some(Ok(())) => Fetch::Complete { size, answer },
        Some(Err(text)) => Fetch::Refused { text, answer },
        None => Fetch::Refused {
            text: Vec::new(),
            answer,
        },
    })
}

/// The result of an upload.
#[derive(Debug)]
pub(crate) struct Upload {
    /// The error message of the sink.
    pub refused: Option<Vec<u8>>,
    /// Whether the sink has acknowledged all records and the content.
    pub is_acknowledged: bool,
    pub answer: Answer,
}

/// The records that precede the content of an upload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    /// Size in bytes.
    pub size: u64,
    /// The permissions that the sink sets.
    pub mode: u32,
    /// The mtime and atime that the sink sets.
    pub times: Option<(Time, Time)>,
}

/// Sends `line`, which runs `scp -p -t` for one explicit path, and the content: one round trip for
/// at most [`MAX_AHEAD`] bytes, two for more.
///
/// It is safe to send content before the C record is acknowledged, because there is no `-r`; the
/// target is one explicit path and no directory; the name in the record is constant; and after a
/// failed upload `content.sh` ends the shell, which therefore never reads content as commands.
pub(crate) fn upload(
    resident: &mut ResidentShell,
    line: &[u8],
    path: &RemotePath,
    content: &dyn Content,
    head: &Head,
) -> Result<Upload, Error> {
    const ACT: &str = "upload";
    let local = |source| Error::Local {
        act: ACT,
        path: path.clone(),
        source,
    };
    // The target is an open descriptor, or a new name that no other user could predict.
    let is_small = head.size <= MAX_AHEAD;
    let pipelining = if is_small {
        scp::Pipelining::ToOneFile
    } else {
        scp::Pipelining::Never
    };
    let mut source = scp::Source::new(pipelining);
    if let Some((mtime, atime)) = head.times {
        source.times(mtime, atime);
    }
    source.file(head.mode, head.size, RECORD_NAME);
    let mut out = line.to_vec();
    out.extend(source.take_output());
    let mut refused = None;
    if !is_small {
        resident.send(&out).map_err(|e| request_failed(ACT, e))?;
        out.clear();
        while !source.may_send_content() && refused.is_none() && !resident.is_at_frame() {
            match next_reply(resident, &mut source, path)? {
                Some(Reply::Refused(_, text) | Reply::Fatal(text)) => refused = Some(text),
                Some(Reply::Done(_)) | None => {}
            }
        }
        if refused.is_some() || resident.is_at_frame() {
            // No content was sent. The sink waits for a record: the E record ends it.
            source.end();
            if let Err(error) = resident.send(&source.take_output()) {
                log::debug!(
                    "the host has ended the upload: {}",
                    error_chain::with_causes(&error)
                );
            }
            return finish(resident, source, path, refused);
        }
    }
    let mut chunk = vec![0; CHUNK.min(usize::try_from(head.size).unwrap_or(CHUNK))];
    let mut left = head.size;
    while left > 0 {
        let want = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = content
            .read_at(&mut chunk[..want], head.size - left)
            .map_err(local)?;
        if n == 0 || !source.content(n as u64) {
            // The content is shorter than announced: dropping the connection ends the transfer.
            resident.set_broken();
            return Err(local(std::io::ErrorKind::UnexpectedEof.into()));
        }
        out.extend_from_slice(&chunk[..n]);
        left -= n as u64;
        if !is_small {
            if let Err(error) = resident.send(&out) {
                return read_refusal(resident, source, path, error);
            }
            out.clear();
        }
    }
    source.end_file(Ok(()));
    source.end();
    out.extend(source.take_output());
    match resident.send(&out) {
        Ok(()) => finish(resident, source, path, refused),
        Err(error) => read_refusal(resident, source, path, error),
    }
}

/// Reads the reason why a host accepts no more content: it sends one before it closes the channel.
/// After a timeout there is no reason to read.
fn read_refusal(
    resident: &mut ResidentShell,
    source: scp::Source,
    path: &RemotePath,
    error: resident::Error,
) -> Result<Upload, Error> {
    const ACT: &str = "upload";
    if matches!(
        error,
        resident::Error::Transport(ssh::Error::Timeout { .. })
    ) {
        return Err(request_failed(ACT, error));
    }
    finish(resident, source, path, None).map_err(|_| request_failed(ACT, error))
}

/// Reads the outstanding replies, then the answer.
fn finish(
    resident: &mut ResidentShell,
    mut source: scp::Source,
    path: &RemotePath,
    mut refused: Option<Vec<u8>>,
) -> Result<Upload, Error> {
    while !resident.is_at_frame() && source.n_awaited() > 0 {
        match next_reply(resident, &mut source, path)? {
            Some(Reply::Refused(_, text)) => {
                refused.get_or_insert(text);
            }
            Some(Reply::Fatal(text)) => {
                refused.get_or_insert(text);
                break;
            }
            Some(Reply::Done(_)) | None => {}
        }
    }
    let answer = resident
        .read_answer()
        .map_err(|e| request_failed("upload", e))?;
    Ok(Upload {
        is_acknowledged: source.n_awaited() == 0,
        refused,
        answer,
    })
}

/// Reads one reply of the sink; `None` if it is not complete yet.
fn next_reply(
    resident: &mut ResidentShell,
    source: &mut scp::Source,
    path: &RemotePath,
) -> Result<Option<Reply>, Error> {
    if resident.unread().is_empty() {
        resident
            .read_more()
            .map_err(|source| Error::OutcomeUnknown {
                act: "upload",
                source,
            })?;
        return Ok(None);
    }
    let step = source.step(resident.unread());
    let (used, reply) = step.map_err(|source| protocol("upload", path, source))?;
    resident.consume(used);
    if used == 0 {
        resident
            .read_more()
            .map_err(|source| Error::OutcomeUnknown {
                act: "upload",
                source,
            })?;
    }
    Ok(reply)
}

fn protocol(act: &'static str, path: &RemotePath, source: scp::ParseError) -> Error {
    Error::Protocol {
        act,
        path: path.clone(),
        source,
    }
}

/// Converts an error of a resident shell into one of a request.
pub(crate) fn request_failed(act: &'static str, error: resident::Error) -> Error {
    match error {
        resident::Error::Transport(source) => Error::Disconnected { act, source },
        resident::Error::NoAnswer(source) => Error::OutcomeUnknown { act, source },
        other => Error::UnexpectedReply {
            act,
            detail: other.to_string(),
        },
    }
}
