//! Drives `scp::Sink` over a command: attributes and contents come in.

use crate::path::MAX_EXCERPT;
use crate::path::RemotePath;
use crate::remote::Error;
use crate::remote::Reason;
use crate::remote::Receiver;
use crate::remote::Result;
use crate::remote::reason_of;
use crate::scp;
use crate::scp::Event;
use crate::scp_only::link::Command;
use crate::scp_only::quirks::Answers;
use crate::scp_only::quirks::Quirks;
use crate::ssh;
use crate::stat::FileKind;
use crate::stat::Time;

/// The answers to the T and to the C or D of an entry that is refused.
pub(super) const REFUSED_ENTRY: &[u8] = b"\0\x01\n";

/// What a record announces.
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

/// Sends what has to be answered in turn and sees to it that there is something to be read; false
/// at the end of the output.
pub(super) fn pump(
    command: &mut Command,
    sink: &mut scp::Sink,
    answers: Answers,
    act: &'static str,
) -> Result<bool> {
    let out = sink.take_output();
    if answers == Answers::InTurn {
        command.send(&out).map_err(|e| lost(act, e))?;
    }
    if command.unread().is_empty() {
        return command.read_more().map_err(|e| lost(act, e));
    }
    Ok(true)
}

/// Parts with a command of which nothing more is wanted. One that has all its answers ends by
/// itself; one that waits for an answer gets none: hanging up costs nobody content.
pub(super) fn part(command: Command, answers: Answers) {
    match answers {
        Answers::Ahead => command.conclude(),
        Answers::InTurn => command.leave(),
    }
}

pub(super) fn lost(act: &'static str, source: ssh::Error) -> Error {
    Error::OutcomeUnknown { act, source }
}

/// Names the file that a host's text is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) act: &'static str,
    pub(super) path: &'a RemotePath,
}

impl About<'_> {
    pub(super) fn refused(self, reason: Reason, text: &[u8]) -> Error {
        Error::Refused {
            act: self.act,
            path: self.path.clone(),
            reason,
            text: text.iter().copied().take(MAX_EXCERPT).collect(),
        }
    }

    /// What is not SCP before the first record is noise of a login, which cannot be told from the
    /// server's own words.
    pub(super) fn protocol(self, source: scp::ParseError) -> Error {
        Error::Protocol {
            act: self.act,
            path: self.path.clone(),
            source,
        }
    }

    pub(super) fn said(self, text: &[u8], special: Reason) -> Error {
        self.refused(reason_for(text, special), text)
    }

    /// The output ended and nothing was said.
    pub(super) fn silent(self, command: Command) -> Error {
        // POSIX shells: 127 is not found.
        if command.finish() == Some(127) {
            return self.refused(Reason::NoProgram, b"");
        }
        Error::UnexpectedReply {
            act: self.act,
            detail: "scp ended without a word".to_owned(),
        }
    }
}

/// Why a source or sink complained: `scp: PATH: REASON`, or `scp: REASON: PATH` as asyncssh has it.
/// `special` is what a file that is none means here.
pub(super) fn reason_for(text: &[u8], special: Reason) -> Reason {
    let has = |needle: &[u8]| memchr::memmem::find(text, needle).is_some();
    // Without its first letter, which some write large.
    if has(b"ot a regular file") {
        return special;
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
        // Words of servers that are not written in C.
        Reason::Other if has(b"not found") || has(b"o such file") || has(b"not exist") => {
            Reason::NotFound
        }
        // "No such device or address": a socket.
        Reason::NoSuchDevice => special,
        reason => reason,
    }
}

/// The whole of a complaint about this path, of which the first line has come: names stand raw in
/// it, so that it has as many newlines as the path.
fn whole_complaint(command: &mut Command, first: Vec<u8>, about: About<'_>) -> Result<Vec<u8>> {
    let mut text = first;
    let mut n_left = memchr::memchr_iter(b'\n', about.path.as_bytes()).count();
    if n_left > 0 {
        text.push(b'\n');
    }
    while n_left > 0 {
        if command.unread().is_empty() && !command.read_more().map_err(|e| lost(about.act, e))? {
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

/// Learns what a path is: `scp -p -r -f` of it, and neither content nor entries are accepted.
pub(super) fn look(mut command: Command, quirks: &Quirks, about: About<'_>) -> Result<Header> {
    let answers = quirks.answers;
    let mut sink = scp::Sink::new(scp::Scope::Tree, quirks.has_times);
    if answers == Answers::Ahead {
        let ahead = [b"\0", REFUSED_ENTRY].concat();
        command.send(&ahead).map_err(|e| lost(about.act, e))?;
    }
    while pump(&mut command, &mut sink, answers, about.act)? {
        let step = sink.step(command.unread());
        let (used, event) = step.map_err(|source| about.protocol(source))?;
        let header = match event {
            Some(Event::File {
                mode, size, times, ..
            }) => Some(Header::new(FileKind::File, mode, size, times)),
            Some(Event::Directory { mode, times, .. }) => {
                Some(Header::new(FileKind::Directory, mode, 0, times))
            }
            Some(Event::Warning(text) | Event::Fatal(text)) => {
                command.consume(used);
                let text = whole_complaint(&mut command, text, about)?;
                part(command, answers);
                return Err(about.said(&text, Reason::NotSupported));
            }
            Some(Event::Data(_) | Event::FileEnd(_) | Event::DirectoryEnd) => {
                return Err(about.protocol(scp::ParseError::UnexpectedEnd));
            }
            None => None,
        };
        command.consume(used);
        if let Some(header) = header {
            part(command, answers);
            return Ok(header);
        }
    }
    sink.end().map_err(|source| about.protocol(source))?;
    Err(about.silent(command))
}

/// How a fetch ended.
#[derive(Debug)]
pub(super) enum Fetch {
    Complete(Header),
    /// No content came, or content that does not count.
    Refused(Vec<u8>),
}

/// Receives one file: `scp -p -f` of it. The answers go ahead where that is safe, so that it takes
/// one round trip.
pub(super) fn fetch(
    mut command: Command,
    quirks: &Quirks,
    about: About<'_>,
    receiver: &mut dyn Receiver,
) -> Result<Fetch> {
    let local = |source| Error::Local {
        act: about.act,
        path: about.path.clone(),
        source,
    };
    let answers = quirks.answers;
    let mut sink = scp::Sink::new(scp::Scope::Files(1), quirks.has_times);
    if answers == Answers::Ahead {
        // Ready, T, C, content.
        command.send(b"\0\0\0\0").map_err(|e| lost(about.act, e))?;
    }
    let mut header = None;
    let mut outcome = None;
    while outcome.is_none() && pump(&mut command, &mut sink, answers, about.act)? {
        let step = sink.step(command.unread());
        let (used, event) = step.map_err(|source| about.protocol(source))?;
        match event {
            Some(Event::File {
                mode,
                size,
                name,
                times,
            }) => {
                let announced = Header::new(FileKind::File, mode, size, times);
                check_pattern(about.path, &name).map_err(|source| about.protocol(source))?;
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
            if answers == Answers::InTurn {
                command
                    .send(&sink.take_output())
                    .map_err(|e| lost(about.act, e))?;
            }
            part(command, answers);
            Ok(Fetch::Complete(header))
        }
        (Some(Err(text)), _) => {
            let text = whole_complaint(&mut command, text, about)?;
            part(command, answers);
            Ok(Fetch::Refused(text))
        }
        _ => {
            sink.end().map_err(|source| about.protocol(source))?;
            Err(about.silent(command))
        }
    }
}

/// A server without a shell may still look for files by pattern; it must have found the one.
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
    fn a_complaint_is_understood_whichever_way_round_it_is() {
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
