//! The settings of the connections to a host, for every dialect.

use std::time::Duration;

/// How a mount talks to its host.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directory as typed; empty for the login directory.
    pub directory: Vec<u8>,
    /// The maximum number of connections.
    pub max_connections: usize,
    /// The deadline of a wait for the host, restarted by each progress.
    pub timeout: Duration,
    /// How long uploads are retried while the host cannot be reached.
    pub upload_deadline: Duration,
    /// The maximum number of names in a listing.
    pub max_names: usize,
    /// Whether requests fail at once while the host is known to be unreachable.
    pub fails_fast: bool,
}

/// Converts the path that was typed after `host:` to an argument of `cd` in the login directory.
pub(crate) fn login_relative(typed: &[u8]) -> Vec<u8> {
    let relative = typed.strip_prefix(b"~/").unwrap_or(typed);
    match relative {
        b"" | b"~" => b".".to_vec(),
        [b'/', ..] => relative.to_vec(),
        _ => [b"./", relative].concat(),
    }
}

/// Returns the result of [`login_relative`] as messages show it.
pub(crate) fn shown_directory(login_relative: &[u8]) -> Vec<u8> {
    match login_relative {
        b"." => b"~".to_vec(),
        directory => directory.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn login_relative_resolves_typed_paths_in_the_login_directory() {
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
