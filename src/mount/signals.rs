//! SIGINT, SIGTERM and SIGHUP become an orderly end.

use std::io;
use std::thread;

use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;

/// The signals that ask for an end.
fn endings() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect()
}

/// Keeps the signals from any thread but the one of [`watch`]. Must be called before the first
/// thread is started, because threads inherit it; a call that waits for the host must not fail
/// because a signal came.
pub fn block() -> io::Result<()> {
    endings().thread_block()?;
    Ok(())
}

/// Calls `on_signal` on a thread of its own for each signal.
pub fn watch(mut on_signal: impl FnMut(&'static str) + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name("scpfs-signals".to_owned())
        .spawn(move || {
            loop {
                match endings().wait() {
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
