//! Host keys: looks up a server's key in the `known_hosts` files.
//!
//! Pure except for `verify`, which reads the files, asks the user and adds lines. The format is
//! described in sshd(8). A `@cert-authority` line does not make a plain key known; `certificate`
//! checks host certificates.

#![warn(clippy::indexing_slicing)]

pub mod certificate;
pub mod public_key;
pub mod revoked;
pub mod verify;
mod wire;

use std::path::Path;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hmac::Hmac;
use hmac::Mac as _;
use sha1::Sha1;
use sha2::Digest as _;
use sha2::Sha256;

use crate::host_key::HostKey;
use certificate::Certificate;

/// Why a host key was refused. `key` is its type and fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "the host key of {name} is not known ({key}); run `ssh {destination}` once to check and \
         remember it, or pass -o StrictHostKeyChecking=accept-new"
    )]
    Unknown {
        name: String,
        destination: String,
        key: String,
    },
    #[error(
        "THE HOST KEY OF {name} HAS CHANGED: this may be a man-in-the-middle attack, or the host \
         was reinstalled. Its key is now {key}; {}:{line} has another. If the change is legitimate, \
         run `ssh-keygen -R '{name}' -f '{}'` and connect again",
        file.display(), file.display()
    )]
    Changed {
        name: String,
        key: String,
        file: PathBuf,
        line: usize,
    },
    #[error(
        "the {what} of {name} ({key}) is marked as revoked in {}:{line}; do not trust this host",
        file.display()
    )]
    Revoked {
        /// `host key` or `authority`: which of the two keys is revoked.
        what: &'static str,
        name: String,
        key: String,
        file: PathBuf,
        line: usize,
    },
    #[error(
        "the host key of {name} ({key}) is revoked by {}, which RevokedHostKeys names; do not \
         trust this host",
        file.display()
    )]
    RevokedByFile {
        name: String,
        key: String,
        file: PathBuf,
    },
    #[error(
        "cannot check whether the host key of {name} is revoked: {}, which RevokedHostKeys names: \
         {detail}",
        file.display()
    )]
    RevocationUnknown {
        name: String,
        file: PathBuf,
        detail: String,
    },
    #[error(
        "{}:{line} (@cert-authority) requires {name} to identify by a host certificate, but {why}, \
         and no line has its key ({key}). If this key is right, add it: `ssh-keyscan` prints \
         the line, or pass -o StrictHostKeyChecking=accept-new",
        file.display()
    )]
    CertificateExpected {
        name: String,
        key: String,
        file: PathBuf,
        line: usize,
        /// Why its certificate is not accepted.
        why: certificate::Problem,
    },
    #[error("the host key of {name} was not accepted")]
    Declined { name: String },
    #[error(
        "the host key of {name} is not the one that this mount was made with: expected {expected}, \
         offered {offered}. Another host may be answering at its address, or it was reinstalled. \
         No file was sent to it. If {offered} is the right one, {}mount with \
         -o accept_host_key={}: waiting uploads (`scpfs recover` lists them) then go to that host",
        if *.is_mounted { "unmount and " } else { "" }, offered.fingerprint
    )]
    Pinned {
        name: String,
        expected: Box<HostKey>,
        offered: Box<HostKey>,
        /// Whether an earlier connection of this mount showed `expected`.
        is_mounted: bool,
    },
}

/// The content of one `known_hosts` file.
#[derive(Debug)]
pub struct KnownFile {
    pub path: PathBuf,
    pub text: Vec<u8>,
}

/// The result of looking up a host key in the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A line has this key.
    Known,
    /// No line has a key of the host.
    Unknown,
    /// A line has another key of the host, of any type, and no line has this one.
    Changed { file: PathBuf, line: usize },
    /// A line revokes this key.
    Revoked { file: PathBuf, line: usize },
    /// No line has a key of the host, but a line has a certificate authority for it.
    CertificateExpected { file: PathBuf, line: usize },
}

/// Returns the name of a host in the files: `host`, or `[host]:port` if the port is not 22.
pub fn lookup_name(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == 22 {
        host
    } else {
        format!("[{host}]:{port}")
    }
}

/// Looks up the key `blob` of the host `name` in `files`, as OpenSSH hostfile.c
/// `check_hostkeys_by_key_or_type()` does. A key of an unknown type is a changed key if another
/// type is known: an attacker can choose the type that the server offers.
///
/// A revocation in any file overrides every line with the key.
pub fn check(files: &[KnownFile], name: &str, blob: &[u8]) -> Verdict {
    if let Some((file, line)) = revocation(files, name, blob) {
        return Verdict::Revoked { file, line };
    }
    let mut changed = None;
    let mut authority = None;
    for (file, entry) in entries(files, name) {
        let (file, line) = (file.to_owned(), entry.line);
        match entry.marker {
            Marker::Plain if entry.blob == blob => return Verdict::Known,
            Marker::Plain => {
                changed.get_or_insert(Verdict::Changed { file, line });
            }
            Marker::CertAuthority => {
                authority.get_or_insert(Verdict::CertificateExpected { file, line });
            }
            Marker::Revoked => {}
        }
    }
    changed.or(authority).unwrap_or(Verdict::Unknown)
}

/// Returns the file and line number that revoke the key `blob` of the host `name`. A line with a
/// certificate revokes the key that the certificate is for.
pub fn revocation(files: &[KnownFile], name: &str, blob: &[u8]) -> Option<(PathBuf, usize)> {
    entries(files, name)
        .find(|(_, entry)| {
            entry.marker == Marker::Revoked
                && (entry.blob == blob
                    || Certificate::parse(&entry.blob).is_some_and(|it| it.key == blob))
        })
        .map(|(file, entry)| (file.to_owned(), entry.line))
}

/// Returns the keys of the certificate authorities for `name`.
pub fn authorities(files: &[KnownFile], name: &str) -> Vec<Vec<u8>> {
    entries(files, name)
        .filter(|(_, entry)| entry.marker == Marker::CertAuthority)
        .map(|(_, entry)| entry.blob)
        .collect()
}

/// Returns the types of the known keys of `name`, without duplicates.
pub fn known_types(files: &[KnownFile], name: &str) -> Vec<String> {
    let mut types = Vec::new();
    for (_, entry) in entries(files, name) {
        if entry.marker == Marker::Plain && !types.contains(&entry.kind) {
            types.push(entry.kind);
        }
    }
    types
}

/// Returns the `known_hosts` line for a key; with a salt its host name is hashed.
pub fn format_line(name: &str, blob: &[u8], salt: Option<[u8; 20]>) -> String {
    let name = match salt {
        Some(salt) => {
            let hash = STANDARD.encode(hashed(&salt, name));
            format!("|1|{}|{hash}", STANDARD.encode(salt))
        }
        None => name.to_owned(),
    };
    format!(
        "{name} {} {}\n",
        key_type(blob).unwrap_or_default(),
        STANDARD.encode(blob)
    )
}

/// Returns the SHA-256 fingerprint of a key in OpenSSH's form.
pub fn fingerprint(blob: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(blob)))
}

/// Returns the type of a public key in wire form; `None` if it is malformed.
pub fn key_type(blob: &[u8]) -> Option<String> {
    let len = u32::from_be_bytes(*blob.first_chunk::<4>()?);
    let name = blob.get(4..)?.get(..usize::try_from(len).ok()?)?;
    let name = std::str::from_utf8(name).ok()?;
    name.bytes()
        .all(|byte| byte.is_ascii_graphic())
        .then(|| name.to_owned())
}

/// Returns the type and fingerprint of a public key in wire form.
pub fn host_key(blob: &[u8]) -> HostKey {
    HostKey {
        kind: key_type(blob).unwrap_or_default(),
        fingerprint: fingerprint(blob),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marker {
    Plain,
    Revoked,
    CertAuthority,
}

struct Entry {
    marker: Marker,
    line: usize,
    kind: String,
    blob: Vec<u8>,
}

/// Iterates over the lines for the host `name`. Skips malformed lines, as OpenSSH does.
fn entries<'a>(
    files: &'a [KnownFile],
    name: &'a str,
) -> impl Iterator<Item = (&'a Path, Entry)> + 'a {
    files.iter().flat_map(move |file| {
        let lines = file.text.split(|&byte| byte == b'\n').enumerate();
        lines.filter_map(move |(idx, line)| {
            // The parsed fields are ASCII; the comment behind them may have any encoding.
            let line = String::from_utf8_lossy(line);
            parse_line(&line, name, idx + 1).map(|entry| (file.path.as_path(), entry))
        })
    })
}

fn parse_line(text: &str, name: &str, line: usize) -> Option<Entry> {
    let mut words = text.split_ascii_whitespace();
    let mut hosts = words.next().filter(|word| !word.starts_with('#'))?;
    let marker = match hosts {
        "@revoked" => Marker::Revoked,
        "@cert-authority" => Marker::CertAuthority,
        _ if hosts.starts_with('@') => return None,
        _ => Marker::Plain,
    };
    if marker != Marker::Plain {
        hosts = words.next()?;
    }
    if !names_match(hosts, name) {
        return None;
    }
    let kind = words.next()?.to_owned();
    let blob = STANDARD.decode(words.next()?).ok()?;
    (key_type(&blob)? == kind).then_some(Entry {
        marker,
        line,
        kind,
        blob,
    })
}

/// Returns whether the first field of a line matches `name`.
fn names_match(hosts: &str, name: &str) -> bool {
    if let Some(rest) = hosts.strip_prefix("|1|") {
        let Some((salt, hash)) = rest.split_once('|') else {
            return false;
        };
        return match (STANDARD.decode(salt), STANDARD.decode(hash)) {
            (Ok(salt), Ok(hash)) => hashed(&salt, name) == hash.as_slice(),
            _ => false,
        };
    }
    let mut is_match = false;
    for pattern in hosts.split(',') {
        let pattern = pattern.to_ascii_lowercase();
        match pattern.strip_prefix('!') {
            Some(pattern) if glob(pattern.as_bytes(), name.as_bytes()) => return false,
            Some(_) => {}
            None => is_match |= glob(pattern.as_bytes(), name.as_bytes()),
        }
    }
    is_match
}

/// Matches a pattern with `*` and `?`. It backtracks only to the last star: no pattern takes
/// exponential time.
pub(super) fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while let Some(&byte) = text.get(t) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            Some(&it) if it == b'?' || it == byte => {
                p += 1;
                t += 1;
                continue;
            }
            _ => {}
        }
        let Some((star_p, star_t)) = star else {
            return false;
        };
        p = star_p + 1;
        t = star_t + 1;
        star = Some((star_p, t));
    }
    pattern
        .get(p..)
        .is_some_and(|rest| rest.iter().all(|&byte| byte == b'*'))
}

fn hashed(salt: &[u8], name: &str) -> [u8; 20] {
    // HMAC accepts keys of any length, so this cannot fail; a zero hash would match no name.
    let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(salt) else {
        return [0; 20];
    };
    mac.update(name.as_bytes());
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key blob: the type, then whatever makes it differ.
    fn key(kind: &str, content: &str) -> Vec<u8> {
        let mut blob = u32::try_from(kind.len()).unwrap().to_be_bytes().to_vec();
        blob.extend(kind.as_bytes());
        blob.extend(content.as_bytes());
        blob
    }

    fn line(hosts: &str, kind: &str, content: &str) -> String {
        format!(
            "{hosts} {kind} {} a comment\n",
            STANDARD.encode(key(kind, content))
        )
    }

    fn file(text: &str) -> Vec<KnownFile> {
        vec![KnownFile {
            path: "/kh".into(),
            text: text.as_bytes().to_vec(),
        }]
    }

    const ED: &str = "ssh-ed25519";

    fn verdict(text: &str, name: &str) -> Verdict {
        check(&file(text), name, &key(ED, "right"))
    }

    const UNKNOWN: Verdict = Verdict::Unknown;

    #[test]
    fn plain_names_lists_ports_and_patterns_match() {
        let cases = [
            ("box", "box", true),
            ("BOX", "box", true),
            ("a,box,b", "box", true),
            ("[box]:2222", "[box]:2222", true),
            ("box", "[box]:2222", false),
            ("[box]:2222", "box", false),
            ("b?x", "box", true),
            ("*.net", "box.net", true),
            ("*.net", "net", false),
            ("*.net,!bad.net", "bad.net", false),
            ("!bad.net,*.net", "bad.net", false),
            ("!bad.net", "box", false),
            ("*", "box", true),
            ("b**x*", "box", true),
            ("", "box", false),
        ];
        for (hosts, name, is_match) in cases {
            let text = line(hosts, ED, "right");
            let expected = if is_match { Verdict::Known } else { UNKNOWN };
            assert_eq!(verdict(&text, name), expected, "{hosts} {name}");
        }
    }

    #[test]
    fn hashed_names_match() {
        // `ssh-keygen -H` made this of the name "box.example".
        let theirs = "|1|MZk2YAtcMeC4qy8glK1xoT2Kc1Q=|Z+aUiV2b3OybgoflujCvTaYUMLk=";
        assert_eq!(
            verdict(&line(theirs, ED, "right"), "box.example"),
            Verdict::Known
        );
        let text = format_line("[box]:2222", &key(ED, "right"), Some([7; 20]));
        assert!(
            text.starts_with("|1|BwcHBwcHBwcHBwcHBwcHBwcHBwc=|"),
            "{text}"
        );
        assert_eq!(verdict(&text, "[box]:2222"), Verdict::Known);
        assert_eq!(verdict(&text, "box"), UNKNOWN);
    }

    #[test]
    fn another_key_of_the_same_type_is_a_change_and_says_where() {
        let text = format!("# one\n\n{}", line("box", ED, "wrong"));
        assert_eq!(
            verdict(&text, "box"),
            Verdict::Changed {
                file: "/kh".into(),
                line: 3
            }
        );
        let both = format!("{text}{}", line("box", ED, "right"));
        assert_eq!(verdict(&both, "box"), Verdict::Known);
    }

    #[test]
    fn a_key_of_another_type_is_a_change_too() {
        let text = line("box", "ssh-rsa", "x") + &line("box", "ssh-rsa", "y");
        let changed = Verdict::Changed {
            file: "/kh".into(),
            line: 1,
        };
        assert_eq!(verdict(&text, "box"), changed);
        assert_eq!(known_types(&file(&text), "box"), ["ssh-rsa"]);
        let both = text + &line("box", ED, "right");
        assert_eq!(verdict(&both, "box"), Verdict::Known);
    }

    #[test]
    fn a_revoked_key_is_refused_wherever_the_line_stands() {
        let good = line("box", ED, "right");
        let revoked = line("@revoked *", ED, "right");
        for text in [format!("{good}{revoked}"), format!("{revoked}{good}")] {
            assert!(
                matches!(verdict(&text, "box"), Verdict::Revoked { .. }),
                "{text}"
            );
        }
        let other = good + &line("@revoked *", ED, "other");
        assert_eq!(verdict(&other, "box"), Verdict::Known);
    }

    #[test]
    fn certificate_authorities_and_unknown_markers_vouch_for_nothing() {
        assert_eq!(verdict(&line("@new box", ED, "right"), "box"), UNKNOWN);
        let authority = line("@cert-authority *.net", ED, "right");
        assert_eq!(verdict(&authority, "box"), UNKNOWN);
        let expected = Verdict::CertificateExpected {
            file: "/kh".into(),
            line: 1,
        };
        assert_eq!(verdict(&authority, "box.net"), expected);
        // Plain lines count as if it were not there.
        let known = authority.clone() + &line("box.net", ED, "right");
        assert_eq!(verdict(&known, "box.net"), Verdict::Known);
        let other = authority + &line("box.net", "ssh-rsa", "x");
        assert!(matches!(
            verdict(&other, "box.net"),
            Verdict::Changed { .. }
        ));
    }

    #[test]
    fn bad_lines_are_passed_over() {
        let good = line("box", ED, "right");
        for bad in [
            "box",
            "box ssh-ed25519",
            "box ssh-ed25519 ###",
            "|1|x|y ssh-ed25519 AAAA",
        ] {
            assert_eq!(
                verdict(&format!("{bad}\n{good}"), "box"),
                Verdict::Known,
                "{bad}"
            );
        }
        let mut files = file("");
        files[0].text = [b"\xff\xfe box\n", good.as_bytes()].concat();
        assert_eq!(check(&files, "box", &key(ED, "right")), Verdict::Known);
        for start in ["box", "@revoked box"] {
            let text = line(start, ED, "right").replace("comment", "M\u{fc}ller");
            files[0].text = text.chars().map(|c| u8::try_from(c).unwrap()).collect();
            assert_ne!(check(&files, "box", &key(ED, "right")), UNKNOWN, "Latin-1");
        }
        let lying = format!("box ssh-rsa {}\n", STANDARD.encode(key(ED, "right")));
        assert_eq!(verdict(&lying, "box"), UNKNOWN);
    }

    #[test]
    fn no_pattern_takes_long() {
        let pattern = "*a".repeat(60) + "b";
        assert!(!glob(pattern.as_bytes(), "a".repeat(4000).as_bytes()));
    }

    #[test]
    fn fingerprints_and_names_look_like_those_of_openssh() {
        // ssh-keygen -lf on this line prints the same.
        let text = "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
        let blob = STANDARD.decode(text).unwrap();
        assert_eq!(
            fingerprint(&blob),
            "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"
        );
        assert_eq!(lookup_name("Box", 22), "box");
        assert_eq!(lookup_name("::1", 2222), "[::1]:2222");
        assert_eq!(key_type(b"\0\0\0\xffssh"), None);
    }

    #[test]
    fn refusals_say_what_to_do() {
        let changed = Refusal::Changed {
            name: "[box]:2222".to_owned(),
            key: "ED25519 SHA256:x".to_owned(),
            file: "/kh".into(),
            line: 3,
        };
        let text = changed.to_string();
        assert!(text.contains("/kh:3"), "{text}");
        assert!(
            text.contains("ssh-keygen -R '[box]:2222' -f '/kh'"),
            "{text}"
        );
    }
}
