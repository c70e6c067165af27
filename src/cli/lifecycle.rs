//! `sbx stop`, `kill`, `pause`, `resume`, `wait`, `rm` and `prune`: what is done to sandboxes that there are.

use super::command::{Asked, command, each, flag, names, option, parse, state, value, values};
use sbx::error::{Errno, Error, Result};
use sbx::spec::text;
use sbx::state::control::{Client, Reply, Request};
use sbx::state::{Found, Standing, StateDir, prune_layers};
use sbx::sys::{event, process};
use std::ffi::OsString;
use std::os::fd::AsFd;

/// From the signal to KILL, where nobody says another time, in milliseconds.
const GRACE: u64 = 10_000;
/// After which a supervisor that should have ended all is ended itself.
const SLACK: u64 = 2_000;
/// For an answer that needs nobody's end. To freeze a cgroup may take a second.
const ANSWER: u64 = 10_000;
/// For what a supervisor clears when all has ended: a layer on disk may be large.
const CLEARING: u64 = 600_000;

/// `sbx stop`: the signal, a grace, then everything at once; returns when it is gone.
pub fn stop(words: &[OsString]) -> Result<u8> {
    let asked = command(
        "stop",
        "End sandboxes: TERM, and KILL for all when that was not enough",
        "sbx stop [-t SECONDS] [-s SIGNAL] NAME…",
    )
    .arg(option("time", 't', "SECONDS", "From the signal to KILL (default: 10)"))
    .arg(option("signal", 's', "SIGNAL", "Which signal (default: TERM)"))
    .arg(names(1));
    let Some(matches) = parse(asked, words)? else { return Ok(0) };
    let grace = match value(&matches, "time") {
        None => GRACE,
        Some("0") => 0,
        Some(time) => text::duration("--time", time)?.as_millis() as u64,
    };
    let number = value(&matches, "signal").map_or(Ok(event::SIGTERM), |text| signal("--signal", text))?;
    let state = state(&matches)?;
    // All are told before one is waited for.
    let mut told = Vec::new();
    let first = each(&values(&matches, "NAME"), |name| {
        let found = state.find(name)?;
        // To stop what has stopped is no mistake.
        if found.lives() {
            let due = event::monotonic_ms().saturating_add(grace).saturating_add(SLACK);
            let request = Request::Stop(number, grace);
            match tell(&found, request) {
                Ok(client) => told.extend(client.map(|client| (found, client, request, due))),
                Err(error) if found.is_held() => return Err(error),
                // It has ended meanwhile.
                Err(_) => {}
            }
        }
        Ok(())
    })?;
    let mut told = told.into_iter();
    let names: Vec<String> = told.as_slice().iter().map(|(found, ..)| found.name.clone()).collect();
    let second = each(&names.iter().map(String::as_str).collect::<Vec<_>>(), |_| {
        told.next().map_or(Ok(()), |(found, client, request, due)| ended(&state, &found, client, request, due))
    })?;
    Ok(first.max(second))
}

/// `sbx kill`: a signal to the program; KILL to all.
pub fn kill(words: &[OsString]) -> Result<u8> {
    let asked = command(
        "kill",
        "Send a signal to the programs of sandboxes; KILL ends all in them",
        "sbx kill [-s SIGNAL] NAME…",
    )
    .arg(option("signal", 's', "SIGNAL", "Which signal (default: KILL)"))
    .arg(names(1));
    let Some(matches) = parse(asked, words)? else { return Ok(0) };
    let number = value(&matches, "signal").map_or(Ok(event::SIGKILL), |text| signal("--signal", text))?;
    let state = state(&matches)?;
    each(&values(&matches, "NAME"), |name| {
        let found = state.find(name)?;
        match number {
            event::SIGKILL => end(&state, living(&found)?),
            number => ask(living(&found)?, Request::Signal(number)).map(drop),
        }
    })
}

/// `sbx pause` and `sbx resume`.
pub fn pause(words: &[OsString]) -> Result<u8> {
    let asked = command("pause", "Let nothing in sandboxes run", "sbx pause NAME…").arg(names(1));
    simple(parse(asked, words)?, Request::Pause)
}

/// See [`pause`].
pub fn resume(words: &[OsString]) -> Result<u8> {
    let asked = command("resume", "Let paused sandboxes run again", "sbx resume NAME…").arg(names(1));
    simple(parse(asked, words)?, Request::Resume)
}

fn simple(asked: Asked, request: Request) -> Result<u8> {
    let Some(matches) = asked else { return Ok(0) };
    let state = state(&matches)?;
    each(&values(&matches, "NAME"), |name| ask(living(&state.find(name)?)?, request).map(drop))
}

/// `sbx wait`: prints one status a line.
pub fn wait(words: &[OsString]) -> Result<u8> {
    let asked =
        command("wait", "Wait for the end of sandboxes, and print their exit statuses", "sbx wait NAME…").arg(names(1));
    let Some(matches) = parse(asked, words)? else { return Ok(0) };
    let state = state(&matches)?;
    // All are asked before one is waited for: of one that ends meanwhile nothing may be left to tell.
    let mut asked = Vec::new();
    let first = each(&values(&matches, "NAME"), |name| {
        let found = state.find(name)?;
        let client = if found.lives() { ask(&found, Request::Wait) } else { Ok(None) };
        asked.push((name.to_owned(), client));
        Ok(())
    })?;
    let mut asked = asked.into_iter();
    let names: Vec<String> = asked.as_slice().iter().map(|(name, _)| name.clone()).collect();
    let second = each(&names.iter().map(String::as_str).collect::<Vec<_>>(), |name| {
        let Some((_, client)) = asked.next() else { return Ok(()) };
        let told = match client {
            Ok(Some(client)) => status(&client).map_err(|errno| lost(name, errno)),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        // Of one that ended in the meantime its record tells, if it is kept.
        let kept = || state.find(name).ok().filter(|found| !found.lives()).and_then(|found| found.record?.exit_status);
        let gone = || Error::State { on: name.into(), why: "it has ended and left no status".into(), hint: None };
        let status = match told {
            Ok(Some(status)) => status,
            Ok(None) => kept().ok_or_else(gone)?,
            Err(error) => kept().ok_or(error)?,
        };
        super::print(&format!("{status}\n")).map(drop)
    })?;
    Ok(first.max(second))
}

/// Waits for the status that a supervisor tells at the end.
fn status(client: &Client) -> std::result::Result<Option<u8>, Errno> {
    loop {
        match client.next(None)? {
            Some(Reply::Ended(status)) => return Ok(Some(status)),
            Some(_) => {}
            None => return Ok(None),
        }
    }
}

/// `sbx rm`: forgets what has ended.
pub fn rm(words: &[OsString]) -> Result<u8> {
    let asked = command("rm", "Forget sandboxes that have ended, with all that is kept of them", "sbx rm [-f] NAME…")
        .arg(flag("force", "End those that run first, at once").short('f'))
        .arg(names(1));
    let Some(matches) = parse(asked, words)? else { return Ok(0) };
    let state = state(&matches)?;
    each(&values(&matches, "NAME"), |name| {
        let found = state.find(name)?;
        if found.lives() {
            if !matches.get_flag("force") {
                let (why, hint) = ("it is running", format!("sbx stop {name}, or sbx rm -f {name}"));
                return Err(Error::State { on: name.into(), why: why.into(), hint: Some(hint) });
            }
            match end(&state, &found) {
                // It has ended by itself meanwhile.
                Err(_) if !found.is_held() => {}
                other => other?,
            }
        }
        state.remove(name)
    })
}

/// `sbx prune`: forgets all that have ended.
pub fn prune(words: &[OsString]) -> Result<u8> {
    let asked = command("prune", "Forget all sandboxes that have ended, and print their names", "sbx prune");
    let Some(matches) = parse(asked, words)? else { return Ok(0) };
    let state = state(&matches)?;
    let ended: Vec<String> =
        state.list().into_iter().filter(|found| found.standing == Standing::Exited).map(|found| found.name).collect();
    let status = each(&ended.iter().map(String::as_str).collect::<Vec<_>>(), |name| {
        state.remove(name)?;
        super::print(&format!("{name}\n")).map(drop)
    })?;
    prune_layers(&sbx::host::layers(&sbx::host::caller()?))?;
    Ok(status)
}

/// A signal as kill(1) takes it: `TERM`, `SIGTERM`, `15`.
fn signal(field: &str, text: &str) -> Result<i32> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper.clone() } else { format!("SIG{upper}") };
    let number = upper.parse::<i32>().ok().filter(|number| (1..=64).contains(number));
    number
        .or_else(|| event::signal_named(&name))
        .ok_or_else(|| Error::spec(field, text, "no signal").or_try("a name of signal(7) such as TERM, or its number"))
}

fn living(found: &Found) -> Result<&Found> {
    if found.lives() { Ok(found) } else { Err(found.not_running()) }
}

/// Ends all of a sandbox, and returns when it is gone.
fn end(state: &StateDir, found: &Found) -> Result<()> {
    let due = event::monotonic_ms().saturating_add(SLACK);
    tell(found, Request::Kill)?.map_or(Ok(()), |client| ended(state, found, client, Request::Kill, due))
}

/// Asks a supervisor for something; `None` where the sandbox has ended instead.
fn tell(found: &Found, request: Request) -> Result<Option<Client>> {
    loop {
        let client = found.connect()?;
        match client.tell(request) {
            Ok(true) => return Ok(Some(client)),
            // Among very many who came at the same time; see `Service::place`.
            Ok(false) if stays(found) => {}
            Ok(false) => return Ok(None),
            Err(errno) => return Err(lost(&found.name, errno)),
        }
    }
}

/// The same, and waits for the answer.
fn ask(found: &Found, request: Request) -> Result<Option<Client>> {
    let until = event::monotonic_ms().saturating_add(ANSWER);
    loop {
        let Some(client) = tell(found, request)? else { return Ok(None) };
        match client.next(Some(until)) {
            Ok(Some(Reply::Refused(errno))) => return Err(refused(&found.name, request, errno)),
            Ok(Some(_)) => return Ok(Some(client)),
            Ok(None) if stays(found) => {}
            Ok(None) => return Ok(None),
            Err(sbx::sys::ETIMEDOUT) => {
                let (why, hint) = ("its supervisor does not answer", format!("sbx kill {} ends it", found.name));
                return Err(Error::State { on: found.name.clone(), why: why.into(), hint: Some(hint) });
            }
            Err(errno) => return Err(lost(&found.name, errno)),
        }
    }
}

/// Waits until a sandbox that was told to end is gone. A supervisor that has not ended it by then, for it is stopped or
/// worse, is killed, and everything inside dies with it.
fn ended(state: &StateDir, found: &Found, mut client: Client, request: Request, due: u64) -> Result<()> {
    let mut until = due;
    loop {
        match client.next(Some(until)) {
            Ok(None) if event::monotonic_ms() < until && stays(found) => match tell(found, request) {
                Ok(Some(again)) => client = again,
                Err(error) if found.is_held() => return Err(error),
                _ => return Ok(()),
            },
            Ok(None) => return Ok(()),
            Ok(Some(Reply::Refused(errno))) => return Err(refused(&found.name, request, errno)),
            // What is left to it is to clear up.
            Ok(Some(Reply::Ended(_))) => until = event::monotonic_ms().saturating_add(CLEARING),
            Ok(Some(Reply::Done | Reply::Handle(_))) => {}
            Err(sbx::sys::ETIMEDOUT) => break,
            Err(errno) => return Err(lost(&found.name, errno)),
        }
    }
    let fail = |errno| lost(&found.name, errno);
    process::pidfd_send_signal(client.supervisor().map_err(fail)?.as_fd(), event::SIGKILL).map_err(fail)?;
    super::say(&format!("{}: its supervisor did not answer, and was killed with all that ran in it", found.name));
    while client.next(None).map_err(fail)?.is_some() {}
    let _ = stays(found);
    state.sweep();
    Ok(())
}

/// Whether a sandbox goes on whose supervisor has closed the connection. One that ends gives its name back in the same
/// moment, in whichever order the kernel closes what a killed one had.
fn stays(found: &Found) -> bool {
    (0..500).all(|_| {
        let held = found.is_held();
        if held {
            let _ = event::poll(&mut [], Some(2));
        }
        held
    })
}

fn refused(name: &str, request: Request, errno: Errno) -> Error {
    let (why, hint) = match (request, errno) {
        (_, sbx::sys::EOPNOTSUPP) => (
            "without a cgroup and without sbx's init nobody can stop all of it".to_owned(),
            Some("leave out --no-init, or --limits cgroup".to_owned()),
        ),
        (_, sbx::sys::ESRCH) => ("the supervisor that listens in its place is another sandbox's".to_owned(), None),
        (Request::Wait, sbx::sys::EBUSY) => ("too many commands wait for its end already".to_owned(), None),
        (_, errno) => (errno.to_string(), None),
    };
    Error::State { on: name.into(), why, hint }
}

fn lost(on: &str, errno: Errno) -> Error {
    Error::State { on: on.into(), why: format!("its supervisor: {errno}"), hint: None }
}
