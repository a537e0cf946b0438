//! Replaces the clean content of an open file by a newer version of the host.
//!
//! The newer version is fetched into a separate file while readers use the old content. When it is
//! complete, it replaces the old content atomically. A fetch that fails changes nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::Error;
use crate::cache::disk::Private;
use crate::cache::entry::Entry;
use crate::cache::entry::WHOLE_AT_OPEN;
use crate::cache::entry::Wait;
use crate::cache::local;
use crate::cache::state::Content;
use crate::cache::state::Fetching;
use crate::cache::state::Work;
use crate::clock::Tick;
use crate::error_chain;
use crate::path::RemotePath;
use crate::remote;
use crate::remote::Fetched;
use crate::remote::Reason;
use crate::remote::Receiver;
use crate::stat::Stat;
use crate::stat::Version;

/// For this long after a partial read, a refresh does not replace the content, so that a program
/// that reads in parts gets no mixture of versions. On filesystems that reuse inode numbers, a file
/// that was replaced by another cannot be distinguished from one that was changed.
const READ_PAUSE: Duration = Duration::from_secs(1);

/// The buffer size for comparing content, in bytes.
const COMPARED: usize = 64 << 10;

/// The phase of a refresh.
///
/// ```text
///   Idle --> Fetching --> Switching --> Idle
///               |  failed                ^
///               +------------------------+
/// ```
#[derive(Debug, Clone)]
enum Phase {
    /// No refresh is in progress; `failure` is why the last one failed, if it did.
    Idle { failure: Option<Error> },
    /// A newer version is being fetched. Calls for attributes wait for it only if it is small.
    Fetching { is_small: bool },
    /// The newer version is complete and is about to replace the older one, whose attributes are
    /// reported until then. `older` is `None` when it has been replaced; and from the start if
    /// calls for attributes wait for this refresh: then they wait for its end.
    Switching { older: Option<Version> },
}

/// The state of refreshes of one entry.
#[derive(Debug)]
pub(super) struct Refresh {
    phase: Phase,
    /// How many calls for attributes wait for a small refresh.
    n_awaiting: u32,
    /// Counts the replacements after which the kernel's attributes were invalidated.
    n_replacements: u64,
    /// When the attributes that started the last refresh were asked for; `None` before the first.
    refreshed_at: Option<Tick>,
    /// When a read last ended before the end of the content: its program may read on.
    part_read_at: Option<Tick>,
}

impl Default for Refresh {
    fn default() -> Self {
        Self {
            phase: Phase::Idle { failure: None },
            n_awaiting: 0,
            n_replacements: 0,
            refreshed_at: None,
            part_read_at: None,
        }
    }
}

impl Refresh {
    /// Records a read that ended before the end of the content.
    pub(super) fn part_was_read(&mut self, now: Tick) {
        self.part_read_at = Some(now);
    }

    /// Returns whether a program may be reading the content in parts.
    fn is_being_read(&self, now: Tick) -> bool {
        self.part_read_at
            .is_some_and(|at| now.since(at) < READ_PAUSE)
    }
}

/// Which refreshes a caller waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshWait {
    /// Those of small files, and those that are replacing the content already.
    IfSmall,
    /// All of them.
    Always,
}

/// The version of clean content, or of content that is being fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentVersion {
    /// Its size is that of the content.
    pub version: Version,
    /// The size in the host's attributes is not that of the content, as in `/proc`.
    pub is_unsized: bool,
}

impl Entry {
    /// Fetches `version` in the background, to replace clean content of another version, and calls
    /// `install` when the fetch is complete.
    ///
    /// `at` is the time of the attributes that showed the new version; `None` if a program opens
    /// the file. Does nothing if there is no such content, if the entry is busy or not open, if a
    /// refresh is in progress, or if one was started for attributes as new as `at`.
    ///
    /// Does not block. `install` runs on a worker, without locks. [`Self::wait_for_refresh`] waits
    /// for its end.
    pub fn refresh(
        self: &Arc<Self>,
        path: &RemotePath,
        version: Version,
        at: Option<Tick>,
        install: impl FnOnce(NewerContent) + Send + 'static,
    ) {
        let mut state = self.state.lock();
        let now = self.cache.clock.tick();
        let is_shrinking = version.size <= state.size();
        let refresh = &state.refresh;
        let is_due = state.clean_version().is_some_and(|here| here != version)
            && matches!(refresh.phase, Phase::Idle { .. })
            && at.is_none_or(|at| refresh.refreshed_at < Some(at))
            // The layer above has not taken the attributes from the last fetch yet.
            && !state.has_fetched_stat()
            && !(at.is_some() && is_shrinking && refresh.is_being_read(now))
            && self.is_open()
            && !state.is_busy();
        if !is_due {
            return;
        }
        let refresh = &mut state.refresh;
        refresh.refreshed_at = at.or(refresh.refreshed_at);
        refresh.phase = Phase::Fetching {
            is_small: version.size <= WHOLE_AT_OPEN,
        };
        drop(state);
        let guard = Guard(Arc::clone(self));
        let path = path.clone();
        self.cache
            .workers
            .run(move || match guard.0.fetch_newer(&path, version) {
                Ok((fetched, private, file)) => {
                    let continues = at.is_some() && guard.0.is_continued_by(&file);
                    let is_awaited = guard.0.begin_switch();
                    install(NewerContent {
                        is_awaited,
                        may_interrupt: at.is_none() || continues,
                        requested: version,
                        fetched,
                        file: Arc::new(file),
                        private: Some(private),
                        guard,
                    });
                }
                Err(error) => {
                    log::debug!(
                        "cannot fetch the newer version of {path}: {}",
                        error_chain::with_causes(&error)
                    );
                    let mut state = guard.0.state.lock();
                    // Dirty content is the newest: an opener that waits for the fetch gets it.
                    let failure = (!state.is_dirty()).then_some(error);
                    state.refresh.phase = Phase::Idle { failure };
                }
            });
    }

    /// Returns whether the newer content begins with the complete current content.
    fn is_continued_by(&self, newer: &File) -> bool {
        let older = match self.state.lock().content() {
            Content::Clean { file, .. } => Arc::clone(file),
            _ => return false,
        };
        let (mut ours, mut theirs) = (vec![0; COMPARED], vec![0; COMPARED]);
        let mut at = 0;
        loop {
            let Ok(n) = older.read_at(&mut ours, at) else {
                return false;
            };
            if n == 0 {
                return true;
            }
            let same = ours.get(..n).zip(theirs.get_mut(..n));
            if !same.is_some_and(|(a, b)| newer.read_exact_at(b, at).is_ok() && a == b) {
                return false;
            }
            at += n as u64;
        }
    }

    /// Enters the phase `Switching`; returns whether calls for attributes wait for the refresh.
    fn begin_switch(&self) -> bool {
        let mut state = self.state.lock();
        let is_awaited = state.refresh.n_awaiting > 0;
        let older = state.clean_version().filter(|_| !is_awaited);
        state.refresh.phase = Phase::Switching { older };
        is_awaited
    }

    /// Waits for the end of a refresh, if it is one of `which`.
    ///
    /// # Errors
    /// [`Error::WouldWait`], or why the last refresh failed.
    pub fn wait_for_refresh(&self, which: RefreshWait, wait: Wait) -> Result<(), Error> {
        let mut state = self.state.lock();
        loop {
            let is_awaited = match &state.refresh.phase {
                Phase::Fetching { is_small } => *is_small,
                Phase::Switching { older } => older.is_none(),
                Phase::Idle { failure: None } => return Ok(()),
                Phase::Idle {
                    failure: Some(error),
                } => return Err(error.clone()),
            };
            if !is_awaited && which == RefreshWait::IfSmall {
                return Ok(());
            }
            let n_awaiting = u32::from(which == RefreshWait::IfSmall && wait == Wait::Allowed);
            state.refresh.n_awaiting += n_awaiting;
            let waited = self.wait(&mut state, wait);
            state.refresh.n_awaiting -= n_awaiting;
            waited?;
        }
    }

    /// Returns how often the content was replaced and the kernel's attributes were invalidated. The
    /// kernel discards attributes that it asked for before the invalidation.
    pub fn n_replacements(&self) -> u64 {
        self.state.lock().refresh.n_replacements
    }

    /// Returns the version of clean content, or of content that is being fetched.
    pub fn content_version(&self) -> Option<ContentVersion> {
        let state = self.state.lock();
        match state.content() {
            Content::Clean { version, .. } => Some(ContentVersion {
                version: match &state.refresh.phase {
                    Phase::Switching { older: Some(older) } => *older,
                    _ => *version,
                },
                is_unsized: state.is_unsized(),
            }),
            Content::Fetching(Fetching { version, total, .. }) => Some(ContentVersion {
                version: Version {
                    size: total.unwrap_or(version.size),
                    ..*version
                },
                is_unsized: false,
            }),
            Content::Absent { .. } | Content::Dirty { .. } => None,
        }
    }

    fn fetch_newer(
        &self,
        path: &RemotePath,
        version: Version,
    ) -> Result<(Fetched, Private, File), Error> {
        self.cache.make_room(version.size)?;
        let create = self.cache.disk.create_temp();
        let (private, file) = create.map_err(local("create a file"))?;
        let mut receiver = NewerReceiver {
            entry: self,
            file: &file,
            have: 0,
            room: version.size,
        };
        self.cache.opens.count_fetch();
        let fetched = self.cache.remote.fetch(path, Some(&version), &mut receiver);
        // Another inode: the open file was replaced by another one.
        let fetched = fetched.and_then(|fetched| match fetched.stat.id == version.id {
            true => Ok(fetched),
            false => Err(remote::Error::Refused {
                act: "fetch",
                path: path.clone(),
                reason: Reason::Changed,
                text: Vec::new(),
            }),
        });
        match fetched {
            Ok(fetched) => Ok((fetched, private, file)),
            Err(error) => {
                self.cache.disk.remove_private(&private);
                Err(error.into())
            }
        }
    }
}

/// Ends a refresh when it is dropped.
struct Guard(Arc<Entry>);

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        if !matches!(state.refresh.phase, Phase::Idle { .. }) {
            state.refresh.phase = Phase::Idle { failure: None };
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

/// A complete newer version of open content, before it replaces the older one. Until this is
/// dropped, calls for attributes get those of the older version, or wait.
pub struct NewerContent {
    /// Calls for attributes wait for this refresh, and their answers tell the kernel of the new
    /// version. The kernel must not be notified then: it would discard these answers.
    pub is_awaited: bool,
    /// The content may be replaced even if a program is reading the older one in parts: because it
    /// was only appended to, or because a program opens the file, which must get the newest
    /// version.
    may_interrupt: bool,
    /// The requested version.
    requested: Version,
    fetched: Fetched,
    file: Arc<File>,
    /// `None` once it is installed.
    private: Option<Private>,
    guard: Guard,
}

impl NewerContent {
    /// Replaces the older content; returns the attributes of the newer version. Returns `None`, and
    /// replaces nothing, if the older content is not clean any more, is busy, or is being read in
    /// parts.
    pub fn install(&mut self) -> Option<Stat> {
        let entry = &self.guard.0;
        let now = entry.cache.clock.tick();
        let mut state = entry.state.lock();
        let old = state.clean_version()?;
        if state.is_busy() || (!self.may_interrupt && state.refresh.is_being_read(now)) {
            return None;
        }
        let private = self.private.take()?;
        let busy = entry.begin(&mut state, Work::Changing);
        drop(state);
        let (content, fetched) =
            entry.name_fetched(&self.requested, &self.fetched, private, &self.file);
        let mut state = entry.state.lock();
        let taken = state.take_clean();
        state.fetched(content, fetched, now);
        // The attributes are returned instead.
        let _taken = state.take_fetched_stat();
        state.refresh.phase = Phase::Switching { older: None };
        drop(state);
        drop(busy);
        entry.return_to_index(taken);
        entry.cache.forget(&old);
        entry.return_if_unused();
        Some(self.fetched.stat)
    }
}

impl Drop for NewerContent {
    fn drop(&mut self) {
        if let Some(private) = &self.private {
            self.guard.0.cache.disk.remove_private(private);
        } else if !self.is_awaited {
            self.guard.0.state.lock().refresh.n_replacements += 1;
        }
    }
}

impl std::fmt::Debug for NewerContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewerContent")
            .field("fetched", &self.fetched)
            .finish_non_exhaustive()
    }
}

/// Writes a newer version to a separate file.
struct NewerReceiver<'a> {
    entry: &'a Entry,
    file: &'a File,
    have: u64,
    /// The size for which there is room on the disk, in bytes.
    room: u64,
}

impl Receiver for NewerReceiver<'_> {
    fn begin(&mut self, size: u64) -> io::Result<()> {
        if size > self.room {
            let full = |_| io::Error::from_raw_os_error(libc::ENOSPC);
            self.entry.cache.make_room(size).map_err(full)?;
            self.room = size;
        }
        self.have = 0;
        self.file.set_len(0)
    }

    fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, self.have)?;
        self.have += data.len() as u64;
        if self.entry.is_open() && self.entry.state.lock().is_clean() {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::Interrupted,
            "the file was closed or written to",
        ))
    }
}
