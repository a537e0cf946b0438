//! What a login needed, kept in memory so that the next connection need not ask.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::path::PathBuf;

use crate::ssh::Secret;
use crate::sync::Mutex;
use crate::sync::MutexGuard;

/// What finally let us in; the next connection tries it first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Winner {
    /// The host asked for nothing.
    Nothing,
    AgentKey(Vec<u8>),
    /// A file, and the certificate that went with it.
    FileKey(PathBuf, Option<Vec<u8>>),
    KeyboardInteractive,
    Password,
}

/// The secrets and the winner of the first login of a transport.
///
/// Nothing of this is ever written down or printed, and all of it is wiped in the end.
#[derive(Default)]
pub struct Credentials {
    state: Mutex<State>,
    /// Held for the whole of a login as long as there was none, so that two connections that are
    /// opened together do not both ask. It is the one lock that waits for the network.
    first_login: Mutex<()>,
}

#[derive(Clone, Default)]
pub(super) struct State {
    /// `None` until a login has worked.
    pub(super) winner: Option<Winner>,
    pub(super) passphrases: HashMap<PathBuf, Secret>,
    pub(super) password: Option<Secret>,
    /// The answer to the only question of keyboard-interactive, if there was only one.
    pub(super) answer: Option<Secret>,
}

impl Credentials {
    /// Waits for the first login, if one is going on; the guard makes others wait for this one.
    pub(super) fn gate(&self) -> Option<MutexGuard<'_, ()>> {
        if self.state.lock().winner.is_some() {
            return None;
        }
        let guard = self.first_login.lock();
        self.state.lock().winner.is_none().then_some(guard)
    }

    pub(super) fn recall(&self) -> State {
        self.state.lock().clone()
    }

    pub(super) fn keep(&self, state: State) {
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
            .field("winner", &self.recall().winner)
            .finish_non_exhaustive()
    }
}
