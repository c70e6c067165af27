//! The steps of the stage `Root`: what the file system inside is made of, in the order of mounting.

use super::Planned;
use super::environment::host_name;
use super::steps::{Etc, EtcWay, Layers, Masked, Step, SysKind, UpperAt};
use super::{Stage, Steps, Terminal, guard, own_network};
use crate::error::{Error, Result};
use crate::host::EntryKind;
use crate::host::{Host, Power, TMPFS_XATTRS};
use crate::spec::access::Nesting;
use crate::spec::ids::Map;
use crate::spec::mount::{Access, Devices, Exec, Mount, Presence, Source};
use crate::spec::text::{HostPath, InnerPath};
use crate::spec::{Overlay, Place, RootSource, Spec, Unmask, Upper, Writes};
use std::path::{Path, PathBuf};

/// What Docker masks (security.md section 2), as moby/moby does since 2026.
const MASKED_PROC: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
];
const MASKED_SYS: [&str; 2] = ["/sys/devices/virtual/powercap", "/sys/firmware"];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Bytes of the one tmpfs: as said, else half of the memory limit, else left to the kernel as a share of the
/// machine's memory.
fn store_size(spec: &Spec) -> Option<u64> {
    match &spec.root.writes {
        Writes::Upper(Upper::Tmpfs(Some(bytes))) | Writes::ReadOnly(Upper::Tmpfs(Some(bytes))) => Some(*bytes),
        // What lies in it counts as memory: so the program has as much again for itself.
        _ => spec.limits.mem.map(|bytes| bytes / 2),
    }
}

/// Where the root's upper layer lies on this host.
pub(super) fn upper_at(spec: &Spec, host: &Host, name: &str) -> Option<UpperAt> {
    let dropped = || UpperAt::Dropped(private_layers(host, name));
    match &spec.root.writes {
        Writes::Through => None,
        Writes::Upper(Upper::Tmpfs(_)) | Writes::ReadOnly(Upper::Tmpfs(_)) if host.kernel >= TMPFS_XATTRS => {
            Some(UpperAt::Store)
        }
        Writes::Upper(Upper::Directory(at)) | Writes::ReadOnly(Upper::Directory(at)) => Some(UpperAt::Kept(at.clone())),
        Writes::Upper(_) | Writes::ReadOnly(_) => Some(dropped()),
    }
}

/// The private directory of the layers that lie on disk, where there are any.
pub(super) fn layers_at(spec: &Spec, host: &Host, name: &str, steps: &[Planned]) -> Option<HostPath> {
    let overlaid = steps.iter().any(|planned| match &planned.step {
        Step::HostOverlay(_) => true,
        Step::Mount(mount) => matches!(mount.source, Source::Bind { access: Access::Overlay, .. }),
        _ => false,
    });
    match upper_at(spec, host, name) {
        Some(UpperAt::Dropped(at)) => Some(at),
        _ => (overlaid && spec.root.others != Place::Memory).then(|| private_layers(host, name)),
    }
}

/// A name belongs to one state directory, and there may be several.
fn private_layers(host: &Host, name: &str) -> HostPath {
    host.layers.join(format!("{name}-{:08x}", host.token)).into()
}

/// Whether layers that should lie on disk may lie in the tmpfs too.
pub(super) fn or_memory(spec: &Spec, host: &Host) -> bool {
    let root = spec.root.writes == Writes::Upper(Upper::DiskOrMemory);
    (root || spec.root.others == Place::DiskOrMemory) && host.kernel >= TMPFS_XATTRS
}

impl From<PathBuf> for HostPath {
    /// For paths known to be absolute; a relative one is taken from the root.
    fn from(path: PathBuf) -> HostPath {
        HostPath::new(Path::new("/").join(path)).unwrap_or_else(|| unreachable!("joined to /"))
    }
}

/// As real root: what its sandbox could write of the host's root, or could not even read, is refused (DESIGN 4.10).
pub(super) fn check_root(spec: &Spec, host: &Host) -> Result<()> {
    if host.power == Power::Ordinary || matches!(spec.map, Map::Explicit(_)) {
        return Ok(());
    }
    let refuse = |option: &str, path: &HostPath| {
        let why = "belongs to root, and a sandbox of root's could leave set-id programs there";
        Err(Error::spec(option, path, why).or_try("the option `overlay` or `ro`, or run sbx as an ordinary user"))
    };
    let written = spec.mounts.iter().filter_map(|mount| match &mount.source {
        Source::Bind { src, access: Access::Rw, .. } => Some(src),
        _ => None,
    });
    if let Some(src) = written.into_iter().find(|src| host.roots_own.contains(src)) {
        return refuse("--volume", src);
    }
    if let Writes::Upper(Upper::Directory(at)) | Writes::ReadOnly(Upper::Directory(at)) = &spec.root.writes {
        let why = "as root the sandbox's ids change from run to run, so it could not be used again";
        return Err(Error::spec("--upper", at, why).or_try("--upper disk, or run sbx as an ordinary user"));
    }
    match (&spec.root.source, &spec.root.writes) {
        (RootSource::Layers(layers), Writes::Through) if host.root.owner == 0 => refuse("--rw", &layers[0]),
        (RootSource::Layers(layers), _) if host.power == Power::RootWithoutAdmin && host.root.mode & 0o005 != 0o005 => {
            let why = "root without CAP_SYS_ADMIN cannot show it with other owners, and others may not read it";
            Err(Error::spec("ROOTFS", &layers[0], why).or_try("chmod o+rx, or an outer container with CAP_SYS_ADMIN"))
        }
        _ => Ok(()),
    }
}

/// What the user should be told about the root.
pub(super) fn notes(spec: &Spec, host: &Host) -> Vec<String> {
    let mut notes = Vec::new();
    if host.power == Power::RootWithoutAdmin {
        notes
            .push("root without CAP_SYS_ADMIN: the host's files appear as nobody's, and only what all may read".into());
    }
    // Where they go is the plan's choice, unless a size was asked for, which is not kept there.
    let sized = matches!(spec.root.writes, Writes::Upper(Upper::Tmpfs(Some(_))));
    if sized && host.kernel < TMPFS_XATTRS {
        let (major, minor) = host.kernel;
        notes.push(format!("changes go to disk: Linux {major}.{minor} has no user xattrs on tmpfs (6.6 has)"));
    }
    if writable_host(spec) && spec.root.setid == crate::spec::access::SetId::Allowed {
        notes.push("--allow-setid: the program can leave set-id files in writable host directories".into());
    }
    notes
}

/// Whether the program can write files of the host.
pub(super) fn writable_host(spec: &Spec) -> bool {
    let kept = matches!(&spec.root.writes, Writes::Through | Writes::Upper(Upper::Directory(_)));
    // The host's /dev/shm comes with its ipc namespace.
    kept || spec.share.ipc || spec.mounts.iter().any(|m| matches!(m.source, Source::Bind { access: Access::Rw, .. }))
}

/// What was decided of the sandbox before its root.
pub(super) struct Around<'a> {
    pub name: &'a str,
    pub terminal: Terminal,
    pub group: Group,
}

/// Whether the sandbox has a cgroup, and a namespace in which it can be mounted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    Own,
    None,
}

/// All steps of the stage, in their order.
pub(super) fn root(steps: &mut Steps, spec: &Spec, host: &Host, around: &Around<'_>) -> Result<()> {
    let name = around.name;
    let must = |steps: &mut Steps, step| steps.must(Stage::Root, step);
    must(steps, Step::Store(store_size(spec)));
    check_unmask(spec)?;
    let upper = upper_at(spec, host, name);
    base(steps, spec, host, upper, name)?;
    must(steps, Step::Dev);
    must(steps, Step::Devpts);
    if spec.share.ipc {
        must(steps, Step::HostShm);
    } else {
        steps.may_degrade(Stage::Root, Step::Mqueue);
    }
    proc(steps, spec, host);
    if around.group == Group::Own && !spec.mounts_cgroup() {
        steps.may_degrade(Stage::Root, Step::CgroupMount);
    }
    for (path, mode) in [("/tmp", 0o1777), ("/run", 0o755)] {
        must(steps, Step::Scratch(InnerPath::known(path), mode, Exec::Exec));
    }
    must(
        steps,
        supplied(
            "/run/.containerenv",
            format!("engine=\"sbx-{}\"\nname=\"{name}\"\n", env!("CARGO_PKG_VERSION")),
            EtcWay::Bind,
        ),
    );
    if spec.root.source == RootSource::Host {
        host_scratch(steps, spec, host)?;
    }
    let linked = users(steps, spec, host)?;
    masks(steps, spec)?;
    if around.terminal != Terminal::None {
        must(steps, Step::Terminal);
    }
    if matches!(spec.root.writes, Writes::ReadOnly(_)) {
        let overlays = bare_overlays(steps);
        must(steps, Step::SealRoot(overlays));
    }
    // After the sealing: copies of what is read-only are so too.
    guard::protected(spec, host, &linked).into_iter().for_each(|step| steps.must(Stage::Root, step));
    Ok(())
}

fn supplied(path: &'static str, content: String, way: EtcWay) -> Step {
    Step::Supply(Etc { path: InnerPath::known(path), content, way })
}

/// `--overlay fuse` stands in for the root's overlay and no other.
fn check_fuse(spec: &Spec, host: &Host) -> Result<()> {
    if spec.root.overlay != Overlay::Fuse {
        return Ok(());
    }
    let refuse = |why: &str| Err(Error::spec("--overlay", "fuse", why).or_try("--overlay auto"));
    if spec.root.source == RootSource::Host {
        return refuse("@host is made of the kernel's overlays; fuse-overlayfs serves a ROOTFS that is a directory");
    }
    if spec.root.writes == Writes::Through {
        return refuse("with --rw there is no overlay");
    }
    let overlays = |mount: &&Mount| matches!(mount.source, Source::Bind { access: Access::Overlay, .. });
    if let Some(mount) = spec.mounts.iter().find(overlays) {
        return refuse(&format!("fuse-overlayfs serves the root only, and the volume on {} is an overlay", mount.dst));
    }
    host.fuse.clone().unwrap_or(Ok(Default::default())).map(drop)
}

/// The root itself and the files that sbx puts into its /etc.
fn base(steps: &mut Steps, spec: &Spec, host: &Host, upper: Option<UpperAt>, name: &str) -> Result<()> {
    check_fuse(spec, host)?;
    // A layer that is thrown away may hold the supplied files; ROOTFS and a kept layer may not (DESIGN 4.2).
    let dropped = matches!(upper, Some(UpperAt::Store | UpperAt::Dropped(_)));
    let way = match host.root.etc {
        Some((mode, uid, gid)) if dropped => EtcWay::Upper(mode, uid, gid),
        _ => EtcWay::Bind,
    };
    let files = etc_files(spec, host, name).into_iter().map(|(path, content)| supplied(path, content, way.clone()));
    let before = matches!(way, EtcWay::Upper(..));
    if before {
        files.clone().for_each(|step| steps.must(Stage::Root, step));
    }
    match (&spec.root.source, upper) {
        (RootSource::Layers(lower), Some(upper)) => {
            let layers = Layers { lower: lower.clone(), upper, by: spec.root.overlay };
            steps.must(Stage::Root, Step::Overlay(layers));
        }
        (RootSource::Layers(lower), None) => match lower.as_slice() {
            [one] => steps.must(Stage::Root, Step::BindRoot(one.clone())),
            _ => return Err(Error::spec("--rw", "layers", "only a single directory can be written through")),
        },
        (RootSource::Host, _) => host_root(steps, spec, host),
    }
    if !before {
        files.for_each(|step| steps.must(Stage::Root, step));
    }
    Ok(())
}

fn etc_files(spec: &Spec, host: &Host, name: &str) -> [(&'static str, String); 3] {
    let host_name = host_name(spec, name);
    let mut hosts = format!("127.0.0.1\tlocalhost {host_name}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (host, ip) in &spec.net.hosts {
        hosts.push_str(&format!("{ip}\t{host}\n"));
    }
    let servers: String = spec.net.dns.iter().map(|ip| format!("nameserver {ip}\n")).collect();
    let resolv = if servers.is_empty() { host.resolv_conf.clone() } else { servers };
    [("/etc/hosts", hosts), ("/etc/hostname", format!("{host_name}\n")), ("/etc/resolv.conf", resolv)]
}

/// Top-level names that are not shown as they are: made by sbx, or private to the host.
const HIDDEN: [&str; 9] = ["dev", "home", "lost+found", "media", "mnt", "proc", "root", "run", "sys"];

/// `/` of `@host`: an empty tmpfs with an overlay, a bind or a link for each entry (DESIGN 4.12).
fn host_root(steps: &mut Steps, spec: &Spec, host: &Host) {
    steps.must(Stage::Root, Step::EmptyRoot);
    for entry in host.root.entries.iter().filter(|entry| entry.name != "tmp" && !HIDDEN.contains(&entry.name.as_str()))
    {
        let path = Path::new("/").join(&entry.name);
        steps.must(
            Stage::Root,
            match &entry.kind {
                // An overlay costs three times as much, and here it could take no change but sbx's own.
                EntryKind::Fixed if !is_changed(spec, host, &path) => Step::HostBind(path),
                EntryKind::Plain | EntryKind::Fixed => Step::HostOverlay(path),
                EntryKind::Mounted => Step::HostBind(path),
                EntryKind::Link(target) => Step::Link(path, target.clone()),
            },
        );
    }
}

/// Whether sbx puts something below an entry of the root, or programs are used to writing there.
fn is_changed(spec: &Spec, host: &Host, entry: &Path) -> bool {
    let below = |path: &Path| path.starts_with(entry);
    ["/etc", "/usr", "/var"].iter().any(|usual| entry == Path::new(usual))
        || host.emptied.iter().any(|(path, _)| below(path))
        || below(&host.caller.cwd)
        || spec.mounts.iter().any(|mount| below(mount.dst.as_path()))
        || spec
            .mask
            .iter()
            .chain(&spec.hide)
            .chain(spec.protect.iter().map(|place| &place.path))
            .any(|path| below(path.as_path()))
}

/// The empty directories of `@host`, its caller's home among them.
fn host_scratch(steps: &mut Steps, spec: &Spec, host: &Host) -> Result<()> {
    for (path, mode) in &host.emptied {
        steps.must(Stage::Root, Step::Scratch(InnerPath::parse("HOME", path)?, *mode, spec.root.exec));
    }
    Ok(())
}

/// What the user wants masked.
fn masks(steps: &mut Steps, spec: &Spec) -> Result<()> {
    if let (false, Some(path)) = (own_network(spec), spec.mask.iter().find(|path| path.is_below("/sys"))) {
        return Err(Error::spec("--mask", path, "with --net host /sys is empty").or_try("leave it out"));
    }
    for path in &spec.mask {
        check_mask(path)?;
        steps.must(Stage::Root, Step::Mask(Masked { path: path.clone(), asked: true }));
    }
    Ok(())
}

/// What cannot be masked without taking from every sandbox what it is made of.
fn check_mask(path: &InnerPath) -> Result<()> {
    let refuse = |why: &str, hint: &str| Err(Error::spec("--mask", path, why).or_try(hint));
    if ["/", "/proc", "/sys"].iter().any(|whole| path.as_path() == Path::new(whole)) {
        return refuse("every sandbox has it, and sbx itself mounts on it", "paths below it");
    }
    let first = path.as_path().strip_prefix("/proc").ok().and_then(|below| below.iter().next()?.to_str());
    let process = |name: &str| name.ends_with("self") || name.bytes().all(|byte| byte.is_ascii_digit());
    if first.is_some_and(process) {
        return refuse("a process's own, which comes and goes with it and which sbx reads", "other paths below /proc");
    }
    Ok(())
}

/// The overlays of `@host` that nothing is mounted on: what lies on one stays as writable as was asked for.
fn bare_overlays(steps: &Steps) -> Vec<PathBuf> {
    let covered = |place: &Path| {
        steps.list.iter().any(|planned| match &planned.step {
            Step::Scratch(path, ..) | Step::Conceal(path, _) | Step::Mount(Mount { dst: path, .. }) => {
                path.as_path() == place
            }
            _ => false,
        })
    };
    let overlays = steps.list.iter().filter_map(|planned| match &planned.step {
        Step::HostOverlay(path) if !covered(path) => Some(path.clone()),
        _ => None,
    });
    overlays.collect()
}

/// A path to unmask that no mask covers is a mistake of the user's.
fn check_unmask(spec: &Spec) -> Result<()> {
    let known = |path: &Path| {
        let listed = MASKED_PROC.iter().chain(&MASKED_SYS).chain(&READ_ONLY);
        listed.into_iter().any(|masked| path == Path::new(masked)) || path.ends_with("thermal_throttle")
    };
    match &spec.unmask {
        Unmask::Paths(paths) => match paths.iter().find(|path| !known(path.as_path())) {
            Some(path) => Err(Error::spec("--unmask", path, "not masked or read-only by default")
                .or_try("sbx run --dry-run lists what is")),
            None => Ok(()),
        },
        Unmask::All => Ok(()),
    }
}

fn proc(steps: &mut Steps, spec: &Spec, host: &Host) {
    let lifted = |path: &str| match &spec.unmask {
        Unmask::All => true,
        Unmask::Paths(paths) => paths.iter().any(|p| p.as_path() == Path::new(path)),
    };
    let nested = spec.nesting == Nesting::Allowed;
    let mask = |steps: &mut Steps, path: &str| {
        if !lifted(path)
            && !nested
            && let Ok(path) = InnerPath::parse("--mask", path)
        {
            steps.must(Stage::Root, Step::Mask(Masked { path, asked: false }));
        }
    };
    steps.must(Stage::Root, Step::Proc);
    if !nested {
        steps.must(Stage::Root, Step::NoUserNamespaces);
        for path in READ_ONLY.into_iter().filter(|path| !lifted(path)) {
            steps.must(Stage::Root, Step::ReadOnly(InnerPath::known(path)));
        }
    }
    MASKED_PROC.into_iter().for_each(|path| mask(steps, path));
    if own_network(spec) {
        steps.may_degrade(Stage::Root, Step::Sys(SysKind::Fresh));
        MASKED_SYS.into_iter().for_each(|path| mask(steps, path));
        for cpu in 0..host.throttled_cpus {
            mask(steps, &format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle"));
        }
    } else {
        steps.must(Stage::Root, Step::Sys(SysKind::Empty));
    }
}

/// The user's own mounts, the caller's directory for `@host`, and what is hidden in them. Returns the mounts that git
/// needs besides.
fn users(steps: &mut Steps, spec: &Spec, host: &Host) -> Result<Vec<Mount>> {
    let mut laid = Vec::new();
    let own = if spec.root.source == RootSource::Host { working_directory(spec, host) } else { None };
    let linked = guard::linked(spec, host);
    for mount in spec.mounts.iter().cloned().chain(own).chain(linked.iter().cloned()) {
        let absent = match &mount.source {
            Source::Bind { src, presence, .. } => !look(host, src, *presence, &mount)?,
            Source::Device { src } => !look(host, src, Presence::Required, &mount)?,
            _ => false,
        };
        if !absent {
            laid.push(Step::Mount(mount));
        }
    }
    laid.extend(guard::concealed(spec, host));
    laid.sort_by_key(guard::rank);
    laid.into_iter().for_each(|step| steps.must(Stage::Root, step));
    Ok(linked)
}

/// Whether a source is there; missing ones are refused before anything is started, unless optional.
fn look(host: &Host, src: &HostPath, presence: Presence, mount: &Mount) -> Result<bool> {
    let (field, hint) = match mount.source {
        Source::Device { .. } => ("--device", "ls /dev shows what is there"),
        _ => ("--volume", "create it, or add the option `optional`"),
    };
    match (host.missing.iter().find(|(path, _)| path == src), presence) {
        (None, _) => Ok(true),
        (Some(_), Presence::Optional) => Ok(false),
        (Some((_, why)), Presence::Required) => Err(Error::spec(field, src, why).or_try(hint)),
    }
}

/// An overlay of the caller's directory in its own place, unless a mount of the user's covers it, or it would
/// show what `@host` hides. The directory comes from the kernel, without links: the places are compared as they lead.
fn working_directory(spec: &Spec, host: &Host) -> Option<Mount> {
    let cwd = &host.caller.cwd;
    let covered = spec.mounts.iter().any(|mount| cwd.starts_with(mount.dst.as_path()));
    let too_wide = host.emptied.iter().any(|(path, _)| path.starts_with(cwd)) || cwd.components().count() < 3;
    if covered || too_wide {
        return None;
    }
    let dst = InnerPath::parse("working directory", cwd).ok()?;
    let guarded = ["/proc", "/sys", "/dev"].iter().any(|path| dst.is_below(path));
    let source = Source::Bind {
        src: HostPath::new(cwd)?,
        access: Access::Overlay,
        exec: spec.root.exec,
        devices: Devices::Nodev,
        presence: Presence::Required,
    };
    (!guarded).then_some(Mount { dst, source })
}
