//! Subordinate ids: which are a user's, and the two set-uid programs that write maps of them.

use super::{files, find_program, login_name};
use crate::error::{Error, Result};
use crate::spec::ids::{self, Extent};
use crate::sys::event::{Watch, poll};
use crate::sys::{Errno, cred, process};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long newuidmap may take before it is killed (L14); it needs a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The ranges that a file like /etc/subuid gives a user: first id and count.
pub(super) fn owned(file: &str, user: &str, uid: u32) -> Vec<(u32, u32)> {
    files::read_text(Path::new(file), 1 << 20).map(|text| ids::subordinate(&text, user, uid)).unwrap_or_default()
}

/// Maps every id that the caller may use into the user namespace of a process, where 0 is then the caller.
pub(crate) fn map_all(pid: i32) -> Result<()> {
    let caller = super::caller().unwrap_or_default();
    let uid = cred::geteuid();
    let user = login_name(uid, &caller, true);
    let uids = ids::full(uid, &owned("/etc/subuid", &user, uid));
    let gids = ids::full(cred::getegid(), &owned("/etc/subgid", &user, uid));
    let [users, groups] = ["newuidmap", "newgidmap"].map(|name| find_program(&caller, name));
    write(pid, (users.as_deref(), &uids), (groups.as_deref(), &gids))
}

/// Has the maps of a process written: by newuidmap and by newgidmap, each found or not, and what each is to map. They
/// run at once: each takes milliseconds, and neither needs the other.
///
/// # Errors
/// `Helper` where one fails.
pub(crate) fn write(
    pid: i32,
    (newuidmap, uids): (Option<&Path>, &[Extent]),
    (newgidmap, gids): (Option<&Path>, &[Extent]),
) -> Result<()> {
    let users = start("newuidmap", newuidmap, pid, uids)?;
    let groups = start("newgidmap", newgidmap, pid, gids);
    let users = finish("newuidmap", users);
    let groups = groups.and_then(|child| finish("newgidmap", child));
    users.and(groups)
}

fn start(name: &str, program: Option<&Path>, pid: i32, extents: &[Extent]) -> Result<Child> {
    let numbers = extents.iter().flat_map(|e| [e.inner, e.outer, e.count]).map(|n| n.to_string());
    let mut command = Command::new(program.unwrap_or(Path::new(name)));
    command.arg(pid.to_string()).args(numbers).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // Whatever the caller left open without close-on-exec is no business of a set-uid program.
    process::before_exec(&mut command, || process::close_on_exec(3, u32::MAX));
    command.spawn().map_err(|e| failed(name, Errno::from(e).to_string(), String::new()))
}

fn failed(program: &str, status: String, stderr: String) -> Error {
    Error::Helper { program: program.into(), status, stderr }
}

/// Waits for a helper, at most as long as it may take.
fn finish(name: &str, mut child: Child) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let pidfd = process::pidfd_open(child.id() as i32).map_err(|e| failed(name, e.to_string(), String::new()))?;
    let mut watch = [Watch::read(pidfd.as_fd())];
    while Instant::now() < deadline {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis() as u64;
        if poll(&mut watch, Some(left)).is_ok_and(|ready| ready > 0) {
            break;
        }
    }
    if !watch[0].ready() {
        let _ = child.kill();
        let _ = child.wait();
        return Err(failed(name, format!("no answer in {} s", PATIENCE.as_secs()), String::new()));
    }
    let output = child.wait_with_output().map_err(|e| failed(name, Errno::from(e).to_string(), String::new()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("").to_owned();
    Err(failed(name, output.status.to_string(), last))
}
