#![cfg(test)]
//! Authentication: keys, agents, passwords and prompts.

use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Stdio;

use scpfs::ssh::Error;
use scpfs::ssh::auth::Refusal;
use scpfs::ssh::libssh2::Libssh2;
use scpfs::ssh::settings::IdentityFile;
use scpfs::ssh::settings::Settings;
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

/// A throwaway ssh-agent. It ends when this is dropped.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("agent");
        let mut child = command("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The agent prints its socket when it listens.
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        Self { child, socket }
    }

    fn add(&self, key: &Path) {
        run(command("ssh-add")
            .arg("-q")
            .arg(key)
            .env("SSH_AUTH_SOCK", &self.socket));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn key(path: &Path) -> IdentityFile {
    IdentityFile {
        path: path.to_owned(),
        is_explicit: true,
    }
}

/// Creates a key that the server accepts.
fn accepted_key(sshd: &Sshd, name: &str, kind: &str, passphrase: &str) -> PathBuf {
    let path = sshd.dir().join(name);
    keygen(&path, kind, passphrase);
    sshd.authorize(&public(&path));
    path
}

/// Creates an RSA key in the PEM format of older releases of OpenSSH that the server accepts.
fn accepted_pem_key(sshd: &Sshd, passphrase: &str) -> PathBuf {
    let path = sshd.dir().join("pem");
    run(command("ssh-keygen")
        .args(["-q", "-t", "rsa", "-b", "2048", "-m", "PEM"])
        .args(["-N", passphrase, "-f"])
        .arg(&path));
    sshd.authorize(&public(&path));
    path
}

fn public(path: &Path) -> String {
    fs::read_to_string(path.with_extension("pub")).unwrap()
}

fn with_key(sshd: &Sshd, path: &Path) -> Settings {
    Settings {
        identity_files: vec![key(path)],
        ..sshd.settings()
    }
}

/// Returns the reason for which a login is refused; panics if it succeeds or fails otherwise.
fn refusal(transport: &Libssh2) -> Refusal {
    match whoami(transport) {
        Err(Error::Auth(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn login_with_keys_of_every_common_type() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let path = accepted_key(&sshd, kind, kind, "");
        assert_eq!(
            whoami(&unattended(with_key(&sshd, &path))).unwrap(),
            sshd.user(),
            "{kind}"
        );
    }
    let pem = accepted_pem_key(&sshd, "");
    assert_eq!(
        whoami(&unattended(with_key(&sshd, &pem))).unwrap(),
        sshd.user()
    );
}

#[test]
fn every_key_of_the_agent_is_tried() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let agent = Agent::start(sshd.dir());
    let other = sshd.dir().join("other");
    keygen(&other, "ed25519", "");
    agent.add(&other);
    agent.add(&sshd.client_key());
    let settings = Settings {
        identity_files: Vec::new(),
        identity_agent: Some(agent.socket.clone()),
        ..sshd.settings()
    };
    let transport = unattended(settings);
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    // The server logs the failed attempts of a login before this line.
    let accepted = "Accepted publickey";
    let log = sshd.log_with(accepted, 1);
    let before = log.matches("Failed publickey").count();
    assert!(before > 0, "the first key was wrong: {log}");
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    let log = sshd.log_with(accepted, 2);
    let after = log.matches("Failed publickey").count();
    assert_eq!(
        before, after,
        "a second connection begins with the key that was right"
    );
}

#[test]
fn identities_only_offers_nothing_else_of_the_agent() {
    let sshd = or_skip!(Sshd::start(Options::default().line("MaxAuthTries 2")));
    let agent = Agent::start(sshd.dir());
    for name in ["a", "b", "c"] {
        keygen(&sshd.dir().join(name), "ed25519", "");
        agent.add(&sshd.dir().join(name));
    }
    agent.add(&sshd.client_key());
    // The file has only the public key, as for a key on a smart card.
    let named = sshd.dir().join("named");
    fs::copy(sshd.dir().join("id.pub"), named.with_extension("pub")).unwrap();
    let settings = Settings {
        identity_files: vec![key(&named)],
        identity_agent: Some(agent.socket.clone()),
        identities_only: true,
        ..sshd.settings()
    };
    assert_eq!(whoami(&unattended(settings.clone())).unwrap(), sshd.user());

    let all = Settings {
        identities_only: false,
        identity_files: Vec::new(),
        ..settings
    };
    let err = refusal(&unattended(all));
    assert!(matches!(err, Refusal::TooManyAttempts { .. }), "{err}");
    assert!(err.to_string().contains("IdentitiesOnly"), "{err}");
}

#[test]
fn a_passphrase_is_asked_for_once_and_wrong_ones_may_be_corrected() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let path = accepted_key(&sshd, "encrypted", "ed25519", "open sesame");
    let script = Script::new(&["wrong", "open sesame"]);
    let transport = attended(with_key(&sshd, &path), &script);
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    assert_eq!(script.n_questions(), 2);
    assert!(script.shown.lock()[0].contains(path.to_str().unwrap()));
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    assert_eq!(script.n_questions(), 2);
}

#[test]
fn after_three_wrong_passphrases_the_login_fails() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let path = accepted_key(&sshd, "encrypted", "ecdsa", "open sesame");
    let script = Script::new(&["a", "b", "c", "d"]);
    let err = refusal(&attended(with_key(&sshd, &path), &script));
    assert!(matches!(err, Refusal::Denied { .. }), "{err}");
    assert_eq!(script.n_questions(), 3);
}

#[test]
fn no_passphrase_is_asked_for_a_key_that_the_host_does_not_want() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let path = sshd.dir().join("unwanted");
    keygen(&path, "ed25519", "open sesame");
    let script = Script::new(&[]);
    let err = refusal(&attended(with_key(&sshd, &path), &script));
    assert!(matches!(err, Refusal::Denied { .. }), "{err}");
    assert_eq!(script.n_questions(), 0);
}

#[test]
fn an_encrypted_key_of_the_older_format_works() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let path = accepted_pem_key(&sshd, "open sesame");
    fs::remove_file(path.with_extension("pub")).unwrap();
    let script = Script::new(&["wrong", "open sesame"]);
    assert_eq!(
        whoami(&attended(with_key(&sshd, &path), &script)).unwrap(),
        sshd.user()
    );
}

#[test]
fn encrypted_key_without_a_prompt_is_explained() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let path = accepted_key(&sshd, "encrypted", "ed25519", "open sesame");
    let err = refusal(&unattended(with_key(&sshd, &path)));
    assert!(matches!(err, Refusal::CannotAsk { .. }), "{err}");
    assert!(err.to_string().contains("passphrase"), "{err}");

    let batch = Settings {
        batch_mode: true,
        ..with_key(&sshd, &path)
    };
    let script = Script::new(&["open sesame"]);
    let err = refusal(&attended(batch, &script));
    assert!(matches!(err, Refusal::CannotAsk { .. }), "{err}");
    assert_eq!(script.n_questions(), 0);
}

#[test]
fn login_asks_nothing_after_prompts_were_silenced() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let path = accepted_key(&sshd, "encrypted", "ed25519", "open sesame");
    let script = Script::new(&["open sesame"]);
    let transport = attended(with_key(&sshd, &path), &script);
    transport.silence();
    let err = refusal(&transport);
    assert!(matches!(err, Refusal::CannotAsk { .. }), "{err}");
    assert_eq!(script.n_questions(), 0);
}

#[test]
fn a_key_that_others_can_read_is_not_used() {
    use std::os::unix::fs::PermissionsExt as _;

    let sshd = or_skip!(Sshd::start(Options::default()));
    fs::set_permissions(sshd.client_key(), fs::Permissions::from_mode(0o644)).unwrap();
    let err = refusal(&unattended(sshd.settings()));
    assert!(matches!(err, Refusal::Denied { .. }), "{err}");
}

#[test]
fn login_with_a_certificate_beside_its_key_or_by_name() {
    let probe = or_skip!(Sshd::start(Options::default()));
    let ca = probe.dir().join("ca");
    keygen(&ca, "ed25519", "");
    let line = format!("TrustedUserCAKeys {}.pub", ca.display());
    let sshd = or_skip!(Sshd::start(Options::default().line(&line)));
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let path = sshd.dir().join(kind);
        keygen(&path, kind, "");
        run(command("ssh-keygen")
            .arg("-q")
            .arg("-s")
            .arg(&ca)
            .args(["-I", "test", "-n", sshd.user()])
            .arg(path.with_extension("pub")));
        let settings = with_key(&sshd, &path);
        assert_eq!(
            whoami(&unattended(settings.clone())).unwrap(),
            sshd.user(),
            "{kind}"
        );

        let beside = sshd.dir().join(format!("{kind}-cert.pub"));
        let elsewhere = sshd.dir().join(format!("{kind}.certificate"));
        fs::rename(beside, &elsewhere).unwrap();
        assert!(whoami(&unattended(settings.clone())).is_err(), "{kind}");
        let named = Settings {
            certificate_files: vec![elsewhere],
            ..settings
        };
        assert_eq!(whoami(&unattended(named)).unwrap(), sshd.user(), "{kind}");
    }
}

fn with_password(sshd: &Sshd) -> Settings {
    Settings {
        identity_files: Vec::new(),
        ..sshd.settings()
    }
}

#[test]
fn a_password_is_asked_for_once() {
    let options = Options::default().line("PasswordAuthentication yes");
    let sshd = or_skip!(Sshd::start(options));
    let password = sshd.password();
    let script = Script::new(&["wrong", &password]);
    let transport = attended(with_password(&sshd), &script);
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    transport.silence();
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    assert_eq!(script.n_questions(), 2);
}

#[test]
fn wrong_passwords_are_asked_for_as_often_as_configured() {
    let options = Options::default().line("PasswordAuthentication yes");
    let sshd = or_skip!(Sshd::start(options));
    let script = Script::new(&["a", "b", "c", "d"]);
    let settings = Settings {
        password_prompts: 2,
        ..with_password(&sshd)
    };
    let err = refusal(&attended(settings, &script));
    assert!(matches!(err, Refusal::Denied { .. }), "{err}");
    assert_eq!(script.n_questions(), 2);

    let err = refusal(&unattended(with_password(&sshd)));
    assert!(matches!(err, Refusal::CannotAsk { .. }), "{err}");
    assert!(err.to_string().contains("ssh-copy-id"), "{err}");

    let err = refusal(&attended(with_password(&sshd), &Script::new(&[])));
    assert!(matches!(err, Refusal::NotAnswered { .. }), "{err}");
}

#[test]
fn a_password_that_stopped_working_is_not_asked_for_again() {
    let pam = "auth required pam_unix.so\naccount required pam_permit.so\n\
        session required pam_permit.so\n";
    let options = Options::default()
        .line("PasswordAuthentication yes")
        .pam(pam);
    let sshd = or_skip!(Sshd::start(options));
    let password = sshd.password();
    let script = Script::new(&[&password]);
    let transport = attended(with_password(&sshd), &script);
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    let deny = "auth required pam_deny.so\naccount required pam_permit.so\n";
    fs::write(sshd.dir().join("pam"), deny).unwrap();
    let err = refusal(&transport);
    assert!(matches!(err, Refusal::WouldAskAgain { .. }), "{err}");
    assert_eq!(script.n_questions(), 1);
}

#[test]
fn a_single_interactive_question_is_answered_again_from_memory() {
    let pam = "auth required pam_unix.so\naccount required pam_permit.so\n\
        session required pam_permit.so\n";
    let options = Options::default()
        .line("KbdInteractiveAuthentication yes")
        .pam(pam);
    let sshd = or_skip!(Sshd::start(options));
    let password = sshd.password();
    let script = Script::new(&["wrong", &password]);
    let transport = attended(with_password(&sshd), &script);
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    transport.silence();
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    assert_eq!(script.n_questions(), 2);
    assert!(script.shown.lock()[0].starts_with("(scpfs-test@127.0.0.1) Password"));
}

#[test]
fn several_interactive_questions_cannot_be_answered_again() {
    let pam = "auth required pam_unix.so\nauth optional pam_ftp.so\n\
        account required pam_permit.so\nsession required pam_permit.so\n";
    let options = Options::default()
        .line("KbdInteractiveAuthentication yes")
        .pam(pam);
    let sshd = or_skip!(Sshd::start(options));
    let password = sshd.password();
    let script = Script::new(&[&password, &password]);
    let transport = attended(with_password(&sshd), &script);
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    assert_eq!(script.n_questions(), 2);
    let err = refusal(&transport);
    assert!(matches!(err, Refusal::WouldAskAgain { .. }), "{err}");
    assert_eq!(script.n_questions(), 2);
}

#[test]
fn a_host_that_wants_a_key_and_a_password_gets_both() {
    let options = Options::default()
        .line("PasswordAuthentication yes")
        .line("AuthenticationMethods publickey,password");
    let sshd = or_skip!(Sshd::start(options));
    let password = sshd.password();
    let script = Script::new(&[&password]);
    let transport = attended(sshd.settings(), &script);
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    assert_eq!(whoami(&transport).unwrap(), sshd.user());
    assert_eq!(script.n_questions(), 1);
}

#[test]
fn a_refusal_says_what_was_tried_and_what_the_host_allows() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let settings = Settings {
        identity_files: Vec::new(),
        ..sshd.settings()
    };
    let text = whoami(&unattended(settings)).unwrap_err().to_string();
    assert!(
        text.contains("tried: nothing; the host allows: publickey"),
        "{text}"
    );
    assert!(text.contains(&format!(
        "ssh-copy-id -p {} scpfs-test@127.0.0.1",
        sshd.port()
    )));
}
