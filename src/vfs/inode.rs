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
    pub(super) home: Home,
    pub(super) lookups: u64,
    pub(super) dir: Option<Box<Directory>>,
    pub(super) target: Option<Box<[u8]>>,
    /// The content of a file that is open or dirty.
    pub(super) entry: Option<Arc<Entry>>,
    /// The version of the content in the kernel's page cache.
    pub(super) pages_of: Option<Version>,
    /// The ctime on the host after our last upload, and the one that was reported until then. While the
    /// host still has the first, the second is reported, so that an upload does not look like a change
    /// to git or make.
    pub(super) ctime: Option<(Time, Time)>,
}

/// A directory and a name in it.
pub(super) type Link = (Ino, Name);

/// Where an inode is found on the host.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// It has these names, at least one; a directory has one.
    Linked(Vec<Link>),
    /// It has no name: it was removed here, or never had one, as the root.
    Unlinked,
    /// Somebody else removed its last name while it was needed here. What is written to it is uploaded
    /// under that name.
    TakenAway { last: Link },
    /// Its last known name was removed here, but it has a hard link that was never seen.
    OtherLink { last: Link },
}

/// How an inode loses a name. It matters only for the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// See [`Home::Unlinked`].
    Removed,
    /// See [`Home::TakenAway`].
    TakenAway,
    /// See [`Home::OtherLink`].
    OtherLink,
}

impl Home {
    /// Returns the known names.
    pub(super) fn links(&self) -> &[Link] {
        match self {
            Self::Linked(links) => links,
            Self::Unlinked | Self::TakenAway { .. } | Self::OtherLink { .. } => &[],
        }
    }

    /// Returns the first name, or the last one that it had.
    pub(super) fn place(&self) -> Option<&Link> {
        match self {
            Self::Linked(links) => links.first(),
            Self::TakenAway { last } | Self::OtherLink { last } => Some(last),
            Self::Unlinked => None,
        }
    }

    /// Returns the name that it had, if it has none.
    pub(super) fn last(&self) -> Option<&Link> {
        match self {
            Self::TakenAway { last } | Self::OtherLink { last } => Some(last),
            Self::Linked(_) | Self::Unlinked => None,
        }
    }

    /// Adds a name; returns the last name that it had, if it had none.
    pub(super) fn add(&mut self, link: Link) -> Option<Link> {
        match self {
            Self::Linked(links) => {
                links.push(link);
                None
            }
            _ => match std::mem::replace(self, Self::Linked(vec![link])) {
                Self::TakenAway { last } | Self::OtherLink { last } => Some(last),
                Self::Linked(_) | Self::Unlinked => None,
            },
        }
    }

    /// Removes a name; returns whether it was the last one.
    pub(super) fn remove(&mut self, link: &Link, loss: Loss) -> bool {
        let Self::Linked(links) = self else {
            return false;
        };
        let before = links.len();
        links.retain(|it| it != link);
        if !links.is_empty() || before == 0 {
            return false;
        }
        let last = link.clone();
        *self = match loss {
            Loss::Removed => Self::Unlinked,
            Loss::TakenAway => Self::TakenAway { last },
            Loss::OtherLink => Self::OtherLink { last },
        };
        true
    }
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
            home: Home::Unlinked,
            lookups: 0,
            dir,
            target: None,
            entry: None,
            pages_of: None,
            ctime: None,
        }
    }

    /// Whether what is here is newer than anything the host says.
    pub(super) fn is_ours(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.is_dirty())
    }

    /// Whether the host has no file yet.
    pub(super) fn is_new(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.is_new())
    }

    pub(super) fn links(&self) -> &[Link] {
        self.home.links()
    }

    /// See [`Home::place`].
    pub(super) fn place(&self) -> Option<&Link> {
        self.home.place()
    }

    pub(super) fn is_open(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.is_open())
    }
}
