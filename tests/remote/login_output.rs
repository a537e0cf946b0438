#![cfg(test)]
//! Logins that print, or change the shell, in ways that no protocol expects; see `World::at_login`.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use scpfs::clock::ManualClock;
use scpfs::clock::SystemClock;
use scpfs::path::RemotePath;
use scpfs::remote::Remote as _;
use scpfs::shell::Shell;
use scpfs::shell::probe;
use scpfs_testing::content::Buffer;
use scpfs_testing::content::bytes;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::samples::path;
use scpfs_testing::samples::upload_spec;

/// Start-up scripts that must have no effect.
const HARMLESS: &[(&str, &str)] = &[
    ("a line", "echo Welcome to the machine!"),
    ("an empty line", "echo"),
    ("no newline", "printf 'Password expires in 3 days'"),
    ("a megabyte", "head -c 1000000 /dev/zero | tr '\\0' x"),
    ("a megabyte of lines", "yes | head -c 1000000"),
    (
        "control sequences",
        "printf '\\033[2J\\033]0;title\\007\\r\\b\\f'",
    ),
    ("a file", "printf 'C0644 6 hello.txt\\nhello\\n\\0'"),
    ("a directory", "printf 'T1 0 1 0\\nD0755 0 x\\nE\\n'"),
    (
        "an error of scp",
        "printf '\\001scp: x: Permission denied\\n\\002bye\\n'",
    ),
    ("an acknowledgement", "printf '\\0\\0\\0'"),
    (
        "a frame",
        "printf '\\0360123456789abcdef0123456789abcdef 0\\n\\036'",
    ),
    ("a listing", "printf '\\035 81a4 1 2 3\\n\\035!'"),
    ("bytes that are no text", "printf '\\377\\376\\200'"),
    ("a line as an error", "echo mind the gap >&2"),
    ("a megabyte of errors", "yes | head -c 1000000 >&2"),
    ("a long time", "sleep 3"),
    ("an end of input", "exec 3<&0; read -t 0.1 x <&3; exec 3<&-"),
    (
        "another directory",
        "cd /; umask 777; IFS=/; export IFS; CDPATH=/; export CDPATH",
    ),
    (
        "other words",
        "export LC_ALL=de_DE.UTF-8 LANG=tr_TR TZ=Asia/Kolkata BLOCK_SIZE=human-readable \\
         TIME_STYLE=locale QUOTING_STYLE=c POSIXLY_CORRECT=1 GREP_OPTIONS=-v",
    ),
    (
        "functions",
        "ls() { echo no; }; stat() { echo no; }; export -f ls stat",
    ),
    ("options", "set -efuC; export SHELLOPTS"),
    ("limits", "ulimit -c 0; ulimit -n 64; trap '' HUP"),
];

#[test]
fn start_up_file_that_changes_the_directory_has_no_effect() {
    for userland in [Userland::Gnu, Userland::Bash, Userland::OpenWrt] {
        let world = World::new(userland);
        fs::create_dir(world.root().join("sub")).unwrap();
        world.at_login("cd /tmp");
        for (typed, inside) in [("", ""), ("~/sub", "/sub"), ("sub", "/sub")] {
            let settings = scpfs::remote::Settings {
                directory: typed.into(),
                ..world.settings()
            };
            let clock = Arc::new(ManualClock::new());
            let shell = probe::probe(world.transport(), &settings, clock).unwrap();
            let root = world.root().into_os_string().into_encoded_bytes();
            assert_eq!(shell.facts().root, [&root, inside.as_bytes()].concat());
        }
    }
}

#[test]
fn resident_shell_outlives_its_idle_timeout() {
    let world = World::new(Userland::Bash);
    world.at_login("export TMOUT=1");
    let shell = world.shell(Arc::new(ManualClock::new()));
    // TMOUT is measured by the shell itself, so only real time can reach it.
    std::thread::sleep(Duration::from_millis(1500));
    shell.make_dir(&path("dir"), 0o755, None).unwrap();
}

fn quiet_settings(world: &World, timeout: Duration) -> scpfs::remote::Settings {
    scpfs::remote::Settings {
        timeout,
        ..world.settings()
    }
}

#[test]
fn output_at_login_changes_no_byte() {
    for userland in [Userland::Bash, Userland::OpenWrt, Userland::NoScp] {
        for (what, script) in HARMLESS {
            // This script is slow, and one userland is enough.
            if *what == "a long time" && userland != Userland::OpenWrt {
                continue;
            }
            let world = World::new(userland);
            let data: Vec<u8> = (0..=255).cycle().take(70_000).collect();
            for name in ["file", "odd \n\x1b name"] {
                fs::write(world.root().join(name), &data).unwrap();
            }
            world.at_login(script);
            let shell = world.shell(Arc::new(ManualClock::new()));
            works(&shell, &world, &data, what);
        }
    }
}

fn works(shell: &Shell, world: &World, data: &[u8], what: &str) {
    let listing = shell.list(&RemotePath::root()).unwrap();
    let mut names: Vec<_> = listing.entries.iter().map(|e| e.name.as_bytes()).collect();
    names.sort();
    assert_eq!(names, [&b"file"[..], b"odd \n\x1b name"], "{what}");
    for entry in &listing.entries {
        let stat = entry.stat.unwrap();
        assert_eq!(stat.size, 70_000, "{what}");
        let path = RemotePath::root().join(&entry.name);
        assert_eq!(
            shell.stat(&path).unwrap().version(),
            stat.version(),
            "{what}"
        );
        let mut buffer = Buffer::default();
        let fetched = shell.fetch(&path, Some(&stat.version()), &mut buffer);
        assert!(fetched.unwrap().is_stable, "{what}");
        assert!(buffer.data == data, "{what}");
    }
    let uploaded = shell
        .upload(&path("new"), &bytes(data), &upload_spec(data))
        .unwrap();
    assert_eq!(uploaded.stat.unwrap().mode, 0o640, "{what}");
    assert!(
        fs::read(world.root().join("new")).unwrap() == data,
        "{what}"
    );
    shell.remove_file(&path("new"), None).unwrap();
    let made = shell.make_dir(&path("dir"), 0o755, None).unwrap();
    assert_eq!(made.stat.unwrap().mode, 0o755, "{what}");
    shell.remove_dir(&path("dir")).unwrap();
}

/// Start-up scripts that make a login unusable, and text that the error must contain.
const HOPELESS: &[(&str, &str)] = &[
    ("exit", "said nothing"),
    ("exec >&- 2>&-; exit", "said nothing"),
    (
        "echo This account is not available.; exit 1",
        "said: This account is not available.",
    ),
    (
        "echo no more processes >&2; exit 254",
        "said: no more processes",
    ),
    ("PATH=/nonexistent; export PATH", "not found"),
    ("printf 'Press any key'; read x", "said: Press any key"),
    ("printf '1) status\\n2) reboot\\n> '; exec cat", "status"),
    ("read x; echo $x", "no answer"),
    ("while :; do echo still busy; sleep 0.1; done", "still busy"),
    ("yes", "said: y"),
    ("head -c 20000000 /dev/zero; exit", "said: "),
    ("printf '\\033[31mno\\033[0m\\007'; exit", "[31mno"),
    ("printf '\\0\\377'; exit 1", "\\xff"),
    (
        "printf '\\001scp: x: Permission denied\\n'; exit 1",
        "Permission denied",
    ),
    (
        "echo '% Invalid input detected'; exec sleep 100",
        "% Invalid input detected",
    ),
];

#[test]
fn unusable_login_is_reported_with_its_output() {
    const TIMEOUT: Duration = Duration::from_secs(4);
    for (script, words) in HOPELESS {
        let world = World::new(Userland::Gnu);
        world.at_login(script);
        let begun = SystemClock::new();
        let settings = quiet_settings(&world, TIMEOUT);
        let clock = Arc::new(SystemClock::new());
        let error = probe::probe(world.transport(), &settings, clock).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(words), "{script}: {text}");
        assert!(
            !text.contains(|c: char| c.is_control()),
            "{script}: {text:?}"
        );
        assert!(text.len() < 10_000);
        assert!(begun.elapsed() < 4 * TIMEOUT, "{script}");
    }
}

/// A background program that the login started may print at any time: the connection is dropped,
/// and the content is not damaged.
#[test]
fn output_after_login_never_gets_into_content() {
    for userland in [Userland::Gnu, Userland::OpenWrt, Userland::NoScp] {
        let world = World::new(userland);
        let data: Vec<u8> = b"0123456789abcdef".repeat(1 << 16);
        fs::write(world.root().join("file"), &data).unwrap();
        world
            .at_login("(for n in 1 2 3 4 5 6 7 8 9; do sleep 0.05; printf 'late\\n'; done) 2>&1 &");
        let Ok(shell) = probe::probe(
            world.transport(),
            &world.settings(),
            Arc::new(ManualClock::new()),
        ) else {
            continue;
        };
        let begun = SystemClock::new();
        while begun.elapsed() < Duration::from_secs(1) {
            let mut buffer = Buffer::default();
            if shell.fetch(&path("file"), None, &mut buffer).is_ok() {
                assert!(buffer.data == data);
            }
            if let Ok(listing) = shell.list(&RemotePath::root()) {
                assert_eq!(listing.entries.len(), 1);
            }
        }
    }
}
