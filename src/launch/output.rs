//! Where the program's descriptors lead: to the caller's terminal, or of a sandbox in the background into its log.
//!
//! A program that writes faster than the log takes it waits for the pipe; what is held here never grows.

use super::copies::{Copies, STREAMS};
use super::exit::Exit;
use super::monitor::{Monitor, ends};
use super::relay::Terminal;
use super::script::Script;
use crate::error::{Error, Result};
use crate::plan::{self, Plan};
use crate::spec::Stdin;
use crate::state::log::{Log, PIECE, Stream, Tag};
use crate::state::time::Moment;
use crate::state::{Claim, Record};
use crate::sys::event::{Watch, monotonic_ms, next_signal, poll};
use crate::sys::{EAGAIN, EINTR, fs, tty};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Milliseconds after which a line that does not end, such as a question, is logged as it stands.
const UNFINISHED: u64 = 200;
/// Milliseconds that are waited at the end for what a terminal still holds: somebody outside may hold it open.
const LAST_WORDS: u64 = 500;

/// See the head of the file.
pub(super) enum Outside {
    /// The caller's terminal.
    Caller(Terminal),
    /// A log.
    Log(Box<Output>),
}

impl Outside {
    /// What a terminal of the sandbox's own is joined to, once the program runs.
    pub(super) fn begin(outside: Option<Outside>, master: Option<OwnedFd>) -> Option<Outside> {
        match (outside, master) {
            (Some(Outside::Log(mut output)), master) => {
                output.begin(master);
                Some(Outside::Log(output))
            }
            (_, master) => master.map(Terminal::new).map(Outside::Caller),
        }
    }

    pub(super) fn watches(&self, copies: &Copies) -> [Watch; 2] {
        match self {
            Outside::Caller(terminal) => terminal.watches(),
            Outside::Log(output) => output.watches(copies),
        }
    }

    pub(super) fn work(&mut self, ready: [bool; 2], copies: &mut Copies) {
        match self {
            Outside::Caller(terminal) => terminal.work(ready),
            Outside::Log(output) => output.work(ready, copies),
        }
    }

    /// How long until this wants to work though nothing has come.
    pub(super) fn patience(&self, copies: &Copies) -> Option<u64> {
        match self {
            Outside::Caller(terminal) => terminal.patience(),
            Outside::Log(output) => output.due(copies).map(|due| due.saturating_sub(monotonic_ms())),
        }
    }

    /// Nothing has happened for a while.
    pub(super) fn idle(&mut self) {
        if let Outside::Caller(terminal) = self {
            terminal.idle();
        }
    }

    pub(super) fn resize(&self) {
        if let Outside::Caller(terminal) = self {
            terminal.resize();
        }
    }

    pub(super) fn pause(&mut self) {
        if let Outside::Caller(terminal) = self {
            terminal.pause();
        }
    }

    pub(super) fn resume(&mut self) {
        if let Outside::Caller(terminal) = self {
            terminal.resume();
        }
    }

    /// Whether all that the sandbox wrote has been passed on. A log takes all of it here: its writers are gone, and
    /// readers of copies are waited for no longer than so many milliseconds.
    pub(super) fn drained(&mut self, copies: &mut Copies, patience: u64) -> bool {
        match self {
            Outside::Caller(terminal) => terminal.drained(),
            Outside::Log(output) => {
                output.finish(copies, patience);
                true
            }
        }
    }
}

/// The outputs of a program in the background, and its log.
pub(super) struct Output {
    log: Log,
    /// Standard output or the terminal; standard error.
    sources: [Source; 2],
    /// Whether anything is logged yet. Not before the record says that the program runs: a flood could take its space.
    begun: bool,
    /// Kept for a program that is to have an input.
    stdin: Option<OwnedFd>,
}

/// Where bytes come from, and the last line as far as it has come.
struct Source {
    stream: Stream,
    from: Option<OwnedFd>,
    line: Box<[u8]>,
    filled: usize,
    /// Monotonic milliseconds at which the line is logged though it has not ended.
    due: Option<u64>,
}

impl Output {
    /// Makes the log, and the program's standard descriptors in the script; `None` where the caller's are passed on.
    pub(super) fn open(plan: &Plan, script: &mut Script, claim: &Claim<'_>) -> Result<Option<Outside>> {
        let Some(detach) = plan.detach else { return Ok(None) };
        let log = claim.open_log(detach.log_size)?;
        let fail = |errno| Error::Sys { doing: "make pipes".into(), on: "for the program".into(), errno };
        let mut sources = [Source::new(Stream::Output), Source::new(Stream::Error)];
        let mut stdin = None;
        if plan.process.terminal == plan::Terminal::None {
            let (read, write) = match detach.stdin {
                // Who is attached writes to it, several may, and none is to wait for another there.
                Stdin::Kept => fs::pipe()
                    .and_then(|(read, write)| tty::set_nonblocking(write.as_fd()).map(|()| (read, Some(write)))),
                Stdin::Empty => fs::openat(fs::HERE, c"/dev/null", fs::Open::Read).map(|null| (null, None)),
            }
            .map_err(fail)?;
            stdin = write;
            script.program.stdio[0] = Some(read);
            for (source, place) in sources.iter_mut().zip(&mut script.program.stdio[1..]) {
                let (read, write) = fs::pipe().map_err(fail)?;
                // The program can open its end for reading, and then take away what was there when we looked.
                tty::set_nonblocking(read.as_fd()).map_err(fail)?;
                (source.from, *place) = (Some(read), Some(write));
            }
        }
        Ok(Some(Outside::Log(Box::new(Output { log, sources, begun: false, stdin }))))
    }

    fn begin(&mut self, master: Option<OwnedFd>) {
        self.begun = true;
        let Some(master) = master else { return };
        let _ = tty::set_nonblocking(master.as_fd());
        self.sources[0].from = Some(master);
    }

    /// Whether the program has a terminal of the sandbox's own.
    pub(super) fn is_terminal(&self) -> bool {
        self.sources[0].from.as_ref().is_some_and(|from| tty::is_terminal(from.as_fd()))
    }

    /// Where the program's input is written to: its terminal, or the pipe of `--interactive`.
    pub(super) fn input(&self) -> Option<BorrowedFd<'_>> {
        let terminal = self.sources[0].from.as_ref().filter(|_| self.is_terminal());
        terminal.or(self.stdin.as_ref()).map(AsFd::as_fd)
    }

    fn watches(&self, copies: &Copies) -> [Watch; 2] {
        [0, 1].map(|n| match &self.sources[n].from {
            Some(from) if self.begun => copies.watch(n).unwrap_or(Watch::read(from.as_fd())),
            _ => Watch::off(),
        })
    }

    fn due(&self, copies: &Copies) -> Option<u64> {
        let lines = self.sources.iter().filter_map(|source| source.due);
        lines.chain((0..STREAMS).filter_map(|stream| copies.due(stream))).min()
    }

    fn work(&mut self, ready: [bool; 2], copies: &mut Copies) {
        let now = self.due(copies).map(|_| monotonic_ms());
        let is_over = |due: Option<u64>| due.zip(now).is_some_and(|(due, now)| now >= due);
        for (n, (source, ready)) in self.sources.iter_mut().zip(ready).enumerate() {
            if (ready || is_over(copies.due(n))) && copies.have_room(n) {
                source.read(&mut self.log, copies);
            } else if is_over(source.due) {
                source.give_up_line(&mut self.log);
            }
        }
        self.log.flush();
    }

    /// Takes all that is there. Not until the end of file: who is outside may have been given a pipe.
    fn finish(&mut self, copies: &mut Copies, patience: u64) {
        let last = monotonic_ms() + patience;
        for source in &mut self.sources {
            let until = monotonic_ms() + LAST_WORDS;
            let is_terminal = source.from.as_ref().is_some_and(|from| tty::is_terminal(from.as_fd()));
            while let Some(from) = &source.from {
                let left = if is_terminal { until.saturating_sub(monotonic_ms()) } else { 0 };
                match poll(&mut [Watch::read(from.as_fd())], Some(left)) {
                    Ok(1..) => {
                        copies.wait_for_room(source.stream as usize, last);
                        source.read(&mut self.log, copies);
                    }
                    Err(EINTR) => {}
                    Ok(0) | Err(_) => break,
                }
            }
            source.give_up_line(&mut self.log);
        }
        self.log.flush();
    }
}

impl Source {
    fn new(stream: Stream) -> Source {
        Source { stream, from: None, line: vec![0; PIECE].into(), filled: 0, due: None }
    }

    /// Reads once, passes that on, and logs the lines that end with it.
    fn read(&mut self, log: &mut Log, copies: &mut Copies) {
        let Some(from) = &self.from else { return };
        let end = self.filled.saturating_add(copies.most()).min(PIECE);
        match fs::read(from.as_fd(), &mut self.line[self.filled..end]) {
            Err(EAGAIN) => return,
            // A pty master whose last slave is closed reads EIO.
            Ok(0) | Err(_) => {
                self.from = None;
                return self.give_up_line(log);
            }
            Ok(length) => {
                copies.give(self.stream as usize, &self.line[self.filled..self.filled + length]);
                self.filled += length;
            }
        }
        let now = Moment::now();
        let mut start = 0;
        while let Some(length) = self.line[start..self.filled].iter().position(|byte| *byte == b'\n') {
            log.add(now, self.stream, Tag::Full, &self.line[start..start + length]);
            start += length + 1;
        }
        self.line.copy_within(start..self.filled, 0);
        self.filled -= start;
        if start > 0 {
            self.due = None;
        }
        match self.filled {
            0 => {}
            PIECE => self.give_up_line(log),
            _ => self.due = self.due.or_else(|| Some(monotonic_ms() + UNFINISHED)),
        }
    }

    /// Logs the line as far as it has come.
    fn give_up_line(&mut self, log: &mut Log) {
        self.due = None;
        if self.filled > 0 {
            log.add(Moment::now(), self.stream, Tag::Partial, &self.line[..self.filled]);
            self.filled = 0;
        }
    }
}

impl Monitor<'_> {
    /// What the program wrote last is still in the terminal when it ends. Who asks sbx to end gets less of it.
    pub(super) fn drain(&mut self) {
        // A reader that stands still is waited for, but not beyond a time limit, nor by who wants it to end.
        let hurry = self.timed_out || self.killed || self.stop_at.is_some();
        let patience = if hurry { 500 } else { 10_000 };
        let Some(terminal) = &mut self.terminal else { return };
        let copies = &mut self.service.copies;
        while !terminal.drained(copies, patience) {
            let [_, output] = terminal.watches(copies);
            let mut watches = [output, Watch::read(self.sandbox.signals)];
            match poll(&mut watches, Some(patience)) {
                Ok(0) => return,
                Ok(_) | Err(EINTR) => {}
                Err(_) => return,
            }
            if watches[1].ready()
                && let Ok(Some(signal)) = next_signal(self.sandbox.signals)
                && ends(signal)
            {
                return;
            }
            terminal.work([false, watches[0].ready()], copies);
        }
    }
}

/// Gives a record that stays its last form.
pub(super) fn record_end(claim: Option<&Claim<'_>>, record: &Record, exit: &Exit, outside: Option<&Outside>) {
    let Some(claim) = claim.filter(|_| record.keeps) else { return };
    let why = match (exit.timed_out, exit.limit) {
        (true, _) => Some("its time was over (--timeout)".to_owned()),
        (false, Some(limit)) => Some(format!("it reached a limit (--{})", limit.option)),
        (false, None) => None,
    };
    let mut last = record.clone().ended(exit.status(), why);
    if let Some(Outside::Log(output)) = outside {
        last.log_lost = output.log.lost();
    }
    if !record.detached {
        // Of a short run the record says as yet that it was about to start, and then its layers go.
        let _ = claim.write(&last);
    }
    claim.ended(last);
}

/// The program has its copies.
pub(super) fn let_go(script: &mut Script) {
    script.program.stdio = [const { None }; 3];
}
