//! A Layer: what one source (a policy file, the command line) asks for, everything optional.
//!
//! The field names are the keys of a policy file and, with `--` before them, the options.

use super::seccomp::Profile;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

/// Where a layer came from; the words of messages about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// The command line, which alone may lift another layer's denial.
    #[default]
    Argv,
    /// A policy: the file, or the name of a ready one.
    Policy(String),
}

/// See the head of the file. The texts are parsed by `Spec::resolve`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Layer {
    /// Where it came from.
    #[serde(skip)]
    pub origin: Origin,
    /// ROOTFS as typed; only the command line gives it.
    #[serde(skip)]
    pub rootfs: Option<OsString>,
    /// COMMAND and its arguments; only the command line gives them.
    #[serde(skip)]
    pub command: Vec<OsString>,
    /// Whether what was used is told at the end; only the command line gives it.
    #[serde(skip)]
    pub cgroup_report: bool,
    /// What is told of what the sandbox refuses, `calls` or `files`; only the command line gives it.
    #[serde(skip)]
    pub explain: Option<String>,
    /// Whether the program runs in the background; only the command line gives it, and the next two.
    #[serde(skip)]
    pub detach: bool,
    /// Whether a program in the background gets an input that stays open.
    #[serde(skip)]
    pub interactive: bool,
    /// How large a file of its log may be.
    #[serde(skip)]
    pub log_size: Option<String>,
    /// One line on what the policy is for.
    pub about: Option<String>,
    /// Policies that come before this one: ready names or files.
    pub extends: Vec<String>,
    /// Who the program is.
    pub identity: Identity,
    /// Its root.
    pub root: Root,
    /// Mounts, one table each.
    pub mount: Vec<MountTable>,
    /// Mounts in the short forms of the command line.
    pub mounts: Mounts,
    /// What of all that is not to be seen.
    pub hide: Hide,
    /// What of the writable is not to be changed.
    pub protect: Protect,
    /// The program.
    pub program: Program,
    /// Its environment.
    pub env: Env,
    /// Its network.
    pub net: Net,
    /// Its other namespaces.
    pub namespaces: Namespaces,
    /// Its limits.
    pub limits: Limits,
    /// Its capabilities.
    pub caps: Caps,
    /// Its system calls.
    pub seccomp: Seccomp,
    /// Its Landlock rules.
    pub landlock: Landlock,
    /// What may be weaker than the default.
    pub hardening: Hardening,
}

/// `[identity]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Identity {
    /// The sandbox's name.
    pub name: Option<String>,
    /// Host name inside.
    pub hostname: Option<String>,
    /// `UID[:GID]` or `NAME[:GROUP]`.
    pub user: Option<String>,
    /// Supplementary groups, by number or name.
    pub group_add: Vec<String>,
    /// No supplementary groups at all.
    pub drop_groups: Option<bool>,
    /// `auto`, `root`, `keep`, `full` or `INNER:OUTER:COUNT` texts.
    pub map: Vec<String>,
    /// `K=V` texts.
    pub label: Vec<String>,
}

/// `[root]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Root {
    /// Write into ROOTFS itself.
    pub rw: Option<bool>,
    /// The root cannot be written.
    pub read_only: Option<bool>,
    /// `tmpfs[:SIZE]`, `disk` or a directory.
    pub upper: Option<String>,
    /// `auto`, `kernel` or `fuse`.
    pub overlay: Option<String>,
    /// Let the program set set-id bits on writable host files.
    pub allow_setid: Option<bool>,
    /// Whether nothing is executed in what is hidden, what `@host` shows empty, and its copy of the caller's directory.
    pub noexec: Option<bool>,
}

/// `[[mount]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct MountTable {
    /// `bind` (the default), `tmpfs`, `mqueue` or `cgroup`.
    pub r#type: Option<String>,
    /// Outside: absolute, or relative to the caller's directory, or from `~`.
    pub src: Option<String>,
    /// Inside: as `src` if left out.
    pub dst: Option<String>,
    /// `ro`, `rw` or `overlay`.
    pub access: Option<String>,
    /// Whether files can be executed.
    pub exec: Option<bool>,
    /// Whether device nodes work.
    pub dev: Option<bool>,
    /// Whether a missing source is passed over.
    pub optional: Option<bool>,
    /// Of a tmpfs.
    pub size: Option<String>,
    /// Of a tmpfs, octal.
    pub mode: Option<String>,
}

/// `[mounts]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Mounts {
    /// `SRC:DST[:OPTION,…]` texts.
    pub volume: Vec<String>,
    /// `type=…,src=…,dst=…` texts.
    pub mount: Vec<String>,
    /// `DST[:size=…,mode=…]` texts.
    pub tmpfs: Vec<String>,
    /// `PATH[:DST]` texts.
    pub device: Vec<String>,
    /// Paths that read as empty.
    pub mask: Vec<String>,
    /// Paths not to mask after all, or `all`.
    pub unmask: Vec<String>,
}

/// `[hide]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Hide {
    /// Paths inside, which `*` may stand in; `.` and `~` as in a mount.
    pub paths: Vec<String>,
}

/// `[protect]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Protect {
    /// Paths inside; a slash at the end keeps a missing directory from being made.
    pub paths: Vec<String>,
    /// The git repositories of the caller's directory and of writable mounts: usable, but for their hooks and their
    /// configuration.
    pub git: Option<bool>,
    /// What shells and sessions start with, in the caller's home.
    pub start_files: Option<bool>,
}

/// `[program]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Program {
    /// Working directory inside.
    pub workdir: Option<String>,
    /// What the program sees as its own name.
    pub argv0: Option<String>,
    /// A terminal of its own, or none.
    pub tty: Option<bool>,
    /// The program is pid 1 itself.
    pub no_init: Option<bool>,
    /// Descriptors that reach it besides 0 to 2.
    pub pass_fd: Vec<i32>,
    /// Octal.
    pub umask: Option<String>,
}

/// `[env]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Env {
    /// Variables and their values.
    pub set: BTreeMap<String, String>,
    /// Variables taken from the caller; `*` matches any text.
    pub pass: Vec<String>,
    /// Variables never passed or set by an earlier layer; `*` matches any text.
    pub deny: Vec<String>,
    /// Files of `K=V` lines.
    pub env_file: Vec<String>,
    /// Start from nothing instead of from sbx's own few.
    pub clear_env: Option<bool>,
}

/// `[net]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Net {
    /// `none` or `host`.
    pub mode: Option<String>,
    /// Name servers for resolv.conf.
    pub dns: Vec<String>,
    /// `HOST:IP` texts for the hosts file.
    pub add_host: Vec<String>,
}

/// `[namespaces]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Namespaces {
    /// Those of `ipc`, `uts`, `time`, `cgroup` that stay the host's.
    pub share: Vec<String>,
    /// `monotonic=±S,boottime=±S`.
    pub time_offset: Option<String>,
    /// Kernel settings of the new namespaces.
    pub sysctl: BTreeMap<String, String>,
}

/// `[limits]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Limits {
    /// `auto`, `cgroup`, `watch` or `off`.
    pub limits: Option<String>,
    /// Bytes of memory.
    pub mem: Option<Count>,
    /// Bytes of swap.
    pub swap: Option<Count>,
    /// Processors' time.
    pub cpus: Option<Count>,
    /// Processors by number.
    pub cpuset: Option<Count>,
    /// 1 to 10000.
    pub cpu_weight: Option<Count>,
    /// Processes and threads.
    pub pids: Option<Count>,
    /// 1 to 10000.
    pub io_weight: Option<Count>,
    /// `DEVICE:RATE=…` texts.
    pub io: Vec<String>,
    /// `SIZE=LIMIT` texts.
    pub hugetlb: Vec<String>,
    /// `NAME=SOFT[:HARD]` texts.
    pub rlimit: Vec<String>,
    /// -20 to 19.
    pub nice: Option<i32>,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// How long the program may run.
    pub timeout: Option<Count>,
    /// From TERM to KILL.
    pub kill_after: Option<Count>,
}

/// A value that TOML may hold as a number or as a text with a unit.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Count {
    /// A plain number.
    Number(i64),
    /// A text, as on the command line.
    Text(String),
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Count, D::Error> {
        from.deserialize_any(CountVisitor)
    }
}

/// Says what is expected, which a derived choice between two forms does not.
struct CountVisitor;

impl Visitor<'_> for CountVisitor {
    type Value = Count;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a text such as \"30m\"")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Count, E> {
        Ok(Count::Number(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Count, E> {
        Ok(Count::Text(number.to_string()))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Count, E> {
        Ok(Count::Text(text.to_owned()))
    }
}

impl Count {
    /// The text form, whichever it was.
    pub fn text(&self) -> String {
        match self {
            Count::Number(number) => number.to_string(),
            Count::Text(text) => text.clone(),
        }
    }
}

/// `[caps]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Caps {
    /// Capabilities to add.
    pub add: Vec<String>,
    /// Capabilities to take away, or `all`.
    pub drop: Vec<String>,
}

/// `[seccomp]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Seccomp {
    /// `default` or `off`.
    pub filter: Option<String>,
    /// Calls to allow beyond the default policy.
    pub allow: Vec<String>,
    /// Calls to deny.
    pub deny: Vec<String>,
    /// Calls to allow and log.
    pub log: Vec<String>,
    /// Rules on arguments, one table each.
    pub rule: Vec<RuleTable>,
    /// A filter of another program's making; `filter` or the command line names its file.
    #[serde(skip)]
    pub profile: Option<Profile>,
}

/// `[[seccomp.rule]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct RuleTable {
    /// Names of calls and of groups.
    pub calls: Vec<String>,
    /// Comparisons that all have to hold.
    pub args: Vec<ArgTable>,
    /// `allow`, `deny`, `log` or `kill`.
    pub action: Option<String>,
    /// The name of the error of a denial.
    pub errno: Option<String>,
}

/// A comparison of a rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ArgTable {
    /// Which argument, from 0 to 5.
    pub index: u8,
    /// `==` (the default), `!=`, `<`, `<=`, `>` or `>=`, without a sign.
    pub op: Option<String>,
    /// What it is compared with.
    pub value: i64,
    /// The bits that count; all of them by default.
    pub mask: Option<i64>,
}

/// `[landlock]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Landlock {
    /// `auto`, `require` or `off`.
    pub mode: Option<String>,
    /// Paths inside below which files may be executed, and nowhere else.
    pub exec: Option<Vec<String>>,
    /// TCP ports that may be bound, and no others.
    pub tcp_bind: Option<Vec<u16>>,
    /// TCP ports that may be connected to, and no others.
    pub tcp_connect: Option<Vec<u16>>,
    /// Those of `signals` and `abstract-sockets` that do not reach out of the sandbox; both if not said.
    pub scope: Option<Vec<String>>,
}

/// `[hardening]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Hardening {
    /// What an inner sandbox needs is allowed.
    pub nest: Option<bool>,
    /// What may be skipped is skipped where it cannot be had.
    pub best_effort: Option<bool>,
}
