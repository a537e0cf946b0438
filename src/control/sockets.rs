//! Makes and finds control sockets: `DIRECTORY/PID.sock` in the first usable directory.
//!
//! A directory is usable if it belongs to this user and no other user may enter it.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;

use rustix::net::AddressFamily;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketFlags;
use rustix::net::SocketType;

use crate::config;
use crate::owned_path;

/// The file name extension of a socket.
const EXTENSION: &str = "sock";

/// The maximum number of sockets of another user that root connects to.
const MAX_FOREIGN_SOCKETS: usize = 64;

/// A listening control socket; its file is removed on drop.
#[derive(Debug)]
pub struct Socket {
    pub path: PathBuf,
    pub listener: UnixListener,
}

impl Drop for Socket {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Makes the control socket of this process in the first usable directory.
///
/// # Errors
/// No directory is usable; the error is that of the last one.
pub fn listen(config: &config::Sockets) -> io::Result<Socket> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for dir in directories(config) {
        match listen_in(&dir, config.uid) {
            Ok(socket) => return Ok(socket),
            Err(error) => {
                log::debug!("no control socket in {}: {error}", dir.display());
                failure = error;
            }
        }
    }
    Err(failure)
}

fn listen_in(dir: &Path, uid: u32) -> io::Result<Socket> {
    owned_path::check(dir, uid)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    owned_path::check(dir, uid)?;
    if !is_private(dir, uid) {
        return Err(io::Error::other("it is not private to this user"));
    }
    let path = dir.join(format!("{}.{EXTENSION}", std::process::id()));
    if UnixStream::connect(&path).is_ok() {
        // A process in another PID namespace has the same number and uses the same directory.
        return Err(io::ErrorKind::AddrInUse.into());
    }
    // Rename it into place only when it is listening: before that another process would take it
    // for the stale socket of a dead daemon and remove it.
    let unready = path.with_extension("new");
    remove(&unready);
    let listener = UnixListener::bind(&unready)?;
    fs::set_permissions(&unready, fs::Permissions::from_mode(0o600))?;
    fs::rename(&unready, &path)?;
    Ok(Socket { path, listener })
}

/// Connects to all control sockets of this user, and removes the stale ones.
pub fn connect_to_all(config: &config::Sockets) -> Vec<UnixStream> {
    connect_to_all_of(config, config.uid)
}

/// Connects to all control sockets on which processes of `owner` listen. Returns nothing if `owner`
/// is another user and this user is not root.
pub fn connect_to_all_of(config: &config::Sockets, owner: u32) -> Vec<UnixStream> {
    let mut found = Vec::new();
    if owner == config.uid {
        for dir in directories(config) {
            if is_private(&dir, owner) {
                found.extend(connect_all(&dir, true));
            }
        }
    } else if config.uid == 0 {
        let dir = PathBuf::from(format!("/run/user/{owner}/scpfs"));
        if is_private(&dir, owner) {
            found.extend(connect_all(&dir, false));
        }
    }
    found.retain(|stream| is_listener(stream, owner));
    found
}

fn connect_all(dir: &Path, is_ours: bool) -> Vec<UnixStream> {
    let mut paths: Vec<PathBuf> = entries(dir)
        .into_iter()
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == EXTENSION)
        })
        .collect();
    paths.sort();
    if !is_ours {
        paths.truncate(MAX_FOREIGN_SOCKETS);
    }
    let connect = |path: PathBuf| match connect_without_waiting(&path) {
        Ok(stream) => Some(stream),
        Err(error) => {
            if is_ours && error.kind() == io::ErrorKind::ConnectionRefused {
                remove(&path);
            }
            None
        }
    };
    paths.into_iter().filter_map(connect).collect()
}

/// Connects, or fails with EAGAIN if the queue of the listener is full. A blocking connect(2) would
/// wait for a daemon that is stopped, or that wants to keep root waiting.
fn connect_without_waiting(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Returns the directories for sockets of this user, the preferred one first.
fn directories(config: &config::Sockets) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    if config.uid == 0 {
        dirs.push(PathBuf::from("/run/scpfs"));
    }
    let runtime_dir = config
        .runtime_dir
        .clone()
        .unwrap_or_else(|| format!("/run/user/{}", config.uid).into());
    dirs.push(runtime_dir.join("scpfs"));
    dirs.push(config.cache_base.join("control"));
    dirs
}

fn is_private(dir: &Path, uid: u32) -> bool {
    fs::symlink_metadata(dir)
        .is_ok_and(|meta| meta.is_dir() && meta.uid() == uid && meta.mode() & 0o077 == 0)
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(items) = fs::read_dir(dir) else {
        return Vec::new();
    };
    items.flatten().map(|item| item.path()).collect()
}

/// Returns whether a process of `uid` listens on the other end: `SO_PEERCRED` has the credentials
/// of the process that called listen(2), see unix(7). The owner of the file proves less, because a
/// user can make a hard link to the socket of another.
pub fn is_listener(stream: &UnixStream, uid: u32) -> bool {
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid.as_raw() == uid)
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::debug!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(dir: &Path) -> u32 {
        fs::metadata(dir).unwrap().uid()
    }

    #[test]
    fn socket_is_private_and_removed_on_drop() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("scpfs");
        let socket = listen_in(&dir, own(base.path())).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&socket.path)), (0o700, 0o600));
        assert_eq!(connect_all(&dir, true).len(), 1);
        let path = socket.path.clone();
        drop(socket);
        assert!(!path.exists());
    }

    /// A socket does not accept connections between bind(2) and listen(2).
    #[test]
    fn connect_all_does_not_remove_a_socket_that_is_being_made() {
        use std::sync::atomic::AtomicBool;
        use std::sync::atomic::Ordering;

        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("scpfs");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    connect_all(&dir, true);
                }
            });
            let made = || listen_in(&dir, own(base.path()));
            let n_kept = (0..2000)
                .filter(|_| made().is_ok_and(|socket| socket.path.exists()))
                .count();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(n_kept, 2000);
        });
    }

    #[test]
    fn connect_all_removes_a_stale_socket_of_this_user() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("scpfs");
        drop(listen_in(&dir, own(base.path())).unwrap());
        let stale = dir.join("1.sock");
        drop(UnixListener::bind(&stale).unwrap());
        assert!(stale.exists());
        assert!(connect_all(&dir, false).is_empty() && stale.exists());
        assert!(connect_all(&dir, true).is_empty());
        assert!(!stale.exists());
    }

    #[test]
    fn listen_refuses_a_directory_that_is_not_private() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("scpfs");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(listen_in(&dir, own(base.path())).is_err());
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(listen_in(&dir, own(base.path()) + 1).is_err());
        let link = base.path().join("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        assert!(listen_in(&link, own(base.path())).is_err());
    }
}
