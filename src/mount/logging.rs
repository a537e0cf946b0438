//! Sets up the log and its line format.

use std::fmt;
use std::io::Write as _;

use crate::config;
use crate::path::Escaped;

/// Sends the log to standard error, one line per message.
pub fn init(config: &config::Logging) {
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(&config.filter).format(|out, record| {
        // A message may quote the host: control characters must not reach the terminal.
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

/// Displays a message as one line without control characters.
struct Line<'a>(&'a str);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Messages escape foreign text where they are made; this catches what they have missed.
        if self.0.chars().any(char::is_control) {
            write!(f, "{}", Escaped(self.0.as_bytes()))
        } else {
            f.write_str(self.0)
        }
    }
}
