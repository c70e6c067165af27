//! Words for what a sandbox has refused: which rule did it, where that stands, and what would allow exactly that.

use super::audit::SECRETS;
use super::policy::Source;
use super::shown::{self, Shown};
use crate::launch::Words;
use crate::plan::Plan;
use crate::plan::call_rules;
use crate::plan::explain::{Attempt, Why, holds};
use crate::plan::invariants::{HIDDEN_MODES, LOCKED, MODES, SET_ID_BITS, UNMAPPED};
use crate::plan::seccomp::{default_answer, groups};
use crate::spec::access::Capabilities;
use crate::spec::errno;
use crate::spec::hide::START_FILES;
use crate::spec::mount::{Access, Mount, Source as MountSource};
use crate::spec::seccomp::{Answer, Rule};
use crate::spec::text::Caller;
use crate::spec::{Git, RootSource, Spec, StartFiles, Writes};
use crate::state::Denied;
use std::cell::RefCell;
use std::path::Path;

/// Calls that the kernel lets the host's root alone make, whatever a sandbox allows (capabilities(7)).
const OF_THE_HOST: [&str; 24] = [
    "acct",
    "clock_settime",
    "create_module",
    "delete_module",
    "finit_module",
    "init_module",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "lookup_dcookie",
    "nfsservctl",
    "open_by_handle_at",
    "quotactl",
    "quotactl_fd",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "sysfs",
    "syslog",
    "uselib",
    "vhangup",
    "_sysctl",
];
/// Calls that want CAP_SYS_ADMIN over the sandbox's own namespaces besides.
const OF_ADMIN: [&str; 2] = ["setdomainname", "sethostname"];
/// Calls that mount, which Landlock refuses to whom its rules on files confine.
const MOUNTING: [&str; 10] = [
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pivot_root",
    "umount2",
];

/// See [`Words`].
#[derive(Debug)]
pub struct Explained<'a> {
    spec: &'a Spec,
    plan: &'a Plan,
    caller: &'a Caller,
    shown: Shown,
    used: RefCell<Vec<Attempt>>,
}

/// What would allow something.
#[derive(Default)]
struct Way {
    option: Option<String>,
    toml: Option<String>,
    note: Option<String>,
}

impl Way {
    fn option(option: impl Into<String>, toml: impl Into<String>) -> Way {
        Way { option: Some(option.into()), toml: Some(toml.into()), note: None }
    }

    /// A line of a policy, for which there is no option of its own.
    fn set(toml: String) -> Way {
        Way::option(format!("--set {}", quoted(&toml)), toml)
    }

    fn none(note: impl Into<String>) -> Way {
        Way { note: Some(note.into()), ..Way::default() }
    }

    fn but(self, note: impl Into<String>) -> Way {
        Way { note: Some(note.into()), ..self }
    }
}

/// A word as a shell takes it for one.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

impl<'a> Explained<'a> {
    /// Of a run: `sources` are its policies, the weakest first.
    pub fn new(spec: &'a Spec, plan: &'a Plan, caller: &'a Caller, sources: &[Source]) -> Explained<'a> {
        // What cannot be read here could not be resolved either.
        let shown = shown::merge(sources, caller).unwrap_or_default();
        Explained { spec, plan, caller, shown, used: RefCell::default() }
    }
}

impl Words for Explained<'_> {
    fn denied(&self, attempt: &Attempt) -> Denied {
        let (rule, origin, way) = match attempt.why {
            Why::Policy => self.call(attempt),
            Why::Offline => {
                let way = Way::option("--net host", "net.mode = \"host\"");
                (
                    "there is no network but the sandbox's own loopback".into(),
                    self.shown.origin("net", "mode", |_| true),
                    way,
                )
            }
            Why::Hidden => self.hidden(attempt),
            Why::ReadOnly => self.read_only(Path::new(&attempt.object)),
            Why::NoExec => self.no_exec(Path::new(&attempt.object)),
            Why::Capability(number) => self.capability(number),
            Why::Used | Why::Changed => ("it was used".into(), None, Way::default()),
        };
        let errno = errno::name(attempt.errno).map_or_else(|| attempt.errno.to_string(), str::to_owned);
        let Way { option, toml, note } = way;
        Denied {
            call: attempt.call.clone(),
            object: attempt.object.clone(),
            program: attempt.program.clone(),
            errno,
            count: attempt.count,
            rule,
            origin,
            option,
            toml,
            note,
        }
    }

    fn used(&self, attempts: Vec<Attempt>) {
        *self.used.borrow_mut() = attempts;
    }
}

impl Explained<'_> {
    /// What was used, where that was to be learned.
    pub fn learned(&self) -> Vec<Attempt> {
        self.used.borrow().clone()
    }
}

/// What has refused something, where that stands, and what would allow it.
type Found = (String, Option<String>, Way);

impl Explained<'_> {
    /// The order is that of `plan/rules.rs`.
    fn call(&self, attempt: &Attempt) -> Found {
        let name = attempt.call.as_str();
        if self.spec.seccomp.deny.iter().any(|entry| names(entry, name)) {
            let origin = self.shown.origin("seccomp", "deny", |text| names(text.trim_matches('"'), name));
            let group = self.spec.seccomp.deny.iter().all(|entry| entry != name);
            let way = if group { Way::none("take its group out of that list") } else { allow(name) };
            return ("[seccomp] deny names it".into(), origin, way);
        }
        if let Some(found) = self.guarded(attempt) {
            return found;
        }
        let rules = self.spec.seccomp.rules.iter().zip(0..);
        let mut matching = rules.filter(|(rule, _)| denies(rule) && matches(rule, name, &attempt.args));
        if let Some((_, index)) = matching.next() {
            let origin = self.shown.nth_origin("seccomp", "rule", index);
            return ("a [[seccomp.rule]] denies it".into(), origin, Way::none("take it out of that rule"));
        }
        if let Some(profile) = &self.spec.seccomp.profile {
            let way = if LOCKED.contains(&name) { by_default(attempt) } else { allow(name) };
            return ("the profile does not allow it".into(), Some(profile.file.clone()), way);
        }
        let rule = match default_answer(name) {
            "by argument" => "the default policy allows other arguments of it only",
            _ => "the default policy does not allow it",
        };
        (rule.into(), None, by_default(attempt))
    }

    /// What sbx itself keeps shut, whatever the policy is.
    fn guarded(&self, attempt: &Attempt) -> Option<Found> {
        let name = attempt.call.as_str();
        let bits = MODES.iter().find(|(call, ..)| *call == name);
        let bits = bits.is_some_and(|(_, _, mode)| attempt.args[usize::from(*mode)] & SET_ID_BITS != 0);
        let hidden = HIDDEN_MODES.iter().any(|(call, _)| *call == name);
        let unmapped = UNMAPPED.iter().any(|(call, _)| *call == name);
        if self.plan.guards_set_id() && (bits || hidden) {
            let way = Way::option("--allow-setid", "root.allow-setid = true");
            return Some(("set-id bits may not be set where a host directory is writable".into(), None, way));
        }
        if self.plan.limits().watched().is_some() && unmapped {
            let way = Way::option("--limits cgroup", "limits.limits = \"cgroup\"")
                .but("where a cgroup can be had: sbx check");
            return Some(("a memory limit by watching cannot see such memory".into(), None, way));
        }
        if self.plan.binds_processors() && name == "sched_setaffinity" {
            let way = Way::option("--limits cgroup", "limits.limits = \"cgroup\"")
                .but("where a cgroup can be had: sbx check");
            return Some(("a limit on processors holds by the affinity".into(), None, way));
        }
        if name == "prctl" {
            return Some((
                "the program's death signal is its only tie to sbx".into(),
                None,
                Way::none("leave out --no-init"),
            ));
        }
        None
    }

    fn hidden(&self, attempt: &Attempt) -> Found {
        let path = Path::new(&attempt.object);
        let covers = |place: &Path| path.starts_with(place) || matches_pattern(place, path);
        let hide = |text: &str| {
            let text = text.trim_matches('"');
            self.caller.inner_path("[hide] paths", text).is_ok_and(|place| covers(place.as_path()))
        };
        let origin = self.shown.origin("hide", "paths", hide);
        let rule = match (&origin, &self.spec.root.source) {
            (Some(_), _) => "[hide] paths hides it",
            (None, RootSource::Host) => "@host does not show it",
            (None, RootSource::Layers(_)) => "it is not in ROOTFS",
        };
        let text = &attempt.object;
        let way = if path.starts_with("/dev") {
            Way::option(format!("--device {}", quoted(text)), format!("mounts.device = [{}]", toml_text(text)))
        } else {
            let volume = format!("{text}:{text}{}", if attempt.call == "connect" { "" } else { ":ro" });
            Way::option(format!("-v {}", quoted(&volume)), format!("mounts.volume = [{}]", toml_text(&volume)))
        };
        let secret = SECRETS.iter().any(|secret| path.starts_with(self.caller.home.join(secret)));
        (rule.into(), origin, if secret { way.but("a secret: think twice") } else { way })
    }

    /// The mount of the user's that a path lies on.
    fn mount(&self, path: &Path) -> Option<&Mount> {
        let below = self.spec.mounts.iter().filter(|mount| path.starts_with(mount.dst.as_path()));
        below.max_by_key(|mount| mount.dst.depth())
    }

    fn read_only(&self, path: &Path) -> Found {
        let kernel = ["/proc", "/sys"].iter().any(|kernel| path.starts_with(kernel));
        if kernel {
            return (
                "the kernel's settings are the host's".into(),
                None,
                Way::none("--sysctl K=V sets those of the sandbox's own"),
            );
        }
        if let Some(key) = self.protected(path) {
            let origin = self.shown.origin("protect", key, |_| true);
            let way = match key {
                "paths" => Way::none("take it out of [protect]"),
                key => Way::option(format!("--set protect.{key}=false"), format!("protect.{key} = false")),
            };
            return (format!("[protect] {key} keeps it"), origin, way);
        }
        if let Some(mount) = self.mount(path)
            && let MountSource::Bind { src, access: Access::Ro, .. } = &mount.source
        {
            let volume = format!("{src}:{}", mount.dst);
            let way =
                Way::option(format!("-v {}", quoted(&volume)), format!("mounts.volume = [{}]", toml_text(&volume)));
            return (
                format!("{} is mounted read-only", mount.dst),
                self.shown.mount_origin(&mount.dst.to_string()),
                way,
            );
        }
        let parent = path.parent().unwrap_or(path).display().to_string();
        if matches!(self.spec.root.writes, Writes::ReadOnly(_)) {
            let origin = self.shown.origin("root", "read-only", |_| true);
            let way =
                Way::option(format!("--tmpfs {}", quoted(&parent)), format!("mounts.tmpfs = [{}]", toml_text(&parent)));
            return ("the root is read-only (--read-only)".into(), origin, way.but("an empty directory there"));
        }
        let volume = format!("{parent}:{parent}:overlay");
        let way = Way::option(format!("-v {}", quoted(&volume)), format!("mounts.volume = [{}]", toml_text(&volume)));
        ("it is mounted read-only".into(), None, way.but("changes are dropped at the end"))
    }

    /// The key of `[protect]` that keeps a path, if it is one of these.
    fn protected(&self, path: &Path) -> Option<&'static str> {
        let below = |place: &Path| path.starts_with(place);
        let start_file = || START_FILES.iter().any(|name| below(&self.caller.home.join(name)));
        if self.spec.protect.iter().any(|place| below(place.path.as_path())) {
            Some("paths")
        } else if self.spec.git == Git::Guarded && path.components().any(|part| part.as_os_str() == ".git") {
            Some("git")
        } else if self.spec.start_files == StartFiles::Guarded && start_file() {
            Some("start-files")
        } else {
            None
        }
    }

    fn no_exec(&self, path: &Path) -> Found {
        let Some(mount) = self.mount(path) else {
            return ("nothing is executed from there".into(), None, Way::none("put it elsewhere"));
        };
        let origin = self.shown.mount_origin(&mount.dst.to_string());
        let way = match &mount.source {
            MountSource::Bind { src, access, .. } => {
                let access = match access {
                    Access::Ro => ",ro",
                    Access::Rw => "",
                    Access::Overlay => ",overlay",
                };
                let volume = format!("{src}:{}:exec{access}", mount.dst);
                Way::option(format!("-v {}", quoted(&volume)), format!("mounts.volume = [{}]", toml_text(&volume)))
            }
            _ => Way::none("leave out noexec"),
        };
        (format!("{} is mounted noexec", mount.dst), origin, way)
    }

    fn capability(&self, number: u8) -> Found {
        let name = Capabilities::name(number).unwrap_or("?");
        let origin = self.shown.origin("caps", "drop", |text| {
            let text = text.trim_matches('"');
            text.eq_ignore_ascii_case("all") || text.to_ascii_uppercase().trim_start_matches("CAP_") == name
        });
        let dropped = Capabilities::default_set().holds(number) && origin.is_none();
        let way = match dropped {
            true => Way::none("leave out --cap-drop"),
            false => Way::option(format!("--cap-add {name}"), format!("caps.add = [\"{name}\"]")),
        };
        (format!("it needs CAP_{name}"), origin, way)
    }
}

/// What opens a call that the tables of the default policy keep shut.
fn by_default(attempt: &Attempt) -> Way {
    let name = attempt.call.as_str();
    let device = || matches!(name, "mknod" | "mknodat");
    let namespaces = || matches!(name, "clone" | "clone3" | "setns" | "unshare");
    match name {
        "ioctl" => Way::none("nothing: it would type into your terminal"),
        _ if namespaces() && (attempt.object.contains("user") || name == "clone3") => {
            Way::option("--nest", "hardening.nest = true")
        }
        _ if namespaces() => Way::option("--cap-add SYS_ADMIN", "caps.add = [\"SYS_ADMIN\"]"),
        _ if MOUNTING.contains(&name) => {
            let allow = if name == "pivot_root" { " --set 'seccomp.allow = [\"pivot_root\"]'" } else { "" };
            let both = "caps.add = [\"SYS_ADMIN\"]\nlandlock.mode = \"off\"";
            let both =
                if allow.is_empty() { both.to_owned() } else { format!("{both}\nseccomp.allow = [\"pivot_root\"]") };
            Way::option(format!("--cap-add SYS_ADMIN --landlock off{allow}"), both).but("for a sandbox inside: --nest")
        }
        _ if OF_ADMIN.contains(&name) => Way::option("--cap-add SYS_ADMIN", "caps.add = [\"SYS_ADMIN\"]"),
        "reboot" => Way::option("--cap-add SYS_BOOT", "caps.add = [\"SYS_BOOT\"]").but("which ends the sandbox"),
        _ if OF_THE_HOST.contains(&name) => Way::none("nothing: the kernel lets the host's root alone do it"),
        _ if device() => Way::none("--device PATH[:DST]: no sandbox makes devices"),
        "socket" | "socketpair" | "personality" => {
            let places = match name {
                "socket" if attempt.args[0] as u32 == 16 => &[0usize, 2][..],
                _ => &[0],
            };
            let args = places.iter().map(|place| {
                let whole = attempt.args[*place];
                let value = if name == "personality" { whole } else { u64::from(whole as u32) };
                format!("{{ index = {place}, value = {value} }}")
            });
            let args = args.collect::<Vec<_>>().join(", ");
            Way::set(format!("seccomp.rule = [{{ calls = [\"{name}\"], args = [{args}], action = \"allow\" }}]"))
        }
        _ => allow(name),
    }
}

fn allow(name: &str) -> Way {
    Way::set(format!("seccomp.allow = [\"{name}\"]"))
}

/// Whether an entry of a list is this call or a group with it.
fn names(entry: &str, call: &str) -> bool {
    let group = |name: &str| groups().iter().any(|group| group.name == name && group.calls.contains(&call));
    entry == call || entry.strip_prefix('@').is_some_and(group)
}

fn denies(rule: &Rule) -> bool {
    !matches!(rule.answer, Answer::Allow | Answer::Log)
}

fn matches(rule: &Rule, call: &str, args: &[u64; 6]) -> bool {
    rule.calls.iter().any(|entry| names(entry, call)) && call_rules::own(rule).all.iter().all(|one| holds(one, args))
}

/// Whether a path lies below what a pattern of `[hide]` stands for.
fn matches_pattern(pattern: &Path, path: &Path) -> bool {
    let mut parts = path.components();
    pattern.components().all(|wanted| {
        let (Some(part), Some(wanted)) = (parts.next(), wanted.as_os_str().to_str()) else { return false };
        part.as_os_str().to_str().is_some_and(|part| crate::spec::matches(wanted, part))
    })
}

fn toml_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
