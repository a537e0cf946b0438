//! Programs that write.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::fd::IntoRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use scpfs::sync::Mutex;

use scpfs_testing::random::Random;

use crate::model::Model;
use crate::model::N_FILES;
use crate::model::Slot;
use crate::model::name_of;

const N_WRITERS: usize = 4;

/// Results of the writers of a round.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) n_acknowledged: u64,
    pub(crate) n_failed: u64,
    pub(crate) slowest: Duration,
    /// Violations, one line each.
    pub(crate) wrong: Vec<String>,
    /// All operations with their results, to find the cause of a failure.
    pub(crate) story: Vec<String>,
}

/// The writers of a round.
#[derive(Debug)]
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// `dir` is the mountpoint. The writers hold it open: after the daemon is killed and the mount
    /// ends, its name leads to a plain local directory.
    pub(crate) fn start(dir: PathBuf, model: &Arc<Model>, random: &mut Random) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let since = Instant::now();
        let dir = Arc::new(File::open(dir).unwrap());
        let threads = (0..N_WRITERS)
            .map(|n| {
                let mut writer = Writer {
                    dir: Arc::clone(&dir),
                    model: Arc::clone(model),
                    random: Random::new(random.next_u64()),
                    seen: Arc::clone(&seen),
                    since,
                };
                let stop = Arc::clone(&stop);
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let own = N_FILES / N_WRITERS;
                        let at = usize::try_from(writer.random.below(own as u64)).unwrap();
                        writer.work(n * own + at);
                    }
                })
            })
            .collect();
        Self {
            stop,
            seen,
            threads,
        }
    }

    pub(crate) fn finish(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        std::mem::take(&mut self.seen.lock())
    }
}

struct Writer {
    dir: Arc<File>,
    model: Arc<Model>,
    random: Random,
    seen: Arc<Mutex<Seen>>,
    since: Instant,
}

/// An open file and its content as the writer knows it.
struct Open {
    file: File,
    base: Vec<u8>,
}

impl Writer {
    fn work(&mut self, file: usize) {
        let op = self.random.below(8);
        let result = match op {
            0 | 1 => self.rewrite(file),
            2 | 3 => self.in_place(file),
            4 | 5 => self.append(file),
            _ => self.replace(file),
        };
        match result {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => {
                self.seen.lock().n_failed += 1;
                // Limits the rate of failures while the host cannot be reached.
                thread::sleep(Duration::from_millis(5));
            }
        }
        let pause = self.random.below(8);
        thread::sleep(Duration::from_millis(pause));
    }

    fn len(&mut self) -> usize {
        let max = match self.random.below(60) {
            0 => 20 << 20,
            1..=4 => 2 << 20,
            5..=20 => 200 << 10,
            _ => 8 << 10,
        };
        usize::try_from(100 + self.random.below(max)).unwrap()
    }

    fn path(&self, file: usize, slot: Slot) -> PathBuf {
        let dir = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()));
        dir.join(name_of(file, slot))
    }

    /// Measures a call, and records its result.
    fn timed<T>(
        &self,
        what: &str,
        file: usize,
        op: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let begun = Instant::now();
        let result = op();
        let took = begun.elapsed();
        let mut seen = self.seen.lock();
        seen.slowest = seen.slowest.max(took);
        let at = (begun - self.since).as_millis();
        let end = result.as_ref().err().map_or_else(
            || "ok".to_owned(),
            |error| {
                error
                    .raw_os_error()
                    .map_or_else(|| error.to_string(), |e| format!("errno {e}"))
            },
        );
        seen.story.push(format!(
            "{at} ms f{file} {what}: {end}, {} ms",
            took.as_millis()
        ));
        result
    }

    fn open(&self, file: usize, slot: Slot, options: &OpenOptions) -> io::Result<File> {
        let path = self.path(file, slot);
        self.timed(&format!("open {}", name_of(file, slot)), file, || {
            options.open(&path)
        })
    }

    /// Opens a file, and reads its content.
    fn open_old(&self, file: usize, appends: bool) -> io::Result<Open> {
        let mut options = File::options();
        options.read(true).append(appends).write(!appends);
        let mut opened = self.open(file, Slot::File, &options)?;
        let mut base = Vec::new();
        self.timed("read", file, || opened.read_to_end(&mut base))?;
        match self.model.identify(file, &base) {
            None => self.wrong(format!("MIXTURE read from f{file}: {}", head(&base))),
            Some(version) if self.model.is_stale(file, version) => {
                let acknowledged = self.model.acknowledged(file, Slot::File);
                self.wrong(format!(
                    "STALE: read version {version} of f{file}, {acknowledged} was acknowledged"
                ));
            }
            Some(_) => {}
        }
        Ok(Open { file: opened, base })
    }

    fn wrong(&self, what: String) {
        self.seen.lock().wrong.push(what);
    }

    /// Overwrites a file from its beginning, with `O_TRUNC`.
    fn rewrite(&mut self, file: usize) -> io::Result<()> {
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        let file_ = self.open(file, Slot::File, &options)?;
        let len = self.len();
        self.fill(
            file,
            Slot::File,
            Open {
                file: file_,
                base: Vec::new(),
            },
            len,
            0,
        )
        .map(drop)
    }

    /// Overwrites a file in place, without truncating it first.
    fn in_place(&mut self, file: usize) -> io::Result<()> {
        let opened = self.open_old(file, false)?;
        let len = self.len();
        self.fill(file, Slot::File, opened, len, 0).map(drop)
    }

    fn append(&mut self, file: usize) -> io::Result<()> {
        let opened = self.open_old(file, true)?;
        if opened.base.len() > 300 << 10 {
            return Ok(());
        }
        let len = usize::try_from(100 + self.random.below(4000)).unwrap();
        let at = opened.base.len();
        self.fill(file, Slot::File, opened, len, at).map(drop)
    }

    /// Writes a new file and renames it over the old one, like an editor.
    fn replace(&mut self, file: usize) -> io::Result<()> {
        let (new, old) = (self.path(file, Slot::New), self.path(file, Slot::File));
        let mut options = File::options();
        options.write(true);
        if self.random.one_in(2) {
            self.model.give_up(file, Slot::New);
            match self.timed("unlink new", file, || fs::remove_file(&new)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            self.model.know(file, 0, b"");
            options.create_new(true);
        } else {
            options.create(true).truncate(true);
        }
        let opened = self.open(file, Slot::New, &options)?;
        let len = self.len();
        let open = Open {
            file: opened,
            base: Vec::new(),
        };
        let Some(version) = self.fill(file, Slot::New, open, len, 0)? else {
            return Ok(());
        };
        self.timed("rename", file, || fs::rename(&new, &old))?;
        self.model.renamed(file, version);
        Ok(())
    }

    /// Writes the next version into an open file at an offset, up to its end, and closes it.
    /// Returns the version if it was acknowledged.
    fn fill(
        &mut self,
        file: usize,
        slot: Slot,
        open: Open,
        len: usize,
        at: usize,
    ) -> io::Result<Option<u64>> {
        let Open { file: opened, base } = open;
        let (version, record) = self.model.next(file, len);
        let wanted = [&base[..at], &record].concat();
        self.model.know(file, version, &wanted);
        self.model.begin(file, slot);
        let mut done = at;
        let mut result = Ok(());
        while done < wanted.len() && result.is_ok() {
            let chunk = usize::try_from(1 + self.random.below(64 << 10)).unwrap();
            // Large contents are written in few steps.
            let chunk = chunk.max(wanted.len() / 20);
            let end = wanted.len().min(done + chunk);
            let part = &wanted[done..end];
            result = if at > 0 {
                // The descriptor is in append mode.
                (&opened).write_all(part)
            } else {
                opened.write_all_at(part, done as u64)
            };
            if result.is_ok() {
                done = end;
            }
            if self.random.one_in(8) {
                let pause = self.random.below(6);
                thread::sleep(Duration::from_millis(pause));
            }
        }
        if result.is_ok() && base.len() > wanted.len() {
            result = self.timed("ftruncate", file, || opened.set_len(wanted.len() as u64));
        }
        if let Err(error) = &result {
            self.seen
                .lock()
                .story
                .push(format!("f{file} v{version} write: {error}"));
            // The file has the part that was written, followed by the rest of the base version.
            let mut torn = wanted[..done].to_vec();
            torn.extend_from_slice(base.get(done..).unwrap_or_default());
            self.model.know(file, version, &torn);
        } else {
            self.model.complete(file, slot, version);
        }
        let is_written = result.is_ok();
        let mut is_acknowledged = false;
        let name = name_of(file, slot);
        if is_written && self.random.one_in(3) {
            let synced = self.timed(&format!("fsync {name} v{version}"), file, || {
                opened.sync_all()
            });
            is_acknowledged = synced.is_ok();
            self.note(file, &synced);
        }
        let closed = self.timed(
            &format!("close {name} v{version} of {} bytes", wanted.len()),
            file,
            || close(opened),
        );
        self.note(file, &closed);
        is_acknowledged |= is_written && closed.is_ok();
        if is_acknowledged {
            self.model.acknowledge(file, slot, version);
            self.seen.lock().n_acknowledged += 1;
        }
        result?;
        closed?;
        Ok(Some(version))
    }

    fn note(&self, file: usize, result: &io::Result<()>) {
        if let Err(error) = result
            && error.raw_os_error() == Some(libc::ESTALE)
        {
            self.model.conflict(file);
        }
    }
}

fn close(file: File) -> io::Result<()> {
    let fd = file.into_raw_fd();
    // SAFETY: this function owns the descriptor, which is not used after this.
    match unsafe { libc::close(fd) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The size and the start of a content, for messages.
pub(crate) fn head(content: &[u8]) -> String {
    let head = String::from_utf8_lossy(&content[..content.len().min(60)]).into_owned();
    format!("{} bytes, {head:?}", content.len())
}
