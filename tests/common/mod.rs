//! The one shape of the kernel tests: `sandbox(options).probe("self").run().exits(0).facts()`.
//!
//! sbx is run as the user who runs the test, with a clean environment and a time limit. What happens inside is told
//! by the probe (tests/probe), a static program that is bound to /probe and prints facts as JSON; it also serves
//! outside, as the caller with odd properties.

#![allow(dead_code)]

mod needs;
pub mod tree;

pub use needs::*;
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// No run of sbx in these tests needs more than a second; a busy machine may take many times that.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Facts of the probe in this process's own namespaces.
pub fn outside(name: &str, args: &[&str]) -> Value {
    let output = Command::new(probe()).arg(name).args(args).output().expect("the probe runs on the host");
    assert!(output.status.success(), "{name}: {output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON of the probe")
}

// --- A run ---

/// One `sbx run`, to be told what to run.
pub struct Sandbox {
    options: Vec<OsString>,
    root: OsString,
    command: Vec<OsString>,
    with_probe: bool,
    under: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: Option<PathBuf>,
    stdin: Vec<u8>,
    stdin_from: Option<Stdio>,
    limit: Duration,
}

/// How it ended and what it said.
#[derive(Debug)]
pub struct Outcome {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
    told: String,
}

/// `sbx run` of the fixture with these options.
pub fn sandbox<S: AsRef<OsStr>>(options: &[S]) -> Sandbox {
    Sandbox {
        options: options.iter().map(|o| o.as_ref().to_owned()).collect(),
        root: rootfs().into(),
        command: Vec::new(),
        with_probe: false,
        under: Vec::new(),
        env: usual_env(),
        cwd: None,
        stdin: Vec::new(),
        stdin_from: None,
        limit: TIME_LIMIT,
    }
}

/// `sbx run` without options.
pub fn plain() -> Sandbox {
    sandbox::<&str>(&[])
}

/// The variables without which a caller can hardly run anything.
fn usual_env() -> Vec<(OsString, OsString)> {
    let wanted = ["PATH", "HOME", "XDG_RUNTIME_DIR", "TMPDIR", "SBX_SABOTAGE", "SBX_TEST_RUN"];
    wanted.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?))).collect()
}

impl Sandbox {
    /// Another ROOTFS.
    pub fn root(mut self, root: impl AsRef<OsStr>) -> Self {
        self.root = root.as_ref().to_owned();
        self
    }

    pub fn option(mut self, option: impl AsRef<OsStr>) -> Self {
        self.options.push(option.as_ref().to_owned());
        self
    }

    pub fn options<S: AsRef<OsStr>>(mut self, options: &[S]) -> Self {
        self.options.extend(options.iter().map(|o| o.as_ref().to_owned()));
        self
    }

    /// The command inside.
    pub fn command<S: AsRef<OsStr>>(mut self, words: &[S]) -> Self {
        self.command = words.iter().map(|w| w.as_ref().to_owned()).collect();
        self
    }

    /// A shell script as the command inside.
    pub fn sh(self, script: &str) -> Self {
        self.command(&["/bin/sh", "-c", script])
    }

    /// The probe as the command inside.
    pub fn probe(self, name: &str) -> Self {
        self.probe_with::<&str>(name, &[])
    }

    pub fn probe_with<S: AsRef<OsStr>>(mut self, name: &str, args: &[S]) -> Self {
        self = self.bring_probe();
        self.command = ["/probe".into(), name.into()].into();
        self.command.extend(args.iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Binds the probe to /probe, whatever the command is.
    pub fn bring_probe(mut self) -> Self {
        self.with_probe = true;
        self
    }

    /// What sbx is run by: a program that executes its last words.
    pub fn under<S: AsRef<OsStr>>(mut self, words: &[S]) -> Self {
        self.under.extend(words.iter().map(|w| w.as_ref().to_owned()));
        self
    }

    /// The probe as a caller with odd properties.
    pub fn caller(self, name: &str, args: &[&str]) -> Self {
        let probe = probe();
        let words: Vec<&OsStr> =
            [probe.as_os_str(), OsStr::new(name)].into_iter().chain(args.iter().map(OsStr::new)).collect();
        self.under(&words).under(&["--"])
    }

    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    pub fn cwd(mut self, dir: impl AsRef<Path>) -> Self {
        self.cwd = Some(dir.as_ref().to_owned());
        self
    }

    pub fn stdin(mut self, bytes: &[u8]) -> Self {
        self.stdin = bytes.to_owned();
        self
    }

    pub fn stdin_from(mut self, file: std::fs::File) -> Self {
        self.stdin_from = Some(file.into());
        self
    }

    fn words(&self) -> Vec<OsString> {
        let mut words = self.under.clone();
        words.extend([sbx().into_os_string(), "run".into()]);
        words.extend(self.options.iter().cloned());
        if self.with_probe {
            let mut volume = OsString::from("type=bind,src=");
            volume.push(probe());
            volume.push(",dst=/probe,ro");
            words.extend(["--mount".into(), volume]);
        }
        words.push(self.root.clone());
        words.extend(self.command.iter().cloned());
        words
    }

    /// Starts it, for tests that look while it runs; the caller ends it.
    pub fn start(mut self) -> Running {
        let words = self.words();
        let told = words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().envs(self.env.iter().cloned());
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        command.stdin(self.stdin_from.take().unwrap_or_else(Stdio::piped));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{told}: {e}"));
        let input = std::mem::take(&mut self.stdin);
        let stdin = child.stdin.take().map(|mut pipe| {
            let _ = pipe.write_all(&input);
            pipe
        });
        let readers = [child.stdout.take().map(drain), child.stderr.take().map(drain)];
        Running { child, stdin, readers, told, deadline: Instant::now() + self.limit }
    }

    /// Runs it to its end.
    pub fn run(self) -> Outcome {
        let mut running = self.start();
        running.stdin = None;
        running.wait()
    }

    /// Runs the probe to a good end and gives its facts.
    pub fn sees(self) -> Value {
        self.run().exits(0).facts()
    }
}

/// In the user's own session of systemd's, where there is one: the tests have a runtime directory of their own.
pub fn in_session(sandbox: Sandbox) -> Sandbox {
    match session_dir().join("systemd/private").exists() {
        true => sandbox.env("XDG_RUNTIME_DIR", session_dir()),
        false => sandbox,
    }
}

/// What `systemctl --user` says.
pub fn user_systemctl(args: &[&str]) -> String {
    let output = Command::new("systemctl").arg("--user").args(args).env("XDG_RUNTIME_DIR", session_dir()).output();
    String::from_utf8_lossy(&output.expect("systemctl").stdout).into_owned()
}

type Reader = Option<std::thread::JoinHandle<Vec<u8>>>;

fn drain(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

/// A run that goes on. Dropped, it is killed.
pub struct Running {
    child: Child,
    pub stdin: Option<std::process::ChildStdin>,
    readers: [Reader; 2],
    told: String,
    deadline: Instant,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Waits for its end, which has to come within the limit.
    pub fn wait(mut self) -> Outcome {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait for sbx") {
                break status;
            }
            if Instant::now() > self.deadline {
                let _ = self.child.kill();
                panic!("not done in time: {}", self.told);
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let status = status.code().unwrap_or_else(|| 1000 + status.signal().unwrap_or(0));
        let mut text = |n: usize| {
            let bytes = self.readers[n].take().and_then(|reader| reader.join().ok()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Outcome { status, stdout: text(0), stderr: text(1), told: std::mem::take(&mut self.told) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Outcome {
    /// Of a command that is no `sbx run`.
    pub fn of(status: i32, stdout: String, stderr: String, told: String) -> Outcome {
        Outcome { status, stdout, stderr, told }
    }

    /// The exit status has to be this; 1000 + N is a death of sbx itself by signal N.
    #[track_caller]
    pub fn exits(self, status: i32) -> Self {
        let whole = |text: &str| text.chars().take(4000).collect::<String>();
        assert_eq!(self.status, status, "{}\n{}\n{}", whole(&self.told), whole(&self.stdout), whole(&self.stderr));
        self
    }

    /// stdout has to be this, but for space at its ends.
    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        assert_eq!(self.stdout.trim(), text.trim(), "{}\n{}", self.told, self.stderr);
        self
    }

    /// stderr has to hold this.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "{}\n{}\ndoes not say: {text}", self.told, self.stderr);
        self
    }

    /// A refusal: 125, and one to four lines of which the first is sbx's.
    #[track_caller]
    pub fn refused(self) -> Self {
        let this = self.exits(125);
        let lines: Vec<&str> = this.stderr.lines().collect();
        let clear = (1..=4).contains(&lines.len()) && lines[0].starts_with("sbx: ") && !this.stderr.contains("bug in");
        assert!(clear, "{}\n{}", this.told, this.stderr);
        this
    }

    #[track_caller]
    pub fn facts(&self) -> Value {
        let facts = serde_json::from_str(&self.stdout);
        facts.unwrap_or_else(|e| panic!("{}: {e}\n{}\n{}", self.told, self.stdout, self.stderr))
    }
}

/// A directory that goes at the end of the test, whatever modes lie in it.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Scratch {
        Scratch(tempfile::tempdir().expect("a temporary directory"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.join(name);
        std::fs::create_dir_all(&path).expect("a directory of the test");
        path
    }

    pub fn file(&self, name: impl AsRef<Path>, content: &str) -> PathBuf {
        let path = self.join(name);
        std::fs::create_dir_all(path.parent().expect("below the scratch")).expect("a directory of the test");
        std::fs::write(&path, content).expect("a file of the test");
        path
    }

    /// A copy of the fixture that may be written to.
    pub fn rootfs(&self) -> PathBuf {
        let copy = self.join("rootfs");
        assert!(Command::new("cp").arg("-a").args([rootfs(), copy.clone()]).status().expect("cp").success());
        copy
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Work directories of overlays have no mode bits.
        let _ = Command::new("chmod").args(["-R", "u+rwx"]).arg(self.0.path()).stderr(Stdio::null()).status();
    }
}

/// `SRC:DST:OPTIONS` of paths that need not be UTF-8.
pub fn volume(src: &Path, rest: &str) -> OsString {
    OsStr::from_bytes(&[src.as_os_str().as_bytes(), b":", rest.as_bytes()].concat()).to_owned()
}
