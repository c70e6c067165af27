//! Who a process is: ids, groups, capabilities, resource limits, session keyring.

#![allow(unsafe_code)]

use super::{Result, done, ok};
use libc::{c_int, c_ulong};

/// A set of capabilities, bit n for capability number n of capabilities(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapSet(pub u64);

/// `setresuid(2)` of all three, by the raw call: this process has one thread and no cached ids.
pub fn setresuid(uid: u32) -> Result<()> {
    // SAFETY: takes three integers.
    done(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })
}

/// `setresgid(2)` of all three.
pub fn setresgid(gid: u32) -> Result<()> {
    // SAFETY: takes three integers.
    done(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })
}

/// `setgroups(2)`.
pub fn setgroups(groups: &[u32]) -> Result<()> {
    // SAFETY: the pointer and the length describe the slice; gid_t is u32.
    done(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
}

/// `getgroups(2)` into a caller's buffer; returns how many there are.
pub fn getgroups(into: &mut [u32]) -> Result<usize> {
    // SAFETY: the pointer and the length describe the slice.
    ok(unsafe { libc::syscall(libc::SYS_getgroups, into.len(), into.as_mut_ptr()) }).map(|n| n as usize)
}

/// `getuid(2)`
pub fn getuid() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::getuid() }
}

/// `geteuid(2)`
pub fn geteuid() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::geteuid() }
}

/// `getgid(2)`
pub fn getgid() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::getgid() }
}

/// `getegid(2)`
pub fn getegid() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::getegid() }
}

/// Whether this process got more than its caller has: by a set-id bit, or by file capabilities without being root. A
/// security module may ask for a clean environment too (`AT_SECURE`), which alone is no gain.
pub fn elevated() -> bool {
    // SAFETY: takes a number.
    let secure = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    let set_id = || getuid() != geteuid() || getgid() != getegid();
    let gained = || geteuid() != 0 && effective().is_ok_and(|held| held != CapSet(0));
    // The kernel sets the mark in every such case (commoncap.c), so usually nothing more has to be asked.
    secure && (set_id() || gained())
}

/// The version of the 64-bit capability interface, Linux 2.6.26.
const VERSION_3: u32 = 0x2008_0522;

/// `capset(2)` of the calling thread.
pub fn capset(effective: CapSet, permitted: CapSet, inheritable: CapSet) -> Result<()> {
    let header: [u32; 2] = [VERSION_3, 0];
    let (low, high) = (|set: CapSet| set.0 as u32, |set: CapSet| (set.0 >> 32) as u32);
    let data = [low(effective), low(permitted), low(inheritable), high(effective), high(permitted), high(inheritable)];
    // SAFETY: the header and the two data records are laid out as capset(2) says and only read.
    done(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })
}

/// `capget(2)` of the calling thread: the effective set.
pub fn effective() -> Result<CapSet> {
    let header: [u32; 2] = [VERSION_3, 0];
    let mut data = [0u32; 6];
    // SAFETY: the buffer holds the two records that version 3 writes.
    done(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    Ok(CapSet(u64::from(data[3]) << 32 | u64::from(data[0])))
}

/// `PR_CAPBSET_DROP`: takes one capability out of the bounding set. `EINVAL` past the kernel's last one.
pub fn drop_bounding(capability: u32) -> Result<()> {
    // SAFETY: takes integers.
    done(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as c_ulong, 0, 0, 0) })
}

/// Makes these capabilities, which the thread holds, outlive an exec also for a user other than 0: inheritable and
/// ambient (`PR_CAP_AMBIENT_RAISE`, Linux 4.3).
pub fn keep_over_exec(held: CapSet) -> Result<()> {
    capset(held, held, held)?;
    let zero: c_ulong = 0;
    for capability in (0..64).filter(|number| held.0 >> number & 1 == 1) {
        // SAFETY: takes integers.
        done(unsafe {
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as c_ulong, capability as c_ulong, zero, zero)
        })?;
    }
    Ok(())
}

/// A resource limit; `u64::MAX` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What is enforced.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// `prlimit(2)` of the calling process: sets `resource`, read back.
pub fn setrlimit(resource: u32, limit: Limit) -> Result<()> {
    let new = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: the structure is only read; no old value is asked for.
    done(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &new, std::ptr::null::<libc::rlimit64>()) })?;
    if getrlimit(resource)? == limit { Ok(()) } else { Err(super::NOT_TAKEN) }
}

/// `prlimit(2)` of the calling process: reads `resource`.
pub fn getrlimit(resource: u32) -> Result<Limit> {
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the buffer is ours; no new value is passed.
    done(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, std::ptr::null::<libc::rlimit64>(), &mut old) })?;
    Ok(Limit { soft: old.rlim_cur, hard: old.rlim_max })
}

/// The number of a resource limit's name as in getrlimit(2), lower case without `RLIMIT_`.
pub fn resource(name: &str) -> Option<u32> {
    RESOURCES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// Every resource limit of getrlimit(2).
pub const RESOURCES: [(&str, u32); 16] = [
    ("as", libc::RLIMIT_AS as _),
    ("core", libc::RLIMIT_CORE as _),
    ("cpu", libc::RLIMIT_CPU as _),
    ("data", libc::RLIMIT_DATA as _),
    ("fsize", libc::RLIMIT_FSIZE as _),
    ("locks", libc::RLIMIT_LOCKS as _),
    ("memlock", libc::RLIMIT_MEMLOCK as _),
    ("msgqueue", libc::RLIMIT_MSGQUEUE as _),
    ("nice", libc::RLIMIT_NICE as _),
    ("nofile", libc::RLIMIT_NOFILE as _),
    ("nproc", libc::RLIMIT_NPROC as _),
    ("rss", libc::RLIMIT_RSS as _),
    ("rtprio", libc::RLIMIT_RTPRIO as _),
    ("rttime", libc::RLIMIT_RTTIME as _),
    ("sigpending", libc::RLIMIT_SIGPENDING as _),
    ("stack", libc::RLIMIT_STACK as _),
];

/// `keyctl(KEYCTL_JOIN_SESSION_KEYRING)` of a fresh, nameless keyring. Counts against 200 keys a user.
pub fn new_session_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    done(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0) })
}
