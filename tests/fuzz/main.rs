#![cfg(test)]
//! Every parser of foreign bytes, with mutated input.
//!
//! Each target takes the captured inputs in `fuzz/corpus/TARGET` as they are, then mutations of
//! them for `FUZZ_SECONDS` (2 where it is not set). `FUZZ_SEED` repeats a run. An input that
//! breaks something is left in the corpus, where it is tried first from then on.
//!
//! - `targets`: one function for each parser.

mod targets;

/// Makes a test of each target.
macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                scpfs_testing::fuzz::run(stringify!($name), targets::$name);
            }
        )*
    };
}

targets! {
    sink
    source
    record
    stat_lines
    gnu_listing
    busybox_listing
    ls_listing
    shell_dialect
    scp_only_dialect
    ssh_config
    known_hosts
}
