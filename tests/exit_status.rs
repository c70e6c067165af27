//! The exit status is the program's own, and the end of either ends the other.

mod support;

use std::fs;
use std::time::{Duration, Instant};
use support::{Place, lacks, soon};

#[test]
fn codes_pass_through() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    for code in 0..=255 {
        let done = place.shell(&[], &format!("exit {code}")).done().exits(code);
        assert_eq!(done.text(), "");
        // What a shell answers to what is not allowed or not found, and most programs to any failure.
        let hinted = [1, 126, 127].contains(&code);
        assert_eq!(done.err.lines().filter(|line| line.contains("--explain")).count(), usize::from(hinted), "{code}");
        assert_eq!(done.err.lines().count(), usize::from(hinted), "{}", done.err);
    }
    for code in [0, 1, 124, 125, 126, 127, 137, 255] {
        place.shell(&["--no-init"], &format!("exit {code}")).done().exits(code);
        place.shell(&["--map", "keep"], &format!("exit {code}")).done().exits(code);
        if !lacks(&["subids"]) {
            place.shell(&["--map", "full"], &format!("exit {code}")).done().exits(code);
        }
    }
    place.assert_clean();
}

#[test]
fn signals_are_128_and_their_number() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    for (name, number) in [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("TRAP", 5),
        ("ABRT", 6),
        ("BUS", 7),
        ("FPE", 8),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("XCPU", 24),
        ("SYS", 31),
    ] {
        // The shell itself ignores QUIT; `sleep` does not.
        let script = format!("p=$$; (while ! grep -q sleep /proc/$p/comm; do :; done; kill -{name} $p) & exec sleep 9");
        let done = place.shell(&["--rlimit", "core=0"], &script).done();
        assert_eq!(done.code(), 128 + number, "{name}: {}", done.err);
    }
    place.shell(&[], "kill -34 $$; sleep 5").done().exits(162);
    place.shell(&[], "kill -64 $$; sleep 5").done().exits(192);
    place.assert_clean();
}

/// By the signals of the keyboard sbx dies as the program did: a shell's loop ends only then.
#[test]
fn sbx_dies_of_what_is_typed() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let script = "ulimit -c unlimited; exec \"$@\" 3>status";
    let run = |inside: &str| {
        let (sbx, root) = (support::sbx(), place.rootfs());
        let words = [sbx.as_os_str(), "run".as_ref(), "--status-fd".as_ref(), "3".as_ref(), root.as_os_str()];
        let words = ["-c", script, "sh"].map(std::ffi::OsStr::new).into_iter().chain(words);
        let running = place.run("sh", words.chain(["sh", "-c", inside].map(std::ffi::OsStr::new))).start();
        assert!(soon(|| place.processes().iter().any(|p| p.name == "sleep")), "{:?}", place.processes());
        running
    };
    let ways = [
        ("exec sleep 1000", "INT", 1002, "\"signal\":2"),
        ("exec sleep 1000", "QUIT", 1003, "\"signal\":3"),
        ("exec sleep 1000", "TERM", 143, "\"signal\":15"),
        ("trap 'exit 130' INT; sleep 1000 & wait", "INT", 130, "\"code\":130"),
        ("trap 'kill -KILL $$' INT; sleep 1000 & wait", "INT", 137, "\"signal\":9"),
    ];
    for (inside, signal, code, told) in ways {
        let running = run(inside);
        running.signal(signal);
        let done = running.done().exits(code);
        assert!(!std::os::unix::process::ExitStatusExt::core_dumped(&done.status), "{signal}");
        let status = fs::read_to_string(place.path("status")).expect("status");
        assert!(status.lines().last().is_some_and(|last| last.contains(told)), "{signal}: {status}");
        place.assert_clean();
    }
}

#[test]
fn background_processes_end_with_the_program() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    for options in [&[][..], &["--no-init"]] {
        // They hold stdout open, ignore what they can, and have left the session.
        let script = "trap '' TERM HUP INT; sleep 1000 & setsid sleep 1000 & (sleep 1000 & sleep 1000 &) & exit 5";
        let started = Instant::now();
        place.shell(options, script).done().exits(5);
        assert!(started.elapsed() < Duration::from_secs(20), "sbx waited for the background");
        place.assert_clean();
    }
}

#[test]
fn stopped_background_processes_end_too() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    place.shell(&[], "sleep 1000 & kill -STOP $!; exit 6").done().exits(6);
    place.assert_clean();
}

#[test]
fn timeout_is_124() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let done = place.shell(&["--timeout", "300ms"], "sleep 1000").done().exits(124);
    assert!(done.err.contains("--timeout"), "{}", done.err);
    // TERM can be answered with any status, it stays 124.
    let script = "trap 'echo got it; exit 7' TERM; while :; do sleep 0.05; done";
    place.shell(&["--timeout", "300ms"], script).done().exits(124).says("got it");
    // TERM is ignored: KILL after --kill-after, by all and everything.
    let script = "trap '' TERM; sleep 1000 & while :; do sleep 0.05; done";
    place.shell(&["--timeout", "200ms", "--kill-after", "200ms"], script).done().exits(124);
    place.shell(&["--timeout", "200ms", "--kill-after", "200ms", "--no-init"], script).done().exits(124);
    // A stopped program is woken by it.
    place.shell(&["--timeout", "200ms"], "kill -STOP $$; echo woken").done().exits(124);
    // In time it says nothing.
    let done = place.shell(&["--timeout", "1h"], "exit 3").done().exits(3);
    assert_eq!(done.err, "");
    place.assert_clean();
}

#[test]
fn the_program_ends_at_once_when_sbx_is_killed() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    for options in [&[][..], &["--no-init"], &["--map", "keep"]] {
        let running = place.shell(options, "sleep 1000 & setsid sleep 1000 & echo up; sleep 1000").start();
        assert!(
            soon(|| place.processes().iter().filter(|p| p.name == "sleep").count() == 3),
            "{:?}",
            place.processes()
        );
        running.signal("KILL");
        assert_eq!(running.done().code(), 1009);
        place.assert_no_processes();
    }
    place.assert_clean_after_next();
}

#[test]
fn setting_up_is_interrupted_by_a_signal() {
    if lacks(&["userns", "strace"]) {
        return;
    }
    // The child is held up for a second in the midst of its mounts, and sbx is told to end meanwhile.
    for (signal, status) in [("TERM", 143), ("INT", 1002), ("QUIT", 1003), ("HUP", 129)] {
        let place = Place::new();
        let sbx = support::sbx().into_os_string().into_string().expect("utf-8");
        let rootfs = place.rootfs().into_os_string().into_string().expect("utf-8");
        let delay = "inject=pivot_root:delay_enter=1500000";
        let words = ["-f", "-qq", "-o", "log", "-e", "trace=pivot_root", "-e", delay, &sbx, "run", &rootfs, "true"];
        let running = place.run("strace", words).start();
        let supervisor = || place.processes().into_iter().find(|p| p.name == "sbx" && p.parent == running.pid());
        let children = || place.processes().iter().filter(|p| p.name.starts_with("sbx")).count() > 1;
        assert!(soon(|| supervisor().is_some() && children()), "{:?}", place.processes());
        support::kill(supervisor().expect("there").pid, signal);
        let done = running.done();
        assert_eq!(done.code(), status, "{signal}: {}", done.err);
        assert!(done.err.contains("interrupted by signal"), "{}", done.err);
        place.assert_clean();
    }
}

#[test]
fn the_status_descriptor_tells_how_it_ended() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let ends = [("exit 7", "\"code\":7"), ("kill -KILL $$", "\"signal\":9")];
    for (script, ended) in ends {
        let sbx = support::sbx();
        let line = format!(
            "exec {} run --status-fd 3 --pid-file pid {} sh -c '{script}' 3>status",
            sbx.display(),
            place.rootfs().display()
        );
        place.run("sh", ["-c", &line]).done();
        let status = fs::read_to_string(place.path("status")).expect("status");
        let lines: Vec<serde_json::Value> =
            status.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
        let pid = lines[0]["started"]["pid"].as_i64().expect("a pid");
        assert_eq!(fs::read_to_string(place.path("pid")).expect("pid file"), format!("{pid}\n"));
        assert!(status.lines().last().is_some_and(|last| last.contains(ended)), "{status}");
    }
    place.assert_clean();
}
