//! From a refusal and the facts to a cause: why, and what helps. Pure, and the one place of these sentences: the
//! table of `sbx check` and the last lines of a failed run say the same.

use super::facts::Facts;
use super::probe::{Outcome, Refusal};
use super::{ReadyFile, kernel};
use crate::host::TMPFS_XATTRS;
use crate::sys::{EACCES, EINVAL, EIO, ENODEV, ENOENT, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, ETIMEDOUT};

/// The kernel nests user namespaces no deeper (user_namespaces(7)).
const DEEPEST: u32 = 33;

/// See the head of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause {
    pub why: String,
    pub fix: String,
    pub file: Option<ReadyFile>,
}

pub(super) fn cause(why: impl Into<String>, fix: impl Into<String>) -> Cause {
    Cause { why: why.into(), fix: fix.into(), file: None }
}

/// Outcomes whose reason does not depend on what was tried.
fn common(outcome: &Outcome, facts: &Facts) -> Result<Refusal, Cause> {
    match outcome {
        Outcome::Refused(refusal) => Ok(refusal.clone()),
        Outcome::Killed(signal) => Err(Cause {
            why: format!(
                "the process that tried it was killed by signal {signal}, as a seccomp filter around sbx does"
            ),
            ..outer_filter(facts)
        }),
        Outcome::Hung => Err(cause("no answer within 2 s", "sbx check again, when the machine is less busy")),
        Outcome::Works | Outcome::Untried => Err(cause("not tried: it needs what is missing above", "see above")),
    }
}

fn said(refusal: &Refusal) -> String {
    format!("{}: {}", refusal.call, refusal.errno)
}

/// Why a user namespace cannot be had, or is good for nothing.
pub(super) fn user_namespaces(outcome: &Outcome, facts: &Facts) -> Cause {
    let refusal = match common(outcome, facts) {
        Ok(refusal) => refusal,
        Err(cause) => return cause,
    };
    let refused = matches!(refusal.errno, EPERM | EACCES);
    if refusal.call != "clone3" {
        return useless(&refusal, facts);
    }
    match refusal.errno {
        ENOSPC => no_more("user", facts),
        EINVAL => cause("this kernel is built without user namespaces (CONFIG_USER_NS)", "another kernel"),
        ENOSYS if facts.seccomp => outer_filter(facts),
        _ if refused && !facts.real_root && is(facts, "kernel.unprivileged_userns_clone", "0") => cause(
            "kernel.unprivileged_userns_clone is 0: only root may make user namespaces",
            "as root: sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        // A filter refuses the clone itself; AppArmor as Ubuntu 24.04 sets it up refuses only what comes after.
        _ if refused && facts.seccomp => outer_filter(facts),
        _ if refused && restricted(facts) => apparmor(facts),
        _ if refused && facts.chrooted => cause(
            "sbx runs in a chroot, where the kernel lets nobody make user namespaces",
            "start it outside, or make that directory the root by pivot_root",
        ),
        _ if refused && facts.proc_options.is_none() => cause(
            format!("{}; without /proc nothing tells why, but a chroot refuses just so", said(&refusal)),
            "start it outside of a chroot, or mount -t proc proc /proc and check again",
        ),
        _ if refusal.errno == EACCES && facts.selinux => selinux(),
        _ => unknown(&refusal),
    }
}

/// It can be made, but what is done in it is refused.
fn useless(refusal: &Refusal, facts: &Facts) -> Cause {
    match refusal.errno {
        EPERM | EACCES if restricted(facts) => apparmor(facts),
        ENOENT if refusal.call.starts_with("write ") => no_proc(),
        _ => mount(refusal, facts),
    }
}

/// Why a namespace of another kind cannot be had.
pub(super) fn namespace(kind: &str, outcome: &Outcome, facts: &Facts) -> Cause {
    let refusal = match common(outcome, facts) {
        Ok(refusal) => refusal,
        Err(cause) => return cause,
    };
    let without = match kind {
        "net" => Some("--net host".to_owned()),
        "mount" | "pid" => None,
        _ => Some(format!("--share {kind}")),
    };
    let mut found = match refusal.errno {
        ENOSPC => no_more(kind, facts),
        EINVAL => cause(format!("this kernel has no {kind} namespaces"), "another kernel"),
        EPERM | EACCES if facts.seccomp => outer_filter(facts),
        _ => unknown(&refusal),
    };
    if let Some(without) = without {
        found.fix = format!("{}; or without it: {without}", found.fix);
    }
    found
}

/// A limit on the number of namespaces of a kind.
fn no_more(kind: &str, facts: &Facts) -> Cause {
    let name = kernel::sysctl_of(kind);
    let value = facts.sysctls.get(&name).map(String::as_str);
    let raise = format!("as root: sysctl -w {name}=15000");
    match value {
        Some("0") if facts.container.as_deref() == Some("sbx") => {
            cause(format!("{name} is 0 in this sandbox of sbx"), "start the outer sandbox with `sbx run --nest`")
        }
        Some("0") => cause(format!("{name} is 0: nobody here may make {kind} namespaces"), raise),
        Some(most) if !facts.nested => cause(format!("all {most} {kind} namespaces of {name} are in use"), raise),
        Some(most) => cause(
            format!(
                "{name} is {most} here, so a namespace around this one allows fewer, or {DEEPEST} are nested, the \
                 kernel's limit"
            ),
            "nest less deeply, or raise that setting outside",
        ),
        None => cause(format!("the limit {name} is reached"), raise),
    }
}

/// A mount or another use of capabilities that failed for no reason of its own.
fn mount(refusal: &Refusal, facts: &Facts) -> Cause {
    match refusal.errno {
        ENOSYS if facts.seccomp => outer_filter(facts),
        ENOSYS => cause(format!("{}, in Linux {}", said(refusal), facts.release), "a kernel from 5.14"),
        EPERM | EACCES => match confined(facts) {
            Some(profile) => cause(
                format!("{}; the AppArmor profile \"{profile}\" around sbx forbids mounts", said(refusal)),
                "the container's --security-opt apparmor=unconfined",
            ),
            None if facts.selinux && refusal.errno == EACCES => selinux(),
            None if facts.seccomp => outer_filter(facts),
            None => unknown(refusal),
        },
        _ => unknown(refusal),
    }
}

/// Why no fresh /proc can be mounted. The kernel wants to see one in full outside first ("mount too revealing").
pub(super) fn proc(outcome: &Outcome, facts: &Facts) -> Cause {
    let refusal = match common(outcome, facts) {
        Ok(refusal) => refusal,
        Err(cause) => return cause,
    };
    if refusal.errno != EPERM {
        return mount(&refusal, facts);
    }
    match (&facts.proc_options, covered(&facts.proc_covered)) {
        (None, _) => no_proc(),
        (_, Some(what)) => cause(
            format!("{what} of the /proc around sbx is masked, so the kernel lets nobody mount a fresh one"),
            unmask(facts),
        ),
        (Some(options), None) if options.split(',').any(|word| word == "ro") => {
            cause("the /proc around sbx is read-only, so the kernel lets nobody mount a writable one", unmask(facts))
        }
        _ => mount(&refusal, facts),
    }
}

/// As [`proc`].
pub(super) fn sysfs(outcome: &Outcome, facts: &Facts) -> Cause {
    let mut found = match (common(outcome, facts), covered(&facts.sys_covered)) {
        (Err(cause), _) => return cause,
        (Ok(Refusal { errno: EPERM, .. }), Some(what)) => cause(
            format!("{what} of the /sys around sbx is masked, so the kernel lets nobody mount a fresh one"),
            unmask(facts),
        ),
        (Ok(Refusal { errno: EPERM, .. }), None) if !facts.seccomp => {
            cause("no /sys is mounted around sbx in full, so the kernel lets nobody mount a fresh one", unmask(facts))
        }
        (Ok(refusal), _) => mount(&refusal, facts),
    };
    found.fix.push_str("; or without it: --best-effort");
    found
}

/// Why an overlay cannot be mounted, or not changed as it must be.
pub(super) fn overlay(outcome: &Outcome, facts: &Facts) -> Cause {
    let refusal = match common(outcome, facts) {
        Ok(refusal) => refusal,
        Err(cause) => return cause,
    };
    match refusal.errno {
        ENODEV => {
            cause("this kernel has no overlayfs, or may not load it for you", "as root: modprobe overlay; or --rw")
        }
        EIO | EOPNOTSUPP if facts.version() < TMPFS_XATTRS => cause(
            format!("{}: tmpfs has no user xattrs before Linux 6.6", said(&refusal)),
            "nothing to do: changes go to a directory on disk (--upper disk)",
        ),
        EIO | EOPNOTSUPP => {
            cause(format!("{}: tmpfs has no user xattrs (CONFIG_TMPFS_XATTR)", said(&refusal)), "--upper disk")
        }
        EINVAL => cause(
            format!("{}: this kernel's overlayfs does not know userxattr (Linux 5.11)", said(&refusal)),
            "a newer kernel, or --rw",
        ),
        _ => {
            let found = mount(&refusal, facts);
            Cause { fix: format!("{}; or without an overlay: --rw", found.fix), ..found }
        }
    }
}

/// Why /dev cannot be made.
pub(super) fn devices(outcome: &Outcome, facts: &Facts) -> Cause {
    if let Some(first) = facts.devices.first() {
        let more = facts.devices.len() - 1;
        let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
        let fix = "as root: mknod -m 666 /dev/null c 1 3, and so on; in a container: its runtime's own /dev";
        return cause(format!("{first}{more}"), fix);
    }
    match common(outcome, facts) {
        Ok(refusal) if refusal.errno == ENODEV => {
            cause(format!("{}: not in this kernel", said(&refusal)), "a kernel with it, or --best-effort")
        }
        Ok(refusal) => mount(&refusal, facts),
        Err(cause) => cause,
    }
}

/// System calls that are missing, or hidden.
pub(super) fn calls(missing: &[(String, Outcome)], facts: &Facts) -> Cause {
    let names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
    let verb = if names.len() == 1 { "is" } else { "are" };
    let names = names.join(", ");
    if facts.seccomp {
        return Cause { why: format!("{names} {verb} refused by a seccomp filter around sbx"), ..outer_filter(facts) };
    }
    cause(format!("{names} {verb} missing in Linux {}", facts.release), "a kernel from 5.14")
}

/// Why newuidmap cannot write a map; the facts before what it said itself.
pub(super) fn ranges(outcome: &Outcome, facts: &Facts) -> Cause {
    if facts.user.is_empty() {
        let why = "what this machine says of its users and programs could not be read within 2 s";
        return cause(why, "look in PATH for a directory of a file server that does not answer");
    }
    const INSTALL: &str = "install the package uidmap (Debian, Ubuntu), shadow-utils (Fedora) or shadow (Arch)";
    if let Some(absent) = facts.helpers.iter().find(|helper| helper.path.is_none()) {
        return cause(format!("{} is not on PATH", absent.name), INSTALL);
    }
    for (file, ranges) in [("/etc/subuid", &facts.subuids), ("/etc/subgid", &facts.subgids)] {
        if ranges.is_empty() {
            let user = &facts.user;
            if facts.nested {
                let why = format!("{file} has no line for {user}, which you are only in this user namespace");
                return cause(why, "start sbx outside of this user namespace");
            }
            let fix = format!(
                "as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user} (a range that no \
                 other line has)"
            );
            return cause(format!("{file} has no line \"{user}:FIRST:COUNT\""), fix);
        }
    }
    let refusal = match common(outcome, facts) {
        Ok(refusal) => refusal,
        Err(cause) => return cause,
    };
    if refusal.errno == ETIMEDOUT {
        return cause(refusal.call, "see what that program is, first on PATH; or --map root, which needs none");
    }
    let odd = |odd: fn(&super::HelperFile) -> bool| facts.helpers.iter().find(|helper| odd(helper));
    let at = |helper: &super::HelperFile| helper.path.as_deref().unwrap_or("".as_ref()).display().to_string();
    if facts.no_new_privs {
        return cause(
            "no_new_privs is set on sbx itself, so newuidmap gets no privileges",
            "start sbx outside of what set it: NoNewPrivileges=, --security-opt no-new-privileges, setpriv",
        );
    }
    if let Some(helper) = odd(|helper| helper.nosuid) {
        let why = format!("{} lies on a file system mounted nosuid, so it gets no privileges", at(helper));
        return cause(why, format!("a {} on a file system without nosuid, first on PATH", helper.name));
    }
    if let Some(helper) = odd(|helper| helper.set_uid && helper.owner != 0) {
        let why = format!("{} belongs to uid {} here, not to root, so it gets no privileges", at(helper), helper.owner);
        return cause(why, "start sbx outside of this user namespace");
    }
    match odd(|helper| !helper.set_uid) {
        Some(helper) => cause(
            format!("{} has neither a set-uid bit nor a file capability that works", at(helper)),
            format!("as root: chmod u+s {}, or reinstall its package", at(helper)),
        ),
        None => cause(refusal.call, "compare /etc/subuid and /etc/subgid with what it says"),
    }
}

fn is(facts: &Facts, name: &str, value: &str) -> bool {
    facts.sysctls.get(name).is_some_and(|found| found == value)
}

fn restricted(facts: &Facts) -> bool {
    is(facts, "kernel.apparmor_restrict_unprivileged_userns", "1") && !facts.real_root
}

/// The AppArmor profile that confines sbx, where it is not sbx's own or none.
fn confined(facts: &Facts) -> Option<&str> {
    let label = facts.label.as_deref()?;
    let (profile, mode) = label.rsplit_once(" (")?;
    (mode == "enforce)").then_some(profile)
}

fn covered(list: &[String]) -> Option<String> {
    match list {
        [] => None,
        [one] => Some(one.clone()),
        [first, rest @ ..] => Some(format!("{first} (and {} more)", rest.len())),
    }
}

fn no_proc() -> Cause {
    cause("/proc is not mounted around sbx, or hides its processes", "as root, outside: mount -t proc proc /proc")
}

fn selinux() -> Cause {
    cause("SELinux refuses it", "`ausearch -m avc -ts recent` names the rule; audit2allow makes a module of it")
}

fn unknown(refusal: &Refusal) -> Cause {
    cause(said(refusal), "no known setting explains it: the kernel log or a security module's log may")
}

/// What lifts a container's seccomp filter.
fn outer_filter(facts: &Facts) -> Cause {
    let (who, fix) = match facts.container.as_deref() {
        Some("sbx") => ("the sandbox of sbx around this one".to_owned(), "start it with `sbx run --nest`"),
        Some("kubernetes") => (
            "the pod".to_owned(),
            "in the pod's securityContext: seccompProfile: {type: Unconfined}, procMount: Unmasked",
        ),
        Some(name) => (
            format!("the container ({name}) around sbx"),
            "the container's --security-opt seccomp=FILE with a profile that allows clone, unshare and the mount \
             calls, or seccomp=unconfined",
        ),
        None => (
            "whatever started sbx".to_owned(),
            "start it without that filter; in a container: --security-opt seccomp=unconfined",
        ),
    };
    cause(format!("a seccomp filter refuses it, set by {who}"), fix)
}

/// What uncovers /proc and /sys.
fn unmask(facts: &Facts) -> &'static str {
    match facts.container.as_deref() {
        Some("sbx") => "start the outer sandbox with `sbx run --nest`",
        Some("podman") => "podman run --security-opt unmask=ALL",
        Some("docker") => "docker run --security-opt systempaths=unconfined",
        Some("kubernetes") => "in the pod's securityContext: procMount: Unmasked",
        _ => {
            "docker run --security-opt systempaths=unconfined, podman run --security-opt unmask=ALL; elsewhere unmount \
             what covers it"
        }
    }
}

/// Ubuntu's restriction, and the profile that exempts this very program.
fn apparmor(facts: &Facts) -> Cause {
    let why = "AppArmor takes the capabilities away (kernel.apparmor_restrict_unprivileged_userns is 1)";
    let sysctl = "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0";
    let Some(exe) = &facts.exe else { return cause(why, format!("as root: {sysctl}")) };
    let path = "/etc/apparmor.d/sbx";
    let file = ReadyFile { path: path.to_owned(), content: profile(&exe.display().to_string()) };
    let fix = format!("as root: save the profile that `sbx check` prints as {path}, then: apparmor_parser -r {path}");
    Cause { why: why.to_owned(), fix, file: Some(file) }
}

/// The profile confines nothing; it only carries the right. A second profile for the same path would void both.
fn profile(exe: &str) -> String {
    // What AppArmor reads as a pattern stands for itself (apparmor.d(5)).
    let special = |c: char| "\\*?[]{}^\"".contains(c);
    let exe: String = exe.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect();
    format!(
        "abi <abi/4.0>,\ninclude <tunables/global>\n\nprofile sbx \"{exe}\" flags=(unconfined) {{\n  userns,\n\n  \
         include if exists <local/sbx>\n}}\n"
    )
}
