//! From a policy's rules to those that ask: the filter of `--explain`.
//!
//! The build script compiles this file too, for the filters of the default policy: it knows no Spec.

use super::bpf::{Action, Condition, Rules, Test, Verdict, Width};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Of what is asked besides what the policy denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asking {
    /// Calls on files.
    pub files: bool,
    /// Addresses, for there is no network.
    pub offline: bool,
    /// What is missing of CAP_NET_BIND_SERVICE, CAP_SYS_CHROOT and CAP_NET_RAW.
    pub lacks: [bool; 3],
    /// Also `clone3`, which libraries try to see whether it is there, and go on without.
    pub clone3: bool,
}

impl Asking {
    /// Of a sandbox without options.
    pub const USUAL: Asking = Asking { files: false, offline: true, lacks: [false, false, true], clone3: false };
}

/// Calls on files that are heard of with `--explain=files`.
pub const FILES: [&str; 40] = [
    "access",
    "chdir",
    "chmod",
    "chown",
    "creat",
    "execve",
    "execveat",
    "faccessat",
    "faccessat2",
    "fchmodat",
    "fchmodat2",
    "fchownat",
    "lchown",
    "link",
    "linkat",
    "lstat",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "readlink",
    "readlinkat",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "stat",
    "statx",
    "symlink",
    "symlinkat",
    "truncate",
    "unlink",
    "unlinkat",
    "utime",
    "utimensat",
    "utimes",
];

/// What the program's process itself does between the two filters.
const BETWEEN: [&str; 2] = ["seccomp", "sendmsg"];

/// The rules that ask where these deny, and for what is asked besides.
pub fn asking(rules: &Rules, what: &Asking) -> Rules {
    let [bind, chroot, network] = what.lacks;
    let calls = rules.calls.iter().map(|(number, verdict)| {
        let name = rules.arch.name(*number).unwrap_or_default();
        let verdict = match name {
            _ if BETWEEN.contains(&name) && !lets(verdict) => Verdict::Always(Action::Allow),
            "clone3" if !what.clone3 => verdict.clone(),
            "connect" if lets(verdict) => Verdict::Always(Action::Notify),
            "bind" if lets(verdict) && what.offline && bind => Verdict::Always(Action::Notify),
            "chroot" if lets(verdict) && chroot => Verdict::Always(Action::Notify),
            "socket" if !denies(verdict) && network && can_be_asked(verdict) => raw(asks(verdict)),
            // Without an address it is a write.
            "sendto" if what.offline && lets(verdict) => with_address(verdict),
            _ if what.files && FILES.contains(&name) && !denies(verdict) && can_be_asked(verdict) => {
                Verdict::Always(Action::Notify)
            }
            _ => asks(verdict),
        };
        (*number, verdict)
    });
    Rules { arch: rules.arch, unlisted: rules.unlisted, calls: calls.collect() }
}

/// The rules on what the listening filter leaves open.
pub fn between(rules: &Rules) -> Rules {
    let calls = BETWEEN.iter().filter_map(|name| {
        let number = rules.arch.number(name)?;
        let verdict = rules.calls.get(&number)?;
        (!lets(verdict)).then(|| (number, verdict.clone()))
    });
    let calls: BTreeMap<u32, Verdict> = calls.collect();
    Rules { arch: rules.arch, unlisted: Action::Allow, calls }
}

fn lets(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Always(Action::Allow | Action::Log))
}

fn denies(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Always(action) if !matches!(action, Action::Allow | Action::Log))
}

/// Whether whoever is asked can answer as this verdict does: who is asked lets by or gives an error, and can neither end a
/// process nor have a call do nothing.
fn can_be_asked(verdict: &Verdict) -> bool {
    let can = |action: &Action| match action {
        Action::Allow | Action::Log => true,
        Action::Errno(errno) => *errno != 0,
        _ => false,
    };
    match verdict {
        Verdict::Always(action) => can(action),
        Verdict::ByArgument { then, otherwise, .. } => can(then) && can(otherwise),
        Verdict::Ordered { first, then } => first.iter().all(|(_, action)| can(action)) && can_be_asked(then),
    }
}

/// The verdict on a socket that asks for SOCK_RAW too.
fn raw(verdict: Verdict) -> Verdict {
    let raw = Condition { arg: 1, width: Width::Low32, mask: 0xF, test: Test::In(Cow::Borrowed(&[3])) };
    Verdict::Ordered { first: vec![(vec![raw], Action::Notify)], then: Box::new(verdict) }
}

fn with_address(verdict: &Verdict) -> Verdict {
    let address = Condition { arg: 4, width: Width::Full64, mask: u64::MAX, test: Test::NotIn(Cow::Borrowed(&[0])) };
    Verdict::Ordered { first: vec![(vec![address], Action::Notify)], then: Box::new(verdict.clone()) }
}

/// The verdict that asks where this one answers with an error. A 0 is no error, but a call that does nothing.
fn asks(verdict: &Verdict) -> Verdict {
    let ask = |action: &Action| match action {
        Action::Errno(errno) if *errno != 0 => Action::Notify,
        other => *other,
    };
    match verdict {
        Verdict::Always(action) => Verdict::Always(ask(action)),
        Verdict::ByArgument { any, then, otherwise } => {
            Verdict::ByArgument { any: any.clone(), then: ask(then), otherwise: ask(otherwise) }
        }
        Verdict::Ordered { first, then } => Verdict::Ordered {
            first: first.iter().map(|(all, action)| (all.clone(), ask(action))).collect(),
            then: Box::new(asks(then)),
        },
    }
}
