//! Reading a log while it is written: whole records only, in their order, each once, across the rotation of its files.
//!
//! The writer knows nothing of its readers. A file is told from another by its inode, which cannot be another's while
//! it is held open here; the writer is done with a file when its name belongs to a newer one. Nothing is allocated
//! once the log is open, for a follower may live long.

use super::log::{Entry, FILES, HEAD, PIECE};
use super::{Record, StateDir, leftovers};
use crate::error::{Error, Result};
use crate::host::files::c_path;
use crate::spec::text;
use crate::sys::event::{Watch, poll};
use crate::sys::fs::{self, Kind, Open};
use crate::sys::inotify::Inotify;
use crate::sys::{EAGAIN, EINTR, EINVAL, ELOOP, ENOENT, ENXIO, Errno, process, sabotaged};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Room for many records, and in any case for the longest.
const ROOM: usize = 8 * (HEAD + PIECE + 1);
/// How often one looks who cannot be told of changes, in milliseconds.
const LOOK: u64 = 200;
/// What lies in the place of a log and is no file.
const STRANGE: Errno = EINVAL;
/// How often the files are listed anew when they change under the list.
const TRIES: u32 = 1000;

/// A place between two records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's number among those that were ever held.
    file: u64,
    at: u64,
}

/// The log of one sandbox.
#[derive(Debug)]
pub struct Replay {
    dir: OwnedFd,
    /// Files that are held, the oldest first: at most as many as there are names.
    files: [Option<OwnedFd>; FILES.len()],
    /// The number of the oldest.
    first: u64,
    place: Place,
    buffer: Box<[u8]>,
    /// Of the supervisor, while it lives.
    supervisor: Option<OwnedFd>,
    changes: Option<Inotify>,
    /// Whether files were gone before they were read.
    pub missed: bool,
}

impl StateDir {
    /// The log of the sandbox of this name.
    ///
    /// # Errors
    /// `State` where there is no such sandbox, or it has none.
    pub fn replay(&self, name: &str) -> Result<Replay> {
        let fail =
            |why: String, hint: Option<&str>| Error::State { on: name.to_owned(), why, hint: hint.map(str::to_owned) };
        let none = || fail("no sandbox of this name".into(), None);
        let entry = c_path(Path::new(text::name("NAME", name).map_err(|_| none())?.as_str()));
        let dir = match fs::open_beneath(self.dir.as_fd(), &entry, Open::List) {
            Ok(dir) => dir,
            Err(ENOENT) => return Err(none()),
            Err(errno) => return Err(fail(errno.to_string(), None)),
        };
        let record = leftovers::read(dir.as_fd(), &entry);
        let lives = || {
            // On a descriptor of its own: the lock goes with it.
            let again = fs::open_beneath(dir.as_fd(), c".", Open::List);
            again.and_then(|dir| fs::try_lock(dir.as_fd())) == Ok(false)
        };
        // In this order: while the directory is locked, the pid is the supervisor's, so the descriptor is too.
        let held = |record: &Record| process::pidfd_open(record.supervisor_pid).ok();
        let supervisor = record.as_ref().filter(|record| record.state != "exited").and_then(held).filter(|_| lives());
        let mut replay = Replay {
            dir,
            files: [const { None }; FILES.len()],
            first: 0,
            place: Place { file: 0, at: 0 },
            buffer: vec![0; ROOM].into(),
            supervisor,
            changes: None,
            missed: false,
        };
        replay.files = replay.held_now().map_err(|errno| match errno {
            STRANGE => fail(
                "something that is not its log lies in the place of that".into(),
                Some("look at it, and remove it"),
            ),
            errno => fail(format!("its log cannot be read: {errno}"), None),
        })?;
        match (replay.count(), record) {
            (0, Some(record)) if !record.detached => {
                Err(fail("it has no log: its output went to its caller".into(), Some("sbx run --detach")))
            }
            (0, _) => Err(fail("it has no log".into(), None)),
            _ => Ok(replay),
        }
    }
}

impl Replay {
    /// From now on [`Replay::wait`] is told of changes. To be called before the first reading that is to be followed.
    pub fn follow(&mut self) {
        // Where a user has too many watches already, one looks now and then.
        self.changes = Inotify::of(self.dir.as_fd()).ok();
    }

    /// Whether somebody may still write.
    pub fn lives(&self) -> bool {
        self.supervisor.is_some()
    }

    /// Waits until there may be more to read, or nobody writes any more.
    ///
    /// # Errors
    /// Of poll(2).
    pub fn wait(&mut self) -> crate::sys::Result<()> {
        let mut watches = [
            Watch::read_if(self.supervisor.as_ref().map(AsFd::as_fd)),
            Watch::read_if(self.changes.as_ref().map(AsFd::as_fd)),
        ];
        let patience = self.changes.is_none().then_some(LOOK);
        match poll(&mut watches, patience) {
            Ok(_) | Err(EINTR) => {}
            Err(errno) => return Err(errno),
        }
        if let Some(changes) = &self.changes {
            changes.drain();
        }
        if watches[0].ready() {
            self.supervisor = None;
        }
        Ok(())
    }

    /// Where the next record is read.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Goes to a place in a file that is still held.
    pub fn go(&mut self, place: Place) {
        self.place = place;
    }

    /// Hands over all records that there are now in the files that are held, and stays in the newest. The files are
    /// kept, to be read once more.
    ///
    /// # Errors
    /// Of reading, and what `each` returns.
    pub fn read_held(&mut self, each: &mut dyn FnMut(Entry<'_>) -> crate::sys::Result<()>) -> crate::sys::Result<()> {
        loop {
            self.read_file(each)?;
            if !self.has_newer() {
                return Ok(());
            }
            self.place = Place { file: self.place.file + 1, at: 0 };
        }
    }

    /// Hands over all records up to the newest. Files that were read to their end are let go.
    ///
    /// # Errors
    /// As [`Replay::read_held`].
    pub fn read(&mut self, each: &mut dyn FnMut(Entry<'_>) -> crate::sys::Result<()>) -> crate::sys::Result<()> {
        loop {
            // Asked before the reading: a file that has a newer one then is complete.
            let complete = self.has_newer() || sabotaged(c"replay-rest") && self.find_newer()?;
            if complete && sabotaged(c"replay-rest") {
                self.place = Place { file: self.place.file + 1, at: 0 };
                continue;
            }
            self.read_file(each)?;
            if complete {
                self.place = Place { file: self.place.file + 1, at: 0 };
            } else if !self.find_newer()? {
                return Ok(());
            }
        }
    }

    /// Whether a newer file than the current one is held.
    fn has_newer(&self) -> bool {
        self.place.file + 1 < self.first + self.count() as u64
    }

    fn count(&self) -> usize {
        self.files.iter().flatten().count()
    }

    /// Hands over the records from the current place to the end of its file.
    fn read_file(&mut self, each: &mut dyn FnMut(Entry<'_>) -> crate::sys::Result<()>) -> crate::sys::Result<()> {
        let Some(file) = &self.files[(self.place.file - self.first) as usize] else { return Ok(()) };
        loop {
            let length = fs::pread(file.as_fd(), &mut self.buffer, self.place.at)?;
            let bytes = &self.buffer[..length];
            // What has no end yet is being written, or will be taken back for want of space.
            let whole = match bytes.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => end + 1,
                // No record of ours is that long.
                None if length == self.buffer.len() => length,
                None => return Ok(()),
            };
            for line in bytes[..whole].split_inclusive(|byte| *byte == b'\n') {
                if let Some(entry) = line.strip_suffix(b"\n").and_then(Entry::parse) {
                    each(entry)?;
                }
            }
            self.place.at += whole as u64;
        }
    }

    /// Takes hold of files that are newer than those held, and lets go of those before the current one.
    fn find_newer(&mut self) -> crate::sys::Result<bool> {
        let now = self.held_now()?;
        let inode = |file: &Option<OwnedFd>| file.as_ref().and_then(|file| Some(fs::fstat(file.as_fd()).ok()?.ino));
        let own = inode(&self.files[(self.place.file - self.first) as usize]);
        let count = now.iter().flatten().count();
        let known = now.iter().position(|file| file.is_some() && inode(file) == own);
        match known {
            Some(place) if place + 1 == count => return Ok(false),
            Some(place) => self.first = self.place.file - place as u64,
            // All that are there now are newer.
            None if count > 0 => {
                self.missed = true;
                self.place = Place { file: self.place.file + 1, at: 0 };
                self.first = self.place.file;
            }
            None => return Ok(false),
        }
        self.files = now;
        Ok(true)
    }

    /// The files as they stand, the oldest first.
    fn held_now(&self) -> crate::sys::Result<[Option<OwnedFd>; FILES.len()]> {
        let mut stable = Err(Errno(0));
        for _ in 0..TRIES {
            stable = self.one_look();
            if !matches!(stable, Err(EAGAIN)) {
                break;
            }
        }
        stable
    }

    /// Opens the files from the newest to the oldest, and looks afterwards whether each still has its name: a rotation
    /// gives all of them others.
    fn one_look(&self) -> crate::sys::Result<[Option<OwnedFd>; FILES.len()]> {
        let dir = self.dir.as_fd();
        let mut opened = [const { None }; FILES.len()];
        for (place, name) in opened.iter_mut().zip(FILES) {
            *place = open_file(dir, name)?;
        }
        for (file, name) in opened.iter().zip(FILES) {
            let named = fs::lstat(dir, name).ok().map(|stat| stat.ino);
            let held = file.as_ref().and_then(|file| Some(fs::fstat(file.as_fd()).ok()?.ino));
            if named != held {
                return Err(EAGAIN);
            }
        }
        opened.reverse();
        // Those that are there come first.
        let mut there = [const { None }; FILES.len()];
        for (place, file) in there.iter_mut().zip(opened.into_iter().flatten()) {
            *place = Some(file);
        }
        Ok(there)
    }
}

fn open_file(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> crate::sys::Result<Option<OwnedFd>> {
    let file = match fs::open_beneath(dir, name, Open::Read) {
        Ok(file) => file,
        Err(ENOENT) => return Ok(None),
        // Of a link, and of a socket.
        Err(ELOOP | ENXIO) => return Err(STRANGE),
        Err(errno) => return Err(errno),
    };
    if fs::fstat(file.as_fd())?.kind == Kind::File { Ok(Some(file)) } else { Err(STRANGE) }
}
