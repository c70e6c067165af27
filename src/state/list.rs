//! What there is of sandboxes: each with its record and whether it lives. A damaged record hides nobody else.

use super::control::{Client, SOCKET};
use super::{CROWD, PAUSED, Record, StateDir, leftovers};
use crate::error::{Error, Result};
use crate::host::files::c_path;
use crate::sys::event::poll;
use crate::sys::fs::{self, Open};
use crate::sys::stream::ECONNREFUSED;
use crate::sys::{EACCES, EAGAIN, ENOENT, EPERM};
use serde::Serialize;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// How a sandbox stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is being set up, or has run for less than a moment.
    Starting,
    /// Its program runs.
    Running,
    /// Nothing in it runs for now.
    Paused,
    /// It has ended, and what it was is kept.
    Exited,
    /// Its supervisor was killed, and nobody has cleared it yet.
    Dead,
}

/// One sandbox.
#[derive(Debug)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// How it stands.
    pub standing: Standing,
    /// What is known of it; `None` for one that has just begun, or whose record is damaged.
    pub record: Option<Record>,
    dir: OwnedFd,
}

/// Milliseconds for which a sandbox that has just begun is waited for: it listens when it has run for a moment, and
/// systemd or a slow disk may take their time before.
const PATIENCE: u64 = 10_000;

impl Found {
    /// Speaks to its supervisor; one that has just begun is waited for.
    ///
    /// # Errors
    /// `State` where it has ended, or cannot be reached.
    pub fn connect(&self) -> Result<Client> {
        let mut waited = 0;
        loop {
            match Client::connect(self.dir.as_fd(), &self.name) {
                Ok(client) if self.is_the_same() => return Ok(client),
                Ok(_) => return Err(self.not_running()),
                Err(ENOENT | ECONNREFUSED) if !self.is_held() => return Err(self.not_running()),
                Err(ENOENT | ECONNREFUSED | EAGAIN) if waited < PATIENCE => {
                    let _ = poll(&mut [], Some(5));
                    waited += 5;
                }
                Err(ENOENT | ECONNREFUSED) => return Err(self.unreachable("does not listen")),
                Err(EPERM) => {
                    let why = "who listens in its place is no supervisor of yours, or is in another user namespace";
                    let hint = Some("sbx from where the sandbox was started".into());
                    return Err(Error::State { on: self.name.clone(), why: why.into(), hint });
                }
                Err(EAGAIN) => return Err(self.unreachable("lets nobody in: too many commands wait for it")),
                Err(errno) => return Err(self.unreachable(&format!("cannot be reached: {errno}"))),
            }
        }
    }

    /// Whether it is held now, whatever was so when it was found, by who held it then: its directory goes to the next
    /// bearer of the name where it was killed.
    pub fn is_held(&self) -> bool {
        fs::is_locked(self.dir.as_fd()) == Ok(true) && self.is_the_same()
    }

    /// Whether the record is that of the sandbox that was found. The next bearer of the name removes it first of all.
    fn is_the_same(&self) -> bool {
        let Some(found) = &self.record else { return true };
        let now = leftovers::read(self.dir.as_fd(), &c_path(Path::new(&self.name)));
        now.is_some_and(|now| {
            let started = found.started_at.is_none() || found.started_at == now.started_at;
            now.supervisor_pid == found.supervisor_pid && started
        })
    }

    fn unreachable(&self, why: &str) -> Error {
        let hint = self.record.as_ref().map(|record| format!("kill -KILL {}, which ends it", record.supervisor_pid));
        Error::State { on: self.name.clone(), why: format!("its supervisor {why}"), hint }
    }

    /// That it does not run.
    pub fn not_running(&self) -> Error {
        let why = "it is not running".to_owned();
        Error::State { on: self.name.clone(), why, hint: Some("sbx ps -a lists what there is".into()) }
    }

    /// Whether somebody looks after it.
    pub fn lives(&self) -> bool {
        matches!(self.standing, Standing::Starting | Standing::Running | Standing::Paused)
    }
}

impl StateDir {
    /// All sandboxes, by name.
    pub fn list(&self) -> Vec<Found> {
        let mut names: Vec<CString> = Vec::new();
        let mut entries = fs::Entries::new();
        // Of its own, for a sweep moves the other.
        let Ok(list) = fs::open_beneath(self.dir.as_fd(), c".", Open::List) else { return Vec::new() };
        for _ in 0..CROWD * 32 {
            let Ok(batch) = fs::getdents(list.as_fd(), &mut entries) else { break };
            if batch.is_end() {
                break;
            }
            // What else lies here is no sandbox, whoever has put it here.
            names.extend(batch.filter(|name| is_name(name)).map(CStr::to_owned));
        }
        let mut found: Vec<Found> = names.iter().filter_map(|name| self.look(name).ok().flatten()).collect();
        found.sort_by(|one, other| one.name.cmp(&other.name));
        found
    }

    /// The sandbox of this name.
    ///
    /// # Errors
    /// `State` where there is none.
    pub fn find(&self, name: &str) -> Result<Found> {
        let none = |why: String| Error::State {
            on: crate::error::visible(name),
            why,
            hint: Some("sbx ps -a lists the names".into()),
        };
        let valid = crate::spec::text::name("NAME", name).is_ok();
        match if valid { self.look(&c_path(Path::new(name))) } else { Ok(None) } {
            Ok(Some(found)) => Ok(found),
            Ok(None) | Err(ENOENT) => Err(none("no sandbox of this name".into())),
            Err(errno @ EACCES) => Err(none(errno.to_string())),
            Err(errno) => Err(none(format!("its directory cannot be read: {errno}"))),
        }
    }

    fn look(&self, name: &CStr) -> crate::sys::Result<Option<Found>> {
        let dir = fs::open_beneath(self.dir.as_fd(), name, Open::List)?;
        let lives = fs::is_locked(dir.as_fd())?;
        let record = leftovers::read(dir.as_fd(), name);
        let paused = || fs::lstat(dir.as_fd(), PAUSED).is_ok();
        let standing = match (lives, &record) {
            (true, Some(record)) if record.state == "starting" => Standing::Starting,
            // Its record is damaged, or there was no room for one; but it has begun to listen.
            (true, None) if fs::lstat(dir.as_fd(), SOCKET).is_err() => Standing::Starting,
            (true, _) if paused() => Standing::Paused,
            (true, _) => Standing::Running,
            (false, Some(record)) if record.state == "exited" => Standing::Exited,
            (false, _) => Standing::Dead,
        };
        Ok(name.to_str().ok().map(|name| Found { name: name.to_owned(), standing, record, dir }))
    }
}

fn is_name(name: &CStr) -> bool {
    name.to_str().is_ok_and(|name| crate::spec::text::name("NAME", name).is_ok())
}
