//! The options of `run`: one table, of which clap gets only the rows that the command line mentions.
//!
//! Building all rows costs more than the whole launch of the child (startup.md section 2), so a run without
//! options builds none; `--help` and every error build them all.

use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};
use sbx::error::{Error, Result};
use sbx::spec::layer::{Count, Layer};
use std::ffi::OsString;

/// What follows an option's name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Nothing; given twice it counts once.
    Nothing,
    /// One value; the last one counts.
    One(&'static str),
    /// One value each time, all count.
    Many(&'static str),
    /// Nothing, or after a `=` this word.
    Maybe(&'static str),
}

/// One option.
pub struct Row {
    pub long: &'static str,
    pub short: Option<char>,
    pub takes: Takes,
    pub group: &'static str,
    pub help: &'static str,
    /// Puts the value into the layer; `None` for options that are no part of the sandbox.
    put: Option<fn(&mut Layer, &str) -> Result<()>>,
}

const IDENTITY: &str = "Identity";
const ROOT: &str = "Root file system";
const MOUNTS: &str = "Mounts";
const PROGRAM: &str = "Program";
const NAMESPACES: &str = "Namespaces";
const LIMITS: &str = "Limits";
const HARDENING: &str = "Hardening";
const REPORTING: &str = "Reporting";

macro_rules! rows {
    ($($group:ident: $long:literal $($short:literal)?, $takes:expr, $help:literal $(=> $put:expr)?;)+) => {
        /// All options of `run`, in the order of `--help`.
        pub const ROWS: &[Row] = &[$(Row {
            long: $long,
            short: rows!(@short $($short)?),
            takes: $takes,
            group: $group,
            help: $help,
            put: rows!(@put $($put)?),
        }),+];
    };
    (@short) => { None };
    (@short $short:literal) => { Some($short) };
    (@put) => { None };
    (@put $put:expr) => { Some($put) };
}

use Takes::{Many, Maybe, Nothing, One};

rows! {
    IDENTITY: "name", One("NAME"), "The sandbox's name (else a generated one)" => |l, v| some(&mut l.identity.name, v);
    IDENTITY: "hostname", One("NAME"), "Host name inside (else the sandbox's name)" => |l, v| some(&mut l.identity.hostname, v);
    IDENTITY: "user" 'u', One("UID[:GID]|NAME[:GROUP]"), "The program's user (default: 0, or you with @host)" => |l, v| some(&mut l.identity.user, v);
    IDENTITY: "group-add", Many("GROUP"), "A supplementary group (needs a map of ranges)" => |l, v| push(&mut l.identity.group_add, v);
    IDENTITY: "drop-groups", Nothing, "No supplementary groups (needs a map of ranges)" => |l, _| yes(&mut l.identity.drop_groups);
    IDENTITY: "map", Many("auto|root|keep|full|INNER:OUTER:COUNT"), "Which ids inside are which outside" => |l, v| push(&mut l.identity.map, v);
    IDENTITY: "label", Many("K=V"), "A label, kept in the sandbox's record while it runs" => |l, v| push(&mut l.identity.label, v);
    ROOT: "rw", Nothing, "Write into ROOTFS itself" => |l, _| yes(&mut l.root.rw);
    ROOT: "read-only", Nothing, "Make / read-only; /tmp, /run and /dev/shm stay writable" => |l, _| yes(&mut l.root.read_only);
    ROOT: "upper", One("tmpfs[:SIZE]|disk|DIR"), "Where changes of / go (default: memory, dropped at the end; with --detach disk, until rm); DIR starts with / . or ~" => |l, v| some(&mut l.root.upper, v);
    ROOT: "overlay", One("auto|kernel|fuse"), "Which overlay implementation" => |l, v| some(&mut l.root.overlay, v);
    ROOT: "allow-setid", Nothing, "Let the program set set-id bits on writable host files" => |l, _| yes(&mut l.root.allow_setid);
    MOUNTS: "volume" 'v', Many("SRC:DST[:OPTION,…]"), "Bind a host path; options ro rw overlay exec noexec dev optional" => |l, v| push(&mut l.mounts.volume, v);
    MOUNTS: "mount", Many("type=…,src=…,dst=…"), "Mount; types bind tmpfs mqueue cgroup" => |l, v| push(&mut l.mounts.mount, v);
    MOUNTS: "tmpfs", Many("DST[:size=,mode=,noexec]"), "An empty file system in memory" => |l, v| push(&mut l.mounts.tmpfs, v);
    MOUNTS: "device", Many("PATH[:DST]"), "A device of the host, at a place below /dev" => |l, v| push(&mut l.mounts.device, v);
    MOUNTS: "mask", Many("PATH"), "A path that reads as empty" => |l, v| push(&mut l.mounts.mask, v);
    MOUNTS: "unmask", Many("PATH|all"), "A default mask or read-only path to lift" => |l, v| push(&mut l.mounts.unmask, v);
    PROGRAM: "workdir" 'w', One("DIR"), "Working directory inside (default: /, or yours with @host)" => |l, v| some(&mut l.program.workdir, v);
    PROGRAM: "env" 'e', Many("K=V|K"), "A variable, or the caller's value of one" => env;
    PROGRAM: "env-file", Many("FILE"), "Variables from a file, one a line" => |l, v| push(&mut l.env.env_file, v);
    PROGRAM: "clear-env", Nothing, "Start without sbx's own few variables" => |l, _| yes(&mut l.env.clear_env);
    PROGRAM: "argv0", One("NAME"), "What the program sees as its own name" => |l, v| some(&mut l.program.argv0, v);
    PROGRAM: "tty" 't', Nothing, "Give the program a terminal of its own" => |l, _| yes(&mut l.program.tty);
    PROGRAM: "no-tty" 'T', Nothing, "Pass the caller's descriptors as they are" => |l, _| { l.program.tty = Some(false); Ok(()) };
    PROGRAM: "detach" 'd', Nothing, "Run in the background: print the name, return when the program has started" => |l, _| { l.detach = true; Ok(()) };
    PROGRAM: "interactive" 'i', Nothing, "With --detach: an input that stays open (without it, yours always is)" => |l, _| { l.interactive = true; Ok(()) };
    PROGRAM: "no-init", Nothing, "Make the program pid 1" => |l, _| yes(&mut l.program.no_init);
    PROGRAM: "pass-fd", Many("N"), "A descriptor that the program gets besides 0 to 2" => pass_fd;
    PROGRAM: "umask", One("MASK"), "File mode creation mask, octal (default: 022)" => |l, v| some(&mut l.program.umask, v);
    NAMESPACES: "net", One("none|host"), "The network (default: none, its own loopback)" => |l, v| some(&mut l.net.mode, v);
    NAMESPACES: "dns", Many("IP"), "A name server for resolv.conf" => |l, v| push(&mut l.net.dns, v);
    NAMESPACES: "add-host", Many("HOST:IP"), "A line of the hosts file" => |l, v| push(&mut l.net.add_host, v);
    NAMESPACES: "share", Many("ipc,uts,time,cgroup"), "Namespaces that stay the host's" => |l, v| push(&mut l.namespaces.share, v);
    NAMESPACES: "time-offset", One("monotonic=±S,boottime=±S"), "Move the clocks" => |l, v| some(&mut l.namespaces.time_offset, v);
    NAMESPACES: "sysctl", Many("K=V"), "A kernel setting of the sandbox's own namespaces" => sysctl;
    LIMITS: "mem", One("SIZE"), "Memory of all processes together, and no swap unless --swap" => |l, v| count(&mut l.limits.mem, v);
    LIMITS: "swap", One("SIZE"), "Swap besides --mem" => |l, v| count(&mut l.limits.swap, v);
    LIMITS: "cpus", One("N[.n]"), "Processor time, in processors" => |l, v| count(&mut l.limits.cpus, v);
    LIMITS: "cpuset", One("LIST"), "The processors that may be used, such as 0-3,5" => |l, v| count(&mut l.limits.cpuset, v);
    LIMITS: "cpu-weight", One("N"), "Share of processor time, 1 to 10000 (everybody has 100)" => |l, v| count(&mut l.limits.cpu_weight, v);
    LIMITS: "pids", One("N"), "Processes and threads (default: 4096)" => |l, v| count(&mut l.limits.pids, v);
    LIMITS: "io-weight", One("N"), "Share of the disks' time, 1 to 10000 (everybody has 100)" => |l, v| count(&mut l.limits.io_weight, v);
    LIMITS: "io", Many("DEVICE:rbps=,wbps=,riops=,wiops="), "Rates of a disk, or of the one that a path lies on" => |l, v| push(&mut l.limits.io, v);
    LIMITS: "hugetlb", Many("SIZE=LIMIT"), "Huge pages of this size" => |l, v| push(&mut l.limits.hugetlb, v);
    LIMITS: "limits", One("auto|cgroup|watch|off"), "Who enforces limits: a cgroup, or sbx by watching (default: auto, the first that can be had)" => |l, v| some(&mut l.limits.limits, v);
    LIMITS: "rlimit", Many("NAME=SOFT[:HARD]"), "A resource limit of getrlimit(2)" => |l, v| push(&mut l.limits.rlimit, v);
    LIMITS: "nice", One("N"), "Nice value, -20 to 19; an ordinary user can only raise it" => |l, v| integer("--nice", &mut l.limits.nice, v);
    LIMITS: "oom-score-adj", One("N"), "Who is killed first when memory is short, -1000 to 1000; an ordinary user can only raise it" => |l, v| integer("--oom-score-adj", &mut l.limits.oom_score_adj, v);
    LIMITS: "timeout", One("DURATION"), "End the program after this time, status 124" => |l, v| count(&mut l.limits.timeout, v);
    LIMITS: "kill-after", One("DURATION"), "From TERM to KILL after --timeout (default: 10s)" => |l, v| count(&mut l.limits.kill_after, v);
    HARDENING: "policy", Many("NAME|FILE"), "A policy; with a / or ending in .toml it is a file";
    HARDENING: "set", Many("KEY=VALUE"), "A key of a policy, as TOML writes it";
    HARDENING: "cap-add", Many("CAP"), "A capability to add" => |l, v| push(&mut l.caps.add, v);
    HARDENING: "cap-drop", Many("CAP|all"), "A capability to take away" => |l, v| push(&mut l.caps.drop, v);
    HARDENING: "seccomp", One("default|off|FILE"), "The system call policy";
    HARDENING: "landlock", One("auto|require|off"), "Restrict mounts, devices, signals and files once more, by Landlock (default: auto)" => |l, v| some(&mut l.landlock.mode, v);
    HARDENING: "nest", Nothing, "Allow what a sandbox inside needs: user namespaces, mounts; opens more of the kernel" => |l, _| yes(&mut l.hardening.nest);
    HARDENING: "best-effort", Nothing, "Skip what this host lacks of time and cgroup namespaces, sysfs, mqueue, keyring, limits" => |l, _| yes(&mut l.hardening.best_effort);
    REPORTING: "dry-run", Nothing, "Print the plan and start nothing";
    REPORTING: "json", Nothing, "With --dry-run: print it as JSON";
    REPORTING: "status-fd", One("N"), "Write JSON lines about the run to this descriptor";
    REPORTING: "pid-file", One("FILE"), "Write the program's pid, as the caller sees it, to this file";
    REPORTING: "cgroup-report", Nothing, "Print at the end what was used: memory, processor time, processes, io, pressure" => |l, _| { l.cgroup_report = true; Ok(()) };
    REPORTING: "explain", Maybe("files"), "Say what was refused, by which rule, and what allows it; =files: files too" => |l, v| some(&mut l.explain, v);
    REPORTING: "learn", One("FILE"), "Run on copies, watch what is used and denied, and write a policy";
    REPORTING: "log-size", One("SIZE"), "With --detach: size of each of the three files of its log (default: 10M)" => |l, v| some(&mut l.log_size, v);
    REPORTING: "state", One("DIR"), "Where records are kept";
    REPORTING: "verbose", Nothing, "Print each step as it is done";
    REPORTING: "quiet" 'q', Nothing, "Print errors only";
    REPORTING: "color", One("auto|always|never"), "Colors in messages";
}

fn some(place: &mut Option<String>, value: &str) -> Result<()> {
    *place = Some(value.to_owned());
    Ok(())
}

fn push(place: &mut Vec<String>, value: &str) -> Result<()> {
    place.push(value.to_owned());
    Ok(())
}

fn yes(place: &mut Option<bool>) -> Result<()> {
    *place = Some(true);
    Ok(())
}

fn count(place: &mut Option<Count>, value: &str) -> Result<()> {
    *place = Some(Count::Text(value.to_owned()));
    Ok(())
}

fn integer(field: &str, place: &mut Option<i32>, value: &str) -> Result<()> {
    *place = Some(value.parse().map_err(|_| Error::spec(field, value, "not a whole number"))?);
    Ok(())
}

fn env(layer: &mut Layer, value: &str) -> Result<()> {
    let name = value.split('=').next().unwrap_or(value);
    let refuse = |why: &str| Err(Error::spec("--env", value, why).or_try("-e K=V, or -e K for your own value of K"));
    if name.contains(char::is_whitespace) {
        return refuse("a variable's name does not hold spaces");
    }
    if name.contains('/') {
        return refuse("a variable's name does not hold a / (is it ROOTFS, and the variable missing?)");
    }
    match value.split_once('=') {
        Some((name, value)) => {
            layer.env.set.insert(name.into(), value.into());
        }
        None if value.contains('*') => {
            return Err(Error::spec("--env", value, "a pattern belongs into a policy's env.pass"));
        }
        None => layer.env.pass.push(value.into()),
    }
    Ok(())
}

fn sysctl(layer: &mut Layer, value: &str) -> Result<()> {
    let (key, value) = value.split_once('=').ok_or_else(|| Error::spec("--sysctl", value, "not K=V"))?;
    layer.namespaces.sysctl.insert(key.into(), value.into());
    Ok(())
}

fn pass_fd(layer: &mut Layer, value: &str) -> Result<()> {
    let number = sbx::spec::text::number("--pass-fd", value)?;
    let number = i32::try_from(number).map_err(|_| Error::spec("--pass-fd", value, "not a descriptor number"))?;
    layer.program.pass_fd.push(number);
    Ok(())
}

/// The words of one `sbx run`, parsed.
pub struct Parsed {
    matches: ArgMatches,
    rows: Vec<&'static Row>,
}

impl Parsed {
    /// The value of an option that takes one, or its last.
    pub fn value(&self, long: &str) -> Option<&str> {
        self.values(long).last()
    }

    /// All values of an option.
    pub fn values(&self, long: &str) -> impl Iterator<Item = &str> {
        let built = self.rows.iter().any(|row| row.long == long && row.takes != Nothing);
        let values = if built { self.matches.get_many::<String>(long) } else { None };
        values.into_iter().flatten().map(String::as_str)
    }

    /// Whether an option was given, whatever it takes.
    pub fn flag_or_value(&self, long: &str) -> bool {
        let row = self.rows.iter().find(|row| row.long == long);
        row.is_some_and(|row| if row.takes == Nothing { self.flag(long) } else { self.value(long).is_some() })
    }

    /// Whether a flag was given.
    pub fn flag(&self, long: &str) -> bool {
        self.rows.iter().any(|row| row.long == long) && self.matches.get_flag(long)
    }

    /// The command line as a layer.
    pub fn layer(&self) -> Result<Layer> {
        let mut layer = Layer::default();
        for row in &self.rows {
            match (row.put, row.takes) {
                (None, _) => {}
                (Some(put), Nothing) if self.flag(row.long) => put(&mut layer, "")?,
                (Some(_), Nothing) => {}
                (Some(put), _) => self.values(row.long).try_for_each(|value| put(&mut layer, value))?,
            }
        }
        // Of -t and -T the last one counts.
        let place = |long: &str| self.flag(long).then(|| self.matches.index_of(long)).flatten();
        if let (Some(own), Some(none)) = (place("tty"), place("no-tty")) {
            layer.program.tty = Some(own > none);
        }
        let mut words = self.matches.get_many::<OsString>("ROOTFS").into_iter().flatten().cloned();
        layer.rootfs = words.next();
        layer.command = words.collect();
        // Options end at ROOTFS; one `--` right after it is dropped.
        if layer.command.first().is_some_and(|first| first == "--") {
            layer.command.remove(0);
        }
        Ok(layer)
    }
}

/// What to say of an option that other programs of this kind have and sbx has not.
pub fn habit(option: &str) -> Option<&'static str> {
    Some(match option {
        "--rm" => "leave it out: a sandbox's changes go with it",
        "--init" => "leave it out: a sandbox has an init unless --no-init",
        "--privileged" => "--nest for a sandbox inside, or --cap-add for one capability",
        "-p" | "--publish" => "--net host; no ports are published",
        "-m" | "--memory" => "--mem 512M",
        "--memory-swap" => "--swap SIZE, which does not count --mem in",
        "--cpuset-cpus" => "--cpuset LIST",
        "--cpu-shares" => "--cpu-weight N, where 100 is what everybody has",
        "--pids-limit" => "--pids N",
        "--device-read-bps" | "--device-write-bps" => "--io DEVICE:rbps=SIZE,wbps=SIZE",
        _ => return None,
    })
}

/// `run` as `--help` and completions show it: ROOTFS apart from COMMAND, which a parser that ends its options at
/// ROOTFS cannot have.
pub fn shown() -> Command {
    let rootfs = Arg::new("ROOTFS").required(true).value_hint(ValueHint::DirPath).help("A directory or @host");
    let rest = Arg::new("COMMAND").num_args(0..).help("The program and its arguments (default: /bin/sh)");
    command(Verb::Run, ROWS.iter()).arg(rootfs).arg(rest)
}

/// `exec` likewise.
pub fn shown_exec() -> Command {
    let name = Arg::new("NAME").required(true).help("The sandbox");
    let rest = Arg::new("COMMAND").num_args(1..).required(true).help("The program and its arguments");
    command(Verb::Exec, Verb::Exec.rows()).arg(name).arg(rest)
}

/// The words among the values of an option, where none is a path: what a shell can offer.
pub fn choices(row: &Row) -> Vec<&'static str> {
    let (One(name) | Many(name) | Maybe(name)) = row.takes else { return Vec::new() };
    let parts = || name.split(['|', ',']);
    if parts().any(|part| ["FILE", "DIR", "PATH"].contains(&part)) {
        return Vec::new();
    }
    parts().filter(|part| part.bytes().all(|b| b.is_ascii_lowercase())).collect()
}

/// `run` with the chosen rows, without what follows them.
fn command<'a>(verb: Verb, rows: impl Iterator<Item = &'a Row>) -> Command {
    let args = rows.map(|row| {
        let arg = Arg::new(row.long).long(row.long).help(verb.help(row)).help_heading(row.group);
        let arg = if let Some(short) = row.short { arg.short(short) } else { arg };
        match row.takes {
            Nothing => arg.action(ArgAction::SetTrue).overrides_with(row.long),
            Maybe(word) => arg
                .value_name(word)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("calls")
                .action(ArgAction::Set)
                .overrides_with(row.long),
            One(name) => arg.value_name(name).action(ArgAction::Set).overrides_with(row.long).allow_hyphen_values(true),
            Many(name) => arg.value_name(name).action(ArgAction::Append).allow_hyphen_values(true),
        }
    });
    let (name, about, usage) = match verb {
        Verb::Run => (
            "run",
            "Run a program in a new sandbox, wait for it, exit with its status",
            "sbx run [OPTIONS] ROOTFS [COMMAND [ARG…]]",
        ),
        Verb::Exec => (
            "exec",
            "Run one more program in a sandbox, confined as the first is, and exit with its status",
            "sbx exec [OPTIONS] NAME COMMAND [ARG…]",
        ),
    };
    Command::new(name).bin_name(format!("sbx {name}")).about(about).override_usage(usage).args(args)
}

/// ROOTFS, COMMAND and its arguments, at which options end.
fn rest() -> Arg {
    Arg::new("ROOTFS").num_args(0..).trailing_var_arg(true).value_parser(value_parser!(OsString))
}

/// Whether a word may mean this option.
fn mentions(text: &str, row: &Row) -> bool {
    let long = text.strip_prefix("--").map(|rest| rest.split('=').next().unwrap_or(rest));
    let short = || !text.starts_with("--") && row.short.is_some_and(|c| text.contains(c));
    long == Some(row.long) || short()
}

/// Which of the two subcommands with this table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// All of it.
    Run,
    /// What is about the program alone.
    Exec,
}

/// The options that `exec` has too.
const OF_EXEC: [&str; 16] = [
    "detach",
    "interactive",
    "user",
    "workdir",
    "env",
    "env-file",
    "argv0",
    "tty",
    "no-tty",
    "pass-fd",
    "status-fd",
    "pid-file",
    "state",
    "verbose",
    "quiet",
    "color",
];

impl Verb {
    /// Its rows of the table.
    fn rows(self) -> impl Iterator<Item = &'static Row> {
        ROWS.iter().filter(move |row| self == Verb::Run || OF_EXEC.contains(&row.long))
    }

    /// What an option does here.
    fn help(self, row: &Row) -> &'static str {
        match (self, row.long) {
            (Verb::Exec, "detach") => {
                "Return when the program has started; it has no input, and its output goes nowhere"
            }
            (Verb::Exec, "interactive") => "Changes nothing: without --detach its input is always yours",
            (Verb::Exec, "user") => "The program's user (default: that of the first program)",
            (Verb::Exec, "workdir") => "Working directory inside (default: that of the first program)",
            _ => row.help,
        }
    }
}

/// Parses the words after `run` or `exec`. What the few rows that are mentioned do not explain is parsed again with all of
/// them, so that an error knows every option.
pub fn parse(verb: Verb, words: &[OsString]) -> std::result::Result<Parsed, clap::Error> {
    let mut dashed: Vec<&str> = words.iter().filter_map(|word| word.to_str()).filter(|t| t.starts_with('-')).collect();
    dashed.sort_unstable();
    dashed.dedup();
    let mentioned: Vec<&'static Row> = verb.rows().filter(|row| dashed.iter().any(|t| mentions(t, row))).collect();
    let few = command(verb, mentioned.iter().copied()).arg(rest()).no_binary_name(true).disable_help_flag(true);
    let matches = match few.try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(_) => {
            let matches = command(verb, verb.rows()).arg(rest()).no_binary_name(true).try_get_matches_from(words)?;
            return Ok(Parsed { matches, rows: verb.rows().collect() });
        }
    };
    Ok(Parsed { matches, rows: mentioned })
}
