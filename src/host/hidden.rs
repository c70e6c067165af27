//! What the patterns of `[hide]` stand for: names in directories of the root and of the mounts, as they are at the start.
//!
//! Only the directories that a pattern names are listed, never what lies below them.

use super::files::c_path;
use crate::error::{Error, Result};
use crate::spec::matches;
use crate::spec::mount::Source;
use crate::spec::text::InnerPath;
use crate::spec::{RootSource, Spec};
use crate::sys::fs::{HERE, Open, open_in_root, openat};
use crate::sys::{self, ENOENT, ENOTDIR};
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Each is a mount of its own.
const MOST: usize = 1000;

/// The paths that the patterns match, in order.
///
/// # Errors
/// `Spec` where a directory cannot be listed, or too much would have to be hidden.
pub(super) fn matched(spec: &Spec) -> Result<Vec<InnerPath>> {
    let mut found = Vec::new();
    for pattern in spec.hide.iter().filter(|path| path.has_pattern()) {
        let paths = one(spec, pattern)?;
        found.extend(paths.into_iter().map(|path| InnerPath::parse("[hide] paths", path)).collect::<Result<Vec<_>>>()?);
        if found.len() > MOST {
            let why = format!("stands for more than {MOST} paths");
            return Err(Error::spec("[hide] paths", pattern, why).or_try("the directory that holds them"));
        }
    }
    Ok(found)
}

fn one(spec: &Spec, pattern: &InnerPath) -> Result<Vec<PathBuf>> {
    let mut places = vec![PathBuf::from("/")];
    for part in pattern.as_path().components().filter(|part| matches!(part, Component::Normal(_))) {
        let Some(part) = part.as_os_str().to_str().filter(|part| part.contains('*')) else {
            places.iter_mut().for_each(|place| place.push(part));
            continue;
        };
        let mut below = Vec::new();
        for place in &places {
            let names = list(spec, place).map_err(|errno| {
                let why = format!("{} cannot be listed: {errno}", place.display());
                Error::spec("[hide] paths", pattern, why).or_try("paths without *")
            })?;
            let names = names.into_iter().filter(|name| matches(part, name.as_bytes()));
            below.extend(names.map(|name| place.join(name)));
        }
        places = below;
    }
    Ok(places)
}

/// The names in a directory inside: of the mount that holds it, else of the root. None where there is no directory.
fn list(spec: &Spec, place: &Path) -> sys::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for (top, below) in sources(spec, place) {
        match open(&top, &below) {
            Ok(dir) => names.extend(entries(&dir)?),
            Err(ENOENT | ENOTDIR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(names)
}

/// The directories of the host that show at a place, and the place below each.
fn sources(spec: &Spec, place: &Path) -> Vec<(PathBuf, PathBuf)> {
    // The mounts are sorted by depth: the last is the innermost.
    let bind = spec.mounts.iter().rev().find_map(|mount| match &mount.source {
        Source::Bind { src, .. } => Some((src.as_path(), place.strip_prefix(mount.dst.as_path()).ok()?)),
        _ => None,
    });
    if let Some((src, below)) = bind {
        return vec![(src.to_owned(), below.to_owned())];
    }
    let below = place.strip_prefix("/").unwrap_or(place);
    match &spec.root.source {
        RootSource::Host => vec![("/".into(), below.to_owned())],
        RootSource::Layers(layers) => layers.iter().map(|l| (l.as_path().to_owned(), below.to_owned())).collect(),
    }
}

fn open(top: &Path, below: &Path) -> sys::Result<OwnedFd> {
    let top = openat(HERE, &c_path(top), Open::Directory)?;
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    open_in_root(top.as_fd(), &c_path(below), Open::List)
}

fn entries(dir: &OwnedFd) -> sys::Result<Vec<OsString>> {
    let errno = |error: std::io::Error| sys::Errno(error.raw_os_error().unwrap_or(0));
    let names = std::fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd())).map_err(errno)?;
    names.map(|name| name.map(|name| name.file_name()).map_err(errno)).collect()
}
