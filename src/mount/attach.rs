//! Mounts a FUSE device on a mountpoint, and unmounts it.
//!
//! fuser 0.18 is not used for this: it unmounts a path a second time after another process has
//! unmounted it, gives up on a busy mount, splits `fsname=` at commas, and drops the subtype of
//! root's mounts.

use std::ffi::OsString;
use std::fs;
use std::fs::File;
use std::io;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::mount::MountFlags;
use rustix::mount::UnmountFlags;
use rustix::net::RecvAncillaryBuffer;
use rustix::net::RecvAncillaryMessage;
use rustix::net::RecvFlags;

use crate::config;
use crate::error_chain;
use crate::mount::guard;
use crate::mount::mountinfo;
use crate::mount::mountinfo::MountLine;
use crate::path::Escaped;
use crate::process;
use crate::ssh::settings::Settings;
use crate::sync::Mutex;

/// The time limit for `fusermount3`, which usually ends at once.
const FUSERMOUNT_TIMEOUT: Duration = Duration::from_secs(20);

/// Why mounting or unmounting failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the mountpoint {} does not exist; create it with `mkdir`", .0.display())]
    Missing(PathBuf),
    #[error("the mountpoint {} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    #[error(
        "the mountpoint {} is a dead mount; clear it with `scpfs umount`",
        .0.display()
    )]
    Dead(PathBuf),
    #[error("something is mounted on {} already; unmount it or choose another directory", .0.display())]
    Busy(PathBuf),
    #[error("cannot inspect the mountpoint {}", path.display())]
    Inspect { path: PathBuf, source: io::Error },
    #[error("{} belongs to another user; only its owner can mount on it", .0.display())]
    NotOwner(PathBuf),
    #[error(
        "the cache directory {} is below the mountpoint, where the mount would hide it; choose \
         another one with -o cache_dir=DIR, or another mountpoint",
        .0.display()
    )]
    CacheBelowMountpoint(PathBuf),
    #[error(
        "{} is below the mountpoint, where scpfs could not read it to reconnect; choose another \
         mountpoint, or another file",
        .0.display()
    )]
    SshFileBelowMountpoint(PathBuf),
    #[error(
        "there is no /dev/fuse; load the module with `modprobe fuse`, or install a kernel with FUSE"
    )]
    NoDevice,
    #[error("you may not open /dev/fuse; ask the administrator (usually `chmod 666 /dev/fuse`)")]
    DeviceDenied,
    #[error("cannot open /dev/fuse")]
    Device { source: io::Error },
    #[error("`fusermount3` is needed to mount without being root; install the package fuse3")]
    NoFusermount,
    #[error("fusermount3 refused: {0}")]
    Fusermount(String),
    #[error("cannot mount on {}", path.display())]
    Mount { path: PathBuf, source: io::Error },
    #[error("cannot read the list of mounts")]
    Mounts { source: io::Error },
    #[error("cannot find the mount on {} in /proc/self/mountinfo", .0.display())]
    NotListed(PathBuf),
    #[error("{} is in use", .0.display())]
    InUse(PathBuf),
    #[error("something else is mounted over {}", .0.display())]
    Covered(PathBuf),
    #[error("cannot unmount {}", path.display())]
    Unmount { path: PathBuf, source: io::Error },
}

/// A mountpoint that has passed all checks.
#[derive(Debug)]
pub struct Mountpoint {
    path: PathBuf,
    /// The directory that was checked; `None` once it is mounted on. The path may have been given
    /// to another directory since the check.
    dir: Mutex<Option<OwnedFd>>,
    /// The path of `fusermount3`; `None` for root, who does not need it.
    fusermount: Option<PathBuf>,
}

/// Checks that this machine can mount FUSE filesystems.
///
/// # Errors
/// `/dev/fuse` cannot be opened, or `fusermount3` is missing and the user is not root.
pub fn check_machine(is_root: bool, fusermount: Option<&Path>) -> Result<(), Error> {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => {}
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => return Err(Error::NoDevice),
            io::ErrorKind::PermissionDenied => return Err(Error::DeviceDenied),
            _ => return Err(Error::Device { source: error }),
        },
    }
    if !is_root && fusermount.is_none() {
        return Err(Error::NoFusermount);
    }
    Ok(())
}

/// Returns whether `path`, which need not exist yet, is `dir` or is below it.
fn contains(dir: &Path, path: &Path) -> bool {
    let existing = path.ancestors().find_map(|up| fs::canonicalize(up).ok());
    existing.is_some_and(|existing| existing.starts_with(dir))
}

impl Mountpoint {
    /// Checks the mountpoint before the host is contacted; `cache` is the directory of the caches.
    ///
    /// # Errors
    /// The mountpoint is no directory of this user, is a FUSE mount already, or contains `cache`;
    /// or this machine cannot mount.
    pub fn check(
        config: &config::Mount,
        cache: &Path,
        fusermount: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let typed = &config.mountpoint;
        let path = match fs::canonicalize(typed) {
            Ok(path) => path,
            Err(error) => return Err(mountpoint_error(typed, error)),
        };
        let dir = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|error| mountpoint_error(typed, error))?;
        let meta = dir
            .metadata()
            .map_err(|error| mountpoint_error(typed, error))?;
        if !meta.is_dir() {
            return Err(Error::NotADirectory(path));
        }
        if is_fuse_mountpoint(&path)? {
            return Err(Error::Busy(path));
        }
        let is_root = config.uid == 0;
        if !is_root && meta.uid() != config.uid {
            return Err(Error::NotOwner(path));
        }
        if contains(&path, cache) {
            // A request that uses the cache would wait for the mount, and so for itself.
            return Err(Error::CacheBelowMountpoint(cache.to_owned()));
        }
        check_machine(is_root, fusermount.as_deref())?;
        Ok(Self {
            path,
            dir: Mutex::new(Some(dir.into())),
            fusermount: fusermount.filter(|_| !is_root),
        })
    }

    /// Returns the absolute path of the mountpoint, without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that the key, certificate and `known_hosts` files are outside the mountpoint.
    ///
    /// A reconnect that reads such a file through the mount would wait for itself.
    ///
    /// # Errors
    /// [`Error::SshFileBelowMountpoint`].
    pub fn check_ssh_files(&self, settings: &Settings) -> Result<(), Error> {
        let identities = settings.identity_files.iter().map(|file| &file.path);
        let mut files = identities
            .chain(&settings.certificate_files)
            .chain(&settings.user_known_hosts_files)
            .chain(&settings.global_known_hosts_files);
        match files.find(|file| file.exists() && contains(&self.path, file)) {
            None => Ok(()),
            Some(file) => Err(Error::SshFileBelowMountpoint(file.clone())),
        }
    }

    /// Mounts, and returns the FUSE device and the mount's line in `/proc/self/mountinfo`.
    ///
    /// # Errors
    /// The kernel or `fusermount3` refused; or the mount is not at the expected path, because
    /// another user has replaced a directory of the path in a race: then it is unmounted again.
    pub fn attach(&self, config: &config::Mount) -> Result<(OwnedFd, MountLine), Error> {
        let before = mountinfo::mounts().map_err(list_error)?;
        let device = match &self.fusermount {
            None => self.attach_as_root(config),
            Some(program) => self.attach_by_fusermount(program, config),
        }?;
        // An open descriptor would keep the filesystem below busy.
        drop(self.dir.lock().take());
        let is_new = |mount: &MountLine| {
            mount.owner == Some(config.uid) && !before.iter().any(|old| old.id == mount.id)
        };
        let mounts = mountinfo::mounts();
        let mut listed = mounts.iter().flatten().filter(|mount| is_new(mount));
        if let Some(mount) = listed.rfind(|mount| mount.path == self.path) {
            return Ok((device, mount.clone()));
        }
        // Without the device our mount is dead, which tells it from other new mounts.
        drop(device);
        let fstype = format!("fuse.{}", config.subtype);
        let is_ours = |mount: &&MountLine| {
            is_new(mount) && mount.fstype == fstype && mount.source == config.fsname
        };
        // If reading the list failed for lack of a descriptor, the device's descriptor is free now.
        let mounts = mounts
            .or_else(|_| mountinfo::mounts())
            .map_err(list_error)?;
        for mount in mounts.iter().filter(is_ours) {
            if guard::is_dead(&mount.path)
                && let Err(error) = self.detach(&mount.id, WhenBusy::UnmountLazily)
            {
                log::warn!("{}", error_chain::with_causes(&error));
            }
        }
        Err(Error::NotListed(self.path.clone()))
    }

    fn attach_as_root(&self, config: &config::Mount) -> Result<OwnedFd, Error> {
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(|source| Error::Device { source })?;
        let mut data = format!(
            "fd={},rootmode=40000,user_id={},group_id={}",
            device.as_raw_fd(),
            config.uid,
            config.gid
        );
        for (is_set, option) in [
            (allows_others(config), ",allow_other"),
            (config.default_permissions, ",default_permissions"),
        ] {
            if is_set {
                data.push_str(option);
            }
        }
        let mut flags = mount_flags(&config.flags);
        flags.set(MountFlags::RDONLY, config.is_read_only);
        let failed = |error: io::Error| Error::Mount {
            path: self.path.clone(),
            source: error,
        };
        let cstring = |text: &str| {
            std::ffi::CString::new(text).map_err(|error| failed(io::Error::other(error)))
        };
        let data = cstring(&data)?;
        let fstype = format!("fuse.{}", config.subtype);
        let dir = self.dir.lock();
        let target = dir.as_ref().map_or_else(|| self.path.clone(), fd_path);
        rustix::mount::mount(
            config.fsname.as_str(),
            &target,
            fstype.as_str(),
            flags,
            Some(data.as_c_str()),
        )
        .map_err(|error| failed(error.into()))?;
        Ok(device.into())
    }

    /// Mounts with `fusermount3`, which runs as root and sends the FUSE device over the socket
    /// whose descriptor number is in `_FUSE_COMMFD` (libfuse mount.c).
    fn attach_by_fusermount(
        &self,
        program: &Path,
        config: &config::Mount,
    ) -> Result<OwnedFd, Error> {
        let mut options = vec![
            format!("fsname={}", escape_option(&config.fsname)),
            format!("subtype={}", escape_option(&config.subtype)),
        ];
        for (is_set, option) in [
            (allows_others(config), "allow_other"),
            (config.default_permissions, "default_permissions"),
            (config.is_read_only, "ro"),
        ] {
            if is_set {
                options.push(option.to_owned());
            }
        }
        options.extend(config.flags.iter().map(|flag| (*flag).to_owned()));
        let failed = |source: io::Error| Error::Mount {
            path: self.path.clone(),
            source,
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        // `fusermount3` must inherit this descriptor: clear FD_CLOEXEC.
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(|e| failed(e.into()))?;
        let args: [OsString; 4] = [
            "-o".into(),
            options.join(",").into(),
            "--".into(),
            self.path.clone().into(),
        ];
        let environment = [("_FUSE_COMMFD", theirs.as_raw_fd().to_string())];
        let captured = process::capture_with(program, &args, &environment, FUSERMOUNT_TIMEOUT)
            .map_err(failed)?;
        drop(theirs);
        if captured.code != Some(0) {
            let message = Escaped(captured.stderr.trim_ascii()).to_string();
            return Err(Error::Fusermount(with_hint(&message)));
        }
        receive_fd(&ours).map_err(failed)
    }

    /// Unmounts the mount with this id; see [`detach_by_id`].
    ///
    /// # Errors
    /// See [`detach_by_id`].
    pub fn detach(&self, id: &str, when_busy: WhenBusy) -> Result<Detached, Error> {
        detach_by_id(id, self.fusermount.as_deref(), when_busy)
    }

    /// Returns the path of `fusermount3`; `None` for root.
    pub fn fusermount(&self) -> Option<&Path> {
        self.fusermount.as_deref()
    }
}

/// How to unmount a mount that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenBusy {
    /// Leave it mounted and return [`Error::InUse`].
    Fail,
    /// Unmount it lazily (`MNT_DETACH`): hide it, and let it end when its last file is closed.
    UnmountLazily,
}

/// How a mount was unmounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    Unmounted,
    /// It was in use: it is hidden, and ends when its last file is closed.
    Lazily,
}

/// Unmounts the mount with this id. A mount that does not exist any more counts as unmounted.
///
/// Uses the program `fusermount` if it is given, and umount(2), which only root may call, if not.
///
/// # Errors
/// [`Error::InUse`] if the mount is in use and `when_busy` is [`WhenBusy::Fail`];
/// [`Error::Covered`] if its path does not lead to it; other errors if unmounting failed.
pub fn detach_by_id(
    id: &str,
    fusermount: Option<&Path>,
    when_busy: WhenBusy,
) -> Result<Detached, Error> {
    let Some(MountLine { path, .. }) = mountinfo::by_id(id).map_err(list_error)? else {
        return Ok(Detached::Unmounted);
    };
    // umount(2) by path unmounts the topmost mount there, which may be another one.
    let top = mountinfo::topmost(&path).map_err(list_error)?;
    if top.is_none_or(|top| top.id != id) {
        return Err(Error::Covered(path));
    }
    let unmount = |lazily: bool| match fusermount {
        None => unmount_as_root(&path, id, lazily),
        Some(program) => unmount_by_fusermount(&path, program, lazily),
    };
    match (unmount(false), when_busy) {
        (Ok(()), _) => Ok(Detached::Unmounted),
        (Err(Error::InUse(_)), WhenBusy::UnmountLazily) => unmount(true).map(|()| Detached::Lazily),
        (Err(error), _) => Err(error),
    }
}

/// Unmounts the mount with this id and no other.
///
/// The owner of a directory of the path could make it lead to another mount between a check of the
/// path and umount(2). A descriptor of the parent directory excludes that race.
fn unmount_as_root(path: &Path, id: &str, lazily: bool) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Unmount {
        path: path.to_owned(),
        source,
    };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    let parent = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(parent)
        .map_err(failed)?;
    // A mountpoint in this directory cannot be renamed or removed while it is one.
    let target = fd_path(&parent).join(name);
    if mount_number_at(&target).is_none_or(|number| id.split('/').next() != Some(&number)) {
        return Err(Error::Covered(path.to_owned()));
    }
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazily);
    rustix::mount::unmount(&target, flags).map_err(|error| match error {
        rustix::io::Errno::BUSY => Error::InUse(path.to_owned()),
        error => failed(error.into()),
    })
}

/// Returns a path to an open file that is valid even if the file has been renamed.
fn fd_path(file: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Returns the number of the mount that a path leads to.
///
/// Works for dead mounts: opening with `O_PATH` sends no request to the filesystem.
fn mount_number_at(path: &Path) -> Option<String> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)
        .ok()?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let number = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    Some(number.trim().to_owned())
}

fn unmount_by_fusermount(path: &Path, program: &Path, lazily: bool) -> Result<(), Error> {
    let option = if lazily { "-uz" } else { "-u" };
    let args: [OsString; 3] = [option.into(), "--".into(), path.into()];
    let captured =
        process::capture(program, &args, FUSERMOUNT_TIMEOUT).map_err(|source| Error::Unmount {
            path: path.to_owned(),
            source,
        })?;
    if captured.code == Some(0) {
        return Ok(());
    }
    let message = Escaped(captured.stderr.trim_ascii()).to_string();
    // fusermount3 has one exit status for all errors, and its messages are never translated.
    if message.ends_with("Device or resource busy") {
        Err(Error::InUse(path.to_owned()))
    } else {
        Err(Error::Fusermount(message))
    }
}

/// Returns whether the kernel must pass on requests of other users. FUSE has no option for root
/// alone: for `allow_root` fuser refuses the requests of all others.
fn allows_others(config: &config::Mount) -> bool {
    config.allow_other || config.allow_root
}

fn mountpoint_error(path: &Path, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOENT) => Error::Missing(path.to_owned()),
        Some(libc::ENOTDIR) => Error::NotADirectory(path.to_owned()),
        // "Transport endpoint is not connected": the daemon of the mount has ended.
        Some(libc::ENOTCONN) => Error::Dead(path.to_owned()),
        _ => Error::Inspect {
            path: path.to_owned(),
            source: error,
        },
    }
}

/// Returns a message of `fusermount3`, with what the user can do about it.
fn with_hint(message: &str) -> String {
    if message.contains("user_allow_other") {
        format!("{message} (add the line `user_allow_other` to /etc/fuse.conf)")
    } else {
        message.to_owned()
    }
}

/// Returns whether a FUSE filesystem is mounted on `path`. Mounting over other types is allowed.
fn is_fuse_mountpoint(path: &Path) -> Result<bool, Error> {
    let mounts = mountinfo::mounts().map_err(list_error)?;
    let mut on_path = mounts.iter().filter(|mount| mount.path == path);
    Ok(on_path.any(|mount| mount.fstype.starts_with("fuse")))
}

fn list_error(source: io::Error) -> Error {
    Error::Mounts { source }
}

/// Escapes a value for the option list of `fusermount3`.
fn escape_option(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

fn mount_flags(names: &[&str]) -> MountFlags {
    let mut flags = MountFlags::empty();
    for name in names {
        flags |= match *name {
            "nosuid" => MountFlags::NOSUID,
            "nodev" => MountFlags::NODEV,
            "noexec" => MountFlags::NOEXEC,
            "noatime" => MountFlags::NOATIME,
            "nodiratime" => MountFlags::NODIRATIME,
            "relatime" => MountFlags::RELATIME,
            "strictatime" => MountFlags::STRICTATIME,
            "sync" => MountFlags::SYNCHRONOUS,
            "dirsync" => MountFlags::DIRSYNC,
            _ => MountFlags::empty(),
        };
    }
    flags
}

fn receive_fd(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(io::Error::other("fusermount3 sent no device"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_option_escapes_commas_and_backslashes() {
        assert_eq!(escape_option("u@h:/a,ro\\"), "u@h:/a\\,ro\\\\");
    }
}
