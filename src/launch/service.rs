//! The supervisor's answers to other commands of the same user: signals, stop, pause, and how the sandbox ends.
//!
//! Nobody is waited for: a client that does not read loses what it was told.

use super::Observer;
use super::channel::{Message, tell_init};
use super::copies::Copies;
use super::exit::Event;
use super::handles::{CGROUP, COUNT, Handles, KEPT};
use super::monitor::{Monitor, SETTLED};
use crate::spec::Init;
use crate::spec::limits::RLIMITS as RESOURCES;
use crate::state::Claim;
use crate::state::control::{Listener, Reply, Request, answer, hand, hear, process_at};
use crate::sys::event::{self, Watch};
use crate::sys::stream::peer;
use crate::sys::{
    EAGAIN, EBUSY, EINVAL, EMFILE, ENFILE, ENOMEM, EOPNOTSUPP, ESRCH, ETIMEDOUT, Errno, alloc, cred, fs, process, sched,
};
use std::os::fd::{AsFd, OwnedFd};

/// How many clients are served at a time. Where there are more, who has asked for nothing yet has to go.
const CLIENTS: usize = 64;
/// How many of them may wait for the end: there is always room for one that is to bring it about.
const WAITING: usize = CLIENTS / 2;
/// Milliseconds after which one is tried to be let in again.
const SHUT: u64 = 100;
/// Milliseconds in which those who have a program in here mostly have taken its end.
const PROMPT: u64 = 50;
/// What of the supervisor's descriptors belongs to this file.
pub(super) const WATCHES: usize = CLIENTS + 1;

/// Who is connected.
pub(super) struct Service {
    /// What init has handed over, and what is added to that when somebody asks first.
    pub(super) handles: Handles,
    /// For those of the clients who look on.
    pub(super) copies: Copies,
    listener: Option<Listener>,
    /// Whether there ever was a listener.
    opened: bool,
    pub(super) clients: [Option<Client>; CLIENTS],
    /// How many have come.
    came: u64,
    /// Monotonic milliseconds until which nobody is let in, for there was no descriptor for one.
    shut_until: Option<u64>,
    /// Commands that have taken the handles, and may have a program in here: pid and pidfd.
    entered: Vec<(i32, OwnedFd)>,
}

pub(super) struct Client {
    pub(super) socket: OwnedFd,
    /// Whether it wants to hear of the end.
    waits: bool,
    /// The how manieth it is.
    number: u64,
}

impl Default for Service {
    fn default() -> Service {
        Service {
            handles: Handles::default(),
            copies: Copies::default(),
            listener: None,
            opened: false,
            clients: [const { None }; CLIENTS],
            came: 0,
            shut_until: None,
            entered: Vec::new(),
        }
    }
}

impl Service {
    /// From now on commands find the sandbox.
    pub(super) fn open(&mut self, claim: &Claim<'_>) -> crate::error::Result<()> {
        self.opened = true;
        self.listener = Some(claim.listen()?);
        Ok(())
    }

    /// How many of its watches are used.
    pub(super) fn used(&self) -> usize {
        match self.clients.iter().rposition(Option::is_some) {
            Some(last) => last + 2,
            None => usize::from(self.opened),
        }
    }

    fn was_opened(&self) -> bool {
        self.opened
    }

    /// Nobody new is let in.
    pub(super) fn close(&mut self) {
        self.listener = None;
    }

    pub(super) fn watches(&self) -> [Watch; WATCHES] {
        let room = self.shut_until.is_none() && self.place().is_some();
        std::array::from_fn(|n| match n {
            0 => Watch::read_if(self.listener.as_ref().filter(|_| room).map(Listener::fd)),
            n => Watch::read_if(self.clients[n - 1].as_ref().map(|client| client.socket.as_fd())),
        })
    }

    fn accept(&mut self) {
        let (Some(listener), Some(place)) = (&self.listener, self.place()) else { return };
        match listener.accept() {
            Ok(socket) => {
                self.came += 1;
                self.clients[place] = Some(Client { socket, waits: false, number: self.came });
            }
            // Who waits to be let in would be told of again at once.
            Err(EMFILE | ENFILE | ENOMEM) => self.shut_until = Some(event::monotonic_ms() + SHUT),
            Err(_) => {}
        }
    }

    /// When this wants to work though nobody has come.
    pub(super) fn due(&self) -> Option<u64> {
        self.shut_until
    }

    /// Where one more can be had: a free place, or that of the one who has been silent for longest. It may ask again.
    fn place(&self) -> Option<usize> {
        let silent = self.clients.iter().enumerate().filter(|(_, client)| client.as_ref().is_none_or(|c| !c.waits));
        silent.min_by_key(|(_, client)| client.as_ref().map_or(0, |client| client.number)).map(|(place, _)| place)
    }

    fn waiting(&self) -> usize {
        self.clients.iter().flatten().filter(|client| client.waits).count()
    }

    /// Whether somebody may have a program in here.
    fn has_entered(&self) -> bool {
        !self.entered.is_empty()
    }

    /// Has those who may go on.
    fn wake_entered(&self) {
        for (_, command) in &self.entered {
            let _ = process::pidfd_send_signal(command.as_fd(), event::SIGCONT);
        }
    }

    /// Notes who takes the handles, once, in the place of those who are gone.
    fn note_entered(&mut self, number: usize) {
        self.entered.retain(|(_, command)| event::poll(&mut [Watch::read(command.as_fd())], Some(0)) == Ok(0));
        let Some(client) = self.clients[number].as_ref() else { return };
        let Ok(pid) = peer(client.socket.as_fd()).map(|peer| peer.pid) else { return };
        if self.entered.iter().all(|(known, _)| *known != pid) {
            self.entered.extend(process_at(client.socket.as_fd()).ok().map(|command| (pid, command)));
        }
    }

    /// Tells those who wait how it ended. Who looks on has seen all.
    pub(super) fn ended(&mut self, status: u8) {
        self.part();
        for client in self.clients.iter().flatten().filter(|client| client.waits) {
            answer(client.socket.as_fd(), Reply::Ended(status));
        }
        self.copies = Copies::default();
    }

    /// Tells those who looked on and stood still that they were let go.
    pub(super) fn part(&mut self) {
        while let Some(number) = self.copies.next_let_go() {
            if let Some(client) = self.clients[number].take() {
                answer(client.socket.as_fd(), Reply::Refused(ETIMEDOUT));
            }
        }
    }

    /// A client has left.
    fn forget(&mut self, number: usize) {
        self.copies.forget(number);
        self.clients[number] = None;
    }
}

impl Monitor<'_> {
    /// The program runs longer than a moment: other commands may want to know of it. A short run is spared all that.
    pub(super) fn settle(&mut self, observer: &mut dyn Observer) {
        if self.text.is_none_or(|at| event::monotonic_ms() < at) {
            return;
        }
        self.text = None;
        if !self.service.was_opened() {
            self.ask_handles();
        }
        if let Some(claim) = self.sandbox.claim.as_ref().filter(|_| !self.service.was_opened()) {
            // The socket may find room where the record finds none, and without it nobody could stop the sandbox.
            let told = [claim.write(&self.sandbox.record), self.service.open(claim)];
            // Two that fail have one cause.
            if let Some(error) = told.into_iter().find_map(Result::err) {
                observer.event(&Event::Note(&format!("{error}; the program runs all the same")));
            }
        }
        alloc::drop_text();
    }

    /// Gives the own text back again when nothing has been asked for a moment.
    pub(super) fn settle_again(&mut self) {
        self.text = Some(event::monotonic_ms() + SETTLED);
    }

    /// Takes a request of each client that has one.
    pub(super) fn serve(&mut self, watches: &[Watch]) {
        for number in 0..CLIENTS {
            if !watches[number + 1].ready() {
                continue;
            }
            let Some(client) = &self.service.clients[number] else { continue };
            match hear(client.socket.as_fd(), self.plan.name()) {
                Ok(Some(request)) => self.answer(number, request),
                Err(EAGAIN) => {}
                Err(ESRCH) => answer(client.socket.as_fd(), Reply::Refused(ESRCH)),
                Ok(None) | Err(_) => self.service.forget(number),
            }
        }
        if watches[0].ready() {
            self.service.accept();
        } else if self.service.shut_until.is_some_and(|until| event::monotonic_ms() >= until) {
            self.service.shut_until = None;
        }
    }

    fn answer(&mut self, number: usize, request: Request) {
        let reply = match request {
            Request::Wait | Request::Attach if self.service.waiting() >= WAITING => Err(EBUSY),
            Request::Wait => Ok(()),
            Request::Enter => self.hand_out(number),
            Request::Attach => self.attach(number),
            request => self.act(request),
        };
        // What was needed for the answer is given back.
        self.settle_again();
        let Some(client) = &mut self.service.clients[number] else { return };
        let ends = matches!(request, Request::Kill | Request::Stop(..) | Request::Signal(event::SIGKILL));
        client.waits |= (ends || matches!(request, Request::Wait | Request::Attach)) && reply.is_ok();
        answer(client.socket.as_fd(), reply.map_or_else(Reply::Refused, |()| Reply::Done));
    }

    fn act(&mut self, request: Request) -> Result<(), Errno> {
        match request {
            Request::Wait | Request::Enter | Request::Attach => {}
            Request::Signal(event::SIGCONT) | Request::Resume => self.resume()?,
            Request::Signal(event::SIGKILL) | Request::Kill => self.kill(),
            // By the keyboard's, too, the whole of it is stopped, as by Ctrl-Z.
            Request::Signal(event::SIGSTOP | event::SIGTSTP) | Request::Pause => self.pause()?,
            Request::Signal(number) => self.pass(number)?,
            Request::Stop(signal, grace) => {
                self.service.copies.hurry();
                // Whatever the state directory takes or not: it has to end.
                let _ = self.resume();
                let _ = self.pass(signal);
                // A stopped program would never see it.
                let _ = self.pass(event::SIGCONT);
                let due = event::monotonic_ms().saturating_add(grace);
                // Of two who ask, the less patient one counts.
                self.stop_at = Some(self.stop_at.map_or(due, |earlier| earlier.min(due)));
            }
        }
        Ok(())
    }

    /// Has init open the doors. A program that is pid 1 itself can be looked into from outside.
    pub(super) fn ask_handles(&mut self) {
        if self.sandbox.claim.is_none() {
            return;
        }
        match (self.plan.process.init, self.sandbox.record.pid) {
            (Init::Own, _) => {
                let _ = tell_init(self.sandbox.channel.as_fd(), Message::Handles);
            }
            (Init::Program, Some(pid)) => self.service.handles.open(pid),
            (Init::Program, None) => {}
        }
    }

    /// Gives a client all that one more program needs.
    fn hand_out(&mut self, number: usize) -> Result<(), Errno> {
        let handles = &mut self.service.handles;
        if !handles.are_there() {
            return Err(EAGAIN);
        }
        if handles.fd(KEPT).is_none() {
            let limits = RESOURCES.into_iter().filter_map(|name| {
                let limit = cred::getrlimit(cred::resource(name)?).ok()?;
                Some((name.to_owned(), limit.soft, limit.hard))
            });
            let init = self.sandbox.record.pid.filter(|_| self.plan.binds_processors());
            let processors =
                init.map_or(Ok(Vec::new()), |pid| sched::affinity_of(pid).map(|mask| mask.iter().collect()))?;
            let text = serde_json::to_vec(&self.plan.kept(limits, processors)).map_err(|_| EINVAL)?;
            let file = fs::memfd(c"sbx-kept")?;
            fs::write_all(file.as_fd(), &text)?;
            // Every client gets the same open file.
            fs::seal(file.as_fd())?;
            handles.keep(KEPT, file);
        }
        if let (None, Some(group)) = (handles.fd(CGROUP), self.sandbox.counts.group()) {
            handles.keep(CGROUP, group.fd().try_clone_to_owned().map_err(Errno::from)?);
        }
        self.service.note_entered(number);
        let Some(client) = &self.service.clients[number] else { return Ok(()) };
        (0..COUNT).try_for_each(|kind| match self.service.handles.fd(kind) {
            Some(fd) => hand(client.socket.as_fd(), kind, fd),
            None => Ok(()),
        })
    }

    /// By the cgroup's freezer, from which nothing inside can wake; without one by stopping every process, all at once
    /// and init alone excepted, as kill(2) does it for pid 1.
    fn pause(&self) -> Result<(), Errno> {
        match (self.sandbox.counts.group(), self.plan.process.init) {
            (Some(group), _) => group.freeze(true)?,
            (None, Init::Own) => {
                tell_init(self.sandbox.channel.as_fd(), Message::Signal(event::SIGTSTP))?;
            }
            // Only from inside its pid namespace all can be stopped.
            (None, Init::Program) => return Err(EOPNOTSUPP),
        }
        // What nobody could see would stay so for ever.
        self.mark_paused(true).inspect_err(|_| {
            let _ = self.let_run();
        })
    }

    fn resume(&self) -> Result<(), Errno> {
        self.let_run()?;
        self.mark_paused(false)
    }

    fn let_run(&self) -> Result<(), Errno> {
        match self.sandbox.counts.group() {
            Some(group) => group.freeze(false),
            None => self.pass(event::SIGCONT),
        }
    }

    /// Without a name it has ended, and nobody asks any more.
    fn mark_paused(&self, paused: bool) -> Result<(), Errno> {
        self.sandbox.claim.as_ref().map_or(Ok(()), |claim| claim.mark_paused(paused))
    }

    /// Ends all at once, what is paused too: KILL needs no thawing (cgroup-v2.rst, cgroup.freeze).
    pub(super) fn kill(&mut self) {
        self.killed = true;
        self.sandbox.counts.read();
        let _ = process::pidfd_send_signal(self.sandbox.init.fd(), event::SIGKILL);
    }

    /// Init does not end before the parent of each program that came later has taken its end (`zap_pid_ns_processes`), and
    /// that may be stopped: Ctrl-Z, at `sbx exec`. It is continued.
    pub(super) fn keep_end(&mut self) {
        if self.channel_open || !self.service.has_entered() {
            return;
        }
        let now = event::monotonic_ms();
        if self.wake_at.is_some_and(|at| now >= at) {
            self.service.wake_entered();
            self.wake_at = None;
        }
        self.wake_at.get_or_insert(now + PROMPT);
    }

    /// After a grace that was not enough.
    pub(super) fn keep_stop(&mut self) {
        if self.stop_at.is_some_and(|at| event::monotonic_ms() >= at) {
            self.stop_at = None;
            self.kill();
        }
    }
}
