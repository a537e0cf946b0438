//! The identity of a host: the type and the fingerprint of its host key.
//!
//! Plain data. `ssh` computes it from a key; `cache` stores it beside the journal.

use std::fmt;

/// The type and fingerprint that identify a host key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostKey {
    /// The type on the wire, for example `ssh-ed25519`.
    pub kind: String,
    /// In OpenSSH's form, for example `SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU`.
    pub fingerprint: String,
}

impl HostKey {
    /// Parses the output of [`Self::line`]; `None` if it is malformed.
    pub fn parse(line: &str) -> Option<Self> {
        let (kind, fingerprint) = line.split_once(' ')?;
        let is_kind = !kind.is_empty() && kind.bytes().all(|byte| byte.is_ascii_graphic());
        (is_kind && is_fingerprint(fingerprint)).then(|| Self {
            kind: kind.to_owned(),
            fingerprint: fingerprint.to_owned(),
        })
    }

    /// Returns the key as one line without a newline.
    pub fn line(&self) -> String {
        format!("{} {}", self.kind, self.fingerprint)
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", short_kind(&self.kind), self.fingerprint)
    }
}

/// Returns whether `text` is a SHA-256 fingerprint in OpenSSH's form.
pub fn is_fingerprint(text: &str) -> bool {
    // 32 bytes in base64 without padding.
    text.strip_prefix("SHA256:").is_some_and(|hash| {
        hash.len() == 43
            && hash
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
    })
}

/// Returns the short name of a key type as OpenSSH prints it: `ED25519`, `ECDSA`, `RSA`.
pub fn short_kind(kind: &str) -> &str {
    match kind {
        "ssh-ed25519" => "ED25519",
        "ssh-rsa" => "RSA",
        _ if kind.starts_with("ecdsa-sha2-") => "ECDSA",
        _ => kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_key_is_read_as_it_was_written_and_nothing_else_is_one() {
        let key = HostKey {
            kind: "ssh-ed25519".to_owned(),
            fingerprint: "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU".to_owned(),
        };
        assert_eq!(HostKey::parse(&key.line()), Some(key.clone()));
        assert_eq!(key.to_string(), format!("ED25519 {}", key.fingerprint));
        for bad in ["", "ssh-ed25519", "ssh-ed25519 SHA256:short", " SHA256:x"] {
            assert_eq!(HostKey::parse(bad), None, "{bad}");
        }
    }
}
