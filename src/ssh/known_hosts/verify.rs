//! Accepts or refuses a host key: reads the `known_hosts` files, asks the user, adds accepted keys.

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
use super::certificate::Problem;
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

/// How far a host is trusted after the check of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The key or its certificate is known, or the key was accepted.
    Full,
    /// The key has changed, and the configuration allows it: no password or answer may be sent.
    NoSecrets,
}

/// The `known_hosts` files, and the name of one host in them; read for each connection.
#[derive(Debug)]
pub struct HostKeys<'a> {
    settings: &'a Settings,
    files: Vec<KnownFile>,
    name: String,
}

impl<'a> HostKeys<'a> {
    /// Reads the files. Ignores missing ones; skips unreadable ones with a warning.
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

    /// Returns the types of the host's known keys. They are requested first; otherwise the server
    /// may offer a key of another type, which cannot be compared.
    pub fn known_types(&self) -> Vec<String> {
        let mut types = known_types(&self.files, &self.name);
        if types.is_empty() && self.has_own_port() {
            types = known_types(&self.files, &self.portless());
        }
        types
    }

    /// Returns the name of the host in the files.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the key is known or its certificate is valid. `now` is in seconds since
    /// 1970.
    pub fn knows(&self, blob: &[u8], certificate: Option<&Certificate>, now: u64) -> bool {
        self.verdict(blob) == Verdict::Known || self.certificate_problem(certificate, now).is_none()
    }

    /// Returns whether the files have a certificate authority for the host.
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

    /// Returns why the certificate is not accepted for the host; `None` if it is.
    fn certificate_problem(&self, certificate: Option<&Certificate>, now: u64) -> Option<Problem> {
        let Some(certificate) = certificate else {
            return Some(Problem::NoCertificate);
        };
        if !self.authorities().contains(&certificate.authority) {
            return Some(Problem::OtherAuthority);
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
            .map(Problem::Invalid)
    }

    /// Accepts or refuses the host key, which may come with a certificate.
    ///
    /// If the certificate is not accepted, the plain key is checked, as in OpenSSH sshconnect.c
    /// `check_host_key()`. `now` is in seconds since 1970. Blocks while the user is asked.
    ///
    /// # Errors
    /// The key is refused; the connection must not be used.
    pub fn verify(
        &self,
        blob: &[u8],
        certificate: Option<&Certificate>,
        now: u64,
        prompt: &dyn Prompt,
    ) -> Result<Trust, Refusal> {
        let Some(why) = self.certificate_problem(certificate, now) else {
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
            // OpenSSH asks about the plain key here. A user who relies on the authority cannot
            // check that key, and an attacker would simply offer no certificate.
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
                    "{}:{line} (@cert-authority) is not used for this host: {why}",
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
                log::error!("connecting without passwords, because of StrictHostKeyChecking=no");
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

    /// Checks that neither a `@revoked` line nor `RevokedHostKeys` revokes the key, its certificate
    /// or its authority.
    ///
    /// # Errors
    /// One of them is revoked, or the file of `RevokedHostKeys` cannot be read: OpenSSH
    /// sshconnect.c `verify_host_key()` fails closed as well.
    pub fn check_revoked(
        &self,
        blob: &[u8],
        certificate: Option<&Certificate>,
    ) -> Result<(), Refusal> {
        let (name, key) = (self.name.clone(), host_key(blob).to_string());
        let authority = certificate.map(|it| ("authority", it.authority.as_slice()));
        let portless = self.has_own_port().then(|| self.portless());
        for (what, blob) in [Some(("host key", blob)), authority].into_iter().flatten() {
            // Check the names with and without the port: a line for one port does not override a
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
            // OpenSSH sshconnect.c check_host_key(): a line without a port makes the key known on
            // every port, but another key in it does not mean that the key has changed.
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

    /// Appends the key to the user's first file; does nothing if none is configured.
    fn remember(&self, blob: &[u8]) -> io::Result<()> {
        let Some(path) = self.settings.user_known_hosts_files.first() else {
            return Ok(());
        };
        // The name would be read as a pattern; OpenSSH sshconnect.c check_host_key() does not add
        // such names either.
        if self.name.contains(|c| "@?*#|'\"\\".contains(c)) {
            return Err(io::Error::other(
                "the name has characters that are not allowed in host names",
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

/// Returns the name of the host in the `known_hosts` files.
pub fn host_name(settings: &Settings) -> String {
    match &settings.host_key_alias {
        Some(alias) => lookup_name(alias, 22),
        None => lookup_name(&settings.hostname, settings.port),
    }
}

/// Appends `line` in one write, so that concurrent appends of other programs cannot interleave with
/// it.
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
