//! Drives `scp::Sink` and `scp::Source` over a lane, whose shell runs scp among other things.

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
use crate::shell::lane;
use crate::shell::lane::Answer;
use crate::shell::lane::Lane;
use crate::ssh;
use crate::stat::Time;

/// The name in the C record. A sink whose target is one explicit path does not look at it; no
/// name of the user's ever gets into a record.
const RECORD_NAME: &[u8] = b"scpfs";

/// How a fetch ended.
#[derive(Debug)]
pub(crate) enum Fetch {
    /// The content is complete.
    Complete { size: u64, answer: Answer },
    /// The host sent no content, or content that does not count; its words.
    Refused { text: Vec<u8>, answer: Answer },
}

/// Sends `line`, which runs `scp -p -f` for one file, and takes the file: one round trip, because
/// the source finds all its acknowledgements waiting.
pub(crate) fn fetch(
    lane: &mut Lane,
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
    // Ready, T, C, content. A source that needs fewer leaves the rest to the shell, whose `read`
    // drops NUL bytes.
    lane.send(&[line, b"\0\0\0\0"].concat())
        .map_err(|e| lost(ACT, e))?;
    let mut sink = scp::Sink::new(scp::Scope::Files(1), true);
    let mut size = 0;
    let mut outcome = None;
    while outcome.is_none() {
        if sink.is_between_records() && lane.is_at_frame() {
            outcome = Some(Err(Vec::new()));
            break;
        }
        let step = sink.step(lane.unread());
        let (used, event) = step.map_err(|source| protocol(ACT, path, source))?;
        if used == 0 && event.is_none() {
            lane.read_more()
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
        lane.consume(used);
    }
    let answer = lane.answer().map_err(|e| lost(ACT, e))?;
    Ok(match outcome {
        Some(Ok(())) => Fetch::Complete { size, answer },
        Some(Err(text)) => Fetch::Refused { text, answer },
        None => Fetch::Refused {
            text: Vec::new(),
            answer,
        },
    })
}

/// How an upload ended.
#[derive(Debug)]
pub(crate) struct Upload {
    /// What the sink refused, in its words.
    pub refused: Option<Vec<u8>>,
    /// Whether the sink has acknowledged all of it.
    pub is_acknowledged: bool,
    pub answer: Answer,
}

/// The records before the content of an upload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    /// In bytes, exactly.
    pub size: u64,
    /// The permissions that the sink sets.
    pub mode: u32,
    /// The times of modification and access that it sets.
    pub times: Option<(Time, Time)>,
}

/// Sends `line`, which runs `scp -p -t` to one explicit path, and the content: one round trip
/// for up to [`MAX_AHEAD`] bytes, two for more.
///
/// What makes it safe to send content before the C record is acknowledged: no `-r`; a target that
/// is one explicit path and no directory; a constant name in the record; and `helpers.sh` ends
/// the shell when an upload fails, so that content that is left over is never read as commands.
pub(crate) fn upload(
    lane: &mut Lane,
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
    // The target is a descriptor, or a name that nobody knew before.
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
        lane.send(&out).map_err(|e| lost(ACT, e))?;
        out.clear();
        while !source.may_send_content() && refused.is_none() && !lane.is_at_frame() {
            match next_reply(lane, &mut source, path)? {
                Some(Reply::Refused(_, text) | Reply::Fatal(text)) => refused = Some(text),
                Some(Reply::Done(_)) | None => {}
            }
        }
        if refused.is_some() || lane.is_at_frame() {
            // Nothing of the content was sent. The sink waits for records: end it.
            source.end();
            if let Err(error) = lane.send(&source.take_output()) {
                log::debug!(
                    "the host has ended the upload: {}",
                    error_chain::with_causes(&error)
                );
            }
            return finish(lane, source, path, refused);
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
            // The announced size cannot be reached: the lane is dropped and with it the transfer.
            lane.set_broken();
            return Err(local(std::io::ErrorKind::UnexpectedEof.into()));
        }
        out.extend_from_slice(&chunk[..n]);
        left -= n as u64;
        if !is_small {
            if let Err(error) = lane.send(&out) {
                return gave_up(lane, source, path, error);
            }
            out.clear();
        }
    }
    source.end_file(Ok(()));
    source.end();
    out.extend(source.take_output());
    match lane.send(&out) {
        Ok(()) => finish(lane, source, path, refused),
        Err(error) => gave_up(lane, source, path, error),
    }
}

/// Reads why a host takes no more content: one that gave up says so before it hangs up. One that did
/// not answer for a whole deadline has said nothing.
fn gave_up(
    lane: &mut Lane,
    source: scp::Source,
    path: &RemotePath,
    error: lane::Error,
) -> Result<Upload, Error> {
    const ACT: &str = "upload";
    if matches!(error, lane::Error::Transport(ssh::Error::Timeout { .. })) {
        return Err(lost(ACT, error));
    }
    finish(lane, source, path, None).map_err(|_| lost(ACT, error))
}

/// Reads the replies that are still to come, and the frame.
fn finish(
    lane: &mut Lane,
    mut source: scp::Source,
    path: &RemotePath,
    mut refused: Option<Vec<u8>>,
) -> Result<Upload, Error> {
    while !lane.is_at_frame() && source.n_awaited() > 0 {
        match next_reply(lane, &mut source, path)? {
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
    let answer = lane.answer().map_err(|e| lost("upload", e))?;
    Ok(Upload {
        is_acknowledged: source.n_awaited() == 0,
        refused,
        answer,
    })
}

fn next_reply(
    lane: &mut Lane,
    source: &mut scp::Source,
    path: &RemotePath,
) -> Result<Option<Reply>, Error> {
    if lane.unread().is_empty() {
        lane.read_more().map_err(|source| Error::OutcomeUnknown {
            act: "upload",
            source,
        })?;
        return Ok(None);
    }
    let step = source.step(lane.unread());
    let (used, reply) = step.map_err(|source| protocol("upload", path, source))?;
    lane.consume(used);
    if used == 0 {
        lane.read_more().map_err(|source| Error::OutcomeUnknown {
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

/// Says what the failure of a lane means for a request.
pub(crate) fn lost(act: &'static str, error: lane::Error) -> Error {
    match error {
        lane::Error::Transport(source) => Error::Disconnected { act, source },
        lane::Error::NoAnswer(source) => Error::OutcomeUnknown { act, source },
        other => Error::UnexpectedReply {
            act,
            detail: other.to_string(),
        },
    }
}
