//! Temporary files of uploads of unknown outcome, on a host that crashed.

use std::fs;
use std::time::Duration;

use scpfs::vfs::Ino;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::wait::wait_until;

fn temporaries(mount: &Mount) -> Vec<String> {
    let names = fs::read_dir(mount.at("")).unwrap();
    names
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(".scpfs-"))
        .collect()
}

/// Returns a mount whose upload failed because all programs on the host were killed, and the
/// content.
fn broken_off() -> (Mount, Vec<u8>) {
    let mount = Mount::new();
    fs::write(mount.at("file"), "old").unwrap();
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    // Larger than `MAX_AHEAD`: the content is sent only after its C record is acknowledged.
    let data = vec![b'x'; 5 << 20];
    mount.vfs.write(&CX, opened.fh, 0, &data).unwrap();
    {
        let mut faults = mount.world.faults.lock();
        faults.cut_after_read = Some(3);
        faults.refuses = true;
    }
    mount.close(&opened).unwrap_err();
    assert_eq!(temporaries(&mount).len(), 1);
    {
        let mut faults = mount.world.faults.lock();
        faults.cut_after_read = None;
        faults.refuses = false;
    }
    (mount, data)
}

#[test]
fn leftover_of_an_upload_before_a_host_crash_is_removed_by_the_next() {
    let (mount, data) = broken_off();
    mount.clock.advance(Duration::from_secs(60));
    wait_until("the content is uploaded", || {
        fs::read(mount.at("file")).unwrap() == data
    });
    assert!(mount.vfs.drain().is_empty());
    assert!(temporaries(&mount).is_empty());
}

#[test]
fn leftover_of_an_upload_before_a_host_crash_is_removed_with_its_file() {
    for is_replaced in [false, true] {
        let (mount, _) = broken_off();
        // By now a new connection may be tried, and the retry of the upload is not due yet.
        mount.clock.advance(Duration::from_millis(900));
        if is_replaced {
            mount.write("new", b"new").unwrap();
            mount.rename("new", "file").unwrap();
            assert_eq!(fs::read(mount.at("file")).unwrap(), b"new");
        } else {
            mount.vfs.unlink(&CX, Ino::ROOT, b"file").unwrap();
            assert!(!mount.at("file").exists());
        }
        assert!(temporaries(&mount).is_empty());
        assert!(mount.vfs.drain().is_empty());
    }
}
