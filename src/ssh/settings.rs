//! What a connection to one host needs to know, resolved: no token, tilde or default is left open.
//!
//! Plain data. Made by `ssh_config`, changed by the command line's own options, read by the rest.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::host_key::HostKey;
pub use crate::process::Proxy;
use crate::ssh::known_hosts::public_key::MIN_RSA_BITS;

/// How long making a connection may take when nothing else is configured.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a wait on a connection may go without progress when nothing else is configured.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// What is done about a host key that no file vouches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrictHostKeyChecking {
    /// Refuses unknown and changed keys.
    Yes,
    /// Remembers unknown keys, refuses changed ones.
    AcceptNew,
    /// Asks about unknown keys, refuses changed ones.
    Ask,
    /// Remembers unknown keys; with a changed one goes on, but gives it no password.
    No,
}

/// A way to prove who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    PublicKey,
    KeyboardInteractive,
    Password,
}

impl Method {
    /// The name on the wire and in `ssh_config`.
    pub fn name(self) -> &'static str {
        match self {
            Self::PublicKey => "publickey",
            Self::KeyboardInteractive => "keyboard-interactive",
            Self::Password => "password",
        }
    }
}

/// Which addresses of a name are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressFamily {
    Any,
    Inet,
    Inet6,
}

impl AddressFamily {
    pub fn allows(self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Inet => address.is_ipv4(),
            Self::Inet6 => address.is_ipv6(),
        }
    }
}

/// One private key file to log in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFile {
    pub path: PathBuf,
    /// False for the names that OpenSSH tries by itself; those may be missing without a word.
    pub is_explicit: bool,
}

/// Everything about one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The name that was typed; shown to people.
    pub host_alias: String,
    /// The name or address to connect to.
    pub hostname: String,
    pub port: u16,
    pub user: String,
    pub address_family: AddressFamily,
    pub bind_address: Option<String>,
    pub proxy: Option<Proxy>,
    pub connect_timeout: Duration,
    pub timeout: Duration,
    /// Zero: no keepalives by configuration. Nothing here sends them unasked.
    pub alive_interval: Duration,
    pub compression: bool,
    /// Names in order of preference, as configured; what libssh2 does not know is skipped. An
    /// empty list is the library's own choice.
    pub ciphers: Vec<String>,
    pub macs: Vec<String>,
    pub kex_algorithms: Vec<String>,
    pub host_key_algorithms: Vec<String>,

    pub strict: StrictHostKeyChecking,
    pub user_known_hosts_files: Vec<PathBuf>,
    pub global_known_hosts_files: Vec<PathBuf>,
    pub hash_known_hosts: bool,
    /// A list of keys, or a KRL; a file that cannot be read revokes all.
    pub revoked_host_keys: Option<PathBuf>,
    /// The algorithms that the authority of a host certificate may sign with; empty for the default.
    pub ca_signature_algorithms: Vec<String>,
    /// The smallest size of RSA keys of hosts and authorities.
    pub required_rsa_bits: u32,
    pub host_key_alias: Option<String>,
    /// The key of the host that the contents to be uploaded belong to, whatever the files say.
    pub pinned_host_key: Option<HostKey>,
    /// The fingerprint of a key that is accepted beside the pinned one.
    pub accept_host_key: Option<String>,

    pub preferred_authentications: Vec<Method>,
    pub pubkey_authentication: bool,
    pub password_authentication: bool,
    pub kbd_interactive_authentication: bool,
    pub identity_files: Vec<IdentityFile>,
    pub certificate_files: Vec<PathBuf>,
    pub identities_only: bool,
    pub identity_agent: Option<PathBuf>,
    pub password_prompts: u32,
    /// Nobody is asked anything.
    pub batch_mode: bool,
}

impl Settings {
    /// Returns settings for `user@hostname:port` with no files, no agent and no proxy.
    pub fn new(hostname: &str, port: u16, user: &str) -> Self {
        Self {
            host_alias: hostname.to_owned(),
            hostname: hostname.to_owned(),
            port,
            user: user.to_owned(),
            address_family: AddressFamily::Any,
            bind_address: None,
            proxy: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            timeout: DEFAULT_TIMEOUT,
            alive_interval: Duration::ZERO,
            compression: false,
            ciphers: DEFAULT_CIPHERS
                .iter()
                .map(|&name| name.to_owned())
                .collect(),
            macs: Vec::new(),
            kex_algorithms: Vec::new(),
            host_key_algorithms: Vec::new(),
            strict: StrictHostKeyChecking::Ask,
            user_known_hosts_files: Vec::new(),
            global_known_hosts_files: Vec::new(),
            hash_known_hosts: false,
            revoked_host_keys: None,
            ca_signature_algorithms: Vec::new(),
            required_rsa_bits: MIN_RSA_BITS,
            host_key_alias: None,
            pinned_host_key: None,
            accept_host_key: None,
            preferred_authentications: vec![
                Method::PublicKey,
                Method::KeyboardInteractive,
                Method::Password,
            ],
            pubkey_authentication: true,
            password_authentication: true,
            kbd_interactive_authentication: true,
            identity_files: Vec::new(),
            certificate_files: Vec::new(),
            identities_only: false,
            identity_agent: None,
            password_prompts: 3,
            batch_mode: false,
        }
    }

    /// Returns whether the configuration lets `method` be tried at all.
    pub fn enables(&self, method: Method) -> bool {
        match method {
            Method::PublicKey => self.pubkey_authentication,
            Method::KeyboardInteractive => self.kbd_interactive_authentication,
            Method::Password => self.password_authentication,
        }
    }

    /// Returns `user@host` as a person would type it for `ssh`, with the port where it matters.
    pub fn destination(&self) -> String {
        let port = if self.port == 22 {
            String::new()
        } else {
            format!("-p {} ", self.port)
        };
        format!("{port}{}@{}", self.user, self.host_alias)
    }
}

/// OpenSSH's order of ciphers. It suits libssh2, which decrypts AES 16 bytes at a time and so
/// needs twice the time for it that it needs for `ChaCha20`.
pub const DEFAULT_CIPHERS: [&str; 6] = [
    "chacha20-poly1305@openssh.com",
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
];
