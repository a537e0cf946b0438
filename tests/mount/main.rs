#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests run programs")]
//! Real mounts of a real sshd, used as people use them.

mod bad_hosts;
mod black_hole;
mod full_disk;
mod lost_connection;
mod many_files;
#[path = "../common/mounted.rs"]
mod mounted;
mod network;
mod ordinary_user;
mod programs;
#[path = "../common/proxy.rs"]
mod proxy;
mod race;
mod reference;
mod sequences;
#[path = "../common/sshd.rs"]
mod sshd;
mod start;
mod unmount;
