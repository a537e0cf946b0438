//! The `shell` dialect: a host with a POSIX shell, and `scp` or else `cat` and `dd`.
//!
//! Each operation sends one line to a resident shell and reads one answer: one round trip. Only
//! requests for many files or directories (`batch`, `listing`) send several lines at once.
//!
//! Modules:
//! - `resident`: one connection with a resident shell: request, framed answer
//! - `probe`: finds out what a host can do, over the first connection
//! - `tools`: the tools of a host, and the helper scripts for them; pure
//! - `quote`: quoting for a POSIX shell; pure
//! - `status`: the statuses of the helper functions, for scripts and Rust; pure
//! - `answer`: parsers of the output of the helper functions; pure
//! - `outcome`: turns an answer into attributes or an error; pure
//! - `listing`: listings, parsed while they arrive
//! - `content`: fetch, upload and copy of files
//! - `batch`: fetch many small files
//! - `blocks`: fetch a part of a large file
//! - `transfer`: SCP over a resident shell
//! - `plain`: fetch and upload without `scp`, by `cat` and `dd`
//! - `pieces`: uploads of large files over several connections
//! - `temporaries`: hides temporary files from listings
//! - `abilities`: the abilities of the host, for the user

mod abilities;
pub mod answer;
mod batch;
mod blocks;
mod content;
mod listing;
mod outcome;
pub mod probe;
pub mod quote;
pub mod resident;
mod status;
pub mod tools;
pub mod transfer;

mod pieces;
mod plain;
mod temporaries;

use std::collections::HashMap;
use std::collections::HashSet;

use crate::path::RemotePath;
use crate::pool;
use crate::pool::Purpose;
use crate::remote::Ability;
use crate::remote::AttrChange;
use crate::remote::BatchReceiver;
use crate::remote::Changed;
use crate::remote::Contact;
use crate::remote::Content;
use crate::remote::Error;
use crate::remote::Facts;
use crate::remote::Fetched;
use crate::remote::KnownDirectory;
use crate::remote::KnownFile;
use crate::remote::ListEntry;
use crate::remote::Listing;
use crate::remote::NewTime;
use crate::remote::Owner;
use crate::remote::Reason;
use crate::remote::Receiver;
use crate::remote::Remote;
use crate::remote::RenameHow;
use crate::remote::Renamed;
use crate::remote::Result;
use crate::remote::SubListing;
use crate::remote::UploadSpec;
use crate::remote::Uploaded;
use crate::shell::outcome::changed;
use crate::shell::outcome::check;
use crate::shell::outcome::directory_means_exists;
use crate::shell::outcome::one_stat;
use crate::shell::outcome::only_parent;
use crate::shell::outcome::owner_text;
use crate::shell::outcome::refused;
use crate::shell::outcome::stats;
use crate::shell::outcome::unexpected_reply;
use crate::shell::quote::Line;
use crate::shell::resident::Answer;
use crate::shell::resident::ResidentShell;
use crate::shell::temporaries::Temporaries;
use crate::shell::tools::Tools;
use crate::shell::tools::Userland;
use crate::shell::transfer::request_failed;
use crate::stat::DeviceNumber;
use crate::stat::FileKind;
use crate::stat::FsStat;
use crate::stat::Stat;
use crate::stat::Version;
use crate::sync::Mutex;

/// The name of a temporary file is this prefix, a number and [`TEMP_SUFFIX`].
pub const TEMP_PREFIX: &[u8] = b".scpfs-";

/// The end of the name of a temporary file.
pub const TEMP_SUFFIX: &[u8] = b".tmp";

/// Content of at most so many bytes is a small transfer.
const MAX_SMALL_TRANSFER: u64 = 64 << 10;

/// The connections of this dialect, each with a resident shell.
pub(crate) type Pool = pool::Pool<ResidentShell>;
pub(crate) type Lent = pool::Lent<ResidentShell>;

/// A host with a POSIX shell, reached over a pool of connections.
#[derive(Debug)]
pub struct Shell {
    pool: Pool,
    tools: Tools,
    facts: Facts,
    /// The temporary files of uploads, which listings leave out.
    temporaries: Temporaries,
    /// The maximum number of names in a listing.
    max_names: usize,
    /// By device number: whether the sizes of its files are wrong, as in `/proc`.
    wrong_size_devices: Mutex<HashMap<u64, bool>>,
    /// Directories in which temporary files could be created but not removed.
    dirs_without_removal: Mutex<HashSet<RemotePath>>,
}

impl Shell {
    /// Returns the dialect for a host with these tools. A listing may have `max_names` names.
    pub fn new(pool: Pool, tools: Tools, facts: Facts, max_names: usize) -> Self {
        Self {
            pool,
            tools,
            facts,
            max_names,
            temporaries: Temporaries::default(),
            wrong_size_devices: Mutex::new(HashMap::new()),
            dirs_without_removal: Mutex::new(HashSet::new()),
        }
    }

    /// Returns the pool of connections.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Returns the number of open connections.
    pub fn n_connections(&self) -> usize {
        self.pool.n_open()
    }

    /// Returns the absolute path on the host.
    fn absolute(&self, path: &RemotePath) -> Vec<u8> {
        let mut bytes = self.facts.root.clone();
        if !path.is_root() || bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(path.as_bytes());
        bytes
    }

    /// Returns the absolute path of the parent directory on the host.
    fn parent_of(&self, path: &RemotePath) -> Vec<u8> {
        self.absolute(&path.parent().unwrap_or_default())
    }

    /// Sends a request that changes nothing, so that a retry is harmless.
    fn query(&self, act: &'static str, line: Line) -> Result<Answer> {
        let mut resident = self.pool.lend(Purpose::Metadata, act)?;
        resident
            .request(&line.finish())
            .map_err(|error| request_failed(act, error))
    }

    /// Sends a request that changes something on the host.
    fn modify(&self, act: &'static str, line: Line) -> Result<Answer> {
        let mut resident = self.pool.lend_live(Purpose::Metadata, act)?;
        resident
            .request(&line.finish())
            .map_err(|error| request_failed(act, error))
    }

    /// Fetches the attributes of the entries that a listing could not describe, for example devices.
    fn stat_incomplete(&self, dir: &RemotePath, entries: &mut [ListEntry]) -> Result<()> {
        const MAX_PATHS: usize = 500;
        let mut incomplete: Vec<&mut ListEntry> = entries
            .iter_mut()
            .filter(|entry| entry.stat.is_none())
            .collect();
        for some in incomplete.chunks_mut(MAX_PATHS) {
            let line = some.iter().fold(Line::new("answer_stats"), |line, entry| {
                line.arg(&self.absolute(&dir.join(&entry.name)))
            });
            let answer = self.query("stat", line)?;
            // If one of them is gone, their attributes stay unknown until somebody asks for them.
            let found = stats(&answer.body, some.len()).unwrap_or_default();
            for (entry, stat) in some.iter_mut().zip(found) {
                entry.listed.stat = (stat.kind == entry.kind).then_some(stat);
            }
        }
        Ok(())
    }

    /// Lends a connection for content of `size` bytes. A small transfer takes no longer than a
    /// listing and must not wait for large ones.
    fn lend_for_transfer(&self, act: &'static str, size: u64) -> Result<Lent> {
        let purpose = if size <= MAX_SMALL_TRANSFER {
            Purpose::SmallTransfer
        } else {
            Purpose::Transfer
        };
        self.pool.lend_live(purpose, act)
    }

    /// Sends a request that changes something. Its line ends with `n_wanted` paths, and the answer
    /// has their attributes: `None` if one of the paths does not exist.
    fn change(
        &self,
        act: &'static str,
        path: &RemotePath,
        line: Line,
        n_wanted: usize,
    ) -> Result<Option<Vec<Stat>>> {
        let answer = self.modify(act, line)?;
        check(act, path, &answer)?;
        Ok(stats(&answer.body, n_wanted))
    }
}

impl Remote for Shell {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn stat(&self, path: &RemotePath) -> Result<Stat> {
        let request = self.temporaries.begin_request();
        let answer = self.query("stat", Line::new("answer_stat").arg(&self.absolute(path)))?;
        check("stat", path, &answer)?;
        if request.hides(path) {
            return Err(refused("stat", path, Reason::NotFound, b""));
        }
        one_stat("stat", &answer.body)
    }

    fn list(&self, path: &RemotePath) -> Result<Listing> {
        const ACT: &str = "list";
        let top = self.absolute(path);
        let request = self.temporaries.begin_request();
        let resident = self.pool.lend(Purpose::Metadata, ACT)?;
        let (status, parsed) = listing::list(
            resident,
            &Line::new("list_directory").arg(&top).finish(),
            self.tools.userland,
            path,
            &top,
            self.max_names,
        )?;
        let refuse = |reason| refused(ACT, path, reason, &parsed.error_text);
        let Some(directory) = parsed.top else {
            return Err(refuse(crate::remote::reason_of(&parsed.error_text)));
        };
        if directory.kind != FileKind::Directory {
            return Err(refuse(Reason::NotADirectory));
        }
        // An incomplete listing must not look like a directory with fewer files.
        if let Some(reason) = answer::first_serious_error(&parsed.error_text) {
            return Err(refuse(reason));
        }
        if status != 0 && parsed.error_text.trim_ascii().is_empty() {
            return Err(refuse(Reason::Other));
        }
        let mut entries = parsed.entries;
        let hidden = request.hidden_in(path);
        entries.retain(|entry| !hidden.contains(&entry.name));
        self.stat_incomplete(path, &mut entries)?;
        for name in parsed.ambiguous {
            match self.stat(&path.join(&name)) {
                Ok(stat) => entries.push(ListEntry::new(name, stat.kind, Some(stat), None)),
                Err(error) if error.reason() == Some(Reason::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Listing { directory, entries })
    }

    fn fetch_blocks(
        &self,
        path: &RemotePath,
        first: u64,
        n_blocks: u64,
    ) -> Result<(Stat, Vec<u8>)> {
        self.fetch_part(path, first, n_blocks)
    }

    fn list_trees(&self, roots: &[KnownDirectory], max_names: usize) -> Result<Vec<SubListing>> {
        self.list_directories(roots, max_names)
    }

    fn read_link(&self, path: &RemotePath) -> Result<Vec<u8>> {
        const ACT: &str = "read the link";
        let line = Line::new("readlink -n --")
            .arg(&self.absolute(path))
            .raw("; answer $?");
        let answer = self.query(ACT, line)?;
        if answer.status != 0 {
            // `readlink` prints no error message; `stat` tells the reason.
            let stat = self.stat(path)?;
            let reason = if stat.kind == FileKind::Symlink {
                Reason::Other
            } else {
                Reason::InvalidArgument
            };
            return Err(refused(ACT, path, reason, b""));
        }
        // Linux symlink(7): a target has at most PATH_MAX bytes, its final NUL included.
        if answer.body.len() >= answer::MAX_TARGET || answer.body.contains(&0) {
            return Err(unexpected_reply(ACT, &answer.body));
        }
        Ok(answer.body)
    }

    fn fetch(
        &self,
        path: &RemotePath,
        known: Option<&Version>,
        receiver: &mut dyn Receiver,
    ) -> Result<Fetched> {
        self.fetch_file(path, known, receiver)
    }

    fn fetch_many(&self, files: &[KnownFile], receiver: &mut dyn BatchReceiver) -> Result<()> {
        self.fetch_files(files, receiver)
    }

    fn upload(
        &self,
        path: &RemotePath,
        content: &dyn Content,
        spec: &UploadSpec,
    ) -> Result<Uploaded> {
        self.upload_file(path, content, spec)
    }

    fn create_new(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed> {
        let line = NewAttrs { mode, owner }
            .args(Line::new("create_file"), creation_mask(mode | 0o200))
            .arg(&self.absolute(path))
            .arg(&self.parent_of(path));
        self.change("create", path, line, 2).map(changed)
    }

    fn make_dir(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed> {
        let name = self.absolute(path);
        let line = NewAttrs { mode, owner }
            .args(Line::new("make_directory"), creation_mask(mode))
            .arg(&name)
            .raw("&& answer_stats")
            .arg(&name);
        self.change("create", path, line.arg(&self.parent_of(path)), 2)
            .map(changed)
    }

    fn make_node(
        &self,
        path: &RemotePath,
        kind: FileKind,
        mode: u32,
        device: DeviceNumber,
        owner: Option<Owner>,
    ) -> Result<Changed> {
        const ACT: &str = "create";
        let name = self.absolute(path);
        let parent = self.parent_of(path);
        let DeviceNumber { major, minor } = device;
        let mkn = NewAttrs { mode, owner }
            .args(Line::new("make_node"), creation_mask(mode))
            .arg(&name);
        let line = match kind {
            FileKind::Fifo => mkn,
            FileKind::CharDevice => mkn.raw(&format!("c {major} {minor}")),
            FileKind::BlockDevice => mkn.raw(&format!("b {major} {minor}")),
            FileKind::Socket => {
                let last = path
                    .name()
                    .map_or_else(Vec::new, |name| name.as_bytes().to_vec());
                Line::new("run make_socket")
                    .arg(&last)
                    .arg(&parent)
                    .raw("&& set_owner")
                    .arg(owner_text(owner).as_bytes())
                    .arg(&name)
                    .raw(&format!("&& run chmod {mode:04o} --"))
                    .arg(&name)
            }
            FileKind::File | FileKind::Directory | FileKind::Symlink => {
                let why = "it is not a FIFO, device or socket";
                return Err(Error::Unsupported {
                    act: ACT,
                    path: path.clone(),
                    why,
                });
            }
        };
        let line = line.raw("&& answer_stats").arg(&name).arg(&parent);
        self.change(ACT, path, line, 2).map(changed)
    }

    fn symlink(&self, path: &RemotePath, target: &[u8], owner: Option<Owner>) -> Result<Changed> {
        let name = self.absolute(path);
        let line = Line::new("run make_symlink")
            .arg(target)
            .arg(&name)
            .raw("&& set_owner")
            .arg(owner_text(owner).as_bytes())
            .arg(&name)
            .raw("&& answer_stats")
            .arg(&name)
            .arg(&self.parent_of(path));
        self.change("create", path, line, 2)
            .map(changed)
            .map_err(directory_means_exists)
    }

    fn link(&self, existing: &RemotePath, path: &RemotePath) -> Result<Changed> {
        let (from, to) = (self.absolute(existing), self.absolute(path));
        let line = Line::new("run hard_link")
            .arg(&from)
            .arg(&to)
            .raw("&& answer_stats")
            .arg(&to);
        self.change("link", path, line.arg(&self.parent_of(path)), 2)
            .map(changed)
            .map_err(directory_means_exists)
    }

    fn remove_file(&self, path: &RemotePath, other: Option<&RemotePath>) -> Result<Changed> {
        let line = Line::new("run rm --")
            .arg(&self.absolute(path))
            .raw("&& answer_stats");
        let line = line.arg(&self.parent_of(path));
        match other {
            None => self.change("remove", path, line, 1).map(only_parent),
            Some(other) => {
                let stats = self.change("remove", path, line.arg(&self.absolute(other)), 2)?;
                let Changed {
                    stat: parent,
                    parent: stat,
                } = changed(stats);
                Ok(Changed { stat, parent })
            }
        }
    }

    fn remove_dir(&self, path: &RemotePath) -> Result<Changed> {
        let line = Line::new("run rmdir --")
            .arg(&self.absolute(path))
            .raw("&& answer_stats");
        self.change("remove", path, line.arg(&self.parent_of(path)), 1)
            .map(only_parent)
    }

    fn rename(&self, from: &RemotePath, to: &RemotePath, how: RenameHow) -> Result<Renamed> {
        const ACT: &str = "rename";
        let (source, target) = (self.absolute(from), self.absolute(to));
        let dirs = [self.parent_of(from), self.parent_of(to)];
        let moved = |command: &str| {
            Line::new(command)
                .arg(&source)
                .arg(&target)
                .raw("&& answer_stats")
                .arg(&target)
                .arg(&dirs[0])
                .arg(&dirs[1])
        };
        let line = match how {
            RenameHow::Replace => moved("run rename_to"),
            RenameHow::Exchange if self.facts.can_exchange => moved("run mv --exchange -T --"),
            RenameHow::Exchange => {
                return Err(refused(ACT, from, Reason::InvalidArgument, b""));
            }
            RenameHow::NoReplace => Line::new("rename_no_replace")
                .arg(&source)
                .arg(&target)
                .arg(&dirs[0])
                .arg(&dirs[1]),
        };
        let stats = self.change(ACT, from, line, 3)?;
        let mut stats = stats.into_iter().flatten();
        Ok(Renamed {
            stat: stats.next(),
            from_parent: stats.next(),
            to_parent: stats.next(),
        })
    }

    fn set_attr(&self, path: &RemotePath, change: &AttrChange) -> Result<Stat> {
        const ACT: &str = "change";
        let name = self.absolute(path);
        let mut line = match change.expect {
            None => Line::new(":"),
            Some(version) => {
                let expected = self.tools.userland.version_text(&version);
                Line::new("require_version")
                    .arg(expected.unwrap_or_default().as_bytes())
                    .arg(&name)
            }
        };
        let owner = |id: Option<u32>| id.map_or_else(String::new, |id| id.to_string());
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = (owner(change.uid), owner(change.gid));
            let colon = if gid.is_empty() { "" } else { ":" };
            line = line
                .raw(&format!("&& run chown -h {uid}{colon}{gid} --"))
                .arg(&name);
        }
        if let Some(mode) = change.mode {
            // GNU chmod clears the setgid bit of a directory only if the mode has five digits.
            line = line.raw(&format!("&& run chmod {mode:05o} --")).arg(&name);
        }
        if let Some(size) = change.size {
            line = line.raw(&format!("&& run set_size {size}")).arg(&name);
        }
        let mut touch = |options: &str, time| {
            let stamp = match time {
                None => return,
                Some(NewTime::Now) => "''".to_owned(),
                Some(NewTime::At(time)) => self.tools.stamp(time),
            };
            let tch = format!("&& run set_times {options} {stamp}");
            line = std::mem::take(&mut line).raw(&tch).arg(&name);
        };
        if (change.atime, change.mtime) == (Some(NewTime::Now), Some(NewTime::Now)) {
            touch("''", change.mtime);
        } else {
            touch("-a", change.atime);
            touch("-m", change.mtime);
        }
        let answer = self.modify(ACT, line.raw("&& answer_stat").arg(&name))?;
        if answer.status == status::CONFLICT {
            let path = path.clone();
            return Err(Error::Conflict { act: ACT, path });
        }
        check(ACT, path, &answer)?;
        one_stat(ACT, &answer.body)
    }

    fn copy(&self, from: &RemotePath, to: &RemotePath, spec: &UploadSpec) -> Result<Changed> {
        self.copy_file(from, to, spec)
    }

    fn check_readable(&self, path: &RemotePath) -> Result<()> {
        const ACT: &str = "open";
        let name = self.absolute(path);
        // Not `test -r`, because some shells only look at the mode bits. `-f` comes first, because
        // opening a FIFO would block.
        let line = Line::new("{ [ -f").arg(&name).raw("] && true <");
        let answer = self.query(ACT, line.arg(&name).raw("; } 2>&1; answer $?"))?;
        if answer.status != 0 && answer.body.trim_ascii().is_empty() {
            let stat = self.stat(path)?;
            let reason = if stat.kind == FileKind::File {
                Reason::AccessDenied
            } else {
                Reason::Stale
            };
            return Err(refused(ACT, path, reason, b""));
        }
        check(ACT, path, &answer)
    }

    fn fs_stat(&self, path: &RemotePath) -> Result<FsStat> {
        let line = Line::new("print_fs").arg(&self.absolute(path));
        let answer = self.query("stat", line.raw("2>&1; answer $?"))?;
        check("stat", path, &answer)?;
        let fs = match self.tools.userland {
            Userland::Gnu | Userland::BusyBox => answer::parse_fs_stat(&answer.body),
            Userland::Bsd | Userland::Ls => answer::parse_df(&answer.body),
        };
        fs.ok_or_else(|| unexpected_reply("stat", &answer.body))
    }

    fn sync(&self, path: &RemotePath) -> Result<()> {
        const ACT: &str = "flush";
        let line = Line::new("flush")
            .arg(&self.absolute(path))
            .raw("; answer $?");
        let mut resident = self.pool.lend(Purpose::Transfer, ACT)?;
        let answer = resident
            .request(&line.finish())
            .map_err(|error| request_failed(ACT, error))?;
        check(ACT, path, &answer)
    }

    fn remove_leftovers(&self, dir: &RemotePath, tag: u32) -> Result<()> {
        const ACT: &str = "clean up";
        let line = Line::new("remove_orphans").arg(&self.absolute(dir));
        let answer = self.query(ACT, line.raw(&format!("{tag:08x}")))?;
        check(ACT, dir, &answer)
    }

    fn abilities(&self) -> Vec<Ability> {
        abilities::abilities(&self.facts, &self.tools)
    }

    fn contact(&self) -> Contact {
        self.pool.contact()
    }

    fn close(&self) {
        self.pool.close();
    }
}

/// Permissions and owner of a new file, directory or node.
struct NewAttrs {
    mode: u32,
    owner: Option<Owner>,
}

impl NewAttrs {
    /// Adds the arguments MASK, MODE and OWNER of the helper functions. `mask` is the umask of the
    /// creation; with an owner to set, it leaves no permissions to group and others until then.
    fn args(self, line: Line, mask: u32) -> Line {
        let Self { mode, owner } = self;
        let mask = if owner.is_some() { 0o077 } else { mask };
        line.raw(&format!("{mask:03o} {mode:04o}"))
            .arg(owner_text(owner).as_bytes())
    }
}

/// Returns the umask under which a creation gives the permissions of `mode`.
pub(super) fn creation_mask(mode: u32) -> u32 {
    !mode & 0o777
}
