//! Asks the user at the terminal, or reads the password from standard input.

use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::Read as _;
use std::io::Write as _;

use rustix::termios::OptionalActions;
use rustix::termios::Termios;

use crate::ssh::Prompt;
use crate::ssh::Secret;
use crate::sync::Mutex;

/// The maximum length of a secret in bytes; the rest of a longer line is not read.
const MAX_SECRET: usize = 64 << 10;

/// The terminal of the process, if it has one.
#[derive(Debug)]
pub struct Terminal {
    /// The terminal settings at the start; `None` without a terminal.
    before: Option<Termios>,
}

impl Terminal {
    /// Remembers the settings of the controlling terminal, if there is one.
    pub fn new() -> Self {
        let tty = File::open("/dev/tty").ok();
        Self {
            before: tty.and_then(|tty| rustix::termios::tcgetattr(&tty).ok()),
        }
    }

    /// Restores the terminal settings, and so the echo, if a signal interrupts a question.
    pub fn restore(&self) {
        if let Some(before) = &self.before
            && let Ok(tty) = File::open("/dev/tty")
        {
            // The program ends anyway: a failure has no consequence.
            let _unused = rustix::termios::tcsetattr(&tty, OptionalActions::Now, before);
        }
    }
}

impl Prompt for Terminal {
    fn ask(&self, question: &str, echo: bool) -> io::Result<Secret> {
        if !echo {
            return rpassword::prompt_password(question).map(Secret::new);
        }
        let mut tty = File::options().read(true).write(true).open("/dev/tty")?;
        tty.write_all(question.as_bytes())?;
        read_secret(&mut io::BufReader::new(tty))
    }

    fn confirm(&self, question: &str) -> io::Result<bool> {
        let mut question = question.to_owned();
        loop {
            match self
                .ask(&question, true)?
                .trim()
                .to_ascii_lowercase()
                .as_str()
            {
                "yes" => return Ok(true),
                "no" => return Ok(false),
                _ => "Please type `yes` or `no`: ".clone_into(&mut question),
            }
        }
    }

    fn tell(&self, text: &str) {
        if let Ok(mut tty) = File::options().write(true).open("/dev/tty") {
            // The text is informative only: a failure is ignored.
            let _unused = tty.write_all(format!("{}\n", text.trim_end()).as_bytes());
        }
    }

    fn is_available(&self) -> bool {
        self.before.is_some()
    }
}

/// Reads a line and removes its end. The buffer has its full size from the start: a buffer that
/// grows would leave copies of the secret in freed memory.
fn read_secret(from: &mut dyn BufRead) -> io::Result<Secret> {
    let mut line = Secret::new(String::with_capacity(MAX_SECRET));
    if from.take(MAX_SECRET as u64).read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let end = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(end);
    Ok(line)
}

/// Answers every question for a secret with the first line of standard input.
#[derive(Debug)]
pub struct StandardInput {
    /// The line, once it has been read.
    password: Mutex<Option<Secret>>,
}

impl StandardInput {
    pub fn new() -> Self {
        Self {
            password: Mutex::new(None),
        }
    }
}

impl Prompt for StandardInput {
    fn ask(&self, _question: &str, echo: bool) -> io::Result<Secret> {
        if echo {
            return Err(io::Error::other(
                "a question cannot be answered: standard input has only the password",
            ));
        }
        let mut password = self.password.lock();
        if let Some(password) = &*password {
            return Ok(password.clone());
        }
        let line = read_secret(&mut io::stdin().lock())?;
        *password = Some(line.clone());
        Ok(line)
    }

    fn confirm(&self, _question: &str) -> io::Result<bool> {
        Err(io::Error::other(
            "a question cannot be answered: standard input has only the password",
        ))
    }

    fn tell(&self, text: &str) {
        log::info!("{}", text.trim_end());
    }

    fn is_available(&self) -> bool {
        true
    }
}
