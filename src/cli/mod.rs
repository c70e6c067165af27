//! The command line: which subcommand, and the printing of errors. The first word decides before clap builds
//! anything. Only this folder prints.

mod apply;
mod args;
mod attach;
mod audit;
mod check;
mod command;
mod detach;
mod diff;
mod exec;
mod files;
mod lifecycle;
mod limits;
mod list;
mod logs;
mod policy;
mod report;
mod run;
mod stats;
mod table;
mod why;

use crate::hint;
use sbx::error::{Error, Result, shortened, visible};
use sbx::spec::Caller;
use sbx::sys::event;
use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Options that may stand before the subcommand, and whether a value follows.
const GLOBAL: [(&str, bool); 5] =
    [("--state", true), ("--verbose", false), ("--quiet", false), ("-q", false), ("--color", true)];

const HELP: &str = "\
sbx: run a program in a sandbox of your own: no root, no daemon

Usage: sbx [--state DIR] [--verbose] [-q|--quiet] [--color auto|always|never] COMMAND …

Commands:
  run [OPTIONS] ROOTFS [COMMAND [ARG…]]  run a program in a new sandbox
  exec [OPTIONS] NAME COMMAND [ARG…]     run one more program in a sandbox
  ps [-a] [--json]                       list sandboxes
  inspect NAME…                          all that is known of them, as JSON
  stats [NAME…] [--no-stream] [--json]   what they use of memory, processors, processes and io
  wait NAME…                             wait for their ends, print their statuses
  stop [-t SECONDS] NAME…                end them: TERM, then KILL
  kill [-s SIGNAL] NAME…                 send a signal (KILL)
  pause NAME…, resume NAME…              let nothing in them run; let them run again
  rm [-f] NAME…, prune                   forget those that have ended
  logs [-f] NAME                         what a sandbox in the background has written
  attach NAME                            see what it writes from now on, and type into it
  diff [-p] NAME [--json]                what it has added, changed and deleted
  apply [--all] NAME [PATH…]             take that over into the host's directories
  discard NAME…                          drop it
  why [NAME] [--json]                    what a run with --explain was denied
  policy ls|show|check|trust …           the ready policies; one as resolved; what is wrong; accept a project's own
  check [--json]                         what this host can do, and what helps where it cannot (also: doctor)
  check --audit POLICY|NAME              how much a sandbox is exposed, as a number
  completions SHELL                      completions for bash, zsh, fish or elvish
  man DIR                                write the man pages into DIR

  --help, --version

`sbx run --help` lists the options; sbx(1) explains them.
";

const COMMANDS: [&str; 25] = [
    "run",
    "exec",
    "ps",
    "logs",
    "attach",
    "diff",
    "apply",
    "discard",
    "inspect",
    "stats",
    "wait",
    "stop",
    "kill",
    "pause",
    "resume",
    "rm",
    "prune",
    "why",
    "policy",
    "check",
    "doctor",
    "completions",
    "man",
    "--help",
    "--version",
];

/// The program: returns the exit status.
pub fn main() -> u8 {
    std::panic::set_hook(Box::new(|info| {
        if !sbx::sys::sabotaged(c"panic-hook") {
            sbx::sys::tty::restore_remembered();
        }
        say(&format!("bug in sbx: {info}"));
    }));
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    match unelevated().and_then(|()| dispatch(words)) {
        Ok(status) => status,
        Err(error) => {
            let status = fail(&error);
            if let Error::Interrupted(signal @ (event::SIGINT | event::SIGQUIT)) = error {
                event::die_of(signal);
            }
            status
        }
    }
}

/// Whoever may run sbx may have it do anything, so it must never have more rights than its caller (S09).
fn unelevated() -> Result<()> {
    if !sbx::sys::cred::elevated() {
        return Ok(());
    }
    let why = "the program file has a set-id bit or capabilities, and sbx is not made for that";
    let hint = "take them away: chmod ug-s, setcap -r; sbx needs no privileges";
    Err(Error::Unsupported { feature: "set-id".into(), why: why.into(), hint: Some(hint.into()) })
}

/// Moves global options behind the subcommand, where its parser takes them.
fn dispatch(words: Vec<OsString>) -> Result<u8> {
    let mut globals = Vec::new();
    let mut words = words.into_iter();
    let command = loop {
        let Some(word) = words.next() else { return usage("no command") };
        let known = GLOBAL.iter().find(|(name, takes)| {
            word == *name || (*takes && word.to_str().is_some_and(|w| w.starts_with(&format!("{name}="))))
        });
        match known {
            Some((name, true)) if word == *name => {
                globals.push(word);
                globals.extend(words.next());
            }
            Some(_) => globals.push(word),
            None => break word,
        }
    };
    let own: Vec<OsString> = words.collect();
    let rest: Vec<OsString> = globals.into_iter().chain(own.iter().cloned()).collect();
    match command.to_str() {
        Some("run") => run::run(&rest),
        Some("exec") => exec::exec(&rest),
        Some("diff") => diff::diff(&rest),
        Some("apply") => apply::apply(&rest),
        Some("discard") => apply::discard(&rest),
        Some("why") => why::why(&rest),
        Some("policy") => policy::run(&rest),
        Some("ps") => list::ps(&rest),
        Some("inspect") => list::inspect(&rest),
        Some("stats") => stats::stats(&rest),
        Some("wait") => lifecycle::wait(&rest),
        Some("stop") => lifecycle::stop(&rest),
        Some("kill") => lifecycle::kill(&rest),
        Some("pause") => lifecycle::pause(&rest),
        Some("resume") => lifecycle::resume(&rest),
        Some("rm") => lifecycle::rm(&rest),
        Some("prune") => lifecycle::prune(&rest),
        Some("logs") => logs::logs(&rest),
        Some("attach") => attach::attach(&rest),
        Some("check" | "doctor") => check::check(&rest),
        Some("completions") => files::completions(&own),
        Some("man") => files::man(&own),
        Some("--help" | "-h" | "help") => print(HELP),
        Some("--version" | "-V") => print(&format!("sbx {}\n", env!("CARGO_PKG_VERSION"))),
        _ => unknown(&command),
    }
}

fn usage(what: &str) -> Result<u8> {
    Err(Error::Usage { what: what.into(), hint: Some("sbx --help".into()) })
}

fn usage_of(what: &str, hint: &str) -> Result<u8> {
    Err(Error::Usage { what: what.into(), hint: Some(hint.into()) })
}

fn unknown(command: &OsStr) -> Result<u8> {
    let text = command.to_string_lossy();
    let near = sbx::spec::text::nearest(&text, COMMANDS);
    let hint = near.map_or_else(|| "sbx --help".to_owned(), |near| format!("sbx {near}"));
    Err(Error::Usage { what: format!("{text} is not a command of sbx"), hint: Some(hint) })
}

/// Help goes to stdout and is a success; everything else is a usage error.
fn clap_error(verb: args::Verb, error: clap::Error) -> Result<u8> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    if error.kind() == ErrorKind::DisplayHelp {
        let mut shown = if verb == args::Verb::Run { args::shown() } else { args::shown_exec() };
        return print(&shown.render_help().to_string());
    }
    let text = error.render().to_string();
    let first = text.lines().next().unwrap_or("not understood");
    let habit = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) if error.kind() == ErrorKind::UnknownArgument => args::habit(option),
        _ => None,
    };
    let near = [ContextKind::SuggestedArg, ContextKind::SuggestedValue].into_iter().find_map(|kind| error.get(kind));
    let hint = habit.map(str::to_owned).or_else(|| near.map(ToString::to_string));
    let help = if verb == args::Verb::Run { "sbx run --help" } else { "sbx exec --help" };
    let hint = hint.unwrap_or_else(|| help.to_owned());
    Err(Error::Usage { what: first.strip_prefix("error: ").unwrap_or(first).to_owned(), hint: Some(hint) })
}

/// Prints to stdout. A reader that is gone is no error of ours, a full disk is one.
fn print(text: &str) -> Result<u8> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::Sys { doing: "write to".into(), on: "standard output".into(), errno: error.into() })
        }
        _ => Ok(0),
    }
}

/// Whether messages are colored: see `choose_color`.
static COLOR: AtomicBool = AtomicBool::new(false);

/// `--color`: `auto` colors on a terminal, unless `NO_COLOR` is set (no-color.org).
fn choose_color(word: Option<&str>) -> Result<()> {
    let terminal = || std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let chosen = match word {
        None => terminal(),
        Some(word) => {
            let words = [("auto", None), ("always", Some(true)), ("never", Some(false))];
            sbx::spec::text::word("--color", word, &words)?.unwrap_or_else(terminal)
        }
    };
    COLOR.store(chosen, Relaxed);
    Ok(())
}

/// One message on stderr, in one write, so that messages of two processes do not mix.
fn say(text: &str) {
    let name = if COLOR.load(Relaxed) { "\x1b[1msbx:\x1b[0m" } else { "sbx:" };
    let _ = std::io::stderr().write_all(format!("{name} {text}\n").as_bytes());
}

/// At most four lines: what on what; where; why; try.
fn fail(error: &Error) -> u8 {
    let facts = match hint::wants_facts(error) {
        // A caller whose working directory is gone can still be told what its variables do not decide.
        true => sbx::host::check::look(&sbx::host::caller().unwrap_or_default()).into(),
        false => hint::Facts::default(),
    };
    let advice = hint::advice(error, &facts);
    let mut text = error.to_string();
    if let Some(place) = error.place() {
        text.push_str(&format!("\n  at:  {place}"));
    }
    if let Some(why) = advice.why {
        text.push_str(&format!("\n  why: {}", visible(&why)));
    }
    if let Some(hint) = advice.hint {
        text.push_str(&format!("\n  try: {}", visible(&hint)));
    }
    say(&shortened(&text));
    error.exit_status()
}

/// `$XDG_RUNTIME_DIR/sbx`, else a directory below the home that belongs to this boot alone.
fn default_state(caller: &Caller) -> PathBuf {
    let runtime = caller.var("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute() && path.is_dir());
    match runtime {
        Some(runtime) => runtime.join("sbx"),
        None => caller.home.join(".local/state/sbx").join(sbx::host::boot_id()),
    }
}
