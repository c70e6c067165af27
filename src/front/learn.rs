//! From what a run has used and was denied: a small policy, and what it grants beyond the nearest ready one.
//!
//! The run itself was confined, on copies. What it writes here is never a file with secrets, nor a home as a whole; what
//! opens the network or the kernel's own is a comment, for a person to decide.

use super::audit::SECRETS;
use super::policy;
use crate::error::Result;
use crate::plan::explain::{Attempt, Why};
use crate::spec::layer::{Hide, Layer, MountTable, Origin};
use crate::spec::mount::Mount;
use crate::spec::text::Caller;
use crate::state::Denied;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A policy that was learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// Its text.
    pub text: String,
    /// What it grants beyond the ready policy that it extends, a line for each.
    pub beyond: Vec<String>,
    /// The ready policy.
    pub base: &'static str,
}

/// The layer of a run that is learned from: in this machine's own root the home is there, as a copy, but for what is
/// secret.
pub fn layer(in_host: bool) -> Layer {
    if !in_host {
        return Layer { origin: Origin::Argv, explain: Some("learn".into()), ..Layer::default() };
    }
    let home = MountTable {
        src: Some("~".into()),
        dst: Some("~".into()),
        access: Some("overlay".into()),
        optional: Some(true),
        ..MountTable::default()
    };
    let paths = SECRETS.iter().map(|secret| format!("~/{secret}")).collect();
    Layer {
        origin: Origin::Argv,
        explain: Some("learn".into()),
        mount: vec![home],
        hide: Hide { paths },
        ..Layer::default()
    }
}

/// The ready policy for a command.
fn nearest(command: &[OsString]) -> &'static str {
    let word = |word: &OsString| Path::new(word).file_name().map(|name| name.to_string_lossy().into_owned());
    let known = |name: &str| match name {
        "cargo" | "rustc" | "rustup" => Some("cargo"),
        "npm" | "npx" | "pnpm" | "yarn" | "node" => Some("npm"),
        "pip" | "pip3" | "uv" | "python" | "python3" => Some("python"),
        "go" => Some("go"),
        "make" | "cmake" | "ninja" => Some("make"),
        _ => None,
    };
    // Also of a script that a shell is given.
    let words = command.iter().filter_map(word);
    words
        .flat_map(|word| word.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .find_map(|word| known(&word))
        .unwrap_or("build")
}

/// Makes the policy.
///
/// # Errors
/// Of the ready policy's mounts, which depend on the caller's variables.
pub fn learn(command: &[OsString], used: &[Attempt], denied: &[Denied], caller: &Caller) -> Result<Learned> {
    let base = nearest(command);
    let given = granted(base, caller)?;
    let mut places: BTreeMap<PathBuf, bool> = BTreeMap::new();
    for attempt in used {
        let changed = attempt.why == Why::Changed;
        let Some(path) = place(Path::new(&attempt.object), changed, &caller.home) else { continue };
        *places.entry(path).or_insert(false) |= changed;
    }
    // What lies in a copy is in it already.
    let copies: Vec<PathBuf> = places.iter().filter(|(_, changed)| **changed).map(|(path, _)| path.clone()).collect();
    places.retain(|path, _| !copies.iter().any(|copy| copy != path && path.starts_with(copy)));
    let secret = |path: &Path| SECRETS.iter().any(|secret| path.starts_with(caller.home.join(secret)));
    let wanted = places.iter().filter(|(path, _)| {
        **path != caller.cwd && !secret(path) && !given.iter().any(|given| path.starts_with(given))
    });
    let mut text = format!("about = \"learned from: {}\"\nextends = [\"{base}\"]\n", plain(command));
    let mut beyond = Vec::new();
    for (path, changed) in wanted {
        let access = if *changed { "overlay" } else { "ro" };
        let shown = path
            .strip_prefix(&caller.home)
            .map_or_else(|_| path.display().to_string(), |below| format!("~/{}", below.display()));
        let line = if *changed { "access = \"overlay\"  # what it writes there is dropped\n" } else { "" };
        text.push_str(&format!("\n[[mount]]\nsrc = {}\n{line}", quoted(&shown)));
        beyond.push(format!("{shown} ({access})"));
    }
    let (open, refused): (Vec<&Denied>, Vec<&Denied>) = denied.iter().partition(|one| is_call(one));
    let mut calls: Vec<&str> = open.iter().map(|one| one.call.as_str()).collect();
    calls.sort_unstable();
    calls.dedup();
    if !calls.is_empty() {
        let list = calls.iter().map(|call| quoted(call)).collect::<Vec<_>>().join(", ");
        text.push_str(&format!("\n[seccomp]\nallow = [{list}]\n"));
        beyond.extend(calls.iter().map(|call| format!("the system call {call}")));
    }
    text.push_str(&not_granted(&refused));
    Ok(Learned { text, beyond, base })
}

/// What is mounted for a path of the home to be used. Of what is changed the directory that holds it, for only that can be
/// a copy; and nothing for what is not there: the home of a sandbox is empty and can be written.
fn place(path: &Path, changed: bool, home: &Path) -> Option<PathBuf> {
    if !changed || !path.starts_with(home) {
        return path.exists().then(|| path.to_owned());
    }
    let place = path.ancestors().take_while(|place| *place != home).find(|place| place.is_dir())?;
    let holds_secrets = SECRETS.iter().any(|secret| home.join(secret).starts_with(place));
    (!holds_secrets).then(|| place.to_owned())
}

/// A call that a policy opens by its name alone.
fn is_call(denied: &Denied) -> bool {
    denied.toml.as_deref() == Some(&format!("seccomp.allow = [\"{}\"]", denied.call))
}

/// What was denied and stays so, each with what would allow it.
fn not_granted(denied: &[&Denied]) -> String {
    let mut lines: Vec<String> = denied
        .iter()
        .map(|one| {
            let way = one.toml.as_deref().or(one.note.as_deref()).unwrap_or("nothing allows it");
            format!("#   {} {}: {}\n", one.call, one.object, way.replace('\n', "; "))
        })
        .collect();
    lines.dedup();
    if lines.is_empty() { String::new() } else { format!("\n# Denied, and not granted by this:\n{}", lines.concat()) }
}

/// The places of the home that a ready policy shows.
fn granted(base: &str, caller: &Caller) -> Result<Vec<PathBuf>> {
    let mut places = Vec::new();
    for layer in policy::load(base, caller)? {
        for table in &layer.mount {
            places.push(Mount::table(caller, table)?.dst.as_path().to_owned());
        }
    }
    Ok(places)
}

fn plain(command: &[OsString]) -> String {
    let words: Vec<String> = command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let text: String =
        words.join(" ").chars().filter(|c| !c.is_control() && *c != '"' && *c != '\\').take(60).collect();
    text
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
