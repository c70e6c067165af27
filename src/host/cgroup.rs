//! Control groups: which layout this machine has, and what of it the caller may divide further.
//!
//! Found by doing: what can be opened for writing is the caller's. Nothing is changed.

use super::files::{c_path, read_text, read_value, read_value_of};
use super::manager::{self, Door};
use super::mountinfo::Mounts;
use crate::spec::Caller;
use crate::sys::fs::{HERE, Open, may_write, openat};
use crate::sys::process;
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Which hierarchies are mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// No cgroup file system.
    #[default]
    Absent,
    /// cgroup v1 only.
    V1,
    /// v2 beside v1, which holds the controllers.
    Hybrid,
    /// v2 only.
    Unified,
}

/// A group in which new ones can be made without asking anybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direct {
    /// Its directory.
    pub at: PathBuf,
    /// Whether it is the caller's own, in which no other process stands: then sbx has to leave it first, for a group
    /// that gives controllers to others holds no processes itself.
    pub own: bool,
    /// Controllers that it can give.
    pub controllers: Vec<String>,
}

/// See the head of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegation {
    /// Which hierarchies are mounted.
    pub layout: Layout,
    /// Where the v2 hierarchy is mounted.
    pub mount: Option<PathBuf>,
    /// What of the hierarchy is mounted there.
    pub root: PathBuf,
    /// The caller's own group, where it can be reached.
    pub own: Option<PathBuf>,
    /// Whether a cgroup namespace's own limits are closed to those inside (`nsdelegate`, Linux 4.13).
    pub nsdelegate: bool,
    /// Where groups can be made.
    pub direct: Option<Direct>,
    /// Why nowhere.
    pub why: String,
    /// Whether our own group could be divided but for the other processes in it.
    pub occupied: bool,
    /// Where the user's systemd listens.
    pub door: Option<Door>,
    /// Its own group, where that can be read.
    pub manager: Option<PathBuf>,
    /// The controllers that it can give.
    pub managed: Option<Vec<String>>,
}

impl Delegation {
    /// Reads /proc and /sys/fs/cgroup, and knocks at the user's systemd.
    pub(crate) fn look(caller: &Caller, uid: u32) -> Delegation {
        Delegation::of(&mounts(), caller, uid, &[process::getpid()])
    }

    /// The directory of the group in which a process stands.
    pub(crate) fn group_of(&self, pid: i32) -> Option<PathBuf> {
        group_of(&pid.to_string(), &self.root, self.mount.as_deref()?)
    }

    /// The same, of mounts that are known already; `ours` are the processes of sbx itself.
    pub(super) fn of(mounts: &Mounts, caller: &Caller, uid: u32, ours: &[i32]) -> Delegation {
        let layout = layout(mounts);
        let mounted = mounts.0.iter().rev().find(|mount| mount.kind == "cgroup2");
        let own = mounted.and_then(|mount| group_of("self", &mount.root, &mount.point));
        let found = match (mounted, &own) {
            (Some(mount), Some(own)) => divisible(own, &mount.point, ours),
            (Some(_), None) => Err("a cgroup namespace without a mount of its own: the group of this process lies outside of what is mounted".into()),
            (None, _) => Err("no cgroup v2 is mounted".into()),
        };
        let (direct, why) = match found {
            Ok(direct) => (Some(direct), String::new()),
            Err(why) => (None, why),
        };
        // On a hybrid hierarchy it has no controllers to give, and a group that cannot be reached has no limits to set.
        let door = own.as_ref().filter(|_| layout == Layout::Unified).and_then(|_| manager::door(caller, uid));
        let manager = door.as_ref().zip(mounted).and_then(|(door, mount)| match door.is_system() {
            true => Some(mount.point.clone()),
            false => manager_of(&mount.point, own.as_deref(), uid),
        });
        let managed = manager.as_deref().map(|group| words(group, "cgroup.controllers"));
        // In a cgroup namespace of our own its groups are out of reach.
        let door = door.filter(|_| managed.is_some() || initial_namespace());
        Delegation {
            layout,
            nsdelegate: mounted.is_some_and(|mount| mount.options.split(',').any(|word| word == "nsdelegate")),
            mount: mounted.map(|mount| mount.point.clone()),
            root: mounted.map(|mount| mount.root.clone()).unwrap_or_default(),
            occupied: direct.is_none() && own.as_deref().is_some_and(|own| divide(own).is_some()),
            direct,
            why,
            own,
            door,
            manager,
            managed,
        }
    }
}

/// The mounts as far as cgroups need them.
fn mounts() -> Mounts {
    let all = || Mounts::of(&read_text(Path::new("/proc/self/mountinfo"), 1 << 24).unwrap_or_default());
    Mounts::unified().unwrap_or_else(all)
}

fn layout(mounts: &Mounts) -> Layout {
    let has = |kind: &str| mounts.0.iter().any(|mount| mount.kind == kind);
    match (has("cgroup2"), has("cgroup")) {
        (true, true) => Layout::Hybrid,
        (true, false) => Layout::Unified,
        (false, true) => Layout::V1,
        (false, false) => Layout::Absent,
    }
}

/// The directory of the group in which a process of this machine stands.
pub(crate) fn of_process(pid: i32) -> Option<PathBuf> {
    let mounts = mounts();
    let mount = mounts.0.iter().rev().find(|mount| mount.kind == "cgroup2")?;
    group_of(&pid.to_string(), &mount.root, &mount.point)
}

/// The directory of a process's group: where /proc/PID/cgroup and the mount of the hierarchy meet.
fn group_of(process: &str, root: &Path, point: &Path) -> Option<PathBuf> {
    let text = read_text(&Path::new("/proc").join(process).join("cgroup"), 1 << 16).ok()?;
    let group = Path::new(text.lines().find_map(|line| line.strip_prefix("0::"))?);
    let below = group.strip_prefix(root).ok()?;
    Some(if below.as_os_str().is_empty() { point.to_owned() } else { point.join(below) })
}

fn words(group: &Path, file: &str) -> Vec<String> {
    let text = read_value(&group.join(file)).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The nearest group, from ours upwards, that may be divided and holds no process: a group of it is a sibling of ours
/// or of one above us, so that nobody has to be moved. Else our own, where we are alone in it.
fn divisible(own: &Path, top: &Path, ours: &[i32]) -> Result<Direct, String> {
    let direct = |at: &Path| Direct { at: at.to_owned(), own: at == own, controllers: words(at, "cgroup.controllers") };
    for group in own.ancestors().skip(1).take_while(|group| group.starts_with(top)) {
        // The root of the hierarchy may hold processes and give controllers all the same; it is root's.
        let may_hold = || read_value(&group.join("cgroup.type")).is_err();
        if divide(group).is_some_and(|processes| processes.is_empty() || may_hold()) {
            return Ok(direct(group));
        }
    }
    match divide(own) {
        Some(processes) if alone(&processes, ours) => Ok(direct(own)),
        Some(_) => Err(format!("{} holds other processes than sbx, and none above it is yours", own.display())),
        None => Err("neither the group of this process nor one above it is yours to divide".into()),
    }
}

/// The processes of a group that may be divided, as text. The open for writing is what the kernel checks at the first
/// process that is to move. Threaded groups, and those that a threaded one has made invalid, give no memory
/// (cgroup-v2.rst, "Threads").
fn divide(group: &Path) -> Option<String> {
    let dir = openat(HERE, &c_path(group), Open::Directory).ok()?;
    let writable = |name| may_write(dir.as_fd(), name).is_ok();
    let procs = || openat(dir.as_fd(), c"cgroup.procs", Open::ReadWrite).ok();
    let procs = Some(()).filter(|()| writable(c".") && writable(c"cgroup.subtree_control")).and_then(|()| procs())?;
    let text = read_value_of(procs.as_fd()).ok()?;
    let domain = read_value(&group.join("cgroup.type")).map_or(true, |kind| kind.trim() == "domain");
    domain.then_some(text)
}

/// Whether these processes are none but ours.
fn alone(processes: &str, ours: &[i32]) -> bool {
    processes.lines().all(|line| line.trim().parse().is_ok_and(|pid| ours.contains(&pid)))
}

/// Whether this process sees all groups; the number is the kernel's for the first namespace (proc_ns.h).
fn initial_namespace() -> bool {
    std::fs::read_link("/proc/self/ns/cgroup").is_ok_and(|link| link.as_os_str() == "cgroup:[4026531835]")
}

/// The group of the user's systemd. It is above ours in a session of its own making; else it has the
/// name that systemd gives it.
fn manager_of(top: &Path, own: Option<&Path>, uid: u32) -> Option<PathBuf> {
    let unit = format!("user@{uid}.service");
    let above = own.and_then(|own| own.ancestors().find(|group| group.ends_with(&unit)).map(Path::to_owned));
    let group = above.unwrap_or_else(|| top.join(format!("user.slice/user-{uid}.slice")).join(&unit));
    openat(HERE, &c_path(&group), Open::Directory).is_ok().then_some(group)
}

/// What makes root's systemd give the users' own all the controllers that sbx has limits for (systemd.resource-control(5);
/// by default it gives cpu, memory and pids).
pub(crate) fn drop_in(uid: u32) -> String {
    let dir = "/etc/systemd/system/user@.service.d";
    format!(
        "as root: mkdir -p {dir}; printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' >{dir}/delegate.conf; \
        systemctl daemon-reload; systemctl restart user@{uid}.service (or log in again)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_told_apart() {
        let line = |kind: &str| format!("1 1 0:1 / /x rw - {kind} none rw\n");
        let of = |text: &str| layout(&Mounts::of(text));
        assert_eq!(of(""), Layout::Absent);
        assert_eq!(of(&line("cgroup")), Layout::V1);
        assert_eq!(of(&line("cgroup2")), Layout::Unified);
        assert_eq!(of(&(line("cgroup2") + &line("cgroup"))), Layout::Hybrid);
    }

    /// A tree of plain files in place of a hierarchy: what is looked at is files and their permissions.
    fn group(at: &Path, procs: &str) {
        std::fs::create_dir_all(at).expect("a group");
        for (file, text) in [
            ("cgroup.procs", procs),
            ("cgroup.subtree_control", ""),
            ("cgroup.controllers", "cpu memory pids\n"),
            ("cgroup.type", "domain\n"),
        ] {
            std::fs::write(at.join(file), text).expect("a file");
        }
    }

    #[test]
    fn the_nearest_empty_group_is_taken_and_our_own_only_when_we_are_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let top = dir.path();
        let (slice, own) = (top.join("slice"), top.join("slice/own"));
        let us = format!("{}\n", process::getpid());
        group(&slice, "");
        group(&own, &format!("{us}1\n"));
        let found = divisible(&own, top, &[process::getpid()]).expect("the slice");
        assert_eq!((found.at.as_path(), found.own), (slice.as_path(), false));
        assert_eq!(found.controllers, ["cpu", "memory", "pids"]);
        group(&slice, "7\n");
        assert!(divisible(&own, top, &[process::getpid()]).expect_err("nothing").contains("other processes"));
        group(&own, &us);
        assert!(divisible(&own, top, &[process::getpid()]).expect("our own").own);
        std::fs::write(own.join("cgroup.type"), "domain invalid\n").expect("a type");
        assert!(divisible(&own, top, &[process::getpid()]).is_err());
    }
}
