//! Renames of unknown outcome: the connection broke after the request was sent. Pure.

use crate::path::Name;
use crate::path::RemotePath;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::vfs::Ino;
use crate::vfs::inode::Link;

/// A rename of unknown outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::vfs) struct UnsureRename {
    pub(super) id: u64,
    pub(super) moved: Ino,
    /// Of what was moved, when the rename was asked for.
    pub(super) stat: Stat,
    pub(super) from: Link,
    pub(super) to: Link,
    pub(in crate::vfs) from_path: RemotePath,
    pub(in crate::vfs) to_path: RemotePath,
}

/// Which names in a directory are asked about.
#[derive(Debug, Clone, Copy)]
pub(in crate::vfs) enum Scope<'a> {
    /// All of them.
    Directory,
    Name(&'a Name),
    /// A name, and all below it.
    Below(&'a Name),
}

impl UnsureRename {
    /// Whether what the host has under a name is what was moved.
    fn is_moved(&self, there: &Stat) -> bool {
        there.kind == self.stat.kind && there.id.is_some() && there.id == self.stat.id
    }

    /// Whether the host carried the rename out, by what it has under the new name and, if asked for,
    /// under the old one; `None` if that does not tell.
    pub(in crate::vfs) fn outcome(&self, to: &Looked, from: Option<&Looked>) -> Option<bool> {
        // A file with two names may have had both before: then rename(2) does nothing.
        let is_alone = |stat: &Stat| stat.kind == FileKind::Directory || stat.nlink <= 1;
        match (to, from) {
            (Looked::There(to), _) if self.is_moved(to) && is_alone(to) => Some(true),
            (Looked::There(to), Some(Looked::There(from))) if self.is_moved(to) => {
                Some(!self.is_moved(from))
            }
            (Looked::There(to), Some(Looked::Absent)) if self.is_moved(to) => Some(true),
            (Looked::There(to), _) if self.is_moved(to) => None,
            (Looked::There(_) | Looked::Absent, _) => Some(false),
            (Looked::Hidden, Some(Looked::There(from)))
                if self.is_moved(from) && is_alone(from) =>
            {
                Some(false)
            }
            (Looked::Hidden, _) => None,
        }
    }
}

/// What the host says of a name.
#[derive(Debug, Clone, Copy)]
pub(in crate::vfs) enum Looked {
    There(Stat),
    Absent,
    /// The host does not tell.
    Hidden,
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

    /// Errors counted as absence: after an input/output error a rename that was carried out was
    /// forgotten, and open content went to the old name.
    #[test]
    fn what_is_under_both_names_tells_whether_a_rename_was_carried_out() {
        use Looked::Absent;
        use Looked::Hidden;
        let name = |text: &[u8]| Name::new(text).unwrap();
        let path = |text: &[u8]| RemotePath::root().join(&name(text));
        let unsure = UnsureRename {
            id: 1,
            moved: Ino(7),
            stat: stat(7, 1),
            from: (Ino::ROOT, name(b"one")),
            to: (Ino::ROOT, name(b"two")),
            from_path: path(b"one"),
            to_path: path(b"two"),
        };
        let (it, linked, other) = (
            Looked::There(stat(7, 1)),
            Looked::There(stat(7, 2)),
            Looked::There(stat(8, 1)),
        );
        for (to, from, outcome) in [
            (it, None, Some(true)),
            (other, None, Some(false)),
            (Absent, None, Some(false)),
            (Hidden, None, None),
            (linked, None, None),
            (linked, Some(linked), Some(false)),
            (linked, Some(other), Some(true)),
            (linked, Some(Absent), Some(true)),
            (linked, Some(Hidden), None),
            (Hidden, Some(it), Some(false)),
            (Hidden, Some(Absent), None),
            (Hidden, Some(Hidden), None),
        ] {
            let found = unsure.outcome(&to, from.as_ref());
            assert_eq!(found, outcome, "{to:?} {from:?}");
        }
    }
}
