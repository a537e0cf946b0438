#![cfg(test)]
//! Uploads with fsync: the host flushes the file and its directory before they succeed.

use std::fs;

use scpfs::path::Name;
use scpfs::remote::Durability;
use scpfs::remote::Error;
use scpfs::remote::Expect;
use scpfs::remote::Outcome;
use scpfs::remote::Placement;
use scpfs::remote::Reason;
use scpfs::remote::UploadSpec;
use scpfs_testing::samples::upload_spec;

use crate::uploads::Host;

/// Wraps `sync`: it writes its arguments to a file beside the root, and fails if they end with
/// `fails_for`.
fn note_syncs(host: &Host, fails_for: &str) {
    let log = host.beside("syncs");
    let script = format!(
        "#!/bin/dash\necho \"$*\" >>'{}'\ncase $* in *'{fails_for}')\n\
         echo \"sync: error syncing 'x': Input/output error\" >&2; exit 1 ;;\nesac\n",
        log.display()
    );
    host.world.put("sync", &script);
}

const NEVER: &str = "no such argument";

fn with_fsync(plan: UploadSpec) -> UploadSpec {
    UploadSpec {
        durability: Durability::Fsync,
        ..plan
    }
}

#[track_caller]
fn assert_flushed(host: &Host, case: &str) {
    let noted = fs::read_to_string(host.beside("syncs")).unwrap_or_default();
    for path in [host.at("file"), host.world.root()] {
        let line = format!("-- {}", path.display());
        let is_flushed = noted.lines().any(|it| it == line);
        assert!(is_flushed, "{case}, {line}: {noted}");
    }
}

/// Only our own copy was flushed, which was removed then.
#[test]
fn the_same_content_of_somebody_else_is_flushed() {
    for (userland, host) in Host::plain() {
        fs::write(host.at("file"), "the old content").unwrap();
        let plan = with_fsync(UploadSpec {
            conflict_name: Some(Name::new(b"kept").unwrap()),
            ..host.plan_over(b"new")
        });
        fs::remove_file(host.at("file")).unwrap();
        fs::write(host.at("file"), "new").unwrap();
        note_syncs(&host, NEVER);
        let uploaded = host.upload(b"new", &plan).unwrap();
        assert_eq!(uploaded.outcome, Outcome::Same, "{userland:?}");
        assert_flushed(&host, &format!("{userland:?}"));
    }
}

/// The name of a new file that needs no temporary file was not flushed.
#[test]
fn a_new_file_that_is_written_directly_is_flushed_with_its_name() {
    for (userland, host) in Host::plain() {
        note_syncs(&host, NEVER);
        let plan = with_fsync(UploadSpec {
            expect: Expect::Absent,
            placement: Placement::Direct,
            ..upload_spec(b"new")
        });
        host.upload(b"new", &plan).unwrap();
        // The file goes by the name of its descriptor.
        let noted = fs::read_to_string(host.beside("syncs")).unwrap();
        let line = format!("-- {}", host.world.root().display());
        let is_flushed = noted.lines().any(|it| it == line);
        assert!(is_flushed, "{userland:?}: {noted}");
    }
}

/// The error of a directory came as a refusal, although the file had the new content by then: the
/// next upload took that for somebody's change.
#[test]
fn an_error_of_the_disk_behind_the_rename_says_that_the_file_was_changed() {
    for (userland, host) in Host::plain() {
        let root = host.world.root();
        note_syncs(&host, &format!("-- {}", root.display()));
        for placement in [Placement::Replace, Placement::InPlace] {
            fs::write(host.at("file"), "old").unwrap();
            let plan = with_fsync(UploadSpec {
                placement,
                ..host.plan_over(b"new")
            });
            let result = host.upload(b"new", &plan);
            let Err(Error::Partial { reason, .. }) = result else {
                panic!("{userland:?} {placement:?}: {result:?}");
            };
            assert_eq!(reason, Reason::InputOutput);
            assert_eq!(host.read("file"), "new");
        }
    }
}

/// An upload without a temporary file did not lock the file, so that two mounts mixed theirs.
#[test]
fn an_upload_without_a_temporary_file_locks_the_file() {
    for (userland, host) in Host::each(&["flock"], "echo \"$*\" >>\"$dir/locks\"", "") {
        fs::write(host.at("file"), "old").unwrap();
        let replace = host.plan_over(b"new");
        host.upload(b"new", &replace).unwrap();
        let has_flock = fs::remove_file(host.beside("locks")).is_ok();
        let plan = UploadSpec {
            placement: Placement::Direct,
            ..host.plan_over(b"direct")
        };
        host.upload(b"direct", &plan).unwrap();
        assert_eq!(host.read("file"), "direct");
        assert_eq!(host.beside("locks").exists(), has_flock, "{userland:?}");
    }
}
