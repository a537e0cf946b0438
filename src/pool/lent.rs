//! A connection on loan: returned to its pool on drop.

use std::fmt;
use std::ops::Deref;
use std::ops::DerefMut;
use std::time::Duration;

use crate::clock::Tick;
use crate::pool::Pool;
use crate::pool::Pooled;
use crate::pool::Purpose;
use crate::pool::SHORT_ANSWER;
use crate::pool::TRUSTED_IDLE;
use crate::remote::contact::smooth;

/// A connection on loan. Dropping it returns it to the pool, which drops it if it is broken.
pub struct Lent<C: Pooled> {
    pub(super) connection: Option<C>,
    pub(super) id: u64,
    /// Ids of the dropped connections whose kill lines this one sends with its first request.
    pub(super) carried_kill_lines: Vec<u64>,
    pub(super) purpose: Purpose,
    pub(super) pool: Pool<C>,
}

impl<C: Pooled> Lent<C> {
    /// Updates the smoothed round-trip time with the duration of an answer of `n_bytes`; ignores
    /// long answers, whose duration depends on bandwidth.
    pub(crate) fn note_answer(&self, n_bytes: usize, took: Duration) {
        if n_bytes <= SHORT_ANSWER {
            let mut state = self.pool.shared.state.lock();
            state.round_trip = Some(smooth(state.round_trip, took));
        }
    }

    /// Returns the current time of the pool's clock.
    pub(crate) fn tick(&self) -> Tick {
        self.pool.tick()
    }

    /// Returns whether the connection is fit for a request that cannot be retried. Asks the host if
    /// the connection has been idle for more than ten seconds.
    pub fn is_alive(&mut self) -> bool {
        let idle = self.pool.tick().since(self.last_used());
        let is_alive = idle < TRUSTED_IDLE || self.answers();
        if !is_alive {
            log::info!("a connection was lost while it was idle");
        }
        is_alive
    }
}

impl<C: Pooled> fmt::Debug for Lent<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").field("id", &self.id).finish()
    }
}

impl<C: Pooled> Deref for Lent<C> {
    type Target = C;

    #[expect(clippy::expect_used, reason = "only drop takes the connection")]
    fn deref(&self) -> &C {
        self.connection.as_ref().expect("a connection on loan")
    }
}

impl<C: Pooled> DerefMut for Lent<C> {
    #[expect(clippy::expect_used, reason = "only drop takes the connection")]
    fn deref_mut(&mut self) -> &mut C {
        self.connection.as_mut().expect("a connection on loan")
    }
}

impl<C: Pooled> Drop for Lent<C> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool
                .take_back(connection, self.id, self.purpose, &self.carried_kill_lines);
        }
    }
}
