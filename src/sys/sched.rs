//! Which processors a process may run on.

#![allow(unsafe_code)]

use super::{NOT_TAKEN, Result, done, ok};

/// Words of a mask: the kernel has at most 8192 processors (NR_CPUS).
const WORDS: usize = 128;

/// Processors by number, as sched_setaffinity(2) takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuMask([u64; WORDS]);

impl CpuMask {
    /// These; a number that no processor has is left out.
    pub fn of(cpus: impl IntoIterator<Item = u32>) -> CpuMask {
        let mut mask = CpuMask([0; WORDS]);
        for cpu in cpus {
            if let Some(word) = mask.0.get_mut(cpu as usize / 64) {
                *word |= 1 << (cpu % 64);
            }
        }
        mask
    }

    /// Their numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..WORDS as u32 * 64).filter(|cpu| self.0[*cpu as usize / 64] >> (cpu % 64) & 1 == 1)
    }
}

/// `sched_getaffinity(2)` of the calling thread: processors that are switched off are not among them.
///
/// # Errors
/// `EINVAL` where the kernel has room for more processors than a mask has.
pub fn sched_getaffinity() -> Result<CpuMask> {
    affinity_of(0)
}

/// The same of another.
pub fn affinity_of(pid: i32) -> Result<CpuMask> {
    let mut mask = CpuMask([0; WORDS]);
    let size = size_of_val(&mask.0);
    // SAFETY: the buffer is ours and of that size.
    ok(unsafe { libc::syscall(libc::SYS_sched_getaffinity, pid, size, mask.0.as_mut_ptr()) })?;
    Ok(mask)
}

/// `sched_setaffinity(2)` of the calling thread and all that it will make, read back: the kernel leaves out without a
/// word what a cpuset takes away.
pub fn sched_setaffinity(mask: &CpuMask) -> Result<()> {
    let size = size_of_val(&mask.0);
    // SAFETY: the mask is only read.
    done(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size, mask.0.as_ptr()) })?;
    if sched_getaffinity()? == *mask { Ok(()) } else { Err(NOT_TAKEN) }
}

/// Puts another process of ours onto these processors, at once where it waits on another. For a start, which is to be
/// fast and not to be right: what the kernel makes of it is not read back.
pub fn move_to(pid: i32, mask: &CpuMask) {
    // SAFETY: the mask is only read.
    unsafe { libc::syscall(libc::SYS_sched_setaffinity, pid, size_of_val(&mask.0), mask.0.as_ptr()) };
}

/// `getcpu(2)`: the processor that this thread runs on, a moment ago.
pub fn current() -> Option<u32> {
    // SAFETY: takes nothing.
    u32::try_from(unsafe { libc::sched_getcpu() }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_holds_the_numbers_it_was_given() {
        let cpus = [0, 5, 63, 64, 8191];
        assert_eq!(CpuMask::of(cpus.into_iter().chain([8192])).iter().collect::<Vec<_>>(), cpus);
    }

    #[test]
    fn a_thread_keeps_to_the_processor_it_chose() {
        let choose = || {
            let all = sched_getaffinity().expect("a mask");
            let one = CpuMask::of(all.iter().take(1));
            sched_setaffinity(&one).expect("one of its own");
            assert_eq!(sched_getaffinity(), Ok(one));
            assert_ne!(sched_setaffinity(&CpuMask::of([8191])), Ok(()), "no machine of a test has so many");
        };
        std::thread::spawn(choose).join().expect("the thread");
    }
}
