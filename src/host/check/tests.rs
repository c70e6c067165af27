//! The words of `sbx check`: each symptom with the surroundings that cause it (research/peers-dev.md, 3b).

use super::{Facts, Feature, Findings, HelperFile, Outcome, Refusal, Row, State, rows};
use crate::host::cgroup::{Delegation, Direct, Layout};
use crate::host::manager::Door;
use crate::sys::{EACCES, EDQUOT, EINVAL, EIO, ENODEV, ENOENT, ENOSPC, ENOSYS, EPERM, Errno};

fn refused(call: &str, errno: Errno) -> Outcome {
    Outcome::Refused(Refusal { call: call.into(), errno })
}

/// A machine on which everything works.
fn good() -> (Findings, Facts) {
    let works = || Outcome::Works;
    let findings = Findings {
        user: works(),
        kinds: vec![Outcome::Works; 7],
        calls: Vec::new(),
        clone3: works(),
        seccomp: works(),
        landlock: works(),
        overlay: works(),
        proc: works(),
        sysfs: works(),
        devices: works(),
        ranges: works(),
        fuse: works(),
        keyring: works(),
    };
    let helper = |name: &str| HelperFile {
        name: name.into(),
        path: Some(format!("/usr/bin/{name}").into()),
        set_uid: true,
        owner: 0,
        nosuid: false,
    };
    let facts = Facts {
        release: "6.18.1".into(),
        uid: 1000,
        user: "ann".into(),
        landlock_abi: 7,
        proc_options: Some("rw,nosuid,rw".into()),
        overlay_known: true,
        helpers: vec![helper("newuidmap"), helper("newgidmap")],
        subuids: vec![(100_000, 65_536)],
        subgids: vec![(100_000, 65_536)],
        fuse_overlayfs: Some("/usr/bin/fuse-overlayfs".into()),
        hard_core: Some(u64::MAX),
        hard_nproc: Some(30_000),
        cgroup: Delegation {
            layout: Layout::Unified,
            direct: Some(Direct {
                at: "/sys/fs/cgroup/mine".into(),
                own: false,
                controllers: ["cpu", "cpuset", "io", "memory", "pids"].map(String::from).into(),
            }),
            nsdelegate: true,
            ..Delegation::default()
        },
        exe: Some("/opt/s b*x".into()),
        ..Facts::default()
    };
    (findings, facts)
}

/// The row of a feature on a good machine that is changed like this.
fn row(feature: Feature, change: impl FnOnce(&mut Findings, &mut Facts)) -> Row {
    let (mut findings, mut facts) = good();
    change(&mut findings, &mut facts);
    let found = rows(&findings, &facts).into_iter().find(|row| row.feature == feature);
    found.unwrap_or_else(|| panic!("no row of {feature:?}"))
}

/// Holds that a row is not ok and that its why and fix have these words.
fn says(row: &Row, why: &str, fix: &str) {
    let (found_why, found_fix) = (row.why.as_deref().unwrap_or(""), row.fix.as_deref().unwrap_or(""));
    assert_ne!(row.state, State::Ok);
    assert!(found_why.contains(why), "{found_why:?} lacks {why:?}");
    assert!(found_fix.contains(fix), "{found_fix:?} lacks {fix:?}");
}

fn set(facts: &mut Facts, name: &str, value: &str) {
    facts.sysctls.insert(name.into(), value.into());
}

#[test]
fn nothing_is_said_of_a_good_machine() {
    let (findings, facts) = good();
    let rows = rows(&findings, &facts);
    assert_eq!(rows.len(), 25);
    assert!(rows.iter().all(|row| row.state == State::Ok && row.why.is_none()), "{rows:#?}");
}

#[test]
fn nothing_found_is_nothing_claimed() {
    let rows = rows(&Findings::default(), &Facts::default());
    assert!(rows.iter().filter(|row| row.needed).all(|row| row.state != State::Ok));
}

#[test]
fn sysctls_that_forbid_user_namespaces_are_named_with_their_value() {
    let by = |errno, name: &str, value: &str| {
        row(Feature::UserNamespaces, |findings, facts| {
            findings.user = refused("clone3", errno);
            set(facts, name, value);
        })
    };
    let debian = by(EPERM, "kernel.unprivileged_userns_clone", "0");
    says(&debian, "kernel.unprivileged_userns_clone is 0", "sysctl -w kernel.unprivileged_userns_clone=1");
    let most = by(ENOSPC, "user.max_user_namespaces", "0");
    says(&most, "user.max_user_namespaces is 0", "sysctl -w user.max_user_namespaces=");
    says(&by(ENOSPC, "user.max_user_namespaces", "7"), "all 7 user namespaces", "sysctl -w");
    says(&by(EINVAL, "", ""), "CONFIG_USER_NS", "another kernel");
}

#[test]
fn nesting_is_told_from_a_limit_of_this_namespace() {
    let nested = row(Feature::UserNamespaces, |findings, facts| {
        findings.user = refused("clone3", ENOSPC);
        facts.nested = true;
        set(facts, "user.max_user_namespaces", "96000");
    });
    says(&nested, "33 are nested", "nest less deeply");
}

#[test]
fn each_other_kind_names_its_own_limit_and_how_to_do_without() {
    let net = row(Feature::NetNamespaces, |findings, facts| {
        findings.kinds[4] = refused("clone3", ENOSPC);
        set(facts, "user.max_net_namespaces", "0");
    });
    says(&net, "user.max_net_namespaces is 0", "or without it: --net host");
    let time = row(Feature::TimeNamespaces, |findings, _| findings.kinds[6] = refused("clone3", EINVAL));
    says(&time, "no time namespaces", "--share time");
    let mount = row(Feature::MountNamespaces, |findings, facts| {
        findings.kinds[0] = refused("clone3", ENOSPC);
        set(facts, "user.max_mnt_namespaces", "0");
    });
    says(&mount, "user.max_mnt_namespaces is 0", "sysctl -w user.max_mnt_namespaces=");
}

#[test]
fn apparmor_comes_with_a_profile_for_this_program() {
    for call in ["sethostname", "write setgroups", "write uid_map", "fsmount of tmpfs", "clone3"] {
        let restricted = row(Feature::UserNamespaces, |findings, facts| {
            findings.user = refused(call, EACCES);
            set(facts, "kernel.apparmor_restrict_unprivileged_userns", "1");
        });
        says(
            &restricted,
            "kernel.apparmor_restrict_unprivileged_userns is 1",
            "apparmor_parser -r /etc/apparmor.d/sbx",
        );
        let file = restricted.file.as_ref().expect("a profile");
        assert_eq!(file.path, "/etc/apparmor.d/sbx");
        assert_eq!(
            file.content,
            "abi <abi/4.0>,\ninclude <tunables/global>\n\nprofile sbx \"/opt/s b\\*x\" flags=(unconfined) {\n  \
             userns,\n\n  include if exists <local/sbx>\n}\n"
        );
    }
}

#[test]
fn an_outer_filter_is_named_with_the_containers_own_option() {
    let by = |container: Option<&str>| {
        row(Feature::UserNamespaces, |findings, facts| {
            findings.user = refused("clone3", EPERM);
            facts.seccomp = true;
            facts.container = container.map(str::to_owned);
            // Both are seen in a container on Ubuntu; the filter is what refuses the clone.
            set(facts, "kernel.apparmor_restrict_unprivileged_userns", "1");
        })
    };
    says(&by(Some("docker")), "the container (docker)", "--security-opt seccomp=");
    says(&by(Some("kubernetes")), "the pod", "seccompProfile");
    says(&by(Some("sbx")), "the sandbox of sbx", "sbx run --nest");
    says(&by(None), "whatever started sbx", "--security-opt seccomp=unconfined");
    let killed = row(Feature::UserNamespaces, |findings, _| findings.user = Outcome::Killed(31));
    says(&killed, "killed by signal 31", "without that filter");
}

#[test]
fn a_chroot_and_security_modules_are_named() {
    let by = |call: &str, errno, change: fn(&mut Facts)| {
        row(Feature::UserNamespaces, |findings, facts| {
            findings.user = refused(call, errno);
            change(facts);
        })
    };
    says(&by("clone3", EPERM, |facts| facts.chrooted = true), "chroot", "start it outside");
    says(&by("clone3", EACCES, |facts| facts.selinux = true), "SELinux", "ausearch");
    says(&by("clone3", EPERM, |facts| facts.proc_options = None), "without /proc", "outside of a chroot");
    // An outer module that lets nobody mount or change propagation.
    let confined = by("move_mount", EACCES, |facts| facts.label = Some("docker-default (enforce)".into()));
    says(&confined, "\"docker-default\"", "--security-opt apparmor=unconfined");
    let unconfined = by("move_mount", EACCES, |facts| facts.label = Some("unconfined".into()));
    says(&unconfined, "move_mount: permission denied", "no known setting");
}

#[test]
fn a_masked_proc_or_sys_is_named_with_the_containers_own_option() {
    let by = |container: Option<&str>| {
        row(Feature::Proc, |findings, facts| {
            findings.proc = refused("fsmount of proc", EPERM);
            facts.proc_covered = ["/proc/kcore", "/proc/keys"].map(String::from).into();
            facts.container = container.map(str::to_owned);
        })
    };
    says(&by(Some("docker")), "/proc/kcore (and 1 more)", "--security-opt systempaths=unconfined");
    says(&by(Some("podman")), "masked", "--security-opt unmask=ALL");
    says(&by(Some("kubernetes")), "masked", "procMount: Unmasked");
    says(&by(None), "masked", "unmount what covers it");
    let proc = |options: Option<&str>| {
        row(Feature::Proc, |findings, facts| {
            findings.proc = refused("fsmount of proc", EPERM);
            facts.proc_options = options.map(str::to_owned);
        })
    };
    says(&proc(None), "/proc is not mounted", "mount -t proc");
    says(&proc(Some("ro,nosuid,rw")), "read-only", "systempaths");
    let sys = row(Feature::Sysfs, |findings, facts| {
        findings.sysfs = refused("fsmount of sysfs", EPERM);
        facts.sys_covered = vec!["/sys/firmware".into()];
    });
    says(&sys, "/sys/firmware of the /sys", "--best-effort");
}

#[test]
fn a_refused_overlay_says_which_way_is_left() {
    let by = |errno| row(Feature::Overlay, |findings, _| findings.overlay = refused("mkdir in an overlay", errno));
    says(&by(ENODEV), "no overlayfs", "modprobe overlay");
    says(&by(EINVAL), "userxattr", "--rw");
    says(&by(EPERM), "operation not permitted", "--rw");
    let odd = by(EIO);
    says(&odd, "CONFIG_TMPFS_XATTR", "--upper disk");
    assert_eq!(odd.state, State::Missing, "a run of a new kernel trusts its tmpfs");
    let old = row(Feature::Overlay, |findings, facts| {
        findings.overlay = refused("mkdir in an overlay", EIO);
        facts.release = "6.1.0-49-amd64".into();
    });
    says(&old, "no user xattrs before Linux 6.6", "--upper disk");
    assert_eq!(old.state, State::Limited, "a run puts its changes on disk there");
}

#[test]
fn a_refused_overlay_is_no_obstacle_where_fuse_takes_its_place() {
    let by = |call: &str, errno, fuse: Outcome| {
        row(Feature::Overlay, |findings, _| {
            findings.overlay = refused(call, errno);
            findings.fuse = fuse;
        })
    };
    let served = by("fsconfig of overlay", EPERM, Outcome::Works);
    says(&served, "operation not permitted", "--overlay auto");
    assert_eq!(served.state, State::Limited);
    assert_eq!(by("fsopen of overlay", ENODEV, Outcome::Works).state, State::Limited);
    assert_eq!(by("fsconfig of overlay", EPERM, refused("open /dev/fuse", ENOENT)).state, State::Missing);
    // What launch would not try again.
    assert_eq!(by("mkdir in an overlay", EPERM, Outcome::Works).state, State::Missing);
    assert_eq!(by("fsconfig of overlay", EACCES, Outcome::Works).state, State::Missing);
}

#[test]
fn hard_limits_that_a_sandbox_cannot_pass_are_named() {
    let by = |change: fn(&mut Facts)| row(Feature::Limits, |_, facts| change(facts));
    let closed = by(|facts| (facts.core_piped, facts.hard_core) = (true, Some(0)));
    says(&closed, "core_pattern starts with |", "--rlimit core=0");
    assert_eq!(closed.state, State::Missing);
    assert_eq!(by(|facts| facts.hard_core = Some(0)).state, State::Ok, "files are held by a limit of 0");
    assert_eq!(by(|facts| facts.core_piped = true).state, State::Ok);
    let few = by(|facts| facts.hard_nproc = Some(100));
    says(&few, "is 100", "ulimit -Hu 4097");
    assert_eq!(few.state, State::Limited);
}

#[test]
fn missing_calls_are_named_as_hidden_or_as_unknown() {
    let by = |seccomp| {
        row(Feature::SystemCalls, |findings, facts| {
            let calls = ["open_tree", "mount_setattr"];
            findings.calls = calls.map(|name| (name.to_owned(), refused(name, ENOSYS))).into();
            facts.seccomp = seccomp;
        })
    };
    says(&by(true), "open_tree, mount_setattr are refused by a seccomp filter", "seccomp=unconfined");
    says(&by(false), "are missing in Linux 6.18.1", "5.14");
    let clone3 = row(Feature::SystemCalls, |findings, _| findings.clone3 = refused("clone3", ENOSYS));
    assert_eq!(clone3.state, State::Limited, "it has a fall-back");
    let old = row(Feature::Kernel, |_, facts| facts.release = "5.10.0-amd64".into());
    says(&old, "Linux 5.10.0-amd64", "5.14");
}

#[test]
fn a_filter_that_does_not_bite_is_an_emulators() {
    let none = row(Feature::Seccomp, |findings, _| findings.seccomp = refused("seccomp", EINVAL));
    says(&none, "Rosetta", "CONFIG_SECCOMP_FILTER");
}

#[test]
fn landlock_is_absent_from_the_list_or_from_the_kernel_or_old() {
    let by = |abi, lsm: Option<&str>| {
        row(Feature::Landlock, |_, facts| {
            facts.landlock_abi = abi;
            facts.lsm = lsm.map(|list| list.split(',').map(str::to_owned).collect());
        })
    };
    says(&by(0, Some("yama,apparmor")), "not among", "lsm=landlock,yama,apparmor");
    says(&by(0, None), "has none", "CONFIG_SECURITY_LANDLOCK");
    says(&by(2, None), "ABI 2", "6.12");
    assert_eq!(by(2, None).state, State::Limited);
    let lies = row(Feature::Landlock, |findings, _| findings.landlock = refused("a Landlock rule", EPERM));
    says(&lies, "does not hold", "--landlock off");
}

#[test]
fn what_keeps_newuidmap_from_working_is_named() {
    let by = |change: fn(&mut Facts)| {
        row(Feature::IdRanges, |findings, facts| {
            findings.ranges = refused("newuidmap said \"write to uid_map failed\"", EPERM);
            change(facts);
        })
    };
    says(&by(|facts| facts.helpers[0].path = None), "newuidmap is not on PATH", "install the package uidmap");
    says(&by(|facts| facts.subgids.clear()), "/etc/subgid has no line \"ann:", "usermod --add-subuids");
    says(&by(|facts| facts.no_new_privs = true), "no_new_privs is set", "NoNewPrivileges=");
    says(&by(|facts| facts.helpers[1].nosuid = true), "/usr/bin/newgidmap lies on", "without nosuid");
    says(&by(|facts| facts.helpers[0].set_uid = false), "neither a set-uid bit", "chmod u+s /usr/bin/newuidmap");
    says(&by(|facts| facts.helpers[0].owner = 65534), "belongs to uid 65534", "outside of this user namespace");
    says(&by(|_| {}), "write to uid_map failed", "/etc/subuid");
    let few = row(Feature::IdRanges, |_, facts| facts.subuids = vec![(100_000, 10)]);
    says(&few, "only 10 ids", "65536");
}

#[test]
fn devices_fuse_and_keys() {
    let null = row(Feature::Devices, |_, facts| facts.devices = vec!["/dev/null: no such file".into()]);
    says(&null, "/dev/null", "mknod -m 666 /dev/null c 1 3");
    let fuse = row(Feature::Fuse, |findings, _| findings.fuse = refused("open /dev/fuse", EACCES));
    says(&fuse, "/dev/fuse: permission denied", "chmod 666 /dev/fuse");
    let fuse = row(Feature::Fuse, |findings, facts| {
        findings.fuse = refused("open /dev/fuse", ENOENT);
        facts.container = Some("docker".into());
    });
    says(&fuse, "/dev/fuse", "--device /dev/fuse");
    let keys = row(Feature::Keyrings, |findings, facts| {
        findings.keyring = refused("keyctl", EDQUOT);
        facts.keys = Some((200, 200));
    });
    says(&keys, "200 of this user's 200 keys", "kernel.keys.maxkeys");
}

const LIMITS: [Feature; 5] =
    [Feature::LimitMem, Feature::LimitCpus, Feature::LimitCpuset, Feature::LimitPids, Feature::LimitIo];

#[test]
fn limits_are_had_by_whoever_a_run_would_ask() {
    let all = |change: fn(&mut Facts)| LIMITS.map(|feature| row(feature, |_, facts| change(facts)));
    let by = |rows: &[Row; 5]| rows.each_ref().map(|row| (row.state, row.by.unwrap_or("nobody")));
    assert_eq!(by(&all(|_| {})), [(State::Ok, "cgroup"); 5]);
    let systemd = |facts: &mut Facts| facts.cgroup.door = Some(Door::Bus("/run/user/1000/bus".into()));
    // What it can give is not known here; a run will tell.
    assert_eq!(by(&all(systemd)), [(State::Ok, "systemd"); 5]);
    let usual = all(|facts| {
        facts.cgroup.door = Some(Door::Bus("/run/user/1000/bus".into()));
        facts.cgroup.managed = Some(["cpu", "memory", "pids"].map(String::from).into());
    });
    let (had, not) = ((State::Ok, "systemd"), (State::Missing, "nobody"));
    assert_eq!(by(&usual), [had, had, not, had, not]);
    says(&usual[2], "your systemd has not been given the controllers cpuset, io", "Delegate=cpu cpuset io memory pids");
    says(&usual[2], "", "or for --cpuset: --limits watch");
    assert_eq!((&usual[2].why, &usual[2].fix), (&usual[4].why, &usual[4].fix), "they are told of together");
    let few = all(|facts| {
        let direct = facts.cgroup.direct.as_mut().expect("a group");
        direct.controllers = vec!["memory".into(), "pids".into()];
    });
    says(&few[1], "/sys/fs/cgroup/mine has no controller cpu, cpuset, io", "echo '+cpu +cpuset +io'");
    // A group of a hybrid hierarchy is good for what v1 does not hold.
    let hybrid = all(|facts| facts.cgroup.layout = Layout::Hybrid);
    assert_eq!(by(&hybrid), [(State::Ok, "cgroup"); 5]);
    let unread = all(|facts| *facts = Facts::default());
    assert_eq!(by(&unread), [(State::Untried, "nobody"); 5]);
}

#[test]
fn without_a_cgroup_each_limit_says_what_there_is_else() {
    let rows = LIMITS.map(|feature| row(feature, |_, facts| facts.cgroup.direct = None));
    let found = rows.each_ref().map(|row| (row.state, row.by.unwrap_or("nobody")));
    let affinity = |state| (state, "affinity");
    let mem = (State::Limited, "watch");
    let (pids, io) = ((State::Ok, "kernel"), (State::Missing, "nobody"));
    assert_eq!(found, [mem, affinity(State::Limited), affinity(State::Ok), pids, io]);
    assert!(rows[1].enables.contains("whole processors"));
    assert!(rows.iter().all(|row| !row.needed), "a run does without");
}

#[test]
fn what_gives_a_cgroup_depends_on_where_it_lacks() {
    let by = |change: fn(&mut Facts)| {
        row(Feature::LimitMem, |_, facts| {
            facts.cgroup.direct = None;
            facts.cgroup.why = "none is yours to divide".into();
            facts.systemd = true;
            change(facts);
        })
    };
    let boot = "systemd.unified_cgroup_hierarchy=1";
    says(&by(|facts| facts.cgroup.layout = Layout::Hybrid), "cgroup v1 holds the controllers", boot);
    says(&by(|facts| facts.cgroup.layout = Layout::V1), "only cgroup v1", boot);
    let plain = |facts: &mut Facts| (facts.cgroup.layout, facts.systemd) = (Layout::Hybrid, false);
    says(&by(plain), "cgroup v1 holds", "cgroup_no_v1=all");
    says(&by(|facts| facts.cgroup.layout = Layout::Absent), "no cgroup file system", "mount -t cgroup2");
    says(&by(|_| {}), "yours to divide", "loginctl enable-linger ann");
    says(&by(|facts| facts.systemd = false), "yours to divide", "chown ann ann ann/cgroup.procs");
    says(&by(|facts| facts.astray = true), "XDG_RUNTIME_DIR leads away", "XDG_RUNTIME_DIR=/run/user/1000");
    let occupied = by(|facts| (facts.cgroup.occupied, facts.cgroup.own) = (true, Some("/sys/fs/cgroup/x".into())));
    says(&occupied, "yours to divide", "mkdir /sys/fs/cgroup/x/rest; for p in");
    for (container, fix) in [
        ("docker", "writable-cgroups=true"),
        ("podman", "unmask=/sys/fs/cgroup"),
        ("kubernetes", "a pod with a writable /sys/fs/cgroup"),
        ("sbx", "--mount type=cgroup"),
        ("lxc", "a private cgroup namespace"),
    ] {
        let boxed = row(Feature::LimitMem, |_, facts| {
            (facts.cgroup.direct, facts.container) = (None, Some(container.to_owned()));
            facts.cgroup.why = "none is yours to divide".into();
        });
        says(&boxed, "yours to divide", fix);
    }
}

#[test]
fn a_hang_is_said_to_be_one() {
    let hung = row(Feature::Overlay, |findings, _| findings.overlay = Outcome::Hung);
    says(&hung, "no answer within 2 s", "less busy");
    let unread = row(Feature::IdRanges, |findings, facts| {
        findings.ranges = Outcome::Untried;
        *facts = Facts { release: "6.1.0".into(), ..Facts::default() };
    });
    says(&unread, "could not be read", "PATH");
}
