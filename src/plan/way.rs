//! Who enforces the limits on this host: a cgroup, the user's systemd, or sbx by watching; and what each needs.
//!
//! What cannot be had is refused here, unless the user allowed less.

use super::limits::{Affinity, Alone, Enforced, LimitsPlan, Property, ROWS, Row, Setting, Unmet, Value, Way};
use super::{Stage, Step, Steps};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::cgroup::{Delegation, Direct, Layout, drop_in};
use crate::spec::access::{Degrade, Filter, Nesting};
use crate::spec::limits::{By, CpuSet};
use crate::spec::{Report, Spec};

/// Decides who enforces the limits, and how.
pub(super) fn limits(spec: &Spec, host: &Host, notes: &mut Vec<String>) -> Result<LimitsPlan> {
    if !spec.wants_group() {
        return Ok(LimitsPlan::default());
    }
    let asked: Vec<&Row> = ROWS.iter().filter(|row| (row.asked)(&spec.limits).is_some()).collect();
    match way(spec, host, &asked)? {
        None => Ok(LimitsPlan::default()),
        Some(Way::Watch) => watch(spec, host, &asked, notes),
        Some(way) => {
            guarded(spec, &host.delegation)?;
            grouped(spec, host, &asked, way)
        }
    }
}

/// The way in: the user's systemd where it listens, since its tree is its own to change; else a group of our own;
/// else none.
fn way(spec: &Spec, host: &Host, asked: &[&Row]) -> Result<Option<Way>> {
    let found = &host.delegation;
    match spec.limits.by {
        By::Nobody => match asked.first() {
            Some(row) => Err(Error::Usage {
                what: format!("--limits off and --{} contradict each other", row.option),
                hint: Some("--limits auto, or leave the limit out".into()),
            }),
            None => Ok(None),
        },
        By::Watch if spec.mounts_cgroup() => {
            let what = "--limits watch has no cgroup that could be mounted (--mount type=cgroup)".into();
            Err(Error::Usage { what, hint: Some("--limits cgroup".into()) })
        }
        By::Watch => Ok(Some(Way::Watch)),
        By::Auto | By::Cgroup => match (&found.door, &found.direct) {
            (Some(door), _) => Ok(Some(Way::Systemd(door.clone()))),
            (None, Some(direct)) if !bare(found.layout, direct, asked) => Ok(Some(Way::Direct(direct.clone()))),
            _ if spec.limits.by == By::Auto && !spec.mounts_cgroup() => Ok(Some(Way::Watch)),
            _ => Err(none(spec, host)),
        },
    }
}

/// Whether v1 holds a controller that is asked for: then the group is as good as none.
fn bare(layout: Layout, direct: &Direct, asked: &[&Row]) -> bool {
    let lacks = |row: &&Row| !direct.controllers.iter().any(|have| have == row.controller);
    layout == Layout::Hybrid && asked.iter().any(lacks)
}

/// Why there is no cgroup, as a sentence.
fn no_group(found: &Delegation) -> String {
    match found.layout {
        Layout::V1 => "only cgroup v1 is mounted, which no user can be given".into(),
        Layout::Hybrid => "cgroup v1 holds the controllers here, a hybrid hierarchy".into(),
        Layout::Absent => "no cgroup file system is mounted".into(),
        Layout::Unified => found.why.clone(),
    }
}

fn none(spec: &Spec, host: &Host) -> Error {
    let found = &host.delegation;
    let feature = if spec.mounts_cgroup() { "--mount type=cgroup" } else { "--limits cgroup" };
    let hint = match spec.mounts_cgroup() {
        true => remedy(found).trim_start_matches("--limits watch, or "),
        false => remedy(found),
    };
    Error::Unsupported { feature: feature.into(), why: no_group(found), hint: Some(hint.into()) }
}

/// The narrowest thing that would give one.
pub(crate) fn remedy(found: &Delegation) -> &'static str {
    match found.layout {
        Layout::V1 | Layout::Hybrid => "--limits watch, or boot with systemd.unified_cgroup_hierarchy=1 (cgroup v2)",
        Layout::Absent => "--limits watch, or as root: mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        Layout::Unified => {
            "--limits watch, or a login session of systemd's (loginctl enable-linger; XDG_RUNTIME_DIR=/run/user/UID)"
        }
    }
}

/// The program owns the files of its group, as the caller does. In a cgroup namespace the kernel keeps the limits of
/// its root from it only where the hierarchy is mounted `nsdelegate`; that matters to who can mount one.
fn guarded(spec: &Spec, found: &Delegation) -> Result<()> {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let mounts = spec.nesting == Nesting::Allowed || spec.capabilities.0 & CAP_SYS_ADMIN != 0 || spec.mounts_cgroup();
    if mounts && (!found.nsdelegate || spec.share.cgroup) {
        let why = match spec.share.cgroup {
            true => "the program could mount the host's groups and lift its own limits",
            false => "the hierarchy is mounted without nsdelegate, and the program could lift its own limits",
        };
        let hint = match spec.share.cgroup {
            true => "leave out --share cgroup",
            false => "as root: mount -o remount,nsdelegate /sys/fs/cgroup; or --limits watch",
        };
        return Err(Error::Unsupported { feature: "a cgroup".into(), why: why.into(), hint: Some(hint.into()) });
    }
    Ok(())
}

/// The plan for a cgroup, whoever makes it.
fn grouped(spec: &Spec, host: &Host, asked: &[&Row], way: Way) -> Result<LimitsPlan> {
    let mut plan = LimitsPlan { mem: spec.limits.mem, ..LimitsPlan::default() };
    let (by, offered) = match &way {
        Way::Systemd(_) => ("systemd", host.delegation.managed.as_ref()),
        Way::Direct(direct) => ("cgroup", Some(&direct.controllers)),
        Way::Watch => ("watch", None),
    };
    for row in asked {
        if offered.is_some_and(|have| !have.iter().any(|have| have == row.controller)) {
            plan.skipped.push(let_go(spec, row, undelegated(row, &way, host.uid))?);
            continue;
        }
        let value = (row.asked)(&spec.limits).unwrap_or_default();
        plan.settings.extend((row.files)(&spec.limits, host)?.into_iter().map(|(file, written, reads)| Setting {
            option: row.option,
            asked: value.clone(),
            controller: row.controller,
            file,
            value: written,
            reads,
            optional: row.option == "swap" && !host.has_swap,
        }));
        for property in (row.properties)(&spec.limits, host) {
            if !plan.properties.contains(&property) {
                plan.properties.push(property);
            }
        }
        plan.enforced.push(Enforced { option: row.option, value, by });
        if !plan.controllers.contains(&row.controller) {
            plan.controllers.push(row.controller);
        }
    }
    plan.properties.push(delegated(spec, &plan.controllers));
    plan.way = Some(way);
    Ok(plan)
}

/// The controllers of a scope. Each that the group above has not switched on yet costs systemd a look at all the
/// processes there, at the start and again at the end. So they are as few as the limits need; memory and pids are on by
/// systemd's own default (systemd-system.conf(5)) and cost nothing. All, where the program is given its groups, or
/// somebody will read what they count.
fn delegated(spec: &Spec, needed: &[&'static str]) -> Property {
    if spec.mounts_cgroup() || spec.report == Report::Cgroup || spec.detach.is_some() {
        return Property { name: "Delegate", value: Value::Bool(true) };
    }
    let usual = ["memory", "pids"].into_iter().filter(|name| !needed.contains(name));
    Property { name: "DelegateControllers", value: Value::Names(needed.iter().copied().chain(usual).collect()) }
}

/// A limit that cannot be had stops the run, unless the user allowed less.
fn let_go(spec: &Spec, row: &Row, refusal: Refusal) -> Result<Unmet> {
    let feature = format!("--{}", row.option);
    match spec.degrade {
        Degrade::Never => Err(Error::Unsupported { feature, why: refusal.why, hint: Some(refusal.hint) }),
        Degrade::BestEffort => {
            let value = (row.asked)(&spec.limits).unwrap_or_default();
            Ok(Unmet { step: format!("{feature} {value}"), why: refusal.why })
        }
    }
}

/// Why a limit cannot be had, and what would help.
struct Refusal {
    why: String,
    hint: String,
}

/// The controller that a limit needs is not the caller's to give.
fn undelegated(row: &Row, way: &Way, uid: u32) -> Refusal {
    let controller = row.controller;
    let (why, hint) = match way {
        Way::Systemd(_) => (format!("your systemd has not been given the controller {controller}"), drop_in(uid)),
        Way::Direct(direct) => (
            format!("{} has no controller {controller} to give", direct.at.display()),
            format!("as root: echo +{controller} > cgroup.subtree_control in each group above it; or --limits watch"),
        ),
        Way::Watch => (format!("without a cgroup nothing does what {controller} does"), "--limits cgroup".into()),
    };
    Refusal { why, hint }
}

/// The plan without a cgroup.
fn watch(spec: &Spec, host: &Host, asked: &[&Row], notes: &mut Vec<String>) -> Result<LimitsPlan> {
    let mut plan = LimitsPlan { way: Some(Way::Watch), ..LimitsPlan::default() };
    // That a memory limit takes the swap away is the group's; whoever only looks counts it in.
    let asked = asked.iter().filter(|row| row.option != "swap" || spec.limits.swap.is_some());
    for row in asked {
        let by = match &row.alone {
            Alone::Kernel => Some("kernel"),
            Alone::Looking => {
                plan.mem = spec.limits.mem;
                Some("watch")
            }
            Alone::Affinity(of) => of(&spec.limits).map(|affinity| {
                narrow(&mut plan.affinity, affinity);
                "affinity"
            }),
            Alone::Nobody => None,
        };
        match by {
            Some(by) => {
                let value = (row.asked)(&spec.limits).unwrap_or_default();
                plan.enforced.push(Enforced { option: row.option, value, by });
            }
            None => plan.skipped.push(let_go(spec, row, unwatched(row, host))?),
        }
    }
    subset(plan.affinity.as_ref(), host)?;
    if plan.affinity.is_some() && spec.seccomp.filter == Filter::Off {
        let what = "without a cgroup processors are kept by affinity, which only the seccomp filter makes hold".into();
        return Err(Error::Usage { what, hint: Some("leave out --seccomp off".into()) });
    }
    let why = match spec.limits.by {
        By::Watch => String::new(),
        _ => format!(": {}", no_group(&host.delegation)),
    };
    if !plan.enforced.is_empty() {
        notes.push(format!("limits by watch, which stops accidents, not an attacker{why}"));
    }
    Ok(plan)
}

/// What a cpuset of the caller's takes away cannot be given.
fn subset(affinity: Option<&Affinity>, host: &Host) -> Result<()> {
    match affinity {
        Some(Affinity::List(list)) if !list.iter().all(|cpu| host.processors.contains(&cpu)) => {
            let own = CpuSet::of(&host.processors);
            let why = format!("this process may use the processors {own} only");
            Err(Error::spec("--cpuset", list, why).or_try(format!("--cpuset {own}")))
        }
        _ => Ok(()),
    }
}

/// Of a number of processors and a list of them, the number counts within the list.
fn narrow(place: &mut Option<Affinity>, other: Affinity) {
    *place = Some(match (place.take(), other) {
        (Some(Affinity::Count(count)), Affinity::List(list)) => Affinity::List(list.first(count as usize)),
        (_, other) => other,
    });
}

fn unwatched(row: &Row, host: &Host) -> Refusal {
    let why = match row.option {
        "cpus" => "without a cgroup only whole processors can be kept".into(),
        _ => format!("without a cgroup nobody can enforce it, and there is none: {}", no_group(&host.delegation)),
    };
    let hint = match row.option {
        "cpus" => "a whole number, or --best-effort to go on without",
        _ => "leave it out, or --best-effort to go on without",
    };
    Refusal { why, hint: hint.into() }
}

/// The step of the parent before the clone, or after it.
pub(super) fn place(steps: &mut Steps, plan: &LimitsPlan, stage: Stage) {
    match (&plan.way, stage) {
        (Some(Way::Direct(direct)), Stage::Group) => {
            steps.must(stage, Step::Group(direct.at.clone(), plan.settings.clone()));
        }
        (Some(Way::Systemd(_)), Stage::Place) => steps.must(stage, Step::Scope(plan.properties.clone())),
        (Some(Way::Watch), Stage::Place) if plan.mem.is_some() => {
            steps.must(stage, Step::Watch(plan.mem.unwrap_or(u64::MAX)));
        }
        _ => {}
    }
}
