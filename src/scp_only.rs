//! The `scp-only` dialect: a host with nothing but `scp -f` and `scp -t`.
//!
//! A forced command, a restricted shell, an appliance, or a server library without a shell behind
//! it. Each operation is a command on a channel of its own; once that is open, reading takes one
//! round trip and uploading two, the first of which looks at what is there.
//!
//! What SCP has no word for cannot be done: no rename, so that an upload goes straight to its name;
//! no removal, no links, no owners. No inode numbers and whole seconds only, so that a change of
//! the same size within one second is seen only in small files, whose content is compared.
//!
//! Modules:
//! - `command`: command lines and quoting of paths; pure
//! - `link`: one connection; commands run one after another
//! - `probe`: what a server without a shell can do
//! - `trial`: a harmless command that finds that out
//! - `quirks`: the table of what is known of servers
//! - `receive`: attributes and content: `scp -f`
//! - `listing`: a directory, listed by refusing everything in it
//! - `send`: content and directories: `scp -t`
//! - `write`: uploads and new directories
//! - `attr`: modes and times
//! - `samples`: recent content of small files, to tell a change within a second
//! - `abilities`: what the host can do, for people

mod abilities;
mod attr;
mod command;
pub mod link;
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
use crate::scp_only::link::Command;
use crate::scp_only::link::Link;
use crate::scp_only::listing::Listed;
use crate::scp_only::quirks::Quirks;
use crate::scp_only::quirks::Refusal;
use crate::scp_only::receive::About;
use crate::scp_only::receive::Fetch;
use crate::scp_only::receive::Header;
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

/// The owner and group of everything, as SCP does not tell: nobody's.
pub const UNKNOWN_ID: u32 = 65_534;

/// How often a file is fetched that changes while it is sent.
const MAX_FETCHES: u32 = 3;

const STUCK: &str = "the host's scp does not get through it; files in it can be opened by name";

const NO_WORD: &str = "the host has nothing but scp, which has no word for it";

/// A host that is reached over [`Link`]s.
#[derive(Debug)]
pub struct ScpOnly {
    pool: Pool<Link>,
    facts: Facts,
    /// How many names a listing may have.
    max_names: usize,
    quirks: Mutex<Quirks>,
    /// What stands before each path in a command; ends in a slash, or is empty.
    prefix: Vec<u8>,
    /// The root itself in a command.
    root: Vec<u8>,
    timeout: Duration,
    clock: Arc<dyn Clock>,
    /// Whether the host's filesystem keeps odd seconds, which FAT does not; `None` until one was
    /// uploaded.
    keeps_seconds: Mutex<Option<bool>>,
    /// What small files held that were changed lately.
    samples: Mutex<Samples>,
    /// Directories that the host's scp does not get through: it waits for ever at a FIFO.
    stuck: Mutex<Vec<RemotePath>>,
}

impl ScpOnly {
    fn about<'a>(act: &'static str, path: &'a RemotePath) -> About<'a> {
        About { act, path }
    }

    fn unsupported(act: &'static str, path: &RemotePath, why: &'static str) -> Error {
        Error::Unsupported {
            act,
            path: path.clone(),
            why,
        }
    }

    /// The path as the server is to see it.
    fn remote_path(&self, path: &RemotePath) -> Vec<u8> {
        if path.is_root() {
            self.root.clone()
        } else {
            [&self.prefix[..], path.as_bytes()].concat()
        }
    }

    /// Runs scp for a path.
    fn run(
        &self,
        direction: Direction,
        quirks: &Quirks,
        purpose: Purpose,
        about: About<'_>,
    ) -> Result<Command> {
        let path = self.remote_path(about.path);
        let line = command::line(direction, quirks.options, quirks.quoting, &path)
            .map_err(|why| Self::unsupported(about.act, about.path, why))?;
        Command::start(&self.pool, purpose, about.act, &line, self.timeout)
    }

    /// What a header says, and what nobody knows filled in.
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

    fn look(&self, act: &'static str, path: &RemotePath) -> Result<Stat> {
        let quirks = *self.quirks.lock();
        if path.is_root() && quirks.options == Options::Minimal {
            // A directory that nobody can ask about.
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
        let about = Self::about(act, path);
        let command = self.run(Direction::Look, &quirks, Purpose::Metadata, about)?;
        let header = receive::look(command, &quirks, about)?;
        Ok(self.stat_of(header))
    }

    pub(super) fn note_sample(&self, path: &RemotePath, version: &Version, hash: Option<[u8; 32]>) {
        let now = self.clock.wall();
        self.samples
            .lock()
            .note(path.as_bytes(), version, hash, now);
    }

    /// What a file was when it was fetched, and how it ended.
    fn fetch_once(&self, about: About<'_>, receiver: &mut dyn Receiver) -> Result<Fetch> {
        let quirks = *self.quirks.lock();
        let command = self.run(Direction::Fetch, &quirks, Purpose::Transfer, about)?;
        receive::fetch(command, &quirks, about, receiver)
    }
}

/// Whether the content is the same, as far as this host can tell.
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

    /// Follows a symlink: what it leads to is all that a source shows.
    fn stat(&self, path: &RemotePath) -> Result<Stat> {
        self.look("stat", path)
    }

    /// Shows what symlinks lead to. Not listed is what a source cannot send: links that lead
    /// nowhere, FIFOs, sockets and devices, and names with a newline.
    fn list(&self, path: &RemotePath) -> Result<Listing> {
        const ACT: &str = "list";
        const WHY: &str = "the host's scp lists no directories; files in it can be opened by name";
        let quirks = *self.quirks.lock();
        if quirks.refusal == Refusal::Unheeded || quirks.options == Options::Minimal {
            return Err(Self::unsupported(ACT, path, WHY));
        }
        if self.stuck.lock().contains(path) {
            return Err(Self::unsupported(ACT, path, STUCK));
        }
        let about = Self::about(ACT, path);
        let command = self.run(Direction::Look, &quirks, Purpose::Metadata, about)?;
        let said = self.remote_path(path);
        let listed = listing::list(command, &quirks, about, &said, self.max_names);
        if matches!(
            &listed,
            Err(Error::OutcomeUnknown {
                source: ssh::Error::Timeout { .. },
                ..
            })
        ) {
            // Whoever asks next gets what is in it by name.
            log::warn!("the host's scp does not get through {path}; is there a FIFO in it?");
            self.stuck.lock().push(path.clone());
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
                // What kind of file it is shows when it is asked for, if at all.
                let denied = denied
                    .into_iter()
                    .map(|name| ListEntry::new(name, FileKind::File, None, None));
                Ok(Listing {
                    directory: self.stat_of(directory),
                    entries: known.chain(denied).collect(),
                })
            }
            Listed::Unheeded => {
                log::info!("the host does not skip what is refused; no directory can be listed");
                self.quirks.lock().refusal = Refusal::Unheeded;
                Err(Self::unsupported(ACT, path, WHY))
            }
        }
    }

    fn read_link(&self, path: &RemotePath) -> Result<Vec<u8>> {
        Err(Self::unsupported("read", path, NO_WORD))
    }

    fn fetch(
        &self,
        path: &RemotePath,
        known: Option<&Version>,
        receiver: &mut dyn Receiver,
    ) -> Result<Fetched> {
        let about = Self::about("fetch", path);
        for n_left in (0..MAX_FETCHES).rev() {
            let mut hashing = Hashing::around(receiver);
            let header = match self.fetch_once(about, &mut hashing)? {
                Fetch::Complete(header) => header,
                Fetch::Refused(text) => {
                    let reason = receive::reason_for(&text, Reason::IsADirectory);
                    if reason == Reason::Changed && n_left > 0 {
                        continue;
                    }
                    return Err(about.refused(reason, &text));
                }
            };
            let stat = self.stat_of(header);
            // The attributes are from before the content. A small file had no time to change; a
            // large one, or one that is not what was known of it, is asked for once more.
            let is_known = known.is_some_and(|known| is_same(known, &stat));
            let is_quick = is_known && stat.size <= MAX_AHEAD;
            let is_stable = is_quick || is_same(&stat.version(), &self.look("fetch", path)?);
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
        Err(about.refused(Reason::Changed, b""))
    }

    /// Uploads straight at the final name: there is nothing to rename with. Others can see half of
    /// the content while it arrives, and keep that half if it never does.
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
        Err(Self::unsupported("create", path, NO_WORD))
    }

    fn symlink(&self, path: &RemotePath, _target: &[u8], _owner: Option<Owner>) -> Result<Changed> {
        Err(Self::unsupported("create", path, NO_WORD))
    }

    fn link(&self, _existing: &RemotePath, path: &RemotePath) -> Result<Changed> {
        Err(Self::unsupported("link", path, NO_WORD))
    }

    fn remove_file(&self, path: &RemotePath, _other: Option<&RemotePath>) -> Result<Changed> {
        Err(Self::unsupported("remove", path, NO_WORD))
    }

    fn remove_dir(&self, path: &RemotePath) -> Result<Changed> {
        Err(Self::unsupported("remove", path, NO_WORD))
    }

    fn rename(&self, from: &RemotePath, _to: &RemotePath, _how: RenameHow) -> Result<Renamed> {
        Err(Self::unsupported("rename", from, NO_WORD))
    }

    /// Changes mode and times of a directory, by a record; of a file they go with its content.
    fn set_attr(&self, path: &RemotePath, change: &AttrChange) -> Result<Stat> {
        self.change_attr(path, change)
    }

    fn copy(&self, _from: &RemotePath, to: &RemotePath, _plan: &UploadSpec) -> Result<Changed> {
        Err(Self::unsupported("copy", to, NO_WORD))
    }

    /// Shows a terabyte, all of it free, as sshfs does for a server that cannot tell: zeros would
    /// keep programs from writing at all.
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

    /// There are no temporary files.
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
