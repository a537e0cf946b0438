//! The files of a host in memory: what an operation changes, and why it fails. No connections, and
//! no log of requests.

use std::collections::BTreeMap;
use std::collections::HashMap;

use scpfs::path::Name;
use scpfs::path::RemotePath;
use scpfs::remote::Owner;
use scpfs::remote::Reason;
use scpfs::remote::RenameHow;
use scpfs::shell::TEMP_PREFIX;
use scpfs::shell::TEMP_SUFFIX;
use scpfs::stat::DeviceNumber;
use scpfs::stat::FileId;
use scpfs::stat::FileKind;
use scpfs::stat::PERMISSIONS;
use scpfs::stat::Stat;
use scpfs::stat::Time;

/// The limit of Linux.
const MAX_LINKS: u32 = 40;

const NAME_MAX: usize = 255;

pub(crate) const DEVICE: u64 = 1;

pub(crate) type Done<T> = Result<T, Reason>;

/// The kind of a file, with its content.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    File(Vec<u8>),
    Directory(BTreeMap<Name, u64>),
    Symlink(Vec<u8>),
    Node(FileKind, DeviceNumber),
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) body: Body,
    pub(crate) mode: u32,
    pub(crate) owner: Owner,
    pub(crate) nlink: u32,
    pub(crate) atime: Time,
    pub(crate) mtime: Time,
    pub(crate) ctime: Time,
}

impl Node {
    pub(crate) fn new(body: Body, mode: u32, owner: Owner, now: Time) -> Self {
        Self {
            body,
            mode: mode & PERMISSIONS,
            owner,
            nlink: 0,
            atime: now,
            mtime: now,
            ctime: now,
        }
    }

    fn kind(&self) -> FileKind {
        match &self.body {
            Body::File(_) => FileKind::File,
            Body::Directory(_) => FileKind::Directory,
            Body::Symlink(_) => FileKind::Symlink,
            Body::Node(kind, _) => *kind,
        }
    }
}

/// All files by their inode numbers.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: HashMap<u64, Node>,
    next_ino: u64,
    /// The absolute path of the root, for symlinks with an absolute target.
    root_path: Vec<u8>,
}

const ROOT: u64 = 2;

/// The components of a path in reverse order.
fn reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&b| b == b'/')
        .rev()
        .map(<[u8]>::to_vec)
        .collect()
}

impl Tree {
    pub(crate) fn new(root_path: &[u8], owner: Owner, now: Time) -> Self {
        let mut root = Node::new(Body::Directory(BTreeMap::new()), 0o755, owner, now);
        root.nlink = 1;
        Self {
            nodes: HashMap::from([(ROOT, root)]),
            next_ino: ROOT + 1,
            root_path: root_path.to_vec(),
        }
    }

    /// The inode number of a path; a symlink in its last component is not followed.
    pub(crate) fn find(&self, path: &RemotePath) -> Done<u64> {
        self.walk(reversed(path.as_bytes()))
    }

    /// Walks along the components in `todo`, which are in reverse order.
    fn walk(&self, mut todo: Vec<Vec<u8>>) -> Done<u64> {
        let mut trail = vec![ROOT];
        let mut n_links = 0;
        while let Some(part) = todo.pop() {
            let here = trail.last().copied().unwrap_or(ROOT);
            let Body::Directory(names) = &self.node(here)?.body else {
                return Err(Reason::NotADirectory);
            };
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    trail.pop();
                    if trail.is_empty() {
                        // The path leaves the tree.
                        return Err(Reason::NotFound);
                    }
                    continue;
                }
                part if part.len() > NAME_MAX => return Err(Reason::NameTooLong),
                _ => {}
            }
            let next = *names.get(&part[..]).ok_or(Reason::NotFound)?;
            match &self.node(next)?.body {
                Body::Symlink(target) if !todo.is_empty() => {
                    n_links += 1;
                    if n_links > MAX_LINKS {
                        return Err(Reason::SymlinkLoop);
                    }
                    let relative = if target.starts_with(b"/") {
                        trail.truncate(1);
                        target
                            .strip_prefix(&self.root_path[..])
                            .ok_or(Reason::NotFound)?
                    } else {
                        target
                    };
                    todo.extend(reversed(relative));
                }
                _ => trail.push(next),
            }
        }
        trail.last().copied().ok_or(Reason::NotFound)
    }

    pub(crate) fn node(&self, ino: u64) -> Done<&Node> {
        self.nodes.get(&ino).ok_or(Reason::Stale)
    }

    pub(crate) fn node_mut(&mut self, ino: u64) -> Done<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Reason::Stale)
    }

    pub(crate) fn stat(&self, ino: u64) -> Done<Stat> {
        let node = self.node(ino)?;
        let size = match &node.body {
            Body::File(data) | Body::Symlink(data) => data.len() as u64,
            Body::Directory(_) => 4096,
            Body::Node(..) => 0,
        };
        let nlink = match &node.body {
            Body::Directory(names) => {
                let is_dir = |ino: &&u64| {
                    self.nodes
                        .get(ino)
                        .is_some_and(|node| node.kind() == FileKind::Directory)
                };
                let n_dirs = names.values().filter(is_dir).count();
                u32::try_from(n_dirs).unwrap_or(u32::MAX).saturating_add(2)
            }
            _ => node.nlink,
        };
        Ok(Stat {
            kind: node.kind(),
            mode: node.mode,
            nlink,
            uid: node.owner.uid,
            gid: node.owner.gid,
            size,
            blocks: size.div_ceil(512),
            atime: node.atime,
            mtime: node.mtime,
            ctime: Some(node.ctime),
            id: Some(FileId { dev: DEVICE, ino }),
            rdev: match node.body {
                Body::Node(_, device) => device,
                _ => DeviceNumber::default(),
            },
        })
    }

    /// The parent directory of a path, and the last component.
    pub(crate) fn place(&self, path: &RemotePath) -> Done<(u64, Name)> {
        let name = path.name().ok_or(Reason::Busy)?;
        if name.as_bytes().len() > NAME_MAX {
            return Err(Reason::NameTooLong);
        }
        let mut parts = reversed(path.as_bytes());
        // A last component `.` makes the walk follow a symlink to the parent directory.
        if let Some(last) = parts.first_mut() {
            *last = b".".to_vec();
        }
        let dir = self.walk(parts)?;
        match self.node(dir)?.body {
            Body::Directory(_) => Ok((dir, name)),
            _ => Err(Reason::NotADirectory),
        }
    }

    pub(crate) fn names(&self, dir: u64) -> Done<&BTreeMap<Name, u64>> {
        match &self.node(dir)?.body {
            Body::Directory(names) => Ok(names),
            _ => Err(Reason::NotADirectory),
        }
    }

    pub(crate) fn child(&self, dir: u64, name: &Name) -> Option<u64> {
        self.names(dir).ok()?.get(name).copied()
    }

    /// Adds a file to the tree, without a name.
    pub(crate) fn add(&mut self, node: Node) -> u64 {
        let ino = self.next_ino;
        self.next_ino += 1;
        self.nodes.insert(ino, node);
        ino
    }

    /// Gives a file a name, and removes the name from the file that had it.
    pub(crate) fn bind(&mut self, dir: u64, name: &Name, ino: u64, now: Time) -> Done<()> {
        self.unbind(dir, name, now)?;
        let parent = self.node_mut(dir)?;
        if let Body::Directory(names) = &mut parent.body {
            names.insert(name.clone(), ino);
        }
        (parent.mtime, parent.ctime) = (now, now);
        let node = self.node_mut(ino)?;
        node.nlink += 1;
        node.ctime = now;
        Ok(())
    }

    /// Removes a name; removes the file if that was its last name.
    pub(crate) fn unbind(&mut self, dir: u64, name: &Name, now: Time) -> Done<()> {
        let parent = self.node_mut(dir)?;
        let Body::Directory(names) = &mut parent.body else {
            return Err(Reason::NotADirectory);
        };
        let Some(ino) = names.remove(name) else {
            return Ok(());
        };
        (parent.mtime, parent.ctime) = (now, now);
        let node = self.node_mut(ino)?;
        node.nlink = node.nlink.saturating_sub(1);
        node.ctime = now;
        if node.nlink == 0 {
            self.nodes.remove(&ino);
        }
        Ok(())
    }

    /// Whether a directory is equal to or below another one.
    pub(crate) fn is_within(&self, dir: u64, above: u64) -> bool {
        if dir == above {
            return true;
        }
        let Ok(names) = self.names(above) else {
            return false;
        };
        names.values().any(|&ino| self.is_within(dir, ino))
    }

    /// Renames a file; returns its old and its new parent directory.
    pub(crate) fn rename(
        &mut self,
        from: &RemotePath,
        to: &RemotePath,
        how: RenameHow,
        now: Time,
    ) -> Done<(u64, u64)> {
        let (from_dir, from_name) = self.place(from)?;
        let (to_dir, to_name) = self.place(to)?;
        let ino = self.child(from_dir, &from_name).ok_or(Reason::NotFound)?;
        let other = self.child(to_dir, &to_name);
        let is_dir = self.names(ino).is_ok();
        if is_dir && self.is_within(to_dir, ino) {
            return Err(Reason::InvalidArgument);
        }
        match (other, how) {
            (Some(_), RenameHow::NoReplace) => return Err(Reason::Exists),
            (None, RenameHow::Exchange) => return Err(Reason::NotFound),
            (Some(other), RenameHow::Exchange) => {
                if self.names(other).is_ok() && self.is_within(from_dir, other) {
                    return Err(Reason::InvalidArgument);
                }
                // Without this, removing its old name would remove the other file during an
                // exchange.
                self.node_mut(other)?.nlink += 1;
                self.bind(to_dir, &to_name, ino, now)?;
                self.bind(from_dir, &from_name, other, now)?;
                self.node_mut(other)?.nlink -= 1;
            }
            (Some(other), RenameHow::Replace) if other == ino => {}
            (other, RenameHow::Replace | RenameHow::NoReplace) => {
                match (is_dir, other.map(|other| self.names(other))) {
                    (true, Some(Err(reason))) => return Err(reason),
                    (true, Some(Ok(names))) if !names.is_empty() => return Err(Reason::NotEmpty),
                    (false, Some(Ok(_))) => return Err(Reason::IsADirectory),
                    _ => {}
                }
                self.bind(to_dir, &to_name, ino, now)?;
                self.unbind(from_dir, &from_name, now)?;
            }
        }
        Ok((from_dir, to_dir))
    }

    /// The temporary files in a directory that are marked with `tag`, see
    /// [`scpfs::remote::Remote::remove_leftovers`].
    pub(crate) fn leftovers(&self, dir: u64, tag: u32) -> Done<Vec<Name>> {
        let prefix = [TEMP_PREFIX, format!("{tag:08x}").as_bytes()].concat();
        let is_ours = |name: &[u8]| {
            let number = name
                .strip_prefix(&prefix[..])
                .and_then(|rest| rest.strip_suffix(TEMP_SUFFIX));
            number
                .is_some_and(|number| number.len() == 8 && number.iter().all(u8::is_ascii_hexdigit))
        };
        let names = self.names(dir)?.iter();
        Ok(names
            .filter(|(name, file)| is_ours(name.as_bytes()) && self.names(**file).is_err())
            .map(|(name, _)| name.clone())
            .collect())
    }
}
