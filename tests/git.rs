//! `[protect]`: a writable project in which git works, and through which nobody gets at the caller's next command.

mod common;

use common::tree::picture;
use common::{Sandbox, Scratch, sandbox};
use std::path::Path;
use std::process::Command;

/// `sbx run --policy build @host` in this directory, with a name for commits.
fn build(scratch: &Scratch, cwd: &Path, script: &str) -> Sandbox {
    let name = "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b;";
    sandbox(&["-q", "--policy", "build", "--limits", "watch"])
        .root("@host")
        .cwd(cwd)
        .env("HOME", scratch.dir("home"))
        .command(&["/bin/sh", "-c", &format!("{name} {script}")])
}

fn git(dir: &Path, words: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(dir).args(["-c", "user.name=me", "-c", "user.email=me@here"]).args(words);
    let output = command.env("GIT_CONFIG_GLOBAL", "/dev/null").output().expect("git");
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A repository with one commit, and a linked worktree beside it.
fn repository(scratch: &Scratch) -> [std::path::PathBuf; 2] {
    let main = scratch.dir("main");
    git(&main, &["init", "-q", "-b", "main"]);
    scratch.file("main/file", "one");
    git(&main, &["add", "."]);
    git(&main, &["commit", "-qm", "one"]);
    let linked = scratch.join("linked");
    git(&main, &["worktree", "add", "-q", "-b", "side", &linked.display().to_string()]);
    [main, linked]
}

/// What would run something in the next command of the caller's; each has to fail.
const ATTACKS: [&str; 9] = [
    "echo x >$G/hooks/pre-commit",
    "mkdir $G/hooks",
    "rm -rf $G/hooks && mkdir $G/hooks",
    "git config core.fsmonitor /tmp/evil",
    "mv $G/config $G/c",
    "mv $G $G.old",
    "mv $G/hooks $G/h",
    "ln -s /tmp $G/hooks/x",
    "chmod 777 $G/hooks",
];

#[test]
fn git_works_and_leads_nowhere() {
    let scratch = Scratch::new();
    let [main, linked] = repository(&scratch);
    let kept = || ["hooks", "config"].map(|name| picture(&main.join(".git").join(name)));
    let before = kept();
    for (dir, branch) in [(&main, "main"), (&linked, "side")] {
        let script = "git status --short && echo two >>file && git add file && git commit -qm two && \
                      git branch other-$(git rev-parse --abbrev-ref HEAD) && git log --format=%s";
        build(&scratch, dir, script).run().exits(0).prints("two\none");
        assert_eq!(git(dir, &["log", "-1", "--format=%s %an", branch]), "two a");
        for attack in ATTACKS {
            let script = format!("G=$(git rev-parse --git-common-dir); ({attack}) 2>/dev/null && echo done; true");
            build(&scratch, dir, &script).run().exits(0).prints("");
        }
        assert_eq!(kept(), before, "{branch}");
        assert_eq!(git(dir, &["status", "--short"]), "");
    }
}

#[test]
fn hooks_that_are_missing_cannot_be_made_and_nothing_is_left() {
    let scratch = Scratch::new();
    let [main, _] = repository(&scratch);
    std::fs::remove_dir_all(main.join(".git/hooks")).expect("removed");
    let before = picture(&main);
    let script =
        "ls .git/hooks; (echo x >.git/hooks/pre-commit || mkdir .git/hooks || rmdir .git/hooks) 2>/dev/null || echo no";
    build(&scratch, &main, script).run().exits(0).prints("no");
    assert_eq!(before.lines().count(), picture(&main).lines().count());
    assert!(!main.join(".git/hooks").exists());
}

#[test]
fn a_strangers_git_file_shows_nothing() {
    let scratch = Scratch::new();
    let [main, linked] = repository(&scratch);
    let stranger = scratch.dir("stranger");
    std::fs::copy(linked.join(".git"), stranger.join(".git")).expect("a copy");
    let script = format!("cat {}/.git/HEAD 2>/dev/null || echo no", main.display());
    build(&scratch, &stranger, &script).run().exits(0).prints("no");
}

#[test]
fn a_home_is_no_project() {
    let scratch = Scratch::new();
    let home = scratch.dir("home");
    build(&scratch, &home, "true").run().refused().says("which is or holds your home");
    // However it is spelled.
    std::os::unix::fs::symlink(&home, scratch.join("link")).expect("a link");
    let linked = build(&scratch, &home, "true").env("HOME", scratch.join("link"));
    linked.run().refused().says("which is or holds your home");
    build(&scratch, scratch.path(), "true").run().refused().says("cd to the project");
}

/// As other mount points that sbx makes on the host.
#[test]
fn what_stands_in_for_hooks_goes_also_after_a_kill() {
    let scratch = Scratch::new();
    let [main, _] = repository(&scratch);
    let hooks = main.join(".git/hooks");
    std::fs::remove_dir_all(&hooks).expect("removed");
    let mut running = build(&scratch, &main, "echo up; read x").start();
    let begin = std::time::Instant::now();
    while !hooks.exists() {
        assert!(begin.elapsed() < std::time::Duration::from_secs(30), "nothing stands there");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    running.kill();
    running.wait();
    build(&scratch, &main, "true").run().exits(0);
    assert!(!hooks.exists());
}
