//! A memory limit where no cgroup can be had: the supervisor looks at the sandbox's processes, often near the limit.
//!
//! A look goes only as deep as it must. Resident pages (`N/statm`) are cheap and mostly few enough. Else what of them
//! cannot be reclaimed is counted (`N/status`), and only where that is too much each process's share of it
//! (`N/smaps_rollup`), which takes a walk through its page tables. Two invariants: each of the three sums is at least
//! the next, so that neither page cache nor pages that processes share end a sandbox; and nothing allocates.

use super::channel::Message;
use super::child::decimal;
use super::exit::Reached;
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::sys::fs::{self, Entries, Open};
use crate::sys::mount::fstatfs;
use crate::sys::{EACCES, EINVAL, ENOENT, ESRCH, Errno, Result, event, host, sabotaged};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Milliseconds between two looks: near the limit, and far from it.
const SOONEST: u64 = 5;
const LATEST: u64 = 100;
/// Bytes that a sandbox is taken to fill in a millisecond: the speed of a program that only touches fresh pages.
const RATE: u64 = 4 << 20;
/// How much longer than a look the wait after it is at least: with as much for reading shares, this costs 1 % of a
/// processor while nothing grows, 20 % else.
const IDLE: u64 = 200;
const BUSY: u64 = 10;
/// Bytes more than at the last look that count as growth.
const GROWTH: u64 = 1 << 20;
/// Looks in a row that may fail: a short want of descriptors or memory in the host is not the sandbox's fault.
const PATIENCE: u32 = 10;

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not more than the limit.
    Under,
    /// More.
    Over,
    /// Nothing can be seen any more, for this reason: the limit holds no longer.
    Blind(Errno),
}

/// See the head of the file.
#[derive(Debug)]
pub(super) struct MemoryWatch {
    /// The sandbox's own /proc: it lists the sandbox's processes and no others.
    proc: Option<OwnedFd>,
    /// Each tmpfs of the sandbox.
    stores: Vec<OwnedFd>,
    limit: u64,
    page: u64,
    /// The most that was seen.
    peak: u64,
    /// What the last look saw at most.
    most: u64,
    /// What `N/status` said in sum.
    held: u64,
    /// How much of that was counted more than once when the shares were last read.
    shared: u64,
    /// Monotonic milliseconds: when to look next, when the shares may be read again, and when they have to be.
    next: Option<u64>,
    rested: u64,
    stale: u64,
    /// Looks in a row that have failed.
    failed: u32,
}

/// What a look has summed up.
#[derive(Clone, Copy, Debug)]
struct Sum {
    /// As well as the look can tell.
    likely: u64,
    /// It is not more than this.
    most: u64,
}

impl MemoryWatch {
    /// Of a sandbox that is set up, where its plan says so.
    pub(super) fn of(plan: &Plan) -> Option<MemoryWatch> {
        plan.limits.watched().filter(|_| !sabotaged(c"watch")).map(MemoryWatch::new)
    }

    fn new(limit: u64) -> MemoryWatch {
        MemoryWatch {
            proc: None,
            stores: Vec::new(),
            limit,
            page: host::page_size(),
            peak: 0,
            most: 0,
            held: 0,
            shared: 0,
            next: None,
            rested: 0,
            stale: 0,
            failed: 0,
        }
    }

    /// Takes what the child shows to be watched.
    ///
    /// # Errors
    /// Where this process has no descriptor left for it: it would not be counted.
    pub(super) fn hold(&mut self, what: Message, carried: Option<OwnedFd>) -> error::Result<()> {
        match (what, carried) {
            (Message::Proc, Some(proc)) => self.proc = Some(proc),
            (_, Some(store)) => self.stores.push(store),
            (_, None) => {
                return Err(Error::Unsupported {
                    feature: "--mem".into(),
                    why: "sbx has no descriptor left to watch the memory through".into(),
                    hint: Some("ulimit -n 1024".into()),
                });
            }
        }
        Ok(())
    }

    /// The program runs: from now on there are looks.
    pub(super) fn begin(&mut self) {
        self.next = Some(event::monotonic_ms() + SOONEST);
    }

    /// What was watched, for the end of a run.
    pub(super) fn reached(&self) -> Reached {
        Reached { option: "mem", value: self.limit, peak: self.peak }
    }

    /// Milliseconds until the next look.
    pub(super) fn patience(&self) -> Option<u64> {
        self.next.map(|next| next.saturating_sub(event::monotonic_ms()))
    }

    /// Looks, if it is time to.
    pub(super) fn look(&mut self) -> Verdict {
        let now = event::monotonic_ms();
        if self.next.is_none_or(|next| now < next) {
            return Verdict::Under;
        }
        // Not the time on the clock: on a busy machine that would make looks rare.
        let start = event::cpu_time_us();
        let sum = match self.measure(now) {
            Ok(sum) => sum,
            Err(errno) => {
                self.failed += 1;
                self.next = Some(now + LATEST);
                return if self.failed < PATIENCE { Verdict::Under } else { Verdict::Blind(errno) };
            }
        };
        let cost = event::cpu_time_us().saturating_sub(start);
        let times = if sum.most > self.most + GROWTH { BUSY } else { IDLE };
        let near = (self.limit.saturating_sub(sum.most) / RATE).clamp(SOONEST, LATEST);
        self.next = Some(event::monotonic_ms() + near.max(cost * times / 1000).min(10 * LATEST));
        self.failed = 0;
        self.most = sum.most;
        self.peak = self.peak.max(sum.likely);
        if sum.likely > self.limit { Verdict::Over } else { Verdict::Under }
    }

    /// Sums up what is in use, only as exactly as the limit asks for.
    fn measure(&mut self, now: u64) -> Result<Sum> {
        let used = |sum: Result<u64>, store: &OwnedFd| Ok(sum? + fstatfs(store.as_fd())?.used());
        let store = self.stores.iter().fold(Ok(0), used)?;
        let (mut resident, mut anonymous) = (0, 0);
        self.each(|process| {
            resident += process.statm.resident();
            anonymous += process.statm.anonymous();
            Ok(())
        })?;
        // What of the machine's swap is this sandbox's nobody knows here.
        let most = resident * self.page + store + host::swap_used();
        if most <= self.limit || sabotaged(c"shares") {
            self.shared = 0;
            let likely = if most <= self.limit { (anonymous * self.page + store).min(most) } else { most };
            return Ok(Sum { likely, most });
        }
        let held = self.held(store)?;
        // What is gone may have been counted more than once.
        self.shared = self.shared.saturating_sub(self.held.saturating_sub(held));
        self.held = held;
        let sum = held.saturating_sub(self.shared);
        if now < self.rested || sum <= self.limit && (self.shared == 0 || now < self.stale) {
            return Ok(Sum { likely: sum.min(self.limit), most: sum });
        }
        let start = event::cpu_time_us();
        let mut sum = self.shares(store)?;
        if sum > self.limit {
            // A process may have been seen twice: before and after it left the memory of its parent.
            sum = sum.min(self.shares(store)?);
        }
        let cost = event::cpu_time_us().saturating_sub(start);
        self.shared = held.saturating_sub(sum);
        (self.rested, self.stale) = (now + cost * BUSY / 1000, now + cost * IDLE / 1000);
        Ok(Sum { likely: sum, most: sum })
    }

    /// What cannot be reclaimed. Pages that processes share count for each of them.
    fn held(&self, store: u64) -> Result<u64> {
        let (mut own, mut shmem) = (0, 0);
        self.each(|process| {
            let [anonymous, mapped, swapped] = self.status(process)?;
            own += anonymous + swapped;
            shmem += mapped;
            Ok(())
        })?;
        Ok(own + with_store(shmem, store))
    }

    /// The same by each process's share. Pages of files do not count: they can be reclaimed.
    fn shares(&self, store: u64) -> Result<u64> {
        let (mut own, mut shmem) = (0, 0);
        self.each(|process| {
            if self.is_in_its_parents(process)? {
                return Ok(());
            }
            let [anonymous, mapped, swapped] =
                match self.kilobytes(process, b"smaps_rollup", [b"Pss_Anon", b"Pss_Shmem", b"SwapPss"]) {
                    // A program whose file may be executed but not read is the host's to look into (would_dump in
                    // exec.c), and so is init, whose memory is a copy of the supervisor's. Some kernels have no such file.
                    Err(EACCES | ENOENT) => self.status(process),
                    shares => shares.or_else(gone),
                }?;
            own += anonymous + swapped;
            shmem += mapped;
            Ok(())
        })?;
        Ok(own + with_store(shmem, store))
    }

    fn status(&self, process: &Process) -> Result<[u64; 3]> {
        self.kilobytes(process, b"status", [b"RssAnon", b"RssShmem", b"VmSwap"]).or_else(gone)
    }

    /// Whether a process runs in its parent's memory, as between vfork and exec: that counts once. Asked only of those
    /// whose sizes are the same in every field, as those of a fork hardly ever are.
    fn is_in_its_parents(&self, process: &Process) -> Result<bool> {
        if sabotaged(c"vfork") {
            return Ok(false);
        }
        let [parent] = self.numbers(&process.place, b"status", [b"PPid"]).or_else(gone)?;
        let mut digits = [0; 24];
        let parent = Place::new().join(decimal(&mut digits, parent).to_bytes());
        let same = self.statm(&parent).or_else(gone)? == self.statm(&process.place).or_else(gone)?;
        Ok(same && process.statm.resident() > 0)
    }

    /// Visits every process.
    fn each(&self, mut visit: impl FnMut(&Process) -> Result<()>) -> Result<()> {
        self.list(&Place::new(), |place| {
            let mut process = Process { statm: self.statm(&place).or_else(gone)?, place };
            if process.statm.is_empty() {
                // Dead, but perhaps only the first of its threads is.
                self.list(&process.place.join(b"task"), |place| {
                    let statm = self.statm(&place).or_else(gone)?;
                    if !statm.is_empty() {
                        process = Process { statm, place };
                    }
                    Ok(())
                })
                .or_else(gone)?;
            }
            visit(&process)
        })
    }

    /// Visits every entry of a directory of /proc whose name is a number.
    fn list(&self, of: &Place, mut visit: impl FnMut(Place) -> Result<()>) -> Result<()> {
        let list = fs::openat(self.proc()?, of.path(), Open::List)?;
        let mut entries = Entries::new();
        loop {
            let batch = fs::getdents(list.as_fd(), &mut entries)?;
            if batch.is_end() {
                return Ok(());
            }
            for name in batch.map(CStr::to_bytes).filter(|name| name.first().is_some_and(u8::is_ascii_digit)) {
                visit(of.join(name))?;
            }
        }
    }

    fn proc(&self) -> Result<BorrowedFd<'_>> {
        self.proc.as_ref().map(AsFd::as_fd).ok_or(EINVAL)
    }

    fn statm(&self, of: &Place) -> Result<Statm> {
        let file = fs::openat(self.proc()?, of.join(b"statm").path(), Open::Read)?;
        let mut text = [0; 160];
        let length = fs::read(file.as_fd(), &mut text)?;
        Statm::parse(&text[..length]).ok_or(EINVAL)
    }

    /// As `numbers`, of sizes in KiB: bytes.
    fn kilobytes<const N: usize>(&self, of: &Process, file: &[u8], names: [&'static [u8]; N]) -> Result<[u64; N]> {
        self.numbers(&of.place, file, names).map(|sizes| sizes.map(|size| size * 1024))
    }

    /// Numbers of a file of lines `NAME: NUMBER`; 0 for a line that is not there.
    fn numbers<const N: usize>(&self, of: &Place, file: &[u8], names: [&'static [u8]; N]) -> Result<[u64; N]> {
        let file = fs::openat(self.proc()?, of.join(file).path(), Open::Read)?;
        let mut lines = Lines::new(names);
        let mut text = [0; 2048];
        // One read mostly has all; the line of the groups may be long.
        while !lines.is_whole() {
            match fs::read(file.as_fd(), &mut text)? {
                0 => break,
                length => lines.take(&text[..length]),
            }
        }
        Ok(lines.found.map(Option::unwrap_or_default))
    }
}

/// A page of the tmpfs that a process maps is among what is mapped and among what the tmpfs holds. Which they are
/// nobody tells, so the greater of the two counts; where shared memory outside the tmpfs comes to that, up to half of
/// both is missed.
fn with_store(mapped: u64, store: u64) -> u64 {
    mapped.max(store)
}

/// A process that ends while it is looked at has nothing.
fn gone<T: Zero>(errno: Errno) -> Result<T> {
    if [ENOENT, ESRCH].contains(&errno) { Ok(T::ZERO) } else { Err(errno) }
}

trait Zero {
    const ZERO: Self;
}

impl Zero for () {
    const ZERO: () = ();
}

impl Zero for Statm {
    const ZERO: Statm = Statm([0; 7]);
}

impl<const N: usize> Zero for [u64; N] {
    const ZERO: [u64; N] = [0; N];
}

/// A process of the sandbox.
struct Process {
    place: Place,
    statm: Statm,
}

/// A path below the sandbox's /proc.
struct Place {
    bytes: [u8; 64],
    length: usize,
}

impl Place {
    /// /proc itself.
    const fn new() -> Place {
        Place { bytes: [0; 64], length: 0 }
    }

    /// A name in here. What has no room, which no name of the kernel's is long enough for, leads nowhere.
    fn join(&self, name: &[u8]) -> Place {
        let mut joined = Place { bytes: self.bytes, length: self.length };
        let slash = if self.length == 0 { &b""[..] } else { b"/" };
        for part in [slash, name] {
            let end = joined.length + part.len();
            if let Some(room) = joined.bytes[..63].get_mut(joined.length..end) {
                room.copy_from_slice(part);
                joined.length = end;
            }
        }
        joined
    }

    fn path(&self) -> &CStr {
        match self.length {
            0 => c".",
            _ => CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"."),
        }
    }
}

/// `N/statm`: seven sizes in pages. All are 0 without a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Statm([u64; 7]);

impl Statm {
    fn parse(text: &[u8]) -> Option<Statm> {
        let mut statm = Statm([0; 7]);
        let mut words = text.strip_suffix(b"\n")?.split(|byte| *byte == b' ');
        for size in &mut statm.0 {
            *size = number(words.next()?)?;
        }
        words.next().is_none().then_some(statm)
    }

    fn is_empty(&self) -> bool {
        self.0[0] == 0
    }

    fn resident(&self) -> u64 {
        self.0[1]
    }

    /// Without pages of files and of shared memory.
    fn anonymous(&self) -> u64 {
        self.0[1].saturating_sub(self.0[2])
    }
}

/// At most so much, pages or KiB, that no sum of them overflows.
fn number(digits: &[u8]) -> Option<u64> {
    const MOST: u64 = 1 << 38;
    let number = digits.iter().try_fold(0u64, |sum, digit| {
        let value = (*digit as char).to_digit(10)?;
        sum.checked_mul(10)?.checked_add(value.into()).filter(|sum| *sum <= MOST)
    });
    number.filter(|_| !digits.is_empty())
}

/// Looks for lines `NAME: NUMBER` in a text that comes in pieces.
struct Lines<const N: usize> {
    names: [&'static [u8]; N],
    found: [Option<u64>; N],
    /// The start of the current line.
    line: [u8; 64],
    length: usize,
}

impl<const N: usize> Lines<N> {
    fn new(names: [&'static [u8]; N]) -> Lines<N> {
        Lines { names, found: [None; N], line: [0; 64], length: 0 }
    }

    fn is_whole(&self) -> bool {
        self.found.iter().all(Option::is_some)
    }

    fn take(&mut self, text: &[u8]) {
        for byte in text {
            if *byte == b'\n' {
                self.end_line();
            } else if let Some(place) = self.line.get_mut(self.length) {
                *place = *byte;
                self.length += 1;
            }
        }
    }

    fn end_line(&mut self) {
        let line = &self.line[..std::mem::take(&mut self.length)];
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, rest) = (&line[..colon], &line[colon + 1..]);
        let mut words = rest.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        for (known, found) in self.names.iter().zip(&mut self.found) {
            if *known == name && found.is_none() {
                *found = words.next().and_then(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::HERE;
    use crate::sys::process;
    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

    const ROLLUP: &[u8] = b"55d3-7ffd ---p 00000000 00:00 0    [rollup]\nRss:      100 kB\nPss_Anon:   28 kB\n\
        Pss_File:   7 kB\nPss_Shmem:  3 kB\nSwap:   9 kB\nSwapPss:   1 kB\n";
    const NAMES: [&[u8]; 3] = [b"Pss_Anon", b"Pss_Shmem", b"SwapPss"];

    fn found(pieces: &[&[u8]]) -> [Option<u64>; 3] {
        let mut lines = Lines::new(NAMES);
        pieces.iter().for_each(|piece| lines.take(piece));
        lines.found
    }

    /// Of all that this machine runs.
    fn of_the_host(limit: u64) -> MemoryWatch {
        through(c"/proc", limit)
    }

    fn through(proc: &CStr, limit: u64) -> MemoryWatch {
        let mut watch = MemoryWatch::new(limit);
        watch.hold(Message::Proc, fs::openat(HERE, proc, Open::Path).ok()).expect("a descriptor");
        watch.next = Some(0);
        watch
    }

    fn own() -> Place {
        Place::new().join(decimal(&mut [0; 24], process::getpid() as u64).to_bytes())
    }

    #[test]
    fn each_field_is_found_by_its_whole_name() {
        assert_eq!(found(&[ROLLUP]), [Some(28), Some(3), Some(1)]);
        assert_eq!(found(&[b"Pss_Anon: 1 kB"]), [None; 3], "a line has an end");
        assert_eq!(found(&[b"Pss_Anon 1\nPss_Anon:\nSwapPss: x\nPss_Shmem: -1\n"]), [None; 3]);
        assert_eq!(found(&[b"XPss_Anon: 1\nSwapPss: 2\nSwapPss: 3\n"]), [None, None, Some(2)]);
        let long = [&[b'x'; 5000][..], b"\nSwapPss: 4 kB\n"].concat();
        assert_eq!(found(&[&long]), [None, None, Some(4)]);
    }

    #[test]
    fn seven_sizes_are_a_statm_and_nothing_else_is() {
        let statm = Statm::parse(b"832 126 97 410 0 310 0\n").expect("a statm");
        assert_eq!((statm.resident(), statm.anonymous()), (126, 29));
        for text in [&b"1 2 3\n"[..], b"1 2 3 4 5 6 7", b"1 2 3 4 5 6 7 8\n", b"1 2 3 4 5 6 x\n", b"", b"\n"] {
            assert_eq!(Statm::parse(text), None, "{text:?}");
        }
        assert_eq!(Statm::parse(b"1 99999999999999999999999 3 4 5 6 7\n"), None);
    }

    #[test]
    fn a_place_holds_no_more_than_it_has_room_for() {
        let place = own().join(b"task").join(b"7").join(b"smaps_rollup");
        assert_eq!(place.path().to_bytes(), format!("{}/task/7/smaps_rollup", process::getpid()).as_bytes());
        let long = Place::new().join(&[b'x'; 63]).join(b"y");
        assert_eq!(long.path().to_bytes(), [[b'x'; 63].as_slice(), b""].concat());
    }

    proptest! {
        #[test]
        fn strange_bytes_are_no_sizes_and_no_panic(bytes: Vec<u8>) {
            let statm = Statm::parse(&bytes);
            prop_assert!(statm.is_none_or(|statm| statm.anonymous() <= statm.resident()));
            found(&[&bytes]);
        }

        #[test]
        fn a_text_in_pieces_reads_as_the_whole(
            before in prop::collection::vec(any::<u8>(), 0..200),
            cuts in prop::collection::vec(0usize..400, 0..9),
        ) {
            let text = [&before[..], b"\n", ROLLUP].concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|ends| &text[ends[0]..ends[1]]).collect();
            prop_assert_eq!(found(&pieces), found(&[&text]));
        }
    }

    #[test]
    fn what_a_process_fills_is_seen_by_all_three_looks() {
        const SIZE: u64 = 32 << 20;
        let watch = of_the_host(u64::MAX);
        let process = || Process { statm: watch.statm(&own()).expect("statm"), place: own() };
        let sums = || {
            let process = process();
            let [held, ..] = watch.status(&process).expect("status");
            let [share, ..] = watch.kilobytes(&process, b"smaps_rollup", NAMES).expect("smaps_rollup");
            [process.statm.anonymous() * watch.page, held, share]
        };
        let before = sums();
        let filled = std::hint::black_box(vec![1u8; SIZE as usize]);
        let after = sums();
        // Other tests run beside this one; what they free is small.
        for (before, after) in before.iter().zip(after) {
            assert!(after >= before + SIZE * 3 / 4, "{before} {after}");
        }
        drop(filled);
    }

    #[test]
    fn a_look_has_a_verdict_and_a_peak_and_comes_in_time() {
        let mut wide = of_the_host(1 << 50);
        assert_eq!(wide.look(), Verdict::Under);
        let patience = wide.patience().expect("more looks");
        assert!(wide.peak > 1 << 20 && patience > SOONEST && patience <= 10 * LATEST);
        let mut narrow = of_the_host(1 << 20);
        assert_eq!(narrow.look(), Verdict::Over);
        let Reached { value, peak, .. } = narrow.reached();
        assert!(peak > 1 << 20 && value == 1 << 20);
        assert_eq!(narrow.look(), Verdict::Under, "not again before it is time");
    }

    #[test]
    fn a_watch_that_sees_nothing_says_so() {
        let mut watch = through(c"/proc/self/status", 1);
        assert!(watch.hold(Message::Store, None).is_err(), "what is not there is not counted");
        for _ in 1..PATIENCE {
            assert_eq!(watch.look(), Verdict::Under);
            watch.next = Some(0);
        }
        assert!(matches!(watch.look(), Verdict::Blind(_)));
    }

    #[test]
    fn memory_of_the_parent_counts_once() {
        let watch = of_the_host(u64::MAX);
        let seen = std::thread::scope(|scope| {
            // Until its child has ended, this thread stands still.
            let parent = scope.spawn(|| {
                let wait = |_: &mut ()| {
                    let _ = event::poll(&mut [], Some(500));
                    0
                };
                process::clone_vfork(64 << 10, wait, &mut ()).expect("a child")
            });
            let mut seen = false;
            while !seen && !parent.is_finished() {
                let look = watch.each(|process| {
                    let [parent] = watch.numbers(&process.place, b"status", [b"PPid"]).or_else(gone)?;
                    seen |= parent == process::getpid() as u64 && watch.is_in_its_parents(process)?;
                    Ok(())
                });
                look.expect("a look");
            }
            let pid = parent.join().expect("the parent");
            let _ = process::wait(process::Which::Pid(pid), process::WaitFor::End);
            seen
        });
        assert!(seen);
    }
}
