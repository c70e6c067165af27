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

/// A subcommand of few words, as completions know it: its name, its flags, its options with a value, and whether names
/// of sandboxes follow.
type Small = (&'static str, &'static [(&'static str, Option<char>)], &'static [(&'static str, Option<char>)], bool);

/// `tests/options.rs` holds them against what their `--help` says.
const SMALL: [Small; 18] = [
    ("ps", &[("all", Some('a')), ("json", None)], &[], false),
    ("inspect", &[], &[], true),
    ("stats", &[("no-stream", None), ("json", None)], &[], true),
    ("logs", &[("follow", Some('f')), ("timestamps", Some('t'))], &[("tail", None), ("since", None)], true),
    ("attach", &[], &[], true),
    ("diff", &[("patch", Some('p')), ("json", None)], &[], true),
    ("apply", &[("all", None)], &[], true),
    ("discard", &[], &[], true),
    ("wait", &[], &[], true),
    ("stop", &[], &[("time", Some('t')), ("signal", Some('s'))], true),
    ("kill", &[], &[("signal", Some('s'))], true),
    ("pause", &[], &[], true),
    ("resume", &[], &[], true),
    ("rm", &[("force", Some('f'))], &[], true),
    ("prune", &[], &[], false),
    ("why", &[("json", None)], &[], true),
    ("check", &[("json", None)], &[("audit", None)], false),
    ("policy", &[("json", None)], &[], false),
];

fn small((name, flags, options, named): &Small) -> clap::Command {
    use clap::{Arg, Command, ValueHint};
    let arg = |(long, short): &(&'static str, Option<char>)| {
        let arg = Arg::new(*long).long(*long);
        short.map_or(arg.clone(), |short| arg.short(short))
    };
    let command = Command::new(*name).args(flags.iter().map(|flag| arg(flag).num_args(0)));
    let command = command
        .args(options.iter().map(|option| arg(option).value_hint(ValueHint::Other)))
        .arg(arg(&("state", None)).value_hint(ValueHint::DirPath));
    let command = if *name == "check" { command.visible_alias("doctor") } else { command };
    if *named { command.arg(Arg::new("NAME").num_args(0..).value_hint(ValueHint::Other)) } else { command }
}

/// What is added to a shell's script, so that names of sandboxes are completed where they belong; COMMANDS stands for the
/// commands that take nothing but names.
const BASH_NAMES: &str = r#"
# The names of sandboxes, where they belong.
_sbx_named() {
    _sbx "$@"
    case ${COMP_WORDS[1]} in
        COMMANDS | exec)
            [[ $2 == -* || $3 == --state ]] && return
            [[ ${COMP_WORDS[1]} == exec && $COMP_CWORD != 2 ]] && return
            COMPREPLY=($(compgen -W "$(sbx ps -a 2>/dev/null | tail -n +2 | cut -d ' ' -f 1)" -- "$2"))
            ;;
    esac
}
complete -F _sbx_named -o nosort -o bashdefault -o default sbx
"#;
const FISH_NAMES: &str = r#"
# The names of sandboxes, where they belong.
function __fish_sbx_names
    sbx ps -a 2>/dev/null | tail -n +2 | cut -d ' ' -f 1
end
complete -c sbx -n "__fish_seen_subcommand_from COMMANDS" -f -a "(__fish_sbx_names)"
complete -c sbx -n "__fish_seen_subcommand_from exec; and test (count (commandline -opc)) = 2" -f -a "(__fish_sbx_names)"
"#;
const ZSH_NAMES: &str = r#"#compdef sbx

# The names of sandboxes, where they belong.
_sbx_names() {
    compadd -- ${(f)"$(sbx ps -a 2>/dev/null | tail -n +2 | cut -d ' ' -f 1)"}
}
"#;

/// A script of clap's with the names of sandboxes. zsh's calls a function for each place, none for a bare word.
fn with_names(shell: Shell, script: &str) -> String {
    let named: Vec<&str> = SMALL.iter().filter(|(.., named)| *named).map(|(name, ..)| *name).collect();
    match shell {
        Shell::Bash => script.to_owned() + &BASH_NAMES.replace("COMMANDS", &named.join(" | ")),
        Shell::Fish => script.to_owned() + &FISH_NAMES.replace("COMMANDS", &named.join(" ")),
        Shell::Zsh => {
            let script = script.replace("'*::NAME:'", "'*::NAME:_sbx_names'");
            let script = script.replace(":NAME -- The sandbox:_default'", ":NAME -- The sandbox:_sbx_names'");
            script.replacen("#compdef sbx\n", ZSH_NAMES, 1)
        }
        _ => script.to_owned(),
    }
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
        .subcommand(super::args::shown_exec())
        .subcommands(SMALL.iter().map(small))
        .subcommand(
            clap::Command::new("completions").arg(clap::Arg::new("SHELL").value_parser(shells.map(|(name, _)| name))),
        )
        .subcommand(clap::Command::new("man").arg(clap::Arg::new("DIR").value_hint(clap::ValueHint::DirPath)));
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut sbx, "sbx", &mut text);
    super::print(&with_names(shell, &String::from_utf8_lossy(&text)))
}
