//! `sbx check --audit`: how much a sandbox is exposed, setting by setting, as one number.

use super::command::{command, flag, parse, state, value};
use super::policy::planned;
use super::table::{Last, table, width};
use clap::ArgMatches;
use sbx::error::{Error, Result, visible};
use sbx::front::{policy, ready, score};
use sbx::host;
use sbx::state::Exposure;
use serde_json::json;
use std::ffi::OsString;

/// Runs the subcommand.
pub fn audit(words: &[OsString]) -> Result<u8> {
    let asked = command("check --audit", "Say how much a sandbox is exposed", "sbx check --audit POLICY|NAME [--json]")
        .arg(flag("json", "One JSON document"))
        .arg(
            clap::Arg::new("audit")
                .long("audit")
                .required(true)
                .value_name("POLICY|NAME")
                .help("A policy, or a sandbox"),
        );
    let Some(matches) = parse(asked, words)? else { return Ok(0) };
    let name = value(&matches, "audit").unwrap_or_default();
    let rows = match rows(&matches, name) {
        Ok(rows) => rows,
        Err(error) => {
            super::fail(&error);
            return Ok(1);
        }
    };
    let number = (score::score(&rows) * 10.0).round() / 10.0;
    let worst = score::worst(&rows);
    if matches.get_flag("json") {
        return super::print(&format!("{:#}\n", json!({"name": name, "score": number, "rows": rows, "worst": worst})));
    }
    super::print(&text(name, number, &rows, &worst))
}

fn rows(matches: &ArgMatches, name: &str) -> Result<Vec<Exposure>> {
    if !policy::is_file(name) && ready::find(name).is_none() {
        return of_sandbox(&state(matches)?, name);
    }
    let caller = host::caller()?;
    let (spec, host, plan) = planned(&policy::sources(name, &caller)?, &caller)?;
    Ok(score::rows(&spec, &plan, &host, &caller))
}

fn of_sandbox(state: &sbx::state::StateDir, name: &str) -> Result<Vec<Exposure>> {
    let record = state.find(name)?.record;
    match record.map(|record| record.exposed).filter(|rows| !rows.is_empty()) {
        Some(rows) => Ok(rows),
        None => {
            let why = "it is not known of a sandbox whose changes are not kept".to_owned();
            let hint = Some("sbx run --name NAME, or sbx check --audit POLICY".into());
            Err(Error::State { on: name.into(), why, hint })
        }
    }
}

fn text(name: &str, number: f64, rows: &[Exposure], worst: &[&Exposure]) -> String {
    let head = ["HEADING", "EXPOSURE", "SETTING"].map(str::to_owned).to_vec();
    let whole: u32 = rows.iter().map(|row| row.weight).sum();
    let share =
        |row: &Exposure| format!("{:.2}", 10.0 * f64::from(row.weight * row.exposure) / 100.0 / f64::from(whole));
    let shown = rows.iter().map(|row| {
        let exposure = if row.exposure == 0 { "-".to_owned() } else { share(row) };
        vec![row.heading.clone(), exposure, row.setting.clone()]
    });
    let all: Vec<Vec<String>> = std::iter::once(head).chain(shown).collect();
    let mut text = table(&all, Last::Words, width());
    text.push_str(&format!("\n{}: {number:.1} of 10 (0: nothing is exposed)\n", visible(name)));
    for row in worst {
        text.push_str(&format!("-{}: {} ({})\n", share(row), row.fix, row.setting));
    }
    text
}
