//! How much a sandbox is exposed, setting by setting, as one number: `sbx check --audit`, in the manner of
//! `systemd-analyze security`.
//!
//! Each row has a weight, by what somebody gains who breaks out there, and an exposure from 0 (nothing to gain) to 100.
//! The number is the weighted mean, from 0 to 10. It compares policies; it is no proof of anything.

use super::audit;
use crate::host::Host;
use crate::plan::{Plan, Step, allows};
use crate::spec::access::{Capabilities, Filter, Landlock, Nesting, SetId};
use crate::spec::mount::{Access, Devices, Exec, Source};
use crate::spec::text::Caller;
use crate::spec::{NetMode, RootSource, Spec, Unmask, Writes};
use crate::state::Exposure;

/// What a row looks at.
struct Look<'a> {
    spec: &'a Spec,
    plan: &'a Plan,
    host: &'a Host,
    caller: &'a Caller,
}

/// Heading, setting, weight, exposure, and what would lower it.
type Row = (&'static str, &'static str, u32, fn(&Look<'_>) -> u32, &'static str);

fn all(is: bool) -> u32 {
    if is { 100 } else { 0 }
}

/// So much for each, at most all of it.
fn each(count: usize, much: u32) -> u32 {
    u32::try_from(count).unwrap_or(100).saturating_mul(much).min(100)
}

impl Look<'_> {
    /// The share of these that the program holds.
    fn holds(&self, names: &[&str]) -> u32 {
        let held: Vec<&str> = self.held().names().collect();
        let count = names.iter().filter(|name| held.contains(name)).count();
        (100 * count / names.len()) as u32
    }

    fn held(&self) -> Capabilities {
        let held = self.plan.steps().iter().find_map(|planned| match planned.step {
            Step::Capabilities(held) => Some(held),
            _ => None,
        });
        held.unwrap_or_default()
    }

    fn calls(&self, names: &[&str]) -> u32 {
        let open = names.iter().filter(|name| allows(self.spec, self.host, name)).count();
        (100 * open / names.len()) as u32
    }

    fn binds(&self, is: impl Fn(&Source) -> bool) -> usize {
        self.spec.mounts.iter().filter(|mount| is(&mount.source)).count()
    }

    /// How many warnings of `sbx policy check` hold this.
    fn warned(&self, word: &str) -> usize {
        audit::warnings(self.spec, self.caller, &[]).iter().filter(|warning| warning.contains(word)).count()
    }

    fn rooted(&self) -> bool {
        !matches!(self.spec.root.writes, Writes::ReadOnly(_))
    }
}

const ROWS: &[Row] = &[
    ("Network", "the host's network", 1500, |l| all(l.spec.net.mode == NetMode::Host), "--net none"),
    ("User", "user 0 inside", 200, |l| all(l.held() != Capabilities::default()), "--cap-drop all"),
    ("User", "a range of ids", 150, |l| all(l.plan.maps_ranges()), "--map root"),
    ("User", "your supplementary groups", 200, |l| all(l.plan.keeps_groups()), "--map full --drop-groups"),
    ("Capabilities", "SYS_ADMIN", 1200, |l| l.holds(&["SYS_ADMIN"]), "--cap-drop SYS_ADMIN"),
    ("Capabilities", "over networks", 400, |l| l.holds(&["NET_ADMIN", "NET_RAW"]), "--cap-drop NET_ADMIN"),
    ("Capabilities", "over processes", 300, |l| l.holds(&["SYS_PTRACE", "KILL", "SYS_NICE"]), "--cap-drop all"),
    (
        "Capabilities",
        "over files",
        250,
        |l| l.holds(&["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP"]),
        "--cap-drop all",
    ),
    ("Capabilities", "over ids", 200, |l| l.holds(&["SETUID", "SETGID", "SETPCAP"]), "--cap-drop all"),
    ("Namespaces", "new ones inside", 1500, |l| all(l.spec.nesting == Nesting::Allowed), "without --nest"),
    ("Namespaces", "ipc of the host", 300, |l| all(l.spec.share.ipc), "without --share ipc"),
    (
        "Namespaces",
        "clock, host name, cgroup of the host",
        150,
        |l| each([l.spec.share.uts, l.spec.share.time, l.spec.share.cgroup].iter().filter(|is| **is).count(), 34),
        "without --share",
    ),
    ("System calls", "no filter", 2500, |l| all(l.spec.seccomp.filter == Filter::Off), "--seccomp default"),
    ("System calls", "io_uring", 500, |l| l.calls(&["io_uring_setup"]), "--set 'seccomp.deny = [\"@io-uring\"]'"),
    (
        "System calls",
        "bpf, perf, userfaultfd",
        500,
        |l| l.calls(&["bpf", "perf_event_open", "userfaultfd"]),
        "--set 'seccomp.deny = [\"bpf\", \"perf_event_open\", \"userfaultfd\"]'",
    ),
    (
        "System calls",
        "mounts",
        500,
        |l| l.calls(&["mount", "pivot_root", "fsopen"]),
        "--set 'seccomp.deny = [\"@mount\"]'",
    ),
    ("System calls", "keyrings", 200, |l| l.calls(&["keyctl"]), "--set 'seccomp.deny = [\"@keyring\"]'"),
    (
        "System calls",
        "ptrace inside",
        150,
        |l| l.calls(&["ptrace", "process_vm_readv"]),
        "--set 'seccomp.deny = [\"@ptrace\"]'",
    ),
    ("Landlock", "off", 500, |l| all(l.spec.landlock == Landlock::Off || l.host.landlock == 0), "--landlock auto"),
    (
        "Landlock",
        "executes files from anywhere",
        150,
        |l| all(l.spec.landlock_rules.exec.is_none()),
        "[landlock] exec of a policy",
    ),
    ("Files", "ROOTFS itself writable", 800, |l| all(l.spec.root.writes == Writes::Through), "without --rw"),
    (
        "Files",
        "this machine's own root shown",
        300,
        |l| all(l.spec.root.source == RootSource::Host),
        "a ROOTFS of its own",
    ),
    ("Files", "a root that can be written", 100, |l| all(l.rooted()), "--read-only"),
    (
        "Files",
        "host directories writable",
        600,
        |l| each(l.binds(|s| matches!(s, Source::Bind { access: Access::Rw, .. })), 50),
        "-v SRC:DST:overlay",
    ),
    ("Files", "your home writable", 1000, |l| each(l.warned("your home with it"), 100), "-v of less"),
    ("Files", "files with secrets", 800, |l| each(l.warned("can be read"), 34), "[hide] paths of a policy"),
    (
        "Files",
        "what your shell or session runs",
        800,
        |l| each(l.warned("your next shell"), 50),
        "[protect] paths of a policy",
    ),
    ("Files", "sockets of services and sessions", 1000, |l| each(l.warned(" shows "), 50), "without that -v"),
    (
        "Files",
        "devices of the host",
        400,
        |l| each(l.binds(|s| matches!(s, Source::Device { .. } | Source::Bind { devices: Devices::Dev, .. })), 34),
        "without --device",
    ),
    ("Files", "set-id bits on host files", 300, |l| all(l.spec.root.setid == SetId::Allowed), "without --allow-setid"),
    (
        "Files",
        "executable where it can be written",
        200,
        |l| all(l.rooted() || l.binds(|s| matches!(s, Source::Bind { access: Access::Rw, exec: Exec::Exec, .. })) > 0),
        "--policy strict",
    ),
    (
        "Kernel",
        "masked files of /proc shown",
        200,
        |l| all(l.spec.unmask != Unmask::Paths(Vec::new())),
        "without --unmask",
    ),
    ("Limits", "no limit of memory", 250, |l| all(l.spec.limits.mem.is_none()), "--mem 4G"),
    ("Limits", "4096 processes or more", 100, |l| all(l.spec.limits.pids.is_none()), "--pids 512"),
    ("Limits", "no limit of processor time", 100, |l| all(l.spec.limits.cpus.is_none()), "--cpus 2"),
    ("Limits", "no end by time", 50, |l| all(l.spec.timeout().is_none()), "--timeout 1h"),
    (
        "Environment",
        "variables that speak of secrets",
        300,
        |l| each(l.warned("the variable"), 50),
        "[env] deny of a policy",
    ),
];

/// All rows of a sandbox.
pub fn rows(spec: &Spec, plan: &Plan, host: &Host, caller: &Caller) -> Vec<Exposure> {
    let look = Look { spec, plan, host, caller };
    let row = |(heading, setting, weight, of, fix): &Row| Exposure {
        heading: (*heading).into(),
        setting: (*setting).into(),
        weight: *weight,
        exposure: of(&look),
        fix: (*fix).into(),
    };
    ROWS.iter().map(row).collect()
}

/// The number, from 0 to 10.
pub fn score(rows: &[Exposure]) -> f64 {
    let whole: u32 = rows.iter().map(|row| row.weight).sum();
    let reached: f64 = rows.iter().map(|row| f64::from(row.weight) * f64::from(row.exposure) / 100.0).sum();
    if whole == 0 { 0.0 } else { 10.0 * reached / f64::from(whole) }
}

/// The rows of which each would lower the number most, the first first.
pub fn worst(rows: &[Exposure]) -> Vec<&Exposure> {
    let mut found: Vec<&Exposure> = rows.iter().filter(|row| row.exposure > 0).collect();
    found.sort_by_key(|row| std::cmp::Reverse(row.weight * row.exposure));
    found.truncate(3);
    found
}
