//! `sbx policy`: the ready policies, what one says in the end, what is wrong with one, and accepting a project's own.

use super::command::{command, flag, parse, value};
use super::table::{Last, table, width};
use sbx::error::{Error, Result, visible};
use sbx::front::policy::{self, Source};
use sbx::front::{audit, project, ready, shown};
use sbx::host::files::{without_links, writable_by_group};
use sbx::host::{self, Host};
use sbx::plan::{Plan, seccomp};
use sbx::spec::layer::Layer;
use sbx::spec::{Caller, Spec};
use serde_json::json;
use std::ffi::OsString;
use std::path::PathBuf;

const USAGE: &str = "sbx policy ls | show NAME|FILE|@GROUP | check NAME|FILE | trust [FILE]";

/// Runs the subcommand.
pub fn run(words: &[OsString]) -> Result<u8> {
    // Global options come first here.
    let at = words.iter().position(|word| ["ls", "show", "check", "trust"].iter().any(|known| word == known));
    let Some(at) = at else {
        return match words.iter().any(|word| word == "--help" || word == "-h") {
            true => super::print(&format!("Ready policies and your own\n\nUsage: {USAGE}\n")),
            false => super::usage_of("sbx policy needs to be told what to do", USAGE),
        };
    };
    let mut rest = words.to_vec();
    match rest.remove(at).to_str() {
        Some("ls") => ls(&rest),
        Some("show") => show(&rest),
        Some("check") => check(&rest),
        _ => trust(&rest),
    }
}

fn ls(words: &[OsString]) -> Result<u8> {
    let asked = command("policy ls", "List the ready policies", "sbx policy ls [--json]");
    let Some(matches) = parse(asked.arg(flag("json", "One JSON document")), words)? else { return Ok(0) };
    let all = ready::READY.iter().map(|ready| {
        let layer = policy::parse(ready.name, ready.text)?;
        Ok((ready.name, layer.about.unwrap_or_default(), layer.extends))
    });
    let all = all.collect::<Result<Vec<_>>>()?;
    if matches.get_flag("json") {
        let all: Vec<_> = all
            .iter()
            .map(|(name, about, extends)| json!({"name": name, "about": about, "extends": extends}))
            .collect();
        return super::print(&format!("{:#}\n", json!(all)));
    }
    let head = vec!["NAME".to_owned(), "ABOUT".to_owned()];
    let rows = all.into_iter().map(|(name, about, _)| vec![name.to_owned(), about]);
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    super::print(&table(&rows, Last::Words, width()))
}

/// The one policy that the words name.
fn named(
    name: &'static str,
    about: &'static str,
    usage: &'static str,
    words: &[OsString],
) -> Result<Option<(String, bool)>> {
    let asked = command(name, about, usage).arg(flag("json", "One JSON document"));
    let asked = asked.arg(clap::Arg::new("POLICY").required(true).help("A ready policy, or a file"));
    Ok(parse(asked, words)?
        .map(|found| (value(&found, "POLICY").unwrap_or_default().to_owned(), found.get_flag("json"))))
}

fn show(words: &[OsString]) -> Result<u8> {
    let usage = "sbx policy show NAME|FILE|@GROUP [--json]";
    let Some((name, json)) =
        named("policy show", "Print a policy as it is resolved, and where each value comes from", usage, words)?
    else {
        return Ok(0);
    };
    if let Some(group) = name.strip_prefix('@') {
        return show_group(group, json);
    }
    let caller = host::caller()?;
    let merged = policy::sources(&name, &caller).and_then(|sources| shown::merge(&sources, &caller));
    match merged {
        Ok(shown) if json => super::print(&format!("{:#}\n", shown.to_json())),
        Ok(shown) => super::print(&visible_lines(&shown.to_toml())),
        Err(error) => failed(&error),
    }
}

/// A group of system calls, and what the default policy answers to each.
fn show_group(name: &str, json: bool) -> Result<u8> {
    let Some(group) = seccomp::groups().iter().find(|group| group.name == name) else {
        let error = Error::spec("GROUP", format!("@{name}"), "no such group of system calls");
        let known = seccomp::groups().iter().map(|group| group.name);
        return failed(&match sbx::spec::text::nearest(name, known.clone()) {
            Some(near) => error.or_try(format!("@{near}")),
            None => error.or_try(known.map(|name| format!("@{name}")).collect::<Vec<_>>().join(", ")),
        });
    };
    let answers = group.calls.iter().map(|call| (*call, seccomp::default_answer(call)));
    if json {
        let calls: Vec<_> = answers.map(|(call, answer)| json!({"call": call, "default": answer})).collect();
        return super::print(&format!("{:#}\n", json!({"name": name, "about": group.about, "calls": calls})));
    }
    let rows = answers.map(|(call, answer)| vec![call.to_owned(), answer.to_owned()]).collect::<Vec<_>>();
    super::print(&format!("# {}\n{}", group.about, table(&rows, Last::Words, width())))
}

/// What is shown to people has no control characters but ends of lines (S34).
fn visible_lines(text: &str) -> String {
    text.lines().map(|line| visible(line) + "\n").collect()
}

fn failed(error: &Error) -> Result<u8> {
    super::fail(error);
    Ok(1)
}

fn check(words: &[OsString]) -> Result<u8> {
    let usage = "sbx policy check NAME|FILE [--json]";
    let Some((name, json)) =
        named("policy check", "Say what is wrong with a policy, and what it grants", usage, words)?
    else {
        return Ok(0);
    };
    let caller = host::caller()?;
    let found = policy::sources(&name, &caller).and_then(|sources| warned(&sources, &caller));
    match found {
        Ok(warnings) if json => {
            super::print(&format!("{:#}\n", json!({"policy": name, "errors": [], "warnings": warnings})))
        }
        Ok(warnings) if warnings.is_empty() => super::print(&format!("{}: nothing wrong\n", visible(&name))),
        Ok(warnings) => super::print(&listed(&name, &warnings)),
        Err(error) if json => {
            super::print(&format!("{:#}\n", json!({"policy": name, "errors": [error.to_string()], "warnings": []})))?;
            Ok(1)
        }
        Err(error) => failed(&error),
    }
}

fn listed(name: &str, warnings: &[String]) -> String {
    warnings.iter().map(|warning| format!("{}: warning: {}\n", visible(name), visible(warning))).collect()
}

/// A run of a program that does nothing, under a policy, in this machine's own root.
pub(super) fn planned(sources: &[Source], caller: &Caller) -> Result<(Spec, Host, Plan)> {
    let mut layers: Vec<Layer> = sources.iter().map(|source| source.layer.clone()).collect();
    policy::refuse_home(&layers, caller)?;
    layers.push(Layer { rootfs: Some("@host".into()), command: vec!["true".into()], ..Layer::default() });
    let spec = Spec::resolve(&layers, caller)?;
    let host = Host::look(&spec, caller.clone())?;
    let plan = sbx::plan::plan(&spec, &host, "check")?;
    Ok((spec, host, plan))
}

/// Plans a run under it, as far as this host goes, and looks at what it grants.
fn warned(sources: &[Source], caller: &Caller) -> Result<Vec<String>> {
    let (spec, ..) = planned(sources, caller)?;
    let files = sources.iter().filter(|source| policy::is_file(&source.name));
    let files = files.map(|source| Ok(without_links(caller.host_path("FILE", &source.name)?.as_path())));
    let files = files.collect::<Result<Vec<PathBuf>>>()?;
    let mut warnings = audit::warnings(&spec, caller, &files);
    for file in files.iter().filter(|file| writable_by_group(file)) {
        warnings.push(format!("{} can be written by its group", file.display()));
    }
    Ok(warnings)
}

/// What a policy says, without what it says to people.
fn said(text: &str) -> String {
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.trim_start().starts_with('#'));
    lines.map(|line| format!("  {}\n", visible(line))).collect()
}

fn trust(words: &[OsString]) -> Result<u8> {
    let asked = command("policy trust", "Accept a project's own policy as it is now", "sbx policy trust [FILE]");
    let asked = asked.arg(clap::Arg::new("FILE").help("The file, .sbx.toml of this directory if not given"));
    let Some(matches) = parse(asked, words)? else { return Ok(0) };
    let file = value(&matches, "FILE").unwrap_or(project::NAME).to_owned();
    let caller = host::caller()?;
    let accepted = project::open(&caller, &file).and_then(|sources| {
        super::print(&said(sources.last().map_or("", |source| &source.text)))?;
        super::print(&listed(&file, &warned(&sources, &caller)?))?;
        project::accept(&caller, &file, sources.last().map_or("", |source| &source.text))
    });
    match accepted {
        Ok(()) => super::print(&format!("{}: accepted\n", visible(&file))),
        Err(error) => failed(&error),
    }
}
