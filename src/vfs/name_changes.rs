//! Renames and removals in flight: uploads of affected files block until the final path is known.

use std::sync::Arc;

use crate::cache::Entry;
use crate::cache::UploadBlock;
use crate::path::Name;
use crate::vfs::Ino;
use crate::vfs::Result;
use crate::vfs::Vfs;
use crate::vfs::inode::Inode;
use crate::vfs::tree::Tree;

/// The renames and removals in flight.
#[derive(Debug, Default)]
pub(super) struct NameChanges {
    next_id: u64,
    in_flight: Vec<InFlight>,
}

#[derive(Debug)]
struct InFlight {
    id: u64,
    names: Vec<(Ino, Name)>,
    /// Blocks uploads of files that were opened below these names since the change began.
    blocks: Vec<UploadBlock>,
}

/// A rename or removal in flight; it ends when this is dropped. Until then, uploads of the affected
/// files are blocked, and the tree ignores what the host says about the names.
#[derive(Debug)]
pub(super) struct NameChange<'a> {
    vfs: &'a Vfs,
    id: u64,
    blocks: Vec<UploadBlock>,
}

impl NameChange<'_> {
    /// Returns whether open files were affected when the change began.
    pub(super) fn affects_files(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// Cancels unfinished uploads of the affected files on the host, which could otherwise create
    /// the file again under its old name.
    ///
    /// # Errors
    /// The host was not reached.
    pub(super) fn cancel_unknown_uploads(&self) -> Result<()> {
        for block in &self.blocks {
            block.cancel_unknown_uploads()?;
        }
        Ok(())
    }
}

impl Drop for NameChange<'_> {
    fn drop(&mut self) {
        let at = self.vfs.clock.tick();
        self.vfs.tree.lock().remove_names_in_flight(self.id, at);
        self.vfs.tree_changed.notify_all();
        let mut changes = self.vfs.name_changes.lock();
        let at = changes.in_flight.iter().position(|one| one.id == self.id);
        let ended = at.map(|at| changes.in_flight.swap_remove(at));
        drop(changes);
        drop(ended);
    }
}

impl Vfs {
    /// Begins a rename or removal of `names`. Blocks uploads of the open files among the inodes
    /// that `which` returns, and of files that are opened at or below the names later. Waits until
    /// running uploads of these files end.
    pub(super) fn begin_name_change(
        &self,
        names: &[(Ino, &Name)],
        which: impl FnOnce(&mut Tree) -> Vec<Ino>,
    ) -> NameChange<'_> {
        let mut tree = self.tree.lock();
        let inos = which(&mut tree).into_iter();
        let entries: Vec<Arc<Entry>> = inos
            .filter_map(|ino| tree.get(ino).and_then(Inode::cloned_entry))
            .collect();
        let mut changes = self.name_changes.lock();
        let id = changes.next_id;
        changes.next_id += 1;
        changes.in_flight.push(InFlight {
            id,
            names: names
                .iter()
                .map(|(parent, name)| (*parent, (*name).clone()))
                .collect(),
            blocks: Vec::new(),
        });
        drop((changes, tree));
        let change = NameChange {
            vfs: self,
            id,
            // Waits for running uploads: neither `tree` nor `name_changes` is locked.
            blocks: entries.iter().map(Entry::block_uploads).collect(),
        };
        self.tree.lock().add_names_in_flight(id, names);
        change
    }

    /// Blocks uploads of a new cache entry if a rename or removal in flight changes its path.
    pub(super) fn block_if_in_flight(&self, tree: &Tree, ino: Ino, entry: &Arc<Entry>) {
        let mut changes = self.name_changes.lock();
        for one in &mut changes.in_flight {
            let is_below_name = |(parent, name): &(Ino, Name)| {
                tree.linked(*parent, name)
                    .is_some_and(|root| tree.is_below(ino, root))
            };
            if one.names.iter().any(is_below_name) {
                one.blocks.push(entry.block_uploads());
            }
        }
    }
}
