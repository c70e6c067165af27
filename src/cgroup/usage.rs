//! What a cgroup has counted, and what it uses now: its files as numbers. Pure but for the reader it is given.

use crate::sys::fs::pread;
use std::os::fd::BorrowedFd;

/// See the head of the file. What the kernel or the group does not count is `None`, or 0 for events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Most bytes of memory at a time (memory.peak, Linux 5.19).
    pub memory_peak: Option<u64>,
    /// Processes that the memory limit has killed.
    pub memory_kills: u64,
    /// Most processes at a time, sbx's init among them (pids.peak, Linux 6.1).
    pub pids_peak: Option<u64>,
    /// Forks that the limit on processes has refused.
    pub pids_refused: u64,
    /// Processor time in microseconds.
    pub cpu_us: Option<u64>,
    /// Microseconds for which the limit on processor time held the group back, and in how many periods.
    pub throttled: Option<(u64, u64)>,
    /// Bytes read and written, over all devices.
    pub io: Option<(u64, u64)>,
    /// Microseconds for which something waited: for processor time, memory, io (Linux 4.20, where it is built in).
    pub pressure: [Option<u64>; 3],
}

impl Usage {
    /// Reads it by the text of a file.
    pub fn read(file: impl Fn(&str) -> Option<String>) -> Usage {
        let number = |name: &str| file(name)?.trim().parse().ok();
        let event = |name: &str, key: &str| keyed(&file(name).unwrap_or_default(), key).unwrap_or(0);
        let cpu = file("cpu.stat").unwrap_or_default();
        Usage {
            memory_peak: number("memory.peak"),
            memory_kills: event("memory.events", "oom_kill"),
            pids_peak: number("pids.peak"),
            pids_refused: event("pids.events", "max"),
            cpu_us: keyed(&cpu, "usage_usec"),
            throttled: keyed(&cpu, "throttled_usec").zip(keyed(&cpu, "nr_throttled")),
            io: file("io.stat").map(|text| (summed(&text, "rbytes="), summed(&text, "wbytes="))),
            pressure: PRESSURE.map(|name| some(&file(name)?, "total=")),
        }
    }

    /// Whether an open memory.events.local tells that the group had no memory left. From its reading on it can be waited
    /// for anew; allocates nothing.
    pub fn says_oom(events: BorrowedFd<'_>) -> bool {
        let mut buffer = [0; 512];
        let length = pread(events, &mut buffer, 0).unwrap_or(0);
        std::str::from_utf8(&buffer[..length]).is_ok_and(|text| keyed(text, "oom").is_some_and(|count| count > 0))
    }
}

/// What a cgroup uses at this moment, against its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Live {
    /// What it has counted up to now.
    pub usage: Usage,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// At most so many.
    pub memory_max: Option<u64>,
    /// Processors that it may use at a time.
    pub cpus_max: Option<f64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// At most so many.
    pub pids_max: Option<u64>,
    /// For how much of the last ten seconds something waited, in percent: for processor time, memory, io.
    pub waiting: [Option<f64>; 3],
}

impl Live {
    /// Reads it by the text of a file. `max`, for no limit, is no number.
    pub fn read(file: impl Fn(&str) -> Option<String>) -> Live {
        let number = |name: &str| file(name)?.trim().parse().ok();
        let quota = || {
            let text = file("cpu.max")?;
            let (quota, period) = text.trim().split_once(' ')?;
            let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
            (period > 0.0).then(|| quota / period)
        };
        Live {
            memory: number("memory.current"),
            memory_max: number("memory.max"),
            cpus_max: quota(),
            pids: number("pids.current"),
            pids_max: number("pids.max"),
            waiting: PRESSURE.map(|name| some(&file(name)?, "avg10=")),
            usage: Usage::read(file),
        }
    }
}

const PRESSURE: [&str; 3] = ["cpu.pressure", "memory.pressure", "io.pressure"];

/// The number after a key, in a file of lines of both.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The sum of what follows a word, over all lines.
fn summed(text: &str, word: &str) -> u64 {
    let numbers = text.split_whitespace().filter_map(|part| part.strip_prefix(word)?.parse::<u64>().ok());
    numbers.fold(0, u64::saturating_add)
}

/// What follows a word in the line `some` of a pressure file.
fn some<T: std::str::FromStr>(text: &str, word: &str) -> Option<T> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.split_whitespace().find_map(|part| part.strip_prefix(word)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_the_kernel_writes_them() {
        let file = |name: &str| {
            let text = match name {
                "memory.peak" => "67108864\n",
                "memory.events" => "low 0\nhigh 0\nmax 31\noom 1\noom_kill 2\noom_group_kill 1\n",
                "pids.events" => "max 37\n",
                "cpu.stat" => {
                    "usage_usec 628000\nuser_usec 1\nnr_periods 31\nnr_throttled 30\nthrottled_usec 2400000\n"
                }
                "io.stat" => "254:0 rbytes=10 wbytes=1 rios=1\n254:16 rbytes=5 wbytes=2 rios=1\n",
                "memory.pressure" => "some avg10=0.00 avg60=0.00 avg300=0.00 total=77\nfull avg10=0.00 total=5\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let usage = Usage::read(file);
        assert_eq!(usage.memory_peak, Some(67_108_864));
        assert_eq!((usage.memory_kills, usage.pids_refused, usage.pids_peak), (2, 37, None));
        assert_eq!((usage.cpu_us, usage.throttled), (Some(628_000), Some((2_400_000, 30))));
        assert_eq!((usage.io, usage.pressure), (Some((15, 3)), [None, Some(77), None]));
        assert_eq!(Usage::read(|_| None), Usage::default());
    }

    #[test]
    fn what_is_used_now_stands_against_its_limits() {
        let file = |name: &str| {
            let text = match name {
                "memory.current" => "4096\n",
                "memory.max" => "536870912\n",
                "cpu.max" => "150000 100000\n",
                "cpu.stat" => "usage_usec 7\n",
                "pids.current" => "3\n",
                "pids.max" => "max\n",
                "io.pressure" => "some avg10=12.50 avg60=0.00 avg300=0.00 total=77\nfull avg10=1.00 total=5\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let live = Live::read(file);
        assert_eq!((live.memory, live.memory_max, live.cpus_max), (Some(4096), Some(512 << 20), Some(1.5)));
        assert_eq!((live.pids, live.pids_max, live.usage.cpu_us), (Some(3), None, Some(7)));
        assert_eq!((live.waiting, live.usage.pressure), ([None, None, Some(12.5)], [None, None, Some(77)]));
        assert_eq!(Live::read(|_| None), Live::default());
        let odd = |text: &'static str| Live::read(move |_| Some(text.to_owned())).cpus_max;
        assert_eq!([odd("max 100000\n"), odd("1 0\n"), odd("")], [None; 3]);
    }

    proptest::proptest! {
        #[test]
        fn odd_files_never_panic(text in "\\PC{0,80}|[a-z_ =0-9.\\n]{0,80}") {
            let _ = Live::read(|_| Some(text.clone()));
        }
    }
}
