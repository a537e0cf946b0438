//! The SCP wire protocol, without I/O: bytes go in, events and bytes come out.
//!
//! [`Sink`] receives what a host's `scp -f` sends, [`Source`] sends to a host's `scp -t`.
//! Nothing in this module reads, writes, waits, or knows what SSH is. Driven by `shell::transfer`
//! and `scp_only`. The protocol is that of OpenSSH's scp.c; every other implementation descends
//! from it or imitates it.
//!
//! Modules:
//! - `ahead`: when content may be sent before its acknowledgement
//! - `record`: C, D, E, T records and error lines: parse and encode; pure
//! - `sink`: the receiving state machine
//! - `source`: the sending state machine

pub mod ahead;
mod record;
mod sink;
mod source;

pub use record::MAX_LINE;
pub use record::ParseError;
pub use record::Record;
pub use sink::Event;
pub use sink::Scope;
pub use sink::Sink;
pub use source::Pipelining;
pub use source::Reply;
pub use source::Source;
pub use source::Step;
