//! Layers → Spec: later scalars replace, lists append, a named denial wins, argv alone may lift one.

use super::access::{Capabilities, Degrade, Filter, Landlock, Nesting, SetId};
use super::ids::{Map, User, Who};
use super::layer::{Layer, Origin};
use super::mount::{Exec, Mount, octal};
use super::text::{Caller, InnerPath, hostname, name, number, size, word};
use super::*;
use crate::error::{Error, Result};
use std::collections::BTreeSet;

/// What sbx itself puts into the one tmpfs fits in it, with room for a few mounts.
const SMALLEST_UPPER: u64 = 64 << 10;
/// How large a file of a log may be, and the least that can be asked for.
const USUAL_LOG: u64 = 10 << 20;
const SMALLEST_LOG: u64 = 64 << 10;

impl Spec {
    /// Merges the layers, the weakest first, and checks all that can be checked without looking at the host.
    ///
    /// # Errors
    /// `Usage` where ROOTFS is missing, `Spec` naming the option and the value for everything else.
    pub fn resolve(layers: &[Layer], caller: &Caller) -> Result<Spec> {
        let mut notes = Vec::new();
        let share = share(layers)?;
        let root = root(layers, caller)?;
        // What a developer's next command runs stands on this machine's own root.
        let guarded = |of: fn(&Layer) -> Option<bool>| {
            layers.iter().rev().find_map(of).unwrap_or(root.source == RootSource::Host)
        };
        let spec = Spec {
            name: scalar(layers, |l| &l.identity.name).map(|n| name("--name", &n)).transpose()?,
            hostname: scalar(layers, |l| &l.identity.hostname).map(|n| hostname("--hostname", &n)).transpose()?,
            labels: labels(layers)?,
            user: scalar(layers, |l| &l.identity.user).map(|u| User::parse(&u)).transpose()?,
            groups: all(layers, |l| &l.identity.group_add)
                .map(|g| Who::parse("--group-add", g))
                .collect::<Result<_>>()?,
            groups_kept: choose(flag(layers, |l| l.identity.drop_groups), Groups::Dropped, Groups::ByMap),
            map: last_list(layers, |l| &l.identity.map).map_or(Ok(Map::Auto), Map::parse)?,
            mounts: mounts(layers, caller)?,
            mask: inner_paths(layers, "--mask", |l| &l.mounts.mask)?,
            unmask: unmask(layers)?,
            hide: hide::hidden(layers, caller, &mut notes)?,
            protect: hide::protected(layers, caller)?,
            git: choose(guarded(|l| l.protect.git), Git::Guarded, Git::Plain),
            start_files: choose(guarded(|l| l.protect.start_files), StartFiles::Guarded, StartFiles::Plain),
            root,
            program: program(layers, caller)?,
            env: env(layers, caller, &mut notes)?,
            net: net(layers)?,
            share,
            time: time_offsets(layers)?,
            sysctls: sysctls(layers)?,
            limits: Limits::resolve(layers, caller)?,
            capabilities: capabilities(layers, &mut notes)?,
            seccomp: seccomp::resolve(layers, &mut notes)?,
            landlock: scalar(layers, |l| &l.landlock.mode).map_or(Ok(Landlock::Auto), |m| Landlock::parse(&m))?,
            landlock_rules: LandlockRules::resolve(layers, caller)?,
            nesting: choose(flag(layers, |l| l.hardening.nest), Nesting::Allowed, Nesting::Refused),
            degrade: choose(flag(layers, |l| l.hardening.best_effort), Degrade::BestEffort, Degrade::Never),
            report: choose(layers.iter().any(|layer| layer.cgroup_report), Report::Cgroup, Report::None),
            explain: explain(layers)?,
            detach: detach(layers)?,
            notes,
        };
        check_together(&spec)?;
        Ok(spec)
    }
}

fn explain(layers: &[Layer]) -> Result<Explain> {
    let words = [("calls", Explain::Calls), ("files", Explain::Files), ("learn", Explain::Learn)];
    scalar(layers, |l| &l.explain).map_or(Ok(Explain::No), |asked| word("--explain", &asked, &words))
}

/// The last layer's value of a scalar.
pub(super) fn scalar<T: Clone>(layers: &[Layer], of: impl Fn(&Layer) -> &Option<T>) -> Option<T> {
    layers.iter().rev().find_map(|layer| of(layer).clone())
}

fn flag(layers: &[Layer], of: impl Fn(&Layer) -> Option<bool>) -> bool {
    layers.iter().rev().find_map(of).unwrap_or(false)
}

fn choose<T>(condition: bool, then: T, otherwise: T) -> T {
    if condition { then } else { otherwise }
}

/// All layers' values of a list, in order.
pub(super) fn all<'a, T: 'a>(layers: &'a [Layer], of: impl Fn(&'a Layer) -> &'a Vec<T>) -> impl Iterator<Item = &'a T> {
    layers.iter().flat_map(of)
}

/// The last layer's list that is not empty: for lists that make sense only as a whole.
fn last_list(layers: &[Layer], of: impl Fn(&Layer) -> &Vec<String>) -> Option<&[String]> {
    layers.iter().rev().map(of).find(|list| !list.is_empty()).map(Vec::as_slice)
}

fn inner_paths(layers: &[Layer], field: &str, of: impl Fn(&Layer) -> &Vec<String>) -> Result<Vec<InnerPath>> {
    all(layers, of).map(|text| InnerPath::parse(field, text)).collect()
}

/// Splits `K=V`; the key is not empty.
pub(super) fn pair<'a>(field: &str, text: &'a str) -> Result<(&'a str, &'a str)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key, value)),
        _ => Err(Error::spec(field, text, "not KEY=VALUE")),
    }
}

fn labels(layers: &[Layer]) -> Result<BTreeMap<String, String>> {
    all(layers, |l| &l.identity.label)
        .map(|text| pair("--label", text).map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect()
}

fn root(layers: &[Layer], caller: &Caller) -> Result<Root> {
    let typed = scalar(layers, |l| &l.rootfs).ok_or_else(|| Error::Usage {
        what: "ROOTFS is missing".into(),
        hint: Some("sbx run ./rootfs /bin/sh, or sbx run @host to use this machine's own root".into()),
    })?;
    let source = match typed.to_str() {
        Some("@host") => RootSource::Host,
        _ => RootSource::Layers(vec![caller.host_path("ROOTFS", &typed)?]),
    };
    let upper = scalar(layers, |l| &l.root.upper).map(|text| upper(caller, &text)).transpose()?;
    // What one in the background or with a name changes can be looked at afterwards.
    let kept = layers.iter().any(|l| l.detach || l.identity.name.is_some());
    let others = match upper {
        Some(Upper::Disk) => Place::Disk,
        None if kept => Place::DiskOrMemory,
        _ => Place::Memory,
    };
    let (rw, read_only) = (flag(layers, |l| l.root.rw), flag(layers, |l| l.root.read_only));
    let writes = match (rw, read_only, upper) {
        (true, true, _) => return Err(clash("--rw", "--read-only")),
        (true, _, Some(_)) => return Err(clash("--rw", "--upper")),
        (true, false, None) if source == RootSource::Host => {
            return Err(Error::spec("--rw", "@host", "this machine's own root is never writable as a whole")
                .or_try("-v DIR:DIR for the directories to write"));
        }
        (true, false, None) => Writes::Through,
        (false, _, Some(Upper::Directory(_))) if source == RootSource::Host => {
            let why = "@host is many overlays, and this is one layer";
            let hint = "--name NAME, which keeps their changes for sbx diff and sbx apply; --upper tmpfs:SIZE";
            return Err(Error::spec("--upper", "@host", why).or_try(hint));
        }
        // What lies on disk is the others' layers.
        (false, false, Some(Upper::Disk)) if source == RootSource::Host => Writes::Upper(Upper::Tmpfs(None)),
        // Nothing will be in it.
        (false, true, upper) => Writes::ReadOnly(upper.unwrap_or(Upper::Tmpfs(None))),
        (false, false, None) if source != RootSource::Host && kept => Writes::Upper(Upper::DiskOrMemory),
        (false, false, upper) => Writes::Upper(upper.unwrap_or(Upper::Tmpfs(None))),
    };
    let overlays = [("auto", Overlay::Auto), ("kernel", Overlay::Kernel), ("fuse", Overlay::Fuse)];
    let overlay =
        scalar(layers, |l| &l.root.overlay).map_or(Ok(Overlay::Auto), |o| word("--overlay", &o, &overlays))?;
    let setid = choose(flag(layers, |l| l.root.allow_setid), SetId::Allowed, SetId::Refused);
    let exec = choose(flag(layers, |l| l.root.noexec), Exec::Noexec, Exec::Exec);
    Ok(Root { source, writes, others, overlay, setid, exec })
}

fn clash(one: &str, other: &str) -> Error {
    Error::Usage { what: format!("{one} and {other} contradict each other"), hint: Some("give one of them".into()) }
}

fn upper(caller: &Caller, text: &str) -> Result<Upper> {
    const FIELD: &str = "--upper";
    match text.split_once(':') {
        None if text == "tmpfs" => Ok(Upper::Tmpfs(None)),
        None if text == "disk" => Ok(Upper::Disk),
        Some(("tmpfs", bytes)) => match size(FIELD, bytes)? {
            few if few < SMALLEST_UPPER => {
                Err(Error::spec(FIELD, text, "too small for sbx's own files").or_try("tmpfs:1M"))
            }
            bytes => Ok(Upper::Tmpfs(Some(bytes))),
        },
        _ if text.starts_with(['/', '.', '~']) => caller.host_path(FIELD, text).map(Upper::Directory),
        _ => Err(Error::spec(FIELD, text, "not tmpfs, tmpfs:SIZE, disk or a directory")
            .or_try("a directory starts with /, . or ~")),
    }
}

pub(super) fn mounts(layers: &[Layer], caller: &Caller) -> Result<Vec<Mount>> {
    let mut found: Vec<Mount> = Vec::new();
    for layer in layers {
        let mut these: Vec<Mount> = Vec::new();
        for table in &layer.mount {
            these.push(Mount::table(caller, table)?);
        }
        let short = &layer.mounts;
        these.extend(short.volume.iter().map(|t| Mount::volume(caller, t)).collect::<Result<Vec<_>>>()?);
        these.extend(short.mount.iter().map(|t| Mount::key_values(caller, t)).collect::<Result<Vec<_>>>()?);
        these.extend(short.tmpfs.iter().map(|t| Mount::tmpfs(t)).collect::<Result<Vec<_>>>()?);
        these.extend(short.device.iter().map(|t| Mount::device(caller, t)).collect::<Result<Vec<_>>>()?);
        let mut places = BTreeSet::new();
        if let Some(twice) = these.iter().find(|mount| !places.insert(&mount.dst)) {
            return Err(Error::spec("--volume", &twice.dst, "two mounts on the same place"));
        }
        // A later layer's mount replaces an earlier one on the same place, as scalars do.
        found.retain(|old| !places.contains(&old.dst));
        found.extend(these);
    }
    found.sort_by_cached_key(|mount| mount.dst.depth());
    Ok(found)
}

fn unmask(layers: &[Layer]) -> Result<Unmask> {
    if all(layers, |l| &l.mounts.unmask).any(|text| text.eq_ignore_ascii_case("all")) {
        return Ok(Unmask::All);
    }
    inner_paths(layers, "--unmask", |l| &l.mounts.unmask).map(Unmask::Paths)
}

fn program(layers: &[Layer], caller: &Caller) -> Result<Program> {
    let command = layers.iter().rev().find(|l| !l.command.is_empty()).map(|l| l.command.clone()).unwrap_or_default();
    if command.first().is_some_and(|first| first.is_empty()) {
        return Err(Error::spec("COMMAND", "", "an empty command"));
    }
    let tty = match scalar(layers, |l| &l.program.tty) {
        None => Tty::Auto,
        Some(true) => Tty::Own,
        Some(false) => Tty::None,
    };
    let mut pass_fds: Vec<i32> = all(layers, |l| &l.program.pass_fd).copied().collect();
    pass_fds.sort_unstable();
    pass_fds.dedup();
    if let Some(low) = pass_fds.iter().find(|&&fd| !(3..=65535).contains(&fd)) {
        return Err(Error::spec("--pass-fd", low, "a descriptor number from 3 to 65535 (0 to 2 are always passed)"));
    }
    Ok(Program {
        command,
        argv0: scalar(layers, |l| &l.program.argv0),
        workdir: scalar(layers, |l| &l.program.workdir).map(|w| caller.inner_path("--workdir", &w)).transpose()?,
        tty,
        init: choose(flag(layers, |l| l.program.no_init), Init::Program, Init::Own),
        pass_fds,
        umask: scalar(layers, |l| &l.program.umask).map_or(Ok(0o022), |mask| match octal("--umask", &mask)? {
            mask if mask <= 0o777 => Ok(mask),
            _ => Err(Error::spec("--umask", mask, "a mask is at most 777")),
        })?,
    })
}

/// Whether `*` patterns match a name.
pub(crate) fn matches(pattern: impl AsRef<[u8]>, text: impl AsRef<[u8]>) -> bool {
    let (pattern, text) = (pattern.as_ref(), text.as_ref());
    let (mut at, mut place) = (0, 0);
    // The last star, and where the text behind it is taken to go on: no earlier one has to be tried again.
    let mut star: Option<(usize, usize)> = None;
    while place < text.len() {
        if pattern.get(at) == Some(&b'*') {
            star = Some((at, place));
            at += 1;
        } else if pattern.get(at) == Some(&text[place]) {
            (at, place) = (at + 1, place + 1);
        } else if let Some((known, from)) = star {
            star = Some((known, from + 1));
            (at, place) = (known + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

fn variable(field: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(Error::spec(field, name, "not a variable's name"));
    }
    Ok(())
}

fn env(layers: &[Layer], caller: &Caller, notes: &mut Vec<String>) -> Result<Env> {
    let deny: Vec<String> = all(layers, |l| &l.env.deny).cloned().collect();
    let denied = |name: &str| deny.iter().any(|pattern| matches(pattern, name));
    let mut set = Vec::new();
    for layer in layers {
        let argv = layer.origin == Origin::Argv;
        let passed = layer.env.pass.iter().flat_map(|pattern| {
            caller.env.iter().filter_map(move |(name, value)| {
                let name = name.to_str().filter(|name| matches(pattern, name))?;
                Some((name.to_owned(), value.clone()))
            })
        });
        let given = layer.env.set.iter().map(|(name, value)| (name.clone(), OsString::from(value)));
        for (name, value) in passed.chain(given) {
            variable("--env", &name)?;
            if value.as_encoded_bytes().contains(&0) {
                return Err(Error::spec("--env", name, "a value cannot hold a NUL byte"));
            }
            match (denied(&name), argv) {
                (true, false) => continue,
                (true, true) => notes.push(format!("--env {name} lifts a policy's denial")),
                _ => {}
            }
            set.push((name, value));
        }
    }
    let base = choose(flag(layers, |l| l.env.clear_env), BaseEnv::Cleared, BaseEnv::Usual);
    Ok(Env { base, set, deny })
}

fn net(layers: &[Layer]) -> Result<Net> {
    let modes = [("none", NetMode::None), ("host", NetMode::Host)];
    let address = |field: &str, text: &str, ip: &str| {
        ip.trim_matches(['[', ']']).parse::<IpAddr>().map_err(|_| Error::spec(field, text, "not an IP address"))
    };
    let hosts = all(layers, |l| &l.net.add_host).map(|text| {
        let (host, ip) = text.split_once(':').ok_or_else(|| Error::spec("--add-host", text, "not HOST:IP"))?;
        Ok((hostname("--add-host", host)?, address("--add-host", text, ip)?))
    });
    Ok(Net {
        mode: scalar(layers, |l| &l.net.mode).map_or(Ok(NetMode::None), |m| word("--net", &m, &modes))?,
        dns: all(layers, |l| &l.net.dns).map(|ip| address("--dns", ip, ip)).collect::<Result<_>>()?,
        hosts: hosts.collect::<Result<_>>()?,
    })
}

fn share(layers: &[Layer]) -> Result<Share> {
    let mut share = Share::default();
    for text in all(layers, |l| &l.namespaces.share).flat_map(|list| list.split(',')) {
        match text {
            "ipc" => share.ipc = true,
            "uts" => share.uts = true,
            "time" => share.time = true,
            "cgroup" => share.cgroup = true,
            "net" => return Err(Error::spec("--share", text, "an option of its own").or_try("--net host")),
            _ => return Err(Error::spec("--share", text, "not one of ipc, uts, time, cgroup")),
        }
    }
    Ok(share)
}

fn time_offsets(layers: &[Layer]) -> Result<TimeOffsets> {
    const FIELD: &str = "--time-offset";
    let mut offsets = TimeOffsets::default();
    let Some(text) = scalar(layers, |l| &l.namespaces.time_offset) else { return Ok(offsets) };
    for part in text.split(',') {
        let (clock, seconds) = pair(FIELD, part)?;
        let refuse = || Error::spec(FIELD, &text, "seconds with a sign, at most 9 digits, such as +3600");
        let digits = seconds.strip_prefix(['+', '-']).unwrap_or(seconds);
        let value = number(FIELD, digits).ok().filter(|n| *n < 1_000_000_000).ok_or_else(refuse)? as i64;
        let value = choose(seconds.starts_with('-'), -value, value);
        match clock {
            "monotonic" => offsets.monotonic = value,
            "boottime" => offsets.boottime = value,
            _ => return Err(Error::spec(FIELD, clock, "not one of monotonic, boottime")),
        }
    }
    Ok(offsets)
}

/// Settings that the kernel keeps for each network or IPC namespace; all others are the host's.
fn sysctls(layers: &[Layer]) -> Result<Vec<(String, String)>> {
    let mut found: Vec<(String, String)> = Vec::new();
    for (key, value) in layers.iter().flat_map(|l| &l.namespaces.sysctl) {
        let ipc = ["kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax"];
        let ipc = ipc.contains(&key.as_str()) || ["kernel.shmmni", "kernel.shm_rmid_forced"].contains(&key.as_str());
        let fine = key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b)) && !key.contains("..");
        if !fine || !(ipc || key.starts_with("net.") || key.starts_with("fs.mqueue.")) {
            return Err(Error::spec(
                "--sysctl",
                key,
                "not a setting of the sandbox's own namespaces (net.*, fs.mqueue.*, kernel.shm*, kernel.msg*, kernel.sem)",
            ));
        }
        found.retain(|(old, _)| old != key);
        found.push((key.clone(), value.clone()));
    }
    Ok(found)
}

fn capabilities(layers: &[Layer], notes: &mut Vec<String>) -> Result<Capabilities> {
    let mut held = Capabilities::default_set();
    let mut denied = Capabilities::default();
    for layer in layers {
        let argv = layer.origin == Origin::Argv;
        if layer.caps.drop.iter().any(|name| name.eq_ignore_ascii_case("all")) {
            held = Capabilities::default();
        }
        for name in &layer.caps.add {
            let added = Capabilities::named("--cap-add", name)?;
            if argv && denied.0 & added.0 != 0 {
                denied = denied.without(added);
                notes.push(format!("--cap-add {name} lifts a policy's denial"));
            }
            held = held.with(added);
        }
        for name in layer.caps.drop.iter().filter(|name| !name.eq_ignore_ascii_case("all")) {
            denied = denied.with(Capabilities::named("--cap-drop", name)?);
        }
    }
    Ok(held.without(denied))
}

/// Its smallest size leaves room for a few of the longest records.
fn detach(layers: &[Layer]) -> Result<Option<Detach>> {
    const FIELD: &str = "--log-size";
    let asked = scalar(layers, |l| &l.log_size);
    if !layers.iter().any(|layer| layer.detach) {
        return match asked {
            None => Ok(None),
            Some(text) => Err(Error::spec(FIELD, text, "only the output of a program in the background is logged")
                .or_try("--detach with it, or leave it out")),
        };
    }
    let log_size = asked.map_or(Ok(USUAL_LOG), |text| match size(FIELD, &text)? {
        few if few < SMALLEST_LOG => Err(Error::spec(FIELD, text, "too small for a log").or_try("at least 64K")),
        bytes => Ok(bytes),
    })?;
    let stdin = choose(layers.iter().any(|layer| layer.interactive), Stdin::Kept, Stdin::Empty);
    Ok(Some(Detach { stdin, log_size }))
}

/// What each option allows alone but not together.
fn check_together(spec: &Spec) -> Result<()> {
    if spec.share.uts && spec.hostname.is_some() {
        return Err(clash("--share uts", "--hostname"));
    }
    if spec.share.time && spec.time != TimeOffsets::default() {
        return Err(clash("--share time", "--time-offset"));
    }
    let netted = spec.sysctls.iter().find(|(key, _)| key.starts_with("net."));
    if let (NetMode::Host, Some((key, _))) = (spec.net.mode, netted) {
        return Err(Error::spec("--sysctl", key, "with --net host this is a setting of the host"));
    }
    let queued = spec.sysctls.iter().find(|(key, _)| !key.starts_with("net."));
    if let (true, Some((key, _))) = (spec.share.ipc, queued) {
        return Err(Error::spec("--sysctl", key, "with --share ipc this is a setting of the host"));
    }
    if spec.program.init == Init::Program && spec.seccomp.filter == Filter::Off {
        let what =
            "--no-init and --seccomp off contradict each other: only the filter keeps the program's death signal";
        return Err(Error::Usage { what: what.into(), hint: Some("give one of them".into()) });
    }
    if let (Some(_), Report::Cgroup) = (spec.detach, spec.report) {
        let what = "--detach and --cgroup-report contradict each other: nobody is there to read it at the end";
        return Err(Error::Usage {
            what: what.into(),
            hint: Some("--status-fd 3 3>FILE, whose last line has it".into()),
        });
    }
    if spec.groups_kept == Groups::Dropped && !spec.groups.is_empty() {
        return Err(clash("--drop-groups", "--group-add"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
