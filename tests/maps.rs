//! Which ids inside are which outside: `--map`, `--user`, groups, and the process limit over them all (S29, S31).

mod common;

use common::{Scratch, has, host_facts, plain, sandbox};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;

fn map(facts: &Value, kind: &str) -> String {
    facts[kind].as_str().unwrap_or_default().to_owned()
}

/// The first subordinate range of the user who runs this: first id and count.
fn subordinate() -> (u64, u64) {
    let user = host_facts()["user"].as_str().unwrap_or_default().to_owned();
    let text = fs::read_to_string("/etc/subuid").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(&user)?.strip_prefix(':')).expect("a range");
    let (first, count) = line.split_once(':').expect("FIRST:COUNT");
    (first.parse().expect("a number"), count.parse().expect("a number"))
}

#[test]
fn keep_is_the_callers_own_ids() {
    let (facts, host) = (sandbox(&["--map", "keep"]).probe("self").sees(), host_facts());
    let (uid, gid) = (&host["uid"], &host["gid"]);
    assert_eq!(map(&facts, "uid_map"), format!("{uid} {uid} 1"));
    assert_eq!(map(&facts, "gid_map"), format!("{gid} {gid} 1"));
    assert_eq!(facts["status"]["Uid"], format!("{uid} {uid} {uid} {uid}"));
    assert_eq!(facts["status"]["Gid"], format!("{gid} {gid} {gid} {gid}"));
}

#[test]
fn full_is_the_caller_and_its_range() {
    if !has("subids") {
        return;
    }
    let facts = sandbox(&["--map", "full"]).probe("self").sees();
    let (first, count) = subordinate();
    // Read from inside, the outer ids are those of the namespace above, which has the same ones.
    assert_eq!(map(&facts, "uid_map"), format!("0 0 1 1 1 {count}"));
    assert_eq!(facts["status"]["Uid"], "0 0 0 0");
    let scratch = Scratch::new();
    let shared = scratch.dir("shared");
    let volume = common::volume(&shared, "/v");
    let script = "touch /v/mine /v/other && chown 1000:1000 /v/other && stat -c %u:%g /v/mine /v/other && rm /v/other";
    let outcome = sandbox(&["--map", "full"]).option("-v").option(&volume).sh(script).run();
    outcome.exits(0).prints("0:0\n1000:1000");
    let owner = fs::metadata(shared.join("mine")).expect("made inside").uid();
    assert_eq!(u64::from(owner), host_facts()["uid"].as_u64().expect("uid"));
    // 1 inside is the first of the range outside, so 1000 is the 1000th.
    let keep = "touch /v/other && chown 1000:1000 /v/other";
    sandbox(&["--map", "full"]).option("-v").option(&volume).sh(keep).run().exits(0);
    assert_eq!(u64::from(fs::metadata(shared.join("other")).expect("made inside").uid()), first + 999);
}

#[test]
fn full_lets_user_0_become_another() {
    if !has("subids") {
        return;
    }
    let became = sandbox(&["--map", "full"]).probe_with("setuid", &["1000"]).sees();
    assert_eq!((&became["errno"], &became["uid"]), (&0.into(), &1000.into()));
    let stays = sandbox(&["--map", "full", "--user", "1000"]).probe_with("setuid", &["0"]).sees();
    assert_eq!(stays["errno"], libc::EPERM);
}

#[test]
fn the_record_lists_the_groups_that_stay() {
    let scratch = Scratch::new();
    let state = scratch.join("state");
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let own = status.lines().find_map(|line| line.strip_prefix("Groups:")).expect("groups");
    let own: Vec<u32> = own.split_whitespace().map(|gid| gid.parse().expect("a number")).collect();
    let running = plain()
        .option("--state")
        .option(&state)
        .options(&["--upper", "tmpfs", "--name", "listed"])
        .sh("echo up; read x")
        .start();
    let record =
        || -> Option<Value> { serde_json::from_str(&fs::read_to_string(state.join("listed/record.json")).ok()?).ok() };
    let record = loop {
        match record() {
            Some(record) => break record,
            None => std::thread::yield_now(),
        }
    };
    assert_eq!(record["groups"], serde_json::json!(own));
    drop(running);
}

#[test]
fn groups_of_a_range_map_are_exactly_those_asked_for() {
    if !has("subids") {
        return;
    }
    let groups = |options: &[&str]| {
        let facts = sandbox(&["--map", "full"]).options(options).probe("self").sees();
        facts["status"]["Groups"].as_str().unwrap_or("?").to_owned()
    };
    assert_eq!(groups(&[]), "");
    assert_eq!(groups(&["--group-add", "7", "--group-add", "nogroup"]), "7 65534");
    assert_eq!(groups(&["--drop-groups"]), "");
    sandbox(&["--map", "full", "--group-add", "70000"]).command(&["true"]).run().refused().says("outside the map");
}

#[test]
fn members_of_groups_in_rootfs_are_members() {
    if !has("subids") {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.rootfs();
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\nextra:x:50:other,user\nnot:x:51:other\n")
        .expect("group");
    let facts = sandbox(&["--map", "full", "--user", "user"]).root(&root).probe("self").sees();
    assert_eq!((&facts["status"]["Groups"], &facts["status"]["Gid"]), (&"50".into(), &"1000 1000 1000 1000".into()));
}

#[test]
fn explicit_maps_are_written_as_asked() {
    if !has("subids") {
        return;
    }
    let ((first, _), uid) = (subordinate(), host_facts()["uid"].clone());
    let maps = [format!("0:{uid}:1"), format!("5:{first}:3"), format!("100:{}:1", first + 10)];
    let options: Vec<&str> = maps.iter().flat_map(|map| ["--map", map]).collect();
    let facts = sandbox(&options).probe("self").sees();
    assert_eq!(map(&facts, "uid_map"), "0 0 1 5 5 3 100 100 1");
    assert_eq!(map(&facts, "gid_map"), "0 0 1 5 5 3 100 100 1");
}

#[test]
fn maps_of_many_extents_work_up_to_the_kernels_limit() {
    if !has("subids") {
        return;
    }
    let ((first, _), uid) = (subordinate(), host_facts()["uid"].clone());
    let extent = |n: u64| if n == 0 { format!("0:{uid}:1") } else { format!("{}:{}:1", 2 * n, first + 2 * n) };
    let options = |count: u64| -> Vec<String> { (0..count).flat_map(|n| ["--map".to_owned(), extent(n)]).collect() };
    // What bounds a map of such long numbers is its length in bytes, before its 340 lines.
    for count in [1, 5, 6, 300] {
        let facts = sandbox(&options(count)).probe("self").sees();
        assert_eq!(map(&facts, "uid_map").split(' ').count() as u64, 3 * count, "{count} extents");
    }
    sandbox(&options(341)).command(&["true"]).run().refused().says("340");
    sandbox(&options(340)).command(&["true"]).run().refused().says("4095");
}

#[test]
fn bad_maps_are_refused() {
    let uid = &host_facts()["uid"];
    let own = format!("0:{uid}:1");
    for bad in [
        &["0:0:1"][..],
        &["0:100000:0"],
        &[&own, &own],
        &["0:100000:10", "5:200000:10"],
        &["0:100000:10", "20:100005:10"],
        &["4294967290:100000:10"],
        &["0:4294967290:10"],
        &["0:100000:4294967295"],
        &["0:100000"],
        &["0:1:2:3"],
        &["-1:100000:1"],
        &["keep", "root"],
        &["nonsense"],
        &[""],
    ] {
        let options: Vec<&str> = bad.iter().flat_map(|map| ["--map", map]).collect();
        sandbox(&options).command(&["true"]).run().refused().says("--map");
    }
}

#[test]
fn a_foreign_range_is_refused() {
    if !has("subids") {
        return;
    }
    let (first, count) = subordinate();
    for foreign in [format!("0:{}:1", first + count), format!("0:{first}:{}", count + 1), "0:1:1".into()] {
        sandbox(&["--map", &foreign]).command(&["true"]).run().refused().says("--map");
    }
}

#[test]
fn processes_are_limited() {
    let made = sandbox(&["--pids", "10"]).probe_with("forks", &["50", "0"]).sees();
    // The probe and its one child are two of the ten; init is not counted.
    assert_eq!(made["0"], 8, "{made}");
}

#[test]
fn processes_are_limited_over_all_users() {
    if !has("subids") {
        return;
    }
    let made = sandbox(&["--map", "full", "--pids", "20"]).probe_with("forks", &["50", "1", "2", "3"]).sees();
    let all: i64 = ["1", "2", "3"].iter().filter_map(|uid| made[uid].as_i64()).filter(|n| *n >= 0).sum();
    assert!(all <= 20, "{made}");
    assert!(all >= 10, "the limit came far too early: {made}");
}

#[test]
fn a_user_of_its_own_gets_a_range_or_is_the_caller() {
    let outcome = sandbox(&["--user", "1000"]).probe("self").run().exits(0);
    let facts = outcome.facts();
    assert_eq!(facts["status"]["Uid"], "1000 1000 1000 1000");
    let ranged = map(&facts, "uid_map").split(' ').count() > 3;
    assert!(ranged || outcome.stderr.contains("1000 inside is you outside"), "{}", outcome.stderr);
    plain().command(&["id", "-u"]).run().exits(0).prints("0");
}
