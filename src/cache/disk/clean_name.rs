//! The names of clean content, which encode its version; pure.

use crate::stat::FileId;
use crate::stat::Time;
use crate::stat::Version;

/// Returns the name of clean content; `None` for a version without an inode number, which does not
/// identify the content.
pub(super) fn write(version: &Version) -> Option<String> {
    let FileId { dev, ino } = version.id?;
    let Version {
        size, mtime, ctime, ..
    } = version;
    let ctime = ctime.map_or_else(|| "x".to_owned(), time_text);
    Some(format!(
        "c-{dev:x}-{ino:x}-{size:x}-{}-{ctime}",
        time_text(*mtime)
    ))
}

fn time_text(time: Time) -> String {
    // Seconds since `i64::MIN`: `-` separates the parts of the name, so there must be no sign.
    let secs = i128::from(time.secs) - i128::from(i64::MIN);
    format!("{secs:x}.{:x}", time.nanos)
}

pub(super) fn parse(name: &str) -> Option<Version> {
    let mut parts = name.strip_prefix("c-")?.split('-');
    let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
    let (dev, ino, size) = (number()?, number()?, number()?);
    let time = |text: &str| {
        let (secs, nanos) = text.split_once('.')?;
        let secs = i128::from_str_radix(secs, 16).ok()? + i128::from(i64::MIN);
        let nanos = u32::from_str_radix(nanos, 16).ok()?;
        Some(Time {
            secs: i64::try_from(secs).ok()?,
            nanos,
        })
    };
    let mtime = time(parts.next()?)?;
    let ctime = match parts.next()? {
        "x" => None,
        text => Some(time(text)?),
    };
    let version = Version {
        size,
        mtime,
        ctime,
        id: Some(FileId { dev, ino }),
    };
    parts.next().is_none().then_some(version)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cache) fn version(ctime: Option<Time>) -> Version {
        Version {
            size: 5,
            mtime: Time {
                secs: -2,
                nanos: 999_999_999,
            },
            ctime,
            id: Some(FileId {
                dev: u64::MAX,
                ino: 7,
            }),
        }
    }

    #[test]
    fn a_clean_name_encodes_the_version() {
        for ctime in [
            None,
            Some(Time {
                secs: i64::MAX,
                nanos: 0,
            }),
        ] {
            let version = version(ctime);
            assert_eq!(parse(&write(&version).unwrap()), Some(version));
        }
        for bad in ["c-", "c-1-2-3", "d-1", "c-1-2-3-4.5-x-y", "c-1-2-3-zz.5-x"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(
            write(&Version {
                id: None,
                ..version(None)
            }),
            None
        );
    }

    /// Other versions read what this one wrote to the disk: a change of layout needs a new number.
    #[test]
    fn the_name_is_that_of_format_2() {
        let mtime = Time { secs: 0, nanos: 1 };
        let id = Some(FileId { dev: 1, ino: 2 });
        let version = Version {
            size: 3,
            mtime,
            ctime: None,
            id,
        };
        assert_eq!(write(&version).unwrap(), "c-1-2-3-8000000000000000.1-x");
    }
}
