//! Waiting for changes in a directory: inotify(7). Parent only.

#![allow(unsafe_code)]

use super::{Result, fd, ok, retry};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Says that something in a directory has changed.
#[derive(Debug)]
pub struct Inotify(OwnedFd);

impl Inotify {
    /// Watches an open directory: files in it that are written, made, renamed or removed.
    pub fn of(dir: BorrowedFd<'_>) -> Result<Inotify> {
        let events = libc::IN_MODIFY | libc::IN_CREATE | libc::IN_MOVED_TO | libc::IN_DELETE | libc::IN_ONLYDIR;
        // SAFETY: takes integers.
        let inotify = fd(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })?;
        let path = CString::new(format!("/proc/self/fd/{}", dir.as_raw_fd())).map_err(|_| super::EINVAL)?;
        // SAFETY: a C string and integers.
        ok(unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), events) }.into())?;
        Ok(Inotify(inotify))
    }

    /// Takes what has come. What it was is not told: who waits has to look anyway, since events are lost when too many
    /// come at once.
    pub fn drain(&self) {
        let mut events = [0u8; 4096];
        let (start, length) = (events.as_mut_ptr().cast(), events.len());
        // SAFETY: the pointer and the length describe the buffer.
        while retry(|| ok(unsafe { libc::read(self.0.as_raw_fd(), start, length) } as i64)).is_ok_and(|n| n > 0) {}
    }
}

impl AsFd for Inotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
