//! `--env-file`: lines of `K=V`, or `K` for the caller's value; `#` starts a comment line, as Docker has it.

use crate::error::{Error, Result};
use crate::spec::layer::{Env, Layer};
use crate::spec::text::Caller;
use std::io::Read;
use std::path::Path;

/// A file of variables is a few lines; more than this is some other file.
const LIMIT: u64 = 1 << 20;

/// Reads the files that a layer's `[env]` names, each into a layer of its own: they come before it, so that what the
/// table itself sets or passes wins.
///
/// # Errors
/// `Sys` where a file cannot be read, `Spec` where it is no text, `Policy` with the line where one is wrong.
pub fn read(layer: &mut Layer, caller: &Caller) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    for file in std::mem::take(&mut layer.env.env_file) {
        let mut env = Env::default();
        let path = caller.host_path("--env-file", &file)?;
        let text = text(&file, path.as_path())?;
        for (number, line) in text.lines().enumerate() {
            one(&mut env, line).map_err(|why| Error::Policy {
                file: file.clone(),
                at: Some((number + 1, 1)),
                text: line.into(),
                why: why.into(),
            })?;
        }
        layers.push(Layer { origin: layer.origin.clone(), env, ..Layer::default() });
    }
    Ok(layers)
}

/// Waits for a pipe's writer, as a shell's `<(…)` needs.
fn text(file: &str, path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|open| open.take(LIMIT + 1).read_to_end(&mut bytes));
    read.map_err(|error| Error::Sys { doing: "read".into(), on: file.into(), errno: error.into() })?;
    let refuse = |why: String| Error::spec("--env-file", file, why).or_try("a text with a line K=V for each variable");
    if bytes.contains(&0) {
        return Err(refuse("holds a NUL byte, so it is no text".into()));
    }
    if bytes.len() as u64 > LIMIT {
        return Err(refuse("larger than 1 MiB".into()));
    }
    String::from_utf8(bytes).map_err(|e| refuse(format!("not UTF-8, from byte {} on", e.utf8_error().valid_up_to())))
}

fn one(env: &mut Env, line: &str) -> std::result::Result<(), &'static str> {
    let line = line.trim_start();
    if line.is_empty() || line.starts_with('#') {
        return Ok(());
    }
    match line.split_once('=') {
        Some(("", _)) => return Err("a variable without a name"),
        Some((name, _)) if name.contains(char::is_whitespace) => return Err("a name does not hold spaces"),
        Some((name, value)) => {
            env.set.insert(name.into(), value.into());
        }
        None if line.contains(char::is_whitespace) => return Err("not K=V"),
        None => env.pass.push(line.into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_set_pass_or_say_nothing() {
        let mut env = Env::default();
        for line in ["A=1=2", "# B=2", "", "C", "D="] {
            assert_eq!(one(&mut env, line), Ok(()));
        }
        assert_eq!(env.set.len(), 2);
        assert_eq!(env.pass, ["C"]);
        for line in ["=x", "a b=c", "a b"] {
            assert!(one(&mut env, line).is_err(), "{line}");
        }
    }
}
