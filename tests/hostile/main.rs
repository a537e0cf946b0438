#![cfg(test)]
//! Hosts that mean harm: whatever they say, the client is unharmed, ends, and its words are clear
//! and fit for a terminal.

#[path = "../common/capability.rs"]
mod capability;
mod cuts;
mod lane;
#[path = "../common/local.rs"]
mod local;
mod scp_only;
#[path = "../common/scripted.rs"]
mod scripted;
#[path = "../remote/things.rs"]
mod things;
mod uploads;
mod world;
