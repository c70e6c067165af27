//! Facts that the kernel gives by a call of its own.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::mem::zeroed;

/// `uname(2)`: the release, such as `6.18.44-amd64`.
pub fn release() -> String {
    // SAFETY: all zero is a valid buffer, which the call fills in with NUL-terminated texts.
    let names = unsafe {
        let mut names: libc::utsname = zeroed();
        libc::uname(&mut names);
        names
    };
    // SAFETY: the field is NUL-terminated and lives as long as `names`.
    unsafe { CStr::from_ptr(names.release.as_ptr()) }.to_string_lossy().into_owned()
}
