//! The guard process: clears the mountpoint if the daemon dies without unmounting.
//!
//! It holds the read end of a pipe whose write end only the daemon has. The daemon writes a byte
//! when the mount has ended in an orderly way. End of file without that byte means that the daemon
//! was killed. The guard has a session of its own, so that signals from a terminal do not reach it.
//! It has no other descriptor open, above all not the FUSE device: that would keep a mount whose
//! daemon was killed from being aborted.

use std::fs::File;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Child;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::pipe::PipeFlags;

use crate::config;
use crate::control::IO_TIMEOUT;
use crate::mount::attach;
use crate::mount::attach::WhenBusy;
use crate::mount::mountinfo;
use crate::mount::signals;
use crate::process;

/// How long the guard waits for the mount to be dead after the daemon was killed.
const DEAD_MOUNT_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long the daemon waits for the guard to exit after it has released it.
const GUARD_EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// The daemon's handle of its guard process.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    pipe: File,
}

impl Guard {
    /// Starts a guard process for the mount with this id. The guard also removes the control socket
    /// `socket` when the daemon has ended.
    ///
    /// # Errors
    /// The pipe or the process cannot be made.
    pub fn start(id: &str, fusermount: Option<&Path>, socket: Option<&Path>) -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let nothing = Path::new("");
        let args = [
            id.as_ref(),
            fusermount.unwrap_or(nothing).as_os_str(),
            socket.unwrap_or(nothing).as_os_str(),
        ];
        let child = process::start_guard(&args, read)?;
        Ok(Self {
            child,
            pipe: write.into(),
        })
    }

    /// Tells the guard process that nothing is left to clear, and waits briefly for its exit.
    pub fn release(mut self) {
        if let Err(error) = self.pipe.write_all(b"e") {
            log::debug!("the guard process has ended already: {error}");
        }
        drop(self.pipe);
        let mut waited = Duration::ZERO;
        while matches!(self.child.try_wait(), Ok(None)) && waited < GUARD_EXIT_TIMEOUT {
            thread::sleep(Duration::from_millis(5));
            waited += Duration::from_millis(5);
        }
    }
}

/// Runs the guard process: waits until the daemon has ended, then clears a dead mount.
///
/// # Errors
/// A system call failed, or the dead mount cannot be unmounted.
pub fn run(task: &config::Guard) -> io::Result<()> {
    // systemd sends SIGTERM to all processes of a unit; the guard must outlive the daemon.
    signals::block()?;
    // setsid(2) fails for the leader of a process group, for example when a shell starts the guard.
    let _is_leader = rustix::process::setsid();
    rustix::process::chdir("/")?;
    close_inherited_fds();
    // The name comes last: a guard that has it is ready.
    rustix::thread::set_name(c"scpfs-guard")?;
    let mut byte = [0];
    let n = io::stdin().lock().read(&mut byte)?;
    if let Some(socket) = &task.socket {
        remove_socket(socket);
    }
    if n > 0 {
        return Ok(());
    }
    let mut waited = Duration::ZERO;
    while waited < DEAD_MOUNT_TIMEOUT {
        let mount = match mountinfo::by_id(&task.mount_id) {
            Ok(None) => break,
            // The system may be out of descriptors for a moment: retry.
            Err(_) => None,
            Ok(mount) => mount,
        };
        if let Some(mount) = mount
            && is_dead(&mount.path)
        {
            let fusermount = task.fusermount.as_deref();
            return attach::detach_by_id(&mount.id, fusermount, WhenBusy::UnmountLazily)
                .map(drop)
                .map_err(io::Error::other);
        }
        thread::sleep(POLL_INTERVAL);
        waited += POLL_INTERVAL;
    }
    Ok(())
}

/// Closes descriptors that the daemon has inherited from the program that started it.
fn close_inherited_fds() {
    // SAFETY: nothing in this process owns a descriptor except the three standard ones. On a kernel
    // without close_range(2) (before 5.9) the others stay open, which does no harm.
    let _closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// Returns whether the mount is dead: its daemon has ended.
///
/// Calls statvfs(2), which the kernel passes on to the daemon. A daemon that does not answer within
/// 10 s is taken for alive: it may be stopped. Blocks for at most that time.
pub fn is_dead(mountpoint: &Path) -> bool {
    let (sender, receiver) = mpsc::channel();
    let mountpoint = mountpoint.to_owned();
    let asking = thread::Builder::new().spawn(move || {
        let answer = rustix::fs::statvfs(&mountpoint);
        let is_dead = matches!(
            answer,
            Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED)
        );
        sender.send(is_dead)
    });
    asking.is_ok() && receiver.recv_timeout(IO_TIMEOUT).unwrap_or(false)
}

/// Removes the control socket of the daemon if the daemon has not done so.
fn remove_socket(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::debug!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}
