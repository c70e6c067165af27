//! Probes of the kernel itself: namespaces, system calls, seccomp, Landlock, keyrings.
//!
//! A namespace is not only made but used: Ubuntu 24.04 lets every user make one and then refuses whatever the
//! capabilities in it are good for (DESIGN 4.9).

use super::probe::{By, Outcome, Probes, Refusal};
use crate::sys::fs::{HERE, Open, open_in_root, openat};
use crate::sys::mount::{self, Attr, Depth};
use crate::sys::process::{self, Namespaces};
use crate::sys::seccomp::Insn;
use crate::sys::{self, EACCES, ENOSYS, EPERM, Errno, cred, net};
use std::os::fd::AsFd;

/// What each kind of namespace is called in a row, in `clone` and in /proc/sys/user/max_*_namespaces.
pub(super) const KINDS: [(&str, Namespaces); 7] = [
    ("mount", Namespaces::MOUNT),
    ("pid", Namespaces::PID),
    ("uts", Namespaces::UTS),
    ("ipc", Namespaces::IPC),
    ("net", Namespaces::NET),
    ("cgroup", Namespaces::CGROUP),
    ("time", Namespaces::TIME),
];

/// What the kernel knows as the limit of a kind.
pub(super) fn sysctl_of(kind: &str) -> String {
    format!("user.max_{}_namespaces", if kind == "mount" { "mnt" } else { kind })
}

/// A user namespace, its maps, and two uses of its capabilities.
pub(super) fn user_namespace(probes: &Probes) -> Outcome {
    let made = probes.run(Namespaces::USER, || Ok(()));
    if !made.works() {
        return made;
    }
    // A kernel without one of the other kinds says EINVAL, one without a call ENOSYS; that is told in their rows.
    let lacking = |outcome: &Outcome| matches!(outcome.errno(), Some(sys::EINVAL | ENOSYS));
    let named = probes.run(Namespaces::USER | Namespaces::UTS, || net::sethostname(b"sbx-check").by("sethostname"));
    if !named.works() && !lacking(&named) && !out_of(&named) {
        return named;
    }
    let mounted = probes.run(Namespaces::USER | Namespaces::MOUNT, super::mounts::tmpfs);
    if !mounted.works() && !lacking(&mounted) && !out_of(&mounted) { mounted } else { Outcome::Works }
}

/// The limit of another kind of namespace was reached: that kind's row tells.
fn out_of(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(Refusal { call, errno: sys::ENOSPC }) if call == "clone3")
}

/// One namespace of each kind, made in a user namespace as a run does it, and used where that shows something.
pub(super) fn namespaces(probes: &Probes) -> Vec<Outcome> {
    let probe = |(kind, new): (&str, Namespaces)| {
        let kind = kind.to_owned();
        probes.run(Namespaces::USER | new, move || match kind.as_str() {
            "mount" => super::mounts::tmpfs(),
            "pid" if process::getpid() != 1 => Err(Refusal { call: "getpid".into(), errno: sys::NOT_TAKEN }),
            "uts" => net::sethostname(b"sbx-check").by("sethostname"),
            "net" => net::loopback_up().by("set the loopback interface up"),
            _ => Ok(()),
        })
    };
    KINDS.map(probe).into()
}

type Call = (&'static str, fn() -> sys::Result<()>);

/// The calls that a run cannot do without. Each is made with arguments that the kernel refuses, or that do no
/// harm; what counts is whether the answer is one of the kernel or of a filter.
const CALLS: [Call; 8] = [
    ("openat2", || open_in_root(HERE, c".", Open::Path).map(drop)),
    ("open_tree", || mount::open_tree(HERE, c"/", Depth::Single).map(drop)),
    ("move_mount", || openat(HERE, c"/", Open::Path).and_then(|root| mount::move_mount(root.as_fd(), root.as_fd()))),
    ("fsopen", || mount::fsopen(c"tmpfs").map(drop)),
    ("fsmount", || {
        let context = mount::fsopen(c"tmpfs")?;
        mount::fsconfig_create(context.as_fd())?;
        mount::fsmount(context.as_fd(), Attr::NOSUID).map(drop)
    }),
    ("mount_setattr", || {
        let root = openat(HERE, c"/", Open::Path)?;
        mount::mount_setattr(root.as_fd(), Attr::NONE, Depth::Single)
    }),
    ("pidfd_open", || process::pidfd_open(process::getpid()).map(drop)),
    ("close_range", || process::close_range(1 << 30, 1 << 30)),
];

/// The names of the calls that are missing: unknown (ENOSYS), or forbidden where they need no more privilege
/// than their process has. In a mount namespace of its own where that can be had, else as the caller.
pub(super) fn calls(probes: &Probes, namespaces_work: bool) -> Vec<(String, Outcome)> {
    let new = if namespaces_work { Namespaces::USER | Namespaces::MOUNT } else { Namespaces::NONE };
    let mut missing = Vec::new();
    for (name, call) in CALLS {
        let outcome = probes.run(new, || match call() {
            Err(errno @ ENOSYS) => Err(errno).by(name),
            Err(errno @ (EPERM | EACCES)) if namespaces_work => Err(errno).by(name),
            _ => Ok(()),
        });
        if !outcome.works() {
            missing.push((name.to_owned(), outcome));
        }
    }
    missing
}

/// Whether clone3 is there: without it sbx falls back to clone.
pub(super) fn clone3(probes: &Probes) -> Outcome {
    probes.run(Namespaces::NONE, || match process::has_clone3() {
        true => Ok(()),
        false => Err(ENOSYS).by("clone3"),
    })
}

/// An argument that no call of this process has, so that a filter on it harms nothing.
const MARK: i32 = 0x5b5c_5d5e;
/// ENOTSUP, which kill(2) never returns.
const TOLD: Errno = Errno(95);

/// Loads a filter and sees it bite: emulators such as Rosetta or qemu-user take none, or take it and do nothing.
pub(super) fn seccomp(probes: &Probes) -> Outcome {
    let low_word = if cfg!(target_endian = "little") { 16 } else { 20 };
    let (load, equal, give) = (0x20, 0x15, 0x06);
    let allow = 0x7fff_0000;
    let filter = [
        Insn { code: load, jt: 0, jf: 0, k: low_word },
        Insn { code: equal, jt: 0, jf: 1, k: MARK as u32 },
        Insn { code: give, jt: 0, jf: 0, k: 0x0005_0000 | TOLD.0 as u32 },
        Insn { code: give, jt: 0, jf: 0, k: allow },
    ];
    probes.run(Namespaces::NONE, || {
        process::no_new_privs().by("prctl(PR_SET_NO_NEW_PRIVS)")?;
        sys::seccomp::load(&filter).by("seccomp")?;
        match process::kill(MARK, 0) {
            Err(TOLD) => Ok(()),
            _ => Err(sys::NOT_TAKEN).by("a loaded seccomp filter"),
        }
    })
}

/// Restricts a process by Landlock and sees it bite; only the version alone would lie where a filter fakes it.
pub(super) fn landlock(probes: &Probes) -> Outcome {
    use landlock::{AccessFs, Ruleset, RulesetAttr};
    const REFUSED: &str = "landlock_restrict_self";
    probes.run(Namespaces::NONE, || {
        let made = Ruleset::default().handle_access(AccessFs::WriteFile).and_then(Ruleset::create);
        made.and_then(|ruleset| ruleset.restrict_self()).map_err(|_| Errno::last()).by(REFUSED)?;
        // A file that everybody may write but for Landlock; where it is missing, nothing can be seen.
        match openat(HERE, c"/dev/null", Open::Write) {
            Ok(_) => Err(sys::NOT_TAKEN).by("a Landlock rule"),
            Err(_) => Ok(()),
        }
    })
}

/// A new session keyring; it goes with its process.
pub(super) fn keyring(probes: &Probes) -> Outcome {
    probes.run(Namespaces::NONE, || cred::new_session_keyring().by("keyctl"))
}
