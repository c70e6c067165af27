//! `sbx man DIR` and `sbx completions SHELL`: what a packager or a user installs beside the program.

use super::args::{ROWS, choices, shown};
use clap_complete::Shell;
use sbx::error::{Error, Result};
use std::ffi::OsString;
use std::path::Path;

const PAGES: [(&str, &str); 2] =
    [("sbx.1", include_str!("../../man/sbx.1")), ("sbx-policy.5", include_str!("../../man/sbx-policy.5"))];

fn asks_help(words: &[OsString]) -> bool {
    words.iter().any(|word| word == "--help" || word == "-h")
}

/// Writes the man pages into a directory that exists.
pub fn man(words: &[OsString]) -> Result<u8> {
    if asks_help(words) {
        return super::print("Usage: sbx man DIR\n\nWrites sbx.1 and sbx-policy.5 into a directory that exists.\n");
    }
    let [dir] = words else {
        return super::usage_of("sbx man needs one directory", "sbx man .");
    };
    for (name, text) in PAGES {
        let path = Path::new(dir).join(name);
        std::fs::write(&path, text).map_err(|e| Error::Sys {
            doing: "write".into(),
            on: path.display().to_string(),
            errno: e.into(),
        })?;
    }
    Ok(0)
}

/// `logs` as completions know it.
fn logs() -> clap::Command {
    use clap::{Arg, Command};
    let flag = |long: &'static str, short: char| Arg::new(long).long(long).short(short).num_args(0);
    let value = |long: &'static str| Arg::new(long).long(long).value_hint(clap::ValueHint::Other);
    let args = [flag("follow", 'f'), flag("timestamps", 't'), value("tail"), value("since")];
    Command::new("logs").args(args).arg(Arg::new("NAME").value_hint(clap::ValueHint::Other))
}

/// Prints the completions of a shell.
pub fn completions(words: &[OsString]) -> Result<u8> {
    if asks_help(words) {
        return super::print("Usage: sbx completions bash|elvish|fish|zsh\n\nPrints the completions of a shell.\n");
    }
    let shells = [("bash", Shell::Bash), ("elvish", Shell::Elvish), ("fish", Shell::Fish), ("zsh", Shell::Zsh)];
    let [shell] = words else {
        return super::usage_of("sbx completions needs one shell", "sbx completions bash");
    };
    let shell = sbx::spec::text::word("SHELL", &shell.to_string_lossy(), &shells)?;
    let mut run = shown();
    for row in ROWS.iter().filter(|row| !choices(row).is_empty()) {
        run = run.mut_arg(row.long, |arg| arg.value_parser(choices(row)));
    }
    let mut sbx = clap::Command::new("sbx")
        .subcommand(run)
        .subcommand(logs())
        .subcommand(
            clap::Command::new("check").visible_alias("doctor").arg(clap::Arg::new("json").long("json").num_args(0)),
        )
        .subcommand(
            clap::Command::new("completions").arg(clap::Arg::new("SHELL").value_parser(shells.map(|(name, _)| name))),
        )
        .subcommand(clap::Command::new("man").arg(clap::Arg::new("DIR").value_hint(clap::ValueHint::DirPath)));
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut sbx, "sbx", &mut text);
    super::print(&String::from_utf8_lossy(&text))
}
