//! What every host promises, whatever it is; the bodies are the same for all.

use scpfs::path::Name;
use scpfs::path::RemotePath;
use scpfs::remote::AttrChange;
use scpfs::remote::Error;
use scpfs::remote::Expect;
use scpfs::remote::NewTime;
use scpfs::remote::Outcome;
use scpfs::remote::Placement;
use scpfs::remote::Reason;
use scpfs::remote::RenameHow;
use scpfs::remote::StorePlan;
use scpfs::stat::DeviceNumber;
use scpfs::stat::FileKind;
use scpfs::stat::Stat;
use scpfs::stat::Time;

use crate::host::Host;
use crate::host::is_unsupported;
use crate::things::Buffer;
use crate::things::MTIME;
use crate::things::bytes;
use crate::things::odd_names;
use crate::things::path;
use crate::things::path_of;
use crate::things::plan;
use crate::things::reason;

fn fetched(host: &Host, name: impl AsRef<[u8]>) -> Buffer {
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

pub(crate) fn every_byte_of_a_name_survives(host: &Host) {
    let mut names = odd_names();
    names.retain(|name| {
        let data = [b"content of ", &name[..]].concat();
        let stored = host
            .remote
            .store(&path_of(name), &bytes(&data), &plan(&data));
        let is_plain = std::str::from_utf8(name).is_ok_and(|name| !name.contains(char::is_control));
        if let Err(Error::Unsupported { .. }) = stored {
            // Said, and nothing else was written to.
            assert!(
                !host.can.any_bytes && !(is_plain && !name.ends_with(b" ")),
                "{name:?}"
            );
            assert_eq!(host.get(name), None, "{name:?}");
            return false;
        }
        stored.unwrap();
        assert_eq!(host.get(name).unwrap(), data, "{name:?}");
        true
    });
    assert!(names.len() > 100);
    assert_eq!(host.others_see(""), names);
    host.names();
    for name in &names {
        let data = [b"content of ", &name[..]].concat();
        assert_eq!(fetched(host, name).data, data);
        host.done(host.remote.remove_file(&path_of(name), None));
    }
    if host.can.everything {
        assert_eq!(host.names(), [] as [&[u8]; 0]);
    }
}

pub(crate) fn every_kind_of_file_is_listed_as_it_is_stated(host: &Host) {
    let no_device = DeviceNumber::default();
    host.put("file", "hello");
    host.put_dir("dir");
    let remote = &host.remote;
    let linked = host.done(remote.symlink(&path("link"), b"nowhere", None));
    assert!(linked.is_none_or(|it| it.stat.unwrap().kind == FileKind::Symlink));
    let node = |name: &str, kind| remote.make_node(&path(name), kind, 0o620, no_device, None);
    for (name, kind) in [("fifo", FileKind::Fifo), ("socket", FileKind::Socket)] {
        if let Some(made) = host.done(node(name, kind)) {
            let stat = made.stat.unwrap();
            assert_eq!((stat.kind, stat.mode), (kind, 0o620));
        }
    }
    host.refuses(node("file", FileKind::Socket), Reason::Exists);
    assert_eq!(remote.stat(&path("dir")).unwrap().kind, FileKind::Directory);
    let stat = remote.stat(&path("file")).unwrap();
    assert_eq!((stat.kind, stat.size), (FileKind::File, 5));
    assert_eq!(stat.id.is_some(), host.can.identify);
    assert_eq!(stat.ctime.is_some(), host.can.identify);
    host.refuses(remote.read_link(&path("file")), Reason::InvalidArgument);
    if let Some(target) = host.done(remote.read_link(&path("link"))) {
        assert_eq!(target, b"nowhere");
    }
    host.names();
    if !host.can.list {
        return;
    }
    let listing = remote.list(&RemotePath::root()).unwrap();
    // Looking changes when something was last read.
    let seen = |stat: Stat| Stat {
        atime: Time::default(),
        ..stat
    };
    let root = remote.stat(&RemotePath::root()).unwrap();
    assert_eq!(seen(listing.directory), seen(root));
    for entry in &listing.entries {
        let stat = remote.stat(&RemotePath::root().join(&entry.name)).unwrap();
        assert_eq!(entry.kind, stat.kind);
        if let Some(listed) = entry.stat {
            assert_eq!(seen(listed), seen(stat), "{}", entry.name);
        }
    }
    let inside = remote.list(&path("dir")).unwrap();
    assert_eq!(inside.entries, []);
}

pub(crate) fn what_is_missing_is_not_found(host: &Host) {
    let nowhere = path("nowhere");
    let remote = &host.remote;
    assert_eq!(reason(remote.stat(&nowhere)), Reason::NotFound);
    if host.can.list {
        assert_eq!(reason(remote.list(&nowhere)), Reason::NotFound);
    }
    let fetched = remote.fetch(&nowhere, None, &mut Buffer::default());
    assert_eq!(reason(fetched), Reason::NotFound);
    host.refuses(remote.read_link(&nowhere), Reason::NotFound);
    host.refuses(remote.remove_file(&nowhere, None), Reason::NotFound);
    host.refuses(remote.remove_dir(&nowhere), Reason::NotFound);
    host.refuses(
        remote.rename(&nowhere, &path("x"), RenameHow::Replace),
        Reason::NotFound,
    );
    let change = AttrChange {
        mode: Some(0o600),
        ..AttrChange::default()
    };
    assert_eq!(reason(remote.set_attr(&nowhere, &change)), Reason::NotFound);
    let stored = remote.store(&path("nowhere/x"), &bytes(b"x"), &plan(b"x"));
    assert_eq!(reason(stored), Reason::NotFound);
    let made = remote.create_new(&path("nowhere/x"), 0o600, None);
    assert_eq!(reason(made), Reason::NotFound);
    let made = remote.make_dir(&path("nowhere/x"), 0o700, None);
    assert_eq!(reason(made), Reason::NotFound);
    host.put("file", "x");
    if host.can.list {
        assert_eq!(reason(remote.list(&path("file"))), Reason::NotADirectory);
    }
    assert_eq!(reason(remote.stat(&path("file/x"))), Reason::NotADirectory);
    let long = path_of(&[b'x'; 256]);
    assert_eq!(reason(remote.stat(&long)), Reason::NameTooLong);
    assert_eq!(host.names(), [b"file"]);
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

pub(crate) fn a_fetch_of_what_is_no_file_fails_without_content(host: &Host) {
    host.put_dir("dir");
    let mut buffer = Buffer::default();
    let result = host.remote.fetch(&path("dir"), None, &mut buffer);
    assert_eq!(reason(result), Reason::IsADirectory);
    assert!(buffer.begun.is_empty());
    // The connection is still in step.
    host.put("file", "x");
    assert_eq!(fetched(host, "file").data, b"x");
}

pub(crate) fn a_file_is_stored_with_mode_and_times(host: &Host) {
    let seconds = Time { nanos: 0, ..MTIME };
    for (name, mode, mtime) in [
        ("plain", 0o644, MTIME),
        ("setuid", 0o6755, MTIME),
        ("none", 0, MTIME),
        ("round", 0o600, seconds),
    ] {
        let plan = StorePlan {
            mode,
            mtime,
            ..plan(b"hello")
        };
        let (stored, trips) =
            host.counted(|| host.remote.store(&path(name), &bytes(b"hello"), &plan));
        assert!(trips.is_none_or(|trips| trips <= host.max_trips_of_a_store()));
        let stat = host.remote.stat(&path(name)).unwrap();
        if let Some(told) = stored.unwrap().stat {
            assert_eq!(told, stat);
        }
        assert_eq!((stat.mode, stat.size), (mode, 5));
        assert_eq!(stat.mtime, host.told(mtime), "{name}");
    }
}

pub(crate) fn a_store_that_gets_no_content_leaves_what_it_can(host: &Host) {
    host.put("file", "old content");
    let short = StorePlan {
        size: 10,
        ..plan(b"")
    };
    let result = host.remote.store(&path("file"), &bytes(b"short"), &short);
    assert!(matches!(result, Err(Error::Local { .. })), "{result:?}");
    if host.can.everything {
        assert_eq!(host.get("file").unwrap(), b"old content");
    }
    // The next one is whole, also where the last one left a half.
    host.remote
        .store(&path("file"), &bytes(b"new"), &plan(b"new"))
        .unwrap();
    assert_eq!(host.get("file").unwrap(), b"new");
    assert_eq!(host.names(), [b"file"]);
}

pub(crate) fn a_store_over_a_version_that_is_not_there_is_a_conflict(host: &Host) {
    let store = |data: &[u8], expect| {
        let plan = StorePlan {
            expect,
            ..plan(data)
        };
        host.remote.store(&path("file"), &bytes(data), &plan)
    };
    let version = || host.remote.stat(&path("file")).unwrap().version();
    let is_conflict = |result| matches!(result, Err(Error::Conflict { .. }));
    store(b"one", Expect::Absent).unwrap();
    assert!(is_conflict(store(b"two", Expect::Absent)));
    let first = version();
    let again = store(b"two", Expect::Version(first)).unwrap();
    assert_eq!(again.outcome, Outcome::AsPlanned);
    let second = version();
    host.put("file", "theirs");
    assert!(is_conflict(store(b"two", Expect::Version(second))));
    assert_eq!(host.get("file").unwrap(), b"theirs");
    host.discard("file");
    assert!(is_conflict(store(b"two", Expect::Version(second))));
    assert_eq!(host.get("file"), None);
    store(b"two", Expect::Absent).unwrap();
    assert_eq!(host.names(), [b"file"], "no temporary file is left");
}

pub(crate) fn what_conflicts_is_kept_beside(host: &Host) {
    let store = |data: &[u8], expect| {
        let plan = StorePlan {
            expect,
            keep_as: Some(Name::new(b"file.ours $(x)").unwrap()),
            ..plan(data)
        };
        host.remote.store(&path("file"), &bytes(data), &plan)
    };
    host.put("file", "theirs");
    let stored = store(b"ours", Expect::Absent).unwrap();
    assert_eq!(stored.outcome, Outcome::KeptBeside);
    assert_eq!(host.get("file").unwrap(), b"theirs");
    assert_eq!(host.get("file.ours $(x)").unwrap(), b"ours");
    // A name that is taken is nothing to replace either.
    let result = store(b"ours again", Expect::Absent);
    assert!(matches!(result, Err(Error::Conflict { .. })), "{result:?}");
    assert_eq!(host.get("file.ours $(x)").unwrap(), b"ours");
    host.discard("file.ours $(x)");
    // Who stored the same content is nobody to quarrel with, where the host can compare.
    let stored = store(b"theirs", Expect::Absent).unwrap();
    if host.can.everything {
        assert_eq!(stored.outcome, Outcome::Same);
    } else {
        assert_eq!(stored.outcome, Outcome::KeptBeside);
        host.discard("file.ours $(x)");
    }
    let theirs = host.remote.stat(&path("file")).unwrap().version();
    // What somebody removed is made anew.
    host.discard("file");
    let stored = store(b"ours", Expect::Version(theirs)).unwrap();
    assert_eq!(stored.outcome, Outcome::Recreated);
    assert_eq!(host.get("file").unwrap(), b"ours");
    assert_eq!(host.names(), [b"file"]);
}

pub(crate) fn a_store_over_a_directory_fails_and_leaves_nothing(host: &Host) {
    host.put_dir("dir");
    for placement in [Placement::Replace, Placement::InPlace, Placement::Direct] {
        let plan = StorePlan {
            placement,
            ..plan(b"x")
        };
        let result = host.remote.store(&path("dir"), &bytes(b"x"), &plan);
        assert_eq!(reason(result), Reason::IsADirectory);
    }
    assert_eq!(host.others_see("dir"), [] as [&[u8]; 0]);
    assert_eq!(host.names(), [b"dir"]);
}

pub(crate) fn a_large_file_is_stored_and_fetched(host: &Host) {
    let data: Vec<u8> = (0u32..2_000_000).flat_map(u32::to_le_bytes).collect();
    host.remote
        .store(&path("big"), &bytes(&data), &plan(&data))
        .unwrap();
    assert!(host.get("big").unwrap() == data);
    assert!(fetched(host, "big").data == data);
    // Shorter over longer leaves no old tail.
    host.remote
        .store(&path("big"), &bytes(&data[..9]), &plan(&data[..9]))
        .unwrap();
    assert_eq!(host.get("big").unwrap(), &data[..9]);
    let result = host
        .remote
        .store(&path("no/big"), &bytes(&data), &plan(&data));
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
            .store(&path("file"), &bytes(data), &plan(data))
            .unwrap();
        assert_eq!(fetched(host, "file").data, data);
        assert_eq!(host.names(), [b"file"]);
    }
}

pub(crate) fn a_refused_store_makes_nothing_of_its_content(host: &Host) {
    let evil = b"\n\ntouch evil\nC0644 0 evil\n\0".repeat(100);
    host.put_dir("dir");
    for name in ["nowhere/file", "dir"] {
        let result = host.remote.store(&path(name), &bytes(&evil), &plan(&evil));
        assert!(result.is_err(), "{name}");
        assert_eq!(host.names(), [b"dir"], "{name}");
        assert_eq!(host.others_see("dir"), [] as [&[u8]; 0]);
    }
}

pub(crate) fn creation_is_exclusive(host: &Host) {
    host.remote.create_new(&path("new"), 0o751, None).unwrap();
    let stat = host.remote.stat(&path("new")).unwrap();
    assert_eq!(
        (stat.kind, stat.mode, stat.size),
        (FileKind::File, 0o751, 0)
    );
    host.put("new", "theirs");
    let again = host.remote.create_new(&path("new"), 0o600, None);
    assert_eq!(reason(again), Reason::Exists);
    assert_eq!(host.get("new").unwrap(), b"theirs");
}

pub(crate) fn directories_are_made_and_removed(host: &Host) {
    let made = host.remote.make_dir(&path("dir"), 0o2750, None).unwrap();
    let stat = host.remote.stat(&path("dir")).unwrap();
    assert_eq!((stat.kind, stat.mode), (FileKind::Directory, 0o2750));
    if let Some(told) = made.stat {
        assert_eq!((told.kind, told.mode), (stat.kind, stat.mode));
    }
    host.put("file", "x");
    for name in ["dir", "file"] {
        let again = host.remote.make_dir(&path(name), 0o755, None);
        assert_eq!(reason(again), Reason::Exists, "{name}");
    }
    host.put("dir/file", "");
    let remote = &host.remote;
    host.refuses(remote.remove_dir(&path("dir")), Reason::NotEmpty);
    host.refuses(remote.remove_file(&path("dir"), None), Reason::IsADirectory);
    host.refuses(remote.remove_dir(&path("dir/file")), Reason::NotADirectory);
    host.done(remote.remove_file(&path("dir/file"), None));
    host.done(remote.remove_dir(&path("dir")));
    let left = if host.can.everything { 1 } else { 2 };
    assert_eq!(host.names().len(), left);
}

pub(crate) fn names_move_and_multiply(host: &Host) {
    host.put("a", "a");
    host.put_dir("dir");
    let remote = &host.remote;
    let Some(linked) = host.done(remote.link(&path("a"), &path("dir/b"))) else {
        for how in [
            RenameHow::Replace,
            RenameHow::NoReplace,
            RenameHow::Exchange,
        ] {
            assert!(is_unsupported(remote.rename(&path("a"), &path("c"), how)));
        }
        assert_eq!(host.names(), [&b"a"[..], b"dir"]);
        return;
    };
    assert_eq!(linked.stat.unwrap().nlink, 2);
    host.refuses(remote.link(&path("a"), &path("dir")), Reason::Exists);
    let renamed = remote.rename(&path("dir/b"), &path("c"), RenameHow::Replace);
    let renamed = renamed.unwrap();
    assert_eq!(renamed.stat, Some(remote.stat(&path("c")).unwrap()));
    let root = remote.stat(&RemotePath::root()).unwrap();
    assert_eq!(renamed.to_parent, Some(root));
    // Two names of one file are one file for a rename, which does nothing.
    let removed = remote.remove_file(&path("a"), Some(&path("c"))).unwrap();
    assert_eq!(removed.stat.unwrap().nlink, 1);
    let target = b"a 'strange'\ntarget";
    remote.symlink(&path("sym"), target, None).unwrap();
    assert_eq!(remote.read_link(&path("sym")).unwrap(), target);
    host.refuses(remote.symlink(&path("dir"), b"x", None), Reason::Exists);
    // A directory takes the place of an empty one, and of no other.
    host.put_dir("full");
    host.put("full/x", "");
    let rename = |from: &str, to: &str| remote.rename(&path(from), &path(to), RenameHow::Replace);
    host.refuses(rename("dir", "full"), Reason::NotEmpty);
    host.refuses(rename("full", "full/below"), Reason::InvalidArgument);
    rename("full", "dir").unwrap();
    assert_eq!(host.others_see("dir"), [b"x"]);
}

pub(crate) fn a_rename_that_must_not_replace_does_not(host: &Host) {
    host.put("a", "a");
    host.put("b", "b");
    let rename = |to: &str, how| host.remote.rename(&path("a"), &path(to), how);
    host.refuses(rename("b", RenameHow::NoReplace), Reason::Exists);
    if host.done(rename("c", RenameHow::NoReplace)).is_none() {
        return;
    }
    assert_eq!(host.get("b").unwrap(), b"b");
    let exchanged = host
        .remote
        .rename(&path("c"), &path("b"), RenameHow::Exchange);
    if host.remote.facts().can_exchange {
        exchanged.unwrap();
        assert_eq!(host.get("b").unwrap(), b"a");
        assert_eq!(host.get("c").unwrap(), b"b");
    } else {
        assert_eq!(reason(exchanged), Reason::InvalidArgument);
    }
}

pub(crate) fn attributes_are_set(host: &Host) {
    host.put("file", "hello world");
    let change = AttrChange {
        mode: Some(0o4711),
        atime: Some(NewTime::At(Time {
            secs: 1_000_000_000,
            nanos: 0,
        })),
        mtime: Some(NewTime::At(MTIME)),
        ..AttrChange::default()
    };
    let remote = &host.remote;
    let stat = remote.set_attr(&path("file"), &change).unwrap();
    assert_eq!((stat.mode, stat.atime.secs), (0o4711, 1_000_000_000));
    assert_eq!(stat.mtime, host.settable(MTIME));
    assert_eq!(host.get("file").unwrap(), b"hello world");
    let size = |size| AttrChange {
        size: Some(size),
        ..AttrChange::default()
    };
    if host
        .done(remote.set_attr(&path("file"), &size(100)))
        .is_some()
    {
        assert_eq!(&host.get("file").unwrap()[..13], b"hello world\0\0");
        remote.set_attr(&path("file"), &size(5)).unwrap();
        assert_eq!(host.get("file").unwrap(), b"hello");
    } else {
        assert_eq!(host.get("file").unwrap(), b"hello world");
    }
    let now = AttrChange {
        atime: Some(NewTime::Now),
        mtime: Some(NewTime::Now),
        ..AttrChange::default()
    };
    let stat = remote.set_attr(&path("file"), &now).unwrap();
    // At least the time at which the clock of a test starts.
    assert!(
        stat.mtime.secs >= 1_700_000_000 && stat.mtime != host.told(MTIME) || !host.can.fractions
    );
    host.put_dir("dir");
    for mode in [0o2755, 0o755] {
        let mode = AttrChange {
            mode: Some(mode),
            ..AttrChange::default()
        };
        let stat = remote.set_attr(&path("dir"), &mode).unwrap();
        assert_eq!(Some(stat.mode), mode.mode);
        assert_eq!(remote.stat(&path("dir")).unwrap().mode, stat.mode);
    }
}

pub(crate) fn a_copy_is_what_it_was_made_of(host: &Host) {
    let data = vec![7; 300_000];
    host.put("from", &data);
    let copied = host.remote.copy(&path("from"), &path("to"), &plan(&data));
    let Some(copied) = host.done(copied) else {
        assert_eq!(host.names(), [b"from"]);
        return;
    };
    let stat = copied.stat.unwrap();
    assert_eq!((stat.size, stat.mode), (300_000, 0o640));
    assert!(host.get("to").unwrap() == data);
    let copied = host.remote.copy(&path("no"), &path("to"), &plan(&data));
    assert_eq!(reason(copied), Reason::NotFound);
}

pub(crate) fn the_state_of_the_filesystem_is_told(host: &Host) {
    let fs = host.remote.fs_stat().unwrap();
    assert!(fs.block_size > 0 && fs.blocks > 0 && fs.blocks_free <= fs.blocks);
    assert!(fs.name_max >= 255);
}

pub(crate) fn only_our_own_leftovers_are_removed(host: &Host) {
    host.put_dir("d");
    let theirs = [
        ".scpfs-1234abcd.tmp",
        ".scpfs-1234abcd00000001.tmp.c",
        ".scpfs-1234abce00000001.tmp",
        "1234abcd",
    ];
    for name in theirs {
        host.put(format!("d/{name}"), "x");
    }
    let ours = [".scpfs-1234abcd00000001.tmp", ".scpfs-1234abcdffffffff.tmp"];
    for name in ours {
        host.put(format!("d/{name}"), "x");
    }
    host.remote
        .remove_leftovers(&path("d"), 0x1234_abcd)
        .unwrap();
    let left = host.others_see("d");
    // A host without temporary files has none of ours.
    let n_ours = if host.can.everything { 0 } else { 2 };
    assert_eq!(left.len(), theirs.len() + n_ours);
    for name in theirs {
        assert!(left.contains(&name.as_bytes().to_vec()), "{name}");
    }
}

pub(crate) fn a_closed_host_answers_nobody(host: &Host) {
    host.remote.close();
    let result = host.remote.stat(&RemotePath::root());
    assert!(matches!(result, Err(Error::Closed)), "{result:?}");
}
