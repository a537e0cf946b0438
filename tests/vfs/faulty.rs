//! A `Remote` that wraps another one and fails, blocks or loses the answer at a chosen request.

use std::fmt;
use std::sync::Arc;

use scpfs::path::RemotePath;
use scpfs::remote::Ability;
use scpfs::remote::AttrChange;
use scpfs::remote::BatchReceiver;
use scpfs::remote::Changed;
use scpfs::remote::Contact;
use scpfs::remote::Content;
use scpfs::remote::Error;
use scpfs::remote::Facts;
use scpfs::remote::Fetched;
use scpfs::remote::KnownDirectory;
use scpfs::remote::KnownFile;
use scpfs::remote::Listing;
use scpfs::remote::Owner;
use scpfs::remote::Reason;
use scpfs::remote::Receiver;
use scpfs::remote::Remote;
use scpfs::remote::RenameHow;
use scpfs::remote::Renamed;
use scpfs::remote::Result;
use scpfs::remote::SubListing;
use scpfs::remote::UploadSpec;
use scpfs::remote::Uploaded;
use scpfs::ssh;
use scpfs::stat::DeviceNumber;
use scpfs::stat::FileKind;
use scpfs::stat::FsStat;
use scpfs::stat::Stat;
use scpfs::stat::Version;

/// Decides what happens to requests. `before` and `after` are called for requests that change the
/// host.
pub(crate) trait Fate: Send + Sync + fmt::Debug {
    /// Whether the request reaches the host.
    fn before(&self, _act: &'static str) -> bool {
        true
    }

    /// Whether its answer arrives.
    fn after(&self, _act: &'static str) -> bool {
        true
    }

    /// Whether the request gets an unknown outcome without reaching the host.
    fn is_lost(&self, _act: &'static str) -> bool {
        false
    }

    /// Whether the host stops in the middle of an upload in place.
    fn breaks_off(&self) -> bool {
        false
    }

    /// The error of the next upload, which then does not reach the host.
    fn upload_error(&self, _path: &RemotePath) -> Option<Error> {
        None
    }

    /// The error of the next removal of temporary files, which then does not reach the host.
    fn clean_up_error(&self, _dir: &RemotePath) -> Option<Error> {
        None
    }

    /// Whether requests that change nothing are answered.
    fn answers(&self) -> bool {
        true
    }

    /// Called when the host has listed a tree and the answer is in flight.
    fn has_listed_trees(&self) {}

    /// Whether requests for the listings of trees fail.
    fn fails_trees(&self) -> bool {
        false
    }

    /// Called before several files are fetched.
    fn fetches_many(&self, _files: &[KnownFile]) {}

    /// Called when the host has made a listing and the answer is in flight.
    fn has_listed(&self) {}

    /// Called when the host has answered a request for attributes and the answer is in flight.
    fn has_looked(&self) {}

    /// Called when a fetch has ended, with or without an error.
    fn has_fetched(&self) {}

    /// Called before content is uploaded.
    fn uploads(&self, _plan: &UploadSpec) {}
}

#[derive(Debug)]
struct NoFaults;

impl Fate for NoFaults {}

#[derive(Debug)]
pub(crate) struct Faulty {
    inner: Arc<dyn Remote>,
    fate: Arc<dyn Fate>,
    /// Reported instead of the true facts of the host.
    facts: Option<Facts>,
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn Remote>, fate: Arc<dyn Fate>) -> Self {
        let facts = None;
        Self { inner, fate, facts }
    }

    /// A host that reports these facts instead of its own.
    pub(crate) fn with_facts(
        inner: Arc<dyn Remote>,
        change: impl FnOnce(&mut Facts),
    ) -> Arc<dyn Remote> {
        let mut facts = inner.facts().clone();
        change(&mut facts);
        Arc::new(Self {
            facts: Some(facts),
            ..Self::new(inner, Arc::new(NoFaults))
        })
    }

    pub(crate) fn around(inner: Arc<dyn Remote>, fate: Arc<dyn Fate>) -> Arc<dyn Remote> {
        Arc::new(Self::new(inner, fate))
    }

    fn tell<T>(&self, act: &'static str, call: impl FnOnce(&dyn Remote) -> Result<T>) -> Result<T> {
        let source = || ssh::Error::Closed { act: "waiting" };
        if !self.fate.before(act) {
            let source = source();
            return Err(Error::Disconnected { act, source });
        }
        if self.fate.is_lost(act) {
            let source = source();
            return Err(Error::OutcomeUnknown { act, source });
        }
        let result = call(&*self.inner);
        if !self.fate.after(act) {
            let source = source();
            return Err(Error::OutcomeUnknown { act, source });
        }
        result
    }

    fn ask<T>(&self, call: impl FnOnce(&dyn Remote) -> Result<T>) -> Result<T> {
        if self.fate.answers() {
            call(&*self.inner)
        } else {
            let source = ssh::Error::Closed { act: "waiting" };
            let act = "ask";
            Err(Error::Disconnected { act, source })
        }
    }
}

impl Remote for Faulty {
    fn facts(&self) -> &Facts {
        self.facts.as_ref().unwrap_or_else(|| self.inner.facts())
    }

    fn stat(&self, path: &RemotePath) -> Result<Stat> {
        let stat = self.ask(|r| r.stat(path));
        self.fate.has_looked();
        stat
    }

    fn list(&self, path: &RemotePath) -> Result<Listing> {
        let listing = self.ask(|r| r.list(path));
        self.fate.has_listed();
        listing
    }

    fn read_link(&self, path: &RemotePath) -> Result<Vec<u8>> {
        self.ask(|r| r.read_link(path))
    }

    fn fetch(
        &self,
        path: &RemotePath,
        known: Option<&Version>,
        receiver: &mut dyn Receiver,
    ) -> Result<Fetched> {
        let fetched = self.ask(|r| r.fetch(path, known, receiver));
        self.fate.has_fetched();
        fetched
    }

    fn fetch_many(&self, files: &[KnownFile], receiver: &mut dyn BatchReceiver) -> Result<()> {
        self.fate.fetches_many(files);
        self.ask(|r| r.fetch_many(files, receiver))
    }

    fn fetch_blocks(
        &self,
        path: &RemotePath,
        first: u64,
        n_blocks: u64,
    ) -> Result<(Stat, Vec<u8>)> {
        self.ask(|r| r.fetch_blocks(path, first, n_blocks))
    }

    fn list_trees(&self, roots: &[KnownDirectory], max_names: usize) -> Result<Vec<SubListing>> {
        if self.fate.fails_trees() {
            let source = ssh::Error::Closed { act: "waiting" };
            return Err(Error::OutcomeUnknown {
                act: "list",
                source,
            });
        }
        let listings = self.ask(|r| r.list_trees(roots, max_names));
        self.fate.has_listed_trees();
        listings
    }

    fn upload(
        &self,
        path: &RemotePath,
        content: &dyn Content,
        plan: &UploadSpec,
    ) -> Result<Uploaded> {
        self.fate.uploads(plan);
        if let Some(error) = self.fate.upload_error(path) {
            return Err(error);
        }
        if self.fate.breaks_off() {
            return Err(Error::Partial {
                act: "upload",
                path: path.clone(),
                reason: Reason::NoSpace,
                text: Vec::new(),
            });
        }
        self.tell("upload", |r| r.upload(path, content, plan))
    }

    fn create_new(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed> {
        self.tell("create", |r| r.create_new(path, mode, owner))
    }

    fn make_dir(&self, path: &RemotePath, mode: u32, owner: Option<Owner>) -> Result<Changed> {
        self.tell("make a directory", |r| r.make_dir(path, mode, owner))
    }

    fn make_node(
        &self,
        path: &RemotePath,
        kind: FileKind,
        mode: u32,
        device: DeviceNumber,
        owner: Option<Owner>,
    ) -> Result<Changed> {
        self.tell("make a node", |r| {
            r.make_node(path, kind, mode, device, owner)
        })
    }

    fn symlink(&self, path: &RemotePath, target: &[u8], owner: Option<Owner>) -> Result<Changed> {
        self.tell("make a link", |r| r.symlink(path, target, owner))
    }

    fn link(&self, existing: &RemotePath, path: &RemotePath) -> Result<Changed> {
        self.tell("link", |r| r.link(existing, path))
    }

    fn remove_file(&self, path: &RemotePath, other: Option<&RemotePath>) -> Result<Changed> {
        self.tell("remove", |r| r.remove_file(path, other))
    }

    fn remove_dir(&self, path: &RemotePath) -> Result<Changed> {
        self.tell("remove a directory", |r| r.remove_dir(path))
    }

    fn rename(&self, from: &RemotePath, to: &RemotePath, how: RenameHow) -> Result<Renamed> {
        self.tell("rename", |r| r.rename(from, to, how))
    }

    fn set_attr(&self, path: &RemotePath, change: &AttrChange) -> Result<Stat> {
        self.tell("change", |r| r.set_attr(path, change))
    }

    fn copy(&self, from: &RemotePath, to: &RemotePath, plan: &UploadSpec) -> Result<Changed> {
        self.tell("copy", |r| r.copy(from, to, plan))
    }

    fn check_readable(&self, path: &RemotePath) -> Result<()> {
        self.ask(|r| r.check_readable(path))
    }

    fn fs_stat(&self, path: &RemotePath) -> Result<FsStat> {
        self.ask(|r| r.fs_stat(path))
    }

    fn sync(&self, path: &RemotePath) -> Result<()> {
        self.ask(|r| r.sync(path))
    }

    fn remove_leftovers(&self, dir: &RemotePath, tag: u32) -> Result<()> {
        if let Some(error) = self.fate.clean_up_error(dir) {
            return Err(error);
        }
        self.tell("clean up", |r| r.remove_leftovers(dir, tag))
    }

    fn abilities(&self) -> Vec<Ability> {
        self.inner.abilities()
    }

    fn contact(&self) -> Contact {
        self.inner.contact()
    }

    fn close(&self) {
        self.inner.close();
    }
}

/// Loses all answers while the flag is set.
#[derive(Debug, Default)]
pub(crate) struct Unheard(pub(crate) std::sync::atomic::AtomicBool);

impl Fate for Unheard {
    fn before(&self, _: &'static str) -> bool {
        true
    }

    fn after(&self, _: &'static str) -> bool {
        !self.0.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn answers(&self) -> bool {
        !self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// While `is_due` is set, breaks the connection before the next answer to a change arrives, and
/// refuses all later requests.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    pub(crate) is_due: std::sync::atomic::AtomicBool,
    is_cut: std::sync::atomic::AtomicBool,
}

impl Cut {
    fn is_whole(&self) -> bool {
        use std::sync::atomic::Ordering::SeqCst;
        !(self.is_due.load(SeqCst) && self.is_cut.load(SeqCst))
    }
}

impl Fate for Cut {
    fn before(&self, _: &'static str) -> bool {
        self.is_whole()
    }

    fn after(&self, _: &'static str) -> bool {
        self.is_cut.store(true, std::sync::atomic::Ordering::SeqCst);
        self.is_whole()
    }

    fn answers(&self) -> bool {
        self.is_whole()
    }
}
