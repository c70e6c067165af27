//! One more program in a sandbox that runs: the parent's side. Its child enters the namespaces, is confined as the first
//! program was, and is served by the same loop until it ends.

use super::channel::{Message, hear, tell};
use super::faults::{step_error, stopped};
use super::handles::{CGROUP, Handles, RULESET};
use super::monitor::{Monitor, Sandbox, ends};
use super::script::Script;
use super::{
    Event, Exit, Guard, Observer, Request, SIGNALS, Upper, child, gone, limits, prepare, record, single_thread,
};
use crate::cgroup::scope;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::cgroup::Delegation;
use crate::host::manager::door;
use crate::plan::{LandlockPlan, Plan, Step};
use crate::sys::event::{self, Signals, Watch};
use crate::sys::fs::{self, HERE, Open};
use crate::sys::process::{self, ChildOf, Forked, Namespaces};
use crate::sys::socket::Wait;
use crate::sys::{self, Errno};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// Where a sandbox stands, as its record has it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// pid of its init.
    pub init: i32,
    /// Its name.
    pub name: &'a str,
}

/// Runs one more program in a sandbox to its end; or with `--detach` until it runs.
///
/// This must be called by a process with a single thread, as [`launch`](super::launch).
///
/// # Errors
/// Everything that stops the set-up. Once the program runs there is only an [`Exit`].
pub fn enter(
    plan: &Plan,
    host: &Host,
    mut handles: Handles,
    place: Place<'_>,
    request: &Request<'_>,
    observer: &mut dyn Observer,
) -> Result<Exit> {
    let signals = Signals::take(&SIGNALS).map_err(|errno| Error::Sys {
        doing: "take signals".into(),
        on: "for the program".into(),
        errno,
    })?;
    let whole = handles.are_there();
    handles.forget_shared();
    // With one of them missing the program would run on the host.
    let ruled = plan.landlock.as_ref().is_some_and(LandlockPlan::has_rules);
    if !whole || !handles.lead_inside() || ruled && handles.fd(RULESET).is_none() {
        return Err(Error::Bug("a supervisor handed out less than all".into()));
    }
    let mut script = prepare::prepare(plan, host, &request.told)?;
    // Its rules are those of the first program, whatever has come to stand at their paths.
    script.ruleset = handles.take(RULESET);
    let feed = super::feed(plan, host, &mut script)?;
    if plan.is_detached() {
        nowhere(&mut script)?;
    }
    single_thread()?;
    let fail = |errno| Error::Step {
        place: plan.place(plan.number(|step| matches!(step, Step::Join(_)))),
        call: "clone3",
        errno,
    };
    let (ours, theirs) = sys::socket::pair().map_err(fail)?;
    let (forked, placed) = clone_into(handles.fd(CGROUP)).map_err(fail)?;
    let (pid, joining) = match forked {
        Forked::Child { .. } => {
            drop(ours);
            child::join(&script, theirs.as_fd(), &handles)
        }
        Forked::Parent { pid, pidfd } => (pid, Guard::new(pidfd)),
    };
    drop(theirs);
    if !placed {
        attach(&handles, place, host, pid)?;
    }
    tell(ours.as_fd(), Message::Go, None).map_err(|errno| gone(plan, errno))?;
    let (pid, program) = joined(plan, ours.as_fd(), joining, &signals, observer)?;
    // One that a program inside has killed already does not hear it; how it ended is seen below.
    for word in [Message::Go, Message::Start] {
        let _ = tell(ours.as_fd(), word, None);
    }
    let mut record = record(plan, host, &script);
    record.pid = Some(pid);
    let counts = limits::Counts::default();
    let signals = signals.as_fd();
    let sandbox =
        Sandbox { init: program, counts, channel: ours, signals, record, claim: None, _upper: Upper::default() };
    Monitor::new(plan, request, sandbox, None).feeding(feed).run(observer)
}

/// Of a program that nobody waits for: no input, and an output that goes nowhere. The log is that of the sandbox's first
/// program, whose end its supervisor waits for.
fn nowhere(script: &mut Script) -> Result<()> {
    let null = |how| {
        let fail = |errno| Error::Sys { doing: "open".into(), on: "/dev/null".into(), errno };
        fs::openat(HERE, c"/dev/null", how).map(Some).map_err(fail)
    };
    script.program.stdio = [null(Open::Read)?, null(Open::Write)?, null(Open::Write)?];
    Ok(())
}

/// Into the cgroup at once, where the kernel lets this process do that; else beside it.
fn clone_into(group: Option<BorrowedFd<'_>>) -> sys::Result<(Forked, bool)> {
    let clone = |group| process::clone3(Namespaces::NONE, ChildOf::Caller, group);
    match group {
        None => Ok((clone(None)?, true)),
        Some(group) => match clone(Some(group)) {
            Ok(forked) => Ok((forked, true)),
            Err(sys::EACCES | sys::EPERM | sys::EBUSY | sys::EOPNOTSUPP | sys::ENOSYS | sys::ENOENT) => {
                Ok((clone(None)?, false))
            }
            Err(errno) => Err(errno),
        },
    }
}

/// Moves the child into the sandbox's cgroup: into the one of its init, where the program has divided its own; and by
/// systemd where the caller stands in a session of which it may take nobody out.
fn attach(handles: &Handles, place: Place<'_>, host: &Host, pid: i32) -> Result<()> {
    let refuse = |why: String| Error::Unsupported {
        feature: format!("exec in {}", place.name),
        why: format!("the program cannot be put into the sandbox's cgroup: {why}"),
        hint: Some("sbx exec from where the sandbox was started".into()),
    };
    let Some(group) = handles.fd(CGROUP) else { return Ok(()) };
    let own = || fs::openat(group, c"cgroup.procs", Open::Write);
    let found = Delegation::look(&host.caller, host.uid);
    let name = crate::cgroup::name_of(place.name);
    let unit = format!("{name}.scope");
    let inits = || {
        // The pid is the record's: where the program can write that, it could name a process that has other limits.
        let is_own = |path: &std::path::PathBuf| path.iter().any(|part| part == name.as_str() || part == unit.as_str());
        let path = found.group_of(place.init).filter(is_own).ok_or(sys::ENOENT)?;
        fs::openat(HERE, &crate::host::files::c_path(&path.join("cgroup.procs")), Open::Write)
    };
    let write = |file: sys::Result<std::os::fd::OwnedFd>| {
        file.and_then(|file| fs::write_all(file.as_fd(), pid.to_string().as_bytes()))
    };
    let refused: Errno = match write(own()).or_else(|_| write(inits())) {
        Ok(()) => return Ok(()),
        Err(errno) => errno,
    };
    // A program that has divided its group stands in one below it, and so does its init.
    let init = found.group_of(place.init).unwrap_or_default();
    let mut above = init.ancestors().filter(|group| group.ends_with(&unit));
    let below = above.next().and_then(|scope| init.strip_prefix(scope).ok()).unwrap_or(Path::new(""));
    match door(&host.caller, host.uid) {
        Some(door) => scope::attach(&door, &unit, below, pid),
        None => Err(refuse(refused.to_string())),
    }
}

/// The process that has joined ends when it has made the program's, which is held from then on. In a cgroup that is
/// frozen meanwhile it may take any time.
fn joined(
    plan: &Plan,
    channel: BorrowedFd<'_>,
    mut joining: Guard,
    signals: &Signals,
    observer: &mut dyn Observer,
) -> Result<(i32, Guard)> {
    loop {
        let mut watches = [Watch::read(channel), Watch::read(joining.fd()), Watch::read(signals.as_fd())];
        sys::retry(|| event::poll(&mut watches, None)).map_err(|errno| gone(plan, errno))?;
        if watches[2].ready()
            && let Ok(Some(signal)) = event::next_signal(signals.as_fd())
            && ends(signal)
        {
            return Err(Error::Interrupted(signal));
        }
        if !watches[0].ready() && !watches[1].ready() {
            continue;
        }
        match hear(channel, Wait::No) {
            Ok(Some((Message::Forked(pid, _), Some(program)))) => {
                joining.wait();
                let program = Guard::new(program);
                // The signal that told of it may have been one with that of the end of the joining process.
                return if process::is_stopped(program.fd()) { Err(stopped(plan)) } else { Ok((pid, program)) };
            }
            Ok(Some((Message::Done(step), _))) => observer.event(&Event::Step(usize::from(step))),
            Ok(Some((Message::Failed(fault), _))) => return Err(step_error(plan, fault)),
            _ => return Err(gone(plan, sys::EPIPE)),
        }
    }
}
