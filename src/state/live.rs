//! What a sandbox uses now: by its cgroup where it has one, else summed over its processes as /proc shows them to
//! everybody. The sums count what processes share once for each, and a process that ends between two looks not at all.

use super::{Found, Record};
use crate::cgroup::{live, name_of};
use crate::host::cgroup::of_process;
use crate::host::files::read_text;
use crate::spec::text::size;
use serde::Serialize;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Who has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The kernel, in the sandbox's cgroup.
    Cgroup,
    /// sbx, over its processes.
    Processes,
}

/// See the head of the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Use {
    /// Who has counted.
    pub by: By,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// The limit.
    pub memory_max: Option<u64>,
    /// Processor time in microseconds, since the start.
    pub cpu_us: Option<u64>,
    /// The limit: processors at a time.
    pub cpus_max: Option<f64>,
    /// Processes and threads, without sbx's init.
    pub pids: Option<u64>,
    /// The limit.
    pub pids_max: Option<u64>,
    /// Bytes read and written.
    pub io: Option<(u64, u64)>,
    /// For how much of the last ten seconds something waited, in percent: for processor time, memory, io.
    pub waiting: [Option<f64>; 3],
}

/// What of /proc/PID/stat is summed (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stat {
    parent: i32,
    /// Clock ticks, with those of children that were waited for.
    ticks: u64,
    threads: u64,
    /// Pages.
    resident: u64,
    is_init: bool,
}

/// Clock ticks have this length in everything that the kernel shows (USER_HZ), on all architectures of ours.
const TICK_US: u64 = 10_000;

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The name may hold anything, spaces and brackets too.
        let (name, rest) = (text.find('(')? + 1, text.rfind(')')?);
        let fields: Vec<&str> = text.get(rest + 1..)?.split_whitespace().collect();
        let number = |n: usize| fields.get(n)?.parse::<u64>().ok();
        let ticks = [11, 12, 13, 14].into_iter().filter_map(number).fold(0, u64::saturating_add);
        Some(Stat {
            parent: fields.get(1)?.parse().ok()?,
            ticks,
            threads: number(17)?,
            resident: number(21)?,
            is_init: text.get(name..rest)? == "sbx-init",
        })
    }
}

/// All processes of one moment.
#[derive(Debug)]
pub struct Processes(HashMap<i32, Stat>);

impl Processes {
    /// Looks at /proc.
    pub fn look() -> Processes {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        Processes(pids.filter_map(|pid| Some((pid, Stat::parse(&file(pid, "stat")?)?))).collect())
    }

    /// A sandbox's init and what descends from it; and what has entered the same pid namespace from outside, by
    /// `sbx exec`. Init tells its namespace to nobody, the others do.
    fn of(&self, init: i32) -> Vec<Stat> {
        let ours = |pid: i32| {
            let line = std::iter::successors(Some(pid), |pid| self.0.get(pid).map(|stat| stat.parent));
            line.take(1 << 12).any(|ancestor| ancestor == init)
        };
        let (inside, outside): (Vec<i32>, Vec<i32>) = self.0.keys().partition(|pid| ours(**pid));
        let namespace = inside.iter().find_map(|pid| pid_namespace(*pid));
        let entered = outside.into_iter().filter(|pid| namespace.is_some() && pid_namespace(*pid) == namespace);
        inside.iter().copied().chain(entered).filter_map(|pid| self.0.get(&pid).copied()).collect()
    }
}

fn file(pid: i32, name: &str) -> Option<String> {
    read_text(&Path::new("/proc").join(pid.to_string()).join(name), 1 << 16).ok()
}

fn pid_namespace(pid: i32) -> Option<OsString> {
    std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok().map(PathBuf::into_os_string)
}

impl Found {
    /// What it uses now; `None` where nothing is known of it yet, or it has ended.
    pub fn usage(&self, processes: &Processes) -> Option<Use> {
        let record = self.record.as_ref().filter(|_| self.lives())?;
        let init = record.pid?;
        by_group(record, init, processes).or_else(|| by_processes(record, &processes.of(init)))
    }
}

/// The group that sbx has made, or the scope that systemd has put init into. The program may have divided it.
fn group(record: &Record, init: i32) -> Option<PathBuf> {
    let by_manager = record.limits.iter().any(|limit| limit.by == "systemd");
    let scope = || {
        let unit = format!("{}.scope", name_of(&record.name));
        let at = of_process(init)?;
        at.ancestors().find(|at| at.ends_with(&unit)).map(Path::to_owned)
    };
    record.group.clone().or_else(|| if by_manager { scope() } else { None })
}

fn by_group(record: &Record, init: i32, processes: &Processes) -> Option<Use> {
    let live = live(&group(record, init)?)?;
    let own = u64::from(processes.0.get(&init).is_some_and(|stat| stat.is_init));
    Some(Use {
        by: By::Cgroup,
        memory: live.memory,
        memory_max: live.memory_max,
        cpu_us: live.usage.cpu_us,
        cpus_max: live.cpus_max,
        pids: live.pids.map(|pids| pids.saturating_sub(own)),
        pids_max: live.pids_max.map(|pids| pids.saturating_sub(own)),
        io: live.usage.io,
        waiting: live.waiting,
    })
}

fn by_processes(record: &Record, all: &[Stat]) -> Option<Use> {
    if all.is_empty() {
        return None;
    }
    let limit = |option: &str| record.limits.iter().find(|limit| limit.option == option).map(|limit| &limit.value);
    let sum = |of: fn(&Stat) -> u64| all.iter().map(of).fold(0, u64::saturating_add);
    let threads = all.iter().filter(|stat| !stat.is_init).map(|stat| stat.threads).sum();
    Some(Use {
        by: By::Processes,
        memory: Some(sum(|stat| stat.resident).saturating_mul(crate::sys::host::page_size())),
        memory_max: limit("mem").and_then(|value| size("mem", value).ok()),
        cpu_us: Some(sum(|stat| stat.ticks).saturating_mul(TICK_US)),
        cpus_max: limit("cpus").and_then(|value| value.parse().ok()),
        pids: Some(threads),
        pids_max: limit("pids").and_then(|value| value.parse().ok()),
        io: None,
        waiting: [None; 3],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_whatever_the_name_is() {
        let rest = "S 7 1 1 0 -1 4194304 100 0 0 0 5 6 7 8 20 0 3 0 12345 2000000 250 18446744073709551615 0";
        for (name, is_init) in [("sh", false), ("a) S 9 (b", false), ("sbx-init", true), ("", false)] {
            let stat = Stat::parse(&format!("42 ({name}) {rest}\n")).expect("a stat");
            assert_eq!(stat, Stat { parent: 7, ticks: 26, threads: 3, resident: 250, is_init });
        }
        for odd in ["", "42", "42 (sh", "42 (sh)", "42 )sh( S 1", "42 (sh) S 1 2"] {
            assert_eq!(Stat::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_descends_is_what_counts() {
        let stat = |parent| Stat { parent, threads: 1, ..Stat::default() };
        let pids = [(i32::MAX - 1, 1), (i32::MAX - 2, i32::MAX - 1), (i32::MAX - 3, i32::MAX - 2), (i32::MAX - 4, 1)];
        let all = Processes(pids.into_iter().map(|(pid, parent)| (pid, stat(parent))).collect());
        assert_eq!(all.of(i32::MAX - 1).len(), 3);
        assert_eq!(all.of(i32::MAX - 3).len(), 1);
        assert_eq!(all.of(5).len(), 0);
    }

    #[test]
    fn this_process_is_among_them() {
        let processes = Processes::look();
        let own = std::process::id() as i32;
        assert!(processes.of(own).iter().any(|stat| stat.resident > 0 && stat.threads > 0));
    }

    proptest::proptest! {
        #[test]
        fn strange_texts_are_no_stat_and_no_panic(text in "\\PC{0,60}|[0-9 ()a-z]{0,120}") {
            let _ = Stat::parse(&text);
        }
    }
}
