//! From a policy's names to a verdict for each system call number.
//!
//! The default policy's tables ([`Base`]) are data; here is only how a user's changes apply to them.
//! The order is: deny, then rules on arguments, then log and allow, then nesting, then capabilities, then
//! the tables or the profile in their place; and two things no order changes: new user namespaces come
//! from [`Nesting::Allow`] alone, and what sbx itself guards against stays shut.
//!
//! The build script compiles this file too, for the default program: it knows no generated table.

use super::bpf::{Action, Alternatives, CompileError, Condition, Rules, Test, Verdict, Width};
use super::invariants::*;
use super::syscalls::{self, Arch};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The tables of the default policy, as `policies/syscalls.toml` has them.
#[derive(Clone, Copy, Debug)]
pub struct Base {
    /// Calls that are always allowed.
    pub allow: &'static [&'static str],
    /// Denied calls that look as if the kernel did not have them.
    pub enosys: &'static [&'static str],
    /// Calls that are allowed for some arguments.
    pub guards: &'static [Guard],
    /// Calls that a capability opens.
    pub caps: &'static [(&'static str, &'static [&'static str])],
    /// Calls that nesting opens, whatever their arguments.
    pub nest: &'static [&'static str],
    /// Groups of calls.
    pub groups: &'static [Group],
}

/// Calls under one name, which starts with `@` where it is used.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Its name, without the `@`.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Its calls.
    pub calls: &'static [&'static str],
}

/// A rule of a user's on the arguments of calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRule {
    /// The calls.
    pub calls: Vec<String>,
    /// What has to hold; nothing means always.
    pub all: Vec<Condition>,
    /// What happens then.
    pub action: Action,
}

/// A filter of another program's making in place of the default tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// What happens to calls without a rule.
    pub default: Action,
    /// The rules that apply here.
    pub rules: Vec<CallRule>,
}

/// An argument rule for one call.
#[derive(Clone, Copy, Debug)]
pub struct Guard {
    /// The call.
    pub call: &'static str,
    /// The capability the rule belongs to; without it the rule is not there.
    pub cap: Option<&'static str>,
    /// The arguments that are allowed.
    pub any: &'static [&'static [Condition]],
}

/// A sandbox inside the sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nesting {
    /// Namespaces and mounts are refused.
    #[default]
    Refuse,
    /// What sbx or bubblewrap needs is allowed, user namespaces included.
    Allow,
}

/// What runs as pid 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// An init of sbx's own.
    #[default]
    Own,
    /// The program itself. Its death signal is the only tie to sbx, so it may not change it.
    Absent,
}

/// Set-user-id and set-group-id bits on files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetId {
    /// The program may set them: no host path is writable, or the user said so.
    #[default]
    Allow,
    /// It may not, and calls in which no filter can see them are refused.
    Deny,
}

/// Memory that no process maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unmapped {
    /// The program may make it.
    #[default]
    Allow,
    /// It may not, but for System V segments: the kernel bounds what they hold.
    DenyFiles,
    /// It may not.
    Deny,
}

/// The processors that the program runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    /// It may choose among all.
    #[default]
    Free,
    /// They are chosen for it. The mask of `sched_setaffinity` lies in memory, so the call is refused as a whole.
    Fixed,
}

/// The changes to the default policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Calls to allow. Argument rules stay: a list learned from a run must not undo them.
    pub allow: Vec<String>,
    /// Calls to deny; they win over everything else.
    pub deny: Vec<String>,
    /// Calls to allow and to note in the kernel's log.
    pub log: Vec<String>,
    /// Rules on arguments; those that deny win over those that allow.
    pub rules: Vec<CallRule>,
    /// Rules instead of the default tables. What sbx itself needs shut stays shut.
    pub profile: Option<Profile>,
    /// Further ABIs that the profile opens; all others end the process.
    pub further: Vec<Arch>,
    /// Capabilities the program has beyond the default ones, with or without `CAP_`.
    pub cap_add: Vec<String>,
    /// Whether a sandbox may run inside.
    pub nesting: Nesting,
    /// What runs as pid 1.
    pub init: Init,
    /// Whether set-id bits may be set.
    pub set_id: SetId,
    /// Whether there may be memory that no process maps.
    pub unmapped: Unmapped,
    /// Whether the program may choose its processors.
    pub affinity: Affinity,
}

/// Why a policy could not become a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeccompError {
    /// No architecture has a call of this name.
    UnknownCall {
        /// The name.
        name: String,
        /// A known name that looks like it.
        near: Option<&'static str>,
    },
    /// The policy denies what starting a program needs.
    Needed {
        /// The call.
        name: &'static str,
    },
    /// There is no group of this name.
    UnknownGroup {
        /// The name.
        name: String,
        /// A known name that looks like it.
        near: Option<&'static str>,
    },
    /// A rule opens what no rule may open.
    Locked {
        /// The call.
        name: String,
    },
    /// The call has its flags in memory, where no filter can look.
    Unseen {
        /// The call.
        name: String,
    },
    /// The rules could not become a program.
    Compile(CompileError),
}

impl std::fmt::Display for SeccompError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownCall { name, near: Some(near) } => write!(
                f,
                "the seccomp policy names the system call `{name}`, which no architecture has. \
                 Did you mean `{near}`?"
            ),
            Self::UnknownCall { name, near: None } => write!(
                f,
                "the seccomp policy names the system call `{name}`, which no architecture has. \
                 Names are those of the system call table, as strace prints them"
            ),
            Self::UnknownGroup { name, near } => {
                write!(f, "the seccomp policy names `{name}`, and there is no such group")?;
                near.map_or(Ok(()), |near| write!(f, ". Did you mean `@{near}`?"))
            }
            Self::Locked { name } => write!(
                f,
                "a seccomp rule opens `{name}`, whose arguments sbx itself decides on: namespaces come \
                 with --nest or a capability, and input into a terminal never"
            ),
            Self::Needed { name } => write!(
                f,
                "the seccomp policy denies `{name}`, but without it no program can start or end. \
                 Take it out of the deny list"
            ),
            Self::Unseen { name } => write!(
                f,
                "the seccomp policy allows `{name}`, but its flags lie in memory, where a filter \
                 cannot look: it would open user namespaces. Take it out, since libraries do \
                 without it, or run with --nest"
            ),
            Self::Compile(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SeccompError {}

impl From<CompileError> for SeccompError {
    fn from(error: CompileError) -> Self {
        Self::Compile(error)
    }
}

/// Works out the verdict for every call of `arch`.
pub fn resolve(base: &Base, policy: &Policy, arch: Arch) -> Result<Rules, SeccompError> {
    let policy = &expanded(base, policy)?;
    check_names(policy)?;
    let calls: BTreeMap<u32, Verdict> =
        arch.table().iter().map(|(name, number)| (*number, verdict(base, policy, name))).collect();
    for name in NEEDED {
        let verdict = arch.number(name).and_then(|number| calls.get(&number));
        if let Some(Verdict::Always(action)) = verdict
            && !lets(*action)
        {
            return Err(SeccompError::Needed { name });
        }
    }
    // A number without a name is a newer kernel's: libraries fall back when it looks absent.
    Ok(Rules { arch, unlisted: ENOSYS, calls })
}

/// The policy with the calls of its groups.
fn expanded(base: &Base, policy: &Policy) -> Result<Policy, SeccompError> {
    let mut whole = policy.clone();
    let rules = whole.rules.iter_mut().map(|rule| &mut rule.calls);
    for list in [&mut whole.allow, &mut whole.deny, &mut whole.log].into_iter().chain(rules) {
        if list.iter().any(|name| name.starts_with('@')) {
            let names = list.iter().map(|name| members(base, name)).collect::<Result<Vec<_>, _>>()?;
            *list = names.concat();
        }
    }
    Ok(whole)
}

fn members(base: &Base, name: &str) -> Result<Vec<String>, SeccompError> {
    let Some(group) = name.strip_prefix('@') else { return Ok(vec![name.to_owned()]) };
    match base.groups.iter().find(|known| known.name == group) {
        Some(known) => Ok(known.calls.iter().map(|call| (*call).to_owned()).collect()),
        None => {
            let near = crate::spec::near::nearest(group, base.groups.iter().map(|known| known.name));
            Err(SeccompError::UnknownGroup { name: name.to_owned(), near })
        }
    }
}

fn check_names(policy: &Policy) -> Result<(), SeccompError> {
    let mut opened = policy.rules.iter().filter(|rule| lets(rule.action)).flat_map(|rule| &rule.calls);
    if let Some(name) = opened.find(|name| LOCKED.contains(&name.as_str())) {
        return Err(SeccompError::Locked { name: name.clone() });
    }
    let lists = [&policy.allow, &policy.deny, &policy.log];
    let rules = policy.rules.iter().map(|rule| &rule.calls);
    if let Some(name) = lists.into_iter().chain(rules).flatten().find(|name| !syscalls::is_known(name)) {
        let (name, near) = (name.clone(), syscalls::nearest(name));
        return Err(SeccompError::UnknownCall { name, near });
    }
    if policy.nesting == Nesting::Refuse
        && let Some(name) = [&policy.allow, &policy.log]
            .into_iter()
            .flatten()
            .find(|name| *name == "clone3" && !has(&policy.deny, name))
    {
        return Err(SeccompError::Unseen { name: name.clone() });
    }
    Ok(())
}

fn lets(action: Action) -> bool {
    matches!(action, Action::Allow | Action::Log)
}

/// Whether a policy lets a call by for any arguments. What is wrong with the policy shows when it is compiled.
pub fn may_run(base: &Base, policy: &Policy, name: &str) -> bool {
    let policy = expanded(base, policy).unwrap_or_else(|_| policy.clone());
    match verdict(base, &policy, name) {
        Verdict::Always(action) => lets(action),
        Verdict::ByArgument { .. } | Verdict::Ordered { .. } => true,
    }
}

fn verdict(base: &Base, policy: &Policy, name: &str) -> Verdict {
    let denied = if base.enosys.contains(&name) { ENOSYS } else { EPERM };
    if has(&policy.deny, name) {
        return Verdict::Always(denied);
    }
    if let Some(answer) = shut(policy, name) {
        return Verdict::Always(answer);
    }
    let then = if has(&policy.log, name) { Action::Log } else { Action::Allow };
    let named = has(&policy.allow, name) || has(&policy.log, name);
    let opened = match (&policy.profile, opening(base, policy, name)) {
        // What is allowed by name is allowed beyond a profile as beyond the default.
        (Some(_), _) if named && !LOCKED.contains(&name) => Verdict::Always(then),
        (Some(profile), own) => by_profile(profile, name, own),
        (None, Opening::Shut) => Verdict::Always(denied),
        (None, Opening::Whole) => Verdict::Always(then),
        (None, Opening::Guarded(any)) => Verdict::ByArgument { any, then, otherwise: denied },
    };
    let opened = without_set_id(policy, name, with_rules(&policy.rules, name, opened));
    match name {
        // PR_SET_PDEATHSIG
        "prctl" if policy.init == Init::Absent => except(opened, &[(0, &[1])], EPERM),
        // The kernel takes any size and gives as much as it will: here none beyond the usual one.
        "setsockopt" if policy.unmapped != Unmapped::Allow => {
            except(opened, &[(1, SOCKET_LEVEL), (2, BUFFER_SIZES)], Action::Errno(0))
        }
        _ => opened,
    }
}

/// Refuses the bits that no policy may let by where a host path is writable.
fn without_set_id(policy: &Policy, name: &str, opened: Verdict) -> Verdict {
    let call = MODES.iter().find(|(call, ..)| policy.set_id == SetId::Deny && *call == name);
    let Some((_, flags, mode)) = call else { return opened };
    // Flags and modes are 32 bits or fewer in the kernel, so the upper half must not count.
    let any_of =
        |arg: u8, mask: u64| Condition { arg, width: Width::Low32, mask, test: Test::NotIn(Cow::Borrowed(&[0])) };
    let all = flags.map(|flags| any_of(flags, MAKES_A_FILE)).into_iter().chain([any_of(*mode, SET_ID_BITS)]);
    Verdict::Ordered { first: vec![(all.collect(), EPERM)], then: Box::new(opened) }
}

/// What a foreign profile says of a call. What is sbx's own to decide is open as far as both open it.
fn by_profile(profile: &Profile, name: &str, own: Opening) -> Verdict {
    if !LOCKED.contains(&name) {
        return with_rules(&profile.rules, name, Verdict::Always(profile.default));
    }
    let rules = || profile.rules.iter().filter(|rule| has(&rule.calls, name));
    let opened = lets(profile.default) || rules().any(|rule| lets(rule.action));
    let own = match own {
        _ if !opened => Verdict::Always(profile.default),
        Opening::Shut => Verdict::Always(if name == "clone3" { ENOSYS } else { EPERM }),
        Opening::Whole => Verdict::Always(Action::Allow),
        Opening::Guarded(any) => Verdict::ByArgument { any, then: Action::Allow, otherwise: EPERM },
    };
    let denials: Vec<CallRule> = rules().filter(|rule| !lets(rule.action)).cloned().collect();
    with_rules(&denials, name, own)
}

/// Lays rules over what is known of a call: the strictest first, so that a denial that matches wins.
fn with_rules(rules: &[CallRule], name: &str, then: Verdict) -> Verdict {
    let mut first: Vec<(Vec<Condition>, Action)> =
        rules.iter().filter(|rule| has(&rule.calls, name)).map(|rule| (rule.all.clone(), rule.action)).collect();
    first.sort_by_key(|(_, action)| match action {
        Action::KillProcess => 0,
        Action::KillThread => 1,
        Action::Trap => 2,
        Action::Errno(_) | Action::Notify => 3,
        Action::Log => 4,
        Action::Allow => 5,
    });
    // What always holds hides what comes after it.
    let always = first.iter().position(|(all, _)| all.is_empty());
    let then = always.map_or(then, |at| Verdict::Always(first[at].1));
    first.truncate(always.unwrap_or(first.len()));
    if first.is_empty() { then } else { Verdict::Ordered { first, then: Box::new(then) } }
}

/// The answer of a call that a protection of the sandbox as a whole needs shut, whatever is allowed by name.
fn shut(policy: &Policy, name: &str) -> Option<Action> {
    let among = |calls: &[(&str, Action)]| calls.iter().find(|(call, _)| *call == name).map(|(_, answer)| *answer);
    let modes = among(&HIDDEN_MODES).filter(|_| policy.set_id == SetId::Deny);
    let memory = among(&UNMAPPED).filter(|_| match policy.unmapped {
        Unmapped::Allow => false,
        Unmapped::DenyFiles => name != "shmget",
        Unmapped::Deny => true,
    });
    // i386 has two calls that stand for many, which no filter can look into.
    let many = match name {
        "socketcall" => policy.unmapped != Unmapped::Allow,
        "ipc" => policy.unmapped == Unmapped::Deny,
        _ => false,
    };
    let many = many.then_some(ENOSYS);
    let processors = (policy.affinity == Affinity::Fixed && name == "sched_setaffinity").then_some(EPERM);
    modes.or(memory).or(many).or(processors)
}

/// How far a call is open.
enum Opening {
    Shut,
    Whole,
    Guarded(Alternatives),
}

fn opening(base: &Base, policy: &Policy, name: &str) -> Opening {
    if policy.nesting == Nesting::Allow && base.nest.contains(&name) {
        return Opening::Whole;
    }
    let guards = || base.guards.iter().filter(|guard| guard.call == name);
    let mut held: Vec<&Guard> = guards().filter(|guard| guard.cap.is_none_or(|cap| holds(policy, cap))).collect();
    let named = has(&policy.allow, name) || has(&policy.log, name);
    if held.is_empty() && named {
        // Opened by name, but what a capability would open only in part is open no further.
        held = guards().collect();
    }
    if !held.is_empty() {
        let any = held.iter().flat_map(|guard| guard.any);
        return Opening::Guarded(any.map(|all| all.to_vec()).collect());
    }
    let by_capability = || base.caps.iter().any(|(cap, calls)| calls.contains(&name) && holds(policy, cap));
    if named || base.allow.contains(&name) || by_capability() {
        return Opening::Whole;
    }
    Opening::Shut
}

/// Takes out of what is open the calls whose arguments of these numbers each have one of these values.
fn except(opened: Verdict, values: &[(u8, &'static [u64])], answer: Action) -> Verdict {
    let one = |(arg, values): &(u8, &'static [u64])| Condition {
        arg: *arg,
        width: Width::Low32,
        mask: u64::MAX,
        test: Test::In(Cow::Borrowed(values)),
    };
    Verdict::Ordered { first: vec![(values.iter().map(one).collect(), answer)], then: Box::new(opened) }
}

fn has(list: &[String], name: &str) -> bool {
    list.iter().any(|entry| entry == name)
}

fn holds(policy: &Policy, cap: &str) -> bool {
    policy.cap_add.iter().any(|held| {
        let held = held.to_ascii_uppercase();
        held.strip_prefix("CAP_").unwrap_or(&held) == cap
    })
}
