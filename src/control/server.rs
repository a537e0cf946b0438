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

use crate::control::MAX_REQUEST;
use crate::control::PATIENCE;
use crate::control::message::Answer;
use crate::control::message::Draining;
use crate::control::message::Request;
use crate::control::message::Status;
use crate::control::sockets::Socket;

/// How many may ask at once; more are sent away.
const MAX_CONVERSATIONS: usize = 16;

/// How long the program waits at its end for answers that are under way.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(5);

/// The mount that a socket speaks for.
pub trait Daemon: Send + Sync + fmt::Debug {
    /// Returns how it is; never asks the host.
    fn status(&self) -> Status;

    /// Begins to upload everything, and returns how far that is.
    fn drain(&self) -> Draining;

    /// Returns how far a drain has come.
    fn progress(&self) -> Draining;

    /// Unmounts, even if the mount is in use where `force` says so. Waits for the end.
    fn unmount(&self, force: bool) -> Answer;
}

/// Answers requests until it is dropped.
#[derive(Debug)]
pub struct Control {
    socket: Socket,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    daemon: Arc<dyn Daemon>,
    n_conversations: AtomicUsize,
}

impl Control {
    /// Starts to answer on `socket`.
    pub fn start(socket: Socket, daemon: Arc<dyn Daemon>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            daemon,
            n_conversations: AtomicUsize::new(0),
        });
        let listener = socket.listener.try_clone()?;
        let answering = Arc::clone(&shared);
        thread::Builder::new()
            .name("scpfs-control".to_owned())
            .spawn(move || answering.accept(&listener))?;
        Ok(Self { socket, shared })
    }

    pub fn path(&self) -> &Path {
        &self.socket.path
    }

    /// Removes the socket, and gives answers that are under way some time.
    pub fn close(self) {
        drop(self.socket);
        let mut waited = Duration::ZERO;
        while self.shared.n_conversations.load(Ordering::Relaxed) > 0 && waited < LAST_ANSWERS {
            thread::sleep(STEP);
            waited += STEP;
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, perhaps; that passes.
                    log::debug!("the control socket fails: {error}");
                    thread::sleep(Duration::from_secs(1));
                    continue;
                }
            };
            if !is_allowed(&stream) {
                log::info!("somebody else came to the control socket");
                continue;
            }
            if self.n_conversations.fetch_add(1, Ordering::Relaxed) >= MAX_CONVERSATIONS {
                self.n_conversations.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let shared = Arc::clone(self);
            let spawned = thread::Builder::new()
                .name("scpfs-answer".to_owned())
                .spawn(move || {
                    if let Err(error) = shared.converse(&stream) {
                        log::debug!("a conversation on the control socket ended: {error}");
                    }
                    shared.n_conversations.fetch_sub(1, Ordering::Relaxed);
                });
            if let Err(error) = spawned {
                log::warn!("cannot start a thread: {error}");
                self.n_conversations.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Answers requests until the other side goes, or says nothing for a while.
    fn converse(self: &Arc<Self>, stream: &UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
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
                    message: format!("this is no request: {error}"),
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
                log::info!("asked to unmount");
                self.daemon.unmount(*force)
            }
        }
    }
}

/// The owner of the mount and root.
fn is_allowed(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}
