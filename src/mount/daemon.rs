//! Going to the background: the child does everything from the start; the parent waits to hear
//! how it went and then leaves.
//!
//! The fork comes before the first thread. Until the mount stands, the child keeps the terminal,
//! so that it can ask for passwords and say what is wrong.

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
    /// The child has ended, or stands; the status with which to end.
    Parent(process::ExitCode),
    Child(Readiness),
}

/// With this the child tells its parent that the mount stands.
#[derive(Debug)]
pub struct Readiness {
    pipe: Option<File>,
}

/// Splits in two.
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

/// Waits for word from the child, or for its end.
fn wait(read: OwnedFd, child: nix::unistd::Pid) -> process::ExitCode {
    let mut word = [0];
    if File::from(read).read_exact(&mut word).is_ok() {
        return ExitCode::Success.into();
    }
    // It closed the pipe without a word: it has ended, and has said why.
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
    /// In the foreground there is nobody to tell.
    pub fn nobody() -> Self {
        Self { pipe: None }
    }

    pub fn goes_to_background(&self) -> bool {
        self.pipe.is_some()
    }

    /// Leaves the terminal and lets the parent go. What is logged from now on goes to `log`.
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

/// How long a log may be before a mount starts it anew.
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
