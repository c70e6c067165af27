//! Removes what a sandbox left outside its own namespaces: mount points made in host directories, and its
//! private upper layer. Never follows a link, never leaves the directory it was told, takes only what is empty.

use super::RECORD;
use super::record::{Made, Record, VERSION};
use crate::host::files::{c_path, read_regular};
use crate::sys::fs::{self, HERE, Kind, Open};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Clears what the record in this directory names. A record that cannot be read names nothing.
pub(super) fn clear(dir: BorrowedFd<'_>) {
    if crate::sys::sabotaged(c"leftovers") {
        return;
    }
    let Ok(file) = fs::openat(dir, RECORD, Open::Read) else { return };
    let Ok(text) = read_regular(file.as_fd(), 1 << 24) else { return };
    let Ok(record) = serde_json::from_str::<Record>(&text) else { return };
    if record.version > VERSION {
        return;
    }
    // The deepest first, so that a directory is empty when its turn comes.
    record.made.iter().rev().for_each(|made| {
        let _ = unmake(made);
    });
    // Where the state lies in a writable volume, the program can write records too: a whole tree is removed only
    // where `plan` puts such layers.
    if let Some(upper) = record.upper.filter(|upper| upper.ends_with(Path::new("sbx/upper").join(&record.name))) {
        let _ = remove_tree(&upper);
    }
}

/// Opens a directory that the record names. Its paths were free of links when it was written, so a link there now
/// was put there by the program, to have the removal hit another place: ELOOP.
fn unmoved(path: &Path) -> crate::sys::Result<OwnedFd> {
    let top = fs::openat(HERE, c"/", Open::Directory)?;
    let below = path.strip_prefix("/").map_err(|_| crate::sys::EINVAL)?;
    match below.as_os_str().is_empty() {
        true => Ok(top),
        false => fs::open_beneath(top.as_fd(), &c_path(below), Open::Directory),
    }
}

/// Removes one mount point, if it is still the empty thing that was made.
fn unmake(made: &Made) -> crate::sys::Result<()> {
    let tree = unmoved(&made.tree)?;
    let parent = made.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = fs::open_beneath(tree.as_fd(), &c_path(parent), Open::Directory)?;
    let name = c_path(Path::new(made.path.file_name().unwrap_or_default()));
    let stat = fs::lstat(parent.as_fd(), &name)?;
    match stat.kind {
        Kind::Directory => fs::unlinkat(parent.as_fd(), &name, Kind::Directory),
        Kind::File if stat.size == 0 => fs::unlinkat(parent.as_fd(), &name, Kind::File),
        _ => Ok(()),
    }
}

/// Removes a directory of sbx's own and all in it, by descriptors: links are removed, not followed, and other
/// file systems not entered (S25). Directories without permissions, such as overlay's own work directory, get
/// them first.
///
/// # Errors
/// The first errno that stopped it.
pub(crate) fn remove_tree(path: &Path) -> crate::sys::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let parent = unmoved(parent)?;
    let name = c_path(Path::new(name));
    let stat = fs::lstat(parent.as_fd(), &name)?;
    if stat.kind != Kind::Directory {
        return fs::unlinkat(parent.as_fd(), &name, Kind::File);
    }
    let top = open_directory(parent.as_fd(), &name, stat.mode)?;
    let mut removal = Removal { top: top.as_fd(), dev: stat.dev, moved: 0 };
    // What lay too deep has been moved up to the top, so it is listed until it is empty, each time by a descriptor
    // that stands at its start.
    loop {
        let names = entries(fs::open_beneath(top.as_fd(), c".", Open::List)?.as_fd())?;
        if names.is_empty() {
            break;
        }
        names.iter().try_for_each(|entry| removal.remove(top.as_fd(), entry, 1))?;
    }
    fs::unlinkat(parent.as_fd(), &name, Kind::Directory)
}

/// Each level down costs a descriptor and some stack, of which a tree that the program has made could ask for
/// any number.
const DEEPEST: u32 = 32;

struct Removal<'a> {
    top: BorrowedFd<'a>,
    dev: u64,
    moved: u32,
}

impl Removal<'_> {
    fn remove(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: u32) -> crate::sys::Result<()> {
        let stat = fs::lstat(parent, name)?;
        if stat.kind != Kind::Directory {
            return fs::unlinkat(parent, name, Kind::File);
        }
        if stat.dev != self.dev {
            return Err(crate::sys::EBUSY);
        }
        let dir = open_directory(parent, name, stat.mode)?;
        if depth == DEEPEST {
            return self.move_up(parent, name);
        }
        for entry in entries(dir.as_fd())? {
            self.remove(dir.as_fd(), &entry, depth + 1)?;
        }
        fs::unlinkat(parent, name, Kind::Directory)
    }

    /// To a name at the top that nothing else has.
    fn move_up(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> crate::sys::Result<()> {
        loop {
            self.moved += 1;
            let to = c_path(Path::new(&format!("moved-{}", self.moved)));
            match fs::renameat(parent, name, self.top, &to) {
                Err(crate::sys::EEXIST | crate::sys::ENOTEMPTY | crate::sys::ENOTDIR) => {}
                other => return other,
            }
        }
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &CStr, mode: u32) -> crate::sys::Result<OwnedFd> {
    if mode & 0o700 != 0o700 {
        fs::chmod_open(fs::open_beneath(parent, name, Open::Directory)?.as_fd(), 0o700)?;
    }
    fs::open_beneath(parent, name, Open::List)
}

/// All names in a directory that was opened for listing.
fn entries(dir: BorrowedFd<'_>) -> crate::sys::Result<Vec<std::ffi::CString>> {
    let mut all = Vec::new();
    let mut buffer = fs::Entries::new();
    loop {
        let batch = fs::getdents(dir, &mut buffer)?;
        if batch.is_end() {
            return Ok(all);
        }
        all.extend(batch.map(CStr::to_owned));
    }
}
