//! Fetching content from the host into an entry.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::cache::Error;
use crate::cache::disk::Private;
use crate::cache::entry::Entry;
use crate::cache::local;
use crate::cache::state::CleanName;
use crate::cache::state::Content;
use crate::cache::state::FetchedContent;
use crate::cache::state::Fetching;
use crate::clock::Tick;
use crate::error_chain;
use crate::path::RemotePath;
use crate::remote;
use crate::remote::Fetched;
use crate::remote::Receiver;
use crate::stat::FileId;
use crate::stat::Version;

/// A fetch continues without an open handle if no more bytes than this are left: to cancel it costs
/// a connection.
const WORTH_FINISHING: u64 = 4 << 20;

impl Entry {
    /// Starts a fetch on a worker, unless there is content already; returns whether it did.
    ///
    /// # Errors
    /// The local disk has no room, or could not be written.
    pub(super) fn start_fetch(
        self: &Arc<Self>,
        path: &RemotePath,
        version: Version,
    ) -> Result<bool, Error> {
        self.cache.make_room(version.size)?;
        let (private, file) = self
            .cache
            .disk
            .create_temp()
            .map_err(local("create a file"))?;
        let file = Arc::new(file);
        let has_blocks = self.blocks_version().is_some();
        let mut state = self.state.lock();
        if state.is_busy() || !matches!(state.content(), Content::Absent { .. }) {
            drop(state);
            self.cache.disk.remove_private(&private);
            return Ok(false);
        }
        state.fetch_begins(version, Arc::clone(&file));
        if has_blocks {
            // Programs have read blocks of this version: they must not get content of another one.
            state.fetched_part_is_read();
        }
        drop(state);
        self.cache.opens.count_fetch();
        let running = RunningFetch {
            entry: Arc::clone(self),
            file,
            private: Some(private),
        };
        let path = path.clone();
        self.cache
            .workers
            .run(move || running.fetch(&path, version));
        Ok(true)
    }

    /// Renames the file of a complete fetch to its version if that identifies the content; returns
    /// the clean content. `requested` is the requested version.
    pub(super) fn name_fetched(
        &self,
        requested: &Version,
        fetched: &Fetched,
        private: Private,
        file: &Arc<File>,
    ) -> (Content, FetchedContent) {
        let mut version = fetched.stat.version();
        // The sizes differ for files of /proc: the bytes received are the content.
        let size = file.metadata().map_or(version.size, |meta| meta.len());
        let is_whole = fetched.is_stable && size == version.size;
        let name = if is_whole && self.cache.disk.make_clean(&private, &version).is_ok() {
            CleanName::ByVersion
        } else {
            version.size = size;
            CleanName::Private(private)
        };
        let mut base = fetched.stat.version();
        if !fetched.is_stable {
            // Equals no version of the host: an upload must find a conflict.
            base.id = Some(FileId { dev: 0, ino: 0 });
        }
        let file = Arc::clone(file);
        let content = Content::Clean {
            version,
            file,
            name,
        };
        let is_unsized = !fetched.is_stable
            && fetched.stat.blocks == 0
            && fetched.stat.size == requested.size
            && requested.size != size;
        let fetched = FetchedContent {
            base,
            stat: fetched.stat,
            size,
            may_write: fetched.may_write,
            is_unsized,
        };
        (content, fetched)
    }
}

/// A fetch in progress. Dropping it ends it, so that no caller waits forever, even after a panic.
struct RunningFetch {
    entry: Arc<Entry>,
    file: Arc<File>,
    /// `None` when the file is that of clean content.
    private: Option<Private>,
}

impl RunningFetch {
    fn fetch(mut self, path: &RemotePath, version: Version) {
        let entry = Arc::clone(&self.entry);
        let mut receiver = Progress {
            entry: &entry,
            file: &self.file,
            have: 0,
            total: 0,
            room: version.size,
            reported: 0,
            reported_at: Tick::ZERO,
            has_begun: false,
            is_cancelled: false,
        };
        let result = entry
            .cache
            .remote
            .fetch(path, Some(&version), &mut receiver);
        let is_cancelled = receiver.is_cancelled;
        if entry.state.lock().fetch_into(&self.file).is_none() {
            // The content was truncated or replaced in the meantime.
            return;
        }
        match result {
            Ok(fetched) => self.complete(&version, &fetched),
            // The next caller starts a new fetch.
            Err(_) if is_cancelled => {}
            Err(error) => {
                log_failure(&error);
                self.end(Some(error.into()));
            }
        }
    }

    fn complete(&mut self, requested: &Version, fetched: &Fetched) {
        let Some(private) = self.private.take() else {
            return;
        };
        let entry = &self.entry;
        let (content, fetched) = entry.name_fetched(requested, fetched, private, &self.file);
        let now = entry.cache.clock.tick();
        let mut state = entry.state.lock();
        if state.fetch_into(&self.file).is_some() {
            state.fetched(content, fetched, now);
            return;
        }
        drop(state);
        // The content was truncated or replaced since the last check.
        match content {
            Content::Clean {
                version,
                name: CleanName::ByVersion,
                ..
            } => entry.cache.add_to_index(&version),
            _ => entry.cache.disk.remove_private(&private),
        }
    }

    fn end(&self, failure: Option<Error>) {
        let mut state = self.entry.state.lock();
        if state.fetch_into(&self.file).is_some() {
            state.fetch_ends(failure);
        }
    }
}

impl Drop for RunningFetch {
    fn drop(&mut self) {
        self.end(thread::panicking().then_some(Error::Internal));
        if let Some(private) = &self.private {
            self.entry.cache.disk.remove_private(private);
        }
        self.entry.changed.notify_all();
        self.entry.return_if_unused();
    }
}

/// A missing or forbidden file is reported to the caller alone; other errors are logged.
fn log_failure(error: &remote::Error) {
    if error.reason().is_none() {
        log::warn!("{}", error_chain::with_causes(error));
    }
}

/// Callers that wait for content are woken after this many more bytes, or after this time. To wake
/// them for each packet would cost more than the packet.
const WAKE_BYTES: u64 = 1 << 20;
const WAKE_AFTER: Duration = Duration::from_millis(20);

/// Writes received bytes to the file, and records the progress of the fetch.
struct Progress<'a> {
    entry: &'a Entry,
    file: &'a Arc<File>,
    have: u64,
    total: u64,
    /// The size for which there is room on the disk, in bytes.
    room: u64,
    /// The progress when it was last recorded, in bytes, and the time of that.
    reported: u64,
    reported_at: Tick,
    /// Whether content was begun before.
    has_begun: bool,
    /// The fetch was cancelled because no handle was open any more.
    is_cancelled: bool,
}

impl Progress<'_> {
    /// Records the progress and wakes the callers that wait; returns false if the fetch is to be
    /// cancelled.
    fn report(&self) -> bool {
        let mut state = self.entry.state.lock();
        let is_wanted = self.entry.is_open() || self.total - self.have <= WORTH_FINISHING;
        let Some(fetching) = state.fetch_into(self.file) else {
            return false;
        };
        fetching.have = self.have;
        fetching.total = Some(self.total);
        drop(state);
        self.entry.changed.notify_all();
        is_wanted
    }
}

impl Receiver for Progress<'_> {
    fn begin(&mut self, size: u64) -> io::Result<()> {
        let was_read = |fetching: &mut Fetching| fetching.was_read;
        let is_retry = std::mem::replace(&mut self.has_begun, true);
        if is_retry
            && self
                .entry
                .state
                .lock()
                .fetch_into(self.file)
                .is_some_and(was_read)
        {
            // The reader would get a mixture of two versions.
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        // Room was made for the size in the attributes; the host may announce a larger one.
        if size > self.room {
            let full = |_| io::Error::from_raw_os_error(libc::ENOSPC);
            self.entry.cache.make_room(size).map_err(full)?;
            self.room = size;
        }
        self.file.set_len(0)?;
        (self.have, self.total, self.reported) = (0, size, 0);
        let _ = self.report();
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, self.have)?;
        self.have += data.len() as u64;
        let now = self.entry.cache.clock.tick();
        let is_due = self.have == self.total
            || self.have - self.reported >= WAKE_BYTES
            || now.since(self.reported_at) >= WAKE_AFTER;
        if !is_due {
            return Ok(());
        }
        (self.reported, self.reported_at) = (self.have, now);
        if self.report() {
            Ok(())
        } else {
            self.is_cancelled = true;
            Err(io::Error::new(
                io::ErrorKind::Interrupted,
                "the file was closed",
            ))
        }
    }
}
