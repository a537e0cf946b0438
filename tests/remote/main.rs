#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests run programs")]
//! One conformance suite for the `Remote` trait, which runs on each kind of host.
//!
//! - `batches`: many small files, or many directories, in one request.
//! - `contract`: tests that every kind of host must pass.
//! - `durability`: uploads with fsync.
//! - `host`: support: a host of any kind, its abilities and its other side.
//! - `host_programs`: hosts whose programs are special, and the probe.
//! - `late_requests`: requests that arrive after they were given up, or in part.
//! - `login_output`: logins that print or ask.
//! - `memory`: the host in memory.
//! - `program_counts`: the number of programs that each operation starts on the host.
//! - `scp_only`: the `scp-only` dialect.
//! - `servers`: SCP servers without a shell.
//! - `suite`: tests that every host with a shell must pass.
//! - `upload_faults`: uploads whose programs fail and whose connection breaks.
//! - `uploads`: races between an upload and other users or programs of the host.

mod batches;
mod contract;
mod durability;
mod host;
mod host_programs;
mod late_requests;
mod login_output;
mod memory;
mod program_counts;
mod scp_only;
mod servers;
mod suite;
mod upload_faults;
mod uploads;

use host::Which;
use scpfs_testing::local::Userland;
use scpfs_testing::scp_server::Kind;

/// Makes a test of each body on one kind of host.
macro_rules! bind {
    ($world:ident, $bodies:ident, $host:expr; $($name:ident)*) => {
        mod $world {
            use super::*;
            $(
                #[test]
                fn $name() {
                    if let Some(host) = $host {
                        $bodies::$name(&host);
                    }
                }
            )*
        }
    };
}

macro_rules! every_host {
    ($($name:ident)*) => {
        bind!(in_memory, contract, host::Host::of(Which::Memory); $($name)*);
        bind!(gnu, contract, host::Host::of(Which::Shell(Userland::Gnu)); $($name)*);
        bind!(bash, contract, host::Host::of(Which::Shell(Userland::Bash)); $($name)*);
        bind!(busybox, contract, host::Host::of(Which::Shell(Userland::BusyBox)); $($name)*);
        bind!(toybox, contract, host::Host::of(Which::Shell(Userland::Toybox)); $($name)*);
        bind!(openwrt, contract, host::Host::of(Which::Shell(Userland::OpenWrt)); $($name)*);
        bind!(dropbear, contract, host::Host::of(Which::Shell(Userland::Dropbear)); $($name)*);
        bind!(bare, contract, host::Host::of(Which::Shell(Userland::Bare)); $($name)*);
        bind!(no_scp, contract, host::Host::of(Which::Shell(Userland::NoScp)); $($name)*);
        bind!(bsd, contract, host::Host::of(Which::Shell(Userland::Bsd)); $($name)*);
        bind!(scp, contract, host::Host::of(Which::ScpOnly); $($name)*);
        bind!(dropbear_scp, contract, host::Host::of(Which::DropbearOnly); $($name)*);
        bind!(appliance, contract, host::Host::of(Which::Appliance(Kind::Skipping)); $($name)*);
        bind!(insisting, contract, host::Host::of(Which::Appliance(Kind::Insisting)); $($name)*);
        bind!(hanging_up, contract, host::Host::of(Which::Appliance(Kind::HangingUp)); $($name)*);
    };
}

every_host! {
    every_byte_of_a_name_survives
    list_and_stat_agree_on_every_kind_of_file
    missing_files_are_not_found
    a_file_is_fetched_byte_for_byte
    fetch_of_a_non_file_fails_without_content
    a_file_is_uploaded_with_mode_and_times
    upload_whose_content_ends_early_fails_and_the_next_succeeds
    an_upload_over_a_version_that_is_not_there_is_a_conflict
    upload_conflict_makes_a_conflict_copy
    an_upload_over_a_directory_fails_and_leaves_nothing
    a_large_file_is_uploaded_and_fetched
    content_that_looks_like_shell_and_records_is_only_content
    content_of_a_refused_upload_creates_no_file
    creation_is_exclusive
    directories_are_made_and_removed
    rename_and_link_give_files_other_names
    rename_noreplace_does_not_replace
    attributes_are_set
    copy_has_the_content_of_its_source
    fs_stat_reports_the_filesystem
    only_our_own_leftovers_are_removed
    close_makes_every_later_call_fail
}

macro_rules! hosts_with_a_shell {
    ($group:ident, $bodies:ident; $($name:ident)*) => {
        mod $group {
            use super::*;
            bind!(gnu_shell, $bodies, suite::Host::of(Userland::Gnu); $($name)*);
            bind!(bash_shell, $bodies, suite::Host::of(Userland::Bash); $($name)*);
            bind!(busybox_shell, $bodies, suite::Host::of(Userland::BusyBox); $($name)*);
            bind!(toybox_shell, $bodies, suite::Host::of(Userland::Toybox); $($name)*);
            bind!(openwrt_shell, $bodies, suite::Host::of(Userland::OpenWrt); $($name)*);
            bind!(dropbear_shell, $bodies, suite::Host::of(Userland::Dropbear); $($name)*);
            bind!(bare_shell, $bodies, suite::Host::of(Userland::Bare); $($name)*);
            bind!(no_scp_shell, $bodies, suite::Host::of(Userland::NoScp); $($name)*);
            bind!(bsd_shell, $bodies, suite::Host::of(Userland::Bsd); $($name)*);
        }
    };
}

hosts_with_a_shell! { operations, suite;
    attributes_are_those_of_the_host
    file_of_proc_is_fetched_although_its_size_is_0
    an_upload_takes_one_round_trip_and_keeps_nanoseconds
    an_upload_never_shows_half_a_file
    an_upload_keeps_hard_links_in_place
    upload_conflict_makes_a_conflict_copy_in_the_same_round_trip
    failed_version_check_is_no_conflict
    change_with_an_equal_coarse_mtime_is_a_conflict
    leftovers_are_removed_in_one_round_trip_and_directories_never
    a_large_file_takes_two_round_trips
    a_failed_upload_never_runs_its_content
    creation_takes_one_round_trip_and_follows_no_link
    rename_over_a_symlink_does_not_follow_it
    one_of_several_uploads_of_one_base_version_succeeds
    upload_of_unknown_outcome_that_succeeded_is_not_sent_again
    attributes_are_set_in_one_round_trip
    times_before_1970_are_kept
    a_copy_on_the_host_moves_no_bytes
    every_operation_is_one_round_trip
    a_cut_connection_is_replaced
}

hosts_with_a_shell! { many, batches;
    many_small_files_take_one_round_trip
    a_large_request_for_many_files_is_sent_in_chunks
    files_that_changed_are_left_out_of_a_request_for_many
    files_that_cannot_be_sent_do_no_harm_to_a_request_for_many
    a_file_of_proc_is_left_out_of_a_request_for_many
    a_tree_is_listed_as_its_directories_are
    a_tree_that_is_too_large_is_listed_in_part
    a_root_of_a_tree_that_was_replaced_is_left_out
}

/// Slow tests: they run only on kinds of hosts whose results may differ.
macro_rules! hosts_of_each_way {
    ($($name:ident)*) => {
        bind!(gnu_long, suite, suite::Host::of(Userland::Gnu); $($name)*);
        bind!(busybox_long, suite, suite::Host::of(Userland::BusyBox); $($name)*);
        bind!(openwrt_long, suite, suite::Host::of(Userland::OpenWrt); $($name)*);
        bind!(dropbear_long, suite, suite::Host::of(Userland::Dropbear); $($name)*);
        bind!(bare_long, suite, suite::Host::of(Userland::Bare); $($name)*);
    };
}

hosts_of_each_way! {
    huge_file_is_uploaded_in_pieces_over_several_connections
    a_huge_upload_keeps_hard_links_in_place
    a_huge_upload_that_fails_changes_nothing
    a_full_disk_never_runs_the_pieces
    a_huge_upload_survives_a_cut
    a_listing_that_is_cut_is_never_a_shorter_directory
}
