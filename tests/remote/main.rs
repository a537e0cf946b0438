#![cfg(test)]
//! One conformance suite for the `Remote` trait, run for each kind of host.

#[path = "../common/local.rs"]
mod local;
mod noise;
mod suite;
mod tools;

use local::Userland;

/// Binds each body of the suite to a world.
macro_rules! conformance {
    ($world:ident, $userland:expr; $($name:ident)*) => {
        mod $world {
            use super::*;
            $(
                #[test]
                fn $name() {
                    if $userland.is_here() {
                        suite::$name(&suite::Host::new($userland));
                    }
                }
            )*
        }
    };
}

macro_rules! for_worlds {
    ($($name:ident)*) => {
        conformance!(gnu, Userland::Gnu; $($name)*);
        conformance!(bash, Userland::Bash; $($name)*);
        conformance!(busybox, Userland::BusyBox; $($name)*);
        conformance!(toybox, Userland::Toybox; $($name)*);
        conformance!(openwrt, Userland::OpenWrt; $($name)*);
        conformance!(bare, Userland::Bare; $($name)*);
        conformance!(no_scp, Userland::NoScp; $($name)*);
        conformance!(bsd, Userland::Bsd; $($name)*);
    };
}

for_worlds! {
    every_byte_of_a_name_survives
    every_kind_of_file_is_listed_as_it_is_stated
    a_missing_file_is_not_found_and_a_forbidden_one_is_denied
    a_file_is_fetched_byte_for_byte
    a_fetch_of_what_is_no_file_fails_without_content
    a_file_of_proc_is_fetched_though_its_size_says_nothing
    a_file_is_stored_with_mode_and_times
    a_store_never_shows_half_a_file
    a_store_keeps_hard_links_in_place
    a_store_over_a_version_that_is_not_there_is_a_conflict
    what_conflicts_is_kept_beside
    coarse_times_are_not_trusted_alone
    only_our_own_leftovers_are_removed
    a_store_over_a_directory_fails_and_leaves_nothing
    a_large_file_is_stored_and_fetched
    a_huge_file_is_stored_in_pieces_by_several_lanes
    a_huge_store_keeps_hard_links_in_place
    a_huge_store_that_fails_changes_nothing
    a_full_disk_never_runs_the_pieces
    a_huge_store_survives_a_cut
    content_that_looks_like_shell_and_records_is_only_content
    a_failed_store_never_runs_its_content
    creation_is_exclusive
    directories_are_made_and_removed
    names_move_and_multiply
    a_rename_takes_the_place_of_any_link
    a_rename_that_must_not_replace_does_not
    attributes_are_set_in_one_round_trip
    times_before_1970_are_kept
    a_copy_on_the_host_moves_no_bytes
    the_state_of_the_filesystem_is_told
    every_operation_is_one_round_trip
    a_cut_connection_is_replaced
    a_listing_that_is_cut_is_never_a_shorter_directory
}
