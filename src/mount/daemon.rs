//! Runs the mount in the background: the child connects, mounts and serves; the parent waits until
//! the mount is ready or the child has ended, and exits with that status.
//!
//! The fork happens before any thread starts. Until the mount is ready the child keeps the
//! terminal, so that it can ask for passwords and print errors.

use std::fs::File;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process;

use nix::unistd::ForkResult;

use crate::exit_code::ExitCode;

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Role {
    /// The mount is ready, or the child has ended: the status to exit with.
    Parent(process::ExitCode),
    Child(Readiness),
}

/// Reports to the parent that the mount is ready.
#[derive(Debug)]
pub struct Readiness {
    /// The write end of the pipe to the parent; `None` in the foreground.
    pipe: Option<File>,
}

/// Forks. In the parent, blocks until the mount is ready or the child has ended.
///
/// # Errors
/// The pipe or the child process cannot be made.
pub fn fork() -> io::Result<Role> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: the process has one thread, so that nothing in the child can hold a lock of another.
    let result = unsafe { nix::unistd::fork() };
    match result? {
        ForkResult::Parent { child } => {
            drop(write);
            Ok(Role::Parent(wait(read, child)))
        }
        ForkResult::Child => {
            drop(read);
            Ok(Role::Child(Readiness {
                pipe: Some(File::from(write)),
            }))
        }
    }
}

/// Waits until the child reports that the mount is ready, or ends.
fn wait(read: OwnedFd, child: nix::unistd::Pid) -> process::ExitCode {
    let mut byte = [0];
    if File::from(read).read_exact(&mut byte).is_ok() {
        return ExitCode::Success.into();
    }
    // The pipe was closed without a byte: the child has ended and has printed its error.
    let code = match nix::sys::wait::waitpid(child, None) {
        Ok(nix::sys::wait::WaitStatus::Exited(_, code)) => u8::try_from(code).ok(),
        // As a shell reports a child that was killed by a signal.
        Ok(nix::sys::wait::WaitStatus::Signaled(_, signal, _)) => {
            u8::try_from(128 + signal as i32).ok()
        }
        _ => None,
    };
    code.unwrap_or_else(|| ExitCode::Failure.into()).into()
}

impl Readiness {
    /// Returns the value for a mount in the foreground, which has no parent to report to.
    pub fn foreground() -> Self {
        Self { pipe: None }
    }

    /// Detaches from the terminal, redirects standard error to the file `log` and reports to the
    /// parent. Does nothing in the foreground.
    ///
    /// # Errors
    /// The log file cannot be opened, or a system call failed: the parent has not been told.
    pub fn ready(self, log: &Path) -> io::Result<()> {
        let Some(mut pipe) = self.pipe else {
            return Ok(());
        };
        rustix::process::setsid()?;
        rustix::process::chdir("/")?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(open_log(log)?)?;
        pipe.write_all(b"1")
    }
}

/// The size in bytes above which a mount truncates its log file when it opens it.
const MAX_LOG: u64 = 1 << 20;

fn open_log(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.create(true).append(true).mode(0o600);
    let log = options.open(path)?;
    if log.metadata()?.len() > MAX_LOG {
        log.set_len(0)?;
    }
    Ok(log)
}
