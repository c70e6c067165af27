//! `sbx exec`: one more program in a sandbox, no less confined than the first, and nothing of the host's seen on its way.

mod common;

use common::{Running, Sandbox, Scratch, has, sandbox, sbx};
use serde_json::Value;
use std::io::Read;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A sandbox that runs, with its state in a directory of its own. The name is its own too: systemd keeps one scope of a
/// name for all of a user's.
struct Living {
    name: String,
    running: Option<Running>,
    state: Scratch,
}

/// `sbx run` of a script that says `up` when it runs.
fn living(options: &[&str], script: &str) -> Living {
    start(sandbox(options), script)
}

fn start(sandbox: Sandbox, script: &str) -> Living {
    let state = Scratch::new();
    let script = format!("{script}\necho up >/tmp/up; read x");
    let sandbox = common::in_session(sandbox).option("--state").option(state.join("state"));
    static NAMES: AtomicU32 = AtomicU32::new(0);
    let name = format!("x{}", NAMES.fetch_add(1, Ordering::Relaxed));
    let running = sandbox.options(&["--upper", "tmpfs", "--name", &name]).bring_probe().sh(&script).start();
    let living = Living { name, running: Some(running), state };
    let begin = Instant::now();
    while !living.exec(&["test", "-e", "/tmp/up"]).status.success() {
        assert!(begin.elapsed() < Duration::from_secs(30), "the sandbox does not come up");
        std::thread::sleep(Duration::from_millis(10));
    }
    living
}

impl Living {
    /// `sbx exec` without what it is to run.
    fn command(&self) -> Command {
        let mut command = Command::new(sbx());
        let env = ["PATH", "HOME", "XDG_RUNTIME_DIR", "TMPDIR", "SBX_SABOTAGE", "SBX_TEST_RUN"];
        command.env_clear().envs(env.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        if common::session_dir().join("systemd/private").exists() {
            command.env("XDG_RUNTIME_DIR", common::session_dir());
        }
        command.arg("exec").arg("--state").arg(self.state.join("state")).stdin(Stdio::null());
        command
    }

    /// `sbx exec` with options, before the name, up to `--`.
    fn exec_with(&self, options: &[&str], words: &[&str]) -> Output {
        self.command().args(options).arg(&self.name).args(words).output().expect("sbx exec")
    }

    fn exec(&self, words: &[&str]) -> Output {
        self.exec_with(&[], words)
    }

    /// What the probe says inside.
    fn probe(&self, options: &[&str], name: &str) -> Value {
        let output = self.exec_with(options, &["/probe", name]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON of the probe")
    }

    /// `sbx exec -d` of a script, which says nothing; what that has written to /tmp/third when it has ended.
    fn detach(&self, options: &[&str], script: &str) -> String {
        let script = format!("{script}; touch /tmp/done");
        let options: Vec<&str> = ["-d"].iter().chain(options).copied().collect();
        let said = text(&self.exec_with(&options, &["sh", "-c", &script]));
        assert_eq!(said, (Some(0), String::new(), String::new()));
        let begin = Instant::now();
        while self.exec(&["rm", "/tmp/done"]).status.code() != Some(0) {
            assert!(begin.elapsed() < Duration::from_secs(30), "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        text(&self.exec(&["cat", "/tmp/third"])).1
    }

    /// One more program that stays, or what is said where there is no room for it.
    fn one_more(&self) -> Result<Child, (Option<i32>, String)> {
        let mut command = self.command();
        command.args([&self.name, "sh", "-c", "echo in; exec sleep 60"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sbx exec");
        let mut said = [0; 3];
        if child.stdout.as_mut().expect("a pipe").read_exact(&mut said).is_ok() {
            return Ok(child);
        }
        let (status, _, error) = text(&child.wait_with_output().expect("its end"));
        Err((status, error))
    }

    /// Ends it.
    fn ends(mut self) {
        let mut running = self.running.take().expect("it runs");
        running.stdin = None;
        running.wait();
    }
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The facts that say how a process is confined: those that two processes of one sandbox share.
fn confinement(facts: &Value) -> Value {
    let mut kept = facts.clone();
    let map = kept.as_object_mut().expect("an object");
    for own in ["pid", "pids", "sid", "fds", "env", "argv", "stdin"] {
        map.remove(own);
    }
    if let Some(status) = map.get_mut("status").and_then(Value::as_object_mut) {
        let wanted = [
            "Uid",
            "Gid",
            "Groups",
            "CapInh",
            "CapPrm",
            "CapEff",
            "CapBnd",
            "CapAmb",
            "NoNewPrivs",
            "Seccomp",
            "Seccomp_filters",
            "Umask",
            "SigIgn",
            "SigBlk",
            "CoreDumping",
            "THP_enabled",
        ];
        status.retain(|key, _| wanted.contains(&key.as_str()));
    }
    kept
}

#[test]
fn it_is_confined_as_the_first_program() {
    let mut all: Vec<&[&str]> = vec![
        &[],
        &["--map", "keep"],
        &["--net", "host"],
        &["--read-only"],
        &["--nest"],
        &["--no-init"],
        &["--seccomp", "off"],
        &["--landlock", "off"],
        &["--share", "ipc,uts,time"],
        &["--cap-drop", "all", "--umask", "077"],
        &["--rlimit", "nofile=77", "--rlimit", "core=0", "--pids", "50"],
        &["--time-offset", "boottime=+1000"],
    ];
    if has("subids") {
        all.extend([&["--map", "full"][..], &["--map", "full", "--user", "7", "--group-add", "12"]]);
    }
    for options in all {
        let living = living(options, "/probe self >/tmp/first");
        let (status, first, error) = text(&living.exec(&["cat", "/tmp/first"]));
        assert_eq!(status, Some(0), "{options:?}: {error}");
        let first: Value = serde_json::from_str(&first).expect("JSON of the probe");
        let second = living.probe(&[], "self");
        assert_eq!(confinement(&second), confinement(&first), "{options:?}");
        let third = living.detach(&[], "/probe self >/tmp/third");
        let third: Value = serde_json::from_str(&third).expect("JSON of the probe");
        assert_eq!(confinement(&third), confinement(&first), "{options:?}, in the background");
        living.ends();
    }
}

#[test]
fn it_has_no_more_of_the_machine_than_the_first_program() {
    let look = "cut -d' ' -f19 /proc/self/stat; cat /proc/self/oom_score_adj; grep Cpus_allowed_list /proc/self/status";
    for options in [&["--nice", "17", "--oom-score-adj", "300"][..], &["--limits", "watch", "--cpus", "1"]] {
        let living = living(options, &format!("({look}) >/tmp/first"));
        let first = text(&living.exec(&["cat", "/tmp/first"]));
        assert!(first.1.lines().count() == 3, "{first:?}");
        // Which processors it gets differs from start to start.
        for _ in 0..8 {
            assert_eq!(text(&living.exec(&["sh", "-c", look])), first, "{options:?}");
        }
        // Who calls may have less than that.
        if options[0] == "--nice" {
            let mut lower = Command::new("nice");
            lower.arg("-n19").arg(sbx()).args(living.command().get_args()).args([&living.name, "sh", "-c", look]);
            let lower = lower.stdin(Stdio::null()).output().expect("nice");
            assert_eq!(text(&lower).1.lines().next(), Some("19"), "{lower:?}");
        }
        living.ends();
    }
}

/// Where `fs.suid_dumpable` is 1 a change of ids makes a process dumpable, until it is hidden again.
#[test]
fn who_comes_is_the_programs_user_before_it_can_be_seen() {
    if common::lacks(&["subids", "strace"]) {
        return;
    }
    let living = living(&["--map", "full"], "");
    let log = living.state.join("calls");
    let calls = "--trace=execve,setns,setresuid,setresgid,setgroups,capset,prctl,clone3,exit_group";
    let mut traced = Command::new("strace");
    traced.args(["-f", calls, "-o"]).arg(&log).arg(sbx()).args(living.command().get_args());
    let output = traced.args(["-u", "7:12", &living.name, "id"]).stdin(Stdio::null()).output().expect("strace");
    assert_eq!(text(&output).1, "uid=7 gid=12", "{output:?}");
    let log = std::fs::read_to_string(log).expect("the calls");
    let of = |pid: &str| {
        log.lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(who, _)| *who == pid)
            .map(|(_, call)| call.trim())
            .collect::<Vec<_>>()
    };
    let program = log.lines().rev().find(|line| line.contains("execve(")).and_then(|line| line.split(' ').next());
    let seen = of(program.expect("the program's process"));
    assert!(seen.iter().any(|call| call.contains("PR_SET_DUMPABLE")), "{log}");
    assert!(!seen.iter().any(|call| call.starts_with("setres")), "{log}");
    // The one that makes it is hidden right before.
    let joins = log.lines().rev().find(|line| line.contains("setresuid(")).and_then(|line| line.split(' ').next());
    let joins = of(joins.expect("the process that joins"));
    let made = joins.iter().position(|call| call.starts_with("clone3(")).expect("the program's process");
    let ids = joins.iter().position(|call| call.starts_with("setresuid(")).expect("a change of ids");
    assert!(joins[ids..made].iter().any(|call| call.contains("PR_SET_DUMPABLE")), "{log}");
    living.ends();
}

#[test]
fn no_process_comes_above_the_limit_on_them() {
    let mut all = vec![&["--pids", "5", "--limits", "watch"][..]];
    if has("subids") {
        all.push(&["--pids", "5", "--limits", "watch", "--map", "full"]);
    }
    for options in all {
        let living = living(options, "");
        let (status, _, error) =
            text(&living.exec(&["sh", "-c", "for n in 1 2 3; do sleep 60 >/dev/null 2>&1 & done"]));
        assert_eq!(status, Some(0), "{options:?}: {error}");
        // Four of five: with a map of ranges the process that brings one in has to find room too.
        let mut held = Vec::new();
        let (status, error) = loop {
            match living.one_more() {
                Ok(child) => held.push(child),
                Err(refused) => break refused,
            }
            assert!(held.len() < 2, "{options:?}: one more and one more");
        };
        assert!(status == Some(125) && error.contains("as many processes"), "{options:?}: {status:?} {error}");
        for mut child in held {
            child.kill().expect("kill");
            child.wait().expect("its end");
        }
        living.ends();
    }
}

/// What a policy lets be executed binds who comes later as well.
#[test]
fn it_executes_only_where_the_first_may() {
    if !has("landlock") {
        return;
    }
    let scratch = Scratch::new();
    let policy = scratch.file("policy.toml", "landlock.exec = [\"/bin\"]\n").display().to_string();
    for (options, status) in [(&["--policy", &policy][..], Some(126)), (&[], Some(0))] {
        let living = living(options, "cp /bin/busybox /tmp/true");
        let (ended, _, error) = text(&living.exec(&["/tmp/true"]));
        assert_eq!(ended, status, "{error}");
        living.ends();
    }
}

/// A fifo shows what Landlock alone refuses: who writes to one asks no mount.
#[test]
fn rules_follow_what_they_were_made_of_and_not_its_path() {
    if !has("landlock") {
        return;
    }
    let shared = Scratch::new();
    for name in ["given", "data"] {
        std::fs::create_dir(shared.join(name)).expect("a directory");
    }
    assert!(Command::new("mkfifo").arg(shared.join("data/fifo")).status().expect("mkfifo").success());
    let [given, data] =
        [("given", "/tmp/a/b"), ("data", "/data:ro")].map(|(from, to)| format!("{}:{to}", shared.join(from).display()));
    let write = &["sh", "-c", "echo x 1<>/data/fifo"][..];
    let moved = "mv /tmp/a /tmp/moved; mkdir /tmp/a; ln -s / /tmp/a/b";
    for way in [&[][..], &["--no-init"]] {
        let options = [&["--read-only", "-v", &given, "-v", &data][..], way].concat();
        for script in ["", moved] {
            let living = living(&options, script);
            let (status, _, error) = text(&living.exec(write));
            assert!(status != Some(0) && error.contains("Permission denied"), "{way:?} {script}: {status:?} {error}");
            let place = if script.is_empty() { "/tmp/a/b" } else { "/tmp/moved/b" };
            let (status, _, error) = text(&living.exec(&["touch", &format!("{place}/new")]));
            assert_eq!(status, Some(0), "{way:?} {script}: {error}");
            living.ends();
        }
    }
}

#[test]
fn in_the_background_it_is_the_inits_until_it_ends_with_the_sandbox() {
    let living = living(&[], "");
    let look = "(readlink /proc/$$/fd/0; readlink /proc/$$/fd/1; readlink /proc/$$/fd/2; ls /proc/$$/fd) >/tmp/third; \
        while grep -q PPid:[^1]*[02-9] /proc/$$/status; do :; done; grep PPid /proc/$$/status >>/tmp/third";
    let seen = living.detach(&[], look);
    let [nulls, fds] = ["/dev/null\n".repeat(3), "0\n1\n2\n".into()];
    let seen = seen.strip_prefix(&nulls).unwrap_or_else(|| panic!("{seen}"));
    // The shell's own copies of what it redirects have numbers above these.
    assert!(seen.starts_with(&fds) && seen.ends_with("PPid:\t1"), "{seen}");
    let pid_file = living.state.join("pid");
    let option = pid_file.to_string_lossy();
    let said = text(&living.exec_with(&["-d", "--pid-file", &option], &["sleep", "62"]));
    assert_eq!(said, (Some(0), String::new(), String::new()));
    let pid = std::fs::read_to_string(&pid_file).expect("a pid").trim().to_owned();
    let comm = format!("/proc/{pid}/comm");
    assert_eq!(std::fs::read_to_string(&comm).expect("it runs").trim(), "sleep");
    // What has ended is taken by its init.
    let (_, states, _) = text(&living.exec(&["sh", "-c", "cat /proc/[0-9]*/stat | grep -c ') Z'"]));
    assert_eq!(states, "0");
    living.ends();
    assert!(std::fs::read_to_string(&comm).map_or(true, |name| name.trim() != "sleep"), "it outlives its sandbox");
}

#[test]
fn in_the_background_a_start_that_fails_is_told() {
    let living = living(&[], "");
    for (options, words, status, says) in [
        (&["-d"][..], &["nope"][..], 127, "nope: command not found"),
        (&["-d"], &["/etc/passwd"], 126, "cannot execute"),
        (&["-d", "-w", "/nowhere"], &["true"], 125, "--workdir"),
        (&["-d", "-t"], &["true"], 125, "--detach and --tty contradict each other"),
    ] {
        let (code, out, error) = text(&living.exec_with(options, words));
        assert!(code == Some(status) && out.is_empty() && error.contains(says), "{words:?}: {code:?} {error}");
    }
    living.ends();
}

/// Programs that stop, or kill, each process that comes: what has the number after the last one.
fn watchful(signal: &str) -> String {
    format!(
        "(set +m; n=2; while [ ! -e /tmp/stop ]; do n=$((n+1)); [ $n -gt 4000 ] && n=2; [ $n != $$ ] && [ -e /proc/$n ] && \
        read name </proc/$n/comm && case $name in sbx-exec) kill -{signal} $n;; esac; done) 2>/dev/null &"
    )
}

/// A number that is closed out there may be one of sbx's own by the time the program gets it.
#[test]
fn only_the_callers_own_descriptors_are_passed() {
    let living = living(&[], "");
    // What this process has open the client may have too.
    let closed = |number: &i32| !std::path::Path::new(&format!("/proc/self/fd/{number}")).exists();
    for number in (3..40).filter(closed) {
        for option in ["--pass-fd", "--status-fd"] {
            let refused = living.exec_with(&[option, &number.to_string()], &["true"]);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(refused.status.code() == Some(125) && said.contains("not open"), "{option} {number}: {said}");
        }
    }
}

/// What came of `sbx exec`; nothing where its program itself was stopped, which waits as it would anywhere. That a process
/// is not executed yet its name tells.
fn ended_unless_stopped(mut exec: Child) -> Option<Output> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while exec.try_wait().expect("sbx exec").is_none() {
        if Instant::now() > deadline {
            let pid = exec.id();
            let program = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children");
            let name = std::fs::read_to_string(format!("/proc/{}/comm", program.trim())).expect("its name");
            exec.kill().expect("kill");
            exec.wait().expect("its end");
            assert_eq!(name.trim(), "true", "it was held up before it ran");
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Some(exec.wait_with_output().expect("what it said"))
}

#[test]
fn a_process_inside_that_stops_who_comes_holds_nobody_up() {
    let ways = [
        ("STOP", None, "was stopped before it ran"),
        ("KILL", None, "was killed by signal 9 before it ran"),
        ("STOP", Some("-d"), "was stopped before it ran"),
    ];
    for (signal, option, says) in ways {
        // Landlock would not let it.
        let living = living(&["--landlock", "off"], &format!("sleep 0.2; {}", watchful(signal)));
        let mut hit = 0;
        for _ in 0..300 {
            if hit == 5 {
                break;
            }
            let exec = living
                .command()
                .args(option)
                .args([&living.name, "true"])
                .stderr(Stdio::piped())
                .spawn()
                .expect("sbx exec");
            let ended = ended_unless_stopped(exec);
            let (status, _, error) = ended.as_ref().map(text).unwrap_or_default();
            if status == Some(125) {
                assert!(error.contains(says), "{signal}: {error}");
            }
            hit += u32::from(status != Some(0));
        }
        println!("{signal} {option:?}: {hit} hits");
        living.ends();
    }
}

#[test]
fn it_stands_in_the_same_cgroup() {
    if !has("cgroup") {
        return;
    }
    let mem = ["--mem", "64M", "--pids", "20", "--limits", "cgroup"];
    let living_one = living(&mem, "");
    assert_eq!(text(&living_one.exec(&["grep", "^0", "/proc/self/cgroup"])).1, "0::/");
    let hog = living_one.exec(&["/probe", "fill", "300", "0", "1000"]);
    assert_eq!(hog.status.code(), Some(137), "{hog:?}");
    // The limit ends all of the sandbox.
    assert_eq!(living_one.running.expect("it ran").wait().status, 137);
    let divided = "cd /sys/fs/cgroup; mkdir a; echo 1 >a/cgroup.procs; echo $$ >a/cgroup.procs; \
        echo +pids >cgroup.subtree_control";
    let living = start(sandbox(&mem).options(&["--mount", "type=cgroup"]), divided);
    let (status, group, error) = text(&living.exec(&["grep", "^0", "/proc/self/cgroup"]));
    assert_eq!((status, group.as_str()), (Some(0), "0::/a"), "{error}");
    living.ends();
}

#[test]
fn its_own_options_count() {
    let living = living(&["-e", "A=run", "-w", "/usr"], "");
    let say = ["sh", "-c", "echo $A $B $PWD"];
    assert_eq!(text(&living.exec(&say)).1, "run /usr");
    assert_eq!(text(&living.exec_with(&["-e", "A=exec", "-e", "B=2", "-w", "/tmp"], &say)).1, "exec 2 /tmp");
    assert_eq!(text(&living.exec(&["sh", "-c", "exit 7"])).0, Some(7));
    assert_eq!(text(&living.exec(&["sh", "-c", "kill -9 $$"])).0, Some(137));
    for (words, status, says) in [
        (&["nope"][..], 127, "nope: command not found"),
        (&["/etc/passwd"], 126, "cannot execute"),
        (&[], 125, "COMMAND is missing"),
    ] {
        let (code, _, error) = text(&living.exec(words));
        assert!(code == Some(status) && error.contains(says), "{words:?}: {code:?} {error}");
    }
    for (options, says) in [
        (&["-u", "5"][..], "outside the sandbox's map"),
        (&["-u", "nobody-of-this-name"], "no such user"),
        (&["-w", "/nowhere"], "--workdir"),
        (&["--mem", "1G"], "--mem"),
        (&["--rw"], "--rw"),
    ] {
        let (code, _, error) = text(&living.exec_with(options, &["true"]));
        assert!(code == Some(125) && error.contains(says), "{options:?}: {code:?} {error}");
    }
    living.ends();
}

#[test]
fn signals_reach_from_one_program_to_the_other() {
    let script = "trap 'echo told >/tmp/told' USR1; echo $$ >/tmp/pid; touch /tmp/up; \
        while [ ! -e /tmp/told ]; do sleep 0.05; done";
    let living = living(&[], script);
    let (status, _, error) =
        text(&living.exec(&["sh", "-c", "kill -USR1 $(cat /tmp/pid); while [ ! -e /tmp/told ]; do sleep 0.05; done"]));
    assert_eq!(status, Some(0), "{error}");
    assert_eq!(text(&living.exec(&["cat", "/tmp/told"])).1, "told");
    living.ends();
}

#[test]
fn nothing_of_the_host_is_seen_on_its_way() {
    let scan = "while [ ! -e /tmp/stop ]; do for p in /proc/[0-9]*; do
        for f in environ cmdline; do tr '\\0' ' ' <$p/$f; done; ls -l $p/exe $p/cwd $p/root $p/fd; done >>/tmp/seen 2>/dev/null; done &";
    let living = living(&[], scan);
    let rounds = 60;
    for _ in 0..rounds {
        let mut exec = living.command();
        let output =
            exec.args([&living.name, "true"]).env("SECRET_VARIABLE", "SECRET-VALUE").output().expect("sbx exec");
        assert!(output.status.success(), "{output:?}");
    }
    let (_, seen, _) = text(&living.exec(&["sh", "-c", "touch /tmp/stop; sleep 0.3; cat /tmp/seen"]));
    assert!(seen.contains("sbx-init"), "the scan has seen something");
    let host = sbx();
    for secret in ["SECRET-VALUE", "SECRET_VARIABLE", &host.to_string_lossy(), "--state"] {
        assert!(!seen.contains(secret), "{secret}");
    }
    living.ends();
}

#[test]
fn the_sandbox_ends_with_its_first_program_and_those_that_came_later() {
    let living = living(&[], "");
    let mut exec = living.command().args([&living.name, "sleep", "60"]).spawn().expect("sbx exec");
    std::thread::sleep(Duration::from_millis(200));
    living.ends();
    let begin = Instant::now();
    let status = loop {
        match exec.try_wait().expect("wait") {
            Some(status) => break status,
            None => assert!(begin.elapsed() < Duration::from_secs(10), "sbx exec goes on"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.code(), Some(137));
}

#[test]
fn its_program_dies_with_it() {
    let living = living(&[], "");
    let mut exec = living.command().args([&living.name, "sleep", "61"]).spawn().expect("sbx exec");
    std::thread::sleep(Duration::from_millis(200));
    exec.kill().expect("kill");
    exec.wait().expect("wait");
    let begin = Instant::now();
    while text(&living.exec(&["ps"])).1.contains("sleep 61") {
        assert!(begin.elapsed() < Duration::from_secs(10), "it goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
    living.ends();
}

#[test]
fn what_does_not_run_cannot_be_entered() {
    let state = Scratch::new();
    let living = Living { name: "x".into(), running: None, state };
    let (code, _, error) = text(&living.exec(&["true"]));
    assert!(code == Some(125) && error.contains("no sandbox of this name"), "{code:?} {error}");
}
