//! The names of content that is not clean; pure.

use crate::cache::journal::record::Id;

/// A file of the cache that is not clean content of a known version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Private {
    pub(crate) id: Id,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nobody looks at it after a crash.
    Temporary,
    Dirty,
    /// The host's content before the upload: one in place may leave part of it there.
    Old,
}

impl Private {
    /// The name of content that is not on the host.
    pub(crate) fn dirty(id: Id) -> Self {
        let kind = Kind::Dirty;
        Self { id, kind }
    }

    /// A name that nobody looks at after a crash.
    pub(crate) fn temporary(id: Id) -> Self {
        let kind = Kind::Temporary;
        Self { id, kind }
    }

    /// The name of the content that dirty content is to replace.
    pub(crate) fn old(id: Id) -> Self {
        let kind = Kind::Old;
        Self { id, kind }
    }

    pub(crate) fn name(self) -> String {
        let letter = match self.kind {
            Kind::Temporary => 't',
            Kind::Dirty => 'd',
            Kind::Old => 'o',
        };
        format!("{letter}-{}", self.id)
    }
}
