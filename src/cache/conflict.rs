//! The conflict policy, and the names of conflict copies.

use crate::path::Name;
use crate::path::RemotePath;
use crate::stat::Civil;
use crate::stat::Time;

/// The action of an upload that finds a conflict (`conflict=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConflictPolicy {
    /// Uploads our content as a conflict copy; the host's file is unchanged.
    #[default]
    KeepBoth,
    /// Replaces the host's file.
    Overwrite,
    /// Fails the upload; our content stays on the local disk.
    Fail,
}

/// The longest name, in bytes, that every common filesystem accepts.
const NAME_MAX: usize = 255;

/// Returns the name of a conflict copy: `NAME.scpfs-conflict-DATE-TIME`, in UTC. `n` counts the
/// attempts; from the second on it is appended, because the first name was taken.
pub(crate) fn conflict_copy_name(path: &RemotePath, at: Time, n: u32) -> Option<Name> {
    let Civil {
        year,
        month,
        day,
        hour,
        minute,
        second,
    } = at.civil();
    let mut suffix =
        format!(".scpfs-conflict-{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}");
    if n > 1 {
        suffix.push_str(&format!("-{n}"));
    }
    let name = path.name()?;
    let mut bytes = name.as_bytes();
    let room = NAME_MAX.saturating_sub(suffix.len());
    if bytes.len() > room {
        // Cut between two characters, if the name is UTF-8.
        let text = String::from_utf8_lossy(bytes);
        let cut = (0..=room).rev().find(|&at| text.is_char_boundary(at));
        bytes = &bytes[..cut.unwrap_or(room).min(bytes.len())];
    }
    Name::new(&[bytes, suffix.as_bytes()].concat()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_copy_name_has_the_time_and_fits_into_name_max() {
        let at = Time {
            secs: 1_700_000_000,
            nanos: 5,
        };
        let path = |name: &str| RemotePath::root().join(&Name::new(name.as_bytes()).unwrap());
        let beside = |name: &str, n| conflict_copy_name(&path(name), at, n).unwrap();
        assert_eq!(
            beside("a.txt", 1).as_bytes(),
            b"a.txt.scpfs-conflict-20231114-221320"
        );
        assert_eq!(
            beside("a", 2).as_bytes(),
            b"a.scpfs-conflict-20231114-221320-2"
        );
        let long = beside(&"\u{e4}".repeat(127), 1);
        assert!(std::str::from_utf8(long.as_bytes()).is_ok());
        assert!(long.as_bytes().len() <= NAME_MAX, "{long}");
        assert!(conflict_copy_name(&RemotePath::root(), at, 1).is_none());
    }
}
