//! The control socket between the daemon of a mount and `scpfs status` and `scpfs umount`.
//!
//! The protocol: one JSON document per line, requests and answers in turn. The daemon never asks
//! the host for an answer. Only [`message::Request::Unmount`] blocks: until the mount has ended.
//!
//! Modules:
//! - `message`: requests and answers; the fields of `status --json`
//! - `server`: the daemon's side: answers requests
//! - `sockets`: the paths of sockets, and who may use them
//! - `show`: formats a status as text

pub mod message;
pub mod server;
pub mod show;
pub mod sockets;

use std::time::Duration;

/// The maximum length of a request in bytes.
const MAX_REQUEST: u64 = 4 << 10;

/// The maximum length of an answer in bytes: enough for several hundred thousand files.
pub(crate) const MAX_ANSWER: u64 = 64 << 20;

/// How long each side waits for the next message, or until it can send one.
pub(crate) const IO_TIMEOUT: Duration = Duration::from_secs(10);
