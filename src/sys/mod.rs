//! The only `unsafe` of the crate: thin wrappers named after the call.
//!
//! Descriptors come in borrowed and go out owned. Nothing here takes a decision, makes a sentence or
//! touches the heap, so all of it may be called by the child between clone and exec, but for what
//! is marked "parent only". `nix` and `libc` types do not leave this folder.

#![allow(unsafe_code)]

pub mod alloc;
pub mod cred;
pub mod daemon;
pub mod event;
pub mod fs;
pub mod host;
pub mod inotify;
pub mod landlock;
pub mod mount;
pub mod net;
pub mod notify;
pub mod process;
pub mod sched;
pub mod seccomp;
pub mod socket;
pub mod stream;
pub mod tty;
pub mod xattr;

pub use crate::error::Errno;
use libc::{c_int, c_long};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

/// The errors of `nix`, which does not leave this folder.
impl From<nix::errno::Errno> for Errno {
    fn from(errno: nix::errno::Errno) -> Errno {
        Errno(errno as i32)
    }
}

/// What every wrapper returns.
pub type Result<T> = std::result::Result<T, Errno>;

/// "Already there" of mkdir, mknod and symlink.
pub const EEXIST: Errno = Errno(libc::EEXIST);
/// A name that is not there.
pub const ENOENT: Errno = Errno(libc::ENOENT);
/// This process has as many files open as it may.
pub const EMFILE: Errno = Errno(libc::EMFILE);
/// The machine has.
pub const ENFILE: Errno = Errno(libc::ENFILE);
/// No memory.
pub const ENOMEM: Errno = Errno(libc::ENOMEM);
/// The kernel, or a filter above us, does not have the call.
pub const ENOSYS: Errno = Errno(libc::ENOSYS);
/// Not allowed by a privilege check.
pub const EPERM: Errno = Errno(libc::EPERM);
/// A path of more than 4095 bytes, or a name in it of more than 255.
pub const ENAMETOOLONG: Errno = Errno(libc::ENAMETOOLONG);
/// No extended attribute of this name.
pub const ENODATA: Errno = Errno(libc::ENODATA);
/// Not allowed by mode bits or a security module.
pub const EACCES: Errno = Errno(libc::EACCES);
/// Read-only file system.
pub const EROFS: Errno = Errno(libc::EROFS);
/// An argument the kernel does not take.
pub const EINVAL: Errno = Errno(libc::EINVAL);
/// Something in the way is busy.
pub const EBUSY: Errno = Errno(libc::EBUSY);
/// Too many symlinks, or one where none may be.
pub const ELOOP: Errno = Errno(libc::ELOOP);
/// A component of a path is no directory.
pub const ENOTDIR: Errno = Errno(libc::ENOTDIR);
/// A directory that holds something.
pub const ENOTEMPTY: Errno = Errno(libc::ENOTEMPTY);
/// A directory where a file was expected.
pub const EISDIR: Errno = Errno(libc::EISDIR);
/// A number out of what is taken.
pub const ERANGE: Errno = Errno(libc::ERANGE);
/// No space left.
pub const ENOSPC: Errno = Errno(libc::ENOSPC);
/// A per-user or system-wide limit was reached.
pub const EAGAIN: Errno = Errno(libc::EAGAIN);
/// A quota was reached.
pub const EDQUOT: Errno = Errno(libc::EDQUOT);
/// No such process.
pub const ESRCH: Errno = Errno(libc::ESRCH);
/// Interrupted by a signal.
pub const EINTR: Errno = Errno(libc::EINTR);
/// The other end is gone.
pub const EPIPE: Errno = Errno(libc::EPIPE);
/// The other end closed before it had read everything.
pub const ECONNRESET: Errno = Errno(libc::ECONNRESET);
/// Input or output error; a pty master reads it when the last slave is closed.
pub const EIO: Errno = Errno(libc::EIO);
/// The other side of a FUSE mount is gone.
pub const ENOTCONN: Errno = Errno(libc::ENOTCONN);
/// A wait was too long.
pub const ETIMEDOUT: Errno = Errno(libc::ETIMEDOUT);
/// A kind of device or file system that the kernel does not know.
pub const ENODEV: Errno = Errno(libc::ENODEV);
/// No such device.
pub const ENXIO: Errno = Errno(libc::ENXIO);
/// The file system does not do that.
pub const EOPNOTSUPP: Errno = Errno(libc::EOPNOTSUPP);
/// The executable has no format the kernel knows.
pub const ENOEXEC: Errno = Errno(libc::ENOEXEC);
/// A value read back differs from what was set: a protection did not take (DESIGN 4.4).
pub const NOT_TAKEN: Errno = Errno::NOT_TAKEN;

/// `-1` becomes the thread's errno.
fn ok(returned: c_long) -> Result<c_long> {
    if returned == -1 { Err(Errno::last()) } else { Ok(returned) }
}

/// As [`ok`], for calls that return nothing of use.
fn done(returned: impl Into<c_long>) -> Result<()> {
    ok(returned.into()).map(drop)
}

/// As [`ok`], for calls that return a new descriptor.
fn fd(returned: impl Into<c_long>) -> Result<OwnedFd> {
    let raw = ok(returned.into())? as RawFd;
    // SAFETY: the kernel just returned this descriptor to us alone; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Repeats a call that a signal interrupted.
pub fn retry<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(EINTR) => continue,
            other => return other,
        }
    }
}

/// A descriptor known by number only, such as 0, or one that another process with the same table opened.
///
/// A number that is not open, or negative, is harmless: every use of it fails with EBADF. The child may not panic.
pub fn borrow(raw: c_int) -> BorrowedFd<'static> {
    let raw = if raw < 0 { c_int::MAX } else { raw };
    // SAFETY: not -1; the callers keep the descriptor open for as long as they use it, and a stale
    // number only yields EBADF, never memory unsafety.
    unsafe { BorrowedFd::borrow_raw(raw) }
}

/// Takes over a descriptor that another process with the same table opened for us and forgot.
pub fn adopt(raw: c_int) -> OwnedFd {
    let raw = if raw < 0 { c_int::MAX } else { raw };
    // SAFETY: not -1; the process that opened it has given up its ownership, and nobody else closes it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// Whether a test build was told, by `SBX_SABOTAGE`, to leave this protection off, so that the test of it can
/// be seen to fail. A constant "no" in every other build.
pub fn sabotaged(protection: &std::ffi::CStr) -> bool {
    if !cfg!(feature = "sabotage") {
        return false;
    }
    // Init overwrites its environment, so the first to ask, which is the parent, keeps a copy.
    static CHOSEN: AtomicPtr<libc::c_char> = AtomicPtr::new(std::ptr::null_mut());
    if CHOSEN.load(Relaxed).is_null() {
        // SAFETY: the name is a C string; sbx never changes its environment.
        let found = unsafe { libc::getenv(c"SBX_SABOTAGE".as_ptr()) };
        if found.is_null() {
            return false;
        }
        // SAFETY: getenv returned a C string of the environment.
        CHOSEN.store(unsafe { libc::strdup(found) }, Relaxed);
    }
    // SAFETY: strdup returned a C string that is never freed.
    unsafe { std::ffi::CStr::from_ptr(CHOSEN.load(Relaxed)) == protection }
}
