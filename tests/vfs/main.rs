#![cfg(test)]
//! `Vfs` over a host that is a local process: no kernel, no network, no sleep.

mod budget;
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
mod names;
mod owned_path;
mod panics;
mod partial;
mod recovery;
mod safety;
mod scp_only;
mod sparse;
