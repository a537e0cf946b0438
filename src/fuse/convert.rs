//! The kernel's types and ours.

use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use fuser::FileAttr;
use fuser::FileType;
use fuser::INodeNo;

use crate::remote::NewTime;
use crate::stat::DeviceNumber;
use crate::stat::FileKind;
use crate::stat::Time;
use crate::vfs::Attr;

/// What a program may read at a time without more requests than needed.
const BLOCK_SIZE: u32 = 64 << 10;

/// Attributes under the kernel's number: for replies that introduce an inode.
pub(super) fn entry_attr(attr: &Attr) -> FileAttr {
    let stat = &attr.stat;
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: stat.size,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime.unwrap_or(stat.mtime)),
        crtime: UNIX_EPOCH,
        kind: file_type(stat.kind),
        perm: u16::try_from(stat.mode).unwrap_or(0),
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: device(stat.rdev),
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Attributes under the number that is shown: for replies about an inode the kernel knows.
pub(super) fn shown_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.shown_ino),
        ..entry_attr(attr)
    }
}

/// How long the kernel may keep attributes that came with an entry: not at all where it would
/// show its own number instead of the right one.
pub(super) fn entry_attr_ttl(attr: &Attr) -> Duration {
    if attr.ino.0 == attr.shown_ino {
        attr.ttl
    } else {
        Duration::ZERO
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let secs = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 {
        UNIX_EPOCH.checked_sub(secs)
    } else {
        UNIX_EPOCH.checked_add(secs)
    };
    whole
        .and_then(|whole| whole.checked_add(nanos))
        .unwrap_or(UNIX_EPOCH)
}

pub(super) fn new_time(time: fuser::TimeOrNow) -> NewTime {
    match time {
        fuser::TimeOrNow::Now => NewTime::Now,
        fuser::TimeOrNow::SpecificTime(time) => NewTime::At(kernel_time(time)),
    }
}

/// Takes a time that fuser read from a request.
///
/// fuser 0.18 time.rs `system_time_from_time()` makes of seconds and nanoseconds before 1970 the
/// time as far before 1970 as both together, not the seconds' plus the nanoseconds'. Taking it
/// apart the same way gives what the kernel said.
fn kernel_time(time: SystemTime) -> Time {
    let (is_before, distance) = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (false, since),
        Err(error) => (true, error.duration()),
    };
    let secs = i64::try_from(distance.as_secs()).unwrap_or(i64::MAX);
    Time {
        secs: if is_before { -secs } else { secs },
        nanos: distance.subsec_nanos(),
    }
}

/// The kernel's 32 bits of a device number: 12 of the major, 20 of the minor, in three parts.
fn device(number: DeviceNumber) -> u32 {
    let DeviceNumber { major, minor } = number;
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff00) << 12)
}

pub(super) fn device_number(device: u32) -> DeviceNumber {
    DeviceNumber {
        major: (device >> 8) & 0xfff,
        minor: (device & 0xff) | ((device >> 12) & 0xfff00),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_keep_all_their_bits() {
        for (major, minor) in [(1, 3), (259, 0x12345), (0xfff, 0xfffff)] {
            let number = DeviceNumber { major, minor };
            assert_eq!(device_number(device(number)), number);
        }
        assert_eq!(device(DeviceNumber { major: 8, minor: 1 }), 0x801);
    }

    #[test]
    fn times_before_1970_are_what_the_kernel_said() {
        // As fuser 0.18 makes it of -2 s and 500,000,000 ns.
        let from_fuser = UNIX_EPOCH - Duration::new(2, 500_000_000);
        assert_eq!(
            kernel_time(from_fuser),
            Time {
                secs: -2,
                nanos: 500_000_000
            }
        );
        // And as it must be for a reply.
        let half_past = UNIX_EPOCH - Duration::new(1, 500_000_000);
        assert_eq!(
            system_time(Time {
                secs: -2,
                nanos: 500_000_000
            }),
            half_past
        );
        let later = Time { secs: 5, nanos: 7 };
        assert_eq!(kernel_time(system_time(later)), later);
    }
}
