#![cfg(test)]
#![allow(unsafe_code, reason = "an allocator that counts is one")]
//! The memory that the names of a directory take, measured by the allocator of this program.

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::fs;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(n_bytes: usize) {
    let now = NOW.fetch_add(n_bytes, Ordering::SeqCst) + n_bytes;
    PEAK.fetch_max(now, Ordering::SeqCst);
}

fn shrink(n_bytes: usize) {
    NOW.fetch_sub(n_bytes, Ordering::SeqCst);
}

// SAFETY: the system allocator does all the work; this one only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller upholds the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        grow(new_size);
        shrink(layout.size());
        // SAFETY: the caller upholds the contract of `realloc`.
        unsafe { System.realloc(at, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Just below a power of two, so that a table which doubles its capacity is nearly full.
const N_NAMES: usize = 110_000;

/// A script that prints the output of GNU `find -printf` for a directory with `N_NAMES` files.
fn find_in_huge_directory() -> String {
    let times = "1700000000.1234567890 1700000000.1234567890 1700000000.1234567890";
    format!(
        "#!/bin/dash\n\
         case $1 in */huge) ;; *) exec /usr/bin/find \"$@\" ;; esac\n\
         {{ printf 'd 755 4096 8 2 0 0 1 1 {times} 0 huge@@'\n\
         seq {N_NAMES} | sed 's/.*/f 644 0 0 1 0 0 1 1& {times} 1 a name of a usual length &@@/'\n\
         }} | tr -d '\\n' | tr @ '\\0'\n"
    )
}

/// The only test of this binary: allocations of another one would be counted as well.
#[test]
fn a_listing_takes_few_bytes_for_each_name() {
    let mount = Mount::new();
    fs::create_dir(mount.at("huge")).unwrap();
    mount.world.put("find", &find_in_huge_directory());
    let ino = mount.find("huge").unwrap().ino;
    let before = NOW.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let found = mount
        .vfs
        .lookup(&CX, ino, b"a name of a usual length 77")
        .unwrap();
    assert!(found.attr.is_some());
    let peak = (PEAK.load(Ordering::SeqCst) - before) / N_NAMES;
    let kept = (NOW.load(Ordering::SeqCst) - before) / N_NAMES;
    eprintln!("{peak} bytes a name while it is listed, {kept} afterwards");
    assert!(peak < 320, "{peak} bytes a name while it is listed");
    assert!(kept < 280, "{kept} bytes a name afterwards");
    // A full listing, as for `ls`.
    mount.age();
    let handle = mount.vfs.opendir(ino).unwrap();
    mount.vfs.readdir(&CX, handle, 0).unwrap();
    let peak = (PEAK.load(Ordering::SeqCst) - before) / N_NAMES;
    eprintln!("{peak} bytes a name while it is listed again");
    assert!(peak < 500, "{peak} bytes a name while it is listed again");
}
