//! Applies answers of the host to the tree. A late answer never displaces newer knowledge.

use crate::clock::Tick;
use crate::path::Name;
use crate::remote::ListEntry;
use crate::remote::Listed;
use crate::remote::Listing;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::vfs::Ino;
use crate::vfs::freshness::Freshness;
use crate::vfs::inode::Dentry;
use crate::vfs::inode::NameState;
use crate::vfs::tree::Tree;

/// The number of names in memory from which on old ones are dropped.
pub(super) const MAX_NAMES: usize = 300_000;

impl Tree {
    /// Applies attributes that were requested at `at`, unless the inode is dirty or newer
    /// attributes are known.
    pub(in crate::vfs) fn apply_stat(&mut self, ino: Ino, stat: Stat, at: Tick) {
        let Some(inode) = self.inodes.get_mut(&ino) else {
            return;
        };
        if inode.freshness.gives_way_to(at) && !inode.is_dirty() && inode.stat.kind == stat.kind {
            self.set_stat(ino, stat, at);
        }
    }

    /// Sets attributes that are known to be the newest.
    pub(in crate::vfs) fn set_stat(&mut self, ino: Ino, stat: Stat, at: Tick) {
        let Some(inode) = self.inodes.get_mut(&ino) else {
            return;
        };
        let old = std::mem::replace(&mut inode.stat, stat);
        inode.freshness = Freshness::Asked(at);
        if let Some(id) = old.id
            && self.by_id.get(&id) == Some(&ino)
        {
            self.by_id.remove(&id);
        }
        self.index_id(ino, &stat);
    }

    pub(super) fn index_id(&mut self, ino: Ino, stat: &Stat) {
        if let Some(id) = stat.id
            && stat.nlink > 1
            && stat.kind != FileKind::Directory
        {
            self.by_id.insert(id, ino);
        }
    }

    /// Returns the state of a name and its freshness. A name without a dentry is absent if its
    /// directory was listed. `None` if nothing is known.
    pub(in crate::vfs) fn name_state(
        &self,
        parent: Ino,
        name: &Name,
    ) -> Option<(Freshness, &NameState)> {
        let dir = self.inodes.get(&parent)?.dir.as_deref()?;
        let Some(dentry) = dir.names.get(name) else {
            let at = dir.listed_at?;
            return Some((Freshness::Asked(at), &NameState::Absent));
        };
        let freshness = match dentry.state {
            NameState::Unknown => return None,
            NameState::Inode(ino) => {
                // A dirty file exists here, whatever the host says.
                let inode = self.inodes.get(&ino)?;
                if inode.is_dirty() {
                    Freshness::Dirty
                } else {
                    dentry.freshness.and(inode.freshness)
                }
            }
            NameState::Absent | NameState::Listed(_) => dentry.freshness,
        };
        Some((freshness, &dentry.state))
    }

    /// Applies an answer about one name that was requested at `at`; `None` in `listed` means that
    /// it does not exist.
    pub(in crate::vfs) fn apply_answer(
        &mut self,
        parent: Ino,
        name: &Name,
        listed: Option<Box<Listed>>,
        at: Tick,
    ) {
        if self.must_ignore_answer(parent, name, listed.is_some()) {
            // A name without a dentry would count as absent once its directory was listed.
            if self.is_unknown(parent, name) {
                self.set_unknown(parent, name, at);
            }
            return;
        }
        let Some(dir) = self.dir_mut(parent) else {
            return;
        };
        let bound = match dir.names.get(name) {
            Some(dentry) if !dentry.freshness.gives_way_to(at) => return,
            Some(Dentry {
                state: NameState::Inode(ino),
                ..
            }) => Some(*ino),
            _ => None,
        };
        let Some(ino) = bound else {
            let state = listed.map_or(NameState::Absent, NameState::Listed);
            self.put(parent, name, Dentry::asked(at, state));
            return;
        };
        let Some(inode) = self.inodes.get_mut(&ino) else {
            return;
        };
        if inode.is_dirty() {
            return;
        }
        match listed {
            Some(listed) => {
                let kind = listed.kind;
                let is_same = inode.stat.kind == kind
                    && listed.stat.is_none_or(|stat| {
                        stat.id == inode.stat.id
                            || (!inode.is_open()
                                && inode.links().len() == 1
                                && kind == FileKind::File)
                    });
                if !is_same {
                    let loss = self.loss_if_replaced(parent, name);
                    self.unlink(parent, name, at, loss);
                    let state = NameState::Listed(listed);
                    self.put(parent, name, Dentry::asked(at, state));
                    return;
                }
                let Listed { stat, target, .. } = *listed;
                if target.is_some() {
                    inode.target = target;
                }
                if let Some(stat) = stat {
                    self.apply_stat(ino, stat, at);
                }
                if let Some(dentry) = self.dir_mut(parent).and_then(|dir| dir.names.get_mut(name)) {
                    dentry.freshness = Freshness::Asked(at);
                }
            }
            None => {
                let loss = self.loss_if_replaced(parent, name);
                self.unlink(parent, name, at, loss);
            }
        }
    }

    /// Marks a name and its inode as stale: the next operation on them asks the host.
    pub(in crate::vfs) fn invalidate_name(&mut self, parent: Ino, name: &Name, at: Tick) {
        let dentry = self.dir_mut(parent).and_then(|dir| dir.names.get_mut(name));
        match dentry {
            None => self.set_unknown(parent, name, at),
            Some(dentry) => {
                dentry.freshness.invalidate(at);
                if let NameState::Inode(ino) = dentry.state
                    && let Some(inode) = self.inodes.get_mut(&ino)
                {
                    inode.freshness.invalidate(at);
                }
            }
        }
    }

    /// Returns whether a name has no dentry, or one that is unknown.
    pub(super) fn is_unknown(&self, parent: Ino, name: &Name) -> bool {
        let dir = self.inodes.get(&parent).and_then(|it| it.dir.as_deref());
        let dentry = dir.and_then(|dir| dir.names.get(name));
        dentry.is_none_or(|dentry| matches!(dentry.state, NameState::Unknown))
    }

    /// Returns whether a directory has unknown names that no request in flight is changing: its
    /// last listing is incomplete.
    pub(in crate::vfs) fn has_unknown_names(&self, dir: Ino) -> bool {
        let names = self.inodes.get(&dir).and_then(|it| it.dir.as_deref());
        let mut names = names.into_iter().flat_map(|dir| &dir.names);
        names.any(|(name, dentry)| {
            matches!(dentry.state, NameState::Unknown) && !self.must_ignore_answer(dir, name, true)
        })
    }

    /// Marks a name as confirmed at `at`: answers to earlier requests cannot show that it does not
    /// exist.
    pub(in crate::vfs) fn confirm(&mut self, parent: Ino, name: &Name, at: Tick) {
        if let Some(dentry) = self.dir_mut(parent).and_then(|dir| dir.names.get_mut(name)) {
            dentry.freshness.confirm(at);
        }
    }

    /// Applies a listing that was requested at `at`.
    pub(in crate::vfs) fn apply_listing(&mut self, ino: Ino, listing: Listing, at: Tick) {
        let Some(dir) = self.dir_mut(ino) else { return };
        if dir.listed_at.is_some_and(|listed_at| listed_at > at) {
            // Names that the newer listing did not have are not remembered one by one.
            return;
        }
        self.apply_stat(ino, listing.directory, at);
        let Some(dir) = self.dir_mut(ino) else { return };
        if dir.created_here_at.is_some() {
            let is_ours = |entry: &ListEntry| {
                let dentry = dir.names.get(&entry.name);
                dentry.is_some_and(|dentry| {
                    matches!(dentry.state, NameState::Inode(_) | NameState::Listed(_))
                })
            };
            let all_are_ours = listing.entries.iter().all(is_ours);
            dir.created_here_at = dir.created_here_at.filter(|_| all_are_ours);
        }
        let mut missing: Vec<Name> = Vec::new();
        if !dir.names.is_empty() {
            let found: std::collections::HashSet<&Name> =
                listing.entries.iter().map(|entry| &entry.name).collect();
            missing.extend(
                dir.names
                    .keys()
                    .filter(|name| !found.contains(name))
                    .cloned(),
            );
        }
        dir.listed_at = Some(at);
        dir.is_unlistable = false;
        for name in missing {
            self.apply_answer(ino, &name, None, at);
            // A name that is in no listing counts as absent anyway.
            if let Some(dir) = self.dir_mut(ino)
                && matches!(dir.names.get(&name), Some(Dentry { freshness, state: NameState::Absent })
                    if freshness.gives_way_to(at))
            {
                dir.names.remove(&name);
                self.n_names -= 1;
            }
        }
        for entry in listing.entries {
            self.apply_answer(ino, &entry.name, Some(entry.listed), at);
        }
        if self.n_names > self.max_names {
            self.drop_old_names(at);
            // To look at all inodes takes long: not again before there are many more names.
            self.max_names = MAX_NAMES.max(self.n_names + self.n_names / 8);
        }
    }

    /// Drops dentries from listings before `at`, except those of inodes.
    fn drop_old_names(&mut self, at: Tick) {
        let mut n_names = 0;
        for dir in self
            .inodes
            .values_mut()
            .filter_map(|inode| inode.dir.as_deref_mut())
        {
            if dir.listed_at.is_some_and(|listed| listed < at) {
                dir.listed_at = None;
                dir.names
                    .retain(|_, dentry| matches!(dentry.state, NameState::Inode(_)));
                dir.names.shrink_to_fit();
            }
            n_names += dir.names.len();
        }
        self.n_names = n_names;
    }
}
