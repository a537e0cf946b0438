#![cfg(test)]
//! `Vfs` over a host that is a local process; no kernel and no network.
//!
//! - `conflicts_and_outages`: conflicts, outages and write-back.
//! - `content`: open, read, write and close of contents, and the cache.
//! - `crash_matrix`: a crash after each step of the program or the host, and the next mount.
//! - `crash_recovery`: contents of an earlier mount while they are being uploaded.
//! - `failed_uploads`: uploads and writes that fail in the middle, and the next upload.
//! - `faulty`: support: a `Remote` that fails or blocks at a chosen request.
//! - `foreign_changes`: programs on the host that change files around an upload.
//! - `freshness`: TTL, revalidation and open files that change on the host.
//! - `interleavings`: operations that meet on one file.
//! - `names`: create, rename and unlink.
//! - `owned_path`: local directories that another user could replace.
//! - `panics`: a panic in the middle of an operation leaves nothing busy.
//! - `partial_uploads`: partial uploads in place, and changes by others to them.
//! - `parts`: large files of which only a part is read.
//! - `races`: rare orders of events: close, fetch, truncate, retries.
//! - `read_ahead`: read-ahead for programs that walk through a tree.
//! - `rename_races`: listings that race with renames, and renames of unknown outcome.
//! - `renamed_files`: files that are renamed, removed or in conflict while they are open.
//! - `round_trips`: the number of round trips of each operation.
//! - `scp_only`: hosts with nothing but scp.
//! - `sparse`: sparse files.
//! - `temporary_files`: leftovers of uploads on a host that crashed.

mod conflicts_and_outages;
mod content;
mod crash_matrix;
mod crash_recovery;
mod failed_uploads;
mod faulty;
mod foreign_changes;
mod freshness;
mod interleavings;
mod names;
mod owned_path;
mod panics;
mod partial_uploads;
mod parts;
mod races;
mod read_ahead;
mod rename_races;
mod renamed_files;
mod round_trips;
mod scp_only;
mod sparse;
mod temporary_files;
