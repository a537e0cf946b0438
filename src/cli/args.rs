//! Parses the command line of a mount into fields. Does no I/O and resolves nothing.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use lexopt::Arg;
use lexopt::Parser;
use lexopt::ValueExt as _;

/// The parsed command line of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Args {
    pub source: Option<OsString>,
    pub mountpoint: Option<PathBuf>,
    pub port: Option<u16>,
    pub config_file: Option<PathBuf>,
    pub is_foreground: bool,
    pub is_debug: bool,
    pub compresses: bool,
    /// The options of all `-o a,b=c` and `--a --b=c`, in the order typed.
    pub options: Vec<TypedOption>,
    pub asks_for: Option<Question>,
}

/// One option of `-o`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypedOption {
    pub name: String,
    pub value: Option<OsString>,
}

/// A question about the program itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    ShortHelp,
    Help,
    Version,
}

/// A wrong command line: the message for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// Parses the words after the program name.
///
/// # Errors
/// An option is unknown or lacks its value, or there are too many words.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Args, Error> {
    let fault = |error: lexopt::Error| Error(error.to_string());
    let mut args = Args::default();
    let mut parser = Parser::from_args(words);
    while let Some(arg) = parser.next().map_err(fault)? {
        match arg {
            Arg::Short('o') => {
                split_options(&parser.value().map_err(fault)?, &mut args.options)?;
            }
            Arg::Short('p') => {
                args.port = Some(parser.value().map_err(fault)?.parse().map_err(fault)?);
            }
            Arg::Short('F') => args.config_file = Some(parser.value().map_err(fault)?.into()),
            Arg::Short('f') => args.is_foreground = true,
            Arg::Short('d') => {
                args.is_debug = true;
                args.is_foreground = true;
            }
            Arg::Short('C') => args.compresses = true,
            // sshfs: single-threaded, and the version of the SSH protocol. Accepted and ignored.
            Arg::Short('s' | '1' | '2') => {}
            Arg::Short('h') => args.asks_for = Some(Question::ShortHelp),
            Arg::Short('V') | Arg::Long("version") => args.asks_for = Some(Question::Version),
            Arg::Long("help") => args.asks_for = Some(Question::Help),
            Arg::Long(name) => {
                let name = name.replace('-', "_");
                let value = parser.optional_value();
                args.options.push(TypedOption { name, value });
            }
            Arg::Value(word) if args.source.is_none() => args.source = Some(word),
            Arg::Value(word) if args.mountpoint.is_none() => args.mountpoint = Some(word.into()),
            Arg::Value(word) => {
                return Err(Error(format!("unexpected argument `{}`", word.display())));
            }
            other @ Arg::Short(_) => return Err(fault(other.unexpected())),
        }
    }
    Ok(args)
}

/// Parses `a,b=c`. In a value `\,` is a comma and `\\` a backslash, as in libfuse
/// `fuse_opt.c`.
fn split_options(text: &OsString, into: &mut Vec<TypedOption>) -> Result<(), Error> {
    let mut item = Vec::new();
    let mut items = Vec::new();
    let mut bytes = text.as_bytes().iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => item.extend(bytes.next()),
            b',' => items.push(std::mem::take(&mut item)),
            byte => item.push(byte),
        }
    }
    items.push(item);
    for item in items.into_iter().filter(|item| !item.is_empty()) {
        let (name, value) = match item.iter().position(|&b| b == b'=') {
            Some(at) => {
                let value = item.get(at + 1..).unwrap_or_default().to_vec();
                (
                    item.get(..at).unwrap_or_default().to_vec(),
                    Some(OsString::from_vec(value)),
                )
            }
            None => (item, None),
        };
        let name = String::from_utf8(name)
            .map_err(|_| Error("the name of an option is not UTF-8".to_owned()))?;
        into.push(TypedOption { name, value });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(words: &[&str]) -> Result<Args, Error> {
        parse(words.iter().map(OsString::from))
    }

    fn option(name: &str, value: Option<&str>) -> TypedOption {
        TypedOption {
            name: name.to_owned(),
            value: value.map(OsString::from),
        }
    }

    #[test]
    fn parse_accepts_a_command_line_of_sshfs() {
        let args = typed(&[
            "u@h:d",
            "/mnt",
            "-p",
            "22",
            "-o",
            "ro,IdentityFile=~/k",
            "-oreconnect",
            "-f",
        ])
        .unwrap();
        assert_eq!(args.source, Some("u@h:d".into()));
        assert_eq!(args.mountpoint, Some("/mnt".into()));
        assert_eq!((args.port, args.is_foreground), (Some(22), true));
        assert_eq!(
            args.options,
            [
                option("ro", None),
                option("IdentityFile", Some("~/k")),
                option("reconnect", None)
            ]
        );
    }

    #[test]
    fn parse_accepts_options_in_long_form() {
        let args = typed(&["--cache-timeout=7", "--cache_size=1G", "--ro", "h:", "/m"]).unwrap();
        assert_eq!(
            args.options,
            [
                option("cache_timeout", Some("7")),
                option("cache_size", Some("1G")),
                option("ro", None)
            ]
        );
    }

    #[test]
    fn parse_accepts_escaped_commas() {
        let args = typed(&["-o", "fsname=a\\,b\\\\c,ro"]).unwrap();
        assert_eq!(
            args.options,
            [option("fsname", Some("a,b\\c")), option("ro", None)]
        );
    }

    #[test]
    fn parse_refuses_invalid_arguments() {
        assert!(typed(&["a", "b", "c"]).is_err());
        assert!(typed(&["-p", "x"]).is_err());
        assert!(typed(&["-p", "70000"]).is_err());
        assert!(typed(&["-Z"]).is_err());
        assert!(typed(&["-o"]).is_err());
    }
}
