#![cfg(test)]
//! Host certificates.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use scpfs::ssh::Error;
use scpfs::ssh::known_hosts::Refusal;
use scpfs::ssh::known_hosts::certificate::Certificate;
use scpfs::ssh::known_hosts::public_key::MIN_RSA_BITS;
use scpfs::ssh::settings::Settings;
use scpfs::ssh::settings::StrictHostKeyChecking;
use scpfs_testing::or_skip;
use scpfs_testing::sshd::Options;
use scpfs_testing::sshd::Sshd;
use scpfs_testing::sshd::command;
use scpfs_testing::sshd::keygen;
use scpfs_testing::sshd::run;

use crate::script::Script;
use crate::script::attended;
use crate::script::unattended;
use crate::script::whoami;

/// Arguments of ssh-keygen for a valid host certificate.
const GOOD: &[&str] = &["-h", "-n", "127.0.0.1", "-z", "7"];

fn authority(sshd: &Sshd, kind: &str) -> PathBuf {
    let path = sshd.dir().join(format!("authority_{kind}"));
    if !path.exists() {
        keygen(&path, kind, "");
    }
    path
}

fn public(path: &std::path::Path) -> String {
    fs::read_to_string(path.with_extension("pub")).unwrap()
}

/// Signs the Ed25519 key of the host, and configures the server to present the certificate.
fn certify(sshd: &mut Sshd, authority: &std::path::Path, args: &[&str]) {
    let certificate = sshd.dir().join("host_ed25519-cert.pub");
    run(command("ssh-keygen")
        .args(["-q", "-I", "the id", "-s"])
        .arg(authority)
        .args(args)
        .arg(sshd.dir().join("host_ed25519.pub")));
    let config = sshd.dir().join("sshd_config");
    let text = fs::read_to_string(&config).unwrap();
    if !text.contains("HostCertificate") {
        let line = format!("HostCertificate {}\n{text}", certificate.display());
        fs::write(config, line).unwrap();
    }
    sshd.restart();
}

/// Settings with `text` as the only known-hosts file.
fn knowing(sshd: &Sshd, text: &str) -> Settings {
    let path = sshd.dir().join("authorities");
    fs::write(&path, text).unwrap();
    Settings {
        user_known_hosts_files: vec![path],
        strict: StrictHostKeyChecking::Yes,
        ..sshd.settings()
    }
}

fn refusal(settings: Settings) -> Refusal {
    match whoami(&unattended(settings)) {
        Err(Error::HostKey(refusal)) => refusal,
        result => panic!("{result:?}"),
    }
}

#[test]
fn a_host_with_a_certificate_of_a_known_authority_is_known() {
    // Regression: the client did not request certificates, so the host was unknown.
    let mut sshd = or_skip!(Sshd::start(Options::default()));
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let authority = authority(&sshd, kind);
        certify(&mut sshd, &authority, GOOD);
        let key = public(&authority);
        for name in [
            format!("[127.0.0.1]:{}", sshd.port()),
            "127.0.0.*".to_owned(),
        ] {
            let settings = knowing(&sshd, &format!("@cert-authority {name} {key}"));
            let transport = unattended(settings);
            assert_eq!(whoami(&transport).unwrap(), sshd.user(), "{kind} {name}");
            // The pinned key is the host key, not the certificate.
            let (shown, is_known) = transport.host_key().unwrap();
            assert_eq!(shown.fingerprint, sshd.fingerprint("ed25519"));
            assert!(is_known);
        }
    }
    let named = Settings {
        host_key_alias: Some("127.0.0.1".to_owned()),
        ..knowing(
            &sshd,
            &format!(
                "@cert-authority 127.0.0.1 {}",
                public(&authority(&sshd, "rsa"))
            ),
        )
    };
    assert_eq!(whoami(&unattended(named)).unwrap(), sshd.user());
    assert!(
        !sshd
            .dir()
            .join("authorities")
            .metadata()
            .unwrap()
            .permissions()
            .readonly()
    );
}

#[test]
fn invalid_host_certificate_is_refused_without_a_prompt() {
    let mut sshd = or_skip!(Sshd::start(Options::default()));
    let (trusted, other) = (authority(&sshd, "rsa"), authority(&sshd, "ed25519"));
    let line = format!("@cert-authority * {}", public(&trusted));
    for (signer, args, why) in [
        (&other, GOOD, "the authority of its certificate is another"),
        (
            &trusted,
            &["-h", "-n", "box"][..],
            "not for a host of this name",
        ),
        (&trusted, &["-h"], "not for a host of this name"),
        (
            &trusted,
            &["-h", "-n", "127.0.0.1", "-V", "20200101:20200102"],
            "it has expired",
        ),
        (
            &trusted,
            &["-h", "-n", "127.0.0.1", "-V", "20900101:20910101"],
            "it is not valid yet",
        ),
        (
            &trusted,
            &["-h", "-n", "127.0.0.1", "-t", "ssh-rsa"],
            "its signature algorithm is not allowed or not supported",
        ),
    ] {
        certify(&mut sshd, signer, args);
        let text = refusal(knowing(&sshd, &line)).to_string();
        assert!(text.contains(why), "{args:?}: {text}");
        let script = Script::new(&["yes"]);
        let asking = Settings {
            strict: StrictHostKeyChecking::Ask,
            ..knowing(&sshd, &line)
        };
        assert!(whoami(&attended(asking, &script)).is_err());
        assert_eq!(script.n_questions(), 0);
        // The host key without its certificate is still accepted if it is known.
        let key = fs::read_to_string(sshd.dir().join("host_ed25519.pub")).unwrap();
        let known = knowing(&sshd, &format!("{line}127.0.0.1 {key}"));
        assert_eq!(whoami(&unattended(known)).unwrap(), sshd.user());
    }
}

#[test]
fn a_revoked_certificate_or_authority_is_refused() {
    let mut sshd = or_skip!(Sshd::start(Options::default()));
    let authority = authority(&sshd, "ed25519");
    certify(&mut sshd, &authority, GOOD);
    let key = public(&authority);
    let line = format!("@cert-authority * {key}");
    let revoked = refusal(knowing(&sshd, &format!("{line}@revoked * {key}")));
    assert!(
        matches!(revoked, Refusal::Revoked { line: 2, .. }),
        "{revoked}"
    );
    let file = sshd.dir().join("revoked");
    let settings = Settings {
        revoked_host_keys: Some(file.clone()),
        ..knowing(&sshd, &line)
    };
    fs::write(&file, &key).unwrap();
    let refused = refusal(settings.clone());
    assert!(
        matches!(refused, Refusal::RevokedByFile { .. }),
        "{refused}"
    );
    // A certificate in the list revokes its key.
    let certificate = fs::read_to_string(sshd.dir().join("host_ed25519-cert.pub")).unwrap();
    fs::write(&file, &certificate).unwrap();
    let refused = refusal(settings.clone());
    assert!(
        matches!(refused, Refusal::RevokedByFile { .. }),
        "{refused}"
    );
    let by_line = refusal(knowing(&sshd, &format!("{line}@revoked * {certificate}")));
    assert!(
        matches!(by_line, Refusal::Revoked { line: 2, .. }),
        "{by_line}"
    );
    // A line for one port does not override the revocation of the authority for all ports.
    let other = public(&self::authority(&sshd, "ecdsa"));
    let name = format!("[127.0.0.1]:{}", sshd.port());
    let text = format!("@cert-authority 127.* {key}@revoked 127.* {key}{name} {other}");
    let by_name = refusal(knowing(&sshd, &text));
    assert!(matches!(by_name, Refusal::Revoked { .. }), "{by_name}");
    let text = by_name.to_string();
    assert!(text.contains("the authority of"), "{text}");
    knowing(&sshd, &line);
    let spec = sshd.dir().join("spec");
    for (words, is_revoked) in [
        ("serial: 7", true),
        ("serial: 5-9", true),
        ("serial: 1-6\nserial: 8\nserial: 20-1000000", false),
        // ssh-keygen writes these serial numbers as a bitmap.
        (
            "serial: 1\nserial: 3\nserial: 7\nserial: 9\nserial: 11\nserial: 12",
            true,
        ),
        (
            "serial: 1\nserial: 3\nserial: 8\nserial: 9\nserial: 11\nserial: 12",
            false,
        ),
        ("id: the id", true),
        ("id: another", false),
    ] {
        fs::write(&spec, format!("{words}\n")).unwrap();
        run(command("ssh-keygen")
            .arg("-ks")
            .arg(authority.with_extension("pub"))
            .arg("-f")
            .arg(&file)
            .arg(&spec));
        let result = whoami(&unattended(settings.clone()));
        assert_eq!(result.is_err(), is_revoked, "{words}: {result:?}");
    }
}

#[test]
fn no_byte_of_a_certificate_can_be_changed() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    for kind in ["ed25519", "ecdsa", "rsa"] {
        run(command("ssh-keygen")
            .args(["-q", "-I", "id", "-s"])
            .arg(authority(&sshd, kind))
            .args(GOOD)
            .arg(sshd.dir().join("host_ecdsa.pub")));
        let text = fs::read_to_string(sshd.dir().join("host_ecdsa-cert.pub")).unwrap();
        let blob = STANDARD.decode(text.split(' ').nth(1).unwrap()).unwrap();
        let check = |blob: &[u8], name: &str| {
            Certificate::parse(blob).map(|it| it.check(name, now, &[], MIN_RSA_BITS))
        };
        assert_eq!(check(&blob, "127.0.0.1"), Some(Ok(())), "{kind}");
        assert!(matches!(check(&blob, "box"), Some(Err(_))));
        for idx in 0..blob.len() {
            let mut changed = blob.clone();
            changed[idx] ^= 1;
            assert!(
                !matches!(check(&changed, "127.0.0.1"), Some(Ok(()))),
                "{kind} {idx}"
            );
            assert_eq!(Certificate::parse(&blob[..idx]), None);
        }
        assert_eq!(Certificate::parse(&[&blob[..], b"x"].concat()), None);
    }
}
