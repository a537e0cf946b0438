#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests run programs")]
//! Real mounts of a real sshd, used as people use them.

mod bad_hosts;
mod black_hole;
mod control;
mod direct_io;
mod doctor;
mod foreign_changes;
mod full_disk;
mod guard;
mod host_keys;
mod local_users;
mod lost_connection;
mod lost_packets;
mod many_files;
mod ordinary_user;
mod programs;
mod race;
mod recover;
mod reference;
mod scp_only;
mod sequences;
mod side_by_side;
mod small_hosts;
mod start;
mod unmount;
mod uploads;
mod writer;

use scpfs_testing::mounted;

/// The program under test.
#[derive(Debug)]
enum Scpfs {}

impl mounted::Program for Scpfs {
    const PATH: &str = env!("CARGO_BIN_EXE_scpfs");
}

type Mounted = mounted::Mounted<Scpfs>;
