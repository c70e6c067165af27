//! The Script: every step as calls with their C strings and numbers ready, so that the child allocates nothing.

use super::channel::{Call, Fault};
use crate::plan::Need;
use crate::spec::access::Degrade;
use crate::spec::hide::{HERE_TOO, Missing};
use crate::spec::mount::Exec;
use crate::sys::Errno;
use crate::sys::cred::{CapSet, Limit};
use crate::sys::mount::{Attr, Depth};
use crate::sys::process::{ArgvArea, Namespaces, Pointers};
use crate::sys::sched::CpuMask;
use crate::sys::seccomp::Insn;
use crate::sys::tty::Size;
use std::ffi::CString;
use std::os::fd::OwnedFd;

/// All that the child does, in the order of its branches. It outlives the clone: in the child nothing is dropped.
#[derive(Debug)]
pub(crate) struct Script {
    /// Whether mounts can be made on a tree that is attached nowhere (Linux 6.15).
    pub detached: bool,
    /// Sources that the parent hands over as idmapped mounts.
    pub idmapped: Vec<IdMapped>,
    /// The processor that the parent leaves when the child runs.
    pub left: Option<u32>,
    /// What the clone makes new.
    pub new: Namespaces,
    /// Whether it may go on without some of them.
    pub degrade: Degrade,
    /// Its step, for faults.
    pub clone_step: u16,
    /// Made in between where the map is one of ranges; see [`Above`].
    pub above: Option<Above>,
    /// User and group inside of what the child makes.
    pub creator: (u32, u32),
    /// Whether the child waits until the parent has written the maps.
    pub awaits_maps: bool,
    /// Who joins a sandbox, before it enters anything.
    pub before: Vec<Prepared>,
    /// The same, when it has entered, before it makes the program's process.
    pub entered: Vec<Prepared>,
    /// Init, before the helper.
    pub enter: Vec<Prepared>,
    /// Init, beside the helper.
    pub own: Vec<Prepared>,
    /// The helper: root and pivot.
    pub root: Vec<Prepared>,
    /// Init, beside the helper: who it becomes. Ids and capabilities are a process's own.
    pub identity: Vec<Prepared>,
    /// Init, after the helper.
    pub confine: Vec<Prepared>,
    /// The Landlock ruleset of the plan.
    pub ruleset: Option<OwnedFd>,
    /// Whether init makes a sysfs and hands it to the helper.
    pub sysfs: bool,
    /// Whether the host's /proc must be at hand in `own`.
    pub host_proc: bool,
    /// Whether the parent is handed /proc and every tmpfs, to watch over the memory.
    pub watched: bool,
    /// Whether each step is told when it is done.
    pub followed: bool,
    /// The program.
    pub program: Program,
}

/// The user namespace above the sandbox's own, which counts the processes of all its users.
#[derive(Debug)]
pub(crate) struct Above {
    /// Step of the maps, for faults.
    pub step: u16,
    /// Who the process becomes first, where the map does not hold the caller.
    pub becomes: Option<(u32, u32)>,
    /// RLIMIT_NPROC for all that is below.
    pub pids: u64,
    /// uid_map of the sandbox's own namespace, in the ids of the one above.
    pub uid_map: CString,
    /// gid_map likewise.
    pub gid_map: CString,
}

/// A source that the parent makes an idmapped mount of.
#[derive(Debug)]
pub(crate) struct IdMapped {
    pub path: CString,
    pub depth: Depth,
    pub attr: Attr,
}

/// Where a directory or file of the host comes from.
#[derive(Clone, Debug)]
pub(crate) enum Src {
    /// By its path.
    Path(CString),
    /// The idmapped mount of this number; as a layer it is attached in the store under this name.
    Tree(usize, CString),
}

/// One prepared step.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Its number in the plan.
    pub step: u16,
    /// Whether the run may go on without it.
    pub need: Need,
    /// What to do.
    pub op: Op,
}

/// A place beneath the new root, with the names to make where it is missing.
#[derive(Debug)]
pub(crate) struct Target {
    /// Relative to the root.
    pub path: CString,
    /// Each ancestor and at last the place itself: its path, and its own name.
    pub parts: Vec<(CString, CString)>,
}

/// What is made where a protected path leads to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StandIn {
    /// Nothing: it may be made.
    None,
    /// An empty directory.
    Directory,
    /// A file with this content.
    File(Vec<u8>),
}

impl From<Missing> for StandIn {
    fn from(missing: Missing) -> StandIn {
        match missing {
            Missing::Free => StandIn::None,
            Missing::Directory => StandIn::Directory,
            Missing::Empty => StandIn::File(Vec::new()),
            Missing::CommonDir => StandIn::File(HERE_TOO.into()),
        }
    }
}

/// How a directory of the store is mounted.
pub(super) fn attr(exec: Exec) -> Attr {
    if exec == Exec::Noexec { Attr::GUARDED } else { Attr::PLAIN }
}

/// How overlay layers are named to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// By descriptor, Linux 6.13.
    Descriptor,
    /// One by one as /proc/self/fd paths, Linux 6.5.
    Paths,
    /// All in one option, before.
    OneOption,
}

/// Where an overlay's upper and work directories lie.
#[derive(Clone, Debug)]
pub(crate) enum UpperDirs {
    /// In the store, under these two names.
    Store(CString, CString),
    /// In this directory of the host, as `upper` and `work`.
    Host(CString),
}

/// One overlay.
#[derive(Clone, Debug)]
pub(crate) struct OverlayOp {
    pub lower: Vec<Src>,
    pub upper: UpperDirs,
    pub naming: Naming,
    /// Nothing of it is synced: it is thrown away anyway.
    pub volatile: bool,
    /// Whether its upper layer is the one that files were put into.
    pub is_root: bool,
}

/// Where a mask lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// The proc file system that was just made.
    Proc,
    /// The sysfs that was just attached.
    Sys,
    /// The new root.
    Root,
}

/// One operation of the child.
#[derive(Debug)]
pub(crate) enum Op {
    /// The map of a single id, which a process may write for itself: uid_map, gid_map.
    OwnMaps(CString, CString),
    Session,
    TimeOffset(CString),
    Nice(i32),
    /// A file of the host's /proc, from there.
    WriteProc(CString, Vec<u8>),
    Network,
    /// A cgroup namespace, in the place that the parent finds for this process where it is to be waited for; and a
    /// mount of it, for the helper.
    CgroupNamespace {
        awaited: bool,
        mount: Option<Attr>,
    },
    HostName(Vec<u8>),
    /// The one tmpfs, of this size.
    Store(CString),
    /// A file put into the root's upper layer: directory, its mode, owner and group; name; content.
    Seed {
        overlay: OverlayOp,
        dir: CString,
        like: (u32, u32, u32),
        file: CString,
        content: Vec<u8>,
    },
    Overlay(OverlayOp),
    /// The same by fuse-overlayfs.
    Fuse(OverlayOp),
    BindRoot(CString),
    EmptyRoot,
    Link(CString, Target),
    /// A directory of the store, mounted: its name there.
    Scratch {
        name: CString,
        target: Target,
        mode: u32,
        attr: Attr,
    },
    /// A file of the store, mounted on an entry.
    Supply {
        name: CString,
        content: Vec<u8>,
        parent: Target,
        entry: CString,
    },
    /// A file written into a directory of the store that is mounted already.
    Place {
        path: CString,
        content: Vec<u8>,
    },
    Dev(Target),
    Devpts {
        gid: Option<CString>,
    },
    HostShm,
    /// The message queues on /dev/mqueue.
    DevMqueue,
    Mqueue(Target),
    Proc(Target),
    NoUserNamespaces,
    ReadOnly(CString),
    Mask {
        base: Base,
        path: CString,
        asked: bool,
    },
    /// A path that shows nothing, and the directory of the store for it.
    Conceal {
        path: CString,
        name: CString,
        attr: Attr,
    },
    /// A path that cannot be changed.
    Protect {
        path: CString,
        missing: StandIn,
    },
    Sys(Target),
    /// An empty directory, or one with a place for the cgroup.
    EmptySys {
        target: Target,
        cgroup: bool,
    },
    Cgroup(Target),
    Bind {
        src: Src,
        target: Target,
        attr: Attr,
    },
    /// A directory of this machine's root as it is.
    HostBind {
        src: Src,
        target: Target,
        attr: Attr,
    },
    OverlayBind(OverlayOp, Target, Attr),
    Tmpfs {
        size: CString,
        mode: CString,
        target: Target,
        attr: Attr,
    },
    Device {
        src: CString,
        target: Target,
    },
    /// A terminal for this user, of this size.
    Terminal {
        uid: u32,
        size: Size,
    },
    /// The same on a /dev/pts that is there already.
    EnterTerminal {
        uid: u32,
        size: Size,
    },
    /// The root's mount, and these below it, made read-only.
    SealRoot(Vec<Target>),
    Pivot,
    Keyring,
    Bounding(Vec<u32>),
    Groups(Option<Vec<u32>>),
    /// User and group to become, where the process is not that already.
    Ids(Option<(u32, u32)>),
    Capset(CapSet),
    NoNewPrivs,
    Hide,
    /// Init's filter, which the program inherits.
    Filter(Vec<Insn>),
    /// The same, listened to; and the plain one, where somebody listens already.
    Listen(Vec<Insn>, Vec<Insn>),
    Verify(Expected),
    Rlimit(u32, Limit),
    /// The processors that this process and all it makes keep to.
    Affinity(Box<CpuMask>),
    /// Whether there is a ruleset, and whether it is one on files; rules for it, none where it has them; the places of
    /// which files can be executed, those of them that are there; what of a rule files can have; and what is kept within
    /// the domain.
    Landlock {
        ruled: bool,
        files: bool,
        rules: Vec<(CString, u64)>,
        executable: Vec<CString>,
        file_rights: u64,
        scopes: u64,
    },
    Workdir(CString),
    Gate,
}

/// What /proc/self/status has to say after `Identity`.
#[derive(Debug)]
pub(crate) struct Expected {
    pub uid: u32,
    pub gid: u32,
    pub groups: Option<Vec<u32>>,
    pub held: CapSet,
    pub bounding: CapSet,
    /// Whether a filter holds by then.
    pub filtered: bool,
}

/// How the program is executed.
#[derive(Debug)]
pub(crate) struct Program {
    pub step: u16,
    pub candidates: Vec<CString>,
    pub argv: Pointers,
    pub env: Pointers,
    /// Limits that were asked for, of its process alone; with the steps, for faults.
    pub limits: Vec<(u16, u32, Limit)>,
    /// Loaded in this order, right before the exec; with the steps, for faults.
    pub filters: Vec<(u16, Vec<Insn>)>,
    /// With the step: the filter that is listened to in place of the others, and what it leaves to be denied after that.
    pub listening: Option<(u16, Vec<Insn>, Option<Vec<Insn>>)>,
    /// Init's own, where the program gets others: loaded when that has started.
    pub init_filter: Option<Vec<Insn>>,
    /// Whether init's is all that the program gets, so that it inherits it: `Op::Filter`.
    pub inherits_filter: bool,
    pub umask: u32,
    pub passed: Vec<i32>,
    /// How many of the three standard descriptors become the terminal: 0, 2 or 3.
    pub terminals: i32,
    /// Whether the program itself is pid 1.
    pub is_init: bool,
    /// Whether its parent ends when it runs, so that the sandbox's init inherits it.
    pub orphaned: bool,
    /// What becomes descriptors 0 to 2 in place of the caller's.
    pub stdio: [Option<OwnedFd>; 3],
    /// Whether init waits with its end until the parent has read what systemd takes away with it.
    pub counted: bool,
    /// Whether the parent wants the program's pidfd.
    pub want_pidfd: bool,
    /// Where this process's arguments lie, to be overwritten.
    pub argv_area: Option<ArgvArea>,
}

/// A failed call, before the step's number is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure(pub Call, pub Errno);

impl Failure {
    /// The fault of this step.
    pub(crate) fn at(self, step: u16) -> Fault {
        Fault { step, call: self.0, errno: self.1 }
    }
}

/// Names the call of a result.
pub(crate) trait In<T> {
    /// The same result, saying which call it came from.
    fn called(self, call: Call) -> Result<T, Failure>;
}

impl<T> In<T> for crate::sys::Result<T> {
    fn called(self, call: Call) -> Result<T, Failure> {
        self.map_err(|errno| Failure(call, errno))
    }
}
