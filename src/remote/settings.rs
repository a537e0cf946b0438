//! What a mount asks of the connection with its host, whatever the dialect.

use std::time::Duration;

/// How a mount talks to its host.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directory as typed; empty for the login directory.
    pub directory: Vec<u8>,
    /// How many connections there may be.
    pub max_connections: usize,
    /// How long a wait for the host may go without progress.
    pub timeout: Duration,
    /// How long an upload goes on while the host cannot be reached.
    pub patience: Duration,
    /// How many names a listing may have.
    pub max_names: usize,
    /// Whether requests fail at once while the host is known to be away.
    pub fails_fast: bool,
}

/// What was typed after `host:` as a path for `cd` in the login directory.
pub(crate) fn login_relative(typed: &[u8]) -> Vec<u8> {
    let relative = typed.strip_prefix(b"~/").unwrap_or(typed);
    match relative {
        b"" | b"~" => b".".to_vec(),
        [b'/', ..] => relative.to_vec(),
        _ => [b"./", relative].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_relative_to_the_login_directory() {
        for (typed, path) in [
            (&b""[..], &b"."[..]),
            (b"~", b"."),
            (b"~/x", b"./x"),
            (b"x y", b"./x y"),
            (b"-rf", b"./-rf"),
            (b"/srv", b"/srv"),
            (b"~user", b"./~user"),
        ] {
            assert_eq!(login_relative(typed), path);
        }
    }
}
