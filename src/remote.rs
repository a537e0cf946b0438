//! The contract between the filesystem and a host: trait [`Remote`] and its types.
//!
//! Host words live here (list, stat, fetch, upload, rename, remove); inodes and handles do not.
//! `shell` and `scp_only` implement the trait; `cache` and `vfs` call it.
//!
//! Modules:
//! - `ability`: the operations that a host supports, for display
//! - `contact`: the state of the connections, without asking the host
//! - `error`: errors and reasons
//! - `reason`: classifies error texts of programs; pure
//! - `retry`: a wrapper that retries what is safe to retry
//! - `partial`: tells a partial upload of ours from a change by others
//! - `settings`: settings of the connections, for every dialect

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
pub use crate::remote::error::RootError;
pub use crate::remote::reason::reason_of;
pub use crate::remote::settings::Settings;
pub(crate) use crate::remote::settings::login_relative;
pub(crate) use crate::remote::settings::shown_directory;

use crate::path::Name;
use crate::path::RemotePath;
use crate::scp::ahead::may_be_record;
use crate::stat::DeviceNumber;
use crate::stat::FileId;
use crate::stat::FileKind;
use crate::stat::FsStat;
use crate::stat::PERMISSIONS;
use crate::stat::Stat;
use crate::stat::Time;
use crate::stat::Version;

/// Default for the maximum number of names in a listing (`max_names=`).
pub const DEFAULT_MAX_NAMES: usize = 500_000;

/// Bounds the size of a listing: all names together may have this many bytes per allowed name.
pub(crate) const MAX_BYTES_PER_NAME: usize = 128;

/// The size in bytes of the blocks in which a part of a file is fetched.
pub const BLOCK: u64 = 64 << 10;

/// Length in bytes of the name of a temporary file.
pub const TEMP_NAME_LEN: usize = 27;

pub type Result<T> = std::result::Result<T, Error>;

/// One directory of one host. Every call may block on the network until a deadline.
///
/// Paths are relative to the remote root. No call follows a symlink in the last component, unless
/// the dialect says so.
pub trait Remote: Send + Sync + fmt::Debug {
    /// Returns what the probe learnt about the host.
    fn facts(&self) -> &Facts;

    /// Returns the attributes of `path` itself.
    fn stat(&self, path: &RemotePath) -> Result<Stat>;

    /// Returns the attributes of a directory and of all its entries.
    fn list(&self, path: &RemotePath) -> Result<Listing>;

    /// Returns the target of the symlink `path`.
    fn read_link(&self, path: &RemotePath) -> Result<Vec<u8>>;

    /// Fetches the whole content of a file and returns the attributes of that version.
    ///
    /// `known` is the version that the caller has seen last. Content that changes during the
    /// transfer is fetched again, so [`Receiver::begin`] may be called several times.
    fn fetch(
        &self,
        path: &RemotePath,
        known: Option<&Version>,
        receiver: &mut dyn Receiver,
    ) -> Result<Fetched>;

    /// Fetches the contents of small files, in few requests and by few programs on the host.
    ///
    /// Files that cannot be fetched are left out: the receiver gets no content, or the end of a
    /// content that is not valid. A single [`Self::fetch`] tells why.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the host can fetch single files only ([`Facts::can_fetch_many`]);
    /// any other error ends the rest of the request. Contents whose end the receiver was told are
    /// valid.
    fn fetch_many(&self, files: &[KnownFile], receiver: &mut dyn BatchReceiver) -> Result<()> {
        let _ = (files, receiver);
        Err(unsupported(
            "fetch",
            "this host sends one file for each request",
        ))
    }

    /// Fetches `n_blocks` blocks of [`BLOCK`] bytes of a file, from block number `first` on; fewer at
    /// the end of the file. Returns the attributes of the version that they are of.
    ///
    /// # Errors
    /// [`Reason::Changed`] if the file changed meanwhile; [`Error::Unsupported`] if the host sends
    /// whole files only ([`Facts::can_fetch_blocks`]).
    fn fetch_blocks(
        &self,
        path: &RemotePath,
        first: u64,
        n_blocks: u64,
    ) -> Result<(Stat, Vec<u8>)> {
        let _ = (path, first, n_blocks);
        Err(unsupported("fetch", "this host sends whole files only"))
    }

    /// Lists directories and the directories below them, in one request that returns about
    /// `max_names` names at most. Does not enter other filesystems.
    ///
    /// A directory comes before those below it. Directories that are not listed completely are left out: those behind the limit, those that
    /// cannot be read, and those that are no directories any more.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the host lists single directories only
    /// ([`Facts::can_list_trees`]).
    fn list_trees(&self, roots: &[KnownDirectory], max_names: usize) -> Result<Vec<SubListing>> {
        let _ = (roots, max_names);
        Err(unsupported(
            "list",
            "this host lists one directory for each request",
        ))
    }

    /// Uploads the whole content of a file. With [`Placement::Replace`] the content goes to a
    /// temporary file, which is renamed over the old one, so that others on the host never see part
    /// of it.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the host's version is not the expected one and no conflict copy was
    /// made; the host is unchanged. [`Error::Partial`] if an upload in place ended in the middle.
    fn upload(
        &self,
        path: &RemotePath,
        content: &dyn Content,
        spec: &UploadSpec,
    ) -> Result<Uploaded>;

    /// Creates an empty file.
    ///
    /// # Errors
    /// [`Reason::Exists`] if the name is taken.
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

    /// Adds the name `path` to the file `existing` (a hard link).
    fn link(&self, existing: &RemotePath, path: &RemotePath) -> Result<Changed>;

    /// Removes anything but a directory. `other` is another name of the same file; its attributes
    /// are returned.
    fn remove_file(&self, path: &RemotePath, other: Option<&RemotePath>) -> Result<Changed>;

    fn remove_dir(&self, path: &RemotePath) -> Result<Changed>;

    /// Renames `from` to `to`.
    ///
    /// # Errors
    /// [`Reason::Exists`] if `to` exists and `how` is [`RenameHow::NoReplace`];
    /// [`Reason::InvalidArgument`] if the host cannot exchange names ([`Facts::can_exchange`]).
    fn rename(&self, from: &RemotePath, to: &RemotePath, how: RenameHow) -> Result<Renamed>;

    /// Changes attributes in the order owner, mode, size, times; returns the new ones.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the file is not the version that the change expects; nothing was
    /// changed.
    fn set_attr(&self, path: &RemotePath, change: &AttrChange) -> Result<Stat>;

    /// Copies a file on the host, as [`Remote::upload`] would with the content of `from`.
    fn copy(&self, from: &RemotePath, to: &RemotePath, spec: &UploadSpec) -> Result<Changed>;

    /// Checks that the login user may read the content of a file.
    ///
    /// Asks the host, because mode bits do not show everything (ACLs, for example).
    ///
    /// # Errors
    /// [`Reason::AccessDenied`] if the user may not.
    fn check_readable(&self, path: &RemotePath) -> Result<()> {
        self.stat(path).map(drop)
    }

    /// Returns the state of the host's filesystem that contains `path`, which is not a symlink.
    fn fs_stat(&self, path: &RemotePath) -> Result<FsStat>;

    /// Flushes a file to the host's disk. Does nothing if the host has no means to.
    fn sync(&self, path: &RemotePath) -> Result<()>;

    /// Removes the temporary files that uploads with this `tag` left in a directory when their
    /// connection broke. An upload that is still in progress there fails, because its file is gone.
    fn remove_leftovers(&self, dir: &RemotePath, tag: u32) -> Result<()>;

    /// Returns the operations that the host supports, for display.
    fn abilities(&self) -> Vec<Ability>;

    /// Returns the state of the connections, without asking the host.
    fn contact(&self) -> Contact;

    /// Ends all connections. Calls in progress and later calls fail.
    fn close(&self);
}

/// The facts that the probe learns about a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// One line for display: userland, scp, login user.
    pub summary: String,
    /// The absolute path of the remote root on the host, without a trailing slash; empty for `/`.
    /// Relative to the login directory if the host cannot tell that directory.
    pub root: Vec<u8>,
    /// The ids of the login user.
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Whether the host can exchange two names atomically.
    pub can_exchange: bool,
    /// The precision with which [`Remote::set_attr`] and [`Remote::upload`] can set times.
    pub time_precision: TimePrecision,
    /// Whether large files can be uploaded in pieces, over several connections at once.
    pub can_take_pieces: bool,
    /// Whether holes of a file are sent as holes. Otherwise they are sent as zeros.
    pub can_take_holes: bool,
    /// The largest size, in bytes, of a file that is uploaded again to change its mode or times.
    /// `None` if [`Remote::set_attr`] can change them by itself.
    pub sets_by_upload: Option<u64>,
    /// Whether every upload is in place, because the host cannot rename.
    pub uploads_in_place: bool,
    /// Whether [`Remote::fetch_many`] is supported.
    pub can_fetch_many: bool,
    /// Whether [`Remote::list_trees`] is supported.
    pub can_list_trees: bool,
    /// Whether [`Remote::fetch_blocks`] is supported.
    pub can_fetch_blocks: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimePrecision {
    Nanos,
    Seconds,
}

/// A directory and its entries, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    pub directory: Stat,
    pub entries: Vec<ListEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    pub name: Name,
    /// Boxed: a directory may have a million names, and callers keep this allocation as it is.
    pub listed: Box<Listed>,
}

/// The facts that a listing gives about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub kind: FileKind,
    /// `None` if the listing gives only some of the attributes; then a stat is needed.
    pub stat: Option<Stat>,
    /// The target of a symlink, if the listing gives it.
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

/// Receives the content of a file as it arrives.
pub trait Receiver {
    /// Starts content of `size` bytes, and discards what came before.
    fn begin(&mut self, size: u64) -> io::Result<()>;

    fn data(&mut self, data: &[u8]) -> io::Result<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    pub stat: Stat,
    /// Whether the login user could open the file for writing, as far as the host tells. Mode bits
    /// do not show immutable files and read-only filesystems.
    pub may_write: bool,
    /// Whether `stat.version()` is known to be the version of the content. False if the file
    /// changed during every attempt.
    pub is_stable: bool,
}

/// A file to fetch, and its version as it was seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownFile {
    pub path: RemotePath,
    pub version: Version,
}

/// Receives the contents of several files, in the order in which they were requested.
pub trait BatchReceiver {
    /// Starts the content of file number `index`, of `size` bytes.
    fn begin(&mut self, index: usize, size: u64) -> io::Result<()>;

    /// Receives the next bytes of the content that was begun last.
    fn data(&mut self, data: &[u8]) -> io::Result<()>;

    /// Ends the content of file number `index`. With the attributes of the file, which has the
    /// requested version; with `None` the content must be discarded.
    fn end(&mut self, index: usize, stat: Option<&Stat>);
}

/// A directory to list, and its identity as it was seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownDirectory {
    pub path: RemotePath,
    pub id: FileId,
}

/// A complete listing of one directory of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubListing {
    pub path: RemotePath,
    pub listing: Listing,
}

fn unsupported(act: &'static str, why: &'static str) -> Error {
    let path = RemotePath::root();
    Error::Unsupported { act, path, why }
}

/// The content of a file; any thread may read any part of it.
pub trait Content: Sync {
    /// Reads bytes from `offset` on; returns 0 at the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Returns the first range of data at or after `offset`. It ends at `end` or before the next
    /// hole of at least `min_hole` bytes; it is empty and at `end` if no data follows. Bytes that
    /// are skipped read as zeros.
    fn data_after(&self, offset: u64, min_hole: u64, end: u64) -> Range<u64> {
        let _ = min_hole;
        offset..end
    }

    /// Returns the old content that this replaces, and its size, if it is still known.
    fn old(&self) -> Option<(&dyn Content, u64)> {
        None
    }
}

/// Returns whether the first byte of the content could begin an SCP record.
///
/// Such content is sent only after the sink has opened the file. Otherwise a race is possible: if
/// the target has become a directory (or a link to one), the sink reads the content as records,
/// which may name files in it.
pub(crate) fn begins_like_record(content: &dyn Content, size: u64) -> bool {
    let mut first = [0];
    // A read error is reported when the content is sent.
    size > 0 && !matches!(content.read_at(&mut first, 0), Ok(1) if !may_be_record(first[0]))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// The result that an upload must produce, and the condition for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadSpec {
    /// The exact size, in bytes.
    pub size: u64,
    /// The size of the expected version, if the content starts with all of it, so that the rest can
    /// be appended. `None` otherwise.
    pub appends_to: Option<u64>,
    /// The permissions of a new file.
    pub mode: u32,
    /// Whether an existing file gets `mode` too. Otherwise it keeps the permissions that it has at
    /// the moment of the upload.
    pub sets_mode: bool,
    pub mtime: Time,
    pub atime: Time,
    /// The owner of a new file; `None` leaves the choice to the host. An existing file keeps its
    /// owner.
    pub owner: Option<Owner>,
    pub expect: Expect,
    pub placement: Placement,
    pub durability: Durability,
    /// The name of the conflict copy, in the same directory. `None` to fail on a conflict.
    pub conflict_name: Option<Name>,
    /// Whether a file that others have created under the name is a conflict also if it has the same
    /// content: the creation was exclusive (`O_EXCL`). For [`Expect::Absent`] only.
    pub is_exclusive: bool,
    /// Marks the temporary files of this upload, for [`Remote::remove_leftovers`].
    pub tag: u32,
}

impl UploadSpec {
    /// Returns whether a file with these attributes is the complete result of the upload: the
    /// content, and the permissions if they were changed.
    pub fn is_done(&self, stat: &Stat) -> bool {
        let has_mode = !self.sets_mode || stat.mode & PERMISSIONS == self.mode & PERMISSIONS;
        has_mode && self.has_content(stat)
    }

    /// Returns whether a file with these attributes has the content of the upload.
    ///
    /// An upload sets mtime to the microsecond, so equal size and mtime identify it. On hosts with
    /// times in whole seconds, an equal change by others within that second is not told apart.
    pub fn has_content(&self, stat: &Stat) -> bool {
        stat.kind == FileKind::File
            && stat.size == self.size
            && self.mtime.matches_reported(stat.mtime)
            // A tool that preserves size and mtime makes the old version look like the new one.
            && !matches!(&self.expect, Expect::Version(old) if old.same_content(&stat.version()))
    }
}

/// The condition on the file under the final name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Anything,
    Absent,
    /// A version with equal content; any other is [`Error::Conflict`].
    Version(Version),
}

/// The way in which content gets to its final name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Atomic replace. Content that only adds to the expected version may be appended instead, if
    /// the host can prove that the file is that version.
    Replace,
    /// The existing file is written (same inode): for hard links and files of other users.
    InPlace,
    /// As `InPlace`, but without a temporary file beside it: for directories that we cannot write.
    Direct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Durable when the host decides, as after `close()` on a local filesystem.
    Lazy,
    /// Flushed to the host's disk before the call returns, if the host has means to.
    Fsync,
}

/// Attributes after a change. `None` if the host did not tell them; then a stat is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changed {
    pub stat: Option<Stat>,
    /// The attributes of the directory that contains the path.
    pub parent: Option<Stat>,
}

/// The result of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uploaded {
    /// The attributes of the file that has the content. `None` if the host did not tell them.
    pub stat: Option<Stat>,
    /// Whether others wrote to the file before its attributes were read. Then `stat` is `None`.
    pub is_overtaken: bool,
    /// The attributes of the directory that contains the file.
    pub parent: Option<Stat>,
    pub outcome: Outcome,
}

/// How an upload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    AsPlanned,
    /// The file had been removed on the host: it was created again.
    Recreated,
    /// The host had the same content already: it was left unchanged.
    Same,
    /// The host had another version: the content went to the conflict copy [`UploadSpec::conflict_name`].
    ConflictCopy,
}

impl Uploaded {
    /// Returns the result of an upload that met no conflict.
    pub fn as_planned(Changed { stat, parent }: Changed) -> Self {
        Self {
            stat,
            is_overtaken: false,
            parent,
            outcome: Outcome::AsPlanned,
        }
    }

    /// Returns the attributes after the upload.
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

/// A new value for a timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewTime {
    /// The current time of the host.
    Now,
    At(Time),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttrChange {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mode: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<NewTime>,
    pub mtime: Option<NewTime>,
    /// The version that the file must be, or nothing is changed: setting times would hide changes
    /// by others. The host compares and changes in one request.
    pub expect: Option<Version>,
}

/// Flushes a file and its directory entry to the host's disk.
///
/// # Errors
/// As for [`Remote::sync`].
pub(crate) fn make_durable<R: Remote + ?Sized>(remote: &R, path: &RemotePath) -> Result<()> {
    remote.sync(path)?;
    match remote.sync(&path.parent().unwrap_or_default()) {
        // A directory without read permission cannot be opened, but names can still be created in
        // it.
        Err(error) if error.reason() == Some(Reason::AccessDenied) => Ok(()),
        result => result,
    }
}
