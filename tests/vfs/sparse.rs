//! Sparse files, and hosts that cannot create holes.

use scpfs::vfs::Error;
use scpfs::vfs::SetAttr;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::Setup;

use crate::faulty::Faulty;

const TIB: u64 = 1 << 40;

fn mount(can_take_holes: bool) -> Mount {
    Mount::set_up(Setup {
        around: Box::new(move |remote| {
            Faulty::with_facts(remote, |facts| facts.can_take_holes = can_take_holes)
        }),
        ..Setup::default()
    })
}

fn truncate(mount: &Mount, path: &str, fh: scpfs::vfs::Fh, size: u64) -> Result<(), Error> {
    let ino = mount.find(path)?.ino;
    let set = SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    mount.vfs.setattr(&CX, ino, Some(fh), &set).map(drop)
}

/// Regression: one block written at 16 TiB caused an upload of zeros, which had sent 40 GB when it
/// was stopped.
#[test]
fn a_file_too_sparse_for_the_host_is_refused_at_the_write() {
    for can_take_holes in [false, true] {
        let mount = mount(can_take_holes);
        let (_, opened) = mount.create("file", libc::O_RDWR).unwrap();
        let fh = opened.fh;
        mount.vfs.write(&CX, fh, 0, b"data").unwrap();
        let results = [
            mount.vfs.write(&CX, fh, 2 * TIB, b"x").map(drop),
            truncate(&mount, "file", fh, 4 << 30),
            mount.vfs.fallocate(&CX, fh, 0, 3 * TIB, 1),
        ];
        for result in results {
            match result {
                Ok(()) => assert!(can_take_holes),
                Err(error) => {
                    assert!(!can_take_holes, "{error}");
                    assert_eq!(error.errno(), libc::EFBIG, "{error}");
                }
            }
        }
        // Holes of moderate size are always allowed, and a refused call changed nothing.
        truncate(&mount, "file", fh, 1 << 20).unwrap();
        truncate(&mount, "file", fh, 4).unwrap();
        mount.close(&opened).unwrap();
        assert_eq!(std::fs::read(mount.at("file")).unwrap(), b"data");
    }
}

#[test]
fn unlinked_file_may_have_holes_of_any_size() {
    let mount = mount(false);
    let (_, opened) = mount.create("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"data").unwrap();
    mount
        .vfs
        .unlink(&CX, scpfs::vfs::Ino::ROOT, b"file")
        .unwrap();
    mount.vfs.write(&CX, opened.fh, 2 * TIB, b"x").unwrap();
    mount.close(&opened).unwrap();
}
