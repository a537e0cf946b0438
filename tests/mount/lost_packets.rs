//! A network of its own that loses every packet for a while.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::mounted::Mounted;

fn is_done(program: &str, args: &[&str]) -> bool {
    let output = Command::new(program).args(args).output();
    output.is_ok_and(|output| output.status.success())
}

/// In a network namespace of this thread, which goes with it and with what it started.
fn enter_a_network() -> bool {
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    // SAFETY: the call takes no pointer, and only this thread changes its network.
    let is_inside = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    is_inside
        && is_done("ip", &["link", "set", "lo", "up"])
        && is_done("nft", &["add", "table", "inet", "cut"])
}

fn cut() {
    let chain = "{ type filter hook input priority 0; policy drop; }";
    assert!(is_done(
        "nft",
        &["add", "chain", "inet", "cut", "input", chain]
    ));
}

fn heal() {
    assert!(is_done("nft", &["delete", "chain", "inet", "cut", "input"]));
}

/// Nothing is refused or reset: packets are lost, and TCP sends them again when it thinks best.
#[test]
fn a_network_that_loses_everything_for_a_while_costs_nothing_but_time() {
    thread::spawn(|| {
        if !enter_a_network() {
            eprintln!("SKIPPED: no network namespace with nft for a test of lost packets");
            return;
        }
        let args = ["-o", "timeout=3,cache_timeout=1"];
        let Some(mut mounted) = Mounted::new(&args) else {
            return;
        };
        for length in [Duration::from_millis(700), Duration::from_secs(8)] {
            let is_short = length < Duration::from_secs(3);
            fs::write(mounted.here("file"), "old").unwrap();
            cut();
            let path = mounted.here("file");
            let begun = Instant::now();
            let writer = thread::spawn(move || fs::write(path, "new").map_err(|_| ()));
            thread::sleep(length);
            assert_eq!(fs::read(mounted.there("file")).unwrap(), b"old");
            let is_over = writer.is_finished();
            heal();
            // `fs::write` does not look at what close(2) says.
            writer.join().unwrap().unwrap_or_default();
            eprintln!("cut for {length:?}, written after {:?}", begun.elapsed());
            assert!(is_short || is_over, "it hung");
            mounted.wait_until("it is stored", |mounted| {
                fs::read(mounted.there("file")).is_ok_and(|data| data == b"new")
            });
            let path = mounted.here("");
            mounted.wait_until("it answers", |_| fs::read_dir(&path).is_ok());
        }
        // The other end of a connection that was given up hears of it in time.
        assert_eq!(mounted.unmount().code(), Some(0));
        mounted.start(&args);
        assert_eq!(fs::read(mounted.here("file")).unwrap(), b"new");
    })
    .join()
    .unwrap();
}
