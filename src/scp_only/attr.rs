//! Attributes are set where SCP carries them along: with a directory. Those of a file go with its
//! content, and whoever has that uploads it: what is cut while it is uploaded must be somewhere else.

use crate::path::RemotePath;
use crate::remote::AttrChange;
use crate::remote::NewTime;
use crate::remote::Owner;
use crate::remote::Result;
use crate::scp::ahead::MAX_AHEAD;
use crate::scp_only::NO_WORD;
use crate::scp_only::ScpOnly;
use crate::scp_only::command::Options;
use crate::scp_only::receive::Header;
use crate::scp_only::send::Sent;
use crate::scp_only::write::refused;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::stat::Time;

/// The largest file that may be uploaded anew to set its mode or times.
pub(super) const MAX_STORED_ANEW: u64 = MAX_AHEAD;

impl ScpOnly {
    /// [`crate::remote::Remote::set_attr`]
    pub(super) fn change_attr(&self, path: &RemotePath, change: &AttrChange) -> Result<Stat> {
        const ACT: &str = "change";
        const TRUNCATE: &str = "the host has nothing but scp, which cannot cut a file";
        const LARGE: &str = "scp sets modes and times only with the whole content, and there is \
                             more than 1 MiB of it";
        const WITH_CONTENT: &str = "scp sets modes and times of a file only with its content";
        let about = Self::about(ACT, path);
        if change.size.is_some() {
            return Err(Self::unsupported(ACT, path, TRUNCATE));
        }
        // The owner that everything is shown with may be set again.
        self.check_owner(
            ACT,
            path,
            Some(Owner {
                uid: change.uid.unwrap_or(self.facts.uid),
                gid: change.gid.unwrap_or(self.facts.gid),
            }),
        )?;
        let stat = self.look(ACT, path)?;
        let at = |new: Option<NewTime>, old: Time| match new {
            None => old,
            // Near enough to the host's own, which nobody can ask for.
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
            return Err(Self::unsupported(ACT, path, NO_WORD));
        }
        if stat.kind == FileKind::Directory {
            let times = sets_times.then_some((mtime, atime));
            match self.send_dir(&quirks, about, mode, times)? {
                Sent::Done => {}
                Sent::Refused(text) | Sent::Broken(text) => return Err(refused(about, &text)),
            }
            let header = Header {
                kind: FileKind::Directory,
                mode,
                size: 0,
                mtime,
                atime,
            };
            return match self.known_after(&quirks, header) {
                Some(stat) => Ok(stat),
                None => self.look(ACT, path),
            };
        }
        let why = if stat.size > MAX_STORED_ANEW {
            LARGE
        } else {
            WITH_CONTENT
        };
        Err(Self::unsupported(ACT, path, why))
    }
}
