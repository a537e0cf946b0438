//! Programs on the host that write, create or change files before or after an upload.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use scpfs::vfs::PlacementPolicy;
use scpfs::vfs::SetAttr;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::Setup;

/// A mount of a host on which each call of `program` runs the scripts `before` and `after` around
/// it, if the file `now` exists beside the root.
fn with_reaction(program: &str, before: &str, after: &str) -> Mount {
    let world = World::new(Userland::Gnu);
    let dir = world.root().parent().unwrap().to_owned();
    let once = |script: &str| {
        format!(
            "root='{}'; if [ -e '{1}/now' ]; then {script}\nfi </dev/null >/dev/null 2>&1",
            world.root().display(),
            dir.display()
        )
    };
    world.around(&[program], &once(before), &once(after));
    Mount::on(Arc::new(world), Setup::default())
}

fn arm(mount: &Mount) {
    fs::write(mount.world.root().with_file_name("now"), "").unwrap();
}

const ONCE: &str = "rm \"${root%/*}/now\";";

fn append(mount: &Mount, data: &[u8]) -> Result<(), scpfs::vfs::Error> {
    let opened = mount.open("file", libc::O_WRONLY | libc::O_APPEND)?;
    mount.vfs.write(&CX, opened.fh, 0, data)?;
    mount.close(&opened)
}

/// Regression: a change by a program that reacts to our rename and writes in place was taken for
/// our own: it was hidden, and the next append removed it although `close()` returned 0.
#[test]
fn change_on_the_host_right_after_an_upload_is_seen_and_kept() {
    let react = format!("{ONCE} printf theirs >>\"$root/file\"");
    for is_in_one_go in [false, true] {
        let mount = with_reaction("mv", ":", &react);
        fs::write(mount.at("file"), "old").unwrap();
        arm(&mount);
        if is_in_one_go {
            // The host's program changes the file between two calls of fsync on one descriptor.
            let opened = mount.open("file", libc::O_RDWR | libc::O_TRUNC).unwrap();
            mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
            mount.vfs.fsync(&CX, opened.fh).unwrap();
            mount.vfs.write(&CX, opened.fh, 4, b"+").unwrap();
            let error = mount.vfs.fsync(&CX, opened.fh).unwrap_err();
            assert_eq!(error.errno(), libc::ESTALE);
            let _unused = mount.close(&opened);
        } else {
            mount.write("file", b"ours").unwrap();
            assert_eq!(fs::read(mount.at("file")).unwrap(), b"ourstheirs");
            assert_eq!(mount.read("file").unwrap(), b"ourstheirs", "seen at once");
            append(&mount, b"+").unwrap();
            assert_eq!(fs::read(mount.at("file")).unwrap(), b"ourstheirs+");
            continue;
        }
        assert_eq!(fs::read(mount.at("file")).unwrap(), b"ourstheirs");
        let beside = mount.beside("file");
        assert_eq!(fs::read(mount.at(&beside)).unwrap(), b"ours+");
    }
}

/// Regression: if others filled a file right after its exclusive creation, it could never be
/// uploaded.
#[test]
fn a_file_that_others_fill_right_after_its_exclusive_creation_can_be_uploaded() {
    let fill = format!(
        "if [ -e \"$root/file\" ]; then {ONCE} printf 'filled by somebody else!!' >\"$root/file\"; fi"
    );
    let mount = with_reaction("stat", &fill, ":");
    arm(&mount);
    let (_, opened) = mount.create("file", libc::O_RDWR | libc::O_EXCL).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(
        fs::read(mount.at("file")).unwrap(),
        b"oursed by somebody else!!",
        "as on a local disk"
    );
}

/// Regression: `>` to a name that had just appeared on the host created a conflict copy.
#[test]
fn a_truncating_creation_replaces_a_file_that_appeared_meanwhile() {
    let mount = Mount::new();
    assert!(mount.names("").unwrap().is_empty());
    fs::write(mount.at("file"), "appeared").unwrap();
    let (_, opened) = mount
        .create("file", libc::O_WRONLY | libc::O_TRUNC)
        .unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"ours").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"ours");
    assert_eq!(mount.names("").unwrap(), ["file"]);
}

/// Regression: the upload replaced the file that a program on the host had open, and its later
/// appends were lost.
#[test]
fn an_append_keeps_the_file_that_a_program_on_the_host_has_open() {
    let mount = Mount::new();
    let mut writer = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(mount.at("file"))
        .unwrap();
    let mut expected = Vec::new();
    for n in 0..4 {
        let line = format!("app{n}\n");
        writer.write_all(line.as_bytes()).unwrap();
        expected.extend_from_slice(line.as_bytes());
        mount.age();
        if n % 2 == 1 {
            let ((), trips) = mount.counted(|| append(&mount, b"mark\n").unwrap());
            expected.extend_from_slice(b"mark\n");
            // One round trip each to detect the change, to fetch it and to append.
            assert!(trips <= 3, "{trips}");
        }
    }
    assert_eq!(fs::read(mount.at("file")).unwrap(), expected);
    // Two appends in a row through one descriptor, without a change by others.
    let ino = fs::metadata(mount.at("file")).unwrap().ino();
    let opened = mount.open("file", libc::O_WRONLY | libc::O_APPEND).unwrap();
    for _ in 0..2 {
        mount.vfs.write(&CX, opened.fh, 0, b"more\n").unwrap();
        let ((), trips) = mount.counted(|| mount.vfs.fsync(&CX, opened.fh).unwrap());
        assert_eq!(trips, 1);
        expected.extend_from_slice(b"more\n");
    }
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), expected);
    assert_eq!(fs::metadata(mount.at("file")).unwrap().ino(), ino);
    mount.age();
    assert_eq!(mount.read("file").unwrap(), expected);
}

#[test]
fn placement_option_decides_whether_an_upload_keeps_the_inode() {
    for (placement, keeps_append, keeps_save) in [
        (PlacementPolicy::Auto, true, false),
        (PlacementPolicy::Replace, false, false),
        (PlacementPolicy::InPlace, true, true),
    ] {
        let mount = Mount::set_up(Setup {
            placement,
            ..Setup::default()
        });
        fs::write(mount.at("file"), "old").unwrap();
        let ino = || fs::metadata(mount.at("file")).unwrap().ino();
        let first = ino();
        append(&mount, b"+").unwrap();
        assert_eq!(ino() == first, keeps_append, "{placement:?}");
        let second = ino();
        mount.write("file", b"new").unwrap();
        assert_eq!(ino() == second, keeps_save, "{placement:?}");
        assert_eq!(fs::read(mount.at("file")).unwrap(), b"new");
        assert_eq!(mount.names("").unwrap(), ["file"]);
    }
}

/// Regression: a file of 1 TB with four bytes at its end was uploaded with all its zeros.
#[test]
fn a_sparse_file_is_uploaded_without_its_holes() {
    const SIZE: u64 = 1 << 40;
    let mount = Mount::new();
    let (_, opened) = mount.create("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, SIZE - 4, b"data").unwrap();
    let sent = mount.world.meter.bytes_written();
    mount.close(&opened).unwrap();
    assert!(mount.world.meter.bytes_written() - sent < 1 << 20);
    let meta = fs::metadata(mount.at("file")).unwrap();
    assert_eq!(meta.len(), SIZE);
    assert!(meta.blocks() < 4096);
}

/// Regression: content larger than the free space was sent until the disk was full.
#[test]
fn content_larger_than_the_reported_free_space_is_not_sent() {
    let world = World::new(Userland::Gnu);
    let now = world.root().with_file_name("now");
    let full = format!(
        "[ \"$1\" != -f ] || [ ! -e '{}' ] || {{ echo '4096 100000 1000 1000 100 100 255'; exit 0; }}",
        now.display()
    );
    world.around(&["stat"], &full, ":");
    let mount = Mount::on(Arc::new(world), Setup::default());
    fs::write(mount.at("file"), "old").unwrap();
    let opened = mount.open("file", libc::O_RDWR | libc::O_TRUNC).unwrap();
    let chunk = vec![b'x'; 1 << 20];
    for n in 0..20 {
        mount.vfs.write(&CX, opened.fh, n << 20, &chunk).unwrap();
    }
    arm(&mount);
    let sent = mount.world.meter.bytes_written();
    let error = mount.vfs.flush(&CX, opened.fh).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
    assert!(mount.world.meter.bytes_written() - sent < 10_000);
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"old");
    fs::remove_file(now).unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(fs::metadata(mount.at("file")).unwrap().len(), 20 << 20);
}

/// If the version to append to is gone, this is a conflict, and the conflict copy has the whole
/// content.
#[test]
fn an_append_to_a_version_that_is_gone_keeps_both_contents_whole() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "base\n").unwrap();
    let opened = mount.open("file", libc::O_WRONLY | libc::O_APPEND).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"ours\n").unwrap();
    fs::write(mount.at("file"), "theirs\n").unwrap();
    let error = mount.close(&opened).unwrap_err();
    assert_eq!(error.errno(), libc::ESTALE);
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"theirs\n");
    let beside = mount.beside("file");
    assert_eq!(fs::read(mount.at(&beside)).unwrap(), b"base\nours\n");
}

/// A write that starts before the old end is no append, even if it extends the file.
#[test]
fn a_change_before_the_end_is_uploaded_whole() {
    let mount = Mount::new();
    for change in 0..4 {
        fs::write(mount.at("file"), "0123456789").unwrap();
        mount.age();
        let opened = mount.open("file", libc::O_RDWR).unwrap();
        let write = |offset, data: &[u8]| {
            mount.vfs.write(&CX, opened.fh, offset, data).unwrap();
        };
        write(10, b"more");
        let cut = |size| {
            let set = SetAttr {
                size: Some(size),
                ..SetAttr::default()
            };
            let ino = mount.find("file").unwrap().ino;
            mount.vfs.setattr(&CX, ino, Some(opened.fh), &set).unwrap();
        };
        let expected: &[u8] = match change {
            0 => {
                write(0, b"X");
                b"X123456789more"
            }
            1 => {
                cut(3);
                write(3, b"and other");
                b"012and other"
            }
            2 => {
                mount.vfs.fallocate(&CX, opened.fh, 0x03, 2, 3).unwrap();
                b"01\0\0\x0056789more"
            }
            _ => {
                cut(0);
                write(12, b"end");
                b"\0\0\0\0\0\0\0\0\0\0\0\0end"
            }
        };
        mount.close(&opened).unwrap();
        assert_eq!(fs::read(mount.at("file")).unwrap(), expected, "{change}");
    }
}

/// Regression: the next upload made a file readable again that others had made private.
#[test]
fn a_mode_that_others_set_outlives_an_upload_unless_it_is_set_here() {
    let mount = Mount::new();
    let mode = || fs::metadata(mount.at("file")).unwrap().mode() & 0o7777;
    let make_private = || {
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(mount.at("file"), private).unwrap();
    };
    mount.write("file", b"first").unwrap();
    make_private();
    mount.write("file", b"second").unwrap();
    assert_eq!(mode(), 0o600);
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, b"third").unwrap();
    make_private();
    let set = SetAttr {
        mode: Some(0o640),
        ..SetAttr::default()
    };
    let ino = mount.find("file").unwrap().ino;
    mount.vfs.setattr(&CX, ino, Some(opened.fh), &set).unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(mode(), 0o640, "what is set here wins");
    make_private();
    mount.write("file", b"fourth").unwrap();
    assert_eq!(mode(), 0o600, "and only once");
}
