//! `sbx stats`: what sandboxes use now, against their limits; once, or again and again until all have ended.

use super::command::{command, each, flag, names, parse, state, values};
use super::table::{Last, table, width};
use sbx::error::Result;
use sbx::spec::text::shown_size;
use sbx::state::live::{By, Processes, Use};
use sbx::state::{Found, StateDir};
use sbx::sys::event::{monotonic_ms, poll};
use sbx::sys::{process, tty};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::ffi::OsString;

/// Milliseconds between two looks of a stream.
const EACH: u64 = 1_000;
/// Between the two looks of a single one: processor time is a difference, in steps of 10 ms where there is no cgroup.
const ONCE: u64 = 500;

/// What is asked for.
struct Asked<'a> {
    state: StateDir,
    /// None means all that live.
    names: Vec<&'a str>,
    form: Form,
    stream: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Table,
    Json,
}

/// Processor time of a sandbox at a moment, by its name and its init's pid: a name may be given again.
type Before = HashMap<(String, Option<i32>), (u64, u64)>;

/// One sandbox at one moment.
struct Row {
    name: String,
    usage: Option<Use>,
    /// Of one processor.
    percent: Option<f64>,
}

/// `sbx stats`
pub fn stats(words: &[OsString]) -> Result<u8> {
    let asked = command(
        "stats",
        "Show what sandboxes use: of memory, processors, processes and io, against their limits",
        "sbx stats [NAME…] [--no-stream] [--json]",
    )
    .arg(flag("no-stream", "One look, not one each second until all have ended"))
    .arg(flag("json", "One JSON array; as a stream one object a line"))
    .arg(names(0));
    let Some(matches) = parse(asked, words)? else { return Ok(0) };
    let asked = Asked {
        state: state(&matches)?,
        names: values(&matches, "NAME"),
        form: if matches.get_flag("json") { Form::Json } else { Form::Table },
        stream: !matches.get_flag("no-stream"),
    };
    let mut known = Vec::new();
    let status = each(&asked.names, |name| {
        let found = asked.state.find(name)?;
        if !found.lives() {
            return Err(found.not_running());
        }
        known.push(name.to_owned());
        Ok(())
    })?;
    if asked.names.is_empty() || !known.is_empty() {
        show(&asked, &known)?;
    }
    Ok(status)
}

fn show(asked: &Asked<'_>, known: &[String]) -> Result<()> {
    let mut before = Before::new();
    let mut found = living(&asked.state, known);
    if !found.is_empty() {
        look(&found, &mut before);
        let _ = poll(&mut [], Some(ONCE));
    }
    let mut lines = 0;
    loop {
        let rows = look(&found, &mut before);
        match asked.form {
            Form::Json if asked.stream => {
                super::print(&rows.iter().map(|row| format!("{}\n", facts(row))).collect::<String>())?;
            }
            Form::Json => {
                super::print(&format!("{:#}\n", Value::Array(rows.iter().map(facts).collect())))?;
            }
            Form::Table => lines = print(&rows, asked.stream, lines)?,
        }
        if !asked.stream || gone() {
            return Ok(());
        }
        let _ = poll(&mut [], Some(EACH));
        found = living(&asked.state, known);
        if found.is_empty() {
            return Ok(());
        }
    }
}

/// Whether nobody reads any more.
fn gone() -> bool {
    let mut watch = [sbx::sys::event::Watch::write(process::stdio(1))];
    matches!(poll(&mut watch, Some(0)), Ok(1)) && (watch[0].hung_up() || watch[0].broken())
}

/// Those of these names that still live; of none, all that do.
fn living(state: &StateDir, known: &[String]) -> Vec<Found> {
    let found = match known {
        [] => state.list(),
        known => known.iter().filter_map(|name| state.find(name).ok()).collect(),
    };
    found.into_iter().filter(Found::lives).collect()
}

fn look(found: &[Found], before: &mut Before) -> Vec<Row> {
    let processes = Processes::look();
    let mut now = Before::new();
    let rows = found.iter().map(|found| {
        let usage = found.usage(&processes);
        let moment = monotonic_ms();
        let key = (found.name.clone(), found.record.as_ref().and_then(|record| record.pid));
        let used = usage.and_then(|usage| usage.cpu_us);
        let percent = before.get(&key).zip(used).and_then(|((then, cpu), used)| {
            let passed = moment.checked_sub(*then).filter(|passed| *passed > 0)?;
            Some(used.saturating_sub(*cpu) as f64 / (passed as f64 * 1000.0) * 100.0)
        });
        now.extend(used.map(|used| (key, (moment, used))));
        Row { name: found.name.clone(), usage, percent }
    });
    let rows = rows.collect();
    *before = now;
    rows
}

/// Prints a table, on a terminal in the place of the one before, which had so many lines; returns how many this has.
fn print(rows: &[Row], stream: bool, before: usize) -> Result<usize> {
    let heads = ["NAME", "CPU", "MEMORY", "PIDS", "IO", "WAITING", "BY"].map(str::to_owned).to_vec();
    let cells: Vec<Vec<String>> = [heads].into_iter().chain(rows.iter().map(cells)).collect();
    let mut text = table(&cells, Last::Figures, width());
    let out = process::stdio(1);
    if stream && tty::is_terminal(out) {
        // What has left the screen at its top could not be written over.
        let most = tty::lines(out).map_or(usize::MAX, |lines| usize::from(lines).saturating_sub(1).max(1));
        text = text.lines().take(most).map(|line| format!("{line}\n")).collect();
        if before > 0 {
            text = format!("\x1b[{before}A\x1b[J{text}");
        }
        let shown = rows.len().saturating_add(1).min(most);
        super::print(&text)?;
        return Ok(shown);
    }
    super::print(&text)?;
    Ok(0)
}

fn cells(row: &Row) -> Vec<String> {
    let dash = || "-".to_owned();
    let Some(usage) = &row.usage else { return [row.name.clone()].into_iter().chain((0..6).map(|_| dash())).collect() };
    let of = |used: Option<String>, most: Option<String>| match (used, most) {
        (Some(used), Some(most)) => format!("{used} / {most}"),
        (Some(used), None) => used,
        (None, _) => dash(),
    };
    let [cpu, memory, io] = usage.waiting.map(|percent| percent.map_or_else(dash, |percent| format!("{percent:.0}")));
    vec![
        row.name.clone(),
        of(
            row.percent.map(|percent| format!("{percent:.1}%")),
            usage.cpus_max.map(|cpus| format!("{:.0}%", cpus * 100.0)),
        ),
        of(usage.memory.map(shown_size), usage.memory_max.map(shown_size)),
        of(usage.pids.map(|pids| pids.to_string()), usage.pids_max.map(|pids| pids.to_string())),
        usage.io.map_or_else(dash, |(read, written)| format!("{} / {}", shown_size(read), shown_size(written))),
        if usage.waiting == [None; 3] { dash() } else { format!("{cpu} {memory} {io}%") },
        match usage.by {
            By::Cgroup => "cgroup".into(),
            By::Processes => "processes".into(),
        },
    ]
}

/// What is not counted is null.
fn facts(row: &Row) -> Value {
    let usage = row.usage.as_ref();
    let [cpu, memory, io] = usage.map_or([None; 3], |usage| usage.waiting);
    json!({
        "name": row.name,
        "by": usage.map(|usage| usage.by),
        "cpu_percent": row.percent,
        "cpu_seconds": usage.and_then(|usage| usage.cpu_us).map(|us| us as f64 / 1e6),
        "cpus_max": usage.and_then(|usage| usage.cpus_max),
        "memory": usage.and_then(|usage| usage.memory),
        "memory_max": usage.and_then(|usage| usage.memory_max),
        "pids": usage.and_then(|usage| usage.pids),
        "pids_max": usage.and_then(|usage| usage.pids_max),
        "io_read": usage.and_then(|usage| usage.io).map(|(read, _)| read),
        "io_written": usage.and_then(|usage| usage.io).map(|(_, written)| written),
        "pressure_percent": { "cpu": cpu, "memory": memory, "io": io },
    })
}
