//! Programs that write with `O_DIRECT` while others read through the page cache.

use std::alloc::Layout;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;

use scpfs_testing::or_skip;

use crate::Mounted;

const PIECE: usize = 16 << 10;
const N_PIECES: usize = 32;
const N_READERS: usize = 2;
const N_CYCLES: usize = 150;

/// `struct iocb` of `linux/aio_abi.h`, little endian.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buf: u64,
    n_bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// `struct io_event` of the same.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Event {
    data: u64,
    iocb: u64,
    result: i64,
    result2: i64,
}

const IOCB_CMD_PWRITE: u16 = 1;

/// A context of asynchronous input and output, see `io_setup(2)`, and a buffer for `O_DIRECT`.
struct Aio {
    context: u64,
    buf: *mut u8,
}

impl Aio {
    const LAYOUT: Layout = match Layout::from_size_align(PIECE * N_PIECES, 4096) {
        Ok(layout) => layout,
        Err(_) => panic!("a buffer of whole pages"),
    };

    fn new() -> Self {
        let mut context = 0u64;
        // SAFETY: io_setup(2) writes one pointer-sized number to `context`.
        let done = unsafe { libc::syscall(libc::SYS_io_setup, N_PIECES, &raw mut context) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the layout is not empty.
        let buf = unsafe { std::alloc::alloc_zeroed(Self::LAYOUT) };
        Self { context, buf }
    }

    /// Fills the range with this byte: submits all pieces at once and waits for all.
    fn write(&self, file: &File, byte: u8) {
        // SAFETY: the buffer has this length, and nothing else uses it.
        unsafe { self.buf.write_bytes(byte, PIECE * N_PIECES) };
        let requests: Vec<Iocb> = (0..N_PIECES)
            .map(|n| Iocb {
                opcode: IOCB_CMD_PWRITE,
                fd: file.as_raw_fd().cast_unsigned(),
                buf: self.buf as u64 + (n * PIECE) as u64,
                n_bytes: PIECE as u64,
                offset: (n * PIECE).cast_signed() as i64,
                ..Iocb::default()
            })
            .collect();
        let pointers: Vec<*const Iocb> = requests.iter().map(std::ptr::from_ref).collect();
        let (n, list) = (N_PIECES, pointers.as_ptr());
        // SAFETY: the requests and the buffer outlive the wait for their completion below.
        let sent = unsafe { libc::syscall(libc::SYS_io_submit, self.context, n, list) };
        assert_eq!(usize::try_from(sent).ok(), Some(N_PIECES));
        let mut events = [Event::default(); N_PIECES];
        let (ends, none) = (events.as_mut_ptr(), std::ptr::null::<libc::timespec>());
        // SAFETY: the array has room for the number of events that is requested.
        let n_ends =
            unsafe { libc::syscall(libc::SYS_io_getevents, self.context, n, n, ends, none) };
        assert_eq!(usize::try_from(n_ends).ok(), Some(N_PIECES));
        for event in events {
            assert_eq!(usize::try_from(event.result).ok(), Some(PIECE));
        }
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: no request is in flight.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
        // SAFETY: the buffer was allocated with this layout.
        unsafe { std::alloc::dealloc(self.buf, Self::LAYOUT) };
    }
}

/// Writes and reads in a loop. Returns the first cycle in which a reader missed a completed write,
/// and the offset of the stale byte.
fn stale_after(path: &Path) -> Option<(usize, usize)> {
    let writer = File::options()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap();
    let reader = File::open(path).unwrap();
    let aio = Aio::new();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..N_READERS {
            scope.spawn(|| {
                let file = File::open(path).unwrap();
                let mut buf = vec![0; PIECE * N_PIECES];
                while !is_over.load(Ordering::Relaxed) {
                    file.read_exact_at(&mut buf, 0).unwrap();
                }
            });
        }
        let mut buf = vec![0; PIECE * N_PIECES];
        let stale = (1..=N_CYCLES).find_map(|cycle| {
            let byte = u8::try_from(cycle % 251).unwrap();
            aio.write(&writer, byte);
            reader.read_exact_at(&mut buf, 0).unwrap();
            let at = buf.iter().position(|&found| found != byte)?;
            Some((cycle, at))
        });
        is_over.store(true, Ordering::Relaxed);
        stale
    })
}

/// Regression: pages that readers cached during a write stayed in the page cache after it (xfstests
/// generic/451).
#[test]
fn readers_see_what_asynchronous_direct_writes_have_written() {
    let mounted = or_skip!(Mounted::new(&[]));
    mounted.put("file", vec![0; PIECE * N_PIECES]);
    mounted.sh("chmod 666 \"$THERE/file\"");
    assert_eq!(stale_after(&mounted.here("file")), None, "(cycle, offset)");
}
