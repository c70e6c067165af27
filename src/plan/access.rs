//! The steps of `Identity` and `Confine`, the Landlock rules and the system call filters.

use super::bpf::Insn;
use super::limits::LimitsPlan;
use super::seccomp::{NATIVE, Policy, may_run, program};
use super::{Heard, Identities, Process, Stage, Step, Steps, call_rules, environment, explain, mounts, rules, setid};
use crate::error::{Error, Result};
use crate::host::{CORES_PIPED, Host};
use crate::spec::access::{Capabilities, Degrade, Filter, Landlock, LandlockRules, Nesting, SetId};
use crate::spec::mount::{Access, Devices, Source};
use crate::spec::text::InnerPath;
use crate::spec::{DEFAULT_PIDS, Explain, Init, Rlimit, Spec, Writes};

/// What a place allows beyond reading and executing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Read files and directories, execute.
    Read,
    /// That, and write to files that exist.
    WriteFiles,
    /// That, and make, remove and rename.
    Change,
    /// Read, write, and talk to devices.
    Devices,
}

/// Landlock's part of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LandlockPlan {
    /// The ABI that the rules are written for: the kernel's, at most the newest that sbx knows.
    pub abi: u32,
    /// Whether it holds files. A domain that does forbids every mount to those in it (landlock(7)).
    pub files: bool,
    /// Places and what is allowed there; everything else is denied. None where the first program's rules are taken.
    pub places: Vec<(InnerPath, Grant)>,
    /// Where files may be executed, if not everywhere.
    pub exec: Option<Vec<InnerPath>>,
    /// TCP ports that may be bound and connected to, if not all.
    pub ports: [Option<Vec<u16>>; 2],
    /// What is kept within the domain.
    pub scopes: Scopes,
}

/// What Landlock keeps within a domain (ABI 6). A program that comes later is in a domain of its own, and the first one's
/// signals and sockets are to reach it, as far as the namespaces keep the host's apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scopes {
    /// Signals and abstract sockets.
    All,
    /// Abstract sockets, which are the host's where the network is.
    Sockets,
    /// Signals.
    Signals,
    /// Nothing: pid and network namespace do it.
    None,
}

impl LandlockPlan {
    /// Whether there is a ruleset beside that of the scopes.
    pub fn has_rules(&self) -> bool {
        self.files || self.ports.iter().any(Option::is_some)
    }
}

/// The newest ABI whose rights sbx handles: scopes came with 6, and 7 adds only audit flags.
pub const NEWEST_ABI: u32 = 7;
/// With ABI 1 nothing could be renamed between directories, so file rules start at 2 (DESIGN, CLI.md).
const OLDEST_ABI: u32 = 2;

/// Steps of `Identity`, in an order in which each still has the capability it needs.
pub(super) fn identity(steps: &mut Steps, spec: &Spec, host: &Host, who: &Identities) {
    let must = |steps: &mut Steps, step| steps.must(Stage::Identity, step);
    let asked = asked(spec, host);
    let reaches = |call| asked != Policy::default() && may_run(&asked, call);
    if spec.seccomp.filter == Filter::Off || ["add_key", "request_key", "keyctl"].into_iter().any(reaches) {
        steps.may_degrade(Stage::Identity, Step::Keyring);
    }
    must(steps, Step::Bounding(spec.capabilities));
    must(steps, Step::Groups(who.groups.clone()));
    must(steps, Step::Ids(who.uid, who.gid));
    must(steps, Step::Capabilities(held(spec, who)));
    must(steps, Step::NoNewPrivs);
    must(steps, Step::Hide);
}

/// User 0 holds the whole bounding set, everybody else nothing.
fn held(spec: &Spec, who: &Identities) -> Capabilities {
    if who.uid == 0 { spec.capabilities } else { Default::default() }
}

/// Steps of `Confine`.
pub(super) fn confine(
    steps: &mut Steps,
    spec: &Spec,
    host: &Host,
    process: &Process,
    limits: &LimitsPlan,
) -> Result<Option<LandlockPlan>> {
    steps.must(Stage::Confine, Step::Verify);
    processes_and_cores(steps, spec, host, limits)?;
    if let Some(affinity) = &limits.affinity {
        steps.must(Stage::Confine, Step::Affinity(affinity.clone()));
    }
    let landlock = landlock(steps, spec, host)?;
    if let Some(plan) = &landlock {
        steps.must(Stage::Confine, Step::Landlock(plan.clone()));
    }
    steps.must(Stage::Confine, Step::Workdir(process.workdir.clone()));
    Ok(landlock)
}

/// How many processes the kernel lets there be in the user namespace, `init` of sbx's own among them. The default
/// gives way to the caller's own hard limit, what was asked for does not. Where a cgroup counts them, that is to be the
/// one that refuses: its refusals can be told afterwards.
pub(super) fn processes(spec: &Spec, host: &Host, limits: &LimitsPlan, init: u64) -> Result<u64> {
    let hard = host.hard_limit("nproc");
    match spec.limits.pids {
        Some(pids) if limits.counts_pids() => Ok((pids.max(DEFAULT_PIDS) + init).min(hard)),
        Some(pids) if pids + init > hard => {
            let why = format!("with sbx's init that is more than your own hard limit of {hard} (ulimit -Hu)");
            Err(Error::spec("--pids", pids, why).or_try(format!("--pids {}", hard.saturating_sub(init).max(1))))
        }
        pids => Ok((pids.unwrap_or(DEFAULT_PIDS) + init).min(hard)),
    }
}

/// The processes of a whole sandbox, sbx's init among them.
fn all_processes(spec: &Spec, host: &Host, limits: &LimitsPlan) -> Result<u64> {
    processes(spec, host, limits, u64::from(spec.program.init == Init::Own))
}

/// The limits that every sandbox has.
fn processes_and_cores(steps: &mut Steps, spec: &Spec, host: &Host, limits: &LimitsPlan) -> Result<()> {
    steps.must(Stage::Confine, Step::Pids(all_processes(spec, host, limits)?));
    if host.core_piped && spec.limits.rlimits.iter().all(|limit| limit.name != "core") {
        // A limit of 1 is what the kernel takes as "no pipe to a program of the host" (coredump.c, since 2.6.32).
        let unpiped = Step::Rlimit(Rlimit { name: "core".into(), soft: 1, hard: 1 });
        match (host.hard_limit("core"), spec.degrade) {
            (0, Degrade::Never) => {
                let (why, hint) = (CORES_PIPED.0.into(), Some(CORES_PIPED.1.into()));
                return Err(Error::Unsupported { feature: "core limit".into(), why, hint });
            }
            (0, Degrade::BestEffort) => steps.may_degrade(Stage::Confine, unpiped),
            _ => steps.must(Stage::Confine, unpiped),
        }
    }
    Ok(())
}

/// The limits that were asked for. They are the program's alone and come right before its filter: what sbx itself has
/// still to do would not fit into the low ones.
pub(super) fn rlimits(steps: &mut Steps, spec: &Spec, host: &Host, limits: &LimitsPlan) -> Result<()> {
    let processes = all_processes(spec, host, limits)?;
    for limit in &spec.limits.rlimits {
        let most = if limit.name == "nproc" { processes } else { host.hard_limit(&limit.name) };
        if limit.hard > most {
            let why = format!("above the hard limit of {most}, which nobody can raise in here");
            let fitting = format!("--rlimit {}={}:{most}", limit.name, limit.soft.min(most));
            return Err(Error::spec("--rlimit", &limit.name, why).or_try(fitting));
        }
        steps.must(Stage::Exec, Step::Rlimit(limit.clone()));
    }
    Ok(())
}

fn landlock(steps: &Steps, spec: &Spec, host: &Host) -> Result<Option<LandlockPlan>> {
    // Rules on files forbid every mount to those they confine, so an inner sandbox could not be built under them.
    let files = spec.nesting == Nesting::Refused;
    let contradict = |what| Err(Error::Usage { what, hint: Some("leave one of them out".into()) });
    let missing = match (spec.landlock, spec.nesting) {
        // A rule that was asked for by name and cannot be had is a refusal (S45).
        (Landlock::Off, _) if spec.landlock_rules == LandlockRules::default() => return Ok(None),
        (Landlock::Off, _) => {
            return contradict("--landlock off and the rules of [landlock] contradict each other".into());
        }
        (Landlock::Auto, Nesting::Allowed) if spec.landlock_rules.exec.is_some() => {
            return contradict(
                "--nest and [landlock] exec contradict each other: rules on files forbid all mounts".into(),
            );
        }
        (Landlock::Auto, Nesting::Allowed) => "",
        (Landlock::Require, Nesting::Allowed) => {
            let what =
                "--landlock require and --nest contradict each other: Landlock's rules on files forbid all mounts";
            return Err(Error::Usage { what: what.into(), hint: None });
        }
        (_, Nesting::Refused) if host.landlock < OLDEST_ABI => "no Landlock",
        (_, Nesting::Refused) if host.landlock < 6 => "Landlock without scopes for signals and abstract sockets",
        _ => "",
    };
    if !missing.is_empty() && spec.landlock == Landlock::Require {
        let hint =
            "--landlock auto takes what there is; a kernel has it when `landlock` stands in /sys/kernel/security/lsm";
        return Err(too_old(host, "--landlock require", format!("has {missing}; sbx uses ABI 6"), Some(hint)));
    }
    let rules = &spec.landlock_rules;
    young_enough(rules, host)?;
    if host.landlock < OLDEST_ABI {
        return Ok(None);
    }
    let plan = LandlockPlan {
        abi: host.landlock.min(NEWEST_ABI),
        files,
        places: if files { places(steps, spec) } else { Vec::new() },
        exec: rules.exec.clone(),
        ports: [rules.bind.clone(), rules.connect.clone()],
        scopes: match rules.scope {
            _ if host.landlock < 6 => Scopes::None,
            None | Some((true, true)) => Scopes::All,
            Some((true, false)) => Scopes::Signals,
            Some((false, true)) => Scopes::Sockets,
            Some((false, false)) => Scopes::None,
        },
    };
    Ok(Some(plan).filter(|plan| plan.has_rules() || plan.scopes != Scopes::None))
}

/// Refuses a rule that was asked for by name where the kernel has none of it (S45).
fn young_enough(rules: &LandlockRules, host: &Host) -> Result<()> {
    let kinds = [
        ("exec", rules.exec.is_some(), OLDEST_ABI),
        ("tcp-bind", rules.bind.is_some(), 4),
        ("tcp-connect", rules.connect.is_some(), 4),
        ("scope", rules.scope.is_some_and(|scope| scope != (false, false)), 6),
    ];
    match kinds.iter().find(|(_, asked, least)| *asked && host.landlock < *least) {
        None => Ok(()),
        Some((key, _, least)) => {
            let what = format!("has none of it before ABI {least}");
            Err(too_old(host, &format!("[landlock] {key}"), what, None))
        }
    }
}

fn too_old(host: &Host, feature: &str, what: String, hint: Option<&str>) -> Error {
    let (major, minor) = host.kernel;
    let why = format!("this kernel ({major}.{minor}, Landlock ABI {}) {what}", host.landlock);
    Error::Unsupported { feature: feature.into(), why, hint: hint.map(str::to_owned) }
}

/// Every writable place follows from what is mounted; a right given at `/` holds below it too.
fn places(steps: &Steps, spec: &Spec) -> Vec<(InnerPath, Grant)> {
    let written = !matches!(spec.root.writes, Writes::ReadOnly(_));
    let mut places = vec![
        (InnerPath::known("/"), if written { Grant::Change } else { Grant::Read }),
        (InnerPath::known("/dev"), Grant::Devices),
    ];
    if !written {
        places.push((InnerPath::known("/proc"), Grant::WriteFiles));
    }
    for planned in &steps.list {
        match &planned.step {
            Step::Scratch(path, ..) | Step::Conceal(path, _) if !written => places.push((path.clone(), Grant::Change)),
            Step::Mount(mount) => match &mount.source {
                Source::Bind { devices: Devices::Dev, .. } => places.push((mount.dst.clone(), Grant::Devices)),
                Source::Bind { access: Access::Ro, .. } | Source::Device { .. } => {}
                Source::Bind { .. } | Source::Tmpfs { .. } | Source::Mqueue | Source::Cgroup if !written => {
                    places.push((mount.dst.clone(), Grant::Change));
                }
                _ => {}
            },
            _ => {}
        }
    }
    places
}

/// The program's filters, in the order of loading: the policy's last, since it may forbid loading more.
pub(super) fn filters(
    steps: &mut Steps,
    spec: &Spec,
    host: &Host,
    limits: &LimitsPlan,
    who: &Identities,
    notes: &mut Vec<String>,
) -> Result<(Vec<Vec<Insn>>, Option<Heard>)> {
    let guarded = mounts::writable_host(spec) && spec.root.setid == SetId::Refused;
    let (mut filters, mut heard) = (Vec::new(), None);
    let mut load = |name, filter: Vec<Insn>| {
        steps.must(Stage::Exec, Step::Filter(name, filter.len()));
        filters.push(filter);
    };
    match spec.seccomp.filter {
        Filter::Off if guarded => {
            load("set-id", setid::program(NATIVE));
            load("hidden modes", setid::hidden_modes_program(NATIVE));
        }
        Filter::Off => {}
        Filter::Default => {
            let policy = policy(spec, host, limits, who, guarded);
            let wrong = |error| Error::spec("[seccomp]", "policy", error);
            load("policy", program(&policy).map_err(wrong)?);
            heard = explain::heard(spec, host, &policy).map_err(wrong)?;
        }
    }
    if spec.explain != Explain::No && heard.is_none() {
        notes.push("--explain hears nothing without a system call policy (--seccomp off)".into());
    }
    if let Some(heard) = &heard {
        steps.must(Stage::Exec, Step::Filter(explain::LISTENING, heard.listening.len()));
    }
    Ok((filters, heard))
}

/// Whether the filter of a sandbox lets a call by for any arguments.
pub fn allows(spec: &Spec, host: &Host, call: &str) -> bool {
    let added = spec.capabilities.without(Capabilities::default_set());
    let nesting = match spec.nesting {
        Nesting::Refused => rules::Nesting::Refuse,
        Nesting::Allowed => rules::Nesting::Allow,
    };
    let cap_add = added.names().map(str::to_owned).collect();
    spec.seccomp.filter == Filter::Off || may_run(&Policy { cap_add, nesting, ..asked(spec, host) }, call)
}

/// What is asked of the system call policy by name.
fn asked(spec: &Spec, host: &Host) -> Policy {
    let applied = |profile| call_rules::applied(profile, spec.capabilities, host.kernel);
    Policy {
        allow: spec.seccomp.allow.clone(),
        deny: spec.seccomp.deny.clone(),
        log: spec.seccomp.log.clone(),
        rules: spec.seccomp.rules.iter().map(call_rules::own).collect(),
        profile: spec.seccomp.profile.as_ref().map(applied),
        further: spec.seccomp.profile.iter().flat_map(call_rules::further).collect(),
        ..Policy::default()
    }
}

/// The system call policy of a spec. Capabilities beyond the default open what Moby's profile ties to them.
fn policy(spec: &Spec, host: &Host, limits: &LimitsPlan, who: &Identities, guarded: bool) -> Policy {
    let added = spec.capabilities.without(Capabilities::default_set());
    Policy {
        cap_add: added.names().map(str::to_owned).collect(),
        nesting: match spec.nesting {
            Nesting::Refused => rules::Nesting::Refuse,
            Nesting::Allowed => rules::Nesting::Allow,
        },
        init: match spec.program.init {
            Init::Own => rules::Init::Own,
            Init::Program => rules::Init::Absent,
        },
        set_id: if guarded { rules::SetId::Deny } else { rules::SetId::Allow },
        unmapped: match limits.watched() {
            None => rules::Unmapped::Allow,
            Some(_) if environment::bounds_segments(spec, host, who) => rules::Unmapped::DenyFiles,
            Some(_) => rules::Unmapped::Deny,
        },
        affinity: match limits.affinity {
            None => rules::Affinity::Free,
            Some(_) => rules::Affinity::Fixed,
        },
        ..asked(spec, host)
    }
}
