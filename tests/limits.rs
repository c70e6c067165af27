//! Limits by a cgroup: one of sbx's own where one is delegated, a scope of the user's systemd where that listens.
//!
//! Which of the two it is here, the host decides; both have to behave the same.

mod common;

use common::{Outcome, Sandbox, Scratch, has, lacks, sandbox, volume};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn limited(options: &[&str]) -> Sandbox {
    common::in_session(sandbox(&["--limits", "cgroup"])).options(options)
}

/// All groups of sandboxes that there are now.
fn groups() -> BTreeSet<PathBuf> {
    fn below(dir: &Path, found: &mut BTreeSet<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with("sbx-") {
                    found.insert(entry.path());
                }
                below(&entry.path(), found);
            }
        }
    }
    let mut found = BTreeSet::new();
    below(Path::new("/sys/fs/cgroup"), &mut found);
    found
}

/// Those of sandboxes with this in their name.
fn groups_of(name: &str) -> Vec<PathBuf> {
    groups().into_iter().filter(|path| path.to_string_lossy().contains(name)).collect()
}

/// Waits until a group of this sandbox has gone: systemd takes its scopes away by itself.
#[track_caller]
fn goes(name: &str) {
    let begin = Instant::now();
    loop {
        let left = groups_of(name);
        if left.is_empty() {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "left: {left:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The JSON lines that a run writes to its stdout, where the program's own go to stderr.
fn status(outcome: &Outcome) -> Vec<Value> {
    outcome.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[track_caller]
fn over(outcome: Outcome, limit: &str) {
    outcome.exits(137).says(&format!("sbx: killed by the memory limit ({limit}); the peak was"));
}

#[test]
fn a_hog_ends_at_the_limit_and_its_neighbour_goes_on() {
    if !has("cgroup") {
        return;
    }
    let scratch = Scratch::new();
    let count = scratch.dir("count");
    let script = "n=0; while [ $n -lt 40 ]; do n=$((n+1)); echo $n > /count/n; sleep 0.05; done; echo $n";
    let neighbour = limited(&["--mem", "64M", "-v"]).option(volume(&count, "/count")).sh(script).start();
    over(
        limited(&["--mem", "64M", "--upper", "tmpfs", "--name", "hog"]).probe_with("fill", &["300", "0", "5000"]).run(),
        "64M",
    );
    neighbour.wait().exits(0).prints("40");
    goes("sbx-hog");
}

#[test]
fn a_tree_of_processes_counts_as_one() {
    if !has("cgroup") {
        return;
    }
    over(limited(&["--mem", "64M"]).probe_with("fill", &["20", "7", "5000"]).run(), "64M");
    limited(&["--mem", "64M"]).probe_with("fill", &["4", "7", "500"]).run().exits(0).prints("\"done\"");
    if has("subids") {
        let ranged = ["--map", "full", "--user", "7", "--mem", "64M"];
        over(limited(&ranged).probe_with("fill", &["20", "7", "5000"]).run(), "64M");
    }
}

#[test]
fn the_whole_tree_ends_whoever_was_too_big() {
    if !has("cgroup") {
        return;
    }
    let outcome = limited(&["--mem", "64M"]).bring_probe().sh("/probe fill 300 0 5000; echo survived; sleep 5").run();
    assert!(!outcome.stdout.contains("survived"), "{}", outcome.stdout);
    over(outcome, "64M");
}

#[test]
fn what_lies_in_the_tmpfs_counts_and_pages_of_files_do_not() {
    if !has("cgroup") {
        return;
    }
    let fill = "dd if=/dev/zero of=/tmp/x bs=1M count=200; sleep 5";
    over(limited(&["--mem", "64M", "--upper", "tmpfs:300M"]).sh(fill).run(), "64M");
    let scratch = Scratch::new();
    let disk = scratch.dir("disk");
    let write = "dd if=/dev/zero of=/disk/x bs=1M count=200 && cat /disk/x >/dev/null && echo done";
    limited(&["--mem", "64M", "-v"]).option(volume(&disk, "/disk")).sh(write).run().exits(0).prints("done");
}

#[test]
fn too_little_memory_is_said_to_be_too_little() {
    if !has("cgroup") {
        return;
    }
    // The mounts of a sandbox do not fit, or the program's first pages do not.
    let outcome = limited(&["--mem", "1M", "--upper", "tmpfs:1M"]).probe_with("fill", &["8", "0", "0"]).run();
    match outcome.status {
        125 => drop(outcome.refused().says("--mem \"1M\": too little")),
        _ => over(outcome, "1M"),
    }
}

#[test]
fn a_bomb_is_held_counted_and_leaves_nothing() {
    if !has("cgroup") {
        return;
    }
    let bomb = limited(&["--pids", "64", "--upper", "tmpfs", "--name", "bomb", "--status-fd", "1"])
        .probe_with("bomb", &["3000"])
        .start();
    std::thread::sleep(Duration::from_millis(1500));
    // The host still answers.
    assert!(std::process::Command::new("true").status().expect("a process of the host").success());
    let outcome = bomb.wait().exits(0).says("the limit of 64 processes has refused");
    let lines = status(&outcome);
    let refused = lines.iter().find(|line| line["limit"]["event"] == "refused").expect("a line");
    assert!(refused["limit"]["count"].as_u64() > Some(0), "{refused}");
    let most = lines.iter().find_map(Value::as_u64).expect("what the bomb has seen");
    // Init is not counted, but seen.
    assert!((30..=65).contains(&most), "{most} processes");
    goes("sbx-bomb");
}

#[test]
fn processor_time_is_what_was_asked_for() {
    if lacks(&["cgroup", "cpu"]) {
        return;
    }
    let begin = Instant::now();
    let busy = limited(&["--cpus", "0.2", "--timeout", "5s", "--kill-after", "1ms", "--cgroup-report"])
        .options(&["--status-fd", "1"])
        .sh("while :; do :; done")
        .run();
    let wall = begin.elapsed().as_secs_f64();
    let outcome = busy.exits(124).says("held back for").says("sbx: throttled").says("sbx: cpu ");
    let lines = status(&outcome);
    let used = lines.iter().find_map(|line| line["exit"]["usage"]["cpu_seconds"].as_f64()).expect("cpu seconds");
    let share = used / wall.min(5.5);
    assert!((0.15..0.25).contains(&share), "{used} s of {wall}");
}

#[test]
fn processors_are_those_asked_for() {
    if lacks(&["cgroup", "cpuset"]) {
        return;
    }
    let seen = limited(&["--cpuset", "1"]).probe("processors").sees();
    assert_eq!(seen["may"], serde_json::json!([1]));
    limited(&["--cpuset", "1,4000"]).sh("true").run().refused().says("not all of them can be had here: 0-1");
}

#[test]
fn rates_of_a_disk_hold() {
    if lacks(&["cgroup", "io"]) {
        return;
    }
    // The tests lie on a virtio disk of their own there.
    let file = std::env::var("SBX_BIN").expect("a file on the disk");
    let rate = format!("{file}:rbps=1M");
    let begin = Instant::now();
    let outcome = limited(&["--io", &rate, "-v"])
        .option(volume(Path::new(&file), "/file:ro"))
        .probe_with("direct", &["/file", "2"])
        .run();
    assert_eq!(outcome.exits(0).facts(), 2);
    assert!(begin.elapsed() > Duration::from_millis(900), "2 MiB at 1 MiB/s took {:?}", begin.elapsed());
    let plain = limited(&["--io", "/proc:rbps=1M"]).sh("true").run().refused();
    plain.says("--io \"/proc\"");
}

#[test]
fn limits_cannot_be_changed_from_inside() {
    if !has("cgroup") {
        return;
    }
    let tries = "cat /proc/self/cgroup | grep ^0; cd /sys/fs/cgroup; cat memory.max; \
        for f in memory.max pids.max cgroup.procs cgroup.subtree_control; do echo max >$f && echo \"$f: written\"; done; \
        mkdir x && echo made; echo end";
    let closed = limited(&["--mem", "64M", "--pids", "20"]).sh(tries).run().exits(0);
    assert_eq!(closed.stdout.trim(), "0::/\n67108864\nend", "{}", closed.stderr);
    // Writable, its limits are still the kernel's to keep: those of a namespace's root are closed to who is inside.
    let open = limited(&["--mem", "64M", "--pids", "20", "--mount", "type=cgroup"]);
    let tries = "cd /sys/fs/cgroup; for f in memory.max memory.swap.max pids.max; do echo max >$f && echo \"$f: written\"; done; \
        mkdir x && echo $$ >x/cgroup.procs && grep ^0 /proc/self/cgroup; cat memory.max";
    open.sh(tries).run().exits(0).prints("0::/x\n67108864");
}

#[test]
fn what_the_program_made_of_its_group_goes_too() {
    if !has("cgroup") {
        return;
    }
    let nested = "cd /sys/fs/cgroup; mkdir -p a/b/c d; sleep 60 & echo $! >a/b/c/cgroup.procs; echo $$ >d/cgroup.procs; \
        ls -d a/b/c";
    let options = ["--mem", "64M", "--mount", "type=cgroup", "--upper", "tmpfs", "--name", "deep"];
    limited(&options).sh(nested).run().exits(0).prints("a/b/c");
    goes("sbx-deep");
}

#[test]
fn a_memory_limit_holds_in_a_group_below_too() {
    if !has("cgroup") {
        return;
    }
    let flee = "mkdir /sys/fs/cgroup/x && echo $$ >/sys/fs/cgroup/x/cgroup.procs && exec /probe fill 300 0 5000";
    over(limited(&["--mem", "64M", "--mount", "type=cgroup"]).bring_probe().sh(flee).run(), "64M");
}

#[test]
fn each_limit_is_told_with_who_enforces_it() {
    if !has("cgroup") {
        return;
    }
    let outcome = limited(&["--mem", "64M", "--pids", "9", "--status-fd", "1"]).sh("true").run().exits(0);
    let lines = status(&outcome);
    let by = |option: &str| {
        let line = lines.iter().find(|line| line["limit"]["option"] == option).expect("a line");
        (line["limit"]["value"].clone(), line["limit"]["by"].as_str().unwrap_or("").to_owned())
    };
    let (mem, pids) = (by("mem"), by("pids"));
    assert_eq!((&mem.0, &pids.0), (&"67108864".into(), &"9".into()));
    assert!(["cgroup", "systemd"].contains(&mem.1.as_str()) && mem.1 == pids.1, "{mem:?}");
    assert!(outcome.stderr.is_empty(), "{}", outcome.stderr);
}

#[test]
fn auto_takes_a_cgroup_without_a_word() {
    if !has("cgroup") {
        return;
    }
    let outcome = common::in_session(sandbox(&["--mem", "64M"])).sh("cat /sys/fs/cgroup/memory.max").run().exits(0);
    outcome.prints("67108864");
}

#[test]
fn what_is_not_delegated_is_refused_by_name_or_let_go() {
    if lacks(&["cgroup", "without-cpu"]) {
        return;
    }
    let asked = ["--mem", "64M", "--pids", "9", "--cpus", "0.5"];
    let refused = limited(&asked).sh("true").run().refused();
    refused.says("--cpus").says("has no controller cpu to give").says("echo +cpu > cgroup.subtree_control");
    // The same without a word of the way: half a processor is nobody's to give without a cgroup either.
    sandbox(&asked).sh("true").run().refused().says("no controller cpu");
    let max = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max";
    let less = limited(&asked).option("--best-effort").sh(max).run().exits(0).prints("67108864\n10");
    less.says("sbx: skipped: --cpus 0.5").says("no controller cpu");
    let told = status(&limited(&asked).options(&["--best-effort", "--status-fd", "1"]).sh("true").run().exits(0));
    assert!(told.iter().any(|line| line["skipped"]["step"] == "--cpus 0.5"), "{told:?}");
}

#[test]
fn without_a_group_it_is_watched_and_said() {
    if !has("without-cgroup") {
        return;
    }
    let outcome = sandbox(&["--mem", "64M", "--pids", "9"]).sh("true").run().exits(0);
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert!(
        matches!(lines[..], [line] if line.contains("limits by watch, which stops accidents, not an attacker: ")),
        "{lines:?}"
    );
    over(sandbox(&["--mem", "64M"]).probe_with("fill", &["300", "0", "5000"]).run(), "64M");
    let refused = limited(&["--mem", "64M"]).sh("true").run().refused();
    refused.says("--limits cgroup").says("--limits watch");
    sandbox(&["--mount", "type=cgroup"]).sh("true").run().refused().says("--mount type=cgroup");
    sandbox(&["--mem", "64M", "--cpus", "0.5"]).sh("true").run().refused().says("--cpus");
}

#[test]
fn it_works_with_the_other_options() {
    if !has("cgroup") {
        return;
    }
    let max = "cat /sys/fs/cgroup/memory.max";
    for options in [
        &["--no-init"][..],
        &["--net", "host"],
        &["--read-only"],
        &["--rw"],
        &["--nest"],
        &["--landlock", "off"],
        &["--share", "time"],
    ] {
        let scratch = Scratch::new();
        let root = scratch.rootfs();
        let run = limited(&["--mem", "64M"]).options(options).root(&root).sh(max).run();
        assert_eq!(run.exits(0).stdout.trim(), "67108864", "{options:?}");
    }
    let shared = limited(&["--mem", "64M", "--share", "cgroup"]).sh("grep ^0 /proc/self/cgroup").run().exits(0);
    assert!(shared.stdout.contains("sbx-"), "{}", shared.stdout);
}

#[test]
fn killed_at_many_points_it_leaves_no_group() {
    if !has("cgroup") {
        return;
    }
    let scratch = Scratch::new();
    for point in 0..10 {
        let name = format!("killed-{point}");
        let state = scratch.join("state");
        let mut running = limited(&["--mem", "64M", "--pids", "9", "--state"])
            .option(&state)
            .options(&["--upper", "tmpfs", "--name", &name])
            .sh("sleep 60")
            .start();
        std::thread::sleep(Duration::from_millis(point * 12));
        running.kill();
        drop(running);
        // The next command clears, where systemd does not; what it comes too early for, the one after it.
        let begin = Instant::now();
        while !groups_of(&name).is_empty() && begin.elapsed() < Duration::from_secs(5) {
            limited(&["--state"]).option(&state).sh("true").run().exits(0);
        }
        goes(&format!("sbx-{name}"));
    }
    // systemd may have been faster than any command, and a record is left.
    limited(&["--state"]).option(scratch.join("state")).sh("true").run().exits(0);
    let left = std::fs::read_dir(scratch.join("state")).into_iter().flatten().count();
    assert_eq!(left, 0);
}

#[test]
fn many_at_once_leave_the_groups_as_they_were() {
    if !has("cgroup") {
        return;
    }
    let count = 100;
    let all: Vec<_> = (0..count)
        .map(|n| {
            limited(&["--mem", "16M", "--pids", "9", "--upper", "tmpfs", "--name", &format!("many-{n}")])
                .sh("read x")
                .start()
        })
        .collect();
    for running in all {
        let mut running = running;
        running.stdin = None;
        running.wait().exits(1);
    }
    goes("sbx-many-");
}

#[test]
fn systemd_knows_the_scope_and_its_limits() {
    if lacks(&["cgroup", "cpu", "systemd"]) {
        return;
    }
    let mut running = limited(&["--mem", "64M", "--cpus", "0.5", "--pids", "9", "--upper", "tmpfs", "--name", "known"])
        .sh("echo up; read x")
        .start();
    let show = || {
        let properties = "MemoryMax,MemorySwapMax,TasksMax,CPUQuotaPerSecUSec,Delegate,ActiveState,Description";
        common::user_systemctl(&["show", "sbx-known.scope", "-p", properties])
    };
    let begin = Instant::now();
    let mut shown = show();
    while !shown.contains("ActiveState=active") && begin.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(50));
        shown = show();
    }
    for line in [
        "MemoryMax=67108864",
        "MemorySwapMax=0",
        "TasksMax=10",
        "CPUQuotaPerSecUSec=500ms",
        "Delegate=yes",
        "Description=sbx sandbox known: /bin/sh",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    running.stdin = None;
    running.wait().exits(1);
    goes("sbx-known");
}
