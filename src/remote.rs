//! What a host can do for a filesystem: trait [`Remote`], and the ways to talk a host into it.
//!
//! Host words live here (list, stat, fetch, upload, rename, remove); inodes and handles do not.
//! Driven by `cache` and `vfs`.
//!
//! Modules:
//! - `ability`: what a host can do, for people
//! - `contact`: the state of the connections, without asking the host
//! - `error`: errors and reasons
//! - `reason`: error texts of programs become reasons; pure
//! - `retry`: a wrapper that repeats what is safe to repeat
//! - `partial`: an upload that broke off: what is ours on the host, what is not
//! - `settings`: what a mount asks of the connection

pub mod ability;
pub mod retry;

pub(crate) mod contact;
mod error;
pub(crate) mod partial;
mod reason;
mod settings;

use std::fmt;
use std::io;
use std::ops::Range;

pub use crate::remote::ability::Ability;
pub use crate::remote::contact::Contact;
pub use crate::remote::contact::ContactState;
pub use crate::remote::error::Error;
pub use crate::remote::error::Reason;
pub use crate::remote::reason::reason_of;
pub use crate::remote::settings::Settings;
pub(crate) use crate::remote::settings::login_relative;

use crate::path::Name;
use crate::path::RemotePath;
use crate::scp::ahead::may_be_record;
use crate::stat::DeviceNumber;
use crate::stat::FileKind;
use crate::stat::FsStat;
use crate::stat::PERMISSIONS;
use crate::stat::Stat;
use crate::stat::Time;
use crate::stat::Version;

/// How many names a listing may have where nobody says otherwise.
pub const DEFAULT_MAX_NAMES: usize = 500_000;

/// How many bytes a listing may have for each name that it may have: all names together may not be
/// longer than this many times their number.
pub(crate) const MAX_BYTES_A_NAME: usize = 128;

/// How long the name is that an upload has until it is complete.
pub const TEMP_NAME_LEN: usize = 27;

pub type Result<T> = std::result::Result<T, Error>;

/// One host and one directory of it. Every call may wait for the network, none for ever.
///
/// Paths are relative to the remote root; no call follows a symlink in the last component.
pub trait Remote: Send + Sync + fmt::Debug {
    /// Returns what was learnt about the host when it was first reached.
    fn facts(&self) -> &Facts;

    /// Returns the attributes of `path` itself.
    fn stat(&self, path: &RemotePath) -> Result<Stat>;

    /// Returns the attributes of a directory and of everything in it.
    fn list(&self, path: &RemotePath) -> Result<Listing>;

    /// Returns what the symlink `path` says.
    fn read_link(&self, path: &RemotePath) -> Result<Vec<u8>>;

    /// Receives the whole content of a file and returns the attributes it belongs to.
    ///
    /// `known` is the version that the caller knew before; content that changed while it was
    /// sent is fetched again, so that [`Receiver::begin`] may be called several times.
    fn fetch(
        &self,
        path: &RemotePath,
        known: Option<&Version>,
        receiver: &mut dyn Receiver,
    ) -> Result<Fetched>;

    /// Sends the whole content of a file: to a temporary name first, then under its own, so that
    /// nobody on the host sees half of it.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the host has not what the plan expects and nothing was kept beside
    /// it; the host is as it was.
    fn upload(
        &self,
        path: &RemotePath,
        content: &dyn Content,
        plan: &UploadSpec,
    ) -> Result<Uploaded>;

    /// Creates an empty file; fails with [`Reason::Exists`] if there is anything.
    fn create_new(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed>;

    fn make_dir(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed>;

    /// Creates a FIFO, a socket or a device.
    fn make_node(
        &self,
        path: &RemotePath,
        kind: FileKind,
        mode: u32,
        device: DeviceNumber,
        owner: Option<Owner>,
    ) -> Result<Changed>;

    fn symlink(&self, path: &RemotePath, target: &[u8], owner: Option<Owner>) -> Result<Changed>;

    /// Gives the file `existing` the further name `path`.
    fn link(&self, existing: &RemotePath, path: &RemotePath) -> Result<Changed>;

    /// Removes anything but a directory. `other` is a further name of the same file, whose
    /// attributes are wanted afterwards.
    fn remove_file(&self, path: &RemotePath, other: Option<&RemotePath>) -> Result<Changed>;

    fn remove_dir(&self, path: &RemotePath) -> Result<Changed>;

    fn rename(&self, from: &RemotePath, to: &RemotePath, how: RenameHow) -> Result<Renamed>;

    /// Changes attributes in the order owner, mode, size, times; returns the new ones.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the file is not the version that the change expects; nothing was
    /// changed.
    fn set_attr(&self, path: &RemotePath, change: &AttrChange) -> Result<Stat>;

    /// Copies a file on the host, as [`Remote::upload`] would with the content of `from`.
    fn copy(&self, from: &RemotePath, to: &RemotePath, plan: &UploadSpec) -> Result<Changed>;

    /// Fails with [`Reason::AccessDenied`] if the login user may not read the content of a file.
    ///
    /// Asks the host, which knows more than mode bits say: ACLs, for one.
    fn check_readable(&self, path: &RemotePath) -> Result<()> {
        self.stat(path).map(drop)
    }

    /// Returns the state of the host's filesystem that `path` lies on; `path` is no symlink.
    fn fs_stat(&self, path: &RemotePath) -> Result<FsStat>;

    /// Flushes a file to the host's disk; does nothing where the host has no means for that.
    fn sync(&self, path: &RemotePath) -> Result<()>;

    /// Removes the temporary files that uploads marked with `tag` left in a directory when their
    /// connection broke. An upload that still goes on there finds its file gone and fails.
    fn remove_leftovers(&self, dir: &RemotePath, tag: u32) -> Result<()>;

    /// Returns what can be done on this host, for people.
    fn abilities(&self) -> Vec<Ability>;

    /// Returns how the connections are, without asking the host.
    fn contact(&self) -> Contact;

    /// Ends all connections; every call that waits and every later call fails.
    fn close(&self);
}

/// What was learnt about a host when it was first reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// One line for a person: userland, scp, login user.
    pub summary: String,
    /// The absolute path of the remote root on the host, without a trailing slash; empty for `/`.
    /// Relative to the login directory where the host cannot say where that is.
    pub root: Vec<u8>,
    /// The ids of the login user.
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Whether two names can be exchanged in one step.
    pub can_exchange: bool,
    /// The precision with which [`Remote::set_attr`] and [`Remote::upload`] can set times.
    pub time_precision: TimePrecision,
    /// Whether a file can be sent in pieces, over several connections at once.
    pub can_take_pieces: bool,
    /// Whether holes of a file are sent as holes; if not, they are sent as zeros.
    pub can_take_holes: bool,
    /// Where [`Remote::set_attr`] cannot set mode and times of files, and an upload does: the size
    /// up to which a file may be uploaded again for that.
    pub sets_by_upload: Option<u64>,
    /// Whether every upload writes into the file that is there, because nothing can be renamed.
    pub uploads_in_place: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimePrecision {
    Nanos,
    Seconds,
}

/// A directory and what is in it, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    pub directory: Stat,
    pub entries: Vec<ListEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    pub name: Name,
    /// In a box of its own, which whoever keeps the entry keeps as it is: a directory may have a
    /// million names.
    pub listed: Box<Listed>,
}

/// The facts that a listing gives about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub kind: FileKind,
    /// `None` where the listing could not tell all of it, so that a stat is needed.
    pub stat: Option<Stat>,
    /// What a symlink says, where the listing told.
    pub target: Option<Box<[u8]>>,
}

impl ListEntry {
    pub fn new(name: Name, kind: FileKind, stat: Option<Stat>, target: Option<Box<[u8]>>) -> Self {
        let listed = Box::new(Listed { kind, stat, target });
        Self { name, listed }
    }
}

impl std::ops::Deref for ListEntry {
    type Target = Listed;

    fn deref(&self) -> &Listed {
        &self.listed
    }
}

/// Takes the content of a file while it arrives.
pub trait Receiver {
    /// Content of `size` bytes begins; what came before, if anything, is void.
    fn begin(&mut self, size: u64) -> io::Result<()>;

    fn data(&mut self, data: &[u8]) -> io::Result<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    pub stat: Stat,
    /// Whether the login user could open the file for writing, as far as the host told: mode bits say
    /// nothing of a file or a filesystem that cannot be changed.
    pub may_write: bool,
    /// Whether `stat.version()` is known to be that of the content. False for a file that
    /// changed all the while.
    pub is_stable: bool,
}

/// Gives the content of a file, any part of it to any thread.
pub trait Content: Sync {
    /// Reads bytes from `offset` on; 0 at the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Returns where the next data lies at or after `offset`: up to `end`, or to the next hole of at
    /// least `min_hole` bytes. An empty range at `end` if there is only a hole. What is outside
    /// reads as zeros.
    fn data_after(&self, offset: u64, min_hole: u64, end: u64) -> Range<u64> {
        let _ = min_hole;
        offset..end
    }

    /// Returns the content that this is to replace and its size, where it is still known.
    fn old(&self) -> Option<(&dyn Content, u64)> {
        None
    }
}

/// Whether a sink that reads the content as records would go on after its first line.
///
/// Content that begins so waits until the file is open: where somebody puts a directory, or a link to
/// one, in the place of the target in time, the records in it would name files in that directory.
pub(crate) fn begins_like_record(content: &dyn Content, size: u64) -> bool {
    let mut first = [0];
    // What cannot be read fails where it is sent.
    size > 0 && !matches!(content.read_at(&mut first, 0), Ok(1) if !may_be_record(first[0]))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// How content is to be uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadSpec {
    /// In bytes, exactly.
    pub size: u64,
    /// How many bytes at the beginning the expected version has already: everything of it, so that
    /// the rest may be appended. `None` if the content differs otherwise.
    pub appends_to: Option<u64>,
    /// The permissions of a new file.
    pub mode: u32,
    /// Whether a file that exists gets `mode` too; otherwise it keeps the permissions that it has at
    /// the moment of the upload.
    pub sets_mode: bool,
    pub mtime: Time,
    pub atime: Time,
    /// The owner of a new file; `None` leaves the one that the host gives. A file that exists keeps
    /// its own.
    pub owner: Option<Owner>,
    pub expect: Expect,
    pub placement: Placement,
    pub durability: Durability,
    /// How the content is to be called, in the same directory, if the host has not what is
    /// expected; `None` to have it refused then.
    pub keep_as: Option<Name>,
    /// Marks the temporary files of this content, for [`Remote::remove_leftovers`].
    pub tag: u32,
}

impl UploadSpec {
    /// Returns whether the host has all that the plan was to give it: the content, and the
    /// permissions where they were changed here.
    pub fn is_done(&self, stat: &Stat) -> bool {
        let has_mode = !self.sets_mode || stat.mode & PERMISSIONS == self.mode & PERMISSIONS;
        has_mode && self.has_content(stat)
    }

    /// Returns whether the host has the content of the plan. An upload sets the modification time to
    /// the microsecond, so size and time together are as good as a receipt. A host that sets or
    /// tells whole seconds has no better one.
    pub fn has_content(&self, stat: &Stat) -> bool {
        stat.kind == FileKind::File
            && stat.size == self.size
            && self.mtime.matches_reported(stat.mtime)
            // A tool that keeps size and time makes the old file look like the new one.
            && !matches!(&self.expect, Expect::Version(old) if old.same_content(&stat.version()))
    }
}

/// What must be found under the final name for the content to be put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Anything,
    Absent,
    /// A version with the same content; anything else is [`Error::Conflict`].
    Version(Version),
}

/// How content gets to its final name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// A new file takes the name; content that is only appended is appended to the file that has
    /// it, where the host can prove that it is the expected one.
    Replace,
    /// The file that has the name gets the new content: for hard links and files of others.
    InPlace,
    /// As `InPlace`, without a temporary file beside it: for directories that we cannot write.
    Direct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// As on a local filesystem after `close()`.
    Lazy,
    /// On the host's disk before the answer, where the host has means for that.
    Fsync,
}

/// Attributes after a change. `None` where the host did not tell; then they must be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changed {
    pub stat: Option<Stat>,
    /// Of the directory that holds the path.
    pub parent: Option<Stat>,
}

/// What an upload left on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uploaded {
    /// Of the file that has the content now. `None` where the host did not tell.
    pub stat: Option<Stat>,
    /// Whether somebody else had written to the file by the time its attributes were asked for, which
    /// are left out then.
    pub is_overtaken: bool,
    /// Of the directory that holds it.
    pub parent: Option<Stat>,
    pub outcome: Outcome,
}

/// Whether an upload went as planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    AsPlanned,
    /// Somebody had removed the file: it was made anew.
    Recreated,
    /// Somebody had uploaded the same content already: theirs was left alone.
    Same,
    /// Somebody had uploaded other content: ours is beside it, called [`UploadSpec::keep_as`].
    KeptBeside,
}

impl Uploaded {
    /// Says that all went as planned.
    pub fn as_planned(Changed { stat, parent }: Changed) -> Self {
        Self {
            stat,
            is_overtaken: false,
            parent,
            outcome: Outcome::AsPlanned,
        }
    }

    /// Returns the attributes that changed.
    pub fn changed(&self) -> Changed {
        Changed {
            stat: self.stat,
            parent: self.parent,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Renamed {
    pub stat: Option<Stat>,
    pub from_parent: Option<Stat>,
    pub to_parent: Option<Stat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameHow {
    Replace,
    NoReplace,
    Exchange,
}

/// A new value for a time stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewTime {
    /// The host's own time.
    Now,
    At(Time),
}

/// Attributes to be changed; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttrChange {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mode: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<NewTime>,
    pub mtime: Option<NewTime>,
    /// The version that the file must be for anything to be changed: times that are set hide what
    /// others have written. The comparison and the change are one request.
    pub expect: Option<Version>,
}

/// Flushes a file and its name to the host's disk.
pub(crate) fn make_durable<R: Remote + ?Sized>(remote: &R, path: &RemotePath) -> Result<()> {
    remote.sync(path)?;
    match remote.sync(&path.parent().unwrap_or_default()) {
        // A directory without read permission cannot be opened, and takes new names all the same.
        Err(error) if error.reason() == Some(Reason::AccessDenied) => Ok(()),
        result => result,
    }
}
