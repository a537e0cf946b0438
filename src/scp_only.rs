//! The `scp-only` dialect: for hosts with nothing but `scp -f` and `scp -t`.
//!
//! Such a host has a forced command, a restricted shell, or an SSH server library without a shell;
//! it may be an appliance. Each operation runs one command on its own channel. After the round trip
//! that opens the channel, a read takes one round trip and an upload two, of which the first checks
//! the target.
//!
//! SCP has no rename, so every upload is in place. It has no removal, no links and no owners. It
//! gives no inode numbers, and times in whole seconds. A change of the same size within one second
//! is therefore detected only in small files, by comparing their content.
//!
//! Modules:
//! - `command`: command lines and quoting of paths; pure
//! - `connection`: one connection; runs one command after another
//! - `probe`: finds out what a server without a shell can do
//! - `trial`: a harmless command, which the probe runs
//! - `quirks`: the table of known servers
//! - `receive`: attributes and content: `scp -f`
//! - `listing`: lists a directory by refusing every entry of it
//! - `send`: content and directories: `scp -t`
//! - `write`: uploads and new directories
//! - `attr`: modes and times
//! - `samples`: hashes of recent content of small files, to detect changes within a second
//! - `abilities`: the operations that the host supports, for display

mod abilities;
mod attr;
mod command;
pub mod connection;
mod listing;
pub mod probe;
pub mod quirks;
mod receive;
mod samples;
mod send;
mod trial;
mod write;

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::path::RemotePath;
use crate::pool::Pool;
use crate::pool::Purpose;
use crate::remote::Ability;
use crate::remote::AttrChange;
use crate::remote::Changed;
use crate::remote::Contact;
use crate::remote::Content;
use crate::remote::Error;
use crate::remote::Facts;
use crate::remote::Fetched;
use crate::remote::ListEntry;
use crate::remote::Listing;
use crate::remote::Owner;
use crate::remote::Reason;
use crate::remote::Receiver;
use crate::remote::Remote;
use crate::remote::RenameHow;
use crate::remote::Renamed;
use crate::remote::Result;
use crate::remote::UploadSpec;
use crate::remote::Uploaded;
use crate::scp::ahead::MAX_AHEAD;
use crate::scp_only::command::Direction;
use crate::scp_only::command::Options;
use crate::scp_only::connection::Command;
use crate::scp_only::connection::ScpConnection;
use crate::scp_only::listing::Listed;
use crate::scp_only::quirks::Quirks;
use crate::scp_only::quirks::Refusal;
use crate::scp_only::receive::Fetch;
use crate::scp_only::receive::Header;
use crate::scp_only::receive::Request;
use crate::scp_only::samples::Hashing;
use crate::scp_only::samples::Samples;
use crate::ssh;
use crate::stat::DeviceNumber;
use crate::stat::FileKind;
use crate::stat::FsStat;
use crate::stat::PERMISSIONS;
use crate::stat::Stat;
use crate::stat::Time;
use crate::stat::Version;
use crate::sync::Mutex;

/// The uid and gid of every file, because SCP does not tell them: `nobody`.
pub const UNKNOWN_ID: u32 = 65_534;

/// The maximum number of times that a changing file is fetched.
const MAX_FETCHES: u32 = 3;

const LISTING_HANGS: &str =
    "the host's scp hangs in this directory; its files can be opened by name";

const NOT_IN_SCP: &str = "the host has nothing but scp, which does not support it";

/// A host that is reached over [`ScpConnection`]s.
#[derive(Debug)]
pub struct ScpOnly {
    pool: Pool<ScpConnection>,
    facts: Facts,
    /// The maximum number of names in a listing.
    max_names: usize,
    quirks: Mutex<Quirks>,
    /// The prefix of every path in a command; ends in a slash or is empty.
    prefix: Vec<u8>,
    /// The root itself, as a path in a command.
    root: Vec<u8>,
    timeout: Duration,
    clock: Arc<dyn Clock>,
    /// Whether the host's filesystem stores odd seconds, which FAT does not. `None` until an mtime
    /// with an odd second was uploaded.
    keeps_odd_seconds: Mutex<Option<bool>>,
    /// Hashes of the content of recently changed small files.
    samples: Mutex<Samples>,
    /// Directories that cannot be listed because the host's scp blocks forever at a FIFO in them.
    unlistable: Mutex<Vec<RemotePath>>,
}

impl ScpOnly {
    fn request<'a>(act: &'static str, path: &'a RemotePath) -> Request<'a> {
        Request { act, path }
    }

    fn unsupported(act: &'static str, path: &RemotePath, why: &'static str) -> Error {
        Error::Unsupported {
            act,
            path: path.clone(),
            why,
        }
    }

    /// Returns the path as the server sees it.
    fn remote_path(&self, path: &RemotePath) -> Vec<u8> {
        if path.is_root() {
            self.root.clone()
        } else {
            [&self.prefix[..], path.as_bytes()].concat()
        }
    }

    /// Starts scp for a path.
    fn run(
        &self,
        direction: Direction,
        quirks: &Quirks,
        purpose: Purpose,
        request: Request<'_>,
    ) -> Result<Command> {
        let path = self.remote_path(request.path);
        let line = command::line(direction, quirks.options, quirks.quoting, &path)
            .map_err(|why| Self::unsupported(request.act, request.path, why))?;
        Command::start(&self.pool, purpose, request.act, &line, self.timeout)
    }

    /// Returns the attributes in a record header, with defaults for what SCP does not tell.
    fn stat_of(&self, header: Header) -> Stat {
        Stat {
            kind: header.kind,
            mode: header.mode & PERMISSIONS,
            nlink: 1,
            uid: self.facts.uid,
            gid: self.facts.gid,
            size: header.size,
            blocks: header.size.div_ceil(512),
            atime: header.atime,
            mtime: header.mtime,
            ctime: None,
            id: None,
            rdev: DeviceNumber::default(),
        }
    }

    fn stat_path(&self, act: &'static str, path: &RemotePath) -> Result<Stat> {
        let quirks = *self.quirks.lock();
        if path.is_root() && quirks.options == Options::Minimal {
            // Without options a directory cannot be examined; it is assumed to exist.
            let (mode, size) = (0o755, 0);
            let (mtime, atime) = (Time::default(), Time::default());
            return Ok(self.stat_of(Header {
                kind: FileKind::Directory,
                mode,
                size,
                mtime,
                atime,
            }));
        }
        let request = Self::request(act, path);
        let command = self.run(Direction::FetchTree, &quirks, Purpose::Metadata, request)?;
        let header = receive::stat(command, &quirks, request)?;
        Ok(self.stat_of(header))
    }

    pub(super) fn note_sample(&self, path: &RemotePath, version: &Version, hash: Option<[u8; 32]>) {
        let now = self.clock.wall();
        self.samples
            .lock()
            .note(path.as_bytes(), version, hash, now);
    }

    /// Fetches a file once; returns its header, or why no content came.
    fn fetch_once(&self, request: Request<'_>, receiver: &mut dyn Receiver) -> Result<Fetch> {
        let quirks = *self.quirks.lock();
        let command = self.run(Direction::Fetch, &quirks, Purpose::Transfer, request)?;
        receive::fetch(command, &quirks, request, receiver)
    }
}

/// Returns whether the content is the same, as far as this host's attributes tell.
fn is_same(version: &Version, stat: &Stat) -> bool {
    version.id == stat.id
        && version.size == stat.size
        && version.mtime.secs == stat.mtime.secs
        && stat.kind == FileKind::File
}

impl Remote for ScpOnly {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Follows a symlink: a source shows only its target.
    fn stat(&self, path: &RemotePath) -> Result<Stat> {
        self.stat_path("stat", path)
    }

    /// Shows the targets of symlinks. Entries that a source cannot send are left out: dangling
    /// links, FIFOs, sockets, devices, and names with a newline.
    fn list(&self, path: &RemotePath) -> Result<Listing> {
        const ACT: &str = "list";
        const WHY: &str = "the host's scp cannot list directories; files can be opened by name";
        let quirks = *self.quirks.lock();
        if quirks.refusal == Refusal::Unsupported || quirks.options == Options::Minimal {
            return Err(Self::unsupported(ACT, path, WHY));
        }
        if self.unlistable.lock().contains(path) {
            return Err(Self::unsupported(ACT, path, LISTING_HANGS));
        }
        let request = Self::request(ACT, path);
        let command = self.run(Direction::FetchTree, &quirks, Purpose::Metadata, request)?;
        let shown_path = self.remote_path(path);
        let listed = listing::list(command, &quirks, request, &shown_path, self.max_names);
        if matches!(
            &listed,
            Err(Error::OutcomeUnknown {
                source: ssh::Error::Timeout { .. },
                ..
            })
        ) {
            // Later calls fail at once, so that the caller stats entries by name.
            log::warn!(
                "the host's scp hangs in {path}, which may contain a FIFO; it is not listed again"
            );
            self.unlistable.lock().push(path.clone());
        }
        match listed? {
            Listed::Whole {
                directory,
                entries,
                denied,
            } => {
                let known = entries.into_iter().map(|(name, header)| {
                    ListEntry::new(name, header.kind, Some(self.stat_of(header)), None)
                });
                // The kind of the file is unknown; a stat tells it, if it is allowed.
                let denied = denied
                    .into_iter()
                    .map(|name| ListEntry::new(name, FileKind::File, None, None));
                Ok(Listing {
                    directory: self.stat_of(directory),
                    entries: known.chain(denied).collect(),
                })
            }
            Listed::RefusalsUnsupported => {
                log::info!("the host does not skip refused files; directories cannot be listed");
                self.quirks.lock().refusal = Refusal::Unsupported;
                Err(Self::unsupported(ACT, path, WHY))
            }
        }
    }

    fn read_link(&self, path: &RemotePath) -> Result<Vec<u8>> {
        Err(Self::unsupported("read", path, NOT_IN_SCP))
    }

    fn fetch(
        &self,
        path: &RemotePath,
        known: Option<&Version>,
        receiver: &mut dyn Receiver,
    ) -> Result<Fetched> {
        let request = Self::request("fetch", path);
        for n_left in (0..MAX_FETCHES).rev() {
            let mut hashing = Hashing::wrapping(receiver);
            let header = match self.fetch_once(request, &mut hashing)? {
                Fetch::Complete(header) => header,
                Fetch::Refused(text) => {
                    let reason = receive::reason_for(&text, Reason::IsADirectory);
                    if reason == Reason::Changed && n_left > 0 {
                        continue;
                    }
                    return Err(request.refused(reason, &text));
                }
            };
            let stat = self.stat_of(header);
            // The attributes were sent before the content. A small file has no time to change
            // during the transfer. A large one, or one that is not the known version, gets a second
            // stat.
            let is_known = known.is_some_and(|known| is_same(known, &stat));
            let is_quick = is_known && stat.size <= MAX_AHEAD;
            let is_stable = is_quick || is_same(&stat.version(), &self.stat_path("fetch", path)?);
            if is_stable || n_left == 0 {
                let hash = hashing.finish().filter(|_| is_stable);
                self.note_sample(path, &stat.version(), hash);
                return Ok(Fetched {
                    stat,
                    may_write: true,
                    is_stable,
                });
            }
        }
        Err(request.refused(Reason::Changed, b""))
    }

    /// Uploads in place, because SCP cannot rename. Others can see part of the content during the
    /// transfer, and an upload that fails leaves a partial file.
    fn upload(
        &self,
        path: &RemotePath,
        content: &dyn Content,
        spec: &UploadSpec,
    ) -> Result<Uploaded> {
        self.upload_file(path, content, spec)
    }

    fn create_new(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed> {
        self.create_file(path, mode, owner)
    }

    fn make_dir(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed> {
        self.create_dir(path, mode, owner)
    }

    fn make_node(
        &self,
        path: &RemotePath,
        _kind: FileKind,
        _mode: u32,
        _device: DeviceNumber,
        _owner: Option<Owner>,
    ) -> Result<Changed> {
        Err(Self::unsupported("create", path, NOT_IN_SCP))
    }

    fn symlink(&self, path: &RemotePath, _target: &[u8], _owner: Option<Owner>) -> Result<Changed> {
        Err(Self::unsupported("create", path, NOT_IN_SCP))
    }

    fn link(&self, _existing: &RemotePath, path: &RemotePath) -> Result<Changed> {
        Err(Self::unsupported("link", path, NOT_IN_SCP))
    }

    fn remove_file(&self, path: &RemotePath, _other: Option<&RemotePath>) -> Result<Changed> {
        Err(Self::unsupported("remove", path, NOT_IN_SCP))
    }

    fn remove_dir(&self, path: &RemotePath) -> Result<Changed> {
        Err(Self::unsupported("remove", path, NOT_IN_SCP))
    }

    fn rename(&self, from: &RemotePath, _to: &RemotePath, _how: RenameHow) -> Result<Renamed> {
        Err(Self::unsupported("rename", from, NOT_IN_SCP))
    }

    /// Changes mode and times of a directory with a D record. Those of a file need its content.
    fn set_attr(&self, path: &RemotePath, change: &AttrChange) -> Result<Stat> {
        self.change_attr(path, change)
    }

    fn copy(&self, _from: &RemotePath, to: &RemotePath, _plan: &UploadSpec) -> Result<Changed> {
        Err(Self::unsupported("copy", to, NOT_IN_SCP))
    }

    /// Reports 1 TiB, all free, as sshfs does for a server that cannot tell: zeros would keep
    /// programs from writing.
    fn fs_stat(&self, _: &RemotePath) -> Result<FsStat> {
        let (blocks, files) = (1 << 28, 1_000_000_000);
        Ok(FsStat {
            block_size: 4096,
            blocks,
            blocks_free: blocks,
            blocks_available: blocks,
            files,
            files_free: files,
            name_max: 255,
        })
    }

    fn sync(&self, _path: &RemotePath) -> Result<()> {
        Ok(())
    }

    /// Does nothing: this dialect has no temporary files.
    fn remove_leftovers(&self, _dir: &RemotePath, _tag: u32) -> Result<()> {
        Ok(())
    }

    fn abilities(&self) -> Vec<Ability> {
        abilities::abilities(&self.quirks.lock())
    }

    fn contact(&self) -> Contact {
        self.pool.contact()
    }

    fn close(&self) {
        self.pool.close();
    }
}
