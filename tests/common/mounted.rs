//! A real mount of a real sshd.
//!
//! The daemon is a child process. A watchdog kills it when a test takes too long: a process that is
//! blocked in a FUSE request cannot be killed, but the request ends when the daemon does.

#![allow(clippy::disallowed_methods, reason = "tests run programs")]

use std::fs;
use std::fs::File;
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;
use tempfile::TempDir;

use crate::capability::Capability;
use crate::capability::skip;
use crate::sshd;
use crate::sshd::Sshd;
use crate::wait::is_true_within;

/// The longest wait for a condition, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The longest time that one test may use a mount.
const WATCHDOG: Duration = Duration::from_secs(1200);

/// Whether this machine can mount; reports a skip if not.
pub fn can_mount() -> bool {
    let can = Path::new("/dev/fuse").exists();
    if !can {
        skip(Capability::Fuse, "/dev/fuse");
    }
    can
}

/// The program under test. Cargo sets its path (`CARGO_BIN_EXE_scpfs`) only for integration tests
/// of its own package, so each of them implements this trait.
pub trait Program {
    const PATH: &'static str;
}

/// A mounted directory of a throwaway server.
#[derive(Debug)]
pub struct Mounted<P: Program> {
    pub sshd: Sshd,
    daemon: Option<Child>,
    /// Contains the directory on the host, the mountpoint, the cache and the log.
    dir: TempDir,
    /// Dropping this ends the watchdog of the daemon.
    watched: Option<mpsc::Sender<()>>,
    program: PhantomData<P>,
}

impl<P: Program> Mounted<P> {
    /// Mounts with these additional arguments; returns `None`, and reports a skip, if the machine
    /// lacks something.
    pub fn new(args: &[&str]) -> Option<Self> {
        Self::on(Sshd::start(sshd::Options::default())?, args)
    }

    pub fn on(sshd: Sshd, args: &[&str]) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        // /var/tmp is on a disk, like the files of most hosts; /tmp may be a tmpfs.
        let dir = tempfile::Builder::new()
            .prefix("scpfs-mount-")
            .tempdir_in("/var/tmp")
            .unwrap();
        for name in ["host", "mnt", "home"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), open).unwrap();
        let owner = format!("{0}:{0}", sshd.user());
        assert!(
            Command::new("chown")
                .arg(owner)
                .arg(dir.path().join("host"))
                .status()
                .unwrap()
                .success()
        );
        let mut mounted = Self {
            sshd,
            daemon: None,
            dir,
            watched: None,
            program: PhantomData,
        };
        mounted.start(args);
        Some(mounted)
    }

    fn watch(&mut self) {
        let (watched, ended) = mpsc::channel();
        self.watched = Some(watched);
        let pid = self.pid();
        thread::spawn(move || {
            if ended.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("the watchdog ends a mount");
                let _gone = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            }
        });
    }

    /// Mounts another directory of the host, in the background.
    pub fn also(&self, directory: &Path, options: &[&str]) -> Also {
        let point = self.aside("point");
        fs::create_dir(&point).unwrap();
        let mut command = self.command();
        command
            .arg(format!("h:{}", directory.display()))
            .arg(&point)
            .args(options);
        assert!(command.status().unwrap().success());
        Also(point)
    }

    /// A command for the program, with its home and cache in the directory of this mount.
    pub fn command(&self) -> Command {
        let mut command = Command::new(P::PATH);
        command
            .env("HOME", self.dir.path().join("home"))
            .env_remove("XDG_CACHE_HOME");
        command.arg("-F").arg(self.sshd.ssh_config());
        command
    }

    pub fn start(&mut self, args: &[&str]) {
        let n_before = self.log().matches("mounted on").count();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .unwrap();
        let child = self
            .command()
            .arg("-f")
            .arg(format!("host:{}", self.dir.path().join("host").display()))
            .arg(self.dir.path().join("mnt"))
            .args(args)
            .env("RUST_LOG", "scpfs=debug")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(child);
        self.watch();
        self.wait_until("it is mounted", |mounted| {
            let daemon = mounted.daemon.as_mut().unwrap();
            assert!(
                daemon.try_wait().unwrap().is_none(),
                "ended: {}",
                mounted.log()
            );
            mounted.log().matches("mounted on").count() > n_before
        });
    }

    /// Waits for a condition; panics with the daemon's log if it does not become true.
    pub fn wait_until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let is_so = is_true_within(PATIENCE, || is_so(self));
        assert!(
            is_so,
            "timed out waiting until {what}; log:\n{}",
            self.log()
        );
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// The log of the daemon.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// The path of a file on the mount.
    pub fn here(&self, name: &str) -> PathBuf {
        self.dir.path().join("mnt").join(name)
    }

    /// The path of the same file on the host.
    pub fn there(&self, name: &str) -> PathBuf {
        self.dir.path().join("host").join(name)
    }

    /// Writes a file on the host that belongs to the login user.
    pub fn put(&self, name: &str, data: impl AsRef<[u8]>) {
        let path = self.there(name);
        fs::write(&path, data).unwrap();
        let home = fs::metadata(self.sshd.home()).unwrap();
        std::os::unix::fs::chown(&path, Some(home.uid()), Some(home.gid())).unwrap();
    }

    /// A path beside the mountpoint and the directory of the host.
    pub fn aside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command of scpfs for existing mounts (`status`, `umount`, ...), run by the user of the
    /// mount.
    pub fn control(&self, words: &[&str]) -> Command {
        let mut command = Command::new(P::PATH);
        command
            .env("HOME", self.dir.path().join("home"))
            .env_remove("XDG_CACHE_HOME")
            .args(words)
            .stdin(Stdio::null());
        command
    }

    /// Kills the daemon with SIGKILL, as the kernel does when memory is short.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.daemon.as_ref().unwrap().id()).unwrap()
    }

    /// Runs a script in the mounted directory, with `$HERE`, `$THERE` and `$ASIDE`; panics if it
    /// fails.
    pub fn sh(&self, script: &str) -> String {
        let output = Command::new("sh")
            .args(["-euc", script])
            .current_dir(self.dir.path().join("mnt"))
            .env("HERE", self.here(""))
            .env("THERE", self.there(""))
            .env("ASIDE", self.dir.path())
            .env("HOME", self.dir.path().join("home"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{script}\nfailed: {}\n{said}\n{complained}\nlog:\n{}",
            output.status,
            tail(&self.log())
        );
        said
    }

    /// The most memory that the daemon has used so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 1024
    }

    /// How many descriptors the daemon has open.
    pub fn n_descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    /// Waits until the daemon has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        self.wait_until("the daemon has ended", |mounted| {
            status = mounted.daemon.as_mut().unwrap().try_wait().unwrap();
            status.is_some()
        });
        self.daemon = None;
        self.watched = None;
        status.unwrap()
    }

    /// Kills the daemon, and waits until its guard process has unmounted.
    pub fn crash(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
        self.clear_away();
    }

    /// Waits until the guard process of a killed daemon has unmounted.
    pub fn clear_away(&mut self) {
        self.wait_until("nothing is mounted", |mounted| !mounted.is_mounted());
    }

    /// Truncates the log. No daemon may be running.
    pub fn forget_log(&self) {
        fs::write(self.log_file(), "").unwrap();
    }

    /// Unmounts with SIGTERM, which drains; returns the daemon's exit status.
    pub fn unmount(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    pub fn is_mounted(&self) -> bool {
        is_mounted(&self.dir.path().join("mnt"))
    }
}

impl<P: Program> Drop for Mounted<P> {
    fn drop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            return;
        };
        let pid = Pid::from_child(&daemon);
        let _gone = kill_process(pid, Signal::TERM);
        let mut status = None;
        for _ in 0..6000 {
            status = daemon.try_wait().unwrap();
            if status.is_some() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        if status.is_none() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
        let mountpoint = self.dir.path().join("mnt");
        let is_left = is_mounted(&mountpoint);
        if is_left {
            Command::new("umount")
                .arg("-l")
                .arg(&mountpoint)
                .status()
                .unwrap();
        }
        if thread::panicking() {
            eprintln!("the daemon's log:\n{}", tail(&self.log()));
        } else {
            let code = status.and_then(|s| s.code().or(s.signal().map(|s| 128 + s)));
            assert_eq!(code, Some(0), "log:\n{}", tail(&self.log()));
            assert!(!is_left, "it was still mounted");
        }
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

pub fn is_mounted(mountpoint: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let wanted = mountpoint.to_str().unwrap();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(wanted))
}

/// Unmounts with the program `umount`, as a user does.
pub fn unmount(mountpoint: &Path) {
    let status = Command::new("umount").arg(mountpoint).status().unwrap();
    assert!(status.success(), "{status}");
}

/// A second mount, at its mountpoint; dropping it unmounts.
#[derive(Debug)]
pub struct Also(PathBuf);

impl Also {
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn unmount(self) {
        unmount(&self.0);
    }
}

impl Drop for Also {
    fn drop(&mut self) {
        if is_mounted(&self.0) {
            let _ended = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
}
