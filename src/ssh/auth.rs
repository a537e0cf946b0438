//! Authenticates with the methods of the settings, in their order.
//!
//! The first login of a transport may ask the user; the secrets that it used stay in memory. Later
//! logins use those and never ask: if they do not suffice, the login fails with
//! [`Refusal::WouldAskAgain`]. A server limits failed attempts (`MaxAuthTries`, six by default), so
//! no key is offered twice, and no attempt is made that is known to fail.

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

use self::credentials::Accepted;
pub use self::credentials::Credentials;
use self::credentials::State;
pub use self::refusal::Diagnosis;
pub use self::refusal::Refusal;
use super::Error;
use super::Prompt;
use super::Secret;
use super::known_hosts::verify::Trust;
use super::prompt::printable;
use super::settings::Method;
use super::settings::Settings;

const ACT: &str = "logging in";

/// How long after the host's disconnect message the end of its TCP stream may arrive.
const EOF_DELAY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Authenticates on a session whose host key was accepted.
///
/// Blocks until the host has answered and the user has answered all prompts; waits for another
/// first login in progress.
///
/// # Errors
/// [`Error::Auth`]: the host refused, or a secret is missing. Otherwise the connection failed.
pub(super) fn log_in(
    session: &Session,
    socket: &OwnedFd,
    settings: &Settings,
    trust: Trust,
    prompt: &dyn Prompt,
    credentials: &Credentials,
) -> Result<(), Error> {
    let _guard = credentials.lock_first_login();
    let state = credentials.load();
    let asking = if state.accepted.is_some() {
        Asking::NotAgain
    } else if settings.batch_mode || !prompt.is_available() {
        Asking::Unavailable
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
        may_be_disconnected: false,
        missing_answer: None,
    };
    let accepted = login.run()?;
    let mut state = login.state;
    state.accepted = Some(accepted);
    credentials.save(state);
    Ok(())
}

/// Whether this login may ask the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    Allowed,
    /// There is no terminal, or the configuration forbids it.
    Unavailable,
    /// An earlier login has succeeded, so this one must not ask.
    NotAgain,
}

/// The result of one authentication attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    Succeeded,
    /// The host refused it.
    Refused,
    /// The host refused it, or the key could not sign: libssh2 has one error code for both.
    Unverified,
    /// It failed locally.
    Unusable,
}

struct Login<'a> {
    session: &'a Session,
    socket: &'a OwnedFd,
    settings: &'a Settings,
    trust: Trust,
    prompt: &'a dyn Prompt,
    asking: Asking,
    /// The secrets of the first login; saved again if this login succeeds.
    state: State,
    /// The keys and methods tried so far, for messages.
    tried: Vec<String>,
    refused_keys: Vec<Vec<u8>>,
    /// How many attempts the host refused.
    attempts: usize,
    /// The last attempt may have failed because the host closed the connection.
    may_be_disconnected: bool,
    /// The first answer that was needed from the user, who could not be asked.
    missing_answer: Option<String>,
}

impl Login<'_> {
    fn run(&mut self) -> Result<Accepted, Error> {
        let Some(mut allowed) = self.allowed_methods()? else {
            return Ok(Accepted::NoMethod);
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
                let accepted = match method {
                    Method::PublicKey => self.try_keys()?,
                    Method::KeyboardInteractive => self.try_interactive()?,
                    Method::Password => self.try_password()?,
                };
                if let Some(accepted) = accepted {
                    return Ok(accepted);
                }
            }
            // A host that requires two methods (AuthenticationMethods) reports the first success as
            // a failure as well, and allows other methods afterwards. libssh2 reports neither this
            // partial success nor, reliably, a disconnect: ask for the allowed methods again.
            if self.attempts == 0 || (done.len() == order.len() && !self.may_be_disconnected) {
                break;
            }
            let Some(now) = self.allowed_methods()? else {
                return Ok(Accepted::NoMethod);
            };
            self.may_be_disconnected = false;
            if now == allowed {
                break;
            }
            allowed = now;
        }
        Err(self.refusal(&allowed).into())
    }

    /// Returns the methods in the order to try: the one of the last successful login first.
    fn order(&self) -> Vec<Method> {
        let mut order = self.settings.preferred_authentications.clone();
        order.retain(|&method| self.settings.enables(method));
        if self.trust == Trust::NoSecrets {
            order.retain(|&method| method == Method::PublicKey);
        }
        let last = match self.state.accepted {
            Some(Accepted::AgentKey(_) | Accepted::FileKey(..)) => Some(Method::PublicKey),
            Some(Accepted::KeyboardInteractive) => Some(Method::KeyboardInteractive),
            Some(Accepted::Password) => Some(Method::Password),
            Some(Accepted::NoMethod) | None => None,
        };
        order.sort_by_key(|&method| Some(method) != last);
        order
    }

    /// Asks the host for its allowed methods; `None` if it accepted the login without a method.
    ///
    /// Calls libssh2 directly, because `Session::auth_methods` panics if the list is not UTF-8.
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

    fn try_password(&mut self) -> Result<Option<Accepted>, Error> {
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
            if self.outcome(result)? == Attempt::Succeeded {
                self.state.password = Some(password);
                return Ok(Some(Accepted::Password));
            }
        }
        Ok(None)
    }

    /// Asks the user for a secret; returns `None` and sets `missing_answer` if asking is not
    /// allowed.
    fn ask(&mut self, what: &str, question: &str) -> Result<Option<Secret>, Error> {
        if self.asking != Asking::Allowed {
            self.missing_answer.get_or_insert_with(|| what.to_owned());
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

    /// Classifies libssh2's result of an attempt.
    ///
    /// # Errors
    /// The connection is unusable.
    fn outcome(&mut self, result: Result<(), ssh2::Error>) -> Result<Attempt, Error> {
        let Err(err) = result else {
            return Ok(Attempt::Succeeded);
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
        // libssh2 returns this code also if the host disconnected. The end of the TCP stream
        // follows the disconnect message closely.
        let eof_wait = if is_unverified {
            EOF_DELAY
        } else {
            Timespec::default()
        };
        if is_disconnect(code) || is_closed(self.socket, &eof_wait) {
            return Err(self.disconnected());
        }
        self.may_be_disconnected = is_unverified;
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
        let what = self.missing_answer.clone();
        let diagnosis = Box::new(Diagnosis {
            tried: self.tried_text(),
            allowed: printable(&allowed.join(", ")).to_string(),
            advice: self.advice(allowed),
        });
        match (what, self.asking) {
            (Some(what), Asking::NotAgain) => Refusal::WouldAskAgain { login, what },
            (Some(what), _) => Refusal::CannotAsk {
                login,
                what,
                diagnosis,
            },
            (None, _) => Refusal::Denied { login, diagnosis },
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
            return "scpfs supports none of these methods".to_owned();
        }
        if !self.order().iter().any(is_possible) {
            return "your SSH configuration disables these methods".to_owned();
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

/// Returns whether a libssh2 error code means that the connection has ended.
pub(super) fn is_disconnect(code: i32) -> bool {
    matches!(
        code,
        libssh2_sys::LIBSSH2_ERROR_SOCKET_DISCONNECT
            | libssh2_sys::LIBSSH2_ERROR_SOCKET_RECV
            | libssh2_sys::LIBSSH2_ERROR_SOCKET_SEND
            | libssh2_sys::LIBSSH2_ERROR_BAD_SOCKET
    )
}

/// Returns whether the TCP stream ends within `limit`.
fn is_closed(socket: &OwnedFd, limit: &Timespec) -> bool {
    if !matches!(
        poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(limit)),
        Ok(1..)
    ) {
        return false;
    }
    match net::recv(socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, n_bytes)) => n_bytes == 0,
        Err(err) => err != Errno::AGAIN && err != Errno::INTR,
    }
}
