//! What a sandbox's supervisor keeps of its plan, so that one more program can be confined as the first was; and the
//! plan of such a program. Pure.
//!
//! One invariant: what confines comes from here and never from inside the sandbox, and [`enter`] takes nothing away
//! from it but what the first program could have been given too: another user, directory, variables.

use super::bpf::Insn;
use super::identity::{GroupSet, Identities, MapsBy};
use super::limits::Affinity;
use super::steps::Step;
use super::{LandlockPlan, Need, Plan, Planned, Process, Scopes, Stage, check_stdio, environment, terminal};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::spec::access::{Capabilities, Degrade};
use crate::spec::ids::{Extent, accounts, groups, maps};
use crate::spec::limits::CpuSet;
use crate::spec::{Init, Rlimit, Spec};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;

/// Version of the form: supervisor and client may be of different builds.
pub const VERSION: u32 = 4;

/// See the head of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Version of the form.
    pub version: u32,
    /// The sandbox's name.
    pub name: String,
    /// ROOTFS as it was meant.
    pub root: String,
    uids: Vec<Extent>,
    gids: Vec<Extent>,
    /// Whether the kernel lets the supplementary groups be changed.
    groups_free: bool,
    uid: u32,
    gid: u32,
    user: String,
    home: String,
    /// `None` for the caller's own.
    groups: Option<Vec<u32>>,
    /// The caller's own where they are kept, as they are called outside.
    outer_groups: Vec<u32>,
    bounding: Capabilities,
    keyring: bool,
    env: Vec<OsString>,
    workdir: OsString,
    umask: u32,
    /// All resource limits, as the first program had them.
    rlimits: Vec<(String, u64, u64)>,
    /// The rules that its supervisor hands over.
    landlock: Option<Rules>,
    own_network: bool,
    filters: Vec<Vec<Insn>>,
    /// Where they were asked for: nice value, badness for the OOM killer.
    nice: Option<i32>,
    oom_score_adj: Option<i32>,
    /// Where it is bound to them, the processors that it has got.
    processors: Option<Vec<u32>>,
}

/// What [`LandlockPlan`] says of the first program's ruleset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Rules {
    abi: u32,
    files: bool,
    ports: [Option<Vec<u16>>; 2],
}

impl Plan {
    /// What is kept of it. `inherited` are the resource limits that its supervisor has, soft and hard by their names,
    /// `processors` those of the first program, `groups` the caller's supplementary groups where that has kept them.
    pub fn kept(
        &self,
        inherited: impl Iterator<Item = (String, u64, u64)>,
        processors: Vec<u32>,
        groups: &[u32],
    ) -> Kept {
        let who = &self.identities;
        let find = |is: fn(&Step) -> Option<Capabilities>| self.steps.iter().find_map(|p| is(&p.step));
        let mut rlimits: Vec<(String, u64, u64)> = inherited.collect();
        for planned in &self.steps {
            let (name, soft, hard) = match &planned.step {
                Step::Rlimit(limit) => (limit.name.clone(), limit.soft, limit.hard),
                Step::Pids(count) => ("nproc".to_owned(), *count, *count),
                _ => continue,
            };
            rlimits.retain(|(known, ..)| *known != name);
            rlimits.push((name, soft, hard));
        }
        Kept {
            version: VERSION,
            name: self.name.clone(),
            root: self.root.clone(),
            uids: who.uids.clone(),
            gids: who.gids.clone(),
            groups_free: who.by != MapsBy::Caller,
            uid: who.uid,
            gid: who.gid,
            user: who.user.clone(),
            home: who.home.clone(),
            groups: match &who.groups {
                GroupSet::Kept(_) => None,
                GroupSet::Exactly(groups) => Some(groups.clone()),
            },
            outer_groups: groups.to_vec(),
            bounding: find(|step| if let Step::Bounding(set) = step { Some(*set) } else { None }).unwrap_or_default(),
            keyring: self.steps.iter().any(|p| p.step == Step::Keyring),
            env: self.process.env.clone(),
            workdir: self.process.workdir.clone().into(),
            umask: self.process.umask,
            rlimits,
            landlock: self.landlock.as_ref().map(|plan| Rules {
                abi: plan.abi,
                files: plan.files,
                ports: plan.ports.clone(),
            }),
            own_network: self.steps.iter().any(|p| p.step == Step::Network),
            filters: self.filters.clone(),
            nice: self.steps.iter().find_map(|p| if let Step::Nice(nice) = p.step { Some(nice) } else { None }),
            oom_score_adj: self.steps.iter().find_map(|p| match p.step {
                Step::OomScoreAdj(score) => Some(score),
                _ => None,
            }),
            processors: self.binds_processors().then_some(processors),
        }
    }

    /// Whether it keeps to some processors by their affinity.
    pub fn binds_processors(&self) -> bool {
        self.steps.iter().any(|p| matches!(p.step, Step::Affinity(_)))
    }
}

/// Makes the plan of one more program in a sandbox. Of the spec only what concerns the program counts: its command,
/// user, directory, variables, terminal and descriptors. `host` has the users and groups as they are inside.
///
/// # Errors
/// `Spec` for what cannot be had inside, `Unsupported` for a sandbox of another version of sbx.
pub fn enter(spec: &Spec, kept: &Kept, host: &Host) -> Result<Plan> {
    if kept.version != VERSION {
        let why = format!("its supervisor is an sbx of another version ({} and not {VERSION})", kept.version);
        let hint = Some("the sbx that it was started with".into());
        return Err(Error::Unsupported { feature: format!("exec in {}", kept.name), why, hint });
    }
    check_stdio(spec, host)?;
    if spec.detach.is_some() && terminal(spec, host) != super::Terminal::None {
        let what = "--detach and --tty contradict each other: nobody would sit at the other end of the terminal";
        return Err(Error::Usage { what: what.into(), hint: Some("leave one of them out".into()) });
    }
    let identities = identities(spec, kept, host)?;
    let process = process(spec, kept, host, &identities)?;
    let landlock = landlock(kept);
    let steps = steps(kept, host, &identities, &process, landlock.as_ref());
    Ok(Plan {
        name: kept.name.clone(),
        root: kept.root.clone(),
        steps,
        identities,
        process,
        landlock,
        degrade: Degrade::Never,
        filters: kept.filters.clone(),
        heard: None,
        notes: Vec::new(),
        timeout: None,
        detach: spec.detach,
        layers: None,
        others_on_disk: false,
        keeps: false,
        or_memory: false,
        limits: Default::default(),
        labels: Default::default(),
    })
}

/// The first program's user, or another that the map holds.
fn identities(spec: &Spec, kept: &Kept, host: &Host) -> Result<Identities> {
    let (uid, gid) = match &spec.user {
        None => (kept.uid, kept.gid),
        Some(user) => super::identity::find_user(user, host)?,
    };
    for (extents, id, word) in [(&kept.uids, uid, "user"), (&kept.gids, gid, "group")] {
        if !maps(extents, id) {
            let why = format!("this {word} is outside the sandbox's map");
            return Err(Error::spec("--user", id, why).or_try("a sandbox with --map full"));
        }
    }
    let same = (uid, gid) == (kept.uid, kept.gid);
    let account = accounts(&host.root.passwd).find(|account| account.uid == uid);
    let name = account.as_ref().map(|account| account.name.clone());
    let set = match (&kept.groups, same, kept.groups_free) {
        (None, ..) | (_, _, false) => GroupSet::Kept(host.groups.len()),
        (Some(groups), true, _) => GroupSet::Exactly(groups.clone()),
        (Some(_), false, _) => {
            let member = |members: &[&str]| name.as_deref().is_some_and(|name| members.contains(&name));
            let all = groups(&host.root.group).filter(|(_, gid, m)| member(m) && maps(&kept.gids, *gid));
            GroupSet::Exactly(all.map(|(_, gid, _)| gid).collect())
        }
    };
    if let GroupSet::Kept(_) = set {
        no_more_groups(kept, host)?;
    }
    let home = account.map(|account| account.home).filter(|home| home.starts_with('/'));
    Ok(Identities {
        uids: kept.uids.clone(),
        gids: kept.gids.clone(),
        by: MapsBy::Caller,
        pids_above: None,
        uid,
        gid,
        groups: set,
        user: if same { kept.user.clone() } else { name.unwrap_or_else(|| uid.to_string()) },
        home: if same { kept.home.clone() } else { home.unwrap_or_else(|| "/".into()) },
        notes: Vec::new(),
    })
}

/// Groups that nobody can give up may not be more than the first program has: they open files.
fn no_more_groups(kept: &Kept, host: &Host) -> Result<()> {
    let known = |gid: &u32| kept.outer_groups.contains(gid) || kept.gids.iter().any(|extent| extent.outer == *gid);
    let more: Vec<String> = host.groups.iter().filter(|gid| !known(gid)).map(u32::to_string).collect();
    if more.is_empty() {
        return Ok(());
    }
    let why = format!(
        "you are in groups that the sandbox's program is not in ({}), and with its map the kernel lets nobody give one up",
        more.join(", ")
    );
    let hint = "sbx exec with the groups of who started it (id -G), or start it anew, with --map full";
    Err(Error::Unsupported { feature: format!("exec in {}", kept.name), why, hint: Some(hint.into()) })
}

/// The program, with the first one's variables below its own.
fn process(spec: &Spec, kept: &Kept, host: &Host, identities: &Identities) -> Result<Process> {
    let mut env = kept.env.clone();
    let mut set = |name: &str, value: &std::ffi::OsStr| {
        let starts = |one: &OsString| {
            let bytes = one.as_encoded_bytes();
            bytes.len() > name.len() && bytes.starts_with(name.as_bytes()) && bytes[name.len()] == b'='
        };
        env.retain(|one| !starts(one));
        env.push(environment::joined(name, value));
    };
    if spec.user.is_some() {
        set("USER", identities.user.as_ref());
        set("HOME", identities.home.as_ref());
    }
    if let (true, Some(term)) = (terminal(spec, host) != super::Terminal::None, host.caller.var("TERM")) {
        set("TERM", term);
    }
    spec.env.set.iter().for_each(|(name, value)| set(name, value));
    let command = &spec.program.command;
    let first = command.first().ok_or_else(|| Error::Usage {
        what: "COMMAND is missing".into(),
        hint: Some(format!("sbx exec {} /bin/sh", kept.name)),
    })?;
    let path = env.iter().find_map(|one| one.as_encoded_bytes().strip_prefix(b"PATH=")).unwrap_or_default();
    let candidates = environment::candidates(first, std::os::unix::ffi::OsStrExt::from_bytes(path));
    Ok(Process {
        argv0: spec.program.argv0.as_ref().map_or_else(|| first.clone(), OsString::from),
        candidates,
        env,
        workdir: spec.program.workdir.as_ref().map_or_else(|| kept.workdir.clone().into(), |w| w.as_path().into()),
        umask: kept.umask,
        // It is nobody's init, and nobody stands between it and its supervisor.
        init: Init::Program,
        terminal: terminal(spec, host),
        pass_fds: spec.program.pass_fds.clone(),
        command: command.clone(),
    })
}

/// The places are in the ruleset already.
fn landlock(kept: &Kept) -> Option<LandlockPlan> {
    let Rules { abi, files, ports } = kept.landlock.clone()?;
    let scopes = if kept.own_network || abi < 6 { Scopes::None } else { Scopes::Sockets };
    Some(LandlockPlan { abi, files, places: Vec::new(), exec: None, ports, scopes })
}

/// The stages of a launch without those that make something.
fn steps(
    kept: &Kept,
    host: &Host,
    who: &Identities,
    process: &Process,
    landlock: Option<&LandlockPlan>,
) -> Vec<Planned> {
    let mut steps = Vec::new();
    let mut must = |stage, step| steps.push(Planned { stage, need: Need::Must, step });
    must(Stage::Clone, Step::Join(kept.name.clone()));
    must(Stage::Enter, Step::Session);
    kept.oom_score_adj.into_iter().for_each(|score| must(Stage::Enter, Step::OomScoreAdj(score)));
    kept.nice.into_iter().for_each(|nice| must(Stage::Enter, Step::Nice(nice)));
    if process.terminal != super::Terminal::None {
        must(Stage::Enter, Step::EnterTerminal);
    }
    if kept.keyring {
        must(Stage::Identity, Step::Keyring);
    }
    must(Stage::Identity, Step::Bounding(kept.bounding));
    must(Stage::Identity, Step::Groups(who.groups.clone()));
    must(Stage::Identity, Step::Ids(who.uid, who.gid));
    must(Stage::Identity, Step::Capabilities(if who.uid == 0 { kept.bounding } else { Capabilities::default() }));
    must(Stage::Identity, Step::NoNewPrivs);
    must(Stage::Identity, Step::Hide);
    must(Stage::Confine, Step::Verify);
    for (name, soft, hard) in &kept.rlimits {
        // Nobody here may raise a hard limit: who calls with a lower one keeps that.
        let most = host.hard_limit(name);
        let limit = Rlimit { name: name.clone(), soft: (*soft).min(most), hard: (*hard).min(most) };
        match name.as_str() {
            "nproc" => must(Stage::Confine, Step::Pids(limit.hard)),
            _ => must(Stage::Exec, Step::Rlimit(limit)),
        }
    }
    if let Some(processors) = &kept.processors {
        must(Stage::Confine, Step::Affinity(Affinity::List(CpuSet::of(processors))));
    }
    landlock.iter().for_each(|plan| must(Stage::Confine, Step::Landlock((*plan).clone())));
    must(Stage::Confine, Step::Workdir(process.workdir.clone()));
    must(Stage::Gate, Step::Gate);
    kept.filters.iter().for_each(|filter| must(Stage::Exec, Step::Filter("policy", filter.len())));
    must(Stage::Exec, Step::Exec(process.command.clone()));
    steps.sort_by_key(|planned| planned.stage);
    steps
}
