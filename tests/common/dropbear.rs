//! A throwaway dropbear on the loopback, for tests: the server of OpenWrt and other small hosts.
//!
//! Like [`crate::sshd`], it has its own port, keys and account, and all programs of its sessions
//! end with it. It needs `dropbear` in addition to the requirements of [`crate::sshd`]; without it
//! tests are skipped, or fail if `SCPFS_REQUIRE` contains `dropbear`.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use scpfs::ssh::settings::IdentityFile;
use scpfs::ssh::settings::Settings;
use scpfs::ssh::settings::StrictHostKeyChecking;
use tempfile::TempDir;

use crate::capability::Capability;
use crate::capability::skip;
use crate::local::DROPBEAR_SCP;
use crate::sshd::Account;
use crate::sshd::children;
use crate::sshd::command;
use crate::sshd::ensure_account;
use crate::sshd::free_port;
use crate::sshd::home;
use crate::sshd::keygen;
use crate::sshd::kill;
use crate::sshd::missing;
use crate::sshd::run;

/// dropbear reads `authorized_keys` only from the home directory, so it needs an account of its
/// own.
const ACCOUNT: Account = Account {
    name: "scpfs-dropbear",
    shell: "/bin/dash",
    files: &[],
};

/// Runs its arguments as a command. If the file `$0` exists, it replaces OpenSSH's scp by that file
/// first.
const WITH_ITS_SCP: &str =
    "[ ! -e \"$0\" ] || mount --bind \"$0\" /usr/bin/scp || exit; exec \"$@\"";

/// A running server. It ends, with all its sessions, when this is dropped.
#[derive(Debug)]
pub struct Dropbear {
    dir: TempDir,
    port: u16,
    /// `unshare`, whose only child is the server.
    unshare: Child,
}

impl Dropbear {
    /// Starts a server and waits until it listens. Only one server may run at a time.
    ///
    /// Returns `None`, and reports a skip, if the machine lacks something.
    pub fn start() -> Option<Self> {
        let is_there = Path::new("/usr/sbin/dropbear").exists();
        if let Some(missing) = missing().or((!is_there).then_some("dropbear")) {
            skip(Capability::Dropbear, missing);
            return None;
        }
        if !Path::new(DROPBEAR_SCP).exists() {
            // The tests continue with OpenSSH's scp instead.
            skip(Capability::DropbearScp, DROPBEAR_SCP);
        }
        ensure_account(ACCOUNT);
        let dir = tempfile::Builder::new()
            .prefix("scpfs-dropbear-")
            .tempdir()
            .unwrap();
        keygen(&dir.path().join("id"), "ed25519", "");
        let ssh = home(ACCOUNT).join(".ssh");
        fs::create_dir_all(&ssh).unwrap();
        fs::copy(dir.path().join("id.pub"), ssh.join("authorized_keys")).unwrap();
        for path in [&ssh, &ssh.join("authorized_keys")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let host_key = dir.path().join("host");
        run(command("dropbearkey")
            .args(["-t", "ed25519", "-f"])
            .arg(&host_key));
        // Another program may take the port before the server does, so that this is retried.
        for _ in 0..5 {
            let port = free_port();
            let mut unshare = command("unshare")
                .args(["--mount", "--propagation", "private", "--pid", "--fork"])
                .args([
                    "--kill-child",
                    "--mount-proc",
                    "sh",
                    "-c",
                    WITH_ITS_SCP,
                    DROPBEAR_SCP,
                ])
                .args(["/usr/sbin/dropbear", "-F", "-s", "-P", "/dev/null", "-p"])
                .arg(format!("127.0.0.1:{port}"))
                .arg("-r")
                .arg(&host_key)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            for _ in 0..3000 {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    let dropbear = Self { dir, port, unshare };
                    dropbear.write_known_hosts();
                    return Some(dropbear);
                }
                if unshare.try_wait().unwrap().is_some() {
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
            kill(&mut unshare);
        }
        panic!("dropbear found no port to listen on");
    }

    fn write_known_hosts(&self) {
        let shown = command("dropbearkey")
            .arg("-y")
            .arg("-f")
            .arg(self.dir.path().join("host"))
            .output()
            .unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        let key = shown.lines().find(|line| line.starts_with("ssh-")).unwrap();
        let line = format!("[127.0.0.1]:{} {key}\n", self.port);
        fs::write(self.known_hosts(), line).unwrap();
    }

    fn known_hosts(&self) -> PathBuf {
        self.dir.path().join("known_hosts")
    }

    /// Settings for this server with its client key, without prompts.
    pub fn settings(&self) -> Settings {
        let mut settings = Settings::new("127.0.0.1", self.port, ACCOUNT.name);
        settings.identity_files = vec![IdentityFile {
            path: self.dir.path().join("id"),
            is_explicit: true,
        }];
        settings.user_known_hosts_files = vec![self.known_hosts()];
        settings.strict = StrictHostKeyChecking::Yes;
        settings
    }

    pub fn user(&self) -> &'static str {
        ACCOUNT.name
    }
}

impl Drop for Dropbear {
    fn drop(&mut self) {
        if !children(self.unshare.id()).is_empty() {
            kill(&mut self.unshare);
        }
    }
}
