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
    git(&main, &["config", "extensions.worktreeConfig", "true"]);
    [main, linked]
}

/// What would run something in the next command of the caller's; each has to fail.
const ATTACKS: [&str; 13] = [
    "echo ../evil >$G/commondir",
    "echo ../../evil >$G/worktrees/linked/commondir",
    "echo x >$G/config.worktree",
    "mv $G/worktrees $G/w",
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
        for stood_in in ["commondir", "config.worktree"] {
            assert!(!main.join(".git").join(stood_in).exists(), "{stood_in}");
        }
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

/// A bare repository, the directory of one, one that lies apart, and a submodule's file.
#[test]
fn repositories_of_every_shape_are_guarded() {
    let scratch = Scratch::new();
    let [main, _] = repository(&scratch);
    let bare = scratch.join("bare");
    git(&main, &["clone", "-q", "--bare", ".", &bare.display().to_string()]);
    let apart = scratch.dir("apart");
    git(&apart, &["init", "-q", "--separate-git-dir", "gd"]);
    let module = ["-c", "protocol.file.allow=always", "submodule", "add", "-q", &bare.display().to_string(), "sub"];
    git(&main, &module);
    let evil = "mkdir evil; cp -r hooks/. evil 2>/dev/null";
    for (dir, attack) in [
        (&bare, "echo x >hooks/pre-receive || echo x >>config || echo ../evil >commondir"),
        (&main.join(".git"), "echo x >hooks/pre-commit || echo x >>config || echo ../evil >commondir"),
        (&apart, "echo x >gd/hooks/pre-commit || echo x >>gd/config || echo gitdir: evil >.git || mv gd g || rm .git"),
        (&main, "echo gitdir: ../evil >sub/.git || rm sub/.git || mv sub s"),
    ] {
        let script = format!("({evil}; {attack}) 2>/dev/null && echo done; true");
        build(&scratch, dir, &script).run().exits(0).prints("");
    }
}

/// Through links on the way, in what is mounted in a mount, and where the root itself is written.
#[test]
fn the_way_to_what_is_protected_cannot_be_moved() {
    let scratch = Scratch::new();
    for file in ["p/a/b/x", "ci/x", "inner/f"] {
        scratch.file(file, "old");
    }
    std::os::unix::fs::symlink("a/b", scratch.join("p/link")).expect("a link");
    let root = scratch.rootfs();
    scratch.file("rootfs/data/conf/d/x", "old");
    let policy = scratch.file(
        "policy.toml",
        "protect.paths = [\"/p/link/x\", \"/p/c/conf/x\", \"/p/q\", \"/data/conf/d/x\"]\n[root]\nrw = true\n\
         [[mount]]\nsrc = \"./p\"\ndst = \"/p\"\naccess = \"rw\"\n\
         [[mount]]\nsrc = \"./ci\"\ndst = \"/p/c/conf\"\naccess = \"rw\"\n\
         [[mount]]\nsrc = \"./inner\"\ndst = \"/p/q/sub\"\naccess = \"rw\"\n",
    );
    let script = "for way in /p/a /p/a/b /p/link /p/c /data/conf /data; do
            (mv $way /p/away || mv $way $way.old) 2>/dev/null && echo moved $way; done
        for file in /p/link/x /p/a/b/x /p/c/conf/x /p/q/sub/f /data/conf/d/x; do
            (echo new >$file) 2>/dev/null && echo written $file; done; cat /p/link/x";
    let policy = policy.display().to_string();
    sandbox(&["--policy", &policy]).root(&root).cwd(scratch.path()).sh(script).run().exits(0).prints("old");
    for file in ["p/a/b/x", "ci/x", "inner/f", "rootfs/data/conf/d/x"] {
        assert_eq!(std::fs::read_to_string(scratch.join(file)).expect("it"), "old", "{file}");
    }
}

/// A link to nothing leads nowhere while the sandbox runs.
#[test]
fn what_a_link_would_lead_to_cannot_be_made() {
    let scratch = Scratch::new();
    let project = scratch.dir("project");
    std::os::unix::fs::symlink("deep/er", project.join(".vscode")).expect("a link");
    std::os::unix::fs::symlink("/home/nobody-here/idea", project.join(".idea")).expect("a link");
    let before = picture(&project);
    let policy = scratch.file("policy.toml", "extends = [\"build\"]\nprotect.paths = [\"./.vscode/\", \"./.idea/\"]\n");
    let attack = "(mkdir -p deep/er; echo x >deep/er/tasks; mv deep d && mkdir -p deep/er) 2>/dev/null && echo done; \
                  test -e .vscode/tasks && echo made; true";
    sandbox(&["-q", "--policy", &policy.display().to_string()])
        .root("@host")
        .cwd(&project)
        .env("HOME", scratch.dir("home"))
        .command(&["/bin/sh", "-c", attack])
        .run()
        .exits(0)
        .prints("");
    assert_eq!(picture(&project).lines().count(), before.lines().count(), "{}", picture(&project));
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
    let [hooks, common] = ["hooks", "commondir"].map(|name| main.join(".git").join(name));
    std::fs::remove_dir_all(&hooks).expect("removed");
    let mut running = build(&scratch, &main, "echo up; read x").start();
    let begin = std::time::Instant::now();
    while !hooks.exists() || !common.exists() {
        assert!(begin.elapsed() < std::time::Duration::from_secs(30), "nothing stands there");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    running.kill();
    running.wait();
    build(&scratch, &main, "true").run().exits(0);
    assert!(!hooks.exists() && !common.exists());
}

/// A sandbox on this machine's own root, without a policy.
fn host(home: &Path, cwd: &Path, options: &[&str], script: &str) -> Sandbox {
    sandbox(&["-q"]).options(options).root("@host").cwd(cwd).env("HOME", home).command(&["/bin/sh", "-c", script])
}

#[test]
fn what_is_written_is_guarded_without_a_policy_too() {
    let scratch = Scratch::new();
    let [main, _] = repository(&scratch);
    let kept = || ["hooks", "config"].map(|name| picture(&main.join(".git").join(name)));
    let before = kept();
    let attacks = ATTACKS.map(|attack| format!("({attack}) 2>/dev/null && echo done;")).join("\n");
    let elsewhere = scratch.dir("elsewhere");
    let volume = format!("{}:/p", main.display());
    // The directory of the caller's, and another one at another place.
    let own = format!("{0}:{0}", main.display());
    host(&scratch.dir("home"), &main, &["-v", &own], &format!("G=.git; {attacks} touch .git/x"))
        .run()
        .exits(0)
        .prints("");
    let script = format!("G=/p/.git; {attacks} touch /p/.git/y");
    host(&scratch.dir("home"), &elsewhere, &["-v", &volume], &script).run().exits(0).prints("");
    assert_eq!(kept(), before);
    assert!(main.join(".git/x").exists() && main.join(".git/y").exists());
    // Not for who says so.
    let options = ["-v", &volume, "--set", "protect.git=false"];
    host(&scratch.dir("home"), &elsewhere, &options, "echo x >/p/.git/hooks/new").run().exits(0);
    assert!(main.join(".git/hooks/new").exists());
}

#[test]
fn a_git_that_is_a_link_stays_and_leads_nowhere() {
    let scratch = Scratch::new();
    let [main, linked] = repository(&scratch);
    std::fs::rename(main.join(".git"), main.join("git")).expect("renamed");
    std::os::unix::fs::symlink("git", main.join(".git")).expect("a link");
    // What stands in for what is missing changes the times of directories.
    let still = || picture(&main).lines().filter(|line| !line.contains(" 40755 ")).collect::<Vec<_>>().join("\n");
    let before = still();
    let script = "G=git; git log --format=%s; for f in git/hooks/x git/config .git/hooks/x; do (echo x >$f) 2>/dev/null && echo done; done;
        (mv git old) 2>/dev/null && echo done; (rm .git && mkdir .git) 2>/dev/null && echo done; (mv .git g) 2>/dev/null && echo done; true";
    build(&scratch, &main, script).run().exits(0).prints("one");
    assert_eq!(still(), before);
    // One that leads out shows nothing there, and stays as it is.
    let stranger = scratch.dir("stranger");
    std::os::unix::fs::symlink(main.join("git"), stranger.join(".git")).expect("a link");
    let script = "ls .git/ 2>/dev/null; (rm .git) 2>/dev/null || echo kept";
    build(&scratch, &stranger, script).run().exits(0).prints("kept");
    // So does the file of a worktree that nobody names.
    let other = scratch.dir("other");
    std::fs::copy(linked.join(".git"), other.join(".git")).expect("a copy");
    build(&scratch, &other, "(rm .git || mv .git g || echo >.git) 2>/dev/null || echo kept")
        .run()
        .exits(0)
        .prints("kept");
}

#[test]
fn what_the_next_shell_runs_cannot_be_changed() {
    let scratch = Scratch::new();
    let home = scratch.dir("home");
    scratch.file("home/.profile", "one");
    scratch.file("home/dotfiles/bashrc", "one");
    scratch.file("home/.config/fish/config.fish", "one");
    std::os::unix::fs::symlink("dotfiles/bashrc", home.join("link")).expect("a link");
    std::os::unix::fs::symlink("link", home.join(".bashrc")).expect("a link");
    // Not the times of directories: what is moved to another mount is copied there first.
    let kept = || {
        let links = [".bashrc", "link"].map(|name| std::fs::read_link(home.join(name)).expect("a link"));
        let files = [".profile", "dotfiles/bashrc", ".config/fish"].map(|name| picture(&home.join(name)));
        (links, files)
    };
    let before = kept();
    let script =
        "cd; cat .bashrc; for f in .profile .bashrc link dotfiles/bashrc .config/fish/config.fish .config/fish/x; do
            (echo x >$f) 2>/dev/null && echo written $f; (rm $f) 2>/dev/null && echo removed $f
            (mv $f g) 2>/dev/null && echo moved $f; (ln -sf /tmp/x $f) 2>/dev/null && echo replaced $f; done
        (mv .config c) 2>/dev/null && echo moved .config; (rm -r .config) 2>/dev/null && echo removed .config; true";
    let volume = format!("{0}:{0}", home.display());
    host(&home, &home, &["-v", &volume], script).run().exits(0).prints("one");
    assert_eq!(kept(), before);
    // The directory alone in which the files really lie.
    let dotfiles = home.join("dotfiles");
    let volume_of_it = format!("{0}:{0}", dotfiles.display());
    host(&home, &dotfiles, &["-v", &volume_of_it], "(echo x >>bashrc) 2>/dev/null || echo kept").run().prints("kept");
    assert_eq!(kept(), before);
    // All else can be, and these for who says so.
    host(&home, &home, &["-v", &volume], "echo x >~/.config/other; echo x >~/file").run().exits(0);
    assert!(home.join(".config/other").exists() && home.join("file").exists());
    let meant = format!("{0}/.profile:{0}/.profile", home.display());
    host(&home, &home, &["-v", &volume, "-v", &meant], "echo two >~/.profile").run().exits(0);
    host(&home, &home, &["-v", &volume, "--set", "protect.start-files=false"], "echo two >~/.bashrc").run().exits(0);
    assert_eq!(
        ["dotfiles/bashrc", ".profile"].map(|name| std::fs::read_to_string(home.join(name)).expect("it")),
        ["two\n"; 2]
    );
}

#[test]
fn sockets_that_variables_name_are_out_of_reach_in_a_project() {
    let scratch = Scratch::new();
    let project = scratch.dir("project");
    let listeners = ["agent", "docker", "bus"]
        .map(|name| std::os::unix::net::UnixListener::bind(project.join(name)).expect("a socket"));
    let named = |sandbox: Sandbox| {
        let docker = format!("unix://{}", project.join("docker").display());
        let bus = format!("unix:path=/nowhere;unix:path={}/../project/bus,guid=1", project.display());
        sandbox
            .env("SSH_AUTH_SOCK", project.join("agent"))
            .env("DOCKER_HOST", docker)
            .env("DBUS_SESSION_BUS_ADDRESS", bus)
    };
    let script = "for s in agent docker bus; do test -S $s && echo $s; done; true";
    let volume = format!("{0}:{0}", project.display());
    for options in [&[][..], &["-v", &volume]] {
        named(host(&scratch.dir("home"), &project, options, script)).run().exits(0).prints("");
    }
    let meant = format!("{0}/agent:{0}/agent", project.display());
    named(host(&scratch.dir("home"), &project, &["-v", &meant], script)).run().exits(0).prints("agent");
    let docker = format!("unix:{}", project.join("docker").display());
    let plain = host(&scratch.dir("home"), &project, &["-v", &volume], "test -S docker || echo hidden");
    plain.env("DOCKER_HOST", docker).run().exits(0).prints("hidden");
    drop(listeners);
}
