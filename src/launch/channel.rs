//! What parent and child say to each other: fixed-size messages over one socket pair.
//!
//! ```text
//!   parent                                   child (init)
//!     | ---- clone3 -------------------------> |
//!     |  writes the id maps                    |  waits
//!     | ---- Tree + mount ---------------------> |  (idmapped sources, as root)
//!     | ---- Go -----------------------------> |  Enter, Root, Pivot, Identity, Confine
//!     | ---- Placed -------------------------> |  (in a scope of systemd's, before the cgroup namespace)
//!     | <--- Done{step} ---------------------- |  (where somebody follows)
//!     | <--- UserNs + it, Fuse + the store ---- |  (root by fuse-overlayfs, whose mount is awaited)
//!     | <--- Proc + it, Store + each tmpfs --- |  (where the memory is watched)
//!     | <--- Skipped{step, call, errno} ------ |  (for steps that may be)
//!     | <--- Terminal + pty master ----------- |
//!     | <--- Failed{step, call, errno} ------- |  and ends with 125
//!     | <--- AtGate -------------------------- |
//!     | ---- Start --------------------------> |  clones the program, which loads its filter and execs
//!     | <--- Listener + it, or Unheard -------- |  (where denials are explained)
//!     | <--- NotExecuted{errno} -------------- |  and ends
//!     | <--- Started + pidfd ----------------- |  the program's exec has succeeded
//!     | ---- Go -----------------------------> |  (where a pidfd was carried: its pid is known)
//!     | ---- Signal{number} -----------------> |  passes it on
//!     | ---- Handles ------------------------> |  (when the program has run for a moment)
//!     | <--- Handle{number} + it ------------- |  (each namespace and the root, for `exec`)
//!     | <--- Ended{code, signal, full} ------- |  and ends, with everything in its pid namespace
//!     | ---- Go -----------------------------> |  (before that, in a scope of systemd's: it has been read)
//! ```
//!
//! A step's number is enough in a message, for both sides hold the same Plan; the parent makes the
//! sentence. Every descriptor is close-on-exec, so without an init the end of file after `AtGate` means
//! that the exec succeeded. The parent's end going away is the lifeline: init ends, and all with it.
//! With a map of ranges a process stands between the two, which clones init and says `Forked` + pidfd.

use crate::sys::event::{Watch, poll};
use crate::sys::process::{Ended, Namespaces};
use crate::sys::socket::{Wait, receive, send, send_now};
use crate::sys::{EAGAIN, EINVAL, Errno, Result};
use std::os::fd::{BorrowedFd, OwnedFd};

/// Bytes of a message.
const SIZE: usize = 16;

/// One message; see the drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Parent: the maps are written.
    Go,
    /// Parent: carries the next of the idmapped sources, before `Go`.
    Tree,
    /// Parent: the child stands in its cgroup.
    Placed,
    /// Parent: wants the handles by which one more program gets in.
    Handles,
    /// Child: carries the handle of this number.
    Handle(i32),
    /// Parent: the program may start.
    Start,
    /// Parent: pass this signal on.
    Signal(i32),
    /// The process in between: init is this pid, as the parent sees it, and lacks these namespaces. Carries its pidfd.
    Forked(i32, Namespaces),
    /// Child: a step that may be skipped was.
    Skipped(Fault),
    /// Child: this step is done; only where somebody follows.
    Done(u16),
    /// Child: a step failed; the child is gone.
    Failed(Fault),
    /// Child: carries the master of the sandbox's own terminal.
    Terminal,
    /// Child: carries its user namespace, in which fuse-overlayfs is to run.
    UserNs,
    /// Child: wants fuse-overlayfs; carries a copy of the mounts that hold its layers.
    Fuse,
    /// Child: carries the sandbox's own /proc, to be watched.
    Proc,
    /// Child: carries a tmpfs of the sandbox, likewise.
    Store,
    /// Program: carries what its filter is heard by.
    Listener,
    /// Program: somebody else listens already, so that sbx cannot.
    Unheard,
    /// Child: all is set up.
    AtGate,
    /// Child: the program could not be executed.
    NotExecuted(Errno),
    /// Child: the program runs; its pid inside. May carry its pidfd.
    Started(i32),
    /// Child: the program has ended; whether the one tmpfs was full then.
    Ended(Ended, Fullness),
}

/// Whether the sandbox's writable layer had room left at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fullness {
    /// It had, or nobody knows.
    Room,
    /// No byte or no inode was left.
    Full,
}

/// Which call of which step failed, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The step's number in the plan, from 1.
    pub step: u16,
    /// The call.
    pub call: Call,
    /// How it failed.
    pub errno: Errno,
}

macro_rules! calls {
    ($($name:ident = $text:literal),+ $(,)?) => {
        /// The system calls that a step may fail in, and the checks of sbx's own between them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Call { $(#[doc = $text] $name),+ }

        impl Call {
            const ALL: &'static [(Call, &'static str)] = &[$((Call::$name, $text)),+];
        }
    };
}

calls! {
    Capset = "capset", Chdir = "chdir", Chown = "fchownat", Clone = "clone",
    CloseRange = "close_range", Dup = "dup3", Fsconfig = "fsconfig", Fsmount = "fsmount",
    Fsopen = "fsopen", FuseOverlay = "wait for fuse-overlayfs", Getcwd = "getcwd", Ioctl = "ioctl", Keyctl = "keyctl", Landlock = "landlock_restrict_self", Ruleset = "landlock_create_ruleset",
    LandlockRule = "landlock_add_rule", Mkdir = "mkdirat", Mknod = "mknodat", MountSetattr = "mount_setattr",
    MoveMount = "move_mount", Open = "openat", Openat2 = "openat2", OpenTree = "open_tree", Pipe = "pipe2",
    Pivot = "pivot_root", Prctl = "prctl", Prlimit = "prlimit", ReadBack = "read back", Receive = "recvmsg",
    Affinity = "sched_setaffinity", Seccomp = "seccomp", Send = "sendmsg", Setgroups = "setgroups", Sethostname = "sethostname", Setns = "setns",
    Setpriority = "setpriority", Setresgid = "setresgid", Setresuid = "setresuid", Setsid = "setsid",
    Sigmask = "sigprocmask", Signalfd = "signalfd", Stat = "fstatat", Symlink = "symlinkat", Umount = "umount2",
    Unshare = "unshare", Write = "write", Terminal = "TIOCGPTPEER",
}

impl Call {
    /// The call's name in the manual.
    pub fn name(self) -> &'static str {
        Call::ALL.iter().find(|(call, _)| *call == self).map_or("?", |(_, name)| name)
    }

    fn from_number(number: i32) -> Option<Call> {
        Call::ALL.get(usize::try_from(number).ok()?).map(|(call, _)| *call)
    }
}

impl Message {
    fn encode(self) -> [u8; SIZE] {
        let fault = |f: Fault| (i32::from(f.step), f.call as i32, f.errno.0);
        let (kind, (a, b, c)) = match self {
            Message::Go => (1, (0, 0, 0)),
            Message::Start => (2, (0, 0, 0)),
            Message::Signal(number) => (3, (number, 0, 0)),
            Message::Forked(pid, lost) => (4, (pid, lost.0 as i32, 0)),
            Message::Skipped(f) => (5, fault(f)),
            Message::Failed(f) => (6, fault(f)),
            Message::Terminal => (7, (0, 0, 0)),
            Message::AtGate => (8, (0, 0, 0)),
            Message::NotExecuted(errno) => (9, (errno.0, 0, 0)),
            Message::Started(pid) => (10, (pid, 0, 0)),
            Message::Placed => (16, (0, 0, 0)),
            Message::Handles => (19, (0, 0, 0)),
            Message::Handle(number) => (20, (number, 0, 0)),
            Message::Proc => (17, (0, 0, 0)),
            Message::Store => (18, (0, 0, 0)),
            Message::Tree => (13, (0, 0, 0)),
            Message::Done(step) => (12, (i32::from(step), 0, 0)),
            Message::Fuse => (14, (0, 0, 0)),
            Message::UserNs => (15, (0, 0, 0)),
            Message::Listener => (21, (0, 0, 0)),
            Message::Unheard => (22, (0, 0, 0)),
            Message::Ended(Ended::Code(code), full) => (11, (0, code, full as i32)),
            Message::Ended(Ended::Signal(signal), full) => (11, (1, signal, full as i32)),
        };
        let mut bytes = [0; SIZE];
        for (place, word) in bytes.chunks_exact_mut(4).zip([kind, a, b, c]) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// A message of any other form is refused: it can only come from a broken or hostile peer.
    fn decode(bytes: &[u8]) -> Option<Message> {
        let mut words = bytes.chunks_exact(4).map(|word| i32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        let (kind, a, b, c) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let fault = || Some(Fault { step: u16::try_from(a).ok()?, call: Call::from_number(b)?, errno: Errno(c) });
        let full = if c == 0 { Fullness::Room } else { Fullness::Full };
        Some(match (kind, bytes.len() == SIZE) {
            (1, true) => Message::Go,
            (2, true) => Message::Start,
            (3, true) => Message::Signal(a),
            (4, true) => Message::Forked(a, Namespaces(u64::from(b as u32))),
            (5, true) => Message::Skipped(fault()?),
            (6, true) => Message::Failed(fault()?),
            (7, true) => Message::Terminal,
            (8, true) => Message::AtGate,
            (9, true) => Message::NotExecuted(Errno(a)),
            (10, true) => Message::Started(a),
            (16, true) => Message::Placed,
            (19, true) => Message::Handles,
            (20, true) => Message::Handle(a),
            (17, true) => Message::Proc,
            (18, true) => Message::Store,
            (13, true) => Message::Tree,
            (14, true) => Message::Fuse,
            (15, true) => Message::UserNs,
            (21, true) => Message::Listener,
            (22, true) => Message::Unheard,
            (12, true) => Message::Done(u16::try_from(a).ok()?),
            (11, true) if a == 0 => Message::Ended(Ended::Code(b), full),
            (11, true) => Message::Ended(Ended::Signal(b), full),
            _ => return None,
        })
    }
}

/// Sends one message.
pub fn tell(to: BorrowedFd<'_>, message: Message, carried: Option<BorrowedFd<'_>>) -> Result<()> {
    send(to, &message.encode(), carried)
}

/// How many milliseconds [`tell_init`] waits for room.
const ROOM: u64 = 10;

/// The same where room is hardly waited for: `EAGAIN`. An init that is stopped or frozen takes nothing, and who looks
/// after it has to go on.
pub fn tell_init(to: BorrowedFd<'_>, message: Message) -> Result<()> {
    match send_now(to, &message.encode()) {
        Err(EAGAIN) => {
            poll(&mut [Watch::write(to)], Some(ROOM))?;
            send_now(to, &message.encode())
        }
        other => other,
    }
}

/// Takes one message and what it carried; `None` is the other end's close.
///
/// # Errors
/// `EINVAL` for bytes that are no message.
pub fn hear(from: BorrowedFd<'_>, wait: Wait) -> Result<Option<(Message, Option<OwnedFd>)>> {
    let mut bytes = [0; SIZE];
    match receive(from, &mut bytes, wait)? {
        (0, _) => Ok(None),
        (length, carried) => Message::decode(&bytes[..length]).map(|m| Some((m, carried))).ok_or(EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_as_they_went_in() {
        let fault = Fault { step: 300, call: Call::Terminal, errno: Errno(13) };
        for message in [
            Message::Go,
            Message::Tree,
            Message::Placed,
            Message::Handles,
            Message::Handle(8),
            Message::Start,
            Message::Signal(15),
            Message::Forked(7, Namespaces::TIME | Namespaces::CGROUP),
            Message::Skipped(fault),
            Message::Failed(fault),
            Message::Terminal,
            Message::Fuse,
            Message::UserNs,
            Message::Proc,
            Message::Store,
            Message::Listener,
            Message::Unheard,
            Message::AtGate,
            Message::NotExecuted(Errno(2)),
            Message::Started(3),
            Message::Done(9),
            Message::Ended(Ended::Code(42), Fullness::Room),
            Message::Ended(Ended::Signal(9), Fullness::Full),
        ] {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
    }

    #[test]
    fn calls_are_numbered_by_their_place() {
        for (number, (call, _)) in Call::ALL.iter().enumerate() {
            assert_eq!(Call::from_number(number as i32), Some(*call));
            assert_eq!(*call as usize, number);
        }
    }

    proptest::proptest! {
        #[test]
        fn strange_bytes_are_refused_without_a_panic(bytes: Vec<u8>) {
            let decoded = Message::decode(&bytes);
            proptest::prop_assert!(bytes.len() == SIZE || decoded.is_none());
        }
    }
}
