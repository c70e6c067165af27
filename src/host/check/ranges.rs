//! Whether newuidmap and newgidmap write a map of this user's subordinate ids. They are run: whether a set-uid bit
//! or a file capability takes effect depends on no_new_privs, the mount, and the user namespace around us.

use super::facts::Facts;
use super::probe::{By, Outcome, Probes, Refusal, Tried};
use crate::sys::event::{SIGKILL, Watch, monotonic_ms, poll};
use crate::sys::process::{Namespaces, kill, pidfd_open};
use crate::sys::{EPERM, ETIMEDOUT, Errno, cred};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// How long a helper may take; it needs a few milliseconds.
const PATIENCE_MS: u64 = 2_000;

/// Maps one id of the caller's and one subordinate one, of each kind.
pub(super) fn ranges(probes: &Probes, facts: &Facts) -> Outcome {
    if facts.real_root {
        // Root writes such maps itself, and every other probe already did.
        return probes.run(Namespaces::USER, || Ok(()));
    }
    let found = |n: usize| facts.helpers.get(n).and_then(|helper| helper.path.as_deref());
    let (Some(users), Some(groups)) = (found(0), found(1)) else { return Outcome::Untried };
    let (Some(&(uid, _)), Some(&(gid, _))) = (facts.subuids.first(), facts.subgids.first()) else {
        return Outcome::Untried;
    };
    let maps = |pid| help(users, pid, cred::geteuid(), uid).and_then(|()| help(groups, pid, cred::getegid(), gid));
    probes.run_after(Namespaces::USER, maps, || {
        cred::setresgid(1).by("setresgid").and(cred::setresuid(1).by("setresuid"))
    })
}

fn help(program: &Path, pid: i32, own: u32, first: u32) -> Tried {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let failed = |what: &str, errno| Refusal { call: format!("{name}{what}"), errno };
    let numbers = [0, own, 1, 1, first, 1].map(|number| number.to_string());
    let mut command = Command::new(program);
    command.arg(pid.to_string()).args(numbers).env_clear().process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let spawned = command.spawn().map_err(|error| failed("", Errno(error.raw_os_error().unwrap_or(0))));
    let mut child = spawned?;
    let until = monotonic_ms() + PATIENCE_MS;
    let ended = loop {
        let left = until.saturating_sub(monotonic_ms());
        let watch = pidfd_open(child.id() as i32).map(|pidfd| poll(&mut [Watch::read(pidfd.as_fd())], Some(left)));
        match watch {
            Ok(Ok(0)) | Err(_) => break false,
            Ok(Ok(_)) => break true,
            Ok(Err(_)) if left == 0 => break false,
            Ok(Err(_)) => {}
        }
    };
    if !ended {
        // Its group: a script in the place of a helper may have started something.
        let _ = kill(-(child.id() as i32), SIGKILL);
        let _ = child.wait();
        return Err(failed(" gave no answer in 2 s", ETIMEDOUT));
    }
    let status = child.wait();
    if status.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let mut said = String::new();
    let _ = child.stderr.take().map(|pipe| pipe.take(4096).read_to_string(&mut said));
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    let words = last.strip_prefix(&format!("{name}: ")).unwrap_or(last);
    Err(failed(&format!(" said \"{}\"", words.trim()), EPERM))
}
