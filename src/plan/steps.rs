//! Every kind of step, and its words.

use super::LandlockPlan;
use super::identity::{GroupSet, Identities, MapsBy};
use super::limits::{Affinity, Property, Setting, Value};
use crate::spec::access::Capabilities;
use crate::spec::hide::Protected;
use crate::spec::mount::{Exec, Mount};
use crate::spec::text::{HostPath, InnerPath};
use crate::spec::{Overlay, Rlimit, TimeOffsets};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// One thing that a launch does. `launch::prepare` turns each into prepared calls.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Name, lock, record.
    Claim(String),
    /// New namespaces, by their words.
    Clone(Vec<&'static str>),
    /// A cgroup made in this one, with these values.
    Group(PathBuf, Vec<Setting>),
    /// A scope of the user's systemd with these.
    Scope(Vec<Property>),
    /// sbx looks at the memory of all processes, at most this many bytes.
    Watch(u64),
    /// All namespaces of the sandbox of this name, entered.
    Join(String),
    /// A terminal on the sandbox's own /dev/pts.
    EnterTerminal,
    /// Id maps.
    Maps(Identities),
    /// Session, death signal, umask 0.
    Session,
    /// Clock offsets of the children.
    TimeOffset(TimeOffsets),
    /// A network namespace with its loopback up.
    Network,
    /// A cgroup namespace in the cgroup that was made.
    CgroupNamespace,
    /// Host name.
    HostName(String),
    /// One kernel setting of the network or IPC namespace.
    Sysctl(String, String),
    /// Badness for the OOM killer.
    OomScoreAdj(i32),
    /// Nice value.
    Nice(i32),
    /// The one tmpfs, of this many bytes or a quarter of the memory.
    Store(Option<u64>),
    /// An overlay as the new root.
    Overlay(Layers),
    /// A directory as the new root, writable.
    BindRoot(HostPath),
    /// A fresh tmpfs as the new root, for `@host`.
    EmptyRoot,
    /// An entry of this machine's root as an overlay.
    HostOverlay(PathBuf),
    /// An entry of this machine's root, read-only with all mounts below it.
    HostBind(PathBuf),
    /// A symlink in the new root.
    Link(PathBuf, PathBuf),
    /// An empty writable directory from the one tmpfs.
    Scratch(InnerPath, u32, Exec),
    /// A supplied file.
    Supply(Etc),
    /// /dev with its devices, links and shm.
    Dev,
    /// An own devpts.
    Devpts,
    /// Host's /dev/shm, with `--share ipc`.
    HostShm,
    /// /dev/mqueue.
    Mqueue,
    /// A fresh /proc.
    Proc,
    /// No user namespaces below this one.
    NoUserNamespaces,
    /// A path of /proc made read-only.
    ReadOnly(InnerPath),
    /// A path that reads as empty.
    Mask(Masked),
    /// /sys.
    Sys(SysKind),
    /// The sandbox's cgroup, read-only.
    CgroupMount,
    /// A mount of the user's.
    Mount(Mount),
    /// A path that shows nothing, if it is there: an empty writable directory in place of a directory, and nothing
    /// to read in place of anything else.
    Conceal(InnerPath, Exec),
    /// A path made read-only with all that is mounted below it; the directories and links on the way can be neither moved
    /// nor replaced.
    Protect(Protected),
    /// The sandbox's own terminal and /dev/console.
    Terminal,
    /// The root made read-only, and these overlays of `@host`.
    SealRoot(Vec<PathBuf>),
    /// pivot_root and the old root detached.
    Pivot,
    /// A new session keyring.
    Keyring,
    /// The bounding set.
    Bounding(Capabilities),
    /// Supplementary groups.
    Groups(GroupSet),
    /// User and group.
    Ids(u32, u32),
    /// Effective and permitted capabilities.
    Capabilities(Capabilities),
    /// no_new_privs.
    NoNewPrivs,
    /// Non-dumpable, under a name of its own.
    Hide,
    /// Ids, groups, capabilities and no_new_privs read back.
    Verify,
    /// Processes.
    Pids(u64),
    /// Processors.
    Affinity(Affinity),
    /// One resource limit.
    Rlimit(Rlimit),
    /// Landlock.
    Landlock(LandlockPlan),
    /// Working directory.
    Workdir(PathBuf),
    /// The word to start.
    Gate,
    /// A filter of this name and number of instructions.
    Filter(&'static str, usize),
    /// The program.
    Exec(Vec<OsString>),
}

/// The layers of an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Read-only ones, the topmost first.
    pub lower: Vec<HostPath>,
    /// Where changes go.
    pub upper: UpperAt,
    /// Who lays them over each other.
    pub by: Overlay,
}

/// Where an upper layer lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpperAt {
    /// In the sandbox's one tmpfs.
    Store,
    /// In a private directory on disk, dropped at the end or, in the background, when the sandbox is forgotten: synced
    /// never.
    Dropped(HostPath),
    /// In a directory that is kept.
    Kept(HostPath),
}

/// A file that sbx supplies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etc {
    /// Where.
    pub path: InnerPath,
    /// What it holds.
    pub content: String,
    /// How it gets there.
    pub way: EtcWay,
}

/// See [`Etc`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EtcWay {
    /// Written into the upper layer before the overlay is mounted, below an etc with this mode, owner and group.
    Upper(u32, u32, u32),
    /// Mounted on the entry itself.
    Bind,
}

/// A masked path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masked {
    /// Where.
    pub path: InnerPath,
    /// Whether the user asked for it: a path that is not there is then an error.
    pub asked: bool,
}

/// What /sys is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SysKind {
    /// A fresh sysfs of the network namespace, read-only.
    Fresh,
    /// An empty directory: with the host's network no sysfs can be mounted.
    Empty,
}

impl fmt::Display for SysKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SysKind::Fresh => "a fresh /sys, read-only",
            SysKind::Empty => "an empty /sys",
        })
    }
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>, between: &str) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(between)
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lower = match self.lower.as_slice() {
            [one] => one.to_string(),
            [first, rest @ ..] => format!("{first} and {} more", rest.len()),
            [] => String::new(),
        };
        match &self.upper {
            UpperAt::Store => write!(f, "lower {lower}, upper in the tmpfs"),
            UpperAt::Dropped(at) | UpperAt::Kept(at) => write!(f, "lower {lower}, upper {at}"),
        }
    }
}

fn maps(f: &mut fmt::Formatter<'_>, identities: &Identities) -> fmt::Result {
    let by = match identities.by {
        MapsBy::Caller => "",
        MapsBy::Helpers => " (by newuidmap and newgidmap)",
        MapsBy::Root => " (by root)",
    };
    write!(f, "map uid {}; gid {}{by}", list(&identities.uids, ", "), list(&identities.gids, ", "))?;
    match identities.pids_above {
        Some(pids) => write!(f, "; at most {pids} processes over all of them"),
        None => Ok(()),
    }
}

/// A property as systemd's own programs write it, without what only switches the counting on.
fn shown(property: &Property) -> Option<String> {
    let value = match &property.value {
        Value::Bool(_) => return None,
        Value::Number(number) => number.to_string(),
        Value::Text(text) => text.clone(),
        Value::Names(names) => names.join(" "),
        Value::Bytes(bits) => bits.iter().rev().map(|byte| format!("{byte:02x}")).collect(),
        Value::Paths(paths) => list(paths.iter().map(|(path, rate)| format!("{path} {rate}")), ", "),
    };
    Some(format!("{}={value}", property.name))
}

/// What stands before a list that may be empty.
fn colon(list: &str) -> &'static str {
    if list.is_empty() { "" } else { ": " }
}

/// The steps of who enforces the limits, and of who enters a sandbox.
fn around(f: &mut fmt::Formatter<'_>, step: &Step) -> fmt::Result {
    match step {
        Step::Group(at, settings) => {
            let set = |s: &Setting| format!("{} {}", s.file, s.value);
            let settings = list(settings.iter().map(set), ", ");
            write!(f, "make a cgroup in {}{}{settings}", at.display(), colon(&settings))
        }
        Step::Scope(properties) => {
            let properties = list(properties.iter().filter_map(shown), " ");
            write!(f, "have systemd make a scope for it{}{properties}", colon(&properties))
        }
        Step::Watch(bytes) => write!(f, "watch the memory: at most {bytes} bytes"),
        Step::CgroupNamespace => write!(f, "make a cgroup namespace in its cgroup"),
        Step::CgroupMount => write!(f, "mount the sandbox's cgroup on /sys/fs/cgroup, read-only"),
        Step::Join(name) => write!(f, "enter the namespaces of {name}"),
        Step::EnterTerminal => write!(f, "open a terminal on the sandbox's /dev/pts"),
        Step::Affinity(Affinity::Count(count)) => write!(f, "keep to {count} processors"),
        Step::Affinity(Affinity::List(cpus)) => write!(f, "keep to the processors {cpus}"),
        _ => Ok(()),
    }
}

/// The steps that set one value.
fn set(f: &mut fmt::Formatter<'_>, step: &Step) -> fmt::Result {
    match step {
        Step::HostName(name) => write!(f, "set the host name {name}"),
        Step::Sysctl(key, value) => write!(f, "set {key} to {value}"),
        Step::OomScoreAdj(score) => write!(f, "set oom_score_adj to {score}"),
        Step::Nice(nice) => write!(f, "set the nice value to {nice}"),
        _ => Ok(()),
    }
}

fn landlock(f: &mut fmt::Formatter<'_>, plan: &LandlockPlan) -> fmt::Result {
    match plan.places.len() {
        0 if !plan.files => write!(f, "restrict by Landlock ABI {}, but no files: mounts go on inside", plan.abi),
        0 => write!(f, "restrict by Landlock ABI {}: the sandbox's own rules", plan.abi),
        count => write!(f, "restrict by Landlock ABI {}: {count} places", plan.abi),
    }
}

fn groups(f: &mut fmt::Formatter<'_>, set: &GroupSet) -> fmt::Result {
    match set {
        GroupSet::Kept(count) => write!(f, "keep the caller's {count} supplementary groups"),
        GroupSet::Exactly(groups) if groups.is_empty() => write!(f, "drop all supplementary groups"),
        GroupSet::Exactly(groups) => write!(f, "set the supplementary groups {}", list(groups, " ")),
    }
}

fn execute(f: &mut fmt::Formatter<'_>, command: &[OsString]) -> fmt::Result {
    write!(f, "execute {}", list(command.iter().map(|word| word.to_string_lossy()), " "))
}

fn offsets(f: &mut fmt::Formatter<'_>, by: &TimeOffsets) -> fmt::Result {
    write!(f, "set the clocks' offsets: monotonic {:+} s, boottime {:+} s", by.monotonic, by.boottime)
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Claim(name) => write!(f, "claim the name {name}"),
            Step::Clone(new) => write!(f, "make new namespaces: {}", list(new, " ")),
            Step::Join(_) | Step::EnterTerminal => around(f, self),
            Step::Maps(identities) => maps(f, identities),
            Step::Session => write!(f, "start a session that dies with sbx"),
            Step::TimeOffset(by) => offsets(f, by),
            Step::Network => write!(f, "make a network namespace with its loopback up"),
            Step::HostName(_) | Step::Sysctl(..) | Step::OomScoreAdj(_) | Step::Nice(_) => set(f, self),
            Step::Store(Some(bytes)) => write!(f, "mount a tmpfs of {bytes} bytes for all that is writable"),
            Step::Store(None) => write!(f, "mount a tmpfs of a quarter of the memory for all that is writable"),
            Step::Overlay(layers) if layers.by == Overlay::Fuse => write!(f, "mount fuse-overlayfs on /: {layers}"),
            Step::Overlay(layers) => write!(f, "mount the overlay on /: {layers}"),
            Step::BindRoot(src) => write!(f, "bind {src} on /, writable"),
            Step::EmptyRoot => write!(f, "mount an empty tmpfs on /"),
            Step::HostOverlay(path) => write!(f, "mount an overlay of this machine's {}", path.display()),
            Step::HostBind(path) => write!(f, "bind this machine's {}, read-only", path.display()),
            Step::Link(path, target) => write!(f, "link {} to {}", path.display(), target.display()),
            Step::Scratch(path, mode, _) => write!(f, "mount a writable {path} (mode {mode:o}) of the tmpfs"),
            Step::Supply(etc) => write!(f, "supply {}", etc.path),
            Step::Dev => write!(f, "mount a minimal /dev: null zero full random urandom tty, shm"),
            Step::Devpts => write!(f, "mount an own devpts on /dev/pts"),
            Step::HostShm => write!(f, "bind the host's /dev/shm"),
            Step::Mqueue => write!(f, "mount the message queues on /dev/mqueue"),
            Step::Proc => write!(f, "mount a fresh /proc"),
            Step::NoUserNamespaces => write!(f, "forbid user namespaces below this one"),
            Step::ReadOnly(path) => write!(f, "make {path} read-only"),
            Step::Mask(mask) => write!(f, "mask {}", mask.path),
            Step::Sys(kind) => write!(f, "mount {kind}"),
            Step::Mount(mount) => mount.fmt(f),
            Step::Conceal(path, _) => write!(f, "hide {path}"),
            Step::Protect(place) => write!(f, "protect {}", place.path),
            Step::Terminal => write!(f, "open a terminal of the sandbox's own on /dev/console"),
            Step::SealRoot(_) => write!(f, "make / read-only"),
            Step::Pivot => write!(f, "pivot to the new root and detach the old one"),
            Step::Keyring => write!(f, "join a new session keyring"),
            Step::Bounding(held) => write!(f, "bound the capabilities to: {held}"),
            Step::Groups(set) => groups(f, set),
            Step::Ids(uid, gid) => write!(f, "become uid {uid} gid {gid}"),
            Step::Capabilities(held) => write!(f, "hold the capabilities: {held}"),
            Step::NoNewPrivs => write!(f, "set no_new_privs"),
            Step::Hide => write!(f, "make init non-dumpable"),
            Step::Verify => write!(f, "read back ids, groups, capabilities and no_new_privs"),
            Step::Pids(count) => write!(f, "limit the processes to {count}"),
            Step::Rlimit(limit) => write!(f, "limit {} to {}:{}", limit.name, limit.soft, limit.hard),
            Step::Landlock(plan) => landlock(f, plan),
            Step::Workdir(path) => write!(f, "enter the working directory {}", path.display()),
            Step::Gate => write!(f, "wait for the word to start"),
            Step::Filter(name, length) => write!(f, "load the seccomp filter {name} ({length} instructions)"),
            Step::Group(..)
            | Step::Scope(_)
            | Step::Watch(_)
            | Step::CgroupNamespace
            | Step::CgroupMount
            | Step::Affinity(_) => around(f, self),
            Step::Exec(command) => execute(f, command),
        }
    }
}
