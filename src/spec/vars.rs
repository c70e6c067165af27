//! The variables that a path of a policy may begin with, and where each leads when the caller has it not.
//!
//! A short list on purpose: a policy means the same on every machine, and no variable of the caller's that nobody
//! thought of decides what is shown.

use super::text::{Caller, HostPath, InnerPath, nearest};
use crate::error::{Error, Result};
use std::ffi::OsString;
use std::path::Path;

/// Each variable, and what its tool takes without it: itself a path of a policy.
pub const VARIABLES: [(&str, &str); 20] = [
    ("CARGO_HOME", "~/.cargo"),
    ("FNM_DIR", "$XDG_DATA_HOME/fnm"),
    ("FNM_MULTISHELL_PATH", "$FNM_DIR/aliases/default"),
    ("GOCACHE", "$XDG_CACHE_HOME/go-build"),
    ("GOMODCACHE", "$GOPATH/pkg/mod"),
    ("GOPATH", "~/go"),
    ("HOME", "~"),
    ("NPM_CONFIG_CACHE", "~/.npm"),
    ("NVM_DIR", "~/.nvm"),
    ("PIP_CACHE_DIR", "$XDG_CACHE_HOME/pip"),
    ("PNPM_HOME", "$XDG_DATA_HOME/pnpm"),
    ("PYENV_ROOT", "~/.pyenv"),
    ("RUSTUP_HOME", "~/.rustup"),
    ("TMPDIR", "/tmp"),
    ("UV_CACHE_DIR", "$XDG_CACHE_HOME/uv"),
    ("XDG_CACHE_HOME", "~/.cache"),
    ("XDG_CONFIG_HOME", "~/.config"),
    ("XDG_DATA_HOME", "~/.local/share"),
    ("XDG_STATE_HOME", "~/.local/state"),
    ("YARN_CACHE_FOLDER", "$XDG_CACHE_HOME/yarn"),
];

impl Caller {
    /// A path outside as a policy has it: absolute, from `.`, `~` or one of [`VARIABLES`].
    ///
    /// # Errors
    /// `Spec` for a variable that is not in the list, or whose value is no absolute path.
    pub fn policy_path(&self, field: &str, text: &str) -> Result<HostPath> {
        let Some(rest) = text.strip_prefix('$') else { return self.host_path(field, text) };
        let (name, below) = rest.split_once('/').unwrap_or((rest, ""));
        let base = self.variable(field, text, name)?;
        self.host_path(field, base.as_path().join(below))
    }

    /// A path inside as a policy has it: absolute; or from `.`, `~` or a variable, which mean the same place inside
    /// as outside: what a build tool expects of its project.
    ///
    /// # Errors
    /// As [`Caller::policy_path`], and those of [`InnerPath::parse`].
    pub fn inner_path(&self, field: &str, text: &str) -> Result<InnerPath> {
        if !text.starts_with(['.', '~', '$']) {
            return InnerPath::parse(field, text);
        }
        let path = self.policy_path(field, text)?;
        if path.as_path().to_str().is_none() {
            let why = format!("{path} is not UTF-8, and such a place would be missed");
            return Err(Error::spec(field, text, why).or_try("a directory with another name"));
        }
        InnerPath::parse(field, path.as_path())
    }

    fn variable(&self, field: &str, text: &str, name: &str) -> Result<HostPath> {
        let Some((_, otherwise)) = VARIABLES.iter().find(|(known, _)| *known == name) else {
            let known = VARIABLES.iter().map(|(known, _)| *known);
            let error = Error::spec(field, text, format!("${name} is not a variable that a path may begin with"));
            return Err(match nearest(name, known) {
                Some(near) => error.or_try(format!("${near}")),
                None => error.or_try("sbx-policy(5) has the list"),
            });
        };
        // npm reads the variable in either case, and its users write it in lower.
        let lower = name.to_ascii_lowercase();
        match self.var(name).or_else(|| self.var(&lower)).filter(|value| !value.is_empty()) {
            Some(value) if Path::new(value).is_absolute() => self.host_path(field, OsString::from(value)),
            Some(_) => Err(Error::spec(field, text, format!("your ${name} is not an absolute path"))),
            None => self.policy_path(field, otherwise),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(env: &[(&str, &str)]) -> Caller {
        let env = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Caller { cwd: "/work".into(), home: "/home/me".into(), env }
    }

    fn path(env: &[(&str, &str)], text: &str) -> String {
        caller(env).policy_path("src", text).map_or_else(|error| format!("error: {error}"), |path| path.to_string())
    }

    #[test]
    fn a_path_begins_with_a_place_or_a_variable() {
        assert_eq!(path(&[], "."), "/work");
        assert_eq!(path(&[], "~/.ssh"), "/home/me/.ssh");
        assert_eq!(path(&[], "$CARGO_HOME/registry"), "/home/me/.cargo/registry");
        assert_eq!(path(&[("CARGO_HOME", "/opt/cargo")], "$CARGO_HOME/registry"), "/opt/cargo/registry");
        assert_eq!(path(&[("XDG_CACHE_HOME", "/c")], "$GOCACHE"), "/c/go-build");
        assert_eq!(path(&[("npm_config_cache", "/n")], "$NPM_CONFIG_CACHE"), "/n");
        assert_eq!(path(&[("CARGO_HOME", "")], "$CARGO_HOME"), "/home/me/.cargo");
    }

    #[test]
    fn other_variables_and_relative_values_are_refused() {
        assert!(path(&[("SECRET", "/s")], "$SECRET").contains("not a variable that a path may begin with"));
        let error = caller(&[]).policy_path("src", "$CARGO_HOMES/x").expect_err("unknown");
        assert_eq!(error.hint(), Some("$CARGO_HOME"));
        assert!(path(&[("GOPATH", "go")], "$GOPATH").contains("not an absolute path"));
    }

    #[test]
    fn every_default_leads_somewhere() {
        for (name, _) in VARIABLES {
            assert!(path(&[], &format!("${name}")).starts_with('/'), "{name}");
        }
    }

    #[test]
    fn inner_paths_are_the_same_places() {
        let inner = |text| caller(&[]).inner_path("dst", text).map(|path| path.to_string());
        assert_eq!(inner("."), Ok("/work".into()));
        assert_eq!(inner("/opt/x"), Ok("/opt/x".into()));
        assert!(inner("x").is_err());
    }
}
