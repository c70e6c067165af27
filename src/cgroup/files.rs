//! The files of a group, and how it is emptied and removed with all that the program has made in it.

use crate::host::files::c_path;
use crate::sys::event::poll;
use crate::sys::fs::{self, Kind, Open};
use crate::sys::{EBUSY, ENOENT, Result};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// How deep the groups of a program are followed; the kernel's own bound is much higher.
const DEEPEST: u32 = 64;

/// What a file of a group says.
pub(super) fn text(dir: BorrowedFd<'_>, file: &str) -> Result<String> {
    value(fs::openat(dir, &c_path(Path::new(file)), Open::Read)?.as_fd())
}

/// The content of an open file of a group, from its beginning: the kernel gives all of it in one read.
pub(super) fn value(file: BorrowedFd<'_>) -> Result<String> {
    let mut buffer = [0; 4096];
    let length = fs::pread(file, &mut buffer, 0)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Writes a file of a group.
pub(super) fn write(dir: BorrowedFd<'_>, file: &CStr, text: &str) -> Result<()> {
    fs::write_all(fs::openat(dir, file, Open::Write)?.as_fd(), text.as_bytes())
}

/// Whether a process lives in it or below it.
pub(super) fn populated(dir: BorrowedFd<'_>) -> bool {
    text(dir, "cgroup.events").is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
}

/// Waits until no process lives in it; false where one still does.
pub(super) fn empty(dir: BorrowedFd<'_>, patience: u64) -> bool {
    let mut waited = 0;
    let mut pause = 1;
    while populated(dir) {
        if waited >= patience {
            return false;
        }
        let _ = poll(&mut [], Some(pause));
        waited += pause;
        pause = (pause * 2).min(50);
    }
    true
}

/// Removes a group and those below it. What has just lost its last process may be busy for a moment.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    for pause in [1, 2, 5, 10, 20, 50, 100, 200] {
        match fs::unlinkat(parent, name, Kind::Directory) {
            Err(EBUSY) => {}
            Err(ENOENT) => return Ok(()),
            other => return other,
        }
        if let Ok(dir) = fs::open_beneath(parent, name, Open::List) {
            remove_below(dir.as_fd(), DEEPEST);
        }
        match fs::unlinkat(parent, name, Kind::Directory) {
            Err(EBUSY) => drop(poll(&mut [], Some(pause))),
            Err(ENOENT) => return Ok(()),
            other => return other,
        }
    }
    Err(EBUSY)
}

/// The groups that the program made, the innermost first. What cannot be removed now is tried again by the caller.
fn remove_below(dir: BorrowedFd<'_>, depth: u32) {
    each_below(dir, |name, below| {
        if depth > 0 {
            remove_below(below, depth - 1);
        }
        let _ = fs::unlinkat(dir, name, Kind::Directory);
    });
}

/// The groups in a group.
pub(super) fn each_below(dir: BorrowedFd<'_>, mut each: impl FnMut(&CStr, BorrowedFd<'_>)) {
    let mut entries = fs::Entries::new();
    loop {
        let Ok(names) = fs::getdents(dir, &mut entries) else { return };
        if names.is_end() {
            return;
        }
        for name in names {
            // The files of a group are no directories: ENOTDIR.
            if let Ok(below) = fs::open_beneath(dir, name, Open::List) {
                each(name, below.as_fd());
            }
        }
    }
}
