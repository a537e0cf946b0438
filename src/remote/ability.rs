//! What a host, in its dialect, can do for a filesystem: for people, not for decisions.

/// An operation and how far a host can do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ability {
    pub what: Operation,
    pub extent: Extent,
}

/// Operations that not every host can do alike, in the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    List,
    Stat,
    Read,
    Write,
    Create,
    CreateExclusively,
    KeepBoth,
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
        Self::KeepBoth,
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
            Self::KeepBoth => "notice and keep conflicts",
            Self::MakeDirectory => "make a directory",
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
            Self::Flush => "flush to its disk",
            Self::Pieces => "large files side by side",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    Full,
    /// It works, but for this.
    Limited(&'static str),
    /// It fails, for this reason.
    Impossible(&'static str),
}

/// Puts together what `extent` says of each operation.
pub fn all(extent: impl Fn(Operation) -> Extent) -> Vec<Ability> {
    Operation::ALL
        .into_iter()
        .map(|what| Ability {
            what,
            extent: extent(what),
        })
        .collect()
}
