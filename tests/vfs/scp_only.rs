//! Hosts with nothing but scp, of which some cannot even list a directory.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use scpfs::clock::Clock;
use scpfs::clock::ManualClock;
use scpfs::remote::probe::Settings;
use scpfs::remote::retry::Retry;
use scpfs::remote::scp_only;
use tempfile::TempDir;

use crate::local::Userland;
use crate::local::World;
use crate::scp_server::Kind;
use crate::scp_server::ScpServer;
use crate::world::Mount;
use crate::world::Setup;

fn mount(kind: Kind) -> (TempDir, Mount) {
    let dir = tempfile::Builder::new()
        .prefix("scpfs-appliance-")
        .tempdir()
        .unwrap();
    let clock = Arc::new(ManualClock::new());
    let settings = Settings {
        directory: dir.path().as_os_str().as_encoded_bytes().to_vec(),
        max_lanes: 3,
        timeout: Duration::from_secs(20),
        patience: Duration::ZERO,
        fails_fast: false,
    };
    let server = Arc::new(ScpServer::new(kind));
    let remote =
        scp_only::probe::probe(server, &settings, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    let mount = Mount::of(
        Arc::new(Retry::new(remote)),
        Arc::new(World::new(Userland::Gnu)),
        clock,
        Setup::default(),
    );
    (dir, mount)
}

#[test]
fn where_nothing_can_be_listed_files_are_found_by_name() {
    for kind in [Kind::Insisting, Kind::HangingUp, Kind::Device] {
        let (dir, mount) = mount(kind);
        fs::write(dir.path().join("file"), "content").unwrap();
        fs::create_dir(dir.path().join("dir")).unwrap();
        fs::write(dir.path().join("dir/inner"), "inner content").unwrap();
        assert_eq!(mount.read("file").unwrap(), b"content", "{kind:?}");
        let missing = mount.find("nowhere").unwrap_err();
        assert!(missing.is_not_found(), "{kind:?}: {missing}");
        mount.write("file", b"changed").unwrap();
        assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"changed");
        mount.write("new", b"new").unwrap();
        assert_eq!(fs::read(dir.path().join("new")).unwrap(), b"new");
        if kind != Kind::Device {
            assert_eq!(mount.read("dir/inner").unwrap(), b"inner content");
        }
        let unlisted = mount.names("").unwrap_err();
        assert_eq!(unlisted.errno(), libc::EOPNOTSUPP, "{kind:?}");
    }
}
