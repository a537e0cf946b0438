//! Opens a connection and the cache directory that belongs to the same host key.
//!
//! The typed source is known before the connection, the mounted directory only after the login. So
//! a host with another key is refused twice: before the login if the typed source was mounted
//! before (`cache::pin::expected`), and before any use of the cache directory
//! (`cache::pin::other_host`).

use std::sync::Arc;

use sha2::Digest as _;

use crate::cache::Disk;
use crate::cache::pin;
use crate::cache::pin::Host;
use crate::clock::Clock;
use crate::config;
use crate::config::Config;
use crate::host_key::HostKey;
use crate::mount::Connected;
use crate::mount::Error;
use crate::mount::connect;
use crate::mount::system;
use crate::mount::terminal::Terminal;
use crate::ssh;
use crate::ssh::known_hosts::Refusal;
use crate::ssh::known_hosts::verify::host_name;
use crate::ssh::settings::Settings;

/// Connects, and opens the cache directory of the mounted directory.
///
/// The host key of the connection is the one that is pinned to the cache directory. Blocks; may ask
/// for a password.
///
/// # Errors
/// As for [`connect`]; or the cache directory belongs to another host or cannot be opened.
pub(super) fn connect_to_pinned(
    config: &Config,
    terminal: Arc<Terminal>,
    clock: &Arc<dyn Clock>,
) -> Result<(Connected, Disk), Error> {
    let connected = connect(config, Arc::clone(&terminal), clock, None)?;
    let pinned = match open_disk(config, &connected) {
        Err(Error::Transport(ssh::Error::HostKey(Refusal::Pinned {
            expected, offered, ..
        }))) if expected.kind != offered.kind => *expected,
        result => return Ok((connected, result?)),
    };
    // The source was typed in another way than before, so the type of the pinned key was unknown
    // when the key exchange chose one. The host may have a key of the pinned type too: ask for it.
    connected.1.close();
    let connected = connect(config, terminal, clock, Some(pinned))?;
    let disk = open_disk(config, &connected)?;
    Ok((connected, disk))
}

/// Checks whether the cache directory can be used for the connected host. Changes nothing.
///
/// # Errors
/// The directory is pinned to another host key, or its pinned key cannot be read.
pub(crate) fn check(config: &Config, (transport, remote): &Connected) -> Result<(), Error> {
    let settings = transport.settings();
    let base = &config.cache.base;
    let Some((key, _)) = transport.host_key() else {
        return Ok(());
    };
    if settings.accept_host_key.as_ref() == Some(&key.fingerprint) {
        return Ok(());
    }
    match pin::other_host(base, &cache_key(settings, &remote.facts().root), &key) {
        Err(error) => Err(system(READ_PINNED_KEY)(error)),
        Ok(Some(expected)) => Err(key_refused(settings, expected, key)),
        Ok(None) => Ok(()),
    }
}

const READ_PINNED_KEY: &str = "read the host key that the cache is pinned to";

fn key_refused(settings: &Settings, expected: HostKey, offered: HostKey) -> Error {
    let refusal = Refusal::Pinned {
        name: host_name(settings),
        expected: Box::new(expected),
        offered: Box::new(offered),
        is_mounted: false,
    };
    ssh::Error::from(refusal).into()
}

/// Opens the cache directory of the mounted directory and pins it to the host key.
///
/// # Errors
/// The directory is pinned to another host key that was not accepted, or cannot be opened.
fn open_disk(config: &Config, (transport, remote): &Connected) -> Result<Disk, Error> {
    let settings = transport.settings();
    let facts = remote.facts();
    let name = cache_key(settings, &facts.root);
    let config::Cache { base, boot_id, .. } = &config.cache;
    let Some((key, is_known)) = transport.host_key() else {
        return Ok(Disk::open(base, &name, boot_id)?);
    };
    let is_accepted = settings.accept_host_key.as_ref() == Some(&key.fingerprint);
    match pin::other_host(base, &name, &key) {
        Ok(Some(_)) | Err(_) if is_accepted => {
            pin::reassign(base, &name, &key)
                .map_err(system("pin the cache to the new host key"))?;
        }
        Err(error) => return Err(system(READ_PINNED_KEY)(error)),
        Ok(Some(expected)) => return Err(key_refused(settings, expected, key)),
        Ok(None) => {}
    }
    let host = Host {
        key,
        asked: typed_key(settings, &config.connection.directory),
    };
    let disk = Disk::open_for(base, &name, boot_id, &host)?;
    if disk.was_unpinned() {
        let why = if is_known {
            "it is in known_hosts"
        } else {
            "trusted on first use: it is in no known_hosts file"
        };
        log::info!(
            "the cache and this mount are pinned to the host key {} ({why})",
            host.key
        );
    }
    Ok(disk)
}

/// Returns a key for the typed source, with slashes at the end of the directory removed; see
/// [`Host::asked`].
pub(super) fn typed_key(settings: &Settings, directory: &[u8]) -> String {
    let n_slashes = directory
        .iter()
        .rev()
        .take_while(|&&byte| byte == b'/')
        .count();
    // Keep one slash of a directory that consists of slashes: the root directory.
    let end = (directory.len() - n_slashes).max(directory.len().min(1));
    cache_key(settings, &directory[..end])
}

/// Returns the name of a cache directory: user and host for people, and a hash that makes it
/// unique.
///
/// The hash covers `HostKeyAlias`, so that several hosts behind one address have separate caches.
fn cache_key(settings: &Settings, root: &[u8]) -> String {
    let (user, host) = (&settings.user, &settings.hostname);
    let port = settings.port.to_be_bytes();
    let mut parts = vec![user.as_bytes(), host.as_bytes(), &port, root];
    parts.extend(settings.host_key_alias.as_ref().map(String::as_bytes));
    let mut hash = sha2::Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let hash: String = hash
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let readable: String = format!("{user}@{host}")
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "@.-_".contains(*c))
        .take(60)
        .collect();
    format!("{readable}-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_key_ignores_slashes_at_the_end() {
        let settings = Settings::new("h", 22, "u");
        let asked = |directory: &[u8]| typed_key(&settings, directory);
        assert_eq!(asked(b"/a/b"), asked(b"/a/b//"));
        assert_eq!(asked(b"/"), asked(b"//"));
        assert_ne!(asked(b"/"), asked(b""));
        assert_ne!(asked(b"/a"), asked(b"a"));
    }

    #[test]
    fn cache_key_differs_for_each_mounted_directory() {
        let name =
            |user, host, port, root: &[u8]| cache_key(&Settings::new(host, port, user), root);
        let key = name("u", "h", 22, b"/a");
        assert!(key.starts_with("u@h-"), "{key}");
        let aliased = Settings {
            host_key_alias: Some("router".to_owned()),
            ..Settings::new("h", 22, "u")
        };
        for other in [
            name("u", "h", 22, b"/b"),
            name("u", "h", 23, b"/a"),
            name("uh", "", 22, b"/a"),
            name("v", "h", 22, b"/a"),
            cache_key(&aliased, b"/a"),
        ] {
            assert_ne!(key, other);
        }
        assert!(!name("../..", "h/\n", 22, b"").contains(['/', '\n']));
    }
}
