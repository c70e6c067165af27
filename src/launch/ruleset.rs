//! The Landlock ruleset of a plan, made before the clone since the crate allocates; the child adds the rules, which
//! need the new root, and restricts itself.

use super::script::Op;
use crate::error::{Error, Result};
use crate::host::files::c_path;
use crate::plan::{Grant, LandlockPlan, Scopes};
use crate::sys::{EMFILE, ENFILE, ENOMEM, Errno};
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
    let all = AccessFs::from_all(abi);
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset = ruleset.handle_access(all).map_err(|e| refused(&e))?;
    if plan.abi >= 6 {
        let scopes = match plan.scopes {
            Scopes::All => Scope::from_all(abi),
            Scopes::Sockets => Scope::AbstractUnixSocket.into(),
            Scopes::None => BitFlags::EMPTY,
        };
        if !scopes.is_empty() {
            ruleset = ruleset.scope(scopes).map_err(|e| refused(&e))?;
        }
    }
    let created = ruleset.create().map_err(|e| refused(&e))?;
    let ruleset = Option::<OwnedFd>::from(created).ok_or_else(|| unsupported("the kernel gave no ruleset"))?;
    let rules =
        plan.places.iter().map(|(place, grant)| (c_path(place.as_path()), rights(*grant, all).bits())).collect();
    Ok(Op::Landlock { ruleset, rules, file_rights: AccessFs::from_file(abi).bits() })
}

fn unsupported(why: &str) -> Error {
    Error::Unsupported { feature: "Landlock".into(), why: why.into(), hint: Some("--landlock off".into()) }
}

/// Where files or memory ran out no option helps, and the number tells; the crate's own words end in it.
fn refused(error: &(dyn std::error::Error + 'static)) -> Error {
    let mut sources = std::iter::successors(Some(error), |error| error.source());
    let failed = sources.find_map(|source| source.downcast_ref::<std::io::Error>()?.raw_os_error()).map(Errno);
    match failed {
        Some(errno @ (EMFILE | ENFILE | ENOMEM)) => {
            Error::Sys { doing: "make".into(), on: "the Landlock ruleset".into(), errno }
        }
        _ => unsupported(error.to_string().split(" (os error").next().unwrap_or_default()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As the crate's: words that end in its source's.
    #[derive(Debug)]
    struct Outer(std::io::Error);

    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "failed to create a ruleset: {}", self.0)
        }
    }

    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn no_option_is_advised_where_files_or_memory_ran_out() {
        let of = |errno: Errno| refused(&Outer(std::io::Error::from_raw_os_error(errno.0)));
        for ran_out in [EMFILE, ENFILE, ENOMEM] {
            assert!(matches!(of(ran_out), Error::Sys { errno, .. } if errno == ran_out), "{ran_out}");
        }
        let other = of(crate::sys::EPERM);
        assert_eq!(other.hint(), Some("--landlock off"));
        assert!(!other.to_string().contains("os error"), "{other}");
    }
}
