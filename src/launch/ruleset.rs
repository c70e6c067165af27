//! The Landlock ruleset of a plan, made before the clone since the crate allocates; the child adds the rules, which
//! need the new root, and restricts itself.

use super::script::Op;
use crate::error::{Error, Result};
use crate::host::files::c_path;
use crate::plan::{Grant, LandlockPlan};
use landlock::{ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};
use std::os::fd::OwnedFd;

fn abi(number: u32) -> ABI {
    match number {
        0 => ABI::Unsupported,
        1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        _ => ABI::V6,
    }
}

/// Makes the ruleset, before the clone since the crate allocates; its rules need the new root and are added by
/// the child. The rights are those of the kernel's ABI, which the plan has asked for, so none may be refused.
pub(super) fn landlock(plan: &LandlockPlan) -> Result<Op> {
    let abi = abi(plan.abi);
    // The crate's words end in a bare error number.
    let refuse = |why: String| {
        let why = why.split(" (os error").next().unwrap_or("").into();
        Error::Unsupported { feature: "Landlock".into(), why, hint: Some("--landlock off".into()) }
    };
    let all = AccessFs::from_all(abi);
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset = ruleset.handle_access(all).map_err(|e| refuse(e.to_string()))?;
    if plan.abi >= 6 {
        ruleset = ruleset.scope(Scope::from_all(abi)).map_err(|e| refuse(e.to_string()))?;
    }
    let created = ruleset.create().map_err(|e| refuse(e.to_string()))?;
    let ruleset = Option::<OwnedFd>::from(created).ok_or_else(|| refuse("the kernel gave no ruleset".into()))?;
    let rules =
        plan.places.iter().map(|(place, grant)| (c_path(place.as_path()), rights(*grant, all).bits())).collect();
    Ok(Op::Landlock { ruleset, rules, file_rights: AccessFs::from_file(abi).bits() })
}

fn rights(grant: Grant, handled: BitFlags<AccessFs>) -> BitFlags<AccessFs> {
    let read = AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::WriteFile | AccessFs::Truncate;
    let devices = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    handled
        & match grant {
            Grant::Read => read,
            Grant::WriteFiles => read | write,
            Grant::Change => handled & !devices,
            Grant::Devices => handled & !(AccessFs::MakeChar | AccessFs::MakeBlock),
        }
}
