//! A user's rules on system calls, and profiles of other programs' making, as rules of a filter.

use super::bpf::{Action, Condition, Test, Width};
use super::rules::{self, CallRule};
use super::seccomp::NATIVE;
use super::syscalls::Arch;
use crate::spec::access::Capabilities;
use crate::spec::seccomp::{Answer, Applies, Compare, Op, Profile, Rule};
use std::borrow::Cow;

/// The rules of a profile that apply to this sandbox and host. A call that no architecture of ours has is a newer
/// kernel's or another machine's; here it is answered ENOSYS.
pub fn applied(profile: &Profile, held: Capabilities, kernel: (u32, u32)) -> rules::Profile {
    let holds = |name: &String| {
        let name = name.strip_prefix("CAP_").unwrap_or(name);
        held.names().any(|held| held == name)
    };
    let here = |name: &String| name == NATIVE.go_name();
    let applies = |applies: &Applies| {
        applies.with_caps.iter().all(holds)
            && !applies.without_caps.iter().any(holds)
            && (applies.on.is_empty() || applies.on.iter().any(here))
            && !applies.not_on.iter().any(here)
            && applies.kernel.is_none_or(|least| kernel >= least)
            && applies.before_kernel.is_none_or(|end| kernel < end)
    };
    let rules = profile.rules.iter().filter(|(when, _)| applies(when)).map(|(_, rule)| exact(rule));
    rules::Profile { default: action(profile.default), rules: rules.collect() }
}

/// The further ABIs of a profile that sbx has the numbers of.
pub fn further(profile: &Profile) -> Vec<Arch> {
    let x86 = NATIVE == Arch::X86_64 && profile.foreign.iter().any(|name| name == "SCMP_ARCH_X86");
    if x86 { vec![Arch::X86] } else { Vec::new() }
}

/// A rule of a policy. The kernel drops the upper half of an `int`, and a bit there would lead past a comparison of the
/// whole (CVE-2019-10063). So where a value fits in an `int` or an `unsigned`, a denial holds if the argument matches
/// whole or by its low half, and an allowance only if it does both ways.
pub fn own(rule: &Rule) -> CallRule {
    let mut made = exact(rule);
    let denies = !matches!(rule.answer, Answer::Allow | Answer::Log);
    for (made, compare) in made.all.iter_mut().zip(&rule.args) {
        // Of these the comparison of the low half holds wherever that of the whole does; of the others it is the reverse.
        let wider = matches!(compare.op, Op::Equal | Op::Less | Op::AtMost);
        let negative = compare.value > u32::MAX.into();
        if let Some(low) = low(compare).filter(|_| wider == denies || negative && compare.op == Op::Equal) {
            *made = Condition { width: Width::Low32, ..condition(&low) };
        }
    }
    made
}

/// A comparison as one of the low half, where it is one of an `int`'s bits.
fn low(compare: &Compare) -> Option<Compare> {
    const NEGATIVE: u64 = i32::MIN as i64 as u64;
    let half = u64::from(u32::MAX);
    let whole = compare.mask == u64::MAX || compare.mask <= half;
    let (mask, value) = (compare.mask & half, compare.value & half);
    let fits = compare.value <= half || compare.value >= NEGATIVE && matches!(compare.op, Op::Equal | Op::Unequal);
    (whole && fits).then_some(Compare { mask, value, ..*compare })
}

/// A rule that means what it says of all 64 bits, as libseccomp's do.
fn exact(rule: &Rule) -> CallRule {
    CallRule { calls: rule.calls.clone(), all: rule.args.iter().map(condition).collect(), action: action(rule.answer) }
}

fn action(answer: Answer) -> Action {
    match answer {
        Answer::Allow => Action::Allow,
        Answer::Log => Action::Log,
        Answer::Errno(errno) => Action::Errno(errno),
        Answer::Trap => Action::Trap,
        Answer::KillThread => Action::KillThread,
        Answer::KillProcess => Action::KillProcess,
    }
}

/// A bound past the largest number is never, or always, reached.
fn condition(compare: &Compare) -> Condition {
    let one = |test: fn(Cow<'static, [u64]>) -> Test| test(Cow::Owned(vec![compare.value]));
    let (always, never) = (Test::AtLeast(0), Test::Below(0));
    let next = compare.value.checked_add(1);
    let test = match compare.op {
        Op::Equal => one(Test::In),
        Op::Unequal => one(Test::NotIn),
        Op::Less => Test::Below(compare.value),
        Op::AtMost => next.map_or(always, Test::Below),
        Op::More => next.map_or(never, Test::AtLeast),
        Op::AtLeast => Test::AtLeast(compare.value),
    };
    Condition { arg: compare.index, width: Width::Full64, mask: compare.mask, test }
}
