#![cfg(test)]
//! The transport against a real OpenSSH server; the whole of `remote` against login shells and
//! another server.

mod auth;
#[path = "../common/capability.rs"]
mod capability;
mod certificates;
mod channel;
mod connect;
#[path = "../common/dropbear.rs"]
mod dropbear;
mod host_keys;
mod remote;
mod scp_only;
mod script;
#[path = "../common/sshd.rs"]
mod sshd;
