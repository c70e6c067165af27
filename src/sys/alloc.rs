//! The binary's allocator: takes from a growing arena, gives back only the newest block.
//!
//! A run of sbx is short and its supervisor allocates nothing while it waits, so a general allocator
//! is pure cost here: it touches pages that then have to be copied and counted (startup.md section 2).
//! One invariant more: in the child after clone every allocation aborts (DESIGN 4.1).

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// Blocks come from chunks of this length, which start at a multiple of it; pages cost only when touched.
const CHUNK: usize = 1 << 19;
/// What is left free at a chunk's start, so that no address in use is a multiple of its length.
const HEAD: usize = 16;

static IN_CHILD: AtomicBool = AtomicBool::new(false);

/// Makes every further allocation of this process abort it. The child calls it first.
pub fn forbid() {
    IN_CHILD.store(true, Relaxed);
}

/// Whether [`forbid`] was called in this process.
pub fn forbidden() -> bool {
    IN_CHILD.load(Relaxed)
}

/// See the head of the file. All that it knows is one number: where the next block may start. Its chunk ends at the
/// next multiple of a chunk's length, so threads can never mix up the one chunk's place with the other's end.
pub struct Arena {
    next: AtomicUsize,
}

impl Arena {
    /// An arena that holds nothing yet.
    pub const fn new() -> Arena {
        Arena { next: AtomicUsize::new(0) }
    }

    /// Moves `next` past a block, or says where it stands when the chunk is too small.
    fn take(&self, layout: Layout) -> Result<usize, usize> {
        let mut next = self.next.load(Relaxed);
        loop {
            let fit = || {
                let start = next.checked_next_multiple_of(layout.align())?;
                let after = start.checked_add(layout.size())?;
                (after <= end_of(next)).then_some((start, after))
            };
            let Some((start, after)) = fit() else { return Err(next) };
            match self.next.compare_exchange_weak(next, after, Relaxed, Relaxed) {
                Ok(_) => return Ok(start),
                Err(newer) => next = newer,
            }
        }
    }

    /// Goes on in a new chunk, unless another thread has left the full one in the meantime.
    fn grow(&self, full: usize) -> bool {
        let Some(start) = map(CHUNK, CHUNK) else { return false };
        let _ = self.next.compare_exchange(full, start + HEAD, Relaxed, Relaxed);
        true
    }
}

/// The end of the chunk that this address lies in, or stands at the end of.
fn end_of(next: usize) -> usize {
    next.next_multiple_of(CHUNK)
}

/// New address space, never given back: what is not touched costs nothing.
fn map(size: usize, align: usize) -> Option<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let whole = size.checked_add(align)?;
    // SAFETY: an anonymous mapping at an address of the kernel's choice overlaps nothing.
    let map = unsafe { libc::mmap(null_mut(), whole, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    (map != libc::MAP_FAILED).then(|| (map as usize).next_multiple_of(align))
}

impl Default for Arena {
    fn default() -> Self {
        Arena::new()
    }
}

// SAFETY: blocks come from mappings that are never unmapped, are handed out once (compare-exchange on
// `next`, which alone says where and how far), aligned as asked, and only the newest block is ever taken back.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if forbidden() {
            // SAFETY: `abort` takes nothing and does not return.
            unsafe { libc::abort() }
        }
        if layout.size() + layout.align() > CHUNK / 2 {
            return map(layout.size(), layout.align()).map_or(null_mut(), |start| start as *mut u8);
        }
        loop {
            match self.take(layout) {
                Ok(start) => return start as *mut u8,
                Err(full) if self.grow(full) => {}
                Err(_) => return null_mut(),
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
        let newest = self.next.load(Relaxed) == after && wanted <= end_of(after) && !forbidden();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_block_grows_in_its_place() {
        let arena = Arena::new();
        let layout = |size| Layout::from_size_align(size, 8).expect("a layout");
        // SAFETY: no size is zero, each block is used with the layout that it has.
        unsafe {
            let block = arena.alloc(layout(100));
            assert_eq!(arena.realloc(block, layout(100), 1000), block);
            let other = arena.alloc(layout(8));
            assert_eq!(other as usize, block as usize + 1000);
            *block = 7;
            let moved = arena.realloc(block, layout(1000), CHUNK);
            assert!(moved != block && *moved == 7);
            arena.dealloc(other, layout(8));
            assert_eq!(arena.alloc(layout(16)), other);
        }
    }
}
