//! The end of a mount: drains within a limit, unmounts, and reports the files not uploaded.
//!
//! ```text
//! signal, control socket: drain, then unmount --+
//!                                               +--> the FUSE session ends --> finish
//! umount, fusermount3 -u -----------------------+
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

/// How long a mount that was unmounted lazily is served before the program ends anyway.
const LAZY_UNMOUNT_GRACE: Duration = Duration::from_secs(10);

/// How long the program waits before it exits, so that `scpfs umount` receives its answer.
const ANSWER_GRACE: Duration = Duration::from_millis(500);

/// The least time for the last drain, even if earlier drains have used up the limit.
const MIN_LAST_DRAIN: Duration = Duration::from_secs(5);

/// The delay before a drain that failed because the host cannot be reached is retried.
const DRAIN_RETRY_DELAY: Duration = Duration::from_millis(250);

/// An active mount: what is needed to report on it and to end it.
pub struct Mounted {
    pub(crate) vfs: Arc<Vfs>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) remote: Arc<dyn Remote>,
    pub(crate) clock: Arc<dyn Clock>,
    mountpoint: Arc<Mountpoint>,
    /// See [`mountinfo::MountLine::id`].
    id: String,
    /// How long the end of the mount may take for uploads (`drain_timeout=`).
    drain_timeout: Duration,
    /// How long a drain is retried while the host cannot be reached (`timeout=`).
    host_timeout: Duration,
    guard: Mutex<Option<Guard>>,
    state: Mutex<State>,
    /// Notified when a drain ends, and when `outcome` is set.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_draining: bool,
    /// The files that the last drain could not upload.
    not_uploaded: Vec<NotUploaded>,
    /// When the end of the mount was first requested.
    ending_since: Option<Tick>,
    /// The mount has been unmounted, or an unmount is in progress.
    is_detaching: bool,
    /// The FUSE session has ended.
    is_finishing: bool,
    /// The files that are not uploaded after the last drain; `None` before its end.
    outcome: Option<Vec<NotUploaded>>,
}

/// A file that could not be uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotUploaded {
    pub path: RemotePath,
    pub reason: String,
}

/// The progress of a drain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub is_draining: bool,
    /// The files that it could not upload; empty until it has ended.
    pub not_uploaded: Vec<NotUploaded>,
    /// All files that are not uploaded at this moment.
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
        drain_timeout: Duration,
        host_timeout: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            vfs,
            cache,
            remote,
            clock,
            mountpoint,
            id,
            drain_timeout,
            host_timeout,
            guard: Mutex::new(None),
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        })
    }

    /// Sets the guard process, which clears the mountpoint if this process is killed.
    pub fn set_guard(&self, guard: Guard) {
        *self.guard.lock() = Some(guard);
    }

    /// Ends the guard process, unless the mount still exists: then the guard clears it after this
    /// process has ended.
    pub fn release_guard(&self) {
        if let Some(guard) = self.guard.lock().take()
            && matches!(mountinfo::by_id(&self.id), Ok(None))
        {
            guard.release();
        }
    }

    /// Starts a drain on another thread, unless one is running already.
    ///
    /// Returns whether it started one.
    pub fn start_drain(self: &Arc<Self>) -> bool {
        if std::mem::replace(&mut self.state.lock().is_draining, true) {
            return false;
        }
        let mounted = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name("scpfs-drain".to_owned())
            .spawn(move || mounted.drain());
        if let Err(error) = spawned {
            log::warn!("cannot start a thread: {error}");
            self.drain();
        }
        true
    }

    fn drain(&self) {
        let since = self.clock.tick();
        // A host that cannot be reached may come back within `host_timeout`: retry.
        let failed = loop {
            let failed = self.vfs.drain();
            let is_unreachable = failed
                .iter()
                .any(|(_, error)| error.is_connection_loss() && !error.is_host_key_refused());
            if !is_unreachable || self.clock.tick().since(since) >= self.host_timeout {
                break failed;
            }
            thread::sleep(DRAIN_RETRY_DELAY);
        };
        let not_uploaded = failed.into_iter().map(|(path, error)| NotUploaded {
            path,
            reason: error_chain::with_causes(&error),
        });
        let mut state = self.state.lock();
        state.not_uploaded = not_uploaded.collect();
        state.is_draining = false;
        drop(state);
        self.changed.notify_all();
    }

    /// Returns the progress of the drain.
    pub fn progress(&self) -> Progress {
        let files = self.vfs.report();
        let state = self.state.lock();
        Progress {
            is_draining: state.is_draining,
            not_uploaded: if state.is_draining {
                Vec::new()
            } else {
                state.not_uploaded.clone()
            },
            files,
        }
    }

    /// Drains, waits at most `limit` for that, and returns the files that are not uploaded.
    fn drain_within(self: &Arc<Self>, limit: Duration) -> Vec<NotUploaded> {
        let deadline = self.clock.tick() + limit;
        loop {
            let is_new = self.start_drain();
            let mut state = self.state.lock();
            while state.is_draining {
                let remaining = deadline.since(self.clock.tick());
                if remaining.is_zero() {
                    drop(state);
                    return self.not_uploaded_within(limit);
                }
                self.changed.wait_for(&mut state, remaining);
            }
            // A drain that was running before this call may have missed later writes: drain again.
            if is_new {
                return state.not_uploaded.clone();
            }
        }
    }

    /// Returns the files that are not uploaded, with `limit` as the reason where no upload failed.
    fn not_uploaded_within(&self, limit: Duration) -> Vec<NotUploaded> {
        let reports = self.vfs.report().into_iter();
        let reason = format!("timed out after {} s", limit.as_secs_f64());
        let files = reports.map(|file| NotUploaded {
            path: file.path,
            reason: file.failure.unwrap_or_else(|| reason.clone()),
        });
        files.collect()
    }

    /// Returns how much of `drain_timeout` remains, counted from the first call of this function.
    fn remaining_drain_time(&self) -> Duration {
        let now = self.clock.tick();
        let since = *self.state.lock().ending_since.get_or_insert(now);
        let elapsed = now.since(since);
        self.drain_timeout
            .saturating_sub(elapsed)
            .max(MIN_LAST_DRAIN.min(self.drain_timeout))
    }

    /// Ends the mount because of a signal: drains and unmounts, lazily if the mount is in use.
    pub fn end_on_signal(self: &Arc<Self>, signal: &'static str) {
        log::info!("{signal}: unmounting");
        // Drain before unmounting: a file whose upload fails can still be read through the mount.
        let limit = self.remaining_drain_time();
        let n_left = self.drain_within(limit).len();
        if n_left > 0 {
            log::warn!("{n_left} files are not uploaded; unmounting anyway");
        }
        match self.unmount(WhenBusy::UnmountLazily) {
            Ok(Detached::Unmounted) => {}
            Ok(Detached::Lazily) => log::warn!(
                "the mount is in use; it was unmounted lazily and ends when its last file is \
                 closed, or after {} s",
                LAZY_UNMOUNT_GRACE.as_secs()
            ),
            Err(error) => log::error!("{}", error_chain::with_causes(&error)),
        }
    }

    /// Unmounts. `when_busy` decides what happens to a mount that is in use. After a lazy unmount
    /// the program ends after 10 s at the latest, even if files are open.
    ///
    /// # Errors
    /// The mount is in use and `when_busy` is [`WhenBusy::Fail`], or umount(2) failed: the mount is
    /// served as before.
    pub fn unmount(self: &Arc<Self>, when_busy: WhenBusy) -> Result<Detached, attach::Error> {
        if std::mem::replace(&mut self.state.lock().is_detaching, true) {
            log::info!("an unmount is in progress already");
            return Ok(Detached::Unmounted);
        }
        let detached = self.mountpoint.detach(&self.id, when_busy);
        match detached {
            // Even after a complete unmount a copy of the mount in another mount namespace, for
            // example that of a container, may keep the session alive.
            Ok(Detached::Unmounted | Detached::Lazily) => self.exit_after_grace(),
            Err(_) => self.state.lock().is_detaching = false,
        }
        detached
    }

    /// Starts a thread that ends the program after `LAZY_UNMOUNT_GRACE`, even if files are open.
    fn exit_after_grace(self: &Arc<Self>) {
        let mounted = Arc::clone(self);
        let exit = move || {
            thread::sleep(LAZY_UNMOUNT_GRACE);
            if mounted.state.lock().is_finishing {
                // The session has ended; `finish` drains and ends the program.
                return;
            }
            log::warn!("the mount is still in use; ending anyway");
            let not_uploaded = mounted.drain_within(MIN_LAST_DRAIN);
            log_not_uploaded(&not_uploaded);
            let code = if not_uploaded.is_empty() {
                ExitCode::Success
            } else {
                ExitCode::NotUploaded
            };
            mounted.state.lock().outcome = Some(not_uploaded);
            mounted.changed.notify_all();
            mounted.release_guard();
            thread::sleep(ANSWER_GRACE);
            super::exit_now(code);
        };
        let spawned = thread::Builder::new()
            .name("scpfs-exit".to_owned())
            .spawn(exit);
        if let Err(error) = spawned {
            log::warn!("cannot start a thread: {error}");
        }
    }

    /// Drains after the FUSE session has ended, closes the connections and the cache, and returns
    /// the exit status. Blocks for at most the rest of `drain_timeout`, plus the time to close.
    ///
    /// # Errors
    /// [`Error::NotUploaded`]: some files are not uploaded; their content stays in the cache.
    pub fn finish(self: &Arc<Self>) -> Result<ExitCode, Error> {
        {
            let mut state = self.state.lock();
            (state.is_detaching, state.is_finishing) = (true, true);
        }
        let not_uploaded = self.drain_within(self.remaining_drain_time());
        self.remote.close();
        self.cache.close();
        log_not_uploaded(&not_uploaded);
        let n = not_uploaded.len();
        self.state.lock().outcome = Some(not_uploaded);
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

    /// Waits for the end of the last drain and returns the files that are not uploaded; `None` if
    /// it has not ended within `limit`.
    pub fn outcome_within(&self, limit: Duration) -> Option<Vec<NotUploaded>> {
        let deadline = self.clock.tick() + limit;
        let mut state = self.state.lock();
        while state.outcome.is_none() {
            let remaining = deadline.since(self.clock.tick());
            if remaining.is_zero() {
                return None;
            }
            self.changed.wait_for(&mut state, remaining);
        }
        state.outcome.clone()
    }

    /// Returns the current or last path of the mount, and its id unless it is or is being
    /// unmounted.
    pub fn location(&self) -> (PathBuf, Option<&str>) {
        let is_detaching = self.state.lock().is_detaching;
        let path = || self.mountpoint.path().to_owned();
        match mountinfo::by_id(&self.id) {
            Ok(Some(mount)) if !is_detaching => (mount.path, Some(&self.id)),
            Err(_) if !is_detaching => (path(), Some(&self.id)),
            _ => (path(), None),
        }
    }

    /// Returns how long the end of the mount may take for uploads.
    pub fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }
}

impl fmt::Debug for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mounted")
            .field("mountpoint", &self.mountpoint)
            .finish_non_exhaustive()
    }
}

fn log_not_uploaded(files: &[NotUploaded]) {
    for NotUploaded { path, reason } in files {
        log::error!("not uploaded: {path}: {reason}");
    }
}
