//! Public key authentication: offers the keys of the agent and of files until the host accepts one.

use super::Accepted;
use super::Attempt;
use super::Login;
use super::key_file;
use super::keys;
use super::keys::FileKey;
use crate::ssh::Error;
use crate::ssh::Secret;
use crate::ssh::prompt::printable;

/// How often the user is asked for the passphrase of a key, as in OpenSSH.
const PASSPHRASE_TRIES: u32 = 3;

impl Login<'_> {
    /// Tries first the key that was accepted last time; then the agent's keys that an
    /// `IdentityFile` names, the agent's other keys, and key files, which is the order of OpenSSH
    /// sshconnect2.c `pubkey_prepare()`.
    pub(super) fn try_keys(&mut self) -> Result<Option<Accepted>, Error> {
        let files = keys::load(self.settings);
        if let Some(Accepted::FileKey(path, certificate)) = self.state.accepted.clone()
            && let Some(key) = files.iter().find(|key| key.path == path)
            && self.try_file(key, certificate.as_deref())?
        {
            return Ok(Some(Accepted::FileKey(path, certificate)));
        }
        if let Some(accepted) = self.try_agent(&files)? {
            return Ok(Some(accepted));
        }
        for key in &files {
            let certificates = key.certificates.iter().map(|it| Some(it.as_slice()));
            for certificate in certificates.chain([None]) {
                if self.try_file(key, certificate)? {
                    let certificate = certificate.map(<[u8]>::to_vec);
                    return Ok(Some(Accepted::FileKey(key.path.clone(), certificate)));
                }
            }
        }
        Ok(None)
    }

    fn try_agent(&mut self, files: &[FileKey]) -> Result<Option<Accepted>, Error> {
        let Some(path) = &self.settings.identity_agent else {
            return Ok(None);
        };
        let opened = self.session.agent().and_then(|mut agent| {
            agent.set_identity_path(path)?;
            agent.connect()?;
            agent.list_identities()?;
            let identities = agent.identities()?;
            Ok((agent, identities))
        });
        let (agent, mut identities) = match opened {
            Ok(opened) => opened,
            Err(err) => {
                log::debug!("no keys from the agent at {}: {err}", path.display());
                return Ok(None);
            }
        };
        let is_named = |blob: &[u8]| {
            files.iter().any(|key| {
                key.public.as_deref() == Some(blob) || key.certificates.iter().any(|it| it == blob)
            })
        };
        // libssh2 does not support the longer signatures of security keys from an agent.
        identities.retain(|it| !key_file::kind(it.blob()).starts_with(b"sk-"));
        if self.settings.identities_only {
            identities.retain(|it| is_named(it.blob()));
        }
        let last = match &self.state.accepted {
            Some(Accepted::AgentKey(blob)) => Some(blob.clone()),
            _ => None,
        };
        identities.sort_by_key(|it| (last.as_deref() != Some(it.blob()), !is_named(it.blob())));
        for identity in identities {
            let blob = identity.blob();
            if self.refused_keys.iter().any(|it| it == blob) {
                continue;
            }
            self.tried
                .push(format!("agent key {}", printable(identity.comment())));
            let result = agent.userauth(&self.settings.user, &identity);
            match self.outcome(result)? {
                Attempt::Succeeded => return Ok(Some(Accepted::AgentKey(blob.to_vec()))),
                Attempt::Refused => self.refuse_key(blob),
                // The agent did not sign; the key file may still work.
                Attempt::Unverified | Attempt::Unusable => {}
            }
        }
        Ok(None)
    }

    /// Tries one key file, with or without a certificate. Asks for a passphrase only after the host
    /// has accepted the public key, if that is known; returns whether the login succeeded.
    fn try_file(&mut self, key: &FileKey, certificate: Option<&[u8]>) -> Result<bool, Error> {
        let Some(private) = &key.private else {
            return Ok(false);
        };
        let public = certificate.or(key.public.as_deref());
        if public.is_some_and(|blob| self.refused_keys.iter().any(|it| it == blob)) {
            return Ok(false);
        }
        let line = public.and_then(key_file::public_line);
        self.tried.push(key.path.display().to_string());
        let (session, user) = (self.session, self.settings.user.as_str());
        let attempt = |passphrase: Option<&str>| {
            session.userauth_pubkey_memory(user, line.as_deref(), &private.text, passphrase)
        };

        let mut passphrase = self
            .state
            .passphrase(&key.path)
            .map(|it| Secret::new(it.to_owned()));
        // An encrypted key without its public key cannot be offered before it is decrypted.
        let needs_passphrase_first = private.is_encrypted && passphrase.is_none() && line.is_none();
        let mut tries = PASSPHRASE_TRIES;
        loop {
            if !needs_passphrase_first || passphrase.is_some() {
                match self.outcome(attempt(passphrase.as_ref().map(|it| it.as_str())))? {
                    Attempt::Succeeded => {
                        if let Some(passphrase) = passphrase {
                            self.state.passphrases.insert(key.path.clone(), passphrase);
                        }
                        return Ok(true);
                    }
                    Attempt::Refused => {
                        public.into_iter().for_each(|blob| self.refuse_key(blob));
                        return Ok(false);
                    }
                    Attempt::Unverified | Attempt::Unusable if private.is_encrypted => {}
                    Attempt::Unverified => return Ok(false),
                    Attempt::Unusable => {
                        log::warn!("cannot use the key {}", key.path.display());
                        return Ok(false);
                    }
                }
            }
            let what = format!("the passphrase of {}", key.path.display());
            if tries == 0 {
                log::warn!("skipping the key {}: wrong passphrase", key.path.display());
                return Ok(false);
            }
            tries -= 1;
            let question = format!("Enter passphrase for key '{}': ", key.path.display());
            match self.ask(&what, &question)? {
                // An empty passphrase skips the key, as in OpenSSH.
                Some(text) if text.is_empty() => return Ok(false),
                Some(text) => passphrase = Some(text),
                None => return Ok(false),
            }
        }
    }

    fn refuse_key(&mut self, blob: &[u8]) {
        self.refused_keys.push(blob.to_vec());
    }
}
