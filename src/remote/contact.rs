//! What can be said of the connections to a host without asking it.

use std::time::Duration;

/// The weight of an answer in the smoothed time is one in so many.
const SMOOTHING: u32 = 8;

/// The connections to a host at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    pub state: ContactState,
    /// How many connections are open.
    pub n_open: usize,
    /// How many there may be.
    pub max: usize,
    /// How long a short answer takes, smoothed; `None` before the first.
    pub round_trip: Option<Duration>,
    /// Why the host that answers is refused; only while no connection is open.
    pub refusal: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContactState {
    Connected,
    /// No connection is open; the next call opens one.
    Away {
        elapsed: Duration,
    },
    /// No connection is open, and one is being opened.
    Reconnecting {
        elapsed: Duration,
    },
}

/// Returns the smoothed time after one more answer took `took`.
pub(crate) fn smooth(before: Option<Duration>, took: Duration) -> Duration {
    match before {
        None => took,
        Some(before) => (before * (SMOOTHING - 1) + took) / SMOOTHING,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_answer_moves_the_time_a_little() {
        let first = smooth(None, Duration::from_millis(80));
        assert_eq!(first, Duration::from_millis(80));
        let second = smooth(Some(first), Duration::from_millis(160));
        assert_eq!(second, Duration::from_millis(90));
    }
}
