//! The Landlock rules of a plan. The ruleset is made before the clone and shared by parent and child: the child adds the
//! rules, which need the new root, and restricts itself; the parent keeps it for each program that comes later, which is
//! so held by the very objects that the first one's rules were made of, wherever their paths lead by then.
//!
//! What is kept within a domain is a ruleset of its own, of the child: programs that came at different times are in
//! domains of their own, and may send each other signals.

use super::script::Op;
use crate::error::{Error, Result};
use crate::host::files::c_path;
use crate::plan::{Grant, LandlockPlan, Scopes};
use crate::sys::{self, EMFILE, ENFILE, ENOMEM, Errno};
use landlock::{ABI, Access as _, AccessFs, AccessNet, BitFlags, Scope};
use std::os::fd::{AsFd, OwnedFd};

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

/// Makes the ruleset, without a rule. The rights are those of the kernel's ABI, which the plan has asked for, so none may
/// be refused.
///
/// # Errors
/// `Unsupported` where the kernel refuses it, `Sys` where files or memory ran out.
pub(super) fn make(plan: &LandlockPlan) -> Result<OwnedFd> {
    let handled = ports(plan).fold(BitFlags::EMPTY, |all, (right, _)| all | right);
    let files = if plan.files { AccessFs::from_all(abi(plan.abi)) } else { BitFlags::EMPTY };
    let ruleset = sys::landlock::create(files.bits(), handled.bits(), 0).map_err(refused)?;
    for (right, ports) in ports(plan) {
        for port in ports {
            sys::landlock::allow_port(ruleset.as_fd(), *port, BitFlags::from(right).bits()).map_err(refused)?;
        }
    }
    Ok(ruleset)
}

/// What is restricted of ports, and which are allowed.
fn ports(plan: &LandlockPlan) -> impl Iterator<Item = (AccessNet, &Vec<u16>)> {
    let rights = [AccessNet::BindTcp, AccessNet::ConnectTcp];
    rights.into_iter().zip(&plan.ports).filter_map(|(right, ports)| Some((right, ports.as_ref()?)))
}

/// What the child does with it.
pub(super) fn restrict(plan: &LandlockPlan) -> Op {
    let abi = abi(plan.abi);
    let all = AccessFs::from_all(abi);
    let scopes = match plan.scopes {
        Scopes::All => Scope::from_all(abi),
        Scopes::Sockets => Scope::AbstractUnixSocket.into(),
        Scopes::Signals => Scope::Signal.into(),
        Scopes::None => BitFlags::EMPTY,
    };
    // Where execution is a matter of places, the others do not grant it.
    let kept = if plan.exec.is_some() { !BitFlags::from(AccessFs::Execute) } else { BitFlags::all() };
    Op::Landlock {
        ruled: plan.has_rules(),
        files: plan.files,
        rules: plan
            .places
            .iter()
            .map(|(place, grant)| (c_path(place.as_path()), (rights(*grant, all) & kept).bits()))
            .collect(),
        executable: plan.exec.iter().flatten().map(|place| c_path(place.as_path())).collect(),
        file_rights: AccessFs::from_file(abi).bits(),
        scopes: scopes.bits(),
    }
}

/// Where files or memory ran out no option helps, and the number tells.
fn refused(errno: Errno) -> Error {
    match errno {
        EMFILE | ENFILE | ENOMEM => Error::Sys { doing: "make".into(), on: "the Landlock ruleset".into(), errno },
        errno => Error::Unsupported {
            feature: "Landlock".into(),
            why: format!("the kernel makes no ruleset: {errno}"),
            hint: Some("--landlock off".into()),
        },
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

    #[test]
    fn no_option_is_advised_where_files_or_memory_ran_out() {
        for ran_out in [EMFILE, ENFILE, ENOMEM] {
            assert!(matches!(refused(ran_out), Error::Sys { errno, .. } if errno == ran_out), "{ran_out}");
        }
        assert_eq!(refused(sys::EPERM).hint(), Some("--landlock off"));
    }
}
