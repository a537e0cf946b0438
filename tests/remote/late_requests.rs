//! Requests that arrive after the client gave them up, or that arrive only in part.

use std::fs;
use std::io;
use std::io::Write as _;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;

use scpfs::clock::ManualClock;
use scpfs::remote::Content;
use scpfs::remote::Error;
use scpfs::remote::Remote as _;
use scpfs_testing::capability::Capability;
use scpfs_testing::capability::skip;
use scpfs_testing::content::bytes;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::samples::path;
use scpfs_testing::samples::upload_spec;

const HELPERS: &str = concat!(
    include_str!("../../src/shell/helpers.sh"),
    include_str!("../../src/shell/helpers/content.sh"),
    include_str!("../../src/shell/helpers/stat.sh"),
);

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "tests start the programs they test against"
)]
fn pieces_that_arrive_after_the_upload_ended_leave_nothing() {
    for shell in [&["dash"][..], &["bash"], &["busybox", "sh"]] {
        let dir = tempfile::tempdir().unwrap();
        let temp = dir.path().join("temp");
        let script = format!(
            "token=token; listing_mark=mark; userland=gnu; has_fd_dir=y; READY=203; \
             newline=$(printf '\\n.'); newline=${{newline%.}}\n{HELPERS}\n\
             while IFS= read -r line; do eval \"$line\"; done"
        );
        let Ok(mut child) = Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            skip(Capability::Shells, shell[0]);
            continue;
        };
        drop(child.stdout.take());
        let mut input = child.stdin.take().unwrap();
        let name = temp.display();
        // The shell may exit before it has read everything.
        drop(writeln!(
            input,
            "method=replace temp='{name}' path='{name}.final' parent='{}' expected=- owner='' mask=077; \
             : >'{name}.begun'; begin_pieces; receive_piece 0 10 0+1",
            dir.path().display()
        ));
        drop(input.write_all(b"0123456789answer 0\n"));
        drop(input);
        child.wait().unwrap();
        assert!(dir.path().join("temp.begun").exists(), "{shell:?}");
        assert!(!temp.exists(), "{shell:?}");
    }
}

/// An existing link or file with the name of the temporary file is neither followed nor truncated.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "tests start the programs they test against"
)]
fn temporary_file_never_replaces_an_existing_file() {
    for shell in [&["dash"][..], &["bash"], &["mksh"], &["busybox", "sh"]] {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        let temp = dir.path().join("temp");
        for is_link in [true, false] {
            fs::write(&victim, "victim").unwrap();
            if is_link {
                std::os::unix::fs::symlink(&victim, &temp).unwrap();
            } else {
                drop(fs::remove_file(&temp));
                fs::hard_link(&victim, &temp).unwrap();
            }
            let script = format!(
                "token=token; listing_mark=mark; userland=gnu; has_fd_dir=y; \
                 method=replace mode=0600 mask=077 expected=0 received_by=shell\n\
                 newline=; temp='{0}' path='{0}.new'\n{HELPERS}\n\
                 begin_upload; printf content >\"$upload_file\"",
                temp.display()
            );
            let Ok(output) = Command::new(shell[0])
                .args(&shell[1..])
                .args(["-c", &script])
                .output()
            else {
                skip(Capability::Shells, shell[0]);
                continue;
            };
            assert!(!output.status.success(), "{shell:?}: {output:?}");
            assert_eq!(fs::read(&victim).unwrap(), b"victim", "{shell:?}");
        }
    }
}

/// Content in the middle of which all programs on the host are killed.
struct Breaking<'a> {
    world: &'a World,
    data: &'a [u8],
}

impl Content for Breaking<'_> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset > 1 << 20 {
            self.world.cut_off();
        }
        bytes(self.data).read_at(buf, offset)
    }
}

#[test]
fn upload_that_breaks_in_the_middle_has_an_unknown_outcome() {
    // With scp, without scp, and in pieces over several connections.
    for (userland, len) in [
        (Userland::Gnu, 5 << 20),
        (Userland::NoScp, 5 << 20),
        (Userland::Gnu, 40 << 20),
    ] {
        let world = World::new(userland);
        let shell = world.shell(Arc::new(ManualClock::new()));
        let data = vec![b'x'; len];
        let content = Breaking {
            world: &world,
            data: &data,
        };
        let error = shell.upload(&path("file"), &content, &upload_spec(&data));
        let is_unknown = matches!(error, Err(Error::OutcomeUnknown { .. }));
        assert!(is_unknown, "{userland:?} {len}: {error:?}");
        let names = fs::read_dir(world.root()).unwrap();
        let names: Vec<_> = names.map(|item| item.unwrap().file_name()).collect();
        eprintln!("{userland:?} {len}: {names:?} is left");
    }
}
