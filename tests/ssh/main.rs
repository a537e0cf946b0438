#![cfg(test)]
//! The transport against a real OpenSSH server, and the dialects through real connections.
//!
//! - `auth`: keys, agents, passwords and prompts.
//! - `certificates`: host certificates.
//! - `channel`: the streams of a command.
//! - `connect`: connections, settings and jump hosts.
//! - `host_keys`: `known_hosts` and revocations.
//! - `remote`: the `shell` dialect: dropbear, login shells, start-up files.
//! - `scp_only`: the `scp-only` dialect: forced commands.
//! - `script`: support: a scripted person at the terminal.

mod auth;
mod certificates;
mod channel;
mod connect;
mod host_keys;
mod remote;
mod scp_only;
mod script;
