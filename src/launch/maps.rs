//! Writing the id maps, and knowing beforehand which mount points will be made in host directories.

use super::ids;
use super::root::Range;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::files::c_path;
use crate::plan::{Etc, EtcWay, Layers, MapsBy, Plan, Step, UpperAt};
use crate::spec::ids::Extent;
use crate::spec::mount::{Access, Mount, Source};
use crate::spec::text::{HostPath, InnerPath};
use crate::state::Made;
use crate::sys::fs::{self, HERE, Open};
use crate::sys::{ENOENT, process};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long newuidmap may take before it is killed (L14); it needs a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Writes both maps of the child, where it cannot do that itself.
///
/// # Errors
/// `Step` where the kernel refuses, `Helper` where a helper fails.
pub(super) fn write(plan: &Plan, host: &Host, range: Option<&Range>, pid: i32) -> Result<()> {
    let who = &plan.identities;
    match who.by {
        MapsBy::Helpers => by_helpers(host, pid, &who.uids, &who.gids),
        // A single id the child maps itself.
        MapsBy::Caller => Ok(()),
        MapsBy::Root => {
            let private = range.map(Range::extents);
            let [uids, gids] = [&who.uids, &who.gids].map(|extents| private.as_ref().map_or(&extents[..], |p| &p[..]));
            put(plan, pid, "uid_map", &ids::lines(uids))?;
            put(plan, pid, "gid_map", &ids::lines(gids))
        }
    }
}

fn put(plan: &Plan, pid: i32, file: &str, text: &str) -> Result<()> {
    let path = format!("/proc/{pid}/{file}");
    let written = fs::openat(HERE, &c_path(Path::new(&path)), Open::Write)
        .and_then(|file| fs::write_all(file.as_fd(), text.as_bytes()));
    let place = || plan.place(plan.number(|step| matches!(step, Step::Maps(_))));
    let call = if file == "uid_map" { "write uid_map" } else { "write gid_map" };
    written.map_err(|errno| Error::Step { place: place(), call, errno })
}

/// Runs newuidmap and newgidmap at once: each takes milliseconds, and neither needs the other.
fn by_helpers(host: &Host, pid: i32, uids: &[Extent], gids: &[Extent]) -> Result<()> {
    let start = |program: &Option<std::path::PathBuf>, name: &str, extents: &[Extent]| {
        let path = program.clone().unwrap_or_else(|| name.into());
        let numbers = extents.iter().flat_map(|e| [e.inner, e.outer, e.count]).map(|n| n.to_string());
        let mut command = Command::new(path);
        command.arg(pid.to_string()).args(numbers).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().map_err(|e| helper(name, crate::sys::Errno::from(e).to_string(), String::new()))
    };
    // Whatever the caller left open without close-on-exec is no business of a set-uid program.
    process::close_on_exec(3, u32::MAX).map_err(|errno| Error::Sys {
        doing: "keep descriptors from".into(),
        on: "newuidmap".into(),
        errno,
    })?;
    let users = start(&host.newuidmap, "newuidmap", uids)?;
    let groups = start(&host.newgidmap, "newgidmap", gids);
    let users = finish("newuidmap", users);
    let groups = groups.and_then(|child| finish("newgidmap", child));
    users.and(groups)
}

fn helper(program: &str, status: String, stderr: String) -> Error {
    Error::Helper { program: program.into(), status, stderr }
}

/// Waits for a helper, at most as long as it may take.
fn finish(name: &str, mut child: Child) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let pidfd = process::pidfd_open(child.id() as i32).map_err(|e| helper(name, e.to_string(), String::new()))?;
    let mut watch = [crate::sys::event::Watch::read(pidfd.as_fd())];
    while Instant::now() < deadline {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis() as u64;
        if crate::sys::event::poll(&mut watch, Some(left)).is_ok_and(|ready| ready > 0) {
            break;
        }
    }
    if !watch[0].ready() {
        let _ = child.kill();
        let _ = child.wait();
        return Err(helper(name, format!("no answer in {} s", PATIENCE.as_secs()), String::new()));
    }
    let output = child.wait_with_output();
    let output = output.map_err(|e| helper(name, crate::sys::Errno::from(e).to_string(), String::new()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("").to_owned();
    Err(helper(name, output.status.to_string(), last))
}

/// A host directory that the sandbox mounts writable, and where.
struct Tree {
    src: std::path::PathBuf,
    dst: InnerPath,
    /// Layers below it whose files are seen through it: those of an overlay that keeps its upper layer.
    lower: Vec<HostPath>,
}

/// The mount points that are missing now in host directories that the sandbox mounts writable. The child will
/// make them; the record names them first, so that they go also after a kill -9.
pub(super) fn mount_points(plan: &Plan) -> Vec<Made> {
    let mut trees: Vec<Tree> = Vec::new();
    let mut made = Vec::new();
    for planned in &plan.steps {
        if let Some(at) = place_of(&planned.step) {
            // The innermost mount that holds the place decides whether it is made on the host.
            let holder =
                trees.iter().filter(|t| at.as_path().starts_with(t.dst.as_path())).max_by_key(|t| t.dst.depth());
            if let Some(tree) = holder {
                made.extend(missing(tree, &at));
            }
        }
        match &planned.step {
            Step::BindRoot(src) => {
                trees.push(Tree { src: src.as_path().to_owned(), dst: InnerPath::known("/"), lower: Vec::new() });
            }
            Step::Overlay(Layers { lower, upper: UpperAt::Kept(at), .. }) => {
                trees.push(Tree { src: at.as_path().join("upper"), dst: InnerPath::known("/"), lower: lower.clone() });
            }
            Step::Mount(Mount { dst, source: Source::Bind { src, access: Access::Rw, .. } }) => {
                trees.push(Tree { src: src.as_path().to_owned(), dst: dst.clone(), lower: Vec::new() });
            }
            _ => {}
        }
    }
    made
}

/// Where a step mounts something.
fn place_of(step: &Step) -> Option<InnerPath> {
    match step {
        Step::Dev => Some(InnerPath::known("/dev")),
        Step::Proc => Some(InnerPath::known("/proc")),
        Step::Sys(_) => Some(InnerPath::known("/sys")),
        Step::Scratch(path, _) => Some(path.clone()),
        Step::Supply(Etc { path, way: EtcWay::Bind, .. }) => Some(path.clone()),
        Step::Mount(mount) => Some(mount.dst.clone()),
        _ => None,
    }
}

/// The parts of a place that do not exist below the tree, the outermost first. Over lower layers nothing has to be
/// made where one of them has the place; where it has to, the directories above it are copied up with it.
fn missing(tree: &Tree, at: &InnerPath) -> Vec<Made> {
    let Ok(below) = at.as_path().strip_prefix(tree.dst.as_path()) else { return Vec::new() };
    // The last name may be a symlink that something is mounted on: then it is there.
    let there = |root: &Path, path: &Path| {
        let root = fs::openat(HERE, &c_path(root), Open::Directory);
        !matches!(root.and_then(|root| fs::open_in_root(root.as_fd(), &c_path(path), Open::Entry)), Err(ENOENT))
    };
    if tree.lower.iter().any(|layer| there(layer.as_path(), below)) {
        return Vec::new();
    }
    let mut there_is = std::path::PathBuf::new();
    let mut parts = below.components();
    let first = loop {
        let Some(part) = parts.next() else { return Vec::new() };
        let next = there_is.join(part);
        if !there(&tree.src, &next) {
            break next.file_name().map(Path::new).unwrap_or(Path::new("")).to_owned();
        }
        there_is = next;
    };
    let src = without_links(&tree.src);
    // Clearing follows no link, for the program could make one: so those that are there now are resolved now.
    let Some(mut path) = place_below(&src, &there_is) else { return Vec::new() };
    let mut made = Vec::new();
    for part in std::iter::once(first.as_path()).chain(parts.map(|part| Path::new(part.as_os_str()))) {
        path.push(part);
        made.push(Made { tree: src.clone(), path: path.clone() });
    }
    made
}

/// The same path with the symlinks in it resolved, as far as it exists.
pub(super) fn without_links(path: &Path) -> std::path::PathBuf {
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(real), ..) => real,
        (Err(_), Some(parent), Some(name)) => without_links(parent).join(name),
        _ => path.to_owned(),
    }
}

/// Where below a tree a directory lies that is reached with the tree as the root.
fn place_below(tree: &Path, path: &Path) -> Option<std::path::PathBuf> {
    if path.as_os_str().is_empty() {
        return Some(std::path::PathBuf::new());
    }
    let root = fs::openat(HERE, &c_path(tree), Open::Directory).ok()?;
    let dir = fs::open_in_root(root.as_fd(), &c_path(path), Open::Directory).ok()?;
    let place = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).ok()?;
    place.strip_prefix(tree).ok().map(Path::to_owned)
}
