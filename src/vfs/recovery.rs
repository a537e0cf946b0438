//! Dirty content of an earlier mount: it appears under its names while it is uploaded.
//!
//! The mount does not wait for the host: it starts with a table of journal records. A record leaves
//! the table when the host has told what it has under the path; the content then becomes the dirty
//! content of an inode, which the cache uploads like any other. One thread works through the table.
//! A lookup of such a name, a listing of its directory, and a rename or removal of a directory
//! above it do not wait for that thread, but ask the host themselves. So no program sees the older
//! content of the host, or a new file as absent.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Weak;
use std::thread;
use std::time::Duration;

use crate::cache::FileReport;
use crate::cache::Id;
use crate::cache::PendingRecovery;
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

/// The delay before the thread asks an unreachable host again. Connections have a back-off of their
/// own.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The context of requests that no program waits for. They may block; uid and gid are not used.
const BACKGROUND: Context = Context {
    uid: 0,
    gid: 0,
    wait: Wait::Allowed,
};

/// Journal records of an earlier mount whose content has no inode yet.
#[derive(Debug, Default)]
pub(super) struct UnsavedTable {
    items: BTreeMap<Id, Arc<PendingRecovery>>,
    /// Records by the directories that they may belong to.
    dirs: HashMap<RemotePath, Vec<Id>>,
    /// The records about which the host is being asked.
    busy: HashSet<Id>,
    /// The records that cannot be shown under their names.
    hidden: HashSet<Id>,
}

impl UnsavedTable {
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

    /// Returns the records that may belong to a directory, or to one name in it.
    fn records_at(&self, dir: &RemotePath, name: Option<&Name>) -> Vec<Id> {
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

/// A path, and what the host has there.
struct HostFile {
    path: RemotePath,
    parent: Ino,
    name: Name,
    stat: Option<Stat>,
}

/// Lookup counts that keep inodes from being dropped while a path is resolved.
struct LookupRefs<'a> {
    vfs: &'a Vfs,
    inos: Vec<Ino>,
}

impl Drop for LookupRefs<'_> {
    fn drop(&mut self) {
        for ino in self.inos.drain(..) {
            self.vfs.forget(ino, 1);
        }
    }
}

impl Vfs {
    /// Adds the records of an earlier mount to the table, and starts the thread that recovers them.
    /// Does not block.
    pub fn recover(&self, unsaved: Vec<PendingRecovery>) {
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
            if !one.is_complete {
                table.hidden.insert(id);
            }
            table.items.insert(id, Arc::new(one));
        }
        drop(table);
        let me = Weak::clone(&self.me);
        let thread = thread::Builder::new().name("scpfs-recover".to_owned());
        if let Err(error) = thread.spawn(move || Self::recover_all(&me)) {
            log::warn!(
                "cannot start the thread that uploads the changes of earlier mounts: {error}; each \
                 is uploaded when its file is used"
            );
        }
    }

    /// The thread: runs until the table is empty or the mount ends.
    fn recover_all(me: &Weak<Self>) {
        while let Some(vfs) = me.upgrade() {
            let left = vfs.recover_now();
            let is_over = left.iter().any(|(_, error)| error.is_closed());
            let is_over = is_over || vfs.unsaved.lock().items.is_empty();
            drop(vfs);
            if is_over {
                return;
            }
            thread::sleep(RETRY_DELAY);
        }
    }

    /// Recovers all records that are left in the table. Blocks for the host. Returns those that
    /// could not be recovered, each with the error.
    pub(super) fn recover_now(&self) -> Vec<(RemotePath, Error)> {
        let ids: Vec<Id> = self.unsaved.lock().items.keys().copied().collect();
        let mut left = Vec::new();
        let mut unreachable: Option<Error> = None;
        // First remove all temporary files of these records, so that the listings below do not show
        // them.
        for id in &ids {
            let Some(unsaved) = self.unsaved.lock().items.get(id).cloned() else {
                continue;
            };
            if let Err(error) = self.cache.cancel_earlier_uploads(&unsaved) {
                unreachable = Some(error.into());
                break;
            }
        }
        let since = self.clock.tick();
        for id in ids {
            let path = match self.unsaved.lock().items.get(&id) {
                Some(unsaved) => unsaved.record.path.clone(),
                None => continue,
            };
            let result = match &unreachable {
                // Again, for a record that turns out to be hidden.
                None => self
                    .recover_record(id, since)
                    .and_then(|()| self.recover_record(id, since)),
                Some(error) => Err(error.clone()),
            };
            if let Err(error) = result {
                left.push((path, error.clone()));
                unreachable = Some(error);
            }
        }
        left
    }

    /// Recovers the record for a name, if there is one.
    pub(super) fn recover_name(&self, cx: &Context, parent: Ino, name: &Name) -> Result<()> {
        self.recover_in(cx, parent, Some(name), self.clock.tick())
    }

    /// Recovers the records for all names of a directory.
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
        let ids = self.unsaved.lock().records_at(&dir, name);
        self.recover_ids(cx, &ids, since)
    }

    /// Recovers the records for a name and for everything below it.
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
                self.recover_record(id, since)?;
            }
        }
        Ok(())
    }

    /// Recovers one record. If another thread is recovering it, waits for that.
    ///
    /// # Errors
    /// The host was not reached; the record stays in the table.
    fn recover_record(&self, id: Id, since: Tick) -> Result<()> {
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
                self.recovered.wait(&mut table);
            }
        };
        let result = if is_hidden {
            let recovered = self.cache.finish_recovery(&unsaved);
            recovered.map(|_| true).map_err(Error::from)
        } else {
            self.attach_unsaved(&unsaved, since)
        };
        let mut table = self.unsaved.lock();
        table.busy.remove(&id);
        match &result {
            Ok(true) => table.remove(id),
            Ok(false) => {
                // The thread uploads it; lookups do not wait for that.
                table.hidden.insert(id);
            }
            Err(_) => {}
        }
        drop(table);
        self.recovered.notify_all();
        result.map(|_| ())
    }

    /// Attaches recovered content to the inode of its name. Returns false if that is impossible:
    /// the directory does not exist, or the name belongs to something other than a regular file.
    fn attach_unsaved(&self, unsaved: &PendingRecovery, since: Tick) -> Result<bool> {
        let mut refs = LookupRefs {
            vfs: self,
            inos: Vec::new(),
        };
        let mut files = Vec::new();
        for path in unsaved.paths() {
            match self.find_on_host(path, since, &mut refs) {
                Ok(file) => files.push(file),
                Err(error) if error.is_connection_loss() || error.is_closed() => return Err(error),
                Err(_) => {}
            }
        }
        let found = files.iter().find_map(|file| file.stat);
        let was_renaming = unsaved.record.was.is_some();
        if was_renaming
            && files
                .iter()
                .filter_map(|it| it.stat)
                .any(|it| unsaved.is_done(&it))
        {
            // The rename or the upload succeeded; there is nothing to recover.
            return Ok(false);
        }
        let has_base = |file: &&HostFile| file.stat.is_some_and(|stat| unsaved.is_base(&stat));
        // If a rename of its directory was not carried out, the first path does not exist.
        let Some(file) = files.iter().find(has_base).or(files.first()) else {
            return Ok(false);
        };
        if file.stat.is_some_and(|stat| stat.kind != FileKind::File) {
            return Ok(false);
        }
        if let Some(stat) = file.stat
            && unsaved.is_base(&stat)
        {
            // A rename that was in flight changed the ctime: use the version of now.
            unsaved
                .entry
                .found_on_host(Some(Expect::Version(stat.version())), false);
        } else if unsaved.record.base == Expect::Anything {
            // A version that appears on the host after this is from somebody else: a conflict.
            let base = found.map_or(Expect::Absent, |stat| Expect::Version(stat.version()));
            unsaved.entry.found_on_host(Some(base), found.is_none());
        }
        self.cache.persist_recovered(unsaved);
        let mut tree = self.tree.lock();
        let Some(ino) = self.link_unsaved(&mut tree, file, unsaved) else {
            return Ok(false);
        };
        drop(tree);
        let target_of: Arc<dyn UploadTarget> = self.upload_target(ino)?;
        unsaved.entry.upload_later(&target_of);
        self.notify(Change::Attributes(ino));
        Ok(true)
    }

    /// Resolves a path and returns what the host has there.
    fn find_on_host(
        &self,
        path: &RemotePath,
        since: Tick,
        refs: &mut LookupRefs<'_>,
    ) -> Result<HostFile> {
        let name = path.name().ok_or(Error::InvalidArgument)?;
        let mut parent = Ino::ROOT;
        let dir = path.parent().unwrap_or_default();
        for name in dir.components() {
            let found =
                self.lookup_without_recovery(&BACKGROUND, parent, &Self::name(name)?, since)?;
            parent = found.attr.ok_or(Error::NotFound)?.ino;
            refs.inos.push(parent);
        }
        let found = self.lookup_without_recovery(&BACKGROUND, parent, &name, since)?;
        let stat = match found.attr {
            None => None,
            Some(attr) => {
                refs.inos.push(attr.ino);
                self.tree.lock().get(attr.ino).map(|inode| inode.stat)
            }
        };
        Ok(HostFile {
            path: path.clone(),
            parent,
            name,
            stat,
        })
    }

    /// Links the inode of a recovered file and gives it the content. `None` if the path was renamed
    /// meanwhile, or if its inode is already open or dirty.
    fn link_unsaved(
        &self,
        tree: &mut Tree,
        file: &HostFile,
        unsaved: &PendingRecovery,
    ) -> Option<Ino> {
        let record = &unsaved.record;
        if tree.path(file.parent)?.join(&file.name) != file.path {
            // It was renamed meanwhile.
            return None;
        }
        let at = self.clock.tick();
        let ino = match tree.instantiate(file.parent, &file.name) {
            Some(ino) => ino,
            None if file.stat.is_some() => return None,
            None => {
                let stat = Stat {
                    mtime: record.mtime,
                    ..self
                        .stat_of_new_in(tree, file.parent, record.mode, record.owner)
                        .ok()?
                };
                let ino = tree.add(stat, Freshness::Asked(at));
                tree.link(file.parent, &file.name, ino, at);
                ino
            }
        };
        let inode = tree.get_mut(ino)?;
        if inode.is_open() || inode.is_dirty() || inode.stat.kind != FileKind::File {
            // The file is already open or dirty, perhaps under another hard link: one inode cannot
            // have two contents.
            return None;
        }
        if record.sets_mode {
            inode.stat.mode = record.mode;
            inode.is_mode_dirty = true;
        }
        inode.page_cache_version = None;
        inode.ctime = None;
        inode.entry = Some(Arc::clone(&unsaved.entry));
        unsaved.entry.found_on_host(None, file.stat.is_none());
        self.block_if_in_flight(tree, ino, &unsaved.entry);
        Some(ino)
    }

    /// Returns a report of each record in the table whose content is complete.
    pub(super) fn unsaved_reports(&self) -> Vec<FileReport> {
        let items: Vec<Arc<PendingRecovery>> =
            self.unsaved.lock().items.values().cloned().collect();
        let whole = items.iter().filter(|unsaved| unsaved.is_complete);
        whole
            .filter_map(|unsaved| unsaved.entry.report(unsaved.record.path.clone()))
            .collect()
    }
}
