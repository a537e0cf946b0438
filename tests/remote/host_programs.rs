#![cfg(test)]
//! Hosts with unusual programs: what the probe finds, and which programs must not be started.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use scpfs::clock::ManualClock;
use scpfs::clock::SystemClock;
use scpfs::path::Name;
use scpfs::path::RemotePath;
use scpfs::remote::Content;
use scpfs::remote::Durability;
use scpfs::remote::Error;
use scpfs::remote::Expect;
use scpfs::remote::Placement;
use scpfs::remote::Reason;
use scpfs::remote::Remote;
use scpfs::remote::UploadSpec;
use scpfs::scp_only;
use scpfs::shell::probe;
use scpfs::stat::DeviceNumber;
use scpfs::stat::FileKind;
use scpfs_testing::ability::has_scp;
use scpfs_testing::capability::is_root;
use scpfs_testing::content::Buffer;
use scpfs_testing::content::bytes;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::local::check_busybox;
use scpfs_testing::samples::path;
use scpfs_testing::samples::reason;
use scpfs_testing::samples::upload_spec;
use scpfs_testing::wait::wait_until;

use crate::scp_only::make_fifo;
use crate::suite::Host;

#[test]
fn summary_names_the_tools_of_the_host() {
    for (userland, start) in [
        (
            Userland::Gnu,
            "dash, GNU tools, stat, scp: listing by find, 1 RTT; Linux ",
        ),
        (
            Userland::Bash,
            "bash, GNU tools, stat, scp: listing by find, 1 RTT; ",
        ),
        (
            Userland::BusyBox,
            "BusyBox ash, stat, scp: listing by stat+find, 1 RTT; ",
        ),
        (
            Userland::Toybox,
            "mksh, toybox tools, stat, scp: listing by stat+find, 1 RTT; ",
        ),
        (
            Userland::OpenWrt,
            "BusyBox ash, no stat, scp: listing by ls+find, 1 RTT; ",
        ),
        (
            Userland::Bare,
            "BusyBox ash, no stat, no scp: listing by ls+find, 1 RTT; ",
        ),
        (
            Userland::NoScp,
            "dash, GNU tools, stat, no scp: listing by find, 1 RTT; ",
        ),
        (
            Userland::Bsd,
            "dash, BSD tools, stat, scp: listing by stat+find, 1 RTT; ",
        ),
    ] {
        if !userland.is_here() {
            continue;
        }
        let host = Host::new(userland);
        let summary = &host.remote.facts().summary;
        assert!(summary.starts_with(start), "{summary}");
    }
}

#[test]
fn host_that_reports_no_attributes_is_refused_with_a_reason() {
    let world = World::new(Userland::Bare);
    world.put("ls", "#!/bin/dash\nexit 127\n");
    let clock = Arc::new(ManualClock::new());
    let error = probe::probe(world.transport(), &world.settings(), clock).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("`ls --full-time` (system: Linux "), "{text}");
}

#[test]
fn a_busybox_that_ignores_path_is_refused_as_a_host() {
    let dir = tempfile::tempdir().unwrap();
    let busybox = dir.path().join("busybox");
    let error = check_busybox(&busybox).unwrap_err();
    assert!(error.ends_with("install the package `busybox`"), "{error}");
    // busybox-static behaves like this: `stat` runs, although no directory of PATH contains it.
    fs::write(&busybox, "#!/bin/sh\necho 1234\n").unwrap();
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755)).unwrap();
    let error = check_busybox(&busybox).unwrap_err();
    assert!(error.contains("ignores PATH"), "{error}");
    assert!(error.contains("install the package `busybox`"), "{error}");
    assert!(!error.contains('\n'), "{error}");
    fs::write(
        &busybox,
        "#!/bin/sh\necho 'stat: not found' >&2; exit 127\n",
    )
    .unwrap();
    check_busybox(&busybox).unwrap();
}

#[test]
fn forbidden_scp_counts_as_missing() {
    // The answer of the scp of Red Hat if /etc/ssh/disable_scp exists.
    let forbidden = "#!/bin/dash\necho 'scp: SCP protocol is forbidden via \
                     /etc/ssh/disable_scp' >&2\nexit 1\n";
    let world = World::new(Userland::Gnu);
    world.put("scp", forbidden);
    let shell = world.shell(Arc::new(ManualClock::new()));
    assert!(!has_scp(&shell));
}

#[test]
fn a_listing_without_stat_starts_no_process_for_each_file() {
    let host = Host::new(Userland::OpenWrt);
    fs::create_dir(host.at("many")).unwrap();
    for n in 0..500 {
        fs::write(host.at(&format!("many/{n}")), "x").unwrap();
    }
    let log = host.world.root().join("log");
    for name in ["find", "ls", "readlink", "xargs"] {
        let script = format!(
            "#!/bin/dash\necho {name} >>'{}'\nexec /bin/busybox {name} \"$@\"\n",
            log.display()
        );
        host.world.put(name, &script);
    }
    let listing = host.remote.list(&path("many")).unwrap();
    assert_eq!(listing.entries.len(), 500);
    assert!(listing.entries.iter().all(|entry| entry.stat.is_some()));
    let started = fs::read_to_string(log).unwrap();
    assert_eq!(started, "find\nls\nls\nls\n");
}

/// `find` reports the names and `ls` the attributes; the directory may change between the two.
#[test]
fn a_directory_that_changes_while_it_is_listed_gets_no_wrong_attributes() {
    let host = Host::new(Userland::OpenWrt);
    for (name, len) in [("a", 1), ("b", 2), ("\u{fc}", 3), ("\u{f6}", 4), ("c d", 5)] {
        fs::write(host.at(name), vec![b'x'; len]).unwrap();
    }
    let script = format!(
        // Changes the directory after `find` has read it and before its output is used.
        "#!/bin/dash\n/bin/busybox find \"$@\" >$0.out\ncd '{}' && rm -f a \u{f6} && echo new >aa\n\
         cat $0.out\n",
        host.world.root().display()
    );
    host.world.put("find", &script);
    let listing = host.remote.list(&RemotePath::root()).unwrap();
    let mut found: Vec<_> = listing
        .entries
        .iter()
        .map(|entry| (entry.name.as_bytes(), entry.stat.unwrap().size))
        .collect();
    found.sort();
    assert_eq!(
        found,
        [(&b"b"[..], 2), (b"c d", 5), ("\u{fc}".as_bytes(), 3)]
    );
}

#[test]
fn a_directory_with_more_names_than_allowed_is_not_listed_and_found_by_name() {
    const MAX_NAMES: usize = 20;
    for userland in [
        Userland::Gnu,
        Userland::BusyBox,
        Userland::OpenWrt,
        Userland::Bsd,
    ] {
        let world = World::new(userland);
        let settings = scpfs::remote::Settings {
            max_names: MAX_NAMES,
            ..world.settings()
        };
        let clock = Arc::new(ManualClock::new());
        let shell = probe::probe(world.transport(), &settings, clock).unwrap();
        check_max_names(&shell, &world, MAX_NAMES);
    }
    let world = World::scp_only("SSH-2.0-OpenSSH_9.2");
    let settings = scpfs::remote::Settings {
        // The limit counts the events of a listing: two for each name.
        max_names: 2 * MAX_NAMES + 2,
        ..world.settings()
    };
    let clock = Arc::new(ManualClock::new());
    let scp = scp_only::probe::probe(world.transport(), &settings, clock).unwrap();
    check_max_names(&scp, &world, MAX_NAMES);
}

fn check_max_names(remote: &dyn Remote, world: &World, max_names: usize) {
    let what = &remote.facts().summary;
    for (dir, n_names) in [("few", max_names), ("many", 2 * max_names + 3)] {
        fs::create_dir(world.root().join(dir)).unwrap();
        for n in 0..n_names {
            fs::write(world.root().join(format!("{dir}/{n}")), "").unwrap();
        }
    }
    let few = remote.list(&path("few")).unwrap();
    assert_eq!(few.entries.len(), max_names, "{what}");
    let error = remote.list(&path("many")).unwrap_err();
    assert!(
        matches!(error, Error::TooManyNames { .. }),
        "{what}: {error}"
    );
    assert!(error.to_string().contains("max_names="), "{what}: {error}");
    assert_eq!(remote.stat(&path("many/1")).unwrap().size, 0, "{what}");
    // Long names and long symlink targets reach the limit on bytes with fewer names.
    if !what.contains("no shell") {
        fs::create_dir(world.root().join("long")).unwrap();
        for n in 0..=max_names / 2 {
            let name = format!("long/{n}{}", "x".repeat(250));
            let target = "y".repeat(100);
            std::os::unix::fs::symlink(target, world.root().join(name)).unwrap();
        }
        let error = remote.list(&path("long")).unwrap_err();
        assert!(
            matches!(error, Error::TooManyNames { .. }),
            "{what}: {error}"
        );
    }
}

/// Content whose second part blocks until a listing on the host has included its temporary file.
struct Shown<'a> {
    data: &'a [u8],
    shown: &'a Path,
}

impl Content for Shown<'_> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset > 1 << 20 {
            wait_until("the host has shown the file", || self.shown.exists());
        }
        bytes(self.data).read_at(buf, offset)
    }
}

/// The host listed the directory during an upload, and the upload ended before the answer arrived.
#[test]
fn temporary_file_is_not_listed_if_its_upload_ends_before_the_answer() {
    for (userland, find) in [
        (Userland::Gnu, "/usr/bin/find"),
        (Userland::NoScp, "/usr/bin/find"),
        (Userland::OpenWrt, "/bin/busybox find"),
    ] {
        let host = Host::new(userland);
        let aside = host.world.root().with_extension("aside");
        fs::create_dir(&aside).unwrap();
        let (shown, ended) = (aside.join("shown"), aside.join("ended"));
        host.world.put(
            "find",
            &format!(
                "#!/bin/dash\n{find} \"$@\" >'{0}/found'; : >'{0}/shown'\n\
                 until [ -e '{0}/ended' ]; do /bin/sleep 0.01; done; cat '{0}/found'\n",
                aside.display()
            ),
        );
        let data = vec![b'x'; 3 << 20];
        let content = Shown {
            data: &data,
            shown: &shown,
        };
        let temporary = || {
            let mut items = fs::read_dir(host.world.root()).unwrap();
            items.find_map(|item| {
                let name = item.unwrap().file_name().into_encoded_bytes();
                name.starts_with(b".scpfs-")
                    .then(|| Name::new(&name).unwrap())
            })
        };
        let names = std::thread::scope(|scope| {
            let upload = scope.spawn(|| {
                host.remote
                    .upload(&path("file"), &content, &upload_spec(&data))
            });
            wait_until("the temporary file is there", || temporary().is_some());
            let by_name = RemotePath::root().join(&temporary().unwrap());
            assert_eq!(reason(host.remote.stat(&by_name)), Reason::NotFound);
            let list = scope.spawn(|| host.names());
            upload.join().unwrap().unwrap();
            fs::write(&ended, "").unwrap();
            list.join().unwrap()
        });
        let found = fs::read(aside.join("found")).unwrap();
        let has_shown = found.windows(7).any(|part| part == b".scpfs-");
        assert!(has_shown, "{userland:?}: the host did not show it");
        assert!(
            names.iter().all(|name| !name.starts_with(b".scpfs-")),
            "{userland:?}: {names:?}"
        );
    }
}

/// Inode numbers are unique only together with the device number, which `ls` does not print.
#[test]
fn stat_reports_the_device_of_a_filesystem_mounted_on_the_host() {
    let world = World::new(Userland::OpenWrt);
    let settings = scpfs::remote::Settings {
        directory: b"/".to_vec(),
        ..world.settings()
    };
    let clock = Arc::new(ManualClock::new());
    let shell = probe::probe(world.transport(), &settings, clock).unwrap();
    let listing = shell.list(&RemotePath::root()).unwrap();
    let device = |name: &str| {
        let meta = fs::metadata(format!("/{name}")).unwrap();
        let (dev, ino) = (meta.dev(), meta.ino());
        let numbers = [rustix::fs::major(dev), rustix::fs::minor(dev)].map(u64::from);
        (numbers[0] << 32 | numbers[1], ino)
    };
    for name in ["etc", "proc", "sys", "dev", "tmp"] {
        let mut entries = listing.entries.iter();
        let entry = entries.find(|entry| entry.name.as_bytes() == name.as_bytes());
        let id = entry.unwrap().stat.unwrap().id.unwrap();
        assert_eq!((id.dev, id.ino), device(name), "{name}");
        let id = shell.stat(&path(name)).unwrap().id.unwrap();
        assert_eq!((id.dev, id.ino), device(name), "{name}");
    }
    assert_ne!(device("etc").0, device("proc").0);
}

/// Others may create a file between the check that a name is free and the rename to it.
#[test]
fn upload_does_not_replace_a_file_created_meanwhile() {
    for userland in Userland::here([
        Userland::Gnu,
        Userland::Toybox,
        Userland::OpenWrt,
        Userland::Bare,
        Userland::Bsd,
    ]) {
        let world = World::new(userland);
        let taken = world.root().with_extension("taken");
        let script = format!(
            "if read -r name <'{0}'; then rm '{0}'; echo theirs >\"$name\"; fi 2>/dev/null",
            taken.display()
        );
        world.before(&["ln", "mv"], &script);
        let shell = world.shell(Arc::new(ManualClock::new()));
        for name in ["file", "beside"] {
            let file = world.root().join(name);
            fs::write(&taken, format!("{}\n", file.display())).unwrap();
            let plan = UploadSpec {
                expect: Expect::Absent,
                // In the second case `file` exists, so that the content goes to the conflict copy.
                conflict_name: (name == "beside").then(|| Name::new(name.as_bytes()).unwrap()),
                ..upload_spec(b"ours")
            };
            let result = shell.upload(&path("file"), &bytes(b"ours"), &plan);
            let is_conflict = matches!(result, Err(Error::Conflict { .. }));
            assert!(is_conflict, "{userland:?} {name}: {result:?}");
            assert_eq!(fs::read(file).unwrap(), b"theirs\n", "{userland:?}");
        }
        assert_eq!(fs::read_dir(world.root()).unwrap().count(), 2);
    }
}

/// dropbear's scp opens without `O_NONBLOCK`, and would block on a FIFO for ever.
#[test]
fn a_fifo_is_never_opened() {
    const WAITING: &str = "#!/bin/dash\nfor last; do :; done\n[ -p \"$last\" ] && exec <\"$last\"\n\
                           exec /usr/bin/scp \"$@\"\n";
    for userland in [Userland::Gnu, Userland::OpenWrt, Userland::Bare] {
        let host = Host::new(userland);
        if userland != Userland::Bare {
            host.world.put("scp", WAITING);
        }
        let begun = SystemClock::new();
        let device = DeviceNumber::default();
        let fifo = path("fifo");
        host.remote
            .make_node(&fifo, FileKind::Fifo, 0o600, device, None)
            .unwrap();
        let mut buffer = Buffer::default();
        let result = host.remote.fetch(&fifo, None, &mut buffer);
        assert_eq!(reason(result), Reason::IsADirectory, "as scp calls it");
        for placement in [Placement::Direct, Placement::InPlace] {
            let plan = UploadSpec {
                placement,
                ..upload_spec(b"x")
            };
            let result = host.remote.upload(&fifo, &bytes(b"x"), &plan);
            assert_eq!(reason(result), Reason::InvalidArgument);
        }
        let result = host.remote.copy(&fifo, &path("copy"), &upload_spec(b"x"));
        assert_eq!(reason(result), Reason::InvalidArgument);
        assert_eq!(host.names(), [b"fifo"]);
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(buffer.begun.is_empty());
    }
}

#[test]
fn read_permission_is_checked_by_the_host() {
    if !is_root() {
        return;
    }
    for userland in Userland::here([
        Userland::Gnu,
        Userland::Bash,
        Userland::Toybox,
        Userland::OpenWrt,
        Userland::Bare,
        Userland::Bsd,
    ]) {
        let world = World::new(userland);
        world.log_in_as(65_534);
        for (name, mode) in [("open", 0o644), ("closed", 0o640)] {
            fs::write(world.root().join(name), "content").unwrap();
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(world.root().join(name), mode).unwrap();
        }
        make_fifo(&world.root().join("fifo"));
        let remote = world.shell(Arc::new(ManualClock::new()));
        remote.check_readable(&path("open")).unwrap();
        for (name, why) in [
            ("closed", Reason::AccessDenied),
            ("none", Reason::NotFound),
            ("fifo", Reason::Stale),
        ] {
            let result = remote.check_readable(&path(name));
            assert_eq!(reason(result), why, "{userland:?} {name}");
        }
    }
}

#[test]
fn content_of_any_length_is_uploaded_and_fetched_without_scp() {
    let all: Vec<u8> = (0..=255).cycle().take((1 << 20) + 1).collect();
    for (userland, has_head) in [
        (Userland::NoScp, true),
        (Userland::Bare, true),
        (Userland::Bare, false),
    ] {
        let world = World::new(userland);
        if !has_head {
            // Without `head`, the shell copies one byte at a time.
            world.put("head", "#!/bin/dash\nexit 127\n");
        }
        let shell = world.shell(Arc::new(ManualClock::new()));
        for size in [0, 1, 65_535, 65_536, 65_537, all.len() - 1, all.len()] {
            if size > 70_000 && !has_head {
                continue;
            }
            let data = &all[..size];
            for placement in [Placement::Replace, Placement::InPlace, Placement::Direct] {
                let plan = UploadSpec {
                    placement,
                    ..upload_spec(data)
                };
                let uploaded = shell.upload(&path("file"), &bytes(data), &plan).unwrap();
                assert_eq!(uploaded.stat.unwrap().size, size as u64);
                assert!(fs::read(world.root().join("file")).unwrap() == data);
            }
            let mut buffer = Buffer::default();
            let fetched = shell.fetch(&path("file"), None, &mut buffer).unwrap();
            assert!(fetched.is_stable, "without a version from before");
            assert!(buffer.data == data);
        }
    }
}

/// If a host without scp gets only part of the content, that part must not get the final name.
#[test]
fn content_that_is_cut_off_never_gets_the_final_name() {
    for userland in [Userland::Bare, Userland::NoScp] {
        let host = Host::new(userland);
        host.world.faults.lock().hangs_up_gently = true;
        for size in [10, 3_000_000] {
            fs::write(host.at("file"), "old").unwrap();
            let plan = UploadSpec {
                size,
                ..upload_spec(b"")
            };
            let result = host.remote.upload(&path("file"), &bytes(b"short"), &plan);
            assert!(matches!(result, Err(Error::Local { .. })), "{result:?}");
            assert_eq!(fs::read(host.at("file")).unwrap(), b"old");
            assert_eq!(host.names(), [b"file"], "nothing is left of it");
        }
    }
}

/// The flushed file must be the one that has the content after the rename.
#[test]
fn an_upload_that_is_to_be_flushed_flushes_the_file_itself() {
    for userland in [Userland::Gnu, Userland::NoScp] {
        for placement in [Placement::Replace, Placement::InPlace, Placement::Direct] {
            let host = Host::new(userland);
            fs::write(host.at("file"), "old").unwrap();
            let log = host.world.root().join("log");
            // Logs the content of the flushed file, because its name may belong to another file.
            let script = format!(
                "#!/bin/dash\nfor f; do [ ! -f \"$f\" ] || cat \"$f\" >>'{0}'; done\n\
                 echo \" $*\" >>'{0}'\n",
                log.display()
            );
            host.world.put("sync", &script);
            let plan = UploadSpec {
                placement,
                durability: Durability::Fsync,
                ..upload_spec(b"content")
            };
            host.remote
                .upload(&path("file"), &bytes(b"content"), &plan)
                .unwrap();
            let flushed = fs::read_to_string(&log).unwrap();
            let what = if placement == Placement::Replace {
                "/fd/9"
            } else {
                "/fd/7"
            };
            let is_flushed = flushed
                .lines()
                .any(|line| line.starts_with("content ") && line.ends_with(what));
            assert!(is_flushed, "{userland:?} {placement:?}: {flushed}");
        }
    }
}
