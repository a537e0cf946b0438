//! Attributes are set where SCP carries them along: with a directory, or with a whole content.

use std::io;

use crate::path::RemotePath;
use crate::remote::AttrChange;
use crate::remote::Content;
use crate::remote::Durability;
use crate::remote::Error;
use crate::remote::Expect;
use crate::remote::NewTime;
use crate::remote::Owner;
use crate::remote::Placement;
use crate::remote::Receiver;
use crate::remote::Result;
use crate::remote::StorePlan;
use crate::remote::scp_only::NO_WORD;
use crate::remote::scp_only::ScpOnly;
use crate::remote::scp_only::command::Options;
use crate::remote::scp_only::is_same;
use crate::remote::scp_only::receive::Fetch;
use crate::remote::scp_only::receive::Header;
use crate::remote::scp_only::send::Pace;
use crate::remote::scp_only::send::Sent;
use crate::remote::scp_only::write::refused;
use crate::remote::transfer::MAX_AHEAD;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::stat::Time;

/// The largest file whose mode or times can be set, because that means to store it anew.
const MAX_STORED_ANEW: u64 = MAX_AHEAD;

impl ScpOnly {
    /// [`crate::remote::Remote::set_attr`]
    pub(super) fn change_attr(&self, path: &RemotePath, change: &AttrChange) -> Result<Stat> {
        const ACT: &str = "change";
        const TRUNCATE: &str = "the host has nothing but scp, which cannot cut a file";
        const LARGE: &str = "scp sets modes and times only with the whole content, and there is \
                             more than 1 MiB of it";
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
        if stat.size > MAX_STORED_ANEW {
            return Err(Self::unsupported(ACT, path, LARGE));
        }
        let mut content = Bytes::new();
        let fetched = match self.fetch_once(about, &mut content)? {
            Fetch::Complete(header) => self.stat_of(header),
            Fetch::Refused(text) => return Err(refused(about, &text)),
        };
        if !is_same(&stat.version(), &fetched) {
            return Err(Error::Conflict {
                act: ACT,
                path: path.clone(),
            });
        }
        let plan = StorePlan {
            size: content.0.len() as u64,
            mode,
            mtime,
            atime,
            owner: None,
            expect: Expect::Anything,
            placement: Placement::Direct,
            durability: Durability::Lazy,
            keep_as: None,
            tag: 0,
        };
        match self.put(path, &content, &plan, Pace::AtOnce)? {
            Some(stat) => Ok(stat),
            None => self.look(ACT, path),
        }
    }
}

/// Content in memory.
pub(super) struct Bytes(Vec<u8>);

impl Bytes {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }
}

impl Content for Bytes {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.0.get(start..).unwrap_or_default();
        let n = buf.len().min(rest.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        Ok(n)
    }
}

impl Receiver for Bytes {
    fn begin(&mut self, size: u64) -> io::Result<()> {
        if size > MAX_STORED_ANEW {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.clear();
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }
}
