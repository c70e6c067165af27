//! What sbx keeps on disk of a sandbox while it lives: a directory of its own, a lock, a record.
//!
//! A sandbox is alive exactly as long as its lock is held; the kernel frees the lock with its holder, so
//! nothing has to be believed that a dead process wrote. No fsync: a reboot voids all of it (boot id).

mod leftovers;
mod names;
mod record;

pub use names::generate;
pub use record::{Made, MadeKind, Record, Skipped};

use crate::error::{Error, Result};
use crate::host::files::c_path;
use crate::sys::fs::{self, HERE, Kind, Open};
use crate::sys::{EDQUOT, EEXIST, ENOENT, ENOSPC, Errno, cred};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The directory that holds the state of all of a user's sandboxes.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    dir: OwnedFd,
}

/// A name that is taken, and its directory. Dropping it gives the name back.
#[derive(Debug)]
pub struct Claim {
    name: CString,
    parent: OwnedFd,
    dir: OwnedFd,
    path: PathBuf,
    _lock: OwnedFd,
}

const LOCK: &CStr = c"lock";
const RECORD: &CStr = c"record.json";
const NEW_RECORD: &CStr = c"record.new";

fn unusable(on: &Path, why: impl ToString) -> Error {
    let hint = "--state DIR with a directory of yours on a local file system";
    Error::State { on: on.display().to_string(), why: why.to_string(), hint: Some(hint.into()) }
}

fn full(errno: Errno) -> bool {
    matches!(errno, ENOSPC | EDQUOT)
}

/// Opens a private directory, making it where it is missing, and proves that it is the caller's alone (S23).
///
/// # Errors
/// `State` where it is somebody else's, open to others, or cannot be made.
pub fn private_dir(path: &Path) -> Result<OwnedFd> {
    let text = c_path(path);
    let opened = match fs::openat(HERE, &text, Open::Directory) {
        Err(ENOENT) => {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(|e| unusable(path, e))?;
            }
            match fs::mkdirat(HERE, &text, 0o700) {
                Ok(()) | Err(EEXIST) => fs::openat(HERE, &text, Open::Directory),
                Err(errno) => Err(errno),
            }
        }
        other => other,
    };
    let dir = opened.map_err(|errno| unusable(path, errno))?;
    let stat = fs::fstat(dir.as_fd()).map_err(|errno| unusable(path, errno))?;
    match () {
        () if stat.uid != cred::geteuid() => Err(unusable(path, format!("belongs to uid {}, not to you", stat.uid))),
        () if stat.mode & 0o022 != 0 => Err(unusable(path, format!("others can write to it (mode {:o})", stat.mode))),
        () => Ok(dir),
    }
}

impl StateDir {
    /// Opens the directory, making it where it is missing.
    ///
    /// # Errors
    /// As [`private_dir`].
    pub fn open(path: &Path) -> Result<StateDir> {
        Ok(StateDir { path: path.to_owned(), dir: private_dir(path)? })
    }

    /// Takes a name. Exactly one of many that try at once gets it.
    ///
    /// # Errors
    /// `State` where the name is in use or the directory is full or read-only.
    pub fn claim(&self, name: &str) -> Result<Claim> {
        let path = self.path.join(name);
        let text = c_path(Path::new(name));
        let fail = |errno: Errno| match full(errno) {
            true => unusable(&self.path, "no space left for the sandbox's record"),
            false => unusable(&path, errno),
        };
        // Somebody may remove the directory between our opening it and locking it; then it is tried again.
        for _ in 0..64 {
            match fs::mkdirat(self.dir.as_fd(), &text, 0o700) {
                Ok(()) | Err(EEXIST) => {}
                Err(errno) => return Err(fail(errno)),
            }
            let Ok(dir) = fs::open_beneath(self.dir.as_fd(), &text, Open::Directory) else { continue };
            let lock = match fs::openat(dir.as_fd(), LOCK, Open::Lock) {
                Err(ENOENT) => continue,
                other => other.map_err(fail)?,
            };
            if !fs::try_lock(lock.as_fd()).map_err(fail)? {
                let why = "a sandbox of this name is running".to_owned();
                return Err(Error::State { on: name.into(), why, hint: Some("another --name".into()) });
            }
            if fs::lstat(dir.as_fd(), LOCK).is_ok_and(|s| s.links > 0) {
                leftovers::clear(dir.as_fd());
                let parent = fs::openat(self.dir.as_fd(), c".", Open::Directory).map_err(fail)?;
                return Ok(Claim { name: text, parent, dir, path, _lock: lock });
            }
        }
        Err(unusable(&path, "the name is taken and freed too fast to get it"))
    }

    /// Clears what sandboxes left that were killed; whatever is alive holds its lock and is not touched. A
    /// damaged record never stops the others.
    pub fn sweep(&self) {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return };
        for entry in entries.flatten() {
            let name = c_path(Path::new(&entry.file_name()));
            let _ = self.sweep_one(&name);
        }
    }

    fn sweep_one(&self, name: &CStr) -> crate::sys::Result<()> {
        let dir = fs::open_beneath(self.dir.as_fd(), name, Open::Directory)?;
        let lock = match fs::openat(dir.as_fd(), LOCK, Open::Lock) {
            Ok(lock) => lock,
            Err(_) => return Ok(()),
        };
        if fs::try_lock(lock.as_fd())? {
            leftovers::clear(dir.as_fd());
            forget(self.dir.as_fd(), dir.as_fd(), name);
        }
        Ok(())
    }
}

/// Removes the files of a sandbox's directory and the directory. The lock goes last but one, so that whoever
/// waits for it sees that it has no name any more.
fn forget(parent: std::os::fd::BorrowedFd<'_>, dir: std::os::fd::BorrowedFd<'_>, name: &CStr) {
    for file in [RECORD, NEW_RECORD, LOCK] {
        let _ = fs::unlinkat(dir, file, Kind::File);
    }
    let _ = fs::unlinkat(parent, name, Kind::Directory);
}

impl Claim {
    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// `State` where there is no space or the file system is read-only.
    pub fn write(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec(record).map_err(|e| Error::Bug(e.to_string()))?;
        let write = || {
            let _ = fs::unlinkat(self.dir.as_fd(), NEW_RECORD, Kind::File);
            let file = fs::openat(self.dir.as_fd(), NEW_RECORD, Open::New)?;
            fs::write_all(file.as_fd(), &text)?;
            fs::rename(self.dir.as_fd(), NEW_RECORD, RECORD)
        };
        write().map_err(|errno| unusable(&self.path, format!("cannot write the record: {errno}")))
    }

    /// Removes what the sandbox left outside its own namespaces; part of every end.
    pub fn clear(&self) {
        leftovers::clear(self.dir.as_fd());
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        forget(self.parent.as_fd(), self.dir.as_fd(), &self.name);
    }
}
