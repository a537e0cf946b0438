//! Prompts that do not reach a person.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use super::Prompt;
use super::Secret;

/// Asks nobody: every question fails.
#[derive(Debug)]
pub struct NoPrompt;

impl Prompt for NoPrompt {
    fn ask(&self, _question: &str, _echo: bool) -> io::Result<Secret> {
        Err(nobody())
    }

    fn confirm(&self, _question: &str) -> io::Result<bool> {
        Err(nobody())
    }

    fn tell(&self, text: &str) {
        log::info!("{}", text.trim_end());
    }

    fn is_available(&self) -> bool {
        false
    }
}

/// Asks a person until it is silenced, then nobody.
#[derive(Debug)]
pub(super) struct UntilSilenced {
    person: Arc<dyn Prompt>,
    is_silenced: AtomicBool,
}

impl UntilSilenced {
    pub(super) fn new(person: Arc<dyn Prompt>) -> Self {
        Self {
            person,
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
            &*self.person
        }
    }
}

impl Prompt for UntilSilenced {
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

/// Makes text of the server fit for a terminal: escape sequences would otherwise act on it.
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

fn nobody() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "there is nobody to ask")
}
