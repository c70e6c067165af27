//! What surrounds the program: namespaces, environment, working directory, command.

use super::limits::LimitsPlan;
use super::{Identities, Process, Stage, Step, Steps, Terminal, own_network};
use crate::error::Result;
use crate::host::Host;
use crate::spec::ids::outer;
use crate::spec::{BaseEnv, RootSource, Spec, TimeOffsets};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The words of the namespaces that are new, in the order of namespaces(7).
pub(super) fn namespaces(spec: &Spec, limits: &LimitsPlan) -> Vec<&'static str> {
    let share = &spec.share;
    let all = [
        ("user", true),
        ("mount", true),
        ("pid", true),
        ("ipc", !share.ipc),
        ("uts", !share.uts),
        // In a cgroup of its own it is made there: the root of such a namespace is where its maker stands.
        ("cgroup", !share.cgroup && !limits.is_grouped()),
        ("time", !share.time),
        ("net", own_network(spec)),
    ];
    all.into_iter().filter(|(_, new)| *new).map(|(word, _)| word).collect()
}

/// Steps of `Enter`.
pub(super) fn enter(steps: &mut Steps, spec: &Spec, host: &Host, name: &str, limits: &LimitsPlan, who: &Identities) {
    steps.must(Stage::Enter, Step::Session);
    if spec.time != TimeOffsets::default() {
        steps.may_degrade(Stage::Enter, Step::TimeOffset(spec.time));
    }
    if let Some(score) = spec.limits.oom_score_adj {
        steps.must(Stage::Enter, Step::OomScoreAdj(score));
    }
    if let Some(nice) = spec.limits.nice {
        steps.must(Stage::Enter, Step::Nice(nice));
    }
    if own_network(spec) {
        steps.must(Stage::Enter, Step::Network);
    }
    if !spec.share.uts {
        steps.must(Stage::Enter, Step::HostName(host_name(spec, name)));
    }
    for (key, value) in &spec.sysctls {
        steps.must(Stage::Enter, Step::Sysctl(key.clone(), value.clone()));
    }
    if let Some(bytes) = limits.watched().filter(|_| bounds_segments(spec, host, who)) {
        // Segments that no process has attached, which nobody sees, are at least no more than the limit.
        steps.must(Stage::Enter, Step::Sysctl(SHMALL.into(), (bytes / PAGE).to_string()));
    }
    // Last: systemd may not have answered yet.
    if limits.is_grouped() && !spec.share.cgroup {
        steps.may_degrade(Stage::Enter, Step::CgroupNamespace);
    }
}

/// Pages of all System V segments of an IPC namespace.
const SHMALL: &str = "kernel.shmall";
/// On every architecture of sbx's.
const PAGE: u64 = 4096;

/// Whether the kernel bounds what System V segments hold, by a setting of the sandbox's own IPC namespace. Since Linux
/// 6.10 user 0 inside may write it, who the child is where the map makes it that, or has no place for the caller. What
/// the user has set stands.
pub(super) fn bounds_segments(spec: &Spec, host: &Host, who: &Identities) -> bool {
    let caller = who.uids.iter().any(|e| host.uid >= e.outer && host.uid - e.outer < e.count);
    let root = outer(&who.uids, 0).is_some_and(|id| id == host.uid || !caller);
    root && host.kernel >= (6, 10) && !spec.share.ipc && spec.sysctls.iter().all(|(key, _)| key != SHMALL)
}

/// The host name inside: as asked, else the sandbox's own name, which may be one byte too long for one.
pub(super) fn host_name(spec: &Spec, name: &str) -> String {
    let given = spec.hostname.clone().unwrap_or_else(|| name.to_owned());
    given.chars().take(63).collect()
}

/// The program as it will be executed.
pub(super) fn process(spec: &Spec, host: &Host, identities: &Identities, terminal: Terminal) -> Result<Process> {
    let shell = vec![OsString::from("/bin/sh")];
    let command = if spec.program.command.is_empty() { shell } else { spec.program.command.clone() };
    let env = env(spec, host, identities);
    let path = variable(&env, "PATH").map_or(OsStr::new(PATH), |value| value);
    let candidates = candidates(&command[0], path);
    let workdir = match (&spec.program.workdir, &spec.root.source) {
        (Some(workdir), _) => workdir.as_path().to_owned(),
        (None, RootSource::Host) => host.caller.cwd.clone(),
        (None, RootSource::Layers(_)) => PathBuf::from("/"),
    };
    Ok(Process {
        argv0: spec.program.argv0.as_ref().map_or_else(|| command[0].clone(), OsString::from),
        candidates,
        env: env.into_iter().map(|(name, value)| joined(&name, &value)).collect(),
        command,
        workdir,
        umask: spec.program.umask,
        init: spec.program.init,
        terminal,
        pass_fds: spec.program.pass_fds.clone(),
    })
}

pub(super) fn joined(name: &str, value: &OsStr) -> OsString {
    let mut both = OsString::from(name);
    both.push("=");
    both.push(value);
    both
}

fn variable<'a>(env: &'a [(String, OsString)], name: &str) -> Option<&'a OsStr> {
    env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_os_str())
}

/// As execvp(3): a name with a slash is a path, any other is looked for in PATH, in which an empty entry
/// is left out: the working directory is not a place for commands.
pub(super) fn candidates(command: &OsStr, path: &OsStr) -> Vec<OsString> {
    if command.as_bytes().contains(&b'/') {
        return vec![command.to_owned()];
    }
    let dirs = path.as_bytes().split(|&b| b == b':').filter(|dir| !dir.is_empty());
    dirs.map(|dir| Path::new(OsStr::from_bytes(dir)).join(command).into_os_string()).collect()
}

fn env(spec: &Spec, host: &Host, identities: &Identities) -> Vec<(String, OsString)> {
    let denied = |name: &str| spec.env.deny.iter().any(|pattern| crate::spec::matches(pattern, name));
    let mut env = match spec.env.base {
        BaseEnv::Usual => usual(spec, host, identities).into_iter().filter(|(name, _)| !denied(name)).collect(),
        BaseEnv::Cleared => Vec::new(),
    };
    env.extend(spec.env.set.iter().cloned());
    // Of a name given twice the last counts; there may be 10^5 names.
    let mut later = std::collections::BTreeSet::new();
    env.reverse();
    env.retain(|(name, _)| later.insert(name.clone()));
    env.reverse();
    env
}

fn usual(spec: &Spec, host: &Host, identities: &Identities) -> Vec<(String, OsString)> {
    let caller = &host.caller;
    let here = spec.root.source == RootSource::Host;
    let kept = |name: &str, otherwise: &str| match caller.var(name).filter(|_| here) {
        Some(value) => value.to_owned(),
        None => otherwise.into(),
    };
    let mut env: Vec<(String, OsString)> = vec![
        ("PATH".into(), kept("PATH", PATH)),
        ("HOME".into(), kept("HOME", &identities.home)),
        ("USER".into(), OsString::from(&identities.user)),
        ("TERM".into(), caller.var("TERM").unwrap_or(OsStr::new("xterm")).to_owned()),
        ("container".into(), "sbx".into()),
    ];
    let language = |name: &str| name == "LANG" || name.starts_with("LC_");
    let languages = caller.env.iter().filter_map(|(name, value)| Some((name.to_str()?, value)));
    env.extend(languages.filter(|(name, _)| language(name)).map(|(name, value)| (name.to_owned(), value.clone())));
    env
}
