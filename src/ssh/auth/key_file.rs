//! Parses key files as far as possible without the passphrase; pure.
//!
//! libssh2 has one error for a wrong passphrase, a missing passphrase and a damaged file. This
//! module determines whether a passphrase is needed.

#![warn(clippy::indexing_slicing)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// The content of an `IdentityFile`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyFile {
    Private {
        is_encrypted: bool,
        /// The public key in wire form; `None` for older formats, which do not contain it
        /// unencrypted.
        public: Option<Vec<u8>>,
    },
    /// A public key: selects a key of the agent.
    Public {
        blob: Vec<u8>,
    },
    Unknown,
}

/// The magic of OpenSSH's own format, PROTOCOL.key.
const MAGIC: &[u8] = b"openssh-key-v1\0";

/// Determines the kind of a key file from its text.
pub(super) fn inspect(text: &str) -> KeyFile {
    let text = text.trim_start();
    if let Some(blob) = public_blob(text) {
        return KeyFile::Public { blob };
    }
    if !text.starts_with("-----BEGIN ") {
        return KeyFile::Unknown;
    }
    if text.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----") {
        // The key may be unencrypted. Allocate once: a growing buffer leaves copies that are not
        // zeroed.
        let mut body = Zeroizing::new(String::with_capacity(text.len()));
        let lines = text.lines().skip(1);
        for line in lines.take_while(|it| !it.starts_with('-')) {
            body.push_str(line);
        }
        let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(body.len())]);
        let Ok(n_bytes) = STANDARD.decode_slice(body.trim(), &mut bytes) else {
            return KeyFile::Unknown;
        };
        bytes.truncate(n_bytes);
        return inspect_openssh(&bytes).unwrap_or(KeyFile::Unknown);
    }
    // "BEGIN ENCRYPTED PRIVATE KEY" of PKCS#8, or "Proc-Type: 4,ENCRYPTED" of the older form.
    let is_encrypted = text.lines().take(3).any(|line| line.contains("ENCRYPTED"));
    KeyFile::Private {
        is_encrypted,
        public: None,
    }
}

fn inspect_openssh(bytes: &[u8]) -> Option<KeyFile> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let cipher = string(&mut rest)?;
    let _kdf = string(&mut rest)?;
    let _kdf_options = string(&mut rest)?;
    let (_n_keys, mut rest) = rest.split_at_checked(4)?;
    let public = string(&mut rest)?.to_vec();
    Some(KeyFile::Private {
        is_encrypted: cipher != b"none",
        public: Some(public),
    })
}

/// Returns the key of a line `type base64 comment` in wire form; `None` if it is malformed.
pub(super) fn public_blob(line: &str) -> Option<Vec<u8>> {
    let mut words = line.split_ascii_whitespace();
    let kind = words.next()?;
    let blob = STANDARD.decode(words.next()?).ok()?;
    let mut rest = blob.as_slice();
    (string(&mut rest)? == kind.as_bytes()).then_some(blob)
}

/// Returns a public key as a line `type base64`, the form in which libssh2 takes it.
pub(super) fn public_line(blob: &[u8]) -> Option<String> {
    let kind = std::str::from_utf8(string(&mut { blob })?).ok()?;
    Some(format!("{kind} {}", STANDARD.encode(blob)))
}

/// Returns the type of a public key in wire form.
pub(super) fn kind(blob: &[u8]) -> &[u8] {
    string(&mut { blob }).unwrap_or_default()
}

/// Returns whether a certificate is for a public key. PROTOCOL.certkeys: behind its type and a
/// nonce, a certificate contains the same fields as the plain key.
pub(super) fn certifies(certificate: &[u8], public: &[u8]) -> bool {
    let fields = |mut certificate: &[u8], mut public: &[u8]| {
        let certificate_kind = string(&mut certificate)?;
        let kind = string(&mut public)?;
        let _nonce = string(&mut certificate)?;
        Some(
            certificate_kind.starts_with(kind)
                && !public.is_empty()
                && certificate.starts_with(public),
        )
    };
    fields(certificate, public).unwrap_or(false)
}

/// Removes a length-prefixed string from the front and returns it.
fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, tail) = rest.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
    let (value, tail) = tail.split_at_checked(len)?;
    *rest = tail;
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with ssh-keygen for these tests and used nowhere.
    const PUBLIC: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJJLVKKjxXBhcfVKtwEa/jmMSI147b2azqcmuP4ZiR3H c";
    const ENCRYPTED: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABCXh/dzKk
6VNbfCBqqqR5MdAAAAEAAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIJJLVKKjxXBhcfVK
twEa/jmMSI147b2azqcmuP4ZiR3HAAAAkBI4b7Kev3sszhNPQrzJBcdaWqtzlmNLetXabQ
58dJFMlh0ycdIfoc/1C45FONtI9LE7ls+MqK/0RNZJsucXyBORsefema3K5D34fAv2McAW
e6NinUHcH/K03hRkSHmK9Tm7DJPo7jDFCqMG7mcDTqfECrP3iCzugr4THNmHofbAzLmH1a
lN7ubG2JLjy/9Ung==
-----END OPENSSH PRIVATE KEY-----
";

    #[test]
    fn an_encrypted_key_of_openssh_shows_its_public_half() {
        let blob = public_blob(PUBLIC).unwrap();
        assert_eq!(public_line(&blob).unwrap(), PUBLIC.trim_end_matches(" c"));
        let expected = KeyFile::Private {
            is_encrypted: true,
            public: Some(blob.clone()),
        };
        assert_eq!(inspect(ENCRYPTED), expected);
        assert_eq!(inspect(&ENCRYPTED.replace('\n', "\r\n")), expected);
        assert_eq!(inspect(PUBLIC), KeyFile::Public { blob });
    }

    #[test]
    fn an_open_key_of_openssh_needs_no_passphrase() {
        let mut bytes = MAGIC.to_vec();
        for text in [&b"none"[..], b"none", b""] {
            bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            bytes.extend(text);
        }
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, b'p', b'k']);
        let text = format!(
            "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n",
            STANDARD.encode(bytes)
        );
        let expected = KeyFile::Private {
            is_encrypted: false,
            public: Some(b"pk".to_vec()),
        };
        assert_eq!(inspect(&text), expected);
    }

    #[test]
    fn older_formats_say_whether_they_are_encrypted() {
        let cases = [
            ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n", false),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n",
                true,
            ),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIE\n", true),
            ("-----BEGIN EC PRIVATE KEY-----\nMIIE\n", false),
        ];
        for (text, is_encrypted) in cases {
            assert_eq!(
                inspect(text),
                KeyFile::Private {
                    is_encrypted,
                    public: None
                },
                "{text}"
            );
        }
    }

    #[test]
    fn damaged_files_are_no_keys() {
        for text in [
            "",
            "x",
            "-----BEGIN OPENSSH PRIVATE KEY-----\n!!\n",
            "ssh-rsa AAAA",
        ] {
            assert_eq!(inspect(text), KeyFile::Unknown, "{text}");
        }
        let cut = ENCRYPTED.lines().take(2).collect::<Vec<_>>().join("\n");
        assert_eq!(inspect(&cut), KeyFile::Unknown);
    }

    #[test]
    fn a_certificate_is_for_one_key() {
        let string = |text: &str| {
            let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
            bytes.extend(text.as_bytes());
            bytes
        };
        let key = |value| [string("ssh-ed25519"), string(value)].concat();
        let certificate = [
            string("ssh-ed25519-cert-v01@openssh.com"),
            string("nonce"),
            string("mine"),
            string("serial and so on"),
        ]
        .concat();
        assert!(certifies(&certificate, &key("mine")));
        assert!(!certifies(&certificate, &key("yours")));
        assert!(!certifies(b"x", b""));
    }
}
