//! `sbx check` in surroundings that lack something, made for it: namespaces by util-linux's `unshare`, seccomp filters
//! and no_new_privs between fork and exec.
//!
//! One law above the others: the exit status of `sbx check` is 0 exactly where `sbx run` works.

#![allow(unsafe_code)]

use sbx::sys::{process::no_new_privs, seccomp};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn sbx() -> PathBuf {
    std::env::var_os("SBX_BIN").map_or_else(|| env!("CARGO_BIN_EXE_sbx").into(), PathBuf::from)
}

/// Says why a test does not run; where the feature was promised, that is a failure.
fn skip(name: &str, feature: &str, reason: &str) {
    let promised = std::env::var("SBX_TEST_HAS").unwrap_or_default();
    let promised = promised.split(',').any(|word| word.split('=').next() == Some(feature));
    assert!(!promised, "{name} would skip, but SBX_TEST_HAS names {feature}: {reason}");
    println!("SKIP {name}: {reason}");
}

/// Returns from the test unless namespaces can be made here with `unshare` and these options.
macro_rules! needs {
    ($name:literal, $($option:literal),*) => {
        let works = Command::new("unshare").args([$($option,)* "true"]).stderr(Stdio::null()).status();
        if !works.is_ok_and(|status| status.success()) {
            return skip($name, "userns", concat!("`unshare", $(" ", $option,)* "` does not work here"));
        }
    };
}

/// Runs a program for at most a minute: `sbx check` ends by itself long before.
fn run(command: &mut Command) -> Output {
    let dir = tempfile::tempdir().expect("a directory for the output");
    let [out, err] = ["out", "err"].map(|name| dir.path().join(name));
    let to = |path: &Path| std::fs::File::create(path).expect("a file for the output");
    let mut child = command.stdin(Stdio::null()).stdout(to(&out)).stderr(to(&err)).spawn().expect("start");
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match child.try_wait().expect("wait") {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                let _ = child.kill();
                panic!("{command:?} did not end");
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let read = |path: &Path| std::fs::read(path).expect("the output");
    Output { status, stdout: read(&out), stderr: read(&err) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// A report, and how sbx ended.
struct Checked {
    status: Option<i32>,
    report: Value,
}

impl Checked {
    fn of(output: &Output) -> Checked {
        let report = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {} {}", text(&output.stdout), text(&output.stderr)));
        Checked { status: output.status.code(), report }
    }

    fn row(&self, feature: &str) -> &Value {
        let rows = self.report["rows"].as_array().expect("rows");
        rows.iter().find(|row| row["feature"] == feature).unwrap_or_else(|| panic!("no row {feature}"))
    }

    /// Holds that a feature is missing, why, and that it is in the way of a run.
    fn misses(&self, feature: &str, why: &str) {
        let row = self.row(feature);
        assert_eq!(row["state"], "missing", "{row}");
        assert!(row["why"].as_str().is_some_and(|words| words.contains(why)), "{row} lacks {why:?}");
        assert!(row["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{row}");
        let in_the_way = row["needed"] == true;
        if in_the_way {
            assert_eq!((self.status, &self.report["works"]), (Some(1), &Value::Bool(false)));
        }
    }
}

fn here() -> Checked {
    Checked::of(&run(Command::new(sbx()).args(["check", "--json"])))
}

/// The report inside namespaces made by `unshare` with these options, after a shell has run `prepare`.
fn within(options: &[&str], prepare: &str) -> Checked {
    let script = format!("{prepare}\nexec \"$0\" check --json");
    Checked::of(&run(Command::new("unshare").args(options).args(["sh", "-euc", &script]).arg(sbx())))
}

/// A root file system to run in; `None` where busybox is missing.
fn rootfs(name: &str) -> Option<(PathBuf, Option<tempfile::TempDir>)> {
    if let Some(given) = std::env::var_os("SBX_FIXTURES").map(|dir| Path::new(&dir).join("rootfs"))
        && given.is_dir()
    {
        return Some((given, None));
    }
    let tree = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let dir = tempfile::tempdir().expect("a directory for the root file system");
    let made = Command::new(Path::new(&tree).join("tests/fixtures/rootfs")).arg(dir.path().join("rootfs")).output();
    if made.is_ok_and(|made| made.status.success()) {
        return Some((dir.path().join("rootfs"), Some(dir)));
    }
    skip(name, "busybox", "no static busybox for a root file system");
    None
}

/// Holds that in such surroundings `run` fails with this in its last lines, and `check` says no.
fn run_says_so(name: &str, options: &[&str], prepare: &str, why: &str, hint: &str) {
    let Some((rootfs, _keep)) = rootfs(name) else { return };
    let script = format!("{prepare}\nexec \"$0\" --state \"$1\" run --upper disk \"$2\" /bin/true");
    let state = tempfile::tempdir().expect("a state directory");
    let mut command = Command::new("unshare");
    command.args(options).args(["sh", "-euc", &script]).arg(sbx()).arg(state.path()).arg(rootfs);
    let output = run(&mut command);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{said}");
    let line =
        |label: &str| said.lines().find_map(|line| line.trim().strip_prefix(label)).unwrap_or_default().to_owned();
    assert!(line("why:").contains(why), "{said} lacks {why:?}");
    assert!(line("try:").contains(hint), "{said} lacks {hint:?}");
    assert!(said.lines().count() <= 4, "{said}");
}

// --- Here ---

#[test]
fn its_status_is_whether_run_works() {
    const NAME: &str = "its_status_is_whether_run_works";
    if sbx::sys::cred::geteuid() == 0 {
        return skip(NAME, "", "for an ordinary user; root has its own rules");
    }
    let Some((rootfs, _keep)) = rootfs(NAME) else { return };
    let state = tempfile::tempdir().expect("a state directory");
    let mut command = Command::new(sbx());
    let ran = run(command.arg("--state").arg(state.path()).arg("run").arg(rootfs).arg("/bin/true"));
    assert_eq!(here().status == Some(0), ran.status.code() == Some(0), "{}", text(&ran.stderr));
}

#[test]
fn json_is_one_document_of_rows_with_a_state() {
    let checked = here();
    assert_eq!(checked.status, Some(if checked.report["works"] == true { 0 } else { 1 }));
    let rows = checked.report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 25);
    for row in rows {
        let state = row["state"].as_str().expect("a state");
        assert!(["ok", "limited", "missing", "untried"].contains(&state), "{row}");
        assert!(row["enables"].as_str().is_some_and(|words| !words.is_empty()), "{row}");
        let explained = row["why"].is_string() && row["fix"].is_string();
        assert_eq!(explained, ["limited", "missing"].contains(&state), "{row}");
    }
    let keys = checked.report["facts"].as_object().expect("facts").keys();
    assert!(keys.clone().count() > 10);
    keys.for_each(|key| assert!(key.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{key}"));
}

#[test]
fn doctor_is_the_same_and_the_table_fits_a_terminal() {
    let [check, doctor] = ["check", "doctor"].map(|word| run(Command::new(sbx()).arg(word)));
    assert_eq!(text(&check.stdout), text(&doctor.stdout));
    assert!(check.stderr.is_empty());
    let table = text(&check.stdout);
    assert!(table.contains("user namespaces"));
    table.lines().for_each(|line| assert!(line.chars().count() <= 80, "{line}"));
    let quiet = text(&run(Command::new(sbx()).args(["check", "-q"])).stdout);
    assert!(!quiet.contains("ok  ") && table.ends_with(&quiet));
}

#[test]
fn unknown_options_are_refused() {
    let output = run(Command::new(sbx()).args(["check", "--jsn"]));
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("does not take --jsn"));
}

#[test]
fn nothing_is_left() {
    needs!("nothing_is_left", "-Urmpf", "--mount-proc");
    // In namespaces of its own, whatever is left is seen, and nothing of others: pid 1 is the shell.
    let script = r#"mount -t tmpfs t /mnt; cd /mnt; mkdir home
        look() { cat /proc/self/mountinfo; find . /dev/shm /sys/fs/cgroup -name 'sbx*'; ls /tmp | grep -i 'sbx-\?check'; ls -A . home; }
        : >before; : >after
        look >before 2>&1
        HOME=/mnt/home "$0" check >/dev/null || true
        look >after 2>&1
        diff before after
        for process in /proc/[0-9]*; do [ "$process" = /proc/1 ] || cat $process/comm; done; :"#;
    let output = run(Command::new("unshare").args(["-Urmpf", "--mount-proc", "sh", "-c", script]).arg(sbx()));
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!((output.status.code(), said.as_str()), (Some(0), ""));
}

// --- Surroundings that lack something ---

#[test]
fn a_masked_proc_is_named() {
    needs!("a_masked_proc_is_named", "-Urmpf", "--mount-proc");
    let (options, mask) = (&["-Urmpf", "--mount-proc"], "mount -t tmpfs t /proc/sys");
    assert_eq!(within(options, "").row("proc")["state"], "ok");
    let checked = within(options, mask);
    checked.misses("proc", "/proc/sys of the /proc around sbx is masked");
    assert_eq!(checked.row("overlay"), here().row("overlay"));
    run_says_so("a_masked_proc_is_named", options, mask, "/proc/sys of the /proc", "systempaths=unconfined");
}

#[test]
fn a_masked_sys_is_named() {
    needs!("a_masked_sys_is_named", "-Urm");
    let mask = "mount -t tmpfs t /sys/kernel";
    within(&["-Urm"], mask).misses("sysfs", "/sys/kernel of the /sys around sbx is masked");
    run_says_so("a_masked_sys_is_named", &["-Urm"], mask, "/sys/kernel of the /sys", "--best-effort");
}

#[test]
fn a_missing_proc_is_named() {
    needs!("a_missing_proc_is_named", "-Urm");
    let hide = "mount -t tmpfs t /proc";
    let checked = within(&["-Urm"], hide);
    checked.misses("user_namespaces", "/proc is not mounted");
    assert_eq!(checked.row("proc")["state"], "untried");
}

#[test]
fn limits_of_namespaces_are_named_with_their_value() {
    const NAME: &str = "limits_of_namespaces_are_named_with_their_value";
    needs!("limits_of_namespaces_are_named_with_their_value", "-Ur");
    for (kind, feature) in [("user", "user_namespaces"), ("net", "net_namespaces"), ("mnt", "mount_namespaces")] {
        let close = format!("echo 0 >/proc/sys/user/max_{kind}_namespaces");
        let why = format!("user.max_{kind}_namespaces is 0");
        let checked = within(&["-Ur"], &close);
        checked.misses(feature, &why);
        run_says_so(NAME, &["-Ur"], &close, &why, &format!("sysctl -w user.max_{kind}_namespaces="));
    }
}

#[test]
fn the_limit_of_nesting_is_told_from_a_setting() {
    needs!("the_limit_of_nesting_is_told_from_a_setting", "-Ur");
    // Each level starts the next, until the kernel makes no more: 33 below the first.
    let script = r#"exec unshare -Ur sh -c "$1" "$0" "$1" 2>/dev/null || exec "$0" check --json"#;
    let nest =
        r#"if unshare -Ur true 2>/dev/null; then exec unshare -Ur sh -c "$1" "$0" "$1"; fi; exec "$0" check --json"#;
    let output = run(Command::new("sh").args(["-c", script]).arg(sbx()).arg(nest));
    Checked::of(&output).misses("user_namespaces", "33 are nested");
}

#[test]
fn a_missing_device_is_named() {
    needs!("a_missing_device_is_named", "-Urm");
    let hide = "mount -t tmpfs t /dev; : >/dev/zero";
    let checked = within(&["-Urm"], hide);
    checked.misses("devices", "/dev/null: no such file or directory (and 5 more)");
    run_says_so("a_missing_device_is_named", &["-Urm"], hide, "/dev/null", "mknod");
}

#[test]
fn no_new_privs_keeps_the_helpers_from_working() {
    const NAME: &str = "no_new_privs_keeps_the_helpers_from_working";
    if here().row("id_ranges")["state"] != "ok" || sbx::sys::cred::geteuid() == 0 {
        return skip(NAME, "subids", "newuidmap does not work here to begin with");
    }
    let checked = check_behind(&[]);
    checked.misses("id_ranges", "no_new_privs is set");
    assert_eq!(checked.status, here().status, "a run needs no helper");
}

#[test]
fn a_helper_that_is_not_there_is_named() {
    needs!("a_helper_that_is_not_there_is_named", "-Urm");
    let helper = ["/usr/bin/newuidmap", "/bin/newuidmap"].into_iter().find(|path| Path::new(path).exists());
    let Some(helper) = helper else {
        return skip("a_helper_that_is_not_there_is_named", "subids", "newuidmap is not in /usr/bin");
    };
    let checked = within(&["-Urm"], &format!("mount --bind /dev/null {helper}; PATH=/bin:/usr/bin"));
    checked.misses("id_ranges", "newuidmap is not on PATH");
}

#[test]
fn a_helper_that_hangs_is_ended_with_all_that_it_started() {
    const NAME: &str = "a_helper_that_hangs_is_ended_with_all_that_it_started";
    let checked = here();
    if checked.row("id_ranges")["state"] != "ok" || sbx::sys::cred::geteuid() == 0 {
        return skip(NAME, "subids", "no subordinate ids here, so no helper is run");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let [helper, started] = ["newuidmap", "started"].map(|name| dir.path().join(name));
    let script = format!("#!/bin/sh\nsleep 1000 &\necho $! >{}\nwait\n", started.display());
    std::fs::write(&helper, script).expect("a helper");
    std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).expect("an executable helper");
    let path = format!("{}:/usr/bin:/bin", dir.path().display());
    let checked = Checked::of(&run(Command::new(sbx()).args(["check", "--json"]).env("PATH", path)));
    checked.misses("id_ranges", "newuidmap gave no answer");
    let pid = std::fs::read_to_string(started).expect("the helper has run");
    // Whoever inherits the killed process may be slow to reap it: it then shows as a zombie, without a command line.
    let command = std::fs::read_to_string(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
    assert!(!command.starts_with("sleep"), "what the helper started is still there");
}

// --- Seccomp filters around sbx ---

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSYS: u32 = 38;
const RET_ERRNO: u32 = 0x0005_0000;
const KILL: u32 = 0x8000_0000;
const ALLOW: u32 = 0x7fff_0000;

/// What to answer to a system call, where its first argument has one of these bits, or whatever it is.
type Answer = (i64, Option<u32>, u32);

fn filter(answers: &[Answer]) -> Vec<seccomp::Insn> {
    let insn = |code, jt, jf, k| seccomp::Insn { code, jt, jf, k };
    let (load, equal, set, give) = (0x20, 0x15, 0x45, 0x06);
    let low_word = if cfg!(target_endian = "little") { 16 } else { 20 };
    let mut filter = Vec::new();
    for &(call, bits, answer) in answers {
        filter.push(insn(load, 0, 0, 0));
        match bits {
            None => filter.push(insn(equal, 0, 1, call as u32)),
            Some(bits) => {
                filter.push(insn(equal, 0, 3, call as u32));
                filter.push(insn(load, 0, 0, low_word));
                filter.push(insn(set, 0, 1, bits));
            }
        }
        filter.push(insn(give, 0, 0, answer));
    }
    filter.push(insn(give, 0, 0, ALLOW));
    filter
}

/// sbx with no_new_privs and, unless there are no answers, a filter around it.
fn behind(answers: &[Answer]) -> Command {
    let filter = filter(answers);
    let mut command = Command::new(sbx());
    let load = move || {
        let done = no_new_privs().and_then(|()| if filter.len() > 1 { seccomp::load(&filter) } else { Ok(()) });
        done.map_err(|errno| std::io::Error::from_raw_os_error(errno.0))
    };
    // SAFETY: between fork and exec it makes two system calls and touches no heap and no lock.
    unsafe { command.pre_exec(load) };
    command
}

fn check_behind(answers: &[Answer]) -> Checked {
    Checked::of(&run(behind(answers).args(["check", "--json"])))
}

/// What a run says behind such a filter; `None` where there is nothing to run.
fn run_behind(name: &str, answers: &[Answer]) -> Option<(Option<i32>, String)> {
    let (rootfs, _keep) = rootfs(name)?;
    let state = tempfile::tempdir().expect("a state directory");
    let output = run(behind(answers).arg("--state").arg(state.path()).arg("run").arg(rootfs).arg("/bin/true"));
    Some((output.status.code(), text(&output.stderr)))
}

const NEW_USER: Option<u32> = Some(libc::CLONE_NEWUSER as u32);

/// As Docker's profile: clone3 unknown, clone and unshare refused where they make a user namespace.
const DOCKER: [Answer; 3] = [
    (libc::SYS_clone3, None, RET_ERRNO | ENOSYS),
    (libc::SYS_clone, NEW_USER, RET_ERRNO | EPERM),
    (libc::SYS_unshare, NEW_USER, RET_ERRNO | EPERM),
];

#[test]
fn an_outer_filter_that_refuses_user_namespaces_is_named() {
    const NAME: &str = "an_outer_filter_that_refuses_user_namespaces_is_named";
    check_behind(&DOCKER).misses("user_namespaces", "a seccomp filter refuses it");
    if let Some((status, said)) = run_behind(NAME, &DOCKER) {
        assert_eq!(status, Some(125), "{said}");
        assert!(said.contains("why: ") && said.contains("seccomp"), "{said}");
        // What was refused, not what is missing and has a fall-back.
        assert!(said.contains(": clone: operation not permitted"), "{said}");
    }
}

/// Ubuntu 24.04's way: the namespace is made, and then good for nothing.
#[test]
fn a_user_namespace_without_its_capabilities_is_none() {
    const NAME: &str = "a_user_namespace_without_its_capabilities_is_none";
    needs!("a_user_namespace_without_its_capabilities_is_none", "-Ur");
    for call in [libc::SYS_sethostname, libc::SYS_move_mount] {
        let useless = [(call, None, RET_ERRNO | EPERM)];
        check_behind(&useless).misses("user_namespaces", "a seccomp filter refuses it");
        if let Some((status, said)) = run_behind(NAME, &useless) {
            assert_eq!(status, Some(125), "{said}");
            assert!(said.contains("seccomp filter"), "{said}");
        }
    }
}

#[test]
fn a_filter_that_kills_is_told_from_one_that_refuses() {
    let checked = check_behind(&[(libc::SYS_fsopen, None, KILL)]);
    checked.misses("user_namespaces", "killed by signal 31");
}

#[test]
fn each_missing_system_call_is_named() {
    needs!("each_missing_system_call_is_named", "-Ur");
    let calls = [
        ("openat2", libc::SYS_openat2),
        ("open_tree", libc::SYS_open_tree),
        ("move_mount", libc::SYS_move_mount),
        ("fsopen", libc::SYS_fsopen),
        ("fsmount", libc::SYS_fsmount),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("pidfd_open", libc::SYS_pidfd_open),
        ("close_range", libc::SYS_close_range),
    ];
    for (name, call) in calls {
        let checked = check_behind(&[(call, None, RET_ERRNO | ENOSYS)]);
        // fsmount needs fsopen, so that both may be named.
        let why = checked.row("system_calls")["why"].as_str().unwrap_or_default().to_owned();
        assert!(why.split([',', ' ']).any(|word| word == name), "{name}: {why:?}");
        assert_eq!(checked.status, Some(1), "{name}");
        assert!(why.contains("seccomp filter"), "{why}");
    }
}

#[test]
fn without_clone3_everything_works() {
    const NAME: &str = "without_clone3_everything_works";
    needs!("without_clone3_everything_works", "-Ur");
    let hidden = [(libc::SYS_clone3, None, RET_ERRNO | ENOSYS)];
    let checked = check_behind(&hidden);
    assert_eq!(checked.row("system_calls")["state"], "limited");
    assert_eq!(checked.row("pid_namespaces")["state"], "ok");
    assert_eq!(checked.row("time_namespaces")["state"], "ok");
    if let Some((status, said)) = run_behind(NAME, &hidden) {
        assert_eq!(status == Some(0), checked.status == Some(0), "{said}");
    }
}

#[test]
fn a_filter_that_cannot_be_loaded_is_no_filter() {
    let checked = check_behind(&[(libc::SYS_seccomp, None, RET_ERRNO | EINVAL)]);
    checked.misses("seccomp", "no filter can be loaded");
}

#[test]
fn a_low_limit_on_processes_is_named_and_not_in_the_way() {
    let output = run(Command::new("prlimit").arg("--nproc=300:300").arg(sbx()).args(["check", "--json"]));
    let checked = Checked::of(&output);
    let row = checked.row("limits");
    assert_eq!(row["state"], "limited", "{row}");
    assert!(row["why"].as_str().is_some_and(|why| why.contains("is 300")), "{row}");
    assert_eq!(checked.status, here().status);
}

#[test]
fn landlock_that_cannot_be_had_is_told_and_not_needed() {
    let hidden = [(libc::SYS_landlock_create_ruleset, None, RET_ERRNO | ENOSYS)];
    let checked = check_behind(&hidden);
    checked.misses("landlock", "");
    assert_eq!(checked.status, here().status);
}
