//! scpfs: mounts a directory of a host that has SSH and SCP and nothing else.
//!
//! A file is fetched whole with SCP when it is opened, read and written locally, and uploaded whole
//! with SCP when it is closed. The modules from the bottom up; each may use only those above it in
//! this list (`tests/tidy.rs` holds the exact table). `docs/architecture.md` has the map.
//!
//! Plain data and helpers that every layer shares:
//! - [`path`]: remote paths and names as bytes, and how they are escaped for people
//! - [`stat`]: attributes, times and versions of remote files
//! - [`clock`]: the two clocks, and one that a test moves
//! - [`sync`]: locks without poisoning
//! - [`workers`]: a pool of threads for requests that wait
//! - [`host_key`]: the identity of a host
//! - [`owned_path`]: whether another local user could change what a path leads to
//! - [`process`]: the only place that starts programs
//! - [`error_chain`]: an error and its causes as one line of text
//! - [`exit_code`]: the exit statuses of the program
//!
//! Protocols:
//! - [`scp`]: the SCP wire protocol as state machines: bytes in, bytes out
//! - [`ssh`]: authenticated connections and their channels; libssh2, login, host keys, `ssh_config`
//!
//! The host:
//! - [`remote`]: the contract, trait `Remote`: what a host can do, its errors, and the retry wrapper
//! - [`pool`]: a pool of connections: lend, return, reconnect with back-off, one reserved for metadata
//! - [`shell`]: the dialect for hosts with a POSIX shell: resident shell, scripts, answers, uploads
//! - [`scp_only`]: the dialect for hosts with nothing but `scp -f` and `scp -t`
//! - [`host`]: chooses the dialect
//!
//! The filesystem:
//! - [`cache`]: whole files on the local disk: entries, journal, eviction, uploads, recovery
//! - [`vfs`]: one method per file operation: inodes, handles, names, attributes
//! - [`fuse`]: kernel request, one call of `vfs`, reply
//!
//! The program:
//! - [`config`]: what the command line and the environment ask for, resolved
//! - [`cli`]: the command line and the environment
//! - [`control`]: the status socket: messages, server, sockets, display
//! - [`mount`]: wires the layers; the life of a mount
//! - [`commands`]: subcommands that are not mounts

pub mod clock;
pub mod error_chain;
pub mod exit_code;
pub mod host_key;
pub mod owned_path;
pub mod path;
pub mod process;
pub mod stat;
pub mod sync;
pub mod workers;

pub mod scp;
pub mod ssh;

pub mod host;
pub mod pool;
pub mod remote;
pub mod scp_only;
pub mod shell;

pub mod cache;
pub mod fuse;
pub mod vfs;

pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod mount;
