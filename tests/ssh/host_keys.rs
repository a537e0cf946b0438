#![cfg(test)]
//! Which hosts are trusted.

use std::fs;
use std::path::PathBuf;

use scpfs::transport::Error;
use scpfs::transport::known_hosts::Refusal;
use scpfs::transport::settings::Settings;
use scpfs::transport::settings::StrictHostKeyChecking;

use crate::script::Script;
use crate::script::attended;
use crate::script::unattended;
use crate::script::whoami;
use crate::sshd::Options;
use crate::sshd::Sshd;
use crate::sshd::command;
use crate::sshd::keygen;
use crate::sshd::run;

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
    let Some(sshd) = Sshd::start(Options::default()) else {
        return;
    };
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

    let Some(sshd) = Sshd::start(Options::default()) else {
        return;
    };
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
    let Some(sshd) = Sshd::start(Options::default()) else {
        return;
    };
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
    let Some(sshd) = Sshd::start(Options::default()) else {
        return;
    };
    // The last line has no end.
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
fn a_host_that_no_file_can_remember_is_asked_about_once() {
    let Some(sshd) = Sshd::start(Options::default()) else {
        return;
    };
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
    let Some(sshd) = Sshd::start(Options::default()) else {
        return;
    };
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
    let Some(sshd) = Sshd::start(options) else {
        return;
    };
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
    let Some(sshd) = Sshd::start(Options::default()) else {
        return;
    };
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
    let Some(sshd) = Sshd::start(Options::default()) else {
        return;
    };
    let key = host_key(&sshd, "ecdsa");
    let (settings, _) = knowing(&sshd, &format!("[127.0.0.1]:{} {key}", sshd.port()));
    assert_eq!(whoami(&unattended(settings)).unwrap(), sshd.user());
}

#[test]
fn a_known_key_of_another_type_makes_a_host_unknown_but_not_changed() {
    let Some(sshd) = Sshd::start(Options::default()) else {
        return;
    };
    let key = other_key(&sshd, "rsa");
    let (settings, _) = knowing(&sshd, &format!("[127.0.0.1]:{} {key}", sshd.port()));
    match refusal(settings) {
        Refusal::Unknown { other_kinds, .. } => assert_eq!(other_kinds, ["ssh-rsa"]),
        refusal => panic!("{refusal}"),
    }
}

#[test]
fn names_without_a_port_and_aliases_are_looked_up_as_openssh_does() {
    let Some(sshd) = Sshd::start(Options::default()) else {
        return;
    };
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
