//! The ready policies with the real tools, offline: the build works, and what is hostile in it gets nothing and leaves
//! nothing (README, "Build something you don't trust").

mod common;

use common::tree::picture;
use common::{Outcome, Sandbox, Scratch, has, lacks, sandbox};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What of a home is worth stealing or poisoning.
const PRECIOUS: [&str; 15] = [
    ".ssh/id_ed25519",
    ".netrc",
    ".npmrc",
    ".git-credentials",
    ".config/pip/pip.conf",
    ".cargo/credentials.toml",
    ".bashrc",
    ".profile",
    ".cargo/bin/tool",
    ".cargo/registry/crate",
    ".npm/package",
    ".cache/pip/wheel",
    ".cache/go-build/object",
    "go/pkg/mod/module",
    ".cache/ccache/object",
];

/// A home with a project in it, and a port of the host that answers.
struct Place {
    scratch: Scratch,
    _port: TcpListener,
}

impl Place {
    fn new() -> Place {
        let scratch = Scratch::new();
        PRECIOUS.iter().for_each(|file| drop(scratch.file(Path::new("home").join(file), "secret\n")));
        let port = TcpListener::bind("127.0.0.1:0").expect("a port");
        let number = port.local_addr().expect("an address").port();
        let place = Place { scratch, _port: port };
        place.file("port", &number.to_string());
        let attack = place.scratch.join("home/project/attack.sh");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hostile/attack.sh");
        let script = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or(script, |tree| Path::new(&tree).join("tests/fixtures/hostile/attack.sh"));
        std::fs::copy(script, attack).expect("the attack");
        let git = Command::new("git").args(["init", "-q", "-b", "main"]).current_dir(place.project()).status();
        assert!(git.expect("git").success());
        place
    }

    fn home(&self) -> PathBuf {
        self.scratch.join("home")
    }

    fn project(&self) -> PathBuf {
        self.scratch.dir("home/project")
    }

    fn file(&self, name: &str, content: &str) {
        self.scratch.file(Path::new("home/project").join(name), content);
    }

    /// `sbx run --policy NAME @host` of a script in the project, by a caller whose environment has secrets.
    fn under(&self, policy: &str, script: &str) -> Sandbox {
        let path = format!("{}/.cargo/bin:/usr/local/bin:/usr/bin:/bin", self.home().display());
        let mut asked = sandbox(&["--policy", policy]).root("@host").cwd(self.project()).env("HOME", self.home());
        for name in ["CARGO_REGISTRY_TOKEN", "NPM_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "npm_config__auth"] {
            asked = asked.env(name, "secret");
        }
        asked.env("PATH", path).env("PYTHON_KEYRING_SECRET", "secret").command(&["/bin/bash", "-ec", script])
    }

    /// All that was there before is as it was, and of the home nothing is new outside of the project.
    fn builds(&self, asked: Sandbox) -> Outcome {
        let (home, before) = (self.outside(), self.files());
        let outcome = asked.run().exits(0);
        assert_eq!(self.outside(), home, "the home has changed");
        let after = self.files();
        for line in before.lines() {
            assert!(after.lines().any(|kept| kept == line), "changed: {line}\nnow:\n{after}");
        }
        let loot = std::fs::read_to_string(self.project().join("loot")).expect("the attack ran");
        assert_eq!(loot, "ran\n");
        std::fs::remove_file(self.project().join("loot")).expect("removed");
        outcome
    }

    /// The home without the project.
    fn outside(&self) -> String {
        let all = picture(&self.home());
        let lines = all.lines().filter(|line| !line.starts_with("project") && !line.starts_with("./project"));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The files of the project: a directory's time is no file's. What a tool must write is its own.
    fn files(&self) -> String {
        let all = picture(&self.project());
        let own = |line: &&str| !line.contains("package.json") && !line.contains("Cargo.lock");
        all.lines().filter(|line| line.matches(' ').count() > 4).filter(own).collect::<Vec<_>>().join("\n")
    }
}

/// Otherwise it would get nothing inside either.
#[test]
fn the_attack_is_in_earnest() {
    if !has("userns") {
        return;
    }
    let place = Place::new();
    let mut attack = Command::new("/bin/bash");
    attack.arg("attack.sh").current_dir(place.project()).env("HOME", place.home()).env("GITHUB_TOKEN", "secret");
    let mut attack = attack.spawn().expect("bash");
    assert!(attack.wait().expect("its end").success());
    let loot = std::fs::read_to_string(place.project().join("loot")).expect("loot");
    for name in [".ssh/id_ed25519", ".npmrc", "environment", "a port of the host", "user namespace", "set-id file"] {
        assert!(loot.lines().any(|line| line == name), "{name}: {loot}");
    }
    for name in ["git hook", "git settings", "git replaced", "environment of others"] {
        assert!(loot.lines().any(|line| line == name), "{name}: {loot}");
    }
    assert!(std::fs::read_to_string(place.home().join(".bashrc")).expect("a file").contains("evil"));
}

/// rustup's layout: its programs in `~/.cargo/bin`, its toolchains where RUSTUP_HOME says. Without rustup the machine's
/// own cargo does.
fn rust(place: &Place) -> Option<PathBuf> {
    let rust = PathBuf::from(std::env::var_os("SBX_RUST")?);
    if !rust.join("bin/rustup").exists() {
        return None;
    }
    let bin = place.scratch.dir("home/.cargo/bin");
    std::fs::copy(rust.join("bin/rustup"), bin.join("rustup")).expect("rustup");
    for name in ["cargo", "rustc"] {
        symlink("rustup", bin.join(name)).expect("a link");
    }
    Some(rust)
}

#[test]
fn cargo_builds_and_its_build_script_gets_nothing() {
    if lacks(&["userns", "tmpfs-xattrs", "rust"]) {
        return;
    }
    let place = Place::new();
    let rustup = rust(&place);
    let manifest = |name: &str, more: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n{more}")
    };
    place.file("Cargo.toml", &manifest("app", "[dependencies]\nevil = \"0.1.0\"\n"));
    place.file("src/main.rs", "fn main() { println!(\"{}\", evil::answer()); }\n");
    place.file(
        ".cargo/config.toml",
        "[source.crates-io]\nreplace-with = \"vendored\"\n[source.vendored]\ndirectory = \"vendor\"\n",
    );
    place.file("vendor/evil/Cargo.toml", &manifest("evil", ""));
    place.file("vendor/evil/.cargo-checksum.json", "{\"files\":{}}");
    place.file("vendor/evil/src/lib.rs", "pub fn answer() -> u32 { 42 }\n");
    place.file(
        "vendor/evil/build.rs",
        "fn main() {\n    let home = std::path::Path::new(env!(\"CARGO_MANIFEST_DIR\")).join(\"../..\");\n    \
         let status = std::process::Command::new(\"/bin/bash\").arg(\"attack.sh\").current_dir(home).status();\n    \
         assert!(status.expect(\"bash\").success());\n}\n",
    );
    let build = |script: &str| {
        let asked = place.under("cargo", script);
        match &rustup {
            Some(home) => asked.env("RUSTUP_HOME", home),
            None => asked,
        }
    };
    let first = place.builds(build("cargo build --offline 2>&1 && ./target/debug/app"));
    assert!(first.stdout.contains("Compiling evil") && first.stdout.trim_end().ends_with("42"), "{first:?}");
    // The next one is warm.
    let second = build("cargo build --offline 2>&1").run().exits(0);
    assert!(!second.stdout.contains("Compiling"), "{second:?}");
}

#[test]
fn npm_installs_and_its_scripts_get_nothing() {
    if lacks(&["userns", "tmpfs-xattrs", "npm"]) {
        return;
    }
    let place = Place::new();
    place.file("package.json", "{\"name\":\"app\",\"version\":\"1.0.0\",\"dependencies\":{\"evil\":\"file:./evil\"}}");
    place.file("evil/package.json", "{\"name\":\"evil\",\"version\":\"1.0.0\",\"main\":\"index.js\"}");
    place.file("evil/index.js", "module.exports = 42;\n");
    place.file("run.js", "console.log(require('evil'))\n");
    let script = "npm install --offline --no-audit --no-fund 2>&1 && npm pkg set scripts.postinstall='bash attack.sh' && \
                  npm install --offline --no-audit --no-fund 2>&1 && node run.js";
    let done = place.builds(place.under("npm", script));
    assert!(done.stdout.trim_end().ends_with("42"), "{done:?}");
}

#[test]
fn pip_installs_and_setup_py_gets_nothing() {
    if lacks(&["userns", "tmpfs-xattrs", "python3", "pip3"]) {
        return;
    }
    let place = Place::new();
    place.file(
        "pkg/setup.py",
        "import subprocess\nfrom setuptools import setup\n\
         subprocess.run(['/bin/bash', 'attack.sh'], cwd=open('/tmp/project').read(), check=True)\n\
         setup(name='evil', version='1.0', py_modules=['evil'])\n",
    );
    place.file("pkg/evil.py", "answer = 42\n");
    let script = "printf %s \"$PWD\" >/tmp/project; /usr/bin/python3 -m venv v && \
                  v/bin/pip install --no-index --no-build-isolation ./pkg 2>&1 && v/bin/python -c 'import evil; print(evil.answer)'";
    let done = place.builds(place.under("python", script));
    assert!(done.stdout.trim_end().ends_with("42"), "{done:?}");
}

#[test]
fn go_builds_and_its_generator_gets_nothing() {
    if lacks(&["userns", "tmpfs-xattrs", "go"]) {
        return;
    }
    let place = Place::new();
    place.file("go.mod", "module app\n\ngo 1.19\n\nrequire example.org/evil v1.0.0\n");
    place.file("main.go", "package main\n\nimport \"example.org/evil\"\n\n//go:generate bash attack.sh\n\nfunc main() { println(evil.Answer) }\n");
    place.file("vendor/modules.txt", "# example.org/evil v1.0.0\n## explicit\nexample.org/evil\n");
    place.file("vendor/example.org/evil/evil.go", "package evil\n\nconst Answer = 42\n");
    let script = "go generate && go build -mod=vendor -o app && ./app 2>&1";
    let done = place.builds(place.under("go", script));
    assert!(done.stdout.trim_end().ends_with("42"), "{done:?}");
}

#[test]
fn make_builds_and_its_recipes_get_nothing() {
    if lacks(&["userns", "tmpfs-xattrs", "make", "cc"]) {
        return;
    }
    let place = Place::new();
    place.file("Makefile", "app: app.c\n\tbash attack.sh\n\t$(CC) -o $@ $<\n");
    place.file("app.c", "#include <stdio.h>\nint main(void) { return puts(\"42\") < 0; }\n");
    let done = place.builds(place.under("make", "make && ./app"));
    assert!(done.stdout.trim_end().ends_with("42"), "{done:?}");
}

#[test]
fn an_agent_commits_and_gets_nothing_else() {
    if lacks(&["userns", "tmpfs-xattrs"]) {
        return;
    }
    let place = Place::new();
    place.scratch.file("home/.gitconfig", "[user]\n\tname = me\n\temail = me@here\n");
    place.file(".env", "secret\n");
    place.scratch.file("home/.claude/state", "old\n");
    let script = "bash attack.sh; if grep -q secret .env; then exit 3; fi; git add port && git commit -qm work && git log --format=%an; \
                  echo new >$HOME/.claude/state; for file in .claude/settings.json $HOME/.gitconfig; do \
                  if echo x 2>/dev/null >>$file; then exit 4; fi; done";
    let mode = std::fs::metadata(place.project()).expect("a directory").permissions().mode();
    let outcome = place.under("agent", script).run().exits(0);
    assert_eq!(outcome.stdout.lines().next(), Some("me"), "{outcome:?}");
    assert_eq!(std::fs::read_to_string(place.project().join("loot")).expect("loot"), "ran\n");
    assert_eq!(std::fs::read_to_string(place.home().join(".claude/state")).expect("state"), "new\n");
    assert!(!place.project().join(".claude").exists());
    assert_eq!(std::fs::metadata(place.project()).expect("a directory").permissions().mode(), mode);
}

#[test]
fn what_a_hostile_build_tries_is_told_in_a_line_each() {
    if lacks(&["userns", "tmpfs-xattrs"]) {
        return;
    }
    let place = Place::new();
    let asked = place.under("build", "bash attack.sh").options(&["--explain=files", "--status-fd", "2"]);
    let outcome = asked.run().exits(0);
    let home = place.home().display().to_string();
    for told in [
        format!("bash: openat {home}/.ssh/id_ed25519: ENOENT: [hide] paths hides it [build]"),
        format!("bash: openat {home}/.netrc: ENOENT"),
        "unshare: unshare user: EPERM".to_owned(),
        "chmod: fchmodat ./set-id: EPERM: set-id bits".to_owned(),
        format!("bash: openat {home}/project/.git/hooks/pre-commit: EROFS: [protect] git keeps it [build]"),
        format!("git: rename {home}/project/.git/config: EBUSY"),
    ] {
        let line = outcome.stderr.lines().find(|line| line.starts_with("sbx: denied: ") && line.contains(&told));
        assert!(line.is_some(), "{told}\n{}", outcome.stderr);
    }
    // The first ten are said, all are told to programs.
    let last = format!("\"object\":\"{home}/project/.git\"");
    let mut told = outcome.stderr.lines().filter(|line| line.contains("\"call\":\"renameat2\""));
    assert!(told.any(|line| line.contains(&last)), "{}", outcome.stderr);
    let said = outcome.stderr.lines().filter(|line| line.starts_with("sbx: denied: "));
    assert_eq!(said.count(), 11, "{}", outcome.stderr);
}
