//! Policy files: TOML → Layer, with errors that point at line and column.

use super::{ready, seccomp_json};
use crate::error::{Error, Result};
use crate::host::files::{c_path, read_bytes, without_links};
use crate::spec::layer::{Layer, MountTable, Origin, Seccomp};
use crate::spec::text::{Caller, nearest};
use crate::sys::fs::{HERE, Kind, Open, fstat, openat};
use crate::sys::{EINVAL, ENOENT};
use std::os::fd::AsFd;
use std::path::Path;

/// A policy is a page or two; more than this is some other file (B53).
const LIMIT: usize = 1 << 20;
/// Each may become a mount, or be compared with each other.
const TEXTS: usize = 4000;
/// Deeper than this nobody can tell what wins.
const DEEPEST: usize = 16;

/// Whether a `--policy` value means a file: it has a slash or ends in `.toml`.
pub fn is_file(name: &str) -> bool {
    name.contains('/') || name.ends_with(".toml") || name.ends_with(".json")
}

/// A policy as it was written.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file, or the name of a ready one.
    pub name: String,
    /// Its text.
    pub text: String,
    /// What it says.
    pub layer: Layer,
}

/// Loads a policy and what it extends, the weakest first.
///
/// # Errors
/// As [`sources`].
pub fn load(name: &str, caller: &Caller) -> Result<Vec<Layer>> {
    Ok(sources(name, caller)?.into_iter().map(|source| source.layer).collect())
}

/// The same with the texts.
///
/// # Errors
/// `Policy` with the place in the file; `Spec` for a name that is none.
pub fn sources(name: &str, caller: &Caller) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    collect(name, caller, &mut Vec::new(), &mut found)?;
    Ok(found)
}

fn collect(name: &str, caller: &Caller, above: &mut Vec<String>, found: &mut Vec<Source>) -> Result<()> {
    let chain = || above.join(" extends ");
    if above.iter().any(|seen| seen == name) {
        return Err(Error::spec("extends", name, format!("a circle: {} extends {name}", chain())));
    }
    if above.len() >= DEEPEST {
        return Err(Error::spec("extends", name, format!("more than {DEEPEST} levels: {}", chain())));
    }
    let source = match is_file(name) {
        true => read(name, caller)?,
        false => ready(name, caller)?,
    };
    above.push(name.to_owned());
    for base in &source.layer.extends {
        // What two policies of the command line extend counts once, where it came first.
        if found.iter().all(|known| known.name != *base) {
            collect(base, caller, above, found)?;
        }
    }
    above.pop();
    found.push(source);
    Ok(())
}

/// A policy of sbx's own.
fn ready(name: &str, caller: &Caller) -> Result<Source> {
    if let Some(ready) = ready::find(name) {
        return source(name, &format!("policies/{name}.toml"), ready.text.into(), caller);
    }
    let error = Error::spec("--policy", name, "no ready policy of this name");
    Err(match nearest(name, ready::names()) {
        Some(near) => error.or_try(near),
        None => error.or_try("`sbx policy ls` lists them; a file has a / in its name, or ends in .toml"),
    })
}

fn source(name: &str, file: &str, text: String, caller: &Caller) -> Result<Source> {
    let mut layer = parse(file, &text)?;
    with_profile(&mut layer.seccomp, caller)?;
    Ok(Source { name: name.into(), text, layer: Layer { origin: Origin::Policy(name.into()), ..layer } })
}

/// Reads the file that `filter` names, if it names one.
pub(super) fn with_profile(seccomp: &mut Seccomp, caller: &Caller) -> Result<()> {
    if let Some(file) = seccomp.filter.take_if(|filter| is_file(filter)) {
        let text = file_text(&file, caller)?;
        seccomp.profile = Some(seccomp_json::parse(&file, &text)?);
        seccomp.filter = Some("default".into());
    }
    Ok(())
}

fn read(file: &str, caller: &Caller) -> Result<Source> {
    let text = file_text(file, caller)?;
    if seccomp_json::is_json(&text) {
        return Err(whole(file, "JSON, and a policy is TOML (a filter of Docker's: --seccomp FILE)".into()));
    }
    source(file, file, text, caller)
}

fn file_text(file: &str, caller: &Caller) -> Result<String> {
    let path = caller.host_path("--policy", file)?;
    text_of(file, path.as_path())?.ok_or_else(|| whole(file, ENOENT.to_string()))
}

fn whole(file: &str, why: String) -> Error {
    Error::Policy { file: file.into(), at: None, text: String::new(), why }
}

/// The text of a policy file; `None` where there is none.
///
/// # Errors
/// `Policy` for what is no regular file of sane size and UTF-8, and for one that everybody may write: who can change it
/// decides what the sandbox may do.
pub(super) fn text_of(file: &str, path: &Path) -> Result<Option<String>> {
    let open = match openat(HERE, &c_path(path), Open::Read) {
        Err(ENOENT) => return Ok(None),
        other => other.map_err(|errno| whole(file, errno.to_string()))?,
    };
    let stat = fstat(open.as_fd()).map_err(|errno| whole(file, errno.to_string()))?;
    if stat.kind == Kind::File && stat.mode & 0o002 != 0 {
        return Err(whole(file, "everybody may write to it (chmod o-w)".into()));
    }
    let bytes = read_bytes(open.as_fd(), LIMIT).map_err(|errno| match errno {
        EINVAL => whole(file, "not a regular file".into()),
        other => whole(file, other.to_string()),
    })?;
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|e| whole(file, format!("not UTF-8, from byte {} on", e.utf8_error().valid_up_to())))
}

/// `.` in a policy means a project. Where the caller stands in their home, or above it, however that is spelled, it would
/// be all that policies are there to hide.
///
/// # Errors
/// `Spec` where a policy mounts it.
pub fn refuse_home(layers: &[Layer], caller: &Caller) -> Result<()> {
    let here = |table: &MountTable| table.src.as_deref().is_some_and(|src| Path::new(src) == Path::new("."));
    let mounted = layers.iter().flat_map(|layer| &layer.mount).any(here);
    let above = |home: &Path| home.starts_with(&caller.cwd) && (home != Path::new("/") || caller.cwd == Path::new("/"));
    if !mounted || !above(&caller.home) && !above(&without_links(&caller.home)) {
        return Ok(());
    }
    let why = format!("`.` is {}, which is or holds your home, and not a project", caller.cwd.display());
    Err(Error::spec("[[mount]] src", ".", why).or_try("cd to the project"))
}

/// Parses a policy's text.
///
/// # Errors
/// `Policy` with line, column, the line's text and, for an unknown key, the nearest known one.
pub fn parse(file: &str, text: &str) -> Result<Layer> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let nested = text.bytes().filter(|b| *b == b'[').count();
    if nested > 10_000 {
        let why = "more than 10000 brackets".to_owned();
        return Err(Error::Policy { file: file.into(), at: None, text: String::new(), why });
    }
    if text.bytes().filter(|b| matches!(b, b'"' | b'\'')).count() > 2 * TEXTS {
        let why = format!("more than {TEXTS} texts");
        return Err(Error::Policy { file: file.into(), at: None, text: String::new(), why });
    }
    toml::from_str(text).map_err(|error| located(file, text, &error))
}

fn located(file: &str, text: &str, error: &toml::de::Error) -> Error {
    let offset = error.span().map_or(0, |span| span.start).min(text.len());
    let before = &text.as_bytes()[..offset];
    let line = before.iter().filter(|b| **b == b'\n').count();
    let start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
    let shown = text.lines().nth(line).unwrap_or("").to_owned();
    Error::Policy { file: file.into(), at: Some((line + 1, column)), text: shown, why: reason(error.message()) }
}

/// The parser's reason, and for an unknown key the nearest of those it would have taken.
fn reason(message: &str) -> String {
    let Some((what, known)) = message.split_once(", expected") else { return message.to_owned() };
    let Some(key) = what.strip_prefix("unknown field `").and_then(|rest| rest.strip_suffix('`')) else {
        return message.to_owned();
    };
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    match nearest(key, known.iter().copied()) {
        Some(near) => format!("unknown key {key}; did you mean {near}?"),
        None => format!("unknown key {key}; known here: {}", known.join(", ")),
    }
}

/// The seccomp table of a file, and nothing else of it, or a filter of another program's making: `--seccomp FILE`.
///
/// # Errors
/// As [`load`] and [`seccomp_json::parse`]; `Policy` where the file has other tables, which would be silently dropped.
pub fn seccomp(file: &str, caller: &Caller) -> Result<Seccomp> {
    let text = file_text(file, caller)?;
    if seccomp_json::is_json(&text) {
        let profile = Some(seccomp_json::parse(file, &text)?);
        return Ok(Seccomp { filter: Some("default".into()), profile, ..Seccomp::default() });
    }
    let layer = source(file, file, text, caller)?.layer;
    let rest = Layer { seccomp: Seccomp::default(), about: None, ..layer.clone() };
    let empty = Layer { origin: layer.origin.clone(), ..Layer::default() };
    if rest != empty {
        return Err(whole(file, "holds more than [seccomp]; load the whole of it with --policy".into()));
    }
    Ok(layer.seccomp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse("p.toml", text).map_or_else(|e| e.to_string(), |_| "accepted".into())
    }

    #[test]
    fn keys_are_those_of_the_options() {
        let text = "about = \"x\"\n[limits]\npids = 5\ntimeout = \"30m\"\n[caps]\ndrop = [\"all\"]\n[root]\nread-only = true\n";
        let layer = parse("p.toml", text).expect("parses");
        assert_eq!(layer.caps.drop, ["all"]);
        assert_eq!(layer.root.read_only, Some(true));
    }

    #[test]
    fn errors_point_at_the_place() {
        assert_eq!(error("[limits]\npid = 5\n"), "p.toml:2:1: unknown key pid; did you mean pids?");
        assert!(error("[limits]\npids = [1]\n").starts_with("p.toml:2:8: "));
        assert!(error("a = 1\na = 2\n").starts_with("p.toml:"), "{}", error("a = 1\na = 2\n"));
        assert!(error("[limits]\npids = 1\npids = 2\n").starts_with("p.toml:3:1: "));
        assert!(error(&"[".repeat(20_000)).contains("brackets"));
        assert_eq!(error(""), "accepted");
        assert_eq!(error("\u{feff}about = \"x\"\r\n"), "accepted");
    }

    #[test]
    fn a_circle_and_a_tower_are_told_apart() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |n: usize| dir.path().join(format!("{n}.toml")).display().to_string();
        let extend = |n: usize, base: usize| {
            std::fs::write(file(n), format!("extends = [{:?}]\n", file(base))).expect("a policy");
        };
        let why = || load(&file(0), &Caller::default()).map_or_else(|e| e.to_string(), |_| "accepted".into());
        (0..20).for_each(|n| extend(n, n + 1));
        assert!(why().contains("more than 16 levels"), "{}", why());
        extend(1, 0);
        assert!(why().contains("a circle"), "{}", why());
    }

    #[test]
    fn ready_policies_are_policies() {
        for name in ready::names() {
            let layers = load(name, &Caller::default()).expect("a policy");
            assert!(layers.iter().all(|layer| layer.about.is_some()), "{name}");
        }
        let error = load("crago", &Caller::default()).expect_err("unknown");
        assert_eq!(error.hint(), Some("cargo"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}|[\\[\\]a-z=\"\\n{}. 0-9]{0,80}") {
            let _ = parse("p.toml", &text);
        }
    }
}
