//! A hostile root file system: whatever stands where sbx makes or mounts something, nothing outside is touched
//! (security.md S10–S13). The cases are generated: targets × planted objects × ways to write.

mod common;

use common::tree::picture;
use common::{Scratch, plain, probe, rootfs, sandbox};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where sbx makes or mounts something, and the options that make it do so.
const TARGETS: [(&str, &[&str]); 18] = [
    ("proc", &[]),
    ("sys", &[]),
    ("dev", &[]),
    ("dev/pts", &[]),
    ("dev/shm", &[]),
    ("dev/mqueue", &[]),
    ("dev/console", &["-t"]),
    ("dev/null", &[]),
    ("tmp", &[]),
    ("run", &[]),
    ("etc", &[]),
    ("etc/resolv.conf", &[]),
    ("etc/hosts", &[]),
    ("etc/hostname", &[]),
    ("work/dir", &["-w", "/work/dir"]),
    ("vol/dst", &["-v", "@SHARED:/vol/dst"]),
    ("vol/file", &["-v", "@SHARED/file:/vol/file:ro"]),
    ("scratch/dst", &["--tmpfs", "/scratch/dst"]),
];

/// Those of them that are files.
const FILES: [&str; 6] = ["dev/console", "dev/null", "etc/resolv.conf", "etc/hosts", "etc/hostname", "vol/file"];

const PLANTED: [&str; 11] =
    ["absolute", "climb", "chain", "dangling", "loop", "magic", "fifo", "file", "directory", "parent", "empty parent"];

const WAYS: [&str; 3] = ["default", "--rw", "--upper"];

/// One generated case: a small root file system with one object planted, and a canary that must not change.
struct Case {
    scratch: Scratch,
    root: PathBuf,
    canary: PathBuf,
    /// Whether what is planted is what belongs there, so that the run may not be refused.
    harmless: bool,
}

impl Case {
    fn new(target: &str, planted: &str) -> Case {
        let scratch = Scratch::new();
        let root = scratch.dir("root");
        fs::create_dir(root.join("bin")).expect("bin");
        let busybox = rootfs().join("bin/busybox");
        if fs::hard_link(&busybox, root.join("bin/busybox")).is_err() {
            fs::copy(&busybox, root.join("bin/busybox")).expect("busybox");
        }
        symlink("busybox", root.join("bin/sh")).expect("sh");
        scratch.file("shared/file", "shared");
        let canary = scratch.dir("canary");
        fs::create_dir(canary.join("sub")).expect("canary");
        fs::create_dir(canary.join("empty")).expect("canary");
        for name in ["pts", "null", "hosts", "hostname", "resolv.conf", "console", "dst", "dir", "file", "sub/file"] {
            fs::write(canary.join(name), "canary").expect("canary");
        }
        let is_file = FILES.contains(&target);
        let harmless = planted == if is_file { "file" } else { "directory" };
        let case = Case { scratch, root, canary, harmless };
        case.plant(target, planted);
        case
    }

    fn plant(&self, target: &str, planted: &str) {
        let place = self.root.join(target);
        let parent = place.parent().expect("below the root");
        // The directory that holds the target is itself a way out, to where the name is taken or free.
        match planted {
            "parent" if parent != self.root => return symlink(&self.canary, parent).expect("link"),
            "empty parent" if parent != self.root => return symlink(self.canary.join("empty"), parent).expect("link"),
            _ => {}
        }
        fs::create_dir_all(parent).expect("parent");
        let climb = format!("{}{}", "../".repeat(30), self.canary.strip_prefix("/").expect("absolute").display());
        let link = |to: &dyn AsRef<Path>| symlink(to.as_ref(), &place).expect("link");
        match planted {
            "absolute" | "parent" | "empty parent" => link(&self.canary),
            "climb" => link(&climb),
            "chain" => {
                link(&"/one");
                symlink("two", self.root.join("one")).expect("link");
                symlink(&climb, self.root.join("two")).expect("link");
            }
            "dangling" => link(&self.canary.join("not-there")),
            "loop" => link(&Path::new("/").join(target)),
            "magic" => link(&format!("/proc/self/root{}", self.canary.display())),
            "fifo" => assert!(Command::new("mkfifo").arg(&place).status().expect("mkfifo").success()),
            "file" => fs::write(&place, "a file of ROOTFS").expect("file"),
            _ => fs::create_dir(&place).expect("directory"),
        }
    }

    /// Runs it: in the root with a result, or a clear refusal; the canary as it was in either case.
    fn check(&self, options: &[&str], way: &str) {
        let canary = picture(&self.canary);
        let shared = self.scratch.join("shared");
        let before = picture(&self.root);
        let upper = self.scratch.join("kept");
        let mut words: Vec<OsString> =
            options.iter().map(|o| o.replace("@SHARED", &shared.to_string_lossy()).into()).collect();
        match way {
            "--upper" => words.extend(["--upper".into(), upper.clone().into()]),
            "--rw" => words.push("--rw".into()),
            _ => {}
        }
        // What is seen below each target must not be the canary's.
        let script = "for d in proc sys dev dev/pts dev/shm tmp run etc work/dir vol/dst scratch/dst; do
            [ -e /$d/sub/file ] && exit 66; done; [ -e /etc/hosts ] && read a < /etc/hosts && [ \"$a\" = canary ] && exit 67; \
            for d in proc dev tmp run; do grep -q \" /$d \" /proc/self/mountinfo || exit 69; done; exit 0";
        let outcome = sandbox(&words).root(&self.root).sh(script).run();
        let outcome = if outcome.status == 125 && !self.harmless { outcome.refused() } else { outcome.exits(0) };
        assert_eq!(picture(&self.canary), canary, "{outcome:?}");
        assert!(!outcome.stderr.contains(&*self.canary.to_string_lossy()) || outcome.status == 125, "{outcome:?}");
        if way != "--rw" {
            assert_eq!(picture(&self.root), before, "{outcome:?}");
        }
    }
}

fn matrix(way: &str) {
    let mut cases = 0;
    for (target, options) in TARGETS {
        for planted in PLANTED {
            Case::new(target, planted).check(options, way);
            cases += 1;
        }
    }
    assert_eq!(cases, TARGETS.len() * PLANTED.len());
}

#[test]
fn planted_objects_lead_nowhere() {
    matrix(WAYS[0]);
}

#[test]
fn planted_objects_lead_nowhere_when_written_through() {
    matrix(WAYS[1]);
}

#[test]
fn planted_objects_lead_nowhere_with_a_kept_layer() {
    matrix(WAYS[2]);
}

#[test]
fn a_hostile_kept_layer_leads_nowhere() {
    for planted in ["upper", "work", "lock"] {
        let case = Case::new("unused", "directory");
        let kept = case.scratch.dir("kept");
        symlink(&case.canary, kept.join(planted)).expect("link");
        let canary = picture(&case.canary);
        let outcome = sandbox(&["--upper".as_ref(), kept.as_os_str()]).root(&case.root).sh("echo x > /new").run();
        assert!(outcome.status == 125 || outcome.status == 0, "{outcome:?}");
        assert_eq!(picture(&case.canary), canary, "{planted}: {outcome:?}");
    }
}

#[test]
fn racing_exchanges_lead_nowhere() {
    let case = Case::new("unused", "directory");
    let canary = picture(&case.canary);
    for name in ["tmp", "vol"] {
        fs::create_dir(case.root.join(name)).expect("directory");
        symlink(&case.canary, case.root.join(format!("{name}-link"))).expect("link");
    }
    let flip = |name: &str| {
        let paths = [case.root.join(name), case.root.join(format!("{name}-link"))];
        Command::new(probe()).arg("flip").args(paths).stdin(Stdio::null()).spawn().expect("flipper")
    };
    let mut flippers = [flip("tmp"), flip("vol")];
    let shared = common::volume(&case.scratch.join("shared"), "/vol/dst");
    let script = "[ -e /tmp/sub/file ] && exit 66; echo x > /tmp/x; [ -e /vol/dst/file ] || exit 68";
    for n in 0..200 {
        let way: &[&str] = if n % 2 == 0 { &["--rw"] } else { &[] };
        let outcome = sandbox(way).option("-v").option(&shared).root(&case.root).sh(script).run();
        // The name may turn into the link, and lead nowhere, after it was mounted on: then 68.
        assert!(matches!(outcome.status, 0 | 68 | 125), "{outcome:?}");
        assert_eq!(picture(&case.canary), canary, "{n}: {outcome:?}");
    }
    for flipper in &mut flippers {
        flipper.kill().and_then(|()| flipper.wait()).expect("end of a flipper");
    }
}

#[test]
fn planted_devices_are_not_used_for_masks() {
    let scratch = Scratch::new();
    for planted in ["link", "file"] {
        let root = scratch.dir(planted);
        fs::remove_dir(&root).expect("empty");
        assert!(Command::new("cp").arg("-a").args([&rootfs(), &root]).status().expect("cp").success());
        match planted {
            "link" => symlink("/etc/passwd", root.join("dev/null")).expect("link"),
            _ => fs::write(root.join("dev/null"), "not the null device").expect("file"),
        }
        let script = "cat /proc/keys /proc/timer_list /proc/interrupts; stat -c %t:%T /dev/null /proc/keys";
        plain().root(&root).sh(script).run().exits(0).prints("1:3\n1:3");
    }
}

#[test]
fn the_console_comes_from_the_sandboxs_own_devpts() {
    let scratch = Scratch::new();
    let root = scratch.rootfs();
    let canary = scratch.file("canary", "canary");
    symlink(&canary, root.join("dev/console")).expect("link");
    symlink(&canary, root.join("dev/ptmx")).expect("link");
    symlink("/tmp", root.join("dev/pts")).expect("link");
    let script = "tty; stat -c %t:%T /dev/console /dev/pts/0; stat -c %t:%T -L /dev/ptmx; ls /dev/pts; \
                  grep -c ' /0 /dev/console .* devpts ' /proc/self/mountinfo";
    let outcome = sandbox(&["-t"]).root(&root).sh(script).run().exits(0);
    let lines: Vec<&str> = outcome.stdout.split_whitespace().collect();
    assert_eq!(lines, ["/dev/pts/0", "88:0", "88:0", "5:2", "0", "ptmx", "1"], "{outcome:?}");
    assert_eq!(fs::read_to_string(&canary).expect("canary"), "canary");
    // Without a terminal there is no console, and what ROOTFS has of that name is covered.
    plain().root(&root).command(&["ls", "/dev/console"]).run().exits(1);
}

#[test]
fn fifos_and_huge_files_for_passwd_do_not_stop_it() {
    let scratch = Scratch::new();
    let root = scratch.rootfs();
    for name in ["etc/passwd", "etc/group"] {
        fs::remove_file(root.join(name)).expect("file of the fixture");
        assert!(Command::new("mkfifo").arg(root.join(name)).status().expect("mkfifo").success());
    }
    plain().root(&root).command(&["true"]).run().exits(0);
    sandbox(&["--user", "user"]).root(&root).command(&["true"]).run().refused().says("no such user");
    fs::remove_file(root.join("etc/passwd")).expect("FIFO");
    let sparse = fs::File::create(root.join("etc/passwd")).expect("file");
    sparse.set_len(1 << 40).expect("a hole");
    plain().root(&root).command(&["true"]).run().exits(0);
    fs::remove_file(root.join("etc/passwd")).expect("file");
    symlink("/proc/self/root/etc/passwd", root.join("etc/passwd")).expect("link");
    sandbox(&["--user", "daemon"]).root(&root).command(&["true"]).run().refused().says("no such user");
}
