//! Locks without poisoning: after a panic the other threads can still take them, so that the mount
//! keeps working.
//!
//! No other module names the lock library.

pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
