#![cfg(test)]
//! A scripted user at the terminal.

use std::io;
use std::sync::Arc;

use scpfs::ssh::Error;
use scpfs::ssh::Prompt;
use scpfs::ssh::Secret;
use scpfs::ssh::Transport as _;
use scpfs::ssh::libssh2::Libssh2;
use scpfs::ssh::prompt::NoPrompt;
use scpfs::ssh::settings::Settings;
use scpfs::sync::Mutex;

/// Gives the answers in order, and records the questions; fails if no answer is left.
#[derive(Debug)]
pub(crate) struct Script {
    answers: Mutex<Vec<String>>,
    pub(crate) shown: Mutex<Vec<String>>,
}

impl Script {
    pub(crate) fn new(answers: &[&str]) -> Arc<Self> {
        let answers = answers
            .iter()
            .rev()
            .map(|&answer| answer.to_owned())
            .collect();
        Arc::new(Self {
            answers: Mutex::new(answers),
            shown: Mutex::new(Vec::new()),
        })
    }

    pub(crate) fn n_questions(&self) -> usize {
        self.shown.lock().len()
    }
}

impl Prompt for Script {
    fn ask(&self, question: &str, _echo: bool) -> io::Result<Secret> {
        self.shown.lock().push(question.to_owned());
        self.answers
            .lock()
            .pop()
            .map(Secret::new)
            .ok_or_else(|| io::Error::other("no answer is left"))
    }

    fn confirm(&self, question: &str) -> io::Result<bool> {
        self.ask(question, true).map(|answer| *answer == "yes")
    }

    fn tell(&self, _text: &str) {}

    fn is_available(&self) -> bool {
        true
    }
}

/// A transport without a terminal for prompts.
pub(crate) fn unattended(settings: Settings) -> Libssh2 {
    Libssh2::new(settings, Arc::new(NoPrompt))
}

/// A transport whose prompts the script answers.
pub(crate) fn attended(settings: Settings, script: &Arc<Script>) -> Libssh2 {
    Libssh2::new(settings, Arc::clone(script) as Arc<dyn Prompt>)
}

/// Connects and runs `whoami`.
pub(crate) fn whoami(transport: &Libssh2) -> Result<String, Error> {
    let mut connection = transport.connect()?;
    let mut channel = connection.exec("whoami")?;
    let mut buf = [0; 256];
    let mut output = Vec::new();
    loop {
        match channel.read(&mut buf)? {
            0 => break,
            n_bytes => output.extend(&buf[..n_bytes]),
        }
    }
    assert_eq!(channel.finish()?, Some(0));
    Ok(String::from_utf8(output).unwrap().trim_end().to_owned())
}
