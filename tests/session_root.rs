//! What becomes of a sandbox and of the next run when the user's systemd, its bus or the session goes away. Run as root
//! in a machine of their own, for they end what others stand on; one at a time.

mod common;

use common::{Outcome, probe, rootfs, sbx};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The ordinary user that tests/run makes.
const USER: &str = "sbxtest";
/// No end takes longer: systemd itself would wait for 90 s before it kills.
const LONG: Duration = Duration::from_secs(20);

static ONE: Mutex<()> = Mutex::new(());

/// The user's manager, running again when this is dropped; `None` where that is not ours to end.
struct Session {
    uid: String,
    _one: MutexGuard<'static, ()>,
}

fn session() -> Option<Session> {
    // A machine that somebody works on has this user at most for a moment.
    if !common::has("disposable") {
        return None;
    }
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let id = Command::new("id").args(["-u", USER]).output().expect("id");
    let session = Session { uid: text(&id.stdout).trim().into(), _one };
    session.begin();
    Some(session)
}

impl Drop for Session {
    fn drop(&mut self) {
        self.begin();
    }
}

impl Session {
    fn manager(&self) -> String {
        format!("user@{}.service", self.uid)
    }

    fn runtime(&self) -> PathBuf {
        format!("/run/user/{}", self.uid).into()
    }

    fn begin(&self) {
        systemctl(&["reset-failed", &self.manager()]);
        systemctl(&["start", &self.manager()]);
    }

    /// `systemctl --user`, as the user.
    fn user(&self, words: &[&str]) -> String {
        let runtime = format!("XDG_RUNTIME_DIR={}", self.runtime().display());
        let mut command = Command::new("setpriv");
        command.args(["--reuid", USER, "--regid", USER, "--init-groups", "env", &runtime, "systemctl", "--user"]);
        text(&command.args(words).output().expect("systemctl").stdout)
    }

    /// sbx as the user, without a login: ending the user's sessions ends not it, but what it stands on.
    fn sbx(&self, options: &[&str], words: &[&str]) -> Run {
        let runtime = format!("XDG_RUNTIME_DIR={}", self.runtime().display());
        let mut command = Command::new("setpriv");
        command.args(["--reuid", USER, "--regid", USER, "--init-groups", "env", "-i"]);
        command.args(["PATH=/usr/bin:/bin", "HOME=/home/sbxtest", &runtime]).arg(sbx()).args([
            "run",
            "--status-fd",
            "2",
        ]);
        command.args(["--state", "/tmp/sbx-session-state"]).args(options);
        command
            .arg("--mount")
            .arg(format!("type=bind,src={},dst=/probe,ro", probe().display()))
            .arg(rootfs())
            .args(words);
        let told = format!("{options:?} {words:?}");
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sbx");
        Run { child, told, begin: Instant::now() }
    }

    fn groups(&self) -> String {
        text(&Command::new("find").args(["/sys/fs/cgroup", "-name", "sbx-*"]).output().expect("find").stdout)
    }

    /// The group of a sandbox that runs.
    fn group_of(&self, name: &str) -> PathBuf {
        let begin = Instant::now();
        loop {
            let groups = self.groups();
            let found = groups.lines().find(|line| line.ends_with(&format!("sbx-{name}.scope")));
            if let Some(group) = found.filter(|group| !value(group, "cgroup.procs").is_empty()) {
                return group.into();
            }
            assert!(begin.elapsed() < LONG, "no group of {name}: {groups}");
            pause();
        }
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        let begin = Instant::now();
        while !self.groups().is_empty() {
            assert!(begin.elapsed() < LONG, "left: {}", self.groups());
            pause();
        }
    }
}

struct Run {
    child: Child,
    told: String,
    begin: Instant,
}

impl Run {
    #[track_caller]
    fn ends(mut self) -> Outcome {
        let begin = Instant::now();
        while self.child.try_wait().expect("waited").is_none() {
            if begin.elapsed() > LONG {
                let _ = self.child.kill();
                panic!("hangs: {}", self.told);
            }
            pause();
        }
        println!("{} took {:?}, the end {:?}", self.told, self.begin.elapsed(), begin.elapsed());
        let output = self.child.wait_with_output().expect("output");
        let outcome =
            Outcome::of(output.status.code().unwrap_or(1000), text(&output.stdout), text(&output.stderr), self.told);
        println!("{outcome:?}");
        outcome
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

fn value(group: impl AsRef<Path>, file: &str) -> String {
    std::fs::read_to_string(group.as_ref().join(file)).unwrap_or_default().trim().to_owned()
}

fn systemctl(words: &[&str]) {
    let _ = Command::new("systemctl").args(words).stderr(Stdio::null()).status();
}

fn kept_by(outcome: &Outcome, who: &str) {
    assert!(outcome.stderr.contains(&format!("\"by\":\"{who}\"")), "{}", outcome.stderr);
}

/// What sbx says beside its status lines.
fn said(outcome: &Outcome) -> Vec<&str> {
    outcome.stderr.lines().filter(|line| line.starts_with("sbx: ")).collect()
}

const MAX: [&str; 2] = ["cat", "/sys/fs/cgroup/memory.max"];
const FOR_LONG: [&str; 2] = ["sleep", "1000"];

#[test]
fn without_a_bus_the_managers_own_socket_does() {
    let Some(session) = session() else { return };
    let (bus, aside) = (session.runtime().join("bus"), session.runtime().join("bus.aside"));
    std::fs::rename(&bus, &aside).expect("the bus");
    let outcome = session.sbx(&["--mem", "64M"], &MAX).ends();
    std::fs::rename(&aside, &bus).expect("the bus");
    let outcome = outcome.exits(0).prints("67108864");
    kept_by(&outcome, "systemd");
    assert_eq!(said(&outcome), [""; 0]);
    session.nothing_is_left();
}

/// No program answers on the bus that is there.
#[test]
fn a_bus_that_is_stopped_is_given_up() {
    let Some(session) = session() else { return };
    session.user(&["stop", "dbus.socket", "dbus.service"]);
    let outcome = session.sbx(&["--mem", "64M"], &MAX).ends().exits(0).prints("67108864");
    session.user(&["start", "dbus.socket"]);
    kept_by(&outcome, "systemd");
    assert_eq!(said(&outcome), [""; 0]);
}

#[test]
fn without_a_manager_it_is_watched_and_said() {
    let Some(session) = session() else { return };
    systemctl(&["stop", &session.manager()]);
    let outcome = session.sbx(&["--mem", "64M"], &["true"]).ends().exits(0);
    kept_by(&outcome, "watch");
    let lines = said(&outcome);
    assert!(matches!(lines[..], [line] if line.contains("limits by watch")), "{lines:?}");
    session.sbx(&["--mem", "64M"], &["/probe", "fill", "300", "0", "5000"]).ends().exits(137);
    let refused = session.sbx(&["--mem", "64M", "--limits", "cgroup"], &["true"]).ends().exits(125);
    refused.says("--limits watch").says("loginctl enable-linger");
}

/// The end of the last session of a user who does not linger: the manager ends, and with it all that it made.
fn goes(end: impl Fn(&Session), words: &[&str]) {
    let Some(session) = session() else { return };
    let run = session.sbx(&["--mem", "64M", "--upper", "tmpfs", "--name", "gone"], words);
    session.group_of("gone");
    end(&session);
    let outcome = run.ends();
    assert!([137, 143].contains(&outcome.status), "{outcome:?}");
    session.nothing_is_left();
    drop(session);
}

#[test]
fn the_manager_is_told_to_exit() {
    goes(|session| drop(session.user(&["exit"])), &FOR_LONG);
}

#[test]
fn the_manager_is_stopped() {
    goes(|session| systemctl(&["stop", &session.manager()]), &FOR_LONG);
}

#[test]
fn the_manager_is_restarted() {
    goes(|session| systemctl(&["restart", &session.manager()]), &FOR_LONG);
}

#[test]
fn the_manager_is_killed() {
    goes(|session| systemctl(&["kill", "--kill-whom=main", "-s", "KILL", &session.manager()]), &FOR_LONG);
}

#[test]
fn the_user_is_terminated() {
    goes(
        |_| {
            // A test before this one may have made logind forget the user.
            for verb in ["enable-linger", "terminate-user"] {
                let output = Command::new("loginctl").args([verb, USER]).output().expect("loginctl");
                assert!(output.status.success(), "{verb}: {output:?}");
            }
        },
        &FOR_LONG,
    );
}

#[test]
fn the_slice_of_the_user_is_stopped() {
    goes(|session| systemctl(&["stop", &format!("user-{}.slice", session.uid)]), &FOR_LONG);
}

#[test]
fn the_last_session_of_a_user_who_does_not_linger() {
    goes(
        |_| {
            let status = Command::new("loginctl").args(["disable-linger", USER]).status();
            assert!(status.expect("loginctl").success());
        },
        &FOR_LONG,
    );
    let _ = Command::new("loginctl").args(["enable-linger", USER]).status();
}

#[test]
fn a_scope_that_is_stopped_ends_its_sandbox() {
    goes(|session| drop(session.user(&["stop", "sbx-gone.scope"])), &FOR_LONG);
}

/// Systemd keeps the limits of a scope over its own new start, and it can still be asked for more.
#[test]
fn a_manager_that_executes_itself_anew_keeps_the_limits() {
    let Some(session) = session() else { return };
    let options = ["--mem", "64M", "--pids", "9", "--upper", "tmpfs", "--name", "kept"];
    let hog = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; until [ -e /host/go ]; do sleep 0.1; done; \
        exec /probe fill 300 0 5000";
    let place = tempfile::tempdir_in("/tmp").expect("a directory");
    std::os::unix::fs::chown(place.path(), session.uid.parse().ok(), None).expect("chown");
    let bind = format!("{}:/host", place.path().display());
    let run = session.sbx(&[&options[..], &["-v", &bind]].concat(), &["sh", "-c", hog]);
    let group = session.group_of("kept");
    for what in ["daemon-reexec", "daemon-reload"] {
        session.user(&[what]);
        assert_eq!(
            (value(&group, "memory.max"), value(&group, "pids.max")),
            ("67108864".into(), "10".into()),
            "{what}"
        );
        assert_eq!(
            session.user(&["show", "sbx-kept.scope", "--value", "-p", "MemoryMax,ActiveState"]),
            "67108864\nactive\n"
        );
        session.sbx(&["--mem", "64M"], &MAX).ends().exits(0).prints("67108864");
        println!("{what}: {}", value(&group, "memory.oom.group"));
    }
    std::fs::write(place.path().join("go"), "").expect("a file");
    run.ends().exits(137).says("killed by the memory limit (64M)");
    session.nothing_is_left();
}

/// For another unit's limits systemd looks at the slice anew, and takes back what it has no property for; all ends still.
#[test]
fn the_limits_of_others_change_nothing() {
    let Some(session) = session() else { return };
    let script = "/probe fill 300 0 5000; sleep 5; echo survived";
    let wait = format!("sleep 2; {script}");
    let run = session.sbx(&["--mem", "64M", "--upper", "tmpfs", "--name", "first"], &["sh", "-c", &wait]);
    let group = session.group_of("first");
    session.sbx(&["--mem", "64M", "--cpus", "0.5", "--cpu-weight", "50"], &["true"]).ends().exits(0);
    session.user(&["set-property", "--runtime", "sbx-first.scope", "CPUWeight=50"]);
    println!("oom.group: {}", value(&group, "memory.oom.group"));
    let outcome = run.ends().exits(137).says("killed by the memory limit (64M)");
    assert_eq!(outcome.stdout, "");
    session.nothing_is_left();
}
