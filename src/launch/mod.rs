//! The parent's side of a launch: Cloned → Mapped → Running. Each consumes the last, and dropping one kills
//! the child and clears what it left.

mod attach;
mod channel;
mod child;
mod confine;
mod copies;
mod covers;
mod enter;
mod exit;
mod explain;
mod faults;
mod fuse;
mod fuse_root;
mod handles;
mod ids;
mod init;
mod kernel_fs;
mod layers;
mod limits;
mod look;
mod maps;
mod memory;
mod monitor;
mod mounts;
mod output;
mod places;
mod prepare;
mod program;
mod relay;
mod root;
mod ruleset;
mod script;
mod seen;
mod service;
mod sources;
mod upper;

pub use crate::cgroup::Usage;
pub use crate::sys::process::Ended;
pub use attach::{Ends, Left, attach};
pub use copies::{MOST, STILL};
pub use enter::{Place, enter};
pub use exit::{Event, Exit, Reached};
pub use handles::{CGROUP, COUNT, Handles, KEPT, ROOT, STORE, USER};
pub use prepare::Told;

use crate::error::{Error, Result};
use crate::host::Host;
use crate::plan::explain::Attempt;
use crate::plan::limits::Way;
use crate::plan::{GroupSet, MapsBy, Plan, Step};
use crate::state::{Claim, Denied, Exposure, Layer, Record, Scope, Skipped, StateDir};
use crate::sys::event::{Signals, Watch};
use crate::sys::process::{ChildOf, Forked, Namespaces, WaitFor, Which};
use crate::sys::{self, event, process};
use channel::{Message, hear, tell};
use faults::step_error;
use limits::Limiter;
use monitor::{Monitor, Sandbox};
use output::Output;
use script::Script;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use upper::Upper;

/// What the caller of a launch is told while it goes on.
pub trait Observer {
    /// Something happened; see [`Event`].
    fn event(&mut self, event: &Event<'_>);
}

impl<F: FnMut(&Event<'_>)> Observer for F {
    fn event(&mut self, event: &Event<'_>) {
        self(event);
    }
}

/// Finds the words for what the sandbox has refused.
pub trait Words: std::fmt::Debug {
    /// Which rule has refused it, and what would allow it.
    fn denied(&self, attempt: &Attempt) -> Denied;

    /// Takes what was used, where that is to be learned.
    fn used(&self, attempts: Vec<Attempt>);
}

/// What a launch needs to know beside the plan.
#[derive(Debug)]
pub struct Request<'a> {
    /// Where records are kept.
    pub state: &'a StateDir,
    /// What the observer wants to be told.
    pub told: Told,
    /// How much the sandbox is exposed, for its record.
    pub exposed: Vec<Exposure>,
    /// The words for what was refused.
    pub words: Option<&'a dyn Words>,
}

/// The signals that sbx passes on or acts upon; all are blocked and taken from a descriptor.
const SIGNALS: [i32; 10] = [
    event::SIGTERM,
    event::SIGINT,
    event::SIGHUP,
    event::SIGQUIT,
    event::SIGUSR1,
    event::SIGUSR2,
    event::SIGWINCH,
    event::SIGTSTP,
    event::SIGCONT,
    event::SIGCHLD,
];

/// Runs a plan to its end: claims the name, sets the sandbox up, starts the program, serves it.
///
/// This must be called by a process with a single thread: the child goes on as a copy of the caller's memory.
///
/// # Errors
/// Everything that stops the set-up. Once the program runs there is only an [`Exit`].
pub fn launch(plan: &Plan, host: &Host, request: &Request<'_>, observer: &mut dyn Observer) -> Result<Exit> {
    tell_left(request, observer);
    // Held until all is given back: what is cleared at the end may need to wait for a helper too.
    let signals = Signals::take(&SIGNALS).map_err(|errno| Error::Sys {
        doing: "take signals".into(),
        on: "for the sandbox".into(),
        errno,
    })?;
    // Whether the kernel takes the overlay is seen by mounting it: a probe would cost every start what the second
    // attempt costs the few that need it.
    let mut other: Option<Plan> = None;
    let exit = loop {
        let plan = other.as_ref().unwrap_or(plan);
        let instead = match attempt(plan, host, request, &signals, observer) {
            Ok(exit) => break Ok(exit),
            Err(refused) => upper::instead(plan, refused).or_else(|refused| fuse::instead(plan, host, refused)),
        };
        match instead {
            Ok((plan, note)) => {
                observer.event(&Event::Note(&note));
                other = Some(plan);
            }
            Err(error) => break Err(error),
        }
    };
    tell_left(request, observer);
    exit
}

/// Says what could not be cleared: by a sweep before the start, and of this sandbox at its end.
fn tell_left(request: &Request<'_>, observer: &mut dyn Observer) {
    request.state.left().iter().for_each(|left| observer.event(&Event::Note(&left.to_string())));
}

fn attempt(
    plan: &Plan,
    host: &Host,
    request: &Request<'_>,
    signals: &Signals,
    observer: &mut dyn Observer,
) -> Result<Exit> {
    // Declared before the claim, as the layer, so that they are given back after that: see `Sandbox`.
    let mut limiter = Limiter::of(plan)?;
    let upper;
    let fuse = fuse::Fuse::of(plan, host)?;
    let mut script = prepare::prepare(plan, host, &request.told)?;
    script.ruleset = plan.landlock.as_ref().filter(|plan| plan.has_rules()).map(ruleset::make).transpose()?;
    let feed = feed(plan, host, &mut script)?;
    observer.event(&Event::Step(plan.number(|s| matches!(s, Step::Claim(_)))));
    let claim = request.state.claim(plan.name())?;
    // The record first: what is made after it is cleared also after a kill -9.
    let mut record = Record { exposed: request.exposed.clone(), ..record(plan, host, &script) };
    match &record.group {
        _ if record.upper.is_some() || record.scope.is_some() || !record.trees.is_empty() || record.keeps => {
            claim.write(&record)?;
        }
        Some(group) => claim.mark_group(group)?,
        None => {}
    }
    let outside = Output::open(plan, &mut script, &claim)?;
    let range = root::Range::take(plan, host)?;
    upper = Upper::make(plan, &script, range.as_ref())?;
    limiter = limiter.make(plan)?;
    script.left = sys::sched::current();
    let cloned = Cloned::new(plan, &script, claim, limiter.fd())?;
    let mapped = cloned.map(plan, host, &script, range.as_ref(), observer)?;
    record.skipped = left_out(plan, mapped.lost);
    record.skipped.iter().for_each(|skipped| observer.event(&Event::Skipped(skipped)));
    let group = mapped.place(plan, host, limiter, signals.as_fd())?;
    // systemd clears what has run in it; what never did it may keep.
    if record.scope.take().is_some() {
        mapped.claim.leaves_only(&record);
    }
    mapped.go();
    output::let_go(&mut script);
    record.pid = Some(mapped.pid);
    record.state = "running".into();
    let Mapped { init, channel, claim, .. } = mapped;
    let signals = signals.as_fd();
    let counts = limits::Counts::of(group, plan, request.told.usage);
    let sandbox = Sandbox { init, counts, channel, signals, record, claim: Some(claim), _upper: upper };
    let monitor = Monitor::new(plan, request, sandbox, outside).feeding(feed).with_fuse(fuse);
    monitor.with_ruleset(script.ruleset.take()).run(observer)
}

/// Without Landlock a regular file on stdin could be opened again for writing through /proc/self/fd (DESIGN 4.5),
/// so it goes through a pipe; the end to be fed is returned.
fn feed(plan: &Plan, host: &Host, script: &mut Script) -> Result<Option<OwnedFd>> {
    let direct = host.stdio[0] != crate::host::Stdio::File || plan.landlock.is_some() || script.program.terminals > 0;
    if direct || plan.is_detached() || sys::sabotaged(c"stdin-pipe") {
        return Ok(None);
    }
    let fail = |errno| Error::Sys { doing: "make a pipe".into(), on: "for stdin".into(), errno };
    let (read, write) = sys::fs::pipe().map_err(fail)?;
    script.program.stdio[0] = Some(read);
    Ok(Some(write))
}

/// The child exists and waits; its namespaces have no maps yet.
struct Cloned<'a> {
    pid: i32,
    child: Guard,
    channel: OwnedFd,
    claim: Claim<'a>,
    /// Namespaces that the kernel did not give and `--best-effort` lets go.
    lost: Namespaces,
}

/// The child may use its namespaces.
struct Mapped<'a> {
    pid: i32,
    init: Guard,
    channel: OwnedFd,
    claim: Claim<'a>,
    lost: Namespaces,
}

impl<'a> Cloned<'a> {
    fn new(plan: &Plan, script: &Script, claim: Claim<'a>, into: Option<BorrowedFd<'_>>) -> Result<Cloned<'a>> {
        single_thread()?;
        let fail = |call: &'static str| {
            let place = plan.place(plan.number(|step| matches!(step, Step::Clone(_))));
            move |errno| Error::Step { place, call, errno }
        };
        let (ours, theirs) = sys::socket::pair().map_err(fail("socketpair"))?;
        let new = match &script.above {
            Some(_) => Namespaces::USER,
            None => script.new,
        };
        let (forked, lost) =
            child::clone(script, new, ChildOf::Caller, into).map_err(|errno| fail(process::clone_call())(errno))?;
        match forked {
            Forked::Child { missing } => {
                drop(ours);
                child::run(script, theirs.as_fd(), missing)
            }
            Forked::Parent { pid, pidfd } => Ok(Cloned { pid, child: Guard::new(pidfd), channel: ours, claim, lost }),
        }
    }

    /// Writes the maps; with ranges, init is then the process that the child has made, and takes its place.
    fn map(
        mut self,
        plan: &Plan,
        host: &Host,
        script: &Script,
        range: Option<&root::Range>,
        observer: &mut dyn Observer,
    ) -> Result<Mapped<'a>> {
        observer.event(&Event::Step(plan.number(|step| matches!(step, Step::Clone(_)))));
        if plan.identities.by != MapsBy::Caller {
            observer.event(&Event::Step(plan.number(|step| matches!(step, Step::Maps(_)))));
        }
        maps::write(plan, host, range, self.pid)?;
        for tree in root::trees(script, self.pid)? {
            tell(self.channel.as_fd(), Message::Tree, Some(tree.as_fd())).map_err(|errno| gone(plan, errno))?;
        }
        let mut pid = self.pid;
        if plan.identities.pids_above.is_some() {
            tell(self.channel.as_fd(), Message::Go, None).map_err(|errno| gone(plan, errno))?;
            // Killed before it has said a word, it would leave an init that waits for its maps and holds the channel open.
            let mut watches = [Watch::read(self.channel.as_fd()), Watch::read(self.child.fd())];
            sys::retry(|| event::poll(&mut watches, None)).map_err(|errno| gone(plan, errno))?;
            pid = match hear(self.channel.as_fd(), sys::socket::Wait::No) {
                Ok(Some((Message::Forked(pid, lost), Some(init)))) => {
                    // The process in between ends by itself; from now on init is held.
                    self.child.wait();
                    self.child = Guard::new(init);
                    self.lost = lost;
                    pid
                }
                Ok(Some((Message::Failed(fault), _))) => return Err(step_error(plan, fault)),
                _ => return Err(gone(plan, sys::EPIPE)),
            };
        }
        Ok(Mapped { pid, init: self.child, channel: self.channel, claim: self.claim, lost: self.lost })
    }
}

/// The limits and namespaces that were left out, for the record and the user.
fn left_out(plan: &Plan, lost: Namespaces) -> Vec<Skipped> {
    let limits = plan.limits.skipped.iter().map(|unmet| Skipped { step: unmet.step.clone(), why: unmet.why.clone() });
    let words = [(Namespaces::TIME, "time"), (Namespaces::CGROUP, "cgroup")];
    let lost = words.into_iter().filter(|(namespace, _)| lost.has(*namespace));
    let why = "clone3: the kernel has none to give";
    let lost = lost.map(|(_, word)| Skipped { step: format!("make a {word} namespace"), why: why.into() });
    limits.chain(lost).collect()
}

/// Holds a child, which is killed and reaped when this is dropped, unless it has been waited for.
struct Guard {
    pidfd: OwnedFd,
    waited: bool,
}

impl Guard {
    fn new(pidfd: OwnedFd) -> Guard {
        Guard { pidfd, waited: false }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits for its end; `None` where somebody else has taken the status.
    fn wait(&mut self) -> Option<Ended> {
        self.waited = true;
        process::wait(Which::Pidfd(self.fd()), WaitFor::End).ok().flatten().map(|(_, ended)| ended)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.waited {
            let _ = process::pidfd_send_signal(self.fd(), event::SIGKILL);
            self.wait();
        }
    }
}

impl Mapped<'_> {
    /// The word to begin, for a child that waits for its maps.
    fn begin(&self, plan: &Plan) {
        if plan.identities.by != MapsBy::Caller {
            // A child that is gone has said why, or its status will.
            let _ = tell(self.channel.as_fd(), Message::Go, None);
        }
    }

    /// The word to start, at once: `run` has nothing to do between the set-up and that.
    fn go(&self) {
        let _ = tell(self.channel.as_fd(), Message::Start, None);
    }
}

/// The child was gone before it could say anything.
fn gone(plan: &Plan, errno: sys::Errno) -> Error {
    Error::Step {
        place: plan.place(plan.number(|step| matches!(step, Step::Clone(_) | Step::Join(_)))),
        call: "wait for the child",
        errno,
    }
}

/// Memory shared with other threads could hold a lock at the moment of the clone; the child would wait for ever.
fn single_thread() -> Result<()> {
    match process::single_threaded() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Unsupported {
            feature: "launch".into(),
            why: "the calling process has more than one thread".into(),
            hint: Some("launch before starting threads, or run the sbx program".into()),
        }),
        Err(errno) => Err(Error::Sys { doing: "count the threads in".into(), on: "/proc/self/task".into(), errno }),
    }
}

/// The layers, of those that are kept by places that nobody can lead elsewhere later: the program may be able to rename
/// what lies on the way.
fn layers(plan: &Plan, script: &Script) -> Vec<Layer> {
    let mut layers = sources::layers(script);
    for layer in layers.iter_mut().filter(|layer| plan.keeps && layer.upper.is_absolute()) {
        let stat = sys::fs::stat(&crate::host::files::c_path(&layer.lower)).ok();
        layer.below = stat.map(|stat| (stat.dev, stat.ino));
        layer.upper = crate::host::files::without_links(&layer.upper);
    }
    layers
}

fn record(plan: &Plan, host: &Host, script: &Script) -> Record {
    let groups = match &plan.identities.groups {
        GroupSet::Kept(_) => host.groups.clone(),
        GroupSet::Exactly(_) => Vec::new(),
    };
    let (made, trees) = places::mount_points(plan);
    Record {
        version: crate::state::VERSION,
        name: plan.name.clone(),
        state: "starting".into(),
        rootfs: plan.root.clone(),
        limits: limits::recorded(plan),
        supervisor_pid: process::getpid(),
        pid: None,
        labels: plan.labels.clone(),
        command: crate::state::short(&plan.process.command),
        groups,
        skipped: Vec::new(),
        landlock: plan.landlock.as_ref().map_or(0, |l| l.abi),
        made,
        trees,
        group: match &plan.limits.way {
            Some(Way::Direct(direct)) => Some(direct.at.join(crate::cgroup::name_of(&plan.name))),
            _ => None,
        },
        scope: match &plan.limits.way {
            Some(Way::Systemd(door)) => Some(Scope { unit: limits::unit(plan), door: door.clone() }),
            _ => None,
        },
        upper: plan.layers.as_ref().map(|path| crate::host::files::without_links(path.as_path())),
        keeps: plan.keeps,
        began: event::real_time(),
        layers: layers(plan, script),
        own: places::own(plan),
        detached: plan.is_detached(),
        started_at: None,
        exited_at: None,
        exit_status: None,
        exit_why: None,
        exposed: Vec::new(),
        denied: Vec::new(),
        log_lost: 0,
    }
}
