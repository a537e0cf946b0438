//! Scp-only hosts, some of which cannot even list a directory.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use scpfs::clock::Clock;
use scpfs::clock::ManualClock;
use scpfs::remote::NewTime;
use scpfs::remote::retry::Retry;
use scpfs::stat::Time;
use scpfs::vfs::SetAttr;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::scp_server::Appliance;
use scpfs_testing::scp_server::Kind;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::Setup;

fn mount(kind: Kind) -> (Appliance, Mount) {
    let appliance = Appliance::new(kind);
    let clock = Arc::new(ManualClock::new());
    let remote = appliance
        .probe_with(Arc::clone(&clock) as Arc<dyn Clock>)
        .unwrap();
    let mount = Mount::of(
        Arc::new(Retry::new(remote)),
        Arc::new(World::new(Userland::Gnu)),
        clock,
        Setup::default(),
    );
    (appliance, mount)
}

#[test]
fn lookup_works_on_a_host_that_cannot_list() {
    for kind in [Kind::Insisting, Kind::HangingUp, Kind::Device] {
        let (appliance, mount) = mount(kind);
        fs::write(appliance.at("file"), "content").unwrap();
        fs::create_dir(appliance.at("dir")).unwrap();
        fs::write(appliance.at("dir/inner"), "inner content").unwrap();
        assert_eq!(mount.read("file").unwrap(), b"content", "{kind:?}");
        let missing = mount.find("nowhere").unwrap_err();
        assert!(missing.is_not_found(), "{kind:?}: {missing}");
        mount.write("file", b"changed").unwrap();
        assert_eq!(fs::read(appliance.at("file")).unwrap(), b"changed");
        mount.write("new", b"new").unwrap();
        assert_eq!(fs::read(appliance.at("new")).unwrap(), b"new");
        if kind != Kind::Device {
            assert_eq!(mount.read("dir/inner").unwrap(), b"inner content");
        }
        let unlisted = mount.names("").unwrap_err();
        assert_eq!(unlisted.errno(), libc::EOPNOTSUPP, "{kind:?}");
    }
}

fn scp_mount() -> Mount {
    let clock = Arc::new(ManualClock::new());
    let world = Arc::new(World::scp_only("SSH-2.0-OpenSSH_9.2"));
    let remote = world.scp(Arc::clone(&clock) as Arc<dyn Clock>);
    Mount::of(Arc::new(Retry::new(remote)), world, clock, Setup::default())
}

const TIME: Time = Time {
    secs: 1_000_000_000,
    nanos: 0,
};

fn set(mount: &Mount, name: &str) -> Result<(), scpfs::vfs::Error> {
    mount.age();
    let ino = mount.find(name).unwrap().ino;
    let mode = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    let times = SetAttr {
        mtime: Some(NewTime::At(TIME)),
        ..SetAttr::default()
    };
    let shown = mount.vfs.setattr(&CX, ino, None, &mode)?.stat;
    assert_eq!(shown.mode & 0o777, 0o600);
    let shown = mount.vfs.setattr(&CX, ino, None, &times)?.stat;
    assert_eq!(shown.mtime, TIME);
    Ok(())
}

#[test]
fn mode_and_times_of_a_file_go_with_its_content() {
    let mount = scp_mount();
    for (name, data) in [("empty", &b""[..]), ("file", b"content")] {
        fs::write(mount.at(name), data).unwrap();
        set(&mount, name).unwrap();
        let meta = fs::metadata(mount.at(name)).unwrap();
        assert_eq!((meta.mode() & 0o777, meta.mtime()), (0o600, TIME.secs));
        assert_eq!(fs::read(mount.at(name)).unwrap(), data);
        assert_eq!(mount.read(name).unwrap(), data);
    }
    assert!(mount.vfs.drain().is_empty());
    // Content larger than the limit is not sent again only to set a mode.
    fs::write(mount.at("large"), vec![b'x'; (1 << 20) + 1]).unwrap();
    assert_eq!(set(&mount, "large").unwrap_err().errno(), libc::EOPNOTSUPP);
}

#[test]
fn a_mode_that_is_refused_leaves_nothing_to_be_uploaded() {
    let mount = scp_mount();
    fs::write(mount.at("file"), "content").unwrap();
    let refuses = "#!/bin/dash\ncase \" $* \" in *' -t '*) printf '\\0\\1scp: file: Permission denied\\n'; exit 1;; \
                   esac\nexec /usr/bin/scp \"$@\"\n";
    mount.world.put("scp", refuses);
    let before = mount.find("file").unwrap().stat;
    assert_eq!(set(&mount, "file").unwrap_err().errno(), libc::EACCES);
    let after = mount.find("file").unwrap().stat;
    assert_eq!((before.mode, before.mtime), (after.mode, after.mtime));
    assert!(mount.vfs.drain().is_empty());
    assert_eq!(mount.read("file").unwrap(), b"content");
}

#[test]
fn chmod_whose_connection_breaks_loses_no_content() {
    let mount = scp_mount();
    fs::write(mount.at("file"), "content").unwrap();
    // The script truncates the file before it receives the content, as some servers do.
    let cuts = "#!/bin/dash\ncase \" $* \" in *' -t '*) for last; do :; done; printf '\\0'; read -r line; \
                read -r line; : >\"$last\"; exit 1;; esac\nexec /usr/bin/scp \"$@\"\n";
    mount.world.put("scp", cuts);
    set(&mount, "file").unwrap_err();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"");
    // The only copy of the content is now in the local cache.
    mount
        .world
        .put("scp", "#!/bin/dash\nexec /usr/bin/scp \"$@\"\n");
    mount.clock.advance(Duration::from_secs(60));
    assert!(mount.vfs.drain().is_empty());
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"content");
}
