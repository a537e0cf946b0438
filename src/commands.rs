//! Subcommands that are not mounts: `status`, `umount`, `doctor`, `recover`.
//!
//! Modules:
//! - `doctor`: what a mount would find, without mounting
//! - `mounts`: status and umount
//! - `recover`: list, save and discard dirty content without a connection

pub mod doctor;
pub mod mounts;
pub mod recover;
