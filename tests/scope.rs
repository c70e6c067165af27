//! A real user's systemd: scopes with limits for processes that are there already, over both of its doors.
//!
//! Needs a login session with a manager; each test has a unit name of its own and leaves none.

mod common;

use common::has;
use sbx::cgroup::scope::{Scope, start, stop};
use sbx::error::Error;
use sbx::host::manager::{Door, door};
use sbx::plan::limits::{Property, Value};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const FEATURE: &str = "systemd";
const MEMORY: u64 = 64 << 20;

/// A process that would live for long, killed at the end.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Sleeper {
        Sleeper(Command::new("sleep").arg("100").spawn().expect("sleep"))
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn group(&self) -> String {
        group(&self.pid().to_string())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn group(process: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{process}/cgroup")).expect("a cgroup");
    text.lines().find_map(|line| line.strip_prefix("0::")).expect("cgroup v2").to_owned()
}

fn value(group: &str, file: &str) -> String {
    let path = format!("/sys/fs/cgroup{group}/{file}");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
}

/// The user's bus where there is one, and the manager's own socket.
fn doors() -> Vec<Door> {
    let runtime = common::session_dir();
    let mut caller = sbx::host::caller().expect("a caller");
    caller.env = vec![("XDG_RUNTIME_DIR".into(), runtime.clone().into())];
    let uid = sbx::sys::cred::geteuid();
    let first = door(&caller, uid).expect("a door");
    let both = [Door::Private(runtime.join("systemd/private")), Door::Bus(runtime.join("bus"))];
    assert!(both.contains(&first), "{first:?}");
    both.into_iter().filter(|door| door.path().exists()).collect()
}

fn scope<'a>(name: &'a str, sleeper: &Sleeper, properties: &'a [Property]) -> Scope<'a> {
    Scope { name, description: "sbx's own test".into(), slice: None, pid: sleeper.pid(), properties }
}

fn limits() -> Vec<Property> {
    let limits = [("MemoryMax", MEMORY), ("MemorySwapMax", 0), ("TasksMax", 20), ("CPUQuotaPerSecUSec", 200_000)];
    let numbers = limits.map(|(name, value)| Property { name, value: Value::Number(value) });
    numbers.into_iter().chain([Property { name: "Delegate", value: Value::Bool(true) }]).collect()
}

fn shown(unit: &str, property: &str) -> String {
    common::user_systemctl(&["show", "--value", "-p", property, unit]).trim().to_owned()
}

fn gone(unit: &str) {
    let end = Instant::now() + Duration::from_secs(5);
    while shown(unit, "LoadState") != "not-found" {
        assert!(Instant::now() < end, "{unit} is still loaded: {}", shown(unit, "ActiveState"));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn limits_are_in_force_over_both_doors() {
    if !has(FEATURE) {
        return;
    }
    let (unit, ours) = ("sbx-test.limits.scope", group("self"));
    for door in doors() {
        let sleeper = Sleeper::new();
        start(&door, &scope(unit, &sleeper, &limits()), None).unwrap_or_else(|error| panic!("{door:?}: {error}"));
        let group = sleeper.group();
        assert!(group.ends_with("/sbx-test.limits.scope"), "{group}");
        assert_eq!(value(&group, "memory.max"), MEMORY.to_string());
        assert_eq!(value(&group, "memory.swap.max"), "0");
        assert_eq!(value(&group, "pids.max"), "20");
        assert_eq!(value(&group, "cpu.max"), "20000 100000");
        assert_eq!(shown(unit, "MemoryMax"), MEMORY.to_string());
        assert_eq!(shown(unit, "Delegate"), "yes");
        assert_eq!(shown(unit, "Description"), "sbx's own test");
        // Ours to write: that is what delegation means.
        std::fs::create_dir(format!("/sys/fs/cgroup{group}/below")).expect("a group below");
        assert_eq!(self::group("self"), ours, "sbx itself was moved");
        drop(sleeper);
        gone(unit);
    }
}

#[test]
fn a_name_is_free_again_when_its_bearer_is_dead() {
    if !has(FEATURE) {
        return;
    }
    let unit = "sbx-test.again.scope";
    for door in doors() {
        for _ in 0..5 {
            let sleeper = Sleeper::new();
            start(&door, &scope(unit, &sleeper, &[]), None).unwrap_or_else(|error| panic!("{door:?}: {error}"));
            assert!(sleeper.group().ends_with(unit));
        }
    }
    gone(unit);
}

/// A scope that systemd keeps until it is reset: it ran too long.
#[test]
fn a_scope_that_failed_is_cleared() {
    if !has(FEATURE) {
        return;
    }
    let unit = "sbx-test.failed.scope";
    for door in doors() {
        let mut run = Command::new("systemd-run");
        run.env("XDG_RUNTIME_DIR", common::session_dir());
        run.args(["--user", "--scope", "--quiet", "-p", "RuntimeMaxSec=1", "--unit", unit, "sleep", "100"]);
        assert!(!run.status().expect("systemd-run").success());
        let end = Instant::now() + Duration::from_secs(5);
        while shown(unit, "ActiveState") != "failed" {
            assert!(Instant::now() < end, "{unit}: {}", shown(unit, "ActiveState"));
        }
        let sleeper = Sleeper::new();
        start(&door, &scope(unit, &sleeper, &[]), None).unwrap_or_else(|error| panic!("{door:?}: {error}"));
        drop(sleeper);
        gone(unit);
    }
}

#[test]
fn a_living_scope_is_not_touched() {
    if !has(FEATURE) {
        return;
    }
    let unit = "sbx-test.living.scope";
    for door in doors() {
        let (mut first, second) = (Sleeper::new(), Sleeper::new());
        start(&door, &scope(unit, &first, &limits()), None).expect("the first");
        let before = second.group();
        let error = start(&door, &scope(unit, &second, &[]), None).expect_err("the second");
        assert!(matches!(&error, Error::State { on, .. } if on == unit), "{error:?}");
        assert_eq!(second.group(), before);
        assert_eq!(value(&first.group(), "pids.max"), "20");
        assert!(first.0.try_wait().expect("waited").is_none());
        stop(&door, unit).expect("stopped");
        assert!(!first.0.wait().expect("waited").success());
        gone(unit);
        stop(&door, unit).expect("stopped once more");
    }
}

#[test]
fn refusals_are_told() {
    if !has(FEATURE) {
        return;
    }
    for door in doors() {
        let mut sleeper = Sleeper::new();
        let unknown = [Property { name: "NoSuchLimit", value: Value::Number(1) }];
        let error = start(&door, &scope("sbx-test.unknown.scope", &sleeper, &unknown), None).expect_err("a refusal");
        assert!(error.to_string().contains("NoSuchLimit"), "{error}");
        let error = start(&door, &scope("no unit", &sleeper, &[]), None).expect_err("a refusal");
        assert!(error.to_string().contains("Invalid unit name"), "{error}");
        sleeper.0.kill().expect("killed");
        sleeper.0.wait().expect("waited");
        let error = start(&door, &scope("sbx-test.nobody.scope", &sleeper, &[]), None).expect_err("a refusal");
        println!("{error}");
        gone("sbx-test.nobody.scope");
    }
}
