//! The daemon's side of the control socket.

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

use crate::clock::Tick;
use crate::control::MAX_REQUEST;
use crate::control::PATIENCE;
use crate::control::message::Answer;
use crate::control::message::CacheStatus;
use crate::control::message::NotStored;
use crate::control::message::Request;
use crate::control::message::Status;
use crate::control::sockets::Socket;
use crate::mount::attach;
use crate::mount::attach::Detached;
use crate::mount::attach::WhenBusy;
use crate::mount::end::Mounted;
use crate::remote;

/// How many may ask at once; more are sent away.
const MAX_CONVERSATIONS: usize = 16;

/// How long the program waits at its end for answers that are under way.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(5);

/// What a mount is, as far as it does not change.
#[derive(Debug, Clone)]
pub struct Identity {
    pub source: String,
    /// When it was mounted, in seconds since 1970, and by the mount's own clock.
    pub since: i64,
    pub since_tick: Tick,
}

/// Answers requests until it is dropped.
#[derive(Debug)]
pub struct Control {
    socket: Socket,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    identity: Identity,
    mounted: Arc<Mounted>,
    n_conversations: AtomicUsize,
}

impl Control {
    /// Starts to answer on `socket`.
    pub fn start(socket: Socket, identity: Identity, mounted: Arc<Mounted>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            identity,
            mounted,
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
            Request::Status => Answer::Status(Box::new(self.status())),
            Request::Drain => {
                self.mounted.start_drain();
                Answer::Progress(self.mounted.progress().into())
            }
            Request::Progress => Answer::Progress(self.mounted.progress().into()),
            Request::Unmount { force } => self.unmount(if *force {
                WhenBusy::Hide
            } else {
                WhenBusy::Leave
            }),
        }
    }

    fn status(&self) -> Status {
        let mounted = &self.mounted;
        let uptime = mounted
            .clock
            .tick()
            .saturating_sub(self.identity.since_tick);
        let cache = mounted.cache.report();
        let directory = mounted.cache.disk().dir();
        let files = mounted.vfs.report();
        let (mountpoint, mount_id) = mounted.place();
        Status {
            source: self.identity.source.clone(),
            mountpoint: super::show::path_text(&mountpoint),
            pid: std::process::id(),
            since: self.identity.since,
            uptime_seconds: uptime.as_secs(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mount_id: mount_id.map(str::to_owned),
            host: mounted.remote.facts().summary.clone(),
            connection: mounted.remote.contact().into(),
            cache: CacheStatus {
                directory: super::show::path_text(directory),
                bytes: cache.bytes,
                limit: cache.max_bytes,
                hits: cache.hits,
                misses: cache.misses,
            },
            files: of_each(files),
            conflicts: of_each(mounted.cache.collisions()),
            left: of_each(mounted.cache.left_by_others()),
        }
    }

    fn unmount(&self, when_busy: WhenBusy) -> Answer {
        log::info!("asked to unmount");
        match self.mounted.unmount(when_busy) {
            Ok(Detached::Gone) => {
                let limit = self.mounted.limit() + PATIENCE;
                match self.mounted.outcome_within(limit) {
                    Some(left) => Answer::Unmounted {
                        left: left.into_iter().map(NotStored::from).collect(),
                    },
                    None => Answer::Failed {
                        message: "it is unmounted, but does not end".to_owned(),
                    },
                }
            }
            Ok(Detached::Hidden) => Answer::Hidden,
            Err(attach::Error::InUse(_)) => Answer::InUse,
            Err(error) => Answer::Failed {
                message: remote::chain(&error),
            },
        }
    }
}

fn of_each<T, U: From<T>>(all: Vec<T>) -> Vec<U> {
    all.into_iter().map(U::from).collect()
}

/// The owner of the mount and root.
fn is_allowed(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}
