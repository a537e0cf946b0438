#![cfg(test)]
//! Hosts whose programs are special: what is found out about them, and what must not be done.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use scpfs::clock::Clock as _;
use scpfs::clock::ManualClock;
use scpfs::clock::SystemClock;
use scpfs::remote::Error;
use scpfs::remote::Placement;
use scpfs::remote::Reason;
use scpfs::remote::Remote as _;
use scpfs::remote::StorePlan;
use scpfs::remote::probe;
use scpfs::stat::DeviceNumber;
use scpfs::stat::FileKind;

use crate::local::Userland;
use crate::local::World;
use crate::suite::Buffer;
use crate::suite::Host;
use crate::suite::bytes;
use crate::suite::path;
use crate::suite::plan;
use crate::suite::reason;

#[test]
fn a_line_says_what_was_found() {
    for (userland, start) in [
        (
            Userland::Gnu,
            "dash, GNU tools, stat, scp: listing by find, 1 RTT; Linux ",
        ),
        (
            Userland::Bash,
            "bash, GNU tools, stat, scp: listing by find, 1 RTT; ",
        ),
        (
            Userland::BusyBox,
            "BusyBox ash, stat, scp: listing by stat+find, 1 RTT; ",
        ),
        (
            Userland::Toybox,
            "mksh, toybox tools, stat, scp: listing by stat+find, 1 RTT; ",
        ),
        (
            Userland::OpenWrt,
            "BusyBox ash, no stat, scp: listing by ls+find, 1 RTT; ",
        ),
        (
            Userland::Bare,
            "BusyBox ash, no stat, no scp: listing by ls+find, 1 RTT; ",
        ),
        (
            Userland::NoScp,
            "dash, GNU tools, stat, no scp: listing by find, 1 RTT; ",
        ),
        (
            Userland::Bsd,
            "dash, BSD tools, stat, scp: listing by stat+find, 1 RTT; ",
        ),
    ] {
        let host = Host::new(userland);
        let summary = &host.remote.facts().summary;
        assert!(summary.starts_with(start), "{summary}");
    }
}

#[test]
fn a_host_that_tells_no_attributes_is_refused_in_words() {
    let world = World::new(Userland::Bare);
    world.put("ls", "#!/bin/dash\nexit 127\n");
    let clock = Arc::new(ManualClock::new());
    let error = probe::probe(world.transport(), &world.settings(), clock).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("`ls --full-time` (system: Linux "), "{text}");
}

#[test]
fn an_scp_that_is_forbidden_is_none() {
    // As the scp of Red Hat answers where /etc/ssh/disable_scp exists.
    let forbidden = "#!/bin/dash\necho 'scp: SCP protocol is forbidden via \
                     /etc/ssh/disable_scp' >&2\nexit 1\n";
    let world = World::new(Userland::Gnu);
    world.put("scp", forbidden);
    let shell = world.shell(Arc::new(ManualClock::new()));
    assert!(shell.facts().summary.contains("no scp"));
}

/// The scp of dropbear opens without `O_NONBLOCK`: it would wait for ever.
#[test]
fn a_fifo_is_never_opened() {
    const WAITING: &str = "#!/bin/dash\nfor last; do :; done\n[ -p \"$last\" ] && exec <\"$last\"\n\
                           exec /usr/bin/scp \"$@\"\n";
    for userland in [Userland::Gnu, Userland::OpenWrt, Userland::Bare] {
        let host = Host::new(userland);
        if userland != Userland::Bare {
            host.world.put("scp", WAITING);
        }
        let begun = SystemClock::new();
        let device = DeviceNumber::default();
        let fifo = path("fifo");
        host.remote
            .make_node(&fifo, FileKind::Fifo, 0o600, device, None)
            .unwrap();
        let mut buffer = Buffer::default();
        let result = host.remote.fetch(&fifo, None, &mut buffer);
        assert_eq!(reason(result), Reason::IsADirectory, "as scp calls it");
        for placement in [Placement::Direct, Placement::InPlace] {
            let plan = StorePlan {
                placement,
                ..plan(b"x")
            };
            let result = host.remote.store(&fifo, &bytes(b"x"), &plan);
            assert_eq!(reason(result), Reason::InvalidArgument);
        }
        let result = host.remote.copy(&fifo, &path("copy"), &plan(b"x"));
        assert_eq!(reason(result), Reason::InvalidArgument);
        assert_eq!(host.names(), [b"fifo"]);
        assert!(begun.tick() < Duration::from_secs(10));
        assert!(buffer.begun.is_empty());
    }
}

#[test]
fn content_comes_a_byte_at_a_time_where_nothing_else_counts() {
    let world = World::new(Userland::Bare);
    world.put("head", "#!/bin/dash\nexit 127\n");
    let shell = world.shell(Arc::new(ManualClock::new()));
    let data: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    shell
        .store(&path("file"), &bytes(&data), &plan(&data))
        .unwrap();
    assert_eq!(fs::read(world.root().join("file")).unwrap(), data);
    let mut buffer = Buffer::default();
    shell.fetch(&path("file"), None, &mut buffer).unwrap();
    assert_eq!(buffer.data, data);
}

/// A cut in the middle of content without scp: what has arrived must not look like the file.
#[test]
fn content_that_is_cut_never_takes_the_name() {
    for userland in [Userland::Bare, Userland::NoScp] {
        let host = Host::new(userland);
        for size in [10, 3_000_000] {
            fs::write(host.at("file"), "old").unwrap();
            let plan = StorePlan { size, ..plan(b"") };
            let result = host.remote.store(&path("file"), &bytes(b"short"), &plan);
            assert!(matches!(result, Err(Error::Local { .. })), "{result:?}");
            assert_eq!(fs::read(host.at("file")).unwrap(), b"old");
        }
    }
}
