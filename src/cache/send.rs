//! One upload, and the conflict copy if there is a conflict.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use rustix::fs::SeekFrom;

use crate::cache::Cache;
use crate::cache::conflict::ConflictPolicy;
use crate::cache::conflict::conflict_copy_name;
use crate::path::RemotePath;
use crate::remote;
use crate::remote::Expect;
use crate::remote::Outcome;
use crate::remote::Placement;
use crate::remote::Reason;
use crate::remote::UploadSpec;
use crate::remote::Uploaded;

/// How many names are tried for a conflict copy.
const MAX_NAMES: u32 = 9;

impl Cache {
    /// Uploads content. If there is a conflict and the policy is `KeepBoth`, uploads it as a
    /// conflict copy.
    ///
    /// # Errors
    /// `Conflict` under another policy, or if no name for a conflict copy was free; nothing was
    /// replaced.
    pub(super) fn send_or_conflict_copy(
        &self,
        path: &RemotePath,
        content: &FromFile<'_>,
        spec: &mut UploadSpec,
    ) -> remote::Result<Sent> {
        for n in 1..=MAX_NAMES {
            if self.conflict_policy == ConflictPolicy::KeepBoth && spec.expect != Expect::Anything {
                spec.conflict_name = conflict_copy_name(path, self.clock.wall(), n);
            }
            match self.remote.upload(path, content, spec) {
                Ok(uploaded) => {
                    let at = match (uploaded.outcome, path.parent(), &spec.conflict_name) {
                        (Outcome::ConflictCopy, Some(dir), Some(name)) => dir.join(name),
                        _ => path.clone(),
                    };
                    return Ok(Sent { at, uploaded });
                }
                Err(remote::Error::Conflict { .. }) if spec.appends_to.is_some() => {
                    // Only the new bytes were sent: a conflict copy needs the complete content.
                    spec.appends_to = None;
                }
                Err(remote::Error::Conflict { .. }) if spec.conflict_name.is_some() => {
                    // The host cannot make the conflict copy in the same request, or the name
                    // exists.
                    if let Some(sent) = self.send_conflict_copy(path, content, spec)? {
                        return Ok(sent);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(remote::Error::Conflict {
            act: "upload",
            path: path.clone(),
        })
    }

    /// Uploads content as a conflict copy; or under its own path if the file was removed on the
    /// host. Returns `None` if the name exists.
    fn send_conflict_copy(
        &self,
        path: &RemotePath,
        content: &FromFile<'_>,
        spec: &UploadSpec,
    ) -> remote::Result<Option<Sent>> {
        let (Some(dir), Some(name)) = (path.parent(), &spec.conflict_name) else {
            return Ok(None);
        };
        let is_gone = matches!(spec.expect, Expect::Version(_))
            && matches!(self.remote.stat(path),
                Err(error) if error.reason() == Some(Reason::NotFound));
        let (at, outcome) = if is_gone {
            (path.clone(), Outcome::Recreated)
        } else {
            (dir.join(name), Outcome::ConflictCopy)
        };
        let spec = UploadSpec {
            expect: Expect::Absent,
            appends_to: None,
            conflict_name: None,
            placement: match spec.placement {
                Placement::InPlace => Placement::Replace,
                other => other,
            },
            ..spec.clone()
        };
        match self.remote.upload(&at, content, &spec) {
            Ok(uploaded) => {
                let uploaded = Uploaded {
                    outcome,
                    ..uploaded
                };
                Ok(Some(Sent { at, uploaded }))
            }
            Err(remote::Error::Conflict { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A successful upload.
pub(super) struct Sent {
    /// The path of the file or of the conflict copy.
    pub(super) at: RemotePath,
    pub(super) uploaded: Uploaded,
}

impl Sent {
    pub(super) fn new(path: &RemotePath, uploaded: Uploaded) -> Self {
        Self {
            at: path.clone(),
            uploaded,
        }
    }
}

/// Content in a local file, which is not written during the upload.
pub(super) struct FromFile<'a> {
    file: &'a File,
    /// Counts the bytes that were read, for `scpfs status`.
    sent: Option<&'a AtomicU64>,
    /// The content that it replaces, and its size in bytes.
    old: Option<(Box<Self>, u64)>,
}

impl<'a> FromFile<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Self {
            file,
            sent: None,
            old: None,
        }
    }

    /// Sets the content that it replaces, if that is known.
    pub(super) fn over(self, old: Option<&'a File>) -> Self {
        let old =
            old.and_then(|file| Some((Box::new(Self::new(file)), file.metadata().ok()?.len())));
        Self { old, ..self }
    }

    /// Counts the bytes that are read from it in `sent`.
    pub(super) fn counted(self, sent: &'a AtomicU64) -> Self {
        sent.store(0, Ordering::Relaxed);
        Self {
            sent: Some(sent),
            ..self
        }
    }
}

impl remote::Content for FromFile<'_> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.file.read_at(buf, offset)?;
        if let Some(sent) = self.sent {
            if offset == 0 {
                // The first bytes are read again: this is a retry.
                sent.store(0, Ordering::Relaxed);
            }
            sent.fetch_add(n as u64, Ordering::Relaxed);
        }
        Ok(n)
    }

    fn data_after(&self, offset: u64, min_hole: u64, end: u64) -> Range<u64> {
        let seek = |to| rustix::fs::seek(self.file, to);
        let start = match seek(SeekFrom::Data(offset)) {
            Ok(start) => start.min(end),
            Err(rustix::io::Errno::NXIO) => return end..end,
            Err(_) => return offset..end,
        };
        let start = if start - offset < min_hole {
            offset
        } else {
            start
        };
        let mut at = start;
        loop {
            let Ok(hole) = seek(SeekFrom::Hole(at)) else {
                return start..end;
            };
            if hole >= end {
                return start..end;
            }
            match seek(SeekFrom::Data(hole)) {
                Ok(data) if data < end && data - hole < min_hole => at = data,
                Ok(_) | Err(rustix::io::Errno::NXIO) => return start..hole,
                Err(_) => return start..end,
            }
        }
    }

    fn old(&self) -> Option<(&dyn remote::Content, u64)> {
        let (content, size) = self.old.as_ref()?;
        Some((&**content, *size))
    }
}
