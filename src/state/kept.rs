//! What stays of a sandbox in the background when it has ended: its record and its log, until somebody forgets it.

use super::control::SOCKET;
use super::leftovers::{self, Cleared, LayerOf};
use super::log::FILES;
use super::record::{Denied, Record, VERSION};
use super::time::Moment;
use super::{MARK, NEW_RECORD, PAUSED, RECORD, RESERVE, StateDir, full, unusable};
use crate::error::{Error, Result};
use crate::sys::fs::{self, Kind, Open};
use crate::sys::{EEXIST, ENOENT, Result as SysResult};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

/// As `kill -9` has it: how a sandbox ended whose supervisor could not say.
const KILLED: u8 = 137;

impl Record {
    /// Whether it stays when the sandbox has ended: one whose changes are kept, or in the background, when its program
    /// has started.
    pub fn is_kept(&self) -> bool {
        (self.keeps || self.detached) && self.state != "starting"
    }

    /// The record of a sandbox that has ended.
    pub(crate) fn ended(mut self, status: u8, why: Option<String>) -> Record {
        self.state = "exited".into();
        self.exit_status = Some(status);
        self.exit_why = why;
        self.exited_at = Some(Moment::now().to_string());
        self
    }
}

/// Whether nothing is left to clear of an ended sandbox, so that a sweep need not even read its record.
pub(super) fn is_settled(dir: BorrowedFd<'_>) -> bool {
    fs::fstat(dir).is_ok_and(|stat| stat.mode & MARK != 0)
}

/// The error of who wants the name of a sandbox that is kept.
pub(super) fn taken(name: &str) -> Error {
    let why = "a sandbox of this name has ended and is kept".to_owned();
    Error::State { on: name.into(), why, hint: Some(format!("sbx rm {name}, or another --name")) }
}

/// What the last run in the foreground was denied; no sandbox has such a name.
const WHY: &CStr = c".why.json";
/// Bytes that are believed of it.
const LONGEST_WHY: usize = 1 << 24;

impl StateDir {
    /// Keeps what a run was denied, for `sbx why`. That it cannot be kept is no reason for anything.
    pub fn keep_why(&self, name: &str, denied: &[Denied]) {
        let Ok(text) = serde_json::to_vec(&(name, denied)) else { return };
        let _ = replace(self.dir.as_fd(), c".why.new", WHY, &text);
    }

    /// What was kept last, and of which sandbox.
    ///
    /// # Errors
    /// `State` for what is there and cannot be read.
    pub fn last_why(&self) -> Result<Option<(String, Vec<Denied>)>> {
        let fail = |why: &dyn std::fmt::Display| unusable(&self.path.join(".why.json"), why);
        let file = match fs::open_beneath(self.dir.as_fd(), WHY, Open::Read) {
            Err(ENOENT) => return Ok(None),
            other => other.map_err(|errno| fail(&errno))?,
        };
        let text = crate::host::files::read_bytes(file.as_fd(), LONGEST_WHY).map_err(|errno| fail(&errno))?;
        serde_json::from_slice(&text).map(Some).map_err(|error| fail(&error))
    }
}

/// Refuses while an `apply` takes the changes over.
pub(super) fn layers_are_free(record: &Record) -> Result<()> {
    for layer in record.layers.iter().filter(|layer| layer.upper.is_absolute()) {
        let dir = fs::openat(fs::HERE, &crate::host::files::c_path(&layer.upper), Open::List);
        if dir.is_ok_and(|dir| fs::try_lock(dir.as_fd()) == Ok(false)) {
            let why = "an sbx apply takes its changes over".to_owned();
            return Err(Error::State { on: record.name.clone(), why, hint: Some("wait for it to end".into()) });
        }
    }
    Ok(())
}

impl StateDir {
    /// Removes the layers on disk of a sandbox that has ended, and leaves its record.
    ///
    /// # Errors
    /// `State` where it lives, or its layers are a directory of the caller's own; of the removal.
    pub fn discard(&self, name: &str) -> Result<()> {
        let dir = fs::open_beneath(self.dir.as_fd(), &crate::host::files::c_path(name.as_ref()), Open::List);
        let dir = dir.map_err(|errno| unusable(&self.path.join(name), errno))?;
        if fs::try_lock(dir.as_fd()) != Ok(true) {
            return Err(Error::State { on: name.into(), why: "it is in use".into(), hint: Some("try again".into()) });
        }
        let text = crate::host::files::c_path(name.as_ref());
        let Some(record) = leftovers::read(dir.as_fd(), &text) else { return Ok(()) };
        if let (None, Some(layer)) = (&record.upper, record.layers.iter().find(|layer| layer.upper.is_absolute())) {
            let why = format!("its changes lie in a directory of yours: {}", layer.upper.display());
            return Err(Error::State { on: name.into(), why, hint: Some("remove it yourself".into()) });
        }
        layers_are_free(&record)?;
        leftovers::clear(dir.as_fd(), &text, LayerOf::Forgotten, |_| false)?;
        let record = Record { upper: None, layers: Vec::new(), ..record };
        let written = serde_json::to_vec(&record).map_err(|error| Error::Bug(error.to_string()))?;
        write(dir.as_fd(), &written).map_err(|errno| unusable(&self.path.join(name), errno))
    }
}

impl StateDir {
    /// Brings the record of a sandbox that has ended into its last state; the caller holds the lock of its directory.
    /// What could not be cleared yet stays in the record.
    pub(super) fn settle(&self, dir: BorrowedFd<'_>, name: &CStr, last: Option<Record>, cleared: Result<Cleared>) {
        let Some(mut record) = last.or_else(|| leftovers::read(dir, name)) else { return };
        if record.state != "exited" {
            record = record.ended(KILLED, Some("supervisor was killed".into()));
        }
        // Of a newer sbx, which has to bring it to its end.
        let newer = record.version > VERSION;
        let done = matches!(cleared, Ok(Cleared::All));
        if done {
            record = Record { made: Vec::new(), trees: Vec::new(), group: None, scope: None, ..record };
        }
        if let Err(error) = cleared {
            self.left.borrow_mut().push(error);
        }
        if newer {
            return;
        }
        for file in [RESERVE, SOCKET, PAUSED] {
            let _ = fs::unlinkat(dir, file, Kind::File);
        }
        let text = serde_json::to_vec(&record).unwrap_or_default();
        match write(dir, &text) {
            Ok(()) if done => drop(fs::chmod_open(dir, 0o700 | MARK)),
            Ok(()) => {}
            Err(errno) => {
                let path = self.path.join(&record.name);
                self.left.borrow_mut().push(unusable(&path, format!("cannot write the record of its end: {errno}")));
            }
        }
    }
}

/// Writes a record, whole or not at all. Where there is no space, of a sandbox in the background first what was set
/// aside goes, then the older part of its log: without a record nobody finds it.
pub(super) fn write(dir: BorrowedFd<'_>, text: &[u8]) -> SysResult<()> {
    let [_, older, oldest] = FILES;
    let mut written = write_once(dir, text);
    for file in [RESERVE, oldest, older] {
        if !written.is_err_and(full) {
            break;
        }
        if fs::unlinkat(dir, file, Kind::File).is_ok() {
            written = write_once(dir, text);
        }
    }
    written
}

/// Writes the first record of a sandbox, in a directory that nobody reads for what is to be cleared yet.
pub(super) fn write_first(dir: BorrowedFd<'_>, text: &[u8]) -> SysResult<()> {
    fs::openat(dir, RECORD, Open::New).and_then(|file| fs::write_all(file.as_fd(), text))
}

fn write_once(dir: BorrowedFd<'_>, text: &[u8]) -> SysResult<()> {
    replace(dir, NEW_RECORD, RECORD, text)
}

/// Writes a file under one name and then gives it the other.
fn replace(dir: BorrowedFd<'_>, new: &CStr, name: &CStr, text: &[u8]) -> SysResult<()> {
    let open = || fs::openat(dir, new, Open::New);
    let file = match open() {
        // Left by a writer that was killed.
        Err(EEXIST) => fs::unlinkat(dir, new, Kind::File).and_then(|()| open()),
        other => other,
    }?;
    fs::write_all(file.as_fd(), text)?;
    fs::rename(dir, new, name)
}

/// Sets space aside for the record of the end, which has to be written also where the log has filled the file system.
pub(super) fn reserve(dir: BorrowedFd<'_>, record: usize) -> SysResult<()> {
    const MORE: usize = 1024;
    const PAGE: usize = 4096;
    let length = record + MORE;
    let file = fs::openat(dir, RESERVE, Open::New)?;
    fs::write_all(file.as_fd(), &vec![b'.'; length.next_multiple_of(PAGE)])
}
