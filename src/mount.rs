//! Wires the layers: connects, mounts, serves until the end, uploads what is left.
//!
//! May use everything; nothing uses it but `main`.
//!
//! Modules:
//! - `attach`: mount and unmount
//! - `daemon`: fork to the background; the parent waits until the mount stands
//! - `end`: drain, unmount, exit status
//! - `guard`: a process that unmounts if the daemon is killed
//! - `served`: answers for the control socket
//! - `pinned`: the connection and the cache directory of the same host key
//! - `mountinfo`: `/proc/self/mountinfo`
//! - `logging`: log format
//! - `signals`: SIGINT, SIGTERM, SIGHUP
//! - `terminal`: questions at the terminal

pub mod attach;
pub mod daemon;
pub mod end;
pub mod guard;
pub mod logging;
pub mod mountinfo;
pub(crate) mod pinned;
mod served;
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
use crate::cache::Unsaved;
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
use crate::mount::attach::Mountpoint;
use crate::mount::attach::WhenBusy;
use crate::mount::daemon::Readiness;
use crate::mount::end::Mounted;
use crate::mount::guard::Guard;
use crate::mount::mountinfo::MountLine;
use crate::mount::pinned::asked_key;
use crate::mount::pinned::connect_to_pinned;
use crate::mount::served::Served;
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

/// The default of `cache_size=`, and the share of the disk that bounds it.
const DEFAULT_CACHE: u64 = 10 << 30;
const DEFAULT_CACHE_SHARE: u64 = 10;

/// The default of `min_free=`, and the share of the disk that bounds it.
const DEFAULT_MIN_FREE: u64 = 1 << 30;
const DEFAULT_MIN_FREE_SHARE: u64 = 20;

/// Why a mount did not come about, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Mountpoint(#[from] attach::Error),
    #[error(transparent)]
    Transport(#[from] ssh::Error),
    #[error(
        "{host} port {port} does not answer as an SSH server should; is it one, and is it well?"
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
        "{n} files could not be uploaded to the host; their content is kept in {}; see `scpfs recover`",
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

/// Where in its life the mount is, for whoever handles a signal.
#[derive(Debug)]
enum Phase {
    Starting,
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
        Readiness::nobody()
    } else {
        match daemon::fork().map_err(system("go to the background"))? {
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

/// Keeps passwords, keys and contents from core dumps and from other processes of the same user.
///
/// Without this any of them can read `/proc/PID/mem` and attach a debugger. Programs that this one
/// starts are not concerned: exec(2) ends it.
pub(crate) fn hide_memory() {
    let behavior = rustix::process::DumpableBehavior::NotDumpable;
    if let Err(error) = rustix::process::set_dumpable_behavior(behavior) {
        log::warn!("other processes of this user can read the memory of this one: {error}");
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
    mountpoint.check_keys(transport.settings())?;
    let facts = remote.facts().clone();
    log::info!("{}: {}", config.source, facts.summary);
    let workers = Workers::new();
    let cache = open_cache(config, disk, &transport, &remote, &clock)?;
    let unsaved = recover(config, &cache);
    let options = vfs_options(config, &facts, mountpoint.path());
    let vfs = Vfs::new(
        Arc::clone(&remote),
        Arc::clone(&cache),
        Arc::clone(&clock),
        options,
    )
    .map_err(Error::Root)?;
    vfs.recover(unsaved);
    transport.silence();

    let mountpoint = Arc::new(mountpoint);
    let (device, MountLine { id: mount_id, .. }) = mountpoint.attach(&config.mount)?;
    let unmount = Unmount(&mountpoint, &mount_id);
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
        tell_kernel(&notifier, &tellers, change);
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
        Err(error) => log::warn!("no guard, so that a crash leaves a dead mount: {error}"),
    }
    *phase.lock() = Phase::Mounted(Arc::clone(&mounted));
    log::info!("mounted on {}", mountpoint.path().display());
    readiness
        .ready(&cache.disk().log_file())
        .map_err(system("go to the background"))?;
    let result = session.run();
    std::mem::forget(unmount);
    if let Err(error) = result
        && error.raw_os_error() != Some(libc::ECONNABORTED)
    {
        log::warn!("the connection with the kernel ended: {error}");
    }
    let result = mounted.finish();
    if let Some(control) = control {
        control.close();
    }
    mounted.release_guard();
    result
}

/// Takes over what earlier mounts could not upload, and says what will become of it. Does not wait
/// for the host; returns what is to be shown and uploaded.
fn recover(config: &Config, cache: &Arc<Cache>) -> Vec<Unsaved> {
    if config.mount.is_read_only {
        return Vec::new();
    }
    let cache::Found { kept, unsaved } = cache.recover();
    for one in &kept {
        log::warn!("left by an earlier mount: {one}");
    }
    if !kept.is_empty() {
        let n = kept.len();
        log::error!("{n} files of earlier mounts are not on the host; see `scpfs recover`");
    }
    let whole = || unsaved.iter().filter(|it| it.is_whole);
    if whole().next().is_some() {
        let bytes = whole().map(|it| it.record.size).sum();
        log::warn!(
            "{} files of earlier mounts ({}) are not on the host yet: they are shown as they are \
             here, and uploaded in the background; see `scpfs status`",
            whole().count(),
            control::show::size(bytes)
        );
    }
    unsaved
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
        // This waits for pages that are being read, which other threads answer.
        Change::Content(ino) => {
            if let Err(error) = notifier.inval_inode(fuser::INodeNo(ino.0), 0, 0) {
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

/// Opens the control socket; a mount is of use without one as well.
fn start_control(config: &Config, mounted: &Arc<Mounted>) -> Option<Control> {
    let daemon = Arc::new(Served {
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
            log::warn!("no control socket, so that `scpfs status` will not find this: {error}");
            None
        }
    }
}

/// Unmounts if something goes wrong between attaching and serving.
struct Unmount<'a>(&'a Mountpoint, &'a str);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.detach(self.1, WhenBusy::Hide) {
            log::error!("{}", error_chain::with_causes(&error));
        }
    }
}

/// A host, and what is known of the connections with it.
type Connected = (Arc<Libssh2>, Arc<dyn Remote>);

/// Connects with a host whose key is `pinned`, or what is known of what was asked for.
pub(crate) fn connect(
    config: &Config,
    terminal: Arc<Terminal>,
    clock: &Arc<dyn Clock>,
    pinned: Option<HostKey>,
) -> Result<Connected, Error> {
    let connection = &config.connection;
    let mut settings = ssh::resolve::resolve(&connection.query, &connection.local_context)?;
    let asked = asked_key(&settings, &connection.directory);
    settings.pinned_host_key = match pinned {
        Some(key) => Some(key),
        None => pin::expected(&config.cache.base, &asked)?,
    };
    settings
        .accept_host_key
        .clone_from(&connection.accept_host_key);
    settings.timeout = connection.timeout;
    // Whoever waits for an answer waits for a new connection as well.
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
        placement: config.files.placement,
        writeback: config.cache.writeback,
        is_offline_ok: config.files.is_offline_ok,
    }
}

fn system(act: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::System { act, source }
}

/// Ends the program while it starts; unmounts in order once it stands.
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
            Some(mounted) => mounted.end_for(signal),
        }
    };
    signals::watch(on_signal).map_err(system("watch for signals"))
}

#[expect(
    clippy::exit,
    reason = "a signal ends the program while its main thread waits"
)]
fn exit_now(code: ExitCode) -> ! {
    std::process::exit(u8::from(code).into())
}
