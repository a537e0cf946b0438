//! All settings of the connections to one host, with every token, tilde and default resolved.
//!
//! Plain data. `ssh_config` creates them, options of scpfs itself override some of them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::host_key::HostKey;
pub use crate::process::Proxy;
use crate::ssh::known_hosts::public_key::MIN_RSA_BITS;

/// The default of `ConnectTimeout`: the limit for each step of opening a connection.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The default limit for a wait on a connection without progress.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// `StrictHostKeyChecking`: what happens to a host key that is not in a `known_hosts` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrictHostKeyChecking {
    /// Refuses unknown and changed keys.
    Yes,
    /// Adds unknown keys to the user's file, refuses changed ones.
    AcceptNew,
    /// Asks the user about unknown keys and adds accepted ones, refuses changed ones.
    Ask,
    /// Adds unknown keys to the user's file. Accepts changed ones, but does not send them a
    /// password.
    No,
}

/// An authentication method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    PublicKey,
    KeyboardInteractive,
    Password,
}

impl Method {
    /// Returns the name in the SSH protocol and in `ssh_config(5)`.
    pub fn name(self) -> &'static str {
        match self {
            Self::PublicKey => "publickey",
            Self::KeyboardInteractive => "keyboard-interactive",
            Self::Password => "password",
        }
    }
}

/// `AddressFamily`: which addresses of a host name are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressFamily {
    Any,
    Inet,
    Inet6,
}

impl AddressFamily {
    /// Returns whether an address may be tried.
    pub fn allows(self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Inet => address.is_ipv4(),
            Self::Inet6 => address.is_ipv6(),
        }
    }
}

/// One `IdentityFile`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFile {
    pub path: PathBuf,
    /// False for OpenSSH's default names, which may be missing without a warning.
    pub is_explicit: bool,
}

/// All settings for one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The host as the user typed it, for messages.
    pub host_alias: String,
    /// The name or address to connect to.
    pub hostname: String,
    pub port: u16,
    pub user: String,
    pub address_family: AddressFamily,
    pub bind_address: Option<String>,
    pub proxy: Option<Proxy>,
    /// The limit for each step of opening a connection.
    pub connect_timeout: Duration,
    /// The limit for a wait on a connection without progress.
    pub timeout: Duration,
    /// `ServerAliveInterval`; zero disables it. This module sends no keepalives by itself.
    pub alive_interval: Duration,
    pub compression: bool,
    /// Algorithm names in order of preference; libssh2 skips names that it does not support. An
    /// empty list selects libssh2's default. The same holds for the next three lists.
    pub ciphers: Vec<String>,
    pub macs: Vec<String>,
    pub kex_algorithms: Vec<String>,
    pub host_key_algorithms: Vec<String>,

    pub strict: StrictHostKeyChecking,
    pub user_known_hosts_files: Vec<PathBuf>,
    pub global_known_hosts_files: Vec<PathBuf>,
    pub hash_known_hosts: bool,
    /// A list of public keys, or a KRL. If the file cannot be read, every host key is refused.
    pub revoked_host_keys: Option<PathBuf>,
    /// The algorithms that a certificate authority may sign host certificates with; empty for the
    /// default.
    pub ca_signature_algorithms: Vec<String>,
    /// The minimum size in bits of RSA keys of hosts and certificate authorities.
    pub required_rsa_bits: u32,
    pub host_key_alias: Option<String>,
    /// The pinned key: the only one that is accepted, whatever the `known_hosts` files contain.
    pub pinned_host_key: Option<HostKey>,
    /// The fingerprint of a key that is accepted as well as the pinned one (`accept_host_key=`).
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
    /// `BatchMode`: the user is never asked.
    pub batch_mode: bool,
}

impl Settings {
    /// Returns default settings for `user@hostname:port` without files, agent and proxy.
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

    /// Returns whether the configuration allows `method`.
    pub fn enables(&self, method: Method) -> bool {
        match method {
            Method::PublicKey => self.pubkey_authentication,
            Method::KeyboardInteractive => self.kbd_interactive_authentication,
            Method::Password => self.password_authentication,
        }
    }

    /// Returns the arguments for `ssh`: `user@host`, with `-p` before it if the port is not 22.
    pub fn destination(&self) -> String {
        let port = if self.port == 22 {
            String::new()
        } else {
            format!("-p {} ", self.port)
        };
        format!("{port}{}@{}", self.user, self.host_alias)
    }
}

/// OpenSSH's order of ciphers. `ChaCha20` comes first: libssh2 decrypts AES 16 bytes at a time and
/// needs twice as long for it.
pub const DEFAULT_CIPHERS: [&str; 6] = [
    "chacha20-poly1305@openssh.com",
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
];
