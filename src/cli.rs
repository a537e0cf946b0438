//! Resolves the command line and the environment into a `Config`.
//!
//! No other module reads the environment or the home directory.
//!
//! Modules:
//! - `args`: parses the command line of a mount; no I/O
//! - `command`: parses the command lines of the other subcommands
//! - `help`: the help texts; README.md contains parts of them
//! - `options`: the table of `-o` options

pub mod args;
pub mod command;
mod help;
pub mod options;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use etcetera::BaseStrategy as _;

pub use crate::cli::help::command_text;
pub use crate::cli::help::option_text;

use crate::cli::args::Args;
use crate::cli::args::Error;
use crate::cli::args::Question;
use crate::cli::args::TypedOption;
use crate::cli::command::Command;
use crate::cli::help::Length;
use crate::cli::help::help;
use crate::cli::options::Kind;
use crate::config;
use crate::config::Config;
use crate::config::ConflictPolicy;
use crate::config::Dialect;
use crate::config::Idmap;
use crate::host_key::is_fingerprint;
use crate::path::Escaped;
use crate::ssh::ssh_config::LocalContext;
use crate::ssh::ssh_config::Query;
use crate::vfs::PlacementPolicy;
use crate::vfs::Symlinks;

const USAGE: &str = "usage: scpfs [user@]host:[directory] mountpoint [options]";

/// The task that the command line asks for.
#[derive(Debug)]
pub enum Task {
    Mount(Box<Config>),
    Status(config::Status),
    Recover(config::Recover),
    Doctor(Box<Config>),
    Umount(config::Umount),
    Guard(config::Guard),
    /// Print this text and exit.
    Print(String),
}

/// Reads the command line and the environment.
///
/// # Errors
/// The command line is wrong, or the user has no home directory.
pub fn read() -> Result<Task, Error> {
    let mut words = env::args_os().skip(1).peekable();
    if let Some(command) = words.peek().and_then(Command::parse) {
        words.next();
        return command::read(command, words);
    }
    let args = args::parse(words)?;
    match args.asks_for {
        Some(Question::Version) => {
            return Ok(Task::Print(format!(
                "scpfs {}\n",
                env!("CARGO_PKG_VERSION")
            )));
        }
        Some(Question::ShortHelp) => return Ok(Task::Print(help(Length::Screen))),
        Some(Question::Help) => return Ok(Task::Print(help(Length::Full))),
        None => {}
    }
    resolve(args, &Environment::read()?).map(|config| Task::Mount(Box::new(config)))
}

/// The part of the environment of the process that the configuration needs.
#[derive(Debug, Clone)]
pub struct Environment {
    pub local_context: LocalContext,
    pub cache_base: PathBuf,
    pub boot_id: String,
    pub log_filter: Option<String>,
    pub runtime_dir: Option<PathBuf>,
    pub uid: u32,
    pub gid: u32,
}

impl Environment {
    fn read() -> Result<Self, Error> {
        let uid = rustix::process::getuid().as_raw();
        let gid = rustix::process::getgid().as_raw();
        let no_home = |error| Error(format!("cannot find your home directory: {error}"));
        let home = etcetera::home_dir().map_err(no_home)?;
        let base = etcetera::choose_base_strategy().map_err(no_home)?;
        let name = nix::unistd::User::from_uid(uid.into())
            .ok()
            .flatten()
            .map(|user| user.name);
        let hostname = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok());
        Ok(Self {
            local_context: LocalContext {
                home,
                user: name
                    .or_else(|| env::var("USER").ok())
                    .unwrap_or_else(|| uid.to_string()),
                uid,
                hostname: hostname.unwrap_or_else(|| "localhost".to_owned()),
                agent_socket: env::var_os("SSH_AUTH_SOCK")
                    .filter(|socket| !socket.is_empty())
                    .map(PathBuf::from),
                ssh_program: find_program("ssh"),
            },
            cache_base: base.cache_dir().join("scpfs"),
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .map_or_else(|_| "unknown".to_owned(), |id| id.trim().to_owned()),
            log_filter: env::var("RUST_LOG").ok(),
            runtime_dir: env::var_os("XDG_RUNTIME_DIR")
                .map(PathBuf::from)
                .filter(|dir| dir.is_absolute()),
            uid,
            gid,
        })
    }

    fn sockets(&self) -> config::Sockets {
        config::Sockets {
            uid: self.uid,
            runtime_dir: self.runtime_dir.clone(),
            cache_base: self.cache_base.clone(),
        }
    }
}

/// Returns the path of a program in `PATH`; `None` if it is not there.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Resolves parsed arguments into a `Config`. Does no I/O.
///
/// # Errors
/// The source or the mountpoint is missing or malformed; an option is unknown or has a bad value.
pub fn resolve(args: Args, environment: &Environment) -> Result<Config, Error> {
    let usage = |what: &str| Error(format!("{what}\n{USAGE}\n`scpfs -h` lists the options"));
    let source = args.source.ok_or_else(|| usage("no host was given"))?;
    let mountpoint = args
        .mountpoint
        .ok_or_else(|| usage("no mountpoint was given"))?;
    let Source {
        user,
        host,
        directory,
    } = parse_source(source)?;
    let shown_user = user
        .as_ref()
        .map(|user| format!("{user}@"))
        .unwrap_or_default();
    let shown_host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.clone()
    };
    let source = format!("{shown_user}{shown_host}:{}", Escaped(&directory));
    let mut config = Config {
        source: source.clone(),
        connection: config::Connection {
            query: Query {
                host,
                user,
                port: args.port,
                config_file: args.config_file,
                options: Vec::new(),
            },
            local_context: environment.local_context.clone(),
            directory,
            max_connections: 4,
            max_names: None,
            timeout: Duration::from_secs(30),
            password_stdin: false,
            dialect: Dialect::Auto,
            accept_host_key: None,
        },
        cache: config::Cache {
            base: environment.cache_base.clone(),
            max_bytes: None,
            min_free: None,
            conflicts: ConflictPolicy::KeepBoth,
            writeback: None,
            boot_id: environment.boot_id.clone(),
        },
        files: config::Files {
            ttl: Duration::from_secs(5),
            is_offline_ok: false,
            read_ahead: 16 << 20,
            reads_parts: false,
            placement: PlacementPolicy::Auto,
            idmap: Idmap::User,
            uid: None,
            gid: None,
            umask: 0,
            symlinks: Symlinks::Contain,
        },
        mount: config::Mount {
            mountpoint,
            fsname: source,
            subtype: "scpfs".to_owned(),
            allow_other: false,
            allow_root: false,
            default_permissions: false,
            is_read_only: false,
            flags: vec!["nosuid", "nodev"],
            is_foreground: args.is_foreground,
            drain_timeout: Duration::from_secs(60),
            uid: environment.uid,
            gid: environment.gid,
        },
        logging: config::Logging {
            filter: environment.log_filter.clone().unwrap_or_else(|| {
                if args.is_debug {
                    "scpfs=debug,fuser=info"
                } else {
                    "scpfs=info,fuser=warn"
                }
                .to_owned()
            }),
        },
        sockets: environment.sockets(),
    };
    if args.compresses {
        config
            .connection
            .query
            .options
            .push("Compression=yes".to_owned());
    }
    for option in &args.options {
        apply(&mut config, option)?;
    }
    Ok(config)
}

fn apply(config: &mut Config, option: &TypedOption) -> Result<(), Error> {
    let name = option.name.as_str();
    match options::kind(name, option.value.is_some()) {
        Kind::Scpfs(spec) if spec.value.is_empty() => match spec.name {
            "password_stdin" => config.connection.password_stdin = true,
            "ro" => config.mount.is_read_only = true,
            "allow_other" => config.mount.allow_other = true,
            "allow_root" => config.mount.allow_root = true,
            "default_permissions" => config.mount.default_permissions = true,
            _ => set_flag(&mut config.mount.flags, spec.name),
        },
        Kind::Scpfs(spec) => {
            let value = option.value.as_ref().ok_or_else(|| {
                Error(format!(
                    "option `{name}` needs a value: {name}={}",
                    spec.value
                ))
            })?;
            let value = value
                .to_str()
                .filter(|_| spec.name != "cache_dir")
                .map_or_else(
                    || Value::Bytes(value.clone()),
                    |text| Value::Text(text.to_owned()),
                );
            set(config, spec.name, &value).ok_or_else(|| {
                Error(format!(
                    "bad value for option `{name}`; expected {}",
                    spec.value
                ))
            })?;
        }
        Kind::MountFlag(flag) => set_flag(&mut config.mount.flags, flag),
        Kind::Ssh => {
            let value = option.value.as_ref().and_then(|value| value.to_str());
            let value = value.ok_or_else(|| Error(format!("bad value for option `{name}`")))?;
            config
                .connection
                .query
                .options
                .push(format!("{name}={value}"));
        }
        Kind::Ignored => match name {
            "cache" | "dir_cache" if option.value.as_deref().is_some_and(|value| value == "no") => {
                config.files.ttl = Duration::ZERO;
            }
            _ => {}
        },
        Kind::Unknown => {
            return Err(Error(format!(
                "unknown option `{}`; `scpfs --help` lists all options",
                Escaped(name.as_bytes())
            )));
        }
    }
    Ok(())
}

enum Value {
    Text(String),
    Bytes(OsString),
}

/// Sets an option that has a value. Returns `None` if the value is invalid.
fn set(config: &mut Config, name: &str, value: &Value) -> Option<()> {
    let text = match value {
        Value::Text(text) => text.as_str(),
        Value::Bytes(bytes) => {
            if name == "cache_dir" && !bytes.is_empty() {
                // The daemon changes its working directory to `/`.
                config.cache.base = std::path::absolute(PathBuf::from(bytes)).ok()?;
                return Some(());
            }
            return None;
        }
    };
    match name {
        "port" => config.connection.query.port = Some(text.parse().ok()?),
        "timeout" => {
            config.connection.timeout = seconds(text).filter(|time| !time.is_zero())?;
        }
        "max_conns" => {
            config.connection.max_connections =
                text.parse().ok().filter(|n| (1..=32).contains(n))?;
        }
        "max_names" => {
            let range = 1000..=100_000_000;
            config.connection.max_names = Some(text.parse().ok().filter(|n| range.contains(n))?);
        }
        "dialect" => {
            config.connection.dialect = match text {
                "auto" => Dialect::Auto,
                "shell" => Dialect::Shell,
                "scp-only" => Dialect::ScpOnly,
                _ => return None,
            };
        }
        "accept_host_key" => {
            let fingerprint = Some(text).filter(|text| is_fingerprint(text))?;
            config.connection.accept_host_key = Some(fingerprint.to_owned());
        }
        "cache_timeout" => config.files.ttl = seconds(text)?,
        "cache_size" => config.cache.max_bytes = Some(bytes(text)?),
        "min_free" => config.cache.min_free = Some(bytes(text)?),
        "read_ahead" => config.files.read_ahead = if text == "no" { 0 } else { bytes(text)? },
        "partial_reads" => {
            config.files.reads_parts = match text {
                "yes" => true,
                "no" => false,
                _ => return None,
            };
        }
        "conflict" => {
            config.cache.conflicts = match text {
                "keep-both" => ConflictPolicy::KeepBoth,
                "overwrite" => ConflictPolicy::Overwrite,
                "fail" => ConflictPolicy::Fail,
                _ => return None,
            };
        }
        "placement" => {
            config.files.placement = match text {
                "auto" => PlacementPolicy::Auto,
                "replace" => PlacementPolicy::Replace,
                "inplace" => PlacementPolicy::InPlace,
                _ => return None,
            };
        }
        "writeback" => {
            let delay = seconds(text)?;
            config.cache.writeback = (!delay.is_zero()).then_some(delay);
        }
        "offline" => {
            config.files.is_offline_ok = match text {
                "yes" => true,
                "no" => false,
                _ => return None,
            };
        }
        "idmap" => {
            config.files.idmap = match text {
                "user" => Idmap::User,
                "none" => Idmap::None,
                _ => return None,
            };
        }
        "uid" => config.files.uid = Some(text.parse().ok()?),
        "gid" => config.files.gid = Some(text.parse().ok()?),
        "umask" => {
            let mask = u32::from_str_radix(text, 8).ok()?;
            config.files.umask = Some(mask).filter(|mask| *mask <= 0o777)?;
        }
        "symlinks" => {
            config.files.symlinks = match text {
                "contain" => Symlinks::Contain,
                "as-is" => Symlinks::AsIs,
                _ => return None,
            };
        }
        "drain_timeout" => config.mount.drain_timeout = seconds(text)?,
        "fsname" => config.mount.fsname = text.to_owned(),
        "subtype" => text.clone_into(&mut config.mount.subtype),
        _ => return None,
    }
    Some(())
}

/// Adds a mount flag and removes its opposite.
fn set_flag(flags: &mut Vec<&'static str>, flag: &'static str) {
    let opposite = flag
        .strip_prefix("no")
        .map_or_else(|| format!("no{flag}"), str::to_owned);
    flags.retain(|had| *had != flag && *had != opposite);
    flags.push(flag);
}

/// Parses a number of seconds, with a fraction or without.
fn seconds(text: &str) -> Option<Duration> {
    let secs: f64 = text.parse().ok()?;
    Duration::try_from_secs_f64(secs).ok()
}

/// Parses a size in bytes: `500M`, `2G`, `1024`. The units are powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let (digits, unit) = match text.char_indices().find(|(_, c)| !c.is_ascii_digit()) {
        Some((at, _)) => text.split_at_checked(at)?,
        None => (text, ""),
    };
    let shift = match unit
        .to_ascii_uppercase()
        .trim_end_matches('B')
        .trim_end_matches('I')
    {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[derive(Debug, PartialEq, Eq)]
struct Source {
    user: Option<String>,
    host: String,
    directory: Vec<u8>,
}

/// Parses `[user@]host:[directory]`; an IPv6 address is in brackets.
///
/// # Errors
/// The source is malformed, or could be taken for an option of `ssh`.
fn parse_source(source: OsString) -> Result<Source, Error> {
    let bytes = source.into_vec();
    let shown = || Escaped(&bytes).to_string();
    let malformed = || {
        Error(format!(
            "`{}` is not of the form [user@]host:[directory]\n{USAGE}",
            shown()
        ))
    };
    // Colons inside brackets belong to the address.
    let start = memchr::memchr(b'[', &bytes)
        .filter(|&open| open == 0 || bytes.get(open - 1) == Some(&b'@'))
        .and_then(|open| Some(open + memchr::memchr(b']', bytes.get(open..)?)?))
        .filter(|&close| bytes.get(close + 1) == Some(&b':'))
        .unwrap_or(0);
    let colon =
        memchr::memchr(b':', bytes.get(start..).unwrap_or_default()).ok_or_else(malformed)? + start;
    let (login, directory) = bytes.split_at_checked(colon).ok_or_else(malformed)?;
    let directory = directory.get(1..).unwrap_or_default().to_vec();
    let login = std::str::from_utf8(login).map_err(|_| malformed())?;
    let (user, host) = match login.rsplit_once('@') {
        Some((user, host)) => (Some(user.to_owned()), host),
        None => (None, login),
    };
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    if host.is_empty() || user.as_ref().is_some_and(String::is_empty) {
        return Err(malformed());
    }
    // CVE-2026-48711 of sshfs: `ssh` takes such a host for an option.
    if host.starts_with('-') || user.as_ref().is_some_and(|user| user.starts_with('-')) {
        return Err(Error(format!(
            "a host or user cannot begin with `-`: `{}`",
            shown()
        )));
    }
    if directory.contains(&0) {
        return Err(malformed());
    }
    Ok(Source {
        user,
        host: host.to_owned(),
        directory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Result<Source, Error> {
        parse_source(OsString::from(text))
    }

    fn environment() -> Environment {
        Environment {
            local_context: LocalContext {
                home: "/home/u".into(),
                user: "u".to_owned(),
                uid: 1000,
                hostname: "h".to_owned(),
                agent_socket: None,
                ssh_program: None,
            },
            cache_base: "/home/u/.cache/scpfs".into(),
            boot_id: "b".to_owned(),
            log_filter: None,
            runtime_dir: None,
            uid: 1000,
            gid: 1000,
        }
    }

    fn config(words: &[&str]) -> Result<Config, Error> {
        resolve(
            args::parse(words.iter().map(OsString::from)).unwrap(),
            &environment(),
        )
    }

    #[test]
    fn parse_source_returns_user_host_and_directory() {
        for (text, user, host, directory) in [
            ("h:", None, "h", ""),
            ("u@h:/a b:c", Some("u"), "h", "/a b:c"),
            ("u@[::1]:d", Some("u"), "::1", "d"),
            ("[fe80::1%eth0]:", None, "fe80::1%eth0", ""),
            ("a@b@h:~/x", Some("a@b"), "h", "~/x"),
            ("h:[x]:y", None, "h", "[x]:y"),
        ] {
            let expected = Source {
                user: user.map(str::to_owned),
                host: host.to_owned(),
                directory: directory.as_bytes().to_vec(),
            };
            assert_eq!(source(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn parse_source_refuses_malformed_sources_and_options() {
        for bad in [
            "",
            "h",
            "/local",
            ":d",
            "@h:",
            "u@:d",
            "-oProxyCommand=x:",
            "u@-h:",
            "-u@h:",
        ] {
            assert!(source(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn resolve_applies_options() {
        let config = config(&[
            "h:",
            "/m",
            "-o",
            "cache_size=2G,cache_timeout=0.5,ro,suid,noexec,Port=23,_netdev,x-systemd.automount",
        ])
        .unwrap();
        assert_eq!(config.cache.max_bytes, Some(2 << 30));
        assert_eq!(config.files.ttl, Duration::from_millis(500));
        assert!(config.mount.is_read_only);
        assert_eq!(config.mount.flags, ["nodev", "suid", "noexec"]);
        assert_eq!(config.connection.query.port, None);
        assert_eq!(config.mount.fsname, "h:");
    }

    #[test]
    fn resolve_names_the_bad_option() {
        for (option, word) in [
            ("cache_size=many", "cache_size"),
            ("conflict=ours", "conflict"),
            ("read_ahead=yes", "read_ahead"),
            ("partial_reads=maybe", "partial_reads"),
            ("placement=beside", "placement"),
            ("writeback=soon", "writeback"),
            ("offline=maybe", "offline"),
            ("cache_timeout=-1", "cache_timeout"),
            ("umask=999", "umask"),
            ("idmap=other", "user|none"),
            ("allow_othr", "allow_othr"),
            ("cache_timeout", "SECONDS"),
            ("max_conns=0", "max_conns"),
            ("max_names=999", "max_names"),
        ] {
            let error = config(&["h:", "/m", "-o", option]).unwrap_err();
            assert!(error.0.contains(word), "{option}: {error}");
        }
        assert!(config(&["h:"]).unwrap_err().0.contains("mountpoint"));
    }
}
