//! What a writable layer holds against what lies below it: what was added, changed, deleted.
//!
//! The program has made all of the layer: every name is looked up beneath its descriptor, no link is followed, nothing but
//! directories and regular files is opened, and what is held at a time does not grow with the depth of a tree.

use super::record::{Layer, Own};
use crate::error::{Errno, Error, Result};
use crate::host::files::c_path;
use crate::sys::fs::{self, Entries, HERE, Kind, Open, Stat};
use crate::sys::{EACCES, ELOOP, ENODATA, ENOENT, ENOTDIR, EOPNOTSUPP, Result as SysResult, xattr};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It was not there before.
    Added,
    /// It is another than before.
    Changed,
    /// It is gone, with all that was below it.
    Deleted,
}

/// A change as JSON has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// The path inside.
    #[serde(with = "super::path")]
    pub path: PathBuf,
    /// What became of it.
    pub kind: Change,
}

/// Bytes of the longest path that a system call takes, but for the byte that ends it.
const LONGEST: usize = 4095;
/// How fuse-overlayfs marks what was deleted where it cannot make a device: a file of this and the name.
const HIDES: &[u8] = b".wh.";
/// The files by which it marks a directory that hides the one below it.
const OPAQUE_FILES: [&CStr; 2] = [c".wh..wh..opq", c".wh..opq"];

/// One layer, open.
#[derive(Debug)]
pub struct Sides {
    pub(super) upper: OwnedFd,
    pub(super) lower: OwnedFd,
    pub(super) at: PathBuf,
    /// Where the directory below it lies on the host.
    pub(super) host: PathBuf,
    fuse: bool,
    /// What lies on it is not the program's: mount points, and files that sbx itself put there.
    own: Vec<PathBuf>,
    /// From an owner below to the same one above, where a sandbox of real root's has ids of its own.
    shift: (u32, u32),
}

/// What is told of each change.
pub type Tell<'a> = dyn FnMut(Change, &Path) -> Result<()> + 'a;

fn fail(doing: &str, on: &Path) -> impl Fn(Errno) -> Error {
    move |errno| Error::Sys { doing: doing.into(), on: crate::error::visible(&on.to_string_lossy()), errno }
}

impl Sides {
    /// Opens a layer. `upper` is its directory; `own` are the places of sbx's own mounts and files as they were named,
    /// `root` is the directory below the root.
    ///
    /// # Errors
    /// `Sys` where one of the two cannot be opened.
    pub fn open(layer: &Layer, upper: OwnedFd, root: &Path, own: &[Own]) -> Result<Sides> {
        let open = |path: &Path| fs::openat(HERE, &c_path(path), Open::Directory).map_err(fail("open", path));
        let lower = open(&layer.lower)?;
        let root = open(root)?;
        let own = own.iter().filter_map(|place| {
            let path = place.path.strip_prefix("/").ok()?;
            let path = Path::new("/").join(leads(root.as_fd(), path, place.followed));
            let below = path.strip_prefix(&layer.at).ok().filter(|below| !below.as_os_str().is_empty())?;
            Some(leads(lower.as_fd(), below, place.followed))
        });
        let own = own.collect();
        let stats = |fd: &OwnedFd, path: &Path| fs::fstat(fd.as_fd()).map_err(fail("look at", path));
        let (above, below) = (stats(&upper, &layer.at)?, stats(&lower, &layer.lower)?);
        let moved = layer.below.is_some_and(|known| known != (below.dev, below.ino));
        if moved && !crate::sys::sabotaged(c"apply-place") {
            let why = "another directory lies there than when the sandbox began".to_owned();
            let hint = Some("move the one that was there back to its place; or sbx discard".into());
            return Err(Error::State { on: layer.lower.display().to_string(), why, hint });
        }
        let shift = match crate::sys::cred::geteuid() {
            0 => (above.uid.wrapping_sub(below.uid), above.gid.wrapping_sub(below.gid)),
            _ => (0, 0),
        };
        Ok(Sides { upper, lower, at: layer.at.clone(), host: layer.lower.clone(), fuse: layer.fuse, own, shift })
    }

    /// Where inside it lies.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// What stands at a path before and after; of a file of more than so many bytes not its content.
    pub fn contents(&self, inside: &Path, most: usize) -> [Side; 2] {
        let below = inside.strip_prefix(&self.at).unwrap_or(inside);
        [&self.lower, &self.upper].map(|top| Side::of(top.as_fd(), &c_path(below), most))
    }

    /// Tells all changes in the order of their paths, name by name. Returns how many directories were not gone into, for
    /// no system call would take a path of what lies in them.
    ///
    /// # Errors
    /// Of what cannot be read, and of `tell`.
    pub fn tell(&self, tell: &mut Tell<'_>) -> Result<u64> {
        let mut path = PathBuf::new();
        let mut levels = vec![Level { entries: self.entries(&path, Below::Same)?.into_iter(), length: 0 }];
        let mut left_out = 0;
        while let Some(level) = levels.last_mut() {
            let length = level.length;
            let Some((name, entry)) = level.entries.next() else {
                levels.pop();
                continue;
            };
            path = shortened(path, length);
            path.push(OsStr::from_bytes(name.to_bytes()));
            if let Some(change) = entry.change {
                tell(change, &self.at.join(&path))?;
            }
            let Some(below) = entry.goes_on else { continue };
            // Of what lies in it a name has a slash and one byte.
            if path.as_os_str().len() + 2 > LONGEST {
                left_out += 1;
                continue;
            }
            levels.push(Level { entries: self.entries(&path, below)?.into_iter(), length: path.as_os_str().len() });
        }
        Ok(left_out)
    }

    /// What has become of the names in a directory of the layer.
    fn entries(&self, dir: &Path, below: Below) -> Result<BTreeMap<CString, Entry>> {
        let shown = self.at.join(dir);
        let upper = match list(self.upper.as_fd(), dir) {
            // The program goes on meanwhile.
            Err(ENOENT | ENOTDIR | ELOOP) => return Ok(BTreeMap::new()),
            other => other.map_err(fail("list the layer's", &shown))?,
        };
        let lower = match below {
            Below::Nothing => None,
            Below::Same => match list(self.lower.as_fd(), dir) {
                // Nobody inside has seen what is in there either.
                Err(EACCES | ENOENT | ENOTDIR | ELOOP) => None,
                other => Some(other.map_err(fail("list what lies below", &shown))?),
            },
        };
        let mut found = BTreeMap::new();
        let mut hides =
            lower.is_some() && self.is_opaque(upper.as_fd()).map_err(fail("look at the layer's", &shown))?;
        for_each(upper.as_fd(), |name| {
            if self.fuse && OPAQUE_FILES.contains(&name) {
                hides = true;
                return Ok(());
            }
            match self.entry(dir, name, upper.as_fd(), lower.as_ref().map(AsFd::as_fd)) {
                Err(ENOENT | ENOTDIR | ELOOP) => Ok(()),
                other => other.map(|entry| found.extend(entry)),
            }
        })
        .map_err(fail("read the layer's", &shown))?;
        if let (true, Some(lower)) = (hides, &lower) {
            for_each(lower.as_fd(), |name| {
                // Whatever stands in its place was looked at.
                if fs::lstat(upper.as_fd(), name) == Err(ENOENT) && !self.is_own(&join(dir, name)) {
                    found.entry(name.to_owned()).or_insert(Entry { change: Some(Change::Deleted), goes_on: None });
                }
                Ok(())
            })
            .map_err(fail("read what lies below", &shown))?;
        }
        Ok(found)
    }

    fn entry(
        &self,
        dir: &Path,
        name: &CStr,
        upper: BorrowedFd<'_>,
        lower: Option<BorrowedFd<'_>>,
    ) -> SysResult<Option<(CString, Entry)>> {
        let below = |name: &CStr| match lower.map(|lower| fs::lstat(lower, name)) {
            None | Some(Err(ENOENT | EACCES)) => Ok(None),
            Some(other) => other.map(Some),
        };
        let path = join(dir, name);
        if self.is_own(&path) {
            return Ok(None);
        }
        let hidden = name.to_bytes().strip_prefix(HIDES).filter(|_| self.fuse).and_then(|name| CString::new(name).ok());
        if let Some(hidden) = hidden {
            let gone = below(&hidden)?.is_some() && fs::lstat(upper, &hidden) == Err(ENOENT);
            return Ok(gone.then_some((hidden, Entry { change: Some(Change::Deleted), goes_on: None })));
        }
        let above = fs::lstat(upper, name)?;
        let below = below(name)?;
        let is_gone = is_whiteout(upper, name, &above)?;
        let entry = match (above.kind, below) {
            (_, None) if is_gone => return Ok(None),
            (_, Some(_)) if is_gone => Entry { change: Some(Change::Deleted), goes_on: None },
            (Kind::Directory, None) => {
                // On the way to a mount point it was sbx that made it.
                let made = self.own.iter().any(|own| own.starts_with(&path));
                Entry { change: (!made).then_some(Change::Added), goes_on: Some(Below::Nothing) }
            }
            (_, None) => Entry { change: Some(Change::Added), goes_on: None },
            (Kind::Directory, Some(Stat { kind: Kind::Directory, .. })) => {
                let changed =
                    !self.is_same((upper, &above), (lower.unwrap_or(upper), &below.unwrap_or(above)), name)?;
                Entry { change: changed.then_some(Change::Changed), goes_on: Some(Below::Same) }
            }
            (Kind::Directory, Some(_)) => Entry { change: Some(Change::Changed), goes_on: Some(Below::Nothing) },
            (_, Some(below)) => {
                let changed = !self.is_same((upper, &above), (lower.unwrap_or(upper), &below), name)?;
                Entry { change: changed.then_some(Change::Changed), goes_on: None }
            }
        };
        Ok(Some((name.to_owned(), entry)))
    }

    /// As [`Sides::is_same`], whoever the owner is.
    pub(super) fn is_same_but_owner(
        &self,
        above: (BorrowedFd<'_>, &Stat),
        below: (BorrowedFd<'_>, &Stat),
        name: &CStr,
    ) -> SysResult<bool> {
        let owner = (below.1.uid.wrapping_add(self.shift.0), below.1.gid.wrapping_add(self.shift.1));
        self.is_same((above.0, &Stat { uid: owner.0, gid: owner.1, ..*above.1 }), below, name)
    }

    fn is_own(&self, path: &Path) -> bool {
        self.own.iter().any(|own| own.as_os_str() == path.as_os_str())
    }

    /// Whether a directory hides the one below it.
    fn is_opaque(&self, dir: BorrowedFd<'_>) -> SysResult<bool> {
        let names: &[&CStr] =
            if self.fuse { &[c"user.overlay.opaque", c"user.fuseoverlayfs.opaque"] } else { &[c"user.overlay.opaque"] };
        for name in names {
            match xattr::get(dir, name) {
                // `x` only says that some of its files may be whiteouts by their attribute.
                Ok(value) if value == b"y" => return Ok(true),
                Ok(_) | Err(ENODATA | EOPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(false)
    }

    /// Whether two of one kind differ in nothing: overlay copies a file up when it is opened for writing, and a directory
    /// when something in it changes. The time of a directory tells no more than what is in it.
    fn is_same(&self, above: (BorrowedFd<'_>, &Stat), below: (BorrowedFd<'_>, &Stat), name: &CStr) -> SysResult<bool> {
        let ((upper, a), (lower, b)) = (above, below);
        let owner = (b.uid.wrapping_add(self.shift.0), b.gid.wrapping_add(self.shift.1));
        if a.kind != b.kind || a.mode != b.mode || (a.uid, a.gid) != owner {
            return Ok(false);
        }
        let open = |dir, how| fs::open_beneath(dir, name, how);
        match a.kind {
            Kind::Symlink => {
                let (mut one, mut other) = ([0; LONGEST + 1], [0; LONGEST + 1]);
                Ok(fs::readlinkat(upper, name, &mut one)? == fs::readlinkat(lower, name, &mut other)?)
            }
            Kind::Directory => same_attributes(open(upper, Open::Entry)?.as_fd(), open(lower, Open::Entry)?.as_fd()),
            Kind::File if (a.size, a.mtime) != (b.size, b.mtime) => Ok(false),
            // A program can put a time back.
            Kind::File => match (open(upper, Open::Read), open(lower, Open::Read)) {
                (Ok(one), Ok(other)) => {
                    Ok(same_attributes(one.as_fd(), other.as_fd())? && same_content(one.as_fd(), other.as_fd())?)
                }
                (Err(EACCES), _) | (_, Err(EACCES)) => Ok(false),
                (Err(errno), _) | (_, Err(errno)) => Err(errno),
            },
            _ => Ok(true),
        }
    }
}

/// What stands at a path on one side of a layer.
#[derive(Debug)]
pub struct Side {
    /// Permission bits; `None` where there is nothing, or what hides the other side.
    pub mode: Option<u32>,
    /// What is in a file, or where a link leads; `None` where that is more than was asked for, or neither.
    pub content: Option<Vec<u8>>,
}

impl Side {
    fn of(top: BorrowedFd<'_>, path: &CStr, most: usize) -> Side {
        let entry = fs::open_beneath(top, path, Open::Entry);
        let Ok(stat) = entry.as_ref().map_err(|errno| *errno).and_then(|entry| fs::fstat(entry.as_fd())) else {
            return Side { mode: None, content: None };
        };
        let mut buffer = [0; LONGEST + 1];
        let content = match (stat.kind, &entry) {
            (Kind::File, _) => fs::open_beneath(top, path, Open::Read)
                .ok()
                .and_then(|file| crate::host::files::read_bytes(file.as_fd(), most).ok()),
            (Kind::Symlink, Ok(entry)) => {
                fs::readlinkat(entry.as_fd(), c"", &mut buffer).ok().map(|target| [target, b"\n"].concat())
            }
            _ => None,
        };
        let is_there = !matches!(stat.kind, Kind::Character(0, 0));
        Side { mode: is_there.then_some(stat.mode), content }
    }
}

/// A directory whose entries are gone through, and how long its path is.
struct Level {
    entries: std::collections::btree_map::IntoIter<CString, Entry>,
    length: usize,
}

/// What is known of a name.
struct Entry {
    change: Option<Change>,
    /// Of a directory: whether one of this name lies below.
    goes_on: Option<Below>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Below {
    Same,
    Nothing,
}

fn join(dir: &Path, name: &CStr) -> PathBuf {
    dir.join(OsStr::from_bytes(name.to_bytes()))
}

/// A path without what is longer than so many bytes, which end a name.
fn shortened(path: PathBuf, length: usize) -> PathBuf {
    let mut bytes = path.into_os_string().into_vec();
    bytes.truncate(length);
    std::ffi::OsString::from_vec(bytes).into()
}

/// Opens a directory beneath another for listing.
fn list(top: BorrowedFd<'_>, dir: &Path) -> SysResult<OwnedFd> {
    let dir = if dir.as_os_str().is_empty() { c".".to_owned() } else { c_path(dir) };
    fs::open_beneath(top, &dir, Open::List)
}

/// Hands each name in a directory over.
pub(super) fn for_each(dir: BorrowedFd<'_>, mut act: impl FnMut(&CStr) -> SysResult<()>) -> SysResult<()> {
    let mut buffer = Entries::new();
    loop {
        let mut batch = fs::getdents(dir, &mut buffer)?;
        if batch.is_end() {
            return Ok(());
        }
        batch.try_for_each(&mut act)?;
    }
}

/// Whether an entry of the layer says that there is none: a device of its own (overlayfs.rst, "whiteouts and opaque
/// directories"), or since Linux 6.7 an empty file with an attribute.
fn is_whiteout(upper: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> SysResult<bool> {
    match stat.kind {
        Kind::Character(0, 0) => Ok(true),
        Kind::File if stat.size == 0 => {
            let file = fs::open_beneath(upper, name, Open::Entry)?;
            match xattr::get(file.as_fd(), c"user.overlay.whiteout") {
                Ok(_) => Ok(true),
                Err(ENODATA | EOPNOTSUPP | EACCES) => Ok(false),
                Err(errno) => Err(errno),
            }
        }
        _ => Ok(false),
    }
}

/// Whether the attributes that a program can give are the same. Access lists show in the mode; the kernel writes a file's
/// capabilities differently in a user namespace, so that of those only the being there counts.
fn same_attributes(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> SysResult<bool> {
    let names = |of| match xattr::list(of) {
        Err(EOPNOTSUPP | EACCES) => Ok(Vec::new()),
        Err(errno) => Err(errno),
        Ok(names) => Ok(names.into_iter().filter(|name| counts(name.to_bytes())).collect::<Vec<_>>()),
    };
    let (first, second) = (names(one)?, names(other)?);
    let same =
        |name: &CString| !name.to_bytes().starts_with(b"user.") || xattr::get(one, name) == xattr::get(other, name);
    Ok(first == second && first.iter().all(same))
}

fn counts(name: &[u8]) -> bool {
    let marks = [&b"user.overlay."[..], b"user.fuseoverlayfs."];
    let known = [&b"security.capability"[..], b"system.posix_acl_access", b"system.posix_acl_default"];
    name.starts_with(b"user.") && !marks.iter().any(|mark| name.starts_with(mark)) || known.contains(&name)
}

/// Whether two files of one size hold the same. Where both have a hole nothing is read.
fn same_content(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> SysResult<bool> {
    let (mut first, mut second) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut at = 0;
    loop {
        let data = [fs::next_data(one, at)?, fs::next_data(other, at)?];
        let Some(start) = data.into_iter().flatten().map(|data| data.start).min() else { return Ok(true) };
        let length = filled(one, &mut first, start)?;
        if length != filled(other, &mut second, start)? || first[..length] != second[..length] {
            return Ok(false);
        }
        if length == 0 {
            return Ok(true);
        }
        at = start + length as u64;
    }
}

/// Reads until the buffer is full or the file ends, and returns how much.
fn filled(from: BorrowedFd<'_>, into: &mut [u8], at: u64) -> SysResult<usize> {
    let mut length = 0;
    while length < into.len() {
        match fs::pread(from, &mut into[length..], at + length as u64)? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

/// Where a place below a directory really lies, as its links lead, each as if the directory were the root; with the names
/// that do not exist as they are.
fn leads(dir: BorrowedFd<'_>, place: &Path, followed: bool) -> PathBuf {
    if let (false, Some(parent), Some(name)) = (followed, place.parent(), place.file_name()) {
        return leads(dir, parent, true).join(name);
    }
    let real = |fd: BorrowedFd<'_>| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let Ok(top) = real(dir) else { return place.to_owned() };
    for there in place.ancestors().filter(|there| !there.as_os_str().is_empty()) {
        let Ok(open) = fs::open_in_root(dir, &c_path(there), Open::Path) else { continue };
        let Some(below) = real(open.as_fd()).ok().and_then(|path| Some(path.strip_prefix(&top).ok()?.to_owned()))
        else {
            break;
        };
        let rest = place.strip_prefix(there).unwrap_or(Path::new(""));
        return if rest.as_os_str().is_empty() { below } else { below.join(rest) };
    }
    place.to_owned()
}
