//! A child's fault as an error for a person. The words come from the plan; what the kernel refuses for a reason
//! that can be looked up is looked up here, after the failure, for on the start path asking costs time.

use super::channel::Fault;
use crate::error::{Error, Place};
use crate::host::{is_own_root, mounts_below};
use crate::plan::{Layers, Plan, Stage, Step, UpperAt};
use crate::spec::Overlay;
use crate::spec::mount::{Access, Mount, Source};
use crate::state::Skipped;
use crate::sys::process::Ended;
use crate::sys::{EACCES, EINVAL, EISDIR, ENOENT, ENOEXEC, ENOTDIR, EPERM, Errno};

/// The error of a step that failed.
pub(super) fn step_error(plan: &Plan, fault: Fault) -> Error {
    let number = usize::from(fault.step);
    let step = plan.steps.get(number.wrapping_sub(1)).map(|planned| &planned.step);
    let plain = |place: Place| Error::Step { place, call: fault.call.name(), errno: fault.errno };
    step.and_then(|step| explained(step, fault)).unwrap_or_else(|| plain(plan.place(number)))
}

/// The error where the user's own value is what the kernel does not take.
fn explained(step: &Step, fault: Fault) -> Option<Error> {
    let errno = fault.errno;
    Some(match step {
        Step::Workdir(path) => Error::spec("--workdir", path.display(), errno).or_try("a directory that exists inside"),
        Step::Overlay(layers) if errno == EINVAL => return refused_layer(layers),
        Step::Mount(mount) => return refused_mount(mount, fault),
        Step::Mask(mask) if errno == ENOENT => {
            Error::spec("--mask", &mask.path, "not in ROOTFS").or_try("a path that is there")
        }
        Step::Nice(nice) if matches!(errno, EACCES | EPERM) => {
            Error::spec("--nice", nice, "this process may only raise it").or_try("a value from 0 to 19")
        }
        Step::OomScoreAdj(score) if matches!(errno, EACCES | EPERM) => {
            Error::spec("--oom-score-adj", score, "this process may only raise it").or_try("a value from 0 to 1000")
        }
        Step::Sysctl(key, value) if matches!(errno, EINVAL | ENOENT) => {
            Error::spec("--sysctl", format!("{key}={value}"), errno)
                .or_try("a key below /proc/sys, and a value it takes")
        }
        _ => return None,
    })
}

/// Why the kernel takes a directory as no layer of an overlay.
fn refused_layer(layers: &Layers) -> Option<Error> {
    for layer in &layers.lower {
        if is_own_root(layer.as_path()) {
            let why = "this machine's own root cannot be an overlay of itself";
            return Some(Error::spec("ROOTFS", layer, why).or_try("sbx run @host"));
        }
        if let Some(first) = mounts_below(layer.as_path()).first() {
            let why =
                format!("file systems are mounted below it, {} first; an overlay would not show them", first.display());
            return Some(Error::spec("ROOTFS", layer, why).or_try("unmount them, or --rw"));
        }
    }
    // Under `auto` fuse-overlayfs may still take it.
    match &layers.upper {
        _ if layers.by == Overlay::Auto => None,
        UpperAt::Kept(at) | UpperAt::Dropped(at) => {
            let why = "its file system cannot hold an upper layer (another overlay, NFS and FUSE cannot)";
            Some(Error::spec("--upper", at, why).or_try("a directory on ext4, xfs, btrfs or tmpfs"))
        }
        UpperAt::Store => None,
    }
}

/// Why a mount of the user's cannot be made.
fn refused_mount(mount: &Mount, fault: Fault) -> Option<Error> {
    let field = match &mount.source {
        Source::Device { .. } => "--device",
        Source::Tmpfs { .. } => "--tmpfs",
        Source::Mqueue | Source::Cgroup => "--mount",
        Source::Bind { .. } => "--volume",
    };
    Some(match (&mount.source, fault.errno) {
        (Source::Bind { src, access: Access::Overlay, .. }, ENOTDIR) => {
            Error::spec(field, src, "only a directory can be an overlay").or_try("the option `ro` for a file")
        }
        (Source::Bind { src, access: Access::Overlay, .. }, EINVAL) => {
            let first = mounts_below(src.as_path()).into_iter().next();
            let why = match first {
                Some(first) => format!("file systems are mounted below it, {} first", first.display()),
                None => "its file system takes no overlay".into(),
            };
            Error::spec(field, src, why).or_try("the option `ro`")
        }
        (Source::Device { src }, crate::sys::ENXIO) => {
            Error::spec(field, src, "not a device").or_try("-v for files and directories")
        }
        (_, ENOTDIR | EISDIR) => {
            let why =
                format!("a directory goes on a directory and a file on a file: {} inside is the other", mount.dst);
            Error::spec(field, &mount.dst, why).or_try("another place inside")
        }
        _ => return None,
    })
}

/// Why the program could not be executed.
pub(super) fn not_executed(plan: &Plan, errno: Errno) -> Error {
    let command = plan.process.command[0].to_string_lossy().into_owned();
    let why = match errno {
        ENOENT if command.contains('/') => Some("not in ROOTFS, or its interpreter is not"),
        ENOENT => Some("not in any directory of PATH"),
        EACCES => Some("a directory, without the x permission, on a noexec mount, or outside of [landlock] exec"),
        ENOEXEC => Some("no format that this machine runs; a script needs a first line like #!/bin/sh"),
        _ => None,
    };
    Error::Command { command, errno, why: why.map(str::to_owned) }
}

/// The child ended before the program ran and said nothing.
pub(super) fn died(plan: &Plan, how: Ended) -> Error {
    match how {
        Ended::Code(127) => not_executed(plan, ENOENT),
        Ended::Code(126) => not_executed(plan, EACCES),
        Ended::Signal(signal) => match joins(plan) {
            Some(name) => {
                let why = format!("the program was killed by signal {signal} before it ran, perhaps by one inside");
                Error::State { on: name.into(), why, hint: Some(AGAIN.into()) }
            }
            None => Error::Unsupported {
                feature: "run".into(),
                why: format!("the sandbox's first process was killed by signal {signal} while it was set up"),
                hint: Some("try again; `sbx check` tells what is in the way".into()),
            },
        },
        // It told why, unless it could not: then it or its helper was killed, or sending is forbidden.
        Ended::Code(super::child::FAILED) => {
            let why = "the sandbox's first process ended while it was set up and could not say why: its helper \
                was killed, or a seccomp filter around sbx forbids sendmsg";
            Error::Unsupported {
                feature: "run".into(),
                why: why.into(),
                hint: Some("try again; `sbx check` tells what is in the way".into()),
            }
        }
        Ended::Code(code) => {
            let step = plan.number(|step| matches!(step, Step::Session));
            Error::Bug(format!("the child ended with {code} after step {step} and said nothing"))
        }
    }
}

/// One more program's process was stopped before the program ran.
pub(super) fn stopped(plan: &Plan) -> Error {
    let why = "the program was stopped before it ran, by one inside".into();
    Error::State { on: joins(plan).unwrap_or_default().into(), why, hint: Some(AGAIN.into()) }
}

/// What helps against a program that does so to all that come.
const AGAIN: &str = "try again, or end the sandbox";

/// The sandbox that is entered.
fn joins(plan: &Plan) -> Option<&str> {
    plan.steps.iter().find_map(|planned| match &planned.step {
        Step::Join(name) => Some(name.as_str()),
        _ => None,
    })
}

/// A skipped step, for the record and the user.
pub(super) fn skipped(plan: &Plan, fault: Fault) -> Skipped {
    let place = plan.place(usize::from(fault.step));
    // All that may be skipped after the clone of what it makes new.
    let step = if place.stage == Stage::Clone.word() { "make a time namespace".into() } else { place.step };
    Skipped { step, why: format!("{}: {}", fault.call.name(), fault.errno) }
}
