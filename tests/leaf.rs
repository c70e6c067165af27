//! sbx as the only process of a cgroup above which nothing is its own, as in an unprivileged container with a cgroup
//! namespace: it moves to a leaf, divides the group, and puts everything back.
//!
//! Needs a group of the user's in which another can be made.

mod common;

use common::{Outcome, Sandbox, Scratch, lacks, sandbox};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A group beside our own, as a container's runtime makes one; removed at the end, whoever made what in it.
struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let text = std::fs::read_to_string("/proc/self/cgroup").expect("our group");
        let own = text.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup v2");
        let name = format!("box-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new("/sys/fs/cgroup").join(own).with_file_name(name);
        std::fs::create_dir(&path).expect("a group");
        Place(path)
    }

    fn value(&self, file: &str) -> String {
        std::fs::read_to_string(self.0.join(file)).expect("a file of the group").trim().to_owned()
    }

    fn groups(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(&self.0).expect("the group").flatten();
        let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// As it was before anything ran in it.
    #[track_caller]
    fn is_untouched(&self) {
        assert_eq!((self.groups(), self.value("cgroup.subtree_control")), (BTreeSet::new(), String::new()));
    }

    /// Run in here by `start`, a shell's words that execute `"$@"` as uid 0 of a user namespace; nothing above is seen.
    fn holds(&self, sandbox: Sandbox, start: &str) -> Sandbox {
        let enter = "echo $$ >\"$0/cgroup.procs\" && exec unshare -Ur --cgroup --mount sh -c \"$@\"";
        // The kernel puts no file system on top of itself.
        let mount = "mount -t tmpfs none /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup";
        let start = format!("{mount} && {start}");
        sandbox.under(&["sh", "-c", enter]).under(&[self.0.as_path()]).under(&[&start, "sh"])
    }

    /// Alone in here too, by the host's path: what is mounted at the usual place lies above the namespace.
    fn alone_among_all(&self, options: &[&str]) -> Sandbox {
        let enter = "echo $$ >\"$0/cgroup.procs\" && exec unshare -UrC --mount sh -c \"$@\"";
        let start = "mount --bind \"$0\" \"$0\" && exec \"$@\"";
        let group = self.0.as_path();
        sandbox(options).under(&["sh", "-c", enter]).under(&[group, start.as_ref(), group])
    }

    fn alone(&self, options: &[&str]) -> Sandbox {
        self.holds(sandbox(options), "exec \"$@\"")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        for _ in 0..50 {
            let _ = Command::new("find").arg(&self.0).args(["-depth", "-type", "d", "-delete"]).output();
            if !self.0.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whether there is a group of ours in which another can be made.
fn has_group() -> bool {
    !lacks(&["cgroup", "without-systemd"])
}

#[track_caller]
fn soon(what: &str, mut is: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
fn over(outcome: Outcome) {
    outcome.exits(137).says("sbx: killed by the memory limit (64M)");
}

#[test]
fn limits_hold_and_all_is_as_before() {
    if !has_group() {
        return;
    }
    let place = Place::new();
    let plain = place.alone(&["--mem", "64M"]).sh("cat /sys/fs/cgroup/memory.max; cat /proc/self/cgroup").run();
    assert_eq!(plain.exits(0).prints("67108864\n0::/").stderr, "");
    place.is_untouched();
    over(place.alone(&["--mem", "64M"]).probe_with("fill", &["300", "0", "5000"]).run());
    place.is_untouched();
    over(place.alone(&["--mem", "64M"]).probe_with("fill", &["20", "7", "5000"]).run());
    place.is_untouched();
    let bomb = place.alone(&["--pids", "64"]).probe_with("bomb", &["2000"]).run();
    bomb.exits(0).says("the limit of 64 processes has refused");
    place.is_untouched();
    place.alone(&["--mem", "64M", "--cpus", "1", "--cpuset", "0"]).sh("exit 3").run().exits(3);
    place.is_untouched();
}

/// What stops the set-up after sbx has moved away.
#[test]
fn a_refusal_puts_all_back_too() {
    if !has_group() {
        return;
    }
    let place = Place::new();
    place.alone(&["--cpuset", "0,4000"]).sh("true").run().refused().says("not all of them can be had here");
    place.is_untouched();
    place.alone(&["--mem", "64M"]).command(&["/no/such"]).run().exits(127);
    place.is_untouched();
}

#[test]
fn sbx_stands_in_a_leaf_of_its_own_meanwhile() {
    if !has_group() {
        return;
    }
    let place = Place::new();
    let mut running =
        place.alone(&["--mem", "64M", "--upper", "tmpfs", "--name", "inner"]).sh("echo; read x; exit 4").start();
    soon("two groups", || place.groups().len() == 2 && !place.value("sbx-inner/cgroup.procs").is_empty());
    assert_eq!(place.groups(), ["sbx-inner", "sbx-inner.self"].map(String::from).into());
    assert_eq!(place.value("sbx-inner.self/cgroup.procs"), running.pid().to_string());
    assert_eq!((place.value("sbx-inner/memory.max").as_str(), place.value("cgroup.procs").as_str()), ("67108864", ""));
    running.stdin = None;
    running.wait().exits(4);
    place.is_untouched();
}

/// The group holds what sbx may not move: then there is none to be had, and the reason is told.
#[test]
fn with_a_shell_beside_it_there_is_no_group() {
    if !has_group() {
        return;
    }
    let place = Place::new();
    let beside = |options: &[&str]| place.holds(sandbox(options), "\"$@\"; exit $?").sh("exit 5").run();
    let watched = beside(&["--mem", "64M"]).exits(5);
    let lines: Vec<&str> = watched.stderr.lines().collect();
    let why = "holds other processes than sbx, and none above it is yours";
    assert!(matches!(lines[..], [line] if line.contains("limits by watch") && line.contains(why)), "{lines:?}");
    beside(&["--mem", "64M", "--limits", "cgroup"]).refused().says(why).says("--limits watch");
    place.is_untouched();
}

#[test]
fn after_a_kill_the_next_command_clears_and_switches_off() {
    if !has_group() {
        return;
    }
    let (place, scratch) = (Place::new(), Scratch::new());
    let state = scratch.join("state");
    let options = ["--mem", "64M", "--pids", "9", "--upper", "tmpfs", "--name", "gone", "--state"];
    let killed = place.alone_among_all(&options).option(&state);
    let mut running = killed.sh("sleep 60").start();
    soon("a group", || place.groups().contains("sbx-gone") && !place.value("sbx-gone/cgroup.procs").is_empty());
    running.kill();
    soon("its end", || place.value("cgroup.events").contains("populated 0"));
    // A runtime that looks now finds what a killed process leaves.
    assert_eq!(place.value("cgroup.subtree_control"), "memory pids");
    drop(running);
    sandbox(&["--state"]).option(&state).sh("true").run().exits(0);
    place.is_untouched();
    // Which stands open again.
    place.alone(&["--mem", "64M"]).sh("true").run().exits(0);
    place.is_untouched();
}
