//! What can be read about these surroundings: the knobs that distributions, administrators and containers turn.
//!
//! All of it is best effort. /proc and /sys may lack any piece, and then the fact is simply not known.

use crate::host::cgroup::{Delegation, Layout};
use crate::host::files::{c_path, read_text};
use crate::host::manager::door;
use crate::host::mountinfo::Mounts;
use crate::host::{Power, core_piped, find_program, hard_limit, initial_user_namespace, login_name, power};
use crate::spec::{Caller, ids};
use crate::sys::fs::{HERE, Kind, Open, mount_id, openat, stat};
use crate::sys::{cred, landlock, process};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// See the head of the file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// The kernel's release.
    pub release: String,
    /// Effective user id.
    pub uid: u32,
    /// Login name.
    pub user: String,
    /// Whether this is uid 0 of the initial user namespace.
    pub real_root: bool,
    /// Whether the caller stands in a user namespace already.
    pub nested: bool,
    /// Whether the caller's root is no mount point: the mark of chroot(2).
    pub chrooted: bool,
    /// Kernel settings that can be in the way, those that exist.
    pub sysctls: BTreeMap<String, String>,
    /// The AppArmor profile or SELinux label of this process.
    pub label: Option<String>,
    /// Whether SELinux enforces.
    pub selinux: bool,
    /// Active security modules, where securityfs is mounted.
    pub lsm: Option<Vec<String>>,
    /// Landlock's ABI version.
    pub landlock_abi: u32,
    /// Whether a seccomp filter stands around this process.
    pub seccomp: bool,
    /// Whether no_new_privs is set: set-uid helpers then get no privileges.
    pub no_new_privs: bool,
    /// The container around this process.
    pub container: Option<String>,
    /// What lies over parts of /proc.
    pub proc_covered: Vec<String>,
    /// What lies over parts of /sys.
    pub sys_covered: Vec<String>,
    /// How /proc is mounted; `None` where it is not.
    pub proc_options: Option<String>,
    /// Whether the kernel lists overlayfs.
    pub overlay_known: bool,
    /// What is wrong with a node of /dev, one sentence each.
    pub devices: Vec<String>,
    /// Where newuidmap and newgidmap are.
    pub helpers: Vec<HelperFile>,
    /// Ranges of /etc/subuid.
    pub subuids: Vec<(u32, u32)>,
    /// Ranges of /etc/subgid.
    pub subgids: Vec<(u32, u32)>,
    /// Where fuse-overlayfs is.
    pub fuse_overlayfs: Option<PathBuf>,
    /// Keys that this user has, and may have.
    pub keys: Option<(u64, u64)>,
    /// Whether core dumps go to a program of the host.
    pub core_piped: bool,
    /// Hard limit of this process on core files.
    pub hard_core: Option<u64>,
    /// Hard limit of this process on processes.
    pub hard_nproc: Option<u64>,
    /// Control groups.
    pub cgroup: Delegation,
    /// Whether the user's systemd listens where XDG_RUNTIME_DIR does not lead.
    pub astray: bool,
    /// Whether systemd runs this machine (sd_booted(3)).
    pub systemd: bool,
    /// This program's own file.
    pub exe: Option<PathBuf>,
}

/// A set-uid helper.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HelperFile {
    /// Its name.
    pub name: String,
    /// Where it is; `None` where it is not on PATH.
    pub path: Option<PathBuf>,
    /// Whether its set-uid bit is set.
    pub set_uid: bool,
    /// Its owner, as this process sees it.
    pub owner: u32,
    /// Whether its file system is mounted nosuid.
    pub nosuid: bool,
}

/// The kernel settings that can forbid something that sbx needs.
const SYSCTLS: [&str; 12] = [
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
    "user.max_user_namespaces",
    "user.max_mnt_namespaces",
    "user.max_pid_namespaces",
    "user.max_uts_namespaces",
    "user.max_ipc_namespaces",
    "user.max_net_namespaces",
    "user.max_cgroup_namespaces",
    "user.max_time_namespaces",
    "kernel.keys.maxkeys",
    "kernel.keys.root_maxkeys",
];

const NODES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

fn text(path: &str) -> Option<String> {
    read_text(Path::new(path), 1 << 20).ok()
}

fn word(path: &str) -> Option<String> {
    text(path).map(|text| text.trim_matches(['\0', '\n', ' ']).to_owned()).filter(|word| !word.is_empty())
}

impl Facts {
    /// The kernel's version, as its release has it.
    pub(super) fn version(&self) -> (u32, u32) {
        crate::host::version(&self.release)
    }

    /// Reads all of them.
    pub(super) fn read(caller: &Caller) -> Facts {
        let uid = cred::geteuid();
        let user = login_name(uid, caller, true);
        let mounts = Mounts::of(&text("/proc/self/mountinfo").unwrap_or_default());
        let status = text("/proc/self/status").unwrap_or_default();
        // This is a process of its own, which `sbx check` waits for.
        let cgroup = Delegation::of(&mounts, caller, uid, &[process::getpid(), process::getppid()]);
        let ranges = |file| text(file).map(|text| ids::subordinate(&text, &user, uid)).unwrap_or_default();
        Facts {
            release: crate::host::files::release(),
            uid,
            real_root: power(uid) != Power::Ordinary,
            nested: text("/proc/self/uid_map").is_some() && !initial_user_namespace(),
            chrooted: !mounts.0.is_empty() && !mounts.0.iter().any(|mount| mount.point == Path::new("/")),
            sysctls: sysctls(),
            label: word("/proc/self/attr/current"),
            selinux: word("/sys/fs/selinux/enforce").is_some_and(|word| word == "1"),
            lsm: word("/sys/kernel/security/lsm").map(|list| list.split(',').map(str::to_owned).collect()),
            landlock_abi: landlock::abi(),
            seccomp: field(&status, "Seccomp:") == Some("2"),
            no_new_privs: field(&status, "NoNewPrivs:") == Some("1"),
            container: container(caller),
            proc_covered: mounts.covers("/proc"),
            sys_covered: mounts.covers("/sys"),
            proc_options: mounts.at(Path::new("/proc")).filter(|m| m.kind == "proc").map(|m| m.options.clone()),
            overlay_known: text("/proc/filesystems").is_some_and(|list| list.lines().any(|l| l.ends_with("\toverlay"))),
            devices: NODES.iter().filter_map(|&(path, major, minor)| device_fault(path, major, minor)).collect(),
            helpers: ["newuidmap", "newgidmap"].map(|name| HelperFile::look(name, caller, &mounts)).into(),
            subuids: ranges("/etc/subuid"),
            subgids: ranges("/etc/subgid"),
            fuse_overlayfs: find_program(caller, "fuse-overlayfs"),
            keys: text("/proc/key-users").and_then(|text| keys(&text, uid)),
            core_piped: core_piped(),
            hard_core: hard_limit("core"),
            hard_nproc: hard_limit("nproc"),
            astray: cgroup.layout == Layout::Unified && cgroup.door.is_none() && listens_elsewhere(caller, uid),
            systemd: stat(c"/run/systemd/system").is_ok(),
            cgroup,
            exe: std::env::current_exe().ok(),
            user,
        }
    }
}

fn sysctls() -> BTreeMap<String, String> {
    let read = |name: &str| word(&format!("/proc/sys/{}", name.replace('.', "/")));
    SYSCTLS.iter().filter_map(|name| Some(((*name).to_owned(), read(name)?))).collect()
}

/// Whether the user's systemd is found without the variable that names its directory.
fn listens_elsewhere(caller: &Caller, uid: u32) -> bool {
    let mut without = caller.clone();
    without.env.retain(|(name, _)| name != "XDG_RUNTIME_DIR");
    door(&without, uid).is_some()
}

/// A line of /proc/self/status.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// The container's own word, in `container` as systemd's container interface has it, or its mark in the root.
fn container(caller: &Caller) -> Option<String> {
    let marked = |path: &str| stat(&c_path(Path::new(path))).is_ok();
    let said = caller.var("container").and_then(|word| word.to_str()).map(str::to_owned);
    if caller.var("KUBERNETES_SERVICE_HOST").is_some() {
        return Some("kubernetes".to_owned());
    }
    let by_mark = || match (marked("/.dockerenv"), marked("/run/.containerenv")) {
        (true, _) => Some("docker".to_owned()),
        (_, true) => Some("podman".to_owned()),
        _ => None,
    };
    said.filter(|word| !word.is_empty()).or_else(by_mark)
}

fn device_fault(path: &str, major: u32, minor: u32) -> Option<String> {
    match stat(&c_path(Path::new(path))) {
        Err(errno) => Some(format!("{path}: {errno}")),
        Ok(node) if node.kind != Kind::Character(major, minor) => {
            Some(format!("{path} is not the device {major}:{minor}"))
        }
        Ok(_) => None,
    }
}

/// The line of /proc/key-users of this uid: the keys counted against the quota, and the quota.
fn keys(text: &str, uid: u32) -> Option<(u64, u64)> {
    let line = text.lines().find_map(|line| {
        let (owner, rest) = line.trim().split_once(':')?;
        (owner.parse() == Ok(uid)).then_some(rest)
    })?;
    // UID: USAGE NKEYS/NIKEYS QNKEYS/MAXKEYS QNBYTES/MAXBYTES
    let (used, most) = line.split_whitespace().nth(2)?.split_once('/')?;
    Some((used.parse().ok()?, most.parse().ok()?))
}

impl HelperFile {
    fn look(name: &str, caller: &Caller, mounts: &Mounts) -> HelperFile {
        let path = find_program(caller, name);
        let file = path.as_deref().map(c_path);
        let stat = file.as_deref().and_then(|file| stat(file).ok());
        let nosuid = || {
            let open = openat(HERE, file.as_deref()?, Open::Path).ok()?;
            let id = mount_id(open.as_fd(), c"").ok()?;
            Some(mounts.0.iter().find(|mount| mount.id == id)?.options.split(',').any(|word| word == "nosuid"))
        };
        HelperFile {
            name: name.to_owned(),
            set_uid: stat.is_some_and(|stat| stat.mode & 0o4000 != 0),
            owner: stat.map_or(0, |stat| stat.uid),
            nosuid: nosuid().unwrap_or(false),
            path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_quota_is_the_third_pair() {
        let text = "    0:    12 11/11 11/1000000 101/25000000\n 1001:     3 3/3 190/200 27/20000\n";
        assert_eq!(keys(text, 1001), Some((190, 200)));
        assert_eq!(keys(text, 7), None);
        assert_eq!(keys("1001: 3", 1001), None);
    }

    #[test]
    fn status_fields() {
        assert_eq!(field("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n", "Seccomp:"), Some("2"));
    }

    proptest::proptest! {
        #[test]
        fn odd_files_never_panic(text in "\\PC{0,80}|[0-9 :/,\\-\\\\a-z\\n]{0,80}") {
            let _ = (keys(&text, 0), field(&text, "Seccomp:"));
        }
    }
}
