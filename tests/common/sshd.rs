//! A throwaway OpenSSH server for tests, on the loopback interface by default.
//!
//! It has its own port, keys, configuration and account, and no SFTP subsystem. It runs in its own
//! mount and process namespaces: an absolute symlink on a mount then cannot lead the server into
//! that mount, and all programs of its sessions end with the server. Needs root, `sshd`,
//! `ssh-keygen` and `unshare`; without them tests are skipped, or fail if `SCPFS_REQUIRE` contains
//! `sshd`.

mod account;
mod standby;

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;

use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;
use scpfs::ssh::settings::IdentityFile;
use scpfs::ssh::settings::Settings;
use scpfs::ssh::settings::StrictHostKeyChecking;
use scpfs::sync::Mutex;
use tempfile::TempDir;

pub use self::account::Account;
pub use self::account::NOISY;
use self::account::PASSWORD_FILE;
pub use self::account::PLAIN;
pub use self::account::ensure_account;
pub use self::account::home;
use self::standby::Standby;
use crate::capability::Capability;
use crate::capability::skip;
use crate::wait::PATIENCE;
use crate::wait::is_true_within;

const SSHD: &str = "/usr/sbin/sshd";

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct Options {
    pub account: Account,
    /// The address at which the server listens.
    pub address: &'static str,
    /// Further lines for `sshd_config`. They come first, and sshd uses the first value of an
    /// option.
    pub lines: Vec<String>,
    /// The content of `/etc/pam.d/sshd` for this server; it also sets `UsePAM yes`.
    pub pam: Option<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            account: PLAIN,
            address: "127.0.0.1",
            lines: Vec::new(),
            pam: None,
        }
    }
}

impl Options {
    /// Adds a line to `sshd_config`, for example `MaxSessions 1` or `ForceCommand scp -f x`.
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    pub fn account(mut self, account: Account) -> Self {
        self.account = account;
        self
    }

    pub fn pam(mut self, config: &'static str) -> Self {
        self.pam = Some(config);
        self
    }
}

/// A running server. It ends, with all its sessions, when this is dropped.
#[derive(Debug)]
pub struct Sshd {
    dir: TempDir,
    account: Account,
    address: &'static str,
    port: u16,
    /// `unshare`, whose only child is the server.
    unshare: Child,
    standby: Option<Standby>,
    log: Arc<Mutex<String>>,
}

impl Sshd {
    /// Starts a server and waits until it listens.
    ///
    /// Returns `None`, and reports a skip, if the machine lacks something.
    pub fn start(options: Options) -> Option<Self> {
        if let Some(missing) = missing() {
            skip(Capability::Sshd, missing);
            return None;
        }
        ensure_account(options.account);
        let dir = tempfile::Builder::new()
            .prefix("scpfs-sshd-")
            .tempdir()
            .unwrap();
        // sshd reads authorized_keys as the user who logs in.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for (file, kind) in [
            ("host_ed25519", "ed25519"),
            ("host_ecdsa", "ecdsa"),
            ("id", "ed25519"),
        ] {
            keygen(&dir.path().join(file), kind, "");
        }
        fs::copy(
            dir.path().join("id.pub"),
            dir.path().join("authorized_keys"),
        )
        .unwrap();
        fs::create_dir_all("/run/sshd").unwrap();
        // Another program may take the port before the server does, so that this is retried.
        for _ in 0..5 {
            let port = free_port();
            write_config(dir.path(), &options, port);
            let log = Arc::default();
            if let Some(unshare) = Standby::new(dir.path(), &log).start(&log) {
                let sshd = Self {
                    dir,
                    account: options.account,
                    address: options.address,
                    port,
                    unshare,
                    standby: None,
                    log,
                };
                sshd.write_client_files();
                return Some(sshd);
            }
        }
        panic!("sshd found no port to listen on");
    }

    pub fn address(&self) -> &'static str {
        self.address
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the server: configuration, keys, `authorized_keys`. All users can read it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn user(&self) -> &'static str {
        self.account.name
    }

    /// The home directory of the account.
    pub fn home(&self) -> PathBuf {
        home(self.account)
    }

    /// The password of the account, for servers that accept passwords.
    pub fn password(&self) -> String {
        fs::read_to_string(PASSWORD_FILE).unwrap()
    }

    /// The private key that the server accepts; Ed25519 without a passphrase.
    pub fn client_key(&self) -> PathBuf {
        self.dir.path().join("id")
    }

    /// A known-hosts file with the keys of the server.
    pub fn known_hosts(&self) -> PathBuf {
        self.dir.path().join("known_hosts")
    }

    /// A file for `ssh -F` and `scpfs -F` that maps every host name to this server.
    pub fn ssh_config(&self) -> PathBuf {
        self.dir.path().join("ssh_config")
    }

    /// Settings for this server with its client key, without prompts.
    pub fn settings(&self) -> Settings {
        let mut settings = Settings::new(self.address, self.port, self.account.name);
        settings.identity_files = vec![IdentityFile {
            path: self.client_key(),
            is_explicit: true,
        }];
        settings.user_known_hosts_files = vec![self.known_hosts()];
        settings.strict = StrictHostKeyChecking::Yes;
        settings
    }

    /// Adds a public key to `authorized_keys`.
    pub fn authorize(&self, public_key_line: &str) {
        let path = self.dir.path().join("authorized_keys");
        let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
        writeln!(file, "{}", public_key_line.trim_end()).unwrap();
    }

    /// The log of the server. The last lines may be missing, see [`Self::log_with`].
    pub fn log(&self) -> String {
        self.log.lock().clone()
    }

    /// Waits until the log contains a text this number of times, and returns the log. The log
    /// arrives through a pipe, possibly later than the client sees the effect.
    pub fn log_with(&self, text: &str, n_times: usize) -> String {
        let mut log = String::new();
        let is_there = is_true_within(PATIENCE, || {
            log = self.log();
            log.matches(text).count() >= n_times
        });
        assert!(is_there, "not {n_times} times `{text}`:\n{log}");
        log
    }

    /// Kills the server and all its sessions at once, as a crash of the host would.
    pub fn kill(&mut self) {
        kill(&mut self.unshare);
    }

    /// Prepares a second server, in the network of this thread; [`Self::start_again`] starts it.
    pub fn stand_by(&mut self) {
        self.standby = Some(Standby::new(self.dir.path(), &self.log));
    }

    /// Starts the prepared server after [`Self::kill`].
    pub fn start_again(&mut self) {
        let standby = self.standby.take().unwrap();
        self.unshare = standby.start(&self.log).unwrap();
    }

    /// Replaces the host keys of the server, and restarts it at the same port.
    ///
    /// Returns the old keys, for [`Self::become_the_first_host`].
    pub fn become_another_host(&mut self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut keys = Vec::new();
        for kind in ["ed25519", "ecdsa"] {
            let path = self.dir.path().join(format!("host_{kind}"));
            for path in [path.clone(), path.with_extension("pub")] {
                keys.push((path.clone(), fs::read(&path).unwrap()));
                fs::remove_file(&path).unwrap();
            }
            keygen(&path, kind, "");
        }
        self.restart();
        keys
    }

    /// Restores the host keys, and restarts the server.
    pub fn become_the_first_host(&mut self, keys: Vec<(PathBuf, Vec<u8>)>) {
        for (path, content) in keys {
            fs::write(path, content).unwrap();
        }
        self.restart();
    }

    /// Kills the server with all its sessions, and starts it again with an empty log.
    pub fn restart(&mut self) {
        self.stand_by();
        self.kill();
        self.log.lock().clear();
        self.start_again();
    }

    /// The fingerprint of a host key of this server.
    pub fn fingerprint(&self, kind: &str) -> String {
        let path = self.dir.path().join(format!("host_{kind}.pub"));
        let output = command("ssh-keygen").arg("-lf").arg(path).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split(' ').nth(1).unwrap().to_owned()
    }

    /// Kills all sessions, but not the server.
    pub fn kill_sessions(&self) {
        self.signal_sessions(Signal::KILL);
    }

    /// Stops all sessions without closing their connections, as a broken network would.
    pub fn freeze_sessions(&self) {
        self.signal_sessions(Signal::STOP);
    }

    /// Continues stopped sessions.
    pub fn thaw_sessions(&self) {
        self.signal_sessions(Signal::CONT);
    }

    /// Stops the server and all its sessions: connections are accepted and never answered.
    pub fn freeze(&self) {
        for pid in children(self.unshare.id()) {
            signal(pid, Signal::STOP);
        }
        self.freeze_sessions();
    }

    /// Continues a stopped server and its sessions.
    pub fn thaw(&self) {
        for pid in children(self.unshare.id()) {
            signal(pid, Signal::CONT);
        }
        self.thaw_sessions();
    }

    /// Kills one process of a session.
    pub fn kill_one(&self, pid: u32) {
        signal(pid, Signal::KILL);
    }

    /// The processes of all sessions, with their names.
    pub fn session_processes(&self) -> Vec<(u32, String)> {
        let mut todo: Vec<u32> = children(self.unshare.id())
            .into_iter()
            .flat_map(children)
            .collect();
        let mut found = Vec::new();
        while let Some(pid) = todo.pop() {
            todo.extend(children(pid));
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            found.push((pid, name.trim_end().to_owned()));
        }
        found
    }

    fn signal_sessions(&self, what: Signal) {
        for (pid, _) in self.session_processes() {
            signal(pid, what);
        }
    }

    fn write_client_files(&self) {
        let mut known = String::new();
        for file in ["host_ed25519.pub", "host_ecdsa.pub"] {
            let key = fs::read_to_string(self.dir.path().join(file)).unwrap();
            known += &format!("[{}]:{} {key}", self.address, self.port);
        }
        fs::write(self.known_hosts(), known).unwrap();
        let config = format!(
            "Host *\n HostName {}\n Port {}\n User {}\n IdentityFile {}\n \
             IdentitiesOnly yes\n IdentityAgent none\n UserKnownHostsFile {}\n \
             GlobalKnownHostsFile none\n StrictHostKeyChecking yes\n",
            self.address,
            self.port,
            self.account.name,
            self.client_key().display(),
            self.known_hosts().display(),
        );
        fs::write(self.ssh_config(), config).unwrap();
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if self.unshare.try_wait().unwrap().is_none() {
            self.kill();
        }
        if thread::panicking() {
            eprintln!("--- log of sshd ---\n{}--- end of the log ---", self.log());
        }
    }
}

/// Creates a key pair `file` and `file.pub`.
pub fn keygen(file: &Path, kind: &str, passphrase: &str) {
    run(command("ssh-keygen")
        .args(["-q", "-t", kind, "-C", "scpfs test", "-N", passphrase, "-f"])
        .arg(file));
}

/// Runs a program; panics if it fails.
pub fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

#[expect(
    clippy::disallowed_methods,
    reason = "tests start the programs they test against"
)]
pub fn command(program: &str) -> Command {
    Command::new(program)
}

/// Kills a server that `unshare` started.
pub fn kill(unshare: &mut Child) {
    // The server is process 1 of its namespace: the kernel kills the others with it.
    for pid in children(unshare.id()) {
        signal(pid, Signal::KILL);
    }
    unshare.wait().unwrap();
}

pub fn missing() -> Option<&'static str> {
    if !rustix::process::getuid().is_root() {
        return Some("root");
    }
    if !Path::new(SSHD).exists() {
        return Some(SSHD);
    }
    ["ssh-keygen", "unshare", "useradd", "chpasswd"]
        .into_iter()
        .find(|program| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
            dirs.push("/usr/sbin".into());
            !dirs.iter().any(|dir| dir.join(program).exists())
        })
}

/// Returns a port on which no process listens.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn write_config(dir: &Path, options: &Options, port: u16) {
    let mut config = options.lines.join("\n");
    if let Some(pam) = options.pam {
        fs::write(dir.join("pam"), pam).unwrap();
        config += "\nUsePAM yes";
    }
    let dir = dir.display();
    let address = options.address;
    config += &format!(
        "
        ListenAddress {address}
        Port {port}
        HostKey {dir}/host_ed25519
        HostKey {dir}/host_ecdsa
        AuthorizedKeysFile {dir}/authorized_keys
        PidFile none
        LogLevel VERBOSE
        UsePAM no
        StrictModes no
        PrintMotd no
        UseDNS no
        MaxStartups 100
        PermitRootLogin yes
        PasswordAuthentication no
        KbdInteractiveAuthentication no
        "
    );
    fs::write(Path::new(&dir.to_string()).join("sshd_config"), config).unwrap();
}

pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|it| it.parse().ok())
        .collect()
}

fn signal(pid: u32, what: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // The process may have ended already.
        kill_process(pid, what).unwrap_or_default();
    }
}
