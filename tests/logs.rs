//! `sbx logs` and the log behind it: streams apart, bytes unchanged, rotation, followers, space that is used up.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use support::detached::Detached;
use support::{Place, kill, lacks, names, soon};

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().expect("utf-8").to_owned()
}

#[test]
fn outputs_are_apart_and_their_bytes_unchanged() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let mut odd: Vec<u8> = (0..=255).collect();
    odd.extend(b"\r\n\n\n\x1b[31mred\xff\xfe");
    odd.extend(vec![b'x'; 30_000]);
    odd.extend(b"\n2026-01-01T00:00:00.000000000Z stderr F no record\nno end");
    place.write("odd", &odd);
    let volume = format!("{}:/odd:ro", text(place.path("odd")));
    let it = place.detach(&["-v", &volume], "cat /odd; echo to error >&2; printf 'no end' >&2");
    it.ended();
    let done = it.logs(&[]).exits(0);
    assert!(done.out == odd, "bytes have changed");
    assert_eq!(done.err, "to error\nno end");
    it.end();
    place.assert_clean();
}

#[test]
fn lines_are_chosen() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let script =
        "for n in 1 2 3; do echo out $n; echo err $n >&2; sleep 0.1; done; head -c 20000 /dev/zero | tr '\\0' x";
    let it = place.detach(&[], script);
    it.ended();
    let long = "x".repeat(20_000);
    let tail = |n: &str| {
        let done = it.logs(&["--tail", n]).exits(0);
        (done.text(), done.err)
    };
    assert!(tail("0") == (String::new(), String::new()));
    // A line counts once, in however many pieces it is kept.
    assert!(tail("1") == (long.clone(), String::new()));
    let (out, err) = tail("3");
    let both = format!("{out}{err}");
    assert!(both.contains("out 3") && both.contains("err 3") && !both.contains(" 2"), "{both:.100}");
    assert!(tail("100") == tail("all") && tail("7").0 == format!("out 1\nout 2\nout 3\n{long}"));
    // Each line has its time, once; `--since` that time shows it and what came later.
    let stamped = it.logs(&["-t"]).exits(0);
    let times: Vec<String> = stamped.text().lines().map(|line| line[..30].to_owned()).collect();
    assert_eq!(times.len(), 4);
    assert!(
        stamped.text().lines().zip(["out 1", "out 2", "out 3", "xxx"]).all(|(line, is)| line[31..].starts_with(is))
    );
    assert!(it.logs(&["--since", &times[2]]).text() == format!("out 3\n{long}"));
    assert!(it.logs(&["--since", &times[1], "--tail=1"]).text() == long);
    assert_eq!(it.logs(&["--since", "1h"]).text().lines().count(), 4);
    assert_eq!(it.logs(&["--since", "2999-01-01T00:00:00Z"]).exits(0).text(), "");
    it.end();
    place.assert_clean();
}

#[test]
fn what_cannot_be_shown_is_told() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let logs = |words: &[&str]| place.sbx(["logs"].iter().chain(words)).done();
    logs(&["no-such"]).refused(1, &["no-such", "no sandbox of this name"]);
    logs(&["../run"]).refused(1, &["no sandbox of this name"]);
    logs(&[]).refused(125, &["needs one name"]);
    logs(&["a", "b"]).refused(125, &["needs one name"]);
    logs(&["--no-such", "a"]).refused(125, &["--no-such"]);
    logs(&["--tail", "x", "a"]).refused(125, &["--tail", "x"]);
    logs(&["--since", "yesterday", "a"]).refused(125, &["--since", "yesterday", "10m"]);
    logs(&["--since"]).refused(125, &["--since", "value"]);
    assert!(logs(&["--help"]).exits(0).text().contains("--follow"));
    let running = place.shell(&["--name", "front", "--upper", "tmpfs"], "sleep 1000").start();
    assert!(soon(|| names(&place.state().join("front")).contains(&"record.json".into())));
    logs(&["front"]).refused(1, &["front", "no log", "--detach"]);
    running.signal("TERM");
    running.done();
    place.assert_clean();
}

/// The numbers behind `line` in this text, all of whose lines have to be whole.
#[track_caller]
fn numbers(text: &str) -> Vec<u64> {
    let number = |line: &str| {
        let (number, rest) = line.strip_prefix("line ").and_then(|rest| rest.split_once(' ')).unwrap_or(("", ""));
        assert_eq!(rest, "of many, all of the same length", "a torn line: {line:?}");
        number.parse().expect("a number")
    };
    text.lines().map(number).collect()
}

/// busybox's seq knows no format.
fn lines(from: u64, to: u64) -> String {
    format!("seq {from} {to} | sed 's/.*/line & of many, all of the same length/'")
}

#[test]
fn a_flood_is_rotated_and_nothing_torn() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let it = place.detach(&["--log-size", "100K"], &lines(1, 100_000));
    it.ended();
    assert_eq!(names(&it.dir()), ["log", "log.1", "log.2", "record.json"]);
    let sizes = ["log", "log.1", "log.2"].map(|name| fs::metadata(it.dir().join(name)).expect("a file").len());
    assert!(sizes.iter().all(|size| *size <= 100 << 10) && sizes[1] > 80 << 10 && sizes[2] > 80 << 10, "{sizes:?}");
    let kept = numbers(&it.logs(&[]).exits(0).text());
    assert!(kept.len() > 1500 && kept.last() == Some(&100_000), "{} lines", kept.len());
    assert!(kept.windows(2).all(|pair| pair[1] == pair[0] + 1), "lines are lost");
    assert_eq!(it.record()["log_lost"], 0);
    it.end();
    place.assert_clean();
}

#[test]
fn the_callers_limit_on_files_ends_nobody() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let script = format!("{}; exit 4", lines(1, 10_000));
    let words = ["--fsize=100000".into(), "--".into(), support::sbx().into_os_string(), "run".into(), "-d".into()];
    let more = ["--name".into(), "n".into(), place.rootfs().into(), "sh".into(), "-c".into(), script.into()];
    place.run("prlimit", words.into_iter().chain(more)).done().exits(0);
    let it = Detached { place: &place, name: "n".into() };
    assert_eq!(it.ended()["exit_status"], 4);
    assert_eq!(numbers(&it.logs(&["--tail", "1"]).text()), [10_000]);
    assert!(it.dir().join("log.2").exists() && it.record()["log_lost"] == 0);
    it.end();
    place.assert_clean();
}

#[test]
fn a_flood_costs_no_memory() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let it = place.detach(&["--log-size", "1M"], "echo first; exec yes 'a line that comes again and again'");
    // Pages of its own: those of a fresh program file count as dirty until they are on the disk.
    let private = || {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", it.supervisor())).expect("smaps");
        let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    };
    assert!(soon(|| it.dir().join("log.2").exists()));
    let before = private();
    std::thread::sleep(Duration::from_secs(1));
    let after = private();
    assert!(after <= before + 8, "{before} KiB, then {after}");
    it.end();
    place.assert_clean();
}

/// A follower whose output is read here.
struct Follower {
    running: support::Running,
    lines: BufReader<std::process::ChildStdout>,
}

fn follow(it: &Detached<'_>, options: &[&str]) -> Follower {
    let mut run = it.place.sbx(["logs", "-f"].iter().chain(options).chain(&[it.name.as_str()]));
    run.command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = run.start_with_own_output();
    let lines = BufReader::new(running.child.stdout.take().expect("stdout"));
    Follower { running, lines }
}

impl Follower {
    fn next(&mut self) -> Option<String> {
        let mut line = String::new();
        (self.lines.read_line(&mut line).expect("a line") > 0).then(|| line.trim_end().to_owned())
    }

    /// Its end, and all that it still had to say.
    fn rest(mut self) -> (String, String, i32) {
        let (mut out, mut err) = (String::new(), String::new());
        self.lines.read_to_string(&mut out).expect("text");
        self.running.child.stderr.take().expect("stderr").read_to_string(&mut err).expect("text");
        (out, err, self.running.done().code())
    }
}

#[test]
fn a_follower_loses_and_doubles_nothing_at_a_rotation() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let sync = place.path("sync");
    fs::create_dir(&sync).expect("mkdir");
    // Blocks of about a third of a file, the next only when the follower has shown the last: it can always keep up.
    let block = lines(1, 400).replace("seq 1 400", "seq $((n*400+1)) $((n*400+400))");
    let script = format!(
        "n=0; while [ $n -lt 40 ]; do {block}; echo block $n >&2; while ! [ -e /sync/$n ]; do sleep 0.01; done; n=$((n+1)); done; exit 5"
    );
    let volume = format!("{}:/sync", text(&sync));
    let it = place.detach(&["-v", &volume, "--log-size", "64K"], &script);
    let mut follower = follow(&it, &[]);
    for number in 1..=16_000_u64 {
        let line = follower.next().expect("the follower has ended");
        assert_eq!(numbers(&line), [number]);
        if number % 400 == 0 {
            fs::write(sync.join((number / 400 - 1).to_string()), "").expect("write");
        }
    }
    let (out, err, code) = follower.rest();
    assert_eq!((out.as_str(), code), ("", 0));
    let blocks: String = (0..40).map(|n| format!("block {n}\n")).collect();
    assert_eq!(err, blocks);
    assert_eq!(it.record()["exit_status"], 5);
    assert_eq!(names(&it.dir()), ["log", "log.1", "log.2", "record.json"], "there was no rotation");
    it.end();
    place.assert_clean();
}

#[test]
fn a_follower_that_stands_still_holds_nobody_up() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let script = format!("echo ready; while ! [ -e /sync/go ]; do sleep 0.01; done; {}", lines(1, 50_000));
    let volume = format!("{}:/sync", text(place.path("tmp")));
    let it = place.detach(&["-v", &volume], &script);
    let mut follower = follow(&it, &[]);
    assert_eq!(follower.next().as_deref(), Some("ready"));
    kill(follower.running.pid(), "STOP");
    place.write("tmp/go", "");
    it.ended();
    // It shows the rest of a sandbox that has ended meanwhile.
    kill(follower.running.pid(), "CONT");
    let (out, err, code) = follower.rest();
    assert_eq!((err.as_str(), code), ("", 0));
    assert!(numbers(&out) == (1..=50_000).collect::<Vec<_>>(), "lines are lost");
    it.end();
    place.assert_clean();
}

#[test]
fn a_follower_ends_with_the_sandbox_however_that_ends() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    // Of one that has ended.
    let it = place.detach(&[], "echo only; exit 1");
    it.ended();
    assert_eq!(it.logs(&["-f"]).exits(0).text(), "only\n");
    it.end();
    // Of one whose program, init, or supervisor is killed.
    for party in ["init", "supervisor"] {
        let it = place.detach(&[], "echo on; sleep 1000");
        let mut follower = follow(&it, &["--tail", "5"]);
        assert_eq!(follower.next().as_deref(), Some("on"));
        let init = it.record()["pid"].as_i64().expect("a pid") as i32;
        kill(if party == "init" { init } else { it.supervisor() }, "KILL");
        assert_eq!(follower.rest(), (String::new(), String::new(), 0), "{party}");
        it.end();
    }
    // Of one that is killed and forgotten.
    let it = place.detach(&[], "echo on; sleep 1000");
    let mut follower = follow(&it, &[]);
    assert_eq!(follower.next().as_deref(), Some("on"));
    kill(follower.running.pid(), "STOP");
    kill(it.supervisor(), "KILL");
    it.sweep();
    it.forget();
    kill(follower.running.pid(), "CONT");
    assert_eq!(follower.rest(), (String::new(), String::new(), 0));
    place.assert_clean();
}

#[test]
fn a_killed_follower_leaves_nothing() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let it = place.detach(&[], "echo on; sleep 1000");
    let before = place.processes().len();
    for _ in 0..10 {
        let mut follower = follow(&it, &[]);
        assert_eq!(follower.next().as_deref(), Some("on"));
        kill(follower.running.pid(), "KILL");
        assert_eq!(follower.rest().2, 1009);
    }
    assert!(soon(|| place.processes().len() == before), "{:?}", place.processes());
    assert_eq!(names(&it.dir()), ["control", "log", "record.json", "reserve"]);
    assert_eq!(it.logs(&[]).exits(0).text(), "on\n");
    // A reader that is gone is no failure.
    let head = place.run("sh", ["-c", &format!("{} logs -f {} | head -1; echo over", text(support::sbx()), it.name)]);
    let head = head.start();
    assert!(soon(|| place.processes().len() > before));
    kill(it.supervisor(), "KILL");
    assert_eq!(head.done().exits(0).text(), "on\nover\n");
    it.end();
    place.assert_clean();
}

#[test]
fn a_line_without_an_end_is_seen_and_goes_on() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let it = place.detach(&[], "printf 'what? '; while ! [ -e /tmp/x ]; do sleep 0.3; touch /tmp/x; done; echo that");
    assert_eq!(it.shows("what? "), "what? ");
    it.ended();
    let stamped = it.logs(&["-t"]).text();
    assert!(stamped.ends_with("Z what? that\n") && stamped.lines().count() == 1, "{stamped}");
    it.end();
    place.assert_clean();
}

#[test]
fn without_space_the_program_goes_on_and_the_gap_is_told() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let (state, sync) = (place.path("small"), place.path("sync"));
    [&state, &sync].into_iter().for_each(|dir| fs::create_dir(dir).expect("mkdir"));
    let inside = format!(
        "{}; echo flooded >/sync/flooded; while ! [ -e /sync/go ]; do sleep 0.01; done; echo after; exit 6",
        lines(1, 20_000)
    );
    // The filler leaves less room than the flood needs, and goes while the program waits.
    let script = format!(
        "mount -t tmpfs -o size=512k,mode=700 none {state} || exit 9; head -c 300K /dev/zero >{state}/fill
        {sbx} --state {state}/s run -d --name n -v {sync}:/sync -v {flood}:/flood {root} sh /flood || exit 8
        until [ -e {sync}/flooded ]; do sleep 0.01; done
        [ \"$FREED\" = yes ] && rm {state}/fill; touch {sync}/go
        until grep -q '.state.:.exited' {state}/s/n/record.json; do sleep 0.01; done
        cp {state}/s/n/record.json {sync}/; {sbx} --state {state}/s logs n",
        state = text(&state),
        sbx = text(support::sbx()),
        flood = text(place.write("flood", inside)),
        sync = text(&sync),
        root = text(place.rootfs()),
    );
    for freed in ["yes", "no"] {
        names(&sync).iter().for_each(|name| fs::remove_file(sync.join(name)).expect("remove"));
        let done = place.run("unshare", ["-Urm", "sh", "-c", &script]).env("FREED", freed).done().exits(0);
        let text = done.text().strip_prefix("n\n").expect("the name").to_owned();
        let record: serde_json::Value =
            serde_json::from_slice(&fs::read(sync.join("record.json")).expect("a record")).expect("JSON");
        assert_eq!(record["exit_status"], 6, "{record}");
        let lost = record["log_lost"].as_u64().expect("a number");
        let kept = text.strip_suffix("after\n").unwrap_or(&text);
        // Whole lines in their order; what is missing is what was counted, and told where there was room for that: the
        // last page of a full file system takes a few records more.
        let kept_numbers = numbers(kept);
        assert!(kept_numbers.windows(2).all(|pair| pair[0] < pair[1]) && kept_numbers[0] == 1, "not in order");
        let length = |number: u64| format!("line {number} of many, all of the same length\n").len() as u64;
        let missing = (1..=20_000_u64).map(length).sum::<u64>() - kept.len() as u64;
        let missing = missing + if text.ends_with("after\n") { 0 } else { "after\n".len() as u64 };
        assert!(lost > 100_000 && lost == missing, "{lost} counted, {missing} missing");
        let notice = |line: &str| {
            let number = line
                .strip_prefix("sbx: ")?
                .strip_suffix(" bytes of output are missing here: there was no space left")?;
            number.parse::<u64>().ok()
        };
        let told: Vec<u64> = done.err.lines().map(|line| notice(line).expect("a notice")).collect();
        let told = told.into_iter().sum::<u64>();
        assert!(if freed == "yes" { told == lost } else { told < lost }, "{told} told of {lost}");
        assert_eq!(text.ends_with("after\n"), freed == "yes");
        place.assert_no_processes();
    }
}

#[test]
fn planted_files_lead_the_log_nowhere() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    place.sbx_run([text(place.rootfs()).as_str(), "true"]).done().exits(0);
    let target = place.write("precious", "precious");
    let dir = place.state().join("n");
    fs::create_dir(&dir).expect("mkdir");
    for name in ["log", "log.1", "log.2", "log.new", "record.new", "reserve"] {
        symlink(&target, dir.join(name)).expect("symlink");
    }
    let it = place.detach(&["--name", "n", "--log-size", "64K"], &lines(1, 10_000));
    it.ended();
    assert_eq!(fs::read_to_string(&target).expect("read"), "precious");
    assert_eq!(numbers(&it.logs(&["--tail", "1"]).text()), [10_000]);
    // Nor does reading follow one, nor choke on what is no record.
    fs::OpenOptions::new()
        .append(true)
        .open(it.dir().join("log"))
        .expect("open")
        .write_all(b"\xff\n\n42\ntorn")
        .expect("write");
    assert_eq!(numbers(&it.logs(&["--tail", "1"]).exits(0).text()), [10_000]);
    fs::remove_file(it.dir().join("log")).expect("remove");
    symlink(&target, it.dir().join("log")).expect("symlink");
    assert!(!it.logs(&[]).text().contains("precious"));
    let log = it.dir().join("log");
    let refused = |what: &str| {
        let told = it.logs(&[]).exits(1);
        assert!(told.err.contains("is not its log") && told.err.contains("try: "), "{what}: {}", told.err);
    };
    refused("a link");
    fs::remove_file(&log).expect("remove");
    fs::create_dir(&log).expect("mkdir");
    refused("a directory");
    fs::remove_dir(&log).expect("remove");
    assert!(std::process::Command::new("mkfifo").arg(&log).status().expect("mkfifo").success());
    refused("a fifo");
    it.end();
    place.assert_clean();
}
