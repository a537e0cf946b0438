//! Prompts that never ask the user, or stop asking, and `printable` text for the terminal.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use super::Prompt;
use super::Secret;

/// A prompt without a user: every question fails, and texts are logged.
#[derive(Debug)]
pub struct NoPrompt;

impl Prompt for NoPrompt {
    fn ask(&self, _question: &str, _echo: bool) -> io::Result<Secret> {
        Err(unavailable())
    }

    fn confirm(&self, _question: &str) -> io::Result<bool> {
        Err(unavailable())
    }

    fn tell(&self, text: &str) {
        log::info!("{}", text.trim_end());
    }

    fn is_available(&self) -> bool {
        false
    }
}

/// Asks the user until it is silenced; afterwards every question fails.
#[derive(Debug)]
pub(super) struct SilenceablePrompt {
    user: Arc<dyn Prompt>,
    is_silenced: AtomicBool,
}

impl SilenceablePrompt {
    pub(super) fn new(user: Arc<dyn Prompt>) -> Self {
        Self {
            user,
            is_silenced: AtomicBool::new(false),
        }
    }

    pub(super) fn silence(&self) {
        self.is_silenced.store(true, Ordering::Relaxed);
    }

    fn prompt(&self) -> &dyn Prompt {
        if self.is_silenced.load(Ordering::Relaxed) {
            &NoPrompt
        } else {
            &*self.user
        }
    }
}

impl Prompt for SilenceablePrompt {
    fn ask(&self, question: &str, echo: bool) -> io::Result<Secret> {
        self.prompt().ask(question, echo)
    }

    fn confirm(&self, question: &str) -> io::Result<bool> {
        self.prompt().confirm(question)
    }

    fn tell(&self, text: &str) {
        self.prompt().tell(text);
    }

    fn is_available(&self) -> bool {
        self.prompt().is_available()
    }
}

/// Escapes control characters in text of the server, so that it cannot control the terminal.
/// Newlines and tabs are unchanged, carriage returns are removed.
pub(super) fn printable(text: &str) -> impl fmt::Display + '_ {
    struct Printable<'a>(&'a str);
    impl fmt::Display for Printable<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for c in self.0.chars().filter(|&c| c != '\r') {
                if c.is_control() && c != '\n' && c != '\t' {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            Ok(())
        }
    }
    Printable(text)
}

fn unavailable() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "no terminal to ask the user on",
    )
}
