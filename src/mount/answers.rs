//! Answers the requests of the control socket for one mount.

use std::sync::Arc;

use crate::clock::Tick;
use crate::control::IO_TIMEOUT;
use crate::control::message::Answer;
use crate::control::message::CacheStatus;
use crate::control::message::DrainProgress;
use crate::control::message::NotUploaded;
use crate::control::message::Status;
use crate::control::server::Daemon;
use crate::control::show::path_text;
use crate::error_chain;
use crate::mount::attach;
use crate::mount::attach::Detached;
use crate::mount::attach::WhenBusy;
use crate::mount::end;
use crate::mount::end::Mounted;
use crate::mount::end::Progress;

/// A mount and its constant properties.
#[derive(Debug)]
pub(super) struct ControlledMount {
    pub(super) mounted: Arc<Mounted>,
    pub(super) source: String,
    /// The time of the mount in seconds since 1970.
    pub(super) since: i64,
    /// The same moment on the monotonic clock.
    pub(super) since_tick: Tick,
}

impl Daemon for ControlledMount {
    fn status(&self) -> Status {
        let mounted = &self.mounted;
        let uptime = mounted.clock.tick().since(self.since_tick);
        let cache = mounted.cache.report();
        let directory = mounted.cache.disk().dir();
        let files = mounted.vfs.report();
        let (mountpoint, mount_id) = mounted.location();
        Status {
            source: self.source.clone(),
            mountpoint: path_text(&mountpoint),
            pid: std::process::id(),
            since: self.since,
            uptime_seconds: uptime.as_secs(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mount_id: mount_id.map(str::to_owned),
            host: mounted.remote.facts().summary.clone(),
            connection: mounted.remote.contact().into(),
            cache: CacheStatus {
                directory: path_text(directory),
                bytes: cache.bytes,
                limit: cache.max_bytes,
                hits: cache.hits,
                misses: cache.misses,
                read_ahead: cache.read_ahead.into(),
            },
            files: convert_each(files),
            conflicts: convert_each(mounted.cache.conflicts()),
            left: convert_each(mounted.cache.unrecovered()),
        }
    }

    fn drain(&self) -> DrainProgress {
        self.mounted.start_drain();
        self.progress()
    }

    fn progress(&self) -> DrainProgress {
        self.mounted.progress().into()
    }

    fn unmount(&self, force: bool) -> Answer {
        let when_busy = if force {
            WhenBusy::UnmountLazily
        } else {
            WhenBusy::Fail
        };
        match self.mounted.unmount(when_busy) {
            Ok(Detached::Unmounted) => {
                let limit = self.mounted.drain_timeout() + IO_TIMEOUT;
                match self.mounted.outcome_within(limit) {
                    Some(not_uploaded) => Answer::Unmounted {
                        left: convert_each(not_uploaded),
                    },
                    None => Answer::Failed {
                        message:
                            "it is unmounted, but the daemon has not ended in time; see its log"
                                .to_owned(),
                    },
                }
            }
            Ok(Detached::Lazily) => Answer::Hidden,
            Err(attach::Error::InUse(_)) => Answer::InUse,
            Err(error) => Answer::Failed {
                message: error_chain::with_causes(&error),
            },
        }
    }
}

fn convert_each<T, U: From<T>>(all: Vec<T>) -> Vec<U> {
    all.into_iter().map(U::from).collect()
}

impl From<end::NotUploaded> for NotUploaded {
    fn from(file: end::NotUploaded) -> Self {
        Self {
            path: file.path.to_string(),
            message: file.reason,
        }
    }
}

impl From<Progress> for DrainProgress {
    fn from(progress: Progress) -> Self {
        Self {
            is_draining: progress.is_draining,
            files: convert_each(progress.files),
            left: convert_each(progress.not_uploaded),
        }
    }
}
