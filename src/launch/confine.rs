//! The child's stages `Identity` and `Confine`: who it becomes, and what it can no longer do.

#![deny(clippy::disallowed_types, clippy::disallowed_methods, clippy::disallowed_macros)]

use super::channel::{Call, Message, hear, tell};
use super::child::Child;
use super::init::listen;
use super::script::{Expected, Failure, In, Op};
use crate::sys::cred::CapSet;
use crate::sys::fs::{HERE, Open};
use crate::sys::landlock::{EXECUTE, REFER};
use crate::sys::socket::Wait;
use crate::sys::{self, NOT_TAKEN, cred, process};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// statfs(2)'s number of a proc file system.
const PROC: u64 = 0x9fa0;

/// What the stages learn of the process and the program's start has to know.
#[derive(Default)]
pub(super) struct Confined {
    /// Signals that are ignored, bit n-1 for signal n.
    pub ignored: u64,
    /// The sandbox's own /proc.
    pub proc: Option<OwnedFd>,
}

impl Confined {
    /// Runs one operation of the two stages.
    pub(super) fn step(&mut self, child: &mut Child<'_>, op: &Op) -> Result<(), Failure> {
        match op {
            Op::Keyring => cred::new_session_keyring().called(Call::Keyctl),
            Op::Bounding(dropped) => bound(dropped),
            Op::Groups(None) => Ok(()),
            Op::Groups(Some(groups)) => cred::setgroups(groups).called(Call::Setgroups),
            Op::Ids(None) => Ok(()),
            Op::Ids(Some((uid, gid))) => become_user(*uid, *gid),
            Op::Capset(held) => cred::capset(*held, *held, CapSet(0)).called(Call::Capset),
            Op::NoNewPrivs => process::no_new_privs().called(Call::Prctl),
            Op::Hide => hide(child),
            Op::Filter(filter) => sys::seccomp::load(filter).called(Call::Seccomp),
            Op::Listen(filter, plain) => {
                if !listen(child.channel, filter, None)? {
                    sys::seccomp::load(plain).called(Call::Seccomp)?;
                }
                Ok(())
            }
            Op::Verify(expected) => {
                let proc = sys::fs::openat(HERE, c"/proc", Open::Directory).called(Call::Open)?;
                self.ignored = verify(proc.as_fd(), expected)?;
                self.proc = Some(proc);
                Ok(())
            }
            Op::Affinity(cpus) => sys::sched::sched_setaffinity(cpus).called(Call::Affinity),
            Op::Rlimit(resource, limit) => cred::setrlimit(*resource, *limit).called(Call::Prlimit),
            Op::Landlock { ruled: false, files, scopes, .. } => scope(*scopes, *files),
            Op::Landlock { rules, executable, file_rights, scopes, files, .. } => {
                let ruleset = child.script.ruleset.as_ref().ok_or(Failure(Call::Ruleset, sys::ENOENT))?.as_fd();
                rules.iter().try_for_each(|(place, rights)| allow(ruleset, place, *rights, *file_rights))?;
                executable.iter().try_for_each(|place| match allow(ruleset, place, EXECUTE, *file_rights) {
                    // Nothing is granted by a place that is not there.
                    Err(Failure(_, sys::ENOENT)) => Ok(()),
                    other => other,
                })?;
                sys::landlock::restrict_self(ruleset).called(Call::Landlock)?;
                scope(*scopes, *files)
            }
            Op::Workdir(path) => workdir(path),
            Op::Gate => gate(child),
            _ => Err(Failure(Call::ReadBack, sys::ENOSYS)),
        }
    }
}

/// The kernel's own last capability may be lower than the newest that sbx knows: EINVAL ends the list.
fn bound(dropped: &[u32]) -> Result<(), Failure> {
    for capability in dropped {
        match cred::drop_bounding(*capability) {
            Ok(()) => {}
            Err(sys::EINVAL) => break,
            Err(errno) => return Err(Failure(Call::Prctl, errno)),
        }
    }
    Ok(())
}

/// The group first, while the capability for it is there.
fn become_user(uid: u32, gid: u32) -> Result<(), Failure> {
    cred::setresgid(gid).called(Call::Setresgid)?;
    cred::setresuid(uid).called(Call::Setresuid)
}

/// A change of ids cleared the death signal and may have set "dumpable" again (prctl(2)), so both come here. The
/// parent's identity cannot be asked for inside a new pid namespace, so its end of the channel is: a parent that
/// died before the signal was set would go unnoticed.
fn hide(child: &Child<'_>) -> Result<(), Failure> {
    process::die_with_parent().called(Call::Prctl)?;
    if sys::socket::hung_up(child.channel) {
        process::exit_now(super::child::FAILED);
    }
    if sys::sabotaged(c"dumpable") {
        return Ok(());
    }
    // Host paths and secrets may stand among the arguments, which everybody inside could read.
    let area = child.script.program.argv_area.as_ref().ok_or(Failure(Call::ReadBack, NOT_TAKEN))?;
    process::overwrite_argv(area, c"sbx-init");
    process::set_name(c"sbx-init").called(Call::Prctl)?;
    process::not_dumpable().called(Call::Prctl)
}

fn allow(ruleset: BorrowedFd<'_>, place: &CStr, rights: u64, file_rights: u64) -> Result<(), Failure> {
    let place = sys::fs::openat(HERE, place, Open::Path).called(Call::Open)?;
    match sys::landlock::allow(ruleset, place.as_fd(), rights) {
        // Rights that only directories have are refused on anything else.
        Err(sys::EINVAL) => sys::landlock::allow(ruleset, place.as_fd(), rights & file_rights),
        other => other,
    }
    .called(Call::LandlockRule)?;
    std::mem::forget(place);
    Ok(())
}

/// Keeps within the domain what leads out of it, by a second domain in the first.
fn scope(scopes: u64, files: bool) -> Result<(), Failure> {
    if scopes == 0 {
        return Ok(());
    }
    let ruleset = sys::landlock::create(if files { REFER } else { 0 }, 0, scopes).called(Call::Ruleset)?;
    if files {
        // The one right that every ruleset denies in a domain that holds files, whether it handles it or not
        // (landlock(7)): without this no file could be moved or linked from one directory to another.
        allow(ruleset.as_fd(), c"/", REFER, 0)?;
    }
    sys::landlock::restrict_self(ruleset.as_fd()).called(Call::Landlock)?;
    // Closed with all else before the program starts.
    std::mem::forget(ruleset);
    Ok(())
}

/// Enters the working directory and proves that it lies in the new root (S03, CVE-2024-21626).
fn workdir(path: &CStr) -> Result<(), Failure> {
    sys::fs::chdir(path).called(Call::Chdir)?;
    let mut buffer = [0; 4096];
    let length = sys::fs::getcwd(&mut buffer).called(Call::Getcwd)?;
    // A directory outside the root reads as "(unreachable)/...".
    if length > 0 && buffer[0] == b'/' { Ok(()) } else { Err(Failure(Call::Getcwd, NOT_TAKEN)) }
}

/// Says that all is done and waits for the word.
fn gate(child: &Child<'_>) -> Result<(), Failure> {
    tell(child.channel, Message::AtGate, None).called(Call::Send)?;
    loop {
        match hear(child.channel, Wait::Yes).called(Call::Receive)? {
            Some((Message::Start, _)) => return Ok(()),
            // In a scope without a namespace of its own nobody has waited for this.
            Some((Message::Placed, _)) => {}
            _ => process::exit_now(super::child::FAILED),
        }
    }
}

/// Reading /proc/self/status proves ids, groups, capabilities and no_new_privs at once. It also has the mask of ignored
/// signals, which is returned. One read mostly has it all; the line of the groups may be as long as 65536 of them.
fn verify(proc: BorrowedFd<'_>, expected: &Expected) -> Result<u64, Failure> {
    let mut buffer = [0; 2048];
    let file = sys::fs::openat(proc, c"self/status", Open::Read).called(Call::Open)?;
    // A link in ROOTFS can bring a mount of the user's onto /proc, and what it holds proves nothing (S14).
    if sys::mount::fstatfs(file.as_fd()).called(Call::Stat)?.kind != PROC {
        return Err(Failure(Call::ReadBack, NOT_TAKEN));
    }
    let mut proof = Proof::of(expected);
    while !proof.is_whole() {
        match sys::fs::read(file.as_fd(), &mut buffer).called(Call::ReadBack)? {
            0 => return Err(Failure(Call::ReadBack, NOT_TAKEN)),
            length => buffer[..length].iter().for_each(|byte| proof.take(*byte)),
        }
    }
    std::mem::forget(file);
    proof.ignored.ok_or(Failure(Call::ReadBack, NOT_TAKEN))
}

/// A text of /proc/PID/status, taken byte by byte and held against what is expected.
struct Proof<'e> {
    expected: &'e Expected,
    name: Word,
    word: Word,
    /// Which word of its line this is; `None` in the name of the line.
    place: Option<usize>,
    /// How many words were as expected.
    right: usize,
    /// Whether one was not.
    wrong: bool,
    /// The signals that are ignored.
    ignored: Option<u64>,
}

/// The start of a word; what is longer is none that is looked for.
#[derive(Default)]
struct Word {
    bytes: [u8; 20],
    length: usize,
}

impl Word {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }

    fn text(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl<'e> Proof<'e> {
    fn of(expected: &'e Expected) -> Proof<'e> {
        let (name, word) = (Word::default(), Word::default());
        Proof { expected, name, word, place: None, right: 0, wrong: false, ignored: None }
    }

    /// Whether every expected word was there. Four ids of each kind, five sets, no_new_privs, the filter, the groups,
    /// and the end of their line, which shows that there are no more.
    fn is_whole(&self) -> bool {
        let groups = self.expected.groups.as_ref().map_or(0, |groups| groups.len() + 1);
        !self.wrong && self.ignored.is_some() && self.right == 14 + usize::from(self.expected.filtered) + groups
    }

    fn take(&mut self, byte: u8) {
        match (byte, self.place) {
            (b':', None) => self.place = Some(0),
            (b'\n', _) => {
                self.end_word();
                if self.name.text() == b"Groups" && self.expected.groups.is_some() {
                    self.right += 1;
                }
                (self.name, self.place) = (Word::default(), None);
            }
            (b' ' | b'\t', Some(_)) => self.end_word(),
            (byte, Some(_)) => self.word.push(byte),
            (byte, None) => self.name.push(byte),
        }
    }

    fn end_word(&mut self) {
        let word = std::mem::take(&mut self.word);
        let (Some(place), false) = (self.place, word.length == 0) else { return };
        self.place = Some(place + 1);
        let (decimal, mask) = (number(word.text(), 10), number(word.text(), 16));
        let id = |id: u32| place < 4 && decimal == Some(u64::from(id));
        let right = match (self.name.text(), &self.expected.groups) {
            (b"Uid", _) => id(self.expected.uid),
            (b"Gid", _) => id(self.expected.gid),
            (b"Groups", Some(groups)) => groups.get(place).map(|gid| u64::from(*gid)) == decimal,
            (b"CapInh" | b"CapAmb", _) => mask == Some(0),
            (b"CapPrm" | b"CapEff", _) => mask == Some(self.expected.held.0),
            (b"CapBnd", _) => mask == Some(self.expected.bounding.0),
            (b"NoNewPrivs", _) => decimal == Some(1),
            // 2 is SECCOMP_MODE_FILTER.
            (b"Seccomp", _) if self.expected.filtered => decimal == Some(2),
            (b"SigIgn", _) => {
                self.ignored = mask;
                return;
            }
            _ => return,
        };
        match right {
            true => self.right += 1,
            false => self.wrong = true,
        }
    }
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    digits.iter().try_fold(0u64, |sum, &digit| {
        let value = (digit as char).to_digit(radix)?;
        sum.checked_mul(u64::from(radix))?.checked_add(u64::from(value))
    })
}

#[cfg(test)]
#[allow(clippy::disallowed_macros, clippy::disallowed_methods, clippy::disallowed_types)]
mod tests {
    use super::*;

    const STATUS: &[u8] =
        b"Name:\tsbx\nUid:\t0\t0\t0\t0\nGid:\t5\t5\t5\t5\nGroups:\t1 2 \nSigIgn:\t0000000000001000\nNoNewPrivs:\t1\n\
        CapInh:\t0000000000000000\nCapPrm:\t00000000000000c0\nCapEff:\t00000000000000c0\n\
        CapBnd:\t00000000000000c0\nCapAmb:\t0000000000000000\nSeccomp:\t2\n";

    fn status_is(status: &[u8], expected: &Expected) -> bool {
        let mut proof = Proof::of(expected);
        status.iter().for_each(|byte| proof.take(*byte));
        proof.is_whole()
    }

    #[test]
    fn each_field_of_the_status_counts() {
        let expected = |uid, gid, held| Expected {
            uid,
            gid,
            groups: None,
            held: CapSet(held),
            bounding: CapSet(0xc0),
            filtered: true,
        };
        assert!(status_is(STATUS, &expected(0, 5, 0xc0)));
        assert!(!status_is(STATUS, &expected(1, 5, 0xc0)));
        assert!(!status_is(STATUS, &expected(0, 0, 0xc0)));
        assert!(!status_is(STATUS, &expected(0, 5, 0x40)));
        assert!(!status_is(b"", &expected(0, 5, 0xc0)));
        let mut unfiltered = [0; STATUS.len()];
        unfiltered.copy_from_slice(STATUS);
        unfiltered[STATUS.len() - 2] = b'0';
        assert!(!status_is(&unfiltered, &expected(0, 5, 0xc0)));
        let grouped = |groups: &[u32]| Expected { groups: Some(groups.into()), ..expected(0, 5, 0xc0) };
        assert!(status_is(STATUS, &grouped(&[1, 2])));
        assert!(!status_is(STATUS, &grouped(&[1])) && !status_is(STATUS, &grouped(&[1, 2, 3])));
        let many: Vec<u32> = (0..65_536).map(|n| n * 65_537).collect();
        let line: String = many.iter().map(|gid| format!("{gid} ")).collect();
        let long = String::from_utf8_lossy(STATUS).replace("1 2 ", &line);
        assert!(status_is(long.as_bytes(), &grouped(&many)) && status_is(long.as_bytes(), &expected(0, 5, 0xc0)));
        assert!(!status_is(long.as_bytes(), &grouped(&many[1..])));
    }
}
