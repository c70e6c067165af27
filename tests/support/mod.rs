//! What the robustness tests share: a place of its own for each test, child processes that always end, a mark by
//! which every process of a test is found again.

#![allow(dead_code)]

pub mod detached;
#[path = "../common/needs.rs"]
mod needs;
pub mod screen;

pub use needs::*;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// No child lives longer.
const LIMIT: Duration = Duration::from_secs(60);
/// What must happen at once may take this long on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);

/// A directory of one test alone, removed at its end, and a number that marks all processes started from it.
pub struct Place {
    dir: tempfile::TempDir,
    mark: u32,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Place {
    pub fn new() -> Place {
        let dir = tempfile::Builder::new().prefix("sbx-t").tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        for name in ["run", "home", "tmp"] {
            fs::create_dir(dir.path().join(name)).expect("mkdir");
        }
        fs::set_permissions(dir.path().join("run"), fs::Permissions::from_mode(0o700)).expect("chmod");
        // POSIX message queues cost 819200 bytes by default; any number near it marks as well.
        let mark = 500_000 + std::process::id() % 9_900 * 32 + NEXT.fetch_add(1, Ordering::Relaxed) % 32;
        Place { dir, mark }
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    /// A root file system that all tests share and none may change.
    pub fn rootfs(&self) -> PathBuf {
        rootfs()
    }

    /// A root file system of this test's own.
    pub fn own_rootfs(&self, name: impl AsRef<Path>) -> PathBuf {
        let to = self.path(name);
        if !to.join("bin/sh").exists() {
            assert!(Command::new("cp").arg("-a").arg(rootfs()).arg(&to).status().expect("cp").success());
        }
        to
    }

    /// The directory of records.
    pub fn state(&self) -> PathBuf {
        self.path("run/sbx")
    }

    /// What is in the directory of records.
    pub fn records(&self) -> Vec<String> {
        names(&self.state())
    }

    /// `sbx` with these words.
    pub fn sbx<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Run {
        self.run(sbx(), words)
    }

    /// `sbx run` with these words.
    pub fn sbx_run<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Run {
        let words = words.into_iter().map(|w| w.as_ref().to_owned());
        self.sbx([OsString::from("run")].into_iter().chain(words))
    }

    /// `sbx run ROOTFS sh -c SCRIPT`, with options before ROOTFS.
    pub fn shell(&self, options: &[&str], script: &str) -> Run {
        let mut words: Vec<OsString> = options.iter().map(OsString::from).collect();
        words.extend([self.rootfs().into(), "sh".into(), "-c".into(), script.into()]);
        self.sbx_run(words)
    }

    /// `sbx run --name NAME ROOTFS sh -c SCRIPT`, with options before ROOTFS, that other commands can speak to.
    #[track_caller]
    pub fn named(&self, name: &str, options: &[&str], script: &str) -> Running {
        let options: Vec<&str> = ["--upper", "tmpfs", "--name", name].iter().chain(options).copied().collect();
        let mut running = self.shell(&options, script).start();
        let socket = self.state().join(name).join("control");
        assert!(soon(|| socket.exists() || running.ended().is_some()), "{name} does not come up");
        assert!(socket.exists(), "{name} has ended: {:?}", running.done());
        running
    }

    /// What `sbx inspect` tells of a sandbox; null where there is none.
    pub fn facts(&self, name: &str) -> serde_json::Value {
        let done = self.sbx(["inspect", name]).done();
        let facts: serde_json::Value = serde_json::from_slice(&done.out).unwrap_or_else(|e| panic!("{e}: {done:?}"));
        facts[0].clone()
    }

    /// How a sandbox stands.
    pub fn standing(&self, name: &str) -> String {
        self.facts(name)["state"].as_str().unwrap_or("none").to_owned()
    }

    /// Any program, marked, with a clean environment, in a process group of its own.
    pub fn run<W: AsRef<OsStr>>(&self, program: impl AsRef<OsStr>, words: impl IntoIterator<Item = W>) -> Run {
        let mut run = self.run_in_group(program, words);
        run.command.process_group(0);
        run
    }

    /// The same in the test's own group: `setsid` then need not fork.
    pub fn run_in_group<W: AsRef<OsStr>>(&self, program: impl AsRef<OsStr>, words: impl IntoIterator<Item = W>) -> Run {
        let mut command = Command::new("prlimit");
        command.arg(format!("--msgqueue={0}:{0}", self.mark)).arg("--").arg(program).args(words);
        command.env_clear().current_dir(self.dir.path());
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin").env("LANG", "C.UTF-8");
        command.env("HOME", self.path("home")).env("XDG_RUNTIME_DIR", self.path("run")).env("TERM", "xterm");
        command.env("TMPDIR", self.path("tmp"));
        // By the first of these tests/run finds what is left of a test that was killed itself.
        for name in ["SBX_TEST_RUN", "SBX_SABOTAGE"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        Run { command, input: Some(Vec::new()), limit: LIMIT }
    }

    /// The processes that were started from here and are still there, zombies included.
    pub fn processes(&self) -> Vec<Process> {
        let mark = self.mark.to_string();
        processes().into_iter().filter(|p| p.mark() == Some(mark.clone())).collect()
    }

    /// Nothing that was started from here lives any more.
    #[track_caller]
    pub fn assert_no_processes(&self) {
        let gone = soon(|| self.processes().is_empty());
        assert!(gone, "left behind: {:?}", self.processes());
    }

    /// Nothing is left of any sandbox: no process, and after the next command no record.
    #[track_caller]
    pub fn assert_clean(&self) {
        self.assert_no_processes();
        let records = self.records();
        assert!(records.is_empty(), "records left: {records:?}");
    }

    /// As [`Place::assert_clean`], but after a next sbx command, which clears what a killed one left.
    #[track_caller]
    pub fn assert_clean_after_next(&self) {
        self.assert_no_processes();
        // Without a word of it, kernels before 6.6 have something to say of the writable layer.
        let upper = ["--upper", "disk"].map(OsStr::new);
        let next = self.sbx_run(upper.into_iter().chain([self.rootfs().as_os_str(), "true".as_ref()])).done();
        assert_eq!((next.code(), next.err.as_str()), (0, ""), "the next run");
        self.assert_clean();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Only what a failed test left: a green one has looked itself.
        for process in self.processes() {
            let _ = Command::new("kill").args(["-KILL", &process.pid.to_string()]).stderr(Stdio::null()).status();
        }
        let _ = Command::new("chmod").args(["-R", "u+rwX"]).arg(self.dir.path()).stderr(Stdio::null()).status();
    }
}

/// The names in a directory, sorted; none where there is no directory.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}

/// A child process to be run to its end.
pub struct Run {
    pub command: Command,
    input: Option<Vec<u8>>,
    limit: Duration,
}

impl Run {
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Run {
        self.command.env(name, value);
        self
    }

    pub fn env_remove(mut self, name: &str) -> Run {
        self.command.env_remove(name);
        self
    }

    pub fn dir(mut self, dir: impl AsRef<Path>) -> Run {
        self.command.current_dir(dir);
        self
    }

    /// Bytes on stdin; without this it is empty.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Run {
        self.input = Some(bytes.into());
        self
    }

    /// A stdin of the test's own choice.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Run {
        self.command.stdin(stdin);
        self.input = None;
        self
    }

    pub fn limit(mut self, seconds: u64) -> Run {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Starts it with stdout and stderr collected.
    pub fn start(mut self) -> Running {
        if self.input.is_some() {
            self.command.stdin(Stdio::piped());
        }
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.start_as_is()
    }

    /// Starts it with the descriptors that the test has set.
    pub fn start_as_is(mut self) -> Running {
        let mut child = self.command.spawn().unwrap_or_else(|e| panic!("{:?}: {e}", self.command));
        // The test must not keep ends of its child's pipes and terminals open.
        self.command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let input = self.input.take().unwrap_or_default();
        if let Some(mut pipe) = child.stdin.take() {
            thread::spawn(move || {
                let _ = pipe.write_all(&input);
            });
        }
        let out = child.stdout.take().map(collect);
        let err = child.stderr.take().map(collect);
        Running { child, out, err, until: Instant::now() + self.limit, what: format!("{:?}", self.command) }
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn done(self) -> Done {
        self.start().done()
    }
}

impl Run {
    /// Starts it; the test itself reads what it writes.
    pub fn start_with_own_output(mut self) -> Running {
        self.command.stdin(Stdio::null());
        self.start_raw()
    }

    /// Starts it with the descriptors that the test has set and will serve itself.
    pub fn start_raw(mut self) -> Running {
        let child = self.command.spawn().unwrap_or_else(|e| panic!("{:?}: {e}", self.command));
        Running { child, out: None, err: None, until: Instant::now() + self.limit, what: format!("{:?}", self.command) }
    }
}

/// Clock ticks of processor time that a process has used.
pub fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let rest = stat.rsplit(')').next().unwrap_or("");
    rest.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum()
}

type Bytes = std::sync::mpsc::Receiver<Vec<u8>>;

/// Everything that comes, sent when the other end is closed.
fn collect(mut from: impl Read + Send + 'static) -> Bytes {
    let (send, receive) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        let _ = send.send(bytes);
    });
    receive
}

/// A child process that runs.
pub struct Running {
    pub child: Child,
    out: Option<Bytes>,
    err: Option<Bytes>,
    until: Instant,
    what: String,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: &str) {
        kill(self.pid(), signal);
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait")
    }

    /// Gives it this many seconds from now.
    pub fn limit_more(mut self, seconds: u64) -> Running {
        self.until = Instant::now() + Duration::from_secs(seconds);
        self
    }

    /// Waits for its end; a child that does not end fails the test.
    #[track_caller]
    pub fn done(mut self) -> Done {
        let status = loop {
            if let Some(status) = self.ended() {
                break status;
            }
            if Instant::now() > self.until {
                kill(self.pid(), "KILL");
                let _ = self.child.wait();
                let text = |bytes: &Option<Bytes>| {
                    let bytes = bytes.as_ref().and_then(|b| b.recv_timeout(SOON).ok()).unwrap_or_default();
                    String::from_utf8_lossy(&bytes).chars().take(2000).collect::<String>()
                };
                panic!("did not end: {}\nstdout: {}\nstderr: {}", self.what, text(&self.out), text(&self.err));
            }
            thread::sleep(Duration::from_millis(2));
        };
        // Whoever keeps the pipes open longer than the process lives is left behind.
        let take = |bytes: &Option<Bytes>, name: &str| match bytes {
            Some(bytes) => bytes.recv_timeout(SOON * 5).unwrap_or_else(|_| panic!("{name} still open: {}", self.what)),
            None => Vec::new(),
        };
        let out = take(&self.out, "stdout");
        let err = String::from_utf8_lossy(&take(&self.err, "stderr")).into_owned();
        Done { status, out, err }
    }
}

/// How a child process ended.
#[derive(Debug)]
pub struct Done {
    pub status: ExitStatus,
    pub out: Vec<u8>,
    pub err: String,
}

impl Done {
    /// The exit code; that of a shell where a signal killed it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 1000 + self.status.signal().unwrap_or(0))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    #[track_caller]
    pub fn exits(self, code: i32) -> Done {
        assert_eq!(self.code(), code, "stdout: {:?}\nstderr: {}", head(&self.text()), self.err);
        self
    }

    #[track_caller]
    pub fn says(self, text: &str) -> Done {
        assert_eq!(self.text().trim_end(), text, "stderr: {}", self.err);
        self
    }

    /// A failure of sbx as everyone may read it: the status, `sbx: `, at most four lines (a caret's line beside),
    /// no panic, no bare number.
    #[track_caller]
    pub fn refused(self, code: i32, naming: &[&str]) -> Done {
        assert_eq!(self.code(), code, "stdout: {:?}\nstderr: {}", head(&self.text()), self.err);
        assert!(self.err.starts_with("sbx: "), "stderr: {}", self.err);
        let lines = self.err.lines().filter(|line| line.trim() != "^").count();
        assert!(lines <= 4, "{lines} lines: {}", self.err);
        for bad in ["panicked", "os error", "bug in sbx", "RUST_BACKTRACE", "core dumped"] {
            assert!(!self.err.contains(bad), "{bad}: {}", self.err);
        }
        let control = self.err.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(control, None, "{:?}", self.err);
        for word in naming {
            assert!(self.err.contains(word), "{word:?} is not named: {}", self.err);
        }
        self
    }
}

fn head(text: &str) -> String {
    text.chars().take(1000).collect()
}

/// Sends a signal by name.
pub fn kill(pid: i32, signal: &str) {
    // kill(1) of procps 4.0.2 takes the first digit of a negative number for the whole: -12 becomes -1, everybody.
    assert!(pid > 0, "only single processes");
    let _ = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).stderr(Stdio::null()).status();
}

/// Looks again and again until it is so, at most [`SOON`].
pub fn soon(so: impl FnMut() -> bool) -> bool {
    within(SOON, so)
}

pub fn within(limit: Duration, mut so: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + limit;
    loop {
        if so() {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A process as /proc shows it to everyone.
#[derive(Clone)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub name: String,
    pub state: char,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ({}) of {}", self.pid, self.name, self.state, self.parent)
    }
}

impl Process {
    /// The mark that [`Place::run`] gave it or an ancestor: readable also of a process that is not dumpable.
    fn mark(&self) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{}/limits", self.pid)).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Max msgqueue size"))?;
        line.split_whitespace().next().map(str::to_owned)
    }

    /// A field of /proc/PID/status.
    pub fn status(&self, field: &str) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).map(|v| v.trim().to_owned())
    }
}

/// All processes.
pub fn processes() -> Vec<Process> {
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    pids.filter_map(|entry| process(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// One process, while it is there.
pub fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (start, end) = (stat.find('(')?, stat.rfind(')')?);
    let mut rest = stat.get(end + 2..)?.split(' ');
    let state = rest.next()?.chars().next()?;
    let parent = rest.next()?.parse().ok()?;
    Some(Process { pid, parent, name: stat[start + 1..end].to_owned(), state })
}

/// The mounts of the host, as the test sees them.
pub fn mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").expect("mountinfo")
}

/// How many keys this user has.
pub fn keys() -> u32 {
    let uid = fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).expect("/proc/self");
    let users = fs::read_to_string("/proc/key-users").unwrap_or_default();
    let line = users.lines().find(|line| line.trim_start().starts_with(&format!("{uid}:"))).unwrap_or("");
    // "UID: usage keys/instantiated keys/most bytes/most", and no line without a key.
    line.split_whitespace()
        .nth(3)
        .map_or(0, |held| held.split('/').next().and_then(|n| n.parse().ok()).expect("a number"))
}

/// A whole tree as one text: names, types, modes, owners, sizes, contents of small files, targets of links.
pub fn tree(root: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let mut found = HashMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let mut line = format!("{:o} {} {}", meta.mode(), meta.uid(), meta.gid());
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
        } else if meta.is_symlink() {
            line += &format!(" -> {:?}", fs::read_link(&path).ok());
        } else {
            line +=
                &format!(" {} {} {:?}", meta.len(), meta.mtime(), (meta.len() < 4096).then(|| fs::read(&path).ok()));
        }
        found.insert(path.as_os_str().as_bytes().to_vec(), line);
    }
    let mut lines: Vec<_> = found.into_iter().map(|(p, l)| format!("{} {l}\n", String::from_utf8_lossy(&p))).collect();
    lines.sort();
    lines.concat()
}

pub fn output(program: &str, words: &[&str]) -> String {
    let out = Command::new(program).args(words).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}
