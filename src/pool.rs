//! A pool of authenticated connections: lends them, takes them back, replaces broken ones.
//!
//! Knows only [`Pooled`] of a connection; each dialect has its own connection type.
//!
//! Metadata requests have priority: one connection is reserved for them, and transfers share the
//! others. Connections are opened on demand, one at a time. A caller that waits takes the first
//! connection that becomes free, opened or returned.
//!
//! Modules:
//! - `lent`: a connection on loan; returned on drop

mod lent;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::clock::Clock;
use crate::clock::Tick;
use crate::error_chain;
pub use crate::pool::lent::Lent;
use crate::remote::Contact;
use crate::remote::ContactState;
use crate::remote::Error;
use crate::ssh;
use crate::ssh::Aborter;
use crate::ssh::auth::Refusal;
use crate::ssh::known_hosts;
use crate::sync::Condvar;
use crate::sync::Mutex;

/// Delay after the first failed attempt to connect; doubled after each further failure.
const FIRST_BACK_OFF: Duration = Duration::from_millis(500);
const MAX_BACK_OFF: Duration = Duration::from_secs(30);

/// Idle time after which a connection may have died unnoticed. It is checked with a round trip
/// before a request that cannot be retried.
const TRUSTED_IDLE: Duration = Duration::from_secs(10);

/// Interval of keepalive messages on idle connections, so that neither the host nor a router drops
/// them.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Idle time of metadata after which a small transfer may use the reserved connection.
const METADATA_IDLE: Duration = Duration::from_millis(500);

/// Maximum number of kill lines that precede one request; older ones are discarded.
const MAX_KILL_LINES: usize = 32;

/// Answers longer than this (in bytes) measure bandwidth rather than latency, so their duration is
/// not a round trip.
const SHORT_ANSWER: usize = 4 << 10;
/// A connection that a [`Pool`] can hold, with the state that its dialect keeps for it.
pub trait Pooled: Send + 'static {
    /// Returns whether the connection can only be dropped.
    fn is_broken(&self) -> bool;

    fn last_used(&self) -> Tick;

    fn set_last_used(&mut self, now: Tick);

    /// Sends a keepalive message. Does not wait for a reply.
    fn keepalive(&mut self) -> Result<(), ssh::Error>;

    /// Sends a request without effect and returns whether the host answered. Blocks.
    fn answers(&mut self) -> bool;

    fn aborter(&self) -> Aborter;

    /// Returns the line that, sent over another connection, kills what this one left running on the
    /// host. Empty if nothing needs to be killed.
    fn kill_line(&self) -> &[u8] {
        &[]
    }

    /// Queues lines that are sent together with the next request.
    fn send_before_next(&mut self, lines: Vec<u8>) {
        drop(lines);
    }

    /// Returns whether the queued lines have been sent.
    fn has_sent_queued(&self) -> bool {
        true
    }
}

/// The use for which a connection is lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Metadata,
    /// A transfer that takes about one round trip. It waits for other small transfers, but not for
    /// large ones.
    SmallTransfer,
    Transfer,
}

/// Opens a new connection; blocks.
pub type Opener<C> = Box<dyn Fn() -> Result<C, OpenError> + Send + Sync>;

/// The reason why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Ssh(#[from] ssh::Error),
    /// The connection was made, but the dialect could not be started on it.
    #[error("{detail}")]
    Dialect {
        detail: String,
        /// The deadline that passed, if the host did not answer.
        timeout: Option<Duration>,
    },
}

/// A pool of connections. A clone is another handle to the same pool.
pub struct Pool<C: Pooled> {
    shared: Arc<Shared<C>>,
}

struct Shared<C> {
    opener: Opener<C>,
    clock: Arc<dyn Clock>,
    /// Guards the connections and counters. Held during [`Pooled::keepalive`], which does not wait,
    /// and never while a connection is opened or carries a request.
    state: Mutex<State<C>>,
    /// Notified when a connection is returned or lost, and when an attempt to open one ends.
    changed: Condvar,
    /// Notified when the pool is closed.
    closing: Condvar,
}

struct State<C> {
    idle: Vec<C>,
    /// Aborters of the connections on loan, for [`Pool::close`].
    lent: HashMap<u64, Aborter>,
    n_transfers: usize,
    /// The transfers that are not small.
    n_large_transfers: usize,
    /// The last time at which a connection was lent for metadata.
    last_metadata_at: Tick,
    is_opening: bool,
    /// Ids of dropped connections, each with the line that kills its shell. Kept until another
    /// connection has sent them: a delayed request of a dropped connection must not run after later
    /// requests.
    kill_lines: Vec<(u64, Vec<u8>)>,
    n_waiting: usize,
    n_waiting_for_metadata: usize,
    next_id: u64,
    max: usize,
    is_closed: bool,
    /// Whether callers get an error at once while the host is known to be unreachable.
    fails_fast: bool,
    failure: Option<Failure>,
    /// The time since which no connection is open; `None` while there is one.
    away_since: Option<Tick>,
    round_trip: Option<Duration>,
}

struct Failure {
    at: Tick,
    back_off: Duration,
    detail: String,
    kind: FailureKind,
}

/// Distinguishes the failures that callers handle differently.
#[derive(Clone)]
enum FailureKind {
    Other,
    /// The host did not answer within this time.
    Timeout(Duration),
    /// The host key is not the pinned key, or it was revoked.
    HostKey(known_hosts::Refusal),
}

impl<C> State<C> {
    fn n_open(&self) -> usize {
        self.idle.len() + self.lent.len()
    }

    /// Records a dropped connection and the line that kills its shell.
    fn note_dropped(&mut self, id: u64, kill_line: &[u8]) {
        if self.kill_lines.len() == MAX_KILL_LINES {
            self.kill_lines.remove(0);
        }
        self.kill_lines.push((id, kill_line.to_vec()));
    }

    /// Updates `away_since`. Callers call it after a connection is added or removed.
    fn update_away_since(&mut self, now: Tick) {
        self.away_since = if self.n_open() == 0 {
            self.away_since.or(Some(now))
        } else {
            None
        };
    }

    /// Returns whether a transfer may take another connection. A small transfer may take the
    /// reserved one if large transfers use all others, or if metadata has been idle.
    fn has_room_for(&self, purpose: Purpose, now: Tick) -> bool {
        let max = self.max_transfers();
        let is_metadata_idle = now.since(self.last_metadata_at) > METADATA_IDLE;
        self.n_transfers < max
            || (purpose == Purpose::SmallTransfer
                && (self.n_large_transfers >= max || is_metadata_idle))
    }

    /// Returns how many connections transfers may use: all but the reserved one, and at least one.
    fn max_transfers(&self) -> usize {
        self.max.saturating_sub(1).max(1)
    }
}

impl<C: Pooled> Pool<C> {
    /// Makes a pool of at most `max` connections, of which `first` is one.
    pub fn new(first: C, opener: Opener<C>, max: usize, clock: Arc<dyn Clock>) -> Self {
        let shared = Arc::new(Shared {
            opener,
            clock,
            state: Mutex::new(State {
                idle: vec![first],
                lent: HashMap::new(),
                n_transfers: 0,
                n_large_transfers: 0,
                last_metadata_at: Tick::ZERO,
                is_opening: false,
                kill_lines: Vec::new(),
                n_waiting: 0,
                n_waiting_for_metadata: 0,
                next_id: 0,
                max: max.max(1),
                is_closed: false,
                fails_fast: false,
                failure: None,
                away_since: None,
                round_trip: None,
            }),
            changed: Condvar::new(),
            closing: Condvar::new(),
        });
        let weak = Arc::downgrade(&shared);
        let keeper = thread::Builder::new().name("scpfs-keepalive".to_owned());
        let spawned = keeper.spawn(move || {
            while let Some(shared) = weak.upgrade() {
                if !shared.keep_alive() {
                    return;
                }
            }
        });
        if let Err(error) = spawned {
            log::warn!("cannot keep idle connections alive: {error}");
        }
        Self { shared }
    }

    /// Lends a connection; blocks until one is free.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`Self::close`]; [`Error::Disconnected`] if no connection is open
    /// and none can be opened.
    pub fn lend(&self, purpose: Purpose, act: &'static str) -> Result<Lent<C>, Error> {
        let shared = &self.shared;
        let mut state = shared.state.lock();
        let since = shared.clock.tick();
        loop {
            if state.is_closed {
                return Err(Error::Closed);
            }
            // Transfers yield to waiting metadata requests even if only one connection is open.
            let is_allowed = purpose == Purpose::Metadata
                || (state.n_waiting_for_metadata == 0
                    && state.has_room_for(purpose, shared.clock.tick()));
            if is_allowed && let Some(connection) = state.idle.pop() {
                return Ok(self.lend_now(&mut state, connection, purpose));
            }
            if state.n_open() == 0 && state.fails_fast && state.failure.is_some() {
                shared.start_opening(&mut state);
            }
            if state.n_open() == 0
                && (!state.is_opening || state.fails_fast)
                && let Some(failure) = &state.failure
                && (state.fails_fast
                    || failure.at >= since
                    || failure.at + failure.back_off > shared.clock.tick())
            {
                return Err(failure.to_error(act));
            }
            if is_allowed {
                shared.start_opening(&mut state);
                if state.n_open() == 0 && !state.is_opening {
                    // The thread that opens connections did not start; the failure says why.
                    continue;
                }
            }
            let n_for_metadata = usize::from(purpose == Purpose::Metadata);
            state.n_waiting += 1;
            state.n_waiting_for_metadata += n_for_metadata;
            shared.changed.wait(&mut state);
            state.n_waiting -= 1;
            state.n_waiting_for_metadata -= n_for_metadata;
            if n_for_metadata > 0 && state.n_waiting_for_metadata == 0 {
                // A transfer that yielded to this request may now take a connection.
                shared.changed.notify_all();
            }
        }
    }

    /// Makes requests fail at once while the host is known to be unreachable. An attempt to connect
    /// still begins in the background, but no caller waits for it.
    pub fn fail_fast(&self) {
        self.shared.state.lock().fails_fast = true;
    }

    /// Lends a connection that was used recently or has just answered, for a request that cannot be
    /// retried.
    ///
    /// # Errors
    /// As for [`Self::lend`].
    pub fn lend_live(&self, purpose: Purpose, act: &'static str) -> Result<Lent<C>, Error> {
        loop {
            let mut lent = self.lend(purpose, act)?;
            if lent.is_alive() {
                return Ok(lent);
            }
        }
    }

    /// Lends another connection for a transfer if no caller waits for one; never blocks.
    ///
    /// If none is idle and the limit allows one more, starts to open it in the background for a
    /// later call.
    pub fn lend_spare(&self) -> Option<Lent<C>> {
        let mut state = self.shared.state.lock();
        if state.is_closed || state.n_waiting > 0 || state.n_transfers >= state.max_transfers() {
            return None;
        }
        let connection = state.idle.pop();
        if connection.is_none() {
            self.shared.start_opening(&mut state);
        }
        connection.map(|connection| self.lend_now(&mut state, connection, Purpose::Transfer))
    }

    /// Returns whether a caller waits for a connection.
    pub fn has_waiters(&self) -> bool {
        self.shared.state.lock().n_waiting > 0
    }

    /// Returns how many connections transfers may use at once.
    pub fn max_transfers(&self) -> usize {
        self.shared.state.lock().max_transfers()
    }

    /// Returns the current time of the pool's clock.
    pub fn tick(&self) -> Tick {
        self.shared.clock.tick()
    }

    fn lend_now(&self, state: &mut State<C>, mut connection: C, purpose: Purpose) -> Lent<C> {
        let kill_lines = state.kill_lines.iter().flat_map(|(_, line)| line);
        connection.send_before_next(kill_lines.copied().collect());
        let id = state.next_id;
        state.next_id += 1;
        state.lent.insert(id, connection.aborter());
        if purpose == Purpose::Metadata {
            state.last_metadata_at = self.shared.clock.tick();
        }
        state.n_transfers += usize::from(purpose != Purpose::Metadata);
        state.n_large_transfers += usize::from(purpose == Purpose::Transfer);
        Lent {
            connection: Some(connection),
            carried_kill_lines: state.kill_lines.iter().map(|(id, _)| *id).collect(),
            id,
            purpose,
            pool: self.clone(),
        }
    }

    /// Returns the number of open connections.
    pub fn n_open(&self) -> usize {
        self.shared.state.lock().n_open()
    }

    /// Returns the state of the connections, without asking the host.
    pub fn contact(&self) -> Contact {
        let state = self.shared.state.lock();
        let contact = match state.away_since {
            None => ContactState::Connected,
            Some(since) => {
                let elapsed = self.tick().since(since);
                if state.is_opening {
                    ContactState::Reconnecting { elapsed }
                } else {
                    ContactState::Away { elapsed }
                }
            }
        };
        let refusal = state
            .failure
            .as_ref()
            .and_then(|failure| match &failure.kind {
                FailureKind::HostKey(refusal) => Some(refusal.to_string()),
                FailureKind::Other | FailureKind::Timeout(_) => None,
            });
        Contact {
            refusal: refusal.filter(|_| contact != ContactState::Connected),
            state: contact,
            n_open: state.n_open(),
            max: state.max,
            round_trip: state.round_trip,
        }
    }

    /// Ends all connections. Callers that wait for a connection or for the host get an error at
    /// once.
    pub fn close(&self) {
        let mut state = self.shared.state.lock();
        state.is_closed = true;
        for aborter in state.lent.values() {
            aborter.abort();
        }
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        self.shared.changed.notify_all();
        self.shared.closing.notify_all();
        drop(idle);
    }

    fn take_back(&self, mut connection: C, id: u64, purpose: Purpose, carried_kill_lines: &[u64]) {
        let mut state = self.shared.state.lock();
        state.lent.remove(&id);
        state.n_transfers -= usize::from(purpose != Purpose::Metadata);
        state.n_large_transfers -= usize::from(purpose == Purpose::Transfer);
        let is_reusable = !connection.is_broken() && !state.is_closed;
        if connection.is_broken() {
            state.note_dropped(id, connection.kill_line());
        } else if connection.has_sent_queued() {
            state
                .kill_lines
                .retain(|(dropped_id, _)| !carried_kill_lines.contains(dropped_id));
        }
        let dropped = if is_reusable {
            connection.set_last_used(self.shared.clock.tick());
            state.idle.push(connection);
            None
        } else {
            Some(connection)
        };
        state.update_away_since(self.shared.clock.tick());
        drop(state);
        self.shared.changed.notify_all();
        drop(dropped);
    }
}

impl<C: Pooled> Shared<C> {
    /// Starts to open a connection in the background if the limit and the back-off allow it.
    fn start_opening(self: &Arc<Self>, state: &mut State<C>) {
        let backs_off = state
            .failure
            .as_ref()
            .is_some_and(|f| f.at + f.back_off > self.clock.tick());
        if state.is_opening || state.n_open() >= state.max || backs_off {
            return;
        }
        state.is_opening = true;
        let shared = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name("scpfs-connect".to_owned())
            .spawn(move || shared.open());
        if let Err(error) = spawned {
            state.is_opening = false;
            self.fail(state, &error.to_string(), FailureKind::Other);
        }
    }

    fn open(self: Arc<Self>) {
        let result = (self.opener)();
        let mut state = self.state.lock();
        state.is_opening = false;
        match result {
            Ok(mut connection) if !state.is_closed => {
                connection.set_last_used(self.clock.tick());
                state.failure = None;
                state.idle.push(connection);
                state.update_away_since(self.clock.tick());
                log::debug!("connection {} is open", state.n_open());
                // Callers that still wait request the next connection when they wake.
            }
            Ok(_) => {}
            Err(OpenError::Ssh(ssh::Error::Auth(Refusal::WouldAskAgain { .. })))
                if state.n_open() > 0 =>
            {
                state.max = state.n_open();
                log::info!(
                    "a further login would ask for credentials again; connections are limited to {}",
                    state.max
                );
            }
            Err(error) => {
                let detail = error_chain::with_causes(&error);
                let kind = match error {
                    OpenError::Ssh(ssh::Error::Timeout { timeout, .. })
                    | OpenError::Dialect {
                        timeout: Some(timeout),
                        ..
                    } => FailureKind::Timeout(timeout),
                    OpenError::Ssh(ssh::Error::HostKey(refusal)) => FailureKind::HostKey(refusal),
                    _ => FailureKind::Other,
                };
                let is_already_logged = state.failure.as_ref().is_some_and(|failure| {
                    matches!(failure.kind, FailureKind::HostKey(_)) && failure.detail == detail
                });
                match kind {
                    FailureKind::HostKey(_) if is_already_logged => {
                        log::debug!("connection still refused: {detail}");
                    }
                    FailureKind::HostKey(_) => log::error!("connection refused: {detail}"),
                    _ => log::warn!("cannot open a connection: {detail}"),
                }
                self.fail(&mut state, &detail, kind);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn fail(&self, state: &mut State<C>, detail: &str, kind: FailureKind) {
        let back_off = state
            .failure
            .as_ref()
            .map_or(FIRST_BACK_OFF, |f| f.back_off * 2);
        state.failure = Some(Failure {
            at: self.clock.tick(),
            back_off: back_off.min(MAX_BACK_OFF),
            detail: detail.to_owned(),
            kind,
        });
    }

    /// Does one round of keepalives; returns false once the pool is closed.
    fn keep_alive(&self) -> bool {
        let mut state = self.state.lock();
        if !state.is_closed {
            self.closing.wait_for(&mut state, KEEPALIVE);
        }
        let now = self.clock.tick();
        let mut dead = Vec::new();
        let mut kept = Vec::new();
        for mut connection in std::mem::take(&mut state.idle) {
            let is_due = now.since(connection.last_used()) >= KEEPALIVE;
            if is_due && connection.keepalive().is_err() {
                let id = state.next_id;
                state.next_id += 1;
                state.note_dropped(id, connection.kill_line());
                dead.push(connection);
            } else {
                kept.push(connection);
            }
        }
        state.idle = kept;
        state.update_away_since(now);
        let goes_on = !state.is_closed;
        drop(state);
        if !dead.is_empty() {
            log::info!("{} idle connections were lost", dead.len());
        }
        goes_on
    }
}

impl Failure {
    fn to_error(&self, act: &'static str) -> Error {
        let source = match &self.kind {
            FailureKind::Timeout(timeout) => ssh::Error::Timeout {
                act: "connecting",
                timeout: *timeout,
            },
            FailureKind::HostKey(refusal) => refusal.clone().into(),
            FailureKind::Other => ssh::Error::Failed {
                act: "connecting",
                detail: self.detail.clone(),
            },
        };
        Error::Disconnected { act, source }
    }
}

impl<C: Pooled> Clone for Pool<C> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<C: Pooled> fmt::Debug for Pool<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("n_open", &self.n_open())
            .finish()
    }
}
