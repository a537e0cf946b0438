//! Hostile sinks, hostile content, and targets that are replaced during an upload.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use scpfs::clock::ManualClock;
use scpfs::remote::Expect;
use scpfs::remote::Placement;
use scpfs::remote::Remote;
use scpfs::remote::UploadSpec;
use scpfs::scp_only::probe::probe;
use scpfs_testing::content::bytes;
use scpfs_testing::hostile::assert_log_is_fit;
use scpfs_testing::hostile::judge_log;
use scpfs_testing::hostile::settings;
use scpfs_testing::hostile::told;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::samples::path;
use scpfs_testing::samples::upload_spec;
use scpfs_testing::scripted::Act;
use scpfs_testing::scripted::Scripted;
use scpfs_testing::scripted::Then;
use scpfs_testing::scripted::Then::Close;
use scpfs_testing::scripted::Then::Endless;
use scpfs_testing::scripted::Then::Silence;
use scpfs_testing::scripted::Turns;

use crate::scp_only::BANNERS;

/// Content that would do harm if it were read as records or as commands.
const HARMFUL: &[&[u8]] = &[
    b"C0644 4 evil\nevil\0E\n",
    b"D0755 0 evil\nC0644 4 evil\nevil\0E\n",
    b"T1 0 1 0\nC0644 4 evil\nevil\0E\n",
    b"\x01nothing\nC0644 4 evil\nevil\0",
    b"E\nC0644 4 evil\nevil\0",
    b"\nC0644 4 evil\nevil\0",
    b"x\nC0644 4 evil\nevil\0",
    b"touch evil\n$(touch evil)\n`touch evil`\n';touch evil;'\n",
];

const SECRET: &[u8] = b"the content of a file that has nothing to do with it";

/// A sink, given by its replies: each is preceded by the number of bytes that it receives.
fn sink(turns: &[(usize, &[u8])], then: Then) -> Turns {
    Turns {
        turns: turns
            .iter()
            .map(|&(n_heard, words)| (n_heard, words.to_vec()))
            .collect(),
        then,
    }
}

#[test]
fn a_hostile_sink_gets_no_content_that_it_did_not_ask_for() {
    judge_log();
    // The length of the T record, of the C record, and of the content with its status.
    const T: usize = b"T1700000000 0 1700000000 0\n".len();
    let rows: Vec<(&str, Turns, &str)> = vec![
        ("silence", sink(&[], Silence), "no answer for 1 s"),
        ("nothing", sink(&[], Close), "the connection ended"),
        (
            "noise that moves the cursor",
            sink(&[(0, b"\x1b[2JWelcome\n")], Silence),
            "\\x1b[2JWelcome",
        ),
        (
            "a line without end",
            sink(&[], Endless(vec![b'x'; 1 << 20])),
            "longer than 20480 bytes",
        ),
        (
            "acknowledgements before there is anything to acknowledge",
            sink(&[(0, b"\0\0\0\0\0\0\0\0")], Silence),
            "a reply that nothing asked for",
        ),
        (
            "CVE-2020-12062: two replies for one step",
            sink(&[(0, b"\0"), (T, b"\0\0")], Silence),
            "a reply that nothing asked for",
        ),
        (
            "CVE-2020-12062: an error behind an acknowledgement",
            sink(
                &[
                    (0, b"\0"),
                    (T, b"\0\x01scp: set times: Permission denied\n"),
                ],
                Silence,
            ),
            "a reply that nothing asked for",
        ),
        (
            "the file cannot be opened",
            sink(
                &[
                    (0, b"\0"),
                    (T, b"\0"),
                    (1, b"\x01scp: \x1b[2J: Permission denied\n"),
                ],
                Silence,
            ),
            "permission denied",
        ),
        (
            "an end behind the first record",
            sink(&[(0, b"\0"), (T, b"\0")], Close),
            "the connection ended",
        ),
    ];
    let mut wrong = Vec::new();
    for (why, turns, expected) in rows {
        let act = Act::default();
        let host = Scripted::scp(BANNERS[1], Arc::clone(&act));
        let traffic = Arc::clone(&host.traffic);
        let remote = probe(Arc::new(host), &settings(), Arc::new(ManualClock::new())).unwrap();
        let missing = sink(&[(0, b"\x01scp: file: No such file or directory\n")], Close);
        act.lock().set(vec![missing, turns]);
        traffic.sent.lock().clear();
        let content = b"CONTENT".repeat(10);
        let mut plan = upload_spec(&content);
        (plan.mtime.nanos, plan.atime.nanos) = (0, 0);
        let error = remote
            .upload(&path("file"), &bytes(&content), &plan)
            .unwrap_err();
        let text = told(&error);
        let sent = traffic.sent.lock().clone();
        let has_sent = sent.windows(7).any(|part| part == b"CONTENT");
        if !text.contains(expected) || has_sent {
            wrong.push(format!("{why}: {text}; content was sent: {has_sent}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_log_is_fit();
}

/// Shell commands that replace the target just before the rename: `$t` is the target, `$v` an
/// unrelated directory.
const SWAPS: &[(&str, &str)] = &[
    ("a directory", "rm -rf \"$t\"; mkdir \"$t\""),
    (
        "a link to a directory",
        "rm -rf \"$t\"; ln -s \"$v\" \"$t\"",
    ),
];

/// Wraps the programs that receive content: if the file `now` exists, they run `script` first.
fn swap(world: &World, victim: &Path, script: &str) {
    for (name, option) in [("scp", "-t"), ("dd", "iflag=fullblock,count_bytes")] {
        let program = world.root().parent().unwrap().join("bin").join(name);
        let text = format!(
            "#!/bin/dash\nv='{}' t='{}' d='{}'\nfor o; do\n[ ! -e \"$d/now\" ] || [ \"$o\" != {option} ] || \
             {{ {script}; }}\ndone\nexec /usr/bin/{name} \"$@\"\n",
            victim.display(),
            world.root().join("file").display(),
            world.root().parent().unwrap().display()
        );
        // The wrapped program may be a symlink to the real one.
        drop(fs::remove_file(&program));
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// The names of all files below a directory that are not in `allowed`.
fn intruders(dir: &Path, allowed: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for item in fs::read_dir(dir).unwrap() {
        let item = item.unwrap();
        let name = item.file_name().into_string().unwrap();
        if item.file_type().unwrap().is_dir() {
            found.extend(intruders(&item.path(), allowed));
        } else if !allowed.contains(&name.as_str()) {
            found.push(name);
        }
    }
    found
}

#[test]
fn a_target_that_becomes_a_directory_gets_nothing_of_the_content() {
    for &(what, script) in SWAPS {
        for &content in HARMFUL {
            for (world, placement) in [
                (World::scp_only("SSH-2.0-OpenSSH_9.2"), Placement::Replace),
                (World::scp_only("SSH-2.0-local"), Placement::Replace),
                (World::new(Userland::Gnu), Placement::Replace),
                (World::new(Userland::Gnu), Placement::Direct),
            ] {
                let victim = world.root().parent().unwrap().join("victim");
                fs::create_dir(&victim).unwrap();
                // Wrapped before the connection, because a shell remembers the paths of its
                // programs.
                swap(&world, &victim, script);
                let clock = Arc::new(ManualClock::new());
                let remote: Box<dyn Remote> = if world.is_scp_only() {
                    Box::new(world.scp(clock))
                } else {
                    Box::new(world.shell(clock))
                };
                fs::write(victim.join("secret"), SECRET).unwrap();
                fs::write(world.root().join("file"), "old").unwrap();
                let plan = UploadSpec {
                    placement,
                    expect: Expect::Version(remote.stat(&path("file")).unwrap().version()),
                    ..upload_spec(content)
                };
                fs::write(victim.with_file_name("now"), "").unwrap();
                let is_named = world.is_scp_only() && world.banner() == "SSH-2.0-local";
                let result = remote.upload(&path("file"), &bytes(content), &plan);
                // If the name must be in the C record, the sink creates a file of that name with
                // the whole content in the directory. SCP cannot prevent that.
                let allowed: &[&str] = if is_named {
                    &["secret", "file"]
                } else {
                    &["secret"]
                };
                assert!(result.is_err() || is_named, "{what}: {result:?}");
                if let Err(error) = result {
                    told(&error);
                }
                let shown = String::from_utf8_lossy(content);
                let none: [String; 0] = [];
                assert_eq!(intruders(&victim, allowed), none, "{what}: {shown}");
                assert_eq!(fs::read(victim.join("secret")).unwrap(), SECRET);
                let file = world.root().join("file");
                let is_directory = !file.is_symlink() && file.is_dir();
                if is_directory && !is_named {
                    let n_names = fs::read_dir(&file).unwrap().count();
                    assert_eq!(n_names, 0, "{what}: {shown}");
                }
                assert_eq!(intruders(&world.root(), &["file"]), none, "{what}: {shown}");
            }
        }
    }
}
