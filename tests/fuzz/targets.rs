//! The fuzz targets: how each uses its input, and the assertions that must hold for any input.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use scpfs::clock::ManualClock;
use scpfs::path::MAX_NAME;
use scpfs::path::Name;
use scpfs::remote::Remote;
use scpfs::scp::Event;
use scpfs::scp::MAX_LINE;
use scpfs::scp::Pipelining;
use scpfs::scp::Record;
use scpfs::scp::Scope;
use scpfs::scp::Sink;
use scpfs::scp::Source;
use scpfs::scp_only;
use scpfs::shell::answer;
use scpfs::shell::answer::ParsedListing;
use scpfs::shell::probe;
use scpfs::shell::tools::Userland;
use scpfs::ssh::known_hosts;
use scpfs::ssh::known_hosts::KnownFile;
use scpfs::ssh::known_hosts::Verdict;
use scpfs::ssh::settings::Proxy;
use scpfs::ssh::ssh_config as config;
use scpfs::ssh::ssh_config::LocalContext;
use scpfs::ssh::ssh_config::Pairs;
use scpfs::ssh::ssh_config::Query;
use scpfs::stat::FileKind;
use scpfs::stat::Stat;
use scpfs::stat::Time;
use scpfs_testing::content::bytes;
use scpfs_testing::hostile::Ask;
use scpfs_testing::hostile::settings;
use scpfs_testing::hostile::told;
use scpfs_testing::samples::path;
use scpfs_testing::samples::upload_spec;
use scpfs_testing::scripted::Act;
use scpfs_testing::scripted::Scripted;
use scpfs_testing::scripted::Talk;
use scpfs_testing::scripted::Then;

/// Splits an input: its first byte chooses how the rest is used.
fn split(input: &[u8]) -> (u8, &[u8]) {
    input
        .split_first()
        .map_or((0, input), |(&how, rest)| (how, rest))
}

/// All output of a sink for an input that arrives in pieces of this size, as text.
fn received(how: u8, input: &[u8], chunk: usize) -> String {
    let scope = if how & 1 == 0 {
        Scope::Tree
    } else {
        Scope::Files(1)
    };
    let mut sink = Sink::new(scope, how & 2 == 0);
    let (mut said, mut pending, mut is_data) = (String::new(), Vec::new(), false);
    for piece in input.chunks(chunk) {
        pending.extend_from_slice(piece);
        loop {
            let (used, event) = match sink.step(&pending) {
                Ok(step) => step,
                Err(error) => {
                    told(&error);
                    return format!("{said}\n{error:?} {:?}", sink.take_output());
                }
            };
            let is_quiet = used == 0 && event.is_none();
            let asks = matches!(event, Some(Event::File { .. } | Event::Directory { .. }));
            match event {
                Some(Event::Data(data)) => {
                    if !is_data {
                        said.push_str("\ndata ");
                    }
                    is_data = true;
                    data.iter()
                        .for_each(|byte| write!(said, "{byte:02x}").unwrap());
                }
                Some(event) => {
                    is_data = false;
                    write!(said, "\n{event:?}").unwrap();
                }
                None => {}
            }
            pending.drain(..used);
            if asks && how & 4 == 0 {
                sink.accept();
            } else if asks {
                sink.refuse();
            }
            if is_quiet {
                break;
            }
        }
    }
    assert!(
        pending.is_empty() || said.contains("Fatal"),
        "nothing is left over"
    );
    format!("{said}\n{:?} {:?}", sink.end(), sink.take_output())
}

pub(crate) fn sink(input: &[u8]) {
    let (how, input) = split(input);
    let whole = received(how, input, input.len().max(1));
    assert_eq!(received(how, input, 1), whole);
    assert_eq!(received(how, input, usize::from(how >> 3) + 2), whole);
}

fn replied(how: u8, input: &[u8], chunk: usize) -> String {
    let pipelining = if how & 1 == 0 {
        Pipelining::ToOneFile
    } else {
        Pipelining::Never
    };
    let mut source = Source::new(pipelining);
    let time = Time { secs: 1, nanos: 0 };
    source.times(time, time);
    source.file(0o644, 1, b"x");
    if how & 2 == 0 {
        source.end_file(Ok(()));
    }
    source.end();
    let (mut said, mut pending) = (String::new(), Vec::new());
    for piece in input.chunks(chunk) {
        pending.extend_from_slice(piece);
        loop {
            match source.step(&pending) {
                Ok((0, None)) => break,
                Ok((used, reply)) => {
                    reply
                        .iter()
                        .for_each(|reply| write!(said, "\n{reply:?}").unwrap());
                    pending.drain(..used);
                }
                Err(error) => {
                    told(&error);
                    return format!("{said}\n{error:?}");
                }
            }
        }
    }
    format!("{said}\n{}", source.n_awaited())
}

pub(crate) fn source(input: &[u8]) {
    let (how, input) = split(input);
    let whole = replied(how, input, input.len().max(1));
    assert_eq!(replied(how, input, 1), whole);
    assert_eq!(replied(how, input, usize::from(how >> 2) + 2), whole);
}

pub(crate) fn record(input: &[u8]) {
    for line in input.split(|&b| b == b'\n') {
        match Record::parse(line) {
            Ok(record) => {
                let mut again = Vec::new();
                record.encode(&mut again);
                assert_eq!(again.pop(), Some(b'\n'));
                assert!(!again.contains(&b'\n'));
                assert_eq!(Record::parse(&again), Ok(record));
            }
            Err(error) => assert!(told(&error).len() < MAX_LINE),
        }
    }
}

/// A line of GNU `stat`, see `parse_stat`.
fn stat_line(stat: &Stat) -> String {
    let kind = match stat.kind {
        FileKind::File => 0o100_000,
        FileKind::Directory => 0o040_000,
        FileKind::Symlink => 0o120_000,
        FileKind::Fifo => 0o010_000,
        FileKind::Socket => 0o140_000,
        FileKind::CharDevice => 0o020_000,
        FileKind::BlockDevice => 0o060_000,
    };
    let id = stat.id.unwrap();
    let times = [stat.atime, stat.mtime, stat.ctime.unwrap()].map(answer::time::epoch_text);
    format!(
        "{:x} {} {} {} {} {} {} {} {:x} {:x} {}",
        kind | stat.mode,
        stat.size,
        stat.blocks,
        stat.nlink,
        stat.uid,
        stat.gid,
        id.dev,
        id.ino,
        stat.rdev.major,
        stat.rdev.minor,
        times.join(" ")
    )
}

fn check_stat(stat: &Stat) {
    assert!(stat.mode <= 0o7777 && i64::try_from(stat.size).is_ok());
    for time in [stat.atime, stat.mtime].into_iter().chain(stat.ctime) {
        assert!(time.nanos < 1_000_000_000);
        let _civil = time.civil();
    }
    for userland in [
        Userland::Gnu,
        Userland::BusyBox,
        Userland::Bsd,
        Userland::Ls,
    ] {
        let text = userland.version_text(&stat.version());
        assert!(text.is_none_or(|text| !text.contains(char::is_control)));
    }
}

pub(crate) fn stat_lines(input: &[u8]) {
    for stat in answer::stat::parse_stats(input).into_iter().flatten() {
        check_stat(&stat);
        assert_eq!(
            answer::stat::parse_stat(stat_line(&stat).as_bytes()),
            Some(stat)
        );
    }
    let _parsed = answer::parse_fs_stat(input);
    let _reason = scpfs::remote::reason_of(input);
    let _serious = answer::first_serious_error(input);
}

fn check_listing(listing: Option<ParsedListing>, body: &[u8]) {
    let Some(listing) = listing else { return };
    assert!(listing.entries.len() + listing.error_text.len() <= body.len());
    listing.top.iter().for_each(check_stat);
    for entry in &listing.entries {
        assert!(Name::new(entry.name.as_bytes()).is_ok());
        assert!(entry.name.as_bytes().len() <= MAX_NAME);
        assert!(
            entry
                .target
                .as_ref()
                .is_none_or(|target| target.len() < 4096)
        );
        entry.stat.iter().for_each(check_stat);
    }
    let _serious = answer::first_serious_error(&listing.error_text);
}

pub(crate) fn gnu_listing(input: &[u8]) {
    check_listing(answer::stat::parse_gnu_listing(input), input);
}

pub(crate) fn busybox_listing(input: &[u8]) {
    check_listing(
        answer::stat::parse_marked_listing(input, b"MARK", b"/srv"),
        input,
    );
}

pub(crate) fn ls_listing(input: &[u8]) {
    check_listing(answer::ls::parse_listing(input, b"MARK", b"/srv"), input);
}

/// Makes the request that the first byte chooses; `words` is the answer.
fn ask(remote: &dyn Remote, act: &Act, how: u8, words: &[u8]) {
    let then = if how & 0x80 == 0 {
        Then::Close
    } else {
        Then::Silence
    };
    act.lock().set(vec![Talk::new(words, then).into()]);
    let asks = [
        Ask::Stat,
        Ask::List,
        Ask::Fetch,
        Ask::ReadLink,
        Ask::FsStat,
        Ask::MakeDir,
    ];
    let result = match asks.get(usize::from(how & 7)) {
        Some(ask) => ask.of(remote).map(drop),
        None => {
            let content = b"content";
            let uploaded = remote.upload(&path("file"), &bytes(content), &upload_spec(content));
            uploaded.map(drop)
        }
    };
    if let Err(error) = result {
        told(&error);
    }
}

pub(crate) fn shell_dialect(input: &[u8]) {
    let (how, words) = split(input);
    let act = Act::default();
    let userland = if how & 8 == 0 { "gnu" } else { "busybox" };
    let host = Arc::new(Scripted::lane(userland, Arc::clone(&act)));
    let remote = probe::probe(host, &settings(), Arc::new(ManualClock::new())).unwrap();
    ask(&remote, &act, how, words);
}

pub(crate) fn scp_only_dialect(input: &[u8]) {
    let (how, words) = split(input);
    let act = Act::default();
    let banner = if how & 8 == 0 {
        "SSH-2.0-OpenSSH_9.2"
    } else {
        "SSH-2.0-Appliance"
    };
    let clock = Arc::new(ManualClock::new());
    if how & 16 != 0 {
        // The input is the answer to the probe.
        act.lock().set(vec![Talk::new(words, Then::Close).into()]);
        let host = Arc::new(Scripted::scp(banner, act));
        if let Err(error) = scp_only::probe::probe(host, &settings(), clock) {
            told(&error);
        }
        return;
    }
    let host = Arc::new(Scripted::scp(banner, Arc::clone(&act)));
    let remote = scp_only::probe::probe(host, &settings(), clock).unwrap();
    ask(&remote, &act, how, words);
}

pub(crate) fn ssh_config(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut pairs = Pairs::parse(&text);
    for line in text.lines() {
        if let Ok((key, value)) = config::split_option(line) {
            pairs.push(&key, &value);
        }
        let is_option = line.starts_with('-');
        assert!(
            !(is_option && (config::check_host(line).is_ok() || config::check_user(line).is_ok()))
        );
    }
    pairs.expand_algorithms();
    let local = LocalContext {
        home: PathBuf::from("/home/me"),
        user: "me".to_owned(),
        uid: 1000,
        hostname: "desk".to_owned(),
        agent_socket: None,
        ssh_program: Some(PathBuf::from("/usr/bin/ssh")),
    };
    let query = Query {
        host: "box".to_owned(),
        ..Query::default()
    };
    match config::settings(&pairs, &query, &local) {
        Ok(settings) => {
            assert!(!settings.hostname.starts_with('-'));
            if let Some(Proxy::Jump { args, .. }) = settings.proxy {
                // Each option is followed by its value, and `--` by the host.
                let (host, options) = args.split_last().unwrap();
                assert_eq!(options.last().unwrap(), "--");
                assert!(!host.to_str().unwrap().starts_with('-'));
                let options = options.iter().step_by(2).map(|arg| arg.to_str().unwrap());
                options
                    .for_each(|arg| assert!(["-F", "-l", "-p", "-J", "-W", "--"].contains(&arg)));
                let values = args.iter().skip(1).step_by(2);
                values.for_each(|value| assert!(!value.to_str().unwrap().starts_with('-')));
            }
        }
        Err(error) => {
            told(&error);
        }
    }
}

pub(crate) fn known_hosts(input: &[u8]) {
    let (how, text) = split(input);
    let name = known_hosts::lookup_name("Host.example", if how & 1 == 0 { 22 } else { 2222 });
    let kind = b"ssh-ed25519";
    let length = u32::try_from(kind.len()).unwrap().to_be_bytes();
    let blob = [&length[..], kind, &[how; 32]].concat();
    let mut files = vec![KnownFile {
        path: PathBuf::from("known_hosts"),
        text: text.to_vec(),
    }];
    let before = known_hosts::check(&files, &name, &blob);
    let n_types = known_hosts::known_types(&files, &name).len();
    assert!(n_types <= text.len());
    // An added key is known unless it is revoked.
    let salt = (how & 2 == 0).then_some([how; 20]);
    files.push(KnownFile {
        path: PathBuf::from("known_hosts2"),
        text: known_hosts::format_line(&name, &blob, salt).into_bytes(),
    });
    let after = known_hosts::check(&files, &name, &blob);
    match before {
        Verdict::Revoked { .. } => assert_eq!(after, before),
        _ => assert_eq!(after, Verdict::Known),
    }
    let _type = known_hosts::key_type(text);
    let _print = known_hosts::fingerprint(text);
}
