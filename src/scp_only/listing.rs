//! Lists a directory by refusing everything in it.

use crate::path::Excerpt;
use crate::path::MAX_EXCERPT;
use crate::path::Name;
use crate::remote::Error;
use crate::remote::MAX_BYTES_PER_NAME;
use crate::remote::Reason;
use crate::remote::Result;
use crate::remote::reason_of;
use crate::scp;
use crate::scp::Event;
use crate::scp_only::link::Command;
use crate::scp_only::quirks::Answers;
use crate::scp_only::quirks::Quirks;
use crate::scp_only::receive::About;
use crate::scp_only::receive::Header;
use crate::scp_only::receive::REFUSED_ENTRY;
use crate::scp_only::receive::lost;
use crate::scp_only::receive::part;
use crate::scp_only::receive::pump;
use crate::scp_only::receive::reason_for;
use crate::ssh;
use crate::stat::FileKind;

/// How many entries are refused ahead at first, two answers each: 6 KiB, enough for nearly every
/// directory.
const FIRST_REFUSALS: u64 = 2048;

/// How many are kept ahead once a directory turned out to be larger. Less than a pipe and the
/// smallest window hold, so that sending them never waits for somebody who waits for us.
const MORE_REFUSALS: u64 = 8192;

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

/// Lists a directory: `scp -p -r -f` of it; the directory is accepted and all that is in it
/// refused, so that names and attributes come and no content does.
///
/// `said` is the path as the server writes it in front of names in its complaints.
pub(super) fn list(
    mut command: Command,
    quirks: &Quirks,
    about: About<'_>,
    said: &[u8],
    max_names: usize,
) -> Result<Listed> {
    let max_bytes = max_names.saturating_mul(MAX_BYTES_PER_NAME);
    let answers = quirks.answers;
    let mut sink = scp::Sink::new(scp::Scope::Tree, quirks.has_times);
    let (mut n_seen, mut n_ahead) = (0, 0);
    // Counts what is left out as well: it must end, too.
    let (mut n_told, mut n_bytes) = (0, 0);
    if answers == Answers::Ahead {
        n_ahead = FIRST_REFUSALS;
        let ahead = [b"\0\0\0", &refusals(n_ahead)[..]].concat();
        command.send(&ahead).map_err(|e| lost(about.act, e))?;
    }
    let mut directory = None;
    let mut entries = Vec::new();
    let mut denied = Vec::new();
    let (mut has_complained, mut has_end) = (false, false);
    let mut torn: Option<Torn> = None;
    while pump(&mut command, &mut sink, answers, about.act)? {
        if has_end {
            // A name in a complaint could have forged the end.
            return Err(about.protocol(scp::ParseError::NotARecord(
                command.unread().iter().copied().take(MAX_EXCERPT).collect(),
            )));
        }
        if let Some(complaint) = &mut torn {
            let used = complaint.take(command.unread());
            command.consume(used);
            if complaint.n_taken > MAX_REST {
                return Err(about.refused(Reason::Other, &complaint.first));
            }
            if complaint.has_ended {
                log::debug!("left out of {}: a name with a newline", about.path);
                torn = None;
            }
            continue;
        }
        let step = sink.step(command.unread());
        let (used, event) = match step {
            Ok(step) => step,
            // Content where a record should be.
            Err(_) if answers == Answers::InTurn && n_seen > 0 => return Ok(Listed::Unheeded),
            Err(source) => return Err(about.protocol(source)),
        };
        let has_told = event.is_some();
        let entry = match event {
            Some(Event::Directory { mode, times, .. }) if directory.is_none() => {
                directory = Some(Header::new(FileKind::Directory, mode, 0, times));
                sink.accept();
                None
            }
            Some(Event::File { .. }) if directory.is_none() => {
                part(command, answers);
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
                part(command, answers);
                return Err(about.said(&text, Reason::NotADirectory));
            }
            Some(Event::Warning(text)) => {
                match complain(&text, said, about, &mut denied) {
                    Err(_) if is_torn(&text, said) => torn = Some(Torn::new(text)),
                    result => result?,
                }
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
        n_told += usize::from(has_told);
        n_bytes += used;
        if n_told > max_names || n_bytes > max_bytes {
            return Err(Error::TooManyNames {
                path: about.path.clone(),
                max_names,
            });
        }
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
            memchr::memmem::find(&name, b": ").is_some() && ends_a_complaint(&name);
        if has_complained && is_like_complaint {
            return Err(about.protocol(scp::ParseError::BadName(name)));
        }
        // A newline is written as `\^J` (OpenSSH scp.c source(), strnvis), which is a name too:
        // there is no telling which of them it is.
        if memchr::memmem::find(&name, b"\\^J").is_some() {
            log::debug!("a name with a newline is left out of {}", about.path);
            continue;
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
            ssh::Error::Closed {
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
        reason => return Err(about.refused(reason, text)),
    }
    log::debug!("left out of {}: {}", about.path, Excerpt(text));
    Ok(())
}

/// dropbear's words for a name that it cannot send (scp.c `source()`).
const HAS_NEWLINE: &[u8] = b": skipping, filename contains a newline";

/// How long a complaint of one entry may be beyond what its first line has: a name and some words.
const MAX_REST: usize = 512;

/// A complaint about a name with a newline, of which the first line has come. What follows is the
/// rest of the name, whatever it looks like, up to a line that ends as complaints do.
struct Torn {
    first: Vec<u8>,
    line: Vec<u8>,
    n_taken: usize,
    has_ended: bool,
}

impl Torn {
    fn new(first: Vec<u8>) -> Self {
        Self {
            first,
            line: Vec::new(),
            n_taken: 0,
            has_ended: false,
        }
    }

    /// Takes what is there of the next line; returns how many bytes that is.
    fn take(&mut self, input: &[u8]) -> usize {
        let newline = memchr::memchr(b'\n', input);
        let used = newline.map_or(input.len(), |at| at + 1);
        self.n_taken += used;
        self.line
            .extend_from_slice(input.get(..newline.unwrap_or(used)).unwrap_or_default());
        if newline.is_some() {
            self.has_ended = ends_a_complaint(&self.line);
            self.line.clear();
        }
        used
    }
}

/// Whether this is the first line of a complaint about a name that goes on in the next.
fn is_torn(text: &[u8], dir: &[u8]) -> bool {
    let name = text
        .strip_prefix(b"scp: ")
        .and_then(|rest| rest.strip_prefix(dir));
    name.is_some_and(|name| memchr::memmem::find(name, b": ").is_none())
}

/// Whether a complaint of OpenSSH or dropbear can end so.
fn ends_a_complaint(line: &[u8]) -> bool {
    reason_of(line) != Reason::Other || line.ends_with(HAS_NEWLINE)
}

/// The name in `scp: DIR/NAME: Permission denied`, where it is one.
fn denied_name(text: &[u8], dir: &[u8]) -> Option<Name> {
    let rest = text.strip_prefix(b"scp: ")?.strip_prefix(dir)?;
    let rest = rest.strip_prefix(b"/").unwrap_or(rest);
    Name::new(rest.strip_suffix(b": Permission denied")?).ok()
}
