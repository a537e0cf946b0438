//! Replacing the clean content of an open file by a newer version of the host.
//!
//! The newer version is fetched into a file of its own, beside the content that readers have; it
//! takes the place of that in one step when it is complete. A fetch that fails changes nothing.

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

/// A program that reads a file in parts is given no part of a newer version so soon after a part of
/// the older one: a file that was replaced by another cannot be told from one that was changed, where
/// the filesystem gives its inode number to the next.
const READ_PAUSE: Duration = Duration::from_secs(1);

/// How many bytes are compared at a time.
const COMPARED: usize = 64 << 10;

/// How far the replacement of clean content has come.
///
/// ```text
///   Idle --> Fetching --> Switching --> Idle
///               |  failed                ^
///               +------------------------+
/// ```
#[derive(Debug, Clone)]
enum Phase {
    /// Nothing is under way; `failure` is why the last fetch failed, if it did.
    Idle { failure: Option<Error> },
    /// A newer version is being fetched. Callers that want the newest wait only if it is small.
    Fetching { is_small: bool },
    /// The newer version is complete and takes the place of the older one, which attributes show
    /// until it has; `None` from then on, or from the start where calls for attributes wait for it
    /// anyway: then they wait for the end.
    Switching { older: Option<Version> },
}

/// The replacement of clean content, and what is known of those who read the older.
#[derive(Debug)]
pub(super) struct Refresh {
    phase: Phase,
    /// Calls for attributes that wait for a small refresh.
    n_awaiting: u32,
    /// Counts the newer versions of which the kernel was told.
    n_replacements: u64,
    /// How new the attributes were for which the last refresh was started; `None` before the first.
    refreshed_at: Option<Tick>,
    /// When a read last ended before the end of the content.
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
    /// Notes that a reader got a part of the content.
    pub(super) fn part_was_read(&mut self, now: Tick) {
        self.part_read_at = Some(now);
    }

    /// Whether a program may be in the middle of reading the content.
    fn is_being_read(&self, now: Tick) -> bool {
        self.part_read_at
            .is_some_and(|at| now.saturating_sub(at) < READ_PAUSE)
    }
}

/// Which refresh is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshWait {
    /// One of a small file, and one that is complete.
    IfSmall,
    Always,
}

/// The version of content that is the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentVersion {
    /// Its size is that of the content that is here or on its way.
    pub version: Version,
    /// Whether the size that the host tells says nothing, as in `/proc`.
    pub is_unsized: bool,
}

impl Entry {
    /// Fetches `version` in the background to replace clean content of another version, and calls
    /// `install` when it is complete. Does nothing where there is no such content, where a refresh
    /// is under way, or where one was started for attributes as new as those of `at`, if that is
    /// given.
    ///
    /// `install` runs on a worker, without locks. [`Self::wait_for_refresh`] waits for its end.
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
            // The attributes that came with the content were not taken yet.
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
                        known: version,
                        fetched,
                        file: Arc::new(file),
                        private: Some(private),
                        guard,
                    });
                }
                Err(error) => {
                    log::debug!(
                        "the newer {path} is not here: {}",
                        error_chain::with_causes(&error)
                    );
                    let failure = Some(error);
                    guard.0.state.lock().refresh.phase = Phase::Idle { failure };
                }
            });
    }

    /// Returns whether a newer content begins with all of the one that is here.
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

    /// Says that a newer version is complete; returns whether calls for attributes wait for it.
    fn begin_switch(&self) -> bool {
        let mut state = self.state.lock();
        let is_awaited = state.refresh.n_awaiting > 0;
        let older = state.clean_version().filter(|_| !is_awaited);
        state.refresh.phase = Phase::Switching { older };
        is_awaited
    }

    /// Waits for the end of a refresh.
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

    /// Returns how often a newer version took the place of an older one and the kernel was told.
    /// The kernel takes no attributes for which it asked before it was told.
    pub fn n_replacements(&self) -> u64 {
        self.state.lock().refresh.n_replacements
    }

    /// Returns the version of content that is the host's, here or on its way.
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
        let mut receiver = Beside {
            entry: self,
            file: &file,
            have: 0,
            room: version.size,
        };
        self.cache.opens.count_fetch();
        let fetched = self.cache.remote.fetch(path, Some(&version), &mut receiver);
        // A file that was replaced by another is not the one that is open.
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

/// Ends a refresh, however it ends.
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

/// A newer version of open content, complete and not yet shown to anybody. Attributes are those of
/// the older one, or wait, until this is dropped.
pub struct NewerContent {
    /// Whether calls for attributes wait for this, so that the kernel hears of it by their answers.
    /// Answers to what it asked before it is told otherwise do not count to it.
    pub is_awaited: bool,
    /// Whether a program that reads the older content in parts may go on with this: because it begins
    /// with all of that, or because somebody opens the file, who must get the newest.
    may_interrupt: bool,
    /// The version that was asked for.
    known: Version,
    fetched: Fetched,
    file: Arc<File>,
    /// `None` once it is installed.
    private: Option<Private>,
    guard: Guard,
}

impl NewerContent {
    /// Replaces the older content; returns the attributes that belong to the newer one. `None`
    /// where the older content is not clean any more: then it stays.
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
            entry.name_fetched(&self.known, &self.fetched, private, &self.file);
        let mut state = entry.state.lock();
        let taken = state.take_clean();
        state.fetched(content, fetched, now);
        // The caller has the attributes.
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

/// Writes what arrives to a file that nobody reads yet.
struct Beside<'a> {
    entry: &'a Entry,
    file: &'a File,
    have: u64,
    /// How large the file may get, as far as the disk was asked.
    room: u64,
}

impl Receiver for Beside<'_> {
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
