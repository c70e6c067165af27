//! The supervisor's loop: hears the child, passes signals on, keeps the time, relays the terminal, waits for
//! the sandbox's full end. Allocates nothing while the program runs.

use super::channel::{Fullness, Message, hear, tell, tell_init};
use super::exit::{Event, Exit, Reached};
use super::explain::{Explainer, UNHEARD};
use super::faults::{died, not_executed, skipped, step_error, stopped};
use super::fuse::Fuse;
use super::limits::{Counts, too_small};
use super::memory::{MemoryWatch, Verdict};
use super::output::{Outside, record_end};
use super::relay::Pump;
use super::service::{Service, WATCHES};
use super::{Guard, Request, Upper};
use crate::error::{Error, Result};
use crate::plan::{Plan, Stage, UpperAt};
use crate::spec::Init;
use crate::state::time::Moment;
use crate::state::{Claim, Record};
use crate::sys;
use crate::sys::event::{self, Watch};
use crate::sys::process::{self, Ended};
use crate::sys::socket::Wait;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What goes wrong in the set-up is an error; from `Running` on everything is an exit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    SettingUp,
    AtGate,
    Running,
}

/// A sandbox as its supervisor holds it. The fields are given back in their order: init first, then what it used. The
/// name goes before the lock of the upper layer, for with it go the mount points that were made in there.
pub(super) struct Sandbox<'a> {
    pub init: Guard,
    /// Its cgroup.
    pub counts: Counts,
    /// Our end of the channel to init.
    pub channel: OwnedFd,
    /// The signals that sbx takes from a descriptor.
    pub signals: BorrowedFd<'a>,
    pub record: Record,
    /// `None` once the name is given back.
    pub claim: Option<Claim<'a>>,
    /// The lock of an upper layer that is kept.
    pub _upper: Upper,
}

/// The supervisor's state.
pub(super) struct Monitor<'a> {
    pub(super) plan: &'a Plan,
    pub(super) request: &'a Request<'a>,
    fuse: Option<Fuse>,
    pub(super) sandbox: Sandbox<'a>,
    pub(super) service: Service,
    phase: Phase,
    pub(super) channel_open: bool,
    pub(super) terminal: Option<Outside>,
    master: Option<OwnedFd>,
    stdin: Option<(Pump, OwnedFd)>,
    ended: Option<(Ended, Fullness)>,
    /// Monotonic milliseconds at which TERM, then KILL is due.
    deadline: Option<u64>,
    pub(super) timed_out: bool,
    pub(super) killed: bool,
    /// Monotonic milliseconds at which KILL follows the signal of `sbx stop`.
    pub(super) stop_at: Option<u64>,
    /// Monotonic milliseconds at which who keeps init from ending is woken; see [`Monitor::keep_end`].
    pub(super) wake_at: Option<u64>,
    /// The last signal of the keyboard.
    typed: Option<i32>,
    watch: Option<MemoryWatch>,
    pub(super) explainer: Explainer,
    limit: Option<Reached>,
    /// Monotonic milliseconds at which the own text is given back, while it is still in memory.
    pub(super) text: Option<u64>,
}

/// Milliseconds after which who waits for the program is one that waits long, and gives its memory back: a short run
/// would pay for that and gain nothing.
pub(super) const SETTLED: u64 = 50;

/// How many descriptors the supervisor watches besides those of its clients.
const OWN: usize = 8;

impl<'a> Monitor<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        request: &'a Request<'a>,
        sandbox: Sandbox<'a>,
        terminal: Option<Outside>,
    ) -> Monitor<'a> {
        Monitor {
            plan,
            request,
            fuse: None,
            sandbox,
            service: Service::default(),
            phase: Phase::SettingUp,
            channel_open: true,
            terminal,
            master: None,
            stdin: None,
            ended: None,
            deadline: None,
            timed_out: false,
            killed: false,
            stop_at: None,
            wake_at: None,
            typed: None,
            watch: MemoryWatch::of(plan),
            explainer: Explainer::default(),
            limit: None,
            text: None,
        }
    }

    /// Feeds a file on stdin through this pipe.
    pub(super) fn feeding(mut self, pipe: Option<OwnedFd>) -> Self {
        self.stdin = pipe.map(|pipe| (Pump::new(), pipe));
        self
    }

    /// Starts fuse-overlayfs when the child asks for it.
    pub(super) fn with_fuse(mut self, fuse: Option<Fuse>) -> Self {
        self.fuse = fuse;
        self
    }

    /// Serves until the sandbox is gone altogether.
    pub(super) fn run(mut self, observer: &mut dyn super::Observer) -> Result<Exit> {
        loop {
            let mut watches = self.watches();
            // The kernel need not look at the places of clients that are not there, and takes no more places than this
            // process may have descriptors.
            let count = OWN + self.service.used();
            match event::poll(&mut watches[..count], self.patience()) {
                Ok(0) => self.idle(),
                Ok(_) | Err(sys::EINTR) => {}
                Err(errno) => return Err(Error::Sys { doing: "wait for".into(), on: "the sandbox".into(), errno }),
            }
            if watches[0].ready() {
                self.listen(observer)?;
            }
            if watches[1].ready()
                && let Ok(Some(signal)) = event::next_signal(self.sandbox.signals)
            {
                self.signal(signal)?;
            }
            self.keep_time(observer);
            self.keep_stop();
            self.keep_end();
            self.keep_memory(observer);
            if watches[6].ready() && self.sandbox.counts.out_of_memory() {
                let _ = process::pidfd_send_signal(self.sandbox.init.fd(), event::SIGKILL);
            }
            match &watches[7] {
                // The last who could ask is gone.
                asked if asked.hung_up() => self.explainer.hold(None),
                asked if asked.ready() => self.explain(observer),
                _ => {}
            }
            self.settle(observer);
            self.serve(&watches[OWN..]);
            self.pump(&watches);
            if watches[2].ready() && !self.may_say_more() {
                return self.finish(observer);
            }
        }
    }

    /// Whether there is something to hear of a child that has ended, whoever else may hold its end of the channel open.
    fn may_say_more(&self) -> bool {
        self.channel_open && event::poll(&mut [Watch::read(self.sandbox.channel.as_fd())], Some(0)) != Ok(0)
    }

    fn watches(&self) -> [Watch; OWN + WATCHES] {
        let terminal = self.terminal.as_ref();
        let [input, output] = terminal.map_or([Watch::off(); 2], |terminal| terminal.watches(&self.service.copies));
        // What is read of a file before the root is made would be lost to a second attempt.
        let ready = self.stdin.as_ref().filter(|_| self.phase != Phase::SettingUp);
        let stdin = ready.map_or(Watch::off(), |(pump, pipe)| pump.watch(process::stdio(0), pipe.as_fd()));
        let own = [
            Watch::read_if(self.channel_open.then_some(self.sandbox.channel.as_fd())),
            Watch::read(self.sandbox.signals),
            Watch::read(self.sandbox.init.fd()),
            input,
            output,
            stdin,
            self.sandbox.counts.watch(),
            self.explainer.watch(),
        ];
        let mut all = [Watch::off(); OWN + WATCHES];
        all[..OWN].copy_from_slice(&own);
        all[OWN..].copy_from_slice(&self.service.watches());
        all
    }

    fn pump(&mut self, watches: &[Watch]) {
        if let Some(terminal) = &mut self.terminal {
            terminal.work([watches[3].ready(), watches[4].ready()], &mut self.service.copies);
            self.service.part();
        }
        if let Some((pump, pipe)) = &mut self.stdin {
            if watches[5].ready() {
                pump.work(process::stdio(0), pipe.as_fd());
            }
            if pump.done() {
                self.stdin = None;
            }
        }
    }

    /// Takes one message; the end of file is one too.
    fn listen(&mut self, observer: &mut dyn super::Observer) -> Result<()> {
        match hear(self.sandbox.channel.as_fd(), Wait::No) {
            Ok(Some((message, carried))) => self.message(message, carried, observer),
            Err(sys::EAGAIN) => Ok(()),
            Ok(None) | Err(_) => {
                self.channel_open = false;
                if (self.phase, self.plan.process.init) == (Phase::AtGate, Init::Program) {
                    self.started(None, observer);
                }
                Ok(())
            }
        }
    }

    fn message(
        &mut self,
        message: Message,
        carried: Option<OwnedFd>,
        observer: &mut dyn super::Observer,
    ) -> Result<()> {
        match message {
            Message::Failed(fault) => {
                let fuses = self.fuse.as_mut().and_then(|fuse| fuse.explains(&fault));
                return Err(fuses.unwrap_or_else(|| step_error(self.plan, fault)));
            }
            Message::Fuse => {
                if let Some(fuse) = &mut self.fuse {
                    fuse.start(carried)?;
                }
            }
            Message::UserNs => {
                if let Some(fuse) = &mut self.fuse {
                    fuse.runs_in(carried);
                }
            }
            Message::NotExecuted(errno) => return Err(not_executed(self.plan, errno)),
            Message::Skipped(fault) => {
                let skipped = skipped(self.plan, fault);
                observer.event(&Event::Skipped(&skipped));
                self.sandbox.record.skipped.push(skipped);
            }
            Message::Done(step) => observer.event(&Event::Step(usize::from(step))),
            Message::Terminal => self.master = carried,
            Message::Proc | Message::Store => {
                if let Some(watch) = &mut self.watch {
                    watch.hold(message, carried)?;
                }
            }
            Message::Listener => self.explainer.hold(carried),
            Message::Unheard => observer.event(&Event::Note(UNHEARD)),
            Message::AtGate => self.phase = Phase::AtGate,
            Message::Started(_) => self.started(carried, observer),
            Message::Ended(ended, full) => {
                self.ended = Some((ended, full));
                self.sandbox.counts.read_at_end(self.sandbox.channel.as_fd());
                self.service.close();
                // The kernel takes as long to end init as this takes. What lies outside its namespaces it may still hold.
                self.sandbox.claim.take_if(|claim| !claim.leaves_something());
                // Nothing more comes; what is left is to wait for the end of init.
                self.channel_open = false;
            }
            Message::Handle(number) => {
                carried.into_iter().for_each(|fd| self.service.handles.keep(number as usize, fd));
            }
            Message::Go
            | Message::Handles
            | Message::Tree
            | Message::Placed
            | Message::Start
            | Message::Signal(_)
            | Message::Forked(..) => {}
        }
        Ok(())
    }

    /// The exec has succeeded: from here on nothing is an error of sbx any more.
    fn started(&mut self, pidfd: Option<OwnedFd>, observer: &mut dyn super::Observer) {
        self.phase = Phase::Running;
        if let Some(watch) = &mut self.watch {
            watch.begin();
        }
        self.text = Some(event::monotonic_ms() + SETTLED);
        self.sandbox.record.started_at = Some(Moment::now().to_string());
        let init = self.sandbox.record.pid.unwrap_or(0);
        let pid = match pidfd {
            Some(pidfd) => {
                let pid = process::pid_of(pidfd.as_fd()).ok();
                let _ = tell(self.sandbox.channel.as_fd(), Message::Go, None);
                pid
            }
            None if self.plan.process.init == Init::Program => Some(init),
            None => None,
        };
        if pid.is_none() && self.request.told.pid {
            observer.event(&Event::Note(
                "the program's pid is not known: the kernel tells it neither by pidfd_open nor in /proc",
            ));
        }
        let last = self.plan.steps.iter().enumerate().filter(|(_, p)| p.stage == Stage::Exec);
        last.for_each(|(index, _)| observer.event(&Event::Step(index + 1)));
        // Who started it in the background is told that it runs, and may want to do something to it at once. The record
        // of one that stays says by now that it was about to start.
        if self.plan.keeps {
            self.text = Some(0);
            self.settle(observer);
            // What is read of the text from here on is given back too.
            self.settle_again();
        }
        observer.event(&Event::Started { pid, init });
        self.terminal = Outside::begin(self.terminal.take(), self.master.take());
        if let Some((timeout, _)) = self.plan.timeout {
            self.deadline = Some(event::monotonic_ms().saturating_add(timeout.as_millis() as u64));
        }
    }

    fn signal(&mut self, signal: i32) -> Result<()> {
        match (self.phase, signal) {
            (Phase::SettingUp | Phase::AtGate, event::SIGCHLD)
                if self.plan.joins() && process::is_stopped(self.sandbox.init.fd()) =>
            {
                return Err(stopped(self.plan));
            }
            (Phase::SettingUp, event::SIGCHLD) => {
                if let Some(error) = self.fuse.as_mut().and_then(Fuse::ended) {
                    return Err(error);
                }
            }
            (_, event::SIGCHLD) => {}
            (_, event::SIGWINCH) => {
                if let Some(terminal) = &self.terminal {
                    terminal.resize();
                }
            }
            (_, event::SIGTSTP) => self.stop(),
            (_, event::SIGCONT) => {
                // Perhaps by `fg`, of a job that was in the background.
                if let Some(terminal) = &mut self.terminal {
                    terminal.resume();
                }
                let _ = self.pass(event::SIGCONT);
            }
            (Phase::Running, signal) => {
                if matches!(signal, event::SIGINT | event::SIGQUIT) {
                    self.typed = Some(signal);
                }
                let _ = self.pass(signal);
            }
            (_, signal) if ends(signal) => return Err(Error::Interrupted(signal)),
            _ => {}
        }
        Ok(())
    }

    /// Passes a signal to the program: through init, or to the program itself where that is pid 1.
    pub(super) fn pass(&self, signal: i32) -> sys::Result<()> {
        if self.plan.process.init == Init::Program {
            process::pidfd_send_signal(self.sandbox.init.fd(), signal)
        } else {
            tell_init(self.sandbox.channel.as_fd(), Message::Signal(signal))
        }
    }

    /// Ctrl-Z: the tree first, then sbx itself; what comes after `raise` runs when sbx is continued.
    fn stop(&mut self) {
        if self.plan.process.init == Init::Program {
            let _ = process::pidfd_send_signal(self.sandbox.init.fd(), event::SIGSTOP);
        } else {
            let _ = tell_init(self.sandbox.channel.as_fd(), Message::Signal(event::SIGTSTP));
        }
        if let Some(terminal) = &mut self.terminal {
            terminal.pause();
        }
        let _ = event::raise(event::SIGSTOP);
        if let Some(terminal) = &mut self.terminal {
            terminal.resume();
        }
        let _ = self.pass(event::SIGCONT);
    }

    /// How long to wait for an event, in milliseconds.
    fn patience(&self) -> Option<u64> {
        let [left, settling, stop, wake, shut] =
            [self.deadline, self.text, self.stop_at, self.wake_at, self.service.due()]
                .map(|at| at.map(|at| at.saturating_sub(event::monotonic_ms())));
        let background = self.terminal.as_ref().and_then(|terminal| terminal.patience(&self.service.copies));
        let look = self.watch.as_ref().and_then(MemoryWatch::patience);
        [left, settling, stop, wake, shut, background, look].into_iter().flatten().min()
    }

    /// Nothing has happened for a while.
    fn idle(&mut self) {
        if let Some(terminal) = &mut self.terminal {
            terminal.idle();
        }
    }

    /// At the end of the time TERM, and KILL for all when that was not enough.
    fn keep_time(&mut self, observer: &mut dyn super::Observer) {
        let Some(deadline) = self.deadline.filter(|at| event::monotonic_ms() >= *at) else { return };
        let Some((timeout, kill_after)) = self.plan.timeout else { return };
        if !self.timed_out {
            self.timed_out = true;
            self.deadline = Some(deadline.saturating_add(kill_after.as_millis() as u64));
            observer.event(&Event::TimedOut(timeout));
            let _ = self.pass(event::SIGTERM);
            // A stopped program would never see it.
            let _ = self.pass(event::SIGCONT);
        } else if !self.killed {
            self.deadline = None;
            self.kill();
        }
    }

    /// Ends all at once when the memory is used up, or can be watched no longer.
    fn keep_memory(&mut self, observer: &mut dyn super::Observer) {
        let Some(watch) = &mut self.watch else { return };
        match watch.look() {
            Verdict::Under => return,
            Verdict::Over => self.limit = Some(watch.reached()),
            Verdict::Blind(errno) => {
                observer.event(&Event::Note(&format!("the memory can be watched no longer ({errno}): all is ended")));
            }
        }
        (self.watch, self.deadline) = (None, None);
        let _ = process::pidfd_send_signal(self.sandbox.init.fd(), event::SIGKILL);
    }

    /// Init is gone and with it everything inside. The pid namespace is empty when its init can be waited for.
    fn finish(mut self, observer: &mut dyn super::Observer) -> Result<Exit> {
        let init = self.sandbox.init.wait().unwrap_or(Ended::Signal(event::SIGKILL));
        if let Some(fuse) = self.fuse.take() {
            fuse.finish();
        }
        self.drain();
        self.tell_denied(observer);
        let (usage, reached) = self.sandbox.counts.at_end(self.plan, init, self.ended.map(|(ended, _)| ended));
        // What was watched may have ended by itself in the same moment.
        self.limit = self.limit.filter(|_| self.ended.is_none()).or(reached);
        if self.sandbox.counts.clear() {
            self.sandbox.record.group = None;
            self.sandbox.claim.iter().for_each(|claim| claim.leaves_only(&self.sandbox.record));
        }
        if let (Phase::SettingUp | Phase::AtGate, Some(limit)) = (self.phase, &self.limit) {
            return Err(too_small(limit));
        }
        let exit = match (self.phase, self.ended) {
            (Phase::Running, Some((ended, full))) => Ok(Exit { usage, ..self.exit(ended, full) }),
            // Without an init of ours its end is the program's; an init that said nothing was killed.
            (Phase::Running, None) => Ok(Exit { usage, ..self.exit(init, Fullness::Room) }),
            // Killed when the word to start was out: the program may have run, so this is no refusal.
            (Phase::AtGate, None) if matches!(init, Ended::Signal(_)) => Ok(self.exit(init, Fullness::Room)),
            (_, _) => Err(died(self.plan, init)),
        }?;
        record_end(self.sandbox.claim.as_ref(), &self.sandbox.record, &exit, self.terminal.as_ref());
        self.service.ended(exit.status());
        Ok(exit)
    }

    fn exit(&self, ended: Ended, full: Fullness) -> Exit {
        // A layer on disk, or a root without one, is not in the tmpfs that was looked at.
        let in_store = matches!(Upper::place(self.plan), Some(UpperAt::Store));
        let layer_full = in_store && full == Fullness::Full;
        let typed = matches!(ended, Ended::Signal(signal) if self.typed == Some(signal));
        Exit { ended, timed_out: self.timed_out, layer_full, limit: self.limit, usage: None, typed }
    }
}

/// Whether a signal asks for the end.
pub(super) fn ends(signal: i32) -> bool {
    [event::SIGTERM, event::SIGINT, event::SIGHUP, event::SIGQUIT].contains(&signal)
}
