//! Writing the id maps, and knowing beforehand which mount points will be made in host directories.

use super::ids;
use super::root::Range;
use crate::error::{Error, Result};
use crate::host::files::c_path;
use crate::host::{Host, ranges};
use crate::plan::{Etc, EtcWay, Layers, MapsBy, Plan, Step, UpperAt};
use crate::spec::mount::{Access, Mount, Source};
use crate::spec::text::{HostPath, InnerPath};
use crate::state::{self, Made};
use crate::sys::ENOENT;
use crate::sys::fs::{self, HERE, Open};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

/// Writes both maps of the child, where it cannot do that itself.
///
/// # Errors
/// `Step` where the kernel refuses, `Helper` where a helper fails.
pub(super) fn write(plan: &Plan, host: &Host, range: Option<&Range>, pid: i32) -> Result<()> {
    let who = &plan.identities;
    match who.by {
        MapsBy::Helpers => {
            ranges::write(pid, (host.newuidmap.as_deref(), &who.uids), (host.newgidmap.as_deref(), &who.gids))
        }
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

/// A host directory that the sandbox mounts writable, and where.
struct Tree {
    src: std::path::PathBuf,
    dst: InnerPath,
    /// Layers below it whose files are seen through it: those of an overlay that keeps its upper layer.
    lower: Vec<HostPath>,
}

/// The mount points that are missing now in host directories that the sandbox mounts writable. The child will
/// make them; the record names them first, so that they go also after a kill -9. With them those directories.
pub(super) fn mount_points(plan: &Plan) -> (Vec<Made>, Vec<state::Tree>) {
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
    (made, trees.iter().map(|tree| state::Tree(without_links(&tree.src))).collect())
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
