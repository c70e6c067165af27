//! Rules of a filter on the arguments of system calls, and filters of other programs' making, as data.

use super::access::{Filter, Seccomp};
use super::errno;
use super::layer::{ArgTable, Layer, Origin, RuleTable};
use super::text::word;
use crate::error::{Error, Result};
use serde::Serialize;

/// What a filter answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The call runs.
    Allow,
    /// It runs, and is noted in the kernel's log.
    Log,
    /// It does not run, and fails with this error.
    Errno(u16),
    /// The thread gets SIGSYS.
    Trap,
    /// The thread ends.
    KillThread,
    /// The process ends.
    KillProcess,
}

/// How an argument is compared, without a sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// `==`
    Equal,
    /// `!=`
    Unequal,
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    More,
    /// `>=`
    AtLeast,
}

/// A comparison: `argument & mask OP value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Compare {
    /// Which argument, from 0 to 5.
    pub index: u8,
    /// The bits that count.
    pub mask: u64,
    /// How they are compared.
    pub op: Op,
    /// With what.
    pub value: u64,
}

/// A rule on some calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Names of calls; in a policy groups too.
    pub calls: Vec<String>,
    /// All of them have to hold.
    pub args: Vec<Compare>,
    /// What happens then.
    pub answer: Answer,
}

/// A filter of another program's making.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Profile {
    /// The file.
    pub file: String,
    /// What happens to calls without a rule.
    pub default: Answer,
    /// Its rules, each with where it applies.
    pub rules: Vec<(Applies, Rule)>,
    /// Further ABIs of this machine that it speaks of.
    pub foreign: Vec<String>,
}

/// Where a rule of a profile applies; what is empty does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Applies {
    /// With all of these capabilities.
    pub with_caps: Vec<String>,
    /// With none of these.
    pub without_caps: Vec<String>,
    /// On one of these architectures, in Go's words.
    pub on: Vec<String>,
    /// On none of these.
    pub not_on: Vec<String>,
    /// From this kernel on.
    pub kernel: Option<(u32, u32)>,
    /// Before this one.
    pub before_kernel: Option<(u32, u32)>,
}

/// Reads a `[[seccomp.rule]]`.
///
/// # Errors
/// `Spec` for an unknown action, error or comparison, and for an argument that no call has.
pub(super) fn rule(table: &RuleTable) -> Result<Rule> {
    const FIELD: &str = "[[seccomp.rule]]";
    if table.calls.is_empty() {
        return Err(Error::spec(FIELD, "calls", "a rule has to name calls"));
    }
    let name = table.calls.join(" ");
    let answer = match (table.action.as_deref(), &table.errno) {
        (None | Some("deny"), Some(errno)) => Answer::Errno(errno::number(errno).ok_or_else(|| {
            let error = Error::spec("errno", errno, "no such error");
            errno::near(errno).map_or(error.clone(), |near| error.or_try(near))
        })?),
        (Some(action), None) => {
            let deny = ("deny", Answer::Errno(1));
            word(
                "action",
                action,
                &[("allow", Answer::Allow), deny, ("log", Answer::Log), ("kill", Answer::KillProcess)],
            )?
        }
        (Some(action), Some(_)) => return Err(Error::spec("errno", action, "only a denial has an error")),
        (None, None) => return Err(Error::spec(FIELD, name, "action is missing").or_try("allow, deny, log, kill")),
    };
    let args = table.args.iter().map(compare).collect::<Result<Vec<_>>>()?;
    Ok(Rule { calls: table.calls.clone(), args, answer })
}

fn compare(table: &ArgTable) -> Result<Compare> {
    let ops = [
        ("==", Op::Equal),
        ("!=", Op::Unequal),
        ("<", Op::Less),
        ("<=", Op::AtMost),
        (">", Op::More),
        (">=", Op::AtLeast),
    ];
    if table.index > 5 {
        return Err(Error::spec("index", table.index, "arguments are counted from 0 to 5"));
    }
    Ok(Compare {
        index: table.index,
        mask: table.mask.map_or(u64::MAX, |mask| mask as u64),
        op: table.op.as_deref().map_or(Ok(Op::Equal), |op| word("op", op, &ops))?,
        value: table.value as u64,
    })
}

/// The filter of all layers. Only the command line lifts what a policy denies, and that is noted.
pub(super) fn resolve(layers: &[Layer], notes: &mut Vec<String>) -> Result<Seccomp> {
    let filters = [("default", Filter::Default), ("off", Filter::Off)];
    let chosen = layers.iter().rev().find(|layer| layer.seccomp.filter.is_some());
    let filter = chosen.and_then(|layer| layer.seccomp.filter.as_deref());
    let filter = filter.map_or(Ok(Filter::Default), |filter| word("--seccomp", filter, &filters))?;
    let profile = chosen.and_then(|layer| layer.seccomp.profile.clone());
    if let Some(Profile { file, foreign, .. }) = &profile {
        // Of i386 sbx has the numbers (`plan/call_rules.rs`).
        let others = foreign.iter().filter(|abi| *abi != "SCMP_ARCH_X86");
        notes
            .extend(others.map(|abi| format!("{file}: calls of {abi} end the process here, whatever it says of them")));
    }
    let mut found = Seccomp { filter, profile, ..Seccomp::default() };
    let denies = |layer: &Layer| !layer.seccomp.deny.is_empty() || !layer.seccomp.rule.is_empty();
    let denied = layers.iter().any(|layer| layer.origin != Origin::Argv && denies(layer));
    let by_argv = layers.iter().any(|layer| layer.origin == Origin::Argv && layer.seccomp.filter.is_some());
    match (filter, denied) {
        (Filter::Off, true) if by_argv => notes.push("--seccomp off lifts a policy's denials".into()),
        (Filter::Off, true) => {
            let why = "another policy denies calls, and only the command line may lift that";
            return Err(Error::spec("[seccomp] filter", "off", why).or_try("--seccomp off"));
        }
        _ => {}
    }
    for layer in layers {
        if layer.origin == Origin::Argv {
            for name in layer.seccomp.allow.iter().filter(|name| found.deny.contains(name)) {
                notes.push(format!("allowing {name} lifts a policy's denial"));
            }
            found.deny.retain(|name| !layer.seccomp.allow.contains(name));
        }
        found.allow.extend(layer.seccomp.allow.iter().cloned());
        found.deny.extend(layer.seccomp.deny.iter().cloned());
        found.log.extend(layer.seccomp.log.iter().cloned());
        let rules = layer.seccomp.rule.iter().map(rule).collect::<Result<Vec<_>>>()?;
        found.rules.extend(rules);
    }
    Ok(found)
}
