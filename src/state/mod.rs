//! What sbx keeps on disk of a sandbox while it lives: a directory of its own, locked, and a record in it.
//!
//! A sandbox is alive exactly as long as its directory is locked; the kernel frees the lock with its holder, so
//! nothing has to be believed that a dead process wrote. No fsync: a reboot voids all of it (boot id).

pub mod apply;
pub mod changes;
pub mod control;
mod kept;
mod leftovers;
mod list;
pub mod live;
pub mod log;
mod names;
mod path;
mod record;
pub mod replay;
pub mod time;

pub use list::{Found, Standing};
pub use names::generate;
pub(crate) use record::short;
pub use record::{Denied, Exposure, Layer, Limit, Made, Own, Record, Scope, Skipped, Tree, VERSION};

use crate::error::{Error, Result};
use crate::host::files::c_path;
use crate::sys::event::poll;
use crate::sys::fs::{self, HERE, Kind, Open, Stat};
use crate::sys::{EDQUOT, EEXIST, ENOENT, ENOSPC, ENOSYS, ENOTEMPTY, Errno, cred};
use control::{Listener, SOCKET};
use leftovers::{Cleared, LayerOf};
pub use leftovers::{mark_layer, prune_layers};
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The directory that holds the state of all of a user's sandboxes.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    dir: OwnedFd,
    /// What could not be cleared, until somebody asks.
    left: RefCell<Vec<Error>>,
}

/// A name that is taken, and its directory. Dropping it gives the name back.
#[derive(Debug)]
pub struct Claim<'a> {
    name: CString,
    parent: &'a StateDir,
    dir: OwnedFd,
    path: PathBuf,
    /// Whether there is a record.
    written: Cell<bool>,
    /// Whether a link leads to the cgroup.
    marked: Cell<bool>,
    /// Whether the record names something that the end has to clear.
    leaves: Cell<bool>,
    /// Whether the record stays, and its last form where that is known.
    kept: Cell<bool>,
    last: RefCell<Option<Record>>,
}

/// How many milliseconds a name that is taken is tried for.
const SWEEPS: u32 = 20;
/// How many batches of names, about a hundred each, a sweep looks at.
const CROWD: u32 = 32;
const RECORD: &CStr = c"record.json";
const NEW_RECORD: &CStr = c"record.new";
/// Its being there says that the sandbox is paused.
const PAUSED: &CStr = c"paused";
/// A link that leads to the cgroup that sbx makes, where that is all that a short run leaves: no record is written then.
const GROUP: &CStr = c"group";
/// Space set aside for the record of the end.
const RESERVE: &CStr = c"reserve";

fn unusable(on: &Path, why: impl ToString) -> Error {
    let hint = "--state DIR with a directory of yours, on a local file system that has room";
    Error::State { on: on.display().to_string(), why: why.to_string(), hint: Some(hint.into()) }
}

fn too_old(call: &str) -> Error {
    Error::Unsupported {
        feature: call.into(),
        why: "it is missing: the kernel is older than 5.14, or a seccomp filter around sbx hides it".into(),
        hint: Some("a newer kernel, or the outer container's `--security-opt seccomp=unconfined`".into()),
    }
}

fn full(errno: Errno) -> bool {
    matches!(errno, ENOSPC | EDQUOT)
}

/// Opens a private directory, making it where it is missing, and proves that it is the caller's alone (S23).
///
/// # Errors
/// `State` where it is somebody else's, open to others, or cannot be made.
pub fn private_dir(path: &Path) -> Result<OwnedFd> {
    private(path).map(|(dir, _)| dir)
}

fn private(path: &Path) -> Result<(OwnedFd, Stat)> {
    let text = c_path(path);
    let opened = match fs::openat(HERE, &text, Open::List) {
        Err(ENOENT) => {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(|e| unusable(path, Errno::from(e)))?;
            }
            match fs::mkdirat(HERE, &text, 0o700) {
                Ok(()) | Err(EEXIST) => fs::openat(HERE, &text, Open::List),
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
        () => Ok((dir, stat)),
    }
}

/// The sticky bit, which means nothing on a directory that only one user may write to. Sweeping removes
/// directories, so it may never see one that was made for something else: `--state ~`. On the directory of one sandbox
/// it says that this has ended, is kept, and has left nothing to clear.
const MARK: u32 = 0o1000;

/// Marks an empty directory as sbx's own.
fn mark(path: &Path, dir: BorrowedFd<'_>) -> Result<()> {
    let mut entries = fs::Entries::new();
    let empty = fs::getdents(dir, &mut entries).map_err(|errno| unusable(path, errno))?.next().is_none();
    // Another sbx may have marked it and put a record into it since.
    let marked = || fs::fstat(dir).is_ok_and(|stat| stat.mode & MARK != 0);
    if !empty && !marked() {
        return Err(unusable(path, "holds something, and not sbx's records"));
    }
    fs::chmod_open(dir, 0o700 | MARK).map_err(|errno| unusable(path, errno))
}

impl StateDir {
    /// Opens the directory, making it where it is missing.
    ///
    /// # Errors
    /// As [`private_dir`].
    pub fn open(path: &Path) -> Result<StateDir> {
        let (dir, stat) = private(path)?;
        if stat.mode & MARK == 0 {
            mark(path, dir.as_fd())?;
        }
        Ok(StateDir { path: path.to_owned(), dir, left: RefCell::default() })
    }

    /// Takes a name. Exactly one of many that try at once gets it. The lock is on the directory itself: it needs no
    /// file, and who finds it unlocked and still there knows that its holder is dead.
    ///
    /// # Errors
    /// `State` where the name is in use, what its last bearer left cannot be removed, or the directory is full or
    /// read-only.
    pub fn claim(&self, name: &str) -> Result<Claim<'_>> {
        let path = self.path.join(name);
        let text = c_path(Path::new(name));
        let fail = |errno: Errno| match full(errno) {
            true => unusable(&self.path, "no space left for the sandbox's record"),
            false => unusable(&path, errno),
        };
        // Somebody may remove the directory between our opening it and locking it; then it is tried again. A sweep
        // of another command's holds the lock for some microseconds only, a running sandbox as long as it lives.
        let mut patience = SWEEPS;
        for _ in 0..64 {
            let fresh = match fs::mkdirat(self.dir.as_fd(), &text, 0o700) {
                Ok(()) => true,
                Err(EEXIST) => false,
                Err(errno) => return Err(fail(errno)),
            };
            let dir = match fs::open_beneath(self.dir.as_fd(), &text, Open::List) {
                Err(ENOENT) => continue,
                Err(ENOSYS) => return Err(too_old("openat2")),
                other => other.map_err(fail)?,
            };
            if !fs::try_lock(dir.as_fd()).map_err(fail)? {
                if patience > 0 {
                    patience -= 1;
                    let _ = poll(&mut [], Some(1));
                    continue;
                }
                let why = "a sandbox of this name is running".to_owned();
                return Err(Error::State { on: name.into(), why, hint: Some("another --name".into()) });
            }
            // A directory that was removed has no links left.
            if fs::fstat(dir.as_fd()).is_ok_and(|stat| stat.links > 0) {
                if !fresh {
                    self.take_over(dir.as_fd(), &text, name)?;
                }
                let (leaves, kept, last) = Default::default();
                let (written, marked) = (Cell::new(false), Cell::new(false));
                return Ok(Claim { name: text, parent: self, dir, path, written, marked, leaves, kept, last });
            }
        }
        Err(unusable(&path, "the name is taken and freed too fast to get it"))
    }

    /// Clears what the last bearer of a name has left, whose directory is locked; unless it is kept.
    fn take_over(&self, dir: BorrowedFd<'_>, entry: &CStr, name: &str) -> Result<()> {
        let kept = leftovers::read(dir, entry).is_some_and(|record| record.is_kept());
        match self.clear(dir, entry, LayerOf::Ended) {
            cleared if kept => {
                if !kept::is_settled(dir) {
                    self.settle(dir, entry, None, cleared);
                }
                Err(kept::taken(name))
            }
            Ok(Cleared::Later) => {
                let why = "another sandbox still uses the mount points that its last bearer made";
                Err(Error::State { on: name.into(), why: why.into(), hint: Some("another --name".into()) })
            }
            Ok(Cleared::All) => {
                empty(dir);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Clears what sandboxes left that were killed; whatever is alive holds its lock and is not touched. A
    /// damaged record never stops the others. What is not seen behind a crowd of living ones, a later command sees.
    pub fn sweep(&self) {
        let mut entries = fs::Entries::new();
        for _ in 0..CROWD {
            let Ok(names) = fs::getdents(self.dir.as_fd(), &mut entries) else { return };
            let last = !names.is_full();
            for name in names {
                let _ = self.sweep_one(name);
            }
            if last {
                return;
            }
        }
    }

    /// Takes the reasons why something is left of sandboxes that are gone. Their records stay, and each sweep tries
    /// again.
    pub fn left(&self) -> Vec<Error> {
        self.left.take()
    }

    /// Forgets a sandbox that has ended, and clears what is left of it.
    ///
    /// # Errors
    /// `State` where it lives, or something cannot be cleared.
    pub fn remove(&self, name: &str) -> Result<()> {
        let text = c_path(Path::new(name));
        let fail = |errno: Errno| unusable(&self.path.join(name), errno);
        let dir = match fs::open_beneath(self.dir.as_fd(), &text, Open::List) {
            Err(ENOENT) => return Ok(()),
            other => other.map_err(fail)?,
        };
        // Another command's look or sweep holds it for a moment.
        let mut free = fs::try_lock(dir.as_fd());
        for _ in 0..SWEEPS {
            if free != Ok(false) {
                break;
            }
            let _ = poll(&mut [], Some(1));
            free = fs::try_lock(dir.as_fd());
        }
        if !free.map_err(fail)? {
            let why = "it is running".to_owned();
            return Err(Error::State { on: name.into(), why, hint: Some(format!("sbx stop {name}")) });
        }
        if let Some(record) = leftovers::read(dir.as_fd(), &text) {
            kept::layers_are_free(&record)?;
        }
        match self.clear(dir.as_fd(), &text, LayerOf::Forgotten)? {
            Cleared::All => match unlist(self.dir.as_fd(), dir.as_fd(), &text) {
                Err(ENOTEMPTY | EEXIST) => {
                    let why = "something that is not sbx's lies in it".to_owned();
                    let hint = Some("look at it, and remove it".into());
                    Err(Error::State { on: self.path.join(name).display().to_string(), why, hint })
                }
                _ => Ok(()),
            },
            Cleared::Later => {
                let why = "another sandbox still uses the mount points that it made".to_owned();
                Err(Error::State { on: name.into(), why, hint: Some("try again when that has ended".into()) })
            }
        }
    }

    fn sweep_one(&self, name: &CStr) -> crate::sys::Result<()> {
        let dir = fs::open_beneath(self.dir.as_fd(), name, Open::List)?;
        if !kept::is_settled(dir.as_fd()) && fs::try_lock(dir.as_fd())? {
            self.forget(dir.as_fd(), name);
        }
        Ok(())
    }

    /// Clears what a sandbox left outside its own namespaces, as the record has it, and forgets it unless it is kept.
    /// The caller holds the lock of its directory.
    fn forget(&self, dir: BorrowedFd<'_>, name: &CStr) {
        let kept = leftovers::read(dir, name).is_some_and(|record| record.is_kept());
        match self.clear(dir, name, LayerOf::Ended) {
            cleared if kept => self.settle(dir, name, None, cleared),
            Ok(Cleared::All) => _ = unlist(self.dir.as_fd(), dir, name),
            Ok(Cleared::Later) => {}
            Err(error) => self.left.borrow_mut().push(error),
        }
    }
}

impl StateDir {
    fn clear(&self, dir: BorrowedFd<'_>, name: &CStr, layer: LayerOf) -> Result<Cleared> {
        leftovers::clear(dir, name, layer, |record| self.used_by_others(record, name))
    }

    /// Whether a sandbox that lives may have mounts in the same host directories.
    fn used_by_others(&self, record: &Record, own: &CStr) -> bool {
        let shares = |other: Record| {
            let near = |made: &Made, tree: &Tree| made.tree.starts_with(&tree.0) || tree.0.starts_with(&made.tree);
            record.made.iter().any(|made| other.trees.iter().any(|tree| near(made, tree)))
        };
        let uses = |name: &CStr| {
            let Ok(dir) = fs::open_beneath(self.dir.as_fd(), name, Open::List) else { return false };
            let lives = name != own && fs::try_lock(dir.as_fd()) == Ok(false);
            lives && leftovers::read(dir.as_fd(), name).is_some_and(shares)
        };
        // Of its own, for a sweep may stand in the middle of the other.
        let Ok(list) = fs::open_beneath(self.dir.as_fd(), c".", Open::List) else { return true };
        let mut entries = fs::Entries::new();
        for _ in 0..CROWD {
            let Ok(mut names) = fs::getdents(list.as_fd(), &mut entries) else { return true };
            let last = !names.is_full();
            if names.any(uses) {
                return true;
            }
            if last {
                return false;
            }
        }
        true
    }
}

/// Removes the record of a sandbox and its directory, whose lock the caller holds.
fn unlist(parent: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> crate::sys::Result<()> {
    let remove = || fs::unlinkat(parent, name, Kind::Directory);
    // A short run has written nothing.
    let without_record = |_| fs::unlinkat(dir, RECORD, Kind::File).and_then(|()| remove());
    remove().or_else(without_record).or_else(|_| {
        empty(dir);
        remove()
    })
}

/// Removes what else may lie in the directory of a sandbox: a log, and what a writer left that was killed.
fn empty(dir: BorrowedFd<'_>) {
    for file in [RECORD, NEW_RECORD, RESERVE, SOCKET, PAUSED, GROUP].into_iter().chain(log::ALL) {
        let _ = fs::unlinkat(dir, file, Kind::File);
    }
    if kept::is_settled(dir) {
        let _ = fs::chmod_open(dir, 0o700);
    }
}

impl Claim<'_> {
    /// Lets other commands of the same user speak to the supervisor.
    ///
    /// # Errors
    /// `State` where the socket cannot be made.
    pub fn listen(&self) -> Result<Listener> {
        Listener::new(self.dir.as_fd())
            .map_err(|errno| unusable(&self.path, format!("no socket for commands: {errno}")))
    }

    /// Says whether the sandbox is paused.
    ///
    /// # Errors
    /// Of the directory.
    pub fn mark_paused(&self, paused: bool) -> crate::sys::Result<()> {
        match paused {
            true => fs::openat(self.dir.as_fd(), PAUSED, Open::Lock).map(drop),
            false => match fs::unlinkat(self.dir.as_fd(), PAUSED, Kind::File) {
                Err(ENOENT) => Ok(()),
                other => other,
            },
        }
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// `State` where there is no space or the file system is read-only.
    pub fn write(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec(record).map_err(|e| Error::Bug(e.to_string()))?;
        if text.len() > record::MOST {
            let why = "the paths of its mounts and its labels are more than a record may hold (16 MiB)";
            let hint = Some("fewer or shorter ones".into());
            return Err(Error::State { on: self.path.display().to_string(), why: why.into(), hint });
        }
        // Before the file has its name: from then on the end has to clear what it holds.
        self.leaves_only(record);
        let fail = |errno| unusable(&self.path, format!("cannot write the record: {errno}"));
        // What is torn by a kill has nothing to clear yet, and then names nothing.
        let first = !self.written.replace(true);
        match if first { kept::write_first(self.dir.as_fd(), &text) } else { Err(EEXIST) } {
            Err(EEXIST) => kept::write(self.dir.as_fd(), &text).map_err(fail)?,
            other => other.map_err(fail)?,
        }
        self.kept.set(record.is_kept());
        if record.keeps && !record.is_kept() {
            kept::reserve(self.dir.as_fd(), text.len()).map_err(fail)?;
        }
        Ok(())
    }

    /// Says which cgroup will have to be cleared, in one call and without a record.
    ///
    /// # Errors
    /// As [`Claim::write`].
    pub fn mark_group(&self, group: &Path) -> Result<()> {
        self.marked.set(true);
        self.leaves.set(true);
        fs::symlinkat(&c_path(group), self.dir.as_fd(), GROUP)
            .map_err(|errno| unusable(&self.path, format!("cannot write into it: {errno}")))
    }

    /// What a record holds is all that is left to clear, whatever the written one says.
    pub fn leaves_only(&self, record: &Record) {
        let leaves = !record.made.is_empty() || record.upper.is_some() || record.group.is_some();
        // A scope in which the program runs is systemd's to clear.
        self.leaves.set(leaves || record.scope.is_some());
    }

    /// Whether the drop has something to clear outside the sandbox's own namespaces, or the record stays.
    pub fn leaves_something(&self) -> bool {
        self.leaves.get() || self.kept.get()
    }

    /// Gives the record the form that it is to have when all is cleared, if it stays.
    pub fn ended(&self, last: Record) {
        self.kept.set(true);
        *self.last.borrow_mut() = Some(last);
    }
}

impl Drop for Claim<'_> {
    /// Part of every end, that of a set-up that failed too.
    fn drop(&mut self) {
        let (dir, name) = (self.dir.as_fd(), self.name.as_c_str());
        match (self.kept.get(), self.leaves.get()) {
            (true, _) if !crate::sys::sabotaged(c"kept") => {
                self.parent.settle(dir, name, self.last.take(), self.parent.clear(dir, name, LayerOf::Ended))
            }
            (_, true) => self.parent.forget(dir, name),
            (_, false) => {
                for (file, is_there) in [(RECORD, &self.written), (GROUP, &self.marked)] {
                    let _ = is_there.get().then(|| fs::unlinkat(dir, file, Kind::File));
                }
                let _ = unlist(self.parent.dir.as_fd(), dir, name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_in_passing_does_not_take_a_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(&dir.path().join("state")).expect("a state directory");
        // As a sweep that has found the directory and locked it, and is not done with it yet.
        fs::mkdirat(state.dir.as_fd(), c"x", 0o700).expect("a directory left by a dead one");
        let swept = fs::open_beneath(state.dir.as_fd(), c"x", Open::List).expect("open");
        assert_eq!(fs::try_lock(swept.as_fd()), Ok(true));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let _ = poll(&mut [], Some(3));
                drop(swept);
            });
            state.claim("x").expect("the name");
        });
    }

    #[test]
    fn a_record_that_could_not_be_read_again_is_not_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(&dir.path().join("state")).expect("a state directory");
        let claim = state.claim("x").expect("the name");
        let mut record: Record = serde_json::from_str(
            r#"{"version":1,"name":"x","state":"","supervisor_pid":1,"pid":null,"labels":{},"command":[],"groups":[],
            "skipped":[],"landlock":0,"made":[],"upper":null}"#,
        )
        .expect("a record");
        record.labels.insert("l".into(), "\u{1}".repeat(2 << 20));
        claim.write(&record).expect("12 MiB");
        assert!(leftovers::read(claim.dir.as_fd(), c"x").is_some());
        record.labels.insert("m".into(), "\u{1}".repeat(1 << 20));
        let refused = claim.write(&record).expect_err("18 MiB");
        assert!(refused.to_string().contains("16 MiB"), "{refused}");
    }

    #[test]
    fn a_sweep_sees_behind_a_crowd() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        drop(StateDir::open(&path).expect("a state directory"));
        (0..500).for_each(|n| std::fs::create_dir(path.join(format!("dead-{n}"))).expect("a directory of a dead one"));
        StateDir::open(&path).expect("the same").sweep();
        assert_eq!(std::fs::read_dir(&path).expect("list").count(), 0);
    }

    #[test]
    fn what_is_not_ours_is_not_removed_and_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        let state = StateDir::open(&path).expect("a state directory");
        std::fs::create_dir_all(path.join("x/log")).expect("a directory where a log should be");
        let refused = state.remove("x").expect_err("something is in it").to_string();
        assert!(refused.contains("not sbx's"), "{refused}");
        std::fs::remove_dir(path.join("x/log")).expect("removed");
        state.remove("x").expect("now it can be");
        assert!(!path.join("x").exists());
    }

    #[test]
    fn a_name_is_taken_once_and_given_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        let (one, other) = (StateDir::open(&path).expect("one"), StateDir::open(&path).expect("other"));
        let held = one.claim("x").expect("the name");
        assert!(other.claim("x").is_err());
        other.sweep();
        assert!(path.join("x").is_dir(), "a living sandbox was swept away");
        drop(held);
        assert!(!path.join("x").exists());
        other.claim("x").expect("free again");
    }
}
