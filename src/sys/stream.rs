//! Stream sockets with a name in the file system, never waiting: parent only.

#![allow(unsafe_code)]

use super::{Errno, Result, done, fd, ok, retry};
use libc::c_void;
use std::ffi::CStr;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Nobody listens on the socket.
pub const ECONNREFUSED: Errno = Errno(libc::ECONNREFUSED);

/// Who listens on the other end's socket, as this process's namespaces see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The process that began to listen; 0 for one outside this pid namespace.
    pub pid: i32,
    /// Its effective user; the overflow id for one that has none here.
    pub uid: u32,
}

/// `connect(2)` of a new AF_UNIX SOCK_STREAM socket, close-on-exec and non-blocking. `EAGAIN`: the queue of the
/// listener is full.
pub fn connect(path: &CStr) -> Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes integers.
    let socket = fd(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: all zero is a valid address.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as _;
    let bytes = path.to_bytes_with_nul();
    let Some(into) = address.sun_path.get_mut(..bytes.len()) else { return Err(Errno(libc::ENAMETOOLONG)) };
    into.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from as _);
    let size = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is ours and of that size; its path ends with a NUL.
    retry(|| done(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size) }))?;
    Ok(socket)
}

/// `getsockopt(2)`, `SO_PEERCRED`.
pub fn peer(of: BorrowedFd<'_>) -> Result<Peer> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = size_of_val(&cred) as libc::socklen_t;
    let into: *mut c_void = (&raw mut cred).cast();
    // SAFETY: the buffer is ours and of that size.
    done(unsafe { libc::getsockopt(of.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, into, &mut size) })?;
    Ok(Peer { pid: cred.pid, uid: cred.uid })
}

/// `getsockopt(2)`, `SO_PEERPIDFD` (Linux 6.5): the process of [`peer`], as a descriptor that no other ever gets.
pub fn peer_pidfd(of: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut pidfd: libc::c_int = -1;
    let mut size = size_of_val(&pidfd) as libc::socklen_t;
    let into: *mut c_void = (&raw mut pidfd).cast();
    // SAFETY: the buffer is ours and of that size.
    done(unsafe { libc::getsockopt(of.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, into, &mut size) })?;
    fd(pidfd)
}

/// The libc crate does not have it for every C library yet (asm-generic/socket.h).
const SO_PEERPIDFD: libc::c_int = 77;

/// `send(2)` of as much as there is room for; `EAGAIN` where there is none. No SIGPIPE.
pub fn send_some(to: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the pointer and the length describe the slice.
    retry(|| ok(unsafe { libc::send(to.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) } as i64))
        .map(|n| n as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{ENOENT, cred};
    use std::ffi::CString;
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::UnixListener;

    fn named(path: &std::path::Path) -> CString {
        CString::new(path.as_os_str().as_bytes()).expect("no NUL")
    }

    #[test]
    fn a_listener_is_reached_and_known() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = named(&dir.path().join("s"));
        assert_eq!(connect(&path).map(drop), Err(ENOENT));
        let listener = UnixListener::bind(dir.path().join("s")).expect("bound");
        let socket = connect(&path).expect("connected");
        assert_eq!(peer(socket.as_fd()), Ok(Peer { pid: std::process::id() as i32, uid: cred::geteuid() }));
        if let Ok(pidfd) = peer_pidfd(socket.as_fd()) {
            assert_eq!(crate::sys::process::pid_of(pidfd.as_fd()), Ok(std::process::id() as i32));
        }
        assert_eq!(send_some(socket.as_fd(), b"abc"), Ok(3));
        drop(listener);
        assert_eq!(connect(&path).map(drop), Err(ECONNREFUSED));
        let long = CString::new(vec![b'x'; 108]).expect("no NUL");
        assert_eq!(connect(&long).map(drop), Err(Errno(libc::ENAMETOOLONG)));
    }
}
