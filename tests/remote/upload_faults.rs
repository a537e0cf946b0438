#![cfg(test)]
//! Uploads whose programs are killed or fail, whose connection is cut, or whose files are replaced
//! by files of other users between two steps.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::chown;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use scpfs::clock::ManualClock;
use scpfs::path::Name;
use scpfs::remote::Durability;
use scpfs::remote::Error;
use scpfs::remote::Expect;
use scpfs::remote::Outcome;
use scpfs::remote::Owner;
use scpfs::remote::Placement;
use scpfs::remote::Remote;
use scpfs::remote::UploadSpec;
use scpfs::remote::retry::Retry;
use scpfs_testing::content::bytes;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::samples::path;
use scpfs_testing::samples::upload_spec;

use crate::uploads::Host;
use crate::uploads::PROGRAMS;
use crate::uploads::TEMP;
use crate::uploads::mode_of;
use crate::uploads::set_mode;

/// Regression: `cp` copied the attributes of whichever file had the name of the target at that
/// moment to the temporary file.
#[test]
fn a_temporary_file_gets_the_attributes_of_no_other_file() {
    let look = "PATH=/usr/bin:/bin; for f in \"$root\"/.scpfs-*.tmp; do\n\
                [ ! -f \"$f\" ] || /usr/bin/stat -c '%a %u:%g' \"$f\" >>\"$dir/log\"\ndone";
    let swap = format!(
        "PATH=/usr/bin:/bin; [ $program != $(cat \"$dir/now\") ] || {{ echo >\"$dir/now\"\n\
         mv \"$root/file\" \"$dir/moved\"; ln -s \"$dir/setuid\" \"$root/file\"; }}\n{look}"
    );
    for program in ["flock", "stat", "ls", "cp", "chown", "chmod", "mv"] {
        for (userland, host) in Host::each(&PROGRAMS, &swap, look) {
            let setuid = host.beside("setuid");
            fs::write(&setuid, "root's").unwrap();
            set_mode(&setuid, 0o4755);
            let file = host.at("file");
            fs::write(&file, "old").unwrap();
            set_mode(&file, 0o600);
            chown(&file, Some(1000), Some(1000)).unwrap();
            let plan = host.plan_over(b"content");
            fs::write(host.beside("now"), program).unwrap();
            let result = host.shell.upload(&path("file"), &bytes(b"content"), &plan);
            host.disarm();
            let case = format!("{userland:?} {program}: {result:?}");
            let log = fs::read_to_string(host.beside("log")).unwrap_or_default();
            for line in log.lines() {
                assert!(line.starts_with("600 "), "{case}: {log}");
            }
            assert_eq!(fs::read_to_string(&setuid).unwrap(), "root's", "{case}");
            assert_eq!(mode_of(&setuid), 0o4755, "{case}");
        }
    }
}

/// Regression: a conflict copy got the permissions and the owner of the file that others had
/// created under the original name.
#[test]
fn a_conflict_copy_is_not_given_to_the_owner_of_the_other_file() {
    for (userland, host) in Host::plain() {
        for owner in [
            None,
            Some(Owner {
                uid: 1000,
                gid: 1001,
            }),
        ] {
            let file = host.at("file");
            fs::write(&file, "old").unwrap();
            let plan = UploadSpec {
                mode: 0o600,
                owner,
                conflict_name: Some(Name::new(b"kept").unwrap()),
                ..host.plan_over(b"content")
            };
            fs::remove_file(&file).unwrap();
            fs::write(&file, "theirs").unwrap();
            set_mode(&file, 0o666);
            chown(&file, Some(1234), Some(1234)).unwrap();
            let uploaded = host.upload(b"content", &plan).unwrap();
            assert_eq!(uploaded.outcome, Outcome::ConflictCopy, "{userland:?}");
            let kept = fs::metadata(host.at("kept")).unwrap();
            let owner = owner.map_or((0, 0), |it| (it.uid, it.gid));
            assert_eq!(
                (kept.mode() & 0o7777, (kept.uid(), kept.gid())),
                (0o600, owner),
                "{userland:?}"
            );
            for name in host.names() {
                fs::remove_file(host.at(&name)).unwrap();
            }
        }
    }
}

/// Regression: if hard links can be created but no name can be removed, a new file was truncated
/// together with its temporary file, which is the same inode.
#[test]
fn new_file_is_complete_if_no_name_can_be_removed() {
    let denied =
        "#!/bin/dash\necho \"rm: cannot remove 'a': Operation not permitted\" >&2\nexit 1\n";
    for (userland, host) in Host::plain() {
        host.world.put("rm", denied);
        let plan = UploadSpec {
            expect: Expect::Absent,
            ..upload_spec(b"content")
        };
        let uploaded = host.upload(b"content", &plan);
        let case = format!("{userland:?}: {uploaded:?}");
        assert_eq!(host.read("file"), "content", "{case}");
        uploaded.unwrap();
    }
}

/// Regression: restricted permissions were set after the content was written: until then others
/// could read it.
#[test]
fn content_has_the_new_permissions_from_the_beginning() {
    let look = "PATH=/usr/bin:/bin; for f in \"$root\"/.scpfs-*.tmp \"$root/file\"; do\n\
                [ ! -s \"$f\" ] || echo \"$(/usr/bin/stat -c %a \"$f\") $(cat \"$f\")\" >>\"$dir/log\"\ndone";
    for placement in [Placement::Replace, Placement::InPlace, Placement::Direct] {
        for (userland, host) in Host::each(&PROGRAMS, look, look) {
            let file = host.at("file");
            fs::write(&file, "old").unwrap();
            set_mode(&file, 0o644);
            let plan = UploadSpec {
                mode: 0o600,
                sets_mode: true,
                placement,
                ..host.plan_over(b"secret")
            };
            host.upload(b"secret", &plan).unwrap();
            assert_eq!(mode_of(&file), 0o600);
            let log = fs::read_to_string(host.beside("log")).unwrap();
            assert!(log.contains("600 secret"), "{userland:?}: {log}");
            for line in log.lines() {
                let is_private = !line.ends_with("secret") || line.starts_with("600 ");
                assert!(is_private, "{userland:?} {placement:?}: {log}");
            }
        }
    }
}

/// Regression: an upload still wrote to its target after its temporary file had been removed, as
/// the retry of an upload of unknown outcome does.
#[test]
fn an_upload_whose_temporary_file_was_removed_ends_without_effect() {
    let script = format!("{TEMP}\n/bin/rm -f \"$temp\"");
    for program in ["flock", "stat", "ls", "mv"] {
        for (userland, host) in Host::each(&[program], &script, "") {
            for (placement, appends_to) in [
                (Placement::InPlace, None),
                (Placement::Replace, Some(4)),
                (Placement::Replace, None),
            ] {
                fs::write(host.at("file"), "old,").unwrap();
                let plan = UploadSpec {
                    placement,
                    appends_to,
                    ..host.plan_over(b"old,new,")
                };
                fs::write(host.beside("ran"), "").unwrap();
                let result = host.upload(b"old,new,", &plan);
                let case = format!("{userland:?} {program} {placement:?}: {result:?}");
                if result.is_ok() {
                    // This upload does not run the program before it writes.
                    assert_eq!(host.read("file"), "old,new,", "{case}");
                } else {
                    assert_eq!(host.read("file"), "old,", "{case}");
                    let is_tried_again = matches!(result, Err(Error::UnexpectedReply { .. }));
                    assert!(is_tried_again, "{case}");
                }
            }
        }
    }
}

/// Each program of an upload in turn is killed before or after its work, fails, or is missing.
#[test]
fn upload_succeeds_only_with_the_content_whichever_program_fails() {
    let ways = [
        ("is killed before", "kill -9 $$"),
        ("is killed after", "\"$real\" \"$@\"; kill -9 $$"),
        ("is missing", "echo 'sh: not found' >&2; exit 127"),
        ("fails", "echo 'x: Input/output error' >&2; exit 1"),
        ("does nothing", "exit 0"),
        // 208 is the last of the statuses that a program can return: SAME.
        ("returns 208", "\"$real\" \"$@\"; exit 208"),
    ];
    let mut wrong = Vec::new();
    for userland in Userland::here([Userland::Gnu, Userland::BusyBox, Userland::NoScp]) {
        let host = Host::new(userland, &[], "", "");
        // If no name can be removed, the next upload is done in place, so `rm` is tested last.
        let rest = PROGRAMS.into_iter().filter(|program| *program != "rm");
        for program in rest.chain(["rm"]) {
            let there = host.beside("bin").join(program);
            let real = match userland {
                _ if there.is_symlink() => fs::read_link(&there).unwrap(),
                _ if there.exists() => continue,
                _ => Path::new("/usr/bin").join(program),
            };
            // A program with many names (BusyBox) chooses its function by the last component of its
            // path.
            let named = host.beside("real").join(program);
            fs::create_dir_all(host.beside("real")).unwrap();
            symlink(real, &named).unwrap();
            for (way, script) in ways {
                // This cannot be distinguished from a file that another user has truncated.
                if ["cat", "chmod"].contains(&program) && way == "does nothing" {
                    continue;
                }
                for kind in Kind::ALL {
                    for name in host.names() {
                        fs::remove_file(host.at(&name)).unwrap();
                    }
                    if kind != Kind::New {
                        fs::write(host.at("file"), "old,").unwrap();
                        set_mode(&host.at("file"), 0o640);
                    }
                    let plan = UploadSpec {
                        durability: Durability::Fsync,
                        ..kind.upload_spec(&host.shell)
                    };
                    let real = named.display();
                    host.world
                        .put(program, &format!("#!/bin/dash\nreal='{real}'\n{script}\n"));
                    let result = host.upload(b"old,new,", &plan);
                    fs::remove_file(&there).unwrap();
                    symlink(&named, &there).unwrap();
                    let case = format!("{userland:?} {program} {way}, {kind:?}: {result:?}");
                    let content = fs::read_to_string(host.at("file")).unwrap_or_default();
                    let names = host.names();
                    let is_right = match &result {
                        Ok(_) => content == "old,new,",
                        // The next upload replaces the partial content.
                        Err(Error::Partial { .. }) => {
                            kind != Kind::New && (kind != Kind::Replace || program == "rm")
                        }
                        Err(_) if kind == Kind::New => ["", "old,new,"].contains(&&*content),
                        Err(_) => ["old,", "old,new,"].contains(&&*content),
                    };
                    let is_left = names.iter().any(|name| name != "file") && program != "rm";
                    if !is_right || is_left {
                        wrong.push(format!("{case}: {content} {names:?}"));
                    } else if result.is_ok() && mode_of(&host.at("file")) != 0o640 {
                        wrong.push(format!("{case}: mode {:o}", mode_of(&host.at("file"))));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    New,
    Replace,
    InPlace,
    Append,
    Direct,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::New,
        Self::Replace,
        Self::InPlace,
        Self::Append,
        Self::Direct,
    ];

    /// An upload spec that changes `old,` to `old,new,`, or creates a file with that content.
    fn upload_spec(self, host: &dyn Remote) -> UploadSpec {
        let expect = match self {
            Self::New => Expect::Absent,
            // The first request may use the connection that the last upload has broken.
            _ => {
                let stat = (0..3).find_map(|_| host.stat(&path("file")).ok());
                Expect::Version(stat.unwrap().version())
            }
        };
        UploadSpec {
            appends_to: (self == Self::Append).then_some(4),
            sets_mode: self == Self::New,
            expect,
            placement: match self {
                Self::InPlace => Placement::InPlace,
                Self::Direct => Placement::Direct,
                _ => Placement::Replace,
            },
            ..upload_spec(b"old,new,")
        }
    }
}

/// An upload is not done twice, at whichever byte its answer is cut.
#[test]
fn an_upload_whose_answer_is_cut_is_not_done_twice() {
    for userland in Userland::here([Userland::Gnu, Userland::BusyBox, Userland::OpenWrt]) {
        let world = World::new(userland);
        let shell = world.shell(Arc::new(ManualClock::new()));
        let shell = Retry::new(shell);
        let file = world.root().join("file");
        for kind in Kind::ALL {
            let prepare = || {
                for item in fs::read_dir(world.root()).unwrap() {
                    fs::remove_file(item.unwrap().path()).unwrap();
                }
                if kind != Kind::New {
                    fs::write(&file, "old,").unwrap();
                }
            };
            prepare();
            let plan = kind.upload_spec(&shell);
            let before = world.meter.bytes_read();
            shell
                .upload(&path("file"), &bytes(b"old,new,"), &plan)
                .unwrap();
            let n_read = world.meter.bytes_read() - before;
            for gently in [false, true] {
                world.faults.lock().hangs_up_gently = gently;
                let is_append = kind == Kind::Append && userland == Userland::Gnu;
                for cut in (0..n_read).step_by(if is_append { 1 } else { 23 }) {
                    prepare();
                    let plan = kind.upload_spec(&shell);
                    world.faults.lock().cut_after_read = Some(cut);
                    let result = shell.upload(&path("file"), &bytes(b"old,new,"), &plan);
                    world.faults.lock().cut_after_read = None;
                    let there = fs::read_to_string(&file).unwrap_or_default();
                    let case = format!("{userland:?} {kind:?} {cut} {gently}: {result:?}");
                    let is_whole = |it: &str| ["", "old,", "old,new,"].contains(&it);
                    match result {
                        Ok(_) => assert_eq!(there, "old,new,", "{case}"),
                        Err(_) => assert!(is_whole(&there), "{case} {there}"),
                    }
                }
            }
            world.faults.lock().hangs_up_gently = false;
        }
    }
}
