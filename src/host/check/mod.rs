//! `sbx check`: what this machine lets this user do, found by doing it, and the narrowest thing that would help.
//!
//! Three parts: `facts` reads settings, the probes (`kernel`, `mounts`, `ranges`) try things in processes of their
//! own, and `rows` with `limits` and `causes` makes sentences of both, purely. One invariant: a look changes nothing, leaves
//! nothing and ends within a bounded time, whatever the machine answers.

mod causes;
mod facts;
mod kernel;
mod limits;
mod mounts;
mod probe;
mod ranges;
mod rows;
#[cfg(test)]
mod tests;

pub use facts::{Facts, HelperFile};
pub use probe::{Outcome, Refusal};
pub use rows::rows;

use crate::spec::Caller;
use crate::sys::cred;
use probe::Probes;
use serde::Serialize;

/// One thing that sbx needs or can make use of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// Linux 5.14 or newer.
    Kernel,
    /// User namespaces whose capabilities are good for something.
    UserNamespaces,
    /// mount_namespaces(7)
    MountNamespaces,
    /// pid_namespaces(7)
    PidNamespaces,
    /// uts_namespaces(7)
    UtsNamespaces,
    /// ipc_namespaces(7)
    IpcNamespaces,
    /// network_namespaces(7)
    NetNamespaces,
    /// cgroup_namespaces(7)
    CgroupNamespaces,
    /// time_namespaces(7)
    TimeNamespaces,
    /// The mount API, openat2, pidfds.
    SystemCalls,
    /// seccomp(2)
    Seccomp,
    /// landlock(7)
    Landlock,
    /// Overlayfs with user xattrs on a tmpfs.
    Overlay,
    /// A fresh /proc.
    Proc,
    /// A fresh /sys.
    Sysfs,
    /// What /dev is made of.
    Devices,
    /// Maps of subordinate ids.
    IdRanges,
    /// fuse-overlayfs.
    Fuse,
    /// Resource limits of the caller's own that a sandbox goes by.
    Limits,
    /// `--mem`, `--swap`
    LimitMem,
    /// `--cpus`, `--cpu-weight`
    LimitCpus,
    /// `--cpuset`
    LimitCpuset,
    /// `--pids`
    LimitPids,
    /// `--io`, `--io-weight`
    LimitIo,
    /// Session keyrings.
    Keyrings,
}

impl Feature {
    /// The words for people.
    pub fn words(self) -> &'static str {
        match self {
            Feature::Kernel => "kernel 5.14",
            Feature::UserNamespaces => "user namespaces",
            Feature::MountNamespaces => "mount namespaces",
            Feature::PidNamespaces => "pid namespaces",
            Feature::UtsNamespaces => "uts namespaces",
            Feature::IpcNamespaces => "ipc namespaces",
            Feature::NetNamespaces => "network namespaces",
            Feature::CgroupNamespaces => "cgroup namespaces",
            Feature::TimeNamespaces => "time namespaces",
            Feature::SystemCalls => "system calls",
            Feature::Seccomp => "seccomp",
            Feature::Landlock => "Landlock",
            Feature::Overlay => "overlay",
            Feature::Proc => "fresh /proc",
            Feature::Sysfs => "fresh /sys",
            Feature::Devices => "devices",
            Feature::IdRanges => "ranges of ids",
            Feature::Fuse => "fuse-overlayfs",
            Feature::Limits => "resource limits",
            Feature::LimitMem => "limit --mem",
            Feature::LimitCpus => "limit --cpus",
            Feature::LimitCpuset => "limit --cpuset",
            Feature::LimitPids => "limit --pids",
            Feature::LimitIo => "limit --io",
            Feature::Keyrings => "keyrings",
        }
    }
}

/// What helps where the kernel refuses its overlay and fuse-overlayfs works.
pub const BY_FUSE: &str = "--overlay auto, which takes fuse-overlayfs in its place, slower";

/// How far a feature is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// All of it.
    Ok,
    /// Some of it.
    Limited,
    /// None of it.
    Missing,
    /// Not known: something that it stands on is missing.
    Untried,
}

/// A file that helps, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReadyFile {
    /// Where it belongs.
    pub path: String,
    /// What it holds.
    pub content: String,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Which feature.
    pub feature: Feature,
    /// How far it is there.
    pub state: State,
    /// Whether `sbx run` without options needs it.
    pub needed: bool,
    /// What it enables.
    pub enables: &'static str,
    /// Of a limit: who would enforce it, in the word of the status lines.
    pub by: Option<&'static str>,
    /// What is missing, as a fact.
    pub why: Option<String>,
    /// The narrowest thing that helps.
    pub fix: Option<String>,
    /// A file that the fix speaks of.
    pub file: Option<ReadyFile>,
}

/// What [`look`] found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether `sbx run` without options works here.
    pub works: bool,
    /// Line by line.
    pub rows: Vec<Row>,
    /// What the sentences rest on.
    pub facts: Facts,
}

/// What the probes found; by default all were left untried.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// A user namespace, its maps, and a use of its capabilities.
    pub user: Outcome,
    /// The other kinds, in the order of [`Feature`].
    pub kinds: Vec<Outcome>,
    /// System calls that are missing.
    pub calls: Vec<(String, Outcome)>,
    /// clone3(2), which has a fall-back.
    pub clone3: Outcome,
    /// A filter that bites.
    pub seccomp: Outcome,
    /// A Landlock rule that bites.
    pub landlock: Outcome,
    /// An overlay that is changed.
    pub overlay: Outcome,
    /// A fresh /proc.
    pub proc: Outcome,
    /// A fresh /sys.
    pub sysfs: Outcome,
    /// A device, a devpts and a message queue file system.
    pub devices: Outcome,
    /// newuidmap and newgidmap.
    pub ranges: Outcome,
    /// /dev/fuse.
    pub fuse: Outcome,
    /// A session keyring.
    pub keyring: Outcome,
}

/// Looks at this machine as this caller. Takes some 100 ms, and at most a good 10 s where things hang.
pub fn look(caller: &Caller) -> Report {
    let probes = Probes::new(crate::host::power(cred::geteuid()));
    // In a process of its own too: PATH may lead to the directory of a dead file server.
    let read = probes.ask(|| serde_json::to_string(&Facts::read(caller)).unwrap_or_default());
    let facts = read.and_then(|text| serde_json::from_str(&text).ok());
    let unread = || Facts { release: crate::host::files::release(), uid: cred::geteuid(), ..Facts::default() };
    let facts = facts.unwrap_or_else(unread);
    let rows = rows(&find(&probes, &facts), &facts);
    let works = !rows.iter().any(|row| row.needed && matches!(row.state, State::Missing | State::Untried));
    Report { works, rows, facts }
}

fn find(probes: &Probes, facts: &Facts) -> Findings {
    let user = kernel::user_namespace(probes);
    let inside = user.works();
    // Where no user namespace is to be had, everything in one would fail for the same reason.
    let within = |probe: fn(&Probes) -> Outcome| if inside { probe(probes) } else { Outcome::Untried };
    Findings {
        kinds: if inside { kernel::namespaces(probes) } else { vec![Outcome::Untried; kernel::KINDS.len()] },
        calls: kernel::calls(probes, inside),
        clone3: kernel::clone3(probes),
        seccomp: kernel::seccomp(probes),
        landlock: if facts.landlock_abi > 0 { kernel::landlock(probes) } else { Outcome::Untried },
        overlay: within(mounts::overlay),
        proc: within(mounts::proc),
        sysfs: within(mounts::sysfs),
        devices: within(mounts::devices),
        ranges: if inside { ranges::ranges(probes, facts) } else { Outcome::Untried },
        fuse: within(mounts::fuse),
        keyring: kernel::keyring(probes),
        user,
    }
}
