//! Time as an argument: what a layer knows of the clock.
//!
//! Nothing below `mount` asks the operating system for the time by itself, so that tests of
//! timeouts and lifetimes need no sleep.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::stat::Time;

/// A point on a monotonic scale. Zero is before anything that a clock ever says: never.
pub type Tick = Duration;

/// What a clock says when it is made.
const FIRST_TICK: Tick = Duration::from_secs(1);

/// Where a layer gets its time from.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Returns the monotonic time.
    fn tick(&self) -> Tick;

    /// Returns the time of day, for time stamps of files.
    fn wall(&self) -> Time;
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the clock"
    )]
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    fn tick(&self) -> Tick {
        FIRST_TICK + self.start.elapsed()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the clock"
    )]
    fn wall(&self) -> Time {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Time {
            secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos(),
        }
    }
}

/// A clock that moves only when a test says so.
#[derive(Debug)]
pub struct ManualClock {
    nanos: AtomicU64,
}

impl ManualClock {
    pub fn new() -> Self {
        Self {
            nanos: AtomicU64::new(0),
        }
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn tick(&self) -> Tick {
        FIRST_TICK + Duration::from_nanos(self.nanos.load(Ordering::SeqCst))
    }

    fn wall(&self) -> Time {
        let tick = self.tick() - FIRST_TICK;
        let secs = i64::try_from(tick.as_secs()).unwrap_or(i64::MAX);
        Time {
            secs: secs.saturating_add(1_700_000_000),
            nanos: tick.subsec_nanos(),
        }
    }
}
