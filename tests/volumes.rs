//! What is mounted by the user: binds in all their ways, tmpfs, the writable layer, set-id bits (S15, S16, S24).

mod common;

use common::tree::picture;
use common::{Scratch, has, plain, sandbox, volume};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

fn text(path: &std::path::Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn read_only_volumes_are_read_only() {
    let scratch = Scratch::new();
    scratch.file("shared/file", "old");
    let option = volume(&scratch.join("shared"), "/v:ro");
    let before = picture(&scratch.join("shared"));
    let script = "cat /v/file; (echo new >/v/file; touch /v/x; mkdir /v/y; rm /v/file; mv /v/file /v/z; chmod 777 /v/file; \
                  ln /v/file /v/l; truncate -s 0 /v/file) 2>/dev/null; true";
    for way in [&[][..], &["--landlock", "off"], &["--rw"]] {
        let root = scratch.join("rootfs");
        let root = if root.exists() { root } else { scratch.rootfs() };
        sandbox(way).root(root).option("-v").option(&option).sh(script).run().exits(0).prints("old");
        assert_eq!(picture(&scratch.join("shared")), before, "{way:?}");
    }
    let open = format!("{} -100 s:/v/file 2", libc::SYS_openat);
    let answers = sandbox(&["--landlock", "off"]).option("-v").option(&option).probe_with("calls", &[&open]).sees();
    assert_eq!(answers[&open], libc::EROFS);
}

#[test]
fn files_move_between_directories() {
    let scratch = Scratch::new();
    let option = volume(&scratch.dir("shared"), "/v");
    let script = "for dir in /v /tmp /root /run /dev/shm; do cd $dir && mkdir -p a/b && echo x >a/f && mv a/f a/b/g && \
                  ln a/b/g a/h && mv a/b/g g && rm -r a g || echo $dir; done";
    // mv copies where it cannot move; ln does not.
    for way in [&[][..], &["--landlock", "off"], &["--no-init"], &["--net", "host"]] {
        sandbox(way).option("-v").option(&option).sh(script).run().exits(0).prints("");
    }
    let written =
        sandbox(&["--rw"]).root(scratch.rootfs()).sh("mkdir -p /srv/a && echo x >/srv/f && ln /srv/f /srv/a/f");
    written.run().exits(0);
}

#[test]
fn read_only_reaches_mounts_below() {
    if !has("userns") {
        return;
    }
    let scratch = Scratch::new();
    let shared = text(scratch.dir("shared/nested/deep").parent().and_then(|p| p.parent()).expect("shared"));
    let script = "mount -t tmpfs t $1/nested && mkdir $1/nested/deep && mount -t tmpfs t $1/nested/deep && \
                  echo old >$1/nested/deep/file && shift && exec \"$@\"";
    let mounted = ["unshare", "-Urm", "sh", "-c", script, "sh", &shared];
    let opens = ["/v/x", "/v/nested/x", "/v/nested/deep/file"];
    let opens = opens.map(|path| format!("{} -100 s:{path} {} 420", libc::SYS_openat, libc::O_CREAT | libc::O_WRONLY));
    let asked = sandbox(&["--landlock", "off", "-v", &format!("{shared}:/v:ro")]).under(&mounted);
    let answers = asked.probe_with("calls", &opens).sees();
    for open in &opens {
        assert_eq!(answers[open], libc::EROFS, "{open}");
    }
    // The mounts are there at all, and writable where that is asked for.
    let written = sandbox(&["-v", &format!("{shared}:/v")]).under(&mounted);
    written.sh("echo new >>/v/nested/deep/file; cat /v/nested/deep/file").run().exits(0).prints("old\nnew");
}

#[test]
fn locked_flags_of_a_mount_are_kept() {
    if !has("userns") {
        return;
    }
    let scratch = Scratch::new();
    let shared = text(&scratch.dir("shared"));
    let script =
        "mount -t tmpfs -o noexec,nodev t $1 && cp /bin/busybox $1/b && chmod 755 $1/b && shift && exec \"$@\"";
    let mounted = ["unshare", "-Urm", "sh", "-c", script, "sh", &shared];
    for options in ["rw", "ro", "rw,exec"] {
        let asked = sandbox(&["-v", &format!("{shared}:/v:{options}")]).under(&mounted);
        let outcome = asked.sh("/v/b true 2>/dev/null; echo $?").run();
        // Executable again is what nobody may make it; refused or kept, never lifted.
        assert!(outcome.status == 125 || outcome.stdout.trim() == "126", "{options}: {outcome:?}");
    }
}

#[test]
fn writable_volumes_write_through() {
    let scratch = Scratch::new();
    let shared = scratch.dir("shared");
    plain().option("-v").option(volume(&shared, "/v")).sh("echo new >/v/file").run().exits(0);
    assert_eq!(fs::read_to_string(shared.join("file")).expect("made inside"), "new\n");
}

#[test]
fn overlay_volumes_drop_their_changes() {
    let scratch = Scratch::new();
    scratch.file("shared/dir/file", "old");
    let shared = scratch.join("shared");
    let before = picture(&shared);
    let script = "cat /v/dir/file; echo new >/v/dir/file; echo more >/v/more; rm -r /v/dir; mkdir /v/dir; ls -A /v/dir; cat /v/more";
    plain().option("-v").option(volume(&shared, "/v:overlay")).sh(script).run().exits(0).prints("oldmore");
    assert_eq!(picture(&shared), before);
}

#[test]
fn noexec_and_optional_volumes() {
    let scratch = Scratch::new();
    let program = scratch.file("shared/run", "#!/bin/sh\necho ran\n");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    let shared = scratch.join("shared");
    let with = |options: &str| plain().option("-v").option(volume(&shared, &format!("/v{options}")));
    with("").command(&["/v/run"]).run().exits(0).prints("ran");
    with(":noexec").command(&["/v/run"]).run().exits(126);
    with(":ro,noexec").command(&["/v/run"]).run().exits(126);
    let absent = scratch.join("absent");
    let with = |rest: &str| plain().option("-v").option(volume(&absent, rest));
    with("/v").command(&["true"]).run().refused().says("absent");
    with("/v:optional").sh("ls -d /v 2>/dev/null").run().exits(1).prints("");
}

#[test]
fn strange_names_work() {
    let scratch = Scratch::new();
    for name in ["a b", "a,b", "a\\b", "a\"b", "ü", "-x", "a=b", "a\tb", "a\nb"] {
        scratch.file(format!("{name}/file"), "found");
        let option = volume(&scratch.join(name), "/v:ro");
        plain().option("-v").option(&option).command(&["cat", "/v/file"]).run().exits(0).prints("found");
        let inside = volume(&scratch.join(name), &format!("/in/{name}:ro"));
        if !name.contains(',') {
            plain()
                .option("-v")
                .option(&inside)
                .command(&["cat", &format!("/in/{name}/file")])
                .run()
                .exits(0)
                .prints("found");
        }
    }
    scratch.file("c:d/file", "found");
    let option = format!("src={},dst=/v:w,ro", scratch.join("c:d").display());
    sandbox(&["--mount", &option]).command(&["cat", "/v:w/file"]).run().exits(0).prints("found");
    plain().option("-v").option(volume(&scratch.join("c:d"), "/v")).command(&["true"]).run().refused();
}

#[test]
fn strange_names_of_root_file_systems_work() {
    let scratch = Scratch::new();
    let plain_root = scratch.rootfs();
    for name in [&b"a:b"[..], b"a,b", b"a b", b"a\\b", b"\xff\xfe", b"a\nb", b"lowerdir=x,upperdir=y"] {
        let root = scratch.join(OsStr::from_bytes(name));
        fs::rename(&plain_root, &root).expect("rename");
        for options in [&[][..], &["--rw"]] {
            sandbox(options).root(&root).command(&["cat", "/etc/hostname"]).run().exits(0);
        }
        let upper = scratch.join(OsStr::from_bytes(&[b"up", name].concat()));
        let words: [OsString; 2] = ["--upper".into(), upper.into()];
        if std::str::from_utf8(name).is_ok() {
            sandbox(&words).root(&root).command(&["touch", "/x"]).run().exits(0);
        }
        fs::rename(&root, &plain_root).expect("rename");
    }
}

#[test]
fn written_through_and_mount_points_removed() {
    let scratch = Scratch::new();
    let root = scratch.rootfs();
    for name in ["mnt", "run", "sys"] {
        fs::remove_dir(root.join(name)).expect("empty directory of the fixture");
    }
    let shared = scratch.dir("shared");
    let script = "echo new >/new; mkdir -p /kept/below; touch /kept/below/file /v/x";
    let options = ["--rw", "--tmpfs", "/made/a/b", "-v"];
    sandbox(&options)
        .option(volume(&shared, "/kept/v"))
        .option("-v")
        .option(volume(&shared, "/v"))
        .root(&root)
        .sh(script)
        .run()
        .exits(0);
    let there = |name: &str| root.join(name).symlink_metadata().is_ok();
    assert!(there("new") && there("kept/below/file") && shared.join("x").exists());
    for name in ["made", "v", "kept/v", "run", "sys"] {
        assert!(!there(name), "{name} was left in ROOTFS");
    }
}

/// The program puts a link where a mount point was made, or where a volume's source was (S24, S25).
#[test]
fn removal_of_mount_points_follows_no_link() {
    let scratch = Scratch::new();
    let [project, victim] = ["project", "victim"].map(|name| scratch.dir(name));
    scratch.dir("victim/made");
    scratch.dir("project/source");
    let kept = scratch.file("project/kept/made", "");
    let script =
        format!("mv /p/source /p/other; ln -s {} /p/source; mv /p/way /p/away; ln -s kept /p/way", text(&victim));
    sandbox(&["-v"])
        .option(volume(&project, "/p"))
        .option("-v")
        .option(volume(&kept.with_file_name(""), "/p/kept:ro"))
        .option("-v")
        .option(volume(&project.join("source"), "/s"))
        .options(&["--tmpfs", "/s/made", "--tmpfs", "/p/way/made"])
        .sh(&script)
        .run()
        .exits(0);
    assert!(project.join("way").is_symlink() && project.join("source").is_symlink());
    assert!(victim.join("made").is_dir(), "removed through a link in place of the volume's source");
    assert!(kept.exists(), "removed through a link, in a volume that is read-only");
}

/// A pid file that the program can replace by a link: in the run that writes it, and before the next.
#[test]
fn a_pid_file_in_a_volume_is_no_way_out() {
    let scratch = Scratch::new();
    let shared = scratch.dir("shared");
    let precious = scratch.file("precious", "as it was");
    let script = format!("rm -f /p/pid; ln -s {} /p/pid", text(&precious));
    for _ in 0..5 {
        let _ = fs::remove_file(shared.join("pid"));
        let run = || sandbox(&["-v"]).option(volume(&shared, "/p")).option("--pid-file").option(shared.join("pid"));
        run().sh(&script).run().exits(0);
        run().sh("true").run().refused().says("pid");
        assert_eq!(fs::read_to_string(&precious).expect("read"), "as it was");
    }
}

#[test]
fn mount_points_behind_a_link_are_removed() {
    let scratch = Scratch::new();
    let tree = scratch.dir("tree/real");
    std::os::unix::fs::symlink("real", scratch.join("tree/link")).expect("symlink");
    std::os::unix::fs::symlink("tree", scratch.join("way")).expect("symlink");
    sandbox(&["-v"])
        .option(volume(&scratch.join("way"), "/p"))
        .options(&["--tmpfs", "/p/link/made/inside"])
        .sh("touch /p/real/made/inside/file")
        .run()
        .exits(0);
    assert_eq!(fs::read_dir(tree).expect("list").count(), 0);
}

/// Places that links of ROOTFS and of volumes lead into a volume, or out of one.
#[test]
fn mount_points_that_links_lead_to_are_removed() {
    let scratch = Scratch::new();
    let root = scratch.rootfs();
    let link = |to: &str, at: std::path::PathBuf| std::os::unix::fs::symlink(to, at).expect("symlink");
    for (at, to) in [
        ("var/run", "../run"),
        ("absolute", "/run"),
        ("chain", "var/../absolute"),
        ("loop", "/loop"),
        ("way", "opt"),
        ("opt", "/var/lib"),
    ] {
        link(to, root.join(at));
    }
    let [file, one, other] = [scratch.file("file", "x"), scratch.dir("one"), scratch.dir("other")];
    fs::create_dir(root.join("var/lib")).expect("mkdir");
    link("/other/deep", one.join("across"));
    link("/tmp", one.join("out"));
    scratch.dir("other/deep");
    let left = |dir: &str| names_in(&scratch.join(dir));
    let before = ["rootfs", "one", "other"].map(left);
    let state = scratch.join("state");
    let run = |options: &[&str]| {
        let volumes = [(&one, "/var/run"), (&other, "/other"), (&file, "/var/run/x.sock"), (&file, "/run/across/file")];
        let asked = sandbox(options).root(&root).option("--state").option(&state);
        let asked = volumes.into_iter().fold(asked, |asked, (src, at)| asked.option("-v").option(volume(src, at)));
        ["/absolute/a/b", "/chain/c", "/chain/out/d", "/way/e/f", "/way/e/g"]
            .into_iter()
            .fold(asked, |asked, place| asked.option("--tmpfs").option(place))
    };
    let script = "cat /run/x.sock /other/deep/file; touch /run/a/b/x /run/c/x /tmp/d/x /var/lib/e/f/x /var/lib/e/g/x";
    let kept = text(&scratch.join("kept"));
    for options in [&[][..], &["--rw"], &["--upper", &kept]] {
        run(options).sh(script).run().exits(0).prints("xx");
        assert_eq!(["rootfs", "one", "other"].map(left), before, "{options:?}");
        run(options).option("--tmpfs").option("/loop/x").sh("true").run().refused();
        assert_eq!(["rootfs", "one", "other"].map(left), before, "{options:?} refused");
    }
    assert_eq!(fs::read_dir(scratch.join("kept/upper")).expect("the layer").count(), 0);
    // Also where sbx is killed: by the next command.
    let mut killed = run(&["--rw"]).sh("touch /run/c/x && echo up; sleep 1000").start();
    while !one.join("c").exists() {
        std::thread::yield_now();
    }
    killed.kill();
    killed.wait();
    plain().option("--state").option(&state).sh("true").run().exits(0);
    assert_eq!(["rootfs", "one", "other"].map(left), before, "killed");
}

/// The names in a tree, and where its links lead.
fn names_in(dir: &std::path::Path) -> String {
    let list = std::process::Command::new("find")
        .arg(dir)
        .args(["-not", "-path", "*/bin/*", "-printf", "%P %y %l\\n"])
        .output()
        .expect("find");
    let mut lines: Vec<_> = String::from_utf8_lossy(&list.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines.join("\n")
}

#[test]
fn a_kept_layer_is_used_again_and_by_one_at_a_time() {
    let scratch = Scratch::new();
    let root = scratch.rootfs();
    let before = picture(&root);
    let kept = text(&scratch.join("kept"));
    let with = || sandbox(&["--upper", &kept]).root(&root);
    with().sh("echo one >/one; rm -r /home/user; mkdir /home/user").run().exits(0);
    with().sh("cat /one; ls -A /home/user; echo two >/two").run().exits(0).prints("one");
    let mut first = with().sh("echo ready >/ready; read wait").start();
    // The file appears in the layer when the first one runs.
    while !scratch.join("kept/upper/ready").exists() {
        std::thread::yield_now();
    }
    with().command(&["true"]).run().refused().says("another sandbox uses it");
    first.stdin = None;
    assert_eq!(first.wait().status, 1);
    with().sh("cat /two").run().exits(0).prints("two");
    assert_eq!(picture(&root), before);
}

#[test]
fn an_upper_layer_on_disk_leaves_nothing() {
    let scratch = Scratch::new();
    let home = scratch.dir("home");
    let asked = || sandbox(&["--upper", "disk"]).env("XDG_DATA_HOME", &home);
    asked().sh("head -c 1000000 /dev/zero >/big; mkdir -m 000 /closed; ls -l /big | wc -l").run().exits(0).prints("1");
    let left: Vec<_> = fs::read_dir(home.join("sbx/upper")).into_iter().flatten().flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Users move their layers to a larger disk by a link, whatever that place is called.
#[test]
fn an_upper_layer_on_disk_behind_a_link_leaves_nothing() {
    let scratch = Scratch::new();
    let state = scratch.join("state");
    let large = scratch.dir("large/disk");
    for (at, to) in [("sbx/upper", "../../large/disk"), ("sbx", "../large/disk"), ("", "large/disk")] {
        let home = scratch.join("home");
        let link = if at.is_empty() { home.clone() } else { home.join(at) };
        fs::create_dir_all(link.parent().expect("below the scratch")).expect("mkdir");
        std::os::unix::fs::symlink(to, &link).expect("symlink");
        let run = || sandbox(&["--upper", "disk", "--state"]).option(&state).env("XDG_DATA_HOME", &home);
        let layers = || names_in(&large).lines().filter(|name| name.contains("-")).count();
        run().sh("echo x >/x").run().exits(0);
        assert_eq!(layers(), 0, "{at}");
        let mut killed = run().sh("echo x >/x; sleep 1000").start();
        while layers() == 0 {
            std::thread::yield_now();
        }
        killed.kill();
        killed.wait();
        plain().option("--state").option(&state).sh("true").run().exits(0);
        assert_eq!(layers(), 0, "{at}, killed");
        assert_eq!(fs::read_dir(&state).expect("state").count(), 0);
        fs::remove_file(&link).expect("the link");
        let _ = fs::remove_dir_all(&home);
    }
}

#[test]
fn an_upper_layer_on_disk_is_not_looked_for_through_a_link() {
    let scratch = Scratch::new();
    let home = scratch.dir("home");
    let precious = scratch.file("victim/named/file", "");
    let script = format!("mv /h/sbx/upper /h/sbx/other; ln -s {} /h/sbx/upper", text(&scratch.join("victim")));
    sandbox(&["--name", "named", "--upper", "disk", "-v"])
        .option(volume(&home, "/h"))
        .env("XDG_DATA_HOME", &home)
        .sh(&script)
        .run()
        .exits(0);
    assert!(home.join("sbx/upper").is_symlink() && precious.exists());
}

#[test]
fn a_planted_record_removes_no_tree() {
    let scratch = Scratch::new();
    let state = scratch.join("state");
    let precious = scratch.file("victim/file", "");
    let run = || plain().option("--state").option(&state);
    run().sh("true").run().exits(0);
    let inside = scratch.file("data/sbx/upper/other/file", "");
    let uppers = scratch.join("data/sbx/upper");
    let victim = scratch.join("victim");
    let victim = text(&victim);
    // No layer at all; a name that leads elsewhere; an empty one, for the directory of all layers; another's layer.
    let upper = |name: &str| text(&uppers.join(name));
    for (name, upper) in [
        ("dead", victim.clone()),
        (&victim, victim.clone()),
        ("", upper("")),
        ("other", upper("other")),
        ("dead", upper("other")),
        ("dead", upper("other-0123abcd")),
    ] {
        let record = format!(
            r#"{{"version":1,"name":"{name}","state":"","supervisor_pid":1,"pid":null,"labels":{{}},"command":[],"groups":[],
            "skipped":[],"landlock":0,"made":[],"upper":"{upper}"}}"#,
        );
        let script = format!("mkdir -m 700 /v/dead; echo '{record}' >/v/dead/record.json");
        run().option("-v").option(volume(&state, "/v")).sh(&script).run().exits(0);
        assert!(state.join("dead/record.json").exists());
        run().sh("true").run().exits(0);
        assert!(!state.join("dead").exists() && precious.exists() && inside.exists(), "{name:?} {upper}");
    }
}

/// What a record holds is read again, whatever the command line is: JSON takes six bytes for a control character.
#[test]
fn a_command_of_control_characters_leaves_nothing() {
    let scratch = Scratch::new();
    let (home, state) = (scratch.dir("home"), scratch.join("state"));
    let script = "ulimit -s unlimited; w=$(head -c 120000 /dev/zero | tr '\\0' '\\1'); \
                  for n in $(seq 40); do set -- \"$@\" \"$w\"; done; exec \"$@\"";
    let asked = sandbox(&["--upper", "disk"]).under(&["sh", "-c", script, "sh"]).env("XDG_DATA_HOME", &home);
    asked.option("--state").option(&state).command(&["true"]).run().exits(0);
    assert_eq!(fs::read_dir(home.join("sbx/upper")).expect("layers").count(), 0);
    assert_eq!(fs::read_dir(&state).expect("state").count(), 0);
}

/// Files and directories of subordinate ids, which the caller itself may neither enter nor empty.
#[test]
fn an_upper_layer_on_disk_of_many_users_leaves_nothing() {
    if !has("subids") {
        return;
    }
    let scratch = Scratch::new();
    let (home, state) = (scratch.dir("home"), scratch.join("state"));
    let with = |options: &[&str]| sandbox(options).option("--state").option(&state).env("XDG_DATA_HOME", &home);
    let left = || fs::read_dir(home.join("sbx/upper")).into_iter().flatten().flatten().count();
    let script = "mkdir -p /d/e; echo x >/d/e/f; chown -R 1000:1000 /d; chmod 700 /d";
    let disk = ["--map", "full", "--upper", "disk"];
    with(&disk).sh(script).run().exits(0).prints("");
    assert_eq!(left(), 0, "left at the end");
    // After a kill the next command does it.
    let mut running = with(&disk).sh(&format!("{script}; echo >/up; sleep 1000")).start();
    let up = || {
        fs::read_dir(home.join("sbx/upper")).into_iter().flatten().flatten().any(|e| e.path().join("upper/up").exists())
    };
    while !up() {
        std::thread::yield_now();
    }
    running.kill();
    running.wait();
    assert_eq!(left(), 1);
    // Without the programs that map those ids it says why, and keeps the record for one that has them.
    let hide = "mount --bind $1 /usr/bin/newuidmap && shift && exec \"$@\"";
    let file = text(&scratch.file("newuidmap", ""));
    let hidden = ["unshare", "-Urm", "sh", "-c", hide, "sh", &file];
    let outcome = with(&[]).under(&hidden).sh("true").run().exits(0);
    assert!(outcome.stderr.lines().count() == 1 && outcome.stderr.contains("sbx/upper"), "{}", outcome.stderr);
    assert_eq!(left(), 1);
    assert_eq!(with(&[]).sh("true").run().exits(0).stderr, "");
    assert_eq!(left(), 0, "left after the next command");
    assert_eq!(fs::read_dir(&state).expect("state").count(), 0);
}

/// A directory that is removed takes the mounts on it with it, in every namespace.
#[test]
fn the_end_of_one_leaves_the_mounts_of_another() {
    let scratch = Scratch::new();
    let (work, hooks, state) = (scratch.dir("work"), scratch.dir("hooks"), scratch.join("state"));
    let run = || {
        let first = plain().option("--state").option(&state).option("-v").option(volume(&work, "/w"));
        first.option("-v").option(volume(&hooks, "/w/hooks:ro"))
    };
    let made = || work.join("hooks").exists();
    let first = run().sh("until [ -e /w/up ]; do sleep 0.01; done").start();
    while !made() {
        std::thread::yield_now();
    }
    let script = "touch /w/up; until [ -e /w/on ]; do sleep 0.01; done; mkdir -p /w/hooks; touch /w/hooks/x 2>/dev/null && echo written";
    let second = run().sh(&format!("{script}; true")).start();
    first.wait().exits(0);
    scratch.file("work/on", "");
    second.wait().exits(0).prints("");
    plain().option("--state").option(&state).sh("true").run().exits(0);
    assert!(!made(), "left after the next command");
    assert_eq!(fs::read_dir(&state).expect("state").count(), 0);
}

#[test]
fn layers_of_one_name_in_two_state_directories_are_two() {
    let scratch = Scratch::new();
    let (home, go) = (scratch.dir("home"), scratch.dir("go"));
    let run = |state: &str| {
        let named = sandbox(&["--name", "twin", "--upper", "disk"]).env("XDG_DATA_HOME", &home);
        named.option("--state").option(scratch.join(state))
    };
    let script = "touch /go/up; until [ -e /go/on ]; do sleep 0.01; done; echo x >/x && cat /x";
    let first = run("one").option("-v").option(volume(&go, "/go")).sh(script).start();
    while !go.join("up").exists() {
        std::thread::yield_now();
    }
    run("two").sh("true").run().exits(0);
    scratch.file("go/on", "");
    first.wait().exits(0).prints("x");
    // Both are kept by their names, until they are forgotten.
    for (state, left) in [("one", 1), ("two", 0)] {
        assert_eq!(fs::read_dir(home.join("sbx/upper")).expect("layers").count(), left + 1);
        let mut rm = std::process::Command::new(common::sbx());
        rm.arg("--state").arg(scratch.join(state)).args(["rm", "twin"]).env("XDG_DATA_HOME", &home);
        assert!(rm.status().expect("sbx").success());
    }
    assert_eq!(fs::read_dir(home.join("sbx/upper")).expect("layers").count(), 0);
}

#[test]
fn the_writable_layer_is_bounded_and_says_when_it_is_full() {
    if !has("tmpfs-xattrs") {
        return;
    }
    let script = "for f in /big /tmp/big /run/big /dev/shm/big /scratch/big; do \
                  head -c 20000000 /dev/zero >$f 2>/dev/null || echo full $f; done";
    let outcome = sandbox(&["--upper", "tmpfs:8M", "--tmpfs", "/scratch"]).sh(script).run().exits(0);
    // One size bounds them all: the first fills it, and nothing is left for the others.
    outcome
        .says("--upper disk")
        .prints("full /big\nfull /tmp/big\nfull /run/big\nfull /dev/shm/big\nfull /scratch/big");
    let roomy = sandbox(&["--upper", "tmpfs:64M"]).sh("head -c 1000 /dev/zero >/small").run().exits(0);
    assert_eq!(roomy.stderr, "");
    let own = sandbox(&["--tmpfs", "/t:size=1M"])
        .sh("head -c 2000000 /dev/zero >/t/x 2>/dev/null || echo full; echo >/y")
        .run();
    assert_eq!(own.exits(0).prints("full").stderr, "");
}

/// Calls that set the set-user-id bit on a file of `/v`, each in its own way.
fn set_id_calls() -> Vec<String> {
    let create = libc::O_CREAT | libc::O_WRONLY;
    let mut calls = vec![
        format!("{} -100 s:/v/file 2541", libc::SYS_fchmodat),
        format!("{} -100 s:/v/file 1517", libc::SYS_fchmodat),
        format!("{} -100 s:/v/new1 {create} 2541", libc::SYS_openat),
        format!("{} -100 s:/v {} 2541", libc::SYS_openat, libc::O_TMPFILE | libc::O_WRONLY),
        format!("{} -100 s:/v/new2 {} 0", libc::SYS_mknodat, libc::S_IFREG | 0o4755),
        "452 -100 s:/v/file 2541 0".into(),
    ];
    if cfg!(target_arch = "x86_64") {
        // chmod, open, creat and mknod of the old kind.
        calls.extend(["90 s:/v/file 2541".into(), format!("2 s:/v/new3 {create} 2541"), "85 s:/v/new4 2541".into()]);
        calls.push(format!("133 s:/v/new5 {} 0", libc::S_IFREG | 0o4755));
    }
    calls
}

#[test]
fn a_shared_ipc_namespace_brings_the_hosts_shm() {
    let set = format!("{} -100 s:/tmp 2541", libc::SYS_fchmodat);
    let answer = |options: &[&str]| sandbox(options).probe_with("calls", &[&set]).sees()[&set].clone();
    assert_eq!(answer(&["--share", "ipc"]), libc::EPERM);
    assert_eq!(answer(&["--share", "ipc", "--allow-setid"]), 0);
    assert_eq!(answer(&["--share", "uts"]), 0);
}

#[test]
fn set_id_bits_are_refused_where_the_host_could_see_them() {
    let scratch = Scratch::new();
    scratch.file("shared/file", "x");
    let shared = scratch.join("shared");
    let calls = set_id_calls();
    for options in [&[][..], &["--seccomp", "off", "--landlock", "off"]] {
        let with = || sandbox(options).option("-v").option(volume(&shared, "/v"));
        let answers = with().probe_with("calls", &calls).sees();
        for call in &calls {
            assert_eq!(answers[call], libc::EPERM, "{options:?} {call}");
        }
        // openat2 takes its mode from memory, where no filter can look; libraries go back to openat.
        let openat2 = format!("{} -100 s:/v/file p 24", libc::SYS_openat2);
        assert_eq!(with().probe_with("calls", &[&openat2]).sees()[&openat2], libc::ENOSYS);
        with()
            .sh("chmod 0755 /v/file && chmod u+s /v/file 2>/dev/null || echo refused")
            .run()
            .exits(0)
            .prints("refused");
    }
    let set = |path: &std::path::Path| fs::metadata(path).expect("file").permissions().mode() & 0o6000;
    for entry in fs::read_dir(&shared).expect("shared").flatten() {
        assert_eq!(set(&entry.path()), 0, "{entry:?}");
    }
}

#[test]
fn set_id_bits_are_free_where_nobody_sees_them_or_allowed() {
    plain().sh("touch /f; chmod u+s /f; stat -c %a /f").run().exits(0).prints("4644");
    let scratch = Scratch::new();
    scratch.file("shared/file", "x");
    let shared = scratch.join("shared");
    let outcome =
        sandbox(&["--allow-setid", "-v"]).option(volume(&shared, "/v")).sh("chmod u+s /v/file").run().exits(0);
    outcome.says("--allow-setid");
    assert_eq!(fs::metadata(shared.join("file")).expect("file").permissions().mode() & 0o4000, 0o4000);
}

#[test]
fn bad_volumes_are_refused() {
    let scratch = Scratch::new();
    let shared = text(&scratch.dir("shared"));
    let bad = [
        "",
        ":",
        "/v",
        "name:/v",
        ":/v",
        "SRC:",
        "SRC:relative",
        "SRC:/..",
        "SRC:/a/../b",
        "SRC:/",
        "SRC:/proc",
        "SRC:/proc/self",
        "SRC:/sys/x",
        "SRC:/v:ro,rw",
        "SRC:/v:nonsense",
        "SRC:/v:exec,noexec",
        "SRC:/v:ro:more",
    ];
    for option in bad {
        sandbox(&["-v", &option.replace("SRC", &shared)]).command(&["true"]).run().refused();
    }
}

#[test]
fn deep_trees_in_a_layer_on_disk_are_removed() {
    let scratch = Scratch::new();
    let home = scratch.dir("home");
    let limited = ["sh", "-c", "ulimit -n 256; exec \"$@\"", "sh"];
    let asked = sandbox(&["--upper", "disk", "-w", "/home"]).under(&limited).env("XDG_DATA_HOME", &home);
    asked.probe_with("deep", &["5000"]).run().exits(0);
    let left = fs::read_dir(home.join("sbx/upper")).into_iter().flatten().count();
    assert_eq!(left, 0, "a deep tree was left");
}

#[test]
fn a_device_is_given_by_name_and_nowhere_else() {
    let outcome = sandbox(&["--device", "/dev/null:/dev/own"]).sh("stat -c %t:%T /dev/own; echo x >/dev/own").run();
    outcome.exits(0).prints("1:3");
    let scratch = Scratch::new();
    scratch.file("plain", "no device");
    for bad in ["/dev/null:/etc/own", "/dev/none", "/dev", "/dev/null:/dev", "/dev/null:/dev/../x"] {
        sandbox(&["--device", bad]).command(&["true"]).run().refused();
    }
    let plain_file = format!("{}:/dev/own", scratch.join("plain").display());
    sandbox(&["--device", &plain_file]).command(&["true"]).run().refused();
}
