//! Implements the connections with libssh2, one blocking session each.
//!
//! Three properties of libssh2 and the ssh2 crate determine the design:
//! - A blocking call holds the session's lock, so a connection executes one call at a time.
//! - Dropping an `ssh2::Channel` frees it without that lock, so `OpenChannel` takes the lock first.
//! - A keepalive interval shortens every timeout (`ssh2_wait_socket()` reports a timeout when the
//!   next keepalive is due), so the interval is set only while a keepalive is sent.

mod channel;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use rustix::net::Shutdown;
use ssh2::ErrorCode;
use ssh2::MethodType;
use ssh2::Session;

use self::channel::OpenChannel;
use super::Aborter;
use super::Channel;
use super::Connection;
use super::Error;
use super::Prompt;
use super::Transport;
use super::auth;
use super::auth::Credentials;
use super::dial;
use super::known_hosts;
use super::known_hosts::Refusal;
use super::known_hosts::certificate::Certificate;
use super::known_hosts::certificate::is_certificate;
use super::known_hosts::public_key::is_canonical;
use super::known_hosts::public_key::rsa_bits;
use super::known_hosts::verify::HostKeys;
use super::known_hosts::verify::Trust;
use super::prompt::SilenceablePrompt;
use super::prompt::printable;
use super::settings::Settings;
use super::ssh_config::algorithms;
use crate::clock::Clock as _;
use crate::clock::SystemClock;
use crate::host_key::HostKey;
use crate::process;
use crate::process::ProxyChild;
use crate::process::Terminal;
use crate::sync::Mutex;

/// Opens connections to one host with libssh2.
#[derive(Debug)]
pub struct Libssh2 {
    settings: Settings,
    prompt: SilenceablePrompt,
    credentials: Credentials,
    /// The host key of the first connection; all later ones must have the same.
    first_key: Mutex<Option<AcceptedKey>>,
}

/// A host key that was accepted.
#[derive(Debug)]
struct AcceptedKey {
    /// The public key in wire form.
    blob: Vec<u8>,
    key: HostKey,
    trust: Trust,
    /// The key is in a `known_hosts` file, or its certificate is valid.
    is_known: bool,
}

impl Libssh2 {
    /// Creates a transport; connects only on demand.
    pub fn new(settings: Settings, prompt: Arc<dyn Prompt>) -> Self {
        Self {
            settings,
            prompt: SilenceablePrompt::new(prompt),
            credentials: Credentials::default(),
            first_key: Mutex::new(None),
        }
    }

    /// Disables all prompts from now on. Called when the daemon detaches from the terminal.
    pub fn silence(&self) {
        self.prompt.silence();
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the host key, and whether it is known or certified; `None` before the first
    /// connection.
    pub fn host_key(&self) -> Option<(HostKey, bool)> {
        let first = self.first_key.lock();
        first.as_ref().map(|it| (it.key.clone(), it.is_known))
    }

    /// Accepts or refuses the host key, directly after the handshake.
    ///
    /// INVARIANT: all connections of one transport have the same host key.
    fn verify_host(&self, session: &Session, keys: &HostKeys<'_>) -> Result<Trust, Error> {
        let Some(blob) = session.host_key().map(|(blob, _)| blob.to_vec()) else {
            return Err(self.handshake_error("the host sent no key"));
        };
        // Compare only the key from here on: a renewed certificate does not make it another host.
        let certificate = Certificate::parse(&blob);
        let blob = match &certificate {
            Some(certificate) => certificate.key.clone(),
            None if is_certificate(&blob) => {
                return Err(self.handshake_error("its host certificate is malformed"));
            }
            None => blob,
        };
        if is_canonical(&blob) != Some(true) {
            // A revoked key in another encoding would not match its entry in a list.
            return Err(self.handshake_error("its host key has an invalid encoding"));
        }
        let required = self.settings.required_rsa_bits;
        if let Some(n_bits) = rsa_bits(&blob).filter(|&n| n < required) {
            return Err(self.handshake_error(&format!(
                "its RSA host key has {n_bits} bits, and RequiredRSASize is {required}"
            )));
        }
        let certificate = certificate.as_ref();
        keys.check_revoked(&blob, certificate)?;
        let key = known_hosts::host_key(&blob);
        if let Some(first) = &*self.first_key.lock() {
            return first.check(&blob, key, keys.name());
        }
        self.check_pin(&key, keys.name())?;
        let now = u64::try_from(SystemClock::new().wall().secs).unwrap_or_default();
        let trust = keys.verify(&blob, certificate, now, &self.prompt)?;
        let shown = AcceptedKey {
            is_known: keys.knows(&blob, certificate, now),
            blob: blob.clone(),
            key: key.clone(),
            trust,
        };
        // Another thread may have connected first while the user was asked.
        let mut first = self.first_key.lock();
        first.get_or_insert(shown).check(&blob, key, keys.name())
    }

    /// Checks the key against the pinned key and `accept_host_key`, if they are set.
    fn check_pin(&self, key: &HostKey, name: &str) -> Result<(), Refusal> {
        let Settings {
            pinned_host_key,
            accept_host_key,
            ..
        } = &self.settings;
        if *accept_host_key == Some(key.fingerprint.clone()) {
            return Ok(());
        }
        let expected = match (pinned_host_key, accept_host_key) {
            (Some(pinned), _) if pinned == key => return Ok(()),
            (Some(pinned), _) => pinned.clone(),
            (None, Some(fingerprint)) => HostKey {
                kind: "key".to_owned(),
                fingerprint: fingerprint.clone(),
            },
            (None, None) => return Ok(()),
        };
        Err(Refusal::Pinned {
            name: name.to_owned(),
            expected: Box::new(expected),
            offered: Box::new(key.clone()),
            is_mounted: false,
        })
    }

    /// Returns the type of the host key that must be shown: the first connection's or the pinned
    /// one.
    fn pinned_type(&self) -> Option<String> {
        let first = self.first_key.lock().as_ref().map(|it| it.key.kind.clone());
        first.or_else(|| Some(self.settings.pinned_host_key.as_ref()?.kind.clone()))
    }

    /// Sets the algorithms to offer, in order of preference.
    fn set_algorithms(&self, session: &Session, keys: &HostKeys<'_>) -> Result<(), Error> {
        let Settings {
            ciphers,
            macs,
            kex_algorithms,
            host_key_algorithms,
            ..
        } = &self.settings;
        let pinned = self.pinned_type();
        let host_keys = host_key_order(
            host_key_algorithms,
            pinned.as_deref(),
            &keys.known_types(),
            keys.has_authority(),
        );
        if host_keys.is_empty() {
            // With an empty list libssh2 would offer all its algorithms.
            return Err(self.handshake_error(
                "HostKeyAlgorithms allows nothing but host certificates, and no @cert-authority \
                 line of a known_hosts file is about this host",
            ));
        }
        let mut kex = kex_algorithms.clone();
        if !kex.is_empty() {
            // A custom list must include these two, which are not algorithms: they announce support
            // for SHA-2 signatures and for strict key exchange (CVE-2023-48795).
            kex.extend(["ext-info-c", "kex-strict-c-v00@openssh.com"].map(str::to_owned));
        }
        let lists = [
            (MethodType::HostKey, "host key algorithms", &host_keys),
            (MethodType::Kex, "key exchange algorithms", &kex),
            (MethodType::CryptCs, "ciphers", ciphers),
            (MethodType::CryptSc, "ciphers", ciphers),
            (MethodType::MacCs, "MACs", macs),
            (MethodType::MacSc, "MACs", macs),
        ];
        for (kind, what, list) in lists {
            if !list.is_empty() && session.method_pref(kind, &list.join(",")).is_err() {
                let detail = format!("none of the configured {what} is supported by scpfs");
                return Err(self.handshake_error(&detail));
            }
        }
        session.set_compress(self.settings.compression);
        Ok(())
    }

    fn shake_hands(&self, wire: &Wire) -> Result<(), Error> {
        let Err(err) = wire.session.clone().handshake() else {
            return Ok(());
        };
        let failure = wire.error(
            "negotiating encryption",
            self.settings.connect_timeout,
            Some(err),
        );
        Err(match (failure, &self.settings.proxy) {
            (Error::Closed { .. }, Some(proxy)) => {
                let source = io::Error::other("it ended before the host answered");
                Error::Proxy {
                    command: process::describe(proxy),
                    source,
                }
            }
            (Error::Closed { .. }, None) => {
                self.handshake_error("it closed the connection; is this an SSH server?")
            }
            (Error::Failed { detail, .. }, _) => self.handshake_error(&detail),
            (other, _) => other,
        })
    }

    fn handshake_error(&self, detail: &str) -> Error {
        Error::Handshake {
            host: self.settings.host_alias.clone(),
            detail: detail.to_owned(),
        }
    }
}

impl AcceptedKey {
    fn check(&self, blob: &[u8], key: HostKey, name: &str) -> Result<Trust, Error> {
        if self.blob == blob {
            return Ok(self.trust);
        }
        Err(Refusal::Pinned {
            name: name.to_owned(),
            expected: Box::new(self.key.clone()),
            offered: Box::new(key),
            is_mounted: true,
        }
        .into())
    }
}

impl Transport for Libssh2 {
    fn connect(&self) -> Result<Box<dyn Connection>, Error> {
        let settings = &self.settings;
        let terminal = if settings.batch_mode || !self.prompt.is_available() {
            Terminal::Avoided
        } else {
            Terminal::Shared
        };
        let keys = HostKeys::read(settings);
        let (socket, proxy) = dial::dial(settings, terminal)?;
        let wire = Wire::new(socket, proxy)?;
        self.set_algorithms(&wire.session, &keys)?;
        wire.set_timeout(settings.connect_timeout);
        self.shake_hands(&wire)?;
        let trust = self.verify_host(&wire.session, &keys)?;
        wire.set_timeout(settings.timeout);
        auth::log_in(
            &wire.session,
            &wire.socket,
            settings,
            trust,
            &self.prompt,
            &self.credentials,
        )?;
        let banner = wire.session.banner_bytes().map(String::from_utf8_lossy);
        let banner = printable(&banner.unwrap_or_default()).to_string();
        log::debug!("connected to {}: {banner}", settings.host_alias);
        let timeout = settings.timeout;
        Ok(Box::new(Libssh2Connection {
            wire: Arc::new(wire),
            banner,
            timeout,
            last: Weak::new(),
        }))
    }
}

/// Returns the host key algorithms to offer, in order of preference: the pinned type first, so that
/// a host which got a key of another type still shows the pinned one; then the known types and
/// certificates; then the rest. Certificates are offered only if there is an authority for the
/// host.
fn host_key_order(
    configured: &[String],
    pinned: Option<&str>,
    known_types: &[String],
    has_authority: bool,
) -> Vec<String> {
    let is_certified = |name: &str| name.contains("-cert-v01@");
    let mut order: Vec<String> = if configured.is_empty() {
        algorithms::host_keys()
    } else {
        configured.to_vec()
    };
    order.retain(|name| has_authority || !is_certified(name));
    order.sort_by_key(|name| {
        let algorithm = name.split("-cert-v01@").next().unwrap_or(name);
        let key_type = if algorithm.starts_with("rsa-sha2-") {
            "ssh-rsa"
        } else {
            algorithm
        };
        let is_known = known_types.iter().any(|known| known == key_type);
        (pinned != Some(key_type), !(is_known || is_certified(name)))
    });
    order
}

/// A session with its socket and proxy; shared by a connection and its channels.
struct Wire {
    session: Session,
    /// A duplicate of the session's socket.
    socket: Arc<OwnedFd>,
    /// Dropped after the session: fields are dropped in order.
    _proxy: Option<ProxyChild>,
}

impl Wire {
    fn new(socket: OwnedFd, proxy: Option<ProxyChild>) -> Result<Self, Error> {
        let failed = |detail: String| Error::Failed {
            act: "starting a session",
            detail,
        };
        let twin = socket.try_clone().map_err(|err| failed(err.to_string()))?;
        let mut session = Session::new().map_err(|err| failed(err.to_string()))?;
        session.set_tcp_stream(socket);
        Ok(Self {
            session,
            socket: Arc::new(twin),
            _proxy: proxy,
        })
    }

    fn set_timeout(&self, timeout: Duration) {
        // Zero means no limit in libssh2.
        let millis = u32::try_from(timeout.as_millis())
            .unwrap_or(u32::MAX)
            .max(1);
        self.session.set_timeout(millis);
    }

    /// Converts `err`, or libssh2's last error, to our error type.
    fn error(&self, act: &'static str, timeout: Duration, err: Option<ssh2::Error>) -> Error {
        let err = err.or_else(|| ssh2::Error::last_session_error(&self.session));
        let err = err.unwrap_or_else(ssh2::Error::unknown);
        match err.code() {
            ErrorCode::Session(libssh2_sys::LIBSSH2_ERROR_TIMEOUT) => {
                Error::Timeout { act, timeout }
            }
            ErrorCode::Session(
                libssh2_sys::LIBSSH2_ERROR_CHANNEL_CLOSED
                | libssh2_sys::LIBSSH2_ERROR_CHANNEL_EOF_SENT,
            ) => Error::Closed { act },
            ErrorCode::Session(code) if auth::is_disconnect(code) => Error::Closed { act },
            _ => Error::Failed {
                act,
                detail: err.to_string(),
            },
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        hang_up(&self.socket);
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

/// Shuts down the socket: current and later calls on the connection fail at once.
fn hang_up(socket: &OwnedFd) {
    if let Err(err) = rustix::net::shutdown(socket, Shutdown::Both) {
        log::trace!("the connection has already ended: {err}");
    }
}

#[derive(Debug)]
struct Libssh2Connection {
    wire: Arc<Wire>,
    banner: String,
    timeout: Duration,
    /// The most recently opened channel, if it still exists.
    last: Weak<OpenChannel>,
}

impl Connection for Libssh2Connection {
    fn exec(&mut self, command: &str) -> Result<Box<dyn Channel>, Error> {
        self.wire.set_timeout(self.timeout);
        let open = Arc::new(OpenChannel::open(Arc::clone(&self.wire), self.timeout)?);
        open.exec(command)?;
        self.last = Arc::downgrade(&open);
        Ok(Box::new(channel::Libssh2Channel::new(open)))
    }

    fn aborter(&self) -> Aborter {
        let socket = Arc::clone(&self.wire.socket);
        Aborter::new(move || hang_up(&socket))
    }

    fn keepalive(&mut self) -> Result<(), Error> {
        const ACT: &str = "sending a keepalive";
        let session = &self.wire.session;
        session.set_blocking(false);
        // Request no reply: libssh2 would never free the replies. TCP detects an unreachable host.
        session.set_keepalive(false, 1);
        let sent = session.keepalive_send();
        session.set_keepalive(false, 0);
        // libssh2 answers the host's keepalives (ClientAliveInterval) only while it reads.
        let received = self
            .last
            .upgrade()
            .map_or(Ok(()), |open| open.process_incoming());
        session.set_blocking(true);
        let error = |err| self.wire.error(ACT, self.timeout, Some(err));
        sent.map_err(error)?;
        received.map_err(error)
    }

    fn banner(&self) -> &str {
        &self.banner
    }
}

impl Drop for Libssh2Connection {
    fn drop(&mut self) {
        // Before the session is freed: freeing closes every channel and would wait for the host.
        hang_up(&self.wire.socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_key_types_are_asked_for_first_and_certificates_where_there_is_an_authority() {
        let known = ["ssh-rsa".to_owned()];
        let order = host_key_order(&[], None, &known, false);
        assert_eq!(order[..3], ["rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519"]);
        assert_eq!(host_key_order(&[], None, &[], false)[0], "ssh-ed25519");
        let order = host_key_order(&[], Some("ecdsa-sha2-nistp256"), &known, false);
        assert_eq!(order[..2], ["ecdsa-sha2-nistp256", "rsa-sha2-512"]);
        let order = host_key_order(&[], None, &[], true);
        assert_eq!(order[0], "ssh-ed25519-cert-v01@openssh.com");
        assert_eq!((order.len(), order[6].as_str()), (12, "ssh-ed25519"));
        let order = host_key_order(&[], Some("ssh-rsa"), &[], true);
        assert_eq!(order[0], "rsa-sha2-512-cert-v01@openssh.com");
        assert_eq!(order[2], "rsa-sha2-512");
        let configured = [
            "ssh-ed25519-cert-v01@openssh.com",
            "rsa-sha2-256",
            "ssh-ed25519",
        ]
        .map(str::to_owned);
        assert_eq!(
            host_key_order(&configured, None, &[], false),
            ["rsa-sha2-256", "ssh-ed25519"]
        );
        let known = ["ssh-ed25519".to_owned()];
        assert_eq!(
            host_key_order(&configured, None, &known, false),
            ["ssh-ed25519", "rsa-sha2-256"]
        );
    }
}
