//! Why a login failed, in words that say what to do.

use std::fmt;

/// Why a login failed although the host was reached. `login` is `user@host`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{login} was not let in ({circumstances}); {}", circumstances.advice)]
    Denied {
        login: String,
        circumstances: Box<Circumstances>,
    },
    #[error(
        "{login} wants {what}, and there is nobody to ask ({circumstances}); {}, or start scpfs \
         on a terminal and without BatchMode",
        circumstances.advice
    )]
    CannotAsk {
        login: String,
        what: String,
        circumstances: Box<Circumstances>,
    },
    /// A further connection cannot be made without asking; those that exist go on working.
    #[error("another login as {login} would have to ask for {what} again")]
    WouldAskAgain { login: String, what: String },
    #[error("{what} for {login} was not given")]
    NotAnswered { login: String, what: String },
    #[error("the password of {login} has expired; run `ssh {login}` to set a new one")]
    PasswordExpired { login: String },
    #[error(
        "the host ended the connection after {attempts} failed attempts to log in as {login} \
         (tried: {tried}); where the agent holds many keys, name the right one with \
         -o IdentitiesOnly=yes -o IdentityFile=..."
    )]
    TooManyAttempts {
        login: String,
        attempts: usize,
        tried: String,
    },
}

/// What a person needs to know to find out why a login failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circumstances {
    pub tried: String,
    /// The methods that the host allows.
    pub allowed: String,
    pub advice: String,
}

impl fmt::Display for Circumstances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "tried: {}; the host allows: {}",
            self.tried, self.allowed
        )
    }
}
