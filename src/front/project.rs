//! A project's own policy, `.sbx.toml` in the caller's directory: a stranger's until it has been accepted.
//!
//! What was accepted is kept as a whole, outside of the project, under the path that the file had; the file is used as
//! long as it is equal to that. So a change shows as what it is, and nothing depends on a hash.

use super::policy;
use super::policy::{Source, is_file, parse, text_of};
use crate::error::{Error, Result, visible};
use crate::host::files::without_links;
use crate::spec::layer::{Layer, MountTable, Origin};
use crate::spec::text::Caller;
use crate::sys::cred::geteuid;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Its name.
pub const NAME: &str = ".sbx.toml";
/// Lines of a change that are shown.
const MOST: usize = 40;

/// How it stands with the file.
#[derive(Debug)]
pub enum Project {
    /// There is none.
    Absent,
    /// Nobody has accepted it.
    New,
    /// It is as it was accepted: what it says, with what it extends, the weakest first.
    Accepted(Vec<Source>),
}

/// Looks for the project's own policy.
///
/// # Errors
/// `Policy` where it is not what was accepted, with what has changed, or cannot be a policy.
pub fn look(caller: &Caller) -> Result<Project> {
    let path = caller.cwd.join(NAME);
    let text = match text_of(NAME, &path) {
        Ok(None) => return Ok(Project::Absent),
        read => read,
    };
    let Some(accepted) = accepted(caller, &path)? else { return Ok(Project::New) };
    let text = text?.unwrap_or_default();
    if accepted == text {
        return sources(NAME, text, caller).map(Project::Accepted);
    }
    let why = format!("not what you have accepted:\n{}", changes(&accepted, &text));
    Err(Error::State { on: NAME.into(), why, hint: Some("read it, then: sbx policy trust".into()) })
}

/// What a project's policy says, with the ready ones that it extends.
///
/// # Errors
/// As [`parse`]; `Policy` where it extends a file, which could change while this one does not.
pub fn sources(file: &str, text: String, caller: &Caller) -> Result<Vec<Source>> {
    let layer = Layer { origin: Origin::Policy(file.into()), ..parse(file, &text)? };
    let filter = layer.seccomp.filter.as_deref().filter(|filter| is_file(filter));
    let mut found = Vec::new();
    if let Some(other) = layer.extends.iter().map(String::as_str).chain(filter).find(|name| is_file(name)) {
        let why = format!("a project's own policy is one file and extends ready ones only, and {other} is a file");
        return Err(Error::Policy { file: file.into(), at: None, text: String::new(), why });
    }
    if let Some(other) = layer.env.env_file.first() {
        let why = format!("a project's own policy names no env-file, which could change while it does not: {other}");
        return Err(Error::Policy { file: file.into(), at: None, text: String::new(), why });
    }
    // The program could put a link in its own place, and be shown what that leads to the next time.
    let here = |table: &&MountTable| table.src.as_deref().is_some_and(|src| src.starts_with('.'));
    for src in layer.mount.iter().filter(here).filter_map(|table| table.src.as_deref()) {
        let path = caller.host_path("src", src)?;
        let real = without_links(&caller.cwd).join(path.as_path().strip_prefix(&caller.cwd).unwrap_or(path.as_path()));
        if std::fs::canonicalize(path.as_path()).is_ok_and(|leads| leads != real) {
            let why = format!("{src} leads elsewhere by a link, which a project's own policy may not");
            return Err(Error::Policy { file: file.into(), at: None, text: String::new(), why });
        }
    }
    for base in &layer.extends {
        found.extend(policy::sources(base, caller)?);
    }
    found.push(Source { name: file.into(), text, layer });
    Ok(found)
}

/// Reads a file that may be accepted.
///
/// # Errors
/// Those of [`sources`], and `Policy` where there is none.
pub fn open(caller: &Caller, file: &str) -> Result<Vec<Source>> {
    let path = caller.host_path("FILE", file)?;
    let missing = || Error::Policy { file: file.into(), at: None, text: String::new(), why: "no such file".into() };
    let text = text_of(file, path.as_path())?.ok_or_else(missing)?;
    sources(file, text, caller)
}

/// Accepts this text of a file.
///
/// # Errors
/// `Sys` where the copy cannot be kept, `State` where others could change it.
pub fn accept(caller: &Caller, file: &str, text: &str) -> Result<()> {
    keep(&copy_of(caller, caller.host_path("FILE", file)?.as_path())?, text)
}

/// Where the accepted text of a file lies: the same path below a directory of the caller's own.
fn copy_of(caller: &Caller, path: &Path) -> Result<PathBuf> {
    let top = caller.data_home().join("sbx/trust");
    if let Ok(meta) = top.symlink_metadata()
        && (!meta.is_dir() || meta.uid() != geteuid() || meta.mode() & 0o022 != 0)
    {
        let why = "others could put in here what you have accepted";
        let hint = Some(format!("a directory of your own, with mode 700, at {}", top.display()));
        return Err(Error::State { on: top.display().to_string(), why: why.into(), hint });
    }
    // Not through a link: another project's would be accepted with it.
    let name = path.file_name().unwrap_or_default();
    let real = without_links(path.parent().unwrap_or(path)).join(name);
    Ok(top.join(real.strip_prefix("/").unwrap_or(&real)))
}

fn accepted(caller: &Caller, path: &Path) -> Result<Option<String>> {
    let copy = copy_of(caller, path)?;
    match std::fs::read_to_string(&copy) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(Error::Sys { doing: "read".into(), on: copy.display().to_string(), errno: error.into() }),
    }
}

fn keep(copy: &Path, text: &str) -> Result<()> {
    let fail = |error: std::io::Error| Error::Sys {
        doing: "keep what you accept in".into(),
        on: copy.display().to_string(),
        errno: error.into(),
    };
    let dir = copy.parent().unwrap_or(copy);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
    let new = copy.with_extension("new");
    let write = || {
        let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        std::fs::rename(&new, copy)
    };
    write().map_err(fail)
}

/// The lines that differ, between those that are equal at the beginning and at the end.
fn changes(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let same = old.iter().zip(&new).take_while(|(one, other)| one == other).count();
    let (old, new) = (&old[same..], &new[same..]);
    let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(one, other)| one == other).count();
    let gone = old[..old.len() - tail].iter().map(|line| format!("- {}", visible(line)));
    let come = new[..new.len() - tail].iter().map(|line| format!("+ {}", visible(line)));
    let mut lines: Vec<String> = gone.chain(come).collect();
    if lines.is_empty() {
        lines.push("(the ends of lines only)".into());
    }
    if lines.len() > MOST {
        let more = lines.len() - MOST;
        lines.truncate(MOST);
        lines.push(format!("… and {more} lines more"));
    }
    format!("@ line {}\n{}", same + 1, lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_shown_where_they_are() {
        assert_eq!(changes("a\nb\nc\n", "a\nx\ny\nc\n"), "@ line 2\n- b\n+ x\n+ y");
        assert_eq!(changes("a\n", "a\nb\u{1b}[2J\n"), format!("@ line 2\n+ b{}[2J", visible("\u{1b}")));
        assert_eq!(changes("a\n", "a\r\n"), "@ line 2\n(the ends of lines only)");
        let long: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert!(changes("", &long).ends_with("… and 60 lines more"));
    }

    #[test]
    fn it_extends_ready_policies_only() {
        let found = |text: &str| sources("p", text.into(), &Caller::default()).map(|found| found.len());
        assert_eq!(found("extends = [\"cargo\"]\n").ok(), Some(4));
        assert!(found("extends = [\"./other.toml\"]\n").is_err());
    }
}
