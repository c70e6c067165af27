//! `--learn`: a first run that changes nothing and is watched, and a second one under what was learned, with real tools.

mod common;

use common::tree::picture;
use common::{Outcome, Scratch, has, lacks, sandbox};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

struct Place {
    scratch: Scratch,
}

impl Place {
    fn new() -> Place {
        let scratch = Scratch::new();
        scratch.file("home/.ssh/id_ed25519", "secret");
        scratch.file("home/.netrc", "secret");
        scratch.file("home/.unused/file", "x");
        scratch.dir("home/project");
        Place { scratch }
    }

    fn home(&self) -> PathBuf {
        self.scratch.join("home")
    }

    fn file(&self, name: &str, content: &str, mode: u32) {
        let path = self.scratch.file(PathBuf::from("home").join(name), content);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
    }

    fn run(&self, options: &[&str], script: &str) -> Outcome {
        let asked = sandbox(options).root("@host").cwd(self.home().join("project")).env("HOME", self.home());
        asked.command(&["/bin/sh", "-ec", script]).run()
    }

    /// Learns a script, whose last word is a file that it makes in the project; then runs it under what was learned.
    fn learns(&self, script: &str, made: &str) -> String {
        let before = picture(&self.home());
        let file = self.scratch.join("learned.toml").display().to_string();
        let outcome = self.run(&["--learn", &file], script).exits(0);
        assert_eq!(picture(&self.home()), before, "the first run changes nothing");
        assert!(outcome.stderr.contains("learned: "), "{outcome:?}");
        let text = std::fs::read_to_string(&file).expect("a policy");
        for secret in [".ssh", ".netrc", ".unused", "src = \"~\"", "net.mode = \"host\"\n[", "mode = \"off\""] {
            assert!(
                !text.contains(&format!("src = \"~/{secret}")) && !text.contains("src = \"~\""),
                "{secret}\n{text}"
            );
        }
        self.run(&["--policy", &file], script).exits(0);
        assert!(self.home().join("project").join(made).exists(), "{made}");
        text
    }
}

#[test]
fn make_with_a_tool_of_the_home() {
    if lacks(&["userns", "tmpfs-xattrs", "make", "landlock"]) {
        return;
    }
    let place = Place::new();
    place.file(
        ".tools/bin/gen",
        "#!/bin/sh\ncat ~/.tools/data; cat ~/.ssh/id_ed25519 ~/.netrc 2>/dev/null || true\n",
        0o755,
    );
    place.file(".tools/data", "data\n", 0o644);
    place.file("project/Makefile", "out:\n\t$(HOME)/.tools/bin/gen >out\n", 0o644);
    // Under the ready one the tool is not there.
    assert_ne!(place.run(&["--policy", "make"], "make out").status, 0);
    let _ = std::fs::remove_file(place.home().join("project/out"));
    let text = place.learns("make out", "out");
    assert!(text.contains("extends = [\"make\"]") && text.contains("src = \"~/.tools/bin\""), "{text}");
    assert_eq!(std::fs::read_to_string(place.home().join("project/out")).expect("out"), "data\n");
}

#[test]
fn npm_with_a_script_of_the_home() {
    if lacks(&["userns", "tmpfs-xattrs", "npm", "landlock"]) {
        return;
    }
    let place = Place::new();
    place.file(".mytool/index.js", "require('fs').writeFileSync('out.txt', require('./more.js'));\n", 0o644);
    place.file(".mytool/more.js", "module.exports = 'made';\n", 0o644);
    place.file(
        "project/package.json",
        "{\"name\":\"p\",\"version\":\"1.0.0\",\"scripts\":{\"gen\":\"node ~/.mytool/index.js\"}}",
        0o644,
    );
    assert_ne!(place.run(&["--policy", "npm"], "npm run gen --offline").status, 0);
    let text = place.learns("npm run gen --offline", "out.txt");
    assert!(text.contains("extends = [\"npm\"]") && text.contains("src = \"~/.mytool/index.js\""), "{text}");
}

#[test]
fn cargo_with_a_file_of_the_home() {
    if lacks(&["userns", "tmpfs-xattrs", "rust", "landlock"]) {
        return;
    }
    let place = Place::new();
    let Some(rust) = std::env::var_os("SBX_RUST") else { return };
    let cargo = PathBuf::from(rust).join("bin");
    place.file(".settings/value", "7", 0o644);
    place.file("project/Cargo.toml", "[package]\nname = \"p\"\nversion = \"0.1.0\"\nedition = \"2021\"\n", 0o644);
    place.file(
        "project/src/lib.rs",
        "pub fn value() -> u32 { include!(concat!(env!(\"OUT_DIR\"), \"/value.rs\")) }\n",
        0o644,
    );
    place.file("project/build.rs", "fn main() { let home = std::env::var(\"HOME\").unwrap(); let value = std::fs::read_to_string(home + \"/.settings/value\").unwrap(); std::fs::write(std::env::var(\"OUT_DIR\").unwrap() + \"/value.rs\", value).unwrap(); }\n", 0o644);
    let script = format!("PATH={}:$PATH cargo build -q --offline", cargo.display());
    let outcome = place.run(&["--policy", "cargo"], &script);
    if outcome.stderr.contains("not found") {
        return;
    }
    assert_ne!(outcome.status, 0, "{outcome:?}");
    let text = place.learns(&script, "Cargo.lock");
    assert!(text.contains("src = \"~/.settings/value\""), "{text}");
}

#[test]
fn what_is_denied_is_told_and_calls_are_granted_by_name() {
    if !has("userns") {
        return;
    }
    let place = Place::new();
    let file = place.scratch.join("l.toml").display().to_string();
    let script = "python3 -c 'import ctypes; ctypes.CDLL(None).syscall(250, 0, 0, 0)'; hostname x 2>/dev/null || true";
    place.run(&["--learn", &file], script).exits(0).says("the system call keyctl");
    let text = std::fs::read_to_string(&file).expect("a policy");
    assert!(
        text.contains("allow = [\"keyctl\"]") && text.contains("#   sethostname x: caps.add = [\"SYS_ADMIN\"]"),
        "{text}"
    );
    // It is not overwritten.
    place.run(&["--learn", &file], "true").refused().says("already");
    place.run(&["--learn", "/nowhere/x", "--explain"], "true").refused().says("contradict");
}

/// What a program makes in the home it makes in an empty one too; and only directories are copies.
#[test]
fn what_is_made_in_the_home_needs_no_mount() {
    if lacks(&["userns", "tmpfs-xattrs", "landlock"]) {
        return;
    }
    let place = Place::new();
    place.file(".toolrc", "old\n", 0o644);
    place.file("other/deep/file", "old\n", 0o644);
    let script = "mkdir -p ~/.mytool/state; echo x >~/.mytool/state/f; echo x >>~/.toolrc; cat ~/other/deep/file; \
                  echo x >~/other/deep/new; echo x >out";
    let text = place.learns(script, "out");
    assert!(text.contains("src = \"~/other/deep\"\naccess = \"overlay\""), "{text}");
    assert!(!text.contains("src = \"~/.mytool") && !text.contains("src = \"~/.toolrc"), "{text}");
}
