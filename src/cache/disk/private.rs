//! The names of content that does not have the name of its version; pure.

use crate::cache::journal::record::Id;

/// A file in `content/` that does not have the name of its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Private {
    pub(crate) id: Id,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Removed by the next mount.
    Temporary,
    Dirty,
    /// The content of the base version, needed to recognize a partial upload in place.
    BaseCopy,
}

impl Private {
    /// Returns the name of dirty content.
    pub(crate) fn dirty(id: Id) -> Self {
        let kind = Kind::Dirty;
        Self { id, kind }
    }

    /// Returns a name that the next mount removes.
    pub(crate) fn temporary(id: Id) -> Self {
        let kind = Kind::Temporary;
        Self { id, kind }
    }

    /// Returns the name of the base copy of dirty content.
    pub(crate) fn base_copy(id: Id) -> Self {
        let kind = Kind::BaseCopy;
        Self { id, kind }
    }

    pub(crate) fn name(self) -> String {
        let letter = match self.kind {
            Kind::Temporary => 't',
            Kind::Dirty => 'd',
            Kind::BaseCopy => 'o',
        };
        format!("{letter}-{}", self.id)
    }
}
