//! What a run says: lines on stderr, JSON lines on the status descriptor, the pid file.

use super::limits;
use sbx::error::{Error, Result, visible};
use sbx::host::files::c_path;
use sbx::launch::{Ended, Event, Exit, Observer};
use sbx::plan::{Plan, Step};
use sbx::spec::Rlimit;
use sbx::state::Denied;
use sbx::sys::fs::{HERE, Open, openat_mode};
use serde_json::json;
use std::fs::{File, Metadata};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    /// Errors only.
    Quiet,
    /// Errors and what the user should know.
    Usual,
    /// Each step too.
    Verbose,
}

/// Hears a launch and says what has to be said.
pub struct Reporter<'a> {
    voice: Voice,
    plan: &'a Plan,
    status_fd: Option<i32>,
    pid_file: Option<PidFile>,
    timeout: Option<Duration>,
    /// Whether what was used is told at the end.
    counted: bool,
    /// What the sandbox has refused, where that is explained.
    denied: Option<Vec<Denied>>,
}

const SIGSYS: i32 = 31;
const ENDED_BY_LIMIT: [(i32, &str, &[&str]); 4] = [
    (9, "SIGKILL", &["as", "data", "stack", "cpu"]),
    (11, "SIGSEGV", &["as", "data", "stack"]),
    (24, "SIGXCPU", &["cpu"]),
    (25, "SIGXFSZ", &["fsize"]),
];

impl<'a> Reporter<'a> {
    /// Checks before anything is started that the pid file can be written.
    pub fn new(
        voice: Voice,
        plan: &'a Plan,
        status_fd: Option<i32>,
        pid_file: Option<PathBuf>,
        counted: bool,
    ) -> Result<Reporter<'a>> {
        let pid_file = pid_file.map(PidFile::open).transpose()?;
        Ok(Reporter { voice, plan, status_fd, pid_file, timeout: None, counted, denied: None })
    }

    /// What the sandbox has refused.
    pub fn denied(&self) -> &[Denied] {
        self.denied.as_deref().unwrap_or_default()
    }

    /// The first of them, one line each.
    fn tell_denied(&self, denied: &[Denied], more: u64) {
        denied.iter().take(SHOWN).for_each(|denied| self.say(&sentence(denied)));
        let left = denied.len().saturating_sub(SHOWN);
        if left > 0 || more > 0 {
            let many = if more > 0 { " and more" } else { "" };
            self.say(&format!("denied: {left} others{many}: sbx why tells all"));
        }
        denied.iter().for_each(|denied| self.status(&json!({ "denied": denied })));
    }

    /// Whether somebody asked for the program's pid.
    pub fn wants_pid(&self) -> bool {
        self.pid_file.is_some() || self.status_fd.is_some()
    }

    /// Whether all that was used is told at the end.
    pub fn wants_usage(&self) -> bool {
        self.counted || self.status_fd.is_some()
    }

    /// Nothing ran: an empty pid file would only mislead.
    pub fn forget_pid_file(&self) {
        if let Some(file) = &self.pid_file {
            file.forget();
        }
    }

    /// Nobody reads what is said from here on; what is told to a descriptor of its own goes on.
    pub fn leave(&mut self) {
        self.voice = Voice::Quiet;
        self.pid_file = None;
    }

    fn say(&self, text: &str) {
        if self.voice != Voice::Quiet {
            super::say(text);
        }
    }

    /// What the user should know before the start.
    pub fn notes(&self, notes: &[String]) {
        notes.iter().for_each(|note| self.say(note));
    }

    /// One JSON line for whoever reads the status descriptor; nobody there is no reason to stop.
    fn status(&self, line: &serde_json::Value) {
        if let Some(number) = self.status_fd {
            let _ = sbx::sys::fs::write_all(sbx::sys::borrow(number), format!("{line}\n").as_bytes());
        }
    }

    /// What limits did, and what was used.
    fn used(&self, exit: &Exit) {
        for effect in limits::effects(self.plan, exit) {
            if !effect.text.is_empty() {
                self.say(&effect.text);
            }
            self.status(&json!({ "limit": effect.line }));
        }
        if self.counted {
            limits::report(self.plan, exit.usage.as_ref()).iter().for_each(|line| super::say(line));
        }
    }

    /// The signal's name and the limit that was asked for, where the kernel ends with this signal who meets that
    /// limit: getrlimit(2), and execve(2) for those that leave a new program too little memory.
    fn limit_met(&self, signal: i32) -> Option<(&'static str, &Rlimit)> {
        // With `exec` all of them are set, and nobody has asked for any.
        if self.plan.joins() {
            return None;
        }
        let (_, name, limits) = ENDED_BY_LIMIT.iter().find(|(number, ..)| *number == signal)?;
        let mut asked = self.plan.steps().iter().filter_map(|planned| match &planned.step {
            Step::Rlimit(limit) if limits.contains(&limit.name.as_str()) && limit.soft != u64::MAX => Some(limit),
            _ => None,
        });
        Some((*name, asked.next_back()?))
    }

    /// The end of the run.
    pub fn ended(&self, exit: &Exit) {
        self.used(exit);
        if let (true, Some(timeout)) = (exit.timed_out, self.timeout) {
            self.say(&format!("the program was ended after its time, {} s (--timeout)", timeout.as_secs_f64()));
        }
        if exit.layer_full {
            self.say("the writable layer was full at the end; --upper disk or --upper tmpfs:SIZE gives it more room");
        }
        let filtered = || self.plan.steps().iter().any(|planned| matches!(planned.step, Step::Filter("policy", _)));
        if exit.ended == Ended::Signal(SIGSYS) && filtered() {
            self.say("the program was killed by SIGSYS; it may have made a system call of a foreign ABI (i386 or x32), which the seccomp policy forbids; --seccomp off lets it run");
        }
        if let (Ended::Signal(signal), false, None) = (exit.ended, exit.timed_out, exit.limit)
            && let Some((name, limit)) = self.limit_met(signal)
        {
            let set = format!("--rlimit {}={}", limit.name, limit.soft);
            self.say(&format!("the program was killed by {name}; {set} may be too low for it"));
        }
        // What a shell answers where something was not allowed or not found, and most programs to any failure.
        if self.denied.is_none() && matches!(exit.ended, Ended::Code(1 | 126 | 127)) && !self.plan.joins() {
            self.say("if the sandbox is why it failed: --explain says what it refused, --explain=files of files too");
        }
        let how = match exit.ended {
            Ended::Code(code) => json!({ "code": code }),
            Ended::Signal(signal) => json!({ "signal": signal }),
        };
        let mut line = json!({ "status": exit.status(), "timed_out": exit.timed_out, "layer_full": exit.layer_full });
        if let (Some(line), Some(how)) = (line.as_object_mut(), how.as_object()) {
            line.extend(how.clone());
            line.extend(exit.usage.iter().map(|usage| ("usage".to_owned(), limits::as_json(usage))));
        }
        self.status(&json!({ "exit": line }));
    }
}

/// How many of what was refused is said at the end.
const SHOWN: usize = 10;

/// What was refused, as a line: who tried what, how often, which rule is why, and what would allow it.
pub fn sentence(denied: &Denied) -> String {
    let times = if denied.count > 1 { format!(" ({} times)", denied.count) } else { String::new() };
    let on = if denied.object.is_empty() { String::new() } else { format!(" {}", denied.object) };
    let origin = denied.origin.as_ref().map_or_else(String::new, |origin| format!(" [{}]", visible(origin)));
    let way = match (&denied.option, &denied.note) {
        (Some(option), None) => format!("; to allow it: {option}"),
        (Some(option), Some(note)) => format!("; to allow it: {option} ({note})"),
        (None, Some(note)) => format!("; {note}"),
        (None, None) => String::new(),
    };
    let Denied { call, program, errno, rule, .. } = denied;
    visible(&format!("denied: {program}: {call}{on}: {errno}{times}: {rule}{origin}{way}"))
}

/// The pid file, opened once before anything runs and never through a symlink: it may lie in a directory that the
/// program can write, who could put a link to any file of the caller's in its place.
struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    fn open(path: PathBuf) -> Result<PidFile> {
        let file = || {
            let opened = openat_mode(HERE, &c_path(&path), Open::Lock, 0o666);
            let file = File::from(opened.map_err(|errno| std::io::Error::from_raw_os_error(errno.0))?);
            if file.metadata()?.is_file() {
                file.set_len(0)?;
            }
            Ok(file)
        };
        match file() {
            Ok(file) => Ok(PidFile { path, file }),
            Err(error) => Err(PidFile::failed(&path, &error)),
        }
    }

    fn write(&self, pid: i32) -> Result<()> {
        writeln!(&self.file, "{pid}").map_err(|error| PidFile::failed(&self.path, &error))
    }

    /// Removes it, if it is still the empty file that was opened.
    fn forget(&self) {
        let same = |a: Metadata, b: Metadata| a.len() == 0 && (a.dev(), a.ino()) == (b.dev(), b.ino());
        if let (Ok(held), Ok(named)) = (self.file.metadata(), std::fs::symlink_metadata(&self.path))
            && same(held, named)
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn failed(path: &Path, error: &std::io::Error) -> Error {
        let errno = sbx::error::Errno(error.raw_os_error().unwrap_or(0));
        Error::Sys { doing: "write the pid file".into(), on: path.display().to_string(), errno }
    }
}

impl Observer for Reporter<'_> {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Step(number) if self.voice == Voice::Verbose => {
                let place = self.plan.place(*number);
                self.say(&format!("{:<9}{:>3}  {}", place.stage, place.number, visible(&place.step)));
            }
            Event::Step(_) => {}
            Event::Note(note) => self.say(note),
            Event::Skipped(skipped) => {
                self.say(&format!("skipped: {} ({})", visible(&skipped.step), skipped.why));
                self.status(&json!({ "skipped": { "step": skipped.step, "why": skipped.why } }));
            }
            Event::Started { pid, init } => {
                if let (Some(file), Some(pid)) = (&self.pid_file, pid)
                    && let Err(error) = file.write(*pid)
                {
                    self.say(&error.to_string());
                }
                limits::enforced(self.plan).iter().for_each(|line| self.status(line));
                self.status(&json!({ "started": { "pid": pid, "init_pid": init, "name": self.plan.name() } }));
            }
            Event::Tried(denied) if self.voice == Voice::Verbose => self.say(&sentence(denied)),
            Event::Tried(_) => {}
            Event::Denied(denied, more) => {
                self.tell_denied(denied, *more);
                self.denied = Some(denied.to_vec());
            }
            Event::TimedOut(timeout) => self.timeout = Some(*timeout),
        }
    }
}
