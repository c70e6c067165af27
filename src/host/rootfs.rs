//! What ROOTFS holds, as far as a plan depends on it. Its content is hostile: every look stays
//! beneath its descriptor and reads only regular files of bounded size.

use super::files::{c_path, read_regular};
use crate::error::{Error, Result};
use crate::spec::RootSource;
use crate::spec::text::HostPath;
use crate::sys::EACCES;
use crate::sys::cred::geteuid;
use crate::sys::fs::{HERE, Kind, Open, fstat, lstat, open_in_root, openat, readlinkat};
use serde::Serialize;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// See the head of the file.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RootFacts {
    /// Its etc/passwd, empty where there is none.
    pub passwd: String,
    /// Its etc/group, where the spec asks for groups by name or needs the user's memberships.
    pub group: String,
    /// Mode, owner and group of its etc, where that is a plain directory.
    pub etc: Option<(u32, u32, u32)>,
    /// Mode of its top directory.
    pub mode: u32,
    /// Who owns its top directory.
    pub owner: u32,
    /// For `@host`: what stands in `/`.
    pub entries: Vec<Entry>,
}

/// One entry of this machine's root directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// What it is and how `@host` shows it.
    pub kind: EntryKind,
}

/// See [`Entry`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A directory without mounts below it.
    Plain,
    /// One that belongs to root, and in which this caller, who is not root, may change nothing.
    Fixed,
    /// A directory with mounts on or below it.
    Mounted,
    /// A symlink to this target.
    Link(PathBuf),
}

/// Passwd files of real systems have some hundred kilobytes at most.
const LIMIT: usize = 4 << 20;

/// Whether the group file matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// It does.
    Wanted,
    /// It does not, and is not read.
    Unused,
}

impl RootFacts {
    /// Looks at users and groups in a sandbox that runs.
    pub(super) fn inside(root: BorrowedFd<'_>) -> RootFacts {
        let (passwd, group) = (inner_text(root, c"etc/passwd"), inner_text(root, c"etc/group"));
        RootFacts { passwd, group, ..RootFacts::default() }
    }

    /// Looks at the root file system, or at this machine's own.
    pub fn look(source: &RootSource, groups: Groups) -> Result<RootFacts> {
        match source {
            RootSource::Layers(layers) => of_layers(layers, groups),
            RootSource::Host => of_host(),
        }
    }
}

fn of_layers(layers: &[HostPath], groups: Groups) -> Result<RootFacts> {
    let mut facts = RootFacts::default();
    for (n, layer) in layers.iter().enumerate() {
        let root = super::open_root(layer.as_path())?;
        let root = root.as_fd();
        if n == 0 {
            let stat = fstat(root).map_err(|errno| Error::spec("ROOTFS", layer, errno))?;
            (facts.mode, facts.owner) = (stat.mode, stat.uid);
            let etc = lstat(root, c"etc");
            // Its owner can enter it inside whatever its mode is; anyone else would be stopped in the midst of it.
            if etc.as_ref().is_err_and(|errno| *errno == EACCES) && stat.uid != geteuid() {
                return Err(Error::spec("ROOTFS", layer, EACCES).or_try("a directory that you may enter (chmod u+rx)"));
            }
            facts.etc = etc.ok().filter(|s| s.kind == Kind::Directory).map(|s| (s.mode, s.uid, s.gid));
        }
        // The topmost layer that has the file wins, as in the overlay.
        if facts.passwd.is_empty() {
            facts.passwd = inner_text(root, c"etc/passwd");
            if groups == Groups::Wanted {
                facts.group = inner_text(root, c"etc/group");
            }
        }
    }
    Ok(facts)
}

/// A file beneath a hostile root, empty where it is not a readable regular file of sane size.
fn inner_text(root: BorrowedFd<'_>, path: &CStr) -> String {
    let file = open_in_root(root, path, Open::Read);
    file.and_then(|file| read_regular(file.as_fd(), LIMIT)).unwrap_or_default()
}

fn of_host() -> Result<RootFacts> {
    let fail = |errno| Error::Sys { doing: "read the directory".into(), on: "/".into(), errno };
    let root = openat(HERE, c"/", Open::List).map_err(fail)?;
    let mounted = mount_points();
    let mut entries = Vec::new();
    let names = std::fs::read_dir("/").map_err(|_| fail(EACCES))?;
    for entry in names.flatten() {
        let (name, full) = (entry.file_name(), entry.path());
        let path = c_path(Path::new(&name));
        // The directory says what it is, and a mount on it is not asked: its server may be dead.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && mounted.iter().any(|point| point.starts_with(&full)) {
            entries.extend(name.to_str().map(|name| Entry { name: name.to_owned(), kind: EntryKind::Mounted }));
            continue;
        }
        let Ok(stat) = lstat(root.as_fd(), &path) else { continue };
        let kind = match stat.kind {
            Kind::Directory if geteuid() != 0 && stat.uid == 0 && stat.mode & 0o022 == 0 => EntryKind::Fixed,
            Kind::Directory => EntryKind::Plain,
            Kind::Symlink => EntryKind::Link(link(root.as_fd(), &path)),
            _ => continue,
        };
        let Some(name) = name.to_str() else { continue };
        entries.push(Entry { name: name.to_owned(), kind });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(RootFacts {
        passwd: super::files::read_text(Path::new("/etc/passwd"), LIMIT).unwrap_or_default(),
        group: super::files::read_text(Path::new("/etc/group"), LIMIT).unwrap_or_default(),
        mode: 0o755,
        entries,
        ..RootFacts::default()
    })
}

fn link(root: BorrowedFd<'_>, path: &CStr) -> PathBuf {
    let mut target = [0; 4096];
    let target = readlinkat(root, path, &mut target).unwrap_or_default();
    PathBuf::from(std::ffi::OsString::from_vec(target.to_vec()))
}

/// Every mount point of this mount namespace, from one read of /proc/self/mountinfo.
pub fn mount_points() -> Vec<PathBuf> {
    let text = super::files::read_text(Path::new("/proc/self/mountinfo"), 64 << 20).unwrap_or_default();
    mount_points_of(&text)
}

/// The mount points of a mountinfo text (proc(5)): the fifth field, with octal escapes.
pub fn mount_points_of(text: &str) -> Vec<PathBuf> {
    text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect()
}

/// A field of mountinfo as the path it means.
pub(super) fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let (mut plain, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let octal = bytes
            .get(at + 1..at + 4)
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match (bytes[at], octal) {
            (b'\\', Some(byte)) => {
                plain.push(byte);
                at += 4;
            }
            (byte, _) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(plain))
}

/// Mounts that lie below a directory: what makes it unusable as an overlay's layer.
pub fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let real = std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    mount_points().into_iter().filter(|point| *point != real && point.starts_with(&real)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_escapes() {
        let text = "22 27 0:21 / /a\\040b rw - proc proc rw\n23 27 0:22 / /sys rw - sysfs sysfs rw\nshort\n";
        assert_eq!(mount_points_of(text), [PathBuf::from("/a b"), PathBuf::from("/sys")]);
        assert_eq!(unescape("a\\04"), PathBuf::from("a\\04"));
    }

    proptest::proptest! {
        #[test]
        fn mountinfo_never_panics(text in "\\PC{0,60}|[0-9 \\\\/a-z\\n]{0,60}") {
            let _ = mount_points_of(&text);
        }
    }
}
