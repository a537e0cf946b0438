//! The subcommands that do not mount: `status`, `umount`, `doctor`, `recover`.
//!
//! Modules:
//! - `doctor`: reports what a mount would find, without mounting
//! - `mounts`: `status` and `umount`: asks the daemons of mounts
//! - `recover`: lists, saves and discards dirty content without a connection

pub mod doctor;
pub mod mounts;
pub mod recover;
