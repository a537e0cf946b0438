#![cfg(test)]
//! Every parser of untrusted bytes, with mutated input.
//!
//! Each target runs the captured inputs in `fuzz/corpus/TARGET`, then mutations of them for
//! `FUZZ_SECONDS` (2 by default). `FUZZ_SEED` repeats a run. An input that fails is added to the
//! corpus, so that it is run first from then on.
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
