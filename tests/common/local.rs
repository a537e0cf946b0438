//! A host that is a local process: the `Transport` trait over the pipes of a shell. Counts round
//! trips.
//!
//! Nothing here needs a network, a key or a kernel feature. A [`World`] is the remote root and the
//! directory of the host's programs.
#![allow(clippy::disallowed_methods, reason = "the host is a process here")]

use std::fs;
use std::io;
use std::io::PipeReader;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStdin;
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
use scpfs::scp_only;
use scpfs::scp_only::ScpOnly;
use scpfs::shell::Shell;
use scpfs::shell::probe;
use scpfs::ssh::Aborter;
use scpfs::ssh::Channel;
use scpfs::ssh::Connection;
use scpfs::ssh::Error;
use scpfs::ssh::Transport;
use scpfs::sync::Mutex;
use tempfile::TempDir;

use crate::capability::Capability;
use crate::capability::skip;
use crate::samples::settings;

/// Counts round trips: each read that follows a write.
#[derive(Debug, Default)]
pub struct Meter {
    trips: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl Meter {
    pub fn trips(&self) -> u64 {
        self.trips.load(Ordering::SeqCst)
    }

    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::SeqCst)
    }

    pub fn bytes_written(&self) -> u64 {
        self.bytes_written.load(Ordering::SeqCst)
    }
}

/// Faults of the connections to this host.
#[derive(Debug, Default)]
pub struct Faults {
    /// The connection breaks after this number of further bytes has been read from it.
    pub cut_after_read: Option<u64>,
    /// New connections fail.
    pub refuses: bool,
    /// While `refuses` is set as well, existing connections transfer nothing in either direction.
    pub is_cut: bool,
    /// After this number of further bytes, reads from all connections block until this is `None`.
    pub stops_after_read: Option<u64>,
    /// At the end of a connection its shell gets the end of its input, and may handle it; otherwise
    /// the shell is killed.
    pub hangs_up_gently: bool,
}

/// Which programs the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Userland {
    Gnu,
    /// GNU tools with bash as `sh`.
    Bash,
    BusyBox,
    /// toybox, with mksh as `sh`, as on Android.
    Toybox,
    /// The BusyBox of OpenWrt: with `scp`, and without `stat` and some others.
    OpenWrt,
    /// Like `OpenWrt`, with dropbear's `scp`, as built by `scripts/dropbear-scp`.
    Dropbear,
    /// A BusyBox with few options, and without `stat` and `scp`.
    Bare,
    /// GNU tools without `scp`.
    NoScp,
    /// Tools with the options of BSD, made of GNU tools.
    Bsd,
}

/// Which commands the host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allowed {
    All,
    /// Only `scp -f` and `scp -t`, like a forced command or a restricted shell.
    Scp,
}

impl Userland {
    /// Whether all programs of this host are BusyBox.
    pub fn is_busybox(self) -> bool {
        matches!(
            self,
            Self::BusyBox | Self::OpenWrt | Self::Dropbear | Self::Bare
        )
    }

    /// Returns the userlands whose programs this machine has; reports a skip of each other one.
    pub fn here<const N: usize>(userlands: [Self; N]) -> impl Iterator<Item = Self> {
        userlands.into_iter().filter(|userland| userland.is_here())
    }

    /// Whether this machine has the programs of this host; reports a skip if not.
    pub fn is_here(self) -> bool {
        let needed: &[_] = match self {
            Self::Toybox => &[
                (Capability::Shells, "/usr/bin/toybox"),
                (Capability::Shells, "/bin/mksh"),
                (Capability::Scp, SCP),
            ],
            Self::Dropbear => &[(Capability::DropbearScp, DROPBEAR_SCP)],
            Self::Bare | Self::NoScp => &[],
            _ => &[(Capability::Scp, SCP)],
        };
        let missing = needed.iter().find(|(_, path)| !Path::new(path).exists());
        if let Some(&(capability, path)) = missing {
            skip(capability, path);
        }
        missing.is_none()
    }
}

/// OpenSSH's scp.
const SCP: &str = "/usr/bin/scp";

/// dropbear's scp, as built by `scripts/dropbear-scp`.
pub const DROPBEAR_SCP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/dropbear/scp");

/// Programs of this machine that OpenWrt does not have.
const NOT_OPENWRT: &[&str] = &[
    "base64", "diff", "groups", "install", "link", "od", "perl", "printenv", "python3", "realpath",
    "stat", "stty", "timeout", "truncate", "unlink",
];

/// Programs that a BusyBox with few options lacks as well.
const NOT_BARE: &[&str] = &["cmp", "fsync", "scp", "xargs"];

const BUSYBOX: &str = "/bin/busybox";

/// Returns an error if the shell of this BusyBox prefers its own applets to the programs in `PATH`:
/// an imitated host would then have all programs that were removed from it.
pub fn check_busybox(busybox: &Path) -> Result<(), String> {
    let output = Command::new(busybox)
        .args(["sh", "-c", "stat -c %s /etc/passwd"])
        .env_clear()
        .env("PATH", "/nonexistent")
        .output();
    let path = busybox.display();
    match output {
        Err(error) => Err(format!("{path}: {error}; install the package `busybox`")),
        Ok(output) if output.status.success() => Err(format!(
            "the shell of {path} ignores PATH, as that of `busybox-static` does; \
             install the package `busybox` in its place"
        )),
        Ok(_) => Ok(()),
    }
}

/// A wrapper for a program that fails if it is called with one of these options.
fn without(program: &str, options: &str) -> String {
    format!(
        "#!/bin/dash\nfor a; do case $a in\n{options}) echo \"invalid option -- $a\" >&2; exit 1;;\n\
         --) break;;\nesac; done\nexec {program} \"$@\"\n"
    )
}

/// `stat -f`, `find` and others of BSD, implemented with GNU programs.
const BSD: &[(&str, &str)] = &[(
    "stat",
    r#"#!/bin/dash
follow=
[ "$1" != -L ] || { follow=-L; shift; }
[ "$1" = -f ] || { echo "stat: illegal option -- $1" >&2; exit 1; }
f=$(printf '%s\n' "$2" | sed 's/%Xp/%f/; s/%z/%s/; s/%l/%h/; s/%XHr/%t/; s/%XLr/%T/
    s/%Fa/%.9X/; s/%Fm/%.9Y/; s/%Fc/%.9Z/; s/%N/%n/; s/%Mp%Lp/%a/')
shift 2
exec /usr/bin/stat $follow -c "$f" "$@"
"#,
)];

#[derive(Debug)]
pub struct World {
    dir: TempDir,
    allowed: Allowed,
    /// The identification string of the server.
    banner: &'static str,
    pub meter: Arc<Meter>,
    pub faults: Arc<Mutex<Faults>>,
}

impl World {
    pub fn new(userland: Userland) -> Self {
        // The name contains options of scp: a wrapped program that searches all its arguments for
        // an option then always fails, and not only if the random part of the name contains one.
        let dir = tempfile::Builder::new()
            .prefix("scpfs-world-t-f-")
            .tempdir()
            .unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let world = Self {
            dir,
            allowed: Allowed::All,
            banner: "SSH-2.0-local",
            meter: Arc::default(),
            faults: Arc::default(),
        };
        let link = |program: &str, name: &str| symlink(program, bin.join(name)).unwrap();
        match userland {
            Userland::Gnu => link("/bin/dash", "sh"),
            Userland::Bash => link("/bin/bash", "sh"),
            Userland::BusyBox => world.install_busybox(),
            Userland::Toybox => {
                world.install("/usr/bin/toybox", "");
                link("/bin/mksh", "sh");
                link(SCP, "scp");
                world.lacks(&["dd", "install"]);
            }
            Userland::OpenWrt => {
                world.install_busybox();
                world.lacks(NOT_OPENWRT);
            }
            Userland::Dropbear => {
                world.install_busybox();
                world.lacks(NOT_OPENWRT);
                world.has_dropbears_scp();
            }
            Userland::Bare => {
                world.install_busybox();
                world.lacks(NOT_OPENWRT);
                world.lacks(NOT_BARE);
                for (name, options) in [
                    ("dd", "iflag=*|oflag=*"),
                    ("ln", "-*T*"),
                    ("mv", "-*T*|-*h*"),
                    ("touch", "-h|-d*"),
                ] {
                    world.put(name, &without(&format!("{BUSYBOX} {name}"), options));
                }
            }
            Userland::NoScp => {
                link("/bin/dash", "sh");
                world.lacks(&["scp"]);
            }
            Userland::Bsd => {
                link("/bin/dash", "sh");
                for (name, script) in BSD {
                    world.put(name, script);
                }
                for (name, options) in [
                    ("dd", "iflag=*|oflag=*"),
                    ("find", "-printf"),
                    ("ln", "-*T*|-*P*"),
                    ("mknod", "-m"),
                    ("mv", "-*T*|--*[a-z]*"),
                    ("touch", "-d@*|@*"),
                ] {
                    let real = format!("/usr/bin/{name}");
                    let mut script = without(&real, options);
                    // The option -h of BSD's `ln` and `mv` is -T of GNU's.
                    if ["ln", "mv"].contains(&name) {
                        let translate = "n=$#; for a; do case $a in -h) a=-T;; -fh) a=-fT;; esac; \
                                         set -- \"$@\" \"$a\"; done; shift $n\nexec ";
                        script = script.replace("exec ", translate);
                    }
                    world.put(name, &script);
                }
            }
        }
        world
    }

    fn install_busybox(&self) {
        check_busybox(Path::new(BUSYBOX)).unwrap_or_else(|error| panic!("{error}"));
        self.install(BUSYBOX, "--list");
        symlink(SCP, self.bin().join("scp")).unwrap();
    }

    fn has_dropbears_scp(&self) {
        let path = self.bin().join("scp");
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).unwrap();
        }
        symlink(DROPBEAR_SCP, path).unwrap();
    }

    /// Creates a symlink for each name that a program with many names lists.
    fn install(&self, program: &str, option: &str) {
        let mut list = Command::new(program);
        if !option.is_empty() {
            list.arg(option);
        }
        let list = list.output().expect(program).stdout;
        for applet in String::from_utf8(list).unwrap().split_whitespace() {
            symlink(program, self.bin().join(applet)).unwrap();
        }
    }

    /// `PATH` at login.
    pub fn path(&self) -> String {
        format!("{}:/usr/bin:/bin", self.bin().display())
    }

    fn bin(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    /// Installs a script as a program of the host.
    pub fn put(&self, name: &str, script: &str) {
        let path = self.bin().join(name);
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).unwrap();
        }
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Wraps each of these programs: the wrapper runs a script before the program.
    pub fn before(&self, programs: &[&str], script: &str) {
        self.around(programs, script, "");
    }

    /// Wraps each of these programs: the wrapper runs one script before the program and another one
    /// after it. `$program` is the name of the program.
    pub fn around(&self, programs: &[&str], before: &str, after: &str) {
        // A program with many names (BusyBox) chooses its function by the last component of its
        // path.
        let real = self.dir.path().join("real");
        fs::create_dir(&real).unwrap();
        for name in programs {
            if self.bin().join(name).symlink_metadata().is_ok() {
                fs::rename(self.bin().join(name), real.join(name)).unwrap();
            } else {
                symlink(Path::new("/usr/bin").join(name), real.join(name)).unwrap();
            }
            let real = real.join(name);
            let real = real.display();
            let script = format!(
                "#!/bin/dash\nprogram={name}\n{before}\n'{real}' \"$@\"\nstatus=$?\n{after}\nexit $status\n"
            );
            self.put(name, &script);
        }
    }

    /// Hides these programs, including those of this machine.
    fn lacks(&self, programs: &[&str]) {
        for name in programs {
            let script = format!("#!/bin/dash\necho 'sh: {name}: not found' >&2\nexit 127\n");
            self.put(name, &script);
        }
    }

    /// A scp-only host, behind a server with this identification string.
    pub fn scp_only(banner: &'static str) -> Self {
        Self {
            allowed: Allowed::Scp,
            banner,
            ..Self::new(Userland::Gnu)
        }
    }

    /// A scp-only host with dropbear's scp and its server; see [`Userland::is_here`].
    pub fn dropbear_only() -> Self {
        let world = Self::scp_only("SSH-2.0-dropbear");
        world.has_dropbears_scp();
        world
    }

    pub fn banner(&self) -> &'static str {
        self.banner
    }

    pub fn is_scp_only(&self) -> bool {
        self.allowed == Allowed::Scp
    }

    /// The directory that is the remote root.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// From now on, each login shell counts the programs that it runs, and is killed instead of
    /// running one more when none are left; see [`Self::leave_programs`].
    pub fn count_programs(&self) {
        let left = self.dir.path().join("programs left");
        self.put("sh", "#!/bin/dash\nexport LANE=$$; exec /bin/dash \"$@\"\n");
        for name in [
            "scp", "mv", "stat", "chmod", "touch", "rm", "ls", "ln", "cat", "flock", "cmp", "dd",
        ] {
            let left = left.display();
            let script = format!(
                "#!/bin/dash\nread -r n <'{left}'; \
                 [ \"$n\" -gt 0 ] || {{ kill -9 $LANE; exit 1; }}\n\
                 echo $((n - 1)) >'{left}'; exec /usr/bin/{name} \"$@\"\n"
            );
            self.put(name, &script);
        }
        self.leave_programs(1_000_000);
    }

    pub fn leave_programs(&self, n: usize) {
        let left = self.dir.path().join("programs left");
        fs::write(left, format!("{n}\n")).unwrap();
    }

    /// Breaks all connections and refuses new ones.
    pub fn cut_off(&self) {
        let mut faults = self.faults.lock();
        (faults.is_cut, faults.refuses) = (true, true);
    }

    /// From now on, logins cannot make a file larger than this.
    pub fn limit_file_size(&self, n_bytes: u64) {
        // POSIX: `ulimit -f` counts blocks of 512 bytes.
        self.at_login(&format!("trap '' XFSZ\nulimit -f {}", n_bytes / 512));
    }

    /// From now on, every login runs this script first, like a start-up file of its shell.
    pub fn at_login(&self, script: &str) {
        let sh = self.bin().join("sh");
        let real = self.dir.path().join("sh");
        if !real.exists() {
            fs::rename(&sh, &real).unwrap();
        }
        // The command of a connection starts one more shell, which must not run the script again.
        let wrapper = format!(
            "#!/bin/bash\nif [ -z \"$LOGGED_IN\" ]; then\nexport LOGGED_IN=1\n{script}\nfi\n\
             exec '{}' \"$@\"\n",
            real.display()
        );
        self.put("sh", &wrapper);
    }

    /// From now on, logins run as this user, who also owns the remote root. Needs root.
    pub fn log_in_as(&self, uid: u32) {
        let shell = self.dir.path().join("sh");
        self.at_login(&format!(
            "exec /usr/bin/setpriv --reuid {uid} --regid {uid} --clear-groups '{}' \"$@\"",
            shell.display()
        ));
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.dir.path(), open).unwrap();
        std::os::unix::fs::chown(self.root(), Some(uid), Some(uid)).unwrap();
    }

    /// A directory for a cache.
    pub fn cache_base(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(Local {
            bin: self.dir.path().join("bin"),
            home: self.root(),
            allowed: self.allowed,
            banner: self.banner,
            meter: Arc::clone(&self.meter),
            faults: Arc::clone(&self.faults),
        })
    }

    pub fn settings(&self) -> scpfs::remote::Settings {
        settings(self.root())
    }

    /// Connects and probes the host.
    pub fn shell(&self, clock: Arc<dyn Clock>) -> Shell {
        probe::probe(self.transport(), &self.settings(), clock).unwrap()
    }

    /// Connects and probes the host with the scp-only dialect.
    pub fn scp(&self, clock: Arc<dyn Clock>) -> ScpOnly {
        scp_only::probe::probe(self.transport(), &self.settings(), clock).unwrap()
    }
}

#[derive(Debug, Clone)]
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
        Ok(Box::new(LocalConnection { host: self.clone() }))
    }
}

#[derive(Debug)]
struct LocalConnection {
    host: Local,
}

impl Connection for LocalConnection {
    fn exec(&mut self, command: &str) -> Result<Box<dyn Channel>, Error> {
        let is_scp = command.starts_with("scp ")
            && [" -f ", " -t "].iter().any(|mode| command.contains(mode));
        let command = match self.host.allowed {
            Allowed::Scp if !is_scp => "echo 'this account runs scp only'; exit 1",
            Allowed::All | Allowed::Scp => command,
        };
        // dropbear refuses commands of more than 9000 bytes.
        assert!(command.len() < 9000);
        // Standard error is merged with the output, as by the real transport.
        let (stdout, writer) = io::pipe().unwrap();
        let child = Command::new(self.host.bin.join("sh"))
            .args(["-c", command])
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", self.host.bin.display()))
            .env("HOME", &self.host.home)
            .env("TZ", "Asia/Kolkata")
            .current_dir(&self.host.home)
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().unwrap())
            .stderr(writer)
            .spawn();
        let mut child = child.map_err(|error| Error::Failed {
            act: "spawning",
            detail: error.to_string(),
        })?;
        Ok(Box::new(LocalChannel {
            stdin: child.stdin.take(),
            stdout,
            child,
            meter: Arc::clone(&self.host.meter),
            faults: Arc::clone(&self.host.faults),
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
        self.host.banner
    }
}

#[derive(Debug)]
struct LocalChannel {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: PipeReader,
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
            // Several connections may read at the same time, so this must not underflow.
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
        let n = data.len() as u64;
        self.meter.bytes_written.fetch_add(n, Ordering::SeqCst);
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
        if self.faults.lock().hangs_up_gently {
            self.child.wait().unwrap();
            return;
        }
        // Child processes of the shell end when their pipes close.
        let _gone = self.child.kill();
        self.child.wait().unwrap();
    }
}
