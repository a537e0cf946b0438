#![cfg(test)]
//! Hosts that mean harm: the client is unharmed, ends, and its messages are fit for a terminal.
//!
//! - `cuts`: connections that end at every byte.
//! - `lane`: hostile shells.
//! - `scp_only`: hostile sources (`scp -f`).
//! - `uploads`: hostile sinks (`scp -t`), hostile content, and targets that are replaced.

mod cuts;
mod lane;
mod scp_only;
mod uploads;
