//! The rows of limits: whether each can be had by a cgroup here and who makes that, what there is else, and what gives
//! a cgroup. Pure.

use super::causes::{Cause, cause};
use super::facts::Facts;
use super::rows::row;
use super::{Feature, Row, State};
use crate::host::cgroup::{Layout, drop_in};

/// One limit, or those of one controller.
struct Kind {
    feature: Feature,
    controller: &'static str,
    /// What the user's systemd, and a cgroup of sbx's own, limit.
    grouped: [&'static str; 2],
    /// The same without a cgroup: how far, what, and by whom.
    alone: (State, &'static str, Option<&'static str>),
}

const KINDS: [Kind; 5] = [
    Kind {
        feature: Feature::LimitMem,
        controller: "memory",
        grouped: ["memory and swap, by your systemd", "memory and swap, by a cgroup of its own"],
        alone: (State::Limited, "memory, by looking at it (watch); no swap", Some("watch")),
    },
    Kind {
        feature: Feature::LimitCpus,
        controller: "cpu",
        grouped: ["processor time, by your systemd", "processor time, by a cgroup of its own"],
        alone: (State::Limited, "whole processors only, by affinity", Some("affinity")),
    },
    Kind {
        feature: Feature::LimitCpuset,
        controller: "cpuset",
        grouped: ["which processors, by your systemd", "which processors, by a cgroup of its own"],
        alone: (State::Ok, "which processors, by affinity", Some("affinity")),
    },
    Kind {
        feature: Feature::LimitPids,
        controller: "pids",
        grouped: ["processes, by your systemd", "processes, by a cgroup of its own"],
        alone: (State::Ok, "processes, by the kernel's own limit", Some("kernel")),
    },
    Kind {
        feature: Feature::LimitIo,
        controller: "io",
        grouped: ["disks, by your systemd", "disks, by a cgroup of its own"],
        alone: (State::Missing, "disks, which nothing but a cgroup limits", None),
    },
];

/// Who would be asked for the cgroup, and the controllers that are to be had there, where that can be read.
fn given(facts: &Facts) -> Option<(&'static str, Option<&[String]>)> {
    let found = &facts.cgroup;
    match (&found.door, &found.direct) {
        (Some(_), _) => Some(("systemd", found.managed.as_deref())),
        (None, Some(direct)) => Some(("cgroup", Some(&direct.controllers))),
        (None, None) => None,
    }
}

/// The rows, as `plan::way` would decide for a run with that limit alone.
pub(super) fn rows(facts: &Facts) -> Vec<Row> {
    // What cannot be read is not known.
    if facts.user.is_empty() {
        let untried = |kind: &Kind| Row { state: State::Untried, ..row(kind.feature, false, kind.grouped[1]) };
        return KINDS.iter().map(untried).collect();
    }
    let given = given(facts);
    let has = |kind: &Kind| {
        let known = given.and_then(|(_, controllers)| controllers);
        known.is_none_or(|have| have.iter().any(|have| have == kind.controller))
    };
    // One text for all that lack, so that they are told of together.
    let lacking: Vec<&Kind> = KINDS.iter().filter(|kind| !has(kind)).collect();
    let one = |kind: &Kind| match given {
        Some((by, _)) if has(kind) => {
            Row { by: Some(by), ..row(kind.feature, false, kind.grouped[usize::from(by == "cgroup")]) }
        }
        Some((by, _)) if facts.cgroup.layout == Layout::Unified => {
            let row = row(kind.feature, false, kind.grouped[usize::from(by == "cgroup")]);
            row.but(State::Missing, undelegated(&lacking, facts))
        }
        _ => {
            let (state, what, by) = kind.alone;
            let row = Row { by, ..row(kind.feature, false, what) };
            if state == State::Ok { row } else { row.but(state, ungrouped(facts)) }
        }
    };
    KINDS.iter().map(one).collect()
}

/// There is a cgroup, but these controllers are not in it.
fn undelegated(lacking: &[&Kind], facts: &Facts) -> Cause {
    let list = |between: &str| lacking.iter().map(|kind| kind.controller).collect::<Vec<_>>().join(between);
    let (why, fix) = match (&facts.cgroup.door, &facts.cgroup.direct) {
        (None, Some(direct)) => (
            format!("{} has no controller {} to give", direct.at.display(), list(", ")),
            format!("as root: echo '+{}' >cgroup.subtree_control in each group above it", list(" +")),
        ),
        _ => (format!("your systemd has not been given the controllers {}", list(", ")), drop_in(facts.uid)),
    };
    let watched = lacking.iter().filter(|kind| kind.alone.2.is_some()).map(|kind| kind.feature.words());
    let watched: Vec<&str> = watched.filter_map(|words| words.strip_prefix("limit ")).collect();
    let else_by = match watched.as_slice() {
        [] => String::new(),
        some => format!("; or for {}: --limits watch", some.join(", ")),
    };
    cause(why, fix + &else_by)
}

/// There is no cgroup, and what gives one.
fn ungrouped(facts: &Facts) -> Cause {
    let found = &facts.cgroup;
    let boot = match facts.systemd {
        true => "boot the host with systemd.unified_cgroup_hierarchy=1 (cgroup v2)",
        false => "boot the host with cgroup_no_v1=all, and mount cgroup2 on /sys/fs/cgroup",
    };
    match found.layout {
        Layout::Absent => cause("no cgroup file system is mounted", "as root: mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
        Layout::V1 => cause("only cgroup v1 is mounted, which no user can be given", boot),
        Layout::Hybrid => cause("cgroup v1 holds the controllers here, a hybrid hierarchy", boot),
        Layout::Unified if facts.astray => {
            let dir = format!("XDG_RUNTIME_DIR=/run/user/{}", facts.uid);
            cause("XDG_RUNTIME_DIR leads away from where your systemd listens", format!("{dir}, or none"))
        }
        Layout::Unified => cause(found.why.clone(), delegation(facts)),
    }
}

/// What gives a group to divide, on a host with cgroup v2.
fn delegation(facts: &Facts) -> String {
    let (user, found) = (&facts.user, &facts.cgroup);
    if let (true, Some(own)) = (found.occupied, &found.own) {
        let own = own.display();
        return format!(
            "mkdir {own}/rest; for p in $(cat {own}/cgroup.procs); do echo $p >{own}/rest/cgroup.procs; done"
        );
    }
    match facts.container.as_deref() {
        Some("docker") => {
            "docker run --security-opt writable-cgroups=true (from Docker 28), as the container's root".into()
        }
        Some("podman") => "podman run --security-opt unmask=/sys/fs/cgroup, as the container's root".into(),
        Some("kubernetes") => "a pod with a writable /sys/fs/cgroup, which its runtime has to allow".into(),
        Some("sbx") => "the outer sandbox's --mount type=cgroup".into(),
        Some(_) => "a container with a private cgroup namespace and a writable /sys/fs/cgroup".into(),
        None if facts.systemd => {
            format!("log in by ssh or on a console, not by su or sudo; or as root: loginctl enable-linger {user}")
        }
        None => format!(
            "as root, in /sys/fs/cgroup: echo '+cpu +cpuset +io +memory +pids' >cgroup.subtree_control; \
             mkdir -p {user}/me; chown {user} {user} {user}/cgroup.procs {user}/cgroup.subtree_control; \
             echo PID >{user}/me/cgroup.procs, with the PID of your shell"
        ),
    }
}
