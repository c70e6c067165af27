//! What a run says: lines on stderr, JSON lines on the status descriptor, the pid file.

use sbx::error::{Error, Result, visible};
use sbx::host::files::c_path;
use sbx::launch::{Ended, Event, Exit, Observer, Reached};
use sbx::plan::{Plan, Step};
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
}

const SIGSYS: i32 = 31;

impl<'a> Reporter<'a> {
    /// Checks before anything is started that the pid file can be written.
    pub fn new(
        voice: Voice,
        plan: &'a Plan,
        status_fd: Option<i32>,
        pid_file: Option<PathBuf>,
    ) -> Result<Reporter<'a>> {
        let pid_file = pid_file.map(PidFile::open).transpose()?;
        Ok(Reporter { voice, plan, status_fd, pid_file, timeout: None })
    }

    /// Whether somebody asked for the program's pid.
    pub fn wants_pid(&self) -> bool {
        self.pid_file.is_some() || self.status_fd.is_some()
    }

    /// Nothing ran: an empty pid file would only mislead.
    pub fn forget_pid_file(&self) {
        if let Some(file) = &self.pid_file {
            file.forget();
        }
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

    /// The end of the run.
    pub fn ended(&self, exit: &Exit) {
        if let (true, Some(timeout)) = (exit.timed_out, self.timeout) {
            self.say(&format!("the program was ended after its time, {} s (--timeout)", timeout.as_secs_f64()));
        }
        if let Some(reached) = &exit.limit {
            self.say(&over(reached));
            self.status(
                &json!({ "limit": { "option": reached.option, "value": reached.value, "peak": reached.peak } }),
            );
        }
        if exit.layer_full {
            self.say("the writable layer was full at the end; --upper disk or --upper tmpfs:SIZE gives it more room");
        }
        let filtered = || self.plan.steps().iter().any(|planned| matches!(planned.step, Step::Filter("policy", _)));
        if exit.ended == Ended::Signal(SIGSYS) && filtered() {
            self.say("the program was killed by SIGSYS; it may have made a system call of a foreign ABI (i386 or x32), which the seccomp policy forbids; --seccomp off lets it run");
        }
        let how = match exit.ended {
            Ended::Code(code) => json!({ "code": code }),
            Ended::Signal(signal) => json!({ "signal": signal }),
        };
        let mut line = json!({ "status": exit.status(), "timed_out": exit.timed_out, "layer_full": exit.layer_full });
        if let (Some(line), Some(how)) = (line.as_object_mut(), how.as_object()) {
            line.extend(how.clone());
        }
        self.status(&json!({ "exit": line }));
    }
}

fn over(reached: &Reached) -> String {
    let what = if reached.option == "mem" { "memory" } else { reached.option };
    let (value, peak) = (size(reached.value), size(reached.peak));
    format!("killed by the {what} limit ({value}); its peak was {peak}; --{} sets another", reached.option)
}

/// Bytes as the options take them, exactly where a unit fits, else with one digit behind the point.
fn size(bytes: u64) -> String {
    let units = [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) if bytes.trailing_zeros() >= shift => format!("{}{unit}", bytes >> shift),
        Some((shift, unit)) => format!("{:.1}{unit}", bytes as f64 / (1u64 << shift) as f64),
        None => bytes.to_string(),
    }
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
                self.status(&json!({ "started": { "pid": pid, "init_pid": init, "name": self.plan.name() } }));
            }
            Event::TimedOut(timeout) => self.timeout = Some(*timeout),
        }
    }
}
