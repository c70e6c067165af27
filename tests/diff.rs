//! `sbx diff`: what a sandbox has changed in its root, wherever the layer lies, of one that runs and of one that has
//! ended, and of layers that were made to do harm.

mod support;

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use support::{Done, Place, lacks, soon};

/// A root file system with something to be changed.
fn root(place: &Place) -> PathBuf {
    let root = place.own_rootfs("root");
    if root.join("lower").exists() {
        return root;
    }
    let files =
        ["kept", "opened", "gone", "mode", "sneaky", "type_f", "dir/a", "dir/b", "opaque/x", "opaque/y", "type_d/z"];
    for file in files.iter().chain(&["untouched/f", "moved/f"]) {
        let path = root.join("lower").join(file);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, "before\n").expect("a file");
    }
    fs::create_dir_all(root.join("lower/dmode")).expect("a directory");
    std::os::unix::fs::symlink("kept", root.join("lower/link")).expect("a link");
    root
}

const CHANGES: &str = "set -e
    echo more >>/lower/kept
    : >>/lower/opened
    rm /lower/gone
    chmod 600 /lower/mode
    touch -r /lower/sneaky /tmp/time; printf 'after!\\n' >/lower/sneaky; touch -r /tmp/time /lower/sneaky
    rm -r /lower/dir
    rm -r /lower/opaque; mkdir /lower/opaque; echo n >/lower/opaque/new; echo x >/lower/opaque/x
    rm /lower/type_f; mkdir /lower/type_f; touch /lower/type_f/in
    rm -r /lower/type_d; echo file >/lower/type_d
    ln -sf other /lower/link
    chmod 700 /lower/dmode
    mv /lower/moved /lower/there
    mkdir /new /new/closed; touch \"/new/a
b\" /new/closed/f; mkfifo /new/fifo; ln -s /etc/passwd /new/link; chmod 000 /new/closed
    touch /tmp/not-in-the-root /etc/added
    echo done >/lower/done";

const CHANGED: &str = "\
A /etc/added
C /lower/dmode
A /lower/done
D /lower/dir
D /lower/gone
C /lower/kept
C /lower/link
C /lower/mode
D /lower/moved
A /lower/opaque/new
C /lower/opaque/x
D /lower/opaque/y
C /lower/sneaky
A /lower/there
A /lower/there/f
C /lower/type_d
C /lower/type_f
A /lower/type_f/in
A /new
A /new/a\\nb
A /new/closed
A /new/closed/f
A /new/fifo
A /new/link
";

/// The lines in the order of their paths.
fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_by_key(|line| Path::new(&line[2..]));
    lines
}

#[track_caller]
fn diff(place: &Place, words: &[&str]) -> Done {
    place.sbx(["diff"].iter().chain(words)).done()
}

/// Looks whether it says that all of this was changed and nothing else.
#[track_caller]
fn assert_changed(place: &Place, name: &str, about: &str) {
    let done = diff(place, &[name]).exits(0);
    assert_eq!((done.text().lines().collect::<Vec<_>>(), done.err.as_str()), (sorted(CHANGED), ""), "{about}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// `sbx run` of a script that goes on when it has changed something; a file of the host says when.
fn changed(place: &Place, options: &[&str], name: &str, script: &str) -> support::Running {
    let (root, said) = (root(place), place.path(format!("said-{name}")));
    fs::create_dir_all(&said).expect("a directory");
    let volume = format!("{}:/made/by/sbx", text(&said));
    let script = format!("{script}\n: >/made/by/sbx/it; while ! [ -e /made/by/sbx/end ]; do sleep 0.02; done");
    let mut words = vec!["--name", name, "-v", &volume];
    words.extend(options);
    words.extend([text(&root), "sh", "-c", &script]);
    let mut running = place.sbx_run(&words).start();
    let there = said.join("it");
    if !soon(|| there.exists() || !options.contains(&"-d") && running.ended().is_some()) || !there.exists() {
        panic!("{options:?}: {:?}", running.done());
    }
    running
}

/// Lets it end.
fn end(place: &Place, name: &str) {
    fs::write(place.path(format!("said-{name}/end")), "").expect("a file");
}

#[test]
fn what_has_changed_is_listed_wherever_the_layer_lies() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let kept = place.path("kept");
    let mut ways: Vec<Vec<&str>> = vec![
        vec![],
        vec!["--upper", "disk"],
        vec!["--upper", text(&kept)],
        vec!["--read-only"],
        vec!["--no-init"],
        vec!["--map", "keep"],
    ];
    if !lacks(&["subids"]) {
        ways.push(vec!["--map", "full"]);
    }
    for (number, options) in ways.iter().enumerate() {
        let name = format!("n{number}");
        let read_only = options == &["--read-only"];
        let running = changed(&place, options, &name, if read_only { "" } else { CHANGES });
        match read_only {
            true => assert_eq!(diff(&place, &[&name]).exits(0).text(), "", "{options:?}"),
            false => assert_changed(&place, &name, &format!("{options:?}")),
        }
        end(&place, &name);
        running.done().exits(0);
        // What a name keeps is the same when it has ended; of a read-only root nothing is kept.
        if !read_only {
            assert_changed(&place, &name, &format!("{options:?}, ended"));
            place.sbx(["rm", &name]).done().exits(0);
        }
    }
    place.assert_clean();
}

#[test]
fn of_one_that_has_ended_it_is_listed_as_long_as_the_layer_is_there() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let kept = place.path("kept");
    let mut ways = vec![vec!["-d"], vec!["-d", "--upper", text(&kept)]];
    if !lacks(&["subids"]) {
        ways.push(vec!["-d", "--upper", text(&kept), "--map", "full"]);
    }
    for options in ways {
        changed(&place, &options, "x", CHANGES).done().exits(0);
        assert_changed(&place, "x", "it runs");
        end(&place, "x");
        place.sbx(["wait", "x"]).done().exits(0);
        assert_changed(&place, "x", "it has ended");
        place.sbx(["rm", "x"]).done().exits(0);
        place.run("unshare", ["-r", "rm", "-rf", text(&kept)]).done();
        place.run("unshare", ["--map-root-user", "--map-auto", "rm", "-rf", text(&kept)]).done();
        fs::remove_file(place.path("said-x/end")).expect("removed");
        fs::remove_file(place.path("said-x/it")).expect("removed");
    }
    place.assert_clean();
}

#[test]
fn json_has_the_same_and_every_byte() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let script = "touch \"$(printf '/odd\\377')\" \"$(printf '/esc\\033[31m')\"; rm /lower/gone; echo >>/lower/kept";
    let running = changed(&place, &[], "x", script);
    let done = diff(&place, &["x", "--json"]).exits(0);
    let json: Value = serde_json::from_slice(&done.out).expect("one JSON document");
    let odd: Vec<u8> = b"/odd\xff".to_vec();
    let expected = serde_json::json!([
        { "path": "/esc\u{1b}[31m", "kind": "added" },
        { "path": "/lower/gone", "kind": "deleted" },
        { "path": "/lower/kept", "kind": "changed" },
        { "path": odd, "kind": "added" },
    ]);
    assert_eq!(json, expected);
    assert_eq!(diff(&place, &["x"]).text(), "A /esc\\u{1b}[31m\nD /lower/gone\nC /lower/kept\nA /odd\\xff\n");
    end(&place, "x");
    running.done().exits(0);
    let running = changed(&place, &[], "y", "");
    assert_eq!(diff(&place, &["y", "--json"]).exits(0).text(), "[]\n");
    end(&place, "y");
    running.done().exits(0);
    place.sbx(["rm", "x", "y"]).done().exits(0);
    place.assert_clean();
}

#[test]
fn of_the_host_the_layers_over_its_directories_are_read() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let project = place.path("project");
    fs::create_dir_all(&project).expect("a directory");
    fs::write(project.join("file"), "before").expect("a file");
    let script =
        "echo after >file; echo new >new; mkdir -p /usr/made; : >/tmp/up; while ! [ -e /tmp/end ]; do sleep 0.02; done";
    let mut running = place.sbx_run(["--name", "h", "@host", "/bin/sh", "-c", script]).dir(&project).start();
    let up = || place.sbx(["exec", "h", "test", "-e", "/tmp/up"]).done().code() == 0;
    assert!(soon(|| running.ended().is_some() || up()), "it does not come up");
    let done = diff(&place, &["h"]).exits(0);
    let project = text(&project);
    let expected = format!("C {project}/file\nA {project}/new\nA /usr/made\n");
    assert_eq!(done.text().lines().collect::<Vec<_>>(), sorted(&expected), "{}", done.err);
    place.sbx(["exec", "h", "touch", "/tmp/end"]).done().exits(0);
    running.done().exits(0);
    assert_eq!(diff(&place, &["h"]).exits(0).text().lines().collect::<Vec<_>>(), sorted(&expected));
    place.sbx(["rm", "h"]).done().exits(0);
    place.assert_clean();
}

#[test]
fn where_there_is_no_layer_it_says_so() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    diff(&place, &["nobody"]).refused(1, &["nobody", "no sandbox of this name"]);
    diff(&place, &[]).refused(125, &["NAME"]);
    let running = changed(&place, &["--rw"], "w", "touch /written");
    diff(&place, &["w"]).refused(1, &["w", "no layer", "--rw"]);
    end(&place, "w");
    running.done().exits(0);
    changed(&place, &["-d", "--upper", "tmpfs"], "m", "touch /written").done().exits(0);
    end(&place, "m");
    place.sbx(["wait", "m"]).done().exits(0);
    diff(&place, &["m"]).refused(1, &["m", "in memory", "--upper"]);
    place.sbx(["rm", "m"]).done().exits(0);
    place.assert_clean();
}

#[test]
fn a_layer_that_was_made_to_do_harm_does_none() {
    if lacks(&["userns"]) {
        return;
    }
    let place = Place::new();
    let running = changed(&place, &["--upper", "disk"], "x", "touch /first");
    // As no program inside could make it so fast: 100000 levels, 100000 files, and a link out of it.
    let layers = place.path("home/.local/share/sbx/upper");
    let upper = layers.join(&support::names(&layers)[0]).join("upper");
    let make = "import os
os.chdir('UPPER')
os.mkdir('many')
for n in range(100000): os.close(os.open('many/%05d' % n, os.O_CREAT | os.O_WRONLY))
os.symlink('/etc', 'out')
os.mkdir('deep'); os.chdir('deep')
for n in range(100000): os.mkdir('d'); os.chdir('d')
open('bottom', 'w').close()";
    place.run("python3", ["-c", &make.replace("UPPER", text(&upper))]).done().exits(0);
    let done =
        place.run("prlimit", ["--nofile=32:32", "--stack=262144", text(&support::sbx()), "diff", "x"]).done().exits(0);
    let lines: Vec<String> = done.text().lines().map(str::to_owned).collect();
    let count = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!((count("A /many/"), count("A /out/"), count("A /out")), (100_000, 0, 1));
    // The longest paths that there are.
    assert_eq!((count("A /deep"), lines.iter().map(String::len).max()), (2046, Some(4097)));
    assert!(done.err.contains("1 added directories"), "{}", done.err);
    end(&place, "x");
    running.done().exits(0);
    place.sbx(["rm", "x"]).done();
    place.assert_clean();
}
