//! Keyboard-interactive authentication: passes the host's questions to the user. A single hidden
//! answer is remembered and used again by later logins.

use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::net::Shutdown;
use ssh2::KeyboardInteractivePrompt;

use super::Accepted;
use super::Asking;
use super::Attempt;
use super::Login;
use crate::ssh::Error;
use crate::ssh::Prompt;
use crate::ssh::Secret;
use crate::ssh::prompt::printable;

const ANSWERS: &str = "answers to its questions";

/// Added to libssh2's timeout, which includes the time that the user takes to answer. Servers end
/// the login earlier (OpenSSH after `LoginGraceTime`, two minutes).
const TIME_TO_ANSWER: Duration = Duration::from_secs(300);

impl Login<'_> {
    pub(super) fn try_interactive(&mut self) -> Result<Option<Accepted>, Error> {
        let mut replay = self.state.answer.take();
        if self.asking != Asking::Allowed && replay.is_none() {
            // Starting requires an answer, and a wrong answer may lock the account.
            self.missing_answer
                .get_or_insert_with(|| ANSWERS.to_owned());
            return Ok(None);
        }
        for _ in 0..self.settings.password_prompts.max(1) {
            let answer = replay.take();
            let is_replay = answer.is_some();
            if self.asking != Asking::Allowed && !is_replay {
                self.missing_answer
                    .get_or_insert_with(|| ANSWERS.to_owned());
                break;
            }
            let mut responder = Responder {
                prefix: format!("({}@{}) ", self.settings.user, self.settings.host_alias),
                prompt: self.prompt,
                replay: answer,
                hang_up: &|| {
                    // libssh2's callback has no other way to return without an answer.
                    let ended = rustix::net::shutdown(self.socket.as_fd(), Shutdown::Both);
                    ended.unwrap_or_else(|err| log::debug!("hanging up: {err}"));
                },
                n_questions: 0,
                only_answer: None,
                end: None,
            };
            let timeout = self.session.timeout();
            if !is_replay {
                let extra = u32::try_from(TIME_TO_ANSWER.as_millis()).unwrap_or(u32::MAX);
                self.session.set_timeout(timeout.saturating_add(extra));
            }
            let result = self
                .session
                .userauth_keyboard_interactive(&self.settings.user, &mut responder);
            self.session.set_timeout(timeout);
            let Responder {
                n_questions,
                only_answer,
                end,
                ..
            } = responder;
            self.tried.push("keyboard-interactive".to_owned());
            match end {
                Some(End::NotAnswered) => return Err(self.not_answered(ANSWERS)),
                Some(End::NewQuestions) => {
                    self.asking = Asking::NotAgain;
                    self.missing_answer = Some(ANSWERS.to_owned());
                    return Err(self.refusal(&[]).into());
                }
                None => {}
            }
            if self.outcome(result)? == Attempt::Succeeded {
                self.state.answer = only_answer;
                return Ok(Some(Accepted::KeyboardInteractive));
            }
            if n_questions == 0 {
                // The host offers this method but asks no question.
                break;
            }
        }
        Ok(None)
    }
}

/// Why the dialogue was aborted.
enum End {
    /// The user gave no answer.
    NotAnswered,
    /// The host asked something that the remembered answer is not for.
    NewQuestions,
}

struct Responder<'a> {
    prefix: String,
    prompt: &'a dyn Prompt,
    /// The remembered answer, used instead of asking the user.
    replay: Option<Secret>,
    hang_up: &'a dyn Fn(),
    n_questions: usize,
    /// The answer, if the whole dialogue had one question and it was hidden.
    only_answer: Option<Secret>,
    end: Option<End>,
}

impl KeyboardInteractivePrompt for Responder<'_> {
    fn prompt<'b>(
        &mut self,
        _username: &str,
        instructions: &str,
        prompts: &[ssh2::Prompt<'b>],
    ) -> Vec<String> {
        let is_first = self.n_questions == 0;
        self.n_questions += prompts.len();
        let is_only = is_first && matches!(prompts, [only] if !only.echo);
        if prompts.is_empty() {
            // PAM ends every dialogue with a request without questions.
            if !instructions.trim().is_empty() && self.replay.is_none() {
                self.prompt.tell(&printable(instructions).to_string());
            }
            return Vec::new();
        }
        if let Some(answer) = &self.replay {
            if is_only {
                self.only_answer = Some(answer.clone());
                return vec![answer.to_string()];
            }
            self.abort(End::NewQuestions);
            return Vec::new();
        }
        if !instructions.trim().is_empty() {
            self.prompt.tell(&printable(instructions).to_string());
        }
        self.only_answer = None;
        let mut answers: Vec<Secret> = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let question = format!("{}{}", self.prefix, printable(&prompt.text));
            match self.prompt.ask(&question, prompt.echo) {
                Ok(answer) => answers.push(answer),
                Err(err) => {
                    log::debug!("no answer to {question:?}: {err}");
                    self.abort(End::NotAnswered);
                    return Vec::new();
                }
            }
        }
        if is_only {
            self.only_answer = answers.first().cloned();
        }
        // The ssh2 crate drops these copies without zeroing them; ours are zeroed.
        answers.iter().map(|it| it.to_string()).collect()
    }
}

impl Responder<'_> {
    fn abort(&mut self, end: End) {
        self.end = Some(end);
        (self.hang_up)();
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::cell::Cell;
    use std::io;

    use super::*;
    use crate::sync::Mutex;

    #[derive(Debug, Default)]
    struct Script {
        answers: Mutex<Vec<&'static str>>,
        shown: Mutex<Vec<String>>,
    }

    impl Prompt for Script {
        fn ask(&self, question: &str, echo: bool) -> io::Result<Secret> {
            self.shown.lock().push(format!("{question}{echo}"));
            let answer = self
                .answers
                .lock()
                .pop()
                .map(|it| Secret::new(it.to_owned()));
            answer.ok_or_else(|| io::Error::other("end of input"))
        }

        fn confirm(&self, _question: &str) -> io::Result<bool> {
            Ok(false)
        }

        fn tell(&self, text: &str) {
            self.shown.lock().push(text.to_owned());
        }

        fn is_available(&self) -> bool {
            true
        }
    }

    fn question(text: &str, echo: bool) -> ssh2::Prompt<'_> {
        ssh2::Prompt {
            text: Cow::Borrowed(text),
            echo,
        }
    }

    fn responder<'a>(
        prompt: &'a Script,
        replay: Option<&str>,
        hang_up: &'a dyn Fn(),
    ) -> Responder<'a> {
        Responder {
            prefix: "(u@h) ".to_owned(),
            prompt,
            replay: replay.map(|it| Secret::new(it.to_owned())),
            hang_up,
            n_questions: 0,
            only_answer: None,
            end: None,
        }
    }

    #[test]
    fn one_hidden_question_can_be_answered_again() {
        let script = Script::default();
        script.answers.lock().push("secret");
        let mut first = responder(&script, None, &|| {});
        assert_eq!(
            first.prompt("", "", &[question("Password: ", false)]),
            ["secret"]
        );
        assert!(first.prompt("", "", &[]).is_empty());
        let answer = first.only_answer.take();
        assert_eq!(answer.as_ref().map(|it| it.as_str()), Some("secret"));

        let mut second = responder(&script, answer.as_ref().map(|it| it.as_str()), &|| {});
        assert_eq!(
            second.prompt("", "", &[question("Password: ", false)]),
            ["secret"]
        );
        assert_eq!(*script.shown.lock(), ["(u@h) Password: false"]);
    }

    #[test]
    fn several_or_visible_questions_are_asked_but_not_remembered() {
        let script = Script::default();
        script.answers.lock().extend(["c", "b", "a"]);
        let mut it = responder(&script, None, &|| {});
        let questions = [question("A\x1b[2J: ", true), question("B: ", false)];
        assert_eq!(it.prompt("", "Two things\n", &questions), ["a", "b"]);
        assert_eq!(it.prompt("", "", &[question("C: ", false)]), ["c"]);
        assert_eq!(it.only_answer, None);
        let expected = [
            "Two things\n",
            "(u@h) A\\u{1b}[2J: true",
            "(u@h) B: false",
            "(u@h) C: false",
        ];
        assert_eq!(*script.shown.lock(), expected);
    }

    #[test]
    fn questions_that_a_replay_does_not_fit_end_the_connection() {
        let script = Script::default();
        let hung_up = Cell::new(false);
        let hang_up = || hung_up.set(true);
        let mut it = responder(&script, Some("secret"), &hang_up);
        assert_eq!(
            it.prompt("", "", &[question("Password: ", false)]),
            ["secret"]
        );
        assert!(it.prompt("", "", &[question("Code: ", false)]).is_empty());
        assert!(matches!(it.end, Some(End::NewQuestions)));
        assert!(hung_up.get());
        assert!(script.shown.lock().is_empty());
    }

    #[test]
    fn a_person_who_does_not_answer_ends_the_connection() {
        let script = Script::default();
        let hung_up = Cell::new(false);
        let hang_up = || hung_up.set(true);
        let mut it = responder(&script, None, &hang_up);
        assert!(
            it.prompt("", "", &[question("Password: ", false)])
                .is_empty()
        );
        assert!(matches!(it.end, Some(End::NotAnswered)));
        assert!(hung_up.get());
    }
}
