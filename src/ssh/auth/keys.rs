//! Reads the key files that a login may offer.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;

use super::key_file;
use super::key_file::KeyFile;
use crate::ssh::Secret;
use crate::ssh::settings::IdentityFile;
use crate::ssh::settings::Settings;

/// The largest key file that is read, in bytes: an `IdentityFile` may name any file by mistake.
const MAX_KEY_BYTES: u64 = 1 << 20;

/// A usable `IdentityFile`.
#[derive(Debug)]
pub(super) struct FileKey {
    pub(super) path: PathBuf,
    /// The private key; `None` if only the public key is available, which selects a key of the
    /// agent.
    pub(super) private: Option<Private>,
    pub(super) public: Option<Vec<u8>>,
    /// The certificates for this key, in wire form.
    pub(super) certificates: Vec<Vec<u8>>,
}

pub(super) struct Private {
    pub(super) text: Secret,
    pub(super) is_encrypted: bool,
}

impl std::fmt::Debug for Private {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Private")
            .field("is_encrypted", &self.is_encrypted)
            .finish_non_exhaustive()
    }
}

/// Reads the identity files of the settings; skips unusable ones with a warning.
pub(super) fn load(settings: &Settings) -> Vec<FileKey> {
    let certificates: Vec<Vec<u8>> = settings
        .certificate_files
        .iter()
        .filter_map(|path| public_in(path))
        .collect();
    settings
        .identity_files
        .iter()
        .filter_map(|file| load_one(file, &certificates))
        .collect()
}

fn load_one(file: &IdentityFile, certificates: &[Vec<u8>]) -> Option<FileKey> {
    let path = file.path.clone();
    let beside = |suffix: &str| {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        public_in(Path::new(&name))
    };
    let (private, public) = match read(&path) {
        Ok(text) => match key_file::inspect(&text) {
            KeyFile::Public { blob } => (None, Some(blob)),
            KeyFile::Private {
                is_encrypted,
                public,
            } => {
                let private = is_private(&path).then_some(Private { text, is_encrypted });
                (private, public.or_else(|| beside(".pub")))
            }
            KeyFile::Unknown => {
                log::warn!(
                    "{} is not a key in a format that scpfs supports",
                    path.display()
                );
                return None;
            }
        },
        Err(err) => {
            // The public key alone can select a key of the agent.
            let public = beside(".pub");
            if public.is_none() && (file.is_explicit || err.kind() != io::ErrorKind::NotFound) {
                log::warn!("cannot read the key {}: {err}", path.display());
            }
            (None, public)
        }
    };
    if private.is_none() && public.is_none() {
        return None;
    }
    let mut certified: Vec<Vec<u8>> = beside("-cert.pub").into_iter().collect();
    if let Some(public) = &public {
        certified.extend(
            certificates
                .iter()
                .filter(|it| key_file::certifies(it, public))
                .cloned(),
        );
    }
    Some(FileKey {
        path,
        private,
        public,
        certificates: certified,
    })
}

/// Returns whether other users have no access to the key file, and warns if they have. As in
/// OpenSSH authfile.c `sshkey_perm_ok()`, files that belong to another user are not checked.
fn is_private(path: &Path) -> bool {
    let is_open = fs::metadata(path)
        .is_ok_and(|it| it.mode() & 0o077 != 0 && it.uid() == rustix::process::getuid().as_raw());
    if is_open {
        log::warn!(
            "ignoring the key {} because others can read it; run `chmod 600 '{}'`",
            path.display(),
            path.display()
        );
    }
    !is_open
}

fn public_in(path: &Path) -> Option<Vec<u8>> {
    read(path)
        .ok()
        .and_then(|text| key_file::public_blob(&text))
}

fn read(path: &Path) -> io::Result<Secret> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > MAX_KEY_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a key file"));
    }
    // Allocate once: a growing buffer leaves copies that are not zeroed.
    let len = usize::try_from(metadata.len()).unwrap_or_default();
    let mut text = Secret::new(String::with_capacity(len + 1));
    File::open(path)?
        .take(MAX_KEY_BYTES)
        .read_to_string(&mut text)?;
    Ok(text)
}
