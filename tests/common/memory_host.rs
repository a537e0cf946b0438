//! A host in memory, with a log of its requests and failures on demand, for tests of the layers
//! above.
//!
//! It permits everything to all users, and answers at once. Each change gets a time stamp of its
//! own, even if the clock does not advance.

mod others;
mod store;
mod tree;

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::memory_host::store::both;
use crate::memory_host::store::put;
use crate::memory_host::store::read_all;
use crate::memory_host::tree::Body;
use crate::memory_host::tree::Done;
use crate::memory_host::tree::Node;
use crate::memory_host::tree::Tree;
use scpfs::clock::Clock;
use scpfs::path::RemotePath;
use scpfs::remote::Ability;
use scpfs::remote::AttrChange;
use scpfs::remote::Changed;
use scpfs::remote::Contact;
use scpfs::remote::ContactState;
use scpfs::remote::Content;
use scpfs::remote::Error;
use scpfs::remote::Facts;
use scpfs::remote::Fetched;
use scpfs::remote::ListEntry;
use scpfs::remote::Listing;
use scpfs::remote::NewTime;
use scpfs::remote::Owner;
use scpfs::remote::Reason;
use scpfs::remote::Receiver;
use scpfs::remote::Remote;
use scpfs::remote::RenameHow;
use scpfs::remote::Renamed;
use scpfs::remote::Result;
use scpfs::remote::TimePrecision;
use scpfs::remote::UploadSpec;
use scpfs::remote::Uploaded;
use scpfs::remote::ability;
use scpfs::remote::ability::Extent;
use scpfs::ssh;
use scpfs::stat::DeviceNumber;
use scpfs::stat::FileKind;
use scpfs::stat::FsStat;
use scpfs::stat::PERMISSIONS;
use scpfs::stat::Stat;
use scpfs::stat::Time;
use scpfs::stat::Version;
use scpfs::sync::Mutex;

/// The login user.
const LOGIN: Owner = Owner {
    uid: 1000,
    gid: 1000,
};

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The connection breaks before the request arrives: nothing is changed.
    Disconnected,
    /// The connection breaks after the request was carried out: the outcome is unknown.
    AnswerLost,
    /// The host refuses the request, and changes nothing.
    Refused(Reason),
}

/// A host in memory.
#[derive(Debug)]
pub struct Memory {
    facts: Facts,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tree: Tree,
    /// The latest time stamp of a change.
    last: Time,
    calls: Vec<(&'static str, RemotePath)>,
    /// The failures of the next requests; `None` for a request that succeeds.
    failures: VecDeque<Option<Failure>>,
    is_closed: bool,
}

impl State {
    /// Returns a time stamp that no earlier change has.
    fn now(&mut self, clock: &dyn Clock) -> Time {
        let wall = clock.wall();
        if wall > self.last {
            self.last = wall;
        } else {
            self.last.nanos += 1;
            if self.last.nanos == 1_000_000_000 {
                self.last.nanos = 0;
                self.last.secs += 1;
            }
        }
        self.last
    }
}

impl Memory {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let root = b"/memory".to_vec();
        let tree = Tree::new(&root, LOGIN, clock.wall());
        Self {
            facts: Facts {
                summary: "a host in memory".to_owned(),
                root,
                uid: LOGIN.uid,
                gid: LOGIN.gid,
                groups: vec![LOGIN.gid],
                can_exchange: true,
                time_precision: TimePrecision::Nanos,
                can_take_pieces: false,
                can_take_holes: false,
                sets_by_upload: None,
                uploads_in_place: false,
                can_fetch_many: false,
                can_list_trees: false,
                can_fetch_blocks: false,
            },
            state: Mutex::new(State {
                tree,
                last: clock.wall(),
                calls: Vec::new(),
                failures: VecDeque::new(),
                is_closed: false,
            }),
            clock,
        }
    }

    /// Returns the number of requests so far.
    pub fn n_calls(&self) -> usize {
        self.state.lock().calls.len()
    }

    /// Returns the requests so far, in order, and clears the log.
    pub fn take_calls(&self) -> Vec<(&'static str, RemotePath)> {
        std::mem::take(&mut self.state.lock().calls)
    }

    /// Lets the `n`-th request from now on fail; 1 is the next.
    pub fn fail(&self, n: usize, failure: Failure) {
        let failures = &mut self.state.lock().failures;
        let at = n.saturating_sub(1);
        if failures.len() <= at {
            failures.resize(at + 1, None);
        }
        if let Some(slot) = failures.get_mut(at) {
            *slot = Some(failure);
        }
    }

    /// Carries out one request.
    fn call<T>(
        &self,
        act: &'static str,
        path: &RemotePath,
        operation: impl FnOnce(&mut Tree, Time) -> Done<T>,
    ) -> Result<T> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(Error::Closed);
        }
        state.calls.push((act, path.clone()));
        let failure = state.failures.pop_front().flatten();
        let lost = || ssh::Error::Closed {
            act: "testing what happens then",
        };
        let refused = |reason| Error::Refused {
            act,
            path: path.clone(),
            reason,
            text: Vec::new(),
        };
        match failure {
            Some(Failure::Disconnected) => {
                return Err(Error::Disconnected {
                    act,
                    source: lost(),
                });
            }
            Some(Failure::Refused(reason)) => return Err(refused(reason)),
            Some(Failure::AnswerLost) | None => {}
        }
        let now = state.now(&*self.clock);
        let result = operation(&mut state.tree, now);
        match (result, failure) {
            (Ok(_), Some(Failure::AnswerLost)) => Err(Error::OutcomeUnknown {
                act,
                source: lost(),
            }),
            (Ok(value), _) => Ok(value),
            (Err(reason), _) => Err(refused(reason)),
        }
    }

    /// Creates a file under a name that must be free.
    fn make(
        &self,
        path: &RemotePath,
        body: Body,
        mode: u32,
        owner: Option<Owner>,
    ) -> Result<Changed> {
        self.call("create", path, |tree, now| {
            let (dir, name) = tree.place(path)?;
            if tree.child(dir, &name).is_some() {
                return Err(Reason::Exists);
            }
            let ino = tree.add(Node::new(body, mode, owner.unwrap_or(LOGIN), now));
            tree.bind(dir, &name, ino, now)?;
            both(tree, ino, dir)
        })
    }
}

fn conflict(act: &'static str, path: &RemotePath) -> Error {
    let path = path.clone();
    Error::Conflict { act, path }
}

impl Remote for Memory {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn stat(&self, path: &RemotePath) -> Result<Stat> {
        self.call("stat", path, |tree, _| tree.stat(tree.find(path)?))
    }

    fn list(&self, path: &RemotePath) -> Result<Listing> {
        self.call("list", path, |tree, _| {
            let dir = tree.find(path)?;
            let mut entries = Vec::new();
            for (name, &ino) in tree.names(dir)? {
                let stat = tree.stat(ino)?;
                let target = match &tree.node(ino)?.body {
                    Body::Symlink(target) => Some(target.clone().into_boxed_slice()),
                    _ => None,
                };
                entries.push(ListEntry::new(name.clone(), stat.kind, Some(stat), target));
            }
            Ok(Listing {
                directory: tree.stat(dir)?,
                entries,
            })
        })
    }

    fn read_link(&self, path: &RemotePath) -> Result<Vec<u8>> {
        self.call("read", path, |tree, _| {
            match &tree.node(tree.find(path)?)?.body {
                Body::Symlink(target) => Ok(target.clone()),
                _ => Err(Reason::InvalidArgument),
            }
        })
    }

    fn fetch(
        &self,
        path: &RemotePath,
        _known: Option<&Version>,
        receiver: &mut dyn Receiver,
    ) -> Result<Fetched> {
        const ACT: &str = "fetch";
        let (stat, data) = self.call(ACT, path, |tree, _| {
            let ino = tree.find(path)?;
            match &tree.node(ino)?.body {
                Body::File(data) => Ok((tree.stat(ino)?, data.clone())),
                _ => Err(Reason::IsADirectory),
            }
        })?;
        receiver
            .begin(data.len() as u64)
            .and_then(|()| receiver.data(&data))
            .map_err(|source| Error::Local {
                act: ACT,
                path: path.clone(),
                source,
            })?;
        Ok(Fetched {
            may_write: true,
            stat,
            is_stable: true,
        })
    }

    fn upload(
        &self,
        path: &RemotePath,
        content: &dyn Content,
        plan: &UploadSpec,
    ) -> Result<Uploaded> {
        const ACT: &str = "upload";
        let data = read_all(content, plan.size).map_err(|source| Error::Local {
            act: ACT,
            path: path.clone(),
            source,
        })?;
        let uploaded = self.call(ACT, path, |tree, now| put(tree, path, data, plan, now))?;
        uploaded.ok_or_else(|| conflict(ACT, path))
    }

    fn create_new(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed> {
        self.make(path, Body::File(Vec::new()), mode, owner)
    }

    fn make_dir(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed> {
        self.make(path, Body::Directory(BTreeMap::new()), mode, owner)
    }

    fn make_node(
        &self,
        path: &RemotePath,
        kind: FileKind,
        mode: u32,
        device: DeviceNumber,
        owner: Option<Owner>,
    ) -> Result<Changed> {
        use FileKind::{Directory, File, Symlink};
        if matches!(kind, File | Directory | Symlink) {
            return Err(Error::Unsupported {
                act: "create",
                path: path.clone(),
                why: "it is not a FIFO, device or socket",
            });
        }
        self.make(path, Body::Node(kind, device), mode, owner)
    }

    fn symlink(&self, path: &RemotePath, target: &[u8], owner: Option<Owner>) -> Result<Changed> {
        self.make(path, Body::Symlink(target.to_vec()), 0o777, owner)
    }

    fn link(&self, existing: &RemotePath, path: &RemotePath) -> Result<Changed> {
        self.call("link", path, |tree, now| {
            let ino = tree.find(existing)?;
            if matches!(tree.node(ino)?.body, Body::Directory(_)) {
                return Err(Reason::NotPermitted);
            }
            let (dir, name) = tree.place(path)?;
            if tree.child(dir, &name).is_some() {
                return Err(Reason::Exists);
            }
            tree.bind(dir, &name, ino, now)?;
            both(tree, ino, dir)
        })
    }

    fn remove_file(&self, path: &RemotePath, other: Option<&RemotePath>) -> Result<Changed> {
        self.call("remove", path, |tree, now| {
            let (dir, name) = tree.place(path)?;
            let ino = tree.child(dir, &name).ok_or(Reason::NotFound)?;
            if matches!(tree.node(ino)?.body, Body::Directory(_)) {
                return Err(Reason::IsADirectory);
            }
            tree.unbind(dir, &name, now)?;
            let stat = other
                .map(|other| tree.stat(tree.find(other)?))
                .transpose()?;
            Ok(Changed {
                stat,
                parent: Some(tree.stat(dir)?),
            })
        })
    }

    fn remove_dir(&self, path: &RemotePath) -> Result<Changed> {
        self.call("remove", path, |tree, now| {
            let (dir, name) = tree.place(path)?;
            let ino = tree.child(dir, &name).ok_or(Reason::NotFound)?;
            if !tree.names(ino)?.is_empty() {
                return Err(Reason::NotEmpty);
            }
            tree.unbind(dir, &name, now)?;
            Ok(Changed {
                stat: None,
                parent: Some(tree.stat(dir)?),
            })
        })
    }

    fn rename(&self, from: &RemotePath, to: &RemotePath, how: RenameHow) -> Result<Renamed> {
        self.call("rename", from, |tree, now| {
            let dirs = tree.rename(from, to, how, now)?;
            Ok(Renamed {
                stat: Some(tree.stat(tree.find(to)?)?),
                from_parent: Some(tree.stat(dirs.0)?),
                to_parent: Some(tree.stat(dirs.1)?),
            })
        })
    }

    fn set_attr(&self, path: &RemotePath, change: &AttrChange) -> Result<Stat> {
        self.call("change", path, |tree, now| {
            let ino = tree.find(path)?;
            if let Some(expected) = change.expect
                && !tree.stat(ino)?.version().same_content(&expected)
            {
                return Err(Reason::Changed);
            }
            let node = tree.node_mut(ino)?;
            if change.size.is_some() && !matches!(node.body, Body::File(_)) {
                return Err(Reason::IsADirectory);
            }
            node.owner.uid = change.uid.unwrap_or(node.owner.uid);
            node.owner.gid = change.gid.unwrap_or(node.owner.gid);
            if let Some(mode) = change.mode {
                node.mode = mode & PERMISSIONS;
            }
            if let (Some(size), Body::File(data)) = (change.size, &mut node.body) {
                data.resize(usize::try_from(size).map_err(|_| Reason::FileTooLarge)?, 0);
                node.mtime = now;
            }
            for (time, new) in [
                (&mut node.atime, change.atime),
                (&mut node.mtime, change.mtime),
            ] {
                match new {
                    None => {}
                    Some(NewTime::Now) => *time = now,
                    Some(NewTime::At(at)) => *time = at,
                }
            }
            node.ctime = now;
            tree.stat(ino)
        })
        .map_err(|error| match error.reason() {
            Some(Reason::Changed) => Error::Conflict {
                act: "change",
                path: path.clone(),
            },
            _ => error,
        })
    }

    fn copy(&self, from: &RemotePath, to: &RemotePath, plan: &UploadSpec) -> Result<Changed> {
        const ACT: &str = "copy";
        let uploaded = self.call(ACT, to, |tree, now| {
            let Body::File(data) = tree.node(tree.find(from)?)?.body.clone() else {
                return Err(Reason::IsADirectory);
            };
            put(tree, to, data, plan, now)
        })?;
        uploaded
            .map(|uploaded| uploaded.changed())
            .ok_or_else(|| conflict(ACT, to))
    }

    fn fs_stat(&self, path: &RemotePath) -> Result<FsStat> {
        self.call("stat", path, |_, _| {
            Ok(FsStat {
                block_size: 4096,
                blocks: 1 << 20,
                blocks_free: 1 << 19,
                blocks_available: 1 << 19,
                files: 1 << 20,
                files_free: 1 << 19,
                name_max: 255,
            })
        })
    }

    fn sync(&self, path: &RemotePath) -> Result<()> {
        self.call("flush", path, |_, _| Ok(()))
    }

    fn remove_leftovers(&self, dir: &RemotePath, tag: u32) -> Result<()> {
        self.call("clean up", dir, |tree, now| {
            let ino = tree.find(dir)?;
            let ours = tree.leftovers(ino, tag)?;
            for name in ours {
                tree.unbind(ino, &name, now)?;
            }
            Ok(())
        })
    }

    fn abilities(&self) -> Vec<Ability> {
        ability::all(|_| Extent::Full)
    }

    fn contact(&self) -> Contact {
        Contact {
            refusal: None,
            state: ContactState::Connected,
            n_open: 1,
            max: 1,
            round_trip: None,
        }
    }

    fn close(&self) {
        self.state.lock().is_closed = true;
    }
}
