//! The one error type: made once, where the object is known, and handed up unchanged.
//!
//! It knows nothing of the other modules and nothing of remedies that depend on the host
//! (`hint.rs` adds those). `Display` is the first line a person reads: what failed, on what, and why.

use std::fmt;

/// What the library's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// An error number of the kernel; its `Display` is the C library's words and the number's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// What was set and read back differs: a protection did not take. No call of sbx's returns this number by itself.
    pub const NOT_TAKEN: Errno = Errno(131);

    /// The number of the thread's last failed C library call.
    pub fn last() -> Errno {
        Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

impl From<std::io::Error> for Errno {
    /// The standard library's own words would bring a bare number.
    fn from(error: std::io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Errno::NOT_TAKEN {
            return f.write_str("it did not take effect");
        }
        let text = std::io::Error::from_raw_os_error(self.0).to_string();
        let words = text.split(" (os error").next().unwrap_or(&text);
        let mut letters = words.chars();
        match letters.next() {
            Some(first) => write!(f, "{}{}", first.to_lowercase(), letters.as_str()),
            None => write!(f, "error {}", self.0),
        }
    }
}

/// Where a step stands in the plan: `step 7 of 31 (root)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number that `--dry-run` prints before the step, from 1.
    pub number: usize,
    /// How many steps the plan has.
    pub of: usize,
    /// The stage's word.
    pub stage: &'static str,
    /// The step in the words of `--dry-run`.
    pub step: String,
}

/// Everything that can go wrong in sbx itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The command line is not one sbx understands.
    Usage {
        /// What is wrong, in one sentence.
        what: String,
        /// What to type instead, where that is known.
        hint: Option<String>,
    },
    /// A policy file is wrong at a place.
    Policy {
        /// The file as the user named it.
        file: String,
        /// Line and column, both from 1; `None` where the file as a whole is meant.
        at: Option<(usize, usize)>,
        /// The text of that line.
        text: String,
        /// Why it is refused.
        why: String,
    },
    /// A value asked for is refused, whatever the host.
    Spec {
        /// The option or key, as the user spells it.
        field: String,
        /// The value given.
        value: String,
        /// Why it is refused.
        why: String,
        /// What to give instead.
        hint: Option<String>,
    },
    /// This host cannot do what was asked for; nothing was started.
    Unsupported {
        /// The feature asked for.
        feature: String,
        /// What the host lacks, as a fact.
        why: String,
        /// The narrowest thing that would help.
        hint: Option<String>,
    },
    /// A step of the launch failed.
    Step {
        /// Which step.
        place: Place,
        /// The system call that failed.
        call: &'static str,
        /// How it failed.
        errno: Errno,
    },
    /// A system call outside the plan failed.
    Sys {
        /// What was being done: `open`, `read the subordinate ids`.
        doing: String,
        /// The object.
        on: String,
        /// How it failed.
        errno: Errno,
    },
    /// A helper program (newuidmap, newgidmap, fuse-overlayfs) failed.
    Helper {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// The last line it wrote to stderr.
        stderr: String,
    },
    /// The state directory or a record in it is unusable.
    State {
        /// The directory, name or file.
        on: String,
        /// Why.
        why: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The command does not exist inside, or cannot be executed.
    Command {
        /// As the user typed it.
        command: String,
        /// `ENOENT` means not found (127), everything else not executable (126).
        errno: Errno,
        /// A fact about the file that explains the errno.
        why: Option<String>,
    },
    /// A signal ended the set-up.
    Interrupted(i32),
    /// sbx broke one of its own rules.
    Bug(String),
}

impl Error {
    /// The exit status that CLI.md gives this error.
    pub fn exit_status(&self) -> u8 {
        const ENOENT: i32 = 2;
        match self {
            Error::Command { errno: Errno(ENOENT), .. } => 127,
            Error::Command { .. } => 126,
            Error::Interrupted(signal) => 128u8.saturating_add(*signal as u8),
            _ => 125,
        }
    }

    /// Refuses a value: the usual way a parser of `spec` fails.
    pub fn spec(field: &str, value: impl fmt::Display, why: impl fmt::Display) -> Error {
        Error::Spec { field: field.into(), value: value.to_string(), why: why.to_string(), hint: None }
    }

    /// The same error with advice, where the variant can carry one and has none yet.
    pub fn or_try(mut self, advice: impl fmt::Display) -> Error {
        if let Error::Usage { hint, .. }
        | Error::Spec { hint, .. }
        | Error::Unsupported { hint, .. }
        | Error::State { hint, .. } = &mut self
        {
            hint.get_or_insert_with(|| advice.to_string());
        }
        self
    }

    /// The second line of a report: where in the plan or the file.
    pub fn place(&self) -> Option<String> {
        match self {
            Error::Step { place, .. } => Some(format!("step {} of {} ({})", place.number, place.of, place.stage)),
            Error::Policy { at: Some((_, column)), text, .. } => Some(pointed(text, *column)),
            _ => None,
        }
    }

    /// The advice that the error itself carries.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Error::Usage { hint, .. }
            | Error::Spec { hint, .. }
            | Error::Unsupported { hint, .. }
            | Error::State { hint, .. } => hint.as_deref(),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage { what, .. } => write!(f, "{}", visible(what)),
            Error::Policy { file, at: Some((line, column)), why, .. } => {
                write!(f, "{}:{line}:{column}: {}", visible(file), visible(why))
            }
            Error::Policy { file, why, .. } => write!(f, "{}: {}", visible(file), visible(why)),
            Error::Spec { field, value, why, .. } => {
                write!(f, "{field} \"{}\": {}", visible(value), visible(why))
            }
            Error::Unsupported { feature, why, .. } => write!(f, "{}: {}", visible(feature), visible(why)),
            Error::Step { place, call, errno } => {
                write!(f, "cannot {}: {call}: {errno}", visible(&place.step))
            }
            Error::Sys { doing, on, errno } => write!(f, "cannot {doing} {}: {errno}", visible(on)),
            Error::Helper { program, status, stderr } if stderr.is_empty() => write!(f, "{program} failed: {status}"),
            Error::Helper { program, status, stderr } => {
                write!(f, "{program} failed: {status}: {}", visible(stderr))
            }
            // What has changed in a file takes lines of its own.
            Error::State { on, why, .. } => {
                let lines: Vec<String> = why.lines().map(visible).collect();
                write!(f, "{}: {}", visible(on), lines.join("\n  "))
            }
            Error::Command { command, errno: Errno(2), why } => {
                write!(f, "{}: command not found{}", visible(command), because(why))
            }
            Error::Command { command, errno, why } => {
                write!(f, "{}: cannot execute: {errno}{}", visible(command), because(why))
            }
            Error::Interrupted(signal) => write!(f, "interrupted by signal {signal} while setting up"),
            Error::Bug(what) => write!(f, "bug in sbx: {what}"),
        }
    }
}

impl std::error::Error for Error {}

fn because(why: &Option<String>) -> String {
    why.as_ref().map(|why| format!(" ({})", visible(why))).unwrap_or_default()
}

/// The part of a line around a column, and a caret below it. `cli` prints seven characters before the line.
fn pointed(line: &str, column: usize) -> String {
    const AROUND: usize = 60;
    let first = column.saturating_sub(1).saturating_sub(AROUND);
    let part = |from: usize, count: usize| visible(&line.chars().skip(from).take(count).collect::<String>());
    let before = part(first, column - 1 - first);
    let width = "  at:  ".len() + before.chars().count();
    format!("{before}{}\n{:width$}^", part(column - 1, AROUND), "")
}

/// Text of unknown origin with control and bidirectional characters escaped, so that a name in a
/// root file system cannot steer the terminal that shows the error (security.md S34).
pub fn visible(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        if hidden(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
        shown
    })
}

/// The longest word that is shown whole, in characters: any path is shorter.
const LONGEST: usize = 4096;

/// A text whose longest words have lost their middle: of what has a hundred thousand characters nobody reads more.
pub fn shortened(text: &str) -> String {
    let words = text.split_inclusive([' ', '\n']);
    words.fold(String::with_capacity(text.len().min(LONGEST)), |mut shown, word| {
        let length = word.chars().count();
        // With what ends it.
        if length <= LONGEST + 1 {
            shown.push_str(word);
        } else {
            shown.extend(word.chars().take(100));
            shown.push_str(&format!("…({} characters)…", length - 150));
            shown.extend(word.chars().skip(length - 50));
        }
        shown
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_follow_the_contract() {
        let command = |errno| Error::Command { command: "x".into(), errno: Errno(errno), why: None };
        assert_eq!(command(2).exit_status(), 127);
        assert_eq!(command(13).exit_status(), 126);
        assert_eq!(Error::Interrupted(15).exit_status(), 143);
        assert_eq!(Error::Bug(String::new()).exit_status(), 125);
    }

    #[test]
    fn control_and_bidi_characters_are_escaped() {
        assert_eq!(visible("a\u{1b}[31m\u{202e}b\n"), "a\\u{1b}[31m\\u{202e}b\\n");
        assert_eq!(visible("grüße"), "grüße");
    }

    #[test]
    fn the_longest_words_lose_their_middle() {
        let path = "/p".repeat(LONGEST / 2);
        let text = format!("two words, {path}\nand more");
        assert_eq!(shortened(&text), text);
        let long = format!("before {}é after\n", "x".repeat(99_999));
        let (start, end) = ("x".repeat(100), "x".repeat(48));
        assert_eq!(shortened(&long), format!("before {start}…(99851 characters)…{end}é after\n"));
    }

    #[test]
    fn the_caret_stands_below_the_column() {
        assert_eq!(pointed("pid = 5", 1), "pid = 5\n       ^");
        assert_eq!(pointed("ä = \u{1b}x", 6), "ä = \\u{1b}x\n                 ^");
        assert_eq!(pointed("short", 9), "short\n            ^");
        let long = pointed(&"y".repeat(1000), 500);
        assert_eq!(long, format!("{}\n{}^", "y".repeat(120), " ".repeat(67)));
    }

    #[test]
    fn errno_reads_as_words() {
        assert_eq!(Errno(1).to_string(), "operation not permitted");
        assert_eq!(Errno::NOT_TAKEN.to_string(), "it did not take effect");
    }
}
