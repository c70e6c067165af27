//! What to try: a pure match over an error and facts about this host. Errors that already carry their advice
//! are left alone.

use sbx::error::{Errno, Error, Place};
use sbx::host::check::{BY_FUSE, Feature, Report, Row, State};

/// Facts that advice depends on; gathered only after something failed.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What `sbx check` would say.
    pub rows: Vec<Row>,
    /// Whether this is root of the machine, whose sandboxes never hold root's own id.
    pub real_root: bool,
}

impl From<Report> for Facts {
    fn from(report: Report) -> Facts {
        Facts { rows: report.rows, real_root: report.facts.real_root }
    }
}

/// Why and try, the third and fourth line of a report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// A fact about this host.
    pub why: Option<String>,
    /// Something to type.
    pub hint: Option<String>,
}

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const EACCES: i32 = 13;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;
const ENOSYS: i32 = 38;
const ELOOP: i32 = 40;
const EOVERFLOW: i32 = 75;
const EDQUOT: i32 = 122;

/// Whether facts could explain this error, so that gathering them is worth its 100 ms.
pub fn wants_facts(error: &Error) -> bool {
    match error {
        Error::Step { place, errno: Errno(errno), .. } => {
            ["clone", "maps", "enter", "root", "confine", "exec"].contains(&place.stage)
                && ![EMFILE, ENFILE, EAGAIN, ENOMEM].contains(errno)
        }
        Error::Unsupported { hint, .. } => hint.is_none(),
        Error::Helper { .. } => true,
        _ => false,
    }
}

/// The advice for an error.
pub fn advice(error: &Error, facts: &Facts) -> Advice {
    if let Error::Spec { why, .. } = error
        && let Some(hint) = exhausted(why)
    {
        return Advice { why: None, hint: Some(hint.to_owned()) };
    }
    if let Some(hint) = error.hint() {
        return Advice { why: None, hint: Some(hint.to_owned()) };
    }
    let (why, hint) = match error {
        Error::Step { errno: Errno(errno @ (EMFILE | ENFILE)), .. }
        | Error::Sys { errno: Errno(errno @ (EMFILE | ENFILE)), .. } => {
            let whose = if *errno == EMFILE { "this process has" } else { "this machine has" };
            (format!("{whose} as many files open as it may"), MORE_FILES.to_owned())
        }
        Error::Step { place, call, errno } => match step(place, call, *errno, facts) {
            Some(found) => found,
            None => return Advice { why: None, hint: Some("sbx check; --verbose shows each step".into()) },
        },
        Error::Helper { program, .. } if program == "fuse-overlayfs" => match fault(Feature::Fuse, facts) {
            Some(found) => found,
            None => ("it makes the root, and ended before that was done".to_owned(), "--overlay kernel".to_owned()),
        },
        Error::Helper { program, .. } => match fault(Feature::IdRanges, facts) {
            Some((why, fix)) => (why, format!("{fix}; or --map root, which needs no helper")),
            None => (
                format!("{program} writes the id maps for you and must be set-uid root or have its file capability"),
                "--map root, which needs no helper; or reinstall the package uidmap".to_owned(),
            ),
        },
        Error::Unsupported { .. } => match facts.rows.iter().find(|row| row.needed && row.state == State::Missing) {
            Some(row) => words(row),
            None => return Advice::default(),
        },
        Error::Policy { at: None, .. } => return Advice { why: None, hint: Some(POLICY.into()) },
        Error::Sys { errno, .. } => return Advice { why: None, hint: by_number(*errno).map(str::to_owned) },
        Error::Command { command, errno: Errno(ENOENT), .. } if command.starts_with('-') => {
            let hint = format!("options go before ROOTFS: sbx run {command} … ROOTFS COMMAND");
            return Advice { why: None, hint: Some(hint) };
        }
        Error::Bug(_) => return Advice { why: None, hint: Some("report it with the output of `sbx check`".into()) },
        _ => return Advice::default(),
    };
    Advice { why: Some(why), hint: Some(hint) }
}

/// What to do where files or memory ran out, if these words say so: whatever was tried then, no value helps.
fn exhausted(why: &str) -> Option<&'static str> {
    let ends = |errno: i32| Errno(errno).to_string().get(1..).is_some_and(|words| why.ends_with(words));
    if ends(EMFILE) || ends(ENFILE) {
        return Some(MORE_FILES);
    }
    if ends(ENOMEM) { by_number(Errno(ENOMEM)) } else { None }
}

/// What helps where no more files can be opened.
const MORE_FILES: &str = "ulimit -n 1024, or close some";

/// What a policy file is.
const POLICY: &str = "a file of [table] and key = value lines, as sbx-policy(5) lists them";

/// What helps where a call outside the plan failed, as far as the number alone tells.
fn by_number(errno: Errno) -> Option<&'static str> {
    match errno.0 {
        ENOENT => Some("a path that is there; a relative one starts at your directory"),
        EACCES | EPERM => {
            Some("a path that is open to you: ls -ld shows modes and owners, of the directories above too")
        }
        ENOTDIR => Some("a path whose parts but the last are directories"),
        EISDIR => Some("a file, not a directory"),
        ELOOP => Some("the file itself in place of a symbolic link"),
        ENOSPC | EDQUOT => Some("df, df -i and quota show what is full"),
        EROFS => Some("a path on a file system that is not mounted read-only"),
        EAGAIN | ENOMEM => Some("again, when the machine is less busy; ulimit -a shows your limits"),
        _ => None,
    }
}

/// A failed step: first what `sbx check` finds in the way of such a step, then what the step itself suggests.
fn step(place: &Place, call: &str, errno: Errno, facts: &Facts) -> Option<(String, String)> {
    if place.stage == "clone" && errno.0 == EAGAIN {
        let why = "there are as many processes as may be: ulimit -u, pids.max of the control group, or of exec --pids"
            .to_owned();
        return Some((why, "end some, or raise that limit".to_owned()));
    }
    if let Some(found) = suspects(place).iter().find_map(|feature| fault(*feature, facts)) {
        return Some(found);
    }
    let by_fuse = |row: &&Row| row.fix.as_deref() == Some(BY_FUSE) && suspects(place).contains(&row.feature);
    if let Some(row) = facts.rows.iter().find(by_fuse) {
        return Some(words(row));
    }
    if let Some(found) = by_layer(place, call, errno, facts) {
        return Some(found);
    }
    match errno.0 {
        ENOSYS => Some((
            format!("{call} is missing: the kernel is older than 5.14, or a seccomp filter around sbx hides it"),
            "a newer kernel, or the outer container's `--security-opt seccomp=unconfined`".to_owned(),
        )),
        EOVERFLOW | EACCES if errno.0 == EOVERFLOW || call == "mkdirat" => Some((
            "the directory around it belongs to a user or group that the sandbox does not have".to_owned(),
            "a place below /tmp or /run; or make the directory there beforehand".to_owned(),
        )),
        EPERM | EACCES | ENOSPC => Some((format!("the kernel refused step {}", place.number), "sbx check".to_owned())),
        _ => None,
    }
}

/// What a step stands on, what fails first in front. The words are those of the plan's steps.
fn suspects(place: &Place) -> &'static [Feature] {
    use Feature::*;
    let is = |start: &str| place.step.starts_with(start);
    match place.stage {
        "clone" => &[
            Kernel,
            UserNamespaces,
            MountNamespaces,
            PidNamespaces,
            UtsNamespaces,
            IpcNamespaces,
            NetNamespaces,
            CgroupNamespaces,
            TimeNamespaces,
            SystemCalls,
        ],
        "maps" => &[UserNamespaces, IdRanges],
        "enter" if is("make a network") => &[UserNamespaces, NetNamespaces],
        "enter" => &[UserNamespaces, UtsNamespaces, TimeNamespaces],
        "root" if is("mount a fresh /proc") => &[UserNamespaces, SystemCalls, Proc],
        "root" if is("mount a fresh /sys") => &[UserNamespaces, SystemCalls, Sysfs],
        "root" if is("mount the overlay") || is("mount an overlay") => &[UserNamespaces, SystemCalls, Overlay],
        "root" if is("mount a minimal /dev") || is("mount an own devpts") || is("mask ") => {
            &[UserNamespaces, SystemCalls, Devices]
        }
        "root" => &[UserNamespaces, SystemCalls],
        "confine" if is("restrict by Landlock") => &[Landlock],
        "exec" if is("load the seccomp") => &[Seccomp],
        _ => &[],
    }
}

/// Overlayfs works here, so what a failed overlay is made of is at fault.
fn by_layer(place: &Place, call: &str, errno: Errno, facts: &Facts) -> Option<(String, String)> {
    let overlay = place.step.starts_with("mount the overlay") || place.step.starts_with("mount an overlay");
    let bind = place.step.starts_with("bind ");
    let (why, hint) = match errno.0 {
        EACCES | EPERM if (overlay || bind) && facts.real_root && call != "mount_setattr" => (
            "a sandbox of root runs with ids from 524288 up, to which that directory, or one above it, is closed",
            "a directory that everybody may enter (chmod o+x on each above it), or run sbx as its owner",
        ),
        EACCES if overlay || bind => (
            "that directory, or one above it, is closed to you",
            "chmod u+rx on it if it is yours, else a copy of it that is",
        ),
        EINVAL | ENODEV | EPERM if overlay => (
            "overlays work here, so it is these directories: an upper layer cannot lie on another overlay, NFS or FAT",
            "--upper tmpfs, or ROOTFS and --upper DIR on a local file system such as ext4, xfs or btrfs",
        ),
        ENOENT if bind => ("a source of a mount is gone", "the path as it is now, or `optional` after it"),
        _ => return None,
    };
    Some((why.to_owned(), hint.to_owned()))
}

/// Why a feature is not there, and what helps.
fn fault(feature: Feature, facts: &Facts) -> Option<(String, String)> {
    facts.rows.iter().find(|row| row.feature == feature && row.state == State::Missing).map(words)
}

fn words(row: &Row) -> (String, String) {
    (row.why.clone().unwrap_or_default(), row.fix.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sbx::host::check::{self, Findings, Outcome, Refusal};
    use sbx::plan::Step;

    fn at(stage: &'static str, step: impl ToString, call: &'static str, errno: i32) -> Error {
        let place = Place { number: 7, of: 9, stage, step: step.to_string() };
        Error::Step { place, call, errno: Errno(errno) }
    }

    /// The facts of a machine where only this was refused.
    fn facts(change: impl FnOnce(&mut Findings, &mut check::Facts)) -> Facts {
        let works = Outcome::Works;
        let mut findings = Findings {
            user: works.clone(),
            kinds: vec![works.clone(); 7],
            overlay: works.clone(),
            proc: works.clone(),
            devices: works.clone(),
            sysfs: works.clone(),
            seccomp: works.clone(),
            ranges: works,
            ..Findings::default()
        };
        let mut facts = check::Facts { release: "6.18.1".into(), user: "ann".into(), ..check::Facts::default() };
        change(&mut findings, &mut facts);
        Facts { rows: check::rows(&findings, &facts), real_root: facts.real_root }
    }

    fn refused(call: &str, errno: i32) -> Outcome {
        Outcome::Refused(Refusal { call: call.into(), errno: Errno(errno) })
    }

    /// Holds that why and try have these words.
    fn says(error: &Error, facts: &Facts, why: &str, hint: &str) {
        let advice = advice(error, facts);
        let (found_why, found_hint) = (advice.why.unwrap_or_default(), advice.hint.unwrap_or_default());
        assert!(found_why.contains(why), "{found_why:?} lacks {why:?}");
        assert!(found_hint.contains(hint), "{found_hint:?} lacks {hint:?}");
    }

    #[test]
    fn an_obstacle_of_the_host_explains_a_refused_clone() {
        let error = at("clone", "make new namespaces", "clone3", EPERM);
        let sysctl = facts(|findings, facts| {
            findings.user = refused("clone3", EPERM);
            facts.sysctls.insert("kernel.unprivileged_userns_clone".into(), "0".into());
        });
        says(&error, &sysctl, "kernel.unprivileged_userns_clone is 0", "sysctl -w");
        let filter = facts(|findings, facts| {
            findings.user = refused("clone3", EPERM);
            facts.seccomp = true;
        });
        says(&error, &filter, "seccomp filter", "--security-opt seccomp=unconfined");
        let most = facts(|findings, facts| {
            findings.user = refused("clone3", ENOSPC);
            facts.sysctls.insert("user.max_user_namespaces".into(), "0".into());
        });
        says(&at("clone", "make new namespaces", "clone3", ENOSPC), &most, "user.max_user_namespaces is 0", "sysctl");
        let nets = facts(|findings, _| findings.kinds[4] = refused("clone3", ENOSPC));
        says(&at("clone", "make new namespaces", "clone3", ENOSPC), &nets, "user.max_net_namespaces", "--net host");
        says(&at("clone", "make new namespaces", "clone3", EAGAIN), &Facts::default(), "as many processes", "end some");
        assert_eq!(advice(&error, &Facts::default()).hint.as_deref(), Some("sbx check"));
    }

    #[test]
    fn apparmor_explains_maps_and_the_first_mount() {
        let stripped = facts(|findings, facts| {
            findings.user = refused("sethostname", EPERM);
            facts.sysctls.insert("kernel.apparmor_restrict_unprivileged_userns".into(), "1".into());
            facts.exe = Some("/usr/bin/sbx".into());
        });
        for error in [
            at("maps", "map uid", "write setgroups", EACCES),
            at("root", Step::Store(Some(1)), "fsmount", EPERM),
            at("enter", Step::HostName("a".into()), "sethostname", EPERM),
            at("enter", Step::Network, "ioctl", EPERM),
        ] {
            says(&error, &stripped, "AppArmor", "the profile that `sbx check` prints");
        }
    }

    #[test]
    fn each_mount_is_explained_by_its_own_row() {
        let masked = facts(|findings, facts| {
            findings.proc = refused("fsmount of proc", EPERM);
            facts.proc_options = Some("rw".into());
            facts.proc_covered = vec!["/proc/kcore".into()];
        });
        says(&at("root", Step::Proc, "fsmount", EPERM), &masked, "/proc/kcore", "systempaths=unconfined");
        // Another mount that fails is not explained by it.
        says(&at("root", Step::Devpts, "fsmount", EPERM), &masked, "the kernel refused step 7", "sbx check");
        let sysfs = facts(|findings, _| findings.sysfs = refused("fsmount of sysfs", EPERM));
        says(&at("root", Step::Sys(sbx::plan::SysKind::Fresh), "fsmount", EPERM), &sysfs, "/sys", "--best-effort");
        let null = facts(|_, facts| facts.devices = vec!["/dev/null: no such file or directory".into()]);
        says(&at("root", Step::Dev, "open_tree", ENOENT), &null, "/dev/null", "mknod");
        let overlay = facts(|findings, _| findings.overlay = refused("fsopen of overlay", ENODEV));
        says(&at("root", "mount the overlay on /", "fsopen", ENODEV), &overlay, "no overlayfs", "modprobe overlay");
        let hidden = facts(|findings, facts| {
            findings.calls = vec![("mount_setattr".into(), refused("mount_setattr", ENOSYS))];
            facts.seccomp = true;
        });
        says(
            &at("root", Step::Store(Some(1)), "mount_setattr", ENOSYS),
            &hidden,
            "mount_setattr is refused",
            "seccomp=",
        );
    }

    #[test]
    fn where_overlays_work_the_layers_are_at_fault() {
        let fine = facts(|_, _| {});
        let overlay = |call, errno| at("root", "mount the overlay on /: lower /r, upper /u", call, errno);
        says(&overlay("fsconfig", EINVAL), &fine, "NFS", "--upper tmpfs");
        says(&overlay("open", EACCES), &fine, "closed to you", "chmod u+rx");
        let root = facts(|_, facts| facts.real_root = true);
        says(&overlay("open", EACCES), &root, "ids from 524288", "chmod o+x");
        for errno in [EOVERFLOW, EACCES] {
            says(&at("root", "mount a tmpfs on /mnt/1", "mkdirat", errno), &fine, "does not have", "beforehand");
        }
        says(&at("root", "bind /a on /b", "open_tree", ENOENT), &fine, "gone", "optional");
    }

    #[test]
    fn a_helper_that_fails_is_explained_by_what_takes_its_privileges() {
        let error = Error::Helper { program: "newuidmap".into(), status: "exit status: 1".into(), stderr: "".into() };
        let helper = || check::HelperFile {
            name: "newuidmap".into(),
            path: Some("/h/newuidmap".into()),
            set_uid: true,
            ..check::HelperFile::default()
        };
        let with = |change: fn(&mut check::Facts)| {
            facts(|findings, facts| {
                findings.ranges = refused("newuidmap said \"no\"", EPERM);
                facts.helpers = vec![helper()];
                (facts.subuids, facts.subgids) = (vec![(1, 65_536)], vec![(1, 65_536)]);
                change(facts);
            })
        };
        says(&error, &with(|facts| facts.no_new_privs = true), "no_new_privs", "--map root");
        says(&error, &with(|facts| facts.helpers[0].nosuid = true), "mounted nosuid", "--map root");
        says(&error, &with(|facts| facts.helpers[0].set_uid = false), "neither a set-uid bit", "chmod u+s");
        says(&error, &Facts::default(), "must be set-uid root", "package uidmap");
    }

    #[test]
    fn what_the_number_alone_tells_is_told() {
        let sys = |errno| Error::Sys { doing: "read".into(), on: "/x".into(), errno: Errno(errno) };
        let hint = |error: &Error| advice(error, &Facts::default()).hint.unwrap_or_default();
        assert!(hint(&sys(EACCES)).contains("ls -ld") && hint(&sys(ENOENT)).contains("there"));
        assert_eq!(hint(&sys(9)), "");
        let whole = Error::Policy { file: "p".into(), at: None, text: String::new(), why: "not UTF-8".into() };
        assert!(hint(&whole).contains("sbx-policy(5)"));
    }

    #[test]
    fn an_overlay_that_fuse_can_replace_says_so() {
        let both = facts(|findings, facts| {
            findings.overlay = refused("fsconfig of overlay", EPERM);
            (findings.fuse, facts.fuse_overlayfs) = (Outcome::Works, Some("/usr/bin/fuse-overlayfs".into()));
        });
        let error = at("root", "mount the overlay on /", "fsconfig", EPERM);
        says(&error, &both, "operation not permitted", "--overlay auto");
    }

    #[test]
    fn an_unsupported_feature_without_advice_gets_what_is_in_the_way() {
        let error = Error::Unsupported { feature: "x".into(), why: "y".into(), hint: None };
        let old = facts(|_, facts| facts.release = "5.4.0".into());
        says(&error, &old, "Linux 5.4.0", "5.14");
        assert_eq!(advice(&error, &facts(|_, _| {})), Advice::default());
    }

    #[test]
    fn advice_that_an_error_carries_wins() {
        let error = Error::spec("--mem", "0", "a size of 0").or_try("512M");
        assert_eq!(advice(&error, &Facts::default()), Advice { why: None, hint: Some("512M".into()) });
        assert!(!wants_facts(&error));
    }

    #[test]
    fn no_value_is_advised_where_files_or_memory_ran_out() {
        let refused = |errno: i32| {
            let error = Error::spec("ROOTFS", "./r", Errno(errno)).or_try("a directory");
            advice(&error, &Facts::default()).hint.unwrap_or_default()
        };
        assert!(refused(EMFILE).contains("ulimit -n") && refused(ENFILE).contains("ulimit -n"));
        assert!(refused(ENOMEM).contains("less busy"));
        assert_eq!(refused(EPERM), "a directory");
    }

    #[test]
    fn an_option_in_the_place_of_the_command_is_explained() {
        let command = |command: &str| Error::Command { command: command.into(), errno: Errno(ENOENT), why: None };
        says(&command("--net"), &Facts::default(), "", "before ROOTFS: sbx run --net");
        assert_eq!(advice(&command("nop"), &Facts::default()), Advice::default());
    }

    #[test]
    fn the_machine_is_asked_only_where_it_can_explain_something() {
        assert!(wants_facts(&at("clone", "", "clone3", EPERM)) && wants_facts(&at("root", "", "open", EACCES)));
        assert!(!wants_facts(&at("clone", "", "clone3", EMFILE)) && !wants_facts(&at("claim", "", "open", EACCES)));
        assert!(!wants_facts(&Error::Bug("x".into())));
    }
}
