//! Between the kernel and `vfs`: a request becomes one call and a reply. No decisions.
//!
//! What is known locally is answered on fuser's event loop. What would have to wait is started
//! again on a worker, so that no number of processes that wait for a slow host keeps an event
//! loop from answering another.
//!
//! Modules:
//! - `convert`: types of the kernel and of `vfs`
//! - `requests`: one method per request

mod convert;
mod requests;

use std::io;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::time::Duration;

use fuser::Errno;
use fuser::Generation;
use fuser::INodeNo;
use fuser::InitFlags;
use fuser::KernelConfig;
use fuser::Request;

use crate::cache::Wait;
use crate::error_chain;
use crate::vfs::Context;
use crate::vfs::Error;
use crate::vfs::Found;
use crate::vfs::Ino;
use crate::vfs::Result;
use crate::vfs::Vfs;
use crate::workers::Workers;

/// Requests that the kernel sends ahead, readahead above all, before it waits for answers.
const MAX_BACKGROUND: u16 = 128;

/// How many event loops there are. They only ever do local work.
pub const N_LOOPS: usize = 4;

const GENERATION: Generation = Generation(0);

/// The filesystem as fuser sees it.
#[derive(Debug)]
pub struct Fuse {
    vfs: Arc<Vfs>,
    workers: Workers,
}

impl Fuse {
    pub fn new(vfs: Arc<Vfs>, workers: Workers) -> Self {
        Self { vfs, workers }
    }

    /// Does something that is often known locally: here if it is, on a worker if it is not.
    fn now_or_later<T: 'static>(
        &self,
        req: &Request,
        op: impl Fn(&Vfs, &Context) -> Result<T> + Send + 'static,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let cx = context(req, Wait::Never);
        match guarded(|| op(&self.vfs, &cx)) {
            Err(error) if error.would_wait() => self.later(req, op, done),
            result => done(result),
        }
    }

    /// Does something that needs the host, on a worker.
    fn later<T: 'static>(
        &self,
        req: &Request,
        op: impl Fn(&Vfs, &Context) -> Result<T> + Send + 'static,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let cx = context(req, Wait::Allowed);
        let vfs = Arc::clone(&self.vfs);
        self.workers.run(move || done(guarded(|| op(&vfs, &cx))));
    }
}

fn context(req: &Request, wait: Wait) -> Context {
    Context {
        uid: req.uid(),
        gid: req.gid(),
        wait,
    }
}

/// A panic in one operation fails that operation and nothing else.
fn guarded<T>(op: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(op)).unwrap_or_else(|_| {
        log::error!("an operation panicked; this is a bug");
        Err(Error::Internal)
    })
}

fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

/// The one place that logs what fails and turns it into an errno.
fn fail(what: &str, error: &Error) -> Errno {
    let errno = error.errno();
    let level = match errno {
        // Every day's answers.
        libc::ENOENT
        | libc::EEXIST
        | libc::ENOTEMPTY
        | libc::ENOTDIR
        | libc::EISDIR
        | libc::ENXIO
        | libc::EOPNOTSUPP
        | libc::EINVAL
        | libc::ENAMETOOLONG
        | libc::EAGAIN => log::Level::Debug,
        libc::EACCES | libc::EPERM | libc::EROFS | libc::EXDEV | libc::EBUSY | libc::EMLINK => {
            log::Level::Info
        }
        // Said where it happened, in more words.
        _ if what == "flush" || what == "fsync" => log::Level::Debug,
        _ => log::Level::Warn,
    };
    log::log!(level, "{what}: {}", error_chain::with_causes(error));
    Errno::from_i32(errno)
}

/// Sends what a look-up found.
fn reply_found(what: &str, reply: fuser::ReplyEntry, result: Result<Found>) {
    match result {
        Ok(Found {
            attr: Some(attr),
            ttl,
        }) => reply.entry_with_ttls(
            &convert::entry_attr_ttl(&attr),
            &ttl,
            &convert::entry_attr(&attr),
            GENERATION,
        ),
        Ok(Found { attr: None, ttl }) if ttl.is_zero() => reply.error(Errno::ENOENT),
        // Number 0 with a lifetime is how the kernel is told to remember an absence (fuse.h).
        Ok(Found { attr: None, ttl }) => reply.entry(&ttl, &absent_attr(), GENERATION),
        Err(error) => reply.error(fail(what, &error)),
    }
}

fn absent_attr() -> fuser::FileAttr {
    let epoch = std::time::UNIX_EPOCH;
    fuser::FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn init(config: &mut KernelConfig) -> io::Result<()> {
    // No FUSE_CACHE_SYMLINKS: what a link is shown to say depends on how deep it lies, and the
    // kernel would keep it when a directory above it moves up.
    // No FUSE_ASYNC_DIO: an asynchronous O_DIRECT write ends in fs/fuse/file.c fuse_aio_complete(),
    // which drops no pages, so that what buffered readers fetched while it was under way stays. A
    // synchronous one drops them in mm/filemap.c kiocb_invalidate_post_direct_write().
    let wanted = [
        // `> file` on a big file must not fetch it first.
        InitFlags::FUSE_ATOMIC_O_TRUNC,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_READDIRPLUS_AUTO,
        InitFlags::FUSE_AUTO_INVAL_DATA,
    ];
    for capability in wanted {
        if config.add_capabilities(capability).is_err() {
            log::debug!("this kernel lacks {capability:?}");
        }
    }
    if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
        log::debug!("the kernel takes {nearest} background requests");
    }
    if config
        .set_congestion_threshold(MAX_BACKGROUND / 4 * 3)
        .is_err()
    {
        log::debug!("the kernel keeps its congestion threshold");
    }
    // As much as the kernel offers.
    if let Err(most) = config.set_max_readahead(1 << 20) {
        let _most = config.set_max_readahead(most);
    }
    Ok(())
}

/// The lifetime of attributes that the kernel must ask for again at once.
const NO_TTL: Duration = Duration::ZERO;
