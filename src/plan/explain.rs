//! `--explain`: of which calls the supervisor hears while the program runs, and what each is answered.
//!
//! The kernel asks only where the policy denies, and for the few calls of which another part of the sandbox is what
//! refuses: all others run as under the plain filter. Nothing that the policy denies is ever let by.

use super::bpf::{self, Action, Condition, Insn, Rules, Test, Verdict, Width};
use super::seccomp::{self, NATIVE, Policy, SeccompError};
use crate::host::Host;
use crate::spec::{Explain, NetMode, Spec};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What the supervisor hears, and by which filters.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The policy itself, by ABI: it is what the answers are taken from.
    rules: Vec<Rules>,
    /// The policy's filter, which asks where that denies.
    pub(crate) listening: Vec<Insn>,
    /// What the listening filter has to let by until the supervisor has its end: denied by this one, loaded after it.
    pub(crate) gap: Option<Vec<Insn>>,
    /// Whether it hears of files.
    pub(crate) files: bool,
    /// The caller's home and directory, where it hears of what is used of them.
    pub(crate) learns: Option<(PathBuf, PathBuf)>,
    /// Whether there is no network that could be reached.
    pub(crate) offline: bool,
    /// Whether set-id bits are refused, for a host directory is writable.
    guards_set_id: bool,
}

/// Something that was tried and refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The call's name, or its number where it has none.
    pub call: String,
    /// Its arguments.
    pub args: [u64; 6],
    /// On what: a path, an address, a kind of socket; as text that can be shown.
    pub object: String,
    /// The program's name, as the kernel has it.
    pub program: String,
    /// The answer's number.
    pub errno: u16,
    /// What has refused it.
    pub why: Why,
    /// How often.
    pub count: u64,
}

/// What has refused a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The system call policy.
    Policy,
    /// There is no network.
    Offline,
    /// It is there outside, and not shown inside.
    Hidden,
    /// It lies where nothing can be written.
    ReadOnly,
    /// It lies where nothing can be executed.
    NoExec,
    /// A capability that the program has not.
    Capability(u8),
    /// Nothing: it was used.
    Used,
    /// Nothing: it was used, and would be changed.
    Changed,
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

/// The name of the listening filter, which takes the place of the others.
pub const LISTENING: &str = "listening";

/// What the program's process itself does between the two filters.
const BETWEEN: [&str; 2] = ["seccomp", "sendmsg"];

/// What is heard under a policy, if anything is asked for.
pub(super) fn heard(spec: &Spec, host: &Host, policy: &Policy) -> Result<Option<Heard>, SeccompError> {
    if spec.explain == Explain::No {
        return Ok(None);
    }
    let archs = std::iter::once(NATIVE).chain(policy.further.iter().copied());
    let rules = archs.map(|arch| seccomp::rules(policy, arch)).collect::<Result<Vec<_>, _>>()?;
    let files = matches!(spec.explain, Explain::Files | Explain::Learn);
    let places = || (host.caller.home.clone(), host.caller.cwd.clone());
    let learns = (spec.explain == Explain::Learn).then(places);
    let offline = spec.net.mode == NetMode::None;
    let lacks = |name| spec.capabilities.names().all(|held| held != name);
    let asking = |rules: &Rules| {
        let calls = rules.calls.iter().map(|(number, verdict)| {
            let name = rules.arch.name(*number).unwrap_or_default();
            // Libraries ask for it to see whether it is there, and go on without.
            let quiet = name == "clone3" && !policy.deny.iter().any(|denied| denied == name);
            let verdict = match name {
                _ if BETWEEN.contains(&name) && !lets(verdict) => Verdict::Always(Action::Allow),
                _ if quiet => verdict.clone(),
                "connect" if lets(verdict) => Verdict::Always(Action::Notify),
                "bind" if lets(verdict) && offline && lacks("NET_BIND_SERVICE") => Verdict::Always(Action::Notify),
                "chroot" if lets(verdict) && lacks("SYS_CHROOT") => Verdict::Always(Action::Notify),
                "socket" if !denies(verdict) && lacks("NET_RAW") => raw(asks(verdict)),
                // Without an address it is a write.
                "sendto" if offline && lets(verdict) => with_address(verdict),
                _ if files && FILES.contains(&name) && !denies(verdict) => Verdict::Always(Action::Notify),
                _ => asks(verdict),
            };
            (*number, verdict)
        });
        Rules { arch: rules.arch, unlisted: rules.unlisted, calls: calls.collect() }
    };
    let listening = bpf::compile_all(&rules.iter().map(asking).collect::<Vec<_>>())?;
    let gap: Vec<Rules> = rules.iter().map(between).collect();
    let gap = if gap.iter().all(|rules| rules.calls.is_empty()) { None } else { Some(bpf::compile_all(&gap)?) };
    let guards_set_id = policy.set_id == seccomp::SetId::Deny;
    Ok(Some(Heard { rules, listening, gap, files, learns, offline, guards_set_id }))
}

/// The rules on what the listening filter leaves open.
fn between(rules: &Rules) -> Rules {
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

impl super::Plan {
    /// Whether the policy refuses set-id bits; known where denials are explained.
    pub fn guards_set_id(&self) -> bool {
        self.heard.as_ref().is_some_and(|heard| heard.guards_set_id)
    }
}

impl Heard {
    /// The call's name and what the policy answers it; `None` for a name that no table has.
    pub fn answer(&self, audit: u32, number: u32, args: &[u64; 6]) -> (Option<&'static str>, Action) {
        let Some(rules) = self.rules.iter().find(|rules| rules.arch.audit() == audit) else {
            return (None, Action::KillProcess);
        };
        let action = rules.calls.get(&number).map_or(rules.unlisted, |verdict| decided(verdict, args));
        (rules.arch.name(number), action)
    }
}

fn decided(verdict: &Verdict, args: &[u64; 6]) -> Action {
    match verdict {
        Verdict::Always(action) => *action,
        Verdict::ByArgument { any, then, otherwise } => {
            if any.iter().any(|all| all.iter().all(|condition| holds(condition, args))) { *then } else { *otherwise }
        }
        Verdict::Ordered { first, then } => {
            let found = first.iter().find(|(all, _)| all.iter().all(|condition| holds(condition, args)));
            found.map_or_else(|| decided(then, args), |(_, action)| *action)
        }
    }
}

/// Whether a condition holds, as the filter sees it.
pub fn holds(condition: &Condition, args: &[u64; 6]) -> bool {
    let argument = args.get(usize::from(condition.arg)).copied().unwrap_or(0);
    let argument = match condition.width {
        Width::Low32 => argument & u64::from(u32::MAX),
        Width::Full64 => argument,
    } & condition.mask;
    match &condition.test {
        Test::In(values) => values.contains(&argument),
        Test::NotIn(values) => !values.contains(&argument),
        Test::AtLeast(least) => argument >= *least,
        Test::Below(bound) => argument < *bound,
    }
}
