//! Carries bytes between the caller's terminal and the sandbox's own, and a file on stdin through a pipe.
//! One invariant: a terminal made raw is put back on every way out.

use crate::sys::event::Watch;
use crate::sys::tty;
use crate::sys::{self, EAGAIN, EIO, Errno, fs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// At most this much is read at once: a pipe that is ready takes it without blocking (PIPE_BUF).
pub(super) const CHUNK: usize = 4096;

/// Milliseconds between two looks whether a job in the background has come to the front.
const BACKGROUND: u64 = 200;

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
    /// Why what came could not be written.
    pub failed: Option<Errno>,
}

impl Pump {
    pub(super) fn new() -> Pump {
        Pump { buffer: vec![0; CHUNK].into(), start: 0, end: 0, last: None, over: false, failed: None }
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
                Err(errno) => {
                    // Nobody reads any more: what comes is thrown away, so that the program is not held up.
                    self.start = self.end;
                    self.failed = Some(errno);
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
    /// Where what is shown comes from, when somebody else reads the master: `sbx attach`.
    copy: Option<OwnedFd>,
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
        let mut terminal = Terminal::of(master, None);
        terminal.resume();
        terminal
    }

    /// The same for a terminal that others are joined to as well, who see what it shows in copies. Its program draws anew
    /// when it learns of another size, so it learns of one.
    pub(super) fn shared(master: OwnedFd, copy: OwnedFd) -> Terminal {
        let mut terminal = Terminal::of(master, Some(copy));
        if let Some(size) = known_size()
            && tty::size(terminal.master.as_fd()) == Ok(size)
        {
            let _ = tty::set_size(terminal.master.as_fd(), size.with_one_more_line());
        }
        terminal.resume();
        terminal
    }

    fn of(master: OwnedFd, copy: Option<OwnedFd>) -> Terminal {
        let interactive = tty::is_terminal(stdin());
        let (input, output) = (Pump::new(), Pump::new());
        Terminal { master, copy, to: reopened(), input, output, interactive, raw: None }
    }

    /// Gives the size of the caller's terminal to the sandbox's.
    pub(super) fn resize(&self) {
        if let Some(size) = known_size() {
            let _ = tty::set_size(self.master.as_fd(), size);
        }
    }

    pub(super) fn watches(&self) -> [Watch; 2] {
        let master = self.master.as_fd();
        let input = if self.in_background() { Watch::off() } else { self.input.watch(stdin(), master) };
        let from = self.copy.as_ref().map_or(master, AsFd::as_fd);
        [input, self.output.watch(from, self.to.as_ref().map_or(stdout(), AsFd::as_fd))]
    }

    pub(super) fn work(&mut self, ready: [bool; 2]) {
        if ready[0] {
            let was_over = self.input.over;
            self.input.work(stdin(), self.master.as_fd());
            // What one of several has to say ends, and not the input.
            if self.input.over && !was_over && self.copy.is_none() {
                self.input.end_of_input();
            }
        }
        if ready[1] {
            let from = self.copy.as_ref().unwrap_or(&self.master).as_fd();
            self.output.work(from, self.to.as_ref().map_or(stdout(), AsFd::as_fd));
        }
    }

    /// Whether all that the sandbox wrote has been passed on.
    pub(super) fn drained(&self) -> bool {
        self.output.done()
    }

    /// Why what it showed could not be written.
    pub(super) fn failed(&self) -> Option<Errno> {
        self.output.failed
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

    /// How long until that has to be looked at.
    pub(super) fn patience(&self) -> Option<u64> {
        self.in_background().then_some(BACKGROUND)
    }

    /// Nothing has happened for a while.
    pub(super) fn idle(&mut self) {
        if self.in_background() {
            self.resume();
        }
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
        if sys::sabotaged(c"panic") || sys::sabotaged(c"panic-hook") {
            panic!("a panic that was asked for");
        }
        Some(RawMode)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        tty::restore_remembered();
    }
}
