//! File systems whose server never answers, FUSE's and the kernel's automounter's, where `@host` shows them, hides them and has them beside: a start touches
//! none of them. Root makes them, in a mount namespace that ends with the test.

mod common;

use common::{Scratch, has, sbx};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// The ordinary user that tests/run makes: as root sbx refuses what cannot be idmapped.
const USER: &str = "sbxtest";

/// Mounts a file system of the kind of the first word on the second, whose server does nothing, and runs the rest; the
/// descriptor of the server ends with it, and so does everybody who waits. An automounter is one for all processes but
/// its own group (autofs(5)): a walk through the mount point asks it for a mount.
const DEAD: &str = "
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
if sys.argv[1] == 'fuse':
    fd = os.open('/dev/fuse', os.O_RDWR)
    options = b'fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other' % fd
else:
    _asked, fd = os.pipe()
    options = b'fd=%d,pgrp=%d,minproto=5,maxproto=5,direct' % (fd, os.getpgrp())
if libc.mount(b'dead', sys.argv[2].encode(), sys.argv[1].encode(), 0, options) != 0:
    sys.exit('mount: ' + os.strerror(ctypes.get_errno()))
try:
    sys.exit(subprocess.run(sys.argv[3:], timeout=30, close_fds=True, start_new_session=True).returncode)
except subprocess.TimeoutExpired:
    sys.exit('it waits for the dead server')
";

#[test]
fn nobody_waits_for_a_dead_server() {
    if has("fuse") {
        nobody_waits("nobody_waits_for_a_dead_server", "fuse");
    }
}

#[test]
fn nobody_asks_an_automounter() {
    let known = std::fs::read_to_string("/proc/filesystems").expect("file systems");
    match known.lines().any(|line| line.ends_with("autofs")) {
        true => nobody_waits("nobody_asks_an_automounter", "autofs"),
        false => println!("SKIP nobody_asks_an_automounter: this kernel has no autofs"),
    }
}

fn nobody_waits(test: &str, kind: &str) {
    if !has("python3") {
        return;
    }
    if !Command::new("id").arg(USER).output().is_ok_and(|output| output.status.success()) {
        return println!("SKIP {test}: no user {USER}");
    }
    if !Command::new("python3").args(["-c", "import ctypes"]).status().is_ok_and(|status| status.success()) {
        return println!("SKIP {test}: python3 without ctypes");
    }
    let scratch = Scratch::new();
    let [home, project, beside] = ["home", "home/project", "home/project/dead"].map(|name| scratch.dir(name));
    for place in [home.join("dead"), scratch.join("dead")] {
        std::fs::create_dir(place).expect("a directory");
    }
    let overlay = format!("{}:/p:ro", project.display());
    let state = scratch.dir("state");
    let owned = Command::new("chown").args(["-R", USER]).arg(scratch.path()).status();
    assert!(owned.expect("chown").success());
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700)).expect("a mode");
    for place in [home.join("dead"), scratch.join("dead"), beside, "/srv".into()] {
        for options in [&["@host"][..], &["-v", &overlay, "@host"], &["--policy", "strict", "@host"]] {
            let mut words = vec!["--mount", "--propagation", "private", "python3", "-c", DEAD];
            let place = place.display().to_string();
            let sbx = sbx().display().to_string();
            words.extend([kind, &place, "setpriv", "--reuid", USER, "--regid", USER, "--clear-groups"]);
            words.extend([sbx.as_str(), "run", "-q"]);
            words.extend(options);
            words.extend(["--", "true"]);
            let mut command = Command::new("unshare");
            command.args(&words).current_dir(&home).env("HOME", &home).env("XDG_RUNTIME_DIR", &state);
            let output = command.output().expect("unshare");
            assert!(output.status.success(), "{kind} {place} {options:?}: {output:?}");
        }
    }
    // It is dead indeed: whoever touches it waits.
    let look = ["--mount", "--propagation", "private", "python3", "-c", DEAD, kind];
    let mut command = Command::new("unshare");
    command.args(look).arg(scratch.join("dead"));
    command.args(["timeout", "-s", "KILL", "2", "ls"]).arg(scratch.join("dead"));
    assert!(!command.output().expect("unshare").status.success());
}
