#![cfg(test)]
//! The streams of a command.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use scpfs::clock::SystemClock;
use scpfs::ssh::Channel;
use scpfs::ssh::Connection;
use scpfs::ssh::Error;
use scpfs::ssh::Transport as _;
use scpfs_testing::or_skip;
use scpfs_testing::sshd::Options;
use scpfs_testing::sshd::Sshd;

use crate::script::unattended;

fn connect(sshd: &Sshd) -> Box<dyn Connection> {
    unattended(sshd.settings()).connect().unwrap()
}

/// Reads until the end of the output.
pub(crate) fn output(channel: &mut dyn Channel) -> Vec<u8> {
    let mut buf = vec![0; 1 << 18];
    let mut output = Vec::new();
    loop {
        match channel.read(&mut buf).unwrap() {
            0 => return output,
            n_bytes => output.extend(&buf[..n_bytes]),
        }
    }
}

fn read_exactly(channel: &mut dyn Channel, n_bytes: usize) -> Vec<u8> {
    let mut buf = vec![0; n_bytes];
    let mut filled = 0;
    while filled < n_bytes {
        let n_read = channel.read(&mut buf[filled..]).unwrap();
        assert_ne!(
            n_read, 0,
            "the output ended after {filled} of {n_bytes} bytes"
        );
        filled += n_read;
    }
    buf
}

/// Bytes that do not repeat within any short distance.
fn pattern(n_bytes: usize) -> Vec<u8> {
    let mut state: u32 = 1;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(n_bytes).collect()
}

#[test]
fn channel_write_is_echoed() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mut connection = connect(&sshd);
    let mut channel = connection.exec("cat").unwrap();
    for text in [&b"hello\n"[..], b"\0\xff\n", b"x"] {
        channel.write_all(text).unwrap();
        assert_eq!(read_exactly(&mut *channel, text.len()), text);
    }
    assert_eq!(channel.finish().unwrap(), Some(0));
}

#[test]
fn large_content_is_the_same_in_both_directions() {
    const N_BYTES: usize = 20 << 20;
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mut connection = connect(&sshd);
    let content = pattern(N_BYTES);
    let mut channel = connection
        .exec(&format!("head -c {N_BYTES} > big && wc -c < big"))
        .unwrap();
    channel.write_all(&content).unwrap();
    assert_eq!(output(&mut *channel), format!("{N_BYTES}\n").as_bytes());
    assert_eq!(channel.finish().unwrap(), Some(0));
    let on_host = std::fs::read(sshd.home().join("big")).unwrap();
    assert!(on_host == content, "what arrived at the host differs");
    let mut channel = connection.exec("cat big; rm big").unwrap();
    assert!(output(&mut *channel) == content, "what came back differs");
    assert_eq!(channel.finish().unwrap(), Some(0));
}

#[test]
fn standard_error_is_mixed_in_until_it_is_discarded() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mut connection = connect(&sshd);
    let mut channel = connection
        .exec("echo early >&2; read -r x; echo late >&2; echo out")
        .unwrap();
    assert_eq!(read_exactly(&mut *channel, 6), b"early\n");
    channel.discard_stderr().unwrap();
    channel.write_all(b"go\n").unwrap();
    assert_eq!(output(&mut *channel), b"out\n");
}

#[test]
fn a_flood_of_discarded_errors_does_not_stall_the_output() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mut connection = connect(&sshd);
    let mut channel = connection
        .exec("read -r x; head -c 20000000 /dev/zero >&2; echo done")
        .unwrap();
    channel.discard_stderr().unwrap();
    channel.write_all(b"go\n").unwrap();
    assert_eq!(output(&mut *channel), b"done\n");
    assert_eq!(channel.finish().unwrap(), Some(0));
}

#[test]
fn exit_status_is_reported_and_a_signal_has_none() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mut connection = connect(&sshd);
    for status in [0, 1, 255] {
        let channel = connection.exec(&format!("exit {status}")).unwrap();
        assert_eq!(channel.finish().unwrap(), Some(status));
    }
    let channel = connection.exec("kill -9 $$").unwrap();
    assert_eq!(channel.finish().unwrap(), None);
}

#[test]
fn finishing_ends_the_input_and_drops_what_is_still_printed() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mut connection = connect(&sshd);
    let channel = connection
        .exec("head -c 3000000 /dev/zero; cat; exit 4")
        .unwrap();
    assert_eq!(channel.finish().unwrap(), Some(4));
}

#[test]
fn silence_of_the_host_is_a_timeout() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mut connection = connect(&sshd);
    let mut channel = connection.exec("cat").unwrap();
    channel.set_timeout(Duration::from_millis(50));
    let err = channel.read(&mut [0; 10]).unwrap_err();
    assert!(
        matches!(err, Error::Timeout { timeout, .. } if timeout.as_millis() == 50),
        "{err}"
    );
}

#[test]
fn write_to_a_command_that_does_not_read_times_out() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mut connection = connect(&sshd);
    let mut channel = connection.exec("sleep 1000").unwrap();
    channel.set_timeout(Duration::from_millis(200));
    let err = channel.write_all(&vec![0; 64 << 20]).unwrap_err();
    assert!(matches!(err, Error::Timeout { .. }), "{err}");
}

#[test]
fn write_to_a_command_that_has_ended_fails_and_its_output_can_be_read() {
    // Regression: the write waited for room in the window until the deadline, although the end of
    // the command had arrived.
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mut connection = connect(&sshd);
    for words in ["echo why", "echo why; exec >&- 2>&-; sleep 1", "exec >&-"] {
        let command = format!("head -c 100000 >/dev/null; {words}");
        let mut channel = connection.exec(&command).unwrap();
        // The deadline is far longer than the write may take.
        channel.set_timeout(Duration::from_secs(60));
        let since = SystemClock::new();
        let error = channel.write_all(&pattern(16 << 20)).unwrap_err();
        assert!(matches!(error, Error::Closed { .. }), "{error}");
        assert!(since.elapsed() < Duration::from_secs(30), "{words}");
        let mut said = vec![0; 10];
        let n = channel.read(&mut said).unwrap();
        let expected: &[u8] = if words.contains("why") { b"why\n" } else { b"" };
        assert_eq!(&said[..n], expected);
    }
    // The connection can still be used.
    let mut channel = connection.exec("cat").unwrap();
    channel.write_all(b"more").unwrap();
    assert_eq!(read_exactly(&mut *channel, 4), b"more");
}

#[test]
fn a_killed_server_is_an_error_and_no_end_of_output() {
    let mut sshd = or_skip!(Sshd::start(Options::default()));
    let mut connection = connect(&sshd);
    let mut channel = connection.exec("cat").unwrap();
    channel.write_all(b"x").unwrap();
    read_exactly(&mut *channel, 1);
    sshd.kill();
    let err = channel.read(&mut [0; 10]).unwrap_err();
    assert!(matches!(err, Error::Closed { .. }), "{err}");
    assert!(channel.read(&mut [0; 10]).is_err(), "it stays an error");
    assert!(channel.finish().is_err());
    assert!(connection.exec("true").is_err());
    assert!(connection.keepalive().is_err());
}

#[test]
fn frozen_host_times_out_and_is_closed_quickly() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mut connection = connect(&sshd);
    let mut channel = connection.exec("cat").unwrap();
    sshd.freeze_sessions();
    channel.set_timeout(Duration::from_millis(50));
    channel.write_all(b"x").unwrap();
    let err = channel.read(&mut [0; 10]).unwrap_err();
    assert!(matches!(err, Error::Timeout { .. }), "{err}");
    // The session is stopped: if dropping waited for the host, the test would never end.
    drop(channel);
    drop(connection);
    sshd.thaw_sessions();
}

#[test]
fn another_thread_can_end_a_connection_that_waits() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mut connection = connect(&sshd);
    let aborter = connection.aborter();
    let mut channel = connection.exec("echo ready; exec sleep 1000").unwrap();
    let (ready, is_ready) = mpsc::channel();
    let reader = thread::spawn(move || {
        read_exactly(&mut *channel, 6);
        ready.send(()).unwrap();
        channel.read(&mut [0; 10]).unwrap_err()
    });
    is_ready.recv().unwrap();
    aborter.abort();
    aborter.abort();
    let err = reader.join().unwrap();
    assert!(matches!(err, Error::Closed { .. }), "{err}");
}

#[test]
fn channel_of_a_closed_connection_fails() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mut connection = connect(&sshd);
    let mut channel = connection.exec("exec sleep 1000").unwrap();
    drop(connection);
    let err = channel.read(&mut [0; 10]).unwrap_err();
    assert!(matches!(err, Error::Closed { .. }), "{err}");
}

#[test]
fn an_abandoned_command_leaves_the_connection_usable() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let mut connection = connect(&sshd);
    for _ in 0..3 {
        drop(connection.exec("echo much; exec cat").unwrap());
    }
    let mut channel = connection.exec("echo still here").unwrap();
    assert_eq!(output(&mut *channel), b"still here\n");
}

#[test]
fn keepalives_answer_those_of_the_host_and_consume_no_output() {
    // The server disconnects after one unanswered keep-alive message.
    let options = Options::default()
        .line("ClientAliveInterval 3")
        .line("ClientAliveCountMax 1");
    let sshd = or_skip!(Sshd::start(options));
    let mut connection = connect(&sshd);
    let flag = sshd.home().join("keepalive flag");
    let command = "rm -f keep*; echo before; sleep 8; : > 'keepalive flag'; read -r x; echo after";
    let mut channel = connection.exec(command).unwrap();
    // The command has started, so it has removed the flag of an earlier run.
    assert_eq!(read_exactly(&mut *channel, 4), b"befo");
    while !flag.exists() {
        connection.keepalive().unwrap();
        thread::park_timeout(Duration::from_millis(20));
    }
    channel.write_all(b"go\n").unwrap();
    assert_eq!(output(&mut *channel), b"re\nafter\n");
    std::fs::remove_file(flag).unwrap();
}
