#![cfg(test)]
//! The `scp-only` dialect with servers of every kind that have no shell.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;

use scpfs::path::RemotePath;
use scpfs::remote::AttrChange;
use scpfs::remote::Expect;
use scpfs::remote::Reason;
use scpfs::remote::Remote as _;
use scpfs::remote::ability::Operation;
use scpfs::stat::FileKind;
use scpfs_testing::ability::can;
use scpfs_testing::content::bytes;
use scpfs_testing::samples::MTIME;
use scpfs_testing::samples::path;
use scpfs_testing::samples::reason;
use scpfs_testing::samples::upload_spec;
use scpfs_testing::scp_server::Appliance;
use scpfs_testing::scp_server::Kind;

use crate::host::is_unsupported;
use crate::scp_only::fetch;
use crate::scp_only::names;

#[test]
fn summary_reports_listings_options_and_quoting() {
    for (kind, text) in [
        (Kind::Skipping, "scp and no shell, with listings"),
        (Kind::Splitting, "scp and no shell, with listings"),
        (Kind::Insisting, "named files only, no listings"),
        (Kind::HangingUp, "named files only, no listings"),
        (Kind::Device, "named files only, no options"),
        (Kind::Restricted, "with listings, paths of plain"),
    ] {
        let appliance = Appliance::new(kind);
        // The probe detects how the server reacts when entries are refused, so it needs some.
        fs::write(appliance.at("file"), vec![1; 3_000_000]).unwrap();
        fs::create_dir(appliance.at("dir")).unwrap();
        let remote = appliance.probe().unwrap();
        let summary = &remote.facts().summary;
        assert!(summary.contains(text), "{kind:?}: {summary}");
    }
}

#[test]
fn servers_without_a_shell_get_their_paths_as_they_are() {
    for kind in [Kind::Skipping, Kind::Splitting] {
        let appliance = Appliance::new(kind);
        let remote = appliance.probe().unwrap();
        assert!(can(&remote, Operation::List));
        let data = vec![7; 100_000];
        for name in ["plain", "it's $(x) `y`", "\"quoted\"", "a&b;c|d"] {
            let uploaded = remote.upload(&path(name), &bytes(&data), &upload_spec(&data));
            if kind == Kind::Splitting && name.contains(' ') {
                assert!(is_unsupported(uploaded), "{name}");
                continue;
            }
            uploaded.unwrap();
            assert_eq!(fs::read(appliance.at(name)).unwrap(), data);
            assert_eq!(fetch(&remote, name), data);
            let meta = fs::metadata(appliance.at(name)).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o640, MTIME.secs));
        }
        let n_names = fs::read_dir(appliance.dir.path()).unwrap().count();
        assert_eq!(names(&remote, &RemotePath::root()).len(), n_names);
        remote.make_dir(&path("dir"), 0o2750, None).unwrap();
        let meta = fs::metadata(appliance.at("dir")).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o2750);
        assert_eq!(
            reason(remote.make_dir(&path("dir"), 0o755, None)),
            Reason::Exists
        );
        let result = remote.upload(&path("dir"), &bytes(b"x"), &upload_spec(b"x"));
        assert_eq!(reason(result), Reason::IsADirectory);
        assert_eq!(reason(remote.stat(&path("no"))), Reason::NotFound);
        assert_eq!(reason(remote.list(&path("plain"))), Reason::NotADirectory);
    }
}

#[test]
fn server_that_ignores_refusals_is_detected_without_content() {
    for kind in [Kind::Insisting, Kind::HangingUp] {
        let appliance = Appliance::new(kind);
        fs::write(appliance.at("file"), vec![1; 3_000_000]).unwrap();
        fs::create_dir(appliance.at("dir")).unwrap();
        let remote = appliance.probe().unwrap();
        assert!(!can(&remote, Operation::List), "{kind:?}");
        // Part of a file may arrive before the client detects that its refusal was ignored, but no
        // whole file.
        assert!(appliance.n_content() < 3_000_000, "{kind:?}");
        let result = remote.list(&RemotePath::root());
        assert!(is_unsupported(result), "{kind:?}");
        // Files can still be accessed by name.
        let stat = remote.stat(&path("file")).unwrap();
        assert_eq!((stat.kind, stat.size), (FileKind::File, 3_000_000));
        let before = appliance.n_content();
        assert_eq!(remote.stat(&path("dir")).unwrap().kind, FileKind::Directory);
        assert_eq!(appliance.n_content(), before);
        assert_eq!(fetch(&remote, "file").len(), 3_000_000);
        remote
            .upload(&path("dir/new"), &bytes(b"new"), &upload_spec(b"new"))
            .unwrap();
        assert_eq!(fs::read(appliance.at("dir/new")).unwrap(), b"new");
    }
}

#[test]
fn a_network_device_reads_and_writes_named_files() {
    let appliance = Appliance::new(Kind::Device);
    fs::write(appliance.at("config"), "hostname x\n").unwrap();
    fs::set_permissions(appliance.at("config"), fs::Permissions::from_mode(0o600)).unwrap();
    let remote = appliance.probe().unwrap();
    assert!(!can(&remote, Operation::List));
    let root = remote.stat(&RemotePath::root()).unwrap();
    assert_eq!(root.kind, FileKind::Directory);
    assert!(is_unsupported(remote.list(&RemotePath::root())));
    let stat = remote.stat(&path("config")).unwrap();
    assert_eq!(
        (stat.kind, stat.size, stat.mode),
        (FileKind::File, 11, 0o600)
    );
    assert_eq!(fetch(&remote, "config"), b"hostname x\n");
    remote
        .upload(
            &path("config"),
            &bytes(b"hostname y\n"),
            &upload_spec(b"hostname y\n"),
        )
        .unwrap();
    assert_eq!(fs::read(appliance.at("config")).unwrap(), b"hostname y\n");
    assert!(is_unsupported(remote.stat(&path("a b"))));
    assert!(is_unsupported(remote.make_dir(&path("dir"), 0o755, None)));
    let mode = AttrChange {
        mode: Some(0o600),
        ..AttrChange::default()
    };
    assert!(is_unsupported(remote.set_attr(&path("config"), &mode)));
}

#[test]
fn noise_is_reported_and_never_taken_for_an_answer() {
    let appliance = Appliance::new(Kind::Noisy);
    let error = appliance.probe().unwrap_err();
    let text = error.to_string();
    assert!(text.contains("Welcome to \\x1b[1mthe appliance"), "{text}");
    let appliance = Appliance::new(Kind::Receiving);
    let error = appliance.probe().unwrap_err();
    assert!(error.to_string().contains("can only receive"), "{error}");
    assert_eq!(fs::read_dir(appliance.dir.path()).unwrap().count(), 0);
}

#[test]
fn a_host_that_rounds_times_makes_no_conflict_of_our_own_upload() {
    let appliance = Appliance::new(Kind::Fat);
    let remote = appliance.probe().unwrap();
    let mut expect = Expect::Absent;
    for secs in [1_700_000_001, 1_700_000_002, 1_700_000_005] {
        let mut plan = upload_spec(b"content");
        plan.expect = expect;
        plan.mtime.secs = secs;
        let uploaded = remote
            .upload(&path("file"), &bytes(b"content"), &plan)
            .unwrap();
        let told = remote.stat(&path("file")).unwrap();
        assert_eq!(told.mtime.secs, secs & !1);
        // An upload that cannot know the rounded mtime returns no attributes.
        assert!(uploaded.stat.is_none_or(|stat| stat.mtime == told.mtime));
        expect = Expect::Version(told.version());
    }
}

#[test]
fn a_restricted_shell_gets_plain_paths_and_no_others() {
    let appliance = Appliance::new(Kind::Restricted);
    let remote = appliance.probe().unwrap();
    assert!(can(&remote, Operation::List));
    let upload = |name: &str| remote.upload(&path(name), &bytes(b"data"), &upload_spec(b"data"));
    upload("plain-name.txt").unwrap();
    for name in ["a b", "$(touch x)", "it's", "a;b"] {
        assert!(is_unsupported(upload(name)), "{name}");
    }
    assert_eq!(names(&remote, &RemotePath::root()), ["plain-name.txt"]);
    assert_eq!(fetch(&remote, "plain-name.txt"), b"data");
    remote.make_dir(&path("dir"), 0o711, None).unwrap();
    assert_eq!(
        reason(remote.make_dir(&path("dir"), 0o700, None)),
        Reason::Exists
    );
}
