//! Changes by others on the host. They are not counted and do not fail.

use std::collections::BTreeMap;

use crate::memory_host::LOGIN;
use crate::memory_host::Memory;
use crate::memory_host::tree::Body;
use crate::memory_host::tree::Node;
use scpfs::path::Name;
use scpfs::path::RemotePath;
use scpfs::remote::Reason;

impl Memory {
    /// Writes a file; overwrites an existing one in place.
    pub fn put(&self, path: &RemotePath, data: &[u8]) -> Result<(), Reason> {
        let mut state = self.state.lock();
        let now = state.now(&*self.clock);
        let tree = &mut state.tree;
        let (dir, name) = tree.place(path)?;
        let Some(ino) = tree.child(dir, &name) else {
            let ino = tree.add(Node::new(Body::File(data.to_vec()), 0o644, LOGIN, now));
            return tree.bind(dir, &name, ino, now);
        };
        let node = tree.node_mut(ino)?;
        let Body::File(content) = &mut node.body else {
            return Err(Reason::IsADirectory);
        };
        *content = data.to_vec();
        (node.mtime, node.ctime) = (now, now);
        Ok(())
    }

    /// Returns the content of a file.
    pub fn get(&self, path: &RemotePath) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let ino = state.tree.find(path).ok()?;
        match &state.tree.node(ino).ok()?.body {
            Body::File(data) => Some(data.clone()),
            _ => None,
        }
    }

    /// Creates a directory.
    pub fn put_dir(&self, path: &RemotePath) -> Result<(), Reason> {
        let mut state = self.state.lock();
        let now = state.now(&*self.clock);
        let tree = &mut state.tree;
        let (dir, name) = tree.place(path)?;
        if tree.child(dir, &name).is_some() {
            return Err(Reason::Exists);
        }
        let ino = tree.add(Node::new(
            Body::Directory(BTreeMap::new()),
            0o755,
            LOGIN,
            now,
        ));
        tree.bind(dir, &name, ino, now)
    }

    /// Returns the names in a directory, in order.
    pub fn names(&self, path: &RemotePath) -> Result<Vec<Name>, Reason> {
        let state = self.state.lock();
        let names = state.tree.names(state.tree.find(path)?)?;
        Ok(names.keys().cloned().collect())
    }

    /// Removes a file, or a directory with everything in it.
    pub fn discard(&self, path: &RemotePath) -> Result<(), Reason> {
        let mut state = self.state.lock();
        let now = state.now(&*self.clock);
        let (dir, name) = state.tree.place(path)?;
        state.tree.unbind(dir, &name, now)
    }
}
