//! The table of mounts of a host without `stat`: the device and the filesystem type of a path;
//! pure.

#![warn(clippy::indexing_slicing)]

/// Returns the type of the filesystem that `path` is on, from the output of `print_fs_type`.
pub fn filesystem_type(body: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let mounts = parse_mounts(&body.split(|&b| b == 0).collect::<Vec<_>>())?;
    Some(mount_of(&mounts, path)?.kind.to_vec())
}

/// One line of the table of mounts: `8:1 ext4 /mnt`.
pub(super) struct Mount<'a> {
    /// The major number in the upper 32 bits, the minor number in the lower ones.
    pub(super) dev: u64,
    kind: &'a [u8],
    point: Vec<u8>,
}

impl Mount<'_> {
    fn holds(&self, path: &[u8]) -> bool {
        let point = self.point.strip_suffix(b"/").unwrap_or(&self.point);
        let rest = path.strip_prefix(point);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    }
}

/// Returns the mount that a path is on: the one with the longest mountpoint. Of two mounts on the
/// same mountpoint the later one hides the other.
pub(super) fn mount_of<'a, 'b>(mounts: &'a [Mount<'b>], path: &[u8]) -> Option<&'a Mount<'b>> {
    let holding = mounts.iter().filter(|mount| mount.holds(path));
    holding.max_by_key(|mount| mount.point.len())
}

pub(super) fn parse_mounts<'a>(words: &[&'a [u8]]) -> Option<Vec<Mount<'a>>> {
    let parse = |word: &&'a [u8]| {
        let mut parts = word.splitn(3, |&b| b == b' ');
        let dev = std::str::from_utf8(parts.next()?).ok()?;
        let (major, minor) = dev.split_once(':')?;
        let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
        Some(Mount {
            dev: u64::from(major) << 32 | u64::from(minor),
            kind: parts.next()?,
            point: unescape(parts.next()?),
        })
    };
    words
        .iter()
        .filter(|it| !it.is_empty())
        .map(parse)
        .collect()
}

/// Reverts the escapes of the kernel in mountpoints: `\040` is a space.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_longest_name() {
        let mounts = b"0:9 proc /proc\x008:1 ext4 /\x000:6 tmpfs /a\\040b\x000:7 ramfs /a\\040b\0";
        for (path, kind) in [
            (&b"/"[..], &b"ext4"[..]),
            (b"/proc", b"proc"),
            (b"/procx", b"ext4"),
            (b"/a b/c", b"ramfs"),
        ] {
            assert_eq!(filesystem_type(mounts, path).unwrap(), kind);
        }
        assert_eq!(filesystem_type(b"", b"/"), None);
    }
}
