//! Wires the layers: connects, mounts, serves until the end, stores what is left.
//!
//! May use everything; nothing uses it but `main`.

pub mod attach;
pub mod daemon;
pub mod signals;
pub mod terminal;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fuser::Session;
use fuser::SessionACL;
use sha2::Digest as _;

use crate::cache;
use crate::cache::Cache;
use crate::cache::Disk;
use crate::cache::Fate;
use crate::cache::Limits;
use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::config::Idmap;
use crate::fuse::Fuse;
use crate::fuse::N_LOOPS;
use crate::mount::attach::Mountpoint;
use crate::mount::daemon::Readiness;
use crate::mount::terminal::StandardInput;
use crate::mount::terminal::Terminal;
use crate::path::Escaped;
use crate::path::RemotePath;
use crate::remote;
use crate::remote::Remote;
use crate::remote::lane;
use crate::remote::probe;
use crate::remote::retry::Retry;
use crate::sync::Mutex;
use crate::transport;
use crate::transport::Prompt;
use crate::transport::libssh2::Libssh2;
use crate::vfs;
use crate::vfs::Change;
use crate::vfs::Ids;
use crate::vfs::Pair;
use crate::vfs::Vfs;
use crate::workers::Workers;

/// The default of `cache_size=`, and the share of the disk that bounds it.
const DEFAULT_CACHE: u64 = 10 << 30;
const DEFAULT_CACHE_SHARE: u64 = 10;

/// The default of `min_free=`, and the share of the disk that bounds it.
const DEFAULT_MIN_FREE: u64 = 1 << 30;
const DEFAULT_MIN_FREE_SHARE: u64 = 20;

/// How long a busy mount may be served after a signal asked for its end.
const LAST_USERS: Duration = Duration::from_secs(10);

/// How long to wait before what could not be stored at the end is tried again.
const DRAIN_PAUSE: Duration = Duration::from_millis(250);

/// Why a mount did not come about, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Mountpoint(#[from] attach::Error),
    #[error(transparent)]
    Transport(#[from] transport::Error),
    #[error(
        "{host} port {port} does not answer as an SSH server should; is it one, and is it well?"
    )]
    NoAnswer {
        host: String,
        port: u16,
        source: transport::Error,
    },
    #[error(transparent)]
    Probe(#[from] probe::Error),
    #[error("cannot use the cache directory; choose another with -o cache_dir=DIR")]
    Disk(#[from] cache::DiskError),
    #[error("cannot read the directory on the host")]
    Root(#[source] vfs::Error),
    #[error("cannot {act}")]
    System {
        act: &'static str,
        source: io::Error,
    },
    #[error(
        "{n} files could not be stored on the host; their contents are kept in {}",
        kept_in.display()
    )]
    NotStored { n: usize, kept_in: PathBuf },
}

impl Error {
    /// Returns the status to exit with, as documented in the README.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Transport(error)
            | Self::Probe(probe::Error::Lane(lane::Error::Transport(error))) => match error {
                transport::Error::HostKey(_) => 3,
                transport::Error::Auth(_) => 4,
                _ => 2,
            },
            Self::NoAnswer { .. } | Self::Probe(probe::Error::Lane(_)) => 2,
            Self::Mountpoint(_) | Self::Disk(_) | Self::System { .. } => 5,
            Self::NotStored { .. } => 6,
            Self::Probe(_) | Self::Root(_) => 7,
        }
    }
}

/// Where in its life the mount is, for whoever handles a signal.
#[derive(Debug)]
enum Phase {
    Starting,
    Mounted {
        vfs: Arc<Vfs>,
        mountpoint: Arc<Mountpoint>,
        patience: Duration,
    },
    Ending,
}

/// Mounts and serves until the mount ends; in the background unless `config` says otherwise.
///
/// Returns the status to exit with.
pub fn run(config: &Config, fusermount: Option<PathBuf>) -> Result<u8, Error> {
    let mountpoint = Mountpoint::check(&config.mount, fusermount)?;
    let readiness = if config.mount.is_foreground {
        Readiness::nobody()
    } else {
        match daemon::fork().map_err(system("go to the background"))? {
            daemon::Role::Parent(status) => return Ok(status),
            daemon::Role::Child(readiness) => readiness,
        }
    };
    signals::block().map_err(system("block signals"))?;
    init_logging(config);
    let terminal = Arc::new(Terminal::new());
    let phase = Arc::new(Mutex::new(Phase::Starting));
    watch_signals(Arc::clone(&phase), Arc::clone(&terminal))?;
    serve(config, mountpoint, readiness, terminal, &phase)
}

fn serve(
    config: &Config,
    mountpoint: Mountpoint,
    readiness: Readiness,
    terminal: Arc<Terminal>,
    phase: &Mutex<Phase>,
) -> Result<u8, Error> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let (transport, shell) = connect(config, terminal, &clock)?;
    let facts = shell.facts().clone();
    log::info!("{}: {}", config.source, facts.summary);
    if config.files.is_offline_ok {
        shell.lanes().fail_fast();
    }
    let patience = config.connection.timeout;
    let remote = Retry::new(shell).with_patience(Arc::clone(&clock), patience);
    let remote: Arc<dyn Remote> = Arc::new(remote);
    let workers = Workers::new();
    let cache = open_cache(config, &transport, &facts, &remote, &clock)?;
    recover(config, &cache);
    let options = vfs_options(config, &facts, mountpoint.path());
    let vfs =
        Vfs::new(Arc::clone(&remote), Arc::clone(&cache), clock, options).map_err(Error::Root)?;
    transport.silence();

    let mountpoint = Arc::new(mountpoint);
    let device = mountpoint.attach(&config.mount)?;
    let guard = Unmount(&mountpoint);
    let acl = match (config.mount.allow_other, config.mount.allow_root) {
        (true, _) => SessionACL::All,
        (false, true) => SessionACL::RootAndOwner,
        (false, false) => SessionACL::Owner,
    };
    let mut session_config = fuser::Config::default();
    session_config.acl = acl;
    session_config.n_threads = Some(N_LOOPS);
    let tellers = workers.clone();
    let fuse = Fuse::new(Arc::clone(&vfs), workers);
    let session = Session::from_fd(fuse, device, acl, session_config)
        .map_err(system("speak with the kernel"))?;
    let notifier = session.notifier();
    vfs.set_notify(Box::new(move |change| {
        tell_kernel(&notifier, &tellers, change)
    }));
    *phase.lock() = Phase::Mounted {
        vfs: Arc::clone(&vfs),
        mountpoint: Arc::clone(&mountpoint),
        patience,
    };
    log::info!("mounted on {}", mountpoint.path().display());
    readiness
        .ready(&cache.disk().log_file())
        .map_err(system("go to the background"))?;
    let result = session.run();
    std::mem::forget(guard);
    // A signal has waited already.
    let patience = match std::mem::replace(&mut *phase.lock(), Phase::Ending) {
        Phase::Ending => Duration::ZERO,
        Phase::Starting | Phase::Mounted { .. } => patience,
    };
    if let Err(error) = result
        && error.raw_os_error() != Some(libc::ECONNABORTED)
    {
        log::warn!("the connection with the kernel ended: {error}");
    }
    end(&vfs, &cache, &*remote, patience)
}

/// Looks after what an earlier mount could not store, and says what became of it.
fn recover(config: &Config, cache: &Cache) {
    if config.mount.is_read_only {
        return;
    }
    let recovered = cache.recover();
    for one in &recovered {
        match one.fate {
            Fate::Stored | Fate::WasStored => log::info!("left by an earlier mount: {one}"),
            _ => log::warn!("left by an earlier mount: {one}"),
        }
    }
    let n_left = recovered
        .iter()
        .filter(|one| !one.fate.is_on_host())
        .count();
    if n_left > 0 {
        log::error!("{n_left} files of earlier mounts are not on the host; see `scpfs recover`");
    }
}

/// Tells the kernel that something is not what it was told.
fn tell_kernel(notifier: &fuser::Notifier, workers: &Workers, change: Change) {
    match change {
        // A negative offset means the attributes alone (fuse_lowlevel.h); the kernel takes no
        // lock for that, so it may be sent while a request for the inode is being answered.
        Change::Attributes(ino) => {
            if let Err(error) = notifier.inval_inode(fuser::INodeNo(ino.0), -1, 0) {
                log::debug!("the kernel does not know inode {}: {error}", ino.0);
            }
        }
        // This takes the lock of the directory, which may be held by whoever waits for us.
        Change::Name(parent, name) => {
            let notifier = notifier.clone();
            workers.run(move || {
                let name = OsStr::from_bytes(name.as_bytes());
                if let Err(error) = notifier.inval_entry(fuser::INodeNo(parent.0), name) {
                    log::debug!("the kernel does not know a name in {}: {error}", parent.0);
                }
            });
        }
    }
}

/// Unmounts if something goes wrong between attaching and serving.
struct Unmount<'a>(&'a Mountpoint);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.detach() {
            log::error!("{}", remote::chain(&error));
        }
    }
}

/// Stores what is left, and returns what could not be stored. A host that is away, or was a moment
/// ago, is given as long as a call has.
fn drain(vfs: &Vfs, patience: Duration) -> Vec<(RemotePath, vfs::Error)> {
    let clock = SystemClock::new();
    let since = clock.tick();
    loop {
        let left = vfs.drain();
        let is_away = left.iter().any(|(_, error)| error.is_connection_loss());
        if !is_away || clock.tick().saturating_sub(since) >= patience {
            return left;
        }
        thread::sleep(DRAIN_PAUSE);
    }
}

/// Stores what is left, closes everything, and says what could not be stored.
fn end(vfs: &Vfs, cache: &Cache, remote: &dyn Remote, patience: Duration) -> Result<u8, Error> {
    let left = drain(vfs, patience);
    remote.close();
    cache.close();
    if left.is_empty() {
        log::info!("unmounted");
        return Ok(0);
    }
    for (path, error) in &left {
        log::error!("not stored: {path}: {}", remote::chain(error));
    }
    Err(Error::NotStored {
        n: left.len(),
        kept_in: cache.disk().dir().to_owned(),
    })
}

fn connect(
    config: &Config,
    terminal: Arc<Terminal>,
    clock: &Arc<dyn Clock>,
) -> Result<(Arc<Libssh2>, remote::shell::Shell), Error> {
    let connection = &config.connection;
    let mut settings = transport::resolve::resolve(&connection.query, &connection.surroundings)?;
    settings.timeout = connection.timeout;
    // Whoever waits for an answer waits for a new connection as well.
    settings.connect_timeout = settings.connect_timeout.min(connection.timeout);
    let prompt: Arc<dyn Prompt> = if connection.password_stdin {
        Arc::new(StandardInput::new())
    } else {
        terminal
    };
    let transport = Arc::new(Libssh2::new(settings, prompt));
    let settings = probe::Settings {
        directory: connection.directory.clone(),
        max_lanes: connection.max_lanes,
        timeout: connection.timeout,
    };
    let dynamic: Arc<dyn transport::Transport> = Arc::clone(&transport) as _;
    match probe::probe(dynamic, &settings, Arc::clone(clock)) {
        Ok(shell) => Ok((transport, shell)),
        Err(probe::Error::Lane(lane::Error::Transport(
            source @ (transport::Error::Timeout { .. }
            | transport::Error::Closed { .. }
            | transport::Error::Failed { .. }),
        ))) => {
            let settings = transport.settings();
            let (host, port) = (settings.hostname.clone(), settings.port);
            Err(Error::NoAnswer { host, port, source })
        }
        Err(error) => Err(error.into()),
    }
}

fn open_cache(
    config: &Config,
    transport: &Libssh2,
    facts: &remote::Facts,
    remote: &Arc<dyn Remote>,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<Cache>, Error> {
    let settings = transport.settings();
    let key = cache_key(
        &settings.user,
        &settings.hostname,
        settings.port,
        &facts.root,
    );
    let disk = Disk::open(&config.cache.base, &key, &config.cache.boot)?;
    disk.set_source(&format!(
        "{}@{}:{}/",
        settings.user,
        settings.hostname,
        Escaped(&facts.root)
    ));
    if disk.n_damaged() > 0 {
        log::error!(
            "{} lines of the journal in {} are damaged; they are set aside in the file `damaged`",
            disk.n_damaged(),
            disk.dir().display()
        );
    }
    for orphan in disk.orphans() {
        log::error!(
            "nothing is known of the content in {}; see `scpfs recover`",
            orphan.display()
        );
    }
    let size = disk
        .total_bytes()
        .map_err(system("look at the cache disk"))?;
    let limits = Limits {
        max_bytes: config
            .cache
            .max_bytes
            .unwrap_or_else(|| DEFAULT_CACHE.min(size / DEFAULT_CACHE_SHARE)),
        min_free: config
            .cache
            .min_free
            .unwrap_or_else(|| DEFAULT_MIN_FREE.min(size / DEFAULT_MIN_FREE_SHARE)),
    };
    log::debug!("cache in {}, {limits:?}", disk.dir().display());
    Ok(Cache::new(
        Arc::clone(remote),
        disk,
        limits,
        config.cache.conflicts,
        Arc::clone(clock),
        // Not those of the requests, which may all wait for these.
        Workers::new(),
    ))
}

/// A name for the cache directory: readable, and unique by its hash.
fn cache_key(user: &str, host: &str, port: u16, root: &[u8]) -> String {
    let mut hash = sha2::Sha256::new();
    for part in [user.as_bytes(), host.as_bytes(), &port.to_be_bytes(), root] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let hash: String = hash
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let readable: String = format!("{user}@{host}")
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "@.-_".contains(*c))
        .take(60)
        .collect();
    format!("{readable}-{hash}")
}

fn vfs_options(config: &Config, facts: &remote::Facts, mountpoint: &Path) -> vfs::Options {
    let pair =
        |host: u32, local: u32| (config.files.idmap == Idmap::User).then_some(Pair { host, local });
    let ids = Ids {
        user: pair(facts.uid, config.mount.uid),
        group: pair(facts.gid, config.mount.gid),
        shown_uid: config.files.uid,
        shown_gid: config.files.gid,
    };
    vfs::Options {
        ttl: config.files.ttl,
        ids,
        umask: config.files.umask,
        symlinks: config.files.symlinks,
        mountpoint: mountpoint.as_os_str().as_bytes().to_vec(),
        gives_away: config.mount.allow_other && facts.uid == 0,
        is_read_only: config.mount.is_read_only,
        writeback: config.cache.writeback,
        is_offline_ok: config.files.is_offline_ok,
    }
}

fn init_logging(config: &Config) {
    let mut builder = env_logger::Builder::new();
    builder
        .parse_filters(&config.logging.filter)
        .format(|out, record| {
            use std::io::Write as _;
            // What a host says may be in a message: nothing of it must move a cursor.
            let text = record.args().to_string();
            writeln!(
                out,
                "scpfs: {}: {}",
                record.level().as_str().to_ascii_lowercase(),
                Line(&text)
            )
        });
    if builder.try_init().is_err() {
        log::debug!("logging is set up already");
    }
}

/// A message as one line of safe text.
struct Line<'a>(&'a str);

impl std::fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Messages escape what comes from outside themselves; this is the net below them.
        if self.0.chars().any(char::is_control) {
            write!(f, "{}", Escaped(self.0.as_bytes()))
        } else {
            f.write_str(self.0)
        }
    }
}

fn system(act: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::System { act, source }
}

/// Ends the program while it starts; unmounts in order once it stands.
fn watch_signals(phase: Arc<Mutex<Phase>>, terminal: Arc<Terminal>) -> Result<(), Error> {
    let on_signal = move |signal: &'static str| {
        let phase = std::mem::replace(&mut *phase.lock(), Phase::Ending);
        match phase {
            Phase::Starting => {
                terminal.restore();
                exit_now(130);
            }
            Phase::Mounted {
                vfs,
                mountpoint,
                patience,
            } => unmount_for(signal, &vfs, &mountpoint, patience),
            Phase::Ending => log::info!("{signal}: ending already"),
        }
    };
    signals::watch(on_signal).map_err(system("watch for signals"))
}

fn unmount_for(signal: &'static str, vfs: &Vfs, mountpoint: &Mountpoint, patience: Duration) {
    log::info!("{signal}: unmounting");
    // Before it is out of sight: what fails can still be read through the mount.
    for (path, error) in drain(vfs, patience) {
        log::error!("not stored: {path}: {}", remote::chain(&error));
    }
    match mountpoint.detach() {
        Ok(false) => {}
        Ok(true) => {
            log::warn!(
                "the mount is in use; it is out of sight now and ends with its last user, or in {} s",
                LAST_USERS.as_secs()
            );
            thread::sleep(LAST_USERS);
            let left = vfs.drain();
            for (path, error) in &left {
                log::error!("not stored: {path}: {}", remote::chain(error));
            }
            exit_now(if left.is_empty() { 0 } else { 6 });
        }
        Err(error) => log::error!("{}", remote::chain(&error)),
    }
}

#[expect(
    clippy::exit,
    reason = "a signal ends the program while its main thread waits"
)]
fn exit_now(status: i32) -> ! {
    std::process::exit(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_root_has_a_cache_of_its_own() {
        let key = cache_key("u", "h", 22, b"/a");
        assert!(key.starts_with("u@h-"), "{key}");
        for other in [
            cache_key("u", "h", 22, b"/b"),
            cache_key("u", "h", 23, b"/a"),
            cache_key("uh", "", 22, b"/a"),
            cache_key("v", "h", 22, b"/a"),
        ] {
            assert_ne!(key, other);
        }
        assert!(!cache_key("../..", "h/\n", 22, b"").contains(['/', '\n']));
    }
}
