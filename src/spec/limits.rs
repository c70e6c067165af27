//! What a sandbox may use of the machine: the limits and their text forms.

use super::layer::{Count, Layer};
use super::resolve::{all, scalar};
use super::text::{Caller, HostPath, duration, nearest, number, size, word};
use crate::error::{Error, Result};
use std::fmt;
use std::time::Duration;

/// sbx's default for `--pids`.
pub const DEFAULT_PIDS: u64 = 4096;
/// The kernel's PID_MAX_LIMIT on 64 bits.
const MAX_PIDS: u64 = 4_194_304;
/// sbx's default for `--kill-after`.
const KILL_AFTER: Duration = Duration::from_secs(10);
/// With less no program starts: sbx's init and the program's first pages are counted too.
const SMALLEST_MEM: u64 = 1 << 20;
/// The kernel's NR_CPUS on the largest machines.
const MAX_CPUS: u32 = 8192;

/// See the head of the file. `None` is no limit but the caller's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Who enforces those that need somebody.
    pub by: By,
    /// Bytes of memory, swap not counted.
    pub mem: Option<u64>,
    /// Bytes of swap; with `mem` and without this none.
    pub swap: Option<u64>,
    /// Processor time.
    pub cpus: Option<Cpus>,
    /// The processors that may be used.
    pub cpuset: Option<CpuSet>,
    /// Share of processor time among those that want it, 1 to 10000; 100 is everybody's.
    pub cpu_weight: Option<u64>,
    /// Processes and threads, sbx's init not counted; [`DEFAULT_PIDS`] where nobody asked.
    pub pids: Option<u64>,
    /// Share of the disks' time, 1 to 10000; 100 is everybody's.
    pub io_weight: Option<u64>,
    /// Rates of single disks.
    pub io: Vec<IoLimit>,
    /// Huge pages.
    pub hugetlb: Vec<HugetlbLimit>,
    /// Resource limits by the lower-case name of getrlimit(2); `None` is unlimited.
    pub rlimits: Vec<Rlimit>,
    /// Nice value.
    pub nice: Option<i32>,
    /// Added to the badness of the OOM killer.
    pub oom_score_adj: Option<i32>,
    /// How long the program may run.
    pub timeout: Option<Duration>,
    /// How long it has between TERM and KILL.
    pub kill_after: Duration,
}

/// `--limits`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A cgroup where one can be had, else sbx itself.
    Auto,
    /// A cgroup or nobody.
    Cgroup,
    /// sbx itself.
    Watch,
    /// Nobody: a limit that needs somebody is refused.
    Nobody,
}

/// Processor time, in thousandths of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus(pub u64);

/// Processors by number: ranges in order, none touching the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuSet(pub Vec<(u32, u32)>);

/// One `--io`: rates of the disk that a path is or lies on, for each second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoLimit {
    /// The device, or any file on it.
    pub path: HostPath,
    /// Rates by the word of io.max: `rbps wbps riops wiops`.
    pub rates: Vec<(&'static str, u64)>,
}

/// One `--hugetlb`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugetlbLimit {
    /// Bytes of one page.
    pub page: u64,
    /// Bytes in all.
    pub limit: u64,
}

/// One `--rlimit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// Lower case, without `RLIMIT_`.
    pub name: String,
    /// Enforced; `u64::MAX` is unlimited.
    pub soft: u64,
    /// How far the program may raise it; `u64::MAX` is unlimited.
    pub hard: u64,
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

impl fmt::Display for CpuSet {
    /// As the kernel prints lists: `0-3,5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl HugetlbLimit {
    /// The size of a page as the kernel's file names have it: `2MB`, `1GB`.
    pub fn page_name(&self) -> String {
        let units = [(30, "GB"), (20, "MB"), (10, "KB")];
        let unit = units.iter().find(|(shift, _)| self.page >> shift << shift == self.page && self.page >> shift > 0);
        unit.map_or_else(|| format!("{}B", self.page), |(shift, unit)| format!("{}{unit}", self.page >> shift))
    }
}

impl Cpus {
    /// A decimal number with at most three digits behind the point, from 0.01 up, which is the shortest time that
    /// the kernel gives (1 ms in 100 ms).
    fn parse(text: &str) -> Result<Cpus> {
        let refuse = |why: &str| Error::spec("--cpus", text, why).or_try("write it like 1.5 or 0.25");
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) || whole.len() > 4 || part.len() > 3 {
            return Err(refuse("not a number of processors, with at most three digits behind the point"));
        }
        let number = |text: &str| text.parse::<u64>().map_err(|_| refuse("not a number of processors"));
        match number(whole)? * 1000 + number(&format!("{part:0<3}"))? {
            few if few < 10 => Err(refuse("less than 0.01, which is the least that the kernel gives")),
            many if many > u64::from(MAX_CPUS) * 1000 => Err(refuse("the kernel has at most 8192 processors")),
            thousandths => Ok(Cpus(thousandths)),
        }
    }
}

impl CpuSet {
    /// Parses a list such as `0-3,5`.
    ///
    /// # Errors
    /// `Spec` where it is empty, holds a range that ends before it starts, or a number that no processor has.
    pub fn parse(field: &str, text: &str) -> Result<CpuSet> {
        let refuse = |why: &str| Error::spec(field, text, why).or_try("write it like 0-3,5");
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| match number(field, text) {
                Ok(cpu) if cpu < u64::from(MAX_CPUS) => Ok(cpu as u32),
                _ => Err(refuse("not a list of processors")),
            };
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(refuse("a range that ends before it starts"));
            }
            ranges.push((first, last));
        }
        Ok(CpuSet::joined(ranges))
    }

    /// These, in any order.
    pub fn of(cpus: &[u32]) -> CpuSet {
        CpuSet::joined(cpus.iter().map(|cpu| (*cpu, *cpu)).collect())
    }

    fn joined(mut ranges: Vec<(u32, u32)>) -> CpuSet {
        ranges.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::new();
        for (first, last) in ranges {
            match joined.last_mut() {
                Some((_, end)) if first <= *end + 1 => *end = (*end).max(last),
                _ => joined.push((first, last)),
            }
        }
        CpuSet(joined)
    }

    /// The first of them, at most this many.
    pub fn first(&self, count: usize) -> CpuSet {
        let mut left = count as u32;
        let mut taken = Vec::new();
        for (first, last) in self.0.iter().copied() {
            let here = left.min(last - first + 1);
            if here > 0 {
                taken.push((first, first + here - 1));
            }
            left -= here;
        }
        CpuSet(taken)
    }

    /// The processors one by one.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().flat_map(|(first, last)| *first..=*last)
    }
}

impl IoLimit {
    /// Parses `PATH:rbps=SIZE,wbps=SIZE,riops=N,wiops=N`.
    fn parse(caller: &Caller, text: &str) -> Result<IoLimit> {
        const FIELD: &str = "--io";
        let refuse = |why: &str| Error::spec(FIELD, text, why).or_try("write it like /dev/sda:rbps=10M,wiops=100");
        let (path, list) = text.rsplit_once(':').ok_or_else(|| refuse("not DEVICE:RATE=…"))?;
        let mut rates: Vec<(&'static str, u64)> = Vec::new();
        for part in list.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| refuse("not DEVICE:RATE=…"))?;
            let key = ["rbps", "wbps", "riops", "wiops"].into_iter().find(|known| *known == key);
            let key = key.ok_or_else(|| refuse("the rates are rbps, wbps, riops, wiops"))?;
            if rates.iter().any(|(known, _)| *known == key) {
                return Err(refuse("a rate given twice"));
            }
            let rate = if key.ends_with("bps") { size(FIELD, value)? } else { number(FIELD, value)? };
            if rate == 0 {
                return Err(refuse("a rate of 0"));
            }
            rates.push((key, rate));
        }
        Ok(IoLimit { path: caller.host_path(FIELD, path)?, rates })
    }
}

impl HugetlbLimit {
    /// Parses `SIZE=LIMIT`.
    fn parse(text: &str) -> Result<HugetlbLimit> {
        const FIELD: &str = "--hugetlb";
        let refuse = |why: &str| Error::spec(FIELD, text, why).or_try("write it like 2M=512M");
        let (page, limit) = text.split_once('=').ok_or_else(|| refuse("not SIZE=LIMIT"))?;
        let page = size(FIELD, page)?;
        if !page.is_power_of_two() || page < 4096 {
            return Err(refuse("no size that pages have"));
        }
        Ok(HugetlbLimit { page, limit: if limit == "0" { 0 } else { size(FIELD, limit)? } })
    }
}

impl Limits {
    /// Whether one is asked for that somebody has to enforce.
    pub(super) fn needs_somebody(&self) -> bool {
        let sizes = [self.mem, self.swap, self.cpu_weight, self.pids, self.io_weight];
        sizes.iter().any(Option::is_some)
            || self.cpus.is_some()
            || self.cpuset.is_some()
            || !self.io.is_empty()
            || !self.hugetlb.is_empty()
    }

    /// Merges the layers' limits.
    pub(super) fn resolve(layers: &[Layer], caller: &Caller) -> Result<Limits> {
        let of = |of: fn(&Layer) -> &Option<Count>| scalar(layers, of).map(|count| count.text());
        let by = [("auto", By::Auto), ("cgroup", By::Cgroup), ("watch", By::Watch), ("off", By::Nobody)];
        let text = |of: fn(&Layer) -> &Option<String>| scalar(layers, of);
        let period = |field: &str, text: Option<String>| text.map(|text| duration(field, &text)).transpose();
        Ok(Limits {
            by: text(|l| &l.limits.limits).map_or(Ok(By::Auto), |text| word("--limits", &text, &by))?,
            mem: of(|l| &l.limits.mem).map(|text| mem(&text)).transpose()?,
            swap: of(|l| &l.limits.swap).map(|text| swap(&text)).transpose()?,
            cpus: of(|l| &l.limits.cpus).map(|text| Cpus::parse(&text)).transpose()?,
            cpuset: of(|l| &l.limits.cpuset).map(|text| CpuSet::parse("--cpuset", &text)).transpose()?,
            cpu_weight: of(|l| &l.limits.cpu_weight).map(|text| weight("--cpu-weight", &text)).transpose()?,
            pids: of(|l| &l.limits.pids).map(|text| pids(&text)).transpose()?,
            io_weight: of(|l| &l.limits.io_weight).map(|text| weight("--io-weight", &text)).transpose()?,
            io: all(layers, |l| &l.limits.io).map(|text| IoLimit::parse(caller, text)).collect::<Result<_>>()?,
            hugetlb: all(layers, |l| &l.limits.hugetlb).map(|t| HugetlbLimit::parse(t)).collect::<Result<_>>()?,
            rlimits: rlimits(layers)?,
            nice: within("--nice", scalar(layers, |l| &l.limits.nice), -20, 19)?,
            oom_score_adj: within("--oom-score-adj", scalar(layers, |l| &l.limits.oom_score_adj), -1000, 1000)?,
            timeout: period("--timeout", of(|l| &l.limits.timeout))?,
            kill_after: period("--kill-after", of(|l| &l.limits.kill_after))?.unwrap_or(KILL_AFTER),
        })
    }
}

fn mem(text: &str) -> Result<u64> {
    match size("--mem", text)? {
        few if few < SMALLEST_MEM => {
            Err(Error::spec("--mem", text, "too little for any program to start").or_try("at least 1M"))
        }
        bytes => Ok(bytes),
    }
}

fn swap(text: &str) -> Result<u64> {
    if text == "0" { Ok(0) } else { size("--swap", text) }
}

fn pids(text: &str) -> Result<u64> {
    match number("--pids", text)? {
        0 => Err(Error::spec("--pids", 0, "the program itself is one process")),
        n if n > MAX_PIDS => Err(Error::spec("--pids", n, "the kernel has at most 4194304 processes")),
        n => Ok(n),
    }
}

fn weight(field: &str, text: &str) -> Result<u64> {
    match number(field, text)? {
        n @ 1..=10_000 => Ok(n),
        n => Err(Error::spec(field, n, "from 1 to 10000").or_try("100 is what everybody has")),
    }
}

fn within(field: &str, value: Option<i32>, least: i32, most: i32) -> Result<Option<i32>> {
    match value {
        Some(n) if !(least..=most).contains(&n) => Err(Error::spec(field, n, format!("from {least} to {most}"))),
        value => Ok(value),
    }
}

/// The names of getrlimit(2), lower case.
pub const RLIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Each name is a scalar of its own: the last one counts.
fn rlimits(layers: &[Layer]) -> Result<Vec<Rlimit>> {
    let mut found: Vec<Rlimit> = Vec::new();
    for limit in all(layers, |l| &l.limits.rlimit).map(|text| rlimit(text)) {
        let limit = limit?;
        found.retain(|old| old.name != limit.name);
        found.push(limit);
    }
    Ok(found)
}

fn rlimit(text: &str) -> Result<Rlimit> {
    const FIELD: &str = "--rlimit";
    let (name, values) = super::resolve::pair(FIELD, text)?;
    let name = name.to_ascii_lowercase();
    let name = name.strip_prefix("rlimit_").unwrap_or(&name);
    if !RLIMITS.contains(&name) {
        let error = Error::spec(FIELD, name, "no such limit (getrlimit(2))");
        return Err(nearest(name, RLIMITS).map_or(error.clone(), |near| error.or_try(near)));
    }
    let value = |text: &str| match text {
        "unlimited" | "infinity" => Ok(u64::MAX),
        "0" => Ok(0),
        _ => size(FIELD, text),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (value(soft)?, value(hard)?);
    if soft > hard {
        return Err(Error::spec(FIELD, text, "the soft limit is above the hard one"));
    }
    Ok(Rlimit { name: name.to_owned(), soft, hard })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_decimal() {
        let cpus = |text: &str| Cpus::parse(text).ok().map(|cpus| cpus.0);
        assert_eq!([cpus("1"), cpus("1.5"), cpus("0.01"), cpus("0.125")], [1000, 1500, 10, 125].map(Some));
        for bad in ["", "0", "0.009", "0.0", "-1", "1.", ".5", "1e9", "NaN", "inf", "1000000000", "0.0001", "１"] {
            assert_eq!(cpus(bad), None, "{bad}");
        }
        assert_eq!(Cpus(1500).to_string(), "1.5");
        assert_eq!(Cpus(2000).to_string(), "2");
    }

    #[test]
    fn lists_of_processors_are_put_in_order() {
        let list = |text: &str| CpuSet::parse("--cpuset", text).ok().map(|set| set.to_string());
        assert_eq!(list("5,0-2,3").as_deref(), Some("0-3,5"));
        assert_eq!(list("1,1,1").as_deref(), Some("1"));
        for bad in ["", "-", "3-1", "a", "0-", "8192", "0,,1", " 1"] {
            assert_eq!(list(bad), None, "{bad}");
        }
    }

    #[test]
    fn rates_and_pages() {
        let caller = Caller { cwd: "/work".into(), ..Caller::default() };
        let io = IoLimit::parse(&caller, "./x:y:rbps=1M,wiops=100").expect("rates");
        assert_eq!(io.path.as_path(), std::path::Path::new("/work/x:y"));
        assert_eq!(io.rates, [("rbps", 1 << 20), ("wiops", 100)]);
        for bad in ["", "/dev/sda", "/dev/sda:", "/dev/sda:x=1", "/dev/sda:rbps=0", "/d:riops=0", "/d:rbps=1,rbps=2"] {
            assert!(IoLimit::parse(&caller, bad).is_err(), "{bad}");
        }
        let page = |text: &str| HugetlbLimit::parse(text).map(|h| (h.page_name(), h.limit)).ok();
        assert_eq!(page("2M=512M"), Some(("2MB".into(), 512 << 20)));
        assert_eq!(page("1G=0"), Some(("1GB".into(), 0)));
        assert_eq!(page("64k=1M"), Some(("64KB".into(), 1 << 20)));
        for bad in ["2M", "3M=1G", "2M=x", "1=1"] {
            assert_eq!(page(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,20}|[0-9.,:=kMG-]{0,20}") {
            let _ = (Cpus::parse(&text), CpuSet::parse("--cpuset", &text), HugetlbLimit::parse(&text));
            let _ = IoLimit::parse(&Caller::default(), &text);
        }
    }
}
