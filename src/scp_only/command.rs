//! SCP command lines and the paths in them, for servers with and without a shell; pure.

/// How a server interprets the path in a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quoting {
    /// As a POSIX shell or a word-splitting library does: backslashes and single quotes quote.
    Shell,
    /// One pair of single quotes around the path is removed.
    SinglePair,
    /// One pair of double quotes around the path is removed, perhaps by a shell that expands what
    /// is inside.
    DoublePair,
    /// Unknown. Only paths of characters that every server takes literally can be used.
    Plain,
    /// Literally, quotes included.
    Literal {
        /// Whether a blank is known to be part of the path and not its end.
        keeps_blanks: bool,
    },
}

/// The options that a server accepts besides `-f` and `-t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Options {
    /// `-p` and `-r`.
    Full,
    /// None. Cisco IOS answers "-p -r -d options not supported".
    Minimal,
}

/// The kind of transfer that a command starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// The server sends one file: `-f`.
    Fetch,
    /// The server sends a file or a directory: `-r -f`.
    FetchTree,
    /// The server receives one file: `-t`.
    Upload,
    /// The server receives a directory: `-r -t`.
    UploadDir,
    /// The server receives a directory into an existing one: `-r -d -t`. Without `-d` the server
    /// would create it under the name of the existing one if that has been removed.
    UploadIntoDir,
}

/// The reason why a path cannot be put into a command for this server.
pub(super) type NotQuotable = &'static str;

/// Returns a command line in the form that every server accepts: options as separate words, then
/// the direction, then the path, and no `--`. Go servers of the wish kind want the path right after
/// `-f`; OpenSSH omits `--` since 2011, because embedded platforms do not know it.
pub(super) fn line(
    direction: Direction,
    options: Options,
    quoting: Quoting,
    path: &[u8],
) -> Result<String, NotQuotable> {
    let has_options = options == Options::Full;
    let (recursive, last) = match direction {
        Direction::Fetch => ("", "-f"),
        Direction::FetchTree => ("-r ", "-f"),
        Direction::Upload => ("", "-t"),
        Direction::UploadDir => ("-r ", "-t"),
        Direction::UploadIntoDir => ("-r -d ", "-t"),
    };
    let flags = if has_options { "-p " } else { "" };
    let recursive = if has_options { recursive } else { "" };
    let word = word(quoting, path)?;
    Ok(format!("scp {flags}{recursive}{last} {word}"))
}

/// Quotes a path so that the server gets exactly these bytes.
fn word(quoting: Quoting, path: &[u8]) -> Result<String, NotQuotable> {
    // The SSH library takes a command as UTF-8 text.
    let text = std::str::from_utf8(path)
        .map_err(|_| "its name is not UTF-8, which only the shell dialect supports")?;
    let none_of = |bad: &dyn Fn(char) -> bool| {
        if text.chars().any(bad) {
            Err("its name has characters that cannot be quoted for this server")
        } else {
            Ok(())
        }
    };
    match quoting {
        Quoting::Shell => Ok(shell_word(text)),
        Quoting::SinglePair => {
            // PowerShell behaves like such a server, and ends the word at the next quote.
            none_of(&|c| c == '\'' || c.is_control())?;
            Ok(format!("'{text}'"))
        }
        Quoting::DoublePair => {
            // cmd.exe expands inside double quotes.
            none_of(&|c| "\"%$`\\!^".contains(c) || c.is_control())?;
            Ok(format!("\"{text}\""))
        }
        Quoting::Plain => {
            none_of(&|c| !is_plain(c))?;
            Ok(text.to_owned())
        }
        Quoting::Literal { keeps_blanks } => {
            none_of(&|c| c.is_control() || (c == ' ' && !keeps_blanks))?;
            if text.ends_with(' ') {
                return Err("its name ends in a blank, which this server may remove");
            }
            Ok(text.to_owned())
        }
    }
}

/// Puts a backslash before every special character and uses no quotes. dash, bash, BusyBox ash,
/// zsh, ksh, csh, fish and word-splitting libraries (`shlex`) agree on that. Only a newline needs
/// quotes; csh does not allow it inside them.
fn shell_word(text: &str) -> String {
    let mut word = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        match c {
            '\n' => word.push_str("'\n'"),
            // `Name` does not allow NUL, and POSIX shells cannot pass one.
            '\0' => {}
            c if is_plain(c) => word.push(c),
            c => {
                word.push('\\');
                word.push(c);
            }
        }
    }
    word
}

/// Returns whether every shell and server takes this character literally.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "/._-+:@,".contains(c) || !c.is_ascii()
}

/// Returns quoted forms of a path, each of which is the path for servers with one kind of quoting.
///
/// The order matters: the strictest form comes first. A path is tried unquoted only after the
/// server took two kinds of quotes literally, so that it has no shell, and only if a shell would
/// not expand it.
pub(super) fn trials(path: &[u8]) -> Result<Vec<(Quoting, String)>, NotQuotable> {
    let text = std::str::from_utf8(path)
        .ok()
        .filter(|text| !text.contains(|c: char| "'\"`$\\!%^".contains(c) || c.is_control()))
        .ok_or("the path of the directory has characters that cannot be quoted safely; use another path")?;
    let mut trials = vec![
        // Only a shell joins two adjacent quoted strings to one word.
        (Quoting::Shell, format!("'{text}''/.'")),
        (Quoting::SinglePair, format!("'{text}'")),
        (Quoting::DoublePair, format!("\"{text}\"")),
    ];
    if text.chars().all(|c| is_plain(c) || c == ' ') {
        let keeps_blanks = text.contains(' ');
        trials.push((Quoting::Literal { keeps_blanks }, text.to_owned()));
    }
    Ok(trials)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_has_options_as_separate_words_and_the_path_last() {
        let line = |direction, options| line(direction, options, Quoting::Shell, b"/a").unwrap();
        assert_eq!(line(Direction::FetchTree, Options::Full), "scp -p -r -f /a");
        assert_eq!(line(Direction::Fetch, Options::Full), "scp -p -f /a");
        assert_eq!(line(Direction::Upload, Options::Full), "scp -p -t /a");
        assert_eq!(line(Direction::UploadDir, Options::Full), "scp -p -r -t /a");
        assert_eq!(
            line(Direction::UploadIntoDir, Options::Full),
            "scp -p -r -d -t /a"
        );
        assert_eq!(line(Direction::FetchTree, Options::Minimal), "scp -f /a");
        assert_eq!(line(Direction::Upload, Options::Minimal), "scp -t /a");
    }

    #[test]
    fn word_quotes_the_path_for_each_kind_of_server() {
        let blanks = |keeps_blanks| Quoting::Literal { keeps_blanks };
        let cases: [(Quoting, &[u8], Option<&str>); 16] = [
            (Quoting::Plain, b"flash:/a-b.c", Some("flash:/a-b.c")),
            (Quoting::Plain, b"/a b", None),
            (Quoting::Shell, b"/a b'c", Some("/a\\ b\\'c")),
            (Quoting::Shell, b"/$(x)!\\", Some("/\\$\\(x\\)\\!\\\\")),
            (Quoting::Shell, b"/a\nb", Some("/a'\n'b")),
            (
                Quoting::Shell,
                "/na\u{ef}ve".as_bytes(),
                Some("/na\u{ef}ve"),
            ),
            (Quoting::Shell, b"/\xff", None),
            (Quoting::SinglePair, b"/a \"b", Some("'/a \"b'")),
            (Quoting::SinglePair, b"/it's", None),
            (Quoting::DoublePair, b"C:/a b", Some("\"C:/a b\"")),
            (Quoting::DoublePair, b"/%x%", None),
            (blanks(false), b"flash:/it's", Some("flash:/it's")),
            (blanks(false), b"/a b", None),
            (blanks(true), b"/a b", Some("/a b")),
            (blanks(true), b"/a ", None),
            (blanks(true), b"/a\nscp -t /b", None),
        ];
        for (quoting, path, expected) in cases {
            let word = word(quoting, path);
            assert_eq!(word.ok().as_deref(), expected, "{quoting:?} {path:?}");
        }
    }
}
