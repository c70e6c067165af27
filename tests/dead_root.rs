//! File systems whose server never answers, where `@host` shows them, hides them and has them beside: a start touches
//! none of them. Root makes them, in a mount namespace that ends with the test.

mod common;

use common::{Scratch, has, sbx};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// The ordinary user that tests/run makes: as root sbx refuses what cannot be idmapped.
const USER: &str = "sbxtest";

/// Mounts a FUSE file system on the first word, whose server does nothing, and runs the rest; the descriptor of the
/// server ends with it, and so does everybody who waits.
const DEAD: &str = "
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open('/dev/fuse', os.O_RDWR)
options = b'fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other' % fd
if libc.mount(b'dead', sys.argv[1].encode(), b'fuse', 0, options) != 0:
    sys.exit('mount: ' + os.strerror(ctypes.get_errno()))
try:
    sys.exit(subprocess.run(sys.argv[2:], timeout=30, close_fds=True).returncode)
except subprocess.TimeoutExpired:
    sys.exit('it waits for the dead server')
";

#[test]
fn nobody_waits_for_a_dead_server() {
    if !has("fuse") || !has("python3") {
        return;
    }
    if !Command::new("id").arg(USER).output().is_ok_and(|output| output.status.success()) {
        return println!("SKIP nobody_waits_for_a_dead_server: no user {USER}");
    }
    if !Command::new("python3").args(["-c", "import ctypes"]).status().is_ok_and(|status| status.success()) {
        return println!("SKIP nobody_waits_for_a_dead_server: python3 without ctypes");
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
    for place in [home.join("dead"), scratch.join("dead"), beside] {
        for options in [&["@host"][..], &["-v", &overlay, "@host"], &["--policy", "strict", "@host"]] {
            let mut words = vec!["--mount", "--propagation", "private", "python3", "-c", DEAD];
            let place = place.display().to_string();
            let sbx = sbx().display().to_string();
            words.extend([place.as_str(), "setpriv", "--reuid", USER, "--regid", USER, "--clear-groups"]);
            words.extend([sbx.as_str(), "run", "-q"]);
            words.extend(options);
            words.extend(["--", "true"]);
            let mut command = Command::new("unshare");
            command.args(&words).current_dir(&home).env("HOME", &home).env("XDG_RUNTIME_DIR", &state);
            let output = command.output().expect("unshare");
            assert!(output.status.success(), "{place} {options:?}: {output:?}");
        }
    }
    // It is dead indeed: whoever touches it waits.
    let look = ["--mount", "--propagation", "private", "timeout", "-s", "KILL", "2", "python3", "-c", DEAD];
    let mut command = Command::new("unshare");
    command.args(look).arg(scratch.join("dead")).arg("ls").arg(scratch.join("dead"));
    assert!(!command.output().expect("unshare").status.success());
}
