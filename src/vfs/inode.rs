//! Inodes, their names, and the dentries of a directory.

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
    /// Whether `stat.mode` was set here and is not on the host yet.
    pub(super) is_mode_dirty: bool,
    /// Whether the file was created here with `O_EXCL`: the host has it, without content.
    pub(super) is_created_exclusively: bool,
    /// Whether it was created here with `O_EXCL`, and the host was not asked: its upload must create
    /// it.
    pub(super) must_be_created: bool,
    /// Whether `stat` is fresh.
    pub(super) freshness: Freshness,
    pub(super) home: Home,
    pub(super) lookups: u64,
    pub(super) dir: Option<Box<Directory>>,
    pub(super) target: Option<Box<[u8]>>,
    /// The cache entry of a file that is open or dirty.
    pub(super) entry: Option<Arc<Entry>>,
    /// The version of the content in the kernel's page cache.
    pub(super) page_cache_version: Option<Version>,
    /// The ctime on the host after our last upload, and the one that was reported until then. While
    /// the host still has the first, the second is reported, so that an upload does not look like a
    /// change to git or make.
    pub(super) ctime: Option<(Time, Time)>,
}

/// A directory and a name in it.
pub(super) type Link = (Ino, Name);

/// The names of an inode, or why it has none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// It has these names, at least one. A directory has exactly one.
    Linked(Vec<Link>),
    /// It has no name: its last name was removed here, or it never had one, as the root.
    Unlinked,
    /// Its last name was removed on the host while it was open or dirty here. Its content is
    /// uploaded under that name.
    TakenAway { last: Link },
    /// Its last known name was removed here, but `nlink` shows a hard link that was never seen
    /// here.
    OtherLink { last: Link },
}

/// How an inode loses a name. This matters only for the last name.
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

    /// Returns the first name, or the last one it had.
    pub(super) fn current_or_last_link(&self) -> Option<&Link> {
        match self {
            Self::Linked(links) => links.first(),
            Self::TakenAway { last } | Self::OtherLink { last } => Some(last),
            Self::Unlinked => None,
        }
    }

    /// Returns the last name of an inode that has none now.
    pub(super) fn last_link(&self) -> Option<&Link> {
        match self {
            Self::TakenAway { last } | Self::OtherLink { last } => Some(last),
            Self::Linked(_) | Self::Unlinked => None,
        }
    }

    /// Adds a name. If it had none, returns the last name it had.
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
    pub(super) names: HashMap<Name, Dentry>,
    /// When the last listing was requested. A name that is not in `names` is absent, as of then.
    pub(super) listed_at: Option<Tick>,
    /// Whether a thread is listing it.
    pub(super) is_listing: bool,
    /// When a missing name was last looked up by itself, instead of by a listing.
    pub(super) single_lookup_at: Option<Tick>,
    /// When this mount created the directory, or a file in it, if all its names are of this mount.
    pub(super) created_here_at: Option<Tick>,
    /// Whether it was listed ahead, so that its names are kept although the kernel does not know it.
    pub(super) is_listed_ahead: bool,
    /// Whether the host refuses to list it.
    pub(super) is_unlistable: bool,
    /// The number of inodes with a name in it, or whose last name was in it.
    pub(super) n_inodes: u32,
}

/// The state of a name in a directory, as far as it is known.
#[derive(Debug)]
pub(super) struct Dentry {
    pub(super) freshness: Freshness,
    pub(super) state: NameState,
}

impl Dentry {
    /// Returns a dentry for an answer that was requested at `at`.
    pub(super) fn asked(at: Tick, state: NameState) -> Self {
        let freshness = Freshness::Asked(at);
        Self { freshness, state }
    }
}

#[derive(Debug)]
pub(super) enum NameState {
    /// A request of this mount may have changed the name. A listing in which it is missing does not
    /// show that it is absent.
    Unknown,
    Absent,
    /// The name of this inode.
    Inode(Ino),
    /// The attributes from a listing; it has no inode yet.
    Listed(Box<Listed>),
}

impl Inode {
    pub(super) fn new(stat: Stat, freshness: Freshness) -> Self {
        let dir = (stat.kind == FileKind::Directory).then(Box::default);
        Self {
            stat,
            is_mode_dirty: false,
            is_created_exclusively: false,
            must_be_created: false,
            freshness,
            home: Home::Unlinked,
            lookups: 0,
            dir,
            target: None,
            entry: None,
            page_cache_version: None,
            ctime: None,
        }
    }

    /// Returns whether its content is dirty: newer than any answer of the host.
    pub(super) fn is_dirty(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.is_dirty())
    }

    /// Returns whether the file was created here and never uploaded.
    pub(super) fn is_new(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.is_new())
    }

    pub(super) fn links(&self) -> &[Link] {
        self.home.links()
    }

    /// See [`Home::current_or_last_link`].
    pub(super) fn current_or_last_link(&self) -> Option<&Link> {
        self.home.current_or_last_link()
    }

    pub(super) fn cloned_entry(&self) -> Option<Arc<Entry>> {
        self.entry.clone()
    }

    pub(super) fn is_open(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.is_open())
    }
}
