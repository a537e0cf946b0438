//! A connection and the cache directory that belongs to the host behind it.
//!
//! What is typed is known before there is a connection, what it names only afterwards: the first is
//! enough to refuse another host before anybody logs in, the second to refuse it before anything of
//! the cache is used.

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

/// Connects, and opens the cache directory of what was found; both belong to the same host.
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
    // The directory was asked for by other words, so that nobody knew of which type its key is. The
    // host may have that as well.
    connected.1.close();
    let connected = connect(config, terminal, clock, Some(pinned))?;
    let disk = open_disk(config, &connected)?;
    Ok((connected, disk))
}

/// Looks whether the cache directory of what a host was found to have can be used for that host,
/// without changing anything.
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
        Err(error) => Err(system(FIND_OUT)(error)),
        Ok(Some(expected)) => Err(refuse(settings, expected, key)),
        Ok(None) => Ok(()),
    }
}

const FIND_OUT: &str = "find out which host the cache belongs to";

fn refuse(settings: &Settings, expected: HostKey, offered: HostKey) -> Error {
    let refusal = Refusal::Pinned {
        name: host_name(settings),
        expected: Box::new(expected),
        offered: Box::new(offered),
        is_mounted: false,
    };
    ssh::Error::from(refusal).into()
}

/// Opens the cache directory of what a host was found to have, unless it belongs to another host.
fn open_disk(config: &Config, (transport, remote): &Connected) -> Result<Disk, Error> {
    let settings = transport.settings();
    let facts = remote.facts();
    let name = cache_key(settings, &facts.root);
    let config::Cache { base, boot, .. } = &config.cache;
    let Some((key, is_known)) = transport.host_key() else {
        return Ok(Disk::open(base, &name, boot)?);
    };
    let is_accepted = settings.accept_host_key.as_ref() == Some(&key.fingerprint);
    match pin::other_host(base, &name, &key) {
        Ok(Some(_)) | Err(_) if is_accepted => {
            pin::give_to(base, &name, &key).map_err(system("change whose the cache is"))?;
        }
        Err(error) => return Err(system(FIND_OUT)(error)),
        Ok(Some(expected)) => return Err(refuse(settings, expected, key)),
        Ok(None) => {}
    }
    let host = Host {
        key,
        asked: asked_key(settings, &config.connection.directory),
    };
    let disk = Disk::open_for(base, &name, boot, &host)?;
    if disk.was_unpinned() {
        let why = if is_known {
            "as known_hosts says"
        } else {
            "trusted on first use, because no known_hosts file has it"
        };
        log::info!(
            "this mount and later ones keep to the host key {} ({why})",
            host.key
        );
    }
    Ok(disk)
}

/// Stands for what is mounted, as typed; see [`Host::asked`].
pub(super) fn asked_key(settings: &Settings, directory: &[u8]) -> String {
    let n_slashes = directory
        .iter()
        .rev()
        .take_while(|&&byte| byte == b'/')
        .count();
    // The root directory is nothing but slashes.
    let end = (directory.len() - n_slashes).max(directory.len().min(1));
    cache_key(settings, &directory[..end])
}

/// A name for the cache directory: readable, and unique by its hash.
///
/// Hosts behind one address that a `HostKeyAlias` tells apart have a cache each.
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
    fn a_slash_at_the_end_asks_for_the_same_directory() {
        let settings = Settings::new("h", 22, "u");
        let asked = |directory: &[u8]| asked_key(&settings, directory);
        assert_eq!(asked(b"/a/b"), asked(b"/a/b//"));
        assert_eq!(asked(b"/"), asked(b"//"));
        assert_ne!(asked(b"/"), asked(b""));
        assert_ne!(asked(b"/a"), asked(b"a"));
    }

    #[test]
    fn each_root_has_a_cache_of_its_own() {
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
