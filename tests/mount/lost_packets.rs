//! A host in a network namespace of its own that loses all packets for a while.

use std::fs;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::Mounted;
use scpfs_testing::network::HOST;
use scpfs_testing::network::Network;
use scpfs_testing::network::Side;
use scpfs_testing::or_skip;
use scpfs_testing::sshd::Options;
use scpfs_testing::sshd::Sshd;

/// Connections are neither refused nor reset: TCP retransmits the lost packets with its own delays.
#[test]
fn network_that_loses_all_packets_for_a_while_only_delays() {
    // The network namespace ends with the thread.
    let result = thread::spawn(|| {
        let network = or_skip!(Network::new());
        network.enter();
        let options = Options {
            address: HOST,
            ..Options::default()
        };
        let sshd = or_skip!(network.at(Side::Far, || Sshd::start(options)));
        let args = ["-o", "timeout=3,cache_timeout=1"];
        let mut mounted = or_skip!(Mounted::on(sshd, &args));
        for length in [Duration::from_millis(700), Duration::from_secs(12)] {
            let is_short = length < Duration::from_secs(3);
            fs::write(mounted.here("file"), "old").unwrap();
            network.lose(Side::Near);
            network.lose(Side::Far);
            let path = mounted.here("file");
            let begun = Instant::now();
            let writer = thread::spawn(move || fs::write(path, "new").map_err(|_| ()));
            thread::sleep(length);
            assert_eq!(fs::read(mounted.there("file")).unwrap(), b"old");
            let is_over = writer.is_finished();
            network.heal();
            // `fs::write` ignores the result of close(2).
            writer.join().unwrap().unwrap_or_default();
            eprintln!("cut for {length:?}, written after {:?}", begun.elapsed());
            assert!(is_short || is_over, "it hung");
            mounted.wait_until("it is uploaded", |mounted| {
                fs::read(mounted.there("file")).is_ok_and(|data| data == b"new")
            });
            let path = mounted.here("");
            mounted.wait_until("it answers", |_| fs::read_dir(&path).is_ok());
        }
        // By now the server has closed the connections that the client gave up.
        assert_eq!(mounted.unmount().code(), Some(0));
        mounted.start(&args);
        assert_eq!(fs::read(mounted.here("file")).unwrap(), b"new");
    })
    .join();
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
