//! What happens when somebody else changed a file that is to be uploaded, and what the content that
//! is kept beside it is called.

use crate::path::Name;
use crate::path::RemotePath;
use crate::stat::Civil;
use crate::stat::Time;

/// What to do with content that conflicts with somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConflictPolicy {
    /// Both stay on the host: ours beside theirs.
    #[default]
    KeepBoth,
    /// Ours replaces theirs.
    Overwrite,
    /// Ours stays here.
    Fail,
}

/// The longest name that every filesystem takes.
const NAME_MAX: usize = 255;

/// Returns what content is called that conflicted at some time: `NAME.scpfs-conflict-DATE-TIME`, in
/// UTC. `n` is added from the second attempt on, where that name was taken.
pub(crate) fn name_beside(path: &RemotePath, at: Time, n: u32) -> Option<Name> {
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
        // Between two characters, where the name is text.
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
    fn the_name_beside_says_when_and_is_never_too_long() {
        let at = Time {
            secs: 1_700_000_000,
            nanos: 5,
        };
        let path = |name: &str| RemotePath::root().join(&Name::new(name.as_bytes()).unwrap());
        let beside = |name: &str, n| name_beside(&path(name), at, n).unwrap();
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
        assert!(name_beside(&RemotePath::root(), at, 1).is_none());
    }
}
