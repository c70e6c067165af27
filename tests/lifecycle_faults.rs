//! Faults and races of sandboxes that other commands look after: every party killed at many points, a supervisor that is
//! stopped, clients that are a nuisance, commands that meet. Nothing is left, no name is lost, nobody hangs.

mod support;

use sbx::sys::socket::{self, Wait};
use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use support::{Place, Running, SOON, lacks, soon, within};

const SLEEP: &str = "sleep 1000 & exec sleep 1000";

fn loops() -> u32 {
    std::env::var("SBX_TEST_LOOPS").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
}

/// Nothing lives, the next command finds nothing, and the name is free; how long the first took.
#[track_caller]
fn gone(place: &Place, name: &str, what: &str) -> Duration {
    let begin = Instant::now();
    assert!(within(SOON, || place.processes().is_empty()), "{what}: {:?}", place.processes());
    let took = begin.elapsed();
    let all = place.sbx(["ps", "-a", "--json"]).done().exits(0);
    assert_eq!((all.text().trim(), all.err.as_str()), ("[]", ""), "{what}");
    assert_eq!(place.records(), [""; 0], "{what}");
    place.shell(&["--upper", "tmpfs", "--name", name], "exit 4").done().exits(4);
    place.assert_clean();
    took
}

#[test]
fn each_party_is_killed_at_many_points() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let (mut longest, points) = (Duration::ZERO, u64::from(loops() / 20).max(1));
    for victim in ["sbx", "sbx-init", "sleep", "sh"] {
        for point in 0..points {
            let mut running = place.shell(&["--upper", "tmpfs", "--name", "x"], SLEEP).start();
            std::thread::sleep(Duration::from_millis(point * 120 / points));
            let first = place.processes().into_iter().find(|process| process.name == victim);
            match (first, victim) {
                (Some(process), _) => support::kill(process.pid, "KILL"),
                // Not there yet, or no more: the shell becomes the second `sleep`.
                (None, _) => running.signal("KILL"),
            }
            let what = format!("{victim} at {} ms", point * 120 / points);
            if within(Duration::from_millis(500), || running.ended().is_some()) {
                let code = running.done().code();
                assert!([137, 1009, 125, 0].contains(&code), "{what}: {code}");
            } else {
                // One of two that sleep; the other is the program.
                running.signal("TERM");
                running.done().exits(143);
            }
            let took = gone(&place, "x", &what);
            if took > longest {
                println!("{what}: {took:?}");
                longest = took;
            }
        }
    }
    println!("gone after at most {longest:?}");
}

#[test]
fn clients_are_killed_at_many_points() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    for words in [
        &["stop", "x"][..],
        &["stop", "-t", "0", "x"],
        &["kill", "x"],
        &["rm", "-f", "x"],
        &["wait", "x"],
        &["pause", "x"],
        &["exec", "x", "sleep", "1000"],
        &["stats", "x"],
        &["ps"],
    ] {
        for point in 0..12 {
            let running = place.named("x", &[], "trap '' TERM; sleep 1000 & while :; do sleep 1000; done");
            let client = place.sbx(words).start();
            std::thread::sleep(Duration::from_millis(point));
            client.signal("KILL");
            drop(client.done());
            // Whatever has become of it, the next one is answered.
            let next = place.sbx(["rm", "-f", "x"]).done();
            let ended = next.err.contains("no sandbox") || next.err.contains("not running");
            assert!(next.code() == 0 || (next.code() == 1 && ended), "{words:?} at {point}: {next:?}");
            assert_eq!(running.done().code(), 137, "{words:?} at {point}");
            gone(&place, "x", &format!("{words:?} at {point}"));
        }
    }
}

#[test]
fn a_stopped_supervisor_keeps_nobody_from_ending_it() {
    if lacks(&["userns"]) {
        return;
    }
    for words in [&["stop", "-t", "1", "x"][..], &["kill", "x"], &["rm", "-f", "x"]] {
        let place = Place::new();
        let running = place.named("x", &[], SLEEP);
        let waiting = place.sbx(["wait", "x"]).start();
        std::thread::sleep(Duration::from_millis(200));
        running.signal("STOP");
        assert!(soon(|| support::process(running.pid()).is_some_and(|p| p.state == 'T')));
        // Who only looks is not kept waiting.
        assert_eq!(place.standing("x"), "running");
        let begin = Instant::now();
        let done = place.sbx(words).done().exits(0);
        assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
        assert!(done.err.contains("x: its supervisor did not answer"), "{done:?}");
        assert_eq!(running.done().code(), 1009);
        waiting.done().refused(1, &["x"]);
        gone(&place, "x", &format!("{words:?}"));
    }
    // What asks for no end says why it is not done; and it is still there, and goes on.
    let place = Place::new();
    let running = place.named("x", &[], SLEEP);
    running.signal("STOP");
    let asked = [&["pause", "x"][..], &["kill", "-s", "WINCH", "x"], &["exec", "x", "true"]];
    let asked = asked.map(|words| place.sbx(words).start());
    let _ = asked.map(|running| {
        let done = running.done();
        assert!([1, 125].contains(&done.code()) && done.err.starts_with("sbx: x: its supervisor"), "{done:?}");
    });
    running.signal("CONT");
    place.sbx(["stop", "x"]).done().exits(0);
    running.done().exits(143);
    gone(&place, "x", "continued");
}

#[test]
fn a_stopped_init_and_a_stopped_program_end_like_others() {
    if lacks(&["userns"]) {
        return;
    }
    for (victim, words) in
        [("sbx-init", ["stop", "-t", "1"]), ("sleep", ["stop", "-t", "9"]), ("sbx-init", ["rm", "-f", "-q"])]
    {
        let place = Place::new();
        let running = place.named("x", &[], SLEEP);
        let process = || place.processes().into_iter().find(|process| process.name == victim);
        assert!(soon(|| process().is_some()));
        support::kill(process().expect("there").pid, "STOP");
        place.sbx(words.into_iter().chain(["x"])).done().exits(0).says("");
        let code = running.done().code();
        assert!([137, 143].contains(&code), "{victim}: {code}");
        gone(&place, "x", victim);
    }
}

#[test]
fn a_stopped_init_that_takes_no_more_signals_holds_nobody_up() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let running = place.named("x", &[], SLEEP);
    let process = || place.processes().into_iter().find(|process| process.name == "sbx-init");
    assert!(soon(|| process().is_some()));
    support::kill(process().expect("there").pid, "STOP");
    let mut refused = 0;
    for _ in 0..2_000 {
        let client = connect(&place, "x");
        let mut answer = [0; 16];
        socket::send_now(client.as_fd(), &request(SIGNAL, 28)).expect("sent");
        assert!(soon(|| socket::receive(client.as_fd(), &mut answer, Wait::No).is_ok()), "no answer");
        refused += u32::from(answer[0] == 2);
    }
    assert!(refused > 0, "there is room for no end of signals");
    place.sbx(["stop", "-t", "1", "x"]).done().exits(0).says("");
    running.done().exits(137);
    gone(&place, "x", "signals");
}

#[test]
fn a_stopped_exec_keeps_no_sandbox_from_ending() {
    if lacks(&["userns"]) {
        return;
    }
    // By Ctrl-Z, which it hears of, and by what nobody hears of.
    for signal in ["TSTP", "STOP"] {
        let place = Place::new();
        let running = place.named("x", &[], "until [ -e /tmp/go ]; do usleep 10000; done");
        let execs: Vec<Running> = (0..3).map(|_| place.sbx(["exec", "x", "sleep", "1000"]).start()).collect();
        let sleeping = || place.processes().iter().filter(|process| process.name == "sleep").count() >= 3;
        assert!(soon(sleeping), "{:?}", place.processes());
        execs.iter().for_each(|exec| exec.signal(signal));
        assert!(soon(|| execs.iter().all(|exec| support::process(exec.pid()).is_none_or(|p| p.state == 'T'))));
        place.sbx(["exec", "x", "touch", "/tmp/go"]).done().exits(0);
        running.done().exits(0);
        for exec in execs {
            exec.done().exits(137);
        }
        gone(&place, "x", signal);
    }
}

// --- Clients that are a nuisance ---

/// A connection to the supervisor of a sandbox, as a program that is not sbx makes it. Where many wait to be let in, it
/// tries again.
fn connect(place: &Place, name: &str) -> OwnedFd {
    let path = place.state().join(name).join("control");
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let mut client = None;
    assert!(soon(|| {
        client = socket::connect(&path).ok();
        client.is_some()
    }));
    client.expect("a connection")
}

/// A request as `state/control.rs` has it.
fn request(kind: u32, a: i32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_ne_bytes());
    bytes[4..8].copy_from_slice(&a.to_ne_bytes());
    bytes
}

const SIGNAL: u32 = 1;
const KILL: u32 = 2;
const WAIT: u32 = 6;
const ENTER: u32 = 7;

#[test]
fn clients_that_are_a_nuisance_disturb_nobody() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let running = place.named("x", &[], "trap 'exit 3' TERM; while :; do sleep 0.01; done");
    let answers = |what: &str| {
        place.sbx(["pause", "x"]).done().exits(0);
        place.sbx(["resume", "x"]).done().exits(0);
        assert_eq!(place.standing("x"), "running", "{what}");
    };
    // Those who connect and say nothing, far more than there is room for.
    let silent: Vec<_> = (0..300).map(|_| connect(&place, "x")).collect();
    answers("silent");
    // Garbage of every length, and requests with numbers that mean nothing: each is let go.
    for length in [0usize, 1, 15, 17, 64, 4096, 65536] {
        let _ = socket::send_now(connect(&place, "x").as_fd(), &vec![0xa5; length]);
    }
    for (kind, a) in [(0, 0), (u32::MAX, -1), (SIGNAL, 0), (SIGNAL, 65), (3, -9), (8, 1), (KILL << 8, 0)] {
        let client = connect(&place, "x");
        socket::send_now(client.as_fd(), &request(kind, a)).expect("sent");
        let ended = soon(|| matches!(socket::receive(client.as_fd(), &mut [0; 16], Wait::No), Ok((0, _)) | Err(_)));
        assert!(ended, "{kind} {a}");
    }
    // A descriptor that comes along is closed.
    let fds = || std::fs::read_dir(format!("/proc/{}/fd", running.pid())).expect("fd").count();
    drop(silent);
    assert!(soon(|| fds() < 40), "{}", fds());
    answers("garbage");
    let before = fds();
    let client = connect(&place, "x");
    for _ in 0..50 {
        let file = std::fs::File::open("/dev/null").expect("open");
        while socket::send(client.as_fd(), &request(SIGNAL, 28), Some(file.as_fd())).is_err() {
            let _ = socket::receive(client.as_fd(), &mut [0; 16], Wait::No);
        }
    }
    answers("descriptors");
    assert!(soon(|| fds() <= before + 1), "{} {before}", fds());
    // Those who ask and never read, for what carries descriptors too.
    let deaf: Vec<_> = (0..20).map(|_| connect(&place, "x")).collect();
    for kind in [SIGNAL, WAIT, ENTER] {
        for client in &deaf {
            for _ in 0..200 {
                let _ = socket::send_now(client.as_fd(), &request(kind, 28));
            }
        }
        answers("deaf");
    }
    drop(deaf);
    // Many at once that mean it.
    let many: Vec<Running> = (0..50).map(|_| place.sbx(["kill", "-s", "WINCH", "x"]).start()).collect();
    many.into_iter().for_each(|client| drop(client.done().exits(0)));
    place.sbx(["stop", "x"]).done().exits(0);
    running.done().exits(3);
    gone(&place, "x", "nuisance");
}

#[test]
fn without_a_descriptor_for_a_client_the_supervisor_rests() {
    if lacks(&["userns", "prlimit"]) {
        return;
    }
    let place = Place::new();
    let running = place.named("x", &[], "exec sleep 1000");
    let pid = running.pid();
    let free = (16..).find(|number| !std::path::Path::new(&format!("/proc/{pid}/fd/{number}")).exists());
    let limit = |soft: usize| {
        let words = ["--pid".to_owned(), pid.to_string(), format!("--nofile={soft}:")];
        place.run("prlimit", words).done().exits(0);
    };
    limit(free.expect("a number"));
    let asked = place.sbx(["kill", "-s", "WINCH", "x"]).start();
    std::thread::sleep(Duration::from_millis(200));
    let before = support::ticks(pid);
    std::thread::sleep(Duration::from_secs(1));
    // Of a hundred in a second.
    let used = support::ticks(pid) - before;
    limit(1024);
    asked.done().exits(0);
    assert!(used < 20, "{used} ticks");
    place.sbx(["stop", "x"]).done().exits(0);
    running.done().exits(143);
}

#[test]
fn few_descriptors_are_enough_to_be_served_with() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let state = place.state();
    let words = ["-c", "ulimit -n 70; exec \"$@\"", "sh"].map(OsString::from);
    let run = [
        support::sbx().into(),
        "run".into(),
        "--state".into(),
        state.into(),
        "--upper".into(),
        "tmpfs".into(),
        "--name".into(),
        "x".into(),
    ];
    let program: [OsString; 3] = [place.rootfs().into(), "sleep".into(), "1".into()];
    let running = place.run("sh", words.into_iter().chain(run).chain(program)).start();
    assert!(soon(|| place.state().join("x/control").exists()));
    place.sbx(["kill", "-s", "WINCH", "x"]).done().exits(0);
    running.done().exits(0);
}

/// Memory of its own in KiB, without pages of files: those others may share or not, and a fresh file is all dirty.
fn private(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("a size")
}

#[test]
fn ten_thousand_requests_leave_the_supervisor_as_small_as_it_was() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let running = place.named("x", &[], "exec sleep 1000");
    let ask = |kind: u32, number: i32| {
        let client = connect(&place, "x");
        socket::send_now(client.as_fd(), &request(kind, number)).expect("sent");
        assert!(soon(|| socket::receive(client.as_fd(), &mut [0; 16], Wait::No).is_ok()));
    };
    // What is made once when it is first asked for does not count.
    let _ = [(SIGNAL, 28), (WAIT, 0), (ENTER, 0)].map(|(kind, number)| ask(kind, number));
    std::thread::sleep(Duration::from_millis(300));
    let before = private(running.pid());
    for _ in 0..3_000 {
        let _ = [(SIGNAL, 28), (WAIT, 0), (ENTER, 0)].map(|(kind, number)| ask(kind, number));
    }
    for _ in 0..1_000 {
        let _ = socket::send_now(connect(&place, "x").as_fd(), b"garbage");
    }
    // Its own code is given back when it has had nothing to do for a moment.
    assert!(soon(|| private(running.pid()) <= before + 16), "{before} KiB became {}", private(running.pid()));
    println!("{before} KiB before, {} after", private(running.pid()));
    place.sbx(["stop", "x"]).done().exits(0);
    running.done().exits(143);
}

#[test]
fn another_user_is_not_served() {
    if lacks(&["userns", "subids", "python3"]) {
        return;
    }
    let place = Place::new();
    let running = place.named("x", &[], "exec sleep 1000");
    let state = place.state();
    // By another of the caller's own ids: the directory keeps everybody out; and where it does not, the supervisor asks
    // who comes.
    let script = format!(
        "import os, socket, struct, sys\n\
         os.setgroups([]); os.setresgid(5, 5, 5); os.setresuid(5, 5, 5)\n\
         s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
         try: s.connect('{}/x/control')\n\
         except PermissionError: sys.exit('kept out')\n\
         s.settimeout(20)\n\
         try:\n\
         \ts.send(struct.pack('=IiQ', 2, 0, 0))\n\
         \tgot = s.recv(16)\n\
         except (BrokenPipeError, ConnectionResetError): got = b''\n\
         sys.exit('served' if got else 'shown out')\n",
        state.display()
    );
    let asked = || {
        let words = ["--map-auto", "--map-root-user", "--setuid", "0", "--setgid", "0", "python3", "-c", &script];
        place.run("unshare", ["--user"].into_iter().chain(words)).done().err
    };
    let mode = |path: &std::path::Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    };
    for dir in [place.path("run"), place.path("")] {
        mode(&dir, 0o755);
    }
    assert_eq!(asked().trim(), "kept out");
    mode(&state, 0o1755);
    mode(&state.join("x"), 0o755);
    mode(&state.join("x/control"), 0o777);
    assert_eq!(asked().trim(), "shown out");
    mode(&state, 0o1700);
    assert_eq!(place.standing("x"), "running");
    place.sbx(["stop", "x"]).done().exits(0);
    running.done().exits(143);
    place.assert_clean();
}

/// A program to whom the state directory is shown: it asks the supervisors of two sandboxes for the way into them, and
/// says whether one answers; then it answers itself, for a sandbox that there is not.
const INSIDE: &str = "
import array, fcntl, json, os, socket, struct, sys
def inside(name):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(20)
    try:
        s.connect('/st/' + name + '/control')
        s.send(struct.pack('=IiQ', 7, 0, 0))
        return 'served' if s.recv(16) else 'shown out'
    except (BrokenPipeError, ConnectionResetError): return 'shown out'
print(inside('own'), inside('other'), flush=True)
os.mkdir('/st/fake', 0o700)
held = os.open('/st/fake', os.O_RDONLY)
fcntl.flock(held, fcntl.LOCK_EX)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind('/st/fake/control')
listener.listen(8)
print('ready', flush=True)
while True:
    client = listener.accept()[0]
    try:
        client.recv(16)
        client.send(struct.pack('=IiQ', 1, 0, 0))
        print('asked', flush=True)
    except OSError: pass
";

#[test]
fn a_program_inside_neither_asks_nor_answers() {
    if lacks(&["userns", "python3"]) {
        return;
    }
    let place = Place::new();
    let other = place.named("other", &[], "exec sleep 1000");
    let volume = format!("{}:/st", place.state().display());
    let words = ["-d", "--name", "own", "-v", &volume, "@host", "python3", "-c", INSIDE];
    place.sbx_run(words.map(OsString::from)).done().exits(0);
    let logs = || place.sbx(["logs", "own"]).done().text();
    assert!(soon(|| logs().contains("ready")), "{}", logs());
    assert_eq!(logs(), "shown out shown out\nready\n");
    for words in [&["exec", "fake", "true"][..], &["pause", "fake"], &["kill", "fake"], &["stop", "-t", "1", "fake"]] {
        let status = if words[0] == "exec" { 125 } else { 1 };
        place.sbx(words).done().refused(status, &["fake", "no supervisor of yours"]);
    }
    assert!(!logs().contains("asked"), "{}", logs());
    place.sbx(["rm", "-f", "own"]).done().exits(0);
    place.sbx(["stop", "other"]).done().exits(0);
    other.done().exits(143);
    place.sbx(["ps"]).done().exits(0);
    place.assert_clean();
}

#[test]
fn a_socket_that_was_moved_leads_to_no_other_sandbox() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let running = ["one", "two"].map(|name| place.named(name, &[], "exec sleep 1000"));
    let socket = |name: &str| place.state().join(name).join("control");
    let aside = place.path("aside");
    std::fs::rename(socket("one"), &aside).expect("a rename");
    std::fs::hard_link(socket("two"), socket("one")).expect("a link");
    for words in [&["exec", "one", "true"][..], &["pause", "one"], &["kill", "one"], &["rm", "-f", "one"]] {
        let status = if words[0] == "exec" { 125 } else { 1 };
        place.sbx(words).done().refused(status, &["one", "is another sandbox's"]);
    }
    assert_eq!(place.standing("two"), "running");
    std::fs::remove_file(socket("one")).expect("removed");
    std::fs::rename(aside, socket("one")).expect("a rename");
    place.sbx(["stop", "one", "two"]).done().exits(0);
    running.into_iter().for_each(|running| drop(running.done().exits(143)));
    place.assert_clean();
}

// --- Races ---

#[test]
fn to_stop_what_ends_at_that_moment_is_no_mistake() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    for _ in 0..40 {
        let running = place.named("x", &[], "exec sleep 1000");
        let stops: Vec<Running> = (0..4).map(|_| place.sbx(["stop", "-t", "5", "x"]).start()).collect();
        for stop in stops {
            let done = stop.done();
            // One that comes when all is over finds no such sandbox.
            assert!(
                done.code() == 0 && done.err.is_empty() || done.err.contains("no sandbox of this name"),
                "{done:?}"
            );
        }
        assert!([137, 143].contains(&running.done().code()));
    }
}

#[test]
fn to_stop_one_that_is_killed_reaches_no_later_bearer_of_its_name() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let dir = place.path("shared");
    std::fs::create_dir_all(&dir).expect("a directory");
    // They try for the name without a pause, so that one has it the moment the first is gone, and its directory too.
    let next = |round| {
        let (sbx, root, over) = (support::sbx(), place.rootfs(), dir.join(format!("over{round}")));
        let run = format!("{} run --upper tmpfs --name x {} sleep 1000 2>/dev/null", sbx.display(), root.display());
        place
            .run("sh", ["-c", &format!("while {run}; [ $? = 125 ] && [ ! -e {} ]; do :; done", over.display())])
            .start()
    };
    for round in 0..3 {
        let volume = format!("{}:/shared", dir.display());
        let script = format!("trap 'touch /shared/told{round}' TERM; while :; do sleep 0.01; done");
        let first = place.named("x", &["-v", &volume], &script);
        let stop = place.sbx(["stop", "-t", "60", "x"]).start();
        assert!(soon(|| dir.join(format!("told{round}")).exists()), "the program is told");
        // It sees the end of the first when the second holds the name.
        stop.signal("STOP");
        let mut others: Vec<Running> = (0..3).map(|_| next(round)).collect();
        std::thread::sleep(Duration::from_millis(100));
        let before = place.facts("x")["supervisor_pid"].clone();
        first.signal("KILL");
        assert_eq!(first.done().code(), 1009);
        let another = || Some(place.facts("x")["supervisor_pid"].clone()).filter(|pid| pid.is_i64() && *pid != before);
        assert!(soon(|| another().is_some()), "the second does not come up");
        let second = another();
        stop.signal("CONT");
        stop.done().exits(0);
        assert_eq!((another(), place.standing("x").as_str()), (second, "running"), "the second goes on");
        std::fs::write(dir.join(format!("over{round}")), "").expect("over");
        // One that was about to take the name has it then.
        let mut end = || {
            place.sbx(["kill", "x"]).done();
            others.iter_mut().all(|other| other.ended().is_some())
        };
        assert!(soon(&mut end), "the others go on");
    }
    place.assert_clean();
}

#[test]
fn one_of_a_hundred_gets_the_name() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    for _ in 0..2 {
        let all: Vec<Running> = (0..100)
            .map(|_| place.shell(&["--upper", "tmpfs", "--name", "x"], "echo won; exec sleep 1000").start())
            .collect();
        let mut all = all;
        assert!(within(SOON * 3, || all.iter_mut().filter_map(Running::ended).count() == 99));
        place.sbx(["stop", "x"]).done().exits(0);
        let mut won = 0;
        for running in all {
            let done = running.done();
            match done.code() {
                143 => won += 1,
                _ => drop(done.refused(125, &["x", "running"])),
            }
        }
        assert_eq!(won, 1);
        gone(&place, "x", "a hundred");
    }
}

/// A sequence that looks random and is the same each time (Numerical Recipes' constants).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

const COMMANDS: [&[&str]; 12] = [
    &["run"],
    &["run"],
    &["run"],
    &["run"],
    &["stop"],
    &["stop", "-t", "0"],
    &["kill"],
    &["rm", "-f"],
    &["rm"],
    &["pause"],
    &["resume"],
    &["exec"],
];

/// One of four that act on the same ten names; what it started, to be waited for.
fn rounds(place: &Place, seed: u64, rounds: u32) -> Vec<Running> {
    let (mut dice, mut started) = (Dice(seed), Vec::new());
    for round in 0..rounds {
        let name = format!("n{}", dice.roll(10));
        let words = COMMANDS[dice.roll(COMMANDS.len())];
        match words[0] {
            "run" => {
                started.push(place.shell(&["--upper", "tmpfs", "--name", &name], SLEEP).start().limit_more(3_000));
                // Else nearly all meet a sandbox of less than a moment.
                std::thread::sleep(Duration::from_millis(dice.roll(120) as u64));
            }
            "exec" => {
                let done = place.sbx(["exec", &name, "true"]).done();
                assert!([0, 125, 137, 143].contains(&done.code()), "exec in round {round}: {done:?}");
            }
            _ => {
                let done = place.sbx(words.iter().copied().chain([name.as_str()])).done();
                let legal = done.code() == 0 || (done.code() == 1 && done.err.starts_with("sbx: "));
                let odd = ["did not answer", "panicked", "bug in"].iter().any(|word| done.err.contains(word));
                assert!(legal && !odd, "{words:?} {name} in round {round}: {done:?}");
            }
        }
        // Those that were refused or have ended are not kept.
        let mut alive = Vec::new();
        for mut running in started {
            match running.ended() {
                None => alive.push(running),
                Some(_) => {
                    let done = running.done();
                    assert!([125, 137, 143].contains(&done.code()), "run ended in round {round}: {done:?}");
                }
            }
        }
        started = alive;
    }
    started
}

#[test]
fn four_processes_meet_on_ten_names() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let bystander = place.named("bystander", &[], "trap '' TERM INT; while :; do sleep 1000; done");
    let stranger = place.run("sleep", ["1000"]).start();
    let count = loops();
    let left: Vec<Running> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..4)
            .map(|n| {
                scope.spawn({
                    let place = &place;
                    move || rounds(place, n + 1, count)
                })
            })
            .collect();
        all.into_iter().flat_map(|one| one.join().expect("a legal end of each command")).collect()
    });
    // Those that live are listed, and can be ended.
    let mut left = left;
    let mut names = Vec::new();
    let agreed = soon(|| {
        let alive = left.iter_mut().filter_map(|running| running.ended().is_none().then_some(())).count();
        let list = place.sbx(["ps", "--json"]).done().exits(0);
        let list: Vec<serde_json::Value> = serde_json::from_slice(&list.out).expect("an array");
        names = list.iter().filter_map(|facts| facts["name"].as_str().map(str::to_owned)).collect();
        names.iter().any(|name| name == "bystander") && names.len() == alive + 1
    });
    assert!(agreed, "{names:?}, {} runs", left.len());
    for name in names.iter().filter(|name| *name != "bystander") {
        place.sbx(["stop", "-t", "1", name.as_str()]).done().exits(0);
    }
    for running in left {
        let code = running.done().code();
        assert!([125, 137, 143].contains(&code), "{code}");
    }
    // Nobody else was hit.
    assert_eq!(place.standing("bystander"), "running");
    assert!(support::process(stranger.pid()).is_some_and(|process| process.state != 'Z'));
    stranger.signal("KILL");
    drop(stranger.done());
    place.sbx(["rm", "-f", "bystander"]).done().exits(0);
    bystander.done().exits(137);
    gone(&place, "n1", "rounds");
}
