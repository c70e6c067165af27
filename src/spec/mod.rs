//! What is asked for: Layer (from one source, all optional) and Spec (all of them resolved and checked).
//!
//! Pure data: nothing here looks at files, the environment or the kernel. A Spec can only come from
//! `Spec::resolve`, so whoever holds one holds a checked one.

pub mod access;
pub mod errno;
pub mod hide;
pub mod ids;
pub mod layer;
pub mod limits;
pub mod mount;
pub(crate) mod near;
mod resolve;
pub mod seccomp;
pub(crate) use resolve::matches;
pub mod text;
pub mod vars;

pub use layer::{Layer, Origin};
pub use limits::{DEFAULT_PIDS, Limits, Rlimit};
pub use text::{Caller, HostPath, InnerPath};

use access::{Capabilities, Degrade, Landlock, LandlockRules, Nesting, Seccomp, SetId};
use hide::Protected;
use ids::{Map, User, Who};
use mount::{Exec, Mount};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::time::Duration;

/// One sandbox as asked for: complete and checked, independent of the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    pub(crate) name: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) user: Option<User>,
    pub(crate) groups: Vec<Who>,
    pub(crate) groups_kept: Groups,
    pub(crate) map: Map,
    pub(crate) root: Root,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) mask: Vec<InnerPath>,
    pub(crate) unmask: Unmask,
    /// Paths that show nothing; `*` in a name stands for any text.
    pub(crate) hide: Vec<InnerPath>,
    /// Paths that cannot be changed.
    pub(crate) protect: Vec<Protected>,
    /// Whether the caller's repository is one of them in part.
    pub(crate) git: Git,
    pub(crate) start_files: StartFiles,
    pub(crate) program: Program,
    pub(crate) env: Env,
    pub(crate) net: Net,
    pub(crate) share: Share,
    pub(crate) time: TimeOffsets,
    pub(crate) sysctls: Vec<(String, String)>,
    pub(crate) limits: Limits,
    pub(crate) capabilities: Capabilities,
    pub(crate) seccomp: Seccomp,
    pub(crate) landlock: Landlock,
    /// What is asked of Landlock by name.
    pub(crate) landlock_rules: LandlockRules,
    pub(crate) nesting: Nesting,
    pub(crate) degrade: Degrade,
    pub(crate) report: Report,
    /// What is told of what the sandbox refuses.
    pub(crate) explain: Explain,
    /// Where it is said that the program runs in the background.
    pub(crate) detach: Option<Detach>,
    /// What argv lifted of a policy's denials: printed at start.
    pub(crate) notes: Vec<String>,
}

/// `[protect] git`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Git {
    /// The repository is files as all others.
    Plain,
    /// Its hooks and its configuration cannot be changed, and a linked worktree's is shown.
    Guarded,
}

/// `[protect] start-files`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFiles {
    /// They are files as all others.
    Plain,
    /// Those that are there cannot be changed.
    Guarded,
}

/// `--cgroup-report`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Nothing is told of what was used.
    None,
    /// What the cgroup has counted.
    Cgroup,
}

/// `--explain`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explain {
    /// Nothing is heard of what is refused.
    No,
    /// System calls that the policy denies, and the network.
    Calls,
    /// Files too.
    Files,
    /// And what is used of the caller's home, which is there to be used: `--learn`.
    Learn,
}

/// `--detach`: the program runs in the background, and its output goes to a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detach {
    /// Its standard input.
    pub stdin: Stdin,
    /// How large a file of the log may be, in bytes.
    pub log_size: u64,
}

/// The standard input of a program in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdin {
    /// Ends at once.
    Empty,
    /// A pipe that stays open.
    Kept,
}

/// What becomes of the supplementary groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// As the map allows: kept with a single id, else those of the user inside.
    ByMap,
    /// None.
    Dropped,
}

/// The root file system and who may write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Where its content comes from.
    pub source: RootSource,
    /// Where changes go.
    pub writes: Writes,
    /// Where the layers of the other overlays lie, and whether they stay: of `@host`, and of mounts.
    pub others: Place,
    /// Which overlay implementation.
    pub overlay: Overlay,
    /// Whether set-id bits may be set on host files.
    pub setid: SetId,
    /// Whether anything is executed in what is hidden, what `@host` shows empty, and its copy of the caller's directory.
    pub exec: Exec,
}

/// Where the root's content comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSource {
    /// Directories, the topmost first; never empty.
    Layers(Vec<HostPath>),
    /// This machine's own root.
    Host,
}

/// Where changes of the root go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Into the sandbox's own layer.
    Upper(Upper),
    /// Into that layer while it is set up, then nowhere.
    ReadOnly(Upper),
    /// Into ROOTFS itself.
    Through,
}

impl Writes {
    /// Whether the layer is a directory of the caller's choice.
    pub fn is_kept(&self) -> bool {
        matches!(self, Writes::Upper(Upper::Directory(_)))
    }

    /// Whether there is a layer in a private directory on disk, if possible.
    pub fn on_disk(&self) -> bool {
        matches!(self, Writes::Upper(Upper::Disk | Upper::DiskOrMemory) | Writes::ReadOnly(Upper::Disk))
    }
}

/// What holds the layer of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upper {
    /// Memory, at most this many bytes.
    Tmpfs(Option<u64>),
    /// A private directory on disk, removed at the end; in the background when the sandbox is forgotten.
    Disk,
    /// The same, or memory where the disk cannot hold a layer: the default in the background.
    DiskOrMemory,
    /// This directory, kept.
    Directory(HostPath),
}

/// Where the layers of overlays lie that are not the root's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory, dropped at the end.
    Memory,
    /// In a private directory on disk.
    Disk,
    /// The same, where the disk takes them: nobody has asked for it.
    DiskOrMemory,
}

/// `--overlay`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// The kernel's, else fuse-overlayfs.
    Auto,
    /// The kernel's or none.
    Kernel,
    /// fuse-overlayfs.
    Fuse,
}

/// Default masks that are lifted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmask {
    /// Those at these paths.
    Paths(Vec<InnerPath>),
    /// All of them.
    All,
}

/// The program and its surroundings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// COMMAND and its arguments; empty means `/bin/sh`.
    pub command: Vec<OsString>,
    /// Its own name, if not the command's.
    pub argv0: Option<String>,
    /// Working directory, if not the default.
    pub workdir: Option<InnerPath>,
    /// Whether it gets a terminal of its own.
    pub tty: Tty,
    /// Whether sbx's init is pid 1.
    pub init: Init,
    /// Descriptors passed besides 0 to 2.
    pub pass_fds: Vec<i32>,
    /// File mode creation mask.
    pub umask: u32,
}

/// `-t`, `-T`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tty {
    /// A terminal of its own when stdin and stdout are terminals.
    Auto,
    /// In any case.
    Own,
    /// Never: the caller's descriptors as they are.
    None,
}

/// Who is pid 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// sbx's own init, which reaps and forwards.
    Own,
    /// The program itself.
    Program,
}

/// The environment beyond sbx's own few variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Env {
    /// Whether sbx's own few are there.
    pub base: BaseEnv,
    /// Variables in order; later ones win.
    pub set: Vec<(String, OsString)>,
    /// Patterns of names that are left out of sbx's own few as well.
    pub deny: Vec<String>,
}

/// `--clear-env`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseEnv {
    /// PATH, HOME, USER, TERM, LANG, LC_*, container.
    Usual,
    /// Nothing.
    Cleared,
}

/// `--net` and what belongs to names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// Which network.
    pub mode: NetMode,
    /// Name servers, where said.
    pub dns: Vec<IpAddr>,
    /// Extra lines of the hosts file.
    pub hosts: Vec<(String, IpAddr)>,
}

/// Which network the program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetMode {
    /// Its own loopback.
    None,
    /// The host's.
    Host,
}

/// Namespaces that stay the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// SysV IPC, message queues, /dev/shm.
    pub ipc: bool,
    /// The host name.
    pub uts: bool,
    /// The monotonic and boot-time clocks.
    pub time: bool,
    /// The cgroup view.
    pub cgroup: bool,
}

/// `--time-offset`, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeOffsets {
    /// Added to CLOCK_MONOTONIC.
    pub monotonic: i64,
    /// Added to CLOCK_BOOTTIME.
    pub boottime: i64,
}

impl Spec {
    /// What the user should be told before the start: denials that the command line lifted.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The same, with copies of all host directories that it could write: for a first run that is only watched.
    pub fn on_copies(mut self) -> Spec {
        for mount in &mut self.mounts {
            if let mount::Source::Bind { access, .. } = &mut mount.source
                && *access == mount::Access::Rw
            {
                *access = mount::Access::Overlay;
            }
        }
        self
    }

    /// The name asked for.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// Whether the host is asked for a cgroup: for a limit that somebody has to enforce, or for itself.
    pub(crate) fn wants_group(&self) -> bool {
        self.limits.needs_somebody()
            || self.limits.by == limits::By::Cgroup
            || self.report == Report::Cgroup
            || self.mounts_cgroup()
    }

    /// Whether the program gets its cgroup writable.
    pub(crate) fn mounts_cgroup(&self) -> bool {
        self.mounts.iter().any(|mount| mount.source == mount::Source::Cgroup)
    }

    /// How long the program may run, and how long it then has from TERM to KILL.
    pub fn timeout(&self) -> Option<(Duration, Duration)> {
        self.limits.timeout.map(|timeout| (timeout, self.limits.kill_after))
    }
}
