//! Support for the tests of scpfs: servers, hosts, mounts, and the capabilities of the machine.
//!
//! - [`capability`]: programs and rights that a test needs; the only function that skips tests.
//! - [`ability`]: abilities of a host, for tests that depend on them.
//! - [`wait`]: waits on conditions with a deadline.
//! - [`random`]: reproducible random numbers.
//! - [`content`]: content in memory, to upload and as fetched.
//! - [`samples`]: paths, names, settings and upload specs for tests of any `Remote`.
//! - [`local`]: a host that is a local process, with the programs of any userland.
//! - [`memory_host`]: a `Remote` in memory, with failures on demand.
//! - [`scp_server`]: SCP servers that are not OpenSSH's.
//! - [`scripted`]: a connection that answers by a script.
//! - [`hostile`]: operations on a host that means harm, and checks of errors and log lines.
//! - [`vfs_mount`]: a `Vfs` with its host, its cache and a clock that the test moves.
//! - [`sshd`]: a throwaway OpenSSH server. Needs root.
//! - [`dropbear`]: a throwaway dropbear. Needs root.
//! - [`proxy`]: a TCP proxy in front of a server, which fails on demand.
//! - [`network`]: two network namespaces with a wire that breaks on demand. Needs root.
//! - [`mounted`]: a real mount of a throwaway server.
//! - [`fuzz`]: mutates captured inputs and feeds them to a parser.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a broken assumption fails the test"
)]
#![allow(missing_debug_implementations, reason = "nothing prints these")]

pub mod ability;
pub mod capability;
pub mod content;
pub mod dropbear;
pub mod fuzz;
pub mod hostile;
pub mod local;
pub mod memory_host;
pub mod mounted;
pub mod network;
pub mod proxy;
pub mod random;
pub mod samples;
pub mod scp_server;
pub mod scripted;
pub mod sshd;
pub mod vfs_mount;
pub mod wait;
