//! `sbx attach`, the client's side: joins the caller's terminal, or its standard descriptors, to those of a program in the
//! background, until that has ended or the caller leaves. To leave does nothing to the sandbox.

use super::SIGNALS;
use super::copies::STREAMS;
use super::monitor::ends;
use super::relay::{Pump, Terminal};
use crate::error::{Error, Result};
use crate::state::control::{Client, Reply};
use crate::sys::event::{self, Signals, Watch};
use crate::sys::{EINTR, EIO, EPIPE, ETIMEDOUT, Errno, process, tty};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What a supervisor hands out: the program's input, and a copy of each of its streams.
#[derive(Debug, Default)]
pub struct Ends([Option<OwnedFd>; 1 + STREAMS]);

/// How it came to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The sandbox has ended, with this exit status of CLI.md.
    Ended(u8),
    /// It has ended without a word: its supervisor was killed.
    Lost,
    /// What it wrote was not taken for [`STILL`](super::STILL) milliseconds, so the supervisor has let go.
    LetGo,
    /// This signal asked for it.
    Signal(i32),
    /// Nobody reads any more what comes.
    Unread,
}

impl Ends {
    /// Takes one by its number; of a number that is none nothing becomes.
    pub fn keep(&mut self, number: usize, fd: OwnedFd) {
        if let Some(place) = self.0.get_mut(number) {
            *place = Some(fd);
        }
    }
}

/// Both sides.
enum Joined {
    Terminal(Box<Terminal>),
    Streams([Option<Stream>; 1 + STREAMS]),
}

/// One of the standard descriptors, and what it is joined to.
struct Stream {
    pump: Pump,
    from: Side,
    to: Side,
}

enum Side {
    Caller(BorrowedFd<'static>),
    Program(OwnedFd),
}

impl AsFd for Side {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Side::Caller(fd) => *fd,
            Side::Program(fd) => fd.as_fd(),
        }
    }
}

impl Joined {
    fn new(ends: Ends) -> Joined {
        match ends.0 {
            [Some(master), Some(copy), None] => Joined::Terminal(Box::new(Terminal::shared(master, copy))),
            ends => {
                let mut number = 0..;
                Joined::Streams(ends.map(|end| {
                    let (own, number) = number.next().map(|n| (Side::Caller(process::stdio(n)), n))?;
                    let end = Side::Program(end?);
                    let (from, to) = if number == 0 { (own, end) } else { (end, own) };
                    Some(Stream { pump: Pump::new(), from, to })
                }))
            }
        }
    }

    fn terminal(&mut self) -> Option<&mut Terminal> {
        match self {
            Joined::Terminal(terminal) => Some(terminal),
            Joined::Streams(_) => None,
        }
    }

    fn watches(&self) -> [Watch; 1 + STREAMS] {
        match self {
            Joined::Terminal(terminal) => {
                let [input, output] = terminal.watches();
                [input, output, Watch::off()]
            }
            Joined::Streams(streams) => streams.each_ref().map(|stream| {
                stream.as_ref().map_or(Watch::off(), |stream| stream.pump.watch(stream.from.as_fd(), stream.to.as_fd()))
            }),
        }
    }

    fn work(&mut self, ready: [bool; 1 + STREAMS]) {
        match self {
            Joined::Terminal(terminal) => terminal.work([ready[0], ready[1]]),
            Joined::Streams(streams) => {
                let ready = streams.iter_mut().zip(ready).filter(|(_, ready)| *ready);
                ready.filter_map(|(stream, _)| stream.as_mut()).for_each(|stream| {
                    stream.pump.work(stream.from.as_fd(), stream.to.as_fd());
                });
            }
        }
    }

    /// Whether all that came is written.
    fn drained(&self) -> bool {
        match self {
            Joined::Terminal(terminal) => terminal.drained(),
            Joined::Streams([_, outputs @ ..]) => outputs.iter().flatten().all(|stream| stream.pump.done()),
        }
    }

    /// Why something that came could not be written.
    fn failed(&self) -> Option<Errno> {
        match self {
            Joined::Terminal(terminal) => terminal.failed(),
            Joined::Streams([_, outputs @ ..]) => outputs.iter().flatten().find_map(|stream| stream.pump.failed),
        }
    }
}

/// Stays until the end of one of the two. The caller's terminal is as before on every way out.
///
/// # Errors
/// Where the caller's signals cannot be taken, or what comes not be written.
pub fn attach(client: &Client, ends: Ends) -> Result<Left> {
    let fail = |doing: &str, on: &str, errno| Error::Sys { doing: doing.into(), on: on.into(), errno };
    // Without a terminal there is nothing to put back, and signals do what they do.
    let raw = ends.0[0].as_ref().is_some_and(|input| tty::is_terminal(input.as_fd()));
    let signals = raw.then(|| Signals::take(&SIGNALS)).transpose();
    let signals = signals.map_err(|errno| fail("take signals", "for the terminal", errno))?;
    let mut joined = Joined::new(ends);
    let mut end = None;
    loop {
        let [input, output, errors] = joined.watches();
        let control = Watch::read_if(end.is_none().then_some(client.fd()));
        let read = Watch::end(process::stdio(1));
        let mut watches = [control, Watch::read_if(signals.as_ref().map(AsFd::as_fd)), read, input, output, errors];
        let patience = joined.terminal().and_then(|terminal| terminal.patience());
        match event::poll(&mut watches, patience) {
            Ok(0) => joined.terminal().into_iter().for_each(Terminal::idle),
            Ok(_) | Err(EINTR) => {}
            Err(errno) => return Err(fail("wait for", "the sandbox", errno)),
        }
        let [control, signal, unread, ready @ ..] = watches.map(|watch| watch.ready());
        if control {
            end = heard(client);
        }
        if signal
            && let Some(signals) = &signals
            && let Ok(Some(signal)) = event::next_signal(signals.as_fd())
            && act(signal, joined.terminal())
        {
            return Ok(Left::Signal(signal));
        }
        joined.work(ready);
        match joined.failed() {
            Some(EPIPE | EIO) => return Ok(Left::Unread),
            Some(errno) => return Err(fail("write to", "the standard descriptors", errno)),
            None if unread => return Ok(Left::Unread),
            None => {}
        }
        if let Some(end) = end.filter(|_| joined.drained()) {
            return Ok(end);
        }
    }
}

/// What the supervisor has said, if that is the end. The copies end with it, once they are read.
fn heard(client: &Client) -> Option<Left> {
    match client.next(Some(0)) {
        Ok(Some(Reply::Ended(status))) => Some(Left::Ended(status)),
        Ok(Some(Reply::Refused(_))) => Some(Left::LetGo),
        Ok(Some(Reply::Done | Reply::Handle(_))) | Err(ETIMEDOUT) => None,
        Ok(None) | Err(_) => Some(Left::Lost),
    }
}

/// Does what a signal asks for; whether that is to leave.
fn act(signal: i32, terminal: Option<&mut Terminal>) -> bool {
    match (signal, terminal) {
        (event::SIGWINCH, Some(terminal)) => terminal.resize(),
        (event::SIGTSTP, Some(terminal)) => {
            terminal.pause();
            let _ = event::raise(event::SIGSTOP);
            terminal.resume();
        }
        (event::SIGCONT, Some(terminal)) => terminal.resume(),
        (signal, _) => return ends(signal) || matches!(signal, event::SIGUSR1 | event::SIGUSR2),
    }
    false
}
