//! Faults: every party killed at many points, calls that fail one by one, surroundings that are hostile. A run is
//! right or refused with a message, and nothing is left (research/security.md section 6).

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::{Done, Place, Run, lacks, names, soon, within};

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().expect("utf-8").to_owned()
}

/// `sbx run` under strace, which injects a fault; -f follows the children.
fn injected(place: &Place, injection: &[&str], options: &[&str], command: &[&str]) -> Run {
    let mut words: Vec<String> = ["-f", "-qq", "-o", "/dev/null"].map(str::to_owned).to_vec();
    for inject in injection {
        words.extend(["-e".to_owned(), format!("inject={inject}")]);
    }
    words.extend([text(support::sbx()), "run".to_owned()]);
    words.extend(options.iter().map(|w| w.to_string()));
    words.push(text(place.rootfs()));
    words.extend(command.iter().map(|w| w.to_string()));
    place.run("strace", words)
}

/// A right run, or a refusal of sbx's own; nothing in between.
#[track_caller]
fn right_or_refused(done: &Done, what: &str) {
    match done.code() {
        0 => assert_eq!(done.text(), "ran\n", "{what}: {}", done.err),
        125 => {
            assert!(speaks(done), "{what}: no message: {:?}", done.err);
            for bad in ["panicked", "bug in sbx", "os error"] {
                assert!(!done.err.contains(bad), "{what}: {}", done.err);
            }
            assert_eq!(done.text(), "", "{what}: it ran and was refused: {}", done.err);
        }
        code => panic!("{what}: status {code}: {:?} {}", done.text(), done.err),
    }
}

/// Whether sbx has said anything.
fn speaks(done: &Done) -> bool {
    done.err.lines().any(|line| line.starts_with("sbx: "))
}

const ECHO: [&str; 2] = ["echo", "ran"];

#[test]
fn sbx_is_killed_at_many_points() {
    if lacks(&["userns", "strace"]) {
        return;
    }
    let mounts = support::mounts();
    let place = Place::new();
    let tree = place.path("tree");
    fs::create_dir(&tree).expect("mkdir");
    let volume = format!("{}:/mnt", tree.display());
    let options = ["-v", &volume, "--tmpfs", "/mnt/made/inside", "--upper", "disk"];
    // Without -f only the supervisor is traced. A first run tells its calls, then each of a sample is its last.
    let traced = |extra: &[&str]| {
        let mut words: Vec<String> = ["-qq", "-o", "log"].iter().chain(extra).map(|w| w.to_string()).collect();
        words.extend([text(support::sbx()), "run".to_owned()]);
        words.extend(options.iter().map(|w| w.to_string()));
        words.extend([text(place.rootfs()), "echo".to_owned(), "ran".to_owned()]);
        place.run("strace", words).done()
    };
    traced(&[]).exits(0).says("ran");
    let log = fs::read_to_string(place.path("log")).expect("a log");
    let calls: Vec<&str> = log.lines().filter_map(|line| line.split_once('(')).map(|(name, _)| name).collect();
    assert!(calls.len() > 50, "{log}");
    let (mut killed, points) = (0, 60);
    for point in 0..points {
        // The first calls are the loader's and the last ones come after the end; both are in the sample.
        let at = point * calls.len() / points;
        let nth = calls[..=at].iter().filter(|call| **call == calls[at]).count();
        let done = traced(&["-e", &format!("inject={}:signal=KILL:when={nth}", calls[at])]);
        killed += usize::from(done.code() == 1009);
        place.assert_no_processes();
    }
    assert!(killed >= points * 3 / 4, "only {killed} runs were killed");
    place.assert_clean_after_next();
    assert_eq!(names(&tree), [""; 0], "mount points are left");
    let uppers = place.path("home/.local/share/sbx/upper");
    assert_eq!(names(&uppers), [""; 0], "upper layers are left");
    assert!(mounts == support::mounts(), "mounts are left");
}

#[test]
fn any_of_them_is_killed_at_many_points() {
    if lacks(&["userns", "strace"]) {
        return;
    }
    let place = Place::new();
    for call in [
        "openat",
        "openat2",
        "open_tree",
        "move_mount",
        "mount_setattr",
        "fsopen",
        "fsconfig",
        "fsmount",
        "mkdirat",
        "close",
        "write",
        "sendmsg",
        "recvmsg",
        "newfstatat",
        "prctl",
        "pivot_root",
        "umount2",
        "unshare",
        "setsid",
        "capset",
        "landlock_restrict_self",
        "landlock_add_rule",
        "seccomp",
        "execve",
        "waitid",
        "setresuid",
        "close_range",
        "rt_sigprocmask",
        "ppoll",
        "signalfd4",
        "sethostname",
        "ioctl",
        "fchmodat",
        "symlinkat",
    ] {
        for n in [1, 2, 5, 11, 23] {
            let done = injected(&place, &[&format!("{call}:signal=KILL:when={n}")], &[], &ECHO).done();
            match done.code() {
                // sbx itself was the victim.
                1009 => {}
                // The program was, or its init, before it has written or after.
                137 => assert!(["", "ran\n"].contains(&done.text().as_str()) && !speaks(&done), "{call} {n}: {done:?}"),
                _ => right_or_refused(&done, &format!("{call} {n}")),
            }
            place.assert_no_processes();
        }
    }
    place.assert_clean_after_next();
}

#[test]
fn init_is_killed_while_the_program_runs() {
    if lacks(&["userns"]) {
        return;
    }
    // The kernel itself keeps all but KILL and STOP from a pid 1 that has no handler.
    for signal in ["KILL", "TERM", "SEGV"] {
        let place = Place::new();
        let running = place.shell(&[], "sleep 1000 & sleep 1000").start();
        let init = || place.processes().into_iter().find(|p| p.name == "sbx-init");
        let up = || place.processes().iter().filter(|p| p.name == "sleep").count() == 2;
        assert!(soon(up), "{:?}", place.processes());
        support::kill(init().expect("an init").pid, signal);
        if signal != "KILL" {
            std::thread::sleep(Duration::from_millis(200));
            assert!(up());
            running.signal("KILL");
            running.done();
            place.assert_clean_after_next();
            continue;
        }
        let done = running.done();
        assert_eq!(done.code(), 137, "{}", done.err);
        place.assert_clean();
    }
}

#[test]
fn the_program_is_killed_from_outside() {
    if lacks(&["userns"]) {
        return;
    }
    for options in [&[][..], &["--no-init"]] {
        let place = Place::new();
        let running = place.shell(options, "exec sleep 1000").start();
        let program = || place.processes().into_iter().find(|p| p.name == "sleep");
        assert!(soon(|| program().is_some()));
        support::kill(program().expect("a program").pid, "KILL");
        running.done().exits(137);
        place.assert_clean();
    }
}

#[test]
fn calls_that_a_kernel_or_a_filter_lacks() {
    if lacks(&["userns", "strace"]) {
        return;
    }
    let place = Place::new();
    let lacking = |call: &str| injected(&place, &[&format!("{call}:error=ENOSYS")], &[], &ECHO).done();
    for call in ["clone3", "landlock_create_ruleset", "getdents64", "madvise", "sigaltstack", "uname", "sysinfo"] {
        let done = lacking(call);
        assert_eq!((done.code(), done.text().as_str()), (0, "ran\n"), "{call}: {}", done.err);
        place.assert_clean();
    }
    for call in [
        "openat2",
        "open_tree",
        "move_mount",
        "mount_setattr",
        "fsopen",
        "fsconfig",
        "fsmount",
        "close_range",
        "seccomp",
        "pivot_root",
        "capset",
        "signalfd4",
        "setsid",
        "unshare",
        "sethostname",
        "waitid",
        "sendmsg",
        "recvmsg",
        "socketpair",
        "pipe2",
    ] {
        let done = lacking(call);
        if done.code() == 0 {
            // Not used here, or not needed.
            assert_eq!(done.text(), "ran\n", "{call}");
        } else {
            right_or_refused(&done, call);
        }
        place.assert_clean_after_next();
    }
    for call in ["openat2", "open_tree", "move_mount", "fsopen", "close_range", "seccomp"] {
        let done = lacking(call);
        assert_eq!(done.code(), 125, "{call}: {}", done.err);
        assert!(done.err.contains(call), "{call} is not named: {}", done.err);
    }
    // Since Linux 6.15 open_tree_attr does its work; without either a bind is refused, never left writable.
    let inject = ["mount_setattr:error=ENOSYS"];
    let done =
        injected(&place, &inject, &["-v", "/usr:/mnt:ro"], &["grep", " /mnt ro,", "/proc/self/mountinfo"]).done();
    match done.code() {
        0 => assert!(done.text().contains("/usr /mnt ro,nosuid,nodev"), "{}", done.text()),
        _ => drop(done.refused(125, &["mount_setattr"])),
    }
    // pidfd_open serves the helpers and --pid-file; what needs it says so.
    let done = injected(&place, &["pidfd_open:error=ENOSYS"], &["--pid-file", "./pid"], &ECHO).done();
    right_or_refused(&done, "pidfd_open");
    assert!(done.err.contains("pid is not known"), "{}", done.err);
    place.assert_clean();
}

#[test]
fn a_failure_is_told_of_the_step_that_it_belongs_to() {
    if lacks(&["userns", "strace"]) {
        return;
    }
    let place = Place::new();
    let own_filter = ["--cap-add", "NET_ADMIN"];
    injected(&place, &["seccomp:error=EINVAL"], &own_filter, &ECHO)
        .done()
        .refused(125, &["load the seccomp filter policy"]);
    for call in ["clone:error=EAGAIN", "pipe2:error=EMFILE"] {
        injected(&place, &[call], &[], &ECHO).done().refused(125, &["make new namespaces", "(clone)"]);
    }
    place.assert_clean();
}

#[test]
fn one_namespace_that_is_lacking_takes_no_other_with_it() {
    if lacks(&["userns", "strace"]) {
        return;
    }
    let place = Place::new();
    let with = |injection: &[&str]| injected(&place, injection, &["--best-effort"], &ECHO).done();
    for (injection, skipped) in [
        (&["clone3:error=EINVAL:when=1"][..], &["time"][..]),
        (&["clone3:error=ENOSPC:when=1..2"], &["cgroup"]),
        (&["clone3:error=EINVAL:when=1..3"], &["time", "cgroup"]),
        // Made by the child where there is only clone(2).
        (&["clone3:error=ENOSYS", "unshare:error=EINVAL:when=1"], &["time"]),
    ] {
        let done = with(injection).exits(0).says("ran");
        for kind in ["time", "cgroup"] {
            let said = done.err.contains(&format!("skipped: make a {kind} namespace"));
            assert_eq!(said, skipped.contains(&kind), "{injection:?}: {}", done.err);
        }
    }
    with(&["clone3:error=EINVAL"]).refused(125, &["(clone)"]);
    injected(&place, &["clone3:error=EINVAL:when=1"], &[], &ECHO).done().refused(125, &["(clone)"]);
    place.assert_clean();
}

#[test]
fn landlock_that_is_missing_is_refused_where_it_is_required() {
    if lacks(&["userns", "strace"]) {
        return;
    }
    let place = Place::new();
    let none = ["landlock_create_ruleset:error=ENOSYS"];
    injected(&place, &none, &["--landlock", "require"], &ECHO).done().refused(125, &["landlock"]);
    injected(&place, &none, &["--landlock", "auto"], &ECHO).done().exits(0).says("ran");
    // There when asked, gone when needed.
    let gone = ["landlock_restrict_self:error=EPERM"];
    right_or_refused(&injected(&place, &gone, &["--landlock", "require"], &ECHO).done(), "restrict_self");
    place.assert_clean();
}

#[test]
fn resources_that_run_out() {
    if lacks(&["userns", "strace"]) {
        return;
    }
    let place = Place::new();
    for (call, errors) in [
        ("openat", &["EMFILE", "ENOMEM", "ENFILE"][..]),
        ("openat2", &["EMFILE", "ENOMEM", "EAGAIN"]),
        ("clone3", &["EAGAIN", "ENOMEM", "ENOSPC", "EPERM"]),
        ("clone", &["EAGAIN", "ENOMEM"]),
        ("socketpair", &["EMFILE", "ENOMEM"]),
        ("signalfd4", &["EMFILE", "ENOMEM"]),
        ("pipe2", &["EMFILE"]),
        ("mkdirat", &["ENOSPC", "ENOMEM", "EDQUOT"]),
        ("symlinkat", &["ENOSPC"]),
        ("write", &["ENOSPC", "ENOMEM"]),
        ("fsopen", &["EMFILE", "ENOMEM"]),
        ("fsconfig", &["ENOMEM", "EINVAL"]),
        ("fsmount", &["ENOSPC", "EMFILE"]),
        ("open_tree", &["ENOSPC", "EMFILE", "ENOMEM"]),
        ("move_mount", &["ENOSPC", "ENOMEM"]),
        ("mount_setattr", &["ENOMEM", "EPERM"]),
        ("pivot_root", &["EINVAL", "ENOMEM"]),
        ("umount2", &["EBUSY"]),
        ("prctl", &["EINVAL", "EPERM"]),
        ("capset", &["EPERM"]),
        ("setresuid", &["EAGAIN"]),
        ("setresgid", &["EPERM"]),
        ("seccomp", &["ENOMEM", "EINVAL", "EACCES"]),
        ("landlock_add_rule", &["ENOMEM"]),
        ("landlock_restrict_self", &["E2BIG"]),
        ("sendmsg", &["ENOBUFS", "ENOMEM"]),
        ("recvmsg", &["ENOMEM"]),
        ("renameat2", &["ENOSPC"]),
        ("renameat", &["ENOSPC"]),
        ("flock", &["ENOLCK"]),
        ("sethostname", &["EPERM"]),
        ("unshare", &["ENOSPC", "EPERM"]),
        ("ioctl", &["EPERM"]),
        ("close_range", &["EMFILE"]),
        ("ppoll", &["ENOMEM"]),
    ] {
        for error in errors {
            for n in [1, 3, 7] {
                let done = injected(&place, &[&format!("{call}:error={error}:when={n}")], &[], &ECHO).limit(30).done();
                // The loader's own failures, and those of the program inside, are not sbx's.
                let theirs = [1, 127].contains(&done.code()) && !speaks(&done);
                // A refusal of the first step, whose message is the first that sbx itself writes.
                let unsaid = call == "write" && n == 1 && done.code() == 125 && done.text().is_empty();
                if !theirs && !unsaid {
                    right_or_refused(&done, &format!("{call} {error} {n}"));
                }
                place.assert_no_processes();
            }
        }
    }
    place.assert_clean_after_next();
}

#[test]
fn calls_that_are_interrupted() {
    if lacks(&["userns", "strace"]) {
        return;
    }
    let place = Place::new();
    for call in ["openat", "openat2", "read", "write", "sendmsg", "recvmsg", "ppoll", "waitid", "flock", "close"] {
        for n in ["1+3", "2+3", "3+3"] {
            let done = injected(&place, &[&format!("{call}:error=EINTR:when={n}")], &[], &ECHO).limit(30).done();
            // busybox does not expect EINTR of everything, the loader neither.
            let theirs = [1, 127].contains(&done.code()) && !speaks(&done);
            assert!(theirs || done.code() == 0, "{call} {n}: {} {}", done.code(), done.err);
            place.assert_no_processes();
        }
    }
    place.assert_clean_after_next();
}

#[test]
fn a_storm_of_signals_while_it_runs() {
    if lacks(&["userns", "python3"]) {
        return;
    }
    // 1 kHz of SIGALRM with a handler is gone after exec, so the storm comes from outside: signals that sbx takes.
    let place = Place::new();
    let storm = "import os,subprocess,sys,time\n\
        p=subprocess.Popen(sys.argv[1:])\n\
        while p.poll() is None:\n\
        \ttry: os.kill(p.pid, 28); os.kill(p.pid, 18)\n\
        \texcept ProcessLookupError: pass\n\
        \ttime.sleep(0.0002)\n\
        sys.exit(p.returncode)\n";
    for _ in 0..20 {
        let words = [
            "-c",
            storm,
            &text(support::sbx()),
            "run",
            &text(place.rootfs()),
            "sh",
            "-c",
            "sleep 0.1; echo ran; exit 3",
        ];
        place.run("python3", words).done().exits(3).says("ran");
    }
    place.assert_clean();
}

#[test]
fn each_signal_is_forwarded_once() {
    if lacks(&["userns"]) {
        return;
    }
    for (options, pause) in [(&[][..], 30), (&["--no-init"], 30)] {
        let place = Place::new();
        let traps: String =
            ["TERM", "INT", "HUP", "USR1", "USR2", "QUIT"].map(|name| format!("trap 'echo {name}' {name};")).concat();
        let script = format!("{traps} trap 'exit 5' CONT; echo up; while :; do sleep 0.01; done");
        let running = place.shell(options, &script.replace("trap 'exit 5' CONT;", "")).start();
        assert!(soon(|| place.processes().iter().any(|p| p.name == "sleep")));
        for name in ["USR1", "TERM", "INT", "HUP", "USR2", "QUIT", "USR1"] {
            running.signal(name);
            std::thread::sleep(Duration::from_millis(pause * 5));
        }
        let program = place.processes().into_iter().find(|p| p.name == "sh").expect("the program");
        support::kill(program.pid, "KILL");
        running.done().exits(137).says("up\nUSR1\nTERM\nINT\nHUP\nUSR2\nQUIT\nUSR1");
        place.assert_clean();
    }
}

#[test]
fn dispositions_and_masks_of_the_caller() {
    if lacks(&["userns", "python3"]) {
        return;
    }
    let place = Place::new();
    let with = |prepare: &str, script: &str| {
        let python = format!("import os,signal,sys\n{prepare}\nos.execv(sys.argv[1], sys.argv[1:])");
        let words = ["-c", &python, &text(support::sbx()), "run", &text(place.rootfs()), "sh", "-c", script];
        place.run("python3", words).done()
    };
    // SIGCHLD ignored: the kernel would reap before we wait.
    with("signal.signal(signal.SIGCHLD, signal.SIG_IGN)", "true; (exit 3); exit 7").exits(7);
    let all = "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))";
    let status = "grep -E 'SigBlk|SigIgn' /proc/self/status | tr -d '\\t'";
    with(all, status).exits(0).says("SigBlk:0000000000000000\nSigIgn:0000000000000000");
    let ignore = "[signal.signal(n, signal.SIG_IGN) for n in range(1, 32) if n not in (9, 19)]";
    with(ignore, status).exits(0).says("SigBlk:0000000000000000\nSigIgn:0000000000000000");
    with(ignore, "kill -TERM $$; sleep 5").exits(143);
    place.assert_clean();
}

#[test]
fn few_descriptors() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    for limit in [3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64] {
        let script =
            format!("ulimit -n {limit}; exec {} run {} echo ran", support::sbx().display(), place.rootfs().display());
        let done = place.run("sh", ["-c", &script]).done();
        if done.code() == 127 && !speaks(&done) {
            // A dynamic build does not even load.
            continue;
        }
        right_or_refused(&done, &format!("ulimit -n {limit}"));
        if done.code() == 125 {
            assert!(done.err.contains("too many open files") || done.err.contains("try:"), "{}", done.err);
        }
        place.assert_no_processes();
    }
    place.assert_clean_after_next();
}

#[test]
fn homes_and_runtime_directories() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let run = || place.sbx_run([place.rootfs().as_os_str(), "true".as_ref()]);
    run().env_remove("HOME").done().exits(0);
    run().env_remove("HOME").env_remove("USER").env_remove("TERM").env_remove("PATH").done().exits(0);
    run().env("HOME", "/nonexistent").done().exits(0);
    // Without a runtime directory the home holds the records, whatever there is of it.
    run().env_remove("XDG_RUNTIME_DIR").done().exits(0);
    run().env("XDG_RUNTIME_DIR", "/nonexistent/x").done().exits(0);
    run().env("XDG_RUNTIME_DIR", "relative").done().exits(0);
    run().env("XDG_RUNTIME_DIR", "").done().exits(0);
    assert!(!place.path("relative").exists());
    run().env_remove("XDG_RUNTIME_DIR").env("HOME", "/nonexistent").done().refused(125, &["/nonexistent", "--state"]);
    run().env_remove("XDG_RUNTIME_DIR").env("HOME", "/proc").done().refused(125, &["/proc", "--state"]);
    // Not ours, or open to everybody.
    if support::output("id", &["-u"]) != "0" {
        run().env("XDG_RUNTIME_DIR", "/usr").done().refused(125, &["/usr/sbx", "--state"]);
    }
    for mode in [0o777, 0o1777, 0o722] {
        let open = place.path(format!("open-{mode:o}"));
        fs::create_dir_all(open.join("sbx")).expect("mkdir");
        fs::set_permissions(open.join("sbx"), fs::Permissions::from_mode(mode)).expect("chmod");
        run().env("XDG_RUNTIME_DIR", &open).done().refused(125, &["sbx", "others can write"]);
    }
    // A link to somewhere else, a file, a link loop.
    let odd = place.path("odd");
    fs::create_dir(&odd).expect("mkdir");
    fs::write(odd.join("sbx"), "").expect("write");
    run().env("XDG_RUNTIME_DIR", &odd).done().refused(125, &["odd/sbx"]);
    fs::remove_file(odd.join("sbx")).expect("remove");
    symlink("sbx", odd.join("sbx")).expect("symlink");
    run().env("XDG_RUNTIME_DIR", &odd).done().refused(125, &["odd/sbx"]);
    // Read-only: a directory that may not be written.
    let closed = place.path("closed");
    fs::create_dir(&closed).expect("mkdir");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).expect("chmod");
    if support::output("id", &["-u"]) != "0" {
        run().env("XDG_RUNTIME_DIR", &closed).done().refused(125, &["closed/sbx"]);
        run().env_remove("XDG_RUNTIME_DIR").env("HOME", &closed).done().refused(125, &["closed"]);
    }
    place.assert_clean();
}

#[test]
fn a_directory_of_something_else_is_not_swept() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let project = place.path("project");
    fs::create_dir_all(project.join("empty")).expect("mkdir");
    fs::create_dir_all(project.join("data")).expect("mkdir");
    fs::write(project.join("data/record.json"), "{}").expect("write");
    let before = support::tree(&project);
    let words = ["--state", "./project", &text(place.rootfs()), "true"];
    place.sbx_run(words).done().refused(125, &["project"]);
    assert!(before == support::tree(&project), "{}", support::tree(&project));
    // A damaged record, a link and a file among the records stop nobody.
    place.shell(&[], "true").done().exits(0);
    let state = place.state();
    fs::create_dir(state.join("damaged")).expect("mkdir");
    fs::write(state.join("damaged/record.json"), "{\"made\": [").expect("write");
    symlink("/etc", state.join("link")).expect("symlink");
    fs::write(state.join("file"), "").expect("write");
    place.shell(&[], "true").done().exits(0);
    assert!(!state.join("damaged").exists(), "{:?}", place.records());
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn a_full_and_a_read_only_state_directory() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let sbx = support::sbx();
    let run = |mount: &str| {
        let state = place.path("small");
        fs::create_dir_all(&state).expect("mkdir");
        let script = format!(
            "mount -t tmpfs {mount},mode=700 none {0} || exit 9; {1}; exec {2} run --state {0}/s {3} sh -c 'echo ran; sleep 0.3'",
            state.display(),
            if mount.contains("size") {
                format!("head -c 1M /dev/zero >{}/fill 2>/dev/null", state.display())
            } else {
                "true".into()
            },
            sbx.display(),
            place.rootfs().display()
        );
        place.run("unshare", ["-Urm", "sh", "-c", &script]).done()
    };
    // There is room for the name, not for the record, which is written when the program runs.
    let done = run("-o size=64k").exits(0).says("ran");
    assert!(
        done.err.lines().count() == 1 && done.err.contains("small/s") && done.err.contains("record"),
        "{}",
        done.err
    );
    run("-o nr_inodes=1").refused(125, &["small/s", "--state"]);
    run("-o nr_inodes=2").refused(125, &["small/s", "--state"]);
    run("-o ro").refused(125, &["small/s"]);
    place.assert_clean();
}

#[test]
fn what_it_stands_on_is_removed_while_it_runs() {
    if lacks(&["userns"]) {
        return;
    }
    for what in ["rootfs", "run/sbx", "volume"] {
        let place = Place::new();
        let rootfs = place.own_rootfs("rootfs");
        fs::create_dir(place.path("volume")).expect("mkdir");
        let volume = format!("{}:/mnt", place.path("volume").display());
        let words = ["-v", &volume, &text(&rootfs), "/bin/sh", "-c", "echo up; read x; exit 3"];
        let mut run = place.sbx_run(words);
        run.command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        run.command.stderr(std::process::Stdio::null());
        let mut running = run.start_raw();
        let mut up = [0; 3];
        use std::io::{Read, Write};
        running.child.stdout.as_mut().expect("stdout").read_exact(&mut up).expect("up");
        fs::remove_dir_all(place.path(what)).expect("remove");
        running.child.stdin.take().expect("stdin").write_all(b"\n").expect("write");
        running.done().exits(3);
        place.assert_no_processes();
    }
}

#[test]
fn stopped_and_continued() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let running = place.shell(&[], "while [ ! -e /tmp/x ]; do sleep 0.02; done").start();
    assert!(soon(|| place.processes().iter().any(|p| p.name == "sleep")));
    running.signal("STOP");
    assert!(soon(|| support::process(running.pid()).is_some_and(|p| p.state == 'T')));
    running.signal("TERM");
    running.signal("CONT");
    running.done().exits(143);
    place.assert_clean();
}

#[test]
fn a_storm_of_orphans() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let script = "n=0; while [ $n -lt 10000 ]; do (true & ) ; n=$((n+1)); done; sleep 0.2; \
        grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l; exit 42";
    place.shell(&[], script).limit(180).done().exits(42).says("0");
    place.assert_clean();
}

#[test]
fn helpers_that_are_missing_wrong_or_hanging() {
    if lacks(&["userns", "subids"]) {
        return;
    }
    let place = Place::new();
    let bin = place.path("bin");
    fs::create_dir(&bin).expect("mkdir");
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let helper = |content: &str| {
        for name in ["newuidmap", "newgidmap"] {
            fs::write(bin.join(name), content).expect("write");
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).expect("chmod");
        }
    };
    let words = ["--map", "full", &text(place.rootfs()), "true"];
    // A copy that is not set-uid; one that fails; one that claims to have done it.
    helper("");
    for name in ["newuidmap", "newgidmap"] {
        let real = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(name)).into_iter().find(|p| p.exists());
        fs::copy(real.expect("installed"), bin.join(name)).expect("copy");
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    place.sbx_run(words).env("PATH", &path).done().refused(125, &["newuidmap", "set-uid"]);
    place.assert_clean();
    helper("#!/bin/sh\necho first >&2; echo 'the reason' >&2; exit 1\n");
    place.sbx_run(words).env("PATH", &path).done().refused(125, &["newuidmap", "the reason"]);
    place.assert_clean();
    helper("#!/bin/sh\nexit 0\n");
    let done = place.sbx_run(words).env("PATH", &path).done();
    assert_eq!(done.code(), 125, "{}", done.err);
    place.assert_clean();
    helper("#!/bin/sh\nyes >&2\n");
    let done = place.sbx_run(words).env("PATH", &path).limit(40).done();
    assert_eq!(done.code(), 125, "{}", done.err.chars().take(500).collect::<String>());
    place.assert_clean();
    helper("#!/bin/sh\nexec sleep 1000\n");
    place.sbx_run(words).env("PATH", &path).limit(40).done().refused(125, &["newuidmap", "no answer"]);
    place.assert_clean();
    // A caller that may gain no privileges.
    let script = format!(
        "exec setpriv --no-new-privs {} run --map full {} true",
        support::sbx().display(),
        place.rootfs().display()
    );
    place.run("sh", ["-c", &script]).done().refused(125, &["newuidmap"]);
    place.assert_clean();
}

#[test]
fn one_name_is_given_once() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    for _ in 0..5 {
        // The winner holds the name until all others have tried.
        let words = ["--upper", "tmpfs", "--name", "only", &text(place.rootfs()), "sh", "-c", "echo won; sleep 3"];
        let all: Vec<_> = (0..30).map(|_| place.sbx_run(words).start()).collect();
        let ends: Vec<Done> = all.into_iter().map(|running| running.done()).collect();
        let won = ends.iter().filter(|done| done.code() == 0 && done.text() == "won\n").count();
        assert_eq!(won, 1, "{:?}", ends.iter().map(|d| (d.code(), d.err.clone())).collect::<Vec<_>>());
        for done in ends {
            if done.code() != 0 {
                done.refused(125, &["only", "running"]);
            }
        }
        place.assert_clean();
    }
    let many: Vec<_> = (0..30).map(|_| place.shell(&[], "echo ran").start()).collect();
    many.into_iter().for_each(|running| drop(running.done().exits(0).says("ran")));
    place.assert_clean();
}

#[test]
fn thousands_of_starts_leave_nothing() {
    if lacks(&["userns", "keyctl"]) {
        return;
    }
    let place = Place::new();
    let loops = std::env::var("SBX_TEST_LOOPS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let script = format!(
        "for n in $(seq {loops}); do {} run --seccomp off {} true || exit 1; done",
        support::sbx().display(),
        place.rootfs().display()
    );
    place.shell(&[], "true").done().exits(0);
    let own = fs::read_to_string("/proc/self/cgroup").expect("cgroup");
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("").to_owned();
    let cgroups = || names(&Path::new("/sys/fs/cgroup").join(&own));
    let look =
        || (support::mounts(), names(&place.path("tmp")), names(&place.path("home")), place.records(), cgroups());
    let (before, keys) = (look(), support::keys());
    // A session keyring of its own, as pam_keyinit gives; without --seccomp off no sandbox makes one.
    place.run("keyctl", ["session", "-", "sh", "-c", &script]).limit(600).done().exits(0);
    place.assert_clean();
    let after = look();
    assert_eq!((&before.1, &before.2, &before.3), (&after.1, &after.2, &after.3));
    assert_eq!(before.4, after.4, "control groups are left");
    assert!(before.0 == after.0, "mounts are left");
    // The kernel collects keys when it has the time, those of earlier tests too.
    let collected = within(Duration::from_secs(20), || support::keys() <= keys);
    assert!(collected, "keys: {keys} became {}", support::keys());
}

#[test]
fn the_tree_dies_with_its_parents_parent() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    // sbx is killed with its whole process group, and by a closing pipe of nobody.
    let script = format!(
        "{} run {} sh -c 'setsid sleep 1000 & sleep 1000' & echo $!; wait",
        support::sbx().display(),
        place.rootfs().display()
    );
    let running = place.run("sh", ["-c", &script]).start();
    assert!(soon(|| place.processes().iter().filter(|p| p.name == "sleep").count() == 2));
    let killed = Command::new("kill").args(["-KILL", "--", &format!("-{}", running.pid())]).status().expect("kill");
    assert!(killed.success());
    running.done();
    place.assert_clean_after_next();
}
