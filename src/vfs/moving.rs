//! Names that are about to change on the host: what is written under them is uploaded when it is
//! known where.

use std::sync::Arc;

use crate::cache::Entry;
use crate::cache::UploadBlock;
use crate::path::Name;
use crate::vfs::Ino;
use crate::vfs::Result;
use crate::vfs::Vfs;
use crate::vfs::names::entry_of;
use crate::vfs::tree::Tree;

/// What is about to be renamed or removed.
#[derive(Debug, Default)]
pub(super) struct Moving {
    next_id: u64,
    under_way: Vec<UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    id: u64,
    names: Vec<(Ino, Name)>,
    /// Of what was opened since it began.
    later: Vec<UploadBlock>,
}

/// Keeps contents from being uploaded while their paths change.
#[derive(Debug)]
pub(super) struct Held<'a> {
    vfs: &'a Vfs,
    id: u64,
    holds: Vec<UploadBlock>,
}

impl Held<'_> {
    /// Whether nothing was open when it began.
    pub(super) fn is_empty(&self) -> bool {
        self.holds.is_empty()
    }

    /// Has no upload of them go on over there, which would make the file again under its old name.
    pub(super) fn cancel_unknown_uploads(&self) -> Result<()> {
        for hold in &self.holds {
            hold.cancel_unknown_uploads()?;
        }
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let at = self.vfs.clock.tick();
        self.vfs.tree.lock().end_move(self.id, at);
        self.vfs.listed.notify_all();
        let mut moving = self.vfs.moving.lock();
        let at = moving.under_way.iter().position(|one| one.id == self.id);
        let ended = at.map(|at| moving.under_way.swap_remove(at));
        drop(moving);
        drop(ended);
    }
}

impl Vfs {
    /// Holds what is open of `which`, and what is opened at or below these names from now on;
    /// waits for uploads that are under way. Until it ends, the tree believes nobody about these
    /// names.
    pub(super) fn hold(
        &self,
        names: &[(Ino, &Name)],
        which: impl FnOnce(&mut Tree) -> Vec<Ino>,
    ) -> Held<'_> {
        let mut tree = self.tree.lock();
        let inos = which(&mut tree).into_iter();
        let entries: Vec<Arc<Entry>> = inos
            .filter_map(|ino| tree.get(ino).and_then(entry_of))
            .collect();
        let mut moving = self.moving.lock();
        let id = moving.next_id;
        moving.next_id += 1;
        moving.under_way.push(UnderWay {
            id,
            names: names
                .iter()
                .map(|(parent, name)| (*parent, (*name).clone()))
                .collect(),
            later: Vec::new(),
        });
        drop((moving, tree));
        let held = Held {
            vfs: self,
            id,
            // They wait for uploads that are under way, however long those take.
            holds: entries.iter().map(Entry::block_uploads).collect(),
        };
        self.tree.lock().begin_move(id, names);
        held
    }

    /// Holds a new entry if its path is about to change.
    pub(super) fn hold_if_moving(&self, tree: &Tree, ino: Ino, entry: &Arc<Entry>) {
        let mut moving = self.moving.lock();
        for one in &mut moving.under_way {
            let is_moving = |(parent, name): &(Ino, Name)| {
                tree.bound(*parent, name)
                    .is_some_and(|root| tree.is_below(ino, root))
            };
            if one.names.iter().any(is_moving) {
                one.later.push(entry.block_uploads());
            }
        }
    }
}
