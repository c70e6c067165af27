//! What a launch tells: how the sandbox ended, and what happened on the way there.

use crate::cgroup::Usage;
use crate::state::{Denied, Skipped};
use crate::sys::process::Ended;
use std::time::Duration;

/// How a sandbox ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The program's own end.
    pub ended: Ended,
    /// Whether `--timeout` ran out.
    pub timed_out: bool,
    /// Whether the writable layer had no room left at the end.
    pub layer_full: bool,
    /// The limit that has ended it.
    pub limit: Option<Reached>,
    /// What the sandbox's cgroup has counted, where it has one, as far as [`Told`](super::Told) says.
    pub usage: Option<Usage>,
    /// Whether what ended the program had come to sbx first, from the keyboard: SIGINT or SIGQUIT.
    pub typed: bool,
}

/// A limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Its option, without dashes.
    pub option: &'static str,
    /// What it was set to.
    pub value: u64,
    /// The most that was used, as far as somebody saw it.
    pub peak: u64,
}

impl Exit {
    /// The exit status of CLI.md.
    pub fn status(&self) -> u8 {
        match (self.timed_out, self.ended) {
            (true, _) => 124,
            (false, Ended::Code(code)) => code as u8,
            (false, Ended::Signal(signal)) => 128u8.saturating_add(signal as u8),
        }
    }

    /// The signal that sbx itself should die of: a shell ends its own loop after Ctrl-C only if its child did.
    pub fn dies_of(&self) -> Option<i32> {
        match self.ended {
            Ended::Signal(signal) if self.typed && !self.timed_out => Some(signal),
            _ => None,
        }
    }
}

/// What an observer is told.
#[derive(Debug)]
pub enum Event<'a> {
    /// The step of this number is done, or with the parent's own steps: is next.
    Step(usize),
    /// Something the user should know, as a sentence.
    Note(&'a str),
    /// A step was skipped.
    Skipped(&'a Skipped),
    /// The program runs.
    Started {
        /// pid of the program as the caller sees it, where it was asked for.
        pid: Option<i32>,
        /// pid of the sandbox's init as the caller sees it.
        init: i32,
    },
    /// Something was refused for the first time; told at once, by another process than the rest.
    Tried(&'a Denied),
    /// All that was refused, and how many times something that is not among it.
    Denied(&'a [Denied], u64),
    /// The time is over; TERM has been sent.
    TimedOut(Duration),
}
