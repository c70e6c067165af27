//! The socket pairs between parent and child: messages of a fixed size that may carry descriptors.

#![allow(unsafe_code)]

use super::{Result, done, fd, ok, retry};
use libc::{c_int, c_void};
use std::ffi::CStr;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// `socketpair(2)`: AF_UNIX, SOCK_SEQPACKET, close-on-exec.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends: [c_int; 2] = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the array holds two descriptors.
    done(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
    Ok((fd(ends[0])?, fd(ends[1])?))
}

/// Room for one control message that carries a descriptor, aligned as `cmsghdr` asks.
#[repr(C, align(8))]
struct Control([u8; 24]);

fn header(iov: &mut libc::iovec, control: Option<&mut Control>) -> libc::msghdr {
    // SAFETY: all zero is a valid msghdr: no name, no data, no control.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = iov;
    message.msg_iovlen = 1;
    if let Some(control) = control {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>() as _;
    }
    message
}

/// `sendmsg(2)` of one message, with at most one descriptor. No SIGPIPE.
pub fn send(to: BorrowedFd<'_>, bytes: &[u8], carried: Option<BorrowedFd<'_>>) -> Result<()> {
    let mut iov = libc::iovec { iov_base: bytes.as_ptr() as *mut c_void, iov_len: bytes.len() };
    let mut control = Control([0; 24]);
    let message = match carried {
        None => header(&mut iov, None),
        Some(carried) => {
            let message = header(&mut iov, Some(&mut control));
            // SAFETY: the control buffer is aligned and has room for one header and one descriptor.
            unsafe {
                let first = libc::CMSG_FIRSTHDR(&message);
                (*first).cmsg_level = libc::SOL_SOCKET;
                (*first).cmsg_type = libc::SCM_RIGHTS;
                (*first).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
                libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(carried.as_raw_fd());
            }
            message
        }
    };
    // SAFETY: the message points at live buffers, which are only read.
    retry(|| done(unsafe { libc::sendmsg(to.as_raw_fd(), &message, libc::MSG_NOSIGNAL) } as i64))
}

/// Whether a [`receive`] waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until a message or the end comes.
    Yes,
    /// `EAGAIN` where none is there.
    No,
}

/// `recvmsg(2)` of one message: its length (0 at the other end's close) and the descriptor it carried.
pub fn receive(from: BorrowedFd<'_>, into: &mut [u8], wait: Wait) -> Result<(usize, Option<OwnedFd>)> {
    let mut iov = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let mut control = Control([0; 24]);
    let mut message = header(&mut iov, Some(&mut control));
    // Room for one and no more: in what alignment leaves at the end the kernel puts a second, of which nobody would know.
    // SAFETY: takes an integer.
    message.msg_controllen = unsafe { libc::CMSG_LEN(size_of::<RawFd>() as u32) } as _;
    let flags = libc::MSG_CMSG_CLOEXEC | if wait == Wait::No { libc::MSG_DONTWAIT } else { 0 };
    // SAFETY: the message points at live buffers of the lengths given.
    let mut take = || retry(|| ok(unsafe { libc::recvmsg(from.as_raw_fd(), &mut message, flags) } as i64));
    // A peer that closes before it has read all that we sent resets the connection. The kernel tells that once and
    // first, and what the peer sent is still there.
    let n = match take() {
        Err(super::ECONNRESET) => take(),
        other => other,
    }?;
    // SAFETY: recvmsg set the control length; a header of SCM_RIGHTS holds a descriptor that is now ours.
    let carried = unsafe {
        let first = libc::CMSG_FIRSTHDR(&message);
        let rights = !first.is_null() && (*first).cmsg_type == libc::SCM_RIGHTS;
        rights.then(|| libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned())
    };
    Ok((n as usize, carried.map(fd).transpose()?))
}

/// A new SOCK_SEQPACKET socket with a path as its address.
fn named(
    path: &CStr,
    flags: c_int,
    take: impl Fn(RawFd, *const libc::sockaddr, libc::socklen_t) -> c_int,
) -> Result<OwnedFd> {
    // SAFETY: takes integers.
    let socket = fd(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | flags, 0) })?;
    // SAFETY: all zero is a valid address.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as _;
    let bytes = path.to_bytes_with_nul();
    let Some(into) = address.sun_path.get_mut(..bytes.len()) else { return Err(super::Errno(libc::ENAMETOOLONG)) };
    into.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from as _);
    let size = size_of_val(&address) as libc::socklen_t;
    retry(|| done(take(socket.as_raw_fd(), (&raw const address).cast(), size)))?;
    Ok(socket)
}

/// `bind(2)` to a path, which is not to exist, and `listen(2)` there; nobody is waited for.
pub fn listen(path: &CStr, backlog: i32) -> Result<OwnedFd> {
    // SAFETY: the address is one of that size, and only read.
    let socket =
        named(path, libc::SOCK_NONBLOCK, |socket, address, size| unsafe { libc::bind(socket, address, size) })?;
    // SAFETY: takes integers.
    done(unsafe { libc::listen(socket.as_raw_fd(), backlog) })?;
    Ok(socket)
}

/// `connect(2)` to the listener of a path; nobody is waited for, here or later. `EAGAIN`: too many wait to be let in.
pub fn connect(path: &CStr) -> Result<OwnedFd> {
    // SAFETY: as in `listen`.
    named(path, libc::SOCK_NONBLOCK, |socket, address, size| unsafe { libc::connect(socket, address, size) })
}

/// `accept4(2)`: the next that waits, close-on-exec; `EAGAIN` where nobody does.
pub fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC;
    // SAFETY: null pointers mean that nobody wants the peer's address.
    let socket = unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    fd(socket)
}

/// [`send`] of one message with a descriptor, for whose room nobody waits: `EAGAIN`.
pub fn send_with(to: BorrowedFd<'_>, bytes: &[u8], carried: BorrowedFd<'_>) -> Result<()> {
    let mut room = [super::event::Watch::write(to)];
    match super::event::poll(&mut room, Some(0)) {
        Ok(1) if room[0].ready() => send(to, bytes, Some(carried)),
        _ => Err(super::EAGAIN),
    }
}

/// `send(2)` of one message, for whose room nobody waits: `EAGAIN`. No SIGPIPE.
pub fn send_now(to: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the pointer and the length describe the slice.
    retry(|| done(unsafe { libc::send(to.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) } as i64))
}

/// Whether the other end of a socket is gone, without taking a message.
pub fn hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut watch = [super::event::Watch::read(socket)];
    matches!(super::event::poll(&mut watch, Some(0)), Ok(1)) && watch[0].hung_up()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_peer_that_closes_unread_messages_is_still_heard() {
        let (ours, theirs) = pair().expect("a pair");
        send(ours.as_fd(), b"unread", None).expect("sent");
        send(theirs.as_fd(), b"last", None).expect("sent");
        drop(theirs);
        let mut bytes = [0; 16];
        let lengths = [(); 2].map(|()| receive(ours.as_fd(), &mut bytes, Wait::Yes).expect("received").0);
        assert_eq!(lengths, [4, 0]);
    }

    #[test]
    fn of_many_descriptors_that_come_along_none_is_left_open() {
        let (ours, theirs) = pair().expect("a pair");
        let numbers = [ours.as_raw_fd(); 3];
        // SAFETY: it only counts.
        let length = unsafe { libc::CMSG_LEN(size_of_val(&numbers) as u32) };
        let mut iov = libc::iovec { iov_base: (&raw const numbers) as *mut c_void, iov_len: 1 };
        let mut control = [0u64; 8];
        let mut message = header(&mut iov, None);
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = length as _;
        // SAFETY: the buffer is aligned and has room for the header and three numbers.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(&message);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = length as _;
            libc::CMSG_DATA(first).cast::<[RawFd; 3]>().write_unaligned(numbers);
        }
        // SAFETY: the message and all it points at live until the call is back.
        assert_eq!(unsafe { libc::sendmsg(theirs.as_raw_fd(), &message, 0) }, 1);
        let (length, carried) = receive(ours.as_fd(), &mut [0; 16], Wait::Yes).expect("received");
        assert_eq!(length, 1);
        // All three were the reading end. With it gone here, nobody has it.
        drop((carried, ours));
        assert!(hung_up(theirs.as_fd()));
    }

    #[test]
    fn a_peer_that_is_gone_has_hung_up() {
        let (ours, theirs) = pair().expect("a pair");
        assert!(!hung_up(ours.as_fd()));
        send(theirs.as_fd(), b"last", None).expect("sent");
        assert!(!hung_up(ours.as_fd()));
        drop(theirs);
        assert!(hung_up(ours.as_fd()));
        receive(ours.as_fd(), &mut [0; 16], Wait::Yes).expect("received");
        assert!(hung_up(ours.as_fd()));
    }
}
