//! Checks that public keys in SSH wire form have their canonical encoding, so that keys can be
//! compared as bytes.
//!
//! libssh2 accepts more encodings than OpenSSH: an RSA key with the type `rsa-sha2-512`, numbers
//! with leading zeros, compressed curve points. An attacker could use them to hide a revoked key.

#![warn(clippy::indexing_slicing)]

use super::key_type;
use super::wire::Reader;
use super::wire::Short;

/// The smallest RSA key in bits that OpenSSH accepts; `RequiredRSASize` cannot lower it.
pub const MIN_RSA_BITS: u32 = 1024;

/// Returns whether a public key has OpenSSH's encoding; `None` for unsupported key types.
pub fn is_canonical(blob: &[u8]) -> Option<bool> {
    let kind = key_type(blob)?;
    let fields = match kind.as_str() {
        "ssh-ed25519" => read(blob, is_ed25519),
        "ssh-rsa" => read(blob, |rest| {
            Ok(rest.number_of_any_size()? & rest.number_of_any_size()?)
        }),
        "ssh-dss" => read(blob, |rest| {
            let mut is_right = true;
            for _ in 0..4 {
                is_right &= rest.number_of_any_size()?;
            }
            Ok(is_right)
        }),
        "ecdsa-sha2-nistp256" => read(blob, |rest| is_point(rest, b"nistp256", 32)),
        "ecdsa-sha2-nistp384" => read(blob, |rest| is_point(rest, b"nistp384", 48)),
        "ecdsa-sha2-nistp521" => read(blob, |rest| is_point(rest, b"nistp521", 66)),
        _ => return None,
    };
    Some(fields.unwrap_or(false))
}

/// Returns the size of an RSA key in bits; `None` for other keys.
pub fn rsa_bits(blob: &[u8]) -> Option<u32> {
    let mut rest = Reader(blob);
    if rest.string().ok()? != b"ssh-rsa" {
        return None;
    }
    rest.string().ok()?;
    let modulus = rest.string().ok()?;
    let n_zeros = modulus.iter().take_while(|&&byte| byte == 0).count();
    let digits = modulus.get(n_zeros..)?;
    let first = digits.first().map_or(0, |byte| byte.leading_zeros());
    u32::try_from(digits.len() * 8).ok()?.checked_sub(first)
}

/// Checks the fields behind the type of a key; false if bytes are left over.
fn read(
    blob: &[u8],
    fields: impl FnOnce(&mut Reader<'_>) -> Result<bool, Short>,
) -> Result<bool, Short> {
    let mut rest = Reader(blob);
    rest.string()?;
    Ok(fields(&mut rest)? && rest.0.is_empty())
}

fn is_ed25519(rest: &mut Reader<'_>) -> Result<bool, Short> {
    Ok(rest.string()?.len() == 32)
}

/// Reads the name of a curve and a point; returns whether they match and the point is uncompressed.
fn is_point(rest: &mut Reader<'_>, curve: &[u8], n_bytes: usize) -> Result<bool, Short> {
    let is_curve = rest.string()? == curve;
    let point = rest.string()?;
    Ok(is_curve && point.len() == 1 + 2 * n_bytes && point.first() == Some(&4))
}

impl Reader<'_> {
    /// Reads an `mpint` (RFC 4251); returns whether it is positive and has no superfluous leading
    /// byte.
    fn number_of_any_size(&mut self) -> Result<bool, Short> {
        Ok(match self.string()? {
            [0, second, ..] => *second >= 0x80,
            [first, ..] => (1..0x80).contains(first),
            [] => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(fields: &[&[u8]]) -> Vec<u8> {
        let string = |field: &&[u8]| {
            let len = u32::try_from(field.len()).unwrap();
            [&len.to_be_bytes()[..], field].concat()
        };
        fields.iter().flat_map(string).collect()
    }

    #[test]
    fn a_key_has_one_encoding() {
        let (modulus, exponent) = ([&[0, 0x80][..], &[1; 127]].concat(), [1, 0, 1]);
        let point = [&[4][..], &[7; 64]].concat();
        let right: [&[&[u8]]; 3] = [
            &[b"ssh-ed25519", &[7; 32]],
            &[b"ssh-rsa", &exponent, &modulus],
            &[b"ecdsa-sha2-nistp256", b"nistp256", &point],
        ];
        for fields in right {
            let key = blob(fields);
            assert_eq!(is_canonical(&key), Some(true), "{fields:?}");
            let longer = [&key[..], b"x"].concat();
            assert_eq!(is_canonical(&longer), Some(false), "{fields:?}");
            let shorter = &key[..key.len() - 1];
            assert_eq!(is_canonical(shorter), Some(false), "{fields:?}");
        }
        let zeros = [&[0][..], &modulus].concat();
        let compressed = [&[2][..], &[7; 32]].concat();
        let wrong: [&[&[u8]]; 8] = [
            &[b"ssh-ed25519", &[7; 31]],
            &[b"ssh-rsa", &exponent, &zeros],
            &[b"ssh-rsa", &[0, 1, 0, 1], &modulus],
            // Negative.
            &[b"ssh-rsa", &exponent, &modulus[1..]],
            &[b"ssh-rsa", b"", &modulus],
            &[b"ecdsa-sha2-nistp256", b"nistp256", &compressed],
            &[b"ecdsa-sha2-nistp256", b"nistp384", &point],
            &[b"ssh-dss", &exponent, &exponent, &exponent],
        ];
        for fields in wrong {
            assert_eq!(is_canonical(&blob(fields)), Some(false), "{fields:?}");
        }
        // libssh2 takes these for RSA keys.
        for kind in [&b"rsa-sha2-512"[..], b"rsa-sha2-256"] {
            assert_eq!(is_canonical(&blob(&[kind, &exponent, &modulus])), None);
        }
        assert_eq!(is_canonical(b""), None);
    }

    #[test]
    fn the_size_of_an_rsa_key_is_that_of_its_modulus() {
        for (modulus, n_bits) in [
            (&[0, 0x80, 0][..], 16),
            (&[0x7f, 0], 15),
            (&[1], 1),
            (&[0, 0, 1], 1),
            (&[], 0),
        ] {
            let key = blob(&[b"ssh-rsa", &[3], modulus]);
            assert_eq!(rsa_bits(&key), Some(n_bits), "{modulus:?}");
        }
        assert_eq!(rsa_bits(&blob(&[b"ssh-ed25519", &[7; 32]])), None);
    }
}
