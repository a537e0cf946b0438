//! The clock as a trait, so that tests of timeouts and TTLs need no sleep.
//!
//! Only `ssh`, `mount` and `commands` create a [`SystemClock`]; all other modules take a [`Clock`].

use std::fmt;
use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::stat::Time;

/// A point in monotonic time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(Duration);

impl Tick {
    /// Earlier than every value of a clock: callers use it for "never".
    pub const ZERO: Self = Self(Duration::ZERO);

    /// Returns the time since `earlier`; zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the time until `later`; zero if that is earlier.
    pub fn until(self, later: Self) -> Duration {
        later.since(self)
    }
}

impl Add<Duration> for Tick {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

/// The first tick of a clock.
const FIRST_TICK: Tick = Tick(Duration::from_secs(1));

/// A source of the current time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Returns the monotonic time.
    fn tick(&self) -> Tick;

    /// Returns the wall-clock time, for file timestamps.
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
        reason = "only this module reads the system clock"
    )]
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl SystemClock {
    /// Returns the time since this clock was created.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Clock for SystemClock {
    fn tick(&self) -> Tick {
        FIRST_TICK + self.start.elapsed()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "only this module reads the system clock"
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

/// A clock for tests: it moves only by [`ManualClock::advance`].
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

    /// Moves the clock forward by `by`.
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
        let tick = self.tick().since(FIRST_TICK);
        let secs = i64::try_from(tick.as_secs()).unwrap_or(i64::MAX);
        Time {
            secs: secs.saturating_add(1_700_000_000),
            nanos: tick.subsec_nanos(),
        }
    }
}
