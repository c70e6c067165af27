//! The Landlock calls. The `landlock` crate names their rights; its own calls may touch the heap, which the child must
//! not.

#![allow(unsafe_code)]

use super::{Result, done, fd, ok};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// `struct landlock_ruleset_attr`, as of ABI 6. An older kernel takes it too, where what it does not know is 0.
#[repr(C)]
struct Handled {
    files: u64,
    network: u64,
    scoped: u64,
}

/// `LANDLOCK_ACCESS_FS_EXECUTE`.
pub const EXECUTE: u64 = 1;

/// `LANDLOCK_ACCESS_FS_REFER`: to move or link files between directories. ABI 2.
pub const REFER: u64 = 1 << 13;

/// `landlock_create_ruleset(2)`: a ruleset that denies these rights on files and TCP ports where no rule of it allows
/// them, and what of these scopes leads out of the domain. The descriptor is close-on-exec. Linux 5.13, ports 6.7, scopes
/// 6.12.
pub fn create(files: u64, network: u64, scoped: u64) -> Result<OwnedFd> {
    let handled = Handled { files, network, scoped };
    // SAFETY: the pointer and the size describe the struct, which is only read.
    fd(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const handled, size_of::<Handled>(), 0) })
}

/// `struct landlock_path_beneath_attr`, which the kernel declares packed.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// `landlock_add_rule(2)`: allows `rights` on `place` and all below it. Linux 5.13.
pub fn allow(ruleset: BorrowedFd<'_>, place: BorrowedFd<'_>, rights: u64) -> Result<()> {
    const RULE_PATH_BENEATH: u32 = 1;
    let rule = PathBeneath { allowed: rights, parent: place.as_raw_fd() };
    // SAFETY: the rule is whole and only read.
    done(unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), RULE_PATH_BENEATH, &raw const rule, 0)
    })
}

/// `struct landlock_net_port_attr`.
#[repr(C)]
struct Port {
    allowed: u64,
    port: u64,
}

/// `landlock_add_rule(2)`: allows `rights` on a TCP port. Linux 6.7.
pub fn allow_port(ruleset: BorrowedFd<'_>, port: u16, rights: u64) -> Result<()> {
    const RULE_NET_PORT: u32 = 2;
    let rule = Port { allowed: rights, port: port.into() };
    // SAFETY: the rule is whole and only read.
    done(unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), RULE_NET_PORT, &raw const rule, 0) })
}

/// `landlock_restrict_self(2)`: binds the calling thread and all it starts. Linux 5.13.
pub fn restrict_self(ruleset: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: takes a descriptor and an integer.
    done(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })
}

/// The highest ABI version of this kernel, by `landlock_create_ruleset(2)`; 0 where Landlock is not in
/// the kernel, not in `lsm=`, or kept away by a filter above us.
pub fn abi() -> u32 {
    const CREATE_RULESET_VERSION: u32 = 1;
    let none = std::ptr::null::<u8>();
    // SAFETY: asks for the version: no ruleset is passed.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0usize, CREATE_RULESET_VERSION) };
    ok(version).unwrap_or(0) as u32
}
