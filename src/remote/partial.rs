//! Tells a partial upload of ours on the host from a change by others.
//!
//! A sink overwrites the file from the start and truncates it at the end: `scp -t` of OpenSSH opens
//! it without `O_TRUNC`, other sinks with it. A partial upload therefore consists of a prefix of
//! the new content, followed by the rest of the old content or by nothing. Anything else is a
//! change by others. Every byte is compared, because size and times of a partial upload prove
//! nothing.

use std::io;

use sha2::Digest as _;
use sha2::Sha256;

use crate::path::RemotePath;
use crate::remote::Content;
use crate::remote::Expect;
use crate::remote::Placement;
use crate::remote::Receiver;
use crate::remote::Remote;
use crate::remote::Result;
use crate::remote::UploadSpec;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::stat::Version;

/// The state of the host's file after an upload that failed or has an unknown outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Part of the new content, or the unchanged old content.
    Part {
        /// The length of the file, if it is a prefix of the new content; `None` if it ends with old
        /// content.
        prefix: Option<u64>,
    },
    /// A change by others.
    Foreign,
    /// The expected version, as far as its attributes tell.
    Expected,
}

/// Finds out what the file on the host, whose attributes are `stat`, is after an upload of
/// `content` by `spec` that failed or has an unknown outcome. Fetches the file if its attributes do
/// not decide that.
///
/// Updates the spec for the next upload. If the file is a partial upload, the spec expects this
/// version, so that it may be replaced; an append continues after the bytes that arrived. If it is
/// a change by others with the attributes of the expected version, the spec expects no file, so
/// that the next upload is a conflict.
///
/// `was_in_place`: the upload is known to have been in place, whatever the spec says (there was no
/// room for a temporary file, for example).
///
/// # Errors
/// The file could not be fetched; the spec is unchanged.
pub(crate) fn resolve<R: Remote + ?Sized>(
    remote: &R,
    path: &RemotePath,
    stat: &Stat,
    content: &dyn Content,
    spec: &mut UploadSpec,
    was_in_place: bool,
) -> Result<Found> {
    let here = stat.version();
    let mut looks_expected = false;
    match &spec.expect {
        Expect::Anything => return Ok(Found::Expected),
        Expect::Absent => {}
        Expect::Version(expected) => {
            // An upload in place keeps the inode; another inode is a change by others.
            if expected.id.zip(here.id).is_some_and(|(a, b)| a != b) {
                return Ok(Found::Foreign);
            }
            looks_expected = expected.same_content(&here);
        }
    }
    if looks_expected && !is_coarse(&here) {
        return Ok(Found::Expected);
    }
    let is_in_place =
        was_in_place || spec.placement != Placement::Replace || remote.facts().uploads_in_place;
    // With atomic replace, an empty file is no evidence of a partial upload.
    let is_no_evidence = here.size == 0 && !is_in_place;
    let old = content.old();
    let max_size = spec.size.max(old.map_or(0, |(_, size)| size));
    if stat.kind != FileKind::File || is_no_evidence || here.size > max_size {
        return Ok(Found::Foreign);
    }
    let mut comparing = Comparing {
        new: content,
        old,
        size: 0,
        at: 0,
        is_old: false,
        is_foreign: false,
    };
    match remote.fetch(path, Some(&here), &mut comparing) {
        _ if comparing.is_foreign && looks_expected && comparing.old.is_none() => {
            Ok(Found::Expected)
        }
        Ok(fetched) if fetched.is_stable && !comparing.is_foreign => {
            log::info!("{path} on the host is a partial upload; it is uploaded again");
            let size = fetched.stat.size;
            let prefix = (!comparing.is_old).then_some(size);
            spec.expect = Expect::Version(fetched.stat.version());
            spec.appends_to = spec.appends_to.and(prefix).filter(|&n| n > 0);
            Ok(Found::Part { prefix })
        }
        Err(error) if !comparing.is_foreign => Err(error),
        _ => {
            if looks_expected {
                spec.expect = Expect::Absent;
            }
            Ok(Found::Foreign)
        }
    }
}

/// Returns whether the host has the content of an upload of unknown outcome.
///
/// Equal size and an mtime in microseconds prove it. An mtime in whole seconds does not: others may
/// have written as many bytes within that second. Then the content is fetched and compared.
pub(crate) fn is_uploaded<R: Remote + ?Sized>(
    remote: &R,
    path: &RemotePath,
    stat: &Stat,
    content: &dyn Content,
    spec: &UploadSpec,
) -> Result<bool> {
    if !spec.has_content(stat) {
        return Ok(false);
    }
    Ok(stat.mtime.nanos != 0 || is_beginning(remote, path, stat, content)?)
}

/// Fetches a file and returns whether it is a prefix of the content. False if the host refuses to
/// send it.
///
/// # Errors
/// The connection failed.
pub(crate) fn is_beginning<R: Remote + ?Sized>(
    remote: &R,
    path: &RemotePath,
    stat: &Stat,
    content: &dyn Content,
) -> Result<bool> {
    let mut comparing = Comparing {
        new: content,
        old: None,
        size: 0,
        at: 0,
        is_old: false,
        is_foreign: false,
    };
    match remote.fetch(path, Some(&stat.version()), &mut comparing) {
        _ if comparing.is_foreign => Ok(false),
        Ok(fetched) => Ok(fetched.is_stable && !comparing.is_old),
        Err(error) if error.is_connection_loss() => Err(error),
        // A file that cannot be read proves nothing.
        Err(_) => Ok(false),
    }
}

/// A SHA-256 digest of content.
pub(crate) type Digest = [u8; 32];

/// Fetches a file and returns its digest; `None` if it changed meanwhile or the host refuses to
/// send it.
///
/// # Errors
/// The connection failed.
pub(crate) fn digest_there<R: Remote + ?Sized>(
    remote: &R,
    path: &RemotePath,
    stat: &Stat,
) -> Result<Option<Digest>> {
    let mut hashing = Hashing(Sha256::new());
    let fetched = match remote.fetch(path, Some(&stat.version()), &mut hashing) {
        Ok(fetched) => fetched,
        Err(error) if error.is_connection_loss() => return Err(error),
        // A file that cannot be read proves nothing.
        Err(_) => return Ok(None),
    };
    let digest = hashing.0.finalize().into();
    Ok(fetched.is_stable.then_some(digest))
}

struct Hashing(Sha256);

impl Receiver for Hashing {
    fn begin(&mut self, _size: u64) -> io::Result<()> {
        self.0.reset();
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.0.update(data);
        Ok(())
    }
}

/// Returns the digest of the first `size` bytes of content; uses constant memory.
pub(crate) fn digest_here(content: &dyn Content, size: u64) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 16];
    let mut at = 0;
    while at < size {
        let left = usize::try_from(size - at).unwrap_or(usize::MAX);
        let len = left.min(buf.len());
        let n = content.read_at(buf.get_mut(..len).unwrap_or_default(), at)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hash.update(buf.get(..n).unwrap_or_default());
        at += n as u64;
    }
    Ok(hash.finalize().into())
}

/// Returns whether times are in whole seconds, so that two changes within one second look alike.
fn is_coarse(version: &Version) -> bool {
    version.mtime.nanos == 0 && version.ctime.is_none_or(|ctime| ctime.nanos == 0)
}

/// Compares incoming content with the new content and, from the first difference on, with the old.
struct Comparing<'a> {
    new: &'a dyn Content,
    old: Option<(&'a dyn Content, u64)>,
    size: u64,
    at: u64,
    is_old: bool,
    is_foreign: bool,
}

impl Comparing<'_> {
    /// Compares the next bytes; returns how many of them are equal.
    fn compare(&mut self, data: &[u8]) -> io::Result<usize> {
        let content = match (self.is_old, self.old) {
            (false, _) => self.new,
            // Old content can only follow if the file still has the old size.
            (true, Some((old, size))) if size == self.size => old,
            (true, _) => return Ok(0),
        };
        let mut buf = [0; 8192];
        let len = data.len().min(buf.len());
        let n = content.read_at(buf.get_mut(..len).unwrap_or_default(), self.at)?;
        let right = buf.iter().zip(data).take(n).take_while(|(a, b)| a == b);
        Ok(right.count())
    }
}

impl Receiver for Comparing<'_> {
    fn begin(&mut self, size: u64) -> io::Result<()> {
        (self.size, self.at, self.is_old, self.is_foreign) = (size, 0, false, false);
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> io::Result<()> {
        let mut data = data;
        while !data.is_empty() {
            match self.compare(data)? {
                0 if self.is_old => {
                    self.is_foreign = true;
                    return Err(io::Error::other("the file was changed on the host"));
                }
                0 => self.is_old = true,
                n => {
                    self.at += n as u64;
                    data = data.get(n..).unwrap_or_default();
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes<'a>(&'a [u8]);

    impl Content for Bytes<'_> {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let rest = &self.0[self.0.len().min(usize::try_from(offset).unwrap())..];
            // Short reads, as with a real file.
            let n = rest.len().min(buf.len()).min(3);
            buf[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        }
    }

    fn is_ours(new: &[u8], old: Option<&[u8]>, there: &[u8]) -> bool {
        let base = old.map(Bytes);
        let old = base.as_ref().zip(old);
        let mut comparing = Comparing {
            new: &Bytes(new),
            old: old.map(|(base, bytes)| (base as &dyn Content, bytes.len() as u64)),
            size: 0,
            at: 0,
            is_old: false,
            is_foreign: false,
        };
        comparing.begin(there.len() as u64).unwrap();
        let compared = there.chunks(5).try_for_each(|data| comparing.data(data));
        assert_eq!(compared.is_err(), comparing.is_foreign);
        compared.is_ok()
    }

    #[test]
    fn partial_upload_is_recognised_with_or_without_old_content() {
        let (new, old) = (&b"new content, and more"[..], &b"old content"[..]);
        for n in 0..=new.len() {
            assert!(is_ours(new, None, &new[..n]), "{n}");
            assert!(is_ours(new, Some(old), &new[..n]), "{n}");
            let both = [&new[..n], old.get(n..).unwrap_or_default()].concat();
            assert!(is_ours(new, Some(old), &both), "{n}");
            // The old content is not known.
            let is_prefix = new.starts_with(&both);
            assert_eq!(is_ours(new, None, &both), is_prefix, "{n}");
        }
        // The new content is shorter, and the file has not been truncated yet.
        assert!(is_ours(b"new", Some(old), b"new content"));
        assert!(is_ours(b"", Some(old), old));
    }

    #[test]
    fn change_by_others_is_not_a_partial_upload() {
        let (new, old) = (&b"new content"[..], &b"old content, and more"[..]);
        for there in [
            &b"theirs"[..],
            b"new content, theirs",
            b"new content, and more of theirs",
            b"new content, and mor",
            b"new content, and morE",
            b"old content",
            b"ne_ content, and more",
        ] {
            assert!(!is_ours(new, Some(old), there), "{there:?}");
            assert!(!is_ours(new, None, there), "{there:?}");
        }
    }
}
