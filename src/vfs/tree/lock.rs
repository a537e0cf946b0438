//! The lock of the tree. Cache entries of dropped inodes are discarded after it is released.

use std::ops::Deref;
use std::ops::DerefMut;

use crate::sync::Condvar;
use crate::sync::Mutex;
use crate::sync::MutexGuard;
use crate::vfs::tree::Dropped;
use crate::vfs::tree::Tree;

/// Guards inodes, names and attributes. Held across no I/O.
#[derive(Debug)]
pub(in crate::vfs) struct TreeLock(Mutex<Tree>);

impl TreeLock {
    pub(in crate::vfs) fn new(tree: Tree) -> Self {
        Self(Mutex::new(tree))
    }

    pub(in crate::vfs) fn lock(&self) -> TreeGuard<'_> {
        TreeGuard {
            tree: self.0.lock(),
            discarded: Discarded(Vec::new()),
        }
    }
}

/// The locked tree.
// Fields are dropped in this order: the lock first, then the content.
pub(in crate::vfs) struct TreeGuard<'a> {
    tree: MutexGuard<'a, Tree>,
    discarded: Discarded,
}

impl TreeGuard<'_> {
    /// Releases the tree until `condvar` is notified.
    pub(in crate::vfs) fn wait(&mut self, condvar: &Condvar) {
        condvar.wait(&mut self.tree);
    }
}

impl Deref for TreeGuard<'_> {
    type Target = Tree;

    fn deref(&self) -> &Tree {
        &self.tree
    }
}

impl DerefMut for TreeGuard<'_> {
    fn deref_mut(&mut self) -> &mut Tree {
        &mut self.tree
    }
}

impl Drop for TreeGuard<'_> {
    fn drop(&mut self) {
        self.discarded.0 = self.tree.take_discarded();
    }
}

/// Cache entries whose files are deleted from the local disk when this is dropped.
struct Discarded(Vec<Dropped>);

impl Drop for Discarded {
    fn drop(&mut self) {
        for Dropped { entry, is_unlinked } in &self.0 {
            if !is_unlinked {
                // Clean content can be used again.
                entry.return_if_unused();
            }
            entry.discard();
        }
    }
}
