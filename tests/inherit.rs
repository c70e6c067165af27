//! What the program inherits: descriptors, environment, working directory, its own and sbx's executable; and inputs of
//! extreme size (security.md S01–S03, S32, S60). A sandbox inside a sandbox comes last.

mod common;

use common::{Scratch, has, host_facts, plain, probe, rootfs, sandbox, sbx, volume};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;

fn descriptors(facts: &Value) -> Vec<String> {
    let mut numbers: Vec<u32> = facts["fds"].as_object().expect("fds").keys().filter_map(|n| n.parse().ok()).collect();
    numbers.sort_unstable();
    numbers.iter().map(u32::to_string).collect()
}

#[test]
fn descriptors_are_the_three_and_no_others() {
    let mut ways =
        vec![&[][..], &["--no-init"], &["--net", "host"], &["--landlock", "off"], &["--seccomp", "off"], &["--rw"]];
    if has("subids") {
        ways.push(&["--map", "full"]);
    }
    for options in ways {
        let scratch = Scratch::new();
        let facts = sandbox(options).root(scratch.rootfs()).caller("hold", &["200"]).probe("self").sees();
        assert_eq!(descriptors(&facts), ["0", "1", "2"], "{options:?} {}", facts["fds"]);
    }
}

#[test]
fn declared_descriptors_are_passed_and_places_refused() {
    // `hold` opens from 3: a directory, an O_PATH place, a socket, a pidfd, a file, a pipe, and so on.
    let with = |options: &[&str]| sandbox(options).caller("hold", &["12"]);
    let facts = with(&["--pass-fd", "7", "--pass-fd", "5"]).probe("self").sees();
    assert_eq!(descriptors(&facts), ["0", "1", "2", "5", "7"]);
    assert_eq!(facts["fds"]["7"], "/etc/passwd");
    for number in ["3", "4"] {
        with(&["--pass-fd", number]).command(&["true"]).run().refused().says("directory");
    }
    for number in ["99", "-1", "x", "4294967296", ""] {
        with(&["--pass-fd", number]).command(&["true"]).run().refused();
    }
}

#[test]
fn a_directory_on_stdin_is_refused() {
    let directory = fs::File::open("/").expect("the root");
    plain().stdin_from(directory).command(&["true"]).run().refused().says("descriptor");
    // Number 4 of those that `hold` opens is an O_PATH one.
    let place = plain().caller("hold", &["2"]).under(&["sh", "-c", "exec \"$@\" <&4", "sh"]);
    place.command(&["true"]).run().refused().says("descriptor");
}

#[test]
fn a_file_on_stdin_is_read_and_cannot_be_written() {
    let scratch = Scratch::new();
    let text = "line\n".repeat(30_000);
    let file = scratch.file("input", &text);
    for options in [&[][..], &["--landlock", "off"]] {
        let open = || fs::File::open(&file).expect("the file");
        let all = sandbox(options).stdin_from(open()).command(&["cat"]).run().exits(0);
        assert!(all.stdout == text, "{options:?}: {} of {} bytes", all.stdout.len(), text.len());
        // Read first: a pipe may stand in for the file, and a full one makes its writer wait.
        let write = "cat >/dev/null; echo x 2>/dev/null >/proc/self/fd/0; echo x 2>/dev/null >>/dev/stdin; true";
        sandbox(options).stdin_from(open()).sh(write).run().exits(0);
        assert_eq!(fs::read_to_string(&file).expect("the file"), text, "{options:?}");
    }
}

#[test]
fn the_environment_is_what_the_contract_says() {
    let callers = [
        ("SECRET_TOKEN", "canary"),
        ("LD_PRELOAD", "/x.so"),
        ("TERM", "vt100"),
        ("LANG", "C.UTF-8"),
        ("LC_ALL", "C"),
        ("SHELL", "/bin/zsh"),
    ];
    let asked = |options: &[&str]| callers.iter().fold(sandbox(options), |s, (name, value)| s.env(name, value));
    let facts = asked(&[]).probe("self").sees();
    let mut env: Vec<&str> = facts["env"].as_array().expect("env").iter().filter_map(Value::as_str).collect();
    env.sort_unstable();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let wanted = ["HOME=/root", "LANG=C.UTF-8", "LC_ALL=C", path, "TERM=vt100", "USER=root", "container=sbx"];
    assert_eq!(env, wanted);
    let facts = asked(&["--clear-env", "-e", "A=1", "-e", "SECRET_TOKEN", "-e", "A=2"]).probe("self").sees();
    let mut env: Vec<&str> = facts["env"].as_array().expect("env").iter().filter_map(Value::as_str).collect();
    env.sort_unstable();
    assert_eq!(env, ["A=2", "SECRET_TOKEN=canary"]);
    for bad in ["=x", "*", "A*", "", "A B=1"] {
        let outcome = asked(&["-e", bad]).probe("self").run();
        assert!(outcome.status == 125 || !outcome.stdout.contains("canary"), "{bad}: {outcome:?}");
    }
}

#[test]
fn nothing_of_the_environment_is_left_with_init() {
    let pids = plain().env("SECRET_TOKEN", "canary").probe("pids").sees();
    assert!(!pids.to_string().contains("canary"));
    let script = "cat /proc/1/environ /proc/*/environ 2>/dev/null | grep -c canary";
    plain().env("SECRET_TOKEN", "canary").sh(script).run().exits(1).prints("0");
}

#[test]
fn the_working_directory_lies_inside() {
    let scratch = Scratch::new();
    let root = scratch.rootfs();
    symlink(scratch.path(), root.join("out")).expect("link");
    symlink("../../../../../..", root.join("etc/up")).expect("link");
    let inside = "cd .. && cd .. && cd .. && [ \"$(stat -c %d:%i .)\" = \"$(stat -c %d:%i /)\" ] && [ -e bin/busybox ] || exit 9";
    for number in 0..64 {
        for place in ["/proc/self/fd", "/proc/1/fd", "/dev/fd", "/proc/self/task/1/fd"] {
            let outcome = sandbox(&["-w", &format!("{place}/{number}")]).root(&root).sh(inside).run();
            assert!(matches!(outcome.status, 0 | 125), "{place}/{number}: {outcome:?}");
        }
        if number > 8 && number % 8 != 0 {
            continue;
        }
        let held =
            sandbox(&["-w", &format!("/proc/self/fd/{number}")]).root(&root).caller("hold", &["60"]).sh(inside).run();
        assert!(matches!(held.status, 0 | 125), "{number}: {held:?}");
    }
    for place in ["/out", "/etc/up", "/proc/self/root", "/proc/self/cwd", "/proc/1/root", "/proc/1/cwd", "/"] {
        let outcome = sandbox(&["-w", place]).root(&root).sh(inside).run();
        assert!(matches!(outcome.status, 0 | 125), "{place}: {outcome:?}");
    }
    for place in ["relative", "..", "/..", &"/..".repeat(40), "/no/such", "/etc/passwd", ""] {
        sandbox(&["-w", place]).root(&root).command(&["true"]).run().refused();
    }
    sandbox(&["-w", "/home/user"]).root(&root).command(&["pwd"]).run().exits(0).prints("/home/user");
}

#[test]
fn a_removed_working_directory_of_the_caller_does_no_harm() {
    let scratch = Scratch::new();
    let gone = scratch.dir("gone");
    let remove = ["sh", "-c", "rmdir \"$PWD\"; exec \"$@\"", "sh"];
    let outcome = plain().cwd(&gone).under(&remove).command(&["pwd"]).run();
    assert!(
        outcome.status == 125 && outcome.stderr.starts_with("sbx: ") || outcome.stdout.trim() == "/",
        "{outcome:?}"
    );
}

#[test]
fn executables_cannot_be_written() {
    let before = (fs::read(sbx()).expect("sbx"), fs::read(probe()).expect("the probe"));
    let write = |path: &str, flags: i32| format!("{} -100 s:{path} {flags}", libc::SYS_openat);
    let calls: Vec<String> = ["/proc/1/exe", "/proc/self/exe", "/probe", "/proc/1/map_files", "/proc/1/mem"]
        .iter()
        .flat_map(|path| [write(path, libc::O_WRONLY), write(path, libc::O_RDWR | libc::O_TRUNC)])
        .collect();
    let unprotected = ["--seccomp", "off", "--landlock", "off"];
    for options in [&[][..], &unprotected, &["--map", "keep"]] {
        for _ in 0..100 {
            let answers = sandbox(options).probe_with("calls", &calls).sees();
            for call in &calls {
                assert_ne!(answers[call], 0, "{options:?} {call}");
            }
        }
    }
    assert!(before == (fs::read(sbx()).expect("sbx"), fs::read(probe()).expect("the probe")));
}

#[test]
fn ten_thousand_variables_arrive() {
    let options: Vec<String> = (0..10_000).flat_map(|n| ["-e".to_owned(), format!("VARIABLE_{n}=value-{n}")]).collect();
    let facts = sandbox(&options).probe("self").sees();
    let env = facts["env"].as_array().expect("env");
    let found = env.iter().filter(|v| v.as_str().is_some_and(|v| v.starts_with("VARIABLE_"))).count();
    assert_eq!(found, 10_000);
    assert!(env.iter().any(|v| v == "VARIABLE_9999=value-9999"));
}

#[test]
fn long_arguments_arrive_and_long_paths_are_refused() {
    let long = "a".repeat(64 << 10);
    let facts = plain().probe_with("self", &[&long]).sees();
    assert_eq!(facts["args"][2].as_str().map(str::len), Some(64 << 10));
    let path = format!("/{long}");
    let deep = "/a".repeat(32 << 10);
    for path in [&path, &deep] {
        plain().root(path).command(&["true"]).run().refused();
        sandbox(&["-w", path]).command(&["true"]).run().refused();
        sandbox(&["--upper", path]).command(&["true"]).run().refused();
        sandbox(&["--mask", path]).command(&["true"]).run().refused();
        for option in [format!("{path}:/v"), format!("/tmp:{path}")] {
            sandbox(&["-v", &option]).command(&["true"]).run().refused();
        }
        let ended = plain().command(&[path]).run();
        assert!(matches!(ended.status, 126 | 127), "{}", ended.status);
    }
}

#[test]
fn a_thousand_mounts_are_made() {
    let scratch = Scratch::new();
    scratch.file("shared/file", "found");
    let options: Vec<String> =
        (0..1000).flat_map(|n| ["-v".to_owned(), format!("{}:/m/{n}:ro", scratch.join("shared").display())]).collect();
    let script = "grep -c ' /m/' /proc/self/mountinfo; cat /m/999/file";
    sandbox(&options).sh(script).run().exits(0).prints("1000\nfound");
}

#[test]
fn sixteen_thousand_mounts_of_the_caller_are_in_nobodys_way() {
    // Each turn binds all that is there below itself once more.
    let double = "mount -t tmpfs none /srv; \
        for n in $(seq 14); do mkdir /srv/$n; mount --rbind /srv /srv/$n; done; touch /srv/14/13/1/file; exec \"$@\"";
    let behind = |sandbox: common::Sandbox| {
        sandbox.under(&["unshare", "--map-root-user", "--mount", "sh", "-euc", double, "sh"])
    };
    let seen = |sandbox: common::Sandbox, script: &str| {
        let script = format!("{script}; wc -l </proc/self/mountinfo");
        behind(sandbox).sh(&script).run().exits(0).stdout.trim().parse::<u32>().expect("a number")
    };
    assert!(seen(plain(), "true") < 100);
    // Both take along what is mounted below, and read-only it is to the last.
    let script = "cd /srv/14/13/1; rm file 2>/dev/null && exit 9; test -e file || exit 8";
    let below = seen(sandbox(&["-v", "/srv:/srv:ro"]), script);
    assert!(below > 16_000 && seen(plain().root("@host"), script) > 16_000);
}

#[test]
fn a_sandbox_works_inside_a_nesting_one() {
    // There the inner one's changes have no other place.
    if !has("tmpfs-xattrs") {
        return;
    }
    let outer = || {
        let shared = volume(&rootfs(), "/inner:ro");
        let own = format!("type=bind,src={},dst=/sbx,ro", sbx().display());
        sandbox(&["--nest", "-v"]).option(shared).option("--mount").option(own).bring_probe()
    };
    let inner =
        ["/sbx", "run", "--state", "/tmp/state", "--mount", "src=/probe,dst=/probe,ro", "/inner", "/probe", "self"];
    let facts = outer().command(&inner).run().exits(0).facts();
    assert_eq!((&facts["max_user_namespaces"], &facts["status"]["NoNewPrivs"]), (&"0".into(), &"1".into()));
    assert_eq!(facts["status"]["Seccomp"], "2");
    assert_eq!(facts["uid_map"], "0 0 1", "{}", host_facts());
    // The outer one's limit on processes is the most that the inner one can have, where no cgroup counts.
    let limit = ["sh", "-c", "exec \"$@\" | grep -o 'Max processes *[0-9]*'", "sh"].map(String::from);
    let inner = limit.into_iter().chain(inner[..inner.len() - 2].iter().map(|word| (*word).to_owned()));
    let inner: Vec<String> = inner.chain(["cat", "/proc/self/limits"].map(String::from)).collect();
    let low = outer().options(&["--pids", "100", "--limits", "watch"]).command(&inner).run().exits(0);
    assert!(low.stdout.trim().ends_with(" 101"), "{low:?}");
    // Without --nest the inner one is refused, in words.
    let plain = ["/sbx", "run", "--state", "/tmp/state", "/inner", "true"];
    let shared = volume(&rootfs(), "/inner:ro");
    let own = format!("type=bind,src={},dst=/sbx,ro", sbx().display());
    sandbox(&["-v"]).option(shared).option("--mount").option(own).command(&plain).run().refused();
}

#[test]
fn bubblewrap_works_inside_a_nesting_sandbox() {
    if !has("bwrap") {
        return;
    }
    let scratch = Scratch::new();
    let words = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"];
    sandbox(&["--nest"]).root("@host").cwd(scratch.path()).command(&words).run().exits(0);
}

/// Rootless podman wants a user 0, a cgroup of its own, key calls for crun, and room for its images.
#[test]
fn podman_works_inside_a_nesting_one() {
    if !has("podman") || !has("cgroup") {
        return;
    }
    let place = Scratch::new();
    let script = "podman=\"podman --storage-driver vfs\"; \
        tar -C /image -c . | $podman import -q - local/image:1 >/dev/null && \
        $podman run --rm --network none local/image:1 /bin/sh -c 'echo inside $container'";
    let options = ["--map", "root", "--user", "0", "--tmpfs", "/var/cache", "--tmpfs", "/var/lib", "--pids", "500"];
    let asked = |more: &[&str]| {
        let image = volume(&rootfs(), "/image:ro");
        let sandbox = sandbox(&options).options(more).option("-v").option(image);
        sandbox.root("@host").cwd(place.path()).command(&["sh", "-c", script]).run()
    };
    asked(&["--policy", "nest", "--limits", "cgroup", "--mount", "type=cgroup"]).exits(0).prints("inside podman");
    assert_ne!(asked(&["--limits", "cgroup", "--mount", "type=cgroup"]).status, 0);
}

/// bubblewrap is what agents and build tools bring themselves.
#[test]
fn bubblewrap_works_inside_a_nesting_one() {
    if !has("tmpfs-xattrs") || !has("bwrap") || !has("userns") {
        return;
    }
    let inner =
        ["bwrap", "--ro-bind", "/", "/", "--unshare-all", "--proc", "/proc", "--dev", "/dev", "--die-with-parent"];
    let script = ["sh", "-c", "echo inside; ls /proc | grep -c '^[0-9]*$' | grep -q '^[2-5]$' && echo alone"];
    let words: Vec<&str> = inner.into_iter().chain(script).collect();
    let place = Scratch::new();
    let asked = |options: &[&str]| sandbox(options).root("@host").cwd(place.path()).command(&words);
    asked(&["--policy", "nest"]).run().exits(0).prints("inside\nalone");
    // Without room for it there is none.
    assert_ne!(asked(&[]).run().status, 0);
}
