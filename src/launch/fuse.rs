//! The root by fuse-overlayfs, the parent's part: when it takes the kernel's place, how it is started, how it ends.
//!
//! It runs outside the sandbox's pid namespace, where no program inside sees it, in the sandbox's user namespace,
//! whose ids it has to write, and in a mount namespace of its own: a copy of the host's, where the program and its
//! libraries are found, with the layers on top. One mount is shared with the sandbox's mount namespace; the pivot
//! takes it away on both sides, and then only the sandbox holds the file system, whose end ends the program.

use super::channel::Fault;
use crate::error::{Error, Result};
use crate::host::{self, Host, Power};
use crate::plan::{Layers, Plan, Step, UpperAt};
use crate::spec::{Overlay, ids};
use crate::sys::event::{self, Watch};
use crate::sys::fs::HERE;
use crate::sys::process::{self, Namespaces};
use crate::sys::{self, ENOTCONN, ESRCH, cred, fs, mount, tty};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the program may take to end by itself, and then when it is asked to.
const PATIENCE: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(1)];

/// Where the layers may be mounted in the program's mount namespace: any directory that it does not need. The place
/// has to have a path there, for the program makes the names of its layers absolute.
const PLACES: [&CStr; 4] = [c"/mnt", c"/srv", c"/media", c"/tmp"];

/// The same plan by fuse-overlayfs, and a word about it, where `--overlay auto` lets it take the place of the kernel's
/// overlay and that is what was refused.
///
/// # Errors
/// Why neither can be had. The error itself where it has another cause.
pub(super) fn instead(plan: &Plan, host: &Host, refused: Error) -> Result<(Plan, String)> {
    let place = plan.number(|step| matches!(step, Step::Overlay(layers) if layers.by == Overlay::Auto));
    let (number, call, errno) = match &refused {
        Error::Step { place, call, errno } => (place.number, *call, *errno),
        _ => return Err(refused),
    };
    if number != place || !host::fuse::replaces(call, errno) {
        return Err(refused);
    }
    let mut plan = plan.clone();
    let Some(Step::Overlay(layers)) = plan.steps.get_mut(number.wrapping_sub(1)).map(|planned| &mut planned.step)
    else {
        return Err(refused);
    };
    match host::fuse::look(&host.caller, host.power) {
        Ok(_) => {
            layers.by = Overlay::Fuse;
            let note =
                format!("the kernel refuses the overlay of / ({call}: {errno}): slower fuse-overlayfs serves it");
            Ok((plan, note))
        }
        Err(Error::Unsupported { why, hint, .. }) => Err(neither(layers, &format!("{call}: {errno}"), &why, hint)),
        Err(_) => Err(refused),
    }
}

/// Both ways are closed.
fn neither(layers: &Layers, kernels: &str, why: &str, hint: Option<String>) -> Error {
    if let (UpperAt::Kept(at) | UpperAt::Dropped(at), true) = (&layers.upper, kernels.starts_with("fsconfig")) {
        let why = format!(
            "its file system cannot hold an upper layer ({kernels}), and fuse-overlayfs, which could do without: {why}"
        );
        return Error::spec("--upper", at, why).or_try("a directory on ext4, xfs, btrfs or tmpfs");
    }
    let why = format!("the kernel refuses it ({kernels}), and for fuse-overlayfs in its place: {why}");
    Error::Unsupported { feature: "the overlay of /".into(), why, hint }
}

/// The program, before and while it runs.
pub(super) struct Fuse {
    program: PathBuf,
    options: String,
    /// Whether user 0 is mapped, who the program then is.
    as_root: bool,
    /// Whether the caller is real root, whose groups are not for a sandbox.
    drop_groups: bool,
    user: Option<OwnedFd>,
    running: Option<(Child, OwnedFd)>,
}

impl Fuse {
    /// What the plan needs of it; `None` where the kernel does it all.
    pub(super) fn of(plan: &Plan, host: &Host) -> Result<Option<Fuse>> {
        let layers = plan.steps.iter().find_map(|planned| match &planned.step {
            Step::Overlay(layers) if layers.by == Overlay::Fuse => Some(layers),
            _ => None,
        });
        let Some(layers) = layers else { return Ok(None) };
        let program = host.fuse.clone().unwrap_or_else(|| host::fuse::look(&host.caller, host.power))?;
        let lower: Vec<String> = (0..layers.lower.len()).map(|number| format!("layers/{number}")).collect();
        let below = if layers.upper == UpperAt::Store { "" } else { "disk/" };
        // Without allow_other only the program's own user could enter.
        let options = format!("lowerdir={},upperdir={below}upper,workdir={below}work,allow_other", lower.join(":"));
        let who = &plan.identities;
        let as_root = ids::maps(&who.uids, 0) && ids::maps(&who.gids, 0);
        let drop_groups = host.power != Power::Ordinary;
        Ok(Some(Fuse { program, options, as_root, drop_groups, user: None, running: None }))
    }

    /// The sandbox's user namespace.
    pub(super) fn runs_in(&mut self, user: Option<OwnedFd>) {
        self.user = user;
    }

    /// Starts it on the layers.
    pub(super) fn start(&mut self, layers: Option<OwnedFd>) -> Result<()> {
        let (Some(layers), Some(user)) = (layers, self.user.take()) else {
            return Err(Error::Bug("fuse-overlayfs was asked for without its layers".into()));
        };
        let fail = |why: String| Error::Helper { program: "fuse-overlayfs".into(), status: why, stderr: String::new() };
        let (errors, theirs) = fs::pipe().map_err(|errno| fail(errno.to_string()))?;
        // Nobody reads while the program runs: what is too much is lost, and holds nobody up.
        for end in [errors.as_fd(), theirs.as_fd()] {
            tty::set_nonblocking(end).map_err(|errno| fail(errno.to_string()))?;
        }
        let mut command = Command::new(&self.program);
        command
            .args(["-f", "-o", &self.options, "shared/root"])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(theirs);
        let program = self.program.canonicalize().unwrap_or_default();
        let needless = |place: &&&CStr| !program.starts_with(place.to_str().unwrap_or("/"));
        let surroundings = Surroundings {
            user: user.as_raw_fd(),
            layers: layers.as_raw_fd(),
            place: PLACES.iter().filter(needless).copied().collect(),
            as_root: self.as_root,
            drop_groups: self.drop_groups,
            parent: process::getpid(),
        };
        process::before_exec(&mut command, move || surroundings.enter());
        let child = command.spawn().map_err(|e| fail(format!("cannot be started: {e}")))?;
        self.running = Some((child, errors));
        Ok(())
    }

    /// Why it has ended, where it has.
    pub(super) fn ended(&mut self) -> Option<Error> {
        let (child, errors) = self.running.as_mut()?;
        let status = child.try_wait().ok().flatten()?;
        let mut text = [0; 4096];
        let length = fs::read(errors.as_fd(), &mut text).unwrap_or(0);
        let text = String::from_utf8_lossy(&text[..length]);
        // It says so at every start of a mount option that it gives itself.
        let says = |line: &&str| !line.trim().is_empty() && !line.starts_with("unknown argument ignored");
        let stderr = text.lines().rfind(says).unwrap_or("").to_owned();
        Some(Error::Helper { program: "fuse-overlayfs".into(), status: status.to_string(), stderr })
    }

    /// Why a step failed, where it did since the program is gone. Its mount is cut off before it can be waited for.
    pub(super) fn explains(&mut self, fault: &Fault) -> Option<Error> {
        if fault.errno == ENOTCONN {
            self.wait(PATIENCE[1]);
        }
        self.ended()
    }

    /// Waits for the end that the end of the sandbox brings about.
    pub(super) fn finish(mut self) {
        if self.wait(PATIENCE[0]) {
            return;
        }
        if let Some((child, _)) = &self.running {
            // Not reaped yet, so this is no other process.
            let _ = process::kill(child.id() as i32, event::SIGTERM);
        }
        self.wait(PATIENCE[1]);
    }

    /// Whether it has ended within this time.
    fn wait(&mut self, patience: Duration) -> bool {
        let Some((child, _)) = &mut self.running else { return true };
        let Ok(pidfd) = process::pidfd_open(child.id() as i32) else { return false };
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut watch = [Watch::read(pidfd.as_fd())];
            if event::poll(&mut watch, Some(left.as_millis() as u64)).is_ok_and(|ready| ready > 0) {
                return true;
            }
            if left.is_zero() {
                return false;
            }
        }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Where the program runs. Used between fork and exec: nothing is allocated.
struct Surroundings {
    user: i32,
    layers: i32,
    place: Vec<&'static CStr>,
    as_root: bool,
    drop_groups: bool,
    parent: i32,
}

impl Surroundings {
    fn enter(&self) -> sys::Result<()> {
        let layers = sys::borrow(self.layers);
        process::setsid()?;
        // What sbx has blocked would be blocked here too, the TERM that is to end it first of all.
        event::unblock_all()?;
        process::setns(sys::borrow(self.user), Namespaces::USER)?;
        if self.drop_groups {
            cred::setgroups(&[])?;
        }
        if self.as_root {
            cred::setresgid(0)?;
            cred::setresuid(0)?;
        }
        process::unshare(Namespaces::MOUNT)?;
        let attached = self.place.iter().any(|place| mount::move_mount_to(layers, HERE, place).is_ok());
        if !attached {
            return Err(sys::ENOENT);
        }
        fs::fchdir(layers)?;
        // Another user than 0 would lose them at the exec.
        cred::keep_over_exec(cred::effective()?)?;
        process::close_on_exec(3, u32::MAX)?;
        // Changes of ids clear it, so it comes last; and a parent that was gone before sends nothing.
        process::die_with_parent()?;
        if process::getppid() == self.parent { Ok(()) } else { Err(ESRCH) }
    }
}
