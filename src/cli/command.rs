//! Parses the subcommands that do not mount: `status`, `umount`, `recover`, `doctor`.
//!
//! The first word tells a subcommand from a source, because a source has a colon: a host named
//! `status` is mounted as `status:`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg;
use lexopt::Parser;
use lexopt::ValueExt as _;

use crate::cli::Environment;
use crate::cli::Task;
use crate::cli::args;
use crate::cli::args::Error;
use crate::cli::help::Length;
use crate::cli::help::help;
use crate::cli::resolve;
use crate::config;
use crate::config::RecoverAction;
use crate::process;

const DOCTOR_USAGE: &str = "scpfs doctor [user@]host[:dir] [options]";

const RECOVER_USAGE: &str =
    "scpfs recover [--list | --save DIR [ID...] | --discard ID...] [--cache-dir DIR]";

/// The default of `umount --timeout`: how long it waits for uploads.
const UMOUNT_TIMEOUT: Duration = Duration::from_secs(60);

/// A subcommand that does not mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Status,
    Umount,
    Recover,
    Doctor,
    /// The guard process of a mount; internal, only started by the daemon.
    Guard,
}

impl Command {
    /// Returns the subcommand with this name.
    pub fn parse(word: &OsString) -> Option<Self> {
        match word.to_str()? {
            "status" => Some(Self::Status),
            "umount" => Some(Self::Umount),
            "recover" => Some(Self::Recover),
            "doctor" => Some(Self::Doctor),
            process::GUARD => Some(Self::Guard),
            _ => None,
        }
    }
}

/// The parsed arguments of `status`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatusArgs {
    pub mountpoint: Option<PathBuf>,
    pub as_json: bool,
    pub watches: bool,
    pub asks_for_help: bool,
}

/// The parsed arguments of `umount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UmountArgs {
    pub mountpoint: Option<PathBuf>,
    pub timeout: Duration,
    pub force: bool,
    pub asks_for_help: bool,
}

/// Parses the arguments of a subcommand and reads the environment.
pub(super) fn read(
    command: Command,
    words: impl IntoIterator<Item = OsString>,
) -> Result<Task, Error> {
    let asks_for_help = || Ok(Task::Print(help(Length::Screen)));
    match command {
        Command::Status => {
            let args = parse_status(words)?;
            if args.asks_for_help {
                return asks_for_help();
            }
            Ok(Task::Status(config::Status {
                mountpoint: args.mountpoint,
                as_json: args.as_json,
                watches: args.watches,
                sockets: Environment::read()?.sockets(),
            }))
        }
        Command::Umount => {
            let args = parse_umount(words)?;
            if args.asks_for_help {
                return asks_for_help();
            }
            let missing = "no mountpoint was given\nusage: scpfs umount MOUNTPOINT";
            Ok(Task::Umount(config::Umount {
                mountpoint: args.mountpoint.ok_or_else(|| Error(missing.to_owned()))?,
                timeout: args.timeout,
                force: args.force,
                sockets: Environment::read()?.sockets(),
            }))
        }
        Command::Recover => match parse_recover(words)? {
            None => asks_for_help(),
            Some((action, base)) => {
                let base = match base {
                    Some(base) => base,
                    None => Environment::read()?.cache_base,
                };
                Ok(Task::Recover(config::Recover { base, action }))
            }
        },
        Command::Doctor => {
            let mut args = args::parse(words)?;
            if args.asks_for.is_some() {
                return asks_for_help();
            }
            if args.mountpoint.is_some() {
                return Err(Error(format!(
                    "doctor takes no mountpoint\nusage: {DOCTOR_USAGE}"
                )));
            }
            let source = args.source.take();
            let source =
                source.ok_or_else(|| Error(format!("no host was given\nusage: {DOCTOR_USAGE}")))?;
            args.source = Some(with_colon(source));
            args.mountpoint = Some(PathBuf::from("/"));
            resolve(args, &Environment::read()?).map(|config| Task::Doctor(Box::new(config)))
        }
        Command::Guard => {
            let mut words = words.into_iter();
            let mut word = || words.next().unwrap_or_default();
            let path = |word: OsString| (!word.is_empty()).then(|| PathBuf::from(word));
            Ok(Task::Guard(config::Guard {
                mount_id: word().into_string().unwrap_or_default(),
                fusermount: path(word()),
                socket: path(word()),
            }))
        }
    }
}

/// Appends a colon to a host without a directory, which makes it a source.
fn with_colon(source: OsString) -> OsString {
    let bytes = source.as_encoded_bytes();
    let host = bytes.rsplit(|&b| b == b'@').next().unwrap_or_default();
    // Colons in brackets belong to an IPv6 address.
    let after = host.rsplit(|&b| b == b']').next().unwrap_or_default();
    if after.contains(&b':') {
        return source;
    }
    let mut source = source;
    source.push(":");
    source
}

fn usage_error(error: lexopt::Error) -> Error {
    Error(error.to_string())
}

/// Parses the arguments of `status`.
///
/// # Errors
/// An option is unknown, or there are too many words.
pub fn parse_status(words: impl IntoIterator<Item = OsString>) -> Result<StatusArgs, Error> {
    let mut args = StatusArgs::default();
    let mut parser = Parser::from_args(words);
    while let Some(arg) = parser.next().map_err(usage_error)? {
        match arg {
            Arg::Long("json") => args.as_json = true,
            Arg::Long("watch") => args.watches = true,
            Arg::Short('h') | Arg::Long("help") => args.asks_for_help = true,
            Arg::Value(word) if args.mountpoint.is_none() => args.mountpoint = Some(word.into()),
            other => return Err(usage_error(other.unexpected())),
        }
    }
    Ok(args)
}

/// Parses the arguments of `umount`.
///
/// # Errors
/// An option is unknown or has a bad value, or there are too many words.
pub fn parse_umount(words: impl IntoIterator<Item = OsString>) -> Result<UmountArgs, Error> {
    let mut args = UmountArgs {
        mountpoint: None,
        timeout: UMOUNT_TIMEOUT,
        force: false,
        asks_for_help: false,
    };
    let mut parser = Parser::from_args(words);
    while let Some(arg) = parser.next().map_err(usage_error)? {
        match arg {
            Arg::Long("timeout") => {
                let secs: f64 = parser
                    .value()
                    .map_err(usage_error)?
                    .parse()
                    .map_err(usage_error)?;
                args.timeout = Duration::try_from_secs_f64(secs)
                    .map_err(|_| Error("--timeout takes a number of seconds".to_owned()))?;
            }
            Arg::Long("force") => args.force = true,
            Arg::Short('h') | Arg::Long("help") => args.asks_for_help = true,
            Arg::Value(word) if args.mountpoint.is_none() => args.mountpoint = Some(word.into()),
            other => return Err(usage_error(other.unexpected())),
        }
    }
    Ok(args)
}

/// Parses the arguments of `recover`: the action, and the directory of the caches if it was given.
///
/// Returns `None` if the user asks for help.
///
/// # Errors
/// An option is unknown, or the options do not go together.
pub fn parse_recover(
    words: impl IntoIterator<Item = OsString>,
) -> Result<Option<(RecoverAction, Option<PathBuf>)>, Error> {
    let (mut save, mut discards, mut lists, mut base) = (None, false, false, None);
    let mut ids = Vec::new();
    let mut parser = Parser::from_args(words);
    while let Some(arg) = parser.next().map_err(usage_error)? {
        match arg {
            Arg::Long("list") => lists = true,
            Arg::Long("save") => save = Some(PathBuf::from(parser.value().map_err(usage_error)?)),
            Arg::Long("discard") => discards = true,
            Arg::Long("cache-dir" | "cache_dir") => {
                base = Some(PathBuf::from(parser.value().map_err(usage_error)?));
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            Arg::Value(word) => ids.push(word.string().map_err(usage_error)?),
            other => return Err(usage_error(other.unexpected())),
        }
    }
    let usage = |text: &str| Error(format!("{text}\nusage: {RECOVER_USAGE}"));
    let action = match (save, discards) {
        (Some(_), true) => return Err(usage("--save and --discard exclude each other")),
        _ if lists && (discards || !ids.is_empty()) => {
            return Err(usage("--list takes no ids and no --discard"));
        }
        (Some(dir), false) => RecoverAction::Save { dir, ids },
        (None, true) if ids.is_empty() => {
            return Err(usage("--discard needs ids; `scpfs recover` lists them"));
        }
        (None, true) => RecoverAction::Discard { ids },
        (None, false) if !ids.is_empty() => {
            return Err(usage("ids need --save DIR or --discard"));
        }
        (None, false) => RecoverAction::List,
    };
    Ok(Some((action, base)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn command_is_a_word_without_a_colon() {
        assert_eq!(Command::parse(&"status".into()), Some(Command::Status));
        assert_eq!(Command::parse(&"doctor".into()), Some(Command::Doctor));
        for source in ["status:", "umount:dir", "u@status:", "host:", "-h"] {
            assert_eq!(Command::parse(&source.into()), None, "{source}");
        }
    }

    #[test]
    fn with_colon_completes_a_host_without_directory() {
        for (typed, source) in [
            ("host", "host:"),
            ("u@host", "u@host:"),
            ("host:dir", "host:dir"),
            ("u@[::1]", "u@[::1]:"),
            ("[::1]:/x", "[::1]:/x"),
        ] {
            assert_eq!(with_colon(typed.into()), OsString::from(source));
        }
    }

    #[test]
    fn parse_recover_returns_the_action() {
        let recover = |list: &[&str]| parse_recover(words(list)).map(Option::unwrap);
        assert_eq!(recover(&[]).unwrap(), (RecoverAction::List, None));
        let (what, base) = recover(&["--cache-dir=/c", "--save", "/d", "12"]).unwrap();
        let (dir, ids) = ("/d".into(), vec!["12".to_owned()]);
        assert_eq!(what, RecoverAction::Save { dir, ids });
        assert_eq!(base, Some("/c".into()));
        let (what, _) = recover(&["12", "--discard", "34"]).unwrap();
        let ids = vec!["12".to_owned(), "34".to_owned()];
        assert_eq!(what, RecoverAction::Discard { ids });
        for bad in [
            &["--discard"][..],
            &["12"],
            &["--save", "/d", "--discard", "1"],
            &["--list", "1"],
            &["--sav"],
        ] {
            assert!(recover(bad).is_err(), "{bad:?}");
        }
        assert!(parse_recover(words(&["-h"])).unwrap().is_none());
    }

    #[test]
    fn parse_status_and_parse_umount_accept_their_options() {
        let args = parse_status(words(&["--json", "/m", "--watch"])).unwrap();
        assert_eq!(args.mountpoint, Some("/m".into()));
        assert!(args.as_json && args.watches);
        let args = parse_umount(words(&["/m", "--timeout=1.5", "--force"])).unwrap();
        assert_eq!(args.timeout, Duration::from_millis(1500));
        assert!(args.force);
        for bad in [&["--jason"][..], &["a", "b"], &["-f"]] {
            assert!(parse_status(words(bad)).is_err(), "{bad:?}");
            assert!(parse_umount(words(bad)).is_err(), "{bad:?}");
        }
        assert!(parse_umount(words(&["/m", "--timeout", "-1"])).is_err());
    }
}
