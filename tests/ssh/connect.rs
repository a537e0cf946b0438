#![cfg(test)]
//! Connecting, and its errors.

use std::net::TcpListener;
use std::path::Path;
use std::thread;
use std::time::Duration;

use scpfs::ssh::Error;
use scpfs::ssh::Transport as _;
use scpfs::ssh::resolve::resolve;
use scpfs::ssh::settings::Proxy;
use scpfs::ssh::settings::Settings;
use scpfs::ssh::ssh_config::LocalContext;
use scpfs::ssh::ssh_config::Query;
use scpfs_testing::or_skip;
use scpfs_testing::sshd::Options;
use scpfs_testing::sshd::Sshd;
use scpfs_testing::sshd::free_port;

use crate::script::unattended;
use crate::script::whoami;

fn to(host: &str, port: u16) -> Settings {
    Settings::new(host, port, "nobody")
}

fn query(sshd: &Sshd) -> Query {
    Query {
        host: "box".to_owned(),
        config_file: Some(sshd.ssh_config()),
        ..Query::default()
    }
}

fn local_context() -> LocalContext {
    LocalContext {
        home: "/nonexistent".into(),
        user: "me".to_owned(),
        uid: 0,
        hostname: "here".to_owned(),
        agent_socket: None,
        ssh_program: Some("/usr/bin/ssh".into()),
    }
}

#[test]
fn a_port_where_nothing_listens_is_a_refused_connection() {
    let port = free_port();
    let err = unattended(to("127.0.0.1", port)).connect().unwrap_err();
    assert!(matches!(err, Error::Connect { .. }), "{err}");
    assert!(
        err.to_string().contains(&format!("127.0.0.1 port {port}")),
        "{err}"
    );
}

#[test]
fn unresolvable_host_name_is_an_error_of_its_own() {
    let err = unattended(to("nowhere.invalid", 22)).connect().unwrap_err();
    assert!(matches!(err, Error::Resolve { .. }), "{err}");
}

#[test]
fn connecting_to_a_silent_server_times_out() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = to("127.0.0.1", silent.local_addr().unwrap().port());
    // Even a numeric address is resolved in a thread, which a busy machine may delay.
    settings.connect_timeout = Duration::from_secs(2);
    let err = unattended(settings).connect().unwrap_err();
    assert!(matches!(err, Error::Timeout { .. }), "{err}");
}

#[test]
fn server_of_another_protocol_is_an_error_of_its_own() {
    use std::io::Read as _;
    use std::io::Write as _;

    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        stream.write_all(b"220 mail.example ESMTP\r\n").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap_or_default();
    });
    let err = unattended(to("127.0.0.1", port)).connect().unwrap_err();
    assert!(matches!(err, Error::Handshake { .. }), "{err}");
    server.join().unwrap();
}

#[test]
fn settings_that_ssh_reports_lead_to_the_host() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let settings = resolve(&query(&sshd), &local_context()).unwrap();
    assert_eq!(
        (settings.port, settings.user.as_str()),
        (sshd.port(), sshd.user())
    );
    assert_eq!(settings.host_alias, "box");
    assert!(settings.identities_only && settings.identity_files[0].is_explicit);
    assert_eq!(whoami(&unattended(settings)).unwrap(), sshd.user());
}

#[test]
fn command_line_options_override_the_config_file() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let query = Query {
        user: Some("typed".to_owned()),
        port: Some(7),
        options: vec!["ConnectTimeout=3".to_owned()],
        ..query(&sshd)
    };
    let settings = resolve(&query, &local_context()).unwrap();
    assert_eq!((settings.port, settings.user.as_str()), (7, "typed"));
    assert_eq!(settings.connect_timeout, Duration::from_secs(3));
}

#[test]
fn an_option_that_ssh_does_not_know_is_reported_in_its_words() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let query = Query {
        options: vec!["Nonsense=1".to_owned()],
        ..query(&sshd)
    };
    let err = resolve(&query, &local_context()).unwrap_err();
    assert!(matches!(err, Error::Config { .. }), "{err}");
    assert!(err.to_string().to_lowercase().contains("nonsense"), "{err}");
}

#[test]
fn config_file_without_the_ssh_program_gives_the_same_settings() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let local = LocalContext {
        ssh_program: None,
        ..local_context()
    };
    let settings = resolve(&query(&sshd), &local).unwrap();
    assert_eq!(whoami(&unattended(settings)).unwrap(), sshd.user());
}

#[test]
fn a_proxy_command_carries_the_connection_and_ends_with_it() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let pid_file = sshd.dir().join("proxy pid");
    let query = Query {
        options: vec![format!(
            "ProxyCommand=sh -c 'echo $$ > \"{}\"; exec ssh -F {} -W %h:%p jump'",
            pid_file.display(),
            sshd.ssh_config().display()
        )],
        ..query(&sshd)
    };
    let settings = resolve(&query, &local_context()).unwrap();
    assert_eq!(whoami(&unattended(settings)).unwrap(), sshd.user());
    let pid = std::fs::read_to_string(pid_file).unwrap();
    assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists());
}

#[test]
fn a_jump_host_carries_the_connection() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let query = Query {
        options: vec!["ProxyJump=first,second".to_owned()],
        ..query(&sshd)
    };
    let settings = resolve(&query, &local_context()).unwrap();
    assert!(matches!(settings.proxy, Some(Proxy::Jump { .. })));
    // OpenSSH as well would apply this file to the jump hosts, and reach each of them through the
    // jump hosts.
    assert_eq!(whoami(&unattended(settings)).unwrap(), sshd.user());
    let log = sshd.log_with("Accepted publickey", 3);
    assert_eq!(log.matches("Accepted publickey").count(), 3);
}

#[test]
fn a_proxy_that_fails_is_named() {
    let settings = Settings {
        proxy: Some(Proxy::Command("false".to_owned())),
        ..to("127.0.0.1", 22)
    };
    let err = unattended(settings).connect().unwrap_err();
    assert!(
        matches!(&err, Error::Proxy { command, .. } if command == "false"),
        "{err}"
    );
}

#[test]
fn addresses_of_the_wrong_family_are_not_tried() {
    use scpfs::ssh::settings::AddressFamily;

    let sshd = or_skip!(Sshd::start(Options::default()));
    let mut settings = sshd.settings();
    settings.address_family = AddressFamily::Inet6;
    let err = whoami(&unattended(settings.clone())).unwrap_err();
    assert!(matches!(err, Error::Connect { .. }), "{err}");
    settings.address_family = AddressFamily::Inet;
    settings.bind_address = Some("127.0.0.1".to_owned());
    assert_eq!(whoami(&unattended(settings)).unwrap(), sshd.user());
}

#[test]
fn unknown_algorithm_names_are_passed_over_unless_there_is_nothing_else() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let mut settings = sshd.settings();
    settings.ciphers = names(&["rot13", "aes256-ctr"]);
    settings.macs = names(&["umac-64@openssh.com", "hmac-sha2-256"]);
    settings.kex_algorithms = names(&["sntrup761x25519-sha512", "curve25519-sha256"]);
    settings.compression = true;
    assert_eq!(whoami(&unattended(settings.clone())).unwrap(), sshd.user());
    settings.ciphers = names(&["rot13"]);
    let err = whoami(&unattended(settings)).unwrap_err();
    assert!(matches!(err, Error::Handshake { .. }), "{err}");
}

#[test]
fn login_works_if_a_start_up_file_prints() {
    let sshd = or_skip!(Sshd::start(
        Options::default().account(scpfs_testing::sshd::NOISY)
    ));
    let mut connection = unattended(sshd.settings()).connect().unwrap();
    assert!(
        connection.banner().starts_with("SSH-2.0-OpenSSH"),
        "{}",
        connection.banner()
    );
    let output = crate::channel::output(&mut *connection.exec("echo done").unwrap());
    let text = String::from_utf8(output).unwrap();
    assert!(
        text.contains("Welcome") && text.contains("done\n"),
        "{text}"
    );
}
