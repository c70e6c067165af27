//! `--explain`: of which calls the supervisor hears while the program runs, and what each is answered.
//!
//! The kernel asks only where the policy denies, and for the few calls of which another part of the sandbox is what
//! refuses: all others run as under the plain filter. Nothing that the policy denies is ever let by.

use super::asking::{Asking, asking, between};
use super::bpf::{self, Action, Condition, Insn, Rules, Test, Verdict, Width};
use super::seccomp::{self, NATIVE, Policy, SeccompError};
use crate::host::Host;
use crate::spec::{Explain, NetMode, Spec};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What the supervisor hears, and by which filters.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The policy itself: it is what the answers are taken from.
    policy: Policy,
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

/// The name of the listening filter, which takes the place of the others.
pub const LISTENING: &str = "listening";

/// What is heard under a policy, if anything is asked for.
pub(super) fn heard(spec: &Spec, host: &Host, policy: &Policy) -> Result<Option<Heard>, SeccompError> {
    if spec.explain == Explain::No {
        return Ok(None);
    }
    let lacks = ["NET_BIND_SERVICE", "SYS_CHROOT", "NET_RAW"];
    let what = Asking {
        files: matches!(spec.explain, Explain::Files | Explain::Learn),
        offline: spec.net.mode == NetMode::None,
        lacks: lacks.map(|name| spec.capabilities.names().all(|held| held != name)),
        clone3: policy.deny.iter().any(|denied| denied == "clone3"),
    };
    let (listening, gap) = match seccomp::listening(policy).filter(|_| what == Asking::USUAL) {
        Some(made) => (made.to_vec(), None),
        None => {
            let rules = rules(policy)?;
            let gap: Vec<Rules> = rules.iter().map(between).collect();
            let shut = gap.iter().any(|rules| !rules.calls.is_empty());
            let gap = if shut { Some(bpf::compile_all(&gap)?) } else { None };
            (bpf::compile_all(&rules.iter().map(|rules| asking(rules, &what)).collect::<Vec<_>>())?, gap)
        }
    };
    let places = || (host.caller.home.clone(), host.caller.cwd.clone());
    let learns = (spec.explain == Explain::Learn).then(places);
    let Asking { files, offline, .. } = what;
    Ok(Some(Heard { policy: policy.clone(), listening, gap, files, learns, offline }))
}

/// A policy's rules, by ABI.
fn rules(policy: &Policy) -> Result<Vec<Rules>, SeccompError> {
    let archs = std::iter::once(NATIVE).chain(policy.further.iter().copied());
    archs.map(|arch| seccomp::rules(policy, arch)).collect()
}

impl super::Plan {
    /// Whether the policy refuses set-id bits; known where denials are explained.
    pub fn guards_set_id(&self) -> bool {
        self.heard.as_ref().is_some_and(|heard| heard.policy.set_id == seccomp::SetId::Deny)
    }
}

impl Heard {
    /// What the answers are taken from; worked out when there is something to answer.
    pub fn answers(&self) -> Answers {
        // It was compiled before.
        Answers(rules(&self.policy).unwrap_or_default())
    }
}

/// A policy by ABI.
#[derive(Debug)]
pub struct Answers(Vec<Rules>);

impl Answers {
    /// The call's name and what the policy answers it; no name for a number that no table has.
    pub fn of(&self, audit: u32, number: u32, args: &[u64; 6]) -> (Option<&'static str>, Action) {
        let Some(rules) = self.0.iter().find(|rules| rules.arch.audit() == audit) else {
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
