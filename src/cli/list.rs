//! `sbx ps` and `sbx inspect`: what there is, as a table for people and as JSON for programs.

use super::command::{command, each, flag, names, parse, state, values};
use super::table::{Last, table, width};
use sbx::error::{Result, visible};
use sbx::state::time::Moment;
use sbx::state::{Found, Standing};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::time::Duration;

/// `sbx ps`
pub fn ps(words: &[OsString]) -> Result<u8> {
    let asked = command("ps", "List sandboxes", "sbx ps [-a] [--json]")
        .arg(flag("all", "Those that have ended too").short('a'))
        .arg(flag("json", "One JSON document: an array with an object for each"));
    let Some(matches) = parse(asked, words)? else { return Ok(0) };
    let found = state(&matches)?.list();
    let shown: Vec<&Found> = found.iter().filter(|found| matches.get_flag("all") || found.lives()).collect();
    match matches.get_flag("json") {
        true => super::print(&format!("{:#}\n", Value::Array(shown.into_iter().map(facts).collect()))),
        false => super::print(&table(&rows(&shown), Last::Words, width())),
    }
}

/// `sbx inspect`
pub fn inspect(words: &[OsString]) -> Result<u8> {
    let asked = command("inspect", "Print all that is known of sandboxes, as a JSON array", "sbx inspect NAME…")
        .arg(flag("json", "JSON, as always").hide(true))
        .arg(names(1));
    let Some(matches) = parse(asked, words)? else { return Ok(0) };
    let state = state(&matches)?;
    let mut all = Vec::new();
    let status = each(&values(&matches, "NAME"), |name| {
        all.push(facts(&state.find(name)?));
        Ok(())
    })?;
    super::print(&format!("{:#}\n", Value::Array(all)))?;
    Ok(status)
}

/// The word for how a sandbox stands, as in the JSON.
fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Starting => "starting",
        Standing::Running => "running",
        Standing::Paused => "paused",
        Standing::Exited => "exited",
        Standing::Dead => "dead",
    }
}

/// All that is known; always with `name state pid supervisor_pid exit_status`.
fn facts(found: &Found) -> Value {
    let mut facts = found.record.as_ref().map_or(json!({}), |record| json!(record));
    if let Some(map) = facts.as_object_mut() {
        // What only the clearing of a killed one needs is nobody's interface.
        ["made", "trees", "scope", "own", "version"].iter().for_each(|key| drop(map.remove(*key)));
        map.insert("name".into(), json!(found.name));
        map.insert("state".into(), json!(word(found.standing)));
        let process =
            |key: &str| if found.lives() { map.get(key).cloned().unwrap_or(Value::Null) } else { Value::Null };
        let (pid, supervisor) = (process("pid"), process("supervisor_pid"));
        map.insert("pid".into(), pid);
        map.insert("supervisor_pid".into(), supervisor);
        map.entry("exit_status").or_insert(Value::Null);
    }
    facts
}

fn rows(found: &[&Found]) -> Vec<Vec<String>> {
    let now = Moment::now();
    let heads = ["NAME", "STATE", "PID", "SINCE", "COMMAND"].map(str::to_owned).to_vec();
    [heads].into_iter().chain(found.iter().map(|found| row(found, now).to_vec())).collect()
}

fn row(found: &Found, now: Moment) -> [String; 5] {
    let record = found.record.as_ref();
    let state = match (found.standing, record.and_then(|record| record.exit_status)) {
        (Standing::Exited, Some(status)) => format!("exited ({status})"),
        (standing, _) => word(standing).to_owned(),
    };
    let pid = record.filter(|_| found.lives()).and_then(|record| record.pid);
    let since = record.and_then(|record| record.exited_at.as_ref().or(record.started_at.as_ref()));
    let since = since.and_then(|at| Moment::parse(at.as_bytes())).map(|at| ago(now.since(at)));
    let command = record.map(|record| record.command.join(" ")).unwrap_or_default();
    [
        found.name.clone(),
        state,
        pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
        since.unwrap_or_else(|| "-".into()),
        visible(&command),
    ]
}

/// The largest unit that fits, as in `3 min`.
fn ago(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "min")];
    let unit = units.into_iter().find(|(length, _)| seconds >= 2 * length);
    unit.map_or_else(|| format!("{seconds} s"), |(length, unit)| format!("{} {unit}", seconds / length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_their_largest_unit() {
        let ago = |seconds| ago(Duration::from_secs(seconds));
        assert_eq!([ago(0), ago(119), ago(120), ago(7_200), ago(200_000)], ["0 s", "119 s", "2 min", "2 h", "2 d"]);
    }
}
