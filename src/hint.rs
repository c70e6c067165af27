//! What to try: a pure match over an error and facts about this host. Errors that already carry their advice
//! are left alone.

use sbx::error::{Errno, Error, Place};
use sbx::host::check::{Feature, Report, Row, State};

/// Facts that advice depends on; gathered only after something failed.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What `sbx check` would say.
    pub rows: Vec<Row>,
    /// Whether this is root of the machine, whose sandboxes never hold root's own id.
    pub real_root: bool,
}

impl From<Report> for Facts {
    fn from(report: Report) -> Facts {
        Facts { rows: report.rows, real_root: report.facts.real_root }
    }
}

/// Why and try, the third and fourth line of a report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// A fact about this host.
    pub why: Option<String>,
    /// Something to type.
    pub hint: Option<String>,
}

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const EACCES: i32 = 13;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;
const ENOSPC: i32 = 28;
const ENOSYS: i32 = 38;

/// Whether facts could explain this error, so that gathering them is worth its 100 ms.
pub fn wants_facts(error: &Error) -> bool {
    match error {
        Error::Step { place, errno: Errno(errno), .. } => {
            ["clone", "maps", "enter", "root", "confine", "exec"].contains(&place.stage)
                && ![EMFILE, ENFILE, EAGAIN, ENOMEM].contains(errno)
        }
        Error::Unsupported { hint, .. } => hint.is_none(),
        Error::Helper { .. } => true,
        _ => false,
    }
}

/// The advice for an error.
pub fn advice(error: &Error, facts: &Facts) -> Advice {
    if let Some(hint) = error.hint() {
        return Advice { why: None, hint: Some(hint.to_owned()) };
    }
    let (why, hint) = match error {
        Error::Step { errno: Errno(errno @ (EMFILE | ENFILE)), .. }
        | Error::Sys { errno: Errno(errno @ (EMFILE | ENFILE)), .. } => {
            let whose = if *errno == EMFILE { "this process has" } else { "this machine has" };
            (format!("{whose} as many files open as it may"), "ulimit -n 1024, or close some".to_owned())
        }
        Error::Step { place, call, errno } => match step(place, call, *errno, facts) {
            Some(found) => found,
            None => return Advice { why: None, hint: Some("sbx check; --verbose shows each step".into()) },
        },
        Error::Helper { program, .. } => match fault(Feature::IdRanges, facts) {
            Some((why, fix)) => (why, format!("{fix}; or --map root, which needs no helper")),
            None => (
                format!("{program} writes the id maps for you and must be set-uid root or have its file capability"),
                "--map root, which needs no helper; or reinstall the package uidmap".to_owned(),
            ),
        },
        Error::Unsupported { .. } => match facts.rows.iter().find(|row| row.needed && row.state == State::Missing) {
            Some(row) => words(row),
            None => return Advice::default(),
        },
        Error::Bug(_) => return Advice { why: None, hint: Some("report it with the output of `sbx check`".into()) },
        _ => return Advice::default(),
    };
    Advice { why: Some(why), hint: Some(hint) }
}

/// A failed step: first what `sbx check` finds in the way of such a step, then what the step itself suggests.
fn step(place: &Place, call: &str, errno: Errno, facts: &Facts) -> Option<(String, String)> {
    if place.stage == "clone" && errno.0 == EAGAIN {
        let why = "you have as many processes as you may (ulimit -u, or pids.max of this control group)".to_owned();
        return Some((why, "end some, or raise that limit".to_owned()));
    }
    if let Some(found) = suspects(place).iter().find_map(|feature| fault(*feature, facts)) {
        return Some(found);
    }
    if let Some(found) = by_layer(place, call, errno, facts) {
        return Some(found);
    }
    match errno.0 {
        ENOSYS => Some((
            format!("{call} is missing: the kernel is older than 5.14, or a seccomp filter around sbx hides it"),
            "a newer kernel, or the outer container's `--security-opt seccomp=unconfined`".to_owned(),
        )),
        EPERM | EACCES | ENOSPC => Some((format!("the kernel refused step {}", place.number), "sbx check".to_owned())),
        _ => None,
    }
}

/// What a step stands on, what fails first in front. The words are those of the plan's steps.
fn suspects(place: &Place) -> &'static [Feature] {
    use Feature::*;
    let is = |start: &str| place.step.starts_with(start);
    match place.stage {
        "clone" => &[
            Kernel,
            UserNamespaces,
            MountNamespaces,
            PidNamespaces,
            UtsNamespaces,
            IpcNamespaces,
            NetNamespaces,
            CgroupNamespaces,
            TimeNamespaces,
            SystemCalls,
        ],
        "maps" => &[UserNamespaces, IdRanges],
        "enter" if is("make a network") => &[UserNamespaces, NetNamespaces],
        "enter" => &[UserNamespaces, UtsNamespaces, TimeNamespaces],
        "root" if is("mount a fresh /proc") => &[UserNamespaces, SystemCalls, Proc],
        "root" if is("mount a fresh /sys") => &[UserNamespaces, SystemCalls, Sysfs],
        "root" if is("mount the overlay") || is("mount an overlay") => &[UserNamespaces, SystemCalls, Overlay],
        "root" if is("mount a minimal /dev") || is("mount an own devpts") || is("mask ") => {
            &[UserNamespaces, SystemCalls, Devices]
        }
        "root" => &[UserNamespaces, SystemCalls],
        "confine" if is("restrict by Landlock") => &[Landlock],
        "exec" if is("load the seccomp") => &[Seccomp],
        _ => &[],
    }
}

/// Overlayfs works here, so what a failed overlay is made of is at fault.
fn by_layer(place: &Place, call: &str, errno: Errno, facts: &Facts) -> Option<(String, String)> {
    let overlay = place.step.starts_with("mount the overlay") || place.step.starts_with("mount an overlay");
    let bind = place.step.starts_with("bind ");
    let (why, hint) = match errno.0 {
        EACCES | EPERM if (overlay || bind) && facts.real_root && call != "mount_setattr" => (
            "a sandbox of root runs with ids from 524288 up, to which that directory, or one above it, is closed",
            "a directory that everybody may enter (chmod o+x on each above it), or run sbx as its owner",
        ),
        EACCES if overlay || bind => (
            "that directory, or one above it, is closed to you",
            "chmod u+rx on it if it is yours, else a copy of it that is",
        ),
        EINVAL | ENODEV | EPERM if overlay => (
            "overlays work here, so it is these directories: an upper layer cannot lie on another overlay, NFS or FAT",
            "--upper tmpfs, or ROOTFS and --upper DIR on a local file system such as ext4, xfs or btrfs",
        ),
        ENOENT if bind => ("a source of a mount is gone", "the path as it is now, or `optional` after it"),
        _ => return None,
    };
    Some((why.to_owned(), hint.to_owned()))
}

/// Why a feature is not there, and what helps.
fn fault(feature: Feature, facts: &Facts) -> Option<(String, String)> {
    facts.rows.iter().find(|row| row.feature == feature && row.state == State::Missing).map(words)
}

fn words(row: &Row) -> (String, String) {
    (row.why.clone().unwrap_or_default(), row.fix.clone().unwrap_or_default())
}
