//! The file that `RevokedHostKeys` names: a list of public keys, or a key revocation list (KRL).
//!
//! Pure: bytes in, verdict out. Whatever cannot be read is an error, so that the caller refuses the
//! host, as OpenSSH `sshkey_check_revoked()` does. Host certificates are never negotiated, so that
//! sections about certificates say nothing about the keys that are compared here.

#![warn(clippy::indexing_slicing)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::Sha1;
use sha2::Digest as _;
use sha2::Sha256;

use super::key_type;

/// OpenSSH PROTOCOL.krl: a file that begins otherwise is a list of keys.
const MAGIC: &[u8] = b"SSHKRL\n\0";
const FORMAT_VERSION: u32 = 1;

// Types of sections.
const CERTIFICATES: u8 = 1;
const EXPLICIT_KEY: u8 = 2;
const FINGERPRINT_SHA1: u8 = 3;
const SIGNATURE: u8 = 4;
const FINGERPRINT_SHA256: u8 = 5;
const EXTENSION: u8 = 255;

/// Why a file of revoked keys cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("line {0} is no public key")]
    Line(usize),
    #[error("the key revocation list ends in the middle")]
    Short,
    #[error("the key revocation list has an unknown {0}")]
    Unknown(&'static str),
}

/// Returns whether the text of a file revokes the public key `blob`, in wire form.
///
/// # Errors
/// Any part of the file cannot be understood.
pub fn revokes(text: &[u8], blob: &[u8]) -> Result<bool, Error> {
    match text.strip_prefix(MAGIC) {
        Some(rest) => krl_revokes(rest, blob),
        None => list_revokes(text, blob),
    }
}

fn list_revokes(text: &[u8], blob: &[u8]) -> Result<bool, Error> {
    let mut is_revoked = false;
    for (idx, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let key = listed_key(line).ok_or(Error::Line(idx + 1))?;
        is_revoked |= key == blob;
    }
    Ok(is_revoked)
}

fn listed_key(line: &[u8]) -> Option<Vec<u8>> {
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let kind = words.next()?;
    let key = STANDARD.decode(words.next()?).ok()?;
    (key_type(&key)?.as_bytes() == kind).then_some(key)
}

/// Reads what follows the magic number of a KRL, to its very end.
fn krl_revokes(text: &[u8], blob: &[u8]) -> Result<bool, Error> {
    let mut rest = Reader(text);
    if rest.number()? != FORMAT_VERSION {
        return Err(Error::Unknown("format"));
    }
    // Version, date and flags, 8 bytes each, a reserved string and a comment.
    rest.take(24)?;
    rest.string()?;
    rest.string()?;
    let (sha1, sha256) = (Sha1::digest(blob), Sha256::digest(blob));
    let mut is_revoked = false;
    while !rest.0.is_empty() {
        let (section, mut content) = (rest.byte()?, Reader(rest.string()?));
        match section {
            EXPLICIT_KEY => is_revoked |= content.has(blob, None)?,
            FINGERPRINT_SHA1 => is_revoked |= content.has(&sha1, Some(sha1.len()))?,
            FINGERPRINT_SHA256 => is_revoked |= content.has(&sha256, Some(sha256.len()))?,
            CERTIFICATES => {}
            // OpenSSH krl.c ssh_krl_from_blob(): the key is followed by a string, the signature,
            // which it does not check either.
            SIGNATURE => drop(rest.string()?),
            EXTENSION => {
                content.string()?;
                if content.byte()? != 0 {
                    return Err(Error::Unknown("critical extension"));
                }
            }
            _ => return Err(Error::Unknown("section")),
        }
    }
    Ok(is_revoked)
}

/// Takes values in SSH wire form from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n_bytes: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(n_bytes).ok_or(Error::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Error> {
        self.take(1)?.first().copied().ok_or(Error::Short)
    }

    fn number(&mut self) -> Result<u32, Error> {
        let bytes = self.take(4)?.first_chunk().ok_or(Error::Short)?;
        Ok(u32::from_be_bytes(*bytes))
    }

    fn string(&mut self) -> Result<&'a [u8], Error> {
        let len = usize::try_from(self.number()?).map_err(|_| Error::Short)?;
        self.take(len)
    }

    /// Reads strings to the end; returns whether one of them is `wanted`.
    fn has(&mut self, wanted: &[u8], len: Option<usize>) -> Result<bool, Error> {
        let mut is_there = false;
        while !self.0.is_empty() {
            let string = self.string()?;
            if len.is_some_and(|len| len != string.len()) {
                return Err(Error::Unknown("fingerprint"));
            }
            is_there |= string == wanted;
        }
        Ok(is_there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";

    fn blob() -> Vec<u8> {
        STANDARD.decode(KEY).unwrap()
    }

    fn string(bytes: &[u8]) -> Vec<u8> {
        let len = u32::try_from(bytes.len()).unwrap();
        [&len.to_be_bytes()[..], bytes].concat()
    }

    fn krl(sections: &[(u8, &[u8])]) -> Vec<u8> {
        let mut text = [MAGIC, &1_u32.to_be_bytes(), &[0; 24], &[0; 8]].concat();
        for (kind, content) in sections {
            text.push(*kind);
            text.extend(string(content));
        }
        text
    }

    #[test]
    fn a_list_of_keys_revokes_what_is_in_it() {
        let other = STANDARD.encode(string(b"ssh-rsa"));
        let text = format!("# a comment\n\nssh-rsa {other} x\n  ssh-ed25519 {KEY} me\n");
        assert_eq!(revokes(text.as_bytes(), &blob()), Ok(true));
        assert_eq!(revokes(text.as_bytes(), b"another"), Ok(false));
        assert_eq!(revokes(b"", &blob()), Ok(false));
    }

    #[test]
    fn a_list_that_cannot_be_read_is_an_error_even_behind_the_key() {
        let good = format!("ssh-ed25519 {KEY}\n");
        for bad in [
            "ssh-ed25519",
            "ssh-rsa AAAA",
            "not a key",
            &format!("ssh-rsa {KEY}"),
        ] {
            let text = format!("{good}{bad}\n");
            assert_eq!(
                revokes(text.as_bytes(), &blob()),
                Err(Error::Line(2)),
                "{bad}"
            );
        }
    }

    #[test]
    fn each_section_of_a_krl_that_can_name_a_key_revokes_it() {
        let (sha1, sha256) = (Sha1::digest(blob()), Sha256::digest(blob()));
        for (kind, content) in [
            (EXPLICIT_KEY, &blob()[..]),
            (FINGERPRINT_SHA1, &sha1[..]),
            (FINGERPRINT_SHA256, &sha256[..]),
        ] {
            let section = [string(&vec![7; content.len()]), string(content)].concat();
            let text = krl(&[(CERTIFICATES, b"anything"), (kind, &section)]);
            assert_eq!(revokes(&text, &blob()), Ok(true), "{kind}");
            assert_eq!(revokes(&text, b"another"), Ok(false), "{kind}");
        }
        let signed = [krl(&[(SIGNATURE, b"key")]), string(b"signature")].concat();
        assert_eq!(revokes(&signed, &blob()), Ok(false));
        let optional = [string(b"name"), vec![0], string(b"")].concat();
        assert_eq!(revokes(&krl(&[(EXTENSION, &optional)]), &blob()), Ok(false));
    }

    #[test]
    fn a_krl_that_cannot_be_read_to_its_end_is_an_error() {
        let whole = krl(&[(EXPLICIT_KEY, &string(&blob()))]);
        for len in MAGIC.len()..whole.len() {
            // Without any section it is whole.
            if len != MAGIC.len() + 36 {
                assert_eq!(revokes(&whole[..len], &blob()), Err(Error::Short), "{len}");
            }
        }
        assert!(revokes(&krl(&[(9, b"")]), &blob()).is_err());
        let critical = [string(b"name"), vec![1], string(b"")].concat();
        assert!(revokes(&krl(&[(EXTENSION, &critical)]), &blob()).is_err());
        let long = krl(&[(FINGERPRINT_SHA256, &string(&[7; 20]))]);
        assert!(revokes(&long, &blob()).is_err());
    }
}
