//! File attributes, times and versions that all layers share: plain data, no I/O.

/// A file timestamp: seconds since 1970 and nanoseconds. `nanos` is always below 10^9 and is added
/// to `secs`, also before 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Time {
    pub secs: i64,
    pub nanos: u32,
}

impl Time {
    /// Truncates to microseconds, the precision of a `T` record of SCP.
    pub fn truncate_to_micros(self) -> Self {
        Self {
            secs: self.secs,
            nanos: self.nanos - self.nanos % 1000,
        }
    }

    /// Returns whether a host may report `reported` for a file whose upload set this time.
    ///
    /// A `T` record carries microseconds, and some hosts store or report only whole seconds: with
    /// `reported.nanos == 0` the seconds must be equal, otherwise the microseconds as well.
    pub fn matches_reported(self, reported: Self) -> bool {
        if reported.nanos == 0 {
            self.secs == reported.secs
        } else {
            self.truncate_to_micros() == reported.truncate_to_micros()
        }
    }
}

/// A date and time of day in UTC.
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
    /// Converts to the proleptic Gregorian calendar in UTC, without the nanoseconds.
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

/// Converts days since 1970-01-01 to (year, month, day). Howard Hinnant's `civil_from_days`: eras
/// of 400 years that start on the 1st of March.
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

/// The type of a file.
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
    /// Decodes the file type bits of `st_mode`; `None` for an unknown type.
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

/// Mask of the permission bits of a mode, including setuid, setgid and sticky.
pub const PERMISSIONS: u32 = 0o7777;

/// The major and minor number of a device on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

/// The device and inode number of a file on the host: they identify it independently of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    pub dev: u64,
    pub ino: u64,
}

/// The attributes of one file as the host reports them.
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
    /// `None` if the host does not report it.
    pub ctime: Option<Time>,
    /// `None` if the host does not report it.
    pub id: Option<FileId>,
    /// The device number of a device file; zero for other types.
    pub rdev: DeviceNumber,
}

impl Stat {
    /// Returns the version of the file's content.
    pub fn version(&self) -> Version {
        Version {
            size: self.size,
            mtime: self.mtime,
            ctime: self.ctime,
            id: self.id,
        }
    }
}

/// Identifies the content of a file on the host: equal versions have equal content, as far as the
/// host can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    pub size: u64,
    pub mtime: Time,
    pub ctime: Option<Time>,
    pub id: Option<FileId>,
}

impl Version {
    /// Returns whether the content is the same, ignoring `ctime`, which changes with metadata.
    pub fn same_content(&self, other: &Self) -> bool {
        self.size == other.size && self.mtime == other.mtime && self.id == other.id
    }
}

/// The size and free space of the host's filesystem, as in `statvfs`.
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
