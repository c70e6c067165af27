//! What one more program needs to get into a sandbox: descriptors of its namespaces, its root and its cgroup.
//!
//! Init cannot be looked into from outside, so it opens them itself, by a descriptor of its own /proc, when the
//! supervisor asks; that keeps them and gives copies to whoever may ask it (DESIGN 4.6).

use crate::sys::fs::fstat;
use crate::sys::process::Namespaces;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The namespaces in the order of entering: the user namespace first, for it gives the right to enter the others.
/// The pid namespace is entered by the next child only.
pub(super) const NAMESPACES: [(&CStr, Namespaces); 8] = [
    (c"ns/user", Namespaces::USER),
    (c"ns/mnt", Namespaces::MOUNT),
    (c"ns/pid", Namespaces::PID),
    (c"ns/ipc", Namespaces::IPC),
    (c"ns/uts", Namespaces::UTS),
    (c"ns/net", Namespaces::NET),
    (c"ns/cgroup", Namespaces::CGROUP),
    (c"ns/time", Namespaces::TIME),
];
/// Number of the user namespace's handle.
pub const USER: usize = 0;
/// Number of the root directory's handle.
pub const ROOT: usize = NAMESPACES.len();
/// Number of the cgroup's, which the supervisor has itself.
pub const CGROUP: usize = ROOT + 1;
/// Number of the text of what is kept of the plan.
pub const KEPT: usize = CGROUP + 1;
/// Number of the Landlock ruleset's, which the supervisor has itself too.
pub const RULESET: usize = KEPT + 1;
/// Number of the sandbox's own tmpfs, in which its layers lie: read by who asks what has changed, and no way in.
pub const STORE: usize = RULESET + 1;
/// How many there are.
pub const COUNT: usize = STORE + 1;

/// See the head of the file.
#[derive(Debug, Default)]
pub struct Handles([Option<OwnedFd>; COUNT]);

impl Handles {
    /// Takes one; of a number that is none nothing becomes.
    pub fn keep(&mut self, number: usize, fd: OwnedFd) {
        if let Some(place) = self.0.get_mut(number) {
            *place = Some(fd);
        }
    }

    /// One of them.
    pub fn fd(&self, number: usize) -> Option<BorrowedFd<'_>> {
        self.0.get(number)?.as_ref().map(AsFd::as_fd)
    }

    /// Takes one out.
    pub(super) fn take(&mut self, number: usize) -> Option<OwnedFd> {
        self.0.get_mut(number)?.take()
    }

    /// Opens those of a process from outside, as far as the kernel lets us.
    pub(super) fn open(&mut self, pid: i32) {
        use crate::sys::fs::{HERE, Open, openat};
        let Ok(dir) = std::ffi::CString::new(format!("/proc/{pid}")) else { return };
        let Ok(dir) = openat(HERE, &dir, Open::Directory) else { return };
        for (number, (name, _)) in NAMESPACES.iter().enumerate() {
            openat(dir.as_fd(), name, Open::Read).into_iter().for_each(|fd| self.keep(number, fd));
        }
        openat(dir.as_fd(), c"root", Open::Directory).into_iter().for_each(|fd| self.keep(ROOT, fd));
    }

    /// Whether init has handed over all by which one gets in.
    pub(super) fn are_there(&self) -> bool {
        (0..=ROOT).all(|number| self.fd(number).is_some())
    }

    /// Whether they lead away from the host at all: no sandbox shares these three.
    pub(super) fn lead_inside(&self) -> bool {
        let own = [Namespaces::USER, Namespaces::MOUNT, Namespaces::PID];
        let places = NAMESPACES.iter().enumerate().filter(|(_, (_, namespace))| own.contains(namespace));
        places.into_iter().all(|(number, _)| self.fd(number).is_some())
    }

    /// Lets go what is the caller's own namespace too: it is entered already, and may not be entered once more by who
    /// has no rights in it.
    pub(super) fn forget_shared(&mut self) {
        for (number, (name, _)) in NAMESPACES.iter().enumerate() {
            let own = [b"/proc/self/", name.to_bytes(), b"\0"].concat();
            let own = CStr::from_bytes_with_nul(&own).ok().and_then(|path| crate::sys::fs::stat(path).ok());
            let theirs = self.fd(number).and_then(|fd| fstat(fd).ok());
            if let (Some(own), Some(theirs)) = (own, theirs)
                && (own.dev, own.ino) == (theirs.dev, theirs.ino)
            {
                self.0[number] = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_own_namespaces_lead_nowhere() {
        let mut handles = Handles::default();
        handles.open(crate::sys::process::getpid());
        assert!(handles.are_there() && handles.lead_inside());
        handles.forget_shared();
        assert!(!handles.lead_inside());
        assert!(NAMESPACES.iter().enumerate().all(|(number, _)| handles.fd(number).is_none()));
    }
}
