//! Carries bytes between the caller's terminal and the sandbox's own, and a file on stdin through a pipe.
//! One invariant: a terminal made raw is put back on every way out.

use crate::sys::event::Watch;
use crate::sys::tty;
use crate::sys::{self, EAGAIN, EIO, fs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// At most this much is read at once: a pipe that is ready takes it without blocking (PIPE_BUF).
const CHUNK: usize = 4096;

/// One direction: bytes that were read and not yet written.
pub(super) struct Pump {
    /// On the heap: few runs relay anything, and a large frame costs all of them its pages.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The last byte that came.
    last: Option<u8>,
    /// Nothing more will come.
    pub over: bool,
}

impl Pump {
    pub(super) fn new() -> Pump {
        Pump { buffer: vec![0; CHUNK].into(), start: 0, end: 0, last: None, over: false }
    }

    /// What has to come before the pump can go on.
    pub(super) fn watch(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Watch {
        match (self.start < self.end, self.over) {
            (true, _) => Watch::write(to),
            (false, true) => Watch::off(),
            (false, false) => Watch::read(from),
        }
    }

    /// Does what the watch was waiting for. The end of either side ends the pump.
    pub(super) fn work(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
        if self.start < self.end {
            match fs::write(to, &self.buffer[self.start..self.end]) {
                Ok(written) => self.start += written,
                Err(EAGAIN) => {}
                Err(_) => {
                    // Nobody reads any more: what comes is thrown away, so that the program is not held up.
                    self.start = self.end;
                }
            }
            return;
        }
        (self.start, self.end) = (0, 0);
        match fs::read(from, &mut self.buffer) {
            // A pty master whose last slave is closed reads EIO.
            Ok(0) | Err(EIO) => self.over = true,
            Ok(length) => {
                self.end = length;
                self.last = self.buffer[..length].last().copied();
            }
            Err(EAGAIN) => {}
            Err(_) => self.over = true,
        }
    }

    /// Puts what a terminal takes for the end of its input into the empty buffer: once ends an unfinished line,
    /// and then once more.
    fn end_of_input(&mut self) {
        const END_OF_INPUT: u8 = 4;
        let line_is_open = self.last.is_some_and(|byte| byte != b'\n');
        self.buffer[..2].fill(END_OF_INPUT);
        (self.start, self.end) = (0, 1 + usize::from(line_is_open));
    }

    /// Whether all that was read is written and nothing more comes.
    pub(super) fn done(&self) -> bool {
        self.over && self.start == self.end
    }
}

/// The sandbox's terminal and the caller's.
pub(super) struct Terminal {
    /// Never waits, and neither does `to`: a reader that stands still, as after Ctrl-S, must not keep sbx from
    /// signals and from the time limit.
    master: OwnedFd,
    /// Standard output, opened once more; the caller's own open file is not ours to change.
    to: Option<OwnedFd>,
    input: Pump,
    output: Pump,
    /// Whether stdin is a terminal, of which nothing may be read or changed from the background: the kernel stops who
    /// tries, and with sbx its time limit.
    interactive: bool,
    /// The caller's terminal as it was, while it is ours.
    raw: Option<RawMode>,
}

/// Standard input and output of sbx.
fn stdin() -> BorrowedFd<'static> {
    sys::process::stdio(0)
}

fn stdout() -> BorrowedFd<'static> {
    sys::process::stdio(1)
}

/// The size of the caller's terminal, else the usual one: programs ask for it when they start, and of none at all some
/// make a fault.
pub(super) fn size() -> tty::Size {
    known_size().unwrap_or(tty::Size::USUAL)
}

fn known_size() -> Option<tty::Size> {
    [stdin(), stdout()].into_iter().find_map(|fd| tty::size(fd).ok())
}

impl Terminal {
    /// Starts to carry: the caller's terminal goes raw and gives its size on.
    pub(super) fn new(master: OwnedFd) -> Terminal {
        let _ = tty::set_nonblocking(master.as_fd());
        let interactive = tty::is_terminal(stdin());
        let (input, output) = (Pump::new(), Pump::new());
        let mut terminal = Terminal { master, to: reopened(), input, output, interactive, raw: None };
        terminal.resume();
        terminal
    }

    /// Gives the size of the caller's terminal to the sandbox's.
    pub(super) fn resize(&self) {
        if let Some(size) = known_size() {
            let _ = tty::set_size(self.master.as_fd(), size);
        }
    }

    fn to(&self) -> BorrowedFd<'_> {
        match &self.to {
            Some(to) => to.as_fd(),
            None => stdout(),
        }
    }

    pub(super) fn watches(&self) -> [Watch; 2] {
        let master = self.master.as_fd();
        let input = if self.in_background() { Watch::off() } else { self.input.watch(stdin(), master) };
        [input, self.output.watch(master, self.to())]
    }

    pub(super) fn work(&mut self, ready: [bool; 2]) {
        if ready[0] {
            let was_over = self.input.over;
            self.input.work(stdin(), self.master.as_fd());
            if self.input.over && !was_over {
                self.input.end_of_input();
            }
        }
        if ready[1] {
            let to = match &self.to {
                Some(to) => to.as_fd(),
                None => stdout(),
            };
            self.output.work(self.master.as_fd(), to);
        }
    }

    /// Whether all that the sandbox wrote has been passed on.
    pub(super) fn drained(&self) -> bool {
        self.output.done()
    }

    /// Puts the caller's terminal back while sbx is stopped.
    pub(super) fn pause(&mut self) {
        self.raw = None;
    }

    /// Whether sbx is in the background. A shell brings a running job to the front without a word, so this has to be
    /// looked at again and again.
    pub(super) fn in_background(&self) -> bool {
        self.interactive && self.raw.is_none()
    }

    /// Makes it raw, once sbx stands in the foreground.
    pub(super) fn resume(&mut self) {
        if self.in_background() && tty::in_foreground(stdin()) {
            self.raw = RawMode::enter();
        }
        self.resize();
    }
}

/// Standard output as an open file of our own that never waits, where it is a terminal or a pipe. A regular file
/// would start anew, and a socket cannot be opened again.
fn reopened() -> Option<OwnedFd> {
    let pipe = || fs::fstat(stdout()).is_ok_and(|stat| stat.kind == fs::Kind::Fifo);
    let known = tty::is_terminal(stdout()) || pipe();
    known.then(|| fs::openat(fs::HERE, c"/proc/self/fd/1", fs::Open::WriteNow).ok()).flatten()
}

/// The caller's terminal in raw mode; as it was when this is dropped, and also after a panic.
struct RawMode;

impl RawMode {
    fn enter() -> Option<RawMode> {
        let before = tty::modes(stdin()).ok()?;
        tty::remember(&before);
        let _ = tty::set_modes(stdin(), &tty::raw(&before));
        Some(RawMode)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        tty::restore_remembered();
    }
}
