#![cfg(test)]
//! Verification of host keys: `known_hosts` and revocations.

use std::fs;
use std::path::PathBuf;

use scpfs::ssh::Error;
use scpfs::ssh::known_hosts::Refusal;
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

/// Settings with `text` as the only file of known hosts.
fn knowing(sshd: &Sshd, text: &str) -> (Settings, PathBuf) {
    let path = sshd.dir().join("my dir/known_hosts");
    if !text.is_empty() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let settings = Settings {
        user_known_hosts_files: vec![path.clone()],
        strict: StrictHostKeyChecking::Ask,
        ..sshd.settings()
    };
    (settings, path)
}

fn host_key(sshd: &Sshd, kind: &str) -> String {
    fs::read_to_string(sshd.dir().join(format!("host_{kind}.pub"))).unwrap()
}

/// A key that is not the server's.
fn other_key(sshd: &Sshd, kind: &str) -> String {
    let path = sshd.dir().join(format!("other_{kind}"));
    keygen(&path, kind, "");
    fs::read_to_string(path.with_extension("pub")).unwrap()
}

fn refusal(settings: Settings) -> Refusal {
    match whoami(&unattended(settings)).unwrap_err() {
        Error::HostKey(refusal) => refusal,
        err => panic!("{err}"),
    }
}

#[test]
fn an_unknown_host_is_refused_without_a_terminal() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let (settings, path) = knowing(&sshd, "");
    let refusal = refusal(settings);
    assert!(matches!(refusal, Refusal::Unknown { .. }), "{refusal}");
    let text = refusal.to_string();
    assert!(
        text.contains(&format!("ssh -p {} scpfs-test@127.0.0.1", sshd.port())),
        "{text}"
    );
    assert!(text.contains("accept-new"), "{text}");
    assert!(!path.exists());
}

#[test]
fn an_unknown_host_that_the_person_accepts_is_remembered() {
    use std::os::unix::fs::PermissionsExt as _;

    let sshd = or_skip!(Sshd::start(Options::default()));
    let (settings, path) = knowing(&sshd, "");
    let script = Script::new(&["yes"]);
    assert_eq!(
        whoami(&attended(settings.clone(), &script)).unwrap(),
        sshd.user()
    );
    assert!(script.shown.lock()[0].contains("SHA256:"));
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    run(command("ssh-keygen")
        .arg("-F")
        .arg(format!("[127.0.0.1]:{}", sshd.port()))
        .arg("-f")
        .arg(&path));
    assert_eq!(whoami(&unattended(settings)).unwrap(), sshd.user());
}

#[test]
fn an_unknown_host_that_the_person_declines_is_not_logged_in_to() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let (settings, path) = knowing(&sshd, "");
    let err = whoami(&attended(settings, &Script::new(&["no"]))).unwrap_err();
    assert!(
        matches!(err, Error::HostKey(Refusal::Declined { .. })),
        "{err}"
    );
    assert!(!path.exists());
    assert!(!sshd.log().contains("Accepted"));
}

#[test]
fn accept_new_remembers_with_a_hashed_name_and_keeps_what_is_there() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    // The last line has no newline.
    let (settings, path) = knowing(&sshd, "# a comment\nother ssh-rsa AAAA");
    let settings = Settings {
        strict: StrictHostKeyChecking::AcceptNew,
        hash_known_hosts: true,
        ..settings
    };
    assert_eq!(whoami(&unattended(settings.clone())).unwrap(), sshd.user());
    let text = fs::read_to_string(&path).unwrap();
    assert!(
        text.starts_with("# a comment\nother ssh-rsa AAAA\n|1|"),
        "{text}"
    );
    let strict = Settings {
        strict: StrictHostKeyChecking::Yes,
        ..settings
    };
    assert_eq!(whoami(&unattended(strict)).unwrap(), sshd.user());
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    run(command("ssh-keygen")
        .arg("-F")
        .arg(format!("[127.0.0.1]:{}", sshd.port()))
        .arg("-f")
        .arg(&path));
}

#[test]
fn unknown_host_is_asked_about_once_if_no_file_can_be_written() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let settings = Settings {
        user_known_hosts_files: vec!["/dev/null/known_hosts".into()],
        strict: StrictHostKeyChecking::Ask,
        ..sshd.settings()
    };
    let script = Script::new(&["yes"]);
    let transport = attended(settings, &script);
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    assert_eq!(script.n_questions(), 1);
}

#[test]
fn a_changed_key_is_refused_and_the_old_line_is_named() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let name = format!("[127.0.0.1]:{}", sshd.port());
    let old = other_key(&sshd, "ed25519");
    let (settings, path) = knowing(&sshd, &format!("# first\n{name} {old}"));
    for strict in [StrictHostKeyChecking::AcceptNew, StrictHostKeyChecking::Yes] {
        let refusal = refusal(Settings {
            strict,
            ..settings.clone()
        });
        assert!(matches!(&refusal, Refusal::Changed { file, line: 2, .. } if *file == path));
        let text = refusal.to_string();
        assert!(
            text.contains(&format!("ssh-keygen -R '{name}' -f '{}'", path.display())),
            "{text}"
        );
        assert!(text.contains("SHA256:"), "{text}");
    }
    assert!(!sshd.log().contains("Accepted"));
}

#[test]
fn a_changed_key_gets_no_password_even_where_checking_is_off() {
    let options = Options::default().line("PasswordAuthentication yes");
    let sshd = or_skip!(Sshd::start(options));
    let old = other_key(&sshd, "ed25519");
    let (settings, _) = knowing(&sshd, &format!("[127.0.0.1]:{} {old}", sshd.port()));
    let settings = Settings {
        strict: StrictHostKeyChecking::No,
        ..settings
    };
    assert_eq!(whoami(&unattended(settings.clone())).unwrap(), sshd.user());
    let script = Script::new(&[&sshd.password()]);
    let keyless = Settings {
        identity_files: Vec::new(),
        ..settings
    };
    assert!(whoami(&attended(keyless, &script)).is_err());
    assert_eq!(script.n_questions(), 0);
}

#[test]
fn a_revoked_key_is_refused_although_another_line_knows_it() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let key = host_key(&sshd, "ed25519");
    let text = format!("[127.0.0.1]:{} {key}@revoked * {key}", sshd.port());
    let (settings, path) = knowing(&sshd, &text);
    let settings = Settings {
        strict: StrictHostKeyChecking::No,
        ..settings
    };
    let refusal = refusal(settings);
    assert!(matches!(&refusal, Refusal::Revoked { file, line: 2, .. } if *file == path));
}

#[test]
fn the_server_is_asked_for_a_key_of_the_type_that_is_known() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let key = host_key(&sshd, "ecdsa");
    let (settings, _) = knowing(&sshd, &format!("[127.0.0.1]:{} {key}", sshd.port()));
    assert_eq!(whoami(&unattended(settings)).unwrap(), sshd.user());
}

/// Regression: if `known_hosts` had only keys of other types, a host key counted as unknown: an
/// attacker at the address of the host could present a key of another type, which was accepted with
/// `accept-new`, and got the password with `no`.
#[test]
fn a_key_of_another_type_than_the_known_one_is_a_changed_key() {
    let options = Options::default().line("PasswordAuthentication yes");
    let sshd = or_skip!(Sshd::start(options));
    let name = format!("[127.0.0.1]:{}", sshd.port());
    let line = format!("{name} {}", other_key(&sshd, "rsa"));
    let (settings, path) = knowing(&sshd, &line);
    for strict in [
        StrictHostKeyChecking::Yes,
        StrictHostKeyChecking::Ask,
        StrictHostKeyChecking::AcceptNew,
    ] {
        let settings = Settings {
            host_key_algorithms: vec!["ssh-ed25519".to_owned()],
            strict,
            ..settings.clone()
        };
        let refusal = refusal(settings);
        assert!(
            matches!(refusal, Refusal::Changed { line: 1, .. }),
            "{refusal}"
        );
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), line);
    let script = Script::new(&[&sshd.password()]);
    let unchecked = Settings {
        identity_files: Vec::new(),
        host_key_algorithms: vec!["ssh-ed25519".to_owned()],
        strict: StrictHostKeyChecking::No,
        ..settings
    };
    assert!(whoami(&attended(unchecked, &script)).is_err());
    assert_eq!(script.n_questions(), 0);
}

/// Regression: a line for the port hid a revocation for all ports, and a comment in Latin-1 hid its
/// whole line.
#[test]
fn a_revocation_counts_whatever_other_lines_say() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let (key, other) = (host_key(&sshd, "ed25519"), other_key(&sshd, "ed25519"));
    let name = format!("[127.0.0.1]:{}", sshd.port());
    let words: Vec<&str> = key.split_whitespace().collect();
    let in_latin_1 = [
        format!("{name} {key}@revoked * {} {} M", words[0], words[1]).as_bytes(),
        b"\xfcller\n",
    ]
    .concat();
    for text in [
        format!("@revoked 127.0.0.* {key}{name} {other}").into_bytes(),
        format!("@revoked 127.0.0.* {key}{name} {key}").into_bytes(),
        in_latin_1,
    ] {
        let (settings, path) = knowing(&sshd, "# nothing");
        fs::write(&path, &text).unwrap();
        let settings = Settings {
            strict: StrictHostKeyChecking::No,
            ..settings
        };
        let refusal = refusal(settings);
        assert!(matches!(refusal, Refusal::Revoked { .. }), "{refusal}");
    }
}

/// Regression: key sizes were not checked, and a list of algorithms with no known name permitted
/// all.
#[test]
fn a_host_key_that_is_too_short_or_not_allowed_is_refused() {
    let mut sshd = or_skip!(Sshd::start(Options::default()));
    let path = sshd.dir().join("host_rsa");
    keygen(&path, "rsa", "");
    let config = sshd.dir().join("sshd_config");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(config, format!("HostKey {}\n{text}", path.display())).unwrap();
    sshd.restart();
    let key = host_key(&sshd, "rsa");
    let (settings, _) = knowing(&sshd, &format!("[127.0.0.1]:{} {key}", sshd.port()));
    assert_eq!(whoami(&unattended(settings.clone())).unwrap(), sshd.user());
    let longer = Settings {
        required_rsa_bits: 16_384,
        ..settings.clone()
    };
    let error = whoami(&unattended(longer)).unwrap_err().to_string();
    assert!(error.contains("RequiredRSASize"), "{error}");
    let certified = Settings {
        host_key_algorithms: vec!["ssh-ed25519-cert-v01@openssh.com".to_owned()],
        ..settings
    };
    let error = whoami(&unattended(certified)).unwrap_err().to_string();
    assert!(error.contains("HostKeyAlgorithms"), "{error}");
}

#[test]
fn names_without_a_port_and_aliases_are_looked_up_as_openssh_does() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let key = host_key(&sshd, "ed25519");
    let (settings, path) = knowing(&sshd, &format!("127.0.0.1 {key}"));
    assert_eq!(whoami(&unattended(settings.clone())).unwrap(), sshd.user());
    fs::write(&path, format!("Router {key}")).unwrap();
    assert!(matches!(refusal(settings.clone()), Refusal::Unknown { .. }));
    let settings = Settings {
        host_key_alias: Some("router".to_owned()),
        ..settings
    };
    assert_eq!(whoami(&unattended(settings)).unwrap(), sshd.user());
}

#[test]
fn transport_pins_the_host_key_of_its_first_connection() {
    // Regression: if checking was off and no key was remembered, the transport logged in to the
    // second host.
    let mut sshd = or_skip!(Sshd::start(Options::default()));
    let unchecked = Settings {
        strict: StrictHostKeyChecking::No,
        user_known_hosts_files: vec!["/dev/null".into()],
        ..sshd.settings()
    };
    let transport = unattended(unchecked.clone());
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    let (first, is_known) = transport.host_key().unwrap();
    assert_eq!(first.fingerprint, sshd.fingerprint("ed25519"));
    assert!(!is_known);
    let keys = sshd.become_another_host();
    let pinned = |settings: &Settings| Settings {
        pinned_host_key: Some(first.clone()),
        ..settings.clone()
    };
    for (transport, is_running) in [
        (&transport, true),
        (&unattended(pinned(&unchecked)), false),
        (&unattended(pinned(&sshd.settings())), false),
    ] {
        let Err(Error::HostKey(refusal)) = whoami(transport) else {
            panic!("it was not refused");
        };
        let text = refusal.to_string();
        assert!(text.contains(&first.fingerprint), "{text}");
        assert!(text.contains(&sshd.fingerprint("ed25519")), "{text}");
        assert!(text.contains("-o accept_host_key=SHA256:"), "{text}");
        assert!(
            matches!(refusal, Refusal::Pinned { is_mounted, .. } if is_mounted == is_running),
            "{text}"
        );
    }
    assert!(!sshd.log().contains("Accepted"), "{}", sshd.log());
    let accepting = Settings {
        accept_host_key: Some(sshd.fingerprint("ed25519")),
        ..pinned(&unchecked)
    };
    assert_eq!(whoami(&unattended(accepting)).unwrap(), sshd.user());
    sshd.become_the_first_host(keys);
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
}

#[test]
fn transport_requests_the_type_of_the_pinned_key() {
    // Regression: the first type in the list was requested, even if a key of another type was
    // pinned.
    let sshd = or_skip!(Sshd::start(Options::default()));
    let settings = Settings {
        host_key_algorithms: vec!["ecdsa-sha2-nistp256".to_owned()],
        ..sshd.settings()
    };
    let transport = unattended(settings);
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    let (first, is_known) = transport.host_key().unwrap();
    assert_eq!(first.kind, "ecdsa-sha2-nistp256");
    assert!(is_known);
    let later = Settings {
        pinned_host_key: Some(first.clone()),
        ..sshd.settings()
    };
    let transport = unattended(later);
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    assert_eq!(transport.host_key().unwrap().0, first);
}

#[test]
fn a_key_in_the_file_of_revoked_keys_is_refused() {
    // Regression: the option was ignored.
    let sshd = or_skip!(Sshd::start(Options::default()));
    let file = sshd.dir().join("revoked");
    let settings = Settings {
        revoked_host_keys: Some(file.clone()),
        ..sshd.settings()
    };
    let make_krl = |keys: &str| {
        fs::write(sshd.dir().join("spec"), keys).unwrap();
        let spec = sshd.dir().join("spec");
        run(command("ssh-keygen").arg("-kf").arg(&file).arg(spec));
    };
    let (ours, others) = (host_key(&sshd, "ed25519"), other_key(&sshd, "ed25519"));
    for (what, is_revoked) in [(&ours, true), (&others, false)] {
        fs::write(&file, format!("# keys\n{others}{what}")).unwrap();
        let list = whoami(&unattended(settings.clone()));
        assert_eq!(list.is_err(), is_revoked, "{list:?}");
        for form in ["", "sha1: ", "sha256: "] {
            make_krl(&format!("{form}{what}"));
            let result = whoami(&unattended(settings.clone()));
            assert_eq!(result.is_err(), is_revoked, "{form}{what}: {result:?}");
        }
    }
    make_krl(&ours);
    let refused = refusal(settings.clone());
    assert!(
        matches!(refused, Refusal::RevokedByFile { .. }),
        "{refused}"
    );
    // An unreadable list might revoke any key, so every key is refused.
    let krl = fs::read(&file).unwrap();
    for bad in [&krl[..krl.len() - 1], b"no key\n"] {
        fs::write(&file, bad).unwrap();
        let refused = refusal(settings.clone());
        assert!(
            matches!(refused, Refusal::RevocationUnknown { .. }),
            "{refused}"
        );
    }
    fs::remove_file(&file).unwrap();
    let refused = refusal(settings);
    assert!(
        matches!(refused, Refusal::RevocationUnknown { .. }),
        "{refused}"
    );
    let log = sshd.log_with("Accepted publickey", 4);
    assert_eq!(log.matches("Accepted publickey").count(), 4, "{log}");
}

#[test]
fn a_key_that_is_revoked_while_mounted_opens_no_further_connection() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let key = host_key(&sshd, "ed25519");
    let name = format!("[127.0.0.1]:{}", sshd.port());
    let (settings, path) = knowing(&sshd, &format!("{name} {key}"));
    let transport = unattended(settings);
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    fs::write(&path, format!("{name} {key}@revoked {name} {key}")).unwrap();
    let result = whoami(&transport);
    assert!(
        matches!(result, Err(Error::HostKey(Refusal::Revoked { .. }))),
        "{result:?}"
    );
}

#[test]
fn missing_host_certificate_is_reported_without_a_prompt() {
    // Regression: the host counted as unknown, and the user was asked about a key that no file
    // contains.
    let sshd = or_skip!(Sshd::start(Options::default()));
    let authority = other_key(&sshd, "ed25519");
    let line = format!("@cert-authority [127.0.0.1]:{} {authority}", sshd.port());
    let (settings, path) = knowing(&sshd, &line);
    let script = Script::new(&["yes"]);
    let error = whoami(&attended(settings.clone(), &script)).unwrap_err();
    let Error::HostKey(refusal) = error else {
        panic!("{error}");
    };
    let text = refusal.to_string();
    assert!(
        text.contains(&format!("{}:1 (@cert-authority)", path.display())),
        "{text}"
    );
    assert!(
        text.contains("by a host certificate, but it shows none"),
        "{text}"
    );
    assert_eq!(script.n_questions(), 0);
    let accepting = Settings {
        strict: StrictHostKeyChecking::AcceptNew,
        ..settings
    };
    assert_eq!(whoami(&unattended(accepting)).unwrap(), sshd.user());
}
