#![cfg(test)]
//! Hosts that mean harm: whatever they say, the client is unharmed, ends, and its words are clear
//! and fit for a terminal.

mod cuts;
mod lane;
mod scp_only;
mod uploads;
