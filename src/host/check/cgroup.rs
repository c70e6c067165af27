//! Control groups: which layout this machine has, and what of its own group the caller may divide further.

use super::facts::Mounts;
use crate::host::files::{c_path, read_text};
use crate::spec::Caller;
use crate::sys::fs::{HERE, Kind, Open, lstat, mkdirat, openat, unlinkat};
use crate::sys::{EEXIST, process};
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

/// See the head of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Which hierarchies are mounted.
    pub layout: Layout,
    /// The caller's own group in the v2 hierarchy, where it can be reached.
    pub own: Option<PathBuf>,
    /// Controllers that it offers to groups below it.
    pub controllers: Vec<String>,
    /// Whether groups can be made in it.
    pub writable: bool,
    /// Whether a systemd of the user's own could be asked for a group.
    pub user_systemd: bool,
}

impl Cgroup {
    /// Reads the layout, and tries whether a group can be made.
    pub(super) fn look(caller: &Caller, mounts: &Mounts) -> Cgroup {
        let own = own_group(mounts);
        let read = |name| own.as_deref().and_then(|own| read_text(&own.join(name), 4096).ok());
        let controllers = read("cgroup.controllers").unwrap_or_default();
        Cgroup {
            layout: layout(mounts),
            controllers: controllers.split_whitespace().map(str::to_owned).collect(),
            writable: own.as_deref().is_some_and(can_divide),
            user_systemd: user_systemd(caller),
            own,
        }
    }
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

/// The group's directory: where /proc/self/cgroup and the mount of the hierarchy meet.
fn own_group(mounts: &Mounts) -> Option<PathBuf> {
    let text = read_text(Path::new("/proc/self/cgroup"), 1 << 16).ok()?;
    let group = Path::new(text.lines().find_map(|line| line.strip_prefix("0::"))?);
    let mount = mounts.0.iter().find(|mount| mount.kind == "cgroup2")?;
    Some(mount.point.join(group.strip_prefix(&mount.root).ok()?))
}

/// By doing: a group is made and removed. The open for writing is what the kernel checks again at the first process
/// that is to move, so both are needed.
fn can_divide(own: &Path) -> bool {
    let name = c_path(Path::new(&format!("sbx-check-{}", process::getpid())));
    let Ok(dir) = openat(HERE, &c_path(own), Open::Directory) else { return false };
    let made = mkdirat(dir.as_fd(), &name, 0o755);
    if made.is_ok() || made == Err(EEXIST) {
        let _ = unlinkat(dir.as_fd(), &name, Kind::Directory);
    }
    let procs = openat(dir.as_fd(), c"cgroup.procs", Open::Write);
    made.is_ok() && procs.is_ok() && openat(dir.as_fd(), c"cgroup.subtree_control", Open::Write).is_ok()
}

/// Its private socket, or the session bus on which it listens.
fn user_systemd(caller: &Caller) -> bool {
    let Some(runtime) = caller.var("XDG_RUNTIME_DIR").map(Path::new).filter(|path| path.is_absolute()) else {
        return false;
    };
    let socket = |name: &str| lstat(HERE, &c_path(&runtime.join(name))).is_ok_and(|stat| stat.kind == Kind::Socket);
    socket("systemd/private") || socket("bus") && runtime.join("systemd").is_dir()
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
}
