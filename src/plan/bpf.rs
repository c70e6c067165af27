//! From rules to the program the kernel runs before every system call (classic BPF, seccomp(2)).
//!
//! The kernel emulates a new filter once for each system call number, to cache what is always
//! allowed (since 5.11), so what loading costs is the depth of the program: numbers of equal outcome
//! are folded into ranges, and a balanced tree of comparisons finds the range.
//!
//! The program is written from its end to its start. Jumps only go forward, so every target is known
//! when a jump to it is written, and one too far for eight bits gets a stepping stone right there.

use super::syscalls::Arch;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

/// One instruction, in the layout of the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Insn {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a condition holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// What the kernel does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Runs it.
    Allow,
    /// Runs it and notes it in the kernel's audit log.
    Log,
    /// Asks whoever listens, and waits for the answer.
    Notify,
    /// Does not run it; the caller gets this error.
    Errno(u16),
    /// Does not run it; the thread gets SIGSYS, which it may catch.
    Trap,
    /// Ends the thread.
    KillThread,
    /// Ends the process with SIGSYS.
    KillProcess,
}

impl Action {
    /// The value a filter returns for it (`SECCOMP_RET_*`).
    pub const fn value(self) -> u32 {
        match self {
            Self::Allow => 0x7FFF_0000,
            Self::Log => 0x7FFC_0000,
            Self::Notify => 0x7FC0_0000,
            Self::Errno(errno) => 0x0005_0000 | errno as u32,
            Self::Trap => 0x0003_0000,
            Self::KillThread => 0,
            Self::KillProcess => 0x8000_0000,
        }
    }
}

/// How much of an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// The low half. Right where the kernel's parameter is an `int`: it drops the upper half, so a
    /// comparison of all 64 bits could be fooled by setting one there (CVE-2019-10063).
    Low32,
    /// All of it.
    Full64,
}

/// What a masked argument is held against.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Test {
    /// It is one of these.
    In(Cow<'static, [u64]>),
    /// It is none of these.
    NotIn(Cow<'static, [u64]>),
    /// It is this or more, without a sign.
    AtLeast(u64),
    /// It is less than this, without a sign.
    Below(u64),
}

/// One condition on one argument: `argument & mask` is, or is not, in a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Which argument, from 0 to 5.
    pub arg: u8,
    /// How much of it counts.
    pub width: Width,
    /// The bits that count.
    pub mask: u64,
    /// What they are compared with.
    pub test: Test,
}

/// Alternatives, each a list of conditions that must all hold.
pub type Alternatives = Vec<Vec<Condition>>;

/// What happens to one system call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Always the same.
    Always(Action),
    /// It depends on the arguments.
    ByArgument {
        /// The arguments match if one of these does.
        any: Alternatives,
        /// The action for arguments that match.
        then: Action,
        /// The action for all others.
        otherwise: Action,
    },
    /// The first list of conditions that all hold decides.
    Ordered {
        /// The lists and their actions.
        first: Vec<(Vec<Condition>, Action)>,
        /// What happens where none holds.
        then: Box<Verdict>,
    },
}

impl Verdict {
    /// All its conditions.
    fn conditions(&self) -> Box<dyn Iterator<Item = &Condition> + '_> {
        match self {
            Self::Always(_) => Box::new(std::iter::empty()),
            Self::ByArgument { any, .. } => Box::new(any.iter().flatten()),
            Self::Ordered { first, then } => Box::new(first.iter().flat_map(|(all, _)| all).chain(then.conditions())),
        }
    }
}

/// A whole filter: one verdict a number, so that two rules can never disagree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The architecture; calls of any other ABI kill the process.
    pub arch: Arch,
    /// What happens to numbers without a verdict.
    pub unlisted: Action,
    /// The verdicts by number.
    pub calls: BTreeMap<u32, Verdict>,
}

/// Why rules could not become a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompileError {
    /// A condition names an argument a system call does not have.
    Argument {
        /// The number of the call.
        number: u32,
        /// The argument.
        arg: u8,
    },
    /// The program has more instructions than the kernel takes.
    TooLong(usize),
}

impl std::fmt::Display for CompileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Argument { number, arg } => write!(
                f,
                "a seccomp rule for system call {number} looks at argument {arg}: \
                 arguments are counted from 0 to 5"
            ),
            Self::TooLong(len) => write!(
                f,
                "the seccomp filter has {len} instructions: the kernel takes at most {MAX_LEN}. \
                 Use fewer argument rules"
            ),
        }
    }
}

impl std::error::Error for CompileError {}

/// The longest program the kernel takes (`BPF_MAXINSNS`).
pub const MAX_LEN: usize = 4096;

/// Loads a 32-bit word of `seccomp_data`.
pub const LOAD: u16 = 0x20;
/// Keeps the bits of the operand.
pub const AND: u16 = 0x54;
/// Jumps, always.
pub const JUMP: u16 = 0x05;
/// Jumps on equality.
pub const EQUAL: u16 = 0x15;
/// Jumps on "at least".
pub const AT_LEAST: u16 = 0x35;
/// Jumps if any bit of the operand is set.
pub const ANY_BIT: u16 = 0x45;
/// Ends with the operand as result.
pub const RETURN: u16 = 0x06;

const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

/// Turns rules into a program.
pub fn compile(rules: &Rules) -> Result<Vec<Insn>, CompileError> {
    compile_all(std::slice::from_ref(rules))
}

/// The same with the rules of further ABIs, of which each has its own numbers.
pub fn compile_all(all: &[Rules]) -> Result<Vec<Insn>, CompileError> {
    all.iter().try_for_each(check_arguments)?;
    let mut code = Backward::default();
    let mut other = code.end(Action::KillProcess);
    for rules in all.iter().rev() {
        let ranges: Vec<(u32, Label)> =
            ranges(rules).into_iter().map(|(start, verdict)| (start, code.verdict(verdict))).collect();
        let tree = code.tree(&ranges);
        code.go_to(tree);
        let own = code.put(LOAD, NUMBER);
        other = code.branch(EQUAL, rules.arch.audit(), own, other);
    }
    code.put(LOAD, ARCH);
    let mut program = code.reversed;
    program.reverse();
    if program.len() > MAX_LEN {
        return Err(CompileError::TooLong(program.len()));
    }
    Ok(program)
}

fn check_arguments(rules: &Rules) -> Result<(), CompileError> {
    for (number, verdict) in &rules.calls {
        if let Some(bad) = verdict.conditions().find(|condition| condition.arg > 5) {
            let (number, arg) = (*number, bad.arg);
            return Err(CompileError::Argument { number, arg });
        }
    }
    Ok(())
}

/// The first number and the verdict of each range; together they cover all numbers.
fn ranges(rules: &Rules) -> Vec<(u32, Verdict)> {
    let unlisted = Verdict::Always(rules.unlisted);
    let mut ranges = Vec::new();
    let mut next = 0;
    let end = rules.arch.second_abi().map_or(1 << 32, u64::from);
    for (number, verdict) in &rules.calls {
        let number = u64::from(*number);
        if number >= end {
            break;
        }
        if next < number {
            extend(&mut ranges, next, &unlisted);
        }
        extend(&mut ranges, number, verdict);
        next = number + 1;
    }
    if next < end {
        extend(&mut ranges, next, &unlisted);
    }
    if rules.arch.second_abi().is_some() {
        extend(&mut ranges, end, &Verdict::Always(Action::KillProcess));
        // -1 is no call of any ABI: a tracer writes it over the number to skip a call, and the
        // filter sees it (the tracer comes first since 4.8). Killing would break such tracers.
        extend(&mut ranges, u64::from(u32::MAX), &unlisted);
    }
    ranges
}

fn extend(ranges: &mut Vec<(u32, Verdict)>, start: u64, verdict: &Verdict) {
    if ranges.last().is_none_or(|(_, last)| last != verdict) {
        let start = u32::try_from(start).expect("a range starts at a 32-bit number");
        ranges.push((start, verdict.clone()));
    }
}

/// A place in a program that is written backward: an index into `reversed`.
type Label = usize;

/// A program under construction, last instruction first.
#[derive(Default)]
struct Backward {
    reversed: Vec<Insn>,
    ends: HashMap<Action, Label>,
    checks: HashMap<Verdict, Label>,
    /// The nearest stepping stone to a far label.
    stones: HashMap<Label, Label>,
}

impl Backward {
    fn put(&mut self, code: u16, k: u32) -> Label {
        self.push(Insn { code, jt: 0, jf: 0, k })
    }

    fn push(&mut self, insn: Insn) -> Label {
        self.reversed.push(insn);
        self.reversed.len() - 1
    }

    /// How many instructions one put now would have to skip to get to `target`.
    fn distance(&self, target: Label) -> usize {
        self.reversed.len() - target - 1
    }

    /// The instruction that ends with `action`; there is one for each action.
    fn end(&mut self, action: Action) -> Label {
        if let Some(label) = self.ends.get(&action) {
            return *label;
        }
        let label = self.put(RETURN, action.value());
        self.ends.insert(action, label);
        label
    }

    fn verdict(&mut self, verdict: Verdict) -> Label {
        if let Some(label) = self.checks.get(&verdict) {
            return *label;
        }
        let label = match &verdict {
            Verdict::Always(action) => self.end(*action),
            Verdict::ByArgument { any, then, otherwise } => {
                let (yes, no) = (self.end(*then), self.end(*otherwise));
                any.iter().rev().fold(no, |no, all| self.all_of(all, yes, no))
            }
            Verdict::Ordered { first, then } => {
                let last = self.verdict((**then).clone());
                first.iter().rev().fold(last, |next, (all, action)| {
                    let yes = self.end(*action);
                    self.all_of(all, yes, next)
                })
            }
        };
        self.checks.insert(verdict, label);
        label
    }

    fn all_of(&mut self, conditions: &[Condition], yes: Label, no: Label) -> Label {
        let conditions = conditions.iter().rev();
        conditions.fold(yes, |yes, condition| self.condition(condition, yes, no))
    }

    fn condition(&mut self, condition: &Condition, yes: Label, no: Label) -> Label {
        let (values, hit, miss) = match &condition.test {
            Test::In(values) => (values, yes, no),
            Test::NotIn(values) => (values, no, yes),
            Test::AtLeast(least) => return self.at_least(condition, *least, yes, no),
            Test::Below(least) => return self.at_least(condition, *least, no, yes),
        };
        let low = ARGS + 8 * u32::from(condition.arg);
        let (mask_high, mask_low) = halves(condition.mask);
        let mut by_high: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for value in values.iter() {
            let (high, low) = halves(*value);
            by_high.entry(high).or_default().push(low);
        }
        if condition.width == Width::Low32 {
            // A value with upper bits can never be the low half of anything.
            let lows = by_high.remove(&0).unwrap_or_default();
            return self.half(low, mask_low, &lows, hit, miss);
        }
        let groups = by_high.into_iter().rev();
        groups.fold(miss, |next, (high, lows)| {
            let inner = self.half(low, mask_low, &lows, hit, miss);
            self.half(low + 4, mask_high, &[high], inner, next)
        })
    }

    /// Whether the argument, masked, is this or more.
    fn at_least(&mut self, condition: &Condition, least: u64, yes: Label, no: Label) -> Label {
        let at = ARGS + 8 * u32::from(condition.arg);
        let (mask, bound) = (halves(condition.mask), halves(least));
        if condition.width == Width::Low32 {
            if bound.0 > 0 {
                return no;
            }
            self.branch(AT_LEAST, bound.1, yes, no);
            return self.masked(at, mask.1);
        }
        self.branch(AT_LEAST, bound.1, yes, no);
        let low = self.masked(at, mask.1);
        let equal = self.branch(EQUAL, bound.0, low, yes);
        self.branch(AT_LEAST, bound.0, equal, no);
        self.masked(at + 4, mask.0)
    }

    /// Loads one word and keeps the bits of the mask.
    fn masked(&mut self, at: u32, mask: u32) -> Label {
        if mask != u32::MAX {
            self.put(AND, mask);
        }
        self.put(LOAD, at)
    }

    /// Compares one word of the call's data, masked, with a list.
    fn half(&mut self, at: u32, mask: u32, values: &[u32], hit: Label, miss: Label) -> Label {
        if values.is_empty() {
            return miss;
        }
        if mask == 0 {
            return if values.contains(&0) { hit } else { miss };
        }
        if values == [0] && mask != u32::MAX {
            self.branch(ANY_BIT, mask, miss, hit);
            return self.put(LOAD, at);
        }
        values.iter().rev().fold(miss, |next, value| self.branch(EQUAL, *value, hit, next));
        self.masked(at, mask)
    }

    /// The tree that finds the range of the number in the accumulator.
    fn tree(&mut self, ranges: &[(u32, Label)]) -> Label {
        if let [(_, label)] = ranges {
            return *label;
        }
        let (left, right) = ranges.split_at(ranges.len() / 2);
        let start = right[0].0;
        let right = self.tree(right);
        let left = self.tree(left);
        self.branch(AT_LEAST, start, right, left)
    }

    /// Makes the next instruction put run into `target`.
    fn go_to(&mut self, target: Label) {
        let skip = self.distance(target);
        if skip > 0 {
            self.put(JUMP, u32::try_from(skip).expect("a program is short"));
        }
    }

    fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        let (mut yes, mut no) = (yes, no);
        // A stone for one target pushes the branch away from the other: repeat until both fit.
        loop {
            match (self.skip(yes), self.skip(no)) {
                (Some(jt), Some(jf)) => return self.push(Insn { code, jt, jf, k }),
                (None, _) => yes = self.stone(yes),
                (_, None) => no = self.stone(no),
            }
        }
    }

    fn skip(&self, target: Label) -> Option<u8> {
        u8::try_from(self.distance(target)).ok()
    }

    /// A place within reach that leads to `target`.
    fn stone(&mut self, target: Label) -> Label {
        if let Some(stone) = self.stones.get(&target)
            && self.skip(*stone).is_some()
        {
            return *stone;
        }
        let stone = match self.reversed[target] {
            end @ Insn { code: RETURN, .. } => self.push(end),
            _ => {
                let skip = u32::try_from(self.distance(target)).expect("a program is short");
                self.put(JUMP, skip)
            }
        };
        self.stones.insert(target, stone);
        stone
    }
}

fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(any: Alternatives) -> Rules {
        let verdict = Verdict::ByArgument { any, then: Action::Allow, otherwise: Action::Errno(1) };
        Rules { arch: Arch::Aarch64, unlisted: Action::Errno(38), calls: BTreeMap::from([(7, verdict)]) }
    }

    fn condition(arg: u8, values: Vec<u64>) -> Condition {
        let test = Test::In(values.into());
        Condition { arg, width: Width::Full64, mask: u64::MAX, test }
    }

    #[test]
    fn an_instruction_has_the_kernels_layout() {
        assert_eq!(size_of::<Insn>(), 8);
        assert_eq!(std::mem::offset_of!(Insn, jf), 3);
        assert_eq!(std::mem::offset_of!(Insn, k), 4);
    }

    #[test]
    fn a_seventh_argument_is_an_error() {
        let error = compile(&rules(vec![vec![condition(6, vec![0])]])).unwrap_err();
        assert_eq!(error, CompileError::Argument { number: 7, arg: 6 });
    }

    #[test]
    fn a_program_over_the_kernels_limit_is_an_error() {
        let values = |count: u64| (0..count).collect::<Vec<_>>();
        let small = compile(&rules(vec![vec![condition(0, values(3000))]])).unwrap();
        assert!(small.len() > 3000);
        let error = compile(&rules(vec![vec![condition(0, values(5000))]])).unwrap_err();
        assert!(matches!(error, CompileError::TooLong(len) if len > 5000));
    }

    #[test]
    fn rules_without_calls_are_one_answer() {
        let rules = Rules { calls: BTreeMap::new(), ..rules(vec![]) };
        let program = compile(&rules).unwrap();
        let answer = Insn { code: RETURN, jt: 0, jf: 0, k: Action::Errno(38).value() };
        assert!(program.contains(&answer));
        assert!(program.len() <= 6, "{program:?}");
    }
}
