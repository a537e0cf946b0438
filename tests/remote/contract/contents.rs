//! Tests of content that every kind of host must pass.

use scpfs::path::Name;
use scpfs::remote::Error;
use scpfs::remote::Expect;
use scpfs::remote::Outcome;
use scpfs::remote::Placement;
use scpfs::remote::Reason;
use scpfs::remote::UploadSpec;
use scpfs::stat::Time;
use scpfs_testing::content::Buffer;
use scpfs_testing::content::bytes;
use scpfs_testing::samples::MTIME;
use scpfs_testing::samples::path;
use scpfs_testing::samples::path_of;
use scpfs_testing::samples::reason;
use scpfs_testing::samples::upload_spec;

use crate::host::Host;

pub(super) fn fetched(host: &Host, name: impl AsRef<[u8]>) -> Buffer {
    let path = path_of(name.as_ref());
    let stat = host.remote.stat(&path).unwrap();
    let mut buffer = Buffer::default();
    let fetched = host
        .remote
        .fetch(&path, Some(&stat.version()), &mut buffer)
        .unwrap();
    assert!(fetched.is_stable);
    assert_eq!(fetched.stat.version(), stat.version());
    buffer
}

pub(crate) fn a_file_is_fetched_byte_for_byte(host: &Host) {
    let all: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    for (name, data) in [("empty", &b""[..]), ("nul", b"\0"), ("all", &all)] {
        host.put(name, data);
        let buffer = fetched(host, name);
        assert_eq!(buffer.data, data);
        assert_eq!(buffer.begun, [data.len() as u64]);
    }
}

pub(crate) fn fetch_of_a_non_file_fails_without_content(host: &Host) {
    host.put_dir("dir");
    let mut buffer = Buffer::default();
    let result = host.remote.fetch(&path("dir"), None, &mut buffer);
    assert_eq!(reason(result), Reason::IsADirectory);
    assert!(buffer.begun.is_empty());
    // The connection is still in step with the protocol.
    host.put("file", "x");
    assert_eq!(fetched(host, "file").data, b"x");
}

pub(crate) fn a_file_is_uploaded_with_mode_and_times(host: &Host) {
    let seconds = Time { nanos: 0, ..MTIME };
    for (name, mode, mtime) in [
        ("plain", 0o644, MTIME),
        ("setuid", 0o6755, MTIME),
        ("none", 0, MTIME),
        ("round", 0o600, seconds),
    ] {
        let plan = UploadSpec {
            mode,
            mtime,
            ..upload_spec(b"hello")
        };
        let (uploaded, trips) =
            host.counted(|| host.remote.upload(&path(name), &bytes(b"hello"), &plan));
        assert!(trips.is_none_or(|trips| trips <= host.max_trips_of_an_upload()));
        let stat = host.remote.stat(&path(name)).unwrap();
        if let Some(told) = uploaded.unwrap().stat {
            assert_eq!(told, stat);
        }
        assert_eq!((stat.mode, stat.size), (mode, 5));
        assert_eq!(stat.mtime, host.told(mtime), "{name}");
    }
}

pub(crate) fn upload_whose_content_ends_early_fails_and_the_next_succeeds(host: &Host) {
    host.put("file", "old content");
    let short = UploadSpec {
        size: 10,
        ..upload_spec(b"")
    };
    let result = host.remote.upload(&path("file"), &bytes(b"short"), &short);
    assert!(matches!(result, Err(Error::Local { .. })), "{result:?}");
    if host.can.everything {
        assert_eq!(host.get("file").unwrap(), b"old content");
    }
    // The next upload is complete, even over a partial upload.
    host.remote
        .upload(&path("file"), &bytes(b"new"), &upload_spec(b"new"))
        .unwrap();
    assert_eq!(host.get("file").unwrap(), b"new");
    assert_eq!(host.names(), [b"file"]);
}

pub(crate) fn an_upload_over_a_version_that_is_not_there_is_a_conflict(host: &Host) {
    let upload = |data: &[u8], expect| {
        let plan = UploadSpec {
            expect,
            ..upload_spec(data)
        };
        host.remote.upload(&path("file"), &bytes(data), &plan)
    };
    let version = || host.remote.stat(&path("file")).unwrap().version();
    let is_conflict = |result| matches!(result, Err(Error::Conflict { .. }));
    upload(b"one", Expect::Absent).unwrap();
    assert!(is_conflict(upload(b"two", Expect::Absent)));
    let first = version();
    let again = upload(b"two", Expect::Version(first)).unwrap();
    assert_eq!(again.outcome, Outcome::AsPlanned);
    let second = version();
    host.put("file", "theirs");
    assert!(is_conflict(upload(b"two", Expect::Version(second))));
    assert_eq!(host.get("file").unwrap(), b"theirs");
    host.discard("file");
    assert!(is_conflict(upload(b"two", Expect::Version(second))));
    assert_eq!(host.get("file"), None);
    upload(b"two", Expect::Absent).unwrap();
    assert_eq!(host.names(), [b"file"], "no temporary file is left");
}

pub(crate) fn upload_conflict_makes_a_conflict_copy(host: &Host) {
    let upload = |data: &[u8], expect| {
        let plan = UploadSpec {
            expect,
            conflict_name: Some(Name::new(b"file.ours $(x)").unwrap()),
            ..upload_spec(data)
        };
        host.remote.upload(&path("file"), &bytes(data), &plan)
    };
    host.put("file", "theirs");
    let uploaded = upload(b"ours", Expect::Absent).unwrap();
    assert_eq!(uploaded.outcome, Outcome::ConflictCopy);
    assert_eq!(host.get("file").unwrap(), b"theirs");
    assert_eq!(host.get("file.ours $(x)").unwrap(), b"ours");
    // A file with the name of the conflict copy is not replaced either.
    let result = upload(b"ours again", Expect::Absent);
    assert!(matches!(result, Err(Error::Conflict { .. })), "{result:?}");
    assert_eq!(host.get("file.ours $(x)").unwrap(), b"ours");
    host.discard("file.ours $(x)");
    // If others uploaded the same content, there is no conflict, provided that the host can
    // compare.
    let uploaded = upload(b"theirs", Expect::Absent).unwrap();
    if host.can.everything {
        assert_eq!(uploaded.outcome, Outcome::Same);
    } else {
        assert_eq!(uploaded.outcome, Outcome::ConflictCopy);
        host.discard("file.ours $(x)");
    }
    let theirs = host.remote.stat(&path("file")).unwrap().version();
    // A file that others removed is created again.
    host.discard("file");
    let uploaded = upload(b"ours", Expect::Version(theirs)).unwrap();
    assert_eq!(uploaded.outcome, Outcome::Recreated);
    assert_eq!(host.get("file").unwrap(), b"ours");
    assert_eq!(host.names(), [b"file"]);
}

pub(crate) fn an_upload_over_a_directory_fails_and_leaves_nothing(host: &Host) {
    host.put_dir("dir");
    for placement in [Placement::Replace, Placement::InPlace, Placement::Direct] {
        let plan = UploadSpec {
            placement,
            ..upload_spec(b"x")
        };
        let result = host.remote.upload(&path("dir"), &bytes(b"x"), &plan);
        assert_eq!(reason(result), Reason::IsADirectory);
    }
    assert_eq!(host.others_see("dir"), [] as [&[u8]; 0]);
    assert_eq!(host.names(), [b"dir"]);
}

pub(crate) fn a_large_file_is_uploaded_and_fetched(host: &Host) {
    let data: Vec<u8> = (0u32..2_000_000).flat_map(u32::to_le_bytes).collect();
    host.remote
        .upload(&path("big"), &bytes(&data), &upload_spec(&data))
        .unwrap();
    assert!(host.get("big").unwrap() == data);
    assert!(fetched(host, "big").data == data);
    // No bytes of longer old content remain behind shorter new content.
    host.remote
        .upload(&path("big"), &bytes(&data[..9]), &upload_spec(&data[..9]))
        .unwrap();
    assert_eq!(host.get("big").unwrap(), &data[..9]);
    let result = host
        .remote
        .upload(&path("no/big"), &bytes(&data), &upload_spec(&data));
    assert_eq!(reason(result), Reason::NotFound);
}

pub(crate) fn content_that_looks_like_shell_and_records_is_only_content(host: &Host) {
    for data in [
        &b"touch evil\n"[..],
        b"E\nC0644 1 evil\nx\0E\n",
        b"D0755 0 evil\nE\n",
        b"\0\0\0\0\x01\x02",
        b"\x1e0123\n",
        b"T0 0 0 0\nC0644 4 ../evil\nevil\0",
    ] {
        host.remote
            .upload(&path("file"), &bytes(data), &upload_spec(data))
            .unwrap();
        assert_eq!(fetched(host, "file").data, data);
        assert_eq!(host.names(), [b"file"]);
    }
}

pub(crate) fn content_of_a_refused_upload_creates_no_file(host: &Host) {
    let evil = b"\n\ntouch evil\nC0644 0 evil\n\0".repeat(100);
    host.put_dir("dir");
    for name in ["nowhere/file", "dir"] {
        let result = host
            .remote
            .upload(&path(name), &bytes(&evil), &upload_spec(&evil));
        assert!(result.is_err(), "{name}");
        assert_eq!(host.names(), [b"dir"], "{name}");
        assert_eq!(host.others_see("dir"), [] as [&[u8]; 0]);
    }
}

pub(crate) fn copy_has_the_content_of_its_source(host: &Host) {
    let data = vec![7; 300_000];
    host.put("from", &data);
    let copied = host
        .remote
        .copy(&path("from"), &path("to"), &upload_spec(&data));
    let Some(copied) = host.done(copied) else {
        assert_eq!(host.names(), [b"from"]);
        return;
    };
    let stat = copied.stat.unwrap();
    assert_eq!((stat.size, stat.mode), (300_000, 0o640));
    assert!(host.get("to").unwrap() == data);
    let copied = host
        .remote
        .copy(&path("no"), &path("to"), &upload_spec(&data));
    assert_eq!(reason(copied), Reason::NotFound);
}
