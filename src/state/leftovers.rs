//! Removes what a sandbox left outside its own namespaces: mount points made in host directories, and its
//! private upper layer. Never follows a link, never leaves the directory it was told, takes only what is empty.

use super::record::{MOST, Made, Record, VERSION};
use super::{GROUP, RECORD};
use crate::cgroup::scope::clear as clear_scope;
use crate::cgroup::{name_of, remove_left};
use crate::error::{Error, Result};
use crate::host::all_ids::{self, Ids};
use crate::host::files::{c_path, read_regular, read_value};
use crate::spec::hide::HERE_TOO;
use crate::spec::text;
use crate::sys::fs::{self, HERE, Kind, Open};
use crate::sys::{EACCES, EEXIST, ELOOP, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, Errno};
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether all is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cleared {
    All,
    /// Mount points stay while others live that may have mounted on them: the kernel unmounts, in every namespace,
    /// what is mounted on a directory that is removed (since Linux 3.18).
    Later,
}

/// Of what sandbox the layer is that a record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LayerOf {
    /// Of one that has ended: where its record stays, its layer does too.
    Ended,
    /// Of one that is to be forgotten.
    Forgotten,
}

/// Clears what the record in this directory names, which is the entry `name` of the state directory. A record that
/// cannot be read, or that is another's, names nothing.
///
/// # Errors
/// `State` where something is left, for which the record has to stay.
pub(super) fn clear(
    dir: BorrowedFd<'_>,
    name: &CStr,
    layer: LayerOf,
    used: impl FnOnce(&Record) -> bool,
) -> Result<Cleared> {
    if crate::sys::sabotaged(c"leftovers") {
        return Ok(Cleared::All);
    }
    let left = |on: String, why: String| Error::State { on, why, hint: Some("another --name".into()) };
    if is_newer(dir) {
        let why = "its record was written by a newer sbx, which has to clear it";
        return Err(left(name.to_string_lossy().into_owned(), why.into()));
    }
    let why = |errno| format!("a cgroup of the sandbox {} is still in use: {errno}", name.to_string_lossy());
    let remove_group = |group: &Path| {
        let sandbox = name.to_str().unwrap_or_default();
        remove_left(group, sandbox).map_err(|errno| left(group.display().to_string(), why(errno)))
    };
    let mut buffer = [0; 4096];
    if let Ok(group) = fs::readlinkat(dir, GROUP, &mut buffer) {
        remove_group(Path::new(OsStr::from_bytes(group)))?;
    }
    let Some(record) = read(dir, name) else { return Ok(Cleared::All) };
    if !record.made.is_empty() && used(&record) {
        return Ok(Cleared::Later);
    }
    if let Some(group) = &record.group {
        remove_group(group)?;
    }
    // Without a manager there is no scope of its either, and one that somebody lives in is not ours.
    if let Some(scope) = record.scope.as_ref().filter(|scope| scope.unit == format!("{}.scope", name_of(&record.name)))
    {
        let _ = clear_scope(&scope.door, &scope.unit);
    }
    // The deepest first, so that a directory is empty when its turn comes.
    record.made.iter().rev().for_each(|made| {
        let _ = unmake(made);
    });
    // Where the state lies in a writable volume, the program can write records too: a whole tree is removed only
    // where `plan` puts such layers, and only the one of the name that the directory itself bears.
    let stays = layer == LayerOf::Ended && record.is_kept();
    let layer = record.upper.filter(|upper| !stays && is_layer_of(upper, &record.name));
    let Some(upper) = layer else { return Ok(Cleared::All) };
    let why = |error| format!("left by the sandbox {}, and cannot be removed yet: {error}", record.name);
    remove_layer(&upper).map_err(|error| left(upper.display().to_string(), why(error))).map(|()| Cleared::All)
}

/// Whether a path is one that `plan` gives to the layer of this name: in `sbx/upper`, the name, a dash and
/// eight hexadecimal digits.
fn is_layer_of(upper: &Path, name: &str) -> bool {
    let token = upper.file_name().and_then(|file| file.to_str()?.strip_prefix(name)?.strip_prefix('-'));
    let hexadecimal = |token: &str| token.len() == 8 && token.bytes().all(|b| b.is_ascii_hexdigit());
    token.is_some_and(hexadecimal) && upper.parent().is_some_and(|home| home.ends_with("sbx/upper"))
}

/// The file by which a layer on disk tells of which machine and boot it is: records do not outlive a boot, layers do.
const BOOT: &CStr = c"boot";

/// `None` where the machine has no name to be told from others by, with which a home may be shared.
fn this_boot() -> Option<(String, String)> {
    let machine = read_value(Path::new("/etc/machine-id")).unwrap_or_default().trim().to_owned();
    let boot = crate::host::boot_id();
    let known = machine.len() == 32 && machine.bytes().all(|b| b.is_ascii_hexdigit()) && !boot.is_empty();
    known.then_some((machine, boot))
}

/// Marks a private directory for layers, `path`, as one of this boot.
///
/// # Errors
/// `State` where it cannot be written to.
pub fn mark_layer(dir: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let Some((machine, boot)) = this_boot() else { return Ok(()) };
    let file = match fs::openat(dir, BOOT, Open::New) {
        Err(EEXIST) => return Ok(()),
        other => other,
    };
    let text = format!("{machine} {boot}\n");
    let written = file.and_then(|file| fs::write_all(file.as_fd(), text.as_bytes()));
    written.map_err(|errno| super::unusable(path, errno))
}

/// Removes the layers on disk that sandboxes of earlier boots of this machine have left in this directory: what a
/// machine had not cleared when it went down, and those of ended ones whose records went with the boot.
///
/// # Errors
/// `State` or `Sys`, of the last that could not be removed.
pub fn prune_layers(home: &Path) -> Result<()> {
    let (Some((machine, boot)), Ok(list)) = (this_boot(), fs::openat(HERE, &c_path(home), Open::List)) else {
        return Ok(());
    };
    let is_old = |name: &CStr| {
        let dir = fs::open_beneath(list.as_fd(), name, Open::Directory).ok()?;
        let mark = fs::open_beneath(dir.as_fd(), BOOT, Open::Read).ok()?;
        let text = read_regular(mark.as_fd(), 4096).ok()?;
        let (its_machine, its_boot) = text.trim().split_once(' ')?;
        (its_machine == machine && its_boot != boot).then_some(())
    };
    let names = entries(list.as_fd()).map_err(|errno| super::unusable(home, errno))?;
    let mut last = Ok(());
    for name in names.iter().filter(|name| is_old(name).is_some()) {
        let layer = home.join(OsStr::from_bytes(name.to_bytes()));
        // What `plan` would never name so is not a layer.
        let sandbox = name.to_str().ok().and_then(|name| name.rsplit_once('-')).map_or("", |(sandbox, _)| sandbox);
        if is_layer_of(&layer, sandbox) {
            last = remove_layer(&layer).and(last);
        }
    }
    last
}

/// What the records of every version begin with.
#[derive(serde::Deserialize)]
struct Form {
    version: u32,
}

/// Whether the record is of a later version, of which no more can be read than that.
fn is_newer(dir: BorrowedFd<'_>) -> bool {
    let form = text_of(dir).and_then(|text| serde_json::from_str::<Form>(&text).ok());
    form.is_some_and(|form| form.version > VERSION)
}

fn text_of(dir: BorrowedFd<'_>) -> Option<String> {
    let file = fs::openat(dir, RECORD, Open::Read).ok()?;
    read_regular(file.as_fd(), MOST).ok()
}

pub(super) fn read(dir: BorrowedFd<'_>, name: &CStr) -> Option<Record> {
    let record: Record = serde_json::from_str(&text_of(dir)?).ok()?;
    let own = record.name.as_bytes() == name.to_bytes() && text::name("name", &record.name).is_ok();
    own.then_some(record)
}

/// Removes a private upper layer. Directories of subordinate ids are closed to the caller itself.
fn remove_layer(upper: &Path) -> Result<()> {
    let on = || upper.display().to_string();
    match remove_tree(upper) {
        // What is gone, or has a link in its way now, is not the layer that was made.
        Ok(()) | Err(ENOENT | ELOOP | ENOTDIR) => Ok(()),
        Err(EACCES | EPERM) => remove_by_all_ids(upper),
        Err(errno) => Err(Error::Sys { doing: "remove".into(), on: on(), errno }),
    }
}

/// Removes it in a process that may act for every id that the caller can map.
fn remove_by_all_ids(upper: &Path) -> Result<()> {
    match all_ids::act(Ids::All, "remove", upper, || remove_tree(upper).err().map_or(0, |errno| errno.0))? {
        0 => Ok(()),
        errno => Err(Error::Sys { doing: "remove".into(), on: upper.display().to_string(), errno: Errno(errno) }),
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
        Kind::File if stat.size == 0 || stands_in(parent.as_fd(), &name) => {
            fs::unlinkat(parent.as_fd(), &name, Kind::File)
        }
        _ => Ok(()),
    }
}

/// Whether a file holds what one of sbx's own does.
fn stands_in(dir: BorrowedFd<'_>, name: &CStr) -> bool {
    let mut content = [0; HERE_TOO.len() + 1];
    let file = fs::open_beneath(dir, name, Open::Read);
    file.and_then(|file| fs::read(file.as_fd(), &mut content)).is_ok_and(|length| &content[..length] == HERE_TOO)
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
                Err(EEXIST | ENOTEMPTY | ENOTDIR) => {}
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
