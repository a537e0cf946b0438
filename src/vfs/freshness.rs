//! How old something is that the host has told.

use crate::clock::Tick;

/// Whether knowledge of the host still counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    /// It was changed here and is not uploaded yet: nothing that the host says is newer.
    Ours,
    /// The host was asked at this moment.
    Asked(Tick),
    /// The host must be asked again: what it was asked for before this moment may be outdated.
    Stale(Tick),
}

impl Freshness {
    /// Returns whether the answer to a question of `at` replaces it.
    pub(super) fn gives_way_to(self, at: Tick) -> bool {
        match self {
            Self::Ours => false,
            Self::Asked(since) | Self::Stale(since) => since <= at,
        }
    }

    /// Returns what is known of two facts together.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Ours, both) | (both, Self::Ours) => both,
            (Self::Asked(a), Self::Asked(b)) => Self::Asked(a.min(b)),
            (Self::Stale(a), Self::Stale(b)) => Self::Stale(a.max(b)),
            (Self::Stale(since), _) | (_, Self::Stale(since)) => Self::Stale(since),
        }
    }

    /// Invalidates it: answers to questions before `at` are outdated.
    pub(super) fn invalidate(&mut self, at: Tick) {
        *self = match *self {
            Self::Asked(since) | Self::Stale(since) => Self::Stale(since.max(at)),
            Self::Ours => Self::Stale(at),
        };
    }

    /// Says that it was certainly true at `at`.
    pub(super) fn confirm(&mut self, at: Tick) {
        *self = match *self {
            Self::Asked(since) | Self::Stale(since) => Self::Asked(since.max(at)),
            Self::Ours => Self::Ours,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_answer_from_before_an_invalidation_does_not_count() {
        let [one, two, three] = [1, 2, 3].map(Duration::from_secs);
        let mut freshness = Freshness::Asked(one);
        assert!(freshness.gives_way_to(one));
        freshness.invalidate(two);
        assert!(!freshness.gives_way_to(one));
        assert!(freshness.gives_way_to(two));
        assert_eq!(freshness.and(Freshness::Asked(three)), freshness);
        assert_eq!(freshness.and(Freshness::Ours), freshness);
        freshness.confirm(three);
        assert_eq!(freshness, Freshness::Asked(three));
        assert!(!Freshness::Ours.gives_way_to(three));
    }
}
