//! The reasons for a failed login, with advice for the user.

use std::fmt;

/// Why authentication failed on a working connection. `login` is `user@host`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the host refused the login of {login} ({diagnosis}); {}", diagnosis.advice)]
    Denied {
        login: String,
        diagnosis: Box<Diagnosis>,
    },
    #[error(
        "the login of {login} needs {what}, and scpfs cannot ask for it ({diagnosis}); {}, or \
         start scpfs on a terminal and without BatchMode",
        diagnosis.advice
    )]
    CannotAsk {
        login: String,
        what: String,
        diagnosis: Box<Diagnosis>,
    },
    /// Another connection cannot be opened without asking the user; existing ones keep working.
    #[error("another connection as {login} needs {what} again, and scpfs asks only once")]
    WouldAskAgain { login: String, what: String },
    #[error("no answer to the question for {what} of {login}")]
    NotAnswered { login: String, what: String },
    #[error("the password of {login} has expired; run `ssh {login}` to set a new one")]
    PasswordExpired { login: String },
    #[error(
        "the host ended the connection after {attempts} failed attempts to log in as {login} \
         (tried: {tried}); if the agent has many keys, select the right one with \
         -o IdentitiesOnly=yes -o IdentityFile=..."
    )]
    TooManyAttempts {
        login: String,
        attempts: usize,
        tried: String,
    },
}

/// Details of a refused login, for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// The keys and methods that were tried.
    pub tried: String,
    /// The methods that the host allows.
    pub allowed: String,
    pub advice: String,
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "tried: {}; the host allows: {}",
            self.tried, self.allowed
        )
    }
}
