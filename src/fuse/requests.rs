//! Implements `fuser::Filesystem` for [`Fuse`]: translates each request.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::SystemTime;

use fuser::AccessFlags;
use fuser::BsdFileFlags;
use fuser::CopyFileRangeFlags;
use fuser::Errno;
use fuser::FileHandle;
use fuser::Filesystem;
use fuser::FopenFlags;
use fuser::INodeNo;
use fuser::IoctlFlags;
use fuser::KernelConfig;
use fuser::LockOwner;
use fuser::ReplyAttr;
use fuser::ReplyCreate;
use fuser::ReplyData;
use fuser::ReplyDirectory;
use fuser::ReplyDirectoryPlus;
use fuser::ReplyEmpty;
use fuser::ReplyEntry;
use fuser::ReplyIoctl;
use fuser::ReplyLseek;
use fuser::ReplyOpen;
use fuser::ReplyStatfs;
use fuser::ReplyWrite;
use fuser::ReplyXattr;
use fuser::Request;
use fuser::TimeOrNow;
use fuser::WriteFlags;

use crate::cache::Wait;
use crate::fuse::Fuse;
use crate::fuse::GENERATION;
use crate::fuse::NO_TTL;
use crate::fuse::catch_panic;
use crate::fuse::context;
use crate::fuse::convert;
use crate::fuse::fail;
use crate::fuse::ino;
use crate::fuse::negative_attr;
use crate::fuse::reply_entry;
use crate::stat::FileKind;
use crate::stat::PERMISSIONS;
use crate::vfs::Error;
use crate::vfs::Fh;
use crate::vfs::OpenFlags;
use crate::vfs::Opened;
use crate::vfs::RenameFlags;
use crate::vfs::Result;
use crate::vfs::SetAttr;

/// The values of `whence` in lseek(2) that the kernel passes on; fuser passes the plain number.
const SEEK_DATA: i32 = libc::SEEK_DATA;
const SEEK_HOLE: i32 = libc::SEEK_HOLE;

fn reply_empty(
    operation: &'static str,
    reply: ReplyEmpty,
) -> impl FnOnce(Result<()>) + Send + 'static {
    move |result| match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(fail(operation, &error)),
    }
}

fn open_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(
        FopenFlags::FOPEN_KEEP_CACHE,
        opened.keeps_page_cache && !opened.is_unsized,
    );
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.is_unsized);
    flags
}

impl Filesystem for Fuse {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        crate::fuse::init(config)
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (parent, name) = (ino(parent), name.as_bytes().to_vec());
        self.inline_or_on_worker(
            req,
            move |vfs, cx| vfs.lookup(cx, parent, &name),
            move |result| reply_entry("lookup", reply, result),
        );
    }

    fn forget(&self, _req: &Request, number: INodeNo, n_lookups: u64) {
        self.vfs.forget(ino(number), n_lookups);
    }

    fn getattr(&self, req: &Request, number: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let number = ino(number);
        self.inline_or_on_worker(
            req,
            move |vfs, cx| vfs.getattr(cx, number),
            move |result| match result {
                Ok(attr) => reply.attr(&attr.ttl, &convert::shown_attr(&attr)),
                Err(error) => reply.error(fail("getattr", &error)),
            },
        );
    }

    fn setattr(
        &self,
        req: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (number, fh) = (ino(number), fh.map(|fh| Fh(fh.0)));
        let (atime, mtime) = (atime.map(convert::new_time), mtime.map(convert::new_time));
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
        };
        self.on_worker(
            req,
            move |vfs, cx| vfs.setattr(cx, number, fh, &set),
            move |result| match result {
                Ok(attr) => reply.attr(&attr.ttl, &convert::shown_attr(&attr)),
                Err(error) => reply.error(fail("setattr", &error)),
            },
        );
    }

    fn readlink(&self, req: &Request, number: INodeNo, reply: ReplyData) {
        let number = ino(number);
        self.inline_or_on_worker(
            req,
            move |vfs, cx| vfs.readlink(cx, number),
            move |result| match result {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(fail("readlink", &error)),
            },
        );
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (parent, name) = (ino(parent), name.as_bytes().to_vec());
        let kind = FileKind::from_mode(mode).unwrap_or(FileKind::File);
        let device = convert::device_number(rdev);
        self.on_worker(
            req,
            move |vfs, cx| vfs.mknod(cx, parent, &name, kind, mode & PERMISSIONS, device),
            move |result| reply_entry("mknod", reply, result),
        );
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let (parent, name) = (ino(parent), name.as_bytes().to_vec());
        self.on_worker(
            req,
            move |vfs, cx| vfs.mkdir(cx, parent, &name, mode & PERMISSIONS),
            move |result| reply_entry("mkdir", reply, result),
        );
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (parent, name) = (ino(parent), name.as_bytes().to_vec());
        self.on_worker(
            req,
            move |vfs, cx| vfs.unlink(cx, parent, &name),
            reply_empty("unlink", reply),
        );
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (parent, name) = (ino(parent), name.as_bytes().to_vec());
        self.on_worker(
            req,
            move |vfs, cx| vfs.rmdir(cx, parent, &name),
            reply_empty("rmdir", reply),
        );
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (parent, name) = (ino(parent), link_name.as_bytes().to_vec());
        let target = target.as_os_str().as_bytes().to_vec();
        self.on_worker(
            req,
            move |vfs, cx| vfs.symlink(cx, parent, &name, &target),
            move |result| reply_entry("symlink", reply, result),
        );
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let from = (ino(parent), name.as_bytes().to_vec());
        let to = (ino(newparent), newname.as_bytes().to_vec());
        if flags.contains(fuser::RenameFlags::RENAME_WHITEOUT) {
            return reply.error(Errno::EINVAL);
        }
        let flags = RenameFlags {
            no_replace: flags.contains(fuser::RenameFlags::RENAME_NOREPLACE),
            exchange: flags.contains(fuser::RenameFlags::RENAME_EXCHANGE),
        };
        self.on_worker(
            req,
            move |vfs, cx| vfs.rename(cx, (from.0, &from.1), (to.0, &to.1), flags),
            reply_empty("rename", reply),
        );
    }

    fn link(
        &self,
        req: &Request,
        number: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let (number, parent, name) = (ino(number), ino(newparent), newname.as_bytes().to_vec());
        self.on_worker(
            req,
            move |vfs, cx| vfs.link(cx, number, parent, &name),
            move |result| reply_entry("link", reply, result),
        );
    }

    fn open(&self, req: &Request, number: INodeNo, flags: fuser::OpenFlags, reply: ReplyOpen) {
        let number = ino(number);
        self.inline_or_on_worker(
            req,
            move |vfs, cx| vfs.open(cx, number, OpenFlags::new(flags.0)?),
            move |result| match result {
                Ok(opened) => reply.opened(FileHandle(opened.fh.0), open_flags(&opened)),
                Err(error) => reply.error(fail("open", &error)),
            },
        );
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let fh = Fh(fh.0);
        self.inline_or_on_worker(
            req,
            move |vfs, cx| vfs.read(cx, fh, offset, size),
            move |result| match result {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(fail("read", &error)),
            },
        );
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let fh = Fh(fh.0);
        let done = move |result: Result<u32>| match result {
            Ok(n) => reply.written(n),
            Err(error) => reply.error(fail("write", &error)),
        };
        // The data is copied only if a worker has to write it.
        let cx = context(req, Wait::Never);
        match catch_panic(|| self.vfs.write(&cx, fh, offset, data)) {
            Err(error) if error.would_wait() => {
                let data = data.to_vec();
                self.on_worker(req, move |vfs, cx| vfs.write(cx, fh, offset, &data), done);
            }
            result => done(result),
        }
    }

    fn flush(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let fh = Fh(fh.0);
        self.inline_or_on_worker(
            req,
            move |vfs, cx| vfs.flush(cx, fh),
            reply_empty("flush", reply),
        );
    }

    fn release(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let fh = Fh(fh.0);
        self.inline_or_on_worker(
            req,
            move |vfs, cx| vfs.release(cx, fh),
            reply_empty("release", reply),
        );
    }

    fn fsync(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let fh = Fh(fh.0);
        self.inline_or_on_worker(
            req,
            move |vfs, cx| vfs.fsync(cx, fh),
            reply_empty("fsync", reply),
        );
    }

    fn opendir(&self, _req: &Request, number: INodeNo, _flags: fuser::OpenFlags, reply: ReplyOpen) {
        match self.vfs.opendir(ino(number)) {
            Ok(fh) => reply.opened(FileHandle(fh.0), FopenFlags::empty()),
            Err(error) => reply.error(fail("opendir", &error)),
        }
    }

    fn readdir(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let fh = Fh(fh.0);
        self.inline_or_on_worker(
            req,
            move |vfs, cx| vfs.readdir(cx, fh, offset),
            move |result| {
                let mut items = match result {
                    Ok(items) => items,
                    Err(error) => return reply.error(fail("readdir", &error)),
                };
                while let Some((item, next)) = items.peek() {
                    // Programs may skip a name whose inode number is 0 as removed.
                    let shown = INodeNo(item.shown_ino.max(1));
                    let kind = convert::file_type(item.kind);
                    if reply.add(shown, next, kind, OsStr::from_bytes(&item.name)) {
                        break;
                    }
                    items.advance();
                }
                reply.ok();
            },
        );
    }

    fn readdirplus(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let fh = Fh(fh.0);
        let vfs = std::sync::Arc::clone(&self.vfs);
        self.inline_or_on_worker(
            req,
            move |vfs, cx| Ok((vfs.readdir(cx, fh, offset)?, vfs.dir_ino(fh)?)),
            move |result| {
                let (mut items, parent) = match result {
                    Ok(found) => found,
                    Err(error) => return reply.error(fail("readdirplus", &error)),
                };
                while let Some((item, next)) = items.peek() {
                    let is_dots = &*item.name == b"." || &*item.name == b"..";
                    let found = if is_dots {
                        None
                    } else {
                        vfs.lookup_listed(parent, &item.name)
                    };
                    // fuser takes the inode number of the directory entry from the attributes, and
                    // programs skip names with number 0. The kernel makes no inodes for `.` and
                    // `..`.
                    let (attr, ttl) = match found {
                        Some((attr, found)) => {
                            let ttl = found.ttl.min(convert::entry_attr_ttl(&attr));
                            (convert::entry_attr(&attr), ttl)
                        }
                        None if is_dots => {
                            let kind = convert::file_type(item.kind);
                            let ino = INodeNo(item.shown_ino.max(1));
                            let attr = fuser::FileAttr {
                                ino,
                                kind,
                                ..negative_attr()
                            };
                            (attr, NO_TTL)
                        }
                        // Removed since the listing.
                        None => {
                            items.advance();
                            continue;
                        }
                    };
                    let shown = INodeNo(item.shown_ino.max(1));
                    let name = OsStr::from_bytes(&item.name);
                    if reply.add(shown, next, name, &ttl, &attr, GENERATION) {
                        if !is_dots {
                            vfs.forget(ino(attr.ino), 1);
                        }
                        break;
                    }
                    items.advance();
                }
                reply.ok();
            },
        );
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: fuser::OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.vfs.releasedir(Fh(fh.0));
        reply.ok();
    }

    fn fsyncdir(
        &self,
        req: &Request,
        number: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let ino = ino(number);
        self.inline_or_on_worker(
            req,
            move |vfs, cx| vfs.fsyncdir(cx, ino),
            reply_empty("fsyncdir", reply),
        );
    }

    fn statfs(&self, req: &Request, number: INodeNo, reply: ReplyStatfs) {
        let number = ino(number);
        self.inline_or_on_worker(
            req,
            move |vfs, cx| vfs.statfs(cx, number),
            move |result| match result {
                Ok(fs) => reply.statfs(
                    fs.blocks,
                    fs.blocks_free,
                    fs.blocks_available,
                    fs.files,
                    fs.files_free,
                    fs.block_size,
                    fs.name_max,
                    fs.block_size,
                ),
                Err(error) => reply.error(fail("statfs", &error)),
            },
        );
    }

    fn access(&self, req: &Request, number: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let (number, mask) = (ino(number), mask.bits().cast_unsigned());
        self.inline_or_on_worker(
            req,
            move |vfs, cx| vfs.access(cx, number, mask),
            reply_empty("access", reply),
        );
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (parent, name) = (ino(parent), name.as_bytes().to_vec());
        self.inline_or_on_worker(
            req,
            move |vfs, cx| {
                vfs.create(
                    cx,
                    parent,
                    &name,
                    mode & PERMISSIONS,
                    OpenFlags::new(flags)?,
                )
            },
            move |result| match result {
                Ok((attr, opened)) => reply.created(
                    &convert::entry_attr_ttl(&attr),
                    &convert::entry_attr(&attr),
                    GENERATION,
                    FileHandle(opened.fh.0),
                    open_flags(&opened),
                ),
                Err(error) => reply.error(fail("create", &error)),
            },
        );
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let fh = Fh(fh.0);
        self.inline_or_on_worker(
            req,
            move |vfs, cx| vfs.fallocate(cx, fh, mode, offset, length),
            reply_empty("fallocate", reply),
        );
    }

    fn lseek(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let fh = Fh(fh.0);
        self.inline_or_on_worker(
            req,
            move |vfs, cx| {
                let offset = u64::try_from(offset).map_err(|_| Error::NoSuchOffset)?;
                match whence {
                    SEEK_DATA => vfs.seek(cx, fh, offset, true),
                    SEEK_HOLE => vfs.seek(cx, fh, offset, false),
                    _ => Err(Error::InvalidArgument),
                }
            },
            move |result| match result {
                Ok(offset) => reply.offset(i64::try_from(offset).unwrap_or(i64::MAX)),
                Err(error) => reply.error(fail("lseek", &error)),
            },
        );
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((Fh(fh_in.0), offset_in), (Fh(fh_out.0), offset_out));
        self.inline_or_on_worker(
            req,
            move |vfs, cx| vfs.copy_file_range(cx, from, to, len),
            move |result| match result {
                Ok(n) => reply.written(u32::try_from(n).unwrap_or(u32::MAX)),
                Err(error) => reply.error(fail("copy_file_range", &error)),
            },
        );
    }

    // The kernel remembers ENOSYS for the extended attributes and does not ask again.

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
