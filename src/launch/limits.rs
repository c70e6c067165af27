//! The parent's part of the limits: the cgroup before the clone, systemd's scope after it, and at the end what they
//! have counted.

use super::channel::{Message, hear, tell};
use super::faults::step_error;
use super::{Mapped, Reached};
use crate::cgroup::{Group, Usage, scope};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::plan::Plan;
use crate::plan::limits::{Enforced, Way};
use crate::state::Limit;
use crate::sys::event::{SIGKILL, Watch};
use crate::sys::process::Ended;
use crate::sys::socket::Wait;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Where a sandbox's processes will be limited, as far as it can be had before there is one.
pub(super) enum Limiter {
    /// Nothing has to be done, or sbx watches by itself.
    None,
    /// An empty group, with its limits.
    Direct(Group),
    /// Somebody who will make one.
    Systemd(scope::Ready<'static>),
}

impl Limiter {
    /// Who is told of the sandbox before it is made: the answer comes while sbx goes on.
    ///
    /// # Errors
    /// As [`scope::connect`].
    pub(super) fn of(plan: &Plan) -> Result<Limiter> {
        match &plan.limits.way {
            Some(Way::Systemd(door)) => scope::connect(door, &unit(plan)).map(Limiter::Systemd),
            _ => Ok(Limiter::None),
        }
    }

    /// Makes the group of the direct way, with its limits. Were these set when the child runs, as a scope's are, the
    /// parent would keep its processor, and the child's helper would wait for that of the child: half a millisecond.
    ///
    /// # Errors
    /// As [`Group::make`] and [`Group::limit`].
    pub(super) fn make(self, plan: &Plan) -> Result<Limiter> {
        match &plan.limits.way {
            Some(Way::Direct(at)) => {
                let group = Group::make(at, &plan.name, &plan.limits.settings)?;
                group.limit(&plan.limits.settings)?;
                Ok(Limiter::Direct(group))
            }
            _ => Ok(self),
        }
    }

    /// For clone3(2).
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Limiter::Direct(group) => Some(group.fd()),
            _ => None,
        }
    }
}

/// Who enforces which limit, for the record.
pub(super) fn recorded(plan: &Plan) -> Vec<Limit> {
    let limit =
        |limit: &Enforced| Limit { option: limit.option.into(), value: limit.value.clone(), by: limit.by.into() };
    plan.limits.enforced.iter().map(limit).collect()
}

/// The name of a sandbox's scope.
pub(super) fn unit(plan: &Plan) -> String {
    format!("{}.scope", crate::cgroup::name_of(&plan.name))
}

impl Mapped<'_> {
    /// Lets the child begin. One that systemd puts into a scope is told when it stands there, and the limits are set
    /// while it does what they do not matter for; the program starts after that.
    ///
    /// # Errors
    /// As [`scope::Ready::begin`], [`Group::scope`] and [`Group::limit`]; what stopped the child meanwhile comes first.
    pub(super) fn place(
        &self,
        plan: &Plan,
        host: &Host,
        limiter: Limiter,
        signals: BorrowedFd<'_>,
    ) -> Result<Option<Group>> {
        let ready = match limiter {
            Limiter::None => {
                self.begin(plan);
                return Ok(None);
            }
            Limiter::Direct(group) => {
                self.begin(plan);
                return Ok(Some(group));
            }
            Limiter::Systemd(ready) => ready,
        };
        let group = self.scope(plan, host, ready, signals);
        let limited = group.and_then(|group| group.limit(&plan.limits.settings).map(|()| group));
        limited.map(Some).map_err(|error| self.fault(plan).unwrap_or(error))
    }

    fn scope(&self, plan: &Plan, host: &Host, ready: scope::Ready<'_>, signals: BorrowedFd<'_>) -> Result<Group> {
        let unit = unit(plan);
        let starting = ready.begin(&scope::Scope {
            name: &unit,
            description: format!("sbx sandbox {}: {}", plan.name, plan.process.command[0].to_string_lossy()),
            slice: None,
            pid: self.pid,
            properties: &plan.limits.properties,
        })?;
        self.begin(plan);
        if let Some(manager) = &host.delegation.manager {
            scope::expect_move(manager);
        }
        starting.finish(Some(signals))?;
        let path = host.delegation.group_of(self.pid).filter(|path| path.ends_with(&unit));
        // A child that is gone has said why, or its status will.
        let _ = tell(self.channel.as_fd(), Message::Placed, None);
        Group::scope(path.ok_or_else(|| Error::Unsupported {
            feature: "a scope of your systemd".into(),
            why: format!("the sandbox does not stand in {unit} after systemd has said so"),
            hint: Some("--limits watch, or try again".into()),
        })?)
    }

    /// What the child said of its own failure, of which systemd saw only that it was gone.
    fn fault(&self, plan: &Plan) -> Option<Error> {
        loop {
            match hear(self.channel.as_fd(), Wait::No) {
                Ok(Some((Message::Failed(fault), _))) => return Some(step_error(plan, fault)),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

/// The sandbox's cgroup and what it has counted, as far as it had to be read before the end.
#[derive(Debug, Default)]
pub(super) struct Counts {
    group: Option<Group>,
    usage: Option<Usage>,
    /// The files that somebody wants to know of, where these are not all; each costs a start its time.
    wanted: Option<Vec<&'static str>>,
    /// What a scope's own memory limit does. systemd writes its idea of `memory.oom.group` again whenever it looks at a
    /// slice anew, such as for another unit's limits (seen with 252), and then the kernel ends a single process.
    events: Option<OwnedFd>,
    /// Whether it has ended all; it is told before anybody is dead.
    out_of_memory: bool,
}

impl Counts {
    /// Of a group that is watched for what its limits do, and all of it where it is asked for.
    pub(super) fn of(group: Option<Group>, plan: &Plan, all: bool) -> Counts {
        let files = [("memory", "memory.events"), ("pids", "pids.events"), ("cpu", "cpu.stat")];
        let limited = |(controller, _): &(&str, &str)| plan.limits.controllers.contains(controller);
        let wanted = files.into_iter().filter(limited).map(|(_, file)| file);
        let scope = group.as_ref().filter(|group| group.is_scope() && plan.limits.mem.is_some());
        let events = scope.and_then(Group::memory_events);
        Counts { group, usage: None, events, out_of_memory: false, wanted: (!all).then(|| wanted.collect()) }
    }

    fn look(&self) -> Option<Usage> {
        let group = self.group.as_ref()?;
        let usage = group.usage(|file| self.wanted.as_ref().is_none_or(|wanted| wanted.contains(&file)))?;
        // Then there is more to tell.
        if self.out_of_memory || usage.memory_kills + usage.pids_refused > 0 {
            group.usage(|_| true)
        } else {
            Some(usage)
        }
    }

    /// The cgroup, where there is one.
    pub(super) fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    /// Reads a scope that systemd is about to take away with its last process.
    pub(super) fn read(&mut self) {
        if self.group.as_ref().is_some_and(Group::is_scope) {
            self.usage = self.look();
        }
    }

    /// The same when the program has ended; init of a scope waits for the word that it is done.
    pub(super) fn read_at_end(&mut self, channel: BorrowedFd<'_>) {
        self.usage = self.look();
        if self.group.as_ref().is_some_and(Group::is_scope) {
            let _ = tell(channel, Message::Go, None);
        }
    }

    /// Takes a group of our own away; whether nothing is left of it.
    pub(super) fn clear(&mut self) -> bool {
        self.group.as_mut().filter(|group| !group.is_scope()).is_some_and(Group::clear)
    }

    /// Ready when [`Counts::out_of_memory`] may have something new.
    pub(super) fn watch(&self) -> Watch {
        self.events.as_ref().map_or(Watch::off(), |events| Watch::urgent(events.as_fd()))
    }

    /// Whether the limit was reached, so that all has to end.
    pub(super) fn out_of_memory(&mut self) -> bool {
        let reached = self.events.as_ref().is_some_and(|events| Usage::says_oom(events.as_fd()));
        if reached {
            (self.events, self.out_of_memory) = (None, true);
            self.read();
        }
        reached
    }

    /// What was used, and whether the memory limit was what killed the program, or init.
    pub(super) fn at_end(&self, plan: &Plan, init: Ended, program: Option<Ended>) -> (Option<Usage>, Option<Reached>) {
        let Some(group) = &self.group else { return (None, None) };
        let usage = self.usage.or_else(|| self.look());
        let killed = match &usage {
            _ if self.out_of_memory => true,
            Some(usage) => usage.memory_kills > 0,
            // Gone before it could be read; but the limit kills all at once, so init too.
            None => init == Ended::Signal(SIGKILL) && group.killed_above(),
        };
        // One that ended by itself has lived with the death of another.
        let dead = program.is_none_or(|ended| ended == Ended::Signal(SIGKILL));
        let value = plan.limits.mem.filter(|_| killed && dead);
        let peak = usage.and_then(|usage| usage.memory_peak);
        (usage, value.map(|value| Reached { option: "mem", value, peak: peak.unwrap_or(value) }))
    }
}

/// The limit was too small for what sbx itself does before the program runs.
pub(super) fn too_small(limit: &Reached) -> Error {
    let why = "too little: sbx's own set-up reached it before the program ran";
    Error::spec("--mem", crate::spec::text::shown_size(limit.value), why).or_try("at least --mem 8M")
}
