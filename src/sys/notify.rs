//! Listening to a seccomp filter: calls that wait for an answer from outside (seccomp_unotify(2)).

#![allow(unsafe_code)]

use super::seccomp::Insn;
use super::{EINVAL, Errno, Result, done, fd, ok};
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// `SECCOMP_IOCTL_NOTIF_*`
const RECEIVE: libc::c_ulong = 0xC050_2100;
const SEND: libc::c_ulong = 0xC018_2101;
const ID_VALID: libc::c_ulong = 0x4008_2102;

/// A call that waits.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    id: u64,
    /// Who makes it, as this process sees it; 0 where it is in no namespace of ours.
    pub pid: i32,
    /// Its ABI, as `AUDIT_ARCH_*`.
    pub arch: u32,
    /// Its number there.
    pub number: u32,
    /// Its arguments.
    pub args: [u64; 6],
}

/// Loads a filter as [`load`](super::seccomp::load), and returns what its `SECCOMP_RET_USER_NOTIF` is heard by. A signal
/// interrupts no call that is being answered, where the kernel can do that (5.19).
///
/// # Errors
/// `EBUSY` where a filter around this process is listened to already: there can be one.
pub fn load_listening(filter: &[Insn]) -> Result<OwnedFd> {
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    const NEW_LISTENER: libc::c_ulong = 1 << 3;
    const WAIT_KILLABLE_RECV: libc::c_ulong = 1 << 5;
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr() as *mut libc::sock_filter };
    let load = |flags: libc::c_ulong| {
        // SAFETY: the program describes the slice, which the kernel copies; both types are `struct sock_filter`.
        fd(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) })
    };
    match load(NEW_LISTENER | WAIT_KILLABLE_RECV) {
        Err(EINVAL) => load(NEW_LISTENER),
        other => other,
    }
}

/// The next call.
///
/// # Errors
/// `ENOENT` where its maker was killed meanwhile, `EINTR`.
pub fn receive(listener: BorrowedFd<'_>) -> Result<Call> {
    // SAFETY: all zero is what the kernel wants to see here.
    let mut call: libc::seccomp_notif = unsafe { zeroed() };
    // SAFETY: the structure is ours, and the kernel's in size.
    done(unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &mut call) })?;
    Ok(Call {
        id: call.id,
        pid: call.pid as i32,
        arch: call.data.arch,
        number: call.data.nr as u32,
        args: call.data.args,
    })
}

/// Whether a call still waits: what was read of its maker's memory was really that maker's.
pub fn is_valid(listener: BorrowedFd<'_>, call: &Call) -> bool {
    // SAFETY: the number is only read.
    unsafe { libc::ioctl(listener.as_raw_fd(), ID_VALID as _, &call.id) == 0 }
}

/// Lets a call fail with this error; or with `None` lets the kernel go on with it, as if nobody had been asked.
pub fn answer(listener: BorrowedFd<'_>, call: &Call, errno: Option<Errno>) -> Result<()> {
    const CONTINUE: u32 = 1;
    // SAFETY: all zero is valid.
    let mut answer: libc::seccomp_notif_resp = unsafe { zeroed() };
    answer.id = call.id;
    match errno {
        Some(errno) => answer.error = -errno.0,
        None => answer.flags = CONTINUE,
    }
    // SAFETY: the structure is ours, and the kernel's in size.
    done(unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &mut answer) })
}

/// `process_vm_readv(2)`: bytes of another process, as many as lie in one page.
pub fn read_memory(pid: i32, address: u64, into: &mut [u8]) -> Result<usize> {
    const PAGE: usize = 4096;
    let length = into.len().min(PAGE - address as usize % PAGE);
    let own = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: length };
    let other = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: length };
    // SAFETY: the kernel writes at most `length` bytes into our slice, and checks the other address.
    ok(unsafe { libc::process_vm_readv(pid, &own, 1, &other, 1, 0) } as i64).map(|count| count as usize)
}
