//! A `Vfs` with its host, its cache and a clock that moves when a test says so.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use scpfs::cache::Cache;
use scpfs::cache::Disk;
use scpfs::cache::Limits;
use scpfs::cache::Wait;
use scpfs::clock::Clock;
use scpfs::clock::ManualClock;
use scpfs::remote::Remote;
use scpfs::remote::retry::Retry;
use scpfs::vfs::Attr;
use scpfs::vfs::Context;
use scpfs::vfs::Error;
use scpfs::vfs::Ids;
use scpfs::vfs::Ino;
use scpfs::vfs::OpenFlags;
use scpfs::vfs::Opened;
use scpfs::vfs::Options;
use scpfs::vfs::Symlinks;
use scpfs::vfs::Vfs;
use scpfs::workers::Workers;

use crate::local::Userland;
use crate::local::World;

pub(crate) const TTL: Duration = Duration::from_secs(5);

/// Somebody who may wait.
pub(crate) const CX: Context = Context {
    uid: 0,
    gid: 0,
    wait: Wait::Allowed,
};

pub(crate) struct Mount {
    pub(crate) world: World,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) vfs: Arc<Vfs>,
}

impl Mount {
    pub(crate) fn new() -> Self {
        Self::of(World::new(Userland::Gnu), 1 << 30)
    }

    pub(crate) fn with_cache_of(max_bytes: u64) -> Self {
        Self::of(World::new(Userland::Gnu), max_bytes)
    }

    fn of(world: World, max_bytes: u64) -> Self {
        let clock = Arc::new(ManualClock::new());
        let shell = world.shell(Arc::clone(&clock) as Arc<dyn Clock>);
        Self::on(Arc::new(Retry::new(shell)), world, clock, max_bytes)
    }

    /// On a host of any kind; the world is for the cache then.
    pub(crate) fn on(
        remote: Arc<dyn Remote>,
        world: World,
        clock: Arc<ManualClock>,
        max_bytes: u64,
    ) -> Self {
        let disk = Disk::open(&world.cache_base(), "key", "boot").unwrap();
        let limits = Limits {
            max_bytes,
            min_free: 0,
        };
        let dyn_clock = Arc::clone(&clock) as Arc<dyn Clock>;
        let cache = Cache::new(
            Arc::clone(&remote),
            disk,
            limits,
            Arc::clone(&dyn_clock),
            Workers::new(),
        );
        let options = Options {
            ttl: TTL,
            ids: Ids::same(),
            umask: 0,
            symlinks: Symlinks::Contain,
            mountpoint: b"/mnt/here".to_vec(),
            gives_away: false,
            is_read_only: false,
        };
        let vfs = Vfs::new(remote, Arc::clone(&cache), dyn_clock, options).unwrap();
        Self {
            world,
            clock,
            cache,
            vfs,
        }
    }

    /// A file as the host sees it.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.world.root().join(name)
    }

    /// Lets so much time pass that nothing is fresh any more.
    pub(crate) fn age(&self) {
        self.clock.advance(TTL + Duration::from_secs(1));
    }

    /// Runs something and returns what it gave and how many round trips it took.
    pub(crate) fn counted<T>(&self, op: impl FnOnce() -> T) -> (T, u64) {
        let before = self.world.meter.trips();
        let result = op();
        (result, self.world.meter.trips() - before)
    }

    /// Follows a path from the root.
    pub(crate) fn find(&self, path: &str) -> Result<Attr, Error> {
        let mut attr = self.vfs.getattr(&CX, Ino::ROOT)?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let found = self.vfs.lookup(&CX, attr.ino, name.as_bytes())?;
            attr = found.attr.ok_or(Error::NotFound)?;
        }
        Ok(attr)
    }

    pub(crate) fn open(&self, path: &str, flags: i32) -> Result<Opened, Error> {
        let ino = self.find(path)?.ino;
        self.vfs.open(&CX, ino, OpenFlags::new(flags).unwrap())
    }

    pub(crate) fn create(&self, name: &str, flags: i32) -> Result<(Attr, Opened), Error> {
        let flags = OpenFlags::new(flags | libc::O_CREAT).unwrap();
        self.vfs
            .create(&CX, Ino::ROOT, name.as_bytes(), 0o644, flags)
    }

    /// What `close(2)` of a file's last descriptor does.
    pub(crate) fn close(&self, opened: &Opened) -> Result<(), Error> {
        let result = self.vfs.flush(&CX, opened.fh);
        self.vfs.release(&CX, opened.fh).unwrap();
        result
    }

    /// Reads a whole file as `cat` does.
    pub(crate) fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        let opened = self.open(path, libc::O_RDONLY)?;
        let data = self.vfs.read(&CX, opened.fh, 0, 1 << 24);
        self.close(&opened)?;
        data
    }

    /// Writes a whole file as `cp` does.
    pub(crate) fn write(&self, name: &str, data: &[u8]) -> Result<(), Error> {
        let opened = match self.find(name) {
            Ok(_) => self.open(name, libc::O_WRONLY | libc::O_TRUNC)?,
            Err(_) => self.create(name, libc::O_WRONLY)?.1,
        };
        self.vfs.write(&CX, opened.fh, 0, data)?;
        self.close(&opened)
    }

    /// The names in a directory, without `.` and `..`.
    pub(crate) fn names(&self, path: &str) -> Result<Vec<String>, Error> {
        let ino = self.find(path)?.ino;
        let fh = self.vfs.opendir(ino)?;
        let mut items = self.vfs.readdir(&CX, fh, 0)?;
        let mut names = Vec::new();
        while let Some((item, _)) = items.peek() {
            names.push(String::from_utf8(item.name.to_vec()).unwrap());
            items.advance();
        }
        self.vfs.releasedir(fh);
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }
}
