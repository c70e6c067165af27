//! Options of `run` and small subcommands, each at run time: what was asked for is what the program finds.

mod common;

use common::{Outcome, Scratch, has, lacks, plain, sandbox, sbx};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// What a shell inside prints under these options.
#[track_caller]
fn prints(options: &[&str], script: &str, wanted: &str) {
    sandbox(options).sh(script).run().exits(0).prints(wanted);
}

/// sbx itself, without a sandbox.
fn told(words: &[&str]) -> Outcome {
    let output = Command::new(sbx()).args(words).output().expect("sbx");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome::of(output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr), words.join(" "))
}

#[test]
fn clocks_are_moved() {
    let uptime = "cut -d. -f1 /proc/uptime";
    let now: i64 = plain().sh(uptime).run().exits(0).stdout.trim().parse().expect("seconds");
    let moved = sandbox(&["--time-offset", "monotonic=+5,boottime=+1000000"]).sh(uptime).run().exits(0);
    let moved: i64 = moved.stdout.trim().parse().expect("seconds");
    assert!((1_000_000..1_000_100).contains(&(moved - now)), "{now} {moved}");
    prints(
        &["--time-offset", "monotonic=+5,boottime=-1"],
        "cat /proc/self/timens_offsets | tr -s ' '",
        "monotonic 5 0\nboottime -1 0",
    );
}

#[test]
fn the_process_is_as_was_asked_for() {
    prints(&["--nice", "7"], "cut -d' ' -f19 /proc/self/stat", "7");
    prints(&["--oom-score-adj", "321"], "cat /proc/self/oom_score_adj", "321");
    prints(&["--umask", "027"], "umask; touch /x; stat -c %a /x", "0027\n640");
    prints(&[], "umask", "0022");
    let args = sandbox(&["--argv0", "another name"]).probe("self").sees()["args"].clone();
    assert_eq!(args, serde_json::json!(["another name", "self"]));
    sandbox(&["--nice", "20"]).command(&["true"]).run().refused();
    sandbox(&["--umask", "8"]).command(&["true"]).run().refused();
}

#[test]
fn hosts_and_kernel_settings_are_its_own() {
    let hosts = ["--add-host", "one.test:192.0.2.1", "--add-host", "six:[2001:db8::1]"];
    prints(&hosts, "grep -e test -e six$ /etc/hosts", "192.0.2.1\tone.test\n2001:db8::1\tsix");
    let settings =
        ["--sysctl", "net.ipv4.ip_forward=1", "--sysctl", "kernel.shmmni=17", "--sysctl", "fs.mqueue.msg_max=33"];
    let read = "cd /proc/sys; cat net/ipv4/ip_forward kernel/shmmni fs/mqueue/msg_max";
    prints(&settings, read, "1\n17\n33");
    let before = fs::read_to_string("/proc/sys/kernel/shmmni").expect("a setting of the host");
    assert_ne!(before.trim(), "17");
    sandbox(&["--sysctl", "kernel.hostname=x"]).command(&["true"]).run().refused().says("kernel.hostname");
}

#[test]
fn labels_stand_in_the_record_while_it_runs() {
    let scratch = Scratch::new();
    let state = scratch.join("state");
    let mut running =
        sandbox(&["--upper", "tmpfs", "--name", "labelled", "--label", "team=blue", "--label", "a=b=c", "--state"])
            .option(&state)
            .sh("read wait")
            .start();
    let record = loop {
        let text = fs::read_to_string(state.join("labelled/record.json")).unwrap_or_default();
        if let Ok(record) = serde_json::from_str::<serde_json::Value>(&text) {
            break record;
        }
        std::thread::yield_now();
    };
    assert_eq!(record["labels"], serde_json::json!({ "team": "blue", "a": "b=c" }));
    running.stdin = None;
    running.wait();
    assert!(!state.join("labelled").exists());
}

#[test]
fn verbose_prints_each_step_of_the_plan() {
    let options = ["--upper", "tmpfs", "--name", "told", "-T"];
    let plan = sandbox(&options).option("--dry-run").command(&["true"]).run().exits(0).stdout;
    let said = sandbox(&options).option("--verbose").command(&["true"]).run().exits(0).stderr;
    for line in plan.lines() {
        assert!(said.lines().any(|one| one.strip_prefix("sbx: ") == Some(line)), "{line}\n{said}");
    }
    assert_eq!(said.lines().count(), plan.lines().count());
}

#[test]
fn flags_may_be_given_twice() {
    for options in [&["-q", "-q"][..], &["-T", "-T"], &["-T", "-t", "-T"], &["--read-only", "--read-only"], &["-qq"]] {
        sandbox(options).command(&["true"]).run().exits(0).prints("");
    }
    sandbox(&["-T", "-t"]).sh("tty >/dev/null && echo own").run().exits(0).prints("own");
}

#[test]
fn a_variable_on_the_command_line_wins_over_a_file() {
    let scratch = Scratch::new();
    let files = ["A=1\nB=1\nC=1\nD", "C=2"].map(|text| scratch.file(format!("env{}", text.len()), text));
    let asked = sandbox(&["-e", "A", "-e", "B=2"]).env("A", "callers").env("C", "no").env("D", "passed");
    let asked = files.iter().fold(asked, |asked, file| asked.option("--env-file").option(file));
    asked.sh("echo $A $B $C $D").run().exits(0).prints("callers 2 2 passed");
}

#[test]
fn a_file_of_variables_may_be_a_pipe_and_is_text() {
    // As a shell makes `<(…)`: a descriptor by its path, whose writer may be late.
    let late = ["sh", "-c", "(sleep 0.2; echo A=late) | { exec 3<&0 </dev/null; exec \"$@\"; }", "sh"];
    let run = |file: &std::path::Path| sandbox(&["--env-file"]).option(file).sh("echo A is $A");
    run("/dev/fd/3".as_ref()).under(&late).run().exits(0).prints("A is late");
    run("/dev/stdin".as_ref()).stdin(b"A=1").run().exits(0).prints("A is 1");
    run("/dev/null".as_ref()).run().exits(0).prints("A is");
    let scratch = Scratch::new();
    for (content, why) in
        [(&b"A=1\0"[..], "NUL byte"), (b"A=\xff", "not UTF-8, from byte 2"), (&[b'\n'; (1 << 20) + 1], "1 MiB")]
    {
        fs::write(scratch.join("env"), content).expect("write");
        run(&scratch.join("env")).run().refused().says(why).says("try: ");
    }
    fs::write(scratch.join("env"), [&[b'\n'; (1 << 20) - 3][..], b"A=2"].concat()).expect("write");
    run(&scratch.join("env")).run().exits(0).prints("A is 2");
}

#[test]
fn low_hard_limits_of_the_caller_are_kept_to() {
    if !has("prlimit") {
        return;
    }
    let under = |limit: &str, options: &[&str]| sandbox(options).under(&["prlimit", limit]);
    let shown = "grep 'Max processes' /proc/self/limits | tr -s ' ' | cut -d' ' -f3,4";
    under("--nproc=300:300", &[]).sh(shown).run().exits(0).prints("300 300");
    under("--nproc=300:300", &["--pids", "99"]).sh(shown).run().exits(0).prints("100 100");
    let more = under("--nproc=300:300", &["--pids", "300"]).command(&["true"]).run().refused();
    more.says("--pids \"300\"").says("hard limit of 300").says("try: --pids 299");
    if has("subids") {
        under("--nproc=300:300", &["--map", "full"]).sh(shown).run().exits(0).prints("300 300");
    }
    let files = under("--nofile=64:128", &["--rlimit", "nofile=256"]).command(&["true"]).run().refused();
    files.says("hard limit of 128").says("--rlimit nofile=128:128");
    under("--nofile=64:128", &["--rlimit", "nofile=100:128"]).sh("ulimit -n").run().exits(0).prints("100");
    sandbox(&["--pids", "10", "--rlimit", "nproc=20"]).command(&["true"]).run().refused().says("nproc");
    let piped = fs::read_to_string("/proc/sys/kernel/core_pattern").is_ok_and(|text| text.starts_with('|'));
    let closed = under("--core=0:0", &[]).command(&["true"]).run();
    if piped {
        closed.refused().says("core_pattern");
        under("--core=0:0", &["--best-effort"]).command(&["true"]).run().exits(0).says("skipped: limit core");
        under("--core=0:0", &["--rlimit", "core=0"]).command(&["true"]).run().exits(0);
    } else {
        closed.exits(0);
    }
}

/// Each holds for the program alone: what sbx itself has still to do would not fit.
#[test]
fn resource_limits_are_set_however_low() {
    for value in ["0", "1", "3", "10", "40"] {
        for options in [&[][..], &["--no-init"], &["--seccomp", "off"], &["--cap-drop", "all"]] {
            let limit = format!("nofile={value}");
            sandbox(&["--rlimit", &limit]).options(options).sh("ulimit -n").run().exits(0).prints(value);
        }
        for (name, row) in
            [("nproc", "Max processes"), ("sigpending", "Max pending signals"), ("locks", "Max file locks")]
        {
            let asked = sandbox(&["--rlimit", &format!("{name}={value}")]);
            let limits = asked.command(&["cat", "/proc/self/limits"]).run().exits(0).stdout;
            let set = limits.lines().find_map(|line| line.strip_prefix(row)).unwrap_or_default();
            assert!(set.split_whitespace().take(2).eq([value, value]), "{name}={value}: {limits}");
        }
    }
    sandbox(&["--rlimit", "nproc=1"]).sh("(true) && echo forked").run().exits(2).says("can't fork");
    for limit in ["as=1048576", "data=0"] {
        let killed = sandbox(&["--rlimit", limit]).command(&["true"]).run();
        assert!([128 + 9, 128 + 11].contains(&killed.status), "{limit}: {killed:?}");
        killed.says(&format!("--rlimit {limit} may be too low"));
    }
    sandbox(&["--rlimit", "fsize=0"]).sh("echo x >/x").run().exits(128 + 25).says("--rlimit fsize=0 may be too low");
    assert_eq!(sandbox(&["--rlimit", "fsize=9"]).sh("kill -SEGV $$").run().exits(128 + 11).stderr, "");
}

#[test]
fn a_failed_start_leaves_no_pid_file() {
    let scratch = Scratch::new();
    let file = scratch.join("pid");
    let outcome = sandbox(&["--state", "/dev/null/state", "--pid-file"]).option(&file).command(&["true"]).run();
    outcome.refused();
    assert!(!file.exists(), "an empty pid file was left");
}

#[test]
fn a_mask_that_cannot_be_made_is_an_error() {
    let refused = sandbox(&["--net", "host", "--mask", "/sys/kernel"]).command(&["true"]).run().refused();
    refused.says("--mask \"/sys/kernel\"").says("/sys is empty");
    prints(&["--mask", "/sys/kernel"], "ls -A /sys/kernel", "");
    sandbox(&["--mask", "/sys/no/such"]).command(&["true"]).run().refused().says("/sys/no/such");
    if has("userns") {
        // Where the outer /sys is covered, no fresh one can be mounted.
        let covered = ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs t /sys/kernel && exec \"$@\"", "sh"];
        let skipping = |options: &[&str]| sandbox(&["--best-effort"]).options(options).under(&covered);
        skipping(&[]).sh("ls -A /sys").run().exits(0).prints("").says("skipped: mount a fresh /sys");
        skipping(&["--mask", "/sys/kernel"]).command(&["true"]).run().exits(125).says("--mask \"/sys/kernel\"");
    }
}

#[test]
fn nothing_is_mounted_on_dev_itself() {
    let scratch = Scratch::new();
    let on = |option: &str, value: &str| sandbox(&[option, value]).command(&["true"]).run();
    on("--tmpfs", "/dev").refused().says("/dev");
    on("-v", &format!("{}:/dev/", scratch.path().display())).refused().says("/dev");
    on("--mount", "type=tmpfs,dst=/dev").refused().says("/dev");
    on("--tmpfs", "/dev/below").exits(0);
}

#[test]
fn a_death_by_sigsys_is_not_blamed_on_a_filter_that_is_not_there() {
    let kill = "kill -31 $$";
    let free = sandbox(&["--seccomp", "off"]).sh(kill).run().exits(128 + 31);
    assert_eq!(free.stderr, "");
    plain().sh(kill).run().exits(128 + 31).says("may have made");
}

#[test]
fn man_pages_and_completions_are_written() {
    let scratch = Scratch::new();
    let dir = scratch.path().to_str().expect("UTF-8");
    told(&["man", dir]).exits(0).prints("");
    for (page, title) in [("sbx.1", ".TH SBX 1"), ("sbx-policy.5", ".TH SBX-POLICY 5")] {
        assert!(fs::read_to_string(scratch.join(page)).is_ok_and(|text| text.contains(title)), "{page}");
    }
    told(&["man", "/no/such"]).exits(125).says("/no/such/sbx.1").says("try:");
    told(&["man"]).exits(125).says("one directory");
    for (shell, words) in
        [("bash", "complete"), ("zsh", "#compdef sbx"), ("fish", "complete -c sbx"), ("elvish", "edit:")]
    {
        let text = told(&["completions", shell]).exits(0).stdout;
        assert!(text.contains(words) && text.contains("read-only"), "{shell}");
    }
    let bash = told(&["completions", "bash"]).exits(0).stdout;
    for words in ["none host", "auto kernel fuse", "ipc uts time cgroup"] {
        assert!(bash.contains(&format!("-W \"{words}\"")), "{words} are not offered");
    }
    assert!(!bash.contains("-W \"default off\""), "a policy may be a file too");
    let help = told(&["run", "--help"]).exits(0).stdout;
    assert!(help.contains("<ROOTFS>") && !help.contains("[ROOTFS]") && !help.contains("possible values"), "{help}");
    told(&["completions", "csh"]).exits(125).says("bash");
}

/// A PATH with an sbx that tells of two sandboxes, and else what it was told.
fn path_with_two(scratch: &Scratch) -> String {
    let script = "#!/bin/sh\n[ \"$1\" = ps ] || exec echo \"got: $*\"\n\
        echo 'NAME  STATE'; echo 'web-1  running'; echo 'db  exited (0)'\n";
    let bin = scratch.file("bin/sbx", script);
    fs::set_permissions(&bin, fs::Permissions::from_mode(0o755)).expect("chmod");
    format!("{}:/usr/bin:/bin", scratch.join("bin").display())
}

#[test]
fn fish_completes_names() {
    if lacks(&["fish"]) {
        return;
    }
    let scratch = Scratch::new();
    let path = path_with_two(&scratch);
    let script = scratch.file("sbx.fish", &told(&["completions", "fish"]).exits(0).stdout);
    let offered = |line: &str| {
        let ask = format!("source {}; complete -C '{line}'", script.display());
        let mut fish = Command::new("fish");
        fish.args(["--no-config", "-c", &ask]).env("PATH", &path).env("HOME", scratch.path());
        let text = String::from_utf8_lossy(&fish.output().expect("fish").stdout).into_owned();
        text.lines().map(|line| line.split('\t').next().unwrap_or("").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(offered("sbx stop "), ["db", "web-1"]);
    assert_eq!(offered("sbx stop web-1 d"), ["db"]);
    assert_eq!(offered("sbx exec w"), ["web-1"]);
    assert!(offered("sbx exec web-1 w").is_empty());
    assert!(!offered("sbx run w").contains(&"web-1".to_owned()));
}

/// On a terminal of its own, for zsh completes nowhere else.
#[test]
fn zsh_completes_names() {
    if lacks(&["zsh"]) {
        return;
    }
    let scratch = Scratch::new();
    let path = path_with_two(&scratch);
    scratch.file("_sbx", &told(&["completions", "zsh"]).exits(0).stdout);
    let ask = "zmodload zsh/zpty; zpty z zsh -f -i
        zpty -w z \"PS1=; fpath=($1 \\$fpath); autoload -Uz compinit; compinit -u -D; echo re''ady\"
        zpty -r -m z line '*ready*'
        zpty -w -n z \"$2\"$'\\t\\n'; zpty -w z \"echo do''ne\"
        zpty -r -m z line '*done*'; print -r -- \"$line\"";
    let typed = |line: &str| {
        let mut zsh = Command::new("timeout");
        zsh.args(["60", "zsh", "-f", "-c", ask, "zsh"]).arg(scratch.path()).arg(line);
        let output = zsh.env("PATH", &path).env("HOME", scratch.path()).env("TERM", "xterm").output();
        String::from_utf8_lossy(&output.expect("zsh").stdout).into_owned()
    };
    for (line, got) in
        [("sbx stop w", "got: stop web-1"), ("sbx exec d", "got: exec db"), ("sbx run w", "got: run w\r")]
    {
        assert!(typed(line).contains(got), "{line}: {}", typed(line));
    }
}

#[test]
fn completions_know_each_command_its_options_and_names() {
    let bash = told(&["completions", "bash"]).exits(0).stdout;
    let commands = [
        "ps", "inspect", "stats", "logs", "attach", "diff", "wait", "stop", "kill", "pause", "resume", "rm", "prune",
        "check", "exec",
    ];
    for command in commands {
        let help = told(&[command, "--help"]).exits(0).stdout;
        let known = bash.split(&format!("sbx__subcmd__{command})\n            opts=\"")).nth(1);
        let known = known.and_then(|rest| rest.split('"').next()).unwrap_or_else(|| panic!("{command} is not known"));
        let listed = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
        let options = listed.filter_map(|line| line.split([' ', ',', '=']).find(|word| word.starts_with("--")));
        for option in options.filter(|option| !["--help", "--color", "--quiet"].contains(option)) {
            assert!(known.split(' ').any(|word| word == option), "{command}: {option} is not in {known}");
        }
    }
    // As bash itself asks.
    let scratch = Scratch::new();
    let path = path_with_two(&scratch);
    let script = scratch.file("sbx.bash", &bash);
    let offered = |line: &str| {
        let ask =
            "source \"$0\"; COMP_WORDS=($1); [[ $1 == *\\  ]] && COMP_WORDS+=(''); COMP_CWORD=$((${#COMP_WORDS[@]}-1));
            _sbx_named sbx \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"; echo \"${COMPREPLY[*]}\"";
        let output = Command::new("bash").args(["-c", ask]).arg(&script).arg(line).env("PATH", &path).output();
        String::from_utf8_lossy(&output.expect("bash").stdout).trim().to_owned()
    };
    assert_eq!(offered("sbx stop "), "web-1 db");
    assert_eq!(offered("sbx stop web-1 d"), "db");
    assert_eq!(offered("sbx exec w"), "web-1");
    assert!(offered("sbx stop --").contains("--signal"));
    assert!(offered("sbx st").contains("stop"));
    assert!(!offered("sbx run ").contains("web-1"));
}
