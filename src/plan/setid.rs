//! The filter that refuses set-user-id and set-group-id bits, for when a host path is writable and there is no other
//! filter: a policy's own refuses them itself ([`SetId`](super::rules::SetId)).
//!
//! Inside, user 0 is the caller; a file it makes set-user-id on the host runs as the caller for
//! anyone. Two calls carry modes where no filter can look: [`HIDDEN_MODES`].
//! mkdir needs no rule, for the kernel drops these bits from its mode.

use super::bpf::{self, Action, Insn, Rules, Verdict};
use super::invariants::{HIDDEN_MODES, MAKES_A_FILE, MODES, SET_ID_BITS};
use super::syscalls::Arch;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// The filter on modes.
pub fn program(arch: Arch) -> Vec<Insn> {
    let filter = filter(arch).expect("the rules are constant and hold no empty list");
    let filter = filter.into_iter().map(|insn| Insn { code: insn.code, jt: insn.jt, jf: insn.jf, k: insn.k });
    second_abi_check(arch).into_iter().chain(filter).collect()
}

/// A further filter, for a run without any policy: answers the calls that hide a mode.
pub fn hidden_modes_program(arch: Arch) -> Vec<Insn> {
    let calls = HIDDEN_MODES.into_iter().filter_map(|(name, answer)| {
        let number = arch.number(name)?;
        Some((number, Verdict::Always(answer)))
    });
    let rules = Rules { arch, unlisted: Action::Allow, calls: calls.collect() };
    bpf::compile(&rules).expect("four rules without arguments fit a program")
}

fn filter(arch: Arch) -> Result<BpfProgram, BackendError> {
    let mut calls = BTreeMap::new();
    for (name, flags, mode) in MODES {
        // aarch64 has only the forms with `at`.
        if let Some(number) = arch.number(name) {
            calls.insert(i64::from(number), refusals(flags, mode)?);
        }
    }
    let target = match arch {
        // Only profiles open i386, and then a policy's filter is in force.
        Arch::X86_64 | Arch::X86 => TargetArch::x86_64,
        Arch::Aarch64 => TargetArch::aarch64,
    };
    let refused = SeccompAction::Errno(1);
    SeccompFilter::new(calls, SeccompAction::Allow, refused, target)?.try_into()
}

/// One rule for each way to set a bit; any of them refuses the call.
fn refusals(flags: Option<u8>, mode: u8) -> Result<Vec<SeccompRule>, BackendError> {
    let mut refusals = Vec::new();
    for bit in bits(SET_ID_BITS) {
        let Some(flags) = flags else {
            refusals.push(SeccompRule::new(vec![has_bit(mode, bit)?])?);
            continue;
        };
        for makes in bits(MAKES_A_FILE) {
            let all = vec![has_bit(flags, makes)?, has_bit(mode, bit)?];
            refusals.push(SeccompRule::new(all)?);
        }
    }
    Ok(refusals)
}

/// Each bit of a mask: seccompiler compares with one value.
fn bits(mask: u64) -> impl Iterator<Item = u64> {
    (0..u64::BITS).map(|bit| 1 << bit).filter(move |bit| mask & bit != 0)
}

/// Flags and modes are 32 bits or fewer in the kernel, so the upper half must not count.
fn has_bit(arg: u8, bit: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(arg, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bit), bit)
}

/// Kills x32 calls, which seccompiler's check of the architecture lets by; -1 is none (see `bpf`).
fn second_abi_check(arch: Arch) -> Vec<Insn> {
    let Some(first) = arch.second_abi() else {
        return Vec::new();
    };
    vec![
        Insn { code: bpf::LOAD, jt: 0, jf: 0, k: 0 },
        Insn { code: bpf::AT_LEAST, jt: 0, jf: 2, k: first },
        Insn { code: bpf::EQUAL, jt: 1, jf: 0, k: u32::MAX },
        Insn { code: bpf::RETURN, jt: 0, jf: 0, k: Action::KillProcess.value() },
    ]
}
