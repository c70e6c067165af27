//! The floor of the benchmark: the fewest calls that make a sandbox of the same namespaces, and nothing that protects.
//!
//! `floor ROOTFS COMMAND`: one clone3, own id maps, four mounts, pivot_root, exec; the parent waits. It has no run-time
//! start of Rust's own (`no_main`) and no error messages: a failed call ends it with that call's number below.

#![no_main]
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};
use std::ptr::null;

/// The kernel's `struct clone_args` as of Linux 5.3, the first eight fields.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

const NAMESPACES: c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWNET;

/// Ends the process with `step` if the call returned an error.
fn must(step: c_int, returned: libc::c_long) -> libc::c_long {
    if returned < 0 {
        // SAFETY: takes a number and does not return.
        unsafe { libc::_exit(step) }
    }
    returned
}

/// Writes `bytes` to the file `path` in one call.
fn write(step: c_int, path: &CStr, bytes: &[u8]) {
    // SAFETY: the path ends in NUL and both it and the bytes outlive the calls; the descriptor is this function's own.
    unsafe {
        let fd = must(step, libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC).into());
        must(step, libc::write(fd as c_int, bytes.as_ptr().cast(), bytes.len()) as libc::c_long);
        libc::close(fd as c_int);
    }
}

/// Writes the map `0 ID 1`, put together on the stack.
fn write_map(step: c_int, path: &CStr, id: u32) {
    let mut line = *b"0 0000000000 1";
    let mut rest = id;
    for digit in line[2..12].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    write(step, path, &line);
}

fn mount(step: c_int, source: *const c_char, target: &CStr, kind: *const c_char, flags: libc::c_ulong) {
    // SAFETY: all strings end in NUL and are only read; null is allowed for source, type and data.
    must(step, unsafe { libc::mount(source, target.as_ptr(), kind, flags, null()) }.into());
}

fn child(root: *const c_char, command: *const *const c_char, uid: u32, gid: u32) -> ! {
    write(10, c"/proc/self/setgroups", b"deny");
    write_map(11, c"/proc/self/uid_map", uid);
    write_map(12, c"/proc/self/gid_map", gid);
    // SAFETY: `root` and `command` are arguments of main: strings that end in NUL, in an array that ends in null.
    unsafe {
        mount(13, root, CStr::from_ptr(root), null(), libc::MS_BIND | libc::MS_REC);
        must(14, libc::chdir(root).into());
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        mount(15, c"proc".as_ptr(), c"proc", c"proc".as_ptr(), flags | libc::MS_NOEXEC);
        mount(16, c"tmpfs".as_ptr(), c"tmp", c"tmpfs".as_ptr(), flags);
        mount(17, c"tmpfs".as_ptr(), c"run", c"tmpfs".as_ptr(), flags);
        must(18, libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()));
        must(19, libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into());
        let environment: [*const c_char; 1] = [null()];
        must(20, libc::execve(*command, command, environment.as_ptr()).into());
        libc::_exit(21)
    }
}

/// What the C library's start code calls.
///
/// # Safety
/// `arguments` has `count` strings and then null.
// SAFETY: no other symbol of this name exists in a `no_main` program.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
    if count < 3 {
        return 2;
    }
    // SAFETY: as this function's own contract says. clone3 gets no stack, so the child goes on in a copy of this one; its
    // arguments outlive the call.
    unsafe {
        let (uid, gid) = (libc::getuid(), libc::getgid());
        let clone = CloneArgs { flags: NAMESPACES as u64, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
        let pid = must(3, libc::syscall(libc::SYS_clone3, &clone, size_of::<CloneArgs>()));
        if pid == 0 {
            child(*arguments.add(1), arguments.add(2), uid, gid);
        }
        let mut status = 0;
        must(4, libc::waitpid(pid as c_int, &mut status, 0).into());
        if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 5 }
    }
}
