//! Logging in: proves to the host who we are, in the order and with the means of the settings.
//!
//! The first login of a transport may ask the person; what it needed is kept in memory. Every
//! later one uses that, and where it does not suffice fails with [`Refusal::WouldAskAgain`]
//! instead of asking. A server counts failed attempts (`MaxAuthTries`, six by default), so nothing
//! is offered twice and nothing is sent that is known to be useless.

mod credentials;
mod interactive;
mod key_file;
mod keys;
mod public_key;
mod refusal;

use std::ffi::CStr;
use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use rustix::io::Errno;
use rustix::net;
use rustix::net::RecvFlags;
use ssh2::ErrorCode;
use ssh2::Session;

pub use self::credentials::Credentials;
use self::credentials::State;
use self::credentials::Winner;
pub use self::refusal::Circumstances;
pub use self::refusal::Refusal;
use super::Error;
use super::Prompt;
use super::Secret;
use super::known_hosts::verify::Trust;
use super::prompt::printable;
use super::settings::Method;
use super::settings::Settings;

const ACT: &str = "logging in";

/// How long behind a host's farewell the end of its stream may arrive.
const HANG_UP_DELAY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Logs in on a session whose host key was accepted.
pub(super) fn log_in(
    session: &Session,
    socket: &OwnedFd,
    settings: &Settings,
    trust: Trust,
    prompt: &dyn Prompt,
    credentials: &Credentials,
) -> Result<(), Error> {
    let _gate = credentials.gate();
    let state = credentials.recall();
    let asking = if state.winner.is_some() {
        Asking::NotAgain
    } else if settings.batch_mode || !prompt.is_available() {
        Asking::Nobody
    } else {
        Asking::Allowed
    };
    let mut login = Login {
        session,
        socket,
        settings,
        trust,
        prompt,
        asking,
        state,
        tried: Vec::new(),
        refused_keys: Vec::new(),
        attempts: 0,
        is_in_doubt: false,
        unasked: None,
    };
    let winner = login.run()?;
    let mut state = login.state;
    state.winner = Some(winner);
    credentials.keep(state);
    Ok(())
}

/// Who may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    Allowed,
    Nobody,
    NotAgain,
}

/// What became of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    Accepted,
    /// The host said no.
    Refused,
    /// The host said no, or the key could not sign: libssh2 has one code for both.
    Unverified,
    /// It failed on our side.
    Unusable,
}

struct Login<'a> {
    session: &'a Session,
    socket: &'a OwnedFd,
    settings: &'a Settings,
    trust: Trust,
    prompt: &'a dyn Prompt,
    asking: Asking,
    /// What is remembered, and what will be.
    state: State,
    /// For messages.
    tried: Vec<String>,
    refused_keys: Vec<Vec<u8>>,
    /// How many attempts the host has refused.
    attempts: usize,
    /// The last attempt may have failed because the host hung up.
    is_in_doubt: bool,
    /// What was needed but could not be asked for.
    unasked: Option<String>,
}

impl Login<'_> {
    fn run(&mut self) -> Result<Winner, Error> {
        let Some(mut allowed) = self.allowed_methods()? else {
            return Ok(Winner::Nothing);
        };
        self.show_banner();
        let order = self.order();
        let mut done = Vec::new();
        loop {
            for &method in &order {
                if done.contains(&method) || !allowed.iter().any(|it| it == method.name()) {
                    continue;
                }
                done.push(method);
                let winner = match method {
                    Method::PublicKey => self.try_keys()?,
                    Method::KeyboardInteractive => self.try_interactive()?,
                    Method::Password => self.try_password()?,
                };
                if let Some(winner) = winner {
                    return Ok(winner);
                }
            }
            // A host that wants two proofs (AuthenticationMethods) refuses the first one as well,
            // but allows other methods from then on. libssh2 does not pass on which it was, nor
            // for certain whether the host is still there.
            if self.attempts == 0 || (done.len() == order.len() && !self.is_in_doubt) {
                break;
            }
            let Some(now) = self.allowed_methods()? else {
                return Ok(Winner::Nothing);
            };
            self.is_in_doubt = false;
            if now == allowed {
                break;
            }
            allowed = now;
        }
        Err(self.refusal(&allowed).into())
    }

    /// Returns the methods in the order in which they are tried: what worked last time first.
    fn order(&self) -> Vec<Method> {
        let mut order = self.settings.preferred_authentications.clone();
        order.retain(|&method| self.settings.enables(method));
        if self.trust == Trust::NoSecrets {
            order.retain(|&method| method == Method::PublicKey);
        }
        let last = match self.state.winner {
            Some(Winner::AgentKey(_) | Winner::FileKey(..)) => Some(Method::PublicKey),
            Some(Winner::KeyboardInteractive) => Some(Method::KeyboardInteractive),
            Some(Winner::Password) => Some(Method::Password),
            Some(Winner::Nothing) | None => None,
        };
        order.sort_by_key(|&method| Some(method) != last);
        order
    }

    /// Asks which methods the host allows; `None` when that already let us in.
    ///
    /// Not by `Session::auth_methods`, which panics when the list is not UTF-8.
    fn allowed_methods(&mut self) -> Result<Option<Vec<String>>, Error> {
        let user = CString::new(self.settings.user.as_str()).map_err(|_| Error::Config {
            detail: "the user name contains a NUL".to_owned(),
        })?;
        let len = u32::try_from(user.as_bytes().len()).unwrap_or(u32::MAX);
        let list = {
            let mut raw = self.session.raw();
            // SAFETY: the guard keeps the session alive and locked; `user` is `len` bytes long.
            let list =
                unsafe { libssh2_sys::libssh2_userauth_list(&raw mut *raw, user.as_ptr(), len) };
            // SAFETY: a list that is not null is a C string that the session owns; it is copied
            // before the session is unlocked.
            (!list.is_null()).then(|| unsafe { CStr::from_ptr(list) }.to_owned())
        };
        match list {
            Some(list) => Ok(Some(
                list.to_string_lossy()
                    .split(',')
                    .map(str::to_owned)
                    .collect(),
            )),
            None if self.session.authenticated() => Ok(None),
            None => {
                let err = ssh2::Error::last_session_error(self.session);
                self.outcome(Err(err.unwrap_or_else(ssh2::Error::unknown)))?;
                Ok(Some(Vec::new()))
            }
        }
    }

    fn show_banner(&self) {
        if self.asking != Asking::NotAgain
            && let Ok(Some(text)) = self.session.userauth_banner()
        {
            self.prompt.tell(&printable(text).to_string());
        }
    }

    fn try_password(&mut self) -> Result<Option<Winner>, Error> {
        let Settings {
            user, host_alias, ..
        } = self.settings;
        let mut known = self.state.password.take();
        for round in 0..self.settings.password_prompts.max(1) {
            let password = match known.take() {
                Some(password) => password,
                None => {
                    if round > 0 {
                        self.prompt.tell("Permission denied, please try again.\n");
                    }
                    let question = format!("{user}@{host_alias}'s password: ");
                    match self.ask("a password", &question)? {
                        Some(password) => password,
                        None => return Ok(None),
                    }
                }
            };
            self.tried.push("password".to_owned());
            let result = self.session.userauth_password(user, &password);
            if let Err(err) = &result
                && err.code() == ErrorCode::Session(libssh2_sys::LIBSSH2_ERROR_PASSWORD_EXPIRED)
            {
                return Err(Refusal::PasswordExpired {
                    login: self.login(),
                }
                .into());
            }
            if self.outcome(result)? == Attempt::Accepted {
                self.state.password = Some(password);
                return Ok(Some(Winner::Password));
            }
        }
        Ok(None)
    }

    /// Asks for a secret; `None` when nobody can be asked, which is remembered for the refusal.
    fn ask(&mut self, what: &str, question: &str) -> Result<Option<Secret>, Error> {
        if self.asking != Asking::Allowed {
            self.unasked.get_or_insert_with(|| what.to_owned());
            return Ok(None);
        }
        match self.prompt.ask(question, false) {
            Ok(answer) => Ok(Some(answer)),
            Err(err) => {
                log::debug!("no answer to {question:?}: {err}");
                Err(self.not_answered(what))
            }
        }
    }

    fn not_answered(&self, what: &str) -> Error {
        Refusal::NotAnswered {
            login: self.login(),
            what: what.to_owned(),
        }
        .into()
    }

    fn login(&self) -> String {
        format!("{}@{}", self.settings.user, self.settings.host_alias)
    }

    /// Sorts what libssh2 said about an attempt; an error when the connection is of no more use.
    fn outcome(&mut self, result: Result<(), ssh2::Error>) -> Result<Attempt, Error> {
        let Err(err) = result else {
            return Ok(Attempt::Accepted);
        };
        log::debug!("login attempt: {err}");
        let ErrorCode::Session(code) = err.code() else {
            return Ok(Attempt::Unusable);
        };
        if code == libssh2_sys::LIBSSH2_ERROR_TIMEOUT {
            return Err(Error::Timeout {
                act: ACT,
                timeout: self.settings.timeout,
            });
        }
        let is_unverified = code == libssh2_sys::LIBSSH2_ERROR_PUBLICKEY_UNVERIFIED;
        // libssh2 has this code for a host that hung up as well; its end of the stream comes right
        // behind its message.
        let patience = if is_unverified {
            HANG_UP_DELAY
        } else {
            Timespec::default()
        };
        if is_disconnect(code) || is_closed(self.socket, &patience) {
            return Err(self.disconnected());
        }
        self.is_in_doubt = is_unverified;
        match code {
            libssh2_sys::LIBSSH2_ERROR_AUTHENTICATION_FAILED => {
                self.attempts += 1;
                Ok(Attempt::Refused)
            }
            libssh2_sys::LIBSSH2_ERROR_PUBLICKEY_UNVERIFIED => {
                self.attempts += 1;
                Ok(Attempt::Unverified)
            }
            _ => Ok(Attempt::Unusable),
        }
    }

    fn disconnected(&self) -> Error {
        if self.attempts == 0 {
            return Error::Closed { act: ACT };
        }
        let (login, tried) = (self.login(), self.tried_text());
        Refusal::TooManyAttempts {
            login,
            attempts: self.attempts,
            tried,
        }
        .into()
    }

    fn refusal(&self, allowed: &[String]) -> Refusal {
        let login = self.login();
        let what = self.unasked.clone();
        let circumstances = Box::new(Circumstances {
            tried: self.tried_text(),
            allowed: printable(&allowed.join(", ")).to_string(),
            advice: self.advice(allowed),
        });
        match (what, self.asking) {
            (Some(what), Asking::NotAgain) => Refusal::WouldAskAgain { login, what },
            (Some(what), _) => Refusal::CannotAsk {
                login,
                what,
                circumstances,
            },
            (None, _) => Refusal::Denied {
                login,
                circumstances,
            },
        }
    }

    fn tried_text(&self) -> String {
        if self.tried.is_empty() {
            "nothing".to_owned()
        } else {
            self.tried.join(", ")
        }
    }

    fn advice(&self, allowed: &[String]) -> String {
        let is_possible = |method: &Method| allowed.iter().any(|it| it == method.name());
        let ours = [
            Method::PublicKey,
            Method::KeyboardInteractive,
            Method::Password,
        ];
        if !ours.iter().any(is_possible) {
            return "that is nothing scpfs can do".to_owned();
        }
        if !self.order().iter().any(is_possible) {
            return "your configuration forbids that".to_owned();
        }
        if is_possible(&Method::PublicKey) {
            return format!(
                "check the user name, or install a key with `ssh-copy-id {}`",
                self.settings.destination()
            );
        }
        "check the user name and the password".to_owned()
    }
}

/// Returns whether libssh2's error says that the connection is gone.
pub(super) fn is_disconnect(code: i32) -> bool {
    matches!(
        code,
        libssh2_sys::LIBSSH2_ERROR_SOCKET_DISCONNECT
            | libssh2_sys::LIBSSH2_ERROR_SOCKET_RECV
            | libssh2_sys::LIBSSH2_ERROR_SOCKET_SEND
            | libssh2_sys::LIBSSH2_ERROR_BAD_SOCKET
    )
}

/// Returns whether the host ends the connection within `patience`.
fn is_closed(socket: &OwnedFd, patience: &Timespec) -> bool {
    if !matches!(
        poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(patience)),
        Ok(1..)
    ) {
        return false;
    }
    match net::recv(socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, n_bytes)) => n_bytes == 0,
        Err(err) => err != Errno::AGAIN && err != Errno::INTR,
    }
}
