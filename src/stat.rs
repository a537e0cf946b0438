//! What the layers say to each other about a file: plain data, no behaviour that needs a host.

/// A point in time as files carry it; `nanos` is always below 10^9 and counts forward, also
/// before 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Time {
    pub secs: i64,
    pub nanos: u32,
}

impl Time {
    /// Drops what a `T` record of SCP cannot carry: everything below a microsecond.
    pub fn to_micros(self) -> Self {
        Self {
            secs: self.secs,
            nanos: self.nanos - self.nanos % 1000,
        }
    }

    /// Returns whether a host on which an upload set this time may tell it so: to the microsecond, as
    /// a `T` record carries it, or in whole seconds, which are all that some hosts set or tell.
    pub fn may_be_told_as(self, told: Self) -> bool {
        if told.nanos == 0 {
            self.secs == told.secs
        } else {
            self.to_micros() == told.to_micros()
        }
    }
}

/// A point in time as a calendar has it, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Civil {
    pub year: i64,
    pub month: i64,
    pub day: i64,
    pub hour: i64,
    pub minute: i64,
    pub second: i64,
}

impl Time {
    /// Returns the date and the time of day of the proleptic Gregorian calendar, in UTC.
    pub fn civil(self) -> Civil {
        let (days, secs) = (self.secs.div_euclid(86_400), self.secs.rem_euclid(86_400));
        let (year, month, day) = civil_from_days(days);
        Civil {
            year,
            month,
            day,
            hour: secs / 3600,
            minute: secs / 60 % 60,
            second: secs % 60,
        }
    }
}

/// The date of a day counted from 1970-01-01, by eras of 400 years that begin on a 1st of March.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, doe) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

/// What kind of file a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

impl FileKind {
    /// Reads the file type bits of a `st_mode`.
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & 0o170_000 {
            0o100_000 => Self::File,
            0o040_000 => Self::Directory,
            0o120_000 => Self::Symlink,
            0o010_000 => Self::Fifo,
            0o140_000 => Self::Socket,
            0o020_000 => Self::CharDevice,
            0o060_000 => Self::BlockDevice,
            _ => return None,
        })
    }
}

/// The permission bits of a mode, setuid, setgid and sticky included.
pub const PERMISSIONS: u32 = 0o7777;

/// A number that a host gives a device, both ways of a `dev_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

/// Which file it is on the host, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    pub dev: u64,
    pub ino: u64,
}

/// The attributes of one file as the host gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub kind: FileKind,
    /// Permission bits only, see [`PERMISSIONS`].
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// In bytes.
    pub size: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub atime: Time,
    pub mtime: Time,
    /// `None` where the host does not tell.
    pub ctime: Option<Time>,
    /// `None` where the host does not tell.
    pub id: Option<FileId>,
    /// Of a device; zero for other kinds.
    pub rdev: DeviceNumber,
}

impl Stat {
    /// Returns what identifies the content of the file at this moment.
    pub fn version(&self) -> Version {
        Version {
            size: self.size,
            mtime: self.mtime,
            ctime: self.ctime,
            id: self.id,
        }
    }
}

/// What identifies the content of a remote file: two equal versions have the same content as far
/// as the host can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    pub size: u64,
    pub mtime: Time,
    pub ctime: Option<Time>,
    pub id: Option<FileId>,
}

impl Version {
    /// Returns whether the content is the same although the file's metadata may have changed.
    pub fn same_content(&self, other: &Self) -> bool {
        self.size == other.size && self.mtime == other.mtime && self.id == other.id
    }
}

/// The state of the host's filesystem, as `statvfs` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FsStat {
    /// In bytes; the unit of the block counts.
    pub block_size: u32,
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    /// In bytes.
    pub name_max: u32,
}
