//! Drives `scp::Sink` over a command: attributes, listings and contents come in.

use crate::path::Escaped;
use crate::path::Name;
use crate::path::RemotePath;
use crate::remote::Error;
use crate::remote::Reason;
use crate::remote::Receiver;
use crate::remote::Result;
use crate::remote::scp_only::link::Command;
use crate::remote::scp_only::quirks::Answers;
use crate::remote::scp_only::quirks::Quirks;
use crate::remote::scp_only::quirks::Refusal;
use crate::remote::shell::answer::reason_of;
use crate::scp;
use crate::scp::Event;
use crate::stat::FileKind;
use crate::stat::Time;
use crate::transport;

/// How many entries are refused ahead at first, two answers each: 6 KiB, enough for nearly every
/// directory.
const FIRST_REFUSALS: u64 = 2048;

/// How many are kept ahead once a directory turned out to be larger. Less than a pipe and the
/// smallest window hold, so that sending them never waits for somebody who waits for us.
const MORE_REFUSALS: u64 = 8192;

/// The answers to the T and to the C or D of an entry that is refused.
const REFUSED_ENTRY: &[u8] = b"\0\x01\n";

/// More names than this are no directory.
const MAX_ENTRIES: usize = 8 << 20;

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
    fn new(kind: FileKind, mode: u32, size: u64, times: Option<(Time, Time)>) -> Self {
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

/// What came of a listing.
#[derive(Debug)]
pub(super) enum Listed {
    Whole {
        directory: Header,
        entries: Vec<(Name, Header)>,
        /// Files that are there and may not be read, so that nothing is known of them.
        denied: Vec<Name>,
    },
    /// The server does not heed refusals after all.
    Unheeded,
}

/// Sends what has to be answered in turn and sees to it that there is something to be read; false
/// at the end of the output.
fn pump(
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

fn lost(act: &'static str, source: transport::Error) -> Error {
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
            text: text.iter().copied().take(500).collect(),
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

    fn said(self, text: &[u8], special: Reason) -> Error {
        self.refused(reason_for(text, special), text)
    }

    /// The output ended and nothing was said.
    pub(super) fn silent(self, command: Command) -> Error {
        // POSIX shells: 127 is not found.
        if command.finish() == Some(127) {
            return self.refused(Reason::NoProgram, b"");
        }
        Error::Surprise {
            act: self.act,
            detail: "scp ended without a word".to_owned(),
        }
    }
}

/// Why a source or sink complained. `special` is what a file that is none means here.
pub(super) fn reason_for(text: &[u8], special: Reason) -> Reason {
    let has = |needle: &[u8]| memchr::memmem::find(text, needle).is_some();
    if has(b"not a regular file") {
        return special;
    }
    match reason_of(text) {
        // Words of servers that are not written in C.
        Reason::Other if has(b"not found") || has(b"o such file") || has(b"not exist") => {
            Reason::NotFound
        }
        // "No such device or address": a socket.
        Reason::NoSuchDevice => special,
        reason => reason,
    }
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
                command.leave();
                return Err(about.said(&text, Reason::NotSupported));
            }
            Some(Event::Data(_) | Event::FileEnd(_) | Event::DirectoryEnd) => {
                return Err(about.protocol(scp::ParseError::UnexpectedEnd));
            }
            None => None,
        };
        command.consume(used);
        if let Some(header) = header {
            // Who waits for an answer gets none: hanging up costs nobody content.
            command.leave();
            return Ok(header);
        }
    }
    sink.end().map_err(|source| about.protocol(source))?;
    Err(about.silent(command))
}

/// Lists a directory: `scp -p -r -f` of it; the directory is accepted and all that is in it
/// refused, so that names and attributes come and no content does.
///
/// `said` is the path as the server writes it in front of names in its complaints.
pub(super) fn list(
    mut command: Command,
    quirks: &Quirks,
    about: About<'_>,
    said: &[u8],
) -> Result<Listed> {
    let answers = quirks.answers;
    let mut sink = scp::Sink::new(scp::Scope::Tree, quirks.has_times);
    let (mut n_seen, mut n_ahead) = (0, 0);
    if answers == Answers::Ahead {
        n_ahead = FIRST_REFUSALS;
        let ahead = [b"\0\0\0", &refusals(n_ahead)[..]].concat();
        command.send(&ahead).map_err(|e| lost(about.act, e))?;
    }
    let mut directory = None;
    let mut entries = Vec::new();
    let mut denied = Vec::new();
    let (mut has_complained, mut has_end) = (false, false);
    while pump(&mut command, &mut sink, answers, about.act)? {
        if has_end {
            // A name in a complaint could have forged the end.
            return Err(about.protocol(scp::ParseError::NotARecord(
                command.unread().iter().copied().take(200).collect(),
            )));
        }
        let step = sink.step(command.unread());
        let (used, event) = match step {
            Ok(step) => step,
            // Content where a record should be.
            Err(_) if answers == Answers::InTurn && n_seen > 0 => return Ok(Listed::Unheeded),
            Err(source) => return Err(about.protocol(source)),
        };
        let entry = match event {
            Some(Event::Directory { mode, times, .. }) if directory.is_none() => {
                directory = Some(Header::new(FileKind::Directory, mode, 0, times));
                sink.accept();
                None
            }
            Some(Event::File { .. }) if directory.is_none() => {
                command.leave();
                return Err(about.refused(Reason::NotADirectory, b""));
            }
            Some(Event::Directory {
                mode, name, times, ..
            }) => Some((name, Header::new(FileKind::Directory, mode, 0, times))),
            Some(Event::File {
                mode,
                size,
                name,
                times,
            }) => Some((name, Header::new(FileKind::File, mode, size, times))),
            Some(Event::Warning(text) | Event::Fatal(text)) if directory.is_none() => {
                command.leave();
                return Err(about.said(&text, Reason::NotADirectory));
            }
            Some(Event::Warning(text)) => {
                complain(&text, said, about, &mut denied)?;
                has_complained = true;
                None
            }
            Some(Event::Fatal(text)) => return Err(about.said(&text, Reason::Other)),
            Some(Event::DirectoryEnd) => {
                has_end = true;
                None
            }
            Some(Event::Data(_) | Event::FileEnd(_)) | None => None,
        };
        command.consume(used);
        let Some((name, header)) = entry else {
            continue;
        };
        sink.refuse();
        n_seen += 1;
        let too_few = n_ahead.min(MORE_REFUSALS) / 2;
        if answers == Answers::Ahead && n_ahead.saturating_sub(n_seen) < too_few {
            let more = n_seen + MORE_REFUSALS - n_ahead;
            command
                .send(&refusals(more))
                .map_err(|e| lost(about.act, e))?;
            n_ahead += more;
        }
        // A name stands raw in a complaint, and its lines could be records; the last of them ends
        // as the complaint does.
        let is_like_complaint =
            memchr::memmem::find(&name, b": ").is_some() && reason_of(&name) != Reason::Other;
        if has_complained && is_like_complaint {
            return Err(about.protocol(scp::ParseError::BadName(name)));
        }
        // A newline is written as `\^J` (OpenSSH scp.c source(), strnvis), which is a name too:
        // there is no telling which of them it is.
        if memchr::memmem::find(&name, b"\\^J").is_some() {
            log::debug!("a name with a newline is left out of {}", about.path);
            continue;
        }
        if entries.len() >= MAX_ENTRIES {
            return Err(about.refused(Reason::Other, b"too many names"));
        }
        // The sink has checked it.
        if let Ok(name) = Name::new(&name) {
            entries.push((name, header));
        }
    }
    match directory {
        Some(directory) if has_end => {
            command.leave();
            Ok(Listed::Whole {
                directory,
                entries,
                denied,
            })
        }
        // It hung up on the refusal.
        Some(_) if answers == Answers::InTurn && n_seen > 0 => {
            command.leave();
            Ok(Listed::Unheeded)
        }
        Some(_) => Err(lost(
            about.act,
            transport::Error::Closed {
                act: "reading a directory",
            },
        )),
        None => {
            sink.end().map_err(|source| about.protocol(source))?;
            Err(about.silent(command))
        }
    }
}

fn refusals(n: u64) -> Vec<u8> {
    REFUSED_ENTRY.repeat(usize::try_from(n).unwrap_or_default())
}

/// Decides what a complaint about one entry of a directory means for the whole.
///
/// What SCP has no word for is left out: devices, FIFOs, sockets, links that lead nowhere, names
/// that are too long for the server. A file that may not be read is there all the same. Anything
/// else, and the listing is not to be trusted.
fn complain(text: &[u8], dir: &[u8], about: About<'_>, denied: &mut Vec<Name>) -> Result<()> {
    match reason_for(text, Reason::NotSupported) {
        Reason::NotFound | Reason::NotSupported | Reason::SymlinkLoop | Reason::NameTooLong => {}
        Reason::AccessDenied => denied.extend(denied_name(text, dir)),
        // dropbear's words for a name that it cannot send.
        _ if memchr::memmem::find(text, b"filename contains a newline").is_some() => {}
        reason => return Err(about.refused(reason, text)),
    }
    log::debug!("left out of {}: {}", about.path, Escaped(text));
    Ok(())
}

/// The name in `scp: DIR/NAME: Permission denied`, where it is one.
fn denied_name(text: &[u8], dir: &[u8]) -> Option<Name> {
    let rest = text.strip_prefix(b"scp: ")?.strip_prefix(dir)?;
    let rest = rest.strip_prefix(b"/").unwrap_or(rest);
    Name::new(rest.strip_suffix(b": Permission denied")?).ok()
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
            command.leave();
            Ok(Fetch::Complete(header))
        }
        (Some(Err(text)), _) => {
            command.leave();
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

/// What a server made of the first refusal: nothing of a host is at risk with it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trial {
    /// It is a directory; whether the refusal was heeded.
    Directory {
        refusal: Refusal,
        has_times: bool,
    },
    File,
    /// It complained.
    Refused(Vec<u8>),
    /// It waits to receive: its command is not ours.
    Receives,
    /// It printed something that is not SCP.
    Noise(Vec<u8>),
    /// It ended, with this status if it said so.
    Silent(Option<i32>),
}

/// Asks for a path and refuses it: a source that heeds that ends at once.
pub(super) fn attempt(mut command: Command, about: About<'_>) -> Result<Trial> {
    let act = about.act;
    let mut line = Vec::new();
    let mut has_times = false;
    let mut greeted = false;
    loop {
        // Ready, then one for the T record.
        if !std::mem::replace(&mut greeted, true) {
            command.send(b"\0").map_err(|e| lost(act, e))?;
        }
        let end = loop {
            if let Some(end) = memchr::memchr(b'\n', command.unread()) {
                break end;
            }
            // A sink says that it is ready.
            if command.unread().first() == Some(&0) {
                command.leave();
                return Ok(Trial::Receives);
            }
            let is_long = command.unread().len() > scp::MAX_LINE;
            if is_long || !command.read_more().map_err(|e| lost(act, e))? {
                let said = command.unread().to_vec();
                if said.is_empty() && !is_long {
                    return Ok(Trial::Silent(command.finish()));
                }
                command.leave();
                return Ok(Trial::Noise(said));
            }
        };
        line.clear();
        line.extend_from_slice(command.unread().get(..end).unwrap_or_default());
        command.consume(end + 1);
        match scp::Record::parse(&line) {
            Ok(scp::Record::Times { .. }) if !has_times => {
                has_times = true;
                command.send(b"\0").map_err(|e| lost(act, e))?;
            }
            Ok(scp::Record::Directory { .. }) => {
                command.send(b"\x01\n").map_err(|e| lost(act, e))?;
                let has_more = if command.unread().is_empty() {
                    command.read_more()
                } else {
                    Ok(true)
                };
                let has_more = match has_more {
                    // It waits for something else.
                    Err(transport::Error::Timeout { .. }) => true,
                    Err(source) => return Err(lost(act, source)),
                    Ok(has_more) => {
                        command.leave();
                        has_more
                    }
                };
                let refusal = if has_more {
                    Refusal::Unheeded
                } else {
                    Refusal::Skips
                };
                return Ok(Trial::Directory { refusal, has_times });
            }
            Ok(scp::Record::File { .. }) => {
                command.leave();
                return Ok(Trial::File);
            }
            Ok(scp::Record::Warning(text) | scp::Record::Fatal(text)) => {
                command.leave();
                return Ok(Trial::Refused(text));
            }
            Ok(scp::Record::Times { .. } | scp::Record::End) | Err(_) => {
                command.leave();
                return Ok(Trial::Noise(line));
            }
        }
    }
}
