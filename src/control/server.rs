//! The daemon's side of the control socket.

use std::fmt;
use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::control::IO_TIMEOUT;
use crate::control::MAX_REQUEST;
use crate::control::message::Answer;
use crate::control::message::DrainProgress;
use crate::control::message::Request;
use crate::control::message::Status;
use crate::control::sockets::Socket;

/// The maximum number of clients at a time; the connection of a further one is closed.
const MAX_CLIENTS: usize = 16;

/// How long [`Control::close`] waits for answers in flight.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The mount whose requests a [`Control`] answers.
pub trait Daemon: Send + Sync + fmt::Debug {
    /// Returns the status; never asks the host.
    fn status(&self) -> Status;

    /// Starts a drain, unless one is running, and returns its progress. Does not wait for it.
    fn drain(&self) -> DrainProgress;

    /// Returns the progress of the drain.
    fn progress(&self) -> DrainProgress;

    /// Unmounts, lazily with `force` if the mount is in use. Blocks until the mount has ended.
    fn unmount(&self, force: bool) -> Answer;
}

/// The server of a control socket: answers requests on threads of its own until it is closed.
#[derive(Debug)]
pub struct Control {
    socket: Socket,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    daemon: Arc<dyn Daemon>,
    n_clients: AtomicUsize,
}

impl Control {
    /// Starts to answer requests on `socket`.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(socket: Socket, daemon: Arc<dyn Daemon>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            daemon,
            n_clients: AtomicUsize::new(0),
        });
        let listener = socket.listener.try_clone()?;
        let answering = Arc::clone(&shared);
        thread::Builder::new()
            .name("scpfs-control".to_owned())
            .spawn(move || answering.accept(&listener))?;
        Ok(Self { socket, shared })
    }

    /// Returns the path of the socket.
    pub fn path(&self) -> &Path {
        &self.socket.path
    }

    /// Removes the socket and waits for answers in flight, for at most `CLOSE_TIMEOUT`.
    pub fn close(self) {
        drop(self.socket);
        let mut waited = Duration::ZERO;
        while self.shared.n_clients.load(Ordering::Relaxed) > 0 && waited < CLOSE_TIMEOUT {
            thread::sleep(POLL_INTERVAL);
            waited += POLL_INTERVAL;
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // For example EMFILE, which is temporary.
                    log::debug!("cannot accept on the control socket: {error}");
                    thread::sleep(Duration::from_secs(1));
                    continue;
                }
            };
            if !is_allowed(&stream) {
                log::info!("refused a connection to the control socket by another user");
                continue;
            }
            if self.n_clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
                self.n_clients.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let shared = Arc::clone(self);
            let spawned = thread::Builder::new()
                .name("scpfs-answer".to_owned())
                .spawn(move || {
                    if let Err(error) = shared.serve(&stream) {
                        log::debug!("a client of the control socket failed: {error}");
                    }
                    shared.n_clients.fetch_sub(1, Ordering::Relaxed);
                });
            if let Err(error) = spawned {
                log::warn!("cannot start a thread: {error}");
                self.n_clients.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Answers requests until the client closes the connection or is silent for `IO_TIMEOUT`.
    fn serve(self: &Arc<Self>, stream: &UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        let mut reader = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            reader
                .by_ref()
                .take(MAX_REQUEST)
                .read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                return Ok(());
            }
            let answer = match serde_json::from_slice(&line) {
                Ok(request) => self.answer(&request),
                Err(error) => Answer::Failed {
                    message: format!("invalid request: {error}"),
                },
            };
            let mut text = serde_json::to_vec(&answer)?;
            text.push(b'\n');
            (&*stream).write_all(&text)?;
            if matches!(answer, Answer::Unmounted { .. }) {
                return Ok(());
            }
        }
    }

    fn answer(self: &Arc<Self>, request: &Request) -> Answer {
        match request {
            Request::Status => Answer::Status(Box::new(self.daemon.status())),
            Request::Drain => Answer::Progress(self.daemon.drain()),
            Request::Progress => Answer::Progress(self.daemon.progress()),
            Request::Unmount { force } => {
                log::info!("unmount requested over the control socket");
                self.daemon.unmount(*force)
            }
        }
    }
}

/// Returns whether the client is the owner of the mount or root.
fn is_allowed(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}
