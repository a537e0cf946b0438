//! Tries a command on a server of which nothing is known, and puts nothing at risk.

use crate::path::MAX_EXCERPT;
use crate::remote::Result;
use crate::scp;
use crate::scp_only::link::Command;
use crate::scp_only::quirks::Refusal;
use crate::scp_only::receive::About;
use crate::scp_only::receive::lost;
use crate::ssh;

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

/// As much of what a server said as is kept for a message.
fn start_of(said: &[u8]) -> Vec<u8> {
    said.iter().copied().take(MAX_EXCERPT + 1).collect()
}

/// Asks for a path and refuses it: a source that heeds that ends at once.
pub(super) fn attempt(mut command: Command, about: About<'_>) -> Result<Trial> {
    let act = about.act;
    let mut line = Vec::new();
    let mut has_times = false;
    command.send(b"\0").map_err(|e| lost(act, e))?;
    loop {
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
                let said = start_of(command.unread());
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
                    Err(ssh::Error::Timeout { .. }) => true,
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
                return Ok(Trial::Refused(start_of(&text)));
            }
            Ok(scp::Record::Times { .. } | scp::Record::End) | Err(_) => {
                command.leave();
                return Ok(Trial::Noise(start_of(&line)));
            }
        }
    }
}
