//! The state of the connections to a host, known without asking it.

use std::time::Duration;

/// A new sample has a weight of 1/8 in the smoothed round-trip time (as in RFC 6298).
const SMOOTHING: u32 = 8;

/// The state of the connections at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    pub state: ContactState,
    /// The number of open connections.
    pub n_open: usize,
    /// The maximum number of connections.
    pub max: usize,
    /// The smoothed duration of a short request; `None` before the first.
    pub round_trip: Option<Duration>,
    /// Why the host key was refused; set only while no connection is open.
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

/// Returns the smoothed duration after a new sample `took`.
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
    fn smooth_gives_a_new_sample_one_eighth() {
        let first = smooth(None, Duration::from_millis(80));
        assert_eq!(first, Duration::from_millis(80));
        let second = smooth(Some(first), Duration::from_millis(160));
        assert_eq!(second, Duration::from_millis(90));
    }
}
