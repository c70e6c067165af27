//! The small subcommands' words: what they take, their help, and the global options, which may stand among them.

use clap::{Arg, ArgAction, ArgMatches, Command};
use sbx::error::Result;
use sbx::host;
use sbx::state::StateDir;
use std::ffi::OsString;
use std::path::PathBuf;

/// A subcommand that was asked for, or `None` where its help was printed.
pub type Asked = Option<ArgMatches>;

/// A subcommand with what all of them take.
pub fn command(name: &'static str, about: &'static str, usage: &'static str) -> Command {
    Command::new(name)
        .bin_name(format!("sbx {name}"))
        .about(about)
        .override_usage(usage)
        .arg(Arg::new("state").long("state").value_name("DIR").help("Where records are kept"))
        .arg(Arg::new("color").long("color").value_name("auto|always|never").help("Colors in messages"))
        .arg(flag("quiet", "Print errors only").short('q'))
        .arg(flag("verbose", "Changes nothing here").hide(true))
}

/// An option that takes nothing.
pub fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// An option that takes a value.
pub fn option(name: &'static str, short: char, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).short(short).value_name(value).help(help).allow_hyphen_values(true)
}

/// Names of sandboxes; at least one, unless none means all of them.
pub fn names(least: usize) -> Arg {
    Arg::new("NAME").num_args(least..).required(least > 0).help("Names of sandboxes")
}

/// Parses the words. Help is printed, a mistake is a usage error.
pub fn parse(command: Command, words: &[OsString]) -> Result<Asked> {
    let name = command.get_name().to_owned();
    let words = std::iter::once(OsString::from(name.clone())).chain(words.iter().cloned());
    match command.try_get_matches_from(words) {
        Ok(matches) => {
            super::choose_color(matches.get_one::<String>("color").map(String::as_str))?;
            Ok(Some(matches))
        }
        Err(error) if error.kind() == clap::error::ErrorKind::DisplayHelp => {
            super::print(&error.render().to_string()).map(|_| None)
        }
        Err(error) => {
            let text = error.render().to_string();
            let mut lines = text.lines();
            let mut first = lines.next().unwrap_or("not understood").to_owned();
            // What is missing stands in a line of its own.
            if first.ends_with(':') {
                first.extend(lines.next().map(|line| format!(" {}", line.trim())));
            }
            super::usage_of(first.strip_prefix("error: ").unwrap_or(&first), &format!("sbx {name} --help"))
                .map(|_| None)
        }
    }
}

/// The values of an argument.
pub fn values<'a>(matches: &'a ArgMatches, name: &str) -> Vec<&'a str> {
    matches.get_many::<String>(name).into_iter().flatten().map(String::as_str).collect()
}

/// The value of an option.
pub fn value<'a>(matches: &'a ArgMatches, name: &str) -> Option<&'a str> {
    matches.get_one::<String>(name).map(String::as_str)
}

/// The state directory, cleared of what killed ones left.
pub fn state(matches: &ArgMatches) -> Result<StateDir> {
    let caller = host::caller()?;
    let path: PathBuf = match value(matches, "state") {
        Some(path) => caller.host_path("--state", path)?.as_path().to_owned(),
        None => super::default_state(&caller),
    };
    let state = StateDir::open(&path)?;
    state.sweep();
    state.left().iter().for_each(|left| super::say(&left.to_string()));
    Ok(state)
}

/// Does something to each of these sandboxes; an error of one keeps nobody else from it.
///
/// # Errors
/// The last of several, after the others were printed.
pub fn each(names: &[&str], mut doing: impl FnMut(&str) -> Result<()>) -> Result<u8> {
    let mut failed = None;
    for name in names {
        if let Err(error) = doing(name)
            && let Some(earlier) = failed.replace(error)
        {
            super::fail(&earlier);
        }
    }
    match failed {
        None => Ok(0),
        Some(error) => {
            super::fail(&error);
            Ok(1)
        }
    }
}
