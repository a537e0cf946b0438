//! Expands algorithm lists that modify the default, as in `ssh_config(5)`: `+x`, `-x`, `^x`.
//!
//! Used only if `ssh` is not installed: `ssh -G` prints expanded lists.

use std::collections::HashSet;

use crate::ssh::known_hosts::certificate::DEFAULT_CA_ALGORITHMS;
use crate::ssh::known_hosts::glob;
use crate::ssh::settings::DEFAULT_CIPHERS;

/// The default of `HostKeyAlgorithms` without certificates and security keys.
pub const DEFAULT_HOST_KEYS: [&str; 6] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
];

// The defaults of OpenSSH 9.2; libssh2 skips the algorithms that it does not support.
const DEFAULT_KEX: [&str; 10] = [
    "sntrup761x25519-sha512@openssh.com",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group-exchange-sha256",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group18-sha512",
    "diffie-hellman-group14-sha256",
];
const DEFAULT_MACS: [&str; 10] = [
    "umac-64-etm@openssh.com",
    "umac-128-etm@openssh.com",
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha1-etm@openssh.com",
    "umac-64@openssh.com",
    "umac-128@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
    "hmac-sha1",
];

/// Key algorithms that OpenSSH 9.2 and libssh2 support but do not enable by default. OpenSSH allows
/// patterns in `+x` and `^x` only for its two lists of key algorithms.
const OPTIONAL_HOST_KEYS: [&str; 2] = ["ssh-dss", "ssh-rsa"];

/// Returns the default of the keyword `key` (in lower case); `None` if it is not an algorithm list.
fn default_of(key: &str) -> Option<Vec<String>> {
    let list: &[&str] = match key {
        "ciphers" => &DEFAULT_CIPHERS,
        "macs" => &DEFAULT_MACS,
        "kexalgorithms" => &DEFAULT_KEX,
        "casignaturealgorithms" => &DEFAULT_CA_ALGORITHMS,
        "hostkeyalgorithms" => return Some(host_keys()),
        _ => return None,
    };
    Some(list.iter().map(|&name| name.to_owned()).collect())
}

/// Returns the default of `HostKeyAlgorithms`, with certificates first as in OpenSSH.
pub fn host_keys() -> Vec<String> {
    let certified = DEFAULT_HOST_KEYS.map(|name| format!("{name}-cert-v01@openssh.com"));
    let plain = DEFAULT_HOST_KEYS.map(str::to_owned);
    certified.into_iter().chain(plain).collect()
}

/// Replaces an empty list, which would select the default. No library supports this algorithm, so
/// the connection is refused.
const NONE_LEFT: &str = "none-is-left";

/// Expands the value of the keyword `key`; `None` if `key` is not an algorithm list, or the value
/// is a plain list without wildcards.
pub fn expand(key: &str, value: &str) -> Option<String> {
    let default = default_of(key)?;
    // A comment may follow the value.
    let value = value.split_ascii_whitespace().next()?.trim_matches('"');
    let (kind, names) = match value.split_at_checked(1)? {
        (kind @ ("+" | "^" | "-"), names) => (kind, names),
        _ if value.contains(['*', '?']) => ("", value),
        _ => return None,
    };
    let is_named = |name: &str| {
        let mut names = names.split(',');
        names.any(|it| glob(it.as_bytes(), name.as_bytes()))
    };
    // A pattern matches all algorithms of OpenSSH, not only its defaults.
    let mut all = default.clone();
    if matches!(key, "hostkeyalgorithms" | "casignaturealgorithms") {
        all.extend(OPTIONAL_HOST_KEYS.map(str::to_owned));
    }
    let named = names
        .split(',')
        .flat_map(|it| match it.contains(['*', '?']) {
            true => {
                let matching = all
                    .iter()
                    .filter(|name| glob(it.as_bytes(), name.as_bytes()));
                matching.cloned().collect()
            }
            false => vec![it.to_owned()],
        });
    let mut list: Vec<String> = match kind {
        "+" => default.iter().cloned().chain(named).collect(),
        "^" => named.chain(default.iter().cloned()).collect(),
        "-" => default
            .iter()
            .filter(|name| !is_named(name))
            .cloned()
            .collect(),
        _ => named.collect(),
    };
    let mut seen = HashSet::new();
    list.retain(|name| seen.insert(name.clone()));
    if list.is_empty() {
        list.push(NONE_LEFT.to_owned());
    }
    Some(list.join(","))
}

/// Expands the algorithm lists in the text of an `ssh_config(5)` file. The `ssh2_config` crate,
/// which parses the file afterwards, knows neither our defaults nor wildcards.
pub fn expand_in_text(text: &[u8]) -> Vec<u8> {
    let mut lines = Vec::new();
    for line in text.split(|&byte| byte == b'\n') {
        let lossy = String::from_utf8_lossy(line);
        let (key, value) = lossy
            .trim()
            .split_once(|c: char| c == '=' || c.is_ascii_whitespace())
            .unwrap_or_default();
        let value = value.trim_start_matches(|c: char| c == '=' || c.is_ascii_whitespace());
        match expand(&key.to_ascii_lowercase(), value) {
            Some(list) => lines.push(format!("{key} {list}").into_bytes()),
            None => lines.push(line.to_vec()),
        }
    }
    lines.join(&b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_the_default_with_what_changes_it() {
        let of = expand;
        let host_keys = |value: &str| of("hostkeyalgorithms", value).unwrap();
        let without = host_keys("-ssh-ed25519*,ecdsa-*");
        assert!(
            !without.contains("ed25519") && !without.contains("ecdsa"),
            "{without}"
        );
        assert!(without.ends_with("rsa-sha2-512,rsa-sha2-256"), "{without}");
        assert!(host_keys("+ssh-rsa").ends_with(",rsa-sha2-256,ssh-rsa"));
        assert!(host_keys("^ssh-rsa").starts_with("ssh-rsa,ssh-ed25519-cert"));
        let ca = of("casignaturealgorithms", "-ssh-ed25519").unwrap();
        assert!(
            !ca.contains("ed25519") && ca.contains("rsa-sha2-256"),
            "{ca}"
        );
        for (key, name) in [
            ("macs", "hmac-sha1"),
            ("kexalgorithms", "ecdh-sha2-nistp256"),
        ] {
            let list = of(key, &format!("-{name}")).unwrap();
            assert!(!list.split(',').any(|it| it == name), "{list}");
            assert!(list.split(',').count() == 9, "{list}");
        }
        assert_eq!(of("ciphers", "aes128-ctr"), None);
        assert_eq!(of("port", "-22"), None);
        assert_eq!(of("macs", "-*"), Some(NONE_LEFT.to_owned()));
        assert_eq!(of("macs", "x*"), Some(NONE_LEFT.to_owned()));
        let rsa = host_keys("rsa-*");
        assert!(
            rsa.starts_with("rsa-sha2-512-cert") && rsa.ends_with(",rsa-sha2-256"),
            "{rsa}"
        );
        assert_eq!(rsa.split(',').count(), 4);
        assert!(host_keys("+ssh-r*").ends_with(",rsa-sha2-256,ssh-rsa"));
        let ca = of("casignaturealgorithms", "^ssh-*").unwrap();
        assert!(ca.starts_with("ssh-ed25519,ssh-dss,ssh-rsa,ecdsa"), "{ca}");
        let first = host_keys("^rsa-sha2-512,ecdsa-*-nistp256");
        assert!(
            first.starts_with("rsa-sha2-512,ecdsa-sha2-nistp256,ssh-ed25519-cert"),
            "{first}"
        );
        let commented = of("macs", "-hmac-sha1 # old").unwrap();
        assert!(
            !commented.split(',').any(|it| it == "hmac-sha1"),
            "{commented}"
        );
    }

    #[test]
    fn lists_in_a_file_become_plain_ones() {
        let text =
            b"Host *\n  HostKeyAlgorithms=-ssh-*,ecdsa-*\n\tmacs \"-umac*,*sha1*\"\n Port 22";
        let text = String::from_utf8(expand_in_text(text)).unwrap();
        let lines: Vec<&str> = text.split('\n').collect();
        assert_eq!(lines[0], "Host *");
        assert!(lines[1].starts_with("HostKeyAlgorithms rsa-sha2-512-cert-v01@openssh.com,"));
        assert_eq!(
            lines[2],
            "macs hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,hmac-sha2-256,hmac-sha2-512"
        );
        assert_eq!(lines[3], " Port 22");
    }
}
