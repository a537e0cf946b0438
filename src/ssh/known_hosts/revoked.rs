//! Parses the file of `RevokedHostKeys`: a list of public keys, or a key revocation list (KRL).
//!
//! Pure. Everything that cannot be parsed is an error, so that the caller refuses the host, as
//! OpenSSH `sshkey_check_revoked()` does.

#![warn(clippy::indexing_slicing)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::Sha1;
use sha2::Digest as _;
use sha2::Sha256;

use super::certificate::Certificate;
use super::certificate::is_certificate;
use super::key_type;
use super::public_key::is_canonical;
use super::wire::Reader;
use super::wire::Short;

/// The first bytes of a KRL (OpenSSH PROTOCOL.krl); any other file is a list of keys.
const MAGIC: &[u8] = b"SSHKRL\n\0";
const FORMAT_VERSION: u32 = 1;

// Section types.
const CERTIFICATES: u8 = 1;
const EXPLICIT_KEY: u8 = 2;
const FINGERPRINT_SHA1: u8 = 3;
const SIGNATURE: u8 = 4;
const FINGERPRINT_SHA256: u8 = 5;
const EXTENSION: u8 = 255;

// Section types inside a CERTIFICATES section.
const SERIAL_LIST: u8 = 0x20;
const SERIAL_RANGE: u8 = 0x21;
const SERIAL_BITMAP: u8 = 0x22;
const KEY_ID: u8 = 0x23;
const CERTIFICATE_EXTENSION: u8 = 0x39;

/// Why a file of revoked keys cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("line {0} is not a public key")]
    Line(usize),
    #[error("the key revocation list is truncated")]
    Short,
    #[error("the key revocation list has an unknown {0}")]
    Unknown(&'static str),
}

/// Returns whether the content of a file revokes the public key `blob` (in wire form), the
/// certificate `shown` for it, or the authority of that certificate.
///
/// # Errors
/// Any part of the file cannot be parsed.
pub fn revokes(text: &[u8], blob: &[u8], shown: Option<&Certificate>) -> Result<bool, Error> {
    let authority = shown.map(|it| it.authority.clone());
    let keys: Vec<Vec<u8>> = std::iter::once(blob.to_vec()).chain(authority).collect();
    match text.strip_prefix(MAGIC) {
        Some(rest) => krl_revokes(rest, &keys, shown),
        None => list_revokes(text, &keys),
    }
}

fn list_revokes(text: &[u8], keys: &[Vec<u8>]) -> Result<bool, Error> {
    let mut is_revoked = false;
    for (idx, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let key = listed_key(line).ok_or(Error::Line(idx + 1))?;
        is_revoked |= keys.contains(&key);
    }
    Ok(is_revoked)
}

fn listed_key(line: &[u8]) -> Option<Vec<u8>> {
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let kind = words.next()?;
    let key = STANDARD.decode(words.next()?).ok()?;
    if key_type(&key)?.as_bytes() != kind {
        return None;
    }
    // A certificate in the list stands for its key: OpenSSH sshkey.c sshkey_check_revoked().
    let key = if is_certificate(&key) {
        Certificate::parse(&key)?.key
    } else {
        key
    };
    // The encoding of keys of an unknown type cannot be checked.
    (is_canonical(&key) != Some(false)).then_some(key)
}

/// Parses the rest of a KRL behind its magic number, up to the end of the file.
fn krl_revokes(text: &[u8], keys: &[Vec<u8>], shown: Option<&Certificate>) -> Result<bool, Error> {
    let mut rest = Reader(text);
    if rest.number()? != FORMAT_VERSION {
        return Err(Error::Unknown("format"));
    }
    // Version, date and flags, 8 bytes each, a reserved string and a comment.
    rest.take(24)?;
    rest.string()?;
    rest.string()?;
    let sha1: Vec<_> = keys.iter().map(|it| Sha1::digest(it).to_vec()).collect();
    let sha256: Vec<_> = keys.iter().map(|it| Sha256::digest(it).to_vec()).collect();
    let mut is_revoked = false;
    while !rest.0.is_empty() {
        let (section, content) = (rest.byte()?, rest.string()?);
        match section {
            EXPLICIT_KEY => {
                is_revoked |= contains_any(content, keys, |key| is_canonical(key) != Some(false))?;
            }
            FINGERPRINT_SHA1 => is_revoked |= contains_any(content, &sha1, |it| it.len() == 20)?,
            FINGERPRINT_SHA256 => {
                is_revoked |= contains_any(content, &sha256, |it| it.len() == 32)?;
            }
            CERTIFICATES => is_revoked |= revokes_certificate(content, shown)?,
            // The section contains the signer's key and is followed by the signature. It is not
            // checked, as in OpenSSH after 9.3: an attacker who can change the list can also remove
            // the signature.
            SIGNATURE => {
                rest.string()?;
            }
            EXTENSION => {
                let mut content = Reader(content);
                skip_extension(&mut content)?;
                if !content.0.is_empty() {
                    return Err(Error::Unknown("end of a section"));
                }
            }
            _ => return Err(Error::Unknown("section")),
        }
    }
    Ok(is_revoked)
}

impl From<Short> for Error {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

/// Returns whether a section, which is a sequence of strings, contains one of `wanted`.
fn contains_any(
    content: &[u8],
    wanted: &[Vec<u8>],
    is_right: impl Fn(&[u8]) -> bool,
) -> Result<bool, Error> {
    let mut rest = Reader(content);
    let mut is_found = false;
    while !rest.0.is_empty() {
        let string = rest.string()?;
        if !is_right(string) {
            return Err(Error::Unknown("encoding of a key or fingerprint"));
        }
        is_found |= wanted.iter().any(|it| it == string);
    }
    Ok(is_found)
}

/// Returns whether a CERTIFICATES section revokes the certificate `shown`.
fn revokes_certificate(content: &[u8], shown: Option<&Certificate>) -> Result<bool, Error> {
    let mut rest = Reader(content);
    let authority = rest.string()?;
    if !authority.is_empty() && is_canonical(authority) == Some(false) {
        return Err(Error::Unknown("encoding of an authority"));
    }
    let _reserved = rest.string()?;
    // A section without an authority applies to the certificates of all authorities.
    let shown = shown.filter(|it| authority.is_empty() || it.authority == authority);
    let serial = shown.map(|it| it.serial);
    let mut is_revoked = false;
    while !rest.0.is_empty() {
        let (section, mut content) = (rest.byte()?, Reader(rest.string()?));
        match section {
            SERIAL_LIST => {
                while !content.0.is_empty() {
                    is_revoked |= Some(content.long()?) == serial;
                }
            }
            SERIAL_RANGE => {
                let (first, last) = (content.long()?, content.long()?);
                if first > last {
                    return Err(Error::Unknown("range of serial numbers"));
                }
                is_revoked |= serial.is_some_and(|it| (first..=last).contains(&it));
            }
            SERIAL_BITMAP => {
                let (offset, bits) = (content.long()?, content.string()?);
                let n_bits = u64::try_from(bits.len())
                    .unwrap_or(u64::MAX)
                    .saturating_mul(8);
                if offset.checked_add(n_bits).is_none() {
                    return Err(Error::Unknown("range of serial numbers"));
                }
                is_revoked |= serial
                    .and_then(|it| it.checked_sub(offset))
                    .is_some_and(|bit| is_set(bits, bit));
            }
            KEY_ID => {
                while !content.0.is_empty() {
                    let id = content.string()?;
                    is_revoked |= shown.is_some_and(|it| it.id == id);
                }
            }
            CERTIFICATE_EXTENSION => skip_extension(&mut content)?,
            _ => return Err(Error::Unknown("section about certificates")),
        }
        if !content.0.is_empty() {
            // The extra bytes may be meant to revoke something.
            return Err(Error::Unknown("end of a section"));
        }
    }
    Ok(is_revoked)
}

fn skip_extension(content: &mut Reader<'_>) -> Result<(), Error> {
    content.string()?;
    if content.byte()? != 0 {
        return Err(Error::Unknown("critical extension"));
    }
    content.string()?;
    Ok(())
}

/// Returns whether a bit of a big-endian number is set; bit 0 is the least significant.
fn is_set(bits: &[u8], bit: u64) -> bool {
    let byte = usize::try_from(bit / 8).ok();
    byte.and_then(|byte| bits.iter().rev().nth(byte))
        .is_some_and(|byte| byte & (1 << (bit % 8)) != 0)
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
        let other = STANDARD.encode(string(b"sk-ssh-ed25519@openssh.com"));
        let text = format!(
            "# a comment\n\nsk-ssh-ed25519@openssh.com {other} x\n  ssh-ed25519 {KEY} me\n"
        );
        assert_eq!(revokes(text.as_bytes(), &blob(), None), Ok(true));
        assert_eq!(revokes(text.as_bytes(), b"another", None), Ok(false));
        assert_eq!(revokes(b"", &blob(), None), Ok(false));
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
                revokes(text.as_bytes(), &blob(), None),
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
            let text = krl(&[(CERTIFICATES, &[0; 8]), (kind, &section)]);
            assert_eq!(revokes(&text, &blob(), None), Ok(true), "{kind}");
            assert_eq!(revokes(&text, b"another", None), Ok(false), "{kind}");
        }
        let signed = [krl(&[(SIGNATURE, b"key")]), string(b"signature")].concat();
        assert_eq!(revokes(&signed, &blob(), None), Ok(false));
        let optional = [string(b"name"), vec![0], string(b"value")].concat();
        assert_eq!(
            revokes(&krl(&[(EXTENSION, &optional)]), &blob(), None),
            Ok(false)
        );
    }

    #[test]
    fn bits_count_from_the_end() {
        for bit in 0..24 {
            assert_eq!(
                is_set(&[0x80, 0, 0x05], bit),
                [0, 2, 23].contains(&bit),
                "{bit}"
            );
        }
        assert!(!is_set(&[0xff], 8) && !is_set(&[], 0) && !is_set(&[0xff], u64::MAX));
    }

    #[test]
    fn a_krl_that_cannot_be_read_to_its_end_is_an_error() {
        let whole = krl(&[(EXPLICIT_KEY, &string(&blob()))]);
        for len in MAGIC.len()..whole.len() {
            // Without any section it is whole.
            if len != MAGIC.len() + 36 {
                assert_eq!(
                    revokes(&whole[..len], &blob(), None),
                    Err(Error::Short),
                    "{len}"
                );
            }
        }
        assert!(revokes(&krl(&[(9, b"")]), &blob(), None).is_err());
        let critical = [string(b"name"), vec![1], string(b"")].concat();
        assert!(revokes(&krl(&[(EXTENSION, &critical)]), &blob(), None).is_err());
        let long = krl(&[(FINGERPRINT_SHA256, &string(&[7; 20]))]);
        assert!(revokes(&long, &blob(), None).is_err());
    }

    #[test]
    fn a_section_that_is_damaged_is_an_error() {
        let numbers =
            |numbers: &[u64]| -> Vec<u8> { numbers.iter().flat_map(|n| n.to_be_bytes()).collect() };
        let of_authority = |authority: &[u8], kind: u8, content: &[u8]| {
            let section = [string(authority), string(b""), vec![kind], string(content)].concat();
            krl(&[(CERTIFICATES, &section)])
        };
        let bitmap = |offset: u64, bits: &[u8]| [numbers(&[offset]), string(bits)].concat();
        let right = [
            of_authority(&blob(), SERIAL_RANGE, &numbers(&[1, 9])),
            of_authority(b"", SERIAL_BITMAP, &bitmap(1, &[1])),
        ];
        for text in right {
            assert_eq!(revokes(&text, &blob(), None), Ok(false));
        }
        let short_key = [string(b"ssh-ed25519"), string(&[7; 31])].concat();
        let valueless = [string(b"name"), vec![0]].concat();
        let wrong = [
            // The second range would be passed over.
            of_authority(&blob(), SERIAL_RANGE, &numbers(&[1, 2, 5, 9])),
            of_authority(&blob(), SERIAL_RANGE, &numbers(&[9, 1])),
            of_authority(b"", SERIAL_BITMAP, &[bitmap(1, &[1]), vec![0]].concat()),
            of_authority(b"", SERIAL_BITMAP, &bitmap(u64::MAX, &[1])),
            of_authority(b"", CERTIFICATE_EXTENSION, &valueless),
            of_authority(&short_key, SERIAL_RANGE, &numbers(&[1, 9])),
            krl(&[(EXPLICIT_KEY, &string(&short_key))]),
            krl(&[(EXTENSION, &valueless)]),
        ];
        for text in wrong {
            assert!(revokes(&text, &blob(), None).is_err(), "{text:x?}");
        }
        let line = format!("ssh-ed25519 {}\n", STANDARD.encode(short_key));
        assert_eq!(revokes(line.as_bytes(), &blob(), None), Err(Error::Line(1)));
    }
}
