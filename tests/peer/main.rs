#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "the peer is a process")]
//! The SCP codec with the real `scp` as its peer, over pipes.

use std::fs;
use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use scpfs::scp::Event;
use scpfs::scp::Pipelining;
use scpfs::scp::Reply;
use scpfs::scp::Scope;
use scpfs::scp::Sink;
use scpfs::scp::Source;
use scpfs::scp::Step;
use scpfs::stat::Time;
use scpfs_testing::capability::Capability;
use scpfs_testing::capability::skip;

const MTIME: Time = Time {
    secs: 1_700_000_000,
    nanos: 123_456_000,
};
const ATIME: Time = Time {
    secs: 1_700_000_001,
    nanos: 0,
};

/// Whether this machine has an `scp`; reports a skip if not.
fn has_scp() -> bool {
    let has = Command::new("scp").stderr(Stdio::null()).status().is_ok();
    if !has {
        skip(Capability::Scp, "scp (package openssh-client)");
    }
    has
}

fn scp(args: &[&str], dir: &Path) -> Child {
    Command::new("scp")
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Receives from a real source, reading `chunk` bytes at a time. Returns one line for each event.
fn receive(
    args: &[&str],
    dir: &Path,
    scope: Scope,
    chunk: usize,
    accept: impl Fn(&Event<'_>) -> bool,
) -> Vec<String> {
    let mut peer = scp(args, dir);
    let (mut stdin, mut stdout) = (peer.stdin.take().unwrap(), peer.stdout.take().unwrap());
    let mut sink = Sink::new(scope, args.contains(&"-p"));
    let (mut seen, mut pending): (Vec<String>, Vec<u8>) = (Vec::new(), Vec::new());
    loop {
        // The peer may have exited, and then needs no more replies.
        let _gone = stdin.write_all(&sink.take_output());
        let (used, event) = sink.step(&pending).unwrap();
        let is_stuck = used == 0 && event.is_none();
        let asks = match &event {
            Some(event @ (Event::File { .. } | Event::Directory { .. })) => Some(accept(event)),
            _ => None,
        };
        if let Some(event) = event {
            match (event, seen.last_mut()) {
                (Event::Data(data), Some(last)) if last.starts_with("data ") => {
                    last.push_str(&String::from_utf8_lossy(data));
                }
                (Event::Data(data), _) => {
                    seen.push(format!("data {}", String::from_utf8_lossy(data)));
                }
                (Event::Warning(text), _) => {
                    seen.push(format!("warning {}", String::from_utf8_lossy(&text)));
                }
                (
                    Event::File {
                        mode, size, name, ..
                    },
                    _,
                ) => {
                    let name = String::from_utf8_lossy(&name).into_owned();
                    seen.push(format!("file {mode:o} {size} {name}"));
                }
                (Event::Directory { mode, name, .. }, _) => {
                    seen.push(format!(
                        "directory {mode:o} {}",
                        String::from_utf8_lossy(&name)
                    ));
                }
                (event, _) => seen.push(format!("{event:?}")),
            }
        }
        pending.drain(..used);
        match asks {
            Some(true) => sink.accept(),
            Some(false) => sink.refuse(),
            None => {}
        }
        if is_stuck {
            let mut buf = vec![0; chunk];
            let n = stdout.read(&mut buf).unwrap();
            if n == 0 {
                break;
            }
            pending.extend_from_slice(&buf[..n]);
        }
    }
    sink.end().unwrap();
    peer.wait().unwrap();
    seen
}

fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("d/sub/empty")).unwrap();
    fs::write(at("d/sub/b"), "BB").unwrap();
    fs::write(at("d/a b"), "A").unwrap();
    fs::write(at("d/zero"), "").unwrap();
    fs::set_permissions(at("d/sub/b"), fs::Permissions::from_mode(0o640)).unwrap();
    dir
}

#[test]
fn a_tree_of_a_real_source_is_received_at_every_chunk_size() {
    if !has_scp() {
        return;
    }
    let dir = tree();
    for chunk in [1, 2, 3, 5, 7, 16, 64, 65536] {
        for args in [&["-r", "-p", "-f", "d"][..], &["-r", "-f", "d"]] {
            let mut seen = receive(args, dir.path(), Scope::Tree, chunk, |_| true);
            assert_eq!(seen.remove(0), "directory 755 d");
            let count = |what: &str| seen.iter().filter(|line| line.starts_with(what)).count();
            assert_eq!((count("file"), count("directory")), (3, 2), "{seen:?}");
            assert_eq!((count("DirectoryEnd"), count("FileEnd(Ok")), (3, 3));
            for line in [
                "file 640 2 b",
                "data BB",
                "file 644 1 a b",
                "file 644 0 zero",
            ] {
                assert!(seen.contains(&line.to_owned()), "{line} in {seen:?}");
            }
        }
    }
}

#[test]
fn refused_entries_of_a_real_source_cost_no_content() {
    if !has_scp() {
        return;
    }
    let dir = tree();
    fs::write(dir.path().join("d/big"), vec![b'x'; 5_000_000]).unwrap();
    let is_top = |event: &Event<'_>| matches!(event, Event::Directory { name, .. } if name == b"d");
    let seen = receive(
        &["-r", "-p", "-f", "d"],
        dir.path(),
        Scope::Tree,
        4096,
        is_top,
    );
    assert!(seen.contains(&"file 644 5000000 big".to_owned()));
    assert!(
        !seen.iter().any(|line| line.starts_with("data")),
        "{seen:?}"
    );
}

#[test]
fn several_files_are_received_from_one_source_and_a_missing_one_is_a_warning() {
    if !has_scp() {
        return;
    }
    let dir = tree();
    let args = ["-p", "-f", "d/a b", "nope", "d/zero"];
    let seen = receive(&args, dir.path(), Scope::Files(3), 1, |_| true);
    assert_eq!(seen[0], "file 644 1 a b");
    assert!(
        seen.iter()
            .any(|line| line.contains("nope: No such file or directory")),
        "{seen:?}"
    );
    assert_eq!(seen.last().unwrap(), "FileEnd(Ok(()))");
}

/// Sends the output that `queue` puts into a source in one write; returns the replies.
fn send(
    args: &[&str],
    dir: &Path,
    pipelining: Pipelining,
    queue: impl Fn(&mut Source) -> Vec<u8>,
) -> Vec<Reply> {
    let mut peer = scp(args, dir);
    let mut source = Source::new(pipelining);
    let bytes = queue(&mut source);
    let mut stdin = peer.stdin.take().unwrap();
    stdin.write_all(&bytes).unwrap();
    drop(stdin);
    let mut said = Vec::new();
    peer.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    peer.wait().unwrap();
    let mut replies = Vec::new();
    let mut rest = &said[..];
    while !rest.is_empty() {
        let (used, reply) = source.step(rest).unwrap();
        rest = &rest[used..];
        replies.extend(reply);
        assert!(used > 0, "{}", String::from_utf8_lossy(rest));
    }
    replies
}

fn one_file(source: &mut Source, data: &[u8]) -> Vec<u8> {
    source.times(MTIME, ATIME);
    source.file(0o640, data.len() as u64, b"ignored");
    let mut bytes = source.take_output();
    assert!(source.content(data.len() as u64));
    bytes.extend_from_slice(data);
    source.end_file(Ok(()));
    source.end();
    bytes.extend(source.take_output());
    bytes
}

#[test]
fn one_write_uploads_a_file_in_a_real_sink() {
    if !has_scp() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for data in [&b""[..], b"hello", b"E\nC0644 1 evil\nx\0", &[0; 100_000]] {
        let replies = send(
            &["-p", "-t", "new"],
            dir.path(),
            Pipelining::ToOneFile,
            |s| one_file(s, data),
        );
        let steps = [
            Step::Ready,
            Step::Times,
            Step::File,
            Step::Content,
            Step::End,
        ];
        assert_eq!(replies, steps.map(Reply::Done));
        let path = dir.path().join("new");
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(
            (meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()),
            (0o640, MTIME.secs, 123_456_000)
        );
        assert_eq!(fs::read(&path).unwrap(), data);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn directory_is_created_with_its_times_in_a_real_sink() {
    if !has_scp() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let replies = send(
        &["-r", "-p", "-t", "."],
        dir.path(),
        Pipelining::Never,
        |source| {
            source.times(MTIME, ATIME);
            source.directory(0o711, b"made");
            source.end();
            source.take_output()
        },
    );
    assert_eq!(replies.len(), 4, "{replies:?}");
    let meta = fs::metadata(dir.path().join("made")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o711, MTIME.secs));
}

#[test]
fn refused_content_creates_no_file_in_a_real_sink() {
    if !has_scp() {
        return;
    }
    // After it has refused the C record, the sink reads the content as records.
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let evil = b"C0644 5 evil\nevil!\0D0755 0 evil\nE\n";
    let replies = send(
        &["-p", "-t", "file/below"],
        dir.path(),
        Pipelining::ToOneFile,
        |s| one_file(s, evil),
    );
    assert!(
        replies
            .iter()
            .any(|reply| matches!(reply, Reply::Refused(Step::File, _))),
        "{replies:?}"
    );
    let names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["file"]);
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"");
}

#[test]
fn a_full_disk_shows_in_the_last_reply() {
    if !has_scp() {
        return;
    }
    let replies = send(
        &["-t", "/dev/full"],
        Path::new("/"),
        Pipelining::ToOneFile,
        |source| {
            source.file(0o644, 3, b"x");
            let mut bytes = source.take_output();
            assert!(source.content(3));
            bytes.extend_from_slice(b"abc");
            source.end_file(Ok(()));
            bytes.extend(source.take_output());
            bytes
        },
    );
    assert_eq!(replies.len(), 3);
    assert!(
        matches!(&replies[2], Reply::Refused(Step::Content, text) if text.ends_with(b"No space left on device")),
        "{replies:?}"
    );
}
