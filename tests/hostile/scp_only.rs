//! Hostile sources: malicious output of `scp -f`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use scpfs::clock::ManualClock;
use scpfs::scp_only::probe::probe;
use scpfs_testing::hostile::Ask;
use scpfs_testing::hostile::Ask::Fetch;
use scpfs_testing::hostile::Ask::List;
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

/// A server to which the client acknowledges ahead, and one to which it does not.
pub(crate) const BANNERS: [&str; 2] = ["SSH-2.0-OpenSSH_9.2", "SSH-2.0-Appliance_1.0"];

/// The expected result of a row.
enum Expect {
    /// The answer of the request.
    Gives(&'static str),
    /// An error whose message contains this.
    Says(&'static str),
    /// An error whose message contains this; if the client does not acknowledge ahead, it finds
    /// instead that the server cannot list directories.
    SaysOrUnlistable(&'static str),
}

use Expect::Gives;
use Expect::Says;
use Expect::SaysOrUnlistable;

struct Row {
    /// A description of the attack.
    why: &'static str,
    ask: Ask,
    words: Vec<u8>,
    then: Then,
    expect: Expect,
}

fn row(why: &'static str, ask: Ask, words: &[u8], then: Then, expect: Expect) -> Row {
    let words = words.to_vec();
    Row {
        why,
        ask,
        words,
        then,
        expect,
    }
}

/// The directory, a regular file in it, and then `words`.
fn listing(words: &[u8]) -> Vec<u8> {
    [
        b"T1 0 1 0\nD0755 0 srv\nT1 0 1 0\nC0644 1 honest\n",
        words,
        b"E\n",
    ]
    .concat()
}

fn rows() -> Vec<Row> {
    const BAD_NAME: &str = "the host sent a bad file name";
    let in_listing = |why, words: &[u8], expect| row(why, List, &listing(words), Close, expect);
    let file = |why, words: &[u8], then, expect| row(why, Fetch, words, then, expect);
    let long = vec![b'x'; 1 << 20];
    vec![
        in_listing(
            "CVE-2018-20685: an empty name",
            b"T1 0 1 0\nC0644 1 \n",
            SaysOrUnlistable(BAD_NAME),
        ),
        in_listing(
            "CVE-2018-20685: the directory itself",
            b"T1 0 1 0\nD0777 0 .\n",
            SaysOrUnlistable(BAD_NAME),
        ),
        in_listing(
            "CVE-2019-6111: the directory above",
            b"T1 0 1 0\nD0777 0 ..\n",
            SaysOrUnlistable(BAD_NAME),
        ),
        in_listing(
            "CVE-2019-6111: an absolute name",
            b"T1 0 1 0\nC0644 1 /etc/passwd\n",
            SaysOrUnlistable(BAD_NAME),
        ),
        in_listing(
            "CVE-2019-6111: a path",
            b"T1 0 1 0\nC0644 1 ../../.ssh/authorized_keys\n",
            SaysOrUnlistable(BAD_NAME),
        ),
        in_listing(
            "a name with a NUL",
            b"T1 0 1 0\nC0644 1 a\0b\n",
            SaysOrUnlistable(BAD_NAME),
        ),
        in_listing(
            "a name that no kernel takes, and that would hide those behind it",
            &[b"T1 0 1 0\nC0644 1 ", &long[..5000], b"\n"].concat(),
            SaysOrUnlistable(BAD_NAME),
        ),
        in_listing(
            "CVE-2019-6109: a name that moves the cursor is a name, and is shown escaped",
            b"T1 0 1 0\nC0644 1 a\x1b[2J\x08b\r\n",
            Gives("File 644 honest, File 644 a\\x1b[2J\\x08b\\r"),
        ),
        in_listing(
            "a name that reads from right to left",
            "T1 0 1 0\nC0644 1 \u{202e}gpj.exe\n".as_bytes(),
            Gives("File 644 honest, File 644 \\u{202e}gpj.exe"),
        ),
        in_listing(
            "the same name twice, of which the filesystem keeps the last",
            b"T1 0 1 0\nC0644 1 twin\nT1 0 1 0\nD0755 0 twin\n",
            Gives("File 644 honest, File 644 twin, Directory 755 twin"),
        ),
        in_listing(
            "records inside an error line",
            b"\x01scp: /srv/x\nT1 0 1 0\nC0644 9 evil: No such file or directory\n",
            Gives("File 644 honest"),
        ),
        in_listing(
            "records inside dropbear's error line",
            b"\x01scp: /srv/x\nT1 0 1 0\nC0644 9 evil\nE\n\x01y: skipping, filename contains a newline\n",
            Gives("File 644 honest"),
        ),
        in_listing(
            "records behind what ends like dropbear's error line",
            b"\x01scp: /srv/x\ny: skipping, filename contains a newline\nT1 0 1 0\nC0644 9 evil: skipping, filename contains a newline\n",
            Says(BAD_NAME),
        ),
        in_listing(
            "an error line without an end",
            &[b"\x01scp: /srv/x\n", &b"T1 0 1 0\nD0755 0 x\n".repeat(100)[..]].concat(),
            Says("could not do it"),
        ),
        in_listing(
            "records inside an error line that begins like a harmless one",
            b"\x01scp: /srv/x: No such file or directory\nT1 0 1 0\nC0644 9 evil: No such file or directory\n",
            Says(BAD_NAME),
        ),
        in_listing(
            "an end inside an error line",
            b"\x01scp: /srv/x: No such file or directory\nE\nT1 0 1 0\nC0644 9 hidden\n",
            Says("expected an SCP record"),
        ),
        in_listing(
            "a complaint that moves the cursor",
            b"\x01scp: \x1b[2J/srv/x: Input/output error\n",
            Says("\\x1b[2J"),
        ),
        in_listing(
            "a directory is never entered, so that it has no end",
            b"T1 0 1 0\nD0755 0 sub\nE\nT1 0 1 0\nC0644 1 below\n",
            Says("expected an SCP record"),
        ),
        in_listing(
            "two times for one file",
            b"T1 0 1 0\nT1 0 1 0\nC0644 1 x\n",
            SaysOrUnlistable("times without a file"),
        ),
        in_listing(
            "a file without its times",
            b"C0644 1 x\n",
            SaysOrUnlistable("without the times"),
        ),
        row(
            "a listing that ends too early",
            List,
            b"T1 0 1 0\nD0755 0 srv\n",
            Close,
            Says("the connection ended"),
        ),
        row(
            "a listing without end",
            List,
            b"T1 0 1 0\nD0755 0 srv\n",
            Endless([b"T1 0 1 0\nC0644 1 ", &vec![b'x'; 1000][..], b"\n"].concat()),
            Says("more names than"),
        ),
        row(
            "complaints without end",
            List,
            b"T1 0 1 0\nD0755 0 srv\n",
            Endless([b"\x01scp: /srv/", &vec![b'x'; 20_000][..], b": Permission denied\n"].concat()),
            Says("more names than"),
        ),
        row(
            "a listing that falls silent",
            List,
            b"T1 0 1 0\nD0755 0 srv\nT1 0 1 0\nC0644",
            Silence,
            Says("no answer for 1 s"),
        ),
        row("not a word", Stat, b"", Silence, Says("no answer for 1 s")),
        row("nothing at all", Stat, b"", Close, Says("ended without output")),
        row(
            "an end before anything began",
            Stat,
            b"E\n",
            Close,
            Says("ended a directory that it had not begun"),
        ),
        row(
            "setuid of a file that is only looked at",
            Stat,
            b"T1 0 1 0\nC4777 5 file\n",
            Close,
            Gives("File 4777 5"),
        ),
        row(
            "a mode with more than permissions",
            Stat,
            b"T1 0 1 0\nC14777 5 file\n",
            Close,
            Says("bad SCP record"),
        ),
        row(
            "a negative size",
            Stat,
            b"T1 0 1 0\nC0644 -1 file\n",
            Close,
            Says("bad SCP record"),
        ),
        row(
            "a size that no file has",
            Stat,
            b"T1 0 1 0\nC0644 9223372036854775808 file\n",
            Close,
            Says("bad SCP record"),
        ),
        row(
            "a size of more digits than any number",
            Stat,
            &[b"T1 0 1 0\nC0644 ", &vec![b'9'; 10_000][..], b" file\n"].concat(),
            Close,
            Says("bad SCP record"),
        ),
        row(
            "a size with spaces",
            Stat,
            b"T1 0 1 0\nC0644  5 file\n",
            Close,
            Says("bad SCP record"),
        ),
        row(
            "a size in hexadecimal",
            Stat,
            b"T1 0 1 0\nC0644 0x5 file\n",
            Close,
            Says("bad SCP record"),
        ),
        row(
            "times that no clock shows",
            Stat,
            b"T99999999999999999999 0 1 0\nC0644 5 file\n",
            Close,
            Says("bad SCP record"),
        ),
        row(
            "a line of a mebibyte",
            Stat,
            &long,
            Endless(long.clone()),
            Says("longer than 20480 bytes"),
        ),
        row(
            "an error line of a mebibyte",
            Stat,
            &[&b"\x01"[..], &long].concat(),
            Endless(long.clone()),
            Says("longer than 20480 bytes"),
        ),
        row(
            "a long error line",
            Stat,
            &[&b"\x01"[..], &long[..20_000], b"\n"].concat(),
            Close,
            Says("the host says: xxx"),
        ),
        row(
            "CVE-2019-6110: an error line that hides what was said before",
            Stat,
            b"\x01\x1b[1A\x1b[2Kscp: file\x07\x9b: Permission denied\n",
            Close,
            Says("\\x1b[1A\\x1b[2Kscp: file\\x07\\x9b: Permission denied"),
        ),
        file(
            "an honest file",
            b"T1 0 1 0\nC0644 2 file\nok\0",
            Close,
            Gives("644 ok"),
        ),
        file(
            "CVE-2019-6111: a name that is not asked for is not looked at",
            b"T1 0 1 0\nC4755 2 ../../.ssh/authorized_keys\nok\0",
            Close,
            Gives("4755 ok"),
        ),
        file(
            "CVE-2019-6111: another file after the one that was asked for",
            b"T1 0 1 0\nC0644 2 file\nok\0T1 0 1 0\nC0644 4 .bashrc\nevil\0",
            Close,
            Gives("644 ok"),
        ),
        file(
            "a directory where a file was asked for",
            b"T1 0 1 0\nD0755 0 file\n",
            Silence,
            Says("a directory where a file was asked for"),
        ),
        file(
            "an end where a file was asked for",
            b"E\n",
            Silence,
            Says("ended a directory that it had not begun"),
        ),
        file(
            "a file without its times",
            b"C0644 2 file\nok\0",
            Silence,
            Says("without the times"),
        ),
        file(
            "content that is longer than announced",
            b"T1 0 1 0\nC0644 2 file\nokmore\0",
            Silence,
            Says("a reply that nothing asked for: byte 0x6d"),
        ),
        file(
            "content that is shorter than announced",
            b"T1 0 1 0\nC0644 9 file\nok\0",
            Close,
            Says("ended in the middle of a transfer"),
        ),
        file(
            "content that does not count",
            b"T1 0 1 0\nC0644 2 file\nok\x01scp: \x1b[2Jfile: Input/output error\n",
            Close,
            Says("scp: \\x1b[2Jfile: Input/output error"),
        ),
        file(
            "a status that never comes",
            b"T1 0 1 0\nC0644 2 file\nok",
            Silence,
            Says("no answer for 1 s"),
        ),
        file(
            "content that stops coming",
            b"T1 0 1 0\nC0644 9 file\nok",
            Silence,
            Says("no answer for 1 s"),
        ),
        file(
            "content without end",
            b"T1 0 1 0\nC0644 9223372036854775807 file\n",
            Endless(long),
            Says("the local cache failed"),
        ),
        file(
            "a file that never begins",
            b"",
            Endless(b"T1 0 1 0\n".to_vec()),
            Says("times without a file"),
        ),
        file(
            "noise with control characters",
            b"\x1b]0;owned\x07Welcome\n",
            Close,
            Says("expected an SCP record, got `\\x1b]0;owned\\x07Welcome`"),
        ),
    ]
}

/// The most that a client reads of an endless answer: slightly more than the longest listing.
const MAX_READ: u64 = 600 << 20;

#[test]
fn hostile_source_does_no_harm() {
    judge_log();
    let mut wrong = Vec::new();
    for banner in BANNERS {
        for row in rows() {
            let why = format!("{} ({banner})", row.why);
            let act = Act::default();
            let host = Scripted::scp(banner, Arc::clone(&act));
            let traffic = Arc::clone(&host.traffic);
            let remote = probe(Arc::new(host), &settings(), Arc::new(ManualClock::new())).unwrap();
            let before = traffic.n_read.load(Ordering::SeqCst);
            act.lock().set(vec![Talk::new(&row.words, row.then).into()]);
            let result = row.ask.of(&remote);
            let n_read = traffic.n_read.load(Ordering::SeqCst) - before;
            assert!(n_read < MAX_READ, "{why}: {n_read}");
            let text = match &result {
                Ok(answer) => format!("gives {answer}"),
                Err(error) => format!("says {}", told(error)),
            };
            let is_expected = match row.expect {
                Gives(answer) => result.is_ok_and(|it| it == answer),
                Says(part) => result.is_err() && text.contains(part),
                SaysOrUnlistable(_) if banner == BANNERS[1] => {
                    result.is_err() && text.contains("cannot list directories")
                }
                SaysOrUnlistable(part) => result.is_err() && text.contains(part),
            };
            if !is_expected {
                wrong.push(format!("{why}: {text}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_log_is_fit();
}

#[test]
fn probe_of_a_hostile_source_reports_no_control_characters() {
    judge_log();
    let long = vec![b'\x1b'; 1 << 20];
    for banner in BANNERS {
        for (words, then) in [
            (&b""[..], Close),
            (b"", Silence),
            (b"\0", Silence),
            (b"\x1b]0;owned\x07\n", Close),
            (b"\x01scp: \x1b[2J\n", Close),
            (b"T1 0 1 0\nT1 0 1 0\n", Silence),
            (b"T1 0 1 0\nC0644 1 \x1b[2J\n", Silence),
            (b"E\n", Close),
            (&long, Endless(long.clone())),
            (&[&b"\x01"[..], &long[..100_000], b"\n"].concat(), Close),
            (&[&long[..100_000], b"\n"].concat(), Close),
            (b"", Endless(b"\n".to_vec())),
        ] {
            let act = Act::default();
            act.lock().set(vec![Talk::new(words, then).into()]);
            let host = Scripted::scp(banner, act);
            let result = probe(Arc::new(host), &settings(), Arc::new(ManualClock::new()));
            if let Err(error) = result {
                told(&error);
            }
        }
    }
    assert_log_is_fit();
}
