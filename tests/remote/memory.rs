#![cfg(test)]
//! The host in memory: injected failures.

use std::sync::Arc;

use scpfs::clock::ManualClock;
use scpfs::remote::Error;
use scpfs::remote::Expect;
use scpfs::remote::Outcome;
use scpfs::remote::Reason;
use scpfs::remote::Remote as _;
use scpfs::remote::UploadSpec;
use scpfs::remote::retry::Retry;
use scpfs_testing::content::bytes;
use scpfs_testing::memory_host::Failure;
use scpfs_testing::memory_host::Memory;
use scpfs_testing::samples::path;
use scpfs_testing::samples::reason;
use scpfs_testing::samples::upload_spec;

fn memory() -> Memory {
    Memory::new(Arc::new(ManualClock::new()))
}

#[test]
fn a_call_fails_before_or_after_it_is_carried_out() {
    let memory = memory();
    let make = |name: &str| memory.make_dir(&path(name), 0o755, None);
    memory.fail(1, Failure::Disconnected);
    memory.fail(2, Failure::AnswerLost);
    memory.fail(4, Failure::Refused(Reason::NoSpace));
    assert!(matches!(make("a"), Err(Error::Disconnected { .. })));
    assert!(matches!(make("b"), Err(Error::OutcomeUnknown { .. })));
    make("c").unwrap();
    assert_eq!(reason(make("d")), Reason::NoSpace);
    make("e").unwrap();
    assert_eq!(memory.n_calls(), 5);
    let names = memory.names(&scpfs::path::RemotePath::root()).unwrap();
    let names: Vec<_> = names.iter().map(|name| name.as_bytes()).collect();
    assert_eq!(names, [b"b", b"c", b"e"]);
    let calls = memory.take_calls();
    assert_eq!(calls[1], ("create", path("b")));
    assert_eq!(memory.n_calls(), 0);
}

#[test]
fn an_upload_whose_answer_was_lost_is_not_done_twice() {
    let retry = Retry::new(memory());
    let plan = UploadSpec {
        expect: Expect::Absent,
        ..upload_spec(b"content")
    };
    retry.inner().fail(1, Failure::AnswerLost);
    let uploaded = retry.upload(&path("file"), &bytes(b"content"), &plan);
    assert_eq!(uploaded.unwrap().outcome, Outcome::AsPlanned);
    let acts: Vec<_> = retry.inner().take_calls();
    let acts: Vec<_> = acts.iter().map(|(act, _)| *act).collect();
    assert_eq!(acts, ["upload", "clean up", "stat"]);
    // An upload that did not reach the host is sent again.
    retry.inner().fail(1, Failure::Disconnected);
    retry
        .upload(&path("other"), &bytes(b"content"), &plan)
        .unwrap();
    assert_eq!(retry.inner().get(&path("other")).unwrap(), b"content");
}

#[test]
fn each_change_has_a_time_of_its_own() {
    let memory = memory();
    memory.put(&path("file"), b"one").unwrap();
    let first = memory.stat(&path("file")).unwrap();
    memory.put(&path("file"), b"two").unwrap();
    let second = memory.stat(&path("file")).unwrap();
    assert_eq!((first.id, first.size), (second.id, second.size));
    assert_ne!(first.version(), second.version());
}
