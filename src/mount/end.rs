//! The end of a mount, whoever asks for it: uploads what is left within a limit, takes the mount
//! off, and says what could not be uploaded.
//!
//! ```text
//! signal, control socket: drain, then detach --+
//!                                              +--> the kernel ends the session --> finish
//! umount, fusermount3 -u ----------------------+
//! ```

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::cache::Cache;
use crate::cache::FileReport;
use crate::clock::Clock;
use crate::clock::Tick;
use crate::error_chain;
use crate::exit_code::ExitCode;
use crate::mount::Error;
use crate::mount::attach;
use crate::mount::attach::Detached;
use crate::mount::attach::Mountpoint;
use crate::mount::attach::WhenBusy;
use crate::mount::guard::Guard;
use crate::mount::mountinfo;
use crate::path::RemotePath;
use crate::remote::Remote;
use crate::sync::Condvar;
use crate::sync::Mutex;
use crate::vfs::Vfs;

/// How long a busy mount may be served after its end was asked for.
const LAST_USERS: Duration = Duration::from_secs(10);

/// How long an answer to whoever asked for the end may take to get there.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What the last try to upload everything gets, however long the one before it took.
const LAST_TRY: Duration = Duration::from_secs(5);

/// How long to wait before what could not be uploaded at the end is tried again.
const DRAIN_PAUSE: Duration = Duration::from_millis(250);

/// A mount that stands, as whoever may end it sees it.
pub struct Mounted {
    pub(crate) vfs: Arc<Vfs>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) remote: Arc<dyn Remote>,
    pub(crate) clock: Arc<dyn Clock>,
    mountpoint: Arc<Mountpoint>,
    /// See [`mountinfo::MountLine::id`].
    id: String,
    /// How long an end may take to upload what is left.
    limit: Duration,
    /// How long a host that is away is waited for.
    patience: Duration,
    guard: Mutex<Option<Guard>>,
    state: Mutex<State>,
    /// Told when a drain ends, and when all has ended.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    round: u64,
    is_draining: bool,
    /// What the last drain could not upload.
    left: Vec<Left>,
    /// When an end was first asked for.
    ending_since: Option<Tick>,
    /// Whether the mount was taken off, or is about to be.
    is_detaching: bool,
    /// Whether the session with the kernel has ended.
    is_finishing: bool,
    /// What was not uploaded in the end.
    outcome: Option<Vec<Left>>,
}

/// A file that could not be uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    pub path: RemotePath,
    pub reason: String,
}

/// How far a drain has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub is_draining: bool,
    /// What it could not upload, once it has ended.
    pub left: Vec<Left>,
    /// What is not uploaded at this moment.
    pub files: Vec<FileReport>,
}

impl Mounted {
    pub fn new(
        vfs: Arc<Vfs>,
        cache: Arc<Cache>,
        remote: Arc<dyn Remote>,
        clock: Arc<dyn Clock>,
        mountpoint: Arc<Mountpoint>,
        id: String,
        limit: Duration,
        patience: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            vfs,
            cache,
            remote,
            clock,
            mountpoint,
            id,
            limit,
            patience,
            guard: Mutex::new(None),
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        })
    }

    /// Sets who clears the mountpoint if this program is killed.
    pub fn set_guard(&self, guard: Guard) {
        *self.guard.lock() = Some(guard);
    }

    /// Lets the guard go, unless there is something for it to clear: a mount that is dead and
    /// still there.
    pub fn release_guard(&self) {
        if let Some(guard) = self.guard.lock().take()
            && matches!(mountinfo::by_id(&self.id), Ok(None))
        {
            guard.release();
        }
    }

    /// Begins to upload everything, on another thread; returns the number of the drain. One that
    /// is under way is joined.
    pub fn start_drain(self: &Arc<Self>) -> u64 {
        self.begin_drain().0
    }

    /// As [`Self::start_drain`]; says as well whether the drain is a new one.
    fn begin_drain(self: &Arc<Self>) -> (u64, bool) {
        let mut state = self.state.lock();
        if state.is_draining {
            return (state.round, false);
        }
        state.round += 1;
        state.is_draining = true;
        let round = state.round;
        drop(state);
        let mounted = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name("scpfs-drain".to_owned())
            .spawn(move || mounted.drain());
        if let Err(error) = spawned {
            log::warn!("cannot start a thread: {error}");
            self.drain();
        }
        (round, true)
    }

    fn drain(&self) {
        let since = self.clock.tick();
        // A host that is away, or was a moment ago, is given as long as a call has.
        let left = loop {
            let left = self.vfs.drain();
            let is_away = left
                .iter()
                .any(|(_, error)| error.is_connection_loss() && !error.is_host_key_refused());
            if !is_away || self.clock.tick().saturating_sub(since) >= self.patience {
                break left;
            }
            thread::sleep(DRAIN_PAUSE);
        };
        let left = left.into_iter().map(|(path, error)| Left {
            path,
            reason: error_chain::with_causes(&error),
        });
        let mut state = self.state.lock();
        state.left = left.collect();
        state.is_draining = false;
        drop(state);
        self.changed.notify_all();
    }

    /// Returns how far the drain is.
    pub fn progress(&self) -> Progress {
        let files = self.vfs.report();
        let state = self.state.lock();
        Progress {
            is_draining: state.is_draining,
            left: if state.is_draining {
                Vec::new()
            } else {
                state.left.clone()
            },
            files,
        }
    }

    /// Uploads everything, for at most `limit`; returns what could not be uploaded.
    fn drain_within(self: &Arc<Self>, limit: Duration) -> Vec<Left> {
        let until = self.clock.tick() + limit;
        loop {
            let (_, is_new) = self.begin_drain();
            let mut state = self.state.lock();
            while state.is_draining {
                let rest = until.saturating_sub(self.clock.tick());
                if rest.is_zero() {
                    drop(state);
                    return self.unfinished(limit);
                }
                self.changed.wait_for(&mut state, rest);
            }
            // One that had begun before may have missed what was written since.
            if is_new {
                return state.left.clone();
            }
        }
    }

    fn unfinished(&self, limit: Duration) -> Vec<Left> {
        let reports = self.vfs.report().into_iter();
        let reason = format!("not within {} s", limit.as_secs_f64());
        let left = reports.map(|file| Left {
            path: file.path,
            reason: file.failure.unwrap_or_else(|| reason.clone()),
        });
        left.collect()
    }

    /// How much of the limit is left for the end that was asked for, by this call if not before.
    fn rest_of_limit(&self) -> Duration {
        let now = self.clock.tick();
        let since = *self.state.lock().ending_since.get_or_insert(now);
        let gone = now.saturating_sub(since);
        self.limit
            .saturating_sub(gone)
            .max(LAST_TRY.min(self.limit))
    }

    /// Ends the mount because of a signal: drains it and takes it off.
    pub fn end_for(self: &Arc<Self>, signal: &'static str) {
        log::info!("{signal}: unmounting");
        // Before it is out of sight: what fails can still be read through the mount.
        let limit = self.rest_of_limit();
        let n_left = self.drain_within(limit).len();
        if n_left > 0 {
            log::warn!("{n_left} files are not uploaded; unmounting all the same");
        }
        match self.unmount(WhenBusy::Hide) {
            Ok(Detached::Gone) => {}
            Ok(Detached::Hidden) => log::warn!(
                "the mount is in use; it is out of sight now and ends with its last user, or in {} s",
                LAST_USERS.as_secs()
            ),
            Err(error) => log::error!("{}", error_chain::with_causes(&error)),
        }
    }

    /// Takes the mount off. One that is in use is hidden if `when_busy` says so, and then ended
    /// whether its last user has gone or not.
    pub fn unmount(self: &Arc<Self>, when_busy: WhenBusy) -> Result<Detached, attach::Error> {
        if std::mem::replace(&mut self.state.lock().is_detaching, true) {
            log::info!("ending already");
            return Ok(Detached::Gone);
        }
        let detached = self.mountpoint.detach(&self.id, when_busy);
        match detached {
            // Another mount namespace may have a copy of it, as that of a container does.
            Ok(Detached::Gone | Detached::Hidden) => self.end_soon(),
            Err(_) => self.state.lock().is_detaching = false,
        }
        detached
    }

    /// Ends the program in a while, for users who do not go by themselves.
    fn end_soon(self: &Arc<Self>) {
        let mounted = Arc::clone(self);
        let last = move || {
            thread::sleep(LAST_USERS);
            if mounted.state.lock().is_finishing {
                // It ends in order, and takes its time to upload what is left.
                return;
            }
            log::warn!("the mount is still in use; ending all the same");
            let left = mounted.drain_within(LAST_TRY);
            log_left(&left);
            let code = if left.is_empty() {
                ExitCode::Success
            } else {
                ExitCode::NotUploaded
            };
            mounted.state.lock().outcome = Some(left);
            mounted.changed.notify_all();
            mounted.release_guard();
            // Whoever asked for the end gets an answer.
            thread::sleep(LAST_WORDS);
            super::exit_now(code);
        };
        let spawned = thread::Builder::new()
            .name("scpfs-last-users".to_owned())
            .spawn(last);
        if let Err(error) = spawned {
            log::warn!("cannot start a thread: {error}");
        }
    }

    /// Uploads what is left after the session with the kernel has ended, closes everything, and
    /// says what could not be uploaded.
    pub fn finish(self: &Arc<Self>) -> Result<ExitCode, Error> {
        {
            let mut state = self.state.lock();
            (state.is_detaching, state.is_finishing) = (true, true);
        }
        let left = self.drain_within(self.rest_of_limit());
        self.remote.close();
        self.cache.close();
        log_left(&left);
        let n = left.len();
        self.state.lock().outcome = Some(left);
        self.changed.notify_all();
        if n == 0 {
            log::info!("unmounted");
            return Ok(ExitCode::Success);
        }
        Err(Error::NotUploaded {
            n,
            kept_in: self.cache.disk().dir().to_owned(),
        })
    }

    /// Waits for the end and returns what was not uploaded then; `None` if it does not come in
    /// time.
    pub fn outcome_within(&self, limit: Duration) -> Option<Vec<Left>> {
        let until = self.clock.tick() + limit;
        let mut state = self.state.lock();
        while state.outcome.is_none() {
            let rest = until.saturating_sub(self.clock.tick());
            if rest.is_zero() {
                return None;
            }
            self.changed.wait_for(&mut state, rest);
        }
        state.outcome.clone()
    }

    /// Returns where the mount is at this moment, or was, and its id while it is there.
    pub fn place(&self) -> (PathBuf, Option<&str>) {
        let is_detaching = self.state.lock().is_detaching;
        let path = || self.mountpoint.path().to_owned();
        match mountinfo::by_id(&self.id) {
            Ok(Some(mount)) if !is_detaching => (mount.path, Some(&self.id)),
            Err(_) if !is_detaching => (path(), Some(&self.id)),
            _ => (path(), None),
        }
    }

    /// Returns how long an end may take to upload what is left.
    pub fn limit(&self) -> Duration {
        self.limit
    }
}

impl fmt::Debug for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mounted")
            .field("mountpoint", &self.mountpoint)
            .finish_non_exhaustive()
    }
}

fn log_left(left: &[Left]) {
    for Left { path, reason } in left {
        log::error!("not uploaded: {path}: {reason}");
    }
}
