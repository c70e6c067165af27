//! What sbx itself guards in a filter, whatever a policy says: tables for [`rules`](super::rules), and for the filter
//! where there is no policy.
//!
//! The build script compiles this file too.

use super::bpf::Action;

/// The usual denial.
pub const EPERM: Action = Action::Errno(1);
/// As a kernel answers that has not got the call: libraries go another way.
pub const ENOSYS: Action = Action::Errno(38);

/// Calls without which no program gets to run, or to end, or sbx to hear why (`write`).
pub const NEEDED: [&str; 11] =
    ["brk", "close", "execve", "exit", "exit_group", "mmap", "mprotect", "munmap", "read", "rt_sigreturn", "write"];

/// The calls by which a file can be made with any mode and no filter sees it, with their answer.
///
/// `openat2` has its mode in memory, io_uring the whole call.
pub const HIDDEN_MODES: [(&str, Action); 4] =
    [("openat2", ENOSYS), ("io_uring_setup", EPERM), ("io_uring_enter", EPERM), ("io_uring_register", EPERM)];

/// Set-user-id and set-group-id.
pub const SET_ID_BITS: u64 = 0o6000;

/// `O_CREAT` and the bit of `O_TMPFILE` that is not `O_DIRECTORY`: without one of them an open has
/// no mode, and what stands in its register is left over from something else.
pub const MAKES_A_FILE: u64 = 0o100 | 0o20_000_000;

/// The calls that set a mode: name, argument of the flags if there are any, argument of the mode.
pub const MODES: [(&str, Option<u8>, u8); 9] = [
    ("chmod", None, 1),
    ("fchmod", None, 1),
    ("fchmodat", None, 2),
    ("fchmodat2", None, 2),
    ("creat", None, 1),
    ("mknod", None, 1),
    ("mknodat", None, 2),
    ("open", Some(1), 2),
    ("openat", Some(2), 3),
];

/// The calls by which memory comes to be that no process maps, with their answer: who watches the processes' memory
/// would not see it.
///
/// memfds and System V segments outlive every mapping of them; libraries take a file of /tmp instead.
pub const UNMAPPED: [(&str, Action); 3] = [("memfd_create", ENOSYS), ("memfd_secret", ENOSYS), ("shmget", ENOSYS)];

/// What sets the size of a socket's buffers: SO_SNDBUF, SO_RCVBUF, and as SO_…FORCE without regard to `net.core`.
pub const BUFFER_SIZES: &[u64] = &[7, 8, 32, 33];
/// Their level, SOL_SOCKET. Other levels have other options of the same numbers.
pub const SOCKET_LEVEL: &[u64] = &[1];

/// Calls whose argument rules no user's rule opens further: they make namespaces, or put input into a terminal.
pub const LOCKED: [&str; 5] = ["clone", "clone3", "ioctl", "setns", "unshare"];
