//! The commands about sandboxes that there are: what each answers, and that none of them, no client and no state
//! directory keeps a sandbox from being stopped. Faults and races are in `lifecycle_faults.rs`.

mod support;

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, Instant};
use support::screen::{Reader, Screen};
use support::{Done, Place, Process, Run, Running, SOON, lacks, soon};

/// Runs until it is told to end.
const FOREVER: &str = "while :; do sleep 1000; done";

fn sbx(place: &Place, words: &[&str]) -> Run {
    place.sbx(words)
}

fn list(place: &Place, words: &[&str]) -> Vec<Value> {
    let done = sbx(place, &[&["ps", "--json"], words].concat()).done().exits(0);
    serde_json::from_slice(&done.out).expect("a JSON array")
}

fn names_of(list: &[Value]) -> Vec<&str> {
    list.iter().filter_map(|facts| facts["name"].as_str()).collect()
}

fn program(place: &Place, name: &str) -> Option<Process> {
    place.processes().into_iter().find(|process| process.name == name)
}

/// It has ended as if by this signal, and nothing is left.
#[track_caller]
fn ended_by(place: &Place, running: Running, signal: i32) -> Done {
    let done = running.done().exits(128 + signal);
    place.assert_clean();
    done
}

#[test]
fn each_command_helps_and_refuses_what_it_does_not_know() {
    let place = Place::new();
    for command in ["ps", "inspect", "stats", "wait", "stop", "kill", "pause", "resume", "rm", "prune"] {
        for word in ["--help", "-h"] {
            let help = sbx(&place, &[command, word]).done().exits(0);
            assert!(help.text().contains(&format!("Usage: sbx {command}")) && help.err.is_empty(), "{help:?}");
        }
        sbx(&place, &[command, "--bogus"]).done().refused(125, &["--bogus", &format!("sbx {command} --help")]);
        if !["ps", "prune", "stats"].contains(&command) {
            sbx(&place, &[command]).done().refused(125, &["NAME", &format!("sbx {command} --help")]);
        }
        if !["ps", "prune"].contains(&command) {
            for name in ["nobody", "..", "a/b", "", "-", "\u{1b}[31m", &"x".repeat(300)] {
                sbx(&place, &[command, "--", name]).done().refused(1, &["no sandbox of this name", "sbx ps"]);
            }
        }
    }
    for (words, named) in [
        (&["ps", "name"][..], "name"),
        (&["prune", "name"], "name"),
        (&["stop", "-t", "x", "n"], "--time"),
        (&["stop", "-s", "x", "n"], "--signal"),
        (&["kill", "-s", "BOGUS", "n"], "BOGUS"),
    ] {
        sbx(&place, words).done().refused(125, &[named]);
    }
    for signal in ["0", "65", "-1", "99999999999", "", "SIG", "TERMINATE"] {
        sbx(&place, &["kill", "-s", signal, "n"]).done().refused(125, &["--signal"]);
    }
    sbx(&place, &["stpo", "n"]).done().refused(125, &["sbx stop"]);
    sbx(&place, &["ps"]).done().exits(0).says("NAME  STATE  PID  SINCE  COMMAND");
    sbx(&place, &["ps", "-a", "--json"]).done().exits(0).says("[]");
    sbx(&place, &["prune"]).done().exits(0).says("");
    place.assert_clean();
}

#[test]
fn what_runs_is_listed_and_told() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let running = place.named("web", &["--label", "a=b"], "echo up; exec sleep 1000");
    let all = list(&place, &[]);
    assert_eq!(names_of(&all), ["web"]);
    let facts = place.facts("web");
    assert_eq!(all[0], facts);
    for key in ["name", "state", "pid", "supervisor_pid", "exit_status"] {
        assert!(facts.get(key).is_some(), "{key}: {facts}");
    }
    assert_eq!(
        (&facts["name"], &facts["state"], &facts["exit_status"]),
        (&json!("web"), &json!("running"), &Value::Null)
    );
    assert_eq!(facts["supervisor_pid"], running.pid());
    let init = program(&place, "sbx-init").expect("an init");
    assert_eq!(facts["pid"], init.pid);
    assert_eq!((&facts["labels"], &facts["command"][0]), (&json!({"a": "b"}), &json!("sh")));
    // Whoever looks may do so with words in any order, and with a state directory of its own.
    for words in [&["inspect", "web", "web"][..], &["inspect", "--state", "run/sbx", "web", "-q", "web"]] {
        let told: Value = serde_json::from_slice(&sbx(&place, words).done().exits(0).out).expect("JSON");
        assert_eq!(told, json!([facts, facts]), "{words:?}");
    }
    let table = sbx(&place, &["ps"]).done().exits(0).text();
    let line = table.lines().nth(1).expect("a line");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..3], ["web", "running", &init.pid.to_string()], "{table}");
    assert!(line.ends_with("sh -c echo up; exec sleep 1000"), "{table}");
    // One bad name among good ones: those are told, and the status says it.
    let done = sbx(&place, &["inspect", "nobody", "web", "none"]).done().exits(1);
    assert_eq!(serde_json::from_slice::<Value>(&done.out).expect("JSON"), json!([facts]));
    assert!(done.err.contains("sbx: nobody: no sandbox") && done.err.contains("sbx: none: no sandbox"), "{}", done.err);
    sbx(&place, &["rm", "web"]).done().refused(1, &["web", "running", "sbx stop web"]);
    sbx(&place, &["prune"]).done().exits(0).says("");
    assert_eq!(place.standing("web"), "running");
    sbx(&place, &["rm", "-f", "web"]).done().exits(0).says("");
    assert_eq!(running.done().exits(137).text(), "up\n");
    place.assert_clean();
}

#[test]
fn several_names_at_once_and_one_that_is_not_there() {
    if lacks(&["userns"]) {
        return;
    }
    for (command, signal) in [(&["stop"][..], 15), (&["kill"], 9), (&["rm", "-f"], 9), (&["kill", "-s", "HUP"], 1)] {
        let place = Place::new();
        let both = ["one", "two"].map(|name| place.named(name, &[], "exec sleep 1000"));
        sbx(&place, &[command, &["one", "nobody", "two"]].concat()).done().refused(1, &["nobody", "no sandbox"]);
        for running in both {
            // init takes TERM and HUP from a program that is the first of a pid namespace; `sleep` is not.
            running.done().exits(128 + signal);
        }
        place.assert_clean();
    }
    let place = Place::new();
    let both = ["one", "two"].map(|name| place.named(name, &[], FOREVER));
    for (command, state) in [("pause", "paused"), ("resume", "running")] {
        sbx(&place, &[command, "nobody", "two", "one"]).done().refused(1, &["nobody", "no sandbox"]);
        assert_eq!(["one", "two"].map(|name| place.standing(name)), [state, state]);
    }
    sbx(&place, &["stop", "two", "one"]).done().exits(0).says("");
    let _ = both.map(|running| running.done().exits(143));
    place.assert_clean();
}

#[test]
fn statuses_are_told_to_all_who_wait() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let slow = place.named("slow", &[], "trap 'exit 7' TERM; while :; do sleep 0.05; done");
    let fast = place.named("fast", &[], "sleep 1; exit 3");
    // In the order of the names, though the second ends first.
    let both = sbx(&place, &["wait", "slow", "nobody", "fast"]).start();
    let many: Vec<Running> = (0..25).map(|_| sbx(&place, &["wait", "slow"]).start()).collect();
    let killed: Vec<Running> = (0..4).map(|_| sbx(&place, &["wait", "slow"]).start()).collect();
    fast.done().exits(3);
    killed.into_iter().for_each(|wait| {
        wait.signal("KILL");
        drop(wait.done());
    });
    assert_eq!(place.standing("slow"), "running");
    sbx(&place, &["stop", "slow"]).done().exits(0);
    slow.done().exits(7);
    let both = both.done().exits(1);
    assert_eq!(both.text(), "7\n3\n");
    assert!(both.err.starts_with("sbx: nobody: no sandbox"), "{}", both.err);
    many.into_iter().for_each(|wait| drop(wait.done().exits(0).says("7")));
    place.assert_clean();
}

#[test]
fn more_who_wait_than_there_is_room_for_keep_nobody_from_stopping() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let running = place.named("x", &[], "exec sleep 1000");
    let mut many: Vec<Running> = (0..50).map(|_| sbx(&place, &["wait", "x"]).start()).collect();
    let refused = |many: &mut Vec<Running>| many.iter_mut().filter_map(Running::ended).count();
    assert!(soon(|| refused(&mut many) == 18), "{}", refused(&mut many));
    sbx(&place, &["stop", "x"]).done().exits(0);
    let ends: Vec<Done> = many.into_iter().map(Running::done).collect();
    assert_eq!(ends.iter().filter(|done| done.code() == 0 && done.text() == "143\n").count(), 32);
    for done in ends.into_iter().filter(|done| done.code() != 0) {
        done.refused(1, &["x", "too many"]);
    }
    ended_by(&place, running, 15);
}

#[test]
fn stop_asks_waits_and_kills() {
    if lacks(&["userns"]) {
        return;
    }
    // A program that reacts, one that ignores TERM, one that is paused, one with children that go on.
    let deaf = "trap '' TERM; (trap '' TERM; sleep 1000 & wait) & while :; do sleep 1000; done";
    for (script, words, pause, status) in [
        ("trap 'exit 5' TERM; while :; do sleep 0.01; done", &["stop"][..], false, 5),
        ("trap 'exit 5' TERM; while :; do sleep 0.01; done", &["stop"], true, 5),
        ("trap 'exit 6' INT; while :; do sleep 0.01; done", &["stop", "-s", "int"], false, 6),
        ("setsid sleep 1000 & exec sleep 1000", &["stop", "--time", "1h"], false, 143),
        (deaf, &["stop", "-t", "1"], false, 137),
        (deaf, &["stop", "-t", "1"], true, 137),
        (deaf, &["stop", "-t", "0"], false, 137),
        (deaf, &["stop", "-t", "0"], true, 137),
        (deaf, &["kill"], true, 137),
        (deaf, &["rm", "-f"], true, 137),
    ] {
        let place = Place::new();
        let running = place.named("x", &[], script);
        assert!(soon(|| program(&place, "sleep").is_some()));
        if pause {
            sbx(&place, &["pause", "x"]).done().exits(0);
        }
        let begin = Instant::now();
        sbx(&place, &[words, &["x"]].concat()).done().exits(0).says("");
        let took = begin.elapsed();
        // It returns when all is gone, and not before the grace of a deaf one is over.
        assert!(place.records().is_empty(), "{script} {words:?}");
        let grace = if words.contains(&"1") { 1 } else { 0 };
        assert!(took >= Duration::from_secs(grace) && took < SOON, "{script} {words:?}: {took:?}");
        running.done().exits(status);
        place.assert_clean();
    }
}

#[test]
fn stop_more_than_once_and_while_it_starts() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    // Of several, the least patient one counts, and all return.
    let running = place.named("x", &[], "trap '' TERM; while :; do sleep 1000; done");
    let patient: Vec<Running> = (0..10).map(|_| sbx(&place, &["stop", "-t", "1h", "x"]).start()).collect();
    assert!(soon(|| place.standing("x") == "running"));
    sbx(&place, &["stop", "-t", "1", "x"]).done().exits(0);
    patient.into_iter().for_each(|stop| drop(stop.done().exits(0)));
    ended_by(&place, running, 9);
    for wait in [0, 0, 1, 2, 4, 8, 15, 30, 40, 50, 60, 80] {
        let running = place.shell(&["--upper", "tmpfs", "--name", "x"], "exec sleep 1000").start();
        assert!(soon(|| place.state().join("x").exists()));
        std::thread::sleep(Duration::from_millis(wait));
        sbx(&place, &["stop", "x"]).done().exits(0);
        ended_by(&place, running, 15);
    }
}

#[test]
fn signals_of_each_kind() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let caught = ["HUP", "INT", "QUIT", "USR1", "USR2", "TERM", "WINCH", "ALRM", "PIPE", "CHLD"];
    let traps: String = caught.map(|name| format!("trap 'echo {name} >>/tmp/log' {name};")).concat();
    let script = format!("{traps} echo >/tmp/up; while :; do sleep 0.01; done");
    let tree = place.path("tmp/shared");
    fs::create_dir(&tree).expect("mkdir");
    let volume = format!("{}:/tmp", tree.display());
    let running = place.named("x", &["-v", &volume], &script);
    assert!(soon(|| tree.join("up").exists()));
    let log = || fs::read_to_string(tree.join("log")).unwrap_or_default();
    for (word, shown) in [
        ("HUP", "HUP"),
        ("SIGINT", "INT"),
        ("quit", "QUIT"),
        ("sigusr1", "USR1"),
        ("12", "USR2"),
        ("TERM", "TERM"),
        ("28", "WINCH"),
        ("ALRM", "ALRM"),
        ("13", "PIPE"),
    ] {
        fs::write(tree.join("log"), "").expect("write");
        sbx(&place, &["kill", "-s", word, "x"]).done().exits(0).says("");
        assert!(soon(|| log().contains(shown)), "{word}: {:?}", log());
        assert_eq!(place.standing("x"), "running");
    }
    for stop in ["STOP", "TSTP", "19"] {
        sbx(&place, &["kill", "-s", stop, "x"]).done().exits(0);
        assert_eq!(place.standing("x"), "paused", "{stop}");
        sbx(&place, &["kill", "--signal=CONT", "x"]).done().exits(0);
        assert_eq!(place.standing("x"), "running", "{stop}");
    }
    // Real-time signals end a program that does not expect them; KILL ends all.
    sbx(&place, &["kill", "-s", "40", "x"]).done().exits(0);
    ended_by(&place, running, 40);
    for words in [&["kill", "x"][..], &["kill", "-s", "9", "x"], &["kill", "-s", "SIGKILL", "x"]] {
        let running = place.named("x", &[], "setsid sleep 1000 & exec sleep 1000");
        sbx(&place, words).done().exits(0).says("");
        assert!(place.records().is_empty());
        ended_by(&place, running, 9);
    }
    let running = place.named("x", &["--no-init"], "trap 'exit 9' USR1; while :; do sleep 0.01; done");
    sbx(&place, &["kill", "-s", "USR1", "x"]).done().exits(0);
    running.done().exits(9);
    place.assert_clean();
}

#[test]
fn a_paused_tree_stands_still() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let tree = place.path("tmp/shared");
    fs::create_dir(&tree).expect("mkdir");
    let volume = format!("{}:/tmp", tree.display());
    let count = "n=0; while :; do n=$((n+1)); echo $n >/tmp/count; done";
    // Children of the program, of its children, and of nobody.
    let script = format!("(setsid sh -c 'sleep 1000' &) ; ({count}) & sh -c 'sleep 1000; :' & wait");
    let running = place.named("x", &["-v", &volume], &script);
    let inside = || -> Vec<Process> {
        let all = place.processes().into_iter();
        all.filter(|process| process.name != "sbx-init" && process.pid != running.pid()).collect()
    };
    assert!(soon(|| inside().len() >= 5 && tree.join("count").exists()), "{:?}", inside());
    for _ in 0..2 {
        sbx(&place, &["pause", "x"]).done().exits(0).says("");
        assert_eq!(place.standing("x"), "paused");
        let stopped = |process: &Process| process.state == 'T' || process.state == 'D';
        assert!(soon(|| inside().iter().all(stopped)), "{:?}", inside());
        let before = (fs::read_to_string(tree.join("count")).ok(), inside().len());
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!((fs::read_to_string(tree.join("count")).ok(), inside().len()), before);
        // Twice is the same.
        sbx(&place, &["pause", "x"]).done().exits(0);
        assert!(list(&place, &[])[0]["state"] == "paused");
        // A signal waits until it runs again.
        sbx(&place, &["kill", "-s", "WINCH", "x"]).done().exits(0);
        assert!(inside().iter().all(stopped), "{:?}", inside());
        sbx(&place, &["resume", "x"]).done().exits(0).says("");
        sbx(&place, &["resume", "x"]).done().exits(0);
        assert_eq!(place.standing("x"), "running");
        assert!(soon(|| fs::read_to_string(tree.join("count")).ok() != before.0));
    }
    sbx(&place, &["pause", "x"]).done().exits(0);
    // What ends a process wakes it for that (signal.c, complete_signal), so there may be nothing left to resume.
    sbx(&place, &["kill", "-s", "TERM", "x"]).done().exits(0);
    assert!([0, 1].contains(&sbx(&place, &["resume", "x"]).done().code()));
    ended_by(&place, running, 15);
    let running = place.named("y", &["--no-init", "--limits", "off"], FOREVER);
    sbx(&place, &["pause", "y"]).done().refused(1, &["y", "--no-init"]);
    assert_eq!(place.standing("y"), "running");
    sbx(&place, &["rm", "-f", "y"]).done().exits(0);
    ended_by(&place, running, 9);
}

#[test]
fn tables_fit_the_terminal() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let long = "a-name-of-a-good-length-and-more";
    let running = place.named(long, &[], "exec sleep 1000; : äöü and much more that nobody wants to read in full");
    for columns in [200, 80, 60, 40, 30, 20, 10, 3, 1] {
        for words in [&["ps"][..], &["ps", "-a"], &["stats", "--no-stream"]] {
            let screen = Screen::new(Reader::Fast);
            screen.stty(&["cols", &columns.to_string(), "rows", "24", "-opost"]);
            drop(screen.start(sbx(&place, words)).done().exits(0));
            assert!(soon(|| screen.text().ends_with('\n')), "{:?}", screen.text());
            let text = screen.text();
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(columns) && text.lines().count() >= 2, "{words:?} {columns}: {text}");
            // A script gets all of it.
            assert!(columns < 40 || text.contains("a-name-"), "{columns}: {text}");
        }
    }
    assert!(sbx(&place, &["ps"]).done().text().contains(long));
    // Colors are for terminals; a full disk is an error, a reader that is gone is none.
    assert!(!sbx(&place, &["ps"]).done().text().contains('\u{1b}'));
    let full = place.run("sh", ["-c", &format!("{} ps >/dev/full", support::sbx().display())]).done();
    full.refused(125, &["standard output"]);
    sbx(&place, &["stop", long]).done().exits(0);
    ended_by(&place, running, 15);
}

#[test]
fn records_that_are_damaged_newer_or_planted() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let running = place.named("good", &[], "exec sleep 1000");
    let odd = place.named("odd", &[], "exec sleep 1000");
    let state = place.state();
    let record = fs::read_to_string(state.join("good/record.json")).expect("a record");
    let plant = |name: &str, text: &str| {
        fs::create_dir_all(state.join(name)).expect("mkdir");
        fs::set_permissions(state.join(name), fs::Permissions::from_mode(0o700)).expect("chmod");
        fs::write(state.join(name).join("record.json"), text).expect("write");
    };
    let mangled =
        ["", "{", "null", "[]", "{\"version\":1}", "\u{0}", &record.replace(':', ";"), &record[..record.len() / 2]];
    for (n, text) in mangled.iter().enumerate() {
        plant(&format!("damaged-{n}"), text);
    }
    plant("another", &record);
    plant("newer", &record.replace("\"version\":1", "\"version\":99").replace("\"good\"", "\"newer\""));
    plant("foreign", "{\"version\":2,\"of\":\"a form that nobody knows yet\"}");
    // Of a living one the record is not what its life hangs on.
    fs::write(state.join("odd/record.json"), "{").expect("write");
    fs::write(state.join("file"), "x").expect("write");
    symlink("/etc", state.join("link")).expect("symlink");
    symlink("good", state.join("alias")).expect("symlink");
    fs::create_dir(state.join("a b\u{1b}[2J")).expect("mkdir");
    fs::write(state.join("a b\u{1b}[2J/x"), "").expect("write");
    assert!(std::process::Command::new("mkfifo").arg(state.join("fifo")).status().expect("mkfifo").success());
    fs::create_dir(state.join("closed")).expect("mkdir");
    fs::write(state.join("closed/keep"), "").expect("write");
    fs::set_permissions(state.join("closed"), fs::Permissions::from_mode(0o000)).expect("chmod");
    for _ in 0..2 {
        let done = sbx(&place, &["ps"]).done().exits(0);
        let shown: Vec<String> =
            done.text().lines().skip(1).map(|l| l.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(shown, ["good running", "odd running"], "{done:?}");
        assert!(done.err.contains("newer sbx") && !done.err.contains('\u{1b}'), "{}", done.err);
        // What is damaged names nothing to clear and is gone; a newer record stays for who knows it.
        let all = list(&place, &["-a"]);
        let states: Vec<_> = all.iter().map(|facts| format!("{} {}", facts["name"], facts["state"])).collect();
        let wanted = ["\"foreign\" \"dead\"", "\"good\" \"running\"", "\"newer\" \"dead\"", "\"odd\" \"running\""];
        assert_eq!(states, wanted);
    }
    for name in ["newer", "foreign"] {
        sbx(&place, &["rm", name]).done().says_among("newer sbx").exits(1);
        sbx(&place, &["stop", name]).done().exits(0);
        sbx(&place, &["kill", name]).done().exits(1);
        place.shell(&["--upper", "tmpfs", "--name", name], "true").done().says_among("newer sbx").exits(125);
    }
    for name in ["file", "link", "alias", "fifo", "closed"] {
        assert_eq!(sbx(&place, &["inspect", name]).done().code(), 1, "{name}");
        assert_eq!(sbx(&place, &["rm", "-f", name]).done().code(), 1, "{name}");
    }
    sbx(&place, &["pause", "odd"]).done().exits(0);
    assert_eq!(place.standing("odd"), "paused");
    sbx(&place, &["stop", "odd", "good"]).done().exits(0);
    running.done().exits(143);
    odd.done().exits(143);
    assert!(fs::read_to_string("/etc/passwd").is_ok());
    let left = place.records();
    assert_eq!(left, ["a b\u{1b}[2J", "alias", "closed", "fifo", "file", "foreign", "link", "newer"]);
    fs::set_permissions(state.join("closed"), fs::Permissions::from_mode(0o700)).expect("chmod");
    place.assert_no_processes();
}

/// What is said beside other things.
trait Among {
    fn says_among(self, text: &str) -> Self;
}

impl Among for Done {
    #[track_caller]
    fn says_among(self, text: &str) -> Done {
        assert!(self.err.contains(text), "{}", self.err);
        self
    }
}

#[test]
fn state_directories_that_are_somebody_elses() {
    let place = Place::new();
    let open = place.path("open");
    fs::create_dir(&open).expect("mkdir");
    let used = place.path("used");
    fs::create_dir_all(used.join("project")).expect("mkdir");
    let before = support::tree(&used);
    let file = place.write("file", "x");
    let root = support::output("id", &["-u"]) == "0";
    for command in ["ps", "inspect", "stats", "wait", "stop", "kill", "pause", "resume", "rm", "prune"] {
        let run = |dir: &std::path::Path| {
            let dir = dir.to_str().expect("utf-8");
            let words: &[&str] = if ["ps", "prune"].contains(&command) { &[] } else { &["x"] };
            sbx(&place, &[&[command, "--state", dir], words].concat()).done()
        };
        for mode in [0o777, 0o1777, 0o770, 0o707] {
            fs::set_permissions(&open, fs::Permissions::from_mode(mode)).expect("chmod");
            run(&open).refused(125, &["open", "others can write", "--state"]);
        }
        run(&used).refused(125, &["used", "holds something", "--state"]);
        run(&file).refused(125, &["file", "--state"]);
        if !root {
            run(std::path::Path::new("/usr")).refused(125, &["/usr", "not to you", "--state"]);
            run(std::path::Path::new("/usr/none")).refused(125, &["/usr/none", "--state"]);
        }
    }
    assert_eq!(support::tree(&used), before);
}

#[test]
fn a_full_and_a_read_only_state_directory() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let (sbx, rootfs) = (support::sbx(), place.rootfs());
    // In a mount namespace of its own a state directory is made full or read-only while sandboxes run in it.
    let run = |options: &str, change: &str, script: &str| {
        let state = place.path("small");
        fs::create_dir_all(&state).expect("mkdir");
        let script = format!(
            "mount -t tmpfs -o {options},mode=700 none {0} || exit 9\n\
             sbx() {{ {1} \"$@\" --state {0}/s; }}\n\
             start() {{ {1} run --state {0}/s --name $1 {2} sh -c \"$2\" & eval pid_$1=$!; \
             n=0; until [ -S {0}/s/$1/control ] || [ $n = 500 ]; do sleep 0.02; n=$((n+1)); done; }}\n\
             start a 'exec sleep 1000'; start b 'trap \"\" TERM; while :; do sleep 1; done'; start c 'exec sleep 1000'\n\
             {3}\n{4}\nwait $pid_c; echo c $?",
            state.display(),
            sbx.display(),
            rootfs.display(),
            change.replace("STATE", &state.display().to_string()),
            script,
        );
        place.run("unshare", ["-Urm", "bash", "-c", &script]).done()
    };
    let stop = "sbx ps | awk 'NR > 1 { print $1, $2 }'\n\
        sbx stop a; echo $?; wait $pid_a; echo a $?\n\
        sbx stop -t 1 b; echo $?; wait $pid_b; echo b $?\n\
        sbx rm -f c; echo $?";
    let stopped = "0\na 143\n0\nb 137\n0\nc 137";
    let states = |done: &Done| done.text().lines().take(3).map(str::to_owned).collect::<Vec<_>>();
    for (options, change) in [
        ("size=256k", "head -c 1M /dev/zero >STATE/fill 2>/dev/null"),
        ("nr_inodes=40", "n=0; while : >STATE/f$n; do n=$((n+1)); done 2>/dev/null"),
        ("size=1m", "mount -o remount,bind,ro STATE"),
    ] {
        let done = run(options, change, stop);
        let rest: Vec<String> = done.text().lines().skip(3).map(str::to_owned).collect();
        assert_eq!(states(&done), ["a running", "b running", "c running"], "{options} {change}: {done:?}");
        assert_eq!(rest.join("\n"), stopped, "{options} {change}: {}", done.err);
    }
    // What cannot be marked is not done, and said; what is paused can be stopped.
    let pause = "sbx pause a; echo $?; sbx ps | awk 'NR == 2 { print $2 }'; sbx resume a; echo $?";
    let done = run("size=1m", "mount -o remount,bind,ro STATE", &format!("{pause}\n{stop}"));
    let rest: Vec<&str> = done.err.lines().filter(|line| line.contains("read-only")).collect();
    assert!(done.text().starts_with("1\nrunning\n") && !rest.is_empty(), "{done:?}");
    assert!(done.text().ends_with(&format!("{stopped}\n")), "{done:?}");
    let done = run("size=1m", "sbx pause a b; mount -o remount,bind,ro STATE", stop);
    assert_eq!(states(&done), ["a paused", "b paused", "c running"], "{done:?}");
    assert!(done.text().ends_with(&format!("{stopped}\n")), "{done:?}");
    place.assert_clean();
}

#[test]
fn what_is_used_now_is_shown() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let none = sbx(&place, &["stats", "--no-stream", "--json"]).done().exits(0);
    assert_eq!(none.text().trim(), "[]");
    sbx(&place, &["stats"]).done().exits(0).says("NAME  CPU  MEMORY  PIDS  IO  WAITING  BY");
    // One that is busy in a grandchild of nobody's, with pages of its own, and one that sleeps.
    let busy = "(setsid sh -c 'while :; do :; done' &) ; dd if=/dev/zero of=/dev/null bs=40M count=1000000 & \
        sleep 1000 & wait";
    let limits = ["--limits", "watch", "--mem", "512M", "--pids", "50"];
    let busy = place.named("busy", &limits, busy);
    let idle = place.named("idle", &["--limits", "off"], "exec sleep 1000");
    let look = || -> Vec<Value> {
        let done = sbx(&place, &["stats", "--no-stream", "--json"]).done().exits(0);
        serde_json::from_slice(&done.out).expect("an array")
    };
    assert!(soon(|| look().iter().all(|one| one["pids"].as_u64() >= Some(1))));
    let all = look();
    assert_eq!(names_of(&all), ["busy", "idle"]);
    let keys: Vec<&str> = all[0].as_object().expect("an object").keys().map(String::as_str).collect();
    let wanted = [
        "by",
        "cpu_percent",
        "cpu_seconds",
        "cpus_max",
        "io_read",
        "io_written",
        "memory",
        "memory_max",
        "name",
        "pids",
        "pids_max",
        "pressure_percent",
    ];
    assert_eq!(keys, wanted);
    let number = |n: usize, key: &str| all[n][key].as_f64().unwrap_or(-1.0);
    assert_eq!((&all[0]["by"], &all[1]["by"]), (&json!("processes"), &json!("processes")));
    assert!(number(0, "memory") > 40e6 && number(0, "memory") < 200e6, "{all:?}");
    assert!(number(1, "memory") > 1e4 && number(1, "memory") < 40e6, "{all:?}");
    assert_eq!((&all[0]["memory_max"], &all[0]["pids_max"]), (&json!(512 << 20), &json!(50)));
    // The shell, the busy one, dd and sleep; sbx's own init is nobody's business.
    assert_eq!((&all[0]["pids"], &all[1]["pids"]), (&json!(4), &json!(1)), "{:?}", place.processes());
    assert!(number(0, "cpu_percent") > 5.0 && number(1, "cpu_percent") < number(0, "cpu_percent"), "{all:?}");
    assert!(number(0, "cpu_seconds") > 0.0);
    // What has come by `exec` counts too.
    let entered = sbx(&place, &["exec", "idle", "sleep", "1000"]).start();
    assert!(soon(|| look()[1]["pids"] == json!(2)), "{:?}", look());
    // One of two names is not there: the other is shown.
    let done = sbx(&place, &["stats", "--no-stream", "nobody", "idle"]).done().exits(1);
    assert!(done.text().lines().count() == 2 && done.text().contains("idle"), "{done:?}");
    sbx(&place, &["stats", "nobody"]).done().refused(1, &["nobody"]);
    // A stream goes on when one ends, and ends with the last; a line is an object.
    let stream = sbx(&place, &["stats", "--json"]).start();
    let shown = Screen::new(Reader::Fast);
    let table = shown.start(sbx(&place, &["stats"]));
    shown.shows("idle");
    std::thread::sleep(Duration::from_millis(1500));
    sbx(&place, &["stop", "-t", "1", "busy"]).done().exits(0);
    drop(busy.done());
    std::thread::sleep(Duration::from_millis(2500));
    sbx(&place, &["stop", "idle"]).done().exits(0);
    idle.done().exits(143);
    entered.done().exits(137);
    let lines: Vec<Value> =
        stream.done().exits(0).text().lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let of = |name: &str| lines.iter().filter(|line| line["name"] == name).count();
    assert!(of("busy") >= 1 && of("idle") > of("busy"), "{lines:?}");
    table.done().exits(0);
    // In its place: up again, over what was there.
    assert!(shown.text().contains("\u{1b}[3A\u{1b}[J") && shown.text().contains("\u{1b}[2A"), "{:?}", shown.text());
    place.assert_clean();
}

#[test]
fn a_stream_ends_when_nobody_reads_it() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let running = place.named("x", &[], "exec sleep 1000");
    let script = format!("{} stats | head -n 1", support::sbx().display());
    place.run("sh", ["-c", &script]).limit(20).done().exits(0);
    assert!(soon(|| !place.processes().iter().any(|p| p.name == "sbx" && p.pid != running.pid())));
    let table = sbx(&place, &["stats"]).start();
    std::thread::sleep(Duration::from_millis(300));
    table.signal("INT");
    assert_eq!(table.done().code(), 1002);
    sbx(&place, &["stop", "x"]).done().exits(0);
    ended_by(&place, running, 15);
}

#[test]
fn what_a_cgroup_counts_is_shown_against_its_limits() {
    if lacks(&["userns", "cgroup"]) {
        return;
    }
    let place = Place::new();
    let session = support::session_dir();
    let here =
        |run: Run| if session.join("systemd/private").exists() { run.env("XDG_RUNTIME_DIR", &session) } else { run };
    let state = place.path("state");
    let state = state.to_str().expect("utf-8");
    let name = format!("stats-{}", std::process::id());
    let limits = ["--mem", "256M", "--pids", "20", "--cpus", "0.5", "--limits", "cgroup"];
    let words = [&["run", "--state", state, "--upper", "tmpfs", "--name", &name][..], &limits].concat();
    let rootfs = place.rootfs();
    let script = "dd if=/dev/zero of=/tmp/x bs=1M count=50 2>/dev/null; while :; do :; done";
    let words = [&words[..], &[rootfs.to_str().expect("utf-8"), "sh", "-c", script]].concat();
    let running = here(sbx(&place, &words)).start();
    let look = || -> Value {
        let done = here(sbx(&place, &["stats", "--state", state, "--no-stream", "--json", &name])).done();
        serde_json::from_slice::<Value>(&done.out).map_or(Value::Null, |all| all[0].clone())
    };
    assert!(soon(|| look()["memory"].as_u64() > Some(50 << 20)), "{}", look());
    let facts = look();
    assert_eq!(facts["by"], "cgroup");
    assert_eq!((&facts["memory_max"], &facts["pids_max"]), (&json!(256 << 20), &json!(20)), "{facts}");
    assert_eq!((&facts["cpus_max"], &facts["pids"]), (&json!(0.5), &json!(1)), "{facts}");
    assert!(facts["cpu_percent"].as_f64() > Some(10.0) && facts["cpu_seconds"].as_f64() > Some(0.0), "{facts}");
    let table = here(sbx(&place, &["stats", "--state", state, "--no-stream"])).done().exits(0).text();
    assert!(table.contains(" / 256M") && table.contains("1 / 20") && table.contains("/ 50%"), "{table}");
    // Frozen by the kernel it uses nothing more, and its memory stays.
    here(sbx(&place, &["pause", "--state", state, &name])).done().exits(0);
    let paused = look();
    assert!(paused["cpu_percent"].as_f64() < Some(5.0), "{paused}");
    here(sbx(&place, &["stop", "--state", state, &name])).done().exits(0);
    running.done().exits(143);
    place.assert_no_processes();
}
