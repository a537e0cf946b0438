//! Containment: symlinks must not lead out of the mount; pure.
//!
//! The local kernel follows symlinks itself, on the local machine. An absolute target, or one with
//! enough `..`, would lead out of the mount into local files (CVE-2026-47187 of sshfs). This module
//! does not know what the components of a target are. It never leaves `..` after a name, so that a
//! symlink in the middle of a target cannot change where `..` leads.

use crate::path::RemotePath;

/// Which symlinks are contained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symlinks {
    /// Symlinks to inside of the mount work; absolute ones are reported as relative. Symlinks to
    /// outside cannot be read.
    Contain,
    /// Symlinks are reported as they are on the host.
    AsIs,
}

/// Returns the target to be reported for a symlink in the directory `dir`; `None` if it leads
/// outside.
///
/// `root` is the absolute path of the mounted directory on the host, empty for `/`; `mountpoint` is
/// where it is mounted here. A target below the mountpoint was created through the mount, and is
/// reported unchanged.
pub(super) fn contain(
    target: &[u8],
    dir: &RemotePath,
    root: &[u8],
    mountpoint: &[u8],
) -> Option<Vec<u8>> {
    if !mountpoint.is_empty()
        && let Some(below) = strip_root(target, mountpoint)
        && !below.split(|&b| b == b'/').any(|part| part == b"..")
    {
        return Some(target.to_vec());
    }
    let (mut depth, relative, is_absolute) = match target.strip_prefix(b"/") {
        Some(_) => (0, strip_root(target, root)?, true),
        None => (dir.depth(), target, false),
    };
    let mut n_up = 0;
    let mut parts: Vec<&[u8]> = Vec::new();
    let mut has_up_after_name = false;
    for part in relative.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.pop().is_some() => has_up_after_name = true,
            b".." => {
                depth = depth.checked_sub(1)?;
                n_up += 1;
            }
            name => parts.push(name),
        }
    }
    if !is_absolute && !has_up_after_name {
        return Some(target.to_vec());
    }
    if is_absolute {
        n_up = dir.depth();
    }
    let ups = std::iter::repeat_n(&b".."[..], n_up);
    let shown = ups.chain(parts).collect::<Vec<_>>().join(&b'/');
    Some(if shown.is_empty() {
        b".".to_vec()
    } else {
        shown
    })
}

/// Returns the part of an absolute path below `root`, with its leading slash; `None` if it is not
/// below.
fn strip_root<'a>(target: &'a [u8], root: &[u8]) -> Option<&'a [u8]> {
    let rest = target.strip_prefix(root)?;
    (rest.is_empty() || rest.first() == Some(&b'/')).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Name;

    fn dir(path: &str) -> RemotePath {
        path.split('/')
            .filter(|part| !part.is_empty())
            .fold(RemotePath::root(), |dir, part| {
                dir.join(&Name::new(part.as_bytes()).unwrap())
            })
    }

    #[test]
    fn targets_inside_are_shown_and_targets_outside_are_not() {
        for (target, at, root, shown) in [
            ("a", "", "/srv", Some("a")),
            ("./a//b/", "", "/srv", Some("./a//b/")),
            ("../a", "d", "/srv", Some("../a")),
            ("../a", "", "/srv", None),
            ("../../a", "d", "/srv", None),
            ("a/../../b", "d", "/srv", Some("../b")),
            ("a/../b", "", "/srv", Some("b")),
            ("a/..", "", "/srv", Some(".")),
            ("a/../..", "", "/srv", None),
            ("/srv/x/y", "d/e", "/srv", Some("../../x/y")),
            ("/srv", "d", "/srv", Some("..")),
            ("/srv", "", "/srv", Some(".")),
            ("/srv/x/../y", "", "/srv", Some("y")),
            ("/srv/../etc", "", "/srv", None),
            ("/srvx", "", "/srv", None),
            ("/etc/passwd", "", "/srv", None),
            ("/etc/passwd", "d", "", Some("../etc/passwd")),
            ("/", "d", "", Some("..")),
            ("/mnt/m/x", "d", "/srv", Some("/mnt/m/x")),
            ("/mnt/m", "d", "/srv", Some("/mnt/m")),
            ("/mnt/m/../x", "d", "/srv", None),
            ("/mnt/mx", "d", "/srv", None),
        ] {
            let found = contain(target.as_bytes(), &dir(at), root.as_bytes(), b"/mnt/m");
            assert_eq!(
                found,
                shown.map(|s| s.as_bytes().to_vec()),
                "{target} in {at} of {root}"
            );
        }
    }
}
