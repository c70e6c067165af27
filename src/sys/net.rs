//! What a fresh network namespace needs: its loopback interface up.

#![allow(unsafe_code)]

use super::{Result, done, fd};
use std::mem::zeroed;
use std::os::fd::AsRawFd;

/// Sets `lo` up; the kernel then gives it 127.0.0.1/8 and ::1 by itself (devinet.c, addrconf.c).
pub fn loopback_up() -> Result<()> {
    // SAFETY: takes integers.
    let socket = fd(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    request.ifr_name[0] = b'l' as _;
    request.ifr_name[1] = b'o' as _;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is whole and names an interface that every network namespace has.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) })?;
    // The caller is on its way to an exec, which closes it.
    std::mem::forget(socket);
    Ok(())
}

/// `sethostname(2)` in the caller's UTS namespace.
pub fn sethostname(name: &[u8]) -> Result<()> {
    // SAFETY: the pointer and the length describe the slice.
    done(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })
}
