//! Loading seccomp filters.

#![allow(unsafe_code)]

use super::{Result, done};
use libc::{c_uint, c_ushort};

/// One BPF instruction, as `struct sock_filter` of linux/filter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Insn {
    /// Operation.
    pub code: u16,
    /// How many instructions to skip when a jump's test holds.
    pub jt: u8,
    /// How many to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// `struct sock_fprog`
#[repr(C)]
struct Program {
    length: c_ushort,
    filter: *const Insn,
}

/// `seccomp(2)` with `SECCOMP_SET_MODE_FILTER` for the calling thread; needs no_new_privs. Filters add up:
/// the strictest answer of all that are loaded wins.
pub fn load(filter: &[Insn]) -> Result<()> {
    const SECCOMP_SET_MODE_FILTER: c_uint = 1;
    let program = Program { length: filter.len() as c_ushort, filter: filter.as_ptr() };
    // SAFETY: the program describes the slice, which the kernel copies.
    done(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) })
}
