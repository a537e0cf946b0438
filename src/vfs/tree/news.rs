//! What the host said, and when: a late answer never displaces newer knowledge.

use crate::clock::Tick;
use crate::path::Name;
use crate::remote::Listed;
use crate::remote::Listing;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::vfs::Ino;
use crate::vfs::freshness::Freshness;
use crate::vfs::inode::Known;
use crate::vfs::inode::What;
use crate::vfs::tree::Tree;

/// Names that are remembered in all before what is too old is dropped.
const MAX_NAMES: usize = 300_000;

impl Tree {
    /// Takes attributes that the host gave when asked at `at`, unless what is here is newer.
    pub(in crate::vfs) fn absorb(&mut self, ino: Ino, stat: Stat, at: Tick) {
        let Some(inode) = self.inodes.get_mut(&ino) else {
            return;
        };
        if inode.freshness.gives_way_to(at) && !inode.is_ours() && inode.stat.kind == stat.kind {
            self.set_stat(ino, stat, at);
        }
    }

    /// Takes attributes that are certainly the newest.
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

    /// Returns what is known of a name, and how old that is: by itself, or by the absence from a
    /// listing.
    pub(in crate::vfs) fn known(&self, parent: Ino, name: &Name) -> Option<(Freshness, &What)> {
        let dir = self.inodes.get(&parent)?.dir.as_deref()?;
        let Some(known) = dir.names.get(name) else {
            let at = dir.listed_at?;
            return Some((Freshness::Asked(at), &What::Absent));
        };
        let freshness = match known.what {
            What::Unknown => return None,
            What::Inode(ino) => {
                // A dirty file is there, whatever the host says.
                let inode = self.inodes.get(&ino)?;
                if inode.is_ours() {
                    Freshness::Ours
                } else {
                    known.freshness.and(inode.freshness)
                }
            }
            What::Absent | What::Listed(_) => known.freshness,
        };
        Some((freshness, &known.what))
    }

    /// Takes what the host said of one name when asked at `at`.
    pub(in crate::vfs) fn learn(
        &mut self,
        parent: Ino,
        name: &Name,
        listed: Option<Box<Listed>>,
        at: Tick,
    ) {
        if self.is_in_doubt(parent, name, listed.is_some()) {
            // A name that is not there must not count as absent because of a listing.
            if self.is_unknown(parent, name) {
                self.put_unknown(parent, name, at);
            }
            return;
        }
        let Some(dir) = self.dir_mut(parent) else {
            return;
        };
        let bound = match dir.names.get(name) {
            Some(known) if !known.freshness.gives_way_to(at) => return,
            Some(Known {
                what: What::Inode(ino),
                ..
            }) => Some(*ino),
            _ => None,
        };
        let Some(ino) = bound else {
            let what = listed.map_or(What::Absent, What::Listed);
            self.put(parent, name, Known::asked(at, what));
            return;
        };
        let Some(inode) = self.inodes.get_mut(&ino) else {
            return;
        };
        if inode.is_ours() {
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
                    let loss = self.loss(parent, name);
                    self.unbind(parent, name, at, loss);
                    let what = What::Listed(listed);
                    self.put(parent, name, Known::asked(at, what));
                    return;
                }
                let Listed { stat, target, .. } = *listed;
                if target.is_some() {
                    inode.target = target;
                }
                if let Some(stat) = stat {
                    self.absorb(ino, stat, at);
                }
                if let Some(known) = self.dir_mut(parent).and_then(|dir| dir.names.get_mut(name)) {
                    known.freshness = Freshness::Asked(at);
                }
            }
            None => {
                let loss = self.loss(parent, name);
                self.unbind(parent, name, at, loss);
            }
        }
    }

    /// Says that nobody knows what a name is now: the host is asked when it is next wanted.
    pub(in crate::vfs) fn doubt(&mut self, parent: Ino, name: &Name, at: Tick) {
        let known = self.dir_mut(parent).and_then(|dir| dir.names.get_mut(name));
        match known {
            None => self.put_unknown(parent, name, at),
            Some(known) => {
                known.freshness.invalidate(at);
                if let What::Inode(ino) = known.what
                    && let Some(inode) = self.inodes.get_mut(&ino)
                {
                    inode.freshness.invalidate(at);
                }
            }
        }
    }

    /// Whether nothing is known of a name beyond what a listing may say.
    pub(super) fn is_unknown(&self, parent: Ino, name: &Name) -> bool {
        let dir = self.inodes.get(&parent).and_then(|it| it.dir.as_deref());
        let known = dir.and_then(|dir| dir.names.get(name));
        known.is_none_or(|known| matches!(known.what, What::Unknown))
    }

    /// Whether a listing of a directory does not tell everything: a request of ours has changed a
    /// name since, and is done.
    pub(in crate::vfs) fn has_unknown_names(&self, dir: Ino) -> bool {
        let names = self.inodes.get(&dir).and_then(|it| it.dir.as_deref());
        let mut names = names.into_iter().flat_map(|dir| &dir.names);
        names.any(|(name, known)| {
            matches!(known.what, What::Unknown) && !self.is_in_doubt(dir, name, true)
        })
    }

    /// Says that a name was certainly there at `at`: what was asked for before cannot deny it.
    pub(in crate::vfs) fn confirm(&mut self, parent: Ino, name: &Name, at: Tick) {
        if let Some(known) = self.dir_mut(parent).and_then(|dir| dir.names.get_mut(name)) {
            known.freshness.confirm(at);
        }
    }

    /// Takes a listing that was asked for at `at`.
    pub(in crate::vfs) fn learn_listing(&mut self, ino: Ino, listing: Listing, at: Tick) {
        self.absorb(ino, listing.directory, at);
        let Some(dir) = self.dir_mut(ino) else { return };
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
            self.learn(ino, &name, None, at);
            // The listing says the same.
            if let Some(dir) = self.dir_mut(ino)
                && matches!(dir.names.get(&name), Some(Known { freshness, what: What::Absent })
                    if freshness.gives_way_to(at))
            {
                dir.names.remove(&name);
                self.n_names -= 1;
            }
        }
        for entry in listing.entries {
            self.learn(ino, &entry.name, Some(entry.listed), at);
        }
        if self.n_names > MAX_NAMES {
            self.drop_old_names(at);
        }
    }

    /// Drops what was learnt before `at` and is no inode.
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
                    .retain(|_, known| matches!(known.what, What::Inode(_)));
                dir.names.shrink_to_fit();
            }
            n_names += dir.names.len();
        }
        self.n_names = n_names;
    }
}
