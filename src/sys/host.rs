//! Facts that the kernel gives by a call of its own.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::mem::zeroed;

/// `sysinfo(2)`: bytes of swap that the machine has, used or not.
pub fn swap_bytes() -> u64 {
    // SAFETY: all zero is a valid buffer, which the call fills in.
    let info = unsafe {
        let mut info: libc::sysinfo = zeroed();
        libc::sysinfo(&mut info);
        info
    };
    info.totalswap * u64::from(info.mem_unit)
}

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

/// `sysinfo(2)`: how much of the machine's swap is in use, in bytes; 0 where the call is refused.
pub fn swap_used() -> u64 {
    // SAFETY: all zero is a valid buffer, which the call fills in.
    let info = unsafe {
        let mut info: libc::sysinfo = zeroed();
        libc::sysinfo(&mut info);
        info
    };
    (info.totalswap as u64).saturating_sub(info.freeswap as u64).saturating_mul(info.mem_unit.into())
}

/// Bytes of a page of memory.
pub fn page_size() -> u64 {
    // SAFETY: takes a number; this one is always known.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

/// `getrandom(2)`: fills the buffer.
pub fn getrandom(into: &mut [u8]) -> super::Result<()> {
    // SAFETY: the pointer and the length describe the buffer; at most 256 bytes come in one go.
    let n = super::retry(|| super::ok(unsafe { libc::getrandom(into.as_mut_ptr().cast(), into.len(), 0) } as i64))?;
    if n as usize == into.len() { Ok(()) } else { Err(super::EAGAIN) }
}
