//! `sbx diff -p`, `apply` and `discard`: what a sandbox with a name has changed is read, taken over, or dropped; and no
//! layer, however it was made, has anything written outside of the project.

mod common;

use common::tree::picture;
use common::{Scratch, has, sandbox, sbx};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// A project, and the state of the sandboxes that work on it.
struct Place {
    scratch: Scratch,
    project: PathBuf,
    state: String,
}

impl Place {
    fn new() -> Place {
        let scratch = Scratch::new();
        let project = scratch.dir("project");
        let state = scratch.join("state").display().to_string();
        Place { scratch, project, state }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.project.join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        std::fs::write(&path, content).expect("a file");
        path
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.project.join(name)).ok()
    }

    /// A sandbox of this name that changes an overlay of the project; the layers lie below the scratch directory.
    fn works(&self, name: &str, script: &str) {
        let volume = format!("{}:/p:overlay", self.project.display());
        let asked = sandbox(&["--state", &self.state, "--name", name, "-v", &volume, "-w", "/p"]);
        asked.env("XDG_DATA_HOME", self.scratch.join("data")).sh(script).run().exits(0);
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(sbx());
        command.args(["--state", &self.state]).args(words).current_dir(&self.project).stdin(Stdio::null());
        command.env("XDG_DATA_HOME", self.scratch.join("data"));
        command
    }

    fn sbx(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("sbx")
    }
}

#[track_caller]
fn ends(output: &Output, status: i32) -> (String, String) {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert_eq!(output.status.code(), Some(status), "{out}\n{err}");
    (out, err)
}

#[test]
fn what_is_good_is_taken_over_and_the_rest_is_held_back() {
    let place = Place::new();
    place.file("text", "a\nb\nc\n");
    place.file("gone", "x");
    place.file("old/file", "x");
    place.file("becomes/file", "x");
    std::fs::set_permissions(place.project.join("text"), PermissionsExt::from_mode(0o640)).expect("a mode");
    place.works(
        "job",
        "sed -i s/b/B/ text; rm gone; rm -r old becomes; echo file >becomes; mkdir -p new/deep; echo n >new/deep/n; \
         touch -d '2001-02-03 04:05:06' new/deep/n; chmod 700 new; ln -s text inner; \
         ln -s ../../etc/passwd outer; ln -s /etc absolute; mkdir -p .git/hooks; echo h >.git/hooks/post-commit; echo e >.env; \
         echo tool >tool; chmod 755 tool; mkfifo pipe",
    );
    let before = picture(&place.project);
    let (patch, _) = ends(&place.sbx(&["diff", "-p", "job"]), 0);
    for line in ["-b", "+B", "--- a/p/text", "+++ b/p/text", "--- /dev/null", "+n", "D /p/gone", "A /p/pipe"] {
        assert!(patch.lines().any(|shown| shown == line), "{line}\n{patch}");
    }
    assert_eq!(picture(&place.project), before, "looking changes nothing");
    let (out, err) = ends(&place.sbx(&["apply", "job"]), 1);
    for (path, what) in [
        ("/p/.git/hooks/post-commit", "a git hook"),
        ("/p/.env", "a dotfile"),
        ("/p/tool", "an executable"),
        ("/p/outer", "a link that leads out"),
        ("/p/absolute", "a link that leads out"),
    ] {
        assert!(err.contains(&format!("held back: {path}: {what}")), "{path}\n{err}");
    }
    assert!(
        err.contains("/p/pipe: neither a file") && out.contains("C /p/text") && out.contains("D /p/gone"),
        "{out}\n{err}"
    );
    assert_eq!(place.read("text").as_deref(), Some("a\nB\nc\n"));
    assert_eq!((place.read("gone"), place.read("becomes").as_deref()), (None, Some("file\n")));
    let meta = |name: &str| std::fs::symlink_metadata(place.project.join(name));
    assert_eq!(meta("text").expect("text").mode() & 0o7777, 0o640);
    assert_eq!(meta("new").expect("new").mode() & 0o7777, 0o700);
    assert_eq!(meta("new/deep/n").expect("n").mtime() % 60, 6);
    assert!(meta("inner").expect("inner").is_symlink());
    for held in ["tool", ".env", ".git", "outer", "absolute", "pipe", "old"] {
        assert!(meta(held).is_err(), "{held}");
    }
    let (_, err) = ends(&place.sbx(&["apply", "--all", "job"]), 1);
    assert!(err.contains("/p/pipe") && !err.contains("held back"), "{err}");
    assert_eq!(meta("tool").expect("tool").mode() & 0o777, 0o755);
    assert_eq!(place.read(".git/hooks/post-commit").as_deref(), Some("h\n"));
    assert_eq!(ends(&place.sbx(&["diff", "job"]), 0).0, "A /p/pipe\n");
    ends(&place.sbx(&["rm", "job"]), 0);
    assert_eq!(std::fs::read_dir(place.scratch.join("data/sbx/upper")).expect("layers").count(), 0);
}

#[test]
fn what_the_host_has_changed_meanwhile_is_refused() {
    let place = Place::new();
    for name in ["both", "mine", "dead", "tree/file"] {
        place.file(name, "old");
    }
    place.works("job", "for f in both mine dead; do echo sandbox >$f; done; rm -r tree; echo new >came");
    std::thread::sleep(Duration::from_millis(20));
    place.file("both", "host");
    place.file("tree/more", "host");
    place.file("came", "host");
    std::fs::remove_file(place.project.join("dead")).expect("removed");
    let (out, err) = ends(&place.sbx(&["apply", "job"]), 1);
    assert!(out.contains("C /p/mine"), "{out}");
    for path in ["/p/both", "/p/tree", "/p/came"] {
        assert!(err.contains(&format!("not taken over: {path}: changed on the host")), "{path}\n{err}");
    }
    assert_eq!(place.read("both").as_deref(), Some("host"));
    assert_eq!(place.read("tree/more").as_deref(), Some("host"));
    assert_eq!(place.read("came").as_deref(), Some("host"));
    assert_eq!(place.read("mine").as_deref(), Some("sandbox\n"));
}

#[test]
fn only_the_paths_named_are_taken() {
    let place = Place::new();
    place.works("job", "mkdir -p a/b c; echo 1 >a/b/one; echo 2 >a/two; echo 3 >c/three");
    let (out, _) = ends(&place.sbx(&["apply", "job", "/p/a/b"]), 0);
    assert_eq!(out, "A /p/a\nA /p/a/b\nA /p/a/b/one\n");
    assert_eq!((place.read("a/b/one").is_some(), place.read("a/two"), place.read("c/three")), (true, None, None));
    ends(&place.sbx(&["apply", "job"]), 0);
    assert!(place.read("c/three").is_some() && place.read("a/two").is_some());
}

#[test]
fn a_path_is_one_inside_or_one_of_the_host_and_what_is_nowhere_is_said() {
    let place = Place::new();
    place.file("sub/text", "old");
    place.works("job", "echo new >sub/text; echo new >one; echo new >two");
    let (out, err) = ends(&place.sbx(&["apply", "job", "one", "onne"]), 1);
    assert!(out.is_empty() && err.contains("onne: neither the sandbox nor the host has it"), "{out}{err}");
    assert_eq!(ends(&place.sbx(&["apply", "job", "./sub/../one"]), 0).0, "A /p/one\n");
    let host = place.project.join("sub").display().to_string();
    assert_eq!(ends(&place.sbx(&["apply", "job", &host]), 0).0, "C /p/sub/text\n");
    assert_eq!(place.read("two"), None);
    // A second time there is nothing left to do.
    assert_eq!(ends(&place.sbx(&["apply", "job", "one"]), 0).0, "");
}

/// Of no bytes a program makes a file of terabytes.
#[test]
fn holes_of_a_file_stay_holes() {
    let place = Place::new();
    place.works("job", "printf middle | dd of=big bs=1 seek=1000000; truncate -s 1024G big; printf end >>big");
    ends(&place.sbx(&["apply", "job"]), 0);
    let big = place.project.join("big");
    let meta = std::fs::metadata(&big).expect("taken over");
    assert_eq!(meta.len(), (1 << 40) + 3);
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    assert_eq!(ends(&place.sbx(&["diff", "job"]), 0).0, "");
    let read = |at, length: usize| {
        let mut bytes = vec![0; length];
        std::fs::File::open(&big).and_then(|file| file.read_exact_at(&mut bytes, at)).expect("read");
        bytes
    };
    assert_eq!((read(1_000_000, 6), read(1 << 40, 3)), (b"middle".to_vec(), b"end".to_vec()));
}

/// What a directory holds by now, or another one in its place, is not what the sandbox has removed.
#[test]
fn what_was_moved_into_a_removed_directory_stays() {
    let place = Place::new();
    for name in ["tree/file", "other/file", "elsewhere/kept"] {
        place.file(name, "old");
    }
    std::thread::sleep(Duration::from_millis(20));
    place.works("job", "rm -r tree other; mkdir $(seq 1 1500); rm -r [0-9]*");
    std::thread::sleep(Duration::from_millis(20));
    std::fs::rename(place.project.join("elsewhere"), place.project.join("tree/elsewhere")).expect("moved");
    let (out, err) = ends(&place.sbx(&["apply", "job"]), 1);
    assert!(out.contains("D /p/other") && err.contains("/p/tree: changed on the host"), "{out}{err}");
    assert_eq!((place.read("tree/elsewhere/kept").as_deref(), place.read("other/file")), (Some("old"), None));
}

#[test]
fn a_large_tree_is_removed_with_few_descriptors() {
    let place = Place::new();
    (0..600).for_each(|n| drop(place.file(&format!("tree/{n}/file"), "x")));
    std::thread::sleep(Duration::from_millis(20));
    place.works("job", "rm -r tree");
    let few = Command::new("prlimit")
        .args(["--nofile=64:64", "--"])
        .arg(sbx())
        .args(["--state", &place.state, "apply", "job"])
        .env("XDG_DATA_HOME", place.scratch.join("data"))
        .output();
    ends(&few.expect("prlimit"), 0);
    assert!(!place.project.join("tree").exists());
}

/// A repository needs no name with a dot, and a directory of the host's may have one.
#[test]
fn what_git_or_the_home_would_believe_is_held_back() {
    let place = Place::new();
    place.works("job", "mkdir -p lib/objects lib/refs; echo x >lib/HEAD; echo x >lib/config; echo x >lib.txt");
    let (out, err) = ends(&place.sbx(&["apply", "job"]), 1);
    assert!(out.contains("A /p/lib.txt") && err.contains("/p/lib/config: part of a git repository"), "{out}{err}");
    assert!(!place.project.join("lib").exists());
    let home = place.scratch.dir("home");
    let cache = place.scratch.dir("home/.cache");
    let volume = format!("{}:/c:overlay", cache.display());
    let asked = sandbox(&["--state", &place.state, "--name", "cache", "-v", &volume]);
    asked
        .env("XDG_DATA_HOME", place.scratch.join("data"))
        .sh("echo evil >/c/build.rs; chmod 666 /c/build.rs")
        .run()
        .exits(0);
    let (_, err) = ends(&place.command(&["apply", "cache"]).env("HOME", home).output().expect("sbx"), 1);
    assert!(err.contains("/c/build.rs: a dotfile"), "{err}");
    let (_, err) = ends(&place.sbx(&["apply", "cache"]), 1);
    assert!(err.contains("/c/build.rs: "), "{err}");
}

/// As it is spelled on the host, where a directory may have another name than inside.
#[test]
fn links_are_judged_where_they_will_lie() {
    let place = Place::new();
    place.file("sub/file", "x");
    let inside = place.project.join("sub/file").display().to_string();
    place.works("job", &format!("ln -s ../p/file a; ln -s /p/sub b; ln -s sub/../../x c; ln -s {inside} d; ln -s sub/file e; ln -s ../sub sub/f"));
    let (out, err) = ends(&place.sbx(&["apply", "job"]), 1);
    for held in ["a", "b", "c"] {
        assert!(err.contains(&format!("held back: /p/{held}: a link that leads out")), "{held}\n{err}");
    }
    for taken in ["d", "e", "sub/f"] {
        assert!(out.contains(&format!("A /p/{taken}\n")), "{taken}\n{out}{err}");
    }
}

#[test]
fn a_reader_that_goes_away_stops_nothing() {
    let place = Place::new();
    place.works("job", "for n in $(seq 1 3000); do echo x >file-of-a-longer-name-$n; done");
    let mut child = place.command(&["apply", "job"]).stdout(Stdio::piped()).spawn().expect("sbx");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("an end").code(), Some(0));
    assert_eq!(ends(&place.sbx(&["diff", "job"]), 0).0, "");
}

/// What lies in a directory of the caller's own may be older than the sandbox that is asked about.
#[test]
fn a_layer_used_twice_is_as_old_as_its_first_use() {
    let place = Place::new();
    let root = place.scratch.rootfs();
    let upper = place.scratch.join("upper").display().to_string();
    let run = |name: &str, script: &str| {
        let asked = sandbox(&["--state", &place.state, "--name", name, "--upper", &upper]).root(&root);
        asked.sh(script).run().exits(0);
    };
    run("one", "echo sandbox >/etc/passwd");
    std::thread::sleep(Duration::from_millis(20));
    std::fs::write(root.join("etc/passwd"), "host").expect("written");
    std::thread::sleep(Duration::from_millis(20));
    run("two", "true");
    let (_, err) = ends(&place.sbx(&["apply", "two"]), 1);
    assert!(err.contains("/etc/passwd: changed on the host"), "{err}");
    assert_eq!(std::fs::read_to_string(root.join("etc/passwd")).expect("it"), "host");
}

#[test]
fn a_patch_says_what_it_does_not_show() {
    let place = Place::new();
    place.file("grows", "one\n");
    place.file("tool", "x\n");
    place.works("job", "head -c 2000000 /dev/zero >>grows; chmod 755 tool; ln -s tool link");
    let (patch, _) = ends(&place.sbx(&["diff", "-p", "job"]), 0);
    assert!(!patch.contains("-one") && patch.contains("Not shown"), "{patch}");
    assert!(patch.contains("old mode 0644\nnew mode 0755") && patch.contains("+tool"), "{patch}");
}

#[test]
fn what_is_dropped_is_gone_and_what_runs_is_left_alone() {
    let place = Place::new();
    place.file("file", "old");
    place.works("job", "echo new >file");
    // The name is taken until it is forgotten.
    let volume = format!("{}:/p:overlay", place.project.display());
    let again = sandbox(&["--state", &place.state, "--name", "job", "-v", &volume]);
    again.env("XDG_DATA_HOME", place.scratch.join("data")).sh("true").run().refused().says("sbx rm job");
    ends(&place.sbx(&["discard", "job"]), 0);
    assert!(ends(&place.sbx(&["diff", "job"]), 1).1.contains("discarded"));
    assert_eq!(std::fs::read_dir(place.scratch.join("data/sbx/upper")).expect("layers").count(), 0);
    ends(&place.sbx(&["rm", "job"]), 0);
    assert_eq!(place.read("file").as_deref(), Some("old"));
    // Memory keeps nothing, and nobody's name.
    let brief = || {
        let asked = sandbox(&["--state", &place.state, "--name", "brief", "--upper", "tmpfs", "-v", &volume]);
        asked.sh("echo x >/p/file").run().exits(0)
    };
    brief();
    brief();
    let root = common::rootfs().display().to_string();
    let start = ["run", "-d", "--name", "lives", "-v", &volume, root.as_str(), "sleep", "60"];
    ends(&place.sbx(&start), 0);
    for words in [&["apply", "lives"][..], &["discard", "lives"]] {
        assert!(ends(&place.sbx(words), 1).1.contains("sbx stop lives"));
    }
    ends(&place.sbx(&["rm", "-f", "lives"]), 0);
}

#[test]
fn killed_in_the_middle_each_file_is_old_or_new_and_a_second_time_finishes() {
    let place = Place::new();
    let many = 400;
    for n in 0..many {
        place.file(&format!("d{}/f{n}", n % 20), &format!("old {n}\n").repeat(2000));
    }
    place.works("job", "for d in d*; do for f in $d/f*; do sed -i s/old/new/ $f; done; done; rm -r d7; echo x >d7");
    for wait in 1..=30 {
        let mut child =
            place.command(&["apply", "job"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sbx");
        std::thread::sleep(Duration::from_millis(wait * 2));
        // All of it: the one who writes is a child.
        let _ = Command::new("pkill").args(["-KILL", "-P", &child.id().to_string()]).status();
        let _ = child.kill();
        let _ = child.wait();
        for n in (0..many).filter(|n| n % 20 != 7) {
            let text = place.read(&format!("d{}/f{n}", n % 20)).expect("it is always there");
            let whole = |word: &str| text == format!("{word} {n}\n").repeat(2000);
            assert!(whole("old") || whole("new"), "f{n} is torn after {wait}");
        }
    }
    ends(&place.sbx(&["apply", "job"]), 0);
    for n in (0..many).filter(|n| n % 20 != 7) {
        assert!(place.read(&format!("d{}/f{n}", n % 20)).expect("a file").starts_with("new"), "f{n}");
    }
    assert_eq!(place.read("d7").as_deref(), Some("x\n"));
    assert_eq!(ends(&place.sbx(&["diff", "job"]), 0).0, "");
    let left = Command::new("find").arg(&place.project).args(["-name", ".sbx-*"]).output().expect("find");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

/// The one layer of the project on disk.
fn layer(place: &Place) -> PathBuf {
    let find = Command::new("find").arg(place.scratch.join("data")).args(["-name", "marker"]).output().expect("find");
    let found = String::from_utf8_lossy(&find.stdout).into_owned();
    Path::new(found.lines().next().expect("the layer")).parent().expect("a directory").to_owned()
}

#[test]
fn layers_that_were_made_to_do_harm_write_nothing_outside() {
    if !has("setfattr") {
        return;
    }
    let place = Place::new();
    let canary = place.scratch.dir("canary");
    place.scratch.file("canary/file", "safe");
    place.file("dir/file", "old");
    place.file("other", "old");
    place.works("job", "echo m >marker; echo x >dir/file; chmod u+w dir");
    let upper = layer(&place);
    let remove = |name: &str| {
        let _ = std::fs::remove_dir_all(upper.join(name)).or_else(|_| std::fs::remove_file(upper.join(name)));
    };
    // A link where a directory was, and files that it should lead to.
    remove("dir");
    symlink(&canary, upper.join("dir")).expect("a link");
    symlink("../canary", upper.join("up")).expect("a link");
    std::fs::create_dir_all(upper.join("..data")).expect("a directory");
    std::fs::write(upper.join("..data/x"), "x").expect("a file");
    let set = std::fs::File::create(upper.join("setid")).expect("a file");
    set.set_permissions(PermissionsExt::from_mode(0o4755)).expect("a mode");
    let _listener = std::os::unix::net::UnixListener::bind(upper.join("socket")).expect("a socket");
    // An attribute that says that it hides what is below.
    std::fs::create_dir(upper.join("opaque")).expect("a directory");
    let _ = Command::new("setfattr")
        .args(["-n", "user.overlay.redirect", "-v", "/../canary"])
        .arg(upper.join("opaque"))
        .status();
    for n in 0..10_000 {
        std::fs::write(upper.join(format!("many{n}")), "").expect("a file");
    }
    let mut deep = upper.clone();
    for _ in 0..900 {
        deep.push("d");
    }
    std::fs::create_dir_all(&deep).expect("a deep tree");
    let before = picture(&canary);
    // And on the host the directory is a link by now.
    std::fs::rename(place.project.join("other"), place.project.join("away")).expect("moved");
    for words in [&["apply", "job"][..], &["apply", "--all", "job"]] {
        let output = place.sbx(words);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("bug in"), "{output:?}");
    }
    assert_eq!(picture(&canary), before);
    assert_eq!(std::fs::metadata(place.project.join("many9999")).expect("taken").len(), 0);
    assert!(std::fs::symlink_metadata(place.project.join("socket")).is_err());
}

#[test]
fn a_link_on_the_host_is_not_followed() {
    let place = Place::new();
    let canary = place.scratch.dir("canary");
    place.scratch.file("canary/file", "safe");
    place.file("dir/file", "old");
    place.works("job", "echo new >dir/file; echo new >dir/more");
    let before = picture(&canary);
    std::fs::remove_dir_all(place.project.join("dir")).expect("removed");
    symlink(&canary, place.project.join("dir")).expect("a link");
    let (_, err) = ends(&place.sbx(&["apply", "--all", "job"]), 1);
    assert!(err.contains("not taken over"), "{err}");
    assert_eq!(picture(&canary), before);
}

/// The program can rename what lies on the way to its layers, and put a link there.
#[test]
fn a_program_that_moves_its_layers_away_leads_nobody_elsewhere() {
    let place = Place::new();
    let canary = place.scratch.dir("canary/upper");
    place.scratch.file("canary/upper/key", "secret");
    place.file("sub/file", "old");
    let before = picture(&canary);
    let root = place.scratch.rootfs();
    let run = |name: &str, options: &[&str], script: &str| {
        let writable = format!("{}:/rw", place.project.display());
        let asked = sandbox(&["--state", &place.state, "--name", name, "-v", &writable]).options(options);
        asked.root(&root).env("XDG_DATA_HOME", place.scratch.join("data")).sh(script).run().exits(0);
    };
    let copy = format!("{}/sub:/copy:overlay", place.project.display());
    let script = format!("echo new >/copy/file; mv /rw/sub /rw/away; ln -s {} /rw/sub", canary.display());
    run("below", &["-v", &copy], &script);
    let (out, err) = ends(&place.sbx(&["apply", "--all", "below"]), 1);
    assert!(err.contains("another directory") && out.is_empty(), "{out}{err}");
    let kept = place.project.join("kept").display().to_string();
    let script = format!("echo x >/x; mv /rw/kept /rw/moved; ln -s {}/canary /rw/kept", place.scratch.path().display());
    run("above", &["--upper", &kept], &script);
    ends(&place.sbx(&["apply", "--all", "above"]), 1);
    assert_eq!(picture(&canary), before);
    assert!(!root.join("key").exists(), "a secret was taken over");
}

#[test]
fn two_at_once_do_not_write_into_each_others_files() {
    let place = Place::new();
    place.works("job", "echo m >marker");
    let held =
        Command::new("flock").arg(layer(&place)).arg(sbx()).args(["--state", &place.state, "apply", "job"]).output();
    let (out, err) = ends(&held.expect("flock"), 1);
    assert!(err.contains("another sbx apply") && out.is_empty(), "{out}{err}");
    assert_eq!(place.read("marker"), None);
    for words in [["discard", "job"], ["rm", "job"]] {
        let mut held = Command::new("flock");
        held.arg(layer(&place)).arg(sbx()).args(["--state", &place.state]).args(words);
        let (_, err) = ends(&held.env("XDG_DATA_HOME", place.scratch.join("data")).output().expect("flock"), 1);
        assert!(err.contains("an sbx apply takes"), "{err}");
    }
    ends(&place.sbx(&["apply", "job"]), 0);
    assert_eq!(place.read("marker").as_deref(), Some("m\n"));
}
