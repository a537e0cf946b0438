//! Parses the list of mounts in `/proc/self/mountinfo`, see `proc_pid_mountinfo(5)`.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::path::PathBuf;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountLine {
    /// The number of the mount and of its filesystem's device, `ID/MAJOR:MINOR`. The kernel may
    /// reuse the mount number after the unmount, and the device number after the daemon has ended.
    pub id: String,
    pub path: PathBuf,
    /// For example `fuse.scpfs`.
    pub fstype: String,
    /// The source field: `user@host:directory`, or the value of `fsname=`.
    pub source: String,
    /// The uid of the user who mounted: `user_id=` of fuse(4).
    pub owner: Option<u32>,
}

/// The kernel's list of the mounts that this process can see.
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Returns all mounts that this process can see, in the order in which they were made.
///
/// # Errors
/// The list cannot be read, for example for lack of a free descriptor. The caller must not take
/// that for an empty list.
pub fn mounts() -> io::Result<Vec<MountLine>> {
    listed_in(Path::new(MOUNTINFO))
}

fn listed_in(file: &Path) -> io::Result<Vec<MountLine>> {
    let text = fs::read(file)?;
    Ok(text.split(|&b| b == b'\n').filter_map(parse).collect())
}

/// Returns the topmost mount on `path`; `None` if nothing is mounted there.
///
/// # Errors
/// See [`mounts`].
pub fn topmost(path: &Path) -> io::Result<Option<MountLine>> {
    Ok(mounts()?.into_iter().rfind(|mount| mount.path == path))
}

/// Returns the mount with this id and its current path, which changes when a directory above it is
/// renamed; `None` if there is no such mount.
///
/// # Errors
/// See [`mounts`].
pub fn by_id(id: &str) -> io::Result<Option<MountLine>> {
    Ok(mounts()?.into_iter().find(|mount| mount.id == id))
}

fn parse(line: &[u8]) -> Option<MountLine> {
    let text = |field: &[u8]| String::from_utf8(field.to_vec()).ok();
    let mut fields = line.split(|&b| b == b' ');
    let id = text(fields.next()?)?;
    let device = text(fields.nth(1)?)?;
    let path = unescape(fields.nth(1)?);
    let mut fields = fields.skip_while(|field| *field != b"-");
    let fstype = unescape(fields.nth(1)?);
    let source = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    let owner = fields.next().and_then(|options| {
        let mut options = options.split(|&b| b == b',');
        let value = options.find_map(|option| option.strip_prefix(b"user_id="))?;
        std::str::from_utf8(value).ok()?.parse().ok()
    });
    Some(MountLine {
        id: format!("{id}/{device}"),
        path: std::ffi::OsString::from_vec(path).into(),
        fstype: text(&fstype)?,
        source,
        owner,
    })
}

/// Decodes the octal escapes of `/proc`: space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push(byte);
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
    fn unescape_decodes_octal_escapes() {
        assert_eq!(unescape(b"/a\\040b\\134c\\x"), b"/a b\\c\\x");
    }

    /// Regression: a read error was taken for an empty list, so that a mount that still existed was
    /// reported as unmounted.
    #[test]
    fn mounts_reports_a_list_that_cannot_be_read() {
        listed_in(Path::new("/proc/self/no-such-file")).unwrap_err();
        assert_eq!(listed_in(Path::new("/dev/null")).unwrap(), []);
    }

    #[test]
    fn parse_reads_all_fields_of_a_line() {
        let line = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - fuse.scpfs h: rw,errors";
        let expected = MountLine {
            id: "36/98:0".to_owned(),
            path: "/mnt 2".into(),
            fstype: "fuse.scpfs".to_owned(),
            source: "h:".to_owned(),
            owner: None,
        };
        assert_eq!(parse(line), Some(expected.clone()));
        let line = b"36 35 98:0 / /mnt\\0402 rw - fuse.scpfs user_id=7 rw,user_id=1000,group_id=8";
        let (owner, source) = (Some(1000), "user_id=7".to_owned());
        let other = MountLine {
            owner,
            source,
            ..expected
        };
        assert_eq!(parse(line), Some(other));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 98:0 /mnt1 /mnt2 rw"), None);
    }
}
