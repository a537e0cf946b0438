//! Locks without poisoning, so that one panic does not wedge a mount.
//!
//! The only module that names a lock library. Nothing here blocks on anything but other threads.

pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
