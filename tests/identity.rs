//! Who the program is, and what its namespaces and init show of the host (security.md S04, S07, S28–S31, S43).

mod common;

use common::{Scratch, has, host_facts, outside, plain, sandbox};
use serde_json::Value;
use std::fs;

/// CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT SETFCAP, as CLI.md has them.
const DEFAULT_CAPABILITIES: u64 =
    1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18 | 1 << 31;

fn field<'a>(facts: &'a Value, name: &str) -> &'a str {
    facts["status"][name].as_str().unwrap_or_else(|| panic!("no {name} in {facts}"))
}

fn mask(facts: &Value, name: &str) -> u64 {
    u64::from_str_radix(field(facts, name), 16).expect("a mask")
}

#[test]
fn every_namespace_is_new() {
    let (inside, host) = (plain().probe("self").sees(), outside("self", &[]));
    for kind in ["user", "mnt", "pid", "pid_for_children", "uts", "ipc", "net", "cgroup", "time", "time_for_children"] {
        let (inner, outer) = (&inside["ns"][kind], &host["ns"][kind]);
        assert!(inner.is_string() && inner != outer, "{kind}: {inner} inside, {outer} outside");
    }
    assert_eq!(inside["cgroup"].as_str().map(|t| t.lines().all(|line| line.ends_with(":/"))), Some(true), "{inside}");
}

#[test]
fn shared_namespaces_are_the_hosts_and_no_others() {
    let inside = sandbox(&["--share", "ipc,uts,time,cgroup", "--net", "host"]).probe("self").sees();
    let host = outside("self", &[]);
    for kind in ["uts", "ipc", "net", "cgroup", "time"] {
        assert_eq!(inside["ns"][kind], host["ns"][kind], "{kind}");
    }
    for kind in ["user", "mnt", "pid"] {
        assert_ne!(inside["ns"][kind], host["ns"][kind], "{kind}");
    }
}

#[test]
fn two_sandboxes_share_nothing() {
    let mut first = plain().bring_probe().sh("/probe self; read wait").start();
    let second = plain().probe("self").sees();
    first.stdin = None;
    let first = first.wait().facts();
    for kind in ["user", "mnt", "pid", "uts", "ipc", "net", "cgroup", "time"] {
        assert_ne!(first["ns"][kind], second["ns"][kind], "{kind}");
    }
}

#[test]
fn user_0_is_the_caller_and_alone() {
    let facts = plain().probe("self").sees();
    let host = host_facts();
    assert_eq!(facts["uid_map"], format!("0 {} 1", host["uid"]));
    assert_eq!(facts["gid_map"], format!("0 {} 1", host["gid"]));
    assert_eq!(facts["setgroups"], "deny");
    assert_eq!((field(&facts, "Uid"), field(&facts, "Gid")), ("0 0 0 0", "0 0 0 0"));
}

#[test]
fn capabilities_of_user_0_are_the_eleven() {
    let facts = plain().probe("self").sees();
    for set in ["CapBnd", "CapPrm", "CapEff"] {
        assert_eq!(mask(&facts, set), DEFAULT_CAPABILITIES, "{set}");
    }
    assert_eq!((mask(&facts, "CapInh"), mask(&facts, "CapAmb")), (0, 0));
    assert_eq!(facts["securebits"], 0);
}

#[test]
fn added_and_dropped_capabilities_are_exact() {
    let facts = sandbox(&["--cap-drop", "all", "--cap-add", "CHOWN"]).probe("self").sees();
    for set in ["CapBnd", "CapPrm", "CapEff"] {
        assert_eq!(mask(&facts, set), 1, "{set}");
    }
    let facts = sandbox(&["--cap-add", "NET_RAW", "--cap-drop", "KILL"]).probe("self").sees();
    assert_eq!(mask(&facts, "CapEff"), DEFAULT_CAPABILITIES & !(1 << 5) | 1 << 13);
    assert_eq!((mask(&facts, "CapInh"), mask(&facts, "CapAmb")), (0, 0));
    sandbox(&["--cap-add", "NO_SUCH"]).command(&["true"]).run().refused().says("NO_SUCH");
}

#[test]
fn other_users_hold_no_capability() {
    for options in [&["--map", "keep"][..], &["--map", "full", "--user", "1000"]] {
        if options[1] == "full" && !has("subids") {
            return;
        }
        let facts = sandbox(options).probe("self").sees();
        for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert_eq!(mask(&facts, set), 0, "{options:?} {set}");
        }
        assert_eq!(mask(&facts, "CapBnd"), DEFAULT_CAPABILITIES, "{options:?}");
    }
}

#[test]
fn every_process_is_confined() {
    // A child, a grandchild whose parent is gone, and a process of another session, beside init and the probe.
    let script = "sleep 9 & (sleep 9 &) ; setsid sleep 9 & /probe pids";
    for options in [&[][..], &["--landlock", "off"], &["--map", "keep"], &["--cap-add", "NET_RAW"]] {
        let pids = sandbox(options).bring_probe().sh(script).run().exits(0).facts();
        let pids = pids.as_object().expect("processes");
        assert!(pids.len() >= 5, "{pids:?}");
        for (pid, facts) in pids {
            assert_eq!((field(facts, "NoNewPrivs"), field(facts, "Seccomp")), ("1", "2"), "{options:?} {pid} {facts}");
            assert_eq!((mask(facts, "CapInh"), mask(facts, "CapAmb")), (0, 0), "{options:?} {pid}");
            assert_eq!(mask(facts, "CapEff") & !DEFAULT_CAPABILITIES & !(1 << 13), 0, "{options:?} {pid}");
        }
    }
}

#[test]
fn init_is_confined_whatever_the_policy_is() {
    // Where init cannot hand its filter on, it loads it at the side of the program, which may be there first.
    let script = "n=0; until grep -q 'Seccomp:.2' /proc/1/status || [ $n = 2000 ]; do n=$((n+1)); done; \
                  grep -c 'Seccomp:.2' /proc/1/status; grep -c 'Seccomp:.2' /proc/self/status";
    let scratch = Scratch::new();
    let shared = scratch.dir("shared").to_string_lossy().into_owned();
    for options in [&["--cap-add", "SYS_ADMIN"][..], &["--nest"], &["-v", &format!("{shared}:/v")]] {
        sandbox(options).sh(script).run().exits(0).prints("1\n1");
    }
}

#[test]
fn no_new_privileges_even_without_what_needs_it() {
    // A filter or a ruleset of an unprivileged process cannot be had without the bit; here are neither.
    let pids = sandbox(&["--seccomp", "off", "--landlock", "off"]).probe("pids").sees();
    for (pid, facts) in pids.as_object().expect("processes") {
        assert_eq!(field(facts, "NoNewPrivs"), "1", "{pid}");
    }
}

#[test]
fn init_is_closed_to_the_program() {
    for options in [&[][..], &["--landlock", "off"], &["--seccomp", "off", "--landlock", "off"]] {
        let pids = sandbox(options).probe("pids").sees();
        let init = &pids["1"];
        for secret in ["exe", "cwd", "root", "open exe", "fd", "map_files", "ns", "mem", "environ", "maps", "auxv"] {
            let errno = init[secret]["errno"].as_i64();
            assert!(matches!(errno, Some(1 | 13)), "{options:?} {secret}: {}", init[secret]);
        }
    }
}

#[test]
fn init_cannot_be_traced() {
    let (ptrace, readv) = (libc::SYS_ptrace, libc::SYS_process_vm_readv);
    let calls = [format!("{ptrace} 16 1 0 0"), format!("{ptrace} 0x4206 1 0 0"), format!("{readv} 1 v 1 v 1 0")];
    let answers = sandbox(&["--seccomp", "off", "--landlock", "off"]).probe_with("calls", &calls).sees();
    for call in &calls {
        assert_eq!(answers[call], libc::EPERM, "{call}");
    }
}

#[test]
fn init_shows_nothing_of_the_hosts_command_line() {
    let scratch = Scratch::new();
    let canary = scratch.dir("canary-of-the-host");
    let pids = plain().option("-v").option(common::volume(&canary, "/v")).option("-e").option("CANARY=secret");
    let pids = pids.probe("pids").sees();
    let init = &pids["1"];
    assert_eq!((&init["cmdline"], &init["comm"]), (&"sbx-init".into(), &"sbx-init".into()));
    assert!(!pids.to_string().contains("canary-of-the-host"), "{pids}");
}

#[test]
fn users_are_parsed_strictly() {
    let scratch = Scratch::new();
    let root = scratch.rootfs();
    let hostile =
        "root:x:0:0::/root:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n1000:x:0:0::/:/bin/sh\n-1:x:0:0::/:/bin/sh\n";
    fs::write(root.join("etc/passwd"), hostile).expect("passwd");
    let user = |text: &str| sandbox(&["--user", text]).root(&root).probe("self");
    assert_eq!(field(&user("0").sees(), "Uid"), "0 0 0 0");
    assert_eq!(field(&user("root").sees(), "Uid"), "0 0 0 0");
    let huge = "9".repeat(40);
    let bad =
        ["", ":", "01", "-1", "+1", "4294967295", "4294967296", &huge, " 1", "1 ", "1:", ":1", "1:2:3", "0x1", "１"];
    for text in bad {
        user(text).run().refused().says("--user");
    }
    // A number is never a name: the rogue line `1000` with user id 0 is not looked at.
    sandbox(&["--map", "root", "--user", "1000"])
        .root(&root)
        .command(&["true"])
        .run()
        .refused()
        .says("outside the map");
    for number in ["1", "1:1", "2147483648", "4294967294"] {
        let outcome = sandbox(&["--map", "root", "--user", number]).root(&root).command(&["true"]).run();
        outcome.refused().says("outside the map");
    }
}

#[test]
fn groups_cannot_be_changed() {
    // With a single-id map; what a group is denied would else be open to whoever leaves it (CVE-2018-7169).
    assert_eq!(plain().probe("self").sees()["setgroups"], "deny");
    let setgroups = format!("{} 0 p", libc::SYS_setgroups);
    let answers = plain().probe_with("calls", &[&setgroups]).sees();
    assert_eq!(answers[&setgroups], libc::EPERM);
    for option in [&["--drop-groups"][..], &["--group-add", "5"]] {
        sandbox(&["--map", "root"]).option(option[0]).options(&option[1..]).command(&["true"]).run().refused();
    }
}

#[test]
fn the_program_leads_a_session_of_its_own() {
    let facts = plain().probe("self").sees();
    assert_eq!(facts["sid"], facts["pid"], "{facts}");
    assert_eq!(field(&facts, "Umask"), "0022");
    assert_eq!(facts["pids"].as_array().map(Vec::len), Some(2), "init and the program: {}", facts["pids"]);
}
