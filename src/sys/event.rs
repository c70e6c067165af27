//! Signals as descriptors, and waiting for several descriptors at once.

#![allow(unsafe_code)]

use super::{Result, borrow, fd, ok, retry};
use libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

pub use libc::{
    SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGQUIT, SIGSTOP, SIGSYS, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2,
    SIGWINCH,
};

fn set_of(signals: &[i32]) -> SigSet {
    signals.iter().filter_map(|&signal| Signal::try_from(signal).ok()).collect()
}

/// Unblocks every signal: a program starts with an empty mask, whatever sbx's caller had.
pub fn unblock_all() -> Result<()> {
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

/// `signalfd(2)`, non-blocking, for signals that are blocked.
pub fn signalfd(signals: &[i32]) -> Result<OwnedFd> {
    // SAFETY: the set is valid.
    fd(unsafe { libc::signalfd(-1, set_of(signals).as_ref(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })
}

/// The number of the next pending signal, if there is one.
pub fn next_signal(from: BorrowedFd<'_>) -> Result<Option<i32>> {
    // SAFETY: all zero is a valid record, which read fills in.
    let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let size = size_of_val(&info);
    // SAFETY: the buffer holds exactly one record.
    match retry(|| ok(unsafe { libc::read(from.as_raw_fd(), (&raw mut info).cast(), size) } as i64)) {
        Ok(_) => Ok(Some(info.ssi_signo as i32)),
        Err(super::EAGAIN) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Sets the signals of this mask, bit n-1 for signal n, to their default action. Ignored ones survive an exec,
/// SIGCHLD among them (the bug of bubblewrap issue 705), and Rust's runtime itself ignores SIGPIPE.
pub fn default_actions(ignored: u64) {
    (1..=64).filter(|signal| ignored >> (signal - 1) & 1 == 1).for_each(default_action);
}

/// Sets one signal to its default action.
pub fn default_action(signal: i32) {
    // SAFETY: SIG_DFL is a valid action.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// The number of a signal by its name in signal(7), such as `SIGTERM`.
pub fn signal_named(name: &str) -> Option<i32> {
    name.parse::<Signal>().ok().map(|signal| signal as i32)
}

/// Sends a signal to the calling process by number; the mask decides whether it acts now.
pub fn raise(signal: i32) -> Result<()> {
    super::process::kill(super::process::getpid(), signal)
}

/// Ends this process by a signal, without a core file. Returns only where the kernel spares it, as it does pid 1.
pub fn die_of(signal: i32) {
    let _ = super::process::not_dumpable();
    default_action(signal);
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&set_of(&[signal])), None);
    let _ = raise(signal);
}

/// Signals that are blocked and wait in a descriptor, and SIGCHLD at its default action, without which no child can be
/// waited for. Dropped, mask and action are the caller's again, and what came meanwhile is forgotten.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
    _before: Before,
}

/// What the caller had.
#[derive(Debug)]
struct Before {
    mask: SigSet,
    sigchld: SigAction,
}

impl Signals {
    /// Takes these signals from the process.
    pub fn take(signals: &[i32]) -> Result<Signals> {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        let mut mask = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set_of(signals)), Some(&mut mask))?;
        // SAFETY: the default action calls nothing.
        let sigchld = unsafe { sigaction(Signal::SIGCHLD, &default) };
        let before = Before { mask, sigchld: sigchld.unwrap_or(default) };
        sigchld?;
        Ok(Signals { fd: signalfd(signals)?, _before: before })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    /// What is pending would act as soon as the mask is gone, on a caller whose sandbox has ended already.
    fn drop(&mut self) {
        const MANY: usize = 16;
        // SAFETY: all zero is a valid record, which read fills in.
        let mut infos: [libc::signalfd_siginfo; MANY] = unsafe { std::mem::zeroed() };
        // SAFETY: the buffer is ours and holds that many records.
        unsafe { libc::read(self.fd.as_raw_fd(), infos.as_mut_ptr().cast(), size_of_val(&infos)) };
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        if !matches!(self.sigchld.handler(), SigHandler::SigDfl) {
            // SAFETY: it is the action that was there before.
            let _ = unsafe { sigaction(Signal::SIGCHLD, &self.sigchld) };
        }
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None);
    }
}

/// What to wait for on a descriptor, and after [`poll`] what came.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Watch(libc::pollfd);

impl Watch {
    /// Something to read.
    pub fn read(fd: BorrowedFd<'_>) -> Watch {
        Watch(libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
    }

    /// A file of the kernel's that has changed since it was read.
    pub fn urgent(fd: BorrowedFd<'_>) -> Watch {
        Watch(libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLPRI, revents: 0 })
    }

    /// Room to write.
    pub fn write(fd: BorrowedFd<'_>) -> Watch {
        Watch(libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 })
    }

    /// Nothing but that the other end is gone: nobody reads what is written, or a terminal has hung up.
    pub fn end(fd: BorrowedFd<'_>) -> Watch {
        Watch(libc::pollfd { fd: fd.as_raw_fd(), events: 0, revents: 0 })
    }

    /// Nothing: the place is kept, the descriptor not looked at.
    pub fn off() -> Watch {
        Watch(libc::pollfd { fd: -1, events: 0, revents: 0 })
    }

    /// Something to read if `wanted`, else nothing.
    pub fn read_if(wanted: Option<BorrowedFd<'_>>) -> Watch {
        wanted.map_or(Watch::off(), Watch::read)
    }

    /// Whether anything came: what was asked for, an error, or the other end's hang-up.
    pub fn ready(&self) -> bool {
        self.0.revents != 0
    }

    /// Whether the descriptor is closed, or an `O_PATH` one.
    pub fn invalid(&self) -> bool {
        self.0.revents & libc::POLLNVAL != 0
    }

    /// Whether nobody reads what is written, as of a pipe whose other end is closed.
    pub fn broken(&self) -> bool {
        self.0.revents & libc::POLLERR != 0
    }

    /// Whether the other end is gone, however much of what it wrote is still to be read: a socket whose peer is closed
    /// is readable too, for the end of file.
    pub fn hung_up(&self) -> bool {
        self.0.revents & libc::POLLHUP != 0
    }
}

/// `ppoll(2)`: waits until something came or the time, in milliseconds, is over. Returns how many.
pub fn poll(watches: &mut [Watch], timeout: Option<u64>) -> Result<usize> {
    let time = timeout.map(|ms| libc::timespec {
        tv_sec: (ms / 1000).min(i64::MAX as u64) as _,
        tv_nsec: (ms % 1000 * 1_000_000) as _,
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `Watch` is a transparent pollfd; the pointer and the length describe the slice.
    let n = unsafe { libc::ppoll(watches.as_mut_ptr().cast(), watches.len() as libc::nfds_t, time, std::ptr::null()) };
    ok(n.into()).map(|n| n as usize)
}

/// The time by `CLOCK_REALTIME`, which that of a file changed before it never exceeds: seconds and nanoseconds.
pub fn real_time() -> (i64, i64) {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut time) };
    (time.tv_sec, time.tv_nsec)
}

/// `CLOCK_MONOTONIC` in milliseconds: deadlines do not move with the wall clock (L24).
pub fn monotonic_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the buffer is ours; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// `CLOCK_THREAD_CPUTIME_ID` in microseconds: what the calling thread has cost so far.
pub fn cpu_time_us() -> u64 {
    let mut used = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the buffer is ours; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut used) };
    used.tv_sec as u64 * 1_000_000 + used.tv_nsec as u64 / 1000
}

/// Whether a descriptor number is open.
pub fn is_open(number: RawFd) -> bool {
    // SAFETY: takes integers.
    number >= 0 && unsafe { libc::fcntl(borrow(number).as_raw_fd(), libc::F_GETFD) } as c_int != -1
}
