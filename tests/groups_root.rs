//! How `sbx run --mem` fares wherever it is typed: as root, over `su`, without a word of the session's in the
//! environment, in a user namespace. Run as root, to become all of these.

mod common;

use common::{Outcome, missing, rootfs, sbx};
use std::process::Command;

/// The ordinary user that tests/run makes.
const USER: &str = "sbxtest";

/// Whether there are limits to be had at all, and the user.
fn has_limits() -> bool {
    let why = match (missing("unified"), Command::new("id").arg(USER).output()) {
        (Some(why), _) => why,
        (None, Ok(output)) if output.status.success() => return true,
        _ => format!("no user {USER}"),
    };
    println!("SKIP {}: {why}", std::thread::current().name().unwrap_or("test"));
    false
}

fn has_systemd() -> bool {
    has_limits() && common::has("booted")
}

/// A shell's words with this sbx as `$1` and the fixture as `$2`, run by these words and in nothing but this environment.
fn run(by: &[&str], env: &[(&str, &str)], words: &str) -> Outcome {
    let mut command = Command::new(by.first().expect("a program"));
    command.args(&by[1..]).args(["sh", "-c", words, "sh"]).args([sbx(), rootfs()]).current_dir("/").env_clear();
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin").envs(env.iter().copied());
    let output = command.output().expect("a shell");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome::of(
        output.status.code().unwrap_or(1000),
        text(&output.stdout),
        text(&output.stderr),
        format!("{by:?} {words}"),
    )
}

/// What is asked for everywhere: no other flag, and the limit is there.
const PLAIN: &str = "\"$1\" run --mem 64M \"$2\" cat /sys/fs/cgroup/memory.max";
/// And who keeps it.
const WHO: &str = "\"$1\" run --mem 64M --status-fd 1 \"$2\" true";

#[track_caller]
fn limited(outcome: Outcome) {
    let outcome = outcome.exits(0).prints("67108864");
    assert_eq!(outcome.stderr, "");
}

#[track_caller]
fn kept_by(outcome: Outcome, who: &str) {
    let outcome = outcome.exits(0);
    assert!(outcome.stdout.contains(&format!("\"by\":\"{who}\"")), "{}{}", outcome.stdout, outcome.stderr);
}

/// Without a session of its own: the words that make a login of the user's, as sshd and console do it.
const LOGIN: [&str; 8] =
    ["systemd-run", "--quiet", "--collect", "--pipe", "--wait", "--uid=sbxtest", "-pPAMName=login", "--"];

#[test]
fn root_itself() {
    if !has_limits() {
        return;
    }
    limited(run(&["env"], &[("HOME", "/root")], PLAIN));
    kept_by(run(&["env"], &[("HOME", "/root")], WHO), if missing("booted").is_none() { "systemd" } else { "cgroup" });
}

#[test]
fn a_login() {
    if !has_systemd() {
        return;
    }
    limited(run(&LOGIN, &[], PLAIN));
    kept_by(run(&LOGIN, &[], WHO), "systemd");
}

#[test]
fn a_login_without_a_word_of_it_in_the_environment() {
    if !has_systemd() {
        return;
    }
    let bare = [&LOGIN[..], &["env", "-i", "PATH=/usr/bin:/bin"]].concat();
    limited(run(&bare, &[], PLAIN));
    kept_by(run(&bare, &[], WHO), "systemd");
}

#[test]
fn su_with_a_session_and_without() {
    if !has_systemd() {
        return;
    }
    for su in [&["su", "-", USER, "-s", "/bin/sh"][..], &["su", USER, "-s", "/bin/sh"]] {
        let own = [su, &["-c", "exec \"$0\" \"$@\"", "--"]].concat();
        limited(run(&own, &[], PLAIN));
        kept_by(run(&own, &[], WHO), "systemd");
    }
    // What root's session left in the environment names root's manager, which is not the user's.
    let kept = ["su", "-m", USER, "-s", "/bin/sh", "-c", "exec \"$0\" \"$@\"", "--"];
    limited(run(&kept, &[("XDG_RUNTIME_DIR", "/run/user/0"), ("HOME", "/tmp")], PLAIN));
}

#[test]
fn a_user_namespace_in_a_login() {
    if !has_systemd() {
        return;
    }
    let here = [&LOGIN[..], &["unshare", "-Ur"]].concat();
    limited(run(&here, &[], PLAIN));
    // No path leads to our group from in here, and in the other pid namespace systemd would mean another process.
    for new in [&["-Ur", "--cgroup"][..], &["-Urpf", "--mount-proc", "--cgroup"]] {
        let own = [&LOGIN[..], &["unshare"], new].concat();
        let mounted = "mount -t tmpfs none /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup; ";
        for (words, why) in [(WHO, "a cgroup namespace"), (&format!("{mounted}{WHO}"), "is yours to divide")] {
            let outcome = run(&[&own[..], &["--mount"]].concat(), &[], words);
            let lines: Vec<&str> = outcome.stderr.lines().collect();
            assert!(matches!(lines[..], [line] if line.contains("limits by watch") && line.contains(why)), "{lines:?}");
            kept_by(outcome, "watch");
        }
    }
}
