//! Starts other programs; the only module that does.
//!
//! Programs are named by path and get their arguments as a list. The one command line that goes
//! through a shell is ProxyCommand, which is defined that way. Children inherit no descriptors:
//! Rust opens everything close-on-exec.

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

/// How the host is reached when not by a TCP connection of our own.
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

/// No output that is asked for here is anywhere near this size.
const MAX_OUTPUT_BYTES: u64 = 4 << 20;

/// The word with which this program starts as a guard. It has no colon, so that it is no host.
pub const GUARD: &str = "_guard";

/// What a program printed, and how it ended.
#[derive(Debug)]
pub struct Captured {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// `None` when a signal ended it.
    pub code: Option<i32>,
}

/// Runs a program without input to its end and returns what it printed.
///
/// After `limit` without an end it is killed and the call fails with `TimedOut`.
pub fn capture<S: AsRef<OsStr>>(
    program: &Path,
    args: &[S],
    limit: Duration,
) -> io::Result<Captured> {
    capture_with(program, args, &[], limit)
}

/// As [`capture`], with some more environment variables.
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
        return Err(io::Error::other("the pipes were just asked for"));
    };
    let stdout = read_aside(stdout)?;
    let stderr = read_aside(stderr)?;
    let outputs = stdout
        .recv_timeout(limit)
        .and_then(|stdout| stderr.recv_timeout(limit).map(|stderr| (stdout, stderr)));
    let Ok((stdout, stderr)) = outputs else {
        end(&mut child);
        return Err(io::ErrorKind::TimedOut.into());
    };
    let status = child.wait()?;
    Ok(Captured {
        stdout: stdout?,
        stderr: stderr?,
        code: status.code(),
    })
}

/// Reads to the end on a thread of its own, so that neither pipe can fill while the other is read.
fn read_aside(pipe: impl Read + Send + 'static) -> io::Result<mpsc::Receiver<io::Result<Vec<u8>>>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .name("child output".to_owned())
        .spawn(move || {
            let mut output = Vec::new();
            let result = pipe.take(MAX_OUTPUT_BYTES).read_to_end(&mut output);
            // Nobody listens any more when the time limit was reached.
            sender.send(result.map(|_| output)).unwrap_or_default();
        })?;
    Ok(receiver)
}

/// Whether a proxy may talk to the person at the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    Shared,
    Avoided,
}

/// A running proxy command; it ends when this is dropped.
#[derive(Debug)]
pub struct ProxyChild {
    child: Child,
}

impl ProxyChild {
    /// Starts the proxy and returns it with our end of its input and output.
    ///
    /// With a shared terminal the child stays in our process group, so that it can ask for a
    /// password and Ctrl-C ends it together with us. Otherwise it gets a group of its own, which
    /// no key on a terminal reaches.
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
        // Its errors go where ours go: they are what explains a connection that does not come up.
        let child = command.spawn()?;
        Ok((Self { child }, ours))
    }
}

impl Drop for ProxyChild {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Starts this program once more, as the guard of a mount; see `mount::guard`.
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

/// Kills and reaps.
fn end(child: &mut Child) {
    if let Err(err) = child.kill().and_then(|()| child.wait().map(drop)) {
        log::debug!("cannot end process {}: {err}", child.id());
    }
}

/// The text of a proxy, for messages.
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
    reason = "this module is the one place that spawns"
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
