//! `sbx policy`, and a project's own policy: what is shown, what is refused, what is accepted.

mod common;

use common::{Sandbox, Scratch, sandbox, sbx};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// `sbx policy` in a directory: its status and what it says on stdout and stderr.
fn policy(scratch: &Scratch, cwd: &Path, words: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(sbx());
    command.arg("policy").args(words).current_dir(cwd).env("HOME", scratch.dir("home")).env_remove("XDG_DATA_HOME");
    let output = command.output().expect("sbx");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("a status"), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_ready_ones_are_listed_and_shown() {
    let scratch = Scratch::new();
    let (status, listed, _) = policy(&scratch, scratch.path(), &["ls"]);
    assert_eq!(status, 0);
    for name in ["default", "strict", "nest", "build", "cargo", "npm", "python", "go", "make", "agent"] {
        assert!(listed.lines().any(|line| line.starts_with(name)), "{name}: {listed}");
        let (status, shown, error) = policy(&scratch, &scratch.dir("p"), &["show", name]);
        assert_eq!(status, 0, "{error}");
        assert!(shown.contains(&format!("# {name}\n")), "{shown}");
        let (status, said, error) = policy(&scratch, &scratch.dir("p"), &["check", name]);
        assert!(status == 0, "{name}: {said}{error}");
    }
    let (_, json, _) = policy(&scratch, scratch.path(), &["ls", "--json"]);
    let all: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(all.as_array().map(Vec::len), Some(10));
    let (status, _, error) = policy(&scratch, scratch.path(), &["show", "crago"]);
    assert!(status == 1 && error.contains("try: cargo"), "{error}");
}

#[test]
fn what_is_shown_names_files_and_lines() {
    let scratch = Scratch::new();
    scratch.file("p/x.toml", "extends = [\"cargo\"]\n\n[limits]\nmem = \"2G\"\n");
    let (status, shown, _) = policy(&scratch, &scratch.dir("p"), &["show", "./x.toml"]);
    assert!(status == 0 && shown.contains("mem = \"2G\"  # ./x.toml:4\n"), "{shown}");
    assert!(shown.contains("mode = \"none\"  # build\n") && shown.contains("[[mount]]  # cargo\n"), "{shown}");
}

#[test]
fn mistakes_are_pointed_at() {
    let scratch = Scratch::new();
    for (text, place) in [
        ("[limits]\npid = 5\n", "x.toml:2:1: unknown key pid; did you mean pids?"),
        ("a\n", "x.toml:1:"),
        ("[caps]\nadd = [\"NET_ADMN\"]\n", "NET_ADMIN"),
        ("[seccomp]\ndeny = [\"execve\"]\n", "execve"),
        ("[seccomp]\ndeny = [\"opennat\"]\n", "openat"),
        ("[[mount]]\nsrc = \"$CARGOHOME\"\n", "$CARGO_HOME"),
        ("extends = [\"./x.toml\"]\n", "a circle"),
    ] {
        scratch.file("p/x.toml", text);
        let (status, said, error) = policy(&scratch, &scratch.dir("p"), &["check", "./x.toml"]);
        assert!(status == 1 && error.contains(place), "{text}: {status} {said} {error}");
    }
    scratch.dir("home/.ssh");
    scratch.file("p/x.toml", "[[mount]]\nsrc = \"~/.ssh\"\n[[mount]]\nsrc = \".\"\naccess = \"rw\"\n");
    let (status, said, _) = policy(&scratch, &scratch.dir("p"), &["check", "./x.toml"]);
    assert_eq!(status, 0);
    assert!(said.contains(".ssh can be read") && said.contains("change its own policy"), "{said}");
    let open = scratch.file("p/open.toml", "about = \"x\"\n");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o666)).expect("a mode");
    let (status, _, error) = policy(&scratch, &scratch.dir("p"), &["check", "./open.toml"]);
    assert!(status == 1 && error.contains("everybody may write to it"), "{error}");
    sandbox(&["--policy"]).option(open).sh("true").run().refused().says("everybody may write to it");
    for words in [&[][..], &["frobnicate"], &["show"], &["ls", "x"]] {
        let (status, _, error) = policy(&scratch, scratch.path(), words);
        assert!(status == 125 && error.contains("try: sbx policy "), "{words:?}: {error}");
    }
}

/// A run in the project, by somebody with a home of their own.
fn run(scratch: &Scratch, script: &str) -> Sandbox {
    sandbox::<&str>(&[]).cwd(scratch.join("p")).env("HOME", scratch.dir("home")).sh(script)
}

#[test]
fn a_projects_own_policy_is_used_when_it_has_been_accepted_and_as_it_was() {
    let scratch = Scratch::new();
    let file = scratch.file("p/.sbx.toml", "extends = [\"default\"]\n[env.set]\nOWN = \"first\"\n");
    let script = "echo ${OWN-none}";
    run(&scratch, script)
        .run()
        .exits(0)
        .prints("none")
        .says(".sbx.toml is not used until you accept it: sbx policy trust");
    let (status, said, error) = policy(&scratch, &scratch.join("p"), &["trust"]);
    assert!(status == 0 && said.ends_with(".sbx.toml: accepted\n"), "{said}{error}");
    assert!(said.contains("  OWN = \"first\"\n"), "what it grants: {said}");
    let trusted = run(&scratch, script).run().exits(0).prints("first");
    assert_eq!(trusted.stderr, "");
    // What is typed is stronger.
    run(&scratch, script).options(&["-e", "OWN=typed"]).run().exits(0).prints("typed");
    // A change is shown, and nothing runs, until it has been accepted too.
    std::fs::write(&file, "extends = [\"default\"]\n[env.set]\nOWN = \"second\"\n").expect("written");
    let refused = run(&scratch, script).run().exits(125);
    assert!(refused.stderr.contains("\n  - OWN = \"first\"\n  + OWN = \"second\""), "{refused:?}");
    assert_eq!(policy(&scratch, &scratch.join("p"), &["trust", "./.sbx.toml"]).0, 0);
    run(&scratch, script).run().exits(0).prints("second");
    // Elsewhere the same text is another's.
    scratch.file("q/.sbx.toml", "extends = [\"default\"]\n[env.set]\nOWN = \"second\"\n");
    run(&scratch, script).cwd(scratch.join("q")).run().exits(0).prints("none").says("not used until");
}

#[test]
fn what_cannot_be_trusted_is_not() {
    let scratch = Scratch::new();
    let file = scratch.file("p/.sbx.toml", "extends = [\"./more.toml\"]\n");
    scratch.file("p/more.toml", "about = \"x\"\n");
    let (status, _, error) = policy(&scratch, &scratch.join("p"), &["trust"]);
    assert!(status == 1 && error.contains("extends ready ones only"), "{error}");
    std::fs::write(&file, "frob = 1\n").expect("written");
    let (status, _, error) = policy(&scratch, &scratch.join("p"), &["trust"]);
    assert!(status == 1 && error.contains(".sbx.toml:1:1"), "{error}");
    std::fs::write(&file, "about = \"x\"\n").expect("written");
    let kept = scratch.dir("home/.local/share/sbx/trust");
    std::fs::set_permissions(&kept, std::fs::Permissions::from_mode(0o777)).expect("a mode");
    let (status, _, error) = policy(&scratch, &scratch.join("p"), &["trust"]);
    assert!(status == 1 && error.contains("others could put in here"), "{error}");
    run(&scratch, "true").run().refused().says("others could put in here");
}

/// Nor what can become something else while it stays the same.
#[test]
fn an_accepted_policy_means_what_it_meant() {
    let scratch = Scratch::new();
    let trust = |dir: &str| policy(&scratch, &scratch.join(dir), &["trust"]);
    scratch.file("secret", "secret");
    let file = scratch.file("p/.sbx.toml", "env.env-file = [\"./e\"]\n");
    assert!(trust("p").2.contains("names no env-file"));
    std::fs::write(&file, "[[mount]]\nsrc = \"./data\"\ndst = \"/data\"\n").expect("written");
    scratch.file("p/data/x", "own");
    assert_eq!(trust("p").0, 0);
    run(&scratch, "cat /data/*").run().exits(0).prints("own");
    std::fs::rename(scratch.join("p/data"), scratch.join("p/d")).expect("moved");
    std::os::unix::fs::symlink(scratch.path(), scratch.join("p/data")).expect("a link");
    run(&scratch, "cat /data/*").run().refused().says("leads elsewhere by a link");
    // Another project's is not this one's.
    scratch.dir("q");
    std::os::unix::fs::symlink("../p/.sbx.toml", scratch.join("q/.sbx.toml")).expect("a link");
    run(&scratch, "ls /data 2>/dev/null; true").cwd(scratch.join("q")).run().exits(0).prints("").says("not used until");
    // What nobody has accepted keeps nobody from anything.
    let strange = scratch.dir("r");
    assert!(Command::new("mkfifo").arg(strange.join(".sbx.toml")).status().expect("mkfifo").success());
    run(&scratch, "echo ran").cwd(&strange).run().exits(0).prints("ran").says("not used until");
}

#[test]
fn groups_are_listed_with_what_default_answers() {
    let scratch = Scratch::new();
    let (status, shown, error) = policy(&scratch, scratch.path(), &["show", "@ptrace"]);
    assert!(status == 0 && shown.starts_with("# tracing other processes"), "{shown}{error}");
    assert!(shown.lines().any(|line| line.split_whitespace().eq(["ptrace", "allowed"])), "{shown}");
    let (status, _, error) = policy(&scratch, scratch.path(), &["show", "@ptrac"]);
    assert!(status == 1 && error.contains("try: @ptrace"), "{error}");
}

/// What the shell's `kill -l` cannot say: the calls themselves, from inside.
#[test]
fn rules_and_foreign_profiles_hold_in_the_kernel() {
    let scratch = Scratch::new();
    let file = |name: &str, text: &str| scratch.file(name, text);
    let [socket, keyctl, getpid] =
        [format!("{} 38 5 0", libc::SYS_socket), format!("{} 0 0", libc::SYS_keyctl), format!("{}", libc::SYS_getppid)];
    let asked = |policy: &std::path::PathBuf, option: &str| {
        let asked = sandbox(&[option]).option(policy);
        asked.probe_with("calls", &[&socket, &keyctl, &getpid]).sees()
    };
    let rules = file(
        "rules.toml",
        "[[seccomp.rule]]\ncalls = [\"socket\"]\nargs = [{ index = 0, value = 38 }]\nerrno = \"EAFNOSUPPORT\"\n\
         [[seccomp.rule]]\ncalls = [\"@keyring\"]\nerrno = \"ENOKEY\"\n\
         [[seccomp.rule]]\ncalls = [\"getppid\"]\nargs = [{ index = 0, op = \"<\", value = 0 }]\naction = \"kill\"\n",
    );
    for option in ["--policy", "--seccomp"] {
        let answers = asked(&rules, option);
        assert_eq!(answers[&socket], libc::EAFNOSUPPORT);
        assert_eq!(answers[&keyctl], libc::ENOKEY);
        assert_eq!(answers[&getpid], 0);
    }
    // An upper half that the kernel drops leads past none of them.
    let past = format!("{} {}", libc::SYS_sched_get_priority_min, 1u64 << 32 | 1);
    let at = format!("{} {}", libc::SYS_sched_get_priority_max, u32::MAX);
    let rules = file(
        "halves.toml",
        "[[seccomp.rule]]\ncalls = [\"sched_get_priority_min\"]\nargs = [{ index = 0, op = \"<=\", value = 3 }]\nerrno = \"EXDEV\"\n\
         [[seccomp.rule]]\ncalls = [\"sched_get_priority_max\"]\nargs = [{ index = 0, value = -1 }]\nerrno = \"EXDEV\"\n",
    );
    let answers = sandbox(&["--policy"]).option(&rules).probe_with("calls", &[&past, &at]).sees();
    assert_eq!((&answers[&past], &answers[&at]), (&libc::EXDEV.into(), &libc::EXDEV.into()));
    let profile = file(
        "profile.json",
        "{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"syscalls\": [{\"names\": [\"getppid\", \"no_such_call\"], \
         \"action\": \"SCMP_ACT_ERRNO\", \"errnoRet\": 77}]}",
    );
    let answers = asked(&profile, "--seccomp");
    assert_eq!(answers[&getpid], 77);
    // Namespaces and input into terminals stay sbx's to decide on.
    let unshare = format!("{} {}", libc::SYS_unshare, libc::CLONE_NEWUSER);
    let answers = sandbox(&["--seccomp"]).option(&profile).probe_with("calls", &[&unshare]).sees();
    assert_eq!(answers[&unshare], libc::EPERM);
    let moby =
        Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set")).join("tests/data/moby-seccomp-default.json");
    let answers = asked(&moby, "--seccomp");
    assert_eq!((&answers[&socket], &answers[&keyctl]), (&libc::EPERM.into(), &libc::EPERM.into()));
    let plain = sandbox(&["--seccomp"]).option(&moby).sh("ls /bin/sh && echo ok | cat").run();
    plain.exits(0).prints("/bin/sh\nok").says("end the process here, whatever it says of them");
    // One that lets nothing start is refused, naming what is missing.
    for action in ["ERRNO", "KILL", "TRAP", "KILL_PROCESS"] {
        let none = file("none.json", &format!("{{\"defaultAction\": \"SCMP_ACT_{action}\"}}"));
        sandbox(&["--seccomp"]).option(none).sh("true").run().refused().says("without it no program can start");
    }
    let bad = file("bad.json", "{\n\"defaultAction\": \"SCMP_ACT_ERRNO\",\n\"frob\": 1}");
    sandbox(&["--seccomp"]).option(bad).sh("true").run().refused().says("bad.json:3:");
    sandbox(&["--policy"]).option(moby).sh("true").run().refused().says("a policy is TOML");
}

#[test]
fn bad_rules_are_refused_by_what_is_wrong() {
    let scratch = Scratch::new();
    for (rule, word) in [
        ("calls = [\"socket\"]", "action is missing"),
        ("calls = []\naction = \"deny\"", "has to name calls"),
        ("calls = [\"socket\"]\naction = \"deny\"\nargs = [{ index = 0 }]", "value"),
        ("calls = [\"socket\"]\naction = \"deny\"\nargs = [{ value = 1 }]", "index"),
        ("calls = [\"sokcet\"]\naction = \"deny\"", "socket"),
        ("calls = [\"@nett\"]\naction = \"deny\"", "@net"),
        ("calls = [\"socket\"]\nerrno = \"EACCESS\"", "EACCES"),
        ("calls = [\"socket\"]\naction = \"allow\"\nerrno = \"EPERM\"", "only a denial"),
        ("calls = [\"socket\"]\naction = \"forbid\"", "allow, deny, log, kill"),
        ("calls = [\"socket\"]\naction = \"deny\"\nargs = [{ index = 6, value = 1 }]", "counted from 0 to 5"),
        ("calls = [\"socket\"]\naction = \"deny\"\nargs = [{ index = 0, op = \"=\", value = 1 }]", "=="),
        ("calls = [\"socket\"]\naction = \"deny\"\nargs = [{ index = 0, vlaue = 1 }]", "x.toml:4:"),
        ("calls = [\"execve\"]\naction = \"deny\"", "no program can start"),
        ("calls = [\"unshare\"]\naction = \"allow\"", "sbx itself decides"),
    ] {
        let file = scratch.file("x.toml", &format!("[[seccomp.rule]]\n{rule}\n"));
        sandbox(&["--policy"]).option(file).sh("true").run().refused().says(word);
    }
    let one = |n: u32| format!("{{\"index\": 1, \"value\": {n}, \"op\": \"SCMP_CMP_EQ\"}}");
    let one = |n: u32| format!("{{\"names\": [\"socket\"], \"action\": \"SCMP_ACT_LOG\", \"args\": [{}]}}", one(n));
    let many: Vec<String> = (0..4000).map(one).collect();
    let many = format!("{{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"syscalls\": [{}]}}", many.join(", "));
    sandbox(&["--seccomp"]).option(scratch.file("many.json", &many)).sh("true").run().refused().says("at most 4096");
}

#[test]
fn each_weakness_raises_the_number_of_the_audit() {
    let scratch = Scratch::new();
    let audit = |name: &str| {
        let output = Command::new(sbx()).args(["check", "--json", "--audit", name]).output();
        let output = output.expect("sbx");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let of =
        |text: &str| audit(scratch.file("p.toml", text).to_str().expect("UTF-8"))["score"].as_f64().expect("a number");
    let plain = of("");
    for text in [
        "net.mode = \"host\"",
        "seccomp.filter = \"off\"",
        "hardening.nest = true",
        "caps.add = [\"SYS_ADMIN\"]\nidentity.user = \"0\"\nidentity.map = [\"root\"]",
        "seccomp.allow = [\"@io-uring\"]",
        "landlock.mode = \"off\"",
        "namespaces.share = [\"ipc\"]",
        "[[mount]]\nsrc = \"~\"\naccess = \"rw\"",
    ] {
        assert!(of(text) > plain, "{text}: {} and {plain}", of(text));
    }
    assert!(of("limits.mem = \"1G\"\nlimits.cpus = 1\nroot.read-only = true") < plain);
    let nest = audit("nest");
    assert_eq!(nest["worst"].as_array().map(Vec::len), Some(3));
    assert_eq!(nest["worst"][0]["fix"], "without --nest");
    // Of one that runs, or has run.
    let state = scratch.join("state").display().to_string();
    let words = ["--state", &state, "--name", "n", "--net", "host"];
    sandbox(&words).env("XDG_DATA_HOME", scratch.join("data")).sh("true").run().exits(0);
    let words = ["--state", &state, "check", "--audit", "n"];
    let output = Command::new(sbx()).args(words).output().expect("sbx");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("--net none (the host's network)"), "{output:?}");
}
