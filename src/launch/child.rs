//! The child between clone and exec: runs the Script's prepared operations, says which one failed, ends.
//!
//! One invariant: no heap, no lock, no standard I/O, no panic. The allocator aborts here.

#![deny(clippy::disallowed_types, clippy::disallowed_methods, clippy::disallowed_macros)]

use super::channel::{Call, Message, hear, tell};
use super::confine::Confined;
use super::handles::{Handles, NAMESPACES};
use super::init;
use super::kernel_fs::new_sysfs;
use super::layers::Trees;
use super::mounts::{self, Tree, new_fs};
use super::script::{Above, Failure, In, Op, Prepared, Script};
use crate::plan::Need;
use crate::spec::access::Degrade;
use crate::sys::fs::{HERE, Open};
use crate::sys::mount::Attr;
use crate::sys::process::{ChildOf, Ended, Forked, Namespaces, WaitFor, Which};
use crate::sys::sched::{self, CpuMask};
use crate::sys::socket::Wait;
use crate::sys::{self, process};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

/// The status of a child that could not do its part: the parent has the reason, or sees the end of file.
pub(super) const FAILED: i32 = 125;

/// How many descriptors there is room for before the table is shared with the helper: those of a few dozen mounts.
const DESCRIPTORS: i32 = 256;

/// Where the child stands: its end of the channel and what it has opened.
pub(super) struct Child<'a> {
    pub script: &'a Script,
    pub channel: BorrowedFd<'a>,
    pub tree: Tree,
    /// The slave of the sandbox's own terminal.
    pub terminal: Option<OwnedFd>,
    /// Number of the descriptor through which init and helper name to each other what they have opened in the table
    /// that both share; -1 where there is no helper yet.
    pub between: i32,
    host_proc: Option<OwnedFd>,
}

/// The entry: everything the new process does. `channel` is its end of the pair.
pub(super) fn run(script: &Script, channel: BorrowedFd<'_>, missing: Namespaces) -> ! {
    sys::alloc::forbid();
    match &script.above {
        None => begin(script, channel, Trees::default(), missing),
        Some(above) => between(script, above, channel),
    }
}

/// The entry of a process that joins a sandbox: waits until it stands in the cgroup, enters, and makes the program's
/// process, which alone can be seen inside. Neither can be looked into from there: the one has nothing of the host's in
/// its name and arguments and is non-dumpable before the other comes to be (S04, CVE-2016-9962). Nor can the other, which
/// is who the program will be from its beginning: a change of ids would make it dumpable where `fs.suid_dumpable` is 1.
pub(super) fn join(script: &Script, channel: BorrowedFd<'_>, handles: &Handles) -> ! {
    sys::alloc::forbid();
    let fail = |failure: Failure| -> ! {
        let _ = tell(channel, Message::Failed(failure.at(script.clone_step)), None);
        process::exit_now(FAILED)
    };
    if !matches!(hear(channel, Wait::Yes), Ok(Some((Message::Go, _)))) {
        process::exit_now(FAILED);
    }
    lower(script, channel);
    let mut confined = Confined::default();
    let entered = enter_all(script, handles).and_then(|()| {
        at_entry(script, channel).confine(&mut confined, &script.entered);
        alone()
    });
    if let Err(failure) = entered {
        fail(failure);
    }
    match process::clone3(Namespaces::NONE, ChildOf::CallersParent, None).called(Call::Clone) {
        Ok(Forked::Child { .. }) => {
            let mut child = at_entry(script, channel);
            // The parent hears of us from the other process, before we say anything.
            child.await_maps();
            child.all(&script.enter);
            child.all(&script.own);
            child.confine(&mut confined, &script.identity);
            child.confine(&mut confined, &script.confine);
            init::start(&mut child, confined)
        }
        Ok(Forked::Parent { pid, pidfd }) => {
            let _ = tell(channel, Message::Forked(pid, Namespaces::NONE), Some(pidfd.as_fd()));
            process::exit_now(0)
        }
        Err(failure) => fail(failure),
    }
}

/// Who joins a sandbox builds no root.
fn at_entry<'s>(script: &'s Script, channel: BorrowedFd<'s>) -> Child<'s> {
    let tree = Tree::new(script, Trees::default());
    Child { script, channel, tree, terminal: None, between: -1, host_proc: None }
}

/// Dies with its parent, and nobody looks into it. Both are undone by a change of ids (prctl(2)).
fn alone() -> Result<(), Failure> {
    process::die_with_parent().called(Call::Prctl)?;
    process::not_dumpable().called(Call::Prctl)
}

/// What of the first program's nice value, badness for the OOM killer and limit on processes this process has not
/// already. Of one that has more of it the kernel takes nothing away, and it is to have no less (EACCES, EPERM).
fn lower(script: &Script, channel: BorrowedFd<'_>) {
    let mut child = at_entry(script, channel);
    child.host_proc = sys::fs::openat(HERE, c"/proc", Open::Directory).ok();
    for prepared in &script.before {
        child.one(prepared, |child, op| {
            let done = match op {
                Op::Rlimit(resource, limit) => Some(sys::cred::setrlimit(*resource, *limit).called(Call::Prlimit)),
                op => child.enter(op),
            };
            match done {
                None | Some(Err(Failure(_, sys::EACCES | sys::EPERM))) => Ok(()),
                Some(other) => other,
            }
        });
    }
}

/// The user namespace first; the mount namespace brings its root and working directory (setns(2)).
fn enter_all(script: &Script, handles: &Handles) -> Result<(), Failure> {
    if let Some(area) = &script.program.argv_area {
        process::overwrite_argv(area, c"sbx-exec");
    }
    process::set_name(c"sbx-exec").called(Call::Prctl)?;
    alone()?;
    for (number, (_, namespace)) in NAMESPACES.iter().enumerate() {
        if let Some(fd) = handles.fd(number) {
            process::setns(fd, *namespace).called(Call::Setns)?;
        }
    }
    Ok(())
}

/// Clones; where the kernel has not all of these namespaces, without one or both of those that `--best-effort` lets go.
/// Returns which were left out.
pub(super) fn clone(
    script: &Script,
    new: Namespaces,
    child_of: ChildOf,
    into: Option<BorrowedFd<'_>>,
) -> sys::Result<(Forked, Namespaces)> {
    let both = Namespaces::TIME | Namespaces::CGROUP;
    let mut first = None;
    for lost in [Namespaces::NONE, Namespaces::TIME, Namespaces::CGROUP, both] {
        if lost != Namespaces::NONE && !(new.has(lost) && script.degrade == Degrade::BestEffort) {
            continue;
        }
        match process::clone3(new.without(lost), child_of, into) {
            Err(errno @ (sys::EINVAL | sys::ENOSPC)) => first = first.or(Some(errno)),
            other => return Ok((other?, lost)),
        }
    }
    Err(first.unwrap_or(sys::EINVAL))
}

/// Init's own way through the stages.
fn begin(script: &Script, channel: BorrowedFd<'_>, trees: Trees, missing: Namespaces) -> ! {
    let mut child =
        Child { script, channel, tree: Tree::new(script, trees), terminal: None, between: -1, host_proc: None };
    if script.awaits_maps {
        child.await_maps();
    }
    child.all(&script.enter);
    if missing.has(Namespaces::TIME)
        && let Err(failure) = new_time(None)
    {
        match script.degrade {
            Degrade::BestEffort => drop(tell(channel, Message::Skipped(failure.at(script.clone_step)), None)),
            Degrade::Never => child.give_up(failure),
        }
    }
    let confined = child.root_beside_own();
    init::start(&mut child, confined)
}

/// The process between parent and init where the map is one of ranges: it stands in a user namespace of its
/// own, whose RLIMIT_NPROC counts all processes of the one below it (Linux 5.14, ucount.c).
fn between(script: &Script, above: &Above, channel: BorrowedFd<'_>) -> ! {
    let fail = |step: u16, failure: Failure| -> ! {
        let _ = tell(channel, Message::Failed(failure.at(step)), None);
        process::exit_now(FAILED)
    };
    let mut trees = Trees::default();
    loop {
        match hear(channel, Wait::Yes) {
            Ok(Some((Message::Tree, Some(tree)))) => trees.keep(tree),
            Ok(Some((Message::Go, _))) => break,
            _ => process::exit_now(FAILED),
        }
    }
    if let Some((uid, gid)) = above.becomes
        && let Err(failure) = become_mapped(uid, gid)
    {
        fail(above.step, failure);
    }
    if process::die_with_parent().is_err() || sys::socket::hung_up(channel) {
        process::exit_now(FAILED);
    }
    let limit = sys::cred::Limit { soft: above.pids, hard: above.pids };
    let nproc = sys::cred::resource("nproc").unwrap_or(0);
    if !sys::sabotaged(c"pids-above")
        && let Err(failure) = sys::cred::setrlimit(nproc, limit).called(Call::Prlimit)
    {
        fail(above.step, failure);
    }
    match clone(script, script.new, ChildOf::CallersParent, None).called(Call::Clone) {
        Ok((Forked::Child { missing }, _)) => begin(script, channel, trees, missing),
        Ok((Forked::Parent { pid, pidfd }, lost)) => {
            if let Err(failure) = write_maps(pid, above) {
                let _ = process::pidfd_send_signal(pidfd.as_fd(), sys::event::SIGKILL);
                fail(above.step, failure);
            }
            let _ = tell(channel, Message::Forked(pid, lost), Some(pidfd.as_fd()));
            process::exit_now(0)
        }
        Err(failure) => fail(script.clone_step, failure),
    }
}

/// Writes init's maps from the namespace above it, whose ids it gets one for one.
fn write_maps(pid: i32, above: &Above) -> Result<(), Failure> {
    let mut name = [0; 24];
    let dir = decimal(&mut name, pid.unsigned_abs().into());
    let proc = sys::fs::openat(HERE, c"/proc", Open::Directory).called(Call::Open)?;
    let dir = sys::fs::openat(proc.as_fd(), dir, Open::Directory).called(Call::Open)?;
    for (file, map) in [(c"uid_map", &above.uid_map), (c"gid_map", &above.gid_map)] {
        let file = sys::fs::openat(dir.as_fd(), file, Open::Write).called(Call::Open)?;
        sys::fs::write_all(file.as_fd(), map.to_bytes()).called(Call::Write)?;
    }
    Ok(())
}

/// A number as a C string, in a buffer of the caller's.
pub(super) fn decimal(buffer: &mut [u8; 24], number: u64) -> &std::ffi::CStr {
    let mut at = buffer.len() - 1;
    let mut rest = number;
    buffer[at] = 0;
    while at > 0 {
        at -= 1;
        buffer[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    std::ffi::CStr::from_bytes_with_nul(&buffer[at..]).unwrap_or(c"0")
}

/// Whether a test build was told to leave this step out; see [`sys::sabotaged`]. What would read the step back goes
/// with it.
fn left_out(op: &Op) -> bool {
    let name = match op {
        Op::Mask { .. } => c"masks",
        Op::Conceal { .. } => c"hide",
        Op::Protect { .. } => c"protect",
        Op::ReadOnly(_) => c"readonly-proc",
        Op::NoUserNamespaces => c"userns-limit",
        Op::SealRoot(_) => c"seal-root",
        Op::Bounding(_) => c"bounding",
        Op::Groups(_) => c"groups",
        Op::Capset(_) => c"capabilities",
        Op::NoNewPrivs => c"no-new-privs",
        Op::Keyring => c"keyring",
        Op::Rlimit(..) => c"rlimits",
        Op::Affinity(_) => c"affinity",
        Op::Landlock { .. } => c"landlock",
        Op::Filter(_) | Op::Listen(..) => c"seccomp",
        Op::Verify(_) => {
            return [c"bounding", c"groups", c"capabilities", c"no-new-privs", c"seccomp"]
                .into_iter()
                .any(sys::sabotaged);
        }
        _ => return false,
    };
    sys::sabotaged(name)
}

impl Child<'_> {
    /// Nothing of the namespaces is used before the parent has written the maps, or knows of this process.
    fn await_maps(&self) {
        if !matches!(hear(self.channel, Wait::Yes), Ok(Some((Message::Go, _)))) {
            process::exit_now(FAILED);
        }
    }

    /// Runs a list of the operations that this file and `mounts` know.
    fn all(&mut self, list: &[Prepared]) {
        for prepared in list {
            self.one(prepared, |child, op| match child.enter(op) {
                Some(result) => result,
                None => mounts::step(child, op),
            });
        }
    }

    /// Runs one operation; a failure is told, and ends the child unless the step may be skipped.
    fn one(&mut self, prepared: &Prepared, act: impl FnOnce(&mut Self, &Op) -> Result<(), Failure>) {
        if left_out(&prepared.op) {
            return;
        }
        let Err(failure) = act(self, &prepared.op) else {
            // The filter's step is one of the stage Exec, and told with that.
            if self.script.followed && !matches!(prepared.op, Op::Filter(_) | Op::Listen(..)) {
                let _ = tell(self.channel, Message::Done(prepared.step), None);
            }
            return;
        };
        let fault = failure.at(prepared.step);
        if prepared.need == Need::Try {
            let _ = tell(self.channel, Message::Skipped(fault), None);
            return;
        }
        let _ = tell(self.channel, Message::Failed(fault), None);
        process::exit_now(FAILED)
    }

    /// The root is built by a process that shares our root, working directory and descriptors, while this one
    /// makes the network namespace, which takes as long, and becomes who the program will be (startup.md section 3).
    fn root_beside_own(&mut self) -> Confined {
        if self.script.host_proc {
            self.host_proc = sys::fs::openat(HERE, c"/proc", Open::Directory).ok();
        }
        let pipe = match sys::fs::pipe() {
            Ok(pipe) => pipe,
            Err(errno) => self.give_up(Failure(Call::Pipe, errno)),
        };
        self.between = pipe.1.as_raw_fd();
        sys::fs::make_room(self.channel, DESCRIPTORS);
        let free = sched::sched_getaffinity();
        let helper = match process::clone_shared_fs() {
            Ok(0) => {
                free.iter().for_each(|mask| sched::move_to(0, mask));
                self.tree.mounts_from = Some(pipe.0);
                self.all(&self.script.root);
                if let Some(store) = &self.tree.store {
                    let _ = sys::fs::write(sys::borrow(self.between), &store.as_raw_fd().to_ne_bytes());
                }
                process::exit_now(0)
            }
            Ok(helper) => helper,
            Err(errno) => self.give_up(Failure(Call::Clone, errno)),
        };
        self.part_from(helper);
        self.all(&self.script.own);
        let mut confined = Confined::default();
        self.confine(&mut confined, &self.script.identity);
        let ended = process::wait(Which::Pid(helper), WaitFor::End);
        if !matches!(ended, Ok(Some((_, Ended::Code(0))))) {
            // The helper has told why.
            process::exit_now(FAILED);
        }
        self.terminal = self.tree.adopt(pipe.0.as_fd(), self.script.program.terminals > 0);
        self.tree.store = self.tree.adopt(pipe.0.as_fd(), true);
        self.confine(&mut confined, &self.script.confine);
        // Closed with all else before the program starts.
        std::mem::forget(pipe);
        confined
    }

    /// Sends the helper to the processor that sbx has just left. The kernel does not take that for idle yet, would leave
    /// the helper on this one, and this process makes the network namespace without ever sleeping: 0.4 ms of a start.
    fn part_from(&self, helper: i32) {
        if let Some(left) = self.script.left.filter(|left| sched::current() != Some(*left)) {
            sched::move_to(helper, &CpuMask::of([left]));
        }
    }

    /// Runs a list of the operations that `confine` knows.
    fn confine(&mut self, confined: &mut Confined, list: &[Prepared]) {
        for prepared in list {
            self.one(prepared, |child, op| confined.step(child, op));
        }
    }

    /// A failure to make the processes and namespaces that the step of the clone stands for.
    fn give_up(&self, failure: Failure) -> ! {
        let _ = tell(self.channel, Message::Failed(failure.at(self.script.clone_step)), None);
        process::exit_now(FAILED)
    }

    /// The network namespace. The helper waits for a sysfs of it, so that comes before all else that is made in it.
    fn network(&self) -> Result<(), Failure> {
        process::unshare(Namespaces::NET).called(Call::Unshare)?;
        if self.script.sysfs {
            let number = match new_sysfs() {
                Ok(sysfs) => sysfs.into_raw_fd(),
                Err(failure) => -failure.1.0,
            };
            sys::fs::write_all(sys::borrow(self.between), &number.to_ne_bytes()).called(Call::Write)?;
        }
        sys::net::loopback_up().called(Call::Ioctl)
    }

    /// The namespace's root is where this process stands now. The helper waits for its mount, so it gets an answer in
    /// any case.
    fn cgroup_namespace(&self, awaited: bool, mount: Option<Attr>) -> Result<(), Failure> {
        if awaited && !matches!(hear(self.channel, Wait::Yes), Ok(Some((Message::Placed, _)))) {
            process::exit_now(FAILED);
        }
        let made = process::unshare(Namespaces::CGROUP).called(Call::Unshare).and_then(|()| self.at_cgroup_root());
        let Some(attr) = mount else { return made };
        let mounted = made.and_then(|()| new_fs(c"cgroup2", &[], attr));
        let number = match &mounted {
            Ok(mount) => mount.as_raw_fd(),
            Err(failure) => -failure.1.0,
        };
        sys::fs::write_all(sys::borrow(self.between), &number.to_ne_bytes()).called(Call::Write)?;
        mounted.map(std::mem::forget)
    }

    /// Reads back that the group of this process is the root of its namespace. Lines of v1 hierarchies may stand
    /// before that of v2 (cgroups(7)).
    fn at_cgroup_root(&self) -> Result<(), Failure> {
        let proc = self.host_proc.as_ref().ok_or(Failure(Call::Open, sys::ENOENT))?;
        let file = sys::fs::openat(proc.as_fd(), c"self/cgroup", Open::Read).called(Call::Open)?;
        let mut buffer = [0; 4096];
        let length = sys::fs::read(file.as_fd(), &mut buffer).called(Call::ReadBack)?;
        match buffer[..length].split(|byte| *byte == b'\n').any(|line| line == b"0::/") {
            true => Ok(()),
            false => Err(Failure(Call::ReadBack, sys::NOT_TAKEN)),
        }
    }

    /// The operations of the stage `Enter`.
    fn enter(&mut self, op: &Op) -> Option<Result<(), Failure>> {
        Some(match op {
            Op::OwnMaps(uids, gids) => own_maps(uids, gids),
            Op::Session => session(),
            Op::TimeOffset(text) => new_time(Some(text)),
            Op::Nice(nice) => process::setpriority(*nice).called(Call::Setpriority),
            Op::WriteProc(path, value) => self.write_proc(path, value),
            Op::Network => self.network(),
            Op::CgroupNamespace { awaited, mount } => self.cgroup_namespace(*awaited, *mount),
            Op::HostName(name) => sys::net::sethostname(name).called(Call::Sethostname),
            _ => return None,
        })
    }

    /// Paths are taken from a held descriptor, for the helper may pivot at any moment.
    fn write_proc(&self, path: &std::ffi::CStr, value: &[u8]) -> Result<(), Failure> {
        let proc = self.host_proc.as_ref().ok_or(Failure(Call::Open, sys::ENOENT))?;
        let file = sys::fs::openat(proc.as_fd(), path, Open::Write).called(Call::Open)?;
        sys::fs::write_all(file.as_fd(), value).called(Call::Write)
    }
}

fn session() -> Result<(), Failure> {
    process::setsid().called(Call::Setsid)?;
    process::umask(0);
    process::die_with_parent().called(Call::Prctl)
}

/// An owner that is not mapped, as real root is in its sandboxes, can make neither a namespace (EPERM) nor a file
/// (EOVERFLOW). The change of ids took "dumpable" away, and with it the right to write the maps of init, which
/// inherits it; init gives it up for good in `Identity`.
fn become_mapped(uid: u32, gid: u32) -> Result<(), Failure> {
    sys::cred::setgroups(&[]).called(Call::Setgroups)?;
    sys::cred::setresgid(gid).called(Call::Setresgid)?;
    sys::cred::setresuid(uid).called(Call::Setresuid)?;
    process::dumpable().called(Call::Prctl)
}

/// A process may map one id, its own, once it has given up setgroups (user_namespaces(7), Linux 3.19).
fn own_maps(uids: &std::ffi::CStr, gids: &std::ffi::CStr) -> Result<(), Failure> {
    for (file, text) in
        [(c"/proc/self/setgroups", c"deny"), (c"/proc/self/uid_map", uids), (c"/proc/self/gid_map", gids)]
    {
        let file = sys::fs::openat(HERE, file, Open::Write).called(Call::Open)?;
        sys::fs::write_all(file.as_fd(), text.to_bytes()).called(Call::Write)?;
        // Closed with all else before the program starts.
        std::mem::forget(file);
    }
    Ok(())
}

/// A time namespace by unshare: offsets can be written only before the first process enters it. This process
/// enters it by itself, so that a child made with shared memory is in it too (before Linux 6.1 exec would not move
/// it).
fn new_time(offsets: Option<&std::ffi::CStr>) -> Result<(), Failure> {
    process::unshare(Namespaces::TIME).called(Call::Unshare)?;
    if let Some(offsets) = offsets {
        sys::fs::write_file(c"/proc/self/timens_offsets", offsets.to_bytes()).called(Call::Write)?;
    }
    let children = sys::fs::openat(HERE, c"/proc/self/ns/time_for_children", Open::Read).called(Call::Open)?;
    process::setns(children.as_fd(), Namespaces::TIME).called(Call::Setns)
}
