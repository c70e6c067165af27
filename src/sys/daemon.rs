//! What a process needs that goes on without its parent: fork, whose death ends it, descriptors by number.
//! Parent only.

#![allow(unsafe_code)]

use super::{Result, done, fd, ok};
use libc::{c_int, c_ulong};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// `fork(2)`: returns 0 in the child. The caller has one thread: a lock of another's would stay locked for ever.
pub fn fork() -> Result<i32> {
    // SAFETY: the child is a copy of the only thread, on a copy of its memory.
    ok(unsafe { libc::fork() }.into()).map(|pid| pid as i32)
}

/// `PR_SET_PDEATHSIG`: the signal that comes when the parent ends; `None` for none.
pub fn parent_death_signal(signal: Option<i32>) -> Result<()> {
    // SAFETY: this option takes an integer.
    done(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal.unwrap_or(0) as c_ulong, 0, 0, 0) })
}

/// `F_DUPFD_CLOEXEC`: the same open file once more, under a free number that is none of the standard three.
pub fn dup_above(of: BorrowedFd<'_>) -> Result<OwnedFd> {
    // SAFETY: takes integers.
    fd(unsafe { libc::fcntl(of.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3 as c_int) })
}

/// `close(2)` of descriptors that came with the start of the program and that nobody here owns.
pub fn close_inherited(numbers: &[RawFd]) {
    for number in numbers {
        // SAFETY: the callers pass numbers that were open before anything was opened here.
        unsafe { libc::close(*number) };
    }
}

/// Ignores a signal: of SIGXFSZ only an error of the write is left then.
pub fn ignore(signal: c_int) {
    // SAFETY: SIG_IGN is a valid action.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// A file has grown beyond RLIMIT_FSIZE.
pub const SIGXFSZ: c_int = libc::SIGXFSZ;
