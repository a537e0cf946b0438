//! Subcommands that are not mounts: `status`, `umount`, `doctor`, `recover`.

pub mod doctor;
pub mod mounts;
pub mod recover;
