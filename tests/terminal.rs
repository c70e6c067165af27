//! Terminals and plain descriptors: job control inside, sizes, modes put back on every way out, bytes unchanged.

mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use support::screen::{Reader, Screen};
use support::{Place, Run, Running, lacks, soon, within};

/// `sbx run` on a terminal of its own.
fn on_terminal(place: &Place, words: &[&str]) -> Run {
    support::screen::on_terminal(place, &[&["run"], words].concat())
}

fn rootfs(place: &Place) -> String {
    place.rootfs().into_os_string().into_string().expect("utf-8")
}

#[test]
fn the_program_has_a_terminal_of_the_sandboxs_own() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let screen = Screen::new(Reader::Fast);
    let before = screen.modes();
    let script = "tty; ls -l /proc/$$/fd/0 /dev/console | sed 's/.* //'; cut -d' ' -f5-8 /proc/$$/stat; exit 4";
    let done = screen.start(on_terminal(&place, &[&rootfs(&place), "sh", "-c", script])).done().exits(4);
    drop(done);
    screen.shows("/dev/pts/0");
    let text = screen.text();
    let last = text.lines().last().unwrap_or("").to_owned();
    // Group, session, terminal, foreground group: the program leads its session and is in the foreground.
    let fields: Vec<&str> = last.split(' ').collect();
    assert!(fields.len() == 4 && fields[0] == fields[1] && fields[0] == fields[3] && fields[2] != "0", "{text}");
    assert!(screen.modes() == before, "the modes are not put back");
    place.assert_clean();
}

#[test]
fn jobs_are_controlled_inside() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let screen = Screen::new(Reader::Fast);
    let before = screen.modes();
    let running = screen.start(on_terminal(&place, &[&rootfs(&place), "sh"]));
    screen.type_in("PS1='ready> '\n");
    screen.shows("\nready> ");
    // Ctrl-C ends the job, not the shell, not sbx.
    screen.type_in("sleep 1000\n");
    assert!(soon(|| place.processes().iter().any(|p| p.name == "sleep")));
    screen.type_in("\x03");
    assert!(soon(|| !place.processes().iter().any(|p| p.name == "sleep")), "{}", screen.text());
    screen.type_in("echo status=$?\n");
    screen.shows("status=130");
    // Ctrl-Z stops the job, the shell goes on, `fg` brings it back.
    screen.type_in("cat\n");
    assert!(soon(|| place.processes().iter().any(|p| p.name == "cat")));
    screen.type_in("one\n");
    screen.shows("one\r\none");
    screen.type_in("\x1a");
    screen.shows("Stopped");
    screen.type_in("jobs; echo shell=alive\n");
    screen.shows("shell=alive\r\n");
    screen.type_in("fg\n");
    assert!(soon(|| place.processes().iter().any(|p| p.name == "cat" && p.state != 'T')));
    screen.shows("fg\r\ncat\r\n");
    screen.type_in("two\n");
    screen.shows("two\r\ntwo");
    screen.type_in("\x04");
    screen.type_in("exit 9\n");
    running.done().exits(9);
    assert!(screen.modes() == before, "the modes are not put back");
    place.assert_clean();
}

#[test]
fn a_change_of_size_reaches_the_program() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let screen = Screen::new(Reader::Fast);
    screen.stty(&["rows", "33", "cols", "101"]);
    let script = "trap 'stty size' WINCH; stty size; while ! [ -e /tmp/stop ]; do sleep 0.05; read x && exit 3; done";
    let running =
        screen.start(on_terminal(&place, &[&rootfs(&place), "sh", "-c", &script.replace("read x && exit 3", ":")]));
    screen.shows("33 101");
    screen.stty(&["rows", "44", "cols", "77"]);
    screen.shows("44 77");
    // A storm of sizes ends with the last one.
    for n in 1..=100 {
        screen.stty(&["rows", &n.to_string(), "cols", "200"]);
    }
    screen.shows("100 200");
    running.signal("TERM");
    running.done();
    place.assert_clean();
}

#[test]
fn modes_are_put_back_on_every_way_out() {
    if lacks(&["userns"]) {
        return;
    }
    for (signal, to_program, status) in [("KILL", true, 137), ("TERM", false, 143), ("HUP", false, 129)] {
        let place = Place::new();
        let screen = Screen::new(Reader::Fast);
        screen.stty(&["-echo", "intr", "^X"]);
        let before = screen.modes();
        let running = screen.start(on_terminal(&place, &[&rootfs(&place), "sh", "-c", "echo up; exec sleep 1000"]));
        screen.shows("up");
        assert!(soon(|| screen.modes() != before), "the terminal never went raw");
        if to_program {
            let program = place.processes().into_iter().find(|p| p.name == "sleep").expect("the program");
            support::kill(program.pid, signal);
        } else {
            running.signal(signal);
        }
        running.done().exits(status);
        assert!(screen.modes() == before, "the modes are not put back after {signal}");
        place.assert_clean();
    }
    // Nothing ran: never raw.
    let place = Place::new();
    let screen = Screen::new(Reader::Fast);
    let before = screen.modes();
    screen.start(on_terminal(&place, &["--nonsense", &rootfs(&place)])).done().exits(125);
    screen.start(on_terminal(&place, &[&rootfs(&place), "nothing-here"])).done().exits(127);
    assert!(screen.modes() == before, "the modes are not put back");
    place.assert_clean();
}

#[test]
fn the_terminal_hangs_up() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let screen = Screen::new(Reader::Stopped);
    let running = screen.start(on_terminal(&place, &[&rootfs(&place), "sh", "-c", "echo up; exec sleep 1000"]));
    assert!(soon(|| place.processes().iter().any(|p| p.name == "sleep")), "{:?}", place.processes());
    drop(screen);
    running.done().exits(129);
    place.assert_clean();
}

#[test]
fn without_a_terminal_bytes_pass_unchanged() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let mut random = vec![0; 1 << 20];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)).expect("random bytes");
    random[..4].copy_from_slice(&[0, 0xff, 4, 26]);
    for options in [&["-T"][..], &[], &["--no-init"]] {
        let words = options.iter().map(|w| w.to_string()).chain([rootfs(&place), "cat".into()]);
        let done = place.sbx_run(words).input(random.clone()).done().exits(0);
        assert!(done.out == random, "the bytes have changed");
    }
    // A file on stdin, which is not a pipe.
    fs::write(place.path("file"), &random).expect("write");
    for options in [&["-T"][..], &["--landlock", "off"]] {
        let words = options.iter().map(|w| w.to_string()).chain([rootfs(&place), "cat".into()]);
        let file = File::open(place.path("file")).expect("open");
        let done = place.sbx_run(words).stdin(file).done().exits(0);
        assert!(done.out == random, "the bytes have changed: {options:?}");
    }
    place.assert_clean();
}

#[test]
fn pipes_are_passed_and_not_copied() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let outer = "for n in 0 1 2; do readlink /proc/self/fd/$n; done";
    let inner = "for n in 0 1 2; do readlink /proc/$$/fd/$n; done";
    let sbx = support::sbx();
    let script = format!(
        "sh -c '{}' >outer; exec {} run -T {} sh -c '{}' >&2",
        "for n in 0 2; do readlink /proc/$$/fd/$n; done",
        sbx.display(),
        rootfs(&place),
        inner.replace("1 2", "2"),
    );
    let done = place.run("bash", ["-c", &script]).done().exits(0);
    let outside = fs::read_to_string(place.path("outer")).expect("outer");
    assert!(outside.starts_with("pipe:["), "{outside}");
    assert_eq!(done.err, outside, "{outer}");
    place.assert_clean();
}

#[test]
fn stderr_stays_the_callers_when_it_is_no_terminal() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let screen = Screen::new(Reader::Fast);
    let mut run = on_terminal(&place, &[&rootfs(&place), "sh", "-c", "echo out; echo err >&2; test -t 2; echo t=$?"]);
    run = run.stdin(screen.slave());
    run.command.stdout(screen.slave()).stderr(Stdio::piped());
    let done = run.start_as_is().done().exits(0);
    assert_eq!(done.err, "err\n");
    screen.shows("out\r\nt=1");
    // With -t and plain pipes there is a terminal all the same, and errors stay apart.
    let script = "tty; echo err >&2";
    let done = place.shell(&["-t"], script).done().exits(0);
    assert_eq!((done.text().trim_end(), done.err.as_str()), ("/dev/pts/0", "err\n"));
    place.assert_clean();
}

#[test]
fn the_end_of_input_reaches_a_terminal() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let words = ["-t".into(), rootfs(&place), "cat".into()];
    let done = place.sbx_run(words).input("line\n").done().exits(0);
    assert!(done.text().contains("line"), "{:?}", done.text());
    // An unfinished line needs two ends.
    let words = ["-t".into(), rootfs(&place), "cat".into()];
    place.sbx_run(words).input("half").done().exits(0);
    let words = ["-t".into(), rootfs(&place), "cat".into()];
    place.sbx_run(words).done().exits(0);
    place.assert_clean();
}

#[test]
fn a_reader_that_goes_away_is_no_busy_loop() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let sbx = support::sbx();
    for option in ["-T", "-t"] {
        let line = format!("{} run {option} {} sh -c 'yes | head -c 1000000' | head -1", sbx.display(), rootfs(&place));
        place.run("sh", ["-c", &line]).done().exits(0).says("y");
        place.assert_clean();
    }
    // The reader is gone and the program goes on in silence: sbx and init sleep.
    let script = format!("exec {} run -t {} sh -c 'echo up; sleep 1000'", sbx.display(), rootfs(&place));
    let mut run = place.run("sh", ["-c", &script]);
    run.command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = run.start_with_own_output();
    let mut up = [0; 2];
    let mut output = running.child.stdout.take().expect("stdout");
    output.read_exact(&mut up).expect("up");
    drop(output);
    thread::sleep(Duration::from_millis(300));
    let used = || support::ticks(running.pid());
    let before = used();
    thread::sleep(Duration::from_millis(1000));
    assert!(used() - before <= 10, "{} ticks in a second of waiting", used() - before);
    running.signal("TERM");
    running.done();
    place.assert_clean();
}

#[test]
fn a_flood_to_a_slow_reader_takes_no_memory() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let screen = Screen::new(Reader::Slow);
    let running = screen.start(on_terminal(&place, &[&rootfs(&place), "yes"]));
    screen.shows("y\r\ny");
    let memory = || {
        let fields = fs::read_to_string(format!("/proc/{}/statm", running.pid())).expect("statm");
        fields.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4096
    };
    let first = memory();
    thread::sleep(Duration::from_millis(1500));
    assert!(memory() < first + (1 << 20), "{first} became {}", memory());
    running.signal("TERM");
    running.done().exits(143);
    place.assert_clean();
}

/// The program is gone before its last output is read, and other things happen meanwhile.
#[test]
fn the_last_output_arrives_whole() {
    if lacks(&["userns"]) {
        return;
    }
    const LENGTH: usize = (64 << 10) + 2500;
    let place = Place::new();
    let script = format!("read x; head -c {LENGTH} /dev/zero | tr '\\0' x");
    let mut run = place.sbx_run(["-t", &rootfs(&place), "sh", "-c", &script]);
    run.command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = run.start_raw();
    assert!(soon(|| place.processes().iter().any(|p| p.name == "sh")));
    running.child.stdin.take().expect("stdin").write_all(b"\n").expect("type");
    // A pipe takes 64 KiB, or less where what is written does not fill its pages; the rest waits in the terminal, and
    // sbx for a reader.
    let mut out = Vec::new();
    let mut stdout = running.child.stdout.take().expect("stdout");
    while !within(Duration::from_millis(500), || place.processes().len() == 1) {
        let mut some = [0; 4096];
        let length = stdout.read(&mut some).expect("read");
        assert!(length > 0 && out.len() < LENGTH, "{:?}", place.processes());
        out.extend_from_slice(&some[..length]);
    }
    for signal in ["WINCH", "CHLD", "USR1", "WINCH"] {
        thread::sleep(Duration::from_millis(30));
        running.signal(signal);
    }
    thread::sleep(Duration::from_millis(30));
    stdout.read_to_end(&mut out).expect("read");
    running.done().exits(0);
    assert_eq!(out.iter().filter(|byte| **byte == b'x').count(), LENGTH);
    place.assert_clean();
}

#[test]
fn a_stopped_reader_does_not_stop_the_clock() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    // Nobody reads the terminal, as after Ctrl-S: signals and the time limit still count.
    let screen = Screen::new(Reader::Stopped);
    // -q: what sbx itself says about the time would wait for the reader.
    let words = ["-q", "--timeout", "500ms", "--kill-after", "500ms", &rootfs(&place), "yes"];
    screen.start(on_terminal(&place, &words)).limit_more(5).done().exits(124);
    let screen = Screen::new(Reader::Stopped);
    let running = screen.start(on_terminal(&place, &[&rootfs(&place), "yes"]));
    assert!(soon(|| place.processes().iter().any(|p| p.name == "yes")));
    thread::sleep(Duration::from_millis(300));
    running.signal("TERM");
    running.done().exits(143);
    place.assert_clean();
}

#[test]
fn a_program_that_does_not_read_its_terminal_stops_nobody() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let words = ["-t", "--timeout", "500ms", &rootfs(&place), "sh", "-c", "stty raw; exec sleep 1000"];
    place.sbx_run(words).input(vec![b'x'; 1 << 20]).done().exits(124);
    place.assert_clean();
}

/// A shell with job control on a terminal.
fn shell(place: &Place) -> (Screen, Running) {
    let screen = Screen::new(Reader::Fast);
    let run = place.run_in_group("setsid", ["-c", "bash", "--norc", "--noprofile", "-i"]);
    let running = screen.start(run.env("PS1", "ready> "));
    screen.shows("ready> ");
    (screen, running)
}

#[test]
fn a_job_in_the_background_leaves_the_terminal_alone() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let (screen, running) = shell(&place);
    let sbx = format!("{} run --kill-after 1 {}", support::sbx().display(), rootfs(&place));
    let sleeps = || place.processes().iter().any(|p| p.name == "sleep");
    // It runs, ends by a signal, and says so, though nobody gives it the terminal.
    screen.type_in(&format!("{sbx} sleep 1000 &\n"));
    assert!(soon(sleeps), "{}", screen.text());
    screen.type_in("kill %1; wait %1; echo status=$?\n");
    screen.shows("status=143");
    // So does its time limit, and what it writes arrives.
    screen.type_in(&format!(
        "{} --timeout 1 {} sh -c 'echo o''ut; sleep 1000' & wait $!; echo late=$?\n",
        sbx.rsplit_once(' ').expect("words").0,
        rootfs(&place)
    ));
    screen.shows("\nout");
    screen.shows("late=124");
    // In the foreground it takes what is typed.
    screen.type_in(&format!("{sbx} sh -c 'read x; echo got=$x' &\n"));
    assert!(soon(|| place.processes().iter().any(|p| p.name == "sh")), "{}", screen.text());
    screen.type_in("fg\n");
    screen.shows("fg\r\n");
    screen.type_in("typed\n");
    screen.shows("got=typed");
    // Until its end what is typed is the sandbox's.
    assert!(soon(|| !place.processes().iter().any(|p| p.name == "sbx")), "{}", screen.text());
    screen.type_in("exit\n");
    running.done();
    place.assert_clean();
}

#[test]
fn ctrl_z_without_a_terminal_of_its_own_stops_all_and_cont_resumes() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let sbx = support::sbx();
    let (screen, running) = shell(&place);
    let script = "while :; do echo tick; sleep 0.05; done";
    screen.type_in(&format!("{} run -T {} sh -c '{script}'\n", sbx.display(), rootfs(&place)));
    screen.shows("\ntick\r\ntick");
    screen.type_in("\x1a");
    screen.shows("Stopped");
    // The whole tree stands still but init, which waits.
    let stopped = || {
        let all = place.processes();
        let of = |name: &str| all.iter().filter(|p| p.name == name).map(|p| p.state).collect::<String>();
        of("sh") == "T" && of("sbx") == "T" && of("sbx-init") == "S"
    };
    assert!(soon(stopped), "{:?}", place.processes());
    let count = || screen.text().matches("tick").count();
    let before = count();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(before, count(), "it goes on though stopped");
    screen.type_in("fg\n");
    assert!(soon(|| count() > before + 3), "{:?}", place.processes());
    screen.type_in("\x03");
    screen.type_in("echo status=$?\n");
    screen.shows("status=130");
    screen.type_in("exit\n");
    running.done();
    place.assert_clean();
}

#[test]
fn ctrl_c_ends_the_loop_of_a_shell() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let sbx = support::sbx();
    let (screen, running) = shell(&place);
    screen.type_in(&format!(
        "for n in 1 2 3; do echo loop=$n; {} run -T {} sleep 1000; echo next=$n; done\n",
        sbx.display(),
        rootfs(&place)
    ));
    screen.shows("loop=1\r\n");
    assert!(soon(|| place.processes().iter().any(|p| p.name == "sleep")));
    screen.type_in("\x03");
    screen.type_in("echo status=$?\n");
    screen.shows("status=130");
    assert!(!screen.text().contains("next=1") && !screen.text().contains("loop=2"), "{}", screen.text());
    screen.type_in("exit\n");
    running.done();
    place.assert_clean();
}
