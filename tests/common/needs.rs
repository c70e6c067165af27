//! What every test needs: the programs, the fixture, and the rule for skipping. A test that lacks something says
//! `SKIP name: reason` and returns; what SBX_TEST_HAS declares may not be lacking.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where programs are looked for, whatever the caller's PATH is.
const PROGRAMS: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// The program under test.
pub fn sbx() -> PathBuf {
    std::env::var_os("SBX_BIN").map_or_else(|| env!("CARGO_BIN_EXE_sbx").into(), PathBuf::from)
}

/// The static probe: `SBX_PROBE`, else what cargo put beside this executable.
pub fn probe() -> PathBuf {
    if let Some(probe) = std::env::var_os("SBX_PROBE") {
        return probe.into();
    }
    let own = std::env::current_exe().expect("own path");
    own.parent().and_then(Path::parent).expect("target directory").join("examples/probe")
}

/// The fixture, not to be written to: `$SBX_FIXTURES/rootfs`, else made once below the target directory.
pub fn rootfs() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    if let Some(fixtures) = std::env::var_os("SBX_FIXTURES") {
        return Path::new(&fixtures).join("rootfs");
    }
    let make = || {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rootfs");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rootfs");
        assert!(Command::new(script).arg(&dir).status().expect("tests/fixtures/rootfs").success());
        dir
    };
    MADE.get_or_init(make).clone()
}

/// Whether the host has a feature or a program; says so where it has not.
#[must_use]
pub fn has(feature: &str) -> bool {
    let reason = match missing(feature) {
        None => return true,
        Some(reason) => reason,
    };
    let declared = std::env::var("SBX_TEST_HAS").unwrap_or_default();
    let promised = declared.split(',').any(|word| word.split('=').next() == Some(feature));
    assert!(!promised, "SBX_TEST_HAS declares {feature}: {reason}");
    println!("SKIP {}: {reason}", std::thread::current().name().unwrap_or("test"));
    false
}

/// Whether the host lacks one of these; says which.
#[must_use]
pub fn lacks(features: &[&str]) -> bool {
    !features.iter().all(|feature| has(feature))
}

/// Why the host has not got a feature.
pub fn missing(feature: &str) -> Option<String> {
    let host = host_facts();
    let number = |key: &str| host[key].as_i64().unwrap_or(0);
    match feature {
        "userns" => (number("userns") != 0).then(|| format!("no user namespaces: errno {}", number("userns"))),
        "landlock" => (number("landlock") < 6).then(|| format!("Landlock ABI {}, 6 wanted", number("landlock"))),
        "tmpfs-xattrs" => {
            let errno = number("tmpfs-xattrs");
            (errno != 0).then(|| format!("no user xattrs on tmpfs, so no writable layer there: errno {errno}"))
        }
        "x86_64" => (std::env::consts::ARCH != "x86_64").then(|| "needs an x86_64 machine".into()),
        "subids" => {
            let user = host["user"].as_str().unwrap_or("?");
            let given = |file: &str| {
                let text = std::fs::read_to_string(file).unwrap_or_default();
                text.lines().any(|line| line.split(':').next() == Some(user))
            };
            if !given("/etc/subuid") || !given("/etc/subgid") {
                return Some(format!("no subordinate ids for {user}"));
            }
            missing("newuidmap")
        }
        "fuse" => {
            let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
            opened.err().map(|error| format!("/dev/fuse: {error}"))
        }
        // Controllers, as sbx finds them: what a lane has it declares, so sbx cannot talk itself out of a test.
        "cgroup" => planned(&["--mem", "64M", "--pids", "9"]),
        "cpu" => planned(&["--cpus", "1"]),
        "cpuset" => planned(&["--cpuset", "0"]),
        "io" => planned(&["--io-weight", "100"]),
        "systemd" => (!session_dir().join("systemd/private").exists()).then(|| "no systemd of the user's own".into()),
        "unified" => (!Path::new("/sys/fs/cgroup/cgroup.controllers").exists()).then(|| "no cgroup v2".into()),
        "booted" => (!Path::new("/run/systemd/system").exists()).then(|| "not booted by systemd".into()),
        "disposable" => {
            let lane = std::fs::read_to_string("/proc/cmdline").is_ok_and(|text| text.contains("sbx.lane="));
            (!lane || missing("booted").is_some()).then(|| "only with a systemd in a VM of tests/vm".into())
        }
        "rust" => {
            let given = std::env::var_os("SBX_RUST").is_some_and(|dir| Path::new(&dir).join("bin/rustup").exists());
            if given { None } else { missing("cargo") }
        }
        "sabotage" => {
            let switch = b"SBX_SABOTAGE";
            let program = std::fs::read(sbx()).expect("the program");
            let built = program.windows(switch.len()).any(|part| part == switch);
            (!built).then(|| "the program has no switches of sabotage: tests/run --sabotage".into())
        }
        // Where nobody may trace, it is of no use.
        "strace" => {
            let traced = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
            (!traced.is_ok_and(|status| status.success())).then(|| "strace does not work here".into())
        }
        without if without.starts_with("without-") => {
            let feature = &without["without-".len()..];
            missing(feature).is_none().then(|| format!("{feature} can be had"))
        }
        program => {
            let there = PROGRAMS.split(':').any(|dir| Path::new(dir).join(program).is_file());
            (!there).then(|| format!("{program} is not installed"))
        }
    }
}

/// Where the user's own systemd listens, if there is one.
pub fn session_dir() -> PathBuf {
    format!("/run/user/{}", host_facts()["uid"]).into()
}

/// Why sbx would not put such limits into a cgroup here.
fn planned(limits: &[&str]) -> Option<String> {
    let mut sbx = Command::new(sbx());
    if session_dir().join("systemd/private").exists() {
        sbx.env("XDG_RUNTIME_DIR", session_dir());
    }
    let planned = sbx.args(["run", "--dry-run", "--limits", "cgroup"]).args(limits).arg(rootfs()).output();
    let planned = planned.expect("sbx run --dry-run");
    let said = || String::from_utf8_lossy(&planned.stderr).lines().next().unwrap_or("no word").to_owned();
    (!planned.status.success()).then(said)
}

/// What the probe says outside any sandbox: `{uid, gid, user, landlock, userns, …}`.
pub fn host_facts() -> &'static Value {
    static FACTS: OnceLock<Value> = OnceLock::new();
    FACTS.get_or_init(|| {
        let output = Command::new(probe()).arg("host").output();
        let output = output.unwrap_or_else(|e| panic!("{}: {e} (run tests/run, or build it)", probe().display()));
        serde_json::from_slice(&output.stdout).expect("the probe's facts of the host")
    })
}
