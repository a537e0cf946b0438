//! Handles SIGINT, SIGTERM and SIGHUP on a thread of its own.

use std::io;
use std::thread;

use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;

/// The signals that end a mount.
fn ending_signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect()
}

/// Blocks the signals in this thread and in all threads that it starts later; only the thread of
/// [`watch`] receives them. Must be called before the first thread is started. Without this a
/// system call that waits for the host could fail with EINTR.
///
/// # Errors
/// The signal mask cannot be changed.
pub fn block() -> io::Result<()> {
    ending_signals().thread_block()?;
    Ok(())
}

/// Starts a thread that calls `on_signal` with the name of each signal.
///
/// # Errors
/// The thread cannot be started.
pub fn watch(mut on_signal: impl FnMut(&'static str) + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name("scpfs-signals".to_owned())
        .spawn(move || {
            loop {
                match ending_signals().wait() {
                    Ok(signal) => on_signal(signal.as_str()),
                    Err(error) => {
                        log::error!("cannot wait for signals: {error}");
                        return;
                    }
                }
            }
        })?;
    Ok(())
}
