//! Rare orders of events, none of which may lose or mix contents.

use std::fs;
use std::sync::Arc;

use crate::local::Userland;
use crate::local::World;
use crate::world::Mount;
use crate::world::Setup;

#[test]
fn stores_within_one_second_leave_the_last_content_in_the_cache() {
    // This host tells whole seconds, and what is stored in place keeps its number.
    let mount = Mount::on(Arc::new(World::new(Userland::OpenWrt)), Setup::default());
    fs::write(mount.at("file"), "base").unwrap();
    fs::hard_link(mount.at("file"), mount.at("other")).unwrap();
    for data in [&b"one"[..], b"two", b"3rd"] {
        mount.write("file", data).unwrap();
        assert_eq!(fs::read(mount.at("file")).unwrap(), data);
        let read = mount.read("file").unwrap();
        assert_eq!(read, data, "{}", String::from_utf8_lossy(&read));
    }
}
