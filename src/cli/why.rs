//! `sbx why`: what the last run was denied, or that of a sandbox that is kept.

use super::command::{command, flag, names, parse, state, value};
use super::report::sentence;
use sbx::error::{Error, Result};
use sbx::state::{Denied, StateDir};
use std::ffi::OsString;

/// Runs the subcommand.
pub fn why(words: &[OsString]) -> Result<u8> {
    let asked = command("why", "Say what a run with --explain was denied", "sbx why [NAME] [--json]")
        .arg(flag("json", "One JSON document: an array of objects"))
        .arg(names(0).num_args(0..=1).help("A sandbox (default: the last run in the foreground)"));
    let Some(matches) = parse(asked, words)? else { return Ok(0) };
    let state = state(&matches)?;
    match found(&state, value(&matches, "NAME")) {
        Ok(denied) => shown(&denied, matches.get_flag("json")),
        Err(error) => {
            super::fail(&error);
            Ok(1)
        }
    }
}

fn found(state: &StateDir, name: Option<&str>) -> Result<Vec<Denied>> {
    Ok(match (name, state.last_why()?) {
        (None, Some((_, denied))) => denied,
        (Some(name), Some((last, denied))) if name == last && state.find(name).is_err() => denied,
        (Some(name), _) => match state.find(name)?.record {
            Some(record) => record.denied,
            None => Vec::new(),
        },
        (None, None) => {
            let hint = Some("sbx run --explain …".into());
            return Err(Error::State { on: "the last run".into(), why: "nothing was explained yet".into(), hint });
        }
    })
}

fn shown(denied: &[Denied], json: bool) -> Result<u8> {
    if json {
        let text = serde_json::to_string_pretty(denied).map_err(|error| Error::Bug(error.to_string()))?;
        return super::print(&(text + "\n"));
    }
    let lines: String = denied.iter().map(|denied| sentence(denied) + "\n").collect();
    super::print(if lines.is_empty() { "nothing was denied\n" } else { &lines })
}
