//! A pool of connections: lends them, takes them back, replaces the broken ones.
//!
//! Knows of a connection only what [`Pooled`] says; each dialect has a kind of its own.
//!
//! Metadata never waits behind content: content may use all lanes but one. Lanes are opened when
//! they are needed, one at a time, while whoever needs one takes the first that gets free.
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

/// How soon after a failed attempt to connect the next may begin; doubled each time.
const FIRST_BACK_OFF: Duration = Duration::from_millis(500);
const MAX_BACK_OFF: Duration = Duration::from_secs(30);

/// A lane that lay idle for longer may have died unnoticed; ask it before a request that cannot
/// be repeated.
const TRUSTED_IDLE: Duration = Duration::from_secs(10);

/// How often idle lanes tell the host, and every router between, that they are in use.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How long nobody must have wanted metadata before a little content takes the lane kept for that.
const QUIET: Duration = Duration::from_millis(500);

/// How many lanes that were given up are ended by one request: they make its line longer.
const MAX_ENDS: usize = 32;

/// An answer of more bytes than this says more of the link's width than of its length.
const SHORT_ANSWER: usize = 4 << 10;
/// One connection of a pool, with what stands on it.
pub trait Pooled: Send + 'static {
    /// Returns whether it can only be dropped.
    fn is_broken(&self) -> bool;

    fn last_used(&self) -> Tick;

    fn set_last_used(&mut self, now: Tick);

    /// Tells the host, and every router between, that it is in use; does not wait.
    fn keepalive(&mut self) -> Result<(), ssh::Error>;

    /// Asks the host for a sign of life and waits for it.
    fn answers(&mut self) -> bool;

    fn aborter(&self) -> Aborter;

    /// Returns the line that, sent over another connection, ends what this one left on the host; empty
    /// where nothing can.
    fn end_line(&self) -> &[u8] {
        &[]
    }

    /// Has lines sent before the next request.
    fn precede(&mut self, lines: Vec<u8>) {
        drop(lines);
    }

    /// Returns whether such lines were sent.
    fn has_sent_preceding(&self) -> bool {
        true
    }
}

/// What a lane is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Metadata,
    /// So little that it takes about a round trip: it waits for others of its kind, but not until a
    /// large content is through.
    LittleContent,
    Content,
}

/// Opens a new connection.
pub type Opener<L> = Box<dyn Fn() -> Result<L, OpenError> + Send + Sync>;

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Ssh(#[from] ssh::Error),
    /// There is a connection, and a dialect could do nothing with it.
    #[error("{detail}")]
    Dialect {
        detail: String,
        /// How long the host was waited for, if it did not answer.
        timeout: Option<Duration>,
    },
}

/// The pool. Cloning it gives another handle to the same lanes.
pub struct Lanes<L: Pooled> {
    shared: Arc<Shared<L>>,
}

struct Shared<L> {
    opener: Opener<L>,
    clock: Arc<dyn Clock>,
    /// Guards everything below. Never held while a lane is opened or used.
    state: Mutex<State<L>>,
    /// Told when a lane gets free, when one is lost, and when an attempt to open one ends.
    changed: Condvar,
    /// Told when the pool is closed.
    closing: Condvar,
}

struct State<L> {
    idle: Vec<L>,
    /// To end the lanes that are lent.
    lent: HashMap<u64, Aborter>,
    n_lent_for_content: usize,
    /// Those of them on which more than a little goes.
    n_lent_for_long: usize,
    /// When a lane was last lent for metadata.
    metadata_at: Tick,
    is_opening: bool,
    /// The lanes that were given up, and the lines that end their shells, until another lane has
    /// carried these: what they were told and arrives late must not be carried out after what comes
    /// now.
    ends: Vec<(u64, Vec<u8>)>,
    n_waiting: usize,
    n_waiting_for_metadata: usize,
    next_id: u64,
    max: usize,
    is_closed: bool,
    /// Whether nobody waits for a connection while the host is known to be away.
    fails_fast: bool,
    failure: Option<Failure>,
    /// When the last lane was lost; `None` while there is one.
    away_since: Option<Tick>,
    round_trip: Option<Duration>,
}

struct Failure {
    at: Tick,
    back_off: Duration,
    detail: String,
    kind: FailureKind,
}

/// The distinctions that a caller must be able to make of a failure.
#[derive(Clone)]
enum FailureKind {
    Other,
    /// The host did not answer for so long.
    Timeout(Duration),
    /// The host is not the one that the mount was made with, or its key was revoked.
    HostKey(known_hosts::Refusal),
}

impl<L> State<L> {
    fn n_open(&self) -> usize {
        self.idle.len() + self.lent.len()
    }

    /// Notes a lane that was given up, and the line that ends its shell.
    fn give_up(&mut self, id: u64, end_line: &[u8]) {
        if self.ends.len() == MAX_ENDS {
            self.ends.remove(0);
        }
        self.ends.push((id, end_line.to_vec()));
    }

    /// Keeps `away_since` in step with the lanes; to be called when one comes or goes.
    fn note_contact(&mut self, now: Tick) {
        self.away_since = if self.n_open() == 0 {
            self.away_since.or(Some(now))
        } else {
            None
        };
    }

    /// Whether content may have one more lane: the last but for a little, where all the others are
    /// taken for long or nobody wants metadata anyway.
    fn has_room_for(&self, purpose: Purpose, now: Tick) -> bool {
        let max = self.max_for_content();
        let is_quiet = now.saturating_sub(self.metadata_at) > QUIET;
        self.n_lent_for_content < max
            || (purpose == Purpose::LittleContent && (self.n_lent_for_long >= max || is_quiet))
    }

    /// One lane is kept for metadata, unless there is only one.
    fn max_for_content(&self) -> usize {
        self.max.saturating_sub(1).max(1)
    }
}

impl<L: Pooled> Lanes<L> {
    /// Makes a pool of at most `max` lanes, of which `first` is one.
    pub fn new(first: L, opener: Opener<L>, max: usize, clock: Arc<dyn Clock>) -> Self {
        let shared = Arc::new(Shared {
            opener,
            clock,
            state: Mutex::new(State {
                idle: vec![first],
                lent: HashMap::new(),
                n_lent_for_content: 0,
                n_lent_for_long: 0,
                metadata_at: Tick::ZERO,
                is_opening: false,
                ends: Vec::new(),
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

    /// Lends a lane that is in step with its host; waits for one if need be.
    ///
    /// # Errors
    /// There is no lane and none can be opened, or the pool was closed.
    pub fn lend(&self, purpose: Purpose, act: &'static str) -> Result<Lent<L>, Error> {
        let shared = &self.shared;
        let mut state = shared.state.lock();
        let since = shared.clock.tick();
        loop {
            if state.is_closed {
                return Err(Error::Closed);
            }
            // Content waits for metadata even where both want the only lane that is open.
            let is_allowed = purpose == Purpose::Metadata
                || (state.n_waiting_for_metadata == 0
                    && state.has_room_for(purpose, shared.clock.tick()));
            if is_allowed && let Some(lane) = state.idle.pop() {
                return Ok(self.hand_out(&mut state, lane, purpose));
            }
            if state.n_open() == 0 && state.fails_fast && state.failure.is_some() {
                shared.open_one_more(&mut state);
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
                shared.open_one_more(&mut state);
                if state.n_open() == 0 && !state.is_opening {
                    // It could not even begin; the failure says why.
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
                // Who stood back for this one may find another lane.
                shared.changed.notify_all();
            }
        }
    }

    /// Has requests fail at once while the host is known to be away: a connection is tried for all
    /// the same, but nobody waits for it.
    pub fn fail_fast(&self) {
        self.shared.state.lock().fails_fast = true;
    }

    /// Lends a lane that has just shown that it lives, for a request that cannot be repeated.
    pub fn lend_live(&self, purpose: Purpose, act: &'static str) -> Result<Lent<L>, Error> {
        loop {
            let mut lent = self.lend(purpose, act)?;
            if lent.is_alive() {
                return Ok(lent);
            }
        }
    }

    /// Lends one more lane for content if there is one that nobody waits for; never blocks.
    ///
    /// Where there is none but there may be, one begins to be opened, for whoever asks next.
    pub fn lend_spare(&self) -> Option<Lent<L>> {
        let mut state = self.shared.state.lock();
        if state.is_closed
            || state.n_waiting > 0
            || state.n_lent_for_content >= state.max_for_content()
        {
            return None;
        }
        let lane = state.idle.pop();
        if lane.is_none() {
            self.shared.open_one_more(&mut state);
        }
        lane.map(|lane| self.hand_out(&mut state, lane, Purpose::Content))
    }

    /// Returns whether somebody waits for a lane.
    pub fn is_wanted(&self) -> bool {
        self.shared.state.lock().n_waiting > 0
    }

    /// Returns how many lanes content may use at once.
    pub fn max_for_content(&self) -> usize {
        self.shared.state.lock().max_for_content()
    }

    /// Returns the time by the clock of the pool.
    pub fn tick(&self) -> Tick {
        self.shared.clock.tick()
    }

    fn hand_out(&self, state: &mut State<L>, mut lane: L, purpose: Purpose) -> Lent<L> {
        let ends = state.ends.iter().flat_map(|(_, line)| line);
        lane.precede(ends.copied().collect());
        let id = state.next_id;
        state.next_id += 1;
        state.lent.insert(id, lane.aborter());
        if purpose == Purpose::Metadata {
            state.metadata_at = self.shared.clock.tick();
        }
        state.n_lent_for_content += usize::from(purpose != Purpose::Metadata);
        state.n_lent_for_long += usize::from(purpose == Purpose::Content);
        Lent {
            lane: Some(lane),
            carried: state.ends.iter().map(|(id, _)| *id).collect(),
            id,
            purpose,
            lanes: self.clone(),
        }
    }

    /// Returns how many lanes are open.
    pub fn n_open(&self) -> usize {
        self.shared.state.lock().n_open()
    }

    /// Returns how the connections are; never blocks for long.
    pub fn contact(&self) -> Contact {
        let state = self.shared.state.lock();
        let contact = match state.away_since {
            None => ContactState::Connected,
            Some(since) => {
                let for_so_long = self.tick().saturating_sub(since);
                if state.is_opening {
                    ContactState::Reconnecting { for_so_long }
                } else {
                    ContactState::Away { for_so_long }
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

    /// Ends all lanes. Whoever waits for one, or on one, gets an error at once.
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

    fn take_back(&self, mut lane: L, id: u64, purpose: Purpose, carried: &[u64]) {
        let mut state = self.shared.state.lock();
        state.lent.remove(&id);
        state.n_lent_for_content -= usize::from(purpose != Purpose::Metadata);
        state.n_lent_for_long -= usize::from(purpose == Purpose::Content);
        let is_kept = !lane.is_broken() && !state.is_closed;
        if lane.is_broken() {
            state.give_up(id, lane.end_line());
        } else if lane.has_sent_preceding() {
            state
                .ends
                .retain(|(given_up, _)| !carried.contains(given_up));
        }
        let dropped = if is_kept {
            lane.set_last_used(self.shared.clock.tick());
            state.idle.push(lane);
            None
        } else {
            Some(lane)
        };
        state.note_contact(self.shared.clock.tick());
        drop(state);
        self.shared.changed.notify_all();
        drop(dropped);
    }
}

impl<L: Pooled> Shared<L> {
    /// Starts to open a lane in the background if there may be one more.
    fn open_one_more(self: &Arc<Self>, state: &mut State<L>) {
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
            Ok(mut lane) if !state.is_closed => {
                lane.set_last_used(self.clock.tick());
                state.failure = None;
                state.idle.push(lane);
                state.note_contact(self.clock.tick());
                log::debug!("connection {} is open", state.n_open());
                // Others may still wait; they ask for the next one when they wake.
            }
            Ok(_) => {}
            Err(OpenError::Ssh(ssh::Error::Auth(Refusal::WouldAskAgain { .. })))
                if state.n_open() > 0 =>
            {
                log::info!("a further login would ask again; one connection does everything");
                state.max = state.n_open();
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
                let is_said = state.failure.as_ref().is_some_and(|failure| {
                    matches!(failure.kind, FailureKind::HostKey(_)) && failure.detail == detail
                });
                match kind {
                    FailureKind::HostKey(_) if is_said => log::debug!("still refused: {detail}"),
                    FailureKind::HostKey(_) => log::error!("connection refused: {detail}"),
                    _ => log::warn!("cannot open a connection: {detail}"),
                }
                self.fail(&mut state, &detail, kind);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn fail(&self, state: &mut State<L>, detail: &str, kind: FailureKind) {
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

    /// One round of the keeper's work; false when there is nothing left to keep.
    fn keep_alive(&self) -> bool {
        let mut state = self.state.lock();
        if !state.is_closed {
            self.closing.wait_for(&mut state, KEEPALIVE);
        }
        let now = self.clock.tick();
        let mut dead = Vec::new();
        let mut kept = Vec::new();
        for mut lane in std::mem::take(&mut state.idle) {
            let is_due = now.saturating_sub(lane.last_used()) >= KEEPALIVE;
            if is_due && lane.keepalive().is_err() {
                let id = state.next_id;
                state.next_id += 1;
                state.give_up(id, lane.end_line());
                dead.push(lane);
            } else {
                kept.push(lane);
            }
        }
        state.idle = kept;
        state.note_contact(now);
        let goes_on = !state.is_closed;
        drop(state);
        if !dead.is_empty() {
            log::info!("{} idle connections died", dead.len());
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

impl<L: Pooled> Clone for Lanes<L> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<L: Pooled> fmt::Debug for Lanes<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes")
            .field("n_open", &self.n_open())
            .finish()
    }
}
