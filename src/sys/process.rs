//! Processes: clone, wait, exec, prctl, namespaces, sessions.

#![allow(unsafe_code)]

use super::{Errno, Result, borrow, done, ok};
use libc::{c_int, c_long, c_ulong, c_void};
use std::ffi::CStr;
use std::ops::BitOr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{null, null_mut};

/// A set of namespaces, as the `CLONE_NEW*` bits of clone3(2), unshare(2) and setns(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespaces(pub u64);

impl Namespaces {
    /// No namespace.
    pub const NONE: Namespaces = Namespaces(0);
    /// user_namespaces(7)
    pub const USER: Namespaces = Namespaces(libc::CLONE_NEWUSER as u64);
    /// mount_namespaces(7)
    pub const MOUNT: Namespaces = Namespaces(libc::CLONE_NEWNS as u64);
    /// pid_namespaces(7)
    pub const PID: Namespaces = Namespaces(libc::CLONE_NEWPID as u64);
    /// uts_namespaces(7)
    pub const UTS: Namespaces = Namespaces(libc::CLONE_NEWUTS as u64);
    /// ipc_namespaces(7)
    pub const IPC: Namespaces = Namespaces(libc::CLONE_NEWIPC as u64);
    /// network_namespaces(7)
    pub const NET: Namespaces = Namespaces(libc::CLONE_NEWNET as u64);
    /// cgroup_namespaces(7)
    pub const CGROUP: Namespaces = Namespaces(libc::CLONE_NEWCGROUP as u64);
    /// time_namespaces(7), Linux 5.6
    pub const TIME: Namespaces = Namespaces(0x80);

    /// Whether all of `other` is in this set.
    pub fn has(self, other: Namespaces) -> bool {
        self.0 & other.0 == other.0
    }

    /// This set less the other.
    pub fn without(self, other: Namespaces) -> Namespaces {
        Namespaces(self.0 & !other.0)
    }
}

impl BitOr for Namespaces {
    type Output = Namespaces;
    fn bitor(self, other: Namespaces) -> Namespaces {
        Namespaces(self.0 | other.0)
    }
}

/// What a fork-like call returns in each of the two processes.
#[derive(Debug)]
pub enum Forked {
    /// This is the new process.
    Child {
        /// Namespaces that were asked for and could not be made by this call; the child has to make them itself.
        missing: Namespaces,
    },
    /// This is the caller.
    Parent {
        /// The child's pid as the caller sees it.
        pid: i32,
        /// Stands for that very process, also after its pid is used again.
        pidfd: OwnedFd,
    },
}

/// Whose child the new process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildOf {
    /// The caller's, which gets SIGCHLD.
    Caller,
    /// That of the caller's own parent (`CLONE_PARENT`).
    CallersParent,
}

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_PARENT: u64 = libc::CLONE_PARENT as u64;

/// `clone3(2)` without shared memory: the child goes on from here on a copy of the stack. Linux 5.3.
/// Where a filter above us answers ENOSYS (Docker's did for years), `clone(2)` does the same, less the
/// time namespace, whose bit is part of clone's exit signal: the child is told.
/// With a cgroup the child is in it from its first instruction on (`CLONE_INTO_CGROUP`, Linux 5.7), which clone(2)
/// cannot do.
pub fn clone3(new: Namespaces, child_of: ChildOf, into: Option<BorrowedFd<'_>>) -> Result<Forked> {
    let mut pidfd: c_int = -1;
    let (extra, signal) = match child_of {
        ChildOf::Caller => (0, libc::SIGCHLD as u64),
        ChildOf::CallersParent => (CLONE_PARENT, 0),
    };
    let (placed, group) = into.map_or((0, 0), |group| (CLONE_INTO_CGROUP, group.as_raw_fd() as u64));
    let flags = new.0 | CLONE_PIDFD | extra | placed;
    let args: [u64; 11] = [flags, &raw mut pidfd as u64, 0, 0, signal, 0, 0, 0, 0, 0, group];
    // SAFETY: `args` is a whole struct clone_args (88 bytes, 5.7) and `pidfd` outlives the call; without
    // CLONE_VM the child runs on its own copy of this stack.
    match ok(unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) }) {
        Err(super::ENOSYS) if into.is_none() => {
            let flags = new.without(Namespaces::TIME).0 | CLONE_PIDFD | extra | signal;
            let returned = clone_old(flags, &mut pidfd)?;
            let missing = if new.has(Namespaces::TIME) { Namespaces::TIME } else { Namespaces::NONE };
            forked(returned, pidfd, missing)
        }
        other => forked(other?, pidfd, Namespaces::NONE),
    }
}

/// Whether clone3(2) is there: no arguments are too few for it, EINVAL.
pub fn has_clone3() -> bool {
    // SAFETY: no structure is passed, and a size of 0 is refused before anything is read.
    let returned = unsafe { libc::syscall(libc::SYS_clone3, null::<u64>(), 0usize) };
    ok(returned).err() != Some(super::ENOSYS)
}

/// The call that [`clone3`] comes down to, for errors.
pub fn clone_call() -> &'static str {
    if has_clone3() { "clone3" } else { "clone" }
}

/// clone(2) with fork's meaning; the pidfd comes where the parent's tid pointer would be.
fn clone_old(flags: u64, pidfd: &mut c_int) -> Result<c_long> {
    // SAFETY: a null stack means "go on on a copy of this one"; `pidfd` outlives the call.
    ok(unsafe { libc::syscall(libc::SYS_clone, flags as c_ulong, 0 as c_ulong, pidfd as *mut c_int, 0, 0) })
}

fn forked(returned: c_long, pidfd: c_int, missing: Namespaces) -> Result<Forked> {
    Ok(match returned {
        0 => Forked::Child { missing },
        // SAFETY: the kernel filled in `pidfd` for us alone.
        pid => Forked::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } },
    })
}

/// `clone(2)` of a process that shares the working directory, root, umask and descriptor table with the
/// caller but no memory: what it mounts and pivots, the caller sees. Returns 0 in the child.
pub fn clone_shared_fs() -> Result<i32> {
    let flags = (libc::CLONE_FS | libc::CLONE_FILES | libc::SIGCHLD) as c_ulong;
    // SAFETY: as in `clone_old`; no pointer is passed.
    ok(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) }).map(|pid| pid as i32)
}

/// `clone(2)` with shared memory; the caller stands still until the child has called exec or ended, so
/// that the two never run in the same memory at once. The child runs `run` on a stack of its own, of `stack` bytes,
/// and ends with its result. The stack is mapped and never unmapped: of a mapping only the pages in use cost
/// something, of an array all of them.
pub fn clone_vfork<T>(stack: usize, run: fn(&mut T) -> c_int, arg: &mut T) -> Result<i32> {
    let mut entry = Entry { run, arg };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
    // SAFETY: an anonymous mapping at an address of the kernel's choice overlaps nothing.
    let base = unsafe { libc::mmap(null_mut(), stack, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    let top = base as usize + stack;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let pointer = (&raw mut entry).cast::<c_void>();
    // SAFETY: the stack is ours, ends at a page's end, and stays; `entry` outlives the child's use of it, for with
    // CLONE_VFORK this call returns only after the child's exec or end. `start` takes the pointer to an `Entry<T>` that is passed.
    ok(unsafe { libc::clone(start::<T>, top as *mut c_void, flags, pointer) }.into()).map(|pid| pid as i32)
}

/// What the child of [`clone_vfork`] runs.
struct Entry<'a, T> {
    run: fn(&mut T) -> c_int,
    arg: &'a mut T,
}

extern "C" fn start<T>(entry: *mut c_void) -> c_int {
    // SAFETY: `clone_vfork` passes a live `Entry<T>` that nobody else uses while the child runs.
    let entry = unsafe { &mut *entry.cast::<Entry<'_, T>>() };
    (entry.run)(entry.arg)
}

/// Ends this process at once: no destructor, no flush, no atexit. The only way out of the child.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: `_exit` touches no memory of ours.
    unsafe { libc::_exit(status) }
}

/// Which child to wait for.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// Any child.
    Any,
    /// The one with this pid.
    Pid(i32),
    /// The one this pidfd stands for.
    Pidfd(BorrowedFd<'a>),
}

/// How long to wait, and whether to take the status away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// Until it ends.
    End,
    /// Not at all: `None` when none has ended.
    Nothing,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By exit, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// `waitid(2)`: the pid and end of a child, `None` where none has ended yet.
pub fn wait(which: Which<'_>, how: WaitFor) -> Result<Option<(i32, Ended)>> {
    let (kind, id) = match which {
        Which::Any => (libc::P_ALL, 0),
        Which::Pid(pid) => (libc::P_PID, pid as libc::id_t),
        Which::Pidfd(fd) => (libc::P_PIDFD, fd.as_raw_fd() as libc::id_t),
    };
    let options = libc::WEXITED
        | match how {
            WaitFor::End => 0,
            WaitFor::Nothing => libc::WNOHANG,
        };
    // SAFETY: all zero is a valid siginfo_t, and stays so where WNOHANG finds nothing.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is ours and large enough.
    super::retry(|| done(unsafe { libc::waitid(kind, id, &mut info, options) }))?;
    // SAFETY: after waitid these fields are set, or zero where nothing ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let ended = if info.si_code == libc::CLD_EXITED { Ended::Code(status) } else { Ended::Signal(status) };
    Ok((pid != 0).then_some((pid, ended)))
}

/// Whether a child is stopped, by `waitid(2)`.
pub fn is_stopped(child: BorrowedFd<'_>) -> bool {
    let options = libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: all zero is a valid siginfo_t, and stays so where nothing is found.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is ours and large enough.
    let looked = done(unsafe { libc::waitid(libc::P_PIDFD, child.as_raw_fd() as libc::id_t, &mut info, options) });
    looked.is_ok() && info.si_code == libc::CLD_STOPPED
}

/// `pidfd_open(2)`. Linux 5.3.
pub fn pidfd_open(pid: i32) -> Result<OwnedFd> {
    // SAFETY: takes two integers.
    super::fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// `pidfd_send_signal(2)`: a signal that cannot hit a recycled pid. Linux 5.1.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: a null siginfo means the one kill(2) would send.
    done(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, null::<c_void>(), 0) })
}

/// `kill(2)`; pid -1 is everyone in the caller's pid namespace but the caller and pid 1.
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: takes two integers.
    done(unsafe { libc::kill(pid, signal) })
}

/// `getpid(2)`, not cached.
pub fn getpid() -> i32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::getpid() }
}

/// `getppid(2)`
pub fn getppid() -> i32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::getppid() }
}

/// Has this done in the child of a [`Command`], right before its exec. Parent only. What is done may use the calls
/// of this folder and nothing else: there is a copy of the parent's memory, but of its threads only one.
///
/// [`Command`]: std::process::Command
pub fn before_exec(command: &mut std::process::Command, doing: impl FnMut() -> Result<()> + Send + Sync + 'static) {
    use std::os::unix::process::CommandExt;
    let mut doing = doing;
    // SAFETY: the wrappers of this folder neither allocate nor lock, and the callers use no more.
    unsafe { command.pre_exec(move || doing().map_err(|errno| std::io::Error::from_raw_os_error(errno.0))) };
}

/// `execve(2)`. Returns only when it failed. Both arrays end in a null pointer.
pub fn execve(path: &CStr, argv: &Pointers, envp: &Pointers) -> Errno {
    // SAFETY: `Pointers` holds NUL-terminated strings and ends in a null pointer.
    unsafe { libc::execve(path.as_ptr(), argv.0.as_ptr(), envp.0.as_ptr()) };
    Errno::last()
}

/// The null-terminated array of strings that execve takes. Made before the clone.
#[derive(Debug)]
pub struct Pointers(Vec<*const libc::c_char>);

impl Pointers {
    /// Borrows the strings; whoever holds the result keeps them alive and unmoved.
    pub fn to(strings: &'static [std::ffi::CString]) -> Pointers {
        Pointers(strings.iter().map(|s| s.as_ptr()).chain([null()]).collect())
    }
}

/// `unshare(2)`.
pub fn unshare(new: Namespaces) -> Result<()> {
    // SAFETY: takes an integer; sbx has one thread, so no other loses what it shares.
    done(unsafe { libc::unshare(new.0 as c_int) })
}

/// `setns(2)` by a pidfd: enters those namespaces of that process. Linux 5.8.
pub fn setns(pidfd: BorrowedFd<'_>, into: Namespaces) -> Result<()> {
    // SAFETY: takes two integers.
    done(unsafe { libc::setns(pidfd.as_raw_fd(), into.0 as c_int) })
}

/// `setsid(2)`: a new session without a controlling terminal.
pub fn setsid() -> Result<()> {
    // SAFETY: takes nothing.
    done(unsafe { libc::setsid() })
}

/// `setpgid(2)` of the caller to a group of its own.
pub fn setpgid() -> Result<()> {
    // SAFETY: takes two integers.
    done(unsafe { libc::setpgid(0, 0) })
}

/// `umask(2)`; returns the old one.
pub fn umask(mask: u32) -> u32 {
    // SAFETY: takes an integer, cannot fail.
    unsafe { libc::umask(mask) }
}

/// `setpriority(2)` of the calling process.
pub fn setpriority(nice: i32) -> Result<()> {
    // SAFETY: takes three integers.
    done(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) })
}

/// `getpriority(2)` of the calling process, by the raw call, which returns 20 less the nice value.
pub fn getpriority() -> Result<i32> {
    // SAFETY: takes two integers.
    ok(unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) }).map(|raw| 20 - raw as i32)
}

/// `close_range(2)`. Linux 5.9.
pub fn close_range(first: u32, last: u32) -> Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: only the child calls it, on its way to exec; no owner of those descriptors runs again there.
    done(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })
}

/// `dup3(2)` onto a number of our choice, without close-on-exec.
pub fn dup2(from: BorrowedFd<'_>, to: i32) -> Result<()> {
    if from.as_raw_fd() == to {
        return clear_cloexec(from);
    }
    // SAFETY: replaces descriptor `to`, which the callers own: 0 to 2 and the passed ones.
    super::retry(|| done(unsafe { libc::dup3(from.as_raw_fd(), to, 0) }))
}

fn clear_cloexec(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: takes integers.
    done(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) })
}

fn prctl(option: c_int, a: c_ulong, b: c_ulong) -> Result<c_long> {
    let zero: c_ulong = 0;
    // SAFETY: the options used here take integers, but for PR_SET_NAME, whose caller passes a live C string.
    ok(unsafe { libc::prctl(option, a, b, zero, zero) }.into())
}

/// `PR_SET_PDEATHSIG`: SIGKILL when the parent's thread ends. Cleared by changes of credentials.
pub fn die_with_parent() -> Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong, 0).map(drop)
}

/// `PR_SET_NO_NEW_PRIVS`; /proc/self/status has the proof.
pub fn no_new_privs() -> Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// `PR_SET_DUMPABLE` to 1.
pub fn dumpable() -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 1, 0).map(drop)
}

/// `PR_SET_DUMPABLE` to 0, read back.
pub fn not_dumpable() -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0)?;
    match prctl(libc::PR_GET_DUMPABLE, 0, 0)? {
        0 => Ok(()),
        _ => Err(super::NOT_TAKEN),
    }
}

/// `PR_SET_NAME`: what `ps` and /proc/PID/comm show, at most 15 bytes.
pub fn set_name(name: &CStr) -> Result<()> {
    prctl(libc::PR_SET_NAME, name.as_ptr() as c_ulong, 0).map(drop)
}

/// Overwrites the memory that /proc/PID/cmdline shows with `name` and zeros (DESIGN 4.6).
/// Nothing but the arguments and the environment is touched.
pub fn overwrite_argv(area: &ArgvArea, name: &CStr) {
    let bytes = name.to_bytes();
    for at in 0..area.length {
        let byte = bytes.get(at).copied().unwrap_or(0);
        // SAFETY: `area` is this process's own argument block, as found by `argv_area`; it is writable,
        // and nobody reads the old strings any more: the front has parsed and copied them.
        unsafe { std::ptr::write_volatile((area.start as *mut u8).add(at), byte) };
    }
}

/// Where the kernel put the arguments and the environment of this process.
#[derive(Clone, Copy, Debug)]
pub struct ArgvArea {
    start: usize,
    length: usize,
}

/// Finds the argument block. The kernel lays a new stack out so (create_elf_tables), from below: random bytes, the
/// names of the platform, zeros, the arguments, the environment, the name of the program. All but the middle is named
/// by the auxiliary vector, which nobody changes; the pointers to the arguments and `environ` are the caller's, who may
/// have set a variable, after which they lie on the heap. Parent only.
pub fn argv_area() -> Option<ArgvArea> {
    const RANDOM_BYTES: usize = 16;
    // SAFETY: takes a number; 0 stands for an entry that is not there.
    let entry = |kind| unsafe { libc::getauxval(kind) } as usize;
    let end = entry(libc::AT_EXECFN);
    let names = [entry(libc::AT_PLATFORM), entry(libc::AT_BASE_PLATFORM)].into_iter().filter(|name| *name != 0);
    // SAFETY: these entries are C strings.
    let names = names.map(|name| name + unsafe { libc::strlen(name as *const libc::c_char) });
    let below = names.chain([entry(libc::AT_RANDOM) + RANDOM_BYTES]).max()?;
    let length = end.checked_sub(below).filter(|length| *length < 8 << 20)?;
    // SAFETY: both ends lie on the initial stack, which is mapped from its top down without a hole.
    let bytes = unsafe { std::slice::from_raw_parts(below as *const u8, length) };
    let zeros = bytes.iter().position(|&byte| byte != 0)?;
    Some(ArgvArea { start: below + zeros, length: length - zeros })
}

/// Whether this process has exactly one thread: the link count of /proc/self/task is 2 and one for each.
pub fn single_threaded() -> Result<bool> {
    // SAFETY: all zero is a valid stat buffer, and the call fills it in.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string and the buffer is ours.
    done(unsafe { libc::stat(c"/proc/self/task".as_ptr(), &mut stat) })?;
    Ok(stat.st_nlink == 3)
}

/// Standard input, output or error.
pub fn stdio(number: i32) -> BorrowedFd<'static> {
    borrow(number)
}

/// Takes the close-on-exec flag from a descriptor that the program is to get.
pub fn keep_open(fd: BorrowedFd<'_>) -> Result<()> {
    clear_cloexec(fd)
}

/// `close_range(2)` with `CLOSE_RANGE_CLOEXEC`: these are closed at the next exec. Linux 5.11.
pub fn close_on_exec(first: u32, last: u32) -> Result<()> {
    const CLOEXEC: libc::c_uint = 4;
    if first > last {
        return Ok(());
    }
    // SAFETY: takes integers; nothing is closed now.
    done(unsafe { libc::syscall(libc::SYS_close_range, first, last, CLOEXEC) })
}

/// The pid that a pidfd stands for, in the caller's pid namespace, from
/// /proc/self/fdinfo. Parent only.
///
/// # Errors
/// `ESRCH` where the process is gone or not visible here.
pub fn pid_of(pidfd: BorrowedFd<'_>) -> Result<i32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(path).map_err(|e| Errno(e.raw_os_error().unwrap_or(0)))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    line.and_then(|pid| pid.trim().parse().ok()).filter(|pid| *pid > 0).ok_or(super::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_block_is_found_whatever_became_of_the_environment() {
        let stat = std::fs::read_to_string("/proc/self/stat").expect("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        // Fields 48 and 51 of proc(5), counted from the third: arg_start and env_end.
        let [start, end]: [usize; 2] = [45, 48].map(|n| fields[n].parse().expect("an address"));
        for (name, value) in [("SBX_TEST_ONE", "1"), ("SBX_TEST_TWO", "2")] {
            let area = argv_area().expect("a block");
            assert_eq!((area.start, area.start + area.length), (start, end));
            // SAFETY: the tests of this crate read the environment through the standard library alone.
            unsafe { std::env::set_var(name, value) };
        }
    }
}
