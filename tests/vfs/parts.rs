//! Large files of which only a part is read.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::NOBODY;
use scpfs_testing::vfs_mount::Setup;
use scpfs_testing::wait::wait_until;

fn in_parts() -> Setup {
    Setup {
        reads_parts: true,
        ..Setup::default()
    }
}

/// 20 MiB in which no block is like another.
fn content() -> Vec<u8> {
    (0u32..5 << 20).flat_map(u32::to_le_bytes).collect()
}

fn with_large_file(userland: Userland) -> Option<(Mount, Vec<u8>)> {
    userland.is_here().then(|| {
        let world = World::new(userland);
        let content = content();
        fs::write(world.root().join("large"), &content).unwrap();
        let mount = Mount::on(Arc::new(world), in_parts());
        mount.find("large").unwrap();
        (mount, content)
    })
}

fn read(mount: &Mount, opened: &scpfs::vfs::Opened, offset: u64, len: u32) -> Vec<u8> {
    mount.vfs.read(&CX, opened.fh, offset, len).unwrap()
}

/// As `tail`, `less +G` and `file` do.
#[test]
fn the_end_of_a_large_file_costs_two_round_trips_and_few_bytes() {
    let mount = Mount::set_up(in_parts());
    let size = 1_500_000_000;
    let file = fs::File::create(mount.at("log")).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(b"the last line\n", size - 14).unwrap();
    mount.find("log").unwrap();
    let before = mount.world.meter.bytes_read();
    let (_, trips) = mount.counted(|| {
        let opened = mount.open("log", libc::O_RDONLY).unwrap();
        let data = read(&mount, &opened, size - 8192, 8192);
        assert!(data.ends_with(b"\0the last line\n"));
        assert_eq!(data.len(), 8192);
        // Programs go on towards the beginning.
        read(&mount, &opened, size - 100_000, 90_000);
        mount.close(&opened).unwrap();
    });
    assert_eq!(trips, 2);
    let n_bytes = mount.world.meter.bytes_read() - before;
    assert!(n_bytes < 1 << 20, "{n_bytes} bytes");
}

#[test]
fn parts_of_a_large_file_are_the_hosts_bytes() {
    for userland in [
        Userland::Gnu,
        Userland::BusyBox,
        Userland::Toybox,
        Userland::Dropbear,
        Userland::Bare,
        Userland::Bsd,
    ] {
        let Some((mount, content)) = with_large_file(userland) else {
            continue;
        };
        let opened = mount.open("large", libc::O_RDONLY).unwrap();
        let size = content.len();
        for (offset, len) in [
            (0, 10),
            (13_000_000, 200_000),
            (5, 70_000),
            (size - 1, 10),
            (size - 65_536, 65_536),
            (size, 10),
            (size + 5, 10),
            (13_100_000, 4096),
            (7 * 65_536, 65_536),
        ] {
            let end = (offset + len).min(size);
            let expected = content.get(offset..end).unwrap_or_default();
            let data = read(&mount, &opened, offset as u64, u32::try_from(len).unwrap());
            assert!(data == expected, "{userland:?}: {len} bytes at {offset}");
        }
        mount.close(&opened).unwrap();
        // Without dd the whole file is fetched.
        if userland != Userland::Toybox {
            assert_eq!(mount.cache.bytes(), 0, "no part is taken for the content");
        }
    }
}

#[test]
fn a_large_file_that_is_read_from_the_beginning_is_fetched_as_a_whole() {
    let (mount, content) = with_large_file(Userland::Gnu).unwrap();
    let (_, trips) = mount.counted(|| {
        let opened = mount.open("large", libc::O_RDONLY).unwrap();
        let mut data = Vec::new();
        while data.len() < content.len() {
            data.extend(read(&mount, &opened, data.len() as u64, 128 << 10));
        }
        assert!(data == content);
        mount.close(&opened).unwrap();
    });
    assert!(trips <= 4, "{trips} round trips");
    wait_until("the fetch has ended", || {
        mount.cache.bytes() == content.len() as u64
    });
    let (_, trips) = mount.counted(|| {
        let opened = mount.open("large", libc::O_RDONLY).unwrap();
        assert!(read(&mount, &opened, 19_000_000, 4096) == content[19_000_000..][..4096]);
        mount.close(&opened).unwrap();
    });
    assert_eq!(trips, 0);
}

/// As `tail -f` does.
#[test]
fn a_log_that_grows_is_read_on_without_its_beginning() {
    let (mount, content) = with_large_file(Userland::Gnu).unwrap();
    let opened = mount.open("large", libc::O_RDONLY).unwrap();
    let size = content.len() as u64;
    read(&mount, &opened, size - 10, 10);
    let mut log = fs::OpenOptions::new()
        .append(true)
        .open(mount.at("large"))
        .unwrap();
    log.write_all(b"one more line\n").unwrap();
    mount.age();
    let before = mount.world.meter.bytes_read();
    assert_eq!(mount.find("large").unwrap().stat.size, size + 14);
    assert_eq!(read(&mount, &opened, size, 100), b"one more line\n");
    log.write_all(b"and one more\n").unwrap();
    mount.age();
    assert_eq!(mount.find("large").unwrap().stat.size, size + 27);
    assert_eq!(read(&mount, &opened, size + 14, 100), b"and one more\n");
    let n_bytes = mount.world.meter.bytes_read() - before;
    assert!(n_bytes < 2 << 20, "{n_bytes} bytes");
    mount.close(&opened).unwrap();
}

/// A program that reads at once must not get bytes of both versions.
#[test]
fn a_large_file_that_is_replaced_while_a_part_is_read_is_an_error() {
    let (mount, content) = with_large_file(Userland::Gnu).unwrap();
    let opened = mount.open("large", libc::O_RDONLY).unwrap();
    assert!(read(&mount, &opened, 10_000_000, 100) == content[10_000_000..][..100]);
    let mut other = content.clone();
    other.iter_mut().for_each(|byte| *byte = !*byte);
    fs::write(mount.at("new"), &other).unwrap();
    fs::rename(mount.at("new"), mount.at("large")).unwrap();
    // The kernel asks once more after an error of its own read-ahead.
    for _ in 0..3 {
        let error = mount.vfs.read(&CX, opened.fh, 15_000_000, 100).unwrap_err();
        assert_eq!(error.errno(), libc::EIO);
    }
    // The file that was opened has no name any more.
    mount.age();
    mount.find("large").unwrap();
    let error = mount.vfs.read(&CX, opened.fh, 15_000_000, 100).unwrap_err();
    assert_eq!(error.errno(), libc::ESTALE);
    let again = mount.open("large", libc::O_RDONLY).unwrap();
    assert!(read(&mount, &again, 15_000_000, 100) == other[15_000_000..][..100]);
    mount.close(&again).unwrap();
    mount.close(&opened).unwrap();
}

/// A database that is written to on the host has the same inode and size.
#[test]
fn a_large_file_that_is_changed_in_place_while_a_part_is_read_is_an_error() {
    let (mount, content) = with_large_file(Userland::Gnu).unwrap();
    let opened = mount.open("large", libc::O_RDONLY).unwrap();
    assert!(read(&mount, &opened, 10_000_000, 100) == content[10_000_000..][..100]);
    let file = fs::OpenOptions::new().write(true).open(mount.at("large"));
    file.unwrap().write_all_at(b"changed", 15_000_000).unwrap();
    // Another program has learnt of it before.
    mount.age();
    mount.find("large").unwrap();
    for _ in 0..3 {
        let error = mount.vfs.read(&CX, opened.fh, 15_000_000, 7).unwrap_err();
        assert_eq!(error.errno(), libc::EIO);
    }
    let again = mount.open("large", libc::O_RDONLY).unwrap();
    assert_eq!(read(&mount, &again, 15_000_000, 7), b"changed");
    mount.close(&again).unwrap();
    mount.close(&opened).unwrap();
}

#[test]
fn large_files_are_fetched_as_a_whole_unless_the_option_says_otherwise() {
    let world = World::new(Userland::Gnu);
    fs::write(world.root().join("large"), content()).unwrap();
    let mount = Mount::on(Arc::new(world), Setup::default());
    let opened = mount.open("large", libc::O_RDONLY).unwrap();
    assert!(read(&mount, &opened, 19_000_000, 7) == content()[19_000_000..][..7]);
    mount.close(&opened).unwrap();
    wait_until("the fetch has ended", || mount.cache.bytes() == 20 << 20);
}

#[test]
fn a_write_after_a_part_was_read_uploads_the_whole_content() {
    let (mount, mut content) = with_large_file(Userland::Gnu).unwrap();
    let reader = mount.open("large", libc::O_RDONLY).unwrap();
    read(&mount, &reader, 15_000_000, 100);
    let writer = mount.open("large", libc::O_RDWR).unwrap();
    mount.vfs.write(&CX, writer.fh, 100, b"changed").unwrap();
    content[100..107].copy_from_slice(b"changed");
    assert!(read(&mount, &reader, 90, 20) == content[90..110]);
    mount.close(&writer).unwrap();
    mount.close(&reader).unwrap();
    assert!(fs::read(mount.at("large")).unwrap() == content);
}

#[test]
fn a_part_of_a_large_file_survives_a_connection_that_breaks() {
    let (mount, content) = with_large_file(Userland::Gnu).unwrap();
    let opened = mount.open("large", libc::O_RDONLY).unwrap();
    for (n, cut_after) in [1, 200, 70_000, 200_000].into_iter().enumerate() {
        mount.world.faults.lock().cut_after_read = Some(cut_after);
        let offset = 5_000_000 * (n + 1) - 2_000_000;
        let data = read(&mount, &opened, offset as u64, 100_000);
        assert!(data == content[offset..][..100_000], "{cut_after}");
    }
    mount.close(&opened).unwrap();
}

#[test]
fn a_large_file_that_may_not_be_read_fails_at_open() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = World::new(Userland::Gnu);
    world.log_in_as(NOBODY);
    let mount = Mount::on(Arc::new(world), in_parts());
    let file = fs::File::create(mount.at("secret")).unwrap();
    file.set_len(100 << 20).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    file.set_permissions(mode).unwrap();
    let error = mount.open("secret", libc::O_RDONLY).unwrap_err();
    assert_eq!(error.errno(), libc::EACCES);
}
