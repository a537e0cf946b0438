#![cfg(test)]
//! `Vfs` over a host that is a local process: no kernel, no network, no sleep.

mod budget;
#[path = "../common/capability.rs"]
mod capability;
mod content;
mod crash;
mod displaced;
mod edges;
mod faulty;
mod foreign_writers;
mod freshness;
mod in_flight;
mod interleavings;
mod interrupted;
mod leftovers;
#[path = "../common/local.rs"]
mod local;
#[path = "../common/memory_host.rs"]
mod memory_host;
mod names;
mod owned_path;
mod panics;
mod partial;
mod recovery;
mod safety;
mod scp_only;
#[path = "../common/scp_server.rs"]
mod scp_server;
mod sparse;
mod world;
