//! Content that an earlier mount left, shown under its names while it is uploaded.
//!
//! The mount does not wait for the host: it starts with a table of paths. Content leaves the table
//! when the host has said what it has under the path, and becomes the dirty content of an inode like
//! any other, which the cache uploads. One thread goes through the table; a
//! look-up of such a name, a listing of its directory and a rename or removal of a directory above it
//! do not wait for that thread, but ask the host themselves. So nobody is ever told of the host's old
//! content, nor that a new file is absent.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Weak;
use std::thread;
use std::time::Duration;

use crate::cache::FileReport;
use crate::cache::Id;
use crate::cache::Unsaved;
use crate::cache::UploadTarget;
use crate::cache::Wait;
use crate::clock::Tick;
use crate::path::Name;
use crate::path::RemotePath;
use crate::remote::Expect;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::vfs::Change;
use crate::vfs::Context;
use crate::vfs::Error;
use crate::vfs::Ino;
use crate::vfs::Result;
use crate::vfs::Vfs;
use crate::vfs::freshness::Freshness;
use crate::vfs::tree::Tree;

/// How long the thread waits before it asks a host again that could not be reached. The connections
/// have a pause of their own.
const PAUSE: Duration = Duration::from_secs(1);

/// Somebody who may wait; nothing here depends on who asks.
const CX: Context = Context {
    uid: 0,
    gid: 0,
    wait: Wait::Allowed,
};

/// Contents of an earlier mount that no inode has yet.
#[derive(Debug, Default)]
pub(super) struct Table {
    items: BTreeMap<Id, Arc<Unsaved>>,
    /// By the directories that they may belong to.
    dirs: HashMap<RemotePath, Vec<Id>>,
    /// The records about which the host is being asked.
    busy: HashSet<Id>,
    /// The records that cannot be shown under their names.
    hidden: HashSet<Id>,
}

impl Table {
    fn remove(&mut self, id: Id) {
        let Some(unsaved) = self.items.remove(&id) else {
            return;
        };
        for dir in unsaved.paths().filter_map(RemotePath::parent) {
            if let Some(ids) = self.dirs.get_mut(&dir) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.dirs.remove(&dir);
                }
            }
        }
        self.hidden.remove(&id);
    }

    /// What may belong to a directory; with a name, to that name in it.
    fn at(&self, dir: &RemotePath, name: Option<&Name>) -> Vec<Id> {
        let path = name.map(|name| dir.join(name));
        let ids = self.dirs.get(dir).into_iter().flatten().copied();
        let is_wanted = |id: &Id| {
            !self.hidden.contains(id)
                && self.items.get(id).is_some_and(|unsaved| {
                    path.is_none() || unsaved.paths().any(|it| Some(it) == path.as_ref())
                })
        };
        ids.filter(is_wanted).collect()
    }
}

/// The host's state of a path.
struct Place {
    path: RemotePath,
    parent: Ino,
    name: Name,
    stat: Option<Stat>,
}

/// Inodes that must not be dropped while a path is followed.
struct Pins<'a> {
    vfs: &'a Vfs,
    inos: Vec<Ino>,
}

impl Drop for Pins<'_> {
    fn drop(&mut self) {
        for ino in self.inos.drain(..) {
            self.vfs.forget(ino, 1);
        }
    }
}

impl Vfs {
    /// Shows what an earlier mount left, and has it uploaded in the background. Returns at once.
    pub fn recover(&self, unsaved: Vec<Unsaved>) {
        if unsaved.is_empty() {
            return;
        }
        let mut table = self.unsaved.lock();
        for one in unsaved {
            let id = one.record.id;
            for dir in one.paths().filter_map(RemotePath::parent) {
                let ids = table.dirs.entry(dir).or_default();
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
            if !one.is_whole {
                table.hidden.insert(id);
            }
            table.items.insert(id, Arc::new(one));
        }
        drop(table);
        let me = Weak::clone(&self.me);
        let thread = thread::Builder::new().name("scpfs-recover".to_owned());
        if let Err(error) = thread.spawn(move || Self::recover_all(&me)) {
            log::warn!("cannot upload what earlier mounts left before it is asked for: {error}");
        }
    }

    /// The thread: until the table is empty or the mount ends.
    fn recover_all(me: &Weak<Self>) {
        while let Some(vfs) = me.upgrade() {
            let left = vfs.recover_now();
            let is_over = left.iter().any(|(_, error)| error.is_closed());
            let is_over = is_over || vfs.unsaved.lock().items.is_empty();
            drop(vfs);
            if is_over {
                return;
            }
            thread::sleep(PAUSE);
        }
    }

    /// Asks the host about all that is left in the table; returns what it could not be asked about.
    pub(super) fn recover_now(&self) -> Vec<(RemotePath, Error)> {
        let ids: Vec<Id> = self.unsaved.lock().items.keys().copied().collect();
        let mut left = Vec::new();
        let mut away: Option<Error> = None;
        // All of it first: the listings that come next have no temporary file of ours then.
        for id in &ids {
            let Some(unsaved) = self.unsaved.lock().items.get(id).cloned() else {
                continue;
            };
            if let Err(error) = self.cache.withdraw_unsaved(&unsaved) {
                away = Some(error.into());
                break;
            }
        }
        let since = self.clock.tick();
        for id in ids {
            let path = match self.unsaved.lock().items.get(&id) {
                Some(unsaved) => unsaved.record.path.clone(),
                None => continue,
            };
            let result = match &away {
                // Once more for what turns out to be hidden.
                None => self
                    .take_up(id, since)
                    .and_then(|()| self.take_up(id, since)),
                Some(error) => Err(error.clone()),
            };
            if let Err(error) = result {
                left.push((path, error.clone()));
                away = Some(error);
            }
        }
        left
    }

    /// Makes what an earlier mount left under a name the content of that name.
    pub(super) fn recover_name(&self, cx: &Context, parent: Ino, name: &Name) -> Result<()> {
        self.recover_in(cx, parent, Some(name), self.clock.tick())
    }

    /// As [`Self::recover_name`], for all names of a directory.
    pub(super) fn recover_names(&self, cx: &Context, dir: Ino, since: Tick) -> Result<()> {
        self.recover_in(cx, dir, None, since)
    }

    fn recover_in(&self, cx: &Context, dir: Ino, name: Option<&Name>, since: Tick) -> Result<()> {
        if self.unsaved.lock().items.is_empty() {
            return Ok(());
        }
        let Some(dir) = self.tree.lock().path(dir) else {
            return Ok(());
        };
        let ids = self.unsaved.lock().at(&dir, name);
        self.recover_ids(cx, &ids, since)
    }

    /// As [`Self::recover_name`], for a name and all that lies below it.
    pub(super) fn recover_below(&self, cx: &Context, parent: Ino, name: &Name) -> Result<()> {
        if self.unsaved.lock().items.is_empty() {
            return Ok(());
        }
        let Some(dir) = self.tree.lock().path(parent) else {
            return Ok(());
        };
        let top = dir.join(name);
        let ids: Vec<Id> = {
            let table = self.unsaved.lock();
            let items = table.items.iter();
            let is_below = |path: &RemotePath| path.after_rename(&top, &top).is_some();
            items
                .filter(|(id, unsaved)| !table.hidden.contains(id) && unsaved.paths().any(is_below))
                .map(|(id, _)| *id)
                .collect()
        };
        self.recover_ids(cx, &ids, self.clock.tick())
    }

    fn recover_ids(&self, cx: &Context, ids: &[Id], since: Tick) -> Result<()> {
        for &id in ids {
            cx.may_wait()?;
            if !self.unsaved.lock().hidden.contains(&id) {
                self.take_up(id, since)?;
            }
        }
        Ok(())
    }

    /// Takes content out of the table, once: who comes meanwhile waits.
    fn take_up(&self, id: Id, since: Tick) -> Result<()> {
        let (unsaved, is_hidden) = {
            let mut table = self.unsaved.lock();
            loop {
                let Some(unsaved) = table.items.get(&id) else {
                    return Ok(());
                };
                let unsaved = Arc::clone(unsaved);
                if table.busy.insert(id) {
                    break (unsaved, table.hidden.contains(&id));
                }
                self.taken_up.wait(&mut table);
            }
        };
        let result = if is_hidden {
            let settled = self.cache.settle_unsaved(&unsaved);
            settled.map(|_| true).map_err(Error::from)
        } else {
            self.show_unsaved(&unsaved, since)
        };
        let mut table = self.unsaved.lock();
        table.busy.remove(&id);
        match &result {
            Ok(true) => table.remove(id),
            Ok(false) => {
                // It is uploaded all the same, by the thread: nobody is to wait for that here.
                table.hidden.insert(id);
            }
            Err(_) => {}
        }
        drop(table);
        self.taken_up.notify_all();
        result.map(|_| ())
    }

    /// Makes content that of the inode that has its name. Returns false if that cannot be: there is
    /// no such directory, or something else than a file has the name.
    ///
    /// # Errors
    /// The host was not reached.
    fn show_unsaved(&self, unsaved: &Unsaved, since: Tick) -> Result<bool> {
        let mut pins = Pins {
            vfs: self,
            inos: Vec::new(),
        };
        let mut places = Vec::new();
        for path in unsaved.paths() {
            match self.place_of_unsaved(path, since, &mut pins) {
                Ok(place) => places.push(place),
                Err(error) if error.is_connection_loss() || error.is_closed() => return Err(error),
                Err(_) => {}
            }
        }
        let found = places.iter().find_map(|place| place.stat);
        let is_moving = unsaved.record.was.is_some();
        if is_moving
            && places
                .iter()
                .filter_map(|it| it.stat)
                .any(|it| unsaved.is_done(&it))
        {
            // The rename or the upload ended well; which does not matter any more.
            return Ok(false);
        }
        let has_base = |place: &&Place| place.stat.is_some_and(|stat| unsaved.is_base(&stat));
        // Where a rename of its directory never happened, the first place is missing.
        let Some(place) = places.iter().find(has_base).or(places.first()) else {
            return Ok(false);
        };
        if place.stat.is_some_and(|stat| stat.kind != FileKind::File) {
            return Ok(false);
        }
        if let Some(stat) = place.stat
            && unsaved.is_base(&stat)
        {
            // A rename that was under way changed the time of the last change.
            unsaved
                .entry
                .found_on_host(Some(Expect::Version(stat.version())), false);
        } else if unsaved.record.base == Expect::Anything {
            // What comes after this look is somebody's newer version.
            let base = found.map_or(Expect::Absent, |stat| Expect::Version(stat.version()));
            unsaved.entry.found_on_host(Some(base), found.is_none());
        }
        self.cache.secure(unsaved);
        let mut tree = self.tree.lock();
        let Some(ino) = self.bind_unsaved(&mut tree, place, unsaved) else {
            return Ok(false);
        };
        drop(tree);
        let target_of: Arc<dyn UploadTarget> = self.upload_place(ino)?;
        unsaved.entry.upload_later(&target_of);
        self.notify(Change::Attributes(ino));
        Ok(true)
    }

    /// Follows a path and asks what the host has there.
    fn place_of_unsaved(
        &self,
        path: &RemotePath,
        since: Tick,
        pins: &mut Pins<'_>,
    ) -> Result<Place> {
        let name = path.name().ok_or(Error::InvalidArgument)?;
        let mut parent = Ino::ROOT;
        let dir = path.parent().unwrap_or_default();
        for name in dir.components() {
            let found = self.look_up(&CX, parent, &Self::name(name)?, since)?;
            parent = found.attr.ok_or(Error::NotFound)?.ino;
            pins.inos.push(parent);
        }
        let found = self.look_up(&CX, parent, &name, since)?;
        let stat = match found.attr {
            None => None,
            Some(attr) => {
                pins.inos.push(attr.ino);
                self.tree.lock().get(attr.ino).map(|inode| inode.stat)
            }
        };
        Ok(Place {
            path: path.clone(),
            parent,
            name,
            stat,
        })
    }

    fn bind_unsaved(&self, tree: &mut Tree, place: &Place, unsaved: &Unsaved) -> Option<Ino> {
        let record = &unsaved.record;
        if tree.path(place.parent)?.join(&place.name) != place.path {
            // Renamed since it was looked at.
            return None;
        }
        let at = self.clock.tick();
        let ino = match tree.instantiate(place.parent, &place.name) {
            Some(ino) => ino,
            None if place.stat.is_some() => return None,
            None => {
                let stat = Stat {
                    mtime: record.mtime,
                    ..self
                        .stat_of_new_in(tree, place.parent, record.mode, record.owner)
                        .ok()?
                };
                let ino = tree.add(stat, Freshness::Asked(at));
                tree.bind(place.parent, &place.name, ino, at);
                ino
            }
        };
        let inode = tree.get_mut(ino)?;
        if inode.is_open() || inode.is_ours() || inode.stat.kind != FileKind::File {
            // It is open under another name: two contents of one inode cannot be told apart.
            return None;
        }
        if record.sets_mode {
            inode.stat.mode = record.mode;
            inode.is_mode_ours = true;
        }
        inode.pages_of = None;
        inode.ctime = None;
        inode.entry = Some(Arc::clone(&unsaved.entry));
        unsaved.entry.found_on_host(None, place.stat.is_none());
        self.hold_if_moving(tree, ino, &unsaved.entry);
        Some(ino)
    }

    /// What is in the table, as what waits to be uploaded.
    pub(super) fn unsaved_reports(&self) -> Vec<FileReport> {
        let items: Vec<Arc<Unsaved>> = self.unsaved.lock().items.values().cloned().collect();
        let whole = items.iter().filter(|unsaved| unsaved.is_whole);
        whole
            .filter_map(|unsaved| unsaved.entry.report(unsaved.record.path.clone()))
            .collect()
    }
}
