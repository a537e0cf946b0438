//! Sets modes and times. SCP sets them together with a directory, or with the content of a file. In
//! the second case this module refuses and the caller, which has the content, uploads the file
//! again: an upload that fails in the middle loses content that is nowhere else.

use crate::path::RemotePath;
use crate::remote::AttrChange;
use crate::remote::NewTime;
use crate::remote::Owner;
use crate::remote::Result;
use crate::scp::ahead::MAX_AHEAD;
use crate::scp_only::NOT_IN_SCP;
use crate::scp_only::ScpOnly;
use crate::scp_only::command::Options;
use crate::scp_only::receive::Header;
use crate::scp_only::send::Sent;
use crate::scp_only::write::refusal_error;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::stat::Time;

/// The largest file, in bytes, that may be uploaded again to set its mode or times.
pub(super) const MAX_REUPLOAD_SIZE: u64 = MAX_AHEAD;

impl ScpOnly {
    /// [`crate::remote::Remote::set_attr`]
    pub(super) fn change_attr(&self, path: &RemotePath, change: &AttrChange) -> Result<Stat> {
        const ACT: &str = "change";
        const TRUNCATE: &str = "the host has nothing but scp, which cannot truncate a file";
        const LARGE: &str = "scp sets modes and times only with the whole content, and there is \
                             more than 1 MiB of it";
        const WITH_CONTENT: &str = "scp sets modes and times of a file only with its content";
        let request = Self::request(ACT, path);
        if change.size.is_some() {
            return Err(Self::unsupported(ACT, path, TRUNCATE));
        }
        // Setting the owner that every file is shown with changes nothing, and succeeds.
        self.check_owner(
            ACT,
            path,
            Some(Owner {
                uid: change.uid.unwrap_or(self.facts.uid),
                gid: change.gid.unwrap_or(self.facts.gid),
            }),
        )?;
        let stat = self.stat_path(ACT, path)?;
        let at = |new: Option<NewTime>, old: Time| match new {
            None => old,
            // The local time stands for the host's, which SCP does not tell.
            Some(NewTime::Now) => self.clock.wall(),
            Some(NewTime::At(time)) => time,
        };
        let (mtime, atime) = (at(change.mtime, stat.mtime), at(change.atime, stat.atime));
        let mode = change.mode.unwrap_or(stat.mode);
        let sets_times = change.mtime.is_some() || change.atime.is_some();
        if change.mode.is_none() && !sets_times {
            return Ok(stat);
        }
        let quirks = *self.quirks.lock();
        if quirks.options == Options::Minimal {
            return Err(Self::unsupported(ACT, path, NOT_IN_SCP));
        }
        if stat.kind == FileKind::Directory {
            let times = sets_times.then_some((mtime, atime));
            match self.send_dir(&quirks, request, mode, times)? {
                Sent::Done => {}
                Sent::Refused(text) | Sent::Partial(text) => {
                    return Err(refusal_error(request, &text));
                }
            }
            let header = Header {
                kind: FileKind::Directory,
                mode,
                size: 0,
                mtime,
                atime,
            };
            return match self.stat_after_acks(&quirks, header) {
                Some(stat) => Ok(stat),
                None => self.stat_path(ACT, path),
            };
        }
        let why = if stat.size > MAX_REUPLOAD_SIZE {
            LARGE
        } else {
            WITH_CONTENT
        };
        Err(Self::unsupported(ACT, path, why))
    }
}
