//! Chooses the dialect for a host: `shell` if the host has a POSIX shell, else `scp-only`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use crate::clock::Clock;
use crate::error_chain;
use crate::remote::Remote;
use crate::remote::Settings;
use crate::remote::retry::Retry;
use crate::scp_only;
use crate::shell::probe;
use crate::shell::resident;
use crate::ssh;
use crate::ssh::Connection;
use crate::ssh::Transport;

/// The dialects to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The shell dialect, then scp-only if the host has no shell.
    Auto,
    Shell,
    ScpOnly,
}

/// The reason why a host cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Shell(#[from] probe::Error),
    #[error(transparent)]
    ScpOnly(#[from] scp_only::probe::Error),
    #[error(
        "{shell}; and scp alone does not work: {}",
        error_chain::with_causes(scp_only)
    )]
    Neither {
        // Not a source: scp-only was tried because of this error, so the text names it first.
        shell: probe::Error,
        scp_only: Box<scp_only::probe::Error>,
    },
}

impl Error {
    /// Returns the error of the connection, if nothing else is wrong.
    pub fn transport(&self) -> Option<&ssh::Error> {
        match self {
            Self::Shell(probe::Error::ResidentShell(resident::Error::Transport(error)))
            | Self::ScpOnly(scp_only::probe::Error::Transport(error)) => Some(error),
            _ => None,
        }
    }

    /// Returns the error of a connection that was lost or timed out; any other error as `Err`.
    pub fn into_lost_connection(self) -> Result<ssh::Error, Self> {
        match self {
            Self::Shell(probe::Error::ResidentShell(resident::Error::Transport(
                source @ (ssh::Error::Timeout { .. }
                | ssh::Error::Closed { .. }
                | ssh::Error::Failed { .. }),
            )))
            | Self::ScpOnly(scp_only::probe::Error::Transport(
                source @ (ssh::Error::Timeout { .. }
                | ssh::Error::Closed { .. }
                | ssh::Error::Failed { .. }),
            )) => Ok(source),
            other => Err(other),
        }
    }

    /// Returns whether no dialect works: the resident shell does not start and, if it was tried, scp
    /// does not work either.
    pub fn has_no_usable_dialect(&self) -> bool {
        matches!(
            self,
            Self::Shell(probe::Error::ResidentShell(_))
                | Self::Neither {
                    shell: probe::Error::ResidentShell(_),
                    ..
                }
        )
    }
}

/// Connects to a host, probes it and returns it as a [`Remote`] with retries; blocks.
///
/// # Errors
/// The connection failed, the directory cannot be mounted, or no dialect works.
pub fn connect(
    transport: Arc<dyn Transport>,
    settings: &Settings,
    choice: Choice,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn Remote>, Error> {
    let probe_scp = |transport, clock| scp_only::probe::probe(transport, settings, clock);
    if choice == Choice::ScpOnly {
        let remote = probe_scp(transport, Arc::clone(&clock))?;
        return Ok(with_retry(remote, settings, clock));
    }
    let watched = Arc::new(Watched {
        inner: Arc::clone(&transport),
        has_connected: AtomicBool::new(false),
    });
    let has_connected = || watched.has_connected.load(Ordering::SeqCst);
    let dynamic = Arc::clone(&watched) as Arc<dyn Transport>;
    let shell = match probe::probe(dynamic, settings, Arc::clone(&clock)) {
        Ok(shell) => return Ok(with_retry(shell, settings, clock)),
        Err(error) => error,
    };
    if choice == Choice::Shell || !has_connected() || !may_have_scp(&shell) {
        return Err(shell.into());
    }
    log::debug!(
        "the shell dialect failed, trying scp-only: {}",
        error_chain::with_causes(&shell)
    );
    match probe_scp(transport, Arc::clone(&clock)) {
        Ok(remote) => Ok(with_retry(remote, settings, clock)),
        Err(scp_only::probe::Error::Transport(_)) => Err(shell.into()),
        // scp works, so its error about the directory is the one to report.
        Err(error) if error.is_about_root() => Err(error.into()),
        Err(error) => Err(Error::Neither {
            shell,
            scp_only: Box::new(error),
        }),
    }
}

/// Wraps a dialect in [`Retry`].
fn with_retry<R: Remote + 'static>(
    remote: R,
    settings: &Settings,
    clock: Arc<dyn Clock>,
) -> Arc<dyn Remote> {
    Arc::new(Retry::new(remote).with_upload_deadline(clock, settings.upload_deadline))
}

/// Returns whether a host may have scp although the shell dialect failed with this error.
fn may_have_scp(error: &probe::Error) -> bool {
    matches!(
        error,
        // The command ended, printed something else, was refused, or waits for something else, as a
        // forced `scp -t` does.
        probe::Error::ResidentShell(
            resident::Error::NoShell { .. }
                | resident::Error::Transport(
                    ssh::Error::Failed { .. }
                        | ssh::Error::Closed { .. }
                        | ssh::Error::Timeout { .. }
                )
        ) | probe::Error::UnknownUserland(_)
    )
}

/// A transport that records whether it has ever connected: an error after that is about the
/// command, not about the connection.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn Transport>,
    has_connected: AtomicBool,
}

impl Transport for Watched {
    fn connect(&self) -> Result<Box<dyn Connection>, ssh::Error> {
        let connection = self.inner.connect()?;
        self.has_connected.store(true, Ordering::SeqCst);
        Ok(connection)
    }
}
