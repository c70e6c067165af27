//! Spec + Host → Plan: the ordered steps of one launch. Pure: what cannot work on this host is refused
//! here, before anything is started.
//!
//! The `Display` of a step is the line of `--dry-run`, of `--verbose`, and the words of an error, so a
//! step's number and text are known to everyone who holds the Plan.

mod access;
pub mod asking;
pub mod bpf;
pub mod call_rules;
mod environment;
pub mod explain;
mod guard;
mod identity;
pub mod invariants;
mod kept;
pub mod limits;
mod mounts;
pub mod rules;
pub mod seccomp;
pub mod setid;
mod steps;
pub mod syscalls;
mod way;

pub use access::{Grant, LandlockPlan, Scopes, allows};
pub use identity::{GroupSet, Identities, MapsBy, ROOT_BASE, ROOT_COUNT};
pub use kept::{Kept, enter};
pub use steps::{Etc, EtcWay, Layers, Masked, Step, SysKind, UpperAt};

use crate::error::{Error, Place, Result};
use crate::host::Host;
use crate::spec::access::Degrade;
use crate::spec::{Detach, Init, NetMode, RootSource, Spec, Tty};
use explain::Heard;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

/// The stages, in their order. Each says what it does, what it may not do yet, and what it must not do any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Parent. Takes the name and its lock, writes the record of what may be left behind. Starts nothing yet.
    Claim,
    /// Parent. A cgroup of its own with the limits in it, where one can be made without asking anybody. Empty yet.
    Group,
    /// Parent. One clone3 for the user namespace and what nests in it. Nothing in it is used yet.
    Clone,
    /// Parent, or with a single id the child itself, as its first act. Writes the id maps. From here on the child may
    /// use its namespaces; the maps never change again.
    Maps,
    /// Parent. Has systemd put the child into a scope, which takes its pid; or begins to watch.
    Place,
    /// Child. Session, death signal, clocks, host name, network. All capabilities are there; the root is
    /// still the host's. Writes to its own /proc files must be done by the end of it.
    Enter,
    /// Child, beside the rest of `Enter`. Builds the new root by descriptors. Follows no path of ROOTFS outside
    /// its root. May not run anything from ROOTFS.
    Root,
    /// Child. Makes the new root the root and drops the old one. No host path exists any more.
    Pivot,
    /// Child. Groups, ids, capabilities, no_new_privs, non-dumpable; read back. Must not mount any more.
    Identity,
    /// Child. Limits of every sandbox, Landlock, working directory. Must not gain anything any more.
    Confine,
    /// Child. Waits for the word to start.
    Gate,
    /// Child. The program takes the limits that were asked for, loads its filter and is executed; nothing stands between
    /// the two last.
    Exec,
}

impl Stage {
    /// The stage's word, as printed.
    pub fn word(self) -> &'static str {
        match self {
            Stage::Claim => "claim",
            Stage::Group => "group",
            Stage::Clone => "clone",
            Stage::Maps => "maps",
            Stage::Place => "place",
            Stage::Enter => "enter",
            Stage::Root => "root",
            Stage::Pivot => "pivot",
            Stage::Identity => "identity",
            Stage::Confine => "confine",
            Stage::Gate => "gate",
            Stage::Exec => "exec",
        }
    }
}

/// Whether a run may go on without a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// It may not.
    Must,
    /// It may: the step is skipped, said, and recorded.
    Try,
}

/// One step, where it belongs, and whether it is needed.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Where it belongs.
    pub stage: Stage,
    /// Whether it is needed.
    pub need: Need,
    /// What is done.
    pub step: Step,
}

/// A whole launch: see the head of the file.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) name: String,
    /// ROOTFS as it is meant, for the record.
    pub(crate) root: String,
    pub(crate) steps: Vec<Planned>,
    pub(crate) identities: Identities,
    pub(crate) process: Process,
    pub(crate) landlock: Option<LandlockPlan>,
    /// Whether namespaces that a host may lack can be left out.
    pub(crate) degrade: Degrade,
    /// Filters of the program in the order they are loaded.
    pub(crate) filters: Vec<Vec<bpf::Insn>>,
    /// What the supervisor hears of while it runs.
    pub(crate) heard: Option<Heard>,
    /// What the user is told before the start.
    pub(crate) notes: Vec<String>,
    /// How long the program may run, and how long it then has from TERM to KILL.
    pub(crate) timeout: Option<(Duration, Duration)>,
    /// Limits that need somebody to enforce them.
    pub(crate) limits: limits::LimitsPlan,
    /// Labels for the record.
    pub(crate) labels: BTreeMap<String, String>,
    /// Where the program runs in the background.
    pub(crate) detach: Option<Detach>,
    /// The private directory on disk of the layers that lie there.
    pub(crate) layers: Option<crate::spec::HostPath>,
    /// Whether the other overlays' are among them.
    pub(crate) others_on_disk: bool,
    /// Whether these changes stay when the program has ended, until somebody forgets them.
    pub(crate) keeps: bool,
    /// Whether layers may lie in memory where the disk cannot hold them.
    pub(crate) or_memory: bool,
}

/// The program and how sbx stands to it.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub command: Vec<OsString>,
    pub argv0: OsString,
    /// Full paths that are tried in turn, as execvp(3) does.
    pub candidates: Vec<OsString>,
    pub env: Vec<OsString>,
    pub workdir: std::path::PathBuf,
    pub umask: u32,
    pub init: Init,
    pub terminal: Terminal,
    pub pass_fds: Vec<i32>,
}

/// Which of the program's standard descriptors are a terminal of the sandbox's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Terminal {
    /// None: the caller's descriptors as they are.
    None,
    /// Input and output; errors stay the caller's.
    InOut,
    /// All three.
    All,
}

/// Makes the plan. `name` is the sandbox's, given or generated.
///
/// # Errors
/// `Unsupported` for what this host cannot do, `Spec` for what contradicts its facts.
pub fn plan(spec: &Spec, host: &Host, name: &str) -> Result<Plan> {
    let mut notes = spec.notes.clone();
    let limits = way::limits(spec, host, &mut notes)?;
    let identities = identity::identities(spec, host, &limits)?;
    notes.extend(identities.notes.iter().cloned());
    let terminal = terminal(spec, host);
    check_stdio(spec, host)?;
    mounts::check_root(spec, host)?;
    let process = environment::process(spec, host, &identities, terminal)?;
    let mut steps = Steps { list: Vec::new(), degrade: spec.degrade };
    steps.must(Stage::Claim, Step::Claim(name.into()));
    way::place(&mut steps, &limits, Stage::Group);
    steps.must(Stage::Clone, Step::Clone(environment::namespaces(spec, &limits)));
    steps.must(Stage::Maps, Step::Maps(identities.clone()));
    way::place(&mut steps, &limits, Stage::Place);
    environment::enter(&mut steps, spec, host, name, &limits, &identities);
    let group = if limits.is_grouped() && !spec.share.cgroup { mounts::Group::Own } else { mounts::Group::None };
    mounts::root(&mut steps, spec, host, &mounts::Around { name, terminal, group })?;
    steps.must(Stage::Pivot, Step::Pivot);
    access::identity(&mut steps, spec, host, &identities);
    let landlock = access::confine(&mut steps, spec, host, &process, &limits)?;
    steps.must(Stage::Gate, Step::Gate);
    access::rlimits(&mut steps, spec, host, &limits)?;
    let (filters, heard) = access::filters(&mut steps, spec, host, &limits, &identities, &mut notes)?;
    steps.must(Stage::Exec, Step::Exec(process.command.clone()));
    notes.extend(mounts::notes(spec, host));
    let layers = mounts::layers_at(spec, host, name, &steps.list);
    // An old kernel may have them on disk where nobody wants to keep them.
    let wanted = spec.root.others != crate::spec::Place::Memory;
    Ok(Plan {
        name: name.into(),
        root: match &spec.root.source {
            RootSource::Host => "@host".into(),
            RootSource::Layers(layers) => layers.first().map(ToString::to_string).unwrap_or_default(),
        },
        steps: steps.list,
        identities,
        process,
        landlock,
        degrade: spec.degrade,
        filters,
        heard,
        notes,
        timeout: spec.timeout(),
        limits,
        labels: spec.labels().clone(),
        detach: spec.detach,
        keeps: spec.detach.is_some()
            || spec.name.is_some() && (wanted && layers.is_some() || spec.root.writes.is_kept()),
        others_on_disk: wanted,
        layers,
        or_memory: mounts::or_memory(spec, host),
    })
}

/// The steps while they are collected.
pub(crate) struct Steps {
    list: Vec<Planned>,
    degrade: Degrade,
}

impl Steps {
    /// A step that the run needs.
    pub(crate) fn must(&mut self, stage: Stage, step: Step) {
        self.list.push(Planned { stage, need: Need::Must, step });
    }

    /// A step that `--best-effort` lets go: only those of DESIGN 4.4 come here.
    pub(crate) fn may_degrade(&mut self, stage: Stage, step: Step) {
        let need = if self.degrade == Degrade::BestEffort { Need::Try } else { Need::Must };
        self.list.push(Planned { stage, need, step });
    }
}

fn terminal(spec: &Spec, host: &Host) -> Terminal {
    use crate::host::Stdio;
    let is = |n: usize| host.stdio[n] == Stdio::Terminal;
    match spec.program.tty {
        Tty::Own if spec.detach.is_some() => Terminal::All,
        _ if spec.detach.is_some() => Terminal::None,
        Tty::Own if is(2) || host.stdio[2] == Stdio::Closed => Terminal::All,
        Tty::Own => Terminal::InOut,
        Tty::Auto if is(0) && is(1) && is(2) => Terminal::All,
        Tty::Auto if is(0) && is(1) => Terminal::InOut,
        _ => Terminal::None,
    }
}

/// A directory among the program's descriptors would be a way out through /proc/self/fd (DESIGN 4.5).
/// In the background it gets none of the standard ones.
fn check_stdio(spec: &Spec, host: &Host) -> Result<()> {
    use crate::host::Stdio;
    let standard = host.stdio.iter().enumerate().map(|(number, stdio)| (number as i32, *stdio));
    let standard = standard.filter(|_| spec.detach.is_none());
    for (number, stdio) in standard.chain(host.passed.iter().copied()) {
        let (why, hint) = match stdio {
            Stdio::Place => {
                ("a directory, through which the program could reach the host", "redirect it from a file or /dev/null")
            }
            Stdio::Closed => ("not open", "--pass-fd passes a descriptor that the caller holds open"),
            _ => continue,
        };
        return Err(Error::spec("descriptor", number, why).or_try(hint));
    }
    Ok(())
}

impl Plan {
    /// The sandbox's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the program runs in the background.
    pub fn is_detached(&self) -> bool {
        self.detach.is_some()
    }

    /// Whether this is one more program of a sandbox that runs, to whose processes it can be seen before it is executed.
    pub fn joins(&self) -> bool {
        self.steps.iter().any(|planned| matches!(planned.step, Step::Join(_)))
    }

    /// Whether more ids than one are mapped.
    pub fn maps_ranges(&self) -> bool {
        self.identities.uids.iter().map(|extent| u64::from(extent.count)).sum::<u64>() > 1
    }

    /// Whether the program keeps supplementary groups of the caller's.
    pub fn keeps_groups(&self) -> bool {
        matches!(&self.identities.groups, GroupSet::Kept(count) if *count > 0)
    }

    /// Whether its record, and what it changes, stays when it has ended.
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// The steps in order; the first has number 1.
    pub fn steps(&self) -> &[Planned] {
        &self.steps
    }

    /// The limits that somebody enforces.
    pub fn limits(&self) -> &limits::LimitsPlan {
        &self.limits
    }

    /// What the user should be told before the start.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Where a step stands, for an error. Numbers count from 1.
    pub fn place(&self, number: usize) -> Place {
        let planned = self.steps.get(number.wrapping_sub(1));
        Place {
            number,
            of: self.steps.len(),
            stage: planned.map_or("?", |p| p.stage.word()),
            step: planned.map_or_else(String::new, |p| p.step.to_string()),
        }
    }

    /// The number of the first step that `is` holds for; 0 where there is none.
    pub(crate) fn number(&self, is: impl Fn(&Step) -> bool) -> usize {
        self.steps.iter().position(|p| is(&p.step)).map_or(0, |index| index + 1)
    }

    /// The plan as data: what `--dry-run --json` prints.
    pub fn to_json(&self) -> serde_json::Value {
        let step = |(index, p): (usize, &Planned)| {
            serde_json::json!({
                "number": index + 1, "stage": p.stage, "need": p.need, "step": p.step.to_string(),
            })
        };
        let steps: Vec<_> = self.steps.iter().enumerate().map(step).collect();
        let limits::LimitsPlan { enforced, skipped, .. } = &self.limits;
        serde_json::json!({
            "name": self.name, "limits": enforced, "skipped": skipped, "steps": steps, "notes": self.notes,
        })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, p) in self.steps.iter().enumerate() {
            let optional = if p.need == Need::Try { " (if it can be had)" } else { "" };
            let text = crate::error::visible(&p.step.to_string());
            writeln!(f, "{:<9}{:>3}  {text}{optional}", p.stage.word(), index + 1)?;
        }
        Ok(())
    }
}

/// Whether the network namespace is the sandbox's own.
pub(crate) fn own_network(spec: &Spec) -> bool {
    spec.net.mode == NetMode::None
}
