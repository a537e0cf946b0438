#![cfg(test)]
//! A host that is a local process: the `Transport` trait over the pipes of a shell, with its
//! round trips counted.
//!
//! Nothing here needs a network, a key or a kernel feature. A [`World`] is a directory to work in
//! and the programs that its host has.
#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::disallowed_methods, reason = "the host is a process here")]

use std::fs;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use scpfs::clock::Clock;
use scpfs::remote::probe;
use scpfs::remote::scp_only;
use scpfs::remote::scp_only::ScpOnly;
use scpfs::remote::shell::Shell;
use scpfs::sync::Mutex;
use scpfs::transport::Aborter;
use scpfs::transport::Channel;
use scpfs::transport::Connection;
use scpfs::transport::Error;
use scpfs::transport::Transport;
use tempfile::TempDir;

/// Counts round trips: how often somebody who wrote then had to read.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    trips: AtomicU64,
    bytes_read: AtomicU64,
}

impl Meter {
    pub(crate) fn trips(&self) -> u64 {
        self.trips.load(Ordering::SeqCst)
    }

    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::SeqCst)
    }
}

/// What is to go wrong on a connection.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// The connection breaks when so many more bytes were read from it.
    pub(crate) cut_after_read: Option<u64>,
    /// New connections fail.
    pub(crate) refuses: bool,
    /// Nothing goes over a connection that was made before, in either direction, as long as new
    /// ones fail.
    pub(crate) is_cut: bool,
    /// Nothing more is read from any connection once so many more bytes were, until this is
    /// `None` again.
    pub(crate) stops_after_read: Option<u64>,
}

/// Which programs the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Userland {
    Gnu,
    /// GNU tools with bash as `sh`.
    Bash,
    BusyBox,
}

/// Which commands the host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allowed {
    All,
    /// `scp -f` and `scp -t`, as a forced command or a restricted shell does.
    Scp,
}

#[derive(Debug)]
pub(crate) struct World {
    dir: TempDir,
    allowed: Allowed,
    /// The identification string of the server.
    banner: &'static str,
    pub(crate) meter: Arc<Meter>,
    pub(crate) faults: Arc<Mutex<Faults>>,
}

impl World {
    pub(crate) fn new(userland: Userland) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("scpfs-world-")
            .tempdir()
            .unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let link = |program: &str, name: &str| symlink(program, bin.join(name)).unwrap();
        match userland {
            Userland::Gnu => link("/bin/dash", "sh"),
            Userland::Bash => link("/bin/bash", "sh"),
            Userland::BusyBox => {
                let list = Command::new("busybox")
                    .arg("--list")
                    .output()
                    .expect("busybox")
                    .stdout;
                let busybox = ["/bin/busybox", "/usr/bin/busybox"];
                let busybox = busybox
                    .iter()
                    .find(|path| Path::new(path).exists())
                    .unwrap();
                for applet in String::from_utf8(list).unwrap().lines() {
                    link(busybox, applet);
                }
                link("/usr/bin/scp", "scp");
            }
        }
        Self {
            dir,
            allowed: Allowed::All,
            banner: "SSH-2.0-local",
            meter: Arc::default(),
            faults: Arc::default(),
        }
    }

    /// A host that runs nothing but scp, behind a server with this name.
    pub(crate) fn scp_only(banner: &'static str) -> Self {
        Self {
            allowed: Allowed::Scp,
            banner,
            ..Self::new(Userland::Gnu)
        }
    }

    pub(crate) fn banner(&self) -> &'static str {
        self.banner
    }

    pub(crate) fn is_scp_only(&self) -> bool {
        self.allowed == Allowed::Scp
    }

    /// The directory that is the remote root, as the host sees it.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// From now on, what logs in counts the programs that it runs, and dies instead of running one
    /// when there are none left, see [`Self::leave_programs`].
    pub(crate) fn count_programs(&self) {
        let bin = self.dir.path().join("bin");
        let left = self.dir.path().join("programs left");
        let script = |name: &str, text: &str| {
            let path = bin.join(name);
            fs::write(&path, format!("#!/bin/dash\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        fs::remove_file(bin.join("sh")).unwrap();
        script("sh", "export LANE=$$; exec /bin/dash \"$@\"");
        for name in [
            "scp", "mv", "stat", "chmod", "touch", "rm", "ls", "ln", "cat", "flock", "cmp", "dd",
        ] {
            let left = left.display();
            script(
                name,
                &format!(
                    "read -r n <'{left}'; [ \"$n\" -gt 0 ] || {{ kill -9 $LANE; exit 1; }}\n\
                     echo $((n - 1)) >'{left}'; exec /usr/bin/{name} \"$@\""
                ),
            );
        }
        self.leave_programs(1_000_000);
    }

    pub(crate) fn leave_programs(&self, n: usize) {
        let left = self.dir.path().join("programs left");
        fs::write(left, format!("{n}\n")).unwrap();
    }

    /// Breaks what is connected, and refuses whoever comes.
    pub(crate) fn cut_off(&self) {
        let mut faults = self.faults.lock();
        (faults.is_cut, faults.refuses) = (true, true);
    }

    /// From now on, what logs in cannot make a file larger than this.
    pub(crate) fn limit_file_size(&self, n_bytes: u64) {
        let sh = self.dir.path().join("bin/sh");
        let real = self.dir.path().join("sh");
        fs::rename(&sh, &real).unwrap();
        // POSIX: `ulimit -f` counts blocks of 512 bytes.
        let script = format!(
            "#!/bin/dash\ntrap '' XFSZ\nulimit -f {}\nexec '{}' \"$@\"\n",
            n_bytes / 512,
            real.display()
        );
        fs::write(&sh, script).unwrap();
        fs::set_permissions(&sh, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A directory for a cache.
    pub(crate) fn cache_base(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    pub(crate) fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(Local {
            bin: self.dir.path().join("bin"),
            home: self.root(),
            allowed: self.allowed,
            banner: self.banner,
            meter: Arc::clone(&self.meter),
            faults: Arc::clone(&self.faults),
        })
    }

    pub(crate) fn settings(&self) -> probe::Settings {
        probe::Settings {
            directory: self.root().into_os_string().into_encoded_bytes(),
            max_lanes: 3,
            timeout: Duration::from_secs(20),
            patience: Duration::ZERO,
            fails_fast: false,
        }
    }

    /// Connects and finds out about the host.
    pub(crate) fn shell(&self, clock: Arc<dyn Clock>) -> Shell {
        probe::probe(self.transport(), &self.settings(), clock).unwrap()
    }

    /// The same by scp alone.
    pub(crate) fn scp(&self, clock: Arc<dyn Clock>) -> ScpOnly {
        scp_only::probe::probe(self.transport(), &self.settings(), clock).unwrap()
    }
}

#[derive(Debug)]
struct Local {
    bin: PathBuf,
    home: PathBuf,
    allowed: Allowed,
    banner: &'static str,
    meter: Arc<Meter>,
    faults: Arc<Mutex<Faults>>,
}

impl Transport for Local {
    fn connect(&self) -> Result<Box<dyn Connection>, Error> {
        if self.faults.lock().refuses {
            return Err(Error::Closed { act: "connecting" });
        }
        Ok(Box::new(LocalConnection {
            bin: self.bin.clone(),
            home: self.home.clone(),
            allowed: self.allowed,
            banner: self.banner,
            meter: Arc::clone(&self.meter),
            faults: Arc::clone(&self.faults),
        }))
    }
}

#[derive(Debug)]
struct LocalConnection {
    bin: PathBuf,
    home: PathBuf,
    allowed: Allowed,
    banner: &'static str,
    meter: Arc<Meter>,
    faults: Arc<Mutex<Faults>>,
}

impl Connection for LocalConnection {
    fn exec(&mut self, command: &str) -> Result<Box<dyn Channel>, Error> {
        let is_scp = command.starts_with("scp ")
            && [" -f ", " -t "].iter().any(|mode| command.contains(mode));
        let command = match self.allowed {
            Allowed::Scp if !is_scp => "echo 'this account runs scp only'; exit 1",
            Allowed::All | Allowed::Scp => command,
        };
        let mut child = Command::new(self.bin.join("sh"))
            .args(["-c", command])
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", self.bin.display()))
            .env("HOME", &self.home)
            .env("TZ", "Asia/Kolkata")
            .current_dir(&self.home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| Error::Failed {
                act: "spawning",
                detail: error.to_string(),
            })?;
        Ok(Box::new(LocalChannel {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().unwrap(),
            child,
            meter: Arc::clone(&self.meter),
            faults: Arc::clone(&self.faults),
            wrote_last: false,
            timeout: Duration::from_secs(20),
        }))
    }

    fn aborter(&self) -> Aborter {
        Aborter::new(|| {})
    }

    fn keepalive(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn banner(&self) -> &str {
        self.banner
    }
}

#[derive(Debug)]
struct LocalChannel {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    meter: Arc<Meter>,
    faults: Arc<Mutex<Faults>>,
    wrote_last: bool,
    timeout: Duration,
}

impl LocalChannel {
    fn check_cut(&mut self, act: &'static str) -> Result<(), Error> {
        let is_cut = {
            let faults = self.faults.lock();
            faults.is_cut && faults.refuses
        };
        if is_cut {
            self.child.kill().unwrap();
            return Err(Error::Closed { act });
        }
        Ok(())
    }
}

impl Channel for LocalChannel {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        if std::mem::take(&mut self.wrote_last) {
            self.meter.trips.fetch_add(1, Ordering::SeqCst);
        }
        self.check_cut("reading")?;
        let mut len = buf.len();
        while self.faults.lock().stops_after_read == Some(0) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(left) = self.faults.lock().stops_after_read {
            len = len.min(usize::try_from(left).unwrap());
        }
        {
            let mut faults = self.faults.lock();
            if let Some(left) = &mut faults.cut_after_read {
                if *left == 0 {
                    faults.cut_after_read = None;
                    self.child.kill().unwrap();
                    return Err(Error::Closed { act: "reading" });
                }
                len = len.min(usize::try_from(*left).unwrap());
            }
        }
        let mut fds = [PollFd::new(&self.stdout, PollFlags::IN)];
        let wait = Timespec {
            tv_sec: i64::try_from(self.timeout.as_secs()).unwrap(),
            tv_nsec: i64::from(self.timeout.subsec_nanos()),
        };
        if poll(&mut fds, Some(&wait)).unwrap() == 0 {
            return Err(Error::Timeout {
                act: "reading",
                timeout: self.timeout,
            });
        }
        let n = self
            .stdout
            .read(&mut buf[..len])
            .map_err(|error| Error::Failed {
                act: "reading",
                detail: error.to_string(),
            })?;
        if let Some(left) = &mut self.faults.lock().cut_after_read {
            // Several lanes may read at once.
            *left = left.saturating_sub(n as u64);
        }
        if let Some(left) = &mut self.faults.lock().stops_after_read {
            *left = left.saturating_sub(n as u64);
        }
        self.meter.bytes_read.fetch_add(n as u64, Ordering::SeqCst);
        Ok(n)
    }

    fn write_all(&mut self, data: &[u8]) -> Result<(), Error> {
        self.check_cut("writing")?;
        self.wrote_last = true;
        let stdin = self
            .stdin
            .as_mut()
            .ok_or(Error::Closed { act: "writing" })?;
        let _fd = stdin.as_fd();
        stdin.write_all(data).map_err(|error| Error::Failed {
            act: "writing",
            detail: error.to_string(),
        })
    }

    fn discard_stderr(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    fn finish(mut self: Box<Self>) -> Result<Option<i32>, Error> {
        self.stdin = None;
        let mut rest = Vec::new();
        self.stdout
            .read_to_end(&mut rest)
            .map_err(|error| Error::Failed {
                act: "reading",
                detail: error.to_string(),
            })?;
        Ok(self.child.wait().unwrap().code())
    }
}

impl Drop for LocalChannel {
    fn drop(&mut self) {
        self.stdin = None;
        // Its children end with their pipes.
        let _gone = self.child.kill();
        self.child.wait().unwrap();
    }
}
