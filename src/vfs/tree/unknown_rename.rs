//! Renames of unknown outcome: the connection broke after the request was sent. Pure.

use std::time::Duration;

use crate::clock::Tick;
use crate::path::Name;
use crate::path::RemotePath;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::vfs::Ino;
use crate::vfs::inode::Link;

/// A rename of unknown outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::vfs) struct UnknownRename {
    pub(super) id: u64,
    pub(super) moved: Ino,
    /// The attributes of the moved inode when the rename was requested.
    pub(super) stat: Stat,
    pub(super) from: Link,
    pub(super) to: Link,
    pub(in crate::vfs) from_path: RemotePath,
    pub(in crate::vfs) to_path: RemotePath,
    /// How often the host answered, and refused to tell; and when that was last counted.
    pub(super) n_refusals: u32,
    pub(super) refused_at: Option<Tick>,
}

/// A rename counts as not carried out after the host has refused to tell so often. Refusals that
/// follow each other faster than [`REFUSAL_INTERVAL`] count as one.
const MAX_REFUSALS: u32 = 5;
const REFUSAL_INTERVAL: Duration = Duration::from_secs(5);

/// The names in a directory that an operation depends on.
#[derive(Debug, Clone, Copy)]
pub(in crate::vfs) enum Scope<'a> {
    /// All of them.
    Directory,
    Name(&'a Name),
    /// A name, and everything below it.
    Below(&'a Name),
}

impl UnknownRename {
    /// Counts a refusal at `at`; returns whether to give up.
    pub(super) fn is_refused_for_good(&mut self, at: Tick) -> bool {
        let is_counted = |last: Tick| at.since(last) < REFUSAL_INTERVAL;
        if !self.refused_at.is_some_and(is_counted) {
            self.n_refusals += 1;
            self.refused_at = Some(at);
        }
        self.n_refusals >= MAX_REFUSALS
    }

    /// Returns whether `there` is the inode that was moved.
    fn is_moved(&self, there: &Stat) -> bool {
        there.kind == self.stat.kind && there.id.is_some() && there.id == self.stat.id
    }

    /// Returns whether the host carried out the rename, given what it has under the new name and,
    /// if it was asked, under the old name. `None` if that is not enough to tell.
    pub(in crate::vfs) fn outcome(
        &self,
        to: &NameOnHost,
        from: Option<&NameOnHost>,
    ) -> Option<bool> {
        // If a file has several hard links, both names may have been links to it before: rename(2)
        // does nothing then.
        let is_alone = |stat: &Stat| stat.kind == FileKind::Directory || stat.nlink <= 1;
        match (to, from) {
            (NameOnHost::Present(to), _) if self.is_moved(to) && is_alone(to) => Some(true),
            (NameOnHost::Present(to), Some(NameOnHost::Present(from))) if self.is_moved(to) => {
                Some(!self.is_moved(from))
            }
            (NameOnHost::Present(to), Some(NameOnHost::Absent)) if self.is_moved(to) => Some(true),
            (NameOnHost::Present(to), _) if self.is_moved(to) => None,
            (NameOnHost::Present(_) | NameOnHost::Absent, _) => Some(false),
            (NameOnHost::Refused, Some(NameOnHost::Present(from)))
                if self.is_moved(from) && is_alone(from) =>
            {
                Some(false)
            }
            // It is not where it was.
            (NameOnHost::Refused, Some(NameOnHost::Absent)) => Some(true),
            (NameOnHost::Refused, _) => None,
        }
    }
}

/// The answer of the host about a name.
#[derive(Debug, Clone, Copy)]
pub(in crate::vfs) enum NameOnHost {
    Present(Stat),
    Absent,
    /// The host refused to tell, for example with EACCES.
    Refused,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stat::DeviceNumber;
    use crate::stat::FileId;
    use crate::stat::Time;

    fn stat(ino: u64, nlink: u32) -> Stat {
        let time = Time { secs: 1, nanos: 2 };
        Stat {
            kind: FileKind::File,
            mode: 0o644,
            nlink,
            uid: 0,
            gid: 0,
            size: 3,
            blocks: 1,
            atime: time,
            mtime: time,
            ctime: Some(time),
            id: Some(FileId { dev: 1, ino }),
            rdev: DeviceNumber::default(),
        }
    }

    fn one_to_two() -> UnknownRename {
        let name = |text: &[u8]| Name::new(text).unwrap();
        let path = |text: &[u8]| RemotePath::root().join(&name(text));
        UnknownRename {
            id: 1,
            moved: Ino(7),
            stat: stat(7, 1),
            from: (Ino::ROOT, name(b"one")),
            to: (Ino::ROOT, name(b"two")),
            from_path: path(b"one"),
            to_path: path(b"two"),
            n_refusals: 0,
            refused_at: None,
        }
    }

    #[test]
    fn many_refusals_at_once_count_as_one() {
        let mut rename = one_to_two();
        let mut at = Tick::ZERO;
        for _ in 1..MAX_REFUSALS {
            for _ in 0..10 {
                assert!(!rename.is_refused_for_good(at));
            }
            at = at + REFUSAL_INTERVAL;
        }
        assert!(rename.is_refused_for_good(at));
    }

    /// Errors counted as absence: after an I/O error a rename that was carried out was forgotten,
    /// and open content was uploaded to the old name.
    #[test]
    fn what_is_under_both_names_tells_whether_a_rename_was_carried_out() {
        use NameOnHost::Absent;
        use NameOnHost::Refused;
        let rename = one_to_two();
        let (it, linked, other) = (
            NameOnHost::Present(stat(7, 1)),
            NameOnHost::Present(stat(7, 2)),
            NameOnHost::Present(stat(8, 1)),
        );
        for (to, from, outcome) in [
            (it, None, Some(true)),
            (other, None, Some(false)),
            (Absent, None, Some(false)),
            (Refused, None, None),
            (linked, None, None),
            (linked, Some(linked), Some(false)),
            (linked, Some(other), Some(true)),
            (linked, Some(Absent), Some(true)),
            (linked, Some(Refused), None),
            (Refused, Some(it), Some(false)),
            (Refused, Some(Absent), Some(true)),
            (Refused, Some(Refused), None),
        ] {
            let found = rename.outcome(&to, from.as_ref());
            assert_eq!(found, outcome, "{to:?} {from:?}");
        }
    }
}
