//! `sbx stop`, `kill`, `pause`, `resume`, `wait`, `rm` and `prune`: what is done to sandboxes that there are.

use super::command::{Asked, command, each, flag, names, option, parse, state, value, values};
use sbx::error::{Error, Result};
use sbx::spec::text;
use sbx::state::control::{Client, Reply, Request};
use sbx::state::{Found, Standing};
use sbx::sys::event;
use std::ffi::OsString;

/// From the signal to KILL, where nobody says another time.
const GRACE: u64 = 10_000;

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
    let names = values(&matches, "NAME");
    // All are told before one is waited for.
    let mut told: Vec<(String, Option<Client>)> = Vec::new();
    let first = each(&names, |name| {
        let found = state.find(name)?;
        let client = match found.lives() {
            true => ask(&found, Request::Stop(number, grace))?,
            // To stop what has stopped is no mistake.
            false => None,
        };
        told.push((name.to_owned(), client));
        Ok(())
    })?;
    for (_, client) in told {
        client.map_or(Ok(None), |client| client.wait()).map_err(|errno| lost("sbx stop", errno))?;
    }
    Ok(first)
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
        let client = ask(living(&state.find(name)?)?, Request::Signal(number))?;
        match (number, client) {
            (event::SIGKILL, Some(client)) => client.wait().map(drop).map_err(|errno| lost(name, errno)),
            _ => Ok(()),
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
    each(&values(&matches, "NAME"), |name| {
        let found = state.find(name)?;
        let mut status = None;
        if let Some(client) = if found.lives() { ask(&found, Request::Wait)? } else { None } {
            status = client.wait().map_err(|errno| lost(name, errno))?;
        }
        // Of one that ended in the meantime its record tells, if it is kept.
        let kept = || state.find(name).ok().and_then(|found| found.record?.exit_status);
        let gone = || Error::State { on: name.into(), why: "it has ended and left no status".into(), hint: None };
        let status = status.or_else(kept).ok_or_else(gone)?;
        super::print(&format!("{status}\n")).map(drop)
    })
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
            if let Some(client) = ask(&found, Request::Kill)? {
                client.wait().map_err(|errno| lost(name, errno))?;
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
    each(&ended.iter().map(String::as_str).collect::<Vec<_>>(), |name| {
        state.remove(name)?;
        super::print(&format!("{name}\n")).map(drop)
    })
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

/// Asks a supervisor; `None` where the sandbox ended instead.
fn ask(found: &Found, request: Request) -> Result<Option<Client>> {
    let client = found.connect()?;
    match client.ask(request).map_err(|errno| lost(&found.name, errno))? {
        Some(Reply::Refused(errno)) => {
            let (why, hint) = match errno {
                sbx::sys::EOPNOTSUPP => (
                    "without a cgroup and without sbx's init nobody can stop all of it".to_owned(),
                    Some("leave out --no-init, or --limits cgroup".to_owned()),
                ),
                errno => (errno.to_string(), None),
            };
            Err(Error::State { on: found.name.clone(), why, hint })
        }
        Some(_) => Ok(Some(client)),
        None => Ok(None),
    }
}

fn lost(on: &str, errno: sbx::error::Errno) -> Error {
    Error::State { on: on.into(), why: format!("its supervisor: {errno}"), hint: None }
}
