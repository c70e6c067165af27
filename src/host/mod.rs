//! Facts about this machine, user and session. Reads only; changes nothing.
//!
//! `Host::look` gathers what every run's plan needs and must stay cheap: it is on the start path.
//! What `sbx check` tells beyond that is probed by doing, in the other files of this folder.

pub mod all_ids;
pub mod cgroup;
pub mod check;
mod disk;
pub mod files;
pub mod fuse;
mod hidden;
mod home;
pub mod manager;
mod mountinfo;
pub(crate) mod ranges;
mod repository;
mod rootfs;
mod written;

pub use disk::Disk;
pub use repository::Repository;
pub use rootfs::{Entry, EntryKind, RootFacts, mount_points_of, mounts_below};
pub use written::Written;

use crate::error::{Error, Result};
use crate::spec::ids;
use crate::spec::mount::Source;
use crate::spec::text::{Caller, HostPath, InnerPath};
use crate::spec::{Git, Overlay, RootSource, Spec, StartFiles, Writes};
use crate::sys;
use crate::sys::fs::{HERE, Kind, Open};
use serde::Serialize;
use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where this process runs: facts that no option changes.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Kernel version, such as (6, 18).
    pub kernel: (u32, u32),
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Login name; the number where /etc/passwd has none.
    pub user: String,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// What this process may do as uid 0.
    pub power: Power,
    /// Landlock's ABI version, 0 without Landlock.
    pub landlock: u32,
    /// Ranges of /etc/subuid and /etc/subgid that are this user's: first id and count.
    pub subuids: Vec<(u32, u32)>,
    /// As `subuids`, for groups.
    pub subgids: Vec<(u32, u32)>,
    /// The set-uid helper that writes maps of ranges, where it is on PATH.
    pub newuidmap: Option<PathBuf>,
    /// Its sister.
    pub newgidmap: Option<PathBuf>,
    /// Whether core dumps go to a program of the host (core_pattern with `|`).
    pub core_piped: bool,
    /// How many processors may have a thermal_throttle directory to mask.
    pub throttled_cpus: usize,
    /// What descriptors 0 to 2 are.
    pub stdio: [Stdio; 3],
    /// The root file system asked for.
    pub root: RootFacts,
    /// For `@host`: the directories that it shows empty, the outer ones first, and their modes there.
    #[serde(skip)]
    pub emptied: Vec<(PathBuf, u32)>,
    /// What the patterns among the hidden paths stand for.
    #[serde(skip)]
    pub hidden: Vec<InnerPath>,
    /// The directories that can be changed, where something in them is to be guarded.
    #[serde(skip)]
    pub written: Vec<Written>,
    /// The git repositories of these and of the caller's directory, where they are to be guarded.
    #[serde(skip)]
    pub repositories: Vec<Repository>,
    /// What the caller's next shell runs, where that is to be guarded; without links, and what is a link twice.
    #[serde(skip)]
    pub start_files: Vec<PathBuf>,
    /// Hard limits of this process by the lower-case name of getrlimit(2), those that the plan asks for.
    #[serde(skip)]
    pub hard_limits: Vec<(String, u64)>,
    /// Name servers as the caller's resolv.conf gives them, read where the network is the host's.
    pub resolv_conf: String,
    /// Sources of mounts that are not there or cannot be reached, and why.
    #[serde(skip)]
    pub missing: Vec<(HostPath, String)>,
    /// Sources of mounts that belong to the host's root; looked at only where the caller is root.
    #[serde(skip)]
    pub roots_own: Vec<HostPath>,
    /// As root: all ranges of /etc/subuid and /etc/subgid, whoever has them.
    #[serde(skip)]
    pub foreign_ranges: Vec<(u32, u32)>,
    /// Where fuse-overlayfs is, or why it cannot be used; looked at only where it is asked for.
    #[serde(skip)]
    pub fuse: Option<Result<PathBuf>>,
    /// Descriptors to pass on, and what they are.
    pub passed: Vec<(i32, Stdio)>,
    /// Tells a layer on disk from those of other sandboxes of the same name; 0 where there is none.
    #[serde(skip)]
    pub token: u32,
    /// What of the control groups is the caller's; looked at only where a limit asks for one.
    #[serde(skip)]
    pub delegation: cgroup::Delegation,
    /// The disks of `--io`.
    #[serde(skip)]
    pub disks: Vec<Disk>,
    /// Whether the machine has swap; looked at likewise.
    #[serde(skip)]
    pub has_swap: bool,
    /// The processors that this process may use; looked at where some of them are asked for.
    #[serde(skip)]
    pub processors: Vec<u32>,
    /// The directory for layers on disk, without links; empty where there is none.
    #[serde(skip)]
    pub layers: PathBuf,
    /// Working directory, home and environment.
    #[serde(skip)]
    pub caller: Caller,
}

/// How far uid 0 reaches here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// An ordinary user, or uid 0 of a user namespace.
    Ordinary,
    /// Uid 0 of the initial user namespace with CAP_SYS_ADMIN.
    Root,
    /// Uid 0 of the initial user namespace without CAP_SYS_ADMIN: most CI containers.
    RootWithoutAdmin,
}

/// What a standard descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdio {
    /// Not open.
    Closed,
    /// A terminal.
    Terminal,
    /// A directory, or an `O_PATH` descriptor of anything: never passed on.
    Place,
    /// A regular file.
    File,
    /// A pipe, a socket, a device.
    Stream,
}

const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Overlays need user xattrs on their upper layer, which tmpfs has since Linux 6.6.
pub const TMPFS_XATTRS: (u32, u32) = (6, 6);

/// Why no sandbox can keep its crashes from a handler of the host where the hard core limit is 0, and what helps.
/// Such a pipe is no file, so a limit of 0 does not hold for it; only 1 does (core(5), coredump.c).
pub const CORES_PIPED: (&str, &str) = (
    "crashes go to a program of the host (core_pattern starts with |), which only a core limit of 1 prevents, and \
     your own hard limit is 0",
    "start sbx with `ulimit -Hc` above 0; or --rlimit core=0, which leaves crashes to that program",
);

impl Host {
    /// Looks at the machine as far as this spec's plan needs it.
    ///
    /// # Errors
    /// `Spec` where ROOTFS cannot be used, `Sys` where the caller's own surroundings cannot be read.
    pub fn look(spec: &Spec, caller: Caller) -> Result<Host> {
        let by_name = spec.wants_ranges() || spec.user.is_some() || sys::cred::geteuid() == 0;
        let grouped = if by_name { rootfs::Groups::Wanted } else { rootfs::Groups::Unused };
        let root = root(spec, grouped)?;
        let hidden = hidden::matched(spec)?;
        Ok(Host { hidden, ..Host::with_root(spec, caller, root) })
    }

    /// The same for one more program in a sandbox that runs, whose root this is.
    pub fn inside(spec: &Spec, caller: Caller, root: BorrowedFd<'_>) -> Host {
        let host = Host::with_root(spec, caller, RootFacts::inside(root));
        let all = crate::spec::limits::RLIMITS.into_iter();
        Host { hard_limits: all.filter_map(|name| Some((name.to_owned(), hard_limit(name)?))).collect(), ..host }
    }

    fn with_root(spec: &Spec, caller: Caller, root: RootFacts) -> Host {
        let uid = sys::cred::geteuid();
        let kernel = kernel();
        let ranged = spec.wants_ranges();
        let power = power(uid);
        let user = login_name(uid, &caller, ranged);
        let ranges = |path: &str| if ranged { ranges::owned(path, &user, uid) } else { Vec::new() };
        let limited = spec.wants_group();
        let on_disk =
            spec.root.writes.on_disk() || spec.root.others != crate::spec::Place::Memory || kernel < TMPFS_XATTRS;
        let (git, shells) = (spec.git == Git::Guarded, spec.start_files == StartFiles::Guarded);
        let written = if git || shells { written::of(spec) } else { Vec::new() };
        let helper = |name: &str| if ranged { find_program(&caller, name) } else { None };
        Host {
            kernel,
            uid,
            gid: sys::cred::getegid(),
            groups: groups(),
            power,
            landlock: sys::landlock::abi(),
            subuids: ranges("/etc/subuid"),
            subgids: ranges("/etc/subgid"),
            newuidmap: helper("newuidmap"),
            newgidmap: helper("newgidmap"),
            core_piped: core_piped(),
            throttled_cpus: throttled_cpus(),
            stdio: stdio([0, 1, 2]),
            root,
            emptied: if spec.root.source == RootSource::Host { home::emptied(&caller, uid) } else { Vec::new() },
            hidden: Vec::new(),
            repositories: if git { repository::all(&caller.cwd, &written) } else { Vec::new() },
            start_files: if shells && !written.is_empty() { home::start_files(&caller) } else { Vec::new() },
            written,
            hard_limits: hard_limits(spec),
            resolv_conf: resolv_conf(spec),
            missing: missing(spec),
            roots_own: if power == Power::Ordinary { Vec::new() } else { roots_own(spec) },
            foreign_ranges: if power == Power::Ordinary { Vec::new() } else { foreign_ranges() },
            fuse: (spec.root.overlay == Overlay::Fuse).then(|| fuse::look(&caller, power)),
            passed: spec.program.pass_fds.iter().map(|&fd| (fd, stdio([fd])[0])).collect(),
            delegation: if limited { cgroup::Delegation::look(&caller, uid) } else { Default::default() },
            disks: spec.limits.io.iter().map(|io| Disk::of(&io.path)).collect(),
            processors: if spec.limits.cpus.is_some() || spec.limits.cpuset.is_some() {
                processors()
            } else {
                Vec::new()
            },
            has_swap: limited && sys::host::swap_bytes() > 0,
            token: if on_disk { token() } else { 0 },
            layers: if on_disk { home::layers(&caller, power) } else { PathBuf::new() },
            user,
            caller,
        }
    }

    /// How far this process may raise a resource limit, and with it everybody that it starts.
    pub(crate) fn hard_limit(&self, name: &str) -> u64 {
        self.hard_limits.iter().find(|(known, _)| known == name).map_or(u64::MAX, |(_, hard)| *hard)
    }
}

/// The caller's working directory, home and environment.
///
/// # Errors
/// `Sys` where the working directory is gone or unreachable.
pub fn caller() -> Result<Caller> {
    let env: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let home = env.iter().find(|(name, value)| name == "HOME" && Path::new(value).is_absolute());
    let home = home.map(|(_, value)| value.into()).or_else(|| home::of_passwd(sys::cred::geteuid()));
    let home = home.unwrap_or_else(|| PathBuf::from("/"));
    let cwd = std::env::current_dir().map_err(|e| Error::Sys {
        doing: "find the working directory".into(),
        on: "(cd to one that exists)".into(),
        errno: sys::Errno(e.raw_os_error().unwrap_or(0)),
    })?;
    Ok(Caller { cwd, home, env })
}

/// The version in this kernel's release, by uname(2).
pub fn kernel() -> (u32, u32) {
    version(&files::release())
}

/// A kernel's release as two numbers.
pub(crate) fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn power(uid: u32) -> Power {
    if uid != 0 || !initial_user_namespace() {
        return Power::Ordinary;
    }
    match sys::cred::effective() {
        Ok(held) if held.0 & CAP_SYS_ADMIN != 0 => Power::Root,
        _ => Power::RootWithoutAdmin,
    }
}

/// The initial user namespace maps every id to itself.
pub fn initial_user_namespace() -> bool {
    let map = files::read_value(Path::new("/proc/self/uid_map")).unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// A number that no other run has, but once in four thousand million times.
fn token() -> u32 {
    let mut random = [0; 4];
    let _ = sys::host::getrandom(&mut random);
    u32::from_ne_bytes(random)
}

/// The login name: `USER` is only a hint, so it is looked up where a range depends on it.
fn login_name(uid: u32, caller: &Caller, matters: bool) -> String {
    let known = match matters {
        true => home::account(uid).map(|account| account.name),
        false => caller.var("USER").and_then(OsStr::to_str).map(str::to_owned),
    };
    known.unwrap_or_else(|| uid.to_string())
}

fn groups() -> Vec<u32> {
    let mut groups = vec![0; 64];
    loop {
        match sys::cred::getgroups(&mut groups) {
            Ok(count) => {
                groups.truncate(count);
                return groups;
            }
            // NGROUPS_MAX is 65536.
            Err(sys::EINVAL) if groups.len() < 65536 => groups.resize(65536, 0),
            Err(_) => return Vec::new(),
        }
    }
}

fn core_piped() -> bool {
    files::read_value(Path::new("/proc/sys/kernel/core_pattern")).is_ok_and(|text| text.starts_with('|'))
}

/// Raising a hard limit takes a capability in the initial user namespace (do_prlimit), which no sandbox has.
fn hard_limits(spec: &Spec) -> Vec<(String, u64)> {
    let asked = spec.limits.rlimits.iter().map(|limit| limit.name.as_str());
    let hard = |name: &str| Some((name.to_owned(), hard_limit(name)?));
    ["nproc", "core"].into_iter().chain(asked).filter_map(hard).collect()
}

fn hard_limit(name: &str) -> Option<u64> {
    sys::cred::getrlimit(sys::cred::resource(name)?).ok().map(|limit| limit.hard)
}

/// One look at the first processor; where it has the directory, all of them may.
fn throttled_cpus() -> usize {
    match sys::fs::stat(c"/sys/devices/system/cpu/cpu0/thermal_throttle") {
        Ok(_) => files::cpus_possible(),
        Err(_) => 0,
    }
}

/// poll(2) knows no `O_PATH` descriptors: it calls them invalid, as it does closed ones.
fn stdio<const N: usize>(numbers: [i32; N]) -> [Stdio; N] {
    let mut watches = numbers.map(|number| sys::event::Watch::read(sys::process::stdio(number)));
    let _ = sys::event::poll(&mut watches, Some(0));
    let mut n = 0;
    numbers.map(|number| {
        n += 1;
        one_stdio(number, watches[n - 1].invalid())
    })
}

fn one_stdio(number: i32, invalid: bool) -> Stdio {
    let fd = sys::process::stdio(number);
    let Ok(stat) = sys::fs::fstat(fd) else { return Stdio::Closed };
    match stat.kind {
        _ if invalid => Stdio::Place,
        Kind::Directory if !sys::sabotaged(c"places") => Stdio::Place,
        Kind::File => Stdio::File,
        Kind::Character(..) if sys::tty::is_terminal(fd) => Stdio::Terminal,
        _ => Stdio::Stream,
    }
}

/// The first executable of this name on the caller's PATH, else in the usual directories.
pub fn find_program(caller: &Caller, name: &str) -> Option<PathBuf> {
    let path = caller.var("PATH").map(|p| p.to_os_string()).unwrap_or_default();
    let usual = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).filter(|dir| dir.is_absolute()).chain(usual).map(|dir| dir.join(name)).find(|file| {
        let text = files::c_path(file);
        let regular = || sys::fs::stat(&text).is_ok_and(|s| s.kind == Kind::File);
        sys::fs::may_execute(HERE, &text).is_ok() && regular()
    })
}

/// The host paths that the spec mounts.
fn sources(spec: &Spec) -> impl Iterator<Item = &HostPath> {
    spec.mounts.iter().filter_map(|mount| match &mount.source {
        Source::Bind { src, .. } | Source::Device { src } => Some(src),
        Source::Tmpfs { .. } | Source::Mqueue | Source::Cgroup => None,
    })
}

fn roots_own(spec: &Spec) -> Vec<HostPath> {
    let own = |src: &&HostPath| sys::fs::stat(&files::c_path(src.as_path())).is_ok_and(|stat| stat.uid == 0);
    sources(spec).filter(own).cloned().collect()
}

fn foreign_ranges() -> Vec<(u32, u32)> {
    let texts =
        ["/etc/subuid", "/etc/subgid"].map(|file| files::read_text(Path::new(file), 1 << 20).unwrap_or_default());
    texts.iter().flat_map(|text| ids::all_subordinate(text)).collect()
}

fn missing(spec: &Spec) -> Vec<(HostPath, String)> {
    sources(spec).filter_map(|src| Some((src.clone(), files::exists(src.as_path()).err()?.to_string()))).collect()
}

fn resolv_conf(spec: &Spec) -> String {
    match spec.net.mode {
        crate::spec::NetMode::Host => files::read_text(Path::new("/etc/resolv.conf"), 1 << 16).unwrap_or_default(),
        crate::spec::NetMode::None => String::new(),
    }
}

/// Whether a directory can be opened, and what is wrong where it cannot.
pub(crate) fn open_root(path: &Path) -> Result<std::os::fd::OwnedFd> {
    let refuse = |why: String, hint: &str| Err(Error::spec("ROOTFS", path.display(), why).or_try(hint));
    if path.as_os_str().as_bytes().len() >= 4096 {
        return refuse("longer than a path can be (4095 bytes)".into(), "a shorter path, or cd there and use ./");
    }
    match sys::fs::openat(HERE, &files::c_path(path), Open::Directory) {
        Ok(root) => Ok(root),
        Err(sys::ENOENT) => refuse("no such directory".into(), "a directory that holds a root file system, or @host"),
        Err(sys::ENOTDIR) => refuse("not a directory".into(), "unpack an image or archive into a directory first"),
        Err(sys::ELOOP) => refuse("a loop of symbolic links".into(), "the directory itself"),
        Err(sys::EACCES) => refuse("permission denied".into(), "a directory that you may enter (chmod u+rx)"),
        Err(errno) => refuse(errno.to_string(), "a directory that holds a root file system"),
    }
}

fn root(spec: &Spec, groups: rootfs::Groups) -> Result<RootFacts> {
    // An overlay of it the kernel refuses; a bind would be the machine itself.
    if let (RootSource::Layers(layers), Writes::Through) = (&spec.root.source, &spec.root.writes)
        && let Some(own) = layers.iter().find(|layer| is_own_root(layer.as_path()))
    {
        let why = "this machine's own root is never writable as a whole";
        return Err(Error::spec("--rw", own, why).or_try("sbx run @host, and -v DIR:DIR for the directories to write"));
    }
    RootFacts::look(&spec.root.source, groups)
}

/// Whether a path leads to this machine's own root, however it is spelled: `/`, `/tmp/..`, a symlink, a bind.
pub fn is_own_root(path: &Path) -> bool {
    match (sys::fs::stat(&files::c_path(path)), sys::fs::stat(c"/")) {
        (Ok(one), Ok(other)) => (one.dev, one.ino) == (other.dev, other.ino),
        _ => false,
    }
}

impl Spec {
    /// Whether the map may need subordinate ids, so that they have to be looked up.
    fn wants_ranges(&self) -> bool {
        use crate::spec::Groups;
        use crate::spec::ids::Map;
        matches!(self.map, Map::Full | Map::Explicit(_))
            || (self.map == Map::Auto && self.user.is_some() && self.root.source != RootSource::Host)
            || self.groups_kept == Groups::Dropped
            || !self.groups.is_empty()
    }
}

/// Empty where the kernel does not tell.
fn processors() -> Vec<u32> {
    sys::sched::sched_getaffinity().map_or(Vec::new(), |mask| mask.iter().collect())
}

/// The directory for this caller's layers on disk, without links.
pub fn layers(caller: &Caller) -> PathBuf {
    home::layers(caller, power(sys::cred::geteuid()))
}

/// The kernel's random id of this boot.
pub fn boot_id() -> String {
    let text = files::read_value(Path::new("/proc/sys/kernel/random/boot_id")).unwrap_or_default();
    text.trim().to_owned()
}
