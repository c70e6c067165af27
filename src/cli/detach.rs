//! `run --detach`: two processes. One becomes the supervisor and leaves the caller's session, directory and descriptors
//! when the program has started; the other waits for that, says the name, and gives the caller its status.

use super::report::Reporter;
use sbx::error::{Error, Result};
use sbx::launch::{Ended, Event, Observer};
use sbx::sys::event::{self, Signals, Watch};
use sbx::sys::fs::{self, HERE, Open};
use sbx::sys::process::{self, WaitFor, Which};
use sbx::sys::{daemon, retry, sabotaged};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// What ends a set-up, sent to the process that waits for it.
const ENDING: [i32; 4] = [event::SIGTERM, event::SIGINT, event::SIGHUP, event::SIGQUIT];

/// In which of the two one is.
pub enum Side {
    /// The caller's: all is done, with this status.
    Caller(u8),
    /// The supervisor.
    Supervisor(Leaving),
}

/// What the supervisor still has of its caller.
pub struct Leaving {
    /// Written to when the program has started; its end without that is a failure.
    word: Option<OwnedFd>,
    inherited: Vec<RawFd>,
}

fn fail(doing: &str, on: &str) -> impl FnOnce(sbx::error::Errno) -> Error {
    let (doing, on) = (doing.to_owned(), on.to_owned());
    move |errno| Error::Sys { doing, on, errno }
}

/// The descriptors that came with the start, but for the standard three. To be asked before anything is opened.
pub fn inherited() -> Result<Vec<RawFd>> {
    let fail = || fail("list", "/proc/self/fd");
    let list = fs::openat(HERE, c"/proc/self/fd", Open::List).map_err(fail())?;
    let mut entries = fs::Entries::new();
    let mut numbers = Vec::new();
    loop {
        let batch = fs::getdents(list.as_fd(), &mut entries).map_err(fail())?;
        if batch.is_end() {
            numbers.retain(|number| *number > 2 && *number != list.as_raw_fd());
            return Ok(numbers);
        }
        numbers.extend(batch.filter_map(|name| name.to_str().ok()?.parse::<RawFd>().ok()));
    }
}

/// Makes the second process. It returns in both.
///
/// # Errors
/// Where there can be no second process, or it has ended before the program started and could not say why.
pub fn part(name: &str, inherited: Vec<RawFd>) -> Result<Side> {
    let signals = Signals::take(&ENDING).map_err(fail("take signals", "for the start"))?;
    let (read, write) = fs::pipe().map_err(fail("make a pipe", "to the supervisor"))?;
    let caller = process::getpid();
    let child = daemon::fork().map_err(fail("start", "the supervisor"))?;
    if child != 0 {
        drop(write);
        return wait(name, child, &read, &signals).map(Side::Caller);
    }
    // They stay blocked: the launch takes them over, with what has come by then.
    std::mem::forget(signals);
    drop(read);
    let alone = sabotaged(c"detach-session") || process::setsid().is_ok();
    let orphan = || daemon::parent_death_signal(Some(event::SIGTERM)).is_err() || process::getppid() != caller;
    if !alone || !sabotaged(c"detach-orphan") && orphan() {
        process::exit_now(125);
    }
    Ok(Side::Supervisor(Leaving { word: Some(write), inherited }))
}

/// The caller's side. Signals that come meanwhile are the supervisor's: it stands in another session.
fn wait(name: &str, supervisor: i32, word: &OwnedFd, signals: &Signals) -> Result<u8> {
    loop {
        let mut watches = [Watch::read(word.as_fd()), Watch::read(signals.as_fd())];
        retry(|| event::poll(&mut watches, None)).map_err(fail("wait for", "the supervisor"))?;
        if watches[0].ready() {
            match fs::read(word.as_fd(), &mut [0]) {
                Ok(1) => return Ok(say_name(name)),
                _ => return ended(supervisor),
            }
        }
        if let Ok(Some(signal)) = event::next_signal(signals.as_fd()) {
            // Not reaped yet, so this is no other process.
            let _ = process::kill(supervisor, signal);
        }
    }
}

/// The program runs, so whatever becomes of the name is no failure of the start.
fn say_name(name: &str) -> u8 {
    if let Err(error) = super::print(&format!("{name}\n")) {
        super::say(&format!("{error}; the sandbox {name} runs"));
    }
    0
}

/// The supervisor has ended instead, and has said why.
fn ended(supervisor: i32) -> Result<u8> {
    let ended = process::wait(Which::Pid(supervisor), WaitFor::End).map_err(fail("wait for", "the supervisor"))?;
    match ended {
        Some((_, Ended::Code(status))) => Ok(status as u8),
        Some((_, Ended::Signal(signal @ (event::SIGINT | event::SIGQUIT)))) => {
            event::die_of(signal);
            Ok(128 + signal as u8)
        }
        Some((_, Ended::Signal(signal))) => {
            super::say(&format!("the supervisor was killed by signal {signal} before the program had started"));
            Ok(128 + signal as u8)
        }
        None => Ok(125),
    }
}

impl Leaving {
    /// Nothing of the caller is held any more: its terminal can go, its pipes end, its file systems be unmounted.
    fn leave(&mut self) {
        let Some(word) = self.word.take() else { return };
        let _ = daemon::parent_death_signal(None);
        if sabotaged(c"detach-leave") {
            let _ = fs::write_all(word.as_fd(), b".");
            return;
        }
        let _ = fs::chdir(c"/");
        if let Ok(null) = fs::openat(HERE, c"/dev/null", Open::ReadWrite) {
            for number in 0..3 {
                let _ = process::dup2(null.as_fd(), number);
            }
        }
        daemon::close_inherited(&self.inherited);
        let _ = fs::write_all(word.as_fd(), b".");
    }
}

/// Says what there is to say while the caller is there to read it.
pub struct LeavingReporter<'a, 'b> {
    /// Who says it.
    pub reporter: &'a mut Reporter<'b>,
    /// What is left behind afterwards.
    pub leaving: Leaving,
}

impl Observer for LeavingReporter<'_, '_> {
    fn event(&mut self, event: &Event<'_>) {
        self.reporter.event(event);
        if matches!(event, Event::Started { .. }) {
            self.reporter.leave();
            self.leaving.leave();
        }
    }
}
