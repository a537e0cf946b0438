//! Tests that every kind of host must pass.

mod contents;

pub(crate) use crate::contract::contents::*;

use scpfs::path::RemotePath;
use scpfs::remote::AttrChange;
use scpfs::remote::Error;
use scpfs::remote::NewTime;
use scpfs::remote::Reason;
use scpfs::remote::RenameHow;
use scpfs::stat::DeviceNumber;
use scpfs::stat::FileKind;
use scpfs::stat::Stat;
use scpfs::stat::Time;
use scpfs_testing::content::Buffer;
use scpfs_testing::content::bytes;
use scpfs_testing::samples::MTIME;
use scpfs_testing::samples::path;
use scpfs_testing::samples::path_of;
use scpfs_testing::samples::reason;
use scpfs_testing::samples::upload_spec;

use crate::host::Host;
use crate::host::is_unsupported;

pub(crate) fn every_byte_of_a_name_survives(host: &Host) {
    let mut names = host.names_to_try();
    names.retain(|name| {
        let data = [b"content of ", &name[..]].concat();
        let uploaded = host
            .remote
            .upload(&path_of(name), &bytes(&data), &upload_spec(&data));
        let is_sayable = std::str::from_utf8(name)
            .is_ok_and(|name| !name.contains(char::is_control) && !name.ends_with(' '));
        if let Err(Error::Unsupported { .. }) = uploaded {
            // The upload was refused with a reason, and no file was written under a changed name.
            assert!(!host.can.any_bytes && !is_sayable, "{name:?}");
            assert_eq!(host.get(name), None, "{name:?}");
            return false;
        }
        uploaded.unwrap();
        assert_eq!(host.get(name).unwrap(), data, "{name:?}");
        true
    });
    assert!(names.len() > 20);
    assert_eq!(host.others_see(""), names);
    host.names();
    for name in &names {
        let data = [b"content of ", &name[..]].concat();
        if host.can.send_newlines || !name.contains(&b'\n') {
            assert_eq!(fetched(host, name).data, data);
        } else {
            let (path, mut buffer) = (path_of(name), Buffer::default());
            assert_eq!(reason(host.remote.stat(&path)), Reason::NotSupported);
            let result = host.remote.fetch(&path, None, &mut buffer);
            assert_eq!(reason(result), Reason::NotSupported);
        }
        host.done(host.remote.remove_file(&path_of(name), None));
    }
    match host.remote.stat(&path_of(b"not\nthere\n")) {
        Err(Error::Unsupported { .. }) => assert!(!host.can.any_bytes),
        missing if host.can.send_newlines => assert_eq!(reason(missing), Reason::NotFound),
        untold => assert_eq!(reason(untold), Reason::NotSupported),
    }
    if host.can.everything {
        assert_eq!(host.names(), [] as [&[u8]; 0]);
    }
}

pub(crate) fn list_and_stat_agree_on_every_kind_of_file(host: &Host) {
    let no_device = DeviceNumber::default();
    host.put("file", "hello");
    host.put_dir("dir");
    let remote = &host.remote;
    let linked = host.done(remote.symlink(&path("link"), b"nowhere", None));
    assert!(linked.is_none_or(|it| it.stat.unwrap().kind == FileKind::Symlink));
    let node = |name: &str, kind| remote.make_node(&path(name), kind, 0o620, no_device, None);
    for (name, kind) in [("fifo", FileKind::Fifo), ("socket", FileKind::Socket)] {
        let made = node(name, kind);
        if host.can.everything && kind == FileKind::Socket && !host.can.sockets {
            assert_eq!(reason(made), Reason::NotSupported);
        } else if let Some(made) = host.done(made) {
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
    // Listing a directory changes its atime.
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

pub(crate) fn missing_files_are_not_found(host: &Host) {
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
    let uploaded = remote.upload(&path("nowhere/x"), &bytes(b"x"), &upload_spec(b"x"));
    assert_eq!(reason(uploaded), Reason::NotFound);
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

pub(crate) fn rename_and_link_give_files_other_names(host: &Host) {
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
    // POSIX rename(): if both names are links to the same file, it does nothing.
    let removed = remote.remove_file(&path("a"), Some(&path("c"))).unwrap();
    assert_eq!(removed.stat.unwrap().nlink, 1);
    let target = b"a 'strange'\ntarget";
    remote.symlink(&path("sym"), target, None).unwrap();
    assert_eq!(remote.read_link(&path("sym")).unwrap(), target);
    host.refuses(remote.symlink(&path("dir"), b"x", None), Reason::Exists);
    // A directory replaces an empty directory, but no other.
    host.put_dir("full");
    host.put("full/x", "");
    let rename = |from: &str, to: &str| remote.rename(&path(from), &path(to), RenameHow::Replace);
    host.refuses(rename("dir", "full"), Reason::NotEmpty);
    host.refuses(rename("full", "full/below"), Reason::InvalidArgument);
    rename("full", "dir").unwrap();
    assert_eq!(host.others_see("dir"), [b"x"]);
}

pub(crate) fn rename_noreplace_does_not_replace(host: &Host) {
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
    if let Some(stat) = host.done(remote.set_attr(&path("file"), &change)) {
        assert_eq!((stat.mode, stat.atime.secs), (0o4711, 1_000_000_000));
        assert_eq!(stat.mtime, host.settable(MTIME));
    }
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
    if let Some(stat) = host.done(remote.set_attr(&path("file"), &now)) {
        // The mtime is not earlier than the start of a test's clock.
        let is_later = stat.mtime.secs >= 1_700_000_000 && stat.mtime != host.told(MTIME);
        assert!(is_later || !host.can.fractions);
    }
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

pub(crate) fn fs_stat_reports_the_filesystem(host: &Host) {
    let fs = host.remote.fs_stat(&RemotePath::root()).unwrap();
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
    // A host without temporary files removes none.
    let n_ours = if host.can.everything { 0 } else { 2 };
    assert_eq!(left.len(), theirs.len() + n_ours);
    for name in theirs {
        assert!(left.contains(&name.as_bytes().to_vec()), "{name}");
    }
}

pub(crate) fn close_makes_every_later_call_fail(host: &Host) {
    host.remote.close();
    let result = host.remote.stat(&RemotePath::root());
    assert!(matches!(result, Err(Error::Closed)), "{result:?}");
}
