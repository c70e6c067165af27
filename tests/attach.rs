//! `sbx attach`: what a sandbox in the background shows and takes, and that nobody who looks on can harm it. And of the
//! three commands that make a terminal raw, that it is as before whatever ends them.

mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use support::detached::Detached;
use support::screen::{Reader, Screen, on_terminal};
use support::{Place, Run, Running, SOON, kill, lacks, soon, within};

impl Detached<'_> {
    fn attach(&self) -> Run {
        self.place.sbx(["attach", &self.name])
    }

    /// `sbx attach` on this terminal, once that is raw.
    #[track_caller]
    fn attach_on(&self, screen: &Screen) -> Running {
        let before = screen.modes();
        let mut running = screen.start(on_terminal(self.place, &["attach", &self.name]));
        let raw = soon(|| screen.modes() != before || running.ended().is_some());
        assert!(raw && running.ended().is_none(), "not attached: {}", screen.text());
        running
    }

    /// Waits until this many are attached, as the supervisor's descriptors tell.
    #[track_caller]
    fn has(&self, kind: Kind, attached: usize) {
        let (dir, wanted) = (format!("/proc/{}/fd", self.supervisor()), kind.own + attached * kind.each);
        let is = |name: &String| fs::read_link(format!("{dir}/{name}")).is_ok_and(|to| joint(&to.to_string_lossy()));
        let count = || support::names(dir.as_ref()).iter().filter(|name| is(name)).count();
        assert!(within(3 * SOON, || count() == wanted), "{} pipes and sockets in place of {wanted}", count());
    }

    /// Starts it, and waits until it is attached as one of this many.
    #[track_caller]
    fn started(&self, run: Run, kind: Kind, number: usize) -> Running {
        let running = run.start_raw();
        self.has(kind, number);
        running
    }

    #[track_caller]
    fn assert_runs(&self) {
        assert_eq!(self.place.standing(&self.name), "running");
        assert!(support::process(self.supervisor()).is_some());
    }
}

/// What kind of descriptor a supervisor needs for those who are attached.
fn joint(link: &str) -> bool {
    link.starts_with("pipe:") || link.starts_with("socket:")
}

/// How a sandbox is started, how many pipes and sockets its supervisor has of its own, and how many for each who is
/// attached. Its own: the listener, the channel to init, and an end of each pipe to the program.
#[derive(Clone, Copy)]
struct Kind {
    options: &'static [&'static str],
    own: usize,
    each: usize,
}

const TERMINAL: Kind = Kind { options: &["-t"], own: 2, each: 2 };
const INPUT: Kind = Kind { options: &["-i"], own: 5, each: 3 };
const PLAIN: Kind = Kind { options: &[], own: 4, each: 3 };

#[test]
fn a_terminal_shows_takes_and_ends_with_the_program() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let sandbox = place.detach(&["-t"], "PS1='ready> ' exec sh");
    sandbox.shows("ready>");
    let screen = Screen::new(Reader::Fast);
    screen.stty(&["rows", "33", "cols", "101"]);
    let before = screen.modes();
    let running = sandbox.attach_on(&screen);
    screen.type_in("echo o''ut; stty size\n");
    screen.shows("out\r\n33 101\r\n");
    // The keyboard's signals are the program's.
    screen.type_in("sleep 1000\n");
    assert!(soon(|| place.processes().iter().any(|p| p.name == "sleep")));
    screen.type_in("\x03");
    assert!(soon(|| !place.processes().iter().any(|p| p.name == "sleep")), "{}", screen.text());
    screen.type_in("echo status=$?\n");
    screen.shows("status=130");
    screen.type_in("exit 9\n");
    running.done().exits(9);
    assert!(screen.modes() == before, "the modes are not put back");
    assert_eq!(sandbox.ended()["exit_status"], 9);
    sandbox.shows("status=130");
    sandbox.forget();
    place.assert_clean();
}

#[test]
fn a_change_of_size_arrives_inside() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let script = "trap 'stty size' WINCH; echo up; while :; do sleep 0.05; done";
    let sandbox = place.detach(&["-t"], script);
    sandbox.shows("up");
    let screen = Screen::new(Reader::Fast);
    screen.stty(&["rows", "33", "cols", "101"]);
    let running = sandbox.attach_on(&screen);
    screen.shows("33 101");
    screen.stty(&["rows", "44", "cols", "77"]);
    screen.shows("44 77");
    running.signal("TERM");
    running.done();
    // Who comes later, with a terminal as large, has it drawn anew.
    let other = Screen::new(Reader::Fast);
    other.stty(&["rows", "44", "cols", "77"]);
    let running = sandbox.attach_on(&other);
    other.shows("44 77");
    running.signal("TERM");
    running.done();
    sandbox.end();
    place.assert_clean();
}

#[test]
fn leaving_puts_the_modes_back_and_ends_nothing() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let sandbox = place.detach(&["-t"], "cat");
    for (signal, status) in [("TERM", 1015), ("HUP", 1001), ("INT", 1002), ("QUIT", 1003), ("USR1", 1010)] {
        let screen = Screen::new(Reader::Fast);
        screen.stty(&["-echo", "intr", "^X"]);
        let before = screen.modes();
        let running = sandbox.attach_on(&screen);
        running.signal(signal);
        running.done().exits(status);
        assert!(screen.modes() == before, "the modes are not put back after {signal}");
    }
    // Stopped from outside, the terminal is as before; continued, it is raw.
    let screen = Screen::new(Reader::Fast);
    let before = screen.modes();
    let running = sandbox.attach_on(&screen);
    running.signal("TSTP");
    assert!(soon(|| screen.modes() == before), "raw though stopped");
    running.signal("CONT");
    assert!(soon(|| screen.modes() != before), "not raw though continued");
    screen.type_in("word\n");
    screen.shows("word\r\nword\r\n");
    running.signal("KILL");
    running.done().exits(1009);
    sandbox.has(TERMINAL, 0);
    sandbox.assert_runs();
    sandbox.end();
    place.assert_clean();
}

#[test]
fn exec_puts_the_modes_back_on_every_way_out() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let sandbox = place.detach(&[], "sleep 1000");
    for (signal, status) in [("TERM", 143), ("HUP", 129), ("INT", 1002), ("KILL inside", 137), ("none", 3)] {
        let screen = Screen::new(Reader::Fast);
        screen.stty(&["-echo", "intr", "^X"]);
        let before = screen.modes();
        let script = "echo up; if [ $0 = none ]; then read x; exit 3; else exec sleep 999; fi";
        let running = screen.start(on_terminal(&place, &["exec", "-t", &sandbox.name, "sh", "-c", script, signal]));
        screen.shows("up");
        assert!(soon(|| screen.modes() != before), "the terminal never went raw");
        match signal {
            "none" => screen.type_in("\n"),
            "KILL inside" => {
                let own = |p: &support::Process| {
                    p.name == "sleep"
                        && fs::read(format!("/proc/{}/cmdline", p.pid)).is_ok_and(|l| l == b"sleep\x00999\0")
                };
                let mut program = None;
                assert!(soon(|| {
                    program = place.processes().into_iter().find(own);
                    program.is_some()
                }));
                kill(program.expect("the program").pid, "KILL");
            }
            signal => running.signal(signal),
        }
        running.done().exits(status);
        assert!(screen.modes() == before, "the modes are not put back after {signal}");
    }
    sandbox.assert_runs();
    sandbox.end();
    place.assert_clean();
}

/// The switch `panic` is a bug of sbx's own, at the worst moment.
#[test]
fn the_modes_are_put_back_after_a_panic() {
    if lacks(&["userns", "sabotage"]) {
        return;
    }
    let place = Place::new();
    let sandbox = place.detach(&["-t"], "cat");
    let rootfs = place.rootfs().into_os_string().into_string().expect("utf-8");
    let switch = std::env::var("SBX_SABOTAGE").ok().filter(|switch| !switch.is_empty());
    let commands = [
        &["attach", &sandbox.name][..],
        &["exec", "-t", &sandbox.name, "sleep", "1000"],
        &["run", "-t", &rootfs, "sleep", "1000"],
    ];
    for words in commands {
        let screen = Screen::new(Reader::Fast);
        let before = screen.modes();
        let run = on_terminal(&place, words).env("SBX_SABOTAGE", switch.as_deref().unwrap_or("panic"));
        screen.start(run).done().exits(1006);
        screen.shows("bug in sbx");
        assert!(screen.modes() == before, "the modes are not put back: {words:?}");
    }
    sandbox.assert_runs();
    sandbox.end();
    place.assert_clean_after_next();
}

#[test]
fn a_terminal_that_hangs_up_ends_nothing() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let sandbox = place.detach(&["-t"], "cat");
    // Of its session, which the kernel tells by a signal; and of another, where it has to be seen.
    for own in [true, false] {
        let screen = Screen::new(Reader::Stopped);
        let run = if own { on_terminal(&place, &["attach", &sandbox.name]) } else { sandbox.attach() };
        let running = screen.start(run);
        sandbox.has(TERMINAL, 1);
        drop(screen);
        running.done().exits(if own { 1001 } else { 0 });
        sandbox.has(TERMINAL, 0);
        sandbox.assert_runs();
    }
    sandbox.end();
    place.assert_clean();
}

#[test]
fn the_end_of_input_is_not_the_terminals() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let sandbox = place.detach(&["-t"], "cat; echo over");
    let mut run = sandbox.attach();
    run.command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = sandbox.started(run, TERMINAL, 1);
    running.child.stdin.take().expect("stdin").write_all(b"word\n").expect("type");
    sandbox.shows("word\r\nword");
    // It still shows what comes, from another that types.
    let screen = Screen::new(Reader::Fast);
    let other = sandbox.attach_on(&screen);
    screen.type_in("more\n");
    screen.shows("more\r\nmore");
    screen.type_in("\x04");
    other.done().exits(0);
    let mut shown = String::new();
    running.child.stdout.take().expect("stdout").read_to_string(&mut shown).expect("read");
    running.done().exits(0);
    assert!(shown.ends_with("more\r\nmore\r\nover\r\n"), "{shown:?}");
    sandbox.ended();
    sandbox.forget();
    place.assert_clean();
}

#[test]
fn a_reader_that_goes_away_ends_nothing() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    for kind in [TERMINAL, INPUT] {
        for script in ["sleep 1000", "while :; do echo line; sleep 0.02; done"] {
            let sandbox = place.detach(kind.options, script);
            let mut run = sandbox.attach();
            run.command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut running = sandbox.started(run, kind, 1);
            drop(running.child.stdout.take());
            // Its input is still open.
            running.done().exits(0);
            sandbox.assert_runs();
            sandbox.end();
        }
    }
    place.assert_clean();
}

#[test]
fn without_a_terminal_streams_are_apart_and_whole() {
    if lacks(&["userns"]) {
        return;
    }
    const LENGTH: usize = 3 << 20;
    let place = Place::new();
    // The first ends, and with that has written all, before the second has anything to read.
    let half = LENGTH / 2;
    let script =
        format!("head -c {half}; echo error >&2; head -c {half}; head -c {LENGTH} /dev/zero; echo last >&2; exit 3");
    let sandbox = place.detach(&["-i"], &script);
    let mut random = vec![0; LENGTH];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)).expect("random bytes");
    // The end of what one has to say is not the end of the input.
    let (first, second) = random.split_at(half);
    let mut run = sandbox.attach();
    run.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut one = sandbox.started(run, INPUT, 1);
    let (mut input, mut output) = one.child.stdin.take().zip(one.child.stdout.take()).expect("pipes");
    let mut bytes = vec![0; first.len()];
    thread::scope(|scope| {
        scope.spawn(move || input.write_all(first).expect("type"));
        output.read_exact(&mut bytes).expect("what was written");
    });
    let all = thread::spawn(move || {
        // From here on it reads slowly.
        let mut part = [0; 1 << 16];
        while let Ok(n @ 1..) = output.read(&mut part) {
            bytes.extend_from_slice(&part[..n]);
            thread::sleep(Duration::from_millis(5));
        }
        bytes
    });
    let done = sandbox.attach().input(second).done().exits(3);
    assert!(done.err.ends_with("last\n"), "{}", done.err);
    let mut errors = String::new();
    one.child.stderr.take().expect("stderr").read_to_string(&mut errors).expect("read");
    one.done().exits(3);
    assert_eq!(errors, "error\nlast\n");
    random.resize(2 * LENGTH, 0);
    assert!(all.join().expect("the reader") == random, "the bytes have changed");
    sandbox.ended();
    sandbox.forget();
    place.assert_clean();
}

#[test]
fn ctrl_c_without_a_terminal_only_leaves() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let sandbox = place.detach(&[], "while :; do echo line; sleep 0.02; done");
    let screen = Screen::new(Reader::Fast);
    let before = screen.modes();
    let running = screen.start(on_terminal(&place, &["attach", &sandbox.name]));
    screen.shows("line");
    assert!(screen.modes() == before, "raw without a terminal of the sandbox's");
    screen.type_in("\x03");
    running.done().exits(1002);
    sandbox.assert_runs();
    sandbox.end();
    place.assert_clean();
}

#[test]
fn several_see_the_same_and_their_number_is_bounded() {
    if lacks(&["userns"]) {
        return;
    }
    const MOST: usize = 8;
    let place = Place::new();
    let sandbox = place.detach(&["-t"], "cat");
    let screens: Vec<Screen> = (0..MOST).map(|_| Screen::new(Reader::Fast)).collect();
    let mut attached: Vec<Running> = screens.iter().map(|screen| sandbox.attach_on(screen)).collect();
    sandbox.attach().done().refused(125, &[&sandbox.name, "too many", "try: ", "sbx logs"]);
    for (n, screen) in screens.iter().enumerate() {
        screen.type_in(&format!("word {n}\n"));
        screens.iter().for_each(|screen| screen.shows(&format!("word {n}\r\nword {n}")));
    }
    // One leaves, and one more comes.
    let first = attached.remove(0);
    first.signal("KILL");
    first.done();
    sandbox.has(TERMINAL, MOST - 1);
    let screen = Screen::new(Reader::Fast);
    attached.push(sandbox.attach_on(&screen));
    screens[1].type_in("to all\n");
    screens.iter().skip(1).chain([&screen]).for_each(|screen| screen.shows("to all\r\nto all"));
    screens[1].type_in("\x04");
    attached.into_iter().for_each(|running| drop(running.done().exits(0)));
    sandbox.ended();
    sandbox.forget();
    place.assert_clean();
}

/// Stopped, as by Ctrl-Z or a connection that hangs: for a moment it holds the program up, then it is let go.
#[test]
fn one_that_stands_still_is_let_go() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let flood = "n=0; while :; do n=$((n+1)); echo line $n; done";
    for kind in [TERMINAL, INPUT] {
        let sandbox = place.detach(kind.options, flood);
        // Another sees what comes, before and after.
        let mut run = sandbox.attach();
        run.command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut other = sandbox.started(run, kind, 1);
        let mut lines = other.child.stdout.take().expect("stdout");
        let reader = thread::spawn(move || while let Ok(1..) = lines.read(&mut [0; 4096]) {});
        let mut run = sandbox.attach();
        run.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut still = sandbox.started(run, kind, 2);
        let memory = || {
            let text = support::process(sandbox.supervisor()).and_then(|p| p.status("RssAnon")).expect("memory");
            text.trim_end_matches(" kB").parse::<u64>().expect("kB")
        };
        let first = memory();
        still.signal("STOP");
        sandbox.has(kind, 1);
        // What it was is seen by the log: more than any pipe holds is written on.
        let log = sandbox.dir().join("log");
        let place_in_log = || fs::metadata(&log).map(|meta| (std::os::unix::fs::MetadataExt::ino(&meta), meta.len()));
        let before = place_in_log().expect("a log");
        assert!(soon(|| place_in_log().is_ok_and(|now| now.0 != before.0 || now.1 > before.1 + (1 << 20))));
        assert!(memory() <= first + 64, "the supervisor has grown from {first} kB to {}", memory());
        sandbox.assert_runs();
        // It still gets what the pipe holds, and hears why.
        still.signal("CONT");
        let mut output = still.child.stdout.take().expect("stdout");
        let mut errors = still.child.stderr.take().expect("stderr");
        let (mut out, mut err) = (Vec::new(), String::new());
        output.read_to_end(&mut out).and_then(|_| errors.read_to_string(&mut err)).expect("read");
        still.done().exits(125);
        assert!(out.len() > 4096 && err.contains("let go") && err.contains("try: "), "{} {err}", out.len());
        place.sbx(["kill", &sandbox.name]).done().exits(0);
        other.done().exits(137);
        reader.join().expect("the reader");
        sandbox.forget();
    }
    place.assert_clean();
}

#[test]
fn one_that_stands_still_keeps_nobody_from_ending_it() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    for kind in [TERMINAL, INPUT] {
        let sandbox = place.detach(kind.options, "trap 'exit 6' TERM; while :; do echo line; done");
        let mut run = sandbox.attach();
        run.command.stdin(Stdio::null()).stdout(Stdio::piped());
        let still = sandbox.started(run, kind, 1);
        still.signal("STOP");
        // Held up, it logs nothing more.
        let logged = || fs::metadata(sandbox.dir().join("log")).map(|meta| meta.len()).expect("a log");
        let held = soon(|| {
            let before = logged();
            thread::sleep(Duration::from_millis(200));
            before > 0 && logged() == before
        });
        assert!(held, "it goes on: {}", logged());
        let done = place.sbx(["stop", &sandbox.name]).done().exits(0);
        assert_eq!(done.err, "", "the supervisor did not answer");
        sandbox.ended();
        still.signal("KILL");
        still.done();
        sandbox.forget();
    }
    place.assert_clean();
}

#[test]
fn who_cannot_be_joined_is_told_why() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let attach = |name: &str| place.sbx(["attach", name]).done();
    let running = place.named("front", &[], "sleep 1000");
    attach("front").refused(125, &["front", "foreground", "try: ", "sbx exec front"]);
    running.signal("TERM");
    running.done();
    attach("nobody").refused(125, &["nobody", "no sandbox", "try: "]);
    attach("../x").refused(125, &["no sandbox"]);
    place.sbx(["attach"]).done().refused(125, &["NAME", "try: "]);
    place.sbx(["attach", "a", "b"]).done().refused(125, &["try: "]);
    let sandbox = place.detach(&[], "sleep 1000");
    place.sbx(["pause", &sandbox.name]).done().exits(0);
    attach(&sandbox.name).refused(125, &["paused", "try: sbx resume"]);
    place.sbx(["resume", &sandbox.name]).done().exits(0);
    let mut run = sandbox.attach();
    run.command.stdin(Stdio::null()).stderr(Stdio::piped());
    let mut running = sandbox.started(run, PLAIN, 1);
    kill(sandbox.supervisor(), "KILL");
    let mut errors = String::new();
    running.child.stderr.take().expect("stderr").read_to_string(&mut errors).expect("read");
    running.done().exits(125);
    assert!(errors.contains("its supervisor was killed") && errors.contains("try: "), "{errors}");
    attach(&sandbox.name).refused(125, &["it has ended", "try: "]);
    sandbox.forget();
    let sandbox = place.detach(&[], "exit 4");
    sandbox.ended();
    attach(&sandbox.name).refused(125, &["it has ended", "try: sbx logs"]);
    sandbox.forget();
    place.assert_clean();
}
