//! Getting content from the host into an entry.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::Error;
use crate::cache::disk::Private;
use crate::cache::entry::Entry;
use crate::cache::local;
use crate::cache::state::Content;
use crate::cache::state::Fetching;
use crate::cache::state::Place;
use crate::cache::state::State;
use crate::clock::Tick;
use crate::path::RemotePath;
use crate::remote;
use crate::remote::Fetched;
use crate::remote::Receiver;
use crate::stat::FileId;
use crate::stat::Version;

/// A fetch that nobody waits for any more goes on if no more than this is left: a connection that
/// is cut costs more.
const WORTH_FINISHING: u64 = 4 << 20;

impl Entry {
    /// Starts to fetch on another thread.
    pub(super) fn start_fetch(
        self: &Arc<Self>,
        state: &mut State,
        path: &RemotePath,
        version: Version,
    ) -> Result<(), Error> {
        self.cache.make_room(version.size)?;
        let (private, file) = self
            .cache
            .disk
            .create_temp()
            .map_err(local("create a file"))?;
        let file = Arc::new(file);
        state.content = Content::Fetching(Fetching {
            version,
            file: Arc::clone(&file),
            have: 0,
            total: None,
            was_read: false,
        });
        self.cache.opens.count_fetch();
        let (entry, path) = (Arc::clone(self), path.clone());
        self.cache
            .workers
            .run(move || entry.fetch(&path, version, private, file));
        Ok(())
    }

    fn fetch(&self, path: &RemotePath, version: Version, private: Private, file: Arc<File>) {
        let mut receiver = Progress {
            entry: self,
            file: &file,
            have: 0,
            total: 0,
            room: version.size,
            said: 0,
            said_at: Tick::ZERO,
            is_given_up: false,
        };
        let result = self.cache.remote.fetch(path, Some(&version), &mut receiver);
        let mut state = self.state.lock();
        let is_ours = matches!(&state.content, Content::Fetching(f) if Arc::ptr_eq(&f.file, &file));
        if !is_ours {
            // It was truncated or replaced meanwhile.
            self.cache.disk.remove_private(&private);
            return;
        }
        match result {
            Ok(fetched) => self.take_fetched(&mut state, &version, &fetched, private, file),
            Err(error) => {
                self.cache.disk.remove_private(&private);
                // Whoever came after it was given up starts another.
                let failure = (!receiver.is_given_up).then(|| {
                    log_failure(&error);
                    error.into()
                });
                state.content = Content::Absent { failure };
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Takes complete content as the clean content of this entry; `known` is the version that was
    /// asked for.
    pub(super) fn take_fetched(
        &self,
        state: &mut State,
        known: &Version,
        fetched: &Fetched,
        private: Private,
        file: Arc<File>,
    ) {
        let mut version = fetched.stat.version();
        // The sizes differ for files of /proc: what came is what there is.
        let size = file.metadata().map_or(version.size, |meta| meta.len());
        let is_whole = fetched.is_stable && size == version.size;
        let place = if is_whole && self.cache.disk.make_clean(&private, &version).is_ok() {
            Place::Named
        } else {
            version.size = size;
            Place::Private(private)
        };
        let mut base = fetched.stat.version();
        if !fetched.is_stable {
            // Matches nothing: what is here is not what the host has, and must not replace it.
            base.id = Some(FileId { dev: 0, ino: 0 });
        }
        state.set_base(base);
        state.may_write = fetched.may_write;
        state.size = size;
        state.is_unsized = !fetched.is_stable
            && fetched.stat.blocks == 0
            && fetched.stat.size == known.size
            && known.size != size;
        state.news = Some((fetched.stat, self.cache.clock.tick()));
        state.content = Content::Clean {
            version,
            file,
            place,
        };
        if !Self::is_wanted(state) {
            self.put_away(state);
        }
    }
}

/// Files that are missing or forbidden are the caller's affair; the rest is worth a line.
fn log_failure(error: &remote::Error) {
    if error.reason().is_none() {
        log::warn!("{}", remote::chain(error));
    }
}

/// Who waits for content is woken after so much more of it, or after so long: waking all of them
/// for each packet would cost more than the packet.
const WAKE_BYTES: u64 = 1 << 20;
const WAKE_AFTER: Duration = Duration::from_millis(20);

/// Writes what arrives to the file and says how far it has come.
struct Progress<'a> {
    entry: &'a Entry,
    file: &'a Arc<File>,
    have: u64,
    total: u64,
    /// How large the file may get, as far as the disk was asked.
    room: u64,
    /// How far it had come when it was last said, and when that was.
    said: u64,
    said_at: Tick,
    /// Whether nobody wanted it any more.
    is_given_up: bool,
}

impl Progress<'_> {
    /// Tells those who wait how far the fetch has come; false if it is not wanted any more.
    fn report(&self) -> bool {
        let mut state = self.entry.state.lock();
        let is_wanted = Entry::is_wanted(&state) || self.total - self.have <= WORTH_FINISHING;
        match &mut state.content {
            Content::Fetching(fetching) if Arc::ptr_eq(&fetching.file, self.file) => {
                fetching.have = self.have;
                fetching.total = Some(self.total);
            }
            _ => return false,
        }
        drop(state);
        self.entry.changed.notify_all();
        is_wanted
    }
}

impl Receiver for Progress<'_> {
    fn begin(&mut self, size: u64) -> io::Result<()> {
        if let Content::Fetching(fetching) = &self.entry.state.lock().content
            && Arc::ptr_eq(&fetching.file, self.file)
            && fetching.was_read
        {
            // Whoever read from the first attempt would get a mixture of two versions.
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        // Room was made for what the attributes said; the host may announce as much as it likes.
        if size > self.room {
            let full = |_| io::Error::from_raw_os_error(libc::ENOSPC);
            self.entry.cache.make_room(size).map_err(full)?;
            self.room = size;
        }
        self.file.set_len(0)?;
        (self.have, self.total, self.said) = (0, size, 0);
        let _ = self.report();
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, self.have)?;
        self.have += data.len() as u64;
        let now = self.entry.cache.clock.tick();
        let is_news = self.have == self.total
            || self.have - self.said >= WAKE_BYTES
            || now.saturating_sub(self.said_at) >= WAKE_AFTER;
        if !is_news {
            return Ok(());
        }
        (self.said, self.said_at) = (self.have, now);
        if self.report() {
            Ok(())
        } else {
            self.is_given_up = true;
            Err(io::Error::new(
                io::ErrorKind::Interrupted,
                "nobody wants the file any more",
            ))
        }
    }
}
