#![cfg(test)]
//! Malicious hosts: the client is not harmed, does not hang, and prints no control characters.
//!
//! - `cuts`: connections that end at every byte.
//! - `lane`: hostile shells.
//! - `scp_only`: hostile sources (`scp -f`).
//! - `uploads`: hostile sinks (`scp -t`), hostile content, and targets that are replaced.

mod cuts;
mod lane;
mod scp_only;
mod uploads;
