//! Who hears of what the sandbox refuses, and answers: a process of its own, made when there is something to hear.
//!
//! Looking at a program's memory and paths can take as long as that wants; so it is not the supervisor that looks. This
//! process dies with the supervisor, ends with the last process inside, and then hands over what it has counted. What
//! waits for its answer when it is gone gets ENOSYS.

use super::exit::Event;
use super::look::{Facts, Refused, comm, look};
use super::monitor::Monitor;
use super::{Guard, Observer};
use crate::error::visible;
use crate::plan::Plan;
use crate::plan::explain::{Answers, Attempt, Why};
use crate::sys::event::{self, SIGKILL, Watch};
use crate::sys::{self, daemon, fs, notify, process};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What is said where nothing can be heard.
pub(super) const UNHEARD: &str =
    "what is denied cannot be explained: a filter around sbx is listened to already, and there can be one";
/// How many different attempts are kept; more are only counted.
const MOST: usize = 1000;
/// Milliseconds that the counts are waited for when everything inside has ended.
const PATIENCE: u64 = 1000;
/// Bytes of all counts that are believed: a path has 4096 at most.
const LONGEST: usize = MOST * 8192;

/// The supervisor's side.
#[derive(Default)]
pub(super) struct Explainer {
    /// What is heard, as long as nobody listens.
    listener: Option<OwnedFd>,
    server: Option<(Guard, OwnedFd)>,
}

impl Explainer {
    /// Takes the end that the program's filter is heard by.
    pub(super) fn hold(&mut self, listener: Option<OwnedFd>) {
        self.listener = listener;
    }

    /// Ready when there is something to hear.
    pub(super) fn watch(&self) -> Watch {
        Watch::read_if(self.listener.as_ref().map(AsFd::as_fd))
    }

    /// Makes the process that answers; `tell` is told there of each new attempt. Without it every denied call answers
    /// ENOSYS, and the end says nothing.
    pub(super) fn begin(&mut self, plan: &Plan, tell: &mut dyn FnMut(&Attempt)) {
        let (Some(listener), Some(heard)) = (self.listener.take(), &plan.heard) else { return };
        let Ok((read, write)) = fs::pipe() else { return };
        match daemon::fork() {
            Ok(0) => {
                drop(read);
                Server { listener, answers: heard.answers(), facts: Facts::of(plan), seen: Vec::new(), more: 0 }
                    .run(write, tell)
            }
            Ok(pid) => self.server = process::pidfd_open(pid).ok().map(|pidfd| (Guard::new(pidfd), read)),
            Err(_) => {}
        }
    }

    /// What was tried, and how many times something more than is kept. Everything inside has ended.
    pub(super) fn finish(&mut self) -> (Vec<Attempt>, u64) {
        self.listener = None;
        let Some((mut server, report)) = self.server.take() else { return (Vec::new(), 0) };
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        let deadline = event::monotonic_ms() + PATIENCE;
        let whole = loop {
            let left = deadline.saturating_sub(event::monotonic_ms());
            match sys::retry(|| event::poll(&mut [Watch::read(report.as_fd())], Some(left))) {
                Ok(1) => {}
                _ => break false,
            }
            match fs::read(report.as_fd(), &mut buffer) {
                Ok(0) => break true,
                Ok(count) if text.len() < LONGEST => text.extend_from_slice(&buffer[..count]),
                _ => break false,
            }
        };
        if whole {
            server.wait();
        }
        serde_json::from_slice(&text).unwrap_or_default()
    }
}

impl Monitor<'_> {
    /// Something was denied, for the first time: whoever answers from now on is made.
    pub(super) fn explain(&mut self, observer: &mut dyn Observer) {
        let words = self.request.words;
        self.explainer.begin(self.plan, &mut |attempt| {
            words.iter().for_each(|words| observer.event(&Event::Tried(&words.denied(attempt))));
        });
    }

    pub(super) fn tell_denied(&mut self, observer: &mut dyn Observer) {
        let (attempts, more) = self.explainer.finish();
        let Some(words) = self.request.words else { return };
        let is_used = |attempt: &Attempt| matches!(attempt.why, Why::Used | Why::Changed);
        let (used, attempts): (Vec<Attempt>, Vec<Attempt>) = attempts.into_iter().partition(is_used);
        words.used(used);
        self.sandbox.record.denied = attempts.iter().map(|attempt| words.denied(attempt)).collect();
        observer.event(&Event::Denied(&self.sandbox.record.denied, more));
    }
}

/// The process that answers.
struct Server<'a> {
    listener: OwnedFd,
    answers: Answers,
    facts: Facts<'a>,
    seen: Vec<Seen>,
    more: u64,
}

impl Server<'_> {
    fn run(mut self, report: OwnedFd, tell: &mut dyn FnMut(&Attempt)) -> ! {
        let mut kept = [self.listener.as_raw_fd() as u32, report.as_raw_fd() as u32];
        kept.sort_unstable();
        // All else belongs to the supervisor, among it the lock of its name.
        for (first, last) in [(3, kept[0] - 1), (kept[0] + 1, kept[1] - 1), (kept[1] + 1, u32::MAX)] {
            if first <= last {
                let _ = process::close_range(first, last);
            }
        }
        let _ = process::set_name(c"sbx-explain");
        if daemon::parent_death_signal(Some(SIGKILL)).is_ok() && process::getppid() != 1 {
            self.serve(tell);
        }
        let attempts: Vec<&Attempt> = self.seen.iter().map(|seen| &seen.attempt).collect();
        if let Ok(text) = serde_json::to_vec(&(attempts, self.more)) {
            let _ = fs::write_all(report.as_fd(), &text);
        }
        process::exit_now(0)
    }

    /// Answers until nobody is left who could ask.
    fn serve(&mut self, tell: &mut dyn FnMut(&Attempt)) {
        loop {
            let mut watches = [Watch::read(self.listener.as_fd())];
            match event::poll(&mut watches, None) {
                Ok(_) if watches[0].hung_up() => return,
                Ok(_) | Err(sys::EINTR) => {}
                Err(_) => return,
            }
            if let Ok(call) = notify::receive(self.listener.as_fd()) {
                self.answer(&call, tell);
            }
        }
    }

    fn answer(&mut self, call: &notify::Call, tell: &mut dyn FnMut(&Attempt)) {
        let (name, action) = self.answers.of(call.arch, call.number, &call.args);
        let found = look(&self.facts, call, name, action);
        let program = found.refused.as_ref().map(|_| comm(call.pid)).unwrap_or_default();
        // Its maker may have gone, and its pid be another's by now.
        if !notify::is_valid(self.listener.as_fd(), call) {
            return;
        }
        let answer = if sys::sabotaged(c"explain-answer") { None } else { found.answer };
        let _ = notify::answer(self.listener.as_fd(), call, answer);
        if let Some(refused) = found.refused {
            self.count(call, name, &refused, program, tell);
        }
    }

    fn count(
        &mut self,
        call: &notify::Call,
        name: Option<&'static str>,
        refused: &Refused,
        program: [u8; 16],
        tell: &mut dyn FnMut(&Attempt),
    ) {
        let same = |seen: &&mut Seen| {
            (seen.arch, seen.number, seen.attempt.why, seen.program) == (call.arch, call.number, refused.why, program)
                && seen.object == refused.object.bytes()
        };
        if let Some(known) = self.seen.iter_mut().find(same) {
            known.attempt.count += 1;
        } else if self.seen.len() < MOST {
            let shown = |bytes: &[u8]| visible(&String::from_utf8_lossy(bytes));
            let attempt = Attempt {
                call: name.map_or_else(|| call.number.to_string(), str::to_owned),
                args: call.args,
                object: shown(refused.object.bytes()),
                program: shown(program.split(|byte| *byte == 0).next().unwrap_or_default()),
                errno: refused.errno,
                why: refused.why,
                count: 1,
            };
            if !matches!(attempt.why, Why::Used | Why::Changed) {
                tell(&attempt);
            }
            let object = refused.object.bytes().to_vec();
            self.seen.push(Seen { arch: call.arch, number: call.number, program, object, attempt });
        } else {
            self.more += 1;
        }
    }
}

/// An attempt, and what tells it from others.
struct Seen {
    arch: u32,
    number: u32,
    program: [u8; 16],
    object: Vec<u8>,
    attempt: Attempt,
}
