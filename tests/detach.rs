//! `run --detach`: what the caller gets, what the supervisor keeps of it, and that nothing is left however it ends.

mod support;

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use support::{Place, kill, lacks, names, processes, soon, within};

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().expect("utf-8").to_owned()
}

/// `sbx` and the words of a `run -d` of the fixture, for a shell.
fn in_shell(place: &Place, options: &str, command: &str) -> String {
    format!("{} run -d {options} {} {command}", text(support::sbx()), text(place.rootfs()))
}

#[test]
fn it_starts_says_its_name_and_keeps_its_record() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let it = place.detach(&["--name", "one"], "while ! [ -e /tmp/x ]; do sleep 0.05; done");
    assert_eq!(it.name, "one");
    let record = it.record();
    assert!(record["state"] == "running" && record["detached"] == true && record["exit_status"].is_null(), "{record}");
    kill(record["pid"].as_i64().expect("a pid") as i32, "KILL");
    assert_eq!(it.ended()["exit_status"], 137);
    it.end();
    let it = place.detach(&[], "exit 7");
    let record = it.ended();
    assert!(record["exit_status"] == 7 && record["exit_why"].is_null(), "{record}");
    assert!(record["started_at"].as_str() < record["exited_at"].as_str(), "{record}");
    place.assert_no_processes();
    // Its files are what was promised, and nothing more.
    assert_eq!(names(&it.dir()), ["log", "record.json"]);
    it.end();
    place.assert_clean();
}

#[test]
fn what_does_not_start_says_why_and_leaves_nothing() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let root = text(place.rootfs());
    let cases: [(&[&str], i32, &[&str]); 5] = [
        (&[&root, "no-such"], 127, &["no-such", "not found"]),
        (&[&root, "/etc"], 126, &["/etc", "cannot execute"]),
        (&["./no-such-root", "true"], 125, &["no-such-root"]),
        (&["-w", "/no/such/dir", "--read-only", &root, "true"], 125, &["/no/such/dir"]),
        (&["--status-fd", "77", &root, "true"], 125, &["77"]),
    ];
    for (words, status, naming) in cases {
        let done = place.sbx_detach(words).refused(status, naming);
        assert_eq!(done.text(), "", "a name of nothing");
        place.assert_clean();
    }
    // The same words as in the foreground.
    let [behind, before] = [vec!["-d", &root, "no-such"], vec![&root, "no-such"]].map(|w| place.sbx_run(w).done().err);
    assert_eq!(behind, before);
}

#[test]
fn a_name_is_taken_until_the_record_is_gone() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let root = text(place.rootfs());
    let it = place.detach(&["--name", "n"], "sleep 1000");
    for option in ["-d", "-q"] {
        place.sbx_run([option, "--name", "n", &root, "true"]).done().refused(125, &["n: ", "is running"]);
    }
    kill(it.supervisor(), "TERM");
    assert_eq!(it.ended()["exit_status"], 143);
    for option in ["-d", "-q"] {
        let done = place.sbx_run([option, "--name", "n", &root, "true"]).done();
        done.refused(125, &["n: ", "has ended and is kept", "sbx rm n"]);
    }
    assert_eq!(it.record()["exit_status"], 143);
    it.end();
    // Whose changes are kept nowhere takes the name for its time only.
    place.sbx_run(["--name", "n", "--upper", "tmpfs", &root, "true"]).done().exits(0);
    place.assert_clean();
}

#[test]
fn nothing_of_the_caller_is_kept() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let dir = place.path("there");
    fs::create_dir(&dir).expect("mkdir");
    // The shell's own pipe, and two more that the caller holds: all of them end with it, or this would never be done.
    let run = in_shell(&place, "--name n", "sleep 1000");
    let script = format!("exec 7>&1 8>&2 9</; name=$({run}); echo status=$? name=$name");
    let done = place.run("sh", ["-c", &script]).dir(&dir).limit(20).done();
    assert_eq!(done.text(), "status=0 name=n\n", "{}", done.err);
    let it = support::detached::Detached { place: &place, name: "n".into() };
    let supervisor = it.supervisor();
    let proc = |name: &str| fs::read_link(format!("/proc/{supervisor}/{name}")).expect("a link");
    assert_eq!(proc("cwd"), Path::new("/"));
    for number in 0..3 {
        assert_eq!(proc(&format!("fd/{number}")), Path::new("/dev/null"));
    }
    // By what they are: the sandbox's own root, which the supervisor keeps for `exec`, has the same name.
    let own: Vec<_> = ["/", &text(&dir)].iter().map(|path| fs::metadata(path).expect("a directory")).collect();
    let held = names(Path::new(&format!("/proc/{supervisor}/fd")));
    for number in held {
        let Ok(file) = fs::metadata(format!("/proc/{supervisor}/fd/{number}")) else { continue };
        assert!(own.iter().all(|own| (own.dev(), own.ino()) != (file.dev(), file.ino())), "{number}");
    }
    // A session of its own without a terminal: fields 6 and 7 of proc(5).
    let stat = fs::read_to_string(format!("/proc/{supervisor}/stat")).expect("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    assert_eq!((fields[3], fields[4]), (supervisor.to_string().as_str(), "0"), "{stat}");
    it.end();
    place.assert_clean();
}

#[test]
fn declared_descriptors_and_files_are_served() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let dir = place.path("there");
    fs::create_dir(&dir).expect("mkdir");
    let options = "--name n --pass-fd 5 --status-fd 3 --pid-file pid";
    let run = in_shell(&place, options, "sh -c 'echo passed >&5; while ! [ -e /tmp/x ]; do sleep 0.05; done'");
    let done = place.run("sh", ["-c", &format!("{run} 5>out 3>status")]).dir(&dir).done();
    assert_eq!((done.text().as_str(), done.err.as_str()), ("n\n", ""));
    assert!(soon(|| fs::read_to_string(dir.join("out")).is_ok_and(|text| text == "passed\n")));
    let pid: i32 = fs::read_to_string(dir.join("pid")).expect("a pid file").trim().parse().expect("a pid");
    assert_eq!(support::process(pid).map(|process| process.name), Some("sh".into()));
    let status = || fs::read_to_string(dir.join("status")).unwrap_or_default();
    assert!(status().contains(&format!("\"pid\":{pid}")), "{}", status());
    let it = support::detached::Detached { place: &place, name: "n".into() };
    // The supervisor holds the status and no other file of the caller's.
    let held = names(Path::new(&format!("/proc/{}/fd", it.supervisor())));
    let held = held.iter().filter_map(|n| fs::read_link(format!("/proc/{}/fd/{n}", it.supervisor())).ok());
    let theirs: Vec<_> = held.filter(|path| path.starts_with(&dir)).collect();
    assert_eq!(theirs, [dir.join("status")]);
    kill(pid, "KILL");
    it.ended();
    assert!(soon(|| status().lines().last().is_some_and(|line| line.contains("\"signal\":9"))), "{}", status());
    it.end();
    // Where it does not start there is no pid file either.
    let run = in_shell(&place, "--pid-file no-pid", "no-such");
    place.run("sh", ["-c", &run]).dir(&dir).done().exits(127);
    assert!(!dir.join("no-pid").exists());
    place.assert_clean();
}

#[test]
fn it_outlives_its_terminal() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).expect("a pty");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("a slave");
    let name = ptsname_r(&master).expect("a slave's name");
    let slave = fs::OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(name);
    let slave = OwnedFd::from(slave.expect("a slave"));
    // In the foreground of a shell with job control, which then stays.
    let words = "while ! [ -e /sync/go ]; do sleep 0.05; done; echo still here; sleep 1000";
    let sync = place.path("sync");
    fs::create_dir(&sync).expect("mkdir");
    let run = in_shell(&place, &format!("--name n -v {}:/sync", text(&sync)), &format!("sh -c '{words}'"));
    let script = format!("{run} && touch started; sleep 1000");
    let mut shell = place.run_in_group("setsid", ["-c", "sh", "-c", &script]).stdin(slave.try_clone().expect("dup"));
    shell.command.stdout(slave.try_clone().expect("dup")).stderr(slave);
    let shell = shell.start_as_is();
    assert!(soon(|| place.path("started").exists()), "has not started");
    let it = support::detached::Detached { place: &place, name: "n".into() };
    let supervisor = it.supervisor();
    // The hang-up of the line ends the shell.
    drop(master);
    let code = shell.done().code();
    assert_eq!(code, 1001, "the shell was not hung up");
    fs::write(sync.join("go"), "").expect("write");
    it.shows("still here");
    assert!(support::process(supervisor).is_some_and(|process| process.parent != 0));
    it.end();
    place.assert_clean();
}

/// Words for strace that makes a step of the set-up last.
const SLOW: [&str; 7] =
    ["-f", "-qq", "-o", "/dev/null", "-e", "trace=pivot_root", "-einject=pivot_root:delay_enter=5000000:when=1"];

#[test]
fn a_signal_in_the_set_up_ends_it() {
    if lacks(&["userns", "strace"]) {
        return;
    }
    for (signal, codes) in [("INT", [130, 1002]), ("TERM", [143, 1015]), ("HUP", [129, 1001]), ("KILL", [137, 1009])] {
        let place = Place::new();
        let mut words: Vec<OsString> = SLOW.iter().map(OsString::from).collect();
        words.extend([support::sbx().into(), "run".into(), "-d".into(), place.rootfs().into(), "true".into()]);
        let running = place.run("strace", words).start();
        // The caller's process, and the supervisor that it has made.
        let both = || {
            let all: Vec<_> = place.processes().into_iter().filter(|p| p.name == "sbx").collect();
            let caller = all.iter().find(|p| all.iter().any(|other| other.parent == p.pid));
            caller.filter(|_| !place.records().is_empty()).map(|caller| caller.pid)
        };
        assert!(soon(|| both().is_some()), "not set up");
        kill(both().expect("the caller's process"), signal);
        let done = running.done();
        assert!(codes.contains(&done.code()), "{signal}: {} {}", done.code(), done.err);
        assert_eq!(done.text(), "", "a name of nothing");
        place.assert_no_processes();
        assert!(soon(|| place.records().is_empty()), "{signal}: {:?}", place.records());
    }
}

#[test]
fn nothing_is_left_whoever_is_killed() {
    if lacks(&["userns"]) {
        return;
    }
    let mounts = support::mounts();
    let place = Place::new();
    let tree = place.path("tree");
    fs::create_dir(&tree).expect("mkdir");
    let volume = format!("{}:/mnt", tree.display());
    let options = ["--name", "n", "-v", &volume, "--tmpfs", "/mnt/made/inside", "--upper", "disk"];
    let uppers = place.path("home/.local/share/sbx/upper");
    for party in ["supervisor", "init", "program"] {
        let it = place.detach(&options, "sleep 1000 & sleep 1000");
        assert_eq!(names(&tree), ["made"]);
        let record = it.record();
        let init = record["pid"].as_i64().expect("a pid") as i32;
        let program = || processes().into_iter().find(|process| process.parent == init).map(|process| process.pid);
        let victim = match party {
            "supervisor" => it.supervisor(),
            "init" => init,
            _ => program().expect("a program"),
        };
        kill(victim, "KILL");
        place.assert_no_processes();
        it.sweep();
        let record = it.ended();
        assert_eq!(record["exit_status"], 137, "{party}: {record}");
        let why = if party == "supervisor" { "\"supervisor was killed\"" } else { "null" };
        assert_eq!(record["exit_why"].to_string(), why, "{party}");
        // The changes of one that has started stay, until it is forgotten.
        assert_eq!((names(&tree), names(&uppers).len()), (vec![], 1), "{party}: left");
        assert_eq!(names(&it.dir()), ["log", "record.json"], "{party}");
        // A second look changes nothing.
        it.sweep();
        assert_eq!(it.record(), record);
        it.end();
        assert!(names(&uppers).is_empty(), "{party}: left");
    }
    assert!(mounts == support::mounts(), "mounts are left");
    place.assert_clean();
}

/// One of both processes, or the sandbox's first, is killed at a call: then it has not started, or runs.
#[test]
fn it_starts_or_leaves_nothing_wherever_one_is_killed() {
    if lacks(&["userns", "strace"]) {
        return;
    }
    let place = Place::new();
    let (root, sbx) = (text(place.rootfs()), text(support::sbx()));
    let run = [&sbx, "run", "-d", "--name", "n", "--upper", "disk", &root, "sleep", "1000"];
    let (mut started, mut failed) = (0, 0);
    for call in
        ["openat", "openat2", "write", "close", "setsid", "prctl", "mkdirat", "sendmsg", "dup3", "chdir", "rename"]
    {
        for nth in [1, 3, 10] {
            let inject = format!("inject={call}:signal=KILL:when={nth}");
            let trace = format!("trace={call}");
            let words = ["-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
            let strace = place.run("strace", words.iter().chain(&run)).start();
            // strace itself stays as long as what it follows.
            let record = || fs::read_to_string(place.state().join("n/record.json")).unwrap_or_default();
            let mut strace = strace;
            let runs =
                || record().contains("\"state\":\"running\"") && place.processes().iter().any(|p| p.name == "sleep");
            assert!(soon(|| strace.ended().is_some() || runs()), "{call} {nth}: neither started nor failed");
            let it = support::detached::Detached { place: &place, name: "n".into() };
            if strace.ended().is_none() && runs() {
                started += 1;
                kill(it.supervisor(), "KILL");
            } else {
                failed += 1;
            }
            strace.done();
            place.assert_no_processes();
            it.sweep();
            if it.dir().exists() {
                assert_eq!(it.record()["exit_status"], 137, "{call} {nth}: {}", it.record());
                assert_eq!(names(&it.dir()), ["log", "record.json"]);
                it.forget();
            }
            assert_eq!(place.records(), [""; 0], "{call} {nth}");
            assert_eq!(names(&place.path("home/.local/share/sbx/upper")), [""; 0], "{call} {nth}");
        }
    }
    assert!(started >= 3 && failed >= 10, "{started} started, {failed} failed");
    place.assert_clean();
}

#[test]
fn its_end_by_a_limit_is_recorded() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let it = place.detach(&["--timeout", "200ms"], "sleep 1000");
    let record = it.ended();
    assert!(record["exit_status"] == 124 && record["exit_why"].to_string().contains("--timeout"), "{record}");
    it.end();
    place.assert_clean();
}

#[test]
fn its_terminal_goes_to_the_log() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let it = place.detach(&["-t"], "tty; stty size; echo error >&2; printf 'what? '; read x; echo got $x");
    let shown = it.shows("what? ");
    assert_eq!(shown, "/dev/pts/0\r\n24 80\r\nerror\r\nwhat? ");
    assert_eq!(it.record()["state"], "running", "its input has ended");
    it.end();
    // What is written last is not lost.
    let it = place.detach(&["-t"], "seq 1 5000");
    it.ended();
    let numbers: String = (1..=5000).map(|n| format!("{n}\r\n")).collect();
    assert!(it.logs(&[]).text() == numbers, "lines of a terminal are lost");
    it.end();
    place.assert_clean();
}

#[test]
fn its_input_is_empty_unless_it_is_kept() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let script = "cat; echo over; read x </dev/null; exit 3";
    let it = place.detach(&[], script);
    assert_eq!(it.ended()["exit_status"], 3);
    assert_eq!(it.logs(&[]).text(), "over\n");
    it.end();
    let it = place.detach(&["-i"], "echo before; cat; echo over");
    it.shows("before");
    assert!(!within(std::time::Duration::from_millis(300), || it.record()["state"] == "exited"));
    assert_eq!(it.logs(&[]).text(), "before\n");
    it.end();
    place.assert_clean();
}

#[test]
fn fifty_start_at_once_and_of_one_name_only_one() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let root = text(place.rootfs());
    let start = |name: &str| place.sbx_run(["-d", "--name", name, &root, "sleep", "1000"]).limit(60).start();
    let all: Vec<_> = (0..50).map(|n| start(&format!("s{n}"))).collect();
    all.into_iter().for_each(|running| drop(running.done().exits(0)));
    assert_eq!(place.records().len(), 50);
    let same: Vec<_> = (0..20).map(|_| start("same")).collect();
    let codes: Vec<i32> = same.into_iter().map(|running| running.done().code()).collect();
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert!(codes.iter().all(|code| [0, 125].contains(code)), "{codes:?}");
    assert_eq!(place.records().len(), 51);
    for name in place.records() {
        let it = support::detached::Detached { place: &place, name };
        assert_eq!(it.record()["state"], "running");
        kill(it.supervisor(), "KILL");
    }
    place.assert_no_processes();
    for name in place.records() {
        support::detached::Detached { place: &place, name }.forget();
    }
    place.assert_clean();
}

/// What `sbx diff` lists, line by line.
#[track_caller]
fn changes(place: &Place, name: &str) -> Vec<String> {
    place.sbx(["diff", name]).done().exits(0).text().lines().map(str::to_owned).collect()
}

#[test]
fn its_changes_stay_on_disk_until_it_is_forgotten() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let (uppers, tree) = (place.path("home/.local/share/sbx/upper"), place.path("tree"));
    fs::create_dir(&tree).expect("mkdir");
    fs::write(tree.join("gone"), "").expect("a file");
    let volume = format!("{}:/over:overlay", tree.display());
    let mut ways = vec![vec!["-v", &volume]];
    if !lacks(&["subids"]) {
        ways.push(vec!["-v", &volume, "--map", "full"]);
    }
    for (options, forget) in ways.iter().flat_map(|way| [(way, &["rm", "n"][..]), (way, &["prune"])]) {
        let options: Vec<&str> = ["--name", "n"].iter().chain(options).copied().collect();
        let it =
            place.detach(&options, "mkdir /a; chmod 0 /a; rm /over/gone; touch /over/new /tmp/none; rm /etc/group");
        it.ended();
        place.assert_no_processes();
        assert_eq!(changes(&place, "n"), ["A /a", "D /etc/group", "D /over/gone", "A /over/new"], "{options:?}");
        assert_eq!((names(&uppers).len(), names(&tree)), (1, vec!["gone".to_owned()]), "{options:?}");
        place.sbx(["run", "--name", "n", &text(place.rootfs()), "true"]).done().refused(125, &["n", "is kept"]);
        assert_eq!(names(&uppers).len(), 1, "who wants the name clears nothing");
        place.sbx(forget).done().exits(0);
        assert!(names(&uppers).is_empty(), "{options:?} {forget:?}");
    }
    for options in [["--upper", "tmpfs"], ["--read-only", "-q"]] {
        let it = place.detach(&options, "exit 0");
        it.ended();
        assert!(names(&uppers).is_empty(), "{options:?}");
        it.end();
    }
    place.assert_clean();
}

#[test]
fn where_the_disk_takes_no_layer_the_changes_go_to_memory() {
    if lacks(&["userns", "tmpfs-xattrs"]) {
        return;
    }
    let place = Place::new();
    let root = text(place.rootfs());
    // A directory that nobody can make, and one on which the kernel lays no second overlay.
    let closed = "true && export XDG_DATA_HOME=/proc";
    let over = "mkdir -p l u w d && mount -t overlay -o lowerdir=l,upperdir=u,workdir=w,userxattr o d \
        && export XDG_DATA_HOME=$PWD/d";
    for script in [closed, over] {
        let script = format!("{script} && exec \"$@\"");
        let start = |options: &[&str]| {
            let sbx = text(support::sbx());
            let words = ["-Urm", "sh", "-c", &script, "sh", &sbx, "run", "-d", "--name", "n"];
            place.run("unshare", words.iter().chain(options).chain(&[root.as_str(), "touch", "/x"])).done()
        };
        let done = start(&[]).exits(0);
        assert!(done.text() == "n\n" && done.err.lines().count() == 1, "{done:?}");
        assert!(done.err.contains("changes go to memory") && done.err.contains("sbx/upper"), "{done:?}");
        assert!(soon(|| place.facts("n")["state"] == "exited"));
        assert_eq!(place.facts("n")["exit_status"], 0);
        place.sbx(["diff", "n"]).done().refused(1, &["n", "in memory"]);
        place.sbx(["rm", "n"]).done().exits(0);
        // Who asks for the disk gets that or nothing; where fuse-overlayfs does it, it is the disk.
        let asked = start(&["--upper", "disk", "--overlay", "kernel"]);
        assert_eq!(asked.code(), 125, "{asked:?}");
    }
    place.assert_clean();
}

#[test]
fn layers_of_earlier_boots_are_pruned() {
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    if machine.trim().len() != 32 {
        println!("SKIP layers_of_earlier_boots_are_pruned: no machine id");
        return;
    }
    let place = Place::new();
    let uppers = place.path("home/.local/share/sbx/upper");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    let (machine, boot) = (machine.trim(), boot.trim());
    let others = "0".repeat(32);
    for (name, mark) in [
        ("old-0123abcd", format!("{machine} another\n")),
        ("now-0123abcd", format!("{machine} {boot}\n")),
        ("else-0123abcd", format!("{others} another\n")),
        ("no-layer", format!("{machine} another\n")),
        ("bare-0123abcd", String::new()),
    ] {
        fs::create_dir_all(uppers.join(name).join("upper/d")).expect("a layer");
        if !mark.is_empty() {
            fs::write(uppers.join(name).join("boot"), mark).expect("a mark");
        }
    }
    place.sbx(["prune"]).done().exits(0);
    assert_eq!(names(&uppers), ["bare-0123abcd", "else-0123abcd", "no-layer", "now-0123abcd"]);
}
