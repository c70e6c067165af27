//! Limits that need somebody to enforce them, as a cgroup's files and systemd's properties have them.
//!
//! One table, `ROWS`: adding a limit is a row. Who enforces them is decided in `way`.

use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::cgroup::Direct;
use crate::host::manager::Door;
use crate::spec::limits::{CpuSet, HugetlbLimit, IoLimit, Limits};
use serde::Serialize;

/// Who enforces the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A cgroup that sbx makes in one that the caller may divide.
    Direct(Direct),
    /// A scope of the user's systemd.
    Systemd(Door),
    /// sbx itself, and what the kernel offers without a cgroup.
    Watch,
}

/// A value of one of systemd's properties, in the type that D-Bus has for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `b`
    Bool(bool),
    /// `t`
    Number(u64),
    /// `s`
    Text(String),
    /// `as`
    Names(Vec<&'static str>),
    /// `ay`
    Bytes(Vec<u8>),
    /// `a(st)`
    Paths(Vec<(String, u64)>),
}

/// One property of a unit (org.freedesktop.systemd1(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: Value,
}

/// How a file's value is held against what was written, since the kernel rounds and completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadBack {
    /// The very text.
    Same,
    /// Bytes, rounded down to pages of this size.
    Pages(u64),
    /// A list of processors, which the group must really get.
    Cpus,
    /// A line of io.max for one device, which names every rate.
    Device,
}

/// One file of the cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The option that asks for it.
    pub option: &'static str,
    /// What the user asked for.
    pub asked: String,
    /// The controller it belongs to.
    pub controller: &'static str,
    /// The file.
    pub file: String,
    /// What is written.
    pub value: String,
    /// How it reads afterwards.
    pub reads: ReadBack,
    /// Whether the kernel may lack the file where the limit holds by itself: swap, where there is none.
    pub optional: bool,
}

impl Setting {
    /// Whether a file reads as it should after the value was written.
    pub fn holds(&self, read: &str) -> bool {
        let read = read.trim();
        match self.reads {
            ReadBack::Same | ReadBack::Cpus => read == self.value,
            ReadBack::Pages(page) => {
                let asked = self.value.parse::<u64>();
                read.parse::<u64>().is_ok_and(|bytes| asked.is_ok_and(|asked| bytes == asked / page * page))
            }
            ReadBack::Device => {
                let (device, rates) = self.value.split_once(' ').unwrap_or((&self.value, ""));
                let line = read.lines().find_map(|line| line.strip_prefix(device)?.strip_prefix(' '));
                let has = |rate: &str| line.is_some_and(|line| line.split(' ').any(|word| word == rate));
                rates.split(' ').all(has)
            }
        }
    }
}

/// One limit as it is enforced: what the status lines and `inspect` tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Enforced {
    /// The option, without dashes.
    pub option: &'static str,
    /// What was asked for, in bytes, processors, counts.
    pub value: String,
    /// `cgroup`, `systemd`, `kernel`, `affinity` or `watch`.
    pub by: &'static str,
}

/// A limit that nobody enforces, which was allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unmet {
    /// The option and its value.
    pub step: String,
    /// Why nobody does.
    pub why: String,
}

/// The limits' part of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitsPlan {
    /// Who enforces them; `None` where nothing was asked for that needs somebody.
    pub way: Option<Way>,
    /// The files of the cgroup.
    pub settings: Vec<Setting>,
    /// Controllers that the cgroup needs.
    pub controllers: Vec<&'static str>,
    /// The same as systemd has it.
    pub properties: Vec<Property>,
    /// What is told of them.
    pub enforced: Vec<Enforced>,
    /// What was asked for and is left out.
    pub skipped: Vec<Unmet>,
    /// Bytes of memory, told to the user at the end.
    pub mem: Option<u64>,
    /// Processors that are chosen by affinity, under `watch`.
    pub affinity: Option<Affinity>,
}

impl LimitsPlan {
    /// Whether a cgroup counts the processes.
    pub(super) fn counts_pids(&self) -> bool {
        self.is_grouped() && self.enforced.iter().any(|limit| limit.option == "pids")
    }

    /// Bytes of memory that sbx itself watches over.
    pub fn watched(&self) -> Option<u64> {
        self.mem.filter(|_| self.way == Some(Way::Watch))
    }

    /// Whether the sandbox has a cgroup of its own.
    pub fn is_grouped(&self) -> bool {
        matches!(self.way, Some(Way::Direct(_) | Way::Systemd(_)))
    }
}

/// Which processors the program gets by sched_setaffinity(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// This many of the caller's own.
    Count(u32),
    /// These.
    List(CpuSet),
}

/// What enforces a limit without a cgroup.
pub(super) enum Alone {
    /// The kernel, by the limit on processes.
    Kernel,
    /// sbx, by looking.
    Looking,
    /// The kernel, by affinity; `None` where the value is no whole processors.
    Affinity(fn(&Limits) -> Option<Affinity>),
    /// Nobody.
    Nobody,
}

/// File, value, and how it reads.
pub(super) type Files = Vec<(String, String, ReadBack)>;

/// One limit of the table.
pub(super) struct Row {
    /// The option, which is the key too.
    pub option: &'static str,
    pub controller: &'static str,
    /// What was asked for, as text; `None` where nothing was.
    pub asked: fn(&Limits) -> Option<String>,
    /// File, value, and how it reads.
    pub files: fn(&Limits, &Host) -> Result<Files>,
    /// The same for systemd.
    pub properties: fn(&Limits, &Host) -> Vec<Property>,
    /// What there is without a cgroup.
    pub alone: Alone,
}

/// What the kernel rounds memory to on every architecture of sbx's.
const PAGE: u64 = 4096;
/// cpu.max: microseconds in which the quota counts, the kernel's default and systemd's.
const PERIOD: u64 = 100_000;
/// Init is counted in the group too.
const INIT: u64 = 1;

pub(super) const ROWS: &[Row] = &[
    Row {
        option: "mem",
        controller: "memory",
        asked: |l| l.mem.map(|bytes| bytes.to_string()),
        // No memory.high: it slows a hog down to a standstill instead of ending it. The group ends as one, for half a
        // tree of processes is of no use to anybody.
        files: |l, _| {
            let max = ("memory.max".into(), text(l.mem), ReadBack::Pages(PAGE));
            Ok(vec![max, ("memory.oom.group".into(), "1".into(), ReadBack::Same)])
        },
        properties: |l, _| vec![flag("MemoryAccounting"), number("MemoryMax", l.mem)],
        alone: Alone::Looking,
    },
    Row {
        option: "swap",
        controller: "memory",
        // With a memory limit and no word on swap there is none, or the limit would only move the memory elsewhere.
        asked: |l| l.swap.or(l.mem.and(Some(0))).map(|bytes| bytes.to_string()),
        files: |l, _| Ok(vec![("memory.swap.max".into(), text(l.swap.or(Some(0))), ReadBack::Pages(PAGE))]),
        properties: |l, _| vec![flag("MemoryAccounting"), number("MemorySwapMax", l.swap.or(Some(0)))],
        alone: Alone::Nobody,
    },
    Row {
        option: "cpus",
        controller: "cpu",
        asked: |l| l.cpus.map(|cpus| cpus.to_string()),
        files: |l, _| {
            let quota = l.cpus.map_or(0, |cpus| cpus.0 * PERIOD / 1000);
            Ok(vec![("cpu.max".into(), format!("{quota} {PERIOD}"), ReadBack::Same)])
        },
        properties: |l, _| vec![flag("CPUAccounting"), number("CPUQuotaPerSecUSec", l.cpus.map(|cpus| cpus.0 * 1000))],
        alone: Alone::Affinity(|l| {
            let whole = l.cpus.filter(|cpus| cpus.0 % 1000 == 0)?;
            Some(Affinity::Count((whole.0 / 1000) as u32))
        }),
    },
    Row {
        option: "cpuset",
        controller: "cpuset",
        asked: |l| l.cpuset.as_ref().map(CpuSet::to_string),
        files: |l, _| Ok(vec![("cpuset.cpus".into(), text(l.cpuset.as_ref()), ReadBack::Cpus)]),
        properties: |l, _| {
            let bits = l.cpuset.as_ref().map(bitmap).unwrap_or_default();
            vec![Property { name: "AllowedCPUs", value: Value::Bytes(bits) }]
        },
        alone: Alone::Affinity(|l| l.cpuset.clone().map(Affinity::List)),
    },
    Row {
        option: "cpu-weight",
        controller: "cpu",
        asked: |l| l.cpu_weight.map(|n| n.to_string()),
        files: |l, _| Ok(vec![("cpu.weight".into(), text(l.cpu_weight), ReadBack::Same)]),
        properties: |l, _| vec![flag("CPUAccounting"), number("CPUWeight", l.cpu_weight)],
        alone: Alone::Nobody,
    },
    Row {
        option: "pids",
        controller: "pids",
        asked: |l| l.pids.map(|n| n.to_string()),
        files: |l, _| Ok(vec![("pids.max".into(), text(l.pids.map(|n| n + INIT)), ReadBack::Same)]),
        properties: |l, _| vec![flag("TasksAccounting"), number("TasksMax", l.pids.map(|n| n + INIT))],
        alone: Alone::Kernel,
    },
    Row {
        option: "io-weight",
        controller: "io",
        asked: |l| l.io_weight.map(|n| n.to_string()),
        files: |l, _| Ok(vec![("io.weight".into(), format!("default {}", text(l.io_weight)), ReadBack::Same)]),
        properties: |l, _| vec![flag("IOAccounting"), number("IOWeight", l.io_weight)],
        alone: Alone::Nobody,
    },
    Row {
        option: "io",
        controller: "io",
        asked: |l| (!l.io.is_empty()).then(|| rates_text(l)),
        files: rates,
        properties: rate_properties,
        alone: Alone::Nobody,
    },
    Row {
        option: "hugetlb",
        controller: "hugetlb",
        asked: |l| {
            let all = l.hugetlb.iter().map(|huge| format!("{}={}", huge.page_name(), huge.limit));
            (!l.hugetlb.is_empty()).then(|| all.collect::<Vec<_>>().join(" "))
        },
        files: |l, _| {
            let file = |huge: &HugetlbLimit| {
                let file = format!("hugetlb.{}.max", huge.page_name());
                (file, huge.limit.to_string(), ReadBack::Pages(huge.page))
            };
            Ok(l.hugetlb.iter().map(file).collect())
        },
        // systemd has none.
        properties: |_, _| Vec::new(),
        alone: Alone::Nobody,
    },
];

fn text(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn flag(name: &'static str) -> Property {
    Property { name, value: Value::Bool(true) }
}

fn number(name: &'static str, value: Option<u64>) -> Property {
    Property { name, value: Value::Number(value.unwrap_or(u64::MAX)) }
}

/// Bit n % 8 of byte n / 8 for processor n.
fn bitmap(set: &CpuSet) -> Vec<u8> {
    let mut bytes = Vec::new();
    for cpu in set.iter() {
        let byte = cpu as usize / 8;
        bytes.resize(bytes.len().max(byte + 1), 0);
        bytes[byte] |= 1 << (cpu % 8);
    }
    bytes
}

fn rates_text(limits: &Limits) -> String {
    let one = |io: &IoLimit| {
        let rates: Vec<String> = io.rates.iter().map(|(key, rate)| format!("{key}={rate}")).collect();
        format!("{}:{}", io.path, rates.join(","))
    };
    limits.io.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn rates(limits: &Limits, host: &Host) -> Result<Files> {
    let mut found = Vec::new();
    for io in &limits.io {
        let disk = host.disks.iter().find(|disk| disk.path == io.path).map(|disk| &disk.device);
        let (major, minor) = match disk {
            Some(Ok(disk)) => *disk,
            Some(Err(why)) => {
                return Err(Error::spec("--io", &io.path, why).or_try("a disk such as /dev/sda, or a path on one"));
            }
            None => return Err(Error::Bug(format!("nobody looked at {}", io.path))),
        };
        let rates: Vec<String> = io.rates.iter().map(|(key, rate)| format!("{key}={rate}")).collect();
        found.push(("io.max".into(), format!("{major}:{minor} {}", rates.join(" ")), ReadBack::Device));
    }
    Ok(found)
}

/// systemd resolves a path to its disk by itself; a device node is told by its numbers, which no link can change.
fn rate_properties(limits: &Limits, host: &Host) -> Vec<Property> {
    let names = [
        ("rbps", "IOReadBandwidthMax"),
        ("wbps", "IOWriteBandwidthMax"),
        ("riops", "IOReadIOPSMax"),
        ("wiops", "IOWriteIOPSMax"),
    ];
    let mut found = vec![flag("IOAccounting")];
    for (key, name) in names {
        let rate = |io: &IoLimit| {
            let (_, rate) = io.rates.iter().find(|(known, _)| *known == key)?;
            let disk = host.disks.iter().find(|disk| disk.path == io.path)?;
            let (major, minor) = disk.device.as_ref().ok()?;
            Some((format!("/dev/block/{major}:{minor}"), *rate))
        };
        let paths: Vec<(String, u64)> = limits.io.iter().filter_map(rate).collect();
        if !paths.is_empty() {
            found.push(Property { name, value: Value::Paths(paths) });
        }
    }
    found
}
