//! The child's stages `Identity` and `Confine`: who it becomes, and what it can no longer do.

#![deny(clippy::disallowed_types, clippy::disallowed_methods, clippy::disallowed_macros)]

use super::channel::{Call, Message, hear, tell};
use super::child::Child;
use super::script::{Expected, Failure, In, Op};
use crate::sys::cred::CapSet;
use crate::sys::fs::{HERE, Open};
use crate::sys::socket::Wait;
use crate::sys::{self, NOT_TAKEN, cred, process};
use std::ffi::CStr;
use std::os::fd::AsFd;

/// statfs(2)'s number of a proc file system.
const PROC: u64 = 0x9fa0;

/// What the stages learn of the process and the program's start has to know.
#[derive(Default)]
pub(super) struct Confined {
    /// Signals that are ignored, bit n-1 for signal n.
    pub ignored: u64,
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
            Op::Verify(expected) => {
                self.ignored = verify(expected)?;
                Ok(())
            }
            Op::Rlimit(resource, limit) => cred::setrlimit(*resource, *limit).called(Call::Prlimit),
            Op::Landlock { ruleset, rules, file_rights } => {
                rules.iter().try_for_each(|(place, rights)| allow(ruleset.as_fd(), place, *rights, *file_rights))?;
                sys::landlock::restrict_self(ruleset.as_fd()).called(Call::Landlock)
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

fn allow(ruleset: std::os::fd::BorrowedFd<'_>, place: &CStr, rights: u64, file_rights: u64) -> Result<(), Failure> {
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
    match hear(child.channel, Wait::Yes).called(Call::Receive)? {
        Some((Message::Start, _)) => Ok(()),
        _ => process::exit_now(super::child::FAILED),
    }
}

/// One read of /proc/self/status proves ids, groups, capabilities and no_new_privs at once. It also has the mask
/// of ignored signals, which is returned.
fn verify(expected: &Expected) -> Result<u64, Failure> {
    let mut buffer = [0; 8192];
    let file = sys::fs::openat(HERE, c"/proc/self/status", Open::Read).called(Call::Open)?;
    // A link in ROOTFS can bring a mount of the user's onto /proc, and what it holds proves nothing (S14).
    if sys::mount::fstatfs(file.as_fd()).called(Call::Stat)?.kind != PROC {
        return Err(Failure(Call::ReadBack, NOT_TAKEN));
    }
    let length = sys::fs::read(file.as_fd(), &mut buffer).called(Call::ReadBack)?;
    std::mem::forget(file);
    let status = &buffer[..length];
    match hex(status, b"SigIgn") {
        Some(ignored) if status_is(status, expected) => Ok(ignored),
        _ => Err(Failure(Call::ReadBack, NOT_TAKEN)),
    }
}

/// The words of one line of a status text.
fn words<'s>(status: &'s [u8], name: &'static [u8]) -> Option<impl Iterator<Item = &'s [u8]>> {
    let line = status.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(name)?.strip_prefix(b":"))?;
    Some(line.split(|b| b.is_ascii_whitespace()).filter(|word| !word.is_empty()))
}

/// The mask that a line of a status text holds.
fn hex(status: &[u8], name: &'static [u8]) -> Option<u64> {
    number(words(status, name)?.next()?, 16)
}

/// Whether a text of /proc/PID/status shows what is expected; a missing line is a "no".
fn status_is(status: &[u8], expected: &Expected) -> bool {
    let words = |name: &'static [u8]| words(status, name);
    let all = |name: &'static [u8], id: u32| {
        words(name)
            .is_some_and(|mut w| w.by_ref().take(4).filter(|w| number(w, 10) == Some(u64::from(id))).count() == 4)
    };
    let mask = |name: &'static [u8], set: CapSet| hex(status, name) == Some(set.0);
    let groups = match &expected.groups {
        None => true,
        Some(groups) => words(b"Groups")
            .is_some_and(|found| groups.iter().map(|&gid| Some(u64::from(gid))).eq(found.map(|word| number(word, 10)))),
    };
    groups
        && all(b"Uid", expected.uid)
        && all(b"Gid", expected.gid)
        && mask(b"CapInh", CapSet(0))
        && mask(b"CapPrm", expected.held)
        && mask(b"CapEff", expected.held)
        && mask(b"CapBnd", expected.bounding)
        && mask(b"CapAmb", CapSet(0))
        && words(b"NoNewPrivs").and_then(|mut w| w.next()) == Some(b"1")
        // 2 is SECCOMP_MODE_FILTER.
        && (!expected.filtered || words(b"Seccomp").and_then(|mut w| w.next()) == Some(b"2"))
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    digits.iter().try_fold(0u64, |sum, &digit| {
        let value = (digit as char).to_digit(radix)?;
        sum.checked_mul(u64::from(radix))?.checked_add(u64::from(value))
    })
}

#[cfg(test)]
#[allow(clippy::disallowed_macros)]
mod tests {
    use super::*;

    const STATUS: &[u8] = b"Name:\tsbx\nUid:\t0\t0\t0\t0\nGid:\t5\t5\t5\t5\nGroups:\t1 2 \nNoNewPrivs:\t1\n\
        CapInh:\t0000000000000000\nCapPrm:\t00000000000000c0\nCapEff:\t00000000000000c0\n\
        CapBnd:\t00000000000000c0\nCapAmb:\t0000000000000000\nSeccomp:\t2\n";

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
    }
}
