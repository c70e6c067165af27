//! Limits without a cgroup (`--limits watch`): memory by looking, processors by affinity, processes by the kernel.

mod common;

use common::{Outcome, Sandbox, Scratch, outside, sandbox, volume};
use serde_json::json;
use std::time::{Duration, Instant};

fn watched(options: &[&str]) -> Sandbox {
    sandbox(&["--limits", "watch"]).options(options)
}

/// The end of a run that used too much of a memory limit.
#[track_caller]
fn over(outcome: Outcome, limit: &str) {
    outcome.exits(137).says(&format!("sbx: killed by the memory limit ({limit})")).says("peak");
}

#[test]
fn a_hog_ends_at_the_limit_and_its_neighbour_goes_on() {
    let scratch = Scratch::new();
    let count = scratch.dir("count");
    let script = "n=0; while [ $n -lt 40 ]; do n=$((n+1)); echo $n > /count/n; sleep 0.05; done; echo $n";
    let neighbour = watched(&["--mem", "64M", "-v"]).option(volume(&count, "/count")).sh(script).start();
    over(watched(&["--mem", "64M"]).probe_with("fill", &["300", "0", "5000"]).run(), "64M");
    neighbour.wait().exits(0).prints("40");
}

/// What a socket holds no process maps, so there is no more of it than the usual. Other options are not touched.
#[test]
fn buffers_of_sockets_do_not_grow() {
    let grown = outside("buffers", &[]);
    assert!(grown["send"][1].as_i64() > grown["send"][0].as_i64(), "{grown}");
    for options in [&["--mem", "64M"][..], &["--mem", "64M", "--cap-add", "NET_ADMIN"]] {
        let kept = watched(options).probe("buffers").sees();
        for direction in ["send", "receive"] {
            assert_eq!(kept[direction], json!([grown[direction][0], grown[direction][0]]), "{kept}");
        }
        assert_eq!(kept["linger"], json!(7), "{kept}");
    }
}

#[test]
fn a_tree_of_processes_counts_as_one() {
    over(watched(&["--mem", "64M"]).probe_with("fill", &["20", "7", "5000"]).run(), "64M");
    watched(&["--mem", "64M"]).probe_with("fill", &["4", "7", "500"]).run().exits(0).prints("\"done\"");
}

#[test]
fn a_tree_with_a_range_of_users_counts_as_one() {
    if !common::has("subids") {
        return;
    }
    let ranged = ["--map", "full", "--user", "7", "--mem", "64M"];
    over(watched(&ranged).probe_with("fill", &["20", "7", "5000"]).run(), "64M");
}

#[test]
fn memory_that_processes_share_counts_once() {
    for kind in ["inherit", "shared"] {
        watched(&["--mem", "64M"]).probe_with(kind, &["40", "7", "500"]).run().exits(0).prints("\"done\"");
        over(watched(&["--mem", "64M"]).probe_with(kind, &["100", "1", "5000"]).run(), "64M");
    }
}

#[test]
fn a_child_in_its_parents_memory_counts_once() {
    watched(&["--mem", "64M"]).probe_with("vfork", &["40", "1000"]).run().exits(0).prints("\"done\"");
}

#[test]
fn a_process_without_its_first_thread_counts() {
    over(watched(&["--mem", "64M"]).probe_with("leaderless", &["300", "5000"]).run(), "64M");
}

#[test]
fn what_lies_in_the_tmpfs_counts() {
    let fill = |at: &str| format!("dd if=/dev/zero of={at}/x bs=1M count=200 && sleep 5");
    over(watched(&["--mem", "64M", "--upper", "tmpfs:300M"]).sh(&fill("/tmp")).run(), "64M");
    over(watched(&["--mem", "64M", "--tmpfs", "/t:size=300M"]).sh(&fill("/t")).run(), "64M");
    // Half of the limit is the size of the tmpfs where nobody says another.
    watched(&["--mem", "64M"]).sh(&fill("/tmp")).run().exits(1).says("No space left on device");
}

#[test]
fn pages_of_files_end_nothing() {
    const SIZE: usize = 200 << 20;
    let scratch = Scratch::new();
    let file = scratch.join("file");
    std::fs::write(&file, vec![1; SIZE]).expect("a large file");
    let read = watched(&["--mem", "64M", "-v"]).option(volume(&file, "/file:ro"));
    let facts = read.probe_with("read", &["/file", "500"]).sees();
    assert_eq!(facts["sum"], SIZE / 4096);
    assert!(facts["resident"].as_u64() > Some(SIZE as u64 / 10 * 9), "all of it was mapped: {facts}");
}

#[test]
fn memory_that_nobody_maps_cannot_be_made() {
    let facts = watched(&["--mem", "64M"]).probe_with("calls", &["319 s:x 0", "447 0"]).sees();
    if cfg!(target_arch = "x86_64") {
        assert_eq!(facts, json!({ "319 s:x 0": 38, "447 0": 38 }));
        let facts = watched(&["--pids", "9"]).probe_with("calls", &["319 s:x 0"]).sees();
        assert_eq!(facts, json!({ "319 s:x 0": 0 }), "without a memory limit it may be");
    }
    let segment = |size: usize| watched(&["--mem", "64M"]).probe_with("segment", &[size.to_string()]).sees();
    assert!([28, 38].map(|errno| json!(errno)).contains(&segment(80 << 20)), "ENOSPC, or ENOSYS on older kernels");
    let small = segment(1 << 20);
    assert!([0, 38].map(|errno| json!(errno)).contains(&small), "{small}");
    // Only user 0 inside may set how much all segments hold.
    assert_eq!(watched(&["--mem", "64M", "--map", "keep"]).probe_with("segment", &["4096"]).sees(), 38);
}

#[test]
fn the_programs_own_death_is_no_limit() {
    let outcome = watched(&["--mem", "64M"]).sh("kill -9 $$").run().exits(137);
    assert!(!outcome.stderr.contains("killed by the memory limit"), "{}", outcome.stderr);
}

#[test]
fn a_bomb_is_held_by_the_limit_on_processes() {
    let begin = Instant::now();
    let bomb = watched(&["--pids", "64"]).under(&["prlimit", "--nproc=2000:2000"]).probe_with("bomb", &["2000"]);
    let most = bomb.sees().as_u64().expect("a number");
    // Init is not counted, but seen.
    assert!((30..=65).contains(&most), "{most} processes");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

#[test]
fn whole_processors_are_kept_by_affinity() {
    let own = outside("processors", &[])["may"].clone();
    let own: Vec<u64> = own.as_array().expect("a list").iter().filter_map(|cpu| cpu.as_u64()).collect();
    let one = watched(&["--cpus", "1"]).probe("processors").sees();
    assert_eq!((one["may"].as_array().map(Vec::len), &one["choose"]), (Some(1), &json!(1)), "EPERM: {one}");
    let last = own.last().expect("a processor").to_string();
    let listed = watched(&["--cpuset", &last]).probe("processors").sees();
    assert_eq!(listed, json!({ "may": [own.last()], "choose": 1 }));
    let free = watched(&["--pids", "9"]).probe("processors").sees();
    assert_eq!(free, json!({ "may": own, "choose": 0 }));
    let refused = watched(&["--cpuset", "8191"]).sh("true").run().refused();
    refused.says("--cpuset");
    watched(&["--cpus", "0.5"]).sh("true").run().refused().says("--cpus");
}

#[test]
fn sandboxes_do_not_all_keep_to_the_same_processor() {
    if std::thread::available_parallelism().is_ok_and(|count| count.get() < 2) {
        println!("SKIP sandboxes_do_not_all_keep_to_the_same_processor: one processor");
        return;
    }
    let chosen = |_| watched(&["--cpus", "1"]).probe("processors").sees()["may"].clone();
    let all: Vec<_> = (0..32).map(chosen).collect();
    assert!(all.iter().any(|cpus| *cpus != all[0]), "{all:?}");
}

#[test]
fn who_watches_is_said_once() {
    let outcome = watched(&["--mem", "64M"]).sh("true").run().exits(0);
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert!(matches!(lines[..], [line] if line.contains("stops accidents, not an attacker")), "{lines:?}");
}
