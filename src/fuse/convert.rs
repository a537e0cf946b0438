//! Converts between the types of fuser and of `vfs`.

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

/// The `st_blksize` of all files in bytes. Programs use it as buffer size; small ones cost
/// requests.
const BLOCK_SIZE: u32 = 64 << 10;

/// Converts attributes for a reply that introduces an inode: with the inode number of `vfs`.
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

/// Converts attributes for a reply about an inode that the kernel knows: with the inode number that
/// programs see.
pub(super) fn shown_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.shown_ino),
        ..entry_attr(attr)
    }
}

/// Returns how long the kernel may cache the attributes of [`entry_attr`].
///
/// Zero if programs must see another inode number than that of `vfs`: the kernel then asks with
/// getattr, whose reply has the right one.
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

/// Converts a time that fuser has read from a request.
///
/// For times before 1970, fuser 0.18 time.rs `system_time_from_time()` subtracts the nanoseconds
/// from the epoch as well, instead of adding them to the negative seconds. This function reverses
/// exactly that, so the result is what the kernel has sent.
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

/// Returns the kernel's 32-bit encoding of a device number: bits 0 to 7 and 20 to 31 are the minor
/// number, bits 8 to 19 the major number.
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
    fn device_numbers_survive_a_round_trip() {
        for (major, minor) in [(1, 3), (259, 0x12345), (0xfff, 0xfffff)] {
            let number = DeviceNumber { major, minor };
            assert_eq!(device_number(device(number)), number);
        }
        assert_eq!(device(DeviceNumber { major: 8, minor: 1 }), 0x801);
    }

    #[test]
    fn times_before_1970_equal_those_of_the_kernel() {
        // Fuser 0.18 converts -2 s and 500,000,000 ns to this.
        let from_fuser = UNIX_EPOCH - Duration::new(2, 500_000_000);
        assert_eq!(
            kernel_time(from_fuser),
            Time {
                secs: -2,
                nanos: 500_000_000
            }
        );
        // The right time, for a reply.
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
