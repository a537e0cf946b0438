//! What a mount tells and does when it is asked over its control socket.

use std::sync::Arc;

use crate::clock::Tick;
use crate::control::PATIENCE;
use crate::control::message::Answer;
use crate::control::message::CacheStatus;
use crate::control::message::Draining;
use crate::control::message::FileStatus;
use crate::control::message::NotStored;
use crate::control::message::Status;
use crate::control::server::Daemon;
use crate::control::show::path_text;
use crate::error_chain;
use crate::mount::attach;
use crate::mount::attach::Detached;
use crate::mount::attach::WhenBusy;
use crate::mount::end::Left;
use crate::mount::end::Mounted;
use crate::mount::end::Progress;

/// A mount, and what does not change of it.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) mounted: Arc<Mounted>,
    pub(super) source: String,
    /// When it was mounted, in seconds since 1970, and by the mount's own clock.
    pub(super) since: i64,
    pub(super) since_tick: Tick,
}

impl Daemon for Served {
    fn status(&self) -> Status {
        let mounted = &self.mounted;
        let uptime = mounted.clock.tick().saturating_sub(self.since_tick);
        let cache = mounted.cache.report();
        let directory = mounted.cache.disk().dir();
        let files = mounted.vfs.report();
        let (mountpoint, mount_id) = mounted.place();
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
            },
            files: of_each(files),
            conflicts: of_each(mounted.cache.collisions()),
            left: of_each(mounted.cache.left_by_others()),
        }
    }

    fn drain(&self) -> Draining {
        self.mounted.start_drain();
        self.progress()
    }

    fn progress(&self) -> Draining {
        self.mounted.progress().into()
    }

    fn unmount(&self, force: bool) -> Answer {
        let when_busy = if force {
            WhenBusy::Hide
        } else {
            WhenBusy::Leave
        };
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
                message: error_chain::with_causes(&error),
            },
        }
    }
}

fn of_each<T, U: From<T>>(all: Vec<T>) -> Vec<U> {
    all.into_iter().map(U::from).collect()
}

impl From<Left> for NotStored {
    fn from(left: Left) -> Self {
        Self {
            path: left.path.to_string(),
            message: left.reason,
        }
    }
}

impl From<Progress> for Draining {
    fn from(progress: Progress) -> Self {
        Self {
            is_draining: progress.is_draining,
            files: progress.files.into_iter().map(FileStatus::from).collect(),
            left: progress.left.into_iter().map(NotStored::from).collect(),
        }
    }
}
