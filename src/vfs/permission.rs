//! Permission checks by mode bits; pure.

use crate::stat::Stat;

/// A user of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// The bits of `access(2)`.
pub(super) const READ: u32 = 4;
pub(super) const WRITE: u32 = 2;
pub(super) const EXECUTE: u32 = 1;

/// Returns whether the mode bits grant all of `mask` to `user`, as in POSIX: the bits of the owner
/// apply to the owner only, else those of the group, else those of others. Root may do everything,
/// but execute a file only if any execute bit is set.
pub(super) fn permits(stat: &Stat, user: &User, mask: u32) -> bool {
    if user.uid == 0 {
        let is_directory = stat.kind == crate::stat::FileKind::Directory;
        return mask & EXECUTE == 0 || is_directory || stat.mode & 0o111 != 0;
    }
    let shift = if stat.uid == user.uid {
        6
    } else if stat.gid == user.gid || user.groups.contains(&stat.gid) {
        3
    } else {
        0
    };
    (stat.mode >> shift) & mask == mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stat::DeviceNumber;
    use crate::stat::FileKind;
    use crate::stat::Time;

    fn file(mode: u32) -> Stat {
        Stat {
            kind: FileKind::File,
            mode,
            nlink: 1,
            uid: 10,
            gid: 20,
            size: 0,
            blocks: 0,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: None,
            id: None,
            rdev: DeviceNumber::default(),
        }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let who = |uid, gid| User {
            uid,
            gid,
            groups: vec![30],
        };
        assert!(!permits(&file(0o077), &who(10, 20), READ));
        assert!(permits(&file(0o040), &who(11, 20), READ));
        assert!(!permits(&file(0o704), &who(11, 20), READ));
        assert!(permits(&file(0o004), &who(11, 21), READ));
        assert!(!permits(&file(0o004), &who(11, 21), READ | WRITE));
    }

    #[test]
    fn root_may_execute_only_what_somebody_may() {
        let root = User {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
        };
        assert!(permits(&file(0), &root, READ | WRITE));
        assert!(!permits(&file(0o666), &root, EXECUTE));
        assert!(permits(&file(0o001), &root, EXECUTE));
    }
}
