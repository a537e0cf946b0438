//! Where control sockets are: `DIRECTORY/PID.sock`, in the first directory that can be had.
//!
//! A directory is used only if it belongs to this user and nobody else may enter it.

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

/// What the name of a socket ends with.
const ENDING: &str = "sock";

/// More sockets of another user are not looked at.
const MAX_OF_OTHERS: usize = 64;

/// A control socket that is listened on; its file is removed when this is dropped.
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

/// Makes the control socket of this process, in the first directory that allows it.
pub fn listen(places: &config::Sockets) -> io::Result<Socket> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for dir in directories(places) {
        match listen_in(&dir, places.uid) {
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
        return Err(io::Error::other("it belongs to others as well"));
    }
    let path = dir.join(format!("{}.{ENDING}", std::process::id()));
    if UnixStream::connect(&path).is_ok() {
        // Two namespaces of process numbers share this directory.
        return Err(io::ErrorKind::AddrInUse.into());
    }
    // It gets its name when it is listened on: before that it would be taken for one that a
    // daemon has left.
    let unready = path.with_extension("new");
    remove(&unready);
    let listener = UnixListener::bind(&unready)?;
    fs::set_permissions(&unready, fs::Permissions::from_mode(0o600))?;
    fs::rename(&unready, &path)?;
    Ok(Socket { path, listener })
}

/// Returns the sockets of this user. Those that nobody listens on are removed.
pub fn find(places: &config::Sockets) -> Vec<UnixStream> {
    find_of(places, places.uid)
}

/// Returns the sockets on which `owner` listens, in the directories of that user; only root finds
/// any of another's.
pub fn find_of(places: &config::Sockets, owner: u32) -> Vec<UnixStream> {
    let mut found = Vec::new();
    if owner == places.uid {
        for dir in directories(places) {
            if is_private(&dir, owner) {
                found.extend(connect_all(&dir, true));
            }
        }
    } else if places.uid == 0 {
        let dir = PathBuf::from(format!("/run/user/{owner}/scpfs"));
        if is_private(&dir, owner) {
            found.extend(connect_all(&dir, false));
        }
    }
    found.retain(|stream| is_of(stream, owner));
    found
}

fn connect_all(dir: &Path, is_ours: bool) -> Vec<UnixStream> {
    let mut paths: Vec<PathBuf> = entries(dir)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == ENDING))
        .collect();
    paths.sort();
    if !is_ours {
        paths.truncate(MAX_OF_OTHERS);
    }
    let connect = |path: PathBuf| match connect_at_once(&path) {
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

/// Connects, or fails where nobody takes connections: connect(2) would wait for a daemon that was
/// stopped, or that keeps root waiting.
fn connect_at_once(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Returns the directories in which sockets of this user may be, the best one first.
fn directories(places: &config::Sockets) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    if places.uid == 0 {
        dirs.push(PathBuf::from("/run/scpfs"));
    }
    let runtime_dir = places
        .runtime_dir
        .clone()
        .unwrap_or_else(|| format!("/run/user/{}", places.uid).into());
    dirs.push(runtime_dir.join("scpfs"));
    dirs.push(places.cache_base.join("control"));
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

/// Returns whether it is `uid` who listens on the other side of a socket: who called listen(2), see
/// `SO_PEERCRED` in unix(7). Whose the file and its directory are says less, since a user can give
/// another's socket a further name.
pub fn is_of(stream: &UnixStream, uid: u32) -> bool {
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
    fn a_socket_is_for_its_owner_and_goes_with_its_daemon() {
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

    /// Nobody listens on a socket between its birth and its first word.
    #[test]
    fn a_socket_that_is_being_made_is_not_taken_for_a_stale_one() {
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
    fn a_socket_that_nobody_listens_on_is_removed() {
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
    fn a_directory_that_others_may_enter_is_not_used() {
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
