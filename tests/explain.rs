//! `--explain`: what was refused, by which rule of which file and line, and that what it says would allow it does.

mod common;

use common::{Outcome, Sandbox, Scratch, has, rootfs, sandbox, volume};
use serde_json::Value;
use std::time::{Duration, Instant};

/// What a run is: a system call by number and arguments, or a script of a shell.
#[derive(Clone, Copy)]
enum Try {
    Call(i64, &'static str),
    Script(&'static str),
}

use Try::{Call, Script};

/// Runs it; the answer of a call is its errno, of a script its status.
fn run(sandbox: Sandbox, what: Try) -> (i64, Outcome) {
    match what {
        Call(number, args) => {
            let text = format!("{number} {args}").trim_end().to_owned();
            let outcome = sandbox.probe_with("calls", &[&text]).run().exits(0);
            (outcome.facts()[&text].as_i64().expect("an errno"), outcome)
        }
        Script(script) => {
            let outcome = sandbox.sh(script).run();
            (outcome.status.into(), outcome)
        }
    }
}

/// What was denied, as the status lines have it.
fn denied(outcome: &Outcome) -> Vec<Value> {
    let lines = outcome.stderr.lines().filter(|line| line.starts_with('{'));
    let lines = lines.map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.filter_map(|line| line.get("denied").cloned()).collect()
}

/// The words of an option as a shell takes them.
fn words(option: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in option.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words
}

/// What is held against a line.
struct Row<'a> {
    options: &'a [&'a str],
    what: Try,
    call: &'a str,
    object: &'a str,
    rule: &'a str,
    origin: Option<&'a str>,
}

const DEFAULT: &str = "the default policy does not allow it";
const ARGUMENTS: &str = "the default policy allows other arguments of it only";

/// One row: what it says, and that with the option the very thing is refused no more.
fn holds(make: &dyn Fn() -> Sandbox, row: &Row<'_>) {
    let asked =
        |more: &[String]| make().options(&["--explain=files", "--status-fd", "2"]).options(row.options).options(more);
    let (before, outcome) = run(asked(&[]), row.what);
    let all = denied(&outcome);
    let found = all
        .iter()
        .find(|one| one["call"] == row.call && one["object"].as_str().is_some_and(|o| o.contains(row.object)));
    let found = found.unwrap_or_else(|| panic!("{} {} among {all:?}\n{outcome:?}", row.call, row.object));
    assert_eq!(found["rule"].as_str(), Some(row.rule), "{found}");
    match (row.origin, found["origin"].as_str()) {
        (None, None) => {}
        (Some(wanted), Some(origin)) if origin.ends_with(wanted) => {}
        (wanted, origin) => panic!("{wanted:?} and not {origin:?}: {found}"),
    }
    let line =
        format!("{}: {}", found["call"].as_str().unwrap_or_default(), found["errno"].as_str().unwrap_or_default());
    assert!(outcome.stderr.contains("sbx: denied: "), "{line}: {}", outcome.stderr);
    assert_ne!(before, 0, "{found}");
    let Some(option) = found["option"].as_str() else {
        assert!(found["note"].is_string(), "neither an option nor a reason: {found}");
        return;
    };
    let (after, outcome) = run(asked(&words(option)), row.what);
    assert_ne!(after, before, "{option} changes nothing: {outcome:?}");
    let still = denied(&outcome);
    assert!(
        still.iter().all(|one| (&one["call"], &one["object"]) != (&found["call"], &found["object"])),
        "{option}: {still:?}"
    );
}

fn default_row(what: Try, call: &str) -> Row<'_> {
    Row { options: &[], what, call, object: "", rule: DEFAULT, origin: None }
}

#[test]
fn calls_that_the_default_policy_denies() {
    let keyring = "0 0xfffffffd 0";
    for (number, args, call) in [
        (libc::SYS_keyctl, keyring, "keyctl"),
        (libc::SYS_add_key, "s:user s:x s:y 1 0xfffffffd", "add_key"),
        (libc::SYS_request_key, "s:user s:x s:y 0xfffffffd", "request_key"),
        (libc::SYS_io_uring_setup, "1 p", "io_uring_setup"),
        (libc::SYS_io_uring_enter, "99 0 0 0 0 0", "io_uring_enter"),
        (libc::SYS_userfaultfd, "1", "userfaultfd"),
        (libc::SYS_vmsplice, "99 p 1 0", "vmsplice"),
        (libc::SYS_name_to_handle_at, "99 s:x p p 0", "name_to_handle_at"),
        (libc::SYS_move_pages, "0 0 p p p 0", "move_pages"),
        (libc::SYS_mbind, "0 4096 0 0 0 0", "mbind"),
        (libc::SYS_get_mempolicy, "0 0 0 0 0", "get_mempolicy"),
        (libc::SYS_kcmp, "99999 99999 0 0 0", "kcmp"),
        (libc::SYS_process_madvise, "99 p 1 4 0", "process_madvise"),
        (libc::SYS_fanotify_init, "0x200 0", "fanotify_init"),
        (libc::SYS_memfd_secret, "0", "memfd_secret"),
        (libc::SYS_pidfd_getfd, "99 0 0", "pidfd_getfd"),
        (libc::SYS_umount2, "s:/none 0", "umount2"),
        (libc::SYS_mount, "s:t s:/mnt s:tmpfs 0 0", "mount"),
        (libc::SYS_fsopen, "s:tmpfs 0", "fsopen"),
        (libc::SYS_sethostname, "s:x 1", "sethostname"),
        (libc::SYS_setdomainname, "s:x 1", "setdomainname"),
        (libc::SYS_unshare, "0x10000000", "unshare"),
        (libc::SYS_unshare, "0x04000000", "unshare"),
        // The kernel itself would refuse these, and the line says so.
        (libc::SYS_kexec_load, "0 0 0 0", "kexec_load"),
        (libc::SYS_swapon, "s:/none 0", "swapon"),
        (libc::SYS_settimeofday, "p 0", "settimeofday"),
        (libc::SYS_acct, "s:/none", "acct"),
        (libc::SYS_syslog, "3 p 0", "syslog"),
    ] {
        holds(&|| sandbox::<&str>(&[]), &default_row(Call(number, args), call));
    }
}

#[test]
fn arguments_that_the_default_policy_denies() {
    for (number, args, call, object) in [
        (libc::SYS_socket, "38 5 0", "socket", "AF_ALG"),
        (libc::SYS_socket, "40 1 0", "socket", "AF_VSOCK"),
        (libc::SYS_socket, "16 3 15", "socket", "AF_NETLINK, protocol 15"),
        (libc::SYS_personality, "0x0040000", "personality", "0x40000"),
        (libc::SYS_clone, "0x10000011 0 0 0 0", "clone", "user"),
        (libc::SYS_ioctl, "0 0x5412 s:x", "ioctl", "TIOCSTI"),
        (libc::SYS_mknod, "s:/tmp/dev 0x2180 0x103", "mknod", "/tmp/dev"),
    ] {
        let row = Row { object, rule: ARGUMENTS, ..default_row(Call(number, args), call) };
        holds(&|| sandbox::<&str>(&[]), &row);
    }
}

#[test]
fn what_a_file_denies_is_told_with_its_line() {
    let scratch = Scratch::new();
    let policy = |name: &str, text: &str| scratch.file(name, text).display().to_string();
    let list = policy("list.toml", "[seccomp]\n\ndeny = [\n  \"getcwd\",\n  \"chdir\",\n]\n");
    let group = policy("group.toml", "[seccomp]\ndeny = [\"@keyring\"]\n");
    let rule = policy(
        "rule.toml",
        "about = \"x\"\n[[seccomp.rule]]\ncalls = [\"socket\"]\nargs = [{ index = 0, value = 10 }]\nerrno = \"EACCES\"\n",
    );
    let json = policy(
        "profile.json",
        "{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"getcwd\"],\"action\":\"SCMP_ACT_ERRNO\"}]}",
    );
    let named = "[seccomp] deny names it";
    for (options, what, call, rule, origin) in [
        (["--policy", list.as_str()], Call(libc::SYS_chdir, "s:/"), "chdir", named, "list.toml:5"),
        (["--policy", group.as_str()], Call(libc::SYS_keyctl, "0 0 0"), "keyctl", named, "group.toml:2"),
        (
            ["--policy", rule.as_str()],
            Call(libc::SYS_socket, "10 1 0"),
            "socket",
            "a [[seccomp.rule]] denies it",
            "rule.toml:2",
        ),
        (
            ["--seccomp", json.as_str()],
            Call(libc::SYS_getcwd, "p 99"),
            "getcwd",
            "the profile does not allow it",
            "profile.json",
        ),
    ] {
        let row = Row { options: &options, what, call, object: "", rule, origin: Some(origin) };
        holds(&|| sandbox::<&str>(&[]), &row);
    }
}

#[test]
fn what_the_network_and_capabilities_lack_is_told() {
    let offline = "there is no network but the sandbox's own loopback";
    for (options, what, call, object, rule) in [
        (&[][..], Script("nc -w 1 192.0.2.1 80 </dev/null"), "connect", "192.0.2.1:80", offline),
        (&[], Script("nslookup example.com 192.0.2.53"), "connect", "192.0.2.53:53", offline),
        (&[], Script("nslookup example.com"), "connect", "name server 127.0.0.1:53", offline),
        (&[], Call(libc::SYS_socket, "2 3 1"), "socket", "a raw socket", "it needs CAP_NET_RAW"),
        (&["--cap-drop", "SYS_CHROOT"], Call(libc::SYS_chroot, "s:/tmp"), "chroot", "/tmp", "it needs CAP_SYS_CHROOT"),
        (
            &["--cap-drop", "NET_BIND_SERVICE"],
            Script("nc -l -p 80 -w 1 </dev/null"),
            "bind",
            "port 80",
            "it needs CAP_NET_BIND_SERVICE",
        ),
    ] {
        let outcome = run(sandbox(&["--explain", "--status-fd", "2"]).options(options), what).1;
        let all = denied(&outcome);
        let found = all.iter().find(|one| one["call"] == call && one["object"] == object);
        let found = found.unwrap_or_else(|| panic!("{call} {object} among {all:?}\n{outcome:?}"));
        assert_eq!(found["rule"], rule);
        // What the command line itself takes away it gives back by saying nothing.
        let Some(option) = found["option"].as_str() else {
            assert_eq!(found["note"], "leave out --cap-drop");
            continue;
        };
        // What the host's network answers is not ours to test.
        if option != "--net host" {
            let more = words(option);
            let outcome = run(sandbox(&["--explain", "--status-fd", "2"]).options(options).options(&more), what).1;
            assert_eq!(denied(&outcome), Vec::<Value>::new(), "{option}");
        }
    }
}

#[test]
fn files_that_are_hidden_or_read_only_are_told_by_path() {
    let scratch = Scratch::new();
    let place = scratch.dir("place");
    scratch.file("place/file", "x");
    scratch.file("place/tool", "#!/bin/sh\ntrue\n");
    let _ = std::fs::set_permissions(scratch.join("place/tool"), std::os::unix::fs::PermissionsExt::from_mode(0o755));
    let quoted = format!("{:?}", place.display().to_string());
    let read_only = scratch.file("ro.toml", &format!("\n[[mount]]\nsrc = {quoted}\ndst = \"/place\"\n"));
    let no_exec = scratch.file("noexec.toml", &format!("[[mount]]\nsrc = {quoted}\ndst = \"/place\"\nexec = false\n"));
    let (read_only, no_exec) = (read_only.display().to_string(), no_exec.display().to_string());
    let mounted = "/place is mounted read-only";
    for (options, what, call, object, rule, origin) in [
        (["--policy", &read_only], Script("echo x >/place/new"), "openat", "/place/new", mounted, Some("ro.toml:2")),
        (
            ["--policy", &read_only],
            Script("cd /place && rm -f file && test ! -e file"),
            "unlink",
            "/place/file",
            mounted,
            Some("ro.toml:2"),
        ),
        (["--policy", &read_only], Script("mkdir /place/d"), "mkdir", "/place/d", mounted, Some("ro.toml:2")),
        (
            ["--policy", &no_exec],
            Script("/place/tool"),
            "execve",
            "/place/tool",
            "/place is mounted noexec",
            Some("noexec.toml:1"),
        ),
        (
            ["--read-only", "--drop-nothing"],
            Script("echo x >/etc/new"),
            "openat",
            "/etc/new",
            "the root is read-only (--read-only)",
            None,
        ),
    ] {
        let options: Vec<&str> = options.into_iter().filter(|word| *word != "--drop-nothing").collect();
        // A file that a row removes is there for each.
        let make = || {
            scratch.file("place/file", "x");
            sandbox::<&str>(&[])
        };
        holds(&make, &Row { options: &options, what, call, object, rule, origin });
    }
}

#[test]
fn what_is_hidden_is_told_apart_from_what_is_not_there() {
    let scratch = Scratch::new();
    let home = scratch.dir("home");
    scratch.file("home/.secret", "s");
    let secret = home.join(".secret").display().to_string();
    let policy = scratch
        .file("hide.toml", "extends = [\"build\"]\n\n[hide]\npaths = [\n  \"/usr/share/doc\",\n  \"~/.secret\",\n]\n");
    let asked = |more: &[String]| {
        let options = ["--explain=files", "--status-fd", "2", "--policy"];
        let project = scratch.dir("project");
        sandbox(&options).option(&policy).options(more).root("@host").cwd(project).env("HOME", &home)
    };
    let script = format!("cat {secret} {}/.none", home.display());
    let outcome = asked(&[]).sh(&script).run();
    let all = denied(&outcome);
    let objects: Vec<&str> = all.iter().filter_map(|one| one["object"].as_str()).collect();
    assert!(objects.contains(&secret.as_str()) && !objects.iter().any(|o| o.contains(".none")), "{outcome:?}");
    let found = all.iter().find(|one| one["object"] == secret.as_str()).expect("the secret");
    assert_eq!(found["rule"], "[hide] paths hides it");
    assert!(found["origin"].as_str().is_some_and(|origin| origin.ends_with("hide.toml:6")), "{found}");
    let option = found["option"].as_str().expect("an option");
    assert!(asked(&words(option)).sh(&format!("cat {secret}")).run().exits(0).stdout.contains('s'));
}

#[test]
fn a_socket_of_the_host_is_named() {
    let scratch = Scratch::new();
    let socket = scratch.join("agent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let text = socket.display().to_string();
    let asked = |more: &[String]| {
        let python = format!("import socket; socket.socket(1,1,0).connect({text:?})");
        sandbox(&["--explain=files", "--status-fd", "2"])
            .options(more)
            .root("@host")
            .cwd("/")
            .command(&["python3", "-c", &python])
    };
    let outcome = asked(&[]).run();
    let all = denied(&outcome);
    let found = all.iter().find(|one| one["call"] == "connect").unwrap_or_else(|| panic!("{outcome:?}"));
    assert_eq!(found["object"], text.as_str());
    asked(&words(found["option"].as_str().expect("an option"))).run().exits(0);
}

#[test]
fn set_id_bits_and_watched_limits_are_told() {
    let scratch = Scratch::new();
    let file = scratch.file("file", "x");
    let options = ["-v".to_owned(), format!("{}:/place", scratch.path().display())];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let rule = "set-id bits may not be set where a host directory is writable";
    let row = Row {
        options: &options,
        what: Script("chmod 4755 /place/file"),
        call: "chmod",
        object: "/place/file",
        rule,
        origin: None,
    };
    let make = || {
        let _ = std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644));
        sandbox::<&str>(&[])
    };
    holds(&make, &row);
    let watched = sandbox(&["--explain", "--status-fd", "2", "--limits", "watch", "--mem", "64M"]);
    let outcome = run(watched, Call(libc::SYS_memfd_create, "s:x 0")).1;
    let all = denied(&outcome);
    assert_eq!(all[0]["rule"], "a memory limit by watching cannot see such memory", "{all:?}");
    assert_eq!(all[0]["option"], "--limits cgroup");
}

#[test]
fn the_last_run_is_told_again() {
    let scratch = Scratch::new();
    let state = scratch.join("state").display().to_string();
    let outcome =
        sandbox(&["--state", &state, "--name", "n", "--explain"]).sh("hostname x; hostname x; exit 7").run().exits(7);
    let said: Vec<&str> = outcome.stderr.lines().filter_map(|line| line.strip_prefix("sbx: ")).collect();
    assert!(said.iter().any(|line| line.contains("sethostname x: EPERM (2 times)")), "{outcome:?}");
    let why = |words: &[&str]| {
        let output = std::process::Command::new(common::sbx()).args(["--state", &state, "why"]).args(words).output();
        String::from_utf8(output.expect("sbx").stdout).expect("UTF-8")
    };
    assert_eq!(why(&[]).trim_end(), said.last().copied().unwrap_or_default());
    assert_eq!(why(&["n"]), why(&[]));
    let json: Value = serde_json::from_str(&why(&["--json"])).expect("JSON");
    assert_eq!((&json[0]["call"], &json[0]["count"]), (&"sethostname".into(), &2.into()));
}

#[test]
fn a_mistake_is_one_clear_error() {
    for word in ["--explain=learn", "--explain=file"] {
        sandbox(&[word]).sh("true").run().refused().says("--explain=files");
    }
    sandbox(&["--set", "seccomp.alow = []"]).sh("true").run().refused().says("did you mean allow");
    sandbox(&["--set", "extends = [\"build\"]"]).sh("true").run().refused().says("--policy");
    let scratch = Scratch::new();
    let state = scratch.join("state").display().to_string();
    for words in [
        &["why"][..],
        &["why", "nobody"],
        &["check", "--audit", "nobody"],
        &["apply", "nobody"],
        &["discard", "nobody"],
    ] {
        let output = std::process::Command::new(common::sbx()).args(["--state", &state]).args(words).output();
        let output = output.expect("sbx");
        assert_eq!(output.status.code(), Some(1), "{words:?} {output:?}");
    }
}

#[test]
fn without_it_a_failure_has_one_hint() {
    let hints = |outcome: &Outcome| outcome.stderr.lines().filter(|line| line.contains("--explain")).count();
    for (script, wanted) in [("exit 1", 1), ("exit 126", 1), ("exit 127", 1), ("exit 3", 0), ("true", 0)] {
        assert_eq!(hints(&common::plain().sh(script).run()), wanted, "{script}");
    }
    assert_eq!(hints(&sandbox(&["-q"]).sh("exit 1").run()), 0);
    assert_eq!(hints(&sandbox(&["--explain"]).sh("exit 1").run()), 0);
}

fn signal(signal: &str, pid: &str) {
    assert!(std::process::Command::new("kill").args([signal, pid]).status().is_ok_and(|status| status.success()));
}

/// Resident kilobytes of every process of this name whose parent is that one.
fn resident(parent: u32, name: &str) -> Option<u64> {
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
        let field =
            |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim).map(str::to_owned);
        let ours = field("Name:")? == name && field("PPid:")? == parent.to_string();
        ours.then(|| field("VmRSS:")?.split(' ').next()?.parse().ok())?
    })
}

#[test]
fn a_flood_of_denied_calls_costs_no_memory_and_sbx_ends_at_once() {
    let script = "i=0; while [ $i -lt 40000 ]; do echo $i; hostname x; i=$((i+1)); done 2>/dev/null";
    let running = sandbox(&["--explain"]).sh(script).start();
    let begun = Instant::now();
    let mut first = None;
    while first.is_none() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(500));
        first = resident(running.pid(), "sbx-explain");
    }
    std::thread::sleep(Duration::from_secs(4));
    let (first, last) = (first.expect("who answers"), resident(running.pid(), "sbx-explain").expect("it lives"));
    assert!(last <= first + 256, "{first} and then {last} KiB");
    signal("-TERM", &running.pid().to_string());
    let asked = Instant::now();
    running.wait();
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}

#[test]
fn whoever_is_killed_nothing_hangs() {
    // The program in the middle of many.
    let script = "(while :; do hostname x; done) 2>/dev/null & sleep 0.3; kill -9 $!; exit 4";
    sandbox(&["--explain"]).sh(script).run().exits(4).says("sethostname x");
    // Who answers: what is denied stays denied, and the run goes on.
    let running = sandbox(&["--explain"]).sh("hostname x; sleep 1; hostname y && echo open; exit 5").start();
    let begun = Instant::now();
    let helper = loop {
        let found = std::fs::read_dir("/proc").expect("/proc").flatten().find_map(|entry| {
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let (name, rest) = (stat.contains("(sbx-explain)"), stat.rsplit(')').next()?.to_owned());
            (name && rest.split_whitespace().nth(1)? == running.pid().to_string()).then(|| entry.file_name())
        });
        if found.is_some() || begun.elapsed() > Duration::from_secs(20) {
            break found;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    signal("-KILL", &helper.expect("who answers").to_string_lossy());
    let outcome = running.wait();
    assert_eq!((outcome.status, outcome.stdout.as_str()), (5, ""), "{outcome:?}");
    // The supervisor: all ends, the one who answers too (tests/run sees whether a process is left).
    let mut running = sandbox(&["--explain"]).sh("while :; do hostname x; done 2>/dev/null").start();
    std::thread::sleep(Duration::from_millis(300));
    running.kill();
}

#[test]
fn where_somebody_listens_already_the_run_goes_on() {
    if !has("tmpfs-xattrs") {
        return;
    }
    let inner = ["/sbx", "run", "--explain", "--state", "/tmp/state", "/inner", "sh", "-c", "hostname x; echo ran"];
    let own = format!("type=bind,src={},dst=/sbx,ro", common::sbx().display());
    let outcome = sandbox(&["--nest", "--explain", "-v"])
        .option(volume(&rootfs(), "/inner:ro"))
        .option("--mount")
        .option(own)
        .command(&inner)
        .run()
        .exits(0);
    assert_eq!(outcome.stdout, "ran\n");
    assert!(outcome.stderr.contains("listened to already"), "{outcome:?}");
}

/// Who is asked can end nobody: where a rule kills, nobody is asked.
#[test]
fn what_a_rule_kills_is_killed_while_somebody_listens() {
    if !has("userns") || !has("tmpfs-xattrs") {
        return;
    }
    let scratch = Scratch::new();
    let policy = scratch.file(
        "kill.toml",
        "[[seccomp.rule]]\ncalls = [\"openat\", \"open\"]\nargs = [{ index = 2, mask = 3, value = 1 }]\naction = \"kill\"\n\
         [[seccomp.rule]]\ncalls = [\"open\"]\nargs = [{ index = 1, mask = 3, value = 1 }]\naction = \"kill\"\n",
    );
    let policy = policy.display().to_string();
    for options in [&[][..], &["--explain"], &["--explain=files"]] {
        let asked = sandbox(options).options(&["--policy", &policy]);
        let ran = asked.sh("echo owned >/tmp/x; cat /tmp/x").run();
        assert!(ran.status == 159 && ran.stdout.is_empty(), "{options:?}: {ran:?}");
    }
}
