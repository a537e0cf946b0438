//! The `shell` dialect: a host with a POSIX shell and `scp`.
//!
//! Each operation is one line for a lane and one answer: one round trip.

pub mod answer;
pub mod quote;

mod pieces;

use std::collections::HashMap;

use crate::path::Escaped;
use crate::path::Name;
use crate::path::RemotePath;
use crate::remote::AttrChange;
use crate::remote::Changed;
use crate::remote::Content;
use crate::remote::Durability;
use crate::remote::Error;
use crate::remote::Expect;
use crate::remote::Facts;
use crate::remote::Fetched;
use crate::remote::ListEntry;
use crate::remote::Listing;
use crate::remote::NewTime;
use crate::remote::Owner;
use crate::remote::Placement;
use crate::remote::Reason;
use crate::remote::Receiver;
use crate::remote::Remote;
use crate::remote::RenameHow;
use crate::remote::Renamed;
use crate::remote::Result;
use crate::remote::StorePlan;
use crate::remote::TimePrecision;
use crate::remote::lane::Answer;
use crate::remote::lanes::Lanes;
use crate::remote::lanes::Lent;
use crate::remote::lanes::Purpose;
use crate::remote::shell::answer::Flavour;
use crate::remote::shell::quote::Line;
use crate::remote::transfer;
use crate::remote::transfer::Fetch;
use crate::remote::transfer::lost;
use crate::stat::DeviceNumber;
use crate::stat::FileKind;
use crate::stat::FsStat;
use crate::stat::Stat;
use crate::stat::Time;
use crate::stat::Version;
use crate::sync::Mutex;

/// How often a file is fetched that changes while it is sent, before its content is taken as it
/// is.
const MAX_FETCHES: u32 = 3;

/// What the name of an upload's temporary file begins and ends with; between them is a number.
pub const TEMP_PREFIX: &[u8] = b".scpfs-";
pub const TEMP_SUFFIX: &[u8] = b".tmp";

/// A host with a POSIX shell and `scp`, reached over [`Lanes`].
#[derive(Debug)]
pub struct Shell {
    lanes: Lanes,
    flavour: Flavour,
    facts: Facts,
    /// Uploads that are under way, by the directory they are in; their temporary names are left
    /// out of listings.
    temps: Mutex<Vec<(RemotePath, Name)>>,
    /// What kind of filesystem a device of the host holds.
    lying_devices: Mutex<HashMap<u64, bool>>,
}

impl Shell {
    pub fn new(lanes: Lanes, flavour: Flavour, facts: Facts) -> Self {
        Self {
            lanes,
            flavour,
            facts,
            temps: Mutex::new(Vec::new()),
            lying_devices: Mutex::new(HashMap::new()),
        }
    }

    /// Returns how many connections are open.
    pub fn n_lanes(&self) -> usize {
        self.lanes.n_open()
    }

    fn absolute(&self, path: &RemotePath) -> Vec<u8> {
        let mut bytes = self.facts.root.clone();
        if !path.is_root() || bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(path.as_bytes());
        bytes
    }

    fn parent_of(&self, path: &RemotePath) -> Vec<u8> {
        self.absolute(&path.parent().unwrap_or_default())
    }

    /// A request that may be repeated: it changes nothing.
    fn ask(&self, act: &'static str, line: Line) -> Result<Answer> {
        let mut lane = self.lanes.lend(Purpose::Metadata, act)?;
        lane.request(&line.finish())
            .map_err(|error| lost(act, error))
    }

    /// A request that changes something on the host.
    fn tell(&self, act: &'static str, line: Line) -> Result<Answer> {
        let mut lane = self.lanes.lend_live(Purpose::Metadata, act)?;
        lane.request(&line.finish())
            .map_err(|error| lost(act, error))
    }

    /// Asks for the attributes of what a listing could not tell all of: devices.
    fn complete(&self, dir: &RemotePath, entries: &mut [ListEntry]) -> Result<()> {
        const MAX_PATHS: usize = 500;
        let mut incomplete: Vec<&mut ListEntry> = entries
            .iter_mut()
            .filter(|entry| entry.stat.is_none())
            .collect();
        for some in incomplete.chunks_mut(MAX_PATHS) {
            let line = some.iter().fold(Line::new("v"), |line, entry| {
                line.arg(&self.absolute(&dir.join(&entry.name)))
            });
            let answer = self.ask("stat", line)?;
            // If one of them is gone, each is asked for when it is wanted.
            let found = stats(&answer.body, some.len()).unwrap_or_default();
            for (entry, stat) in some.iter_mut().zip(found) {
                entry.stat = (stat.kind == entry.kind).then_some(stat);
            }
        }
        Ok(())
    }

    fn content_lane(&self, act: &'static str) -> Result<Lent> {
        self.lanes.lend_live(Purpose::Content, act)
    }

    /// Tells the host to change something; `wanted` paths are listed at the end of the line and
    /// their attributes are the answer. `None` for all of them where one is missing.
    fn change(
        &self,
        act: &'static str,
        path: &RemotePath,
        line: Line,
        n_wanted: usize,
    ) -> Result<Option<Vec<Stat>>> {
        let answer = self.tell(act, line)?;
        check(act, path, &answer)?;
        Ok(stats(&answer.body, n_wanted))
    }

    fn new_temp(&self, path: &RemotePath) -> Result<Temp<'_>> {
        let random = || {
            let number = getrandom::u64().map_err(|e| Error::Surprise {
                act: "store",
                detail: format!("no random numbers: {e}"),
            })?;
            let name = format!("{number:016x}");
            Ok([TEMP_PREFIX, name.as_bytes(), TEMP_SUFFIX].concat())
        };
        let dir = path.parent().unwrap_or_default();
        let name = Name::new(&random()?).map_err(|e| Error::Surprise {
            act: "store",
            detail: e.to_string(),
        })?;
        self.temps.lock().push((dir.clone(), name.clone()));
        Ok(Temp {
            shell: self,
            dir,
            name,
        })
    }

    /// The line of `w` and `cpy` after their names, see `helpers.sh`.
    ///
    /// `stamp` is what `touch` is to be told, see [`Self::stamp`].
    fn place(
        &self,
        line: Line,
        path: &RemotePath,
        temp: &Temp<'_>,
        plan: &StorePlan,
        stamp: &str,
    ) -> Line {
        let how = match plan.placement {
            Placement::Replace => "replace",
            Placement::InPlace => "inplace",
            Placement::Direct => "direct",
        };
        let expected = match &plan.expect {
            Expect::Anything => "-".to_owned(),
            Expect::Absent => "0".to_owned(),
            Expect::Version(version) => self
                .flavour
                .version_text(version)
                .unwrap_or_else(|| "-".to_owned()),
        };
        line.raw(how)
            .arg(&self.absolute(&temp.dir.join(&temp.name)))
            .arg(&self.absolute(path))
            .arg(&self.parent_of(path))
            .arg(expected.as_bytes())
            .arg(owner_text(plan.owner).as_bytes())
            .raw(&format!("{:04o}", plan.mode))
            .arg(stamp.as_bytes())
            .raw(if plan.durability == Durability::Fsync {
                "y"
            } else {
                "''"
            })
    }

    /// What `touch` is to be told after an upload; empty where the T record says it all.
    fn stamp(&self, plan: &StorePlan) -> String {
        let mtime = plan.mtime;
        let fits_record = mtime.to_micros() == mtime && mtime.secs >= 0;
        let has_record = plan.placement != Placement::Direct;
        if fits_record && has_record {
            String::new()
        } else {
            self.time_text(mtime)
        }
    }

    fn time_text(&self, time: Time) -> String {
        match self.facts.time_precision {
            TimePrecision::Nanos => format!("@{}", answer::epoch_text(time)),
            TimePrecision::Seconds => format!("@{}", time.secs),
        }
    }

    /// Whether the size of this file says nothing about its content, as in `/proc` and `/sys`.
    fn size_lies(&self, path: &RemotePath, stat: &Stat) -> Result<bool> {
        let is_odd = stat.kind == FileKind::File && stat.blocks == 0;
        let Some(id) = stat.id.filter(|_| is_odd) else {
            return Ok(false);
        };
        if let Some(&lies) = self.lying_devices.lock().get(&id.dev) {
            return Ok(lies);
        }
        let line = Line::new("stat -f -c %t --")
            .arg(&self.absolute(path))
            .raw("; a $?");
        let answer = self.ask("stat", line)?;
        check("stat", path, &answer)?;
        // Magic numbers of Linux: proc, sysfs, debugfs, tracefs, cgroup, cgroup2, securityfs.
        let magics: [&[u8]; 7] = [
            b"9fa0",
            b"62656572",
            b"64626720",
            b"74726163",
            b"27e0eb",
            b"63677270",
            b"73636673",
        ];
        let lies = magics.contains(&answer.body.trim_ascii());
        self.lying_devices.lock().insert(id.dev, lies);
        Ok(lies)
    }

    /// Receives a file by `cat`: for content whose length nobody knows before.
    fn fetch_unsized(&self, path: &RemotePath, receiver: &mut dyn Receiver) -> Result<Fetched> {
        const ACT: &str = "fetch";
        let mut lane = self.content_lane(ACT)?;
        let line = Line::new("pc").arg(&self.absolute(path)).finish();
        let content = lane.request(&line).map_err(|error| lost(ACT, error))?;
        check(ACT, path, &content)?;
        let local = |source| Error::Local {
            act: ACT,
            path: path.clone(),
            source,
        };
        receiver.begin(content.body.len() as u64).map_err(local)?;
        receiver.data(&content.body).map_err(local)?;
        drop(lane);
        Ok(Fetched {
            stat: self.stat(path)?,
            is_stable: false,
        })
    }
}

/// The name of an upload under way.
struct Temp<'a> {
    shell: &'a Shell,
    dir: RemotePath,
    name: Name,
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        self.shell
            .temps
            .lock()
            .retain(|(_, name)| *name != self.name);
    }
}

impl Remote for Shell {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn stat(&self, path: &RemotePath) -> Result<Stat> {
        let answer = self.ask("stat", Line::new("g").arg(&self.absolute(path)))?;
        check("stat", path, &answer)?;
        one_stat("stat", &answer.body)
    }

    fn list(&self, path: &RemotePath) -> Result<Listing> {
        const ACT: &str = "list";
        let top = self.absolute(path);
        let mut lane = self.lanes.lend(Purpose::Metadata, ACT)?;
        let answer = lane
            .request(&Line::new("l").arg(&top).finish())
            .map_err(|error| lost(ACT, error))?;
        let parsed = match self.flavour {
            Flavour::Gnu => answer::parse_gnu_listing(&answer.body),
            Flavour::BusyBox => answer::parse_busybox_listing(&answer.body, lane.token(), &top),
        };
        drop(lane);
        let parsed = parsed.ok_or_else(|| surprise(ACT, &answer.body))?;
        let refuse = |reason| refused(ACT, path, reason, &parsed.complaints);
        let Some(directory) = parsed.top else {
            return Err(refuse(answer::reason_of(&parsed.complaints)));
        };
        if directory.kind != FileKind::Directory {
            return Err(refuse(Reason::NotADirectory));
        }
        // An incomplete listing must not look like a directory with fewer files.
        if let Some(reason) = answer::serious_complaint(&parsed.complaints) {
            return Err(refuse(reason));
        }
        if answer.status != 0 && parsed.complaints.trim_ascii().is_empty() {
            return Err(refuse(Reason::Other));
        }
        let mut entries = parsed.entries;
        let temps = self.temps.lock();
        entries.retain(|entry| {
            !temps
                .iter()
                .any(|(dir, temp)| dir == path && *temp == entry.name)
        });
        drop(temps);
        self.complete(path, &mut entries)?;
        Ok(Listing { directory, entries })
    }

    fn read_link(&self, path: &RemotePath) -> Result<Vec<u8>> {
        const ACT: &str = "read the link";
        let line = Line::new("readlink -n --")
            .arg(&self.absolute(path))
            .raw("; a $?");
        let answer = self.ask(ACT, line)?;
        if answer.status != 0 {
            // `readlink` is silent; `stat` knows why.
            let stat = self.stat(path)?;
            let reason = if stat.kind == FileKind::Symlink {
                Reason::Other
            } else {
                Reason::InvalidArgument
            };
            return Err(refused(ACT, path, reason, b""));
        }
        Ok(answer.body)
    }

    fn fetch(
        &self,
        path: &RemotePath,
        known: Option<&Version>,
        receiver: &mut dyn Receiver,
    ) -> Result<Fetched> {
        const ACT: &str = "fetch";
        let mut known = known.copied();
        let line = Line::new("f").arg(&self.absolute(path)).finish();
        for n_left in (0..MAX_FETCHES).rev() {
            let mut lane = self.content_lane(ACT)?;
            let fetch = transfer::fetch(&mut lane, &line, path, receiver)?;
            drop(lane);
            let (size, answer) = match fetch {
                Fetch::Complete { size, answer } => (size, answer),
                Fetch::Refused { text, .. }
                    if answer::reason_of(&text) == Reason::Changed && n_left > 0 =>
                {
                    let stat = self.stat(path)?;
                    if self.size_lies(path, &stat)? {
                        return self.fetch_unsized(path, receiver);
                    }
                    continue;
                }
                Fetch::Refused { text, answer } => return Err(fetch_refused(path, &text, &answer)),
            };
            let stat = one_stat(ACT, &answer.body)?;
            if self.size_lies(path, &stat)? {
                return self.fetch_unsized(path, receiver);
            }
            // The version before is the caller's, the version after is here: if they are the
            // same, so is the content between.
            let is_stable =
                stat.size == size && known.is_some_and(|k| k.same_content(&stat.version()));
            if is_stable || n_left == 0 {
                return Ok(Fetched { stat, is_stable });
            }
            known = Some(stat.version());
        }
        Err(refused(ACT, path, Reason::Changed, b""))
    }

    fn store(&self, path: &RemotePath, content: &dyn Content, plan: &StorePlan) -> Result<Changed> {
        const ACT: &str = "store";
        let temp = self.new_temp(path)?;
        if self.goes_in_pieces(plan) {
            return self.store_in_pieces(path, &temp, content, plan);
        }
        let stamp = self.stamp(plan);
        let line = self.place(Line::new("w"), path, &temp, plan, &stamp);
        let line = line.finish();
        let mut lane = self.content_lane(ACT)?;
        let store = transfer::store(&mut lane, &line, path, content, plan)?;
        drop(lane);
        match (store.answer.status, store.refused) {
            (0, _) => changed(&store.answer.body),
            (answer::CONFLICT, _) => Err(Error::Conflict {
                act: ACT,
                path: path.clone(),
            }),
            (_, Some(text)) => Err(refused(ACT, path, answer::reason_of(&text), &text)),
            (_, None) => {
                check(ACT, path, &store.answer)?;
                changed(&store.answer.body)
            }
        }
    }

    fn create_new(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed> {
        let line = Line::new("new")
            .arg(&self.absolute(path))
            .arg(&self.parent_of(path))
            .raw(&format!("{mode:04o}"))
            .arg(owner_text(owner).as_bytes());
        self.change("create", path, line, 2).map(pair)
    }

    fn make_dir(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed> {
        let line = Line::new(&format!("q mkdir -m {mode:04o} --")).arg(&self.absolute(path));
        self.change("create", path, self.given_away(line, path, owner), 2)
            .map(pair)
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
        let DeviceNumber { major, minor } = device;
        let mknod = Line::new(&format!("q mknod -m {mode:04o} --")).arg(&name);
        let line = match kind {
            FileKind::Fifo => Line::new(&format!("q mkfifo -m {mode:04o} --")).arg(&name),
            FileKind::CharDevice => mknod.raw(&format!("c {major} {minor}")),
            FileKind::BlockDevice => mknod.raw(&format!("b {major} {minor}")),
            FileKind::Socket => {
                let parent = self.parent_of(path);
                let last = path
                    .name()
                    .map_or_else(Vec::new, |name| name.as_bytes().to_vec());
                let line = Line::new("q sock").arg(&last).arg(&parent);
                line.raw(&format!("&& q chmod {mode:04o} --")).arg(&name)
            }
            FileKind::File | FileKind::Directory | FileKind::Symlink => {
                let why = "it is no kind of node";
                return Err(Error::Unsupported {
                    act: ACT,
                    path: path.clone(),
                    why,
                });
            }
        };
        self.change(ACT, path, self.given_away(line, path, owner), 2)
            .map(pair)
    }

    fn symlink(&self, path: &RemotePath, target: &[u8], owner: Option<Owner>) -> Result<Changed> {
        let line = Line::new("q ln -sT --")
            .arg(target)
            .arg(&self.absolute(path));
        self.change("create", path, self.given_away(line, path, owner), 2)
            .map(pair)
            .map_err(taken)
    }

    fn link(&self, existing: &RemotePath, path: &RemotePath) -> Result<Changed> {
        let (from, to) = (self.absolute(existing), self.absolute(path));
        let line = Line::new("q ln_").arg(&from).arg(&to).raw("&& v").arg(&to);
        self.change("link", path, line.arg(&self.parent_of(path)), 2)
            .map(pair)
            .map_err(taken)
    }

    fn remove_file(&self, path: &RemotePath, other: Option<&RemotePath>) -> Result<Changed> {
        let line = Line::new("q rm --").arg(&self.absolute(path)).raw("&& v");
        let line = line.arg(&self.parent_of(path));
        match other {
            None => self.change("remove", path, line, 1).map(parent_only),
            Some(other) => {
                let stats = self.change("remove", path, line.arg(&self.absolute(other)), 2)?;
                let Changed {
                    stat: parent,
                    parent: stat,
                } = pair(stats);
                Ok(Changed { stat, parent })
            }
        }
    }

    fn remove_dir(&self, path: &RemotePath) -> Result<Changed> {
        let line = Line::new("q rmdir --")
            .arg(&self.absolute(path))
            .raw("&& v");
        self.change("remove", path, line.arg(&self.parent_of(path)), 1)
            .map(parent_only)
    }

    fn rename(&self, from: &RemotePath, to: &RemotePath, how: RenameHow) -> Result<Renamed> {
        const ACT: &str = "rename";
        let (source, target) = (self.absolute(from), self.absolute(to));
        let dirs = [self.parent_of(from), self.parent_of(to)];
        let moved = |command: &str| {
            Line::new(command)
                .arg(&source)
                .arg(&target)
                .raw("&& v")
                .arg(&target)
                .arg(&dirs[0])
                .arg(&dirs[1])
        };
        let line = match how {
            RenameHow::Replace => moved("q mv -fT --"),
            RenameHow::Exchange if self.facts.can_exchange => moved("q mv --exchange -T --"),
            RenameHow::Exchange => {
                return Err(refused(ACT, from, Reason::InvalidArgument, b""));
            }
            RenameHow::NoReplace => Line::new("noreplace")
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
        let mut line = Line::new(":");
        let owner = |id: Option<u32>| id.map_or_else(String::new, |id| id.to_string());
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = (owner(change.uid), owner(change.gid));
            let colon = if gid.is_empty() { "" } else { ":" };
            line = line
                .raw(&format!("&& q chown -h {uid}{colon}{gid} --"))
                .arg(&name);
        }
        if let Some(mode) = change.mode {
            // GNU chmod keeps the setgid bit of a directory unless there are five digits.
            line = line.raw(&format!("&& q chmod {mode:05o} --")).arg(&name);
        }
        if let Some(size) = change.size {
            line = line
                .raw(&format!("&& q truncate -c -s {size} --"))
                .arg(&name);
        }
        line = match (change.atime, change.mtime) {
            (Some(NewTime::Now), Some(NewTime::Now)) => line.raw("&& q touch -c -h --").arg(&name),
            (atime, mtime) => {
                for (option, time) in [("-a", atime), ("-m", mtime)] {
                    let stamp = match time {
                        None => continue,
                        Some(NewTime::Now) => String::new(),
                        Some(NewTime::At(time)) => format!("-d {}", self.time_text(time)),
                    };
                    line = line
                        .raw(&format!("&& q touch -c -h {option} {stamp} --"))
                        .arg(&name);
                }
                line
            }
        };
        let answer = self.tell(ACT, line.raw("&& g").arg(&name))?;
        check(ACT, path, &answer)?;
        one_stat(ACT, &answer.body)
    }

    fn copy(&self, from: &RemotePath, to: &RemotePath, plan: &StorePlan) -> Result<Changed> {
        const ACT: &str = "copy";
        let temp = self.new_temp(to)?;
        let line = Line::new("cpy").arg(&self.absolute(from));
        // No T record sets the time of a copy.
        let stamp = self.time_text(plan.mtime);
        let line = self.place(line, to, &temp, plan, &stamp);
        let mut lane = self.content_lane(ACT)?;
        let answer = lane
            .request(&line.finish())
            .map_err(|error| lost(ACT, error))?;
        if answer.status != 0 {
            lane.set_broken();
        }
        drop(lane);
        if answer.status == answer::CONFLICT {
            return Err(Error::Conflict {
                act: ACT,
                path: to.clone(),
            });
        }
        check(ACT, to, &answer)?;
        changed(&answer.body)
    }

    fn fs_stat(&self) -> Result<FsStat> {
        let root = self.absolute(&RemotePath::root());
        let line = Line::new("stat -f -c '%S %b %f %a %c %d %l' --").arg(&root);
        let answer = self.ask("stat", line.raw("2>&1; a $?"))?;
        check("stat", &RemotePath::root(), &answer)?;
        answer::parse_fs_stat(&answer.body).ok_or_else(|| surprise("stat", &answer.body))
    }

    fn sync(&self, path: &RemotePath) -> Result<()> {
        let line = Line::new("flush").arg(&self.absolute(path)).raw("; a 0");
        let mut lane = self.lanes.lend(Purpose::Content, "flush")?;
        lane.request(&line.finish())
            .map_err(|error| lost("flush", error))?;
        Ok(())
    }

    fn close(&self) {
        self.lanes.close();
    }
}

impl Shell {
    /// Ends the line of a command that makes `path`: its owner, then what it and its directory
    /// have become.
    fn given_away(&self, line: Line, path: &RemotePath, owner: Option<Owner>) -> Line {
        let name = self.absolute(path);
        let line = match owner {
            None => line,
            Some(_) => line
                .raw("&& o")
                .arg(owner_text(owner).as_bytes())
                .arg(&name),
        };
        line.raw("&& v").arg(&name).arg(&self.parent_of(path))
    }
}

/// BusyBox says of a name that a directory has taken only that it is one.
fn taken(error: Error) -> Error {
    match error {
        Error::Refused {
            act,
            path,
            reason: Reason::IsADirectory,
            text,
        } => Error::Refused {
            act,
            path,
            reason: Reason::Exists,
            text,
        },
        error => error,
    }
}

fn owner_text(owner: Option<Owner>) -> String {
    owner.map_or_else(String::new, |Owner { uid, gid }| format!("{uid}:{gid}"))
}

fn refused(act: &'static str, path: &RemotePath, reason: Reason, text: &[u8]) -> Error {
    let text = text.iter().copied().take(500).collect();
    Error::Refused {
        act,
        path: path.clone(),
        reason,
        text,
    }
}

fn surprise(act: &'static str, body: &[u8]) -> Error {
    let sample: Vec<u8> = body.iter().copied().take(200).collect();
    Error::Surprise {
        act,
        detail: format!("`{}`", Escaped(&sample)),
    }
}

/// Turns a status into an error.
fn check(act: &'static str, path: &RemotePath, answer: &Answer) -> Result<()> {
    let reason = match answer.status {
        0 => return Ok(()),
        answer::EXISTS => Reason::Exists,
        // POSIX shells: 126 is not executable, 127 not found.
        126 | 127 => Reason::NoProgram,
        _ => answer::reason_of(&answer.body),
    };
    Err(refused(act, path, reason, &answer.body))
}

fn fetch_refused(path: &RemotePath, text: &[u8], answer: &Answer) -> Error {
    let reason = match answer.status {
        127 => Reason::NoProgram,
        _ => answer::reason_of(text),
    };
    refused("fetch", path, reason, text)
}

fn one_stat(act: &'static str, body: &[u8]) -> Result<Stat> {
    stats(body, 1)
        .and_then(|stats| stats.first().copied())
        .ok_or_else(|| surprise(act, body))
}

/// The last `n` lines of an answer as attributes; a program may have warned before them.
fn stats(body: &[u8], n: usize) -> Option<Vec<Stat>> {
    let stats = answer::parse_stats(body)?;
    (stats.len() == n).then_some(stats)
}

fn pair(stats: Option<Vec<Stat>>) -> Changed {
    let mut stats = stats.into_iter().flatten();
    Changed {
        stat: stats.next(),
        parent: stats.next(),
    }
}

fn parent_only(stats: Option<Vec<Stat>>) -> Changed {
    Changed {
        stat: None,
        parent: pair(stats).stat,
    }
}

fn changed(body: &[u8]) -> Result<Changed> {
    Ok(pair(stats(body, 2)))
}
