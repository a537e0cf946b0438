//! Wires the layers: connects, mounts, serves until the mount ends, uploads the remaining files.
//!
//! May use every layer except `commands`; only `main` and `commands` use it.
//!
//! Modules:
//! - `attach`: mount and unmount
//! - `daemon`: forks into the background; the parent waits until the mount is ready
//! - `end`: the end of a mount: drain, unmount, exit status
//! - `guard`: a process that unmounts if the daemon is killed
//! - `answers`: answers requests of the control socket
//! - `pinned`: opens a connection and the cache directory that belongs to the same host key
//! - `mountinfo`: parses `/proc/self/mountinfo`
//! - `logging`: log format
//! - `signals`: handles SIGINT, SIGTERM and SIGHUP
//! - `terminal`: asks questions at the terminal

mod answers;
pub mod attach;
pub mod daemon;
pub mod end;
pub mod guard;
pub mod logging;
pub mod mountinfo;
pub(crate) mod pinned;
pub mod signals;
pub mod terminal;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use fuser::Session;
use fuser::SessionACL;

use crate::cache;
use crate::cache::Cache;
use crate::cache::Disk;
use crate::cache::Limits;
use crate::cache::PendingRecovery;
use crate::cache::pin;
use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::config::Dialect;
use crate::config::Idmap;
use crate::control;
use crate::control::server::Control;
use crate::error_chain;
use crate::exit_code::ExitCode;
use crate::fuse::Fuse;
use crate::fuse::N_LOOPS;
use crate::host;
use crate::host::Choice;
use crate::host_key::HostKey;
use crate::mount::answers::ControlledMount;
use crate::mount::attach::Mountpoint;
use crate::mount::attach::WhenBusy;
use crate::mount::daemon::Readiness;
use crate::mount::end::Mounted;
use crate::mount::guard::Guard;
use crate::mount::mountinfo::MountLine;
use crate::mount::pinned::connect_to_pinned;
use crate::mount::pinned::typed_key;
use crate::mount::terminal::StandardInput;
use crate::mount::terminal::Terminal;
use crate::path::Escaped;
use crate::remote;
use crate::remote::DEFAULT_MAX_NAMES;
use crate::remote::Remote;
use crate::ssh;
use crate::ssh::Prompt;
use crate::ssh::libssh2::Libssh2;
use crate::sync::Mutex;
use crate::vfs;
use crate::vfs::Change;
use crate::vfs::Ids;
use crate::vfs::Pair;
use crate::vfs::Vfs;
use crate::workers::Workers;

/// The default of `cache_size=` in bytes; at most the disk size divided by the divisor.
const DEFAULT_CACHE: u64 = 10 << 30;
const DEFAULT_CACHE_DIVISOR: u64 = 10;

/// The default of `min_free=` in bytes; at most the disk size divided by the divisor.
const DEFAULT_MIN_FREE: u64 = 1 << 30;
const DEFAULT_MIN_FREE_DIVISOR: u64 = 20;

/// Why a mount failed, or ended with files that are not uploaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Mountpoint(#[from] attach::Error),
    #[error(transparent)]
    Transport(#[from] ssh::Error),
    #[error(
        "{host} port {port} does not answer like an SSH server; check the host, the port and sshd"
    )]
    NoAnswer {
        host: String,
        port: u16,
        source: ssh::Error,
    },
    #[error(transparent)]
    Dialect(#[from] host::Error),
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
        "{n} files could not be uploaded; their content is kept in {}; see `scpfs recover`",
        kept_in.display()
    )]
    NotUploaded { n: usize, kept_in: PathBuf },
}

impl Error {
    /// Returns the exit status of a mount that fails with this error.
    pub fn exit_code(&self) -> ExitCode {
        let of_transport = |error: &ssh::Error| match error {
            ssh::Error::HostKey(_) => ExitCode::HostKeyRefused,
            ssh::Error::Auth(_) => ExitCode::AuthenticationFailed,
            _ => ExitCode::CannotConnect,
        };
        match self {
            Self::Transport(error) => of_transport(error),
            Self::Dialect(error) => match error.transport() {
                Some(error) => of_transport(error),
                None if error.has_no_usable_dialect() => ExitCode::CannotConnect,
                None => ExitCode::HostUnsuitable,
            },
            Self::NoAnswer { .. } => ExitCode::CannotConnect,
            Self::Mountpoint(_) | Self::Disk(_) | Self::System { .. } => ExitCode::CannotMount,
            Self::NotUploaded { .. } => ExitCode::NotUploaded,
            Self::Root(_) => ExitCode::HostUnsuitable,
        }
    }
}

/// The state of the program when a signal arrives.
#[derive(Debug)]
enum Phase {
    /// Not mounted yet: a signal ends the program at once.
    Starting,
    /// Mounted: a signal drains and unmounts.
    Mounted(Arc<Mounted>),
}

/// Mounts, serves until the mount ends, and returns the exit status.
///
/// Forks into the background unless `config` asks for the foreground: the parent returns as soon as
/// the mount is ready or the child has ended, with the status of the child.
///
/// # Errors
/// The directory could not be mounted, or some files could not be uploaded at the end.
pub fn run(config: &Config, fusermount: Option<PathBuf>) -> Result<std::process::ExitCode, Error> {
    hide_memory();
    let mountpoint = Mountpoint::check(&config.mount, &config.cache.base, fusermount)?;
    let readiness = if config.mount.is_foreground {
        Readiness::foreground()
    } else {
        match daemon::fork().map_err(system("fork into the background"))? {
            daemon::Role::Parent(code) => return Ok(code),
            daemon::Role::Child(readiness) => readiness,
        }
    };
    signals::block().map_err(system("block signals"))?;
    logging::init(&config.logging);
    let terminal = Arc::new(Terminal::new());
    let phase = Arc::new(Mutex::new(Phase::Starting));
    watch_signals(Arc::clone(&phase), Arc::clone(&terminal))?;
    serve(config, mountpoint, readiness, terminal, &phase).map(Into::into)
}

/// Protects the memory of this process from core dumps and from other processes of the same user.
///
/// A dumpable process can be read through `/proc/PID/mem` and by a debugger. Programs that this one
/// starts are dumpable again: execve(2) resets the attribute.
pub(crate) fn hide_memory() {
    let behavior = rustix::process::DumpableBehavior::NotDumpable;
    if let Err(error) = rustix::process::set_dumpable_behavior(behavior) {
        log::warn!(
            "cannot protect the memory of this process from other processes of the user: {error}"
        );
    }
}

fn serve(
    config: &Config,
    mountpoint: Mountpoint,
    readiness: Readiness,
    terminal: Arc<Terminal>,
    phase: &Mutex<Phase>,
) -> Result<ExitCode, Error> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let ((transport, remote), disk) = connect_to_pinned(config, terminal, &clock)?;
    mountpoint.check_ssh_files(transport.settings())?;
    let facts = remote.facts().clone();
    log::info!("{}: {}", config.source, facts.summary);
    let workers = Workers::new();
    let cache = open_cache(config, disk, &transport, &remote, &clock)?;
    let pending = recover(config, &cache);
    let options = vfs_options(config, &facts, mountpoint.path());
    let vfs = Vfs::new(
        Arc::clone(&remote),
        Arc::clone(&cache),
        Arc::clone(&clock),
        options,
    )
    .map_err(Error::Root)?;
    vfs.recover(pending);
    transport.silence();

    let mountpoint = Arc::new(mountpoint);
    let (device, MountLine { id: mount_id, .. }) = mountpoint.attach(&config.mount)?;
    let unmount_on_drop = UnmountOnDrop(&mountpoint, &mount_id);
    let acl = match (config.mount.allow_other, config.mount.allow_root) {
        (true, _) => SessionACL::All,
        (false, true) => SessionACL::RootAndOwner,
        (false, false) => SessionACL::Owner,
    };
    let mut session_config = fuser::Config::default();
    session_config.acl = acl;
    session_config.n_threads = Some(N_LOOPS);
    let notify_workers = workers.clone();
    let fuse = Fuse::new(Arc::clone(&vfs), workers);
    let session = Session::from_fd(fuse, device, acl, session_config)
        .map_err(system("start the FUSE session"))?;
    let notifier = session.notifier();
    vfs.set_notify(Box::new(move |change| {
        invalidate_in_kernel(&notifier, &notify_workers, change);
    }));
    let mounted = Mounted::new(
        vfs,
        Arc::clone(&cache),
        remote,
        clock,
        Arc::clone(&mountpoint),
        mount_id.clone(),
        config.mount.drain_timeout,
        config.connection.timeout,
    );
    let control = start_control(config, &mounted);
    let socket = control.as_ref().map(Control::path);
    let fusermount = mountpoint.fusermount();
    match Guard::start(&mount_id, fusermount, socket) {
        Ok(guard) => mounted.set_guard(guard),
        Err(error) => {
            log::warn!("cannot start the guard process; a crash will leave a dead mount: {error}");
        }
    }
    *phase.lock() = Phase::Mounted(Arc::clone(&mounted));
    log::info!("mounted on {}", mountpoint.path().display());
    readiness
        .ready(&cache.disk().log_file())
        .map_err(system("detach from the terminal"))?;
    let result = session.run();
    std::mem::forget(unmount_on_drop);
    if let Err(error) = result
        && error.raw_os_error() != Some(libc::ECONNABORTED)
    {
        log::warn!("the FUSE session failed: {error}");
    }
    let result = mounted.finish();
    if let Some(control) = control {
        control.close();
    }
    mounted.release_guard();
    result
}

/// Recovers dirty files of earlier mounts from the journal, and logs what is uploaded or kept.
///
/// Returns the files to show and to upload in the background. Does not wait for the host.
fn recover(config: &Config, cache: &Arc<Cache>) -> Vec<PendingRecovery> {
    if config.mount.is_read_only {
        return Vec::new();
    }
    let cache::Found {
        needs_decision,
        pending,
    } = cache.recover();
    for one in &needs_decision {
        log::warn!("left by an earlier mount: {one}");
    }
    if !needs_decision.is_empty() {
        let n = needs_decision.len();
        log::error!("{n} files of earlier mounts will not be uploaded; see `scpfs recover`");
    }
    let complete = || pending.iter().filter(|it| it.is_complete);
    if complete().next().is_some() {
        let bytes = complete().map(|it| it.record.size).sum();
        log::warn!(
            "{} files of earlier mounts ({}) are not uploaded yet: the mount shows their local \
             content and uploads it in the background; see `scpfs status`",
            complete().count(),
            control::show::size(bytes)
        );
    }
    pending
}

/// Invalidates what the kernel has cached of an inode or of a name.
fn invalidate_in_kernel(notifier: &fuser::Notifier, workers: &Workers, change: Change) {
    match change {
        // A negative offset invalidates the attributes alone (fuse_lowlevel.h). The kernel takes no
        // lock for that, so this is safe while a request for the inode is in flight.
        Change::Attributes(ino) => {
            if let Err(error) = notifier.inval_inode(fuser::INodeNo(ino.0), -1, 0) {
                log::debug!("the kernel does not know inode {}: {error}", ino.0);
            }
        }
        // The kernel waits for reads of these pages, which other threads answer.
        Change::Content(ino) => {
            if let Err(error) = notifier.inval_inode(fuser::INodeNo(ino.0), 0, 0) {
                log::debug!("the kernel does not know inode {}: {error}", ino.0);
            }
        }
        // The kernel takes the lock of the directory. A request that waits for this thread may
        // hold it, so a worker sends this one.
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

/// Opens the control socket. If that fails, logs a warning: the mount works without it.
fn start_control(config: &Config, mounted: &Arc<Mounted>) -> Option<Control> {
    let daemon = Arc::new(ControlledMount {
        mounted: Arc::clone(mounted),
        source: config.source.clone(),
        since: mounted.clock.wall().secs,
        since_tick: mounted.clock.tick(),
    });
    let control =
        control::sockets::listen(&config.sockets).and_then(|socket| Control::start(socket, daemon));
    match control {
        Ok(control) => Some(control),
        Err(error) => {
            log::warn!(
                "cannot open the control socket; `scpfs status` will not find this mount: {error}"
            );
            None
        }
    }
}

/// Unmounts on drop: an error between attaching and serving must not leave a dead mount.
struct UnmountOnDrop<'a>(&'a Mountpoint, &'a str);

impl Drop for UnmountOnDrop<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.detach(self.1, WhenBusy::UnmountLazily) {
            log::error!("{}", error_chain::with_causes(&error));
        }
    }
}

/// The transport to a host, and the host behind it.
type Connected = (Arc<Libssh2>, Arc<dyn Remote>);

/// Connects to the host that `config` names and logs in.
///
/// The host key must be `pinned`. If that is `None`, it must be the key that an earlier mount of
/// the same typed source has pinned, if there is one. Blocks; may ask for a password.
///
/// # Errors
/// The host cannot be reached, its key or the login is refused, or it cannot be mounted.
pub(crate) fn connect(
    config: &Config,
    terminal: Arc<Terminal>,
    clock: &Arc<dyn Clock>,
    pinned: Option<HostKey>,
) -> Result<Connected, Error> {
    let connection = &config.connection;
    let mut settings = ssh::resolve::resolve(&connection.query, &connection.local_context)?;
    let asked = typed_key(&settings, &connection.directory);
    settings.pinned_host_key = match pinned {
        Some(key) => Some(key),
        None => pin::expected(&config.cache.base, &asked)?,
    };
    settings
        .accept_host_key
        .clone_from(&connection.accept_host_key);
    settings.timeout = connection.timeout;
    // A request that has to reconnect first must not take longer than `timeout=`.
    settings.connect_timeout = settings.connect_timeout.min(connection.timeout);
    let prompt: Arc<dyn Prompt> = if connection.password_stdin {
        Arc::new(StandardInput::new())
    } else {
        terminal
    };
    let transport = Arc::new(Libssh2::new(settings, prompt));
    let settings = remote::Settings {
        directory: connection.directory.clone(),
        max_connections: connection.max_connections,
        max_names: connection.max_names.unwrap_or(DEFAULT_MAX_NAMES),
        timeout: connection.timeout,
        upload_deadline: connection.timeout,
        fails_fast: config.files.is_offline_ok,
    };
    let dynamic: Arc<dyn ssh::Transport> = Arc::clone(&transport) as _;
    let choice = match connection.dialect {
        Dialect::Auto => Choice::Auto,
        Dialect::Shell => Choice::Shell,
        Dialect::ScpOnly => Choice::ScpOnly,
    };
    let error = match host::connect(dynamic, &settings, choice, Arc::clone(clock)) {
        Ok(remote) => return Ok((transport, remote)),
        Err(error) => error,
    };
    match error.into_lost_connection() {
        Ok(source) => {
            let settings = transport.settings();
            let (host, port) = (settings.hostname.clone(), settings.port);
            Err(Error::NoAnswer { host, port, source })
        }
        Err(error) => Err(error.into()),
    }
}

fn open_cache(
    config: &Config,
    disk: Disk,
    transport: &Libssh2,
    remote: &Arc<dyn Remote>,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<Cache>, Error> {
    let settings = transport.settings();
    let facts = remote.facts();
    disk.set_source(&format!(
        "{}@{}:{}/",
        settings.user,
        settings.hostname,
        Escaped(&facts.root)
    ));
    if disk.n_damaged() > 0 {
        log::error!(
            "{} records of the journal in {} are damaged; they were moved to the file `damaged`",
            disk.n_damaged(),
            disk.dir().display()
        );
    }
    for orphan in disk.orphans() {
        log::error!(
            "the journal has no record of the content in {}; see `scpfs recover`",
            orphan.display()
        );
    }
    let size = disk
        .total_bytes()
        .map_err(system("get the size of the cache disk"))?;
    let limits = Limits {
        max_bytes: config
            .cache
            .max_bytes
            .unwrap_or_else(|| DEFAULT_CACHE.min(size / DEFAULT_CACHE_DIVISOR)),
        min_free: config
            .cache
            .min_free
            .unwrap_or_else(|| DEFAULT_MIN_FREE.min(size / DEFAULT_MIN_FREE_DIVISOR)),
    };
    log::debug!("cache in {}, {limits:?}", disk.dir().display());
    Ok(Cache::new(
        Arc::clone(remote),
        disk,
        limits,
        config.cache.conflicts,
        Arc::clone(clock),
        // A pool of its own: all workers of FUSE requests may be waiting for an upload.
        Workers::new(),
    ))
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
        sets_caller_as_owner: config.mount.allow_other && facts.uid == 0,
        is_read_only: config.mount.is_read_only,
        placement: config.files.placement,
        writeback: config.cache.writeback,
        is_offline_ok: config.files.is_offline_ok,
        read_ahead: config.files.read_ahead,
        reads_parts: config.files.reads_parts,
    }
}

fn system(act: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::System { act, source }
}

/// Starts the thread that handles signals according to `phase`.
fn watch_signals(phase: Arc<Mutex<Phase>>, terminal: Arc<Terminal>) -> Result<(), Error> {
    let on_signal = move |signal: &'static str| {
        let mounted = match &*phase.lock() {
            Phase::Starting => None,
            Phase::Mounted(mounted) => Some(Arc::clone(mounted)),
        };
        match mounted {
            None => {
                terminal.restore();
                exit_now(ExitCode::Interrupted);
            }
            Some(mounted) => mounted.end_on_signal(signal),
        }
    };
    signals::watch(on_signal).map_err(system("start the signal thread"))
}

#[expect(
    clippy::exit,
    reason = "another thread than main ends the program while main waits"
)]
fn exit_now(code: ExitCode) -> ! {
    std::process::exit(u8::from(code).into())
}
