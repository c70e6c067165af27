//! `sbx exec`: one more program in a sandbox that runs, confined as the first is.

use super::args::{Verb, parse};
use super::report::Reporter;
use super::run::{env_files, state_path, status_fd, voice};
use sbx::error::{Error, Result};
use sbx::host::{self, Host};
use sbx::launch::{Handles, KEPT, Place, ROOT, Request, Told, enter};
use sbx::plan::{self, Kept};
use sbx::spec::Spec;
use sbx::state::{Found, Standing, StateDir, control};
use sbx::sys::event::poll;
use sbx::sys::{EAGAIN, EMFILE, EPIPE, ESRCH};
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

/// How many milliseconds a supervisor is asked for that has not all to give yet.
const PATIENCE: u64 = 2_000;
/// Milliseconds for an answer.
const ANSWER: u64 = 10_000;

/// Runs the subcommand; the result is the exit status.
pub fn exec(words: &[OsString]) -> Result<u8> {
    let parsed = match parse(Verb::Exec, words) {
        Ok(parsed) => parsed,
        Err(error) => return super::clap_error(Verb::Exec, error),
    };
    super::choose_color(parsed.value("color"))?;
    // Before anything is opened here that could have their numbers.
    let status_fd = status_fd(&parsed)?;
    let mut asked = parsed.layer()?;
    for &number in &asked.program.pass_fd {
        if !sbx::sys::event::is_open(number) {
            let hint = "--pass-fd passes a descriptor that the caller holds open";
            return Err(Error::spec("descriptor", number, "not open").or_try(hint));
        }
    }
    let caller = host::caller()?;
    // What stands in the place of ROOTFS is the sandbox's name; the root is what it is already.
    let name = asked.rootfs.replace("/".into()).ok_or_else(|| Error::Usage {
        what: "NAME is missing".into(),
        hint: Some("sbx exec NAME COMMAND; sbx ps lists the names".into()),
    })?;
    // Its input is the caller's, or there is none.
    asked.interactive = false;
    let layers = env_files(vec![asked], &caller)?;
    let spec = Spec::resolve(&layers, &caller)?;
    let state = StateDir::open(&state_path(&parsed, &caller)?)?;
    state.sweep();
    let found = state.find(&name.to_string_lossy())?;
    if found.standing == Standing::Paused {
        let hint = Some(format!("sbx resume {}", found.name));
        return Err(Error::State { on: found.name.clone(), why: "it is paused".into(), hint });
    }
    let handles = handles(&found, control::Request::Enter)?;
    let missing = || Error::Bug("a supervisor handed out less than all".into());
    let kept = kept(handles.fd(KEPT).ok_or_else(missing)?)?;
    let host = Host::inside(&spec, caller, handles.fd(ROOT).ok_or_else(missing)?);
    let plan = plan::enter(&spec, &kept, &host)?;
    let pid_file = parsed.value("pid-file").map(PathBuf::from);
    let mut reporter = Reporter::new(voice(&parsed), &plan, status_fd, pid_file, false)?;
    let told = Told { pid: reporter.wants_pid(), steps: parsed.flag("verbose"), usage: false };
    let request = Request { state: &state, told, exposed: Vec::new(), words: None };
    let init = found.record.as_ref().and_then(|record| record.pid).unwrap_or(0);
    let place = Place { init, name: &found.name };
    let exit =
        enter(&plan, &host, handles, place, &request, &mut reporter).inspect_err(|_| reporter.forget_pid_file())?;
    // The program goes on, and of its end nobody here hears.
    if plan.is_detached() {
        return Ok(exit.status());
    }
    reporter.ended(&exit);
    if let Some(signal) = exit.dies_of() {
        sbx::sys::event::die_of(signal);
    }
    Ok(exit.status())
}

/// Asks the supervisor for handles; one whose sandbox has just begun has not all yet.
pub fn handles(found: &Found, request: control::Request) -> Result<Handles> {
    let client = found.connect()?;
    let mut waited = 0;
    loop {
        let mut handles = Handles::default();
        match client.handles(request, ANSWER, |number, fd| handles.keep(number, fd)) {
            Ok(()) => return Ok(handles),
            Err(EAGAIN) if waited < PATIENCE => {
                let _ = poll(&mut [], Some(5));
                waited += 5;
            }
            Err(errno @ EMFILE) => {
                return Err(Error::Sys { doing: "take the handles of".into(), on: found.name.clone(), errno });
            }
            Err(EPIPE) => return Err(found.not_running()),
            Err(EAGAIN) => {
                let why = "it cannot be looked into: its first process does not answer, or does not let itself be";
                let hint =
                    Some("sbx resume, where it is paused; without --no-init there is an init that answers".into());
                return Err(Error::State { on: found.name.clone(), why: why.into(), hint });
            }
            Err(errno) => {
                let why = match errno {
                    ESRCH => "the supervisor that listens in its place is another sandbox's".into(),
                    errno => format!("its supervisor: {errno}"),
                };
                return Err(Error::State { on: found.name.clone(), why, hint: None });
            }
        }
    }
}

/// What the supervisor has kept of the plan. The open file is shared with others, so it is opened anew.
fn kept(file: BorrowedFd<'_>) -> Result<Kept> {
    let fail = |why: String| Error::State { on: "what the supervisor keeps".into(), why, hint: None };
    let text = std::fs::read(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).map_err(|e| fail(e.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))
}
