//! What a run says: lines on stderr, JSON lines on the status descriptor, the pid file.

use sbx::error::{Error, Result, visible};
use sbx::launch::{Ended, Event, Exit, Observer};
use sbx::plan::Plan;
use serde_json::json;
use std::path::PathBuf;
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
    pid_file: Option<PathBuf>,
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
        if let Some(file) = &pid_file {
            write_pid(file, "")?;
        }
        Ok(Reporter { voice, plan, status_fd, pid_file, timeout: None })
    }

    /// Whether somebody asked for the program's pid.
    pub fn wants_pid(&self) -> bool {
        self.pid_file.is_some() || self.status_fd.is_some()
    }

    /// Nothing ran: an empty pid file would only mislead.
    pub fn forget_pid_file(&self) {
        if let Some(file) = &self.pid_file
            && std::fs::metadata(file).is_ok_and(|data| data.len() == 0)
        {
            let _ = std::fs::remove_file(file);
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
        if exit.layer_full {
            self.say("the writable layer was full at the end; --upper disk or --upper tmpfs:SIZE gives it more room");
        }
        if exit.ended == Ended::Signal(SIGSYS) {
            self.say("the program was killed for a system call of a foreign ABI (i386 or x32), which the seccomp policy forbids; --seccomp off lets it run");
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

fn write_pid(file: &std::path::Path, text: &str) -> Result<()> {
    std::fs::write(file, text).map_err(|e| Error::Sys {
        doing: "write the pid file".into(),
        on: file.display().to_string(),
        errno: sbx::error::Errno(e.raw_os_error().unwrap_or(0)),
    })
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
                    && let Err(error) = write_pid(file, &format!("{pid}\n"))
                {
                    self.say(&error.to_string());
                }
                self.status(&json!({ "started": { "pid": pid, "init_pid": init, "name": self.plan.name() } }));
            }
            Event::TimedOut(timeout) => self.timeout = Some(*timeout),
        }
    }
}
