//! The binary's allocator: takes from a growing arena, gives back only the newest block.
//!
//! A run of sbx is short and its supervisor allocates nothing while it waits, so a general allocator
//! is pure cost here: it touches pages that then have to be copied and counted (startup.md section 2).
//! One invariant more: in the child after clone every allocation aborts (DESIGN 4.1).

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// How much address space is asked of the kernel at a time; pages cost only when touched.
const CHUNK: usize = 1 << 20;

static IN_CHILD: AtomicBool = AtomicBool::new(false);

/// Makes every further allocation of this process abort it. The child calls it first.
pub fn forbid() {
    IN_CHILD.store(true, Relaxed);
}

/// Whether [`forbid`] was called in this process.
pub fn forbidden() -> bool {
    IN_CHILD.load(Relaxed)
}

/// See the head of the file. Safe with threads, though sbx has none.
pub struct Arena {
    next: AtomicUsize,
    end: AtomicUsize,
}

impl Arena {
    /// An arena that holds nothing yet.
    pub const fn new() -> Arena {
        Arena { next: AtomicUsize::new(0), end: AtomicUsize::new(0) }
    }

    /// Moves `next` past a block, or says that the chunk is too small.
    fn take(&self, layout: Layout) -> Option<usize> {
        let end = self.end.load(Relaxed);
        let mut next = self.next.load(Relaxed);
        loop {
            let start = next.checked_next_multiple_of(layout.align())?;
            let after = start.checked_add(layout.size())?;
            if start == 0 || after > end {
                return None;
            }
            match self.next.compare_exchange_weak(next, after, Relaxed, Relaxed) {
                Ok(_) => return Some(start),
                Err(newer) => next = newer,
            }
        }
    }

    /// Maps another chunk, large enough for `layout`.
    fn grow(&self, layout: Layout) -> bool {
        let size = (layout.size() + layout.align()).next_multiple_of(CHUNK);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: an anonymous mapping at an address of the kernel's choice overlaps nothing.
        let map = unsafe { libc::mmap(null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if map == libc::MAP_FAILED {
            return false;
        }
        self.end.store(0, Relaxed);
        self.next.store(map as usize, Relaxed);
        self.end.store(map as usize + size, Relaxed);
        true
    }
}

impl Default for Arena {
    fn default() -> Self {
        Arena::new()
    }
}

// SAFETY: blocks come from mappings that are never unmapped, are handed out once (compare-exchange on
// `next`), aligned as asked, and only the newest block is ever taken back.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if forbidden() {
            // SAFETY: `abort` takes nothing and does not return.
            unsafe { libc::abort() }
        }
        loop {
            if let Some(start) = self.take(layout) {
                return start as *mut u8;
            }
            if !self.grow(layout) {
                return null_mut();
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let after = block as usize + layout.size();
        let _ = self.next.compare_exchange(after, block as usize, Relaxed, Relaxed);
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let after = block as usize + layout.size();
        let wanted = block as usize + size;
        let newest = self.next.load(Relaxed) == after && wanted <= self.end.load(Relaxed) && !forbidden();
        if newest && self.next.compare_exchange(after, wanted, Relaxed, Relaxed).is_ok() {
            return block;
        }
        let Ok(larger) = Layout::from_size_align(size, layout.align()) else { return null_mut() };
        // SAFETY: the size is the caller's, who promises that it is not zero.
        let moved = unsafe { self.alloc(larger) };
        if !moved.is_null() {
            // SAFETY: both blocks are at least that long, and a new block never overlaps a live one.
            unsafe { std::ptr::copy_nonoverlapping(block, moved, layout.size().min(size)) };
        }
        moved
    }
}

unsafe extern "C" {
    static __executable_start: u8;
    static etext: u8;
}

/// Gives the pages of the program's own code back: they come again from the file when touched.
/// A waiting supervisor then holds a few KiB instead of the whole text (startup.md section 3).
pub fn drop_text() {
    const PAGE: usize = 4096;
    let start = (&raw const __executable_start as usize).next_multiple_of(PAGE);
    let end = (&raw const etext as usize) / PAGE * PAGE;
    if start < end {
        // SAFETY: the range lies in our own read-only, file-backed text; dropping clean pages of it
        // loses nothing, since the next touch reads them back.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}
