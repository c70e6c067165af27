//! `sbx run`: argv and policies → Layers → Spec → Plan → launch → exit status.

use super::args::{Parsed, Verb, parse};
use super::detach::{self, LeavingReporter, Side};
use super::report::{Reporter, Voice};
use sbx::error::{Error, Result};
use sbx::front::explain::Explained;
use sbx::front::policy::Source;
use sbx::front::project::{self, Project};
use sbx::front::{env_file, learn, policy, score};
use sbx::host::{self, Host};
use sbx::launch::{Request, Told, Words, launch};
use sbx::plan::explain::Attempt;
use sbx::plan::plan;
use sbx::spec::layer::{Layer, Origin};
use sbx::spec::{Caller, Spec};
use sbx::state::Denied;
use sbx::state::{self, StateDir};
use std::ffi::OsString;
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};

/// Runs the subcommand; the result is the exit status.
pub fn run(words: &[OsString]) -> Result<u8> {
    let parsed = match parse(Verb::Run, words) {
        Ok(parsed) => parsed,
        Err(error) => return super::clap_error(Verb::Run, error),
    };
    super::choose_color(parsed.value("color"))?;
    // Before anything is opened.
    let inherited = if parsed.flag("detach") { detach::inherited()? } else { Vec::new() };
    let caller = host::caller()?;
    let sources = policies(&parsed, &caller)?;
    let layers = layers(&parsed, &caller, &sources)?;
    let learning = learning(&parsed)?;
    let spec = Spec::resolve(&layers, &caller)?;
    let spec = if learning.is_some() { spec.on_copies() } else { spec };
    let name = spec.name().map_or_else(state::generate, str::to_owned);
    let state = state_path(&parsed, &caller)?;
    let host = Host::look(&spec, caller.clone()).map_err(|error| image_meant(error, &layers))?;
    let plan = plan(&spec, &host, &name)?;
    if parsed.flag("dry-run") {
        return dry_run(&parsed, &plan);
    }
    json_of_a_run(&parsed)?;
    let status_fd = status_fd(&parsed)?;
    // Before the pid file, which an error would leave empty.
    let state = StateDir::open(&state)?;
    let pid_file = parsed.value("pid-file").map(PathBuf::from);
    let counted = parsed.flag("cgroup-report");
    let mut reporter = Reporter::new(voice(&parsed), &plan, status_fd, pid_file, counted)?;
    reporter.notes(plan.notes());
    state.sweep();
    let told = Told { pid: reporter.wants_pid(), steps: parsed.flag("verbose"), usage: reporter.wants_usage() };
    let explains = learning.is_some() || parsed.value("explain").is_some();
    let explained = explains.then(|| Explained::new(&spec, &plan, &caller, &sources));
    let words = explained.as_ref().map(|words| words as &dyn Words);
    let exposed = if plan.keeps() { score::rows(&spec, &plan, &host, &caller) } else { Vec::new() };
    let request = Request { state: &state, told, exposed, words };
    let exit = if plan.is_detached() {
        let leaving = match detach::part(&name, inherited)? {
            Side::Caller(status) => return Ok(status),
            Side::Supervisor(leaving) => leaving,
        };
        let mut reporter = LeavingReporter { reporter: &mut reporter, leaving };
        launch(&plan, &host, &request, &mut reporter)
    } else {
        launch(&plan, &host, &request, &mut reporter)
    };
    let exit = exit.inspect_err(|_| reporter.forget_pid_file())?;
    reporter.ended(&exit);
    if words.is_some() && !plan.is_detached() {
        state.keep_why(&name, reporter.denied());
    }
    if let (Some(file), Some(explained)) = (learning, &explained) {
        learned(&file, &layers, &explained.learned(), reporter.denied(), &caller)?;
    }
    // All is given back by now.
    if let Some(signal) = exit.dies_of() {
        sbx::sys::event::die_of(signal);
    }
    Ok(exit.status())
}

/// A bare word that is no directory is the name of an image to those who come from Docker.
fn image_meant(error: Error, layers: &[Layer]) -> Error {
    let Some(typed) = layers.last().and_then(|argv| argv.rootfs.as_ref()) else { return error };
    let name = typed.to_string_lossy();
    match error {
        Error::Spec { field, value, why, .. }
            if field == "ROOTFS" && !name.starts_with(['/', '.', '~']) && !Path::new(typed).exists() =>
        {
            let hint = format!(
                "an unpacked image, for sbx fetches none: docker export \"$(docker create {name})\" | tar -xC DIR"
            );
            Error::Spec { field, value, why, hint: Some(hint) }
        }
        other => other,
    }
}

/// The policies in their order.
fn policies(parsed: &Parsed, caller: &Caller) -> Result<Vec<Source>> {
    // The project's own comes first: whoever types --policy knows better.
    let mut found = match project::look(caller)? {
        Project::Accepted(sources) => sources,
        Project::New if !parsed.flag("quiet") => {
            super::say(&format!("{} is not used until you accept it: sbx policy trust", project::NAME));
            Vec::new()
        }
        Project::New | Project::Absent => Vec::new(),
    };
    for name in parsed.values("policy") {
        found.extend(policy::sources(name, caller)?);
    }
    Ok(found)
}

/// What they say, then the command line.
fn layers(parsed: &Parsed, caller: &Caller, sources: &[Source]) -> Result<Vec<Layer>> {
    let mut layers: Vec<Layer> = sources.iter().map(|source| source.layer.clone()).collect();
    policy::refuse_home(&layers, caller)?;
    let mut argv = parsed.layer()?;
    match parsed.value("seccomp") {
        Some(file) if policy::is_file(file) => {
            let seccomp = policy::seccomp(file, caller)?;
            layers.push(Layer { origin: Origin::Policy(file.into()), seccomp, ..Layer::default() });
        }
        Some(word) => argv.seccomp.filter = Some(word.to_owned()),
        None => {}
    }
    match parsed.value("explain") {
        None | Some("calls" | "files") => {}
        Some(other) => return Err(Error::spec("--explain", other, "not files").or_try("--explain, or --explain=files")),
    }
    if parsed.value("learn").is_some() {
        layers.push(learn::layer(argv.rootfs.as_ref().is_some_and(|rootfs| rootfs == "@host")));
    }
    for text in parsed.values("set") {
        layers.push(set(text)?);
    }
    layers.push(argv);
    env_files(layers, caller)
}

/// There is none but of the plan.
fn json_of_a_run(parsed: &Parsed) -> Result<()> {
    if !parsed.flag("json") {
        return Ok(());
    }
    let hint = Some("--dry-run --json, or --status-fd N for JSON about a run".into());
    Err(Error::Usage { what: "--json belongs to --dry-run".into(), hint })
}

/// The file that a learned policy goes to, which must not be there: a policy is never overwritten unseen.
fn learning(parsed: &Parsed) -> Result<Option<PathBuf>> {
    let Some(file) = parsed.value("learn").map(PathBuf::from) else { return Ok(None) };
    if let Some(other) = ["detach", "rw", "explain"].into_iter().find(|other| parsed.flag_or_value(other)) {
        let what = format!("--learn and --{other} contradict each other");
        return Err(Error::Usage { what, hint: Some("leave one of them out".into()) });
    }
    if file.symlink_metadata().is_ok() {
        return Err(Error::spec("--learn", file.display(), "it is there already").or_try("another name, or remove it"));
    }
    Ok(Some(file))
}

/// Writes what was learned, and says what it grants.
fn learned(file: &Path, layers: &[Layer], used: &[Attempt], denied: &[Denied], caller: &Caller) -> Result<()> {
    let command = layers.last().map(|argv| argv.command.as_slice()).unwrap_or_default();
    let learn::Learned { text, beyond, base } = learn::learn(command, used, denied, caller)?;
    let fail = |error: std::io::Error| Error::Sys {
        doing: "write the policy".into(),
        on: file.display().to_string(),
        errno: error.into(),
    };
    std::fs::File::create_new(file)
        .and_then(|mut made| std::io::Write::write_all(&mut made, text.as_bytes()))
        .map_err(fail)?;
    super::say(&format!("learned: {} extends {base}", file.display()));
    beyond.iter().for_each(|line| super::say(&format!("it grants beyond that: {line}")));
    Ok(())
}

/// A key of a policy on the command line, which may lift a policy's denial.
fn set(text: &str) -> Result<Layer> {
    let layer = policy::parse("--set", text)?;
    if layer.extends.is_empty() {
        return Ok(layer);
    }
    Err(Error::spec("--set", text, "policies are named by --policy").or_try("--policy NAME"))
}

/// The variables of files as layers of their own, each before the one that names it.
pub fn env_files(layers: Vec<Layer>, caller: &Caller) -> Result<Vec<Layer>> {
    let mut all = Vec::new();
    for mut layer in layers {
        all.extend(env_file::read(&mut layer, caller)?);
        all.push(layer);
    }
    Ok(all)
}

pub fn voice(parsed: &Parsed) -> Voice {
    match (parsed.flag("quiet"), parsed.flag("verbose")) {
        (true, _) => Voice::Quiet,
        (false, true) => Voice::Verbose,
        (false, false) => Voice::Usual,
    }
}

/// In the background it is a copy: the caller's own descriptors are closed there when the program has started.
pub fn status_fd(parsed: &Parsed) -> Result<Option<i32>> {
    let Some(text) = parsed.value("status-fd") else { return Ok(None) };
    let number = sbx::spec::text::number("--status-fd", text)?;
    match i32::try_from(number) {
        Ok(number) if parsed.flag("detach") && sbx::sys::event::is_open(number) => {
            let copy = sbx::sys::daemon::dup_above(sbx::sys::borrow(number));
            let fail = |errno| Error::Sys { doing: "copy descriptor".into(), on: text.into(), errno };
            copy.map(|copy| Some(copy.into_raw_fd())).map_err(fail)
        }
        Ok(number) if sbx::sys::event::is_open(number) => Ok(Some(number)),
        _ => Err(Error::spec("--status-fd", text, "this descriptor is not open").or_try("--status-fd 3 3>status.json")),
    }
}

fn dry_run(parsed: &Parsed, plan: &sbx::plan::Plan) -> Result<u8> {
    if parsed.flag("json") { super::print(&format!("{:#}\n", plan.to_json())) } else { super::print(&plan.to_string()) }
}

/// `--state`, else the user's runtime directory, else one below the home that no other boot or machine shares.
pub fn state_path(parsed: &Parsed, caller: &Caller) -> Result<PathBuf> {
    match parsed.value("state") {
        Some(path) => Ok(caller.host_path("--state", path)?.as_path().to_owned()),
        None => Ok(super::default_state(caller)),
    }
}
