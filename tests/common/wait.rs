//! Waits on conditions with a deadline.

use std::thread;
use std::time::Duration;

/// The longest wait for another thread or process, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The interval between two checks of a condition.
const STEP: Duration = Duration::from_millis(5);

/// Waits until a condition is true; returns whether it became true within `deadline`.
pub fn is_true_within(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let mut left = deadline;
    while !condition() {
        if left.is_zero() {
            return false;
        }
        thread::sleep(STEP);
        left = left.saturating_sub(STEP);
    }
    true
}

/// Waits until a condition is true; panics with `what` after [`PATIENCE`].
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    assert!(
        is_true_within(PATIENCE, condition),
        "timed out waiting until {what}"
    );
}
