//! pid 1: starts the program, passes signals on, reaps, says how the program ended, and ends all.
//!
//! Same rules as the child's: no heap, no lock, no panic.

#![deny(clippy::disallowed_types, clippy::disallowed_methods, clippy::disallowed_macros)]

use super::channel::{Call, Fault, Fullness, Message, hear, tell};
use super::child::{Child, FAILED};
use super::confine::Confined;
use super::handles::{NAMESPACES, ROOT, STORE};
use super::monitor::SETTLED;
use super::script::{Failure, In, Program};
use crate::sys::event::{self, SIGCHLD, Watch};
use crate::sys::fs::Open;
use crate::sys::process::{ChildOf, Ended, Forked, Namespaces, WaitFor, Which};
use crate::sys::seccomp::Insn;
use crate::sys::socket::Wait;
use crate::sys::{self, Errno, process};
use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Room for the few calls that the program makes on our memory before its exec.
const STACK: usize = 64 << 10;
/// Not found and not executable, as the shells have it.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// What the program's process needs between clone and exec, and where it says why it could not.
struct Launch<'a> {
    program: &'a Program,
    channel: BorrowedFd<'a>,
    terminal: Option<c_int>,
    /// Signals to be set to their default action.
    ignored: u64,
    fault: Option<Fault>,
    not_executed: Option<Errno>,
}

/// The last stage: the program is executed; init stays to serve it.
pub(super) fn start(child: &mut Child<'_>, confined: Confined) -> ! {
    let program = &child.script.program;
    let terminal = child.terminal.as_ref().map(AsRawFd::as_raw_fd);
    let ignored = confined.ignored;
    let channel = child.channel;
    let mut launch = Launch { program, channel, terminal, ignored, fault: None, not_executed: None };
    if program.orphaned {
        orphan(child.channel, &mut launch)
    }
    if program.is_init {
        let errno = execute(&mut launch);
        fail(child.channel, launch.fault, errno)
    }
    let signals = match signals() {
        Ok(signals) => signals,
        Err(failure) => fail(child.channel, Some(failure.at(program.step)), None),
    };
    match process::clone_vfork(STACK, enter, &mut launch).called(Call::Clone) {
        Ok(_) if launch.fault.is_some() || launch.not_executed.is_some() => {
            fail(child.channel, launch.fault, launch.not_executed)
        }
        Ok(pid) => serve(child, pid, signals, confined),
        Err(failure) => fail(child.channel, Some(failure.at(program.step)), None),
    }
}

/// Of `exec --detach`: makes the program's process and ends when that runs, so that the sandbox's init inherits it, and
/// takes its end: a parent outside would leave it to the init of the machine (kernel/exit.c, `find_new_reaper`).
fn orphan(channel: BorrowedFd<'_>, launch: &mut Launch<'_>) -> ! {
    let program = launch.program;
    let made = || {
        let (runs, fails) = sys::fs::pipe().called(Call::Pipe)?;
        let signals = signals()?;
        let forked = process::clone3(Namespaces::NONE, ChildOf::Caller, None).called(Call::Clone)?;
        Ok((runs, fails, signals, forked))
    };
    let (runs, fails, signals, forked) = match made() {
        Ok(made) => made,
        Err(failure) => fail(channel, Some(Failure::at(failure, program.step)), None),
    };
    match forked {
        Forked::Child { .. } => {
            let errno = execute(launch);
            let _ = sys::fs::write(fails.as_fd(), b".");
            fail(channel, launch.fault, errno)
        }
        Forked::Parent { pid, pidfd } => {
            drop(fails);
            await_exec(&runs, &signals, &pidfd);
            match sys::fs::read(runs.as_fd(), &mut [0]) {
                // The end of file: the exec has closed the other end.
                Ok(0) => {}
                _ => process::exit_now(match process::wait(Which::Pid(pid), WaitFor::End) {
                    Ok(Some((_, Ended::Code(code)))) => code,
                    _ => FAILED,
                }),
            }
            let shown = program.want_pidfd.then_some(pidfd.as_fd());
            if tell(channel, Message::Started(pid), shown).is_ok() && shown.is_some() {
                await_word(channel);
            }
            process::exit_now(0)
        }
    }
}

/// Waits until the program runs or cannot. Who runs inside may stop its process before that: then this one stops too, which
/// its own parent sees.
fn await_exec(runs: &OwnedFd, signals: &OwnedFd, pidfd: &OwnedFd) {
    loop {
        let mut watches = [Watch::read(runs.as_fd()), Watch::read(signals.as_fd())];
        let _ = event::poll(&mut watches, None);
        if watches[0].ready() {
            return;
        }
        let _ = event::next_signal(signals.as_fd());
        if process::is_stopped(pidfd.as_fd()) {
            let _ = process::pidfd_send_signal(pidfd.as_fd(), event::SIGKILL);
            let _ = event::raise(event::SIGSTOP);
        }
    }
}

/// Says why the program does not run, and ends.
fn fail(channel: BorrowedFd<'_>, fault: Option<Fault>, errno: Option<Errno>) -> ! {
    let message = match (fault, errno) {
        (Some(fault), _) => Message::Failed(fault),
        (None, Some(errno)) => Message::NotExecuted(errno),
        (None, None) => process::exit_now(FAILED),
    };
    let _ = tell(channel, message, None);
    // Where the filter lets nothing be said, the status still tells the two apart.
    process::exit_now(match errno {
        Some(sys::ENOENT) => NOT_FOUND,
        Some(_) => NOT_EXECUTABLE,
        None => FAILED,
    })
}

fn signals() -> Result<OwnedFd, Failure> {
    // The parent has blocked it, with all that it takes from a descriptor, and the mask is inherited.
    event::signalfd(&[SIGCHLD]).called(Call::Signalfd)
}

/// The program's process starts here, on init's memory and a stack of its own, while init stands still.
fn enter(launch: &mut Launch<'_>) -> c_int {
    launch.not_executed = execute(launch);
    FAILED
}

/// The way to the exec: session and terminal, descriptors, signals, umask, limits, then the filter and nothing after
/// it but the exec itself. Returns only when that failed, with its errno unless `fault` says more.
fn execute(launch: &mut Launch<'_>) -> Option<Errno> {
    if let Err(failure) = ready(launch) {
        launch.fault = Some(failure.at(launch.program.step));
        return None;
    }
    let limits: &[_] = if sys::sabotaged(c"rlimits") { &[] } else { &launch.program.limits };
    for (step, resource, limit) in limits {
        if let Err(failure) = sys::cred::setrlimit(*resource, *limit).called(Call::Prlimit) {
            launch.fault = Some(failure.at(*step));
            return None;
        }
    }
    if let Err(fault) = load_filters(launch) {
        launch.fault = Some(fault);
        return None;
    }
    let mut worst = sys::ENOENT;
    for path in &launch.program.candidates {
        match process::execve(path, &launch.program.argv, &launch.program.env) {
            // As execvp(3): another directory may hold it.
            sys::ENOENT | sys::ENOTDIR => {}
            sys::EACCES => worst = sys::EACCES,
            errno => return Some(errno),
        }
    }
    Some(worst)
}

fn load_filters(launch: &Launch<'_>) -> Result<(), Fault> {
    let program = launch.program;
    if sys::sabotaged(c"seccomp") {
        return Ok(());
    }
    if let Some((step, filter, gap)) = &program.listening
        && listen(launch.channel, filter, gap.as_deref()).map_err(|failure| failure.at(*step))?
    {
        return Ok(());
    }
    for (step, filter) in &program.filters {
        sys::seccomp::load(filter).called(Call::Seccomp).map_err(|failure| failure.at(*step))?;
    }
    Ok(())
}

/// Loads the filter that sbx listens to, hands over by what, and shuts what this needed. Whether it could be done: a
/// process has one listener at most, and the one that was there first stays.
pub(super) fn listen(channel: BorrowedFd<'_>, filter: &[Insn], gap: Option<&[Insn]>) -> Result<bool, Failure> {
    let listener = match sys::notify::load_listening(filter) {
        Err(sys::EBUSY) => {
            tell(channel, Message::Unheard, None).called(Call::Send)?;
            return Ok(false);
        }
        other => other.called(Call::Seccomp)?,
    };
    tell(channel, Message::Listener, Some(listener.as_fd())).called(Call::Send)?;
    // Closed by the exec: a policy may deny even that.
    std::mem::forget(listener);
    gap.map_or(Ok(()), |gap| sys::seccomp::load(gap).called(Call::Seccomp)).map(|()| true)
}

fn ready(launch: &Launch<'_>) -> Result<(), Failure> {
    let program = launch.program;
    if !program.is_init && !sys::sabotaged(c"setsid") {
        process::setsid().called(Call::Setsid)?;
    }
    if let Some(slave) = launch.terminal {
        let slave = sys::borrow(slave);
        sys::tty::set_controlling(slave).called(Call::Ioctl)?;
        for number in 0..program.terminals {
            process::dup2(slave, number).called(Call::Dup)?;
        }
    }
    for (number, end) in (0..).zip(&program.stdio) {
        if let Some(end) = end {
            process::dup2(end.as_fd(), number).called(Call::Dup)?;
        }
    }
    process::umask(program.umask);
    event::default_actions(launch.ignored);
    event::unblock_all().called(Call::Sigmask)?;
    close_all_but(&program.passed).called(Call::CloseRange)
}

/// Closes, with the exec, everything but 0 to 2 and the declared numbers, which are sorted (S02, CVE-2024-21626).
/// Not before: where the program is pid 1, the channel is to say why there was no exec.
fn close_all_but(passed: &[c_int]) -> sys::Result<()> {
    if sys::sabotaged(c"descriptors") {
        return Ok(());
    }
    let mut first = 3;
    for &number in passed {
        process::close_on_exec(first as u32, number as u32 - 1)?;
        process::keep_open(sys::borrow(number))?;
        first = number + 1;
    }
    process::close_on_exec(first as u32, u32::MAX)
}

fn confine_init(program: &Program) -> Result<(), Failure> {
    match &program.init_filter {
        Some(filter) if !sys::sabotaged(c"init-filter") => sys::seccomp::load(filter).called(Call::Seccomp),
        _ => Ok(()),
    }
}

/// Serves the program until it ends. The filter comes first, where the program did not inherit it: from here on init
/// is confined as everybody else, by the default policy, so that a policy of the user's can never take wait or kill
/// from it.
fn serve(child: &Child<'_>, pid: i32, signals: OwnedFd, confined: Confined) -> ! {
    let program = &child.script.program;
    let channel = child.channel;
    let pidfd = if program.want_pidfd { process::pidfd_open(pid).ok() } else { None };
    if let Err(failure) = confine_init(program) {
        fail(channel, Some(failure.at(program.step)), None);
    }
    if tell(channel, Message::Started(pid), pidfd.as_ref().map(AsFd::as_fd)).is_err() {
        process::exit_now(FAILED);
    }
    if pidfd.is_some() {
        // The parent reads the program's pid from the descriptor: until it has, nothing may be reaped.
        await_word(channel);
    }
    drop(pidfd);
    let [proc, store] = [&confined.proc, &child.tree.store].map(|fd| fd.as_ref().map(AsFd::as_fd));
    keep_only([channel, signals.as_fd(), proc.unwrap_or(channel), store.unwrap_or(channel)]);
    let mut patience = Some(SETTLED);
    loop {
        let mut watches = [Watch::read(channel), Watch::read(signals.as_fd())];
        match event::poll(&mut watches, patience) {
            Ok(0) => {
                sys::alloc::drop_text();
                patience = None;
            }
            Ok(_) => {}
            Err(_) => continue,
        }
        if watches[0].ready() {
            obey(channel, pid, proc, store);
        }
        if !watches[1].ready() {
            continue;
        }
        // One SIGCHLD may stand for many ends; they are all taken below.
        let _ = event::next_signal(signals.as_fd());
        if let Some(ended) = reap(pid) {
            let _ = tell(channel, Message::Ended(ended, fullness()), None);
            if program.counted {
                await_word(channel);
            }
            process::exit_now(0)
        }
    }
}

/// Waits until the parent has done its part, or is gone.
fn await_word(channel: BorrowedFd<'_>) {
    while matches!(hear(channel, Wait::Yes), Ok(Some((message, _))) if message != Message::Go) {}
}

/// Init needs these descriptors; what built the root would only keep mounts alive.
fn keep_only(kept: [BorrowedFd<'_>; 4]) {
    let mut numbers = kept.map(|fd| fd.as_raw_fd() as u32);
    numbers.sort_unstable();
    let mut first = 0;
    for number in numbers {
        let _ = process::close_range(first, number.saturating_sub(1).max(first.saturating_sub(1)));
        first = number + 1;
    }
    let _ = process::close_range(first, u32::MAX);
}

/// Does what the parent says; its end gone means that nobody waits any more, and everything ends with init.
fn obey(channel: BorrowedFd<'_>, pid: i32, proc: Option<BorrowedFd<'_>>, store: Option<BorrowedFd<'_>>) {
    match hear(channel, Wait::No) {
        Ok(Some((Message::Signal(number), _))) if number == event::SIGTSTP => stop_all(),
        Ok(Some((Message::Signal(number), _))) if number == event::SIGCONT => {
            let _ = process::kill(-1, event::SIGCONT);
        }
        Ok(Some((Message::Signal(number), _))) => {
            let _ = process::kill(pid, number);
        }
        Ok(Some((Message::Handles, _))) => {
            let _ = store.map(|store| tell(channel, Message::Handle(STORE as i32), Some(store)));
            let _ = proc.map(|proc| hand_over(channel, proc));
        }
        Ok(None) => process::exit_now(FAILED),
        _ => {}
    }
}

/// Opens the doors to this sandbox for the supervisor, by a /proc of which the program has no say.
fn hand_over(channel: BorrowedFd<'_>, proc: BorrowedFd<'_>) -> Result<(), Failure> {
    let own = sys::fs::openat(proc, c"self", Open::Directory).called(Call::Open)?;
    for (number, (name, _)) in NAMESPACES.iter().enumerate() {
        let namespace = sys::fs::openat(own.as_fd(), name, Open::Read).called(Call::Open)?;
        tell(channel, Message::Handle(number as i32), Some(namespace.as_fd())).called(Call::Send)?;
    }
    let root = sys::fs::openat(sys::fs::HERE, c"/", Open::Directory).called(Call::Open)?;
    tell(channel, Message::Handle(ROOT as i32), Some(root.as_fd())).called(Call::Send)
}

/// Ctrl-Z stops the whole tree, not only the one program.
fn stop_all() {
    let _ = process::kill(-1, event::SIGSTOP);
}

/// Takes away everything that has ended, up to the program itself, with which all the rest ends.
fn reap(pid: i32) -> Option<Ended> {
    while let Ok(Some((ended, how))) = process::wait(Which::Any, WaitFor::Nothing) {
        if ended == pid {
            return Some(how);
        }
    }
    None
}

/// /dev lies in the one tmpfs whatever the user mounted, so its space is the store's.
fn fullness() -> Fullness {
    match sys::mount::statfs(c"/dev") {
        Ok(space) if space.free == 0 || (space.inodes > 0 && space.free_inodes == 0) => Fullness::Full,
        _ => Fullness::Room,
    }
}
