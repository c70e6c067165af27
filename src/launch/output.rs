//! Where the program's descriptors lead: to the caller's terminal, or of a sandbox in the background into its log.
//!
//! A program that writes faster than the log takes it waits for the pipe; what is held here never grows.

use super::exit::Exit;
use super::relay::Terminal;
use super::script::Script;
use crate::error::{Error, Result};
use crate::plan::{self, Plan};
use crate::spec::Stdin;
use crate::state::log::{Log, PIECE, Stream, Tag};
use crate::state::time::Moment;
use crate::state::{Claim, Record};
use crate::sys::event::{Watch, monotonic_ms, poll};
use crate::sys::{EAGAIN, EINTR, fs, tty};
use std::os::fd::{AsFd, OwnedFd};

/// Milliseconds between two looks whether a job in the background has come to the front.
const BACKGROUND: u64 = 200;
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

    pub(super) fn watches(&self) -> [Watch; 2] {
        match self {
            Outside::Caller(terminal) => terminal.watches(),
            Outside::Log(output) => output.watches(),
        }
    }

    pub(super) fn work(&mut self, ready: [bool; 2]) {
        match self {
            Outside::Caller(terminal) => terminal.work(ready),
            Outside::Log(output) => output.work(ready),
        }
    }

    /// How long until this wants to work though nothing has come.
    pub(super) fn patience(&self) -> Option<u64> {
        match self {
            Outside::Caller(terminal) => terminal.in_background().then_some(BACKGROUND),
            Outside::Log(output) => output.due().map(|due| due.saturating_sub(monotonic_ms())),
        }
    }

    /// Nothing has happened for a while.
    pub(super) fn idle(&mut self) {
        if let Outside::Caller(terminal) = self
            && terminal.in_background()
        {
            terminal.resume();
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

    /// Whether all that the sandbox wrote has been passed on. A log takes all of it here: its writers are gone, and it
    /// has no reader to wait for.
    pub(super) fn drained(&mut self) -> bool {
        match self {
            Outside::Caller(terminal) => terminal.drained(),
            Outside::Log(output) => {
                output.finish();
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
    _stdin: Option<OwnedFd>,
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
                Stdin::Kept => fs::pipe().map(|(read, write)| (read, Some(write))),
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
        Ok(Some(Outside::Log(Box::new(Output { log, sources, begun: false, _stdin: stdin }))))
    }

    fn begin(&mut self, master: Option<OwnedFd>) {
        self.begun = true;
        let Some(master) = master else { return };
        let _ = tty::set_nonblocking(master.as_fd());
        self.sources[0].from = Some(master);
    }

    fn watches(&self) -> [Watch; 2] {
        [0, 1].map(|n| Watch::read_if(self.sources[n].from.as_ref().filter(|_| self.begun).map(AsFd::as_fd)))
    }

    fn due(&self) -> Option<u64> {
        self.sources.iter().filter_map(|source| source.due).min()
    }

    fn work(&mut self, ready: [bool; 2]) {
        let now = self.due().map(|_| monotonic_ms());
        for (source, ready) in self.sources.iter_mut().zip(ready) {
            if ready {
                source.read(&mut self.log);
            } else if source.due.zip(now).is_some_and(|(due, now)| now >= due) {
                source.give_up_line(&mut self.log);
            }
        }
        self.log.flush();
    }

    /// Takes all that is there. Not until the end of file: who is outside may have been given a pipe.
    fn finish(&mut self) {
        for source in &mut self.sources {
            let until = monotonic_ms() + LAST_WORDS;
            let is_terminal = source.from.as_ref().is_some_and(|from| tty::is_terminal(from.as_fd()));
            while let Some(from) = &source.from {
                let left = if is_terminal { until.saturating_sub(monotonic_ms()) } else { 0 };
                match poll(&mut [Watch::read(from.as_fd())], Some(left)) {
                    Ok(1..) => source.read(&mut self.log),
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

    /// Reads once, and logs the lines that end with it.
    fn read(&mut self, log: &mut Log) {
        let Some(from) = &self.from else { return };
        match fs::read(from.as_fd(), &mut self.line[self.filled..]) {
            Err(EAGAIN) => return,
            // A pty master whose last slave is closed reads EIO.
            Ok(0) | Err(_) => {
                self.from = None;
                return self.give_up_line(log);
            }
            Ok(length) => self.filled += length,
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

/// Gives the record of a sandbox in the background its last form. Of the others none stays.
pub(super) fn record_end(claim: Option<&Claim<'_>>, record: &Record, exit: &Exit, outside: Option<&Outside>) {
    let Some(claim) = claim.filter(|_| record.detached) else { return };
    let why = match (exit.timed_out, exit.limit) {
        (true, _) => Some("its time was over (--timeout)".to_owned()),
        (false, Some(limit)) => Some(format!("it reached a limit (--{})", limit.option)),
        (false, None) => None,
    };
    let mut last = record.clone().ended(exit.status(), why);
    if let Some(Outside::Log(output)) = outside {
        last.log_lost = output.log.lost();
    }
    claim.ended(last);
}

/// The program has its copies.
pub(super) fn let_go(script: &mut Script) {
    script.program.stdio = [const { None }; 3];
}
