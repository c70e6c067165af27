//! Extended attributes of open objects. Parent only: by their names in /proc/self/fd, for the calls themselves refuse
//! descriptors opened with `O_PATH`.

#![allow(unsafe_code)]

use super::{Result, ok};
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The most that a name list or a value may have (xattr(7)).
const MOST: usize = 64 << 10;

fn path(of: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", of.as_raw_fd())).unwrap_or_default()
}

/// `getxattr(2)`
///
/// # Errors
/// `ENODATA` where there is none of this name, `EOPNOTSUPP` where the file system has none.
pub fn get(of: BorrowedFd<'_>, name: &CStr) -> Result<Vec<u8>> {
    let path = path(of);
    take(|into, length| {
        // SAFETY: two C strings; the pointer and the length describe a buffer of the caller's, or are both 0.
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), into.cast(), length) }
    })
}

/// `listxattr(2)`: the names, sorted.
///
/// # Errors
/// As [`get`].
pub fn list(of: BorrowedFd<'_>) -> Result<Vec<CString>> {
    let path = path(of);
    let bytes = take(|into, length| {
        // SAFETY: a C string; the pointer and the length describe a buffer of the caller's, or are both 0.
        unsafe { libc::listxattr(path.as_ptr(), into.cast(), length) }
    })?;
    let mut names: Vec<CString> = bytes
        .split_inclusive(|b| *b == 0)
        .filter_map(|n| CStr::from_bytes_with_nul(n).ok().map(CStr::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

/// `setxattr(2)`
///
/// # Errors
/// As [`get`], `ENOSPC`, `EDQUOT`.
pub fn set(of: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<()> {
    let path = path(of);
    // SAFETY: two C strings, and a slice with its length.
    let set = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    ok(set.into()).map(drop)
}

/// Asks for the length first: most have none.
fn take(call: impl Fn(*mut u8, usize) -> isize) -> Result<Vec<u8>> {
    if ok(call(std::ptr::null_mut(), 0) as i64)? == 0 {
        return Ok(Vec::new());
    }
    let mut buffer = vec![0; MOST];
    let length = ok(call(buffer.as_mut_ptr(), buffer.len()) as i64)?;
    buffer.truncate(length as usize);
    Ok(buffer)
}
