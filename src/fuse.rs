//! Translates each FUSE request into one call of `vfs` and one reply. Makes no decisions.
//!
//! An event loop of fuser first tries the call without waiting. If it would have to wait for the
//! host, a worker makes the call again. So requests that wait for a slow host never block an event
//! loop, however many they are.
//!
//! Modules:
//! - `convert`: converts between the types of fuser and of `vfs`
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

/// The maximum number of background requests in flight, mostly read-ahead of the kernel.
const MAX_BACKGROUND: u16 = 128;

/// The number of event loops. They never wait for the host.
pub const N_LOOPS: usize = 4;

const GENERATION: Generation = Generation(0);

/// The filesystem as fuser sees it.
#[derive(Debug)]
pub struct Fuse {
    vfs: Arc<Vfs>,
    workers: Workers,
}

impl Fuse {
    /// Returns a filesystem that makes calls that wait on `workers`.
    pub fn new(vfs: Arc<Vfs>, workers: Workers) -> Self {
        Self { vfs, workers }
    }

    /// Calls `op` on this event loop without waiting; if it would have to wait, again on a worker.
    ///
    /// `op` must have changed nothing when it returns that it would have to wait.
    fn inline_or_on_worker<T: 'static>(
        &self,
        req: &Request,
        op: impl Fn(&Vfs, &Context) -> Result<T> + Send + 'static,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let cx = context(req, Wait::Never);
        match catch_panic(|| op(&self.vfs, &cx)) {
            Err(error) if error.would_wait() => self.on_worker(req, op, done),
            result => done(result),
        }
    }

    /// Calls `op` on a worker, where it may wait for the host.
    fn on_worker<T: 'static>(
        &self,
        req: &Request,
        op: impl Fn(&Vfs, &Context) -> Result<T> + Send + 'static,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let cx = context(req, Wait::Allowed);
        let vfs = Arc::clone(&self.vfs);
        self.workers
            .run(move || done(catch_panic(|| op(&vfs, &cx))));
    }
}

fn context(req: &Request, wait: Wait) -> Context {
    Context {
        uid: req.uid(),
        gid: req.gid(),
        wait,
    }
}

/// Turns a panic of one operation into an error of that operation.
fn catch_panic<T>(op: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(op)).unwrap_or_else(|_| {
        log::error!("an operation panicked; this is a bug of scpfs");
        Err(Error::Internal)
    })
}

fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

/// Logs the error of an operation and returns its errno. No other place does either.
fn fail(operation: &str, error: &Error) -> Errno {
    let errno = error.errno();
    let level = match errno {
        // Normal results in everyday use.
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
        // The cache has logged the failed upload already, with more details.
        _ if operation == "flush" || operation == "fsync" => log::Level::Debug,
        _ => log::Level::Warn,
    };
    log::log!(level, "{operation}: {}", error_chain::with_causes(error));
    Errno::from_i32(errno)
}

/// Replies with the result of a look-up: an entry, a negative entry or an error.
fn reply_entry(operation: &str, reply: fuser::ReplyEntry, result: Result<Found>) {
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
        // Inode number 0 with a TTL is a negative entry, which the kernel caches (fuse.h).
        Ok(Found { attr: None, ttl }) => reply.entry(&ttl, &negative_attr(), GENERATION),
        Err(error) => reply.error(fail(operation, &error)),
    }
}

/// Returns the attributes of a negative entry.
fn negative_attr() -> fuser::FileAttr {
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
    // No FUSE_CACHE_SYMLINKS: the shown target of a symlink depends on the depth of its directory,
    // and the kernel would keep the old target when a directory above it is moved. No
    // FUSE_ASYNC_DIO: an asynchronous O_DIRECT write ends in fs/fuse/file.c fuse_aio_complete(),
    // which does not invalidate pages that buffered readers have read meanwhile. A synchronous
    // write invalidates them in mm/filemap.c kiocb_invalidate_post_direct_write().
    let wanted = [
        // Without it `> file` would first fetch the whole file.
        InitFlags::FUSE_ATOMIC_O_TRUNC,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_READDIRPLUS_AUTO,
        InitFlags::FUSE_AUTO_INVAL_DATA,
    ];
    for capability in wanted {
        if config.add_capabilities(capability).is_err() {
            log::debug!("this kernel does not support {capability:?}");
        }
    }
    if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
        log::debug!("the kernel accepts only {nearest} background requests");
    }
    if config
        .set_congestion_threshold(MAX_BACKGROUND / 4 * 3)
        .is_err()
    {
        log::debug!("the kernel refuses a new congestion threshold");
    }
    // 1 MiB, or the maximum of the kernel.
    if let Err(most) = config.set_max_readahead(1 << 20) {
        let _most = config.set_max_readahead(most);
    }
    Ok(())
}

/// The TTL of attributes that the kernel must not cache.
const NO_TTL: Duration = Duration::ZERO;
