//! Trying something in a process made for it, with a deadline.
//!
//! One invariant: when a probe returns, its process has ended, and with it every namespace and mount that it
//! made, whether it answered, failed, was killed by a filter around us, or hung.

use crate::host::Power;
use crate::host::files::c_path;
use crate::sys::event::{SIGKILL, Watch, monotonic_ms, poll};
use crate::sys::fs::{HERE, Open, openat, pipe, read, write_all};
use crate::sys::process::{self, ChildOf, Ended, Forked, Namespaces, WaitFor, Which};
use crate::sys::{self, Errno, cred};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// How long one probe may take. The slowest, a network namespace, takes some 30 ms on a loaded machine.
const PATIENCE_MS: u64 = 2_000;
/// How long all of them may take together, so that a machine where everything hangs is told about soon.
const TOTAL_MS: u64 = 10_000;
/// How long a killed process may take to end; one that waits for a dead file server may not end at all.
const LAST_BREATH_MS: u64 = 500;

/// The ids that `launch` maps for real root; root itself is never mapped (DESIGN 4.10).
const ROOT_MAP: &str = "0 524288 65536\n";

/// A system call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its name, or what was being done.
    pub call: String,
    /// How it failed.
    pub errno: Errno,
}

/// What became of a probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it should.
    Works,
    /// The kernel, or something between us and the kernel, refused.
    Refused(Refusal),
    /// The process was ended by this signal: 31 is a seccomp filter around us.
    Killed(i32),
    /// No answer in time.
    Hung,
    /// Something that it needs does not work, or there was no time left.
    #[default]
    Untried,
}

impl Outcome {
    /// Whether it works.
    pub fn works(&self) -> bool {
        *self == Outcome::Works
    }

    /// The error number of a refusal.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Outcome::Refused(refusal) => Some(refusal.errno),
            _ => None,
        }
    }
}

/// What a probe's body returns.
pub(super) type Tried<T = ()> = Result<T, Refusal>;

/// Names the call that failed.
pub(super) trait By<T> {
    /// See the trait.
    fn by(self, call: &str) -> Tried<T>;
}

impl<T> By<T> for sys::Result<T> {
    fn by(self, call: &str) -> Tried<T> {
        self.map_err(|errno| Refusal { call: call.to_owned(), errno })
    }
}

/// Runs probes until their common time is over.
pub(super) struct Probes {
    until: u64,
    patience: u64,
    power: Power,
}

/// What came back from a probe's process.
enum Answer {
    Text(String),
    Refused(Refusal),
    Killed(i32),
    Hung,
    NoTime,
}

impl Probes {
    /// The time starts now.
    pub fn new(power: Power) -> Probes {
        Probes { until: monotonic_ms() + TOTAL_MS, patience: PATIENCE_MS, power }
    }

    /// Tries `body` in a process in these new namespaces; in a user namespace it is root, by maps as a run has them.
    pub fn run(&self, new: Namespaces, body: impl FnOnce() -> Tried) -> Outcome {
        let maps = |pid| if new.has(Namespaces::USER) { self.write_maps(pid) } else { Ok(()) };
        self.run_after(new, maps, body)
    }

    /// As [`Probes::run`]; `between` is what this process does when the new one exists and waits.
    pub fn run_after(
        &self,
        new: Namespaces,
        between: impl FnOnce(i32) -> Tried,
        body: impl FnOnce() -> Tried,
    ) -> Outcome {
        let become_root = self.power != Power::Ordinary && new.has(Namespaces::USER);
        let answer = self.fork(new, between, || {
            let tried = if become_root { become_inner_root().and_then(|()| body()) } else { body() };
            tried.err().map_or_else(String::new, |refusal| format!("{} {}", refusal.errno.0, refusal.call))
        });
        match answer {
            Answer::Text(text) => outcome_of(&text),
            Answer::Refused(refusal) => Outcome::Refused(refusal),
            Answer::Killed(signal) => Outcome::Killed(signal),
            Answer::Hung => Outcome::Hung,
            Answer::NoTime => Outcome::Untried,
        }
    }

    /// What `body` says, where it says it in time: for reads that may hang, as of a directory of a dead server.
    pub fn ask(&self, body: impl FnOnce() -> String) -> Option<String> {
        match self.fork(Namespaces::NONE, |_| Ok(()), body) {
            Answer::Text(text) => Some(text),
            _ => None,
        }
    }

    fn fork(&self, new: Namespaces, between: impl FnOnce(i32) -> Tried, body: impl FnOnce() -> String) -> Answer {
        let deadline = self.until.min(monotonic_ms() + self.patience);
        if monotonic_ms() >= self.until {
            return Answer::NoTime;
        }
        let (go, answer) = match (pipe(), pipe()) {
            (Ok(go), Ok(answer)) => (go, answer),
            (Err(errno), _) | (_, Err(errno)) => return Answer::Refused(Refusal { call: "pipe2".into(), errno }),
        };
        match process::clone3(new, ChildOf::Caller, None) {
            Err(errno) => Answer::Refused(Refusal { call: "clone3".into(), errno }),
            Ok(Forked::Child { .. }) => {
                drop((go.1, answer.0));
                child(go.0.as_fd(), answer.1.as_fd(), body)
            }
            Ok(Forked::Parent { pid, pidfd }) => {
                drop((go.0, answer.1));
                let tried = Trial { pidfd };
                match between(pid) {
                    Ok(()) => tried.hear(go.1, answer.0.as_fd(), deadline),
                    Err(refusal) => Answer::Refused(refusal),
                }
            }
        }
    }

    /// One id, the caller's, as a run without options has it; for real root the range.
    fn write_maps(&self, pid: i32) -> Tried {
        let put = |file: &str, text: &str| {
            let path = format!("/proc/{pid}/{file}");
            openat(HERE, &c_path(Path::new(&path)), Open::Write)
                .and_then(|file| write_all(file.as_fd(), text.as_bytes()))
                .by(&format!("write {file}"))
        };
        if self.power != Power::Ordinary {
            return put("uid_map", ROOT_MAP).and_then(|()| put("gid_map", ROOT_MAP));
        }
        // Without CAP_SETGID above, the kernel wants setgroups denied before it takes a gid_map (Linux 3.19).
        put("setgroups", "deny")?;
        put("uid_map", &format!("0 {} 1\n", cred::geteuid()))?;
        put("gid_map", &format!("0 {} 1\n", cred::getegid()))
    }
}

fn outcome_of(text: &str) -> Outcome {
    let parts = text.split_once(' ');
    let refusal = parts.and_then(|(errno, call)| Some((errno.parse().ok()?, call)));
    match refusal {
        Some((errno, call)) => Outcome::Refused(Refusal { call: call.to_owned(), errno: Errno(errno) }),
        None => Outcome::Works,
    }
}

/// All that the probe's process does. It may allocate: sbx has one thread, so no lock of another is held here.
fn child(go: BorrowedFd<'_>, answer: BorrowedFd<'_>, body: impl FnOnce() -> String) -> ! {
    // A process that a filter kills leaves no core file.
    let none = cred::Limit { soft: 0, hard: 0 };
    let _ = cred::resource("core").map(|core| cred::setrlimit(core, none));
    let told = process::die_with_parent().is_ok() && matches!(read(go, &mut [0]), Ok(1));
    if told {
        let _ = write_all(answer, body().as_bytes());
    }
    process::exit_now(0)
}

/// The process came as host uid 0, which its map does not hold; what it makes would have no owner.
fn become_inner_root() -> Tried {
    cred::setresgid(0).by("setresgid")?;
    cred::setresuid(0).by("setresuid")?;
    // The change of ids has cleared the death signal.
    process::die_with_parent().by("prctl")
}

/// A probe's process as its parent sees it; dropped, it ends.
struct Trial {
    pidfd: OwnedFd,
}

impl Trial {
    fn hear(self, go: OwnedFd, answer: BorrowedFd<'_>, deadline: u64) -> Answer {
        // A process that is gone already shows by the end of its answer.
        let _ = write_all(go.as_fd(), b".");
        let mut text = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let left = deadline.saturating_sub(monotonic_ms());
            match poll(&mut [Watch::read(answer)], Some(left)) {
                Ok(0) => return Answer::Hung,
                Err(sys::EINTR) => continue,
                Err(errno) => return Answer::Refused(Refusal { call: "ppoll".into(), errno }),
                Ok(_) => {}
            }
            match read(answer, &mut chunk) {
                Ok(0) => break,
                Ok(length) => text.extend_from_slice(&chunk[..length]),
                Err(errno) => return Answer::Refused(Refusal { call: "read".into(), errno }),
            }
        }
        match self.ended(LAST_BREATH_MS) {
            Some(Ended::Signal(signal)) => Answer::Killed(signal),
            _ => Answer::Text(String::from_utf8_lossy(&text).into_owned()),
        }
    }

    /// How it ended, if it does so within this time. Never waits longer.
    fn ended(&self, patience: u64) -> Option<Ended> {
        let mut watch = [Watch::read(self.pidfd.as_fd())];
        let _ = sys::retry(|| poll(&mut watch, Some(patience)));
        let ended = process::wait(Which::Pidfd(self.pidfd.as_fd()), WaitFor::Nothing);
        ended.ok().flatten().map(|(_, ended)| ended)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if poll(&mut [Watch::read(self.pidfd.as_fd())], Some(0)) != Ok(1) {
            let _ = process::pidfd_send_signal(self.pidfd.as_fd(), SIGKILL);
        }
        self.ended(LAST_BREATH_MS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_back() {
        assert_eq!(outcome_of(""), Outcome::Works);
        let refused = Outcome::Refused(Refusal { call: "write uid_map".into(), errno: Errno(1) });
        assert_eq!(outcome_of("1 write uid_map"), refused);
    }

    /// The test's process has threads, so the bodies here do without the heap.
    #[test]
    fn a_probe_that_hangs_or_dies_is_ended_and_told() {
        let probes = |until| Probes { until: monotonic_ms() + until, patience: 50, power: Power::Ordinary };
        let hang = || sys::retry(|| poll(&mut [], None)).map(drop).by("");
        assert_eq!(probes(10_000).run(Namespaces::NONE, hang), Outcome::Hung);
        assert_eq!(probes(0).run(Namespaces::NONE, hang), Outcome::Untried);
        assert_eq!(probes(10_000).ask(|| hang().map_or_else(|_| String::new(), |()| String::new())), None);
        let die = || process::kill(process::getpid(), SIGKILL).by("");
        assert_eq!(probes(10_000).run(Namespaces::NONE, die), Outcome::Killed(SIGKILL));
        assert_eq!(probes(10_000).run(Namespaces::NONE, || Ok(())), Outcome::Works);
    }
}
