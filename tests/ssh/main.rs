#![cfg(test)]
//! The transport against a real OpenSSH server; the whole of `remote` against login shells and
//! another server.

mod auth;
mod certificates;
mod channel;
mod connect;
mod host_keys;
mod remote;
mod scp_only;
mod script;
