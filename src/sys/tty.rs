//! Terminals: the sandbox's own pty, raw mode of the caller's, window sizes.

#![allow(unsafe_code)]

use super::{Result, done, fd, ok};
use libc::c_int;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Whether a descriptor is a terminal.
pub fn is_terminal(of: BorrowedFd<'_>) -> bool {
    // SAFETY: takes a descriptor.
    unsafe { libc::isatty(of.as_raw_fd()) == 1 }
}

/// Whether this process may read and change a terminal: from the background the kernel stops it for that (SIGTTIN,
/// SIGTTOU in termios(3)), unless it is not the terminal of its session.
pub fn in_foreground(terminal: BorrowedFd<'_>) -> bool {
    // SAFETY: takes a descriptor.
    let group = unsafe { libc::tcgetpgrp(terminal.as_raw_fd()) };
    // SAFETY: takes nothing, cannot fail.
    group == -1 || group == unsafe { libc::getpgrp() }
}

/// Unlocks a fresh pty master, so that its slave can be opened: `TIOCSPTLCK` with 0.
pub fn unlock(master: BorrowedFd<'_>) -> Result<()> {
    let zero: c_int = 0;
    // SAFETY: the ioctl reads one int.
    done(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &zero) })
}

/// The slave of a pty master, from the master's own devpts instance and by no path: `TIOCGPTPEER`, Linux 4.13.
pub fn peer(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    const TIOCGPTPEER: libc::c_ulong = 0x5441;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the ioctl takes an integer.
    fd(unsafe { libc::ioctl(master.as_raw_fd(), TIOCGPTPEER as _, flags) })
}

/// The number N of the slave /dev/pts/N: `TIOCGPTN`.
pub fn number(master: BorrowedFd<'_>) -> Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: the ioctl writes one unsigned int.
    ok(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN as _, &mut number) }.into()).map(|_| number)
}

/// Makes a terminal the controlling one of the caller's session, which has none yet: `TIOCSCTTY`.
pub fn set_controlling(slave: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the ioctl takes an integer.
    done(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY as _, 0) })
}

/// The modes of a terminal, to put back later.
#[derive(Clone, Debug)]
pub struct Modes(Termios);

/// `tcgetattr(3)`
pub fn modes(of: BorrowedFd<'_>) -> Result<Modes> {
    Ok(Modes(tcgetattr(of)?))
}

/// `tcsetattr(3)`, at once: what a terminal that nobody reads still holds would keep TCSADRAIN waiting.
pub fn set_modes(of: BorrowedFd<'_>, modes: &Modes) -> Result<()> {
    super::retry(|| Ok(tcsetattr(of, SetArg::TCSANOW, &modes.0)?))
}

/// The same modes made raw, as `cfmakeraw(3)` does: every byte passes, none means anything.
pub fn raw(modes: &Modes) -> Modes {
    let mut raw = modes.clone();
    cfmakeraw(&mut raw.0);
    raw
}

/// Rows, columns and pixels of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size([u16; 4]);

impl Size {
    /// What programs take for granted where nobody says otherwise: 24 lines of 80 columns.
    pub const USUAL: Size = Size([24, 80, 0, 0]);

    /// As large, with one more line.
    pub fn with_one_more_line(self) -> Size {
        let Size([lines, columns, width, height]) = self;
        Size([lines.saturating_add(1), columns, width, height])
    }
}

/// `TIOCGWINSZ`
pub fn size(of: BorrowedFd<'_>) -> Result<Size> {
    let mut size = Size([0; 4]);
    // SAFETY: struct winsize is four unsigned shorts.
    done(unsafe { libc::ioctl(of.as_raw_fd(), libc::TIOCGWINSZ as _, size.0.as_mut_ptr()) })?;
    Ok(size)
}

/// How many columns a terminal has; `None` where it does not tell.
pub fn columns(of: BorrowedFd<'_>) -> Option<u16> {
    size(of).ok().map(|size| size.0[1]).filter(|columns| *columns > 0)
}

/// How many lines it has.
pub fn lines(of: BorrowedFd<'_>) -> Option<u16> {
    size(of).ok().map(|size| size.0[0]).filter(|lines| *lines > 0)
}

/// `TIOCSWINSZ`: the kernel sends SIGWINCH to the terminal's foreground group where it changes.
pub fn set_size(of: BorrowedFd<'_>, size: Size) -> Result<()> {
    // SAFETY: as in `size`; only read.
    done(unsafe { libc::ioctl(of.as_raw_fd(), libc::TIOCSWINSZ as _, size.0.as_ptr()) })
}

/// Makes reads and writes on this open file return EAGAIN instead of waiting.
pub fn set_nonblocking(of: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: takes integers.
    let flags = ok(unsafe { libc::fcntl(of.as_raw_fd(), libc::F_GETFL) }.into())? as c_int;
    // SAFETY: takes integers.
    done(unsafe { libc::fcntl(of.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })
}

/// The modes to put back when sbx ends in a way that runs no destructor.
static REMEMBERED: std::sync::Mutex<Option<Modes>> = std::sync::Mutex::new(None);

/// Keeps the modes of stdin's terminal for [`restore_remembered`].
pub fn remember(modes: &Modes) {
    if let Ok(mut kept) = REMEMBERED.lock() {
        *kept = Some(modes.clone());
    }
}

/// Puts stdin's terminal back as it was when its modes were kept; nothing where none were. For drops and for the
/// panic hook.
pub fn restore_remembered() {
    if let Ok(mut kept) = REMEMBERED.try_lock()
        && let Some(modes) = kept.take()
        && in_foreground(super::borrow(0))
    {
        let _ = set_modes(super::borrow(0), &modes);
    }
}
