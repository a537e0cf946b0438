//! Runs a harmless command on an unknown server: it refuses every entry.

use crate::path::MAX_EXCERPT;
use crate::remote::Result;
use crate::scp;
use crate::scp_only::connection::Command;
use crate::scp_only::quirks::Refusal;
use crate::scp_only::receive::Request;
use crate::scp_only::receive::unknown_outcome;
use crate::ssh;

/// The reaction of a server to the command and to its first refusal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trial {
    /// It announced a directory, and skipped the refused entry or did not.
    Directory {
        refusal: Refusal,
        has_times: bool,
    },
    File,
    /// It sent an error message.
    Refused(Vec<u8>),
    /// It is a sink: the server runs another command than the requested one.
    IsSink,
    /// It printed something that is not SCP.
    Noise(Vec<u8>),
    /// It ended without output, with this exit status if it is known.
    NoOutput(Option<i32>),
}

/// Returns the part of a server's output that is shown in messages.
fn excerpt(said: &[u8]) -> Vec<u8> {
    said.iter().copied().take(MAX_EXCERPT + 1).collect()
}

/// Requests a path and refuses it: a source that skips refused entries ends at once.
pub(super) fn attempt(mut command: Command, request: Request<'_>) -> Result<Trial> {
    let act = request.act;
    let mut line = Vec::new();
    let mut has_times = false;
    command.send(b"\0").map_err(|e| unknown_outcome(act, e))?;
    loop {
        let end = loop {
            if let Some(end) = memchr::memchr(b'\n', command.unread()) {
                break end;
            }
            // A sink sends an ack when it is ready.
            if command.unread().first() == Some(&0) {
                command.abandon();
                return Ok(Trial::IsSink);
            }
            let is_long = command.unread().len() > scp::MAX_LINE;
            if is_long || !command.read_more().map_err(|e| unknown_outcome(act, e))? {
                let said = excerpt(command.unread());
                if said.is_empty() && !is_long {
                    return Ok(Trial::NoOutput(command.finish()));
                }
                command.abandon();
                return Ok(Trial::Noise(said));
            }
        };
        line.clear();
        line.extend_from_slice(command.unread().get(..end).unwrap_or_default());
        command.consume(end + 1);
        match scp::Record::parse(&line) {
            Ok(scp::Record::Times { .. }) if !has_times => {
                has_times = true;
                command.send(b"\0").map_err(|e| unknown_outcome(act, e))?;
            }
            Ok(scp::Record::Directory { .. }) => {
                command
                    .send(b"\x01\n")
                    .map_err(|e| unknown_outcome(act, e))?;
                let has_more = if command.unread().is_empty() {
                    command.read_more()
                } else {
                    Ok(true)
                };
                let has_more = match has_more {
                    // The command waits for something else.
                    Err(ssh::Error::Timeout { .. }) => true,
                    Err(source) => return Err(unknown_outcome(act, source)),
                    Ok(has_more) => {
                        command.abandon();
                        has_more
                    }
                };
                let refusal = if has_more {
                    Refusal::Unsupported
                } else {
                    Refusal::Skips
                };
                return Ok(Trial::Directory { refusal, has_times });
            }
            Ok(scp::Record::File { .. }) => {
                command.abandon();
                return Ok(Trial::File);
            }
            Ok(scp::Record::Warning(text) | scp::Record::Fatal(text)) => {
                command.abandon();
                return Ok(Trial::Refused(excerpt(&text)));
            }
            Ok(scp::Record::Times { .. } | scp::Record::End) | Err(_) => {
                command.abandon();
                return Ok(Trial::Noise(excerpt(&line)));
            }
        }
    }
}
