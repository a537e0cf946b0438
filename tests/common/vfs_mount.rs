//! A `Vfs` with its host, its cache and a clock that the test advances.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use scpfs::cache::Cache;
use scpfs::cache::ConflictPolicy;
use scpfs::cache::Disk;
use scpfs::cache::Id;
use scpfs::cache::Limits;
use scpfs::cache::NoSteps;
use scpfs::cache::RecoveredFile;
use scpfs::cache::RecoveryOutcome;
use scpfs::cache::Steps;
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
use scpfs::vfs::PlacementPolicy;
use scpfs::vfs::RenameFlags;
use scpfs::vfs::Symlinks;
use scpfs::vfs::Vfs;
use scpfs::workers::Workers;

use crate::local::Userland;
use crate::local::World;

pub const TTL: Duration = Duration::from_secs(5);

/// A caller that may wait for the host.
pub const CX: Context = Context {
    uid: 0,
    gid: 0,
    wait: Wait::Allowed,
};

/// `rename(2)`, which is `renameat2(2)` without flags.
pub const REPLACE: RenameFlags = RenameFlags {
    no_replace: false,
    exchange: false,
};

/// The login user of [`Mount::of_nobody`].
pub const NOBODY: u32 = 65_534;

pub struct Mount {
    pub world: Arc<World>,
    pub remote: Arc<dyn Remote>,
    pub clock: Arc<ManualClock>,
    pub cache: Arc<Cache>,
    pub vfs: Arc<Vfs>,
    /// The content of an earlier mount, and the outcome of its recovery.
    pub recovered: Vec<RecoveredFile>,
}

/// Wraps the `Remote` of a mount.
pub type Around = Box<dyn FnOnce(Arc<dyn Remote>) -> Arc<dyn Remote>>;

/// Settings of a mount.
pub struct Setup {
    pub max_bytes: u64,
    pub conflicts: ConflictPolicy,
    pub placement: PlacementPolicy,
    pub writeback: Option<Duration>,
    pub is_offline_ok: bool,
    /// The size of the largest read-ahead, in bytes; see `Options::read_ahead`. The default is 0:
    /// the clock of a test stands still, so any two events would look like a walk without a pause.
    pub read_ahead: u64,
    pub reads_parts: bool,
    pub boot: &'static str,
    pub steps: Arc<dyn Steps>,
    pub around: Around,
    /// Whether the content of an earlier mount is uploaded before [`Mount::on`] returns.
    pub waits_for_uploads: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            max_bytes: 1 << 30,
            conflicts: ConflictPolicy::KeepBoth,
            placement: PlacementPolicy::Auto,
            writeback: None,
            is_offline_ok: false,
            read_ahead: 0,
            reads_parts: false,
            boot: "boot",
            steps: Arc::new(NoSteps),
            around: Box::new(|remote| remote),
            waits_for_uploads: true,
        }
    }
}

impl Mount {
    pub fn new() -> Self {
        Self::set_up(Setup::default())
    }

    pub fn with_cache_of(max_bytes: u64) -> Self {
        Self::set_up(Setup {
            max_bytes,
            ..Setup::default()
        })
    }

    pub fn set_up(setup: Setup) -> Self {
        Self::on(Arc::new(World::new(Userland::Gnu)), setup)
    }

    /// Mounts a world that other mounts use as well, or have used before.
    pub fn on(world: Arc<World>, setup: Setup) -> Self {
        let clock = Arc::new(ManualClock::new());
        let shell = world.shell(Arc::clone(&clock) as Arc<dyn Clock>);
        let remote = Arc::new(Retry::new(shell));
        Self::of(remote, world, clock, setup)
    }

    /// A mount whose login user is not root.
    pub fn of_nobody() -> Self {
        let world = World::new(Userland::Gnu);
        if rustix::process::geteuid().is_root() {
            world.log_in_as(NOBODY);
        }
        Self::on(Arc::new(world), Setup::default())
    }

    /// Mounts a host of any kind. The world then only contains the cache.
    pub fn of(
        remote: Arc<dyn Remote>,
        world: Arc<World>,
        clock: Arc<ManualClock>,
        setup: Setup,
    ) -> Self {
        let remote = (setup.around)(remote);
        let disk = Disk::open_with(&world.cache_base(), "key", setup.boot, setup.steps).unwrap();
        let limits = Limits {
            max_bytes: setup.max_bytes,
            min_free: 0,
        };
        let dyn_clock = Arc::clone(&clock) as Arc<dyn Clock>;
        let cache = Cache::new(
            Arc::clone(&remote),
            disk,
            limits,
            setup.conflicts,
            Arc::clone(&dyn_clock),
            Workers::new(),
        );
        let options = Options {
            ttl: TTL,
            ids: Ids::same(),
            umask: 0,
            symlinks: Symlinks::Contain,
            mountpoint: b"/mnt/here".to_vec(),
            sets_caller_as_owner: false,
            is_read_only: false,
            placement: setup.placement,
            writeback: setup.writeback,
            is_offline_ok: setup.is_offline_ok,
            read_ahead: setup.read_ahead,
            reads_parts: setup.reads_parts,
        };
        let found = cache.recover();
        let vfs = Vfs::new(Arc::clone(&remote), Arc::clone(&cache), dyn_clock, options).unwrap();
        vfs.recover(found.pending);
        let mut recovered = found.needs_decision;
        if setup.waits_for_uploads {
            // The result of drain() includes conflict copies, which are not needed here.
            drop(vfs.drain());
            recovered.extend(cache.recovered());
            recovered.extend(vfs.report().into_iter().map(|file| {
                let name = file.id.unwrap();
                let why = file.failure.unwrap_or_default();
                let path = file.path;
                let id = Id::parse(name.strip_prefix("d-").unwrap()).unwrap();
                let file = cache.disk().dir().join("content").join(name);
                let outcome = RecoveryOutcome::NextMount { why, file };
                RecoveredFile { id, path, outcome }
            }));
        }
        Self {
            world,
            remote,
            recovered,
            clock,
            cache,
            vfs,
        }
    }

    /// Ends like `kill -9`: nothing more is uploaded or recorded in the journal. Returns the world,
    /// whose cache the next mount can use.
    pub fn crash(self) -> Arc<World> {
        let Self {
            world,
            remote,
            cache,
            vfs,
            ..
        } = self;
        remote.close();
        cache.stop();
        let lock = cache.disk().dir().join("lock");
        drop((remote, cache, vfs));
        // Worker threads hold the lock until their requests have failed, because the connection is
        // closed.
        let lock = fs::File::open(lock).unwrap();
        lock.lock().unwrap();
        world
    }

    /// The path, relative to the root, of the conflict copy of a file.
    pub fn beside(&self, path: &str) -> String {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let prefix = format!("{name}.scpfs-conflict-");
        let names = fs::read_dir(self.at(dir)).unwrap();
        let mut names = names
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with(&prefix));
        let found = names.next().expect("content beside the file");
        assert_eq!(names.next(), None, "only one");
        format!("{dir}/{found}").trim_start_matches('/').to_owned()
    }

    /// The path of a file on the host.
    pub fn at(&self, name: &str) -> PathBuf {
        self.world.root().join(name)
    }

    /// Advances the clock until everything is stale.
    pub fn age(&self) {
        self.clock.advance(TTL + Duration::from_secs(1));
    }

    /// Runs `op`; returns its result and the number of round trips.
    pub fn counted<T>(&self, op: impl FnOnce() -> T) -> (T, u64) {
        let before = self.world.meter.trips();
        let result = op();
        (result, self.world.meter.trips() - before)
    }

    /// Looks up a path from the root.
    pub fn find(&self, path: &str) -> Result<Attr, Error> {
        let mut attr = self.vfs.getattr(&CX, Ino::ROOT)?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let found = self.vfs.lookup(&CX, attr.ino, name.as_bytes())?;
            attr = found.attr.ok_or(Error::NotFound)?;
        }
        Ok(attr)
    }

    pub fn open(&self, path: &str, flags: i32) -> Result<Opened, Error> {
        let ino = self.find(path)?.ino;
        self.vfs.open(&CX, ino, OpenFlags::new(flags).unwrap())
    }

    pub fn create(&self, name: &str, flags: i32) -> Result<(Attr, Opened), Error> {
        let flags = OpenFlags::new(flags | libc::O_CREAT).unwrap();
        self.vfs
            .create(&CX, Ino::ROOT, name.as_bytes(), 0o644, flags)
    }

    /// Closes a file as `close(2)` of its last descriptor does: FLUSH, then RELEASE.
    pub fn close(&self, opened: &Opened) -> Result<(), Error> {
        let result = self.vfs.flush(&CX, opened.fh);
        self.vfs.release(&CX, opened.fh).unwrap();
        result
    }

    /// Reads a whole file as `cat` does.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        let opened = self.open(path, libc::O_RDONLY)?;
        let data = self.vfs.read(&CX, opened.fh, 0, 1 << 24);
        self.close(&opened)?;
        data
    }

    /// Writes a whole file as `cp` does.
    pub fn write(&self, name: &str, data: &[u8]) -> Result<(), Error> {
        let opened = match self.find(name) {
            Ok(_) => self.open(name, libc::O_WRONLY | libc::O_TRUNC)?,
            Err(_) => self.create(name, libc::O_WRONLY)?.1,
        };
        self.vfs.write(&CX, opened.fh, 0, data)?;
        self.close(&opened)
    }

    /// Renames an entry of the root, as `rename(2)` does.
    pub fn rename(&self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<(), Error> {
        let (from, to) = ((Ino::ROOT, from.as_ref()), (Ino::ROOT, to.as_ref()));
        self.vfs.rename(&CX, from, to, REPLACE)
    }

    /// The names in a directory, without `.` and `..`.
    pub fn names(&self, path: &str) -> Result<Vec<String>, Error> {
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
