//! `sbx exec` and the other commands across users: root at a user's sandboxes, users of other groups. Run as root, to
//! become all of these.

mod common;

use common::{Scratch, rootfs, sbx};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The ordinary user that tests/run makes.
const USER: &str = "sbxtest";

/// sbx as this user with these groups, and no variable but what it needs.
fn as_user(groups: &str, state: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER]).arg(format!("--groups={groups}"));
    command.args(["env", "-i", "PATH=/usr/bin:/bin", "HOME=/"]).arg(sbx());
    command.arg(words[0]).arg("--state").arg(state).args(&words[1..]).current_dir("/").stdin(Stdio::null());
    command
}

struct Living {
    child: Child,
    state: Scratch,
}

/// A sandbox of the user's, `x`, that runs.
fn living(groups: &str, options: &[&str]) -> Living {
    let state = Scratch::new();
    let given = Command::new("chown").args(["-R", USER]).arg(state.join(".")).status().expect("chown");
    assert!(given.success());
    let path = rootfs();
    let root = path.to_string_lossy();
    let words = [&["run", "--name", "x"], options, &[&root, "sh", "-c", "sleep 60"]].concat();
    let child = as_user(groups, &state.join("state"), &words).spawn().expect("sbx");
    let living = Living { child, state };
    let begin = Instant::now();
    while !living.asks(groups, &["exec", "x", "true"]).status.success() {
        assert!(begin.elapsed() < Duration::from_secs(30), "the sandbox does not come up");
        std::thread::sleep(Duration::from_millis(10));
    }
    living
}

impl Living {
    fn asks(&self, groups: &str, words: &[&str]) -> Output {
        as_user(groups, &self.state.join("state"), words).output().expect("sbx")
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn no_group_comes_in_that_the_first_program_has_not() {
    let few = living("4", &[]);
    let (status, _, error) = text(&few.asks("4,24,27", &["exec", "x", "true"]));
    assert!(status == Some(125) && error.contains("(24, 27)") && error.contains("--map full"), "{status:?} {error}");
    // The group that it has anyway, and fewer, are no more.
    let own = String::from_utf8(Command::new("id").args(["-g", USER]).output().expect("id").stdout).expect("a number");
    for groups in ["4", own.trim()] {
        let (status, _, error) = text(&few.asks(groups, &["exec", "x", "true"]));
        assert_eq!(status, Some(0), "{groups}: {error}");
    }
    drop(few);
    // With a map of ranges there are none of the caller's.
    let full = living("4", &["--map", "full"]);
    let (status, groups, error) = text(&full.asks("4,24,27", &["exec", "x", "id", "-G"]));
    assert_eq!((status, groups.as_str()), (Some(0), "0"), "{error}");
}
