//! The command lines of SCP and the paths in them, for servers with and without a shell; pure.

/// What a server does with the path in a command line before it uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quoting {
    /// It goes through a shell that knows backslashes and single quotes, or through something
    /// that splits words as one does.
    Shell,
    /// One pair of single quotes around it is taken off.
    SinglePair,
    /// One pair of double quotes around it is taken off, perhaps by a shell that looks into it.
    DoublePair,
    /// Nobody knows; but there are characters that mean themselves everywhere.
    Plain,
    /// It is taken as it stands, quotes and all.
    Literal {
        /// Whether a blank in it is known to be part of it, and not the end of it.
        keeps_blanks: bool,
    },
}

/// Which options a server knows besides `-f` and `-t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Options {
    /// `-p` and `-r`.
    Full,
    /// None. Cisco IOS says "-p -r -d options not supported".
    Minimal,
}

/// What a command is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Send one file: `-f`.
    Fetch,
    /// Send a file or a directory, whichever it is: `-r -f`.
    Look,
    /// Take one file: `-t`.
    Upload,
    /// Take a directory: `-r -t`.
    MakeDir,
    /// Take one into a directory that is there: `-r -d -t`. Without `-d` it would be made under
    /// the name of that directory if that is gone.
    IntoDir,
}

/// Why a name cannot be put into a command for this server.
pub(super) type Unsayable = &'static str;

/// Puts a command line together. Options are separate words, the direction comes last of them,
/// the path last of all, and there is no `--`: that is what every server understands (Go servers
/// of the wish kind want the path right behind `-f`; OpenSSH leaves `--` out since 2011, because
/// embedded platforms do not know it).
pub(super) fn line(
    direction: Direction,
    options: Options,
    quoting: Quoting,
    path: &[u8],
) -> Result<String, Unsayable> {
    let has_options = options == Options::Full;
    let (recursive, last) = match direction {
        Direction::Fetch => ("", "-f"),
        Direction::Look => ("-r ", "-f"),
        Direction::Upload => ("", "-t"),
        Direction::MakeDir => ("-r ", "-t"),
        Direction::IntoDir => ("-r -d ", "-t"),
    };
    let flags = if has_options { "-p " } else { "" };
    let recursive = if has_options { recursive } else { "" };
    let word = word(quoting, path)?;
    Ok(format!("scp {flags}{recursive}{last} {word}"))
}

/// Writes a path so that the server makes exactly that path of it.
fn word(quoting: Quoting, path: &[u8]) -> Result<String, Unsayable> {
    // A command is text for the SSH library.
    let text = std::str::from_utf8(path).map_err(
        |_| "its name is not UTF-8, and without a shell there is no other way to say it",
    )?;
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
            // PowerShell looks like such a server, and ends the word at the next quote.
            none_of(&|c| c == '\'' || c.is_control())?;
            Ok(format!("'{text}'"))
        }
        Quoting::DoublePair => {
            // cmd.exe looks into double quotes.
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
                return Err("its name ends in a blank, which this server may cut off");
            }
            Ok(text.to_owned())
        }
    }
}

/// A backslash before everything special and no quotes: dash, bash, BusyBox ash, zsh, ksh, csh
/// and fish agree on that, and so do libraries that split words (`shlex`). A newline alone needs
/// quotes, in which csh cannot have one.
fn shell_word(text: &str) -> String {
    let mut word = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        match c {
            '\n' => word.push_str("'\n'"),
            // POSIX shells have no NUL; `Name` lets none through.
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

/// Whether a character is itself to every shell and server.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "/._-+:@,".contains(c) || !c.is_ascii()
}

/// Ways to say a path, each of which is that path to a server with one kind of quoting.
///
/// The order matters: the strictest comes first, and a server is taken for one without a shell
/// only after two kinds of quotes were part of the name to it. What a shell would look into is
/// not tried without quotes.
pub(super) fn trials(path: &[u8]) -> Result<Vec<(Quoting, String)>, Unsayable> {
    let text = std::str::from_utf8(path)
        .ok()
        .filter(|text| !text.contains(|c: char| "'\"`$\\!%^".contains(c) || c.is_control()))
        .ok_or("the name of the directory has characters that cannot be tried on this server")?;
    let mut trials = vec![
        // Two quoted pieces are one word to a shell alone.
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
    fn options_are_separate_words_and_the_path_is_last() {
        let line = |direction, options| line(direction, options, Quoting::Shell, b"/a").unwrap();
        assert_eq!(line(Direction::Look, Options::Full), "scp -p -r -f /a");
        assert_eq!(line(Direction::Fetch, Options::Full), "scp -p -f /a");
        assert_eq!(line(Direction::Upload, Options::Full), "scp -p -t /a");
        assert_eq!(line(Direction::MakeDir, Options::Full), "scp -p -r -t /a");
        assert_eq!(
            line(Direction::IntoDir, Options::Full),
            "scp -p -r -d -t /a"
        );
        assert_eq!(line(Direction::Look, Options::Minimal), "scp -f /a");
        assert_eq!(line(Direction::Upload, Options::Minimal), "scp -t /a");
    }

    #[test]
    fn each_server_gets_the_path_as_it_takes_it() {
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
