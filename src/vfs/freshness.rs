//! Whether knowledge of the host is fresh, stale or dirty; pure.

use crate::clock::Tick;

/// How current a fact about the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Changed locally and not uploaded yet: newer than any answer of the host.
    Dirty,
    /// The host was asked at this time.
    Asked(Tick),
    /// The host must be asked again. Answers to requests from before this time may be outdated.
    Stale(Tick),
}

impl Freshness {
    /// Returns whether the answer to a request made at `at` replaces it.
    pub(super) fn gives_way_to(self, at: Tick) -> bool {
        match self {
            Self::Dirty => false,
            Self::Asked(since) | Self::Stale(since) => since <= at,
        }
    }

    /// Returns the freshness of two facts together: that of the less current one.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Dirty, both) | (both, Self::Dirty) => both,
            (Self::Asked(a), Self::Asked(b)) => Self::Asked(a.min(b)),
            (Self::Stale(a), Self::Stale(b)) => Self::Stale(a.max(b)),
            (Self::Stale(since), _) | (_, Self::Stale(since)) => Self::Stale(since),
        }
    }

    /// Marks it as stale: answers to requests from before `at` are outdated.
    pub(super) fn invalidate(&mut self, at: Tick) {
        *self = match *self {
            Self::Asked(since) | Self::Stale(since) => Self::Stale(since.max(at)),
            Self::Dirty => Self::Stale(at),
        };
    }

    /// Marks it as true at `at`.
    pub(super) fn confirm(&mut self, at: Tick) {
        *self = match *self {
            Self::Asked(since) | Self::Stale(since) => Self::Asked(since.max(at)),
            Self::Dirty => Self::Dirty,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_answer_from_before_an_invalidation_does_not_count() {
        let [one, two, three] = [1, 2, 3].map(|secs| Tick::ZERO + Duration::from_secs(secs));
        let mut freshness = Freshness::Asked(one);
        assert!(freshness.gives_way_to(one));
        freshness.invalidate(two);
        assert!(!freshness.gives_way_to(one));
        assert!(freshness.gives_way_to(two));
        assert_eq!(freshness.and(Freshness::Asked(three)), freshness);
        assert_eq!(freshness.and(Freshness::Dirty), freshness);
        freshness.confirm(three);
        assert_eq!(freshness, Freshness::Asked(three));
        assert!(!Freshness::Dirty.gives_way_to(three));
    }
}
