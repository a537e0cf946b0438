//! Host certificates: parses them and checks whether they are valid for a host.
//!
//! Pure; the time is an argument. The format is OpenSSH PROTOCOL.certkeys. The handshake has
//! already proved that the host has the private key.

#![warn(clippy::indexing_slicing)]

use openssl::bn::BigNum;
use openssl::ec::EcGroup;
use openssl::ec::EcKey;
use openssl::ec::EcPoint;
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::hash::hash;
use openssl::nid::Nid;
use openssl::pkey::Id;
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use openssl::sign::Verifier;

use super::key_type;
use super::public_key::is_canonical;
use super::public_key::rsa_bits;
use super::wire::Reader;
use super::wire::Short;

/// The suffix of the supported certificate types.
const SUFFIX: &str = "-cert-v01@openssh.com";

/// The certificate type for hosts; 1 is for users.
const FOR_HOST: u32 = 2;

/// The default of `CASignatureAlgorithms` in `ssh_config(5)` of OpenSSH 9.2, without the algorithms
/// of security keys, which are not supported here.
pub const DEFAULT_CA_ALGORITHMS: [&str; 6] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
];

/// OpenSSH sshkey.c `SSHKEY_CERT_MAX_PRINCIPALS`.
const MAX_PRINCIPALS: usize = 256;

/// A parsed certificate, not checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The certified public key, in wire form.
    pub key: Vec<u8>,
    /// The public key of the authority, in wire form.
    pub authority: Vec<u8>,
    pub serial: u64,
    pub id: Vec<u8>,
    kind: u32,
    principals: Vec<Vec<u8>>,
    valid_after: u64,
    valid_before: u64,
    has_critical_options: bool,
    /// The bytes that the signature covers.
    signed: Vec<u8>,
    signature: Vec<u8>,
}

/// Why a certificate is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    #[error("it is not for hosts")]
    Kind,
    #[error("it is not valid yet")]
    Early,
    #[error("it has expired")]
    Expired,
    #[error("it is not for a host of this name")]
    Name,
    #[error("it has critical options, which no host certificate may have")]
    Options,
    #[error("its signature algorithm is not allowed or not supported")]
    Algorithm,
    #[error("the RSA key of its authority is shorter than RequiredRSASize")]
    Short,
    #[error("its signature is wrong")]
    Signature,
}

/// Why no certificate is accepted for a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("it shows none that scpfs can read")]
    NoCertificate,
    #[error("the authority of its certificate is another")]
    OtherAuthority,
    #[error("its certificate is invalid: {0}")]
    Invalid(Flaw),
}

/// Returns whether a public key in wire form is a certificate.
pub fn is_certificate(blob: &[u8]) -> bool {
    key_type(blob).is_some_and(|kind| kind.ends_with(SUFFIX))
}

impl Certificate {
    /// Parses a certificate; `None` if it is malformed or of an unsupported type.
    pub fn parse(blob: &[u8]) -> Option<Self> {
        Self::read(blob).ok().flatten()
    }

    fn read(blob: &[u8]) -> Result<Option<Self>, Short> {
        let Some(kind) = key_type(blob) else {
            return Ok(None);
        };
        let Some(plain) = kind.strip_suffix(SUFFIX) else {
            return Ok(None);
        };
        let n_fields = match plain {
            "ssh-ed25519" => 1,
            "ssh-rsa" => 2,
            _ if plain.starts_with("ecdsa-sha2-nistp") => 2,
            _ => return Ok(None),
        };
        let mut rest = Reader(blob);
        rest.string()?;
        let _nonce = rest.string()?;
        let mut key = Vec::new();
        put_string(&mut key, plain.as_bytes());
        for _ in 0..n_fields {
            put_string(&mut key, rest.string()?);
        }
        let serial = rest.long()?;
        let kind = rest.number()?;
        let id = rest.string()?.to_vec();
        let principals = rest.strings()?;
        let (valid_after, valid_before) = (rest.long()?, rest.long()?);
        let critical_options = rest.strings()?;
        let extensions = rest.strings()?;
        let _reserved = rest.string()?;
        let authority = rest.string()?.to_vec();
        let signed = blob.get(..blob.len() - rest.0.len()).unwrap_or_default();
        let signature = rest.string()?.to_vec();
        // PROTOCOL.certkeys: the key of an authority is never a certificate itself.
        let is_whole = rest.0.is_empty() && !is_certificate(&authority);
        // As OpenSSH sshkey.c cert_parse(): each option is a name followed by a value.
        let is_well_formed = principals.len() <= MAX_PRINCIPALS
            && critical_options.len().is_multiple_of(2)
            && extensions.len().is_multiple_of(2)
            && !id.contains(&0)
            && principals.iter().all(|name| !name.contains(&0));
        let is_whole = is_whole && is_well_formed && is_canonical(&authority) == Some(true);
        Ok(is_whole.then(|| Self {
            key,
            authority,
            serial,
            id,
            kind,
            principals,
            valid_after,
            valid_before,
            has_critical_options: !critical_options.is_empty(),
            signed: signed.to_vec(),
            signature,
        }))
    }

    /// Checks everything except whether the authority is trusted, as OpenSSH sshkey.c
    /// `sshkey_cert_check_host()` does. Unlike OpenSSH 9.2, it refuses a certificate without
    /// principals instead of accepting it for every host.
    ///
    /// `name` is the host name without a port, `now` is in seconds since 1970. An authority may
    /// sign with `algorithms` only, and its key must have at least `min_rsa_bits` if it is an RSA
    /// key.
    ///
    /// # Errors
    /// The first problem found.
    pub fn check(
        &self,
        name: &str,
        now: u64,
        algorithms: &[String],
        min_rsa_bits: u32,
    ) -> Result<(), Flaw> {
        if self.kind != FOR_HOST {
            return Err(Flaw::Kind);
        }
        if now < self.valid_after {
            return Err(Flaw::Early);
        }
        if now >= self.valid_before {
            return Err(Flaw::Expired);
        }
        if !self.principals.iter().any(|it| it == name.as_bytes()) {
            return Err(Flaw::Name);
        }
        if self.has_critical_options {
            return Err(Flaw::Options);
        }
        let mut signature = Reader(&self.signature);
        let (Ok(algorithm), Ok(value)) = (signature.string(), signature.string()) else {
            return Err(Flaw::Signature);
        };
        let algorithm = std::str::from_utf8(algorithm).map_err(|_| Flaw::Algorithm)?;
        let is_allowed = if algorithms.is_empty() {
            DEFAULT_CA_ALGORITHMS.contains(&algorithm)
        } else {
            algorithms.iter().any(|it| it == algorithm)
        };
        if !is_allowed {
            return Err(Flaw::Algorithm);
        }
        if !signature.0.is_empty() {
            return Err(Flaw::Signature);
        }
        if rsa_bits(&self.authority).is_some_and(|n| n < min_rsa_bits) {
            return Err(Flaw::Short);
        }
        match verify(&self.authority, algorithm, &self.signed, value) {
            Ok(Some(true)) => Ok(()),
            Ok(None) => Err(Flaw::Algorithm),
            Ok(Some(false)) | Err(_) => Err(Flaw::Signature),
        }
    }
}

fn put_string(to: &mut Vec<u8>, value: &[u8]) {
    // The value was read from a string with a 32-bit length, so this cannot overflow.
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    to.extend(len.to_be_bytes());
    to.extend(value);
}

/// The signature or the key is malformed, so that the signature cannot be checked.
#[derive(Debug)]
struct Damaged;

impl From<Short> for Damaged {
    fn from(_: Short) -> Self {
        Self
    }
}

impl From<ErrorStack> for Damaged {
    fn from(_: ErrorStack) -> Self {
        Self
    }
}

/// Returns whether a signature is valid; `None` if the algorithm does not match the key or is not
/// supported.
fn verify(
    key: &[u8],
    algorithm: &str,
    data: &[u8],
    signature: &[u8],
) -> Result<Option<bool>, Damaged> {
    let kind = key_type(key).ok_or(Damaged)?;
    let mut fields = Reader(key);
    fields.string()?;
    let is_right = match (kind.as_str(), algorithm) {
        ("ssh-ed25519", "ssh-ed25519") => {
            let key = PKey::public_key_from_raw_bytes(fields.string()?, Id::ED25519)?;
            Verifier::new_without_digest(&key)?.verify_oneshot(signature, data)?
        }
        ("ssh-rsa", "rsa-sha2-256" | "rsa-sha2-512") => {
            let exponent = BigNum::from_slice(fields.string()?)?;
            let modulus = BigNum::from_slice(fields.string()?)?;
            let key = Rsa::from_public_components(modulus, exponent)?;
            let digest = if algorithm == "rsa-sha2-256" {
                MessageDigest::sha256()
            } else {
                MessageDigest::sha512()
            };
            let key = PKey::from_rsa(key)?;
            Verifier::new(digest, &key)?.verify_oneshot(signature, data)?
        }
        _ if kind == algorithm => {
            let (curve, digest) = match algorithm {
                "ecdsa-sha2-nistp256" => (Nid::X9_62_PRIME256V1, MessageDigest::sha256()),
                "ecdsa-sha2-nistp384" => (Nid::SECP384R1, MessageDigest::sha384()),
                "ecdsa-sha2-nistp521" => (Nid::SECP521R1, MessageDigest::sha512()),
                _ => return Ok(None),
            };
            let name = algorithm.strip_prefix("ecdsa-sha2-").unwrap_or_default();
            if fields.string()? != name.as_bytes() {
                return Err(Damaged);
            }
            let group = EcGroup::from_curve_name(curve)?;
            let mut context = openssl::bn::BigNumContext::new()?;
            let point = EcPoint::from_bytes(&group, fields.string()?, &mut context)?;
            let key = EcKey::from_public_key(&group, &point)?;
            key.check_key()?;
            let mut numbers = Reader(signature);
            let (r, s) = (numbers.string()?, numbers.string()?);
            if !numbers.0.is_empty() {
                return Err(Damaged);
            }
            let (r, s) = (BigNum::from_slice(r)?, BigNum::from_slice(s)?);
            let signature = EcdsaSig::from_private_components(r, s)?;
            signature.verify(&hash(digest, data)?, &key)?
        }
        _ => return Ok(None),
    };
    if fields.0.is_empty() {
        Ok(Some(is_right))
    } else {
        Err(Damaged)
    }
}
