//! Hostile shells: malicious answers of a resident shell.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use scpfs::clock::ManualClock;
use scpfs::shell::probe::probe;
use scpfs_testing::hostile::Ask;
use scpfs_testing::hostile::Ask::Fetch;
use scpfs_testing::hostile::Ask::FsStat;
use scpfs_testing::hostile::Ask::List;
use scpfs_testing::hostile::Ask::MakeDir;
use scpfs_testing::hostile::Ask::ReadLink;
use scpfs_testing::hostile::Ask::Stat;
use scpfs_testing::hostile::assert_log_is_fit;
use scpfs_testing::hostile::judge_log;
use scpfs_testing::hostile::settings;
use scpfs_testing::hostile::told;
use scpfs_testing::scripted::Act;
use scpfs_testing::scripted::Scripted;
use scpfs_testing::scripted::Talk;
use scpfs_testing::scripted::Then;
use scpfs_testing::scripted::Then::Close;
use scpfs_testing::scripted::Then::Endless;
use scpfs_testing::scripted::Then::Silence;

/// Output of GNU `stat` for a file, and for a directory.
pub(crate) const FILE: &str = "81a4 2 8 1 1000 1000 1 42 0 0 1.000000000 1.000000000 1.000000000\n";
const DIRECTORY: &str = "41ed 2 8 1 1000 1000 1 41 0 0 1.000000000 1.000000000 1.000000000\n";

/// A record of GNU `find`.
pub(crate) fn found(depth: u32, kind: char, name: &str, target: &str) -> String {
    format!("{kind} 644 2 8 1 1000 1000 1 42 1.0 1.0 1.0 {depth} {name}\0{target}\0")
}

/// The directory itself, a regular file in it, and then `rest`.
fn listing(rest: &str) -> String {
    let start = [found(0, 'd', "srv", ""), found(1, 'f', "honest", "")].concat();
    format!("{start}{rest}\x1e@T@ 0\n")
}

/// A record of BusyBox `stat` in a listing.
fn record(mode: &str, path: &str) -> String {
    const TIME: &str = "1970-01-01 00:00:01.000000000 +0000";
    format!("\x1d@K@ {mode} 2 8 1 1000 1000 1 42 0 0 {TIME}|{TIME}|{TIME} {path}\n")
}

fn busybox_listing(rest: &str) -> String {
    let start = [record("41ed", "/srv"), record("81a4", "/srv/honest")].concat();
    format!("{start}{rest}\x1d@K@!\x1e@T@ 0\n")
}

enum Expect {
    Gives(&'static str),
    Says(&'static str),
}

use Expect::Gives;
use Expect::Says;

type Row = (&'static str, Ask, String, Then, Expect);

const NO_SENSE: &str = "cannot understand the host's answer";

fn rows() -> Vec<Row> {
    let long = "x".repeat(1 << 20);
    let endless = |text: &str| Endless(text.as_bytes().to_vec());
    let gnu = |why, rest: &str, expect| (why, List, listing(rest), Close, expect);
    vec![
        (
            "an honest answer",
            Stat,
            format!("{FILE}\x1e@T@ 0\n"),
            Close,
            Gives("File 644 2"),
        ),
        (
            "not a word",
            Stat,
            String::new(),
            Silence,
            Says("no answer for 1 s"),
        ),
        (
            "an end instead of an answer",
            Stat,
            String::new(),
            Close,
            Says("lost the connection"),
        ),
        (
            "an answer without a frame",
            Stat,
            FILE.to_owned(),
            Silence,
            Says("no answer for 1 s"),
        ),
        (
            "the frame of another lane",
            Stat,
            format!("{FILE}\x1e{} 0\n", "0".repeat(32)),
            Silence,
            Says("no answer for 1 s"),
        ),
        (
            "an answer without end",
            Stat,
            String::new(),
            endless(&long),
            Says("it does not end"),
        ),
        (
            "a listing without end",
            List,
            listing("").replace("\x1e@T@ 0\n", ""),
            endless(&found(1, 'f', &long[..1000], "")),
            Says("more names than"),
        ),
        (
            "a record of a listing without end",
            List,
            listing("").replace("\x1e@T@ 0\n", ""),
            endless(&long),
            Says("it does not end"),
        ),
        (
            "a status that is no number",
            Stat,
            format!("{FILE}\x1e@T@ zero\n"),
            Close,
            Says("bad status"),
        ),
        (
            "a status with a sign",
            Stat,
            format!("{FILE}\x1e@T@ +0\n"),
            Close,
            Says("bad status"),
        ),
        (
            "a status of many digits",
            Stat,
            format!("{FILE}\x1e@T@ 00000\n"),
            Close,
            Says("bad status"),
        ),
        (
            "a status that never ends",
            Stat,
            format!("{FILE}\x1e@T@ 0"),
            Silence,
            Says("no answer for 1 s"),
        ),
        (
            "two answers for one question",
            Stat,
            format!("{FILE}\x1e@T@ 0\n{FILE}\x1e@T@ 0\n"),
            Close,
            Says("something follows it"),
        ),
        (
            "CVE-2019-6110: an answer that moves the cursor",
            Stat,
            "\x1b[2J\u{9b}\x1e@T@ 0\n".to_owned(),
            Close,
            Says("\\x1b[2J\\u{9b}"),
        ),
        (
            "a complaint that moves the cursor",
            Stat,
            "stat: \x1b[1A\x1b[2K\x07: Permission denied\x1e@T@ 1\n".to_owned(),
            Close,
            Says("\\x1b[1A\\x1b[2K\\x07"),
        ),
        (
            "a long complaint",
            Stat,
            format!("{}\x1e@T@ 1\n", &long[..1_000_000]),
            Close,
            Says("the host says: xxx"),
        ),
        (
            "a size that no file has",
            Stat,
            FILE.replace("81a4 2 ", "81a4 18446744073709551615 ") + "\x1e@T@ 0\n",
            Close,
            Says(NO_SENSE),
        ),
        (
            "a negative size",
            Stat,
            FILE.replace("81a4 2 ", "81a4 -2 ") + "\x1e@T@ 0\n",
            Close,
            Says(NO_SENSE),
        ),
        (
            "a kind of file that there is not",
            Stat,
            FILE.replace("81a4", "f1a4") + "\x1e@T@ 0\n",
            Close,
            Says(NO_SENSE),
        ),
        (
            "the attributes of two files",
            Stat,
            format!("{FILE}{FILE}\x1e@T@ 0\n"),
            Close,
            Says(NO_SENSE),
        ),
        (
            "attributes with more fields",
            Stat,
            FILE.replace("1.000000000\n", "1.000000000 1.0\n") + "\x1e@T@ 0\n",
            Close,
            Says(NO_SENSE),
        ),
        (
            "times that no clock shows",
            Stat,
            FILE.replace("1.000000000\n", "99999999999999999999.0\n") + "\x1e@T@ 0\n",
            Close,
            Says(NO_SENSE),
        ),
        gnu(
            "CVE-2018-20685: an empty name",
            &found(1, 'f', "", ""),
            Says(NO_SENSE),
        ),
        gnu(
            "CVE-2018-20685: the directory itself",
            &found(1, 'd', ".", ""),
            Says(NO_SENSE),
        ),
        gnu(
            "CVE-2019-6111: the directory above",
            &found(1, 'd', "..", ""),
            Says(NO_SENSE),
        ),
        gnu(
            "CVE-2019-6111: an absolute name",
            &found(1, 'f', "/etc/passwd", ""),
            Says(NO_SENSE),
        ),
        gnu(
            "CVE-2019-6111: a path",
            &found(1, 'f', "../.bashrc", ""),
            Says(NO_SENSE),
        ),
        gnu(
            "a name that no kernel takes",
            &found(1, 'f', &long[..1025], ""),
            Says(NO_SENSE),
        ),
        gnu(
            "CVE-2019-6109: a name that moves the cursor is a name, and is shown escaped",
            &found(1, 'f', "a\x1b[2J\nb", ""),
            Gives("File 644 honest, File 644 a\\x1b[2J\\nb"),
        ),
        gnu(
            "a target that no kernel takes is not taken",
            &found(1, 'l', "link", &long[..5000]),
            Gives("File 644 honest, Symlink 644 link"),
        ),
        gnu(
            "a kind of file that there is not",
            &found(1, 'D', "door", ""),
            Says(NO_SENSE),
        ),
        gnu(
            "a record that is cut",
            &found(1, 'f', "cut", "")[..20],
            Says("could not do it"),
        ),
        gnu(
            "a record without a target",
            &found(1, 'f', "cut", "").replace("cut\0\0", "cut\0"),
            Says(NO_SENSE),
        ),
        gnu(
            "a number of links that no file has",
            &found(1, 'f', "x", "").replace(" 8 1 ", " 8 99999999999 "),
            Says(NO_SENSE),
        ),
        (
            "a listing without its directory",
            List,
            format!("{}\x1e@T@ 0\n", found(1, 'f', "x", "")),
            Close,
            Says("could not do it"),
        ),
        (
            "a listing of a file",
            List,
            format!("{}\x1e@T@ 0\n", found(0, 'f', "x", "")),
            Close,
            Says("not a directory"),
        ),
        (
            "a listing that failed and does not say why",
            List,
            listing("").replace(" 0\n", " 1\n"),
            Close,
            Says("could not do it"),
        ),
        (
            "a link to what no kernel takes",
            ReadLink,
            format!("{}\x1e@T@ 0\n", &long[..4096]),
            Close,
            Says(NO_SENSE),
        ),
        (
            "a link with a NUL in it",
            ReadLink,
            "a\0b\x1e@T@ 0\n".to_owned(),
            Close,
            Says(NO_SENSE),
        ),
        (
            "a filesystem of more blocks than numbers",
            FsStat,
            "4096 99999999999999999999 1 1 1 1 255\n\x1e@T@ 0\n".to_owned(),
            Close,
            Says(NO_SENSE),
        ),
        (
            "attributes that nobody asked for are not taken",
            MakeDir,
            format!("{DIRECTORY}{DIRECTORY}{FILE}\x1e@T@ 0\n"),
            Close,
            Gives("Changed { stat: None, parent: None }"),
        ),
        (
            "an honest file",
            Fetch,
            format!("T1 0 1 0\nC0644 2 file\nok\0{FILE}\x1e@T@ 0\n"),
            Close,
            Gives("644 ok"),
        ),
        (
            "CVE-2019-6111: another file after the one that was asked for",
            Fetch,
            format!("T1 0 1 0\nC0644 2 file\nok\0T1 0 1 0\nC0644 4 evil\nevil\0{FILE}\x1e@T@ 0\n"),
            Close,
            Says(NO_SENSE),
        ),
        (
            "a directory where a file was asked for",
            Fetch,
            "T1 0 1 0\nD0755 0 file\n".to_owned(),
            Silence,
            Says("a directory where a file was asked for"),
        ),
        (
            "a file without its times",
            Fetch,
            "C0644 2 file\nok\0".to_owned(),
            Silence,
            Says("without the times"),
        ),
        (
            "content that is shorter than announced takes the frame for content",
            Fetch,
            format!("T1 0 1 0\nC0644 9 file\nok\0{FILE}\x1e@T@ 0\n"),
            Silence,
            Says("a reply that nothing asked for"),
        ),
        (
            "content without end",
            Fetch,
            "T1 0 1 0\nC0644 9223372036854775807 file\n".to_owned(),
            endless(&long),
            Says("the local cache failed"),
        ),
        (
            "a status of content that never comes",
            Fetch,
            "T1 0 1 0\nC0644 2 file\nok".to_owned(),
            Silence,
            Says("no answer for 1 s"),
        ),
        (
            "a frame where the content should be",
            Fetch,
            format!("{FILE}\x1e@T@ 0\n"),
            Close,
            Says("expected an SCP record"),
        ),
        (
            "an answer behind the content that does not end",
            Fetch,
            "T1 0 1 0\nC0644 2 file\nok\0".to_owned(),
            endless(&long),
            Says("it does not end"),
        ),
    ]
}

fn busybox_rows() -> Vec<Row> {
    let row = |why, rest: &str, expect| (why, List, busybox_listing(rest), Close, expect);
    vec![
        row("an honest listing", "", Gives("File 644 honest")),
        row(
            "CVE-2018-20685: an empty name",
            &record("81a4", "/srv/"),
            Says(NO_SENSE),
        ),
        row(
            "CVE-2018-20685: the directory itself",
            &record("41ed", "/srv/."),
            Says(NO_SENSE),
        ),
        row(
            "CVE-2019-6111: the directory above",
            &record("41ed", "/srv/.."),
            Says(NO_SENSE),
        ),
        row(
            "CVE-2019-6111: a path",
            &record("81a4", "/srv/../etc"),
            Says(NO_SENSE),
        ),
        row(
            "CVE-2019-6111: an absolute name",
            &record("81a4", "/etc/passwd"),
            Says(NO_SENSE),
        ),
        row(
            "a name that no kernel takes",
            &record("81a4", &format!("/srv/{}", "x".repeat(1025))),
            Says(NO_SENSE),
        ),
        row(
            "a name that moves the cursor",
            &record("81a4", "/srv/\x1b[2J\nx"),
            Gives("File 644 honest, File 644 \\x1b[2J\\nx"),
        ),
        row(
            "a kind of file that there is not",
            &record("f1a4", "/srv/x"),
            Says(NO_SENSE),
        ),
        row("an end in the middle", "\x1d@K@!", Says(NO_SENSE)),
        row("a mark with nothing behind it", "\x1d@K@", Says(NO_SENSE)),
        (
            "a listing that is cut",
            List,
            record("41ed", "/srv") + "\x1e@T@ 0\n",
            Close,
            Says(NO_SENSE),
        ),
    ]
}

/// The most that a client reads of an endless answer.
const MAX_READ: u64 = 100 << 20;

#[test]
fn hostile_shell_does_no_harm() {
    judge_log();
    let mut wrong = Vec::new();
    for (flavour, rows) in [("gnu", rows()), ("busybox", busybox_rows())] {
        for (why, ask, words, then, expect) in rows {
            let act = Act::default();
            let host = Scripted::lane(flavour, Arc::clone(&act));
            let traffic = Arc::clone(&host.traffic);
            let remote = probe(Arc::new(host), &settings(), Arc::new(ManualClock::new())).unwrap();
            act.lock()
                .set(vec![Talk::new(words.as_bytes(), then).into()]);
            let result = ask.of(&remote);
            assert!(traffic.n_read.load(Ordering::SeqCst) < MAX_READ, "{why}");
            let text = match &result {
                Ok(answer) => format!("gives {answer}"),
                Err(error) => format!("says {}", told(error)),
            };
            let is_expected = match expect {
                Gives(answer) => result.is_ok_and(|it| it == answer),
                Says(part) => result.is_err() && text.contains(part),
            };
            if !is_expected {
                wrong.push(format!("{why} ({flavour}): {text}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_log_is_fit();
}
