//! The table: one row a feature, from what the probes found and what was read. Pure.

use super::causes::{self, Cause, cause};
use super::facts::Facts;
use super::probe::{Outcome, Refusal};
use super::{BY_FUSE, Feature, Findings, Row, State, kernel, limits as kept};
use crate::host::fuse::replaces;
use crate::host::{CORES_PIPED, TMPFS_XATTRS};
use crate::spec::DEFAULT_PIDS;
use crate::sys::{EDQUOT, EIO, ENOENT, EOPNOTSUPP};

/// The oldest kernel with all that sbx stands on: mount_setattr, cgroup.kill, process limits of a user namespace.
const OLDEST: (u32, u32) = (5, 14);
/// From this ABI on (Linux 6.12) Landlock has all that sbx makes use of: scopes for signals and abstract sockets.
const LANDLOCK_ABI: u32 = 6;
/// A range of so many ids holds every id of a usual root file system.
const ENOUGH_IDS: u64 = 65_536;

/// Every row, in the order in which one stands on another.
pub fn rows(found: &Findings, facts: &Facts) -> Vec<Row> {
    let mut rows = vec![version(facts), user(found, facts)];
    rows.extend(namespaces(found, facts));
    rows.extend([system_calls(found, facts), seccomp(found, facts), landlock(found, facts)]);
    let fuse = fuse(found, facts);
    rows.extend(mounts(found, facts, &fuse));
    rows.extend([ranges(found, facts), fuse, limits(facts)]);
    rows.extend(kept::rows(facts));
    rows.push(keyrings(found, facts));
    rows
}

pub(super) fn row(feature: Feature, needed: bool, enables: &'static str) -> Row {
    Row { feature, state: State::Ok, needed, enables, by: None, why: None, fix: None, file: None }
}

impl Row {
    pub(super) fn but(self, state: State, found: Cause) -> Row {
        Row { state, why: Some(found.why), fix: Some(found.fix), file: found.file, ..self }
    }

    /// The state that an outcome means, and the cause where it is not good.
    fn by(self, outcome: &Outcome, found: impl FnOnce() -> Cause) -> Row {
        match outcome {
            Outcome::Works => self,
            Outcome::Untried => Row { state: State::Untried, ..self },
            _ => self.but(State::Missing, found()),
        }
    }
}

fn version(facts: &Facts) -> Row {
    let row = row(Feature::Kernel, true, "everything");
    if facts.version() >= OLDEST {
        return row;
    }
    row.but(State::Missing, cause(format!("this is Linux {}", facts.release), "a kernel from 5.14"))
}

fn user(found: &Findings, facts: &Facts) -> Row {
    let row = row(Feature::UserNamespaces, true, "everything, without being root");
    row.by(&found.user, || causes::user_namespaces(&found.user, facts))
}

fn namespaces<'a>(found: &'a Findings, facts: &'a Facts) -> impl Iterator<Item = Row> + 'a {
    let words = [
        (Feature::MountNamespaces, "file systems of its own"),
        (Feature::PidNamespaces, "processes of its own, which all end with it"),
        (Feature::UtsNamespaces, "a host name of its own"),
        (Feature::IpcNamespaces, "shared memory and queues of its own"),
        (Feature::NetNamespaces, "no network but what is allowed"),
        (Feature::CgroupNamespaces, "control groups of the host hidden"),
        (Feature::TimeNamespaces, "clocks of its own (--time-offset)"),
    ];
    words.into_iter().zip(kernel::KINDS).zip(&found.kinds).map(|(((feature, enables), (kind, _)), outcome)| {
        row(feature, true, enables).by(outcome, || causes::namespace(kind, outcome, facts))
    })
}

fn system_calls(found: &Findings, facts: &Facts) -> Row {
    let row = row(Feature::SystemCalls, true, "mounts that no hostile root can divert");
    if !found.calls.is_empty() {
        return row.but(State::Missing, causes::calls(&found.calls, facts));
    }
    if found.clone3 == Outcome::Untried {
        return Row { state: State::Untried, ..row };
    }
    if found.clone3.errno() == Some(crate::sys::ENOSYS) {
        let hidden = causes::calls(&[("clone3".to_owned(), found.clone3.clone())], facts);
        return row.but(State::Limited, hidden);
    }
    row
}

fn seccomp(found: &Findings, facts: &Facts) -> Row {
    let row = row(Feature::Seccomp, true, "the filter of system calls");
    row.by(&found.seccomp, || match found.seccomp.errno() {
        Some(errno) => cause(
            format!("no filter can be loaded ({errno}); emulators such as qemu-user and Rosetta have none"),
            "a kernel with CONFIG_SECCOMP_FILTER; --seccomp off gives up a protection",
        ),
        None => causes::calls(&[("seccomp".to_owned(), found.seccomp.clone())], facts),
    })
}

fn landlock(found: &Findings, facts: &Facts) -> Row {
    let row = row(Feature::Landlock, false, "a second wall around files");
    let listed = facts.lsm.as_ref().map(|list| list.iter().any(|name| name == "landlock"));
    match (facts.landlock_abi, listed) {
        (0, Some(false)) => {
            let now = facts.lsm.as_ref().map(|list| list.join(",")).unwrap_or_default();
            let fix = format!("boot the kernel with lsm=landlock,{now}");
            row.but(State::Missing, cause(format!("landlock is not among the active modules ({now})"), fix))
        }
        (0, Some(true)) => row.but(State::Missing, causes::calls(&[("landlock".to_owned(), Outcome::Untried)], facts)),
        (0, None) if facts.user.is_empty() => Row { state: State::Untried, ..row },
        (0, None) => {
            let fix = "a kernel with CONFIG_SECURITY_LANDLOCK, and landlock in its lsm= list";
            row.but(State::Missing, cause("the kernel answers that it has none, or that it is off", fix))
        }
        _ if !found.landlock.works() => {
            let how = found.landlock.errno().map_or_else(|| "no answer".to_owned(), |errno| errno.to_string());
            let fix = "--landlock off, where the program cannot do without";
            row.but(State::Missing, cause(format!("a rule was taken but does not hold ({how})"), fix))
        }
        (abi, _) if abi < LANDLOCK_ABI => {
            let why = format!("ABI {abi}: signals and abstract sockets are not fenced (ABI {LANDLOCK_ABI} does)");
            row.but(State::Limited, cause(why, "a kernel from 6.12; nothing else is weaker"))
        }
        _ => row,
    }
}

fn mounts(found: &Findings, facts: &Facts, fuse: &Row) -> [Row; 4] {
    let overlay = row(Feature::Overlay, true, "a root that is never written");
    let mut overlay = overlay.by(&found.overlay, || causes::overlay(&found.overlay, facts));
    // Where the reason is an old tmpfs, a run goes to disk by itself.
    let old_tmpfs = matches!(found.overlay.errno(), Some(EIO | EOPNOTSUPP)) && facts.version() < TMPFS_XATTRS;
    if old_tmpfs {
        overlay.state = State::Limited;
    }
    if let (Outcome::Refused(Refusal { call, errno }), State::Ok) = (&found.overlay, fuse.state)
        && replaces(call.split(' ').next().unwrap_or_default(), *errno)
    {
        overlay = Row { state: State::Limited, fix: Some(BY_FUSE.to_owned()), ..overlay };
    }
    let devices = row(Feature::Devices, true, "a minimal /dev");
    let devices = match (found.devices.works(), facts.devices.is_empty()) {
        (true, false) => devices.but(State::Missing, causes::devices(&found.devices, facts)),
        _ => devices.by(&found.devices, || causes::devices(&found.devices, facts)),
    };
    [
        overlay,
        row(Feature::Proc, true, "a /proc of its own").by(&found.proc, || causes::proc(&found.proc, facts)),
        row(Feature::Sysfs, true, "a /sys of its own").by(&found.sysfs, || causes::sysfs(&found.sysfs, facts)),
        devices,
    ]
}

fn ranges(found: &Findings, facts: &Facts) -> Row {
    let row = row(Feature::IdRanges, false, "more than one user inside (--map full)");
    let count = |ranges: &[(u32, u32)]| ranges.iter().map(|(_, count)| u64::from(*count)).sum::<u64>();
    let least = count(&facts.subuids).min(count(&facts.subgids));
    match &found.ranges {
        Outcome::Works if !facts.real_root && least < ENOUGH_IDS => {
            let fix = format!(
                "as root: usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST {}, with {ENOUGH_IDS} ids each",
                facts.user
            );
            row.but(State::Limited, cause(format!("only {least} ids in /etc/subuid and /etc/subgid"), fix))
        }
        Outcome::Untried if !found.user.works() => Row { state: State::Untried, ..row },
        Outcome::Works => row,
        outcome => row.but(State::Missing, causes::ranges(outcome, facts)),
    }
}

fn fuse(found: &Findings, facts: &Facts) -> Row {
    let row = row(Feature::Fuse, false, "an overlay where the kernel's is refused");
    if facts.fuse_overlayfs.is_none() {
        let fix = "install the package fuse-overlayfs; needed only where the kernel refuses its own overlay";
        return row.but(State::Missing, cause("fuse-overlayfs is not on PATH", fix));
    }
    row.by(&found.fuse, || {
        let errno = found.fuse.errno().map_or_else(|| "no answer".to_owned(), |errno| errno.to_string());
        let fix = match (&facts.container, found.fuse.errno()) {
            (Some(_), Some(ENOENT)) => "the container's --device /dev/fuse",
            _ => "as root: modprobe fuse; chmod 666 /dev/fuse",
        };
        cause(format!("/dev/fuse: {errno}"), fix)
    })
}

fn limits(facts: &Facts) -> Row {
    let row = row(Feature::Limits, true, "crashes kept from the host, processes counted");
    let most = DEFAULT_PIDS + 1;
    match (facts.hard_core, facts.hard_nproc) {
        (Some(0), _) if facts.core_piped => row.but(State::Missing, cause(CORES_PIPED.0, CORES_PIPED.1)),
        (Some(_), Some(hard)) if hard < most => {
            let why = format!("your hard limit on processes is {hard}, and no sandbox of yours can have more");
            row.but(State::Limited, cause(why, format!("`ulimit -Hu {most}`, by root or in limits.conf(5)")))
        }
        (Some(_), Some(_)) => row,
        _ => Row { state: State::Untried, ..row },
    }
}

fn keyrings(found: &Findings, facts: &Facts) -> Row {
    let row = row(Feature::Keyrings, false, "keys apart, where a policy allows keys");
    let name = if facts.uid == 0 { "kernel.keys.root_maxkeys" } else { "kernel.keys.maxkeys" };
    let raise = || format!("as root: sysctl -w {name}=2000");
    match (&found.keyring, facts.keys) {
        (outcome, keys) if outcome.errno() == Some(EDQUOT) => {
            let (used, most) = keys.unwrap_or_default();
            row.but(State::Missing, cause(format!("{used} of this user's {most} keys are in use"), raise()))
        }
        (Outcome::Works, Some((used, most))) if used * 10 >= most * 9 => {
            row.but(State::Limited, cause(format!("{used} of this user's {most} keys are in use"), raise()))
        }
        (outcome, _) => row.by(outcome, || causes::calls(&[("keyctl".to_owned(), outcome.clone())], facts)),
    }
}
