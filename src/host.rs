//! Chooses the dialect for a host: a shell where there is one, else nothing but scp.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use crate::clock::Clock;
use crate::error_chain;
use crate::remote::Remote;
use crate::remote::Settings;
use crate::remote::retry::Retry;
use crate::scp_only;
use crate::shell::lane;
use crate::shell::probe;
use crate::ssh;
use crate::ssh::Connection;
use crate::ssh::Transport;

/// What is to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The shell, and scp alone where there is none.
    Auto,
    Shell,
    ScpOnly,
}

/// Why a host cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Shell(#[from] probe::Error),
    #[error(transparent)]
    ScpOnly(#[from] scp_only::probe::Error),
    #[error(
        "{shell}; scp alone does not help: {}",
        error_chain::with_causes(scp_only)
    )]
    Neither {
        // Not a source: the first to be told is the reason why the second was tried.
        shell: probe::Error,
        scp_only: Box<scp_only::probe::Error>,
    },
}

impl Error {
    /// Returns what is wrong with the connection, if that is all that is wrong.
    pub fn transport(&self) -> Option<&ssh::Error> {
        match self {
            Self::Shell(probe::Error::Lane(lane::Error::Transport(error)))
            | Self::ScpOnly(scp_only::probe::Error::Transport(error)) => Some(error),
            _ => None,
        }
    }

    /// Returns how the connection was lost, if it was made and lost, or never answered.
    pub fn into_lost_connection(self) -> Result<ssh::Error, Self> {
        match self {
            Self::Shell(probe::Error::Lane(lane::Error::Transport(
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

    /// Returns whether no way was found to talk with the host at all.
    pub fn is_speechless(&self) -> bool {
        matches!(
            self,
            Self::Shell(probe::Error::Lane(_))
                | Self::Neither {
                    shell: probe::Error::Lane(_),
                    ..
                }
        )
    }
}

/// Connects to a host and makes the dialect that it speaks; repeats from then on what is safe to
/// repeat.
pub fn connect(
    transport: Arc<dyn Transport>,
    settings: &Settings,
    choice: Choice,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn Remote>, Error> {
    let by_scp = |transport, clock| scp_only::probe::probe(transport, settings, clock);
    if choice == Choice::ScpOnly {
        let remote = by_scp(transport, Arc::clone(&clock))?;
        return Ok(patient(remote, settings, clock));
    }
    let watched = Arc::new(Watched {
        inner: Arc::clone(&transport),
        has_connected: AtomicBool::new(false),
    });
    let has_connected = || watched.has_connected.load(Ordering::SeqCst);
    let dynamic = Arc::clone(&watched) as Arc<dyn Transport>;
    let shell = match probe::probe(dynamic, settings, Arc::clone(&clock)) {
        Ok(shell) => return Ok(patient(shell, settings, clock)),
        Err(error) => error,
    };
    if choice == Choice::Shell || !has_connected() || !is_without_shell(&shell) {
        return Err(shell.into());
    }
    log::debug!("no shell: {}", error_chain::with_causes(&shell));
    match by_scp(transport, Arc::clone(&clock)) {
        Ok(remote) => Ok(patient(remote, settings, clock)),
        Err(scp_only::probe::Error::Transport(_)) => Err(shell.into()),
        // scp was there, so that what it says of the directory is what matters.
        Err(error) if error.is_about_root() => Err(error.into()),
        Err(error) => Err(Error::Neither {
            shell,
            scp_only: Box::new(error),
        }),
    }
}

/// Puts the repetition of what failed around a dialect.
fn patient<R: Remote + 'static>(
    remote: R,
    settings: &Settings,
    clock: Arc<dyn Clock>,
) -> Arc<dyn Remote> {
    Arc::new(Retry::new(remote).with_patience(clock, settings.patience))
}

/// Whether a host on which this went wrong may still have scp.
fn is_without_shell(error: &probe::Error) -> bool {
    matches!(
        error,
        // It ended, or said something else. Or the command was refused, or it waits for something
        // else, as a forced `scp -t` does.
        probe::Error::Lane(
            lane::Error::NoShell { .. }
                | lane::Error::Transport(
                    ssh::Error::Failed { .. }
                        | ssh::Error::Closed { .. }
                        | ssh::Error::Timeout { .. }
                )
        ) | probe::Error::UnknownUserland(_)
    )
}

/// A transport that remembers whether it ever connected: what failed after that was the command.
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
