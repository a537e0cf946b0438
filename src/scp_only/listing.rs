//! Lists a directory by refusing every entry of it.

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
use crate::scp_only::connection::Command;
use crate::scp_only::quirks::Acks;
use crate::scp_only::quirks::Quirks;
use crate::scp_only::receive::Header;
use crate::scp_only::receive::REFUSED_ENTRY;
use crate::scp_only::receive::Request;
use crate::scp_only::receive::end_command;
use crate::scp_only::receive::reason_for;
use crate::scp_only::receive::send_acks_and_read;
use crate::scp_only::receive::unknown_outcome;
use crate::ssh;
use crate::stat::FileKind;

/// The number of entries that are refused ahead at first, with two replies each: 6 KiB, enough for
/// nearly every directory.
const FIRST_REFUSALS: u64 = 2048;

/// The number of entries that are refused ahead in larger directories. The replies are shorter than
/// a pipe and the smallest window, so that sending them never blocks while the source waits for us.
const MORE_REFUSALS: u64 = 8192;

/// The result of a listing.
#[derive(Debug)]
pub(super) enum Listed {
    Whole {
        directory: Header,
        entries: Vec<(Name, Header)>,
        /// Files that exist but may not be read, so that their attributes are unknown.
        denied: Vec<Name>,
    },
    /// The source does not skip refused entries.
    RefusalsUnsupported,
}

/// Lists a directory: runs `scp -p -r -f`, accepts the directory and refuses every entry, so that
/// names and attributes arrive and no content does.
///
/// `shown_path` is the path as the server writes it in error messages, before the names.
///
/// # Errors
/// [`Error::TooManyNames`] if there are more than `max_names`; [`Error::OutcomeUnknown`] if the end
/// of the listing did not arrive.
pub(super) fn list(
    mut command: Command,
    quirks: &Quirks,
    request: Request<'_>,
    shown_path: &[u8],
    max_names: usize,
) -> Result<Listed> {
    let max_bytes = max_names.saturating_mul(MAX_BYTES_PER_NAME);
    let acks = quirks.acks;
    let mut sink = scp::Sink::new(scp::Scope::Tree, quirks.has_times);
    let (mut n_refused, mut n_ahead) = (0, 0);
    // Counts entries that are left out too, so that the listing always ends.
    let (mut n_records, mut n_bytes) = (0, 0);
    if acks == Acks::Ahead {
        n_ahead = FIRST_REFUSALS;
        let ahead = [b"\0\0\0", &refusals(n_ahead)[..]].concat();
        command
            .send(&ahead)
            .map_err(|e| unknown_outcome(request.act, e))?;
    }
    let mut directory = None;
    let mut entries = Vec::new();
    let mut denied = Vec::new();
    let (mut has_entry_errors, mut has_end) = (false, false);
    let mut unfinished: Option<MultiLineMessage> = None;
    while send_acks_and_read(&mut command, &mut sink, acks, request.act)? {
        if has_end {
            // A file name in an error message may have forged the end of the directory.
            return Err(request.protocol(scp::ParseError::NotARecord(
                command.unread().iter().copied().take(MAX_EXCERPT).collect(),
            )));
        }
        if let Some(message) = &mut unfinished {
            let used = message.take(command.unread());
            command.consume(used);
            if message.n_taken > MAX_REST {
                return Err(request.refused(Reason::Other, &message.first));
            }
            if message.has_ended {
                log::debug!("left out of {}: a name with a newline", request.path);
                unfinished = None;
            }
            continue;
        }
        let step = sink.step(command.unread());
        let (used, event) = match step {
            Ok(step) => step,
            // Content arrived in place of a record.
            Err(_) if acks == Acks::InTurn && n_refused > 0 => {
                return Ok(Listed::RefusalsUnsupported);
            }
            Err(source) => return Err(request.protocol(source)),
        };
        let has_record = event.is_some();
        let entry = match event {
            Some(Event::Directory { mode, times, .. }) if directory.is_none() => {
                directory = Some(Header::new(FileKind::Directory, mode, 0, times));
                sink.accept();
                None
            }
            Some(Event::File { .. }) if directory.is_none() => {
                end_command(command, acks);
                return Err(request.refused(Reason::NotADirectory, b""));
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
                end_command(command, acks);
                return Err(request.refused_with(&text, Reason::NotADirectory));
            }
            Some(Event::Warning(text)) => {
                match handle_entry_error(&text, shown_path, request, &mut denied) {
                    Err(_) if has_more_lines(&text, shown_path) => {
                        unfinished = Some(MultiLineMessage::new(text));
                    }
                    result => result?,
                }
                has_entry_errors = true;
                None
            }
            Some(Event::Fatal(text)) => return Err(request.refused_with(&text, Reason::Other)),
            Some(Event::DirectoryEnd) => {
                has_end = true;
                None
            }
            Some(Event::Data(_) | Event::FileEnd(_)) | None => None,
        };
        command.consume(used);
        n_records += usize::from(has_record);
        n_bytes += used;
        if n_records > max_names || n_bytes > max_bytes {
            return Err(Error::TooManyNames {
                path: request.path.clone(),
                max_names,
            });
        }
        let Some((name, header)) = entry else {
            continue;
        };
        sink.refuse();
        n_refused += 1;
        let min_ahead = n_ahead.min(MORE_REFUSALS) / 2;
        if acks == Acks::Ahead && n_ahead.saturating_sub(n_refused) < min_ahead {
            let more = n_refused + MORE_REFUSALS - n_ahead;
            command
                .send(&refusals(more))
                .map_err(|e| unknown_outcome(request.act, e))?;
            n_ahead += more;
        }
        // Names are not escaped in error messages, so lines of a name may look like records. The
        // last such line ends as an error message does.
        let looks_like_message =
            memchr::memmem::find(&name, b": ").is_some() && ends_like_message(&name);
        if has_entry_errors && looks_like_message {
            return Err(request.protocol(scp::ParseError::BadName(name)));
        }
        // OpenSSH writes a newline in a name as `\^J` (scp.c source(), strnvis). The same
        // characters can be a real name, so the entry is ambiguous.
        if memchr::memmem::find(&name, b"\\^J").is_some() {
            log::debug!(
                "left out of {}: a name that may contain a newline",
                request.path
            );
            continue;
        }
        // The sink has validated the name.
        if let Ok(name) = Name::new(&name) {
            entries.push((name, header));
        }
    }
    match directory {
        Some(directory) if has_end => {
            command.abandon();
            Ok(Listed::Whole {
                directory,
                entries,
                denied,
            })
        }
        // The source closed the channel at the first refusal.
        Some(_) if acks == Acks::InTurn && n_refused > 0 => {
            command.abandon();
            Ok(Listed::RefusalsUnsupported)
        }
        Some(_) => Err(unknown_outcome(
            request.act,
            ssh::Error::Closed {
                act: "reading a directory",
            },
        )),
        None => {
            sink.end().map_err(|source| request.protocol(source))?;
            Err(request.ended_without_output(command))
        }
    }
}

fn refusals(n: u64) -> Vec<u8> {
    REFUSED_ENTRY.repeat(usize::try_from(n).unwrap_or_default())
}

/// Handles an error message about one entry of a directory.
///
/// Entries that SCP cannot send are left out: devices, FIFOs, sockets, dangling links, names too
/// long for the server. A file that may not be read goes to `denied`.
///
/// # Errors
/// Any other message makes the listing unreliable.
fn handle_entry_error(
    text: &[u8],
    dir: &[u8],
    request: Request<'_>,
    denied: &mut Vec<Name>,
) -> Result<()> {
    match reason_for(text, Reason::NotSupported) {
        Reason::NotFound | Reason::NotSupported | Reason::SymlinkLoop | Reason::NameTooLong => {}
        Reason::AccessDenied => denied.extend(denied_name(text, dir)),
        reason => return Err(request.refused(reason, text)),
    }
    log::debug!("left out of {}: {}", request.path, Excerpt(text));
    Ok(())
}

/// dropbear's message for a name that it cannot send (scp.c `source()`).
const HAS_NEWLINE: &[u8] = b": skipping, filename contains a newline";

/// Maximum length, in bytes, of an error message after its first line: a name and a few words.
const MAX_REST: usize = 512;

/// An error message about a name with a newline, after its first line. The rest of the name
/// follows, whatever it looks like, up to a line that ends as error messages do.
struct MultiLineMessage {
    first: Vec<u8>,
    line: Vec<u8>,
    n_taken: usize,
    has_ended: bool,
}

impl MultiLineMessage {
    fn new(first: Vec<u8>) -> Self {
        Self {
            first,
            line: Vec::new(),
            n_taken: 0,
            has_ended: false,
        }
    }

    /// Takes what has arrived of the next line; returns the number of bytes taken.
    fn take(&mut self, input: &[u8]) -> usize {
        let newline = memchr::memchr(b'\n', input);
        let used = newline.map_or(input.len(), |at| at + 1);
        self.n_taken += used;
        self.line
            .extend_from_slice(input.get(..newline.unwrap_or(used)).unwrap_or_default());
        if newline.is_some() {
            self.has_ended = ends_like_message(&self.line);
            self.line.clear();
        }
        used
    }
}

/// Returns whether this is the first line of a message about a name that continues on the next
/// line.
fn has_more_lines(text: &[u8], dir: &[u8]) -> bool {
    let name = text
        .strip_prefix(b"scp: ")
        .and_then(|rest| rest.strip_prefix(dir));
    name.is_some_and(|name| memchr::memmem::find(name, b": ").is_none())
}

/// Returns whether an error message of OpenSSH or dropbear can end like this.
fn ends_like_message(line: &[u8]) -> bool {
    reason_of(line) != Reason::Other || line.ends_with(HAS_NEWLINE)
}

/// Returns the name in `scp: DIR/NAME: Permission denied`.
fn denied_name(text: &[u8], dir: &[u8]) -> Option<Name> {
    let rest = text.strip_prefix(b"scp: ")?.strip_prefix(dir)?;
    let rest = rest.strip_prefix(b"/").unwrap_or(rest);
    Name::new(rest.strip_suffix(b": Permission denied")?).ok()
}
