//! Starts child processes; no other module does.
//!
//! Programs are named by path and get their arguments as a list. Only ProxyCommand is run by a
//! shell, because `ssh_config(5)` defines it so. Children inherit no file descriptors but their
//! standard streams: Rust opens everything close-on-exec.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::io;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// The program that connects to the host instead of a TCP connection of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// A command line for `/bin/sh`, tokens expanded (ProxyCommand).
    Command(String),
    /// A program and its arguments, run without a shell (ProxyJump).
    Jump {
        program: PathBuf,
        args: Vec<OsString>,
    },
}

/// The most output that is read from a captured program, per stream. Expected outputs are far
/// smaller.
const MAX_OUTPUT_BYTES: u64 = 4 << 20;

/// The first argument that makes this program run as a guard process. Without a colon it cannot be
/// mistaken for `host:dir`.
pub const GUARD: &str = "_guard";

/// The output and exit code of a program.
#[derive(Debug)]
pub struct Captured {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// `None` if a signal killed the program.
    pub code: Option<i32>,
}

/// Runs a program with empty input, waits for its end and returns its output.
///
/// Blocks for at most `limit` per output stream.
///
/// # Errors
/// The program cannot be started or read. `TimedOut`: its output did not end in time, and the
/// program was killed.
pub fn capture<S: AsRef<OsStr>>(
    program: &Path,
    args: &[S],
    limit: Duration,
) -> io::Result<Captured> {
    capture_with(program, args, &[], limit)
}

/// Does the same as [`capture`], with additional environment variables.
///
/// # Errors
/// See [`capture`].
pub fn capture_with<S: AsRef<OsStr>>(
    program: &Path,
    args: &[S],
    environment: &[(&str, String)],
    limit: Duration,
) -> io::Result<Captured> {
    let mut child = command(program)
        .args(args)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other(
            "the output pipes of the program are missing",
        ));
    };
    let stdout = read_on_thread(stdout)?;
    let stderr = read_on_thread(stderr)?;
    let outputs = stdout
        .recv_timeout(limit)
        .and_then(|stdout| stderr.recv_timeout(limit).map(|stderr| (stdout, stderr)));
    let Ok((stdout, stderr)) = outputs else {
        kill_and_reap(&mut child);
        return Err(io::ErrorKind::TimedOut.into());
    };
    let status = child.wait()?;
    Ok(Captured {
        stdout: stdout?,
        stderr: stderr?,
        code: status.code(),
    })
}

/// Reads a pipe to its end on its own thread. With one thread per pipe the program cannot block on
/// a full pipe while the other one is read.
fn read_on_thread(
    pipe: impl Read + Send + 'static,
) -> io::Result<mpsc::Receiver<io::Result<Vec<u8>>>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .name("child output".to_owned())
        .spawn(move || {
            let mut output = Vec::new();
            let result = pipe.take(MAX_OUTPUT_BYTES).read_to_end(&mut output);
            // The receiver is gone if the time limit was reached.
            sender.send(result.map(|_| output)).unwrap_or_default();
        })?;
    Ok(receiver)
}

/// Whether a proxy may use the terminal to ask the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// The proxy stays in our process group and may prompt.
    Shared,
    /// The proxy gets its own process group and must not prompt.
    Avoided,
}

/// A running proxy; dropping this kills it.
#[derive(Debug)]
pub struct ProxyChild {
    child: Child,
}

impl ProxyChild {
    /// Starts the proxy and returns it with our end of the socket that is its standard input and
    /// output.
    ///
    /// With [`Terminal::Shared`] the child stays in our process group, so that it can ask for a
    /// password and Ctrl-C ends it together with us. With [`Terminal::Avoided`] it gets its own
    /// process group, which signals from the terminal's keys do not reach.
    ///
    /// # Errors
    /// The socket cannot be created, or the program cannot be started.
    pub fn start(proxy: &Proxy, terminal: Terminal) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = match proxy {
            Proxy::Command(line) => {
                let mut command = command(Path::new("/bin/sh"));
                command.arg("-c").arg(format!("exec {line}"));
                command
            }
            Proxy::Jump { program, args } => {
                let mut command = command(program);
                if terminal == Terminal::Avoided {
                    command.args(["-o", "BatchMode=yes"]);
                }
                command.args(args);
                command
            }
        };
        if terminal == Terminal::Avoided {
            command.process_group(0);
        }
        command.stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)));
        command.stdout(Stdio::from(OwnedFd::from(theirs)));
        // Standard error is inherited: the proxy's messages explain why a connection fails.
        let child = command.spawn()?;
        Ok((Self { child }, ours))
    }
}

impl Drop for ProxyChild {
    fn drop(&mut self) {
        kill_and_reap(&mut self.child);
    }
}

/// Starts this program again as the guard process of a mount; see `mount::guard`.
///
/// # Errors
/// The process cannot be started.
pub fn start_guard(args: &[&OsStr], input: OwnedFd) -> io::Result<Child> {
    command(Path::new("/proc/self/exe"))
        .arg0("scpfs-guard")
        .arg(GUARD)
        .args(args)
        .stdin(Stdio::from(input))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// Kills a child and waits for it, so that no zombie remains.
fn kill_and_reap(child: &mut Child) {
    if let Err(err) = child.kill().and_then(|()| child.wait().map(drop)) {
        log::debug!("cannot kill process {}: {err}", child.id());
    }
}

/// Returns the command line of a proxy for messages.
pub fn describe(proxy: &Proxy) -> String {
    match proxy {
        Proxy::Command(line) => line.clone(),
        Proxy::Jump { program, args } => {
            let mut words: Vec<OsString> = vec![program.into()];
            words.extend(args.iter().cloned());
            words
                .iter()
                .map(|word| word.display().to_string())
                .collect::<Vec<_>>()
                .join(" ")
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "only this module starts processes"
)]
fn command(program: &Path) -> Command {
    Command::new(program)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn sh(script: &str, limit: Duration) -> io::Result<Captured> {
        capture(Path::new("/bin/sh"), &["-c", script], limit)
    }

    #[test]
    fn captures_both_outputs_and_the_exit_code() {
        let captured = sh("echo out; echo err >&2; exit 3", LIMIT).unwrap();
        assert_eq!(captured.stdout, b"out\n");
        assert_eq!(captured.stderr, b"err\n");
        assert_eq!(captured.code, Some(3));
    }

    #[test]
    fn a_flood_on_both_outputs_does_not_stall() {
        let captured = sh(
            "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero",
            LIMIT,
        )
        .unwrap();
        assert_eq!(
            (captured.stdout.len(), captured.stderr.len()),
            (300_000, 300_000)
        );
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let err = sh("exec sleep 1000", Duration::from_millis(50)).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let err = capture(Path::new("/nonexistent/x"), &[""; 0], LIMIT).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_proxy_talks_over_one_socket_and_ends_with_its_owner() {
        let proxy = Proxy::Command("cat".to_owned());
        let (child, mut stream) = ProxyChild::start(&proxy, Terminal::Avoided).unwrap();
        let pid = child.child.id();
        stream.write_all(b"hello").unwrap();
        let mut buf = [0; 5];
        stream.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"hello");
        drop(child);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(stream.read(&mut buf).unwrap(), 0);
    }
}
