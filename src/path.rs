//! Names and paths on the host: bytes, checked once, never converted lossily except for display.
//!
//! No local path is ever built from one of these.

use std::fmt;

/// The longest name, in bytes: `FUSE_NAME_MAX` of the kernel's `fuse_i.h`. A longer name would make
/// `readdir` of its directory fail or end early. No common filesystem has longer ones.
pub const MAX_NAME: usize = 1024;

/// One component of a path: not empty, not `.` or `..`, without `/` and NUL, not too long.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<[u8]>);

/// Why bytes are not a valid [`Name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    #[error("the name is empty")]
    Empty,
    #[error("the name is `.` or `..`")]
    Dots,
    #[error("the name has a slash or a NUL byte")]
    Separator,
    #[error("the name is longer than {MAX_NAME} bytes")]
    TooLong,
}

impl Name {
    /// Checks `bytes` and copies them into a name.
    ///
    /// # Errors
    /// The bytes break a rule of [`Name`]; the error says which.
    pub fn new(bytes: &[u8]) -> Result<Self, BadName> {
        if bytes.is_empty() {
            Err(BadName::Empty)
        } else if bytes == b"." || bytes == b".." {
            Err(BadName::Dots)
        } else if bytes.iter().any(|&b| b == b'/' || b == 0) {
            Err(BadName::Separator)
        } else if bytes.len() > MAX_NAME {
            Err(BadName::TooLong)
        } else {
            Ok(Self(bytes.into()))
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::borrow::Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// Formats the name for log lines and messages, as [`Escaped`] does.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(&self.0, f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A path below the remote root; the root itself is the empty path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RemotePath(Vec<u8>);

impl RemotePath {
    /// Returns the remote root itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// Returns the path of `name` in the directory `self`.
    pub fn join(&self, name: &Name) -> Self {
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.0.len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(&name.0);
        Self(bytes)
    }

    /// Returns the parent directory; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let cut = memchr::memrchr(b'/', &self.0).unwrap_or(0);
        Some(Self(self.0.get(..cut).unwrap_or_default().to_vec()))
    }

    /// Returns the last component; `None` for the root.
    pub fn name(&self) -> Option<Name> {
        let last = self.0.rsplit(|&b| b == b'/').next()?;
        Name::new(last).ok()
    }

    /// Returns the number of components; 0 for the root.
    pub fn depth(&self) -> usize {
        self.components().count()
    }

    /// Returns the new path after a rename of `from` to `to`; `None` if `from` is neither this path
    /// nor one of its parents.
    pub fn after_rename(&self, from: &Self, to: &Self) -> Option<Self> {
        let rest = self.0.strip_prefix(from.0.as_slice())?;
        let is_below = rest.is_empty() || from.is_root() || rest.starts_with(b"/");
        is_below.then(|| Self([to.0.as_slice(), rest].concat()))
    }

    /// Iterates over the components from the root down.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|part| !part.is_empty())
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the bytes relative to the root, without a leading slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            f.write_str(".")
        } else {
            escape(&self.0, f)
        }
    }
}

impl fmt::Debug for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Formats untrusted bytes as safe text: printable UTF-8 is unchanged; other bytes and backslashes
/// are escaped as `\n`, `\t`, `\r`, `\\`, `\xHH` or `\u{H}`.
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(self.0, f)
    }
}

impl fmt::Debug for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The number of bytes that [`Excerpt`] shows: enough for a long path and an error text, and short
/// enough not to fill the log.
pub const MAX_EXCERPT: usize = 500;

/// Formats the first [`MAX_EXCERPT`] bytes of untrusted text as [`Escaped`] does, and `...` if it
/// is longer.
pub struct Excerpt<'a>(pub &'a [u8]);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..MAX_EXCERPT) {
            Some(start) if start.len() < self.0.len() => {
                escape(start, f)?;
                f.write_str("...")
            }
            _ => escape(self.0, f),
        }
    }
}

impl fmt::Debug for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Formats text that its sender should have escaped already: as [`Escaped`], but backslashes are
/// unchanged, so that nothing is escaped twice.
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| escape_char(c, f))
    }
}

impl fmt::Debug for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

fn escape_char(c: char, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match c {
        '\n' => f.write_str("\\n"),
        '\t' => f.write_str("\\t"),
        '\r' => f.write_str("\\r"),
        c if c.is_ascii_control() => write!(f, "\\x{:02x}", u32::from(c)),
        // C1 controls, direction overrides and other invisible characters can make two different
        // names look equal.
        c if c.is_control() || is_deceptive(c) => write!(f, "\\u{{{:x}}}", u32::from(c)),
        c => write!(f, "{c}"),
    }
}

fn escape(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                c => escape_char(c, f)?,
            }
        }
        for byte in chunk.invalid() {
            write!(f, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

fn is_deceptive(c: char) -> bool {
    matches!(u32::from(c), 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x2069 | 0xfeff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_any_bytes_but_slash_nul_and_dots() {
        for good in [
            &b"a"[..],
            b"-rf",
            b"\n",
            b"\xff",
            b"...",
            b"$(touch x)",
            b" ",
        ] {
            assert_eq!(Name::new(good).unwrap().as_bytes(), good);
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0"] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        assert!(Name::new(&[b'x'; MAX_NAME]).is_ok());
        assert_eq!(Name::new(&[b'x'; MAX_NAME + 1]), Err(BadName::TooLong));
    }

    #[test]
    fn join_and_parent_are_inverse() {
        let a = RemotePath::root().join(&Name::new(b"a").unwrap());
        let ab = a.join(&Name::new(b"b c").unwrap());
        assert_eq!(ab.as_bytes(), b"a/b c");
        assert_eq!(ab.parent(), Some(a.clone()));
        assert_eq!(a.parent(), Some(RemotePath::root()));
        assert_eq!(RemotePath::root().parent(), None);
        assert_eq!(ab.name().unwrap().as_bytes(), b"b c");
        assert_eq!(RemotePath::root().name(), None);
        assert_eq!((ab.depth(), RemotePath::root().depth()), (2, 0));
    }

    #[test]
    fn a_rename_moves_what_is_below() {
        let path = |bytes: &[u8]| {
            let parts = bytes.split(|&b| b == b'/');
            parts.fold(RemotePath::root(), |path, part| {
                path.join(&Name::new(part).unwrap())
            })
        };
        let renamed = |at: &[u8]| path(at).after_rename(&path(b"a/b"), &path(b"x"));
        assert_eq!(renamed(b"a/b"), Some(path(b"x")));
        assert_eq!(renamed(b"a/b/c/d"), Some(path(b"x/c/d")));
        assert_eq!(renamed(b"a/bc"), None);
        assert_eq!(renamed(b"a"), None);
    }

    #[test]
    fn what_is_shown_cannot_move_a_cursor_or_forge_a_line() {
        let shown = Escaped(b"a\nb\x1b[2Jc\xff\\\xe2\x80\xae\xc2\x9b").to_string();
        assert_eq!(shown, "a\\nb\\x1b[2Jc\\xff\\\\\\u{202e}\\u{9b}");
        assert_eq!(Escaped(b"na\xc3\xafve").to_string(), "na\u{ef}ve");
    }

    #[test]
    fn what_was_escaped_elsewhere_is_escaped_once() {
        let shown = Printable("a\\nb\x1b]0;c\n\u{9b}").to_string();
        assert_eq!(shown, "a\\nb\\x1b]0;c\\n\\u{9b}");
    }

    #[test]
    fn a_foreign_text_is_shown_up_to_a_length() {
        assert_eq!(Excerpt(b"a\x1bb").to_string(), "a\\x1bb");
        let long = vec![b'x'; MAX_EXCERPT];
        assert_eq!(Excerpt(&long).to_string().len(), MAX_EXCERPT);
        let longer = Excerpt(&[&long[..], b"\n"].concat()).to_string();
        assert_eq!(longer.strip_suffix("...").unwrap().len(), MAX_EXCERPT);
    }
}
