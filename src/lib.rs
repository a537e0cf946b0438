//! scpfs: mounts a directory of a host that has SSH and SCP and nothing else.
//!
//! A file is fetched whole with SCP when it is opened, read and written locally, and stored whole
//! with SCP when it is closed. The modules in reading order; each may use only those above it
//! (`tests/tidy.rs` holds the exact table). `docs/architecture.md` has the map.

pub mod clock;
pub mod host_key;
pub mod owned_path;
pub mod path;
pub mod stat;
pub mod sync;
pub mod workers;

pub mod scp;

pub mod transport;

pub mod remote;

pub mod cache;

pub mod vfs;

pub mod fuse;

pub mod cli;
pub mod config;
pub mod mount;
