//! Determines the settings for a host: runs `ssh -G`, or reads the configuration files if `ssh` is
//! not installed.
//!
//! Does the I/O for `ssh_config`, which converts the keywords to settings.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use ssh2_config::ParseRule;
use ssh2_config::SshConfig;

use super::Error;
use super::settings::Settings;
use super::ssh_config;
use super::ssh_config::LocalContext;
use super::ssh_config::Pairs;
use super::ssh_config::Query;
use super::ssh_config::algorithms;
use crate::process;

/// The time limit for `ssh -G`. It takes 10 ms, or longer if `Match exec` runs a program.
const SSH_LIMIT: Duration = Duration::from_secs(30);

/// Returns the settings that `ssh` would use for the same arguments.
///
/// Blocks for at most 30 s per output of `ssh -G`.
///
/// # Errors
/// The host or user name is invalid, or the configuration cannot be read or contains an error.
pub fn resolve(query: &Query, local: &LocalContext) -> Result<Settings, Error> {
    ssh_config::check_host(&query.host)?;
    if let Some(user) = &query.user {
        ssh_config::check_user(user)?;
    }
    let pairs = match &local.ssh_program {
        Some(program) => ask_ssh(program, query)?,
        None => read_files(query, local)?,
    };
    let settings = ssh_config::settings(&pairs, query, local)?;
    ssh_config::check_user(&settings.user)?;
    Ok(settings)
}

fn ask_ssh(program: &Path, query: &Query) -> Result<Pairs, Error> {
    let mut args: Vec<OsString> = vec!["-T".into(), "-G".into()];
    if let Some(file) = &query.config_file {
        args.extend(["-F".into(), file.into()]);
    }
    if let Some(port) = query.port {
        args.extend(["-p".into(), port.to_string().into()]);
    }
    if let Some(user) = &query.user {
        args.extend(["-l".into(), user.into()]);
    }
    for option in &query.options {
        args.extend(["-o".into(), option.into()]);
    }
    args.extend(["--".into(), query.host.as_str().into()]);
    let captured = process::capture(program, &args, SSH_LIMIT)
        .map_err(|err| config_error(&format!("{}: {err}", program.display())))?;
    if captured.code != Some(0) {
        let text = String::from_utf8_lossy(&captured.stderr);
        let text = text
            .split(['\r', '\n'])
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>();
        return Err(config_error(&text.join("; ")));
    }
    Ok(Pairs::parse(&String::from_utf8_lossy(&captured.stdout)))
}

/// Reads the configuration without `ssh`: the command line comes first, then the user's file, then
/// the system's.
fn read_files(query: &Query, local: &LocalContext) -> Result<Pairs, Error> {
    let mut pairs = Pairs::default();
    if let Some(port) = query.port {
        pairs.push("port", &port.to_string());
    }
    if let Some(user) = &query.user {
        pairs.push("user", user);
    }
    for option in &query.options {
        let (key, value) = ssh_config::split_option(option)?;
        pairs.push(&key, &value);
    }
    match &query.config_file {
        Some(file) if file.as_os_str() == "none" => {}
        Some(file) => read_file(file, query, local, &mut pairs)
            .map_err(|err| config_error(&format!("{}: {err}", file.display())))?,
        None => {
            for file in [local.home.join(".ssh/config"), "/etc/ssh/ssh_config".into()] {
                match read_file(&file, query, local, &mut pairs) {
                    Err(err) if err.kind() != io::ErrorKind::NotFound => {
                        return Err(config_error(&format!("{}: {err}", file.display())));
                    }
                    _ => {}
                }
            }
        }
    }
    pairs.expand_algorithms();
    Ok(pairs)
}

fn read_file(
    file: &Path,
    query: &Query,
    local: &LocalContext,
    pairs: &mut Pairs,
) -> io::Result<()> {
    let text = algorithms::expand_in_text(&fs::read(file)?);
    let has_match = text.split(|&byte| byte == b'\n').any(|line| {
        let word = line
            .trim_ascii_start()
            .split(|byte| b" \t=".contains(byte))
            .next();
        word.is_some_and(|word| word.eq_ignore_ascii_case(b"match"))
    });
    if has_match {
        log::warn!(
            "{}: Match blocks are ignored because the ssh program is not installed",
            file.display()
        );
    }
    let rules = ParseRule::ALLOW_UNKNOWN_FIELDS | ParseRule::ALLOW_UNSUPPORTED_FIELDS;
    let params = SshConfig::default()
        .home_dir(local.home.clone())
        .parse(&mut text.as_slice(), rules)
        .map_err(io::Error::other)?
        .query(&query.host);

    let mut add = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            pairs.push(key, &value);
        }
    };
    let flag = |on: bool| if on { "yes" } else { "no" }.to_owned();
    add("hostname", params.host_name);
    add("user", params.user);
    add("port", params.port.map(|port| port.to_string()));
    add("bindaddress", params.bind_address);
    add("compression", params.compression.map(flag));
    add(
        "connecttimeout",
        params
            .connect_timeout
            .map(|limit| limit.as_secs().to_string()),
    );
    add(
        "serveraliveinterval",
        params
            .server_alive_interval
            .map(|it| it.as_secs().to_string()),
    );
    add(
        "pubkeyauthentication",
        params.pubkey_authentication.map(flag),
    );
    add("proxyjump", params.proxy_jump.map(|hosts| hosts.join(",")));
    add(
        "certificatefile",
        params
            .certificate_file
            .map(|path| path.display().to_string()),
    );
    for path in params.identity_file.unwrap_or_default() {
        add("identityfile", Some(path.display().to_string()));
    }
    let algorithms = [
        ("ciphers", params.ciphers),
        ("macs", params.mac),
        ("kexalgorithms", params.kex_algorithms),
        ("hostkeyalgorithms", params.host_key_algorithms),
        ("casignaturealgorithms", params.ca_signature_algorithms),
    ];
    for (key, list) in algorithms {
        add(
            key,
            (!list.is_default()).then(|| list.algorithms().join(",")),
        );
    }
    for (key, words) in params
        .unsupported_fields
        .into_iter()
        .chain(params.ignored_fields)
    {
        add(&key, Some(words.join(" ")));
    }
    Ok(())
}

fn config_error(detail: &str) -> Error {
    Error::Config {
        detail: detail.escape_debug().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::settings::DEFAULT_CIPHERS;
    use crate::ssh::settings::Proxy;

    fn local(home: &Path) -> LocalContext {
        LocalContext {
            home: home.to_owned(),
            user: "me".to_owned(),
            uid: 1000,
            hostname: "desk".to_owned(),
            agent_socket: None,
            ssh_program: None,
        }
    }

    fn query(options: &[&str]) -> Query {
        Query {
            host: "box".to_owned(),
            config_file: Some("none".into()),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..Query::default()
        }
    }

    #[test]
    fn without_ssh_what_was_typed_comes_before_the_file() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join(".ssh")).unwrap();
        let text = "Host box\n  HostName box.net\n  User filed\n  Port 2200\n  \
            StrictHostKeyChecking accept-new\n  IdentityFile ~/.ssh/k_%h\n  \
            ProxyCommand nc %h %p\nMatch all\n  User matched\n";
        fs::write(home.path().join(".ssh/config"), text).unwrap();
        let query = Query {
            config_file: None,
            user: Some("typed".to_owned()),
            ..query(&["Port=2300", "Ciphers=+aes256-cbc"])
        };
        let settings = resolve(&query, &local(home.path())).unwrap();
        assert_eq!(settings.hostname, "box.net");
        assert_eq!((settings.user.as_str(), settings.port), ("typed", 2300));
        assert_eq!(
            settings.strict,
            super::super::settings::StrictHostKeyChecking::AcceptNew
        );
        assert_eq!(
            settings.proxy,
            Some(Proxy::Command("nc box.net 2300".to_owned()))
        );
        assert_eq!(
            settings.identity_files[0].path,
            home.path().join(".ssh/k_box.net")
        );
        assert_eq!(settings.ciphers.len(), DEFAULT_CIPHERS.len() + 1);
    }

    #[test]
    fn without_ssh_a_missing_file_that_was_named_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        let query = Query {
            config_file: Some(home.path().join("gone")),
            ..query(&[])
        };
        assert!(matches!(
            resolve(&query, &local(home.path())),
            Err(Error::Config { .. })
        ));
    }

    #[test]
    fn hosts_and_users_that_look_like_options_never_reach_a_program() {
        let home = tempfile::tempdir().unwrap();
        let host = Query {
            host: "-oProxyCommand=x".to_owned(),
            ..query(&[])
        };
        let user = Query {
            user: Some("-x".to_owned()),
            ..query(&[])
        };
        for query in [host, user] {
            let err = resolve(&query, &local(home.path())).unwrap_err();
            assert!(matches!(err, Error::Config { .. }), "{err}");
        }
    }
}
