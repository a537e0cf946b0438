//! The operations that a host supports, for display; nothing decides by them.

/// An operation, and to which extent a host supports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ability {
    pub what: Operation,
    pub extent: Extent,
}

/// Operations whose support differs between hosts, in the order of display.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    List,
    Stat,
    Read,
    Write,
    Create,
    CreateExclusively,
    DetectConflicts,
    MakeDirectory,
    Remove,
    Rename,
    Exchange,
    Symlink,
    HardLink,
    Mode,
    Owner,
    Times,
    Truncate,
    Fifo,
    Socket,
    Copy,
    FreeSpace,
    Flush,
    Pieces,
}

impl Operation {
    pub const ALL: [Self; 23] = [
        Self::List,
        Self::Stat,
        Self::Read,
        Self::Write,
        Self::Create,
        Self::CreateExclusively,
        Self::DetectConflicts,
        Self::MakeDirectory,
        Self::Remove,
        Self::Rename,
        Self::Exchange,
        Self::Symlink,
        Self::HardLink,
        Self::Mode,
        Self::Owner,
        Self::Times,
        Self::Truncate,
        Self::Fifo,
        Self::Socket,
        Self::Copy,
        Self::FreeSpace,
        Self::Flush,
        Self::Pieces,
    ];
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::List => "list a directory",
            Self::Stat => "attributes",
            Self::Read => "read a file",
            Self::Write => "upload a file",
            Self::Create => "create a file",
            Self::CreateExclusively => "create exclusively",
            Self::DetectConflicts => "detect conflicts",
            Self::MakeDirectory => "create a directory",
            Self::Remove => "remove",
            Self::Rename => "rename",
            Self::Exchange => "exchange two names",
            Self::Symlink => "symlinks",
            Self::HardLink => "hard links",
            Self::Mode => "change modes",
            Self::Owner => "change owners",
            Self::Times => "set times",
            Self::Truncate => "truncate",
            Self::Fifo => "FIFOs and devices",
            Self::Socket => "sockets",
            Self::Copy => "copy on the host",
            Self::FreeSpace => "free space",
            Self::Flush => "flush to disk",
            Self::Pieces => "upload in pieces",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    Full,
    /// Works, with this limitation.
    Limited(&'static str),
    /// Fails, for this reason.
    Impossible(&'static str),
}

/// Returns every operation with the extent that `extent` gives for it.
pub fn all(extent: impl Fn(Operation) -> Extent) -> Vec<Ability> {
    Operation::ALL
        .into_iter()
        .map(|what| Ability {
            what,
            extent: extent(what),
        })
        .collect()
}
