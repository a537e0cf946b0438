#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests run programs")]
//! Real mounts of a real sshd, used by ordinary programs.
//!
//! - `control`: `scpfs status` and `scpfs umount`.
//! - `crash_recovery`: recovery after a daemon was killed, and `scpfs recover`.
//! - `direct_io`: `O_DIRECT` beside the page cache.
//! - `doctor`: `scpfs doctor`.
//! - `foreign_changes`: open files that change on the host.
//! - `full_disk`: full disks, of the host and of the cache.
//! - `guard`: the guard process.
//! - `host_keys`: a host with another key.
//! - `local_users`: attacks of other users of this machine.
//! - `lost_connection`: hosts that stop and connections that break.
//! - `lost_packets`: a network that loses every packet for a while.
//! - `many_files`: large directories.
//! - `many_writers`: several writers of one file: two mounts and programs on the host.
//! - `names_and_permissions`: odd names, and files that may not be read or written.
//! - `ordinary_user`: a mount without root.
//! - `programs`: ordinary programs: cp, tar, editors, databases.
//! - `reference`: random operations, compared with a local directory.
//! - `scp_only`: a host with nothing but scp.
//! - `sequences`: sequences of calls that shells and programs make, and mmap.
//! - `silent_host`: hosts that accept everything and answer nothing: deadlines.
//! - `small_hosts`: random operations on hosts of few programs.
//! - `start`: errors at the start and their exit statuses.
//! - `two_mounts`: two mounts of one directory.
//! - `unmount`: every way to end a mount.
//! - `uploads`: uploads in place and appends.
//! - `writer`: support: another process that holds a file open.

mod control;
mod crash_recovery;
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
mod many_writers;
mod names_and_permissions;
mod ordinary_user;
mod programs;
mod reference;
mod scp_only;
mod sequences;
mod silent_host;
mod small_hosts;
mod start;
mod two_mounts;
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
