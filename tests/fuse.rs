//! The root by fuse-overlayfs: asked for, or where the kernel refuses its own overlay. Where /dev/fuse is root's alone
//! tests/run gives this executable a private node of it.

mod support;

use std::path::Path;
use std::process::Command;
use support::{Done, Place, lacks, missing, soon, tree, within};

const DAEMON: &str = "fuse-overlayfs";

/// As `lacks`, for the program and its device too.
fn lacks_fuse(needs: &[&str]) -> bool {
    lacks(&[needs, &[DAEMON, "fuse"]].concat())
}

/// `sbx` as root of a user and mount namespace, after a script that changes what it finds there.
fn within_mounts(place: &Place, script: &str, words: &[&str]) -> Done {
    let script = format!("{script} && exec \"$@\"");
    let sbx = support::sbx();
    let all = ["-Urm", "sh", "-c", &script, "sh", sbx.to_str().expect("a path in UTF-8"), "run"];
    place.run("unshare", all.iter().chain(words)).done()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// How many of the processes of this test are fuse-overlayfs.
fn daemons(place: &Place) -> usize {
    place.processes().iter().filter(|process| process.name == DAEMON).count()
}

const CHANGES: &str = "set -e
    grep -q ' / fuse.fuse-overlayfs ' /proc/self/mounts
    test \"$(cat /lower/kept)\" = below
    ls -l /lower > /dev/null
    echo more >> /lower/kept; test \"$(tail -n1 /lower/kept)\" = more
    rm /lower/gone; ! test -e /lower/gone
    mv /lower/dir /lower/moved; test \"$(cat /lower/moved/file)\" = deep
    rm -r /lower/moved; mkdir /lower/moved; test -z \"$(ls /lower/moved)\"
    test \"$(readlink /lower/link)\" = kept
    echo new > /new; chmod 600 /new; cat /new /etc/hostname";

/// Adds to a root file system what `CHANGES` works on.
fn fill(rootfs: &Path) {
    let lower = rootfs.join("lower");
    std::fs::create_dir_all(lower.join("dir")).expect("mkdir");
    for (name, content) in [("kept", "below\n"), ("gone", "x"), ("dir/file", "deep\n")] {
        std::fs::write(lower.join(name), content).expect("write");
    }
    std::os::unix::fs::symlink("kept", lower.join("link")).expect("symlink");
}

#[test]
fn changes_are_seen_inside_and_dropped() {
    if lacks_fuse(&["userns"]) {
        return;
    }
    let place = Place::new();
    // No name of the host may be taken for a part of an option.
    let rootfs = place.own_rootfs("a:b,c\\d e");
    fill(&rootfs);
    let before = tree(&rootfs);
    let mut ways = vec![vec![], vec!["--map", "keep"], vec!["--upper", "disk"], vec!["--read-only"], vec!["--no-init"]];
    if !lacks(&["subids"]) {
        ways.push(vec!["--map", "full"]);
    }
    for way in ways {
        let script =
            if way.contains(&"--read-only") { "! echo x > /new && echo new && cat /etc/hostname" } else { CHANGES };
        let words = ["--overlay", "fuse", "--hostname", "h"].iter().chain(&way).copied().map(Into::into);
        let words = words.chain([rootfs.clone().into_os_string(), "sh".into(), "-c".into(), script.into()]);
        let done = place.sbx_run(words).done();
        assert_eq!((done.code(), done.text().as_str()), (0, "new\nh\n"), "{way:?}: {}", done.err);
        assert!(before == tree(&rootfs), "{way:?}: ROOTFS has changed");
        place.assert_clean();
    }
}

#[test]
fn users_of_a_range_keep_apart() {
    if lacks_fuse(&["userns", "subids"]) {
        return;
    }
    let place = Place::new();
    let script = "set -e
        echo x > /tmp/own; echo x > /file; chown 5:6 /file; test \"$(stat -c %u:%g /file)\" = 5:6
        chmod 700 /file; mkdir -m 700 /shut; ! su -s /bin/sh nobody -c 'cat /file || ls /shut'";
    place.shell(&["--overlay", "fuse", "--map", "full"], script).done().exits(0);
}

#[test]
fn a_kept_layer_is_seen_again() {
    if lacks_fuse(&["userns"]) {
        return;
    }
    let place = Place::new();
    let upper = place.path("up:per,x");
    let upper = text(&upper);
    let options = ["--overlay", "fuse", "--upper", upper];
    place.shell(&options, "echo one > /one; rm /etc/passwd").done().exits(0);
    place.shell(&options, "cat /one; test -e /etc/passwd || echo gone").done().exits(0).says("one\ngone");
    // The kernel reads what the other has left.
    place.shell(&["--upper", upper], "cat /one; test -e /etc/passwd || echo gone").done().exits(0).says("one\ngone");
}

#[test]
fn the_program_is_outside_and_ends_with_the_sandbox() {
    if lacks_fuse(&["userns"]) {
        return;
    }
    let place = Place::new();
    let script = "grep -sl fuse-overlay /proc/[0-9]*/comm; echo ready; sleep 60 & wait";
    for signal in ["TERM", "KILL"] {
        let running = place.shell(&["--overlay", "fuse"], script).start();
        assert!(within(support::SOON * 5, || place.processes().iter().any(|p| p.name == "sleep")), "no sleep");
        assert_eq!(daemons(&place), 1);
        let daemon = place.processes().into_iter().find(|p| p.name == DAEMON).expect("the program");
        assert_eq!(daemon.status("SigBlk").as_deref(), Some("0000000000000000"), "signals that could not end it");
        running.signal(signal);
        assert!(soon(|| daemons(&place) == 0), "{signal}: {:?}", place.processes());
        assert_eq!(running.done().text(), "ready\n", "seen inside");
        place.assert_clean_after_next();
    }
}

#[test]
fn a_dead_program_holds_nobody_up() {
    if lacks_fuse(&["userns"]) {
        return;
    }
    let place = Place::new();
    let script = "while true < /etc/hosts; do :; done; exit 7";
    let running = place.shell(&["--overlay", "fuse"], script).start();
    assert!(within(support::SOON * 5, || place.processes().iter().any(|p| p.name == "sh")), "no program");
    for process in place.processes().iter().filter(|process| process.name == DAEMON) {
        support::kill(process.pid, "KILL");
    }
    // 135: a page of the program itself could not be read.
    let done = running.done();
    assert!([7, 135].contains(&done.code()), "{}: {}", done.code(), done.err);
    place.assert_clean();
}

#[test]
fn a_signal_to_the_process_group_does_not_reach_it() {
    if lacks_fuse(&["userns"]) {
        return;
    }
    let place = Place::new();
    let script = "trap 'true < /etc/hosts && echo caught; exit 3' TERM; while :; do sleep 1; done";
    let running = place.shell(&["--overlay", "fuse"], script).start();
    assert!(within(support::SOON * 5, || place.processes().iter().any(|p| p.name == "sleep")), "no sleep");
    // As a terminal does with its keys. Not by kill(1): that of procps 4.0.2 reads `-12` as the target -1.
    sbx::sys::process::kill(-running.pid(), 15).expect("kill");
    running.done().exits(3).says("caught");
    place.assert_clean();
}

#[test]
fn it_takes_the_place_of_a_refused_overlay() {
    if lacks_fuse(&["userns"]) {
        return;
    }
    let place = Place::new();
    let rootfs = place.rootfs();
    // An overlay cannot hold the upper layer of another.
    let script = "mount -t tmpfs none /tmp && cd /tmp && mkdir l u w m &&
        mount -t overlay none -o lowerdir=l,upperdir=u,workdir=w,userxattr m";
    let command = [text(&rootfs), "sh", "-c", "cat; echo x > /new; grep -c ' / fuse' /proc/self/mounts"];
    let words = |overlay| [&["--overlay", overlay, "--upper", "/tmp/m/up"], &command[..]].concat();
    let done = within_mounts(&place, script, &words("auto")).exits(0).says("1");
    let lines: Vec<&str> = done.err.lines().collect();
    assert!(lines.len() == 1 && lines[0].contains(DAEMON) && lines[0].contains("fsconfig"), "{}", done.err);
    within_mounts(&place, script, &words("kernel")).refused(125, &["--upper", "/tmp/m/up", "ext4"]);
    let hidden = format!("mount --bind /dev/null /usr/bin/fuse-overlayfs && {script}");
    within_mounts(&place, &hidden, &words("auto")).refused(125, &["upper layer", DAEMON, "not installed"]);
    place.assert_clean();
}

#[test]
fn what_another_cause_refuses_is_not_tried_again() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let script =
        "mount --bind /dev/null /usr/bin/fuse-overlayfs 2>/dev/null; mount -t tmpfs none /tmp && mkdir -p /tmp/r/sub
        && mount -t tmpfs none /tmp/r/sub";
    within_mounts(&place, &script.replace("\n        ", " "), &["/tmp/r", "true"])
        .refused(125, &["ROOTFS", "/tmp/r/sub"]);
    place.assert_clean();
}

#[test]
fn what_is_missing_is_named() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let rootfs = place.rootfs();
    let words = ["--overlay", "fuse", text(&rootfs), "true"];
    let bin =
        std::env::split_paths("/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin").find(|dir| dir.join(DAEMON).exists());
    let hide = bin.map_or("true".to_owned(), |bin| format!("mount --bind /dev/null {}", bin.join(DAEMON).display()));
    let install = ["not installed", "package fuse-overlayfs"];
    within_mounts(&place, &hide, &words).refused(125, &install);
    if missing(DAEMON).is_none() {
        let named = ["/dev/fuse", "modprobe fuse"];
        within_mounts(&place, "mount -t tmpfs none /dev", &words).refused(125, &named);
        let shut = Command::new("test").args(["-w", "/dev/fuse"]).status().is_ok_and(|status| !status.success());
        if shut {
            place.sbx_run(words).done().refused(125, &["/dev/fuse", "chmod 666"]);
        }
    }
    place.assert_clean();
}

#[test]
fn only_the_root_is_served() {
    let place = Place::new();
    let rootfs = place.rootfs();
    let rootfs = text(&rootfs);
    for (words, naming) in [
        (vec!["@host", "true"], "@host"),
        (vec!["--rw", rootfs, "true"], "--rw"),
        (vec!["-v", "/tmp:/mnt:overlay", rootfs, "true"], "/mnt"),
    ] {
        let words = ["--overlay", "fuse"].iter().chain(&words);
        place.sbx_run(words).done().refused(125, &["--overlay", "fuse", naming]);
    }
    place.assert_clean();
}

#[test]
fn its_changes_are_listed() {
    if lacks_fuse(&["userns"]) {
        return;
    }
    let place = Place::new();
    let root = place.own_rootfs("root");
    for file in ["kept", "gone", "opaque/x", "opaque/y", "dir/f"] {
        let path = root.join("lower").join(file);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        std::fs::write(path, "before\n").expect("a file");
    }
    let script =
        "echo more >>/lower/kept; rm /lower/gone; rm -r /lower/opaque; mkdir /lower/opaque; touch /lower/opaque/y
        rm -r /lower/dir; mkdir /new; touch /new/f; : >/run/up; while ! [ -e /run/end ]; do sleep 0.02; done";
    let options = ["--overlay", "fuse", "--name", "f", text(&root), "sh", "-c", script];
    let mut running = place.sbx_run(options).start();
    let up = || place.sbx(["exec", "f", "test", "-e", "/run/up"]).done().code() == 0;
    assert!(soon(|| running.ended().is_some() || up()), "it does not come up");
    let done = place.sbx(["diff", "f"]).done().exits(0);
    let expected =
        "D /lower/dir\nD /lower/gone\nC /lower/kept\nD /lower/opaque/x\nC /lower/opaque/y\nA /new\nA /new/f\n";
    assert_eq!((done.text().as_str(), done.err.as_str()), (expected, ""));
    place.sbx(["exec", "f", "touch", "/run/end"]).done().exits(0);
    running.done().exits(0);
    place.sbx(["rm", "f"]).done().exits(0);
    place.assert_clean();
}
