//! Attaches a FUSE device to a mountpoint and takes it off again.
//!
//! Done here and not by fuser, whose version 0.18 unmounts a path a second time after somebody
//! else unmounted it, gives up on a busy one, splits a name at its commas and shows root's mounts
//! without their subtype.

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

/// `fusermount3` answers at once.
const FUSERMOUNT_LIMIT: Duration = Duration::from_secs(20);

/// Why nothing can be mounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the mountpoint {} does not exist; make it with `mkdir`", .0.display())]
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
    #[error("cannot look at the mountpoint {}", path.display())]
    Look { path: PathBuf, source: io::Error },
    #[error("{} belongs to somebody else; only its owner can mount on it", .0.display())]
    NotYours(PathBuf),
    #[error(
        "{} lies below the mountpoint, where it could not be reached any more; choose another \
         directory for the cache with -o cache_dir=DIR, or another mountpoint",
        .0.display()
    )]
    CacheBelow(PathBuf),
    #[error(
        "{} lies below the mountpoint, where it could not be read any more when the connection has \
         to be made again; choose another mountpoint, or another file",
        .0.display()
    )]
    KeysBelow(PathBuf),
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
    Unlisted(PathBuf),
    #[error("{} is in use", .0.display())]
    InUse(PathBuf),
    #[error("something else is mounted over {}", .0.display())]
    Covered(PathBuf),
    #[error("cannot unmount {}", path.display())]
    Unmount { path: PathBuf, source: io::Error },
}

/// A mountpoint that was looked at and found fit.
#[derive(Debug)]
pub struct Mountpoint {
    path: PathBuf,
    /// The directory that was looked at, until the mount: by then another may have its name.
    dir: Mutex<Option<OwnedFd>>,
    /// Where `fusermount3` is, for everybody but root.
    fusermount: Option<PathBuf>,
}

/// Checks that this machine can mount at all.
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

/// Whether `path`, which need not be there yet, is below `dir` or is it.
fn is_above(dir: &Path, path: &Path) -> bool {
    let there = path.ancestors().find_map(|up| fs::canonicalize(up).ok());
    there.is_some_and(|there| there.starts_with(dir))
}

impl Mountpoint {
    /// Looks whether something can be mounted, before the host is even asked; `cache` is where the
    /// cache is going to be.
    pub fn check(
        config: &config::Mount,
        cache: &Path,
        fusermount: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let typed = &config.mountpoint;
        let path = match fs::canonicalize(typed) {
            Ok(path) => path,
            Err(error) => return Err(unusable(typed, error)),
        };
        let dir = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|error| unusable(typed, error))?;
        let meta = dir.metadata().map_err(|error| unusable(typed, error))?;
        if !meta.is_dir() {
            return Err(Error::NotADirectory(path));
        }
        if is_mountpoint(&path)? {
            return Err(Error::Busy(path));
        }
        let is_root = config.uid == 0;
        if !is_root && meta.uid() != config.uid {
            return Err(Error::NotYours(path));
        }
        if is_above(&path, cache) {
            // Whatever reads or writes the cache would wait for itself.
            return Err(Error::CacheBelow(cache.to_owned()));
        }
        check_machine(is_root, fusermount.as_deref())?;
        Ok(Self {
            path,
            dir: Mutex::new(Some(dir.into())),
            fusermount: fusermount.filter(|_| !is_root),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks whether what a new connection needs can still be read when the mount is there: whoever
    /// read it through the mount would wait for itself.
    pub fn check_keys(&self, settings: &Settings) -> Result<(), Error> {
        let identities = settings.identity_files.iter().map(|file| &file.path);
        let mut files = identities
            .chain(&settings.certificate_files)
            .chain(&settings.user_known_hosts_files)
            .chain(&settings.global_known_hosts_files);
        match files.find(|file| file.exists() && is_above(&self.path, file)) {
            None => Ok(()),
            Some(file) => Err(Error::KeysBelow(file.clone())),
        }
    }

    /// Mounts; returns the device on which the kernel speaks, and the mount.
    ///
    /// # Errors
    /// The mount is not where it should be, because somebody has exchanged a directory on the way:
    /// then it is taken off again.
    pub fn attach(&self, config: &config::Mount) -> Result<(OwnedFd, MountLine), Error> {
        let before = mountinfo::mounts().map_err(unlisted)?;
        let device = match &self.fusermount {
            None => self.attach_as_root(config),
            Some(program) => self.attach_by_fusermount(program, config),
        }?;
        // From here on it would keep the filesystem below busy.
        drop(self.dir.lock().take());
        let is_new = |mount: &MountLine| {
            mount.owner == Some(config.uid) && !before.iter().any(|old| old.id == mount.id)
        };
        let mounts = mountinfo::mounts();
        let mut listed = mounts.iter().flatten().filter(|mount| is_new(mount));
        if let Some(mount) = listed.rfind(|mount| mount.path == self.path) {
            return Ok((device, mount.clone()));
        }
        // Nobody serves it from here on, which tells it from another mount that was made meanwhile.
        drop(device);
        let fstype = format!("fuse.{}", config.subtype);
        let is_ours = |mount: &&MountLine| {
            is_new(mount) && mount.fstype == fstype && mount.source == config.fsname
        };
        // If no descriptor was left to read the list, there is one now.
        let mounts = mounts.or_else(|_| mountinfo::mounts()).map_err(unlisted)?;
        for mount in mounts.iter().filter(is_ours) {
            if guard::is_dead(&mount.path)
                && let Err(error) = self.detach(&mount.id, WhenBusy::Hide)
            {
                log::warn!("{}", error_chain::with_causes(&error));
            }
        }
        Err(Error::Unlisted(self.path.clone()))
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
            (lets_others(config), ",allow_other"),
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
        let there = dir
            .as_ref()
            .map_or_else(|| self.path.clone(), by_descriptor);
        rustix::mount::mount(
            config.fsname.as_str(),
            &there,
            fstype.as_str(),
            flags,
            Some(data.as_c_str()),
        )
        .map_err(|error| failed(error.into()))?;
        Ok(device.into())
    }

    /// `fusermount3` mounts as root and sends the device over a socket whose number it finds in
    /// `_FUSE_COMMFD` (libfuse mount.c).
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
            (lets_others(config), "allow_other"),
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
        // The one descriptor that a child is to inherit.
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(|e| failed(e.into()))?;
        let args: [OsString; 4] = [
            "-o".into(),
            options.join(",").into(),
            "--".into(),
            self.path.clone().into(),
        ];
        let environment = [("_FUSE_COMMFD", theirs.as_raw_fd().to_string())];
        let captured = process::capture_with(program, &args, &environment, FUSERMOUNT_LIMIT)
            .map_err(failed)?;
        drop(theirs);
        if captured.code != Some(0) {
            let said = Escaped(captured.stderr.trim_ascii()).to_string();
            return Err(Error::Fusermount(hint(&said)));
        }
        receive_fd(&ours).map_err(failed)
    }

    /// Takes the mount with this id off, if it is still there. If it is in use, it may be taken
    /// out of sight, and goes when its last user has gone.
    pub fn detach(&self, id: &str, when_busy: WhenBusy) -> Result<Detached, Error> {
        detach_by_id(id, self.fusermount.as_deref(), when_busy)
    }

    /// Returns the program that unmounts for everybody but root.
    pub fn fusermount(&self) -> Option<&Path> {
        self.fusermount.as_deref()
    }
}

/// What is to become of a mount that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenBusy {
    Leave,
    Hide,
}

/// What has become of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    Gone,
    /// It is out of sight, and goes with its last user.
    Hidden,
}

/// Takes off the mount with this id; one that is not there any more is gone. By `fusermount3` if
/// that is given, as everybody but root must.
///
/// # Errors
/// [`Error::InUse`] if it is in use and is not to be hidden.
pub fn detach_by_id(
    id: &str,
    fusermount: Option<&Path>,
    when_busy: WhenBusy,
) -> Result<Detached, Error> {
    let Some(MountLine { path, .. }) = mountinfo::by_id(id).map_err(unlisted)? else {
        return Ok(Detached::Gone);
    };
    // A path leads to what is on top of it.
    let top = mountinfo::topmost(&path).map_err(unlisted)?;
    if top.is_none_or(|top| top.id != id) {
        return Err(Error::Covered(path));
    }
    let unmount = |lazily: bool| match fusermount {
        None => unmount_as_root(&path, id, lazily),
        Some(program) => unmount_by_fusermount(&path, program, lazily),
    };
    match (unmount(false), when_busy) {
        (Ok(()), _) => Ok(Detached::Gone),
        (Err(Error::InUse(_)), WhenBusy::Hide) => unmount(true).map(|()| Detached::Hidden),
        (Err(error), _) => Err(error),
    }
}

/// Unmounts the mount with this id and nothing else: between a look at the path and umount(2),
/// whoever owns a directory on the way can make the path lead to another mount.
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
    // The name of a mountpoint cannot be given to another directory while it is one.
    let there = by_descriptor(&parent).join(name);
    if mount_at(&there).is_none_or(|number| id.split('/').next() != Some(&number)) {
        return Err(Error::Covered(path.to_owned()));
    }
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazily);
    rustix::mount::unmount(&there, flags).map_err(|error| match error {
        rustix::io::Errno::BUSY => Error::InUse(path.to_owned()),
        error => failed(error.into()),
    })
}

/// A path to what is open, whatever name it has by now.
fn by_descriptor(file: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Returns the number of the mount that a path leads to, without asking its filesystem, which may be
/// dead.
fn mount_at(path: &Path) -> Option<String> {
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
        process::capture(program, &args, FUSERMOUNT_LIMIT).map_err(|source| Error::Unmount {
            path: path.to_owned(),
            source,
        })?;
    if captured.code == Some(0) {
        return Ok(());
    }
    let said = Escaped(captured.stderr.trim_ascii()).to_string();
    // fusermount3 speaks no language but English, and has one exit status for all.
    if said.ends_with("Device or resource busy") {
        Err(Error::InUse(path.to_owned()))
    } else {
        Err(Error::Fusermount(said))
    }
}

/// Whether the kernel is to let others through; it has no word for root alone, whom fuser tells
/// from the rest.
fn lets_others(config: &config::Mount) -> bool {
    config.allow_other || config.allow_root
}

fn unusable(path: &Path, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOENT) => Error::Missing(path.to_owned()),
        Some(libc::ENOTDIR) => Error::NotADirectory(path.to_owned()),
        // "Transport endpoint is not connected": the daemon behind it is gone.
        Some(libc::ENOTCONN) => Error::Dead(path.to_owned()),
        _ => Error::Look {
            path: path.to_owned(),
            source: error,
        },
    }
}

/// What fusermount3 says, with what to do about it.
fn hint(said: &str) -> String {
    if said.contains("user_allow_other") {
        format!("{said} (add the line `user_allow_other` to /etc/fuse.conf)")
    } else {
        said.to_owned()
    }
}

fn is_mountpoint(path: &Path) -> Result<bool, Error> {
    // Only a FUSE mount is in the way; mounting over another kind is what people do.
    let mounts = mountinfo::mounts().map_err(unlisted)?;
    let mut on_path = mounts.iter().filter(|mount| mount.path == path);
    Ok(on_path.any(|mount| mount.fstype.starts_with("fuse")))
}

fn unlisted(source: io::Error) -> Error {
    Error::Mounts { source }
}

/// A value in fusermount3's list of options.
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
    fn a_comma_in_a_name_is_not_the_end_of_an_option() {
        assert_eq!(escape_option("u@h:/a,ro\\"), "u@h:/a\\,ro\\\\");
    }
}
