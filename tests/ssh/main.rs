#![cfg(test)]
//! The transport against a real OpenSSH server.

mod auth;
mod channel;
mod connect;
mod host_keys;
mod scp_only;
mod script;
#[path = "../common/sshd.rs"]
mod sshd;
