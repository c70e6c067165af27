//! `sbx check`: the table of what this machine lets this user do, and below it what helps.

use super::print;
use sbx::error::{Error, Result, visible};
use sbx::host;
use sbx::host::check::{Report, Row, State, look};
use std::ffi::OsString;
use std::fmt::Write;

const HELP: &str = "\
What this machine lets you do, tried by doing it, and what helps where it does not

Usage: sbx check [--json]
       sbx check --audit POLICY|NAME [--json]

Options:
      --audit how much a sandbox under a policy, or one of this name, is exposed
      --json  one JSON document instead of the table
  -q, --quiet only what is not ok
  -h, --help  this help

Exits with 0 if `sbx run` works here, else with 1. `sbx doctor` is the same.
";

/// Lines stay within this many columns.
const WIDTH: usize = 80;

/// How the report is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Table,
    Faults,
    Json,
    Help,
}

/// Runs the subcommand; the result is the exit status.
pub fn check(words: &[OsString]) -> Result<u8> {
    if words.iter().any(|word| word == "--audit" || word.to_str().is_some_and(|word| word.starts_with("--audit="))) {
        return super::audit::audit(words);
    }
    let form = parse(words)?;
    if form == Form::Help {
        return print(HELP);
    }
    let report = look(&host::caller()?);
    match form {
        Form::Json => {
            let json = serde_json::to_string_pretty(&report).map_err(|error| Error::Bug(error.to_string()))?;
            print(&(json + "\n"))?;
        }
        _ => drop(print(&table(&report, form))?),
    }
    Ok(u8::from(!report.works))
}

/// The few options; the global ones may stand here too, as with every subcommand. It keeps no records and has no
/// steps, so that `--state` and `--verbose` change nothing.
fn parse(words: &[OsString]) -> Result<Form> {
    let mut form = Form::Table;
    let mut words = words.iter().flat_map(|word| match word.to_str().and_then(|text| text.split_once('=')) {
        Some((name @ ("--state" | "--color"), value)) => vec![OsString::from(name), value.into()],
        _ => vec![word.clone()],
    });
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--json") => form = Form::Json,
            Some("-h" | "--help") => return Ok(Form::Help),
            Some("-q" | "--quiet") if form == Form::Table => form = Form::Faults,
            Some("-q" | "--quiet" | "--verbose") => {}
            Some(option @ ("--state" | "--color")) => match words.next() {
                Some(word) if option == "--color" => super::choose_color(Some(&word.to_string_lossy()))?,
                Some(_) => {}
                None => {
                    let hint = Some("sbx check --help".into());
                    return Err(Error::Usage { what: format!("{option} needs a value"), hint });
                }
            },
            _ => {
                let what = format!("sbx check does not take {}", visible(&word.to_string_lossy()));
                return Err(Error::Usage { what, hint: Some("sbx check --help".into()) });
            }
        }
    }
    Ok(form)
}

fn state(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Limited => "limited",
        State::Missing => "missing",
        State::Untried => "?",
    }
}

fn table(report: &Report, form: Form) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    if form == Form::Table {
        let _ = writeln!(text, "sbx {} on Linux {}\n", env!("CARGO_PKG_VERSION"), visible(&report.facts.release));
        for row in &report.rows {
            let _ = writeln!(text, "{:<8} {:<19} {}", state(row.state), row.feature.words(), row.enables);
        }
        text.push('\n');
    }
    let mut told: Vec<&Row> = Vec::new();
    for row in report.rows.iter().filter(|row| row.why.is_some()) {
        if told.iter().all(|first| !one_fault(first, row)) {
            let all: Vec<&Row> = report.rows.iter().filter(|other| one_fault(row, other)).collect();
            text.push_str(&fault(&all));
            told.push(row);
        }
    }
    text.push_str(&verdict(report));
    text
}

/// Whether two rows have the same reason and the same remedy, so that one text tells of both.
fn one_fault(row: &Row, other: &Row) -> bool {
    (row.needed, &row.why, &row.fix, &row.file) == (other.needed, &other.why, &other.fix, &other.file)
}

/// What is missing, why, and what helps.
fn fault(rows: &[&Row]) -> String {
    let Some(row) = rows.first() else { return String::new() };
    // "limit --mem, --cpus": what several names start with stands there once.
    let first = row.feature.words();
    let start = first.split_once(' ').map_or("", |(word, _)| word);
    let short = |row: &&Row| row.feature.words().trim_start_matches(start).trim_start();
    let names: Vec<&str> = std::iter::once(first).chain(rows[1..].iter().map(short)).collect();
    let mut states: Vec<&str> = rows.iter().map(|row| state(row.state)).collect();
    states.dedup();
    let optional = if row.needed { "" } else { ", not needed by default" };
    let mut text = wrapped("", &format!("{} ({}{optional})", names.join(", "), states.join(" or ")));
    for (label, words) in [("why", &row.why), ("try", &row.fix)] {
        if let Some(words) = words {
            text.push_str(&wrapped(&format!("  {label}: "), &visible(words)));
        }
    }
    if let Some(file) = &row.file {
        let _ = writeln!(text, "  {}:", visible(&file.path));
        for line in file.content.lines() {
            text.push_str(format!("    {}", visible(line)).trim_end());
            text.push('\n');
        }
    }
    text.push('\n');
    text
}

/// Words after a label, further lines below the first word. A word longer than a line stands alone, unbroken, so
/// that a path or a command can be copied.
fn wrapped(label: &str, words: &str) -> String {
    let indent = " ".repeat(label.chars().count());
    let mut text = String::new();
    let mut line = label.to_owned();
    let mut empty = true;
    for word in words.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = indent.clone();
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    text + &line + "\n"
}

fn verdict(report: &Report) -> String {
    if report.works {
        return "sbx run works here.\n".to_owned();
    }
    let in_the_way = report.rows.iter().filter(|row| row.needed && row.state == State::Missing);
    let names: Vec<&str> = in_the_way.map(|row| row.feature.words()).collect();
    let names = if names.is_empty() { "no answer".to_owned() } else { names.join(", ") };
    wrapped("", &format!("sbx run does not work here as it is; in the way: {names}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_wrapped_between_words() {
        let text = wrapped("  why: ", &"abcdefghi ".repeat(12));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.len() <= WIDTH));
        assert!(lines[1].starts_with("       abc"));
        assert_eq!(wrapped("", &"x".repeat(100)).len(), 101);
    }

    #[test]
    fn options_are_told_apart() {
        let form = |words: &[&str]| parse(&words.iter().map(OsString::from).collect::<Vec<_>>()).ok();
        assert!(form(&[]) == Some(Form::Table) && form(&["--state", "/x", "--json"]) == Some(Form::Json));
        assert!(form(&["-q"]) == Some(Form::Faults) && form(&["--state=/x", "-h"]) == Some(Form::Help));
        assert!(form(&["--jsn"]).is_none() && form(&["x"]).is_none());
        assert!(
            form(&["--color", "never"]) == Some(Form::Table) && form(&["--color=always", "-q"]) == Some(Form::Faults)
        );
        for bad in [&["--color", "purple"][..], &["--color=purple"], &["--color"], &["--state"], &["--color="]] {
            assert!(form(bad).is_none(), "{bad:?}");
        }
    }
}
