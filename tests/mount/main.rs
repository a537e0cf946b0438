#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests run programs")]
//! Real mounts of a real sshd, used as people use them.

mod bad_hosts;
mod black_hole;
#[path = "../common/capability.rs"]
mod capability;
mod control;
mod direct_io;
mod doctor;
mod foreign_changes;
mod full_disk;
mod guard;
mod host_keys;
#[path = "../common/local.rs"]
mod local;
mod local_users;
mod lost_connection;
mod lost_packets;
mod many_files;
#[path = "../common/mounted.rs"]
mod mounted;
#[path = "../common/network.rs"]
mod network;
mod ordinary_user;
mod programs;
#[path = "../common/proxy.rs"]
mod proxy;
mod race;
mod recover;
mod reference;
mod scp_only;
mod sequences;
mod side_by_side;
mod small_hosts;
#[path = "../common/sshd.rs"]
mod sshd;
mod start;
mod unmount;
mod uploads;
mod writer;
