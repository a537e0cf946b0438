#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests run programs")]
//! Programs write through a real mount of a real sshd while random faults occur; afterwards the
//! files on the host are compared with the acknowledged contents.
//!
//! Daemon and server run in network namespaces of their own, so that the network can fail as well.
//! `scripts/chaos` runs many rounds. A seed determines the faults; when they meet the programs is
//! up to the scheduler.
//!
//! - `faults`: the faults: what fails, for how long, and how it is repaired.
//! - `model`: the contents that were written and acknowledged, and those that may be found.
//! - `scene`: the mount, the network and the proxy.
//! - `world`: the rounds, and the comparison after each.
//! - `writers`: the programs that write.

mod faults;
mod model;
mod scene;
mod world;
mod writers;

use std::thread;

use scpfs_testing::mounted;
use scpfs_testing::or_skip;

use crate::world::World;

/// The program under test.
#[derive(Debug)]
enum Scpfs {}

impl mounted::Program for Scpfs {
    const PATH: &str = env!("CARGO_BIN_EXE_scpfs");
}

type Mounted = mounted::Mounted<Scpfs>;

/// Few enough for each run of the test suite.
const FEW_ROUNDS: u64 = 36;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number")),
    )
}

#[test]
fn random_faults_lose_no_acknowledged_content() {
    // The network namespace ends with the thread.
    let result = thread::spawn(run).join();
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn run() {
    let n_rounds = number("SCPFS_CHAOS_ROUNDS").unwrap_or(FEW_ROUNDS);
    let seed = number("SCPFS_CHAOS_SEED").unwrap_or(1);
    let first = number("SCPFS_CHAOS_FIRST").unwrap_or(0);
    let mut world = or_skip!(World::new(first));
    for n in first..first + n_rounds {
        world.round(seed, n);
    }
    world.end();
    let totals = world.totals();
    println!("seed {seed}, {totals}");
    assert!(totals.is_good(), "seed {seed}: {totals}");
}
