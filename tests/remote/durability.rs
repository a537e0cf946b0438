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

/// Replaces `sync` by a script that writes its arguments to a file beside the root, and fails if
/// they end with `fails_for`.
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

/// Regression: only our temporary file was flushed, and then removed, but not the equal file of
/// others.
#[test]
fn equal_content_of_others_is_flushed() {
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

/// Regression: the directory was not flushed for a new file that needs no temporary file.
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
        // The host flushes the file by its descriptor, so only the directory is named here.
        let noted = fs::read_to_string(host.beside("syncs")).unwrap();
        let line = format!("-- {}", host.world.root().display());
        let is_flushed = noted.lines().any(|it| it == line);
        assert!(is_flushed, "{userland:?}: {noted}");
    }
}

/// Regression: an error when the directory was flushed was reported as a refusal, although the file
/// already had the new content: the next upload took that for a change by others.
#[test]
fn disk_error_after_the_rename_is_a_partial_upload() {
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

/// Regression: an upload without a temporary file took no lock, so that the content of two mounts
/// was mixed.
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
