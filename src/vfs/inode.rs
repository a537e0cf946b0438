//! Inodes and names: what is known of each.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cache::Entry;
use crate::clock::Tick;
use crate::path::Name;
use crate::remote::Listed;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::stat::Time;
use crate::stat::Version;
use crate::vfs::freshness::Freshness;

/// The kernel's number for an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    pub const ROOT: Self = Self(1);
}

#[derive(Debug)]
pub(super) struct Inode {
    pub(super) stat: Stat,
    /// Whether the mode in it was set here and the host has not heard of it.
    pub(super) is_mode_ours: bool,
    /// How old `stat` is.
    pub(super) freshness: Freshness,
    /// Its names; none once it is removed. A directory has one.
    pub(super) links: Vec<(Ino, Name)>,
    pub(super) lookups: u64,
    pub(super) dir: Option<Box<Directory>>,
    pub(super) target: Option<Box<[u8]>>,
    pub(super) open: Option<Box<Open>>,
    /// Whose content the kernel's pages hold.
    pub(super) pages_of: Option<Version>,
    /// The change time that an upload of ours left on the host, and the one that was shown before.
    /// As long as the host has the one, the other is shown: whoever looked at a file while it
    /// was being written finds it unchanged afterwards.
    pub(super) ctime: Option<(Time, Time)>,
    /// The name that somebody else took away while it was open: what is written to it must not be
    /// dropped as if we had removed it.
    pub(super) lost: Option<(Ino, Name)>,
    /// Whether that name was removed here, and the file has another that nobody here knows.
    pub(super) is_elsewhere: bool,
}

/// The content of a file that is open, or not yet uploaded.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) entry: Arc<Entry>,
    pub(super) handles: u32,
    /// Whether the host has no file yet.
    pub(super) is_born: bool,
}

#[derive(Debug, Default)]
pub(super) struct Directory {
    pub(super) names: HashMap<Name, Known>,
    /// When the listing that `names` comes from was asked for.
    pub(super) listed_at: Option<Tick>,
    /// Whether somebody lists it at this moment.
    pub(super) is_listing: bool,
    /// When a single name was last asked for instead of a listing.
    pub(super) missed_at: Option<Tick>,
    /// Whether the host refuses to list it.
    pub(super) is_unlistable: bool,
    /// Inodes that have a name in it.
    pub(super) n_inodes: u32,
}

/// What is known of a name.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) freshness: Freshness,
    pub(super) what: What,
}

impl Known {
    /// What the host said when it was asked at `at`.
    pub(super) fn asked(at: Tick, what: What) -> Self {
        let freshness = Freshness::Asked(at);
        Self { freshness, what }
    }
}

#[derive(Debug)]
pub(super) enum What {
    /// A request of ours may have changed the name: a listing of the directory does not tell that it
    /// is absent.
    Unknown,
    Absent,
    /// An inode, which knows more.
    Inode(Ino),
    /// Not yet an inode.
    Listed(Box<Listed>),
}

impl Inode {
    pub(super) fn new(stat: Stat, freshness: Freshness) -> Self {
        let dir = (stat.kind == FileKind::Directory).then(Box::default);
        Self {
            stat,
            is_mode_ours: false,
            freshness,
            links: Vec::new(),
            lookups: 0,
            dir,
            target: None,
            open: None,
            pages_of: None,
            ctime: None,
            lost: None,
            is_elsewhere: false,
        }
    }

    /// Whether what is here is newer than anything the host says.
    pub(super) fn is_ours(&self) -> bool {
        self.open
            .as_ref()
            .is_some_and(|open| open.is_born || open.entry.is_dirty())
    }

    /// Its name, or the last one that it had.
    pub(super) fn place(&self) -> Option<&(Ino, Name)> {
        self.links.first().or(self.lost.as_ref())
    }

    /// Whether somebody here needs the file although it loses this name, which is its last one.
    pub(super) fn is_needed_without(&self, parent: Ino, name: &Name) -> bool {
        let is_last = self.links.iter().all(|(p, n)| *p == parent && n == name);
        is_last && (self.is_open() || self.is_ours())
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.handles > 0)
    }
}
