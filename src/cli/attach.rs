//! `sbx attach`: joins a sandbox in the background. What it is ends with the sandbox, and the sandbox not with it.

use super::command::{command, parse, state, value};
use clap::Arg;
use sbx::error::{Error, Result};
use sbx::launch::{Ends, Left, MOST, STILL, attach as join};
use sbx::state::control::{Client, Request};
use sbx::state::{Found, Standing};
use sbx::sys::{EBUSY, EOPNOTSUPP, EPIPE, ESRCH, event};
use std::ffi::OsString;

/// Milliseconds for an answer.
const ANSWER: u64 = 10_000;

/// Runs the subcommand; the result is the exit status.
pub fn attach(words: &[OsString]) -> Result<u8> {
    let asked = command(
        "attach",
        "See what a sandbox in the background (run --detach) writes from now on, and type into it",
        "sbx attach NAME",
    )
    .arg(Arg::new("NAME").required(true).help("Name of the sandbox"))
    .after_help(
        "The exit status is the program's. Nothing that ends sbx attach ends the sandbox. To a terminal of the \
         sandbox's (run -dt) every key goes, Ctrl-C too: to leave it, close the window or send sbx attach a TERM.",
    );
    let Some(matches) = parse(asked, words)? else { return Ok(0) };
    let found = state(&matches)?.find(value(&matches, "NAME").unwrap_or_default())?;
    let (client, ends) = ask(&found)?;
    let lost = |why: String, hint: String| Err(Error::State { on: found.name.clone(), why, hint: Some(hint) });
    match join(&client, ends)? {
        Left::Ended(status) => Ok(status),
        Left::Unread => Ok(0),
        Left::Signal(signal) => {
            event::die_of(signal);
            Ok(128u8.saturating_add(signal as u8))
        }
        Left::LetGo => lost(
            format!("it has let go, for nobody took what it wrote for {} seconds; it goes on", STILL / 1000),
            format!("sbx attach {0} once more; sbx logs {0} shows what was missed", found.name),
        ),
        Left::Lost => lost(
            "its supervisor was killed, and all in it with that".into(),
            format!("sbx logs {} shows what it wrote", found.name),
        ),
    }
}

/// Asks the supervisor for what there is to join.
fn ask(found: &Found) -> Result<(Client, Ends)> {
    let refuse = |why: &str, hint: String| Error::State { on: found.name.clone(), why: why.into(), hint: Some(hint) };
    let name = &found.name;
    match found.standing {
        Standing::Paused => return Err(refuse("it is paused", format!("sbx resume {name}"))),
        Standing::Exited => return Err(refuse("it has ended", format!("sbx logs {name} shows what it wrote"))),
        Standing::Dead => return Err(found.not_running()),
        Standing::Starting | Standing::Running => {}
    }
    let client = found.connect()?;
    let mut ends = Ends::default();
    match client.handles(Request::Attach, ANSWER, |number, fd| ends.keep(number, fd)) {
        Ok(()) => Ok((client, ends)),
        Err(EPIPE) => Err(found.not_running()),
        Err(EOPNOTSUPP) => Err(refuse(
            "it runs in the foreground, and what it writes goes where its caller sees it",
            format!(
                "sbx exec {name} COMMAND runs one more program in it; only sandboxes of run --detach can be joined"
            ),
        )),
        Err(EBUSY) => Err(refuse(
            "too many commands are attached to it, or wait for its end",
            format!("leave one of them ({MOST} can be attached); sbx logs -f {name} shows what it writes"),
        )),
        Err(ESRCH) => Err(refuse("the supervisor that listens in its place is another sandbox's", "sbx ps".into())),
        Err(errno) => Err(Error::State { on: name.clone(), why: format!("its supervisor: {errno}"), hint: None }),
    }
}
