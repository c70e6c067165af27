//! Knowing beforehand which mount points will be made in host directories: the child makes them, and the record
//! names them first, so that they go also after a kill -9.
//!
//! One invariant: a place is where the child will find it, through the links of ROOTFS and of what is mounted before.

use crate::host::files::{c_path, without_links};
use crate::plan::{Etc, Layers, Plan, Step, UpperAt};
use crate::spec::hide::{Missing, Protected};
use crate::spec::mount::{Access, Mount, Source};
use crate::state::{Made, Own, Tree};
use crate::sys::fs::{self, HERE, Kind, Open};
use crate::sys::{self, ELOOP, ENOENT, ENOTDIR};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// As many links as the kernel follows on one way (path_resolution(7)).
const LINKS: u32 = 40;

/// The mount points that are missing now in host directories that the sandbox mounts writable, and those directories.
pub(super) fn mount_points(plan: &Plan) -> (Vec<Made>, Vec<Tree>) {
    let trees: Vec<Tree> = plan.steps.iter().filter_map(|planned| written(&planned.step)).map(Tree).collect();
    let mut inside = Inside::default();
    // Nothing else is made on the host, so that most runs need not look at anything.
    if !trees.is_empty() {
        plan.steps.iter().for_each(|planned| inside.take(&planned.step));
    }
    (inside.made, trees)
}

/// The places inside that are sbx's own, as they are named.
pub(super) fn own(plan: &Plan) -> Vec<Own> {
    let places = plan.steps.iter().filter_map(|planned| shown(&planned.step));
    places.map(|(path, last, _)| Own { path: path.to_owned(), followed: last == Last::Followed }).collect()
}

/// The host directory that a step mounts writable.
fn written(step: &Step) -> Option<PathBuf> {
    let src = match step {
        Step::BindRoot(src) => src.as_path().to_owned(),
        Step::Overlay(Layers { upper: UpperAt::Kept(at), .. }) => at.as_path().join("upper"),
        Step::Mount(Mount { source: Source::Bind { src, access: Access::Rw, .. }, .. }) => src.as_path().to_owned(),
        _ => return None,
    };
    Some(without_links(&src))
}

/// What a step shows inside.
enum Shown {
    /// Directories of the host, the upper ones first; and the one in which what is made there lands.
    Host(Vec<PathBuf>, Option<PathBuf>),
    /// Nothing of the host.
    Fresh,
    /// A link of sbx's own.
    Link(PathBuf),
}

/// Whether the last name of a place is followed where it is a link.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Followed,
    Itself,
}

/// What a step shows, and where.
fn shown(step: &Step) -> Option<(&Path, Last, Shown)> {
    let root = Path::new("/");
    let host = |path: &Path| Shown::Host(vec![path.to_owned()], None);
    Some(match step {
        Step::EmptyRoot => (root, Last::Followed, Shown::Fresh),
        Step::BindRoot(src) => (root, Last::Followed, Shown::Host(vec![src.as_path().to_owned()], written(step))),
        Step::Overlay(layers) => {
            let lower = layers.lower.iter().map(|layer| layer.as_path().to_owned());
            let upper = written(step);
            (root, Last::Followed, Shown::Host(upper.clone().into_iter().chain(lower).collect(), upper))
        }
        Step::HostOverlay(path) | Step::HostBind(path) => (path, Last::Followed, host(path)),
        Step::Link(path, to) => (path, Last::Itself, Shown::Link(to.clone())),
        Step::Dev => (Path::new("/dev"), Last::Followed, Shown::Fresh),
        Step::Proc => (Path::new("/proc"), Last::Followed, Shown::Fresh),
        Step::Sys(_) => (Path::new("/sys"), Last::Followed, Shown::Fresh),
        Step::Scratch(path, ..) | Step::Conceal(path, _) | Step::Protect(Protected { path, .. }) => {
            (path.as_path(), Last::Followed, Shown::Fresh)
        }
        // On the entry itself, or an upper layer's file in place of it.
        Step::Supply(Etc { path, .. }) => (path.as_path(), Last::Itself, Shown::Fresh),
        Step::Mount(Mount { dst, source }) => {
            let shown = match source {
                Source::Bind { src, .. } => Shown::Host(vec![src.as_path().to_owned()], written(step)),
                Source::Tmpfs { .. } | Source::Mqueue | Source::Cgroup | Source::Device { .. } => Shown::Fresh,
            };
            (dst.as_path(), Last::Followed, shown)
        }
        _ => return None,
    })
}

/// What a name is.
enum Entry {
    There,
    Link(PathBuf),
    Missing,
}

/// The file system inside, as far as it is made, and what that takes on the host.
#[derive(Default)]
struct Inside {
    /// What is mounted, at places without links.
    mounts: Vec<(PathBuf, Shown)>,
    made: Vec<Made>,
}

impl Inside {
    fn take(&mut self, step: &Step) {
        // What is protected stays what it is, and where it may be made nothing is.
        if matches!(step, Step::Protect(Protected { missing: Missing::Free, .. })) {
            return;
        }
        let Some((place, last, shown)) = shown(step) else { return };
        if place == Path::new("/") {
            // Files for the root's upper layer are supplied before there is a root.
            self.mounts.insert(0, (place.to_owned(), shown));
            return;
        }
        let mut gap = None;
        // Where the child can open nothing it makes nothing.
        let (there, missing) =
            self.resolve(place, last, &mut gap).unwrap_or_else(|| (place.to_owned(), PathBuf::new()));
        if let (Step::Protect(_), Some((there, name))) = (step, &gap) {
            // What a link leads to is kept from being made: see `covers`.
            self.make(there, name);
        }
        // What is not there needs not be hidden.
        let made = match step {
            Step::Conceal(..) => 0,
            // Itself, but nothing around it.
            Step::Protect(_) => 1,
            _ => usize::MAX,
        };
        if missing.components().count() > made {
            return;
        }
        self.make(&there, &missing);
        let at: PathBuf = there.join(missing).components().collect();
        self.mounts.retain(|(hidden, _)| !hidden.starts_with(&at));
        self.mounts.push((at, shown));
    }

    /// How far a place exists, without links, and the names that will be made. `None` where it leads nowhere; see `follow`.
    fn resolve(&self, place: &Path, last: Last, gap: &mut Option<(PathBuf, PathBuf)>) -> Option<(PathBuf, PathBuf)> {
        let (mut there, mut links) = (PathBuf::from("/"), LINKS);
        let mut parts = place.strip_prefix("/").ok()?.components();
        loop {
            let rest = parts.as_path();
            let Some(part) = parts.next() else { return Some((there, PathBuf::new())) };
            let own = last == Last::Itself && parts.as_path().as_os_str().is_empty();
            let next = match self.entry(&there.join(part))? {
                Entry::Link(_) if own => Some(there.join(part)),
                entry => self.follow(&there, part.as_os_str(), entry, &mut links, gap)?,
            };
            match next {
                Some(next) => there = next,
                None => return Some((there, rest.to_owned())),
            }
        }
    }

    /// Where a name in a directory leads; `Some(None)` where there is none. A link to nothing is no mount point, and
    /// nothing can be made in its place; `gap` is where its way ends, and the name that is missing there.
    fn follow(
        &self,
        dir: &Path,
        name: &OsStr,
        entry: Entry,
        links: &mut u32,
        gap: &mut Option<(PathBuf, PathBuf)>,
    ) -> Option<Option<PathBuf>> {
        let target = match entry {
            Entry::There => return Some(Some(dir.join(name))),
            Entry::Missing => return Some(None),
            Entry::Link(target) => target,
        };
        *links = links.checked_sub(1)?;
        let mut at = if target.is_absolute() { PathBuf::from("/") } else { dir.to_owned() };
        for part in target.components() {
            match part {
                Component::ParentDir => drop(at.pop()),
                Component::Normal(name) => match self.follow(&at, name, self.entry(&at.join(name))?, links, gap)? {
                    Some(next) => at = next,
                    None => {
                        *gap = Some((at, name.into()));
                        return None;
                    }
                },
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Some(Some(at))
    }

    /// The mount that holds a place without links: the innermost.
    fn holder(&self, at: &Path) -> Option<&(PathBuf, Shown)> {
        self.mounts
            .iter()
            .filter(|(mount, _)| at.starts_with(mount))
            .max_by_key(|(mount, _)| mount.components().count())
    }

    /// What lies at a place without links on the way. `None` where nobody may look.
    fn entry(&self, at: &Path) -> Option<Entry> {
        let Some((mount, shown)) = self.holder(at) else { return Some(Entry::There) };
        let layers = match shown {
            Shown::Link(to) => return Some(Entry::Link(to.clone())),
            _ if mount == at => return Some(Entry::There),
            Shown::Host(layers, _) => layers.as_slice(),
            Shown::Fresh => &[],
        };
        for layer in layers {
            match look(layer, at.strip_prefix(mount).ok()?) {
                // What was deleted from an overlay.
                Ok(Found::Other(Kind::Character(0, 0))) if layers.len() > 1 => break,
                Ok(Found::Other(_)) => return Some(Entry::There),
                Ok(Found::Link(to)) => return Some(Entry::Link(to)),
                Err(ENOENT | ENOTDIR | ELOOP) => {}
                Err(_) => return None,
            }
        }
        // A mount point that will be there by then.
        let made = self.mounts.iter().any(|(mount, _)| mount.starts_with(at));
        Some(if made { Entry::There } else { Entry::Missing })
    }

    /// Notes what has to be made where, the outermost first, if it lands on the host. Over lower layers the
    /// directories above it are copied up with it.
    fn make(&mut self, there: &Path, missing: &Path) {
        let Some((mount, Shown::Host(layers, Some(tree)))) = self.holder(there) else { return };
        let Ok(below) = there.strip_prefix(mount) else { return };
        if missing.as_os_str().is_empty() {
            return;
        }
        let alone = layers.len() == 1;
        let known = if alone { below.components().count() } else { 0 };
        let whole = below.join(missing);
        let mut path = PathBuf::new();
        let mut made = Vec::new();
        for (index, part) in whole.components().enumerate() {
            path.push(part);
            if index >= known && (alone || look(tree, &path).is_err()) {
                made.push(Made { tree: tree.clone(), path: path.clone() });
            }
        }
        self.made.extend(made);
    }
}

enum Found {
    Link(PathBuf),
    Other(Kind),
}

/// Looks at an entry below a directory of the host. No link is followed on the way: those that lead on were resolved
/// before, others belong to a lower layer that an upper one hides, or to somebody who would have us look elsewhere.
fn look(dir: &Path, path: &Path) -> sys::Result<Found> {
    let dir = fs::openat(HERE, &c_path(dir), Open::Directory)?;
    let entry = fs::open_beneath(dir.as_fd(), &c_path(path), Open::Entry)?;
    match fs::fstat(entry.as_fd())?.kind {
        Kind::Symlink => {
            let mut buffer = [0; 4096];
            let target = fs::readlinkat(entry.as_fd(), c"", &mut buffer)?;
            Ok(Found::Link(OsStr::from_bytes(target).into()))
        }
        kind => Ok(Found::Other(kind)),
    }
}
