//! The guard: a small process that clears the mountpoint if the daemon dies without doing so.
//!
//! It holds the reading end of a pipe whose writing end only the daemon has. The daemon writes a
//! byte when the mount has ended in order; an end without it means that the daemon was killed.
//! The guard has a session of its own, so that no key on a terminal reaches it, and nothing else
//! open: above all not the FUSE device, which keeps a mount from dying.

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
use crate::control::PATIENCE;
use crate::mount::attach;
use crate::mount::attach::WhenBusy;
use crate::mount::mountinfo;
use crate::mount::signals;
use crate::process;

/// How long a mount may take to be dead after its daemon is, and how often it is looked at.
const DYING: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(100);

/// How long the guard may take to end after the daemon has told it to.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// The daemon's hold on its guard.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    pipe: File,
}

impl Guard {
    /// Starts a guard for the mount with this id; `socket` is a file to remove if the
    /// daemon does not.
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

    /// Lets the guard go: there is nothing left to clear.
    pub fn release(mut self) {
        if let Err(error) = self.pipe.write_all(b"e") {
            log::debug!("the guard has gone before: {error}");
        }
        drop(self.pipe);
        let mut waited = Duration::ZERO;
        while matches!(self.child.try_wait(), Ok(None)) && waited < LAST_WAIT {
            thread::sleep(Duration::from_millis(5));
            waited += Duration::from_millis(5);
        }
    }
}

/// What the guard does, in a process of its own, until its daemon has ended.
pub fn run(task: &config::Guard) -> io::Result<()> {
    // systemd sends SIGTERM to all at once; the guard has to outlive the daemon.
    signals::block()?;
    // It fails in who leads a process group: a shell that was told to start it by hand.
    let _leads = rustix::process::setsid();
    rustix::process::chdir("/")?;
    close_the_rest();
    // Last: whoever sees the name finds a guard that is ready.
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
    while waited < DYING {
        let mount = match mountinfo::by_id(&task.mount_id) {
            Ok(None) => break,
            // No descriptor is left in the system; one may be free soon.
            Err(_) => None,
            Ok(mount) => mount,
        };
        if let Some(mount) = mount
            && is_dead(&mount.path)
        {
            let fusermount = task.fusermount.as_deref();
            return attach::detach_by_id(&mount.id, fusermount, WhenBusy::Hide)
                .map(drop)
                .map_err(io::Error::other);
        }
        thread::sleep(STEP);
        waited += STEP;
    }
    Ok(())
}

/// Closes what the daemon had inherited from whoever started it.
fn close_the_rest() {
    // SAFETY: nothing in this process owns a descriptor but the three standard ones. On a kernel
    // without this call (before 5.9) they stay open, which does no harm.
    let _closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// Whether nobody serves the mount any more. Asks for what the kernel never answers by itself; a
/// daemon that does not answer within 10 s is not dead, but may be stopped.
pub fn is_dead(mountpoint: &Path) -> bool {
    let (tell, told) = mpsc::channel();
    let mountpoint = mountpoint.to_owned();
    let asking = thread::Builder::new().spawn(move || {
        let answer = rustix::fs::statvfs(&mountpoint);
        let is_dead = matches!(
            answer,
            Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED)
        );
        tell.send(is_dead)
    });
    asking.is_ok() && told.recv_timeout(PATIENCE).unwrap_or(false)
}

/// Removes the socket of a daemon that has ended without doing so.
fn remove_socket(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::debug!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}
