//! Recognises what an upload in place left on the host when it broke off.
//!
//! A sink writes over the file from its start and cuts it at the end: `scp -t` of OpenSSH opens the
//! file without `O_TRUNC`, that of others with it. So what is there is part of the new content,
//! followed by the rest of the old one or by nothing. Anything else is somebody's change. Every
//! byte is compared, because size and times of half an upload say nothing.

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

/// The state of the host's file after an upload broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Part of it, or of what was there before.
    Part {
        /// How many bytes at the beginning of the new content the file consists of; `None` if it
        /// ends with the old content.
        prefix: Option<u64>,
    },
    /// Somebody's change.
    Foreign,
    /// The expected version, as far as attributes tell.
    Expected,
}

/// Tells what a file on the host, whose attributes are `stat`, is after an upload of `content` by
/// `plan` broke off; makes the plan expect that if it is part of the upload, so that a next one may
/// replace it, and nothing if it is somebody's change that attributes do not show. An append that
/// broke off goes on behind what is there.
///
/// `was_in_place` says that an upload is known to have written into the file, whatever the plan
/// says: where there was no room for a temporary file, for one.
pub(crate) fn settle<R: Remote + ?Sized>(
    remote: &R,
    path: &RemotePath,
    stat: &Stat,
    content: &dyn Content,
    plan: &mut UploadSpec,
    was_in_place: bool,
) -> Result<Found> {
    let here = stat.version();
    let mut seems_same = false;
    match &plan.expect {
        Expect::Anything => return Ok(Found::Expected),
        Expect::Absent => {}
        Expect::Version(expected) => {
            // An upload in place changes the file that was expected, and makes no other.
            if expected.id.zip(here.id).is_some_and(|(a, b)| a != b) {
                return Ok(Found::Foreign);
            }
            seems_same = expected.same_content(&here);
        }
    }
    if seems_same && !is_coarse(&here) {
        return Ok(Found::Expected);
    }
    let is_in_place =
        was_in_place || plan.placement != Placement::Replace || remote.facts().uploads_in_place;
    // Where a file is replaced as a rule, one that was emptied says too little.
    let says_too_little = here.size == 0 && !is_in_place;
    let old = content.old();
    let most = plan.size.max(old.map_or(0, |(_, size)| size));
    if stat.kind != FileKind::File || says_too_little || here.size > most {
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
        _ if comparing.is_foreign && seems_same && comparing.old.is_none() => Ok(Found::Expected),
        Ok(fetched) if fetched.is_stable && !comparing.is_foreign => {
            log::info!("{path} on the host is part of an upload that broke off; it goes up again");
            let size = fetched.stat.size;
            let prefix = (!comparing.is_old).then_some(size);
            plan.expect = Expect::Version(fetched.stat.version());
            plan.appends_to = plan.appends_to.and(prefix).filter(|&n| n > 0);
            Ok(Found::Part { prefix })
        }
        Err(error) if !comparing.is_foreign => Err(error),
        _ => {
            if seems_same {
                plan.expect = Expect::Absent;
            }
            Ok(Found::Foreign)
        }
    }
}

/// Returns whether the host has the content of an upload whose end nobody heard.
///
/// A time that an upload has set to the microsecond is a receipt. One in whole seconds, which is all
/// that some hosts set or tell, is none: somebody else may have written as many bytes in the same
/// second. Then the content is read.
pub(crate) fn is_uploaded<R: Remote + ?Sized>(
    remote: &R,
    path: &RemotePath,
    stat: &Stat,
    content: &dyn Content,
    plan: &UploadSpec,
) -> Result<bool> {
    if !plan.has_content(stat) {
        return Ok(false);
    }
    Ok(stat.mtime.nanos != 0 || is_beginning(remote, path, stat, content)?)
}

/// Returns whether a file on the host consists of the first bytes of the content. Reads it.
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
        // What cannot be read proves nothing.
        Err(_) => Ok(false),
    }
}

/// A SHA-256 of content.
pub(crate) type Digest = [u8; 32];

/// Returns the digest of a file on the host; `None` if it changed while it was read, or cannot be.
pub(crate) fn digest_there<R: Remote + ?Sized>(
    remote: &R,
    path: &RemotePath,
    stat: &Stat,
) -> Result<Option<Digest>> {
    let mut hashing = Hashing(Sha256::new());
    let fetched = match remote.fetch(path, Some(&stat.version()), &mut hashing) {
        Ok(fetched) => fetched,
        Err(error) if error.is_connection_loss() => return Err(error),
        // What cannot be read proves nothing.
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

/// Returns the digest of the first `size` bytes of content, in memory of a constant size.
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

/// Whether a change within the second in which the file was last changed does not show.
fn is_coarse(version: &Version) -> bool {
    version.mtime.nanos == 0 && version.ctime.is_none_or(|ctime| ctime.nanos == 0)
}

/// Compares what arrives with the new content, and from the first difference on with the old one.
struct Comparing<'a> {
    new: &'a dyn Content,
    old: Option<(&'a dyn Content, u64)>,
    size: u64,
    at: u64,
    is_old: bool,
    is_foreign: bool,
}

impl Comparing<'_> {
    /// Compares the next bytes; returns how many of them are right.
    fn compare(&mut self, data: &[u8]) -> io::Result<usize> {
        let content = match (self.is_old, self.old) {
            (false, _) => self.new,
            // The rest of the old content ends where that ended.
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
                    return Err(io::Error::other("somebody else has changed the file"));
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
            // Fewer bytes than are asked for, as a file may give.
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
    fn part_of_the_new_content_and_the_rest_of_the_old_one_are_ours() {
        let (new, old) = (&b"new content, and more"[..], &b"old content"[..]);
        for n in 0..=new.len() {
            assert!(is_ours(new, None, &new[..n]), "{n}");
            assert!(is_ours(new, Some(old), &new[..n]), "{n}");
            let both = [&new[..n], old.get(n..).unwrap_or_default()].concat();
            assert!(is_ours(new, Some(old), &both), "{n}");
            // The rest of the old content is not known.
            let is_prefix = new.starts_with(&both);
            assert_eq!(is_ours(new, None, &both), is_prefix, "{n}");
        }
        // The new content is shorter, and was not cut yet.
        assert!(is_ours(b"new", Some(old), b"new content"));
        assert!(is_ours(b"", Some(old), old));
    }

    #[test]
    fn anything_else_is_not_ours() {
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
