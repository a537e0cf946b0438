//! The secrets of the first login, kept in memory so that later logins need not ask the user.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::path::PathBuf;

use crate::ssh::Secret;
use crate::sync::Mutex;
use crate::sync::MutexGuard;

/// The method that the host accepted in the last login; the next login tries it first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Accepted {
    /// The host required no authentication.
    NoMethod,
    AgentKey(Vec<u8>),
    /// A key file, and the certificate that was offered with it.
    FileKey(PathBuf, Option<Vec<u8>>),
    KeyboardInteractive,
    Password,
}

/// The secrets of a transport's logins, and what the host accepted.
///
/// Secrets are never written to disk or logged, and are zeroed when dropped.
#[derive(Default)]
pub struct Credentials {
    state: Mutex<State>,
    /// Held during the first login, so that two connections that are opened at the same time do not
    /// both ask the user. It is the only lock that is held while waiting for the network.
    first_login: Mutex<()>,
}

#[derive(Clone, Default)]
pub(super) struct State {
    /// `None` until a login has succeeded.
    pub(super) accepted: Option<Accepted>,
    pub(super) passphrases: HashMap<PathBuf, Secret>,
    pub(super) password: Option<Secret>,
    /// The answer of keyboard-interactive, if it consisted of one hidden question.
    pub(super) answer: Option<Secret>,
}

impl Credentials {
    /// Waits for a first login in progress. Returns a guard if none has succeeded yet: the caller
    /// does the first login, and others wait until the guard is dropped.
    pub(super) fn lock_first_login(&self) -> Option<MutexGuard<'_, ()>> {
        if self.state.lock().accepted.is_some() {
            return None;
        }
        let guard = self.first_login.lock();
        self.state.lock().accepted.is_none().then_some(guard)
    }

    pub(super) fn load(&self) -> State {
        self.state.lock().clone()
    }

    pub(super) fn save(&self, state: State) {
        *self.state.lock() = state;
    }
}

impl State {
    pub(super) fn passphrase(&self, path: &Path) -> Option<&str> {
        self.passphrases.get(path).map(|it| it.as_str())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("accepted", &self.load().accepted)
            .finish_non_exhaustive()
    }
}
