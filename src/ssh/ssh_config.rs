//! Converts `ssh_config(5)` keywords to `Settings`.
//!
//! The input is the output of `ssh -G`, or the same keywords from elsewhere. Nothing here reads a
//! file, the environment or the network; `resolve` does that.

pub mod algorithms;
mod tokens;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::Error;
use super::settings::AddressFamily;
use super::settings::IdentityFile;
use super::settings::Method;
use super::settings::Proxy;
use super::settings::Settings;
use super::settings::StrictHostKeyChecking;
use crate::path::Excerpt;
use crate::ssh::known_hosts::public_key::MIN_RSA_BITS;
use crate::ssh::ssh_config::tokens::Expander;

/// The SSH arguments of the command line.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// The host as the user typed it, without user and brackets.
    pub host: String,
    pub user: Option<String>,
    pub port: Option<u16>,
    /// The file of `-F`.
    pub config_file: Option<PathBuf>,
    /// The `Key=Value` of each `-o`.
    pub options: Vec<String>,
}

/// Facts about this machine and user that the configuration refers to.
#[derive(Clone, Debug)]
pub struct LocalContext {
    pub home: PathBuf,
    pub user: String,
    pub uid: u32,
    pub hostname: String,
    /// The value of `SSH_AUTH_SOCK`.
    pub agent_socket: Option<PathBuf>,
    /// The path of `ssh`; `None` if it is not installed.
    pub ssh_program: Option<PathBuf>,
}

/// Keywords in lower case with their values, in order. If a keyword is repeated, its first value is
/// used, except for keywords that may be given several times.
#[derive(Clone, Debug, Default)]
pub struct Pairs(Vec<(String, String)>);

impl Pairs {
    /// Parses `key value` lines.
    pub fn parse(text: &str) -> Self {
        let mut pairs = Self::default();
        for line in text.lines() {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            pairs.push(key, value.trim());
        }
        pairs
    }

    /// Appends a value: it is used only if the keyword has no value yet, or may be repeated.
    pub fn push(&mut self, key: &str, value: &str) {
        self.0.push((key.to_ascii_lowercase(), value.to_owned()));
    }

    /// Expands algorithm lists that modify the default (`+x`, `^x`, `-x`); `ssh -G` prints expanded
    /// ones.
    pub fn expand_algorithms(&mut self) {
        for (key, value) in &mut self.0 {
            if let Some(list) = algorithms::expand(key, value) {
                *value = list;
            }
        }
    }

    fn first(&self, key: &str) -> Option<&str> {
        self.all(key).next()
    }

    /// Returns the first value unless it is empty or `none`.
    fn some(&self, key: &str) -> Option<&str> {
        self.first(key)
            .filter(|value| !value.is_empty() && !value.eq_ignore_ascii_case("none"))
    }

    fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(it, _)| it == key)
            .map(|(_, value)| value.as_str())
    }

    fn is_on(&self, key: &str, default: bool) -> bool {
        match self.first(key).map(str::to_ascii_lowercase).as_deref() {
            Some("yes" | "true") => true,
            Some("no" | "false") => false,
            _ => default,
        }
    }

    fn list(&self, key: &str) -> Vec<String> {
        self.some(key)
            .map(|list| list.split(',').map(str::to_owned).collect())
            .unwrap_or_default()
    }
}

/// Splits the `Key=Value` or `Key Value` of an `-o` option; the key is returned in lower case.
///
/// # Errors
/// The key or the value is missing.
pub fn split_option(option: &str) -> Result<(String, String), Error> {
    let option = option.trim();
    let end = option
        .find(|c: char| c == '=' || c.is_whitespace())
        .unwrap_or(option.len());
    let (key, rest) = option.split_at(end);
    let value = rest.trim_start().trim_start_matches('=').trim();
    if key.is_empty() || value.is_empty() {
        return Err(Error::Config {
            detail: format!("option `{}` is not KEY=VALUE", Excerpt(option.as_bytes())),
        });
    }
    Ok((key.to_ascii_lowercase(), value.trim_matches('"').to_owned()))
}

/// Checks that `ssh` cannot parse a host name as an option, a URI or several words, and that it has
/// no special characters for the shell of a ProxyCommand.
///
/// # Errors
/// The name is not safe.
pub fn check_host(host: &str) -> Result<(), Error> {
    let is_bad = |c: char| c.is_whitespace() || matches!(c, '/' | '@') || is_shell_special(c);
    if host.is_empty() || host.starts_with('-') || host.contains(is_bad) {
        return Err(Error::Config {
            detail: format!("`{}` is not a host name", Excerpt(host.as_bytes())),
        });
    }
    Ok(())
}

/// Checks that `ssh` cannot parse a user name as an option, and that it has no special characters
/// for a shell.
///
/// # Errors
/// The name is not safe.
pub fn check_user(user: &str) -> Result<(), Error> {
    if user.is_empty() || user.starts_with('-') || user.contains(is_shell_special) {
        return Err(Error::Config {
            detail: format!("`{}` is not a user name", Excerpt(user.as_bytes())),
        });
    }
    Ok(())
}

/// Returns whether a shell may treat `c` specially: the list of OpenSSH 9.6 ssh.c
/// `valid_hostname()`. A backslash is allowed, also in user names: those of Windows domains contain
/// it, and `ssh` accepts it without quoting.
fn is_shell_special(c: char) -> bool {
    c.is_control() || "'`\"$;&<>|(){}".contains(c)
}

/// Converts keywords to settings.
///
/// # Errors
/// A host name, port or jump host is invalid, or ProxyJump is used without `ssh`.
pub fn settings(pairs: &Pairs, query: &Query, local: &LocalContext) -> Result<Settings, Error> {
    let hostname = pairs.some("hostname").unwrap_or(&query.host).to_owned();
    // A ProxyCommand may contain it as `%h`.
    check_host(&hostname)?;
    let port = match pairs.first("port") {
        Some(text) => text.parse().map_err(|_| Error::Config {
            detail: format!("port `{}` is not a port number", Excerpt(text.as_bytes())),
        })?,
        None => 22,
    };
    let user = pairs.some("user").unwrap_or(&local.user).to_owned();
    let mut settings = Settings::new(&hostname, port, &user);
    settings.host_alias.clone_from(&query.host);
    settings.host_key_alias = pairs.some("hostkeyalias").map(str::to_owned);
    let expander = Expander {
        settings: &settings.clone(),
        local,
    };

    settings.address_family = match pairs.first("addressfamily") {
        Some("inet") => AddressFamily::Inet,
        Some("inet6") => AddressFamily::Inet6,
        _ => AddressFamily::Any,
    };
    settings.bind_address = pairs.some("bindaddress").map(str::to_owned);
    settings.proxy = proxy(pairs, query, local, &expander)?;
    if let Some(limit) = pairs.some("connecttimeout").and_then(duration) {
        settings.connect_timeout = limit;
    }
    settings.alive_interval = pairs
        .some("serveraliveinterval")
        .and_then(duration)
        .unwrap_or_default();
    settings.compression = pairs.is_on("compression", false);
    if pairs.some("ciphers").is_some() {
        settings.ciphers = pairs.list("ciphers");
    }
    settings.macs = pairs.list("macs");
    settings.kex_algorithms = pairs.list("kexalgorithms");
    settings.host_key_algorithms = pairs.list("hostkeyalgorithms");

    settings.strict = match pairs.first("stricthostkeychecking") {
        Some("yes" | "true") => StrictHostKeyChecking::Yes,
        Some("accept-new") => StrictHostKeyChecking::AcceptNew,
        Some("no" | "false" | "off") => StrictHostKeyChecking::No,
        _ => StrictHostKeyChecking::Ask,
    };
    settings.user_known_hosts_files = match pairs.first("userknownhostsfile") {
        Some(list) => paths(list).iter().map(|path| expander.path(path)).collect(),
        None => vec![
            local.home.join(".ssh/known_hosts"),
            local.home.join(".ssh/known_hosts2"),
        ],
    };
    settings.global_known_hosts_files = match pairs.first("globalknownhostsfile") {
        Some(list) => paths(list).iter().map(|path| expander.path(path)).collect(),
        None => vec![
            "/etc/ssh/ssh_known_hosts".into(),
            "/etc/ssh/ssh_known_hosts2".into(),
        ],
    };
    settings.hash_known_hosts = pairs.is_on("hashknownhosts", false);
    settings.ca_signature_algorithms = pairs.list("casignaturealgorithms");
    if let Some(n_bits) = pairs.some("requiredrsasize").and_then(|it| it.parse().ok()) {
        settings.required_rsa_bits = MIN_RSA_BITS.max(n_bits);
    }
    settings.revoked_host_keys = pairs
        .some("revokedhostkeys")
        .map(|text| expander.path(text));

    if let Some(list) = pairs.some("preferredauthentications") {
        settings.preferred_authentications = list.split(',').filter_map(method).collect();
    }
    settings.pubkey_authentication = match pairs.first("pubkeyauthentication") {
        // "unbound" and "host-bound" enable it as well; they differ in what an agent signs.
        Some(text) => !matches!(text, "no" | "false"),
        None => true,
    };
    settings.password_authentication = pairs.is_on("passwordauthentication", true);
    settings.kbd_interactive_authentication = pairs.is_on(
        "kbdinteractiveauthentication",
        pairs.is_on("challengeresponseauthentication", true),
    );
    settings.identity_files = identity_files(pairs, local, &expander);
    settings.certificate_files = pairs
        .all("certificatefile")
        .filter(|text| !text.eq_ignore_ascii_case("none"))
        .map(|text| expander.path(text))
        .collect();
    settings.identities_only = pairs.is_on("identitiesonly", false);
    settings.identity_agent = identity_agent(pairs, local, &expander);
    if let Some(count) = pairs
        .first("numberofpasswordprompts")
        .and_then(|text| text.parse().ok())
    {
        settings.password_prompts = count;
    }
    settings.batch_mode = pairs.is_on("batchmode", false);
    Ok(settings)
}

fn method(name: &str) -> Option<Method> {
    let name = name.trim();
    [
        Method::PublicKey,
        Method::KeyboardInteractive,
        Method::Password,
    ]
    .into_iter()
    .find(|method| method.name() == name)
}

/// The files that OpenSSH 9 tries if IdentityFile is not set, in its order, without the key types
/// that libssh2 does not support.
const DEFAULT_IDENTITIES: [&str; 3] = ["id_rsa", "id_ecdsa", "id_ed25519"];

fn identity_files(
    pairs: &Pairs,
    local: &LocalContext,
    expander: &Expander<'_>,
) -> Vec<IdentityFile> {
    let ssh_dir = local.home.join(".ssh");
    let mut files: Vec<IdentityFile> = Vec::new();
    let configured: Vec<&str> = pairs.all("identityfile").collect();
    if configured.is_empty() {
        files.extend(DEFAULT_IDENTITIES.iter().map(|name| IdentityFile {
            path: ssh_dir.join(name),
            is_explicit: false,
        }));
    }
    // `ssh -G` prints its defaults like configured files, but only if no file is configured. They
    // are then several, all of this form.
    let is_default = |text: &str| text.starts_with("~/.ssh/id_");
    let all_default = configured.len() > 1 && configured.iter().all(|text| is_default(text));
    for text in configured {
        if text.eq_ignore_ascii_case("none") {
            continue;
        }
        let path = expander.path(text);
        if !files.iter().any(|file| file.path == path) {
            files.push(IdentityFile {
                path,
                is_explicit: !all_default,
            });
        }
    }
    files
}

fn identity_agent(pairs: &Pairs, local: &LocalContext, expander: &Expander<'_>) -> Option<PathBuf> {
    match pairs.first("identityagent") {
        None | Some("" | "SSH_AUTH_SOCK" | "$SSH_AUTH_SOCK" | "${SSH_AUTH_SOCK}") => {
            local.agent_socket.clone()
        }
        Some(text) if text.eq_ignore_ascii_case("none") => None,
        Some(text) if text.starts_with('$') => {
            log::warn!("IdentityAgent {text} names a variable; only SSH_AUTH_SOCK is supported");
            None
        }
        Some(text) => Some(expander.path(text)),
    }
}

fn proxy(
    pairs: &Pairs,
    query: &Query,
    local: &LocalContext,
    expander: &Expander<'_>,
) -> Result<Option<Proxy>, Error> {
    if let Some(command) = pairs.some("proxycommand") {
        return Ok(Some(Proxy::Command(expander.tokens(command))));
    }
    let Some(jumps) = pairs.some("proxyjump") else {
        return Ok(None);
    };
    let Some(program) = local.ssh_program.clone() else {
        return Err(Error::Config {
            detail: "ProxyJump needs the `ssh` program, which is not installed here".to_owned(),
        });
    };
    // As in OpenSSH: the last hop connects to the host, and is itself reached through the others.
    let (before, last) = jumps
        .rsplit_once(',')
        .map_or((None, jumps), |(a, b)| (Some(a), b));
    // CVE-2026-48711 of sshfs: `ssh` parses a jump host that begins with `-` as an option.
    for jump in jumps.split(',') {
        let (user, host, port) = split_jump(jump);
        check_host(host)?;
        user.map_or(Ok(()), check_user)?;
        if port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err(Error::Config {
                detail: format!(
                    "`{}` is not a valid ProxyJump host",
                    Excerpt(jump.as_bytes())
                ),
            });
        }
    }
    let (user, host, port) = split_jump(last);
    let mut args: Vec<OsString> = Vec::new();
    let mut add = |option: &str, value: OsString| args.extend([option.into(), value]);
    if let Some(file) = &query.config_file {
        add("-F", file.into());
    }
    if let Some(user) = user {
        add("-l", user.into());
    }
    if let Some(port) = port {
        add("-p", port.into());
    }
    if let Some(before) = before {
        add("-J", before.into());
    }
    add(
        "-W",
        format!(
            "[{}]:{}",
            expander.settings.hostname, expander.settings.port
        )
        .into(),
    );
    args.extend(["--".into(), host.into()]);
    Ok(Some(Proxy::Jump { program, args }))
}

/// Splits `[user@]host[:port]`, with or without `ssh://` and brackets.
fn split_jump(text: &str) -> (Option<&str>, &str, Option<&str>) {
    let text = text.trim();
    let text = text
        .strip_prefix("ssh://")
        .map_or(text, |rest| rest.trim_end_matches('/'));
    let (user, place) = text
        .rsplit_once('@')
        .map_or((None, text), |(user, place)| (Some(user), place));
    if let Some((host, rest)) = place
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        return (user, host, rest.strip_prefix(':'));
    }
    match place.split_once(':') {
        // More than one colon without brackets is an IPv6 address.
        Some((host, port)) if !port.contains(':') => (user, host, Some(port)),
        _ => (user, place, None),
    }
}

/// Splits a list of files that `ssh -G` prints without quotes: a word that does not begin like a
/// path is a part of the path before it.
fn paths(list: &str) -> Vec<String> {
    let mut paths: Vec<String> = Vec::new();
    for piece in list.split(' ').filter(|piece| !piece.is_empty()) {
        let piece = piece.trim_matches('"');
        match paths.last_mut() {
            Some(last) if !piece.starts_with(['/', '~', '%']) => {
                last.push(' ');
                last.push_str(piece);
            }
            _ => paths.push(piece.to_owned()),
        }
    }
    paths.retain(|path| !path.eq_ignore_ascii_case("none"));
    paths
}

/// Parses a time in seconds or in OpenSSH's format, such as `1h30m`; `None` if it is zero or
/// invalid.
fn duration(text: &str) -> Option<Duration> {
    let mut total: u64 = 0;
    let mut number = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c.to_ascii_lowercase() {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 604_800,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        number.clear();
    }
    if !number.is_empty() {
        total = total.checked_add(number.parse().ok()?)?;
    }
    (total > 0).then(|| Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> LocalContext {
        LocalContext {
            home: "/home/me".into(),
            user: "me".to_owned(),
            uid: 1000,
            hostname: "desk.example.org".to_owned(),
            agent_socket: Some("/run/agent".into()),
            ssh_program: Some("/usr/bin/ssh".into()),
        }
    }

    fn resolve(text: &str) -> Settings {
        let query = Query {
            host: "box".to_owned(),
            ..Query::default()
        };
        settings(&Pairs::parse(text), &query, &local()).unwrap()
    }

    #[test]
    fn no_jump_and_no_host_name_becomes_an_option() {
        let resolved = |line: &str| {
            let query = Query {
                host: "box".to_owned(),
                ..Query::default()
            };
            settings(&Pairs::parse(line), &query, &local())
        };
        for good in ["one", "u@one:22,[::1]:2222,ssh://u@two:23/", "a-b"] {
            assert!(resolved(&format!("proxyjump {good}")).is_ok(), "{good}");
        }
        for bad in [
            "proxyjump -oProxyCommand=x",
            "proxyjump -oProxyCommand=x,one",
            "proxyjump one,-x,two",
            "proxyjump -x@one,two",
            "proxyjump -x@one",
            "proxyjump one:-1",
            "proxyjump one:22x,two",
            "proxyjump ,one",
            "hostname -oProxyCommand=x",
            "hostname $(x)",
        ] {
            let error = resolved(bad).unwrap_err();
            assert!(matches!(error, Error::Config { .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn nothing_configured_gives_the_defaults_of_openssh() {
        let settings = resolve("");
        assert_eq!((settings.hostname.as_str(), settings.port), ("box", 22));
        assert_eq!(settings.user, "me");
        assert_eq!(settings.identity_agent, Some("/run/agent".into()));
        assert_eq!(settings.strict, StrictHostKeyChecking::Ask);
        assert_eq!(settings.connect_timeout, Duration::from_secs(15));
        assert!(settings.identity_files.iter().all(|file| !file.is_explicit));
        assert_eq!(settings.ciphers[0], "chacha20-poly1305@openssh.com");
    }

    #[test]
    fn the_first_value_counts_and_identity_files_add_up() {
        let settings = resolve(
            "user a\nuser b\nport 2222\nidentityfile ~/.ssh/%r_%h\nidentityfile /k\nidentityfile none\n",
        );
        assert_eq!((settings.user.as_str(), settings.port), ("a", 2222));
        let paths: Vec<_> = settings
            .identity_files
            .iter()
            .map(|file| file.path.clone())
            .collect();
        assert_eq!(
            paths,
            [PathBuf::from("/home/me/.ssh/a_box"), PathBuf::from("/k")]
        );
        assert!(settings.identity_files[0].is_explicit);
    }

    #[test]
    fn the_defaults_that_ssh_prints_are_not_taken_for_configured_files() {
        let settings = resolve("identityfile ~/.ssh/id_rsa\nidentityfile ~/.ssh/id_ed25519\n");
        assert!(settings.identity_files.iter().all(|file| !file.is_explicit));
        assert!(resolve("identityfile ~/.ssh/id_rsa\n").identity_files[0].is_explicit);
    }

    #[test]
    fn every_token_is_expanded() {
        let settings = resolve(
            "user u\nport 23\nhostname h.net\nproxycommand x %d %h %i %k %L %l %n %p %r %u %% %z %",
        );
        let expected = "x /home/me h.net 1000 box desk desk.example.org box 23 u me % %z %";
        assert_eq!(settings.proxy, Some(Proxy::Command(expected.to_owned())));
    }

    #[test]
    fn a_jump_becomes_arguments_without_a_shell() {
        let settings = resolve("hostname inner\nport 2200\nproxyjump a,u@[::1]:24\n");
        let args: Vec<OsString> = [
            "-l",
            "u",
            "-p",
            "24",
            "-J",
            "a",
            "-W",
            "[inner]:2200",
            "--",
            "::1",
        ]
        .map(OsString::from)
        .to_vec();
        assert_eq!(
            settings.proxy,
            Some(Proxy::Jump {
                program: "/usr/bin/ssh".into(),
                args
            })
        );
        assert_eq!(split_jump("ssh://j:22/"), (None, "j", Some("22")));
        assert_eq!(split_jump("fe80::1"), (None, "fe80::1", None));
    }

    #[test]
    fn a_jump_through_something_like_an_option_is_refused() {
        let query = Query {
            host: "box".to_owned(),
            ..Query::default()
        };
        let pairs = Pairs::parse("proxyjump -oProxyCommand=x");
        assert!(settings(&pairs, &query, &local()).is_err());
    }

    #[test]
    fn agents_are_found_where_the_configuration_says() {
        assert_eq!(resolve("identityagent none").identity_agent, None);
        assert_eq!(
            resolve("identityagent SSH_AUTH_SOCK").identity_agent,
            Some("/run/agent".into())
        );
        assert_eq!(
            resolve("identityagent ~/a").identity_agent,
            Some("/home/me/a".into())
        );
        assert_eq!(resolve("identityagent $OTHER").identity_agent, None);
    }

    #[test]
    fn known_hosts_lists_with_spaces_in_names_are_put_together_again() {
        let settings = resolve("userknownhostsfile /tmp/a b /root/kh\nglobalknownhostsfile none");
        assert_eq!(
            settings.user_known_hosts_files,
            [PathBuf::from("/tmp/a b"), PathBuf::from("/root/kh")]
        );
        assert!(settings.global_known_hosts_files.is_empty());
    }

    #[test]
    fn booleans_come_in_both_spellings() {
        let settings = resolve(
            "compression true\nbatchmode yes\nhashknownhosts false\npubkeyauthentication host-bound\nstricthostkeychecking accept-new",
        );
        assert!(settings.compression && settings.batch_mode && !settings.hash_known_hosts);
        assert!(settings.pubkey_authentication);
        assert_eq!(settings.strict, StrictHostKeyChecking::AcceptNew);
    }

    #[test]
    fn methods_that_we_do_not_have_are_left_out_of_the_order() {
        let settings = resolve("preferredauthentications gssapi-with-mic,password,publickey");
        assert_eq!(
            settings.preferred_authentications,
            [Method::Password, Method::PublicKey]
        );
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("90"), Some(Duration::from_secs(90)));
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("0"), None);
        assert_eq!(duration("5x"), None);
        assert_eq!(duration("99999999999999999999"), None);
    }

    #[test]
    fn options_are_split_like_ssh_does() {
        let split = |text| split_option(text).unwrap();
        assert_eq!(split("Port=22"), ("port".to_owned(), "22".to_owned()));
        assert_eq!(
            split(" ProxyCommand  nc -x a=b %h"),
            ("proxycommand".to_owned(), "nc -x a=b %h".to_owned())
        );
        assert!(split_option("Port").is_err());
        assert!(split_option("=x").is_err());
    }

    #[test]
    fn hosts_that_are_not_names_are_refused() {
        for bad in [
            "",
            "-oProxyCommand=x",
            "a b",
            "a\nb",
            "a@b",
            "ssh://x",
            "a\u{7f}",
            "a;id",
            "$(id)",
        ] {
            assert!(check_host(bad).is_err(), "{bad:?}");
        }
        for good in ["box", "10.0.0.1", "fe80::1%eth0", "a_b.example"] {
            assert!(check_host(good).is_ok(), "{good:?}");
        }
        assert!(check_user("a b").is_ok() && check_user("CORP\\me").is_ok());
        assert!(check_user("-x").is_err() && check_user("`id`").is_err());
    }
}
