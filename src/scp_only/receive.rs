//! Drives `scp::Sink` over a command: receives attributes and content.

use crate::path::MAX_EXCERPT;
use crate::path::RemotePath;
use crate::remote::Error;
use crate::remote::Reason;
use crate::remote::Receiver;
use crate::remote::Result;
use crate::remote::reason_of;
use crate::scp;
use crate::scp::Event;
use crate::scp_only::connection::Command;
use crate::scp_only::quirks::Acks;
use crate::scp_only::quirks::Quirks;
use crate::ssh;
use crate::stat::FileKind;
use crate::stat::Time;

/// The replies that refuse an entry: an ack for its T record, an error for its C or D record.
pub(super) const REFUSED_ENTRY: &[u8] = b"\0\x01\n";

/// The attributes in the records of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: FileKind,
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) mtime: Time,
    pub(super) atime: Time,
}

impl Header {
    pub(super) fn new(kind: FileKind, mode: u32, size: u64, times: Option<(Time, Time)>) -> Self {
        let (mtime, atime) = times.unwrap_or_default();
        Self {
            kind,
            mode,
            size,
            mtime,
            atime,
        }
    }
}

/// Sends pending acks if they go in turn, and reads more output if none is left. Returns false at
/// the end of the output.
pub(super) fn send_acks_and_read(
    command: &mut Command,
    sink: &mut scp::Sink,
    acks: Acks,
    act: &'static str,
) -> Result<bool> {
    let out = sink.take_output();
    if acks == Acks::InTurn {
        command.send(&out).map_err(|e| unknown_outcome(act, e))?;
    }
    if command.unread().is_empty() {
        return command.read_more().map_err(|e| unknown_outcome(act, e));
    }
    Ok(true)
}

/// Ends a command whose output is no longer needed. A command that has all its acks ends by itself.
/// One that waits for an ack gets none: nothing is lost by closing its channel.
pub(super) fn end_command(command: Command, acks: Acks) {
    match acks {
        Acks::Ahead => command.wait_for_end(),
        Acks::InTurn => command.abandon(),
    }
}

pub(super) fn unknown_outcome(act: &'static str, source: ssh::Error) -> Error {
    Error::OutcomeUnknown { act, source }
}

/// The request that an error is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) act: &'static str,
    pub(super) path: &'a RemotePath,
}

impl Request<'_> {
    pub(super) fn refused(self, reason: Reason, text: &[u8]) -> Error {
        Error::Refused {
            act: self.act,
            path: self.path.clone(),
            reason,
            text: text.iter().copied().take(MAX_EXCERPT).collect(),
        }
    }

    /// Returns the error for output that is not SCP. Noise of a login script cannot be told from
    /// the server's own output.
    pub(super) fn protocol(self, source: scp::ParseError) -> Error {
        Error::Protocol {
            act: self.act,
            path: self.path.clone(),
            source,
        }
    }

    pub(super) fn refused_with(self, text: &[u8], not_regular: Reason) -> Error {
        self.refused(reason_for(text, not_regular), text)
    }

    /// Returns the error for a command that ended without output.
    pub(super) fn ended_without_output(self, command: Command) -> Error {
        // POSIX shells exit with 127 if the command is not found.
        if command.finish() == Some(127) {
            return self.refused(Reason::NoProgram, b"");
        }
        Error::UnexpectedReply {
            act: self.act,
            detail: "scp ended without output".to_owned(),
        }
    }
}

/// Classifies the error message of a source or sink: `scp: PATH: REASON`, or `scp: REASON: PATH`
/// from asyncssh. `not_regular` is the reason for something that is neither a file nor a directory.
pub(super) fn reason_for(text: &[u8], not_regular: Reason) -> Reason {
    let has = |needle: &[u8]| memchr::memmem::find(text, needle).is_some();
    // Without the first letter, which may be upper or lower case.
    if has(b"ot a regular file") {
        return not_regular;
    }
    let reason = match reason_of(text) {
        Reason::Other => {
            let parts = text.strip_prefix(b"scp: ").unwrap_or(text);
            let end = memchr::memmem::find(parts, b": ").unwrap_or(parts.len());
            reason_of(parts.get(..end).unwrap_or_default())
        }
        reason => reason,
    };
    match reason {
        // dropbear's scp (scp.c source()).
        Reason::Other if has(b"filename contains a newline") => Reason::NotSupported,
        // Messages of servers that are not written in C.
        Reason::Other if has(b"not found") || has(b"o such file") || has(b"not exist") => {
            Reason::NotFound
        }
        // "No such device or address": a socket.
        Reason::NoSuchDevice => not_regular,
        reason => reason,
    }
}

/// Reads the rest of an error message about this path after its first line. Names are not escaped
/// in messages, so a message has as many newlines as the path.
fn read_whole_message(
    command: &mut Command,
    first: Vec<u8>,
    request: Request<'_>,
) -> Result<Vec<u8>> {
    let mut text = first;
    let mut n_left = memchr::memchr_iter(b'\n', request.path.as_bytes()).count();
    if n_left > 0 {
        text.push(b'\n');
    }
    while n_left > 0 {
        if command.unread().is_empty()
            && !command
                .read_more()
                .map_err(|e| unknown_outcome(request.act, e))?
        {
            break;
        }
        let unread = command.unread();
        let newline = memchr::memchr(b'\n', unread);
        let used = newline.map_or(unread.len(), |at| at + 1);
        text.extend(unread.iter().take(used));
        n_left -= usize::from(newline.is_some());
        command.consume(used);
    }
    Ok(text)
}

/// Returns the header of a path: runs `scp -p -r -f` and refuses content and entries.
pub(super) fn stat(mut command: Command, quirks: &Quirks, request: Request<'_>) -> Result<Header> {
    let acks = quirks.acks;
    let mut sink = scp::Sink::new(scp::Scope::Tree, quirks.has_times);
    if acks == Acks::Ahead {
        let ahead = [b"\0", REFUSED_ENTRY].concat();
        command
            .send(&ahead)
            .map_err(|e| unknown_outcome(request.act, e))?;
    }
    while send_acks_and_read(&mut command, &mut sink, acks, request.act)? {
        let step = sink.step(command.unread());
        let (used, event) = step.map_err(|source| request.protocol(source))?;
        let header = match event {
            Some(Event::File {
                mode, size, times, ..
            }) => Some(Header::new(FileKind::File, mode, size, times)),
            Some(Event::Directory { mode, times, .. }) => {
                Some(Header::new(FileKind::Directory, mode, 0, times))
            }
            Some(Event::Warning(text) | Event::Fatal(text)) => {
                command.consume(used);
                let text = read_whole_message(&mut command, text, request)?;
                end_command(command, acks);
                return Err(request.refused_with(&text, Reason::NotSupported));
            }
            Some(Event::Data(_) | Event::FileEnd(_) | Event::DirectoryEnd) => {
                return Err(request.protocol(scp::ParseError::UnexpectedEnd));
            }
            None => None,
        };
        command.consume(used);
        if let Some(header) = header {
            end_command(command, acks);
            return Ok(header);
        }
    }
    sink.end().map_err(|source| request.protocol(source))?;
    Err(request.ended_without_output(command))
}

/// How a fetch ended.
#[derive(Debug)]
pub(super) enum Fetch {
    Complete(Header),
    /// No content came, or the source reported an error after it.
    Refused(Vec<u8>),
}

/// Fetches one file with `scp -p -f`. Sends the acks ahead if that is safe, so that it takes one
/// round trip.
pub(super) fn fetch(
    mut command: Command,
    quirks: &Quirks,
    request: Request<'_>,
    receiver: &mut dyn Receiver,
) -> Result<Fetch> {
    let local = |source| Error::Local {
        act: request.act,
        path: request.path.clone(),
        source,
    };
    let acks = quirks.acks;
    let mut sink = scp::Sink::new(scp::Scope::Files(1), quirks.has_times);
    if acks == Acks::Ahead {
        // Ready, T, C, content.
        command
            .send(b"\0\0\0\0")
            .map_err(|e| unknown_outcome(request.act, e))?;
    }
    let mut header = None;
    let mut outcome = None;
    while outcome.is_none() && send_acks_and_read(&mut command, &mut sink, acks, request.act)? {
        let step = sink.step(command.unread());
        let (used, event) = step.map_err(|source| request.protocol(source))?;
        match event {
            Some(Event::File {
                mode,
                size,
                name,
                times,
            }) => {
                let announced = Header::new(FileKind::File, mode, size, times);
                check_pattern(request.path, &name).map_err(|source| request.protocol(source))?;
                receiver.begin(size).map_err(local)?;
                header = Some(announced);
                sink.accept();
            }
            Some(Event::Data(data)) => receiver.data(data).map_err(local)?,
            Some(Event::FileEnd(end)) => outcome = Some(end),
            Some(Event::Warning(text) | Event::Fatal(text)) => outcome = Some(Err(text)),
            Some(Event::Directory { .. } | Event::DirectoryEnd) | None => {}
        }
        command.consume(used);
    }
    match (outcome, header) {
        (Some(Ok(())), Some(header)) => {
            if acks == Acks::InTurn {
                command
                    .send(&sink.take_output())
                    .map_err(|e| unknown_outcome(request.act, e))?;
            }
            end_command(command, acks);
            Ok(Fetch::Complete(header))
        }
        (Some(Err(text)), _) => {
            let text = read_whole_message(&mut command, text, request)?;
            end_command(command, acks);
            Ok(Fetch::Refused(text))
        }
        _ => {
            sink.end().map_err(|source| request.protocol(source))?;
            Err(request.ended_without_output(command))
        }
    }
}

/// Checks that the name is the requested one: a server without a shell may still expand patterns.
fn check_pattern(path: &RemotePath, name: &[u8]) -> std::result::Result<(), scp::ParseError> {
    let wanted = path.name();
    let wanted = wanted.as_ref().map_or(&b""[..], |name| name.as_bytes());
    let is_pattern = wanted.iter().any(|b| b"*?[".contains(b));
    if is_pattern && !wanted.contains(&b'\n') && name != wanted {
        return Err(scp::ParseError::UnexpectedFile(name.to_vec()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_for_accepts_path_and_reason_in_either_order() {
        let cases: [(&[u8], Reason); 8] = [
            // OpenSSH 9.2.
            (b"scp: /a/b: No such file or directory", Reason::NotFound),
            (b"scp: /a: b: Permission denied", Reason::AccessDenied),
            (b"scp: /a/fifo: not a regular file", Reason::NotADirectory),
            (b"scp: /a: No such device or address", Reason::NotADirectory),
            // asyncssh 2.24.
            (b"scp: No such file or directory: /a/b", Reason::NotFound),
            (b"scp: Not a regular file: /a/fifo", Reason::NotADirectory),
            // A server in another language.
            (b"file not found", Reason::NotFound),
            (b"scp: /a/b: something else", Reason::Other),
        ];
        for (text, reason) in cases {
            let text_shown = crate::path::Escaped(text);
            assert_eq!(
                reason_for(text, Reason::NotADirectory),
                reason,
                "{text_shown}"
            );
        }
    }
}
