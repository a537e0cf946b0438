//! A lane that is lent: it goes back when it is dropped.

use std::fmt;
use std::ops::Deref;
use std::ops::DerefMut;
use std::time::Duration;

use crate::clock::Tick;
use crate::pool::Lanes;
use crate::pool::Pooled;
use crate::pool::Purpose;
use crate::pool::SHORT_ANSWER;
use crate::pool::TRUSTED_IDLE;
use crate::remote::contact::smooth;

/// A lane on loan; goes back when dropped, to be used again unless it is broken.
pub struct Lent<L: Pooled> {
    pub(super) lane: Option<L>,
    pub(super) id: u64,
    /// The lanes that were given up, which it ends with its first request.
    pub(super) carried: Vec<u64>,
    pub(super) purpose: Purpose,
    pub(super) lanes: Lanes<L>,
}

impl<L: Pooled> Lent<L> {
    /// Takes into account how long an answer of so many bytes took: only that of a short one is a
    /// round trip.
    pub(crate) fn note_answer(&self, n_bytes: usize, took: Duration) {
        if n_bytes <= SHORT_ANSWER {
            let mut state = self.lanes.shared.state.lock();
            state.round_trip = Some(smooth(state.round_trip, took));
        }
    }

    /// Returns the time on the clock of the pool.
    pub(crate) fn tick(&self) -> Tick {
        self.lanes.tick()
    }

    /// Returns whether the lane is fit for a request that cannot be repeated; asks the host if
    /// the lane lay idle for long.
    pub fn is_alive(&mut self) -> bool {
        let idle = self.lanes.tick().saturating_sub(self.last_used());
        let is_alive = idle < TRUSTED_IDLE || self.answers();
        if !is_alive {
            log::info!("a connection died while it was idle");
        }
        is_alive
    }
}

impl<L: Pooled> fmt::Debug for Lent<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").field("id", &self.id).finish()
    }
}

impl<L: Pooled> Deref for Lent<L> {
    type Target = L;

    #[expect(clippy::expect_used, reason = "the lane is there until drop")]
    fn deref(&self) -> &L {
        self.lane.as_ref().expect("a lane on loan")
    }
}

impl<L: Pooled> DerefMut for Lent<L> {
    #[expect(clippy::expect_used, reason = "the lane is there until drop")]
    fn deref_mut(&mut self) -> &mut L {
        self.lane.as_mut().expect("a lane on loan")
    }
}

impl<L: Pooled> Drop for Lent<L> {
    fn drop(&mut self) {
        if let Some(lane) = self.lane.take() {
            self.lanes
                .take_back(lane, self.id, self.purpose, &self.carried);
        }
    }
}
