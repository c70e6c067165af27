//! What to try: a pure match over an error and facts about this host. Errors that already carry their advice
//! are left alone.

use sbx::error::{Errno, Error};

/// Facts that advice depends on; gathered only after something failed.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Each thing in the way, the most likely first: why, and what helps.
    pub obstacles: Vec<(String, String)>,
}

/// Why and try, the third and fourth line of a report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// A fact about this host.
    pub why: Option<String>,
    /// Something to type.
    pub hint: Option<String>,
}

const EPERM: i32 = 1;
const ENOSPC: i32 = 28;
const EAGAIN: i32 = 11;
const ENOSYS: i32 = 38;
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;

/// The advice for an error.
pub fn advice(error: &Error, facts: &Facts) -> Advice {
    if let Some(hint) = error.hint() {
        return Advice { why: None, hint: Some(hint.to_owned()) };
    }
    let (why, hint) = match error {
        Error::Step { errno: Errno(errno @ (EMFILE | ENFILE)), .. }
        | Error::Sys { errno: Errno(errno @ (EMFILE | ENFILE)), .. } => {
            let whose = if *errno == EMFILE { "this process has" } else { "this machine has" };
            (format!("{whose} as many files open as it may"), "ulimit -n 1024, or close some".to_owned())
        }
        Error::Step { call, errno: Errno(ENOSYS), .. } => (
            format!("{call} is missing: the kernel is older than 5.14, or a seccomp filter around sbx hides it"),
            "a newer kernel, or the outer container's `--security-opt seccomp=unconfined`".to_owned(),
        ),
        Error::Step { place, errno: Errno(EPERM | ENOSPC | EAGAIN), .. }
        | Error::Step { place, errno: Errno(13), .. } => match facts.obstacles.first() {
            Some((why, hint)) => (why.clone(), hint.clone()),
            None => (format!("the kernel refused step {}", place.number), "sbx check".to_owned()),
        },
        Error::Step { .. } => return Advice { why: None, hint: Some("sbx check; --verbose shows each step".into()) },
        Error::Helper { program, .. } => (
            format!("{program} writes the id maps for you and must be set-uid root or have its file capability"),
            "--map root, which needs no helper; or reinstall the package uidmap".to_owned(),
        ),
        Error::Bug(_) => return Advice { why: None, hint: Some("report it with the output of `sbx check`".into()) },
        _ => return Advice::default(),
    };
    Advice { why: Some(why), hint: Some(hint) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sbx::error::Place;

    #[test]
    fn an_obstacle_of_the_host_explains_a_refused_step() {
        let place = Place { number: 2, of: 9, stage: "clone", step: "make new namespaces".into() };
        let error = Error::Step { place, call: "clone3", errno: Errno(EPERM) };
        let facts = Facts { obstacles: vec![("a sysctl".into(), "sysctl -w".into())] };
        assert_eq!(advice(&error, &facts).why.as_deref(), Some("a sysctl"));
        assert_eq!(advice(&error, &Facts::default()).hint.as_deref(), Some("sbx check"));
    }

    #[test]
    fn advice_that_an_error_carries_wins() {
        let error = Error::spec("--mem", "0", "a size of 0").or_try("512M");
        assert_eq!(advice(&error, &Facts::default()), Advice { why: None, hint: Some("512M".into()) });
    }
}
