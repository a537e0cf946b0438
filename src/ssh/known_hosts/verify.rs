//! Decides whether a host's key is accepted: reads the `known_hosts` files, asks, remembers.

use std::fs;
use std::io;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::KnownFile;
use super::Refusal;
use super::Verdict;
use super::authorities;
use super::certificate::Certificate;
use super::certificate::Doubt;
use super::check;
use super::format_line;
use super::host_key;
use super::known_types;
use super::lookup_name;
use super::revocation;
use super::revoked;
use crate::ssh::Prompt;
use crate::ssh::settings::Settings;
use crate::ssh::settings::StrictHostKeyChecking;

/// How far a host is trusted after its key was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The key is known, or was accepted.
    Full,
    /// The key has changed and the configuration says to go on: no secret may be sent.
    NoSecrets,
}

/// What the files say about one host; read once per connection.
#[derive(Debug)]
pub struct HostKeys<'a> {
    settings: &'a Settings,
    files: Vec<KnownFile>,
    name: String,
}

impl<'a> HostKeys<'a> {
    /// Reads the files. Missing ones are the usual case; unreadable ones are warned about.
    pub fn read(settings: &'a Settings) -> Self {
        let paths = settings.user_known_hosts_files.iter();
        let files =
            paths
                .chain(&settings.global_known_hosts_files)
                .filter_map(|path| match fs::read(path) {
                    Ok(text) => Some(KnownFile {
                        path: path.clone(),
                        text,
                    }),
                    Err(err) if err.kind() == io::ErrorKind::NotFound => None,
                    Err(err) => {
                        log::warn!("cannot read known hosts from {}: {err}", path.display());
                        None
                    }
                });
        Self {
            settings,
            files: files.collect(),
            name: host_name(settings),
        }
    }

    /// Returns the types of the keys known for the host, so that the server is asked for those
    /// first: it would otherwise show one that nobody can compare.
    pub fn known_types(&self) -> Vec<String> {
        let mut types = known_types(&self.files, &self.name);
        if types.is_empty() && self.has_own_port() {
            types = known_types(&self.files, &self.portless());
        }
        types
    }

    /// Returns the name under which the host is kept.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether a file vouches for a key.
    pub fn knows(&self, blob: &[u8], certificate: Option<&Certificate>, now: u64) -> bool {
        self.verdict(blob) == Verdict::Known || self.doubt(certificate, now).is_none()
    }

    /// Returns whether an authority may certify the host.
    pub fn has_authority(&self) -> bool {
        !self.authorities().is_empty()
    }

    fn authorities(&self) -> Vec<Vec<u8>> {
        let mut found = authorities(&self.files, &self.name);
        if self.has_own_port() {
            found.extend(authorities(&self.files, &self.portless()));
        }
        found
    }

    /// Returns why the certificate does not vouch for the host.
    fn doubt(&self, certificate: Option<&Certificate>, now: u64) -> Option<Doubt> {
        let Some(certificate) = certificate else {
            return Some(Doubt::NoCertificate);
        };
        if !self.authorities().contains(&certificate.authority) {
            return Some(Doubt::OtherAuthority);
        }
        let Settings {
            hostname,
            host_key_alias,
            ca_signature_algorithms,
            required_rsa_bits,
            ..
        } = self.settings;
        let name = host_key_alias.as_ref().unwrap_or(hostname);
        certificate
            .check(
                &name.to_ascii_lowercase(),
                now,
                ca_signature_algorithms,
                *required_rsa_bits,
            )
            .err()
            .map(Doubt::Flawed)
    }

    /// Accepts or refuses the key that the host has shown, with a certificate or without one.
    ///
    /// Where the certificate does not vouch for the key, the key has to stand alone, as in OpenSSH
    /// sshconnect.c `check_host_key()`. `now` is in seconds since 1970.
    pub fn verify(
        &self,
        blob: &[u8],
        certificate: Option<&Certificate>,
        now: u64,
        prompt: &dyn Prompt,
    ) -> Result<Trust, Refusal> {
        let Some(why) = self.doubt(certificate, now) else {
            return Ok(Trust::Full);
        };
        let key = host_key(blob).to_string();
        let name = self.name.clone();
        match self.verdict(blob) {
            Verdict::Known => Ok(Trust::Full),
            Verdict::Revoked { file, line } => Err(Refusal::Revoked {
                what: "host key",
                name,
                key,
                file,
                line,
            }),
            // OpenSSH asks about the plain key here. A person who trusts the authority has no means
            // to check it, and whoever wants to be taken for the host shows no certificate.
            Verdict::CertificateExpected { file, line }
                if matches!(
                    self.settings.strict,
                    StrictHostKeyChecking::Yes | StrictHostKeyChecking::Ask
                ) =>
            {
                Err(Refusal::CertificateExpected {
                    name,
                    key,
                    file,
                    line,
                    why,
                })
            }
            Verdict::CertificateExpected { file, line } => {
                log::warn!(
                    "{}:{line} (@cert-authority) does not vouch for this host: {why}",
                    file.display()
                );
                let refusal = Refusal::Unknown {
                    name,
                    destination: self.settings.destination(),
                    key,
                };
                self.decide_unknown(refusal, blob, prompt)
            }
            Verdict::Changed { file, line } => {
                let refusal = Refusal::Changed {
                    name,
                    key,
                    file,
                    line,
                };
                if self.settings.strict != StrictHostKeyChecking::No {
                    return Err(refusal);
                }
                log::error!("{refusal}");
                log::error!("going on as StrictHostKeyChecking=no says, without passwords");
                Ok(Trust::NoSecrets)
            }
            Verdict::Unknown => {
                let refusal = Refusal::Unknown {
                    name,
                    destination: self.settings.destination(),
                    key,
                };
                self.decide_unknown(refusal, blob, prompt)
            }
        }
    }

    /// Refuses a key that a line or the file of revoked keys revokes.
    ///
    /// # Errors
    /// Also if that file cannot be read: OpenSSH sshconnect.c `verify_host_key()` fails closed.
    pub fn check_revoked(
        &self,
        blob: &[u8],
        certificate: Option<&Certificate>,
    ) -> Result<(), Refusal> {
        let (name, key) = (self.name.clone(), host_key(blob).to_string());
        let authority = certificate.map(|it| ("authority", it.authority.as_slice()));
        let portless = self.has_own_port().then(|| self.portless());
        for (what, blob) in [Some(("host key", blob)), authority].into_iter().flatten() {
            // Both names, whatever else the files say: a line for the port does not undo a
            // revocation for all ports.
            let found = [Some(&self.name), portless.as_ref()]
                .into_iter()
                .flatten()
                .find_map(|name| revocation(&self.files, name, blob));
            if let Some((file, line)) = found {
                return Err(Refusal::Revoked {
                    what,
                    name,
                    key: host_key(blob).to_string(),
                    file,
                    line,
                });
            }
        }
        let Some(file) = self.settings.revoked_host_keys.clone() else {
            return Ok(());
        };
        let verdict = fs::read(&file)
            .map_err(|err| err.to_string())
            .and_then(|text| {
                revoked::revokes(&text, blob, certificate).map_err(|err| err.to_string())
            });
        match verdict {
            Ok(false) => Ok(()),
            Ok(true) => Err(Refusal::RevokedByFile { name, key, file }),
            Err(detail) => Err(Refusal::RevocationUnknown { name, file, detail }),
        }
    }

    fn verdict(&self, blob: &[u8]) -> Verdict {
        let verdict = check(&self.files, &self.name, blob);
        let is_unknown = matches!(
            verdict,
            Verdict::Unknown | Verdict::CertificateExpected { .. }
        );
        if is_unknown && self.has_own_port() {
            // OpenSSH sshconnect.c check_host_key(): a line without a port may vouch for the key
            // on any port, but it cannot make it a changed one.
            let portless = check(&self.files, &self.portless(), blob);
            match portless {
                Verdict::Known | Verdict::Revoked { .. } => return portless,
                Verdict::CertificateExpected { .. } if verdict == Verdict::Unknown => {
                    return portless;
                }
                _ => {}
            }
        }
        verdict
    }

    fn decide_unknown(
        &self,
        refusal: Refusal,
        blob: &[u8],
        prompt: &dyn Prompt,
    ) -> Result<Trust, Refusal> {
        let Refusal::Unknown { name, key, .. } = &refusal else {
            return Err(refusal);
        };
        match self.settings.strict {
            StrictHostKeyChecking::Yes => return Err(refusal),
            StrictHostKeyChecking::AcceptNew | StrictHostKeyChecking::No => {}
            StrictHostKeyChecking::Ask => {
                if self.settings.batch_mode || !prompt.is_available() {
                    return Err(refusal);
                }
                let question = format!(
                    "The authenticity of host '{name}' can't be established.\n\
                     Its key is {key}.\n\
                     Are you sure you want to continue connecting (yes/no)? "
                );
                if !prompt.confirm(&question).unwrap_or(false) {
                    return Err(Refusal::Declined { name: name.clone() });
                }
            }
        }
        match self.remember(blob) {
            Ok(()) => log::info!("added '{name}' ({key}) to the known hosts"),
            Err(err) => log::warn!("cannot add '{name}' to the known hosts: {err}"),
        }
        Ok(Trust::Full)
    }

    /// Appends a line to the first file of the user.
    fn remember(&self, blob: &[u8]) -> io::Result<()> {
        let Some(path) = self.settings.user_known_hosts_files.first() else {
            return Ok(());
        };
        // The name would be a pattern; OpenSSH sshconnect.c check_host_key() records none either.
        if self.name.contains(|c| "@?*#|'\"\\".contains(c)) {
            return Err(io::Error::other(
                "it has characters that names of hosts cannot have",
            ));
        }
        let salt = if self.settings.hash_known_hosts {
            let mut salt = [0; 20];
            getrandom::fill(&mut salt).map_err(|err| io::Error::other(err.to_string()))?;
            Some(salt)
        } else {
            None
        };
        append(path, &format_line(&self.name, blob, salt))
    }

    fn has_own_port(&self) -> bool {
        self.settings.host_key_alias.is_none() && self.settings.port != 22
    }

    fn portless(&self) -> String {
        lookup_name(&self.settings.hostname, 22)
    }
}

/// Returns the name under which the files have the host.
pub fn host_name(settings: &Settings) -> String {
    match &settings.host_key_alias {
        Some(alias) => lookup_name(alias, 22),
        None => lookup_name(&settings.hostname, settings.port),
    }
}

/// Appends `line` in one write, so that it cannot mix with what another program appends.
fn append(path: &Path, line: &str) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
    }
    let mut file = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let text = fs::read(path)?;
    let needs_newline = text.last().is_some_and(|&byte| byte != b'\n');
    let line = if needs_newline {
        format!("\n{line}")
    } else {
        line.to_owned()
    };
    file.write_all(line.as_bytes())
}
