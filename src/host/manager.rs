//! Whether the user has a systemd of their own that can be asked for a scope, and where it is spoken to. Root's is the
//! system's.
//!
//! A door is somebody who listens, belongs to the user and lives in this pid namespace: a socket that a dead manager
//! left, one that somebody else planted, and one from outside the container that sbx runs in are none.

use crate::host::files::c_path;
use crate::host::initial_user_namespace;
use crate::spec::text::Caller;
use crate::sys::fs::{HERE, Kind, lstat, stat};
use crate::sys::stream::{Peer, connect, peer};
use crate::sys::{EAGAIN, Result};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// The manager's own socket, in the runtime directory.
const PRIVATE: &str = "systemd/private";
/// That of the system's manager, which is root's alone.
const SYSTEM: &str = "/run/systemd/private";

/// Where a user's systemd can be spoken to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Door {
    /// The socket of the user's message bus, on which the manager has a name.
    Bus(PathBuf),
    /// The manager's own socket, with no bus between.
    Private(PathBuf),
}

impl Door {
    /// The socket.
    pub fn path(&self) -> &Path {
        match self {
            Door::Bus(path) | Door::Private(path) => path,
        }
    }

    /// The manager's own socket, beside the bus. A bus that our connection has just started, as in a fresh ssh session,
    /// is up before the manager has its name there.
    pub fn beside(&self) -> Option<Door> {
        match self {
            Door::Bus(path) => Some(Door::Private(path.with_file_name(PRIVATE))),
            Door::Private(_) => None,
        }
    }

    /// Whether it is the system's manager that listens.
    pub(super) fn is_system(&self) -> bool {
        *self == Door::Private(SYSTEM.into())
    }
}

/// The door to this user's manager, where one runs. Root has the system's: it runs whoever is logged in, and a group
/// that sbx made in its tree by itself could lose its controllers.
pub fn door(caller: &Caller, uid: u32) -> Option<Door> {
    let system = uid == 0 && initial_user_namespace() && opens(Path::new(SYSTEM), uid);
    if system { Some(Door::Private(SYSTEM.into())) } else { door_of_session(caller, uid) }
}

/// Without the bus (no dbus-user-session) the manager's own socket is left.
fn door_of_session(caller: &Caller, uid: u32) -> Option<Door> {
    let runtime = runtime(caller, uid)?;
    let private = runtime.join(PRIVATE);
    let theirs = lstat(HERE, &c_path(&private)).is_ok_and(|stat| stat.kind == Kind::Socket && stat.uid == uid);
    if !theirs {
        return None;
    }
    // The manager sends all that happens to whoever is at its own socket: many starts at once would wait for each other.
    [Door::Bus(runtime.join("bus")), Door::Private(private)].into_iter().find(|door| opens(door.path(), uid))
}

/// Where pam_systemd puts a user's sockets. A variable that a change of user left behind (`su`, `sudo -E`) names
/// somebody else's directory.
fn runtime(caller: &Caller, uid: u32) -> Option<PathBuf> {
    let told = caller.var("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let usual = || PathBuf::from(format!("/run/user/{uid}"));
    let foreign = |path: &PathBuf| stat(&c_path(path)).is_ok_and(|stat| stat.uid != uid);
    let path = told.filter(|path| !foreign(path)).unwrap_or_else(usual);
    stat(&c_path(&path)).is_ok_and(|stat| stat.kind == Kind::Directory && stat.uid == uid).then_some(path)
}

fn opens(path: &Path, uid: u32) -> bool {
    match connect(&c_path(path)) {
        Ok(socket) => trusted(socket.as_fd(), uid).unwrap_or(false),
        // So many wait for an answer that no more fit; it is there.
        Err(errno) => errno == EAGAIN,
    }
}

/// Whether the listener at the other end is this user's, or root's, and means the same processes by the same numbers.
pub(crate) fn trusted(socket: BorrowedFd<'_>, uid: u32) -> Result<bool> {
    let Peer { pid, uid: theirs } = peer(socket)?;
    Ok(pid != 0 && (theirs == uid || theirs == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::cred::geteuid;
    use std::os::unix::net::UnixListener;

    fn caller(runtime: &Path) -> Caller {
        let env = vec![("XDG_RUNTIME_DIR".into(), runtime.into())];
        Caller { cwd: "/".into(), home: "/".into(), env }
    }

    /// A runtime directory with listeners on these names, and what `door` finds in it.
    fn found(names: &[&str], stale: &[&str]) -> (Option<Door>, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("systemd")).expect("a directory");
        let listen = |name: &&str| UnixListener::bind(dir.path().join(name)).expect("bound");
        stale.iter().map(listen).for_each(drop);
        let _listeners: Vec<_> = names.iter().map(listen).collect();
        (door_of_session(&caller(dir.path()), geteuid()), dir.path().to_owned())
    }

    #[test]
    fn the_bus_is_the_first_choice() {
        let (door, dir) = found(&["bus", "systemd/private"], &[]);
        assert_eq!(door, Some(Door::Bus(dir.join("bus"))));
        assert_eq!(door.and_then(|door| door.beside()), Some(Door::Private(dir.join("systemd/private"))));
    }

    #[test]
    fn without_a_living_bus_the_managers_own_socket_is_left() {
        for stale in [&[][..], &["bus"]] {
            let (door, dir) = found(&["systemd/private"], stale);
            assert_eq!(door, Some(Door::Private(dir.join("systemd/private"))));
        }
    }

    #[test]
    fn without_a_manager_there_is_no_door() {
        assert_eq!(found(&["bus"], &[]).0, None);
        assert_eq!(found(&[], &["bus", "systemd/private"]).0, None);
        assert_eq!(found(&[], &[]).0, None);
    }

    #[test]
    fn what_belongs_to_others_is_no_door() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("systemd")).expect("a directory");
        let _listener = UnixListener::bind(dir.path().join("systemd/private")).expect("bound");
        assert_eq!(door_of_session(&caller(dir.path()), geteuid() + 54321), None);
        assert_eq!(runtime(&caller(Path::new("relative")), geteuid() + 54321), None);
    }
}
