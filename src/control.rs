//! The control socket: how `scpfs status` and `scpfs umount` speak with the daemon of a mount.
//!
//! One JSON document a line, a request and its answer in turn. The daemon answers from what it
//! knows; only [`message::Request::Unmount`] waits. Never asks the host, and holds no lock of the
//! mount for longer than a look takes.
//!
//! Modules:
//! - `message`: requests and answers; the fields of `status --json`
//! - `server`: the daemon: answers requests
//! - `sockets`: where sockets are, and who may use them
//! - `show`: the same for people

pub mod message;
pub mod server;
pub mod show;
pub mod sockets;

use std::time::Duration;

/// The longest request.
const MAX_REQUEST: u64 = 4 << 10;

/// The longest answer: some hundred thousand files.
pub(crate) const MAX_ANSWER: u64 = 64 << 20;

/// How long one side waits for the other in the middle of a conversation.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
