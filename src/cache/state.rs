//! What an entry knows of its content.

use std::fs::File;
use std::sync::Arc;

use crate::cache::Error;
use crate::cache::disk::Private;
use crate::cache::journal::record::Id;
use crate::cache::refresh::Refresh;
use crate::clock::Tick;
use crate::path::RemotePath;
use crate::remote::Expect;
use crate::remote::partial::Digest;
use crate::stat::Stat;
use crate::stat::Time;
use crate::stat::Version;

pub(super) struct State {
    pub(super) content: Content,
    /// What must be on the host for our content to replace it.
    pub(super) base: Expect,
    /// Whether our content replaces whatever else is on the host: `O_TRUNC`. Only when it is
    /// closed: what is tried again later must not replace what others uploaded meanwhile.
    pub(super) replaces: bool,
    /// How many bytes at the beginning are certainly those of the base: nothing before that offset
    /// was written.
    pub(super) n_kept: u64,
    /// Whether the host would let the login user write to the file, as it said with the content.
    pub(super) may_write: bool,
    pub(super) size: u64,
    pub(super) mtime: Time,
    pub(super) atime: Option<Time>,
    pub(super) ctime: Time,
    /// Handles that are open.
    pub(super) opens: u32,
    pub(super) is_flushing: bool,
    pub(super) journaled: Journaled,
    /// Whether the content is as it was when it was last closed.
    pub(super) is_sealed: bool,
    /// Whether an upload that writes into the host's file was begun and did not end: the host may
    /// have part of the content.
    pub(super) is_begun: bool,
    /// The host's content when this one became dirty, kept where uploads write into the file.
    pub(super) old: Option<(Id, Arc<File>)>,
    /// Contents that may have reached the host: nobody heard the end.
    pub(super) doubts: Vec<Doubt>,
    /// Counts what was done to the content.
    pub(super) n_changes: u64,
    /// Counts the conflicts, see [`Entry::epoch`].
    pub(super) epoch: u64,
    /// Renames and removals under way, during which no upload may begin.
    pub(super) holds: u32,
    /// Whether the host was asked to flush what it has to its disk.
    pub(super) is_synced: bool,
    /// Why the last upload failed.
    pub(super) failure: Option<Error>,
    /// Attributes that came with the content and that nobody has seen yet, and when they came.
    pub(super) news: Option<(Stat, Tick)>,
    pub(super) room: u64,
    /// Whether the size that the host tells says nothing of the content, as in `/proc`.
    pub(super) is_unsized: bool,
    /// Whether a newer version is on its way beside clean content.
    pub(super) refresh: Refresh,
    /// Calls for attributes that wait for a small refresh.
    pub(super) n_awaiting: u32,
    /// Counts the newer versions of which the kernel was told.
    pub(super) n_switches: u64,
    /// How new the attributes were for which the last refresh was started.
    pub(super) refreshed_at: Tick,
    /// When a read last ended before the end of the content.
    pub(super) cut_read_at: Option<Tick>,
    /// The number of content that an earlier run left, until the host has it.
    pub(super) left_as: Option<Id>,
}

/// A content that may have reached the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Doubt {
    /// Where it was sent to.
    pub(super) dir: RemotePath,
    /// Marks what the upload may have left there.
    pub(super) tag: u32,
    pub(super) size: u64,
    pub(super) mtime: Time,
    pub(super) n_changes: u64,
    /// `None` where it was not taken.
    pub(super) digest: Option<Digest>,
    /// Whether what it may have left there was removed.
    pub(super) is_withdrawn: bool,
}

/// What the journal knows of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Journaled {
    No,
    /// Somebody tells it at this moment.
    Declaring,
    As(Id),
    /// It need not know: the file has no name any more.
    Nameless,
}

pub(super) enum Content {
    Absent {
        failure: Option<Error>,
    },
    Fetching(Fetching),
    Clean {
        version: Version,
        file: Arc<File>,
        place: Place,
    },
    Dirty {
        file: Arc<File>,
        private: Private,
    },
}

pub(super) struct Fetching {
    /// The version that was asked for.
    pub(super) version: Version,
    pub(super) file: Arc<File>,
    /// How many bytes of the content are in `file`.
    pub(super) have: u64,
    /// How many there will be; `None` until the host has said so.
    pub(super) total: Option<u64>,
    /// Whether somebody was given some of it.
    pub(super) was_read: bool,
}

/// Which name clean content has on the disk.
pub(super) enum Place {
    /// The one that says its version: it can be found again after the entry is gone.
    Named,
    /// One that says nothing, because its version identifies nothing.
    Private(Private),
}

impl State {
    pub(super) fn set_base(&mut self, version: Version) {
        self.base = Expect::Version(version);
        self.replaces = false;
        self.n_kept = version.size;
        self.size = version.size;
        self.is_unsized = false;
        self.mtime = version.mtime;
        self.atime = None;
    }
}
